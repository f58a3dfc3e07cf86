"""Spectrograms: what a model is given is what the Hugging Face feature extractors give it."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.inputs.audio import read_audio
from regard.inputs.features import ASTSettings, WhisperSettings, ast_features, whisper_features


def their_whisper(**options: object) -> object:
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    return WhisperFeatureExtractor(**options)


def their_ast(**options: object) -> object:
    from transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer import (
        ASTFeatureExtractor,
    )

    return ASTFeatureExtractor(**options)


def noise(count: int, loud: float, seed: int = 0) -> torch.Tensor:
    """A swelling hiss with a hum, an offset, and silence in the middle."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 1, count)
    samples = loud * (x * torch.randn(count, generator=generator) + (400 * x).sin() + 0.1)
    samples[count // 3 : count // 2] = 0
    return samples


def whisper_differs(samples: torch.Tensor, **options: object) -> float:
    extractor = their_whisper(**options)
    data = json.loads(extractor.to_json_string())
    expected = extractor(samples.numpy(), sampling_rate=extractor.sampling_rate)["input_features"][0]
    ours = whisper_features(samples, WhisperSettings.from_json(data))
    assert ours.shape == expected.shape
    assert ours.dtype == torch.float32
    return float((ours - torch.from_numpy(expected)).abs().max())


def ast_differs(samples: torch.Tensor, **options: object) -> float:
    extractor = their_ast(**options)
    data = json.loads(extractor.to_json_string())
    expected = extractor(samples.numpy(), sampling_rate=16_000)["input_values"][0]
    ours = ast_features(samples, ASTSettings.from_json(data))
    assert ours.shape == expected.shape
    assert ours.dtype == torch.float32
    return float((ours - torch.from_numpy(expected)).abs().max())


@pytest.mark.parametrize("mels", [80, 128])
@settings(max_examples=8)
@given(count=st.integers(1, 520_000), loud=st.sampled_from([0.0, 1e-9, 1e-4, 0.3, 20.0]))
def test_whisper_as_transformers_does_it(mels: int, count: int, loud: float):
    assert whisper_differs(noise(count, loud), feature_size=mels) < 1e-4


@pytest.mark.parametrize(
    "options", [{"chunk_length": 3}, {"n_fft": 512, "hop_length": 200, "chunk_length": 2}, {"sampling_rate": 24_000}]
)
def test_whisper_with_other_settings(options: dict[str, int]):
    assert whisper_differs(noise(40_000, 0.2), **options) < 1e-4


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@settings(max_examples=12)
@given(count=st.integers(400, 200_000), loud=st.sampled_from([0.0, 1e-9, 1e-4, 0.3, 20.0, 30_000.0]))
def test_ast_as_transformers_does_it(count: int, loud: float):
    assert ast_differs(noise(count, loud)) < 1e-4


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize(
    "options",
    [{"num_mel_bins": 64, "max_length": 100}, {"do_normalize": False}, {"mean": -6.0, "std": 3, "max_length": 7}],
)
def test_ast_with_other_settings(options: dict[str, object]):
    assert ast_differs(noise(40_000, 0.2), **options) < 1e-4


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.shared("speech_clips")
def test_speech(shared_data: Path):
    for path in sorted((shared_data / "speech_clips").glob("*.wav")):
        samples = read_audio(path, 16_000)
        assert whisper_differs(samples) < 1e-4
        assert whisper_differs(samples, feature_size=128) < 1e-4
        assert ast_differs(samples) < 1e-4


def test_silence_is_no_nan():
    whisper, ast = whisper_features(torch.zeros(5000)), ast_features(torch.zeros(5000))
    assert whisper.eq(-1.5).all()
    assert ast.isfinite().all()
    assert WhisperSettings().frames == whisper.shape[1] == 3000


@pytest.mark.parametrize("features", [whisper_features, ast_features])
def test_samples_that_are_none(features: object):
    for samples in (torch.zeros(0), torch.zeros(2, 9000), torch.zeros(9000, dtype=torch.int16)):
        with pytest.raises(ValueError, match="samples is torch"):
            features(samples)
    with pytest.raises(ValueError, match="one frame needs 400"):
        ast_features(torch.zeros(399))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_extractor_type": "SpeechT5FeatureExtractor"}, "feature_extractor_type in .* it may be"),
        ({"feature_extractor_type": None}, "has no feature_extractor_type"),
        ({"sampling_rate": 8000}, "sampling_rate in .* is 8000"),
        ({"padding_side": "left"}, "padding_side in .* only 'right'"),
        ({"padding_value": 1.0}, "padding_value"),
        ({"fmin": 20}, "not known here: fmin"),
        ({"feature_size": "80"}, "feature_size in .* is '80'"),
    ],
)
@pytest.mark.parametrize("kind", [WhisperSettings, ASTSettings])
def test_unknown_settings(kind: type, change: dict[str, object], said: str):
    name = {WhisperSettings: "WhisperFeatureExtractor", ASTSettings: "ASTFeatureExtractor"}[kind]
    assert kind.from_json({"feature_extractor_type": name}) == kind()
    with pytest.raises(ValueError, match=said):
        kind.from_json({"feature_extractor_type": name, **change})


def test_what_only_one_of_them_refuses():
    whisper = {"feature_extractor_type": "WhisperFeatureExtractor"}
    for change in ({"dither": 0.1}, {"do_normalize": True}, {"hop_length": 0}, {"chunk_length": True}):
        with pytest.raises(ValueError, match=next(iter(change))):
            WhisperSettings.from_json({**whisper, **change})
    assert WhisperSettings.from_json({**whisper, "mel_filters": [[0.0]], "nb_max_frames": 3000}) == WhisperSettings()
    for change in ({"std": 0}, {"mean": "no"}, {"max_length": 0}, {"num_mel_bins": 2.5}):
        with pytest.raises(ValueError, match=next(iter(change))):
            ASTSettings.from_json({"feature_extractor_type": "ASTFeatureExtractor", **change})


def test_mel_bins_that_end_lower_hear_nothing_above():
    low = ASTSettings(mels=12, frames=20, mean=None, highest=2000.0)
    assert ASTSettings.from_json(low.to_json()) == low
    assert "highest_frequency" not in ASTSettings().to_json()  # transformers has no such setting
    times = torch.arange(4000, dtype=torch.float64) / 16_000
    speech, hiss = (2 * torch.pi * 700 * times).sin(), (2 * torch.pi * 5000 * times).sin()
    torch.testing.assert_close(ast_features(speech + hiss, low), ast_features(speech, low), atol=0.5, rtol=0)
    assert (ast_features(speech + hiss) - ast_features(speech)).abs().max() > 2
    with pytest.raises(ValueError, match="highest_frequency in preprocessor_config.json is 20: it must be above 20"):
        ASTSettings.from_json(low.to_json() | {"highest_frequency": 20})
