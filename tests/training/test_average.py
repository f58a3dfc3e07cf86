"""The running average of a model takes in what belongs to its parameters, and comes back from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

from regard.training.average import RunningAverage
from regard.training.checkpoint import Progress, load_weights, save_checkpoint


def test_running_means_are_averaged_with_the_parameters(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    average, expected = RunningAverage(model, 0.9), norm.running_mean.clone()
    for step in range(1, 4):
        model(torch.randn(8, 3) + step)
        average.update(step)
        expected = expected.lerp(norm.running_mean, 1 - (1 + step) / (10 + step))
    torch.testing.assert_close(average.tensors["1.running_mean"], expected)
    assert "1.num_batches_tracked" not in average.tensors  # a count
    raw = norm.running_mean.clone()
    with average.in_place():
        torch.testing.assert_close(norm.running_mean, expected)
    assert torch.equal(norm.running_mean, raw)

    path = tmp_path / "step-00000003.safetensors"
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), Progress(step=3), average)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    load_weights(path, other)
    torch.testing.assert_close(other[1].running_mean, expected)
    torch.testing.assert_close(other[0].weight, average.tensors["0.weight"])
