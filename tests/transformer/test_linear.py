"""Rows times a matrix: the native library's product against float64 and torch's, and where it is not asked."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from regard.attention.native import library
from regard.transformer import FeedForward
from regard.transformer import linear as module
from regard.transformer.linear import ACTIVATIONS, MOST_NUMBERS, MOST_ROWS, Linear, activated, linear
from tests.attention.native.agreement import ISAS, instruction_set, threads

needs_library = pytest.mark.skipif(not ISAS, reason="the native library was not built")


class Counted:
    """The library, which counts how often it multiplies."""

    def __init__(self, real: ctypes.CDLL) -> None:
        self._real, self.calls = real, 0

    def regard_linear(self, call: bytes) -> int:
        self.calls += 1
        return self._real.regard_linear(call)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    real = library.load()
    assert real is not None
    counting = Counted(real)
    monkeypatch.setattr(module.library, "load", lambda: counting)
    return counting


def drawn(rows: int, size: int, lines: int, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    return torch.randn(1, rows, size), torch.randn(lines, size), torch.randn(lines) if bias else None


@contextmanager
def everything_native() -> Iterator[None]:
    """Whatever size is no question of speed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LEAST_WEIGHTS", "LEAST_SIZE", "LEAST_PRODUCTS"):
            patch.setattr(module, name, 1)
        yield


