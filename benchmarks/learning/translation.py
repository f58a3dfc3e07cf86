"""Multi30k, English to German: the translator of the package against an LSTM with attention, in the same CPU time.

    python benchmarks/learning/translation.py --data DIR --out RUN [--seconds 3600]        again to resume

Both learn from the same pairs, in the same pieces, batches and losses, with the recipe of train_translator.py (R-Drop
from an epoch on, which passes every batch twice), have the same number of parameters to 2 %, and the same CPU
time on one thread: how many steps fit into it is measured first, on a model that is thrown away. Learning rate and
dropout of the LSTM are its own. For both, checkpoints are averaged and the length penalty of a beam of 5 is chosen by
BLEU on val; test_2016_flickr is then translated once, all 1,000 sentences, with an interval from 1,000 resamplings of
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import Results, StoppedError, on_one_thread, table

sys.path.append(str(Path(__file__).resolve().parents[1]))

from train_translator import RECIPE, held_out_text, training_text

from regard.training.data import ParallelText
from regard.training.finish import Choices, HeldOut, choose, decode
from regard.training.run import changed
from regard.training.tasks.translate import TrainedTranslator, train_translator
from regard.training.tasks.translation_recipe import TranslationRecipe

SIDES = ("transformer", "lstm")
RECIPES = {
    "transformer": RECIPE,
    "lstm": dataclasses.replace(
        RECIPE, family="lstm", d_model=162, encoder_layers=2, decoder_layers=2, feed_forward=256, dropout=0.3,
        peak_learning_rate=0.003,
    ),
}  # fmt: skip


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: _compare(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of Multi30k, with raw/ and tok/")
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs; what it holds is kept")
    parser.add_argument("--seconds", type=float, default=3600.0, help="CPU seconds that each side learns")
    parser.add_argument("--sides", nargs="+", default=[*SIDES], choices=SIDES)
    parser.add_argument("--pairs", type=int, help="use only the first so many training pairs: a trial run")
    parser.add_argument("--test-pairs", type=int, help="use only the first so many pairs of val and test: a trial run")
    for side in SIDES:
        parser.add_argument(f"--set-{side}", action="append", default=[], metavar="NAME=VALUE", help="of its recipe")
    return parser.parse_args()


def _compare(arguments: argparse.Namespace) -> None:
    text = training_text(arguments.data, tokenised=False)
    train = ParallelText(text.source[: arguments.pairs], text.target[: arguments.pairs], text.skipped)
    parts = {
        name: held_out_text(arguments.data, name, arguments.test_pairs, tokenised=False)
        for name in ("val", "test_2016_flickr")
    }
    recipes = {side: changed(RECIPES[side], getattr(arguments, f"set_{side}")) for side in SIDES}
    setting = {"pairs": len(train.source), "seconds": arguments.seconds}
    setting |= {side: dataclasses.asdict(recipe) for side, recipe in recipes.items()}
    results = Results(arguments.out / "results.json", setting)

    def measure(side: str) -> dict[str, Any]:
        validation = ParallelText(parts["val"].source, parts["val"].reference, 0)
        recipe = dataclasses.replace(recipes[side], steps=_steps(side, train, validation, recipes[side], arguments))
        trained = train_translator(
            train, validation, recipe, out=arguments.out / side, resume=True, progress=sys.stderr.isatty()
        )
        if not trained.outcome.finished:
            raise StoppedError(f"{side} was stopped at step {trained.outcome.progress.step}; the same command goes on")
        return _measured(trained, recipe, parts)

    for side in arguments.sides:
        results.get(side, lambda side=side: measure(side))
    print(report(results.found, arguments.sides))


def _steps(
    side: str, train: ParallelText, validation: ParallelText, recipe: TranslationRecipe, arguments: argparse.Namespace
) -> int:
    """How many steps fit into the time, measured once and then kept in a file."""
    path: Path = arguments.out / f"{side}.steps.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    epoch, single = _rehearsed(train, validation, dataclasses.replace(recipe, r_drop=0.0))
    steps = int(arguments.seconds / single)
    if recipe.r_drop:
        first = epoch * recipe.r_drop_epoch  # steps of one pass
        _, double = _rehearsed(train, validation, dataclasses.replace(recipe, r_drop_epoch=0))
        if steps > first:
            steps = first + int((arguments.seconds - first * single) / double)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = max(steps, recipe.warmup + 1)
    path.write_text(json.dumps({"steps": steps, "seconds a step": single, "steps an epoch": epoch}))
    return steps


def _rehearsed(train: ParallelText, validation: ParallelText, recipe: TranslationRecipe) -> tuple[int, float]:
    """Steps an epoch, and CPU seconds of one; the first two do not count."""
    few = ParallelText(validation.source[:2], validation.target[:2], 0)
    trial = dataclasses.replace(recipe, steps=14, warmup=1, validate_every=14, checkpoint_every=14)
    with tempfile.TemporaryDirectory() as scratch:
        trained = train_translator(train, few, trial, out=Path(scratch), progress=False)
        lines = (Path(scratch) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        clock = [record["cpu_seconds"] for record in map(json.loads, lines) if "loss" in record]
        batches = len(trained.trainer.task.batches(0))
    return -(-batches // recipe.shards), (clock[-1] - clock[1]) / (len(clock) - 2)


def _measured(trained: TrainedTranslator, recipe: TranslationRecipe, parts: dict[str, HeldOut]) -> dict[str, Any]:
    """BLEU on both sets, decoding chosen on val."""
    finished = choose(trained.model, trained.tokenizer, trained.trainer.checkpoints, parts["val"], Choices())
    test = parts["test_2016_flickr"]
    written = decode(trained.model, trained.tokenizer, test.source, finished.decoding)
    scores = test.evaluate(written)
    assert test.tokenised is not None
    low, high = resampled(written, test.tokenised)
    progress = trained.outcome.progress
    return {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "steps": progress.step,
        "decoding": dataclasses.asdict(finished.decoding),
        "averaged": finished.averaged,
        "val": {kind: round(bleu.score, 2) for kind, bleu in finished.validation.items()},
        "test": {kind: round(bleu.score, 2) for kind, bleu in scores.items()},
        "interval": [round(low, 2), round(high, 2)],
        "signatures": {kind: bleu.signature for kind, bleu in scores.items()},
    }


def resampled(written: list[str], references: list[str], *, times: int = 1000, seed: int = 1) -> tuple[float, float]:
    """The 95 % interval of lc-tok BLEU, from resampling the sentences with replacement."""
    from sacremoses import MosesTokenizer

    moses: Any = MosesTokenizer("de")
    tokenised = [str(moses.tokenize(line.lower(), return_str=True)) for line in written]
    counts = np.array([_counts(*pair) for pair in zip(tokenised, references, strict=True)])  # (n, 10)
    draw = np.random.default_rng(seed)
    scores = [bleu(counts[draw.integers(len(counts), size=len(counts))].sum(0)) for _ in range(times)]
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


def _counts(written: str, reference: str) -> list[int]:
    """What BLEU is made of: n-grams found and written for n of 1 … 4, and the two lengths in words."""
    words, right = written.split(), reference.split()
    found: list[int] = []
    for n in range(1, 5):
        ours, theirs = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (words, right))
        found += [(ours & theirs).total(), ours.total()]
    return [*found, len(words), len(right)]


def bleu(counts: np.ndarray) -> float:
    """The score of a corpus from the sums (10,) of `_counts`, 0 where a length of n-grams was never found."""
    matches, totals, words, right = counts[0:8:2], counts[1:8:2], counts[8], counts[9]
    if not matches.all():
        return 0.0
    brevity = min(0.0, 1 - right / words)
    return 100 * math.exp(brevity + float(np.log(matches / totals).mean()))


def report(found: dict[str, dict[str, Any]], sides: list[str]) -> str:
    """The table."""
    rows: list[list[str]] = []
    for side in sides:
        run = found[side]
        low, high = run["interval"]
        sizes = [f"{run['parameters']:,}", f"{run['cpu_seconds']:,.0f}", f"{run['steps']:,}"]
        test = f"{run['test']['lc-tok']:.2f} ({low:.1f} … {high:.1f})"
        rows.append([side, *sizes, f"{run['val']['lc-tok']:.2f}", test, f"{run['test']['raw']:.2f}"])
    return table(["", "parameters", "CPU s", "steps", "val lc-tok", "test lc-tok (95 %)", "test raw"], rows)


if __name__ == "__main__":
    sys.exit(main())
