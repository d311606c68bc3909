"""Tables of robustness and localization, next to the baseline's."""

from __future__ import annotations

from statistics import fmean

from metamixer.evaluation.localization.localize import Located
from metamixer.report.network_tables import titled
from metamixer.report.read_runs import RunFiles
from metamixer.report.tables import Cell, Table, gain, level, matrix, share


def robustness(run: RunFiles) -> list[Table]:
    """Accuracy under corruptions and attacks, by network and by kind."""
    if run.evaluation is None or run.evaluation.robustness is None:
        return []
    made = [_overview(run)]
    found = run.evaluation.robustness.corruptions
    if found is not None and found.kinds:
        names = list(dict.fromkeys(name for by_name in found.kinds.values() for name in by_name))
        rows = []
        for kind, by_name in found.kinds.items():
            means = [_mean(by_name.get(name, ())) for name in names]
            rows.append((Cell(kind.replace("_", " ")), *(share(value, tone=_tone(value)) for value in means)))
        caption = "Accuracy under each kind of corruption, mean of the severities"
        made.append(Table(caption, ("corruption", *names), tuple(rows)))
    return made


def _overview(run: RunFiles) -> Table:
    rows: list[tuple[Cell, ...]] = []
    assert run.evaluation is not None  # noqa: S101
    assert run.evaluation.robustness is not None  # noqa: S101
    attacks = run.evaluation.robustness.attacks
    columns = ["network", "clean", "corrupted", "lost", *(_attack(key, one.eps) for key, one in attacks.items())]
    both = [("", run.evaluation), ("baseline ", run.baseline.evaluation if run.baseline else None)]
    for before, evaluation in both:
        if evaluation is None or evaluation.robustness is None:
            continue
        robust = evaluation.robustness
        means = robust.corruptions.mean if robust.corruptions else {}
        for one in evaluation.networks:
            under = [robust.attacks[key].accuracy.get(one.name) if key in robust.attacks else None for key in attacks]
            if means.get(one.name) is None and not any(value is not None for value in under):
                continue
            corrupted = means.get(one.name)
            plain = robust.clean.get(one.name, one.accuracy)  # of the same images; older files do not say
            cells = [Cell(before + titled(one)), share(plain), share(corrupted), gain(corrupted, plain)]
            rows.append((*cells, *map(share, under)))
    note = "Lost: percentage points between images as they are and corrupted ones, mean of all kinds and severities."
    images = run.evaluation.robustness.images
    on = "" if images is None else f", {images:,} images"
    return Table(f"Accuracy under corruptions and attacks{on}", tuple(columns), tuple(rows), note=note)


def _attack(name: str, eps: float | None) -> str:
    return name if eps is None else f"{name}, ε {255 * eps:.3g}/255"


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _tone(value: float | None) -> str:
    return "" if value is None else f"r{level(value)}"


def localization(run: RunFiles) -> list[Table]:
    """How well activation maps find the objects, beside a box in the middle and the baseline."""
    found = run.evaluation.localization if run.evaluation else None
    if found is None:
        return []
    base = run.baseline.evaluation.localization if run.baseline and run.baseline.evaluation else None
    overlaps = list(dict.fromkeys(key for one in found.networks for key in one.max_box_acc))
    rows = [_located(one.name, one, overlaps) for one in found.networks]
    rows += [_located(f"baseline {one.name}", one, overlaps) for one in (base.networks if base else ())]
    rows.append(_located("a box in the middle", found.centre_box, overlaps))
    columns = ("network", "MaxBoxAccV2", *(f"IoU ≥ {key}" for key in overlaps), "pointing", "energy")
    caption = f"Localization by {found.method or 'activation maps'} on {found.images:,} images with boxes"
    note = (
        "MaxBoxAccV2: share of images whose box overlaps the true one enough, mean of the overlaps. Pointing: the "
        "map's highest place is in the box. Energy: the share of the map that is in the box."
    )
    if base is not None and base.protocol != found.protocol:
        note += " The baseline was measured by another protocol of boxes: evaluate both with the same version."
    made = [Table(caption, columns, tuple(rows), note=note)]
    if found.map_agreement:
        names = [one.name for one in found.networks][: len(found.map_agreement)]
        caption = "Mean correlation of two peers' maps"
        made.append(matrix(caption, names, found.map_agreement, shares=False, corner="peer"))
    return made


def _located(name: str, one: Located, overlaps: list[str]) -> tuple[Cell, ...]:
    boxes = [share(one.max_box_acc.get(key)) for key in overlaps]
    return (Cell(name), share(one.max_box_acc_v2, bar=True), *boxes, share(one.pointing), share(one.energy))
