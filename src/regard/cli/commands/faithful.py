"""`regard faithful`: whether what relevance methods point at is what the answer depends on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.files import InputError, check_output, progress, sink
from regard.cli.options import DEFAULT_MODEL, Threads, set_threads, with_options
from regard.cli.text_commands import Force

if TYPE_CHECKING:
    from regard.pipelines.faithful import FaithfulText, TextFaithfulness
    from regard.pipelines.word_alignment import AlignedPair, AlignedText
    from regard.training.tables import Row

_TEXTS: dict[str, Any] = {
    "text": Annotated[str | None, typer.Option(help="The column of the texts; text unless given.")],
    "columns": Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME…", help="The columns of a .csv or .tsv file that has no line of names."),
    ],
    "method": Annotated[
        list[str] | None,
        typer.Option(help="attention, value-norm, rollout, gradient or gradient-input; may be repeated; all of them."),
    ],
    "metric": Annotated[
        list[str] | None,
        typer.Option(help="deletion, insertion, comprehensiveness or sufficiency; may be repeated; all of them."),
    ],
    "deletion": Annotated[
        str | None,
        typer.Option(help="What a deleted piece becomes: mask, unk or pad; or attention: none attends to it. mask."),
    ],
    "truncate": Annotated[bool | None, typer.Option("--truncate", help="Cut off texts longer than the model reads.")],
}
_BOTH: dict[str, Any] = {
    "limit": Annotated[int | None, typer.Option(min=1, help="Only the first so many texts, or pairs.")],
    "controls": Annotated[int | None, typer.Option(min=1, help="Rankings, or alignments, at random.")],
    "seed": Annotated[int | None, typer.Option(min=0, help="Of what is random; 0 unless given.")],
}
_OFTEN = 0.5  # seconds between two reports of progress
_STOPPED = "stopped before the last {what}: what follows is of the first {done:,} of {total:,}"


@with_options(_TEXTS | _BOTH, "settings")
def faithful(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="Texts: a .csv, .tsv, .jsonl or .parquet file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A classifier of texts; with --alignment a translator.")
    ] = None,
    alignment: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Sentences aligned by hand: test.X, test.Y and X-Y.ref.wa.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the report here, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    force: Force = False,
    threads: Threads = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Measure whether a classifier's answer depends on what relevance methods point at, beside rankings at random.

    Every text is classified, every method ranks its pieces, and the model is asked again about copies without the
    highest ones, or with these alone. Intervals are of 95 %, bootstrapped over texts; the verdict says whether that of
    the difference to the random control leaves out 0. Labels of the data are not needed. Ctrl-C prints what there is.

    With --alignment a translator reads pairs of sentences, and the words that its cross-attention links are compared
    with links made by hand: error rate, precision, recall, coverage, beside the diagonal and links at random.

    Examples:

    - `regard faithful reviews.csv --text review -m runs/reviews/model`
    - `regard faithful dev.tsv --columns sentence,label --text sentence -m runs/sst2/model --limit 200 -o report.json`
    - `regard faithful mail.jsonl -m runs/mail/model --method rollout --metric deletion --deletion attention --json`
    - `regard faithful --alignment wordalign_deen/`
    """
    given = settings or {}
    if (data is None) == (alignment is None):
        raise InputError("one of DATA, a table of texts, and --alignment, a directory, must be given")
    if alignment is not None and (wrong := [name for name in given if name in _TEXTS]):
        raise InputError(f"--{wrong[0]} is for texts: --alignment takes {', '.join('--' + name for name in _BOTH)}")
    if data is not None and model is None:
        raise InputError("--model must be given: a classifier of texts")
    if output is not None:
        check_output(output, force)
    set_threads(threads)
    if data is not None:
        report, shown = _of_texts(data, str(model), **given)
    else:
        report, shown = _of_alignment(Path(str(alignment)), model or DEFAULT_MODEL, **given)
    written = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    if output is not None:
        with sink(output) as write:
            write(written)
    with sink(None) as write:
        write(written if as_json else shown)
    if not report["complete"]:
        raise KeyboardInterrupt


