"""What relations answer of what was kept, and that they are the same once saved and loaded."""

import json
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

import regard
from regard import ALiBi, Causal, Padding, Watch, attend_observed
from regard.attention.observation import SEEN
from regard.elements import Box, Element, Seconds
from regard.relations import Relations, Sequence, Sink, Site

B, H, L, D = 2, 3, 7, 4
LENGTHS = (7, 4)
QUESTIONS = {"received": "received=True", "entropy": "entropy=True", "distance": "position=True", "top": "top=8"}


def relations_of(
    seed: int = 0, watch: Watch | None = None, heads: tuple[int, ...] = (), sink: bool = False, backend: str = "fused"
) -> Relations:
    """Two steps of a causal site with padding, named elements and heads, and one of cross-attention without."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [
        {"x": Sequence("x", "X", tuple(Element(i, "ab"[i % 2], span=(i, i + 1)) for i in range(n)))} for n in LENGTHS
    ]
    relations = Relations(sequences, {"name": "a model"})

    def tensor(*size: int) -> torch.Tensor:
        return 3 * torch.randn(*size, generator=generator)

    own = Site("layers.2.attention", "self", 2, H, "x", "x", heads)
    sinks = {"sink_logits": tensor(H)} if sink else {}
    for _ in range(2):
        q, k, v = tensor(B, H, L, D), tensor(B, H, L, D), tensor(B, H, L, D)
        lengths = torch.tensor(LENGTHS)
        mask = Causal() & Padding(lengths, lengths)
        call = attend_observed(q, k, v, mask=mask, watch=watch or Watch(), backend=backend, **sinks)
        relations.add(own, call[1])
    q, k = tensor(B, H, 5, D), tensor(B, H, 9, D)
    cross = Site("layers.2.cross", "cross", 2, H, "", "", heads)
    relations.add(cross, attend_observed(q, k, k, bias=ALiBi.standard(H), watch=watch or Watch(), backend=backend)[1])
    relations.missed["pooler"] = "its weights go elsewhere"
    return relations


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), item=st.integers(0, B - 1), step=st.integers(-2, 1), head=st.integers(0, H - 1))
def test_statistics_are_those_of_the_exact_weights(seed: int, item: int, step: int, head: int):
    relations = relations_of(seed)
    path, n, chosen = "layers.2.attention", LENGTHS[item], {"heads": [head], "item": item, "step": step}
    weights = relations.weights(path, **chosen).double()  # (1, n, n)
    assert weights.shape == (1, n, n)
    near = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(relations.received(path, **chosen), weights.sum(1), **near)
    torch.testing.assert_close(relations.entropy(path, **chosen), torch.special.entr(weights).sum(-1), **near)
    i = torch.arange(n)
    far = (weights * (i[:, None] - i).abs()).sum(-1)
    torch.testing.assert_close(relations.distance(path, **chosen), far, **near)
    keys, top = relations.top(path, **chosen)
    expected = weights.sort(-1, descending=True).values
    expected = torch.nn.functional.pad(expected, (0, 8 - n))
    torch.testing.assert_close(top, expected, **near)
    there = keys >= 0
    assert torch.equal(there.sum(-1)[0], i + 1)  # a causal row may see so many
    found = weights.gather(-1, keys.clamp(min=0).long())
    torch.testing.assert_close(found[there], top[there], **near)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), item=st.integers(0, B - 1), sink=st.booleans(), share=st.floats(0.01, 1))
def test_sinks_are_the_keys_with_a_share_of_all_weight(seed: int, item: int, sink: bool, share: float):
    relations = relations_of(seed, sink=sink)
    expected: dict[tuple[str, int, int | None], float] = {}
    for site in relations.sites:
        weights = relations.weights(site.path, item=item)
        for head in range(H):
            drawn = dict(enumerate(weights[head].mean(0).tolist()))  # every row of an item sees something
            learned = 1 - sum(drawn.values())
            expected |= {(site.path, head, key): value for key, value in drawn.items()}
            expected |= {(site.path, head, None): learned} if sink and site.kind == "self" else {}
    found = relations.sinks(share=share, item=item)
    for (path, head, key), value in expected.items():
        if abs(value - share) > 1e-4:
            assert any((s.site, s.head, s.key) == (path, head, key) for s in found) == (value > share)
    for s in found:
        assert s.share == pytest.approx(expected[s.site, s.head, s.key], abs=1e-5)
    order = [(s.site, s.head, -s.share) for s in found]
    assert order == sorted(order)


def test_the_first_element_as_a_sink():
    q, k = torch.ones(1, 1, 5, 4), torch.zeros(1, 1, 5, 4)
    k[..., 0, :] = 20
    relations = Relations([{}])
    relations.add(Site("a", "self", 0, 1, "", ""), attend_observed(q, k, k, mask=Causal(), watch=Watch())[1])
    assert relations.sinks() == [Sink("a", 0, 0, pytest.approx(1))]
    with pytest.raises(ValueError, match=r"share is 0; it must be above 0"):
        relations.sinks(share=0)


def test_heads_go_by_the_numbers_of_the_model():
    relations = relations_of(heads=(1, 4, 6))
    whole = relations.entropy("layers.2.attention")
    assert torch.equal(relations.entropy("layers.2.attention", heads=[6, 1]), whole[[2, 0]])
    with pytest.raises(KeyError, match="head 2 of"):
        relations.entropy("layers.2.attention", heads=[2])
    with pytest.raises(KeyError, match="head 3 of"):
        relations_of().received("layers.2.attention", heads=[3])
    assert {sink.head for sink in relations.sinks(share=0.01)} == {1, 4, 6}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_was_not_kept_says_how_to_keep_it(question: str):
    relations = relations_of(watch=Watch(top=0, received=False, entropy=False, position=False))
    with pytest.raises(ValueError, match=f"was not kept; observe with Watch.{QUESTIONS[question]}"):
        getattr(relations, question)("layers.2.attention")
    with pytest.raises(ValueError, match="received of .* was not kept"):
        relations.sinks()
    with pytest.raises(KeyError, match="no attention was observed at 'x'"):
        getattr(relations, question)("x")


def test_tables_hold_every_edge():
    relations = relations_of(heads=(1, 4, 6), watch=Watch(top=3))
    edges = [tuple(vars(edge).values()) for edge in relations.edges()]
    table, frame = relations.to_arrow(), relations.to_frame()
    names = ["item", "step", "site", "head", "query", "key", "weight"]
    assert table.column_names == names == [*frame.columns]
    assert [tuple(row[name] for name in names) for row in table.to_pylist()] == edges
    assert [*frame.itertuples(index=False, name=None)] == edges
    assert len(edges) == sum(min(i + 1, 3) for n in LENGTHS for i in range(n)) * H * 2 + B * H * 5 * 3
    empty = Relations([{}])
    assert empty.to_arrow().schema == table.schema and len(empty.to_frame()) == 0


@pytest.mark.parametrize("backend", ["fused", "auto"])
def test_saved_relations_answer_the_same(tmp_path: Path, backend: str):
    watch = Watch(segments=torch.tensor([0, 0, 1, 1, -1, 2, 2, 2, 2])[:7]) if backend == "fused" else Watch()
    relations = relations_of(heads=(1, 4, 6), sink=True, backend=backend)
    x = torch.randn(B, H, L, D)
    relations.add(relations.sites[0], attend_observed(x, x, x, watch=watch, backend=backend)[1])
    file = tmp_path / "relations.safetensors"
    relations.save(file)
    loaded = Relations.load(str(file))
    assert [*tmp_path.iterdir()] == [file]
    for name in ("sequences", "about", "sites", "missed"):
        assert getattr(loaded, name) == getattr(relations, name)
    for path, steps in relations.observations.items():
        assert len(loaded.observations[path]) == len(steps)
        for before, after in zip(steps, loaded.observations[path], strict=True):
            for name in (*SEEN, "rows", "kept", "answers"):
                old, new = getattr(before, name), getattr(after, name)
                if name in ("kept", "answers") or old is None:
                    assert new is None
                else:
                    assert old.dtype == new.dtype
                    torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    assert [*loaded.edges()] == [*relations.edges()]
    assert loaded.sinks(share=0.1, item=1) == relations.sinks(share=0.1, item=1)
    for question in (lambda: loaded.weights("layers.2.cross"), loaded.heads, loaded.to_dict):
        with pytest.raises(ValueError, match=r"needs queries and keys: this call has none .*loaded"):
            question()


def test_sequences_are_saved_whole(tmp_path: Path):
    sequence = Sequence(
        "picture",
        "A picture",
        (Element(0, "▁a", "text", (0, 1)), Element(1, "b", "image", Box(0.5, 1, 2, 3)), Element(2, "c")),
        text="a b",
        words=(Element(0, "w", "audio", Seconds(0.1, 0.25)),),
        word_of=(0, -1, 0),
        writes=("b", "c", "</s>"),
        modality="image",
    )
    Relations([{"picture": sequence}, {}], {"name": "m", "labels": ["x", 1.5, None]}).save(tmp_path / "r")
    loaded = Relations.load(tmp_path / "r")
    assert loaded.sequences == [{"picture": sequence}, {}]
    assert loaded.about == {"name": "m", "labels": ["x", 1.5, None]} and loaded.sites == []


def test_what_cannot_be_saved_leaves_what_was_there(tmp_path: Path):
    file = tmp_path / "r"
    Relations([{}], {"name": "old"}).save(file)
    with pytest.raises(ValueError, match="about holds what JSON cannot"):
        Relations([{}], {"model": object()}).save(file)
    assert Relations.load(file).about == {"name": "old"}
    with pytest.raises(OSError):
        Relations([{}]).save(tmp_path / "missing" / "r")
    assert [*tmp_path.iterdir()] == [file]


def test_damaged_files_are_errors(tmp_path: Path):
    file = tmp_path / "r"
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Relations.load(file)
    relations_of().save(file)
    content, tensors = file.read_bytes(), {name: t.clone() for name, t in load_file(file).items()}
    loaded = Relations.load(file)
    file.write_bytes(content[: len(content) // 2])
    assert [*loaded.edges()]  # in place, under what was loaded
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        Relations.load(file)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="holds no relations of format_version '1', but of None"):
        Relations.load(file)
    plain = {"about": {}, "sequences": [], "sites": [], "missed": {}}
    damage = [{"steps": [1]}, {**plain, "steps": [9]}, {**plain, "steps": [1]}, {**plain, "sites": [3], "steps": [1]}]
    for data in damage:
        save_file(tensors, file, metadata={"format_version": "1", "relations": json.dumps(data)})
        with pytest.raises(ValueError, match="is damaged"):
            Relations.load(file)


def test_an_observed_model_answers(tmp_path: Path):
    layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True)
    with regard.observe(layer, watch=Watch(keep=False)) as relations:
        layer(torch.randn(1, 5, 16))
    relations.save(tmp_path / "r")
    entropy = Relations.load(tmp_path / "r").entropy("self_attn")
    assert entropy.shape == (2, 5) and float(entropy.max()) <= math.log(5) + 1e-5
