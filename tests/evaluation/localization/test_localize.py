"""The whole measurement on networks that see well, and on those that do not; and on a run."""

import json

import pytest
import torch
from torch import nn

from metamixer.data import statistics
from metamixer.evaluation.localization.activation_maps import NoMap
from metamixer.evaluation.localization.localize import localize
from metamixer.evaluation.localization.map_gallery import gallery
from tests.toys import squares


class Sees(nn.Module):
    """The logit of a class is the mean of the image in a channel: where it is bright speaks for the class."""

    stage_paths = ("features",)

    def __init__(self, sign=1.0):
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.features.weight.data = torch.tensor([sign, 2 * sign]).view(2, 1, 1, 1)

    def forward(self, images):
        return self.features(images).mean((2, 3))


@pytest.fixture(scope="module")
def found():
    images, boxes = squares(40, 0)
    mean, std = statistics(images.images)
    told = []
    result = localize(
        [Sees(), Sees(-1.0), Sees(3.0)],
        images,
        boxes,
        held_out=squares(30, 1),
        mean=mean,
        std=std,
        names=("well", "around", "well too"),
        batch_size=16,
        progress=lambda done, total: told.append((done, total)),
    )
    return result, told


def test_a_network_that_sees_the_object_finds_it(found):
    result, told = found
    well, around, too = result.networks
    assert well.max_box_acc == {"0.3": 1.0, "0.5": 1.0, "0.7": 1.0}
    assert (well.max_box_acc_v2, well.pointing, well.energy) == pytest.approx((1, 1, 1))
    assert (around.pointing, around.energy) == (0, pytest.approx(0, abs=1e-6))
    # The object is a hole of its map, and the official code draws boxes around holes too, a pixel wider on each side.
    assert around.max_box_acc["0.3"] > 0.5
    assert around.max_box_acc["0.7"] == 0
    assert too.as_dict() == {**well.as_dict(), "name": "well too"}
    assert 0 < result.centre_box.max_box_acc_v2 < 0.7
    assert told == [(16, 70), (30, 70), (46, 70), (62, 70), (70, 70)]


def test_maps_that_agree_and_that_do_not(found):
    agreement = torch.tensor(found[0].map_agreement)
    torch.testing.assert_close(agreement, torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]), atol=1e-4, rtol=0)


def test_it_is_plain_json(found):
    values = json.loads(json.dumps(found[0].as_dict()))
    assert values["method"] == "grad-cam"
    assert values["images"] == 40
    assert [set(one) for one in values["networks"]] == [
        {"name", "max_box_acc_v2", "max_box_acc", "thresholds", "pointing", "energy"}
    ] * 3
    assert set(values["centre_box"]) >= {"max_box_acc_v2", "max_box_acc", "pointing", "energy"}


def test_the_batch_size_does_not_matter(found):
    images, boxes = squares(40, 0)
    mean, std = statistics(images.images)
    again = localize([Sees(), Sees(-1.0), Sees(3.0)], images, boxes, held_out=squares(30, 1), mean=mean, std=std,
                     names=("well", "around", "well too"), batch_size=7)  # fmt: skip
    assert [one.as_dict() for one in again.networks] == [one.as_dict() for one in found[0].networks]


def test_thresholds_do_not_look_at_the_test_boxes(found):
    images, boxes = squares(40, 0)
    mean, std = statistics(images.images)
    wrong = localize([Sees()], images, boxes.flip(0), held_out=squares(30, 1), mean=mean, std=std)
    assert wrong.networks[0].thresholds == found[0].networks[0].thresholds
    assert wrong.networks[0].max_box_acc_v2 < 0.7


def test_every_image_needs_a_box():
    images, boxes = squares(4, 0)
    for own in (boxes[:3], [*boxes[:3], torch.zeros(0, 4)]):
        with pytest.raises(ValueError, match="at least one box for each"):
            localize([Sees()], images, own, held_out=(images, boxes), mean=[0.5], std=[0.5])


class Flat(nn.Module):
    """A network whose only stage has no extent."""

    stage_paths = ("hidden",)

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(24 * 24, 4), nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.hidden(images.flatten(1)))


def test_a_network_without_a_map_does_not_stop_the_others(found):
    images, boxes = squares(40, 0)
    mean, std = statistics(images.images)
    settings = {"held_out": squares(30, 1), "mean": mean, "std": std}
    mixed = localize([Flat(), Sees()], images, boxes, names=("flat", "well"), **settings)
    assert [one.as_dict() for one in mixed.networks] == [found[0].networks[0].as_dict()]
    assert (mixed.stages, mixed.map_agreement) == (("features",), ((pytest.approx(1),),))
    assert mixed.notes[0].startswith("flat was not measured: Flat has no stage that returns a map")
    with pytest.raises(NoMap, match="Flat has no stage"):
        localize([Flat()], images, boxes, **settings)
    shown = gallery([Flat(), Sees()], images.images[:2], images.labels[:2], ("a", "b"), mean=mean, std=std)
    assert [(one.map is None, one.box is None) for one in shown[0].networks] == [(True, True), (False, False)]
    assert shown[0].networks[0].confidence >= 0.5
    with pytest.raises(NoMap, match="Flat has no stage"):
        gallery([Flat()], images.images[:2], images.labels[:2], ("a", "b"), mean=mean, std=std)


def test_a_gallery_shows_what_each_network_sees():
    images, boxes = squares(4, 0)
    mean, std = statistics(images.images)
    shown = gallery([Sees(), Sees(-1.0)], images.images, images.labels, ("a", "b"), mean=mean, std=std, boxes=boxes,
                    names=("well", "around"), thresholds=[0.5, 0.5])  # fmt: skip
    for row, one in enumerate(shown):
        assert torch.equal(one.image, images.images[row])
        assert one.label == "ab"[row % 2]
        assert one.truth.tolist() == [boxes[row].tolist()]
        well, around = one.networks
        assert (well.name, around.name) == ("well", "around")
        assert well.box.tolist() == boxes[row].tolist()
        logits = Sees()((images.images[row : row + 1] / 255 - mean[0]) / std[0])[0]
        assert well.predicted == "ab"[int(logits.argmax())]
        assert well.confidence == pytest.approx(float(logits.softmax(0).max().detach()), rel=1e-4)
        assert around.map.shape == (24, 24)
        assert around.box is None or around.box.tolist() != boxes[row].tolist()
