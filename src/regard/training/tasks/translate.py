"""Training a translator: from parallel text to checkpoints.

A run is a directory:

    DIR/recipe.json                         what was asked for, and fingerprints of the data
    DIR/tokenizer.json                      the joint byte-pair encoding, learnt from the training text
    DIR/metrics.jsonl, DIR/checkpoints/     see loop.py
"""

import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.files import write_atomically
from regard.inputs.text import TextTokenizer
from regard.models import SavedModel, load_model, resolve, save_model
from regard.models.translator import Translator
from regard.training.baselines import RecurrentTranslator
from regard.training.baselines.saved import baseline_of
from regard.training.data import (
    Ints,
    ParallelText,
    Ragged,
    SpecialTokens,
    TranslationBatch,
    TranslationBatches,
    divided,
    fingerprint,
)
from regard.training.directory import agree, left_as_it_was, read_record
from regard.training.dropout import use_byte_dropout
from regard.training.errors import TrainingError
from regard.training.finish import AnyTranslator, HeldOut, choose
from regard.training.loop import Outcome, Trainer
from regard.training.loss import linear_cross_entropy
from regard.training.minimum_risk import risk
from regard.training.optimiser import build_optimiser, build_schedule
from regard.training.run import Run, Trained, may_change
from regard.training.subwords import SubwordSampler
from regard.training.tasks.translation_recipe import TranslationRecipe


class TranslationTask:
    """The task of `Trainer`: next-piece prediction, given a source.

    Args:
        model: the translator, trained in place.
        tokenizer: its tokenizer.
        train: pairs to learn from.
        validation: pairs to measure the loss on.
        recipe: batches, smoothing, R-Drop, BPE dropout, seed.

    Pairs of which a side is longer than the model or a batch takes are left out, with one warning that counts them.

    Raises:
        TrainingError: if no pair is left.
    """

    def __init__(
        self,
        model: AnyTranslator,
        tokenizer: TextTokenizer,
        train: ParallelText,
        validation: ParallelText,
        recipe: TranslationRecipe,
    ) -> None:
        self.model, self.recipe, self._tokenizer = model, recipe, tokenizer
        self._budget = recipe.batch_tokens // recipe.shards
        self._special = SpecialTokens(tokenizer.pad, tokenizer.bos, tokenizer.eos)
        seed, dropout = recipe.seed, recipe.bpe_dropout
        self._source = SubwordSampler(tokenizer, train.source, dropout=dropout, seed=2 * seed)
        self._target = SubwordSampler(tokenizer, train.target, dropout=dropout, seed=2 * seed + 1)
        fitting = self._fitting("training", np.maximum(self._source.most, self._target.most))
        for sampler in (self._source, self._target):
            sampler.keep(fitting)
        source, target = encode(tokenizer, validation.source), encode(tokenizer, validation.target)
        fitting = self._fitting("validation", np.maximum(source.lengths, target.lengths))
        self._validation = TranslationBatches(
            source.take(fitting), target.take(fitting), budget=self._budget, special=self._special
        )

    def batches(self, epoch: int) -> TranslationBatches:
        """The batches of an epoch, by (seed, epoch) alone."""
        return TranslationBatches(
            self._source.epoch(epoch),
            self._target.epoch(epoch),
            budget=self._budget,
            special=self._special,
            seed=self.recipe.seed,
            epoch=epoch,
            passes=2 if self.recipe.r_drop > 0 and epoch >= self.recipe.r_drop_epoch else 1,
        )

    def step(self, batch: TranslationBatch) -> Tensor:
        """Mean label-smoothed cross-entropy of a batch, with R-Drop if the recipe has it; or its risk."""
        recipe = self.recipe
        if recipe.samples:
            return risk(self.model, self._tokenizer, batch, samples=recipe.samples, temperature=recipe.temperature)
        return self._loss(batch, smoothing=recipe.label_smoothing, r_drop=recipe.r_drop if batch.passes > 1 else 0.0)

    def tokens(self, batch: TranslationBatch) -> int:
        """Real target tokens."""
        return batch.tokens

    def validate(self) -> Mapping[str, float]:
        """Cross-entropy a target piece of the validation pairs, in nats, without smoothing."""
        losses = [(self._loss(batch).item(), batch.tokens) for batch in self._validation]
        return {"loss": sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)}

    def _fitting(self, name: str, pieces: Ints) -> Ints:
        """The indices of the pairs whose longer side, of so many pieces (n,), can be computed."""
        # one position is for the mark before or after the pieces
        takers = ((self.model.config.max_positions, "this model takes"), (self._budget, "a batch of this recipe holds"))
        positions, taker = min(takers)
        fitting = np.flatnonzero(pieces < positions)
        why = f"a side has more than {positions - 1} pieces, the most that {taker}"
        if not len(fitting):
            raise TrainingError(f"none of the {len(pieces):,} {name} pairs is short enough: {why}")
        if left_out := len(pieces) - len(fitting):
            warnings.warn(f"{left_out:,} of {len(pieces):,} {name} pairs are left out: {why}", stacklevel=4)
        return fitting

    def _loss(self, batch: TranslationBatch, *, smoothing: float = 0.0, r_drop: float = 0.0) -> Tensor:
        source, source_lengths, target, places = batch.source, batch.source_lengths, batch.target, batch.places
        if r_drop > 0:  # the same pairs once more, for other dropout: row i and row i + N
            places = torch.cat([places, places + target.numel()])
            source, source_lengths, target = (torch.cat([t, t]) for t in (source, source_lengths, target))
        memory = self.model.encode(source, source_lengths)  # (B, Ls, d)
        hidden = self.model.decode(target, memory, source_lengths)  # (B, Lt, d)
        rows = hidden.flatten(0, 1).index_select(0, places)  # (N, d): padding is never projected
        weight = self.model.embedding.weight
        return linear_cross_entropy(rows, weight, batch.labels, smoothing=smoothing, r_drop=r_drop)


