"""Raw data → elements and tensors."""

from regard.inputs.alignment import word_indices, words
from regard.inputs.text import EncodedText, TextTokenizer

__all__ = ["EncodedText", "TextTokenizer", "word_indices", "words"]
