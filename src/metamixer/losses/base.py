"""The base class of losses: terms for each peer, and hooks for training loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from metamixer.core.ranges import check_fields
from metamixer.core.types import Batch, Outputs, Terms
from metamixer.losses.functional import check_targets, finite, learning, spread


class Loss(nn.Module):
    """Base class of losses. A subclass defines :meth:`terms`; everything else has a default.

    The settings are the fields of a ``@dataclass(eq=False, repr=False)``, whose annotations define what is accepted, or
    the parameters of an ``__init__``.

    Attributes:
        needs: what a recipe has to provide, such as ``("trunk",)`` or ``("shadows", "views")``.
        shadows: the name of shadows in tables, such as ``average``; empty: the loss uses no shadows.
        watched: values of the last call for logging that are not part of the objective, each ``(P,)``.
    """

    needs: tuple[str, ...] = ()
    shadows: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[str, Tensor] = {}

    def __post_init__(self) -> None:
        """Initialise a loss whose settings are the fields of a dataclass, and check them."""
        if type(self).__hash__ is None:
            raise TypeError(f"{type(self).__name__} is a torch module; expected @dataclass(eq=False, repr=False)")
        Loss.__init__(self)
        check_fields(self)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """The terms by name: one number for each of the L peers that learn, ``(L,)``, or for all peers, ``(P,)``."""
        raise NotImplementedError

    def forward(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None = None) -> Terms:
        """Logits ``(P, B, C)`` and soft targets ``(B, C)`` -> the terms, each ``(P,)``, 0 for peers that do not learn.

        Args:
            outputs: outputs of a cohort.
            targets: soft targets, mixed as the images were.
            progress: share of training that is done; None: settings that change with it are at their final values.

        Raises:
            ValueError: the targets are not soft, or the outputs lack what the method compares.
        """
        check_targets(outputs.logits, targets)
        terms = self.terms(_finite(outputs, targets), targets, progress)
        if self.watched:
            self.watched = {name: _placed(each, outputs, all=True) for name, each in self.watched.items()}
        return {name: _placed(each, outputs) for name, each in terms.items()}

    def setup(self, outputs: Outputs) -> None:
        """Create trainable parts from the outputs of one example, before the optimizer; keep those that fit."""

    def check_made(self, parts: int, outputs: Outputs) -> None:
        """Raise ValueError unless :meth:`setup` created one part for each peer."""
        if parts != outputs.peers:
            raise ValueError(
                f"{type(self).__name__} has parts for {parts} peers, there are {outputs.peers}: setup(outputs) makes "
                "them from one example"
            )

    def before_epoch(self, cohort: Any, held_out: Iterable[Batch] | None) -> None:
        """Hook before each epoch, for estimates on held-out data."""

    def after_step(self, cohort: Any) -> None:
        """Hook after each optimizer step, for averages, queues and copies."""

    def set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalisation of images, mean and standard deviation per channel, for attacks in units of pixels."""

    def deployable(self, peers: int) -> Sequence[int] | None:
        """The peers that may be deployed, of a cohort with that number of peers; None: any that learns."""
        return None

    @staticmethod
    def of(module: nn.Module) -> Loss:
        """The module with the complete interface of a loss; a plain ``nn.Module`` gets the defaults it lacks."""
        return module if isinstance(module, Loss) else cast(Loss, _Completed(module))


def _finite(outputs: Outputs, targets: Tensor) -> Outputs:
    """The outputs with finite logits for classes masked by -inf, in this pass and in those of ``run``."""
    run = outputs.run

    def again(peer: int, images: Tensor, training: bool = True) -> Tensor:
        assert run is not None  # noqa: S101
        return finite(run(peer, images, training=training), targets)

    return replace(outputs, logits=finite(outputs.logits, targets), run=None if run is None else again)


def _placed(values: Tensor, outputs: Outputs, all: bool = False) -> Tensor:
    """``(L,)`` or ``(P,)`` -> ``(P,)``; 0 for peers that do not learn, unless ``all`` keeps given values."""
    if len(values) != outputs.peers:
        return spread(values, outputs)
    return values if all else spread(learning(values, outputs), outputs)


class _Completed:
    """A plain module as a loss: its own attributes, then the defaults of :class:`Loss`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.module(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name, None) or getattr(_DEFAULTS, name)


_DEFAULTS = Loss()
