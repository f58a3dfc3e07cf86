"""A language model from text files to a checkpoint that others read; resumed to the same bits; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, load
from regard.pipelines import pipeline
from regard.training.run import Run
from regard.training.tasks.language_model import LanguageModelRecipe, train_language_model
from regard.training.tasks.texts import Windows
from regard.training.tokens import Section, chunks, split, survey
from tests.training.lines import killed_at_random
from tests.training.recipes import going_on

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, he said — é\n" + "\n" * (i % 3) for i in range(300))
SMALL = LanguageModelRecipe(
    d_model=16, layers=1, heads=2, feed_forward=24, tokens="characters", context=16, batch_size=4, steps=8,
    validate_every=4, checkpoint_every=3, watch_every=4, validation_tokens=200, peak_learning_rate=0.01,
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def curve(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in records]


def quiet(out: Path, **settings: bool) -> Run:
    return Run(out, progress=False, **settings)


def test_from_text_to_a_checkpoint_that_transformers_reads(file: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained = train_language_model([file], replace(SMALL, kv_heads=1), quiet(tmp_path / "run"))
    assert trained.outcome.finished and trained.directory == tmp_path / "run" / "model"
    found = load(trained.directory)
    assert isinstance(found, Checkpoint) and found.family.name == "llama"
    ids = torch.tensor([found.tokenizer.encode_batch(["7 times 0 is"], specials=False)[0]])
    with torch.no_grad():
        ours = found.model(ids)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(trained.directory)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.directory)
    assert tokenizer(TEXT[:99])["input_ids"] == found.tokenizer.encode_batch([TEXT[:99]])[0]
    answer = pipeline(trained.directory, max_new_tokens=5, temperature=0.0)("7 times ")
    assert answer.finish in ("length", "stop") or answer.text
    attention = [record for record in curve(tmp_path / "run") if "attention" in record]
    assert [record["step"] for record in attention] == [4, 8]
    assert (tmp_path / "run" / "curves.png").is_file() and "perplexity" in (trained.directory / "README.md").read_text()
    # what was kept is what was best, and the scores are of what is on disk
    best = min(r["validation"]["loss"] for r in curve(tmp_path / "run") if "validation" in r)
    assert trained.scores["loss"] == pytest.approx(best, rel=1e-6)


def test_it_learns(file: Path, tmp_path: Path) -> None:
    trained = train_language_model([file], replace(SMALL, steps=80, optimiser="muon"), quiet(tmp_path / "run"))
    first = curve(tmp_path / "run")[0]["loss"]
    assert trained.scores["loss"] < 0.75 * first


def test_killed_at_random_moments_the_curve_is_the_same(file: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, steps=30, dropout=0.1, tokens="bpe", vocab_size=300)
    whole = train_language_model([file], recipe, quiet(tmp_path / "whole"))

    def again() -> None:
        train_language_model([file], recipe, quiet(tmp_path / "killed", resume=True))

    assert killed_at_random(again, tmp_path / "killed" / "metrics.jsonl", kills=4, most=12, seed=3) > 1
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "killed" / "model" / name).read_bytes() == (whole.directory / name).read_bytes()


def test_fine_tunes_what_load_reads(file: Path, tmp_path: Path) -> None:
    first = train_language_model([file], SMALL, quiet(tmp_path / "first"))
    recipe = going_on(SMALL, first.directory, steps=4, peak_learning_rate=1e-4)
    second = train_language_model([file], recipe, quiet(tmp_path / "second"))
    assert second.scores["loss"] < first.scores["loss"] + 0.05  # it begins where the first ended
    assert (second.directory / "tokenizer.json").read_bytes() == (first.directory / "tokenizer.json").read_bytes()
    assert load(second.directory).about == load(first.directory).about
    with pytest.raises(ValueError, match="context is 99; this model takes at most 16"):
        train_language_model([file], replace(recipe, context=99), quiet(tmp_path / "third"))
    with pytest.raises(ValueError, match="for translation; it may be one that continues texts"):
        train_language_model([file], replace(recipe, model="translate-en-de"), quiet(tmp_path / "fourth"))


def test_what_cannot_be_is_one_line(file: Path, tmp_path: Path) -> None:
    train_language_model([file], replace(SMALL, steps=2), quiet(tmp_path / "run"))
    bad = tmp_path / "latin.txt"
    bad.write_bytes("é".encode("latin-1") * 9)
    (tmp_path / "empty.txt").write_text("\ufeff \n")
    (tmp_path / "short.txt").write_text("abc")

    def refused(
        words: str, files: list[Path], recipe: LanguageModelRecipe = SMALL, *, out: str = "run", resume: bool = False
    ) -> None:
        with pytest.raises(ValueError, match=words) as error:
            train_language_model(files, recipe, quiet(tmp_path / out, resume=resume))
        assert "\n" not in str(error.value)

    refused("holds another run", [file])
    refused("steps is 8, but the run in .* has 2", [file], resume=True)
    refused("training data are .* bytes", [tmp_path / "short.txt"], replace(SMALL, steps=2), resume=True)
    refused("no such file", [tmp_path / "missing.txt"])
    refused("there is no text: .*latin.txt is not UTF-8 .*empty.txt is empty", [bad, tmp_path / "empty.txt"])
    refused("the text has .* pieces; a context of 16 needs 17 or more", [tmp_path / "short.txt"], out="a")
    refused("d_model is 15 with 2 heads", [file], replace(SMALL, d_model=15), out="b")
    trained = train_language_model([bad, file, tmp_path / "empty.txt"], replace(SMALL, steps=2), quiet(tmp_path / "c"))
    assert trained.skipped == [
        f"{bad} is left out: not UTF-8 (invalid continuation byte)",
        f"{tmp_path / 'empty.txt'} is left out: empty",
    ]


def test_sections_are_cut_where_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.training.tokens._BLOCK", 37)
    path = tmp_path / "text.txt"
    path.write_text("\ufeff" + TEXT, encoding="utf-8")
    ((file,), left_out) = survey([path])
    assert not left_out
    for fraction in (0.1, 0.3, 0.5, 0.333):
        parts = ["".join(chunks(section)) for section in split(file, fraction)]
        assert "".join(parts) == TEXT
        assert len(parts[1].encode()) == pytest.approx(len(TEXT.encode()) * fraction, abs=4)
    from regard.inputs.tokenizer.learn import learn_byte_pairs

    for name, content in learn_byte_pairs([TEXT], 400).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer.from_directory(tmp_path)
    (whole,) = tokenizer.encode_batch([TEXT])
    cut = tokenizer.encode_batch([*chunks(Section(path, 0, file.size))])
    assert len(cut) > 100 and [i for ids in cut for i in ids] == whole


def test_windows_hold_every_id_once_an_epoch() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    for epoch in range(3):
        windows = torch.cat([*Windows(ids, 16, 4, seed=1, epoch=epoch)])
        first = windows[:, :-1].flatten()
        assert len(first.unique()) == len(first) and len(first) >= 1000 - 2 * 16
        assert torch.equal(windows[:, 1:], windows[:, :-1] + 1)
    assert torch.equal(Windows(ids, 16, 4, seed=1)[0], Windows(ids, 16, 4, seed=1)[0])
    assert not torch.equal(Windows(ids, 16, 4, seed=1)[0], Windows(ids, 16, 4, seed=2)[0])
    labels = torch.cat([batch[:, 1:].flatten() for batch in Windows(ids, 16, 4)])
    assert torch.equal(labels, torch.arange(1, 1000))  # validation: all, in order, the rest as well
