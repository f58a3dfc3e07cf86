"""Train the English → German translator on Multi30k, from raw text to the saved model, and measure it.

    python benchmarks/train_translator.py --data DIR --out runs/translate-en-de
    python benchmarks/train_translator.py --data DIR --out runs/translate-en-de --resume
    python benchmarks/train_translator.py --data DIR --lower-risk runs/translate-en-de/model --out runs/lower-risk
    python benchmarks/train_translator.py --data DIR --evaluate runs/translate-en-de/model
    python benchmarks/train_translator.py --data DIR --tokenised --out runs/translate-tokenised

DIR is Multi30k (Elliott et al. 2016): raw/train.{en,de}.gz, raw/val.{en,de}, raw/test_2016_flickr.{en,de} and
tok/{val,test_2016_flickr}.lc.norm.tok.de; with --tokenised tok/train.lc.norm.tok.{en,de}.gz and the English side of the
others, too. Any field of the recipe is set with `--set name=value`.
"""

import argparse
import dataclasses
import html
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from regard.models import load_model, save_model
from regard.models.translator import Translator
from regard.training import DivergedError
from regard.training.data import ParallelText, read_lines, read_parallel
from regard.training.finish import Choices, Decoding, Finished, HeldOut, choose, decode, round_to_float16
from regard.training.metrics import Bleu
from regard.training.run import changed
from regard.training.tasks.translate import train_translator
from regard.training.tasks.translation_recipe import TranslationRecipe
from regard.training.workers import WorkerError

RECIPE = TranslationRecipe(
    dropout=0.2,
    r_drop=3.0,
    r_drop_epoch=8,
    batch_tokens=2048,
    steps=8000,
    peak_learning_rate=0.004,
    warmup=800,
    schedule="cosine",
    checkpoint_every=200,
    keep=12,
)
"""What the translator in the package was trained with at first, but for 14,000 steps: see its card."""

TOKENISED = TranslationRecipe(
    dropout=0.3, batch_tokens=4096, steps=7500, peak_learning_rate=0.005, warmup=1500, schedule="cosine",
    checkpoint_every=200, keep=12,
)  # fmt: skip
"""For lower-cased, tokenised text: near what Transformer-Tiny was published with (Wu et al. 2021)."""

RISK = TranslationRecipe(
    samples=8, dropout=0.0, batch_tokens=1024, steps=450, peak_learning_rate=0.00015, warmup=20, schedule="cosine",
    validate_every=150, checkpoint_every=25, keep=12,
)  # fmt: skip
"""For a model that has learnt by likelihood: some sixty sentences a step, each of the training text once at most. From
the second time on the validation set gains no more."""

ALIGNMENT = {"layer": 1, "shifted": False}
"""Which cross-attention the words' alignment is read from; see `regard faithful --alignment`. In four layers the
decoder looks at a word's source as it writes the word; one step later suits deeper ones (arXiv 2004.14837)."""

DESCRIPTION = "English to German, for short descriptive sentences such as picture captions; one sentence at a time."

DATA_LICENCE = (
    "CC BY-NC-SA 4.0, as the original release of its training data (Multi30k, from Flickr30k captions): non-commercial"
)

LICENCE = """\
Licence of the weights in this directory
========================================

These weights were trained on Multi30k (Elliott, Frank, Sima'an, Specia: "Multi30K: Multilingual English-German Image
Descriptions", 2016), task 1. What is known of the licence of these data:

- the repository multi30k/dataset, from which they were taken, states none (it has no LICENSE file); its README asks to
  cite the papers;
- the text derives from Flickr30k captions, and the original Multi30k release is under CC BY-NC-SA 4.0 (Creative
  Commons Attribution-NonCommercial-ShareAlike 4.0 International).

The weights are therefore given under CC BY-NC-SA 4.0: use them for non-commercial purposes alone, name Multi30k and its
authors, and share what you make of them alike. The program around them is under the Apache License 2.0.
"""

FORMS = {False: "raw text", True: "lower-cased, normalised and tokenised text"}

LIKELIHOOD = "{steps:,} steps over up to {batch_tokens:,} tokens{twice}"

LOWER_RISK = """{before}
  Then {steps:,} steps of minimum risk training (arXiv 1512.02433): {samples} translations drawn of each source at
  temperature {temperature}, up to {batch_tokens:,} tokens of references a step"""

TWICE = ", from epoch {} on in two passes (R-Drop, arXiv 2106.14448, weight {})"

