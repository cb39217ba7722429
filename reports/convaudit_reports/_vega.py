"""Vega, through vl-convert, in a process of its own: its JavaScript engine can crash the process that it runs in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from convaudit.errors import ReportError

_TRIES = 3
_SERVE = """
import sys
sys.path[:1] = []
import json, vl_convert
for line in sys.stdin:
    print(json.dumps(vl_convert.vega_to_svg(json.loads(line))), flush=True)
"""
"""Without the working directory on ``sys.path``: what lies there must not stand in for a module."""


class Vega:
    """Draws one picture after another; a process that died is replaced."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def svg(self, spec: dict[str, Any]) -> str:
        """The SVG of a Vega specification. Raises :class:`ReportError` where no process draws it."""
        ended: int | None = None
        for _ in range(_TRIES):
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    text=True, encoding="utf-8",
                )  # fmt: skip
            drawn = self._answer(self.process, spec)
            if drawn:
                return drawn
            ended = self.process.wait()
            self.process = None
        raise ReportError(f"a chart cannot be drawn: vl-convert ended with exit code {ended} {_TRIES} times")

    @staticmethod
    def _answer(process: subprocess.Popen[str], spec: dict[str, Any]) -> str | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(spec) + "\n")
            process.stdin.flush()
        except OSError:
            return None  # it is gone, as its exit code says
        line = process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None


VEGA = Vega()
