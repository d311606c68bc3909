"""An evaluation as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from metamixer.cli.console import console, say, table, titled
from metamixer.core.text import clean, percent


def show(found: Mapping[str, Any], title: str) -> None:
    """Print what ``Assessment.as_dict`` gives: a row for each network, how the peers differ, what robustness found."""
    images = found["images"]
    _networks(found["networks"], images, f"{images:,} {title}")
    if found["split"] == "val" and any(each["temperature"] for each in found["networks"]):
        say("The temperatures were fitted on these very images, so the figures after T flatter the networks.")
    _peers(found["peers"], [each["name"] for each in found["networks"] if each["kind"] not in ("ensemble", "deployed")])
    if found["robustness"]:
        _robustness(found["robustness"])
    if found["localization"]:
        _localization(found["localization"])


def _networks(networks: Sequence[Mapping[str, Any]], images: int, title: str) -> None:
    top5 = any(each["top5"] is not None for each in networks)
    mended = any(each["calibrated"] for each in networks)
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL", "Brier", "ECE", "gap"]
    made = table([*columns, *(["T", "NLL after T", "ECE after T"] if mended else [])])
    for each in networks:
        cells = [Text(clean(each["name"])), _share(each["accuracy"], images)]
        if top5:
            cells.append(_share(each["top5"], images))
        cells += [_number(each["nll"]), _number(each["brier"]), _points(each["ece"]), _points(each["gap"], "+")]
        if mended:
            after = each["calibrated"] or {}
            cells += [_number(each["temperature"]), _number(after.get("nll")), _points(after.get("ece"))]
        made.add_row(*cells, style="bold" if each["kind"] == "ensemble" else "")
    console().print(titled(title, made))
    say("ECE and gap (mean confidence - accuracy) are in percentage points; a gap above 0 is overconfident.")


def _peers(peers: Mapping[str, Any], names: Sequence[str]) -> None:
    say(
        f"All peers name the same class for {100 * peers['agreement']:.1f} % of the images; the ensemble is "
        f"{100 * peers['ensemble_gain']:+.1f} points from the mean of the peers."
    )
    if len(names) < 2:
        return
    made = table(["same class, KL in nats", *(clean(name) for name in names)])
    for name, same, far in zip(names, peers["pairwise_agreement"], peers["pairwise_kl"], strict=True):
        pairs = zip(names, same, far, strict=True)
        cells = ["" if other == name else f"{100 * share:.1f} %  {_text(nats)}" for other, share, nats in pairs]
        made.add_row(Text(clean(name)), *cells)
    console().print(titled("how the peers differ: KL(row || column)", made))


def _localization(found: Mapping[str, Any]) -> None:
    networks = found["networks"]
    overlaps = list(found["centre_box"]["max_box_acc"])
    parts = [f"IoU {each}" for each in overlaps]
    made = table(["network", "MaxBoxAccV2", *parts, "pointing game", "energy in box"])
    for each in (*networks, {**found["centre_box"], "name": "centre box (baseline)"}):
        shares = [
            each["max_box_acc_v2"],
            *(each["max_box_acc"][key] for key in overlaps),
            each["pointing"],
            each["energy"],
        ]
        made.add_row(Text(clean(each["name"])), *(_share(share, found["images"]) for share in shares))
    console().print(
        titled(f"whether the activation maps ({found['method']}) find the objects of {found['images']:,} images", made)
    )
    agreement = found["map_agreement"]
    pairs = [agreement[i][j] for i in range(len(networks)) for j in range(i) if agreement[i][j] is not None]
    if pairs:
        say(f"Maps of two peers correlate by {sum(pairs) / len(pairs):.2f} on average.")
    for note in found.get("notes", ()):
        say(f"note: {clean(note)}")


def _robustness(found: Mapping[str, Any]) -> None:
    images, names = found["images"], list(found["clean"])
    if "corruptions" in found:
        kinds, mean = found["corruptions"]["kinds"], found["corruptions"]["mean"]
        made = table(["mean of 5 severities", *(clean(name) for name in names)])
        for kind, shares in kinds.items():
            made.add_row(kind.replace("_", " "), *(_share(sum(shares[name]) / 5, images) for name in names))
        made.add_section()
        made.add_row("all corruptions", *(_share(mean[name], images) for name in names), style="bold")
        made.add_row("clean", *(_share(found["clean"][name], images) for name in names))
        files = found["corruptions"]["source"] == "files"
        source = "from files" if files else "made here, not CIFAR-10-C itself"
        console().print(titled(f"accuracy on {images:,} corrupted images ({source})", made))
    if "attacks" in found:
        made = table(["attack", *(clean(name) for name in names)])
        made.add_row("none", *(_share(found["clean"][name], images) for name in names))
        for attack, result in found["attacks"].items():
            title = f"{attack}, {255 * result['eps']:.0f}/255"
            made.add_row(title, *(_share(result["accuracy"][name], images) for name in names))
        console().print(titled(f"accuracy on {images:,} images, each network attacked through itself", made))


def _share(share: float | None, images: int) -> Text:
    return Text("" if share is None else percent(share, images))


def _number(value: float | None) -> Text:
    return Text(_text(value))


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _points(share: float | None, sign: str = "") -> Text:
    return Text("" if share is None else f"{100 * share:{sign}.1f}")
