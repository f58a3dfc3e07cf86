"""Transformers behind convolutions: plain torch computes the same; they are written, read and seen as others are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import regard
from regard.models import Checkpoint, ModelError, load
from regard.models.checkpoint import new_checkpoint
from regard.models.convolutional import IMAGE, SOUND, ConvolutionalConfig
from regard.models.convolutions import GridFeedForward, Stages
from regard.models.patch_transformer import PatchTransformer
from tests.pipelines.small_media import chirp, scene

SMALL = ConvolutionalConfig(
    channels=3, size=(16, 24), patch=(4, 4), stride=(4, 4), d_model=16, layers=2, heads=2, feed_forward=24,
    activation="relu", norm_eps=1e-6, class_token=False, pooling="mean", labels=("cat", "dog", "snow"),
    widths=(4, 8), blocks=(1, 0, 1),
)  # fmt: skip
HEARD = replace(SMALL, channels=1, size=(16, 32), patch=(8, 4), stride=(8, 4), modality="audio")
IMAGES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 24}}
SOUNDS = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 16, "max_length": 32}


def made(kind: str, config: ConvolutionalConfig, files: dict[str, Any] | None = None) -> Checkpoint:
    """A model whose every parameter and running mean is something else than it was at first."""
    torch.manual_seed(3)
    text = {} if files is None else {"preprocessor_config.json": json.dumps(files).encode()}
    found = new_checkpoint(kind, config, files=text)
    with torch.no_grad():
        for name, tensor in found.model.state_dict().items():
            tensor.add_(
                0.2 * torch.rand_like(tensor) if name.endswith("running_var") else 0.2 * torch.randn_like(tensor)
            )
    return found


def plain(state: dict[str, Tensor], config: ConvolutionalConfig, x: Tensor) -> Tensor:
    """The scores by torch's functions alone, from the parameters' names."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    place = 0
    for stage, (count, stride) in enumerate(zip(config.blocks, config.strides, strict=True)):
        if stage:
            x = norm(x, f"patches.layers.{place}").relu()
            place += 2
        x = F.conv2d(x, state[f"patches.layers.{place}.weight"], stride=stride, padding=1)
        place += 1
        for _ in range(count):
            block = f"patches.layers.{place}"
            y = F.conv2d(norm(x, f"{block}.first_norm").relu(), state[f"{block}.first.weight"], padding=1)
            x = x + F.conv2d(norm(y, f"{block}.second_norm").relu(), state[f"{block}.second.weight"], padding=1)
            place += 1
    x = norm(x, f"patches.layers.{place}").relu()
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2) + state["positions"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], config.norm_eps)

    for i in range(config.layers):
        name = f"encoder.blocks.{i}"
        qkv = linear(layer_norm(x, f"{name}.attention_norm"), f"{name}.attention.qkv")
        q, k, v = (t.unflatten(2, (config.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.attention.out")
        u = linear(layer_norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward.up")
        image = u.transpose(1, 2).unflatten(2, (rows, columns))
        near = f"{name}.feed_forward.near"
        image = F.conv2d(image, state[f"{near}.weight"], state[f"{near}.bias"], padding=1, groups=image.shape[1])
        x = x + linear((u + image.flatten(2).transpose(1, 2)).relu(), f"{name}.feed_forward.down")
    return linear(layer_norm(x, "encoder.norm").mean(1), "readout.scores")


@pytest.mark.parametrize(("kind", "config"), [(IMAGE, SMALL), (SOUND, HEARD)])
def test_plain_torch_computes_the_same_scores(kind: str, config: ConvolutionalConfig):
    model = made(kind, config).model.double().eval()
    x = torch.randn(3, config.channels, *config.size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(dict(model.state_dict()), config, x), atol=1e-9, rtol=1e-9)


def test_written_and_read_again_it_is_the_same(tmp_path: Path):
    first = made(SOUND, HEARD)
    first.model.train()(torch.randn(4, 1, 16, 32))  # the running means move
    found = load(first.save(tmp_path / "model"))
    assert isinstance(found, Checkpoint) and found.model.config == HEARD
    x = torch.randn(2, 1, 16, 32)
    with torch.no_grad():
        assert torch.equal(found.model(x), first.model.eval()(x))
    assert set(found.model.state_dict()) == set(first.model.state_dict())


def test_an_image_is_seen_cell_by_cell(tmp_path: Path):
    place = made(IMAGE, SMALL, IMAGES).save(tmp_path / "model")
    picture = scene()
    pipeline: Any = regard.pipeline(place)
    answer = pipeline(picture)
    assert answer.label in SMALL.labels
    elements = answer.scene.elements
    assert len(elements) == 4 * 6 and elements[-1].span.right == pytest.approx(picture.width)
    (site, *rest) = answer.relations.sites
    assert len(rest) == SMALL.layers - 1 and site.heads == SMALL.heads
    report = answer.report()
    assert len(report["sequences"]["image"]["places"]) == 24


def test_a_sound_is_seen_too(tmp_path: Path):
    place = made(SOUND, HEARD, SOUNDS).save(tmp_path / "model")
    pipeline: Any = regard.pipeline(place)
    answer = pipeline((chirp(16_000), 16_000))
    assert answer.label in HEARD.labels and len(answer.scene.elements) == 2 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "smell"}, "modality is 'smell': it must be 'image' or 'audio'"),
        ({"blocks": (1, 1)}, r"blocks is \(1, 1\): it must have one entry more than widths"),
        ({"size": (16, 22)}, "patches must fill it side by side"),
        ({"stride": (2, 2)}, "patches must fill it side by side"),
        ({"size": (16, 48), "patch": (16, 16), "stride": (16, 16)}, r"each side must be one of 1, 2, 4, 8"),
        ({"size": (15, 24), "patch": (3, 4), "stride": (3, 4)}, r"each side must be one of 1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_damaged_config_is_an_error_that_names_the_field(tmp_path: Path):
    place = made(IMAGE, SMALL).save(tmp_path / "model")
    settings = json.loads((place / "config.json").read_text())
    for name, value in (("stage_widths", "wide"), ("stage_blocks", [1, -1, 0]), ("patch_size", [5, 4])):
        (place / "config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ModelError, match=name.removesuffix("_size")):
            load(place)


def test_stages_and_grid():
    with pytest.raises(ValueError, match="there are 2 widths, 1 numbers of blocks and 2 strides"):
        Stages(3, (4, 8), (1,), ((1, 1), (2, 2)))
    feed_forward = GridFeedForward(6, 8, (3, 5)).double()
    x = torch.randn(2, 15, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = feed_forward.down(feed_forward.up(x).relu())
        torch.testing.assert_close(feed_forward(x), expected)  # at first neighbours do not count
        feed_forward.near.weight.normal_()
        moved = x.clone()
        moved[:, 0] += 1.0
        changed = (feed_forward(moved) - feed_forward(x)).abs().sum((0, 2)).unflatten(0, (3, 5)) > 0
    expected_cells = np.zeros((3, 5), dtype=bool)
    expected_cells[:2, :2] = True  # the cell and its neighbours, no other
    assert np.array_equal(changed.numpy(), expected_cells)


def test_without_classes_it_makes_hidden_states():
    found = new_checkpoint(IMAGE, replace(SMALL, labels=()))
    assert found.head == "hidden" and isinstance(found.model, PatchTransformer)
    assert found.model(torch.randn(2, 3, 16, 24)).shape == (2, 24, 16)
