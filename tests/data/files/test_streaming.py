"""Images decoded when they are asked for: the same batches for any number of workers."""

import time
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from metamixer.data import Augment, EvalLoader, FolderImages, ImageError, TensorImages, TrainLoader, load
from metamixer.data.files import streaming
from metamixer.data.policies import Changes
from metamixer.data.random_crop import RandomCrop

# Python 3.12 warns of fork in a process with threads; the workers decode with Pillow and touch none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def data(class_folders):
    class_folders(count=12, part="train", size=(20, 26))
    root = class_folders(count=5, part="test", size=(20, 26), first=500)
    data = load(root, cache_limit_bytes=1000, image_size=16)
    assert isinstance(data.train, FolderImages)
    return data


def loader(data, workers=0, **changes):
    options = {"batch_size": 4, "seed": 0, "companions": True} | changes
    augment = options.pop("augment", Augment(0, crop=RandomCrop()))
    return TrainLoader(data.train, augment, data.mean, data.std, workers=workers, **options)


def equal(first, second):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.companions, b.companions) and torch.equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


def test_batches_do_not_depend_on_workers_or_on_where_one_starts(data):
    here = loader(data)
    whole = list(here.epoch(1))
    assert whole[0].images.shape == whole[0].companions.shape == (4, 3, 16, 16)
    assert whole[0].images.is_contiguous(memory_format=torch.channels_last)
    assert equal(whole[3:], list(here.epoch(1, start=3)))
    there = loader(data, workers=2)
    next(there.epoch(0))  # an epoch that is left in the middle
    assert equal(whole, list(there.epoch(1)))
    assert equal(whole[2:], list(there.epoch(1, start=2)))


@pytest.mark.parametrize(
    "augment", [Augment(pad=2), Augment(3, True, "reflect", changes=Changes("trivial", erasing=0.5)), Augment(0, False)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_images_get_the_same_on_disk_as_in_memory(data, tmp_path, augment, workers):
    held = replace(load(tmp_path / "data", image_size=16), mean=data.mean, std=data.std)
    assert isinstance(held.train, TensorImages)
    options = {"augment": augment, "views": 2}
    here, there = loader(data, workers, **options), loader(held, **options)
    for epoch in (0, 1):
        seen, wanted = list(here.epoch(epoch)), list(there.epoch(epoch))
        assert equal(seen, wanted)
        assert all(torch.equal(a.views[1], b.views[1]) for a, b in zip(seen, wanted, strict=True))


def test_workers_change_images_in_memory_one_by_one(data, tmp_path):
    held = load(tmp_path / "data", image_size=16)
    augment = Augment(0, crop=RandomCrop(), changes=Changes("rand"))
    here, there = (loader(held, workers, augment=augment, views=2) for workers in (0, 2))
    assert (here.reading, there.reading, loader(held, 2, augment=Augment()).reading) == ("augment", "workers", "memory")
    wanted = list(here.epoch(1))
    assert equal(wanted, list(there.epoch(1)))
    assert equal(wanted[2:], list(there.epoch(1, start=2)))


def test_crops_do_not_depend_on_the_memory(data, tmp_path):
    roomy = load(tmp_path / "data", image_size=16, crops=True, scale=(data.mean, data.std))
    assert isinstance(roomy.train, FolderImages)
    assert isinstance(roomy.test, TensorImages)
    assert equal(list(loader(data).epoch(1)), list(loader(roomy).epoch(1)))
    skipping = load(tmp_path / "data", image_size=16, crops=True, on_error="skip")
    assert isinstance(skipping.train, FolderImages)
    assert (skipping.mean, skipping.std) == (data.mean, data.std)


def test_the_loader_says_where_batches_are_made(data):
    memory = TensorImages(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ("a", "b"))
    assert loader(data).reading == "disk"
    assert loader(data, workers=2).reading == "workers"
    for device, reading in (("cpu", "memory"), (torch.device("cuda", 1), "device")):
        assert TrainLoader(memory, Augment(), [0.5], [0.5], 4, 0, device=device, workers=2).reading == reading


def test_workers_live_across_epochs(data):
    there, here = loader(data, workers=2), loader(data)
    alive = []
    for epoch, start in ((0, 0), (1, 2), (2, 0)):
        assert equal(list(there.epoch(epoch, start)), list(here.epoch(epoch, start)))
        alive.append({process.pid for process in active_children()})
    assert alive[0] == alive[1] == alive[2]
    assert len(alive[0]) >= 2


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), (torch.device("cuda", 1), True)])
def test_what_workers_read_for_a_gpu_comes_in_pinned_memory(data, monkeypatch, device, pinned):
    """torch's loader is asked for it; nothing is read, since there may be no GPU."""
    asked = []
    monkeypatch.setattr(streaming, "DataLoader", lambda *_, **options: asked.append(options["pin_memory"]))
    for made in (
        loader(data, workers=1, device=device),
        EvalLoader(data.train, [0.5], [0.5], device=device, workers=1),
    ):
        _ = made._stream._pipe
    assert asked == [pinned, pinned]


