"""SwitOKD, switchable online knowledge distillation (Qian, Wang, Yin, Hong, Wang, ECCV 2022, arXiv 2209.04996).

A teacher that is too far ahead of its student pauses, until the gap between their predictions is small enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metamixer.core.ranges import Positive, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, single, soft_cross_entropy

Form = Literal["auto", "pair", "1t2s", "2t1s"]
_PEERS = {"pair": (1, 1), "1t2s": (1, 2), "2t1s": (2, 1)}


@dataclass(eq=False, repr=False)
class SwitOKD(Loss):
    """Mutual learning of large and small peers; a large one pauses while it is too far ahead of a small one.

    For a teacher t and a student s, with means over the batch, ``G = ||p_s - p_t||_1``, ``d_s = ||p_s - y||_1``,
    ``d_t = ||p_t - y||_1`` and ``delta = d_s - exp(-d_t / (d_s + d_t)) d_t``. A pair is in expert mode if ``G > delta``
    and ``d_t < d_s``, else in learning mode:

    - a student: ``CE + sum over all other peers j of T^2 KL(p_j || p_s)``, in both modes;
    - a teacher: the same in learning mode, nothing in expert mode. With several students, the KL from a student counts
      if its pair is in learning mode, and the other terms count unless all pairs are in expert mode.

    The terms of a paused teacher are set to 0 on the device, without synchronization. Its batch statistics still
    change, as in the official code. Unlike there, momentum and weight decay still apply, because one optimizer updates
    all peers. A frozen peer takes part like the others and learns nothing.

    The official code for several networks uses exp(...) of one pair for the other pair as well; here each pair has its
    own, as in the formula. With soft targets, y is the soft target (our generalisation).

    Args:
        form: roles in the order of the peers, teachers first. ``pair``: a teacher and a student; ``1t2s``: a teacher
            and two students; ``2t1s``: two teachers and a student; ``auto`` (ours): the first peer is the teacher of
            all others.
        temperature: T of all softmaxes, including those of G and the distances. 1, as in the official code.
        weight: weight of the distillation. 1, as in the official code.

    >>> ahead, behind = [[3.0, 2.6, -9.0]], [[0.0, -9.0, 1.4]]  # the label is class 0
    >>> loss = SwitOKD()
    >>> terms = loss(Outputs(torch.tensor([ahead, behind])), torch.tensor([[1.0, 0.0, 0.0]]))
    >>> loss.watched["expert"].tolist(), terms["task"][0].item()
    ([1.0, 1.0], 0.0)
    """

    form: Form = "auto"
    temperature: Positive = 1.0
    weight: Weight = 1.0

    def deployable(self, peers: int) -> range:
        """The students."""
        return range(self._teachers(peers), peers)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats.

        ``watched["expert"]`` is ``(P,)``: the share of the pairs of a peer that are in expert mode.

        Raises:
            ValueError: the number of peers does not fit the form.
        """
        teachers = self._teachers(outputs.peers)
        expert = _expert(outputs.logits, targets, teachers, self.temperature)
        self.watched = {"expert": torch.cat((expert.mean(1), expert.mean(0)))}
        paused = torch.cat((expert.amin(1), expert.new_zeros(outputs.peers - teachers))) > 0
        pairs = divergence(outputs.logits[None], outputs.logits[:, None], self.temperature)  # [learns, teaches]
        silent = torch.cat((paused[:teachers, None].expand(-1, teachers), expert > 0), 1)
        silent = torch.cat((silent, silent.new_zeros(outputs.peers - teachers, outputs.peers)))
        silent = silent | torch.eye(outputs.peers, dtype=torch.bool, device=silent.device)  # nobody teaches itself
        task = soft_cross_entropy(outputs.logits, targets)
        terms = {
            "task": torch.where(paused, torch.zeros_like(task), task),
            "distill": self.weight * torch.where(silent, torch.zeros_like(pairs), pairs).sum(1),
        }
        return terms

    def _teachers(self, peers: int) -> int:
        if self.form == "auto":
            fine, teachers = peers >= 2, 1
        else:
            teachers, students = _PEERS[self.form]
            fine = peers == teachers + students
        if not fine:
            sizes = ", ".join(f"{form!r} for {sum(counts)}" for form, counts in _PEERS.items())
            raise ValueError(f"form={self.form!r} does not fit {peers} peers: expected {sizes}")
        return teachers


def _expert(logits: Tensor, targets: Tensor, teachers: int, temperature: float) -> Tensor:
    """``(P, B, C), (B, C)`` -> ``(teachers, students)``: 1 where a pair is in expert mode, else 0."""
    logits = single(logits.detach())
    predicted = (logits / temperature).softmax(-1)
    teacher, student = predicted[:teachers, None], predicted[None, teachers:]
    gap = (student - teacher).abs().sum(-1).mean(-1)
    off = (predicted - targets).abs().sum(-1).mean(-1)
    off_teacher, off_student = off[:teachers, None], off[None, teachers:]
    both = (off_teacher + off_student).clamp(min=torch.finfo(off.dtype).tiny)  # if both are 0: learning mode
    delta = off_student - (-off_teacher / both).exp() * off_teacher
    return ((gap > delta) & (off_teacher < off_student)).to(predicted.dtype)
