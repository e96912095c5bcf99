"""What mkdocs runs while it builds the site: pages of the reference are generated, and the result is checked.

`<!-- generated: NAME -->` in a page is replaced by what the function of that name in `_GENERATORS` returns.
"""

import logging
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from teacher_api.command_line import groups_of
from teacher_api.commands import Command, Group, load_settings

_ROOT = Path(__file__).parents[1]
_log = logging.getLogger("mkdocs.site")  # a warning fails `mkdocs build --strict`


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in the generated parts of a page."""
    return re.sub(
        r"^<!-- generated: ([\w-]+) ?(.*) -->$",
        lambda found: _GENERATORS[found[1]](*found[2].split()),
        markdown,
        flags=re.MULTILINE,
    )


def on_post_build(config: Any, **_: Any) -> None:
    """Warns of what a browser would load from another host, and of dead links in the files beside docs/."""
    loaded = re.compile(
        r"""(<(script|img|iframe|source)[^>]*\ssrc=|url\(|@import\s+"""
        r"""|<link(?=[^>]*rel=["']?(stylesheet|preload|preconnect|icon))[^>]*href=)["']?(https?:)?//"""
    )
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css", ".svg") and (found := loaded.search(path.read_text("utf-8"))):
            _log.warning("%s loads from another host: %s", path, found[0])
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"""\]\(([^)\s]+)\)|src="([^"]+)\"""", (_ROOT / page).read_text("utf-8")):
            target = (link[0] or link[1]).partition("#")[0]
            if target and "://" not in target and not (_ROOT / target).exists():
                _log.warning("%s links to %s, which does not exist", page, target)


def _file(name: str) -> str:
    """A file beside docs/, with its links seen from docs/."""
    text = (_ROOT / name).read_text("utf-8")
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    return re.sub(r"\]\((CHANGELOG|CONTRIBUTING)\.md", lambda found: f"]({found[1].lower()}.md", text)


def _settings(program: str) -> str:
    """A section for each command: its flags with defaults and meanings, in the groups of its --help."""
    module = import_module({"teacher": "teacher_tools.cli", "student": "student.cli"}[program])
    further = [_command(load_settings(each)) for each in getattr(module, "FURTHER_SETTINGS", ())]
    return "\n".join([*_commands(program, module.COMMANDS), *further])


def _commands(title: str, command: Command | Group) -> Iterator[str]:
    if isinstance(command, Group):
        for word, each in command.commands.items():
            yield from _commands(f"{title} {word}", each)
    else:
        yield _command(load_settings(command.settings), title, command.help)


def _command(kind: type[BaseSettings], title: str = "", purpose: str = "") -> str:
    lines = [f"## {title or kind.model_config.get('cli_prog_name')}\n", f"{getdoc(kind) or purpose}\n"]
    if prefix := kind.model_config.get("env_prefix"):
        lines.append(f"Variables begin with `{prefix}`.\n")
    groups: dict[str, list[str]] = {title: [] for title in getattr(kind, "help_groups", {}).values()}
    for name, heading in groups_of(kind).items():
        field = kind.model_fields[name]
        meaning = (field.description or "").replace("|", "\\|")
        if choices := _choices(field.annotation):
            meaning += f" (one of {', '.join(f'`{each}`' for each in choices)})"
        row = f"| {_flag(name, field)} | {_default(kind, field)} | {meaning} |"
        groups.setdefault(heading, []).append(row)
    for heading in sorted(groups, key=bool):  # those in no group come first, as in --help
        if heading:
            lines.append(f"\n**{heading[0].upper()}{heading[1:]}**\n")
        lines += ["| setting | default | meaning |\n|---|---|---|", *groups[heading]]
    return "\n".join([*lines, ""])


def _default(kind: type[BaseSettings], field: FieldInfo) -> str:
    default = field.get_default()
    if field.default_factory is not None:
        return "by preset" if kind.__module__ == "student.settings" else ""
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{','.join(map(str, default)) if isinstance(default, (tuple, list)) else default}`"


def _flag(name: str, field: FieldInfo) -> str:
    if any(getattr(mark, "__name__", "") == "_CliPositionalArg" for mark in field.metadata):
        return f"`{name.upper()}`"
    return f"`--{(field.alias or name).replace('_', '-')}`"


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


@lru_cache
def _openapi() -> dict[str, Any]:
    from teacher_server.app import create_app  # noqa: PLC0415  (loads the service)
    from teacher_server.settings import Settings  # noqa: PLC0415

    schema: dict[str, Any] = create_app(Settings(store=None)).openapi()
    return schema


def _http() -> str:
    """A section for each route: what it is for, its request, its reply and its errors."""
    lines = []
    for path, methods in _openapi()["paths"].items():
        for method, operation in methods.items():
            lines.append(f"### {method.upper()} {path}\n\n{cleandoc(operation['description'])}\n")
            for direction, content in (
                ("Request", operation.get("requestBody", {}).get("content", {})),
                ("Reply", operation["responses"].get("200", {}).get("content", {})),
            ):
                if "application/json" in content:
                    lines.append(f"{direction}: {_type(content['application/json']['schema'])}.\n")
            lines.append(_errors(method, path))
    lines.append("## Schemas\n")
    for name in _openapi()["components"]["schemas"]:
        if "HTTPValidation" not in name and name != "ValidationError":
            lines.append(f"### {name}\n\n{_schema(name)}\n")
    return "\n".join(lines)


def _errors(method: str, path: str) -> str:
    """The table of a route's errors."""
    responses = _openapi()["paths"][path][method]["responses"]
    rows = [
        f"| {status} | {each['description']} |"
        for status, each in sorted(responses.items())
        if status != "200"
    ]
    return "\n".join(["| status | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _schema(name: str) -> str:
    """The table of a schema's fields."""
    schema = _openapi()["components"]["schemas"][name]
    lines = [cleandoc(schema.get("description", "")), "", "| field | type | meaning |", "|---|---|---|"]
    for field, about in schema["properties"].items():
        optional = "" if field in schema.get("required", []) else ", optional"
        meaning = about.get("description", "").replace("|", "\\|")
        lines.append(f"| `{field}` | {_type(about)}{optional} | {meaning} |")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](http.md#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def _metrics() -> str:
    """The service's metrics with their labels and meanings."""
    from teacher_server.service.metrics import Metrics  # noqa: PLC0415  (loads the service)

    rows = ["| metric | labels | meaning |", "|---|---|---|"]
    for metric in Metrics().registry.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
        labels = ", ".join(f"`{each}`" for each in _labels(metric.name))
        rows.append(f"| `{metric.name}{suffix}` | {labels} | {metric.documentation} |")
    return "\n".join(rows)


def _labels(name: str) -> tuple[str, ...]:
    from teacher_server.service.metrics import Metrics  # noqa: PLC0415

    for each in vars(Metrics()).values():
        if getattr(each, "_name", None) == name:
            return tuple(each._labelnames)
    return ()


_GENERATORS: dict[str, Callable[..., str]] = {
    "file": _file,
    "settings": _settings,
    "http": _http,
    "errors": _errors,
    "schema": _schema,
    "metrics": _metrics,
}