class Noted:
    """The files of a set, which notes in a folder which of them were asked for, by whatever process."""

    def __init__(self, files, folder):
        self.files, self.folder = files, folder

    def __getitem__(self, row):
        (self.folder / str(row)).touch()
        return self.files[row]


def test_workers_read_ahead_while_a_step_computes(data, tmp_path):
    asked = tmp_path / "asked"
    asked.mkdir()
    noted = replace(data, train=replace(data.train, files=Noted(data.train.files, asked)))
    batches = loader(noted, workers=1, batch_size=2, companions=False).epoch(0)
    next(batches)
    # One batch was taken; two more are read without anyone asking for them, and no more than that.
    until = time.monotonic() + 60
    while len(list(asked.iterdir())) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(list(asked.iterdir())) == 6
    here = loader(noted, batch_size=2, companions=False).epoch(1)
    for path in asked.iterdir():
        path.unlink()
    next(here)
    assert len(list(asked.iterdir())) == 2


def test_crops_differ_between_epochs_and_from_the_companions(data):
    train = data.train.subset(torch.zeros(24, dtype=torch.int64))
    augment = Augment(0, flip=False, crop=RandomCrop())
    batch = next(TrainLoader(train, augment, data.mean, data.std, 24, 0, companions=True).epoch(0))
    assert (batch.images != batch.companions).flatten(1).any(1).all()
    other = next(TrainLoader(train, augment, data.mean, data.std, 24, 0).epoch(1))
    assert not torch.equal(batch.images, other.images)


def test_evaluation_equals_the_images_in_memory(data, tmp_path):
    cached = load(tmp_path / "data", image_size=16)
    assert isinstance(cached.test, TensorImages)
    assert torch.equal(data.test.fetch(torch.arange(10)), cached.test.images)
    assert torch.equal(data.val.labels, cached.val.labels)
    assert data.mean == pytest.approx(cached.mean)
    for workers in (0, 2):
        batches = list(EvalLoader(data.test, data.mean, data.std, batch_size=4, workers=workers))
        want = list(EvalLoader(cached.test, data.mean, data.std, batch_size=4))
        assert all(torch.equal(a.images, b.images) for a, b in zip(batches, want, strict=True))
    assert data.to("cpu").train is data.train


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named(data, tmp_path, workers):
    path = tmp_path / "data" / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"cat/3\.png: damaged"):
        list(loader(data, workers, batch_size=1).epoch(0))


def test_views_are_crops_of_their_own_for_any_number_of_workers(data):
    here, alone = list(loader(data, views=3).epoch(1)), list(loader(data).epoch(1))
    there = loader(data, workers=2, views=3)
    for wanted, found in ((here, list(there.epoch(1))), (here[2:], list(there.epoch(1, start=2)))):
        assert equal(wanted, found)
        for a, b in zip(wanted, found, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
    assert equal(here, alone)
    first = here[0]
    assert first.views[0] is first.images
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (first.views[one] != first.views[other]).flatten(1).any(1).all()


def test_an_image_that_comes_again_in_an_epoch_is_cropped_anew(data):
    """24 images on disk; a subset of three of each class, two of each at a time, so that all come again and again."""
    rows = torch.cat([(data.train.labels == label).nonzero().flatten()[:3] for label in (0, 1)])
    few = replace(data, train=data.train.subset(rows.repeat_interleave(4)))
    seen = list(loader(few, per_class=2).epoch(0))
    crops = torch.cat([batch.images for batch in seen])
    assert len(seen) == 6
    assert len(crops.flatten(1).unique(dim=0)) == 24


def test_an_image_that_comes_twice_in_a_batch_is_cropped_twice_and_alike_in_all_processes(data):
    """Balanced batches of 21 images of one class and two of the other, which come again and again."""
    rows = torch.cat([(data.train.labels == 0).nonzero().flatten(), (data.train.labels == 1).nonzero().flatten()[:2]])
    few = replace(data, train=data.train.subset(rows))
    made = loader(few, sampler="balanced", batch_size=len(rows))
    whole = next(made.epoch(0))
    rare = whole.images[whole.labels == 1]
    assert len(rare) > 4
    assert len(rare.flatten(1).unique(dim=0)) == len(rare)
    for number in range(2):
        part = next(made.shared(number, 2).epoch(0))
        assert torch.equal(part.images, whole.images[number::2])
        assert torch.equal(part.companions, whole.companions[number::2])
        assert torch.equal(part.whole, whole.labels)
    assert equal([whole], list(loader(few, 2, sampler="balanced", batch_size=len(rows)).epoch(0)))
