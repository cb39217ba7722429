"""``# convaudit: ignore[CNV101] reason`` comments: reading them from source, and writing them. Never imports torch."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.errors import ReportError

_COMMENT = re.compile(r"#\s*convaudit:\s*ignore\s*(?:\[(?P<codes>[^\]]*)\])?(?P<reason>[^#]*)")
_CODE = re.compile(r"[A-Za-z]+\d+")


@dataclass(frozen=True)
class Comment:
    """One suppression comment; ``malformed`` holds what stands where a code should."""

    line: int
    codes: tuple[str, ...]
    reason: str
    malformed: tuple[str, ...] = ()


@dataclass
class Source:
    """The comments of one file, and the lines each of them speaks for."""

    comments: list[Comment] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    """Last line of the innermost call that begins on a line."""
    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    """Each class and function: first and last line of its head, and its last line."""

    def comments_for(self, line: int) -> list[Comment]:
        """Comments on ``line``, where a call that begins on it ends, or on the head of a class or function around it."""
        lines = {line, self.calls.get(line, line)}
        for first, head, last in self.blocks:
            if first <= line <= last:
                lines.update(range(first, head + 1))
        return [comment for comment in self.comments if comment.line in lines]


def read(path: Path) -> Source:
    """The comments of a file; an unreadable or unparsable one has none."""
    try:
        data = path.read_bytes()
        if b"convaudit:" not in data:
            return Source()
        return parse(data)
    except (OSError, SyntaxError, ValueError, tokenize.TokenError, RecursionError):
        return Source()


def parse(data: bytes) -> Source:
    """The comments of source text; only real comments count, not strings that look like one."""
    found = Source()
    for token in tokenize.tokenize(io.BytesIO(data).readline):
        if token.type == tokenize.COMMENT:
            for match in _COMMENT.finditer(token.string):
                words = [word for word in re.split(r"[,\s]+", match["codes"] or "") if word]
                codes = tuple(word for word in words if _CODE.fullmatch(word))
                wrong = tuple(word for word in words if word not in codes)
                found.comments.append(Comment(token.start[0], codes, match["reason"].strip(), wrong))
    tree = ast.parse(data)
    found.calls = _calls(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            head = max(node.lineno, node.body[0].lineno - 1)
            found.blocks.append((node.lineno, head, node.end_lineno or node.lineno))
    return found


def _calls(tree: ast.AST) -> dict[int, int]:
    """Last line of the innermost call that begins on a line."""
    calls: dict[int, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            last = node.end_lineno or node.lineno
            calls[node.lineno] = min(last, calls.get(node.lineno, last))
    return calls


def add(path: Path, wanted: Mapping[int, Iterable[str]]) -> list[int]:
    """Write a comment with the codes ``wanted`` on each line of a file; the lines where that cannot be done.

    Codes are added to a comment that is there. Encoding and line ends stay as they are. A line that ends inside a
    string or in a backslash takes its comment on the last line of the call that begins on it.
    """
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        tree = ast.parse(data)
        tokens = list(tokenize.tokenize(io.BytesIO(data).readline))
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ReportError(f"{path}: no comment can be written: {error}") from error
    text = data.decode(encoding)
    lines = re.split(r"(?<=\n)", text)
    inside = {
        row for t in tokens if t.type not in (tokenize.ENCODING, tokenize.NEWLINE, tokenize.NL)
        for row in range(t.start[0], t.end[0])
    }  # fmt: skip
    inside |= {row for row, line in enumerate(lines, 1) if line.rstrip("\r\n").endswith("\\")}
    ends = _calls(tree)
    starts = {t.start[0]: t.start[1] for t in tokens if t.type == tokenize.COMMENT}
    failed = []
    for row, codes in wanted.items():
        at = row if row not in inside else ends.get(row, row)
        if at in inside or not 0 < at <= len(lines):
            failed.append(row)
            continue
        lines[at - 1] = _with_codes(lines[at - 1], sorted(codes), starts.get(at))
    changed = "".join(lines)
    if changed != text:
        from convaudit import output

        output.write_bytes(path, changed.encode(encoding))
    return failed


def _with_codes(line: str, codes: list[str], comment: int | None) -> str:
    """``line`` with the codes in its comment, which begins at column ``comment`` where it has one."""
    body = line.rstrip("\r\n")
    end = line[len(body) :]
    match = None if comment is None else _COMMENT.search(body, comment)
    if match is None or match["codes"] is None:
        return f"{body}  # convaudit: ignore[{', '.join(codes)}]{end}"
    known = [word for word in re.split(r"[,\s]+", match["codes"]) if word]
    merged = ", ".join([*known, *(code for code in codes if code not in known)])
    start, stop = match.span("codes")
    return body[:start] + merged + body[stop:] + end
