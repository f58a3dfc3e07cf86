"""BERT, RoBERTa and DistilBERT answer as transformers' do, padded, packed and alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from regard.attention.mask import Documents, Padding
from regard.models import ModelError
from regard.models.checkpoint import read_checkpoint
from tests.models.parity import assert_round_trip, assert_same, saved

V = 97
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
OTHER: dict[str, Any] = SIZES | {"hidden_size": 48, "num_attention_heads": 3, "hidden_act": "relu"}
ROBERTA = SIZES | {"type_vocab_size": 1}
MINILM = SIZES | {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 12, "num_hidden_layers": 6}
DISTIL: dict[str, Any] = {
    "vocab_size": V,
    "dim": 64,
    "hidden_dim": 112,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 48,
}
CONFIGS = {
    "bert": ("Bert", "bert", SIZES),
    "bert relu": ("Bert", "bert", OTHER | {"type_vocab_size": 3, "layer_norm_eps": 1e-5, "tie_word_embeddings": False}),
    "minilm": ("Bert", "bert", MINILM),
    "minilm gelu_new": ("Bert", "bert", MINILM | {"num_hidden_layers": 12, "hidden_act": "gelu_new"}),
    "roberta": ("Roberta", "roberta", ROBERTA),
    "roberta relu": ("Roberta", "roberta", OTHER | {"pad_token_id": 5, "tie_word_embeddings": False}),
    "xlm-roberta": ("XLMRoberta", "roberta", ROBERTA),
    "xlm-roberta relu": ("XLMRoberta", "roberta", OTHER),
    "camembert": ("Camembert", "roberta", ROBERTA),
    "camembert relu": ("Camembert", "roberta", OTHER),
    "distilbert": ("DistilBert", "distilbert", DISTIL),
    "distilbert relu": (
        "DistilBert",
        "distilbert",
        DISTIL | {"dim": 48, "n_heads": 3, "activation": "relu", "tie_word_embeddings": False},
    ),
}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "hidden": ("Model", {}),
    "fill": ("ForMaskedLM", {}),
    "classify": ("ForSequenceClassification", {"num_labels": 5, "problem_type": "multi_label_classification"}),
}
CASES = {f"{name}, {head}": (name, head) for name in CONFIGS for head in HEADS}


def made(directory: Path, name: str, head: str) -> tuple[Any, Path]:
    title, _, sizes = CONFIGS[name]
    suffix, more = HEADS[head]
    kind, config = getattr(transformers, title + suffix), getattr(transformers, title + "Config")
    return saved(directory, kind, config(**sizes, **more), scale=4.0)


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, ours read from what theirs saved, the directory, and the head."""
    name, head = CASES[request.param]
    theirs, place = made(tmp_path_factory.mktemp("bert"), name, head)
    return theirs, read_checkpoint(place), place, head


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bert"), "bert", "fill")[1]


def answer(model: Any, **inputs: Tensor) -> Tensor:
    output = model(**inputs)
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


@torch.no_grad()
def test_same_answers(pair: Any) -> None:
    theirs, ours, _, head = pair
    ids = torch.randint(8, V, (3, 40))
    assert ours.task == head
    assert_same(ours.model(ids), answer(theirs, input_ids=ids))


@torch.no_grad()
def test_same_answers_for_pairs(pair: Any) -> None:
    theirs, ours, _, _ = pair
    ids, types = torch.randint(8, V, (2, 30)), (torch.arange(30)[None] >= torch.tensor([[9], [17]])).long()
    count = ours.model.config.types
    if count < 2:
        with pytest.raises(ValueError, match="types holds 1: this model takes 0 to 0|types is given"):
            ours.model(ids, types=types)
        return
    expected = answer(theirs, input_ids=ids, token_type_ids=types)
    assert_same(ours.model(ids, types=types), expected)
    assert float((ours.model(ids) - expected).abs().max()) > 1e-2


