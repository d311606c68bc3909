"""Measured numbers in JSON: NaN and infinity are written as null."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_LARGEST = 1e100  # no measurement is larger, and sums of larger numbers overflow


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) < _LARGEST else None


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[
    float, BeforeValidator(_or_nan), Field(strict=True), AfterValidator(_finite), AfterValidator(_or_nan)
]
"""A measured number; NaN if the file has null or a number that is not finite."""

Maybe = Annotated[float | None, Field(strict=True), AfterValidator(_finite)]
"""An optional measured number; None if it was not measured or is not finite."""

Count = Annotated[int, Field(ge=0, le=10**12)]
"""A number of items."""


def plain(value: Any) -> Any:
    """A copy of nested dictionaries, lists, numbers and text, with None for NaN and infinity.

    >>> plain({"shares": (0.5, float("nan"))})
    {'shares': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
