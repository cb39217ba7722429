"""The command line. The parent process never imports torch; workers do."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from convaudit import __version__
from convaudit.calc import calc
from convaudit.errors import ConvauditError, ReportError, UsageError
from convaudit.settings import CONVENTIONS, FAIL_ON, AuditSettings, find_settings, read_settings

SUFFIXES = {".json": "json", ".html": "html", ".md": "markdown"}
F = TypeVar("F", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose ConvauditErrors are one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConvauditError as error:
            click.echo(f"convaudit: {error}", err=True)
            ctx.exit(error.exit_code)


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convaudit")
def cli() -> None:
    """Lint PyTorch architectures: what a model costs, what is wasteful, what each change saves."""


def _audit_options(command: F) -> F:
    for option in (
        click.option(
            "--input", "inputs", multiple=True, metavar="[NAME:]SHAPE[:DTYPE]", help="Example input; repeats."
        ),
        click.option("--input-from", metavar="MODULE:FUNCTION", help="A function that returns the example input."),
        click.option("--submodule", metavar="NAME", help="Audit a part of the model."),
        click.option("--config", type=click.Path(path_type=Path), help="Settings file."),
        click.option("--flop-convention", type=click.Choice(CONVENTIONS)),
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True),
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


@cli.command()
@click.argument("targets", nargs=-1, required=True)
@_audit_options
@click.option("--select", multiple=True, metavar="CODES")
@click.option("--extend-select", multiple=True, metavar="CODES")
@click.option("--ignore", multiple=True, metavar="CODES")
@click.option("--fail-on", type=click.Choice(FAIL_ON))
@click.option("--format", "format_name", default="text", show_default=True, metavar="text|json|markdown|html")
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="Report file; repeats.")
@click.option("--pretrained", is_flag=True, help="Lower findings that would break existing weights to info.")
@click.option("--dataset-size", type=click.IntRange(1))
@click.option("--require-complete", is_flag=True, help="A partial trace is an error.")
@click.option("--no-cache", is_flag=True, help="Accepted; nothing is cached yet.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 whatever is found (never hides a 2).")
@click.option("--quiet", is_flag=True)
@click.option("--show", "show_what", type=click.Choice(["info"]))
def check(
    targets: tuple[str, ...], format_name: str, outputs: tuple[Path, ...], exit_zero: bool, quiet: bool, show_what: str | None,
    jobs: int, timeout: float, no_cache: bool, **options: Any,
) -> None:  # fmt: skip
    """Audit models: model.py:Net, package.module:factory, timm:NAME, torchvision:NAME."""
    from convaudit.pool import Pool

    pool = Pool(jobs)
    try:
        settings = _settings(options, targets)
        writers = [(path, _report_for(path)) for path in outputs]
        report = _report(format_name)
        for path in outputs:
            _check_writable(path)
        named, lost = _named_targets(targets, settings.strict)
        result = _run(pool, named, settings, options, timeout)
    except KeyboardInterrupt:
        click.echo("convaudit: interrupted", err=True)
        sys.exit(130)
    finally:
        pool.close()
    for path, writer in writers:
        _write(path, writer.render(result))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = report.render(result, color=colour, show_info=show_what == "info", quiet=quiet)
    click.echo(text, nl=not text.endswith("\n"))
    for failed in (t for t in result.targets if t.error is not None):
        assert failed.error is not None
        click.echo(f"convaudit: {failed.target}: {failed.error.message}", err=True)
    if result.summary.failed or lost:
        sys.exit(2)
    sys.exit(0 if exit_zero else _exit_code(result, settings.fail_on))


def _exit_code(result: Any, fail_on: str) -> int:
    levels = {"error": ("error",), "warning": ("error", "warning"), "info": ("error", "warning", "info"), "never": ()}
    return int(any(getattr(result.summary, level) for level in levels[fail_on]))


def _run(pool: Any, targets: list[str], settings: AuditSettings, options: dict[str, Any], timeout: float) -> Any:
    import convaudit
    from convaudit.result import SCHEMA_VERSION, AuditResult, summarise

    for spec in options.get("inputs") or ():
        _check_input(spec)
    request = {
        "settings": dataclasses.asdict(settings), "input": list(options.get("inputs") or ()),
        "input_from": options.get("input_from"), "submodule": options.get("submodule"),
    }  # fmt: skip
    requests = [{**request, "target": target} for target in targets]
    if len(requests) > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("auditing", total=len(requests))
            found = pool.run(requests, timeout, lambda _: progress.advance(task))
    else:
        found = pool.run(requests, timeout, lambda _: None)
    return AuditResult(SCHEMA_VERSION, convaudit.__version__, found, summarise(found))


def _check_input(spec: str) -> None:
    import re

    if not re.fullmatch(r"(?:[A-Za-z_]\w*:)?(?:\(\)|\d+(?:,\d+)*)(?::[a-z][a-z0-9]*)?", spec.replace(" ", "")):
        raise UsageError(f"--input {spec!r} is not [NAME:]SHAPE[:DTYPE], such as 1,3,224,224 or mask:1,1,224,224:bool")


def _settings(options: dict[str, Any], targets: tuple[str, ...]) -> AuditSettings:
    """Settings from the file nearest the first target inside the working directory, then the command line."""
    config = options.get("config")
    if config is not None:
        table = read_settings(config)
        where = str(config)
        if table is None:
            raise UsageError(f"{config} has no [tool.convaudit]")
    else:
        here = Path.cwd().resolve()
        start = here
        for target in targets:
            folder = Path(target.partition(":")[0]).resolve().parent
            if target.partition(":")[0].endswith(".py") and folder.is_relative_to(here):
                start = folder
                break
        table, where = find_settings(start)
    given = {
        "select": _codes(options.get("select")), "extend-select": _codes(options.get("extend_select")),
        "ignore": _codes(options.get("ignore")), "fail-on": options.get("fail_on"),
        "flop-convention": options.get("flop_convention"), "dataset-size": options.get("dataset_size"),
        "pretrained": options.get("pretrained") or None, "require-complete": options.get("require_complete") or None,
    }  # fmt: skip
    AuditSettings.from_mapping(table, where)
    return AuditSettings.from_mapping({**table, **{k: v for k, v in given.items() if v}}, "command line")


def _codes(values: Any) -> list[str]:
    return [code.strip() for value in values or () for code in value.split(",") if code.strip()]


def _named_targets(targets: tuple[str, ...], strict: bool) -> tuple[list[str], bool]:
    """Targets with a plain FILE replaced by the models in it; whether a plain file was refused."""
    from convaudit.discovery import models_in

    named, lost = [], False
    for target in targets:
        if target.endswith(".py") and Path(target).is_file():
            found, problem = models_in(Path(target))
            if problem is not None:
                click.echo(f"convaudit: {problem}", err=True)
                lost = lost or strict or "syntax error" in problem
            named += [f"{target}:{name}" for name in found]
        else:
            named.append(target)
    return named, lost


def _report(name: str) -> Any:
    from convaudit import registry

    name = {"md": "markdown"}.get(name, name)
    found = registry.reports()
    if name not in found:
        raise UsageError(f"unknown format {name!r}; one of {', '.join(sorted(found))}")
    return found[name]


def _report_for(path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"-o {path}: the format comes from the suffix: one of {', '.join(SUFFIXES)}")
    return _report(SUFFIXES[path.suffix])


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise ReportError(f"-o {path}: is a directory")
    if not path.parent.is_dir():
        raise ReportError(f"-o {path}: no such directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ReportError(f"-o {path}: {path.parent} is not writable")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ReportError(f"{path}: cannot be written: {error.strerror}") from error


@cli.command()
@click.argument("target")
@_audit_options
@click.option("--depth", type=click.IntRange(1), help="Sum layers below this depth.")
@click.option("--sort", type=click.Choice(["macs", "parameters", "flops"]))
def show(target: str, depth: int | None, sort: str | None, jobs: int, timeout: float, **options: Any) -> None:
    """Print the layer table of one model."""
    from convaudit.pool import Pool

    pool = Pool(1)
    try:
        result = _run(pool, [target], _settings(options, (target,)), options, timeout)
    finally:
        pool.close()
    found = result.targets[0]
    if found.error is not None:
        raise UsageError(f"{target}: {found.error.message}")
    rows: dict[tuple[str, int | None], list[Any]] = {}
    for layer in found.layers:
        name = ".".join(layer.name.split(".")[:depth]) if depth else layer.name
        row = rows.setdefault((name, None if depth else layer.call), [name, layer.op, layer.output_shapes, 0, 0, 0])
        row[2] = layer.output_shapes or row[2]
        for index, value in ((3, layer.parameters), (4, layer.macs), (5, layer.flops)):
            row[index] = None if value is None or row[index] is None else row[index] + value
    table = list(rows.values())
    if sort:
        column = {"parameters": 3, "macs": 4, "flops": 5}[sort]
        table.sort(key=lambda row: -(row[column] or 0))
    shown = [
        [r[0] or "(model)", r[1], str(r[2][0]) if r[2] else "-", *("?" if v is None else f"{v:,}" for v in r[3:])]
        for r in table
    ]
    totals = found.totals
    shown.append(["total", "", "", f"{totals.parameters:,}", f"{totals.macs or 0:,}", f"{totals.flops or 0:,}"])
    head = ["layer", "type", "output", "parameters", "MACs", f"FLOPs ({found.flop_convention})"]
    widths = [max(len(row[i]) for row in [head, *shown]) for i in range(6)]
    for row in [head, *shown]:
        click.echo("  ".join(v.ljust(w) if i < 3 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths))).rstrip())


@cli.command()
@click.argument("code", required=False)
def rule(code: str | None) -> None:
    """Explain a rule; without a code, list all."""
    from convaudit import registry

    rules = registry.rules()
    if code is None:
        for known, found in rules.items():
            click.echo(f"{known}  {found.name:<28} {found.severity:<8} {found.title()}")
        return
    chosen = next((r for c, r in rules.items() if code in (c, r.name)), None)
    if chosen is None:
        import difflib

        near = difflib.get_close_matches(code, list(rules), 1, 0.4)
        raise UsageError(f"no rule {code!r}" + (f"; the nearest is {near[0]}" if near else ""))
    click.echo(f"{chosen.code} {chosen.name} ({chosen.severity})\n\n{chosen.documentation()}")


@cli.command()
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("convaudit-demo"), show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def demo(output_dir: Path, jobs: int) -> None:
    """Audit the article's networks and a few real ones; write report.html, report.md and report.json."""
    import importlib.util

    from convaudit.pool import Pool

    names = ("FCNetwork", "ConvNetwork", "FCNet", "BasicCNN", "ShallowWideNet", "DeepNarrowNet", "EfficientConvNet")
    shapes = {"FCNetwork": "1,1,28,28", "ConvNetwork": "1,1,28,28"}
    pool = Pool(jobs)
    try:
        settings = AuditSettings()
        output_dir.mkdir(parents=True, exist_ok=True)
        requests = [
            {
                "target": f"convaudit.networks:{n}",
                "input": [shapes.get(n, "1,3,32,32")],
                "settings": dataclasses.asdict(settings),
            }
            for n in names
        ]
        for package, real in (("torchvision", "vgg16"), ("timm", "resnet50"), ("timm", "efficientnet_b0")):
            if importlib.util.find_spec(package) is not None:
                requests.append({"target": f"{package}:{real}", "settings": dataclasses.asdict(settings)})
        import convaudit
        from convaudit.result import SCHEMA_VERSION, AuditResult, summarise

        found = pool.run(requests, 120.0, lambda _: None)
        result = AuditResult(SCHEMA_VERSION, convaudit.__version__, found, summarise(found))
    finally:
        pool.close()
    text = _report("text").render(result, color=sys.stdout.isatty())
    click.echo(text, nl=not text.endswith("\n"))
    for suffix, name in SUFFIXES.items():
        path = output_dir / f"report{suffix}"
        _write(path, _report(name).render(result))
        click.echo(f"wrote {path}")
    if result.summary.failed:
        sys.exit(2)


cli.add_command(calc)
