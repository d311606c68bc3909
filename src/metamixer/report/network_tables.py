"""Tables of a run's networks, and of several runs: accuracies, calibration, diversity."""

from __future__ import annotations

from statistics import fmean

from metamixer.evaluation.report import Report
from metamixer.metrics.chance import chance_note
from metamixer.metrics.network_scores import Score
from metamixer.report.read_runs import RunFiles
from metamixer.report.tables import Cell, Table, gain, known, matrix, number, points, share


def networks(run: RunFiles) -> Table | None:
    """Every peer and the ensemble after the last epoch, and the deployed network, beside the baseline's."""
    ended = run.ended
    if ended is None or not ended.last_epoch.peers:
        return None
    images = ended.last_epoch.images
    base = run.baseline.ended if run.baseline else None
    pairs: list[tuple[str, Score, Score | None]] = []
    others = base.last_epoch.peers if base else ()
    for index, score in enumerate(ended.last_epoch.peers):
        pairs.append((score.name, score, others[index] if index < len(others) else None))
    pairs.append(("ensemble", ended.last_epoch.ensemble, base.last_epoch.ensemble if base else None))
    if ended.deployed is not None:
        when = f", epoch {ended.best['epoch']}" if isinstance(ended.best.get("epoch"), int) else ""
        pairs.append((f"deployed: {ended.deployed.name}{when}", ended.deployed, base.deployed if base else None))
    top5 = any(score.top5 is not None for _, score, _ in pairs)
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL", *(["baseline", "gain"] if base else [])]
    rows = []
    for name, score, other in pairs:
        cells = [Cell(name), share(score.accuracy, images, bar=True)]
        cells += [share(score.top5, images)] if top5 else []
        cells.append(number(score.nll))
        if base:
            before = other.accuracy if other else None
            cells += [share(before, images), gain(score.accuracy, before, images)]
        rows.append(tuple(cells))
    strong = frozenset({len(rows) - 1}) if ended.deployed is not None else frozenset()
    split = "test" if ended.split == "test" else "validation"
    caption = f"{images:,} {split} images, after the last epoch; the deployed network as it was when it was chosen"
    return Table(caption, tuple(columns), tuple(rows), strong=strong, note=_chance(run))


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
    """What the metrics of an evaluation are from."""
    split = {"test": "test", "val": "validation"}.get(evaluation.split, evaluation.split)
    when = {"last": "the last checkpoint", "best": "the checkpoint of the best validation accuracy"}
    return f"{evaluation.images:,} {split} images, {when.get(evaluation.checkpoint, evaluation.checkpoint)}"


def titled(one: Score) -> str:
    """The network's name, with what kind it is where the name does not say so."""
    return one.name if one.kind in ("peer", "ensemble") or one.kind in one.name else f"{one.kind}: {one.name}"


def calibration(found: Report) -> Table:
    """Accuracy and the quality of the probabilities, before and after temperature scaling."""
    scaled = any(one.calibrated is not None for one in found.networks)
    columns = ["network", "accuracy", "NLL", "Brier", "ECE", "gap"]
    columns += ["temperature", "NLL, scaled", "ECE, scaled"] if scaled else []
    rows = []
    for one in found.networks:
        cells = [Cell(titled(one)), share(one.accuracy, found.images), number(one.nll), number(one.brier)]
        cells += [points(one.ece), points(one.gap, signed=True)]
        if scaled:
            after = one.calibrated
            cells += [number(one.temperature, 2), number(after.nll if after else None)]
            cells.append(points(after.ece if after else None))
        rows.append(tuple(cells))
    strong = frozenset(k for k, one in enumerate(found.networks) if one.kind == "deployed")
    note = (
        "ECE: expected calibration error. Gap: mean confidence minus accuracy, above 0 where the network is too sure "
        "of itself. Both in percentage points."
    )
    if scaled:
        note += " Scaled: with the logits divided by the temperature that fits the validation images best."
    return Table(f"Calibration on {where(found)}", tuple(columns), tuple(rows), strong=strong, note=note)


def alike(found: Report) -> list[Table]:
    """How often two peers name the same class, and how far their probabilities are apart."""
    if found.diversity is None:
        return []
    names = [one.name for one in found.peers]
    made = []
    if found.diversity.pairwise_agreement:
        caption = "Share of images on which two peers name the same class"
        made.append(matrix(caption, names, found.diversity.pairwise_agreement, shares=True, corner="peer"))
    if found.diversity.pairwise_kl:
        caption = "KL(row ‖ column) between the peers' probabilities, nats"
        made.append(matrix(caption, names, found.diversity.pairwise_kl, shares=False, corner="peer"))
    return made


def comparison(runs: list[RunFiles]) -> Table:
    """One row for each run."""
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
        note += " The runs were not judged by the same split."
    return Table("The runs side by side", columns, tuple(rows), words=frozenset({1, 2}), note=note)


def method(run: RunFiles) -> str:
    """Loss and mixer of a run."""
    loss, mixer = (run.setting(key, "name") or run.setting(key) or "–" for key in ("loss", "mixer"))
    return f"{loss} + {mixer}"
