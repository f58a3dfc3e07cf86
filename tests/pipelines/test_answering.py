"""Encoder-decoders of checkpoints: what transformers' generate answers, jobs, alignment, limits, the command."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartForConditionalGeneration, MarianMTModel, T5ForConditionalGeneration

from regard.generation import SettingsError
from regard.models import ModelError
from regard.pipelines import AnsweringPipeline, TextTooLong, pipeline
from tests.models import small_seq2seq

TEXTS = ["the wind in the window", "the the", "wind sdown", "he within."]
KINDS: dict[str, tuple[Callable[..., Path], Any, dict[str, Any]]] = {
    "marian": (small_seq2seq.marian, MarianMTModel, {}),
    "bart": (small_seq2seq.bart, BartForConditionalGeneration, {}),
    "t5": (small_seq2seq.t5, T5ForConditionalGeneration, {"job": "translation_en_to_de"}),
    "t5, another job": (small_seq2seq.t5, T5ForConditionalGeneration, {"job": "summarization"}),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AnsweringPipeline, Any]:
    make, kind, settings = KINDS[request.param]
    place = make(tmp_path_factory.mktemp("answering"))
    found = pipeline(place, **settings)
    assert isinstance(found, AnsweringPipeline)
    return found, kind.from_pretrained(place).eval()


def expected(ours: AnsweringPipeline, theirs: Any, texts: list[str], **settings: Any) -> list[list[int]]:
    """What transformers writes after each source by itself, without the decoder's first input and what follows an end.

    With what the checkpoint recommends, and for its job.
    """
    job = small_seq2seq.JOBS.get(str(ours.job), {})
    settings = {name: value for name, value in job.items() if name != "prefix"} | settings
    found: list[list[int]] = []
    for text in texts:
        ids = torch.tensor([ours(text).source_ids])
        row = theirs.generate(ids, **settings)[0].tolist()
        ends = [i for i, piece in enumerate(row) if i and piece == ours.settings.stop_ids[0]]
        found.append(row[1 : ends[0] + 1 if ends else None])
    return found


def test_answers_are_those_of_transformers(pair: tuple[AnsweringPipeline, Any]):
    ours, theirs = pair
    answers = ours(TEXTS)
    assert [list(a.target_ids) for a in answers] == expected(ours, theirs, TEXTS)
    assert len({a.target_ids for a in answers}) > 1
    assert [a.text for a in answers] == [ours.target_tokenizer.decode(a.target_ids) for a in answers]
    assert [a.source for a in answers] == [ours.prefix + text for text in TEXTS]
    assert ours.beams > 1


def test_other_settings(pair: tuple[AnsweringPipeline, Any]):
    ours, theirs = pair
    arguments = {"job": ours.job} if ours.job else {}
    greedy = pipeline(ours.saved.directory, beams=1, max_new_tokens=9, **arguments)
    found = greedy(TEXTS)
    assert [list(a.target_ids) for a in found] == expected(ours, theirs, TEXTS, num_beams=1, max_new_tokens=9)
    with torch.no_grad():
        first = found[0]
        read = torch.tensor([[theirs.config.decoder_start_token_id, *first.target_ids[:-1]]])
        logits = theirs(torch.tensor([first.source_ids]), decoder_input_ids=read).logits[0].log_softmax(-1)
    total = float(logits.gather(1, torch.tensor(first.target_ids)[:, None]).sum())
    assert first.score == pytest.approx(total / len(first.target_ids) ** greedy.alpha, rel=1e-4)
    with pytest.raises(SettingsError, match="there is no setting beam: "):
        pipeline(ours.saved.directory, beam=1, **arguments)


def test_batches_lines_and_pickles_change_nothing(pair: tuple[AnsweringPipeline, Any]):
    ours, _ = pair
    alone = [ours(text) for text in TEXTS]
    assert [a.target_ids for a in ours(TEXTS)] == [a.target_ids for a in alone]
    lines = list(ours.translate_lines([TEXTS[0], "", TEXTS[1]], batch_tokens=1))
    assert [a and a.target_ids for a in lines] == [alone[0].target_ids, None, alone[1].target_ids]
    again = pickle.loads(pickle.dumps(ours))
    assert again(TEXTS[0]).target_ids == alone[0].target_ids and again.settings == ours.settings


def test_relations_and_alignment(pair: tuple[AnsweringPipeline, Any]):
    ours, theirs = pair
    answer = ours(TEXTS[0])
    relations = answer.relations
    read = [theirs.config.decoder_start_token_id, *answer.target_ids[:-1]]
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        out = theirs(torch.tensor([answer.source_ids]), decoder_input_ids=torch.tensor([read]), output_attentions=True)
    theirs.set_attn_implementation("sdpa")
    cross = [site.path for site in relations.sites if site.kind == "cross"]
    assert len(cross) == len(out.cross_attentions)
    for path, weights in zip(cross, out.cross_attentions, strict=True):
        torch.testing.assert_close(relations.weights(path), weights[0], atol=1e-4, rtol=0)
    report = answer.report()
    assert report["answer"] == answer.text and report["alignment"]


def test_jobs(tmp_path: Path):
    place = small_seq2seq.t5(tmp_path / "t5")
    with pytest.raises(ModelError, match="several jobs: job must be one of summarization, translation_en_to_de, or"):
        pipeline(place)
    with pytest.raises(ModelError, match="has no job 'chat': there are summarization, translation_en_to_de"):
        pipeline(place, job="chat")
    assert pipeline(place, prefix="the ")("wind").source == "the wind"
    assert pipeline(place, prefix="", max_new_tokens=3)("wind").source == "wind"


def test_what_cannot_be_answered(tmp_path: Path):
    place = small_seq2seq.bart(tmp_path / "bart", num_beam_groups=2)
    with pytest.raises(ModelError, match="num_beam_groups is 2"):
        pipeline(place)
    answer = pipeline(small_seq2seq.bart(tmp_path / "other"))
    with pytest.raises(TextTooLong, match="text has 203 pieces .* takes at most 64"):
        answer("?" * 201)
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        answer(["x", " "])


def test_the_command(pair: tuple[AnsweringPipeline, Any]):
    ours, _ = pair
    command = [sys.executable, "-m", "regard", "translate", "--model", str(ours.saved.directory)]
    command += ["--job", ours.job] if ours.job else []
    result = subprocess.run(command, input="\n".join(TEXTS).encode(), capture_output=True, timeout=200)
    assert (result.returncode, result.stdout.decode()) == (0, "".join(f"{a.text}\n" for a in ours(TEXTS)))


def test_a_model_of_one_job_has_no_other():
    command = [sys.executable, "-m", "regard", "translate", "--job", "x"]
    result = subprocess.run(command, input=b"A man.", capture_output=True, timeout=200)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"TranslationPipeline has no setting job: it has beams, alpha, batch_tokens" in result.stderr
