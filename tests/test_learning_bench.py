"""The measurements of learning: their arithmetic, and every command with a tiny budget."""

import gzip
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from regard import pipeline
from regard.inputs.tokenizer import Tokenizer
from regard.inputs.tokenizer.learn import learn_word_pieces
from regard.models.bert import BertConfig
from regard.models.checkpoint import new_checkpoint
from regard.training.baselines import RecurrentConfig, RecurrentLanguageModel

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "learning"))

import common
import lengths
import nanogpt
import sentiment
import tiny_shakespeare
import translation
from characters import CharacterConfig, CharacterDecoder, ngrams

LEARNING = Path(__file__).resolve().parents[1] / "benchmarks" / "learning"
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, he said\n" for i in range(150))


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LEARNING / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.fixture
def shakespeare(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text(TEXT)
    return tmp_path / "data"


@pytest.mark.slow
def test_the_comparison_is_printed_and_kept(shakespeare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ("--rival-steps", "3", "--set-lstm", "d_model=24", "--seeds", "4")
    done = run("tiny_shakespeare.py", "--data", shakespeare, "--out", out, *small)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "results.json").read_text())
    assert {*record["results"]} == {"nanogpt 4", "regard 4", "lstm 4"}
    names = len({*TEXT})
    rival = record["results"]["nanogpt 4"]
    assert rival["parameters"] == 804_096 - (65 - names) * 128 and rival["characters_seen"] == 3 * 12 * 64
    for side, found in record["results"].items():
        assert found["steps"] >= 2 and found["cpu_seconds"] > 0
        for kind in ("windows of 64", "own windows", "sliding"):
            assert 0 < found[kind] < 2 * np.log(names), (side, kind)
    assert "| regard |" in done.stdout and "| lstm |" in done.stdout
    again = run("tiny_shakespeare.py", "--data", shakespeare, "--out", out, *small)
    assert again.stdout == done.stdout and not again.stderr  # nothing is measured twice
    other = run("tiny_shakespeare.py", "--data", shakespeare, "--out", out, "--rival-steps", "2")
    assert other.returncode == 2 and "holds results of another setting" in other.stderr


