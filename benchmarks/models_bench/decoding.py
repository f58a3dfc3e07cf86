"""Writing and reading text in float32: regard beside transformers (sdpa, dynamic cache, generate) and llama-cpp-python.

The sides read the same weights and write the same pieces, greedily. llama-cpp-python reads the quantised GGUF file
itself, an eighth of the bytes; regard with weights in eight bits stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models_bench.comparing import OURS, THEIRS, Comparison, absent, compare, own_peak

INT8, LLAMA_CPP = "regard, weights in eight bits", "llama-cpp-python, quantised"
SINGLE, THEIR_LOOKUP = "regard, a piece at a time", "transformers, prompt lookup"
MEASURED_PEAKS = (OURS, THEIRS, INT8, LLAMA_CPP)
"""The sides whose memory is measured: how pieces are guessed changes none."""


def ours(path: Path) -> Any:
    """regard's model."""
    from regard.models.checkpoint import read_checkpoint

    return read_checkpoint(path).model


def ours_int8(path: Path) -> Any:
    """The same, with weights in eight bits."""
    from regard.transformer.int8 import to_int8

    return to_int8(ours(path))


def theirs(path: Path) -> Any:
    """transformers' model."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.LlamaForCausalLM.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()


def our_answer(model: Any, ids: torch.Tensor, tokens: int, *, lookup: bool = True) -> list[int]:
    """The pieces that regard writes after ids (1, L)."""
    from regard.generation import GenerationSettings, generate_ids

    settings = GenerationSettings(max_new_tokens=tokens, lookup=lookup)
    return list(generate_ids(model, ids.tolist(), settings)[0].ids)


def their_answer(model: Any, ids: torch.Tensor, tokens: int, *, lookup: int | None = None) -> list[int]:
    """The pieces that transformers writes, with its prompt lookup of so many pieces, or without."""
    model.generation_config.eos_token_id = None
    options = {} if lookup is None else {"prompt_lookup_num_tokens": lookup}
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0, **options
    )
    return out[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def our_prefill(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The scores (1, V) of the piece after ids (1, L), with a cache for what follows."""
    from regard.generation import CausalSteps

    return CausalSteps(model, ids.tolist(), capacity=ids.shape[1]).prompt_scores()


