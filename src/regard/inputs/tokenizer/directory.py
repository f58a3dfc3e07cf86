"""A checkpoint's directory → its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from regard.inputs.tokenizer.core import Tokenizer
from regard.inputs.tokenizer.errors import TokenizerError, reporting
from regard.inputs.tokenizer.families import (
    DEFAULTS,
    build_byte_level,
    build_wordpiece,
    family_of,
    flag,
    frame_whisper,
    read_json,
    read_text,
)
from regard.inputs.tokenizer.values import ROLES, Role, Settings

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

_CONFIG = "tokenizer_config.json"
_TIME = re.compile(r"<\|\d+\.\d+\|>")  # Whisper's pieces for seconds


def read_directory(path: Path, *, target: bool) -> Tokenizer:
    """The tokenizer of a checkpoint; see `Tokenizer.from_directory`."""
    if not path.is_dir():
        raise TokenizerError(f"{path} is no directory: it must be one that holds a checkpoint")
    config = _object(path / _CONFIG)
    family = family_of(config, _model_type(path))
    named = _named(path, config)
    if (path / "source.spm").exists() and not (path / "tokenizer.json").exists():
        from regard.inputs.tokenizer.marian import read_marian

        specials = _some(_defaults("marian", named))
        return read_marian(path, _settings(path, config, specials, ()), separate=_separate(config), target=target)
    backend, family = _backend(path, config, family, named)
    added = _added(path, config)
    _add(backend, added, _extra(config), _some(named))
    if family == "whisper" and not (path / "tokenizer.json").exists():
        frame_whisper(backend, _some(_defaults(family, named)))
    specials = _present(backend, _defaults(family, named), named)
    skipped: set[int] = set()
    if family == "whisper":
        skipped = {i for piece, i in backend.get_vocab(with_added_tokens=True).items() if _TIME.fullmatch(piece)}
    settings = _settings(path, config, specials, skipped)
    if settings.clean_up and type(backend.model).__name__ == "BPE":
        # It was made for word pieces: of byte pairs it would take away spaces that the model wrote.
        forced = flag(config, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        settings = Settings(specials, skipped, bool(forced), settings.chat_templates)
    return Tokenizer(backend, settings)


def _backend(
    path: Path, config: Mapping[str, Any], family: str | None, named: Mapping[Role, str | None]
) -> tuple[Backend, str | None]:
    """The first tokenizer that is there, and the family it is then known to be of."""
    from tokenizers import Tokenizer

    if (path / "tokenizer.json").exists():
        with reporting("tokenizer.json is no tokenizer"):
            backend = Tokenizer.from_str(read_text(path / "tokenizer.json"))
        _apply(backend, config, family)
    elif (path / "spiece.model").exists():
        from regard.inputs.tokenizer.sentencepiece import build_t5

        family = "t5"
        extra = config.get("extra_ids", 100)
        if not isinstance(extra, int) or not 0 <= extra <= 10_000:
            raise TokenizerError(f"{_CONFIG}: extra_ids is {extra!r}: it must be a number from 0 to 10000")
        backend = build_t5(path / "spiece.model", extra)
    elif (path / "vocab.txt").exists():
        family = "bert"
        backend = build_wordpiece(path, config, _some(_defaults(family, named)))
    elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
        if family not in {"gpt2", "roberta", "whisper"}:
            family = _guess(path)
        backend = build_byte_level(path, config, family, _some(_defaults(family, named)))
    else:
        raise TokenizerError(
            f"{path} has no tokenizer: it must hold tokenizer.json, vocab.txt, vocab.json with merges.txt, "
            "source.spm with vocab.json, or spiece.model"
        )
    with reporting("the split_special_tokens of tokenizer_config.json"):
        backend.encode_special_tokens = bool(flag(config, "split_special_tokens", False))
    return backend, family


def _guess(path: Path) -> str:
    """The family of a byte-level vocabulary that no file names, by the special pieces it has."""
    pieces = read_text(path / "vocab.json")
    if (path / "normalizer.json").exists():
        return "whisper"
    return "roberta" if '"<s>"' in pieces and '"</s>"' in pieces and '"<mask>"' in pieces else "gpt2"


def _apply(backend: Backend, config: Mapping[str, Any], family: str | None) -> None:
    """What tokenizer_config.json says of a family's rules goes before what tokenizer.json says."""
    from tokenizers import normalizers, pre_tokenizers

    normal, cut = backend.normalizer, backend.pre_tokenizer
    if family == "bert" and isinstance(normal, normalizers.BertNormalizer):
        normal.lowercase = flag(config, "do_lower_case", normal.lowercase)
        normal.handle_chinese_chars = flag(config, "tokenize_chinese_chars", normal.handle_chinese_chars)
        if "strip_accents" in config:
            normal.strip_accents = flag(config, "strip_accents", None)
    if family in {"gpt2", "roberta", "whisper"} and isinstance(cut, pre_tokenizers.ByteLevel):
        cut.add_prefix_space = flag(config, "add_prefix_space", cut.add_prefix_space)


def _named(path: Path, config: Mapping[str, Any]) -> dict[Role, str | None]:
    """The special piece of each role that the checkpoint's files name; None where they say there is none."""
    sources = [(_CONFIG, config)]
    if "added_tokens_decoder" not in config:  # older than it, special_tokens_map.json has the last word
        sources.append(("special_tokens_map.json", _object(path / "special_tokens_map.json")))
    named: dict[Role, str | None] = {}
    for source, content in sources:
        for role in ROLES:
            if f"{role}_token" in content:
                value = content[f"{role}_token"]
                named[role] = None if value is None else _content(value, f"{source}: {role}_token")
    return named


