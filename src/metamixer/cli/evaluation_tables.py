"""An evaluation as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from rich.text import Text

from metamixer.cli.console import console, say, table, titled
from metamixer.core.text import clean, percent
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.report import Report
from metamixer.evaluation.robustness.robustness import Robustness
from metamixer.metrics.network_scores import Score

_MOST_CLASSES = 12


def show(found: Report, title: str) -> None:
    """Print a full report: a row for each network, how the peers differ, and what else was measured."""
    _networks(found.networks, found.images, f"{found.images:,} {title}")
    if found.split == "val" and any(each.temperature for each in found.networks):
        say("The temperatures were fitted on these very images: the metrics after T are optimistically biased.")
    _classes(found)
    _peers(found)
    if found.robustness:
        _robustness(found.robustness)
    if found.localization:
        _localization(found.localization)


def _networks(networks: Sequence[Score], images: int, title: str) -> None:
    top5 = any(each.top5 is not None for each in networks)
    scaled = any(each.calibrated for each in networks)
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL", "Brier", "ECE", "gap"]
    made = table([*columns, *(["T", "NLL after T", "ECE after T"] if scaled else [])])
    for each in networks:
        cells = [Text(clean(each.name)), _share(each.accuracy, images)]
        if top5:
            cells.append(_share(each.top5, images))
        cells += [_number(each.nll), _number(each.brier), _points(each.ece), _points(each.gap, "+")]
        if scaled:
            after = each.calibrated
            cells += [_number(each.temperature), _number(after.nll if after else None)]
            cells.append(_points(after.ece if after else None))
        made.add_row(*cells, style="bold" if each.kind == "ensemble" else "")
    console().print(titled(title, made))
    say("ECE and gap (mean confidence - accuracy) are in percentage points; a gap above 0 is overconfident.")


def _classes(found: Report) -> None:
    """The recall of each class, the least first where there are many, and the averages over the classes."""
    networks, main = found.networks, found.main
    if not main.per_class:
        return
    made = table(["class", "images", *(clean(each.name) for each in networks)])
    counts = [sum(row) for row in main.confusion]
    shown = list(range(len(counts)))
    if len(shown) > _MOST_CLASSES:
        known = [(recall, k) for k, recall in enumerate(main.per_class) if recall is not None]
        shown = [k for _, k in sorted(known)[:_MOST_CLASSES]]
    for k in shown:
        shares = (_share(each.per_class[k], 0) for each in networks)
        made.add_row(Text(clean(found.classes[k])), f"{counts[k]:,}", *shares)
    made.add_section()
    images = found.images
    made.add_row("balanced accuracy", f"{images:,}", *(_share(each.balanced_accuracy, images) for each in networks))
    made.add_row("macro F1", f"{images:,}", *(_share(each.macro_f1, images) for each in networks))
    some = "" if len(counts) <= _MOST_CLASSES else f": the {_MOST_CLASSES} lowest of {len(counts)} for {main.name}"
    console().print(titled(f"recall by class{some}", made))


def _peers(found: Report) -> None:
    alike, names = found.diversity, [each.name for each in found.peers]
    if alike is None or alike.ensemble_gain is None:
        return
    say(
        f"All peers name the same class for {100 * found.agreement:.1f} % of the images; the ensemble is "
        f"{100 * alike.ensemble_gain:+.1f} points from the mean of the peers."
    )
    if len(names) < 2:
        return
    made = table(["same class, KL in nats", *(clean(name) for name in names)])
    for name, same, far in zip(names, alike.pairwise_agreement, alike.pairwise_kl, strict=True):
        pairs = zip(names, same, far, strict=True)
        cells = ["" if other == name else f"{_points(share)} %  {_text(nats)}" for other, share, nats in pairs]
        made.add_row(Text(clean(name)), *cells)
    console().print(titled("how the peers differ: KL(row || column)", made))


def _localization(found: Localization) -> None:
    networks = found.networks
    overlaps = list(found.centre_box.max_box_acc)
    parts = [f"IoU {each}" for each in overlaps]
    made = table(["network", "MaxBoxAccV2", *parts, "pointing game", "energy in box"])
    for each in (*networks, replace(found.centre_box, name="centre box (baseline)")):
        shares = [each.max_box_acc_v2, *(each.max_box_acc[key] for key in overlaps), each.pointing, each.energy]
        made.add_row(Text(clean(each.name)), *(_share(share, found.images) for share in shares))
    console().print(
        titled(f"whether the activation maps ({found.method}) find the objects of {found.images:,} images", made)
    )
    pairs = [value for row, values in enumerate(found.map_agreement) for value in values[:row] if value is not None]
    if pairs:
        say(f"Maps of two peers correlate by {sum(pairs) / len(pairs):.2f} on average.")
    for note in found.notes:
        say(f"note: {clean(note)}")


def _robustness(found: Robustness) -> None:
    images, names = found.images or 0, list(found.clean)
    if found.corruptions:
        mean = found.corruptions.mean
        made = table(["mean of 5 severities", *(clean(name) for name in names)])
        for kind, shares in found.corruptions.kinds.items():
            means = [fmean(value or 0 for value in shares[name]) for name in names]
            made.add_row(kind.replace("_", " "), *(_share(value, images) for value in means))
        made.add_section()
        made.add_row("all corruptions", *(_share(mean[name], images) for name in names), style="bold")
        made.add_row("clean", *(_share(found.clean[name], images) for name in names))
        files = found.corruptions.source == "files"
        source = "from files" if files else "made here, not CIFAR-10-C itself"
        console().print(titled(f"accuracy on {images:,} corrupted images ({source})", made))
    if found.attacks:
        made = table(["attack", *(clean(name) for name in names)])
        made.add_row("none", *(_share(found.clean[name], images) for name in names))
        for attack, result in found.attacks.items():
            title = f"{attack}, {255 * result.eps:.0f}/255"
            made.add_row(title, *(_share(result.accuracy[name], images) for name in names))
        console().print(titled(f"accuracy on {images:,} images, each network attacked through itself", made))


def _share(share: float | None, images: int) -> Text:
    return Text("" if share is None else percent(share, images))


def _number(value: float | None) -> Text:
    return Text(_text(value))


def _text(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _points(share: float | None, sign: str = "") -> Text:
    return Text("" if share is None else f"{100 * share:{sign}.1f}")
