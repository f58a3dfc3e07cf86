"""Tiny Shakespeare, character by character: nanoGPT's setting for a CPU, ours and an LSTM, in the same CPU time.

    python benchmarks/learning/tiny_shakespeare.py --data DIR --out RUN            the comparison, three seeds
    python benchmarks/learning/tiny_shakespeare.py --data DIR --out RUN --search   the tuning that came before it
    python benchmarks/learning/tiny_shakespeare.py --data DIR --out RUN --large    the larger run; again to resume
    python benchmarks/learning/tiny_shakespeare.py --data DIR --out RUN --embed    its model, into the package

The rival (nanogpt.py) is trained as published, 2000 steps, unchanged; the CPU seconds of its steps are the budget of
the others. How many steps of theirs fit into it is measured before each run, with a model that is then thrown away,
and the schedule ends with the last of them. All have the same number of parameters, to 1.5 %. Every process has one
thread, and time is the process's CPU time, without validation. The first 90 % of the characters are learnt from, the
rest is validated on, all of it, three ways: in windows of 64 that do not overlap; in windows of each model's own
context that do not overlap; and so that every character but the first few has half a context or more before it (an
LSTM: all of it).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanogpt
import numpy as np
import torch
from characters import CharacterConfig, CharacterDecoder
from common import Results, fit, on_one_thread, spread, table
from embedding import embed
from torch import Tensor, nn
from torch.nn import functional as F

from regard.models import Checkpoint, load
from regard.training.baselines import RecurrentLanguageModel
from regard.training.run import Run, changed, recorded
from regard.training.tasks.language_model import LanguageModelRecipe, LanguageModelTask, train_language_model
from regard.training.tokens import read_ids

WINDOW = 64  # the rival's context, in which all are validated
SIDES = ("nanogpt", "regard", "lstm")


@dataclass(frozen=True, kw_only=True)
class CharacterRecipe(LanguageModelRecipe):
    """How ours is trained."""

    silence: float = 0.3  # see `CharacterConfig`


OURS = CharacterRecipe(
    context=128, batch_size=16, optimiser="muon", peak_learning_rate=0.01, schedule="linear", final_fraction=0.0,
    betas=(0.9, 0.99), weight_decay=0.1,
)  # fmt: skip
LSTM = LanguageModelRecipe(
    family="lstm", d_model=312, layers=1, context=128, batch_size=16, peak_learning_rate=0.005, schedule="linear",
    final_fraction=0.0, betas=(0.9, 0.99), weight_decay=0.1,
)  # fmt: skip
LARGE = LanguageModelRecipe(
    size="small", tokens="characters", context=256, batch_size=16, steps=4400, optimiser="muon",
    peak_learning_rate=0.004, schedule="linear", final_fraction=0.0, warmup=150, dropout=0.15, ema=0.995,
    weight_decay=0.1, validate_every=200, checkpoint_every=50, watch_every=200,
)  # fmt: skip
TRIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "regard": (
        ("optimiser=muon", "peak_learning_rate=0.01"),
        ("optimiser=muon", "peak_learning_rate=0.005"),
        ("optimiser=adamw", "peak_learning_rate=0.005"),
        ("optimiser=adamw", "peak_learning_rate=0.01"),
        ("optimiser=muon", "peak_learning_rate=0.01", "silence=0.5"),
        ("optimiser=muon", "peak_learning_rate=0.01", "silence=0.0"),
    ),
    "lstm": (
        ("peak_learning_rate=0.005",),
        ("peak_learning_rate=0.01",),
        ("peak_learning_rate=0.002",),
        ("peak_learning_rate=0.005", "batch_size=32"),
        ("peak_learning_rate=0.005", "context=64"),
        ("peak_learning_rate=0.005", "layers=2", "d_model=222"),
    ),
}
"""What is tried with a third of the budget, equally many on both sides; the rival stays as it was published."""
Score = Callable[[Tensor], Tensor]
"""Ids (B, T) → scores (B, T, V)."""


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> None:
    if arguments.embed:
        print(_embed(arguments))
        return
    text = (arguments.data / "input.txt").read_text(encoding="utf-8")[: arguments.characters]
    if arguments.large:
        _large(text, arguments)
    elif arguments.search:
        _search(text, arguments)
    else:
        _compare(text, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with input.txt")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; what it holds is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sides", nargs="+", default=[*SIDES], choices=SIDES)
    parser.add_argument("--rival-steps", type=int, default=nanogpt.Setting.steps, help="fewer make a trial run")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of our recipe")
    parser.add_argument("--set-lstm", action="append", default=[], metavar="NAME=VALUE", help="of the LSTM's")
    parser.add_argument("--set-large", action="append", default=[], metavar="NAME=VALUE", help="of the larger run's")
    parser.add_argument("--characters", type=int, help="use only the first so many: a trial run")
    parser.add_argument("--large", action="store_true", help="the larger run instead, begun or resumed")
    parser.add_argument("--embed", nargs="?", type=Path, const=True, help="write the model into the package, or to DIR")
    parser.add_argument("--search", action="store_true", help="the tuning of ours and of the LSTM instead")
    parser.add_argument("--search-seconds", type=float, default=50.0, help="CPU seconds a try")
    return parser.parse_args()


def _search(text: str, arguments: argparse.Namespace) -> None:
    """Every try learns from the first 90 % of the training text and is measured on the rest of it."""
    ids, names = encoded(text)
    ids = ids[: int(0.9 * len(ids))]
    cut = int(0.9 * len(ids))
    setting = {"characters": len(ids), "seconds": arguments.search_seconds}
    results = Results(arguments.out / "search.json", setting)
    for side, extra in (("regard", arguments.set), ("lstm", arguments.set_lstm)):
        for tried in TRIED[side]:
            recipe = changed({"regard": OURS, "lstm": LSTM}[side], [*tried, *extra])
            make = _makers(len(names), {side: recipe})[side]
            name = f"{side} {' '.join([*tried, *extra])}"
            results.get(
                name, lambda make=make, r=recipe: learnt(make, ids[:cut], ids[cut:], r, arguments.search_seconds)
            )
    rows = [[name, str(found["steps"]), f"{found['own windows']:.3f}"] for name, found in results.found.items()]
    print(table(["", "steps", "loss of the held-out part of the training text"], rows))


def _compare(text: str, arguments: argparse.Namespace) -> None:
    ids, names = encoded(text)
    cut = int(0.9 * len(ids))
    train, held_out = ids[:cut], ids[cut:]
    setting = nanogpt.Setting(steps=arguments.rival_steps)
    recipes = {"regard": changed(OURS, arguments.set), "lstm": changed(LSTM, arguments.set_lstm)}
    described = {side: dataclasses.asdict(recipe) for side, recipe in recipes.items()}
    about = {"characters": len(ids), "rival": dataclasses.asdict(setting)}
    results = Results(arguments.out / "results.json", {**about, **described})

    def rival(seed: int) -> dict[str, Any]:
        model, seconds = nanogpt.train(train, len(names), seed, setting)
        seen = setting.steps * setting.batch_size * setting.context
        return measured(model, model, seconds, seen, setting.steps, held_out, setting.context)

    def ours(side: str, seed: int, seconds: float) -> dict[str, Any]:
        make = _makers(len(names), recipes)[side]
        return learnt(make, train, held_out, dataclasses.replace(recipes[side], seed=seed), seconds)

    for seed in arguments.seeds:
        budget = results.get(f"nanogpt {seed}", lambda seed=seed: rival(seed))["cpu_seconds"]
        for side in arguments.sides:
            if side != "nanogpt":
                results.get(f"{side} {seed}", lambda side=side, seed=seed, budget=budget: ours(side, seed, budget))
    print(report(results.found, arguments.sides, arguments.seeds))


def _makers(vocab_size: int, recipes: Mapping[str, Any]) -> dict[str, Callable[[], nn.Module]]:
    """What makes a new model of each side."""

    def ours() -> nn.Module:
        recipe = recipes["regard"]
        config = CharacterConfig(vocab_size, max_positions=max(recipe.context, WINDOW), silence=recipe.silence)
        return CharacterDecoder(config)

    return {"regard": ours, "lstm": lambda: RecurrentLanguageModel(recipes["lstm"].recurrent(vocab_size))}


def encoded(text: str) -> tuple[np.ndarray, list[str]]:
    """A text as ids (n,) uint16, and the characters in the order of their ids; nanoGPT's, which is that of Unicode."""
    names = sorted(set(text))
    places = {name: i for i, name in enumerate(names)}
    return np.array([places[character] for character in text], dtype=np.uint16), names


