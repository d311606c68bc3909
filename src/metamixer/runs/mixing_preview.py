"""Draw a picture of mixing: originals, companions, and each operation of a plan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metamixer.config.recipe import Recipe
from metamixer.core.mixing import box_share
from metamixer.core.plan import Blend, MixPlan, Operation, Paste, PerPeer
from metamixer.core.seeding import generator
from metamixer.core.text import clean
from metamixer.core.types import Batch
from metamixer.data import Data
from metamixer.runs.data_record import load_data
from metamixer.runs.run import check_outside_of_data, train_loader

DPI = 150
CELL = (1.25, 1.62)  # inches: width, and height with the caption
LEFT, MARGIN = 1.7, 0.15  # inches: width of the row titles, margin around everything
_TRIES = 200
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Arabic")


@dataclass(frozen=True)
class Row:
    """A row of the picture: images ``(B, C, H, W)``, targets ``(B, C)``, and the pasted box, if any."""

    title: str
    note: str
    images: Tensor
    targets: Tensor
    paste: Paste | None = None


def draw(recipe: Recipe, out: Path, *, images: int = 8, seed: int = 0) -> list[str]:
    """Write a picture of a plan for a batch of augmented training images of a recipe.

    The plan is chosen such that every operation of the mixer occurs and is visible, whatever its probability.

    Args:
        recipe: recipe with data and mixer; its peers determine the stages.
        out: the PNG file.
        images: number of columns.
        seed: seed of the images and the plan.

    Returns:
        Descriptions of the rows.

    Raises:
        RecipeError, DataError: the recipe or the data are not valid.
    """
    import matplotlib

    check_outside_of_data(recipe.data, out)
    recipe = recipe.model_copy(update={"train": replace(recipe.train, batch_size=images, seed=seed)})
    # No images are decoded in advance, because only a few are needed; and they are not normalised.
    data = load_data(recipe, (), ((0.0,), (1.0,)))
    data = replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels)
    cohort = recipe.cohort_for(data, fetch=False)
    batch = next(train_loader(recipe, data, torch.device("cpu")).epoch(0))
    plan = _visible_plan(recipe, batch, seed)
    rows = compose(batch, plan, len(data.classes), cohort.stages, len(cohort.peers))
    figure = _figure(rows, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters without a font are drawn as boxes
        figure.savefig(out, dpi=DPI)
    return [f"{row.title}{f' ({row.note})' if row.note else ''}" for row in rows] + (
        [] if plan.operations else [f"the mixer {recipe.mixer.name} mixes nothing here: every plan is empty"]
    )


def _visible_plan(recipe: Recipe, batch: Batch, seed: int) -> MixPlan:
    """The plan with the most visible operations, of many that are drawn."""
    mixer = recipe.build_mixer()
    plans = (
        mixer(batch.images, batch.labels, companions=batch.companions, generator=generator(seed, "preview", attempt))
        for attempt in range(_TRIES)
    )
    return max(plans, key=lambda plan: sum(map(_visible, plan.operations)))


def _visible(operation: Operation) -> bool:
    if isinstance(operation, Blend):
        kept = torch.as_tensor(operation.lam).float().mean()
        others = (operation.partner != torch.arange(len(operation.partner))).float().mean()
        return bool(0.3 <= kept <= 0.7 and others > 0.8)
    if isinstance(operation, PerPeer):
        return _visible(operation.pastes[0])
    share = box_share(operation.low, operation.high, operation.size).mean()
    return bool(0.1 <= share <= 0.5)


def compose(batch: Batch, plan: MixPlan, classes: int, stages: int, peers: int) -> list[Row]:
    """The rows of the picture, from the originals to the result of the last operation.

    Operations inside the networks are illustrated on the images.
    """
    images, targets = batch.images, F.one_hot(batch.labels, classes).float()
    rows = [Row("Images", "as they are augmented", images, targets)]
    if batch.companions is not None:
        rows.append(Row("Companions", "others of the same class", batch.companions, targets))
    for index, operation in enumerate(plan.operations):
        here = replace(operation, stage=0)
        before, images, targets = images, here(images), here.mix_targets(targets)
        if isinstance(operation, PerPeer):
            note = "a box of the same size at a place of its own"
            for peer, own in enumerate(operation.pastes):  # later operations start from the images of the first peer
                rows.append(Row(f"CutMix, peer {peer}", note, own(before), targets, own))
        elif isinstance(operation, Paste):
            local = operation.source is not None or bool((targets == rows[0].targets).all())
            title = "Local mix" if local else "CutMix"
            note = "a box from the companion" if operation.source is not None else "a box from another image"
            rows.append(Row(title, note, images, targets, operation))
        else:
            depths = [MixPlan((operation,)).at(stages, peer).operations[0].stage for peer in range(peers)]
            rows.append(Row("Global mix" if index else "Mixup", _where(depths, stages), images, targets))
    return rows


def _where(depths: Sequence[Any], stages: int) -> str:
    if not any(depths):
        return "of the images"
    different = list(dict.fromkeys(depths))
    places = " or ".join("at the images" if depth == 0 else f"after stage {depth}" for depth in different)
    by_peer = ", by peer" if len(different) > 1 else ""
    return f"mixed {places} of {stages}{by_peer}; the blend of the images illustrates it"


def _figure(rows: Sequence[Row], data: Data) -> Any:
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(rows[0].images)
    width = LEFT + count * CELL[0] + 2 * MARGIN
    height = len(rows) * CELL[1] + 2 * MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in _FONTS if name in installed]
    settings: dict[str, Any] = {"parse_math": False, "family": fonts or None}
    for r, row in enumerate(rows):
        top = height - MARGIN - r * CELL[1]
        middle = (top - CELL[0] / 2) / height
        figure.text(
            MARGIN / width, middle, row.title, fontsize=11, fontweight="bold", va="bottom", color="#222222", **settings
        )
        figure.text(
            MARGIN / width, middle - 0.06 / height, _wrapped(row.note), fontsize=7.5, va="top", color="#666666",
            linespacing=1.3, **settings,
        )  # fmt: skip
        pixels = _denormalise(row.images, data)
        for c in range(count):
            left = MARGIN + LEFT + c * CELL[0]
            side = CELL[0] - 0.1
            axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
            axes.set_axis_off()
            shown = pixels[c][..., :3] if data.channels > 2 else pixels[c][..., 0]
            smooth = "nearest" if min(shown.shape[:2]) < 64 else "antialiased"
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
            if row.paste is not None:
                _outline(axes, row.paste, c)
            for line, text in enumerate(_caption(row.targets[c], data.classes)):
                # Line by line, because blocks are aligned by glyph heights, which would make baselines uneven.
                baseline = (top - side - 0.14 - 0.115 * line) / height
                middle_of_cell = (left + side / 2) / width
                figure.text(middle_of_cell, baseline, text, fontsize=6.5, ha="center", color="#222222", **settings)
    return figure


def _denormalise(images: Tensor, data: Data) -> Any:
    """Undo normalisation: ``(B, C, H, W)`` -> ``(B, H, W, C)`` in [0, 1]."""
    std, mean = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.std, data.mean))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _outline(axes: Any, paste: Paste, row: int) -> None:
    from matplotlib.patches import Rectangle

    low, high = (bound if bound.ndim == 1 else bound[row] for bound in (paste.low, paste.high))
    (y, x), (height, width) = low.tolist(), (high - low).tolist()
    for colour, thickness in (("white", 2.0), ("#d62728", 1.0)):
        box = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=thickness)
        axes.add_patch(box)


def _caption(target: Tensor, classes: Sequence[str]) -> list[str]:
    """``cat``, or ``0.62 cat`` and ``+ 0.38 dog``."""
    shares, order = target.sort(descending=True, stable=True)
    parts = [(float(share), _short(classes[label])) for share, label in zip(shares, order.tolist(), strict=True)]
    parts = [(share, name) for share, name in parts if share > 0.005]
    if len(parts) == 1:
        return [parts[0][1]]
    more = ["+ ..."] if len(parts) > 3 else []
    return [f"{'+ ' if index else ''}{share:.2f} {name}" for index, (share, name) in enumerate(parts[:3])][
        : 2 if more else 3
    ] + more


def _short(name: str, most: int = 16) -> str:
    name = clean(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _wrapped(text: str, most: int = 24) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
