"""One step: peers that train together against the same networks side by side, mixers, losses, threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from benchmarks.results import Measured, Missing, Section, ratios
from benchmarks.settings import Settings, spelled
from benchmarks.timing import Case, Work, fixed, interleave
from benchmarks.work import batch_of, joint_step, plain_steps, repeated, set_up
from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.cohort.stages import find_stages
from metamixer.config.registry import LOSSES, MIXERS, make
from metamixer.core.types import Batch
from metamixer.losses import DML
from metamixer.mixers import NoMix

JOINT = "DML, 2 peers"
_DRAWN = (
    "Mixers do not act alike with every draw: each unit is the mean over {} fixed seeds, the same in every round. "
    "Companions come as tensors."
)


def measure(settings: Settings) -> list[Section]:
    """Three sections for each network and precision: peers, mixers, losses."""
    sections = []
    for name in settings.networks:
        for precision in settings.precisions:
            sections += [part(settings, name, precision) for part in (peers, mixers, losses)]
    return sections


def _title(what: str, settings: Settings, name: str, precision: str) -> str:
    shape = settings.shape(name)
    return f"{what}: {name}, {spelled(precision)}, {shape.batch} x {shape.side}x{shape.side}"


def _steps(settings: Settings) -> int:
    return 1 if settings.quick else 2


def peers(settings: Settings, name: str, precision: str) -> Section:
    """1, 2 and 4 plain steps, the joint steps of 2 and 4 peers, and 2 peers in the fastest way."""
    shape, times = settings.shape(name), _steps(settings)
    batch = batch_of(settings, shape, companions=False)
    plain = [settings.network(name) for _ in range(4)]
    cases = [
        Case(f"plain x {count}", fixed(_times(plain_steps(plain[:count], batch, settings, precision), times)),
             times, shape.batch)
        for count in (1, 2, 4)
    ]  # fmt: skip
    missing = []
    beside, faster = settings.fastest
    options: dict[str, dict[str, Any]] = {JOINT: {}, "DML, 4 peers": {}, f"{JOINT}, {beside}": faster}
    for title, more in options.items():
        networks = [settings.network(name) for _ in range(4 if "4" in title else 2)]
        try:
            cohort = Cohort(networks, **more)
        except (TypeError, ValueError) as error:
            missing.append(Missing(title, str(error)))
            continue
        step = joint_step(cohort, NoMix(), DML(), batch, settings, precision)
        cases.append(Case(title, fixed(repeated(step, times)), times, shape.batch))
    measured, failed = interleave(cases, settings.rounds, settings.where)
    pairs = [
        (JOINT, "plain x 2", 1.0, "two"),
        ("DML, 4 peers", "plain x 4", 1.0, "four"),
        (f"{JOINT}, {beside}", JOINT, 1.0, "threads" if precision == "bf16" and beside == "threads" else ""),
        (f"{JOINT}, {beside}", "plain x 2", 1.0, ""),
    ]
    return Section(_title("peers", settings, name, precision), measured, ratios(measured, pairs), (*missing, *failed))


def mixers(settings: Settings, name: str, precision: str) -> Section:
    """Every mixer of the table, with DML on two peers."""
    shape, draws = settings.shape(name), 2 if settings.quick else 8
    batch = batch_of(settings, shape)
    cohort = Cohort([settings.network(name) for _ in range(2)])
    cases = []
    for title in MIXERS:
        mixer = make({"name": title}, MIXERS, "mixer")
        step = joint_step(cohort, mixer, DML(), batch, settings, precision)
        cases.append(Case(title, fixed(repeated(step, draws)), draws, shape.batch))
    measured, missing = interleave(cases, settings.rounds, settings.where)
    pairs = [
        (each.name, "none", 1.0, "metamixer" if each.name == "metamixer" else "") for each in _but(measured, "none")
    ]
    return Section(
        _title("mixers", settings, name, precision), measured, ratios(measured, pairs), missing,
        (_DRAWN.format(draws),),
    )  # fmt: skip


def losses(settings: Settings, name: str, precision: str) -> Section:
    """Every loss of the table, on two peers that learn, with nothing mixed."""
    shape, times = settings.shape(name), _steps(settings)
    cases, missing = [], []
    for title in LOSSES:
        try:
            cohort, batch = _peers_for(title, settings, name)
            loss: nn.Module = set_up(make({"name": title}, LOSSES, "loss"), cohort, batch)
            step = joint_step(cohort, NoMix(), loss, batch, settings, precision)
        except Exception as error:  # a loss may need settings or networks that these are not
            missing.append(Missing(title, f"not with its defaults on these peers: {error}"))
            continue
        cases.append(Case(title, fixed(repeated(step, times)), times, shape.batch))
    measured, failed = interleave(cases, settings.rounds, settings.where)
    pairs = [(each.name, "dml", 1.0, "") for each in _but(measured, "dml")]
    return Section(_title("losses", settings, name, precision), measured, ratios(measured, pairs), (*missing, *failed))


def _peers_for(loss: str, settings: Settings, name: str) -> tuple[Cohort, Batch]:
    """Two peers with what the loss needs: a trunk, shadows, a teacher, a view for each."""
    needs = getattr(LOSSES[loss], "needs", ())
    shape = settings.shape(name)
    batch = batch_of(settings, shape, companions=False)
    networks = [settings.network(name) for _ in range(3 if "teacher" in needs else 2)]
    if "trunk" in needs:
        share_trunk(networks, find_stages(networks[0])[-2])
    cohort = Cohort(networks, frozen=[2] if "teacher" in needs else [], shadows="shadows" in needs)
    if "views" in needs:
        other = batch_of(settings, shape, companions=False, seed=1).images
        batch = replace(batch, views=(batch.images, other))
    return cohort, batch


def _but(measured: tuple[Measured, ...], name: str) -> list[Measured]:
    return [each for each in measured if each.name != name]


def _times(step: Work, times: int) -> Work:
    return repeated(lambda seed: step(), times)
