"""What changed between two results: figures, layers, findings, keys of the state_dict. Never imports torch.

``None`` is *not known*, never 0: a difference of which one side is not known is not known either.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from fractions import Fraction
from typing import Any, Literal, TypeVar

import msgspec

from convaudit import __version__
from convaudit.budgets import Budget
from convaudit.result import (
    SEVERITIES,
    AuditResult,
    Finding,
    InputInfo,
    LayerRow,
    Location,
    Saving,
    Severity,
    TargetResult,
    TensorRow,
)

SCHEMA_VERSION = 1
FIGURES = {
    "params": "parameters", "macs": "macs", "flops": "flops", "activation-bytes": "activation_bytes",
    "peak-activation-bytes": "peak_activation_bytes", "parameter-bytes": "parameter_bytes",
}  # fmt: skip
"""The figures compared: as a limit names them → as ``totals`` does."""

_RANK: dict[str, int] = {name: rank for rank, name in enumerate(SEVERITIES)}
_OF_FORWARD = ["macs", "flops", "activation_bytes", "peak_activation_bytes"]
_LAYER_FIELDS = (
    "op", "kind", "input_shapes", "output_shapes", "dtype", "parameters", "macs", "flops", "activation_bytes",
    "receptive_field",
)  # fmt: skip

T = TypeVar("T")
Named = tuple[Finding, tuple[str, ...]]
"""A finding and its layers by the names of NEW."""


class Side(msgspec.Struct):
    """One of the two things compared."""

    label: str
    """As it was named; of a revision, with its commit."""
    commit: str | None
    """Full hash of the commit that was audited; null for the working tree, a library's model or a saved result."""
    torch_version: str | None
    """Null where it is not known: of checkpoints, and of a result that does not say."""
    convaudit_version: str = __version__


class Figure(msgspec.Struct):
    """One of the totals."""

    name: str
    before: int | None
    after: int | None
    difference: int | None
    percent: float | None
    """The difference in per cent of ``before``; null where either is not known or ``before`` is 0."""


class Incomparable(msgspec.Struct):
    """A way in which the two audits themselves differ."""

    what: Literal["input", "flop_convention", "lower_bound", "rule_set", "convaudit_version", "torch_version"]
    before: str
    after: str
    figures: list[str]
    """The totals whose difference says nothing for it. Empty for versions: their formulas and rules may differ."""


class FieldChange(msgspec.Struct):
    """One field of a row of the layer table."""

    field: str
    before: Any
    after: Any


class LayerChange(msgspec.Struct):
    """A layer call that both sides have, and its fields that differ."""

    name: str
    call: int | None
    changes: list[FieldChange]
    location: Location | None
    """In NEW."""


class Renamed(msgspec.Struct):
    """A layer that differs in its name alone, among the same neighbours."""

    before: str
    after: str


class Layers(msgspec.Struct):
    """Rows of the layer table, matched by name and call."""

    added: list[LayerRow]
    removed: list[LayerRow]
    changed: list[LayerChange]
    renamed: list[Renamed]
    same: int
    """Rows that are the same on both sides, their place in the source and in the order of calls aside."""


class FindingChange(msgspec.Struct):
    """A finding, matched by its rule and layers (by those of NEW, where layers were renamed).

    ``spread``: it names more layers than before, as well as its first. ``suppressed`` and ``unsuppressed``: it is in
    both, and was or is suppressed. A finding that is suppressed wherever it is found is left out.
    """

    status: Literal["new", "fixed", "still", "spread", "suppressed", "unsuppressed"]
    rule: str
    name: str
    severity: Severity
    severity_before: Severity | None
    """Null for a new finding; for a fixed one the same as ``severity``."""
    message: str
    layers: list[str]
    new_layers: list[str]
    """The layers that a spread finding did not name before."""
    suggestion: str
    location: Location | None
    saving: Saving | None = None
    """Of following the suggestion, measured where the finding stands: on OLD for a fixed one, else on NEW."""


class StateDict(msgspec.Struct):
    """Names of layers that hold parameters, as far as names and numbers tell: what keeps old weights from loading.

    Buffers, and a layer whose weight is tied to an earlier one, are not seen.
    """

    added: list[str]
    removed: list[str]
    resized: list[str]
    """Same name, another number of parameters."""

    @property
    def changed(self) -> bool:
        """Whether any name or number differs."""
        return bool(self.added or self.removed or self.resized)


