"""The runs that the tests of exporting use, for those of its command."""

from tests.export.conftest import by_command, run

__all__ = ["by_command", "run"]
