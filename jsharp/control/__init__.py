"""Control: environments as pure functions, and a loss that learns from trajectories.

A task is a goal; its support and query sets are keys of trajectories. With
`policy_loss` every algorithm that takes a loss function, `jsharp.maml` first of all,
meta-learns a policy, without a change.
"""

from jsharp.control.environment import Environment as Environment
from jsharp.control.navigation import Navigation as Navigation
from jsharp.control.policy_loss import Trajectories as Trajectories
from jsharp.control.policy_loss import log_density as log_density
from jsharp.control.policy_loss import policy_loss as policy_loss
from jsharp.control.policy_loss import roll_out as roll_out
from jsharp.control.surrogates import dice as dice
from jsharp.control.surrogates import generalised_advantages as generalised_advantages
from jsharp.control.surrogates import linear_baseline as linear_baseline
from jsharp.control.surrogates import low_variance as low_variance
from jsharp.control.tasks import GoalTasks as GoalTasks
from jsharp.control.tasks import PolicyGradient as PolicyGradient
from jsharp.control.tasks import sample_task as sample_task
