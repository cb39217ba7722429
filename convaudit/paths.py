"""Paths as findings and fingerprints spell them: relative to the repository. Never imports torch."""

from __future__ import annotations

import functools
import os

LIBRARY = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


_held: str | None = None


def hold_directory() -> None:
    """Take the present directory as the one that paths are relative to, whatever a model's code changes it to."""
    global _held
    _held = os.getcwd()


def working_directory() -> str:
    """The directory that :func:`hold_directory` took, else the present one."""
    return _held or os.getcwd()


def relative_path(path: str) -> str:
    """``path`` relative to the repository root (or the working directory), or to site-packages; else absolute.

    Always with forward slashes.
    """
    path = os.path.normpath(os.path.join(working_directory(), path))
    for part in LIBRARY:
        if part in path:
            return path.rpartition(part)[2].replace(os.sep, "/")
    root = repository_root(working_directory())
    return (os.path.relpath(path, root) if path.startswith(root + os.sep) else path).replace(os.sep, "/")


def as_utf8(text: str) -> str:
    """The text with what UTF-8 cannot hold (bytes of a file name, half a surrogate pair) spelled out: ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


FILES = (".py", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2", ".pkl", ".th", ".tar", ".index.json")
"""Suffixes of targets that are files."""


@functools.lru_cache
def repository_root(folder: str) -> str:
    """The nearest folder upwards that holds ``.git``; the folder itself where there is none."""
    at = folder
    while True:
        if os.path.exists(os.path.join(at, ".git")):
            return at
        parent = os.path.dirname(at)
        if parent == at:
            return folder
        at = parent


def target_key(target: str) -> str:
    """The target as fingerprints and baselines spell it: a file's path relative to the repository root, however it was
    reached; a checkpoint keeps the name of a link to it. Bytes that are no UTF-8 are spelled out."""
    place, colon, name = target.partition(":")
    if not place.endswith(FILES) and os.sep not in place:
        return target
    folder, base = os.path.split(place)
    real = os.path.realpath(place) if place.endswith(".py") else os.path.join(os.path.realpath(folder), base)
    return as_utf8(relative_path(real) + colon + name)
