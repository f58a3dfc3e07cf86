"""Where an element stands: sinusoidal and learned tables, rotary embeddings, and biases that grow with distance.

Tables are added to the embeddings; rotary embeddings turn queries and keys; ALiBi and relative biases are values that
the attention call evaluates a tile at a time, so that no (Lq, Lk) matrix is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from regard.attention.frame import Frame
from regard.attention.mask import register_pytree


def sinusoidal(length: int, d: int, *, start: int = 0, base: float = 10000.0) -> Tensor:
    """The fixed table of arXiv 1706.03762: sines in the even columns, cosines in the odd ones.

    Args:
        length: number of positions L.
        d: width, even.
        start: the first position.
        base: the longest wavelength is 2 pi times this.

    Returns:
        (L, d) float32.

    Raises:
        ValueError: d is odd.
    """
    if d % 2:
        raise ValueError(f"d is {d}; a sinusoidal table needs an even width")
    # In float64, since float32 already rounds the angle of a position in the thousands.
    positions = torch.arange(start, start + length, dtype=torch.float64)[:, None]
    angles = positions * base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    return torch.stack((angles.sin(), angles.cos()), -1).reshape(length, d).float()


class LearnedPositions(nn.Module):
    """A learned vector a position (as in GPT-2 and BERT).

    Args:
        max_positions: how many positions have a vector.
        d: width.
    """

    def __init__(self, max_positions: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, d).normal_(std=0.02))

    def forward(self, length: int, start: int | Tensor = 0) -> Tensor:
        """The vectors of `length` positions from `start` (int or (B,)) on: (L, d) or (B, L, d).

        Raises:
            ValueError: a position has no vector.
        """
        first, last = (int(start.min()), int(start.max())) if isinstance(start, Tensor) else (start, start)
        if first < 0 or last + length > self.weight.shape[0]:
            raise ValueError(
                f"positions {first} … {last + length - 1} are asked for;"
                f" there are learned positions 0 … {self.weight.shape[0] - 1}"
            )
        rows = torch.arange(length, device=self.weight.device)
        return self.weight[start[:, None] + rows if isinstance(start, Tensor) else start + rows]


class Scaling(Protocol):
    """How rotary frequencies are changed for contexts longer than those of training."""

    def __call__(self, frequencies: Tensor, base: float, length: int) -> tuple[Tensor, float]:
        """From the plain inverse frequencies (R/2,) float64 to the scaled ones, and a factor on cos and sin."""
        ...


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def __call__(self, frequencies: Tensor, base: float, length: int) -> tuple[Tensor, float]:
        return frequencies / self.factor, 1.0


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the length once it passes `original_length` (dynamic NTK; see arXiv 2309.00071, B.1)."""

    factor: float
    original_length: int

    def __call__(self, frequencies: Tensor, base: float, length: int) -> tuple[Tensor, float]:
        size = 2 * frequencies.shape[0]
        ratio = self.factor * max(length, self.original_length) / self.original_length - (self.factor - 1)
        # frequency m is base^(-2m/size): enlarging the base by g multiplies it by g^(-2m/size)
        m = torch.arange(frequencies.shape[0], dtype=frequencies.dtype, device=frequencies.device)
        growth = ratio ** (size / (size - 2))
        return frequencies * growth ** (-2 * m / size), 1.0


