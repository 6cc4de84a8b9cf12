"""Control: environments as pure functions, and losses on trajectories.

A task is a goal; its support and query sets are random keys of trajectories. With
`policy_loss`, every algorithm that takes a loss function, such as `jsharp.maml`,
meta-learns a policy unchanged; `trpo` and `ppo` are outer loops around such an
algorithm.
"""

from jsharp.control.environment import Environment as Environment
from jsharp.control.environment import check_environment as check_environment
from jsharp.control.gaussian import kl_divergence as kl_divergence
from jsharp.control.gaussian import log_density as log_density
from jsharp.control.half_cheetah import HalfCheetahDir as HalfCheetahDir
from jsharp.control.half_cheetah import HalfCheetahVel as HalfCheetahVel
from jsharp.control.navigation import Navigation as Navigation
from jsharp.control.policy_loss import Held as Held
from jsharp.control.policy_loss import PolicyLoss as PolicyLoss
from jsharp.control.policy_loss import policy_loss as policy_loss
from jsharp.control.ppo import PPO as PPO
from jsharp.control.ppo import ppo as ppo
from jsharp.control.roll_out import Trajectories as Trajectories
from jsharp.control.roll_out import not_finite as not_finite
from jsharp.control.roll_out import roll_out as roll_out
from jsharp.control.surrogates import clipped as clipped
from jsharp.control.surrogates import dice as dice
from jsharp.control.surrogates import generalised_advantages as generalised_advantages
from jsharp.control.surrogates import linear_baseline as linear_baseline
from jsharp.control.surrogates import low_variance as low_variance
from jsharp.control.tasks import GoalTasks as GoalTasks
from jsharp.control.tasks import PolicyGradient as PolicyGradient
from jsharp.control.tasks import sample_task as sample_task
from jsharp.control.trpo import TRPO as TRPO
from jsharp.control.trpo import trpo as trpo
from jsharp.control.trust_region import trust_region as trust_region
from jsharp.control.updates import OneStep as OneStep
from jsharp.control.updates import OuterUpdate as OuterUpdate
