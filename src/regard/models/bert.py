"""BERT (arXiv 1810.04805): an encoder of text whose every position sees all others, and the heads that stand on it.

Notable: learned positions and text types beside the pieces, post-norm blocks, biases everywhere. RoBERTa and DistilBERT
are the same module under other names and settings (see `regard.models.roberta` and `regard.models.distilbert`), and so
are MiniLM's sentence encoders.

    B | batch entries    L | positions    d | d_model    V | vocab_size    C | classes

    hidden     (B, L, d)
    fill       dense, activation, norm, the embedding once more: (..., d) → (..., V)
    classify   dense, activation, a projection, on the first row of each text: (..., d) → (..., C)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.mask import Mask
from regard.models.family import ACTIVATIONS, Family, Head, Problem, Settings
from regard.models.rules import Ignore, Join, Rename, Rule, Spelling, Tie
from regard.transformer import Block, Encoder, FeedForward, LayerNorm, MultiHeadAttention
from regard.transformer.linear import ACTIVATIONS as FUNCTIONS
from regard.transformer.linear import Linear, linear


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a `Bert`."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    feed_forward: int  # hidden width
    max_positions: int  # longest text, special pieces among it
    first_position: int = 0  # row of the table of positions that a text's first piece takes
    types: int = 2  # text types, as for the first and the second of a pair; 0: none
    norm_eps: float = 1e-12
    activation: str = "gelu"
    head: Head = "hidden"
    head_activation: str = "gelu"  # "tanh" or one of the feed-forward network's
    tied: bool = True  # the embedding also makes the scores of pieces
    labels: tuple[str, ...] = ()  # of the classes
    problem: Problem = "single_label"
    dropout: float = 0.1  # of embeddings and of every sublayer's output
    attention_dropout: float = 0.1  # of attention weights
    head_dropout: float = 0.1  # before the projection to classes


class FillHead(nn.Module):
    """Scores of every piece of the vocabulary.

    Args:
        config: of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d = config.d_model
        self.dense = Linear(d, d)
        self.activation = _activation(config.head_activation)
        self.norm = LayerNorm(d, eps=config.norm_eps)
        self.weight = None if config.tied else nn.Parameter(0.02 * torch.randn(config.vocab_size, d))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, rows: Tensor, embedding: Tensor) -> Tensor:
        """Rows (..., d) and the embedding (V, d) → scores (..., V)."""
        x = self.norm(self.activation(self.dense(rows)))
        return linear(x, embedding if self.weight is None else self.weight, self.bias)


class ClassifyHead(nn.Module):
    """Scores of classes.

    Args:
        config: of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.d_model, config.d_model)
        self.activation = _activation(config.head_activation)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out = Linear(config.d_model, len(config.labels))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (..., d) → scores (..., C)."""
        return self.out(self.dropout(self.activation(self.dense(rows))))


class Bert(nn.Module):
    """Pieces in, hidden states or what a head makes of them out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.positions = nn.Embedding(config.first_position + config.max_positions, d)
        self.types = nn.Embedding(config.types, d) if config.types else None
        for table in (self.embedding, self.positions, self.types):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self.norm = LayerNorm(d, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder([_block(config) for _ in range(config.layers)])
        self.fill = FillHead(config) if config.head == "fill" else None
        self.classify = ClassifyHead(config) if config.head == "classify" else None

    def hidden(
        self, ids: Tensor, *, mask: Mask | None = None, positions: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """The last hidden states.

        Args:
            ids: (B, L).
            mask: which pieces a piece may see, for example `Padding(lengths, lengths)` where texts are filled up on
                the right, or `Documents(lengths)` where several stand one after another; all of them by default.
            positions: (B|1, L), each piece's place in its own text; 0, 1, 2 … by default.
            types: (B|1, L), 0 in the first text of a pair and 1 in the second; 0 by default.

        Returns:
            (B, L, d).

        Raises:
            ValueError: ids, positions or types beyond their tables, or types for a model that has none.
        """
        config = self.config
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, L)
        _check("ids", ids, config.vocab_size)
        _check("positions", positions, config.max_positions)
        x = self.positions(positions + config.first_position)  # (B|1, L, d)
        if self.types is None:
            if types is not None:
                raise ValueError("types is given, but this model has no text types: it must be None")
        elif types is None:
            x = x + self.types.weight[0]
        else:
            _check("types", types, config.types)
            x = x + self.types(types)
        x = self.dropout(self.norm(self.embedding(ids) + x))  # (B, L, d)
        return self.encoder(x, mask=mask)

    def head(self, rows: Tensor) -> Tensor:
        """Hidden states (..., d) → scores of pieces (..., V) or of classes (..., C); themselves without a head.

        The classes of a text are read from its first row.
        """
        if self.fill is not None:
            return self.fill(rows, self.embedding.weight)
        return rows if self.classify is None else self.classify(rows)

    def forward(
        self, ids: Tensor, *, mask: Mask | None = None, positions: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Ids (B, L), a text each → (B, L, d), (B, L, V) or (B, C); the arguments are those of `hidden`."""
        x = self.hidden(ids, mask=mask, positions=positions, types=types)
        return self.head(x if self.classify is None else x[:, 0])


def _block(config: BertConfig) -> Block:
    return Block(
        MultiHeadAttention(config.d_model, config.heads, dropout=config.attention_dropout),
        FeedForward(config.d_model, config.feed_forward, activation=config.activation),
        norm=partial(LayerNorm, config.d_model, eps=config.norm_eps),
        dropout=config.dropout,
        norm_first=False,
    )


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    return torch.tanh if name == "tanh" else FUNCTIONS[name]


