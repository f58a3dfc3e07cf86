"""SST-2: a Transformer from scratch, an LSTM and a CNN in the same CPU time; and a sentence encoder, fine-tuned.

    python benchmarks/learning/sentiment.py --data DIR --out RUN                         from scratch, three seeds
    python benchmarks/learning/sentiment.py --data DIR --out RUN --model CHECKPOINT      and fine-tuned, three seeds
    python benchmarks/learning/sentiment.py --data DIR --out RUN --search                the tuning that comes before it
    python benchmarks/learning/sentiment.py --data DIR --out RUN --embed                 the Transformer, to the package

The 6,920 sentences of `train.tsv` are learnt from, the 872 of `dev.tsv` are measured on, all of them, with the weights
of the last step: nothing is chosen by them while a model learns. From scratch all have the same word pieces (learnt
from the training sentences), the same batches and, to 15 %, the same number of parameters, which the table states.
Every process has one thread, and the budget is the process's CPU time: how many steps fit into it is measured before
each run, with a model that is then thrown away. The fine-tuned model has no rival; it takes the steps of its recipe,
and reads the sentences as people write them, since it has learnt from such: `as_written`.
--search tries as many settings for each, on nine tenths of the training sentences, measured on the rest of them.
--embed trains the Transformer of the first seed once more, for as many steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, fit, on_one_thread, spread, table, wilson
from embedding import embed
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

TRIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "transformer": (
        ("peak_learning_rate=0.001", "dropout=0.3"),
        ("peak_learning_rate=0.002", "dropout=0.3"),
        ("peak_learning_rate=0.0005", "dropout=0.3"),
        ("peak_learning_rate=0.001", "dropout=0.5"),
    ),
    "lstm": (
        ("peak_learning_rate=0.002", "dropout=0.4"),
        ("peak_learning_rate=0.005", "dropout=0.4"),
        ("peak_learning_rate=0.001", "dropout=0.4"),
        ("peak_learning_rate=0.002", "dropout=0.6"),
    ),
    "cnn": (
        ("peak_learning_rate=0.001", "dropout=0.5"),
        ("peak_learning_rate=0.002", "dropout=0.5"),
        ("peak_learning_rate=0.0005", "dropout=0.5"),
        ("peak_learning_rate=0.001", "dropout=0.7"),
    ),
    "tuned": (("peak_learning_rate=1e-4",), ("peak_learning_rate=2e-4",), ("peak_learning_rate=5e-5",)),
}
"""What is tried with the budget of a run, equally many for the three that learn from scratch."""


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: _search(arguments) if arguments.search else _compare(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; what it holds is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sides", nargs="*", default=[*SIDES], choices=SIDES)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds that each learns, from scratch")
    parser.add_argument("--search", action="store_true", help="the tuning instead")
    parser.add_argument("--embed", nargs="?", type=Path, const=True, help="write the model into the package, or to DIR")
    parser.add_argument("--model", type=Path, help="checkpoint of an encoder that is fine-tuned as well")
    for side in (*SIDES, "tuned"):
        parser.add_argument(f"--set-{side}", action="append", default=[], metavar="NAME=VALUE", help="of its recipe")
    return parser.parse_args()


def _compare(arguments: argparse.Namespace) -> None:
    texts = {name: read(arguments.data / f"{name}.tsv") for name in ("train", "dev")}
    recipes = {side: changed(RECIPES[side], getattr(arguments, f"set_{side}")) for side in SIDES}
    tuned = changed(TUNED, arguments.set_tuned)
    sentences = {name: len(of_part) for name, (of_part, _) in texts.items()}
    settings = {side: dataclasses.asdict(recipe) for side, recipe in recipes.items()}
    setting = {"sentences": sentences, "seconds": arguments.seconds, "recipes": settings}
    results = Results(arguments.out / "results.json", setting)
    tokenizer = _tokenizer(arguments.out / "tokenizer", texts["train"][0])

    def scratch(side: str, seed: int) -> dict[str, Any]:
        recipe = dataclasses.replace(recipes[side], seed=seed)
        make = lambda: _new(recipe, tokenizer)  # noqa: E731
        return _learnt(make, tokenizer, texts, recipe, arguments.seconds)

    def fine_tuned(seed: int) -> dict[str, Any]:
        return _fine_tuned(arguments.model, texts, dataclasses.replace(tuned, seed=seed))

    if arguments.embed:
        found = results.found.get(f"transformer {arguments.seeds[0]}")
        if found is None:
            raise ValueError(f"{arguments.out} has no result of the Transformer yet: measure it first")
        recipe = dataclasses.replace(recipes["transformer"], seed=arguments.seeds[0], steps=found["steps"])
        print(_embed(recipe, arguments.out / "tokenizer", texts, None if arguments.embed is True else arguments.embed))
        return
    for seed in arguments.seeds:
        for side in arguments.sides:
            results.get(f"{side} {seed}", lambda side=side, seed=seed: scratch(side, seed))
    if arguments.sides:
        print(report(results.found, arguments.sides, arguments.seeds, sentences["dev"]))
    if arguments.model is not None:
        setting = {"sentences": sentences, "recipe": dataclasses.asdict(tuned)}
        results = Results(arguments.out / "fine-tuned.json", setting)
        for seed in arguments.seeds:
            results.get(f"fine-tuned {seed}", lambda seed=seed: fine_tuned(seed))
        print(report(results.found, ["fine-tuned"], arguments.seeds, sentences["dev"]))


def _fine_tuned(
    model: Path, texts: dict[str, tuple[list[str], list[int]]], recipe: ClassifyTextRecipe
) -> dict[str, Any]:
    found = load(model)
    if not isinstance(found, Checkpoint):
        raise ValueError(f"{model} is for {found.task}; it may be an encoder of text")
    written = {name: ([as_written(one) for one in sentences], labels) for name, (sentences, labels) in texts.items()}
    return _learnt(lambda: to_classifier(found, LABELS).model, found.tokenizer, written, recipe, None)


def _search(arguments: argparse.Namespace) -> None:
    """Every try learns from nine tenths of the training sentences and is measured on the rest; dev is not looked at."""
    sentences, labels = read(arguments.data / "train.tsv")
    order = np.random.default_rng(0).permutation(len(sentences)).tolist()
    parts = {"dev": order[: len(order) // 10], "train": order[len(order) // 10 :]}
    texts = {name: ([sentences[i] for i in part], [labels[i] for i in part]) for name, part in parts.items()}
    results = Results(arguments.out / "search.json", {"sentences": len(sentences), "seconds": arguments.seconds})
    tokenizer = _tokenizer(arguments.out / "tokenizer", texts["train"][0])

    def tried(side: str, settings: list[str]) -> dict[str, Any]:
        recipe = changed(TUNED if side == "tuned" else RECIPES[side], settings)
        if side == "tuned":
            return _fine_tuned(arguments.model, texts, recipe)
        return _learnt(lambda: _new(recipe, tokenizer), tokenizer, texts, recipe, arguments.seconds)

    for side in [*arguments.sides, *(["tuned"] if arguments.model is not None else [])]:
        for settings in TRIED[side]:
            more = [*settings, *getattr(arguments, f"set_{side}")]
            results.get(f"{side} {' '.join(more)}", lambda side=side, more=more: tried(side, more))
    rows = [
        [name, str(f["steps"]), f"{100 * f['accuracy']:.1f}", f"{f['loss']:.3f}"] for name, f in results.found.items()
    ]
    print(table(["", "steps", "accuracy of the held-out tenth, %", "loss"], rows))


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


def as_written(sentence: str) -> str:
    """A sentence of the files as people write it, which is what an encoder that is fine-tuned has learnt from.

    The files have the Penn Treebank's words: "does n't", "it 's", "lrb" for a bracket, `` and '' for quotation marks.
    """
    joined = re.sub(r" (n't|'(?:s|re|ve|ll|d|m))\b", r"\1", sentence)
    for theirs, ours in (("``", '"'), ("''", '"'), ("`", "'")):
        joined = joined.replace(theirs, ours)
    return re.sub(r"\b[lr]rb\b", lambda found: "()"[found[0] == "rrb"], joined)


def _tokenizer(directory: Path, sentences: list[str]) -> Tokenizer:
    """The word pieces of all that learn from scratch, learnt once."""
    if not directory.is_dir():
        directory.mkdir(parents=True)
        for name, content in learn_word_pieces(lambda: sentences, _SCRATCH.vocab_size, lowercase=True).items():
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
    return _trained(make, tokenizer, texts, recipe, seconds)[1]


def _trained(
    make: Callable[[], nn.Module],
    tokenizer: Tokenizer,
    texts: dict[str, tuple[list[str], list[int]]],
    recipe: ClassifyTextRecipe,
    seconds: float | None,
    *,
    half: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and what is measured of it; with `half` after its weights were rounded to float16."""
    parts = {name: _examples(tokenizer, *texts[name], recipe.max_pieces) for name in texts}
    everything = np.arange(len(parts["train"]))

    def task(model: nn.Module, recipe: ClassifyTextRecipe, measured: Examples | None = None) -> ClassifyTextTask:
        few = parts["dev"].take(np.arange(8)) if measured is None else measured
        return ClassifyTextTask(model, parts["train"], everything, few, recipe)

    fitted = fit(make, task, recipe, seconds=seconds)
    model, progress = fitted.model.eval(), fitted.progress
    with torch.no_grad():
        for tensor in model.state_dict().values() if half else ():
            tensor.copy_(tensor.to(torch.float16) if tensor.is_floating_point() else tensor)
        scores = task(model, recipe, parts["dev"]).validate()
    return model, {
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "steps": progress.step,
        "epochs": round(progress.tokens / len(everything), 2),
        "right": round(scores["accuracy"] * len(parts["dev"])),
        **{name: round(score, 4) for name, score in scores.items()},
    }


