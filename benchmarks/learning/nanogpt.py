"""The rival of the character models: a GPT as nanoGPT trains it on a CPU, written anew in plain PyTorch.

Nothing of regard is in it. What is taken over are the published facts of that project's setting for a laptop
(github.com/karpathy/nanoGPT, "I only have a macbook"): the sizes, the initial values, the optimiser, the schedule and
the batches, all of them below. Dropout is 0 there, and the model is not compiled.

B | windows in a batch    T | context    d | width    V | vocabulary
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Setting:
    """The published setting."""

    layers: int = 4
    heads: int = 4
    d_model: int = 128
    context: int = 64
    batch_size: int = 12
    steps: int = 2000
    peak: float = 1e-3
    final: float = 1e-4  # of the cosine, at the last step
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1  # on matrices and embeddings
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step; the first is 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class _Norm(nn.Module):
    """Layer normalisation without an offset."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class _Layer(nn.Module):
    """Pre-norm attention and a GELU network four times as wide, without biases."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _Norm(d), _Norm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, d = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Learned positions, one matrix for embedding and scores; N(0, 0.02), residual outputs 0.02 / √(2 layers)."""

    def __init__(self, vocab_size: int, setting: Setting) -> None:
        super().__init__()
        d = setting.d_model
        self.embedding, self.positions = nn.Embedding(vocab_size, d), nn.Embedding(setting.context, d)
        self.layers = nn.ModuleList(_Layer(d, setting.heads) for _ in range(setting.layers))
        self.norm = _Norm(d)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * setting.layers) if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → scores (B, T, V)."""
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embedding.weight)


def train(
    text: np.ndarray,
    vocab_size: int,
    seed: int,
    setting: Setting = Setting(),
    report: Callable[[int], None] | None = None,
) -> tuple[GPT, float]:
    """Train on ids; the model, and the process CPU seconds of the steps alone, without any validation.

    Args:
        text: (n,), the ids to learn from.
        vocab_size: V.
        seed: of initial values and batches.
        setting: the published one.
        report: called with the number of each step made.
    """
    torch.manual_seed(seed)
    model = GPT(vocab_size, setting).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=setting.peak, betas=setting.betas)
    ids = torch.from_numpy(text.astype(np.int64))
    steps = torch.arange(setting.context)
    start = time.process_time()
    for step in range(setting.steps):
        for group in optimiser.param_groups:
            group["lr"] = setting.rate(step)
        rows = torch.randint(len(ids) - setting.context, (setting.batch_size, 1)) + steps  # (B, T)
        scores = model(ids[rows])
        loss = F.cross_entropy(scores.flatten(0, 1), ids[rows + 1].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if report is not None:
            report(step + 1)
    return model.eval(), time.process_time() - start
