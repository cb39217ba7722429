"""What an audit ran with: versions of Python, of torch, and of the distributions whose classes a model is made of."""

from __future__ import annotations

import functools
import platform
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING

from convaudit.paths import LIBRARY

if TYPE_CHECKING:
    from torch.nn import Module


def python_version() -> dict[str, str]:
    """Of what is read without torch."""
    return {"python": platform.python_version()}


def versions_of(model: Module | None) -> dict[str, str]:
    """Of Python, torch, and each installed distribution that defines the class of one of the model's modules."""
    import torch

    modules = model.modules() if model is not None else ()
    tops = dict.fromkeys(type(module).__module__.partition(".")[0] for module in modules)
    found = (_distribution(top) for top in tops if top != "torch" and any(part in _file(top) for part in LIBRARY))
    return {**python_version(), "torch": str(torch.__version__), **{name: version(name) for name in sorted(filter(None, found))}}


def _file(package: str) -> str:
    return str(getattr(sys.modules.get(package), "__file__", None) or "")


@functools.cache
def _distribution(package: str) -> str | None:
    """Name of the distribution that a package was installed by; most have the package's own."""
    try:
        version(package)
    except PackageNotFoundError:
        return next(iter(packages_distributions().get(package, ())), None)
    return package
