"""Whatever a recipe file or a change says: it is a recipe or a RecipeError, soon, and what is written is read again."""

import json
import random
import string
import time
from dataclasses import fields

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from metamixer.config.data_section import DataSection
from metamixer.config.peer_section import PeerSection
from metamixer.config.recipe import Recipe, TrainSection
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.config.yaml_file import RecipeError, as_yaml, parse_yaml, read_yaml
from metamixer.training.optimizer import Optim
from tests.command import metamixer
from tests.faults.test_properties import few

SECONDS = 10.0  # of a processor, for any one answer: usual are milliseconds, this is for what grows without bound
SECTIONS = ["data", "peers", "mixer", "loss", "optim", "train"]
OPTIONS = sorted(
    {
        "name",
        *DataSection.model_fields,
        *PeerSection.model_fields,
        *(each.name for each in fields(TrainSection)),
        *Optim.__dataclass_fields__,
        *("local_alpha", "stages", "temperature", "weight", "lam"),
    }
)
NAMES = [*MIXERS, *LOSSES, "resnet20", "timm:resnet18", "fashion-mini", "hf:x/y", "cifar10"]
ODD = ["\0", "\ud800", "\x85", "\u2028", "1e3", ".5e3", "no", "~", "2001-01-01", "=", "<<", "x:y", "..x:y", ":"]

texts = st.sampled_from([*NAMES, *ODD]) | st.text(max_size=8)
keys = texts.filter(lambda text: text.isprintable() or text.encode(errors="ignore").decode() == text)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 1e-320, 2**63])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(OPTIONS) | keys, inner, max_size=3),
    max_leaves=6,
)
contents = st.dictionaries(
    st.sampled_from(SECTIONS) | texts,
    values
    | st.dictionaries(st.sampled_from(OPTIONS), values, max_size=4)
    | st.lists(texts | st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3), max_size=3),
    max_size=4,
)
places = st.lists(st.sampled_from([*SECTIONS, *OPTIONS, "0", "1", "-1", "99", "", "²"]) | texts, max_size=4).map(
    ".".join
)
words = st.sampled_from(
    [*SECTIONS, *OPTIONS, *NAMES, *ODD, ": ", "\n", "\n  ", "- ", "? ", "{", "}", "[", "]", ",", "'", '"', "|\n",
     ">-\n", "&a ", "*a", "!!int ", "!!bool ", "!!set ", "!!binary ", "!!timestamp ", "!!map ", "!x ", "---\n", "...",
     "%YAML 1.1\n", "#", "\t", "0x_", "0b_", "9" * 5000, "-", ".inf", ".nan", "1:99:99", "\\"]
)  # fmt: skip
yamls = st.lists(words, max_size=24).map("".join) | st.text(max_size=60)
changes = st.tuples(places, st.sampled_from(["=", "=", "=", "", "=="]), yamls | texts).map("".join)


def answer(ask):
    """The recipe, or the RecipeError; anything else that is raised is raised here."""
    began = time.process_time()
    try:
        found = ask()
    except RecipeError as error:
        found = error
    assert time.process_time() - began < SECONDS
    assert not isinstance(found, RecipeError) or str(found).strip()
    return found


@few(200)
@given(yamls)
@example("a: " + "9" * 5000)
@example('"\\ud800": 1')
@example("a: !!bool maybe")
@example("a: !!int ''")
@example("data: {name: !!timestamp x}")
@example("a: 2001-99-99")
@example("!!map [1]")
@example("<<: {data: {seed: 1}}")
def test_any_text_is_values_or_an_error(text):
    answer(lambda: parse_yaml(text))


