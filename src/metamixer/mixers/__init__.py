"""Mixers: settings that draw a plan for every batch. One file each; what they draw with is in ``functional``."""

from metamixer.mixers.base import BaseMixer, Draw
from metamixer.mixers.cutmix import CutMix, SameClassCutMix
from metamixer.mixers.cutnmix import CutnMix
from metamixer.mixers.manifold_mixup import ManifoldMixup
from metamixer.mixers.metamixer import MetaMixer
from metamixer.mixers.mixup import Mixup
from metamixer.mixers.no_mix import NoMix

__all__ = ["BaseMixer", "CutMix", "CutnMix", "Draw", "ManifoldMixup", "MetaMixer", "Mixup", "NoMix", "SameClassCutMix"]
