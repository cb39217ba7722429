"""How a Python process of ours is started."""

from __future__ import annotations

import os
import sys

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(module: str, *homes: str) -> list[str]:
    """The command line that runs ``main()`` of a module; ``homes`` are folders of further packages that it imports.

    Without the working directory on ``sys.path``: what lies there must not stand in for a module.
    """
    code = f"import sys; sys.path[:1] = []; sys.path += sys.argv[1:]; from {module} import main; main()"
    return [sys.executable, "-c", code, _HOME, *homes]
