"""Models by name: those that come with the package, and directories."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from regard.models.store import CONFIG, ModelError, SavedModel, load_model


def embedded_models() -> dict[str, Path]:
    """The models that come with the package: name → directory, sorted by name."""
    root = Path(str(resources.files("regard.models"))) / "embedded"
    return {config.parent.name: config.parent for config in sorted(root.glob(f"*/{CONFIG}"))}


def resolve(source: str | Path) -> Path:
    """The directory of a model.

    Args:
        source: the name of an embedded model, or a directory. A name comes first: write ./NAME for a
            directory that is called like an embedded model.

    Raises:
        ModelError: if it is neither; the message lists the names.
    """
    known = embedded_models()
    if str(source) in known and not isinstance(source, Path):
        return known[source]
    if Path(source).is_dir():
        return Path(source)
    names = ", ".join(known) or "none"
    raise ModelError(f"{str(source)!r} is neither a directory nor the name of an embedded model (known: {names})")


def load(source: str | Path) -> SavedModel:
    """Load a model by name or directory.

    Raises:
        ModelError: if there is none, or it is damaged; see `resolve` and `load_model`.
    """
    return load_model(resolve(source))
