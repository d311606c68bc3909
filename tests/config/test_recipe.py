"""Recipes: what is written is what is read, and every error is reported with its place."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metamixer import DML, ManifoldMixup, MetaMixer, NoMix
from metamixer.config import recipe as recipe_module
from metamixer.config.recipe import Part, Recipe
from metamixer.config.registry import LOSSES, MIXERS, make
from metamixer.config.yaml_file import RecipeError, is_by_hand, parse_yaml, read_yaml


def test_the_defaults_are_a_recipe():
    recipe = Recipe.of({})
    assert recipe.build_mixer() == MetaMixer(strength="auto")
    assert Recipe.of({"mixer": "metamixer"}).build_mixer() == MetaMixer()
    assert Recipe.of({"data": {"val_share": 0}}).build_mixer() == MetaMixer()  # nothing to follow
    assert Recipe().build_mixer() == recipe.build_mixer()
    assert Recipe.of({}, ["mixer=metamixer", "mixer.local_alpha=0.3"]).build_mixer() == MetaMixer(local_alpha=0.3)
    assert Recipe.of({}, ["mixer.name=manifold-mixup"]).build_mixer() == ManifoldMixup()
    assert Recipe.of({}, ["mixer.name=none"]).build_mixer() == NoMix()
    assert isinstance(recipe.build_loss(), DML)
    assert recipe.names == ("0 resnet20", "1 resnet20")


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_full_recipe_reads_back_as_itself(tmp_path, mixer, loss):
    recipe = Recipe.of({"mixer": mixer, "loss": loss, "data": {"name": "x: [y] #z"}}, ["optim.lr=1e-3"])
    (tmp_path / "recipe.yaml").write_text(recipe.as_yaml())
    again = Recipe.read(tmp_path / "recipe.yaml")
    assert again.as_dict() == recipe.as_dict()
    assert again.digest == recipe.digest
    assert type(again.build_mixer()) is MIXERS[mixer]
    assert type(again.build_loss()) is LOSSES[loss]


def test_changes_reach_every_depth():
    recipe = Recipe.of(
        {"peers": ["resnet8", {"name": "resnet14", "shortcut": "A"}], "mixer": "none"},
        ["peers.0.frozen=true", "peers.1.name=wrn_16_1", "mixer.name=metamixer", "mixer.stages=[0, 2]",
         "mixer.local_alpha=0.5", "data.name=no", "loss=independent", "train.epochs=7"],
    )  # fmt: skip
    assert recipe.peers[0].frozen
    assert recipe.peers[1].name == "wrn_16_1"
    assert recipe.peers[1].options == {"shortcut": "A"}
    assert recipe.build_mixer() == MetaMixer(stages=(0, 2), local_alpha=0.5)
    assert recipe.data.name == "no"
    assert recipe.loss.name == "independent"
    assert recipe.train.epochs == 7


def test_a_change_to_a_section_that_is_not_written_keeps_its_defaults():
    recipe = Recipe.of({}, ["mixer.local_alpha=0.3", "loss.temperature=4", "peers.1.name=resnet8"])
    assert recipe.build_mixer() == MetaMixer(local_alpha=0.3, strength="auto")
    assert recipe.build_loss().temperature == 4
    assert [peer.name for peer in recipe.peers] == ["resnet20", "resnet8"]


def test_all_faults_are_reported_at_once_with_their_places():
    with pytest.raises(RecipeError) as caught:
        Recipe.of(
            {
                "optim": {"lrr": 1},
                "trian": {},
                "mixer": {"name": "metamixer", "local_alph": 2},
                "loss": "dmll",
                "peers": [{"name": 3}],
                "train": {"epochs": 0, "precision": "fp8"},
            }
        )
    lines = str(caught.value).splitlines()
    for wanted in (
        "optim.lrr: no such option; did you mean 'lr'?",
        "trian: no such option; did you mean 'train'?",
        "mixer.local_alph: no such option; did you mean 'local_alpha'?",
        "loss: 'dmll' is not a loss; dml or 'package.module:Name'",
    ):
        assert wanted in lines
    assert any(line.startswith("peers.0.name: ") for line in lines)
    assert any(line.startswith("train.epochs: ") and line.endswith("not 0") for line in lines)
    assert any(line.startswith("train.precision: ") for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optim.lr", "is not an override; expected key=value, such as optim.lr=0.05"),
        ("=3", "is not an override"),
        ("peers.5.name=x", "peers is a list of 2, numbered from 0"),
        ("peers.one.name=x", "peers is a list of 2, numbered from 0"),
        ("optim=3", "optim"),
        ("optim.lr.x=2", "optim.lr"),
        ("optim.lr=0", "optim.lr: input should be greater than 0, or 'auto', not 0"),
        ("train.batch_size=x", "train.batch_size: input should be a valid integer, .*, or 'auto', not 'x'"),
        ("peers.0.classes=3", "peers.0.classes: input should be 'natural' or 'sorted', or a valid list, not 3"),
        ("mixer.global_probability=2", "mixer.global_probability: input should be less than or equal to 1, not 2"),
        ("mixer.local_alpha=.nan", "finite"),
        ("data.val_share=1", "less than 1"),
        ("peers=[]", "peers: "),
        ("loss.name=os:system", "not a torch module"),
        ("mixer.name=os:path", "not a frozen dataclass"),
        ("mixer.name=no.such:Thing", "cannot be imported"),
        ("mixer.stages=x", "mixer.stages"),
        ("optim.lr={", "not YAML"),
    ],
)
def test_wrong_changes(change, said):
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        Recipe.of({}, [change], allow_imports=True)


def test_a_file_by_hand_is_distinguished_from_one_that_was_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    assert not is_by_hand(path)
    path.write_text(Recipe.of({"data": {"name": "x: [y] #z"}}).as_yaml())
    assert not is_by_hand(path)
    for text in ("# mine\n" + path.read_text(), "data: {name: x}\n", "a: [\n", "a: 1\na: 2\n"):
        path.write_text(text)
        assert is_by_hand(path), text
    path.write_bytes(b"\xff")
    assert is_by_hand(path)


def test_a_plug_in_is_an_import_path():
    content = {"mixer": "metamixer.mixers.no_mix:NoMix", "loss": {"name": "metamixer.losses:DML", "weight": 2}}
    recipe = Recipe.of(content, allow_imports=True)
    assert recipe.build_mixer() == NoMix()
    assert recipe.build_loss().weight == 2
    assert Recipe.of(yaml.safe_load(recipe.as_yaml())).digest == recipe.digest


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("no", "no"), ("on", "on"), ("true", True), ("3", 3), ("null", None),
     ("0.1", 0.1), ("1.", 1.0), ("[1e-1, a]", [0.1, "a"]), ("+2", 2), ("1_0", 10), (".inf", float("inf"))],
)  # fmt: skip
def test_yaml_without_surprises(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "a is set twice"),
        ("x: {b: 1, b: 2}", "b is set twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: [", "not YAML"),
        ("- 1", "a recipe is a mapping"),
        ("[" * 5000, "not YAML|nested"),
    ],
)
def test_files_that_are_refused(tmp_path, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        read_yaml(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"missing\.yaml cannot be read"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "big.yaml").write_text("#" * 1_000_001)
    with pytest.raises(RecipeError, match="1000001 bytes"):
        read_yaml(tmp_path / "big.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml"):
        read_yaml(tmp_path / "binary.yaml")


KEYS = st.sampled_from(["data", "peers", "mixer", "name", "optim", "lr", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_comes_is_a_recipe_or_a_recipe_error(content):
    with contextlib.suppress(RecipeError):
        Recipe.of(content)


def test_who_computes_is_no_difference():
    """A run may go on with other processes."""
    one, other = Recipe.of({}), Recipe.of({}, ["train.devices=4", "train.peer_groups=2", "train.timeout=1"])
    assert one.digest == other.digest
    assert not one.differences(other)
    assert other.as_dict()["train"]["devices"] == 4  # and is written down all the same
    assert Recipe.of({}, ["train.micro_batches=2"]).digest != one.digest


@pytest.mark.parametrize(
    ("train", "digest"),
    [
        ({}, "76a97e994268ada0"),
        ({"graphs": False, "compile": False}, "76a97e994268ada0"),
        ({"graphs": False, "compile": True}, "0f9afbae47345189"),
        ({"compile": "default"}, "0f9afbae47345189"),
    ],
)
def test_runs_of_the_versions_before_are_still_the_same_runs(train, digest):
    """The checksums are those of the version that wrote ``graphs`` and knew no modes of ``compile``, with its alpha."""
    recipe = Recipe.of({"mixer": {"name": "metamixer", "global_alpha": 1}, "train": train})
    assert recipe.digest == digest
    assert "graphs" not in recipe.as_dict()["train"]
    assert recipe.train.compile == ("default" if train.get("compile") else False)


def test_each_mode_of_compile_is_another_run():
    recipes = [Recipe.of({}, [f"train.compile={mode}"]) for mode in ("false", "default", "reduce-overhead")]
    assert len({recipe.digest for recipe in recipes}) == 3
    assert recipes[2].differences(recipes[0]) == ["train.compile: False, here reduce-overhead"]


@pytest.mark.parametrize("change", ["graphs=true", "graphs=1", "parallel=streams"])
def test_what_was_removed_names_what_replaces_it(change):
    with pytest.raises(
        RecipeError, match=r"^train: .* was removed; compile=reduce-overhead lets torch record CUDA graphs"
    ):
        Recipe.of({}, [f"train.{change}"])


def test_differences_name_the_keys():
    one, other = Recipe.of({}), Recipe.of({}, ["optim.lr=0.07", "mixer=none"])
    found = one.differences(other)
    assert "optim.lr: 0.07, here 0.05" in found
    assert "mixer.local_alpha: not set, here 1.0" in found
    assert one.differences(one) == []


def test_peers_start_differently_and_reproducibly():
    recipe = Recipe.of({"peers": ["resnet8", "resnet8"]})
    first, again = (recipe.build_cohort(10, 1, (28, 28)) for _ in range(2))
    weights = [peer.stem[0].weight if hasattr(peer, "stem") else next(peer.parameters()) for peer in first.peers]
    assert not weights[0].equal(weights[1])
    for name, value in first.state_dict().items():
        assert value.equal(again.state_dict()[name])


def test_networks_that_cannot_be_built_are_reported_together():
    recipe = Recipe.of({"peers": ["resnet21", {"name": "resnet8", "widht": 3}, {"name": "resnet8", "weights": "x.pt"}]})
    with pytest.raises(RecipeError) as caught:
        recipe.build_cohort(10, 3, (32, 32))
    lines = str(caught.value).splitlines()
    assert "peers.0 (resnet21): 'resnet21' is not a network" in lines[0]
    assert "peers.1 (resnet8)" in lines[1]
    assert "widht" in lines[1]
    assert "only .safetensors files are read" in lines[2]


def test_stages_that_do_not_exist():
    recipe = Recipe.of({"peers": [{"name": "resnet8", "stages": ["stage9"]}]})
    with pytest.raises(RecipeError, match="'stage9' is not a module"):
        recipe.build_cohort(10, 3, (32, 32))


def test_the_recipes_that_ship_are_valid():
    from pathlib import Path

    shipped = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert shipped
    for path in shipped:
        Recipe.read(path)


def test_a_peer_of_another_process_takes_the_place_of_shadows(tmp_path):
    """With ``exchange`` a process has its own peer and, frozen, the other's: no shadows, and no names for them."""
    peers = ["resnet8", {"name": "resnet14", "frozen": True}]
    recipe = Recipe.of({"peers": peers, "loss": {"name": "codistillation", "exchange": str(tmp_path)}})
    assert recipe.names == ("0 resnet8", "1 resnet14")
    cohort = recipe.build_cohort(10, 1, (28, 28))
    assert (len(cohort.peers), cohort.shadows, cohort.frozen) == (2, 0, frozenset({1}))
    assert Recipe.of({"loss": "codistillation"}).names[2:] == ("0 resnet20 earlier", "1 resnet20 earlier")


def test_a_loss_is_asked_what_it_needs_without_being_built_again(monkeypatch):
    recipe = Recipe.of({"loss": "pcl"})
    built = []
    monkeypatch.setattr(recipe_module, "make", lambda *words: built.append(words) or make(*words))
    assert recipe.loss.as_loss.needs == ("features", "shadows", "views")
    assert len(recipe.names) == 4
    assert len(recipe.names) == 4
    assert len(built) == 1
    other = recipe.model_copy(update={"loss": Part(name="dml")})
    assert len(other.names) == 2
    assert recipe == Recipe.of({"loss": "pcl"})
    assert recipe.build_loss() is not recipe.build_loss()
