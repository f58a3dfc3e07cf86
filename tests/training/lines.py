"""A task small enough to train in a test: fit a line through noisy points, with dropout so that random state matters.

Run as a program, it trains until it is killed or done: `python lines.py DIR STEPS WORKERS DELAY`.
"""

import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.training import OptimiserConfig, Trainer, TrainerConfig, build_optimiser, build_schedule

Points = tuple[Tensor, Tensor]


class Lines:
    """Batches of points that follow from the epoch; seven batches an epoch, so that steps cross its end."""

    def __init__(self, *, delay: float = 0.0, poison: int | None = None) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.delay, self.poison = delay, poison
        self.seen = 0

    def batches(self, epoch: int) -> Sequence[Points]:
        generator = torch.Generator().manual_seed(epoch)
        points = [torch.randn(index + 2, 3, generator=generator) for index in range(7)]
        return [(x, x.sum(1, keepdim=True)) for x in points]

    def step(self, batch: Points) -> Tensor:
        time.sleep(self.delay)
        self.seen += 1
        loss = (self.model(batch[0]) - batch[1]).square().mean()
        return loss * float("nan") if self.seen == self.poison else loss

    def tokens(self, batch: Points) -> int:
        return len(batch[0])

    def validate(self) -> Mapping[str, float]:
        assert not self.model.training and not torch.is_grad_enabled()
        x, y = self.batches(10**6)[-1]
        return {"loss": (self.model(x) - y).square().mean().item()}


def trainer(out: Path, task: Lines | None = None, **settings: Any) -> Trainer[Points]:
    task = task or Lines()
    config = OptimiserConfig(peak_learning_rate=0.01, warmup=4, weight_decay=0.1)
    settings = {"steps": 12, "validate_every": 5, "checkpoint_every": 5, "keep": 3, **settings}
    return Trainer(
        task.model,
        task,
        build_optimiser(task.model, config),
        build_schedule(config, 12),
        out=out,
        config=TrainerConfig(progress=False, **settings),
    )


def killed_at_random(train: Callable[[], object], metrics: Path, *, kills: int, most: int, seed: int) -> int:
    """Train in a process that is killed again and again, somewhere within so many records; then to the end.

    Returns:
        How often it was killed before it had ended.
    """
    draw, killed = random.Random(seed), 0
    context = multiprocessing.get_context("fork")
    for attempt in range(kills + 1):
        process = context.Process(target=train)
        begun = _records(metrics)
        process.start()
        if attempt < kills:
            wanted = begun + draw.randint(1, most)
            while process.exitcode is None and _records(metrics) < wanted:
                process.join(0.005)
            process.join(draw.uniform(0, 0.05))
            killed += process.exitcode is None
            process.kill()
        process.join()
        assert process.exitcode in (0, -9)
    return killed


def _records(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


if __name__ == "__main__":
    directory, steps, workers, delay = sys.argv[1:]
    torch.set_num_threads(1)
    run = trainer(Path(directory), Lines(delay=float(delay)), steps=int(steps), shards=2, workers=int(workers))
    print("finished" if run.run(resume=True).finished else "stopped", flush=True)
