"""A progress bar for a person who watches a run."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from regard.training.checkpoint import Progress

T = TypeVar("T")
Show = Callable[[Mapping[str, float], Progress], None]


@contextmanager
def display(steps: int, start: Progress, *, shown: bool = True) -> Generator[Show]:
    """A bar on stderr with loss, rate and time left, and a line a validation.

    Args:
        steps: of the whole run.
        start: where it stands now.
        shown: if not, nothing is shown.

    Yields:
        Called after every step with its record and the progress.
    """
    if not shown:
        yield lambda record, progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:,.0f} items/s"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task("", total=steps, completed=start.step, loss=math.nan, rate=0.0)
        smooth, before = math.nan, start.scores

        def show(record: Mapping[str, float], progress: Progress) -> None:
            nonlocal smooth, before
            smooth = record["loss"] if math.isnan(smooth) else 0.95 * smooth + 0.05 * record["loss"]
            bar.update(task, completed=progress.step, loss=smooth, rate=progress.tokens / progress.wall_seconds)
            if progress.scores is not before:
                before = progress.scores
                scores = ", ".join(f"{name} {value:.4f}" for name, value in before.items())
                bar.console.print(f"step {progress.step:,}: validation {scores}")

        yield show


def counted(items: Iterable[T], total: int, what: str, *, shown: bool = True) -> Iterator[T]:
    """The same items, with a bar on stderr that says how many of the total are done.

    Args:
        items: as many as the total.
        total: of them.
        what: is done with them, such as "reading".
        shown: if not, nothing is shown.
    """
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total, console=Console(stderr=True), transient=True)
