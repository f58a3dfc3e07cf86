"""A report in the terminal: the answer, which word renders which, and what the heads of every layer do.

Notable here: it fits any width from about 40 columns, counts wide characters as two, draws without colour
when the output is no terminal, falls back to ASCII where the output cannot encode an arrow, and never lets a
control character of the input reach the terminal.
"""

import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_report"]

MOST_WORDS = 60  # lines of the alignment
MOST_PARTNERS = 3  # words on the other side of one line
MOST_LABELS = 5
MOST_TEXT = 2000  # characters of input and answer
HEAD_WIDTH = 15  # columns that a head needs in the table of layers × heads


def print_report(
    report: Mapping[str, Any],
    *,
    width: int | None = None,
    file: IO[str] | None = None,
    color: bool | None = None,
) -> None:
    """Print a report: the answer, the alignment of words, and a table of what the heads do.

    Args:
        report: what ``regard see --json`` prints, ``format_version`` 1.
        width: columns to fill; None takes the terminal's, or 80 where there is none.
        file: where to print; None is standard output.
        color: whether to use colour; None uses it on a terminal unless NO_COLOR is set.

    Raises:
        ValueError: the width is less than 40 columns.
    """
    if width is not None and width < 40:
        raise ValueError(f"width is {width}; it may be 40 columns or more")
    from rich.console import Console

    out = sys.stdout if file is None else file
    encoding = getattr(out, "encoding", None) or "utf-8"
    plain = not _encodes(encoding, "←·–…→─")
    console = Console(
        file=out,
        width=width,
        color_system="auto" if color is not False else None,
        force_terminal=True if color else None,
        no_color=True if color is False else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    with console.capture() as captured:
        _print_answer(console, report)
        _print_labels(console, report)
        _print_elements(console, report)
        _print_alignment(console, report, "<-" if plain else "←")
        _print_heads(console, report, plain)
    # What the output cannot encode is replaced; it must not end the program.
    out.write(captured.get().encode(encoding, "replace").decode(encoding))


def _encodes(encoding: str, text: str) -> bool:
    """Whether an encoding has these characters."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _print_answer(console: "Console", report: Mapping[str, Any]) -> None:
    """The model, the input and the answer."""
    from rich.text import Text

    model = report["model"]
    about = "  ".join(_clean(model[key]) for key in ("name", "task") if model.get(key))
    console.print(Text(about, style="dim"))
    for text, style in ((report.get("input"), ""), (report.get("answer"), "bold")):
        if text is None or text == "":
            continue
        whole = str(text)
        left = len(whole) - MOST_TEXT
        shown = whole if left <= 0 else f"{whole[:MOST_TEXT]} ... ({left} more characters)"
        console.print(Text(_clean(shown, lines=True), style=style))


def _print_labels(console: "Console", report: Mapping[str, Any]) -> None:
    """The likeliest classes, with their scores."""
    from rich.cells import cell_len
    from rich.text import Text

    labels = [(_clean(label["label"]), label["score"]) for label in report.get("labels") or []][:MOST_LABELS]
    column = min(max((cell_len(name) for name, _ in labels), default=0), console.width - 10)
    for name, score in labels:
        line = Text(name)
        line.truncate(column, overflow="ellipsis", pad=True)
        console.print(line.append(f"  {score:.4f}", style="cyan"))


def _print_elements(console: "Console", report: Mapping[str, Any]) -> None:
    """What the elements are, where a sequence says it."""
    from rich.text import Text

    for sequence in report["sequences"].values():
        if sequence.get("about"):
            console.print()
            console.print(Text(_clean(sequence["about"]) + ".", style="dim"))


def _print_alignment(console: "Console", report: Mapping[str, Any], arrow: str) -> None:
    """One line for every word of the answer: the words of the input that it renders, strongest first."""
    from rich.cells import cell_len
    from rich.text import Text

    alignment = report.get("alignment")
    if not alignment or not alignment["target"]:
        return
    console.print()
    console.print(Text(f"Word alignment ({_clean(alignment['method'])})", style="dim"))
    links: dict[int, list[tuple[float, int]]] = {}
    for link in alignment["links"]:
        links.setdefault(link["target"], []).append((-link["weight"], link["source"]))
    labels = [_clean(word["label"]) for word in alignment["target"]][:MOST_WORDS]
    column = min(max(map(cell_len, labels)), console.width // 3)
    for index, label in enumerate(labels):
        line = Text(label, style="bold")
        line.append(" " * (column - cell_len(label)) + f" {arrow} ", style="dim")
        partners = sorted(links.get(index, []))[:MOST_PARTNERS]
        for place, (weight, source) in enumerate(partners):
            line.append((", " if place else "") + _clean(alignment["source"][source]["label"]) + " ", style="not bold")
            line.append(f"{-weight:.2f}", style="not bold cyan")
        if not partners:
            line.append("no word", style="not bold dim")
        console.print(line)
    left = len(alignment["target"]) - len(labels)
    if left:
        console.print(Text(f"and {left} more words", style="dim"))


def _print_heads(console: "Console", report: Mapping[str, Any], plain: bool) -> None:
    """What every head does: its role, how well it fits, and its mean entropy."""
    from rich.text import Text

    kinds = [*dict.fromkeys(map(_kind, report["sites"]))]
    # A decoder's layers alternate self- and cross-attention; each kind is easier to read on its own.
    sites: list[Mapping[str, Any]] = sorted(report["sites"], key=lambda site: kinds.index(_kind(site)))
    if not sites:
        return
    console.print()
    note = _clean(report.get("note") or "attention weights")
    console.print(Text(f"What the heads do: role, score, entropy in nats ({note})", style="dim"))
    most = max(site["heads"] for site in sites)
    if 18 + most * (HEAD_WIDTH + 2) <= console.width:
        console.print(_wide_table(sites, most, plain))
    else:
        _print_long(console, sites, plain)


def _wide_table(sites: Iterable[Mapping[str, Any]], most: int, plain: bool) -> "Table":
    """A line a layer, a column a head: for few heads on a wide terminal."""
    from rich.text import Text

    table = _table(plain)
    table.add_column("kind", no_wrap=True)
    table.add_column("layer", justify="right", no_wrap=True)
    for head in range(most):
        table.add_column(f"head {head}", width=HEAD_WIDTH)
    last = None
    for site in sites:
        cells: list[Text] = []
        for head in range(site["heads"]):
            role, score, entropy = _summary(site, head)
            cell = Text(role + "\n")
            cell.append(score, style="cyan").append(f"  {entropy}", style="dim")
            cells.append(cell)
        kind = _kind(site)
        table.add_row("" if kind == last else kind, _layer(site), *cells)
        last = kind
    return table


def _print_long(console: "Console", sites: list[Mapping[str, Any]], plain: bool) -> None:
    """A table for every kind of attention, a line a head: for many heads, or a narrow terminal."""
    from rich.cells import cell_len
    from rich.text import Text

    longest = max(cell_len(_summary(site, head)[0]) for site in sites for head in range(site["heads"]))
    for kind in dict.fromkeys(map(_kind, sites)):
        table = _table(plain)
        table.add_column(kind, overflow="fold", min_width=12)
        # One width for all kinds, so that the tables line up; the other columns and the gaps take 30.
        table.add_column("role", overflow="fold", width=max(6, min(longest, console.width - 30)))
        table.add_column("score", justify="right", no_wrap=True, style="cyan")
        table.add_column("entropy", justify="right", no_wrap=True)
        for site in sites:
            for head in range(site["heads"] if _kind(site) == kind else 0):
                role, score, entropy = _summary(site, head)
                table.add_row(f"L{_layer(site)} H{head}", Text(role), score, entropy)
        console.print(table)


def _table(plain: bool) -> "Table":
    from rich import box
    from rich.table import Table

    style = box.ASCII2 if plain else box.SIMPLE_HEAD
    return Table(box=style, show_edge=False, pad_edge=False, collapse_padding=True, header_style="dim")


def _summary(site: Mapping[str, Any], head: int) -> tuple[str, str, str]:
    """The role, its score and the mean entropy of a head, as text."""
    role: Mapping[str, Any] | None = site["roles"][head] if site.get("roles") else None
    rows: list[float | None] = site["entropy"][head] if site.get("entropy") else []
    entropies = [value for value in rows if value is not None]
    entropy = f"{sum(entropies) / len(entropies):.2f}" if entropies else ""
    if role is None:
        return "no clear role", "", entropy
    return _clean(role["name"]), f"{role['score']:.2f}", entropy


def _kind(site: Mapping[str, Any]) -> str:
    return "cross" if site["kind"] == "cross" else f"{_clean(site.get('part') or '')} self".strip()


def _layer(site: Mapping[str, Any]) -> str:
    return _clean(site["path"] if site.get("layer") is None else site["layer"])


def _clean(value: object, *, lines: bool = False) -> str:
    """Text for a terminal: on one line unless `lines`, without characters that would steer the terminal."""
    text = str(value)
    if not lines:
        text = " ".join(text.split()) or repr(text)[1:-1] or "''"
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(char, lines) else char for char in text)


def _steers(char: str, lines: bool) -> bool:
    """Whether a character is a command to a terminal; joiners are not, they make up letters and emoji."""
    if (lines and char == "\n") or char in "\u200c\u200d":
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
