"""`regard see` with models of text that are no translators: answers, pieces with their places, one-line errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from regard.pipelines import pipeline
from regard.pipelines.seeing import see_text
from tests.command_line import Run
from tests.models.parity import saved
from tests.models.small_bert import TEXTS, small_bert, small_roberta
from tests.models.small_llama import small_checkpoint

TEXT = "Two dogs run over it."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("see")
    return {
        "embed": small_bert(directory / "embed"),
        "fill": small_roberta(directory / "fill"),
        "classify": small_bert(directory / "classify", "ForSequenceClassification", id2label={0: "bad", 1: "good"}),
        "generate": small_checkpoint(directory / "generate"),
    }


def pieces(report: dict[str, Any]) -> list[str]:
    """The characters that each element stands for."""
    (sequence,) = report["sequences"].values()
    spans = [element["span"] for element in sequence["elements"]]
    assert all(len(rows) == len(spans) for site in report["sites"] for rows in site["top_keys"])
    return ["" if span is None else sequence["text"][slice(*span)] for span in spans]


def test_encoders(models: dict[str, Path]):
    report = see_text(models["embed"], TEXT)
    assert (report["input"], report["answer"], report["model"]["task"]) == (TEXT, "", "embed")
    assert pieces(report) == ["", "Two", "dogs", "run", "over", "it", ".", ""]
    report = see_text(models["classify"], TEXT)
    found = pipeline(models["classify"], "classify")(TEXT)
    assert report["answer"] == f"{found.label} {found.score:.3f}"
    assert [site["path"] for site in report["sites"]] == [f"encoder.blocks.{i}.attention" for i in range(2)]


def test_gaps_are_filled_where_there_are_some(models: dict[str, Path]):
    text = "Two <mask> run over it."
    report = see_text(models["fill"], text, top=1)
    assert (report["model"]["task"], report["input"]) == ("fill", text)
    assert report["answer"] == pipeline(models["fill"], "fill")(text).filled
    assert "".join(pieces(report)) == text.replace(" ", "")
    report = see_text(models["fill"], TEXT)
    assert (report["model"]["task"], report["answer"]) == ("embed", "")


def test_a_decoder_continues(models: dict[str, Path]):
    report = see_text(models["generate"], TEXT, max_new_tokens=5)
    found = pipeline(models["generate"], "generate", max_new_tokens=5)(TEXT)
    assert (report["input"], report["answer"]) == (TEXT, found.text)
    (sequence,) = report["sequences"].values()
    assert sequence["text"] == found.whole and sequence["text"].startswith(TEXT)
    assert len(pieces(report)) == len(found.prompt_ids) + len(found.ids) - 1


@pytest.mark.parametrize("task", ["embed", "fill", "classify", "generate"])
def test_the_command(run: Run, models: dict[str, Path], tmp_path: Path, task: str):
    page = tmp_path / "page.html"
    options = ("--max-new-tokens", "4") if task == "generate" else ()
    expected = see_text(models[task], TEXTS[0], **({"max_new_tokens": 4} if options else {}))
    result = run("see", "-m", models[task], "-", "-o", page, "--json", *options, stdin=f"{TEXTS[0]}\r\n".encode())
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["input"], found["answer"]) == (TEXTS[0], expected["answer"])
    assert found["sequences"] == expected["sequences"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    shown = run("see", "-m", models[task], TEXTS[0], "-o", page, *options)  # its own page is replaced
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert TEXTS[0] in shown.stdout.decode() and "What the heads do" in shown.stdout.decode()


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("embed", ("dogs " * 60,), "text has 62 pieces"),
        ("embed", (TEXT, "--beams", "2"), "EmbeddingPipeline has no setting beams"),
        ("classify", (TEXT, "--max-new-tokens", "2"), "has no setting max_new_tokens"),
        ("generate", ("dogs " * 200,), "at most 96 with the answer"),
        ("embed", (" ",), "is empty"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, models: dict[str, Path], tmp_path: Path, task: str, args: tuple[str, ...], message: str
):
    result = run("see", "-m", models[task], "-o", tmp_path / "page.html", *args)
    error = result.stderr.decode()
    assert (result.returncode, result.stdout, error.count("\n")) == (2, b"", 1), error
    assert message in error
    assert not [*tmp_path.iterdir()]


def test_a_model_of_images_reads_no_text(run: Run, tmp_path: Path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16)
    _, place = saved(tmp_path, transformers.ViTForImageClassification, config)
    result = run("see", "-m", place, TEXT, "--json")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().endswith("holds a vit, which reads image: it must be a model of text\n")


def test_a_task_chooses_a_model_of_the_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    seen = run("see", "--task", "generate", "--max-new-tokens", "5", "ROMEO:", "--json")
    assert seen.returncode == 0 and seen.stderr.startswith(b"shakespeare: Goes on"), seen.stderr
    assert json.loads(seen.stdout)["model"]["name"] == "shakespeare"
