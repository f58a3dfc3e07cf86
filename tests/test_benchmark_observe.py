"""The benchmark of observing models: every side measures what it says, and a side that dies says how."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "observe.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("observe_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "model_of", small)
    return module


def small(name: str, length: int, how: str) -> nn.Module:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    kinds = {"encoder": (BertModel, BertConfig), "decoder": (LlamaModel, LlamaConfig)}
    model, config = kinds[name]
    return model._from_config(config(**sizes, vocab_size=1000), attn_implementation=how).eval()


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_sides_do_what_they_say(bench: ModuleType, name: str):
    for side in ("plain", "observe", "observe, no keys", "output_attentions"):
        found = bench.measure(side, name, 80)
        assert found["seconds"] > 0 and found["bytes"] >= 0
    model = small(name, 80, "eager")
    with torch.no_grad():
        relations = bench.call_of("observe", model, torch.arange(12)[None])()
        output = bench.call_of("output_attentions", model, torch.arange(12)[None])()
    assert len(relations.sites) == len(output.attentions) == 2
    for site, weights in zip(relations.sites, output.attentions, strict=True):
        torch.testing.assert_close(relations.weights(site.path), weights[0], atol=1e-5, rtol=0)
    both = bench.pair("observe", name, 80, rounds=3)
    assert 0 < both["least"] <= both["ratio"] <= both["most"]
    assert both["plain"]["seconds"] > 0 and both["seconds"] > 0 and both["bytes"] >= 0


def test_a_side_that_fails_says_how(bench: ModuleType):
    options = argparse.Namespace(threads=1, memory=5.0, seconds=200.0, rivals=None, rounds=1)
    assert bench.run("alone", "output_attentions", "decoder", 20000, options) == {"failed": "over 5.0 GB"}
    assert "its matrices are 26 GB" in bench._too_large("output_attentions", "decoder", 10000, 5.0)
    assert bench._too_large("observe", "decoder", 10000, 5.0) is None
    assert bench._too_large("bertviz", "decoder", 1000, 5.0) is None
    options = argparse.Namespace(threads=1, memory=14.0, seconds=0.1, rivals=None, rounds=1)
    assert bench.run("alone", "plain", "decoder", 64, options) == {"failed": "over 0.1 s"}
