"""Attention and everything observed in it, written out once more for these tests alone.

Nothing here is imported from the package: dense matrices in float64, a line for each definition, no speed.

    B  batch entries        H, Hq  query heads      Hkv  key/value heads
    Lq query rows           Lk     keys             D, Dv  sizes of a head

A *rule* is a mask as a nested tuple, e.g. ``("and", ("causal",), ("padding", key_lengths, None, False))``.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rule = tuple[Any, ...]


def first_positions(start: int | Tensor, batch: int) -> Tensor:
    """The position of the first query row among the keys, one for each batch entry: (B,)."""
    return torch.as_tensor(start).reshape(-1).expand(batch)


def document_of(lengths: Tensor, positions: Tensor) -> Tensor:
    """For positions (B, L): the index of the packed document that holds each, -1 for none."""
    documents = torch.full(positions.shape, -1)
    for b, row in enumerate(positions.tolist()):
        ends = lengths[b].cumsum(0).tolist()
        for n, position in enumerate(row):
            inside = [d for d, end in enumerate(ends) if end - int(lengths[b, d]) <= position < end]
            documents[b, n] = inside[0] if inside else -1
    return documents


def real_keys(rule: Rule, batch: int, keys: int) -> Tensor:
    """(B, Lk): which keys a padding rule calls real."""
    _, lengths, _, left = rule
    j = torch.arange(keys)
    return (j >= keys - lengths[:, None]) if left else (j < lengths[:, None]).expand(batch, keys)


def real_rows(rule: Rule | None, batch: int, rows: int) -> Tensor:
    """(B, Lq): which query rows are real, that is, not declared padding by any part of the rule."""
    real = torch.ones(batch, rows, dtype=torch.bool)
    if rule is None:
        return real
    if rule[0] in ("and", "or"):
        return real_rows(rule[1], batch, rows) & real_rows(rule[2], batch, rows)
    if rule[0] == "padding" and rule[2] is not None:
        r = torch.arange(rows)
        return (r >= rows - rule[2][:, None]) if rule[3] else (r < rule[2][:, None])
    return real


def sees(rule: Rule | None, batch: int, rows: int, keys: int, start: int | Tensor = 0) -> Tensor:
    """Which key each row may see, by the one-line definitions: broadcasts to (B, H, Lq, Lk)."""
    i = (first_positions(start, batch)[:, None] + torch.arange(rows))[:, None, :, None]  # (B, 1, Lq, 1)
    j = torch.arange(keys)[None, None, None, :]  # (1, 1, 1, Lk)
    everything = torch.ones(batch, 1, rows, keys, dtype=torch.bool)
    if rule is None:
        return everything
    name = rule[0]
    if name == "and":
        return sees(rule[1], batch, rows, keys, start) & sees(rule[2], batch, rows, keys, start)
    if name == "or":
        return sees(rule[1], batch, rows, keys, start) | sees(rule[2], batch, rows, keys, start)
    if name == "causal":
        return everything & (j <= i)
    if name == "window":
        low = j >= i - rule[1] if rule[1] is not None else everything
        high = j <= i + rule[2] if rule[2] is not None else everything
        return everything & low & high
    if name == "padding":
        real = real_rows(rule, batch, rows)[:, None, :, None]
        return everything & real & real_keys(rule, batch, keys)[:, None, None, :]
    if name == "prefix":
        return everything & (j < rule[1])
    if name == "documents":
        lengths = rule[1].expand(batch, -1)
        key_lengths = lengths if rule[2] is None else rule[2].expand(batch, -1)
        of_row = document_of(lengths, i[:, 0, :, 0])
        of_key = document_of(key_lengths, j[0, 0].expand(batch, keys))
        return ((of_row[:, :, None] == of_key[:, None, :]) & (of_row >= 0)[:, :, None])[:, None]
    if name == "dense":
        return everything & rule[1]
    raise AssertionError(f"unknown rule {name}")


def alibi(slopes: Tensor, batch: int, rows: int, keys: int, start: int | Tensor) -> Tensor:
    """-slope·|i − j|, (B, H, Lq, Lk)."""
    i = first_positions(start, batch)[:, None] + torch.arange(rows)
    distance = (i[:, None, :, None] - torch.arange(keys)).abs().to(slopes.dtype)
    return -slopes[None, :, None, None] * distance


def relative_bias(table: Tensor, buckets: Any, batch: int, rows: int, keys: int, start: int | Tensor) -> Tensor:
    """table[bucket(j − i)], (B, H, Lq, Lk)."""
    i = first_positions(start, batch)[:, None] + torch.arange(rows)
    return table[buckets(torch.arange(keys) - i[:, :, None])].permute(0, 3, 1, 2)


@dataclass
class Answer:
    """Everything that one call can be asked for, in float64."""

    output: Tensor  # (B, Hq, Lq, Dv)
    raw: Tensor  # (B, Hq, Lq, Lk): scale·q·k
    capped: Tensor  # after softcap
    scores: Tensor  # after softcap and bias, −∞ where not allowed
    weights: Tensor  # (B, Hq, Lq, Lk)
    allowed: Tensor  # (B, Hq, Lq, Lk)
    real: Tensor  # (B, Lq)
    logsumexp: Tensor  # (B, Hq, Lq)
    sink_weight: Tensor
    value: Tensor  # (B, Hq, Lk, Dv), repeated for grouped queries
    positions: Tensor  # (B, Lq): where each row stands
    largest_score: float

    def entropy(self) -> Tensor:
        """−Σ p log p over the keys."""
        return -torch.xlogy(self.weights, self.weights).sum(-1)

    def mass(self) -> Tensor:
        return self.weights.sum(-1)

    def mean_position(self) -> Tensor:
        """The mean position of the keys' own mass; NaN where there is none."""
        j = torch.arange(self.weights.shape[-1], dtype=torch.float64)
        return (self.weights * j).sum(-1) / self.mass()

    def mean_distance(self) -> Tensor:
        j = torch.arange(self.weights.shape[-1])
        distance = (self.positions[:, :, None] - j).abs().double()
        return (self.weights * distance[:, None]).sum(-1) / self.mass()

    def received(self, rows: Tensor | None = None) -> Tensor:
        """(B, Hq, Lk): what each key gets from all real rows (or from those of `rows` that are real)."""
        real = self.weights * self.real[:, None, :, None]
        return (real if rows is None else real[:, :, rows]).sum(2)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Keys and weights of the k heaviest, ties to the lowest key, −1 and 0 where nothing is left."""
        k_there = min(k, self.weights.shape[-1])
        ranked = torch.where(self.allowed, self.weights, -1.0)
        order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k_there]
        keys = torch.full((*self.weights.shape[:-1], k), -1)
        weights = torch.zeros(*self.weights.shape[:-1], k, dtype=torch.float64)
        there = self.allowed.gather(-1, order)
        keys[..., :k_there] = torch.where(there, order, -1)
        weights[..., :k_there] = torch.where(there, self.weights.gather(-1, order), 0.0)
        return keys, weights

    def segment_mass(self, segments: Tensor, count: int) -> Tensor:
        """(B, Hq, Lq, S): the weight on each segment of keys."""
        segments = segments.expand(self.weights.shape[0], -1)
        of = (segments[..., None] == torch.arange(count)).double()  # (B, Lk, S)
        return torch.einsum("bhij,bjs->bhis", self.weights, of)

    def push_weighted(self, r: Tensor, grad_output: Tensor) -> Tensor:
        """Σ_i r_i · (G_ij · P_ij)₊ with G = grad_output · Vᵀ."""
        grad = torch.einsum("bhid,bhjd->bhij", grad_output.double(), self.value)
        return torch.einsum("bhi,bhij->bhj", r.double(), (grad * self.weights).clamp(min=0))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    allowed: Tensor,
    bias: Tensor | None = None,
    start: int | Tensor = 0,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    real: Tensor | None = None,
) -> Answer:
    """The formula, in float64; keys, values and biases that may not be seen are never looked at."""
    batch, heads, rows, size = query.shape
    keys, group = key.shape[2], heads // key.shape[1]
    allowed = allowed.expand(batch, heads, rows, keys)
    seen = allowed.any(2)[..., None]  # (B, Hq, Lk, 1)
    looking = allowed.any(3)[..., None]  # (B, Hq, Lq, 1)
    q = torch.where(looking, query.double(), 0.0)
    k = torch.stack([key[:, h // group].double() for h in range(heads)], 1)
    v = torch.stack([value[:, h // group].double() for h in range(heads)], 1)
    k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)
    raw = (1 / math.sqrt(size) if scale is None else scale) * torch.einsum("bhid,bhjd->bhij", q, k)
    capped = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    biased = capped if bias is None else capped + torch.where(allowed, bias.double(), 0.0)
    scores = torch.where(allowed, biased, -math.inf)
    everything = scores
    if sink_logits is not None:
        sink = sink_logits.double()[None, :, None, None].expand(batch, -1, rows, 1)
        everything = torch.cat((scores, sink), -1)
    largest = everything.amax(-1, keepdim=True)
    largest = torch.where(largest == -math.inf, 0.0, largest).detach()
    exponentials = torch.exp(everything - largest)
    total = exponentials.sum(-1, keepdim=True)
    p = exponentials / torch.where(total == 0, 1.0, total)
    size_of = [raw.detach().abs().max(), torch.where(allowed, biased, 0.0).detach().abs().max()]
    return Answer(
        output=torch.einsum("bhij,bhjd->bhid", p[..., :keys], v),
        raw=raw,
        capped=capped,
        scores=scores,
        weights=p[..., :keys],
        allowed=allowed,
        real=torch.ones(batch, rows, dtype=torch.bool) if real is None else real,
        logsumexp=torch.log(total[..., 0]) + largest[..., 0],
        sink_weight=p[..., keys] if sink_logits is not None else torch.zeros(batch, heads, rows, dtype=torch.float64),
        value=v,
        positions=first_positions(start, batch)[:, None] + torch.arange(rows),
        largest_score=max(float(s) for s in size_of),
    )
