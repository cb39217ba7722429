"""What the report formats share: human numbers, safe text, and where a model's cost lies.

Everything here is computed from the result's plain data; nothing imports torch.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from convaudit.result import (
    AuditResult,
    CheckpointInfo,
    Finding,
    GlobalRow,
    InputInfo,
    KernelGallery,
    KernelRow,
    LayerRow,
    Location,
    Saving,
    TargetResult,
)
from convaudit_reports._language import N_, ngettext
from convaudit_reports._language import gettext as _

CONVENTIONS = {
    "fvcore": N_("fvcore convention: one FLOP per multiply-add"),
    "two-per-mac": N_("two FLOPs per multiply-accumulate"),
}
ELSEWHERE = "no resolution"
"""Stage of the rows that have no shape: bare parameters, checkpoints."""
IDLE = "not called"
"""Stage of the modules that never ran."""

_LAST_AXIS_NORMS = ("layernorm", "layer_norm", "rmsnorm", "rms_norm")


# Safe text


def clean(text: str) -> str:
    """``text`` with control, format and other invisible characters written as escapes, so that it stays one line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _invisible(c) else c for c in text)


def plain_json(text: str) -> str:
    """JSON whose strings have such characters as ``\\u`` escapes: the same values, and nothing that a terminal obeys."""
    return _NO_ASCII.sub(lambda c: _UNIT.sub(r"\\u\1", c[0].encode("utf-16-be").hex()) if _invisible(c[0]) else c[0], text)


def one_line(text: str) -> str:
    """A message on one line: runs of white space become one space, then as :func:`clean`."""
    return clean(" ".join(text.split()))


def shorten(text: str, limit: int) -> str:
    """``text``, its middle left out where it is longer than ``limit``."""
    if limit <= 0 or len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


_NO_ASCII, _UNIT = re.compile("[\x7f-\U0010ffff]"), re.compile("(....)")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


# Numbers


def count(number: int | None) -> str:
    """Exact, with thousands separators; ``None`` is "not known"."""
    return _("not known") if number is None else f"{number:,}"


def short(number: int | None) -> str:
    """Three digits and a unit: 11.7M, 1.82G."""
    return _("not known") if number is None else _scaled(number, ("", "k", "M", "G", "T", "P", "E"))


def size(number: int | None) -> str:
    """Bytes in decimal units: 25.6 MB."""
    return _("not known") if number is None else _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB", " EB"))


def _scaled(number: int, units: Sequence[str]) -> str:
    if abs(number) < 1000:
        return f"{number}{units[0]}"
    power = min(int(math.log10(abs(number)) + 1e-12) // 3, len(units) - 1)
    value = number / 1000**power
    if abs(value) >= 999.5 and power + 1 < len(units):
        power, value = power + 1, value / 1000
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}{units[power]}"


def percent(part: float, whole: float) -> str:
    """``part`` as a share of ``whole``: 12.3%."""
    if not whole:
        return "0%" if not part else ""
    share = 100 * part / whole
    return "<0.1%" if 0 < share < 0.05 else f"{share:.1f}%"


def change(before: int, after: int) -> str:
    """The relative change, signed: −77.0%. Empty where ``before`` is 0."""
    if not before:
        return ""
    relative = 100 * (after - before) / before
    if after == before:
        return "±0%"
    sign = "−" if after < before else "+"
    return f"{sign}<0.1%" if abs(relative) < 0.05 else f"{sign}{abs(relative):,.1f}%"


def shape(dimensions: Iterable[int]) -> str:
    """1×3×224×224; a scalar is ()."""
    return "×".join(str(d) for d in dimensions) or "()"


def shapes(rows: Iterable[Iterable[int]] | None) -> str:
    """Several shapes, separated by commas; empty where not known."""
    return "" if rows is None else ", ".join(shape(s) for s in rows)


def receptive_field(value: list[int] | str | None) -> str:
    """19×19, "unbounded", or empty where not known."""
    return "" if value is None else _(value) if isinstance(value, str) else shape(value)


