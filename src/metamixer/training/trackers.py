"""Log metrics to TensorBoard, Weights & Biases and MLflow, in addition to the files of a run.

A tracker has the interface of the loggers of Lightning Fabric. It is called in a thread, so that a server that does not
respond does not delay steps, and one that fails does not stop training.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol, runtime_checkable

from metamixer.core.files import write_whole
from metamixer.training.callbacks import EpochRecord, Start, StepRecord
from metamixer.training.interrupt import Interrupted

Name = Literal["tensorboard", "wandb", "mlflow"]
PACKAGES: dict[Name, tuple[str, ...]] = {"tensorboard": (), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""The packages that each of them needs, installed by the extra of its name."""
_PATIENCE = 30.0  # seconds to wait for the last metrics at the end


@runtime_checkable
class Logger(Protocol):
    """The part of ``lightning.fabric.loggers.Logger`` that is used."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Called once, before the first metrics."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Called after each epoch, with the number of steps so far."""

    def finalize(self, status: str) -> None:
        """Called at the end with ``success``, ``failed`` or ``aborted``."""


class Tracker:
    """A callback that passes the metrics of every epoch to a logger.

    Args:
        logger: an object with the interface of the loggers of Fabric, or a function that creates one, called with the
            step at which training starts.
        settings: settings of the run by their keys: ``{"optim.lr": 0.1}``.
        name: name in messages; None: the class of the logger.
        patience: seconds to wait for the last metrics at the end of training; None: 30.
    """

    def __init__(
        self,
        logger: Logger | Callable[[int], Logger],
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
        patience: float | None = None,
    ) -> None:
        self._given, self._settings = logger, dict(settings or {})
        self._patience = _PATIENCE if patience is None else patience
        self._name = name or type(logger).__name__
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        self._said = False

    def on_start(self, start: Start) -> None:
        """Start the thread of the tracker."""
        self._around = sys.exc_info()[1]  # an exception that the caller of the training is handling
        self._tasks.put(partial(self._begin, start.step))
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def on_step(self, record: StepRecord) -> None:
        """Steps are not sent: reading them would stall the device."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Queue the metrics of the epoch."""
        row = {name: value for name, value in record.flat().items() if name != "step"}
        self._tasks.put(partial(self._log, row, record.step))
        self._report_fault()

    def on_end(self) -> None:
        """Finish, and wait for the last metrics for a limited time."""
        stopped = sys.exc_info()[1]  # the exception that ends training, if any
        whole = stopped is self._around
        status = "success" if whole else "aborted" if isinstance(stopped, Interrupted) else "failed"
        self._tasks.put(partial(self._finish, status))
        self._tasks.put(None)
        if not self._ended.wait(self._patience) and self._fault is None:
            self._fault = TimeoutError(f"it did not take the last metrics in {self._patience:g} seconds")
        self._report_fault()

    def _work(self) -> None:
        try:
            while (task := self._tasks.get()) is not None:
                task()
        except BaseException as error:  # SDKs may raise anything, including SystemExit
            self._fault = error
        finally:
            self._ended.set()

    def _begin(self, step: int) -> None:
        self._logger = self._given if isinstance(self._given, Logger) else self._given(step)
        with contextlib.suppress(NotImplementedError):  # raised by the CSVLogger of Fabric
            self._logger.log_hyperparams(self._settings)

    def _log(self, row: dict[str, float], step: int) -> None:
        self._logger.log_metrics(row, step)

    def _finish(self, status: str) -> None:
        self._logger.finalize(status)

    def _report_fault(self) -> None:
        if self._fault is not None and not self._said:
            self._said = True
            said = " ".join(str(self._fault).split())[:300] or type(self._fault).__name__
            warnings.warn(
                f"no more metrics for {self._name} ({said}); training continues, and metrics.jsonl has all metrics",
                stacklevel=2,
            )


def trackers(names: Sequence[Name], folder: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Create the trackers of a run by name."""
    kinds: dict[Name, Callable[[Path, int], Logger]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}
    return [Tracker(partial(kinds[name], folder), settings, name) for name in dict.fromkeys(names)]


class _TensorBoard:
    """Writes event files to ``events/``; a resumed run purges the steps that it repeats."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Nothing to do: the settings are in ``recipe.yaml``."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finalize(self, status: str) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, offline in ``RUN/wandb`` without an API key; a resumed run continues it."""

    def __init__(self, folder: Path, step: int) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or (None if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "metamixer"),
            name=folder.absolute().name,
            dir=str(folder),
            id=_known(folder, "wandb"),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(console="off", quiet=True),
        )
        _remember(folder, "wandb", self._run.id)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self._run.config.update(params, allow_val_change=True)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._run.log(metrics, step=step)

    def finalize(self, status: str) -> None:
        self._run.finish(exit_code=int(status != "success"))


class _MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI or the default of MLflow; a resumed run continues it."""

    def __init__(self, folder: Path, step: int) -> None:
        from mlflow import MlflowClient, MlflowException

        self._client, known = MlflowClient(), _known(folder, "mlflow")
        try:
            self._run = None if known is None else self._client.get_run(known).info.run_id
        except MlflowException:  # the id belongs to another server
            self._run = None
        self._new = self._run is None
        if self._run is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "metamixer")
            found = self._client.get_experiment_by_name(name)
            place = self._client.create_experiment(name) if found is None else found.experiment_id
            self._run = self._client.create_run(place, run_name=folder.absolute().name).info.run_id
            _remember(folder, "mlflow", self._run)
        else:
            self._client.update_run(self._run, status="RUNNING")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        if self._new:  # parameters cannot be changed later
            values = [Param(key, str(value)[:500]) for key, value in params.items()]
            for first in range(0, len(values), 100):  # the limit of MLflow per request
                self._client.log_batch(self._run, params=values[first : first + 100])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step or 0) for name, value in metrics.items()])

    def finalize(self, status: str) -> None:
        self._client.set_terminated(self._run, {"success": "FINISHED", "aborted": "KILLED"}.get(status, "FAILED"))


def _known(folder: Path, name: str) -> str | None:
    """The id of the run in a tracker; None if it has none yet."""
    return _ids(folder).get(name)


def _remember(folder: Path, name: str, run: str) -> None:
    with _LOCK:
        write_whole(folder / "trackers.json", json.dumps(_ids(folder) | {name: run}))


def _ids(folder: Path) -> dict[str, str]:
    path = folder / "trackers.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


_LOCK = threading.Lock()
