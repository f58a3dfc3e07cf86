"""What the numbers of a recipe may be: one table for all tasks, by the name of the field."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from regard.training.errors import TrainingError

Range = tuple[Callable[[float], bool], str]
"""Whether a number is allowed, and which ones are, in words."""

COUNT: Range = (lambda x: x >= 1, "1 or more")
NOT_NEGATIVE: Range = (lambda x: 0 <= x < float("inf"), "0 or more")
POSITIVE: Range = (lambda x: 0 < x < float("inf"), "more than 0")
PROBABILITY: Range = (lambda x: 0 <= x <= 1, "from 0 to 1")
PART: Range = (lambda x: 0 <= x < 1, "0 or more and less than 1")
SHARE: Range = (lambda x: 0 < x <= 1, "more than 0 and at most 1")
FASTER: Range = (lambda x: 1 <= x <= 4, "from 1 to 4")
DECIBELS: Range = (lambda x: -100 <= x <= 200, "from -100 to 200")
SEED: Range = (lambda x: 0 <= x < 2**63, "from 0 to 2 ** 63 - 1")
PIECES: Range = (lambda x: 1 <= x <= 10**7, "from 1 to 10,000,000")
BETWEEN: Range = (lambda x: 0 < x < 1, "more than 0 and less than 1")

_NAMES: dict[Range, tuple[str, ...]] = {
    COUNT: (
        *("steps", "shards", "workers", "validate_every", "checkpoint_every", "keep", "patience", "warmup"),
        *("batch_size", "batch_tokens", "batch_pieces", "context", "max_pieces", "validation_tokens"),
        *("d_model", "heads", "kv_heads", "layers", "encoder_layers", "decoder_layers", "feed_forward"),
        *("image_size", "patch", "mels", "stride"),
    ),
    NOT_NEGATIVE: (
        *("watch_every", "weight_decay", "r_drop", "r_drop_epoch", "mixup", "gain"),
        *("rand_augment", "time_masks", "frequency_masks", "shift"),
    ),
    POSITIVE: ("peak_learning_rate", "epsilon", "clip", "seconds"),
    PROBABILITY: (
        *("final_fraction", "magnitude", "cutmix", "erase", "time_mask", "frequency_mask"),
    ),
    PART: (
        *("dropout", "attention_dropout", "activation_dropout", "bpe_dropout", "label_smoothing", "momentum"),
        *("betas", "crop"),
    ),
    SHARE: ("layer_decay",),
    FASTER: ("speed",),
    DECIBELS: ("noise",),
    SEED: ("seed",),
    PIECES: ("vocab_size",),
    BETWEEN: ("ema", "validation_fraction", "masked"),
}  # fmt: skip
RANGES = {name: allowed for allowed, names in _NAMES.items() for name in names}


def check_ranges(recipe: Any) -> None:
    """Refuse a recipe, or another dataclass of settings, of which a number is out of its range.

    Args:
        recipe: a field that is None, or that no range is known of, may be anything.

    Raises:
        TrainingError: it names the field, what it is and what it may be. NaN is in no range.
    """
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name not in RANGES or value is None:
            continue
        allowed, words = RANGES[field.name]
        if not all(map(allowed, value if isinstance(value, tuple) else (value,))):
            kind = typing.get_type_hints(type(recipe))[field.name]
            others = ", or None" if type(None) in typing.get_args(kind) else ""
            raise TrainingError(f"{field.name} is {value}; it may be {words}{others}")