def _embed(
    recipe: ClassifyTextRecipe,
    pieces: Path,
    texts: dict[str, tuple[list[str], list[int]]],
    place: Path | None,
) -> Path:
    """Train the Transformer, and write it as an embedded model, with the tokenizer of a directory."""
    files = {path.name: path.read_bytes() for path in sorted(pieces.iterdir())}
    tokenizer = Tokenizer.from_directory(pieces)
    checkpoint = new_checkpoint("bert", recipe.bert(tokenizer.vocab_size, LABELS), files=files)
    model, found = _trained(lambda: _new(recipe, tokenizer), tokenizer, texts, recipe, None, half=True)
    checkpoint.model.load_state_dict(model.state_dict())
    sentences = {name: len(of_part) for name, (of_part, _) in texts.items()}
    low, high = wilson(found["right"], sentences["dev"])
    about = {
        "task": "classification of texts",
        "description": DESCRIPTION,
        "limits": LIMITS,
        "scores": {"SST-2 dev, accuracy": found["accuracy"]},
        "licence": LICENCE_NAME,
    }
    card = CARD.format(
        description=DESCRIPTION, limits=LIMITS, licence=LICENCE_NAME, low=100 * low, high=100 * high,
        accuracy=100 * found["accuracy"], **sentences, **{n: found[n] for n in ("parameters", "steps", "cpu_seconds")},
    )  # fmt: skip
    return embed(checkpoint, "film-reviews", about, card=card, licence=LICENCE, place=place)


