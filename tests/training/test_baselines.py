"""Baselines: what a cell computes, what padding, packing and caches do not change, and the tasks that train them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import observe
from regard.generation.beam import beam_search
from regard.generation.steps import EncoderDecoderSteps
from regard.models import ModelError
from regard.training import TrainingError
from regard.training.baselines import (
    ConvolutionalClassifier,
    ConvolutionalClassifierConfig,
    RecurrentClassifier,
    RecurrentClassifierConfig,
    RecurrentConfig,
    RecurrentLanguageModel,
    RecurrentTranslator,
    RecurrentTranslatorConfig,
    load_baseline,
    new_baseline,
)
from regard.training.baselines.recurrent import GATES, Cell, cell_layer
from regard.training.data import ParallelText
from regard.training.run import Run
from regard.training.tasks.classify_text import ClassifyTextRecipe, train_text_classifier
from regard.training.tasks.language_model import WIDTHS, LanguageModelRecipe, train_language_model
from regard.training.tasks.translate import train_translation
from regard.training.tasks.translation_recipe import TranslationRecipe
from tests.training.lines import killed_at_random

CELLS: tuple[Cell, ...] = ("rnn", "lstm", "gru")
CONFIGS = [
    RecurrentConfig(vocab_size=11, cell="gru", d_model=6, layers=2, tied=False),
    RecurrentClassifierConfig(vocab_size=11, classes=3, d_model=6, cell="rnn"),
    ConvolutionalClassifierConfig(vocab_size=11, classes=3, d_model=6, filters=4),
    RecurrentTranslatorConfig(vocab_size=11, d_model=6),
]


@pytest.mark.parametrize("cell", CELLS)
def test_gates_begin_orthogonal_and_an_lstm_remembers(cell: Cell) -> None:
    layer = cell_layer(cell, 5, 7)
    for part in layer.weight_hh_l0.detach().chunk(GATES[cell]):
        torch.testing.assert_close(part @ part.T, torch.eye(7))
    offsets = layer.bias_ih_l0.detach().chunk(GATES[cell])
    assert [float(part.mean()) for part in offsets] == ([0, 1, 0, 0] if cell == "lstm" else [0.0] * GATES[cell])
    assert not layer.bias_hh_l0.any()


def test_an_lstm_is_its_definition() -> None:
    torch.manual_seed(1)
    model = RecurrentLanguageModel(RecurrentConfig(vocab_size=9, d_model=6, layers=1)).double()
    ids = torch.randint(9, (2, 5))
    cell: Any = model.stack.cells[0]
    x = model.embedding(ids)
    y, h, c = model.stack.norms[0](x), torch.zeros(2, 6).double(), torch.zeros(2, 6).double()
    rows: list[torch.Tensor] = []
    for t in range(5):
        z = y[:, t] @ cell.weight_ih_l0.T + h @ cell.weight_hh_l0.T + cell.bias_ih_l0 + cell.bias_hh_l0
        i, f, g, o = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        rows.append(h)
    expected = model.norm(x + torch.stack(rows, 1)) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_reads_on_from_its_states_and_sees_nothing_ahead(cell: Cell) -> None:
    torch.manual_seed(2)
    model = RecurrentLanguageModel(RecurrentConfig(vocab_size=9, cell=cell, d_model=6, layers=2)).double()
    ids = torch.randint(9, (2, 8))
    whole = model.hidden(ids)
    first, states = model.read(ids[:, :3])
    rest, _ = model.read(ids[:, 3:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    assert torch.equal(model.hidden(changed)[:, :5], whole[:, :5])
    assert not torch.equal(model.hidden(changed)[:, 5], whole[:, 5])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), kind=st.sampled_from(["rnn", "lstm", "gru", "cnn"]))
def test_a_text_is_classified_the_same_alone_and_among_others(lengths: list[int], kind: Any) -> None:
    torch.manual_seed(3)
    if kind == "cnn":
        config = ConvolutionalClassifierConfig(vocab_size=11, classes=3, d_model=6, widths=(2, 4), filters=4)
        model = ConvolutionalClassifier(config)
    else:
        model = RecurrentClassifier(RecurrentClassifierConfig(vocab_size=11, classes=3, d_model=6, cell=kind))
    model = model.double().eval()
    ids = torch.randint(11, (sum(lengths),))
    scores = model(ids, torch.tensor(lengths))
    alone = [model(part, torch.tensor([len(part)])) for part in ids.split(lengths)]
    torch.testing.assert_close(scores, torch.cat(alone))


def test_a_filter_sees_real_pieces_alone() -> None:
    model = ConvolutionalClassifier(ConvolutionalClassifierConfig(11, 2, d_model=3, widths=(3,), filters=2)).double()
    ids = torch.tensor([4, 5, 6, 7, 1, 2])
    x = model.embedding(ids[:4]).T  # (d, L)
    layer: Any = model.filters[0]
    places = [(layer.weight * x[:, i : i + 3]).sum((1, 2)) + layer.bias for i in (0, 1)]
    expected = torch.stack(places).relu().amax(0) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model.eval().scores(ids, torch.tensor([4, 2]))[0], expected)


def translator() -> RecurrentTranslator:
    torch.manual_seed(4)
    return RecurrentTranslator(RecurrentTranslatorConfig(vocab_size=13, d_model=8, max_positions=12)).double().eval()


SOURCE, LENGTHS = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]]), torch.tensor([4, 3])


def test_padding_of_a_source_changes_nothing() -> None:
    model = translator()
    target = torch.tensor([[1, 4, 3], [1, 3, 4]])
    both = model(SOURCE, LENGTHS, target)
    torch.testing.assert_close(both[1:], model(SOURCE[1:, :3], LENGTHS[1:], target[1:]))
    other = SOURCE.clone()
    other[1, 3] = 7
    assert torch.equal(model(other, LENGTHS, target), both)


def test_decoding_step_by_step_and_by_beams_is_the_same_with_caches() -> None:
    model = translator()
    memory = model.encode(SOURCE, LENGTHS)
    target = torch.tensor([[1, 4, 3, 5], [1, 3, 4, 5]])
    whole, caches = model.decode(target, memory, LENGTHS), model.cache()
    pieces = [model.decode(target[:, i : i + 1], memory, LENGTHS, start=i, caches=caches) for i in range(4)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert caches.length == 4
    with torch.no_grad():
        found = [
            beam_search(EncoderDecoderSteps(model, SOURCE, LENGTHS, cached=cached), [7, 7], eos=2, beams=3)
            for cached in (True, False)
        ]
    assert [h.ids for h in found[0]] == [h.ids for h in found[1]]
    assert [h.score for h in found[0]] == pytest.approx([h.score for h in found[1]])


def test_its_attention_is_observed() -> None:
    model = translator().float()
    with observe(model) as seen:
        model(SOURCE, LENGTHS, torch.tensor([[1, 4, 3], [1, 3, 4]]))
    (site,) = seen.sites
    assert site.kind == "cross" and site.path == "attention"
    weights = seen.observation(site.path).weights()
    assert not weights[1, ..., 3].any()  # padding
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_saved_and_loaded(config: Any, tmp_path: Path) -> None:
    made = new_baseline(config, files={"tokenizer.json": b"{}"}, about={"labels": ["a", "b"]})
    (tmp_path / "m").mkdir()
    place = made.save(tmp_path / "m")
    (place / "README.md").write_text("kept")
    made.save(place)
    found = load_baseline(place)
    assert found.model.config == config and found.about == {"labels": ["a", "b"]} and not found.model.training
    assert {*found.files} == {"tokenizer.json", "README.md"}
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    (place / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="is damaged"):
        load_baseline(place)
    with pytest.raises(ModelError, match="is not a saved baseline"):
        load_baseline(tmp_path)
    with pytest.raises(ModelError, match="it is not replaced"):
        made.save(tmp_path)


TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, he said\n" for i in range(150))
LANGUAGE = LanguageModelRecipe(
    family="gru", d_model=24, layers=1, tokens="characters", context=16, batch_size=8, steps=60, dropout=0.1,
    validate_every=30, checkpoint_every=7, watch_every=30, validation_tokens=200, peak_learning_rate=0.02,
)  # fmt: skip


def test_a_language_model_learns_and_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    whole = train_language_model([file], LANGUAGE, Run(tmp_path / "whole", progress=False))
    first = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert whole.scores["loss"] < 0.7 * first
    kept = load_baseline(whole.directory)
    assert kept.model.config == LANGUAGE.recurrent(kept.model.config.vocab_size)
    assert "recurrent-language-model" in (whole.directory / "README.md").read_text()

    def again() -> None:
        train_language_model([file], LANGUAGE, Run(tmp_path / "killed", resume=True, progress=False))

    assert killed_at_random(again, tmp_path / "killed" / "metrics.jsonl", kills=2, most=25, seed=5) > 1
    weights = "model/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.parametrize("family", ["rnn", "lstm", "cnn"])
def test_a_classifier_learns(family: Any, tmp_path: Path) -> None:
    words = {"good": ("fine", "lovely", "moving"), "bad": ("dull", "awful", "tired")}
    rows = [(f"a {w} film number {i}", label) for i in range(12) for label, found in words.items() for w in found]
    (tmp_path / "films.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    recipe = ClassifyTextRecipe(
        family=family, d_model=24, vocab_size=150, max_pieces=16, batch_pieces=200, steps=60, validate_every=20,
        watch_every=20, peak_learning_rate=0.01, validation_fraction=0.2,
    )  # fmt: skip
    trained = train_text_classifier(tmp_path / "films.tsv", recipe, Run(tmp_path / "run", progress=False))
    assert trained.scores["accuracy"] > 0.9
    assert load_baseline(trained.directory).about == {"labels": ["bad", "good"]}


def test_a_translator_learns(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pairs = {"red": "rot", "blue": "blau", "dog": "Hund", "house": "Haus", "runs": "rennt", "old": "alt"}
    chosen = torch.randint(len(pairs), (250, 4), generator=torch.Generator().manual_seed(6)).tolist()
    source = [" ".join([*pairs][i] for i in row) for row in chosen]
    target = [" ".join([*pairs.values()][i] for i in row) for row in chosen]
    recipe = TranslationRecipe(
        family="lstm", vocab_size=330, d_model=32, encoder_layers=1, decoder_layers=2, dropout=0.05,
        batch_tokens=512, steps=200, warmup=30, peak_learning_rate=0.01, validate_every=100, checkpoint_every=100,
    )  # fmt: skip
    trained = train_translation(ParallelText(source, target, 0), recipe, Run(tmp_path / "run", progress=False))
    assert trained.scores["bleu"] > 80
    found = load_baseline(trained.directory)
    assert isinstance(found.model, RecurrentTranslator) and found.about["decoding"]["beams"] == 5
    with pytest.raises(TrainingError, match="heads is 2; it may be 4 with family 'lstm'"):
        train_translation(ParallelText(source, target, 0), replace(recipe, heads=2), Run(tmp_path / "other"))


@pytest.mark.parametrize("cell", CELLS)
def test_baselines_have_the_parameters_of_the_size(cell: Cell) -> None:
    millions = {"tiny": 0.8, "small": 4.8, "medium": 10.6, "large": 85.0}
    for size, width in WIDTHS[cell].items():
        with torch.device("meta"):
            model = RecurrentLanguageModel(RecurrentConfig(vocab_size=1, cell=cell, d_model=width))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions[size], rel=0.03)


def test_what_only_transformers_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for wrong, words in (
        ({"heads": 2}, "heads is 2; it may be null with family 'gru'"),
        ({"optimiser": "muon"}, "optimiser is 'muon'; it may be \"adamw\" with family 'gru'"),
        ({"model": "gpt2"}, "model is 'gpt2'; it may be null"),
    ):
        with pytest.raises(TrainingError, match=words):
            train_language_model([tmp_path / "text.txt"], replace(LANGUAGE, **wrong), Run(tmp_path / "run"))


def test_what_cannot_be() -> None:
    for wrong, words in (
        (replace(CONFIGS[0], cell="tree"), "cell is 'tree'"),
        (replace(CONFIGS[0], layers=0), "layers is 0"),
        (replace(CONFIGS[1], d_model=7), "d_model is 7"),
        (replace(CONFIGS[2], widths=(0,)), "widths are"),
        (replace(CONFIGS[3], decoder_layers=0), "layers are 2 and 0"),
    ):
        with pytest.raises(TrainingError, match=words):
            new_baseline(wrong)
    model = translator()
    with pytest.raises(ValueError, match="source has 13 positions"):
        model.encode(torch.zeros(1, 13, dtype=torch.int64), torch.tensor([13]))
    with pytest.raises(ValueError, match="memory is None"):
        model.decode(torch.tensor([[1]]), None, torch.tensor([3]))
