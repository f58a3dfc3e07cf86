"""Speed of embedding texts: all-MiniLM-L6-v2 in float32, regard beside transformers (sdpa, padded batches).

    python -m benchmarks.models_bench.embedding CHECKPOINT TEXTS --threads 1

TEXTS has one a line. Both sides tokenise, cut off after the same number of pieces, and bring the mean of the rows to
length 1. transformers gets batches of one size, in the order of the file and sorted by length; it takes turns with
regard, and what counts is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.models_bench.decoding import paired


class Theirs:
    """Sentence vectors as transformers' models and tokenizers make them.

    Args:
        path: of the checkpoint.
        batch: texts that are computed together.
        most: pieces after which a text is cut off.
    """

    def __init__(self, path: Path, batch: int, most: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()
        self.batch, self.most = batch, most

    @torch.inference_mode()
    def vectors(self, texts: list[str], *, by_length: bool = False) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i])) if by_length else [*range(len(texts))]
        found: list[torch.Tensor] = []
        for first in range(0, len(texts), self.batch):
            part = [texts[i] for i in order[first : first + self.batch]]
            limits = {"padding": True, "truncation": True, "max_length": self.most}
            inputs = self.tokenizer(part, return_tensors="pt", **limits)
            rows = self.model(**inputs).last_hidden_state  # (B, L, d)
            real = inputs["attention_mask"][..., None]
            found.append((rows * real).sum(1) / real.sum(1))
        vectors = torch.nn.functional.normalize(torch.cat(found), dim=-1)
        return vectors[torch.tensor(order).argsort()]


def run(path: Path, texts: list[str], *, threads: int, rounds: int, batch: int) -> dict[str, Any]:
    """All figures."""
    from regard.pipelines import pipeline

    torch.set_num_threads(threads)
    ours = pipeline(path, "embed", normalize=True, truncate=True)
    theirs = Theirs(path, batch, ours.reader.most)
    worst = float((ours.vectors(texts) - theirs.vectors(texts)).abs().max())
    result: dict[str, Any] = {"threads": threads, "texts": len(texts), "batch": batch, "largest_difference": worst}
    result["as in the file"] = paired(lambda: ours.vectors(texts), lambda: theirs.vectors(texts), rounds)
    result["sorted by length"] = paired(
        lambda: ours.vectors(texts), lambda: theirs.vectors(texts, by_length=True), rounds
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint's directory")
    parser.add_argument("texts", type=Path, help="a text file, one a line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=1000, help="lines to read at most")
    options = parser.parse_args()
    lines = options.texts.read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][: options.limit]
    sizes = {"threads": options.threads, "rounds": options.rounds, "batch": options.batch}
    print(json.dumps(run(options.model, texts, **sizes), indent=2))


if __name__ == "__main__":
    main()
