"""What the words of a command line ask for: names as they are, the models of files and folders. Nothing runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.checkpoints.formats import SUFFIXES, sniff
from convaudit.discovery import Project, in_tree, is_test
from convaudit.errors import UsageError
from convaudit.paths import repository_root
from convaudit.settings import AuditSettings

_LINES = 10
"""How many lines of one kind are worth reading."""


@dataclass
class Selection:
    """Targets to audit, and what has to be said about the rest."""

    targets: list[str] = field(default_factory=list)
    discovered: set[str] = field(default_factory=set)
    """Targets that nobody named: that one of them cannot be built is a line, not a failure."""
    lines: list[str] = field(default_factory=list)
    lost: bool = False
    """A file that was asked for could not be read."""


def select(words: tuple[str, ...], settings: AuditSettings, *, changed: bool = False, allow_code: bool = False) -> Selection:
    """The targets that ``words`` name or hold.

    ``changed``: the words are files of a commit; the models of files that import them are selected as well, and
    those of tests are not. ``allow_code``: model files of folders outside the working directory's repository are run.
    """
    found = Selection()
    projects: dict[str, Project] = {}
    here = repository_root(os.getcwd())
    files: list[tuple[Path, str]] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            files += _folder(path, found, allow_code or _inside(path, here))
        elif word.endswith(".py") and path.is_file():
            files.append((path, word))
        elif changed and not word.endswith(".py"):
            _offer(path, word, found, told=word.endswith(SUFFIXES))
            continue  # a hook is handed every file of the commit
        else:
            found.targets.append(word)

    def project_of(path: Path) -> Project:
        root = here if _inside(path, here) else str(path.resolve().parent)
        return projects.setdefault(root, Project(Path(root)))

    if changed:
        given = [path for path, _ in files if path.suffix == ".py"]
        importers = project_of(given[0]).importers(given) if given else []
        files += [(path, os.path.relpath(path)) for path in importers]
    left: list[str] = []
    tests: list[str] = []
    for path, shown in files:
        models = project_of(path).models_in(path, shown, settings.configures)
        if models.problem is not None and (models.syntax_error or "no model" not in models.problem):
            found.lines.append(models.problem)
            found.lost = found.lost or settings.strict or models.syntax_error
        elif models.problem is not None and shown in words and not changed:
            found.lines.append(models.problem)
            found.lost = found.lost or settings.strict
        if changed and is_test(path):
            tests += [shown] * bool(models.targets)
            continue
        new = [target for target in models.targets if target not in found.targets]
        found.targets += new
        found.discovered.update(new)
        left += models.left
    found.lines += _at_most(left) + _at_most([f"{name}: a test's models are not audited; name one to" for name in tests])
    return found


def _folder(folder: Path, found: Selection, runs_code: bool) -> list[tuple[Path, str]]:
    files: list[tuple[Path, str]] = []
    checkpoints = others = 0
    for path in in_tree(folder):
        if path.suffix == ".py":
            files.append((path, os.path.relpath(path)))
        if path.name.endswith(SUFFIXES):
            checkpoints += _offer(path, os.path.relpath(path), found, told=False)
            others += 1
    if others > checkpoints:
        found.lines.append(f"{folder}: {others - checkpoints} of its files with a checkpoint's suffix are none by their first bytes")
    if not runs_code:
        if files:
            found.lines.append(
                f"{folder}: {len(files)} Python files are not executed: they lie outside this repository (--allow-code runs them)"
            )
        return []
    if not files and not others:
        raise UsageError(f"{folder}: no model file and no checkpoint in it")
    return [(path, shown) for path, shown in files if not is_test(path)]


def _offer(path: Path, shown: str, found: Selection, *, told: bool) -> bool:
    """Take a file as a target where its first bytes are a checkpoint's; else a line, where it is ``told``."""
    if not path.is_file() or not shown.endswith(SUFFIXES):
        return False
    try:
        kind, other = sniff(str(path))
    except OSError as error:
        found.lines.append(f"{shown}: cannot be read: {error.strerror}")
        found.lost = True
        return False
    if kind is not None and shown not in found.targets:
        found.targets.append(shown)
    elif kind is None and told:
        found.lines.append(f"{shown} is not audited: {other}")
    return kind is not None


def _inside(path: Path, root: str) -> bool:
    return path.resolve().is_relative_to(root)


def _at_most(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"and {len(lines) - _LINES + 1} more such lines"]
