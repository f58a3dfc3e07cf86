"""How a text is continued: the settings of decoding, and those that a checkpoint recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from regard.generation.constraints import Constraints
from regard.models.family import ModelError, Settings

MOST_BEAMS = 100
_SAMPLED_TOP_K = 50
"""What a generation_config.json means that samples and does not say top_k."""
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "force_words_ids": (),
    "constraints": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
}
"""What would change an answer and is not done here, with the values that change nothing."""


class SettingsError(ValueError):
    """A setting of generation that is not what it may be."""


@dataclass(frozen=True)
class GenerationSettings:
    """How a text is continued. A filter that is off changes nothing.

    The scores of the next piece are changed in this order: repetition penalty, constraints, temperature, top-k, top-p,
    min-p.

    Args:
        max_new_tokens: pieces that an answer may have, its end among them.
        temperature: scores are divided by it before one piece is drawn; 0 takes the likeliest one (greedy).
        top_k: draw among so many likeliest pieces; 0 is all (arXiv 1805.04833).
        top_p: draw among the likeliest pieces that together have this probability; 1 is all (arXiv 1904.09751).
        min_p: draw among pieces that have this share of the likeliest one's probability; 0 is all (arXiv 2407.01082).
        repetition_penalty: positive scores of pieces that the prompt or the answer has are divided by it, negative
            ones are multiplied (arXiv 1909.05858); 1 changes nothing.
        beams: hypotheses that are continued together; 1 is no beam search.
        alpha: length penalty of the beam search: n pieces with log-probability p score p / n^alpha.
        early_stopping: when a beam search is over, see `regard.generation.beam_search`.
        constraints: what may not be written.
        stop_ids: pieces that end an answer.
        stop: texts that end an answer, which they are no part of.
        seed: of the random numbers; None is another one each time.
        lookup: whether one text that is continued greedily, by scores that no filter changes, is written several pieces
            a step where it has been the same before (`regard.generation.lookup`): the same answer to rounding, sooner.

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
    early_stopping: bool | Literal["never"] = False
    constraints: Constraints = field(default_factory=Constraints)
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    lookup: bool = True

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
        lookup: object = self.lookup
        if not isinstance(lookup, bool):
            raise SettingsError(f"lookup is {lookup!r}: it must be True or False")
        if self.early_stopping not in (True, False, "never"):
            raise SettingsError(f'early_stopping is {self.early_stopping!r}: it must be True, False or "never"')
        self._check_stops()
        self._check_beams()

    @property
    def filters(self) -> bool:
        """Whether the scores of a piece are changed before one is drawn."""
        return self.repetition_penalty != 1 or bool(self.constraints) or self.temperature > 0

    @property
    def looks_up(self) -> bool:
        """Whether several pieces of one text may be written a step."""
        return self.lookup and not self.filters and self.beams == 1

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


def read_settings(values: Mapping[str, Any], where: str, *, vocab_size: int, start: int = 0) -> GenerationSettings:
    """The settings that a generation_config.json recommends.

    Read are do_sample, temperature, top_k, top_p, min_p, repetition_penalty, num_beams, length_penalty, early_stopping,
    max_new_tokens, min_new_tokens, stop_strings, eos_token_id, no_repeat_ngram_size, bad_words_ids, suppress_tokens,
    begin_suppress_tokens, forced_bos_token_id, forced_eos_token_id and renormalize_logits; of a decoder that reads
    a source also max_length and min_length, which count what it begins with. What would change answers and is not done
    here is refused; what else there is, is ignored. Where it does not sample, what only sampling reads is ignored,
    too; where it samples and does not say from how many pieces, that is from 50, as its writers mean it.

    Args:
        values: the object; an empty one gives greedy decoding.
        where: the file, for messages.
        vocab_size: pieces that there are.
        start: how many pieces a decoder that reads a source begins with; 0 is one that continues a text.

    Raises:
        ModelError: if a value is not what it may be, or asks for what is not done here.
    """
    settings = Settings(values, where)
    for name, allowed in _REFUSED.items():
        settings.refuse(name, *allowed)
    beams = settings.whole("num_beams", 1, most=MOST_BEAMS)
    stopping: Mapping[Any, bool | Literal["never"]] = {True: True, False: False, "never": "never"}
    found: dict[str, Any] = {
        "repetition_penalty": settings.number("repetition_penalty", 1.0),
        "beams": beams,
        "alpha": settings.number("length_penalty", 1.0),
        "early_stopping": settings.choice("early_stopping", stopping, False),
        "stop_ids": _ids(settings, "eos_token_id", vocab_size),
        "stop": _texts(settings, "stop_strings"),
    }
    found["constraints"] = _constraints(settings, vocab_size, start, found["stop_ids"])
    if "max_new_tokens" in settings:
        found["max_new_tokens"] = settings.whole("max_new_tokens")
    elif start and "max_length" in settings:
        found["max_new_tokens"] = settings.whole("max_length", least=start + 1) - start
    if settings.flag("do_sample", False):
        found["temperature"] = settings.number("temperature", 1.0)
        found["top_k"] = settings.whole("top_k", _SAMPLED_TOP_K, least=0)
        found["top_p"] = settings.number("top_p", 1.0)
        found["min_p"] = settings.number("min_p", 0.0)
    try:
        return GenerationSettings(**found)
    except SettingsError as error:
        raise ModelError(f"{where}: {error}") from error


def _constraints(settings: Settings, vocab_size: int, start: int, ends: tuple[int, ...]) -> Constraints:
    first = _ids(settings, "forced_bos_token_id", vocab_size)
    if len(first) > 1:
        raise settings.error("forced_bos_token_id", "one id")
    shortest = settings.whole("min_new_tokens", 0, least=0)
    if start:
        shortest = max(shortest, settings.whole("min_length", 0, least=0) - start)
    phrases = [phrase for phrase in _phrases(settings, vocab_size) if phrase not in [(end,) for end in ends]]
    return Constraints(
        no_repeat=settings.whole("no_repeat_ngram_size", 0, least=0),
        banned=(*_ids(settings, "suppress_tokens", vocab_size), *(p[0] for p in phrases if len(p) == 1)),
        phrases=tuple(p for p in phrases if len(p) > 1),
        shortest=shortest,
        first=first[0] if first else None,
        last=_ids(settings, "forced_eos_token_id", vocab_size),
        banned_first=_ids(settings, "begin_suppress_tokens", vocab_size),
        renormalised=settings.flag("renormalize_logits", False),
    )


def _ids(settings: Settings, name: str, vocab_size: int) -> tuple[int, ...]:
    value = settings.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(_is_id(i, vocab_size) for i in ids):
        raise settings.error(name, f"an id below {vocab_size}, or a list of such")
    return tuple(ids)


def _phrases(settings: Settings, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    value = settings.values.get("bad_words_ids")
    phrases = [] if value is None else value
    if not isinstance(phrases, list) or not all(
        isinstance(p, list) and p and all(_is_id(i, vocab_size) for i in p) for p in phrases
    ):
        raise settings.error("bad_words_ids", f"a list of lists of ids below {vocab_size}")
    return tuple(tuple(p) for p in phrases)


def _is_id(value: Any, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def _texts(settings: Settings, name: str) -> tuple[str, ...]:
    value = settings.values.get(name)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise settings.error(name, "a text, or a list of texts, none empty")
    return tuple(texts)
