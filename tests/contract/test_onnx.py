"""The cases of the ONNX backend suite for Attention, RotaryEmbedding, LayerNormalization and RMSNormalization.

The adapter only reshapes, joins caches, and translates the names of the arguments; https://onnx.ai/onnx/operators.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case import node as suite
from torch import Tensor

from regard import Causal, Dense, Padding, Window
from regard.attention import reference
from regard.attention.position import apply_rotary
from regard.transformer.norms import layer_norm, rms_norm
from tests.contract.backends import attend
from tests.contract.cases import Call

COUNTS = {"Attention": 93, "RotaryEmbedding": 8, "RMSNormalization": 19, "LayerNormalization": 19}
BFLOAT16_RTOL = 2**-6  # what the suite's own runner allows: two units in the last place
STAGES = ("raw", "softcap", "bias", "weights")  # by qk_matmul_output_mode


def by_operator(cases: list[Any]) -> dict[str, dict[str, Any]]:
    """The single-node cases of the four operators: op_type -> name -> case."""
    found: dict[str, dict[str, Any]] = {op: {} for op in COUNTS}
    for case in cases:
        nodes = case.model.graph.node if case.model is not None else []
        if len(nodes) == 1 and nodes[0].op_type in found:
            found[nodes[0].op_type][case.name] = case
    return found


@cache
def every_case() -> dict[str, dict[str, Any]]:
    """All cases of the four operators, from their own modules alone: the whole suite takes ten seconds to make."""
    state = np.random.get_state()
    # Some cases draw their inputs from the global state. The seed matters: in float16 the suite rounds its own answers
    # at every step, so that even the exact answer, rounded once, misses the tolerance in one draw of eight.
    np.random.seed(0)
    try:
        for op in COUNTS:
            import_module(f"{suite.__name__}.{op.lower()}")
    finally:
        np.random.set_state(state)
    return by_operator(suite._NodeTestCases)


def names(op: str) -> list[str]:
    return sorted(every_case()[op])


def tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":  # NumPy's own types hold no bfloat16
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())


class Case:
    """One case: inputs and expected outputs by their names in the operator's definition."""

    def __init__(self, op: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        case = every_case()[op][name]
        (node,) = case.model.graph.node
        ((given, expected),) = case.data_sets
        self.inputs = self.by_name(inputs, node.input, given)
        self.expected = self.by_name(outputs, node.output, expected)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.rtol, self.atol = case.rtol, case.atol

    @staticmethod
    def by_name(formal: tuple[str, ...], actual: Any, arrays: Any) -> dict[str, Tensor]:
        there = [name for name, given in zip(formal, actual, strict=False) if given]
        return {name: tensor(array) for name, array in zip(there, arrays, strict=True)}

    def check(self, actual: dict[str, Tensor]) -> None:
        """Every output that the case expects, in shape, dtype and numbers."""
        for name, expected in self.expected.items():
            assert actual[name].shape == expected.shape, name
            assert actual[name].dtype == expected.dtype, name
            rtol = max(self.rtol, BFLOAT16_RTOL) if expected.dtype == torch.bfloat16 else self.rtol
            np.testing.assert_allclose(
                actual[name].float().numpy(),
                expected.float().numpy(),
                rtol=rtol,
                atol=self.atol,
                err_msg=name,
            )


def attention(case: Case, backend: str) -> dict[str, Tensor]:
    """The operator Attention in the terms of `attend`."""
    given, attributes = case.inputs, case.attributes
    query, key, value = given["Q"], given["K"], given["V"]
    flat = query.dim() == 3
    if flat:  # (B, L, H·D) -> (B, H, L, D)
        heads = (attributes["q_num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"])
        parts = ((query, heads[0]), (key, heads[1]), (value, heads[2]))
        query, key, value = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in parts)
    start: int | Tensor = 0
    if "past_key" in given:
        key, value = torch.cat((given["past_key"], key), 2), torch.cat((given["past_value"], value), 2)
        start = given["past_key"].shape[2]
    elif "nonpad_kv_seqlen" in given:
        start = given["nonpad_kv_seqlen"] - query.shape[2]
    masks: list[Any] = [Causal()] if attributes.get("is_causal") else []
    sides = [attributes.get(f"{side}_window_size", -1) for side in ("left", "right")]
    if max(sides) >= 0:
        masks.append(Window(*(side if side >= 0 else None for side in sides)))
    if "nonpad_kv_seqlen" in given:
        masks.append(Padding(given["nonpad_kv_seqlen"]))
    bias = None
    if "attn_mask" in given:
        shorter = key.shape[2] - given["attn_mask"].shape[-1]  # a shorter mask forbids the keys it does not reach
        if given["attn_mask"].dtype == torch.bool:
            masks.append(Dense(torch.nn.functional.pad(given["attn_mask"], (0, shorter), value=False)))
        else:
            bias = torch.nn.functional.pad(given["attn_mask"], (0, shorter), value=-torch.inf)
    mask = None
    for part in masks:
        mask = part if mask is None else mask & part
    options = {
        "mask": mask,
        "bias": bias,
        "start": start,
        "scale": attributes.get("scale"),
        "softcap": attributes.get("softcap") or None,
    }
    output = attend(Call(query, key, value, **options), backend)
    stage = STAGES[attributes.get("qk_matmul_output_mode", 0)]
    return {
        "Y": output.transpose(1, 2).flatten(2) if flat else output,
        "present_key": key,
        "present_value": value,
        "qk_matmul_output": reference.scores(query, key, **options, stage=stage).to(query.dtype),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx")
def test_every_case_of_the_suite_is_here() -> None:
    whole = by_operator(suite.collect_testcases(None))
    assert {op: len(cases) for op, cases in whole.items()} == COUNTS
    assert all(sorted(cases) == names(op) for op, cases in whole.items())


@pytest.mark.parametrize("name", names("Attention"))
def test_attention(backend: str, name: str) -> None:
    case = Case(
        "Attention",
        name,
        ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"),
        ("Y", "present_key", "present_value", "qk_matmul_output"),
    )
    case.check(attention(case, backend))


@pytest.mark.parametrize("name", names("RotaryEmbedding"))
def test_rotary_embedding(name: str) -> None:
    case = Case("RotaryEmbedding", name, ("X", "cos_cache", "sin_cache", "position_ids"), ("Y",))
    x, cos, sin = (case.inputs[part] for part in ("X", "cos_cache", "sin_cache"))
    if "position_ids" in case.inputs:
        cos, sin = cos[case.inputs["position_ids"]], sin[case.inputs["position_ids"]]  # (B, L, R/2)
    flat = x.dim() == 3
    if flat:
        x = x.unflatten(-1, (case.attributes["num_heads"], -1)).transpose(1, 2)
    turned = apply_rotary(x, cos[:, None], sin[:, None], bool(case.attributes.get("interleaved", 0)))
    case.check({"Y": turned.transpose(1, 2).flatten(2) if flat else turned})


@pytest.mark.parametrize("name", names("LayerNormalization"))
def test_layer_normalization(name: str) -> None:
    case = Case("LayerNormalization", name, ("X", "Scale", "B"), ("Y", "Mean", "InvStdDev"))
    axis, eps = case.attributes.get("axis", -1), case.attributes.get("epsilon", 1e-5)
    y, mean, inverse = layer_norm(case.inputs["X"], axis, case.inputs["Scale"], case.inputs.get("B"), eps)
    case.check({"Y": y, "Mean": mean, "InvStdDev": inverse})


@pytest.mark.parametrize("name", names("RMSNormalization"))
def test_rms_normalization(name: str) -> None:
    case = Case("RMSNormalization", name, ("X", "scale"), ("Y",))
    axis, eps = case.attributes.get("axis", -1), case.attributes.get("epsilon", 1e-5)
    case.check({"Y": rms_norm(case.inputs["X"], axis, case.inputs["scale"], eps)})
