"""Speed, memory and accuracy of attention that says what it saw.

    python benchmarks/attention.py                       everything, about seven minutes on two cores
    python benchmarks/attention.py --quick               every figure on few shapes, within 40 seconds
    python benchmarks/attention.py speed                 forward, observed, backward and decode, about six minutes
    python benchmarks/attention.py memory                peak memory at 16,384 elements, about a minute
    python benchmarks/attention.py accuracy              largest error of every statistic, a few seconds
    python benchmarks/attention.py --only decode         one part of the speed, about a minute
    python benchmarks/attention.py speed --shapes 1x12x512 causal   the shapes whose name contains one of the texts
    python benchmarks/attention.py --isa avx2            the native kernel and torch both held to AVX2
    python benchmarks/attention.py speed --apart         the rows of a head between the others', as in models
    python benchmarks/attention.py --json FILE           also writes every figure to a file

The sides of a comparison are
  attend and attend_observed, with `Watch(keep=False)`: every statistic, no copies of query and key (those are counted
  in the row "keep=True");
  torch's scaled_dot_product_attention as its users call it: contiguous inputs (but for --apart), is_causal=True for
  causal masks, enable_gqa=True for grouped heads, no mask for a single row;
  softmax in the open: the matrix of weights, and from it the output, the eight largest weights of a row, what each key
  received, entropy, mean position, mean distance, logsumexp and the largest weight.
All inputs are float32, random, and warm in the caches as far as they fit. In a decode shape one new row looks at all
keys; attend is called as in decoding, with the causal mask and the position of the row.

Sides take turns in one process; ratios are medians over rounds (`attention_bench/timing.py`). One thread is measured in
CPU time, more in wall time. Backward is torch.autograd.grad of query, key and value for the same gradient of the
output, alone, on a graph that was recorded outside; forward and backward together are measured too, so that nothing can
hide in the forward pass. Operations are 4·B·H·D for each pair of query and key that the mask allows, counted; the peak
is what one core reaches when it only multiplies and adds in registers.

Goals that are missed are printed; the exit code is 1 only where a promise of memory or accuracy is broken.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from attention_bench import limits, machine, report, shapes, timing
from attention_bench.speed import PARTS, Plan, Progress, Result, measure

from regard.attention.dispatch import BACKENDS

WHAT = (*PARTS, "memory", "accuracy")


def main() -> int:
    """Run what was asked for; 1 if a promised figure is missed, 130 if interrupted."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.backend not in ("auto", *BACKENDS):
        parser.error(f"--backend is {arguments.backend}; here it may be auto, {' or '.join(BACKENDS)}")
    if arguments.backend == "native" and machine.native_library() is None:
        parser.error("--backend is native, and the native kernel is not there")
    if arguments.case is not None:
        print(limits.memory_of(arguments.case, arguments.length, arguments.backend))
        return 0
    if arguments.isa is not None:
        machine.restart_with_isa(arguments.isa)
        try:
            machine.use_isa(arguments.isa)
        except ValueError as error:
            parser.error(f"--isa: {error}")
    parts = _parts(arguments.what + arguments.only)
    chosen = shapes.select(arguments.shapes, quick=arguments.quick, tiny=arguments.tiny)
    if not chosen:
        parser.error(f"--shapes {' '.join(arguments.shapes)}: no shape has such a name")
    described = machine.describe()
    report.print_machine(described, arguments.backend, arguments.threads)
    record: dict[str, Any] = {"format_version": 1, "arguments": sys.argv[1:], "machine": described}
    return _run(arguments, parts, chosen, record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="*", choices=[[], "speed", *WHAT], help="parts to run; default: all")
    add("--only", action="append", default=[], choices=WHAT, help="the same; may be given several times")
    add("--quick", action="store_true", help="few shapes and rounds, every column, within 40 seconds")
    add("--shapes", nargs="+", default=[], metavar="TEXT", help="only shapes whose name contains one of these texts")
    add("--threads", type=_threads, default=(1, 2), metavar="N,N", help="numbers of threads, default 1,2")
    add("--backend", choices=("auto", "native", "fused"), default="auto", help="of attend, default auto")
    add(
        "--isa",
        help="instruction set of the native backend. So that torch is like for like, avx2 and baseline start this"
        " program anew with ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS and ONEDNN_MAX_CPU_ISA set, which must be"
        " in the environment before torch is loaded",
    )
    add(
        "--apart",
        action="store_true",
        help="the rows of a head stand between those of the others: (B, L, H, D) in memory",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--length", type=int, help="elements, for memory; default 16,384, with --quick 4,096")
    add("--case", help=argparse.SUPPRESS)  # one memory measurement, in this process
    add("--tiny", action="store_true", help=argparse.SUPPRESS)  # toy shapes, for the tests
    return parser


def _threads(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",")}))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a list of positive numbers such as 1,2")
    return numbers


def _parts(names: list[str]) -> list[str]:
    wanted = {*names} | ({*PARTS} if "speed" in names else set())
    return [part for part in WHAT if part in wanted or not wanted]


def _run(arguments: argparse.Namespace, parts: list[str], chosen: list[shapes.Shape], record: dict[str, Any]) -> int:
    """Measures, prints and writes; what was measured before an interruption is printed and written too."""
    say, results = Progress(), dict[str, Result]()
    memory, accuracy = list[dict[str, object]](), list[dict[str, object]]()
    kept = complete = True
    try:
        if "memory" in parts:
            say("memory")
            cases = limits.MEMORY_QUICK if arguments.quick else tuple(limits.memory_cases(arguments.backend))
            length = arguments.length or (4096 if arguments.quick else limits.MEMORY_SHAPE[2])
            kept &= limits.memory(length, arguments.backend, cases, memory)
        if "accuracy" in parts:
            say("accuracy")
            kept &= limits.accuracy(arguments.backend, accuracy)
        effort = timing.TINY if arguments.tiny else timing.QUICK if arguments.quick else timing.FULL
        speed = [part for part in parts if part in PARTS]
        measure(Plan(chosen, speed, arguments.threads, effort, arguments.backend, arguments.apart), results, say)
    except KeyboardInterrupt:
        complete = False
        print("\ninterrupted; this is what there is")
    outcomes = report.outcomes_of(list(results.values()))
    if results:
        report.print_table(list(results.values()), arguments.threads, record["machine"]["peak_is"])
        report.print_goals(outcomes)
    say("done" if complete else "interrupted")
    if arguments.json is not None:
        record |= {"complete": complete, "promises_kept": kept, "memory": memory, "accuracy": accuracy}
        record |= {"shapes": report.shapes_to_json(list(results.values())), "goals": report.goals_to_json(outcomes)}
        report.write_json(arguments.json, record)
    return (0 if kept else 1) if complete else 130


if __name__ == "__main__":
    sys.exit(main())
