"""The keys and values of earlier elements, kept so that decoding computes each once.

A cache is an argument, never the state of a layer: one slot a layer, each with its own length, so nothing has to be
advanced. Keys are stored after rotation.

    B | batch    Hkv | key/value heads    L | elements    D, Dv | sizes of a key and a value
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


class Slot:
    """One layer's keys and values in buffers that grow by doubling, so that an append costs O(1) copies.

    Args:
        capacity: how many elements to make room for at the first append.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.length = 0
        """How many elements this slot has seen."""
        self.first = 0
        """The position of the first element still kept."""
        self._capacity = capacity
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._begin = 0  # where the first kept element stands in the buffers

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """The keys (B, Hkv, L, D) and values (B, Hkv, L, Dv) kept, as views; None before the first append."""
        if self._key is None or self._value is None:
            return None
        held = slice(self._begin, self._begin + self.length - self.first)
        return self._key[:, :, held], self._value[:, :, held]

    @property
    def positions(self) -> range:
        """The positions of the kept elements in the sequence."""
        return range(self.first, self.length)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.numel() * t.element_size() for t in (self._key, self._value) if t is not None)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys (B, Hkv, L, D) and values (B, Hkv, L, Dv); returns those that the new queries may see, as views.

        Raises:
            ValueError: shapes or dtypes that do not fit those kept.
        """
        _check_append(key, value, self._key, self._value)
        added = key.shape[2]
        held = self.length - self.first
        if self._key is None or self._value is None or self._begin + held + added > self._key.shape[2]:
            self._make_room(key, value, held + added)
        assert self._key is not None and self._value is not None
        end = self._begin + held
        self._key[:, :, end : end + added] = key
        self._value[:, :, end : end + added] = value
        self.length += added
        kept = self.kept
        assert kept is not None
        return kept

    def reorder(self, index: Tensor) -> None:
        """Makes batch entry b what entry index[b] was; index (B',) may repeat entries or leave some out."""
        if self._key is not None and self._value is not None:
            self._key, self._value = self._key.index_select(0, index), self._value.index_select(0, index)

    def truncate(self, n: int) -> None:
        """Forgets everything from position n on.

        Raises:
            ValueError: n is not between the first kept position and the length.
        """
        if not self.first <= n <= self.length:
            raise ValueError(f"n is {n}; this slot can be cut to {self.first} … {self.length} elements")
        self.length = n

    def _room(self, needed: int) -> int:
        return max(needed, self._capacity, 2 * (self.length - self.first), 16)

    def _make_room(self, key: Tensor, value: Tensor, needed: int) -> None:
        kept = self.kept
        room = self._room(needed)
        buffers = [t.new_empty(t.shape[0], t.shape[1], room, t.shape[3]) for t in (key, value)]
        if kept is not None:
            for buffer, old in zip(buffers, kept, strict=True):
                buffer[:, :, : old.shape[2]] = old
        self._key, self._value = buffers
        self._begin = 0


class RingSlot(Slot):
    """Keeps only what a sliding window can still see.

    The window slides along a buffer of fixed size and moves back to its beginning when it reaches the end, so the
    keys stay contiguous and in order, which every kernel wants, at the price of one copy of the window each time. The
    keys returned by `append` begin at position `first`: a call subtracts it from its `start`.

    Args:
        window: how many elements, the query's own included, a query sees.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        super().__init__()
        self.window = window

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `Slot.append`; elements that no query from here on can see are forgotten first."""
        self._forget_before(self.length - self.window + 1)
        return super().append(key, value)

    def truncate(self, n: int) -> None:
        """Forgets everything from position n on.

        Raises:
            ValueError: n is past the length, or a query at position n would see elements forgotten already.
        """
        earliest = 0 if self.first == 0 else self.first + self.window - 1
        if not earliest <= n <= self.length:
            raise ValueError(f"n is {n}; this ring of window {self.window} can be cut to {earliest} … {self.length}")
        self.length = n

    def _forget_before(self, position: int) -> None:
        forgotten = max(0, position - self.first)
        self.first += forgotten
        self._begin += forgotten

    def _room(self, needed: int) -> int:
        return max(needed, 2 * self.window)


class CrossSlot(Slot):
    """The keys and values of an encoder's memory: appended once, then only read."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps keys (B, Hkv, L, D) and values (B, Hkv, L, Dv), without a copy.

        Raises:
            ValueError: the slot is filled already.
        """
        if self._key is not None:
            raise ValueError(f"this cross slot already holds {self.length} elements; it is filled once")
        _check_append(key, value, None, None)
        self._key, self._value, self.length = key, value, key.shape[2]
        return key, value


class KVCache:
    """One slot a layer. `cache[layer].append(key, value)` returns the keys and values so far.

    Args:
        slots: the slots, a layer each; or use `dense`, `ring`, `cross`.
    """

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots

    @staticmethod
    def dense(layers: int, capacity: int = 0) -> KVCache:
        """Keeps everything; `capacity` elements are made room for at the start."""
        return KVCache(_slots(layers, lambda: Slot(capacity)))

    @staticmethod
    def ring(layers: int, window: int) -> KVCache:
        """Keeps the `window` elements that a sliding window sees, the query's own included."""
        return KVCache(_slots(layers, lambda: RingSlot(window)))

    @staticmethod
    def cross(layers: int) -> KVCache:
        """Keeps what cross-attention computes once from an encoder's memory."""
        return KVCache(_slots(layers, CrossSlot))

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, layer: int) -> Slot:
        return self._slots[layer]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    @property
    def length(self) -> int:
        """How many elements the first layer has seen (within one forward pass the layers differ)."""
        return self._slots[0].length if self._slots else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated over all layers."""
        return sum(slot.nbytes for slot in self._slots)

    def reorder(self, index: Tensor) -> None:
        """Makes batch entry b what entry index[b] was, in every layer: beams that survive, or sentences that go on."""
        for slot in self._slots:
            slot.reorder(index)

    def truncate(self, n: int) -> None:
        """Forgets everything from position n on, in every layer."""
        for slot in self._slots:
            slot.truncate(n)


def _slots(layers: int, make: Callable[[], Slot]) -> list[Slot]:
    if layers < 1:
        raise ValueError(f"layers is {layers}; a cache has at least one")
    return [make() for _ in range(layers)]


def _check_append(key: Tensor, value: Tensor, kept_key: Tensor | None, kept_value: Tensor | None) -> None:
    if key.dim() != 4 or value.dim() != 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"key has shape {tuple(key.shape)} and value {tuple(value.shape)};"
            " they are (B, Hkv, L, D) and (B, Hkv, L, Dv)"
        )
    for name, new, old in (("key", key, kept_key), ("value", value, kept_value)):
        if old is None:
            continue
        if (new.shape[0], new.shape[1], new.shape[3]) != (old.shape[0], old.shape[1], old.shape[3]):
            raise ValueError(
                f"{name} has shape {tuple(new.shape)}; the cache holds {old.shape[0]} batch entries of"
                f" {old.shape[1]} heads of size {old.shape[3]}"
            )
        if new.dtype != old.dtype:
            raise ValueError(f"{name} has dtype {new.dtype}; the cache holds {old.dtype}")
