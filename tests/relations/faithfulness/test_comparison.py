"""Methods beside the control over many inputs: means, bootstrap intervals, verdicts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.relations import compare_with_control
from regard.relations.faithfulness.intervals import interval_of, resampled_means


def inputs(method: torch.Tensor, control: torch.Tensor) -> list[dict[str, dict[str, float]]]:
    return [
        {"m": {"deletion": float(a), "insertion": float(a)}, "random": {"deletion": float(b), "insertion": float(b)}}
        for a, b in zip(method, control, strict=True)
    ]


def test_the_interval_is_that_of_the_mean():
    """Of many normal numbers it is the mean ± 1.96 standard errors, however the inputs themselves vary."""
    torch.manual_seed(0)
    base = 5 * torch.randn(400, dtype=torch.float64)
    found = compare_with_control(inputs(base + 0.1 * torch.randn(400), base))
    deletion, insertion = found
    assert (deletion.metric, insertion.metric) == ("deletion", "insertion")
    error = float(base.std()) / 20
    assert deletion.control.value == pytest.approx(float(base.mean()))
    assert deletion.control.low == pytest.approx(float(base.mean()) - 1.96 * error, abs=0.15 * error)
    assert deletion.control.high == pytest.approx(float(base.mean()) + 1.96 * error, abs=0.15 * error)
    # what both have in common is no part of the difference
    assert deletion.difference.high - deletion.difference.low < 0.1 * (deletion.value.high - deletion.value.low)
    assert deletion.verdict == "no difference"


def test_the_verdict_knows_which_values_are_better():
    torch.manual_seed(0)
    control = torch.rand(50)
    deletion, insertion = compare_with_control(inputs(control + 0.2, control))
    assert (deletion.verdict, insertion.verdict) == ("worse", "better")
    assert deletion.difference.value == pytest.approx(0.2) and deletion.difference.low == pytest.approx(0.2)
    deletion, insertion = compare_with_control(inputs(control - 0.2, control))
    assert (deletion.verdict, insertion.verdict) == ("better", "worse")
    data = deletion.to_dict()
    assert data["better"] == "lower" and data["random"]["value"] == pytest.approx(float(control.mean()), abs=1e-6)


def test_a_seed_gives_the_same_intervals():
    torch.manual_seed(0)
    found = inputs(torch.rand(9), torch.rand(9))
    assert compare_with_control(found, seed=3) == compare_with_control(found, seed=3)
    assert compare_with_control(found, seed=3) != compare_with_control(found, seed=4)


def test_one_input_has_no_width():
    (row, _) = compare_with_control(inputs(torch.tensor([0.25]), torch.tensor([0.5])))
    assert (row.value.low, row.value.high) == (0.25, 0.25)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 9))
def test_resampled_means_stay_within_the_values(values: list[float], seed: int):
    samples = resampled_means(torch.tensor(values, dtype=torch.float64)[:, None], resamples=50, seed=seed)
    assert samples.shape == (50, 1)
    assert min(values) - 1e-9 <= float(samples.min()) and float(samples.max()) <= max(values) + 1e-9
    found = interval_of(sum(values) / len(values), samples[:, 0], 0.9)
    assert float(samples.min()) <= found.low <= found.high <= float(samples.max())


def test_what_they_refuse():
    with pytest.raises(ValueError, match="found is empty"):
        compare_with_control([])
    with pytest.raises(ValueError, match=r"values has shape \(0, 2\)"):
        resampled_means(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="confidence is 1"):
        interval_of(0.0, torch.zeros(3), 1)
