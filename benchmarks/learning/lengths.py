"""Length: what a training step costs, and how far back a model remembers: a Transformer, an LSTM and an RNN.

    python benchmarks/learning/lengths.py cost --out RUN       CPU time and memory of a step, lengths of 64 … 4,096
    python benchmarks/learning/lengths.py recall --out RUN     a key's value, seen 16 … 1,024 steps before

All three have the same number of parameters, to 3 %. A step of `cost` reads 4,096 pieces, as sequences of each length:
the same work for an LSTM in more and more steps that wait for each other, for a Transformer in wider and wider views.
Each is measured in a process of its own with one thread: the median CPU time of a forward and backward pass, and by how
much the largest resident memory of the process grew with them. `recall` shows pairs of keys and values, then so many
random other pieces, then all the keys in another order: each value is to be said. Each model learns for the same CPU
time at each distance; what is measured is the part of the values in 1,000 new sequences that are right; guessing gives
one in 16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from common import Results, fit, on_one_thread, table
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models.llama import Llama, LlamaConfig
from regard.training.baselines import RecurrentConfig, RecurrentLanguageModel
from regard.training.run import Recipe

FAMILIES = ("transformer", "lstm", "rnn")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DISTANCES = (16, 64, 256, 1024)
PIECES = 4096  # a step
KEYS, OTHERS, PAIRS = 16, 32, 4
VOCABULARY = 2 * KEYS + OTHERS
RECIPES = {
    "transformer": Recipe(optimiser="adamw", peak_learning_rate=0.002, schedule="linear", final_fraction=0.0),
    "lstm": Recipe(optimiser="adamw", peak_learning_rate=0.003, schedule="linear", final_fraction=0.0),
    "rnn": Recipe(optimiser="adamw", peak_learning_rate=0.001, schedule="linear", final_fraction=0.0),
}


def model_of(family: str, width: int, longest: int) -> nn.Module:
    """A model of two layers; recurrent ones are as wide as a Transformer of this width has parameters."""
    if family == "transformer":
        feed_forward = 8 * width // 3 // 8 * 8
        heads = max(1, width // 32)
        sizes = LlamaConfig(VOCABULARY, width, 2, heads, heads, width // heads, feed_forward, longest, tied=True)
        return Llama(sizes)
    wanted = sum(p.numel() for p in model_of("transformer", width, longest).parameters())
    gates = {"lstm": 4, "rnn": 1}[family]
    # two layers of 2 g d² + 2 g d + 2 d each, the embedding and the last norm
    half = (4 * gates + 4 + VOCABULARY + 2) / (8 * gates)
    d = round(math.sqrt(half * half + wanted / (4 * gates)) - half)
    return RecurrentLanguageModel(RecurrentConfig(VOCABULARY, "lstm" if family == "lstm" else "rnn", d))


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: {"one": _one, "cost": _cost, "recall": _recall}[arguments.what](arguments))


def _one(arguments: argparse.Namespace) -> None:
    print(json.dumps(one(arguments.families[0], arguments.width, arguments.lengths[0], arguments.repeats)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "recall", "one"), help="one: a single cell of cost, as JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/lengths"), help="directory of the results")
    parser.add_argument("--families", nargs="+", default=[*FAMILIES], choices=FAMILIES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[*LENGTHS])
    parser.add_argument("--distances", type=int, nargs="+", default=[*DISTANCES])
    parser.add_argument("--width", type=int, default=256, help="of the Transformer of cost")
    parser.add_argument("--recall-width", type=int, default=64, help="of the Transformer of recall")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median counts")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds that each model learns to recall")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args()


def one(family: str, width: int, length: int, repeats: int) -> dict[str, Any]:
    """The cost of a step at one length, in this process."""
    torch.manual_seed(1)
    model = model_of(family, width, length)
    batch = max(1, PIECES // length)
    ids = torch.randint(VOCABULARY, (batch, length + 1))

    def step() -> None:
        scores = model(ids[:, :-1])
        F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten()).backward()
        model.zero_grad()

    with torch.no_grad():
        model(ids[:1, :9])  # what is set up once is no part of a step
    before = _peak()
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(statistics.median(seconds[1:]), 4),
        "mebibytes": round((_peak() - before) / 2**20, 1),
        "sequences": batch,
    }


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _cost(arguments: argparse.Namespace) -> None:
    results = Results(arguments.out / "cost.json", {"width": arguments.width, "repeats": arguments.repeats})

    def apart(family: str, length: int) -> dict[str, Any]:
        command = [sys.executable, __file__, "one", "--families", family, "--lengths", str(length)]
        command += ["--width", str(arguments.width), "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{family} at {length} failed: {done.stderr.strip()[-300:]}")
        return json.loads(done.stdout)

    for length in arguments.lengths:
        for family in arguments.families:
            results.get(f"{family} {length}", lambda family=family, length=length: apart(family, length))
    rows: list[list[str]] = []
    for length in arguments.lengths:
        cells = [results.found[f"{family} {length}"] for family in arguments.families]
        rows.append(
            [f"{length:,}", *(f"{1000 * c['seconds']:.0f}" for c in cells), *(f"{c['mebibytes']:.0f}" for c in cells)]
        )
    kinds = [f"{family}, {unit}" for unit in ("ms", "MiB") for family in arguments.families]
    print(table(["length", *kinds], rows))
    for family in arguments.families[1:]:
        pairs = [
            (
                length,
                results.found[f"{family} {length}"]["seconds"]
                / results.found[f"{arguments.families[0]} {length}"]["seconds"],
            )
            for length in arguments.lengths
        ]
        print(f"{family} takes as long as {arguments.families[0]}: {crossing(pairs)}")


def crossing(ratios: Sequence[tuple[int, float]]) -> str:
    """Where a ratio passes 1, between the two lengths beside it, on a logarithmic scale of both.

    >>> crossing([(64, 0.5), (256, 2.0)]), crossing([(64, 2.0), (128, 4.0)])
    ('at a length of about 128', 'nowhere from 64 to 128: it takes 2.00 to 4.00 times as long')
    """
    for (a, x), (b, y) in pairwise(ratios):
        if (x - 1) * (y - 1) <= 0 and x != y:
            part = math.log(x) / (math.log(x) - math.log(y))
            return f"at a length of about {a * (b / a) ** part:.0f}"
    values = [ratio for _, ratio in ratios]
    span = f"{min(values):.2f} to {max(values):.2f}"
    return f"nowhere from {ratios[0][0]} to {ratios[-1][0]}: it takes {span} times as long"


@dataclass(frozen=True)
class Asked:
    """Sequences of which values are asked for."""

    ids: Tensor  # (B, L): pairs, others, keys
    values: Tensor  # (B, PAIRS), the value of each of the keys at the end


class Questions(Sequence[Asked]):
    """Batches of random sequences, by (seed, epoch, index) alone.

    Args:
        distance: pieces between the last pair and the first key that is asked for.
        batch: sequences.
        count: batches.
        seed: of all of them.
        epoch: of this one.
    """

    def __init__(self, distance: int, batch: int, count: int, *, seed: int, epoch: int = 0) -> None:
        self._distance, self._batch, self._count, self._seed = distance, batch, count, (seed, epoch)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Asked: ...
    @overload
    def __getitem__(self, index: slice) -> list[Asked]: ...
    def __getitem__(self, index: int | slice) -> Asked | list[Asked]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        draw = np.random.default_rng([*self._seed, index])
        B = self._batch
        keys = np.argsort(draw.random((B, KEYS)), 1)[:, :PAIRS]  # no key twice
        values = draw.integers(KEYS, 2 * KEYS, (B, PAIRS))
        others = draw.integers(2 * KEYS, VOCABULARY, (B, self._distance))
        order = np.argsort(draw.random((B, PAIRS)), 1)
        asked = np.take_along_axis(keys, order, 1)
        pairs = np.stack([keys, values], 2).reshape(B, -1)  # key, value, key, value …
        ids = np.concatenate([pairs, others, asked], 1)
        return Asked(torch.from_numpy(ids), torch.from_numpy(np.take_along_axis(values, order, 1)))


class RecallTask:
    """The task of `Trainer`: after each key at the end, its value.

    Args:
        model: ids (B, L) → scores (B, L, VOCABULARY).
        distance: see `Questions`.
        seed: of the sequences.
        batch: of sequences.
    """

    def __init__(self, model: Any, distance: int, seed: int, batch: int = 16) -> None:
        self.model, self._distance, self._seed, self._batch = model, distance, seed, batch

    def batches(self, epoch: int) -> Questions:
        """A thousand new batches."""
        return Questions(self._distance, self._batch, 1000, seed=self._seed, epoch=epoch)

    def step(self, batch: Asked) -> Tensor:
        """Mean cross-entropy of the values."""
        return F.cross_entropy(self._scores(batch).flatten(0, 1), batch.values.flatten())

    def tokens(self, batch: Asked) -> int:
        """Values."""
        return batch.values.numel()

    def validate(self) -> Mapping[str, float]:
        """The part of the values that are right, of 1,000 sequences that are never learnt from."""
        right = count = 0
        for batch in Questions(self._distance, 50, 20, seed=2**32 - 1):
            right += int((self._scores(batch).argmax(2) == batch.values).sum())
            count += batch.values.numel()
        return {"loss": 1 - right / count, "accuracy": right / count}

    def _scores(self, batch: Asked) -> Tensor:
        return self.model(batch.ids)[:, -PAIRS:]  # (B, PAIRS, VOCABULARY)


def _recall(arguments: argparse.Namespace) -> None:
    about = {"width": arguments.recall_width, "seconds": arguments.seconds}
    results = Results(arguments.out / "recall.json", about)

    def learnt(family: str, distance: int, seed: int) -> dict[str, Any]:
        longest = 3 * PAIRS + distance
        recipe = dataclasses.replace(RECIPES[family], seed=seed)
        fitted = fit(
            lambda: model_of(family, arguments.recall_width, longest),
            lambda model, recipe: RecallTask(model, distance, recipe.seed),
            recipe,
            seconds=arguments.seconds,
        )
        progress = fitted.progress
        return {
            "parameters": sum(p.numel() for p in fitted.model.parameters()),
            "accuracy": round(progress.scores["accuracy"], 4),
            "steps": progress.step,
            "cpu_seconds": round(progress.cpu_seconds, 1),
        }

    for distance in arguments.distances:
        for family in arguments.families:
            for seed in arguments.seeds:
                name = f"{family} {distance} {seed}"
                results.get(name, lambda f=family, d=distance, s=seed: learnt(f, d, s))
    rows: list[list[str]] = []
    for distance in arguments.distances:
        cells = [
            [results.found[f"{f} {distance} {s}"]["accuracy"] for s in arguments.seeds] for f in arguments.families
        ]
        rows.append([f"{distance:,}", *(" ".join(f"{100 * value:.1f}" for value in cell) for cell in cells)])
    print(table(["distance", *(f"{family}, %, a seed each" for family in arguments.families)], rows))


if __name__ == "__main__":
    sys.exit(main())
