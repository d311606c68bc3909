"""Values passed between the parts: a batch, the outputs of a cohort, the terms of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metamixer.core.layout import Layout, channels_first

Terms = Mapping[str, Tensor]
"""The terms of a loss by name, each ``(P,)``: one number for every peer."""


_KEYS = (("images", "image", "pixel_values", "img"), ("labels", "label", "targets", "target"))
"""The keys of images and labels that are accepted in a mapping."""


@dataclass(frozen=True)
class Batch:
    """Images with their labels and, if the loader draws them, a companion for every image.

    Args:
        images: ``(B, C, ...)`` float, normalised: signals, images or volumes.
        labels: ``(B,)`` class indices, or ``(B, classes)`` soft labels.
        companions: ``(B, C, ...)``; ``companions[b]`` is another training image of class ``labels[b]`` (if the class
            has no other image, the image itself with a new augmentation). None: the mixer pairs images of the batch.
        views: for methods in which every peer sees its own augmentation: ``views[p]`` are the same images as
            ``images``, augmented for peer ``p``. None: all peers see ``images``.
        whole: ``(N,)`` int64, the labels of the whole batch, if this is the part of one process; None: this is the
            whole batch. Plans are drawn for whole batches.
    """

    images: Tensor
    labels: Tensor
    companions: Tensor | None = None
    views: tuple[Tensor, ...] | None = None
    whole: Tensor | None = None

    @staticmethod
    def of(found: Any) -> Batch:
        """A batch from a pair (images, labels) or a mapping, as a ``DataLoader`` returns them, or the batch itself.

        Raises:
            ValueError: it is none of these, or the numbers of images and labels differ.

        >>> len(Batch.of((torch.zeros(5, 1), torch.arange(5))))
        5
        """
        if isinstance(found, Batch):
            return found
        if isinstance(found, Mapping):
            each = [next((found[name] for name in names if name in found), None) for names in _KEYS]
        else:
            each = list(found) if isinstance(found, tuple | list) else []
        pair = [value for value in each if isinstance(value, Tensor)]
        if len(pair) != 2 or len(each) != 2:
            inside = ", ".join(type(each).__name__ for each in found) if isinstance(found, tuple | list) else ""
            raise ValueError(
                f"a batch is a {type(found).__name__}{f' of {inside}' if inside else ''}; accepted: tensors (images, "
                "labels), a mapping with images and labels, or a Batch"
            )
        if len(pair[0]) != len(pair[1]) or not len(pair[0]):
            raise ValueError(
                f"a batch has {len(pair[0])} images and {len(pair[1])} labels; accepted: equal numbers, at least one"
            )
        return Batch(pair[0], pair[1])

    def to(self, device: torch.device) -> Batch:
        """The batch with all its tensors on a device."""
        if all(each.device == device for each in (self.images, self.labels)):
            return self

        def moved(each: Tensor | None) -> Tensor | None:
            return None if each is None else each.to(device, non_blocking=True)

        views = None if self.views is None else tuple(each.to(device, non_blocking=True) for each in self.views)
        images, labels = (each.to(device, non_blocking=True) for each in (self.images, self.labels))
        return Batch(images, labels, moved(self.companions), views, moved(self.whole))

    @property
    def seen(self) -> Tensor | Sequence[Tensor]:
        """The input of a cohort: the views if there are any, else the images."""
        return self.images if self.views is None else self.views

    def part(self, number: int, parts: int) -> Batch:
        """The samples ``number``, ``number + parts``, ...; the sizes of parts differ by at most one.

        >>> Batch(torch.zeros(5, 1), torch.arange(5)).part(1, 2).labels
        tensor([1, 3])
        """
        if parts == 1:
            return self
        companions = None if self.companions is None else self.companions[number::parts]
        views = None if self.views is None else tuple(view[number::parts] for view in self.views)
        whole = self.labels if self.whole is None else self.whole
        return Batch(self.images[number::parts], self.labels[number::parts], companions, views, whole)

    def __len__(self) -> int:
        return len(self.labels)


def on_device_of(module: nn.Module, batches: Iterable[Any]) -> Iterator[Batch]:
    """Yield batches, in any form that :meth:`Batch.of` accepts, on the device of the weights of a module."""
    device = next((weight.device for weight in module.parameters()), None)
    for found in batches:
        batch = Batch.of(found)
        yield batch if device is None else batch.to(device)


class RunPeer(Protocol):
    """Runs a peer on other images ``(B, C, ...)`` with the same plan but no mixing at the input.

    Returns logits ``(B, classes)``.

    ``training=False`` runs the peer in evaluation mode, so that no statistics change, and with a graph for images that
    require gradients, even if the peer is frozen: for searches over images. Otherwise the peer runs in its current
    mode, as in the pass that made the outputs.
    """

    def __call__(self, peer: int, images: Tensor, /, training: bool = True) -> Tensor:
        """Run the peer."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a cohort of P peers for one batch.

    Args:
        logits: ``(P, B, C)`` before the softmax.
        stages: ``stages[p][k]`` is the output of stage ``k + 1`` of peer ``p``, after mixing. All peers have the same
            number of entries, aligned by relative depth.
        features: ``features[p]`` is ``(B, D_p)``, the input of the last linear layer of peer ``p``.
        frozen: the peers that do not learn: teachers and shadows.
        shadows: the number of shadows, which follow a peer instead of learning: peer ``P - shadows + i`` is the shadow
            of peer ``i``.
        shared: the number of first stages that all peers share; 0 for separate networks.
        images: ``images[p]`` are the input images ``(B, C, ...)`` of peer ``p``, after mixing at the input.
        run: runs a peer again, for methods that need its logits for other images.
        layouts: ``layouts()[p][k]`` is the layout of ``stages[p][k]``; None: channels are on axis 1.
        without_graph: ``stages`` or ``features`` if a learning peer computed them without a graph, so that no gradient
            flows back from them: in ``torch.no_grad``, or in checkpointing with ``use_reentrant=True``.
    """

    logits: Tensor
    stages: tuple[tuple[Tensor, ...], ...] = ()
    features: tuple[Tensor, ...] = ()
    frozen: tuple[int, ...] = ()
    shadows: int = 0
    shared: int = 0
    images: tuple[Tensor, ...] = ()
    run: RunPeer | None = None
    layouts: Callable[[], Sequence[Sequence[Layout]]] | None = None
    without_graph: frozenset[str] = frozenset()

    @cached_property
    def maps(self) -> tuple[tuple[Tensor, ...], ...]:
        """The stages as ``(B, C, ...)`` for any network; tokens of a transformer are on the grid of the image."""
        if self.layouts is None:
            return self.stages
        sizes = [tuple(each.shape[2:]) for each in self.images] or [()] * len(self.stages)
        return tuple(
            tuple(channels_first(stage, layout, size) for stage, layout in zip(stages, layouts, strict=True))
            for stages, layouts, size in zip(self.stages, self.layouts(), sizes, strict=True)
        )

    @property
    def peers(self) -> int:
        """The number of peers P, frozen ones included."""
        return len(self.logits)

    @property
    def learners(self) -> tuple[int, ...]:
        """The peers that learn."""
        return tuple(index for index in range(self.peers) if index not in self.frozen)


def logits_of(output: Any) -> Any:
    """The output of a network, or the logits in it: the attribute ``logits`` of an object, or the entry of a dict.

    >>> logits_of({"logits": 1, "loss": 2}), logits_of(3)
    (1, 3)
    """
    return output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)


def total(terms: Terms) -> Tensor:
    """The objective: the sum of all terms of all peers, a 0-d tensor to call ``backward()`` on.

    A sum over the peers rather than a mean, so that the gradient of a peer does not shrink when others join.

    >>> total({"task": torch.tensor([1.0, 2.0]), "distill": torch.tensor([0.5, 0.5])})
    tensor(4.)
    """
    return torch.stack([term.sum() for term in terms.values()]).sum()


def pooled(features: Tensor) -> Tensor:
    """``(B, C, ...) -> (B, C)``: the mean over all positions."""
    return features.flatten(2).mean(-1) if features.ndim > 2 else features
