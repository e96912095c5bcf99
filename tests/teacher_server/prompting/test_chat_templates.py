"""Chat templates are rendered as by transformers, with a fixed date."""

from typing import Any

import jinja2
import pytest
from transformers.utils import chat_template_utils

from teacher_server.prompting.chat_templates import (
    TODAY,
    BadChatTemplate,
    ChatTemplate,
    stages_of,
    template_of,
)
from tools.random_checkpoint import CHAT_TEMPLATE

pytestmark = pytest.mark.unit

_TOKENS = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<pad>", "bos_token": None}
_BEFORE: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "Rules <&> 'ü'."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is here?"}]},
]
_SAID = {"role": "assistant", "content": [{"type": "text", "text": "A wall."}]}
_NEXT: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "Which action?"}]}
# As published, without tools and videos
_QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for content in messages[0].content %}
            {%- if 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_TEMPLATES = {
    "plain": CHAT_TEMPLATE,
    "Qwen3-VL's": _QWEN3,
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}\n  {% generation %}\n{% set x = 1 %}"
    "{{ m.content[0].text }}\n{% endgeneration %}{{ x }}|{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 1 %}{% continue %}{% endif %}"
    "{{ m.role }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}",
    "tools": "{% if tools is not none %}no{% endif %}{% if documents %}no{% endif %}{{ tools is defined }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ bos_token is defined }}",
    "namespace": "{% set n = namespace(i=0) %}"
    "{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
    "trimmed": "{% for m in messages %}\n    {% if m.role == 'user' %}\n u\n  {% endif %}\n{% endfor %}\n\n",
    "add_generation_prompt": "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def _theirs(source: str, messages: list[dict[str, Any]]) -> str:
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **tokens
    )
    return str(rendered[0])


@pytest.mark.parametrize("name", list(_TEMPLATES))
def test_it_is_what_transformers_renders(name: str) -> None:
    source = _TEMPLATES[name]
    for messages in (_BEFORE, [*_BEFORE, _SAID, _NEXT]):
        assert ChatTemplate(source, _TOKENS).render(messages) == _theirs(source, messages)


def test_nothing_that_transformers_offers_to_templates_is_missing() -> None:
    theirs = chat_template_utils._compile_jinja_template("").environment
    ours = ChatTemplate("", {})._template.environment
    plain = jinja2.Environment(autoescape=True)
    for kind in ("globals", "filters", "tests"):
        assert set(getattr(ours, kind)) == set(getattr(theirs, kind)), kind
    assert {tag for e in theirs.extensions.values() for tag in e.tags} == {
        tag for e in ours.extensions.values() for tag in e.tags
    }
    assert set(theirs.globals) - set(plain.globals) == {"raise_exception", "strftime_now"}


def test_the_date_is_always_the_same() -> None:
    template = ChatTemplate("{{ strftime_now('%d %B %Y %H:%M') }}", {})
    assert (template.dated, template.render([])) == (True, TODAY.strftime("%d %B %Y %H:%M"))
    assert not ChatTemplate(CHAT_TEMPLATE, {}).dated


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, _QWEN3])
def test_two_stages(source: str) -> None:
    first, rest = stages_of(ChatTemplate(source, {}), _BEFORE, "ANSWER", _NEXT)
    assert first.endswith("What is here?<|im_end|>\n<|im_start|>assistant\n")
    assert rest == "<|im_end|>\n<|im_start|>user\nWhich action?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("of_messages", "told"),
    [
        ("in messages if message.role != 'assistant'", "omits the assistant's earlier turn"),
        ("in messages if message.role != 'system'", "omits or changes \"Rules <&> 'ü'.\""),
        ("in messages[:3]", "omits or changes 'Which action"),
        ("in messages | reverse", "changes"),
        ("in messages + messages[1:2]", "writes 2 places for 1 pictures"),
        ("in messages if 1 / 0", "division by zero"),
        ("in messages if message.nothing.at_all", "has no attribute"),
    ],
)
def test_a_conversation_that_is_not_written_whole_is_refused(of_messages: str, told: str) -> None:
    source = CHAT_TEMPLATE.replace("for message in messages", f"for message {of_messages}")
    with pytest.raises(BadChatTemplate, match=told):
        stages_of(ChatTemplate(source, {}), _BEFORE, "ANSWER", _NEXT)


def test_a_template_that_writes_earlier_turns_anew_is_refused() -> None:
    with pytest.raises(BadChatTemplate, match="changes earlier turns"):
        stages_of(ChatTemplate("{{ messages | length }}" + CHAT_TEMPLATE, {}), _BEFORE, "ANSWER", _NEXT)


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ("a", "a"),
        ([{"name": "rag", "template": "b"}, {"name": "default", "template": "a"}], "a"),
        ({"default": "a"}, "a"),
        ([{"name": "rag", "template": "b"}], None),
        (5, None),
        (None, None),
    ],
)
def test_a_template_is_found_in_its_field(content: Any, source: str | None) -> None:
    assert template_of(content) == source
