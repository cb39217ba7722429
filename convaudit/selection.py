"""What the words of a command line ask for: names as they are, the models of files and folders. Nothing runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.checkpoints.formats import SUFFIXES, shards_of, sniff
from convaudit.discovery import Project, in_tree, is_test
from convaudit.errors import UsageError
from convaudit.paths import repository_root, target_key
from convaudit.settings import AuditSettings, Resolver

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

    def __post_init__(self) -> None:
        self._keys: dict[str, str] = {}

    def add(self, target: str, *, discovered: bool = False) -> None:
        """Take a target, however it is spelled, once; one that is named as well is no longer ``discovered``."""
        first = self._keys.setdefault(target_key(target), target)
        if first is target:
            self.targets.append(target)
            self.discovered.update([target] * discovered)
        elif not discovered:
            self.discovered.discard(first)


def select(
    words: tuple[str, ...], settings: Resolver, *, changed: bool = False, allow_code: bool = False, default: str = "."
) -> Selection:
    """The targets that ``words`` name or hold, in their order, each once.

    Without words: the models of the folder ``default``, and the targets that its settings name in full. ``changed``:
    the words are files of a commit; the models of files that import them are selected as well, and those of tests are
    not. ``allow_code``: model files of folders outside the working directory's repository are run.
    """
    found = Selection()
    projects: dict[str, Project] = {}
    here = repository_root(os.getcwd())
    left: list[str] = []
    tests: list[str] = []

    def project_of(path: Path) -> Project:
        root = here if _inside(path, here) else str(path.resolve().parent)
        return projects.setdefault(root, Project(Path(root)))

    def take(path: Path, shown: str, *, named: bool) -> bool:
        models = project_of(path).models_in(path, shown, lambda target: settings.of(target).configures(target))
        if models.problem is not None and (named or models.syntax_error or "no model" not in models.problem):
            found.lines.append(models.problem)
            found.lost = found.lost or models.syntax_error or settings.of(shown).strict
        if changed and is_test(path):
            tests.extend([shown] * bool(models.targets))
            return False
        for target in models.targets:
            found.add(target, discovered=True)
        left.extend(models.left)
        return bool(models.targets)

    changed_files: list[Path] = []
    for word in words if words or changed else (default,):
        path = Path(word)
        if path.is_dir():
            before = len(found.lines) + len(left)
            files = _folder(path, found, allow_code or _inside(path, here), named=bool(words))
            models = [take(file, shown, named=False) for file, shown in files]
            if files and not any(models) and len(found.lines) + len(left) == before:
                found.lines.append(f"{word}: no model in its Python files")
        elif word.endswith(".py") and path.is_file():
            changed_files.append(path)
            take(path, word, named=not changed)
        elif changed and not word.endswith(".py"):
            _offer(path, word, found, told=word.endswith(SUFFIXES))  # a hook is handed every file of the commit
        else:
            found.add(word)
    if changed and changed_files:
        for path in project_of(changed_files[0]).importers(changed_files):
            take(path, os.path.relpath(path), named=False)
    if not words and not changed:
        for target in _configured(settings.of(default)):
            found.add(target)
    found.lines += _at_most(left) + _at_most([f"{name}: a test's models are not audited; name one to" for name in tests])
    return found


def _configured(settings: AuditSettings) -> list[str]:
    """Targets that a table of the settings names in full."""
    found = []
    for match in (table.match for table in settings.target):
        place, colon, name = match.partition(":")
        if not colon or set(match) & set("*?["):
            continue
        found.append(f"{os.path.relpath(Path(settings.root, place))}:{name}" if place.endswith(".py") else match)
    return found


def _folder(folder: Path, found: Selection, runs_code: bool, *, named: bool) -> list[tuple[Path, str]]:
    files: list[tuple[Path, str]] = []
    checkpoints = others = 0
    paths = list(in_tree(folder))
    shards = {shard for path in paths if path.name.endswith(".index.json") for shard in shards_of(path)}
    for path in paths:
        if path.suffix == ".py":
            files.append((path, os.path.relpath(path)))
        if path.name.endswith(SUFFIXES) and path not in shards:  # these are audited with their index
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
        if named:
            raise UsageError(f"{folder}: no model file and no checkpoint in it")
        found.lines.append(f"{folder}: no model file and no checkpoint in it")
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
    if kind is not None:
        found.add(shown)
    elif kind is None and told:
        found.lines.append(f"{shown} is not audited: {other}")
    return kind is not None


def _inside(path: Path, root: str) -> bool:
    return path.resolve().is_relative_to(root)


def _at_most(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"and {len(lines) - _LINES + 1} more such lines"]
