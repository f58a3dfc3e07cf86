"""What is saved comes back bit for bit; what is damaged is refused; only the last and the best are kept."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.training import Checkpoints, OptimiserConfig, Progress, average_weights, build_optimiser, load_checkpoint
from regard.training.checkpoint import load_weights


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


def test_a_checkpoint_outside_the_interval_is_kept_only_as_the_newest(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimiser = build_optimiser(model, OptimiserConfig())
    checkpoints = Checkpoints(tmp_path, keep=2, regular=lambda step: step % 5 == 0)

    def steps(paths: list[Path]) -> list[int]:
        return [int(path.name[5:13]) for path in paths]

    for number in (5, 10, 13):
        checkpoints.save(model, optimiser, Progress(step=number))
    assert steps(checkpoints.paths) == [5, 10, 13] and steps([checkpoints.latest]) == [13]
    assert steps(checkpoints.regular) == [5, 10]
    checkpoints.save(model, optimiser, Progress(step=15))
    assert steps(checkpoints.paths) == steps(checkpoints.regular) == [10, 15]


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
    (tmp_path / ".step-00000009.safetensors.0a1b2c3d.part").write_bytes(b"torn")
    assert Checkpoints(tmp_path).latest is None
    assert not list(tmp_path.iterdir())


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


def rewritten(path: Path, **changes: str | None) -> Path:
    """A checkpoint with other values in its header; None takes one out."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **changes}
    save_file(load_file(path), path, metadata={name: value for name, value in header.items() if value is not None})
    return path


@pytest.mark.parametrize("name", ["progress", "optimiser", "shared", "random.python"])
@pytest.mark.parametrize("value", [None, "", "{", "[]", "3", "null", '{"what": 1}', "[" * 100_000])
def test_a_damaged_header_is_one_error(tmp_path: Path, name: str, value: str | None) -> None:
    model = nn.Linear(2, 2)
    optimiser = build_optimiser(model, OptimiserConfig())
    step(model, optimiser)
    path = rewritten(Checkpoints(tmp_path).save(model, optimiser, Progress(step=1)), **{name: value})
    with pytest.raises(ValueError, match="step-00000001.safetensors is damaged") as error:
        load_checkpoint(path, model, optimiser)
    assert len(str(error.value)) < 300


def test_a_checkpoint_without_its_random_state_is_damaged(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    model = nn.Linear(2, 2)
    optimiser = build_optimiser(model, OptimiserConfig())
    path = Checkpoints(tmp_path).save(model, optimiser, Progress(step=1))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    for tensors in (
        {name: tensor for name, tensor in load_file(path).items() if name != "random.torch"},
        load_file(path) | {"random.torch": torch.zeros(3)},
        load_file(path) | {"optimiser.x.exp_avg": torch.zeros(3)},
    ):
        save_file(tensors, path, metadata=header)
        with pytest.raises(ValueError, match="is damaged"):
            load_checkpoint(path, model, optimiser)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 3}', '{"name": "step-00000001.safetensors"}', "\xff"])
def test_a_damaged_record_of_the_best_is_one_error(tmp_path: Path, content: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "best.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"best\.json is damaged"):
        _ = checkpoints.best
