"""The relations of a forward pass: every attention call of a model, and the elements that its rows and keys stand for.

H | heads of a site    Lq, Lk | its query rows and keys    item | batch entry    step | forward pass
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from regard.attention import Observation
from regard.elements import Element, span_data
from regard.relations.heads import HEAD_ROLES, Block, HeadRole, Labels, roles_of
from regard.relations.narrow import narrowed, visible

if TYPE_CHECKING:
    import pandas

FORMAT_VERSION = 1
_ROWS = 256  # rows of exact weights held at once


@dataclass(frozen=True)
class Sequence:
    """A sequence that attention runs over, and what its positions stand for.

    Args:
        name: how sites refer to it, such as "source".
        title: what a person calls it, such as "English".
        elements: what each position stands for.
        text: the whole text where the elements are pieces of one.
        words: the words of the text, as elements with spans; empty where there are none.
        word_of: for each element the word that it is a piece of, -1 for none; empty where there are no words.
        writes: for a decoder, what each position writes, having read its element.
        modality: text, image, audio or video.
    """

    name: str
    title: str
    elements: tuple[Element, ...]
    text: str | None = None
    words: tuple[Element, ...] = ()
    word_of: tuple[int, ...] = ()
    writes: tuple[str, ...] = ()
    modality: str = "text"

    def to_dict(self) -> dict[str, Any]:
        """As data: title, modality, text, elements, and what is written where something is."""
        elements = [
            {"index": e.index, "label": e.label, "modality": e.modality, "span": span_data(e.span)}
            for e in self.elements
        ]
        data = {"title": self.title, "modality": self.modality, "text": self.text, "elements": elements}
        return data | ({"writes": [*self.writes]} if self.writes else {})


@dataclass(frozen=True)
class Site:
    """Where in a model attention happens."""

    path: str  # of the module
    kind: Literal["self", "cross"]
    layer: int
    heads: int  # how many were observed
    query: str  # name of the sequence of the rows
    key: str  # name of the sequence of the keys
    head_numbers: tuple[int, ...] = ()  # the model's numbers of the heads observed, where these are not all

    @property
    def part(self) -> str:
        """The part of the model, such as "encoder": the path before its first number."""
        return self.path.split(".")[0]

    def head_number(self, index: int) -> int:
        """The model's number of an observed head."""
        return self.head_numbers[index] if self.head_numbers else index

    def head_index(self, number: int) -> int:
        """Where a head stands among those observed.

        Raises:
            KeyError: it was not observed.
        """
        if self.head_numbers and number not in self.head_numbers:
            raise KeyError(f"head {number} of {self.path!r} was not observed; there is {[*self.head_numbers]}")
        return self.head_numbers.index(number) if self.head_numbers else number


@dataclass(frozen=True)
class Edge:
    """One element attended to another."""

    item: int
    step: int
    site: str
    head: int
    query: int
    key: int
    weight: float


