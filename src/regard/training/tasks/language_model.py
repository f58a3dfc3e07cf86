"""Language models: the next piece of a text, given all before it; a new Llama, any decoder that is fine-tuned, or a
recurrent network to compare them with.

B | windows in a batch    T | context, pieces a window    N = B · T    d | width    V | vocabulary
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from regard.inputs.tokenizer import Tokenizer
from regard.inputs.tokenizer.learn import learn_byte_pairs, learn_characters
from regard.models import Checkpoint, load
from regard.models.checkpoint import new_checkpoint
from regard.models.llama import LlamaConfig
from regard.training.baselines import Baseline, Cell, RecurrentConfig, new_baseline
from regard.training.directory import learnt_files
from regard.training.errors import TrainingError
from regard.training.loss import linear_cross_entropy
from regard.training.run import Run, Trained, only_of_transformers
from regard.training.tasks.texts import Texts, TextsRecipe, Windows, train_on_texts
from regard.training.tokens import Ids, chunks

SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"d_model": 128, "layers": 4, "heads": 4, "feed_forward": 352},
    "small": {"d_model": 256, "layers": 6, "heads": 8, "feed_forward": 704},
    "medium": {"d_model": 384, "layers": 6, "heads": 6, "feed_forward": 1024},
    "large": {"d_model": 768, "layers": 12, "heads": 12, "feed_forward": 2048},
}
"""Sizes of new models: about 0.8, 4.8, 10.6 and 85 million parameters, without their embeddings."""

WIDTHS: Mapping[Cell, Mapping[str, int]] = {
    "rnn": {"tiny": 444, "small": 1100, "medium": 1630, "large": 4608},
    "gru": {"tiny": 256, "small": 634, "medium": 940, "large": 2660},
    "lstm": {"tiny": 222, "small": 550, "medium": 814, "large": 2304},
}
"""Widths with which two recurrent layers have the parameters of a Transformer of that size."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelRecipe(TextsRecipe):
    """How a language model is built and trained. Sizes are of new models: one that is fine-tuned has its own."""

    family: Literal["transformer", "rnn", "lstm", "gru"] = "transformer"  # of a new model; the others are baselines
    kv_heads: int | None = None  # key/value heads of a Transformer; None: as heads
    tied: bool = True  # the embedding also makes the scores
    tokens: Literal["bpe", "characters"] = "bpe"  # what a new model's pieces are
    vocab_size: int = 4096  # of byte pairs
    validation_tokens: int = 1_000_000

    def llama(self, vocab_size: int) -> LlamaConfig:
        """The sizes of a new model."""
        sizes = self.sizes(SIZES, each=2)  # rotary positions turn pairs of features
        if self.kv_heads is not None and sizes["heads"] % self.kv_heads:
            raise TrainingError(f"kv_heads is {self.kv_heads} with {sizes['heads']} heads; it may be a divisor of them")
        return LlamaConfig(
            vocab_size=vocab_size,
            **sizes,
            kv_heads=self.kv_heads or sizes["heads"],
            head_size=sizes["d_model"] // sizes["heads"],
            max_positions=self.context,
            tied=self.tied,
        )

    def recurrent(self, vocab_size: int) -> RecurrentConfig:
        """The sizes of a new baseline: of two layers unless given, as wide as the size has parameters."""
        assert self.family != "transformer"
        return RecurrentConfig(
            vocab_size=vocab_size,
            cell=self.family,
            d_model=WIDTHS[self.family][self.size] if self.d_model is None else self.d_model,
            layers=2 if self.layers is None else self.layers,
            dropout=0.0 if self.dropout is None else self.dropout,
            tied=self.tied,
        )


