"""Chat templates: the text is transformers' text, and what is no chat is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from tests.inputs.tokenizer.made import byte_backend, edited, llama3, save

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- generation %}{{ message['content'] | trim }}{% endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

HEADERS = """
{{- bos_token }}
{%- set state = namespace(system='none') %}
{%- for m in messages if m['role'] == 'system' %}{% set state.system = m['content'] %}{% break %}{% endfor %}
{{- '[system] ' + state.system + '\\n' }}
{% if tools is not none %}
Tools:
    {% for tool in tools %}
{{ tool | tojson(indent=2) }}
    {% endfor %}
{% endif %}
{%- for m in messages %}
    {%- if m['role'] == 'system' %}{% continue %}{% endif %}
<|head|>{{ m['role'] }}<|/head|>

{{ m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join('') }}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}<|head|>assistant<|/head|>

{% endif %}
"""

TURNS = """
{{- bos_token }}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Turns must go user, assistant, user, and so on') }}
{%- endif -%}
{%- if message['role'] == 'user' %}[ASK] {{ message['content'] }} [/ASK]
{%- else %} {{ message['content'] + eos_token }}{% endif -%}
{%- endfor -%}
"""

TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "turns": TURNS}
contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["<b>&'\"", "{{ x }}", "</s>"]
)
chats = st.lists(contents, min_size=1, max_size=5).map(
    lambda said: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
)


def both(template: Any) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    path = save(byte_backend(), bos_token="<s>", eos_token="</s>", chat_template=template)
    return Tokenizer.from_directory(path), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Tokenizer, Any]]:
    return {name: both(source) for name, source in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@given(chat=chats, prompt=st.booleans(), tool=st.none() | contents)
def test_the_same_text(pairs: Any, name: str, chat: list[dict[str, str]], prompt: bool, tool: str | None):
    ours, theirs = pairs[name]
    tools = None if tool is None else [{"type": "function", "function": {"name": tool, "strict": True, "n": [1, 0.5]}}]
    expected = theirs.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=prompt)
    assert ours.apply_chat_template(chat, prompt, tools=tools) == expected
    ids = theirs.apply_chat_template(chat, tools=tools, tokenize=True, add_generation_prompt=prompt)["input_ids"]
    assert ours.encode(expected, specials=False).ids == ids


def test_fields_that_are_none_and_parts(pairs: Any):
    ours, theirs = pairs["headers"]
    chat = [
        {"role": "system", "content": "Sys", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(chat) == expected
    assert "ab</s>" in expected and "[system] Sys" in expected


def test_templates_by_name():
    several = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools[0].name }}", "rag": "R"}
    ours, _ = both(several)
    chat = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(chat) == "Dx"
    assert ours.apply_chat_template(chat, tools=[{"name": "f"}]) == "Tf"
    assert ours.apply_chat_template(chat, template="rag") == "R"
    with pytest.raises(TokenizerError, match="chat template is 'other': the checkpoint has default, rag, tool_use"):
        ours.apply_chat_template(chat, template="other")


def test_a_date_can_be_asked_for(tmp_path: Any):
    ours = Tokenizer.from_directory(
        edited(llama3(), tmp_path / "a", chat_template="{{ strftime_now('%Y') | int > 2020 }}")
    )
    assert ours.apply_chat_template([{"role": "user", "content": ""}]) == "True"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hello", "messages is a str"),
        ({"role": "user", "content": "x"}, "messages is a dict"),
        (["hello"], r"messages\[0\] is a str: it must be a mapping with role and content"),
        ([{"content": "x"}], r"messages\[0\]\['role'\] is None"),
        ([{"role": 5, "content": "x"}], r"messages\[0\]\['role'\] is 5"),
        ([{"role": "user"}], r"messages\[0\]\['content'\] is None"),
        ([{"role": "user", "content": 7}], r"messages\[0\]\['content'\] is 7"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\['content'\]\[0\] is 'x'"),
        ([{"role": "user", "content": "x", "image": SimpleNamespace()}], r"\['image'\] is a SimpleNamespace"),
        ([{"role": "user", "content": "x", 5: 1}], r"messages\[0\] has the key 5"),
        ([{"role": "assistant", "content": "x"}], "Turns must go user"),
    ],
)
def test_what_is_no_chat(pairs: Any, messages: Any, message: str):
    ours, _ = pairs["turns"]
    with pytest.raises(TokenizerError, match=message) as caught:
        ours.apply_chat_template(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "line 1 of the chat template"),
        ("\n{{ 'a' + 1 }}", "does not take these messages"),
        ("{{ messages.append(1) }}", "does not take these messages"),
        ("{{ ''.__class__.__mro__ }}", "does not take these messages"),
        ("{{ messages[0].x.y }}", "does not take these messages"),
    ],
)
def test_what_is_no_template(tmp_path: Any, source: str, message: str):
    ours = Tokenizer.from_directory(edited(llama3(), tmp_path / "a", chat_template=source))
    with pytest.raises(TokenizerError, match=message):
        ours.apply_chat_template([{"role": "user", "content": "x"}])


def test_a_checkpoint_without_a_template():
    with pytest.raises(TokenizerError, match="chat template is 'default': the checkpoint has none"):
        Tokenizer.from_directory(llama3()).apply_chat_template([{"role": "user", "content": "x"}])
