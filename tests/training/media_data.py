"""Images and recordings in files, of classes that are easy to tell."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("RGB", "L", "RGBA", "P")


def write_images(place: Path, count: int = 30, *, seed: int = 0) -> None:
    """`count` PNG files, of different modes and sizes, in the folders "lie" and "stand": dark stripes.

    Args:
        place: the data's directory.
        count: in all.
        seed: of sizes and stripes.
    """
    draw = np.random.default_rng(seed)
    for i in range(count):
        height, width = draw.integers(30, 60, 2)
        across = i % 2 == 1
        grey = draw.integers(160, 256, (height, width))
        lines = (np.arange(height if across else width) // 8) % 2 == draw.integers(2)
        grey[(lines, slice(None)) if across else (slice(None), lines)] //= 4
        image = Image.fromarray(grey.astype(np.uint8)).convert(MODES[i // 2 % 4])
        folder = place / ("lie" if across else "stand")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i:03}.png")


def write_tone(path: Path, hertz: float, seconds: float = 0.2, rate: int = 8000) -> None:
    """A sine with some noise, as 16-bit WAV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(hertz)).normal(0, 0.02, len(times))
    samples = (32_000 * (0.3 * np.sin(2 * np.pi * hertz * times) + noise)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_tones(place: Path, count: int = 24) -> None:
    """`count` WAV files, of different lengths, in the folders "low" and "high"."""
    for i in range(count):
        name, hertz = (("low", 300), ("high", 2500))[i % 2]
        write_tone(place / name / f"{i:03}.wav", hertz + 11 * i, 0.12 + 0.01 * (i % 7))
