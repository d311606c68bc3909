"""Online knowledge distillation for PyTorch: small networks that train together and teach each other."""

from metamixer.cohort import Cohort
from metamixer.evaluate import Report, Score, evaluate
from metamixer.losses import DML, Independent
from metamixer.mixers import CutMix, ManifoldMixup, MetaMixer, Mixup, NoMix, SameClassCutMix
from metamixer.optim import Optim
from metamixer.plan import Blend, Mixer, MixPlan, Paste
from metamixer.records import Batch, Outputs, Terms, total
from metamixer.step import Step, train_step
from metamixer.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    # values
    "Batch", "Outputs", "Terms", "total", "MixPlan", "Blend", "Paste", "Mixer",
    # parts
    "Cohort",
    "NoMix", "Mixup", "CutMix", "ManifoldMixup", "SameClassCutMix", "MetaMixer",
    "Independent", "DML",
    # line and loop
    "Step", "train_step", "Score", "Report", "evaluate", "Optim", "Trainer",
]  # fmt: skip
