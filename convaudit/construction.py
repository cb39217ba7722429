"""Where each submodule was constructed: the user's file and line, by a frame walk when it is made."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from convaudit.paths import LIBRARY, relative_path
from convaudit.result import Location

TORCH = os.path.dirname(torch.__file__) + os.sep
OWN = os.path.dirname(__file__) + os.sep
STDLIB = sysconfig.get_path("stdlib") + os.sep


def is_user_code(path: str) -> bool:
    """Whether a frame's file is neither torch's, the standard library's, an installed package's nor ours."""
    return not path.startswith((TORCH, OWN, STDLIB, "<")) and not any(part in path for part in LIBRARY)


class ConstructionLines:
    """Constructing line of every module made while :func:`construction_locations` was active."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[nn.Module, str, int]] = {}

    def note(self, module: nn.Module, frame: FrameType | None) -> None:
        """Remember the innermost frame that is neither torch's nor one of the module's own constructors."""
        library: tuple[str, int] | None = None
        while frame is not None:
            path = frame.f_code.co_filename
            own_constructor = frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is module
            if not own_constructor and not path.startswith((TORCH, OWN, "<")):
                if not any(part in path for part in LIBRARY):
                    self._made[id(module)] = (module, path, frame.f_lineno)
                    return
                library = library or (path, frame.f_lineno)
            frame = frame.f_back
        if library:
            self._made[id(module)] = (module, *library)

    def defined(self, model: nn.Module, kind: type) -> None:
        """Take the line of the class itself for a model that nobody's code constructed."""
        try:
            path, line = inspect.getsourcefile(kind), inspect.findsource(kind)[1] + 1
        except (OSError, TypeError):  # made by exec, or in a notebook
            return
        if path is not None:
            self._made.setdefault(id(model), (model, path, line))

    def named(self, model: nn.Module) -> dict[str, Location]:
        """Constructing line by qualified name; "" is the model's own."""
        return {
            name: Location(relative_path(found[1]), found[2])
            for name, module in model.named_modules()
            if (found := self._made.get(id(module)))
        }


@contextmanager
def construction_locations() -> Iterator[ConstructionLines]:
    """While active, note where every ``nn.Module`` is constructed."""
    lines = ConstructionLines()
    original = nn.Module.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        lines.note(self, sys._getframe(1))
        original(self, *args, **kwargs)

    nn.Module.__init__ = init  # type: ignore[method-assign]
    try:
        yield lines
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]
