"""Rates that fall from layer to layer, for fine-tuning: what lies near the input is general, and changes least.

The last layers, a head among them, learn at the full rate, each block below at `decay` times the rate of the one above,
and what makes the input, such as embeddings, at that of the lowest block times `decay` (arXiv 1801.06146, 2003.10555;
for images 2106.08254).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regard.training.errors import TrainingError
from regard.transformer import Block


def shares_of_rate(model: nn.Module, decay: float) -> dict[Tensor, float]:
    """The part of the learning rate that each parameter of a model learns at.

    Layers are the model's `Block`s in the order of its modules, a decoder's above its encoder's.

    Args:
        model: with at least one `Block`.
        decay: more than 0 and at most 1; 1 is the full rate for all.

    Raises:
        TrainingError: if the model has no `Block`.
    """
    depths: dict[Tensor, int] = {}  # 0 below all blocks, their number from 1 on
    inside: set[Tensor] = set()
    blocks = 0
    for module in model.modules():  # a block comes before what is in it
        if isinstance(module, Block):
            blocks += 1
            inside |= {*module.parameters()}
        for parameter in module.parameters(recurse=False):
            depths.setdefault(parameter, blocks)
    if not blocks:
        raise TrainingError(f"layer_decay is {decay}: the model must have Transformer blocks; 1 asks for none")
    top = blocks + 1
    return {
        parameter: decay ** (top - (top if depth == blocks and parameter not in inside else depth))
        for parameter, depth in depths.items()
    }


def divided(groups: Sequence[Mapping[str, Any]], shares: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """An optimiser's groups, divided into ones of a single share each, which the loop multiplies the rate by.

    Args:
        groups: with "params", and perhaps "rows", a list as long or None.
        shares: of each parameter; all learn at the full rate where it is empty.
    """
    if not shares:
        return [dict(group) for group in groups]
    found: list[dict[str, Any]] = []
    for group in groups:
        rows = group.get("rows")
        for share in sorted({shares[p] for p in group["params"]}):
            at = [i for i, p in enumerate(group["params"]) if shares[p] == share]
            part = {**group, "params": [group["params"][i] for i in at], "share": share}
            found.append(part if rows is None else {**part, "rows": [rows[i] for i in at]})
    return found