@pytest.mark.slow
def test_the_larger_run_goes_on_where_it_stopped(shakespeare: Path, tmp_path: Path) -> None:
    sizes = ("d_model=16", "layers=1", "heads=2", "feed_forward=24", "context=16", "batch_size=4", "validate_every=2")
    small = [word for setting in (*sizes, "steps=4", "warmup=1") for word in ("--set-large", setting)]
    arguments = ("--data", shakespeare, "--out", tmp_path / "out", "--large", *small)
    done = run("tiny_shakespeare.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "step 4 of 4" in done.stdout and "sliding" in done.stdout
    assert (tmp_path / "out" / "run" / "model" / "model.safetensors").is_file()
    assert run("tiny_shakespeare.py", *arguments).stdout == done.stdout
    place = tmp_path / "shakespeare"
    embedded = run("tiny_shakespeare.py", "--data", shakespeare, "--out", tmp_path / "out", "--embed", place)
    assert embedded.returncode == 0, embedded.stderr
    assert "4 steps of 4 windows of 16 characters" in (place / "README.md").read_text()
    kept = json.loads(re.findall(r"own windows ([\d.]+)", done.stdout)[0])
    scores = json.loads((place / "config.json").read_text())["scores"]
    assert [*scores.values()] == [pytest.approx(kept, abs=2e-3)]
    assert len(pipeline(place, "generate")("the ", max_new_tokens=5).text) == 5


@pytest.mark.slow
def test_sentences_are_classified_by_all(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("dev", 10)):
        rows = [f"a {word} film {i}\t{label}\n" for i in range(count) for label, word in ((1, "lovely"), (0, "dull"))]
        (tmp_path / f"{name}.tsv").write_text("".join(rows))
    small = [
        word
        for side in sentiment.SIDES
        for setting in ("d_model=12", "batch_pieces=150", "peak_learning_rate=0.01")
        for word in (f"--set-{side}", setting)
    ]
    base = ("--data", tmp_path, "--out", tmp_path / "out", "--seeds", "1", "--seconds", "0.8", *small)
    tuned = ("steps=6", "batch_pieces=200", "warmup=1")
    settings = [word for setting in tuned for word in ("--set-tuned", setting)]
    done = run("sentiment.py", *base, *settings)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {*results} == {"transformer 1", "lstm 1", "cnn 1"}
    for side, found in results.items():
        assert found["accuracy"] == found["right"] / 20 and found["steps"] >= 2, side
        assert found["cpu_seconds"] < 5
    done = run("sentiment.py", *base, *settings, "--embed", tmp_path / "film-reviews")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "film-reviews" / "README.md").read_text()
    assert "of the 20 sentences of dev" in card and f"**Training** {results['transformer 1']['steps']} steps" in card
    classify = pipeline(tmp_path / "film-reviews")
    assert {label.name for label in classify("a lovely film").labels} == {"negative", "positive"}
    files = learn_word_pieces(lambda: ["a lovely film", "a dull film"] * 9, 100, lowercase=True)
    (tmp_path / "pieces").mkdir()
    for file, content in files.items():
        (tmp_path / "pieces" / file).write_bytes(content)
    pieces = Tokenizer.from_directory(tmp_path / "pieces")
    made = new_checkpoint("bert", BertConfig(pieces.vocab_size, 12, 1, 2, 16, 64), files=files)
    place = made.save(tmp_path / "encoder")
    done = run("sentiment.py", *base, *settings, "--model", place, "--sides")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3 and "| fine-tuned |" in done.stdout
    assert {*json.loads((tmp_path / "out" / "fine-tuned.json").read_text())["results"]} == {"fine-tuned 1"}
    (tmp_path / "dev.tsv").write_text("no tab\n")
    assert "dev.tsv, line 1: it may be a sentence, a tab and 0 or 1" in run("sentiment.py", *base).stderr


@pytest.mark.slow
def test_the_search_tries_equally_much_on_both_sides(shakespeare: Path, tmp_path: Path) -> None:
    assert len({len(tried) for tried in tiny_shakespeare.TRIED.values()}) == 1
    small = ("--search-seconds", "0.1", "--set-lstm", "d_model=8", "--set", "batch_size=2", "--set", "context=32")
    done = run("tiny_shakespeare.py", "--data", shakespeare, "--out", tmp_path, "--search", *small)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "search.json").read_text())["results"]
    assert len(found) == sum(len(tried) for tried in tiny_shakespeare.TRIED.values())


@pytest.mark.parametrize(
    ("treebank", "written"),
    [
        ("it 's good , they 'd say", "it's good , they'd say"),
        ("does n't `` fly '' lrb 1984 rrb", 'doesn\'t " fly " ( 1984 )'),
        ("a herb , ` mild '", "a herb , ' mild '"),
    ],
)
def test_sentences_of_the_treebank_are_written_as_people_write_them(treebank: str, written: str) -> None:
    assert sentiment.as_written(treebank) == written


