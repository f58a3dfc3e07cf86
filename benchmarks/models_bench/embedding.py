"""Sentence vectors in float32: regard beside transformers (sdpa), sentence-transformers and ONNX Runtime.

All sides tokenise, cut off after the same number of pieces, and bring the mean of the rows to length 1. The rivals get
batches of one size, padded to their longest text: transformers in the order that the texts come in and sorted by
length, the others sorted (sentence-transformers sorts by itself).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_bench.timing import batch, clock_for

from models_bench.comparing import OURS, THEIRS, Comparison, absent, compare, own_peak

BATCHES = (1, 8, 32, 128)
GOALS = {"unsorted": 2.0, "sorted": 1.2, "sentence-transformers": 1.0}
PACKAGES = {
    "sentence-transformers": ("sentence_transformers", "sklearn"),
    "ONNX Runtime": ("onnxruntime", "onnxscript"),
}
Vectors = Callable[[Sequence[str], int], torch.Tensor]
"""Texts and a batch size in, vectors (n, d) out."""


def ours(path: Path) -> Any:
    """regard's pipeline, with what the others do: vectors of length 1, texts cut off."""
    from regard.pipelines import pipeline

    return pipeline(path, "embed", normalize=True, truncate=True)


class Padded:
    """What tokenises, pads and takes means around a model.

    Args:
        path: of the checkpoint.
        most: pieces after which a text is cut off.
        model: `input_ids` and `attention_mask` (B, L) in, rows (B, L, d) out.
    """

    def __init__(self, path: Path, most: int, model: Callable[[Any], torch.Tensor]) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.most, self.model = most, model

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], batch: int, *, by_length: bool = True) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i])) if by_length else [*range(len(texts))]
        found: list[torch.Tensor] = []
        for first in range(0, len(texts), batch):
            part = [texts[i] for i in order[first : first + batch]]
            limits = {"padding": True, "truncation": True, "max_length": self.most}
            inputs = self.tokenizer(part, return_tensors="pt", **limits)
            rows = self.model(inputs)  # (B, L, d)
            real = inputs["attention_mask"][..., None]
            found.append((rows * real).sum(1) / real.sum(1))
        vectors = torch.nn.functional.normalize(torch.cat(found), dim=-1)
        return vectors[torch.tensor(order).argsort()]


def theirs(path: Path, most: int) -> Padded:
    """transformers' model."""
    model = _transformer(path)
    return Padded(path, most, lambda inputs: model(**inputs).last_hidden_state)


def sentence_transformer(path: Path, most: int) -> Vectors:
    """sentence-transformers, which reads how rows become a vector as regard does."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(path), device="cpu", model_kwargs={"attn_implementation": "sdpa"})
    model.max_seq_length = most
    options = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    return lambda texts, batch: model.encode([*texts], batch_size=batch, **options)


def onnx_runtime(path: Path, most: int) -> Vectors:
    """ONNX Runtime, with all its optimisations, on what torch.onnx makes of transformers' model."""
    import onnxruntime

    model = _transformer(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        _export(model, file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def rows(inputs: Any) -> torch.Tensor:
        given = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(session.run(None, given)[0])

    return Padded(path, most, rows).vectors


def _transformer(path: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()


class _Rows(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _export(model: torch.nn.Module, file: Path) -> None:
    names = ["input_ids", "attention_mask"]
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("length", min=2, max=512)}
    ids = torch.randint(5, 20, (2, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Rows(model),
            (ids, torch.ones_like(ids)),
            str(file),
            dynamo=True,
            verbose=False,
            input_names=names,
            dynamic_shapes=dict.fromkeys(names, sizes),
        )


def rivals(path: Path, most: int) -> tuple[dict[str, Vectors], dict[str, str]]:
    """The other sides, and why one is missing."""
    padded = theirs(path, most)
    found: dict[str, Vectors] = {
        f"{THEIRS}, unsorted": partial(padded.vectors, by_length=False),
        f"{THEIRS}, sorted": padded.vectors,
    }
    missing: dict[str, str] = {}
    for name, make in (("sentence-transformers", sentence_transformer), ("ONNX Runtime", onnx_runtime)):
        why = absent(PACKAGES[name])
        if why is None:
            try:
                found[name] = make(path, most)
            except Exception as error:  # whatever is wrong with a rival, the others are measured
                why = f"not measured: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
        if why is not None:
            missing[name] = why
    return found, missing


def run(path: Path, texts: Sequence[str], *, threads: int, rounds: int, batches: Sequence[int] = BATCHES) -> Comparison:
    """All figures but memory.

    Args:
        path: a sentence encoder's directory.
        texts: in the order in which they come.
        threads: for all sides.
        rounds: in which the sides take turns, each at its best batch size.
        batches: the sizes that are tried for every rival, once each on all texts.
    """
    torch.set_num_threads(threads)
    mine = ours(path)
    others, missing = rivals(path, mine.reader.most)
    exact = mine.vectors(texts)
    worst = {name: float((exact - other(texts, max(batches))).abs().max()) for name, other in others.items()}
    best: dict[str, Callable[[], object]] = {}
    tried: dict[str, dict[str, float]] = {}
    for name, other in others.items():
        calls = {size: partial(other, texts, size) for size in batches}
        seconds = {size: batch(call, 1, clock_for(threads)) for size, call in calls.items()}
        chosen = min(seconds, key=lambda size: seconds[size])
        best[f"{name}, batches of {chosen}"] = calls[chosen]
        tried[name] = {str(size): took for size, took in seconds.items()}
    seconds = compare({OURS: lambda: mine.vectors(texts)} | best, rounds, threads)
    goals = {name: goal for part, goal in GOALS.items() for name in best if part in name.replace(",", "").split()}
    notes = {"largest_difference": worst, "seconds_by_batch_size": tried, "cut_off_after": mine.reader.most} | missing
    job = f"embedding {len(texts):,} texts with {path.name}, {threads} thread{'s' * (threads > 1)}"
    return Comparison(job, seconds, goals, notes=notes)


def measured_peaks(found: Comparison) -> list[str]:
    """The sides whose memory is compared; ONNX Runtime's process has exported the model, too, and tells nothing."""
    return [name for name in found.seconds if not name.startswith("ONNX Runtime")]


def peak(side: str, path: Path, texts: Sequence[str], most: int) -> int:
    """The memory of this process with one side alone.

    Args:
        side: as `run` names it.
        path: as for `run`.
        texts: as for `run`.
        most: pieces after which a text is cut off.
    """
    name, _, size = side.partition(", batches of ")
    if name == OURS:
        ours(path).vectors(texts)
    elif name == "sentence-transformers":
        sentence_transformer(path, most)(texts, int(size))
    else:
        theirs(path, most).vectors(texts, int(size), by_length=not name.endswith("unsorted"))
    return own_peak()
