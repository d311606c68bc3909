import pytest

from metamixer.config.recipe import Recipe
from metamixer.runs.budget_warning import bounded_strength, short_budget


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        (["train.epochs=10", "mixer=metamixer"], True),
        (["train.epochs=10"], False),
        (["train.epochs=300"], False),
        (["train.epochs=10", "mixer=none"], False),
        (["train.epochs=10", "mixer=mixup"], True),
        (["train.epochs=10", "mixer=mixup", "mixer.probability=0.4"], False),
        (["train.epochs=10", "mixer.until=0.5"], False),
        (["train.epochs=10", "mixer.until=0.9", "mixer.ramp=0.9"], False),
        (["train.epochs=10", "mixer.strength=0.6"], True),
        (["train.epochs=10", "mixer.strength=0.4"], False),
        (["train.epochs=10", "mixer.strength=auto"], False),
        (["train.epochs=10", "mixer.local_probability=0.3", "mixer.global_probability=0.3"], False),
    ],
)
def test_advice_on_short_budgets(changes, warned):
    advice = short_budget(Recipe.of({}, changes), 5400)
    assert (advice is not None) == warned
    if advice:
        assert "5,400 images is seen 10 times" in advice
        assert "\n" not in advice


def test_what_it_says_of_a_single_epoch_and_that_it_helps():
    advice = short_budget(Recipe.of({}, ["train.epochs=1", "mixer=metamixer"]), 500)
    assert "each of the 500 images is seen once" in advice
    changes = [word for word in advice.replace(",", "").split() if word.startswith("mixer.")]
    assert len(changes) >= 2
    assert short_budget(Recipe.of({}, ["train.epochs=1", *changes]), 500) is None
    assert short_budget(Recipe.of({}, ["train.epochs=100"]), 500) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.epochs=50"], "no mixing in so short a run (mixer.strength=auto, train.strength_epochs=150)"),
        (["train.epochs=80"], "mixing with a strength of at most 0.3 in so short a run"),
        (["train.epochs=80", "train.strength_epochs=320"], "no mixing in so short a run (mixer.strength=auto, train.s"),
        (["train.epochs=100"], "mixing with a strength of at most 0.5 in so short a run"),
        (["train.epochs=150"], None),
        (["train.epochs=1", "train.strength_epochs=1"], None),
        (["train.epochs=50", "mixer=none"], None),
        (["train.epochs=50", "mixer=metamixer"], None),
    ],
)
def test_note_on_the_bound_of_the_strength(changes, said):
    note = bounded_strength(Recipe.of({}, changes))
    assert note is None if said is None else note.startswith(said)
