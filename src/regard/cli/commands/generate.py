"""`regard generate`: a text, continued."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from regard.cli.files import InputError, decode, lines, progress, read, without_line_end, write_now
from regard.cli.options import Threads, generating
from regard.cli.sampling_options import with_settings

Generator = Annotated[str, typer.Option("--model", "-m", help="A checkpoint's directory, or a GGUF file.")]


@with_settings
def generate(
    model: Generator,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="The text; - is standard input.")] = "-",
    each_line: Annotated[
        bool, typer.Option("--lines", help="Every line of standard input is a prompt; they are continued in batches.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, ids, log-probabilities and why it ends, one object a prompt.")
    ] = False,
    threads: Threads = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Continue a text, and print the continuation as it is written.

    Settings that are not given are those that the model recommends in its generation_config.json. Ctrl-C ends the
    answer.

    Examples:

    - `regard generate -m SmolLM2-135M/ "The sun was low, and"`
    - `regard generate -m model.gguf --temperature 0.8 --top-p 0.95 --seed 7 "Once upon a time"`
    - `regard generate -m SmolLM2-135M/ --lines --json < prompts.txt > answers.jsonl`
    """
    if each_line and prompt != "-":
        raise InputError("--lines reads standard input: leave PROMPT out")
    text = _text(prompt)
    prompts = lines(text) if each_line else [text]
    for number, line in enumerate(prompts, 1):
        if not line.strip():
            what = f"line {number}" if each_line else "the prompt"
            raise InputError(f"{what} is empty; there is nothing to continue")
    pipeline = generating(model, threads, settings)
    if not each_line and not as_json and pipeline.settings.beams == 1:
        for piece in pipeline.stream(text):
            write_now(piece.text)
        write_now("\n")
        return
    if each_line:
        with progress(len(prompts), "continuing") as advance:
            answers = pipeline(prompts, progress=advance)
    else:
        answers = [pipeline(text)]
    for answer in answers:
        written = json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else answer.text
        write_now((written.replace("\n", " ") if each_line and not as_json else written) + "\n")
    if any(answer.finish == "interrupted" for answer in answers):
        raise KeyboardInterrupt


def _text(prompt: str) -> str:
    if prompt == "-":
        return without_line_end(decode(*read("-")))
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("PROMPT is not UTF-8") from None
    return prompt
