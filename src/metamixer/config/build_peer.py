"""Build the network of a peer with its initial weights; adapt the input and the classes of a teacher."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metamixer.cohort.teacher_view import reorder, rescale
from metamixer.config.peer_section import PeerSection
from metamixer.config.weights import Said, head_of, load_weights, said_of
from metamixer.core.text import listed
from metamixer.models.factory import build

Scale = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Task:
    """The requirements of the data on a network.

    Args:
        num_classes: number of classes.
        channels: number of channels of the images.
        size: height and width of the images.
        classes: names of the classes; None: unknown, and not compared with those of teachers.
        scale: mean and standard deviation of each channel; None: unknown, and the input of teachers is not adapted.
    """

    num_classes: int
    channels: int
    size: tuple[int, int]
    classes: tuple[str, ...] | None = None
    scale: Scale | None = None


def build_peer(peer: PeerSection, task: Task, *, fetch: bool = True) -> tuple[nn.Module, list[str]]:
    """Build a network, and return it with notes on the origin of its weights.

    Args:
        peer: section of the recipe.
        task: requirements of the data.
        fetch: load the initial weights; False if those of a checkpoint replace them.

    Raises:
        ValueError, TypeError, ImportError, RuntimeError, OSError: the network cannot be built, its weights are those of
            another network, or a teacher has other classes.
    """
    if given := {"num_classes", "in_channels", "image_size"} & set(peer.options):
        raise ValueError(f"{', '.join(sorted(given))} come from the data; leave them out here")
    return _teacher(peer, task, fetch) if peer.frozen else _learner(peer, task, fetch)


def _built(peer: PeerSection, task: Task, classes: int, fetch: bool) -> nn.Module:
    options = peer.options if fetch else {key: value for key, value in peer.options.items() if key != "pretrained"}
    return build(peer.name, num_classes=classes, in_channels=task.channels, image_size=task.size, **options)


def _head(peer: PeerSection, task: Task, network: nn.Module, classes: int) -> dict[str, int]:
    with torch.random.fork_rng(devices=[]):
        return head_of(network, _built(peer, task, classes + 1, fetch=False))


def _learner(peer: PeerSection, task: Task, fetch: bool) -> tuple[nn.Module, list[str]]:
    network = _built(peer, task, task.num_classes, fetch)
    if not fetch:
        return network, []
    if peer.weights is None:
        fetched = peer.name.startswith("timm:") and peer.options.get("pretrained")
        return network, _of_timm(network, task) if fetched else []
    path = Path(peer.weights)
    known, order, differ = said_of(path).classes, None, False
    if known is not None and task.classes is not None and _forms(known) != _forms(task.classes):
        order = _order(known, task.classes) if len(known) == len(task.classes) else None
        differ = order is None
    new = load_weights(network, path, lambda: _head(peer, task, network, task.num_classes), order, new_head=differ)
    why = f", whose classes were {listed(known, 3)}" if known and new else ""
    return network, [_taken(network, new, f"{path.name}{why}")]


def _of_timm(network: nn.Module, task: Task) -> list[str]:
    """A note on weights of timm, which loads all tensors; the head is new if the number of classes differs."""
    config: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    new = [key for key in network.state_dict() if key.rpartition(".")[0] in heads]
    return [_taken(network, new if config.get("num_classes") != task.num_classes else [], "timm's pretrained weights")]


def _taken(network: nn.Module, new: Sequence[str], source: str) -> str:
    count = len(network.state_dict())
    if not new:
        return f"all {count} tensors are those of {source}"
    return f"{count - len(new)} of {count} tensors are those of {source}; new is the head: {listed(new)}"


def _teacher(peer: PeerSection, task: Task, fetch: bool) -> tuple[nn.Module, list[str]]:
    said = Said() if peer.weights is None else said_of(Path(peer.weights))
    pretrained = bool(peer.options.get("pretrained"))
    config = _timm_config(peer.name) if pretrained or (peer.weights is not None and said.classes is None) else {}
    names, count = _outputs(peer, said, config if pretrained else {}, task)
    network = _built(peer, task, count, fetch)
    notes: list[str] = []
    own_head = (getattr(network, "pretrained_cfg", None) or {}).get("num_classes", count)
    if pretrained and peer.name.startswith("timm:") and own_head != count:
        raise ValueError(f"its pretrained head has {own_head} outputs, the data have {count} classes: it would be new")
    if fetch and peer.weights is not None:
        load_weights(network, Path(peer.weights))
    if peer.weights is None and not pretrained:
        return network, notes
    if names is not None and task.classes is not None:
        order = _order(names, task.classes)
        if order is None:
            raise ValueError(
                f"its classes are {listed(names, 20)}; the data have {listed(task.classes, 20)}: the names do not "
                "agree; accepted are the names of the data in any order, or classes=[...] with them in the order of "
                "its outputs"
            )
        if order != list(range(count)):
            reorder(network, order)
            notes.append(f"the teacher's {count} outputs are put into the order of the {len(order)} classes by name")
    own = said.scale or _own_scale(config, task.channels)
    if own is None:
        notes.append("the teacher's normalisation is not known; it gets that of the data")
    elif task.scale is not None and _differ(own, task.scale):
        rescale(network, task.scale, own)
        mean, std = (", ".join(f"{value:.3f}" for value in part) for part in own)
        notes.append(f"the teacher gets images in its own normalisation: mean {mean}, deviation {std}")
    if said.size is not None and said.size != tuple(task.size):
        there, here = ("x".join(map(str, size)) for size in (said.size, task.size))
        notes.append(f"the teacher was trained on images of {there}, these are of {here}")
    return network, notes


def _outputs(peer: PeerSection, said: Said, config: dict[str, Any], task: Task) -> tuple[Sequence[str] | None, int]:
    """The classes of the outputs of a teacher, if they are known, and the number of its outputs."""
    ours = task.classes
    if isinstance(peer.classes, list):
        return peer.classes, len(peer.classes)
    if peer.classes is not None:
        if ours is None:
            return None, task.num_classes
        return sorted(ours, key=natural if peer.classes == "natural" else None), task.num_classes
    if said.classes is not None:
        return said.classes, len(said.classes)
    count = int(config.get("num_classes") or task.num_classes)
    if (labels := _labels(config, ours)) is not None:
        return labels, count
    if count != task.num_classes:
        raise ValueError(
            f"it has {count} outputs without names and the data have {task.num_classes} classes; accepted are "
            "classes=[...] with the names of its outputs, or weights of a network with these classes"
        )
    if ours is not None and (peer.weights or config) and sorted(ours, key=natural) != list(ours):
        raise ValueError(
            f"its weights have no names of classes, and these can be in two orders: {listed(ours, 4)}, or "
            f"{listed(sorted(ours, key=natural), 4)} as timm has them; accepted is classes=sorted, classes=natural or "
            "a list of names"
        )
    return None, count


def natural(name: str) -> list[int | str]:
    """The sort key of timm for folders: numbers in names are compared by value.

    >>> sorted(["10", "2", "1"], key=natural)
    ['1', '2', '10']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def _forms(names: Sequence[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name) for name in names]


