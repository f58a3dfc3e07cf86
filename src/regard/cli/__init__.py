"""The command line: `regard see`, `regard translate` and others, each in a module of its own.

What is wrong with an input, a model or an output path is one line on stderr and exit code 2. Answers go to stdout,
everything else to stderr.
"""

from __future__ import annotations

import re
import sys

try:  # imports take a moment, and main() is not there yet to say that it was stopped
    import os
    import warnings
    from typing import Annotated, Any, NoReturn

    import typer

    from regard import __version__
    from regard.cli.commands.chat import chat
    from regard.cli.commands.classify import classify
    from regard.cli.commands.doctor import doctor
    from regard.cli.commands.embed import embed
    from regard.cli.commands.faithful import faithful
    from regard.cli.commands.fill import fill
    from regard.cli.commands.generate import generate
    from regard.cli.commands.models import models
    from regard.cli.commands.see import see
    from regard.cli.commands.train import train
    from regard.cli.commands.transcribe import transcribe
    from regard.cli.commands.translate import translate
    from regard.cli.files import InputError
except KeyboardInterrupt:
    print("regard: stopped", file=sys.stderr)
    raise SystemExit(130) from None

app = typer.Typer(
    help="Self-attention for text, images, audio and video: run it, and see what attends to what.",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

_UsageError: Any = typer.BadParameter.__mro__[1]  # all that may be wrong with arguments; Typer exports only a part
_STOPPED = 130  # the exit code for Ctrl-C: 128 + SIGINT


def main() -> None:
    """The `regard` command."""
    # Pillow's warnings are of limits and damage of which regard says itself what matters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        _fill_closed_streams()
        code = app(sys.argv[1:] or ["--help"], prog_name="regard", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk can still be told
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "regard"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
    except BrokenPipeError:  # the reader of our output has gone, as in `regard translate … | head`
        _abandon_output()
        raise SystemExit(1) from None
    except OSError as error:
        _abandon_output()
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except InputError as error:
        _fail(str(error))
    except ValueError as error:
        from regard.attention.native.library import SettingError
        from regard.generation import SettingsError
        from regard.inputs import InputError as UnreadableError
        from regard.inputs.tokenizer import TokenizerError
        from regard.models import ModelError
        from regard.pipelines import RequestError, TextTooLong
        from regard.training import TrainingError

        known = (
            ModelError
            | RequestError
            | SettingError
            | SettingsError
            | TextTooLong
            | TokenizerError
            | TrainingError
            | UnreadableError
        )
        if not isinstance(error, known):
            raise
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:  # torch's error for want of memory has no class of its own
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        size = re.search(r"allocate (\d+) bytes", str(error))
        _fail(f"there is not enough memory{f' for {int(size[1]):,} bytes more' if size else ''}")
    except KeyboardInterrupt:
        code = _STOPPED
    if code == _STOPPED:  # Typer returns it for Ctrl-C
        print("regard: stopped", file=sys.stderr)
        raise SystemExit(_STOPPED)


def _fail(message: str) -> NoReturn:
    print(f"regard: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed: the next file to be opened would be taken for it.

    Raises:
        InputError: if that is standard output; every command writes to it.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        number = ("stdin", "stdout", "stderr").index(name)
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        if name != "stdin":  # which stays None, for those who would read from it
            setattr(sys, name, open(number, "w", errors="replace", closefd=False))  # noqa: SIM115
    if "stdout" in closed:
        raise InputError("standard output is closed")


def _abandon_output() -> None:
    """Lose what cannot be written: Python would try once more as it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"regard {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _command in (see, translate, generate, chat, embed, fill, classify, transcribe, faithful, models, doctor):
    app.command()(_command)
app.add_typer(train, name="train")
