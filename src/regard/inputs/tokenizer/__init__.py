"""The tokenizers of Hugging Face checkpoints and GGUF files."""

from regard.inputs.tokenizer.core import Tokenizer
from regard.inputs.tokenizer.errors import TokenizerError
from regard.inputs.tokenizer.stream import TextStream
from regard.inputs.tokenizer.values import Encoding, Settings

__all__ = ["Encoding", "Settings", "TextStream", "Tokenizer", "TokenizerError"]