@torch.inference_mode()
def their_prefill(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same of transformers."""
    return model(ids, logits_to_keep=1, use_cache=True).logits[:, -1]


@torch.inference_mode()
def perplexity(model: Any, ids: list[int], rows: int = 8) -> float:
    """Of a text's pieces but the first, read a few at a time, as they are when a text is written."""
    cache, loss = model.cache(len(ids)), 0.0
    for start in range(0, len(ids) - 1, rows):
        part = torch.tensor(ids[start : start + rows + 1])
        hidden = model.hidden(part[None, :-1], start=start, cache=cache)
        loss += float(F.cross_entropy(model.logits(hidden)[0], part[1:], reduction="sum"))
    return math.exp(loss / (len(ids) - 1))


class LlamaCpp:
    """llama-cpp-python with a GGUF file.

    Args:
        path: the file.
        positions: of the longest prompt and its answer.
        threads: to compute with.
    """

    def __init__(self, path: Path, positions: int, threads: int) -> None:
        from llama_cpp import Llama

        sizes = {"n_ctx": positions + 1, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
        self._model: Any = Llama(str(path), verbose=False, **sizes)

    def answer(self, prompt: list[int], tokens: int) -> list[int]:
        """The pieces that it writes after a prompt, greedily."""
        self._model.reset()
        pieces = self._model.generate(prompt, temp=0.0, repeat_penalty=1.0)
        return [next(pieces) for _ in range(tokens)]

    def prefill(self, prompt: list[int]) -> None:
        """Read a prompt."""
        self._model.reset()
        self._model.eval(prompt)


def random_prompt(vocabulary: int, length: int) -> torch.Tensor:
    """Ids (1, L), always the same ones."""
    return torch.randint(20, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


def decode(
    path: Path,
    *,
    threads: int,
    rounds: int,
    prompt: int,
    tokens: int,
    gguf: Path | None = None,
    text: str | None = None,
    after: str | None = None,
) -> Comparison:
    """All figures of writing, but memory.

    Args:
        path: a checkpoint's directory, of the Llama family.
        threads: for all sides.
        rounds: in which the sides take turns.
        prompt: pieces that are read first.
        tokens: pieces that are written.
        gguf: the same model's file, for llama-cpp-python.
        text: perplexity is measured on this one, in float32 and in eight bits.
        after: the text whose first pieces are the prompt; random pieces unless given.
    """
    from regard.models import load

    torch.set_num_threads(threads)
    mine, eight, other = ours(path), ours_int8(path), theirs(path)
    if after is None:
        ids = random_prompt(mine.config.vocab_size, prompt)
    else:
        ids = torch.tensor([load(gguf or path).tokenizer.encode(after).ids[:prompt]])
        prompt = ids.shape[1]
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: our_answer(mine, ids, tokens),
        SINGLE: lambda: our_answer(mine, ids, tokens, lookup=False),
        THEIRS: lambda: their_answer(other, ids, tokens),
        THEIR_LOOKUP: lambda: their_answer(other, ids, tokens, lookup=10),
        INT8: lambda: our_answer(eight, ids, tokens),
    }
    exact = [side() for name, side in sides.items() if name != INT8]
    notes: dict[str, Any] = {"same_pieces": all(answer == exact[0] for answer in exact)}
    notes |= _beside(sides, gguf, prompt + tokens, threads, lambda model: model.answer(ids[0].tolist(), tokens))
    if text is not None:
        pieces = list(load(gguf or path).tokenizer.encode(text).ids[: mine.config.max_positions])
        notes["perplexity"] = {"float32": perplexity(mine, pieces), "int8": perplexity(eight, pieces)}
        notes["perplexity_pieces"] = len(pieces)
    seconds = compare(sides, rounds, threads)
    notes["pieces_a_second"] = {name: tokens / min(times) for name, times in seconds.items()}
    job = f"writing {tokens} pieces after {prompt}, prompt and all, {threads} thread{'s' * (threads > 1)}"
    return Comparison(job, seconds, {THEIRS: 3.0}, notes=notes)


def prefill(path: Path, *, threads: int, rounds: int, prompt: int, gguf: Path | None = None) -> Comparison:
    """All figures of reading, but memory: the last position's scores alone, on all sides; see `decode`."""
    torch.set_num_threads(threads)
    mine, other = ours(path), theirs(path)
    ids = random_prompt(mine.config.vocab_size, prompt)
    worst = float((our_prefill(mine, ids) - their_prefill(other, ids)).abs().max())
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: our_prefill(mine, ids),
        THEIRS: lambda: their_prefill(other, ids),
    }
    notes: dict[str, Any] = {"largest_difference": worst}
    notes |= _beside(sides, gguf, prompt, threads, lambda model: model.prefill(ids[0].tolist()))
    job = f"reading {prompt:,} pieces at once, {threads} thread{'s' * (threads > 1)}"
    return Comparison(job, compare(sides, rounds, threads), {THEIRS: 1.2}, notes=notes)


def _beside(
    sides: dict[str, Callable[[], object]],
    gguf: Path | None,
    positions: int,
    threads: int,
    call: Callable[[LlamaCpp], object],
) -> Mapping[str, str]:
    """Add llama-cpp-python to the sides, or say why it is missing."""
    why = "not measured: there is no GGUF file" if gguf is None else absent(["llama_cpp"])
    if why is not None or gguf is None:
        return {LLAMA_CPP: str(why)}
    model = LlamaCpp(gguf, positions, threads)
    sides[LLAMA_CPP] = lambda: call(model)
    return {}


def peak(side: str, path: Path, *, prompt: int, tokens: int, gguf: Path | None, threads: int) -> int:
    """The memory of this process with one side alone: a prompt read, and an answer of so many pieces, or none."""
    if side == LLAMA_CPP:
        assert gguf is not None
        model = LlamaCpp(gguf, prompt + tokens, threads)
        ids = random_prompt(1000, prompt)[0].tolist()
        _ = model.answer(ids, tokens) if tokens else model.prefill(ids)
        return own_peak()
    loaders = {OURS: ours, INT8: ours_int8, THEIRS: theirs}
    model = loaders[side](path)
    ids = random_prompt(model.config.vocab_size, prompt)
    if tokens:
        (their_answer if side == THEIRS else our_answer)(model, ids, tokens)
    else:
        (their_prefill if side == THEIRS else our_prefill)(model, ids)
    return own_peak()
