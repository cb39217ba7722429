"""The difference of two results, as text for a screen, as Markdown for a pull request, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from convaudit.comparison import (
    Diff,
    Exceeded,
    Figure,
    FindingChange,
    Incomparable,
    LayerChange,
    TargetDiff,
    TensorChange,
)
from convaudit.result import LayerRow
from convaudit_reports import _figures, json
from convaudit_reports._environment import fitted
from convaudit_reports._figures import change, clean, count, one_line, plural, short, size
from convaudit_reports.markdown import cell, code, prose

LINES = 25
"""How many lines the text takes at most, unless all is asked for."""
NAMES = {
    "parameters": "parameters", "macs": "MACs", "flops": "FLOPs", "activation_bytes": "activations",
    "peak_activation_bytes": "peak activations", "parameter_bytes": "parameter bytes",
}  # fmt: skip
_AUDITS = {
    "input": "the inputs differ", "flop_convention": "FLOP conventions differ", "lower_bound": "totals cover",
    "rule_set": "rule sets differ", "convaudit_version": "convaudit versions differ",
    "torch_version": "torch versions differ",
}  # fmt: skip
_FIELDS = {
    "op": "type", "parameters": "parameters", "input_shapes": "input", "output_shapes": "output", "macs": "MACs",
    "flops": "FLOPs", "activation_bytes": "activations", "dtype": "dtype", "receptive_field": "receptive field",
    "kind": "kind",
}  # fmt: skip
"""Most telling first."""
SIGNS = {"new": "+", "unsuppressed": "+", "spread": "+", "fixed": "−", "suppressed": "−", "still": "="}
_WORDS = {"+": "added", "−": "removed", "~": "changed", "→": "renamed"}
_PER_LINE = 4


def render(diff: Diff, format_name: str, *, show_all: bool = False) -> str:
    """The difference in one of the formats ``text``, ``markdown`` and ``json``."""
    if format_name == "json":
        return json.dump(diff)
    return markdown(diff) if format_name == "markdown" else text(diff, show_all)


# What both forms say


@dataclass(frozen=True)
class Row:
    """A layer that was added, removed, changed or renamed."""

    sign: str
    name: str
    call: str
    facts: tuple[tuple[str, str, str], ...]
    """(what, before, after); before is empty where there is only one value."""
    weight: float


def figure_form(name: str) -> Callable[[int | None], str]:
    """How a figure is written."""
    return count if name == "parameters" else size if name.endswith("bytes") else short


def values(figure: Figure, target: TargetDiff) -> tuple[str, str]:
    """Before and after: short where that tells them apart, else exact; ≥ where a total is a lower bound."""
    form = figure_form(figure.name)
    before, after = form(figure.before), form(figure.after)
    if before == after and figure.before != figure.after:
        unit = " B" if figure.name.endswith("bytes") else ""
        before, after = f"{count(figure.before)}{unit}", f"{count(figure.after)}{unit}"
    bounds = [
        "≥ " if side.uncounted_ops or side.status == "partial" else "" for side in (target.old, target.new)
    ] if figure.name in ("macs", "flops") else ["", ""]  # fmt: skip
    return (
        bounds[0] + before if figure.before is not None else before,
        bounds[1] + after if figure.after is not None else after,
    )


def movement(figure: Figure) -> str:
    """+1,234 (+5.0%), with the arrow that shows where it went."""
    if figure.difference is None:
        return "not known"
    if not figure.difference:
        return "unchanged"
    form = figure_form(figure.name)
    amount = form(abs(figure.difference))
    share = change(figure.before or 0, figure.after or 0)
    sign, arrow = ("+", "▲") if figure.difference > 0 else ("−", "▼")
    return f"{arrow} {sign}{amount}" + (f" ({share})" if share else "")


def label(figure: Figure, target: TargetDiff) -> str:
    """The figure's name, with the convention it was counted by."""
    name = NAMES[figure.name]
    conventions = dict.fromkeys((target.old.flop_convention, target.new.flop_convention))
    return f"{name} ({' → '.join(conventions)})" if figure.name == "flops" else name


