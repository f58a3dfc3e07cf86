"""The options that the commands of `regard train` have in common, listed once, and what they make."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from regard.training.run import Run

RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every task."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Directory of the run.")]
    steps: Annotated[int | None, typer.Option(min=1, help="Updates in all.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; a wrong NAME lists them all."),
    ] = None
    precision: Annotated[str | None, typer.Option(help="float32, or bfloat16: matrix products with fewer digits.")] = (
        None
    )
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile what lies around attention, with torch.compile.")
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in DIR, with the same data; settings not given are those it has."
        ),
    ] = False
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write for TensorBoard, to DIR/tensorboard.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False

    def recipe(self, kind: type[RecipeT], **given: Any) -> RecipeT:
        """The recipe of the run that is resumed, or the usual one, with what the command line sets.

        Args:
            kind: its dataclass.
            given: fields that options of this task alone set; None: not given.
        """
        from regard.training.run import changed, recorded

        base = recorded(kind, self.out) if self.resume else None
        named = given | {"steps": self.steps, "precision": self.precision, "compile": self.compile}
        written = [f"{name}={json.dumps(value)}" for name, value in named.items() if value is not None]
        return changed(base or kind(), [*written, *(self.settings or [])])

    def run(self, *, workers: int = 1) -> Run:
        """Where and how to compute, on one thread a process."""
        return self._run(1, workers=workers)

    def _run(self, threads: int | None, *, workers: int) -> Run:
        from regard.cli.options import set_threads
        from regard.training.run import Run

        set_threads(threads)
        tell = partial(print, file=sys.stderr)
        return Run(
            self.out,
            resume=self.resume,
            progress=not self.quiet,
            tell=tell,
            tensorboard=self.tensorboard,
            workers=workers,
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Options of the tasks that make a new model in one of some sizes, or fine-tune one."""

    model: Annotated[
        str | None,
        typer.Option("--model", "--from", "-m", help="Fine-tune this: a checkpoint's directory, or a hub id."),
    ] = None
    size: Annotated[str | None, typer.Option(help="Of a new model: tiny, small, medium or large.")] = None
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")] = None

    def recipe(self, kind: type[RecipeT], **given: Any) -> RecipeT:
        """As `Options.recipe`, with the model and the size."""
        return super().recipe(kind, model=self.model, size=self.size, **given)

    def run(self, *, workers: int = 1) -> Run:
        """Where and how to compute."""
        return self._run(self.threads, workers=workers)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `options` is a dataclass of options: Typer sees each of its fields as one.

    The function's own parameters come first. All are given by name.
    """
    hints = get_type_hints(function, include_extras=True)
    kind: type[Any] = hints["options"]
    shared = get_type_hints(kind, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "options"
    ]
    for field in fields(kind):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=shared[field.name]
            )
        )

    @wraps(function)
    def command(**given: Any) -> None:
        options = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given, options=options)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
