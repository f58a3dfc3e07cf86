"""Scores against time as a PNG, drawn with Pillow alone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 900, 500
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 50, 50
COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e44ad")
LEVELS = 5


@dataclass(frozen=True)
class Curve:
    """A line: its name, and its points."""

    name: str
    minutes: Sequence[float]
    scores: Sequence[float]  # 0 … 1


def draw(curves: Sequence[Curve], title: str) -> bytes:
    """A PNG of the curves; empty ones are left out.

    Raises:
        ValueError: if no curve has a point.
    """
    from PIL import Image, ImageDraw

    curves = [curve for curve in curves if len(curve.minutes)]
    if not curves:
        raise ValueError("curves is empty: at least one must have a point")
    most = max(max(curve.minutes) for curve in curves)
    low = min(min(curve.scores) for curve in curves)
    high = max(max(curve.scores) for curve in curves)
    margin = max(0.01, 0.05 * (high - low))
    low, high = max(0.0, low - margin), min(1.0, high + margin)

    def place(minute: float, score: float) -> tuple[float, float]:
        x = LEFT + minute / most * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (score - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT, 16), title, fill="black")
    for i in range(LEVELS + 1):
        score, minute = low + i / LEVELS * (high - low), i / LEVELS * most
        x, y = place(minute, score)
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], fill="#dddddd")
        pen.text((LEFT - 50, y - 6), f"{score:.1%}", fill="black")
        pen.text((x - 10, HEIGHT - BOTTOM + 10), f"{minute:.0f}", fill="black")
    for curve, colour in zip(curves, COLOURS, strict=False):
        points = [place(*point) for point in zip(curve.minutes, curve.scores, strict=True)]
        pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        x, y = points[-1]
        pen.text((x + 8, y - 6), f"{curve.name} {curve.scores[-1]:.1%}", fill=colour)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
