"""Text for a screen or a pipe: the totals in one line, then what to do about them, the largest saving first."""

from __future__ import annotations

from collections.abc import Iterator

from convaudit.result import AuditResult, Finding, TargetResult
from convaudit_reports._figures import (
    clean,
    count,
    grouped,
    inputs,
    live,
    lower_bound,
    one_line,
    place,
    plural,
    short,
    size,
    steps,
)
from convaudit_reports._language import speaking, translated

NAME = "text"
SUFFIX = None
LINES = 25
"""How many lines a single target takes at most, its summary included, unless infos are asked for."""

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
    """The report. ``width`` 0 is unlimited; ``quiet`` leaves the findings alone, one line each; ``lang`` is theirs."""
    with speaking(lang):
        result = translated(result)
    lines: list[Line] = []
    for target in result.targets:
        block = _target(target, width, show_info, quiet)
        if block and lines and not quiet:
            lines.append([])
        lines += block
    if not quiet:
        if len(result.targets) > 1:
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
    for note in infos:
        blocks.append((1, [_headline(target, note), *_details(note)] if show_info else [_short_info(note, width)]))
    room = LINES - 1 - len(head)  # the summary takes the last line
    if show_info or sum(len(lines) for _, lines in blocks) <= room:
        return head + [line for _, lines in blocks for line in lines]
    shown: list[Line] = []
    for number, (_, lines) in enumerate(blocks):
        if len(shown) + len(lines) > room - 1:
            left = sum(amount for amount, _ in blocks[number:])
            shown.append([(f"… {left:,} more (--format json, --show info)", "dim")])
            break
        shown += lines
    return head + shown


def _totals(target: TargetResult) -> Line:
    line: Line = [(clean(target.target), "bold"), (": ", "")]
    totals = target.totals
    if totals is None:
        return [*line, ("no totals", "dim")]
    bound = "≥ " if lower_bound(target) else ""
    line.append((f"{count(totals.parameters)} parameters", "bold"))
    if totals.macs is not None:
        line.append((f", {bound}{short(totals.macs)} MACs", ""))
    if totals.flops is not None:
        line.append((f", {bound}{short(totals.flops)} FLOPs ({target.flop_convention})", ""))
    if totals.activation_bytes is not None:
        peak = totals.peak_activation_bytes
        line.append((f", {size(totals.activation_bytes)} activations", ""))
        line.append((f" (peak {size(peak)})" if peak is not None else "", ""))
    if totals.macs is None and target.kind == "checkpoint":
        if totals.buffers:
            line.append((f" and {count(totals.buffers)} elements of buffers", ""))
        line.append((f", {size(totals.parameter_bytes)}", ""))
        if len(totals.bytes_by_dtype) == 1:
            line.append((f" of {clean(next(iter(totals.bytes_by_dtype)))}", ""))
        if target.checkpoint is not None and totals.file_bytes is not None:
            line.append((f", {plural(len(target.checkpoint.tensors), 'tensor')}", ""))
            read = "" if target.checkpoint.weights_read else ", weights not read"
            line.append((f" ({target.checkpoint.format}, file of {size(totals.file_bytes)}{read})", ""))
    if target.inputs:
        line.append((f", input {inputs(target.inputs)}", ""))
    return line


def _limits(target: TargetResult) -> Iterator[Line]:
    if target.kind == "checkpoint":
        for note in target.notes[:4]:
            yield [(f"  {one_line(note)}", "yellow")]
        return
    why = lower_bound(target)
    if not why:
        return
    notes = one_line("; ".join(target.notes)) if target.status == "partial" else ""
    said = "lower bounds" in notes or (target.totals is not None and target.totals.macs is None)
    yield [(f"  {notes}" if notes and said else f"  totals are lower bounds: {notes or why}", "yellow")]
    ops = target.totals.uncounted_ops if target.totals else []
    if ops:
        more = f" and {len(ops) - 8} more" if len(ops) > 8 else ""
        yield [(f"  uncounted: {', '.join(clean(op) for op in ops[:8])}{more}", "yellow")]


