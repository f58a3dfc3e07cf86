"""A classifier from a table to a checkpoint that others read; packed batches are the single texts; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from regard.models import Checkpoint, load
from regard.pipelines import pipeline
from regard.training.data import Ragged
from regard.training.metrics import accuracy, macro_f1
from regard.training.run import Run
from regard.training.tasks.classify_text import (
    ClassifyTextRecipe,
    ClassifyTextTask,
    Examples,
    TextBatch,
    TextBatches,
    train_text_classifier,
)
from tests.training.lines import killed_at_random
from tests.training.recipes import going_on

SMALL = ClassifyTextRecipe(
    d_model=16, layers=1, heads=2, feed_forward=32, vocab_size=150, max_pieces=16, batch_pieces=200, steps=60,
    validate_every=20, checkpoint_every=7, watch_every=20, peak_learning_rate=0.01, validation_fraction=0.2,
)  # fmt: skip
WORDS = {"good": ("fine", "lovely", "moving"), "bad": ("dull", "awful", "tired"), "odd": ("strange", "weird", "queer")}


def rows() -> list[tuple[str, str]]:
    return [(f"a {word} film number {i}", label) for i in range(12) for label, words in WORDS.items() for word in words]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows()))
    return path


def quiet(out: Path, **settings: bool) -> Run:
    return Run(out, progress=False, **settings)


def curve(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in records]


def test_learns_and_is_read_by_others(table: Path, tmp_path: Path) -> None:
    trained = train_text_classifier(table, SMALL, quiet(tmp_path / "run"))
    assert trained.scores["accuracy"] > 0.9 and trained.scores["macro_f1"] > 0.9 and not trained.skipped
    classify = pipeline(trained.directory, "classify")
    texts = ["a lovely film number 99", "a awful film number 99", "a weird film number 1"]
    assert [answer.label for answer in classify(texts)] == ["good", "bad", "odd"]
    config = json.loads((trained.directory / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "odd"}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(trained.directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.directory)
    found = load(trained.directory)
    assert isinstance(found, Checkpoint)
    ids = found.tokenizer.encode_batch([texts[0]])
    assert tokenizer(texts[0])["input_ids"] == ids[0]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
        torch.testing.assert_close(found.model(torch.tensor(ids)), expected, atol=1e-4, rtol=1e-4)


def test_killed_at_random_moments_the_curve_is_the_same(table: Path, tmp_path: Path) -> None:
    whole = train_text_classifier(table, SMALL, quiet(tmp_path / "whole"))

    def again() -> None:
        train_text_classifier(table, SMALL, quiet(tmp_path / "killed", resume=True))

    assert killed_at_random(again, tmp_path / "killed" / "metrics.jsonl", kills=4, most=25, seed=1) > 1
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    weights = "model/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (whole.directory / "model.safetensors").read_bytes()


def test_a_packed_batch_is_its_texts_one_by_one(table: Path, tmp_path: Path) -> None:
    trained = train_text_classifier(table, replace(SMALL, steps=2), quiet(tmp_path / "run"))
    tokenizer = load(trained.directory).tokenizer
    ids = tokenizer.encode_batch([text for text, _ in rows()[:9]])
    examples = Examples(Ragged.of(ids), np.zeros(9, dtype=np.int64))
    task = ClassifyTextTask(trained.model, examples, np.arange(9), examples, SMALL)
    (batch,) = TextBatches(examples, np.arange(9), 10_000)
    with torch.no_grad():
        together = task._scores(batch)  # pyright: ignore[reportPrivateUsage]
        alone = torch.cat([trained.model(torch.tensor([row])) for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    for budget in (16, 40, 100):
        batches = [*TextBatches(examples, np.arange(9), budget)]
        assert all(len(b.ids) <= budget or len(b.labels) == 1 for b in batches)
        assert torch.equal(torch.cat([b.ids for b in batches]), batch.ids)


def test_two_passes_are_held_to_agree(table: Path, tmp_path: Path) -> None:
    """R-Drop's objective (arXiv 2106.14448), halved, by its definition; without dropout both passes are alike."""
    recipe = replace(SMALL, steps=2, dropout=0.4, r_drop=3.0, label_smoothing=0.1)
    trained = train_text_classifier(table, recipe, quiet(tmp_path / "run"))
    ids = load(trained.directory).tokenizer.encode_batch([text for text, _ in rows()[:9]])
    examples = Examples(Ragged.of(ids), np.arange(9) % 2)
    task = ClassifyTextTask(trained.model, examples, np.arange(9), examples, recipe)
    plain = ClassifyTextTask(trained.model, examples, np.arange(9), examples, replace(recipe, r_drop=0.0))
    (batch,) = TextBatches(examples, np.arange(9), 10_000)
    torch.testing.assert_close(task.step(batch), plain.step(batch))
    trained.model.train()
    twice = TextBatch(torch.cat([batch.ids] * 2), torch.cat([batch.lengths] * 2), torch.cat([batch.labels] * 2))
    torch.manual_seed(0)
    scores = task._scores(twice)  # pyright: ignore[reportPrivateUsage]
    torch.manual_seed(0)
    found = task.step(batch)
    p, q = scores[:9].log_softmax(1), scores[9:].log_softmax(1)
    apart = F.kl_div(q, p, log_target=True, reduction="batchmean") + F.kl_div(
        p, q, log_target=True, reduction="batchmean"
    )
    expected = F.cross_entropy(scores, twice.labels, label_smoothing=0.1) + 3.0 / 4 * apart
    assert apart > 1e-3
    torch.testing.assert_close(found, expected)


