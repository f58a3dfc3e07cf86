"""docs/models.md: every family that regard reads, from the registry, with what the parity tests measured.

REGARD_MODELS_TABLE=docs/models.md python -m pytest tests/models
"""

from __future__ import annotations

from collections.abc import Mapping

from regard.models.convolutional import IMAGE, SOUND
from regard.models.families import all_families
from regard.models.family import Family
from regard.models.gguf import ARCHITECTURES

TASKS = {
    "hidden": "embed",
    "fill": "fill",
    "classify": "classify",
    "generate": "generate, chat",
    "translate": "translate",
    "transcribe": "transcribe",
}
"""From a head to the commands it serves."""

HEADER = """\
# Models

Every family below is read from a directory as Hugging Face's libraries write it (`config.json`, safetensors in one file
or in shards, `tokenizer.json` or the older tokenizer files, the settings of image and sound), by its path or by its hub
id; `regard.load` gives the model, and `save` writes it again with the same tensors and the same configuration. Pickled
weights are refused. Where it says GGUF, llama.cpp's files are read, too.

The last column is the largest difference to `transformers` among the logits and hidden states of small random models in
float32, at least two configurations each; the tests allow 1e-4. This page is written by

    REGARD_MODELS_TABLE=docs/models.md python -m pytest tests/models

| model_type | input | architectures | commands | from | largest difference |
|---|---|---|---|---|---|
"""

FOOTER = """
Beside them stand families of regard's own: the translator of the package, `translate-en-de`, and small Transformers
behind convolutions that learn from few examples, `convolutional-image-transformer` and
`convolutional-spectrogram-transformer`, which have no twin in `transformers`; see `regard models`.
"""
OWN = {IMAGE, SOUND}
"""Families that there is nothing to measure against in transformers."""


def table(figures: Mapping[str, float]) -> str:
    """The page.

    Args:
        figures: largest difference by model_type; of others it says that none was measured.
    """
    kinds = [(family, kind) for family in all_families() for kind in family.model_types if kind not in OWN]
    lines = [_line(family, kind, figures) for family, kind in kinds]
    return HEADER + "\n".join(lines) + "\n" + FOOTER


def _line(family: Family, kind: str, figures: Mapping[str, float]) -> str:
    names = "<br>".join(f"`{name}`" for name in family.architectures)
    heads = [head for head in family.architectures.values() if head != "hidden" or family.modality == "text"]
    commands = ", ".join([*dict.fromkeys(TASKS[head] for head in heads), "see"])
    origin = "safetensors, GGUF" if kind in ARCHITECTURES else "safetensors"
    figure = f"{figures[kind]:.1e}" if kind in figures else "not measured"
    return f"| `{kind}` | {family.modality} | {names} | {commands} | {origin} | {figure} |"
