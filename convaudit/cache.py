"""Results kept between runs, so that an unchanged model is answered without torch. Never imports torch.

One file of JSON behind its checksum for each target and way of auditing it, in the user's own cache folder: a checkout cannot bring answers
of its own. An entry holds while every file that the audit read, outside of installed packages, has the same content,
its folder lists the same Python files, folders that its code listed hold the same names, and the installed packages are
the same. Environment variables and ``os.path.exists`` are not seen: ``--no-cache`` is for code that asks them. Anything else about an entry (truncated, of
another version, not ours) makes it as good as absent. There is no pickle in it. Entries go when nobody asked for them
in 30 days, or beyond 500 MB.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from convaudit import __version__
from convaudit.result import SCHEMA_VERSION, TargetResult

_STARTED_IN = os.getcwd()
_DAY = 86_400.0
_OWN = re.compile(r"[0-9a-f]{64}\.(json|.*part)")
LAID_OUT = re.compile(r"[0-9a-f]{12}-[0-9a-f]{40,64}")
"""Folders in ``revisions``, each a commit that is being compared."""
MOST_DAYS = 30
MOST_BYTES = 500 * 10**6


class Entry(msgspec.Struct):
    """A result and what it rests on."""

    key: str
    sources: dict[str, str]
    """Files that the audit read → SHA-256 of their content, "" where there was none; folders → SHA-256 of the names of
    their Python files, or, as ``folder/*``, of all names in them."""
    result: TargetResult


def folder() -> Path:
    """``CONVAUDIT_CACHE_DIR``, else convaudit's folder in the user's cache folder."""
    given = os.environ.get("CONVAUDIT_CACHE_DIR")
    if given:
        return Path(_STARTED_IN, given)
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache"), "convaudit")


def key_of(request: dict[str, Any]) -> str:
    """What a result depends on besides files: the request, the working directory, versions, installed packages."""
    request = {name: value for name, value in request.items() if name != "memory_limit"}
    parts = [
        SCHEMA_VERSION, __version__, _torch(), platform.python_version(), sys.prefix, os.getcwd(),
        os.environ.get("PYTHONPATH", ""), [_changed(path) for path in sys.path if path.endswith("-packages")], request,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, default=str).encode("ascii")).hexdigest()  # a path need not be UTF-8


@functools.cache
def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _changed(path: str) -> int:
    """When something was last installed into or removed from a folder of packages."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _modified(path: str) -> float:
    """When a file was last written; 0 for a folder, which Python itself writes to."""
    try:
        return 0.0 if os.path.isdir(path) else os.stat(path).st_mtime
    except OSError:
        return 0.0


def digest(path: str) -> str:
    """SHA-256 of a file's content, or of a folder's Python file and package names; "" where it cannot be read."""
    try:
        if os.path.basename(path) == "*":
            names = sorted(name for name in os.listdir(os.path.dirname(path)) if name != "__pycache__")
            return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        if os.path.isdir(path):
            names = sorted(
                e.name for e in os.scandir(path)
                if e.name.endswith(".py") or os.path.exists(os.path.join(e.path, "__init__.py"))
            )  # fmt: skip
            return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def find(key: str, digests: dict[str, str] | None = None) -> TargetResult | None:
    """The result kept for ``key``, where all that it rests on is unchanged. ``digests``: what this run has read already."""
    path = folder() / f"{key}.json"
    digests = {} if digests is None else digests
    try:
        checksum, _, data = path.read_bytes().partition(b"\n")
        if checksum != _checksum(data):
            return None
        entry = msgspec.json.decode(data, type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if entry.key != key:
        return None
    for source, known in entry.sources.items():
        if source not in digests:
            digests[source] = digest(source)
        if digests[source] != known:
            return None
    with contextlib.suppress(OSError):  # a cache that cannot be written to answers all the same
        if path.stat().st_mtime < time.time() - _DAY:
            os.utime(path)
    return entry.result


def keep(key: str, sources: list[str], result: TargetResult, started: float) -> str | None:
    """Write an entry aside and rename it; why that failed, where it did.

    A failed target is not kept, nor one whose sources changed since ``started`` (seconds since the epoch).
    """
    if result.status == "failed" or any(_modified(path) >= started for path in sources):
        return None
    entry = Entry(key, {path: digest(path) for path in sources}, result)
    try:
        where = folder()
        where.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=where, prefix=f"{key}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            data = msgspec.json.encode(entry)
            file.write(_checksum(data) + b"\n" + data)
        os.replace(aside, where / f"{key}.json")
    except (OSError, TypeError, UnicodeEncodeError) as error:
        return f"the cache in {folder()} was not written: {getattr(error, 'strerror', None) or error}"
    return None


def trim() -> None:
    """Drop entries that nobody asked for in 30 days, and the longest unused ones beyond 500 MB."""
    now, room = time.time(), MOST_BYTES
    for used, size, path in sorted(((s.st_mtime, s.st_size, path) for path, s in _entries()), reverse=True):
        room -= size
        if used < now - MOST_DAYS * _DAY or room < 0:
            with contextlib.suppress(OSError):  # gone, or not ours to remove
                path.unlink()


def _entries() -> Iterator[tuple[Path, os.stat_result]]:
    """What the cache holds, unfinished entries included, and nothing else that lies there."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder()):
            if _OWN.fullmatch(entry.name) and not entry.is_dir():
                with contextlib.suppress(FileNotFoundError):  # another run was quicker
                    yield Path(entry.path), entry.stat()


def clean() -> int:
    """Remove the cache folder's entries and revisions that were left there, and nothing else; how many there were."""
    where = folder()
    entries = [path for path, _ in _entries()]
    for path in entries:
        path.unlink(missing_ok=True)
    revisions = where / "revisions"
    left = [path for path in revisions.iterdir() if LAID_OUT.fullmatch(path.name)] if revisions.is_dir() else []
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    for home in (revisions, where):
        if home.is_dir() and not any(home.iterdir()):
            home.rmdir()
    return len(entries) + len(left)
