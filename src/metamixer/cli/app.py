"""The command ``metamixer``.

The module of a command defines its options, and imports heavy packages only when the command runs, so that ``--help``
is fast.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated

import typer

from metamixer.cli.check import check
from metamixer.cli.evaluate import evaluate
from metamixer.cli.export import export
from metamixer.cli.list_names import list_names
from metamixer.cli.predict import predict
from metamixer.cli.preview import preview
from metamixer.cli.report import report
from metamixer.cli.serve import serve
from metamixer.cli.study import study
from metamixer.cli.train import train
from metamixer.cli.tune import tune
from metamixer.core.machine import limit_spinning

app = typer.Typer(
    name="metamixer",
    help="Train small networks that teach each other, and deploy the best one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # otherwise --help imports much of rich and takes three times as long
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from metamixer import __version__

        typer.echo(f"metamixer {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train small networks that teach each other, and deploy the best one."""
    from metamixer.core.trusted_imports import scope

    context.with_resource(scope())


def _ending_with_a_code(command: Callable[..., int]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        from metamixer.cli.exit_codes import report_faults

        raise typer.Exit(report_faults(command)(*args, **kwargs))

    return run


for _command in (train, evaluate, study, tune, predict, serve, export, preview, list_names, check, report):
    app.command("list" if _command is list_names else None)(_ending_with_a_code(_command))


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):  # class names may be 猫, and file names any bytes
        if isinstance(stream, TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    limit_spinning()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()
