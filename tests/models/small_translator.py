"""A translator and a tokenizer small enough to be made in every test."""

from functools import cache

import torch

from regard.inputs import TextTokenizer
from regard.models import Translator, TranslatorConfig

TEXTS = [
    "A man opens the window.",
    "Two dogs play in the snow, and a child watches them.",
    "Ein Mann öffnet das Fenster.",
    "Zwei Hunde spielen im Schnee, und ein Kind sieht ihnen zu.",
]


@cache
def small_tokenizer() -> TextTokenizer:
    """Knows the words of TEXTS."""
    return TextTokenizer.train_bpe(TEXTS * 5, vocab_size=361)


def small_config(**changes) -> TranslatorConfig:
    """The sizes of `small_translator`."""
    sizes = {"d_model": 16, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "feed_forward": 24}
    return TranslatorConfig(**{"vocab_size": small_tokenizer().vocab_size, "max_positions": 64} | sizes | changes)


def small_translator(**changes) -> Translator:
    """In evaluation mode, with random weights that are the same every time."""
    torch.manual_seed(1)
    model = Translator(small_config(**changes)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(2)  # decided enough to write different sentences
    return model
