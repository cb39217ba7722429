"""One run of the command line: its options, the settings that hold for its targets, and the workers that audit them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from convaudit.errors import UsageError
from convaudit.pool import Pool
from convaudit.result import AuditResult, assemble
from convaudit.settings import CONVENTIONS, AuditSettings, find_settings, read_settings

F = TypeVar("F", bound=Callable[..., Any])


def audit_options(command: F) -> F:
    """The options of every command that audits targets."""
    for option in (
        click.option(
            "--input", "inputs", multiple=True, metavar="[NAME:]SHAPE[:DTYPE]", help="Example input; repeats."
        ),
        click.option(
            "--input-from", metavar="MODULE:FUNCTION", help="A function (of a module or FILE.py) that makes the input."
        ),
        click.option("--submodule", metavar="NAME", help="Audit a part of the model."),
        click.option("--config", type=click.Path(path_type=Path), help="Settings file."),
        click.option("--flop-convention", type=click.Choice(CONVENTIONS)),
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Worker processes."),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=60.0,
            show_default=True,
            help="Seconds per target.",
        ),
    ):
        command = option(command)
    return command


def settings_of(options: dict[str, Any], targets: tuple[str, ...]) -> AuditSettings:
    """Settings from the file nearest the first target inside the working directory, then the command line."""
    config = options.get("config")
    if config is not None:
        table, where = read_settings(config), config
        if table is None:
            raise UsageError(f"{config} has no [tool.convaudit]")
    else:
        here = start = Path.cwd().resolve()
        for target in targets:
            folder = Path(target.partition(":")[0]).resolve().parent
            if target.partition(":")[0].endswith(".py") and folder.is_relative_to(here):
                start = folder
                break
        table, where = find_settings(start)
    settings = AuditSettings.from_mapping(table, str(where or "settings"))
    settings.root = str(where.resolve().parent) if where else ""
    given = {
        "select": _codes(options.get("select")), "extend-select": _codes(options.get("extend_select")),
        "ignore": _codes(options.get("ignore")), "fail-on": options.get("fail_on"),
        "flop-convention": options.get("flop_convention"), "dataset-size": options.get("dataset_size"),
        "pretrained": options.get("pretrained"), "require-complete": options.get("require_complete"),
    }  # fmt: skip
    settings.update({k: v for k, v in given.items() if v}, "command line")
    return settings


def _codes(values: Any) -> list[str]:
    return [code.strip() for value in values or () for code in value.split(",") if code.strip()]


def run(pool: Pool, targets: list[str], settings: AuditSettings, options: dict[str, Any]) -> AuditResult:
    """Audit every target; a progress bar on a terminal where there is more than one."""
    for spec in options.get("inputs") or ():
        _check_input(spec)
    requests = [
        {
            "target": target, "settings": dataclasses.asdict(settings.for_target(target)),
            "input": list(options.get("inputs") or ()), "input_from": options.get("input_from"),
            "submodule": options.get("submodule"), "batch": options.get("batch"),
        }
        for target in targets
    ]  # fmt: skip
    return ask(pool, requests, float(options.get("timeout") or 60.0))


def ask(pool: Pool, requests: list[dict[str, Any]], timeout: float) -> AuditResult:
    """The result of the requests, in their order."""
    if len(requests) > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("auditing", total=len(requests))
            return assemble(pool.run(requests, timeout, lambda _: progress.advance(task)))
    return assemble(pool.run(requests, timeout, lambda _: None))


def _check_input(spec: str) -> None:
    import re

    if not re.fullmatch(r"(?:[A-Za-z_]\w*:)?(?:\(\)|\d+(?:,\d+)*)(?::[a-z][a-z0-9]*)?", spec.replace(" ", "")):
        raise UsageError(f"--input {spec!r} is not [NAME:]SHAPE[:DTYPE], such as 1,3,224,224 or mask:1,1,224,224:bool")
