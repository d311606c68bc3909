"""Base classes of mixers: the signature of the call, and the part of training in which they mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metamixer.core.labels import class_indices
from metamixer.core.plan import MixPlan
from metamixer.core.ranges import check_fields
from metamixer.mixers.sampling import happens, strength


@dataclass(frozen=True)
class Draw:
    """The arguments of the call of a mixer, as described in :class:`~metamixer.Mixer`."""

    images: Tensor
    labels: Tensor
    companions: Tensor | None = None
    generator: torch.Generator | None = None
    progress: float | None = None
    strength: float | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial sizes of the images; ValueError if they have no spatial axes."""
        size = tuple(self.images.shape[2:])
        if not size:
            raise ValueError(f"a box needs spatial axes: images are (B, C, ...), not {tuple(self.images.shape)}")
        return size


class BaseMixer:
    """Base of mixers: a frozen dataclass that defines :meth:`draw`. Any callable with this signature is a mixer too."""

    wants_companions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        companions: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: float | None = None,
        strength: float | None = None,
    ) -> MixPlan:
        """Draw the plan of one batch; the arguments are those of :class:`~metamixer.Mixer`.

        With soft labels ``(B, C)`` the class of an image is the one with the largest share.

        Raises:
            ValueError: there are no images, or the numbers of images and labels differ.
        """
        if not len(images) or len(labels) != len(images):
            raise ValueError(
                f"there are {len(images)} images and {len(labels)} labels; accepted: equal numbers, at least one"
            )
        labels = class_indices(labels)
        return self.draw(Draw(images, labels, companions, generator, progress, strength))

    def draw(self, draw: Draw) -> MixPlan:
        """Draw the plan of one batch."""
        raise NotImplementedError


class WindowedMixer(BaseMixer):
    """A mixer that mixes in a part of training, with a strength that scales its probabilities."""

    until: float
    ramp: float
    strength: float | Literal["auto"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp > self.until:
            raise ValueError(f"ramp={self.ramp!r}: the ramp lies in [0, until], until={self.until!r}")

    def mixes(self, probability: float, draw: Draw) -> bool:
        """Draw whether this batch is mixed."""
        given = 1.0 if draw.strength is None else draw.strength
        scaled = probability * (given if self.strength == "auto" else self.strength)
        return happens(strength(scaled, self.until, self.ramp, draw.progress), draw.generator)