@few(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | yamls.map(lambda text: text.encode(errors="surrogatepass")))
@example(content=b"data: {name: \x00}")
@example(content="data:\n  name: 'é'\n".encode("latin-1"))
@example(content=b"\xff\xfe" + "data: {}".encode("utf-16-le"))
def test_any_file_is_a_recipe_or_an_error_that_names_it(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    found = answer(lambda: read_yaml(path))
    assert isinstance(found, dict) or str(path) in str(found)
    answer(lambda: Recipe.read(path))


@few(100)
@given(contents, st.lists(changes, max_size=2))
@example({"peers": [{"name": "resnet20", "width": float("nan")}]}, [])
@example({"mixer": "..x:y", "loss": "\0:y"}, [])
def test_any_content_and_changes_are_a_recipe_or_an_error(content, told):
    found = answer(lambda: Recipe.of(content, told))
    assert isinstance(found, Recipe | RecipeError)


@few(100)
@given(changes)
@example("peers.0.name=")
@example("peers.²=x")
@example("peers." + "9" * 5000 + "=x")
@example(".".join(["peers", "0", *["a"] * 400]) + "=1")
@example("data.seed=" + "[" * 2000)
def test_any_change_is_a_recipe_or_an_error(change):
    found = answer(lambda: Recipe.of({}, [change]))
    assert isinstance(found, Recipe | RecipeError)


PATHOLOGICAL = {
    "many keys": lambda i: f"k{i}: 1\n",
    "many equal keys": lambda i: "k: 1\n",
    "a list": lambda i: "- 1\n",
    "lists of lists": lambda i: "- - - - - - - -\n",
    "flow": lambda i: f"k{i}: {{a: [1, 2, {{b: c}}]}}\n",
    "escapes": lambda i: f'k{i}: "\\n\\u0041\\n"\n',
    "anchors": lambda i: f"k{i}: &a{i} x\n",
    "comments": lambda i: "#\n",
    "deeper and deeper": lambda i: f"{' ' * i}k:\n",
    "braces": lambda i: "{" * 60,
    "long numbers": lambda i: f"k{i}: {'9' * 4000}\n",
}


@pytest.mark.parametrize("kind", PATHOLOGICAL)
@pytest.mark.parametrize("size", [49_000, 500_000])
def test_large_files_have_an_answer_soon(tmp_path, kind, size):
    """The largest file that is read takes about a second at most; larger ones are refused unread."""
    lines, length = [], 0
    while length < size:
        lines.append(PATHOLOGICAL[kind](len(lines)))
        length += len(lines[-1])
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(lines)[:size])
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    assert time.process_time() - began < SECONDS
    assert (f"{size} bytes" in str(caught.value)) == (size > 100_000)
    assert len(str(caught.value)) < 50 * size


# What is written is read again


paths = texts.filter(lambda text: "\0" not in text)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain_options = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=6).filter(lambda name: name not in PeerSection.model_fields),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | texts,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)


@st.composite
def recipes(draw):
    """Contents that are recipes, as files hold them."""
    peers = draw(
        st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["resnet20", "wrn-16-2"])}, optional={"weights": texts})
            .flatmap(lambda peer: plain_options.map(lambda options: {**peer, **options})),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    metamixers = st.fixed_dictionaries(
        {"name": st.just("metamixer"), "local_alpha": st.floats(0.01, 1e300)},
        optional={"stages": st.none() | st.lists(st.integers(0, 9), min_size=1)},
    )
    weighted = st.fixed_dictionaries({"name": st.just("dml"), "weight": st.floats(0, 1e300)})
    content = {
        "data": {
            "name": draw(paths),
            "root": draw(paths),
            "val_share": draw(st.floats(0, 0.99)),
            "seed": draw(st.integers()),
        },
        "peers": peers,
        "mixer": draw(st.sampled_from(sorted(MIXERS)) | metamixers),
        "loss": draw(st.sampled_from(sorted(LOSSES)) | weighted),
        "optim": {"lr": draw(st.floats(1e-300, 1e300)), "warmup": draw(st.floats(0, 0.99))},
        "train": {"seed": draw(st.integers(0, 10**30)), "precision": draw(st.sampled_from(["32", 32, "bf16"]))},
    }
    return {key: content[key] for key in draw(st.permutations(SECTIONS))[: draw(st.integers(0, 6))]}


def shuffled(value, draw):
    """The same values with the keys of every mapping in another order."""
    if isinstance(value, dict):
        keys = list(value)
        draw.shuffle(keys)
        return {key: shuffled(value[key], draw) for key in keys}
    return [shuffled(each, draw) for each in value] if isinstance(value, list) else value


