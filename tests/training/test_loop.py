"""A run that was stopped, or killed, continues as if nothing had happened."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.training import DivergedError, RunningAverage, StorageError, TrainerConfig, load_weights
from tests.training import lines
from tests.training.lines import Lines, killed_at_random, trainer


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


def test_without_a_damaged_checkpoint_a_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    damaged = trainer(tmp_path / "run")
    damaged.run()
    newest = damaged.checkpoints.paths[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(ValueError, match="without that file the run goes on from step-00000010.safetensors"):
        trainer(tmp_path / "run").run(resume=True)
    newest.unlink()
    trainer(tmp_path / "run").run(resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_validation_that_is_no_number_stops_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "validate", lambda self: {"loss": float("nan")})
    with pytest.raises(DivergedError, match="validation loss is nan at step 5"):
        trainer(tmp_path).run()


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


def test_a_group_learns_at_its_share_of_the_rate_and_still_does_when_resumed(tmp_path: Path) -> None:
    first = trainer(tmp_path, steps=5)
    first.optimiser.param_groups[0]["share"] = 0.0
    begun = weights(first)
    first.run()
    second = trainer(tmp_path)
    second.run(resume=True)
    for run in (first, second):
        still = {*run.optimiser.param_groups[0]["params"]}
        for parameter, then in zip(run.model.parameters(), begun, strict=True):
            assert torch.equal(parameter, then) == (parameter in still)


def test_killed_at_random_moments_it_continues_to_the_same_curve(tmp_path: Path) -> None:
    settings = {"steps": 60, "checkpoint_every": 7, "validate_every": 5, "ema": 0.9, "patience": 50}
    trainer(tmp_path / "whole", **settings).run()

    def again() -> None:
        trainer(tmp_path / "killed", Lines(delay=0.002), **settings).run(resume=True)

    assert killed_at_random(again, tmp_path / "killed" / "metrics.jsonl", kills=6, most=18, seed=5) > 2
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    names = [path.name for path in sorted((tmp_path / "whole" / "checkpoints").iterdir())]
    assert [path.name for path in sorted((tmp_path / "killed" / "checkpoints").iterdir())] == names
    best, same = (tmp_path / name / "checkpoints" / "best.json" for name in ("killed", "whole"))
    assert best.read_bytes() == same.read_bytes()


def test_ends_early_where_validation_falls_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(self: Lines) -> dict[str, float]:
        return {"loss": abs(float(run.progress.step) - 4)}  # best at step 4

    monkeypatch.setattr(Lines, "validate", worse)
    settings = {"steps": 30, "validate_every": 2, "checkpoint_every": 30, "patience": 2}
    run = trainer(tmp_path, **settings)
    outcome = run.run()
    assert (outcome.progress.step, outcome.finished, outcome.early) == (8, True, True)
    assert [path.name for path in run.checkpoints.paths] == ["step-00000004.safetensors", "step-00000008.safetensors"]
    assert run.checkpoints.best == run.checkpoints.paths[0]
    run = trainer(tmp_path, **settings)
    again = run.run(resume=True)
    assert again.progress.step == 8 and again.early


def test_the_average_is_validated_and_is_what_a_checkpoint_gives(tmp_path: Path) -> None:
    plain, averaged = trainer(tmp_path / "plain"), trainer(tmp_path / "averaged", ema=0.5)
    plain.run()
    averaged.run()
    for a, b in zip(weights(plain), weights(averaged), strict=True):  # the steps themselves are the same
        assert torch.equal(a, b)
    losses = [record["validation"]["loss"] for record in curve(tmp_path / "averaged") if "validation" in record]
    assert losses != [record["validation"]["loss"] for record in curve(tmp_path / "plain") if "validation" in record]
    latest = averaged.checkpoints.latest
    assert latest is not None
    task = Lines()
    load_weights(latest, task.model)
    with torch.no_grad():
        assert task.model.eval() and task.validate()["loss"] == losses[-1]


def test_the_running_average_is_that_of_its_definition() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    expected = model.weight.item()
    average = RunningAverage(model, 0.8)
    for step in range(1, 60):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 59
    with pytest.raises(ValueError, match="ema is 1"):
        RunningAverage(model, 1)


def test_a_full_disk_is_one_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written: No space left .* no checkpoint"):
        trainer(tmp_path).run()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path: Path) -> None:
    trainer(tmp_path, steps=5).run()
    run = trainer(tmp_path, Lines(delay=0.0))

    def stop(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run.run(resume=True)
        except StorageError as error:
            (tmp_path / "error").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=stop, args=(5000,))
    process.start()
    process.join()
    error = (tmp_path / "error").read_text()
    assert "step-00000010.safetensors cannot be written" in error and "\n" not in error
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-00000005.safetensors'}" in error
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.safetensors")] == ["step-00000005.safetensors"]
    trainer(tmp_path).run(resume=True)


def test_draws_its_curves(tmp_path: Path) -> None:
    from PIL import Image

    trainer(tmp_path).run()
    with Image.open(tmp_path / "curves.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6) or []}
        assert image.format == "PNG" and image.size == (1280, 260)
    assert {(0x1F, 0x5F, 0xA8), (0xC0, 0x39, 0x2B)} <= colours  # training and validation


def test_writes_for_tensorboard_where_it_is_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, steps=6, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("validation/loss")] == [5, 6]


@pytest.mark.timeout(60)
def test_a_disk_that_tensorboard_finds_full_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    usual, calls = RecordWriter.write, 0

    def full(self: RecordWriter, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(self, data)

    said: list[threading.ExceptHookArgs] = []
    hook = said.append
    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(StorageError, match=r"tensorboard cannot be written: No space left on device"):
        trainer(tmp_path, tensorboard=True).run()
    assert calls > 4 and not said and threading.excepthook is hook
    other = threading.Thread(target=full, args=(None, b""))
    other.start()
    other.join()
    assert len(said) == 1  # other threads say what ended them, as before


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
    assert "2/2" in capsys.readouterr().err


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        TrainerConfig(steps=0)
    with pytest.raises(ValueError, match="clip is 0"):
        TrainerConfig(clip=0)
    with pytest.raises(ValueError, match="precision is 'float16'; it may be 'float32', 'bfloat16'"):
        TrainerConfig(precision="float16")  # pyright: ignore[reportArgumentType]


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