def signed(value: object, form: str = "") -> str:
    """A number with a minus sign in place of a hyphen: −0.125."""
    return format(value, form).replace("-", "−")


def at_least(target: TargetResult, *, activations: bool = False) -> str:
    """``"≥ "`` before MACs and FLOPs that are lower bounds; activations are where the model was followed in part."""
    if target.totals is None or (target.totals.activation_bytes if activations else target.totals.macs) is None:
        return ""
    return "≥ " if target.status == "partial" or (not activations and lower_bound(target)) else ""


def plural(number: int, word: str) -> str:
    """1 warning, 2 warnings."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


# Parts of a result


def place(location: Location | None) -> str:
    """``path:line``, escaped; empty where there is no location."""
    return "" if location is None else f"{clean(location.path)}:{location.line}"


def layers_of(finding: Finding, limit: int = 4) -> str:
    """The finding's layers, the rest counted."""
    names = [clean(name) or _("(model)") for name in finding.layers]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (_(" and {} more").format(more) if more > 0 else "")


def inputs(infos: Sequence[InputInfo]) -> str:
    """``1×3×224×224 float32``, with "inferred" where nobody gave it."""
    guessed = _(" (inferred)")
    return ", ".join(f"{shape(i.shape)} {clean(i.dtype)}{guessed * (i.source == 'inferred')}" for i in infos)


@dataclass(frozen=True)
class Step:
    """One figure before and after an advised rewrite."""

    label: str
    before: str
    after: str
    change: str
    kept: float
    """What stays, in per cent of before (at most 100): the length of a bar."""
    smaller: bool

    def __str__(self) -> str:
        return f"{self.label} {self.before} → {self.after}" + (_(" ({})").format(self.change) if self.change else "")


def steps(saving: Saving | None) -> list[Step]:
    """The figures of a saving that are known."""
    if saving is None:
        return []
    rows: list[tuple[str, tuple[int, int] | None, Callable[[int], str]]] = [
        (_("parameters"), saving.parameters, count),
        (_("MACs"), saving.macs, short),
        (_("peak activations"), saving.peak_activation_bytes, size),
    ]
    return [
        Step(
            label,
            form(pair[0]),
            form(pair[1]),
            change(*pair),
            min(100.0, 100 * pair[1] / pair[0]) if pair[0] else 0.0,
            pair[1] < pair[0],
        )
        for label, pair, form in rows
        if pair is not None
    ]


def saved_parameters(finding: Finding) -> int:
    """Parameters that following the advice saves; 0 where nothing was measured."""
    return finding.saving.parameters[0] - finding.saving.parameters[1] if finding.saving else 0


def best_saving(target: TargetResult) -> int:
    """Parameters that its best finding saves."""
    return max(map(saved_parameters, live(target)), default=0)


def badness(target: TargetResult) -> tuple[int, ...]:
    """Sorts the worst first: not audited, then errors, warnings, what could be saved."""
    counts = [len(live(target, level)) for level in ("error", "warning")]
    return (-(target.status == "failed"), *(-count for count in counts), -best_saving(target))


def worst(targets: Sequence[TargetResult], limit: int) -> list[int]:
    """Places of the ``limit`` worst, in order."""
    return sorted(sorted(range(len(targets)), key=lambda at: badness(targets[at]))[:limit])


def live(target: TargetResult, *severities: str) -> list[Finding]:
    """Findings that are not suppressed, errors first, the largest saving first."""
    order = {"error": 0, "warning": 1, "info": 2}
    found = [f for f in target.findings if f.suppressed is None and (not severities or f.severity in severities)]
    return sorted(found, key=lambda f: (order[f.severity], -saved_parameters(f), f.rule))


def same_place(leader: Finding, other: Finding) -> bool:
    """Whether ``other`` speaks of the layer that ``leader`` is about."""
    if not leader.layers or not other.layers:
        return False
    return other.layers[0] == leader.layers[0] or set(other.layers) <= set(leader.layers)


