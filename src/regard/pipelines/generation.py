"""Continuing texts and chats: a prompt in, the answer and its relations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import torch

from regard.attention import Watch
from regard.elements import Element
from regard.generation import Continuation, GenerationSettings, Written, generate_ids, read_settings, stream_ids
from regard.generation.batches import BATCH_TOKENS, plan
from regard.generation.decoding import Decoder, Finish
from regard.generation.settings import SettingsError
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError
from regard.models.checkpoint import CONFIG
from regard.pipelines.texts import TextTooLong, text_sequence
from regard.relations import Relations, observe
from regard.transformer.int8 import to_int8

BATCH_PIECES = 2**14
"""Positions of prompts and answers, times beams, that a batch may come to have: the caches grow with it."""
_TOP = 32  # weights kept a row
Message = Mapping[str, object]


@dataclass(frozen=True)
class Generation:
    """An answer, and where it comes from."""

    prompt: str
    text: str
    ids: tuple[int, ...] = field(repr=False)  # of the answer, with the stop piece if one ended it
    log_probabilities: tuple[float, ...] = field(repr=False)  # one a piece, before any filter; of beams their sum
    finish: Finish
    prompt_ids: tuple[int, ...] = field(repr=False)
    _pipeline: GenerationPipeline = field(repr=False, compare=False)

    @cached_property
    def elements(self) -> list[Element]:
        """The pieces of prompt and answer; spans are characters of `whole`."""
        return self._pipeline.tokenizer.elements((*self.prompt_ids, *self.ids))

    @cached_property
    def whole(self) -> str:
        """Prompt and answer as one text, without special pieces."""
        return self._pipeline.tokenizer.decode((*self.prompt_ids, *self.ids))

    @cached_property
    def relations(self) -> Relations:
        """Which piece attended to which: computed on first use, by one pass over prompt and answer.

        The last piece of the answer is written and never read: it has no row.
        """
        return self._pipeline._relate(self)  # pyright: ignore[reportPrivateUsage]

    def to_dict(self) -> dict[str, Any]:
        """Prompt, text, ids, log-probabilities and finish as data."""
        names = ("prompt", "text", "finish", "ids", "log_probabilities", "prompt_ids")
        return {name: [*v] if isinstance(v := getattr(self, name), tuple) else v for name in names}

    def report(self) -> dict[str, Any]:
        """Input, answer and relations as data."""
        return self.relations.to_dict() | {"input": self.prompt, "answer": self.text, "alignment": None}


class GenerationPipeline:
    """Continues texts with a model that writes the next piece; see `pipeline`.

    Args:
        checkpoint: the model.
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        int8: keep the weights in eight bits (see `regard.transformer.int8`): faster to write with, a little less exact.
            The checkpoint's model is changed for good.
        settings: of generation, see `GenerationSettings`; what the checkpoint recommends unless given.

    Raises:
        ModelError: if the model does not continue texts, or the checkpoint recommends what may not be.
        SettingsError: if a setting is unknown or not what it may be.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        int8: bool = False,
        **settings: Any,
    ) -> None:
        if checkpoint.head != "generate":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'generate'")
        self.device = torch.device("cpu" if device is None else device)
        self.checkpoint = checkpoint
        self.model: Any = (to_int8(checkpoint.model) if int8 else checkpoint.model).to(self.device)
        self.tokenizer = tokenizer
        vocab_size: int = self.model.config.vocab_size
        tokenizer.check_fits(vocab_size)
        self.settings = changed(recommended(checkpoint, tokenizer.eos, vocab_size), settings)

    @overload
    def __call__(self, text: str, **settings: Any) -> Generation: ...
    @overload
    def __call__(self, text: list[str] | tuple[str, ...], **settings: Any) -> list[Generation]: ...
    def __call__(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        progress: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> Generation | list[Generation]:
        """Continue a text, or several together.

        Ctrl-C ends it early: what has been written until then is returned, with "interrupted" as its finish.

        Args:
            text: one prompt or several.
            progress: called with the number of answers done, after every batch.
            settings: other ones than the pipeline's for this call.

        Raises:
            TextTooLong: if a prompt leaves no position for an answer; nothing is computed then.
            ValueError: if a prompt is empty, or a setting is not what it may be.
            TypeError: if text is neither a string nor a list of strings.
        """
        chosen = changed(self.settings, settings)
        if isinstance(text, str):
            return self._generate([text], [self._ids(text)], chosen, progress)[0]
        if not isinstance(text, Sequence):
            raise TypeError(f"text is a {type(text).__name__}: it must be a string or a list of strings")
        ids = [self._ids(t, f"text {i + 1} of {len(text)}") for i, t in enumerate(text)]
        return self._generate(text, ids, chosen, progress)

    def stream(self, text: str, **settings: Any) -> Iterator[Written]:
        """Continue one text, and give out every piece as it is written: `text` of each, joined, is the answer.

        Raises:
            TextTooLong: as `__call__`, like the others; all before the first piece.
            SettingsError: also if there are beams.
        """
        return self._stream(self._ids(text), changed(self.settings, settings))

    def chat(self, messages: Sequence[Message], **settings: Any) -> Generation:
        """Answer a chat.

        Args:
            messages: each with a role ("system", "user", "assistant") and a content; the last one the user's.
            settings: other ones than the pipeline's for this call.

        Raises:
            TokenizerError: if the model has no chat template, or it does not take these messages.
            TextTooLong: if the chat leaves no position for an answer.
        """
        prompt, ids = self._chat_ids(messages)
        return self._generate([prompt], [ids], changed(self.settings, settings), None)[0]

    def stream_chat(self, messages: Sequence[Message], **settings: Any) -> Iterator[Written]:
        """Answer a chat, and give out every piece as it is written; see `chat` and `stream`."""
        return self._stream(self._chat_ids(messages)[1], changed(self.settings, settings))

    def _stream(self, ids: list[int], settings: GenerationSettings) -> Iterator[Written]:
        return stream_ids(self.model, [ids], settings, decoder=self._decoder, vocabulary=self.tokenizer.vocab_size)

    def _generate(
        self,
        prompts: Sequence[str],
        ids: Sequence[list[int]],
        settings: GenerationSettings,
        progress: Callable[[int], object] | None,
    ) -> list[Generation]:
        lengths = [len(row) for row in ids]
        limits = [min(n + settings.max_new_tokens, self.model.config.max_positions) for n in lengths]
        found: dict[int, Continuation] = {}
        sizes = {"beams": settings.beams, "batch_tokens": BATCH_TOKENS, "batch_pieces": BATCH_PIECES}
        interrupted = False
        for batch in plan(lengths, limits, **sizes):
            answers = [Continuation((), (), "", "interrupted")] * len(batch)
            if not interrupted:
                answers = generate_ids(
                    self.model,
                    [ids[i] for i in batch],
                    settings,
                    decoder=self._decoder,
                    vocabulary=self.tokenizer.vocab_size,
                )
                interrupted = any(answer.finish == "interrupted" for answer in answers)
            found |= zip(batch, answers, strict=True)
            if progress is not None:
                progress(len(found))
        return [
            Generation(prompt, a.text, a.ids, a.log_probabilities, a.finish, tuple(row), self)
            for prompt, row, a in zip(prompts, ids, (found[i] for i in range(len(ids))), strict=True)
        ]

    def _ids(self, text: str, name: str = "the prompt") -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"{name} is a {type(text).__name__}: it must be a string")
        if not text:
            raise ValueError(f"{name} is empty: there is nothing to continue")
        return self._checked(self.tokenizer.encode_batch([text])[0], name)

    def _chat_ids(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        prompt = self.tokenizer.apply_chat_template(messages)
        return prompt, self._checked(self.tokenizer.encode_batch([prompt], specials=False)[0], "the chat")

    def _checked(self, ids: list[int], name: str) -> list[int]:
        most = self.model.config.max_positions
        if len(ids) >= most:
            raise TextTooLong(f"{name} has {len(ids)} pieces: this model takes at most {most} with the answer")
        if not ids:
            raise ValueError(f"{name} has no pieces: there is nothing to continue")
        return ids

    def _decoder(self, prompt: Sequence[int]) -> Decoder:
        """Ids → text of an answer, which goes on where the prompt's text ends, unless that is a special piece."""
        stream = self.tokenizer.stream()
        if prompt[-1] not in self.tokenizer.special_ids:
            for piece in prompt:
                stream.feed(piece)
        return stream

    def _relate(self, generation: Generation) -> Relations:
        """The relations of an answer, from one pass over the prompt and all but the last piece of the answer."""
        read = [*generation.prompt_ids, *generation.ids][: -1 if generation.ids else None]
        written = [e.label for e in generation.elements[1:]] if generation.ids else []
        elements = generation.elements[: len(read)]
        sequence = text_sequence("text", "prompt and answer", generation.whole, elements, written)
        about = {"name": self.checkpoint.directory.name, "task": "generate", "description": ""}
        with (
            torch.no_grad(),
            observe(
                self.model, watch=Watch(top=_TOP), elements={"": sequence}, about=about, this_thread=True
            ) as relations,
        ):
            self.model.hidden(torch.tensor([read], device=self.device))
        return relations


def recommended(
    checkpoint: Checkpoint, end: int | None, vocab_size: int, task: Mapping[str, Any] | None = None
) -> GenerationSettings:
    """What the checkpoint recommends, in generation_config.json or, as before there was such a file, in config.json.

    Args:
        checkpoint: of a model that continues texts or answers sources.
        end: the tokenizer's end, where neither file names one.
        vocab_size: pieces that the model may write.
        task: what config.json says of one of several tasks.

    Raises:
        ModelError: a setting is not what it may be, or asks for what is not done here.
    """
    name = "generation_config.json"
    reads = checkpoint.head != "generate"
    values: Mapping[str, Any] = checkpoint.json(name)
    if reads and not values:
        name, values = CONFIG, checkpoint.settings
    if values.get("eos_token_id") is None:
        known = checkpoint.settings.get("eos_token_id")
        values = {**values, "eos_token_id": end if known is None else known}
    values = {**values, **(task or {})}
    return read_settings(values, str(checkpoint.directory / name), vocab_size=vocab_size, start=int(reads))


def changed(settings: GenerationSettings, changes: Mapping[str, Any]) -> GenerationSettings:
    """Settings with some of them changed, lists taken for tuples.

    Raises:
        SettingsError: there is no such setting, or it is not what it may be.
    """
    known = GenerationSettings.__dataclass_fields__
    unknown = next((name for name in changes if name not in known), None)
    if unknown is not None:
        raise SettingsError(f"there is no setting {unknown}: there are {', '.join(known)}")
    texts = changes.get("stop")
    if isinstance(texts, str | list):
        changes = {**changes, "stop": (texts,) if isinstance(texts, str) else tuple(texts)}
    if isinstance(changes.get("stop_ids"), list):
        changes = {**changes, "stop_ids": tuple(changes["stop_ids"])}
    return replace(settings, **changes)
