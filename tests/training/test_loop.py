"""A run that was stopped, or killed, continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.training import DivergedError, TrainerConfig
from tests.training import lines
from tests.training.lines import Lines, trainer


def curve(out: Path) -> list[dict[str, Any]]:
    """Everything recorded, without the clocks."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in records]


def weights(run: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def launch(out: Path, *, steps: int, workers: int, delay: float) -> subprocess.Popen[str]:
    command = [sys.executable, lines.__file__, str(out), str(steps), str(workers), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(out: Path, step: int) -> None:
    for _ in range(3000):
        path = out / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached within a minute")


def test_records_every_step_and_validation(tmp_path: Path) -> None:
    outcome = trainer(tmp_path).run()
    records = curve(tmp_path)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert [record["epoch"] for record in steps] == [0] * 7 + [1] * 5
    assert [record["step"] for record in records if "validation" in record] == [5, 10, 12]
    assert outcome.finished and outcome.progress.step == 12 and outcome.progress.cpu_seconds > 0
    scores = [record["validation"]["loss"] for record in records if "validation" in record]
    assert scores[-1] < scores[0]


@pytest.mark.parametrize("stop", [3, 5, 7, 8])  # before and at a checkpoint, at and after the end of an epoch
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_resumed_is_the_same_bit_for_bit(tmp_path: Path, stop: int, shards: int) -> None:
    whole = trainer(tmp_path / "whole", shards=shards)
    whole.run()
    trainer(tmp_path / "parts", shards=shards, steps=stop, validate_every=100).run()
    torch.manual_seed(99)  # whatever happens in between
    second = trainer(tmp_path / "parts", shards=shards)
    second.run(resume=True)
    ours, theirs = curve(tmp_path / "parts"), curve(tmp_path / "whole")
    assert [r for r in ours if "loss" in r] == [r for r in theirs if "loss" in r]
    assert ours[-1] == theirs[-1]
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(whole), strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, workers: int) -> None:
    trainer(tmp_path / "whole", shards=2).run()
    process = launch(tmp_path / "killed", steps=12, workers=workers, delay=0.05)
    wait_for_step(tmp_path / "killed", 8)  # after the checkpoint of step 5
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # as if killed in the middle of a line
    output, errors = launch(tmp_path / "killed", steps=12, workers=workers, delay=0.0).communicate(timeout=60)
    assert output == "finished\n", errors
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b"[]\n", b"3\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"{\n"])
def test_damaged_metrics_are_one_error(tmp_path: Path, damage: bytes) -> None:
    trainer(tmp_path, steps=5).run()
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    before = metrics.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: ") as error:
        trainer(tmp_path).run(resume=True)
    assert "\n" not in str(error.value)
    assert metrics.read_bytes() == before


def test_half_a_line_at_the_end_of_the_metrics_is_no_error(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    trainer(tmp_path / "parts", steps=5, validate_every=100).run()
    with (tmp_path / "parts" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "valida')  # not later than the checkpoint
    trainer(tmp_path / "parts").run(resume=True)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_what_a_stop_saved_is_in_no_average(tmp_path: Path) -> None:
    process = launch(tmp_path, steps=12, workers=1, delay=0.05)
    wait_for_step(tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    run = trainer(tmp_path, shards=2)
    assert [path.name for path in run.checkpoints.regular] == ["step-00000005.safetensors"]
    assert len(run.checkpoints.paths) == 2
    run.run(resume=True)
    assert [int(p.name[5:13]) for p in run.checkpoints.paths] == [5, 10, 12]
    assert run.checkpoints.regular == run.checkpoints.paths


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = launch(tmp_path / "stopped", steps=12, workers=2, delay=0.05)
    wait_for_step(tmp_path / "stopped", 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("stopped\n", "", 0)
    last = curve(tmp_path / "stopped")[-1]["step"]
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{last:08d}.safetensors").is_file()
    trainer(tmp_path / "stopped", shards=2).run(resume=True)
    trainer(tmp_path / "whole", shards=2).run()
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")


def test_divergence_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, Lines(poison=8))
    with pytest.raises(DivergedError, match=r"loss is nan at step 8.*step-00000005\.safetensors"):
        run.run()
    assert [path.name for path in run.checkpoints.paths] == ["step-00000005.safetensors"]
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1, clip=1)
    run.run()
    norm = torch.stack([parameter.grad.norm() for parameter in run.model.parameters()]).norm()  # type: ignore[union-attr]
    assert curve(tmp_path)[0]["grad_norm"] > 1
    torch.testing.assert_close(norm, torch.tensor(1.0))


def test_does_not_mix_two_runs(tmp_path: Path) -> None:
    trainer(tmp_path, steps=5).run()
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        trainer(tmp_path).run()


def test_an_epoch_without_batches_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Lines()
    monkeypatch.setattr(task, "batches", lambda epoch: [])
    with pytest.raises(ValueError, match="epoch 0 has no batches"):
        trainer(tmp_path, task).run()


def test_shows_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path)
    run.config = TrainerConfig(steps=2)
    run.run()
    assert "2/2" in capsys.readouterr().out


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        TrainerConfig(steps=0)
    with pytest.raises(ValueError, match="clip is 0"):
        TrainerConfig(clip=0)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    process = launch(tmp_path / "run", steps=1000, workers=2, delay=0.01)
    wait_for_step(tmp_path / "run", 2)
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not tasks.is_file():
        process.kill()
        process.wait()
        pytest.skip("this system does not list the children of a process")
    (child,) = [int(number) for number in tasks.read_text().split()]
    process.kill()
    process.wait()
    for _ in range(500):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[:1]:
            return  # ended, and waits to be noticed by the process that inherited it
        time.sleep(0.02)
    raise AssertionError("the worker outlived the process that started it")
