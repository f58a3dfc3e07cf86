"""The error of everything that reads a tokenizer or works with one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class TokenizerError(ValueError):
    """A tokenizer's files, or what was asked of a tokenizer, cannot be: one line that says what and why."""


@contextmanager
def reporting(what: str) -> Generator[None]:
    """Turn what the `tokenizers` library raises inside the block into a TokenizerError that begins with `what`."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        # The library raises bare Exception, and where its Rust code panics an exception that derives from none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {' '.join(str(error).split())}") from error


def checked_text(text: object, name: str = "text") -> str:
    """The text, if it is one.

    Raises:
        TokenizerError: if it is no string, or holds half of a surrogate pair, which is no character.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"{name} is {_brief(text)}: it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        message = f"character {error.start} of {name} is U+{code:04X}, half of a surrogate pair"
        raise TokenizerError(message) from None
    return text


def _brief(value: object) -> str:
    written = repr(value)
    return written if len(written) <= 40 else f"a {type(value).__name__}"