def reason(found: Incomparable) -> str:
    """Why figures are not comparable, without the text of either side."""
    inferred = ["(inferred)" in said for said in (found.before, found.after)]
    if found.what != "input" or not any(inferred):
        return _AUDITS[found.what]
    return "the inputs were inferred differently (give --input)" if all(inferred) else "the inputs differ, one is inferred (give --input)"


def scope(found: Incomparable) -> str:
    """The figures that say nothing for it."""
    names = ", ".join(NAMES[name] for name in found.figures)
    return f"{names} are not comparable" if names else "figures and findings may not be comparable"


def rows(target: TargetDiff) -> list[Row]:
    """Layers that differ, the largest difference first; renamed ones last."""
    layers = target.layers
    most = [max(target.figure(name).before or 0, target.figure(name).after or 0, 1) for name in ("parameters", "macs")]

    def weight(parameters: int, macs: int) -> float:
        return abs(parameters) / most[0] + abs(macs) / most[1]

    found = [
        Row(sign, row.name, _call(row.call), _facts(row), weight(row.parameters, row.macs or 0))
        for sign, group in (("+", layers.added), ("−", layers.removed))
        for row in group
    ]
    for layer in layers.changed:
        moved = {c.field: (c.after or 0) - (c.before or 0) for c in layer.changes if c.field in ("parameters", "macs")}
        found.append(
            Row("~", layer.name, _call(layer.call), _changes(layer), weight(moved.get("parameters", 0), moved.get("macs", 0)))
        )
    found.sort(key=lambda row: -row.weight)
    return found + [Row("→", r.before, "", (("", "", r.after),), 0.0) for r in layers.renamed]


def _call(call: int | None) -> str:
    return " (never called)" if call is None else f" (call {call + 1})" if call else ""


def _facts(row: LayerRow) -> tuple[tuple[str, str, str], ...]:
    facts = [("", "", row.op)]
    if row.output_shapes:
        facts.append(("output", "", _figures.shapes(row.output_shapes)))
    facts.append(("parameters", "", count(row.parameters)))
    if row.call is not None and (row.macs is not None or row.output_shapes is not None):
        facts.append(("MACs", "", short(row.macs)))
    return tuple(facts)


def _changes(layer: LayerChange) -> tuple[tuple[str, str, str], ...]:
    order = list(_FIELDS)
    changes = sorted(layer.changes, key=lambda c: order.index(c.field))
    if any(c.field in ("op", "macs", "output_shapes") for c in changes):  # these follow from them
        changes = [c for c in changes if c.field not in ("flops", "activation_bytes", "kind", "receptive_field")]
    return tuple((_FIELDS[c.field], *_both(c.field, c.before, c.after)) for c in changes)


def _both(field: str, before: Any, after: Any) -> tuple[str, str]:
    first, second = _value(field, before, short), _value(field, after, short)
    return (first, second) if first != second else (_value(field, before, count), _value(field, after, count))


def _value(field: str, value: Any, form: Callable[[int | None], str]) -> str:
    if value is None:
        return "not known"
    if field in ("input_shapes", "output_shapes"):
        return _figures.shapes(value) or "none"
    if field == "receptive_field":
        return _figures.receptive_field(value)
    if isinstance(value, int):
        return count(value) if field == "parameters" else form(value)
    return str(value)


def tally(target: TargetDiff) -> str:
    """2 layers added, 1 changed; empty where none differs."""
    layers = target.layers
    numbers = [
        (len(layers.added), "added"), (len(layers.removed), "removed"), (len(layers.changed), "changed"),
        (len(layers.renamed), "renamed"),
    ]  # fmt: skip
    return ", ".join(f"{number:,} {word}" for number, word in numbers if number)


def findings(target: TargetDiff, *statuses: str) -> list[FindingChange]:
    """Findings of some statuses, the most severe first."""
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted((f for f in target.findings if f.status in statuses), key=lambda f: order[f.severity])


