"""The kernel as PyTorch meets it: compiled, transformed, and in every mode of autograd."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import regard
from regard import Causal, Dense, Documents, Padding, Prefix, Watch, Window
from regard.attention.dispatch import BACKENDS
from regard.attention.native import compiled, operator
from regard.attention.native.lowering import lowered
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from regard.attention.request import checked
from tests.attention.native.agreement import ISAS
from tests.contract.backends import FIELDS
from tests.contract.cases import assert_near, fixed

pytestmark = pytest.mark.skipif(not ISAS, reason="the native library was not built")

B, HEADS, ROWS, KEYS = 2, 4, 20, 30

# Everything but query, key and value; tensors that a gradient reaches are made anew for each call.
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {},
    "causal": lambda: {"mask": Causal(), "start": 10},
    "window": lambda: {"mask": Window(3, 0)},
    "padding": lambda: {"mask": Padding(torch.tensor([20, 9]), torch.tensor([20, 3]))},
    "several": lambda: {"mask": Causal() & Padding(torch.tensor([20, 9]), left=True)},
    "prefix": lambda: {"mask": Causal() | Prefix(4)},
    "documents": lambda: {"mask": Documents(torch.tensor([10, 10]))},
    "dense": lambda: {"mask": Causal() & Dense(torch.rand(ROWS, KEYS) < 0.5)},
    "alibi": lambda: {"bias": ALiBi(torch.rand(HEADS))},
    "relative": lambda: {"bias": RelativeBias(torch.randn(8, HEADS), LogBuckets(8, 20))},
    "tensor bias": lambda: {"bias": torch.randn(HEADS, 1, KEYS)},
    "softcap and sink": lambda: {"softcap": 5.0, "sink_logits": torch.randn(HEADS)},
    "scale": lambda: {"mask": Causal(), "scale": 0.3},
    "starts": lambda: {"mask": Causal(), "start": torch.tensor([3, 9])},
}
every_option = pytest.mark.parametrize("name", OPTIONS)


_DRAWING = Lock()


def inputs(dtype: torch.dtype = torch.float32, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    return fixed(B, HEADS, 2, ROWS, KEYS, size, dtype=dtype).tensors


def options_of(name: str) -> dict[str, Any]:
    with _DRAWING:  # all threads share one generator
        torch.manual_seed(1)
        return OPTIONS[name]()


def leaves_of(options: dict[str, Any]) -> list[Tensor]:
    """The parameters among the options, wanting a gradient."""
    bias, sink = options.get("bias"), options.get("sink_logits")
    found = [bias.parameter] if isinstance(bias, ALiBi | RelativeBias) else []
    return [leaf.requires_grad_() for leaf in [*found, *([] if sink is None else [sink])]]


def attend(*tensors: Tensor, **options: Any) -> Tensor:
    return regard.attend(*tensors, **options, backend="native")


def observe(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The output and all fields of an observation."""
    watch = Watch(top=4, segments=torch.arange(tensors[1].shape[2]) % 3, keep=False)
    output, seen = regard.attend_observed(*tensors, **options, watch=watch, backend="native")
    return output, *(field for name in FIELDS if (field := getattr(seen, name)) is not None)


def with_gradients(function: Callable[..., Any], tensors: tuple[Tensor, ...], name: str) -> list[Tensor]:
    """What a call gives, and all its gradients."""
    options = options_of(name)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    parameters = leaves_of(options)
    given = function(*leaves, **options)
    output, *fields = given if isinstance(given, tuple) else (given,)
    loss = (output.float() * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()
    return [output.detach(), *fields, *torch.autograd.grad(loss, [*leaves, *parameters])]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found, expected, strict=True))