@pytest.mark.slow
def test_sentiment_is_tuned_on_training_sentences_alone(tmp_path: Path) -> None:
    assert len({len(sentiment.TRIED[side]) for side in sentiment.SIDES}) == 1
    rows = [f"a {word} film {i}\t{label}\n" for i in range(40) for label, word in ((1, "lovely"), (0, "dull"))]
    (tmp_path / "train.tsv").write_text("".join(rows))  # and no dev.tsv
    small = [word for setting in ("d_model=12", "batch_pieces=150") for word in ("--set-cnn", setting)]
    arguments = (
        "--data",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--search",
        "--sides",
        "cnn",
        "--seconds",
        "0.3",
        *small,
    )
    done = run("sentiment.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "search.json").read_text())["results"]
    assert len(found) == len(sentiment.TRIED["cnn"])
    assert all(one["right"] == round(8 * one["accuracy"]) for one in found.values())


@pytest.mark.slow
def test_costs_and_recall_are_measured(tmp_path: Path) -> None:
    small = ("--width", "16", "--repeats", "1", "--lengths", "64", "128", "--families", "transformer", "lstm")
    done = run("lengths.py", "cost", "--out", tmp_path, *small)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cost.json").read_text())["results"]
    assert {*found} == {f"{family} {length}" for family in ("transformer", "lstm") for length in (64, 128)}
    for cell in found.values():
        assert cell["seconds"] > 0 and cell["mebibytes"] > 1
    assert [found[f"lstm {n}"]["sequences"] for n in (64, 128)] == [64, 32] and "lstm takes as long" in done.stdout
    small = ("--recall-width", "16", "--distances", "4", "--seeds", "1", "--seconds", "0.5")
    done = run("lengths.py", "recall", "--out", tmp_path, *small)
    assert done.returncode == 0, done.stderr
    for cell in json.loads((tmp_path / "recall.json").read_text())["results"].values():
        assert 0 < cell["accuracy"] <= 1 and cell["steps"] > 2
    assert "| 4 |" in done.stdout


def test_a_run_that_is_stopped_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    learnt = lengths.RecallTask.step

    def stopped(self: lengths.RecallTask, batch: lengths.Asked) -> torch.Tensor:
        counted.append(1)
        if len(counted) == 14 + 3:  # the third step after the rehearsal
            signal.raise_signal(signal.SIGTERM)
        return learnt(self, batch)

    monkeypatch.setattr(lengths.RecallTask, "step", stopped)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # those of the tests are left as they are
    words = ["lengths.py", "recall", "--out", str(tmp_path), "--families", "rnn", "--distances", "4", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "2", "--recall-width", "16"])
    assert lengths.main() == 130
    assert not (tmp_path / "recall.json").exists()


def test_questions_have_answers_at_a_distance() -> None:
    batch = lengths.Questions(9, 5, 3, seed=1)[2]
    assert batch.ids.shape == (5, 8 + 9 + 4)
    for row, values in zip(batch.ids.tolist(), batch.values.tolist(), strict=True):
        known = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(known) == 4 and [known[key] for key in row[-4:]] == values
        assert all(16 <= value < 32 for value in values) and all(piece >= 32 for piece in row[8:17])
    assert torch.equal(lengths.Questions(9, 5, 3, seed=1)[2].ids, batch.ids)
    assert not torch.equal(lengths.Questions(9, 5, 3, seed=1, epoch=1)[2].ids, batch.ids)


@pytest.mark.parametrize("width", [64, 256])
def test_models_of_equal_parameters(width: int) -> None:
    counts = [sum(p.numel() for p in lengths.model_of(name, width, 64).parameters()) for name in lengths.FAMILIES]
    assert max(counts) / min(counts) < 1.03


def test_where_curves_cross() -> None:
    assert lengths.crossing([(64, 0.5), (256, 2.0)]) == "at a length of about 128"
    assert lengths.crossing([(64, 2.0), (128, 4.0)]).startswith("nowhere from 64 to 128")


