"""Weights are read once, into memory of their own, and what is wrong with them has the name that the file gives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regard.models.checkpoint import new_checkpoint, read_checkpoint
from regard.models.family import ModelError
from regard.models.llama import LlamaConfig
from regard.models.rules import is_finite

SIZES = {
    "vocab_size": 128,
    "d_model": 64,
    "layers": 2,
    "feed_forward": 96,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "max_positions": 64,
}
PEAK = """
import sys
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
from regard.models.checkpoint import read_checkpoint
before = peak()
model = read_checkpoint(sys.argv[1]).model
print(peak() - before, sum(p.nbytes for p in model.parameters()), "torch._dynamo" in sys.modules)
"""


def written(place: Path, *, dtype: torch.dtype | None = None, **sizes: int) -> Path:
    torch.manual_seed(0)
    return new_checkpoint("llama", LlamaConfig(**SIZES | sizes)).save(place, dtype=dtype)


def altered(place: Path, name: str, tensor: torch.Tensor) -> Path:
    file = place / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(file).items()}
    save_file(tensors | {name: tensor}, file, {"format": "pt"})
    return place


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_holds_the_weights_once(tmp_path: Path, dtype: torch.dtype) -> None:
    place = written(tmp_path / "large", d_model=1024, layers=12, feed_forward=2048, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", PEAK, str(place)], capture_output=True, text=True, check=True)
    grown, weights, compiler = done.stdout.split()
    assert int(weights) > 300e6
    assert int(grown) < int(weights) + 130e6  # beside them: one mapping of the file, and what is imported
    assert compiler == "False"  # which takes a second and seventy megabytes, for nothing


def test_the_file_may_change_afterwards(tmp_path: Path) -> None:
    place = written(tmp_path / "model")
    model = read_checkpoint(place).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = place / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
        stream.truncate(0)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_numbers_that_are_not_finite(tmp_path: Path, name: str, number: float, dtype: torch.dtype) -> None:
    place = written(tmp_path / "model")
    tensor = load_file(place / "model.safetensors")[name].to(dtype)
    tensor[-1, -1] = number
    with pytest.raises(ModelError, match=f"model holds numbers that are not finite: {name}$"):
        read_checkpoint(altered(place, name, tensor))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_numbers_of_other_kinds(tmp_path: Path, dtype: torch.dtype) -> None:
    place = written(tmp_path / "model")
    name = "model.norm.weight"
    with pytest.raises(
        ModelError, match=f"{name} holds {dtype} instead of floating-point numbers of 16, 32 or 64 bits"
    ):
        read_checkpoint(altered(place, name, torch.ones(64).to(dtype)))


def test_shapes_are_compared_before_numbers(tmp_path: Path) -> None:
    place = written(tmp_path / "model")
    altered(place, "model.norm.weight", torch.full((63,), torch.nan))
    with pytest.raises(ModelError, match=r"model.norm.weight has shape \(63,\) instead of \(64,\)"):
        read_checkpoint(place)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_numbers_are_looked_through_for_what_is_none(dtype: torch.dtype) -> None:
    assert is_finite(torch.tensor([1.0, -2.0]).to(dtype))
    assert not is_finite(torch.tensor([1.0, torch.nan]).to(dtype))
