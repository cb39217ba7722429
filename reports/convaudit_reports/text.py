"""Text for a screen or a pipe: the totals in one line, then what to do about them, the largest saving first."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from convaudit.result import AuditResult, Finding, TargetResult, note_lines
from convaudit_reports._figures import (
    clean,
    count,
    grouped,
    inputs,
    live,
    lower_bound,
    one_line,
    place,
    severities,
    short,
    size,
    steps,
)
from convaudit_reports._language import gettext as _
from convaudit_reports._language import ngettext, speaking, translated

NAME = "text"
SUFFIX = None
LINES = 25
"""How many lines a single target takes at most, its summary included, unless infos are asked for."""
FEW = 3
"""Findings of a checkpoint up to which an info says what to do about it."""

Line = list[tuple[str, str]]  # (text, rich style)
STYLES = {"error": "bold red", "warning": "bold yellow", "info": "cyan"}


def render(
    result: AuditResult,
    *,
    color: bool = False,
    width: int = 0,
    show_info: bool = False,
    quiet: bool = False,
    lang: str = "en",
    **_options: object,
) -> str:
    """The report. ``width`` 0 is unlimited; ``quiet`` leaves the findings alone, one line each; ``lang`` is its language."""
    lines: list[Line] = []
    with speaking(lang):
        result = translated(result)
        for target in result.targets:
            block = _target(target, width, show_info, quiet)
            if block and lines and not quiet:
                lines.append([])
            lines += block
        if not quiet:
            beside: list[Line] = [[(one_line(said), "yellow")] for said in note_lines(result.notes)]
            lines += [[]] * bool(beside and result.targets) + beside
            if len(result.targets) > 1 or beside:
                lines.append([])
            lines.append(_summary(result))
    return _colored(lines, width) if color else "".join("".join(t for t, _ in line) + "\n" for line in lines)


def _target(target: TargetResult, width: int, show_info: bool, quiet: bool) -> list[Line]:
    if target.status == "failed":
        return [_failure(target)]
    findings = live(target)
    loud = grouped([f for f in findings if f.severity != "info"])
    infos = [f for f in findings if f.severity == "info" and (show_info or f.rule != "CNV002")]  # its text is above
    if quiet:
        return [_headline(target, f) for leader, others in loud for f in (leader, *others)] + [
            _headline(target, f) for f in infos if show_info
        ]

    head = [_totals(target), *_limits(target)]
    blocks: list[tuple[int, list[Line]]] = []  # (findings it stands for, its lines)
    for leader, others in loud:
        blocks.append((1 + len(others), _finding(target, leader, others, show_info)))
    few = target.kind == "checkpoint" and len(findings) <= FEW
    for note in infos:
        first = _headline(target, note) if show_info else _short_info(note, width)
        blocks.append((1, [first, *(_details(note) if show_info or few else ())]))
    room = LINES - 1 - len(head)  # the summary takes the last line
    if show_info or sum(len(lines) for _, lines in blocks) <= room:
        return head + [line for amount, lines in blocks for line in lines]
    shown: list[Line] = []
    for number, (amount, lines) in enumerate(blocks):
        if len(shown) + len(lines) > room - 1:
            left = sum(amount for amount, lines in blocks[number:])
            shown.append([(_("… {} more (--format json, --show info)").format(f"{left:,}"), "dim")])
            break
        shown += lines
    return head + shown


def _totals(target: TargetResult) -> Line:
    totals = target.totals
    if totals is None:
        said = _("parameters not known") if target.kind == "checkpoint" else _("no totals")
        return [(clean(target.target), "bold"), (_(": "), ""), (said, "dim")]
    bound = "≥ " if lower_bound(target) else ""
    least = bound if target.kind == "checkpoint" and totals.macs is None else ""  # beside a model, parameters are its own
    parts: Line = [(ngettext("{} parameter", "{} parameters", totals.parameters).format(least + count(totals.parameters)), "bold")]
    if totals.macs is not None:
        parts.append((_("{} MACs").format(bound + short(totals.macs)), ""))
    if totals.flops is not None:
        parts.append((_("{} FLOPs ({})").format(bound + short(totals.flops), target.flop_convention), ""))
    if totals.activation_bytes is not None:
        peak = totals.peak_activation_bytes
        text = _("{} activations").format(size(totals.activation_bytes))
        parts.append((text + (_(" (peak {})").format(size(peak)) if peak is not None else ""), ""))
    if totals.macs is None and target.kind == "checkpoint":
        if totals.buffers:
            text = ngettext(" and {} element of buffers", " and {} elements of buffers", totals.buffers).format(count(totals.buffers))
            parts[0] = (parts[0][0] + text, "bold")
        dtypes = [clean(dtype) for dtype in totals.bytes_by_dtype]
        weight = _("size not known") if totals.parameter_bytes is None else size(totals.parameter_bytes)
        parts.append((_("{} of {}").format(weight, dtypes[0]) if len(dtypes) == 1 else weight, ""))
        if target.checkpoint is not None and totals.file_bytes is not None:
            tensors = len(target.checkpoint.tensors)
            text = ngettext("{} tensor", "{} tensors", tensors).format(count(tensors))
            file = _("file of {}").format(size(totals.file_bytes))
            read = "" if target.checkpoint.weights_read else _(", weights not read")
            parts.append((text + _(" ({}, {})").format(target.checkpoint.format, file + read), ""))
    if target.inputs:
        parts.append((_("input {}").format(inputs(target.inputs)), ""))
    return [(clean(target.target), "bold"), (_(": "), ""), *_joined(parts)]


def _joined(parts: Line) -> Line:
    return [piece for index, part in enumerate(parts) for piece in ([(_(", "), "")] * bool(index) + [part])]


def _limits(target: TargetResult) -> Iterator[Line]:
    if target.kind == "checkpoint":
        if target.checkpoint is not None and target.checkpoint.sha256:
            yield [(f"  sha256 {target.checkpoint.sha256}", "dim")]
        for note in target.notes[:4]:
            yield [(f"  {one_line(note)}", "yellow")]
        return
    why = lower_bound(target)
    if not why:
        return
    notes = one_line(_("; ").join(target.notes)) if target.status == "partial" else ""
    said = _("lower bounds") in notes or (target.totals is not None and target.totals.macs is None)
    text = notes if notes and said else _("totals are lower bounds: {}").format(notes or why)
    yield [(f"  {text}", "yellow")]
    ops = target.totals.uncounted_ops if target.totals else []
    if ops:
        more = _(" and {} more").format(len(ops) - 8) if len(ops) > 8 else ""
        yield [("  " + _("uncounted: {}").format(", ".join(clean(op) for op in ops[:8]) + more), "yellow")]


def _failure(target: TargetResult) -> Line:
    error = target.error
    line: Line = [(clean(target.target), "bold"), (_(": "), ""), (_("not audited"), STYLES["error"])]
    if error is None:
        return line
    where = _(" at {}").format(clean(error.path) + (f":{error.line}" if error.line else "")) if error.path else ""
    message = one_line(error.message.removeprefix(f"{target.target}: "))
    if f"{error.step} failed: " in message:  # it says where and what itself
        return [*line, (_(": ") + message, "")]
    kind = "" if error.type in ("", "TargetError") or message.startswith(error.type) else f"{clean(error.type)}: "
    return [*line, (_(" (step {}{}): ").format(_(error.step), where) + kind + message, "")]


def _headline(target: TargetResult, finding: Finding) -> Line:
    message = one_line(finding.message)
    layer = clean(finding.layers[0]) if finding.layers else ""
    if layer and not _names(message, layer):
        more = _(" and {} more").format(len(finding.layers) - 1) if len(finding.layers) > 1 else ""
        message = f"{layer}{more}{_(': ')}{message}"
    return [
        (f"{place(finding.location) or clean(target.target)}: ", ""),
        (finding.rule, "bold"),
        (" ", ""),
        (_(finding.severity), STYLES[finding.severity]),
        (f" {message}", ""),
    ]


def _names(message: str, layer: str) -> bool:
    """Whether a message says the layer's name; a bare number could be any."""
    if layer.isdecimal():
        return message.startswith(tuple(f"{layer}{behind}" for behind in (" and ", " holds ", ": ", ", ")))
    return re.search(rf"(?<![\w.]){re.escape(layer)}(?!\w)", message) is not None


