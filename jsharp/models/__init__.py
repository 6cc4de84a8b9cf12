"""Networks as Linen modules, and their conversion to pure functions.

`as_functions` turns a module, such as `Conv4`, `ResNet12` or `MLP`, into the pair
`init_fn`, `apply_fn` that algorithms take. Masks such as `part_mask` select parts of
the parameters.
"""

from typing import TYPE_CHECKING

from jsharp._exports import exported
from jsharp.models._options import ClassifierNetwork as ClassifierNetwork
from jsharp.models._options import Network as Network
from jsharp.models.attention import AttentionLearner as AttentionLearner
from jsharp.models.attention import as_learner_functions as as_learner_functions
from jsharp.models.context import as_context_functions as as_context_functions
from jsharp.models.conv4 import ContextConv4 as ContextConv4
from jsharp.models.conv4 import Conv4 as Conv4
from jsharp.models.functions import all_but_norm as all_but_norm
from jsharp.models.functions import as_functions as as_functions
from jsharp.models.functions import first_outputs as first_outputs
from jsharp.models.functions import norm_mask as norm_mask
from jsharp.models.functions import part_mask as part_mask
from jsharp.models.functions import with_statistics as with_statistics
from jsharp.models.imagenet_resnet import ImageNetResNet as ImageNetResNet
from jsharp.models.lora import Adapter as Adapter
from jsharp.models.lora import WithAdapters as WithAdapters
from jsharp.models.lora import adapters_alone as adapters_alone
from jsharp.models.lora import lora as lora
from jsharp.models.lora import merge_adapters as merge_adapters
from jsharp.models.lora import with_adapters as with_adapters
from jsharp.models.mlp import MLP as MLP
from jsharp.models.mlp import ContextMLP as ContextMLP
from jsharp.models.policy import GaussianPolicy as GaussianPolicy
from jsharp.models.pyramid_net import PyramidNet as PyramidNet
from jsharp.models.resnet import ResNet as ResNet
from jsharp.models.resnet import WideResNet as WideResNet
from jsharp.models.resnet12 import ResNet12 as ResNet12
from jsharp.models.shake_shake import ShakeShake as ShakeShake
from jsharp.models.transformer import Transformer as Transformer

if not TYPE_CHECKING:  # They read the imports themselves.
  __all__ = exported(globals())