@pytest.mark.slow
def test_translators_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("sacremoses")
    words = {"red": "rot", "blue": "blau", "dog": "Hund", "house": "Haus", "runs": "rennt", "old": "alt"}
    (tmp_path / "raw").mkdir()
    (tmp_path / "tok").mkdir()
    for name, count in (("train", 90), ("val", 6), ("test_2016_flickr", 6)):
        rows = np.random.default_rng(count).integers(6, size=(count, 4)).tolist()
        english = "".join(" ".join([*words][i] for i in row) + "\n" for row in rows)
        german = "".join(" ".join([*words.values()][i] for i in row) + "\n" for row in rows)
        if name == "train":
            for language, text in (("en", english), ("de", german)):
                (tmp_path / "raw" / f"train.{language}.gz").write_bytes(gzip.compress(text.encode()))
            continue
        (tmp_path / "raw" / f"{name}.en").write_text(english)
        (tmp_path / "raw" / f"{name}.de").write_text(german)
        (tmp_path / "tok" / f"{name}.lc.norm.tok.de").write_text(german.lower())
    sizes = ("vocab_size=300", "d_model=16", "encoder_layers=1", "decoder_layers=1", "batch_tokens=256", "warmup=2")
    small = [word for side in translation.SIDES for size in sizes for word in (f"--set-{side}", size)]
    done = run("translation.py", "--data", tmp_path, "--out", tmp_path / "out", "--seconds", "0.6", *small)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {*results} == {"transformer", "lstm"}
    for found in results.values():
        assert found["steps"] > 2 and found["interval"][0] <= found["interval"][1]
    assert done.stdout.count("\n") == 4


def test_translators_have_equal_parameters() -> None:
    class Pieces:
        vocab_size, pad, bos, eos = 6000, 0, 1, 2

    pieces: Any = Pieces()
    counts = [sum(p.numel() for p in recipe.build(pieces).parameters()) for recipe in translation.RECIPES.values()]
    assert max(counts) / min(counts) < 1.02


def test_bleu_of_counts_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pytest.importorskip("sacremoses")
    written = ["a dog runs over the green grass", "two men stand beside a car", "he plays"]
    right = ["a dog runs over green grass", "two men are beside a red car", "he plays the guitar"]
    counts = np.array([translation._counts(*pair) for pair in zip(written, right, strict=True)]).sum(0)
    expected = sacrebleu.corpus_bleu(written, [right], tokenize="none", force=True).score
    assert translation.bleu(counts) == pytest.approx(expected)
    low, high = translation.resampled(written, right, times=50)
    assert 0 <= low <= expected <= high <= 100
    assert translation.bleu(np.zeros(10)) == 0


def test_every_side_has_the_parameters_of_the_rival() -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    rival = count(nanogpt.GPT(65, nanogpt.Setting()))
    assert rival == 804_096
    config = CharacterConfig(65, max_positions=tiny_shakespeare.OURS.context)
    assert count(CharacterDecoder(config)) == pytest.approx(rival, rel=0.015)
    assert count(RecurrentLanguageModel(tiny_shakespeare.LSTM.recurrent(65))) == pytest.approx(rival, rel=0.015)


def test_the_rival_is_as_published() -> None:
    setting = nanogpt.Setting()
    assert [round(setting.rate(step), 7) for step in (0, 100, 1050, 2000)] == [9.9e-06, 0.001, 0.00055, 0.0001]
    torch.manual_seed(1)
    model = nanogpt.GPT(65, setting).eval()
    stds = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() > 1}
    for name, std in stds.items():
        expected = 0.02 / 8**0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
        assert std == pytest.approx(expected, rel=0.05), name
    ids = torch.randint(65, (2, 9))
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 65
    torch.testing.assert_close(model(ids)[:, :6], model(changed)[:, :6])
    text = np.tile(np.arange(9, dtype=np.uint16), 50)
    few = nanogpt.Setting(layers=1, heads=2, d_model=16, context=8, batch_size=4, steps=60, warmup=5, peak=0.01)
    learnt, seconds = nanogpt.train(text, 9, 1, few)
    assert seconds > 0 and tiny_shakespeare.window_loss(learnt, text, 8, 8) < 1.5 < np.log(9)


