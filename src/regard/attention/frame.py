"""The call that masks and biases are evaluated in, and the tiles of tensors that broadcast to its matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Rows: TypeAlias = Tensor | range | slice


@dataclass(frozen=True, eq=False)
class Frame:
    """The call that a mask or a bias is evaluated in: its lengths, and where its first row stands.

    Args:
        Lq: number of query rows.
        Lk: number of keys.
        start: position of row 0 among the keys, an int or an int64 tensor (B,).
        device: where results are made.
    """

    Lq: int
    Lk: int
    start: int | Tensor = 0
    device: torch.device | None = None

    def rows(self, rows: Rows) -> Tensor:
        """The row numbers that `rows` names: (R,) int64."""
        if isinstance(rows, slice):
            rows = range(*rows.indices(self.Lq))
        if isinstance(rows, range):
            return torch.arange(rows.start, rows.stop, rows.step, device=self.device)
        return rows.to(device=self.device, dtype=torch.int64)

    def positions(self, rows: Tensor) -> Tensor:
        """The positions of the rows `rows` (R,) in the sequence: (B|1, R) int64."""
        if isinstance(self.start, Tensor):
            return self.start.to(device=self.device, dtype=torch.int64)[:, None] + rows
        return (rows + self.start)[None]


def tile_of(matrix: Tensor, rows: Tensor, keys: range, device: torch.device | None) -> Tensor:
    """The tile of rows `rows` and keys `keys` of a tensor that broadcasts to (B, H, Lq, Lk): four dimensions, each
    broadcast dimension still of size 1."""
    matrix = matrix.reshape((1,) * (4 - matrix.dim()) + tuple(matrix.shape))
    if matrix.shape[-1] != 1:
        matrix = matrix[..., keys.start : keys.stop]
    if matrix.shape[-2] != 1:
        matrix = matrix.index_select(-2, rows.to(matrix.device))
    return matrix.to(device) if device is not None else matrix


def check_broadcast(name: str, tensor: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Raises ValueError unless `tensor` broadcasts to `shape` without enlarging it."""
    sizes = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    if len(sizes) != 4 or any(size not in (1, wanted) for size, wanted in zip(sizes, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to (B, H, Lq, Lk) = {shape}"
        )
