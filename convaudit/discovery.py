"""Which classes of a plain file are models, read from its source: nothing runs, torch is not imported."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

_BASES = {"Module", "Sequential", "LightningModule"}


def models_in(path: Path, configured: set[str] | None = None) -> tuple[list[str], str | None]:
    """Names of the models a file defines, and one line where there is something to say instead.

    A model is a Module class that no other class of the file uses and whose constructor needs no arguments, or has
    them ``configured`` (class names, globs).
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        return [], f"{path}: cannot be read: {error.strerror}"
    except (SyntaxError, ValueError) as error:
        return [], f"{path}:{getattr(error, 'lineno', 1)}: syntax error: {getattr(error, 'msg', error)}"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    modules: dict[str, ast.ClassDef] = {}
    for node in classes:
        bases = {_last_name(base) for base in node.bases}
        if bases & (_BASES | set(modules)):
            modules[node.name] = node
    used = {
        word
        for name, node in modules.items()
        for child in ast.walk(node)
        if (word := getattr(child, "id", None)) in modules and word != name
    }
    roots = [name for name in modules if name not in used]
    given = [name for name in roots if any(fnmatchcase(name, known) for known in configured or ())]
    buildable = [name for name in roots if name in given or not _required_arguments(modules[name], modules)]
    left = [name for name in roots if name not in buildable]
    if not modules:
        return [], f"{path}: no model in it"
    if left:
        return buildable, f"{path}: {', '.join(left)} need arguments; audit one as {path}:{left[0]}(…)"
    return buildable, None


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _required_arguments(node: ast.ClassDef, modules: dict[str, ast.ClassDef]) -> bool:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = len(item.args.posonlyargs + item.args.args) - 1 - len(item.args.defaults)
            keyword = sum(default is None for default in item.args.kw_defaults)
            return positional > 0 or keyword > 0
    parents = [modules[name] for base in node.bases if (name := _last_name(base)) in modules]
    return any(_required_arguments(parent, modules) for parent in parents)
