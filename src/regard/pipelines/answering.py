"""Translation, summaries and other answers by encoder-decoders from checkpoints: Marian, BART, T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from regard.generation import generate_ids
from regard.generation.batches import BATCH_PIECES, BATCH_TOKENS, plan
from regard.generation.decoding import Decoder, Sources
from regard.inputs.tokenizer import Tokenizer
from regard.models import ModelError
from regard.models.checkpoint import CONFIG, Checkpoint
from regard.pipelines.generation import changed, recommended
from regard.pipelines.translation import TranslationPipeline


class AnsweringPipeline(TranslationPipeline):
    """Answers texts with a checkpoint's encoder-decoder; see `pipeline`.

    A text is read as it is, after the words that name the job.

    Args:
        checkpoint: the model.
        tokenizer: the model's, of sources.
        device: where to compute; the CPU by default.
        batch_tokens: see `TranslationPipeline`.
        job: one of those that config.json lists, with words and settings, under task_specific_params; the only one
            unless given.
        prefix: what is put before each text, such as "summarize: "; those of the job unless given.
        settings: of generation, see `GenerationSettings`; what the checkpoint recommends unless given.

    Raises:
        ModelError: if the model answers no texts, the checkpoint recommends what may not be, there is no such job, or
            there are several and neither job nor prefix is given.
        SettingsError: if a setting is unknown or not what it may be.
        ValueError: if batch_tokens is less than 1.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        batch_tokens: int = BATCH_TOKENS,
        job: str | None = None,
        prefix: str | None = None,
        **settings: Any,
    ) -> None:
        if checkpoint.head != "translate":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'translate'")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}: it must be at least 1")
        self.device = torch.device("cpu" if device is None else device)
        self.model: Any = checkpoint.model.to(self.device)
        self.saved = checkpoint
        writes = tokenizer
        if (checkpoint.directory / "target.spm").is_file():
            writes = Tokenizer.from_directory(checkpoint.directory, target=True)
        size: int = self.model.config.target_size
        tokenizer.check_fits(self.model.config.vocab_size)
        writes.check_fits(size)
        self.tokenizer, self.target_tokenizer, self._writes = tokenizer, writes, writes
        self.job, chosen = _job(checkpoint, job, prefix)
        self.prefix = str(chosen.get("prefix") or "") if prefix is None else prefix
        own = recommended(checkpoint, writes.eos, size, chosen)
        self.settings = changed(own, settings)
        self.beams, self.alpha = self.settings.beams, self.settings.alpha
        self.alignment = {"layer": -1, "shifted": True}
        self.batch_tokens = batch_tokens
        self._arguments = {"device": device, "batch_tokens": batch_tokens, "job": job, "prefix": prefix} | settings

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(AnsweringPipeline, **self._arguments), (self.saved, self.tokenizer)

    def _as_read(self, text: str) -> str:
        return self.prefix + text.strip()

    def _answers(self, ids: Sequence[Sequence[int]], batch_tokens: int) -> list[tuple[tuple[int, ...], float]]:
        lengths = [len(row) for row in ids]
        # Few answers have as many pieces as they may have: memory is planned for those of ordinary length.
        limits = [min(2 * length + 10, self.settings.max_new_tokens) for length in lengths]
        found: dict[int, tuple[tuple[int, ...], float]] = {}
        for batch in plan(lengths, limits, beams=self.beams, batch_tokens=batch_tokens, batch_pieces=BATCH_PIECES):
            rows = [torch.tensor(ids[i]) for i in batch]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # with any id: padding is masked
            sources = Sources(padded.to(self.device), torch.tensor([lengths[i] for i in batch], device=self.device))
            prompts = [[self.model.decoder_start]] * len(batch)
            answers = generate_ids(
                self.model,
                prompts,
                self.settings,
                sources=sources,
                decoder=self._decoder,
                vocabulary=self._writes.vocab_size,
            )
            if any(answer.finish == "interrupted" for answer in answers):
                raise KeyboardInterrupt
            for i, answer in zip(batch, answers, strict=True):
                found[i] = answer.ids, sum(answer.log_probabilities) / len(answer.ids) ** self.alpha
        return [found[i] for i in range(len(ids))]

    def _decoder(self, prompt: Sequence[int]) -> Decoder:
        return self._writes.stream()


def _job(checkpoint: Checkpoint, job: str | None, prefix: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The job, and what config.json says of it."""
    where = checkpoint.directory / CONFIG
    found = checkpoint.settings.get("task_specific_params") or {}
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ModelError(f"{where}: task_specific_params is {found!r}: it must be an object with one for each job")
    names = ", ".join(found) or "none"
    if job is None:
        if len(found) > 1 and prefix is None:
            raise ModelError(f"{where} has several jobs: job must be one of {names}, or prefix be given")
        job = next(iter(found)) if len(found) == 1 else None
    elif job not in found:
        raise ModelError(f"{where} has no job {job!r}: there are {names}")
    return job, {} if job is None else found[job]
