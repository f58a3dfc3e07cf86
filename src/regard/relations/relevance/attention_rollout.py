"""Attention rollout (arXiv 2005.00928), a row at a time.

L | elements
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.relations.relations import Relations
from regard.relations.relevance.layers import Relevance, common_length, entry_of, layers_under, shares_of


@torch.no_grad()
def rollout(
    relations: Relations,
    target: int | Tensor = -1,
    *,
    under: str = "",
    residual: float = 0.5,
    item: int = 0,
    step: int | None = None,
) -> Relevance:
    """Attention rollout (arXiv 2005.00928): what a row of the last layer has of each element of the first one's input.

    With A the mean of a layer's weights over its heads, the layer mixes its rows by residual · I + (1 - residual) · A,
    each row divided by its sum (which is 1 unless a sink takes weight, or a row may see nothing). The rollout is the
    row of the product of these matrices over all layers; here the row alone is multiplied, from the last layer down.

    Weights are those before dropout. Windows of attention (Swin) are no sequence that this could be said of.

    Args:
        relations: of a pass in which every layer was observed, all rows at once, with keep=True.
        target: which row of the last layer, counted from the item's last element if negative; or the share of every
            row, (L,), such as 1/L where a model takes the mean over its elements.
        under: the module path under which the layers are, such as "model.decoder"; "" is the whole model.
        residual: the part of a layer's output that passes it by, at least 0 and below 1; 0.5 in the paper.
        item: which batch entry.
        step: which forward pass; may be left out where there was only one.

    Returns:
        Scores (L,), which sum to 1, or to the sum of the shares.

    Raises:
        ValueError: the self-attention under the path is none, or of several kinds; a layer was not observed or is
            of another length; there are several passes and step is None, or one that continues a cache; an argument
            is out of range; observed with keep=False.
    """
    if not 0.0 <= residual < 1.0:
        raise ValueError(f"residual is {residual}; it must be at least 0 and below 1")
    sites = layers_under(relations, under)
    seen = [entry_of(relations, site, item, step) for site in sites]
    length = relations.lengths(sites[0], item, -1 if step is None else step)[0]
    shares = shares_of(target, length, common_length(sites, seen)).to(seen[0].logsumexp.device)
    for layer in reversed(seen):
        mass = layer.pull(torch.ones_like(shares))[0].mean(0)  # what a row's weights sum to, (L,)
        total = residual + (1 - residual) * mass
        shares = torch.where(total > 0, shares / total, 0.0)
        shares = residual * shares + (1 - residual) * layer.push(shares)[0].mean(0)
    what = f"row {target}" if isinstance(target, int) else "given shares of rows"
    heads = ", ".join(str(heads) for heads in sorted({site.heads for site in sites}))
    method = (
        f"attention rollout (arXiv 2005.00928) of {what} through {len(sites)} layers, mean over {heads} heads,"
        f" residual {residual:g}"
    )
    sequence = relations.sequences[item].get(sites[0].query) if item < len(relations.sequences) else None
    return Relevance(method, tuple(site.path for site in sites), shares[:length], sequence)
