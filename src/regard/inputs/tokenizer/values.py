"""What a tokenizer is told, and what it says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from regard.elements import Element

Role = Literal["pad", "bos", "eos", "unk", "cls", "sep", "mask"]
ROLES: tuple[Role, ...] = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
Text = str | tuple[str, str]
"""One text, or a pair that a model reads together."""


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says about its tokenizer beside the pieces and how a text is cut.

    Args:
        specials: the special piece of each role that has one.
        skipped: further ids that `decode` leaves out with the special ones.
        clean_up: take the spaces before English punctuation and contractions out of what is decoded.
        chat_templates: Jinja sources by name; the usual one is "default".
    """

    specials: Mapping[Role, str] = field(default_factory=dict[Role, str])
    skipped: Collection[int] = ()
    clean_up: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Encoding:
    """The pieces of a text or of a pair, all of one length L.

    Args:
        ids: what the model reads.
        elements: what each id stands for; spans are places in the text that the piece is of.
        types: 0 for the first text, 1 for the second: BERT's token type ids, special pieces among them.
        texts: which text each piece is of, 0 or 1; None for a special piece that is in neither.
    """

    ids: list[int]
    elements: list[Element]
    types: list[int]
    texts: list[int | None]
