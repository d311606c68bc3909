"""Tables of robustness and localization, with those of the baseline."""

from __future__ import annotations

from statistics import fmean

from metamixer.core.text import counted
from metamixer.evaluation.localization.localize import Located
from metamixer.evaluation.report import Report
from metamixer.evaluation.robustness.robustness import Robustness
from metamixer.report.network_tables import titled
from metamixer.report.tables import Cell, Table, gain, level, matrix, share


def robustness(found: Report, base: Report | None = None) -> list[Table]:
    """Accuracy under corruptions and attacks, by network and by kind; ``base`` is the evaluation of the baseline."""
    if found.robustness is None:
        return []
    made = [_overview(found, found.robustness, base)]
    corruptions = found.robustness.corruptions
    if corruptions is not None and corruptions.kinds:
        names = list(dict.fromkeys(name for by_name in corruptions.kinds.values() for name in by_name))
        rows = []
        for kind, by_name in corruptions.kinds.items():
            means = [_mean(by_name.get(name, ())) for name in names]
            rows.append((Cell(kind.replace("_", " ")), *(share(value, tone=_tone(value)) for value in means)))
        caption = "Accuracy under each kind of corruption, mean of the severities"
        note = "From CIFAR-10-C files." if corruptions.source == "files" else "Computed by metamixer, not CIFAR-10-C."
        made.append(Table(caption, ("corruption", *names), tuple(rows), note=note))
    return made


def _overview(found: Report, robust: Robustness, base: Report | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    attacks = robust.attacks
    columns = ["network", "clean", "corrupted", "lost", *(_attack(key, one.eps) for key, one in attacks.items())]
    for before, evaluation in (("", found), ("baseline ", base)):
        if evaluation is None or (own := evaluation.robustness) is None:
            continue
        means = own.corruptions.mean if own.corruptions else {}
        for one in evaluation.networks:
            under = [own.attacks[key].accuracy.get(one.name) if key in own.attacks else None for key in attacks]
            if means.get(one.name) is None and not any(value is not None for value in under):
                continue
            corrupted = means.get(one.name)
            plain = own.clean.get(one.name, one.accuracy)  # on the same images; older files lack it
            cells = [Cell(before + titled(one)), share(plain), share(corrupted), gain(corrupted, plain)]
            rows.append((*cells, *map(share, under)))
    note = "Lost: percentage points between clean and corrupted images, mean of all kinds and severities."
    note += " Attacks: each network is attacked by its own gradients." if attacks else ""
    on = "" if robust.images is None else f", {counted(robust.images, 'image')}"
    return Table(f"Accuracy under corruptions and attacks{on}", tuple(columns), tuple(rows), note=note)


def _attack(name: str, eps: float | None) -> str:
    return name if eps is None else f"{name}, ε {255 * eps:.3g}/255"


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _tone(value: float | None) -> str:
    return "" if value is None else f"r{level(value)}"


def localization(evaluation: Report, baseline: Report | None = None) -> list[Table]:
    """Localization by activation maps, compared with a box in the centre and the baseline of a run."""
    found, base = evaluation.localization, baseline.localization if baseline else None
    if found is None:
        return []
    overlaps = list(dict.fromkeys(key for one in found.networks for key in one.max_box_acc))
    rows = [_located(one.name, one, overlaps) for one in found.networks]
    rows += [_located(f"baseline {one.name}", one, overlaps) for one in (base.networks if base else ())]
    rows.append(_located("centre box (baseline)", found.centre_box, overlaps))
    columns = ("network", "MaxBoxAccV2", *(f"IoU ≥ {key}" for key in overlaps), "pointing", "energy")
    caption = f"Localization by {found.method or 'activation maps'} on {counted(found.images, 'image')} with boxes"
    note = (
        "MaxBoxAccV2: share of images whose box overlaps the true one enough, mean of the overlaps. Pointing: the "
        "maximum of the map is inside the box. Energy: the share of the map inside the box."
    )
    if base is not None and base.protocol != found.protocol:
        note += " The baseline was measured by another protocol of boxes: evaluate both with the same version."
    made = [Table(caption, columns, tuple(rows), note=note)]
    if found.map_agreement:
        names = [one.name for one in found.networks][: len(found.map_agreement)]
        caption = "Mean correlation of the maps of two peers"
        made.append(matrix(caption, names, found.map_agreement, shares=False, corner="peer"))
    return made


def _located(name: str, one: Located, overlaps: list[str]) -> tuple[Cell, ...]:
    boxes = [share(one.max_box_acc.get(key)) for key in overlaps]
    return (Cell(name), share(one.max_box_acc_v2, bar=True), *boxes, share(one.pointing), share(one.energy))
