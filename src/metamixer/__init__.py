"""Online knowledge distillation for PyTorch: small networks that train together and teach each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metamixer.core import torchvision_compat
from metamixer.core.registry import lazy_names
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS

if TYPE_CHECKING:
    from metamixer.cohort.cohort import Cohort as Cohort
    from metamixer.cohort.shared_trunk import share_trunk as share_trunk
    from metamixer.core.plan import Blend as Blend
    from metamixer.core.plan import Mixer as Mixer
    from metamixer.core.plan import MixPlan as MixPlan
    from metamixer.core.plan import Paste as Paste
    from metamixer.core.types import Batch as Batch
    from metamixer.core.types import Outputs as Outputs
    from metamixer.core.types import Terms as Terms
    from metamixer.core.types import total as total
    from metamixer.evaluation.assess import Assessment as Assessment
    from metamixer.evaluation.assess import assess as assess
    from metamixer.evaluation.evaluate import Report as Report
    from metamixer.evaluation.evaluate import Score as Score
    from metamixer.evaluation.evaluate import evaluate as evaluate
    from metamixer.export.load_model import load as load
    from metamixer.training.optimizer import Optim as Optim
    from metamixer.training.train_step import Step as Step
    from metamixer.training.train_step import train_step as train_step
    from metamixer.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_VALUES = ["core.types:Batch", "core.types:Outputs", "core.types:Terms", "core.types:total"]
_VALUES += ["core.plan:MixPlan", "core.plan:Blend", "core.plan:Paste", "core.plan:Mixer"]
_PARTS = ["cohort.cohort:Cohort", "cohort.shared_trunk:share_trunk"]
_LOOP = ["training.train_step:Step", "training.train_step:train_step", "training.trainer:Trainer"]
_LOOP += ["training.optimizer:Optim", "evaluation.evaluate:Score", "evaluation.evaluate:Report"]
_LOOP += ["evaluation.evaluate:evaluate", "evaluation.assess:Assessment", "evaluation.assess:assess"]
_USE = ["export.load_model:load"]

# The mixers and losses are those of the registries; each name is imported when it is first used.
__getattr__, __all__ = lazy_names(
    __name__, [*(f"metamixer.{name}" for name in (*_VALUES, *_PARTS, *_LOOP, *_USE)), *MIXERS.targets, *LOSSES.targets]
)
torchvision_compat.make_importable()  # so that timm can be imported with a CPU-only torch; nothing is imported by it


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