def learnt(
    make: Callable[[], nn.Module], train: np.ndarray, held_out: np.ndarray, recipe: LanguageModelRecipe, seconds: float
) -> dict[str, Any]:
    """Train for so many CPU seconds; what `measured` says."""

    def task(model: nn.Module, recipe: LanguageModelRecipe) -> LanguageModelTask:
        few = held_out[: recipe.context + 1]  # all of it is measured below
        return LanguageModelTask(model, train, few, recipe)

    fitted = fit(make, task, recipe, seconds=seconds)
    model, progress = fitted.model, fitted.progress
    found = measured(model, model, progress.cpu_seconds, progress.tokens, progress.step, held_out, recipe.context)
    if isinstance(model, RecurrentLanguageModel):
        found["sliding"] = round(carried(model, held_out), 4)
    return found


@torch.no_grad()
def measured(
    model: nn.Module, score: Score, seconds: float, seen: int, steps: int, held_out: np.ndarray, context: int
) -> dict[str, Any]:
    """Everything that the table says of a model."""
    model.eval()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(seconds, 1),
        "steps": steps,
        "characters_seen": seen,
        "context": context,
        "windows of 64": round(window_loss(score, held_out, WINDOW, WINDOW), 4),
        "own windows": round(window_loss(score, held_out, context, context), 4),
        "sliding": round(window_loss(score, held_out, context, context // 2), 4),
    }


@torch.no_grad()
def window_loss(score: Score, ids: np.ndarray, context: int, stride: int, *, batch: int = 32) -> float:
    """Mean cross-entropy of every id but the first, in nats, in windows that begin `stride` apart.

    The first window counts whole, of the others the last `stride` ids that no earlier one counted; with stride =
    context windows do not overlap.
    """
    text = torch.from_numpy(ids.astype(np.int64))
    last = len(text) - 1
    total = 0.0

    def add(starts: list[int], length: int, counted: int) -> None:
        nonlocal total
        rows = text[torch.tensor(starts)[:, None] + torch.arange(length + 1)]
        scores = score(rows[:, :-1])[:, length - counted :]
        total += F.cross_entropy(
            scores.flatten(0, 1), rows[:, length - counted + 1 :].flatten(), reduction="sum"
        ).item()

    if last <= context:
        add([0], last, last)
        return total / last
    add([0], context, context)
    starts = [*range(stride, last - context + 1, stride)]
    for first in range(0, len(starts), batch):
        add(starts[first : first + batch], context, stride)
    reached = (starts[-1] if starts else 0) + context
    if reached < last:
        begin = reached + stride - context
        add([begin], last - begin, last - reached)
    return total / last


@torch.no_grad()
def carried(model: RecurrentLanguageModel, ids: np.ndarray, piece: int = 2000) -> float:
    """The same of an LSTM that reads the text from beginning to end, its state handed on."""
    text, states, total = torch.from_numpy(ids.astype(np.int64))[None], None, 0.0
    for first in range(0, len(ids) - 1, piece):
        part = text[:, first : first + piece + 1]
        hidden, states = model.read(part[:, :-1], states)
        total += F.cross_entropy(model.logits(hidden)[0], part[0, 1:], reduction="sum").item()
    return total / (len(ids) - 1)


def report(found: dict[str, dict[str, Any]], sides: list[str], seeds: list[int]) -> str:
    """The table."""
    rows: list[list[str]] = []
    for side in sides:
        runs = [found[f"{side} {seed}"] for seed in seeds if f"{side} {seed}" in found]
        first = runs[0]
        rows.append(
            [
                side,
                f"{first['parameters']:,}",
                spread([run["cpu_seconds"] for run in runs], 0),
                spread([run["characters_seen"] / 1e6 for run in runs], 2),
                str(first["context"]),
                *(spread([run[kind] for run in runs]) for kind in ("windows of 64", "own windows", "sliding")),
            ]
        )
    head = ["", "parameters", "CPU s", "characters seen, M", "context", "windows of 64", "own windows", "sliding"]
    return table(head, rows)


def _large(text: str, arguments: argparse.Namespace) -> None:
    """Begin or resume the larger run, and measure what it has come to."""
    recipe = changed(LARGE, arguments.set_large)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cut = int(0.9 * len(text))
    files = [arguments.out / "train.txt", arguments.out / "validation.txt"]
    for file, part in zip(files, (text[:cut], text[cut:]), strict=True):
        file.write_text(part, encoding="utf-8")
    run = Run(arguments.out / "run", resume=True, progress=sys.stderr.isatty())
    trained = train_language_model(files[:1], recipe, run, validation=files[1:])
    progress = trained.outcome.progress
    print(f"step {progress.step:,} of {recipe.steps:,}, {progress.cpu_seconds / 3600:.2f} CPU hours, {trained.scores}")
    if trained.outcome.finished:
        ids = np.asarray(read_ids(arguments.out / "run" / "data" / "validation.bin"))
        sliding = window_loss(trained.model, ids, recipe.context, recipe.context // 2, batch=8)
        print(f"{trained.directory}: own windows {trained.scores['loss']:.4f}, sliding {sliding:.4f}")


def _embed(arguments: argparse.Namespace) -> Path:
    """Write what the larger run kept as an embedded model, measured with the weights that are in the file."""
    run = arguments.out / "run"
    checkpoint = load(run / "model")
    recipe = recorded(LanguageModelRecipe, run)
    if not isinstance(checkpoint, Checkpoint) or recipe is None:
        raise ValueError(f"{arguments.out} holds no larger run that is done")
    model = checkpoint.model.eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.to(torch.float16))
    ids = np.asarray(read_ids(run / "data" / "validation.bin"))
    context = recipe.context
    losses = (
        window_loss(model, ids, context, context, batch=8),
        window_loss(model, ids, context, context // 2, batch=8),
    )
    seconds, step = _effort(run)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = CARD.format(
        description=DESCRIPTION, limits=LIMITS, licence=LICENCE_NAME, parameters=parameters, context=context,
        steps=step, losses=losses, hours=seconds / 3600, batch=recipe.batch_size,
    )  # fmt: skip
    about = {
        "task": "language model",
        "description": DESCRIPTION,
        "limits": LIMITS,
        "scores": {f"validation, nats a character, windows of {context}": round(losses[0], 3)},
        "licence": LICENCE_NAME,
    }
    target = None if arguments.embed is True else arguments.embed
    return embed(checkpoint, "shakespeare", about, card=card, licence=LICENCE, place=target)


def _effort(run: Path) -> tuple[float, int]:
    """CPU seconds and steps of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [record for record in records if "cpu_seconds" in record][-1]
    return last["cpu_seconds"], last["step"]


DESCRIPTION = "Goes on from a few words in the manner of Shakespeare's plays, character by character."
LIMITS = "It has read a megabyte of plays and nothing else: it knows their sound and spelling, and no facts."
LICENCE_NAME = "CC0 1.0: its training data, plays of Shakespeare, are in the public domain"
LICENCE = """\
Licence of the weights in this directory
========================================

The weights in this directory were trained on plays of William Shakespeare, which are in the public domain (the text as
put together in https://github.com/karpathy/char-rnn). To the extent possible under law, whoever made the weights waives
all rights to them (CC0 1.0). The program around them is under the Apache License 2.0.
"""
CARD = """\
# shakespeare

{description}

- **Trained on** Tiny Shakespeare, the first 90 % of 1,115,394 characters.
- **Licence of the weights**: {licence}; see LICENSE in this directory.
- **Size** {parameters:,} parameters in float16; a Llama whose pieces are the 65 characters of its text.
- **Training** {steps:,} steps of {batch} windows of {context} characters, {hours:.2f} CPU hours on one core.
- **Loss** on the last 10 % of the text, all of it, in nats a character, in float16: {losses[0]:.3f} in windows of
  {context} that do not overlap, {losses[1]:.3f} where every character has half a window or more before it.
- **Limits** {limits}

Made by `python benchmarks/learning/tiny_shakespeare.py --large`, then `--embed`.
"""


if __name__ == "__main__":
    sys.exit(main())
