"""Sample reports: seeded attention with the patterns that trained heads show, as the views read it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]

SOURCE = "A man in a blue shirt is standing on a ladder cleaning a window."
TARGET = "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster."
# Which source word each target word renders, by hand.
RENDERS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 11, 12, 13, 14)
ROLES = {
    "previous token": "the mean weight on the element just before",
    "next token": "the mean weight on the element just after",
    "same element": "the mean weight of an element on itself",
    "sink": "the mean weight on special tokens and punctuation",
    "alignment": "the mean weight on the source word that the next written word renders",
    "local": "the mean weight within two elements to either side",
    "broad": "the mean entropy, as a share of the largest that is possible",
}


@dataclass(frozen=True)
class Side:
    """One sequence: its name in the report, its text, its words, and whether a decoder writes it."""

    name: str
    title: str
    text: str
    labels: list[str]
    spans: list[list[int] | None]
    writes: list[str] | None = None

    def as_report(self) -> dict[str, Any]:
        elements = [
            {"index": i, "label": label, "modality": "text", "span": span}
            for i, (label, span) in enumerate(zip(self.labels, self.spans, strict=True))
        ]
        side: dict[str, Any] = {"title": self.title, "modality": "text", "text": self.text}
        side["elements"] = elements
        if self.writes is not None:
            side["writes"] = self.writes
        return side


def words_of(text: str) -> list[tuple[str, list[int]]]:
    return [(found[0], [found.start(), found.end()]) for found in re.finditer(r"\w+|[^\w\s]", text)]


def reader(name: str, title: str, text: str, *, ends: bool = True) -> Side:
    words = words_of(text)
    labels = [word for word, _ in words] + ["</s>"] * ends
    return Side(name, title, text, labels, [span for _, span in words] + [None] * ends)


def writer(name: str, title: str, text: str) -> Side:
    words = words_of(text)
    labels = ["<s>"] + [word for word, _ in words]
    writes = [text[0 if i == 0 else words[i - 1][1][1] : span[1]] for i, (_, span) in enumerate(words)]
    return Side(name, title, text, labels, [None] + [span for _, span in words], [*writes, "</s>"])


def scores_of(role: str, query: Side, key: Side, random: np.random.Generator) -> Weights:
    rows, columns = len(query.labels), len(key.labels)
    i, j = np.arange(rows)[:, None], np.arange(columns)[None]
    score = random.normal(0.0, 0.9, (rows, columns))
    if role == "previous token":
        score += 6.0 * (j == i - 1)
    elif role == "next token":
        score += 6.0 * (j == i + 1)
    elif role == "same element":
        score += 5.0 * (j == i)
    elif role == "local":
        score += 4.0 - np.abs(i - j) * 1.2
    elif role == "sink":
        score += 4.5 * np.array([not label.isalnum() for label in key.labels])
    elif role == "alignment":
        score += 5.0 * (j == np.minimum(np.array((*RENDERS, 15))[np.minimum(i, 15)], columns - 1))
    # Trained heads leave a little on the end of the sentence whatever they do.
    if key.writes is None:
        score[:, -1] += 3.4
    else:
        score[:, 0] += 2.0
    return score


def weights_of(role: str, query: Side, key: Side, causal: bool, random: np.random.Generator) -> Weights:
    score = scores_of(role, query, key, random)
    if causal:
        score = np.where(np.tri(*score.shape, dtype=bool), score, -np.inf)
    weights = np.exp(score - score.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def site_of(
    path: str, query: Side, key: Side, layer: int, part: str, roles: list[str], k: int, seed: int
) -> dict[str, Any]:
    causal, kind = part == "decoder" and query is key, "self" if query is key else "cross"
    random = np.random.default_rng(seed)
    heads = [weights_of(role, query, key, causal, random) for role in roles]
    site: dict[str, Any] = {"path": path, "kind": kind, "part": part, "layer": layer, "heads": len(heads)}
    site |= {"query": query.name, "key": key.name}
    names = ("top_keys", "top_weights", "rest", "entropy", "max_weight", "mean_distance", "received")
    site |= {name: [] for name in names} | {"roles": []}
    for role, weights in zip(roles, heads, strict=True):
        order = np.argsort(-weights, axis=1, kind="stable")[:, :k]
        top = np.take_along_axis(weights, order, axis=1)
        distance = np.abs(np.arange(weights.shape[0])[:, None] - np.arange(weights.shape[1])[None])
        site["top_keys"].append(np.where(top > 0, order, -1).tolist())
        site["top_weights"].append(top.tolist())
        site["rest"].append(np.maximum(0.0, 1.0 - top.sum(1)).tolist())
        site["entropy"].append((-weights * np.log(np.maximum(weights, 1e-300))).sum(1).tolist())
        site["max_weight"].append(weights.max(1).tolist())
        site["mean_distance"].append((weights * distance).sum(1).tolist())
        site["received"].append(weights.sum(0).tolist())
        score = float(weights.max(1).mean())
        site["roles"].append({"name": role, "score": score})
    return site


HEADS = {
    "encoder": ["previous token", "next token", "sink", "local", "same element", "broad", "sink", "broad"],
    "decoder": [
        "previous token",
        "sink",
        "same element",
        "local",
        "broad",
        "sink",
        "previous token",
        "broad",
    ],
    "cross": ["broad", "sink", "alignment", "alignment", "local", "sink", "alignment", "broad"],
}


def translation(
    source: str = SOURCE, target: str = TARGET, *, layers: int = 4, heads: int = 4, k: int = 32, seed: int = 0
) -> dict[str, Any]:
    """A translation with its encoder, decoder and cross-attention, and the alignment of its words."""
    english, german = reader("source", "English", source), writer("target", "German", target)
    sites: list[dict[str, Any]] = []
    for part, query, key, word in (
        ("encoder", english, english, "attention"),
        ("decoder", german, german, "attention"),
        ("decoder", german, english, "cross"),
    ):
        cast = HEADS["cross" if query is not key else part]
        for layer in range(layers):
            roles = [cast[(layer * 3 + head) % len(cast)] for head in range(heads)]
            path = f"{part}.blocks.{layer}.{word}"
            sites.append(site_of(path, query, key, layer, part, roles, k, seed * 1000 + len(sites)))
    return {
        "format_version": 1,
        "model": {"name": "translate-en-de", "task": "translation", "description": "9 million parameters."},
        "input": source,
        "answer": target,
        "note": "raw attention weights",
        "sequences": {"source": english.as_report(), "target": german.as_report()},
        "sites": sites,
        "roles": ROLES,
        "alignment": alignment_of(source, target, seed),
    }


def alignment_of(source: str, target: str, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    read, written = words_of(source), words_of(target)
    weights = random.dirichlet(np.full(len(read), 0.3), len(written)) * 0.25
    links: list[dict[str, Any]] = []
    for word in range(len(written)):
        partner = RENDERS[word] if word < len(RENDERS) and RENDERS[word] < len(read) else word % len(read)
        weights[word, partner] += 0.45 + 0.25 * random.random()
        links.append({"target": word, "source": partner, "weight": float(weights[word, partner])})
    return {
        "method": "cross-attention, layer 3, mean over heads, read one step later (arXiv 2004.14837)",
        "source": [{"label": word, "span": span} for word, span in read],
        "target": [{"label": word, "span": span} for word, span in written],
        "links": links,
        "weights": weights.tolist(),
    }


def single(length: int = 2000, *, layers: int = 6, heads: int = 8, k: int = 8, seed: int = 0) -> dict[str, Any]:
    """One long sequence read by an encoder alone: only the k strongest links of every row are known."""
    random = np.random.default_rng(seed)
    vocabulary = ["the", "river", "house", "reads", "a", "window", ",", "blue", ".", "stands", "and", "light"]
    words = [vocabulary[int(index)] for index in random.integers(0, len(vocabulary), length - 1)]
    text = " ".join(words)
    side = reader("text", "Text", text)
    i = np.arange(length)[:, None]
    sites: list[dict[str, Any]] = []
    for layer in range(layers):
        keys = [_sparse_keys(i, k, length, random, head) for head in range(heads)]
        weights = [
            -np.sort(-random.dirichlet(np.full(k, 0.5), length) * random.uniform(0.6, 0.95)) for _ in range(heads)
        ]
        sites.append({
            "path": f"encoder.blocks.{layer}.attention", "kind": "self", "part": "encoder", "layer": layer,
            "heads": heads, "query": "text", "key": "text",
            "top_keys": [head.tolist() for head in keys],
            "top_weights": [head.tolist() for head in weights],
            "rest": [(1.0 - head.sum(1)).tolist() for head in weights],
            "entropy": random.uniform(0.5, 4.0, (heads, length)).tolist(),
            "max_weight": [head[:, 0].tolist() for head in weights],
            "mean_distance": [np.abs(head - i).mean(1).tolist() for head in keys],
            "received": [
                np.bincount(key.ravel(), weight.ravel(), length).tolist()
                for key, weight in zip(keys, weights, strict=True)
            ],
            "roles": [
                {"name": HEADS["encoder"][(head + layer) % 8], "score": float(random.uniform(0.3, 0.9))}
                for head in range(heads)
            ],
        })  # fmt: skip
    return {
        "format_version": 1,
        "model": {
            "name": "long-reader",
            "task": "classification",
            "description": "An encoder of long texts.",
        },
        "input": text,
        "answer": "calm 0.91",
        "note": "raw attention weights",
        "sequences": {"text": side.as_report()},
        "sites": sites,
        "roles": ROLES,
        "alignment": None,
    }


def _sparse_keys(
    i: NDArray[np.int64], k: int, length: int, random: np.random.Generator, head: int
) -> NDArray[np.int64]:
    """Distinct keys: the end of the text, and an evenly spread band, wider from head to head."""
    step = 1 + head * 3
    keys = (i + step * (np.arange(k)[None] - k // 2) + random.integers(0, step, (length, 1))) % (length - 1)
    keys[:, 1] = length - 1
    return keys