@contextmanager
def _until_stopped(done: list[Any], total: int, what: str) -> Generator[Callable[[int], None]]:
    """A function that shows how many there are; Ctrl-C ends what is inside, where something is done."""
    last = -_OFTEN
    try:
        with progress(total, "measuring", f"{what}s") as advance:

            def tell(number: int) -> None:
                nonlocal last
                if number == total or time.monotonic() - last >= _OFTEN:
                    last = time.monotonic()
                    advance(number)

            yield tell
    except KeyboardInterrupt:
        if not done:
            raise
        print(f"regard: {_STOPPED.format(what=what, done=len(done), total=total)}", file=sys.stderr)


def _of_texts(
    data: Path,
    model: str,
    *,
    text: str = "text",
    columns: str | None = None,
    method: list[str] | None = None,
    metric: list[str] | None = None,
    deletion: str = "mask",
    truncate: bool = False,
    limit: int | None = None,
    controls: int = 5,
    seed: int = 0,
) -> tuple[dict[str, Any], str]:
    """The report on a table of texts, as data and as a person reads it."""
    from regard.pipelines import ClassificationPipeline, pipeline
    from regard.pipelines.faithful import METHODS, TextFaithfulness
    from regard.relations import compare_with_control
    from regard.relations.faithfulness import METRICS

    rows, skipped = _rows(data, text, columns, limit)
    classify = pipeline(model, "classify", truncate=truncate)
    if not isinstance(classify, ClassificationPipeline):
        raise InputError(f"{model} does not classify texts")
    measure = TextFaithfulness(
        classify,
        methods=[*dict.fromkeys(method or METHODS)],
        metrics=[*dict.fromkeys(metric or METRICS)],
        deletion=deletion,
        controls=controls,
        seed=seed,
    )
    done, complete = _measured(measure, rows, skipped)
    found = compare_with_control([one.values for one in done], seed=seed)
    report = {
        "format_version": 1,
        "task": "texts",
        "model": model,
        "data": str(data),
        "inputs": len(done),
        "complete": complete,
        "skipped": skipped,
        "deletion": deletion,
        "controls": controls,
        "seed": seed,
        "methods": {name: METHODS[name].description for name in measure.methods},
        "metrics": {name: METRICS[name].definition for name in measure.metrics},
        "comparisons": [row.to_dict() for row in found],
        "texts": [one.to_dict() for one in done],
    }
    return report, _shown_texts(measure, done, found)


def _measured(measure: TextFaithfulness, rows: list[Row], skipped: list[str]) -> tuple[list[FaithfulText], bool]:
    """What was measured of these texts, and whether that is all; adds what was left out."""
    from regard.pipelines import RequestError

    measure.reader.read([row.values[0] for row in rows], [row.place for row in rows])  # refuses what is too long
    done: list[FaithfulText] = []
    seen = 0
    with _until_stopped(done, len(rows), "text") as tell:
        for row in rows:
            try:
                done.append(measure(row.values[0], row.place))
            except RequestError as error:  # there is nothing in it to delete
                skipped.append(str(error))
                print(error, file=sys.stderr)
            seen += 1
            tell(seen)
    if not done:
        raise InputError(skipped[-1])
    return done, seen == len(rows)


def _rows(data: Path, text: str, columns: str | None, limit: int | None) -> tuple[list[Row], list[str]]:
    """The rows that have a text, and what was left out, which is also said."""
    from regard.training.tables import Skipped, names_of, read_rows

    skipped = Skipped()
    rows: list[Row] = []
    for row in read_rows(data, (text,), skipped, names_of(columns)):
        if isinstance(row.values[0], str) and row.values[0].strip():
            rows.append(row)
        else:
            skipped.add("the text is missing", row.place)
        if len(rows) == limit:
            break
    for sentence in skipped.sentences():
        print(sentence, file=sys.stderr)
    if not rows:
        raise InputError(f"{data} has no row with a text in the column {text!r}")
    return rows, skipped.sentences()


