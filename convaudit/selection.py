"""What the words of a command line ask for: names as they are, the models of files and folders. Nothing runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.checkpoints.formats import sniff
from convaudit.discovery import Project, is_test, tracked
from convaudit.errors import UsageError
from convaudit.folders import Folder, holds_models, look_at, named_as_models, read_folder
from convaudit.paths import repository_root, target_key
from convaudit.result import FolderNote
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
    notes: list[FolderNote] = field(default_factory=list)
    """What folders hold beside targets."""
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
    asked = [Path(os.path.realpath(word)) for word in words or (default,)]
    left: list[str] = []
    tests: list[str] = []

    def project_of(path: Path) -> Project:
        real = path.resolve()
        root = here if _inside(path, here) else str(next((word for word in asked if word in real.parents), real.parent))
        if root not in projects:
            projects[root] = Project(Path(root), is_audited, [word for word in asked if word.is_relative_to(root)])
        return projects[root]

    def is_audited(path: Path) -> bool:
        return path in asked or (not is_test(path) and (changed or any(word in path.parents for word in asked)))

    def take(path: Path, shown: str, *, named: bool) -> bool:
        models = project_of(path).models_in(path, shown, lambda target: settings.of(target).configures(target))
        if models.problem is not None and (named or models.syntax_error or "no model" not in models.problem):
            found.lines.append(models.problem)
            found.lost = found.lost or models.syntax_error or settings.of(shown).strict
        if changed and is_test(path):
            tests.extend([shown] * bool(models.targets))
            return False
        for target in models.targets:
            found.add(target, discovered=changed or not settings.of(target).names(target))
        left.extend(models.left)
        return bool(models.targets)

    changed_files: list[Path] = []
    for word in words if words or changed else (default,):
        if not word:
            raise UsageError("a target is empty; name a file, a folder or a model, or . for the working directory")
        path = Path(word)
        if path.is_dir():
            before = len(found.lines) + len(left)
            held = _folder(path, found, foreign=not _inside(path, here), allow_code=allow_code, named=bool(words))
            files = [file for file in held.sources if not is_test(file)]
            models = [take(file, os.path.relpath(file), named=False) for file in files]
            if files and not any(models) and len(found.lines) + len(left) == before:
                found.lines.append(f"{word}: no model in its Python files")
            if words and not (held.checkpoints or any(models)) and any(map(_is_lost, held.notes)):
                found.lost = True  # as where that file is named
        elif word.endswith(".py") and path.is_file():
            changed_files.append(path)
            take(path, word, named=not changed)
        elif changed and not word.endswith(".py"):
            _offer(path, word, found)  # a hook is handed every file of the commit
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
    for match in (table.match for table in settings.target if table.full):
        place, _, name = match.partition(":")
        found.append(f"{os.path.relpath(Path(settings.root, place))}:{name}" if place.endswith(".py") else match)
    return found


def _folder(folder: Path, found: Selection, *, foreign: bool, allow_code: bool, named: bool) -> Folder:
    """Take the checkpoints of a folder, and say what else is there; ``sources`` of what is returned are those that are run."""
    held = read_folder(folder, foreign=foreign, allow_code=allow_code)
    doubtful = set() if allow_code else _doubtful(folder, held)
    held.sources = [path for path in held.sources if path not in doubtful]
    for path in sorted(doubtful):
        held.note(str(path), "code", "a Python file, not run: files of a model lie beside it and git does not track it (--allow-code runs its models)")
    found.notes += held.notes
    found.lost = found.lost or held.lost
    for checkpoint in held.checkpoints:
        found.add(checkpoint)
    if not held.sources and not held.checkpoints and not any(note.kind in ("unreadable", "link", "other", "code") for note in held.notes):
        if named:
            raise UsageError(f"{folder}: no model file and no checkpoint in it")
        found.lines.append(f"{folder}: no model file and no checkpoint in it")
    return held


def _is_lost(note: FolderNote) -> bool:
    """Whether a note is of a file that would be audited if it were what its name says."""
    return note.kind in ("other", "unreadable") or (note.kind == "link" and named_as_models(note.path))


def _doubtful(folder: Path, held: Folder) -> set[Path]:
    """Python files that may have come with a model: files of one lie in the same subfolder of the working directory (of the
    repository, where it is another part of it), and git does not track them."""
    here = os.getcwd()
    root = repository_root(here)

    def subfolder(path: str | Path) -> Path | None:
        """The whole subfolder that a file lies in."""
        place = Path(os.path.realpath(os.path.dirname(path)))
        base = Path(here) if place.is_relative_to(here) else Path(root)
        parts = place.relative_to(base).parts if place.is_relative_to(base) else ()
        return base / parts[0] if parts else None

    places = {path: place for path in held.sources if (place := subfolder(path)) is not None}
    known = tracked(Path(root)) if places else set()
    untracked = {path: place for path, place in places.items() if os.path.realpath(path) not in known}
    beside = {subfolder(checkpoint) for checkpoint in held.checkpoints}
    named = Path(os.path.realpath(folder))
    for place in {*untracked.values()} - beside:
        if holds_models(str(place)) or (named.is_relative_to(place) and holds_models(str(named))):
            beside.add(place)
    return {path for path, place in untracked.items() if place in beside}


def _offer(path: Path, shown: str, found: Selection) -> None:
    """Take a file as a target where its first bytes are a checkpoint's; else a line."""
    if not path.is_file():
        return
    look = look_at(shown)
    if look is None:
        return
    try:
        kind, other = look(str(path))
    except OSError as error:
        found.lines.append(f"{shown}: cannot be read: {error.strerror}")
        found.lost = True
        return
    if kind is not None:
        found.add(shown)
    elif look is sniff:
        found.lines.append(f"{shown} is not audited: {other}")


def _inside(path: Path, root: str) -> bool:
    """Whether a folder lies in this repository, not in another one within it."""
    real = os.path.realpath(path)
    nearest = repository_root(real)
    return Path(real).is_relative_to(root) and (nearest == root or not os.path.exists(os.path.join(nearest, ".git")))


def _at_most(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"and {len(lines) - _LINES + 1} more such lines"]
