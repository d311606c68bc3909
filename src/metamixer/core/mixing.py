"""Mix pairs of samples: blend whole samples, or paste a box. Deterministic: all random values are arguments."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _format(x: Tensor) -> torch.memory_format:
    last = _CHANNELS_LAST.get(x.ndim, torch.contiguous_format)
    return torch.contiguous_format if x.is_contiguous() or not x.is_contiguous(memory_format=last) else last


def _rows(x: Tensor, order: torch.memory_format) -> Tensor:
    """``x`` as ``(B, F)`` rows in memory order; a view if ``x`` already has that order."""
    return (x if order == torch.contiguous_format else x.movedim(1, -1)).reshape(len(x), -1)


def _gather(x: Tensor, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x[partner]`` in the memory format of ``x``, a writable view of its rows, and the rows of ``x``.

    The first is not a view of the rows: autograd forbids in-place activations on a view that a custom function returns.
    """
    order = _format(x)
    rows = _rows(x, order)
    gathered = torch.empty_like(x, memory_format=order)
    into = _rows(gathered, order)
    torch.index_select(rows, 0, partner, out=into)
    return gathered, into, rows


class _Blend(torch.autograd.Function):
    """``lam * x + other * x[partner]`` in one pass over memory, forward and backward; ``other`` None is ``1 - lam``.

    A custom function because ``x[partner]`` of a channels-last activation is in the default format, which slows down
    every later layer, and because autograd computes the backward of a gather as a scatter, several times slower on a
    CPU. If the partners are a permutation, the backward is a gather as well, computed by this same function, so it has
    derivatives of every order. It has no ``setup_context``, which costs 0.1 ms per step; function transforms use
    :func:`_plain` instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: Tensor, other: Tensor | None, partner: Tensor, permutes: bool) -> Tensor:
        ctx.permutes = permutes
        ctx.save_for_backward(lam, other, partner)
        mixed, into, rows = _gather(x, partner)
        if other is None:
            into.lerp_(rows, lam)
        else:
            into.mul_(other).addcmul_(rows, lam)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        lam, other, partner = ctx.saved_tensors
        if not ctx.permutes:
            shape = (-1, *[1] * (grad.ndim - 1))
            given = 1 - lam if other is None else other
            found = (grad * lam.reshape(shape)).index_add(0, partner, grad * given.reshape(shape))
            return found.contiguous(memory_format=_format(grad)), None, None, None, None
        inverse = torch.empty_like(partner)
        inverse[partner] = torch.arange(len(partner), dtype=partner.dtype, device=partner.device)
        if lam.ndim:  # a gradient row comes back with the share that it had in the mixed sample
            other = (1 - lam if other is None else other)[inverse]
        return _Blend.apply(grad, lam, other, inverse, True), None, None, None, None  # type: ignore[no-untyped-call]


def _plain(x: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    """The same with plain PyTorch operations: differentiable with respect to ``lam``, and usable in ``torch.func``."""
    share = lam.reshape(-1, *[1] * (x.ndim - 1)) if lam.ndim else lam
    mixed = torch.lerp(x.index_select(0, partner), x, share)
    return mixed.contiguous(memory_format=_format(x))


def _transformed() -> bool:
    """Whether a function transform of ``torch.func`` is active, such as ``grad`` or ``vmap``."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def _permutes(partner: Tensor) -> bool:
    """Whether the partners are a permutation. Checked on the CPU only: on a GPU the check would synchronize."""
    if partner.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return len(set(partner.tolist())) == len(partner)


