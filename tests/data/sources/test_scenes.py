"""Scenes: the box is what is seen, nothing but its own split and place decides about a scene."""

from hashlib import sha256

import pytest
import torch
from PIL import Image

from metamixer.data import DataError, TensorImages, load
from metamixer.data.sources.scene_rendering import Canvas, draw
from metamixer.data.sources.scenes import make_scenes
from metamixer.data.splits import assemble
from tests.toys import blobs

LIMIT = 2**30
CLASSES = ("bright", "dim")


def source(count=60, seed=0, **options):
    return assemble(
        "blobs",
        blobs(count, seed),
        None,
        blobs(20, seed + 1),
        val_share=0.2,
        seed=0,
        **options,
    )


def boxes_of(data):
    return dict(data.boxes)


def splits(data):
    for part, boxes in boxes_of(data).items():
        images = getattr(data, part)
        yield part, images, boxes


def test_the_box_is_tight_around_what_is_seen():
    scenes = make_scenes(source(), None, LIMIT)
    for _, images, boxes in splits(scenes):
        for image, label, box in zip(images.images, images.labels, boxes, strict=True):
            if label == 0:
                y, x = (image[0] > 200).nonzero().unbind(1)
                seen = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
                # The rim of an enlarged rectangle fades within a pixel or two.
                assert ((box - seen).abs() <= 2).all(), (box, seen)
                assert (box[:2] <= seen[:2]).all()
                assert (box[2:] >= seen[2:]).all()


def test_a_square_without_ground_is_found_to_the_pixel():
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 7:21, 7:21] = 255
    images[1] //= 3
    scenes, boxes = draw(images, torch.tensor([0, 1]), torch.tensor([0]), Canvas(56, True), "train")
    x0, y0, x1, y1 = boxes[0].int().tolist()
    side = x1 - x0
    assert side == y1 - y0
    assert 17 / 2 <= side <= 33 / 2 + 3
    assert scenes[0, 0, (y0 + y1) // 2, (x0 + x1) // 2] == 255


def test_colour_images_are_pasted_whole_and_the_paste_is_the_box():
    images = torch.randint(100, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:20] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    labels = torch.arange(40) // 20
    both = TensorImages(images, labels, CLASSES)
    scenes = make_scenes(assemble("red", both, both, both, val_share=0, seed=0), None, LIMIT)
    assert scenes.size == (64, 64)
    assert scenes.channels == 3
    _, images_, boxes = next(row for row in splits(scenes) if row[0] == "test")
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides[:, 0] == sides[:, 1]).all()
    assert sides.min() >= 19
    assert sides.max() <= 38
    assert sides.unique().numel() > 5
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    for image, box in zip(images_.images[:20], boxes[:20], strict=True):
        x0, y0, x1, y1 = box.int().tolist()
        inside = image[:, y0:y1, x0:x1]
        assert (inside[0] == 255).all()
        assert (inside[1:] == 0).all()
        red = (image[0] == 255) & (image[1] == 0)
        assert int(red.sum()) == (x1 - x0) * (y1 - y0)


def test_labels_and_classes_are_those_of_the_source():
    plain, scenes = load("fashion-mini", train_limit=3), load("scenes:fashion-mini", train_limit=3)
    assert scenes.name == "scenes:fashion-mini"
    assert scenes.size == (56, 56)
    assert scenes.classes == plain.classes
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(plain, part).labels, getattr(scenes, part).labels)
        assert boxes_of(scenes)[part].shape == (len(getattr(plain, part)), 4)
        assert boxes_of(scenes)[part].dtype == torch.float32
    assert not torch.allclose(torch.tensor(plain.mean), torch.tensor(scenes.mean))


def test_the_bits_do_not_depend_on_the_machine():
    scenes = load("scenes:fashion-mini", train_limit=1)
    assert sha256(scenes.test.images.numpy().tobytes()).hexdigest()[:16] == "bcec9553db8baa89"
    assert boxes_of(scenes)["test"].sum(0).tolist() == [17982, 17388, 38328, 39095]


def test_test_scenes_depend_on_nothing_but_the_test_images():
    one = load("scenes:fashion-mini", train_limit=2)
    two = load("scenes:fashion-mini", train_limit=5, seed=3, val_share=0.02)
    assert torch.equal(one.test.images, two.test.images)
    assert torch.equal(boxes_of(one)["test"], boxes_of(two)["test"])


def test_every_split_is_made_of_its_own_images():
    """Marked by brightness: training images 240, validation 200, test 160; the background is below."""
    parts = []
    for level in (240, 200, 160):
        images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
        images[:, :, 4:24, 4:24] = level
        parts.append(TensorImages(images, torch.arange(20) % 2, CLASSES))
    scenes = make_scenes(assemble("marked", *parts, val_share=0, seed=0), None, LIMIT)
    for (_, images, _), level in zip(splits(scenes), (240, 200, 160), strict=True):
        assert (images.images.amax((1, 2, 3)) == level).all()


def test_distractors_are_of_other_classes():
    """In scenes of the dim class something bright is seen outside of the box, in those of the bright class never."""
    scenes = make_scenes(source(), None, LIMIT)
    for _, images, boxes in splits(scenes):
        outside = torch.ones(len(images), 56, 56, dtype=torch.bool)
        for row, box in enumerate(boxes.int().tolist()):
            outside[row, box[1] : box[3], box[0] : box[2]] = False
        bright = ((images.images[:, 0] > 200) & outside).flatten(1).any(1)
        assert bright[images.labels == 1].all()
        assert not bright[images.labels == 0].any()


def test_objects_are_everywhere_and_of_many_sizes():
    boxes = boxes_of(load("scenes:fashion-mini", train_limit=1))["test"]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centres.amin(0) < 14).all()
    assert (centres.amax(0) > 42).all()
    assert ((centres.mean(0) - 28).abs() < 1.5).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 56
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_folder_is_brought_to_half_of_the_scene(tmp_path):
    for part in ("train", "test"):
        for name in CLASSES:
            for number in range(4):
                file = tmp_path / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), (200, 10 * number, 0)).save(file)
    scenes = load(f"scenes:{tmp_path}", image_size=48, val_share=0.25)
    assert scenes.size == (48, 48)
    assert set(boxes_of(scenes)) == {"train", "val", "test"}
    assert max(boxes_of(scenes)["test"][:, 2] - boxes_of(scenes)["test"][:, 0]) <= 1.2 * 24
    with pytest.raises(DataError, match=r"30x40.*squares"):
        load(f"scenes:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scenes:fashion-minni", {}, "did you mean 'fashion-mini'"),
        ("scenes:", {}, "scenes:fashion-mini'"),
        ("scenes:scenes:fashion-mini", {}, "scenes:fashion-mini', works"),
        ("scenes:fashion-mini", {"image_size": 32}, "expected 33 or more"),
        ("scenes:fashion-mini", {"image_size": (40, 56)}, "expected squares"),
        ("scenes:fashion-mini", {"cache_limit_bytes": 2**20}, r"GiB.*image_size"),
    ],
)
def test_errors_say_what_is_accepted(name, options, message):
    with pytest.raises(DataError, match=message):
        load(name, **options)
