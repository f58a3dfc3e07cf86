"""What attention says about an answer: rollout through the layers, weights times what they carry, word alignment.

No matrix of N×N is formed: a vector is handed from layer to layer, and weights are of the rows that are asked for.

H | heads observed at a site    L | elements    Lk | keys    r | rows asked for    Dv | head size of values
d | width of the model    Lt, Ls | target and source pieces    Wt, Ws | target and source words
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention import Observation
from regard.elements import span_data
from regard.relations.narrow import narrowed
from regard.relations.relations import Relations, Sequence, Site


@dataclass(frozen=True)
class Relevance:
    """How much each element mattered for one target, by one method.

    Args:
        method: how it was computed, for a person.
        sites: paths of the attention it was computed from, first layer first.
        scores: (L,) float32, of each element.
        sequence: what the elements are; None where `observe` was not told.
    """

    method: str
    sites: tuple[str, ...]
    scores: Tensor
    sequence: Sequence | None = None

    def top(self, count: int = 8) -> list[tuple[int, float]]:
        """The elements with the largest scores, largest first: index and score; equal ones by lowest index."""
        order = self.scores.argsort(descending=True, stable=True)[:count]
        return [(int(index), float(self.scores[index])) for index in order]

    def to_dict(self) -> dict[str, Any]:
        """As data for views and `--json`."""
        return {
            "method": self.method,
            "sites": [*self.sites],
            "sequence": None if self.sequence is None else self.sequence.to_dict(),
            "scores": self.scores.tolist(),
        }


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
    sites = _layers(relations, under)
    seen = [_entry(relations, site, item, step) for site in sites]
    length = relations.lengths(sites[0], item, -1 if step is None else step)[0]
    shares = _shares(target, length, _square(sites, seen)).to(seen[0].logsumexp.device)
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


def _layers(relations: Relations, under: str) -> list[Site]:
    """The self-attention under a path, one site a layer, first layer first."""

    def below(path: str) -> bool:
        return not under or path == under or path.startswith(under + ".")

    where = f"under {under!r}" if under else "in this model"
    sites = [site for site in relations.sites if site.kind == "self" and below(site.path)]
    missed = [path for path in relations.missed if below(path)]
    if not sites:
        raise ValueError(f"no self-attention was observed {where}; there is {[s.path for s in relations.sites]}")
    if missed:
        raise ValueError(f"attention {where} was not observed at {missed}, and rollout goes through every layer")
    kinds = sorted({re.sub(r"\d+", "*", site.path) for site in sites})
    if len(kinds) > 1:
        raise ValueError(f"under is {under!r}; it must be the path of one stack of layers, and there is {kinds}")
    found = [re.search(r"\d+", site.path[len(under) :]) for site in sites]
    numbers = [0 if number is None else int(number.group()) for number in found]
    if numbers != [*range(len(sites))]:
        raise ValueError(f"layers {numbers} were observed {where}; rollout needs all, from 0 on")
    return sites


def _entry(relations: Relations, site: Site, item: int, step: int | None) -> Observation:
    """What one forward pass saw of one batch entry; its questions are answered for this one alone."""
    steps = len(relations.observations[site.path])
    if step is None and steps > 1:
        raise ValueError(f"step is None; {site.path!r} was observed {steps} times, and it must say which")
    seen = relations.observation(site.path, -1 if step is None else step)
    entries = seen.logsumexp.shape[0]
    if not 0 <= item < entries:
        raise ValueError(f"item is {item}; {site.path!r} has batch entries 0 … {entries - 1}")
    return seen if entries == 1 else narrowed(seen, item)


def _square(sites: list[Site], seen: list[Observation]) -> int:
    """How many rows, which are also the keys, every layer has."""
    found: set[int] = set()
    for site, layer in zip(sites, seen, strict=True):
        if layer.kept is None:
            raise ValueError(f"rollout needs queries and keys, and {site.path!r} was observed with keep=False")
        if layer.kept.Lq != layer.kept.Lk:
            raise ValueError(
                f"{site.path!r} has {layer.kept.Lq} rows of {layer.kept.Lk} keys; rollout needs all rows in one pass"
            )
        found.add(layer.kept.Lq)
    if len(found) > 1:
        raise ValueError(f"layers have lengths {sorted(found)}; rollout needs one length")
    return found.pop()


def _shares(target: int | Tensor, length: int, rows: int) -> Tensor:
    """(rows,): how much of each row is asked about; 0 for padding."""
    shares = torch.zeros(rows)
    if isinstance(target, Tensor):
        if target.shape != (length,):
            raise ValueError(f"target has shape {tuple(target.shape)}; it may be a row, or a share a row, ({length},)")
        shares[:length] = target.detach().to("cpu", torch.float32)
    elif -length <= target < length:
        shares[target % length] = 1.0
    else:
        raise ValueError(f"target is {target}; there are rows 0 … {length - 1}")
    return shares


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


@dataclass(frozen=True)
class Alignment:
    """Which source word each target word was read from.

    Args:
        method: how it was read, for a person.
        source: the source sequence, with words.
        target: the target sequence, with words.
        weights: (Wt, Ws), the mean weight that the pieces of a target word put on the pieces of a source word.
    """

    method: str
    source: Sequence
    target: Sequence
    weights: Tensor

    @property
    def links(self) -> list[tuple[int, int, float]]:
        """For every target word: the word, the source word with the largest weight, and this weight."""
        if not self.source.words:
            return []
        weights, words = self.weights.max(-1)
        return [(i, int(j), float(w)) for i, (j, w) in enumerate(zip(words, weights, strict=True))]

    def to_dict(self) -> dict[str, Any]:
        """As data for views and `--json`."""

        def words(sequence: Sequence) -> list[dict[str, Any]]:
            return [{"label": w.label, "span": span_data(w.span)} for w in sequence.words]

        return {
            "method": self.method,
            "source": words(self.source),
            "target": words(self.target),
            "links": [{"target": t, "source": s, "weight": w} for t, s, w in self.links],
            "weights": self.weights.tolist(),
        }


def align(relations: Relations, *, layer: int = -1, shifted: bool = True, item: int = 0) -> Alignment:
    """Word alignment from the cross-attention of one decoder layer, the mean over its heads.

    A decoder has just read a word one position after it was written. Attention from there, "shifted", points at the
    word's source better than attention from where it was written (arXiv 2004.14837).

    Args:
        relations: of a pass over source and answer whose sequences have words.
        layer: which of the cross-attention layers, counted from the first, or from the last if negative.
        shifted: read a word's row where it was read rather than where it was written.
        item: which batch entry.

    Raises:
        ValueError: there is no cross-attention, no such layer, or its sequences have no words.
    """
    sites = [site for site in relations.sites if site.kind == "cross"]
    if not -len(sites) <= layer < len(sites):
        raise ValueError(f"layer is {layer}; there are {len(sites)} layers of cross-attention")
    site = sites[layer]
    source, target = (relations.sequences[item].get(name) for name in (site.key, site.query))
    if source is None or target is None or not source.word_of or not target.word_of:
        raise ValueError(f"the sequences of {site.path} have no words to align")
    weights = relations.weights(site.path, item=item).mean(0).cpu()  # (Lt, Ls)
    # word_of names the word that a row has read; the row before is where that piece was written
    rows = weights if shifted else weights.roll(1, 0)
    from_pieces = _membership(target).T / _membership(target).sum(0).clamp(min=1)[:, None]  # (Wt, Lt), means
    aligned = from_pieces @ (rows @ _membership(source))  # (Wt, Ws)
    where = "read one step later (arXiv 2004.14837)" if shifted else "read where the word is written"
    method = f"cross-attention, layer {site.layer}, mean over {site.heads} heads, {where}"
    return Alignment(method, source, target, aligned)


def _membership(sequence: Sequence) -> Tensor:
    """(L, W): 1 where a piece belongs to a word."""
    word_of = torch.tensor(sequence.word_of)
    return (word_of[:, None] == torch.arange(len(sequence.words))).float()