CARD = """\
# translate-en-de

An encoder-decoder Transformer (arXiv 1706.03762): {description}

- **Trained on** Multi30k (Elliott et al. 2016, task 1): {pairs:,} image captions and their translations, {form}.
- **Licence of the weights**: {licence}; see LICENSE in this directory.
- **Size** {parameters:,} parameters in float16: d_model {d_model}, {encoder_layers} + {decoder_layers} layers,
  {heads} heads, one vocabulary of {vocab_size:,} pieces for both languages.
- **Training** {training}; {averaging}; beam {beams}, length penalty {alpha}. Averaging and
  penalty were chosen on the validation set.
- **Limits** It knows the words of picture captions and little else: on other text it is fluent and wrong. It takes
  one sentence of up to {max_positions} pieces. It repeats what captions take for granted about people.

| BLEU | validation | test_2016_flickr |
|---|---|---|
{scores}

lc-tok: hypothesis lower-cased and tokenised with sacremoses (de, default escaping) against the tokenised reference,
`{lc_signature}`. raw: cased text, `{raw_signature}`.

Made by `python benchmarks/train_translator.py`.
"""


def main() -> int:
    """Train, choose, save, measure; or only measure."""
    arguments = _arguments()
    torch.set_num_threads(1)  # a process a core, see regard.training.workers
    try:
        for name in ("sacrebleu", "sacremoses"):  # measured with at the end: better known to be missing before
            importlib.import_module(name)
        if arguments.evaluate is not None:
            _report_saved(arguments)
        else:
            _train(arguments)
    except (ValueError, OSError, ModuleNotFoundError, DivergedError, WorkerError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of Multi30k, with raw/ and tok/")
    parser.add_argument("--out", type=Path, default=Path("runs/translate-en-de"), help="directory of the run")
    parser.add_argument("--tokenised", action="store_true", help="take the lower-cased, tokenised text in tok/")
    parser.add_argument("--lower-risk", type=Path, metavar="MODEL_DIR", help="go on from this model by minimum risk")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--threads", type=int, default=2, help="cores used: processes of one thread each")
    parser.add_argument("--steps", type=int, help="short for --set steps=N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the recipe")
    parser.add_argument("--pairs", type=int, help="use only the first so many training pairs")
    parser.add_argument("--test-pairs", type=int, help="use only the first so many pairs of val and test")
    parser.add_argument("--evaluate", type=Path, metavar="MODEL_DIR", help="measure this model; train nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def _recipe(arguments: argparse.Namespace) -> TranslationRecipe:
    """The recipe of this text with what the command line sets."""
    steps = [] if arguments.steps is None else [f"steps={arguments.steps}"]
    if arguments.lower_risk is not None:
        base = dataclasses.replace(RISK, model=str(arguments.lower_risk))
    else:
        base = TOKENISED if arguments.tokenised else RECIPE
    return changed(base, [*arguments.set, *steps])


def training_text(data: Path, *, tokenised: bool) -> ParallelText:
    if not tokenised:
        return read_parallel(data / "raw" / "train.en.gz", data / "raw" / "train.de.gz")
    text = read_parallel(data / "tok" / "train.lc.norm.tok.en.gz", data / "tok" / "train.lc.norm.tok.de.gz")
    return ParallelText(_unescaped(text.source), _unescaped(text.target), text.skipped)


def _unescaped(lines: list[str]) -> list[str]:
    """Tokenised text without its escapes, such as &quot;, which the measure puts back."""
    return [html.unescape(line) for line in lines]


def held_out_text(data: Path, name: str, most: int | None, *, tokenised: bool) -> HeldOut:
    """A Multi30k split with both references."""
    measured = read_lines(data / "tok" / f"{name}.lc.norm.tok.de")
    if tokenised:
        source, reference = _unescaped(read_lines(data / "tok" / f"{name}.lc.norm.tok.en")), _unescaped(measured)
    else:
        source, reference = read_lines(data / "raw" / f"{name}.en"), read_lines(data / "raw" / f"{name}.de")
    if not len(source) == len(reference) == len(measured):
        raise ValueError(f"{name} has {len(source)}, {len(reference)} and {len(measured)} lines; all must be equal")
    return HeldOut(source[:most], reference[:most], measured[:most])


def _train(arguments: argparse.Namespace) -> None:
    data: Path = arguments.data
    recipe = _recipe(arguments)
    tokenised: bool = arguments.tokenised
    text = training_text(data, tokenised=tokenised)
    if text.skipped:
        print(f"{text.skipped:,} training pairs are left out: a side is empty", file=sys.stderr)
    train = ParallelText(text.source[: arguments.pairs], text.target[: arguments.pairs], text.skipped)
    validation = held_out_text(data, "val", arguments.test_pairs, tokenised=tokenised)
    test = held_out_text(data, "test_2016_flickr", arguments.test_pairs, tokenised=tokenised)
    trained = train_translator(
        train,
        ParallelText(validation.source, validation.reference, 0),
        recipe,
        out=arguments.out,
        resume=arguments.resume,
        workers=min(arguments.threads, recipe.shards),
        progress=not arguments.quiet,
    )
    progress = trained.outcome.progress
    print(f"step {progress.step:,} of {recipe.steps:,}, {progress.cpu_seconds / 3600:.2f} CPU hours,", end=" ")
    print(f"{progress.wall_seconds / 3600:.2f} hours, padding {trained.padding:.1%}, val {progress.scores}")
    if not trained.outcome.finished:
        print("stopped; continue with --resume")
        return
    model, tokenizer = trained.model, trained.tokenizer
    finished = choose(model, tokenizer, trained.trainer.checkpoints, validation, Choices())
    for label, score in finished.tried.items():
        print(f"  val {label}: {score:.2f}")
    round_to_float16(model)  # then measured again, as it is shipped
    again = validation.evaluate(decode(model, tokenizer, validation.source, finished.decoding))
    finished = dataclasses.replace(finished, validation=again)
    tested = test.evaluate(decode(model, tokenizer, test.source, finished.decoding))
    place = save_model(
        arguments.out / "model",
        model,
        tokenizer,
        card=_card(
            model,
            recipe,
            finished,
            tested,
            pairs=len(train.source),
            cpu_hours=progress.cpu_seconds / 3600,
            tokenised=tokenised,
        ),
        licence=LICENCE,
        about=_about(finished, tested),
        dtype=torch.float16,
    )
    print(f"saved {place}: average of {finished.averaged}, {finished.decoding}")
    _print_scores("val", finished.validation)
    _print_scores("test_2016_flickr", tested)


def _about(finished: Finished, tested: dict[str, Bleu]) -> dict[str, Any]:
    """What config.json says beside the model's sizes."""
    names = {"raw": "test_2016_flickr, BLEU", "lc-tok": "test_2016_flickr, lower-cased and tokenised BLEU"}
    return {
        "description": DESCRIPTION,
        "languages": ["en", "de"],
        "decoding": dataclasses.asdict(finished.decoding),
        "alignment": ALIGNMENT,
        "scores": {names[kind]: round(bleu.score, 2) for kind, bleu in tested.items()},
        "licence": DATA_LICENCE,
    }


def _card(
    model: Translator,
    recipe: TranslationRecipe,
    finished: Finished,
    tested: dict[str, Bleu],
    *,
    pairs: int,
    cpu_hours: float,
    tokenised: bool,
) -> str:
    rows = [f"| {name} | {finished.validation[name].score:.2f} | {tested[name].score:.2f} |" for name in tested]
    return CARD.format(
        **dataclasses.asdict(model.config),
        description=DESCRIPTION,
        licence=DATA_LICENCE,
        pairs=pairs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        form=FORMS[tokenised],
        training=f"{_training(recipe)}, {cpu_hours:.2f} CPU hours on two cores",
        averaging="the last checkpoint"
        if finished.averaged == 1
        else f"the average of the last {finished.averaged} checkpoints",
        beams=finished.decoding.beams,
        alpha=finished.decoding.alpha,
        scores="\n".join(rows),
        lc_signature=tested["lc-tok"].signature,
        raw_signature=tested["raw"].signature,
    )


def _training(recipe: TranslationRecipe) -> str:
    """How a model learnt, and what its card says of how the one learnt that it went on from."""
    fields = dataclasses.asdict(recipe)
    if recipe.model is None:
        twice = TWICE.format(recipe.r_drop_epoch, recipe.r_drop) if recipe.r_drop else ""
        return LIKELIHOOD.format(**fields, twice=twice)
    card = load_model(recipe.model).card
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, found, rest = before.partition("- **Training** ")
    return LOWER_RISK.format(**fields, before=rest.partition("\n- **")[0] if found else f"That of {recipe.model}.")


def _report_saved(arguments: argparse.Namespace) -> None:
    """Measure a saved model on val and test."""
    saved = load_model(arguments.evaluate)
    if not isinstance(saved.model, Translator):
        raise ValueError(f"{arguments.evaluate} holds a {type(saved.model).__name__}; it may be a Translator")
    decoding = Decoding(**saved.about.get("decoding", {}))
    print(f"{arguments.evaluate}: {decoding}")
    for name in ("val", "test_2016_flickr"):
        test = held_out_text(arguments.data, name, arguments.test_pairs, tokenised=arguments.tokenised)
        _print_scores(name, test.evaluate(decode(saved.model, saved.tokenizer, test.source, decoding)))


def _print_scores(name: str, scores: dict[str, Bleu]) -> None:
    for kind, bleu in scores.items():
        print(f"{name} {kind} BLEU {bleu}")


if __name__ == "__main__":
    sys.exit(main())
