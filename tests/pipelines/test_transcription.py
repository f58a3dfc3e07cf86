"""Transcripts: the pieces and segments of transformers window by window, languages, words, long and broken sound."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from regard.inputs import InputError
from regard.models import ModelError
from regard.pipelines import RequestError, TranscriptionPipeline, pipeline
from regard.pipelines.windows import stretches
from tests.models.small_whisper import small_whisper, speech_like, write_sound

SECONDS = 4.3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TranscriptionPipeline]:
    theirs, place = small_whisper(tmp_path_factory.mktemp("transcription"))
    return theirs, pipeline(place, "transcribe", words=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "talk.wav", speech_like(SECONDS))


def their_cuts(ids: list[int], first: int, frames: int) -> tuple[list[dict[str, Any]], int]:
    """transformers' segments of a window's pieces, and how many frames it goes on."""
    precision = 0.02
    return WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.tensor(ids),
        seek_outputs=[None],
        time_offset=torch.zeros(1, dtype=torch.float64),
        timestamp_begin=first,
        seek_num_frames=torch.tensor([frames]),
        time_precision=precision,
        time_precision_features=0.01,
        input_stride=2,
        prev_idx=0,
        idx=0,
        return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 3),
    )


@given(st.lists(st.integers(0, 5) | st.integers(100, 109), min_size=1, max_size=12))
def test_stretches(ids: list[int]):
    """Between stamps that begin with one, as they do."""
    ids = [100, *ids]
    theirs, frames = their_cuts(ids, 100, 200)
    cuts, stamp = stretches(ids, 100)
    assert (200 if stamp is None else 2 * stamp) == int(frames)
    assert len(cuts) == len(theirs)
    for cut, expected in zip(cuts, theirs, strict=True):
        spoken = [i for i in ids[cut.first : cut.stop] if i < 100]
        assert spoken == [i for i in expected["tokens"].tolist() if i < 100]
        if ids[cut.first] >= 100 and len(cuts) > 1:
            assert 0.02 * cut.since == pytest.approx(float(expected["start"]))
        until = 100 if cut.until is None else cut.until
        if len(cuts) > 1:
            assert 0.02 * until == pytest.approx(float(expected["end"]))


@torch.no_grad()
def test_segments_are_those_of_transformers(pair: tuple[Any, TranscriptionPipeline], sound: Path):
    """Window after window: features, language, pieces and cuts by transformers, moved on as it moves on."""
    theirs, ours = pair
    extract = WhisperFeatureExtractor.from_pretrained(ours.checkpoint.directory)
    transcript = ours(sound)
    samples = torch.from_numpy(_samples(sound))
    first_stamp = theirs.generation_config.no_timestamps_token_id + 1
    expected: list[tuple[float, float, list[int]]] = []
    frame, language = 0, None
    while (frames := min(100, len(samples) // 160 - frame)) > 0:
        window = samples[160 * frame : 160 * frame + 16_000].numpy()
        features = extract(window, sampling_rate=16_000, return_tensors="pt").input_features
        if language is None:
            index = int(theirs.detect_language(features)[0])
            language = next(n for n, i in theirs.generation_config.lang_to_id.items() if i == index)
        row = theirs.generate(
            features,
            language=language,
            task="transcribe",
            return_timestamps=True,
            force_unique_generate_call=True,
            eos_token_id=ours.settings.stop_ids[0],
        )[0].tolist()[3:]
        ids = row[: row.index(ours.settings.stop_ids[0])] if ours.settings.stop_ids[0] in row else row
        segments, advance = their_cuts(ids, first_stamp, frames)
        for one in segments:
            spoken = [i for i in one["tokens"].tolist() if i < first_stamp]
            stop = min(frame / 100 + float(one["end"]), frame / 100 + len(window) / 16_000)
            if ours.tokenizer.decode(spoken).strip():
                expected.append((frame / 100 + float(one["start"]), stop, spoken))
        frame += int(advance)
    found = [(s.start, s.stop, list(s.ids)) for s in transcript.segments]
    assert [ids for *_, ids in found] == [ids for *_, ids in expected]
    torch.testing.assert_close(
        torch.tensor([times[:2] for times in found]), torch.tensor([times[:2] for times in expected])
    )
    assert len(found) > 5 and transcript.language == str(language).strip("<|>")
    assert transcript.duration == pytest.approx(SECONDS)


def _samples(path: Path) -> Any:
    import wave

    import numpy

    with wave.open(str(path), "rb") as file:
        data = numpy.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return data.astype(numpy.float32) / 32768


def test_words_are_those_of_their_segments_in_order(pair: tuple[Any, TranscriptionPipeline], sound: Path):
    _, ours = pair
    english = pipeline(ours.checkpoint.directory, "transcribe", language="en", words=True)
    for transcript in (ours(sound), english(sound)):
        times: list[float] = []
        for segment in transcript.segments:
            assert segment.words is not None
            joined = "".join(word.text for word in segment.words)
            assert joined == "".join(segment.text.split()) or transcript.language == "ja"
            times += [time for word in segment.words for time in (word.start, word.stop)]
            assert all(0 <= time <= SECONDS for time in times)
        assert times and all(a <= b for a, b in zip(times[::2], times[1::2], strict=True))


def test_streamed_is_whole_and_progress_goes_on(pair: tuple[Any, TranscriptionPipeline], sound: Path):
    _, ours = pair
    done: list[float] = []
    whole = ours(sound, progress=done.append)
    assert tuple(ours.stream(sound)) == whole.segments
    assert done == sorted(done) and done[-1] == pytest.approx(SECONDS)
    assert ours([sound])[0] == whole
    data = whole.to_dict()
    assert json.loads(json.dumps(data))["segments"][0]["words"][0].keys() == {"text", "start", "stop"}
    assert data["text"] == " ".join(segment.text for segment in whole.segments)


def test_a_long_recording_is_not_held(pair: tuple[Any, TranscriptionPipeline], monkeypatch: pytest.MonkeyPatch):
    """A block is read when it is needed, and silence is passed over."""
    from regard.pipelines import transcription

    blocks, ahead = 0, 0

    def endless(*_: Any) -> Any:
        nonlocal blocks
        for second in range(60):
            blocks = second + 1
            yield speech_like(1.0) if second in (3, 40) else torch.zeros(16_000)

    monkeypatch.setattr(transcription, "audio_blocks", endless)

    def told(seconds: float) -> None:
        nonlocal ahead
        ahead = max(ahead, blocks - int(seconds))

    _, ours = pair
    transcript = ours(b"", progress=told)
    assert ahead <= 2 and transcript.duration == 60
    starts = [segment.start for segment in transcript.segments]  # of windows with anything in them
    assert all(2 <= start <= 4 or 39 <= start <= 41 for start in starts)
    assert min(starts) < 4 and max(starts) > 39


def test_languages_and_tasks(pair: tuple[Any, TranscriptionPipeline], tmp_path: Path, sound: Path):
    _, ours = pair
    place = ours.checkpoint.directory
    ids = {name: ours.tokenizer.id_of(f"<|{name}|>") for name in ("startoftranscript", "de", "translate", "transcribe")}
    assert ours.speech.prompt("de", False) == [ids["startoftranscript"], ids["de"], ids["transcribe"]]
    assert ours.speech.prompt("de", True) == [ids["startoftranscript"], ids["de"], ids["translate"]]
    with pytest.raises(RequestError, match="language is 'fr': it may be de, en, ja"):
        pipeline(place, "transcribe", language="fr")
    older = small_whisper(tmp_path / "a", forced_decoder_ids=[[1, ids["de"]], [2, ids["transcribe"]]])[1]
    assert pipeline(older)(sound).language == "de"
    named = small_whisper(tmp_path / "c", language="German")[1]
    with pytest.raises(RequestError, match="asks for the language 'German'; give one of its codes: de, en, ja"):
        pipeline(named)
    assert pipeline(named, language="de")(sound).language == "de"
    alone = small_whisper(tmp_path / "b", lang_to_id=None, task_to_id=None, alignment_heads=None)[1]
    english = pipeline(alone)
    assert english.speech.prompt(None, False) == [ids["startoftranscript"]]
    assert english(sound).language is None
    assert english.speech.heads == tuple((layer, head) for layer in (2, 3) for head in range(4))
    with pytest.raises(RequestError, match="this model knows one alone, and it must be left out"):
        pipeline(alone, language="en")
    with pytest.raises(RequestError, match="english is True"):
        pipeline(alone, english=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_timestamps_token_id": 10**6}, "no_timestamps_token_id is 1000000"),
        ({"lang_to_id": {"<|en|>": "x"}}, "lang_to_id is"),
        ({"alignment_heads": [[4, 0]]}, "alignment_heads is"),
        ({"max_initial_timestamp_index": -1}, "max_initial_timestamp_index is -1"),
        ({"eos_token_id": [1, 2]}, "eos_token_id is"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str):
    place = small_whisper(tmp_path)[1]
    values = json.loads((place / "generation_config.json").read_text())
    (place / "generation_config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ModelError, match=message):
        pipeline(place)


def test_spectrograms_of_another_size(tmp_path: Path):
    place = small_whisper(tmp_path)[1]
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128, "chunk_length": 1}
    (place / "preprocessor_config.json").write_text(json.dumps(features))
    with pytest.raises(ModelError, match="128 bins and 100 frames: the model reads 80 and 100"):
        pipeline(place)


def test_sound_that_says_nothing(pair: tuple[Any, TranscriptionPipeline], tmp_path: Path):
    _, ours = pair
    with pytest.raises(InputError, match="silent"):
        ours(write_sound(tmp_path / "silent.wav", torch.zeros(40_000)))
    with pytest.raises(InputError, match="no such file"):
        ours(tmp_path / "none.wav")
    short = ours(write_sound(tmp_path / "short.wav", speech_like(0.005)))
    assert short.duration == pytest.approx(0.005) and all(s.stop <= 0.005 for s in short.segments)


def test_the_command(pair: tuple[Any, TranscriptionPipeline], sound: Path, tmp_path: Path):
    _, ours = pair
    command = [sys.executable, "-m", "regard", "transcribe", "-m", str(ours.checkpoint.directory)]

    def run(*more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*command, *more], capture_output=True, timeout=200)

    expected = ours(sound)
    result = run(str(sound), "--json", "--words")
    assert json.loads(result.stdout) == expected.to_dict() and b"00:04.30 done" in result.stderr
    plain = run(str(sound), "-o", str(tmp_path / "out.txt"))
    assert plain.returncode == 0
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n[")
    assert len(lines) == len(expected.segments) and lines[1].endswith(f"]  {expected.segments[1].text}")
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    for wrong in ([str(tmp_path / "broken.wav")], [str(tmp_path / "none.wav")], [str(sound), "--language", "xx"]):
        result = run(*wrong)
        assert result.returncode == 2 and result.stderr.startswith(b"regard: ") and result.stderr.count(b"\n") == 1
