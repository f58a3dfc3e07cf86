"""Sample reports with pictures: an image in patches beside a class token, and the frames of a video."""

from typing import Any

import numpy as np
from PIL import Image

from regard.pipelines.drawing import picture_data
from tests.view.sample import ROLES, Side, site_of

ROWS, COLUMNS = 3, 5
CELL = 16  # pixels of a patch; the picture is a patch wider on the right, which no patch shows


def _picture(seed: int, title: str = "") -> dict[str, Any]:
    noise = np.random.default_rng(seed).integers(60, 220, (ROWS * CELL, (COLUMNS + 1) * CELL, 3), dtype=np.uint8)
    return picture_data(Image.fromarray(noise), title=title)


def _report(modality: str, labels: list[str], pictures: list[dict[str, Any]], first: int) -> dict[str, Any]:
    side = Side(modality, modality, "", labels, [None] * len(labels))
    sites = [
        site_of(f"encoder.blocks.{layer}.attention", side, side, layer, "encoder", ["broad", "local"], 6, layer)
        for layer in range(2)
    ]
    places: list[list[float] | None] = [None] * first
    for picture in range(len(pictures)):
        for row in range(ROWS):
            for column in range(COLUMNS):
                left, top = column * CELL, row * CELL
                places.append([picture, left, top, left + CELL, top + CELL])
    elements = [
        {
            "index": i,
            "label": label,
            "modality": modality,
            "span": None if place is None else {"box": [float(v) for v in place[1:]]},
        }
        for i, (label, place) in enumerate(zip(labels, places, strict=True))
    ]
    return {
        "format_version": 1,
        "model": {"name": "small", "task": "classify", "description": ""},
        "input": f"holiday.{modality}",
        "answer": "seashore 0.700",
        "labels": [{"label": "seashore", "score": 0.7}, {"label": "lake <b>shore</b>", "score": 0.3}],
        "note": "raw attention weights",
        "sequences": {
            modality: {
                "title": modality,
                "modality": modality,
                "text": None,
                "elements": elements,
                "about": f"96 × 48 pixels, seen in {ROWS} × {COLUMNS} patches",
                "pictures": pictures,
                "places": places,
            }
        },
        "sites": sites,
        "roles": ROLES,
        "alignment": None,
    }


def image() -> dict[str, Any]:
    """One picture, of which a class token and 3 × 5 patches look at each other."""
    patches = [f"{row},{column}" for row in range(ROWS) for column in range(COLUMNS)]
    return _report("image", ["[CLS]", *patches], [_picture(0)], 1)


def video() -> dict[str, Any]:
    """Four pictures with 3 × 5 tubelets each."""
    times = [f"{0.5 * time:.2f}" for time in range(4)]
    labels = [f"{time} s {row},{column}" for time in times for row in range(ROWS) for column in range(COLUMNS)]
    return _report("video", labels, [_picture(i, f"{time} s") for i, time in enumerate(times)], 0)
