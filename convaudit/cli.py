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
from convaudit.diff import diff
from convaudit.errors import ConvauditError
from convaudit.explain import rule
from convaudit.pool import Pool
from convaudit.result import AuditResult, assemble
from convaudit.session import Run, audit_options, say, settings_of
from convaudit.settings import FAIL_ON, AuditSettings, at_least
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
@click.option("--format", "format_name", default="text", show_default=True, metavar="NAME", help="What to print: text, json, markdown, html, github, gitlab, sarif, junit, csv.")
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="Report file; repeats.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Accept the findings in this file.")
@click.option("--write-baseline", type=click.Path(path_type=Path), help="Accept today's findings: write them there.")
@click.option("--prune-baseline", is_flag=True, help="Take entries out of the baseline that match nothing any more.")
@click.option("--add-ignore", is_flag=True, help="Write an ignore comment for each finding at or above --fail-on.")
@click.option("--changed", is_flag=True, help="Targets are files of a commit: audit the models that import them too.")
@click.option("--allow-code", is_flag=True, help="Run model files of folders outside this repository.")
@click.option("--pretrained", is_flag=True, help="Lower findings that would break existing weights to info.")
@click.option("--dataset-size", type=click.IntRange(1))
@click.option("--require-complete", is_flag=True, help="A partial trace is an error.")
@click.option("--globals", "show_globals", is_flag=True, help="Of checkpoints: what loading would import, in place of the report.")
@click.option("--strict-pickle", is_flag=True, help="A checkpoint that holds classes (CNV610) is an error.")
@click.option("--max-pickle", type=click.IntRange(1), metavar="MB", help="Megabytes of one pickle that are read.  [default: 64]")
@click.option("--sha256", is_flag=True, help="Of checkpoints: the file's SHA-256 in the result (reads all of it).")
@click.option("--exit-zero", is_flag=True, help="Exit 0 whatever is found (never hides a 2).")
@click.option("--quiet", is_flag=True, help="Findings only, one line each.")
@click.option("--statistics", is_flag=True, help="Count findings by rule, in place of the report.")
@click.option("--show-settings", is_flag=True, help="Print the settings in force and stop.")
@click.option("--show", "show_what", type=click.Choice(["info"]))
def check(
    targets: tuple[str, ...], format_name: str, outputs: tuple[Path, ...], exit_zero: bool, quiet: bool, show_what: str | None,
    jobs: int, statistics: bool, show_settings: bool, show_globals: bool, changed: bool, allow_code: bool, add_ignore: bool, **options: Any,
) -> None:  # fmt: skip
    """Audit models (model.py:Net, model.py, a folder, package.module:factory, timm:NAME, torchvision:NAME) and checkpoints."""
    from convaudit import output
    from convaudit.selection import select

    settings = settings_of(options, targets)
    if show_settings:
        click.echo(settings.text(), nl=False)
        return
    if not targets and not changed:
        raise click.UsageError("Missing argument 'TARGETS...'.")
    selection = select(targets, settings, changed=changed, allow_code=allow_code)
    for line in selection.lines:
        say(line)
    try:
        run = Run(selection.targets, settings, options)
        with Pool(jobs) as pool:
            if not run.complete:
                pool.start()
            writers = [(path, output.report_for(path)) for path in outputs]
            report = output.report(format_name)
            for path in outputs:
                output.check_writable(path)
            if not run.complete:
                _name_broken_plugins()
            result = run.results(pool)
    except KeyboardInterrupt:
        click.echo("convaudit: interrupted", err=True)
        sys.exit(130)
    if not settings.strict:
        result = _without_unbuilt(result, selection.discovered)
    result = run.verdict(result, settings, options)
    if add_ignore:
        _add_ignore(result, settings)
        result = run.verdict(result, settings, {**options, "write_baseline": None, "prune_baseline": False})
    for path, writer in writers:
        output.write(path, writer.render(result))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not result.targets and format_name == "text":
        text = ""
    elif statistics:
        text = _statistics(result)
    elif show_globals:
        text = _globals(result)
    else:
        infos = show_what == "info" or settings.fail_on == "info"
        text = report.render(result, color=colour, show_info=infos, quiet=quiet)
    click.echo(text, nl=bool(text) and not text.endswith("\n"))
    output.append_job_summary(format_name, report, result)
    for failed in (t for t in result.targets if t.error is not None):
        assert failed.error is not None
        say(f"{failed.target}: {failed.error.message.removeprefix(f'{failed.target}: ')}")
    if result.summary.failed or selection.lost:
        sys.exit(2)
    sys.exit(0 if exit_zero else _exit_code(result, settings.fail_on))


def _name_broken_plugins() -> None:
    from convaudit import registry

    for problem in registry.load_problems():
        say(problem)


def _add_ignore(result: AuditResult, settings: AuditSettings) -> None:
    from convaudit import suppressions

    written, left = suppressions.add_comments(result, at_least(settings.fail_on) or ("error", "warning"))
    say(f"{written} finding{'s' * (written != 1)} ignored by comments that were written")
    for line in left:
        say(f"not written: {line}")


def _without_unbuilt(result: AuditResult, discovered: set[str]) -> AuditResult:
    """The result without models that nobody named and that cannot be audited by themselves: a line for each reason."""
    kept = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for target in result.targets:
        said = target.error.message if target.error is not None else None
        if said is None and target.totals is not None and not target.totals.parameters:
            said = "it has no parameters"
        if said is not None and target.target in discovered:
            file = target.target.partition(":")[0]
            reasons.setdefault((file, said.removeprefix(f"{target.target}: ")), []).append(target.target)
        else:
            kept.append(target)
    for (file, reason), names in reasons.items():
        say(f"{names[0]} is not audited: {reason}" if len(names) == 1 else f"{file}: {len(names)} models are not audited: {reason}")
    return assemble(kept)


def _statistics(result: AuditResult) -> str:
    """One line a rule: how often it spoke, most first."""
    counts: dict[tuple[str, str, str], int] = {}
    for finding in (f for t in result.targets for f in t.findings if f.suppressed is None):
        key = (finding.rule, finding.name, finding.severity)
        counts[key] = counts.get(key, 0) + 1
    return "".join(
        f"{count:>5}  {code}  {severity:<7}  {name}\n"
        for (code, name, severity), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _globals(result: AuditResult) -> str:
    """One line for each global of each checkpoint: tier, name, member, offset, and what it would be called with."""
    from convaudit.checkpoints.tiers import TIERS
    lines = []
    for target in result.targets:
        if target.checkpoint is None:
            continue
        rows = sorted(target.checkpoint.globals, key=lambda row: -TIERS.index(row.tier))
        lines.append(f"{target.target}: {len(rows)} globals" if rows else f"{target.target}: no globals")
        for row in rows:
            how = f"  called with {row.arguments}" if row.called else "  fetched"
            lines.append(f"  {row.tier:<10}  {row.name}  {row.member} at byte {row.offset:,}{how}")
    return "".join(_one_line(line) + "\n" for line in lines)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def _exit_code(result: AuditResult, fail_on: str) -> int:
    return int(any(getattr(result.summary, level) for level in at_least(fail_on)))


@cli.command("cache")
@click.argument("action", type=click.Choice(["clean", "dir"]))
def cache_command(action: str) -> None:
    """Empty the cache of results, or print its folder."""
    from convaudit import cache

    if action == "dir":
        click.echo(cache.folder())
    else:
        click.echo(f"removed {cache.clean()} entries from {cache.folder()}")


for _command in (show, diff, rule, calc, demo):
    cli.add_command(_command)
