"""Classes of texts: a new encoder like BERT, any that is fine-tuned, or a recurrent or convolutional network to compare
them with; texts stand one after another, without padding.

n | texts in a batch    P | all their pieces    d | width    C | classes
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from regard.attention.mask import Documents
from regard.inputs.tokenizer import Tokenizer
from regard.inputs.tokenizer.learn import learn_word_pieces
from regard.models import Checkpoint, load
from regard.models.bert import BertConfig
from regard.models.checkpoint import new_checkpoint
from regard.models.classifier import to_classifier
from regard.training.baselines import (
    Baseline,
    ConvolutionalClassifierConfig,
    RecurrentClassifierConfig,
    TextBaseline,
    new_baseline,
)
from regard.training.data import Ints, Ragged, offsets_of
from regard.training.directory import agree, learnt_files, left_as_it_was
from regard.training.dropout import set_dropout
from regard.training.errors import TrainingError
from regard.training.metrics import accuracy, macro_f1
from regard.training.run import Run, SizedRecipe, Trained, only_of_transformers
from regard.training.tables import Skipped, fingerprint, flaw, names_of, read_rows
from regard.training.tasks.cards import train_and_save
from regard.training.tasks.files import class_names
from regard.training.tokens import read_ids, write_ids

SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 2, "feed_forward": 512},
    "small": {"d_model": 256, "layers": 4, "heads": 4, "feed_forward": 1024},
    "medium": {"d_model": 512, "layers": 8, "heads": 8, "feed_forward": 2048},
    "large": {"d_model": 768, "layers": 12, "heads": 12, "feed_forward": 3072},
}
"""Sizes of new models: those of the smaller BERTs (arXiv 1908.08962), large being BERT's base."""
_CHUNK = 1024  # rows that are encoded together


