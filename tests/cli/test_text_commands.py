"""`regard embed`, `regard fill` and `regard classify` as commands: output, files, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.pipelines import pipeline
from tests.command_line import Run
from tests.models.small_bert import TEXTS, as_sentence_encoder, small_bert


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("commands")
    names = {0: "bad", 1: "good", 2: "neither"}
    return {
        "embed": as_sentence_encoder(small_bert(directory / "embed"), normalize=True, most=9),
        "fill": small_bert(directory / "fill", "ForMaskedLM"),
        "classify": small_bert(directory / "classify", "ForSequenceClassification", id2label=names),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def objects(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.decode().splitlines()]


def test_embeddings_of_arguments_a_file_and_standard_input(run: Run, models: dict[str, Path], file: Path):
    expected = pipeline(models["embed"]).vectors(TEXTS)
    content = file.read_bytes().replace(b"\n", b"\r\n")
    for args, stdin in ((TEXTS, b""), ([file], b""), ([], content), (["-", "--threads", "1"], content)):
        result = run("embed", "-m", models["embed"], *args, stdin=stdin)
        assert result.returncode == 0, result.stderr
        found = objects(result.stdout)
        assert [o["text"] for o in found] == TEXTS
        torch.testing.assert_close(torch.tensor([o["embedding"] for o in found]), expected, atol=1e-5, rtol=1e-5)
        assert b"5 of 5 lines" in result.stderr
        assert b"2 of 5 texts were cut off after 9 pieces" in result.stderr


def test_a_matrix(run: Run, models: dict[str, Path], file: Path, tmp_path: Path):
    out = tmp_path / "out.npy"
    assert run("embed", "-m", models["embed"], file, "-o", out, "--no-normalize").returncode == 0
    matrix = np.load(out)
    assert matrix.dtype == np.float32
    expected = pipeline(models["embed"], normalize=False).vectors(TEXTS)
    np.testing.assert_allclose(matrix, expected.numpy(), atol=1e-5)
    again = run("embed", "-m", models["embed"], file, "-o", out)
    assert (again.returncode, b"exists; choose another path" in again.stderr) == (2, True)
    assert run("embed", "-m", models["embed"], file, "-o", out, "--force", "--json").returncode == 0
    assert [o["text"] for o in objects(out.read_bytes())] == TEXTS


def test_gaps(run: Run, models: dict[str, Path]):
    texts = ["Two [MASK] run over the [MASK].", "[MASK]"]
    expected = pipeline(models["fill"], top=3)(texts)
    result = run("fill", "-m", models["fill"], "-k", "3", "--json", *texts)
    assert [o["filled"] for o in objects(result.stdout)] == [f.filled for f in expected]
    assert [[g["id"] for g in gap] for o in objects(result.stdout) for gap in o["gaps"]] == [
        [g.id for g in gap] for f in expected for gap in f.gaps
    ]
    shown = run("fill", "-m", models["fill"], "-k", "3", texts[1])
    guesses = "  ".join(f"{g.piece} {g.probability:.3f}" for g in expected[1].gaps[0])
    assert shown.stdout.decode() == f"{expected[1].filled}\n  {guesses}\n"
    assert shown.stderr == b""


def test_classes(run: Run, models: dict[str, Path], file: Path, tmp_path: Path):
    classify = pipeline(models["classify"])
    shown = run("classify", "-m", models["classify"], file).stdout.decode().splitlines()
    assert shown == [f"{f.label} {f.score:.3f}\t{f.text}" for f in classify(TEXTS)]
    found = objects(run("classify", "-m", models["classify"], "--json", file).stdout)
    assert [[a["label"] for a in o["labels"]] for o in found] == [[a.name for a in f.labels] for f in classify(TEXTS)]
    paired = tmp_path / "pairs.tsv"
    paired.write_text("good\tvery good\nTwo dogs\tA man!\n")
    found = objects(run("classify", "-m", models["classify"], "--pairs", "--json", paired).stdout)
    expected = classify([("good", "very good"), ("Two dogs", "A man!")])
    assert [o["text"] for o in found] == [["good", "very good"], ["Two dogs", "A man!"]]
    assert [o["labels"][0]["score"] for o in found] == pytest.approx([f.score for f in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (("embed", "-m", "EMBED"), b"good\n\nbad\n", "line 2 is empty"),
        (("embed", "-m", "EMBED"), b"", "the input is empty"),
        (("embed", "-m", "EMBED"), b"good\n\xff\n", "not UTF-8"),
        (("embed", "-m", "EMBED", "--no-truncate"), b"a\n" + b"dogs " * 20, "line 2 has 22 pieces"),
        (("embed", "-m", "EMBED", "--pooling", "median", "a"), b"", "pooling is 'median'"),
        (("embed", "-m", "EMBED", "--prompt", "x", "a"), b"", "prompt is 'x': this model has none"),
        (("embed", "-m", "EMBED", "nowhere/lines.txt"), b"", "nowhere/lines.txt: no such file"),
        (("embed", "-m", "EMBED", "a", "-o", "/nowhere/x.npy"), b"", "/nowhere is no directory"),
        (("embed", "-m", "/nowhere/model", "a"), b"", "/nowhere/model"),
        (("embed", "a"), b"", "--model"),
        (("fill", "-m", "FILL", "a man"), b"", "the text has no gap: write [MASK]"),
        (("fill", "-m", "FILL", "[MASK]", "-k", "9999"), b"", "top is 9999"),
        (("fill", "-m", "EMBED", "[MASK]"), b"", "must be 'fill'"),
        (("classify", "-m", "FILL", "a"), b"", "must be 'classify'"),
        (("classify", "-m", "CLASSIFY", "--pairs", "a man"), b"", "the text has 0 tabs"),
        (("classify", "-m", "CLASSIFY", "good " * 50), b"", "the text has 52 pieces"),
    ],
)
def test_bad_input_is_one_line(run: Run, models: dict[str, Path], args: tuple[str, ...], stdin: bytes, message: str):
    result = run(*(models.get(arg.lower(), arg) if arg.isupper() else arg for arg in args), stdin=stdin)
    error = result.stderr.decode()
    assert (result.returncode, result.stdout, error.count("\n")) == (2, b"", 1), error
    assert message in error


def test_nothing_is_written_where_a_line_is_bad(run: Run, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out.jsonl"
    result = run("classify", "-m", models["classify"], "-o", out, "--json", stdin=b"good\n\n")
    assert (result.returncode, [*tmp_path.iterdir()]) == (2, [])


def test_a_process_of_its_own(models: dict[str, Path]):
    command = [sys.executable, "-m", "regard", "fill", "-m", str(models["fill"]), "--json", "--top", "2"]
    result = subprocess.run(command, input=b"[MASK]\nTwo [MASK]\n", capture_output=True, timeout=200)
    assert (result.returncode, len(objects(result.stdout))) == (0, 2), result.stderr
    assert result.stderr == b"2 of 2 lines\n"


def test_help_has_examples(run: Run):
    for command in ("embed", "fill", "classify"):
        shown = run(command, "--help").stdout.decode()
        assert f"regard {command} -m" in shown
