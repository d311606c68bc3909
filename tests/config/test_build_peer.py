"""Fine-tuning and teachers: what is taken from files, and a teacher that names our classes in our order."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from timm.utils import natural_key

from metamixer.config.build_peer import Task, build_peer, natural
from metamixer.config.peer_section import PeerSection
from metamixer.models import build
from metamixer.runs.classifier import Classifier

NAMES = ("cat", "dog", "eel")
TASK = Task(3, 3, (16, 16), NAMES, ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))


def saved(path, classes=NAMES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), size=(16, 16), seed=3, name="resnet8"):
    """A network with what a deployed one says of itself."""
    torch.manual_seed(seed)
    network = build(name, num_classes=len(classes))
    Classifier(network, name, {}, classes, 3, size, mean, std, {}).save(path)
    return network.eval()


def images(seed=0):
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def normalised(pixels, scale):
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in scale)
    return (pixels - mean) / std


def peer(path, **settings):
    return PeerSection(name="resnet8", weights=str(path), **settings)


def test_the_head_of_other_classes_is_new_and_said_so(tmp_path):
    path = tmp_path / "x.safetensors"
    before = saved(path, ("a", "b"))
    network, notes = build_peer(peer(path), TASK)
    count = len(network.state_dict())
    assert notes == [
        f"{count - 2} of {count} tensors are those of x.safetensors, whose classes were a, b; new is the head: "
        "classifier.weight, classifier.bias"
    ]
    assert torch.equal(network.stage1[0].conv1.weight, before.stage1[0].conv1.weight)
    same, notes = build_peer(peer(path), replace(TASK, num_classes=2, classes=("a", "b")))
    assert notes == [f"all {count} tensors are those of x.safetensors"]
    assert torch.equal(same.classifier.weight, before.classifier.weight)


def test_the_head_of_as_many_other_classes_is_new_and_of_the_same_ones_in_another_order_is_sorted(tmp_path):
    path = tmp_path / "x.safetensors"
    saved(path, ("cat", "dog", "fox"))
    assert "new is the head" in build_peer(peer(path), TASK)[1][0]
    before = saved(path, ("eel", "cat", "dog"))
    network, notes = build_peer(peer(path), TASK)
    assert notes[0].startswith("all ")
    torch.testing.assert_close(network.eval()(images()), before(images())[:, [1, 2, 0]])


def test_weights_without_names_are_taken_as_they_are(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.manual_seed(0)
    before = build("resnet8", num_classes=3)
    save_file(before.state_dict(), path)
    network, _ = build_peer(peer(path), TASK)
    assert torch.equal(network.classifier.weight, before.classifier.weight)


def test_nothing_is_read_where_a_checkpoint_follows(tmp_path):
    network, notes = build_peer(peer(tmp_path / "gone.safetensors"), TASK, fetch=False)
    assert notes == []
    assert network(images()).shape == (4, 3)


OWN = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def test_a_teacher_gets_images_in_its_own_normalisation_and_names_our_classes(tmp_path):
    path = tmp_path / "x.safetensors"
    teacher = saved(path, ("eel", "fox", "cat", "dog"), *OWN, size=(32, 32))
    network, notes = build_peer(peer(path, frozen=True), TASK)
    pixels = images()
    found = network.eval()(normalised(pixels, TASK.scale))
    torch.testing.assert_close(found, teacher(normalised(pixels, OWN))[:, [2, 3, 0]], rtol=1e-4, atol=1e-4)
    assert len(notes) == 3
    assert "4 outputs are put into the order of the 3 classes by name" in notes[0]
    assert "its own normalisation: mean 0.100, 0.200, 0.300, deviation 0.500, 0.600, 0.700" in notes[1]
    assert "trained on images of 32x32, these are of 16x16" in notes[2]
    assert set(network.state_dict()) == set(teacher.state_dict()), "checkpoints of before fit"


def test_a_teacher_of_the_same_data_is_left_as_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    teacher = saved(path)
    network, notes = build_peer(peer(path, frozen=True), TASK)
    assert notes == []
    assert torch.equal(network.eval()(images()), teacher(images()))


def test_a_teacher_of_other_classes_is_refused_with_both_lists(tmp_path):
    path = tmp_path / "x.safetensors"
    saved(path, ("cat", "dog", "fox"))
    with pytest.raises(ValueError, match=r"its classes are cat, dog, fox; the data have cat, dog, eel: the names do n"):
        build_peer(peer(path, frozen=True), TASK)
    network, _ = build_peer(peer(path, frozen=True, classes=["eel", "cat", "dog"]), TASK)
    plain, _ = build_peer(peer(path, frozen=True), replace(TASK, classes=None))
    torch.testing.assert_close(network.eval()(images()), plain.eval()(images())[:, [1, 2, 0]])


def test_names_in_another_unicode_form_are_the_same(tmp_path):
    path = tmp_path / "x.safetensors"
    saved(path, ("cafe\u0301", "dog", "eel"))
    assert build_peer(peer(path, frozen=True), replace(TASK, classes=("caf\u00e9", "dog", "eel")))[1] == []


NUMBERS = tuple(sorted(map(str, range(1, 13))))


def test_folders_of_numbers_have_two_orders(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.manual_seed(0)
    teacher = build("resnet8", num_classes=12).eval()
    save_file(teacher.state_dict(), path)
    task = replace(TASK, num_classes=12, classes=NUMBERS)
    with pytest.raises(
        ValueError, match=r"two orders: 1, 10, 11, 12 and 8 more, or 1, 2, 3, 4 .*timm.*classes=natural"
    ):
        build_peer(peer(path, frozen=True), task)
    found = {kind: build_peer(peer(path, frozen=True, classes=kind), task)[0].eval() for kind in ("natural", "sorted")}
    assert torch.equal(found["sorted"](images()), teacher(images()))
    rows = [int(name) - 1 for name in NUMBERS]  # timm's output k is the folder k + 1
    torch.testing.assert_close(found["natural"](images()), teacher(images())[:, rows])
    assert build_peer(peer(path), task)[1][0].startswith("all ")  # what learns learns its order


def test_the_natural_order_is_that_of_timm():
    names = ["10", "9", "a10", "a9", "B1", "b02", "x", ""]
    assert sorted(names, key=natural) == sorted(names, key=natural_key)


def test_damaged_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    metadata = {"format": "metamixer-classifier-1", "classes": json.dumps(NAMES), "preprocessing": "{"}
    save_file(build("resnet8", num_classes=3).state_dict(), path, metadata)
    with pytest.raises(ValueError, match="its metadata are damaged"):
        build_peer(peer(path), TASK)


def test_a_plain_teacher_of_timm_has_the_normalisation_of_its_configuration(tmp_path):
    import timm

    torch.manual_seed(1)
    teacher = timm.create_model("test_resnet", num_classes=3).eval()
    save_file(teacher.state_dict(), tmp_path / "x.safetensors")
    section = PeerSection(name="timm:test_resnet", weights=str(tmp_path / "x.safetensors"), frozen=True)
    task = replace(TASK, size=(32, 32))
    network, notes = build_peer(section, task)
    assert "mean 0.500, 0.500, 0.500" in notes[0]
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found, wanted = network.eval()(normalised(pixels, task.scale)), teacher(normalised(pixels, own))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_plain_teacher_of_another_kind_gets_what_there_is(tmp_path):
    torch.manual_seed(0)
    save_file(build("resnet8", num_classes=3).state_dict(), tmp_path / "x.safetensors")
    (note,) = build_peer(peer(tmp_path / "x.safetensors", frozen=True), TASK)[1]
    assert note == "the teacher's normalisation is not known; it gets that of the data"


def test_imagenet_is_known_by_numbers_and_by_words(monkeypatch):
    """Without fetching: that the head is taken is tested with the networks."""
    section = PeerSection(name="timm:test_resnet", pretrained=True, frozen=True)
    for classes, rows in ((("n02123045", "n01440764"), [281, 0]), (("tench", "goldfish"), [0, 1])):
        task = replace(TASK, num_classes=2, classes=classes, size=(32, 32))
        network, notes = build_peer(section, task, fetch=False)
        assert network.teacher_order.tolist() == rows
        assert "1000 outputs are put into the order of the 2 classes" in notes[0]
    with pytest.raises(ValueError, match=r"its classes are n01440764, .* the data have cat, dog, eel"):
        build_peer(section, TASK, fetch=False)
