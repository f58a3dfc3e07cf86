"""Saving and loading: what comes back, and what every kind of damage is told as."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from regard.inputs import TextTokenizer
from regard.models import ModelError, embedded_models, load, load_model, resolve, save_model
from tests.models.small_translator import TEXTS, small_tokenizer, small_translator


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "small"
    about = {"languages": ["en", "de"]}
    return save_model(directory, small_translator(), small_tokenizer(), card="# Small\n", about=about)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_config(directory: Path, change: Callable[[dict], object]) -> None:
    about = json.loads((directory / "config.json").read_text())
    change(about)
    (directory / "config.json").write_text(json.dumps(about))


def write_weights(directory: Path, data: bytes) -> None:
    """Weights whose hash is right, so that only what is in them can be wrong."""
    (directory / "model.safetensors").write_bytes(data)
    edit_config(directory, lambda about: about.update(weights_sha256=hashlib.sha256(data).hexdigest()))


def edit_weights(directory: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    write_weights(directory, save(tensors))


def test_round_trip(saved: Path):
    loaded = load_model(saved)
    original = small_translator()
    assert loaded.model.config == original.config
    assert not loaded.model.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.tokenizer.encode_batch(TEXTS) == small_tokenizer().encode_batch(TEXTS)
    assert loaded.about["languages"] == ["en", "de"]
    assert loaded.task == "translation"
    assert loaded.card.read_text() == "# Small\n"
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert [p.name for p in saved.parent.iterdir()] == ["small"]


def test_float16_halves_the_file_and_loads_as_float32(saved: Path, tmp_path: Path):
    half = save_model(tmp_path / "half", small_translator(), small_tokenizer(), card="", dtype=torch.float16)
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (saved, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert all(p.dtype == torch.float32 for p in load_model(half).model.parameters())


def test_loading_moves_no_random_numbers(saved: Path):
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_replaces_a_model_and_nothing_else(copied: Path, tmp_path: Path):
    other = small_translator(encoder_layers=1)
    save_model(copied, other, small_tokenizer(), card="new")
    assert load_model(copied).model.config.encoder_layers == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("months of work")
    with pytest.raises(ModelError, match=r"mine exists and is not a saved model: it is not replaced"):
        save_model(tmp_path / "mine", other, small_tokenizer(), card="")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "months of work"


def test_a_failed_save_leaves_the_old_model(copied: Path, monkeypatch: pytest.MonkeyPatch):
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if "tokenizer.json" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(copied, small_translator(encoder_layers=1), small_tokenizer(), card="new")
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert [p.name for p in copied.parent.iterdir()] == ["copy"]


@pytest.fixture
def annotated(copied: Path) -> Path:
    """A saved model with somebody's own files beside it."""
    (copied / "notes.txt").write_text("months of work")
    (copied / "more" / "deep").mkdir(parents=True)
    (copied / "more" / "deep" / "README.md").write_text("mine")
    (copied / "link").symlink_to("notes.txt")
    return copied


def keeps_what_is_foreign(directory: Path) -> bool:
    own = [directory / "notes.txt", directory / "link", directory / "more" / "deep" / "README.md"]
    return all(path.exists() for path in own) and own[0].read_text() == own[1].read_text() == "months of work"


def test_saving_leaves_foreign_files_alone(annotated: Path):
    (annotated / "LICENSE").write_text("of the model that is replaced")
    annotated.chmod(0o750)
    save_model(annotated, small_translator(encoder_layers=1), small_tokenizer(), card="new")
    assert load_model(annotated).model.config.encoder_layers == 1
    assert keeps_what_is_foreign(annotated) and (annotated / "link").is_symlink()
    assert not (annotated / "LICENSE").exists()
    assert annotated.stat().st_mode & 0o777 == 0o750
    assert [p.name for p in annotated.parent.iterdir()] == ["copy"]


