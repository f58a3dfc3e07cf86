"""Chats → text: a checkpoint's own template, in the Jinja language, run where it can touch nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

from regard.inputs.tokenizer.errors import TokenizerError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, object]


def render_chat(template: str, messages: Sequence[Message], variables: Mapping[str, object]) -> str:
    """The text that a template makes of a chat.

    Args:
        template: Jinja source. It sees `messages`, `variables`, `raise_exception(message)`, `strftime_now(format)`,
            the filter `tojson` without HTML escapes, `break` and `continue`, and the block `generation`, which
            changes nothing. Blocks are trimmed.
        messages: each with a role and a content; see `checked_messages`.
        variables: what else the template may read, JSON values.

    Raises:
        TokenizerError: if messages or variables are not of this form, or the template is no template, or says that
            it does not take this chat.
    """
    plain = checked_messages(messages)
    others = {name: _plain(value, name) for name, value in variables.items()}
    compiled = _compiled(template)
    try:
        return compiled.render(messages=plain, **others)
    except Exception as error:  # whatever an expression of the template may raise
        raise TokenizerError(f"the chat template does not take these messages: {_line(error)}") from error


def checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain JSON values, without the fields that are None.

    Raises:
        TokenizerError: if there is none, one is no mapping, or has no role (a string) or no content (a string or a
            list of parts, each a mapping with a type; it may be missing where there are tool_calls).
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TokenizerError(f"messages is a {type(messages).__name__}: it must be a list of messages")
    if not messages:
        raise TokenizerError("messages is empty: it must hold at least one message")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: object, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"{name} is a {type(message).__name__}: it must be a mapping with role and content")
    fields = cast("Mapping[object, object]", message)
    plain = _plain({key: value for key, value in fields.items() if value is not None}, name)
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise TokenizerError(f"{name}['role'] is {role!r}: it must be a string such as 'user' or 'assistant'")
    content = plain.get("content")
    if content is None and plain.get("tool_calls"):
        return plain
    if isinstance(content, list):
        for i, part in enumerate(cast("list[object]", content)):
            if not isinstance(part, dict) or not isinstance(cast("dict[str, object]", part).get("type"), str):
                raise TokenizerError(f"{name}['content'][{i}] is {part!r}: it must be a mapping with a type")
    elif not isinstance(content, str):
        raise TokenizerError(f"{name}['content'] is {content!r}: it must be a string or a list of parts")
    return plain


def _plain(value: object, name: str) -> Any:
    """The value rebuilt of JSON's own types, so that a template meets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        fields = cast("Mapping[object, object]", value)
        for key in fields:
            if not isinstance(key, str):
                raise TokenizerError(f"{name} has the key {key!r}: keys must be strings")
        return {str(key): _plain(item, f"{name}[{key!r}]") for key, item in fields.items()}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(items)]
    raise TokenizerError(f"{name} is a {type(value).__name__}: it must be a JSON value (text, number, list, mapping)")


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from datetime import datetime

    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant said; the text is the same without it."""

        tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    given: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals.update(given)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TokenizerError(f"line {error.lineno} of the chat template: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