@few(25)
@given(recipes())
@example({"data": {"name": "1e3", "root": ".5e3"}})
@example({"data": {"name": "no", "root": "2001-01-01"}})
@example({"peers": [{"name": "resnet20", "b": 1, "a": {"z": 1e22, "y": {}}}]})
def test_a_recipe_is_written_and_read_as_the_same(content):
    recipe = Recipe.of(content)
    again = Recipe.of(parse_yaml(recipe.as_yaml()))
    assert again.as_yaml() == recipe.as_yaml()
    assert again.digest == recipe.digest
    assert recipe.differences(again) == []


@few(25)
@given(recipes(), st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(content, draw):
    assert Recipe.of(shuffled(content, draw)).digest == Recipe.of(content).digest


@few(25)
@given(recipes(), st.data())
def test_recipes_differ_where_their_digests_do(content, data):
    other = {**content, **data.draw(recipes())} if data.draw(st.booleans()) else json.loads(json.dumps(content))
    one, two = Recipe.of(content), Recipe.of(other)
    assert (one.differences(two) == []) == (one.digest == two.digest)
    assert (two.differences(one) == []) == (one.digest == two.digest)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (True, 1), ([], None), ({}, []), ([1], [1, 2]), ("1", 1)],
    ids=str,
)
def test_values_that_are_not_the_same_in_a_file_differ(one, other):
    recipes = [Recipe.of({"peers": [{"name": "resnet20", "option": value}]}) for value in (one, other)]
    (difference,) = recipes[0].differences(recipes[1])[:1]
    assert "peers.0.option" in difference
    assert recipes[0].digest != recipes[1].digest


@few(60)
@given(st.dictionaries(keys, values, max_size=4))
def test_values_are_written_as_text_that_is_read_as_the_same_values(content):
    found = parse_yaml(as_yaml(content))
    assert repr(found) == repr(content)
    assert repr(yaml.safe_load(as_yaml(content))) == repr(content), "any other reader finds the same"


# Through the command line


def faulty(count):
    """Words for the command line that name no recipe, and texts of files, the same in every run."""
    draw = random.Random(0)
    pieces = [*SECTIONS, *OPTIONS, *NAMES, ": ", ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ", ", "'", '"', "&a "]
    pieces += ["*a", "!!int ", "9" * 5000, ".inf", ".nan", "1:99:99", "\0", "\x1b[31m", "é猫", "[/red]"]
    while count:
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 30)))
        place = ".".join(draw.choice([*SECTIONS, *OPTIONS, "0", "x"]) for _ in range(draw.randint(1, 4)))
        change = f"{place}={draw.choice(['[', '{', 'x: y: z', '!!bool x', '[/red]', '1' * 5000, '{a: 1}'])}"
        if isinstance(answer(lambda change=change: Recipe.of({}, [change])), RecipeError):
            yield text, change
            count -= 1


def test_the_command_line_reports_it_in_lines_and_exits_with_2(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, change in faulty(25):
        path.write_text(text, encoding="utf-8")
        for told in ([path, change], [change]):
            result = metamixer("train", *told, "--out", tmp_path / "run", code=2)
            assert "error: " in result.stderr
            assert "Traceback" not in result.output
            assert "\x1b" not in result.output
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('data: {root: "a\\0b"}', "data.root: 'a\\x00b' is the name of no file"),
        ("peers: [{name: resnet8, shortcut: .nan}]", "shortcut=nan: accepted are finite numbers"),
        ("peers: [{name: resnet8, x: [1, {y: -.inf}]}]", "x.1.y=-inf: accepted are finite numbers"),
        ('{"\\ud800": 1}', "is not text"),
        ("<<: {data: {}}", "<<: no such option"),
        ("data: {seed: 2001-01-01}", "data.seed"),
    ],
)
def test_what_would_fail_later_is_reported_at_once(tmp_path, content, said):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.read(tmp_path / "recipe.yaml")
    assert said in str(caught.value)
