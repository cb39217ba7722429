"""A user's own Jinja template as a report format (``--template``); docs/templates.md is its contract.

It is rendered in a sandbox that holds plain data and a few functions, by a process of its own whose time, memory and
output are limited: an endless loop, or a string of a terabyte, is an error like another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from convaudit.child import command
from convaudit.errors import ReportError
from convaudit.paths import as_utf8
from convaudit.result import AuditResult, Saving, TargetResult
from convaudit_reports import _figures, markdown
from convaudit_reports import json as json_format

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 60
MEMORY = 2 * 1024**3
CHARACTERS = 50_000_000
SENTENCES = ("message", "suggestion", "notes")
"""Fields whose line breaks are spaces."""


class Template:
    """A template that stands in for a report format. Raises :class:`ReportError` where it cannot be read or parsed."""

    def __init__(self, path: Path, *, escape: bool) -> None:
        from jinja2 import TemplateSyntaxError

        self.path = path
        self.escape = escape
        try:
            environment(path, escape=escape).parse(_read(path), filename=str(path))
        except TemplateSyntaxError as error:
            raise ReportError(f"--template {path}:{error.lineno}: {error.message}") from error
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise ReportError(f"--template {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def render(self, result: AuditResult, **_options: object) -> str:
        """The template's text. Raises :class:`ReportError`, with the template's line where it is known."""
        request = {"path": str(self.path), "escape": self.escape, "result": json.loads(json_format.render(result))}
        try:
            done = subprocess.run(
                command(__name__, str(Path(__file__).parents[1])), input=json.dumps(request), capture_output=True, text=True,
                encoding="utf-8", timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ReportError(f"--template {self.path}: not rendered within {SECONDS} s") from error
        if done.returncode:
            said = done.stderr.strip().rpartition("\n")[2]
            raise ReportError(f"--template {self.path}: its process ended with exit code {done.returncode}: {said}")
        answer: dict[str, str] = json.loads(done.stdout)
        if "error" in answer:
            raise ReportError(f"--template {answer['error']}")
        return answer["text"]


def environment(path: Path, *, escape: bool) -> ImmutableSandboxedEnvironment:
    """The sandbox of one template, which may include files of its own folder that have its own suffix."""
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    folder = path.resolve().parent

    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        found = (folder / name).resolve()
        if not found.is_relative_to(folder) or found.suffix != path.suffix or not found.is_file():
            return None
        return _read(found), str(path.parent / name), lambda: True

    made = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(load),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    del made.globals["lipsum"]
    made.globals |= {
        "change": _figures.change, "percent": _figures.percent, "plural": _figures.plural,
        "live": live, "steps": steps, "verdict": verdict,
    }  # fmt: skip
    made.filters |= {
        "count": _figures.count, "short": _figures.short, "size": _figures.size, "shape": _figures.shape,
        "shorten": _figures.shorten, "code": markdown.code, "cell": markdown.cell, "prose": markdown.prose,
    }  # fmt: skip
    return made


def live(target: dict[str, Any], *severities: str) -> list[Any]:
    """The findings of a target that are not suppressed: errors first, the largest saving first."""
    return [msgspec.to_builtins(f) for f in _figures.live(msgspec.convert(target, TargetResult), *severities)]


def steps(saving: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The known figures of a saving, ready to print: label, before, after, change."""
    return [dataclasses.asdict(step) for step in _figures.steps(msgspec.convert(saving, Saving | None))]


def verdict(result: dict[str, Any]) -> str:
    """The whole run in one sentence."""
    return _figures.verdict(msgspec.convert(result, AuditResult))


def one_line(value: Any, sentence: bool = False) -> Any:
    """Plain data whose texts have their control characters spelled out, as in the other formats."""
    if isinstance(value, str):
        return _figures.one_line(value) if sentence else _figures.clean(value)
    if isinstance(value, dict):
        return {one_line(key): one_line(item, key in SENTENCES) for key, item in value.items()}
    return [one_line(item, sentence) for item in value] if isinstance(value, list) else value


def main() -> None:
    """The process that renders: a request on stdin, the text or an error on stdout."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    request = json.load(sys.stdin)
    path = Path(request["path"])
    try:
        answer = {"text": _rendered(path, request["escape"], one_line(request["result"]))}
    except Exception as error:  # noqa: BLE001 - a template may raise anything; it is named, with its line
        answer = {"error": _problem(path, error)}
    json.dump(answer, sys.stdout)


def _rendered(path: Path, escape: bool, result: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in environment(path, escape=escape).get_template(path.name).generate(result=result):
        pieces.append(piece)
        size += len(piece)
        if size > CHARACTERS:
            raise ReportError(f"more than {CHARACTERS:,} characters")
    return as_utf8("".join(pieces))


def _problem(path: Path, error: Exception) -> str:
    """``file:line: what`` on one line."""
    from jinja2 import TemplateError, TemplateNotFound, TemplateSyntaxError

    said = str(error)
    if isinstance(error, TemplateNotFound):
        said = f"{error.name}: no such {path.suffix or 'plain'} file in the template's own folder"
    elif not isinstance(error, (TemplateError, ReportError)):
        said = f"{type(error).__name__}{said and f': {said}'}"
    where = str(path)
    if isinstance(error, TemplateSyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if os.path.dirname(frame.filename).startswith(os.path.dirname(path)) and frame.filename.endswith(path.suffix):
                where = f"{frame.filename}:{frame.lineno}"
    return _figures.one_line(f"{where}: {said}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
