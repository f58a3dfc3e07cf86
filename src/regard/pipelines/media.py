"""What the pipelines of images, sound and video share: a file in, a tensor out; and the scene that a view draws.

Everything that is done to a file is what the checkpoint's preprocessor_config.json says.

T | frames    H, W | height and width in pixels    M | mel bins
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.attention import Watch
from regard.elements import Box, Element, Tubelet
from regard.inputs import audio, image, video
from regard.inputs.features import ast_features
from regard.inputs.source import InputError, name_of
from regard.models import ModelError
from regard.models.checkpoint import Checkpoint
from regard.models.patch_transformer import PatchConfig
from regard.models.preprocessing import image_settings, sound_settings
from regard.pipelines.drawing import Place, picture_data, spectrogram_data
from regard.relations import Relations, Sequence, observe

if TYPE_CHECKING:
    from regard.inputs.image import Picture

    Media = Picture | tuple[Any, int]

LINKS = 2**20
"""Weights that the relations of one input list, over all heads, unless that is less than `LEAST` of each row: a page
with so many takes some 14 MB."""
LEAST = 8


@dataclass(frozen=True)
class Scene:
    """An input as a model took it, and as a person is shown it.

    Args:
        tensor: without the batch.
        elements: what the positions stand for.
        about: a sentence on what they are.
        pictures: what is shown, see `regard.pipelines.drawing`.
        places: of each element, where it is in the pictures.
    """

    tensor: Tensor
    elements: list[Element]
    about: str
    pictures: list[dict[str, Any]]
    places: list[Place | None]


class MediaReader(ABC):
    """Reads files as one model takes them, and relates their parts; `reader_of` makes the one that fits.

    Args:
        checkpoint: a `PatchTransformer` and its preprocessor_config.json.
        device: where to compute; the CPU by default.

    Raises:
        ModelError: the preprocessor is missing, not known, or makes something else than the model takes.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device("cpu" if device is None else device)
        self.model: Any = checkpoint.model.to(self.device)
        self.config: PatchConfig = self.model.config

    @property
    def modality(self) -> str:
        """What it reads: image, audio or video."""
        return self.checkpoint.family.modality

    @property
    def reads(self) -> str:
        """The same in a sentence."""
        return {"image": "images", "audio": "sound"}.get(self.modality, self.modality)

    @abstractmethod
    def tensor(self, source: Media) -> Tensor:
        """An input as the model takes it, without the batch.

        Raises:
            InputError: it cannot be read; the message names it.
        """

    @abstractmethod
    def scene(self, source: Media) -> Scene:
        """The same, with the elements that the model's positions stand for, and what a person is shown."""

    def relate(self, scene: Scene, task: str) -> Relations:
        """Which element attended to which, from one pass over one input."""
        sequence = Sequence(
            self.modality,
            {"audio": "sound"}.get(self.modality, self.modality),
            tuple(scene.elements),
            modality=self.modality,
        )
        about = {"name": self.checkpoint.directory.name, "task": task, "description": ""}
        rows = self.config.layers * self.config.heads * len(scene.elements)
        watch = Watch(top=top_of(rows, len(scene.elements)))
        with (
            torch.no_grad(),
            observe(self.model, watch=watch, elements={"": sequence}, about=about, this_thread=True) as relations,
        ):
            self.model.hidden(scene.tensor[None].to(self.device))
        return relations

    def report(self, scene: Scene, relations: Relations, name: str, answer: str) -> dict[str, Any]:
        """Input, answer, relations and pictures as data; see `regard.view`."""
        report: dict[str, Any] = relations.to_dict() | {"input": name, "answer": answer, "alignment": None}
        report["sequences"][self.modality] |= {
            "about": scene.about,
            "pictures": scene.pictures,
            "places": [None if place is None else [*place] for place in scene.places],
        }
        return report


