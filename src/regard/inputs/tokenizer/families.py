"""The older files of a tokenizer, before there was one file for all: a vocabulary, merges, and rules in code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from regard.inputs.tokenizer.errors import TokenizerError, reporting
from regard.inputs.tokenizer.values import Role

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_END = "<|endoftext|>"

# The special pieces of a family where the checkpoint names none.
DEFAULTS: Mapping[str, Mapping[Role, str]] = {
    "bert": {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    "gpt2": {"unk": _END, "bos": _END, "eos": _END},
    "roberta": {
        "bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>",
    },
    "whisper": {"unk": _END, "bos": _END, "eos": _END},
    "marian": {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"},
    "t5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "llama": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    "qwen2": {"unk": _END, "eos": _END, "pad": _END},
}  # fmt: skip

# Families whose tokenizer is another one's.
_SAME = {
    "distilbert": "bert", "electra": "bert", "mobilebert": "bert", "bart": "roberta", "longformer": "roberta",
    "qwen3": "qwen2", "mt5": "t5", "codellama": "llama",
}  # fmt: skip


def family_of(config: Mapping[str, Any], model_type: str | None) -> str | None:
    """The family of a tokenizer: by its class in tokenizer_config.json, else by the model's type in config.json."""
    named = config.get("tokenizer_class")
    if isinstance(named, str):
        name = named.removesuffix("Fast").removesuffix("Tokenizer").lower()
        name = _SAME.get(name, name)
        if name in DEFAULTS:
            return name
    name = _SAME.get(model_type or "", model_type or "").replace("_", "")
    return name if name in DEFAULTS else None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        TokenizerError: if it is none.
        OSError: if it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path.name} is no JSON: {error}") from error


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        TokenizerError: if it is not UTF-8.
        OSError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name} is no text: byte {error.start} is not UTF-8") from error


def read_vocabulary(path: Path) -> dict[str, int]:
    """Pieces and their ids, from vocab.json.

    Raises:
        TokenizerError: if it is not a mapping from strings to numbers from 0 on, each once.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise TokenizerError(f"{path.name} must be a mapping from pieces to ids, and not empty")
    vocabulary = cast("dict[str, object]", content)
    holder: dict[int, str] = {}
    for piece, index in vocabulary.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise TokenizerError(f"{path.name}: the id of {piece!r} is {index!r}: it must be a number from 0 on")
        if index in holder:
            raise TokenizerError(f"{path.name}: {holder[index]!r} and {piece!r} have the same id {index}")
        holder[index] = piece
    return {piece: index for index, piece in holder.items()}


def build_wordpiece(path: Path, config: Mapping[str, Any], specials: Mapping[Role, str]) -> Backend:
    """BERT's: `vocab.txt`, a piece a line.

    Raises:
        TokenizerError: if a special piece is not in it.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = read_text(path / "vocab.txt").split("\n")
    pieces = lines[:-1] if lines[-1] == "" else lines
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    unknown = need("vocab.txt", vocabulary, specials, "unk")
    with reporting("vocab.txt"):
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(flag(config, "tokenize_chinese_chars", True)),
        strip_accents=flag(config, "strip_accents", None),
        lowercase=bool(flag(config, "do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    cls, sep = (need("vocab.txt", vocabulary, specials, role) for role in ("cls", "sep"))
    backend.post_processor = template(
        f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", {cls: vocabulary[cls], sep: vocabulary[sep]}
    )
    return backend


def build_byte_level(
    path: Path, config: Mapping[str, Any], family: str | None, specials: Mapping[Role, str]
) -> Backend:
    """GPT-2's, RoBERTa's, BART's and Whisper's: `vocab.json` and `merges.txt`.

    Raises:
        TokenizerError: if one is not what it should be, or a special piece is in neither.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = read_vocabulary(path / "vocab.json")
    merges = _merges(path / "merges.txt")
    with reporting("vocab.json and merges.txt"):
        model = models.BPE(
            vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
        )
        backend = Tokenizer(model)
    prefix = bool(flag(config, "add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    if family == "roberta":
        sep, cls = (need("vocab.json", vocabulary, specials, role) for role in ("sep", "cls"))
        backend.post_processor = processors.RobertaProcessing(
            (sep, vocabulary[sep]),
            (cls, vocabulary[cls]),
            trim_offsets=bool(flag(config, "trim_offsets", True)),
            add_prefix_space=prefix,
        )
    elif family != "whisper" and flag(config, "add_bos_token", False):
        bos = need("vocab.json", vocabulary, specials, "bos")
        backend.post_processor = template(f"{bos}:0 $A:0", f"{bos}:0 $A:0 {bos}:1 $B:1", {bos: vocabulary[bos]})
    return backend


def frame_whisper(backend: Backend, specials: Mapping[Role, str]) -> None:
    """Put around a text what Whisper's decoder reads around a transcript that has no language and no times."""
    names = ("<|startoftranscript|>", "<|notimestamps|>", specials.get("eos", _END))
    ids: dict[str, int] = {}
    for name in names:
        index = backend.token_to_id(name)
        if index is None:
            raise TokenizerError(f"the tokenizer has no piece {name!r}, which Whisper's must have")
        ids[name] = index
    start, untimed, end = names
    backend.post_processor = template(
        f"{start}:0 {untimed}:0 $A:0 {end}:0", f"{start}:0 {untimed}:0 $A:0 $B:1 {end}:1", ids
    )


def template(single: str, pair: str, ids: Mapping[str, int]) -> Any:
    """A post-processor that puts special pieces around one text, and around two."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def need(source: str, vocabulary: Mapping[str, int], specials: Mapping[Role, str], role: Role) -> str:
    """The special piece of a role that a family cannot be without."""
    piece = specials.get(role)
    if piece is None or piece not in vocabulary:
        raise TokenizerError(f"{source}: the {role} piece {piece!r} is not in it")
    return piece


def flag(config: Mapping[str, Any], name: str, default: bool | None) -> bool | None:
    """A yes or no of tokenizer_config.json.

    Raises:
        TokenizerError: if it is something else.
    """
    value = config.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"tokenizer_config.json: {name} is {value!r}: it must be true or false")
    return default if value is None else value


def _merges(path: Path) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.startswith("#version"):
            parts = line.rstrip("\r").split(" ")
            if len(parts) != 2 or not all(parts):
                raise TokenizerError(f"{path.name}: line {number} is {line[:40]!r}: it must be two pieces and a space")
            merges.append((parts[0], parts[1]))
    return merges