@needs_library
@pytest.mark.parametrize("isa", ISAS)
@given(
    rows=st.integers(1, MOST_ROWS),
    size=st.integers(1, 40).map(lambda n: 16 * n),
    lines=st.integers(300, 500) | st.integers(1020, 1030),
    count=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_float64(isa: str, rows: int, size: int, lines: int, count: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, more = drawn(rows, size, lines, bias=bias)
    expected = F.linear(x.double(), weight.double(), None if more is None else more.double())
    with instruction_set(isa), threads(count), torch.no_grad():
        found = linear(x, weight, more)
        alone = torch.cat([linear(x[:, i : i + 1], weight, more) for i in range(rows)], 1)
    bound = 1e-6 * (x.double().abs() @ weight.double().abs().T + 1)
    assert found.shape == expected.shape and bool(((found - expected).abs() <= bound).all())
    if 16 * size <= MOST_NUMBERS and weight.numel() >= module.LEAST_WEIGHTS:
        torch.testing.assert_close(found, alone, atol=0, rtol=0)


@needs_library
@pytest.mark.parametrize("isa", ISAS)
@given(
    rows=st.integers(1, 140),
    size=st.integers(8, 30).map(lambda n: 16 * n) | st.sampled_from([752, 768, 784, 1152]),
    lines=st.integers(1, 200),
    count=st.integers(1, 3),
    bias=st.booleans(),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    gated=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_rows_activated_and_gated(
    isa: str, rows: int, size: int, lines: int, count: int, bias: bool, activation: str | None, gated: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight, more = drawn(rows, size, 2 * lines if gated else lines, bias=bias)
    weight /= size**0.5
    options: dict[str, Any] = {"activation": activation, "gated": gated}
    exact = F.linear(x.double(), weight.double(), None if more is None else more.double())
    expected = activated(exact, activation, gated=gated)
    with instruction_set(isa), threads(count), torch.no_grad(), everything_native():
        found = linear(x, weight, more, **options)
        part = linear(x[:, rows // 2 :], weight, more, **options)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    if (rows > MOST_ROWS) == (rows - rows // 2 > MOST_ROWS):  # a row does not depend on how many come with it
        torch.testing.assert_close(found[:, rows // 2 :], part, atol=0, rtol=0)


@needs_library
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_any_size(isa: str, activation: str) -> None:
    values = torch.cat([torch.linspace(-40, 40, 20001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e4, 3e38])])
    x, weight = torch.zeros(len(values), 128), torch.zeros(1, 128)
    x[:, 5], weight[0, 5] = values, 1
    with instruction_set(isa), torch.no_grad(), everything_native():
        for few in (x[:10], x[-10:], x):
            found = linear(few, weight, activation=activation)[:, 0]
            exact = ACTIVATIONS[activation](few[:, 5].double())
            error = (found - exact).abs()
            assert bool((error <= 1e-6 * exact.abs() + 3e-7 * few[:, 5].abs().clamp(max=1)).all()), error.max()
        x[:, 5] = torch.nan
        assert bool(linear(x, weight, activation=activation).isnan().all())


def test_other_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="activation is 'swish': it must be one of relu, gelu"):
        linear(torch.randn(2, 64), torch.randn(256, 64), activation="swish")


@needs_library
def test_who_multiplies(counted: Counted) -> None:
    with torch.no_grad():
        for x, weight, bias, native in (
            (*drawn(1, 64, 256), True),
            (*drawn(MOST_ROWS, 64, 256), True),
            (*drawn(MOST_ROWS + 1, 64, 256), False),
            (*drawn(12, 4096, 16), False),
            (*drawn(64, 128, 512), True),
            (*drawn(63, 128, 512), False),
            (*drawn(2000, 112, 512), False),
            (*drawn(2000, 136, 512), False),
            (*drawn(1, 63, 300), False),
            (*drawn(1, 64, 255), False),
            (*drawn(0, 64, 256), False),
            (torch.randn(1, 64).double(), torch.randn(256, 64).double(), None, False),
            (torch.randn(64), torch.randn(256, 64), None, True),
            (torch.randn(64, 2, 2).mT.transpose(0, 2), torch.randn(256, 64), None, True),
            (torch.randn(2, 64), torch.randn(64, 256).T, None, False),
            (torch.randn(2, 64), torch.randn(256, 64), torch.randn(1), False),
            (torch.randn(2, 64), torch.randn(256, 64), torch.tensor(0.5), False),
            (torch.randn(1 << 14), torch.randn(1 << 14), None, False),
            (torch.randn(9, 4096), torch.randn(16, 4096), None, False),
            (torch.randn(8, 4096), torch.randn(16, 4096), None, True),
        ):
            before = counted.calls
            found = linear(x, weight, bias)
            torch.testing.assert_close(found, F.linear(x, weight, bias), atol=1e-3, rtol=1e-4)
            assert (counted.calls > before) == native, (x.shape, weight.shape)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            linear(torch.randn(2, 32), torch.randn(512, 64))


@needs_library
def test_gradients_and_those_who_look_at_operators_get_torchs(counted: Counted) -> None:
    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    layer, x = Linear(64, 256), torch.randn(3, 64)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    seen: list[object] = []
    with torch.no_grad():
        for mode in (Operators(), Functions()):
            seen.clear()
            with mode:
                layer(x)
            assert seen
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.func.vmap(layer)(x[:, None])
        torch.jit.trace(layer, x, check_trace=False)
        assert counted.calls == 0
        layer(x)
        assert counted.calls == 1
    layer.requires_grad_(False)(x)
    assert counted.calls == 2


@needs_library
def test_compiled(counted: Counted) -> None:
    layer, x = Linear(64, 256), torch.randn(3, 64)
    with torch.no_grad():
        whole: Callable[[Tensor], Tensor] = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(whole(x), layer(x))
    assert counted.calls == 1


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.library, "load", lambda: None)
    x, weight, bias = drawn(2, 64, 256)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=0, rtol=0)


@needs_library
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [5, 50])
def test_what_is_no_number_stays_in_its_row(rows: int, number: float) -> None:
    x, weight, bias = drawn(rows, 64, 256)
    x[0, 3, 9] = number
    with torch.no_grad(), everything_native():
        found, clean = linear(x, weight, bias), linear(x.nan_to_num(0, 0, 0), weight, bias)
    assert not found[0, 3].isfinite().any()
    keep = torch.arange(rows) != 3
    torch.testing.assert_close(found[0, keep], clean[0, keep], atol=0, rtol=0)


@needs_library
@pytest.mark.parametrize("rows", [4, 40])
def test_threads_at_the_same_time_get_the_same_bits(rows: int) -> None:
    x, weight, bias = drawn(rows, 576, 1024)
    found: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            found.extend(linear(x, weight, bias) for _ in range(20))

    work()
    others = [threading.Thread(target=work) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(found) == 100 and all(torch.equal(one, found[0]) for one in found)


def test_it_is_a_linear_layer() -> None:
    ours, theirs = Linear(64, 256), nn.Linear(64, 256)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 64)
    torch.testing.assert_close(ours(x), theirs(x), atol=0, rtol=0)


@needs_library
@pytest.mark.parametrize("rows", [3, 90])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_feed_forward_network_is_one_product_and_another(
    counted: Counted, activation: str, gated: bool, rows: int
) -> None:
    layer, x = FeedForward(128, 512, activation=activation, gated=gated), torch.randn(2, rows, 128)
    expected = layer(x).detach()
    assert counted.calls == 0
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
        assert counted.calls == 2
        seen: list[Tensor] = []

        def halve(_module: nn.Module, _given: Any, found: Tensor) -> Tensor:
            seen.append(found)
            return found / 2

        with layer.up.register_forward_hook(halve):  # sees what it always saw, and what it says counts
            halved = layer(x)
        torch.testing.assert_close(seen[0], F.linear(x, layer.up.weight, layer.up.bias), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(halved, expected, atol=1e-3)
        with pytest.MonkeyPatch.context() as patch:  # as libraries do that move weights about
            before = layer.up.forward
            patch.setattr(layer.up, "forward", lambda given: before(given) / 2)
            torch.testing.assert_close(layer(x), halved, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