DESCRIPTION = "Whether a sentence of a film review, in English, is for the film or against it: positive or negative."
LIMITS = (
    "It learnt from 6,920 sentences about films alone: irony, other subjects and other languages are beyond it, and it"
    " has no answer for what is neither."
)
LICENCE_NAME = "none is stated for its training data (SST-2, Socher et al. 2013): for research; cite the paper"
LICENCE = """\
Licence of the weights in this directory
========================================

The weights in this directory were trained on SST-2 (Socher et al., "Recursive Deep Models for Semantic Compositionality
Over a Sentiment Treebank", 2013), in the form of https://github.com/clairett/pytorch-sentiment-classification. Neither
states a licence; its sentences are from film reviews, which belong to their writers. No licence beyond what the data
permit can therefore be given for these weights: use them for research, and cite the paper. The program around them is
under the Apache License 2.0.
"""
CARD = """\
# film-reviews

{description}

- **Trained on** the {train:,} whole sentences of SST-2, from scratch.
- **Licence of the weights**: {licence}; see LICENSE in this directory.
- **Size** {parameters:,} parameters in float16; a BERT of two layers, its word pieces learnt from the same sentences.
- **Training** {steps:,} steps, {cpu_seconds:.0f} CPU seconds on one core.
- **Accuracy** {accuracy:.1f} % of the {dev:,} sentences of dev (95 % interval {low:.1f} to {high:.1f}), in float16. A
  large model that learnt from much more text gets 96.4 % (RoBERTa, arXiv 1907.11692): this one is small enough to be
  looked into.
- **Limits** {limits}

Made by `python benchmarks/learning/sentiment.py`, then `--embed`.
"""


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