class TensorChange(msgspec.Struct):
    """A tensor that both checkpoints have, and what differs: ``shape``, ``dtype``, values."""

    name: str
    changes: list[FieldChange]
    differing: int | None = None
    """Elements of other values; null where none is, or where they were not compared one by one."""
    largest: float | None = None
    """The largest absolute difference; null also where a NaN or an infinity is on one side."""


class Tensors(msgspec.Struct):
    """The tensors of two checkpoints by name, optimizer state and the prefixes of wrappers aside."""

    added: list[str]
    removed: list[str]
    changed: list[TensorChange]
    same: int
    values: str | None
    """What of the values was not compared, and why; null where all were."""


class Audited(msgspec.Struct):
    """How one side of a target was audited."""

    target: str
    status: Literal["ok", "partial", "failed"]
    inputs: list[InputInfo]
    flop_convention: Literal["fvcore", "two-per-mac"]
    rule_set: str
    uncounted_ops: list[str]
    notes: list[str]


class TargetDiff(msgspec.Struct):
    """What changed in one target."""

    old: Audited
    new: Audited
    figures: list[Figure]
    incomparable: list[Incomparable]
    layers: Layers
    findings: list[FindingChange]
    state_dict: StateDict
    tensors: Tensors | None = None
    """Of two checkpoints only."""

    @property
    def target(self) -> str:
        """The name that reports use."""
        return self.new.target

    @property
    def changed(self) -> bool:
        """Whether anything that is compared differs."""
        layers = self.layers
        return bool(
            any(f.before != f.after for f in self.figures) or self.incomparable or layers.added or layers.removed
            or layers.changed or layers.renamed or self.state_dict.changed or any(f.status != "still" for f in self.findings)
            or (self.tensors and (self.tensors.added or self.tensors.removed or self.tensors.changed))
        )  # fmt: skip

    def figure(self, name: str) -> Figure:
        """One of the figures by its name in ``totals``."""
        return next(f for f in self.figures if f.name == name)


class Failure(msgspec.Struct):
    """A target that could not be audited on one side."""

    side: Literal["old", "new"]
    target: str
    message: str


class Exceeded(msgspec.Struct):
    """A figure that rose by more than a limit allows, or that cannot be judged (``reason`` says why)."""

    target: str
    figure: str
    limit: str
    before: int | None
    after: int | None
    reason: str | None


class Diff(msgspec.Struct):
    """The difference of two results (the JSON of ``convaudit diff``)."""

    schema_version: int
    old: Side
    new: Side
    targets: list[TargetDiff]
    only_old: list[str]
    """Targets that NEW does not have."""
    only_new: list[str]
    failed: list[Failure]
    exceeded: list[Exceeded]
    """What ``--fail-on-increase`` did not allow."""
    only_new_findings: dict[str, list[FindingChange]] = {}
    """The findings of targets that OLD does not have."""


def compare(
    old_side: Side, old: AuditResult, new_side: Side, new: AuditResult, *, by_name: bool | None = None
) -> Diff:
    """Compare two results, target by target.

    ``by_name``: targets are matched by their names; by default where there is more than one on a side.
    """
    if by_name is None:
        by_name = not len(old.targets) == len(new.targets) == 1
    pairs, left, right = _matched(old.targets, new.targets, lambda target: target.key if by_name else "")
    made = Diff(SCHEMA_VERSION, old_side, new_side, [], [t.target for t in left], [t.target for t in right], [], [])
    made.only_new_findings = {t.target: found for t in right if (found := _findings([], t.findings, {}))}
    made.failed += [Failure("old", t.target, _why(t)) for t in left if t.status == "failed"]
    made.failed += [Failure("new", t.target, _why(t)) for t in right if t.status == "failed"]
    for before, after in pairs:
        if before.status == "failed" or after.status == "failed":
            made.failed += [Failure("old", before.target, _why(before))] * (before.status == "failed")
            made.failed += [Failure("new", after.target, _why(after))] * (after.status == "failed")
        else:
            made.targets.append(compare_targets(before, after, _versions(old_side, new_side)))
    return made