@dataclass
class Relations:
    """Which element attended to which: one observation a site and forward pass.

    Filled by `observe`. Sequences belong to a batch entry (`item`); positions past its elements are padding and
    are left out of everything.

    Args:
        sequences: by name, for each item of the batch.
        about: what is known of the model: name, task and description.
        sites: where attention was observed, in the order of its first calls.
        observations: what the calls at each site saw, by its path; one a step.
        missed: attention that was seen to go by and could not be observed: the reason, by module path.
    """

    sequences: list[dict[str, Sequence]]
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    sites: list[Site] = field(default_factory=list[Site])
    observations: dict[str, list[Observation]] = field(default_factory=dict[str, list[Observation]])
    missed: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, site: Site, observation: Observation) -> None:
        """Adds what one call at `site` saw, as its next step."""
        if site.path not in self.observations:
            self.sites.append(site)
            self.observations[site.path] = []
        self.observations[site.path].append(observation)

    def site(self, path: str) -> Site:
        """The site of this module path.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for site in self.sites:
            if site.path == path:
                return site
        raise KeyError(f"no attention was observed at {path!r}; there is {', '.join(s.path for s in self.sites)}")

    def observation(self, path: str, step: int = -1) -> Observation:
        """What the call at a site saw in one forward pass, the last unless chosen: all items, padding included."""
        return self.observations[self.site(path).path][step]

    def lengths(self, site: Site, item: int = 0, step: int = -1) -> tuple[int, int]:
        """How many rows and keys of a site are elements of an item."""
        seen = self.observations[site.path][step]
        rows = seen.logsumexp.shape[-1]
        keys = seen.received.shape[-1] if seen.received is not None else _kept_keys(seen)
        sequences = self.sequences[item] if item < len(self.sequences) else {}
        query, key = sequences.get(site.query), sequences.get(site.key)
        return (
            rows if query is None else min(rows, len(query.elements)),
            keys if key is None else min(keys, len(key.elements)),
        )

    def weights(
        self,
        path: str,
        *,
        heads: list[int] | None = None,
        rows: Tensor | range | slice | None = None,
        item: int = 0,
        step: int = -1,
    ) -> Tensor:
        """Exact attention weights of a site: (heads, rows, Lk).

        Args:
            path: of the site.
            heads: which heads, by the model's numbers; None is all that were observed.
            rows: which query rows; None is all.
            item: which batch entry.
            step: which forward pass.

        Raises:
            KeyError: no such site, or no such head was observed.
            ValueError: observed with keep=False.
        """
        site = self.site(path)
        Lq, Lk = self.lengths(site, item, step)
        chosen = None if heads is None else [site.head_index(head) for head in heads]
        seen = narrowed(self.observation(path, step), item, chosen)
        return seen.weights(range(Lq) if rows is None else rows)[0, ..., :Lk]

    def edges(self, *, item: int | None = None, site: str | None = None) -> Iterator[Edge]:
        """The largest weights of every row: one edge each, for all items, steps, sites and heads unless chosen."""
        for place in self.sites if site is None else [self.site(site)]:
            for step, seen in enumerate(self.observations[place.path]):
                if seen.top_keys is None or seen.top_weights is None:
                    continue
                for b in range(seen.top_keys.shape[0]) if item is None else [item]:
                    Lq, _ = self.lengths(place, b, step)
                    keys, weights = seen.top_keys[b, :, :Lq], seen.top_weights[b, :, :Lq]
                    for head, row, rank in (keys >= 0).nonzero().tolist():
                        number = int(row if seen.rows is None else seen.rows[row])
                        weight = float(weights[head, row, rank])
                        key = int(keys[head, row, rank])
                        yield Edge(b, step, place.path, place.head_number(head), number, key, weight)

    def to_frame(self) -> pandas.DataFrame:
        """The edges as a pandas data frame: item, step, site, head, query, key, weight.

        Raises:
            ModuleNotFoundError: pandas is not installed (`pip install regard[frames]`).
        """
        import pandas

        columns = ("item", "step", "site", "head", "query", "key", "weight")
        rows = [tuple(getattr(edge, c) for c in columns) for edge in self.edges()]
        return pandas.DataFrame(rows, columns=list(columns))

    def heads(self, *, item: int = 0) -> dict[str, list[HeadRole]]:
        """What each head does: for every site a role and its score a head, by the definitions of `HEAD_ROLES`."""
        roles: dict[str, list[HeadRole]] = {}
        for site in self.sites:
            labels: Labels | None = None
            sequences = self.sequences[item] if item < len(self.sequences) else {}
            query, key = sequences.get(site.query), sequences.get(site.key)
            if query is not None and key is not None and query.modality == key.modality == "text":
                labels = [e.label for e in query.elements], [e.label for e in key.elements]
            Lq, Lk = self.lengths(site, item)
            blocks = self._blocks(site.path, (Lq, Lk), item)
            roles[site.path] = roles_of(blocks, (Lq, Lk), site.kind, labels)
        return roles

    def _blocks(self, path: str, shape: tuple[int, int], item: int) -> Iterator[Block]:
        """The weights of a site, and what its rows may see, a few rows at a time."""
        Lq, Lk = shape
        for first in range(0, Lq, _ROWS):
            rows = range(first, min(first + _ROWS, Lq))
            seen = visible(self.observation(path), item, rows)
            yield self.weights(path, rows=rows, item=item), seen if seen.shape[-1] == 1 else seen[..., :Lk]

    def to_dict(self, *, item: int = 0) -> dict[str, Any]:
        """One item as data for views and `--json`: model, sequences, sites with their statistics and top links.

        Numbers are Python floats; what is not a number is None.
        """
        roles = self.heads(item=item)
        used = {name for site in self.sites for name in (site.query, site.key)}
        return {
            "format_version": FORMAT_VERSION,
            "model": dict(self.about),
            "note": "raw attention weights",
            "sequences": {n: s.to_dict() for n, s in self.sequences[item].items() if n in used},
            "sites": [self._site_dict(site, roles[site.path], item) for site in self.sites],
            "roles": dict(HEAD_ROLES),
        }

    def _site_dict(self, site: Site, roles: Iterable[HeadRole], item: int) -> dict[str, Any]:
        seen = self.observation(site.path)
        Lq, Lk = self.lengths(site, item)
        data: dict[str, Any] = {
            "path": site.path,
            "kind": site.kind,
            "part": site.part,
            "layer": site.layer,
            "heads": site.heads,
            "query": site.query,
            "key": site.key,
        }
        for name in ("top_keys", "top_weights", "rest", "entropy", "max_weight", "mean_distance"):
            statistic: Tensor | None = getattr(seen, name)
            data[name] = None if statistic is None else _numbers(statistic[item, :, :Lq])
        data["received"] = None if seen.received is None else _numbers(seen.received[item, :, :Lk])
        data["roles"] = [{"name": role.name, "score": role.score} for role in roles]
        return data


def sequences_by_prefix(
    elements: Mapping[str, Sequence], path: str, kind: Literal["self", "cross"], memory: str
) -> tuple[str, str]:
    """The names of the sequences that a site's rows and keys run over.

    Args:
        elements: sequences by the beginning of the module paths that run over them; "" is every path.
        path: of the site.
        kind: cross-attention takes its keys from the sequence of `memory`.
        memory: the prefix whose sequence a cross-attention reads.
    """
    matching = [prefix for prefix in elements if not prefix or path == prefix or path.startswith(prefix + ".")]
    query = elements[max(matching, key=len)].name if matching else ""
    if kind == "self":
        return query, query
    return query, elements[memory].name if memory in elements else ""


def _kept_keys(seen: Observation) -> int:
    return seen.kept.Lk if seen.kept is not None else 0


def _numbers(tensor: Tensor) -> list[Any]:
    """Nested lists; NaN and infinities become None."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        return value if math.isfinite(value) else None

    return plain(tensor.tolist()) if not bool(torch.isfinite(tensor).all()) else tensor.tolist()