def findings_tally(target: TargetDiff) -> str:
    """1 new, 2 fixed, 3 still there."""
    words = {
        "new": "new", "unsuppressed": "no longer suppressed", "spread": "spread to more layers", "fixed": "fixed",
        "suppressed": "newly suppressed", "still": "still there",
    }  # fmt: skip
    numbers = {status: len(findings(target, status)) for status in words}
    return ", ".join(f"{number:,} {words[status]}" for status, number in numbers.items() if number) or "none"


def severity(finding: FindingChange) -> str:
    """The severity, and what it was where it was another."""
    before = finding.severity_before
    return f"{before} → {finding.severity}" if before not in (None, finding.severity) else finding.severity


def figures(target: TargetDiff) -> list[Figure]:
    """The figures to show: of checkpoints those that are known."""
    return [f for f in target.figures if target.tensors is None or (f.before, f.after) != (None, None)]


def tensors(target: TargetDiff) -> str:
    """2 tensors added, 1 changed, 60 the same; empty where they are not two checkpoints."""
    found = target.tensors
    if found is None:
        return ""
    numbers = [(len(found.added), "added"), (len(found.removed), "removed"), (len(found.changed), "changed"), (found.same, "the same")]
    said = ", ".join(f"{number:,} {word}" for number, word in numbers if number) or "none"
    return said + (f"; values {found.values}" if found.values else "")


def unread(diff: Diff) -> list[str]:
    """Of the checkpoints without a difference, those whose values were not all compared, and why."""
    same = [(t.target, t.tensors.values) for t in diff.targets if not t.changed and t.tensors is not None]
    return [f"{target}: values {values}" for target, values in same if values]


def tensor_rows(target: TargetDiff) -> list[Row]:
    """Tensors that differ."""
    found = target.tensors
    if found is None:
        return []
    return [
        *(Row("+", name, "", (), 0) for name in found.added),
        *(Row("−", name, "", (), 0) for name in found.removed),
        *(Row("~", change.name, "", _tensor_facts(change), 0) for change in found.changed),
    ]


def _tensor_facts(change: TensorChange) -> tuple[tuple[str, str, str], ...]:
    def shown(value: Any) -> str:
        return _figures.shapes([value]) if isinstance(value, list) else "not known" if value is None else str(value)

    facts = [(c.field, shown(c.before), shown(c.after)) for c in change.changes]
    most = f" by up to {change.largest:.3g}" if change.largest is not None else ", NaN or infinity among them"
    if change.differing is not None:
        facts.append(("", "", f"{plural(change.differing, 'element')} differ{'s' * (change.differing == 1)}{most}"))
    return tuple(facts or [("", "", "values differ")])


def state_dict(target: TargetDiff) -> str:
    """What keeps old weights from loading, in numbers; empty where nothing does, or where tensors say it."""
    if target.tensors is not None:
        return ""
    keys = target.state_dict
    numbers = [(len(keys.added), "new"), (len(keys.removed), "gone"), (len(keys.resized), "of another size")]
    said = ", ".join(f"{number:,} {word}" for number, word in numbers if number)
    return f"layers with parameters: {said}; old weights do not load as they are" if said else ""


def judged(limit: Exceeded) -> str:
    """What a limit that is not kept says, without the target's name."""
    name = NAMES[limit.figure]
    if limit.reason is not None:
        return f"{limit.limit} cannot be judged: {name}: {limit.reason}"
    form = figure_form(limit.figure)
    before, after = form(limit.before), form(limit.after)
    if before == after:
        before, after = count(limit.before), count(limit.after)
    share = change(limit.before or 0, limit.after or 0)
    return f"{name} {before} → {after}{f' ({share})' if share else ''} is more than {limit.limit} allows"


def limit_line(limit: Exceeded) -> str:
    """A limit that is not kept, on one line."""
    return f"{clean(limit.target)}: {judged(limit)}"


def finding_line(target: str, finding: FindingChange) -> str:
    """A finding that OLD does not have, on one line."""
    return f"{clean(target)}: {finding.status} {_finding(finding)}"


# Text


