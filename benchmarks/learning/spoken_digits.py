"""Spoken digits (FSDD): a small Transformer over spectrograms beside a CNN and an LSTM, in equal CPU time.

    python benchmarks/learning/spoken_digits.py --data DIR --out runs/spoken-digits
    python benchmarks/learning/spoken_digits.py --data DIR --out runs/spoken-digits --report
    python benchmarks/learning/spoken_digits.py --data DIR --out runs/spoken-digits --embed

DIR holds recordings.tar.gz of the Free Spoken Digit Dataset: 3,000 recordings of six speakers. Each model is tuned with
as many runs as the others (recordings 5 to 9 of each digit and speaker being held out), then trained and measured on
the official split (recordings 0 to 4 are the test), with three seeds, and with each speaker left out in turn. All runs
have the same CPU time, with products in bfloat16; no choice is made by a test's result. The same command continues
where it was stopped. --report prints the tables of the runs that are done; --embed writes the Transformer of the
official split's first seed into the package.
"""

import argparse
import json
import statistics
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import machine, on_one_thread
from contest import Entry, Result, chosen, compete, done_in_half, interval, parser, right, tuned
from embedding import embed
from torch import Tensor, nn
from torch.nn import functional as F

from regard.files import write_atomically
from regard.inputs.audio import read_audio
from regard.inputs.features import ASTSettings
from regard.models.checkpoint import new_checkpoint
from regard.models.convolutional import SOUND, ConvolutionalConfig, convolutional_transformer
from regard.training.augment import FrequencyMask, Gain, Noise, SoundAugmentation, Speed, TimeMask
from regard.training.baselines.frame_lstm import FrameLSTM, FrameLSTMConfig
from regard.training.baselines.residual_network import ResidualConfig, ResidualNetwork
from regard.training.stored import Clips
from regard.training.tasks.classification import Labelled
from regard.training.tasks.classify_audio import ClassifyAudioRecipe, ClassifyAudioTask, Sounds

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECTROGRAM = ASTSettings(mels=40, frames=112, mean=-6.0, std=2.0, highest=4000.0)
"""1.13 s, up to 4 kHz, which is all that recordings at 8 kHz have; mean and spread are about those of the data."""
TRANSFORMER = ConvolutionalConfig(
    channels=1,
    size=(SPECTROGRAM.mels, SPECTROGRAM.frames),
    patch=(8, 8),
    stride=(8, 8),
    d_model=96,
    layers=2,
    heads=4,
    feed_forward=288,
    activation="relu",
    norm_eps=1e-6,
    class_token=False,
    pooling="mean",
    labels=DIGITS,
    modality="audio",
    widths=(24, 48),
    blocks=(0, 1, 1),
)
RECIPE = ClassifyAudioRecipe(
    batch_size=32, optimiser="muon", final_fraction=0.01, ema=0.99, label_smoothing=0.1, weight_decay=0.05,
    keep=1, watch_every=0, precision="bfloat16",
)  # fmt: skip
LSTM_RECIPE = ClassifyAudioRecipe(
    batch_size=32, optimiser="adamw", final_fraction=0.01, ema=0.99, label_smoothing=0.1, weight_decay=0.05,
    keep=1, watch_every=0, precision="bfloat16",
)  # fmt: skip
ENTRIES = (
    Entry("Transformer", lambda: convolutional_transformer(TRANSFORMER), RECIPE, (0.003, 0.01, 0.02)),
    Entry(
        "CNN",
        lambda: ResidualNetwork(
            ResidualConfig(1, (24, 48, 96, 128), (0, 1, 1, 0), DIGITS, first_stride=2, dropout=0.1)
        ),
        RECIPE,
        (0.003, 0.01, 0.02),
    ),
    Entry(
        "LSTM",
        lambda: FrameLSTM(FrameLSTMConfig(SPECTROGRAM.mels, 112, 2, DIGITS, stacked=2, dropout=0.2)),
        LSTM_RECIPE,
        (0.003, 0.01, 0.02),
    ),
)
SEEDS = (1, 2, 3)


