"""One window of speech: when its text is written again or passed over, and what the next window reads of it."""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.generation import Continuation, GenerationSettings
from regard.pipelines import RequestError, TranscriptionPipeline, hearing, pipeline
from regard.pipelines.hearing import Fallback, compression_ratio
from tests.command_line import Run
from tests.models.small_whisper import small_whisper, speech_like, write_sound


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_whisper(tmp_path_factory.mktemp("hearing"))[1]


@given(st.text(max_size=40), st.integers(1, 60))
def test_repetition_is_what_can_be_compressed(text: str, times: int):
    data = (text * times).encode()
    assert compression_ratio(text * times) == (len(data) / len(zlib.compress(data)) if data else 0)
    assert compression_ratio("ha " * 200) > 2.4 > compression_ratio("Two dogs are playing in the snow.")


@pytest.mark.parametrize(
    ("fallback", "text", "log_probability", "no_speech", "fails", "silent"),
    [
        (Fallback(), "Two dogs.", -0.5, 0.1, False, False),
        (Fallback(), "ha " * 200, -0.5, 0.1, True, False),
        (Fallback(), "Two dogs.", -1.2, 0.1, True, False),
        (Fallback(), "Two dogs.", -1.2, 0.7, True, True),  # silence is found first
        (Fallback(), "Two dogs.", -0.5, 0.7, False, False),  # so sure of the text that there is speech
        (Fallback(), "Two dogs.", -1.2, None, True, False),  # the model has no piece for silence
        (Fallback(log_probability=None), "Two dogs.", -9.0, 0.7, False, True),
        (Fallback(no_speech=None, compression=None), "ha " * 200, -0.5, 1.0, False, False),
    ],
)
def test_when_a_text_is_doubted(
    fallback: Fallback, text: str, log_probability: float, no_speech: float | None, fails: bool, silent: bool
):
    assert fallback.fails(text, log_probability) is fails
    assert fallback.silent(log_probability, no_speech) is silent


def test_temperatures_must_draw():
    with pytest.raises(ValueError, match="all must be above 0"):
        Fallback(temperatures=(0.0, 0.5))


class Forced:
    """In place of generate_ids: says a text with a certain probability at each temperature."""

    def __init__(self, ours: TranscriptionPipeline, said: dict[float, tuple[str, float]]) -> None:
        self.ours, self.said = ours, said
        self.calls: list[tuple[float, int, list[int]]] = []

    def __call__(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: GenerationSettings, **more: Any
    ) -> list[Continuation]:
        self.calls.append((settings.temperature, settings.beams, list(prompts[0])))
        text, log = self.said[settings.temperature]
        speech = self.ours.speech
        spoken = self.ours.tokenizer.encode(text, specials=False).ids
        ids = (speech.first_stamp, *spoken, speech.first_stamp + 50, settings.stop_ids[0])
        return [Continuation(ids, (log,) * len(ids), "", "stop")]


GOOD, BAD = "Two dogs are open", "na " * 300