def _why(target: TargetResult) -> str:
    return target.error.message if target.error is not None else f"{target.target}: not audited"


def _versions(old: Side, new: Side) -> list[Incomparable]:
    found = []
    if old.convaudit_version != new.convaudit_version:
        found.append(Incomparable("convaudit_version", old.convaudit_version, new.convaudit_version, []))
    if old.torch_version != new.torch_version and None not in (old.torch_version, new.torch_version):
        found.append(Incomparable("torch_version", old.torch_version or "", new.torch_version or "", []))
    return found


def compare_targets(old: TargetResult, new: TargetResult, versions: list[Incomparable] | None = None) -> TargetDiff:
    """Compare two targets that were audited. ``versions``: what is known of the versions that audited them."""
    layers = _layers(old, new)
    names = {r.before: r.after for r in layers.renamed}
    return TargetDiff(
        old=_audited(old),
        new=_audited(new),
        figures=[_figure(name, old, new) for name in FIGURES.values()],
        incomparable=[*_incomparable(old, new), *(versions or [])],
        layers=layers,
        findings=_findings(old.findings, new.findings, names),
        state_dict=_state_dict(old.layers, new.layers),
        tensors=_tensors(old.checkpoint.tensors, new.checkpoint.tensors) if old.checkpoint and new.checkpoint else None,
    )


def _audited(target: TargetResult) -> Audited:
    ops = target.totals.uncounted_ops if target.totals is not None else []
    return Audited(
        target.target, target.status, target.inputs, target.flop_convention, target.rule_set, list(ops), target.notes
    )


def _figure(name: str, old: TargetResult, new: TargetResult) -> Figure:
    before, after = (getattr(t.totals, name) if t.totals is not None else None for t in (old, new))
    if before is None or after is None:
        return Figure(name, before, after, None, None)
    return Figure(name, before, after, after - before, round(100 * (after - before) / before, 4) if before else None)


def _incomparable(old: TargetResult, new: TargetResult) -> list[Incomparable]:
    found: list[Incomparable] = []
    if [(i.shape, i.dtype) for i in old.inputs] != [(i.shape, i.dtype) for i in new.inputs]:
        found.append(Incomparable("input", _inputs(old), _inputs(new), list(_OF_FORWARD)))
    if old.flop_convention != new.flop_convention:
        found.append(Incomparable("flop_convention", old.flop_convention, new.flop_convention, ["flops"]))
    if _followed(old) != _followed(new):
        figures = list(_OF_FORWARD) if old.status != new.status else ["macs", "flops"]
        found.append(Incomparable("lower_bound", _followed(old), _followed(new), figures))
    if old.rule_set != new.rule_set:
        found.append(Incomparable("rule_set", old.rule_set, new.rule_set, []))
    return found


def _inputs(target: TargetResult) -> str:
    said = [f"{'×'.join(map(str, i.shape)) or '()'} {i.dtype} ({i.source})" for i in target.inputs]
    return ", ".join(said) or "none"


def _followed(target: TargetResult) -> str:
    """How much of the target its totals cover."""
    ops = target.totals.uncounted_ops if target.totals is not None else []
    uncounted = f", without {', '.join(ops)}" if ops else ""
    return ("a part of the model" if target.status == "partial" else "the whole model") + uncounted


# Layers


def _layers(old: TargetResult, new: TargetResult) -> Layers:
    fields = [f for f in _LAYER_FIELDS if f != "flops" or old.flop_convention == new.flop_convention]
    pairs, removed, added = _matched(old.layers, new.layers, _key)
    changed = []
    for before, after in pairs:
        values = [(f, getattr(before, f), getattr(after, f)) for f in fields]
        changes = [FieldChange(f, a, b) for f, a, b in values if a != b]
        if changes:
            changed.append(LayerChange(after.name, after.call, changes, after.location))
    renames = _renames(old.layers, new.layers, pairs, fields)
    return Layers(
        added=[row for row in added if row.name not in renames.values()],
        removed=[row for row in removed if row.name not in renames],
        changed=changed,
        renamed=[Renamed(before, after) for before, after in renames.items()],
        same=len(pairs) - len(changed),
    )