def test_saving_through_a_link_leaves_it_a_link(annotated: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(annotated)
    save_model(tmp_path / "link", small_translator(encoder_layers=1), small_tokenizer(), card="new")
    assert (tmp_path / "link").is_symlink()
    assert load_model(annotated).model.config.encoder_layers == 1 and keeps_what_is_foreign(annotated)


def at_move(number: int, act: Callable[[], object], *, before: bool) -> Callable[..., object]:
    """`os.rename`, that acts as the move of this number begins or has ended."""
    move, count = os.rename, iter(range(1000))

    def rename(source: str | Path, target: str | Path) -> None:
        now = next(count) == number
        if now and before:
            act()
        move(source, target)
        if now:
            act()

    return rename


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", range(2))
def test_interrupted_between_its_moves_a_save_loses_nothing(
    annotated: Path, monkeypatch: pytest.MonkeyPatch, number: int, before: bool
):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", at_move(number, interrupt, before=before))
    with pytest.raises(KeyboardInterrupt):
        save_model(annotated, small_translator(encoder_layers=1), small_tokenizer(), card="new")
    assert load_model(annotated).model.config.encoder_layers in (1, 2)
    assert keeps_what_is_foreign(annotated)
    assert [p.name for p in annotated.parent.iterdir()] == ["copy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", range(2))
def test_killed_between_its_moves_a_save_loses_nothing(annotated: Path, number: int, before: bool):
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork
        os.rename = at_move(number, lambda: os._exit(9), before=before)
        save_model(annotated, small_translator(encoder_layers=1), small_tokenizer(), card="new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    directories = [annotated, *annotated.parent.glob(".copy-*/*")]
    saved = [load_model(place) for place in directories if (place / "config.json").exists()]
    assert saved[0].directory == annotated or {m.model.config.encoder_layers for m in saved} == {1, 2}
    assert any(keeps_what_is_foreign(place) for place in directories)


def test_save_refuses_what_could_not_be_loaded(tmp_path: Path):
    place = tmp_path / "model"
    other = TextTokenizer.train_bpe(TEXTS, vocab_size=300)
    with pytest.raises(ModelError, match="the tokenizer has vocab_size 300, but the config has 361"):
        save_model(place, small_translator(), other, card="")
    broken = small_translator()
    with torch.no_grad():
        broken.decoder.norm.weight[0] = 1e6
    with pytest.raises(ModelError, match=r"model in float16 holds numbers that are not finite: decoder.norm.weight"):
        save_model(place, broken, small_tokenizer(), card="", dtype=torch.float16)
    with pytest.raises(ModelError, match="model is a Linear: it must be of the family translator"):
        save_model(place, torch.nn.Linear(2, 2), small_tokenizer(), card="")
    with pytest.raises(ValueError, match=r"dtype is torch.int8"):
        save_model(place, small_translator(), small_tokenizer(), card="", dtype=torch.int8)
    with pytest.raises(ValueError, match="about names family"):
        save_model(place, small_translator(), small_tokenizer(), card="", about={"family": "mine"})
    assert not place.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copied: Path, name: str):
    (copied / name).unlink()
    with pytest.raises(ModelError, match=f"copy is not a saved model: it has no {name}"):
        load_model(copied)


def test_no_directory_at_all(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nothing is not a directory: a saved model is one, with config.json"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.pop("regard_format"), "has no regard_format"),
        (lambda about: about.update(regard_format=99), "has regard_format 99: this version reads 1"),
        (lambda about: about.update(family="oracle"), "is of family 'oracle': known are translator"),
        (lambda about: about.update(weights_sha256=None), "weights_sha256 is None: it must be a str"),
        (lambda about: about.update(config=[]), r"config is \[\]: it must be a dict"),
        (lambda about: about["config"].update(colour="red"), "config has colour, which a TranslatorConfig has not"),
        (lambda about: about["config"].update(heads="4"), "heads is '4': it must be of type int"),
        (lambda about: about["config"].update(heads=True), "heads is True: it must be of type int"),
        (lambda about: about["config"].update(dropout=float("nan")), "dropout is nan"),
        (lambda about: about["config"].update(heads=3), "d_model is 16: it must be a multiple of the 3 heads"),
        (lambda about: about["config"].pop("vocab_size"), "missing 1 required .*vocab_size"),
        (lambda about: about["config"].update(vocab_size=10**6), "has vocab_size 361, but the config has 1000000"),
        (lambda about: about["config"].update(eos=0), "has eos 2, but the config has 0"),
        (lambda about: about["config"].update(feed_forward=10**6), "does not fit the config: decoder.*has shape"),
        (lambda about: about.update(weights_sha256="0" * 64), "was changed after it was saved"),
    ],
)
def test_configs_that_do_not_fit(copied: Path, change: Callable[[dict], object], message: str):
    edit_config(copied, change)
    with pytest.raises(ModelError, match=message):
        load_model(copied)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'"text"'])
def test_config_that_is_no_json_object(copied: Path, data: bytes):
    (copied / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"config.json (is not JSON|has no regard_format)"):
        load_model(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("embedding.weight"), "embedding.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is unknown"),
        (
            lambda t: t.update({"encoder.norm.weight": torch.zeros(3)}),
            r"encoder.norm.weight has shape \(3,\) instead of \(16,\)",
        ),
        (
            lambda t: t.update({"encoder.norm.weight": torch.zeros(16, dtype=torch.int64)}),
            "encoder.norm.weight holds torch.int64",
        ),
        (lambda t: t["encoder.norm.weight"].fill_(float("nan")), "not finite: encoder.norm.weight"),
        (lambda t: t["encoder.norm.weight"].fill_(float("inf")), "not finite: encoder.norm.weight"),
        (lambda t: t.clear(), "is missing.* and .* more"),
    ],
)
def test_tensors_that_do_not_fit(copied: Path, change: Callable[[dict], object], message: str):
    edit_weights(copied, change)
    with pytest.raises(ModelError, match=message):
        load_model(copied)


def test_damaged_weights(copied: Path):
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[: len(whole) // 2], b"\xff" * 8 + whole[8:], whole + b"more", b"x" * 5000):
        write_weights(copied, damaged)
        with pytest.raises(ModelError, match=rf"model.safetensors is damaged .*\({len(damaged)} bytes\)"):
            load_model(copied)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_the_weights_is_noticed(copied: Path, saved: Path, data: st.DataObject):
    whole = bytearray((saved / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(whole) - 1)))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    (copied / "model.safetensors").write_bytes(whole)
    with pytest.raises(ModelError):
        load_model(copied)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not JSON", '{"version": "1.0"}'])
def test_tokenizer_that_is_none(copied: Path, content: str):
    (copied / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer"):
        load_model(copied)


def test_tokenizer_of_another_model(copied: Path):
    other = TextTokenizer.train_bpe(TEXTS, vocab_size=300)
    (copied / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(ModelError, match=r"tokenizer.json has vocab_size 300, but the config has 361"):
        load_model(copied)


def test_cut_and_garbled_tokenizers_are_model_errors_or_load(copied: Path):
    content = (copied / "tokenizer.json").read_text()
    generator = random.Random(0)
    for _ in range(40):
        at = generator.randrange(len(content))
        garbled = content[:at] + generator.choice(["", '"', "0", "}", "zz"]) + content[at + generator.randrange(4) :]
        (copied / "tokenizer.json").write_text(garbled)
        try:
            load_model(copied)
        except ModelError as error:
            assert "tokenizer" in str(error)


def test_models_by_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve(saved) == resolve(str(saved)) == saved
    assert load(saved).directory == saved
    names = embedded_models()
    assert all((directory / "config.json").is_file() for directory in names.values())
    with pytest.raises(ModelError, match=r"'no-such-model' is neither .* \(known: .*\)"):
        resolve("no-such-model")
    monkeypatch.setattr("regard.models.registry.embedded_models", lambda: {"small": saved})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert resolve("small") == saved  # a name comes before a directory
    assert resolve("./small") == Path("./small")
