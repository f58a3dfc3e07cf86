"""RoBERTa (arXiv 1907.11692), and XLM-RoBERTa (arXiv 1911.02116) and CamemBERT (arXiv 1911.03894), built like it.

`Bert` with other names for its tensors. Notable: a text's first piece stands at the position after the padding's id,
so that of 514 rows of the table 512 are positions of a text; every text is of the one type.
"""

from __future__ import annotations

from dataclasses import replace

from regard.models.bert import Bert, BertConfig, encoder_rules, read_sizes, scores_rules
from regard.models.family import Family, Head, Settings
from regard.models.rules import Ignore, Rename, Rule


def read_config(settings: Settings, head: Head) -> BertConfig:
    """The config of a checkpoint of any of these families."""
    config = read_sizes(settings, head)
    first = settings.whole("pad_token_id", 1, least=0) + 1
    if first >= config.max_positions:
        raise settings.error("max_position_embeddings", f"more than {first}, where positions begin")
    return replace(
        config,
        max_positions=config.max_positions - first,
        first_position=first,
        head_activation="tanh" if head == "classify" else "gelu",
    )


def rules(config: BertConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    prefix = "" if config.head == "hidden" else "roberta."
    table = [*encoder_rules(config, prefix), Ignore(prefix + "pooler.dense")]
    if config.head == "classify":
        table += [Rename("classify.dense", "classifier.dense"), Rename("classify.out", "classifier.out_proj")]
    if config.head == "fill":
        table += [
            Rename("fill.dense", "lm_head.dense"),
            Rename("fill.norm", "lm_head.layer_norm"),
            *scores_rules(config, "lm_head", "roberta.embeddings.word_embeddings.weight"),
        ]
    return table


_NAMES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}

FAMILIES = tuple(
    Family(
        name=name,
        modality="text",
        model_types=(name,),
        architectures={
            f"{title}Model": "hidden",
            f"{title}ForMaskedLM": "fill",
            f"{title}ForSequenceClassification": "classify",
        },
        config=read_config,
        model=Bert,
        rules=rules,
    )
    for name, title in _NAMES.items()
)
