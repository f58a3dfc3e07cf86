"""What is recorded of attention is what the weights say."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regard.attention import Padding, Watch
from regard.relations import observe
from regard.training import OptimiserConfig, Trainer, TrainerConfig, build_optimiser, build_schedule, watch_attention
from regard.transformer import Block, Encoder, FeedForward, LayerNorm, MultiHeadAttention


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [
            Block(MultiHeadAttention(8, 2), FeedForward(8, 8), norm=partial(LayerNorm, 8), dropout=0.5) for _ in "ab"
        ]
        self.encoder = Encoder(blocks)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder(x, mask=Padding(lengths, lengths))


class Learning:
    def __init__(self) -> None:
        self.model = Small()

    def batches(self, epoch: int) -> list[Tensor]:
        return [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(epoch))]

    def step(self, batch: Tensor) -> Tensor:
        return self.model(batch, torch.tensor([5, 3])).square().mean()

    def tokens(self, batch: Tensor) -> int:
        return 8

    def validate(self) -> dict[str, float]:
        return {}


def test_is_the_mean_over_real_rows() -> None:
    model = Small().train()
    x, lengths = torch.randn(2, 5, 8), torch.tensor([5, 3])
    found = watch_attention(model, lambda: model(x, lengths))
    assert model.training and [*found] == ["encoder.blocks.0.attention", "encoder.blocks.1.attention"]
    with torch.no_grad(), observe(model.eval(), watch=Watch()) as relations:
        model(x, lengths)
    for path, values in found.items():
        rows = [relations.weights(path, rows=range(n), item=item) for item, n in enumerate((5, 3))]
        flat = torch.cat([weights.flatten(0, 1) for weights in rows])
        entropy = -(flat * flat.clamp_min(1e-30).log()).sum(-1)
        assert values["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
        assert values["max_weight"] == pytest.approx(flat.amax(-1).mean().item(), rel=1e-4)
        heads = torch.cat([weights.amax(-1) for weights in rows], -1).mean(-1)
        assert values["sharpest"] == pytest.approx(heads.max().item(), rel=1e-4)


def test_is_recorded_while_a_model_learns_and_changes_nothing(tmp_path: Path) -> None:
    records: dict[int, list[dict[str, object]]] = {}
    for every in (0, 2):
        torch.manual_seed(0)
        task, config = Learning(), OptimiserConfig(warmup=1)
        Trainer(
            task.model,
            task,
            build_optimiser(task.model, config),
            build_schedule(config, 5),
            out=tmp_path / str(every),
            config=TrainerConfig(steps=5, watch_every=every, progress=False),
        ).run()
        lines = (tmp_path / str(every) / "metrics.jsonl").read_text().splitlines()
        records[every] = [json.loads(line) for line in lines]
    watched = [record for record in records[2] if "attention" in record]
    assert [record["step"] for record in watched] == [2, 4, 5]
    assert watched[0] != watched[1]
    losses = {every: [record["loss"] for record in found if "loss" in record] for every, found in records.items()}
    assert losses[0] == losses[2]
