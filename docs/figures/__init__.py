"""The figures of docs/observe.md: `python -m docs.figures [NAME …]` runs the examples that draw them, with Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from regard.files import write_atomically

FOLDER = Path(__file__).resolve().parent
_FONT, _MARGIN = 13, 10  # pixels


def heatmap(values: Tensor, rows: Sequence[str], columns: Sequence[str], name: str, title: str) -> None:
    """Draws a matrix as FOLDER/name: white is 0, the darkest its largest number.

    Args:
        values: (rows, columns), none negative.
        rows: labels, beside the rows.
        columns: labels, upright above the columns.
        name: of the PNG file.
        title: what is drawn, above everything.

    Raises:
        ValueError: there are not as many labels as rows or columns.
    """
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"values has shape {tuple(values.shape)}; there are {len(rows)} × {len(columns)} labels")
    rows, columns = ([label.replace("–", "-") for label in labels] for labels in (rows, columns))  # not in the font
    font = ImageFont.load_default(_FONT)
    wide, high = (round(max(font.getlength(label) for label in labels)) + 6 for labels in (rows, columns))
    cell = max(14, min(40, 560 // len(columns)))
    left, top = _MARGIN + wide, _MARGIN + _FONT + 12 + high
    width = max(left + cell * len(columns), _MARGIN + round(font.getlength(title))) + _MARGIN
    picture = Image.new("RGB", (width, top + 14 * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, fill="black", font=font)
    for j, label in enumerate(columns):
        upright = Image.new("RGB", (high, 18), "white")
        ImageDraw.Draw(upright).text((0, 2), label, fill="#333333", font=font)
        picture.paste(upright.rotate(90, expand=True), (left + cell * j + cell // 2 - 9, top - high))
    most = max(float(values.max()), 1e-9)
    for i, label in enumerate(rows):
        y = top + 14 * i
        draw.text((left - 6, y + 7), label, fill="#333333", font=font, anchor="rm")
        for j in range(len(columns)):
            share = (float(values[i, j]) / most) ** 0.5  # small weights are seen, too
            colour = tuple(round(255 + (dark - 255) * share) for dark in (24, 60, 120))
            draw.rectangle([left + cell * j, y, left + cell * (j + 1) - 2, y + 12], fill=colour)
    data = io.BytesIO()
    picture.quantize(64).save(data, "PNG", optimize=True)
    write_atomically(FOLDER / name, data.getvalue())
