"""Templates of clients: the templates of prompt sets pass, expensive ones are refused."""

import time

import pytest

from teacher_server.playground.templates import check
from teacher_server.prompting.prompt_set import BadPromptSet, load_prompt_set, prompt_set_names

pytestmark = pytest.mark.unit

_LOOP = "{% for a in actions %}"
_END = "{% endfor %}"


@pytest.mark.parametrize("name", prompt_set_names())
def test_the_sets_own_templates_pass(name: str) -> None:
    check(load_prompt_set(name).templates)


@pytest.mark.parametrize(
    "source",
    [
        "{{ rules|trim|upper }} {{ actions|length }} {{ actions[0].label }}",
        f"{_LOOP}{{% if not loop.first and a.name != 'left' %}}, {{% else %}}-{{% endif %}}{_END}",
        f"{_LOOP}{_LOOP.replace('a in', 'b in')}{{{{ a.name if a.name == b.name else '' }}}}{_END}{_END}",
        "{# a comment #}{% raw %}{{ not a value }}{% endraw %}",
    ],
)
def test_values_conditions_and_loops_over_the_actions_pass(source: str) -> None:
    check({"system.txt": source})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for i in range(10 ** 9) %}{% endfor %}", "a loop over anything but the actions"),
        ("{% for i in rules %}{% for j in rules %}{% endfor %}{% endfor %}", "a loop over anything but"),
        (_LOOP * 3 + _END * 3, "a loop inside 2 others"),
        ("{{ 'x' * 10 ** 10 }}", "'mul'"),
        ("{{ '%1000000000d' % 1 }}", "'mod'"),
        ("{{ rules|center(1000000000) }}", "the filter 'center'"),
        ("{{ '{:>1000000000}'.format(1) }}", "'call'"),
        ("{% set x = rules %}", "'assign'"),
        ("{% macro m() %}{% endmacro %}", "'macro'"),
        ("{{ rules ~ rules }}", "'concat'"),
        ("{% include '/etc/passwd' %}", "'include'"),
        ("{{ self.x }}{% block x %}{% endblock %}", "'block'"),
        (f"{{{{ {'not ' * 60}rules }}}}", "nesting this deep"),
        ("{% if rules %}" * 60 + "{% endif %}" * 60, "nesting this deep"),
        ("{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}", "nested too deeply"),
    ],
)
def test_what_could_take_for_ever_or_fill_the_memory_is_refused_at_once(source: str, told: str) -> None:
    began = time.process_time()
    with pytest.raises(BadPromptSet, match=r"^system\.txt: ") as refused:
        check({"system.txt": source})
    assert told in str(refused.value)
    assert refused.value.file == "system.txt"
    assert time.process_time() - began < 5  # 10 ** 9 rounds take minutes


def test_an_edited_set_is_another_one() -> None:
    prompts = load_prompt_set("minigrid")
    asked = {"task": "fetch", "mission": "go get a grey key", "actions": prompts.tasks["fetch"]}
    assert prompts.edited({}) is prompts
    assert prompts.edited(prompts.templates) is prompts
    edited = prompts.edited({"question.txt": "See {{ picture }}: {{ mission }}!"})
    again = edited.edited({"question.txt": prompts.templates["question.txt"]})
    assert len({prompts.digest, edited.digest, again.digest}) == 3
    before, after, back = (
        each.conversation(readout="labels", **asked)  # type: ignore[arg-type]
        for each in (prompts, edited, again)
    )
    assert [part.get("text") for part in after.question["content"]] == ["See ", None, ": go get a grey key!"]
    assert after.opening[1]["content"][0] == {"type": "text", "text": "See "}  # the examples ask so too
    assert after.opening[0] == before.opening[0]
    assert after.followup == before.followup
    assert (back.opening, back.question) == (before.opening, before.question)
    assert prompts.conversation(readout="labels", **asked).question == before.question  # type: ignore[arg-type]
