"""Faithfulness of relevance methods to a classifier of texts: copies of a text, scores, refusals."""

from pathlib import Path

import pytest
import torch

import regard
from regard.attention.mask import Dense
from regard.pipelines import ClassificationPipeline, RequestError, pipeline
from regard.pipelines.faithful import METHODS, TextFaithfulness
from regard.relations import attention_outputs, gradient_relevance, rollout
from regard.relations.faithfulness import METRICS
from tests.models.small_bert import TEXTS, small_bert, small_roberta

TEXT = TEXTS[0]  # eight pieces, [CLS] before and [SEP] after them


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> ClassificationPipeline:
    directory = tmp_path_factory.mktemp("faithful")
    found = pipeline(small_bert(directory, "ForSequenceClassification", num_labels=3), "classify")
    assert isinstance(found, ClassificationPipeline)
    return found


def probability(classify: ClassificationPipeline, ids: list[int], label: int, hidden_keys: list[int] | None = None):
    """Of a class, for pieces as they stand; no row attends to these keys."""
    model = classify.reader.model
    mask = None
    if hidden_keys:
        allowed = torch.ones(len(ids), len(ids), dtype=torch.bool)
        allowed[:, hidden_keys] = False
        mask = Dense(allowed)
    with torch.no_grad():
        return float(model(torch.tensor([ids]), mask=mask)[0].softmax(-1)[label])


@pytest.mark.parametrize("deletion", ["mask", "unk", "pad", "attention"])
def test_a_copy_is_the_text_without_its_pieces(classify: ClassificationPipeline, deletion: str):
    measure = TextFaithfulness(classify, deletion=deletion)
    (read,) = classify.reader.read([TEXT])
    removable = torch.arange(1, 9)
    kept = torch.ones(3, 8, dtype=torch.bool)
    kept[1, [0, 5]] = False
    kept[2] = False
    found = measure._answers(read, removable, kept, label=1)
    for answer, keeps in zip(found.tolist(), kept, strict=True):
        gone = (removable[~keeps]).tolist()
        if deletion == "attention":
            expected = probability(classify, list(read.ids), 1, gone)
        else:
            piece = getattr(classify.reader.tokenizer, deletion)
            expected = probability(classify, [piece if i in gone else n for i, n in enumerate(read.ids)], 1)
        assert answer == pytest.approx(expected, abs=1e-5)


def test_many_copies_are_the_same_as_few(classify: ClassificationPipeline, monkeypatch: pytest.MonkeyPatch):
    together = TextFaithfulness(classify, deletion="attention")(TEXT)
    monkeypatch.setattr("regard.pipelines.faithful.PACK", 1)
    alone = TextFaithfulness(classify, deletion="attention")(TEXT)
    for method, metrics in together.values.items():
        assert metrics == pytest.approx(alone.values[method], abs=1e-5)


def test_scores_are_those_of_the_methods(classify: ClassificationPipeline):
    (read,) = classify.reader.read([TEXT])
    label, score, seen = TextFaithfulness(classify)._seen(read)
    expected = classify(TEXT)
    assert classify.reader.model.config.labels[label] == expected.label
    assert score == pytest.approx(expected.score, abs=1e-5)
    model = classify.reader.model
    projections = {f"encoder.blocks.{n}.attention": b.attention.out for n, b in enumerate(model.encoder.blocks)}
    embedded = model.embedding(torch.tensor([read.ids])).detach().requires_grad_()
    handle = model.embedding.register_forward_hook(lambda *_: embedded)
    with regard.observe(model) as relations, attention_outputs(projections) as outputs:
        logits = model(torch.tensor([read.ids]))
    handle.remove()
    last = "encoder.blocks.1.attention"
    weights = relations.weights(last)[:, 0]  # (H, L)
    scores = {name: method.scores(seen) for name, method in METHODS.items()}
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(scores["attention"], weights.mean(0), **close)
    torch.testing.assert_close(scores["rollout"], rollout(relations, 0).scores, **close)
    relevance = gradient_relevance(relations, logits[0, label], outputs, 0).scores
    torch.testing.assert_close(scores["gradient"], relevance, **close)
    (gradient,) = torch.autograd.grad(logits[0, label], [embedded], retain_graph=True)
    torch.testing.assert_close(scores["gradient-input"], (gradient[0] * embedded.detach()[0]).sum(-1), **close)
    request = relations.observation(last).kept
    assert request is not None
    out = model.encoder.blocks[1].attention.out.weight.detach()
    carried = sum(
        weights[h, :, None] * (request.value[0, h] @ out[:, h * 8 : (h + 1) * 8].T) for h in range(4)
    )  # heads of size 8
    torch.testing.assert_close(scores["value-norm"], carried.norm(dim=-1), **close)
    assert not classify.reader.model.embedding._forward_hooks


def test_a_text_is_measured_by_all_and_again_the_same(classify: ClassificationPipeline):
    measured = [TextFaithfulness(classify, controls=3)(TEXT) for _ in range(2)]
    assert measured[0] == measured[1]
    first = measured[0]
    assert (first.text, first.pieces) == (TEXT, 8)
    assert [*first.values] == [*METHODS, "random"]
    assert all([*values] == [*METRICS] for values in first.values.values())
    some = TextFaithfulness(classify, methods=["rollout"], metrics=["sufficiency"])(TEXT)
    assert [*some.values] == ["rollout", "random"]
    assert some.values["rollout"]["sufficiency"] == pytest.approx(first.values["rollout"]["sufficiency"], abs=1e-5)
    assert first.to_dict()["label"] == first.label


def test_roberta_and_several_labels_a_text(tmp_path: Path):
    place = small_roberta(
        tmp_path, "ForSequenceClassification", num_labels=3, problem_type="multi_label_classification"
    )
    classify = pipeline(place, "classify")
    assert isinstance(classify, ClassificationPipeline)
    found = TextFaithfulness(classify)(TEXT)
    assert found.label == classify(TEXT).label and found.score == pytest.approx(classify(TEXT).score, abs=1e-5)
    assert found.pieces == len(classify(TEXT).ids) - 2


def test_what_it_refuses(classify: ClassificationPipeline, tmp_path: Path):
    for settings, message in (
        ({"methods": ["lime"]}, "method is 'lime': it must be one of attention, value-norm, rollout"),
        ({"methods": []}, "method is '': it must be one of attention"),
        ({"metrics": ["auc"]}, "metric is 'auc': it must be one of deletion, insertion"),
        ({"deletion": "blur"}, "deletion is 'blur': it must be one of mask, unk, pad, attention"),
        ({"controls": 0}, "controls is 0"),
    ):
        with pytest.raises(RequestError, match=message):
            TextFaithfulness(classify, **settings)
    place = small_bert(tmp_path, "ForSequenceClassification", num_labels=1, problem_type="regression")
    regression = pipeline(place, "classify")
    assert isinstance(regression, ClassificationPipeline)
    with pytest.raises(RequestError, match="answers with numbers: it must have classes"):
        TextFaithfulness(regression)
    with pytest.raises(RequestError, match="line 3 is empty"):
        TextFaithfulness(classify)(" ", name="line 3")


def test_a_tokenizer_without_the_piece(classify: ClassificationPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(classify.reader.tokenizer), "mask", None)
    with pytest.raises(RequestError, match="does not have: it may be unk, pad, attention"):
        TextFaithfulness(classify)
