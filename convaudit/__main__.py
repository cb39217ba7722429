"""``python -m convaudit`` and the console script."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; anything unforeseen is one line and exit code 2."""
    from convaudit.cli import cli

    try:
        cli()
    except Exception as error:
        if os.environ.get("CONVAUDIT_DEBUG"):
            raise
        sys.stderr.write(f"convaudit broke: {type(error).__name__}: {error}; CONVAUDIT_DEBUG=1 shows where\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
