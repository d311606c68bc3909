"""Tables per class: recall, and confusions."""

from __future__ import annotations

import math

from metamixer.core.text import counted
from metamixer.evaluation.report import Report
from metamixer.metrics.network_scores import Score
from metamixer.report.network_tables import titled, where
from metamixer.report.tables import Cell, Table, gain, level, share

MOST_CLASSES = 30  # the largest readable confusion matrix
_MOST_CONFUSIONS = 25


def of_classes(found: Report, base: Report | None = None) -> tuple[Score, Score | None] | None:
    """The network whose classes are shown, and that of the baseline if it has the same classes."""
    main = found.main
    if not found.classes or len(main.per_class) != len(found.classes):
        return None
    other = base.main if base and base.classes == found.classes else None
    return main, other if other and len(other.per_class) == len(found.classes) else None


def square(found: Report, one: Score) -> bool:
    """Whether a network has a confusion matrix of all classes."""
    return bool(found.classes) and [len(row) for row in one.confusion] == [len(found.classes)] * len(found.classes)


def classes(found: Report, base: Report | None = None, most: int | None = None) -> Table | None:
    """The accuracy of each class: of the deployed network, of the baseline with the gain, and of the other networks.

    Args:
        found, base: evaluations of a run and of its baseline.
        most: number of classes to show, those with the lowest accuracies; None: all.
    """
    known = of_classes(found, base)
    if known is None:
        return None
    main, other = known
    counts = [sum(row) for row in main.confusion] if len(main.confusion) == len(found.classes) else []
    rest = [one for one in found.networks if one is not main and len(one.per_class) == len(found.classes)]
    columns = ["class", *(["images"] if counts else []), titled(main), *(["baseline", "gain"] if other else [])]
    rows = []
    shown = list(range(len(found.classes)))
    if few := most is not None and len(shown) > most:
        shown = sorted(shown, key=lambda k: math.inf if (recall := main.per_class[k]) is None else recall)[:most]
    for k in shown:
        cells = [Cell(found.classes[k]), *([Cell(f"{counts[k]:,}", counts[k])] if counts else [])]
        cells.append(share(main.per_class[k], bar=True))
        if other:
            cells += [
                share(other.per_class[k]),
                gain(main.per_class[k], other.per_class[k], counts[k] if counts else 0),
            ]
        rows.append((*cells, *(share(one.per_class[k]) for one in rest)))
    caption = f"Accuracy of each class, {where(found)}"
    caption += f": the {most} lowest of {len(found.classes)} for {titled(main)}" if few else ""
    return Table(caption, (*columns, *map(titled, rest)), tuple(rows))


def averages(found: Report) -> Table | None:
    """The class averages of each network with equal weights of the classes, and its lowest recall."""
    rows: list[tuple[Cell, ...]] = []
    strong: set[int] = set()
    for one in found.networks:
        pairs = zip(one.per_class, found.classes, strict=False)
        known = [(recall, name) for recall, name in pairs if recall is not None]
        if known:
            lowest, name = min(known, key=lambda pair: pair[0])
            cells = (share(one.balanced_accuracy, found.images, bar=True), share(one.macro_f1, found.images))
            strong |= {len(rows)} if one.kind == "deployed" else set()
            rows.append((Cell(titled(one)), *cells, share(lowest), Cell(name)))
    if not rows:
        return None
    note = (
        "Balanced accuracy: the mean recall of the classes. Macro F1: their mean F1 score. Both give all classes the "
        "same weight."
    )
    columns = ("network", "balanced accuracy", "macro F1", "lowest recall", "of class")
    caption = f"Averages over the classes, {where(found)}"
    return Table(caption, columns, tuple(rows), frozenset({4}), frozenset(strong), note=note)


def confusion(found: Report, one: Score) -> Table | None:
    """The confusion matrix of a network; with many classes only the largest confusions."""
    if not square(found, one):
        return None
    if len(found.classes) > MOST_CLASSES:
        return _confusions(found, one)
    rows = []
    for true, counts in enumerate(one.confusion):
        of_class = sum(counts) or 1
        cells = [Cell(found.classes[true])]
        for named, count in enumerate(counts):
            part = count / of_class
            # The square root makes errors visible, which are few compared with correct predictions.
            step = level(part if named == true else math.sqrt(part))
            hint = f"{counted(count, 'image')} of {found.classes[true]} predicted as {found.classes[named]}"
            tone = f"{'r' if named == true else 'w'}{step}" if count else "none"
            cells.append(Cell(f"{count:,}", count, tone, hint=hint))
        rows.append(tuple(cells))
    caption = f"Confusion matrix of {titled(one)}: rows are the true classes, columns the predictions; images"
    return Table(caption, ("true class", *found.classes), tuple(rows), kind="heat")


def _confusions(found: Report, one: Score) -> Table:
    """The largest counts off the diagonal."""
    pairs = [
        (count, true, named)
        for true, counts in enumerate(one.confusion)
        for named, count in enumerate(counts)
        if count and true != named
    ]
    rows = []
    for count, true, named in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:_MOST_CONFUSIONS]:
        part = count / (sum(one.confusion[true]) or 1)
        rows.append((Cell(found.classes[true]), Cell(found.classes[named]), Cell(f"{count:,}", count), share(part)))
    caption = f"Largest confusions of {titled(one)}, {len(found.classes)} classes"
    columns = ("true class", "predicted", "images", "of the true class")
    return Table(caption, columns, tuple(rows), words=frozenset({1}))
