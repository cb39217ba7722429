"""``convaudit diff``: what changed between two targets, two git revisions of one, or two saved results."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from convaudit.errors import UsageError
from convaudit.session import audit_options
from convaudit.settings import FAIL_ON
from convaudit.terminal import say

if TYPE_CHECKING:
    from convaudit.comparison import Diff, Limit

FORMATS = ("text", "markdown", "json")
_SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json"}


@click.command()
@click.argument("old")
@click.argument("new", required=False)
@audit_options
@click.option("--format", "format_name", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="File: .md, .json or .txt; repeats.")
@click.option("--all", "show_all", is_flag=True, help="Print everything, however long.")
@click.option("--weights/--no-weights", default=None, help="Of checkpoints: compare all values, or headers alone.  [default: up to 2 GB]")
@click.option("--fail-on-increase", "limits", multiple=True, metavar="NAME=AMOUNT", help="Exit 1 where a figure rises by more: macs=5%, params=100K; repeats.")
@click.option("--fail-on", "fail_on", type=click.Choice(FAIL_ON), default="never", show_default=True, help="Exit 1 for findings of this severity that OLD does not have.")
def diff(
    old: str, new: str | None, format_name: str, outputs: tuple[Path, ...], show_all: bool, limits: tuple[str, ...], fail_on: str,
    jobs: int | None, **options: Any,
) -> None:  # fmt: skip
    """What changed from OLD to NEW: figures, layers, findings, keys of the state_dict, tensors of checkpoints.

    Each is a target (model.py:Net, weights.pt), a target at a git revision (model.py:Net@main), or a JSON result that
    `convaudit check -o` saved. NEW is the working tree's where OLD alone is given, with a revision.

    Exit code: 0, or 1 for what --fail-on-increase and --fail-on name, or 2 where a side could not be audited or a limit
    not judged.
    """
    from convaudit import output
    from convaudit.comparison import exceeded
    from convaudit.registry import report_part
    from convaudit.sides import compared

    _diff = report_part("_diff")

    allowed = [_limit(text) for text in limits]
    for path in outputs:
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"-o {path}: the format comes from the suffix: one of {', '.join(sorted(_SUFFIXES))}")
        output.check_writable(path)
    words = (old, new if new is not None else _without_revision(old))
    try:
        with _ended_by_signals():
            found, lost = compared(words, options, jobs)
    except KeyboardInterrupt:
        click.echo("convaudit: interrupted", err=True)
        sys.exit(130)
    for target in found.targets:
        found.exceeded += exceeded(target, allowed)
    for path in outputs:
        output.write(path, _diff.render(found, _SUFFIXES[path.suffix], show_all=True))
    click.echo(_diff.render(found, format_name, show_all=show_all), nl=False)
    sys.exit(_verdict(found, fail_on, lost))


def _limit(text: str) -> Limit:
    from convaudit.comparison import Limit

    try:
        return Limit.parse(text)
    except ValueError as error:
        raise UsageError(f"--fail-on-increase {error}") from error


def _without_revision(old: str) -> str:
    from convaudit import revisions

    if old.endswith(".json"):
        raise UsageError(f"{old} is a saved result: name what to compare it with, as in convaudit diff {old} model.py:Net")
    target, revision = revisions.split(old)
    if revision is None:
        raise UsageError(f"{old} has no revision: name a second target to compare with, or {target}@REVISION")
    return target


def _verdict(found: Diff, fail_on: str, lost: bool) -> int:
    """The exit code; a line on stderr for everything that makes it more than 0."""
    from convaudit.comparison import failing
    from convaudit.registry import report_part

    _diff = report_part("_diff")

    code = 0
    for target, findings in [*((t.target, t.findings) for t in found.targets), *found.only_new_findings.items()]:
        for finding in failing(findings, fail_on):
            code = 1
            say(_diff.finding_line(target, finding))
    for limit in found.exceeded:
        code = max(code, 1 if limit.reason is None else 2)
        say(_diff.limit_line(limit))
    for failure in found.failed:
        label = found.old.label if failure.side == "old" else found.new.label
        say(f"{label}: {failure.message.removeprefix(f'{failure.target}: ')}")
    if not found.targets and not found.failed:
        say("no target is on both sides: nothing was compared")
        return 2
    return 2 if found.failed or lost else code


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Being terminated is an exit like another: what was laid out is removed."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
