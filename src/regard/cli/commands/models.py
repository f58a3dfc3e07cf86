"""`regard models`: what comes with the package."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the models that come with the package: what they do, their scores, and their licence."""
    from regard.models.registry import embedded_models

    found: dict[str, dict[str, Any]] = {}
    for name, directory in embedded_models().items():
        about = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found[name] = {key: about.get(key) for key in ("task", "description", "limits", "scores", "licence")}
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for name, about in found.items():
        print(f"{name}  ({about['task']})")
        if about["description"]:
            print(f"  {about['description']}")
        if about["limits"]:
            print(f"  {about['limits']}")
        for score, value in (about["scores"] or {}).items():
            print(f"  {score}: {value}")
        if about["licence"]:
            print(f"  Licence of the weights: {about['licence']}")
