"""Vega, through vl-convert, in a process of its own: its JavaScript engine can crash the process that it runs in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from convaudit.child import command
from convaudit.errors import ReportError

_TRIES = 3
_COMPLAINT = re.compile(r"^(?:ERROR|WARN)\s+(.+)|^(\w*Error: .+)", re.MULTILINE)
"""What Vega's logger, or an exception, says on stderr; the picture may come all the same, with marks missing."""
_DRAWN = re.compile(r'<(?:text|line|path (?!class="(?:back|fore)ground"))')


class Vega:
    """Draws one picture after another; a process that died is replaced."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - for as long as it draws
        self._heard = 0

    def svg(self, spec: dict[str, Any]) -> str:
        """The SVG of a Vega specification. Raises :class:`ReportError` where it is not drawn, or not in full."""
        ended: int | None = None
        for _ in range(_TRIES):
            if self.process is None:
                self.process = subprocess.Popen(
                    command(__name__, str(Path(__file__).parents[1])), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=self._said, text=True, encoding="utf-8",
                )  # fmt: skip
            drawn = self._answer(self.process, spec)
            complaint = self._complaint()
            if drawn is not None:
                if complaint or not _DRAWN.search(drawn):
                    raise ReportError(complaint or "nothing to see in it")
                return drawn
            ended = self.process.wait()
            self.process = None
        raise ReportError(f"vl-convert ended with exit code {ended} {_TRIES} times{complaint and f': {complaint}'}")

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

    def _complaint(self) -> str:
        """The first that was said since the last time; empty where nothing was."""
        self._said.seek(self._heard)  # the process shares the position: reading to the end leaves it there
        said = self._said.read()
        self._heard += len(said)
        found = _COMPLAINT.search(said.decode("utf-8", "replace"))
        return found[1] or found[2] if found else ""


def main() -> None:
    """The process that draws: a specification a line on stdin, its SVG a line on stdout, empty where it failed."""
    import vl_convert

    for line in sys.stdin:
        try:
            drawn = vl_convert.vega_to_svg(json.loads(line))
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            drawn = ""
        sys.stdout.write(json.dumps(drawn) + "\n")
        sys.stdout.flush()


VEGA = Vega()
