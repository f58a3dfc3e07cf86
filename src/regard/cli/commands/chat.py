"""`regard chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.commands.generate import Generator
from regard.cli.files import InputError, decode, read, write_now
from regard.cli.options import Threads, generating
from regard.cli.sampling_options import with_settings

if TYPE_CHECKING:
    from regard.pipelines import GenerationPipeline


@with_settings
def chat(
    model: Generator,
    message: Annotated[
        str | None, typer.Argument(metavar="[MESSAGE]", help="Ask this alone; - is standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first message.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer to MESSAGE with ids, log-probabilities and why it ends.")
    ] = False,
    threads: Threads = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Talk to a model that has a chat template.

    Without MESSAGE it reads messages from the terminal: an empty line is no message, /reset forgets the conversation,
    /exit or Ctrl-D ends it, and Ctrl-C stops the answer. With MESSAGE, or where standard input is no terminal, there
    is one answer.

    Examples:

    - `regard chat -m SmolLM2-135M-Instruct/`
    - `regard chat -m model.gguf "What is the capital of France?"`
    - `git diff | regard chat -m model.gguf --system "Summarise this change." --max-new-tokens 200`
    """
    piped = sys.stdin is None or not sys.stdin.isatty()
    begin = [] if system is None else [{"role": "system", "content": system}]
    if message is None and not piped:
        if as_json:
            raise InputError("--json prints one answer: give MESSAGE")
        _converse(generating(model, threads, settings), begin)
        return
    text = decode(*read("-")) if message is None or message == "-" else message
    if not text.strip():
        raise InputError("the message is empty; there is nothing to answer")
    pipeline = generating(model, threads, settings)
    messages = [*begin, {"role": "user", "content": text}]
    if not as_json and pipeline.settings.beams == 1:
        _answer(pipeline, messages)
        return
    answer = pipeline.chat(messages)
    write_now((json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else answer.text) + "\n")
    if answer.finish == "interrupted":
        raise KeyboardInterrupt


def _converse(pipeline: GenerationPipeline, begin: list[dict[str, str]]) -> None:
    from regard.inputs.tokenizer import TokenizerError
    from regard.pipelines import TextTooLong

    messages = [*begin]
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:  # at the prompt it only takes back what was typed
            print("\n/exit or Ctrl-D ends the chat", file=sys.stderr)
            continue
        if text == "/exit":
            return
        if text == "/reset":
            messages = [*begin]
            print("the conversation is forgotten", file=sys.stderr)
        elif text.startswith("/"):
            print(f"{text.split()[0]} is no command: there are /reset and /exit", file=sys.stderr)
        elif text:
            asked = [*messages, {"role": "user", "content": text}]
            try:
                answer = _answer(pipeline, asked, stoppable=True)
            except TextTooLong as error:
                print(f"regard: {error}; /reset begins anew", file=sys.stderr)
                continue
            except TokenizerError as error:
                print(f"regard: {error}", file=sys.stderr)
                continue
            messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(pipeline: GenerationPipeline, messages: list[dict[str, str]], *, stoppable: bool = False) -> str:
    """Print an answer as it is written; Ctrl-C ends it where it is stoppable."""
    parts: list[str] = []
    try:
        for piece in pipeline.stream_chat(messages):
            parts.append(piece.text)
            write_now(piece.text)
    except KeyboardInterrupt:
        if not stoppable:
            raise
    write_now("\n")
    return "".join(parts)
