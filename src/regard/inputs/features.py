"""Sound → what speech and audio models read: the log-mel spectrograms of Whisper and of the Audio Spectrogram
Transformer.

N | samples    M | mel bins    T | frames    F | frequencies of a Fourier transform
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.inputs.settings import Settings

_TYPE_KEYS = ("feature_extractor_type",)
# Of every feature extractor; padding is silence on the right, and what is asked for beside it are the features alone.
_SHARED = {"feature_extractor_type", "processor_class", "return_attention_mask", "padding_side", "padding_value"}


@dataclass(frozen=True)
class WhisperSettings:
    """Whisper's log-mel spectrogram of a window of sound (arXiv 2212.04356)."""

    mels: int = 80  # M; 128 from large-v3 on
    rate: int = 16_000  # samples a second
    seconds: int = 30  # of a window: longer sound is cut off, shorter is filled up with silence
    n_fft: int = 400  # samples of a frame
    hop: int = 160  # samples from one frame to the next

    @property
    def samples(self) -> int:
        """Of a window."""
        return self.seconds * self.rate

    @property
    def frames(self) -> int:
        """Of a window, T."""
        return self.samples // self.hop

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WhisperSettings:
        """The settings that the `preprocessor_config.json` of a WhisperFeatureExtractor says.

        Raises:
            ValueError: it is of another kind, or has a setting that is not known here or cannot be.
        """
        settings = Settings(data)
        settings.kind(_TYPE_KEYS, ("WhisperFeatureExtractor",))
        derived = {"n_samples", "nb_max_frames", "mel_filters"}  # follow from the others
        own = {"feature_size", "sampling_rate", "chunk_length", "n_fft", "hop_length", "dither", "do_normalize"}
        settings.check_known({*_SHARED, *own, *derived})
        _only_silence(settings)
        settings.only("dither", 0)
        settings.only("do_normalize", False)
        return cls(
            settings.whole("feature_size", 80, 1, 1024),
            settings.whole("sampling_rate", 16_000, 16_000, 768_000),  # the mel bins end at 8 kHz
            settings.whole("chunk_length", 30, 1, 3600),
            settings.whole("n_fft", 400, 2, 65_536),
            settings.whole("hop_length", 160, 1, 65_536),
        )


@dataclass(frozen=True)
class ASTSettings:
    """The Audio Spectrogram Transformer's log-mel spectrogram, as Kaldi computes it (arXiv 2104.01778).

    Frames of 25 ms, 10 ms apart, of sound at 16 kHz.
    """

    mels: int = 128  # M
    frames: int = 1024  # T: more are cut off, fewer are filled up with zeros
    mean: float | None = -4.2677393  # subtracted; None: not normalised
    std: float = 4.5689974  # divided by twice this
    highest: float = 8000.0  # Hz, where the last mel bin ends

    rate = 16_000

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ASTSettings:
        """The settings that the `preprocessor_config.json` of an ASTFeatureExtractor says.

        Raises:
            ValueError: it is of another kind, or has a setting that is not known here or cannot be.
        """
        settings = Settings(data)
        settings.kind(_TYPE_KEYS, ("ASTFeatureExtractor",))
        own = {"feature_size", "sampling_rate", "num_mel_bins", "max_length", "do_normalize", "mean", "std"}
        settings.check_known({*_SHARED, *own, "highest_frequency"})
        _only_silence(settings)
        settings.only("feature_size", 1)
        settings.only("sampling_rate", cls.rate)
        std = settings.number("std", cls.std)
        if std <= 0:
            raise settings.error("std", "it must be positive")
        mean = settings.number("mean", -4.2677393) if settings.flag("do_normalize", True) else None
        highest = settings.number("highest_frequency", cls.highest)  # our own: transformers ends at 8 kHz
        if not 20 < highest <= 8000:
            raise settings.error("highest_frequency", "it must be above 20 and at most 8000")
        mels, frames = settings.whole("num_mel_bins", 128, 1, 1024), settings.whole("max_length", 1024, 1, 2**20)
        return cls(mels, frames, mean, std, highest)

    def to_json(self) -> dict[str, Any]:
        """A `preprocessor_config.json` that says the same; see `from_json`."""
        return {
            "feature_extractor_type": "ASTFeatureExtractor",
            "feature_size": 1,
            "sampling_rate": self.rate,
            "num_mel_bins": self.mels,
            "max_length": self.frames,
            "do_normalize": self.mean is not None,
            "mean": -4.2677393 if self.mean is None else self.mean,
            "std": self.std,
            "padding_side": "right",
            "padding_value": 0.0,
            **({} if self.highest == 8000 else {"highest_frequency": self.highest}),
        }


