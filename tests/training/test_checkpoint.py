"""What is saved comes back bit for bit; what is damaged is refused; only the last and the best are kept."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.training import Checkpoints, OptimiserConfig, Progress, average_weights, build_optimiser, load_checkpoint
from regard.training.checkpoint import load_weights, write_atomically


class Tied(nn.Module):
    """One weight under two names, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = Tied()
    optimiser = build_optimiser(model, OptimiserConfig())
    step(model, optimiser)
    progress = Progress(step=7, epoch=1, batch=3, tokens=99, cpu_seconds=1.5, scores={"loss": 0.25})
    path = Checkpoints(tmp_path).save(model, optimiser, progress)
    step(model, optimiser)  # draws from torch's generator
    expected = [*model.state_dict().values(), torch.rand(3), torch.tensor(random.random())]

    other = Tied()
    others = build_optimiser(other, OptimiserConfig())
    torch.manual_seed(5)
    random.seed(5)
    random.setstate(random.getstate())
    assert load_checkpoint(path, other, others) == progress
    step(other, others)
    actual = [*other.state_dict().values(), torch.rand(3)]
    for ours, theirs in zip(actual, expected[:-1], strict=True):
        assert torch.equal(ours, theirs)
    assert random.random() == pytest.approx(expected[-1].item())
    assert other.first.weight is other.second.weight


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimiser = build_optimiser(model, OptimiserConfig())
    checkpoints = Checkpoints(tmp_path / "deep" / "down", keep=2)
    assert checkpoints.latest is None and checkpoints.best is None
    for number, score in enumerate([3.0, 1.0, 2.0, None, 4.0], start=1):
        checkpoints.save(model, optimiser, Progress(step=number), score)
    assert [path.name for path in checkpoints.paths] == [f"step-0000000{n}.safetensors" for n in (2, 4, 5)]
    assert checkpoints.best == checkpoints.paths[0] and checkpoints.latest == checkpoints.paths[-1]


def test_averages(tmp_path: Path) -> None:
    model = Tied()
    optimiser = build_optimiser(model, OptimiserConfig())
    checkpoints = Checkpoints(tmp_path)
    weights: list[torch.Tensor] = []
    for number in range(3):
        step(model, optimiser)
        model.get_buffer("count").fill_(number)
        weights.append(model.first.weight.detach().double())
        checkpoints.save(model, optimiser, Progress(step=number))
    average_weights(checkpoints.paths, model)
    torch.testing.assert_close(model.first.weight, (sum(weights) / 3).float())
    assert model.get_buffer("count") == 2
    with pytest.raises(ValueError, match="paths is empty"):
        average_weights([], model)


def test_what_was_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.safetensors.partial").write_bytes(b"torn")
    assert Checkpoints(tmp_path).latest is None
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.json"
    write_atomically(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimiser = build_optimiser(model, OptimiserConfig())
    path = Checkpoints(tmp_path).save(model, optimiser, Progress(step=1))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_weights(path, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="is not a file"):
        load_weights(tmp_path / "none", model)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_weights(path, model)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="format_version None"):
        load_weights(path, model)
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)
