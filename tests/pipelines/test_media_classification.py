"""From a file to the answer: images, sound and video are classified as transformers' processors and models do it."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from regard.elements import Band, Box, Tubelet
from regard.inputs.source import InputError
from regard.inputs.video import read_frames
from regard.models import ModelError
from regard.models.checkpoint import read_checkpoint
from regard.pipelines.media_classification import MediaClassificationPipeline
from tests.inputs.recordings import film, sound, tone
from tests.models.parity import assert_same
from tests.pipelines.small_media import CASES, NAMES, chirp, media_file, scene, small_model

MODALITIES = {"vit": "image", "ast": "audio", "videomae": "video"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    directory = tmp_path_factory.mktemp("media")
    return {name: small_model(name, directory) for name in CASES}


def pipeline_of(models: dict[str, tuple[Any, Path]], name: str) -> MediaClassificationPipeline:
    return MediaClassificationPipeline(read_checkpoint(models[name][1]))


def their_input(name: str, file: Path) -> torch.Tensor:
    """What their processor makes of a file, (1, …)."""
    data = CASES[name][2]
    if name == "ast":
        from transformers import ASTFeatureExtractor

        from regard.inputs.audio import read_audio

        samples = read_audio(file, 16_000).numpy()
        return ASTFeatureExtractor.from_dict(data)(samples, sampling_rate=16_000, return_tensors="pt")["input_values"]
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processors: dict[str, Any] = {
        "vit": ViTImageProcessorPil, "deit": DeiTImageProcessorPil, "dinov2": BitImageProcessorPil,
        "videomae": VideoMAEImageProcessorPil,
    }  # fmt: skip
    images: Any = Image.open(file).convert("RGB") if name != "videomae" else None
    if name == "videomae":
        images = [numpy.asarray(frame.image) for frame in read_frames(file, 6)]
    return torch.as_tensor(processors[name].from_dict(data)(images, return_tensors="np")["pixel_values"])


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_from_a_file_to_the_answer(models: dict[str, tuple[Any, Path]], name: str, tmp_path: Path):
    theirs, _ = models[name]
    pipeline = pipeline_of(models, name)
    files = [media_file(name, tmp_path, number) for number in range(3)]
    expected = torch.cat([theirs(their_input(name, file)).logits for file in files])
    ours = torch.cat([pipeline.logits(pipeline.reader.tensor(file)[None]) for file in files])
    assert_same(ours, expected, 1e-3)
    scores = expected.sigmoid() if name == "dinov2" else expected.softmax(-1)
    answers = pipeline(files)  # of one model with images of two sizes, which do not fit into one batch
    for file, answer, row in zip(files, answers, scores, strict=True):
        order = row.argsort(descending=True).tolist()
        assert [label.name for label in answer.labels] == [NAMES[i] for i in order]
        assert [label.score for label in answer.labels] == pytest.approx(row[order].tolist(), abs=1e-3)
        assert (answer.label, answer.name) == (answer.labels[0].name, str(file))
        assert pipeline(file).score == pytest.approx(answer.score, abs=1e-5)


def test_batches_are_the_single_ones(models: dict[str, tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch):
    from regard.pipelines import media_classification

    pipeline = pipeline_of(models, "vit")
    images = [scene(50 + i, 40, seed=i) for i in range(7)]
    single = [pipeline(image) for image in images]
    monkeypatch.setattr(media_classification, "BATCH", 3 * 16)
    done: list[int] = []
    answers = pipeline([*images], progress=done.append)
    assert done == [3, 6, 7]
    for one, other in zip(single, answers, strict=True):
        assert [label.name for label in one.labels] == [label.name for label in other.labels]
        assert other.score == pytest.approx(one.score, abs=1e-5)
    assert pipeline([]) == []


@pytest.mark.parametrize("name", CASES)
def test_relations_are_those_of_the_elements(models: dict[str, tuple[Any, Path]], name: str, tmp_path: Path):
    theirs, place = models[name]
    answer = pipeline_of(models, name)(media_file(name, tmp_path))
    relations, elements = answer.relations, answer.scene.elements
    assert len(relations.sites) == 2
    eager = type(theirs).from_pretrained(place, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = eager(their_input(name, tmp_path / media_file(name, tmp_path)), output_attentions=True).attentions
    for site, weights in zip(relations.sites, expected, strict=True):
        ours = relations.weights(site.path)
        assert ours.shape == weights[0].shape == (4, len(elements), len(elements))
        assert (ours - weights[0]).abs().max() < 1e-3
    for roles in relations.heads().values():  # labels are names of places: none is said again
        assert not any("repeat" in role.scores for role in roles)


@pytest.mark.parametrize("name", CASES)
def test_elements_know_their_place(models: dict[str, tuple[Any, Path]], name: str, tmp_path: Path):
    reader = pipeline_of(models, name).reader
    found = reader.scene(media_file(name, tmp_path))
    kind = {"image": Box, "audio": Band, "video": Tubelet}[reader.modality]
    prefix = reader.config.prefix
    assert [e.label for e in found.elements[: len(prefix)]] == [*prefix]
    assert [e.index for e in found.elements] == [*range(len(found.elements))]
    rest = found.elements[len(prefix) :]
    spans = [e.span for e in rest if e.span is not None]
    assert spans and {type(span) for span in spans} == {kind}
    assert {e.label for e in rest if e.span is None} <= {"padding"}
    assert len(found.places) == len(found.elements)
    for element, place in zip(found.elements, found.places, strict=True):
        if place is None:
            assert element.span is None
            continue
        picture, left, top, right, bottom = place
        assert 0 <= left < right <= found.pictures[picture]["width"] + 1e-6
        assert 0 <= top < bottom <= found.pictures[picture]["height"] + 1e-6


def test_patches_of_an_image_that_is_cropped(models: dict[str, tuple[Any, Path]]):
    found = pipeline_of(models, "deit").reader.scene(scene(100, 50))
    assert [e.label for e in found.elements[:3]] == ["[CLS]", "[DIST]", "0,0"]
    # 100 × 50 pixels become 40 × 40, of which the 32 × 32 in the middle are seen: 80 × 40 of the original.
    assert found.elements[2].span == Box(*map(pytest.approx, (10, 5, 30, 15)))
    assert found.elements[-1].span == Box(*map(pytest.approx, (70, 35, 90, 45)))
    assert "100 × 50 pixels, seen in 4 × 4 patches (rows × columns) of 20 × 10 pixels, and [CLS] [DIST]" in found.about


def test_a_column_of_the_spectrogram_is_a_time(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    found = pipeline_of(models, "ast").reader.scene(media_file("ast", tmp_path))
    bands, times = 5, 9  # (32 − 8) / 6 + 1 and (48 − 8) / 5 + 1
    assert len(found.elements) == 2 + bands * times
    assert (found.pictures[0]["width"], found.pictures[0]["height"]) == (48, 32)
    colours = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(found.pictures[0]["uri"].split(",")[1]))))
    heard = 1 + (4800 - 400) // 160  # frames of 0.3 s
    assert (colours[:, heard:] == 128).all()
    assert not (colours[:, :heard] == 128).all(2).any()
    assert found.places[2] == (0, 1.5, 32 - 7, 6.5, 31)  # the middle 6 × 5 of 8 × 8
    assert found.places[2 + times] == (0, 1.5, 32 - 13, 6.5, 25)
    assert [e.label for e in found.elements].count("padding") == 3 * bands  # those that begin at frames 30, 35 and 40
    assert "0.30 s of sound" in found.about and f"{6 * bands} hold sound" in found.about
    long = pipeline_of(models, "ast").reader.scene((chirp(16_000, 2.0), 16_000))
    assert "the first 0.49 s of 2.00 s" in long.about
    assert all(e.span is not None for e in long.elements[2:])


def test_tubelets_are_drawn_on_their_frames(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    found = pipeline_of(models, "videomae").reader.scene(media_file("videomae", tmp_path))
    assert len(found.pictures) == 3
    assert [place[0] for place in found.places if place] == [0] * 16 + [1] * 16 + [2] * 16
    frames = [frame.index for frame in read_frames(tmp_path / "0.mkv", 6)]
    assert found.pictures[1]["title"].endswith(f"frames {frames[2]}, {frames[3]}")
    assert found.elements[16].span.frames == (frames[2], frames[3])


def test_reports_are_data(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    for name, modality in MODALITIES.items():
        answer = pipeline_of(models, name)(media_file(name, tmp_path))
        report = json.loads(json.dumps(answer.report(), allow_nan=False))
        sequence = report["sequences"][modality]
        assert sequence["modality"] == modality
        assert sequence["about"] == answer.scene.about
        assert sequence["pictures"][0]["uri"].startswith("data:image/png;base64,")
        assert len(sequence["places"]) == len(sequence["elements"]) == len(answer.scene.elements)
        assert report["labels"][0] == {"label": answer.label, "score": answer.score}
        assert report["answer"] == f"{answer.label} {answer.score:.3f}"


def test_files_that_cannot_be_classified(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    def says(name: str, file: str, content: bytes, said: str) -> None:
        (tmp_path / file).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            pipeline_of(models, name)([tmp_path / file])
        assert str(tmp_path / file) in str(caught.value)
        assert "\n" not in str(caught.value)

    silent = sound(numpy.zeros((1, 8000)), 8000)
    says("ast", "silent.wav", silent, "is silent: its 16000 samples are all 0")
    says("ast", "short.wav", sound(tone(16_000, 0.02), 16_000), "has 20 ms of sound: 25 ms are needed")
    says("ast", "none.wav", silent[: silent.index(b"data") + 4] + bytes(4), "no sound")
    says("ast", "picture.png", media_file("vit", tmp_path).read_bytes(), "has no audio in it|neither audio nor video")
    says("videomae", "sound.wav", silent, "has no video in it")
    says("videomae", "cut.mp4", film([numpy.zeros((32, 32, 3), numpy.uint8)] * 4)[:500], "neither audio nor video")
    says("vit", "cut.png", media_file("vit", tmp_path).read_bytes()[:400], "truncated")
    says("vit", "sound.flac", media_file("ast", tmp_path).read_bytes(), "not an image")
    with pytest.raises(InputError, match="no such file"):
        pipeline_of(models, "vit")("nowhere.png")
    for name, source in (("vit", (numpy.zeros(9), 8000)), ("ast", scene()), ("videomae", scene())):
        with pytest.raises(TypeError, match="source is"):
            pipeline_of(models, name)(source)


def test_a_small_image_for_a_model_of_any_size(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    place = changed(models, "dinov2", tmp_path, do_resize=False)
    with pytest.raises(InputError, match="becomes an image of 7 × 20 pixels: the model takes 32 × 32"):
        MediaClassificationPipeline(read_checkpoint(place))(scene(7, 20))


def changed(models: dict[str, tuple[Any, Path]], name: str, directory: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with another preprocessor."""
    place = directory / f"changed-{name}"
    shutil.copytree(models[name][1], place, dirs_exist_ok=True)
    (place / "preprocessor_config.json").write_text(json.dumps(CASES[name][2] | changes))
    return place


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("vit", {"size": 48}, "makes images of 48 × 48: config.json says that the model takes 32 × 32"),
        ("vit", {"image_processor_type": "CLIPImageProcessor"}, "it may be ViTImageProcessor"),
        ("vit", {"image_processor_type": "VideoMAEImageProcessor"}, "makes images of 224 × 224"),
        ("ast", {"max_length": 64}, "makes spectrograms of 32 × 64"),
        ("ast", {"image_processor_type": "ViTImageProcessor", "feature_extractor_type": None}, "has no feature_ex"),
        ("videomae", {"crop_size": 16}, "makes videos of 6 × 16 × 16"),
        ("videomae", {"do_center_crop": False}, "makes frames of any size"),
    ],
)  # fmt: skip
def test_preprocessors_that_do_not_fit(
    models: dict[str, tuple[Any, Path]], tmp_path: Path, name: str, changes: dict[str, Any], said: str
):
    with pytest.raises(ModelError, match=said) as caught:
        MediaClassificationPipeline(read_checkpoint(changed(models, name, tmp_path, **changes)))
    assert str(tmp_path) in str(caught.value)


def test_checkpoints_that_cannot_classify(models: dict[str, tuple[Any, Path]], tmp_path: Path):
    import transformers as hf

    from tests.models.parity import saved

    place = changed(models, "vit", tmp_path)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="has no preprocessor_config.json"):
        MediaClassificationPipeline(read_checkpoint(place))
    _, place = saved(tmp_path, hf.ViTModel, CASES["vit"][1])
    with pytest.raises(ModelError, match="it must be 'classify'"):
        MediaClassificationPipeline(read_checkpoint(place))
