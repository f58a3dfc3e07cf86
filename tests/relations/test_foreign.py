"""observe() on models that others wrote: weights as their eager has them, outputs as near float64 as before."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from tests.relations.foreign import KINDS, Kind, field_of

CASES = [(name, how) for name, kind in KINDS.items() for how in kind.implementations]


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, in order."""
    found = [output] if isinstance(output, Tensor) else []
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        found = [t for part in output for t in tensors(part)]
    return [t for t in found if t.is_floating_point()]


def exact(kind: Kind) -> Any:
    """The output of its eager attention, in float64 where it runs in that."""
    if not kind.double:
        return kind.make("eager")(**kind.inputs)
    inputs = {n: t.double() if t.is_floating_point() else t for n, t in kind.inputs.items()}
    return kind.make("eager").double()(**inputs)


def real(output: Tensor, kind: Kind) -> Tensor:
    """What is said of positions that are no padding: a padded row that may look at nothing has no one right output."""
    mask = kind.inputs.get("attention_mask")
    return output if mask is None or output.shape[:2] != mask.shape else output[mask.bool()]


@pytest.mark.parametrize(("name", "how"), CASES)
@torch.no_grad()
def test_weights_are_those_of_eager_attention(name: str, how: str):
    kind = KINDS[name]
    model, eager = kind.make(how), kind.make("eager")(**kind.inputs, output_attentions=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regard.observe(model) as relations:
            model(**kind.inputs)
    assert not relations.missed
    paths = {path.format(layer): (field, layer) for field, path in kind.sites.items() for layer in range(2)}
    assert {site.path for site in relations.sites} == set(paths)
    for path, (field, layer) in paths.items():
        site, expected = relations.site(path), field_of(eager, field)[layer]
        assert (site.kind, site.layer, site.heads) == ("cross" if "cross" in field else "self", layer, 4)
        for item in range(2):
            found = relations.weights(path, item=item)
            rows, padding = torch.ones(found.shape[1], dtype=torch.bool), kind.inputs.get("attention_mask")
            if how == "sdpa" and padding is not None and found.shape[1:] == (8, 8):
                rows = padding[item].bool()  # a padded row may look at nothing in sdpa, and at all alike in eager
            torch.testing.assert_close(found[:, rows], expected[item][:, rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "how"), CASES)
@torch.no_grad()
def test_outputs_stay_what_they_are(name: str, how: str):
    kind = KINDS[name]
    model = kind.make(how)
    before = tensors(model(**kind.inputs))
    with regard.observe(model):
        during = tensors(model(**kind.inputs))
    after = tensors(model(**kind.inputs))
    for one, other, again, truth in zip(during, before, after, tensors(exact(kind)), strict=True):
        one_, other_, truth_ = (real(t, kind) for t in (one, other, truth))
        known = truth_.isfinite()  # in float64, eager rows that may look at nothing are NaN where they pass float32
        assert known[0].all()
        assert float((one_ - truth_)[known].abs().max()) <= max(1e-5, 2 * float((other_ - truth_)[known].abs().max()))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert torch.equal(other, again)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, "autocast"], ids=str)
@pytest.mark.parametrize(
    ("name", "how"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager"), ("gptj", "eager")]
)
@torch.no_grad()
def test_half_precision_is_read_as_it_is(name: str, how: str, precision: torch.dtype | str):
    kind = KINDS[name]
    model = kind.make(how)
    if isinstance(precision, torch.dtype):
        model = model.to(precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            before = model(**kind.inputs).logits
            with regard.observe(model) as relations:
                during = model(**kind.inputs).logits
            eager = kind.make("eager").to(model.dtype)(**kind.inputs, output_attentions=True)
    assert during.dtype == before.dtype and len(relations.sites) == 2
    torch.testing.assert_close(real(during, kind), real(before, kind), atol=0.1, rtol=0.05)
    weights = relations.weights(kind.sites["attentions"].format(0))
    torch.testing.assert_close(weights, eager.attentions[0][0].float(), atol=0.02, rtol=0)
