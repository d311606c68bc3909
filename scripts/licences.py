"""Name, version and licence of what is installed, as its own metadata say it.

Exits with 1 if something that `pip install metamixer` brings has a licence that would bind a program which uses it.
What only developers install is listed and not judged. `--all` lists what came into the environment by other ways, too.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_DENIED = re.compile(
    r"\b(AGPL|GPL(?!.*exception)|SSPL|BUSL|CC-BY-NC|Affero General Public|"
    r"(?<!Lesser )General Public License|Commons Clause)",
    re.IGNORECASE,
)
_DEVELOPERS = {"bench", "dev", "docs"}
"""Extras that no user installs; all others are judged."""


_OF_WHEELS = {"pillow-heif": "GPL-2.0-only (x265 in its wheels; pi-heif reads the same files)"}
"""Licences of wheels with more in them than their metadata say."""


def denied(licence: str) -> bool:
    """Whether every choice that a licence leaves is on the deny list. LGPL is not: it binds changes of the library."""
    choices = re.split(r"\bOR\b", licence)
    return all(_DENIED.search(re.sub(r"LGPL|Library or Lesser General Public", "", choice)) for choice in choices)


def licence_of(found: Distribution) -> str:
    """That of the wheel where it differs, the licence expression, the classifiers, or the licence field."""
    said = _OF_WHEELS.get(canonicalize_name(found.metadata["Name"])) or found.metadata.get("License-Expression")
    if said:
        return str(said)
    named = [each.rpartition(" :: ")[2] for each in found.metadata.get_all("Classifier") or [] if "License ::" in each]
    text = (found.metadata.get("License") or "").strip()
    first = text.splitlines()[0].strip() if text else ""
    return "; ".join(named) or first[:80] or "not stated"


def _extras(root: str) -> set[str]:
    return set(distribution(root).metadata.get_all("Provides-Extra") or ()) - _DEVELOPERS


def needed(root: str = "metamixer") -> set[str]:
    """The distributions that come with a package and its extras for users, as far as they are installed."""
    found: set[str] = set()
    left = [(root, frozenset(_extras(root)))]
    while left:
        name, extras = left.pop()
        name = canonicalize_name(name)
        if name in found and not extras:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for line in requires:
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *extras)]
            wanted = requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts)
            if wanted and canonicalize_name(requirement.name) not in found:
                left.append((requirement.name, frozenset(requirement.extras)))
    return found


def absent(root: str = "metamixer") -> set[str]:
    """What extras for users name and is not installed."""
    asked = [Requirement(line) for line in distribution(root).requires or []]
    extras = _extras(root)
    wanted = {
        canonicalize_name(each.name)
        for each in asked
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    }
    return wanted - {canonicalize_name(found.metadata["Name"]) for found in distributions()} - {root}


def main() -> int:
    everything = "--all" in sys.argv[1:]
    own = needed()
    bad = 0
    for found in sorted(distributions(), key=lambda each: canonicalize_name(each.metadata["Name"])):
        name, licence = canonicalize_name(found.metadata["Name"]), licence_of(found)
        if name not in own and not everything:
            continue
        wrong = name in own and denied(licence)
        bad += wrong
        print(f"{name} {found.version}  {licence}{'  <- not allowed' if wrong else ''}")
    if missing := sorted(absent()):
        print(f"not installed here, and not judged: {', '.join(missing)}")
    print(f"{len(own)} distributions are needed, {bad} of them with a licence that is not allowed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