@torch.no_grad()
def test_padded_packed_and_alone(pair: Any) -> None:
    theirs, ours, _, head = pair
    lengths = torch.tensor([7, 1, 31, 12])
    pad = theirs.config.pad_token_id
    ids = torch.randint(8, V, (4, 31))
    real = torch.arange(31) < lengths[:, None]
    ids = ids.where(real, pad)
    expected = answer(theirs, input_ids=ids, attention_mask=real.long())
    padded = ours.model(ids, mask=Padding(lengths, lengths))
    positions = torch.arange(31).expand(4, -1)[real][None]  # (1, total)
    packed = ours.model.hidden(ids[real][None], mask=Documents(lengths), positions=positions)[0]  # (total, d)
    alone = [ours.model(ids[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    if head == "classify":
        first = lengths.cumsum(0) - lengths
        for found in (padded, ours.model.head(packed[first]), torch.cat(alone)):
            assert_same(found, expected)
    else:
        for found in (padded[real], ours.model.head(packed), torch.cat([a[0] for a in alone])):
            assert_same(found, expected[real])


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    theirs, _, place, _ = pair
    assert_round_trip(place, tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    ids = torch.randint(8, V, (1, 12))
    # the tensors are equal; a product of a row may not be, where a matrix stands elsewhere in memory
    torch.testing.assert_close(answer(again, input_ids=ids), answer(theirs, input_ids=ids), atol=1e-5, rtol=1e-5)


def test_the_pooler_of_a_plain_bert_is_written_again(tmp_path: Path) -> None:
    _, place = made(tmp_path, "bert", "hidden")
    assert "pooler.dense.weight" in load_file(place / "model.safetensors")
    assert_round_trip(place, tmp_path / "again")


@torch.no_grad()
def test_the_head_for_the_next_sentence_is_written_again(tmp_path: Path) -> None:
    theirs, place = saved(tmp_path, transformers.BertForPreTraining, transformers.BertConfig(**SIZES), scale=4.0)
    ours = assert_round_trip(place, tmp_path / "again")
    ids = torch.randint(8, V, (2, 20))
    assert_same(ours.model(ids), theirs(ids).prediction_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs, _ = made(tmp_path, "bert", "fill")
    theirs.to(dtype).save_pretrained(tmp_path / "half")
    checkpoint = assert_round_trip(tmp_path / "half", tmp_path / "again")
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    ids = torch.randint(8, V, (2, 20))
    with torch.no_grad():
        assert_same(checkpoint.model(ids), theirs.float()(ids).logits)
    assert {p.dtype for p in read_checkpoint(tmp_path / "half", dtype=None).model.parameters()} == {dtype}


@torch.no_grad()
def test_shards(tmp_path: Path) -> None:
    theirs, _ = made(tmp_path, "roberta", "fill")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 2
    ids = torch.randint(8, V, (2, 20))
    assert_same(read_checkpoint(tmp_path / "shards").model(ids), theirs(ids).logits)


@torch.no_grad()
def test_names_that_once_were_tensorflows(bert: Path, tmp_path: Path) -> None:
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(bert / "model.safetensors").items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in tensors) == 16
    tensors["bert.embeddings.position_ids"] = torch.arange(48)[None]
    place = rewritten(bert, tmp_path / "old", tensors)
    ours = assert_round_trip(place, tmp_path / "again")
    ids = torch.randint(8, V, (2, 20))
    assert torch.equal(ours.model(ids), read_checkpoint(bert).model(ids))


def test_tensors_that_do_not_fit_are_listed(bert: Path, tmp_path: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]
    tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(64, 111)
    tensors["bert.encoder.layer.3.output.dense.bias"] = torch.zeros(64)
    with pytest.raises(ModelError) as raised:
        read_checkpoint(rewritten(bert, tmp_path / "wrong", tensors))
    for fault in (
        "bert.encoder.layer.1.attention.self.key.bias is missing",
        "bert.encoder.layer.0.output.dense.weight has shape (64, 111) instead of (64, 112)",
        "bert.encoder.layer.3.output.dense.bias is unknown",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("hidden_act", "mish"),
        ("num_attention_heads", 0),
    ],
)
def test_settings_that_there_are_not(bert: Path, tmp_path: Path, name: str, value: Any) -> None:
    place = rewritten(bert, tmp_path / "wrong", load_file(bert / "model.safetensors"), **{name: value})
    with pytest.raises(ModelError, match=f"config.json: {name} is .*: it must be"):
        read_checkpoint(place)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_labels": 3}, "single_label"),
        ({"num_labels": 1}, "multi_label"),
        ({"num_labels": 1, "problem_type": "regression"}, "regression"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "multi_label"),
    ],
)
def test_what_scores_of_classes_mean(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    config = transformers.DistilBertConfig(**DISTIL, **settings)
    _, place = saved(tmp_path, transformers.DistilBertForSequenceClassification, config)
    found = read_checkpoint(place).model.config
    assert (found.problem, len(found.labels)) == (problem, settings["num_labels"])


@torch.no_grad()
def test_inputs_beyond_the_tables(bert: Path) -> None:
    model = read_checkpoint(bert).model
    ids = torch.full((1, 4), 9)
    with pytest.raises(ValueError, match="ids holds 97: this model takes 0 to 96"):
        model(torch.full((1, 4), 97))
    with pytest.raises(ValueError, match="positions holds 48: this model takes 0 to 47"):
        model(torch.full((1, 49), 9))
    with pytest.raises(ValueError, match="types holds 2: this model takes 0 to 1"):
        model(ids, types=torch.full((1, 4), 2))


def rewritten(place: Path, other: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    other.mkdir()
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | settings))
    return other
