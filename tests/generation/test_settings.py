"""Settings refuse what they may not be, and are read from a checkpoint as its writers mean them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.generation import GenerationSettings, SettingsError, read_settings
from regard.models import ModelError

WRONG: list[tuple[str, Any]] = [
    ("max_new_tokens", 0),
    ("max_new_tokens", True),
    ("max_new_tokens", 2.0),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", "warm"),
    ("top_k", -1),
    ("top_p", 0),
    ("top_p", 1.01),
    ("min_p", 1.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", float("inf")),
    ("beams", 0),
    ("beams", 101),
    ("alpha", -1),
    ("seed", -1),
    ("seed", "x"),
    ("lookup", "no"),
    ("lookup", None),
    ("lookup", 2),
    ("stop", "text"),
    ("stop", ("",)),
    ("stop_ids", (-1,)),
    ("stop_ids", 2),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named(name: str, value: Any):
    with pytest.raises(SettingsError, match=name):
        GenerationSettings(**{name: value})


@pytest.mark.parametrize("other", [{"temperature": 1.0}, {"repetition_penalty": 1.1}, {"stop": ("x",)}])
def test_beams_refuse_what_needs_one(other: dict[str, Any]):
    with pytest.raises(SettingsError, match=f"beams is 2 and {next(iter(other))}"):
        GenerationSettings(beams=2, **other)


def test_what_samples():
    values = {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7], "pad_token_id": 0,
        "stop_strings": "###", "transformers_version": "4.40", "max_length": 4096, "max_new_tokens": 12, "min_p": None,
    }  # fmt: skip
    assert read_settings(values, "here", vocab_size=9000) == GenerationSettings(
        temperature=0.6, top_p=0.9, top_k=50, stop_ids=(2, 7), stop=("###",), max_new_tokens=12
    )


def test_what_does_not_sample_is_greedy_whatever_else_it_says():
    values = {"temperature": 0.6, "top_p": 0.9, "top_k": 3, "eos_token_id": 2, "repetition_penalty": 1.1}
    assert read_settings(values, "here", vocab_size=9000) == GenerationSettings(stop_ids=(2,), repetition_penalty=1.1)
    assert read_settings({}, "here", vocab_size=9000) == GenerationSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.6"),
        ("temperature", -1),
        ("do_sample", 1),
        ("top_k", 2.5),
        ("top_p", 3),
        ("eos_token_id", [2, "x"]),
        ("eos_token_id", -2),
        ("eos_token_id", True),
        ("num_beams", 0),
        ("stop_strings", [""]),
        ("max_new_tokens", "many"),
    ],
)
def test_a_checkpoint_with_a_wrong_value_is_refused(name: str, value: Any):
    with pytest.raises(ModelError, match=r"here/generation_config\.json"):
        read_settings({"do_sample": True} | {name: value}, "here/generation_config.json", vocab_size=9000)


NAMES = ["do_sample", "temperature", "top_k", "top_p", "eos_token_id", "num_beams", "stop_strings", "max_new_tokens"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(NAMES), json_values))
def test_any_file_is_read_or_refused(values: dict[str, Any]):
    try:
        found = read_settings(values, "file", vocab_size=9000)
    except ModelError as error:
        assert str(error).startswith("file: ")
    else:
        assert isinstance(found, GenerationSettings)
