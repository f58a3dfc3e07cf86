"""Nets are off while we compute ourselves, and back afterwards."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from regard.relations.capture import modes
from regard.relations.capture.modes import Net, nets_taken_off


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class OperatorNet(Operators, Net):
    pass


class FunctionNet(Functions, Net):
    pass


def counts(*modes: Any) -> list[int]:
    """How many calls of one operation each sees."""
    before = [mode.count for mode in modes]
    torch.add(torch.ones(2), 1)
    return [mode.count - then for mode, then in zip(modes, before, strict=True)]


def test_nets_are_off_and_then_back_in_their_order() -> None:
    with OperatorNet() as a, OperatorNet() as b, FunctionNet() as c, FunctionNet() as d:
        usual = counts(a, b, c, d)
        assert all(usual)
        with nets_taken_off():
            assert counts(a, b, c, d) == [0, 0, 0, 0]
            with nets_taken_off():  # again, with nothing to take
                assert counts(a, b, c, d) == [0, 0, 0, 0]
        assert counts(a, b, c, d) == usual
    assert counts(a, b, c, d) == [0, 0, 0, 0]


def test_they_are_back_after_an_exception() -> None:
    with OperatorNet() as a, FunctionNet() as b:
        with pytest.raises(ValueError, match="such"), nets_taken_off():
            raise ValueError("such")
        assert all(counts(a, b))


def test_they_are_back_after_an_interrupt_while_they_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = modes._STACKS[0]._replace(pop=_interrupted)
    with OperatorNet() as a, OperatorNet() as b, FunctionNet() as c:
        with monkeypatch.context() as changed:
            changed.setattr(modes, "_STACKS", [modes._STACKS[1], broken])
            with pytest.raises(KeyboardInterrupt), modes.nets_taken_off():
                pass
        assert all(counts(a, b, c))


def _interrupted() -> object:
    raise KeyboardInterrupt


def test_modes_of_others_stay_and_so_does_what_lies_below_them() -> None:
    with Operators() as first, OperatorNet() as a, FunctionNet() as c, Operators() as theirs, OperatorNet() as b:
        with nets_taken_off():
            seen = counts(first, a, theirs, b, c)
        assert [bool(n) for n in seen] == [True, True, True, False, False]
        assert all(counts(first, a, theirs, b, c))
