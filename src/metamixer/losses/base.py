"""The base class of losses: terms of the peers that learn, and hooks for training loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from metamixer.core.ranges import check_fields
from metamixer.core.types import Batch, Outputs, Terms
from metamixer.losses.functional import check_targets, finite, learning, spread


class Loss(nn.Module):
    """A loss defines :meth:`terms`; everything else has a default.

    Its settings are the fields of a ``@dataclass(eq=False, repr=False)`` whose annotations say what is accepted, or
    come in through an ``__init__`` of its own.

    Attributes:
        needs: what a recipe has to provide, such as ``("trunk",)`` or ``("shadows", "views")``.
        shadows: what the copies that follow the peers are called in tables, such as ``average``; empty: it has none.
        watched: numbers of the last call to be logged that are no part of the objective, each ``(P,)``.
    """

    needs: tuple[str, ...] = ()
    shadows: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[str, Tensor] = {}

    def __post_init__(self) -> None:
        """Start a loss whose settings are the fields of a dataclass, and check them."""
        if type(self).__hash__ is None:
            raise TypeError(f"{type(self).__name__} is a torch module; expected @dataclass(eq=False, repr=False)")
        Loss.__init__(self)
        check_fields(self)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Each term by name, a number for each of the L peers that learn ``(L,)``, or for all ``(P,)``."""
        raise NotImplementedError

    def forward(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None = None) -> Terms:
        """Logits ``(P, B, C)`` and soft targets ``(B, C)`` -> the terms, each ``(P,)``, 0 for peers that do not learn.

        Args:
            outputs: of a cohort.
            targets: soft, mixed as the images were.
            progress: the share of training that is done; None: settings that change with it are at full strength.

        Raises:
            ValueError: targets that are no soft ones, or outputs without what the method compares.
        """
        check_targets(outputs.logits, targets)
        terms = self.terms(_finite(outputs, targets), targets, progress)
        if self.watched:
            self.watched = {name: _placed(each, outputs, all=True) for name, each in self.watched.items()}
        return {name: _placed(each, outputs) for name, each in terms.items()}

    def setup(self, outputs: Outputs) -> None:
        """Create trainable parts from the outputs of one example, before the optimizer; those that fit stay."""

    def check_made(self, parts: int, outputs: Outputs) -> None:
        """Raise ValueError unless :meth:`setup` made as many parts as there are peers."""
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
        """How images are normalised, one mean and one deviation a channel, for attacks in units of pixels."""

    def deployable(self, peers: int) -> Sequence[int] | None:
        """Of a cohort of so many peers those that may be deployed; None: any that learns."""
        return None

    @staticmethod
    def of(module: nn.Module) -> Loss:
        """The module with the whole interface of a loss; what a plain ``nn.Module`` lacks has its default."""
        return module if isinstance(module, Loss) else cast(Loss, _Completed(module))


def _finite(outputs: Outputs, targets: Tensor) -> Outputs:
    """The outputs with finite logits for classes that are masked by -inf, in this pass and in others."""
    run = outputs.run

    def again(peer: int, images: Tensor, training: bool = True) -> Tensor:
        assert run is not None  # noqa: S101
        return finite(run(peer, images, training=training), targets)

    return replace(outputs, logits=finite(outputs.logits, targets), run=None if run is None else again)


def _placed(values: Tensor, outputs: Outputs, all: bool = False) -> Tensor:
    """``(L,)`` or ``(P,)`` -> ``(P,)``; 0 for peers that do not learn, unless ``all`` were given and are to stay."""
    if len(values) != outputs.peers:
        return spread(values, outputs)
    return values if all else spread(learning(values, outputs), outputs)


class _Completed:
    """A plain module as a loss: its own attributes come first, then the defaults of :class:`Loss`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.module(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name, None) or getattr(_DEFAULTS, name)


_DEFAULTS = Loss()