@dataclass(frozen=True)
class YarnScaling:
    """High frequencies stay, low ones are interpolated, with a ramp between (YaRN, arXiv 2309.00071).

    Args:
        factor: how much longer the context is.
        original_length: the length of training.
        beta_fast: rotations over the original length above which a frequency stays as it is.
        beta_slow: rotations below which it is divided by `factor`.
        attention_factor: multiplies cos and sin; None: 0.1 ln(factor) + 1.
        truncate: whether the ramp begins and ends at whole dimensions.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __call__(self, frequencies: Tensor, base: float, length: int) -> tuple[Tensor, float]:
        size = 2 * frequencies.shape[0]

        def dimension(rotations: float) -> float:
            return size * math.log(self.original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        m = torch.arange(frequencies.shape[0], dtype=frequencies.dtype, device=frequencies.device)
        interpolated = ((m - low) / max(high - low, 0.001)).clamp(0, 1)
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
        return frequencies / self.factor * interpolated + frequencies * (1 - interpolated), factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths are divided by `factor`, short ones stay, with a ramp between (Llama 3.1, arXiv 2407.21783)."""

    factor: float
    original_length: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __call__(self, frequencies: Tensor, base: float, length: int) -> tuple[Tensor, float]:
        rotations = self.original_length * frequencies / (2 * math.pi)  # over the original length
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = ((rotations - low) / (high - low)).clamp(0, 1)
        return frequencies * kept + frequencies / self.factor * (1 - kept), 1.0


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864): queries and keys are turned by angles that grow with position.

    Args:
        head_size: D.
        base: the longest wavelength is about 2 pi times this.
        fraction: the share of D that is turned, from its beginning (partial rotary).
        interleaved: pairs are columns (0, 1), (2, 3), …; otherwise column m pairs with m + R/2.
        scaling: changes the frequencies for long contexts, or None.

    Raises:
        ValueError: the turned part of D is not a positive even number.
    """

    def __init__(
        self,
        head_size: int,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        size = int(head_size * fraction)
        if size <= 0 or size % 2 or size > head_size:
            raise ValueError(f"{size} of {head_size} columns would be turned; it must be an even number up to D")
        self.size, self.base, self.interleaved, self.scaling = size, base, interleaved, scaling
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._last: tuple[tuple[int, int, torch.device], tuple[Tensor, Tensor]] | None = None

    @property
    def follows_length(self) -> bool:
        """Whether the angles of a position depend on how far the call goes that it is in."""
        return isinstance(self.scaling, DynamicScaling)

    def frequencies(self, length: int = 0) -> tuple[Tensor, float]:
        """Inverse frequencies (R/2,) in float64 for a context of `length`, and the factor on cos and sin."""
        plain = self.base ** (-torch.arange(0, self.size, 2, dtype=torch.float64) / self.size)
        return self.scaling(plain, self.base, length) if self.scaling is not None else (plain, 1.0)

    def table(self, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions 0 … length - 1: two (length, R/2) float32 tensors."""
        device = device or torch.device("cpu")
        # A frequency that depends on the length must not be answered from a longer table.
        capacity = length if self.follows_length else max(64, 1 << (length - 1).bit_length())
        if (capacity, device) not in self._tables:
            with torch.inference_mode(False):  # tables made while evaluating must serve training, too
                frequencies, factor = self.frequencies(length)
                angles = torch.arange(capacity, dtype=torch.float64)[:, None] * frequencies
                table = (angles.cos() * factor).float().to(device), (angles.sin() * factor).float().to(device)
            self._tables = {(capacity, device): table}
        cos, sin = self._tables[capacity, device]
        return cos[:length], sin[:length]

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """Turns x (B, H, L, D), whose row 0 stands at position `start`, an int or (B,)."""
        L = x.shape[2]
        first = int(start.min()) if isinstance(start, Tensor) else start
        if first < 0:
            raise ValueError(f"start is {first}; rotary positions begin at 0")
        if isinstance(start, Tensor):
            cos, sin = self.table(int(start.max()) + L, x.device)
            rows = start[:, None] + torch.arange(L, device=x.device)  # (B, L)
            return apply_rotary(x, cos[rows][:, None], sin[rows][:, None], interleaved=self.interleaved)
        if self.interleaved or self.size != x.shape[3] or torch.compiler.is_compiling():
            cos, sin = self.table(start + L, x.device)
            return apply_rotary(x, cos[start:], sin[start:], interleaved=self.interleaved)
        cos, sin = self._whole_rows(start, L, x.device)
        wide = x.to(cos.dtype) if x.dtype in (torch.bfloat16, torch.float16) else x
        return torch.addcmul(wide * cos, wide.roll(self.size // 2, -1), sin).to(x.dtype)

    rotate = forward

    def _whole_rows(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and signed sin for whole rows (L, D): x · cos + (its halves swapped) · sin is x turned.

        Kept until another position is asked for, since every layer of a model asks for the same.
        """
        wanted, last = (start, length, device), self._last
        if last is not None and last[0] == wanted:
            return last[1]
        with torch.inference_mode(False):
            cos, sin = self.table(start + length, device)
            cos, sin = cos[start:], sin[start:]
            rows = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self._last = wanted, rows
        return rows


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs of columns of x by given angles (arXiv 2104.09864).

    Args:
        x: (…, L, D).
        cos: broadcasts to (…, L, R/2); the first R columns of x are turned, the others stay.
        sin: as cos.
        interleaved: pairs are neighbouring columns instead of column m and m + R/2.
    """
    R = 2 * cos.shape[-1]
    turned = x[..., :R].to(torch.promote_types(x.dtype, torch.float32))  # angles never pass through half precision
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    turned = turned.to(x.dtype)
    return turned if R == x.shape[-1] else torch.cat((turned, x[..., R:]), -1)


@dataclass(frozen=True, eq=False)
class ALiBi:
    """The bias -slope · |i - j|, one slope a head (arXiv 2108.12409).

    Args:
        slopes: (H,); gradients reach it.
    """

    slopes: Tensor

    def __post_init__(self) -> None:
        if self.slopes.dim() != 1:
            raise ValueError(f"ALiBi slopes has shape {tuple(self.slopes.shape)}; it must be (H,)")

    @staticmethod
    def standard(heads: int) -> ALiBi:
        """The slopes of the paper: 2^(-8h/H) for a power of two, interleaved with the next power's otherwise."""
        whole = 1 << (heads.bit_length() - 1)
        slopes = [2.0 ** (-8.0 * (h + 1) / whole) for h in range(whole)]
        slopes += [2.0 ** (-4.0 * (2 * h + 1) / whole) for h in range(heads - whole)]
        return ALiBi(torch.tensor(slopes))

    @property
    def heads(self) -> int:
        """H."""
        return self.slopes.shape[0]

    @property
    def parameter(self) -> Tensor:
        """The tensor that gradients reach."""
        return self.slopes

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        """The bias of the rows `rows` (R,) and the keys `keys`: (B|1, H, R, len(keys))."""
        dtype = torch.promote_types(self.slopes.dtype, torch.float32)
        distance = (_keys(keys, frame) - frame.positions(rows)[:, None, :, None]).abs()
        return self.slopes.to(dtype)[:, None, None] * -distance.to(dtype)


@dataclass(frozen=True)
class LogBuckets:
    """T5's buckets (arXiv 1910.10683): each near distance has its own, far ones share them logarithmically.

    Args:
        count: number of buckets.
        furthest: distances from here on share the last bucket.
        bidirectional: half of the buckets are for keys after the query; otherwise those share bucket 0.
    """

    count: int = 32
    furthest: int = 128
    bidirectional: bool = True

    def __call__(self, relative: Tensor) -> Tensor:
        """From j - i to bucket numbers, elementwise."""
        count = self.count // 2 if self.bidirectional else self.count
        after = (relative > 0) * count if self.bidirectional else torch.zeros_like(relative)
        distance = relative.abs() if self.bidirectional else (-relative).clamp(min=0)
        near = count // 2
        far = torch.log(distance.clamp(min=1).float() / near) / math.log(self.furthest / near) * (count - near)
        far = (near + far.to(torch.int64)).clamp(max=count - 1)
        return after + torch.where(distance < near, distance, far)


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A learned bias a head and bucket of relative position (arXiv 1910.10683).

    Args:
        table: (buckets, H); gradients reach it.
        buckets: from relative positions j - i, an int64 tensor, to bucket numbers, elementwise.
    """

    table: Tensor
    buckets: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if self.table.dim() != 2:
            raise ValueError(f"RelativeBias table has shape {tuple(self.table.shape)}; it must be (buckets, H)")

    @property
    def heads(self) -> int:
        """H."""
        return self.table.shape[1]

    @property
    def parameter(self) -> Tensor:
        """The tensor that gradients reach."""
        return self.table

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        """The bias of the rows `rows` (R,) and the keys `keys`: (B|1, H, R, len(keys))."""
        relative = _keys(keys, frame) - frame.positions(rows)[..., None]  # (B|1, R, K)
        low = int(relative.min()) if relative.numel() else 0
        # The table is looked up once a distance, not once a pair: a strip has few distinct distances.
        distances = torch.arange(low, (int(relative.max()) if relative.numel() else 0) + 1, device=frame.device)
        bias = self.table.to(torch.promote_types(self.table.dtype, torch.float32))[self.buckets(distances)]
        return bias.t()[:, relative - low].transpose(0, 1)  # (H, B|1, R, K) -> (B|1, H, R, K)


def _keys(keys: range, frame: Frame) -> Tensor:
    return torch.arange(keys.start, keys.stop, device=frame.device)


register_pytree(ALiBi, RelativeBias)
