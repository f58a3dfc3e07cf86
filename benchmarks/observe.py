"""What it costs to see a whole model's attention: observe() beside the plain forward pass and other ways of looking.

    python benchmarks/observe.py [--quick] [--rivals DIR] [--rounds R] [--json FILE]

The models are those of `transformers` with random weights, under "sdpa": an encoder of 12 layers and 12 heads (BERT's
sizes) and a decoder of 4 layers (Llama's kind: 16 heads, 8 of keys and values), float32, one sequence of N elements:

    plain              the forward pass
    observe            the same, observed: top 8, received, entropy, of all layers and heads
    observe, no keys   the same without the copies that later questions need (keep=False)
    output_attentions  the weights as the model returns them, under "eager"
    attnread           one head of the first layer (it has no call for several statistics), the decoder alone
    bertviz            output_attentions, and the size of the head view's HTML

Each side has a process of its own, which may take --memory GB; a side that needs more, or longer than --seconds, is
not tried at larger N, and output_attentions and bertviz not where the matrices alone are more than the memory that is
free. "observe" shares its process with plain, a round of each in turn; "over plain" is the median ratio of the rounds.
Seconds are CPU time on one thread, wall time on more. Memory is the peak of resident memory during the pass, beyond
what was held before it.
attnread and bertviz are looked for in --rivals, where `pip install --target DIR --no-deps attnread bertviz` (and what
they import) has put them; they run with the torch and transformers that are here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from regard import Watch, observe
from regard.files import write_atomically

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
QUICK = (512, 1024)
MODELS = ("encoder", "decoder")
SIDES = ("plain", "observe", "observe, no keys", "output_attentions", "attnread", "bertviz")
MATRICES = ("output_attentions", "bertviz")  # sides that hold every matrix
SIZES = {"encoder": (12, 12), "decoder": (4, 16)}  # layers and heads
WATCH = Watch(top=8, received=True, entropy=True, position=False)
ROUNDS = {512: 7, 1024: 5, 2048: 3}  # of plain and observe in turn; longer ones have one


def model_of(name: str, length: int, how: str) -> torch.nn.Module:
    """One of the two models, for `length` positions, under an attention implementation."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if name == "encoder":
        config = transformers.BertConfig(max_position_embeddings=length)
        return transformers.BertModel._from_config(config, attn_implementation=how, add_pooling_layer=False).eval()
    config = transformers.LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=2816,
        vocab_size=32000,
        max_position_embeddings=length,
    )
    return transformers.LlamaModel._from_config(config, attn_implementation=how).eval()


def call_of(side: str, model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """What a side does; its result is held while memory is measured."""
    options: dict[str, Any] = {} if "Bert" in type(model).__name__ else {"use_cache": False}

    def forward(**asked: bool) -> Any:
        return model(ids, **options, **asked)

    def observed() -> object:
        watch = WATCH if side == "observe" else Watch(top=8, position=False, keep=False)
        with observe(model, watch=watch) as relations:
            forward()
        return relations

    def attnread() -> object:
        from attnread import extract_attention

        return extract_attention(model, {"input_ids": ids, **options}, heads=[(0, 0)])

    def bertviz() -> object:
        from bertviz import head_view

        attentions = forward(output_attentions=True).attentions
        return head_view(attentions, [str(i) for i in range(ids.shape[1])], html_action="return").data

    if side.startswith("observe"):
        return observed
    return {
        "plain": forward,
        "output_attentions": lambda: forward(output_attentions=True),
        "attnread": attnread,
        "bertviz": bertviz,
    }[side]


@torch.inference_mode()
def measure(side: str, name: str, length: int) -> dict[str, float]:
    """Seconds and bytes of one side, in this process."""
    model = model_of(name, length, "eager" if side in MATRICES else "sdpa")
    ids = torch.randint(5, 1000, (1, length))
    call_of(side, model, ids[:, :64])()  # what is allocated once, such as thread pools, belongs to no call
    found, result = _measured(call_of(side, model, ids))
    if isinstance(result, str):
        found["file_bytes"] = len(result.encode())
    return found


@torch.inference_mode()
def pair(side: str, name: str, length: int, rounds: int) -> dict[str, Any]:
    """A side beside the plain pass: seconds and bytes of both, and the ratio of times, over rounds of one of each."""
    model, ids = model_of(name, length, "sdpa"), torch.randint(5, 1000, (1, length))
    sides = ("plain", side)
    for one in sides:
        call_of(one, model, ids[:, :64])()
    calls = [call_of(one, model, ids) for one in sides]
    found: list[list[dict[str, float]]] = [[], []]
    for number in range(rounds):
        for one in (0, 1) if number % 2 else (1, 0):
            found[one].append(_measured(calls[one])[0])
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*found, strict=True)]
    plain, seen = ({key: statistics.median(r[key] for r in runs) for key in runs[0]} for runs in found)
    return {**seen, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "plain": plain}


