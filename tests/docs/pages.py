"""Pages of the documentation as their reader meets them: the commands to type, in order."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
    "CONTRIBUTING.md",
    "checkpoints/compact/README.md",
)
PROGRAMS = (
    *("teacher", "student", "python", "tensorboard", "make", "docker", "pip", "curl", "vllm", "apt-get"),
    *("source", "cp", "mkdir", "sed", "rm", "cat", "gunzip", "git", "for", "printf", "pytest", "openssl"),
    *(".venv/bin/python", ".venv/bin/pytest", "uv", "ray"),
)
"""What a command begins with."""

_OTHER_LANGUAGES = frozenset({"text", "json", "toml", "yaml", "ini", "html"})


class BadPage(AssertionError):
    """A page whose commands cannot be told from what they print."""


@dataclass(frozen=True)
class Command:
    """One command line without its comment, its continuation lines joined; or a whole block of Python."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}: {self.text}"


@dataclass(frozen=True)
class Stop:
    """A comment line that has the reader end the newest server: `# Stop it: Ctrl-C`."""


@dataclass(frozen=True)
class Reply:
    """A block of JSON that follows a `curl` command: what the page says that the command prints."""

    page: str
    line: int
    text: str


def steps(page: str) -> Iterator[Command | Stop | Reply]:
    """The commands of a page's blocks, and the replies that the page shows, in order.

    Raises:
        BadPage: a block of no language, or a line of a command block that begins with no known program.
    """
    newest = ""
    for language, first, lines in _blocks(page):
        if language == "json":
            if newest.startswith("curl"):
                yield Reply(page, first, "\n".join(lines))
            newest = ""
        elif language == "python":
            yield Command(page, first, "\n".join(["python - <<'END'", *lines, "END"]))
        elif language == "sh":
            for step in _of_a_block(page, first, lines):
                newest = step.text if isinstance(step, Command) else ""
                yield step


def inline_commands(page: str) -> list[Command]:
    """Commands of several words that stand in the text, as code."""
    found = []
    for number, line in enumerate(_outside_blocks(page), 1):
        for span in re.findall(r"`([^`]+)`", line):
            if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))}) [^\s=:]+(?:\s|$)", span):
                found.append(Command(page, number, span))
    return found


def _lines(page: str) -> list[str]:
    return (ROOT / page).read_text(encoding="utf-8").splitlines()


def _blocks(page: str) -> Iterator[tuple[str, int, list[str]]]:
    """The blocks of a page: the language, the first line's number, and the lines.

    What is indented by four after a blank line is a block of commands too.
    """
    language: str | None = None
    block: list[str] = []
    before = ""
    for number, line in enumerate([*_lines(page), ""], 1):
        in_text, before = bool(before.strip()) and not block, line
        fence = re.match(r"```(\w*)$", line)
        if fence and language is None:
            language = fence[1]
            if language not in ("sh", "python", *_OTHER_LANGUAGES):
                raise BadPage(
                    f"{page}, line {number}: ```{language}: write ```sh or ```python for commands, or"
                    f" {', '.join(sorted(_OTHER_LANGUAGES))} for anything else"
                )
        elif fence:
            yield str(language), number - len(block), block
            language, block = None, []
        elif language is not None or (line.startswith("    ") and not in_text):
            block.append(line if language is not None else line[4:])
        elif not line.strip() and block and number < len(_lines(page)) and _goes_on(page, number):
            block.append("")
        elif block:
            yield "sh", number - len(block), block
            block = []


def _goes_on(page: str, number: int) -> bool:
    """Whether an indented block goes on after the blank line of this number."""
    return _lines(page)[number].startswith("    ")


def _outside_blocks(page: str) -> Iterator[str]:
    inside = False
    for line in _lines(page):
        fence = line.startswith("```")
        inside ^= fence
        yield "" if inside or fence or line.startswith("    ") else line


def _of_a_block(page: str, first: int, lines: list[str]) -> Iterator[Command | Stop]:
    typed: list[str] = []
    start = first
    for number, line in enumerate(lines, first):
        if not typed and (not line.strip() or line.startswith("#")):
            if re.match(r"# stop\b", line, re.IGNORECASE):
                yield Stop()
            continue
        start = start if typed else number
        typed.append(line)
        if not _complete(typed):
            continue
        text = "\n".join(typed) if len(typed) > 1 else re.sub(r"\s+#.*$", "", line)
        text = re.sub(r"\s*\\\n\s*", " ", text)
        word = re.sub(r"^(?:[A-Z_]+=\S+ )*", "", text).split()[0]
        if word not in PROGRAMS:
            raise BadPage(
                f"{page}, line {start}: {word!r} is no known program. Put what is no command into ```text (or"
                " another language), and what is one into PROGRAMS of tests/docs/pages.py"
            )
        yield Command(page, start, text)
        typed = []
    if typed:
        raise BadPage(f"{page}, line {start}: the command does not end: {typed}")


def _complete(typed: list[str]) -> bool:
    """Whether a shell would run these lines rather than wait for another."""
    heredoc = re.search(r"<<-?\s*'?(\w+)'?", typed[0])
    if heredoc:
        return typed[-1].strip() == heredoc[1]
    if typed[-1].endswith("\\"):
        return False
    if typed[0].startswith("for "):
        return typed[-1].strip() == "done"
    try:
        shlex.split("\n".join(typed), comments=True)
    except ValueError:  # a quotation is open
        return False
    return True
