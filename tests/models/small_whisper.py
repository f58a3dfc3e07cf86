"""A small random checkpoint that transcribes, in windows of a second, as a directory: model, tokenizer, features."""

import json
import wave
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.inputs.tokenizer.made import byte_backend
from tests.models.parity import saved

STAMPS = [f"<|{i / 50:.2f}|>" for i in range(51)]
LANGUAGES = ["en", "de", "ja"]


def small_whisper(directory: Path, seed: int = 0, **generation: Any) -> tuple[Any, Path]:
    """Their model, and where it is saved; further values go into generation_config.json, None takes one out."""
    backend = byte_backend()
    names = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
    names += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    backend.add_special_tokens(names)
    backend.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in STAMPS])
    ids = {name: backend.token_to_id(name) for name in ["<|endoftext|>", *names]}
    config = WhisperConfig(
        vocab_size=backend.get_vocab_size(), num_mel_bins=80, d_model=32, encoder_layers=2, decoder_layers=4,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_source_positions=50, max_target_positions=40, pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"], suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    theirs, place = saved(directory, WhisperForConditionalGeneration, config, scale=3.0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"):
                parameter.normal_(std=0.8)
            elif parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
            elif parameter.dim() == 3:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(place)
    content = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "max_length": 40,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "max_initial_timestamp_index": 20,
        "alignment_heads": [[2, 0], [3, 1], [3, 3]],
        "suppress_tokens": [*ids.values()][1:],
        "begin_suppress_tokens": [ids["<|endoftext|>"]],
    } | generation
    content = {name: value for name, value in content.items() if value is not None}
    (place / "generation_config.json").write_text(json.dumps(content))
    backend.save(str(place / "tokenizer.json"))
    about = {"tokenizer_class": "WhisperTokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "chunk_length": 1}
    (place / "preprocessor_config.json").write_text(json.dumps(features))
    return type(theirs).from_pretrained(place).eval(), place


def write_sound(path: Path, samples: torch.Tensor) -> Path:
    """A sound at 16 kHz as a file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).to(torch.int16).numpy().tobytes())
    return path


def speech_like(seconds: float, seed: int = 0) -> torch.Tensor:
    """Tones that change, in noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * 16_000)) / 16_000
    pitch = 200 + 150 * torch.sin(3 * time) + 80 * torch.sin(17 * time)
    noise = 0.02 * torch.randn(len(time), generator=generator)
    loud = 0.3 + 0.25 * torch.sin(5 * time + seed)
    return loud * torch.sin(torch.cumsum(pitch, 0) * 2 * torch.pi / 16_000) * 0.8 + noise