def _shown_texts(measure: TextFaithfulness, done: list[FaithfulText], found: list[Any]) -> str:
    from regard.relations.faithfulness import CONTROL, METRICS

    instead = (
        "hidden from attention" if measure.deletion == "attention" else f"replaced by the {measure.deletion} piece"
    )
    lines = [
        f"{len(done):,} texts, {sum(one.pieces for one in done):,} pieces; a deleted piece is {instead}",
        "answer: the probability of the class that is likeliest for the whole text, "
        f"{sum(one.score for one in done) / len(done):.3f} in the mean",
    ]
    for name in measure.metrics:
        rows = [row for row in found if row.metric == name]
        lines += ["", f"{name}, {METRICS[name].better} is better: {METRICS[name].definition}"]
        lines.append(f"  {CONTROL:15} {rows[0].control}    the mean of {measure.controls} rankings a text")
        lines += [f"  {row.method:15} {row.value}    difference {row.difference}  {row.verdict}" for row in rows]
    return "\n".join(lines) + "\n"


def _of_alignment(
    directory: Path, model: str, *, limit: int | None = None, controls: int = 10, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """The report on sentences aligned by hand, as data and as a person reads it."""
    from regard.pipelines import TranslationPipeline, pipeline
    from regard.pipelines.word_alignment import aligned_pairs, read_aligned
    from regard.relations import alignment_scores

    translate = pipeline(model, "translate")
    assert isinstance(translate, TranslationPipeline)  # both kinds are
    languages = [*(translate.saved.about.get("languages") or ())]
    text = read_aligned(directory, languages[1] if len(languages) == 2 else None)
    text = text if limit is None else text.first(limit)
    for sentence in text.skipped:
        print(sentence, file=sys.stderr)
    done: list[AlignedPair] = []
    with _until_stopped(done, len(text), "pair") as tell:
        for pair in aligned_pairs(translate, text):
            done.append(pair)
            tell(len(done))
    of_done = text.first(len(done))
    links = {method: [pair.links[method] for pair in done] for method in (done[0].links if done else ())}
    if not any(pair.sure for pair in of_done.reference):
        raise InputError(f"{directory}: none of the {len(done)} pairs has a sure link")
    found = alignment_scores(links, of_done.reference, controls=controls, seed=seed)
    words = max(sum(pair.words for pair in done), 1)
    report = {
        "format_version": 1,
        "task": "alignment",
        "model": model,
        "data": str(directory),
        "languages": [*text.languages],
        "inputs": len(done),
        "complete": len(done) == len(text),
        "skipped": [*text.skipped],
        "controls": controls,
        "seed": seed,
        "words_of_one_piece": sum(pair.whole for pair in done) / words,
        "pieces_a_word": sum(pair.pieces for pair in done) / words,
        "scores": [row.to_dict() for row in found],
    }
    return report, _shown_alignment(report, of_done, found)


def _shown_alignment(report: dict[str, Any], text: AlignedText, found: list[Any]) -> str:
    sure = sum(len(pair.sure) for pair in text.reference)
    possible = sum(len(pair.possible - pair.sure) for pair in text.reference)
    source, target = text.languages
    lines = [
        f"{len(text):,} pairs from {source} to {target}, {sure:,} sure links and {possible:,} more possible ones",
        f"{report['words_of_one_piece']:.0%} of the words in {source} are one piece to the model,"
        f" {report['pieces_a_word']:.2f} pieces a word",
        "error: of alignment, lower is better; coverage: words of either side with a link",
        "",
    ]
    width = max(len(row.method) for row in found)
    for row in found:
        lines.append(
            f"{row.method:{width}}  error {row.error}  precision {row.precision.value:.3f}"
            f"  recall {row.recall.value:.3f}  coverage {row.coverage.value:.3f}"
            f"  beyond the diagonal {row.beyond_diagonal}"
        )
    return "\n".join(lines) + "\n"
