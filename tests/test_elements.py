"""Elements: what a position stands for, and how that is written as data."""

import dataclasses
import json

import pytest

from regard.elements import Band, Box, Element, Seconds, Tubelet, span_data, span_of
from regard.relations import Sequence

BOX = Box(1.5, 2, 30, 40.25)
SPANS = [
    ((3, 7), [3, 7]),
    (None, None),
    (BOX, {"box": [1.5, 2, 30, 40.25]}),
    (Seconds(0.5, 0.75), {"seconds": [0.5, 0.75]}),
    (Band(Seconds(0.5, 0.75), (10, 26)), {"seconds": [0.5, 0.75], "mel": [10, 26]}),
    (
        Tubelet((4, 8), Seconds(0.16, 0.36), BOX),
        {"frames": [4, 8], "seconds": [0.16, 0.36], "box": [1.5, 2, 30, 40.25]},
    ),
]


@pytest.mark.parametrize(("span", "data"), SPANS)
def test_every_span_is_json(span: object, data: object):
    assert span_data(span) == data
    sequence = Sequence("input", "Input", (Element(0, "it", "any", span),))
    [element] = json.loads(json.dumps(sequence.to_dict()))["elements"]
    assert element == {"index": 0, "label": "it", "modality": "any", "span": data}


@pytest.mark.parametrize("span", [span for span, _ in SPANS])
def test_a_span_is_read_back_from_its_json(span: object):
    assert span_of(json.loads(json.dumps(span_data(span)))) == span


@pytest.mark.parametrize("data", [3, [1, 2, 3], {"circle": [1]}, "ab"])
def test_what_is_no_span_is_an_error(data: object):
    with pytest.raises(ValueError, match="span is"):
        span_of(data)


def test_elements_are_values():
    tubelet = Tubelet((0, 1), Seconds(0, 1), BOX)
    assert len({Element(0, "a", "video", tubelet), Element(0, "a", "video", dataclasses.replace(tubelet))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        BOX.left = 0  # type: ignore[misc]
