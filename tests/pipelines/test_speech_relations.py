"""What a model of speech attends to: elements with their seconds and characters, exact weights, the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.inputs import InputError
from regard.pipelines import TranscriptionPipeline, pipeline
from regard.pipelines.seeing import see_media
from regard.pipelines.speech_relations import relate
from tests.command_line import Run
from tests.models.small_whisper import small_whisper, speech_like, write_sound


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TranscriptionPipeline]:
    theirs, place = small_whisper(tmp_path_factory.mktemp("relations"))
    return theirs, pipeline(place, "transcribe")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "talk.wav", speech_like(0.7))


def test_elements_are_seconds_and_characters(pair: tuple[Any, TranscriptionPipeline], sound: Path):
    _, ours = pair
    report = see_media(ours.checkpoint.directory, sound)
    said = ours.tokenizer.decode(ours.speech.spoken_of(ours.reader.read(speech_like(0.7), None).pieces))
    assert report["answer"] == said.strip() and said.strip().startswith(ours(sound).segments[0].text)
    heard, text = report["sequences"]["sound"], report["sequences"]["text"]
    spans = [element["span"] for element in heard["elements"]]
    assert len(spans) == 50 and spans[35:] == [None] * 15  # 0.7 s of the window's one second
    assert spans[3]["seconds"] == pytest.approx([0.06, 0.08]) and spans[34]["seconds"][1] == pytest.approx(0.7)
    assert heard["places"][3] == [0, 6, 0, 8, 80] and heard["pictures"][0]["width"] == 100
    assert "50 positions of 20 ms, of which 35 hold sound" in heard["about"]
    labels = [element["label"] for element in text["elements"]]
    assert labels[0] == "<|startoftranscript|>" and labels[2] == "<|transcribe|>" and re.match(r"<\|\d\.", labels[3])
    assert [label for label in labels[1:]] == text["writes"][:-1]
    places = [range(*element["span"]) for element in text["elements"] if element["span"] is not None]
    read = {i for place in places for i in place}
    assert text["text"] == said and len(places) > 3
    assert {i for i in range(max(read)) if not said[i].isspace()} <= read  # all but the last piece, which is not read
    assert [place.start for place in places] == sorted(place.start for place in places)
    kinds = {(site["query"], site["key"]): site["heads"] for site in report["sites"]}
    assert kinds == {("sound", "sound"): 4, ("text", "text"): 4, ("text", "sound"): 4}
    assert len(report["sites"]) == 2 + 2 * 4
    for site in report["sites"]:
        rows = {len(head) for head in site["top_keys"]}
        assert rows == {len(report["sequences"][site["query"]]["elements"])}


@torch.no_grad()
def test_weights_are_those_of_transformers(pair: tuple[Any, TranscriptionPipeline], sound: Path):
    theirs, ours = pair
    theirs.set_attn_implementation("eager")
    heard = ours.reader.read(speech_like(0.7), "de")
    relations = relate(ours, heard)
    read = torch.tensor([[*heard.prompt, *heard.answer.ids[:-1]]])
    expected = theirs(heard.sources.read, decoder_input_ids=read, output_attentions=True)
    for layer in range(4):
        for name, theirs_at in (("attention", "decoder_attentions"), ("cross_attention", "cross_attentions")):
            weights = relations.weights(f"decoder.blocks.{layer}.{name}")
            torch.testing.assert_close(weights, expected[theirs_at][layer][0], atol=2e-5, rtol=0)
    for layer in range(2):
        weights = relations.weights(f"encoder.blocks.{layer}.attention")
        torch.testing.assert_close(weights, expected.encoder_attentions[layer][0], atol=2e-5, rtol=0)


def test_of_a_long_recording_the_first_window_is_seen(pair: tuple[Any, TranscriptionPipeline], tmp_path: Path):
    _, ours = pair
    samples = speech_like(2.5)
    report = see_media(ours.checkpoint.directory, write_sound(tmp_path / "long.wav", samples))
    first = see_media(ours.checkpoint.directory, write_sound(tmp_path / "first.wav", samples[:16_000]))
    about, other = (one["sequences"]["sound"].pop("about") for one in (report, first))
    assert (about, other) == (f"the first {other}", "1.00 s of sound, heard in 50 positions of 20 ms")
    assert report | {"input": ""} == first | {"input": ""}


def test_what_cannot_be_seen(pair: tuple[Any, TranscriptionPipeline], tmp_path: Path):
    place = pair[1].checkpoint.directory
    with pytest.raises(InputError, match="silent"):
        see_media(place, write_sound(tmp_path / "silent.wav", torch.zeros(16_000)))
    with pytest.raises(InputError, match="has 100 samples at 16000 a second: 160 are needed"):
        see_media(place, write_sound(tmp_path / "short.wav", speech_like(1.0)[:100]))


def test_the_command(pair: tuple[Any, TranscriptionPipeline], sound: Path, tmp_path: Path, run: Run):
    place = pair[1].checkpoint.directory
    page = tmp_path / "page.html"
    done = run("see", sound, "--model", place, "-o", page)
    assert done.returncode == 0, done.stderr
    expected = see_media(place, sound)
    printed = " ".join(done.stdout.decode().split())
    assert "50 positions of 20 ms" in printed and "cross" in printed
    written = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in written and "encoder.blocks.0.attention" in written
    found = json.loads(run("see", sound, "--model", place, "--json").stdout)
    assert (found["answer"], found["sequences"]) == (expected["answer"], expected["sequences"])
    text = run("see", "Two dogs.", "--model", place)
    assert text.returncode == 2 and b"which reads audio: it must be a model of text" in text.stderr
