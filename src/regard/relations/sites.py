"""What relations are made of: sequences of elements, sites of a model where attention happens, edges and sinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from regard.elements import Element, span_data, span_of


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
        segments: the documents, turns or images that the sequence is put together from, with their names as labels:
            what rows look at is then summed over each of them. See `with_segments`.
        segment_of: for each element the number of its segment, -1 for none; empty where there are no segments.

    Raises:
        ValueError: `segment_of` does not fit the elements and segments.
    """

    name: str
    title: str
    elements: tuple[Element, ...]
    text: str | None = None
    words: tuple[Element, ...] = ()
    word_of: tuple[int, ...] = ()
    writes: tuple[str, ...] = ()
    modality: str = "text"
    segments: tuple[Element, ...] = ()
    segment_of: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.segment_of) != (len(self.elements) if self.segments else 0):
            raise ValueError(
                f"segment_of has {len(self.segment_of)} numbers; {self.name!r} has {len(self.elements)} elements and"
                f" {len(self.segments)} segments"
            )
        if any(not -1 <= number < len(self.segments) for number in self.segment_of):
            raise ValueError(f"segment_of has other numbers than -1 … {len(self.segments) - 1}")

    def with_segments(self, spans: Mapping[str, tuple[int, int]]) -> Sequence:
        """The sequence with named parts of its text as segments; an element belongs to what it shares most with.

        Args:
            spans: characters (first, stop) of the text, by name. Elements outside all of them belong to none.

        Example:
            >>> from regard.elements import Element
            >>> elements = (Element(0, "one", span=(0, 3)), Element(1, " two", span=(3, 7)), Element(2, "<end>"))
            >>> Sequence("text", "a text", elements).with_segments({"first": (0, 3), "second": (4, 7)}).segment_of
            (0, 1, -1)
        """

        def of(element: Element) -> int:
            if not isinstance(element.span, tuple):
                return -1
            first, stop = element.span
            shared = [min(stop, end) - max(first, begin) for begin, end in spans.values()]
            best = max(shared, default=0)
            return shared.index(best) if best > 0 else -1

        segments = tuple(Element(i, name, self.modality, span) for i, (name, span) in enumerate(spans.items()))
        return replace(self, segments=segments, segment_of=tuple(map(of, self.elements)) if segments else ())

    def to_dict(self) -> dict[str, Any]:
        """As data: title, modality, text, elements, and what is written and which segments where there are such."""
        data = {"title": self.title, "modality": self.modality, "text": self.text, "elements": _data(self.elements)}
        data |= {"writes": [*self.writes]} if self.writes else {}
        return data | ({"segments": _data(self.segments), "segment_of": [*self.segment_of]} if self.segments else {})

    def to_json(self) -> dict[str, Any]:
        """All there is, as data for `from_json`."""
        return {"name": self.name, **self.to_dict(), "words": _data(self.words), "word_of": [*self.word_of]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sequence:
        """The sequence that `to_json` made this of."""
        return Sequence(
            name=data["name"],
            title=data["title"],
            elements=_elements(data["elements"]),
            text=data["text"],
            words=_elements(data["words"]),
            word_of=tuple(data["word_of"]),
            writes=tuple(data.get("writes", ())),
            modality=data["modality"],
            segments=_elements(data.get("segments", ())),
            segment_of=tuple(data.get("segment_of", ())),
        )


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
        numbers = self.head_numbers or tuple(range(self.heads))
        if number not in numbers:
            raise KeyError(f"head {number} of {self.path!r} was not observed; there is {[*numbers]}")
        return numbers.index(number)

    def to_json(self) -> dict[str, Any]:
        """As data for `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Site:
        """The site that `to_json` made this of."""
        values: dict[str, Any] = {**data, "head_numbers": tuple(data["head_numbers"])}
        return Site(**values)


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


@dataclass(frozen=True)
class Sink:
    """A key that draws much of a head's weight, or the learned sink of a model that has one."""

    site: str
    head: int
    key: int | None  # None: the learned sink, whose weight goes nowhere
    share: float  # of all the weight that the head's rows have


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


def _data(elements: Iterable[Element]) -> list[dict[str, Any]]:
    return [{"index": e.index, "label": e.label, "modality": e.modality, "span": span_data(e.span)} for e in elements]


def _elements(data: Iterable[Mapping[str, Any]]) -> tuple[Element, ...]:
    return tuple(Element(e["index"], e["label"], e["modality"], span_of(e["span"])) for e in data)
