"""The generation pipeline: prompts and chats, batches, streaming, limits, relations, a real model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from regard.generation import SettingsError
from regard.inputs.tokenizer import TokenizerError
from regard.models import ModelError
from regard.pipelines import Generation, GenerationPipeline, TextTooLong, pipeline
from tests.inputs.tokenizer.made import byte_level
from tests.models.parity import saved
from tests.models.small_llama import small_checkpoint
from tests.models.test_gguf import smollm

PROMPTS = ["Two dogs run", "A man sees über 3 dogs\n", "x"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="module")
def write(place: Path) -> GenerationPipeline:
    found = pipeline(place, max_new_tokens=12)
    assert isinstance(found, GenerationPipeline)
    return found


def test_a_text_is_continued_as_in_transformers(write: GenerationPipeline, place: Path):
    theirs = LlamaForCausalLM.from_pretrained(place).eval()
    for prompt in PROMPTS:
        answer = write(prompt)
        ids = torch.tensor([answer.prompt_ids])
        assert write.tokenizer.decode(answer.prompt_ids) == prompt == answer.prompt
        expected = theirs.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=1)[0, ids.shape[1] :].tolist()
        assert list(answer.ids) == expected
        assert answer.text == write.tokenizer.decode(answer.ids)
        assert answer.finish == ("stop" if expected[-1] == 1 else "length")
        assert len(answer.log_probabilities) == len(answer.ids) and max(answer.log_probabilities) <= 0


def test_several_texts_are_each_continued_alone(write: GenerationPipeline):
    done: list[int] = []
    together = write(PROMPTS, temperature=1.5, seed=5, progress=done.append)
    assert [a.ids for a in together] == [write(p, temperature=1.5, seed=5).ids for p in PROMPTS]
    assert [a.prompt for a in together] == PROMPTS and done[-1] == 3
    assert write([]) == []
    assert write(PROMPTS[0], temperature=1.5, seed=6).ids != together[0].ids


def test_streamed_is_whole(write: GenerationPipeline):
    for prompt in PROMPTS:
        whole = write(prompt, temperature=2.0, seed=1)
        pieces = list(write.stream(prompt, temperature=2.0, seed=1))
        assert "".join(p.text for p in pieces) == whole.text
        assert tuple(p.id for p in pieces) == whole.ids and pieces[-1].finish == whole.finish
    cut = whole.text[2:4]
    stopped = write(PROMPTS[-1], temperature=2.0, seed=1, stop=cut)
    assert stopped.text == whole.text[: whole.text.index(cut)] and stopped.finish == "stop"


def test_a_chat(write: GenerationPipeline):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "dogs?"}]
    answer = write.chat(messages)
    assert answer.prompt == "<|system|>Be brief.</s><|user|>dogs?</s><|assistant|>"
    assert answer.prompt_ids[0] == write.tokenizer.id_of("<|system|>")
    assert "".join(p.text for p in write.stream_chat(messages)) == answer.text
    with pytest.raises(TokenizerError, match="messages is empty"):
        write.chat([])


def test_relations_are_those_of_prompt_and_answer(write: GenerationPipeline):
    answer = write(PROMPTS[0])
    relations = answer.relations
    assert answer.relations is relations  # computed once
    read = len(answer.prompt_ids) + len(answer.ids) - 1
    assert [site.layer for site in relations.sites] == [0, 1]
    weights = relations.weights(relations.sites[1].path, rows=range(read))
    assert weights.shape == (4, read, read)
    assert weights.sum(-1).numpy() == pytest.approx(1, abs=1e-5)
    assert float(weights.triu(1).abs().max()) == 0
    sequence = relations.sequences[0]["text"]
    assert sequence.text == answer.whole == PROMPTS[0] + answer.text
    for element in sequence.elements:
        if element.span is not None:
            first, stop = element.span
            assert 0 <= first <= stop <= len(answer.whole)
    assert sequence.elements[0].span == (0, len(sequence.elements[0].label))
    assert answer.report()["input"] == PROMPTS[0]
    assert answer.to_dict()["finish"] == answer.finish


def test_limits_and_wrong_input(write: GenerationPipeline):
    with pytest.raises(TextTooLong, match=r"the prompt has \d+ pieces: this model takes at most 96 with the answer"):
        write("dogs run far " * 40)
    with pytest.raises(TextTooLong, match="text 2 of 2 has"):
        write(["dogs", "dogs run far " * 40])
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        write(["dogs", ""])
    with pytest.raises(TypeError, match="text is a int"):
        write(3)  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="there is no setting warmth: there are max_new_tokens"):
        write("dogs", warmth=2)
    with pytest.raises(SettingsError, match="top_p is 2"):
        write("dogs", top_p=2)
    near = write("q" * 90, max_new_tokens=50)
    assert near.finish in ("context", "stop") and len(near.prompt_ids) + len(near.ids) <= 96


def test_an_interrupt_returns_what_there_is(write: GenerationPipeline, monkeypatch: pytest.MonkeyPatch):
    whole, calls, hidden = write(PROMPTS[0]), [], write.model.hidden

    def watched(*args: Any, **rest: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return hidden(*args, **rest)

    monkeypatch.setattr(write.model, "hidden", watched)
    answer = write(PROMPTS[0])
    assert answer.finish == "interrupted" and 3 <= len(answer.ids) < len(whole.ids)
    assert answer.ids == whole.ids[: len(answer.ids)]


def test_the_checkpoint_recommends(tmp_path: Path):
    place = small_checkpoint(tmp_path, do_sample=True, temperature=0.7, top_p=0.9, eos_token_id=[1, 4])
    found = pipeline(place, seed=3)
    assert isinstance(found, GenerationPipeline)
    assert (found.settings.temperature, found.settings.top_p, found.settings.top_k) == (0.7, 0.9, 50)
    assert found.settings.stop_ids == (1, 4) and found.settings.seed == 3
    (place / "generation_config.json").write_text('{"temperature": "hot", "do_sample": true}')
    with pytest.raises(ModelError, match=r"generation_config\.json: temperature is 'hot'"):
        pipeline(place)
    (place / "generation_config.json").unlink()
    assert pipeline(place).settings.stop_ids == (1,)  # type: ignore[union-attr]  # as config.json says
    (place / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        pipeline(place)


@pytest.mark.real
def test_smollm_chats_sensibly():
    found = pipeline(smollm(), max_new_tokens=24)
    assert isinstance(found, GenerationPipeline)
    answer = found.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert isinstance(answer, Generation)
    assert answer.text == "The capital of France is Paris." and answer.finish == "stop"
    relations = answer.relations
    assert len(relations.sites) == 30
    labels = [e.label for e in answer.elements if e.span is not None]
    assert "Paris" in labels and "France" in labels


def test_gpt2_continues_what_gpt2_does(tmp_path: Path):
    config = GPT2Config(vocab_size=340, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0)
    theirs, place = saved(tmp_path, GPT2LMHeadModel, config, scale=6.0)
    for file in byte_level().iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    write = pipeline(place, max_new_tokens=20)
    answers = write(PROMPTS)
    for answer in answers:
        ids = torch.tensor([answer.prompt_ids])
        options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0, "suppress_tokens": [*range(330, 340)]}
        assert list(answer.ids) == theirs.generate(ids, **options)[0, ids.shape[1] :].tolist()
    command = [sys.executable, "-m", "regard", "generate", "-m", str(place), "--max-new-tokens", "20", PROMPTS[0]]
    result = subprocess.run(command, capture_output=True, timeout=200)
    assert (result.returncode, result.stdout.decode()) == (0, answers[0].text + "\n")