def whisper_features(samples: Tensor, settings: WhisperSettings | None = None) -> Tensor:
    """The log-mel spectrogram that Whisper reads: (M, T) float32.

    Args:
        samples: (N,) floating point at the settings' rate, full scale 1; what is beyond a window is cut off.
        settings: Whisper's first ones unless given.

    Raises:
        ValueError: samples is not of that form, or empty.
    """
    settings = settings or WhisperSettings()
    samples = _checked(samples)[: settings.samples].to(torch.float32)
    samples = torch.nn.functional.pad(samples, (0, settings.samples - len(samples)))
    window = torch.hann_window(settings.n_fft, device=samples.device)
    # (F, T + 1), the frames centred on multiples of the hop; the last one is left out
    spectrum = torch.stft(samples, settings.n_fft, settings.hop, window=window, return_complex=True)[:, :-1]
    filters = _slaney_filters(settings.mels, settings.n_fft, settings.rate).to(samples)
    levels = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()  # (M, T)
    return (levels.clamp(min=levels.max() - 8) + 4) / 4


def ast_features(samples: Tensor, settings: ASTSettings | None = None) -> Tensor:
    """The log-mel spectrogram that an Audio Spectrogram Transformer reads: (T, M) float32.

    Args:
        samples: (N,) floating point at 16 kHz, full scale 1, at least one frame of 400.
        settings: AudioSet's unless given.

    Raises:
        ValueError: samples is not of that form, or too short.
    """
    settings = settings or ASTSettings()
    samples = _checked(samples)
    if len(samples) < 400:
        raise ValueError(f"samples has {len(samples)} samples: one frame needs 400")
    # In float64: the frequencies of a frame differ by many orders of magnitude, and the logarithm shows them all.
    frames = samples[: 400 + 160 * (settings.frames - 1)].to(torch.float64).unfold(0, 400, 160)  # (T, 400)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - 0.97 * before) * torch.hann_window(400, periodic=False, dtype=torch.float64).to(samples.device)
    power = torch.fft.rfft(frames, 512).abs().square()  # (T, 257)
    levels = (
        (power @ _kaldi_filters(settings.mels, settings.highest).T.to(power))
        .clamp(min=torch.finfo(torch.float32).eps)
        .log()
    )
    levels = torch.nn.functional.pad(levels.to(torch.float32), (0, 0, 0, settings.frames - len(levels)))
    return levels if settings.mean is None else (levels - settings.mean) / (settings.std * 2)


def _only_silence(settings: Settings) -> None:
    settings.only("padding_value", 0)
    settings.only("padding_side", "right")


def _checked(samples: Tensor) -> Tensor:
    if samples.ndim != 1 or not samples.is_floating_point() or len(samples) == 0:
        form = f"{samples.dtype} of shape {tuple(samples.shape)}"
        raise ValueError(f"samples is {form}: it must be floating point of shape (N,), N at least 1")
    return samples


@cache
def _slaney_filters(mels: int, n_fft: int, rate: int) -> Tensor:
    """(M, F): triangles over Hz, each of the same area, as Slaney's Auditory Toolbox has them: 0 to 8000 Hz."""
    step = 6.4 ** (1 / 27)  # above 1000 Hz, which is mel 15, the ratio of a mel to the next
    top = 15 + math.log(8000 / 1000) / math.log(step)
    mel = torch.linspace(0, top, mels + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * step ** (mel - 15))
    bins = torch.linspace(0, rate // 2, n_fft // 2 + 1, dtype=torch.float64)
    return _triangles(edges, bins) * (2 / (edges[2:] - edges[:-2]))[:, None]


@cache
def _kaldi_filters(mels: int, highest: float) -> Tensor:
    """(M, F): triangles over mel, each of height 1, as Kaldi has them: 20 Hz to the highest."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * (1 + hertz / 700).log()

    low, high = mel(torch.tensor([20.0, highest], dtype=torch.float64)).tolist()
    bins = mel(torch.arange(257, dtype=torch.float64) * 16_000 / 512)
    return _triangles(torch.linspace(low, high, mels + 2, dtype=torch.float64), bins)


def _triangles(edges: Tensor, bins: Tensor) -> Tensor:
    """(M, F): filter m rises from 0 at edge m to 1 at edge m + 1 and falls to 0 at edge m + 2."""
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