def _finding(target: TargetResult, leader: Finding, others: list[Finding], show_all: bool) -> list[Line]:
    lines = [_headline(target, leader), *_details(leader)]
    if show_all:
        return lines + [line for f in others for line in ([("  ", ""), *_headline(target, f)], *_details(f))]
    answered = [f for f in others if f.suggestion == leader.suggestion or (f.saving is not None and f.saving == leader.saving)]
    if answered:
        also = _("also {}").format(", ".join(dict.fromkeys(f.rule for f in answered)))
        if len(lines) == 1:
            lines.append([(f"  {also}", "dim")])
        else:
            lines[-1].append((_("; ") + also, "dim"))
    for other in (f for f in others if f not in answered):
        advice = _("; ") + one_line(other.suggestion) if other.suggestion else ""
        lines.append([("  " + _("also {}").format(other.rule), "dim"), (f" {one_line(other.message)}{advice}", "")])
    return lines


def _details(finding: Finding) -> Iterator[Line]:
    saved = _(", ").join(str(step) for step in steps(finding.saving)[:2])
    advice = one_line(finding.suggestion).rstrip(".")
    keys = [(_("; ") + _("changes the state_dict"), "dim")] if finding.changes_state_dict else []
    if saved and advice:
        yield [(f"  {advice}{_(': ')}", ""), (saved, "green"), *keys]
    elif saved or advice:
        yield [(f"  {saved}", "green") if saved else (f"  {advice}", ""), *keys]