def _order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """The index in ``theirs`` of each of ``ours``, by name; None if one is missing or occurs twice."""
    there = _forms(theirs)
    wanted = _forms(ours)
    return [there.index(name) for name in wanted] if all(there.count(name) == 1 for name in wanted) else None


def _labels(config: dict[str, Any], ours: Sequence[str] | None) -> Sequence[str] | None:
    """The class names of a pretrained head, as WordNet ids or words, whichever the data use."""
    if ours is None or not config:
        return None
    if config.get("label_names"):
        return list(config["label_names"])
    from timm.data import ImageNetInfo

    subset = {1000: "imagenet-1k", 21841: "imagenet-21k", 21843: "imagenet-21k-goog", 11821: "imagenet-12k"}
    if config.get("num_classes") not in subset:
        return None
    known = ImageNetInfo(subset[config["num_classes"]])
    numbers = list(known.label_names())
    words = [known.label_name_to_description(number).partition(",")[0] for number in numbers]
    return words if _order(words, ours) is not None else numbers


def _timm_config(name: str) -> dict[str, Any]:
    if not name.startswith("timm:") or ":" in name.removeprefix("timm:"):
        return {}
    import timm

    found = timm.get_pretrained_cfg(name.removeprefix("timm:"), allow_unregistered=True)
    return {} if found is None else dict(found.to_dict())


def _own_scale(config: dict[str, Any], channels: int) -> Scale | None:
    if not config.get("mean") or not config.get("std"):
        return None
    mean, std = config["mean"], config["std"]
    if len(mean) == channels:
        return tuple(mean), tuple(std)
    # For grey images timm sums the first convolution over its input channels.
    return ((sum(mean) / len(mean),), (sum(std) / len(std),)) if channels == 1 else None


def _differ(one: Scale, other: Scale) -> bool:
    return any(abs(a - b) > 1e-6 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