def blend(x: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    """``lam * x + (1 - lam) * x[partner]``, keeping dtype and memory format.

    Differentiable to every order with respect to ``x``, and to ``lam`` if ``lam`` requires a gradient.

    Args:
        x: ``(B, ...)`` floating point.
        lam: 0-d or ``(B,)``, the share that a sample keeps, in [0, 1]. It is rounded to the dtype of ``x``.
        partner: ``(B,)`` int64 in 0 ... B-1. The backward pass is fastest with a permutation on the CPU.

    Raises:
        ValueError: ``x`` has an integer dtype, or ``lam`` or ``partner`` has another length.
    """
    check_rows(x, lam, partner)
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"a tensor of {x.dtype} cannot be blended; accepted: floating point, for images normalised")
    share, other = lam.to(x.device, x.dtype), partner.to(x.device)
    if lam.requires_grad or _transformed():
        return _plain(x, share, other)
    permutes = x.requires_grad and _permutes(partner)
    share = share if share.ndim == 0 else share[:, None]
    return cast(Tensor, _Blend.apply(x, share, None, other, permutes))  # type: ignore[no-untyped-call]


def check_rows(x: Tensor, lam: Tensor | None, partner: Tensor | None) -> None:
    """Raise ValueError unless ``lam`` and ``partner``, if given, have one entry for each row of ``x``."""
    size = x.shape[:1]
    if (partner is not None and partner.shape != size) or (lam is not None and lam.ndim and lam.shape != size):
        found = " and ".join(
            f"{name} of shape {tuple(each.shape)}"
            for name, each in (("lam", lam), ("partner", partner))
            if each is not None
        )
        raise ValueError(f"{found} for a tensor of shape {tuple(x.shape)}; accepted: one for each of its rows")


def box_share(low: Tensor, high: Tensor, size: tuple[int, ...]) -> Tensor:
    """The share of ``size`` that a box covers: ``(S,)`` or ``(B, S)`` bounds -> 0-d or ``(B,)`` float64.

    >>> box_share(torch.tensor([0, 2]), torch.tensor([4, 4]), (8, 8))
    tensor(0.1250, dtype=torch.float64)
    """
    share = torch.ones((), dtype=torch.float64, device=low.device)
    for axis, length in enumerate(size):
        share = share * ((high[..., axis] - low[..., axis]).double() / length)
    return share


def box_mask(low: Tensor, high: Tensor, size: tuple[int, ...], device: torch.device) -> Tensor:
    """A mask, True inside the box: ``(B, S)`` or ``(1, S)`` bounds -> ``(B, 1, *size)`` or ``(1, 1, *size)``."""
    low, high = low.to(device), high.to(device)
    mask = torch.ones((len(low), *[1] * (len(size) + 1)), dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        shape = (-1, *[1] * (len(size) + 1))
        position = torch.arange(length, device=device).view(length, *[1] * (len(size) - 1 - axis))
        mask = mask & (position >= low[:, axis].view(shape)) & (position < high[:, axis].view(shape))
    return mask


def paste(x: Tensor, source: Tensor, partner: Tensor | None, low: Tensor, high: Tensor) -> Tensor:
    """``x`` with a box of ``source[partner]`` in each sample (of ``source``, row by row, if ``partner`` is None).

    Args:
        x: ``(B, C, *size)`` with S spatial axes.
        source: ``(B, C, *size)``; may be ``x``.
        partner: ``(B,)`` int64 or None.
        low, high: ``(S,)`` for one box, or ``(B, S)`` for one box per sample; ``low <= position < high``. ``(S,)``
            bounds are read on the host and should be on the CPU: pasting by slices is fastest. ``(1, S)`` bounds stay
            on their device and are applied as a mask.

    Raises:
        ValueError: ``partner`` and ``x`` differ in length.
    """
    check_rows(x, None, partner)
    if low.ndim == 1:
        sides = [slice(int(a), int(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        inside: Any = (..., *sides)
        patch = source[inside]
        mixed = x.clone(memory_format=torch.preserve_format)
        mixed[inside] = patch if partner is None else patch.index_select(0, partner.to(x.device))
        return mixed
    mask = box_mask(low, high, tuple(x.shape[2:]), x.device)
    other = source if partner is None else source.index_select(0, partner.to(x.device))
    return torch.where(mask, other, x).contiguous(memory_format=_format(x))
