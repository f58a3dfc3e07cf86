"""Which calls are measured, and why each is there.

B | batch    Hq, Hkv | query, key/value heads    Lq | query rows    Lk | keys    D | size of a head
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One call of attention, float32."""

    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    causal: bool
    why: str

    @property
    def decode(self) -> bool:
        """Whether one new row looks at keys that are already there."""
        return self.Lq < self.Lk

    @property
    def start(self) -> int:
        """The position of the first row: the rows are the last of the sequence."""
        return self.Lk - self.Lq

    @property
    def name(self) -> str:
        """`1x12x512x64 causal`: batch, query heads (and key heads), keys, head size."""
        heads = str(self.Hq) if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        size = f"{self.B}x{heads}x{self.Lk}x{self.D}"
        if self.decode:
            return f"decode {size}"
        return f"{size} causal" if self.causal else size

    @property
    def pairs(self) -> int:
        """How many (query, key) pairs of one head are computed, counted: a causal row at position i sees i + 1 keys."""
        if not self.causal:
            return self.Lq * self.Lk
        return sum(min(self.Lk, self.start + row + 1) for row in range(self.Lq))

    @property
    def flops(self) -> int:
        """Floating-point operations of the forward pass: two products, a multiplication and an addition each."""
        return 4 * self.B * self.Hq * self.pairs * self.D


def prefill(B: int, H: int, N: int, D: int, why: str, *, causal: bool = False, Hkv: int | None = None) -> Shape:
    """A whole sequence at once."""
    return Shape(B, H, Hkv or H, N, N, D, causal, why)


def decode(B: int, H: int, Lk: int, D: int, why: str, *, Hkv: int | None = None) -> Shape:
    """One new row against Lk keys, the last of them its own."""
    return Shape(B, H, Hkv or H, 1, Lk, D, True, why)


PREFILL = (
    prefill(8, 12, 128, 64, "BERT-base on a batch of sentences; many small heads, where what a call costs once shows"),
    prefill(4, 12, 256, 64, "BERT-base or ViT-base (197 patches) on a small batch"),
    prefill(1, 12, 512, 64, "BERT-base at its full length"),
    prefill(1, 12, 512, 64, "GPT-2 on half its context: masked tiles are a large share", causal=True),
    prefill(1, 16, 1024, 64, "large encoders; long enough that arithmetic decides"),
    prefill(1, 16, 1024, 64, "GPT-2 medium at its full context", causal=True),
    prefill(1, 8, 2048, 64, "long text: half of the tiles can be skipped", causal=True),
    prefill(1, 8, 4096, 64, "video and audio; keys and values of a head no longer fit the first caches"),
    prefill(1, 8, 1024, 128, "the head size of today's language models", causal=True),
    prefill(1, 32, 1024, 128, "Llama 3 8B's heads: four query heads share a key head", Hkv=8),
)

DECODE = (
    decode(1, 32, 1024, 128, "Llama 3 8B's heads, a chat: four query heads can share one read of the keys", Hkv=8),
    decode(1, 32, 4096, 128, "the same after a long document: reading keys and values decides", Hkv=8),
    decode(8, 12, 512, 64, "beams or a batch of short answers: many heads, little work in each"),
    decode(1, 12, 2048, 64, "one stream, few heads: the keys must be split among threads"),
    decode(4, 16, 1024, 64, "a small batch without grouped heads"),
)

_QUICK = {
    "1x12x512x64",
    "1x16x1024x64 causal",
    "1x8x1024x128 causal",
    "decode 1x32/8x1024x128",
    "decode 8x12x512x64",
}

TINY = (
    prefill(2, 2, 9, 8, "for the tests of this benchmark"),
    prefill(1, 4, 12, 8, "for the tests of this benchmark", causal=True, Hkv=2),
    decode(1, 4, 10, 8, "for the tests of this benchmark", Hkv=2),
)


def select(texts: Sequence[str] = (), *, quick: bool = False, tiny: bool = False) -> list[Shape]:
    """The shapes whose name contains any of `texts`, all where there is none; few with `quick`, toys with `tiny`."""
    shapes = TINY if tiny else tuple(s for s in (*PREFILL, *DECODE) if not quick or s.name in _QUICK)
    return [s for s in shapes if not texts or any(text in s.name for text in texts)]