class ImageReader(MediaReader):
    """Images, in patches."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None) -> None:
        super().__init__(checkpoint, device)
        self.settings = image_settings(checkpoint)

    def tensor(self, source: Media) -> Tensor:
        pixels = image.image_tensor(_picture(source), self.settings)  # (3, H, W)
        size = tuple(pixels.shape[1:])
        fits = all(n >= p for n, p in zip(size, self.config.patch, strict=True))
        if size != self.config.size and (self.config.resized == "never" or not fits):
            made, taken = (f"{width} × {height}" for height, width in (size, self.config.size))
            raise InputError(f"{name_of(source)} becomes an image of {made} pixels: the model takes {taken}")
        return pixels

    def scene(self, source: Media) -> Scene:
        pixels = self.tensor(source)
        read = image.read_image(_picture(source))
        size = pixels.shape[1], pixels.shape[2]
        rows, columns = self.config.grid_of(size)
        elements = image.patch_elements(
            read.height,
            read.width,
            self.settings,
            (rows, columns),
            patch=(self.config.patch[0], self.config.patch[1]),
            before=self.config.prefix,
        )
        window = self.settings.window(read.height, read.width)
        wide, high = (window.right - window.left) / size[1], (window.bottom - window.top) / size[0]
        about = (
            f"{read.width} × {read.height} pixels, seen in {rows} × {columns} patches (rows × columns) of "
            f"{self.config.patch[1] * wide:.0f} × {self.config.patch[0] * high:.0f} pixels{_beside(self.config)}"
        )
        places = [_place(0, e.span) if isinstance(e.span, Box) else None for e in elements]
        return Scene(pixels, elements, about, [picture_data(read)], places)


class AudioReader(MediaReader):
    """Sound, in patches of its log-mel spectrogram."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None) -> None:
        super().__init__(checkpoint, device)
        self.settings = sound_settings(checkpoint)

    def tensor(self, source: Media) -> Tensor:
        return ast_features(self._samples(source), self.settings).T[None]  # (1, M, T)

    def scene(self, source: Media) -> Scene:
        samples = self._samples(source)
        features = ast_features(samples, self.settings)  # (T, M)
        config, duration = self.config, len(samples) / self.settings.rate
        patch, stride = (config.patch[0], config.patch[1]), (config.stride[0], config.stride[1])
        bands, times = config.grid
        elements = audio.spectrogram_elements(
            (bands, times), patch=patch, stride=stride, duration=duration, before=config.prefix
        )
        read = min(duration, self.settings.frames * 0.01 + 0.015)
        heard = min(self.settings.frames, 1 + (len(samples) - 400) // 160)
        shown = f"the first {read:.2f} s of {duration:.2f} s" if read < duration else f"{duration:.2f} s"
        real = sum(e.span is not None for e in elements)
        about = (
            f"{shown} of sound, seen in {bands} × {times} patches (mel bands × times) of {patch[0]} mel bins and "
            f"{patch[1]} frames of 10 ms, of which {real} hold sound{_beside(config)}"
        )
        if stride != patch:
            about += "; patches overlap: of each its middle is drawn"
        places: list[Place | None] = [None] * len(config.prefix)
        for band in range(bands):
            places += [_middle(band, time, patch, stride, config.size) for time in range(times)]
        return Scene(features.T[None], elements, about, [spectrogram_data(features, heard)], places)

    def _samples(self, source: Media) -> Tensor:
        """The sound of a file, or of (samples, rate); the features need a frame at least, and something to hear."""
        name = name_of(source)
        if isinstance(source, tuple):
            samples = audio.read_audio(source[0], self.settings.rate, source_rate=source[1])
        elif isinstance(source, str | os.PathLike | bytes):
            samples = audio.read_audio(source, self.settings.rate)
        else:
            raise TypeError(f"source is {type(source).__name__}: it must be a path, bytes, or a tuple (samples, rate)")
        audio.check_heard(samples, name)
        if len(samples) < 400:
            raise InputError(f"{name} has {1000 * len(samples) / self.settings.rate:.0f} ms of sound: 25 ms are needed")
        return samples


class VideoReader(MediaReader):
    """Video, in tubelets: patches that reach over some frames."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None) -> None:
        super().__init__(checkpoint, device)
        self.settings = image_settings(checkpoint)

    def tensor(self, source: Media) -> Tensor:
        return self._read(source).pixels.transpose(0, 1).contiguous()  # (3, T, H, W)

    def scene(self, source: Media) -> Scene:
        read, config = self._read(source), self.config
        size, (steps, rows, columns) = config.patch[0], config.grid
        elements = video.tubelet_elements(
            read,
            self.settings,
            (rows, columns),
            size=size,
            patch=(config.patch[1], config.patch[2]),
            before=config.prefix,
        )
        frames = video.read_frames(_file(source), len(read.frames))
        pictures: list[dict[str, Any]] = []
        for t in range(0, len(frames), size):
            numbers = ", ".join(dict.fromkeys(str(frame.index) for frame in frames[t : t + size]))
            first, stop = frames[t].seconds.first, frames[t + size - 1].seconds.stop
            title = f"{first:.2f}–{stop:.2f} s, {'frames' if ',' in numbers else 'frame'} {numbers}"
            pictures.append(picture_data(frames[t].image, most=320, title=title))
        about = (
            f"{len(read.frames)} frames of {read.width} × {read.height} pixels from {read.seconds[0].first:.2f} to "
            f"{read.seconds[-1].stop:.2f} s, seen in {steps} × {rows} × {columns} tubelets (times × rows × columns) of "
            f"{size} frames{_beside(config)}; of each time its first frame is drawn"
        )
        places: list[Place | None] = []
        for element in elements:
            time = (element.index - len(config.prefix)) // (rows * columns)
            places.append(_place(time, element.span.box) if isinstance(element.span, Tubelet) else None)
        return Scene(read.pixels.transpose(0, 1).contiguous(), elements, about, pictures, places)

    def _read(self, source: Media) -> video.Video:
        return video.read_video(_file(source), self.settings, self.config.size[0])


def top_of(rows: int, keys: int) -> int:
    """How many weights a row lists, of so many rows and at most so many keys: see `LINKS`."""
    return max(LEAST, min(keys, LINKS // rows))


def reader_of(checkpoint: Checkpoint, device: str | torch.device | None = None) -> MediaReader:
    """The reader of a checkpoint.

    Raises:
        ModelError: it reads neither images nor sound nor video as patches; or as `MediaReader`.
    """
    kinds = {"image": ImageReader, "audio": AudioReader, "video": VideoReader}
    family = checkpoint.family
    if family.modality not in kinds or not isinstance(getattr(checkpoint.model, "config", None), PatchConfig):
        raise ModelError(f"{checkpoint.directory} holds a {family.name}: it must be a model of images, sound or video")
    return kinds[family.modality](checkpoint, device)


def _picture(source: Media) -> Picture:
    if isinstance(source, tuple):
        raise TypeError("source is a tuple: it must be a path, bytes, an image, an array or a tensor")
    return source


def _file(source: Media) -> str | os.PathLike[str] | bytes:
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(f"source is {type(source).__name__}: a video must be a path or bytes")
    return source


def _beside(config: PatchConfig) -> str:
    """The positions that are no patches."""
    return f", and {' '.join(config.prefix)}" if config.prefix else ""


def _place(picture: int, box: Box) -> Place:
    return picture, box.left, box.top, box.right, box.bottom


def _middle(band: int, time: int, patch: tuple[int, int], stride: tuple[int, int], size: tuple[int, ...]) -> Place:
    """The middle of a patch, which no other patch covers, in a picture whose pixels are frames and mel bins."""
    high, wide = (min(p, s) for p, s in zip(patch, stride, strict=True))
    left = time * stride[1] + (patch[1] - wide) / 2
    bottom = size[0] - band * stride[0] - (patch[0] - high) / 2
    return 0, left, bottom - high, left + wide, bottom
