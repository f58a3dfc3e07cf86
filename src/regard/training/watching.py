"""What a model's attention looks like while it learns: how spread out it is and how much one element gets."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.attention import Watch
from regard.relations import observe

_WATCH = Watch(top=0, received=False, entropy=True, position=False, keep=False)


@torch.no_grad()
def watch_attention(model: nn.Module, run: Callable[[], object]) -> dict[str, dict[str, float]]:
    """The statistics of every attention layer of a model in one pass, in evaluation mode.

    Attention has collapsed where the entropy of a layer is close to 0 with a largest weight close to 1 (each row sees
    one element), or where its largest weight is that of equal weights whatever the input (no row chooses).

    Args:
        model: any that `regard.observe` can see; left in the mode it was in.
        run: passes a batch through it.

    Returns:
        By the path of the layer: "entropy", in nats, the mean over all rows and heads; "max_weight", the mean of
        each row's largest weight; "sharpest", the same in the head where it is highest. Rows that see nothing, such as
        padding, do not count.
    """
    training = model.training
    model.eval()
    try:
        with observe(model, watch=_WATCH, this_thread=True) as relations:
            run()
    finally:
        model.train(training)
    found: dict[str, dict[str, float]] = {}
    for site in relations.sites:
        seen = relations.observation(site.path)
        assert seen.entropy is not None
        real = seen.max_weight > 0  # (B, H, R)
        heads = _mean(seen.max_weight, real, (0, 2))  # (H,)
        found[site.path] = {
            "entropy": float(_mean(seen.entropy, real, (0, 1, 2))),
            "max_weight": float(_mean(seen.max_weight, real, (0, 1, 2))),
            "sharpest": float(heads.max()),
        }
    return found


def _mean(values: Tensor, real: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    """The mean of the real values over these dimensions; 0 where there are none."""
    return values.where(real, 0).sum(dimensions) / real.sum(dimensions).clamp_min(1)
