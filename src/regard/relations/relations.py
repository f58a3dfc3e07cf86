"""The relations of a forward pass: every attention call of a model, and the elements that its rows and keys stand for.

H | heads of a site    Lq, Lk | its query rows and keys    item | batch entry    step | forward pass
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.attention import Observation
from regard.relations import parquet, saved
from regard.relations.as_data import site_data
from regard.relations.heads import HEAD_ROLES, Block, HeadRole, Labels, roles_of
from regard.relations.narrow import narrowed, visible
from regard.relations.segments import SegmentShare, segment_shares
from regard.relations.sites import Edge, Sequence, Sink, Site
from regard.relations.tables import Links, columns_of, links_of

if TYPE_CHECKING:
    import pandas
    import pyarrow

FORMAT_VERSION = 1
_ROWS = 256  # rows of exact weights held at once


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
        to: writes what calls see to a file; nothing of it is then kept here, and nothing answered.
    """

    sequences: list[dict[str, Sequence]]
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    sites: list[Site] = field(default_factory=list[Site])
    observations: dict[str, list[Observation]] = field(default_factory=dict[str, list[Observation]])
    missed: dict[str, str] = field(default_factory=dict[str, str])
    to: parquet.Writer | None = field(default=None, repr=False, compare=False)

    def add(self, site: Site, observation: Observation) -> None:
        """Adds what one call at `site` saw, as its next step."""
        if site.path not in self.observations:
            self.sites.append(site)
            self.observations[site.path] = []
        if self.to is None:
            self.observations[site.path].append(observation)
        else:
            self.to.add(site, observation, lambda item: self._lengths(site, observation, item))

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
        return self.steps(path)[step]

    def steps(self, path: str) -> list[Observation]:
        """What the calls at a site saw, one a forward pass.

        Raises:
            KeyError: no such site.
            ValueError: it was written to a file.
        """
        if self.to is not None:
            raise ValueError(f"what was seen was written to {self.to.path}: Relations.load reads it")
        return self.observations[self.site(path).path]

    def lengths(self, site: Site, item: int = 0, step: int = -1) -> tuple[int, int]:
        """How many rows and keys of a site are elements of an item."""
        return self._lengths(site, self.observation(site.path, step), item)

    def _lengths(self, site: Site, seen: Observation, item: int) -> tuple[int, int]:
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

    def top(self, path: str, *, heads: list[int] | None = None, item: int = 0, step: int = -1) -> tuple[Tensor, Tensor]:
        """The keys with the largest weights of every row, and these weights: (heads, Lq, k) each.

        Keys are int32, largest weight first, equal ones by lowest key; -1, of weight 0, where a row may see fewer.

        Args:
            path: of the site.
            heads: which heads, by the model's numbers; None is all that were observed.
            item: which batch entry.
            step: which forward pass.

        Raises:
            KeyError: no such site, or no such head was observed.
            ValueError: observed with Watch(top=0).
        """
        chosen = (path, heads, item, step)
        return self._statistic("top_keys", "top=8", *chosen), self._statistic("top_weights", "top=8", *chosen)

    def received(self, path: str, *, heads: list[int] | None = None, item: int = 0, step: int = -1) -> Tensor:
        """The weight that each key received from all rows together: (heads, Lk).

        Rows that are padding count where the model computes them. Arguments and errors are those of `top`; it needs
        Watch(received=True).
        """
        return self._statistic("received", "received=True", path, heads, item, step)

    def entropy(self, path: str, *, heads: list[int] | None = None, item: int = 0, step: int = -1) -> Tensor:
        """How spread each row is: the entropy of its weights, in nats, (heads, Lq); a row that may see nothing has 0.

        Arguments and errors are those of `top`; it needs Watch(entropy=True).
        """
        return self._statistic("entropy", "entropy=True", path, heads, item, step)

    def distance(self, path: str, *, heads: list[int] | None = None, item: int = 0, step: int = -1) -> Tensor:
        """How far each row looks: the mean of |i - j| in elements, (heads, Lq); NaN for a row that may see nothing.

        Arguments and errors are those of `top`; it needs Watch(position=True).
        """
        return self._statistic("mean_distance", "position=True", path, heads, item, step)

    def sinks(self, *, share: float = 0.3, item: int = 0, step: int = -1) -> list[Sink]:
        """Keys that draw at least this share of all the weight of a head (attention sinks, arXiv 2309.17453).

        The share of a key is its part of what all elements together `received`: where no padding is seen, the mean of
        its weight over the rows that may see anything.
        A learned sink, whose weight goes nowhere, is listed with key None.

        Args:
            share: the least that counts, above 0 and at most 1; 0.3 is the threshold of arXiv 2410.10781.
            item: which batch entry.
            step: which forward pass.

        Returns:
            By site and head, the largest share first.

        Raises:
            ValueError: a share that is none, or observed with Watch(received=False).
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1")
        found: list[Sink] = []
        for site in self.sites:
            drawn = self._statistic("received", "received=True", site.path, None, item, step)  # (H, Lk)
            seen, (Lq, Lk) = self.observation(site.path, step), self.lengths(site, item, step)
            learned = (
                drawn.new_zeros(len(drawn)) if seen.sink_weight is None else seen.sink_weight[item, :, :Lq].sum(-1)
            )
            drawn = torch.cat([drawn, learned[:, None]], -1)  # (H, Lk + 1), the learned one last
            shares = drawn / drawn.sum(-1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).tiny)
            for head, row in enumerate(shares):
                keys = (row >= share).nonzero()[:, 0].tolist()
                for key in sorted(keys, key=lambda key: -float(row[key])):
                    at = None if key == Lk else key
                    found.append(Sink(site.path, site.head_number(head), at, float(row[key])))
        return found

    def segment_mass(self, path: str, *, heads: list[int] | None = None, item: int = 0, step: int = -1) -> Tensor:
        """How much of each row's weight went to each segment: (heads, Lq, S).

        Arguments and errors are those of `top`; it needs Watch(segments=…), or keys whose sequence has segments.
        """
        return self._statistic("segment_mass", "segments=…", path, heads, item, step)

    def segments(self, *, rows: Collection[int] | None = None, item: int = 0, step: int = -1) -> list[SegmentShare]:
        """Which segments were used: the share of each in what the rows of every head gave, a row of a table each.

        A list of dataclasses, as `pandas.DataFrame` takes it. The shares of a head and the weight of its learned sink,
        if it has one, add up to 1.

        Args:
            rows: which query rows, negative ones from the end; None is all. Of them, those that may see anything.
            item: which batch entry.
            step: which forward pass.

        Returns:
            By site, head and segment; last what belongs to none, as segment None.

        Raises:
            ValueError: nothing was observed with segments.
            IndexError: there is no such row.
        """
        found: list[SegmentShare] = []
        for site in self.sites:
            seen = self.observation(site.path, step)
            if seen.segment_mass is None:
                continue
            mass = self.segment_mass(site.path, item=item, step=step)
            sequence = (self.sequences[item] if item < len(self.sequences) else {}).get(site.key)
            names = [] if sequence is None else [part.label for part in sequence.segments]
            found += segment_shares(site, seen, mass, names, rows, item)
        if not found:
            raise ValueError(
                "no segments were kept; observe with Watch(segments=…), or elements whose sequences have segments"
            )
        return found

    def _statistic(self, name: str, asks: str, path: str, heads: list[int] | None, item: int, step: int) -> Tensor:
        """One field of what a site saw in one item, of the elements alone; `asks` is the Watch that keeps it."""
        site = self.site(path)
        statistic: Tensor | None = getattr(self.observation(path, step), name)
        if statistic is None:
            raise ValueError(f"{name} of {path!r} was not kept; observe with Watch({asks})")
        Lq, Lk = self.lengths(site, item, step)
        of_item = statistic[item] if heads is None else statistic[item][[site.head_index(head) for head in heads]]
        return of_item[:, : Lk if name == "received" else Lq]

    def edges(self, *, item: int | None = None, site: str | None = None) -> Iterator[Edge]:
        """The largest weights of every row: one edge each, for all items, steps, sites and heads unless chosen."""
        for links in self._links(item, site):
            for (head, query, key), weight in zip(links.places.tolist(), links.weights.tolist(), strict=True):
                yield Edge(links.item, links.step, links.site, head, query, key, weight)

    def _links(self, item: int | None = None, site: str | None = None) -> Iterator[Links]:
        """The edges of each item, step and site at once."""
        for place in self.sites if site is None else [self.site(site)]:
            for step, seen in enumerate(self.steps(place.path)):
                for b in range(seen.logsumexp.shape[0]) if item is None else [item]:
                    links = links_of(seen, place, b, step, self.lengths(place, b, step)[0])
                    if links is not None:
                        yield links

    def to_frame(self) -> pandas.DataFrame:
        """The edges as a pandas data frame: item, step, site, head, query, key, weight.

        Raises:
            ModuleNotFoundError: pandas is not installed (`pip install regard[frames]`).
        """
        import pandas

        return pandas.DataFrame(columns_of(self._links()))

    def to_arrow(self) -> pyarrow.Table:
        """The edges as an Arrow table, which polars, DuckDB and Parquet take: the columns of `to_frame`.

        Integers are int64, `site` is a string, `weight` float32.

        Raises:
            ModuleNotFoundError: pyarrow is not installed (`pip install regard[frames]`).
        """
        import pyarrow

        columns = columns_of(self._links())
        return pyarrow.table({**columns, "site": pyarrow.array(columns["site"], pyarrow.string())})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the relations to one safetensors file, in one step: statistics as tensors, all else as JSON.

        Queries, keys and values are not written: what is loaded again has every statistic and edge, and no exact
        `weights` beyond them and no roles of `heads`.

        Raises:
            ValueError: `about` holds what JSON cannot.
            OSError: it cannot be written; what was there stays.
        """
        saved.write(path, self.header(), [self.steps(site.path) for site in self.sites])

    def header(self) -> dict[str, Any]:
        """All there is but what was seen, as data: about, sequences, sites, missed."""
        return {
            "about": self.about,
            "sequences": [{name: s.to_json() for name, s in item.items()} for item in self.sequences],
            "sites": [site.to_json() for site in self.sites],
            "missed": self.missed,
        }

    @contextmanager
    def written(self, to: str | os.PathLike[str] | None) -> Generator[None]:
        """Meanwhile what is added goes to a Parquet file, which stands in its place afterwards; None: it is kept."""
        if to is None:
            yield
            return
        saved.json_of(self.header())  # an error now, rather than when all has been computed
        with parquet.writing(to) as self.to:
            yield
            self.to.finish(self.header())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Relations:
        """The relations that `save` wrote, or `observe(…, to=path)`, without queries, keys and values.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or of another format.
            ModuleNotFoundError: it is a Parquet file, and pyarrow is not installed (`pip install regard[frames]`).
        """
        data, observations = parquet.read(path) if parquet.is_parquet(path) else saved.read(path)
        try:
            sites = [Site.from_json(site) for site in data["sites"]]
            sequences = [{n: Sequence.from_json(s) for n, s in item.items()} for item in data["sequences"]]
            seen = {site.path: steps for site, steps in zip(sites, observations, strict=True)}
            return cls(sequences, data["about"], sites, seen, data["missed"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error

    def heads(self, *, item: int = 0) -> dict[str, list[HeadRole]]:
        """What each head does: for every site a role and its score a head, by the definitions of `HEAD_ROLES`.

        Raises:
            ValueError: queries and keys were not kept.
        """
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
            "sites": [
                site_data(site, self.observation(site.path), roles[site.path], self.lengths(site, item), item)
                for site in self.sites
            ],
            "roles": dict(HEAD_ROLES),
        }


def _kept_keys(seen: Observation) -> int:
    return seen.kept.Lk if seen.kept is not None else 0
