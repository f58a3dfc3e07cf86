"""`regard see` with every family: an answer, elements with their places, a page; and the jobs of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.command_line import Run
from tests.inputs.tokenizer.made import byte_backend
from tests.inputs.tokenizer.made import save as save_tokenizer
from tests.models import small_seq2seq
from tests.models.parity import saved
from tests.models.small_bert import small_bert, small_roberta
from tests.models.small_llama import small_checkpoint
from tests.models.small_whisper import small_whisper, speech_like, write_sound
from tests.pipelines.small_media import CASES, media_file, small_model

TEXT = "Two dogs run."


def gpt2(directory: Path) -> Path:
    backend = byte_backend()
    end = backend.token_to_id("</s>")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ids = {"bos_token_id": end, "eos_token_id": end}
    config = transformers.GPT2Config(vocab_size=backend.get_vocab_size(), **sizes, **ids)
    _, place = saved(directory, transformers.GPT2LMHeadModel, config)
    for file in save_tokenizer(backend, bos_token="</s>", eos_token="</s>").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def _distilbert(directory: Path) -> Path:
    place = small_bert(directory)
    config = transformers.DistilBertConfig(
        vocab_size=json.loads((place / "config.json").read_text())["vocab_size"],
        dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40,
    )  # fmt: skip
    transformers.DistilBertModel(config).save_pretrained(place)
    return place


TEXTS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], set[str]]] = {
    "bert": (small_bert, (), {"encoder"}),
    "roberta": (small_roberta, (), {"encoder"}),
    "distilbert": (_distilbert, (), {"encoder"}),
    "gpt2": (gpt2, ("--max-new-tokens", "4"), {"decoder"}),
    "llama": (small_checkpoint, ("--max-new-tokens", "4"), {"decoder"}),
    "bart": (small_seq2seq.bart, (), {"encoder", "decoder", "cross"}),
    "marian": (small_seq2seq.marian, (), {"encoder", "decoder", "cross"}),
    "t5": (small_seq2seq.t5, ("--job", "summarization"), {"encoder", "decoder", "cross"}),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def place(name: str) -> Path:
        if name not in made:
            make = TEXTS[name][0]
            (directory / name).mkdir()
            made[name] = make(directory / name)
        return made[name]

    return place


def check(report: dict[str, Any], page: Path) -> None:
    """Every site has rows and keys that are elements, and every element that has a place in a text lies in it."""
    for site in report["sites"]:
        rows, keys = (len(report["sequences"][site[side]]["elements"]) for side in ("query", "key"))
        assert all(len(head) == rows for head in site["top_keys"])
        assert all(-1 <= key < keys for head in site["top_keys"] for row in head for key in row)
    for sequence in report["sequences"].values():
        spans = [element["span"] for element in sequence["elements"]]
        if sequence["modality"] == "text":
            assert all(0 <= span[0] <= span[1] <= len(sequence["text"]) for span in spans if span is not None)
    sequences = report["sequences"].values()
    assert any(element["span"] is not None for sequence in sequences for element in sequence["elements"])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and all(site["path"] in text for site in report["sites"])


@pytest.mark.parametrize("name", TEXTS)
def test_texts(run: Run, places: Callable[[str], Path], tmp_path: Path, name: str):
    page = tmp_path / "page.html"
    done = run("see", TEXT, "-m", places(name), "-o", page, "--json", *TEXTS[name][1])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check(report, page)
    assert TEXT in report["input"]
    parts = {"cross" if site["kind"] == "cross" else site["part"] for site in report["sites"]}
    assert parts == TEXTS[name][2] and len(report["sites"]) == 2 * len(parts)
    writes = [sequence for sequence in report["sequences"].values() if sequence.get("writes")]
    if name in ("bert", "roberta", "distilbert"):
        assert report["answer"] == "" and not writes
    else:
        assert len(writes) == 1


@pytest.mark.parametrize("name", [*CASES, "whisper"])
def test_media(run: Run, tmp_path: Path, name: str):
    if name == "whisper":
        place, file = small_whisper(tmp_path)[1], write_sound(tmp_path / "talk.wav", speech_like(0.5))
    else:
        place, file = small_model(name, tmp_path)[1], media_file(name, tmp_path)
    page = tmp_path / "page.html"
    done = run("see", file, "-m", place, "-o", page, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check(report, page)
    assert report["answer"]


def test_jobs(run: Run, places: Callable[[str], Path], tmp_path: Path):
    place = places("t5")
    reports = {
        job: json.loads(run("see", TEXT, "-m", place, "--job", job, "--json").stdout) for job in small_seq2seq.JOBS
    }
    for job, report in reports.items():
        assert report["input"] == small_seq2seq.JOBS[job]["prefix"] + TEXT
    own = json.loads(run("see", TEXT, "-m", place, "--prefix", "summarize: ", "--json").stdout)
    assert own["input"] == reports["summarization"]["input"]
    for command in (("see", TEXT), ("translate",)):
        wrong = run(*command, "-m", place, "--job", "chat", stdin=TEXT.encode())
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count(b"\n")) == (2, b"", 1)
        assert b"has no job 'chat': there are summarization, translation_en_to_de" in wrong.stderr
        none = run(*command, "-m", place, stdin=TEXT.encode())
        assert none.returncode == 2
        assert b"has several jobs: job must be one of summarization, translation_en_to_de" in none.stderr
    photo = media_file("vit", tmp_path)
    wrong = run("see", photo, "-m", place, "--job", "summarization")
    assert (wrong.returncode, wrong.stdout) == (2, b"") and b"--job is for texts" in wrong.stderr
