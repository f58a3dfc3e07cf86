"""One window of a recording: its sound in, the pieces of what is said in it out, and when each of them is said."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regard.attention import Watch
from regard.generation import Continuation, GenerationSettings, generate_ids
from regard.generation.decoding import Sources
from regard.inputs.features import whisper_features
from regard.inputs.tokenizer import Tokenizer
from regard.pipelines.speech import Speech
from regard.pipelines.word_times import piece_times
from regard.relations import observe


@dataclass(frozen=True)
class Fallback:
    """When a window's text is written again, drawn at a higher temperature (arXiv 2212.04356, section 4.5).

    Args:
        temperatures: to be tried in this order, until a text is neither too repetitive nor too unlikely; the last one's
            is taken as it is.
        compression: a text is too repetitive whose bytes are more than so many times as many as those that zlib makes
            of them; None: never.
        log_probability: a text is too unlikely whose pieces, stamps and end among them, have a lower mean
            log-probability, the model's before any filter; None: never.
        no_speech: nobody speaks in a window where the piece that says so has a higher probability as the first one, and
            the text is too unlikely (or that is not judged); None: somebody always does.

    Raises:
        ValueError: if a temperature is not above 0.
    """

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    compression: float | None = 2.4
    log_probability: float | None = -1.0
    no_speech: float | None = 0.6

    def __post_init__(self) -> None:
        if not all(temperature > 0 for temperature in self.temperatures):
            raise ValueError(f"temperatures is {self.temperatures}: all must be above 0")

    def silent(self, log_probability: float, no_speech: float | None) -> bool:
        """Whether nobody speaks, given a text's mean log-probability and the probability of silence."""
        if self.no_speech is None or no_speech is None or no_speech <= self.no_speech:
            return False
        return self.log_probability is None or log_probability <= self.log_probability

    def fails(self, text: str, log_probability: float) -> bool:
        """Whether a text is too repetitive or too unlikely."""
        repetitive = self.compression is not None and compression_ratio(text) > self.compression
        return repetitive or (self.log_probability is not None and log_probability < self.log_probability)


def compression_ratio(text: str) -> float:
    """How many times as many bytes a text has as zlib makes of it; 0 for an empty one."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


@dataclass(frozen=True)
class Heard:
    """What was heard in a window."""

    samples: Tensor = field(repr=False)  # (N,)
    sources: Sources = field(repr=False)  # the spectrogram (1, M, T), and what the encoder makes of it (1, Ls, d)
    language: str | None  # None: the model knows only one
    prompt: tuple[int, ...]  # what the decoder read first, without previous text
    answer: Continuation
    temperature: float  # at which it was drawn; 0 is not drawn
    silent: bool  # nobody seems to speak: the answer means nothing

    @property
    def pieces(self) -> tuple[int, ...]:
        """Without the end."""
        return self.answer.ids[:-1] if self.answer.finish == "stop" else self.answer.ids

    def log_probability(self, first: int = 0, stop: int | None = None) -> float:
        """The mean of these pieces, by default of all with the end; with beams always that."""
        logs = self.answer.log_probabilities
        some = logs[first:stop] if len(logs) == len(self.answer.ids) else ()
        return sum(some) / len(some) if some else sum(logs) / len(self.answer.ids)


class WindowReader:
    """Writes down what is said in a window.

    Args:
        model: of speech, such as `regard.models.whisper.Whisper`, on its device.
        tokenizer: the model's.
        speech: what the checkpoint says of itself.
        settings: of generation, for the first attempt.
        english: translate into English.
        fallback: when there is another attempt; None: never.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        speech: Speech,
        settings: GenerationSettings,
        english: bool,
        fallback: Fallback | None,
    ) -> None:
        self.model, self.tokenizer, self.speech = model, tokenizer, speech
        self.english, self.fallback = english, fallback
        self._attempts = [settings]
        for temperature in fallback.temperatures if fallback else ():
            self._attempts.append(replace(settings, temperature=temperature, beams=1))

    @torch.inference_mode()
    def read(self, samples: Tensor, language: str | None, before: Sequence[int] = ()) -> Heard:
        """What is said in a window.

        Args:
            samples: (N,), at most a window.
            language: a code; None: the one that is heard, unless the model knows one alone.
            before: pieces of what was said before, of which the model reads the last ones, as many as half of its
                positions have room for.

        Raises:
            KeyboardInterrupt: at Ctrl-C.
        """
        model, speech = self.model, self.speech
        read = whisper_features(samples, speech.features)[None].to(model.embedding.weight.device)  # (1, M, T)
        lengths = torch.tensor([model.config.source_positions], device=read.device)
        memory = model.encode(read, lengths)  # (1, Ls, d)
        if language is None and speech.languages:
            scores = self._first_scores(memory, lengths, ())
            language = max(speech.languages, key=lambda code: float(scores[speech.languages[code]]))
        past: list[int] = []
        if before and speech.previous is not None:
            past = [speech.previous, *before[-(model.config.max_positions // 2 - 1) :]]
        no_speech = None
        if self.fallback is not None and speech.no_speech is not None:
            no_speech = float(self._first_scores(memory, lengths, past).softmax(0)[speech.no_speech])
        prompt = speech.prompt(language, self.english)
        sources = Sources(read, lengths, memory)
        for settings in self._attempts:
            (answer,) = generate_ids(
                model, [[*past, *prompt]], settings, sources=sources, vocabulary=self.tokenizer.vocab_size
            )
            if answer.finish == "interrupted":
                raise KeyboardInterrupt
            heard = Heard(samples, sources, language, tuple(prompt), answer, settings.temperature, silent=False)
            if self.fallback is None:
                return heard
            mean = heard.log_probability()
            if self.fallback.silent(mean, no_speech):
                return replace(heard, silent=True)
            text = self.tokenizer.decode(speech.spoken_of(heard.pieces)).strip()
            if not self.fallback.fails(text, mean):
                return heard
        return heard  # pyright: ignore[reportPossiblyUnboundVariable] # there is a first attempt

    def _first_scores(self, memory: Tensor, lengths: Tensor, past: Sequence[int]) -> Tensor:
        """The scores (V,) of what follows the first input of the decoder, which says the language, or that there is
        no speech."""
        read = torch.tensor([[*past, self.model.decoder_start]], device=memory.device)
        return self.model.logits(self.model.decode(read, memory, lengths))[0, -1]

    @torch.inference_mode()
    def piece_times(self, heard: Heard) -> list[int]:
        """The position of the sound at which each piece begins that is no stamp, and at which the last one ends.

        Read from one pass over the pieces without stamps, as these would draw attention to themselves.
        """
        speech, model = self.speech, self.model
        spoken = speech.spoken_of(heard.pieces)
        if not spoken:
            return [0]
        read = [*heard.prompt, speech.no_stamps, *spoken][: model.config.max_positions]
        layers = sorted({layer for layer, _ in speech.heads})
        watch = Watch(top=1, received=False, entropy=False, position=False)
        memory = heard.sources.memory
        assert memory is not None
        with observe(model, watch=watch, layers=layers, this_thread=True) as relations:
            model.decode(torch.tensor([read], device=memory.device), memory, heard.sources.lengths)
        sites = [site for site in relations.sites if site.kind == "cross"]
        columns = max(1, len(heard.samples) // speech.features.hop // 2)
        rows = range(len(heard.prompt), len(read))
        weights = [
            relations.observation(site.path).weights(rows, [head for at, head in speech.heads if at == site.layer])[0]
            for site in sites
        ]
        times = piece_times(torch.cat(weights)[..., :columns])
        return times + [columns] * (len(spoken) + 1 - len(times))
