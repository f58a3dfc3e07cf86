"""What a checkpoint of speech says of itself: its languages and tasks, its stamps, its spectrograms, its heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from regard.inputs.features import WhisperSettings
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError
from regard.models.family import Settings
from regard.pipelines.texts import RequestError


@dataclass(frozen=True)
class Speech:
    """What there is beside the weights.

    Args:
        features: how sound becomes what the model reads.
        start: the first input of the decoder.
        languages: the piece of each language's code; none where the model knows one alone.
        transcribe: the piece that asks for the words as they are spoken.
        translate: the piece that asks for them in English.
        spoken: the language that generation_config.json asks for, which may be none of these codes but a name.
        no_stamps: the piece that asks for no stamps.
        latest: how many steps after 0 the first stamp may be at most.
        heads: layer and number of each head whose cross-attention follows the sound.
        previous: the piece before text of what was said before; None where the model has none.
        no_speech: the piece that says that nobody speaks; None where the model has none.
    """

    features: WhisperSettings
    start: int
    languages: Mapping[str, int]
    transcribe: int | None
    translate: int | None
    spoken: str | None
    no_stamps: int
    latest: int | None
    heads: tuple[tuple[int, int], ...]
    previous: int | None
    no_speech: int | None

    @property
    def first_stamp(self) -> int:
        """The piece for 0 seconds."""
        return self.no_stamps + 1

    def spoken_of(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The pieces that are no stamps."""
        return tuple(i for i in ids if i < self.first_stamp)

    def language(self, asked: str | None) -> str | None:
        """The code of the language that is asked for, or that the checkpoint recommends; None has to be heard.

        Raises:
            RequestError: if the model does not know its code.
        """
        code = self.spoken if asked is None else asked
        if code is None or code in self.languages:
            return code
        known = ", ".join(sorted(self.languages)) or "this model knows one alone, and it must be left out"
        if asked is None:
            raise RequestError(f"generation_config.json asks for the language {code!r}; give one of its codes: {known}")
        raise RequestError(f"language is {asked!r}: it may be {known}")

    def prompt(self, language: str | None, english: bool) -> list[int]:
        """What the decoder reads first, for speech in a language; without one where it has yet to be heard.

        Raises:
            RequestError: if the model does not know the language, or English of other languages is asked for in vain.
        """
        code = self.language(language)
        task = self.translate if english else self.transcribe
        if not self.languages or task is None:
            if english:
                raise RequestError("english is True: this model translates nothing, and it must be False")
            return [self.start]
        return [self.start, *([] if code is None else [self.languages[code]]), task]


def read_speech(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Speech:
    """What a checkpoint's files say.

    Raises:
        ModelError: if they say what may not be, or there is no piece for what is needed.
    """
    config: Any = checkpoint.model.config
    where = checkpoint.directory / "generation_config.json"
    values = Settings(checkpoint.json(where.name), str(where))
    languages = {name.strip("<|>"): i for name, i in _ids(values, "lang_to_id", config.vocab_size).items()}
    tasks = _ids(values, "task_to_id", config.vocab_size)
    no_stamps = values.values.get("no_timestamps_token_id", tokenizer.id_of("<|notimestamps|>"))
    if not isinstance(no_stamps, int) or not 0 <= no_stamps < config.vocab_size - 1:
        raise ModelError(f"{where}: no_timestamps_token_id is {no_stamps!r}: it must be an id before the stamps")
    return Speech(
        features=_features(checkpoint),
        start=config.decoder_start,
        languages=languages,
        transcribe=tasks.get("transcribe", tokenizer.id_of("<|transcribe|>")),
        translate=tasks.get("translate", tokenizer.id_of("<|translate|>")),
        spoken=_spoken(values, languages),
        no_stamps=no_stamps,
        latest=values.whole("max_initial_timestamp_index", least=0)
        if "max_initial_timestamp_index" in values
        else None,
        heads=_heads(values, config.decoder_layers, config.decoder_heads),
        previous=tokenizer.id_of("<|startofprev|>"),
        # Older checkpoints have another name for it.
        no_speech=next(filter(None, map(tokenizer.id_of, ("<|nospeech|>", "<|nocaptions|>"))), None),
    )


def _features(checkpoint: Checkpoint) -> WhisperSettings:
    config: Any = checkpoint.model.config
    name = "preprocessor_config.json"
    found = checkpoint.json(name)
    if not found:  # newer ones keep it together with what else a processor has
        name = "processor_config.json"
        found = checkpoint.json(name).get("feature_extractor") or {}
    try:
        features = WhisperSettings.from_json(found) if found else WhisperSettings(mels=config.mels)
    except ValueError as error:
        raise ModelError(f"{checkpoint.directory / name}: {error}") from error
    if (features.mels, features.frames) != (config.mels, config.frames):
        raise ModelError(
            f"{checkpoint.directory / name}: spectrograms have {features.mels} bins and {features.frames} frames: the"
            f" model reads {config.mels} and {config.frames}"
        )
    return features


def _ids(values: Settings, name: str, vocab_size: int) -> dict[str, int]:
    """An object of ids; an empty one where there is none."""
    found = values.values.get(name) or {}
    if not isinstance(found, dict) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in found.values()
    ):
        raise values.error(name, f"an object of ids below {vocab_size}")
    return {str(key): i for key, i in found.items()}


def _spoken(values: Settings, languages: Mapping[str, int]) -> str | None:
    """The language that the file asks for by its name, or, as older files do, by what the decoder begins with."""
    if "language" in values:
        return str(values.values["language"]).strip("<|>")
    forced = values.values.get("forced_decoder_ids")
    if not forced:
        return None
    if not isinstance(forced, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in forced):
        raise values.error("forced_decoder_ids", "a list of places and ids")
    ids = {place: i for place, i in forced}
    return next((code for code, i in languages.items() if i == ids.get(1)), None)


def _heads(values: Settings, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    found = values.values.get("alignment_heads")
    if not found:
        return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    if not isinstance(found, list) or not all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int) and 0 <= n < most for n, most in zip(pair, (layers, heads), strict=True))
        for pair in found
    ):
        raise values.error("alignment_heads", f"a list of layers below {layers} and heads below {heads}")
    return tuple((layer, head) for layer, head in found)
