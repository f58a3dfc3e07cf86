"""The translation pipeline: order, limits, streaming, elements and relations."""

import json
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.models import ModelError, save_model
from regard.pipelines import TextTooLong, TranslationPipeline, pipeline
from tests.models.small_translator import TEXTS, small_tokenizer, small_translator

ENGLISH = TEXTS[:2]


@pytest.fixture(scope="module")
def translate(tmp_path_factory: pytest.TempPathFactory) -> TranslationPipeline:
    directory = tmp_path_factory.mktemp("models") / "small"
    about = {"languages": ["en", "de"]}
    save_model(directory, small_translator().double().float(), small_tokenizer(), card="", about=about)
    return pipeline(directory, beams=3)


def test_a_text_and_a_list_of_texts(translate: TranslationPipeline):
    one = translate(ENGLISH[0])
    assert one.source == ENGLISH[0]
    assert one.score < 0
    assert one == translate(ENGLISH[0])
    assert [t.text for t in translate(ENGLISH)] == [translate(text).text for text in ENGLISH]
    assert translate([]) == []


def test_results_come_in_order_whatever_the_batches(translate: TranslationPipeline):
    texts = [" ".join(["dogs"] * n) for n in (9, 1, 5, 2, 12)]
    together = translate(texts)
    assert [t.source for t in together] == texts
    small = TranslationPipeline(translate.saved, beams=3, batch_tokens=1)
    assert [t.text for t in small(texts)] == [t.text for t in together]
    assert [t.score for t in small(texts)] == pytest.approx([t.score for t in together], rel=1e-4)


def test_elements(translate: TranslationPipeline):
    translation = translate("A man opens the window.")
    assert [e.label for e in translation.source_elements] == ["A", "man", "opens", "the", "window", ".", "</s>"]
    assert len(translation.target_elements) == len(translation.target_ids)
    assert translation.target_elements[-1].label == "</s>"
    pieces = [e for e in translation.target_elements if e.span is not None]
    assert all(0 <= e.span[0] <= e.span[1] <= len(translation.text) for e in pieces)


def test_relations_are_those_of_the_answer(translate: TranslationPipeline):
    translation = translate("A man opens the window.")
    relations = translation.relations
    assert translation.relations is relations  # computed once
    sites = {site.path: site for site in relations.sites}
    assert len(sites) == 2 + 2 * 2
    assert {(s.kind, s.query, s.key) for s in sites.values()} == {
        ("self", "source", "source"),
        ("self", "target", "target"),
        ("cross", "target", "source"),
    }
    source, target = relations.sequences[0]["source"], relations.sequences[0]["target"]
    assert (source.title, target.title) == ("English", "German")
    assert [w.label for w in source.words] == ["A", "man", "opens", "the", "window", "."]
    assert [*source.elements] == translation.source_elements
    assert target.elements[0].label == "<s>"
    assert len(target.elements) == len(target.writes) == len(translation.target_ids)
    assert target.writes[-1] == "</s>"
    cross = next(path for path, site in sites.items() if site.kind == "cross")
    weights = relations.weights(cross)
    assert weights.shape == (2, len(target.elements), len(source.elements))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


def test_white_space_does_not_matter(translate: TranslationPipeline):
    plain, spread = "A man opens the window.", " A\tman  opens\u00a0the\r\n window. "
    assert translate(spread) == translate(plain)
    translation = translate(spread)
    assert translation.source == plain
    assert [plain[slice(*e.span)] for e in translation.source_elements if e.span] == plain.replace(".", " .").split()
    assert next(iter(translate.translate_lines([spread]))) == translation
    full = "  ".join(["dogs"] * 63)  # as many pieces as the model takes, its end among them
    translate.check_lines([full])
    translate([full])


