"""Transcription: sound of any length in, what is said in it out, with the time of each stretch and each word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from regard.attention import Watch
from regard.generation import generate_ids
from regard.generation.decoding import Sources
from regard.generation.timestamps import TimeStamps
from regard.inputs.audio import audio_blocks
from regard.inputs.features import WhisperSettings, whisper_features
from regard.inputs.source import InputError, Source, name_of
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError
from regard.pipelines.generation import changed, recommended
from regard.pipelines.speech import Speech, read_speech
from regard.pipelines.word_times import piece_times
from regard.relations import observe

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
        settings: of generation, see `GenerationSettings`; what the checkpoint recommends unless given.

    Raises:
        ModelError: if the model does not transcribe, or a file of it says what may not be.
        RequestError: if it does not know the language, or knows one alone and is asked for another.
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
        self._sound = _Sound(audio_blocks(source, pipeline.features.rate))
        self.language = pipeline.speech.language(pipeline.language)
        self.done = 0.0  # seconds

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
        model, rate = pipeline.model, pipeline.features.rate
        read = whisper_features(samples, pipeline.features)[None].to(pipeline.device)  # (1, M, T)
        lengths = torch.tensor([model.config.source_positions], device=pipeline.device)
        memory = model.encode(read, lengths)  # (1, Ls, d)
        if self.language is None and speech.languages:
            self.language = self._heard_language(memory, lengths)
        prompt = speech.prompt(self.language, pipeline.english)
        sources = Sources(read, lengths, memory)
        (answer,) = generate_ids(
            model, [prompt], pipeline.settings, sources=sources, vocabulary=pipeline.tokenizer.vocab_size
        )
        if answer.finish == "interrupted":
            raise KeyboardInterrupt
        ids = answer.ids[:-1] if answer.finish == "stop" else answer.ids
        cuts, stamps = stretches(ids, speech.first_stamp)
        step = 2 * pipeline.features.hop / rate  # seconds from one stamp to the next
        stop = start + len(samples) / rate
        times: list[float] | None = None
        if pipeline.words:
            times = [min(start + step * t, stop) for t in self._times(memory, lengths, prompt, ids, samples)]
        segments: list[Segment] = []
        spoken = 0  # pieces before this segment
        for cut in cuts:
            pieces = tuple(i for i in ids[cut.first : cut.stop] if i < speech.first_stamp)
            ends = stop if cut.until is None else min(start + step * cut.until, stop)
            logs = answer.log_probabilities[cut.first : cut.stop] if len(answer.log_probabilities) > 1 else None
            mean = sum(logs) / len(logs) if logs else sum(answer.log_probabilities) / len(answer.ids)
            words = None if times is None else self._words(pieces, times[spoken : spoken + len(pieces) + 1])
            spoken += len(pieces)
            text = pipeline.tokenizer.decode(pieces).strip()
            if text:
                segments.append(Segment(text, min(start + step * cut.since, stop), ends, pieces, mean, words))
        return segments, stamps or None

    def _heard_language(self, memory: Tensor, lengths: Tensor) -> str:
        model, languages = self._pipeline.model, self._pipeline.speech.languages
        start = torch.tensor([[model.decoder_start]], device=memory.device)
        scores = model.logits(model.decode(start, memory, lengths))[0, -1]
        return max(languages, key=lambda code: float(scores[languages[code]]))

    def _times(
        self, memory: Tensor, lengths: Tensor, prompt: Sequence[int], ids: Sequence[int], samples: Tensor
    ) -> list[int]:
        """The position of the sound at which each piece begins that is no stamp, and at which the last one ends.

        Read from one pass over the pieces without stamps, as these would draw attention to themselves.
        """
        pipeline, speech = self._pipeline, self._pipeline.speech
        spoken = [i for i in ids if i < speech.first_stamp]
        if not spoken:
            return [0]
        model = pipeline.model
        read = [*prompt, speech.no_stamps, *spoken][: model.config.max_positions]
        layers = sorted({layer for layer, _ in speech.heads})
        watch = Watch(top=1, received=False, entropy=False, position=False)
        with observe(model, watch=watch, layers=layers, this_thread=True) as relations:
            model.decode(torch.tensor([read], device=memory.device), memory, lengths)
        sites = [site for site in relations.sites if site.kind == "cross"]
        columns = max(1, len(samples) // pipeline.features.hop // 2)
        rows = range(len(prompt), len(read))
        weights = [
            relations.observation(site.path).weights(rows, [head for at, head in speech.heads if at == site.layer])[0]
            for site in sites
        ]
        times = piece_times(torch.cat(weights)[..., :columns])
        return times + [columns] * (len(spoken) + 1 - len(times))

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


class _Sound:
    """A recording that is read as far as it is needed, and forgotten behind that."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks = blocks
        self._held: list[Tensor] = []
        self._first = 0  # sample at which they begin
        self.length = 0  # samples read so far

    def window(self, first: int, size: int) -> Tensor:
        """At most so many samples from this one on, which is none before the last window's first."""
        while self.length < first + size and (block := next(self._blocks, None)) is not None:
            self._held.append(block)
            self.length += len(block)
        held = torch.cat(self._held)[first - self._first :] if self._held else torch.empty(0)
        self._held, self._first = [held], first
        return held[:size]


@dataclass(frozen=True)
class Stretch:
    """Pieces between two stamps."""

    first: int  # of the window's pieces, the stamps among them
    stop: int
    since: int  # the stamp at which it begins
    until: int | None  # and ends; None is the end of the window


def stretches(ids: Sequence[int], first_stamp: int) -> tuple[list[Stretch], int | None]:
    """The stretches of a window's pieces, and the stamp up to which they were heard to the end.

    Two stamps in a row are the end of one stretch and the beginning of the next. What follows the last pair is cut
    off by the end of the window, unless a single stamp at the end says that nothing follows.

    Args:
        ids: pieces, without the end piece.
        first_stamp: the piece for 0 seconds.

    Returns:
        The stretches in order, and None where the whole window was heard.
    """
    stamps = [i - first_stamp if i >= first_stamp else None for i in ids]
    cuts = [i + 1 for i in range(len(ids) - 1) if stamps[i] is not None and stamps[i + 1] is not None]
    if not cuts:
        known = [stamp for stamp in stamps if stamp]
        return [Stretch(0, len(ids), 0, known[-1] if known else None)], None
    whole = stamps[-1] is not None and stamps[-2] is None
    if whole:
        cuts.append(len(ids))
    found: list[Stretch] = []
    before = 0
    for cut in cuts:
        found.append(Stretch(before, cut, stamps[before] or 0, stamps[cut - 1]))
        before = cut
    return found, None if whole else stamps[before - 1]
