"""How a text is continued: the settings of decoding, and those that a checkpoint recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regard.models.family import ModelError, Settings

MOST_BEAMS = 100
_SAMPLED_TOP_K = 50
"""What a generation_config.json means that samples and does not say top_k."""


class SettingsError(ValueError):
    """A setting of generation that is not what it may be."""


@dataclass(frozen=True)
class GenerationSettings:
    """How a text is continued. A filter that is off changes nothing.

    The scores of the next piece are changed in this order: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        max_new_tokens: pieces that an answer may have, its end among them.
        temperature: scores are divided by it before one piece is drawn; 0 takes the likeliest one (greedy).
        top_k: draw among so many likeliest pieces; 0 is all (arXiv 1805.04833).
        top_p: draw among the likeliest pieces that together have this probability; 1 is all (arXiv 1904.09751).
        min_p: draw among pieces that have this share of the likeliest one's probability; 0 is all (arXiv 2407.01082).
        repetition_penalty: positive scores of pieces that the prompt or the answer has are divided by it, negative
            ones are multiplied (arXiv 1909.05858); 1 changes nothing.
        beams: hypotheses that are continued together; 1 is no beam search.
        alpha: length penalty of the beam search, see `regard.generation.beam`.
        stop_ids: pieces that end an answer.
        stop: texts that end an answer, which they are no part of.
        seed: of the random numbers; None is another one each time.

    Raises:
        SettingsError: if one of them is not what it may be, or beams come with what needs one beam.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    alpha: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_new_tokens", 1, 2**31 - 1),
            ("top_k", 0, 2**31 - 1),
            ("beams", 1, MOST_BEAMS),
            ("seed", 0, 2**63 - 1),
        ):
            value: object = getattr(self, name)
            if value is None and name == "seed":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise SettingsError(f"{name} is {value!r}: it must be a whole number from {least} to {most}")
        for name, low, high, bounds in (
            ("temperature", 0.0, 1e4, "from 0 to 10000"),
            ("top_p", 1e-9, 1.0, "above 0 and at most 1"),
            ("min_p", 0.0, 1.0, "from 0 to 1"),
            ("repetition_penalty", 1e-4, 1e4, "from 0.0001 to 10000"),
            ("alpha", 0.0, 10.0, "from 0 to 10"),
        ):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise SettingsError(f"{name} is {value!r}: it must be a number {bounds}")
        self._check_stops()
        self._check_beams()

    @property
    def filters(self) -> bool:
        """Whether the scores of a piece are changed before one is drawn."""
        return self.repetition_penalty != 1 or self.temperature > 0

    def _check_stops(self) -> None:
        for name, kind, what in (("stop_ids", int, "whole numbers of at least 0"), ("stop", str, "texts")):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(v, kind) for v in values):
                raise SettingsError(f"{name} is {values!r}: it must be a tuple of {what}")
        if any(i < 0 for i in self.stop_ids):
            raise SettingsError(f"stop_ids is {self.stop_ids}: they must be at least 0")
        if "" in self.stop:
            raise SettingsError("stop holds an empty text, which would end every answer before it begins")

    def _check_beams(self) -> None:
        if self.beams == 1:
            return
        for name, off in (("temperature", 0), ("repetition_penalty", 1), ("stop", ())):
            if getattr(self, name) != off:
                raise SettingsError(
                    f"beams is {self.beams} and {name} {getattr(self, name)!r}: with beams it must be {off!r}"
                )


def read_settings(values: Mapping[str, Any], where: str) -> GenerationSettings:
    """The settings that a generation_config.json recommends.

    Read are do_sample, temperature, top_k, top_p, min_p, repetition_penalty, num_beams, max_new_tokens, stop_strings
    and eos_token_id; what else there is, is ignored. Where it does not sample, what only sampling reads is ignored,
    too; where it samples and does not say from how many pieces, that is from 50, as its writers mean it.

    Args:
        values: the object; an empty one gives greedy decoding.
        where: the file, for messages.

    Raises:
        ModelError: if a value is not what it may be.
    """
    settings = Settings(values, where)
    found: dict[str, Any] = {
        "repetition_penalty": settings.number("repetition_penalty", 1.0),
        "beams": settings.whole("num_beams", 1, most=MOST_BEAMS),
        "stop_ids": _ids(settings, "eos_token_id"),
        "stop": _texts(settings, "stop_strings"),
    }
    if "max_new_tokens" in settings:
        found["max_new_tokens"] = settings.whole("max_new_tokens")
    if settings.flag("do_sample", False):
        found["temperature"] = settings.number("temperature", 1.0)
        found["top_k"] = settings.whole("top_k", _SAMPLED_TOP_K, least=0)
        found["top_p"] = settings.number("top_p", 1.0)
        found["min_p"] = settings.number("min_p", 0.0)
    try:
        return GenerationSettings(**found)
    except SettingsError as error:
        raise ModelError(f"{where}: {error}") from error


def _ids(settings: Settings, name: str) -> tuple[int, ...]:
    value = settings.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise settings.error(name, "a whole number of at least 0, or a list of such")
    return tuple(ids)


def _texts(settings: Settings, name: str) -> tuple[str, ...]:
    value = settings.values.get(name)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise settings.error(name, "a text, or a list of texts, none empty")
    return tuple(texts)
