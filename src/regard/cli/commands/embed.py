"""`regard embed`: a vector for every text."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.files import InputError, sink, text_lines
from regard.cli.options import Threads, given
from regard.cli.text_commands import AsText, Encoder, Force, Output, Sources, answers, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def embed(
    model: Encoder,
    sources: Sources = None,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines, whatever the file is called.")] = False,
    pooling: Annotated[
        str | None,
        typer.Option(help="cls, max, mean, mean_sqrt_len, weightedmean or lasttoken; the model's own unless given."),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Length 1; as the model says unless given.")
    ] = None,
    truncate: Annotated[
        bool | None,
        typer.Option("--truncate/--no-truncate", help="Cut off long texts; where the model says so unless given."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The name of one of the model's prompts.")] = None,
    text: AsText = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Make a vector of every text, near to those of texts that mean the same.

    Prints one JSON object a text: the text and its embedding. With -o NAME.npy it writes a NumPy matrix instead, a
    row a text in float32. How many texts were cut off, if any, is said on stderr.

    Examples:

    - `regard embed -m all-MiniLM-L6-v2/ "Two dogs run." "A pair of dogs is running."`
    - `regard embed -m all-MiniLM-L6-v2/ captions.txt -o captions.npy`
    - `regard embed -m all-MiniLM-L6-v2/ --no-truncate < captions.txt > captions.jsonl`
    """
    from regard.pipelines import pipeline

    lines = text_lines(sources or [], text)
    prepare(output, force, threads)
    embedder = pipeline(model, "embed", **given(pooling=pooling, normalize=normalize, truncate=truncate, prompt=prompt))
    found = answers(
        lines,
        lambda part, tell: embedder([line.text for line in part], names=[line.name for line in part], progress=tell),
        "embedding",
    )
    if output is not None and output.suffix == ".npy" and not as_json:
        kept = [(embedding.vector, embedding.cut) for embedding in found]
        _write_matrix(output, [vector for vector, _ in kept])
        cut = sum(was for _, was in kept)
    else:
        cut = 0
        with sink(output) as write:
            for embedding in found:
                write(json.dumps(embedding.to_dict(), ensure_ascii=False) + "\n")
                cut += embedding.cut
    if cut:
        print(f"{cut:,} of {len(lines):,} texts were cut off after {embedder.reader.most} pieces", file=sys.stderr)


def _write_matrix(output: Path, vectors: list[Tensor]) -> None:
    import numpy as np
    import torch

    from regard.files import replacing

    try:
        with replacing(output) as part, part.open("xb") as stream:
            np.save(stream, torch.stack(vectors).cpu().numpy())
    except OSError as error:
        raise InputError(f"{output} cannot be written: {(error.strerror or str(error)).lower()}") from None
