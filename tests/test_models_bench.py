"""The benchmark of models: its sides compute the same, and its figures reach the table and the JSON."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from models_bench import comparing, decoding, embedding

from tests.models.small_bert import TEXTS, small_bert
from tests.models.small_llama import small_checkpoint

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def test_vectors_are_those_of_the_rivals(encoder: Path):
    found = embedding.run(encoder, TEXTS, threads=1, rounds=2, batches=(2, 3))
    assert all(worst < 1e-5 for worst in found.notes["largest_difference"].values())
    data = found.to_json()
    for order, goal in (("unsorted", 2.0), ("sorted", 1.2)):
        tried = found.notes["seconds_by_batch_size"][f"transformers, {order}"]
        best = min(tried, key=lambda size: tried[size])
        side = data["sides"][f"transformers, {order}, batches of {best}"]
        assert side["goal"] == goal and side["over_regard"] > 0 and side["rounds"] == 2
    padded = embedding.theirs(encoder, 40)
    texts = [*TEXTS, "good " * 60]
    unsorted = padded.vectors(texts, 2, by_length=False)
    torch.testing.assert_close(padded.vectors(texts, 3), unsorted, atol=1e-5, rtol=0)


def test_pieces_are_those_of_the_rivals(decoder: Path):
    found = decoding.decode(decoder, threads=1, rounds=1, prompt=20, tokens=5, text="Two dogs run.")
    assert found.notes["same_pieces"] is True
    assert found.notes[decoding.LLAMA_CPP] == "not measured: there is no GGUF file"
    exact, rounded = found.notes["perplexity"].values()
    assert exact > 1 and rounded == pytest.approx(exact, rel=0.2)
    sides = ["regard", decoding.SINGLE, "transformers", decoding.THEIR_LOOKUP, decoding.INT8]
    assert [*found.seconds] == sides
    found = decoding.prefill(decoder, threads=1, rounds=1, prompt=30)
    assert found.notes["largest_difference"] < 1e-4


def test_ratios_are_of_rounds():
    times = {"regard": [1.0, 5.0, 2.0], "other": [3.0, 15.0, 6.0]}
    data = comparing.Comparison("reading", times, {"other": 2.0}).to_json()
    assert data["sides"]["other"] == {
        "seconds": 6.0, "rounds": 3, "over_regard": pytest.approx(3.0), "quartiles": pytest.approx([3.0, 3.0]),
        "goal": 2.0,
    }  # fmt: skip
    assert "over_regard" not in data["sides"]["regard"]


def test_what_is_not_installed_is_named():
    assert comparing.absent(["torch", "pytest"]) is None
    assert comparing.absent(["torch", "no_such_package"]) == "not measured: no_such_package not installed"


def test_every_figure_is_printed_and_written(encoder: Path, decoder: Path, tmp_path: Path):
    texts, file = tmp_path / "texts.txt", tmp_path / "figures.json"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    models = ("--minilm", encoder, "--smollm", decoder, "--texts", texts, "--prompt", 20, "--tokens", 3)
    done = run(*models, "--quick", "--no-memory", "--json", file)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["complete"] and len(record["comparisons"]) == 3
    for comparison in record["comparisons"]:
        assert comparison["job"] in done.stdout
        assert all(side in done.stdout for side in comparison["sides"])
        assert {"regard"} < set(comparison["sides"])
    assert "5 texts" in record["comparisons"][0]["job"]
    for name, packages in (*embedding.PACKAGES.items(), (decoding.LLAMA_CPP, ("llama_cpp",))):
        assert f"{name}: not measured" in done.stdout or comparing.absent(packages) is None


@pytest.mark.parametrize("job", ["embed", "decode"])
def test_memory_is_that_of_a_process(encoder: Path, decoder: Path, tmp_path: Path, job: str):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    model = ["--minilm", encoder, "--texts", texts, "--most", 40] if job == "embed" else ["--smollm", decoder]
    sizes = [] if job == "embed" else ["--prompt", 20, "--tokens", 3]
    peaks = [
        comparing.peak_of(job, side, 1, [*map(str, [*model, *sizes])])
        for side in ("regard", "transformers, sorted, batches of 2" if job == "embed" else "transformers")
    ]
    assert all(5e7 < peak < 5e9 for peak in peaks)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)memory of 'regard' could not be measured.*nowhere"):
        comparing.peak_of("decode", "regard", 1, ["--smollm", "nowhere", "--prompt", "3", "--tokens", "2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", "--texts", "nowhere.txt", "--minilm", "."), "nowhere.txt is no file"),
        (("--rivals", "nowhere"), "--rivals is nowhere: it must be a directory"),
        (("read",), "invalid choice"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
