"""One HTML file that opens offline: nothing is fetched, and it reads without its script.

Its Content-Security-Policy names the hashes of its own style and script, so nothing else can run in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING

from convaudit.result import AuditResult, Finding, LayerRow, TargetResult
from convaudit_reports import _figures, _language
from convaudit_reports._environment import page_environment, policy_hash
from convaudit_reports._language import gettext as _

if TYPE_CHECKING:
    from convaudit_reports._charts import Cost
    from convaudit_reports._source import Quote, Sources
    from convaudit_reports._structure import Run

NAME = "html"
SUFFIX = ".html"
DETAILED = 50
"""With more targets than this, only the :data:`WORST` are shown in detail."""
WORST = 20
OPEN = 3
"""With more targets than this, each is folded."""
FOLD = 300
"""In a table of more layers than this, repeated blocks are folded."""


def render(result: AuditResult, *, lang: str = "en", source: bool = True, **_options: object) -> str:
    """The whole page. ``lang`` is its language; without ``source`` no line of source code is in it."""
    from markupsafe import Markup

    from convaudit_reports._source import Sources, public

    folder = files("convaudit_reports") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    environment = page_environment()
    with _language.speaking(lang):
        shown = _language.translated(public(result))
        views = list(_views(result, shown, Sources() if source else None))
        return environment.get_template("report.html.j2").render(
            result=shown,
            lang=lang,
            verdict=verdict(shown),
            views=views,
            detailed=[view for view in views if view.detailed],
            rules=_rules(shown),
            style=Markup(style),
            script=Markup(script),
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
        )


@dataclass(frozen=True)
class Advice:
    """A finding as the page shows it: ``id`` is its anchor."""

    id: str
    finding: Finding
    quote: Quote | None


@dataclass(frozen=True)
class View:
    """A target as the page shows it: ``id`` is its anchor."""

    id: str
    target: TargetResult
    advice: list[Advice]
    """Live findings, errors first, then the largest saving; after them the suppressed ones."""
    detailed: bool
    opened: bool

    @cached_property
    def structure(self) -> list[Run]:
        """The modules, repeated blocks folded."""
        from convaudit_reports._structure import folded

        return folded(self.target)

    @staticmethod
    def lanes(found: list[Run]) -> int:
        """Width of the rail beside the parts of one module, in lanes; −1: no rail."""
        from convaudit_reports._structure import width

        return width(found)

    @cached_property
    def costs(self) -> list[Cost]:
        """The pictures of where the cost is."""
        from convaudit_reports import _charts

        return _charts.costs(self.target)

    @cached_property
    def depth(self) -> list[str]:
        """The picture along the depth, in each width."""
        from convaudit_reports import _charts

        return _charts.depth(self.target)

    @cached_property
    def shows_fields(self) -> bool:
        """Whether receptive fields are in the picture along the depth."""
        from convaudit_reports import _charts

        return _charts.shows_fields(self.target)

    @cached_property
    def unbounded_from(self) -> str:
        """The first layer that attention lets see everything."""
        from convaudit_reports import _charts

        return _charts.unbounded_from(self.target)

    @cached_property
    def live(self) -> list[Advice]:
        """What is not suppressed."""
        return [advice for advice in self.advice if advice.finding.suppressed is None]

    @cached_property
    def suppressed(self) -> list[Advice]:
        """What is."""
        return [advice for advice in self.advice if advice.finding.suppressed is not None]

    def anchor(self, finding: Finding) -> str:
        """Anchor of a live finding."""
        return next(advice.id for advice in self.live if advice.finding is finding)

    @cached_property
    def repeated(self) -> dict[int, Run | None]:
        """Of a long layer table: the rows that are folded, by id, and the run that ends a row before a fold."""
        from convaudit_reports._structure import repeats

        marks: dict[int, Run | None] = {}
        place = {id(row): index for index, row in enumerate(self.target.layers)}
        for run in repeats(self.structure) if len(place) > FOLD else ():
            marks |= {id(row): None for part in run.parts[1:] for row in part.all_rows}
            marks[max(map(id, run.first.all_rows), key=place.__getitem__)] = run
        return marks

    def folds(self, row: LayerRow) -> bool:
        """Whether a repeated block's row is folded."""
        return self.repeated.get(id(row), row) is None

    def ends(self, row: LayerRow) -> Run | None:
        """The run of repeated blocks whose first ends with this row."""
        return self.repeated.get(id(row))

    @staticmethod
    def rest(run: Run) -> dict[str, int | None]:
        """Sums of what is folded; None where any part is not known."""
        rows = [row for part in run.parts[1:] for row in part.all_rows if row.call is not None]
        sums: dict[str, int | None] = {"parameters": sum(part.parameters for part in run.parts[1:])}
        for name in ("macs", "flops", "activation_bytes"):
            known = [getattr(row, name) for row in rows]
            sums[name] = None if None in known else sum(known)
        return sums

    @cached_property
    def saved(self) -> int:
        """Parameters that the best finding saves."""
        return _figures.best_saving(self.target)

    @property
    def weight(self) -> int:
        """Sorts targets by their findings."""
        failed, errors, warnings = (-part for part in _figures.badness(self.target)[:3])
        return failed * 10**9 + errors * 10**6 + warnings * 10**3 + len(_figures.live(self.target, "info"))

    @cached_property
    def not_called(self) -> list[LayerRow]:
        """Modules that never ran."""
        return [row for row in self.target.layers if row.call is None and row.kind == "module"]


def _views(original: AuditResult, shown: AuditResult, sources: Sources | None) -> Iterator[View]:
    targets = shown.targets
    worst = set(_figures.worst(targets, WORST if len(targets) > DETAILED else len(targets)))
    for index, (target, first) in enumerate(zip(targets, original.targets)):
        quotes = {
            id(finding): sources.quote(before.location)
            for finding, before in zip(target.findings, first.findings)
            if sources is not None
        }
        name = f"t{index + 1}"
        ordered = [*_figures.live(target), *(f for f in target.findings if f.suppressed is not None)]
        advice = [Advice(f"{name}-f{i + 1}", finding, quotes.get(id(finding))) for i, finding in enumerate(ordered)]
        yield View(name, target, advice, index in worst, len(targets) <= OPEN)


def verdict(result: AuditResult) -> str:
    """The whole run in one sentence."""
    summary = result.summary
    if summary.targets == summary.failed == 1:
        return _("Could not be audited.")
    found = _figures.severities(summary.error, summary.warning, summary.info)
    text = _(", ").join(found.values()) or _("No findings")
    if summary.failed and summary.targets > 1:
        text += _("; {} could not be audited").format(summary.failed)
    best = max((f for t in result.targets for f in _figures.live(t)), key=_figures.saved_parameters, default=None)
    if best is not None and best.saving is not None and summary.targets == 1 and _figures.saved_parameters(best) > 0:
        saved = _figures.change(*best.saving.parameters).lstrip("−")
        text += _("; following {rule} saves {share} of the parameters").format(rule=best.rule, share=saved)
    return text + _(".")


def _rules(result: AuditResult) -> dict[str, dict[str, str]]:
    """Of each rule that fired, the sections of its documentation that a reader needs."""
    from convaudit.registry import rules

    codes = {finding.rule for target in result.targets for finding in target.findings}
    known = rules() if codes else {}
    headings = ("Why it matters", "Exceptions")
    return {
        code: {heading: _language.documented(_figures.section(known[code].documentation(), heading)) for heading in headings}
        for code in codes & set(known)
    }
