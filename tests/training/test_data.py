"""Files to pairs, pairs to batches."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.training.data import Ragged, SpecialTokens, TranslationBatches, framed, plan_batches, read_parallel

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2)
lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


def corpus(pairs: list[tuple[int, int]]) -> tuple[Ragged, Ragged]:
    """Sequences of these lengths whose ids tell which pair and place they come from."""
    sources = [[1000 * i + j + 10 for j in range(s)] for i, (s, _) in enumerate(pairs)]
    targets = [[1000 * i + j + 500 for j in range(t)] for i, (_, t) in enumerate(pairs)]
    return Ragged.of(sources), Ragged.of(targets)


def write(path: Path, lines: list[str]) -> Path:
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_reads_plain_and_gz_and_counts_empty_pairs(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en.gz", ["a dog", "", "three\u2028lines", "last"])
    target = write(tmp_path / "a.de", ["ein Hund", "zwei", "drei", "  "])
    text = read_parallel(source, target)
    assert text.source == ["a dog", "three\u2028lines"]  # a line separator within a line is not its end
    assert text.target == ["ein Hund", "drei"]
    assert text.skipped == 2


def test_refuses_files_that_do_not_fit(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", ["a"]), write(tmp_path / "two", ["a", "b"])
    with pytest.raises(ValueError, match="one has 1 lines and .*two 2"):
        read_parallel(one, two)
    with pytest.raises(ValueError, match="missing is not a file"):
        read_parallel(one, tmp_path / "missing")
    (tmp_path / "latin").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin, line 2: not UTF-8"):
        read_parallel(two, tmp_path / "latin")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"a\nb\n")[:-9])
    with pytest.raises(ValueError, match="torn.gz: cannot be read"):
        read_parallel(two, tmp_path / "torn.gz")
    with pytest.raises(ValueError, match="no pair"):
        read_parallel(write(tmp_path / "empty", ["", ""]), two)


@given(lengths, st.integers(31, 200), st.integers(0, 3))
def test_every_pair_is_in_one_batch_within_the_budget(pairs: list[tuple[int, int]], budget: int, epoch: int) -> None:
    source, target = corpus(pairs)
    batches = TranslationBatches(source, target, budget=budget, special=SPECIAL, seed=1, epoch=epoch)
    found: list[int] = []
    for batch in batches:
        assert batch.source.numel() <= budget and batch.target.numel() <= budget
        assert batch.source.dtype == batch.target.dtype == batch.labels.dtype == torch.int64
        labels = batch.labels.split(batch.target_lengths.tolist())
        for row, length, start, size, after in zip(
            batch.source, batch.source_lengths, batch.target, batch.target_lengths, labels, strict=True
        ):
            pair = int(row[0]) // 1000
            found.append(pair)
            assert row.tolist() == [*source[pair], SPECIAL.eos] + [SPECIAL.pad] * (len(row) - int(length))
            assert start.tolist() == [SPECIAL.bos, *target[pair]] + [SPECIAL.pad] * (len(start) - int(size))
            assert after.tolist() == [*target[pair], SPECIAL.eos]
        real = torch.arange(batch.target.shape[1]) < batch.target_lengths[:, None]
        assert torch.equal(batch.places, real.flatten().nonzero()[:, 0])
    assert sorted(found) == list(range(len(pairs)))


def test_batches_follow_from_seed_and_epoch() -> None:
    pairs = [(int(s), int(t)) for s, t in np.random.default_rng(0).integers(3, 20, (200, 2))]

    def first(seed: int, epoch: int) -> list[int]:
        batches = TranslationBatches(*corpus(pairs), budget=100, special=SPECIAL, seed=seed, epoch=epoch)
        return [batch.source.flatten().tolist() for batch in batches]

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)


def test_little_is_padding() -> None:
    random = np.random.default_rng(0)
    source = random.integers(5, 30, 20_000)
    target = np.clip(source + random.integers(-4, 5, 20_000), 1, None)
    plan = plan_batches(source, target, 2048, random)
    padded = sum(len(rows) * (source[rows].max() + target[rows].max()) for rows in plan)
    assert 1 - (source.sum() + target.sum()) / padded < 0.05


def test_a_pair_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="pair 1 has 31 tokens; budget is 30"):
        TranslationBatches(*corpus([(3, 3), (4, 30)]), budget=30, special=SPECIAL)
    with pytest.raises(ValueError, match="equally many"):
        TranslationBatches(*corpus([(3, 3)])[:1], corpus([(3, 3)] * 2)[1], budget=30, special=SPECIAL)


def test_ragged_take_and_framed() -> None:
    sequences = Ragged.of([[5], [], [6, 7, 8]])
    taken = sequences.take(np.array([2, 0, 1, 2]))
    assert [taken[i].tolist() for i in range(len(taken))] == [[6, 7, 8], [5], [], [6, 7, 8]]
    rows, sizes = framed(sequences, 0, first=1, last=2)
    assert rows.tolist() == [[1, 5, 2, 0, 0], [1, 2, 0, 0, 0], [1, 6, 7, 8, 2]]
    assert sizes.tolist() == [3, 2, 5]
