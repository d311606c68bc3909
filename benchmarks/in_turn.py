"""Peers one after the other in a step: less memory for their activations, for one more forward pass of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.results import Section, ratios
from benchmarks.settings import Settings, spelled
from benchmarks.timing import Case, fixed, interleave
from benchmarks.work import OPTIM, batch_of, joint_step, plain_steps, repeated
from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Batch, Outputs, total
from metamixer.losses import DML
from metamixer.mixers import NoMix

PEERS = 4
JOINT, IN_TURN, RECOMPUTED, PLAIN = "joint step", "in turn", "joint step, checkpointing", f"{PEERS} plain steps"


def measure(settings: Settings) -> list[Section]:
    """Time of four peers with DML, one section for each network in fp32."""
    return [times(settings, name) for name in settings.networks if name in ("resnet32", "timm:resnet18")] or [
        times(settings, settings.networks[0])
    ]


def times(settings: Settings, name: str) -> Section:
    """A step of four peers by each way, and four plain steps."""
    batch = batch_of(settings, settings.shape(name), companions=False)
    steps = {way: steps_of(settings, name, way, batch, "32") for way in (PLAIN, JOINT, IN_TURN, RECOMPUTED)}
    cases = [Case(way, fixed(repeated(step, 1)), items=len(batch)) for way, step in steps.items()]
    measured, missing = interleave(cases, settings.rounds, settings.where)
    figures = ratios(measured, [(way, PLAIN, 1.0, "") for way in (JOINT, IN_TURN, RECOMPUTED)])
    return Section(f"peers in turn: {PEERS} x {name}, {spelled('32')}", measured, figures, missing)


def steps_of(settings: Settings, name: str, way: str, batch: Batch, precision: str) -> Callable[[int], object]:
    """One step of four networks, by the name of a way."""
    networks = [settings.network(name) for _ in range(PEERS)]
    if way == PLAIN:
        plain = plain_steps(networks, batch, settings, precision)
        return lambda seed: plain()
    if way == IN_TURN:
        return step_in_turn(networks, batch, settings, precision)
    cohort = Cohort(networks, checkpointing=way == RECOMPUTED)
    return joint_step(cohort, NoMix(), DML(), batch, settings, precision)


def step_in_turn(
    networks: Sequence[nn.Module], batch: Batch, settings: Settings, precision: str
) -> Callable[[int], object]:
    """Logits of all peers without a graph, then forward and backward of one peer at a time.

    The gradients are those of the joint step where a loss takes the other peers' logits as constants, as DML does.
    Batch norm's running statistics see each batch twice: what was tried here is the cost.
    """
    cohort, loss = Cohort(networks), DML()
    optimizer = OPTIM.build(cohort, loss)
    targets = nn.functional.one_hot(batch.labels, settings.classes).float()

    def step(seed: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), settings.autocast(precision):
            fixed_logits = torch.stack([network(batch.images) for network in networks])
        for index, network in enumerate(networks):
            with settings.autocast(precision):
                logits = [*fixed_logits]
                logits[index] = network(batch.images)
                terms = loss(Outputs(torch.stack(logits)), targets)
            total({key: term[index] for key, term in terms.items()}).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
