"""Speed of writing text: SmolLM2-135M in float32, regard beside transformers (sdpa, dynamic cache, generate).

    python -m benchmarks.models_bench.decoding SmolLM2-135M-Instruct.Q4_1.gguf --threads 1

Both sides read the same weights and write the same pieces, greedily; they take turns, and what counts is the median of
the ratios of neighbouring runs. Each side's peak memory is that of a process of its own. llama-cpp-python reads the
quantised file itself, an eighth of the bytes, and stands beside them where it is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from regard.transformer.int8 import to_int8

PROMPT, ANSWER, PREFILL = 512, 128, 2048


def ours(path: Path) -> Any:
    from regard.models.checkpoint import read_checkpoint

    return read_checkpoint(path).model


def theirs(path: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()


def our_answer(model: Any, ids: torch.Tensor, tokens: int) -> list[int]:
    from regard.generation import GenerationSettings, generate_ids

    return list(generate_ids(model, ids.tolist(), GenerationSettings(max_new_tokens=tokens))[0].ids)


def their_answer(model: Any, ids: torch.Tensor, tokens: int) -> list[int]:
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def our_prefill(model: Any, ids: torch.Tensor) -> torch.Tensor:
    from regard.generation import CausalSteps

    return CausalSteps(model, ids.tolist(), capacity=ids.shape[1]).prompt_scores()


@torch.inference_mode()
def their_prefill(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, logits_to_keep=1, use_cache=True).logits[:, -1]


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of both, taking turns, and the median of how often the first fits into the second."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair: list[float] = []
        for function in (first, second):
            start = time.perf_counter()
            function()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    a, b = zip(*times, strict=True)
    ratios = sorted(y / x for x, y in times)
    return {
        "regard": statistics.median(a),
        "transformers": statistics.median(b),
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
    }


@torch.inference_mode()
def perplexity(model: Any, ids: list[int], rows: int = 8) -> float:
    """Of a text's pieces but the first, read a few at a time, as they are when a text is written."""
    cache, loss = model.cache(len(ids)), 0.0
    for start in range(0, len(ids) - 1, rows):
        part = torch.tensor(ids[start : start + rows + 1])
        hidden = model.hidden(part[None, :-1], start=start, cache=cache)
        loss += float(F.cross_entropy(model.logits(hidden)[0], part[1:], reduction="sum"))
    return math.exp(loss / (len(ids) - 1))


def run(
    checkpoint: Path, *, threads: int, rounds: int, tokens: int, gguf: Path | None = None, text: str | None = None
) -> dict[str, Any]:
    """All figures, from a checkpoint's directory."""
    torch.set_num_threads(threads)
    mine, other = ours(checkpoint), theirs(checkpoint)
    generator = torch.Generator().manual_seed(0)
    vocabulary = mine.config.vocab_size
    prompt = torch.randint(20, vocabulary, (1, PROMPT), generator=generator)
    long = torch.randint(20, vocabulary, (1, PREFILL), generator=generator)
    same = our_answer(mine, prompt, tokens) == their_answer(other, prompt, tokens)  # and both are warm
    worst = float((our_prefill(mine, long) - their_prefill(other, long)).abs().max())
    result: dict[str, Any] = {"threads": threads, "tokens": tokens, "same_tokens": same, "prefill_difference": worst}
    result["decode"] = paired(
        lambda: our_answer(mine, prompt, tokens), lambda: their_answer(other, prompt, tokens), rounds
    )
    result["prefill"] = paired(lambda: our_prefill(mine, long), lambda: their_prefill(other, long), rounds)
    if text is not None:
        from regard.models import load

        pieces = load(gguf or checkpoint).tokenizer.encode(text).ids[:PREFILL]
        before = perplexity(mine, pieces)
        eight = to_int8(mine)  # the last of mine: it changes the model
        result["perplexity"] = {"float32": before, "int8": perplexity(eight, pieces), "pieces": len(pieces)}
        result["int8"] = paired(
            lambda: our_answer(eight, prompt, tokens), lambda: their_answer(other, prompt, tokens), rounds
        )
    if gguf is not None:
        result["llama_cpp"] = llama_cpp(gguf, prompt[0].tolist(), tokens, threads)
    return result


def llama_cpp(path: Path, prompt: list[int], tokens: int, threads: int) -> float | None:
    """Seconds that llama-cpp-python takes for the same answer from the quantised file; None where it is missing."""
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    model = Llama(str(path), n_ctx=PROMPT + tokens + 1, n_threads=threads, verbose=False)
    start = time.perf_counter()
    pieces = model.generate(prompt, temp=0.0, repeat_penalty=1.0)
    for _ in range(tokens):
        next(pieces)
    return time.perf_counter() - start


def peak(side: str, checkpoint: Path, tokens: int, threads: int) -> int:
    """Bytes that a process of its own comes to hold, with one side's model, prefill and answer."""
    command = [sys.executable, "-m", "benchmarks.models_bench.decoding", "--peak", side, str(checkpoint)]
    command += ["--tokens", str(tokens), "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, or a checkpoint's directory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=ANSWER)
    parser.add_argument("--text", type=Path, help="measure weights in eight bits, too, and perplexity on this text")
    parser.add_argument("--memory", action="store_true", help="measure each side's peak memory, too")
    parser.add_argument("--peak", choices=["regard", "transformers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        torch.set_num_threads(options.threads)
        model = ours(options.model) if options.peak == "regard" else theirs(options.model)
        answer, prefill = (our_answer, our_prefill) if options.peak == "regard" else (their_answer, their_prefill)
        prefill(model, torch.arange(PREFILL)[None] + 20)
        answer(model, torch.arange(PROMPT)[None] + 20, options.tokens)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, gguf = options.model, None
        if options.model.suffix == ".gguf":
            from regard.models.gguf import read_gguf

            gguf = options.model
            checkpoint = read_gguf(gguf).save(Path(scratch) / "model")
        sizes = {"threads": options.threads, "tokens": options.tokens}
        text = None if options.text is None else options.text.read_text(encoding="utf-8")
        result = run(checkpoint, rounds=options.rounds, gguf=gguf, text=text, **sizes)
        if options.memory:
            result["peak_bytes"] = {side: peak(side, checkpoint, **sizes) for side in ("regard", "transformers")}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
