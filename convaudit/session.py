"""One run of the command line: its options, the settings that hold for its targets, and the workers that audit them."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from convaudit import baseline as baselines
from convaudit import cache, suppressions
from convaudit.errors import UsageError
from convaudit.paths import target_key
from convaudit.pool import Answer, Pool
from convaudit.result import AuditResult, assemble
from convaudit.settings import CONVENTIONS, INPUT_FORM, AuditSettings, find_settings, is_input, read_settings

F = TypeVar("F", bound=Callable[..., Any])


def say(message: str) -> None:
    """One line on stderr; what a stranger's message holds of control characters is spelled out."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    click.echo(f"convaudit: {plain}", err=True)


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
        click.option(
            "--memory-limit", type=click.FloatRange(0, min_open=True), default=8.0, show_default=True, metavar="GB",
            help="Memory that a target's own code may take.",
        ),
        click.option("--no-cache", is_flag=True, help="Audit anew, and keep nothing."),
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
        "strict-pickle": options.get("strict_pickle"), "max-pickle": options.get("max_pickle"),
        "pretrained": options.get("pretrained"), "require-complete": options.get("require_complete"),
    }  # fmt: skip
    settings.update({k: v for k, v in given.items() if v}, "command line")
    return settings


def _codes(values: Any) -> list[str]:
    return [code.strip() for value in values or () for code in value.split(",") if code.strip()]


class Run:
    """Targets to audit with their settings; those whose result is still in the cache need no worker."""

    def __init__(self, targets: list[str], settings: AuditSettings, options: dict[str, Any]) -> None:
        for spec in options.get("inputs") or ():
            if not is_input(spec):
                raise UsageError(f"--input {spec!r} is not {INPUT_FORM}")
        self.timeout = float(options.get("timeout") or 60.0)
        self.baseline = _baseline(settings, options)
        self.requests = [self._request(target, settings, options) for target in targets]
        self.keys = [] if options.get("no_cache") else [cache.key_of(request) for request in self.requests]
        files = {i for i, target in enumerate(targets) if names_checkpoint(target)}
        self.known = {i: kept for i, key in enumerate(self.keys) if i not in files and (kept := cache.find(key)) is not None}
        if files:
            from convaudit.checkpoints.audit import audit_file

            digest = bool(options.get("sha256"))
            self.known.update({i: audit_file(targets[i], settings.for_target(targets[i]), sha256=digest) for i in files})

    def _request(self, target: str, settings: AuditSettings, options: dict[str, Any]) -> dict[str, Any]:
        here = settings.for_target(target)
        if self.baseline is not None:
            here.reference = self.baseline.figures(target_key(target))
        return {
            "target": target, "settings": dataclasses.asdict(here), "input": list(options.get("inputs") or ()),
            "input_from": options.get("input_from"), "submodule": options.get("submodule"),
            "batch": options.get("batch"), "memory_limit": options.get("memory_limit"),
        }  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether every result is known already."""
        return len(self.known) == len(self.requests)

    def results(self, pool: Pool) -> AuditResult:
        """Every target's result, in order; new ones are kept, unless a plugin could not be loaded."""
        missing = [i for i in range(len(self.requests)) if i not in self.known]
        started = time.time()
        answers = ask(pool, [self.requests[i] for i in missing], self.timeout)
        problems = set()
        for index, answer in zip(missing, answers):
            if self.keys and not answer.incomplete:
                problems.add(cache.keep(self.keys[index], answer.sources, answer.result, started))
        for problem in problems - {None}:
            click.echo(f"convaudit: {problem}", err=True)
        new = dict(zip(missing, (answer.result for answer in answers)))
        return assemble([self.known.get(i) or new[i] for i in range(len(self.requests))])


    def verdict(self, result: AuditResult, settings: AuditSettings, options: dict[str, Any]) -> AuditResult:
        """The result with its suppressed findings marked; writes the baseline where that was asked for."""
        path = options.get("write_baseline")
        if path is not None:
            if baselines.is_result(path):
                raise UsageError(f"--write-baseline {path}: is a saved result, and would be lost; name another file")
            old = baselines.read(path) if path.exists() else baselines.Baseline()
            result = suppressions.apply(result, settings, None)
            self.baseline = baselines.updated(old, result.targets, suppressions.ran(settings))
            for target in result.targets:
                baselines.apply(self.baseline, target)
            baselines.write(path, self.baseline)
            kept = sum(len(entries) for entries in self.baseline.findings.values())
            click.echo(f"convaudit: wrote {path}: {kept} accepted finding{'s' * (kept != 1)}", err=True)
            return assemble(result.targets)
        if options.get("prune_baseline"):
            if self.baseline is None:
                raise UsageError("--prune-baseline: there is no baseline; name one with --baseline FILE")
            where = options.get("baseline") or Path(settings.root, settings.baseline)
            if baselines.is_result(where):
                raise UsageError(f"--prune-baseline: {where} is a saved result, and would be lost; --write-baseline makes a baseline")
            before = sum(map(len, self.baseline.findings.values()))
            self.baseline = baselines.pruned(self.baseline, result.targets, suppressions.ran(settings))
            baselines.write(where, self.baseline)
            gone = before - sum(map(len, self.baseline.findings.values()))
            click.echo(f"convaudit: {where}: {gone} of {before} entries removed", err=True)
        return suppressions.apply(result, settings, self.baseline)


def names_checkpoint(target: str) -> bool:
    """Whether a target is a file that is no Python source: it is read here, without a worker and without torch."""
    return not target.endswith(".py") and os.path.isfile(target)


def _baseline(settings: AuditSettings, options: dict[str, Any]) -> baselines.Baseline | None:
    """The baseline of the command line, else of the settings (relative to their file)."""
    if options.get("write_baseline") and options.get("prune_baseline"):
        raise UsageError("--write-baseline and --prune-baseline exclude each other")
    if options.get("baseline"):
        return baselines.read(options["baseline"])
    if options.get("write_baseline") and not Path(settings.root, settings.baseline).exists():
        return None  # it is about to be written
    return baselines.read(Path(settings.root, settings.baseline)) if settings.baseline else None


def ask(pool: Pool, requests: list[dict[str, Any]], timeout: float) -> list[Answer]:
    """Answers to the requests, in their order; a progress bar on a terminal where there is more than one."""
    if len(requests) > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("auditing", total=len(requests))
            return pool.run(requests, timeout, lambda _: progress.advance(task))
    return pool.run(requests, timeout, lambda _: None)
