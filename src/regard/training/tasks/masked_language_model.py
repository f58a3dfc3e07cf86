"""Masked language models: pieces that were taken out of a text, given all others; a new BERT, or one fine-tuned.

B | windows in a batch    T | context, special pieces among it    N | masked pieces    d | width    V | vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.inputs.tokenizer import Tokenizer
from regard.inputs.tokenizer.learn import learn_word_pieces
from regard.models import Checkpoint, load
from regard.models.bert import BertConfig
from regard.models.checkpoint import new_checkpoint
from regard.training.directory import learnt_files
from regard.training.errors import TrainingError
from regard.training.run import Run, Trained
from regard.training.tasks.classify_text import SIZES
from regard.training.tasks.texts import Texts, TextsRecipe, Windows, train_on_texts
from regard.training.tokens import Ids, chunks


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModelRecipe(TextsRecipe):
    """How a masked language model is built and trained. Sizes are of new models."""

    vocab_size: int = 8000  # word pieces of a new model
    lowercase: bool = True  # of all texts of a new model
    context: int = 128  # pieces a window, two special ones among them
    masked: float = 0.15  # part of the pieces that are to be guessed

    def bert(self, vocab_size: int) -> BertConfig:
        """The sizes of a new model."""
        return BertConfig(
            vocab_size=vocab_size,
            **self.sizes(SIZES),
            max_positions=self.context,
            types=1,
            head="fill",
            dropout=self.dropout or 0.0,
            attention_dropout=0.0,
            head_dropout=self.dropout or 0.0,
        )


class MaskedLanguageModelTask:
    """The task of `Trainer`: what was masked.

    Of the pieces to be guessed eight tenths are masked, one tenth are other pieces, and one tenth stay (arXiv
    1810.04805), another draw every time. Those of the validation are always the same.

    Args:
        model: with `hidden` and `head`, as `regard.models.bert.Bert` has them.
        tokenizer: has the pieces that begin a text, end it, and stand for a gap.
        train: ids to learn from.
        validation: ids to measure the loss on.
        recipe: context, batches, part to be masked, seed.

    Raises:
        TrainingError: if the tokenizer lacks one of these pieces, or there is too little text.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, train: Ids, validation: Ids, recipe: MaskedLanguageModelRecipe
    ) -> None:
        self.model, self.recipe, self._train = model, recipe, train
        specials = {"begins": tokenizer.cls, "ends": tokenizer.sep, "masks": tokenizer.mask}
        for name, piece in specials.items():
            if piece is None:
                raise TrainingError(f"the tokenizer has no piece that {name} a text; a masked language model needs one")
        self._cls, self._sep, self._mask = cast(tuple[int, int, int], tuple(specials.values()))
        self._vocab_size: int = model.config.vocab_size
        self._validation = Windows(validation[: recipe.validation_tokens], recipe.context - 2, recipe.batch_size)
        self.batches(0)  # refuses too little text before the first step

    def batches(self, epoch: int) -> Windows:
        """The windows of an epoch, by (seed, epoch) alone."""
        recipe = self.recipe
        return Windows(self._train, recipe.context - 2, recipe.batch_size, seed=recipe.seed, epoch=epoch)

    def step(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy a piece that was to be guessed."""
        return self._loss(batch, None, self.recipe.label_smoothing)[0]

    def tokens(self, batch: Tensor) -> int:
        """Pieces, guessed or not."""
        return batch[:, :-1].numel()

    def validate(self) -> Mapping[str, float]:
        """Cross-entropy a masked piece of the validation text, in nats, and the part that was guessed right."""
        draw = torch.Generator().manual_seed(self.recipe.seed)
        total = right = count = 0.0
        for batch in self._validation:
            loss, hits, n = self._loss(batch, draw)
            total, right, count = total + loss.item() * n, right + hits, count + n
        return {"loss": total / count, "accuracy": right / count}

    def _loss(
        self, batch: Tensor, draw: torch.Generator | None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, int, int]:
        """The loss, how many were guessed right, and of how many."""
        pieces = batch[:, :-1]  # (B, T - 2): the id that windows have in common with the next is not needed
        chance = torch.rand(pieces.shape, generator=draw)
        count = max(1, round(self.recipe.masked * pieces.numel()))
        chosen = chance.flatten().topk(count).indices  # (N,): so many of all, whatever they are
        labels = pieces.flatten()[chosen]
        kind = torch.rand(count, generator=draw)
        others = torch.randint(self._vocab_size, (count,), generator=draw)
        given = pieces.flatten().clone()
        given[chosen] = torch.where(kind < 0.8, self._mask, torch.where(kind < 0.9, others, labels))
        edge = pieces.new_ones(len(pieces), 1)  # (B, 1)
        ids = torch.cat([edge * self._cls, given.view_as(pieces), edge * self._sep], 1)  # (B, T)
        hidden = self.model.hidden(ids)[:, 1:-1].flatten(0, 1)[chosen]  # (N, d)
        scores = self.model.head(hidden).float()  # (N, V)
        loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
        return loss, int((scores.argmax(1) == labels).sum()), count


def train_masked_language_model(
    files: Sequence[Path], recipe: MaskedLanguageModelRecipe, run: Run, *, validation: Sequence[Path] = ()
) -> Trained:
    """Train a masked language model on text files, from the files to the model in run.out/model.

    Args:
        files: UTF-8, each a text. Empty ones and those of another encoding are left out and counted.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: texts to measure the loss on; a part at the end of each file unless given.

    Raises:
        TrainingError: if there is no text, the recipe cannot be, or the directory holds another run; see also
            `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read.
    """
    if recipe.context < 4:
        raise TrainingError(f"context is {recipe.context}; it may be 4 or more")
    recipe.only_of_new("vocab_size", "lowercase")
    return train_on_texts(
        "masked-language-model",
        files,
        validation,
        recipe,
        run,
        model=_model,
        task=lambda model, pieces, train, held_out: MaskedLanguageModelTask(model, pieces, train, held_out, recipe),
    )


def _model(texts: Texts, recipe: MaskedLanguageModelRecipe, out: Path) -> tuple[Checkpoint, Tokenizer]:
    """The model before it learns, and its tokenizer."""
    if recipe.model is not None:
        found = load(recipe.model)
        if not isinstance(found, Checkpoint) or found.head != "fill":
            raise TrainingError(f"model is {recipe.model}, to {found.task}; it may be one that fills gaps")
        config: Any = found.model.config
        if recipe.context > config.max_positions:
            raise TrainingError(f"context is {recipe.context}; this model takes at most {config.max_positions}")
        return found, found.tokenizer

    def parts() -> Iterator[str]:
        return (part for section in texts.sections[0] for part in chunks(section))

    files = learnt_files(
        out / "tokenizer", lambda: learn_word_pieces(parts, recipe.vocab_size, lowercase=recipe.lowercase)
    )
    tokenizer = Tokenizer.from_directory(out / "tokenizer")
    extra = {"pad_token_id": tokenizer.pad}
    return new_checkpoint("bert", recipe.bert(tokenizer.vocab_size), extra=extra, files=files), tokenizer
