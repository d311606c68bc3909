import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from metamixer.core.json_values import Count, Maybe, Number, plain

number, maybe, count = (TypeAdapter(kind) for kind in (Number, Maybe, Count))
NOT_FINITE = [math.nan, math.inf, -math.inf, 1e100, -1e200]


@pytest.mark.parametrize("value", [0.5, 0.0, -3.25, 2, 1e-300, 9.9e99])
def test_measured_numbers_are_kept(value):
    assert number.validate_python(value) == value
    assert maybe.validate_python(value) == value


@pytest.mark.parametrize("value", [*NOT_FINITE, None])
def test_what_is_not_finite_is_nan_or_none(value):
    assert math.isnan(number.validate_python(value))
    assert maybe.validate_python(value) is None


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}], ids=repr)
def test_other_values_are_no_numbers(value):
    for kind in (number, maybe):
        with pytest.raises(ValidationError):
            kind.validate_python(value)


def test_counts_are_whole_and_not_negative():
    assert [count.validate_python(value) for value in (0, 10**12)] == [0, 10**12]
    for value in (-1, 10**12 + 1, 1.5, math.nan, None):
        with pytest.raises(ValidationError):
            count.validate_python(value)


measured = st.floats(-1e99, 1e99) | st.sampled_from(NOT_FINITE[:3])
nested = st.recursive(
    measured | st.integers() | st.text() | st.booleans() | st.none(),
    lambda each: st.lists(each) | st.tuples(each, each) | st.dictionaries(st.text(), each),
    max_leaves=8,
)


@given(nested)
@settings(max_examples=30)
def test_plain_values_are_json_as_the_standard_has_it(value):
    """Python writes NaN and infinity in a form that other readers do not accept, so this is switched off."""
    made = plain(value)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


@given(st.lists(measured))
def test_numbers_survive_a_file(values):
    read = [number.validate_python(each) for each in json.loads(json.dumps(plain(values)))]
    assert [each if math.isfinite(each) else None for each in values] == plain(read)