def _short_info(finding: Finding, width: int) -> Line:
    head, rest = f"  {finding.rule} {_('info')} ", one_line(finding.message)
    layer = clean(finding.layers[0]) if finding.layers else ""
    if layer and not _names(rest, layer):
        rest = f"{layer}{_(': ')}{rest}"
    return [(head, STYLES["info"]), (_fitted(rest, max(width or 160, 40) - _cells(head)), "")]


def _fitted(text: str, width: int) -> str:
    """``text``, cut behind a word (a Chinese character is one) where it takes more than ``width`` columns."""
    if _cells(text) <= width:
        return text
    ends = list(accumulate(map(_cells, text)))
    cut = text[: bisect_right(ends, width - 1)]
    return (re.sub(r"[^\s\u2e80-\uffef]+$", "", cut).rstrip() or cut) + "…"


def _cells(text: str) -> int:
    """Columns of a terminal: two for a wide character."""
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _summary(result: AuditResult) -> Line:
    summary = result.summary
    line: Line = []
    if summary.targets != 1:
        text = ngettext("{} target", "{} targets", summary.targets).format(count(summary.targets))
        line.append((text + _(": "), "bold"))
    found = severities(summary.error, summary.warning, summary.info)
    counts = [(text, STYLES[severity]) for severity, text in found.items()] or [
        (_("no findings"), "green") if summary.targets else (_("nothing was audited"), "yellow")
    ]
    if summary.failed:
        counts.append((_("{} not audited").format(summary.failed), STYLES["error"]))
    if summary.suppressed:
        counts.append((_("{} suppressed").format(summary.suppressed), "dim"))
    line += _joined(counts)
    first = next((f.rule for t in result.targets if t.status != "failed" for f in live(t)), None)
    if first:
        line.append((_(". ") + _("{} explains a rule").format(f"convaudit rule {first}"), "dim"))
    return line


def _colored(lines: list[Line], width: int) -> str:
    import io

    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=width or 10_000,
                      highlight=False, legacy_windows=False)  # fmt: skip
    for line in lines:
        console.print(Text.assemble(*((text, style) for text, style in line)), soft_wrap=True)
    return out.getvalue()
