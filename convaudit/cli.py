"""The command line. The parent process never imports torch; workers do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from convaudit import __version__
from convaudit.calc import calc
from convaudit.convert import convert
from convaudit.demo import demo
from convaudit.diff import diff
from convaudit.errors import ConvauditError
from convaudit.explain import rule
from convaudit.kernels import kernels
from convaudit.pool import Pool
from convaudit.result import AuditResult, note_lines
from convaudit.session import (
    Run,
    audit_options,
    name_broken_plugins,
    settings_of,
    unbuilt,
    without_unbuilt,
)
from convaudit.settings import FAIL_ON, LANGUAGES, Resolver
from convaudit.show import show
from convaudit.terminal import say, spelled


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
@click.option("--select", multiple=True, metavar="CODES", help="Run these rules alone: codes or their beginnings, by commas; repeats.")
@click.option("--extend-select", multiple=True, metavar="CODES", help="Run these rules as well.")
@click.option("--ignore", multiple=True, metavar="CODES", help="Do not run these rules.")
@click.option("--fail-on", type=click.Choice(FAIL_ON), help="Exit 1 for findings of this severity and above.  [default: warning]")
@click.option("--format", "format_name", default="text", show_default=True, metavar="NAME", help="What to print: text, json, markdown, html, github, gitlab, sarif, junit, csv.")
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="Report file; repeats.")
@click.option("--template", type=click.Path(path_type=Path), metavar="FILE", help="Jinja template of your own for the -o file, or for what is printed.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Accept the findings in this file.")
@click.option("--write-baseline", type=click.Path(path_type=Path), help="Accept today's findings: write them there.")
@click.option("--prune-baseline", is_flag=True, help="Take entries out of the baseline that match nothing any more.")
@click.option("--add-ignore", is_flag=True, help="Write an ignore comment for each finding at or above --fail-on.")
@click.option("--changed", is_flag=True, help="Targets are files of a commit: audit the models that import them too.")
@click.option("--allow-code", is_flag=True, help="Run model files of folders outside this repository.")
@click.option("--model", metavar="TARGET|auto", help="Of checkpoints: audit this model, and whether they fit it; auto knows timm's and torchvision's.")
@click.option("--pretrained", is_flag=True, help="Lower findings that would break existing weights to info.")
@click.option("--dataset-size", type=click.IntRange(1), help="Samples that the model is trained on: CNV104 compares parameters with them.")
@click.option("--require-complete", is_flag=True, help="A partial trace is an error.")
@click.option("--globals", "show_globals", is_flag=True, help="Of checkpoints: what loading would import, in place of the report.")
@click.option("--strict-pickle", is_flag=True, help="Classes in a checkpoint (CNV610) are an error; a TorchScript program stays info.")
@click.option("--max-pickle", type=click.IntRange(1), metavar="MB", help="Megabytes of one pickle that are read.  [default: 64]")
@click.option("--weights/--no-weights", default=None, help="Of checkpoints: read all weights, or headers alone.  [default: up to 2 GB]")
@click.option("--sha256", is_flag=True, help="Of checkpoints: the file's SHA-256 in the result (reads all of it).")
@click.option("--exit-zero", is_flag=True, help="Exit 0 whatever is found (never hides a 2).")
@click.option("--quiet", is_flag=True, help="Findings only, one line each.")
@click.option("--statistics", is_flag=True, help="Count findings by rule, in place of the report.")
@click.option("--show-settings", is_flag=True, help="Print the settings in force and stop.")
@click.option("--show", "show_what", type=click.Choice(["info"]), help="Findings of severity info in full.")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of text and html reports; data stays the same.")
@click.option("--no-source", is_flag=True, help="No line of source code in the html report.")
def check(
    targets: tuple[str, ...], format_name: str, outputs: tuple[Path, ...], template: Path | None, exit_zero: bool, quiet: bool, show_what: str | None, lang: str, no_source: bool,
    jobs: int | None, statistics: bool, show_settings: bool, show_globals: bool, changed: bool, allow_code: bool, add_ignore: bool, **options: Any,
) -> None:  # fmt: skip
    """Audit models (model.py:Net, model.py, a folder, package.module:factory, timm:NAME, torchvision:NAME) and checkpoints.

    Without TARGETS: the working directory, and the targets that its settings name in full.
    """
    from convaudit import output
    from convaudit.selection import select

    if template and not outputs and (statistics or show_globals):
        raise click.UsageError("--template, --statistics and --globals each print in place of the report: give one of them")
    if format_name != "text" and (statistics or show_globals):
        raise click.UsageError("--statistics and --globals print text in place of the report: leave out --format, or write it with -o")
    settings = settings_of(options)
    if show_settings:
        click.echo(settings.text(targets), nl=False)
        return
    selection = select(targets, settings, changed=changed, allow_code=allow_code)
    for line in selection.lines:
        say(line)
    try:
        run = Run(selection.targets, settings, options)
        with Pool(jobs) as pool:
            if not run.complete:
                pool.start()
            writers, report = output.chosen(outputs, format_name, template)
            for path in outputs:
                output.check_writable(path)
            if run.files or not run.complete:
                name_broken_plugins()
            result = run.results(pool)
    except KeyboardInterrupt:
        click.echo("convaudit: interrupted", err=True)
        sys.exit(130)
    result, lines = without_unbuilt(result, run.lenient(selection.discovered))
    for line in lines:
        say(line)
    if options["write_baseline"]:
        result = run.write_baseline(options["write_baseline"], result)
    else:
        if options["prune_baseline"]:
            run.prune_baselines(result, targets or (".",))
        result = run.judged(result)
    if changed and not targets:
        say("--changed: no files were given, so nothing was audited")
    if add_ignore:
        _add_ignore(result, settings)
        result = run.judged(result)
    result.notes = selection.notes
    for path, writer in writers:
        output.write(path, output.text_of(writer, result, lang=lang, source=not no_source))
    colour = not os.environ.get("NO_COLOR") and (sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR")))
    reads_notes = format_name == "text" and not (statistics or show_globals or template or quiet)
    if not result.targets and format_name == "text" and template is None and not (reads_notes and result.notes):
        text = ""
    elif statistics:
        text = _statistics(result)
    elif show_globals:
        text = _globals(result)
    else:
        infos = show_what == "info" or any(settings.of(t.target).fail_on == "info" for t in result.targets)
        text = output.text_of(report, result, color=colour, show_info=infos, quiet=quiet, lang=lang, source=not no_source)
    click.echo(text, nl=bool(text) and not text.endswith("\n"), color=colour)
    output.append_job_summary(format_name, report, result)
    for line in () if reads_notes else note_lines(result.notes):
        say(line)
    for failed in (t for t in result.targets if t.error is not None):
        if format_name != "text" or statistics or show_globals or template:  # the text report says it
            say(f"{failed.target}: {unbuilt(failed)}")
    if result.summary.failed or selection.lost or (run.steered and lines and not result.targets):
        sys.exit(2)
    sys.exit(0 if exit_zero else int(run.fails(result)))


def _add_ignore(result: AuditResult, settings: Resolver) -> None:
    from convaudit import suppressions

    written, left = suppressions.add_comments(result, settings.of)
    say("no findings to ignore" if not written else f"{written} finding{'s' * (written != 1)} ignored by comments that were written")
    for line in left:
        say(f"not written: {line}")


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
        lines.append(f"{target.target}: {len(rows):,} global{'s' * (len(rows) != 1)}" if rows else f"{target.target}: no globals")
        for row in rows:
            how = f"  called with {row.arguments}" if row.called else "  fetched"
            lines.append(f"  {row.tier:<10}  {row.name}  {row.member} at byte {row.offset:,}{how}")
    return "".join(spelled(line) + "\n" for line in lines)


@cli.command("cache")
@click.argument("action", type=click.Choice(["clean", "dir"]))
def cache_command(action: str) -> None:
    """Empty the cache of results, or print its folder."""
    from convaudit import cache

    if action == "dir":
        click.echo(cache.folder())
    else:
        removed = cache.clean()
        click.echo(f"removed {removed} {'entry' if removed == 1 else 'entries'} from {cache.folder()}")


for _command in (show, diff, convert, rule, calc, demo, kernels):
    cli.add_command(_command)
