"""The two sides of a diff: targets of the working tree or of a git revision, audited now, and saved results."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from convaudit import revisions
from convaudit.comparison import Diff, Side, compare
from convaudit.errors import UsageError
from convaudit.pool import Answer, Pool
from convaudit.result import SCHEMA_VERSION, AuditResult, TargetFailure, failed_target, note_lines
from convaudit.selection import Selection, select
from convaudit.session import Run, name_broken_plugins, settings_of, unbuilt, without_unbuilt
from convaudit.settings import Resolver
from convaudit.terminal import say


def compared(words: tuple[str, str], options: dict[str, Any], jobs: int | None) -> tuple[Diff, bool]:
    """The difference of two sides, and whether a file that was asked for could not be read."""
    with contextlib.ExitStack() as stack:
        return _compared(words, options, jobs, stack)


def _compared(
    words: tuple[str, str], options: dict[str, Any], jobs: int | None, stack: contextlib.ExitStack
) -> tuple[Diff, bool]:
    saved = [_saved(word) if word.endswith(".json") and not word.endswith(".index.json") else None for word in words]
    live = [_Live(word, options, jobs, stack) if result is None else None for word, result in zip(words, saved)]
    settings = settings_of(options, baseline="")  # OLD is what a diff compares with
    pool: Pool | None = None  # of the working tree: one serves both sides
    for side in live:
        if side is not None:
            pool = side.prepare(settings, pool) or pool
    if not all(side is None or side.run.complete for side in live):
        name_broken_plugins()
    results = [side.result() if side is not None else result for side, result in zip(live, saved)]
    before, after = as_read = [result for result in results if result is not None]
    single = len(before.targets) == len(after.targets) == 1
    before, after = _without_unbuilt((before, after), [side.lenient if side is not None else set() for side in live])
    lost = any(side is not None and side.selection.lost for side in live)
    if not before.targets and not after.targets:
        raise UsageError("nothing to compare: there is no model on either side")
    labels = [
        side.label if side is not None else Side(word, None, _torch_of(result), result.convaudit_version)
        for side, word, result in zip(live, words, as_read)
    ]
    found = compare(labels[0], before, labels[1], after, by_name=not single)
    here = all(side is not None and side.revision is None for side in live)
    for target in found.targets if here else ():
        if target.tensors is not None:
            from convaudit.checkpoints.compare import compare_values

            compare_values(target.tensors, target.old.target, target.new.target, settings.of(target.new.target))
    return found, lost


def _saved(word: str) -> AuditResult:
    """The result in a file. Raises :class:`UsageError`."""
    try:
        result = msgspec.json.decode(Path(word).read_bytes(), type=AuditResult)
    except OSError as error:
        raise UsageError(f"{word}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{word}: not a JSON result as `convaudit check -o {word}` writes it: {error}") from error
    if result.schema_version != SCHEMA_VERSION:
        raise UsageError(f"{word}: schema_version {result.schema_version} is not {SCHEMA_VERSION}; save it again")
    return result


def _without_unbuilt(results: tuple[AuditResult, AuditResult], lenient: list[set[str]]) -> tuple[AuditResult, AuditResult]:
    """Both results without those of ``lenient`` that cannot be audited by themselves on either side."""
    fine = {target.key for result in results for target in result.targets if unbuilt(target) is None}
    (old, first), (new, second) = (
        without_unbuilt(result, {t.target for t in result.targets if t.target in names and t.key not in fine})
        for result, names in zip(results, lenient)
    )
    for line in dict.fromkeys(first + second):
        say(line)
    return old, new


class _Live:
    """A side that is audited now: the working tree's, a library's, or that of a revision."""

    selection: Selection
    run: Run

    def __init__(self, word: str, options: dict[str, Any], jobs: int | None, stack: contextlib.ExitStack) -> None:
        self.target, name = revisions.split(word)
        self.options, self.jobs, self.stack = dict(options), jobs, stack
        self.revision: revisions.Revision | None = None
        self.folder = Path()
        if name is not None:
            self.revision = revisions.find(word)
            self.folder, stable = stack.enter_context(
                revisions.laid_out(self.revision, keep_results=not options.get("no_cache"))
            )
            self.options["no_cache"] = not stable
        commit = self.revision.commit if self.revision is not None else None
        self.label = Side(self.revision.label if self.revision is not None else word, commit, _torch_version())

    def _there(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.revision is None else revisions.inside(self.revision, self.folder)

    def prepare(self, settings: Resolver, pool: Pool | None) -> Pool | None:
        """Select, and start a worker where one is needed; ``pool`` is the working tree's, and so is what it returns."""
        target = self.target
        if self.revision is not None:
            target, pool = self.revision.target, None
            settings = settings.at(self.folder, self.revision.repository)
        self.settings = settings
        with self._there():
            self.selection = select((target,), settings)
            self.run = Run(self.selection.targets, settings, self.options)
            if pool is None:
                pool = self.stack.enter_context(Pool(self.jobs) if self.revision is None else _RevisionPool(self.jobs, self.revision, self.folder))
            self.pool = pool
            if not self.run.complete:
                pool.start()
        for line in [*self.selection.lines, *note_lines(self.selection.notes)]:
            say(f"{self.label.label}: {line}")
        return pool if self.revision is None else None

    @property
    def lenient(self) -> set[str]:
        """Targets that nobody named and whose settings are not ``strict``."""
        with self._there():
            return self.run.lenient(self.selection.discovered)

    def result(self) -> AuditResult:
        """The side's result, suppressed findings marked as this side's comments and the settings say."""
        with self._there():
            return self.run.judged(self.run.results(self.pool))


class _RevisionPool(Pool):
    """Workers for a laid-out revision: a target that takes code of the working tree is not audited as another's."""

    def __init__(self, jobs: int | None, revision: revisions.Revision, folder: Path) -> None:
        super().__init__(jobs)
        self._revision, self._folder = revision, folder

    def run(self, requests: list[dict[str, Any]], timeout: float, done: Any) -> list[Answer]:
        """As a pool's; what read Python files of the working tree has failed."""
        answers = super().run(requests, timeout, done)
        for request, answer in zip(requests, answers):
            strays = revisions.strays(answer.sources, self._revision.repository, self._folder)
            if strays and answer.result.status != "failed":
                more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
                said = f"it imports {strays[0]}{more} of the working tree, not of that revision (an editable install?); run with PYTHONPATH=. or the folder that holds the package"
                answer.result = failed_target(request["target"], TargetFailure("import", "ImportError", said, strays[0], 1))
        return answers


def _torch_of(result: AuditResult) -> str | None:
    """The torch that a saved result was audited with; checkpoints are read without one."""
    return next((target.versions["torch"] for target in result.targets if "torch" in target.versions), None)


def _torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