def _measured(call: Callable[[], object]) -> tuple[dict[str, float], object]:
    """Seconds and bytes of a call, and what it gives."""
    before, clock = _reset_peak(), _clock()
    began = clock()
    result = call()
    return {"seconds": clock() - began, "bytes": _memory("VmHWM") - before}, result


def _clock() -> Callable[[], float]:
    """CPU time on one thread, which does not count the time given to others; wall time on more."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _reset_peak() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed belongs to none
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak becomes what is held now
    return _memory("VmRSS")


def _too_large(side: str, name: str, length: int, limit: float) -> str | None:
    """Why a side that holds every matrix is not tried, or None."""
    layers, heads = SIZES[name]
    matrices = 4e-9 * layers * heads * length**2
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = min(limit, next(int(line.split()[1]) * 1024e-9 for line in lines if line.startswith("MemAvailable")))
    if side not in MATRICES or matrices <= free:
        return None
    return f"not tried: its matrices are {matrices:.0f} GB, and {free:.0f} GB are free"


def run(what: str, side: str, name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """A measurement in a process of its own: figures, or {"failed": why}."""
    rounds = options.rounds or ROUNDS.get(length, 1)
    command = [sys.executable, __file__, "--measure", what, side, name, str(length), "--rounds", str(rounds)]
    command += ["--threads", str(options.threads), "--memory", str(options.memory)]
    paths = [str(options.rivals)] if side in ("attnread", "bertviz") and options.rivals else []
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"over {options.seconds} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    out_of_memory = "allocate memory" in done.stderr or "MemoryError" in done.stderr or done.returncode < 0
    return {"failed": f"over {options.memory} GB" if out_of_memory else last[:100]}


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures and prints every side of every model and length."""
    rows: list[dict[str, Any]] = []
    observed: dict[str, Any] = {}
    for name in options.models:
        gone: dict[str, str] = {"attnread": "not for this model"} if name == "encoder" else {}
        print(f"\n{name}\n{'N':>6}  {'':18} {'seconds':>8} {'over plain':>18} {'memory, MB':>11}", flush=True)
        for length in options.lengths:
            for side in options.sides:
                if side in gone:
                    continue
                beside = "observe" in options.sides and "observe" not in gone
                if side == "plain" and beside:
                    observed = run("pair", "observe", name, length, options)
                    found = observed.pop("plain", observed)
                elif side == "observe" and "plain" in options.sides:
                    found = observed
                elif side.startswith("observe"):
                    found = run("pair", side, name, length, options)
                else:
                    why = _too_large(side, name, length, options.memory)
                    found = run("alone", side, name, length, options) if why is None else {"failed": why}
                row = {"model": name, "N": length, "side": side, **found}
                row.pop("plain", None)
                if "failed" in row:
                    gone[side] = row["failed"]
                rows.append(row)
                print(f"{length:>6}  {side:18} {_written(row)}", flush=True)
    return rows


def _written(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    over = f"{row['ratio']:.2f} ({row['least']:.2f}-{row['most']:.2f})" if "ratio" in row else ""
    file = f"   {row['file_bytes'] / 1e6:,.1f} MB of HTML" if "file_bytes" in row else ""
    return f"{row['seconds']:>8.2f} {over:>18} {row['bytes'] / 1e6:>11,.0f}{file}"


def main() -> int:
    """Print the table, or measure in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"N of {QUICK} alone")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--rounds", type=int, help=f"of plain and observe in turn; unless given {ROUNDS} by N, or 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=14.0, help="GB of address space that a process may take")
    parser.add_argument("--seconds", type=float, default=900.0, help="that a process may take")
    parser.add_argument("--rivals", type=Path, help="where attnread and bertviz are, unless they are installed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        what, side, name, length = options.measure
        limit = int(options.memory * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = measure(side, name, int(length)) if what == "alone" else pair(side, name, int(length), options.rounds)
        print(json.dumps(found))
        return 0
    options.lengths = options.lengths or (QUICK if options.quick else LENGTHS)
    if options.rivals is None:
        missing = [side for side in ("attnread", "bertviz") if importlib.util.find_spec(side) is None]
        options.sides = [side for side in options.sides if side not in missing]
        print("".join(f"{side} is not installed; --rivals DIR says where it is\n" for side in missing), end="")
    print(f"torch {torch.__version__}, {options.threads} thread(s), float32, one sequence of N elements")
    rows = table(options)
    if options.json:
        record = {"torch": torch.__version__, "threads": options.threads, "rows": rows}
        write_atomically(options.json, json.dumps(record).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
