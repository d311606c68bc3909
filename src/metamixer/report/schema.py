"""Schemas of the JSON files of runs, read leniently: keys may be missing, numbers may be NaN."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from metamixer.core.json_values import Count, Maybe
from metamixer.evaluation.report import Report
from metamixer.metrics.network_scores import Score


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Ended(_Read):
    """``report.json``: the result of a run."""

    split: str = "test"
    last_epoch: Report = Report()
    deployed: Score | None = None
    best: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class Epoch(_Read):
    """A line of ``metrics.jsonl``; see :class:`metamixer.training.callbacks.EpochRecord`."""

    epoch: Count
    lr: Maybe = None
    terms: dict[str, tuple[Maybe, ...]] = {}
    train_accuracy: tuple[Maybe, ...] = ()
    strength: Maybe = None
    overfitting: Maybe = None
    val: Report | None = None
    images_per_second: Maybe = None
    seconds: Maybe = None


class Environment(_Read):
    """``environment.json``: versions and machine."""

    python: str = ""
    platform: str = ""
    processor: str = ""
    gpu: str | None = None
    versions: dict[str, str | None] = {}
