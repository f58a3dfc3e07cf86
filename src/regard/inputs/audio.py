"""Sound: any file that FFmpeg reads, an array or a tensor → one channel of float32 at the rate that a model wants.

N | samples    C | channels    rate | samples a second
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.elements import Band, Element, Seconds
from regard.inputs.media import decoded, recording
from regard.inputs.source import InputError, Source, name_of, reading

if TYPE_CHECKING:
    import numpy
    from av.audio.frame import AudioFrame

    Array = numpy.ndarray[Any, Any]

MOST_SECONDS = 3600.0
"""Longer recordings are not held in memory unless asked for: at 16 kHz this is 230 MB."""

_RATES = (100, 6_144_000)  # what a header may claim: the filter of the resampler grows with the ratio of two rates
_LOUDEST = 2.0**31  # full scale is 1; some files of floating point hold what were integers


def audio_blocks(source: Source, rate: int, *, block: int | None = None) -> Iterator[Tensor]:
    """The sound of a file, piece by piece, in memory that does not grow with its length.

    Of several audio streams the first; channels become one by their mean; samples follow each other as they are
    stored, whatever their time stamps say.

    Args:
        source: an audio or video file that FFmpeg reads, or its bytes.
        rate: samples a second of what is wanted.
        block: samples of each piece but the last, which may be shorter; a second's unless given.

    Yields:
        (block,) float32; full scale is −1 … 1.

    Raises:
        InputError: the file cannot be read, has no sound in it, or is damaged; raised when the damage is reached.
        ValueError: rate or block is not positive.
    """
    block = rate if block is None else block
    if rate < 1 or block < 1:
        raise ValueError(f"rate is {rate} and block {block}: both must be positive")
    return _cut(_file_samples(source, rate), block, name_of(source))


def read_audio(
    source: Source | Array | Tensor, rate: int, *, source_rate: int | None = None, most_seconds: float = MOST_SECONDS
) -> Tensor:
    """The whole sound of a file, an array or a tensor: (N,) float32, one channel, full scale −1 … 1.

    Args:
        source: what `audio_blocks` takes; or samples (N,) or (C, N): floating point as they are, int16 and int32
            divided by their full scale, uint8 with its zero at 128.
        rate: samples a second of what is wanted.
        source_rate: samples a second of an array or tensor; a file says itself.
        most_seconds: longer files are refused.

    Raises:
        InputError: as `audio_blocks`, or the file is longer than `most_seconds`, or the samples are no sound.
        ValueError: source_rate is missing, or given for a file.
    """
    name = name_of(source)
    if isinstance(source, str | bytes) or hasattr(source, "__fspath__"):
        if source_rate is not None:
            raise ValueError(f"source_rate is {source_rate}: a file says its rate itself")
        pieces: list[Tensor] = []
        for piece in audio_blocks(source, rate):  # pyright: ignore[reportArgumentType]
            pieces.append(piece)
            if len(pieces) > most_seconds:
                raise InputError(f"{name} is longer than {most_seconds:g} s: read it with audio_blocks")
        return torch.cat(pieces)
    if source_rate is None:
        raise ValueError("source_rate is None: samples do not say how many make a second")
    samples = _mono_array(source)  # pyright: ignore[reportArgumentType]
    block = max(source_rate, 1)
    resampler = _Resampler(rate, name)
    parts = [*(resampler(samples[i : i + block], source_rate) for i in range(0, len(samples), block)), resampler.rest()]
    return torch.cat([*_cut(iter(parts), rate, name)])


def check_heard(samples: Tensor, name: str) -> None:
    """Refuse silence, for models whose answer would mean nothing then.

    Args:
        samples: (N,).
        name: what errors call the sound.

    Raises:
        InputError: all samples are the same.
    """
    if len(samples) and samples.min() == samples.max():
        raise InputError(f"{name} is silent: its {len(samples)} samples are all {float(samples[0]):g}")


def frame_elements(
    count: int, hop: float, *, width: float | None = None, duration: float | None = None, before: tuple[str, ...] = ()
) -> list[Element]:
    """The frames of a sound as elements, labelled with the second at which they begin.

    Args:
        count: how many frames.
        hop: seconds from one to the next.
        width: seconds of each; hop unless given.
        duration: seconds of the sound; what begins after them is "padding", and has no span.
        before: labels of positions before the first frame; they have no span.
    """
    elements = [Element(i, label, "audio") for i, label in enumerate(before)]
    for i in range(count):
        first, stop = i * hop, i * hop + (hop if width is None else width)
        elements.append(_stretch(len(elements), first, stop, duration))
    return elements


def spectrogram_elements(
    grid: tuple[int, int],
    *,
    patch: tuple[int, int] = (16, 16),
    stride: tuple[int, int] = (10, 10),
    hop: float = 0.01,
    window: float = 0.025,
    duration: float | None = None,
    before: tuple[str, ...] = (),
) -> list[Element]:
    """The patches of a spectrogram as elements, a band of frequencies after the other.

    Args:
        grid: patches in frequency, and in time: (12, 101) for an Audio Spectrogram Transformer (arXiv 2104.01778).
        patch: mel bins and frames of each.
        stride: mel bins and frames from one to the next.
        hop: seconds from one frame to the next.
        window: seconds of a frame.
        duration: seconds of the sound; what begins after them is "padding", and has no span.
        before: labels of positions before the first patch; they have no span.
    """
    elements = [Element(i, label, "audio") for i, label in enumerate(before)]
    for band in range(grid[0]):
        low, high = band * stride[0], band * stride[0] + patch[0]
        for time in range(grid[1]):
            first = time * stride[1] * hop
            element = _stretch(len(elements), first, first + (patch[1] - 1) * hop + window, duration)
            if isinstance(element.span, Seconds):
                element = replace(
                    element, label=f"{element.label}, mel {low}–{high - 1}", span=Band(element.span, (low, high))
                )
            elements.append(element)
    return elements


def _stretch(index: int, first: float, stop: float, duration: float | None) -> Element:
    if duration is not None and first >= duration:
        return Element(index, "padding", "audio")
    span = Seconds(first, stop if duration is None else min(stop, duration))
    return Element(index, f"{first:.2f} s", "audio", span)


def _file_samples(source: Source, rate: int) -> Iterator[Tensor]:
    """The sound of a file at a rate, in pieces of any length."""
    name = name_of(source)
    with recording(source) as container, closing(decoded(source, "audio", container)) as frames:  # pyright: ignore
        resampler = _Resampler(rate, name)
        for frame in frames:
            yield resampler(_mono_frame(frame, name), frame.sample_rate)  # pyright: ignore
        yield resampler.rest()


def _cut(pieces: Iterator[Tensor], block: int, name: str) -> Iterator[Tensor]:
    """The same samples in blocks of one length, the last one shorter; checked to be sound at all."""
    held: list[Tensor] = []
    count, total = 0, 0
    for piece in pieces:
        if len(piece) and not (loudest := float(piece.abs().max())) <= _LOUDEST:  # also where there is NaN
            raise InputError(f"{name} holds a sample of {loudest:g}: full scale is 1")
        held.append(piece)
        count += len(piece)
        total += len(piece)
        while count >= block:
            samples = torch.cat(held)
            yield samples[:block].clone()  # a view would keep all of them alive
            held, count = [samples[block:]], count - block
    if count:
        yield torch.cat(held)
    if total == 0:
        raise InputError(f"{name} holds no sound: it has no samples")


def _mono_frame(frame: AudioFrame, name: str) -> Tensor:
    """The mean of the channels of a frame: (N,) float32."""
    with reading(name, "cannot be decoded"):
        samples = torch.from_numpy(frame.to_ndarray())
        channels = frame.layout.nb_channels
        if not frame.format.is_planar:
            samples = samples.reshape(-1, channels).T
    return _floating(samples).mean(0, dtype=torch.float32)


def _mono_array(samples: Array | Tensor) -> Tensor:
    import numpy

    if not isinstance(samples, numpy.ndarray | Tensor):
        raise TypeError(f"source is {type(samples).__name__}: it must be a path, bytes, an array or a tensor")
    kind = "tensor" if isinstance(samples, Tensor) else "array"
    shape = tuple(samples.shape)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= shape[0] <= 64):
        raise InputError(f"the {kind} has shape {shape}: it must be (samples,) or (1 … 64 channels, samples)")
    if isinstance(samples, Tensor):
        tensor = samples.detach().cpu()
    else:
        try:
            tensor = torch.from_numpy(samples.astype(samples.dtype.newbyteorder("=")))
        except TypeError:
            raise InputError(f"the array holds {samples.dtype}, which is no sound") from None
    if not tensor.is_floating_point() and tensor.dtype not in (torch.int16, torch.int32, torch.uint8):
        raise InputError(f"the {kind} holds {tensor.dtype}: it must hold floating point, int16, int32 or uint8")
    tensor = _floating(tensor)
    return (tensor.mean(0) if tensor.ndim == 2 else tensor).to(torch.float32)


def _floating(samples: Tensor) -> Tensor:
    """Samples with 1 as full scale."""
    if samples.dtype == torch.uint8:
        return (samples.to(torch.float32) - 128) / 128
    if samples.dtype in (torch.int16, torch.int32):
        return samples.to(torch.float64) / (2**15 if samples.dtype == torch.int16 else 2**31)
    return samples


class _Resampler:
    """FFmpeg's resampler for one channel; the rate of what comes in may change on the way.

    Silence follows the sound, so that N samples become exactly N times the ratio of the rates, rounded up: left to
    itself the resampler drops the end, and of a very short sound everything.
    """

    def __init__(self, rate: int, name: str) -> None:
        self._rate, self._name = rate, name
        self._from = rate
        self._graph: Any = None
        self._read = self._written = 0  # samples since the rate changed

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        """What these samples of another rate add to the sound, as far as it can be known before the next ones."""
        import av

        if not _RATES[0] <= rate <= _RATES[1]:
            raise InputError(f"{self._name} has {rate} samples a second: it may be {_RATES[0]} to {_RATES[1]}")
        before = torch.empty(0)
        if rate != self._from:
            before = self.rest()
            self._from, self._read, self._written = rate, 0, 0
            self._graph = None if rate == self._rate else av.AudioResampler("flt", "mono", self._rate)
        if self._graph is None or len(samples) == 0:
            return torch.cat([before, samples])
        self._read += len(samples)
        return torch.cat([before, self._resampled(samples)])

    def rest(self) -> Tensor:
        """What was held back, at the end."""
        if self._read == 0:
            return torch.empty(0)
        silence = torch.zeros(64 * (1 + math.ceil(self._from / self._rate)))  # twice as long as the filter, and more
        missing = math.ceil(Fraction(self._read * self._rate, self._from)) - self._written
        return torch.cat([self._resampled(silence), self._resampled(None)])[:missing]

    def _resampled(self, samples: Tensor | None) -> Tensor:
        import av

        frame = None
        with reading(self._name, "cannot be resampled"):
            if samples is not None:
                frame = av.AudioFrame.from_ndarray(samples.numpy()[None], "flt", "mono")
                frame.sample_rate, frame.time_base = self._from, Fraction(1, self._from)
            pieces = [torch.from_numpy(piece.to_ndarray()[0]) for piece in self._graph.resample(frame)]
        result = torch.cat([torch.empty(0), *pieces])
        self._written += len(result)
        return result
