"""One self-contained HTML page of a report: it opens from a file, without a network, in any browser.

Notable here:
- the page is assembled from the readable parts in ``page/``: markup, style and plain scripts, joined without
  a build step; the report itself is embedded as JSON, so that the page can hand it back;
- whatever the input text holds is inert: markup characters are escaped inside the JSON, the scripts only ever
  set text, and a content security policy allows no request and only the page's own script and style, by hash;
- numbers are embedded with 5 significant digits, which keeps the page of a 20-token sentence in a model of
  48 heads at about 0.4 MB;
- a file appears whole or not at all, and only a page that regard wrote is replaced unasked.
"""

import base64
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from regard.files import write_atomically

__all__ = ["check_path", "render", "write"]

FORMAT_VERSION = 1
GENERATOR = '<meta name="generator" content="regard">'
# The order matters: a script uses what the ones before it define.
SCRIPTS = (
    "failure.js",
    "data.js",
    "sinks.js",
    "state.js",
    "draw.js",
    "text.js",
    "pictures.js",
    "lines.js",
    "matrix.js",
    "picture.js",
    "alignment.js",
    "overview.js",
    "detail.js",
    "numbers.js",
    "main.js",
)


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, as one string of HTML that needs nothing beside it.

    Args:
        report: what ``regard see --json`` prints, ``format_version`` 1: ``model``, ``input``, ``answer``,
            ``note``, ``sequences``, ``sites``, ``roles`` and ``alignment`` (which may be None).

    Returns:
        The HTML. Numbers in it are rounded to 5 significant digits; those that are not finite become null.

    Raises:
        ValueError: the report is of another version, lacks a field, or a site names a sequence it lacks.
    """
    _check(report)
    script = '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)
    style = _part("page.css")
    # No source is allowed at all: the browser itself refuses any request and any script but this one.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = str(report["model"].get("name", "model"))
    filled = {
        "policy": policy,
        "title": escape(_printable(f"{name}: {_shortened(str(report.get('input') or ''))}")),
        "style": style,
        "input": escape(_printable(str(report.get("input") or ""))),
        "answer": escape(_printable(str(report.get("answer") or ""))),
        "report": _embedded(report),
        "script": script,
    }
    # One pass: what is filled in is never searched for further marks.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: filled[mark[1]], _part("page.html"))


def write(report: Mapping[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write the page of a report to a file, whole or not at all.

    Args:
        report: as for `render`.
        path: the file; its directory must exist. A link is followed, and stays a link.
        force: replace a file that regard did not write. A page that regard wrote is always replaced.

    Returns:
        The path written to.

    Raises:
        FileExistsError: the file exists, regard did not write it, and `force` is False.
        OSError: the path is a directory or a device, or cannot be written.
        ValueError: as for `render`.
    """
    page = render(report).encode("utf-8")
    target = Path(os.path.realpath(path))
    with _said_clearly(path):
        _check_target(target, force)
        write_atomically(target, page)
    return Path(path)


def check_path(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Find out whether `write` could write here, without writing: worth knowing before long work.

    Args:
        path: the file.
        force: as for `write`.

    Raises:
        FileExistsError: as for `write`.
        OSError: as for `write`.
    """
    target = Path(os.path.realpath(path))
    with _said_clearly(path):
        _check_target(target, force)
        with os.scandir(target.parent):  # raises where it is missing, or no directory
            pass
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")


@contextmanager
def _said_clearly(path: str | os.PathLike[str]) -> Generator[None]:
    """Turn what the system says into one sentence that names the path."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise type(error)(f"the page cannot be written to {os.fspath(path)}: {reason}") from error


def _check_target(target: Path, force: bool) -> None:
    """Refuse to replace what must stay."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if not force and not _is_ours(target):
        raise FileExistsError(
            f"{target} exists and was not written by regard: choose another path, or replace it with force"
        )


def _is_ours(path: Path) -> bool:
    """Whether regard wrote this file, by the generator it names in its first 2 KB."""
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(2048)


def _check(report: Mapping[str, Any]) -> None:
    """Refuse a report that the page cannot show, with the reason."""
    version = report.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"the report's format_version is {version!r}; this regard reads {FORMAT_VERSION}")
    for field in ("model", "sequences", "sites"):
        if field not in report:
            raise ValueError(f"the report has no {field!r}; it has {', '.join(map(repr, report))}")
    names = set(report["sequences"])
    for site in report["sites"]:
        for field in ("top_keys", "top_weights", "rest"):
            if site.get(field) is None:
                raise ValueError(f"site {site['path']!r} has no {field!r}: observe it with Watch(top=...)")
        for side in ("query", "key"):
            if site[side] not in names:
                raise ValueError(
                    f"site {site['path']!r} has {side} sequence {site[side]!r}; the report has "
                    f"{', '.join(map(repr, sorted(names)))}"
                )


def _embedded(report: Mapping[str, Any]) -> str:
    """The report as JSON that may stand inside a script element: nothing in it can end or open markup."""
    # "<" could end the element, U+2028 and U+2029 end lines in a script, and a lone surrogate is no UTF-8.
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", _json(report))


def _json(value: Any) -> str:
    """Compact JSON with floats at 5 significant digits, and null for those that are not finite."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return "{" + ",".join(f"{_json(str(key))}:{_json(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        row = cast("list[Any]", value)
        kinds = set(map(type, row))
        if kinds == {int}:  # rows of keys and weights are written in one go: there may be millions of numbers
            return "[" + ",".join(map(str, row)) + "]"
        if kinds == {float}:
            text = ",".join(["%.5g"] * len(row)) % tuple(row)
            if "n" not in text:  # neither nan nor inf
                return f"[{text}]"
        return "[" + ",".join(map(_json, row)) + "]"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "null"
    return json.dumps(value, ensure_ascii=False)


def _part(name: str) -> str:
    """A part of the page, from the package's own files."""
    return (files("regard.view") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The hash by which a content security policy allows exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _printable(text: str) -> str:
    """`text` without what HTML cannot hold: lone surrogates and NUL become the replacement character."""
    return re.sub("[\ud800-\udfff\0]", "\ufffd", text)


def _shortened(text: str, limit: int = 60) -> str:
    """The beginning of `text` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
