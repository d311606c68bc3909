import pytest

from metamixer.data.files.split_names import ALIASES, split_alike, split_named


@pytest.mark.parametrize(("split", "alias"), [(split, alias) for split, names in ALIASES.items() for alias in names])
def test_aliases_in_every_case_and_with_what_people_add(split, alias):
    for name in (
        alias,
        alias.upper(),
        alias.title(),
        f"{alias}_set",
        f"{alias}-images",
        f"{alias} data",
        f"{alias}imgs",
    ):
        assert split_named(name) == split_alike(name) == split


@pytest.mark.parametrize("name", ["trainer", "valley", "tests", "contest", "device", "my_train", "", "cat"])
def test_classes_that_only_begin_like_a_split(name):
    assert split_named(name) is None
    assert split_alike(name) is None


@pytest.mark.parametrize(
    ("name", "split"), [("train2017", "train"), ("test-A", "test"), ("Val_1", "val"), ("dev.old", "val")]
)
def test_names_that_resemble_a_split(name, split):
    assert split_named(name) is None
    assert split_alike(name) == split
