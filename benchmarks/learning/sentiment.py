"""SST-2: a Transformer from scratch, an LSTM and a CNN in the same CPU time; and a sentence encoder, fine-tuned.

    python benchmarks/learning/sentiment.py --data DIR --out RUN                         from scratch, three seeds
    python benchmarks/learning/sentiment.py --data DIR --out RUN --model CHECKPOINT      and fine-tuned, three seeds

The 6,920 sentences of `train.tsv` are learnt from, the 872 of `dev.tsv` are measured on, all of them, with the weights
of the last step: nothing is chosen by them while a model learns. From scratch all have the same word pieces (learnt
from the training sentences), the same batches and, to 15 %, the same number of parameters, which the table states.
Every process has one thread, and the budget is the process's CPU time: how many steps fit into it is measured before
each run, with a model that is then thrown away. The fine-tuned model has no rival; it takes the steps of its recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, fit, one_thread, spread, table, wilson
from torch import nn

from regard.files import write_atomically
from regard.inputs.tokenizer import Tokenizer
from regard.inputs.tokenizer.learn import learn_word_pieces
from regard.models import Checkpoint, load
from regard.models.checkpoint import new_checkpoint
from regard.models.classifier import to_classifier
from regard.training.baselines import new_baseline
from regard.training.data import Ragged
from regard.training.run import changed
from regard.training.tasks.classify_text import ClassifyTextRecipe, ClassifyTextTask, Examples

LABELS = ("negative", "positive")
SIDES = ("transformer", "lstm", "cnn")
_SCRATCH = ClassifyTextRecipe(
    d_model=128, batch_pieces=1024, schedule="linear", final_fraction=0.0, vocab_size=8000, max_pieces=64
)
RECIPES = {
    "transformer": dataclasses.replace(
        _SCRATCH, layers=2, heads=4, feed_forward=256, dropout=0.3, peak_learning_rate=0.001
    ),
    "lstm": dataclasses.replace(_SCRATCH, family="lstm", layers=2, dropout=0.4, peak_learning_rate=0.002),
    "cnn": dataclasses.replace(_SCRATCH, family="cnn", dropout=0.5, peak_learning_rate=0.001),
}
TUNED = ClassifyTextRecipe(
    steps=450, batch_pieces=768, peak_learning_rate=1e-4, warmup=40, schedule="linear", final_fraction=0.0,
    betas=(0.9, 0.99), weight_decay=0.01, dropout=0.1, max_pieces=64,
)  # fmt: skip


def main() -> int:
    arguments = _arguments()
    one_thread()
    try:
        _compare(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; what it holds is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sides", nargs="*", default=[*SIDES], choices=SIDES)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds that each learns, from scratch")
    parser.add_argument("--model", type=Path, help="checkpoint of an encoder that is fine-tuned as well")
    for side in (*SIDES, "tuned"):
        parser.add_argument(f"--set-{side}", action="append", default=[], metavar="NAME=VALUE", help="of its recipe")
    return parser.parse_args()


def _compare(arguments: argparse.Namespace) -> None:
    texts = {name: read(arguments.data / f"{name}.tsv") for name in ("train", "dev")}
    recipes = {side: changed(RECIPES[side], getattr(arguments, f"set_{side}")) for side in SIDES}
    tuned = changed(TUNED, arguments.set_tuned)
    setting = {
        "sentences": {name: len(sentences) for name, (sentences, _) in texts.items()},
        "seconds": arguments.seconds,
        "recipes": {side: dataclasses.asdict(recipe) for side, recipe in recipes.items()},
        "tuned": dataclasses.asdict(tuned),
    }
    results = Results(arguments.out / "results.json", setting)
    tokenizer = _tokenizer(arguments.out / "tokenizer", texts["train"][0])

    def scratch(side: str, seed: int) -> dict[str, Any]:
        recipe = dataclasses.replace(recipes[side], seed=seed)
        make = lambda: _new(recipe, tokenizer)  # noqa: E731
        return _learnt(make, tokenizer, texts, recipe, arguments.seconds)

    def fine_tuned(seed: int) -> dict[str, Any]:
        found = load(arguments.model)
        if not isinstance(found, Checkpoint):
            raise ValueError(f"{arguments.model} is for {found.task}; it may be an encoder of text")
        make = lambda: to_classifier(found, LABELS).model  # noqa: E731
        return _learnt(make, found.tokenizer, texts, dataclasses.replace(tuned, seed=seed), None)

    for seed in arguments.seeds:
        for side in arguments.sides:
            results.get(f"{side} {seed}", lambda side=side, seed=seed: scratch(side, seed))
        if arguments.model is not None:
            results.get(f"fine-tuned {seed}", lambda seed=seed: fine_tuned(seed))
    sides = [*arguments.sides, *(["fine-tuned"] if arguments.model is not None else [])]
    print(report(results.found, sides, arguments.seeds, len(texts["dev"][0])))


def read(path: Path) -> tuple[list[str], list[int]]:
    """The sentences and classes of a file of SENTENCE<TAB>CLASS lines.

    Raises:
        ValueError: if a line is no such line; it names it.
    """
    sentences: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        sentence, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1") or not sentence.strip():
            raise ValueError(f"{path}, line {number}: it may be a sentence, a tab and 0 or 1")
        sentences.append(sentence)
        labels.append(int(label))
    return sentences, labels


def _tokenizer(directory: Path, sentences: list[str]) -> Tokenizer:
    """The word pieces of all that learn from scratch, learnt once."""
    if not directory.is_dir():
        directory.mkdir(parents=True)
        for name, content in learn_word_pieces(iter(sentences), _SCRATCH.vocab_size, lowercase=True).items():
            write_atomically(directory / name, content)
    return Tokenizer.from_directory(directory)


def _new(recipe: ClassifyTextRecipe, tokenizer: Tokenizer) -> nn.Module:
    if recipe.family == "transformer":
        return new_checkpoint("bert", recipe.bert(tokenizer.vocab_size, LABELS)).model
    return new_baseline(recipe.baseline(tokenizer.vocab_size, len(LABELS))).model


def _learnt(
    make: Callable[[], nn.Module],
    tokenizer: Tokenizer,
    texts: dict[str, tuple[list[str], list[int]]],
    recipe: ClassifyTextRecipe,
    seconds: float | None,
) -> dict[str, Any]:
    """Train, and measure on all sentences of dev."""
    parts = {name: _examples(tokenizer, *texts[name], recipe.max_pieces) for name in texts}
    everything = np.arange(len(parts["train"]))

    def task(model: nn.Module, recipe: ClassifyTextRecipe, measured: Examples | None = None) -> ClassifyTextTask:
        few = parts["dev"].take(np.arange(8)) if measured is None else measured
        return ClassifyTextTask(model, parts["train"], everything, few, recipe)

    fitted = fit(make, task, recipe, seconds=seconds)
    model, progress = fitted.model.eval(), fitted.progress
    with torch.no_grad():
        scores = task(model, recipe, parts["dev"]).validate()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "steps": progress.step,
        "epochs": round(progress.tokens / len(everything), 2),
        "right": round(scores["accuracy"] * len(parts["dev"])),
        **{name: round(score, 4) for name, score in scores.items()},
    }


def _examples(tokenizer: Tokenizer, sentences: list[str], labels: list[int], most: int) -> Examples:
    """Sentences as pieces, cut after so many, the special piece at the end kept."""
    rows = [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in tokenizer.encode_batch(sentences)]
    return Examples(Ragged.of(rows), np.array(labels))


def report(found: dict[str, dict[str, Any]], sides: list[str], seeds: list[int], sentences: int) -> str:
    """The table."""
    rows: list[list[str]] = []
    for side in sides:
        runs = [found[f"{side} {seed}"] for seed in seeds]
        low, high = wilson(sum(run["right"] for run in runs) / len(runs), sentences)
        rows.append(
            [
                side,
                f"{runs[0]['parameters']:,}",
                spread([run["cpu_seconds"] for run in runs], 0),
                spread([run["epochs"] for run in runs], 1),
                spread([100 * run["accuracy"] for run in runs], 1),
                f"{100 * low:.1f} … {100 * high:.1f}",
            ]
        )
    return table(["", "parameters", "CPU s", "epochs", "dev accuracy, %", "95 % interval"], rows)


if __name__ == "__main__":
    sys.exit(main())
