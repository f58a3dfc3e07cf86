"""Label-smoothed cross-entropy of a linear layer, without ever forming its logits.

N | rows (target tokens)   d | width of the hidden states   V | vocabulary

A translator's largest tensor by far is its (N, V) logits. Here the rows are walked in chunks that stay in cache;
each chunk's logits are turned into the loss and both gradients at once and then overwritten by the next chunk, so
that memory is one chunk and the backward pass only scales what is already there.

With z = h Wᵀ, smoothing ε and label y, a row's loss and its gradient are

    loss = logsumexp(z) - (1 - ε) z_y - ε mean(z)        d loss / dz = softmax(z) - (1 - ε) onehot(y) - ε / V

Only softmax(z) is dense: z_y and mean(z) are products of h with single rows of W and with its mean, and so are
their gradients.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 256
"""Rows, or pairs of rows, a chunk: 256 x 6,000 logits in float32 are 6 MB. Below 100 and above 400 it is slower."""

SAFE_EXPONENT = 40.0
"""Rows whose largest logit is within ±40 need no shift before exp: the sum stays far from float32's ends."""


class _Gradients(NamedTuple):
    """What the forward pass has ready for the backward pass."""

    hidden: Tensor  # (N, d)
    weight: Tensor  # (V, d)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    r_drop: float = 0.0,
    weights: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Mean label-smoothed cross-entropy of softmax(hidden · weightᵀ), in memory that does not grow with N·V.

    With `r_drop` = α > 0, row i and row i + N of `hidden` are two dropout passes over the same token, with
    distributions p and q, and the result is half of R-Drop's objective (so that α = 0 gives back the plain mean):
    the mean over the N pairs of (CE(p) + CE(q)) / 2 + α / 4 · (KL(p‖q) + KL(q‖p)).

    Args:
        hidden: (N, d), or (2N, d) with `r_drop`; float32 or float64. Under autocast it is computed in float32.
        weight: (V, d), the output matrix.
        labels: (N,) int64, each in [0, V).
        smoothing: the part ε of the target spread evenly over the vocabulary, in [0, 1). Default 0.
        r_drop: R-Drop's α, at least 0. Default 0, one pass.
        weights: (N,), of any sign: what each row's loss is multiplied by before the mean over the N rows. Default 1;
            not with `r_drop`.
        chunk: rows (or pairs of rows) a chunk; changes speed and memory, not the result. Default 256.

    Returns:
        A scalar with gradients for `hidden` and `weight`.

    Raises:
        ValueError: if shapes do not fit together, there are no rows, or a number is out of its range.

    Label smoothing: arXiv 1512.00567. R-Drop: arXiv 2106.14448.
    """
    passes = 2 if r_drop > 0 else 1
    _check(hidden, weight, labels, passes)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it may be from 0 up to, but not including, 1")
    if r_drop < 0:
        raise ValueError(f"r_drop is {r_drop}; it may be 0 or more")
    if weights is not None and (r_drop > 0 or weights.shape != labels.shape):
        raise ValueError(f"weights is {tuple(weights.shape)}; it may be {tuple(labels.shape)}, and r_drop 0")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it may be 1 or more")
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if torch.is_autocast_enabled(hidden.device.type):  # a softmax over many pieces needs its digits
        hidden, weight = hidden.float(), weight.float()
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(  # pyright: ignore[reportAssignmentType]
            hidden, weight, labels, weights, smoothing, r_drop, chunk, with_gradients
        )
    return loss


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, passes: int) -> None:
    """Refuse shapes that do not fit together."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}; they may be (N, d) and (V, d)"
        )
    if labels.dim() != 1 or labels.numel() == 0:
        raise ValueError(f"labels is {tuple(labels.shape)}; it may be (N,) with N of at least 1")
    if hidden.shape[0] != passes * labels.shape[0]:
        raise ValueError(
            f"hidden has {hidden.shape[0]} rows for {labels.shape[0]} labels; it may have {passes} a label"
        )


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss and, computed beside it, its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        smoothing: float,
        r_drop: float,
        chunk: int,
        with_gradients: bool,
    ) -> Tensor:
        if r_drop > 0:
            total, gradients = _paired(hidden, weight, labels, r_drop, chunk, with_gradients)
        else:
            total, gradients = _single(hidden, weight, weights, chunk, with_gradients)
        targets = labels.repeat(2) if r_drop > 0 else labels
        total -= _towards_targets(hidden, weight, targets, weights, smoothing, gradients)
        rows = hidden.shape[0]
        if gradients is not None:
            gradients.hidden.div_(rows)
            gradients.weight.div_(rows)
            ctx.save_for_backward(*gradients)
        return total / rows

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        hidden, weight = ctx.saved_tensors
        return hidden * scale, weight * scale, None, None, None, None, None, None


