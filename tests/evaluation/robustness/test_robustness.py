"""Accuracies under corruptions and attacks, against doing it by hand; the official files, against written ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamixer.cohort.cohort import Cohort
from metamixer.data import DataError, TensorImages, normalise
from metamixer.evaluation.networks import Panel
from metamixer.evaluation.robustness.attacks import ATTACKS, Attack, attacked
from metamixer.evaluation.robustness.cifar_c import CifarC
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS, corrupt
from metamixer.evaluation.robustness.robustness import Probe, clean, corruptions, under_attack
from metamixer.losses.components.adversarial_examples import Pixels

MEAN, STD = (0.4, 0.4, 0.4), (0.25, 0.25, 0.25)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 49, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def probe():
    torch.manual_seed(0)
    images = TensorImages(torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 3, tuple("abc"))
    cohort = Cohort([network(0), network(1)], stages=["0"], frozen=[1])
    panel = Panel.of(cohort, ["0 a", "1 b"], network(2))
    return Probe(panel, images, torch.arange(0, 40, 2), MEAN, STD)


def by_hand(probe, changed):
    labels = probe.images.labels[probe.rows]
    logits = []
    with torch.no_grad():
        for each in (*probe.panel.cohort.peers, probe.panel.deployed):
            each.eval()
            logits.append(each(normalise(changed, MEAN, STD)))
    a, b, deployed = logits
    mean = (a.softmax(1) + b.softmax(1)) / 2
    return [float((each.argmax(1) == labels).float().mean()) for each in (a, b, mean, deployed)]


def test_clean_and_corrupted_images(probe):
    pixels = probe.images.images[::2]
    assert probe.panel.names == ("0 a", "1 b", "ensemble", "deployed")
    assert probe.panel.kinds == ("peer", "frozen", "ensemble", "deployed")
    assert list(clean(probe).values()) == pytest.approx(by_hand(probe, pixels))
    found = corruptions(probe, seed=1)
    for kind in ("fog", "jpeg_compression"):
        expected = [by_hand(probe, corrupt(pixels, kind, severity, seed=1)) for severity in range(1, 6)]
        for column, name in enumerate(probe.panel.names):
            assert found.kinds[kind][name] == pytest.approx([row[column] for row in expected])
    cells = [share for kind in found.kinds.values() for share in kind["ensemble"]]
    assert len(cells) == 75
    assert found.mean["ensemble"] == pytest.approx(sum(cells) / 75)


def test_each_network_is_attacked_through_itself(probe):
    probe.panel.cohort.train()
    told = []
    watched = Probe(probe.panel, probe.images, probe.rows, MEAN, STD, progress=lambda *words: told.append(words))
    weights = {name: value.clone() for name, value in probe.panel.cohort.state_dict().items()}
    chosen = {"fgsm": ATTACKS["fgsm"], "pgd-10": Attack(10, eps=0.05)}
    found = under_attack(watched, chosen)
    assert probe.panel.cohort.training
    assert not probe.panel.cohort.peers[1].training  # frozen
    assert all(torch.equal(weights[name], value) for name, value in probe.panel.cohort.state_dict().items())
    assert all(parameter.grad is None for parameter in probe.panel.cohort.parameters())
    assert told == [("attacks", done, 160) for done in range(0, 161, 20)]
    assert found["pgd-10"].eps == 0.05
    images, labels = normalise(probe.images.images[::2], MEAN, STD), probe.images.labels[::2]
    peers = [each.eval() for each in probe.panel.cohort.peers]

    def mean(x):
        return torch.stack([peer(x).softmax(1) for peer in peers]).mean(0).log()

    for name, attacked_network in zip(("0 a", "1 b", "ensemble"), (*peers, mean), strict=True):
        for attack, how in chosen.items():
            changed = attacked(attacked_network, images, labels, Pixels.of(MEAN, STD), how)
            right = float((attacked_network(changed).argmax(1) == labels).float().mean())
            assert found[attack].accuracy[name] == pytest.approx(right)
    assert found["pgd-10"].accuracy["1 b"] < clean(probe)["1 b"]  # frozen, but not without a gradient


def test_the_ensembles_gradient_is_that_of_all_peers(probe):
    images = normalise(probe.images.images[:4], MEAN, STD).requires_grad_()
    labels = probe.images.labels[:4]
    probe.panel.cohort.eval()
    peers = list(probe.panel.cohort.peers)
    (ours,) = torch.autograd.grad(F.nll_loss(probe.panel.network(2)(images).float(), labels), images)
    mean = torch.stack([peer(images).softmax(1) for peer in peers]).mean(0)
    (theirs,) = torch.autograd.grad(F.nll_loss(mean.log(), labels), images)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_names_have_to_fit(probe):
    with pytest.raises(ValueError, match="1 names for 2 peers"):
        Panel.of(probe.panel.cohort, ["a"])
    with pytest.raises(ValueError, match="have to differ"):
        Panel.of(probe.panel.cohort, ["a", "ensemble"])


@pytest.fixture
def official(tmp_path, probe):
    """A folder as the official one, of our small images."""
    pixels = probe.images.images
    for kind in CORRUPTIONS:
        parts = [corrupt(pixels, kind, severity, seed=7).permute(0, 2, 3, 1).numpy() for severity in range(1, 6)]
        np.save(tmp_path / f"{kind}.npy", np.concatenate(parts))
    np.save(tmp_path / "labels.npy", np.tile(probe.images.labels.numpy().astype(np.uint8), 5))
    return tmp_path


def test_official_files_are_read(probe, official):
    files = CifarC.open(official, probe.images.labels)
    found = corruptions(probe, files)
    expected = [by_hand(probe, corrupt(probe.images.images, "snow", s, seed=7)[::2]) for s in range(1, 6)]
    assert found.kinds["snow"]["0 a"] == pytest.approx([row[0] for row in expected])
    assert found.source == "files"
    rows = torch.tensor([5, 3])
    assert torch.equal(files.images("fog", 4, rows), corrupt(probe.images.images, "fog", 4, seed=7)[rows])


def test_official_files_that_do_not_fit_are_refused(probe, official, tmp_path):
    labels = probe.images.labels
    with pytest.raises(DataError, match="no such folder"):
        CifarC.open(tmp_path / "nowhere", labels)
    with pytest.raises(DataError, match="does not list the classes of the 40 test images"):
        CifarC.open(official, labels.flip(0))
    np.save(official / "fog.npy", np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=r"fog\.npy holds uint8 \(3, 16, 16, 3\)"):
        CifarC.open(official, labels)
    (official / "fog.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"fog\.npy is not a numpy array"):
        CifarC.open(official, labels)
    (official / "fog.npy").unlink()
    with pytest.raises(DataError, match=r"has no fog\.npy"):
        CifarC.open(official, labels)