def text(diff: Diff, show_all: bool = False) -> str:
    """At most :data:`LINES` lines unless ``show_all``: figures, then findings, then layers."""
    lines = [f"{clean(diff.old.label)} → {clean(diff.new.label)}", *_sides(diff)]
    changed = [t for t in diff.targets if t.changed]
    rest = _rest(diff)
    if len(changed) == 1 and not show_all:
        room = LINES - len(lines) - len(rest) - (len(diff.targets) > 1)
        lines += [clean(changed[0].target)] * (len(diff.targets) > 1) + _block(changed[0], room)
    else:
        for target in changed:
            many = len(diff.targets) > 1
            lines += [f"{clean(target.target)}: {_in_short(target)}"] if not show_all else [clean(target.target)] * many
            lines += _block(target, None) if show_all else []
    lines += rest
    if not show_all and len(lines) > LINES:
        lines[LINES - 1 :] = [f"… {len(lines) - LINES + 1:,} more lines (--all)"]
    return "".join(line + "\n" for line in lines)


def _sides(diff: Diff) -> list[str]:
    unknown = [side for side in (diff.old, diff.new) if side.torch_version is None]
    said = [f"{clean(side.label)} is a saved result of convaudit {clean(side.convaudit_version)}" for side in unknown]
    return [f"  {'; '.join(said)}; its torch is not known"] if len(said) == 1 else [f"  {'; '.join(said)}"] if said else []


def _rest(diff: Diff) -> list[str]:
    """What is the same, on one side only, or was not audited."""
    same = [t.target for t in diff.targets if not t.changed]
    lines = []
    if same:
        lines.append("no difference" if len(diff.targets) == 1 else f"no difference: {_names(same)}")
        lines += [f"  {clean(said)}" for said in unread(diff)]
    if diff.only_old:
        lines.append(f"only in OLD: {_names(diff.only_old)}")
    if diff.only_new:
        lines.append(f"only in NEW: {_names(diff.only_new)}")
    return lines + [f"not audited in {f.side.upper()}: {one_line(f.message)}" for f in diff.failed]


