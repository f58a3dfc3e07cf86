"""`regard classify` and `regard see` with images, sound and video: answers, pages, one-line errors."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import transformers

from regard.pipelines import MediaClassificationPipeline, pipeline
from tests.command_line import Run
from tests.inputs.recordings import sound
from tests.models.parity import saved
from tests.models.small_bert import small_bert
from tests.pipelines.small_media import CASES, media_file, small_model

MODALITIES = {"vit": "image", "ast": "audio", "videomae": "video"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("commands")
    names = {0: "bad", 1: "good"}
    return {
        "text": small_bert(directory / "text", "ForSequenceClassification", id2label=names),
        **{name: small_model(name, directory)[1] for name in (*MODALITIES, "dinov2")},
    }


@pytest.mark.parametrize("name", MODALITIES)
def test_classes_of_files(models: dict[str, Path], name: str, tmp_path: Path, run: Run):
    files = [media_file(name, tmp_path, number) for number in range(2)]
    classify = pipeline(models[name], "classify")
    assert isinstance(classify, MediaClassificationPipeline)
    expected = classify([*files])
    result = run("classify", "-m", models[name], *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "".join(f"{a.label} {a.score:.3f}\t{a.name}\n" for a in expected)
    assert b"2 of 2 files" in result.stderr
    result = run("classify", "-m", models[name], "-k", "3", files[0])
    labels = ", ".join(f"{label.name} {label.score:.3f}" for label in expected[0].labels[:3])
    assert result.stdout.decode() == f"{labels}\t{files[0]}\n"
    assert result.stderr == b""
    found = [json.loads(line) for line in run("classify", "-m", models[name], "--json", *files).stdout.splitlines()]
    assert [o["input"] for o in found] == [str(file) for file in files]
    for one, other in zip(found, expected, strict=True):
        assert [a["label"] for a in one["labels"]] == [label.name for label in other.labels]
        assert [a["score"] for a in one["labels"]] == pytest.approx([label.score for label in other.labels], abs=1e-5)


def test_several_labels_at_once(models: dict[str, Path], tmp_path: Path, run: Run):
    file = media_file("dinov2", tmp_path)
    answer = pipeline(models["dinov2"])(file)
    likely = [label for label in answer.labels if label.score > 0.5] or [answer.labels[0]]
    shown = run("classify", "-m", models["dinov2"], file).stdout.decode()
    assert shown == ", ".join(f"{label.name} {label.score:.3f}" for label in likely) + f"\t{file}\n"


@pytest.mark.parametrize("name", MODALITIES)
def test_a_page_of_a_file(
    models: dict[str, Path], name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    file = media_file(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run("see", "-m", models[name], file)
    assert result.returncode == 0, result.stderr
    printed = result.stdout.decode()
    answer = pipeline(models[name])(file)
    assert printed.count(f"{answer.score:.4f}") == 1
    assert all(label.name in printed for label in answer.labels)
    assert " ".join(answer.scene.about.split()) in " ".join(printed.split())
    page = (tmp_path / f"regard-{file.stem}.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    report = json.loads(run("see", "-m", models[name], file, "--json").stdout)
    assert report["answer"] == f"{answer.label} {answer.score:.3f}"
    assert [*report["sequences"]] == [MODALITIES[name]]


def test_a_model_without_a_head_only_reads(tmp_path: Path, run: Run):
    _, place = saved(tmp_path, transformers.ViTModel, CASES["vit"][1])
    (place / "preprocessor_config.json").write_text(json.dumps(CASES["vit"][2]))
    report = json.loads(run("see", "-m", place, media_file("vit", tmp_path), "--json").stdout)
    assert (report["answer"], len(report["sites"])) == ("", 2)
    assert len(report["sequences"]["image"]["elements"]) == 17


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("classify", "-m", "VIT"), "there is no file: this model reads images"),
        (("classify", "-m", "VIT", "a cat"), "a cat: no such file; this model reads images"),
        (("classify", "-m", "AST", "--pairs", "SOUND"), "--pairs is for texts: this model reads sound"),
        (("classify", "-m", "VIT", "--truncate", "PICTURE"), "has no setting truncate: it has none"),
        (("classify", "-m", "VIT", "SOUND"), "0.flac is not an image"),
        (("classify", "-m", "AST", "SILENT"), "silent.wav is silent: its 16000 samples are all 0"),
        (("classify", "-m", "VIDEOMAE", "SOUND"), "0.flac has no video in it"),
        (("classify", "-m", "VIT", "CUT"), "cut.png"),
        (("classify", "-m", "VIT", "DIRECTORY"), "is a directory, not a file"),
        (("classify", "-m", "TEXT", "PICTURE"), "0.png is an image; this model reads text"),
        (("embed", "-m", "VIT", "a cat"), "which reads image: to embed it must read text"),
        (("see", "FILM"), "is a video: no model of the package reads it; name a model that does with --model"),
        (("classify", "FILM"), "is a video: no model of the package reads it; name a model that does with --model"),
        (("see", "--task", "summarise", "a cat"), "--task is 'summarise'; it may be translate, classify, generate"),
        (("see", "--task", "classify", "-m", "VIT", "a cat"), "give either --task or --model"),
        (("see", "--task", "classify", "PICTURE"), "is an image"),
        (("see", "-m", "translate-en-de", "PICTURE"), "translate-en-de reads text: "),
        (("see", "-m", "TEXT", "PICTURE"), "reads text: "),
        (("see", "-m", "VIT", "a cat"), "which reads image: it must be a model of text"),
        (("see", "-m", "VIT", "SOUND"), "0.flac is not an image"),
        (("see", "-m", "AST", "SILENT"), "is silent"),
        (("see", "-m", "VIT", "CUT"), "cut.png"),
        (("see", "-m", "VIT", "--beams", "2", "PICTURE"), "--beams is for texts"),
        (("see", "-m", "VIT", "nowhere.png"), "nowhere.png: no such file"),
    ],
)
def test_bad_input_is_one_line(
    models: dict[str, Path],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    names = {name.upper(): place for name, place in models.items()}
    names |= {"PICTURE": media_file("vit", tmp_path), "SOUND": media_file("ast", tmp_path), "DIRECTORY": tmp_path}
    names["FILM"] = media_file("videomae", tmp_path)
    names |= {"SILENT": tmp_path / "silent.wav", "CUT": tmp_path / "cut.png"}
    names["SILENT"].write_bytes(sound(numpy.zeros((1, 16_000)), 16_000))
    names["CUT"].write_bytes(names["PICTURE"].read_bytes()[:500])
    before = {*tmp_path.iterdir()}
    result = run(*(names.get(arg, arg) for arg in args))
    error = result.stderr.decode()
    assert (result.returncode, result.stdout, error.count("\n")) == (2, b"", 1), error
    assert message in error
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(("name", "default"), [("vit", "photo-classes"), ("ast", "spoken-digits")])
def test_without_a_model_an_embedded_one_classifies_and_says_its_limits(
    models: dict[str, Path], name: str, default: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / default
    shutil.copytree(models[name], place)
    about = json.loads((place / "config.json").read_text())
    about |= {"task": "t", "description": "Five kinds.", "limits": "It knows no sixth.", "scores": {"s": 1}}
    (place / "config.json").write_text(json.dumps(about))
    monkeypatch.setattr("regard.models.registry.embedded_models", lambda: {default: place})
    file = media_file(name, tmp_path)
    said = f"{default}: Five kinds. It knows no sixth. --model names another.\n".encode()
    result = run("classify", file)
    assert (result.returncode, result.stderr) == (0, said)
    assert result.stdout == run("classify", "-m", place, file).stdout
    result = run("see", file, "--json")
    assert result.stderr == said and json.loads(result.stdout)["model"]["name"] == default
    assert "  It knows no sixth.\n" in run("models").stdout.decode()
    monkeypatch.setattr("regard.models.registry.embedded_models", dict)
    result = run("see", file)
    assert result.returncode == 2 and b"no model of the package reads it" in result.stderr
