"""Classifiers of images and sound from files to checkpoints that others read; what is left out, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regard.models import Checkpoint, ModelError, load
from regard.pipelines import pipeline
from regard.training import TrainingError
from regard.training.run import Run
from regard.training.tasks import files
from regard.training.tasks.classify_audio import ClassifyAudioRecipe, train_audio_classifier
from regard.training.tasks.classify_image import ClassifyImageRecipe, train_image_classifier
from tests.training.lines import killed_at_random
from tests.training.media_data import write_images, write_tone, write_tones
from tests.training.recipes import going_on
from tests.training.test_media_tasks import curve, stripes, tones

IMAGES = ClassifyImageRecipe(
    d_model=16, layers=1, heads=2, feed_forward=32, image_size=32, patch=8, batch_size=8, steps=60, validate_every=20,
    checkpoint_every=7, watch_every=30, peak_learning_rate=0.01, validation_fraction=0.2, rand_augment=0,
)  # fmt: skip
SOUNDS = ClassifyAudioRecipe(
    d_model=16, layers=1, heads=2, feed_forward=32, mels=16, patch=8, stride=8, batch_size=8, steps=40,
    validate_every=20, checkpoint_every=7, watch_every=0, peak_learning_rate=0.01, validation_fraction=0.2,
)  # fmt: skip


def quiet(out: Path, **settings: bool) -> Run:
    return Run(out, progress=False, **settings)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    write_images(place)
    return place


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recordings")
    write_tones(place)
    return place


def test_images_are_learnt_and_read_by_others(pictures: Path, tmp_path: Path) -> None:
    trained = train_image_classifier(pictures, IMAGES, quiet(tmp_path / "run"))
    assert trained.scores["accuracy"] == 1
    write_images(tmp_path / "new", 6, seed=1)
    paths = sorted((tmp_path / "new").rglob("*.png"))
    answers = pipeline(trained.directory, "classify")(paths)
    assert [answer.label for answer in answers] == [path.parent.name for path in paths]
    assert answers[0].relations.sites
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(trained.directory).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(trained.directory)
    with torch.no_grad():
        scores = theirs(**processor(Image.open(paths[0]).convert("RGB"), return_tensors="pt")).logits.softmax(1)
    assert float(scores[0].max()) == pytest.approx(answers[0].score, abs=0.01)
    card = (trained.directory / "README.md").read_text()
    assert "for the task classify-image" in card and "accuracy 1.0000" in card


def test_a_transformer_behind_convolutions_learns_images_too(pictures: Path, tmp_path: Path) -> None:
    recipe = replace(IMAGES, family="convolutional", optimiser="muon", steps=30)
    trained = train_image_classifier(pictures, recipe, quiet(tmp_path / "run"))
    assert trained.scores["accuracy"] == 1
    found = load(trained.directory)
    config: Any = found.model.config
    assert (config.widths, config.blocks, config.d_model) == ((8, 8, 8), (0, 1, 1, 0), 16)
    write_images(tmp_path / "new", 6, seed=1)
    paths = sorted((tmp_path / "new").rglob("*.png"))
    answers: Any = pipeline(trained.directory, "classify")([*paths])
    assert [answer.label for answer in answers] == [path.parent.name for path in paths]
    for patch in (1, 12, 64):
        with pytest.raises(TrainingError, match=f"patch is {patch}; it may be a power of two that divides"):
            train_image_classifier(pictures, replace(recipe, patch=patch), quiet(tmp_path / f"patch-{patch}"))


def test_sound_is_learnt_and_read_by_others(recordings: Path, tmp_path: Path) -> None:
    trained = train_audio_classifier(recordings, SOUNDS, quiet(tmp_path / "run"))
    assert trained.scores["accuracy"] == 1 and not trained.skipped
    for name, hertz in (("low", 400), ("high", 2800)):
        write_tone(tmp_path / f"{name}.wav", hertz)
    answers = pipeline(trained.directory, "classify")([tmp_path / "low.wav", tmp_path / "high.wav"])
    assert [answer.label for answer in answers] == ["low", "high"]
    config: Any = trained.model.config
    assert config.size == (16, 16)  # the longest, 0.18 s
    transformers = pytest.importorskip("transformers")
    found = load(trained.directory)
    assert isinstance(found, Checkpoint)
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(trained.directory).eval()
    features = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.model(features), theirs(features[:, 0].mT).logits, atol=1e-4, rtol=1e-4)


def test_a_transformer_behind_convolutions_learns_sound_too(recordings: Path, tmp_path: Path) -> None:
    recipe = replace(SOUNDS, family="convolutional", patch=None)
    trained = train_audio_classifier(recordings, recipe, quiet(tmp_path / "run"))
    (answer,) = pipeline(trained.directory, "classify")([next((recordings / "high").iterdir())])
    assert trained.scores["accuracy"] > 0.8 and answer.label == "high" and answer.relations.sites
    sized = replace(recipe, steps=2, patch=4, seconds=0.21)
    config: Any = train_audio_classifier(recordings, sized, quiet(tmp_path / "sized")).model.config
    assert config.size == (16, 24)
    with pytest.raises(TrainingError, match=r"patch is \(16, 16\)"):
        train_audio_classifier(recordings, replace(recipe, patch=16), quiet(tmp_path / "other"))


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_killed_at_random_moments_the_curve_is_the_same(
    kind: str, pictures: Path, recordings: Path, tmp_path: Path
) -> None:
    def again(out: Path) -> None:
        if kind == "image":
            train_image_classifier(pictures, replace(IMAGES, steps=30, rand_augment=1), quiet(out, resume=True))
        else:
            train_audio_classifier(recordings, replace(SOUNDS, steps=30), quiet(out, resume=True))

    again(tmp_path / "whole")
    killed = tmp_path / "killed"
    assert killed_at_random(lambda: again(killed), killed / "metrics.jsonl", kills=2, most=18, seed=1) > 0
    assert curve(killed) == curve(tmp_path / "whole")
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_what_is_left_out_is_counted_and_named(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data, 20)
    (data / "lie" / "broken.png").write_bytes((data / "lie" / "001.png").read_bytes()[:60])
    (data / "lie" / "empty.png").write_bytes(b"")
    (data / "stand" / "notes.txt").write_text("these stand\n")
    (data / "stand" / ".DS_Store").write_bytes(b"\0")
    (data / "readme.md").write_text("pictures\n")
    (data / "none").mkdir()
    other = tmp_path / "other"
    write_images(other, 4)
    (other / "newt").mkdir()
    (other / "newt" / "a.png").write_bytes((data / "lie" / "001.png").read_bytes())
    run = quiet(tmp_path / "run")
    trained = train_image_classifier(data, replace(IMAGES, steps=2), run, validation=other)
    outside, unread, modes, sizes, strange, *rest = trained.skipped
    assert outside == f"1 file is left out: it is in no class's folder ({data}/readme.md)"
    assert unread.startswith("3 files are left out: it cannot be read (")
    assert all(f"{data}/{name}" in unread for name in ("lie/broken.png", "lie/empty.png", "stand/notes.txt"))
    assert modes == "14 images become RGB: 6 L, 4 P, 4 RGBA"
    assert sizes.startswith("images of 2") and sizes.endswith(" pixels, become 32 × 32")
    assert strange == f"1 file is left out: the label 'newt' is not among those to learn ({other}/newt/a.png)"
    assert rest == ["2 images become RGB: 2 L", "images of 4 sizes, 31 × 37 to 49 × 55 pixels, become 32 × 32"]
    again = train_image_classifier(data, replace(IMAGES, steps=2), replace(run, resume=True), validation=other)
    assert again.skipped == trained.skipped  # nothing is read again


def test_tables_of_paths(pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.rglob("*.png"))
    rows = [f"{os.path.relpath(path, tmp_path)},{len(path.parent.name)}" for path in paths[:-1]] + [f"{paths[-1]},5"]
    lines = ["file,class", *rows, ",3", "nowhere.png,3", "x.png,"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    recipe = replace(IMAGES, steps=2, path="file", label="class")
    trained = train_image_classifier(tmp_path / "table.csv", recipe, quiet(tmp_path / "run"))
    config: Any = trained.model.config
    assert config.labels == ("3", "5")
    assert trained.skipped[:2] == [
        f"1 file is left out: the path is missing ({tmp_path}/table.csv, line 32)",
        f"1 file is left out: the label is missing ({tmp_path}/table.csv, line 34)",
    ]
    assert "nowhere.png: there is no such file" in trained.skipped[2]
    with pytest.raises(TrainingError, match="has no column 'path'; it has 'file', 'class'"):
        train_image_classifier(tmp_path / "table.csv", IMAGES, quiet(tmp_path / "other"))


def test_long_recordings_are_cut_off(recordings: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_tones(data, 8)
    write_tone(data / "low" / "long.wav", 310, seconds=1)
    write_tone(data / "low" / "short.wav", 310, seconds=0.02)
    write_tone(data / "low" / "still.wav", 310, seconds=0)
    recipe = replace(SOUNDS, steps=2, seconds=0.3)
    trained = train_audio_classifier(data, recipe, quiet(tmp_path / "run"))
    unread, longer = trained.skipped
    assert (
        unread.startswith("2 files are left out: it cannot be read (") and "20 ms of sound: 25 ms are needed" in unread
    )
    assert longer == "1 recording is longer than 0.32 s: what comes later is not heard"
    config: Any = trained.model.config
    assert config.size == (16, 30)


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTForImageClassification", "Dinov2ForImageClassification"])
def test_fine_tunes_models_of_images(kind: str, pictures: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = getattr(transformers, kind)
    model(model.config_class(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "first")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
    settings |= {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    (tmp_path / "first" / "preprocessor_config.json").write_text(json.dumps(settings))
    recipe = going_on(IMAGES, tmp_path / "first", steps=40)
    trained = train_image_classifier(pictures, recipe, quiet(tmp_path / "run"))
    assert trained.scores["accuracy"] > 0.8
    path = next((pictures / "lie").iterdir())
    assert pipeline(trained.directory, "classify")(path).label in ("lie", "stand")
    assert "fine-tuned from" in (trained.directory / "README.md").read_text()
    again = replace(recipe, model=str(trained.directory), steps=2)  # the head is kept
    assert train_image_classifier(pictures, again, quiet(tmp_path / "again")).scores["accuracy"] > 0.8


def test_fine_tunes_models_of_sound(recordings: Path, tmp_path: Path) -> None:
    first = train_audio_classifier(recordings, replace(SOUNDS, steps=2), quiet(tmp_path / "first"))
    data = tmp_path / "data"
    write_tones(data)
    (data / "low").rename(data / "deep")
    recipe = going_on(SOUNDS, first.directory)
    trained = train_audio_classifier(data, recipe, quiet(tmp_path / "run"))
    config: Any = trained.model.config
    assert trained.scores["accuracy"] == 1 and config.labels == ("deep", "high") and config.size == (16, 16)


def test_data_in_memory(tmp_path: Path) -> None:
    recipe = replace(IMAGES, image_size=16, patch=4, steps=4)
    trained = train_image_classifier(stripes(), recipe, quiet(tmp_path / "images"))
    assert load(trained.directory).task == "classify"
    with pytest.raises(TrainingError, match="the training data are 60 examples"):
        train_image_classifier(stripes(seed=1), recipe, quiet(tmp_path / "images", resume=True))
    held_out = tones(12, seed=1)
    recipe = replace(SOUNDS, seconds=0.25, steps=4)
    trained = train_audio_classifier(tones(), recipe, quiet(tmp_path / "sounds"), validation=held_out)
    assert load(trained.directory).task == "classify" and not trained.skipped


def test_what_cannot_be_is_refused_before_anything_is_written(pictures: Path, tmp_path: Path) -> None:
    empty, one, single = tmp_path / "empty", tmp_path / "one", tmp_path / "single"
    empty.mkdir()
    for place, count in ((one, 4), (single, 3)):
        write_images(place, count)
    for path in (one / "stand").iterdir():
        path.write_bytes(b"")
    (tmp_path / "model").mkdir()
    for data, changes, words in (
        (tmp_path / "nowhere", {}, "nowhere does not exist; it may be a directory with a folder a class or a table"),
        (next(pictures.rglob("*.png")), {}, "is neither a directory with a folder a class nor a table"),
        (empty, {}, "empty has no example with a class; there must be two classes or more"),
        (pictures / "lie", {}, "has no example with a class"),
        (pictures, {"family": "resnet"}, "family is 'resnet'; it may be 'vit', 'convolutional'"),
        (pictures, {"model": str(tmp_path / "model")}, "model is not a saved model"),
        (pictures, {"image_size": 0}, "image_size is 0"),
    ):
        with pytest.raises((TrainingError, ModelError), match=words):
            train_image_classifier(data, replace(IMAGES, **changes), quiet(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
    for data, changes, words in (
        (one, {}, "one, of what can be read, has only the class 'lie'; there must be two classes or more"),
        (single, {}, "one example alone of the class 'lie'"),
        (pictures, {"patch": 5}, "patch is 5; it may be what divides the image's 32 pixels"),
        (pictures, {"heads": 3}, "d_model is 16 with 3 heads"),
    ):
        with pytest.raises(TrainingError, match=words):
            train_image_classifier(data, replace(IMAGES, **changes), quiet(tmp_path / "run", resume=True))
        for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_other_data_are_not_resumed(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data, 20)
    train_image_classifier(data, replace(IMAGES, steps=2), quiet(tmp_path / "run"))
    (data / "lie" / "more.png").write_bytes((data / "lie" / "001.png").read_bytes())
    with pytest.raises(TrainingError, match="the training data are 21 files"):
        train_image_classifier(data, replace(IMAGES, steps=2), quiet(tmp_path / "run", resume=True))
    with pytest.raises(TrainingError, match="holds another run"):
        train_image_classifier(data, replace(IMAGES, steps=2), quiet(tmp_path / "run"))


def test_a_full_disk_is_one_line(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(TrainingError, match=r"data/train.bin cannot be written: No space left on device"):
        train_image_classifier(pictures, IMAGES, quiet(tmp_path / "run"))


LARGE = """
import resource, sys
from pathlib import Path
import torch
from regard.training.run import Run
from regard.training.tasks.classify_image import ClassifyImageRecipe, train_image_classifier

torch.set_num_threads(1)
def train(data, out):
    recipe = ClassifyImageRecipe(
        d_model=8, layers=1, heads=1, feed_forward=8, image_size=256, patch=128, batch_size=8, steps=int(sys.argv[3]),
        validate_every=1000, watch_every=0, rand_augment=0, erase=0.0,
    )
    train_image_classifier(Path(data), recipe, Run(Path(out), progress=False))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

train(sys.argv[1], sys.argv[2] + "-few")  # what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(train(sys.argv[4], sys.argv[2]) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the largest memory of a process is counted in other units")
def test_data_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, count in (("few", 20), ("many", 600)):
        for label in ("a", "b"):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "0.png")
            for i in range(1, count // 2):
                os.link(folder / "0.png", folder / f"{i}.png")
    stored = 600 * 3 * 256 * 256
    command = [sys.executable, "-c", LARGE, str(tmp_path / "few"), str(tmp_path / "run"), "68", str(tmp_path / "many")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert (tmp_path / "run" / "data" / "train.bin").stat().st_size == stored
    assert int(result.stdout) < stored / 4  # of 118 MB, of which every image was learnt from
