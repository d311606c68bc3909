"""Notes below the table of a study: unequal recipes, different machines, missing runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metamixer.config.peer_section import PeerSection
from metamixer.config.yaml_file import flat
from metamixer.core.text import listed
from metamixer.studies.results import Line
from metamixer.studies.study_file import AXES, Cell, Study


def unequal(study: Study) -> list[str]:
    """A sentence for each setting in which rows differ beyond the sections of their axes.

    Rows with different methods may differ in the loss, rows with different networks in the peers, and so on. Different
    learning rates or numbers of epochs are no error, but readers of the table have to know about them.
    """
    own = {AXES[axis] for axis in study.axes}
    if own & {"loss", "mixer"}:  # a method often consists of both
        own |= {"loss", "mixer"}
    changed = {"train.seed", *(each.partition("=")[0] for row in study.content.settings.values() for each in row)}
    settings: dict[str, dict[str, str]] = {}
    for cell in study.cells:
        for key, value in flat(cell.recipe.as_dict(), lists=False).items():
            if key.partition(".")[0] not in own and not any(f"{key}.".startswith(f"{each}.") for each in changed):
                shown = " and ".join(map(_peer, cell.recipe.peers)) if key == "peers" else str(value)
                settings.setdefault(key, {})[cell.label] = shown
    found = []
    for key, by_row in settings.items():
        values = dict.fromkeys(by_row.values())
        if len(values) > 1:
            parts = (
                f"{value} for {listed((row for row, own in by_row.items() if own == value), 3)}" for value in values
            )
            found.append(f"The recipes are not equal: {key} is {', '.join(parts)}.")
    return found


def _peer(peer: PeerSection) -> str:
    """The name of a peer with the settings that are not the defaults."""
    own = peer.model_dump(exclude_defaults=True, exclude={"name"})
    return peer.name + (f" ({', '.join(f'{key}={value}' for key, value in own.items())})" if own else "")


def machines(lines: Iterable[Line]) -> list[str]:
    """A sentence if runs have different processors, torch versions or numbers of threads."""
    seen: dict[str, set[str]] = {"processor": set(), "torch": set(), "threads": set()}
    for line in lines:
        for name, value in (
            ("processor", line.machine),
            ("torch", line.versions.get("torch")),
            ("threads", line.threads),
        ):
            if value is not None:
                seen[name].add(str(value))
    return [
        f"Runs are of several kinds: {name} {', '.join(sorted(all_))}." for name, all_ in seen.items() if len(all_) > 1
    ]


def crossed(study: Study, done: Mapping[Cell, Line]) -> list[str]:
    """A sentence if a row and its baseline had the same seed on different processors.

    Such pairs have the same initial weights and batches, but other rounding: in long trainings their difference has as
    much noise as that of two seeds, and can be off by more, since a processor may also favour one result.
    """
    at = {(cell.row, cell.seed): line.machine for cell, line in done.items() if line.machine is not None}
    pairs = [
        (own, at[baseline, seed])
        for (row, seed), own in at.items()
        if (baseline := study.baseline_of(row)) is not None and (baseline, seed) in at
    ]
    apart = sum(own != other for own, other in pairs)
    if not apart:
        return []
    return [f"{apart} of {len(pairs)} differences of a seed are between two processors, which adds noise to them."]


def missing(study: Study, done: Iterable[Cell], faults: Mapping[Cell, str]) -> list[str]:
    """Sentences about missing and failed runs."""
    left = len(study.cells) - len(list(done))
    found = [f"{left} of {len(study.cells)} runs are missing."] if left else []
    return found + [
        f"Failed: {cell.label}, seed {cell.seed}: {fault.splitlines()[0]}" for cell, fault in faults.items()
    ]
