"""The catalogues of ``reports/convaudit_reports/locale``: extracted from the sources, brought up to date, compiled.

``python tests/support/messages.py`` (``make messages``) does all three. New texts are left empty for a translator.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, get_args, get_type_hints

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from convaudit.checkpoints.tensors import Role
from convaudit.checkpoints.tiers import TIERS
from convaudit.ops import KIND
from convaudit.result import TargetFailure
from convaudit.settings import LANGUAGES
from convaudit_reports._language import DOC, PIECE, RULE, SENTENCE

ROOT = Path(__file__).parents[2]
LOCALE = ROOT / "reports/convaudit_reports/locale"
SPEAKING = ("tracer", "symbolic", "targets", "inputs", "worker", "folders", "selection", "checkpoints/**")
METHODS = [
    ("reports/convaudit_reports/**.py", "python"),
    ("reports/convaudit_reports/templates/**.j2", "jinja2.ext:babel_extract"),
    ("rules/convaudit_rules/**.py", f"{__name__}:rule_messages"),
    ("convaudit/explain.py", "python"),
    ("convaudit/engine.py", f"{__name__}:rule_messages"),
    *((f"convaudit/{name}.py", f"{__name__}:note_messages") for name in SPEAKING),
]
OPTIONS = {METHODS[1][0]: {"trimmed": "true", "newstyle_gettext": "true", "silent": "false"}}
UNDATED = datetime(2026, 1, 1, tzinfo=timezone.utc)
"""Stands in the headers, so that the files change only where a text does."""
_HOLDERS = (ast.ClassDef, ast.FunctionDef, ast.Assign)
NOTES = re.compile(r"(\b|_)(notes?|problems?|broken|how|short|message|where|branch|unfollowed|DataDependent|TargetError|PickleProblem|OTHERS|PACKED)$")
"""Where a trace or a file keeps what is to be said of it."""
PARTS = ("wanted", "_where", "_reason", "_geometry", "content", "refusal")
"""Functions that give a part of it."""
EXAMPLES = ("bad", "good", "bad_files", "good_files")


def sources() -> Catalog:
    """Every text of the sources."""
    found = Catalog(project="convaudit", creation_date=UNDATED)
    for name, _, text, comments, context in extract_from_dir(ROOT, METHODS, OPTIONS):
        found.add(text, locations=[(name, 0)], auto_comments=comments, context=context)
    steps = get_args(get_type_hints(TargetFailure)["step"])
    for word in dict.fromkeys((*KIND.values(), "module", *get_args(Role), *TIERS, *steps, "unbounded")):
        found.add(word)
    for text in ("parameters", "parameter", "buffer", "{0} NaN", "{0} infinite"):  # values that messages are filled with
        found.add(text, context=RULE)
    return found


def read(lang: str) -> Catalog:
    """The catalogue as it stands."""
    path = LOCALE / lang / "LC_MESSAGES/convaudit.po"
    return read_po(io.BytesIO(path.read_bytes() if path.exists() else b""), locale=lang)


def compiled(catalogue: Catalog) -> bytes:
    """The bytes of its .mo file."""
    made = io.BytesIO()
    write_mo(made, catalogue)
    return made.getvalue()


def rule_messages(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[tuple[int, str, Any, list[str]]]:
    """Titles and documentation of rules, and the sentences of their checks, f-strings with numbered placeholders (a Babel
    extractor)."""
    tree = ast.parse(file.read())
    for text in dict.fromkeys(_texts(tree)):
        yield 0, "pgettext", (RULE, text), []
    for node in tree.body:
        if _is_rule(node):
            for text in _documentation(ast.get_docstring(node) or ""):
                yield 0, "pgettext", (DOC, text), []


def note_messages(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[tuple[int, str, Any, list[str]]]:
    """The notes that tracing, building and reading give, in the form of rules' sentences (a Babel extractor)."""
    for node in ast.walk(ast.parse(file.read())):
        if isinstance(node, ast.Call):
            holder = ast.unparse(node.func).removesuffix(".append").removesuffix(".insert")
            said = node.args if NOTES.search(holder) else [k.value for k in node.keywords if NOTES.search(k.arg or "")]
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            said = [node.value] if any(NOTES.search(ast.unparse(target)) for target in targets) else []
        elif isinstance(node, ast.FunctionDef) and node.name in PARTS:
            said = [node]
        else:
            continue
        for text in dict.fromkeys(text for part in said for text in _texts(part)):
            yield 0, "pgettext", (RULE, text), []


def _is_rule(node: ast.AST) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Rule" for base in node.bases)


def _documentation(text: str) -> Iterator[str]:
    """What of a rule's documentation is translated: all but the titles of the works it refers to."""
    for piece in PIECE.finditer(text.partition("\n")[2].partition("## References")[0] + "## References"):
        words = piece[2] or " ".join(piece[0].split())
        if (piece[1] or "").isspace() <= bool(SENTENCE.search(words)):
            yield words


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        title = ast.get_docstring(node)
        if title and _is_rule(node):
            yield title.partition("\n")[0]
        if isinstance(node, ast.FunctionDef):
            children = [] if node.name in EXAMPLES else node.body[bool(title) :]
        else:
            children = [child for child in node.body if isinstance(child, _HOLDERS)]
    elif isinstance(node, ast.keyword) and node.arg == "severity":
        children = []
    elif (parts := _parts(node)) is not None:
        text = _template(parts)
        if re.search(r"[a-z]{2,}.* | .*[a-z]{2,}", text) and "\\" not in text:
            yield text
        children = [part for part in parts if not isinstance(part, str)]
    else:
        if isinstance(node, ast.IfExp):
            words = [b.value for b in (node.body, node.orelse) if isinstance(b, ast.Constant) and isinstance(b.value, str)]
            yield from (word for word in words if re.fullmatch("[A-Za-z]{3,}", word))
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _texts(child)


def _template(parts: list[str | ast.AST]) -> str:
    """The text with numbered placeholders, one for each run of values."""
    text, number = "", 0
    for index, part in enumerate(parts):
        if isinstance(part, str):
            text += part.replace("{", "{{").replace("}", "}}")
        elif not index or isinstance(parts[index - 1], str):
            text, number = f"{text}{{{number}}}", number + 1
    return text


def _parts(node: ast.AST) -> list[str | ast.AST] | None:
    """The strings and values that a text is joined from; None where it is no text."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in (_parts(value) or [value])]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _parts(node.left), _parts(node.right)
        return [*(left or [node.left]), *(right or [node.right])] if left or right else None
    return None


def main() -> None:
    """Bring every catalogue up to date and compile it."""
    for lang in LANGUAGES[1:]:
        catalogue = read(lang)
        catalogue.update(sources(), no_fuzzy_matching=True)
        catalogue.obsolete.clear()
        catalogue.fuzzy, catalogue.revision_date = False, UNDATED
        catalogue.project, catalogue.version = "convaudit", "1"
        catalogue.last_translator = catalogue.language_team = catalogue.msgid_bugs_address = "convaudit"
        catalogue.header_comment = f"# convaudit's reports in {catalogue.locale.english_name}."
        made = io.BytesIO()
        write_po(made, catalogue, width=0, sort_output=True, include_lineno=False)
        path = LOCALE / lang / "LC_MESSAGES/convaudit.po"
        path.write_bytes(made.getvalue())
        path.with_suffix(".mo").write_bytes(compiled(read(lang)))
        left = sum(not message.string or not any(message.string) for message in catalogue if message.id)
        print(f"{lang}: {len(catalogue)} texts, {left} without a translation")


if __name__ == "__main__":
    main()