@dataclass(frozen=True, kw_only=True)
class ClassifyTextRecipe(SizedRecipe):
    """How a classifier of texts is built and trained. Sizes are of new models: one that is fine-tuned has its own."""

    text: str = "text"  # column of the texts
    label: str = "label"  # column of the classes' names
    columns: str | None = None  # names of all columns, commas between, of tables without a line of names
    family: Literal["transformer", "rnn", "lstm", "gru", "cnn"] = "transformer"  # of a new model; the rest: baselines
    vocab_size: int = 8000  # word pieces of a new model
    lowercase: bool = True  # of all texts of a new model
    max_pieces: int = 128  # a text's; what it has more is cut off
    batch_pieces: int = 2048  # a batch's, at most
    dropout: float | None = None  # of every sublayer's output; None is 0.1 in a new model (cnn: 0.5)
    r_drop: float = 0.0  # R-Drop's α (arXiv 2106.14448); above 0 every batch is passed twice, under different dropout
    peak_learning_rate: float = 0.0005
    steps: int = 1000
    validation_fraction: float = 0.1  # of every class, where no table for validation is given

    def bert(self, vocab_size: int, labels: tuple[str, ...]) -> BertConfig:
        """The sizes of a new model."""
        p = 0.1 if self.dropout is None else self.dropout
        return BertConfig(
            vocab_size=vocab_size,
            **self.sizes(SIZES),
            max_positions=self.max_pieces,
            types=1,
            head="classify",
            head_activation="tanh",
            labels=labels,
            dropout=p,
            attention_dropout=0.0,
            head_dropout=p,
        )

    def baseline(self, vocab_size: int, classes: int) -> RecurrentClassifierConfig | ConvolutionalClassifierConfig:
        """The sizes of a new baseline: as wide as the size says, the filters of a convolution a third of that."""
        assert self.family != "transformer"
        d_model = SIZES[self.size]["d_model"] if self.d_model is None else self.d_model
        if self.family == "cnn":
            p = 0.5 if self.dropout is None else self.dropout
            return ConvolutionalClassifierConfig(
                vocab_size, classes, d_model=d_model, filters=max(1, d_model // 3), dropout=p
            )
        layers = 2 if self.layers is None else self.layers
        p = 0.1 if self.dropout is None else self.dropout
        return RecurrentClassifierConfig(
            vocab_size, classes, cell=self.family, d_model=d_model, layers=layers, dropout=p
        )


@dataclass(frozen=True)
class Examples:
    """Texts as pieces, and their classes."""

    texts: Ragged
    labels: Ints  # (n,)

    def take(self, chosen: Ints) -> "Examples":
        """Those of these indices, in this order."""
        return Examples(self.texts.take(chosen), self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Texts one after another."""

    ids: Tensor  # (P,)
    lengths: Tensor  # (n,), pieces of each text
    labels: Tensor  # (n,)


class TextBatches(Sequence[TextBatch]):
    """Batches of texts, of so many pieces at most; a text is never divided.

    Args:
        examples: with as many pieces as the budget at most, each.
        chosen: (n,), which of them, in the order in which they are put into batches.
        budget: pieces a batch.
    """

    def __init__(self, examples: Examples, chosen: Ints, budget: int) -> None:
        self._examples, self._chosen = examples, chosen
        self._cuts = [0]
        held = 0
        for place, length in enumerate(examples.texts.lengths[chosen].tolist()):
            if held + length > budget and held:
                self._cuts.append(place)
                held = 0
            held += length
        self._cuts.append(len(chosen))

    def __len__(self) -> int:
        return len(self._cuts) - 1

    @overload
    def __getitem__(self, index: int) -> TextBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[TextBatch]: ...
    def __getitem__(self, index: int | slice) -> TextBatch | list[TextBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        part = self._examples.take(self._chosen[self._cuts[index] : self._cuts[index + 1]])
        return TextBatch(
            torch.from_numpy(part.texts.ids.astype(np.int64)),
            torch.from_numpy(part.texts.lengths),
            torch.from_numpy(part.labels),
        )


class ClassifyTextTask:
    """The task of `Trainer`: a text's class.

    Args:
        model: with `hidden` and `head`, as `regard.models.bert.Bert` has them, or a baseline.
        examples: all of them.
        train: indices of those to learn from.
        validation: the examples to measure on.
        recipe: batches, smoothing, seed.
    """

    def __init__(
        self, model: Any, examples: Examples, train: Ints, validation: Examples, recipe: ClassifyTextRecipe
    ) -> None:
        self.model, self.recipe, self._examples, self._train = model, recipe, examples, train
        self._validation = TextBatches(validation, np.arange(len(validation)), recipe.batch_pieces)

    def batches(self, epoch: int) -> TextBatches:
        """The batches of an epoch, by (seed, epoch) alone."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(self._train)
        return TextBatches(self._examples, order, self.recipe.batch_pieces)

    def step(self, batch: TextBatch) -> Tensor:
        """Mean cross-entropy a text, with label smoothing and R-Drop if the recipe has them."""
        smoothing, r_drop = self.recipe.label_smoothing, self.recipe.r_drop
        if r_drop == 0:
            return F.cross_entropy(self._scores(batch), batch.labels, label_smoothing=smoothing)
        batch = TextBatch(*(torch.cat([t, t]) for t in (batch.ids, batch.lengths, batch.labels)))
        scores = self._scores(batch)  # (2n, C): text i and text i + n are the same one
        log_p, log_q = scores.log_softmax(1).chunk(2)  # (n, C)
        divergence = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()  # KL(p‖q) + KL(q‖p)
        return F.cross_entropy(scores, batch.labels, label_smoothing=smoothing) + r_drop / 4 * divergence

    def tokens(self, batch: TextBatch) -> int:
        """Texts."""
        return len(batch.labels)

    def validate(self) -> Mapping[str, float]:
        """Cross-entropy a text, accuracy and macro-F1 on the validation texts."""
        scores = torch.cat([self._scores(batch) for batch in self._validation])  # (n, C)
        labels = torch.cat([batch.labels for batch in self._validation])
        found = scores.argmax(1)
        return {
            "loss": F.cross_entropy(scores, labels).item(),
            "accuracy": accuracy(found, labels),
            "macro_f1": macro_f1(found, labels),
        }

    def _scores(self, batch: TextBatch) -> Tensor:
        if isinstance(self.model, TextBaseline):
            return self.model.scores(batch.ids, batch.lengths)
        starts = batch.lengths.cumsum(0) - batch.lengths  # (n,)
        positions = torch.arange(len(batch.ids)) - starts.repeat_interleave(batch.lengths)  # (P,)
        hidden = self.model.hidden(batch.ids[None], mask=Documents(batch.lengths), positions=positions[None])
        return self.model.head(hidden[0, starts]).float()  # (n, d) → (n, C)


def train_text_classifier(
    table: Path, recipe: ClassifyTextRecipe, run: Run, *, validation: Path | None = None
) -> Trained:
    """Train a classifier of texts on a table, from the file to the model in run.out/model.

    Args:
        table: CSV, TSV, JSON lines or Parquet; rows without a text or a label are left out and counted.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: a table to measure on; a part of each class unless given.

    Raises:
        TrainingError: if there are no rows or only one class, the recipe cannot be, or the directory holds another
            run; see also `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read, or is no encoder of text.
    """
    if not 8 <= recipe.max_pieces <= recipe.batch_pieces:
        raise TrainingError(
            f"max_pieces is {recipe.max_pieces}; it may be from 8 to batch_pieces, {recipe.batch_pieces}"
        )
    if recipe.text == recipe.label:
        raise TrainingError(f"text and label are both {recipe.text!r}; they may be two columns")
    only_of_transformers(recipe, "model", "heads", "feed_forward", "optimiser", "layer_decay", "compile")
    recipe.only_of_new("family", "vocab_size", "lowercase")
    skipped = Skipped()
    labels = _labels(table, recipe, skipped, divided=validation is None)
    with left_as_it_was(run.out):
        run.out.mkdir(parents=True, exist_ok=True)
        data = {
            "training": fingerprint(table),
            "validation": fingerprint(validation) if validation else "part of training",
        }
        agree(run.out / "recipe.json", recipe, data, resume=run.resume, free=recipe.may_change())
        torch.manual_seed(recipe.seed)
        checkpoint, tokenizer = _model(table, labels, recipe, run.out)
        set_dropout(checkpoint.model, recipe.dropout)
        examples = _examples(table, "train", labels, tokenizer, recipe, run.out, Skipped())
        if validation is None:
            train, held_out = _divided(examples.labels, recipe)
            measured = examples.take(held_out)
        else:
            train = np.arange(len(examples))
            measured = _examples(validation, "validation", labels, tokenizer, recipe, run.out, skipped)
        task = ClassifyTextTask(checkpoint.model, examples, train, measured, recipe)
        return train_and_save("classify-text", checkpoint, task, recipe, run, skipped.sentences())


def _rows(table: Path, recipe: ClassifyTextRecipe, skipped: Skipped) -> Iterator[tuple[str, str, str]]:
    """The place, text and label of every row that has both."""
    for row in read_rows(table, (recipe.text, recipe.label), skipped, names_of(recipe.columns)):
        text, label = row.values
        if wrong := flaw(text, number=False):
            skipped.add(f"the text is {wrong}", row.place)
        elif wrong := flaw(label):
            skipped.add(f"the label is {wrong}", row.place)
        else:
            yield row.place, text, str(label).strip()


def _labels(table: Path, recipe: ClassifyTextRecipe, skipped: Skipped, *, divided: bool) -> tuple[str, ...]:
    """The names of the classes, numbers in the order of numbers; each has two rows where they are to be divided."""
    counts = Counter(label for _, _, label in _rows(table, recipe, skipped))
    names = class_names(counts, table, "row with a text and a label")
    rare = [label for label, count in counts.items() if count < 2]
    if rare and divided:
        raise TrainingError(f"{table} has one row alone of the class {rare[0]!r}; there must be two or more of each")
    return names


def _model(
    table: Path, labels: tuple[str, ...], recipe: ClassifyTextRecipe, out: Path
) -> tuple[Checkpoint | Baseline, Tokenizer]:
    """The model before it learns, and its tokenizer."""
    if recipe.model is not None:
        found = load(recipe.model)
        if not isinstance(found, Checkpoint):
            raise TrainingError(f"model is {recipe.model}, for {found.task}; it may be an encoder of text")
        config: Any = found.model.config
        found = to_classifier(found, labels)
        if recipe.max_pieces > config.max_positions:
            raise TrainingError(f"max_pieces is {recipe.max_pieces}; this model takes at most {config.max_positions}")
        return found, found.tokenizer

    def texts() -> Iterator[str]:
        return (text for _, text, _ in _rows(table, recipe, Skipped()))

    files = learnt_files(
        out / "tokenizer", lambda: learn_word_pieces(texts, recipe.vocab_size, lowercase=recipe.lowercase)
    )
    tokenizer = Tokenizer.from_directory(out / "tokenizer")
    if recipe.family != "transformer":
        baseline = recipe.baseline(tokenizer.vocab_size, len(labels))
        return new_baseline(baseline, files=files, about={"labels": [*labels]}), tokenizer
    extra = {"pad_token_id": tokenizer.pad}
    config = recipe.bert(tokenizer.vocab_size, labels)
    return new_checkpoint("bert", config, extra=extra, files=files), tokenizer


def _examples(
    table: Path,
    name: str,
    labels: tuple[str, ...],
    tokenizer: Tokenizer,
    recipe: ClassifyTextRecipe,
    out: Path,
    skipped: Skipped,
) -> Examples:
    """The rows of a table as examples, from the files in out/data, which are written where they are not there."""
    directory = out / "data"
    directory.mkdir(exist_ok=True)
    paths = {part: directory / f"{name}.{part}.bin" for part in ("ids", "lengths", "labels")}
    numbers = {label: i for i, label in enumerate(labels)}
    frame = tokenizer.encode("a").texts
    last = next((i for i, text in enumerate(reversed(frame)) if text is not None), 0)  # special pieces after a text
    if not paths["labels"].with_suffix(".json").is_file():
        lengths: list[int] = []
        classes: list[int] = []

        def parts() -> Iterator[list[int]]:
            rows = _rows(table, recipe, skipped)
            while chunk := list(islice(rows, _CHUNK)):
                for (place, _, label), ids in zip(chunk, tokenizer.encode_batch([t for _, t, _ in chunk]), strict=True):
                    if label not in numbers:
                        skipped.add(f"the label {label!r} is not among those to learn", place)
                        continue
                    if len(ids) > recipe.max_pieces:
                        ids = [*ids[: recipe.max_pieces - last], *ids[len(ids) - last :]]
                    lengths.append(len(ids))
                    classes.append(numbers[label])
                    yield ids

        write_ids(paths["ids"], parts(), tokenizer.vocab_size)
        write_ids(paths["lengths"], [lengths], 2**32)
        write_ids(paths["labels"], [classes], 2**32)
    found = {part: read_ids(path) for part, path in paths.items()}
    if not len(found["labels"]):
        raise TrainingError(f"{table} has no row with a text and one of the labels {', '.join(labels[:8])}")
    texts = Ragged(found["ids"], offsets_of(found["lengths"].astype(np.int64)))
    return Examples(texts, found["labels"].astype(np.int64))


def _divided(labels: Ints, recipe: ClassifyTextRecipe) -> tuple[Ints, Ints]:
    """Indices to learn from and to validate on: of each class a part, one row at least."""
    draw = np.random.default_rng([recipe.seed, 2**32])
    held_out: list[Ints] = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * recipe.validation_fraction)), len(members) - 1)
        held_out.append(members[:count])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
