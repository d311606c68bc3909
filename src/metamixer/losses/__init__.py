"""Losses: what each peer learns from the labels and from the others. One method a file."""

from metamixer.losses.dml import DML
from metamixer.losses.independent import Independent

__all__ = ["DML", "Independent"]
