"""Sentences a second of the translator, on one thread and on two, in a process each.

    python benchmarks/translate_speed.py FILE [--model translate-en-de] [--beams 5 1]

FILE has a sentence a line, for example Multi30k's raw/test_2016_flickr.en. Reading the model is not counted,
cutting text into pieces is; the median of three runs.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from regard.pipelines import pipeline


def main() -> int:
    """Print the table, or measure in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="translate-en-de")
    parser.add_argument("--beams", type=int, nargs="+", default=[5, 1])
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    if arguments.threads is not None:
        print(_measure(arguments.file, arguments.model, arguments.beams[0], arguments.threads))
        return 0
    print(f"{len(arguments.file.read_text(encoding='utf-8').splitlines())} lines, {arguments.model}")
    for beams in arguments.beams:
        rates: list[float] = []
        for threads in (1, 2):
            command = [sys.executable, __file__, str(arguments.file), "--model", arguments.model]
            command += ["--beams", str(beams), "--threads", str(threads)]
            rates.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        one, two = rates
        print(f"beam {beams}: {one:7.1f} sentences a second on one thread, {two:7.1f} on two ({two / one:.2f}x)")
    return 0


def _measure(file: Path, model: str, beams: int, threads: int) -> float:
    torch.set_num_threads(threads)
    translate = pipeline(model, beams=beams)
    lines = file.read_text(encoding="utf-8").splitlines()
    list(translate.translate_lines(lines[:50]))
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        list(translate.translate_lines(lines))
        seconds.append(time.perf_counter() - began)
    return len(lines) / statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