def encode(tokenizer: TextTokenizer, texts: list[str]) -> Ragged:
    """Texts as token ids without special tokens."""
    return Ragged.of([ids[:-1] for ids in tokenizer.encode_batch(texts)])  # each ends in end-of-sentence


@dataclass(frozen=True)
class TrainedTranslator:
    """What a run leaves behind."""

    model: AnyTranslator  # with the last step's weights
    tokenizer: TextTokenizer
    trainer: Trainer[TranslationBatch]
    outcome: Outcome
    padding: float  # part of the positions of epoch 0 that were padding


@dataclass(frozen=True)
class Languages:
    """What is translated, for the record of the model: codes of two languages, such as "en" and "de"."""

    source: str = "source"
    target: str = "target"

    def __str__(self) -> str:
        return f"{self.source} to {self.target}"

    @classmethod
    def of_run(cls, out: Path) -> "Languages":
        """Those of a run that is to be resumed; the usual ones where there is none.

        Raises:
            TrainingError: if its record is damaged.
        """
        path = out / "recipe.json"
        words = str(read_record(path).get("data", {}).get("languages", "")) if path.is_file() else ""
        source, to, target = words.partition(" to ")
        return cls(source, target) if to else cls()


def train_translator(
    train: ParallelText,
    validation: ParallelText,
    recipe: TranslationRecipe,
    *,
    out: Path,
    resume: bool = False,
    workers: int = 1,
    progress: bool = True,
    tensorboard: bool = False,
    languages: Languages | None = None,
) -> TrainedTranslator:
    """Learn the vocabulary, build the model, train it.

    Args:
        train: pairs to learn from; the vocabulary is learnt from both sides.
        validation: pairs to measure the loss on.
        recipe: everything else.
        out: directory of the run, made if it does not exist.
        resume: continue the run in that directory, or start one. Default False.
        workers: processes, at most `recipe.shards`; with `torch.set_num_threads(1)` the result
            is the same with any number. Default 1.
        progress: show a progress bar. Default True.
        tensorboard: also write for TensorBoard. Default False.
        languages: of the two sides, for the record of the run; None leaves them out.

    Raises:
        TrainingError: if the directory holds another run, one of another recipe or of other data is to be resumed, a
            file of it is damaged, or no pair is short enough for the model.
        DivergedError: if loss or gradient is not finite.
    """
    recipe.check()
    with left_as_it_was(out):
        out.mkdir(parents=True, exist_ok=True)
        data = {"training": fingerprint(train), "validation": fingerprint(validation)}
        if languages is not None:
            data["languages"] = str(languages)
        base = None if recipe.model is None else load_model(resolve(recipe.model))
        if base is not None:
            data["model"] = str(base.about["weights_sha256"])
        agree(out / "recipe.json", recipe, data, resume=resume, free=may_change(recipe.schedule))
        torch.manual_seed(recipe.seed)
        model, tokenizer = _model(out, train, recipe, base)
        use_byte_dropout(model)
        task = TranslationTask(model, tokenizer, train, validation, recipe)
        settings = recipe.optimiser_config()
        trainer = Trainer(
            model,
            task,
            build_optimiser(model, settings),
            build_schedule(settings, recipe.steps),
            out=out,
            config=recipe.trainer(workers=workers, progress=progress, tensorboard=tensorboard),
        )
        outcome = trainer.run(resume=resume)
        return TrainedTranslator(model, tokenizer, trainer, outcome, task.batches(0).padding())


_CARD = """\
# {name}

A translator from {languages.source} to {languages.target}, trained by `regard train translate` on {pairs:,} pairs for
{steps:,} steps. BLEU on {held_out:,} validation pairs, on which its decoding was chosen: {bleu}.
"""


