"""Transcription: sound of any length in, what is said in it out, with the time of each stretch and each word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from regard.generation.timestamps import TimeStamps
from regard.inputs.audio import audio_blocks
from regard.inputs.features import WhisperSettings
from regard.inputs.source import InputError, Source, name_of
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError
from regard.pipelines.generation import changed, recommended
from regard.pipelines.hearing import Fallback, WindowReader
from regard.pipelines.speech import Speech, read_speech
from regard.pipelines.texts import RequestError
from regard.pipelines.windows import Recording, stretches

MOST_DRAWN = 0.5
"""The temperature above which windows do not read the text of those before (arXiv 2212.04356, section 4.5)."""
_UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
"""Languages that leave no space between words: their pieces are given times, one by one."""


@dataclass(frozen=True)
class Word:
    """A word, or a piece of a language without spaces."""

    text: str
    start: float  # seconds from the beginning of the recording
    stop: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech."""

    text: str
    start: float  # seconds from the beginning of the recording
    stop: float
    ids: tuple[int, ...] = field(repr=False)  # without stamps
    log_probability: float = field(repr=False)  # the mean of its pieces, with the stamps; with beams of all of a window
    words: tuple[Word, ...] | None = None  # where they were asked for


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    name: str
    language: str | None  # None: the model knows only one
    duration: float  # seconds
    segments: tuple[Segment, ...] = field(repr=False)

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(segment.text for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Name, language, duration, text and segments as data."""
        segments = [
            {name: [*v] if isinstance(v, tuple) else v for name, v in asdict(segment).items() if v is not None}
            for segment in self.segments
        ]
        about = {"name": self.name, "language": self.language, "duration": self.duration, "text": self.text}
        return about | {"segments": segments}


class TranscriptionPipeline:
    """Writes down what is said, with a checkpoint such as Whisper's; see `pipeline`.

    A recording is read in windows of 30 seconds. The next one begins where the last whole stretch of speech ended,
    which the model says with its time stamps; so memory does not grow with the length of the recording. The loudness
    of each window is measured by itself.

    Args:
        checkpoint: the model.
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        language: a code such as "de"; what generation_config.json says unless given, and what is heard in the first
            window where it says nothing.
        english: translate into English.
        words: the time of each word, too.
        fallback: write a window again where its text looks wrong, and pass over one in which nobody seems to speak, see
            `Fallback`; True is as its defaults are. Not done unless asked for, as in transformers.
        previous_text: let the model read what it wrote in the windows before, unless the last of them was drawn at a
            temperature above 0.5. Not done unless asked for, as in transformers.
        settings: of generation, see `GenerationSettings`; what the checkpoint recommends unless given.

    Raises:
        ModelError: if the model does not transcribe, or a file of it says what may not be.
        RequestError: if it does not know the language, knows one alone and is asked for another, or has no piece
            that comes before previous text.
        SettingsError: if a setting is unknown or not what it may be.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        language: str | None = None,
        english: bool = False,
        words: bool = False,
        fallback: bool | Fallback = False,
        previous_text: bool = False,
        **settings: Any,
    ) -> None:
        if checkpoint.head != "transcribe":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'transcribe'")
        self.device = torch.device("cpu" if device is None else device)
        self.checkpoint, self.tokenizer = checkpoint, tokenizer
        self.model: Any = checkpoint.model.to(self.device)
        vocab_size: int = self.model.config.vocab_size
        tokenizer.check_fits(vocab_size)
        self.speech: Speech = read_speech(checkpoint, tokenizer)
        self.features: WhisperSettings = self.speech.features
        self.language, self.english, self.words = language, english, words
        self.speech.prompt(language, english)  # which says what is wrong with them
        own = recommended(checkpoint, tokenizer.eos, vocab_size)
        if len(own.stop_ids) != 1:
            raise ModelError(f"{checkpoint.directory}: eos_token_id is {own.stop_ids}: it must be one id")
        rule = TimeStamps(self.speech.first_stamp, own.stop_ids[0], self.speech.no_stamps, self.speech.latest)
        self.settings = changed(replace(own, constraints=replace(own.constraints, rule=rule)), settings)
        if previous_text and self.speech.previous is None:
            raise RequestError("previous_text is True: this model has no piece <|startofprev|>, and it must be False")
        self.previous_text = previous_text
        chosen = Fallback() if fallback is True else fallback or None
        self.reader = WindowReader(self.model, tokenizer, self.speech, self.settings, english, chosen)

    @overload
    def __call__(self, source: Source, *, progress: Callable[[float], object] | None = None) -> Transcript: ...
    @overload
    def __call__(
        self, source: list[Source] | tuple[Source, ...], *, progress: Callable[[float], object] | None = None
    ) -> list[Transcript]: ...
    def __call__(
        self, source: Source | list[Source] | tuple[Source, ...], *, progress: Callable[[float], object] | None = None
    ) -> Transcript | list[Transcript]:
        """Transcribe a recording, or several.

        Args:
            source: audio or video files that FFmpeg reads, or their bytes.
            progress: called with the seconds of a recording that are done, after every window.

        Raises:
            InputError: if a recording cannot be read, has no sound, or is silent.
        """
        if isinstance(source, list | tuple):
            return [self._transcribed(one, progress) for one in source]
        return self._transcribed(source, progress)

    def stream(self, source: Source) -> Iterator[Segment]:
        """Transcribe a recording, and give out the segments of each window at once; see `__call__`."""
        for segments in _Reading(self, source).windows():
            yield from segments

    def _transcribed(self, source: Source, progress: Callable[[float], object] | None) -> Transcript:
        reading = _Reading(self, source)
        segments: list[Segment] = []
        for some in reading.windows():
            segments += some
            if progress is not None:
                progress(reading.done)
        return Transcript(name_of(source), reading.language, reading.done, tuple(segments))


