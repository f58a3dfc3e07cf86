"""Translation: texts in, their translations and relations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any, cast, overload

import torch

from regard.attention import Watch
from regard.elements import Element
from regard.generation import translate_ids
from regard.generation.batches import BATCH_TOKENS
from regard.inputs import TextTokenizer
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError, SavedModel, Translator
from regard.pipelines.texts import TextTooLong, name_of, text_sequence
from regard.relations import Alignment, Relations, align, observe

_LANGUAGES = {"de": "German", "en": "English", "fr": "French"}
_CHUNK = 256  # lines held at a time by translate_lines
_MOST_BEAMS = 100
_TOP = 32  # weights kept a row: all of them in most sentences


@dataclass(frozen=True)
class Translation:
    """A translation, and where it comes from."""

    source: str  # as it was read
    text: str
    score: float  # log-probability over length penalty, see regard.generation.beam
    source_ids: tuple[int, ...] = field(repr=False)  # with the special pieces that the model reads around a text
    target_ids: tuple[int, ...] = field(repr=False)  # with the end piece, if it came to one
    _pipeline: TranslationPipeline = field(repr=False, compare=False)

    @cached_property
    def source_elements(self) -> list[Element]:
        """The pieces of the source; spans are characters of `source`."""
        return self._pipeline.tokenizer.elements(self.source_ids, self.source)

    @cached_property
    def target_elements(self) -> list[Element]:
        """The pieces of the answer; spans are characters of `text`. Element i is what decoder row i answered."""
        return self._pipeline.target_tokenizer.elements(self.target_ids)

    @cached_property
    def relations(self) -> Relations:
        """Which piece attended to which: computed on first use, by one pass that is shown source and answer."""
        return self._pipeline._relate(self)  # pyright: ignore[reportPrivateUsage]

    @cached_property
    def alignment(self) -> Alignment:
        """Which source word each word of the answer was read from, by the layer that the model's config names."""
        return align(self.relations, **self._pipeline.alignment)

    def report(self) -> dict[str, Any]:
        """Input, answer, alignment and relations as data: what views draw and `regard see --json` prints."""
        data = self.relations.to_dict()
        return data | {"input": self.source, "answer": self.text, "alignment": self.alignment.to_dict()}