@pytest.mark.parametrize(
    ("said", "temperatures"),
    [
        ({0.0: (GOOD, -0.3)}, [0.0]),
        ({0.0: (BAD, -0.3), 0.2: (GOOD, -0.3)}, [0.0, 0.2]),
        ({0.0: (GOOD, -1.5), 0.2: (BAD, -0.1), 0.4: (GOOD, -0.9)}, [0.0, 0.2, 0.4]),
        ({t: (GOOD, -3.0 - t) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_temperatures_rise_until_a_text_is_good(
    place: Path, monkeypatch: pytest.MonkeyPatch, said: dict[float, tuple[str, float]], temperatures: list[float]
):
    ours = pipeline(place, "transcribe", fallback=Fallback(no_speech=None), beams=3, language="en")
    forced = Forced(ours, said)
    monkeypatch.setattr(hearing, "generate_ids", forced)
    heard = ours.reader.read(speech_like(1.0), "en")
    assert [(t, beams) for t, beams, _ in forced.calls] == [(t, 3 if t == 0 else 1) for t in temperatures]
    assert heard.temperature == temperatures[-1] and not heard.silent
    assert heard.log_probability() == pytest.approx(said[temperatures[-1]][1])
    plain = pipeline(place, "transcribe", language="en")
    forced = Forced(plain, {0.0: (BAD, -5.0)})
    monkeypatch.setattr(hearing, "generate_ids", forced)
    assert plain.reader.read(speech_like(1.0), "en").temperature == 0 and len(forced.calls) == 1


def favour(ours: TranscriptionPipeline, monkeypatch: pytest.MonkeyPatch, probability: float) -> None:
    """Force the logits of the piece for silence at the decoder's first input."""
    logits, silence = ours.model.logits, ours.speech.no_speech
    assert silence is not None

    def forced(hidden: torch.Tensor) -> torch.Tensor:
        scores = logits(hidden).clone()
        rest = scores.index_fill(-1, torch.tensor([silence]), -torch.inf).logsumexp(-1)
        scores[..., silence] = rest + math.log(probability / (1 - probability))
        return scores

    monkeypatch.setattr(ours.model, "logits", forced)


@pytest.mark.parametrize(("probability", "log", "silent"), [(0.9, -1.2, True), (0.9, -0.4, False), (0.3, -1.2, False)])
def test_silence_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch, probability: float, log: float, silent: bool, tmp_path: Path
):
    ours = pipeline(place, "transcribe", fallback=True, language="en")
    favour(ours, monkeypatch, probability)
    monkeypatch.setattr(
        hearing, "generate_ids", Forced(ours, dict.fromkeys((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (GOOD, log)))
    )
    assert ours.reader.read(speech_like(1.0), "en").silent is silent
    segments = ours(write_sound(tmp_path / "a.wav", speech_like(2.0))).segments
    assert [segment.text for segment in segments] == ([] if silent else [GOOD] * 2)


def test_no_speech_is_the_probability_after_the_first_input(place: Path, monkeypatch: pytest.MonkeyPatch):
    ours = pipeline(place, "transcribe", fallback=True, language="en")
    found: list[float | None] = []
    monkeypatch.setattr(Fallback, "silent", lambda self, log, no_speech: found.append(no_speech) or True)
    heard = ours.reader.read(speech_like(1.0), "en")
    memory = heard.sources.memory
    assert memory is not None and ours.speech.no_speech == ours.tokenizer.id_of("<|nospeech|>")
    with torch.inference_mode():
        start = torch.tensor([[ours.speech.start]])
        scores = ours.model.logits(ours.model.decode(start, memory, heard.sources.lengths))[0, 0]
    assert found == [pytest.approx(float(scores.softmax(0)[ours.speech.no_speech]))]


def test_drawn_texts_follow_the_seed(place: Path):
    """On a random model every text is unlikely: all temperatures are tried, and the last one's text is taken."""
    never_silent = Fallback(no_speech=None, temperatures=(0.5, 1.0))
    samples = speech_like(1.0)
    heard = [
        pipeline(place, "transcribe", fallback=never_silent, seed=seed).reader.read(samples, "en") for seed in (1, 1, 2)
    ]
    assert heard[0].answer == heard[1].answer and heard[0].pieces != heard[2].pieces
    assert [one.temperature for one in heard] == [1.0] * 3
    assert heard[0].pieces != pipeline(place, "transcribe").reader.read(samples, "en").pieces


@pytest.mark.parametrize(("log", "read_again"), [(-0.3, True), (-1.5, False)])
def test_previous_text_is_read_unless_it_was_drawn(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: float, read_again: bool
):
    fallback = Fallback(no_speech=None, temperatures=(0.6,))
    ours = pipeline(place, "transcribe", language="en", previous_text=True, fallback=fallback)
    forced = Forced(ours, {0.0: (GOOD, log), 0.6: (GOOD, log)})
    monkeypatch.setattr(hearing, "generate_ids", forced)
    ours(write_sound(tmp_path / "a.wav", speech_like(3.0)))
    prompts = [prompt for temperature, _, prompt in forced.calls if temperature == 0]
    own = ours.speech.prompt("en", False)
    spoken = ours.tokenizer.encode(GOOD, specials=False).ids
    written = [ours.speech.first_stamp, *spoken, ours.speech.first_stamp + 50]
    room = ours.model.config.max_positions // 2 - 1
    past = [[], written, [*written, *written]] if read_again else [[], [], []]
    expected = [[*([ours.speech.previous, *one[-room:]] if one else []), *own] for one in past]
    assert prompts == expected


def test_previous_text_changes_what_the_model_writes(place: Path):
    ours = pipeline(place, "transcribe", language="en", previous_text=True)
    before = [*ours.tokenizer.encode(GOOD, specials=False).ids]
    samples = speech_like(1.0)
    plain, led = ours.reader.read(samples, "en"), ours.reader.read(samples, "en", before)
    assert plain.prompt == led.prompt and plain.answer.ids != led.answer.ids
    assert ours.reader.read(samples, "en", before).answer == led.answer


def test_a_model_without_the_piece_reads_no_previous_text(place: Path, tmp_path: Path):
    content = json.loads((place / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        if token["content"] in ("<|startofprev|>", "<|nospeech|>"):
            token["content"] = token["content"].replace("<|", "<|not").replace("nospeech", "captions")
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert pipeline(tmp_path, "transcribe", fallback=True).speech.no_speech is None
    with pytest.raises(RequestError, match=r"this model has no piece <\|startofprev\|>, and it must be False"):
        pipeline(tmp_path, "transcribe", previous_text=True)


def test_the_command(place: Path, tmp_path: Path, run: Run):
    sound = write_sound(tmp_path / "a.wav", speech_like(0.2))
    done = run("transcribe", "-m", place, sound, "--json", "--fallback", "--previous-text")
    assert done.returncode == 0, done.stderr
    expected = pipeline(place, "transcribe", fallback=True, previous_text=True, seed=0)(sound)
    assert json.loads(done.stdout) == expected.to_dict()