class LanguageModelTask:
    """The task of `Trainer`: the next piece.

    Args:
        model: with `hidden`, `embedding` and `head`, as `regard.models.llama.Llama` has them.
        train: ids to learn from.
        validation: ids to measure the loss on.
        recipe: context, batches, smoothing, seed.
    """

    def __init__(self, model: Any, train: Ids, validation: Ids, recipe: LanguageModelRecipe) -> None:
        self.model, self.recipe, self._train = model, recipe, train
        held_out = validation[: recipe.validation_tokens]
        self._validation = Windows(held_out, recipe.context, recipe.batch_size)
        self.batches(0)  # refuses too little text before the first step

    def batches(self, epoch: int) -> Windows:
        """The windows of an epoch, by (seed, epoch) alone."""
        recipe = self.recipe
        return Windows(self._train, recipe.context, recipe.batch_size, seed=recipe.seed, epoch=epoch)

    def step(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy a piece, with label smoothing if the recipe has it."""
        return self._loss(batch, self.recipe.label_smoothing)

    def tokens(self, batch: Tensor) -> int:
        """Pieces that are guessed, N."""
        return batch[:, 1:].numel()

    def validate(self) -> Mapping[str, float]:
        """Cross-entropy a piece of the validation text, in nats, and its exponential."""
        total = sum(self._loss(batch, 0.0).item() * self.tokens(batch) for batch in self._validation)
        loss = total / sum(self.tokens(batch) for batch in self._validation)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _loss(self, batch: Tensor, smoothing: float) -> Tensor:
        hidden = self.model.hidden(batch[:, :-1]).flatten(0, 1)  # (N, d)
        head = self.model.head
        weight = self.model.embedding.weight if head is None else head.weight  # (V, d)
        return linear_cross_entropy(hidden, weight, batch[:, 1:].flatten(), smoothing=smoothing)


def train_language_model(
    files: Sequence[Path], recipe: LanguageModelRecipe, run: Run, *, validation: Sequence[Path] = ()
) -> Trained:
    """Train a language model on text files, from the files to the model in run.out/model.

    Args:
        files: UTF-8, each a text. Empty ones and those of another encoding are left out and counted.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: texts to measure the loss on; a part at the end of each file unless given.

    Raises:
        TrainingError: if there is no text, the recipe cannot be, or the directory holds another run; see also
            `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read, or continues no texts.
    """
    only_of_transformers(recipe, "model", "heads", "feed_forward", "kv_heads", "optimiser", "layer_decay", "compile")
    recipe.only_of_new("family", "kv_heads", "tied", "tokens", "vocab_size")
    return train_on_texts(
        "language-model",
        files,
        validation,
        recipe,
        run,
        model=_model,
        task=lambda model, _, train, held_out: LanguageModelTask(model, train, held_out, recipe),
    )


def _model(texts: Texts, recipe: LanguageModelRecipe, out: Path) -> tuple[Checkpoint | Baseline, Tokenizer]:
    """The model before it learns, and its tokenizer."""
    if recipe.model is not None:
        found = load(recipe.model)
        if not isinstance(found, Checkpoint) or found.head != "generate":
            raise TrainingError(f"model is {recipe.model}, for {found.task}; it may be one that continues texts")
        config: Any = found.model.config
        most = config.max_positions
        if recipe.context > most:
            raise TrainingError(f"context is {recipe.context}; this model takes at most {most}")
        return found, found.tokenizer
    files = learnt_files(out / "tokenizer", lambda: _learn(texts, recipe))
    tokenizer = Tokenizer.from_directory(out / "tokenizer")
    if recipe.family != "transformer":
        return new_baseline(recipe.recurrent(tokenizer.vocab_size), files=files), tokenizer
    extra = {"eos_token_id": tokenizer.eos, "bos_token_id": None}
    return new_checkpoint("llama", recipe.llama(tokenizer.vocab_size), extra=extra, files=files), tokenizer


def _learn(texts: Texts, recipe: LanguageModelRecipe) -> dict[str, bytes]:
    text = (part for section in texts.sections[0] for part in chunks(section))
    return learn_characters(text) if recipe.tokens == "characters" else learn_byte_pairs(text, recipe.vocab_size)
