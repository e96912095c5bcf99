"""What a template may hold that comes over the network: so little that it ends soon and stays small."""

from collections.abc import Iterator, Mapping

import jinja2
from jinja2 import nodes

from teacher_server.prompting.prompt_files import TEMPLATES, BadPromptSet

LONGEST = 32_768
"""Characters of one template."""

_TAKEN: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const),
    *(nodes.Name, nodes.Getattr, nodes.Getitem),
    *(nodes.For, nodes.If, nodes.CondExpr, nodes.Test, nodes.Filter),
    *(nodes.Compare, nodes.Operand, nodes.Not, nodes.And, nodes.Or),
)
_FILTERS = {"capitalize", "first", "last", "length", "lower", "title", "trim", "upper"}
_TESTS = {"defined", "divisibleby", "eq", "equalto", "even", "in", "ne", "odd"}
_MOST_LOOPS = 2
"""Inside of each other; each goes through the actions, of which there are seven at most."""
_DEEPEST = 24
"""Nodes inside of each other; Python gives up at some hundred."""


def check(sources: Mapping[str, str]) -> None:
    """Lets pass what is short, loops over the actions alone and makes nothing larger.

    Templates in a prompt set's folder may use all of Jinja: who writes there starts the teacher. One that
    comes over the network could keep the service busy for hours in three lines.

    Raises:
        BadPromptSet: a template is none of a set's, is too long, or holds something else.
    """
    for name, source in sources.items():
        if name not in TEMPLATES:
            raise BadPromptSet(f"no template {name[:40]!r}; there are {', '.join(TEMPLATES)}")
        if len(source) > LONGEST:
            reason = f"{name}: has {len(source)} characters; at most {LONGEST} are taken here"
            raise BadPromptSet(reason, name)
        try:
            tree = jinja2.Environment().parse(source)  # noqa: S701 - parsed only; prompts are no HTML
        except jinja2.TemplateSyntaxError as error:
            raise BadPromptSet(f"{name}: line {error.lineno}: {error.message}", name) from error
        except RecursionError as error:
            raise BadPromptSet(f"{name}: is nested too deeply", name) from error
        for line, wrong in _problems(tree):
            raise BadPromptSet(
                f"{name}: line {line}: {wrong} is not taken here: write values, `if`, and `for` over the"
                " actions; all of Jinja works in the files of a prompt set",
                name,
            )


def _problems(node: nodes.Node, depth: int = 0, loops: int = 0) -> Iterator[tuple[int, str]]:
    """(line, what is not taken), in the order of the text."""
    if not isinstance(node, _TAKEN):
        yield node.lineno, f"{type(node).__name__.lower()!r}"
    elif depth > _DEEPEST:
        yield node.lineno, "nesting as deep as this"
        return
    elif isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        yield node.lineno, f"the filter {node.name!r}"
    elif isinstance(node, nodes.Test) and node.name not in _TESTS:
        yield node.lineno, f"the test {node.name!r}"
    elif isinstance(node, nodes.For):
        loops += 1
        if not isinstance(node.iter, nodes.Name) or node.iter.name != "actions" or node.recursive:
            yield node.lineno, "a loop over anything else than the actions"
        elif loops > _MOST_LOOPS:
            yield node.lineno, f"a loop inside of {_MOST_LOOPS} others"
    for child in node.iter_child_nodes():
        yield from _problems(child, depth + 1, loops)
