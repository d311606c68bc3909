"""The command line in this process, as the tests of commands call it."""

from typer.testing import CliRunner

from metamixer.cli.app import app


def metamixer(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
