"""``convaudit rule``: list the rules, explain one and run its own example, write the documentation pages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from convaudit import registry
from convaudit.errors import UsageError, unknown_rule
from convaudit.result import RULE_SET, Finding
from convaudit.rule import Rule
from convaudit.session import settings_of
from convaudit.settings import LANGUAGES


@click.command()
@click.argument("code", required=False)
@click.option("--format", "format_name", type=click.Choice(["text", "md"]), default="text", show_default=True)
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of what it says.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), help="With --format md: write a page for each rule there."
)
def rule(code: str | None, format_name: str, lang: str, output_dir: Path | None) -> None:
    """Explain a rule and run its own example; without a code, list all."""
    rules = registry.rules()
    with registry.report_part("_language").speaking(lang):
        _rule(rules, code, format_name, output_dir)


def _rule(rules: dict[str, type[Rule]], code: str | None, format_name: str, output_dir: Path | None) -> None:
    language = registry.report_part("_language")
    if format_name == "md" and code is None:
        _write_pages(rules, output_dir or Path("docs/rules"))
        return
    if code is None:
        settings = settings_of({}).of(".")
        for known, found in rules.items():
            state = "on " if settings.enabled(known, found.on_by_default(settings.rule_set)) else "off"
            click.echo(f"{known}  {found.name:<32} {found.severity:<8} {found.since or 'preview':<7}  {state}  {language.said(found.title())}")
        return
    chosen = next((r for c, r in rules.items() if code in (c, r.name)), None)
    if chosen is None:
        raise UsageError(f"no rule {code!r}{unknown_rule(code, rules, (r.name for r in rules.values()))}")
    if format_name == "md":
        click.echo(page(chosen), nl=False)
        return
    click.echo(f"{chosen.code} {chosen.name} ({language.gettext(chosen.severity)})\n\n{_documentation(chosen)}")
    (_run_file_example if chosen.subject == "checkpoint" else _run_example)(chosen)


def page(found: type[Rule]) -> str:
    """The documentation page of one rule, in Markdown."""
    _ = registry.report_part("_language").gettext
    options = dataclasses.fields(found.options)
    on = _("Default severity: {}, on.") if found.on_by_default(RULE_SET) else _("Default severity: {}, off until selected.")
    lines = [f"# {found.name} ({found.code})", "", on.format(_(found.severity))]
    if found.changes_state_dict is not None:
        changes = found.changes_state_dict
        lines[-1] += _(" Taking the advice changes the state_dict.") if changes else _(" Taking the advice keeps the state_dict.")
    lines += ["", _documentation(found)]
    if options:
        lines += ["", _("## Options"), ""]
        lines += [f"- `{option.name.replace('_', '-')}`" + _(" (default {})").format(option.default) for option in options]
    return "\n".join(lines) + "\n"


def _documentation(found: type[Rule]) -> str:
    language = registry.report_part("_language")
    title, _, text = found.documentation().partition("\n")
    return f"{language.said(title)}\n{language.documented(text)}"


def _write_pages(rules: dict[str, type[Rule]], folder: Path) -> None:
    from convaudit import output

    folder.mkdir(parents=True, exist_ok=True)
    for code, found in rules.items():
        output.write(folder / f"{code}.md", page(found))
    index = [f"- [{code}]({code}.md) {found.name}: {found.title()}" for code, found in rules.items()]
    output.write(folder / "README.md", "# Rules\n\n" + "\n".join(index) + "\n")
    click.echo(f"wrote {len(rules)} pages to {folder}")


def _run_file_example(found: type[Rule]) -> None:
    """A checkpoint rule's first BAD example, audited here."""
    import os
    import tempfile

    from convaudit.checkpoints.architecture import Expected
    from convaudit.checkpoints.audit import audit_file
    from convaudit.settings import AuditSettings

    for example in found.bad_files()[:1]:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"weights{example.suffix}")
            Path(path).write_bytes(example.build())
            model = Expected.of("a model", example.model) if example.model else None
            target = audit_file(path, AuditSettings(select=[found.code]), model=model)
        for finding in target.findings:
            _say(finding)


def _run_example(found: type[Rule]) -> None:
    """The rule's first BAD example, audited in a worker: its finding and what the advice saves."""
    from convaudit.pool import Pool
    from convaudit.session import ask
    from convaudit.settings import AuditSettings

    settings = dataclasses.asdict(AuditSettings(select=[found.code]))
    with Pool() as pool:
        target = ask(pool, [{"target": found.code, "rule_example": True, "settings": settings}], 60.0)[0].result
    if target.error is not None and target.error.type == "LookupError":
        return  # a rule about the audit itself
    if target.error is not None:
        click.echo(f"\nIts own example was not run: {target.error.message}")
        return
    for finding in target.findings:
        _say(finding)


def _say(finding: Finding) -> None:
    language, figures = registry.report_part("_language"), registry.report_part("_figures")
    _, said = language.gettext, language.said
    click.echo("\n" + _("On its own example it says: {}: {}").format(_(finding.severity), said(finding.message)))
    saved = _(", ").join(map(str, figures.steps(finding.saving)[:2]))
    advice = _(": ").join(part for part in (said(finding.suggestion), saved) if part)
    if advice:
        click.echo(f"  {advice}")
