"""DistilBERT (arXiv 1910.01108): `Bert` with half the blocks and no text types, taught by a whole BERT."""

from __future__ import annotations

from regard.models.bert import Bert, BertConfig, refuse_others
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.rules import Ignore, Join, Rename, Rule, Spelling, Tie


def read_config(settings: Settings, head: Head) -> BertConfig:
    """The config of a checkpoint."""
    refuse_others(settings)
    activation = settings.choice("activation", ACTIVATIONS, "gelu")
    return BertConfig(
        vocab_size=settings.whole("vocab_size"),
        d_model=settings.whole("dim"),
        layers=settings.whole("n_layers"),
        heads=settings.whole("n_heads"),
        feed_forward=settings.whole("hidden_dim"),
        max_positions=settings.whole("max_position_embeddings"),
        types=0,
        activation=activation,
        head=head,
        head_activation="relu" if head == "classify" else activation,
        tied=settings.flag("tie_word_embeddings", True),
        labels=settings.labels() if head == "classify" else (),
        problem=settings.problem() if head == "classify" else "single_label",
        dropout=settings.number("dropout", 0.1),
        attention_dropout=settings.number("attention_dropout", 0.1),
        head_dropout=settings.number("seq_classif_dropout", 0.2),
    )


def rules(config: BertConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    prefix = "" if config.head == "hidden" else "distilbert."
    layer, block = prefix + "transformer.layer.{}.", "encoder.blocks.{}."
    embedding = prefix + "embeddings.word_embeddings.weight"
    projections = tuple(f"{layer}attention.{name}_lin" for name in "qkv")
    table: list[Rule] = [
        Rename("embedding.weight", embedding),
        Rename("positions.weight", prefix + "embeddings.position_embeddings.weight"),
        Rename("norm", prefix + "embeddings.LayerNorm"),
        Join(block + "attention.qkv", projections, (config.d_model,) * 3),
        Rename(block + "attention.out", layer + "attention.out_lin"),
        Rename(block + "attention_norm", layer + "sa_layer_norm"),
        Rename(block + "feed_forward.up", layer + "ffn.lin1"),
        Rename(block + "feed_forward.down", layer + "ffn.lin2"),
        Rename(block + "feed_forward_norm", layer + "output_layer_norm"),
        Ignore(prefix + "embeddings.position_ids"),  # 0, 1, 2 …
        Spelling("LayerNorm.gamma", "LayerNorm.weight"),  # checkpoints that once were TensorFlow's
        Spelling("LayerNorm.beta", "LayerNorm.bias"),
    ]
    if config.head == "classify":
        table += [Rename("classify.dense", "pre_classifier"), Rename("classify.out", "classifier")]
    if config.head == "fill":
        table += [
            Rename("fill.dense", "vocab_transform"),
            Rename("fill.norm", "vocab_layer_norm"),
            Rename("fill.bias", "vocab_projector.bias"),
            Tie("vocab_projector.weight", embedding)
            if config.tied
            else Rename("fill.weight", "vocab_projector.weight"),
        ]
    return table


FAMILIES = (
    Family(
        name="distilbert",
        modality="text",
        model_types=("distilbert",),
        architectures={
            "DistilBertModel": "hidden",
            "DistilBertForMaskedLM": "fill",
            "DistilBertForSequenceClassification": "classify",
        },
        config=read_config,
        model=Bert,
        rules=rules,
    ),
)
