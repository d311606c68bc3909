"""Tables of the networks of a run, and of several runs: accuracies, calibration, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from metamixer.core.text import counted
from metamixer.evaluation.report import Report
from metamixer.metrics.chance import chance_note
from metamixer.metrics.network_scores import Score
from metamixer.report.read_runs import RunFiles
from metamixer.report.tables import Cell, Table, gain, known, matrix, number, points, share


def networks(run: RunFiles) -> Table | None:
    """Metrics of the peers and the ensemble after the last epoch, and of the deployed network, with the baseline."""
    ended = run.ended
    if ended is None or not ended.last_epoch.peers:
        return None
    images, deployed = ended.last_epoch.images, ended.deployed
    base = run.baseline.ended if run.baseline else None
    rows = [(score.name, score) for score in ended.last_epoch.rows]
    others: list[Score | None] | None = None
    if base is not None:
        missing = [None] * max(0, len(ended.last_epoch.peers) - len(base.last_epoch.peers))
        others = [*base.last_epoch.peers[: len(ended.last_epoch.peers)], *missing, base.last_epoch.ensemble]
    if deployed is not None:
        when = f", epoch {ended.best['epoch']}" if isinstance(ended.best.get("epoch"), int) else ""
        rows.append((f"deployed: {deployed.name}{when}", deployed))
        others = None if others is None or base is None else [*others, base.deployed]
    split = "test" if ended.split == "test" else "validation"
    what = counted(images, f"{split} image")
    caption = f"{what}, after the last epoch; the deployed network as it was when it was chosen"
    strong = [len(rows) - 1] if deployed is not None else []
    return scores(caption, rows, images, others, strong=strong, note=_chance(run))


def scores(
    caption: str,
    rows: Sequence[tuple[str, Score]],
    images: int,
    others: Sequence[Score | None] | None = None,
    *,
    strong: Sequence[int] = (),
    note: str = "",
) -> Table:
    """Accuracy, top-5 if available, and NLL of networks; with ``others`` also accuracy of a baseline and gain."""
    top5 = any(score.top5 is not None for _, score in rows)
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL"]
    made = []
    for place, (name, score) in enumerate(rows):
        cells = [Cell(name), share(score.accuracy, images, bar=True)]
        cells += [share(score.top5, images)] if top5 else []
        cells.append(number(score.nll))
        if others is not None:
            other = others[place]
            before = other.accuracy if other else None
            cells += [share(before, images), gain(score.accuracy, before, images)]
        made.append(tuple(cells))
    columns += ["baseline", "gain"] if others is not None else []
    return Table(caption, tuple(columns), tuple(made), strong=frozenset(strong), note=note)


def _chance(run: RunFiles) -> str:
    note = "NLL: negative log-likelihood, lower is better."
    ended, base = run.ended, run.baseline.ended if run.baseline else None
    if ended is None or base is None:
        return note
    mine, other = ended.last_epoch.ensemble.accuracy, base.last_epoch.ensemble.accuracy
    images = ended.last_epoch.images
    if not known(mine) or not known(other) or not images:
        return note
    return (
        f"{note} Baseline: the same peers and data with cross-entropy alone and no mixing. The gain is in percentage "
        f"points; {chance_note(mine, other, images)} (Fisher's exact test of the ensembles)."
    )


def where(evaluation: Report) -> str:
    """The images and the checkpoint of an evaluation."""
    split = {"test": "test", "val": "validation"}.get(evaluation.split, evaluation.split)
    when = {"last": "the last checkpoint", "best": "the checkpoint of the best validation accuracy"}
    return f"{counted(evaluation.images, f'{split} image')}, {when.get(evaluation.checkpoint, evaluation.checkpoint)}"


def titled(one: Score) -> str:
    """The name of a network, with its kind unless the name includes it."""
    return one.name if one.kind in ("peer", "ensemble") or one.kind in one.name else f"{one.kind}: {one.name}"


def calibration(found: Report) -> Table:
    """Accuracy and the quality of the probabilities, before and after temperature scaling."""
    scaled = any(one.calibrated is not None for one in found.networks)
    top5 = any(one.top5 is not None for one in found.networks)
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL", "Brier", "ECE", "gap"]
    columns += ["temperature", "NLL, scaled", "ECE, scaled"] if scaled else []
    rows = []
    for one in found.networks:
        cells = [Cell(titled(one)), share(one.accuracy, found.images)]
        cells += [share(one.top5, found.images)] if top5 else []
        cells += [number(one.nll), number(one.brier), points(one.ece), points(one.gap, signed=True)]
        if scaled:
            after = one.calibrated
            cells += [number(one.temperature), number(after.nll if after else None)]
            cells.append(points(after.ece if after else None))
        rows.append(tuple(cells))
    strong = frozenset(k for k, one in enumerate(found.networks) if one.kind == "deployed")
    note = (
        "ECE: expected calibration error. Gap: mean confidence minus accuracy, above 0 where the network is "
        "overconfident. Both in percentage points."
    )
    if scaled:
        note += " Scaled: with the logits divided by the temperature that fits the validation images best"
        note += ", which are these images: optimistically biased." if found.split == "val" else "."
    return Table(f"Calibration on {where(found)}", tuple(columns), tuple(rows), strong=strong, note=note)


def alike(found: Report) -> list[Table]:
    """Tables of the agreement of every two peers, and of the divergence of their probabilities."""
    if found.diversity is None:
        return []
    names = [one.name for one in found.peers]
    made = []
    if found.diversity.pairwise_agreement:
        caption = "Share of images on which two peers predict the same class"
        made.append(matrix(caption, names, found.diversity.pairwise_agreement, shares=True, corner="peer"))
    if found.diversity.pairwise_kl:
        caption = "KL(row ‖ column) between the peers' probabilities, nats"
        made.append(matrix(caption, names, found.diversity.pairwise_kl, shares=False, corner="peer"))
    return made


def agreement(*found: Report | None) -> str:
    """Sentences about the agreement of the peers and the gain of their ensemble, from the first report with them."""
    agreements = [report.agreement for report in found if report is not None and known(report.agreement)]
    parts = [f"All peers predict the same class for {share(agreements[0]).text} of the images."] if agreements else []
    first = found[0].diversity if found and found[0] is not None else None
    if first is not None and first.ensemble_gain is not None:
        where = "above" if first.ensemble_gain >= 0 else "below"
        parts.append(f"The ensemble is {100 * abs(first.ensemble_gain):.1f} points {where} the mean of its peers.")
    return " ".join(parts)


def comparison(runs: list[RunFiles]) -> Table:
    """A table with one row for each run."""
    columns = ("run", "method", "data", "epochs", "seed", "deployed", "mean of peers", "ensemble", "NLL", "ECE")
    rows = []
    for run in runs:
        ended = run.ended
        images = ended.last_epoch.images if ended else 0
        deployed = ended.deployed if ended else None
        peers = [score.accuracy for score in ended.last_epoch.peers if known(score.accuracy)] if ended else []
        main = run.evaluation.main if run.evaluation else None
        epochs, seed = run.setting("train", "epochs"), run.setting("train", "seed")
        rows.append(
            (
                Cell(run.name),
                Cell(method(run)),
                Cell(str(run.setting("data", "name") or "–")),
                *(
                    Cell(str(value), value) if isinstance(value, int) and abs(value) < 1e15 else Cell("–")
                    for value in (epochs, seed)
                ),
                share(deployed.accuracy if deployed else None, images, bar=True),
                share(fmean(peers) if peers else None, images),
                share(ended.last_epoch.ensemble.accuracy if ended else None, images),
                number(deployed.nll if deployed else None),
                points(main.ece if main else None),
            )
        )
    note = "Deployed: chosen by validation accuracy. Mean of peers and ensemble: after the last epoch."
    splits = {run.ended.split for run in runs if run.ended}
    if len(splits) > 1:
        note += " The runs were not evaluated on the same split."
    return Table("The runs side by side", columns, tuple(rows), words=frozenset({1, 2}), note=note)


def method(run: RunFiles) -> str:
    """Loss and mixer of a run."""
    loss, mixer = (run.setting(key, "name") or run.setting(key) or "–" for key in ("loss", "mixer"))
    return f"{loss} + {mixer}"