class _Reading:
    """A recording being transcribed."""

    def __init__(self, pipeline: TranscriptionPipeline, source: Source) -> None:
        self._pipeline = pipeline
        self._name = name_of(source)
        self._sound = Recording(audio_blocks(source, pipeline.features.rate))
        self.language = pipeline.speech.language(pipeline.language)
        self.done = 0.0  # seconds
        self._before: tuple[int, ...] = ()  # pieces of what was said before

    @torch.inference_mode()
    def windows(self) -> Iterator[list[Segment]]:
        """The segments of each window."""
        features = self._pipeline.features
        position, heard = 0, False  # in samples
        while True:
            samples = self._sound.window(position, features.samples)
            frames = len(samples) // features.hop
            if not frames and (position or not len(samples)):
                break
            advance = len(samples)
            found: list[Segment] = []
            if samples.min() != samples.max():
                heard = True
                found, stamps = self._window(samples, position / features.rate)
                # What is unfinished at the end of a window is heard again, from where it began.
                advance = max(frames, 1) * features.hop if stamps is None else stamps * 2 * features.hop
            position += advance
            self.done = min(position, self._sound.length) / features.rate
            yield found
        if not heard:
            raise InputError(f"{self._name} is silent: there is nothing to transcribe")
        self.done = self._sound.length / features.rate

    def _window(self, samples: Tensor, start: float) -> tuple[list[Segment], int | None]:
        """The segments of a window, and the stamp at which the next one begins; None: after all of this one."""
        pipeline, speech = self._pipeline, self._pipeline.speech
        heard = pipeline.reader.read(samples, self.language, self._before)
        self.language = heard.language
        if heard.silent:
            return [], None
        cuts, stamps = stretches(heard.pieces, speech.first_stamp)
        step = 2 * pipeline.features.hop / pipeline.features.rate  # seconds from one stamp to the next
        stop = start + len(samples) / pipeline.features.rate
        times: list[float] | None = None
        if pipeline.words:
            times = [min(start + step * t, stop) for t in pipeline.reader.piece_times(heard)]
        segments: list[Segment] = []
        spoken = 0  # pieces before this segment
        for cut in cuts:
            pieces = speech.spoken_of(heard.pieces[cut.first : cut.stop])
            ends = stop if cut.until is None else min(start + step * cut.until, stop)
            words = None if times is None else self._words(pieces, times[spoken : spoken + len(pieces) + 1])
            spoken += len(pieces)
            text = pipeline.tokenizer.decode(pieces).strip()
            if text:
                mean = heard.log_probability(cut.first, cut.stop)
                segments.append(Segment(text, min(start + step * cut.since, stop), ends, pieces, mean, words))
        if pipeline.previous_text:
            # What was drawn rather than heard must not lead what follows astray.
            drawn = heard.temperature > MOST_DRAWN
            self._before = () if drawn else (*self._before, *heard.pieces[: cuts[-1].stop])
        return segments, stamps or None

    def _words(self, pieces: Sequence[int], times: Sequence[float]) -> tuple[Word, ...]:
        """The words of a segment, given when each of its pieces begins, and when the last one ends."""
        tokenizer = self._pipeline.tokenizer
        text = tokenizer.decode(pieces)
        spans = [e.span if isinstance(e.span, tuple) else None for e in tokenizer.elements(pieces)]
        if self.language in _UNSPACED:
            runs = sorted({span for span in spans if span is not None and text[span[0] : span[1]].strip()})
        else:
            runs = [match.span() for match in re.finditer(r"\S+", text)]
        words: list[Word] = []
        for first, stop in runs:
            inside = [i for i, span in enumerate(spans) if span is not None and first <= span[0] < stop]
            if inside:
                words.append(Word(text[first:stop], times[inside[0]], times[inside[-1] + 1]))
        return tuple(words)
