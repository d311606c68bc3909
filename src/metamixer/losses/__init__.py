"""Losses: what each peer learns from the labels and from the others. One method a file."""

from metamixer.losses.afd import AFD
from metamixer.losses.amln import AMLN
from metamixer.losses.cl_ilr import CLILR
from metamixer.losses.codistillation import Codistillation
from metamixer.losses.cutnmix import CutnMixLoss
from metamixer.losses.dkd import DKD
from metamixer.losses.dml import DML
from metamixer.losses.ffl import FFL
from metamixer.losses.independent import Independent
from metamixer.losses.infomax_adversarial import InfoMaxAdversarial
from metamixer.losses.kd import KD
from metamixer.losses.kdcl import KDCL
from metamixer.losses.lmcl import LMCL
from metamixer.losses.mcl import MCL
from metamixer.losses.okddip import OKDDip
from metamixer.losses.one import ONE
from metamixer.losses.pcl import PCL
from metamixer.losses.switokd import SwitOKD

__all__ = [
    "AFD",
    "AMLN",
    "CLILR",
    "DKD",
    "DML",
    "FFL",
    "KD",
    "KDCL",
    "LMCL",
    "MCL",
    "ONE",
    "PCL",
    "Codistillation",
    "CutnMixLoss",
    "Independent",
    "InfoMaxAdversarial",
    "OKDDip",
    "SwitOKD",
]
