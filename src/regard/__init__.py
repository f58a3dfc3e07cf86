"""regard: self-attention for text, images, audio and video; train it, run it, and see what attends to what."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.attention import (
        ALiBi,
        Causal,
        Dense,
        Documents,
        KVCache,
        Observation,
        Padding,
        Prefix,
        RelativeBias,
        Watch,
        Window,
        attend,
        attend_observed,
    )
    from regard.models import load
    from regard.pipelines import pipeline
    from regard.relations import ablate, observe

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "Causal",
    "Dense",
    "Documents",
    "KVCache",
    "Observation",
    "Padding",
    "Prefix",
    "RelativeBias",
    "Watch",
    "Window",
    "__version__",
    "ablate",
    "attend",
    "attend_observed",
    "load",
    "observe",
    "pipeline",
]

# Everything is imported when first asked for: who only computes attention need not wait for models and tokenizers, and
# the command line answers --help, a mistake in its arguments and Ctrl-C before torch is there.
_HOME = {
    "ablate": "regard.relations",
    "load": "regard.models",
    "observe": "regard.relations",
    "pipeline": "regard.pipelines",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    globals()[name] = getattr(import_module(_HOME.get(name, "regard.attention")), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
