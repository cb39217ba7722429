"""A repository as it was at a git revision, laid out in a folder of its own for as long as it is audited.

The working tree, its index and its list of worktrees are never touched, and no hook runs: git fills an index of its own
and writes the files out of it. Never imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convaudit import cache
from convaudit.errors import UsageError

_AT = re.compile(
    r"""(?P<target>  .*?\.py (?: :[\w.]+ (?:\(.*\))? )?    # model.py, model.py:Net, model.py:Net(width=2)
                   | [\w.]+ :[\w.]+ (?:\(.*\))?            # package.module:factory
                   | [^@(:]+ (?=@[^:]+$) )                 # a folder
        @(?P<revision>.+)""",
    re.VERBOSE | re.DOTALL,
)
_LIBRARIES = ("timm", "torchvision")
_DAY = 86_400.0
_OWN = ("convaudit", "convaudit_rules", "convaudit_reports")


def split(word: str) -> tuple[str, str | None]:
    """``TARGET@REVISION`` in its parts; a word without a revision, or a path that is there as it is, is a target."""
    match = _AT.fullmatch(word)
    if match is None or os.path.exists(word):
        return word, None
    return match["target"], match["revision"]


@dataclass(frozen=True)
class Revision:
    """A commit of a repository, and the target to audit there."""

    word: str
    """As it was asked for."""
    target: str
    """The target, its path relative to ``folder``."""
    repository: Path
    commit: str
    folder: str
    """The working directory's counterpart, relative to the repository."""

    @property
    def label(self) -> str:
        """The word, with the commit where that says more."""
        revision = split(self.word)[1] or ""
        return self.word if self.commit.startswith(revision) else f"{self.word} ({self.commit[:7]})"


def find(word: str) -> Revision:
    """The commit that ``TARGET@REVISION`` names. Raises :class:`UsageError` where there is none."""
    target, revision = split(word)
    place, _, name = target.partition(":")
    if place in _LIBRARIES or revision is None:
        raise UsageError(f"{word}: {place} is a library: it has no revision here")
    here = Path.cwd()
    path = _path(place) if place.endswith(".py") or not name else None
    start = here if path is None else path if path.is_dir() else path.parent
    while not start.is_dir():
        start = start.parent
    top = _git(start, "rev-parse", "--show-toplevel")
    if top.returncode:
        raise UsageError(f"{word}: {_said(top)}")
    repository = Path(top.stdout.rstrip("\n")).resolve()
    known = None if revision.startswith("-") else _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if known is None or known.returncode:
        raise UsageError(f"{word}: {_missing(repository, revision)}")
    folder = os.path.relpath(here, repository) if here.is_relative_to(repository) else "."
    if path is not None:
        if not path.is_relative_to(repository):
            raise UsageError(f"{word}: {place} is not in the repository {repository}")
        there = os.path.relpath(path, repository / folder)
        target = f"{there}:{name}" if name else there
    return Revision(word, target, repository, known.stdout.strip(), folder)


def _path(place: str) -> Path:
    """Absolute, symbolic links of its folders resolved: what git calls it."""
    path = Path(os.path.abspath(place))
    return path.parent.resolve() / path.name


def _missing(repository: Path, revision: str) -> str:
    if _git(repository, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        return f"no revision {revision!r} in this shallow clone; git fetch --unshallow (actions/checkout: fetch-depth: 0)"
    remote = f"origin/{revision}"
    if not _git(repository, "rev-parse", "--verify", "--quiet", f"{remote}^{{commit}}").returncode:
        return f"no revision {revision!r}; did you mean {remote!r}?"
    return f"no revision {revision!r}"


@contextlib.contextmanager
def laid_out(revision: Revision, *, keep_results: bool) -> Iterator[tuple[Path, bool]]:
    """The repository at ``revision`` in a folder that is removed at the end, and whether results of it may be kept.

    The folder's name is the same for the same commit, so that kept results fit it again; while another run uses it, and
    with ``keep_results`` off, it is another one.
    """
    folder, stable = _new_folder(revision, keep_results)
    try:
        _write(revision, folder)
        _check(revision, folder)
        (folder / revision.folder).mkdir(parents=True, exist_ok=True)
        yield folder, stable
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if stable:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _new_folder(revision: Revision, keep_results: bool) -> tuple[Path, bool]:
    if keep_results:
        home = cache.folder().absolute() / "revisions"
        name = hashlib.sha256(os.fsencode(revision.repository)).hexdigest()[:12]
        folder = home / f"{name}-{revision.commit}"
        with contextlib.suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
            for left in home.iterdir():  # of a run that was killed
                if cache.LAID_OUT.fullmatch(left.name) and left.stat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(left, ignore_errors=True)
            folder.mkdir()
            return folder.resolve(), True
    return Path(tempfile.mkdtemp(prefix="convaudit-")).resolve(), False


def _write(revision: Revision, folder: Path) -> None:
    """Write every file of the commit; an empty ``.git`` marks the root, as paths are relative to it."""
    marker = folder / ".git"
    marker.mkdir()
    index = {"GIT_INDEX_FILE": str(marker / "index.convaudit"), "GIT_LFS_SKIP_SMUDGE": "1"}
    for command in (
        ("read-tree", "--no-sparse-checkout", revision.commit),
        ("checkout-index", "--all", "--force", "--quiet", f"--prefix={folder}{os.sep}"),
    ):
        done = _git(revision.repository, *command, **index)
        if done.returncode:
            raise UsageError(f"{revision.word}: cannot be laid out: {_said(done)}")
    (marker / "index.convaudit").unlink(missing_ok=True)


def _check(revision: Revision, folder: Path) -> None:
    """Raise :class:`UsageError` where the target's file, folder or package is not of this revision."""
    place, _, name = revision.target.partition(":")
    there = folder / revision.folder
    at = f"at {split(revision.word)[1]} ({revision.commit[:7]})"
    if place.endswith(".py") or not name:
        path = os.path.normpath(there / place)
        if not os.path.exists(path):
            raise UsageError(f"{revision.word}: there is no {os.path.relpath(path, folder)} {at}")
        return
    top = place.partition(".")[0]
    homes = [str(there), *_python_path(revision.repository, folder)]
    if not any(os.path.isdir(os.path.join(home, top)) or os.path.isfile(os.path.join(home, f"{top}.py")) for home in homes):
        raise UsageError(f"{revision.word}: there is no module {top} {at}; PYTHONPATH says where else to look")


@contextlib.contextmanager
def inside(revision: Revision, folder: Path) -> Iterator[None]:
    """Work in the laid-out folder: what is on ``PYTHONPATH``, or installed as editable, out of the repository comes from
    there."""
    here = os.getcwd()
    # git, asked by the model's own code, is not to take a repository around the folder for the model's
    there = {"PYTHONPATH": os.pathsep.join(_python_path(revision.repository, folder)), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    before = {name: os.environ.get(name) for name in there}
    try:
        os.chdir(folder / revision.folder)
        os.environ.update(there)
        yield
    finally:
        os.chdir(here)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _python_path(repository: Path, folder: Path) -> list[str]:
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    library = os.path.dirname(os.__file__)
    after = sys.path[sys.path.index(library) + 1 :] if library in sys.path else []
    editable = [entry for entry in after if _within(entry, repository) and not _installed(entry)]
    found = []
    for entry in dict.fromkeys([*given, *editable]):
        there = entry
        if os.path.isabs(entry) and _within(entry, repository) and not _within(entry, folder) and not _installed(entry):
            there = os.path.join(folder, os.path.relpath(os.path.realpath(entry), repository))
        if entry in given or _adds_only_its_own(there):
            found.append(there)
    return found


def _adds_only_its_own(entry: str) -> bool:
    """Whether a folder can stand before the libraries: none of its modules has the name of one that a worker needs."""
    try:
        names = {name.partition(".")[0] for name in os.listdir(entry)}
    except OSError:
        return False
    return not names & {*sys.stdlib_module_names, *_OWN, "torch", "numpy", "msgspec", "fvcore"}


def _installed(path: str) -> bool:
    real = os.path.realpath(path)
    return "site-packages" in path or "dist-packages" in path or any(_within(real, Path(p)) for p in (sys.prefix, sys.base_prefix))


def _within(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def strays(sources: list[str], repository: Path, folder: Path) -> list[str]:
    """Python files of the working tree among what was read for an audit of the laid-out folder."""
    found = [
        path for path in sources
        if path.endswith(".py") and _within(path, repository) and not _within(path, folder) and not _installed(path)
    ]  # fmt: skip
    if found:
        tools = _tools()
        found = [path for path in found if not any(_within(path, Path(home)) for home in tools)]
    return [os.path.relpath(os.path.realpath(path), repository) for path in found]


def _tools() -> set[str]:
    """Where convaudit and the plugins of it are: they audit, and are no part of what is audited."""
    from convaudit import registry

    modules = [*_OWN, *(rule.__module__.partition(".")[0] for rule in registry.rules().values())]
    modules += [getattr(report, "__name__", type(report).__module__).partition(".")[0] for report in registry.reports().values()]
    files = {getattr(sys.modules.get(name), "__file__", None) or "" for name in modules}
    return {os.path.realpath(os.path.dirname(f) if f.endswith("__init__.py") else f) for f in files if f}


def _git(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder``, whatever repository a hook's environment names."""
    outside = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, env={**outside, **environment},
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}; a revision needs it") from error


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """git's own words, on one line."""
    lines = done.stderr.strip().splitlines() or [f"git ended with exit code {done.returncode}"]
    return lines[-1].removeprefix("fatal: ")