class Surroundings(SoundAugmentation):
    """Silence before and after a recording, up to so many seconds each: who records digits cuts less closely."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        before, after = (torch.rand(2) * self.seconds * rate).long().tolist()
        return F.pad(samples, (before, after))


SOUND_AUGMENTATION = (Speed(1.15), Surroundings(0.2), Gain(12), Noise(15, 50))
AUGMENTATION = (FrequencyMask(6), TimeMask(12))


@dataclass(frozen=True)
class Recordings:
    """All recordings, and of each its digit, speaker and index."""

    sounds: Clips
    digits: np.ndarray
    speakers: np.ndarray
    indices: np.ndarray

    @classmethod
    def read(cls, data: Path, most: int | None = None) -> "Recordings":
        """Those of recordings.tar.gz, at 16 kHz; only those with an index below `most` where that is given."""
        place = data / "recordings.tar.gz"
        found: list[tuple[int, str, int, np.ndarray]] = []
        with tarfile.open(place) as archive:
            for member in archive:  # in the archive's order: every step back would decompress it again
                if not member.name.endswith(".wav"):
                    continue
                digit, speaker, index = Path(member.name).stem.split("_")
                file = archive.extractfile(member)
                if file is not None and (most is None or int(index) < most):
                    sound = read_audio(file.read(), SPECTROGRAM.rate).numpy()
                    found.append((int(digit), speaker, int(index), sound))
        if not found:
            raise ValueError(f"{place} holds no recordings DIGIT_SPEAKER_INDEX.wav")
        digits, speakers, indices, sounds = zip(*sorted(found, key=lambda one: one[:3]), strict=True)
        return cls(Clips.of(sounds), np.array(digits, dtype=np.int64), np.array(speakers), np.array(indices))

    def where(self, chosen: np.ndarray) -> Labelled[Sounds]:
        """The examples for which this is true."""
        return Labelled(self.sounds, self.digits, DIGITS).take(np.flatnonzero(chosen))


@dataclass(frozen=True)
class Split:
    """What is learnt from and what is measured on."""

    name: str
    train: Labelled[Sounds]
    test: Labelled[Sounds]

    def task(self, model: nn.Module, recipe: ClassifyAudioRecipe) -> ClassifyAudioTask:
        """The task for a model."""
        return ClassifyAudioTask(
            model,
            self.train,
            self.test,
            recipe,
            settings=SPECTROGRAM,
            augment=AUGMENTATION,
            augment_sound=SOUND_AUGMENTATION,
        )


def main() -> int:
    arguments = _arguments()
    return on_one_thread(lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> None:
    """Tune, train, measure; or report, or embed."""
    if not arguments.report:
        recordings = Recordings.read(arguments.data, arguments.indices)
        if arguments.embed:
            print(_embed(recordings, arguments))
            return
        _compete(recordings, arguments)
    print(report(arguments.out, arguments.budget, arguments.tuning_budget))


def _arguments() -> argparse.Namespace:
    data = "directory with recordings.tar.gz"
    options = parser(str(__doc__), ENTRIES, data=data, out="runs/spoken-digits", seconds=(150.0, 50.0))
    options.add_argument("--indices", type=int, help="read only the recordings with an index below this")
    options.add_argument("--splits", help="train only on the splits that begin like this, such as official")
    options.add_argument("--report", action="store_true", help="print the tables of the runs that are done")
    return options.parse_args()


def splits(recordings: Recordings) -> Iterator[tuple[Split, tuple[int, ...]]]:
    """Every split, with the seeds that it is done with."""
    held_out = recordings.indices < 5
    yield Split("official", recordings.where(~held_out), recordings.where(held_out)), SEEDS
    for speaker in sorted(set(recordings.speakers.tolist())):
        other = recordings.speakers != speaker
        yield Split(f"without-{speaker}", recordings.where(other), recordings.where(~other)), SEEDS[:1]


def tuning(recordings: Recordings) -> Split:
    """Recordings 5 to 9 held out; the test's are not looked at."""
    held_out = (recordings.indices >= 5) & (recordings.indices < 10)
    return Split("tuning", recordings.where(recordings.indices >= 10), recordings.where(held_out))


def _compete(recordings: Recordings, arguments: argparse.Namespace) -> None:
    split = tuning(recordings)
    rates = {}
    for entry in chosen(ENTRIES, arguments):
        place = arguments.out / "tuning" / entry.name
        budget = arguments.tuning_budget
        rates[entry.name], _ = tuned(entry, split.task, place, budget=budget, quiet=arguments.quiet)
        print(f"{entry.name}: learning rate {rates[entry.name]:g}", flush=True)
    for split, seeds in splits(recordings):
        for entry in chosen(ENTRIES, arguments):
            if not split.name.startswith(arguments.splits or ""):
                continue
            for seed in seeds:
                place = arguments.out / split.name / entry.name / f"seed-{seed}"
                model, result = compete(
                    entry,
                    split.task,
                    place,
                    budget=arguments.budget,
                    seed=seed,
                    rate=rates[entry.name],
                    quiet=arguments.quiet,
                )
                answers = right(split.task(model, entry.recipe), split.test)
                write_atomically(place / "right.json", json.dumps(answers).encode())
                print(f"{split.name} {entry.name} seed {seed}: {result.scores['accuracy']:.4f}", flush=True)