def _defaults(family: str | None, named: Mapping[Role, str | None]) -> dict[Role, str | None]:
    return {**DEFAULTS.get(family or "", {}), **named}


def _some(specials: Mapping[Role, str | None]) -> dict[Role, str]:
    return {role: piece for role, piece in specials.items() if piece is not None}


def _present(
    backend: Backend, specials: Mapping[Role, str | None], named: Mapping[Role, str | None]
) -> dict[Role, str]:
    """The specials that are in the vocabulary; those a file names are there by now."""
    some = _some(specials)
    found: dict[Role, str] = {r: p for r, p in some.items() if r in named or backend.token_to_id(p) is not None}
    marks = {p for p in found.values() if not _is_special(backend, p)}
    if marks:
        from tokenizers import AddedToken

        backend.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in sorted(marks)])
    return found


def _is_special(backend: Backend, piece: str) -> bool:
    return any(t.content == piece and t.special for t in backend.get_added_tokens_decoder().values())


def _added(path: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The pieces beside the vocabulary that tokenizer_config.json or added_tokens.json lists, by their ids."""
    from tokenizers import AddedToken

    added: dict[int, AddedToken] = {}
    listed = config.get("added_tokens_decoder")
    if listed is None:
        names = _object(path / "added_tokens.json")
        special = {*_some(_named(path, config)).values()}
        for piece, index in names.items():
            if not isinstance(index, int) or isinstance(index, bool):
                raise TokenizerError(f"added_tokens.json: the id of {piece!r} is {index!r}: it must be a number")
            added[index] = AddedToken(piece, normalized=piece not in special, special=piece in special)
        return added
    if not isinstance(listed, dict):
        raise TokenizerError(f"{_CONFIG}: added_tokens_decoder is a {type(listed).__name__}: it must be a mapping")
    for index, token in cast("dict[str, object]", listed).items():
        if not index.isdecimal():
            raise TokenizerError(f"{_CONFIG}: added_tokens_decoder has the key {index!r}: it must be an id")
        added[int(index)] = _token(token, f"{_CONFIG}: added_tokens_decoder[{index!r}]")
    return added


def _extra(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special pieces without a role."""
    name = "extra_special_tokens" if config.get("extra_special_tokens") else "additional_special_tokens"
    listed = config.get(name) or []
    if isinstance(listed, dict):
        listed = list(cast("dict[str, object]", listed).values())
    if not isinstance(listed, list):
        raise TokenizerError(f"{_CONFIG}: {name} is a {type(listed).__name__}: it must be a list")
    return [_token(token, f"{_CONFIG}: {name}[{i}]") for i, token in enumerate(cast("list[object]", listed))]


def _token(value: object, name: str) -> AddedToken:
    from tokenizers import AddedToken

    content = _content(value, name)
    known = cast("dict[str, object]", value) if isinstance(value, dict) else {"special": True, "normalized": False}
    flags = {k: known[k] for k in ("single_word", "lstrip", "rstrip", "normalized", "special") if k in known}
    for key, setting in flags.items():
        if not isinstance(setting, bool):
            raise TokenizerError(f"{name}: {key} is {setting!r}: it must be true or false")
    return AddedToken(content, **cast("dict[str, bool]", flags))


def _content(value: object, name: str) -> str:
    found = cast("dict[str, object]", value).get("content") if isinstance(value, dict) else value
    if not isinstance(found, str) or not found:
        raise TokenizerError(f"{name} is {value!r}: it must be a piece, or a mapping with its content")
    return found


def _add(backend: Backend, added: Mapping[int, AddedToken], extra: list[AddedToken], named: Mapping[Role, str]) -> None:
    """Give the backend the pieces that only the other files know, and make sure that their ids agree."""
    from tokenizers import AddedToken

    there = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted(added.items()):
        if token.content not in there:
            backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(f"the added piece {token.content!r} is listed as id {index}, but would get id {found}")
    for token in extra:
        if not _is_special(backend, token.content):
            backend.add_special_tokens([token])
    for piece in named.values():
        if not _is_special(backend, piece):
            backend.add_special_tokens([AddedToken(piece, normalized=False, special=True)])


def _settings(
    path: Path, config: Mapping[str, Any], specials: Mapping[Role, str], skipped: set[int] | tuple[int, ...]
) -> Settings:
    clean = bool(flag(config, "clean_up_tokenization_spaces", False))
    return Settings(specials, skipped, clean, _templates(path, config))


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: files of their own before tokenizer_config.json."""
    templates: dict[str, str] = {}
    if (path / "chat_template.jinja").exists():
        templates["default"] = read_text(path / "chat_template.jinja")
    if (path / "additional_chat_templates").is_dir():
        for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
            templates[file.stem] = read_text(file)
    if templates:
        return templates
    listed = config.get("chat_template")
    if listed is None:
        return {}
    if isinstance(listed, str):
        return {"default": listed}
    if isinstance(listed, list):
        for entry in cast("list[object]", listed):
            fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
            name, source = fields.get("name"), fields.get("template")
            if not isinstance(name, str) or not isinstance(source, str):
                raise TokenizerError(f"{_CONFIG}: a chat_template must have a name and a template, both strings")
            templates[name] = source
        return templates
    raise TokenizerError(f"{_CONFIG}: chat_template is a {type(listed).__name__}: it must be a string or a list")


def _separate(config: Mapping[str, Any]) -> bool:
    return bool(flag(config, "separate_vocabs", False))


def _model_type(path: Path) -> str | None:
    found = _object(path / "config.json").get("model_type")
    return found if isinstance(found, str) else None


def _object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; an empty one where there is no file."""
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise TokenizerError(f"{path.name} is a {type(content).__name__}: it must be a mapping")
    return cast("dict[str, Any]", content)
