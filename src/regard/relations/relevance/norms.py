"""Attention weights times the norm of what they carry (arXiv 2004.10102), of the rows that are asked for.

H | heads observed at a site    Lk | keys    r | rows asked for    Dv | head size of values    d | width of the model
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.relations.narrow import narrowed
from regard.relations.relations import Relations
from regard.relations.sites import Site


@torch.no_grad()
def value_norm_weights(
    relations: Relations,
    path: str,
    *,
    rows: Tensor | range | slice,
    output_weight: Tensor | None = None,
    item: int = 0,
    step: int = -1,
) -> Tensor:
    """Each head's weights times the norm of what they carry, ‖αᵢⱼ f(xⱼ)‖ (arXiv 2004.10102).

    f(xⱼ) is a key's value after its head's part of the output projection. A key with a large weight and a value near
    zero adds next to nothing to the row; such keys are often where a head rests.

    Args:
        relations: observed with keep=True.
        path: of the site.
        rows: which query rows.
        output_weight: the output projection's matrix, (d, all heads · Dv) as `nn.Linear.weight` has it, the heads in
            order; None leaves the projection out, and the norm is that of the value itself.
        item: which batch entry.
        step: which forward pass.

    Returns:
        (H, r, Lk).

    Raises:
        KeyError: no such site.
        ValueError: output_weight does not fit the heads, or observed with keep=False.
    """
    weights = relations.weights(path, rows=rows, item=item, step=step)
    values = _values(relations, path, item, step)
    if output_weight is None:
        norms = values.norm(dim=-1)  # (H, Lk)
    else:
        parts = _parts(relations.site(path), values, output_weight)
        norms = torch.stack([(v @ part).norm(dim=-1) for v, part in zip(values, parts, strict=True)])
    return weights * norms[:, None, : weights.shape[-1]]


@torch.no_grad()
def summed_value_norm_weights(
    relations: Relations,
    path: str,
    *,
    rows: Tensor | range | slice,
    output_weight: Tensor,
    item: int = 0,
    step: int = -1,
) -> Tensor:
    """What a key adds to a row through all observed heads together, ‖Σₕ αᵢⱼ f(xⱼ)‖ (arXiv 2004.10102).

    What heads add may cancel, so that this is at most the sum of `value_norm_weights` over heads. A row costs
    Lk · H · Dv · d multiplications.

    Args:
        relations: observed with keep=True.
        path: of the site.
        rows: which query rows.
        output_weight: (d, all heads · Dv), as in `value_norm_weights`.
        item: which batch entry.
        step: which forward pass.

    Returns:
        (r, Lk).

    Raises:
        KeyError: no such site.
        ValueError: output_weight does not fit the heads, or observed with keep=False.
    """
    weights = relations.weights(path, rows=rows, item=item, step=step)
    values = _values(relations, path, item, step)
    parts = _parts(relations.site(path), values, output_weight)
    found = weights.new_zeros(weights.shape[1:])
    for row in range(found.shape[0]):
        carried = weights[:, row, :, None] * values[:, : weights.shape[-1]]  # (H, Lk, Dv)
        found[row] = torch.einsum("hkv,hvd->kd", carried, parts).norm(dim=-1)
    return found


def _values(relations: Relations, path: str, item: int, step: int) -> Tensor:
    """What the keys of each observed head carry, (H, Lk, Dv)."""
    request = narrowed(relations.observation(path, step), item).kept
    if request is None:
        raise ValueError(f"norms need values, and {path!r} was observed with keep=False")
    return request.value[0].float().repeat_interleave(request.Hq // request.Hkv, 0)


def _parts(site: Site, values: Tensor, output_weight: Tensor) -> Tensor:
    """What the output projection does to each observed head's values, (H, Dv, d)."""
    H, Dv = values.shape[0], values.shape[-1]
    numbers = [site.head_number(index) for index in range(H)]
    heads, over = divmod(output_weight.shape[-1], Dv)
    fits = max(numbers) < heads if site.head_numbers else heads == H
    if output_weight.dim() != 2 or over or not fits:
        shape = f"(d, {H} · {Dv})" if not site.head_numbers else f"(d, all heads · {Dv})"
        raise ValueError(f"output_weight has shape {tuple(output_weight.shape)}; {site.path!r} needs {shape}")
    return output_weight.detach().to(values).unflatten(1, (heads, Dv)).permute(1, 2, 0)[numbers]