def test_lines(translate: TranslationPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regard.pipelines.translation._CHUNK", 3)
    lines = ["A man.\n", "\n", "Two dogs.\r\n", "   ", "snow", "", "the window", "a child"]
    done: list[int] = []
    answers = list(translate.translate_lines(lines, batch_tokens=8, progress=done.append))
    assert [answer and answer.source for answer in answers] == [
        "A man.",
        None,
        "Two dogs.",
        None,
        "snow",
        None,
        "the window",
        "a child",
    ]
    assert done == [3, 6, 8]
    assert [a.text for a in answers if a] == [t.text for t in translate([a.source for a in answers if a])]


def test_lines_are_read_a_chunk_at_a_time(translate: TranslationPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regard.pipelines.translation._CHUNK", 2)
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield "A man."

    answers = translate.translate_lines(endless())
    for _ in range(3):
        assert next(answers) is not None
    assert len(read) == 4


def test_what_cannot_be_translated(translate: TranslationPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regard.pipelines.translation.translate_ids", lambda *_: pytest.fail("something was computed"))
    long = " ".join(["dogs"] * 64)
    with pytest.raises(TextTooLong, match=r"text has 65 pieces \(its end is one\): this model takes at most 64"):
        translate(long)
    with pytest.raises(TextTooLong, match="text 2 of 2 has 65 pieces"):
        translate(["A man.", long])
    with pytest.raises(TextTooLong, match="line 3 has 65 pieces"):
        list(translate.translate_lines(["A man.", "", long]))
    with pytest.raises(ValueError, match="text is empty: there is nothing to translate"):
        translate("")
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        translate(["A man.", " \n"])
    with pytest.raises(TypeError, match="text holds a int: it must be a string or a sequence of strings"):
        translate(["A man.", 3])
    with pytest.raises(TypeError, match="text is a int: it must be a string or a sequence of strings"):
        translate(3)


def test_pipelines_that_cannot_be(translate: TranslationPipeline, tmp_path: Path):
    with pytest.raises(ModelError, match="'no-such-model' is neither a directory nor the name"):
        pipeline("no-such-model")
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        TranslationPipeline(translate.saved, batch_tokens=0)
    other = save_model(tmp_path / "other", small_translator(), small_tokenizer(), card="", task="chess")
    with pytest.raises(ModelError, match="is for the task 'chess': there is a pipeline for translation"):
        pipeline(other)


def test_lines_are_checked_as_they_are_translated(translate: TranslationPipeline):
    full = " ".join(["dogs"] * 63)
    translate.check_lines([full + "\r\n", " " * 100, "\n", "snow"])
    with pytest.raises(TextTooLong, match="line 2 has 65 pieces"):
        translate.check_lines(["snow", full + " dogs"])


def test_a_pipeline_can_be_sent_to_another_process(translate: TranslationPipeline):
    sent = pickle.loads(pickle.dumps(TranslationPipeline(translate.saved, beams=2, alpha=0.5, batch_tokens=99)))
    assert (sent.beams, sent.alpha, sent.batch_tokens, sent.device) == (2, 0.5, 99, translate.device)
    assert dict(sent.saved.about) == dict(translate.saved.about) and not sent.model.training
    expected = TranslationPipeline(translate.saved, beams=2, alpha=0.5)(ENGLISH[0])
    answer = pickle.loads(pickle.dumps(sent(ENGLISH[0])))
    assert answer == expected
    assert answer.report() == expected.report()


def test_two_threads_share_a_pipeline(translate: TranslationPipeline):
    expected = translate("A man opens the window.").report()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            translate("Two dogs play in the snow, and a child watches them.")

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(5):
            assert translate("A man opens the window.").report() == expected
    finally:
        stop.set()
        other.join()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoding": None}, "decoding is None"),
        ({"decoding": {"beams": 0}}, "beams is 0"),
        ({"decoding": {"beams": 10**9}}, "beams is 1000000000"),
        ({"decoding": {"beams": "5"}}, "beams '5'"),
        ({"decoding": {"alpha": 1e9}}, "alpha is 1000000000.0"),
        ({"alignment": {"layer": 99}}, "layer 99 of 2"),
        ({"alignment": {"shifted": 1}}, "shifted 1"),
        ({"config": {"max_positions": 10**12}}, "max_positions is 1000000000000"),
        ({"config": {"encoder_layers": 10**9}}, "encoder_layers is 1000000000"),
        ({"config": {"d_model": -16}}, "d_model is -16: it must be from 1"),
    ],
)
def test_a_tampered_config_is_one_clear_error(
    translate: TranslationPipeline, tmp_path: Path, changes: dict[str, Any], words: str
):
    directory = tmp_path / "model"
    shutil.copytree(translate.saved.directory, directory)
    about = json.loads((directory / "config.json").read_text())
    for key, value in changes.items():
        about[key] = about[key] | value if key == "config" else value
    (directory / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=re.escape(words)):
        pipeline(directory)
