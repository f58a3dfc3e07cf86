"""A translator of four words learns to translate them, from text to the saved model; and it can be resumed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from regard.models import load_model, save_model
from regard.models.translator import Translator
from regard.training import TrainingError
from regard.training.data import ParallelText
from regard.training.finish import Choices, HeldOut, choose, decode, round_to_float16
from regard.training.tasks.translate import TrainedTranslator, train_translator
from regard.training.tasks.translation_recipe import TranslationRecipe

WORDS = {"red": "rot", "blue": "blau", "dog": "Hund", "house": "Haus", "runs": "rennt", "old": "alt"}
RECIPE = TranslationRecipe(
    vocab_size=330,
    d_model=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feed_forward=64,
    dropout=0.05,
    bpe_dropout=0.05,
    batch_tokens=512,
    steps=300,
    warmup=40,
    peak_learning_rate=0.01,
    validate_every=40,
    checkpoint_every=20,
    keep=3,
)


def text(count: int) -> ParallelText:
    """Sentences of three to five of the words, and their translations word by word."""
    draw = torch.Generator().manual_seed(count)
    names = list(WORDS)
    chosen = [
        torch.randint(len(names), (int(n),), generator=draw) for n in torch.randint(3, 6, (count,), generator=draw)
    ]
    source = [[names[i] for i in row.tolist()] for row in chosen]
    return ParallelText([" ".join(s) for s in source], [" ".join(WORDS[w] for w in s) for s in source], 0)


def losses(out: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def train(out: Path, recipe: TranslationRecipe, **settings: bool | int) -> TrainedTranslator:
    return train_translator(text(300), text(20), recipe, out=out, progress=False, **settings)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="vocab_size is 150: the special pieces and the 256 bytes need at least 260"
    ):
        train(tmp_path / "run", dataclasses.replace(RECIPE, vocab_size=150))


def test_from_text_to_a_saved_model(tmp_path: Path) -> None:
    trained = train(tmp_path, RECIPE)
    assert trained.outcome.finished and 0 <= trained.padding < 0.5
    assert trained.outcome.progress.scores["loss"] < 0.3
    test = text(20)
    held_out = HeldOut(test.source, test.target, [line.lower() for line in test.target])
    choices = Choices(averages=(1, 3, 50), alphas=(0.5, 1.0), beams=3)
    finished = choose(trained.model, trained.tokenizer, trained.trainer.checkpoints, held_out, choices)
    assert finished.validation["lc-tok"].score > 90
    assert finished.averaged in (1, 3, 4)  # never more than there are: the last three, and the best besides
    round_to_float16(trained.model)
    place = save_model(
        tmp_path / "model", trained.model, trained.tokenizer, card="# A model", licence="Free", dtype=torch.float16
    )
    assert (place / "LICENSE").read_text() == "Free"
    saved = load_model(place)
    assert isinstance(saved.model, Translator)
    for name, parameter in trained.model.named_parameters():  # what was measured is what is shipped
        assert torch.equal(saved.model.get_parameter(name), parameter)
    before = decode(trained.model, trained.tokenizer, test.source, finished.decoding)
    assert decode(saved.model, saved.tokenizer, test.source, finished.decoding) == before


def test_resumes_with_r_drop_from_an_epoch_on(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=24, checkpoint_every=5, r_drop=2.0, r_drop_epoch=1, norm_first=False)
    train(tmp_path / "whole", recipe)
    train(tmp_path / "parts", dataclasses.replace(recipe, steps=13))
    train(tmp_path / "parts", recipe, resume=True, workers=2)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"dropout is 0\.5, but the run in .* has 0\.05"):
        train(tmp_path / "parts", dataclasses.replace(recipe, dropout=0.5), resume=True)
    with pytest.raises(ValueError, match="holds another run"):
        train(tmp_path / "parts", recipe)


LONG = "red " * 300


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path: Path, dropout: float) -> None:
    recipe = dataclasses.replace(RECIPE, steps=6, bpe_dropout=dropout, validate_every=3, batch_tokens=1024)
    few, held_out = text(30), text(5)
    source, target = [LONG, *few.source, "red"], ["rot", *few.target, "rot " * 300]
    with pytest.warns(UserWarning) as said:
        train_translator(
            ParallelText(source, target, 0),
            ParallelText([*held_out.source, LONG], [*held_out.target, "rot"], 0),
            recipe,
            out=tmp_path / "long",
            progress=False,
        )
    assert [str(warning.message) for warning in said] == [
        "2 of 32 training pairs are left out: a side has more than 255 pieces, the most that this model takes",
        "1 of 6 validation pairs are left out: a side has more than 255 pieces, the most that this model takes",
    ]
    steps = losses(tmp_path / "long")
    assert len(steps) == 6


def test_a_budget_below_the_longest_pair_leaves_it_out(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2, batch_tokens=128)
    few = text(30)
    pairs = ParallelText([*few.source, "red " * 100], [*few.target, "rot"], 0)
    with pytest.warns(UserWarning, match="1 of 31 .* more than 63 pieces, the most that a batch of this recipe holds"):
        train_translator(pairs, few, recipe, out=tmp_path, progress=False)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the 1 training pairs is short enough: a side has more than 255"):
        train_translator(ParallelText([LONG], ["rot"], 0), text(5), RECIPE, out=tmp_path, progress=False)


def test_other_data_are_not_resumed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2)
    train(tmp_path, recipe)
    more = dataclasses.replace(recipe, steps=3)
    changed = text(300)
    changed.target[7] += " rot"

    def resume(first: ParallelText, second: ParallelText) -> None:
        train_translator(first, second, more, out=tmp_path, resume=True, progress=False)

    with pytest.raises(ValueError, match=r"training data are 300 pairs, SHA-256 \w+, but the run in .* has 300 pairs"):
        resume(changed, text(20))
    with pytest.raises(ValueError, match=r"training data are 299 pairs"):
        resume(ParallelText(text(300).source[1:], text(300).target[1:], 0), text(20))
    with pytest.raises(ValueError, match=r"validation data are 21 pairs, .* has 20 pairs"):
        resume(text(300), text(21))
    resume(text(300), text(20))
    assert len(losses(tmp_path)) == 3


def test_runs_that_did_not_record_their_data_are_resumed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2)
    train(tmp_path, recipe)
    record = json.loads((tmp_path / "recipe.json").read_text())
    fields = {field.name for field in dataclasses.fields(TranslationRecipe)}
    (tmp_path / "recipe.json").write_text(json.dumps({k: v for k, v in record.items() if k in fields}))
    train(tmp_path, dataclasses.replace(recipe, steps=3), resume=True)
    assert json.loads((tmp_path / "recipe.json").read_text()).keys() == record.keys()


@pytest.mark.parametrize("name", ["recipe.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    recipe = dataclasses.replace(RECIPE, steps=1)
    train(tmp_path, recipe)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged") as error:
        train(tmp_path, recipe, resume=True)
    assert "\n" not in str(error.value)


def test_without_tokenised_references_raw_bleu_chooses() -> None:
    held_out = HeldOut(["a b c d"], ["a b c d"])
    assert held_out.choose_by(["a b c d"]) == pytest.approx(100)
    assert set(held_out.evaluate(["a b c d"])) == {"raw"}
