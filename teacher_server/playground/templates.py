"""Checks of templates that clients send, which must render quickly and to a short text."""

from collections.abc import Iterator, Mapping

import jinja2
from jinja2 import nodes

from teacher_server.prompting.prompt_files import TEMPLATES, BadPromptSet

LONGEST = 32_768
"""Limit in characters for one template."""

_ALLOWED: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const),
    *(nodes.Name, nodes.Getattr, nodes.Getitem),
    *(nodes.For, nodes.If, nodes.CondExpr, nodes.Test, nodes.Filter),
    *(nodes.Compare, nodes.Operand, nodes.Not, nodes.And, nodes.Or),
)
_FILTERS = {"capitalize", "first", "last", "length", "lower", "title", "trim", "upper"}
_TESTS = {"defined", "divisibleby", "eq", "equalto", "even", "in", "ne", "odd"}
_MOST_LOOPS = 2
"""Limit of nested loops; each loops over the actions, of which there are at most seven."""
_DEEPEST = 24
"""Limit of nested nodes; Python's recursion limit allows some hundred."""


def check(sources: Mapping[str, str]) -> None:
    """Checks that templates are short, loop over the actions only and use only harmless filters and tests.

    Templates in a prompt set's folder may use all of Jinja, since the operator writes them. A client's
    template could keep the service busy for hours with three lines.

    Raises:
        BadPromptSet: A template has an unknown name, is too long, or uses something that is not allowed.
    """
    for name, source in sources.items():
        if name not in TEMPLATES:
            raise BadPromptSet(f"no template {name[:40]!r}; there are {', '.join(TEMPLATES)}")
        if len(source) > LONGEST:
            reason = f"{name}: the template has {len(source)} characters; at most {LONGEST} are allowed"
            raise BadPromptSet(reason, name)
        try:
            tree = jinja2.Environment().parse(source)  # noqa: S701 - parsed only; prompts are no HTML
        except jinja2.TemplateSyntaxError as error:
            raise BadPromptSet(f"{name}: line {error.lineno}: {error.message}", name) from error
        except RecursionError as error:
            raise BadPromptSet(f"{name}: the template is nested too deeply", name) from error
        for line, wrong in _problems(tree):
            raise BadPromptSet(
                f"{name}: line {line}: {wrong} is not allowed here: use values, `if`, and `for` over the"
                " actions; the files of a prompt set may use all of Jinja",
                name,
            )


def _problems(node: nodes.Node, depth: int = 0, loops: int = 0) -> Iterator[tuple[int, str]]:
    """Yields the line and the name of each node that is not allowed, in the order of the text."""
    if not isinstance(node, _ALLOWED):
        yield node.lineno, f"{type(node).__name__.lower()!r}"
    elif depth > _DEEPEST:
        yield node.lineno, "nesting this deep"
        return
    elif isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        yield node.lineno, f"the filter {node.name!r}"
    elif isinstance(node, nodes.Test) and node.name not in _TESTS:
        yield node.lineno, f"the test {node.name!r}"
    elif isinstance(node, nodes.For):
        loops += 1
        if not isinstance(node.iter, nodes.Name) or node.iter.name != "actions" or node.recursive:
            yield node.lineno, "a loop over anything but the actions"
        elif loops > _MOST_LOOPS:
            yield node.lineno, f"a loop inside {_MOST_LOOPS} others"
    for child in node.iter_child_nodes():
        yield from _problems(child, depth + 1, loops)