def _check(name: str, ids: Tensor, limit: int) -> None:
    if ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} holds {low if low < 0 else high}: this model takes 0 to {limit - 1}")


def refuse_others(settings: Settings) -> None:
    """Refuse what some checkpoints of these families are and this encoder is not.

    Raises:
        ModelError: for a decoder, for attention to another sequence, for relative positions, for pruned heads.
    """
    settings.refuse("position_embedding_type", "absolute")
    settings.refuse("is_decoder", False)
    settings.refuse("add_cross_attention", False)
    settings.refuse("pruned_heads", {})


def read_sizes(settings: Settings, head: Head) -> BertConfig:
    """The config of a checkpoint whose config.json has BERT's names."""
    refuse_others(settings)
    activation = settings.choice("hidden_act", ACTIVATIONS, "gelu")
    dropout = settings.number("hidden_dropout_prob", 0.1)
    return BertConfig(
        vocab_size=settings.whole("vocab_size"),
        d_model=settings.whole("hidden_size"),
        layers=settings.whole("num_hidden_layers"),
        heads=settings.whole("num_attention_heads"),
        feed_forward=settings.whole("intermediate_size"),
        max_positions=settings.whole("max_position_embeddings"),
        types=settings.whole("type_vocab_size", 2),
        norm_eps=settings.number("layer_norm_eps", 1e-12),
        activation=activation,
        head=head,
        head_activation="tanh" if head == "classify" else activation,
        tied=settings.flag("tie_word_embeddings", True),
        labels=settings.labels() if head == "classify" else (),
        problem=settings.problem() if head == "classify" else "single_label",
        dropout=dropout,
        attention_dropout=settings.number("attention_probs_dropout_prob", 0.1),
        head_dropout=settings.number("classifier_dropout", dropout),
    )


def write_config(config: BertConfig) -> dict[str, Any]:
    """The config.json of a BERT with this config: what `read_sizes` reads."""
    names = {"fill": "BertForMaskedLM", "classify": "BertForSequenceClassification"}
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}[config.activation]
    written = {
        "architectures": [names.get(config.head, "BertModel")],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": activation,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.head_dropout,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
    }
    return written | written_labels(config.labels, config.problem) if config.labels else written


def written_labels(labels: tuple[str, ...], problem: Problem) -> dict[str, Any]:
    """What config.json says of classes: their names by number and the other way round, and what scores mean."""
    problems = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "problem_type": problems.get(problem, problem),
    }


def encoder_rules(config: BertConfig, prefix: str) -> list[Rule]:
    """Where BERT's checkpoints, and RoBERTa's, keep the embeddings and the blocks."""
    layer, block = prefix + "encoder.layer.{}.", "encoder.blocks.{}."
    projections = tuple(f"{layer}attention.self.{name}" for name in ("query", "key", "value"))
    return [
        Rename("embedding.weight", prefix + "embeddings.word_embeddings.weight"),
        Rename("positions.weight", prefix + "embeddings.position_embeddings.weight"),
        Rename("types.weight", prefix + "embeddings.token_type_embeddings.weight"),
        Rename("norm", prefix + "embeddings.LayerNorm"),
        Join(block + "attention.qkv", projections, (config.d_model,) * 3),
        Rename(block + "attention.out", layer + "attention.output.dense"),
        Rename(block + "attention_norm", layer + "attention.output.LayerNorm"),
        Rename(block + "feed_forward.up", layer + "intermediate.dense"),
        Rename(block + "feed_forward.down", layer + "output.dense"),
        Rename(block + "feed_forward_norm", layer + "output.LayerNorm"),
        Ignore(prefix + "embeddings.position_ids"),  # 0, 1, 2 …
        Spelling("LayerNorm.gamma", "LayerNorm.weight"),  # checkpoints that once were TensorFlow's
        Spelling("LayerNorm.beta", "LayerNorm.bias"),
    ]


def scores_rules(config: BertConfig, head: str, embedding: str) -> list[Rule]:
    """Where checkpoints keep the projection to the vocabulary: its matrix and two names for its bias."""
    if config.tied:
        return [
            Rename("fill.bias", f"{head}.bias"),
            Tie(f"{head}.decoder.weight", embedding),
            Tie(f"{head}.decoder.bias", f"{head}.bias"),
        ]
    return [
        Rename("fill.weight", f"{head}.decoder.weight"),
        Rename("fill.bias", f"{head}.decoder.bias"),
        Ignore(f"{head}.bias"),
    ]


def rules(config: BertConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints of BERT keep the parameters."""
    prefix = "" if config.head == "hidden" else "bert."
    table = encoder_rules(config, prefix)
    if config.head == "classify":
        return [*table, Rename("classify.dense", "bert.pooler.dense"), Rename("classify.out", "classifier")]
    table += [Ignore(prefix + "pooler.dense"), Ignore("cls.seq_relationship")]  # for guessing what text comes next
    if config.head == "fill":
        table += [
            Rename("fill.dense", "cls.predictions.transform.dense"),
            Rename("fill.norm", "cls.predictions.transform.LayerNorm"),
            *scores_rules(config, "cls.predictions", "bert.embeddings.word_embeddings.weight"),
        ]
    return table


FAMILIES = (
    Family(
        name="bert",
        modality="text",
        model_types=("bert",),
        architectures={
            "BertModel": "hidden",
            "BertForMaskedLM": "fill",
            "BertForPreTraining": "fill",
            "BertForSequenceClassification": "classify",
        },
        config=read_sizes,
        model=Bert,
        rules=rules,
        write=write_config,
    ),
)
