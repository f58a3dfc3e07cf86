"""Relevance of elements for one number that a model computes, from that number's gradients.

B | batch    H | heads observed at a site    L | elements    Dv | head size of values    d | width of the model
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.relations.relations import Relations
from regard.relations.relevance.layers import Relevance, common_length, entry_of, layers_under, shares_of
from regard.relations.sites import Sequence, Site


@contextmanager
def attention_outputs(projections: Mapping[str, nn.Module]) -> Generator[dict[str, Tensor]]:
    """While active, keeps what attention hands to its output projections, so that gradients can be had of it.

    Args:
        projections: for the path of each site, the module that its output enters, (B, L, all heads · Dv), the heads
            in order: `layer.attention.output.dense` of BERT, `layer.self_attn.o_proj` of Llama.

    Yields:
        By path what entered in the last forward pass, filled while the model runs.
    """
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            outputs[path] = args[0]

        return hook

    with ExitStack() as stack:
        for path, module in projections.items():
            stack.callback(module.register_forward_pre_hook(keep(path)).remove)
        yield outputs


def gradient_relevance(
    relations: Relations,
    answer: Tensor,
    outputs: Mapping[str, Tensor],
    target: int | Tensor,
    *,
    under: str = "",
    item: int = 0,
) -> Relevance:
    """Gradient-weighted relevance (arXiv 2103.15679) of each element for one number, through self-attention.

    With A a head's weights and ∇A the gradient of the answer with respect to them, a layer adds to the relevance R,
    the identity at first, the mean over heads of (∇A ⊙ A)₊ times R. The result is the row of the last R that the
    answer is read from; here the row alone goes through the layers, from the last down. ∇A is the gradient of the
    attention's output times the values, a few rows at a time.

    Args:
        relations: of one pass, every layer observed, all rows at once, with keep=True, without dropout.
        answer: the number, such as a class's logit of this batch entry: a tensor of one element with a graph.
        outputs: of the same pass, by `attention_outputs`.
        target: the row of the last layer that the answer is read from, counted from the item's last element if
            negative; or a share of every row, (L,).
        under: the module path under which the layers are; "" is the whole model.
        item: which batch entry.

    Returns:
        Scores (L,), at least 0. A row's share in itself, which every residual hands on, is 1 of them.

    Raises:
        ValueError: as `rollout`; also where an output is missing or does not fit its site, the answer is no single
            number or does not depend on an output, or attention had dropout.
    """
    if answer.numel() != 1 or not answer.requires_grad:
        raise ValueError(f"answer has shape {tuple(answer.shape)}; it must be one number that has a gradient")
    sites = layers_under(relations, under)
    seen = [entry_of(relations, site, item, None) for site in sites]
    rows, length = common_length(sites, seen), relations.lengths(sites[0], item)[0]
    shares = shares_of(target, length, rows).to(seen[0].logsumexp.device)
    missing = [site.path for site in sites if site.path not in outputs]
    if missing:
        raise ValueError(f"outputs has none for {missing}; name their projections to attention_outputs")
    found = torch.autograd.grad(
        answer.sum(), [outputs[site.path] for site in sites], retain_graph=True, allow_unused=True
    )
    with torch.no_grad():
        for site, layer, gradient in reversed([*zip(sites, seen, found, strict=True)]):
            if layer.kept is not None and layer.kept.dropout:
                raise ValueError(
                    f"{site.path!r} had dropout {layer.kept.dropout}; relevance needs a model in eval mode"
                )
            if gradient is None:
                raise ValueError(f"answer does not depend on the output of {site.path!r}")
            by_head = _by_head(site, gradient, item, (rows, layer.kept.value.shape[-1] if layer.kept else 0))
            shares = shares + layer.push_weighted(shares, by_head)[0].mean(0)
    method = f"gradient-weighted relevance (arXiv 2103.15679) through {len(sites)} layers, mean over heads"
    sequence = relations.sequences[item].get(sites[0].query) if item < len(relations.sequences) else None
    return Relevance(method, tuple(site.path for site in sites), shares[:length], sequence)


def gradient_times_input(
    answer: Tensor, inputs: Tensor, *, item: int = 0, sequence: Sequence | None = None
) -> Relevance:
    """Gradient × input (arXiv 1605.01713), the plain comparison: to first order, what each element adds to the answer.

    Args:
        answer: the number, a tensor of one element with a graph.
        inputs: (B, L, d), what the answer was computed from, such as the `inputs_embeds` given to the model.
        item: which batch entry.
        sequence: what the elements are.

    Returns:
        Scores (L,) of either sign.

    Raises:
        ValueError: the answer is no single number, or does not depend on the inputs.
    """
    if answer.numel() != 1 or not answer.requires_grad:
        raise ValueError(f"answer has shape {tuple(answer.shape)}; it must be one number that has a gradient")
    if inputs.dim() != 3 or not inputs.requires_grad:
        raise ValueError(f"inputs has shape {tuple(inputs.shape)}; it must be (B, L, d) and require a gradient")
    (gradient,) = torch.autograd.grad(answer.sum(), [inputs], retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError("answer does not depend on inputs")
    scores = (gradient[item].float() * inputs.detach()[item].float()).sum(-1)
    return Relevance("gradient × input (arXiv 1605.01713)", (), scores, sequence)


def _by_head(site: Site, gradient: Tensor, item: int, shape: tuple[int, int]) -> Tensor:
    """The gradient of one entry's output, (1, H, L, Dv), of the heads observed."""
    rows, Dv = shape
    heads = max(site.head_numbers, default=site.heads - 1) + 1
    fits = gradient.dim() == 3 and gradient.shape[1] == rows and gradient.shape[2] % Dv == 0
    count = gradient.shape[-1] // Dv
    if not fits or count < heads or (count > heads and not site.head_numbers):
        raise ValueError(
            f"outputs has shape {tuple(gradient.shape)} for {site.path!r}; it must be (B, {rows}, all heads · {Dv})"
        )
    numbers = [site.head_number(index) for index in range(site.heads)]
    return gradient[item].unflatten(-1, (count, Dv)).transpose(0, 1)[None, numbers]
