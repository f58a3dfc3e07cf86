"""The metadata of a GGUF file → the tokenizer of the model that is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from regard.inputs.tokenizer.errors import TokenizerError, reporting
from regard.inputs.tokenizer.families import template
from regard.inputs.tokenizer.values import Role, Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPACE = "▁"
_UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 2, 3, 4, 5, 6

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True)
class Cut:
    """How a text is cut before pieces are sought in it.

    Args:
        pattern: what is kept together; None for GPT-2's words.
        digits: cut every digit off first.
        composed: bring the text to Unicode's composed form (NFC) first.
        whole_first: take a whole word that is a piece, whatever its merges are.
        bos: whether a text begins with the bos piece where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole_first: bool = False
    bos: bool = False


_LLAMA3 = Cut(rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_BLANKS}", whole_first=True, bos=True)
_QWEN2 = Cut(rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_MARKS}|{_BLANKS}", composed=True)
_TEKKEN = Cut(rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}|{_BLANKS}", whole_first=True, bos=True)
_GPT4O = Cut(rf"{_CASED[0]}{_ENGLISH}?|{_CASED[1]}{_ENGLISH}?|\p{{N}}{{1,3}}|{_PATHS}|{_BLANKS}")
_DIGITS = Cut(digits=True)

PRE_TOKENIZERS: Mapping[str, Cut] = {
    "gpt-2": Cut(), "phi-2": Cut(), "olmo": Cut(), "mpt": Cut(), "roberta-bpe": Cut(),
    "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "command-r": _DIGITS, "codeshell": _DIGITS,
    "llama3": _LLAMA3, "llama-v3": _LLAMA3, "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
}  # fmt: skip
"""The pre-tokenizers that are known, by the name that a file gives them."""

_ROLES: Mapping[Role, str] = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "sep": "seperator_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip


def read_gguf(fields: Mapping[str, object]) -> tuple[Backend, Settings]:
    """What a `Tokenizer` is made of; see `Tokenizer.from_gguf`."""
    from tokenizers import AddedToken

    model = _typed(fields, "model", str)
    pieces = _strings(fields, "tokens")
    kinds = _kinds(fields, len(pieces))
    if len(set(pieces)) != len(pieces):
        double = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
        raise TokenizerError(f"tokenizer.ggml.tokens has {double!r} twice: every piece must be there once")
    specials = _specials(fields, pieces)
    if model == "gpt2":
        name = _typed(fields, "pre", str)
        if name not in PRE_TOKENIZERS:
            known = ", ".join(sorted(PRE_TOKENIZERS))
            raise TokenizerError(f"tokenizer.ggml.pre is {name!r}: it must be one of {known}")
        cut = PRE_TOKENIZERS[name]
        backend, bos = _byte_level(fields, pieces, cut), cut.bos
    elif model == "llama":
        backend, bos = _sentences(fields, pieces, kinds, specials), True
    else:
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}: it must be one of gpt2, llama")
    added = [(p, k) for p, k in zip(pieces, kinds, strict=True) if k in {_CONTROL, _USER}]
    control = [p for p, k in added if k == _CONTROL]
    control += [p for role, p in specials.items() if role != "unk" and p not in control]
    if model == "llama" and "unk" in specials:
        control.append(specials["unk"])
    backend.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in dict.fromkeys(control)])
    backend.add_tokens([AddedToken(p, normalized=False) for p, k in added if k == _USER and p not in control])
    _frame(backend, fields, specials, bos=bos)
    return backend, Settings(specials, chat_templates=_templates(fields))


