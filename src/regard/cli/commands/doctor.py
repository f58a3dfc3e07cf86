"""`regard doctor`: whether this installation is well."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Say what is installed and which attention kernels there are, and check in about two seconds that they are right.

    The exit code is 1 where something is wrong. A native kernel that was not built is not: regard works without it.
    """
    from regard.doctor import examine, lines

    def tell(part: str, value: Any) -> None:
        for line in lines(part, value):
            print(line, flush=True)

    examination = examine() if as_json else examine(tell)
    if as_json:
        print(json.dumps(examination, ensure_ascii=False, indent=2, allow_nan=False))
    if not examination["healthy"]:
        raise SystemExit(1)
