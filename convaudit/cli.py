"""The command line. The parent process never imports torch; workers do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from convaudit import __version__
from convaudit.calc import calc
from convaudit.demo import demo
from convaudit.errors import ConvauditError
from convaudit.explain import rule
from convaudit.result import assemble
from convaudit.session import audit_options, run, settings_of
from convaudit.settings import FAIL_ON, AuditSettings
from convaudit.show import show


class _Group(click.Group):
    """Commands whose ConvauditErrors are one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConvauditError as error:
            click.echo(f"convaudit: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convaudit")
def cli() -> None:
    """Lint PyTorch architectures: what a model costs, what is wasteful, what each change saves."""


@cli.command()
@click.argument("targets", nargs=-1)
@audit_options
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
@click.option("--quiet", is_flag=True, help="Findings only, one line each.")
@click.option("--statistics", is_flag=True, help="Count findings by rule, in place of the report.")
@click.option("--show-settings", is_flag=True, help="Print the settings in force and stop.")
@click.option("--show", "show_what", type=click.Choice(["info"]))
def check(
    targets: tuple[str, ...], format_name: str, outputs: tuple[Path, ...], exit_zero: bool, quiet: bool, show_what: str | None,
    jobs: int, no_cache: bool, statistics: bool, show_settings: bool, **options: Any,
) -> None:  # fmt: skip
    """Audit models: model.py:Net, package.module:factory, timm:NAME, torchvision:NAME."""
    from convaudit import output, registry
    from convaudit.pool import Pool

    if show_settings:
        click.echo(settings_of(options, targets).text(), nl=False)
        return
    if not targets:
        raise click.UsageError("Missing argument 'TARGETS...'.")
    pool = Pool(jobs)
    try:
        settings = settings_of(options, targets)
        writers = [(path, output.report_for(path)) for path in outputs]
        report = output.report(format_name)
        for path in outputs:
            output.check_writable(path)
        named, lost = _named_targets(targets, settings)
        for problem in registry.load_problems():
            click.echo(f"convaudit: {problem}", err=True)
        result = run(pool, named, settings, options)
        if not settings.strict:
            result = _without_unbuilt(result, set(named) - set(targets))
    except KeyboardInterrupt:
        click.echo("convaudit: interrupted", err=True)
        sys.exit(130)
    finally:
        pool.close()
    for path, writer in writers:
        output.write(path, writer.render(result))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not result.targets and format_name == "text":
        text = ""
    elif statistics:
        text = _statistics(result)
    else:
        text = report.render(result, color=colour, show_info=show_what == "info", quiet=quiet)
    click.echo(text, nl=bool(text) and not text.endswith("\n"))
    for failed in (t for t in result.targets if t.error is not None):
        assert failed.error is not None
        click.echo(f"convaudit: {failed.target}: {failed.error.message}", err=True)
    if result.summary.failed or lost:
        sys.exit(2)
    sys.exit(0 if exit_zero else _exit_code(result, settings.fail_on))


def _without_unbuilt(result: Any, discovered: set[str]) -> Any:
    """The result without models that a plain FILE holds and that cannot be built by themselves: a line each."""
    kept = []
    for target in result.targets:
        error = target.error
        if error is not None and target.target in discovered and error.step in ("import", "construct", "input"):
            click.echo(f"convaudit: {target.target} is not audited: {error.message}", err=True)
        else:
            kept.append(target)
    return assemble(kept)


def _statistics(result: Any) -> str:
    """One line a rule: how often it spoke, most first."""
    counts: dict[tuple[str, str, str], int] = {}
    for finding in (f for t in result.targets for f in t.findings if f.suppressed is None):
        key = (finding.rule, finding.name, finding.severity)
        counts[key] = counts.get(key, 0) + 1
    return "".join(
        f"{count:>5}  {code}  {severity:<7}  {name}\n"
        for (code, name, severity), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _exit_code(result: Any, fail_on: str) -> int:
    levels = {"error": ("error",), "warning": ("error", "warning"), "info": ("error", "warning", "info"), "never": ()}
    return int(any(getattr(result.summary, level) for level in levels[fail_on]))


def _named_targets(targets: tuple[str, ...], settings: AuditSettings) -> tuple[list[str], bool]:
    """Targets with a plain FILE replaced by the models in it; whether a plain file was refused."""
    from convaudit.discovery import models_in

    named, lost = [], False
    for target in targets:
        if target.endswith(".py") and Path(target).is_file():
            configured = {
                table.match.rpartition(":")[2]
                for table in settings.target
                if table.args and table.fits(f"{target}:{table.match.rpartition(':')[2]}", settings.root)
            }
            found, problem = models_in(Path(target), configured)
            if problem is not None:
                click.echo(f"convaudit: {problem}", err=True)
                lost = lost or settings.strict or "syntax error" in problem
            named += [f"{target}:{name}" for name in found]
        else:
            named.append(target)
    return named, lost


for _command in (show, rule, calc, demo):
    cli.add_command(_command)
