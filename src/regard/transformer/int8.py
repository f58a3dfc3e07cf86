"""Weights in eight bits, for writing text: a step reads every weight once, and a quarter of the bytes takes less time.

Each row of a matrix has a scale of its own; a weight is a whole number from -127 to 127 times that scale. A few rows
of input are multiplied by torch's kernel for it, in bfloat16 with sums in float32; many rows, where arithmetic and not
reading takes the time, by matrices in float32 that exist only meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.transformer.linear import linear

_FEW_ROWS = 16
"""Up to here torch's kernel is faster than a matrix in float32 (measured with one thread, 3072 × 576: at 16 rows it
takes 0.7 of the time, at 32 rows 1.3)."""
_VECTOR = 32
"""torch's kernel reads rows in whole vectors and over the end of any other length (seen in torch 2.13: it crashes)."""


class Int8Linear(nn.Module):
    """A linear layer whose matrix is kept in eight bits. It is for inference: nothing of it is learnt.

    Args:
        weight: (out, in), of any floating-point type.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        exact = weight.detach().float()
        scales = exact.abs().amax(dim=1) / 127
        whole = (exact / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
        self.register_buffer("weight", whole.to(torch.int8))  # (out, in)
        self.register_buffer("scales", scales)  # (out,) float32
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("_ones", torch.ones_like(scales, dtype=torch.bfloat16), persistent=False)

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    _ones: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the type of x."""
        rows = x.reshape(-1, x.shape[-1])
        few = 0 < rows.shape[0] <= _FEW_ROWS and rows.shape[1] % _VECTOR == 0 and x.device.type == "cpu"
        if few:
            # The scales stay in float32: rounded to bfloat16 each would move its whole row.
            kernel = torch._weight_int8pack_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            product = kernel(rows.bfloat16(), self.weight, self._ones).float()
        else:
            product = linear(rows.float(), self.weight.float())
        product = product * self.scales
        if self.bias is not None:
            product = product + self.bias
        return product.to(x.dtype).view(*x.shape[:-1], self.weight.shape[0])


def to_int8(model: nn.Module) -> nn.Module:
    """Replace every linear layer of a model by one in eight bits, in place, and a head tied to the embedding by a copy.

    Args:
        model: for inference; its embeddings and norms stay as they are. It can no longer be trained or saved.

    Returns:
        The same model.
    """
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias))
    embedding = getattr(model, "embedding", None)
    if isinstance(embedding, nn.Embedding) and getattr(model, "head", embedding) is None:
        model.head = Int8Linear(embedding.weight)  # without it the largest matrix of all would be read in full
    return model
