"""ViT, DeiT, DINOv2, VideoMAE and the Audio Spectrogram Transformer answer as transformers' do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from regard.models.checkpoint import read_checkpoint
from regard.models.patch_transformer import PatchConfig, PatchTransformer
from tests.models.parity import assert_round_trip, assert_same, saved

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE: dict[str, Any] = SIZES | {"intermediate_size": 80}
IMAGE: dict[str, Any] = {"image_size": 24, "patch_size": 6}
AUDIO: dict[str, Any] = {"max_length": 40, "num_mel_bins": 20, "patch_size": 8}
IMAGES, OTHER_IMAGES = (2, 3, 24, 24), (2, 3, 30, 18)

CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**WIDE, **IMAGE, num_labels=5), IMAGES),
    "vit, no biases, relu": (
        hf.ViTForImageClassification,
        hf.ViTConfig(**WIDE, **IMAGE, qkv_bias=False, hidden_act="relu", num_channels=1, layer_norm_eps=1e-5),
        (2, 1, 24, 24),
    ),
    "vit, hidden": (hf.ViTModel, hf.ViTConfig(**WIDE, **IMAGE), IMAGES),
    "deit": (hf.DeiTForImageClassification, hf.DeiTConfig(**WIDE, **IMAGE, num_labels=3), IMAGES),
    "deit, taught": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**WIDE, **IMAGE, num_labels=3), IMAGES),
    "deit, hidden": (hf.DeiTModel, hf.DeiTConfig(**WIDE, **IMAGE), IMAGES),
    "dinov2": (hf.Dinov2ForImageClassification, hf.Dinov2Config(**SIZES, **IMAGE, num_labels=5), IMAGES),
    "dinov2, swiglu, other size": (
        hf.Dinov2ForImageClassification,
        hf.Dinov2Config(**SIZES, **IMAGE, num_labels=5, use_swiglu_ffn=True),
        OTHER_IMAGES,
    ),
    "dinov2, hidden": (hf.Dinov2Model, hf.Dinov2Config(**SIZES, **IMAGE, mlp_ratio=3), OTHER_IMAGES),
    "registers": (
        hf.Dinov2WithRegistersForImageClassification,
        hf.Dinov2WithRegistersConfig(**SIZES, **IMAGE, num_register_tokens=3, num_labels=5),
        IMAGES,
    ),
    "registers, hidden, other size": (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersConfig(**SIZES, **IMAGE, num_register_tokens=2),
        OTHER_IMAGES,
    ),
    "videomae": (
        hf.VideoMAEForVideoClassification,
        hf.VideoMAEConfig(**WIDE, **IMAGE, num_frames=6, tubelet_size=2, num_labels=5),
        (2, 6, 3, 24, 24),
    ),
    "videomae, first tubelet": (
        hf.VideoMAEForVideoClassification,
        hf.VideoMAEConfig(**WIDE, **IMAGE, num_frames=4, tubelet_size=1, qv_bias=False, use_mean_pooling=False),
        (2, 4, 3, 24, 24),
    ),
    "videomae, hidden": (
        hf.VideoMAEModel,
        hf.VideoMAEConfig(**WIDE, **IMAGE, num_frames=4, use_mean_pooling=False),
        (2, 4, 3, 24, 24),
    ),
    "spectrogram": (
        hf.ASTForAudioClassification,
        hf.ASTConfig(**WIDE, **AUDIO, frequency_stride=4, time_stride=4, num_labels=5),
        (2, 40, 20),
    ),
    "spectrogram, other strides": (
        hf.ASTForAudioClassification,
        hf.ASTConfig(**WIDE, **AUDIO, frequency_stride=6, time_stride=8, qkv_bias=False, num_labels=7),
        (2, 40, 20),
    ),
    "spectrogram, hidden": (hf.ASTModel, hf.ASTConfig(**WIDE, **AUDIO), (2, 40, 20)),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, the directory it is saved in, and an input as theirs wants it."""
    kind, config, shape = CASES[request.param]
    theirs, place = saved(tmp_path_factory.mktemp("patches"), kind, config, scale=3.0)
    return theirs, place, torch.randn(shape)


def answer(model: Any, x: Tensor) -> Tensor:
    """Their answer: scores where there are any."""
    output = model(x)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def ours(x: Tensor) -> Tensor:
    """Their input as our models take it: channels before frames, mel bins before frames."""
    return x.transpose(1, 2)[:, None] if x.dim() == 3 else x.transpose(1, 2) if x.dim() == 5 else x


@torch.no_grad()
def test_same_answers(pair: Any) -> None:
    theirs, place, x = pair
    assert_same(read_checkpoint(place).model(ours(x)), answer(theirs, x))


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    theirs, place, x = pair
    assert_round_trip(place, tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(answer(again, x), answer(theirs, x), atol=1e-5, rtol=1e-5)


CONFIG = PatchConfig(
    channels=3, size=(24, 24), patch=(6, 6), stride=(6, 6), d_model=16, layers=1, heads=2, feed_forward=32
)


@pytest.mark.parametrize("shape", [(1, 3, 24, 30), (1, 1, 24, 24)])
def test_an_input_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"this model takes \(3, 24, 24\)"):
        PatchTransformer(CONFIG)(torch.zeros(shape))


def test_without_labels_there_is_no_head() -> None:
    with pytest.raises(ValueError, match="no classifier"):
        PatchTransformer(CONFIG).head(torch.zeros(1, 17, 16))
