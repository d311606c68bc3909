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


def missing(study: Study, done: Iterable[Cell], faults: Mapping[Cell, str]) -> list[str]:
    """Sentences about missing and failed runs."""
    left = len(study.cells) - len(list(done))
    found = [f"{left} of {len(study.cells)} runs are missing."] if left else []
    return found + [
        f"Failed: {cell.label}, seed {cell.seed}: {fault.splitlines()[0]}" for cell, fault in faults.items()
    ]
