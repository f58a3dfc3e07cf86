"""The models that come with the package: they load, fit, say where they come from, and do what their card says."""

import json
import re
from pathlib import Path

import pytest
import torch

import regard
from regard.models.registry import embedded_models

MODELS = embedded_models()
MEGABYTES_ALL = 40
COMMON = set(
    re.findall(
        r"\w+",
        "a all and are as be but by for from have he her him his i in is it me my no not o of on or our shall she so"
        " that the thee their them they thou thy this to was we well what when will with you your",
    )
)


def test_the_translator_is_there():
    assert "translate-en-de" in MODELS


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_a_card_a_licence_and_scores(name: str):
    directory = MODELS[name]
    about = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert about["description"] and about["licence"] and about["scores"]
    card = (directory / "README.md").read_text(encoding="utf-8")
    for word in ("Trained on", "Limits", "Licence of the weights"):
        assert word in card
    assert any(measure in card for measure in ("BLEU", "Accuracy", "Loss"))
    licence = (directory / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("Licence of the weights in this directory") and about["licence"] in card
    if about["licence"].startswith("CC "):
        assert about["licence"].partition(",")[0] in licence
    assert {p.suffix for p in directory.iterdir()} <= {".json", ".safetensors", ".md", ""}


def test_sizes():
    sizes = {name: (d / "model.safetensors").stat().st_size / 1e6 for name, d in MODELS.items()}
    assert sizes["translate-en-de"] <= 12
    assert sum(sizes.values()) <= MEGABYTES_ALL


def test_it_translates():
    answer = regard.pipeline("translate-en-de")("A man is sitting on a bench.")
    assert answer.text == "Ein Mann sitzt auf einer Bank."
    links = {
        answer.alignment.target.words[t].label: answer.alignment.source.words[s].label
        for t, s, _ in answer.alignment.links
    }
    assert (links["Mann"], links["Bank"]) == ("man", "bench")


def test_it_goes_on_like_a_play():
    answer = regard.pipeline("shakespeare", "generate")("ROMEO:\nI ", max_new_tokens=60, seed=0, temperature=0.5)
    assert len(answer.text) == 60
    words = answer.text.split()[1:-1]  # the first and the last may be parts
    assert sum(word.strip(".,:;!?'-").lower() in COMMON for word in words) >= len(words) / 4, answer.text
    site = answer.relations.sites[0]
    assert answer.relations.entropy(site.path).shape[0] == site.heads


@pytest.mark.shared("tinyshakespeare")
def test_loss_is_what_the_card_says(shared_data: Path):
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    found = regard.load("shakespeare")
    assert isinstance(found, regard.models.Checkpoint)
    ids = torch.tensor(found.tokenizer.encode(text[int(0.9 * len(text)) :]).ids)
    rows = ids[: (len(ids) - 1) // 256 * 256 + 1].unfold(0, 257, 256)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(found.model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
            for part in rows.split(29)
        ]
    assert len(rows) % 29 == 0  # so that their mean is that of all
    loss = torch.stack(losses).mean().item()
    about = json.loads((MODELS["shakespeare"] / "config.json").read_text(encoding="utf-8"))
    assert loss == pytest.approx(next(iter(about["scores"].values())), abs=2e-3)


@pytest.mark.shared("multi30k")
def test_bleu_is_what_the_card_says(shared_data: Path):
    from regard.training.metrics import tokenised_bleu

    data = shared_data / "multi30k"
    lines = (data / "raw/test_2016_flickr.en").read_text(encoding="utf-8").splitlines()
    reference = (data / "tok/test_2016_flickr.lc.norm.tok.de").read_text(encoding="utf-8").splitlines()
    answers = [t.text for t in regard.pipeline("translate-en-de")(lines)]
    bleu = tokenised_bleu(answers, reference, "de").score
    about = json.loads((MODELS["translate-en-de"] / "config.json").read_text(encoding="utf-8"))
    assert bleu == pytest.approx(about["scores"]["test_2016_flickr, lower-cased and tokenised BLEU"], abs=0.1)
