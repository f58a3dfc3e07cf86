"""Minimum risk training: its measure, its draws, its gradient, and that it raises BLEU."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from regard.inputs.text import TextTokenizer
from regard.models import load_model, save_model
from regard.models.family import ModelError
from regard.models.translator import Translator, TranslatorConfig
from regard.training import DivergedError, TrainingError
from regard.training.data import ParallelText, Ragged, SpecialTokens, TranslationBatch, TranslationBatches
from regard.training.minimum_risk import draw_translations, risk, sentence_bleu
from regard.training.run import Run
from regard.training.tasks.translate import train_translation, train_translator
from regard.training.tasks.translation_recipe import TranslationRecipe
from tests.training.test_translate import RECIPE, losses, text

WORDS = ["Hund", "Katze", "rennt", "ein", "eine", "alt", "und"]
sentences = st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(" ".join)


@given(hypothesis=sentences, reference=sentences)
def test_sentence_bleu_is_that_of_sacrebleu(hypothesis: str, reference: str) -> None:
    theirs = BLEU(smooth_method="add-k", smooth_value=1, tokenize="none", effective_order=False)
    expected = theirs.sentence_score(hypothesis, [reference]).score / 100
    assert math.isclose(sentence_bleu(hypothesis, reference), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_an_empty_translation_is_worth_nothing() -> None:
    assert sentence_bleu("", "Ein Hund.") == 0.0


def small() -> tuple[Translator, TextTokenizer, TranslationBatch]:
    pairs = text(60)
    tokenizer = TextTokenizer.train_bpe([*pairs.source, *pairs.target], 320)
    special = SpecialTokens(tokenizer.pad, tokenizer.bos, tokenizer.eos)
    sides = [Ragged.of([ids[:-1] for ids in tokenizer.encode_batch(side[:6])]) for side in (pairs.source, pairs.target)]
    batch = TranslationBatches(*sides, budget=512, special=special)[0]
    torch.manual_seed(0)
    config = TranslatorConfig(
        tokenizer.vocab_size,
        d_model=16,
        heads=2,
        encoder_layers=1,
        decoder_layers=1,
        feed_forward=32,
        dropout=0.0,
        pad=tokenizer.pad,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
    )
    return Translator(config), tokenizer, batch


def test_what_is_drawn_is_distributed_as_the_model_says() -> None:
    model, tokenizer, batch = small()
    with torch.no_grad():
        model.embedding.weight.mul_(2)  # an untrained model finds everything alike
    banned = (tokenizer.pad, tokenizer.bos, tokenizer.unk)
    drawn = draw_translations(model.eval(), batch, samples=4000, temperature=0.7, banned=banned)
    assert not torch.isin(drawn[:, 0], torch.tensor(banned)).any()
    start = torch.full((len(batch.source), 1), tokenizer.bos)
    scores = model(batch.source, batch.source_lengths, start)[:, 0]  # (S, V)
    scores[:, list(banned)] = -torch.inf
    expected = (scores / 0.7).softmax(-1)
    found = torch.stack([row.bincount(minlength=tokenizer.vocab_size) for row in drawn[:, 0].view(-1, 4000)]) / 4000
    assert (found - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5
    after = (drawn == tokenizer.eos).cumsum(1) - (drawn == tokenizer.eos).long()  # ends before each place
    assert ((drawn == tokenizer.pad) == (after > 0)).all()


def test_the_gradient_is_that_of_the_formula() -> None:
    model, tokenizer, batch = small()
    model.train()
    torch.manual_seed(5)
    value = risk(model, tokenizer, batch, samples=3, temperature=0.8)
    assert model.training
    value.backward()
    ours = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()

    torch.manual_seed(5)
    drawn = draw_translations(
        model.eval(), batch, samples=3, temperature=0.8, banned=(tokenizer.pad, tokenizer.bos, tokenizer.unk)
    ).view(len(batch.source), 3, -1)
    special = {tokenizer.pad, tokenizer.bos, tokenizer.eos}
    total, missed = torch.zeros(()), 0.0
    for s, translations in enumerate(drawn):
        reference = tokenizer.decode([i for i in batch.target[s].tolist() if i not in special])
        gains = [
            sentence_bleu(tokenizer.decode([i for i in ids.tolist() if i not in special]), reference)
            for ids in translations
        ]
        missed += sum(1 - gain for gain in gains)
        for k, ids in enumerate(translations):
            written = ids[ids != tokenizer.pad]
            decoded = torch.cat([torch.tensor([tokenizer.bos]), written[:-1]])
            length = batch.source_lengths[s]
            logits = model(batch.source[s : s + 1, :length], length[None], decoded[None])[0] / 0.8
            log_probability = logits.log_softmax(-1).gather(1, written[:, None]).sum()
            others = [gain for other, gain in enumerate(gains) if other != k]
            total = total - (gains[k] - sum(others) / 2) * log_probability
    (total / (3 * batch.tokens)).backward()
    assert math.isclose(value.item(), missed / (3 * len(drawn)), rel_tol=1e-5)
    theirs = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-7)


def test_a_trained_translator_gets_better_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    likelihood = dataclasses.replace(RECIPE, bpe_dropout=0.0, steps=60, keep=1)
    first = train_translator(text(300), text(20), likelihood, out=tmp_path / "first", progress=False)
    saved = save_model(tmp_path / "model", first.model, first.tokenizer, card="# A model")
    lower = TranslationRecipe(
        model=str(saved), samples=6, dropout=0.0, batch_tokens=512, steps=60, warmup=5, peak_learning_rate=0.002,
        checkpoint_every=20, validate_every=60,
    )  # fmt: skip
    trained = train_translator(text(300), text(20), lower, out=tmp_path / "lower", progress=False)
    assert trained.model.config.d_model == RECIPE.d_model and trained.tokenizer.to_json() == first.tokenizer.to_json()
    whole = losses(tmp_path / "lower")
    begun, ended = (sum(loss for _, loss in part) / 10 for part in (whole[:10], whole[-10:]))
    assert ended < 0.8 * begun
    for checkpoint in trained.trainer.checkpoints.paths[1:]:
        checkpoint.unlink()
    (tmp_path / "lower" / "checkpoints" / "best.json").unlink(missing_ok=True)
    train_translator(text(300), text(20), lower, out=tmp_path / "lower", resume=True, progress=False)
    assert losses(tmp_path / "lower") == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples is 1; it may be 2 or more, or 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it may be from 0.01 to 100"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TranslationRecipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "there", "d_model": 256}, "d_model is 256; it may be 128 with model 'there', which has its own"),
        ({"model": "there", "family": "lstm"}, "family is 'lstm'; it may be \"transformer\" with model 'there'"),
        ({"samples": 2, "r_drop": 5.0}, "r_drop is 5.0; it may be 0.0 with samples, whose risk knows no such thing"),
    ],
)
def test_what_would_be_ignored_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train_translator(text(30), text(5), TranslationRecipe(**settings), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_stop_the_training() -> None:
    model, tokenizer, batch = small()
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite"):
        risk(model, tokenizer, batch, samples=2, temperature=1.0)


def test_what_cannot_be_gone_on_from_leaves_no_record(tmp_path: Path) -> None:
    recipe = TranslationRecipe(model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="neither a directory nor the name of an embedded model"):
        train_translator(text(30), text(5), recipe, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_an_embedded_translator_goes_on(tmp_path: Path) -> None:
    recipe = TranslationRecipe(model="translate-en-de", batch_tokens=64, steps=1, warmup=1, peak_learning_rate=1e-5)
    trained = train_translator(text(4), text(2), recipe, out=tmp_path / "run", progress=False)
    assert trained.outcome.finished and trained.tokenizer.vocab_size == 6000


def test_one_that_went_on_keeps_licence_and_alignment_and_outlives_long_sentences(tmp_path: Path) -> None:
    first = train_translator(
        text(60), text(5), dataclasses.replace(RECIPE, steps=4, warmup=1), out=tmp_path / "a", progress=False
    )
    about = {"licence": "CC BY-SA", "alignment": {"layer": 0, "shifted": False}}
    base = save_model(tmp_path / "base", first.model, first.tokenizer, card="# A", licence="Share.", about=about)
    recipe = TranslationRecipe(model=str(base), batch_tokens=512, steps=2, warmup=1, checkpoint_every=1)
    held_out = text(5)
    long = ParallelText([*held_out.source, "dog " * 400], [*held_out.target, "Hund"], 0)
    with pytest.warns(UserWarning, match="left out"):
        trained = train_translation(text(60), recipe, Run(tmp_path / "b", progress=False), validation=long)
    saved = load_model(trained.directory)
    assert {name: saved.about[name] for name in about} == about
    assert (saved.directory / "LICENSE").read_text() == "Share."
    assert "It went on from base" in saved.card.read_text() and "5 validation pairs" in saved.card.read_text()
