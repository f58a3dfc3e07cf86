"""What it costs to see a whole model's attention: observe() beside the plain forward pass and other ways of looking.

    python benchmarks/observe.py [--quick] [--rivals DIR] [--json FILE]

The models are those of `transformers` with random weights, under "sdpa": an encoder of 12 layers and 12 heads (BERT's
sizes) and a decoder of 4 layers (Llama's kind: 16 heads, 8 of keys and values), float32, one sequence of N elements:

    plain              the forward pass
    observe            the same, observed: top 8, received, entropy, of all layers and heads
    observe, no keys   the same without the copies that later questions need (keep=False)
    output_attentions  the weights as the model returns them, under "eager"
    attnread           one head of the first layer (it has no call for several statistics), the decoder alone
    bertviz            output_attentions, and the size of the head view's HTML

Each figure is of a process of its own, which may take --memory GB; a side that needs more, or longer than --seconds,
is not tried at larger N. Seconds are CPU time on one thread, wall time on more. Memory is the peak of resident memory
during the pass, beyond that before it. The column "over plain" is the median of paired rounds in one process.
attnread and bertviz are looked for in --rivals, where `pip install --target DIR --no-deps attnread bertviz` (and what
they import) has put them; they run with the torch and transformers that are here.
"""

from __future__ import annotations

import argparse
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
WATCH = Watch(top=8, received=True, entropy=True, position=False)
ROUNDS = {512: 7, 1024: 5, 2048: 3}  # of the pairs; longer ones have one


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
    model = model_of(name, length, "eager" if side in ("output_attentions", "bertviz") else "sdpa")
    ids = torch.randint(5, 1000, (1, length))
    warm = call_of(side, model, ids[:, :64])
    warm()  # what is allocated once, such as thread pools, belongs to no call
    call = call_of(side, model, ids)
    before, clock = _reset_peak(), _clock()
    began = clock()
    result = call()
    found = {"seconds": clock() - began, "bytes": _memory("VmHWM") - before}
    if isinstance(result, str):
        found["file_bytes"] = len(result.encode())
    return found


@torch.inference_mode()
def ratio(side: str, name: str, length: int) -> dict[str, float]:
    """A side's time over that of the plain pass: the median of rounds that take one of each."""
    model, ids = model_of(name, length, "sdpa"), torch.randint(5, 1000, (1, length))
    clock = _clock()
    sides = [call_of("plain", model, ids), call_of(side, model, ids)]
    ratios: list[float] = []
    for number in range(ROUNDS.get(length, 1) + 1):
        took = [0.0, 0.0]
        for one in (0, 1) if number % 2 else (1, 0):
            began = clock()
            sides[one]()
            took[one] = clock() - began
        ratios.append(took[1] / took[0])
    kept = ratios[1:] if len(ratios) > 2 else ratios  # the first round warms up
    return {"ratio": statistics.median(kept), "least": min(kept), "most": max(kept)}


def _clock() -> Callable[[], float]:
    """CPU time on one thread, which does not count the time given to others; wall time on more."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak becomes what is held now
    return _memory("VmRSS")


def run(what: str, side: str, name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """A measurement in a process of its own: figures, or {"failed": why}."""
    command = [sys.executable, __file__, "--measure", what, side, name, str(length)]
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
    for name in options.models:
        gone: dict[str, str] = {"attnread": "not for this model"} if name == "encoder" else {}
        print(f"\n{name}\n{'N':>6}  {'':18} {'seconds':>8} {'over plain':>18} {'memory, MB':>11}", flush=True)
        for length in options.lengths:
            for side in options.sides:
                if side in gone:
                    continue
                row = {"model": name, "N": length, "side": side, **run("memory", side, name, length, options)}
                if "failed" not in row and side.startswith("observe"):
                    row |= run("ratio", side, name, length, options)
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
        print(json.dumps((measure if what == "memory" else ratio)(side, name, int(length))))
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
