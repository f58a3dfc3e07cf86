"""observe(to=…): what is written while a model runs is what would have been kept, and depth takes no memory."""

import gc
import json
import sys
from pathlib import Path

import hypothesis.strategies as st
import pandas
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import regard
from regard import Causal, Padding, Watch, attend_observed
from regard.elements import Element
from regard.relations import Relations, Sequence, Site, parquet
from tests.relations.foreign import IDS, KINDS

WATCHES = {
    "all": Watch(keep=False),
    "segments": Watch(top=3, segments=torch.tensor([0, 0, 1, 1, -1, 2, 2]), keep=False),
    "edges": Watch(top=12, received=False, entropy=False, position=False, keep=False),
    "entropy": Watch(top=0, received=False, position=False, keep=False),
}
QUESTIONS = ("top", "received", "entropy", "distance")


def named(n: int) -> dict[str, Sequence]:
    return {"x": Sequence("x", "X", tuple(Element(i, "ab"[i % 2], span=(i, i + 1)) for i in range(n)))}


def fill(relations: Relations, seed: int, watch: Watch, heads: tuple[int, ...]) -> None:
    """Two steps of a causal site with padding and a sink, and one of cross-attention."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*size: int) -> torch.Tensor:
        return 3 * torch.randn(*size, generator=generator)

    lengths = torch.tensor([7, 4])
    for step in range(2):
        q, k, v = tensor(2, 3, 7, 4), tensor(2, 3, 7, 4), tensor(2, 3, 7, 4)
        mask, sink = Causal() & Padding(lengths, lengths), tensor(3)
        seen = attend_observed(q, k, v, mask=mask, watch=watch, sink_logits=sink)[1]
        relations.add(Site("layers.2.attention", "self", 2, 3, "x", "x", heads), seen)
        if step == 0:
            seen = attend_observed(q[:, :, :5], k, v, watch=watch)[1]
            relations.add(Site("layers.2.cross", "cross", 2, 3, "", "x", heads), seen)


def assert_same(found: Relations, kept: Relations) -> None:
    """Everything that relations answer of elements is the same, to the bit."""
    for name in ("sequences", "about", "sites", "missed"):
        assert getattr(found, name) == getattr(kept, name)
    assert found.to_arrow() == kept.to_arrow()
    for site in kept.sites:
        assert len(found.steps(site.path)) == len(kept.steps(site.path)) > 0
        for step, seen in enumerate(kept.steps(site.path)):
            for item in range(len(seen.logsumexp)):
                rows = kept.lengths(site, item, step)[0]
                assert found.lengths(site, item, step) == kept.lengths(site, item, step)
                for name in ("logsumexp", "max_weight", "rest", "sink_weight", "mean_position", "segment_mass"):
                    old, new = getattr(seen, name), getattr(found.steps(site.path)[step], name)
                    assert (old is None) == (new is None)
                    if old is not None:
                        torch.testing.assert_close(
                            new[item, :, :rows], old[item, :, :rows], rtol=0, atol=0, equal_nan=True
                        )
                for question in QUESTIONS:
                    answers = []
                    for relations in (kept, found):
                        try:
                            answers.append(getattr(relations, question)(site.path, item=item, step=step))
                        except ValueError as error:
                            answers.append(str(error))
                    if isinstance(answers[0], str):
                        assert answers[0] == answers[1]
                    else:
                        torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0, equal_nan=True)
    if all(seen.received is not None for steps in kept.observations.values() for seen in steps):
        assert found.sinks(share=0.2) == kept.sinks(share=0.2)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    watch=st.sampled_from([*WATCHES]),
    heads=st.sampled_from([(), (1, 4, 6)]),
    together=st.sampled_from([1, 10, 1 << 17]),
)
def test_what_is_read_back_is_what_would_have_been_kept(
    seed: int, watch: str, heads: tuple[int, ...], together: int, tmp_path_factory: pytest.TempPathFactory
):
    file = tmp_path_factory.mktemp("p") / "seen.parquet"
    kept = Relations([named(7), named(4)], {"name": "a model"})
    fill(kept, seed, WATCHES[watch], heads)
    written = Relations(kept.sequences, kept.about)
    with pytest.MonkeyPatch.context() as patch, written.written(file):
        patch.setattr(parquet, "_TOGETHER", together)
        fill(written, seed, WATCHES[watch], heads)
    assert_same(Relations.load(file), kept)
    for group in range(pyarrow.parquet.ParquetFile(file).num_row_groups):
        kinds = pyarrow.parquet.ParquetFile(file).read_row_group(group)["kind"]
        assert len(kinds.unique()) == 1


def test_others_read_the_file(tmp_path: Path):
    file = tmp_path / "seen.parquet"
    kept = Relations([named(7), named(4)])
    written = Relations(kept.sequences)
    fill(kept, 0, Watch(), ())
    with written.written(file):
        fill(written, 0, Watch(keep=False), ())
    columns = ["item", "step", "site", "head", "query", "key", "weight"]
    edges = pandas.read_parquet(file, columns=columns, filters=[("kind", "=", "edge")])
    expected = kept.to_frame()
    assert [*edges.columns] == columns
    order = ["site", "step", "item", "head", "query"]
    edges, expected = (f.sort_values(order, kind="stable", ignore_index=True) for f in (edges, expected))
    pandas.testing.assert_frame_equal(edges, expected, check_dtype=False)
    rows = pandas.read_parquet(file, filters=[("kind", "=", "row"), ("item", "=", 1), ("site", "=", "layers.2.cross")])
    assert rows["entropy"].to_list() == kept.entropy("layers.2.cross", item=1).flatten().tolist()
    assert rows[["key", "weight", "received"]].isna().all(axis=None)


@pytest.mark.parametrize("name", ["bert", "t5", "gpt_oss"])
@torch.no_grad()
def test_models_are_written_as_they_run(tmp_path: Path, name: str):
    kind = KINDS[name]
    model, given = kind.make(kind.implementations[0]), {"layers": [1], "heads": [0, 2]}
    with regard.observe(model, watch=Watch(keep=False), **given) as kept:
        output = model(**kind.inputs)[0]
    with regard.observe(model, to=tmp_path / "seen.parquet", **given) as written:
        assert torch.equal(model(**kind.inputs)[0], output)
    assert_same(Relations.load(tmp_path / "seen.parquet"), kept)
    assert written.sites == kept.sites and not any(written.observations.values())
    for question in (written.to_arrow, written.sinks, lambda: written.save(tmp_path / "r"), written.heads):
        with pytest.raises(ValueError, match=r"was written to .*seen.parquet: Relations.load reads it"):
            question()


def test_every_token_is_a_step(tmp_path: Path):
    model = KINDS["llama"].make("sdpa")
    runs = []
    for to in (None, tmp_path / "seen.parquet"):
        with regard.observe(model, to=to) as relations:
            model.generate(IDS[:1], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        runs.append(relations)
    assert_same(Relations.load(tmp_path / "seen.parquet"), runs[0])


def test_an_exception_leaves_what_was_there(tmp_path: Path):
    layer, file = nn.TransformerEncoderLayer(16, 2, batch_first=True), tmp_path / "seen.parquet"
    for before in (None, b"old"):
        if before is not None:
            file.write_bytes(before)
        with pytest.raises(KeyboardInterrupt), regard.observe(layer, to=file):
            layer(torch.randn(1, 5, 16))
            assert [p.suffix for p in tmp_path.iterdir() if p != file] == [".part"]
            raise KeyboardInterrupt
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])
    with regard.observe(layer, to=file):
        layer(torch.randn(1, 5, 16))
        assert file.read_bytes() == b"old"
    assert Relations.load(file).entropy("self_attn").shape == (2, 5)
    assert [*tmp_path.iterdir()] == [file]


def test_a_disk_that_is_full_is_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "_TOGETHER", 1)
    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", full)
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    with pytest.raises(OSError, match="No space left"), regard.observe(layer, to=tmp_path / "seen.parquet"):
        layer(torch.randn(1, 5, 16))
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_written_is_said_before_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    (tmp_path / "d.parquet").mkdir()
    cases = [
        ("seen.csv", ValueError, r"to is .*seen.csv'; it must be the name of a file that ends in .parquet"),
        ("d.parquet", OSError, "to is .*d.parquet', which is a directory"),
        ("missing/seen.parquet", OSError, "missing/seen.parquet cannot be written: No such file or directory"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message) as caught, regard.observe(layer, to=tmp_path / name):
            pytest.fail("it began")
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(ValueError, match="about holds what JSON cannot"),
        regard.observe(layer, to=tmp_path / "a.parquet", about={"model": layer}),
    ):
        pytest.fail("it began")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install 'regard\[frames\]'"),
        regard.observe(layer, to=tmp_path / "a.parquet"),
    ):
        pytest.fail("it began")
    assert [p.name for p in tmp_path.iterdir()] == ["d.parquet"]


def test_other_and_damaged_files_are_errors(tmp_path: Path):
    file = tmp_path / "seen.parquet"
    pandas.DataFrame({"x": [1]}).to_parquet(file)
    with pytest.raises(ValueError, match="holds no relations of format_version 1, but of None"):
        Relations.load(file)
    written = Relations([{}])
    with written.written(file):
        fill(written, 0, Watch(keep=False), ())
    content, table = file.read_bytes(), pyarrow.parquet.read_table(file)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        Relations.load(file)
    for data in ({}, {"sites": 3}, {"sites": [], "calls": {}}):
        header = json.dumps({"format_version": 1, **data})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"regard": header}), file)
        with pytest.raises(ValueError, match="is damaged"):
            Relations.load(file)


def peak(layers: int, to: Path | None) -> int:
    """The most bytes that tensors and Arrow hold at the end of any layer, beyond those of the model."""
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=16, batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    gc.collect()
    before = [t for t in gc.get_objects() if type(t) is torch.Tensor]  # kept, so that none of their ids is given again
    known, held = {id(t) for t in before}, [0]

    def measure(*_: object) -> None:
        tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in known]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        held.append(sum(storages.values()) + pyarrow.total_allocated_bytes())

    for block in model.layers:
        block.register_forward_hook(measure)
    with torch.no_grad(), regard.observe(model, to=to, watch=Watch(keep=False)):
        model(torch.randn(1, 512, 16))
    return max(held)


def test_memory_does_not_grow_with_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_TOGETHER", 1000)
    kept = peak(12, None) - peak(2, None)
    assert kept > 10 * 512 * 4 * 8 * 8, "the measure does not see ten layers of edges"
    file = tmp_path / "seen.parquet"
    assert peak(12, file) - peak(2, file) < kept / 20
    assert len(Relations.load(file).sites) == 2
