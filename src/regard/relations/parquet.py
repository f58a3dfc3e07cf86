"""Relations in a Parquet file, written while a model runs, a call at a time: nothing of a call stays in memory.

One schema for all rows, told apart by `kind`; a row group holds rows of one kind:

    kind   columns beside item, step, site, head
    edge   query, key, weight, rank (0 for the largest weight of its row)
    row    query, and what was kept of each row: logsumexp, max_weight, rest, entropy, sink_weight, mean_position,
           mean_distance, segment_mass (a list)
    key    key, received

The other columns of a row are null. Rows and keys past an item's elements, which are padding, are left out. The
schema's metadata holds "regard": JSON of what relations know beside, and the sizes of every call.

    B | batch    H | heads    Lq, Lk | query rows, keys    k, S | largest weights and segments of a row
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.attention import Observation
from regard.files import replacing
from regard.relations.saved import json_of
from regard.relations.sites import Site
from regard.relations.tables import links_of

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
_MAGIC = b"PAR1"
FORMAT_VERSION = 1
_METADATA = b"regard"
_TOGETHER = 1 << 15  # rows that wait to be written, of each kind
_OF_ROWS = ("logsumexp", "max_weight", "rest", "entropy", "sink_weight", "mean_position", "mean_distance")


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    texts, numbers = pa.string(), pa.int64()
    kinds: dict[str, Any] = {"kind": texts, "item": numbers, "step": numbers, "site": texts}
    kinds |= {"head": numbers, "query": numbers, "key": numbers, "weight": pa.float32(), "rank": numbers}
    kinds |= dict.fromkeys((*_OF_ROWS, "received"), pa.float32())
    return pa.schema([*kinds.items(), ("segment_mass", pa.list_(pa.float32()))])


class Writer:
    """Writes what calls saw to a Parquet file that is open.

    Args:
        path: of the file as its reader will know it.
        writer: a `pyarrow.parquet.ParquetWriter`.
    """

    def __init__(self, path: Path, writer: Any) -> None:
        self.path = path
        self._writer = writer
        self._calls: dict[str, list[dict[str, Any]]] = {}
        self._waiting: dict[str, list[pyarrow.Table]] = {}

    def add(self, site: Site, seen: Observation, lengths: Callable[[int], tuple[int, int]]) -> None:
        """Writes what one call saw, as the next step of its site.

        Args:
            site: where.
            seen: what.
            lengths: from an item to how many of its rows and keys are elements.
        """
        steps = self._calls.setdefault(site.path, [])
        step = len(steps)
        steps.append(_sizes(seen))
        B, H, R = seen.logsumexp.shape
        for item in range(B):
            Lq, Lk = lengths(item)
            k = 0 if seen.top_keys is None else seen.top_keys.shape[-1]
            for first in range(0, H, some := max(1, _TOGETHER // max(1, R * k))):
                links = links_of(seen, site, item, step, Lq, slice(first, first + some))
                if links is not None:
                    head, query, key = (t.numpy() for t in links.places.unbind(-1))
                    columns = {"head": head, "query": query, "key": key, "weight": links.weights.numpy()}
                    self._put("edge", site, item, step, {**columns, "rank": links.ranks.numpy()})
            columns = {name: _flat(getattr(seen, name), item, Lq) for name in _OF_ROWS}
            if seen.segment_mass is not None:
                columns["segment_mass"] = _lists(seen.segment_mass[item, :, :Lq])
            self._put("row", site, item, step, {**_grid(site, "query", Lq), **columns})
            if seen.received is not None:
                columns = {**_grid(site, "key", Lk), "received": _flat(seen.received, item, Lk)}
                self._put("key", site, item, step, columns)

    def _put(self, kind: str, site: Site, item: int, step: int, columns: Mapping[str, Any]) -> None:
        """Rows of one kind; they wait until there are many, and are written then."""
        import pyarrow as pa

        n = len(columns["head"])
        alike = {"kind": kind, "item": item, "step": step, "site": site.path}
        whole: list[Any] = []
        for field in self._writer.schema:
            if field.name in alike:
                whole.append(pa.repeat(pa.scalar(alike[field.name], field.type), n))
            else:
                given = columns.get(field.name)
                whole.append(pa.nulls(n, field.type) if given is None else pa.array(given, field.type))
        waiting = self._waiting.setdefault(kind, [])
        waiting.append(pa.Table.from_arrays(whole, schema=self._writer.schema))
        if sum(table.num_rows for table in waiting) >= _TOGETHER:
            self._write(kind)

    def _write(self, kind: str) -> None:
        import pyarrow as pa

        tables = self._waiting.pop(kind, [])
        if tables:
            self._writer.write_table(pa.concat_tables(tables))

    def finish(self, data: Mapping[str, Any]) -> None:
        """Writes what is left, and what relations know beside their observations.

        Raises:
            ValueError: JSON cannot hold `data`.
        """
        for kind in (*self._waiting,):
            self._write(kind)
        text = json_of({"format_version": FORMAT_VERSION, **data, "calls": self._calls})
        self._writer.add_key_value_metadata({_METADATA: text.encode()})


@contextmanager
def writing(path: str | os.PathLike[str]) -> Generator[Writer]:
    """A writer to a file that takes the place of `path` when the context ends, and is removed after an exception.

    Raises:
        ValueError: the name does not end in .parquet.
        ModuleNotFoundError: pyarrow is not installed.
        OSError: it cannot be written; what was there stays.
    """
    place = Path(path)
    if place.suffix != SUFFIX:
        raise ValueError(f"to is {os.fspath(path)!r}; it must be the name of a file that ends in {SUFFIX}")
    if place.is_dir():
        raise IsADirectoryError(f"to is {os.fspath(path)!r}, which is a directory; it must be the name of a file")
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"to={os.fspath(path)!r} needs pyarrow: pip install 'regard[frames]'") from error
    with replacing(path) as part:
        try:
            file = part.open("wb")
        except OSError as error:
            raise OSError(f"{os.fspath(path)} cannot be written: {error.strerror}") from error
        names = ["kind", "item", "step", "site", "head", "query", "key", "rank"]
        options: dict[str, Any] = {"compression": "zstd", "use_dictionary": names}
        with file:
            writer = pyarrow.parquet.ParquetWriter(file, _schema(), **options)
            try:
                yield Writer(place, writer)
                writer.close()
            except BaseException:
                with suppress(Exception):  # the file is given up: what closing it says would hide why
                    writer.close()
                raise


def is_parquet(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file, and it begins like Parquet."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[list[Observation]]]:
    """What was written: what relations know, and a list of steps for each of their sites.

    Raises:
        ValueError: it is damaged, or holds no relations of this format.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            text = (file.metadata.metadata or {}).get(_METADATA)
            data: dict[str, Any] = {} if text is None else json.loads(text)
            if data.get("format_version") != FORMAT_VERSION:
                version = data.get("format_version")
                raise ValueError(f"{path} holds no relations of format_version {FORMAT_VERSION}, but of {version!r}")
            heads = {site["path"]: [*(site["head_numbers"] or range(site["heads"]))] for site in data["sites"]}
            seen = {name: [_empty(call) for call in steps] for name, steps in data["calls"].items()}
            for group in range(file.num_row_groups):
                _fill(seen, heads, file.read_row_group(group))
        return data, [[_observation(call) for call in seen.get(site["path"], [])] for site in data["sites"]]
    except (pa.ArrowException, KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _sizes(seen: Observation) -> dict[str, Any]:
    """The shapes of what a call kept, batch first."""
    names = (*_OF_ROWS, "top_keys", "received", "segment_mass")
    held = {name: getattr(seen, name) for name in names}
    return {name: [*t.shape] for name, t in held.items() if t is not None}


def _empty(sizes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The fields of an observation, before anything is read: no edges, and 0 in rows and keys that are padding."""
    fields = {name: torch.zeros(size) for name, size in sizes.items()}
    if "top_keys" in fields:
        fields["top_weights"] = fields["top_keys"]
        fields["top_keys"] = torch.full(sizes["top_keys"], -1, dtype=torch.int32)
    return fields


def _fill(seen: Mapping[str, list[dict[str, Tensor]]], heads: Mapping[str, list[int]], table: pyarrow.Table) -> None:
    """Puts the rows of one row group where they belong."""
    kind = table["kind"][0].as_py()
    site = table["site"].combine_chunks().dictionary_encode()
    sites, steps = torch.from_numpy(site.indices.to_numpy().copy()), _ints(table, "step")
    for number, step in torch.stack([sites, steps], -1).unique(dim=0).tolist():
        path = site.dictionary[number].as_py()
        rows = table.filter(((sites == number) & (steps == step)).numpy())
        call = seen[path][step]
        index = torch.zeros(max(heads[path]) + 1, dtype=torch.int64)
        index[heads[path]] = torch.arange(len(heads[path]))
        at = _ints(rows, "item"), index[_ints(rows, "head")]
        if kind == "edge":
            at = (*at, _ints(rows, "query"), _ints(rows, "rank"))
            call["top_keys"][at] = _ints(rows, "key").int()
            call["top_weights"][at] = _floats(rows["weight"])
        elif kind == "key":
            call["received"][(*at, _ints(rows, "key"))] = _floats(rows["received"])
        else:
            at = (*at, _ints(rows, "query"))
            for name in [name for name in _OF_ROWS if name in call]:
                call[name][at] = _floats(rows[name])
            if "segment_mass" in call:
                lists = rows["segment_mass"].combine_chunks().flatten()
                call["segment_mass"][at] = _floats(lists).reshape(-1, call["segment_mass"].shape[-1])


def _observation(fields: dict[str, Any]) -> Observation:
    return Observation(**fields)


def _ints(table: pyarrow.Table, name: str) -> Tensor:
    return torch.from_numpy(table[name].to_numpy().copy())


def _floats(column: Any) -> Tensor:
    return torch.from_numpy(column.to_numpy().copy())


def _grid(site: Site, name: str, length: int) -> dict[str, Any]:
    """Columns for every head and position: the head's number, and the position."""
    numbers = torch.tensor([site.head_number(head) for head in range(site.heads)])
    positions = torch.arange(length)
    return {"head": numbers.repeat_interleave(length).numpy(), name: positions.repeat(site.heads).numpy()}


def _flat(statistic: Tensor | None, item: int, length: int) -> Any:
    return None if statistic is None else statistic[item, :, :length].cpu().flatten().numpy()


def _lists(mass: Tensor) -> Any:
    """(H, Lq, S) as one list of S numbers a row."""
    import pyarrow as pa

    offsets = torch.arange(mass.shape[:2].numel() + 1, dtype=torch.int32) * mass.shape[-1]
    return pa.ListArray.from_arrays(offsets.numpy(), mass.cpu().flatten().numpy())