def _names(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(clean(name) or "(model)" for name in names[:limit]) + more


def _in_short(target: TargetDiff) -> str:
    moved = []
    for figure in target.figures:
        if figure.before != figure.after:
            share = change(figure.before, figure.after) if figure.before is not None and figure.after is not None else ""
            before, after = values(figure, target)
            moved.append(f"{NAMES[figure.name]} {before} → {after}{f' ({share})' if share else ''}")
    parts = [", ".join(moved[:3]) or "the same figures"]
    parts += [f"layers: {said}" for said in [tally(target)] if said]
    parts += [f"findings: {findings_tally(target)}"]
    parts += [f"not comparable: {reason(i)}" for i in target.incomparable if i.figures]
    return "; ".join(parts)


def _block(target: TargetDiff, room: int | None) -> list[str]:
    """A target in at most ``room`` lines."""
    same_input = all(i.what != "input" for i in target.incomparable)
    lines = [f"  input {_figures.inputs(target.new.inputs)}"] if target.new.inputs and same_input else []
    lines += [f"  {reason(i)}: {one_line(i.before)} → {one_line(i.after)}; {scope(i)}" for i in target.incomparable]
    width = max(len(label(figure, target)) for figure in target.figures)
    for figure in figures(target):
        before, after = values(figure, target)
        same = figure.before == figure.after and figure.before is not None
        shown = f"{before}  unchanged" if same else f"{before} → {after}  {movement(figure)}"
        lines.append(f"  {label(figure, target):<{width}}  {shown}")
    notes = [n for n in target.new.notes if n not in target.old.notes]
    lines += [f"  note: {one_line(note)}" for note in notes[: None if room is None else 2]]
    head = [f"  findings: {findings_tally(target)}"]
    tail = [f"  layers: {tally(target) or 'all the same'}"]
    last = [f"  state_dict: {said}" for said in [state_dict(target)] if said]
    last += [f"  tensors: {said}" for said in [tensors(target)] if said]
    held = [f"    {_row(row)}" for row in tensor_rows(target)]
    said = [f"    {SIGNS[f.status]} {_status(f)}{_finding(f)}" for f in _ordered(target, room is None)]
    layers = [f"    {_row(row)}" for row in rows(target)]
    if room is not None:
        left = room - len(lines) - len(head) - len(tail) - len(last)
        for_findings = max(left - len(layers), (left + 1) // 2)
        said = _capped(said, for_findings, "findings")
        left -= len(said)
        layers = _capped(layers, max(left - len(held), (left + 1) // 2), "layers")
        held = _capped(held, left - len(layers), "tensors")
    return [*lines, *head, *said, *tail, *layers, *last, *held]


def _ordered(target: TargetDiff, everything: bool) -> list[FindingChange]:
    said = findings(target, "new", "unsuppressed", "spread") + findings(target, "fixed", "suppressed")
    still = findings(target, "still")
    return said + [f for f in still if everything or f.severity_before != f.severity]


def _status(finding: FindingChange) -> str:
    return f"{finding.status}: " if finding.status in ("unsuppressed", "suppressed", "spread") else ""


def _capped(lines: list[str], room: int, word: str) -> list[str]:
    if len(lines) <= room:
        return lines
    room = max(room, 1)
    return [*lines[: room - 1], f"    … {len(lines) - room + 1:,} more {word} (--all)"]


def _finding(finding: FindingChange) -> str:
    message = one_line(finding.message)
    where = finding.new_layers or finding.layers
    if where and (finding.new_layers or clean(where[0]) not in message):
        message = f"{_names(where, 2)}: {message}"
    return _figures.shorten(f"{finding.rule} {severity(finding)} {message}", 200)


def _row(row: Row) -> str:
    facts = [
        " ".join(part for part in (what, f"{clean(a)} → {clean(b)}" if a else clean(b)) if part) for what, a, b in row.facts
    ]  # fmt: skip
    name = clean(row.name) or "(model)"
    if row.sign == "→":
        return f"= {name} → {facts[0] or '(model)'}"
    return f"{row.sign} {name}{row.call}" + (f": {', '.join(facts[:_PER_LINE])}" if facts else "")


# Markdown

LEVELS = ((400, 100, 600, 200), (120, 40, 300, 100), (40, 15, 200, 40), (15, 6, 120, 20), (5, 3, 80, 10), (0, 0, 60, 5))
"""(layers, findings of a kind, characters of a name, targets) shown, tried in turn until the text fits."""


def markdown(diff: Diff) -> str:
    """A pull request's comment: always short enough for GitHub, and no name in it notifies or links anything."""
    changed = [t for t in diff.targets if t.changed]
    same = [t.target for t in diff.targets if not t.changed]
    return fitted(
        "diff.md.j2",
        (
            {
                "diff": diff, "d": _Words, "steps": _figures.steps, "changed": changed, "same": same, "unread": unread(diff),
                "shown": {"layers": layers, "findings": kinds, "targets": targets},
                "code": lambda value, limit=limit: code(value, limit) or "`(model)`",
                "cell": lambda value, limit=limit: cell(value, limit) or "`(model)`",
                "prose": lambda value, limit=limit: prose(value, limit),
                "names": lambda found, most, limit=limit: _code_names(found, most, limit),
            }
            for layers, kinds, limit, targets in LEVELS
        ),
    )  # fmt: skip


def _code_names(found: Iterable[str], most: int, limit: int) -> str:
    names = list(found)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(code(name, limit) or "`(model)`" for name in names[:most]) + more


class _Words:
    """What the template calls."""

    word = _WORDS
    inputs = staticmethod(_figures.inputs)
    place = staticmethod(_figures.place)
    values = staticmethod(values)
    movement = staticmethod(movement)
    label = staticmethod(label)
    reason = staticmethod(reason)
    scope = staticmethod(scope)
    rows = staticmethod(rows)
    tally = staticmethod(tally)
    findings = staticmethod(findings)
    findings_tally = staticmethod(findings_tally)
    severity = staticmethod(severity)
    state_dict = staticmethod(state_dict)
    figures = staticmethod(figures)
    tensors = staticmethod(tensors)
    tensor_rows = staticmethod(tensor_rows)
    judged = staticmethod(judged)
    plural = staticmethod(plural)
