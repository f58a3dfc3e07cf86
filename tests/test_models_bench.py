"""The benchmarks of models compare the same answers."""

from pathlib import Path

import pytest
import torch

from benchmarks.models_bench.embedding import Theirs, run
from tests.models.small_bert import TEXTS, small_bert


def test_embedding_beside_transformers(tmp_path: Path):
    place = small_bert(tmp_path)
    threads = torch.get_num_threads()
    result = run(place, TEXTS, threads=1, rounds=1, batch=2)
    torch.set_num_threads(threads)
    assert result["largest_difference"] < 1e-5
    for order in ("as in the file", "sorted by length"):
        figures = result[order]
        assert figures["ratio"] == pytest.approx(figures["transformers"] / figures["regard"])
    theirs = Theirs(place, 2, 40)
    torch.testing.assert_close(theirs.vectors(TEXTS, by_length=True), theirs.vectors(TEXTS), atol=1e-5, rtol=0)
