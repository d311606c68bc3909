"""Errors that occur when data are read."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: the message names the file or folder, the cause and what is accepted."""


class ImageError(DataError):
    """An image file that cannot be used.

    Args:
        message: the file and the cause.
        code: the cause as a word for tables: ``missing``, ``folder``, ``special``, ``unreadable``, ``empty``,
            ``not-an-image``, ``too-large``, ``unsupported`` or ``broken``.
    """

    def __init__(self, message: str, code: str = "broken") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (str(self), self.code)


class WorkerError(RuntimeError):
    """A worker process that decodes images failed. The images are not the cause, so a retry may succeed."""


class ShardError(WorkerError):
    """A shard could not be read, a remote one after several attempts. A retry may succeed."""
