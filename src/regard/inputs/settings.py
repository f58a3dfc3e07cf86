"""Reading the JSON of a `preprocessor_config.json`, believing nothing in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class Settings:
    """The entries of a preprocessor's JSON; every one that is there must be asked for by name, or is an error.

    A flag that is null is off, as it is for the Hugging Face classes; nothing else that is needed may be null.

    Args:
        data: the JSON object.
        file: how errors name it.
    """

    def __init__(self, data: Mapping[str, Any], file: str = "preprocessor_config.json") -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{file} holds {type(data).__name__}: it must be an object")
        self._data = {str(key): value for key, value in data.items()}
        self._file = file

    def error(self, key: str, must: str) -> ValueError:
        """The error for an entry that is not what it must be."""
        value = repr(self._data.get(key))
        return ValueError(f"{key} in {self._file} is {value if len(value) <= 80 else value[:77] + '...'}: {must}")

    def kind(self, keys: tuple[str, ...], known: Collection[str]) -> str:
        """The name of the preprocessor, under the first of the keys that is there.

        Raises:
            ValueError: there is none, or one that is not known.
        """
        for key in keys:
            if self._data.get(key) is not None:
                name = self._data[key]
                if not isinstance(name, str) or name not in known:
                    raise self.error(key, f"it may be {', '.join(known)}")
                return name
        raise ValueError(f"{self._file} has no {keys[0]}: it may be {', '.join(known)}")

    def check_known(self, known: Collection[str]) -> None:
        """Raises ValueError if there is an entry that is none of `known`, and not null."""
        unknown = sorted(key for key, value in self._data.items() if key not in known and value is not None)
        if unknown:
            raise ValueError(f"{self._file} has settings that are not known here: {', '.join(unknown)}")

    def get(self, key: str, default: Any = None) -> Any:
        """An entry as it is."""
        return self._data.get(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """An entry that is true or false."""
        value = self._data.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "it must be true or false")
        return bool(value)

    def whole(self, key: str, default: int, least: int = 1, most: int = 2**31) -> int:
        """An entry that is an integer from `least` to `most`."""
        value = self._data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"it must be an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """An entry that is a finite number."""
        value = self._data.get(key, default)
        if not is_number(value):
            raise self.error(key, "it must be a number")
        return float(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Raises ValueError if an entry is there, and neither null nor one of `allowed`: those alone are done here."""
        if self._data.get(key) not in (None, *allowed):
            raise self.error(key, f"only {' or '.join(map(repr, allowed))} is known here")


def is_number(value: object) -> bool:
    """Whether this is a number that float32 holds, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30
