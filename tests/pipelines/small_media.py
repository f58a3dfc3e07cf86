"""Small random models of images, sound and video with their preprocessors, and files for them."""

import json
from pathlib import Path
from typing import Any

import numpy
import transformers as hf
from PIL import Image

from tests.inputs.recordings import film, sound, tone
from tests.models.parity import saved

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE: dict[str, Any] = SIZES | {"intermediate_size": 48}
NAMES = {i: name for i, name in enumerate(["cat", "dog", "snow, deep", "ladder", "blue shirt"])}
PATCHES: dict[str, Any] = {"patch_size": 8, "id2label": NAMES}

CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (
        hf.ViTForImageClassification,
        hf.ViTConfig(**WIDE, **PATCHES, image_size=32),
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    ),
    "deit": (
        hf.DeiTForImageClassificationWithTeacher,
        hf.DeiTConfig(**WIDE, **PATCHES, image_size=32),
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 40, "width": 40},
            "crop_size": {"height": 32, "width": 32},
        },
    ),
    "dinov2": (  # any size: the edges are no multiples of a patch
        hf.Dinov2ForImageClassification,
        hf.Dinov2Config(**SIZES, **PATCHES, image_size=32, problem_type="multi_label_classification"),
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 35}, "do_center_crop": False},
    ),
    "ast": (
        hf.ASTForAudioClassification,
        hf.ASTConfig(
            **WIDE, **PATCHES, num_mel_bins=32, max_length=48, frequency_stride=6, time_stride=5
        ),
        {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 32, "max_length": 48},
    ),
    "videomae": (
        hf.VideoMAEForVideoClassification,
        hf.VideoMAEConfig(**WIDE, **PATCHES, image_size=32, num_frames=6, tubelet_size=2),
        {
            "image_processor_type": "VideoMAEImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
        },
    ),
}  # fmt: skip


def small_model(name: str, directory: Path) -> tuple[Any, Path]:
    """Theirs, and the directory of the checkpoint with its preprocessor_config.json."""
    kind, config, preprocessor = CASES[name]
    theirs, place = saved(directory / name, kind, config, scale=3.0)
    (place / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return theirs, place


def scene(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """A sky, a field, a bright disc and a little noise: something with parts, and not alike anywhere."""
    y, x = numpy.mgrid[:height, :width]
    pixels = numpy.stack([80 + 60 * y / height, 120 + 0 * x, 230 - 160 * y / height], -1)
    pixels[y > 0.6 * height] = (40, 130, 50)
    pixels[(x - width * 0.7) ** 2 + (y - height * 0.3) ** 2 < (height / 6) ** 2] = (250, 220, 90)
    noise = numpy.random.default_rng(seed).normal(0, 6, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(numpy.uint8))


def chirp(rate: int = 22_050, seconds: float = 0.3, hertz: float = 400.0) -> numpy.ndarray:
    """(1, N): a tone with a hiss that swells."""
    samples = tone(rate, seconds, hertz)
    swell = numpy.linspace(0, 0.2, samples.shape[1])
    return samples + swell * numpy.random.default_rng(0).normal(0, 1, samples.shape)


def media_file(name: str, directory: Path, number: int = 0) -> Path:
    """A file for the model of this name; each number gives another one."""
    if name == "ast":
        path = directory / f"{number}.flac"
        path.write_bytes(sound(chirp(hertz=300 + 200 * number), 22_050, "flac", "flac"))
    elif name == "videomae":
        path = directory / f"{number}.mkv"
        frames = [numpy.roll(numpy.asarray(scene(64, 48, seed=number)), 3 * i, 1) for i in range(14 + number)]
        path.write_bytes(film(frames, codec="ffv1", form="matroska", pixels="yuv444p"))
    else:
        path = directory / f"{number}.png"
        scene(90 - 9 * number, 60 + 2 * number, seed=number).save(path)
    return path