def test_fine_tunes_any_encoder(table: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from regard.inputs.tokenizer.learn import learn_word_pieces

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for name, kind, config in (
        ("bert", "BertModel", "BertConfig"),
        ("roberta", "RobertaForMaskedLM", "RobertaConfig"),
    ):
        settings = getattr(transformers, config)(vocab_size=400, max_position_embeddings=40, **sizes)
        getattr(transformers, kind)(settings).save_pretrained(tmp_path / name)
        for file, content in learn_word_pieces(lambda: [text for text, _ in rows()], 150).items():
            (tmp_path / name / file).write_bytes(content)
        recipe = going_on(SMALL, tmp_path / name, steps=30)
        trained = train_text_classifier(table, recipe, quiet(tmp_path / f"{name}-run"))
        assert trained.scores["accuracy"] > 0.5, name
        found = load(trained.directory)
        assert isinstance(found, Checkpoint) and found.head == "classify"
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(trained.directory).eval()
        ids = torch.tensor([[2, 9, 10, 11, 3]])
        with torch.no_grad():
            torch.testing.assert_close(found.model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="max_pieces is 99; this model takes at most"):
        train_text_classifier(table, replace(recipe, max_pieces=99), quiet(tmp_path / "a"))


def test_rows_that_cannot_be_used_are_counted(table: Path, tmp_path: Path) -> None:
    with table.open("a") as file:
        file.write('{"text": " ", "label": "good"}\n{"label": "good"}\n{"text": "x", "label": null}\nnonsense\n')
    other = tmp_path / "validation.csv"
    other.write_text("text,label\na fine film,good\na film,unknown\n" + "word " * 40 + ",bad\n")
    trained = train_text_classifier(table, replace(SMALL, steps=2), quiet(tmp_path / "run"), validation=other)
    assert trained.skipped == [
        f"2 rows are left out: the text is missing ({table}, line 109; {table}, line 110)",
        f"1 row is left out: the label is missing ({table}, line 111)",
        f"1 row is left out: it is no JSON object ({table}, line 112)",
        f"1 row is left out: the label 'unknown' is not among those to learn ({other}, line 3)",
    ]


def test_one_row_of_a_class_is_enough_where_others_are_measured_on(table: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("text,label\na lovely film,good\na awful film,bad\nan odd film,odd\nodder,odd\n")
    recipe = replace(SMALL, steps=1, vocab_size=100)
    trained = train_text_classifier(tmp_path / "few.csv", recipe, quiet(tmp_path / "run"), validation=table)
    assert trained.outcome.progress.step == 1


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    for content, words in (
        ("text,label\nx,a\ny,a\n", "only the class 'a'; there must be two"),
        ("text,label\n", "no row with a text and a label"),
        ("text,label\nx,a\ny,a\nz,b\n", "one row alone of the class 'b'"),
        ("sentence,label\nx,a\n", "no column 'text'; it has 'sentence', 'label'"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=words) as error:
            train_text_classifier(table, SMALL, quiet(tmp_path / "run"))
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_accuracy_and_macro_f1_are_those_of_their_definitions() -> None:
    found, labels = torch.randint(4, (50,)), torch.randint(5, (50,))
    scores: list[float] = []
    for c in range(5):
        right = int(((found == c) & (labels == c)).sum())
        precision = right / max(1, int((found == c).sum()))
        recall = right / max(1, int((labels == c).sum()))
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    assert macro_f1(found, labels) == pytest.approx(sum(scores) / 5)
    assert accuracy(found, labels) == pytest.approx(sum(a == b for a, b in zip(found, labels, strict=True)) / 50)
