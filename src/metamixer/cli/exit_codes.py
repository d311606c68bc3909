"""User errors: reported in one line each, with an exit code that scripts can test (as in sysexits.h)."""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from metamixer.cli.console import say
from metamixer.cli.waiting import Waiting
from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.core.progress import watched_by
from metamixer.training.interrupt import Interrupted

# Messages of the library speak of arguments; on the command line those are changes of the recipe.
_SPELLED = {
    "on_error='skip'": "data.on_error=skip",
    "download=True": "data.download=true",
    "root=…": "data.root=…",
}
USAGE, DATA, TEMPORARY, DISK = 2, 65, 75, 74
P = ParamSpec("P")


class Stopped(Exception):
    """A training was interrupted; ``command`` resumes it."""

    def __init__(self, interrupted: Interrupted, command: str) -> None:
        super().__init__(f"{interrupted}; resume with: {command}")
        self.code = 128 + interrupted.signal


def resume_command(folder: Path) -> str:
    """The command that resumes a run."""
    command = allowed_again(f"metamixer train --resume {shlex.quote(str(folder))}")
    from metamixer.training.started import started

    launcher = {"torchrun": "torchrun ... -m ", "srun": "srun ... "}
    return launcher[here.by] + command if (here := started()).from_outside else command


def allowed_again(command: str) -> str:
    """A command that reads a run: code of one's own has to be allowed again, as the run's file may not."""
    return command + " --allow-imports" * trusted_imports.anything_allowed()


def report_faults(command: Callable[P, int]) -> Callable[P, int]:
    """A command that returns its exit code and prints a fault in lines instead of raising it. Bugs still raise."""

    @functools.wraps(command)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> int:
        waiting = Waiting()
        try:
            with watched_by(waiting), contextlib.closing(waiting):
                return command(*args, **kwargs)
        except RecipeError as error:
            return _print(error, USAGE)
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # a terminal that was closed
                say(str(stopped), style="yellow", stderr=True)
            return stopped.code
        except KeyboardInterrupt:
            say("stopped", style="yellow", stderr=True)
            return 128 + signal.SIGINT
        except BrokenPipeError:
            raise
        except OSError as error:
            return _print(error, DISK)
        except _of_the_moment() as error:
            return _print(error, TEMPORARY)
        except _of_data() as error:
            return _print(error, DATA)
        except _of_memory() as error:
            first = str(error).partition(". ")[0]
            say(f"error: {first}; a smaller --batch-size, --precision bf16 or fewer peers take less", stderr=True)
            return TEMPORARY
        except RuntimeError as error:
            if (fault := _of_worker(error)) is None:
                raise
            return _print(fault, TEMPORARY)

    return reporting


# What follows an ``except`` is asked for when something was raised that fits none of those before, so a command that
# needs no torch (``list``) does not wait for it.
def _of_data() -> tuple[type[Exception], ...]:
    from metamixer.data import DataError
    from metamixer.export.errors import ExportError
    from metamixer.models.factory import UnknownModel
    from metamixer.training.checkpoint import CheckpointError
    from metamixer.training.trainer import TrainingError

    return DataError, TrainingError, CheckpointError, UnknownModel, ExportError


def _of_worker(error: RuntimeError) -> RuntimeError | None:
    from metamixer.data import WorkerError
    from metamixer.data.files.streaming import worker_fault

    return error if isinstance(error, WorkerError) else worker_fault(error)


def _of_the_moment() -> tuple[type[Exception], ...]:
    """What may go well the next time, or elsewhere."""
    from metamixer.training.distributed import ProcessLost
    from metamixer.training.optimizer_step import DoesNotFit

    return ProcessLost, DoesNotFit


def _of_memory() -> type[Exception]:
    from torch import OutOfMemoryError

    return OutOfMemoryError


def _print(error: Exception, code: int) -> int:
    text = str(error)
    for call, option in _SPELLED.items():
        text = text.replace(call, option)
    for line in text.splitlines():
        # An indented line belongs to the one before it.
        say(line if line.startswith(" ") else f"error: {line}", style="red", stderr=True)
    return code
