"""The kernel in threads, in forked processes, in new ones, and what is left of it when it is done: nothing."""

import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.attention.native.agreement import ISAS, threads
from tests.attention.native.test_operator import OPTIONS, attend, inputs, observe, same_bits, with_gradients
from tests.contract.cases import fixed

pytestmark = pytest.mark.skipif(not ISAS, reason="the native library was not built")
with_fork = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


def in_a_new_process(code: str) -> list[str]:
    """The lines that a program prints, which has to end by itself within a minute."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_other_threads_get_the_same_bits_at_the_same_time() -> None:
    names = list(OPTIONS)
    expected = [with_gradients(observe, inputs(), name) for name in names]
    with threads(3), ThreadPoolExecutor(4) as pool:
        # drawn here: all threads share one generator
        found = list(pool.map(with_gradients, [observe] * len(names) * 3, [inputs() for _ in names * 3], names * 3))
    assert all(same_bits(one, other) for one, other in zip(found, expected * 3, strict=True))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_threads_that_pytorch_has_is_kept(count: int) -> None:
    with threads(count):
        attend(*fixed(2, 4, 2, 200, 200).tensors)
        assert torch.get_num_threads() == count


WORK = """
    import os, select, torch, regard
    from regard import Causal
    x = torch.randn(1, 2, 300, 16)  # so small that PyTorch's own operators need no threads: those it would lose, too

    def work():
        leaf = x.clone().requires_grad_()
        output = regard.attend(leaf, leaf, leaf, mask=Causal(), backend="native")
        last = regard.attend(x[:, :, -1:], x, x, backend="native")
        return torch.cat((output.detach(), *torch.autograd.grad(output.sum(), leaf), last), 2)
"""


@with_fork
def test_a_forked_process_computes_on_with_threads_of_its_own() -> None:
    code = """
    torch.set_num_threads(3)
    expected = work()
    (torch.ones(1000, 1000) @ torch.ones(1000, 1000)).exp_()  # PyTorch has used its threads, too
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"same" if torch.equal(work(), expected) else b"other")
            os._exit(0)
        ready, _, _ = select.select([reading], [], [], 20)
        print(os.read(reading, 10).decode() if ready else "hangs")
        os.kill(child, 9)
        os.waitpid(child, 0)
    print("same" if torch.equal(work(), expected) else "other")
    """
    assert in_a_new_process(textwrap.dedent(WORK) + textwrap.dedent(code)) == ["same"] * 4


@with_fork
def test_the_workers_of_a_data_loader_compute_on() -> None:
    code = """
    torch.set_num_threads(3)
    expected = work()

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            torch.set_num_threads(1 + index % 3)
            return work()

    loader = torch.utils.data.DataLoader(Items(), num_workers=2, multiprocessing_context="fork", timeout=20)
    print(*(torch.equal(item[0], expected) for item in loader))
    """
    assert in_a_new_process(textwrap.dedent(WORK) + textwrap.dedent(code)) == [" ".join(["True"] * 6)]


def test_no_core_is_busy_after_a_call() -> None:
    tensors = fixed(2, 4, 2, 300, 300, 32).tensors
    with threads(2):
        for _ in range(3):
            attend(*tensors)
        began = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - began < 0.3


def test_the_first_call_of_a_process_may_be_a_compiled_one() -> None:
    code = """
        import torch, regard
        x = torch.randn(1, 2, 8, 4)
        attend = torch.compile(
            lambda q: regard.attend(q, q, q, backend="native"), backend="aot_eager", fullgraph=True)
        print(torch.equal(attend(x), regard.attend(x, x, x, backend="native")))
    """
    assert in_a_new_process(code) == ["True"]