# -- torch.compile


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((attend, name) for name in OPTIONS),
        *((observe, name) for name in ("plain", "several", "dense", "softcap and sink")),
    ],
)
def test_a_traced_call_is_one_graph_and_the_same_bits(function: Callable[..., Any], name: str) -> None:
    torch.compiler.reset()
    traced = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert same_bits(with_gradients(traced, inputs(), name), with_gradients(function, inputs(), name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_traced_call_of_half_precision(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    traced = torch.compile(observe, backend="aot_eager", fullgraph=True)
    assert same_bits(
        with_gradients(traced, inputs(dtype), "several"), with_gradients(observe, inputs(dtype), "several")
    )


@pytest.mark.parametrize("name", ["causal", "window", "alibi", "softcap and sink", "scale"])
def test_one_graph_serves_calls_of_every_length(name: str) -> None:
    torch.compiler.reset()
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, given: Any) -> Any:
        graphs.append(1)
        return graph.forward

    traced = torch.compile(attend, backend=counting, fullgraph=True, dynamic=True)
    for rows in (7, 20, 33):
        tensors = fixed(B, HEADS, 2, rows, rows + 10).tensors
        assert torch.equal(traced(*tensors, **options_of(name)), attend(*tensors, **options_of(name)))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several", "alibi", "softcap and sink"])
def test_a_call_between_compiled_kernels_agrees(name: str) -> None:
    torch.compiler.reset()

    def around(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, ...]:
        output, *seen = observe(query * 2, key + 1, value.sin(), **options)
        return output.transpose(1, 2).flatten(2).tanh(), *seen

    built = torch.compile(around, backend="inductor", fullgraph=True)
    found, expected = (with_gradients(function, inputs(), name) for function in (built, around))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other.double(), 1e-5, name)


OPCHECKED = ("plain", "several", "dense", "alibi", "tensor bias", "softcap and sink", "starts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPCHECKED)
def test_the_operator_is_what_it_declares(name: str, dtype: torch.dtype) -> None:
    options = options_of(name)
    leaves_of(options)
    call = lowered(checked(*(tensor.requires_grad_() for tensor in inputs(dtype)), **options))
    torch.library.opcheck(compiled.attend, tuple(call))


@pytest.mark.parametrize("name", OPCHECKED)
def test_the_operators_of_gradient_and_observation_are_what_they_declare(name: str) -> None:
    call = lowered(checked(*inputs(), **options_of(name)))
    split = compiled.split(tuple(call))
    output, logsumexp = operator.forward(call)
    torch.library.opcheck(compiled.attend_backward, (*split, [output, logsumexp, torch.randn_like(output)]))
    segments = torch.arange(KEYS, dtype=torch.int32)[None] % 4
    position = bool(
        logsumexp.isfinite().all()
    )  # of a row that sees nothing it is NaN, which opcheck takes for different
    for asked in ((3, [True, True, position], segments, 4), (0, [False, False, False], None, 0)):
        torch.library.opcheck(compiled.attend_observed, (*split, *asked))


# -- Modes of PyTorch


def test_autocast_changes_nothing() -> None:
    expected = with_gradients(observe, inputs(), "alibi")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(observe, inputs(), "alibi")
    assert found[0].dtype == torch.float32
    assert same_bits(found, expected)


@every_option
def test_without_gradients_nothing_is_kept_and_the_bits_are_the_same(name: str) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    expected = attend(query, key, value, **options_of(name))
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, *_ = observe(query, key, value, **options_of(name))
            assert not output.requires_grad
            assert_near(output, expected.double(), 1e-5, "output")
            assert torch.equal(attend(query, key, value, **options_of(name)), expected)
        assert output.is_inference() == (mode is torch.inference_mode)


def test_tensors_from_inference_mode_are_served() -> None:
    with torch.inference_mode():
        tensors = inputs()
    assert torch.equal(attend(*tensors), attend(*inputs()))


def test_a_parameter_is_a_tensor() -> None:
    query, key, value = (torch.nn.Parameter(tensor) for tensor in inputs())
    assert BACKENDS["native"].refuses(checked(query, key, value)) is None
    attend(query, key, value).sum().backward()
    assert query.grad is not None and bool(query.grad.isfinite().all())


REFUSED: dict[str, tuple[Callable[[], tuple[Tensor, ...]], dict[str, Any], str]] = {
    "float64": (lambda: inputs(torch.float64), {}, r"query has dtype torch.float64"),
    "dropout": (inputs, {"dropout": 0.5}, r"dropout is 0.5"),
    "meta": (lambda: tuple(tensor.to("meta") for tensor in inputs()), {}, r"query is on meta"),
    "no rows": (lambda: (inputs()[0][:, :, :0], *inputs()[1:]), {}, r"there is nothing to do"),
    "gradient of a matrix": (inputs, {"bias": torch.zeros(ROWS, KEYS, requires_grad=True)}, r"bias needs a gradient"),
    "bias of float64": (inputs, {"bias": torch.zeros(ROWS, KEYS, dtype=torch.float64)}, r"bias has dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses_it_refuses_by_name_and_another_serves(name: str) -> None:
    make, options, words = REFUSED[name]
    tensors = make()
    with pytest.raises(ValueError, match=f"'native' refuses this call: .*{words}"):
        attend(*tensors, **options)
    output = regard.attend(*tensors, **options)
    assert output.shape == (*tensors[0].shape[:3], tensors[2].shape[3])
    assert output.dtype == tensors[0].dtype


def test_a_mask_too_large_to_be_written_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.attention.native import lowering

    monkeypatch.setattr(lowering, "LARGEST_MATRIX", 1000)
    strange = Window(1, 0) | Window(0, 5)
    with pytest.raises(ValueError, match="mask is no intervals"):
        attend(*inputs(), mask=strange)
    expected = regard.attend(*inputs(), mask=strange, backend="reference")
    assert_near(regard.attend(*inputs(), mask=strange), expected.double(), 1e-5, "output")


def test_transformations_of_functions_are_left_to_another() -> None:
    query, key, value = inputs()

    def by_entry(backend: str) -> Tensor:
        return torch.vmap(lambda *one: regard.attend(*(t[None] for t in one), backend=backend)[0])(query, key, value)

    def derivative(backend: str) -> Tensor:
        return torch.func.grad(lambda q: regard.attend(q, key, value, backend=backend).sum())(query)

    def forward_derivative(backend: str) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(query, torch.ones_like(query))
            return forward_ad.unpack_dual(regard.attend(dual, key, value, softcap=9.0, backend=backend)).tangent

    for transform in (by_entry, derivative, forward_derivative):
        with pytest.raises(ValueError, match="'native' refuses this call: .*transformation"):
            transform("native")
        assert_near(transform("auto"), transform("reference").double(), 1e-5, "result")


# -- Autograd


@pytest.mark.parametrize("function", [attend, observe])
def test_a_second_derivative_is_a_clear_error(function: Callable[..., Any]) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    given = function(query, key, value)
    output = given[0] if isinstance(given, tuple) else given
    (first,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
    assert bool(first.isfinite().all())
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("function", [attend, observe])
def test_a_graph_that_is_retained_gives_the_same_gradients_again(function: Callable[..., Any]) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    given = function(query, key, value, **options_of("several"))
    output = given[0] if isinstance(given, tuple) else given
    loss = output.square().sum()
    first = torch.autograd.grad(loss, (query, key, value), retain_graph=True)
    assert same_bits(list(torch.autograd.grad(loss, (query, key, value))), list(first))


@pytest.mark.parametrize("function", [attend, observe])
@pytest.mark.parametrize("changed", ["query", "key", "value", "bias", "sink_logits", "output"])
def test_a_tensor_that_was_changed_since_is_noticed(changed: str, function: Callable[..., Any]) -> None:
    tensors = dict(zip(("query", "key", "value"), (tensor * 1 for tensor in inputs()), strict=True))
    tensors |= {"bias": torch.zeros(ROWS, KEYS), "sink_logits": torch.zeros(HEADS)}
    leaf = torch.zeros((), requires_grad=True)
    query, key, value = (tensors[name] + leaf for name in ("query", "key", "value"))
    given = function(query, key, value, bias=tensors["bias"], sink_logits=tensors["sink_logits"])
    output = given[0] if isinstance(given, tuple) else given
    used = {**tensors, "query": query, "key": key, "value": value, "output": output}
    with torch.no_grad():
        used[changed].add_(1.0)
    with pytest.raises(RuntimeError, match="modified (by an )?inplace"):
        output.sum().backward()


@pytest.mark.parametrize("wanted", ["query", "key", "value"])
def test_a_gradient_of_one_tensor_alone(wanted: str) -> None:
    names = ("query", "key", "value")
    everything = with_gradients(attend, inputs(), "several")[1:]
    tensors = dict(zip(names, inputs(), strict=True))
    tensors[wanted].requires_grad_()
    output = attend(*tensors.values(), **options_of("several"))
    loss = (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()
    (found,) = torch.autograd.grad(loss, tensors[wanted])
    assert torch.equal(found, everything[names.index(wanted)])


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided"])
def test_gradients_come_in_any_layout(layout: str) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    output = attend(query, key, value)
    gradient = torch.randn(output.shape)
    if layout == "expanded":
        gradient = gradient[:, :1, :1, :1].expand(output.shape)
    elif layout == "transposed":
        gradient = gradient.transpose(0, 3).contiguous().transpose(0, 3)
    else:
        gradient = torch.stack((gradient, gradient), -1)[..., 0]
    found = torch.autograd.grad(output, (query, key, value), gradient, retain_graph=True)
    plain = torch.autograd.grad(output, (query, key, value), gradient.contiguous())
    assert same_bits(list(found), list(plain))


def test_what_is_recomputed_gives_the_same_gradients() -> None:
    def step(*tensors: Tensor, **options: Any) -> Tensor:
        return torch.utils.checkpoint.checkpoint(lambda *t: attend(*t, **options), *tensors, use_reentrant=False)

    assert same_bits(with_gradients(step, inputs(), "alibi"), with_gradients(attend, inputs(), "alibi"))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_what_was_seen_is_float32_whatever_the_default_dtype_is(default: torch.dtype) -> None:
    tensors = inputs()

    def seen() -> list[Tensor | None]:
        found = regard.attend_observed(*tensors, watch=Watch(top=3), mask=Causal(), backend="native")[1]
        return [getattr(found, name) for name in FIELDS]

    expected = seen()
    torch.set_default_dtype(default)
    try:
        found = seen()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_the_default_device_is_not_the_kernels() -> None:
    query, key, value = inputs()
    with torch.device("meta"):
        output, seen = regard.attend_observed(query, key, value, watch=Watch(), backend="native")
    expected, _ = regard.attend_observed(query, key, value, watch=Watch(), backend="native")
    assert torch.equal(output, expected)
    assert seen.logsumexp.device.type == "cpu"


@pytest.mark.parametrize("gradients", [False, True])
def test_what_was_seen_can_be_saved_by_pytorch(tmp_path: Path, gradients: bool) -> None:
    query, key, value = (tensor.requires_grad_(gradients) for tensor in inputs())
    seen = regard.attend_observed(query, key, value, watch=Watch(keep=False), backend="native")[1]
    fields = {"keys": seen.top_keys, "weights": seen.top_weights}
    for number, kept in enumerate((fields, seen)):
        torch.save(kept, tmp_path / f"{number}.pt")
    loaded = torch.load(tmp_path / "1.pt", weights_only=False)
    assert torch.equal(loaded.top_keys, seen.top_keys)
    assert torch.equal(loaded.received, seen.received)
    assert torch.equal(torch.load(tmp_path / "0.pt")["keys"], seen.top_keys)


def test_what_was_seen_may_be_written_to_before_the_backward_pass() -> None:
    def gradient(change: bool) -> Tensor:
        query, key, value = (tensor.requires_grad_() for tensor in inputs())
        output, seen = regard.attend_observed(query, key, value, watch=Watch(), backend="native")
        for name in FIELDS if change else ():
            field = getattr(seen, name)
            if field is not None:
                field.zero_()
        (output**2).sum().backward()
        assert query.grad is not None
        return query.grad

    assert torch.equal(gradient(True), gradient(False))
