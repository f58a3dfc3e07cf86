"""The decoding loop: the pieces transformers' generate writes, in any batch, and an end where one is due."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.generation import CausalSteps, GenerationSettings, SettingsError, generate_ids, read_settings, stream_ids
from regard.generation import decoding as module
from regard.generation.stops import StopText
from regard.models.checkpoint import read_checkpoint
from regard.models.llama import Llama, LlamaConfig
from tests.models.parity import saved
from tests.models.test_llama import CASES

LENGTHS = (33, 5, 21)


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, ours read from what theirs saved, and three prompts."""
    theirs, place = saved(tmp_path_factory.mktemp("llama"), *CASES[request.param], scale=4.0)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in LENGTHS]
    return theirs, read_checkpoint(place).model, prompts


def their_answers(model: Any, prompts: list[list[int]], eos: int | None, **options: Any) -> list[list[int]]:
    """What transformers' generate writes after prompts that are padded on the left, without what follows an end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = eos
    out = model.generate(ids, attention_mask=mask, pad_token_id=0, **options)[:, longest:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in out]


def test_greedy_is_transformers_over_64_steps(pair: Any):
    theirs, ours, prompts = pair
    expected = their_answers(theirs, prompts, None, do_sample=False, max_new_tokens=64)
    found = generate_ids(ours, prompts, GenerationSettings(max_new_tokens=64))
    assert [list(a.ids) for a in found] == expected
    assert {a.finish for a in found} == {"length"}
    for prompt, answer in zip(prompts, expected, strict=True):
        alone = their_answers(theirs, [prompt], None, do_sample=False, max_new_tokens=64)
        assert [list(generate_ids(ours, [prompt], GenerationSettings(max_new_tokens=64))[0].ids)] == alone == [answer]


def test_an_end_stops_as_in_transformers(pair: Any):
    theirs, ours, prompts = pair
    free = their_answers(theirs, prompts, None, do_sample=False, max_new_tokens=30)
    eos = free[1][9]
    expected = their_answers(theirs, prompts, eos, do_sample=False, max_new_tokens=30)
    found = generate_ids(ours, prompts, GenerationSettings(max_new_tokens=30, stop_ids=(eos,)))
    assert [list(a.ids) for a in found] == expected
    assert [a.finish for a in found] == ["stop" if eos in row else "length" for row in expected]
    assert found[1].finish == "stop"


def test_beams_are_transformers(pair: Any):
    """With prompts of one length, as padding counts in their scores of pieces that went before."""
    theirs, ours, prompts = pair
    same = [p[:5] for p in prompts]
    eos = their_answers(theirs, same, None, do_sample=False, max_new_tokens=12)[0][6]
    for changes in (
        {},
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
    ):
        options = {"num_beams": 3, "max_new_tokens": 12} | changes
        expected = their_answers(theirs, same, eos, do_sample=False, **options)
        chosen = read_settings(options | {"eos_token_id": eos}, "options", vocab_size=97)
        assert [list(a.ids) for a in generate_ids(ours, same, chosen)] == expected


@torch.no_grad()
def test_log_probabilities_are_the_models(pair: Any):
    _, ours, prompts = pair
    chosen = GenerationSettings(max_new_tokens=20, temperature=0.8, top_k=9, repetition_penalty=1.3, seed=3)
    for prompt, answer in zip(prompts, generate_ids(ours, prompts, chosen), strict=True):
        logits = ours(torch.tensor([[*prompt, *answer.ids]]))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        assert torch.tensor(answer.log_probabilities) == pytest.approx(expected, abs=2e-4)


def test_the_repetition_penalty_sees_prompt_and_answer(pair: Any):
    theirs, ours, prompts = pair
    for prompt in prompts:  # one by one: in a batch theirs counts the padding as a piece that was there
        expected = their_answers(theirs, [prompt], None, do_sample=False, max_new_tokens=30, repetition_penalty=1.4)
        found = generate_ids(ours, [prompt], GenerationSettings(max_new_tokens=30, repetition_penalty=1.4))
        assert [list(found[0].ids)] == expected


def small_model(**sizes: Any) -> Llama:
    torch.manual_seed(1)
    config = {
        "vocab_size": 60, "d_model": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "feed_forward": 48,
        "max_positions": 64,
    }  # fmt: skip
    model = Llama(LlamaConfig(**(config | sizes))).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    return model


MODELS = {"plain": small_model(), "windowed": small_model(windows=(5, 5)), "mixed": small_model(windows=(None, 4))}
prompt_lists = st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=20), min_size=1, max_size=4)


@settings(max_examples=25)
@given(st.sampled_from(sorted(MODELS)), prompt_lists, st.integers(0, 99), st.integers(1, 70), st.data())
def test_an_answer_depends_on_its_prompt_and_seed_alone(
    name: str, prompts: list[list[int]], seed: int, prefill: int, data: st.DataObject
):
    model = MODELS[name]
    stop_ids = tuple(data.draw(st.lists(st.integers(0, 59), max_size=6)))
    chosen = GenerationSettings(max_new_tokens=12, temperature=1.0, top_p=0.95, stop_ids=stop_ids, seed=seed)
    together = generate_ids(model, prompts, chosen, prefill=prefill)
    one = data.draw(st.integers(0, len(prompts) - 1))
    alone = generate_ids(model, [prompts[one]], chosen)[0]
    assert together[one].ids == alone.ids and together[one].finish == alone.finish
    assert together[one].log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-3)


@given(prompt_lists, st.lists(st.integers(0, 59), max_size=20))
def test_finished_entries_leave_the_batch(prompts: list[list[int]], stop_ids: list[int]):
    model = MODELS["plain"]
    rows: list[int] = []
    watched = CausalSteps.scores

    class Watched(CausalSteps):
        def scores(self, pieces: torch.Tensor, position: int) -> torch.Tensor:
            rows.append(len(pieces))
            return watched(self, pieces, position)

    chosen = GenerationSettings(max_new_tokens=8, stop_ids=tuple(stop_ids), lookup=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CausalSteps", Watched)
        answers = generate_ids(model, prompts, chosen)
    lengths = [len(a.ids) for a in answers]
    assert rows == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    for answer in answers:
        ends = [i for i, piece in enumerate(answer.ids) if piece in stop_ids]
        assert (ends == [len(answer.ids) - 1]) == (answer.finish == "stop")
        assert answer.finish == "stop" or len(answer.ids) == 8


def test_prompts_pass_in_pieces_of_bounded_length(monkeypatch: pytest.MonkeyPatch):
    model, passes = small_model(), []
    hidden = model.hidden

    def watched(ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return hidden(ids, **rest)

    monkeypatch.setattr(model, "hidden", watched)
    whole = generate_ids(MODELS["plain"], [[1] * 50, [2] * 7], GenerationSettings(max_new_tokens=3))
    found = generate_ids(model, [[1] * 50, [2] * 7], GenerationSettings(max_new_tokens=3), prefill=16)
    assert [a.ids for a in found] == [a.ids for a in whole]
    assert max(passes) == 16 and sum(passes) == 104


def test_the_context_ends_an_answer():
    found = generate_ids(MODELS["plain"], [[1] * 60, [2] * 63, [3] * 2], GenerationSettings(max_new_tokens=5))
    assert [(len(a.ids), a.finish) for a in found] == [(4, "context"), (1, "context"), (5, "length")]
    with pytest.raises(ValueError, match=r"prompt 2 of 2 has 64 pieces: this model takes at most 64"):
        generate_ids(MODELS["plain"], [[1], [1] * 64])


def test_wrong_prompts_are_named():
    model = MODELS["plain"]
    assert generate_ids(model, []) == []
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate_ids(model, [[]])
    with pytest.raises(ValueError, match="prompt 2 of 2 holds the id 60: it must be from 0 to 59"):
        generate_ids(model, [[1], [60]])
    with pytest.raises(SettingsError, match="without a decoder"):
        generate_ids(model, [[1]], GenerationSettings(stop=("x",)))
    with pytest.raises(SettingsError, match="beams is 2: a streamed answer has 1"):
        next(stream_ids(model, [[1]], GenerationSettings(beams=2)))


class Letters:
    """Ids → letters, each given out one id later than it is known, as incomplete characters are."""

    def __init__(self, prompt: Sequence[int] = ()) -> None:
        self._late = ""

    def feed(self, piece: int) -> str:
        out, self._late = self._late, chr(97 + piece % 4)
        return out

    def finish(self) -> str:
        out, self._late = self._late, ""
        return out


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3))
def test_stop_texts_cut_where_the_first_is_found(pieces: list[int], stops: list[str]):
    whole = "".join(chr(97 + piece) for piece in pieces)
    places = [whole.find(stop) for stop in stops if stop in whole]
    writer, parts = StopText(Letters(), stops), []
    for piece in pieces:
        text, stopped = writer.feed(piece)
        parts.append(text)
        if stopped:
            break
    else:
        parts.append(writer.finish())
    written = "".join(parts)
    assert whole.startswith(written)
    assert not any(stop in written for stop in stops)
    if not places:
        assert written == whole
    else:  # the first that is complete counts, wherever others begin
        ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
        first = min(ends)
        assert len(written) in {whole.find(stop) for stop in stops if stop in whole[:first]}


@given(st.integers(0, 50), st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=2))
def test_a_streamed_answer_is_the_whole_one(first: int, stops: list[str]):
    model, chosen = MODELS["plain"], GenerationSettings(max_new_tokens=20, temperature=2.0, seed=1, stop=tuple(stops))
    prompts = [[first, 2], [first]]
    answers = generate_ids(model, prompts, chosen, decoder=Letters)
    pieces = list(stream_ids(model, prompts, chosen, decoder=Letters))
    for i, answer in enumerate(answers):
        mine = [piece for piece in pieces if piece.entry == i]
        assert tuple(piece.id for piece in mine) == answer.ids
        assert "".join(piece.text for piece in mine) == answer.text
        assert [piece.finish for piece in mine] == [None] * (len(mine) - 1) + [answer.finish]
        assert not any(stop in answer.text for stop in stops)
        letters = "".join(chr(97 + i % 4) for i in answer.ids)
        assert answer.text == letters if answer.finish == "length" else letters.startswith(answer.text)


def test_an_interrupt_returns_what_there_is(monkeypatch: pytest.MonkeyPatch):
    whole = generate_ids(MODELS["plain"], [[1, 2], [3]], GenerationSettings(max_new_tokens=9), decoder=Letters)
    original = module.stream_ids

    def interrupted(*args: Any, **rest: Any) -> Iterator[Any]:
        for i, piece in enumerate(original(*args, **rest)):
            if i == 7:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(module, "stream_ids", interrupted)
    found = generate_ids(MODELS["plain"], [[1, 2], [3]], GenerationSettings(max_new_tokens=9), decoder=Letters)
    assert [a.finish for a in found] == ["interrupted"] * 2
    assert [a.ids for a in found] == [whole[0].ids[:4], whole[1].ids[:3]]
    assert all(w.text.startswith(a.text) for w, a in zip(whole, found, strict=True))


def test_beams_with_text_and_several_ends():
    chosen = GenerationSettings(max_new_tokens=6, beams=4, stop_ids=(7, 9, 11))
    answer = generate_ids(MODELS["plain"], [[5, 6]], chosen, decoder=Letters)[0]
    assert answer.text and len(answer.log_probabilities) == 1
    assert answer.finish == ("stop" if answer.ids[-1] in (7, 9, 11) else "length")
    with torch.no_grad():
        scores = MODELS["plain"](torch.tensor([[5, 6, *answer.ids]]))[0, 1:-1].log_softmax(-1)
    total = float(scores.gather(1, torch.tensor(answer.ids)[:, None]).sum())
    assert answer.log_probabilities[0] == pytest.approx(total, abs=1e-4)
