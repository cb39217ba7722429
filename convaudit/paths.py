"""Paths as findings and fingerprints spell them: relative to the repository. Never imports torch."""

from __future__ import annotations

import functools
import os

LIBRARY = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def relative_path(path: str) -> str:
    """``path`` relative to the repository root (or the working directory), or to site-packages; else absolute.

    Always with forward slashes.
    """
    path = os.path.abspath(path)
    for part in LIBRARY:
        if part in path:
            return path.rpartition(part)[2].replace(os.sep, "/")
    root = repository_root(os.getcwd())
    return (os.path.relpath(path, root) if path.startswith(root + os.sep) else path).replace(os.sep, "/")


_FILES = (".py", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2", ".pkl", ".th", ".tar", ".index.json")


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
    """The target as fingerprints and baselines spell it: a file's path relative to the repository root."""
    place, colon, name = target.partition(":")
    return relative_path(place) + colon + name if place.endswith(_FILES) or os.sep in place else target
