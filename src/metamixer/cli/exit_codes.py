"""Report user errors in one line each, with an exit code that scripts can test (as in sysexits.h)."""

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

# Messages of the library name arguments; on the command line these are overrides of the recipe.
_SPELLED = {
    "on_error='skip'": "data.on_error=skip",
    "download=True": "data.download=true",
    "root=…": "data.root=…",
}
USAGE, DATA, TEMPORARY, DISK = 2, 65, 75, 74
P = ParamSpec("P")


class Stopped(Exception):
    """Training was interrupted; ``command`` resumes it."""

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
    """A command with --allow-imports if it was given, because files of a run cannot allow imports."""
    return command + " --allow-imports" * trusted_imports.anything_allowed()


def report_faults(command: Callable[P, int]) -> Callable[P, int]:
    """Let a command print user errors and return an exit code instead of raising. Bugs still raise."""

    @functools.wraps(command)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> int:
        waiting = Waiting()
        try:
            with watched_by(waiting), contextlib.closing(waiting):
                return command(*args, **kwargs)
        except RecipeError as error:
            return _print(error, USAGE)
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # the terminal was closed
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


# Expressions after ``except`` are only evaluated if no earlier clause matches, so commands without torch (``list``) do
# not import it.
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
    """Errors that may not occur in another attempt, or on another machine."""
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
        # An indented line continues the previous one.
        say(line if line.startswith(" ") else f"error: {line}", style="red", stderr=True)
    return code
