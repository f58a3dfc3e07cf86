"""Gradients do not depend on how many processes compute them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from regard.training.workers import Gradients, Shard, WorkerError
from tests.training.lines import Lines, Points

SHARDS = [Shard(epoch=0, index=index, seed=40 + index) for index in range(4)]


@contextmanager
def gradients(workers: int, shards: int = 4) -> Iterator[Gradients[Points]]:
    torch.manual_seed(0)
    task = Lines()
    with Gradients(task.model, task, shards=shards, workers=workers) as entered:
        yield entered


@pytest.mark.parametrize("count", [1, 3, 4])  # fewer shards than workers: the end of an epoch
def test_the_number_of_processes_changes_nothing(count: int) -> None:
    with gradients(1) as alone:
        expected, results = alone.compute(SHARDS[:count])
    for workers in (2, 3):
        with gradients(workers) as several:
            actual, others = several.compute(SHARDS[:count])
            assert torch.equal(actual, expected) and others == results
            again, _ = several.compute(SHARDS[:count])
            assert torch.equal(again, expected)


def test_is_the_gradient_of_the_mean_over_all_tokens() -> None:
    torch.manual_seed(0)
    task = Lines()
    task.model[1].p = 0.0  # without dropout the shards are one batch
    with Gradients(task.model, task, shards=4) as entered:
        gradient, results = entered.compute(SHARDS)
        batches = [task.batches(0)[shard.index] for shard in SHARDS]
        whole = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        expected = torch.autograd.grad(task.step(whole), list(task.model.parameters()))
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
        for parameter, g in zip(task.model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, g)
    assert [result.tokens for result in results] == [2, 3, 4, 5]


def test_workers_see_what_the_optimiser_changes() -> None:
    with gradients(2, shards=2) as entered:
        before, _ = entered.compute(SHARDS[1:3])
        before = before.clone()
        with torch.no_grad():
            for parameter in entered._model.parameters():  # pyright: ignore[reportPrivateUsage]
                parameter.zero_()
        after, results = entered.compute(SHARDS[1:3])
        assert not torch.equal(before, after) and entered.other_cpu_seconds > 0
        assert results[1].loss == pytest.approx(Lines().batches(0)[2][1].square().mean().item())


def test_a_worker_that_dies_is_reported() -> None:
    with gradients(2) as entered:
        (process,) = entered._processes  # pyright: ignore[reportPrivateUsage]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.raises(WorkerError, match="resume the run"):
            entered.compute(SHARDS)


@pytest.mark.parametrize(("shards", "workers"), [(0, 1), (2, 3), (2, 0)])
def test_refuses(shards: int, workers: int) -> None:
    task = Lines()
    with pytest.raises(ValueError, match=f"workers is {workers} for {shards} shards"):
        Gradients(task.model, task, shards=shards, workers=workers)
