"""Activation maps of all peers, as pictures embedded in the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from torch import Tensor

from metamixer.core.text import percent
from metamixer.evaluation.localization.map_gallery import Shown

_SMALL = 64  # pixels; smaller images are shown without smoothing


def gallery(images: Sequence[Shown]) -> list[dict[str, Any]]:
    """Values for the template: for each image the picture, then the picture with the map of each network, and boxes."""
    rows = []
    for one in images:
        height, width = one.image.shape[-2:]
        truth = [] if one.truth is None else [_box(box) for box in one.truth.reshape(-1, 4)]
        cells: list[dict[str, Any]] = [
            {"picture": picture(one.image, None), "title": one.label, "text": "", "box": None, "right": None}
        ]
        for seen in one.networks:
            cells.append(
                {
                    "picture": picture(one.image, seen.map),
                    "title": seen.name,
                    "text": f"{seen.predicted}, {percent(seen.confidence)}{'; no map' if seen.map is None else ''}",
                    "box": None if seen.box is None else _box(seen.box),
                    "right": seen.predicted == one.label,
                }
            )
        small = min(height, width) < _SMALL
        rows.append(
            {"label": one.label, "width": width, "height": height, "truth": truth, "cells": cells, "small": small}
        )
    return rows


def _box(box: Tensor) -> dict[str, float]:
    x0, y0, x1, y1 = (round(float(value), 2) for value in box.tolist())
    return {"x": x0, "y": y0, "width": max(0.0, round(x1 - x0, 2)), "height": max(0.0, round(y1 - y0, 2))}


def picture(image: Tensor, heat: Tensor | None) -> str:
    """A PNG as a data URI: the image, blended equally with the colours of a map if there is one."""
    import matplotlib
    import numpy as np
    from PIL import Image

    pixels = image.detach().cpu().permute(1, 2, 0).numpy().astype(np.float64)
    pixels = pixels[..., :3] if pixels.shape[2] > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    if heat is not None:
        values = heat.detach().float().cpu().nan_to_num().clamp(0, 1).numpy()
        colours = matplotlib.colormaps["inferno"](values)[..., :3] * 255
        pixels = 0.5 * pixels.mean(2, keepdims=True) + 0.5 * colours
    file = BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(file, "png")
    return data_uri(file.getvalue())


def data_uri(png: bytes) -> str:
    """A PNG as a data URI for ``src``."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
