"""Muon (arXiv 2502.16982): momentum whose matrices are made orthogonal, for the hidden matrices of a Transformer.

    M ← μ M + G        O = orthogonal(G + μ M)        W ← W − η (0.2 √max(rows, columns) · O + λ W)

The factor 0.2 √max gives an update the size that AdamW's typically has, so that one learning rate serves both:
embeddings, output heads, norms and biases are AdamW's. A matrix that holds several side by side (query, key
and value; the two of a gated feed-forward network) is made orthogonal part by part. The kernels of a stack of
convolutions are matrices of a row for each channel that they make; the first, which reads the input, is AdamW's.

Cost: five rounds of three products, 5 · (2 n + m) · m² multiply-adds a step for a matrix with m the shorter side and n
the longer. Forward and backward pass over T positions spend 3 · T · m · n on it, so that Muon adds (10 m + 5 m² / n) /
(3 T) of that: 5 m / T for a square one, which is little for large batches and much for small ones.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from regard.models.convolutions import Stages
from regard.training.errors import TrainingError
from regard.training.layer_decay import divided
from regard.transformer import Block, FeedForward, MultiHeadAttention

# The quintic a x + b x³ + c x⁵ that moves singular values in (0, 1] fastest towards 1; after five rounds they are
# between 0.68 and 1.13 (arXiv 2502.16982, section 2.1, and its reference for the coefficients).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all singular values moved close to 1, by five rounds of a Newton–Schulz iteration.

    Args:
        matrix: (m, n), floating-point.

    Returns:
        (m, n). A matrix of zeros stays one.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-12)  # the Frobenius norm bounds the largest singular value
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x


def hidden_matrices(model: nn.Module) -> dict[Tensor, list[int]]:
    """The matrices within the `Block`s and `Stages` of a model that require gradients, and the rows of each part."""
    found: dict[Tensor, list[int]] = {}
    for block in (module for module in model.modules() if isinstance(module, Block)):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                found.setdefault(module.weight, [module.out_features])
            elif isinstance(module, MultiHeadAttention):
                q, kv = module.heads * module.head_size, module.kv_heads * module.head_size
                if module.kind == "self":
                    found[module.qkv.weight] = [q, kv, kv]
                else:
                    found[module.kv.weight] = [kv, kv]
            elif isinstance(module, FeedForward) and module.gated:
                found[module.up.weight] = [module.up.out_features // 2] * 2
    for stages in (module for module in model.modules() if isinstance(module, Stages)):
        kernels = [module.weight for module in stages.modules() if isinstance(module, nn.Conv2d)]
        found |= {kernel: [len(kernel)] for kernel in kernels[1:]}
    return {weight: rows for weight, rows in found.items() if weight.requires_grad}


class Muon(torch.optim.AdamW):
    """Muon for the hidden matrices of a model, AdamW in torch's fused kernel for all else.

    Args:
        model: with at least one `regard.transformer.Block`, or `regard.models.convolutions.Stages` of two convolutions.
        momentum: μ.
        betas: decay of AdamW's two moments.
        epsilon: added to the root of AdamW's second moment.
        weight_decay: λ, decoupled, on matrices alone.
        shares: the part of the rate that each parameter learns at; all of it where this is empty.

    Raises:
        TrainingError: if none of these of the model has a matrix that requires gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
        shares: Mapping[Tensor, float] = MappingProxyType({}),
    ) -> None:
        hidden = hidden_matrices(model)
        if not hidden:
            raise TrainingError(
                "optimiser is 'muon': the model must have Transformer blocks, or stages of convolutions,"
                " with parameters to train"
            )
        rest = [p for p in model.parameters() if p.requires_grad and p not in hidden]
        groups: list[dict[str, Any]] = [
            {"params": [*hidden], "weight_decay": weight_decay, "rows": [*hidden.values()], "momentum": momentum},
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay, "rows": None, "momentum": None},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rows": None, "momentum": None},
        ]
        groups = divided([group for group in groups if group["params"]], shares)
        super().__init__(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        every = self.param_groups
        for group in every:
            if group["rows"] is not None:
                for weight, rows in zip(group["params"], group["rows"], strict=True):
                    if weight.grad is not None:
                        self._turn(group, weight, rows)
        self.param_groups = [group for group in every if group["rows"] is None]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every

    def _turn(self, group: dict[str, Any], weight: Tensor, rows: list[int]) -> None:
        """Muon's update of one matrix (m, n), part by part, or of a kernel (m, …)."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for one in every parameter's state when it is read again
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]).flatten(1)
        flat = weight.view(len(weight), -1)  # a view, or an error: what is added must reach the weight
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        for part, towards in zip(flat.split(rows), direction.split(rows), strict=True):
            part.add_(orthogonal(towards), alpha=-0.2 * group["lr"] * max(part.shape) ** 0.5)
