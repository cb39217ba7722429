"""convaudit lints PyTorch architectures: it traces the model, names what is wasteful, and proves each saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LayerGraph", "__version__", "audit", "trace"]

if TYPE_CHECKING:
    from convaudit.engine import audit
    from convaudit.graph import LayerGraph
    from convaudit.tracer import trace

_HOMES = {"audit": "convaudit.engine", "trace": "convaudit.tracer", "LayerGraph": "convaudit.graph"}


def __getattr__(name: str) -> Any:
    """Load the public names when first asked for, so that ``import convaudit`` never imports torch."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convaudit' has no attribute {name!r}")