def _key(row: LayerRow) -> Hashable:
    return row.name, row.call, row.kind == "parameter"


def _renames(
    old: list[LayerRow], new: list[LayerRow], pairs: list[tuple[LayerRow, LayerRow]], fields: list[str]
) -> dict[str, str]:
    """Old → new names of layers that are certainly the same.

    Certain is: between two neighbours that kept their names stand as many calls as before, each the same as its
    predecessor in everything but the name, and every call of the layer says so.
    """
    kept_old, kept_new = ({id(pair[side]): n for n, pair in enumerate(pairs)} for side in (0, 1))
    runs_new = {ends: run for ends, run in _runs(new, kept_new) if run}
    said: list[tuple[str, str]] = []
    for ends, run in _runs(old, kept_old):
        other = runs_new.get(ends, [])
        if run and [_signature(r, fields) for r in run] == [_signature(r, fields) for r in other]:
            said += [(a.name, b.name) for a, b in zip(run, other)]
    told = Counter(said)
    rows_old, rows_new = Counter(row.name for row in old), Counter(row.name for row in new)
    return {a: b for (a, b), calls in told.items() if calls == rows_old[a] == rows_new[b]}


def _runs(rows: list[LayerRow], kept: dict[int, int]) -> Iterable[tuple[tuple[int, int], list[LayerRow]]]:
    """The rows between each two that are kept, by the numbers of these two (-1 at the beginning, -2 at the end)."""
    before = -1
    run: list[LayerRow] = []
    for row in rows:
        if id(row) in kept:
            yield (before, kept[id(row)]), run
            before, run = kept[id(row)], []
        else:
            run.append(row)
    yield (before, -2), run


def _signature(row: LayerRow, fields: list[str]) -> list[Any]:
    return [row.call, *(getattr(row, field) for field in fields)]


# Findings


def _findings(old: list[Finding], new: list[Finding], renames: dict[str, str]) -> list[FindingChange]:
    """Findings that are live on at least one side, in order of NEW, those that are gone last."""
    gone: list[Named] = [(f, tuple(renames.get(name, name) for name in f.layers)) for f in old]
    come: list[Named] = [(f, tuple(f.layers)) for f in new]
    order = {id(f): n for n, f in enumerate(new)}
    pairs: list[tuple[Named, Named]] = []
    for key in (_message, _layer_set, _first_layer):
        found, gone, come = _matched(gone, come, key)
        pairs += found
    changes = [(order[id(b)], change) for (a, before), (b, after) in pairs if (change := _both(a, before, b, after))]
    changes += [(order[id(f)], _change("new", f, None, [])) for f, _ in come if f.suppressed is None]
    changes += [(len(new), _change("fixed", f, f.severity, [])) for f, _ in gone if f.suppressed is None]
    return [change for _, change in sorted(changes, key=lambda item: item[0])]


def _message(item: Named) -> Hashable:
    return item[0].rule, frozenset(item[1]), item[0].message


def _layer_set(item: Named) -> Hashable:
    return item[0].rule, frozenset(item[1])


def _first_layer(item: Named) -> Hashable:
    return item[0].rule, item[1][:1]


def _both(a: Finding, before: tuple[str, ...], b: Finding, after: tuple[str, ...]) -> FindingChange | None:
    if a.suppressed is not None and b.suppressed is not None:
        return None
    if b.suppressed is not None:
        return _change("suppressed", b, a.severity, [])
    if a.suppressed is not None:
        return _change("unsuppressed", b, a.severity, [])
    spread = [name for name in after if name not in before]
    return _change("spread" if spread else "still", b, a.severity, spread)


def _change(
    status: Literal["new", "fixed", "still", "spread", "suppressed", "unsuppressed"],
    finding: Finding,
    before: Severity | None,
    new_layers: list[str],
) -> FindingChange:
    return FindingChange(
        status, finding.rule, finding.name, finding.severity, before, finding.message, finding.layers, new_layers,
        finding.suggestion, finding.location, finding.saving,
    )  # fmt: skip


