"""New models are written as checkpoints that regard and transformers read alike, or are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
from regard.models import Checkpoint, ModelError, load
from regard.models.bert import BertConfig
from regard.models.checkpoint import new_checkpoint
from regard.models.classifier import to_classifier
from regard.models.llama import LlamaConfig
from regard.models.patch_transformer import PatchConfig
from tests.models.small_bert import as_sentence_encoder

LLAMA = LlamaConfig(
    vocab_size=40, d_model=16, layers=2, heads=4, kv_heads=2, head_size=6, feed_forward=24, max_positions=32
)
BERT = BertConfig(vocab_size=40, d_model=16, layers=2, heads=4, feed_forward=24, max_positions=32)
VIT = PatchConfig(
    channels=3, size=(12, 18), patch=(6, 6), stride=(6, 6), d_model=16, layers=2, heads=4, feed_forward=24,
    labels=("cat", "dog", "newt"),
)  # fmt: skip
AST = PatchConfig(
    channels=1, size=(20, 30), patch=(8, 8), stride=(5, 6), d_model=16, layers=2, heads=4, feed_forward=24,
    distillation_token=True, pooling="both tokens", pooled_norm=1e-12, labels=("yes", "no"),
)  # fmt: skip
IDS = torch.tensor([[5, 9, 2, 39, 0, 7]])


def both(made: Checkpoint, kind: str, place: Path) -> tuple[Checkpoint, Any]:
    transformers = pytest.importorskip("transformers")
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save(place)
    found = load(place)
    assert isinstance(found, Checkpoint) and found.model.config == made.model.config
    return found, getattr(transformers, kind).from_pretrained(place).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True},
        {"rotary_base": 123.0, "activation": "gelu_tanh", "norm_eps": 1e-3},
        {"attention_bias": True, "out_bias": True, "feed_forward_bias": True, "kv_heads": 4},
    ],
)
def test_llama(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = new_checkpoint("llama", replace(LLAMA, **changes), extra={"eos_token_id": 3})
    assert made.model.training
    found, theirs = both(made, "AutoModelForCausalLM", tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(found.model(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    assert theirs.config.eos_token_id == 3


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "AutoModel"),
        ({"head": "fill", "types": 1, "activation": "relu", "head_activation": "relu"}, "AutoModelForMaskedLM"),
        (
            {"head": "classify", "labels": ("a", "b", "ü"), "head_activation": "tanh", "dropout": 0.2},
            "AutoModelForSequenceClassification",
        ),
    ],
)
def test_bert(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    found, theirs = both(new_checkpoint("bert", replace(BERT, **changes)), kind, tmp_path / "model")
    with torch.no_grad():
        answer = theirs(IDS)
        expected = answer.last_hidden_state if kind == "AutoModel" else answer.logits
        torch.testing.assert_close(found.model(IDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"bias": False, "activation": "relu", "norm_eps": 1e-5}, {"labels": ()}])
def test_vit(tmp_path: Path, changes: dict[str, Any]) -> None:
    kind = "AutoModel" if "labels" in changes else "AutoModelForImageClassification"
    found, theirs = both(new_checkpoint("vit", replace(VIT, **changes)), kind, tmp_path / "model")
    pixels = torch.randn(2, 3, 12, 18)
    with torch.no_grad():
        answer = theirs(pixels)
        expected = answer.last_hidden_state if kind == "AutoModel" else answer.logits
        torch.testing.assert_close(found.model(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", [("yes", "no"), ()])
def test_audio_spectrogram_transformer(tmp_path: Path, labels: tuple[str, ...]) -> None:
    config = replace(AST, labels=labels, pooled_norm=1e-12 if labels else None)
    kind = "AutoModelForAudioClassification" if labels else "AutoModel"
    found, theirs = both(new_checkpoint("audio-spectrogram-transformer", config), kind, tmp_path / "model")
    features = torch.randn(2, 1, 20, 30)
    with torch.no_grad():
        answer = theirs(features[:, 0].transpose(1, 2))
        expected = answer.logits if labels else answer.last_hidden_state
        torch.testing.assert_close(found.model(features), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTModel", {}),
        ("DeiTModel", {}),
        ("DeiTForImageClassificationWithTeacher", {}),
        ("Dinov2ForImageClassification", {}),
        ("Dinov2WithRegistersModel", {"num_register_tokens": 2}),
        ("ASTModel", {"num_mel_bins": 16, "max_length": 20}),
        ("ASTForAudioClassification", {"num_mel_bins": 16, "max_length": 20}),
    ],
)
def test_a_classifier_of_other_classes_keeps_the_encoder(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = getattr(transformers, kind)
    image = {} if kind.startswith("AST") else {"image_size": 16}
    model(model.config_class(**sizes, **settings, **image, patch_size=8)).save_pretrained(tmp_path / "theirs")
    first = load(tmp_path / "theirs")
    assert isinstance(first, Checkpoint)
    modality = "audio" if kind.startswith("AST") else "image"
    made = to_classifier(first, ["x", "y", "z"], modality)
    ours, theirs = made.model.state_dict(), first.model.state_dict()
    kept = [name for name in ours if not name.startswith("readout.")]
    assert len(kept) > 10 and all(torch.equal(ours[name], theirs[name]) for name in kept)
    if kind == "ASTForAudioClassification":
        assert torch.equal(ours["readout.norm.weight"], theirs["readout.norm.weight"])
    made.save(tmp_path / "made")
    again = load(tmp_path / "made")
    assert isinstance(again, Checkpoint) and again.settings["architectures"] == made.settings["architectures"]
    same = to_classifier(again, ["x", "y", "z"], modality).model.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in ours.items())
    with pytest.raises(ModelError, match="it must be an encoder of text"):
        to_classifier(first, ["x", "y"])


def test_what_config_json_cannot_say_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot say this: windows"):
        new_checkpoint("llama", replace(LLAMA, windows=(4, 4)))
    with pytest.raises(ModelError, match="cannot say this: first_position"):
        new_checkpoint("bert", replace(BERT, first_position=2))
    for kind in ("mistral", "gpt2"):
        with pytest.raises(ModelError, match="there are no new models of it"):
            new_checkpoint(kind, LLAMA)


def test_a_classifier_keeps_the_encoder_and_a_head_for_the_same_classes() -> None:
    first = new_checkpoint("bert", replace(BERT, head="fill"))
    made = to_classifier(first, ["x", "y", "z"])
    theirs, ours = first.model.state_dict(), made.model.state_dict()
    shared = [name for name in ours if not name.startswith("classify.")]
    assert len(shared) > 20 and all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert made.model.training and made.settings["id2label"] == {"0": "x", "1": "y", "2": "z"}
    again = to_classifier(made, ["x", "y", "z"]).model.state_dict()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    other = to_classifier(made, ["x", "y", "w"]).model.state_dict()
    assert not torch.equal(other["classify.out.weight"], ours["classify.out.weight"])
    with pytest.raises(ModelError, match="there are 1 labels"):
        to_classifier(first, ["x"])
    with pytest.raises(ModelError, match="is of the family llama: it must be an encoder of text"):
        to_classifier(new_checkpoint("llama", LLAMA), ["x", "y"])


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta"])
def test_a_classifier_of_means_begins_with_the_mean(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, type_vocab_size=1,
    )  # fmt: skip
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "theirs")
    plain = to_classifier(_loaded(tmp_path / "theirs"), ["x", "y"])
    means = to_classifier(_loaded(as_sentence_encoder(tmp_path / "theirs")), ["x", "y"])
    config, longer = plain.model.config, means.model.config  # pyright: ignore[reportAttributeAccessIssue]
    assert longer == replace(config, layers=3)  # pyright: ignore[reportArgumentType]
    ids = torch.randint(5, 40, (2, 7))
    model: Any = means.model.eval()
    first: Any = plain.model.eval()
    with torch.no_grad(), regard.observe(model) as relations:
        rows, mixed = first.hidden(ids), model.hidden(ids)
    weights = relations.weights("encoder.blocks.2.attention")
    torch.testing.assert_close(weights, torch.full((2, 7, 7), 1 / 7), atol=0.01, rtol=0)
    expected = torch.nn.functional.layer_norm(rows + 8 * rows.mean(1, keepdim=True), (16,))
    torch.testing.assert_close(mixed, expected, atol=0.05, rtol=0.05)
    means.save(tmp_path / "made")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "made").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    again = to_classifier(_loaded(tmp_path / "made"), ["x", "z"])
    assert again.settings == means.settings | {name: again.settings[name] for name in ("id2label", "label2id")}


def _loaded(place: Path) -> Checkpoint:
    found = load(place)
    assert isinstance(found, Checkpoint)
    return found


def test_a_classifier_keeps_the_dense_layer_of_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    theirs = transformers.BertModel(config)
    theirs.save_pretrained(tmp_path / "bert")
    found = load(tmp_path / "bert")
    assert isinstance(found, Checkpoint)
    dense = to_classifier(found, ["x", "y"]).model.get_parameter("classify.dense.weight")
    assert torch.equal(dense, theirs.pooler.dense.weight)
