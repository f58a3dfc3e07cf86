"""The models that come with the package: they load, fit, say where they come from, and do what their card says."""

import json
from pathlib import Path

import pytest

import regard
from regard.models.registry import embedded_models

MODELS = embedded_models()
MEGABYTES_ALL = 40


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
