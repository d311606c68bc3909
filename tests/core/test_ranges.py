"""Settings that do not fit their annotations are refused in one line that names each, from Python and in recipes."""

import inspect
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from metamixer.config.recipe import Recipe
from metamixer.config.registry import LOSSES
from metamixer.config.yaml_file import RecipeError
from metamixer.core.ranges import Count, Positive, Share, Weight, check, check_fields, model_of
from metamixer.losses.base import Loss
from metamixer.mixers import CutMix, CutnMix, ManifoldMixup, MetaMixer, Mixup, SameClassCutMix

WINDOWED = [CutMix, CutnMix, ManifoldMixup, Mixup, SameClassCutMix]


@dataclass(eq=False, repr=False)
class Settings(Loss):
    share: Share = 0.5
    weight: Weight = 1.0
    positive: Positive = 1.0
    count: Count | None = None
    stages: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    kind: Literal["one", "other"] = "one"
    folder: Path | None = None


FAULTS = [
    ({"share": -0.1}, "share=-0.1: input should be greater than or equal to 0"),
    ({"share": 2}, "share=2: input should be less than or equal to 1"),
    ({"share": math.nan}, "share=nan: input should be a finite number"),
    ({"share": "0.5"}, "share='0.5': input should be of type float"),
    ({"share": None}, "share=None: input should be a valid number"),
    ({"weight": -1e-9}, "weight=-1e-09: input should be greater than or equal to 0"),
    ({"weight": math.inf}, "weight=inf: input should be a finite number"),
    ({"positive": 0}, "positive=0: input should be greater than 0"),
    ({"count": 0}, "count=0: input should be greater than or equal to 1"),
    ({"count": 1.5}, "count=1.5: input should be a valid integer, got a number with a fractional part"),
    ({"stages": (1, -1, -2)}, "stages=(1, -1, -2): input should be greater than or equal to 0"),
    ({"kind": "none"}, "kind='none': input should be 'one' or 'other'"),
    (
        {"share": 3, "kind": 1},
        "share=3: input should be less than or equal to 1; kind=1: input should be 'one' or 'other'",
    ),
]


@pytest.mark.parametrize(("settings", "said"), FAULTS, ids=lambda each: str(each)[:30])
def test_faults_are_named_in_one_line(settings, said):
    for refused in (lambda: Settings(**settings), lambda: check(Settings, settings)):
        with pytest.raises(ValueError) as caught:
            refused()
        assert str(caught.value) == said


@pytest.mark.parametrize(
    "settings",
    [
        {"share": 0, "weight": 0.0, "positive": 1e-300, "count": 1, "stages": [0, 3], "kind": "other"},
        {"share": 1.0, "weight": np.float32(0.5), "count": np.int64(2), "folder": Path()},
        {"share": torch.tensor(0.5)},
    ],
    ids=str,
)
def test_what_fits_arrives_as_it_was_given(settings):
    made = Settings(**settings)
    for name, value in settings.items():
        assert getattr(made, name) is value
    given = [getattr(made, name) for name in inspect.signature(Settings).parameters]
    again = Settings(*given)
    assert [getattr(again, name) for name in inspect.signature(Settings).parameters] == given


class Extended(Settings):
    """A subclass with settings of its own, as users write them."""

    def __init__(self, bias: Weight = 2.0):
        super().__init__(share=0.25)
        self.bias = bias


class Renamed(Settings):
    pass


def test_subclasses_of_a_loss_with_settings():
    assert (Extended(3.0).bias, Extended().share) == (3.0, 0.25)
    assert list(model_of(Extended).model_fields) == ["bias"]
    check(Extended, {"bias": 1})
    with pytest.raises(ValueError, match=r"^bias=-1: input should be greater than or equal to 0$"):
        check(Extended, {"bias": -1})
    with pytest.raises(ValueError, match=r"^share=2: input should be less than or equal to 1$"):
        Renamed(share=2)


def test_wrong_names_are_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'shar'"):
        Settings(shar=1)
    with pytest.raises(TypeError, match="multiple values"):
        Settings(0.1, share=1)


def test_a_loss_with_settings_is_a_module():
    made = Settings(weight=2.0)
    made.part = nn.Linear(2, 3)
    copy = pickle.loads(pickle.dumps(made))
    assert len(list(copy.parameters())) == 2
    assert (copy.weight, copy.training, made.eval().training) == (2.0, True, False)
    assert repr(made).startswith("Settings(\n  (part): Linear")
    assert made != Settings(weight=2.0)

    @dataclass
    class Compared(Loss):
        share: Share = 0.5

    with pytest.raises(TypeError, match=r"expected @dataclass\(eq=False, repr=False\)"):
        Compared()


@dataclass(frozen=True)
class Frozen:
    share: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)


def test_dataclasses():
    assert Frozen(1).share == 1
    with pytest.raises(ValueError, match=r"^share=2: input should be less than or equal to 1$"):
        Frozen(2)


@pytest.mark.parametrize("mixer", [*WINDOWED, MetaMixer])
@pytest.mark.parametrize(
    "window", [(-0.1, 0), (1.1, 0), (math.nan, 0), (0.5, 0.6), (0, 0.1), (1, -0.1), (1, math.nan)], ids=str
)
def test_windows_that_make_no_sense(mixer, window):
    with pytest.raises(ValueError, match=r"^until=|^ramp="):
        mixer(until=window[0], ramp=window[1])


@pytest.mark.parametrize("mixer", [*WINDOWED, MetaMixer])
@pytest.mark.parametrize("window", [(0, 0), (1, 1), (0.5, 0.5)])
def test_windows_that_do(mixer, window):
    assert mixer(until=window[0], ramp=window[1]).ramp == window[1]


@pytest.mark.parametrize("mixer", WINDOWED)
@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_probabilities_that_make_no_sense(mixer, probability):
    with pytest.raises(ValueError, match=r"^probability="):
        mixer(probability=probability)


@pytest.mark.parametrize("name", [name for name, cls in LOSSES.items() if inspect.signature(cls).parameters])
def test_every_loss_has_its_ranges_from_python_and_in_a_recipe(name):
    """-1 fits no number of a loss but a peer's, which is one of many."""
    for setting, parameter in inspect.signature(LOSSES[name]).parameters.items():
        if type(parameter.default) in (int, float) and setting not in ("peer", "peers"):
            with pytest.raises(ValueError, match=rf"^{setting}=-1: input should be"):
                LOSSES[name](**{setting: -1})
            with pytest.raises(RecipeError, match=rf"^loss\.{setting}: input should be .*, not -1$"):
                Recipe.of({"loss": {"name": name, setting: -1}})
