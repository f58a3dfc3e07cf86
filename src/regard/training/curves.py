"""The curves of a run as an image: loss, learning rate, scores, and attention by layer; drawn with Pillow alone."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regard.files import write_atomically

_WIDTH, _HEIGHT = 640, 260  # of one panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 34, 30  # between a panel's edge and its axes
_COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#16a085", "#7f8c8d", "#34495e")
_FAINT = "#b9cfe8"
Points = list[tuple[float, float]]


@dataclass
class _Line:
    """A curve, from left to right."""

    name: str
    points: Points = field(default_factory=list[tuple[float, float]])
    colour: str = ""


def draw_curves(metrics: Path, image: Path) -> None:
    """Draw what a metrics.jsonl holds into a PNG file.

    Args:
        metrics: lines of JSON, each a step's or a validation's, as the loop writes them; what else a line holds is
            left out.
        image: written whole or not at all. There is none where nothing was recorded.

    Raises:
        OSError: if a file cannot be read or written.
    """
    from PIL import Image, ImageDraw

    panels = _panels([json.loads(line) for line in metrics.read_bytes().splitlines()])
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    picture = Image.new("RGB", (_WIDTH * min(2, len(panels)), _HEIGHT * rows), "white")
    draw: Any = ImageDraw.Draw(picture)
    for index, (title, lines) in enumerate(panels.items()):
        _panel(draw, (index % 2 * _WIDTH, index // 2 * _HEIGHT), title, lines)
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomically(image, data.getvalue())


def _panels(records: Sequence[dict[str, Any]]) -> dict[str, list[_Line]]:
    """What is drawn together, by the title of the panel."""
    steps = [record for record in records if "loss" in record]
    panels: dict[str, list[_Line]] = {}
    if steps:
        raw: Points = [(r["step"], r["loss"]) for r in steps]
        panels["loss"] = [_Line("", _thin(raw), _FAINT), _Line("training", _thin(_smooth(raw)))]
        panels["learning rate"] = [_Line("", _thin([(r["step"], r["lr"]) for r in steps]))]
    curves: dict[str, dict[str, Points]] = {}
    for record in records:
        for name, value in record.get("validation", {}).items():
            panel = ("loss", "validation") if name == "loss" else (name, "validation")
            curves.setdefault(panel[0], {}).setdefault(panel[1], []).append((record["step"], value))
        for layer, values in record.get("attention", {}).items():
            for kind, title in (("entropy", "attention: entropy, nats"), ("max_weight", "attention: largest weight")):
                curves.setdefault(title, {}).setdefault(layer, []).append((record["step"], values[kind]))
    for title, lines in curves.items():
        panels.setdefault(title, []).extend(_Line(name, points) for name, points in lines.items())
    return panels


def _smooth(points: Points) -> Points:
    """Means over the last steps: a fiftieth of the run."""
    decay = max(0.0, 1 - 50 / len(points))
    found: Points = []
    mean = points[0][1]
    for x, y in points:
        mean = decay * mean + (1 - decay) * y
        found.append((x, mean))
    return found


def _thin(points: Points) -> Points:
    """Every k-th point and the last: no more than there are pixels."""
    k = max(1, len(points) // _WIDTH)
    return [*points[::k], points[-1]]


def _panel(draw: Any, origin: tuple[int, int], title: str, lines: Sequence[_Line]) -> None:
    x0, y0 = origin[0] + _LEFT, origin[1] + _TOP
    x1, y1 = origin[0] + _WIDTH - _RIGHT, origin[1] + _HEIGHT - _BOTTOM
    points = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not points:
        return
    last = max(1, max(x for x, _ in points))
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    draw.text((x0, origin[1] + 8), title, fill="black")
    for mark in _marks(low, high):
        y = y1 - (mark - low) / (high - low) * (y1 - y0)
        draw.line([(x0, y), (x1, y)], fill="#e8e8e8")
        draw.text((x0 - 6, y), f"{mark:.4g}", fill="#555555", anchor="rm")
    for mark in _marks(0, last):
        x = x0 + mark / last * (x1 - x0)
        draw.text((x, y1 + 6), f"{mark:,.0f}", fill="#555555", anchor="ma")
    draw.rectangle([x0, y0, x1, y1], outline="#999999")
    place = x1
    numbered = 0
    for line in lines:
        colour = line.colour or _COLOURS[numbered % len(_COLOURS)]
        numbered += not line.colour
        drawn = [
            (x0 + x / last * (x1 - x0), y1 - (y - low) / (high - low) * (y1 - y0))
            for x, y in line.points
            if math.isfinite(y)
        ]
        draw.line(drawn, fill=colour, width=2)
        if len(drawn) == 1:
            draw.ellipse([drawn[0][0] - 2, drawn[0][1] - 2, drawn[0][0] + 2, drawn[0][1] + 2], fill=colour)
        if line.name and numbered <= len(_COLOURS):
            name = _short(line.name)
            place -= draw.textlength(name) + 12
            draw.text((place, origin[1] + 8), name, fill=colour)


def _short(name: str) -> str:
    """The numbers of a layer's path, which tell it from the others; other names as they are."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return ".".join(numbers) or name


def _marks(low: float, high: float) -> list[float]:
    """Round numbers between two others, about five."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