@pytest.mark.parametrize(("context", "stride"), [(4, 4), (4, 2), (6, 1), (50, 50), (7, 3)])
def test_every_character_is_counted_once_with_the_context_that_is_said(context: int, stride: int) -> None:
    ids = np.random.default_rng(1).integers(5, size=24).astype(np.uint16)
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    read: list[int] = []

    def score(rows: torch.Tensor) -> torch.Tensor:
        read.append(rows.shape[1])
        return table[rows]  # of the character before alone, so that windows change nothing

    text = torch.from_numpy(ids.astype(np.int64))
    expected = F.cross_entropy(table[text[:-1]], text[1:]).item()
    assert tiny_shakespeare.window_loss(score, ids, context, stride) == pytest.approx(expected, rel=1e-5)
    assert max(read) == min(context, 23)


def test_a_state_that_is_carried_reads_the_text_as_a_whole() -> None:
    torch.manual_seed(2)
    model = RecurrentLanguageModel(RecurrentConfig(vocab_size=7, d_model=8, layers=1)).eval()
    ids = np.random.default_rng(2).integers(7, size=40).astype(np.uint16)
    whole = tiny_shakespeare.window_loss(model, ids, 100, 100)
    assert tiny_shakespeare.carried(model, ids, piece=9) == pytest.approx(whole, rel=1e-5)


def test_ngrams_are_of_the_characters_that_end_at_a_place() -> None:
    ids = torch.tensor([[1, 2, 3, 1, 2, 3, 4], [3, 1, 2, 3, 4, 4, 4]])
    found = ngrams(ids, {2: 1000, 4: 5000})
    assert found[2][0, 1] == found[2][0, 4] == found[2][1, 2] and found[4][0, 6] == found[4][1, 4]
    assert found[2][0, 0] != found[2][0, 3]  # one has nothing before it
    assert len({int(row) for row in found[4].flatten()}) == 12  # all others differ here
    torch.manual_seed(3)
    model = CharacterDecoder(CharacterConfig(7, d_model=8, feed_forward=16, rows={2: 9, 3: 11}, width=4)).eval()
    changed = ids.clone()
    changed[:, 4] = 6
    torch.testing.assert_close(model(changed)[:, :4], model(ids)[:, :4])
    assert model(ids[:, :1]).shape == (2, 1, 7)


def test_silent_tables_are_those_of_a_model_without_them_on_average() -> None:
    torch.manual_seed(4)
    sizes = CharacterConfig(7, d_model=8, feed_forward=16, rows={2: 9, 3: 11}, width=4, silence=0.4)
    model: Any = CharacterDecoder(sizes)
    model.decoder, model.join = torch.nn.Identity(), torch.nn.Identity()
    model.decoder.forward = lambda x, mask: x
    torch.nn.init.zeros_(model.positions.weight)
    ids = torch.randint(7, (64, 50))
    heard = (model.hidden(ids) - model.embedding(ids)).detach()
    still = (model.eval().hidden(ids) - model.embedding(ids)).detach()
    parts = (heard / still).unflatten(2, (2, 4))  # (B, T, tables, e): 0 or 1 / 0.6, a table as one
    for part in parts.unbind(3):
        torch.testing.assert_close(part, parts[..., 0], rtol=1e-3, atol=1e-3)
    assert float(parts.mean()) == pytest.approx(1.0, abs=0.05)
    assert float((parts < 0.5).float().mean()) == pytest.approx(0.4, abs=0.05)


def test_results_of_another_setting_are_refused(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"x": 1}

    first = common.Results(tmp_path / "r.json", {"a": 1})
    assert first.get("n", measure)["x"] == first.get("n", measure)["x"] == 1
    assert common.Results(tmp_path / "r.json", {"a": 1}).get("n", measure)["x"] == 1 and len(calls) == 1
    with pytest.raises(ValueError, match="another setting"):
        common.Results(tmp_path / "r.json", {"a": 2})


def test_spread_and_interval() -> None:
    assert common.spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0" and common.spread([2.0], 1) == "2.0"
    low, high = common.wilson(776, 872)
    assert (round(low, 3), round(high, 3)) == (0.867, 0.909)
    assert common.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