def _byte_level(fields: Mapping[str, object], pieces: Sequence[str], cut: Cut) -> Backend:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(_strings(fields, "merges")):
        parts = merge.split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"tokenizer.ggml.merges[{i}] is {merge!r}: it must be two pieces and a space")
        merges.append((parts[0], parts[1]))
    with reporting("tokenizer.ggml.tokens and tokenizer.ggml.merges"):
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_first))
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern:
        steps.append(pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    prefix = bool(_flag(fields, "add_space_prefix", False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=cut.pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentences(
    fields: Mapping[str, object], pieces: Sequence[str], kinds: Sequence[int], specials: Mapping[Role, str]
) -> Backend:
    """Byte-pair encoding as SentencePiece does it: of all neighbours that make a piece, the likeliest are joined."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    scores = fields.get("tokenizer.ggml.scores")
    if not _is_list(scores) or len(cast("list[object]", scores)) != len(pieces):
        raise TokenizerError(f"tokenizer.ggml.scores must be a list of {len(pieces)} numbers, one a piece")
    numbers = cast("list[object]", scores)
    for i, score in enumerate(numbers):
        if not isinstance(score, (int, float)):
            raise TokenizerError(f"tokenizer.ggml.scores[{i}] is {score!r}: it must be a number")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = _merges(pieces, kinds, cast("list[float]", numbers))
    unknown = specials.get("unk", "<unk>")
    with reporting("tokenizer.ggml.tokens"):
        backend = Tokenizer(
            models.BPE(
                vocab=vocabulary,
                merges=merges,
                unk_token=unknown if unknown in vocabulary else None,
                fuse_unk=True,
                byte_fallback=_BYTE in kinds,
            )
        )
    prefix = bool(_flag(fields, "add_space_prefix", True))
    scheme = "first" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(pieces: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The two halves of each piece, in every way that makes pieces, the likeliest piece first."""
    text = {p: i for i, (p, k) in enumerate(zip(pieces, kinds, strict=True)) if k not in {_UNKNOWN, _CONTROL, _BYTE}}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, index in text.items():
        if kinds[index] == _UNUSED:
            continue
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in text and right in text:
                found.append((-scores[index], index, place, (left, right)))
    return [pair for *_, pair in sorted(found)]


def _frame(backend: Backend, fields: Mapping[str, object], specials: Mapping[Role, str], *, bos: bool) -> None:
    """Put the bos and eos pieces around a text, as the file says."""
    around: dict[Role, str] = {"bos": "", "eos": ""}
    ids: dict[str, int] = {}
    defaults: dict[Role, bool] = {"bos": bos, "eos": False}
    for role, default in defaults.items():
        if _flag(fields, f"add_{role}_token", default):
            piece = specials.get(role)
            if piece is None and f"tokenizer.ggml.add_{role}_token" in fields:
                raise TokenizerError(f"tokenizer.ggml.add_{role}_token is true, but there is no {role}_token_id")
            if piece is not None:
                around[role] = piece
                ids[piece] = cast(int, backend.token_to_id(piece))
    if ids:
        first, second = (
            " ".join(f"{part}:{kind}" for part in (around["bos"], f"${name}", around["eos"]) if part)
            for kind, name in enumerate("AB")
        )
        backend.post_processor = template(first, f"{first} {second}", ids)


def _specials(fields: Mapping[str, object], pieces: Sequence[str]) -> dict[Role, str]:
    specials: dict[Role, str] = {}
    for role, key in _ROLES.items():
        name = f"tokenizer.ggml.{key}"
        if name in fields:
            index = fields[name]
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(pieces):
                raise TokenizerError(f"{name} is {index!r}: it must be an id in [0, {len(pieces)})")
            specials[role] = pieces[index]
    return specials


def _templates(fields: Mapping[str, object]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for key, source in fields.items():
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            if not isinstance(source, str):
                raise TokenizerError(f"{key} is a {type(source).__name__}: it must be a string")
            templates[key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"] = source
    return templates


def _kinds(fields: Mapping[str, object], size: int) -> list[int]:
    kinds = fields.get("tokenizer.ggml.token_type", [1] * size)
    if not _is_list(kinds) or len(cast("list[object]", kinds)) != size:
        raise TokenizerError(f"tokenizer.ggml.token_type must be a list of {size} numbers, one a piece")
    for i, kind in enumerate(cast("list[object]", kinds)):
        if not isinstance(kind, int) or not 0 <= kind <= _BYTE:
            raise TokenizerError(f"tokenizer.ggml.token_type[{i}] is {kind!r}: it must be in [0, {_BYTE}]")
    return cast("list[int]", kinds)


def _strings(fields: Mapping[str, object], name: str) -> list[str]:
    value = fields.get(f"tokenizer.ggml.{name}")
    if not _is_list(value):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise TokenizerError(f"tokenizer.ggml.{name} is {found}: it must be a list of strings")
    for i, item in enumerate(cast("list[object]", value)):
        if not isinstance(item, str):
            raise TokenizerError(f"tokenizer.ggml.{name}[{i}] is {item!r}: it must be a string")
    return cast("list[str]", value)


def _typed(fields: Mapping[str, object], name: str, kind: type[str]) -> str:
    value = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, kind):
        options = f", one of {', '.join(sorted(PRE_TOKENIZERS))}" if name == "pre" else ""
        found = "missing" if value is None else repr(value)
        raise TokenizerError(f"tokenizer.ggml.{name} is {found}: it must be a string{options}")
    return value


def _flag(fields: Mapping[str, object], name: str, default: bool) -> bool:
    value = fields.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}: it must be true or false")
    return value


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))
