"""Reports are read back as they were written, by this version and by those before."""

import json
import math

import pytest
from pydantic import ValidationError

from metamixer.core.json_values import plain
from metamixer.evaluation.localization.localize import Localization, Located
from metamixer.evaluation.report import read_report
from metamixer.evaluation.robustness.robustness import Corrupted, Robustness, UnderAttack
from tests.evaluation.test_assess import Table, assess, batches, cohort, evaluate
from tests.report.made import evaluation


def again(report):
    return read_report(json.loads(json.dumps(report.as_dict())))


def test_what_is_written_is_read_back():
    robustness = Robustness(
        images=9,
        clean={"a": 0.5},
        corruptions=Corrupted("files", {"fog": {"a": (0.5, 0.4, 0.3, 0.2, 0.1)}}, {"a": 0.3}),
        attacks={"fgsm": UnderAttack(8 / 255, {"a": 0.25})},
    )
    located = Located("a", {"0.3": 0.5, "0.7": 0.25}, {"0.3": 0.1, "0.7": 0.2}, 0.75, 0.5)
    localization = Localization(7, 3, (located,), located, ((1.0, None), (None, 1.0)), ("stage3",), ("a note",))
    full = assess(
        cohort(frozen=[2]), batches([40]), validation=batches([40], seed=2), classes=list("uvwxyz"), split="val",
        checkpoint="best", deployed=Table(2, 3), robustness=robustness, localization=localization,
    )  # fmt: skip
    assert [one.kind for one in full.networks] == ["peer", "peer", "frozen", "ensemble", "deployed"]
    assert again(full) == full
    quick = evaluate(cohort(frozen=[2]), batches([40]))
    read = again(quick)
    assert [(one.name, one.accuracy, one.nll) for one in read.rows] == [
        (one.name, one.accuracy, one.nll) for one in quick.rows
    ]
    assert (read.agreement, read.images, read.diversity) == (quick.agreement, 40, None)


def test_files_of_earlier_versions_are_read():
    """``evaluation.json`` as it was written by hand when its shape was set."""
    old = evaluation(list("abc"))
    found = read_report(old)
    assert [one.name for one in found.networks] == [one["name"] for one in old["networks"]]
    assert [one.ece for one in found.networks] == [one["ece"] for one in old["networks"]]
    assert found.main.kind == "deployed"
    assert found.agreement == old["peers"]["agreement"]
    assert found.diversity.pairwise_kl == tuple(map(tuple, old["peers"]["pairwise_kl"]))
    assert found.robustness.corruptions.mean == old["robustness"]["corruptions"]["mean"]
    assert [one.max_box_acc_v2 for one in found.localization.networks] == [
        one["max_box_acc_v2"] for one in old["localization"]["networks"]
    ]
    old["networks"] = old["networks"][:1]
    del old["peers"], old["robustness"]
    found = read_report(old)
    assert (len(found.peers), found.main.name, found.robustness, found.diversity) == (1, "ensemble", None, None)
    assert math.isnan(found.main.accuracy)


@pytest.mark.parametrize(
    "found",
    [3, [], {"peers": 3}, {"networks": 3}, {"networks": [3]}, {"networks": [{"kind": "ensemble", "name": 3}]},
     {"networks": [], "images": -1}, {"peers": [{"name": "a", "nll": "1"}]}, {"networks": [], "peers": 3}],
    ids=str,
)  # fmt: skip
def test_what_has_another_shape_is_refused(found):
    with pytest.raises(ValidationError):
        read_report(found)


def test_what_is_not_finite_is_null_in_files():
    diverged = assess(cohort(), batches([9]), deployed=Table(0, math.nan))
    assert diverged.as_dict()["networks"][-1]["nll"] is None
    assert math.isnan(again(diverged).deployed.nll)
    assert plain({"a": [math.inf, (1, math.nan)]}) == {"a": [None, [1, None]]}