def train_translation(
    text: ParallelText,
    recipe: TranslationRecipe,
    run: Run,
    *,
    validation: ParallelText | None = None,
    languages: Languages = Languages(),
) -> Trained:
    """Train a translator, from pairs to the model in run.out/model; its decoding is chosen on the validation pairs.

    Args:
        text: pairs to learn from.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: pairs to choose and measure on; a twentieth of the text, or a thousand, unless given.
        languages: of the two sides.

    Raises:
        TrainingError: as `train_translator`; or if sacrebleu, which decoding is chosen with, is not installed.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise TrainingError(
            "sacrebleu is not installed; a translator's decoding is chosen by the BLEU that it computes"
        )
    train, held_out = divided(text, recipe.seed) if validation is None else (text, validation)
    trained = train_translator(
        train,
        held_out,
        recipe,
        out=run.out,
        resume=run.resume,
        workers=run.workers,
        progress=run.progress,
        tensorboard=run.tensorboard,
        languages=languages,
    )
    checkpoints = trained.trainer.checkpoints
    if not (checkpoints.regular or trained.outcome.finished):  # stopped before the first that was due
        return Trained(trained.model, run.out, trained.outcome, {}, [])
    measured = _short_enough(held_out, trained)
    finished = choose(trained.model, trained.tokenizer, checkpoints, measured)
    bleu = finished.validation["raw"]
    about = {
        "description": f"{languages.source} to {languages.target}; knows the words of what it was trained on.",
        "languages": [languages.source, languages.target],
        "decoding": asdict(finished.decoding),
        "scores": {"validation, BLEU": round(bleu.score, 2)},
        "licence": "that of its training data",
    }
    card = _CARD.format(
        name=run.out.name,
        languages=languages,
        pairs=len(train.source),
        steps=trained.outcome.progress.step,
        held_out=len(measured.source),
        bleu=bleu,
    )
    place = _saved(run.out / "model", trained, recipe, card, about)
    return Trained(trained.model, place, trained.outcome, {**trained.outcome.progress.scores, "bleu": bleu.score}, [])


def _short_enough(text: ParallelText, trained: TrainedTranslator) -> HeldOut:
    """The pairs whose sources the model takes."""
    most = trained.model.config.max_positions
    lengths = [len(ids) for ids in trained.tokenizer.encode_batch(text.source)]
    fitting = [i for i, length in enumerate(lengths) if length <= most]
    return HeldOut([text.source[i] for i in fitting], [text.target[i] for i in fitting])


def _saved(
    place: Path, trained: TrainedTranslator, recipe: TranslationRecipe, card: str, about: dict[str, Any]
) -> Path:
    """The model's directory, written; one that went on from another keeps the other's licence and alignment."""
    if isinstance(trained.model, RecurrentTranslator):
        files = {"tokenizer.json": trained.tokenizer.to_json().encode(), "README.md": card.encode()}
        return baseline_of(trained.model, files=files, about=about).save(place)
    licence = None
    if recipe.model is not None:
        base = load_model(resolve(recipe.model))
        card += f"It went on from {base.directory.name}, whose licence holds for it, too.\n"
        about = about | {name: base.about[name] for name in ("licence", "alignment") if name in base.about}
        kept = base.directory / "LICENSE"
        licence = kept.read_text(encoding="utf-8") if kept.is_file() else None
    return save_model(place, trained.model, trained.tokenizer, card=card, about=about, licence=licence)


def _model(
    out: Path, train: ParallelText, recipe: TranslationRecipe, saved: SavedModel | None
) -> tuple[AnyTranslator, TextTokenizer]:
    """The model before it learns, a new one or another that learns on, and its tokenizer."""
    if saved is None:
        tokenizer = _tokenizer(out / "tokenizer.json", train, recipe)
        return recipe.build(tokenizer), tokenizer
    if not isinstance(saved.model, Translator):
        raise TrainingError(f"model is {recipe.model}, for {saved.task}; it may be a translator that regard saved")
    own = {name: getattr(recipe, name) for name in ("dropout", "attention_dropout", "activation_dropout")}
    model = Translator(dataclasses.replace(saved.model.config, **own))
    model.load_state_dict(saved.model.state_dict())
    return model, saved.tokenizer


def _tokenizer(path: Path, train: ParallelText, recipe: TranslationRecipe) -> TextTokenizer:
    """The run's tokenizer: read if it was learnt already."""
    if path.is_file():
        try:
            return TextTokenizer.from_json(path)
        except ValueError as error:
            raise TrainingError(f"{path} is damaged: {error}") from error
    try:
        tokenizer = TextTokenizer.train_bpe([*train.source, *train.target], recipe.vocab_size)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    write_atomically(path, tokenizer.to_json().encode())
    return tokenizer