def _failure(target: TargetResult) -> Line:
    error = target.error
    line: Line = [(clean(target.target), "bold"), (": ", ""), ("not audited", STYLES["error"])]
    if error is None:
        return line
    where = f" at {clean(error.path)}{f':{error.line}' if error.line else ''}" if error.path else ""
    message = one_line(error.message.removeprefix(f"{target.target}: "))
    if f"{error.step} failed: " in message:  # it says where and what itself
        return [*line, (f": {message}", "")]
    kind = "" if error.type in ("", "TargetError") or message.startswith(error.type) else f"{clean(error.type)}: "
    return [*line, (f" (step {error.step}{where}): {kind}{message}", "")]


def _headline(target: TargetResult, finding: Finding) -> Line:
    message = one_line(finding.message)
    layer = clean(finding.layers[0]) if finding.layers else ""
    if layer and layer not in message:
        more = f" and {len(finding.layers) - 1} more" if len(finding.layers) > 1 else ""
        message = f"{layer}{more}: {message}"
    return [
        (f"{place(finding.location) or clean(target.target)}: ", ""),
        (finding.rule, "bold"),
        (" ", ""),
        (finding.severity, STYLES[finding.severity]),
        (f" {message}", ""),
    ]


def _finding(target: TargetResult, leader: Finding, others: list[Finding], show_all: bool) -> list[Line]:
    lines = [_headline(target, leader), *_details(leader)]
    if show_all:
        return lines + [line for f in others for line in ([("  ", ""), *_headline(target, f)], *_details(f))]
    if others:
        also = "also " + ", ".join(dict.fromkeys(f.rule for f in others))
        if len(lines) == 1:
            lines.append([(f"  {also}", "dim")])
        else:
            lines[-1].append((f"; {also}", "dim"))
    return lines


def _details(finding: Finding) -> Iterator[Line]:
    saved = ", ".join(str(step) for step in steps(finding.saving)[:2])
    advice = one_line(finding.suggestion).rstrip(".")
    keys = [("; changes the state_dict", "dim")] if finding.changes_state_dict else []
    if saved and advice:
        yield [(f"  {advice}: ", ""), (saved, "green"), *keys]
    elif saved or advice:
        yield [(f"  {saved}", "green") if saved else (f"  {advice}", ""), *keys]


def _short_info(finding: Finding, width: int) -> Line:
    head, rest = f"  {finding.rule} info ", one_line(finding.message)
    layer = clean(finding.layers[0]) if finding.layers else ""
    if layer and layer not in rest:
        rest = f"{layer}: {rest}"
    limit = max(width or 160, 40) - len(head)
    if len(rest) > limit:
        rest = rest[: limit - 1]
        rest = (rest.rpartition(" ")[0] or rest) + "…"
    return [(head, STYLES["info"]), (rest, "")]


def _summary(result: AuditResult) -> Line:
    summary = result.summary
    line: Line = []
    if summary.targets != 1:
        line.append((f"{plural(summary.targets, 'target')}: ", "bold"))
    counts = [
        (plural(number, word), STYLES.get(word, ""))
        for number, word in ((summary.error, "error"), (summary.warning, "warning"), (summary.info, "info"))
        if number
    ] or [("no findings", "green")]
    if summary.failed:
        counts.append((f"{summary.failed} not audited", STYLES["error"]))
    if summary.suppressed:
        counts.append((f"{summary.suppressed} suppressed", "dim"))
    for index, part in enumerate(counts):
        line += [(", ", ""), part] if index else [part]
    first = next((f.rule for t in result.targets if t.status != "failed" for f in live(t)), None)
    if first:
        line.append((f". convaudit rule {first} explains a rule", "dim"))
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