class TranslationPipeline:
    """Translates texts with a saved `Translator`; see `pipeline`.

    Args:
        saved: the model and its tokenizer.
        device: where to compute; the CPU by default.
        beams: beam size; what the model's config.json says under "decoding", else 5, unless given.
        alpha: length penalty of the beam search; as beams, else 1.
        batch_tokens: source positions, padding among them, that are computed together at most; many beams may
            permit fewer (`regard.generation.batches.BATCH_PIECES`). One text is always computed, however long.

    Raises:
        ModelError: if the model is no translator.
        ValueError: if batch_tokens is less than 1.
    """

    def __init__(
        self,
        saved: SavedModel,
        *,
        device: str | torch.device | None = None,
        beams: int | None = None,
        alpha: float | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if not isinstance(saved.model, Translator):
            raise ModelError(f"{saved.directory} holds a {type(saved.model).__name__}: it must be a Translator")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}: it must be at least 1")
        self.device = torch.device("cpu" if device is None else device)
        self.model: Any = saved.model.to(self.device)
        self.saved: SavedModel | Checkpoint = saved
        self.tokenizer: TextTokenizer | Tokenizer = saved.tokenizer
        self.target_tokenizer: TextTokenizer | Tokenizer = saved.tokenizer
        decoding = _settings(saved, "decoding", {"beams": 5, "alpha": 1.0})
        self.alignment = _settings(saved, "alignment", {"layer": -1, "shifted": True})
        layers = saved.model.config.decoder_layers
        if not -layers <= self.alignment["layer"] < layers:
            raise ModelError(f"{saved.directory}: alignment has layer {self.alignment['layer']} of {layers}")
        self.beams: int = decoding["beams"] if beams is None else beams
        self.alpha: float = decoding["alpha"] if alpha is None else alpha
        if not 1 <= self.beams <= _MOST_BEAMS:
            raise ModelError(f"beams is {self.beams}: it may be from 1 to {_MOST_BEAMS}")
        if not 0 <= self.alpha <= 10:
            raise ModelError(f"alpha is {self.alpha}: it may be from 0 to 10")
        self.batch_tokens = batch_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"device": self.device, "beams": self.beams, "alpha": self.alpha, "batch_tokens": self.batch_tokens}
        return partial(TranslationPipeline, **settings), (self.saved,)

    @overload
    def __call__(self, text: str) -> Translation: ...
    @overload
    def __call__(self, text: list[str] | tuple[str, ...]) -> list[Translation]: ...
    def __call__(self, text: str | list[str] | tuple[str, ...]) -> Translation | list[Translation]:
        """Translate a text, or several together.

        Every text is one sentence to the model, as its training data were, whatever white space is in it.

        Raises:
            TextTooLong: if a text has more pieces than the model has positions; nothing is computed then.
            ValueError: if a text is empty.
            TypeError: if text is neither a string nor a sequence of strings.
        """
        if isinstance(text, str):
            return self._translate([text], self.batch_tokens)[0]
        if not isinstance(text, Sequence):
            raise TypeError(f"text is a {type(text).__name__}: it must be a string or a sequence of strings")
        for item in text:
            if not isinstance(item, str):
                raise TypeError(f"text holds a {type(item).__name__}: it must be a string or a sequence of strings")
        return self._translate(text, self.batch_tokens)

    def translate_lines(
        self,
        lines: Iterable[str],
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Translation | None]:
        """Translate line after line, in memory that does not grow with their number.

        Args:
            lines: without or with their line ends, from a file for example.
            batch_tokens: as for the pipeline, whose own is the default.
            progress: called with the number of lines done, after every chunk.

        Yields:
            A translation for every line, in order; None for an empty line.

        Raises:
            TextTooLong: if a line has more pieces than the model has positions; it names the line.
        """
        remaining = iter(lines)
        done = 0
        while chunk := list(islice(remaining, _CHUNK)):
            filled = [i for i, line in enumerate(chunk) if line.strip()]
            names = [f"line {done + i + 1}" for i in filled]
            translations = self._translate([chunk[i] for i in filled], batch_tokens or self.batch_tokens, names=names)
            answers: list[Translation | None] = [None] * len(chunk)
            for i, translation in zip(filled, translations, strict=True):
                answers[i] = translation
            yield from answers
            done += len(chunk)
            if progress is not None:
                progress(done)

    def given(self, source: str, target: str, name: str = "text") -> Translation:
        """A source and a target as if the model had answered so, to be asked for relations; its score is 0.

        Args:
            source: the text, read as one that is translated.
            target: the answer.
            name: what messages call them.

        Raises:
            TextTooLong: if either has more pieces than the model has positions.
            ValueError: if either is empty.
        """
        if not source.strip() or not target.strip():
            raise ValueError(f"{name} is empty on one side: there is nothing to relate")
        source = self._as_read(source)
        pieces = [self.tokenizer.encode_batch([source])[0], self.target_tokenizer.encode_batch([target])[0]]
        self._check_lengths(pieces, [f"the source of {name}", f"the target of {name}"])
        return Translation(source, target, 0.0, tuple(pieces[0]), tuple(pieces[1]), self)

    def check_lines(self, lines: Iterable[str]) -> None:
        """Finds out before the work whether every line can be translated.

        Raises:
            TextTooLong: if a line has more pieces than the model has positions; it names the line.
        """
        remaining, done = iter(lines), 0
        while chunk := list(islice(remaining, _CHUNK)):
            filled = [i for i, line in enumerate(chunk) if line.strip()]
            ids = self.tokenizer.encode_batch([self._as_read(chunk[i]) for i in filled])
            self._check_lengths(ids, [f"line {done + i + 1}" for i in filled])
            done += len(chunk)

    def _translate(
        self, texts: Sequence[str], batch_tokens: int, names: Sequence[str] | None = None
    ) -> list[Translation]:
        for i, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"{name_of(names, i, len(texts))} is empty: there is nothing to translate")
        texts = [self._as_read(text) for text in texts]
        ids = self.tokenizer.encode_batch(texts)
        self._check_lengths(ids, names)
        return [
            Translation(text, self.target_tokenizer.decode(answer), score, tuple(pieces), answer, self)
            for text, pieces, (answer, score) in zip(texts, ids, self._answers(ids, batch_tokens), strict=True)
        ]

    def _as_read(self, text: str) -> str:
        """A text as the model reads it: broken over lines, indented or spread out, it is still the same sentence."""
        return " ".join(text.split())

    def _answers(self, ids: Sequence[Sequence[int]], batch_tokens: int) -> list[tuple[tuple[int, ...], float]]:
        """The pieces of every answer, and its score."""
        tokenizer = cast("TextTokenizer", self.tokenizer)
        found = translate_ids(self.model, tokenizer, ids, beams=self.beams, alpha=self.alpha, batch_tokens=batch_tokens)
        return [(answer.ids, answer.score) for answer in found]

    def _check_lengths(self, ids: Sequence[Sequence[int]], names: Sequence[str] | None) -> None:
        limit: int | None = self.model.config.max_positions
        for i, pieces in enumerate(ids):
            if limit is not None and len(pieces) > limit:
                raise TextTooLong(
                    f"{name_of(names, i, len(ids))} has {len(pieces)} pieces (its end is one): this model takes at"
                    f" most {limit}"
                )

    def _relate(self, translation: Translation) -> Relations:
        """The relations of a translation, from one pass over its source and the pieces it was answered with."""
        read = (self.model.decoder_start, *translation.target_ids[:-1])
        ids = (translation.source_ids, read)
        source, target = (torch.tensor([row], device=self.device) for row in ids)  # (1, Ls), (1, Lt)
        source_lengths, target_lengths = (torch.tensor([len(row)], device=self.device) for row in ids)
        languages = [*(self.saved.about.get("languages") or ()), "source", "target"]
        titles = [_LANGUAGES.get(str(language), str(language)) for language in languages]
        sequences = {
            "encoder": text_sequence("source", titles[0], translation.source, translation.source_elements),
            "decoder": text_sequence(
                "target",
                titles[1],
                translation.text,
                self.target_tokenizer.elements(read),
                writes=_written(translation.text, translation.target_elements),
            ),
        }
        about = {
            "name": self.saved.directory.name,
            "task": "translation",
            "description": self.saved.about.get("description", ""),
        }
        watch = Watch(top=_TOP)
        with (
            torch.no_grad(),
            observe(self.model, watch=watch, elements=sequences, about=about, this_thread=True) as relations,
        ):
            self.model(source, source_lengths, target, target_lengths)
        return relations


def _settings(saved: SavedModel, name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """A part of config.json, each value of the kind that its default has."""
    found = saved.about.get(name, {})
    if not isinstance(found, dict):
        raise ModelError(f"{saved.directory}: {name} is {found!r}; it must be an object")
    settings = defaults | {key: value for key, value in found.items() if key in defaults}
    for key, default in defaults.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(settings[key], kinds) or (isinstance(settings[key], bool) != isinstance(default, bool)):
            raise ModelError(f"{saved.directory}: {name} has {key} {settings[key]!r}; it must be like {default!r}")
    return settings


def _written(text: str, elements: Sequence[Element]) -> list[str]:
    """What each piece adds to the text, the space before it among that; special pieces add their names."""
    written: list[str] = []
    before = 0
    for element in elements:
        if isinstance(element.span, tuple):
            first, stop = before, element.span[1]
            written.append(text[first:stop] if text[first:stop].strip() == element.label else element.label)
            before = stop
        else:
            written.append(element.label)
    return written
