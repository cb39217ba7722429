"""What a person at a terminal sees beside the reports: lines on stderr, and progress."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0
"""Seconds after which a file that is read gets a bar."""


def spelled(text: str) -> str:
    """One line of a stranger's text: its control characters are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def say(message: str) -> None:
    """One line on stderr."""
    click.echo(f"convaudit: {spelled(message)}", err=True)


class Bars:
    """Progress bars on a terminal: over ``count`` targets where there is more than one, and over the bytes of each file that
    is read for more than a second. Any thread may call."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._bars: Progress | None = None
        self._files: dict[str, tuple[float, TaskID | None]] = {}
        """When a file was first heard of, and its bar."""
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._seen = sys.stderr.isatty()
        if self._seen and self.count > 1:
            self._all = self._shown().add_task("auditing", total=self.count, said="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _shown(self) -> Progress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            text = [TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[said]}")]
            self._bars = Progress(text[0], BarColumn(), text[1], TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        return self._bars

    def done(self, target: str) -> None:
        """A target is audited."""
        if not self._seen:
            return
        with self._lock:
            _, bar = self._files.pop(target, (0.0, None))
            if self._bars is not None and bar is not None:
                self._bars.remove_task(bar)
            if self.count > 1:
                bars = self._shown()
                bars.update(self._all, advance=1, said=f"{int(bars.tasks[0].completed) + 1} of {self.count}")

    def heard(self, target: str, read: int, size: int) -> None:
        """So many of the bytes of a target are read."""
        if not self._seen:
            return
        with self._lock:
            began, bar = self._files.setdefault(target, (time.monotonic(), None))
            if time.monotonic() - began < PATIENCE:
                return
            said = f"{read / 1e9:.1f} of {size / 1e9:.1f} GB"
            if bar is None:
                bar = self._shown().add_task(spelled(os.path.basename(target))[:40], total=size, completed=read, said=said)
                self._files[target] = began, bar
            self._shown().update(bar, total=size, completed=read, said=said)