def _towards_targets(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float,
    gradients: _Gradients | None,
) -> Tensor:
    """Weighted sum over rows of (1 - ε) z_y + ε mean(z), subtracting its gradient from `gradients` in place."""
    chosen = weight.index_select(0, targets)  # (N, d)
    mean_weight = weight.mean(0)  # (d,)
    if weights is not None:
        hidden = hidden * weights[:, None]
    total_hidden = hidden.sum(0)  # (d,)
    value = (1 - smoothing) * torch.dot(hidden.flatten(), chosen.flatten())
    value += smoothing * torch.dot(total_hidden, mean_weight)
    if gradients is not None:
        wanted = chosen.mul_(1 - smoothing).add_(mean_weight, alpha=smoothing)  # (N, d)
        gradients.hidden.sub_(wanted if weights is None else wanted.mul_(weights[:, None]))
        gradients.weight.index_add_(0, targets, hidden, alpha=-(1 - smoothing))
        gradients.weight.sub_(total_hidden, alpha=smoothing / weight.shape[0])
    return value


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits with exp(logits - shift); their sums and logsumexp, (rows, 1) each."""
    largest = logits.amax(1, keepdim=True)
    if bool((largest.abs() < SAFE_EXPONENT).all()):
        sums = logits.exp_().sum(1, keepdim=True)
        return sums, sums.log()
    sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
    return sums, sums.log() + largest


def _single(
    hidden: Tensor, weight: Tensor, weights: Tensor | None, chunk: int, with_gradients: bool
) -> tuple[Tensor, _Gradients | None]:
    """Weighted sum of logsumexp over the rows, and the gradients of that sum."""
    rows = hidden.shape[0]
    buffer = hidden.new_empty(min(chunk, rows), weight.shape[0])
    total = hidden.new_zeros(())
    gradients = _Gradients(torch.empty_like(hidden), torch.zeros_like(weight)) if with_gradients else None
    for first in range(0, rows, chunk):
        part = hidden[first : first + chunk]
        logits = torch.mm(part, weight.T, out=buffer[: len(part)])  # (rows, V)
        sums, logsumexp = _exponentials(logits)
        if weights is not None:
            column = weights[first : first + chunk, None]
            logsumexp, sums = logsumexp * column, sums / column  # by a weight of 0 infinity, which gives 0 below
        total += logsumexp.sum()
        if gradients is not None:  # softmax is logits / sums; dividing d columns is cheaper than dividing V
            torch.mm(logits, weight, out=gradients.hidden[first : first + chunk]).div_(sums)
            gradients.weight.addmm_(logits.T, part / sums)
    return total, gradients


def _paired(
    hidden: Tensor, weight: Tensor, labels: Tensor, r_drop: float, chunk: int, with_gradients: bool
) -> tuple[Tensor, _Gradients | None]:
    """As `_single`, for two passes, with R-Drop's divergence: α / 2 · (KL(p‖q) + KL(q‖p)) a pair is added.

    With D = log p - log q, the divergence is S = Σ (p - q) D, and dS / dz = p (D - KL(p‖q)) + p - q for the logits
    z of p; for those of q the same with p and q exchanged.
    """
    pairs = labels.shape[0]
    buffers = hidden.new_empty(4, min(chunk, pairs), weight.shape[0])
    total = hidden.new_zeros(())
    gradients = _Gradients(torch.empty_like(hidden), torch.zeros_like(weight)) if with_gradients else None
    for first in range(0, pairs, chunk):
        one = slice(first, min(first + chunk, pairs))
        two = slice(one.start + pairs, one.stop + pairs)
        p, q, difference, spare = buffers[:, : one.stop - one.start]  # (rows, V) each
        torch.mm(hidden[one], weight.T, out=p)
        torch.mm(hidden[two], weight.T, out=q)
        torch.sub(p, q, out=difference)
        sums_p, logsumexp_p = _exponentials(p)
        sums_q, logsumexp_q = _exponentials(q)
        p.div_(sums_p)
        q.div_(sums_q)
        offset = logsumexp_p - logsumexp_q  # D = difference - offset
        divergence_p = torch.mul(p, difference, out=spare).sum(1, keepdim=True) - offset  # KL(p‖q)
        divergence_q = offset - torch.mul(q, difference, out=spare).sum(1, keepdim=True)  # KL(q‖p)
        c = r_drop / 2
        total += (logsumexp_p + logsumexp_q + c * (divergence_p + divergence_q)).sum()
        if gradients is None:
            continue
        level_p = 1 + c * (1 - offset - divergence_p)  # d/dz of p: p (level_p + c difference) - c q
        level_q = 1 + c * (1 + offset - divergence_q)  # d/dz of q: q (level_q - c difference) - c p
        factor = torch.add(level_p, difference, alpha=c, out=difference)
        torch.mul(p, factor, out=spare).sub_(q, alpha=c)
        q.mul_(torch.sub(level_p + level_q, factor, out=factor)).sub_(p, alpha=c)
        torch.mm(spare, weight, out=gradients.hidden[one])
        torch.mm(q, weight, out=gradients.hidden[two])
        gradients.weight.addmm_(spare.T, hidden[one]).addmm_(q.T, hidden[two])
    return total, gradients
