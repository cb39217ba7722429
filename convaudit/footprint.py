"""What one target leaves in a worker: modules that the next one must not see, and the files its audit rests on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from convaudit.paths import LIBRARY


class Footprint:
    """Watches one target at a time. Files of installed packages and of Python itself are left out."""

    def __init__(self) -> None:
        self._modules = set(sys.modules)
        self._path, self._folder, self._environment = list(sys.path), os.getcwd(), dict(os.environ)
        self._opened: set[str] = set()
        self._watching = False
        sys.addaudithook(self._notice)

    def _notice(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open" and isinstance(args[0], (str, bytes)) and not _written(args[1], args[2]):
            self._opened.add(os.path.abspath(os.fsdecode(args[0])))  # relative to where the code is now
        elif event in ("os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, type(None))):
            asker = sys._getframe(1).f_code.co_filename
            if not asker.startswith("<frozen") and f"{os.sep}importlib{os.sep}" not in asker:  # not the import system
                self._opened.add(os.path.join(os.path.abspath(os.fsdecode(args[0] or ".")), "*"))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note the files that are read meanwhile."""
        self._opened.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def sources(self) -> list[str]:
        """The files read, those of the imported modules (convaudit's own where it is not installed), and their folders."""
        files = {path for path in self._opened if "__pycache__" not in path}
        files |= {
            os.path.abspath(file)
            for name, module in list(sys.modules.items())
            if name not in self._modules or name.partition(".")[0].startswith("convaudit")
            if (file := getattr(module, "__file__", None))
        }
        mine = {path for path in files if not _installed(path)}
        return sorted(mine | {os.path.dirname(path) for path in mine})

    def forget(self) -> None:
        """Drop the modules that came from outside of installed packages; put back ``sys.path``, the working directory,
        the environment and torch's defaults."""
        import torch

        sys.path[:] = self._path
        os.chdir(self._folder)
        os.environ.clear()
        os.environ.update(self._environment)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        made = {name: _home(sys.modules[name]) for name in set(sys.modules) - self._modules}
        for name, home in made.items():
            if home and not _installed(home) and not name.partition(".")[0].startswith("convaudit"):
                del sys.modules[name]


def _home(module: Any) -> str:
    """Where a module comes from: its file; a folder of one that has no ``__init__.py``."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


def _written(mode: Any, flags: Any) -> bool:
    """Whether an open is for writing; ``os.open`` gives no mode."""
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags and flags & (os.O_WRONLY | os.O_RDWR))


def _installed(path: str) -> bool:
    if any(part in path for part in LIBRARY) or path.startswith(("/proc/", "/sys/", "/dev/")):
        return True
    return any(path.startswith(os.path.join(prefix, "")) for prefix in (sys.prefix, sys.base_prefix))
