"""Guesses that change no answer, and save steps where a text repeats itself."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard.attention import DynamicScaling
from regard.generation import CausalSteps, GenerationSettings, generate_ids
from regard.generation.lookup import Lookup
from regard.models.gpt2 import GPT2, GPT2Config
from regard.models.llama import Llama, LlamaConfig
from regard.relations.capture.modules import followed

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(text=texts, most=st.integers(0, 20))
def test_a_guess_is_what_followed_the_last_time(text: list[int], most: int):
    lookup = Lookup(text)
    lookup.judge([0], 1)  # as if one had been right as a whole
    guess = lookup.guess(most)
    found = None
    for size in (3, 2, 1):
        ends = [end for end in range(size, len(text)) if len(text) >= size and text[end - size : end] == text[-size:]]
        if ends and found is None:
            found = ends[-1]
    if found is None:
        assert guess == []
        return
    whole = text + guess
    assert len(guess) == min(most, 7)
    assert all(piece == whole[found + i] for i, piece in enumerate(guess))


def test_guesses_are_short_until_one_is_right_as_a_whole():
    lookup = Lookup([1, 2] * 9)
    assert len(lookup.guess(99)) == 3
    lookup.judge([1, 2, 1], 3)
    assert len(lookup.guess(99)) == 7 and len(lookup.guess(4)) == 4
    lookup.judge([1, 2, 3, 4], 3)
    assert len(lookup.guess(99)) == 3
    lookup.judge([], 0)  # nothing was guessed: nothing is learnt from it
    assert len(lookup.guess(99)) == 3


class Table(torch.nn.Module):
    """The next piece is what a table says of the last one: a text that goes round in circles."""

    def __init__(self, following: list[int]) -> None:
        super().__init__()
        self.inner = Llama(LlamaConfig(len(following), 8, 1, 2, 2, 4, 8, 256)).eval()
        self.config, self.cache = self.inner.config, self.inner.cache
        self.following = torch.tensor(following)
        self.calls = 0
        self._last = torch.empty(0)

    def hidden(self, ids: Tensor, **options: Any) -> Tensor:
        self.calls += 1
        self._last = ids
        return self.inner.hidden(ids, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        ids = self._last[:, -1] if hidden.shape[:-1] == self._last.shape[:1] else self._last[0]
        return torch.nn.functional.one_hot(self.following[ids], len(self.following)).float()


def test_a_text_that_goes_round_is_written_in_few_steps():
    model = Table([1, 2, 3, 4, 5, 6, 0])
    answer = generate_ids(model, [[0]], GenerationSettings(max_new_tokens=100))[0]  # pyright: ignore[reportArgumentType]
    assert list(answer.ids) == [(i + 1) % 7 for i in range(100)] and answer.finish == "length"
    assert model.calls < 25
    model.calls = 0
    slow = generate_ids(model, [[0]], GenerationSettings(max_new_tokens=100, lookup=False))[0]  # pyright: ignore[reportArgumentType]
    assert slow == answer and model.calls == 100


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@given(
    seed=st.integers(0, 10**6),
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    room=st.integers(1, 40),
    stop=st.sets(st.integers(0, 5), max_size=1),
)
def test_the_answer_is_the_same_with_and_without(kind: str, seed: int, prompt: list[int], room: int, stop: set[int]):
    torch.manual_seed(seed)
    if kind == "llama":
        model: Any = Llama(LlamaConfig(6, 16, 2, 2, 1, 8, 16, 48))
    else:
        model = GPT2(GPT2Config(6, 16, 2, 2, 16, 48))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model = model.double().eval()
    settings = GenerationSettings(max_new_tokens=room, stop_ids=tuple(stop))
    fast = generate_ids(model, [prompt], settings)[0]
    slow = generate_ids(model, [prompt], GenerationSettings(max_new_tokens=room, stop_ids=tuple(stop), lookup=False))[0]
    assert (fast.ids, fast.finish) == (slow.ids, slow.finish)
    assert fast.log_probabilities == pytest.approx(slow.log_probabilities, abs=1e-6)


@given(seed=st.integers(0, 10**6))
def test_angles_that_follow_the_length_of_a_call_are_not_shared_by_a_guess(seed: int):
    torch.manual_seed(seed)
    scaling = DynamicScaling(4.0, 24)
    model = Llama(LlamaConfig(8, 16, 2, 2, 1, 8, 16, 96, rotary_base=100.0, rotary_scaling=scaling)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    fast, slow = (
        generate_ids(model, [[1, 2, 3, 4] * 3], GenerationSettings(max_new_tokens=40, lookup=lookup))[0]
        for lookup in (True, False)
    )
    assert fast == slow


def test_who_looks_sees_what_was_written_and_no_wrong_guess():
    torch.manual_seed(3)
    model = Llama(LlamaConfig(6, 16, 2, 2, 1, 8, 16, 64)).eval()
    settings = GenerationSettings(max_new_tokens=20)
    with regard.observe(model) as relations:
        seen = generate_ids(model, [[1, 2, 3] * 4], settings)[0]
        assert followed(model) and followed(model.decoder) and not followed(Llama(model.config))
    assert not followed(model)
    assert seen.ids == generate_ids(model, [[1, 2, 3] * 4], settings)[0].ids
    for site in relations.sites:
        assert [step.received.shape[2] for step in relations.steps(site.path)] == [*range(12, 32)]
        assert relations.weights(site.path, step=0).shape == (
            2,
            12,
            12,
        )  # of the prompt all
        assert relations.weights(site.path, step=3).shape == (2, 1, 15)


def test_scores_after_the_end_of_an_answer_are_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    model = Table([1, 2, 3, 0, 1])
    usual = model.logits

    def logits(hidden: Tensor) -> Tensor:
        scores = usual(hidden)
        last = model._last[0, -len(scores) :]
        return scores.masked_fill((last == 3)[:, None], torch.nan)

    monkeypatch.setattr(model, "logits", logits)
    settings = GenerationSettings(max_new_tokens=30, stop_ids=(3,))
    answer = generate_ids(model, [[0, 1, 2, 3, 0, 1]], settings)[0]  # pyright: ignore[reportArgumentType]
    assert (answer.ids, answer.finish) == ((2, 3), "stop")
    assert model.calls == 2


def test_what_draws_filters_or_forgets_is_written_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any) -> Tensor:
        raise AssertionError("several pieces are read at once")

    model = Llama(LlamaConfig(6, 16, 2, 2, 1, 8, 16, 64)).eval()
    window = Llama(LlamaConfig(6, 16, 2, 2, 1, 8, 16, 64, windows=(4, 4))).eval()
    monkeypatch.setattr(CausalSteps, "scores_after_each", never)
    prompt = [1, 2, 3] * 5
    for changes in ({"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.2}, {"beams": 2}, {"lookup": False}):
        generate_ids(model, [prompt], GenerationSettings(max_new_tokens=6, **changes))
    generate_ids(model, [prompt, prompt], GenerationSettings(max_new_tokens=6))
    generate_ids(window, [prompt], GenerationSettings(max_new_tokens=6))
    with pytest.raises(AssertionError, match="several pieces"):
        generate_ids(model, [prompt], GenerationSettings(max_new_tokens=6))


def test_a_hook_sees_all_rows_of_a_prompt():
    torch.manual_seed(3)
    model = Llama(LlamaConfig(6, 16, 2, 2, 1, 8, 16, 64)).eval()
    rows: list[int] = []
    handle = model.decoder.blocks[-1].register_forward_hook(lambda _, given, found: rows.append(found.shape[1]))
    generate_ids(model, [[1, 2, 3] * 4], GenerationSettings(max_new_tokens=2, lookup=False))
    handle.remove()
    assert rows == [12, 1]