def report(out: Path, budget: float, tuning_budget: float) -> str:
    """The tables of all runs that are done, as Markdown."""
    found = _results(out)
    lines = [
        f"{machine()}. {len(found)} runs of {budget:g} CPU seconds each, validation included, after",
        f"{len(ENTRIES[0].rates)} tuning runs of {tuning_budget:g} CPU seconds a model.",
        "",
        "| official split: test accuracy | parameters | seeds | mean | least | 95 % interval | examples seen |"
        " CPU seconds a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in ENTRIES:
        runs = [(r, right) for (split, name), r, right in found if split == "official" and name == entry.name]
        if runs:
            values = [r.scores["accuracy"] for r, _ in runs]
            low, high = interval([one for _, right in runs for one in right])
            lines.append(
                f"| {entry.name} | {runs[0][0].parameters:,} | {len(runs)} | {statistics.mean(values):.2%} |"
                f" {min(values):.2%} | {low:.2%} – {high:.2%} | {_mean(r.examples for r, _ in runs):,.0f} |"
                f" {_mean(r.cpu_seconds for r, _ in runs):.0f} |"
            )
    names = sorted({split for (split, _), _, _ in found if split.startswith("without-")})
    if names:
        heads = [name.removeprefix("without-") for name in names]
        lines += ["", f"| speaker left out | {' | '.join(heads)} | mean |", "|---" * (len(heads) + 2) + "|"]
        for entry in ENTRIES:
            by_split = {split: r.scores["accuracy"] for (split, name), r, _ in found if name == entry.name}
            cells = [f"{by_split[name]:.1%}" if name in by_split else "–" for name in names]
            done = [by_split[name] for name in names if name in by_split]
            lines.append(f"| {entry.name} | {' | '.join(cells)} | {_mean(done):.1%} |" if done else "")
    lines += ["", f"Runs ended {min((r.date for _, r, _ in found), default='–')} to"]
    lines[-1] += f" {max((r.date for _, r, _ in found), default='–')} UTC."
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def _results(out: Path) -> list[tuple[tuple[str, str], Result, list[bool]]]:
    """Of every measured run: split and model, result, and whether each answer is right."""
    found = []
    for place in sorted(out.glob("*/*/seed-*/right.json")):
        result = Result(**json.loads((place.parent / "result.json").read_bytes()))
        found.append(((place.parts[-4], place.parts[-3]), result, json.loads(place.read_bytes())))
    return found


def _embed(recordings: Recordings, arguments: argparse.Namespace) -> Path:
    """Write the Transformer of the first seed as an embedded model."""
    split, seeds = next(splits(recordings))
    entry = ENTRIES[0]
    checkpoint = new_checkpoint(
        SOUND,
        TRANSFORMER,
        files={"preprocessor_config.json": json.dumps(SPECTROGRAM.to_json(), indent=2).encode() + b"\n"},
    )
    place = arguments.out / split.name / entry.name / f"seed-{seeds[0]}"
    result = done_in_half(entry, checkpoint, split.task, place, budget=arguments.budget)
    answers = right(split.task(checkpoint.model, entry.recipe), split.test)
    accuracy = sum(answers) / len(answers)
    about = {
        "task": "classification of sound",
        "description": DESCRIPTION,
        "limits": LIMITS,
        "scores": {"FSDD, official test split, accuracy": round(accuracy, 4)},
        "licence": LICENCE_NAME,
    }
    card = CARD.format(
        parameters=result.parameters,
        description=DESCRIPTION,
        limits=LIMITS,
        accuracy=accuracy,
        count=len(answers),
        examples=result.examples,
        steps=result.steps,
        minutes=result.cpu_seconds / 60,
        seed=result.seed,
        licence=LICENCE_NAME,
    )
    target = None if arguments.embed is True else arguments.embed
    return embed(checkpoint, "spoken-digits", about, card=card, licence=LICENCE, place=target)


DESCRIPTION = "The spoken digits zero to nine, in English: one word a recording."
LIMITS = (
    "It knows ten words of six speakers: whatever else it hears, it answers with one of the ten, often with confidence."
    " It hears the first 1.1 seconds, up to 4 kHz."
)
LICENCE_NAME = "CC BY-SA 4.0, as its training data (Free Spoken Digit Dataset)"
LICENCE = """\
Licence of the weights in this directory
========================================

These weights were trained on the Free Spoken Digit Dataset (Jakobovski and others,
https://github.com/Jakobovski/free-spoken-digit-dataset), which is under CC BY-SA 4.0 (Creative Commons
Attribution-ShareAlike 4.0 International).

The weights are therefore given under CC BY-SA 4.0: name the Free Spoken Digit Dataset, and share what you make of them
alike. The program around them is under the Apache License 2.0.
"""
CARD = """\
# spoken-digits

A Transformer behind convolutions over a log-mel spectrogram (arXiv 2104.05704, 2104.01778): {description}

- **Trained on** the Free Spoken Digit Dataset: 2,700 recordings by six speakers, all but numbers 0 to 4 of each.
- **Licence of the weights**: {licence}; see LICENSE in this directory.
- **Size** {parameters:,} parameters in float16.
- **Training** {steps:,} steps, {examples:,} examples, {minutes:.1f} CPU minutes on one core, seed {seed}, which was not
  chosen by its result.
- **Accuracy** {accuracy:.2%} of the {count} recordings of the official test split, in float16. For speakers who were
  not in the training see docs/results.md: it is less.
- **Limits** {limits}

Made by `python benchmarks/learning/spoken_digits.py --embed`.
"""


if __name__ == "__main__":
    sys.exit(main())