def failing(findings: list[FindingChange], level: str) -> list[FindingChange]:
    """Those at or above ``level`` that OLD did not have there: new, spread, no longer suppressed, or more severe."""
    if level == "never":
        return []
    least = _RANK[level]
    found = []
    for f in findings:
        if f.status in ("fixed", "suppressed") or _RANK[f.severity] < least:
            continue
        rose = f.severity_before is not None and _RANK[f.severity_before] < least
        if f.status != "still" or rose:
            found.append(f)
    return found


# State dict


def _state_dict(old: list[LayerRow], new: list[LayerRow]) -> StateDict:
    before, after = _parameters(old), _parameters(new)
    return StateDict(
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        resized=[name for name in after if name in before and before[name] != after[name]],
    )


def _parameters(rows: list[LayerRow]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if row.parameters:
            found[row.name] = found.get(row.name, 0) + row.parameters
    return found


# Tensors


def comparable(rows: list[TensorRow]) -> dict[str, int]:
    """Places of the tensors that are compared, by their names without the prefixes that all have."""
    from convaudit.checkpoints.architecture import wrapper_of

    found = [(row.name, index) for index, row in enumerate(rows) if row.role != "optimizer"]
    prefix = len(wrapper_of([name for name, _ in found]))
    return {name[prefix:]: index for name, index in found}


def _tensors(old: list[TensorRow], new: list[TensorRow]) -> Tensors:
    before, after = comparable(old), comparable(new)
    made = Tensors([n for n in after if n not in before], [n for n in before if n not in after], [], 0, "not compared")
    for name in (n for n in after if n in before):
        pair = old[before[name]], new[after[name]]
        changes = [FieldChange(f, a, b) for f in ("shape", "dtype") if (a := getattr(pair[0], f)) != (b := getattr(pair[1], f))]
        if changes:
            made.changed.append(TensorChange(name, changes))
        else:
            made.same += 1
    return made


# Limits


class Limit(msgspec.Struct, frozen=True):
    """How much a figure may rise: ``macs=5%``, ``params=100K``."""

    text: str
    figure: str
    budget: Budget

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Raises ValueError where it is not NAME=AMOUNT."""
        name, equals, amount = text.partition("=")
        if not equals or name not in FIGURES:
            raise ValueError(f"{text!r} is not NAME=AMOUNT with a name of {', '.join(FIGURES)}")
        amount = amount.strip()
        if re.fullmatch(r"\d.*%", amount):
            amount = f"+{amount}"
        try:
            return cls(text, FIGURES[name], Budget.parse(amount))
        except ValueError:
            raise ValueError(f'{text!r}: an amount is a number such as 100_000, "100K" or "1MiB", or a share such as "5%"') from None

    def allows(self, before: int, after: int) -> bool:
        """Whether the rise from ``before`` to ``after`` is within the limit."""
        most = before * self.budget.value if self.budget.relative else before + self.budget.value
        return Fraction(after) <= most


def exceeded(target: TargetDiff, limits: Iterable[Limit]) -> list[Exceeded]:
    """The limits that a target does not keep, or of which that cannot be said."""
    found = []
    for limit in limits:
        figure = target.figure(limit.figure)
        reason = next((i for i in target.incomparable if limit.figure in i.figures), None)
        why = f"the {reason.what.replace('_', ' ')} differs" if reason is not None else None
        if figure.before is None or figure.after is None:
            sides = [side for side, value in (("before", figure.before), ("after", figure.after)) if value is None]
            why = f"not known {' and '.join(sides)}"
        if why is not None or not limit.allows(figure.before or 0, figure.after or 0):
            found.append(Exceeded(target.target, limit.figure, limit.text, figure.before, figure.after, why))
    return found


def _matched(old: list[T], new: list[T], key: Callable[[T], Hashable]) -> tuple[list[tuple[T, T]], list[T], list[T]]:
    """Pairs of one key in order of ``new`` (the first with the first, where a key is there twice), and what is left."""
    waiting: dict[Hashable, list[int]] = {}
    for index, item in enumerate(old):
        waiting.setdefault(key(item), []).append(index)
    pairs, added, taken = [], [], set()
    for item in new:
        same = waiting.get(key(item))
        if same:
            taken.add(same[0])
            pairs.append((old[same.pop(0)], item))
        else:
            added.append(item)
    return pairs, [item for index, item in enumerate(old) if index not in taken], added