def grouped(findings: Sequence[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Findings by the layer they share: the first of each group, and those that stand on the same layer."""
    rest, groups = list(findings), []
    while rest:
        leader = rest.pop(0)
        others = [f for f in rest if f.rule != leader.rule and same_place(leader, f)]
        rest = [f for f in rest if not any(f is other for other in others)]
        groups.append((leader, others))
    return groups


def command(result: AuditResult, target: TargetResult) -> str:
    """The shell line that repeats this audit."""
    words = ["convaudit", "check", target.target, *target.options]
    given = {"--input", "--input-from", "--submodule", "--model"} & set(target.options)  # else the inputs are not its own
    for info in target.inputs if not given else ():
        words += ["--input", (",".join(map(str, info.shape)) or "()") + _dtype_suffix(info.dtype)]
    if target.flop_convention != "fvcore" and "--flop-convention" not in target.options:
        words += ["--flop-convention", target.flop_convention]
    return clean(shlex.join(words))


def versions(result: AuditResult, target: TargetResult) -> list[str]:
    """What the audit ran with: convaudit 0.1.0, Python 3.11.7, torch 2.13.0, timm 1.0.31."""
    held = {"convaudit": result.convaudit_version, **target.versions}
    return [clean(f"{'Python' if name == 'python' else name} {number}") for name, number in held.items()]


def _dtype_suffix(dtype: str) -> str:
    return "" if dtype == "float32" else f":{dtype}"


def reasons(result: AuditResult) -> dict[str, str]:
    """Why each rule that fired matters: the first paragraph of that section of its documentation."""
    found: dict[str, str] = {}
    codes = {finding.rule for target in result.targets for finding in target.findings}
    if not codes:
        return found
    from convaudit.registry import rules

    known = rules()
    for code in codes & set(known):
        text = section(known[code].documentation(), "Why it matters")
        if text:
            found[code] = text
    return found


def section(documentation: str, heading: str) -> str:
    lines = iter(documentation.splitlines())
    for line in lines:
        if line.strip("#:*=- ") == heading:
            break
    paragraph: list[str] = []
    for line in lines:
        text = line.strip()
        if text and not text.strip("=-~"):  # an underline
            continue
        if not text and paragraph:
            break
        if text:
            paragraph.append(text)
    return " ".join(paragraph)


# Where the cost lies


@dataclass
class Share:
    """The cost of some rows of the layer table."""

    label: str
    rows: int = 0
    parameters: int = 0
    macs: int = 0
    activation_bytes: int = 0
    uncounted: int = 0
    """Rows that ran and whose MACs are not known."""
    resolutions: set[str] = field(default_factory=set)

    def add(self, row: LayerRow) -> None:
        """Count one row in."""
        self.rows += 1
        self.parameters += row.parameters
        self.macs += row.macs or 0
        self.activation_bytes += row.activation_bytes or 0
        self.uncounted += row.macs is None and row.call is not None


@dataclass(frozen=True)
class Bar:
    """A share ready to draw; widths in per cent of the largest of its chart."""

    label: str
    title: str
    parameters: str
    parameter_share: str
    parameter_width: float
    macs: str
    mac_share: str
    mac_width: float


def by_stage(target: TargetResult) -> list[Share]:
    """Cost by output resolution, in order of first use, vectors last; rows without a shape of their own go with the row before."""
    batch = next((i.shape[0] for i in target.inputs if i.shape), 1) or 1
    found: dict[int | str, Share] = {}
    names: dict[int | str, str] = {}
    before: int | None = None
    for row in target.layers:
        key: int | str = IDLE if row.call is None else ELSEWHERE
        if row.call is not None and row.kind != "parameter":
            here, name = positions(row, batch, before)
            if here is not None:
                before = key = here
                if name and (key not in names or "×" not in names[key]):
                    names[key] = name
        found.setdefault(key, Share("")).add(row)
    for key, share in found.items():
        share.label = key if isinstance(key, str) else names.get(key, "vector" if key == 1 else _in_a_row(key))
    return sorted(found.values(), key=lambda s: (s.label in (ELSEWHERE, IDLE), s.label == "vector"))


def positions(row: LayerRow, batch: int, before: int | None) -> tuple[int | None, str]:
    """How many positions a row's output has, and their name where its axes show it."""
    output = row.output_shapes[0] if row.output_shapes else None
    if not output or (row.kind == "norm" and before is not None):  # of tokens, of windows, or of weights
        return before, ""
    last_axis = row.kind in ("linear", "embedding", "recurrent") or row.op.lower().startswith(_LAST_AXIS_NORMS)
    spatial = row.kind in ("conv", "pool", "upsample", "norm") and not last_axis
    if not last_axis and not spatial and before is not None:
        return before, ""
    if last_axis:
        number = max(1, math.prod(output[:-1]) // batch)
        return number, _name(output[1:-1]) if math.prod(output[1:-1]) == number else ""
    if len(output) < 3:
        return 1, ""
    return max(1, math.prod(output[2:])), _name(output[2:])


def _name(axes: Sequence[int]) -> str:
    if math.prod(axes) == 1:
        return "vector"
    return shape(axes) if len(axes) > 1 else _in_a_row(axes[0])


def _in_a_row(number: int) -> str:
    return ngettext("{} position", "{} positions", number).format(count(number))


def by_module(target: TargetResult) -> list[Share]:
    """Cost by top-level module; where all of it lies in one, by the modules inside that one."""
    depth = 1
    while True:
        found: dict[str, Share] = {}
        for row in target.layers:
            parts = row.name.split(".")[:depth]
            label = clean(".".join(parts)) or "(model)"
            found.setdefault(label, Share(label)).add(row)
        costly = [s for s in found.values() if s.parameters or s.macs]
        deeper = any(len(row.name.split(".")) > depth for row in target.layers)
        if len(costly) != 1 or not deeper or depth == 4:
            return list(found.values())
        depth += 1


def by_layer(target: TargetResult) -> list[Share]:
    """Cost by layer, all calls of one layer together."""
    found: dict[str, Share] = {}
    for row in target.layers:
        label = clean(row.name) or "(model)"
        found.setdefault(label, Share(label)).add(row)
    return list(found.values())


def bars(shares: Sequence[Share], limit: int, *, largest_first: bool = False) -> list[Bar]:
    """Bars for the shares that cost something, at most ``limit``; what is left out stands in a last bar."""
    macs, parameters = sum(s.macs for s in shares), sum(s.parameters for s in shares)

    def weight(share: Share) -> float:
        return max(share.macs / macs if macs else 0, share.parameters / parameters if parameters else 0)

    costly = [s for s in shares if s.parameters or s.macs or s.uncounted]
    ranked = sorted(costly, key=weight, reverse=True)
    kept = ranked if len(ranked) <= limit else ranked[: limit - 1]
    if not largest_first:
        kept = [s for s in costly if any(s is k for k in kept)]
    rest = [s for s in costly if not any(s is k for k in kept)]
    if rest:
        other = Share(f"{len(rest):,} others")
        for share in rest:
            other.rows += share.rows
            other.parameters += share.parameters
            other.macs += share.macs
            other.uncounted += share.uncounted
        kept = [*kept, other]
    most_macs = max((s.macs for s in kept), default=0) or 1
    most_parameters = max((s.parameters for s in kept), default=0) or 1
    return [
        Bar(
            label=s.label,
            title=f"{s.label}: {count(s.macs)} MACs ({percent(s.macs, macs)}), {count(s.parameters)} parameters "
            f"({percent(s.parameters, parameters)}), {plural(s.rows, 'row')} of the layer table"
            + (f", MACs of {s.uncounted} not known" if s.uncounted else ""),
            parameters=short(s.parameters),
            parameter_share=percent(s.parameters, parameters),
            parameter_width=100 * s.parameters / most_parameters,
            macs=("≥ " if s.uncounted else "") + short(s.macs),
            mac_share=percent(s.macs, macs),
            mac_width=100 * s.macs / most_macs,
        )
        for s in kept
    ]


def tally(error: int, warning: int, info: int) -> str:
    """1 error, 2 warnings and 1 info; empty where there is none."""
    parts = list(severities(error, warning, info).values())
    return _("{} and {}").format(_(", ").join(parts[:-1]), parts[-1]) if len(parts) > 1 else "".join(parts)


def severities(error: int, warning: int, info: int) -> dict[str, str]:
    """The findings of each severity, counted; none where there are none."""
    forms = {
        "error": (error, ngettext("{} error", "{} errors", error)),
        "warning": (warning, ngettext("{} warning", "{} warnings", warning)),
        "info": (info, ngettext("{} info", "{} infos", info)),
    }
    return {severity: form.format(f"{number:,}") for severity, (number, form) in forms.items() if number}


def tally_of(target: TargetResult) -> str:
    """The target's live findings, counted."""
    found = [finding.severity for finding in live(target)]
    return tally(found.count("error"), found.count("warning"), found.count("info")) or _("no findings")


def verdict(result: AuditResult) -> str:
    """The whole run in one sentence."""
    summary = result.summary
    text = tally(summary.error, summary.warning, summary.info) or "No findings"
    where = f" in {plural(summary.targets, 'target')}" if summary.targets != 1 else ""
    number = f"{summary.failed} " if summary.targets != 1 else ""
    failed = f"; {number}could not be audited" if summary.failed else ""
    return f"{text}{where}{failed}."


def lower_bound(target: TargetResult) -> str:
    """Why the totals are lower bounds; empty where they are not."""
    if target.totals is None:
        return ""
    why = []
    if target.status == "partial":
        why.append(_("part of the model could not be followed"))
    ops = len(target.totals.uncounted_ops)
    if ops:
        why.append(ngettext("{} op without a formula", "{} ops without a formula", ops).format(ops))
    return _(" and ").join(why)


# Checkpoints


@dataclass
class Part:
    """The tensors of one role and dtype; ``elements`` and ``bytes`` are None where those of any are not known."""

    role: str
    dtype: str
    tensors: int = 0
    elements: int | None = 0
    bytes: int | None = 0
    """Of storage; what several tensors share counts for the first."""


def by_role(checkpoint: CheckpointInfo) -> list[Part]:
    """Tensors by role and dtype, in order of first use."""
    found: dict[tuple[str, str], Part] = {}
    storages: set[str] = set()
    for row in checkpoint.tensors:
        part = found.setdefault((row.role, row.dtype), Part(row.role, clean(row.dtype)))
        part.tensors += 1
        part.elements = None if row.shape is None or part.elements is None else part.elements + math.prod(row.shape)
        if row.storage is None or row.storage not in storages:
            part.bytes = None if row.bytes is None or part.bytes is None else part.bytes + row.bytes
        if row.storage is not None:
            storages.add(row.storage)
    return list(found.values())


def by_tier(checkpoint: CheckpointInfo) -> dict[str, list[GlobalRow]]:
    """What loading would import, by tier, the worst first."""
    from convaudit.checkpoints.tiers import TIERS

    found: dict[str, list[GlobalRow]] = {}
    for row in sorted(checkpoint.globals, key=lambda row: -TIERS.index(row.tier)):
        found.setdefault(row.tier, []).append(row)
    return found


def kernel_picture(gallery: KernelGallery, kernel: KernelRow) -> list[tuple[str, str]]:
    """The pixels of a filter as (colour, SVG path), those of one colour together; empty where they are not known."""
    paths: dict[str, str] = {}
    area = gallery.height * gallery.width
    data = base64.b64decode(kernel.pixels or "")
    for at in range(area if data else 0):
        levels = [data[plane * area + at] >> 4 for plane in range(gallery.planes)]
        colour = "#" + "".join(f"{level:x}" for level in (levels * 3)[:3])
        paths[colour] = paths.get(colour, "") + f"M{at % gallery.width} {at // gallery.width}h1v1h-1z"
    return list(paths.items())
