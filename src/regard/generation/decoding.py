"""The decoding loop: prompts are read, and every entry of the batch gets piece after piece until it ends.

N | entries that still go on    V | vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from regard.generation.beam import beam_search
from regard.generation.causal import PREFILL_POSITIONS, CausalModel, CausalSteps
from regard.generation.lookup import Lookup
from regard.generation.sampling import Sampler, texts
from regard.generation.settings import GenerationSettings, SettingsError
from regard.generation.steps import EncoderDecoderSteps, Steps
from regard.generation.stops import StopText
from regard.models.encoder_decoder import EncoderDecoder

Finish = Literal["stop", "length", "context", "interrupted"]
"""Why an answer ends: a stop piece or text, `max_new_tokens`, the model's positions, or Ctrl-C."""


class Decoder(Protocol):
    """Ids → text, one at a time: `regard.inputs.tokenizer.TextStream`."""

    def feed(self, piece: int) -> str:
        """The text that is certain after this id, and was not before."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


@dataclass(frozen=True)
class Written:
    """One piece of one answer, as it is written."""

    entry: int  # of the batch
    id: int
    log_probability: float  # the model's, before any filter
    text: str  # what is certain since the piece before; always "" without a decoder
    finish: Finish | None  # None: the answer goes on


@dataclass(frozen=True)
class Continuation:
    """An answer."""

    ids: tuple[int, ...]  # with the stop piece, if one ended it
    log_probabilities: tuple[float, ...]  # the model's, before any filter; of beams their sum alone
    text: str  # without the stop text; "" without a decoder
    finish: Finish


@dataclass(frozen=True)
class Sources:
    """What an encoder-decoder answers.

    Args:
        read: what its `encode` reads: ids (N, Ls) for example.
        lengths: (N,), of each source.
        memory: (N, Ls, d), what `encode` makes of them; computed unless given.
    """

    read: Tensor
    lengths: Tensor
    memory: Tensor | None = None


@dataclass
class _Entry:
    """An answer being written."""

    number: int
    room: int  # pieces that it may have
    full: Finish  # why it ends when it has them
    text: StopText | None
    ids: list[int] = field(default_factory=list[int])

    def write(self, piece: int, log_probability: float, stop_ids: Sequence[int]) -> Written:
        self.ids.append(piece)
        finish: Finish | None = "stop" if piece in stop_ids else self.full if len(self.ids) == self.room else None
        text = ""
        if self.text is not None:
            text, stopped = self.text.feed(piece)
            if stopped:
                finish = "stop"
            elif finish is not None:
                text += self.text.finish()
        return Written(self.number, piece, log_probability, text, finish)


@torch.inference_mode()
def stream_ids(
    model: CausalModel | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    sources: Sources | None = None,
    decoder: Callable[[Sequence[int]], Decoder] | None = None,
    seeds: Sequence[int] | None = None,
    prefill: int = PREFILL_POSITIONS,
    vocabulary: int | None = None,
) -> Iterator[Written]:
    """Continue all prompts together, and give out every piece at once; an answer that ends leaves the batch.

    Args:
        model: in evaluation mode.
        prompts: ids, none empty, each shorter than the model's positions. A decoder that reads sources begins with
            them, and they are of one length.
        settings: how; greedy unless given. Without beams.
        sources: what an encoder-decoder answers; None for a model that continues texts.
        decoder: makes, for a prompt's ids, what turns those of its answer into text; needed for stop texts.
        seeds: one a prompt; the settings' seed for each unless given.
        prefill: positions of prompts that pass the model at once at most.
        vocabulary: ids from here on are never written; the model's whole vocabulary unless given.

    Raises:
        SettingsError: if there are beams, which know no piece before the end, or stop texts without a decoder.
        ValueError: if a prompt is empty, holds an id outside the vocabulary, or leaves no position for an answer.
    """
    settings = settings or GenerationSettings()
    if settings.beams > 1:
        raise SettingsError(f"beams is {settings.beams}: a streamed answer has 1")
    entries = _entries(model, prompts, settings, decoder)
    if not entries:
        return
    rooms = [entry.room for entry in entries]
    capacity = max(len(prompt) for prompt in prompts) + max(rooms)
    steps = _steps(model, prompts, sources, capacity, prefill, vocabulary)
    scores = steps.prompt_scores()  # (N, V)
    sampler = Sampler(settings, prompts, scores.shape[1], limits=rooms, seeds=seeds, device=scores.device)
    if len(entries) == 1 and settings.looks_up and isinstance(steps, CausalSteps) and steps.forgets:
        yield from _looked_up(steps, scores, sampler, entries[0], prompts[0], settings.stop_ids)
    else:
        yield from _together(steps, scores, sampler, entries, settings.stop_ids)


def _together(
    steps: Steps, scores: Tensor, sampler: Sampler, entries: list[_Entry], stop_ids: Sequence[int]
) -> Iterator[Written]:
    """All answers, a piece of each a step; see `_looked_up`."""
    position = 0
    while True:
        pieces, logs = sampler(scores)
        written = [
            entry.write(piece, log, stop_ids)
            for entry, piece, log in zip(entries, pieces.tolist(), logs.tolist(), strict=True)
        ]
        going = [row for row, piece in enumerate(written) if piece.finish is None]
        if len(going) < len(entries):
            entries = [entries[row] for row in going]
            if entries:
                rows = torch.tensor(going, device=pieces.device)
                steps.follow(rows)
                steps.keep(rows)
                sampler.keep(going)
                pieces = pieces[rows]
        yield from written
        if not entries:
            return
        scores = steps.scores(pieces, position)
        position += 1


def _looked_up(
    steps: CausalSteps,
    scores: Tensor,
    sampler: Sampler,
    entry: _Entry,
    prompt: Sequence[int],
    stop_ids: Sequence[int],
) -> Iterator[Written]:
    """One answer, the likeliest piece each time, several pieces a step where the text has been like this before.

    While somebody observes or ablates the model it is a piece a step: a wrong guess is no part of the text to be seen.

    Args:
        steps: after the prompt.
        scores: (1, V), of what follows it.
        sampler: of the settings, which take the likeliest piece.
        entry: the answer.
        prompt: what it goes on from.
        stop_ids: pieces that end it.
    """
    lookup = Lookup(prompt)
    guess: list[int] = []
    while True:
        right = 0
        for after in scores.split(1):  # what follows the last piece, then each piece of the guess while it is right
            pieces, logs = sampler(after)
            piece = int(pieces)
            written = entry.write(piece, float(logs), stop_ids)
            lookup.feed(piece)
            yield written
            if written.finish is not None:
                return
            if guess[right : right + 1] != [piece]:
                break
            right += 1
        lookup.judge(guess, right)
        guess = [] if steps.followed else lookup.guess(entry.room - len(entry.ids) - 1)
        scores = steps.scores_after_each([entry.ids[-1], *guess], len(entry.ids) - 1)


def generate_ids(
    model: CausalModel | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    sources: Sources | None = None,
    decoder: Callable[[Sequence[int]], Decoder] | None = None,
    seeds: Sequence[int] | None = None,
    prefill: int = PREFILL_POSITIONS,
    vocabulary: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Continuation]:
    """Continue all prompts together, or answer all sources.

    Ctrl-C ends it early: what has been written until then is returned, with "interrupted" as its end.

    Args:
        model: in evaluation mode; this and the others are those of `stream_ids`.
        prompts: ids.
        settings: how, with beams or without; greedy unless given.
        sources: what an encoder-decoder answers.
        decoder: makes, for a prompt's ids, what turns those of its answer into text.
        seeds: one a prompt.
        prefill: positions of prompts that pass the model at once at most.
        vocabulary: ids from here on are never written.
        progress: called with the number of pieces written so far, after each; not with beams.

    Returns:
        One answer a prompt, in order.

    Raises:
        SettingsError: if there are stop texts without a decoder.
        ValueError: see `stream_ids`.
    """
    settings = settings or GenerationSettings()
    if settings.beams > 1:
        return _beams(model, prompts, settings, sources, decoder, prefill, vocabulary)
    found: list[list[Written]] = [[] for _ in prompts]
    done = 0
    how: dict[str, Any] = {"decoder": decoder, "seeds": seeds, "prefill": prefill, "vocabulary": vocabulary}
    pieces = stream_ids(model, prompts, settings, sources=sources, **how)
    try:
        for piece in pieces:
            found[piece.entry].append(piece)
            done += 1
            if progress is not None:
                progress(done)
    except KeyboardInterrupt:
        pass
    return [
        Continuation(
            tuple(piece.id for piece in pieces),
            tuple(piece.log_probability for piece in pieces),
            "".join(piece.text for piece in pieces),
            (pieces[-1].finish if pieces else None) or "interrupted",
        )
        for pieces in found
    ]


@torch.inference_mode()
def _beams(
    model: CausalModel | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    sources: Sources | None,
    decoder: Callable[[Sequence[int]], Decoder] | None,
    prefill: int,
    vocabulary: int | None,
) -> list[Continuation]:
    entries = _entries(model, prompts, settings, decoder)
    if not entries:
        return []
    hypotheses = beam_search(
        _steps(model, prompts, sources, 0, prefill, vocabulary),
        [entry.room for entry in entries],
        eos=settings.stop_ids,
        beams=settings.beams,
        alpha=settings.alpha,
        offset=0,
        must_end=False,
        early_stopping=settings.early_stopping,
        constraints=settings.constraints,
        prompts=texts(prompts),
    )
    answers: list[Continuation] = []
    for entry, hypothesis in zip(entries, hypotheses, strict=True):
        written = [entry.write(piece, 0.0, settings.stop_ids) for piece in hypothesis.ids]
        text = "".join(piece.text for piece in written)
        answers.append(
            Continuation(hypothesis.ids, (hypothesis.log_probability,), text, written[-1].finish or entry.full)
        )
    return answers


def _steps(
    model: CausalModel | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    sources: Sources | None,
    capacity: int,
    prefill: int,
    vocabulary: int | None,
) -> Steps:
    if sources is None:
        return CausalSteps(
            cast("CausalModel", model), prompts, capacity=capacity, prefill=prefill, vocabulary=vocabulary
        )
    reader = cast("EncoderDecoder", model)
    return EncoderDecoderSteps(
        reader, sources.read, sources.lengths, prompts, memory=sources.memory, vocabulary=vocabulary
    )


def _entries(
    model: CausalModel | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    decoder: Callable[[Sequence[int]], Decoder] | None,
) -> list[_Entry]:
    """What is to be written, checked."""
    if settings.stop and decoder is None:
        raise SettingsError(f"stop is {settings.stop!r}: without a decoder there is no text in which to find it")
    positions: int | None = model.config.max_positions
    entries: list[_Entry] = []
    for number, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number + 1} of {len(prompts)}"
        if not len(prompt):
            raise ValueError(f"{name} is empty: it must have at least one piece")
        wrong = next((i for i in prompt if not 0 <= i < model.config.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"{name} holds the id {wrong}: it must be from 0 to {model.config.vocab_size - 1}")
        if positions is not None and len(prompt) >= positions:
            raise ValueError(
                f"{name} has {len(prompt)} pieces: this model takes at most {positions} with the answer, so a prompt"
                f" may have {positions - 1}"
            )
        room = settings.max_new_tokens if positions is None else positions - len(prompt)
        full: Finish = "length" if settings.max_new_tokens <= room else "context"
        text = None if decoder is None else StopText(decoder(prompt), settings.stop)
        entries.append(_Entry(number, min(room, settings.max_new_tokens), full, text))
    return entries
