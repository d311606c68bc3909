"""The base class of mixers: the signature of the call, and the window of training in which they mix."""

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
    """What a plan is drawn from: the arguments of a mixer's call, as :class:`~metamixer.Mixer` describes them."""

    images: Tensor
    labels: Tensor
    companions: Tensor | None = None
    generator: torch.Generator | None = None
    progress: float | None = None
    strength: float | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial sizes of the images; ValueError where there are none."""
        size = tuple(self.images.shape[2:])
        if not size:
            raise ValueError(f"a box needs spatial axes: images are (B, C, ...), not {tuple(self.images.shape)}")
        return size


class BaseMixer:
    """A mixer whose frozen dataclass defines :meth:`draw`. A mixer may also be any callable with this signature."""

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

        Of soft labels ``(B, C)`` the class with the largest share counts where partners have to be of one class.

        Raises:
            ValueError: no images, or not as many labels.
        """
        if not len(images) or len(labels) != len(images):
            raise ValueError(
                f"there are {len(images)} images and {len(labels)} labels; accepted: equal numbers, at least one"
            )
        labels = class_indices(labels)
        return self.draw(Draw(images, labels, companions, generator, progress, strength))

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        raise NotImplementedError


class WindowedMixer(BaseMixer):
    """A mixer that mixes in a window of training, at a strength that scales its probabilities."""

    until: float
    ramp: float
    strength: float | Literal["auto"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp > self.until:
            raise ValueError(f"ramp={self.ramp!r}: the ramp lies in [0, until], until={self.until!r}")

    def mixes(self, probability: float, draw: Draw) -> bool:
        """Whether this batch is mixed: one draw."""
        given = 1.0 if draw.strength is None else draw.strength
        scaled = probability * (given if self.strength == "auto" else self.strength)
        return happens(strength(scaled, self.until, self.ramp, draw.progress), draw.generator)
