"""`regard train`: models from your own data, a command a task."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.train_options import ModelOptions, Options, with_options

if TYPE_CHECKING:
    from regard.training.data import ParallelText
    from regard.training.run import Trained
    from regard.training.tasks.translate import Languages

train = typer.Typer(
    help="Train a model on your own data, or fine-tune one. What it learns goes to DIR/model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

Texts = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files, UTF-8.")]
HeldOutTexts = Annotated[
    list[Path] | None, typer.Option(help="A text to validate on; else a tenth at the end of every file.")
]
Examples = Annotated[
    Path, typer.Argument(metavar="DATA", help="A directory with a folder for each class, or a table of paths.")
]
HeldOutExamples = Annotated[Path | None, typer.Option(help="The same to validate on; else a tenth of every class.")]
Family = Annotated[str | None, typer.Option(help="Of a new model; a wrong one lists them all.")]
PathColumn = Annotated[str | None, typer.Option(help="A table's column of the files; path unless given.")]
LabelColumn = Annotated[str | None, typer.Option(help="A table's column of the classes; label unless given.")]


@train.command("language-model")
@with_options
def language_model(
    files: Texts,
    *,
    options: ModelOptions,
    family: Family = None,
    characters: Annotated[bool, typer.Option("--characters", help="A new model's pieces are characters.")] = False,
    validation: HeldOutTexts = None,
) -> None:
    """Learn to continue texts: a new Llama with characters or byte pairs, or one that is fine-tuned.

    Ctrl-C saves and ends the run; a run that was killed loses what came after its last checkpoint, no more.

    Examples:

    - `regard train language-model shakespeare.txt --characters --steps 2000 --out runs/shakespeare`
    - `regard train language-model shakespeare.txt --out runs/shakespeare --resume`
    - `regard train language-model shakespeare.txt --family lstm --out runs/lstm`, a baseline: also rnn and gru
    - `regard train language-model notes/*.txt --model SmolLM2-135M/ --set peak_learning_rate=1e-4 --out runs/notes`
    - `regard generate -m runs/shakespeare/model "ROMEO:"`
    """
    from regard.training.tasks.language_model import LanguageModelRecipe, train_language_model

    tokens = "characters" if characters else None
    recipe, run = options.recipe(LanguageModelRecipe, family=family, tokens=tokens), options.run()
    _finish(lambda: train_language_model(files, recipe, run, validation=validation or []), "generate -m")


@train.command("masked-language-model")
@with_options
def masked_language_model(
    files: Texts,
    *,
    options: ModelOptions,
    validation: HeldOutTexts = None,
) -> None:
    """Learn to fill gaps in texts: a new BERT with word pieces, or a model that is fine-tuned on other texts.

    What it learns of a language serves `regard train classify-text --model` where there are few labelled texts.

    Examples:

    - `regard train masked-language-model letters/*.txt --size small --steps 20000 --out runs/letters`
    - `regard train masked-language-model reports.txt --model bert-base-uncased/ --out runs/reports`
    - `regard fill -m runs/letters/model "Yours [MASK],"`
    """
    from regard.training.tasks.masked_language_model import MaskedLanguageModelRecipe, train_masked_language_model

    recipe, run = options.recipe(MaskedLanguageModelRecipe), options.run()
    _finish(lambda: train_masked_language_model(files, recipe, run, validation=validation or []), "fill -m")


@train.command("classify-text")
@with_options
def classify_text(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A .csv, .tsv, .jsonl or .parquet file.")],
    *,
    options: ModelOptions,
    family: Family = None,
    text: Annotated[str | None, typer.Option(help="The column of the texts; text unless given.")] = None,
    label: LabelColumn = None,
    validation: HeldOutExamples = None,
) -> None:
    """Learn the classes of texts: a small new BERT, or any model built like one that is fine-tuned.

    Rows without a text or a label are left out and counted. Accuracy and macro-F1 are those of the validation rows.

    Examples:

    - `regard train classify-text reviews.csv --text review --label stars --out runs/reviews`
    - `regard train classify-text train.tsv --validation dev.tsv --text sentence --set size=small --out runs/sst2`
    - `regard train classify-text reviews.csv --family cnn --out runs/cnn`, a baseline: also rnn, lstm and gru
    - `regard train classify-text mail.jsonl --model MiniLM-L6/ --set peak_learning_rate=5e-5 --out runs/mail`
    - `regard classify -m runs/reviews/model "Not my cup of tea."`
    """
    from regard.training.tasks.classify_text import ClassifyTextRecipe, train_text_classifier

    recipe, run = options.recipe(ClassifyTextRecipe, family=family, text=text, label=label), options.run()
    _finish(lambda: train_text_classifier(table, recipe, run, validation=validation), "classify -m")


@train.command("classify-image")
@with_options
def classify_image(
    data: Examples,
    *,
    options: ModelOptions,
    family: Family = None,
    path: PathColumn = None,
    label: LabelColumn = None,
    validation: HeldOutExamples = None,
) -> None:
    """Learn the classes of images: a small new Vision Transformer, or a ViT, DeiT or DINOv2 that is fine-tuned.

    DATA has a folder for each class, with its images at any depth; or is a .csv, .tsv, .jsonl or .parquet file with a
    path and a label a row. Images of all formats, modes and sizes are converted; what cannot be read is left out,
    counted and named.

    Examples:

    - `regard train classify-image photos/ --out runs/photos`
    - `regard train classify-image train.csv --validation test.csv --path file --label animal --out runs/animals`
    - `regard train classify-image photos/ --from dinov2-small/ --set peak_learning_rate=5e-5 --out runs/tuned`
    - `regard classify -m runs/photos/model holiday.jpg`
    """
    from regard.training.tasks.classify_image import ClassifyImageRecipe, train_image_classifier

    recipe = options.recipe(ClassifyImageRecipe, family=family, path=path, label=label)
    run = options.run()
    _finish(lambda: train_image_classifier(data, recipe, run, validation=validation), "classify -m")


@train.command("classify-audio")
@with_options
def classify_audio(
    data: Examples,
    *,
    options: ModelOptions,
    family: Family = None,
    path: PathColumn = None,
    label: LabelColumn = None,
    validation: HeldOutExamples = None,
) -> None:
    """Learn the classes of recordings: a small new Audio Spectrogram Transformer, or one that is fine-tuned.

    DATA has a folder for each class, with its recordings at any depth; or is a .csv, .tsv, .jsonl or .parquet file with
    a path and a label a row. Anything with sound that FFmpeg reads will do; what cannot be read is left out, counted
    and named. A new model hears as much as the longest recording has, up to 10 seconds.

    Examples:

    - `regard train classify-audio words/ --out runs/words`
    - `regard train classify-audio birds.tsv --label species --set seconds=5 --size small --out runs/birds`
    - `regard train classify-audio words/ --from ast-finetuned-audioset/ --set batch_size=8 --out runs/tuned`
    - `regard classify -m runs/words/model yes.wav`
    """
    from regard.training.tasks.classify_audio import ClassifyAudioRecipe, train_audio_classifier

    recipe = options.recipe(ClassifyAudioRecipe, family=family, path=path, label=label)
    run = options.run()
    _finish(lambda: train_audio_classifier(data, recipe, run, validation=validation), "classify -m")


@train.command("translate")
@with_options
def translate(
    files: Annotated[
        list[Path], typer.Argument(metavar="SOURCE TARGET | TABLE", help="Two files line by line, or one table.")
    ],
    *,
    options: Options,
    source: Annotated[
        str | None, typer.Option("--from", help="The language that is read; a column of TABLE. source unless given.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", help="The language that is written; a column of TABLE. target unless given.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Go on from this translator: a run's model, or an embedded one.")
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Pairs to validate on, given twice for two files; else a twentieth.")
    ] = None,
    family: Family = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of a thread each; at most the recipe's shards.")] = 1,
) -> None:
    """Learn to translate: a new encoder and decoder, or a translator that learns on, from pairs of sentences.

    Two files, plain or .gz, have a sentence a line; a .csv, .tsv, .jsonl or .parquet file has two columns. At the end
    checkpoints are averaged and the search is chosen by BLEU on the validation pairs. A trained model gains from
    minimum risk training, in which translations it draws itself are held against the references.

    Examples:

    - `regard train translate train.en train.de --from en --to de --out runs/en-de`
    - `regard train translate train.en train.de --family lstm --out runs/lstm`, a baseline with attention
    - `regard train translate pairs.tsv --from en --to fr --validation dev.tsv --steps 8000 --out runs/en-fr`
    - `regard train translate train.en train.de --model runs/en-de/model --out runs/lower-risk
      --set samples=8 --set dropout=0 --set batch_tokens=1024 --set schedule=cosine --set peak_learning_rate=1e-4
      --set warmup=20 --steps 1200`
    - `regard translate -m runs/en-de/model letter.en`
    """
    from regard.training.tasks.translate import Languages, train_translation
    from regard.training.tasks.translation_recipe import TranslationRecipe

    recipe = options.recipe(TranslationRecipe, model=model, family=family)
    usual = Languages.of_run(options.out) if options.resume else Languages()
    languages = Languages(source or usual.source, target or usual.target)
    text, held_out = _pairs(files, languages), _pairs(validation, languages) if validation else None
    run = options.run(workers=workers)
    _finish(lambda: train_translation(text, recipe, run, validation=held_out, languages=languages), "translate -m")


def _pairs(paths: list[Path], languages: Languages) -> ParallelText:
    """Pairs from two files or from two columns of a table."""
    from regard.training import TrainingError
    from regard.training.data import read_parallel, read_table
    from regard.training.tables import Skipped

    skipped = Skipped("pair")
    if len(paths) == 2:
        text = read_parallel(paths[0], paths[1], skipped)
    elif len(paths) == 1:
        text = read_table(paths[0], languages.source, languages.target, skipped)
    else:
        raise TrainingError(f"{len(paths)} files are given; it may be two, line by line, or one table")
    for sentence in skipped.sentences():
        print(sentence, file=sys.stderr)
    return text


def _finish(work: Callable[[], Trained], use: str) -> None:
    """Train, and say what came of it."""
    from regard.training.baselines.saved import BASELINES

    trained = work()
    step = trained.outcome.progress.step
    scores = ", ".join(f"{name} {value:.4f}" for name, value in trained.scores.items())
    print(f"{trained.directory}: {step:,} steps, validation {scores}")
    if not trained.outcome.finished:
        print("Stopped before the last step; the same command with --resume goes on.", file=sys.stderr)
        raise KeyboardInterrupt
    if not isinstance(trained.model, BASELINES):
        print(f"Use it: regard {use} {trained.directory}", file=sys.stderr)
