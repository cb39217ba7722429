"""The audit's result: plain, versioned data that serialises without torch.

The JSON form of these records is the contract (``schema_version`` 1). ``None`` means *not known*, 0 means
*known to be none*. Counts are per forward pass of the stated inputs; bytes are bytes, shapes include the batch.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from convaudit import __version__
from convaudit.paths import as_utf8, target_key

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")  # least first
SCHEMA_VERSION = 1
RULE_SETS = ("2026.11",)
"""Dated sets of rules that are on by default, oldest first; a rule names the first it belongs to."""
RULE_SET = RULE_SETS[-1]


class Location(msgspec.Struct, frozen=True):
    """A source line; ``path`` is relative to the repository root where it lies inside it."""

    path: str
    line: int


class Saving(msgspec.Struct, frozen=True):
    """Figures of the whole model, ``[before, after]`` the advised rewrite, both traced."""

    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    peak_activation_bytes: tuple[int, int] | None


class Alternative(msgspec.Struct, frozen=True):
    """Another way to follow the advice, with its own measured saving."""

    suggestion: str
    saving: Saving | None


class Finding(msgspec.Struct):
    """One thing a rule has to say about one model."""

    rule: str
    name: str
    severity: Severity
    message: str
    layers: list[str]
    location: Location | None
    saving: Saving | None
    alternatives: list[Alternative]
    evidence: dict[str, Any]
    changes_state_dict: bool | None
    suggestion: str
    fingerprint: str
    suppressed: Literal["inline", "baseline", "config"] | None = None


class LayerRow(msgspec.Struct):
    """One call of one layer. ``call`` is null for a module that never ran; ``kind`` is a word of graph.KINDS."""

    name: str
    call: int | None
    op: str
    kind: str
    input_shapes: list[list[int]] | None
    output_shapes: list[list[int]] | None
    parameters: int
    macs: int | None
    flops: int | None
    activation_bytes: int | None
    dtype: str | None
    receptive_field: list[int] | Literal["unbounded"] | None
    receptive_field_largest: list[int] | Literal["unbounded"] | None
    location: Location | None
    inputs_from: list[int | Literal["input"]] | None = None
    """What this call reads, in its order, each once: indexes into ``layers``, and "input" for the example input. Operators
    without a row (views, in-place sums) are looked through; weights are left out. Null where not known."""


class InputInfo(msgspec.Struct):
    """One tensor of the example input and who chose it."""

    shape: list[int]
    dtype: str
    source: Literal["option", "config", "model", "inferred"]


class TargetFailure(msgspec.Struct):
    """Why a target could not be audited (``error`` in the JSON)."""

    step: Literal["read", "import", "construct", "input", "trace", "rule"]
    type: str
    message: str
    path: str | None
    line: int | None


class Totals(msgspec.Struct):
    """Sums over the layers, and the peak of live activations."""

    parameters: int
    trainable_parameters: int | None
    macs: int | None
    flops: int | None
    activation_bytes: int | None
    peak_activation_bytes: int | None
    parameter_bytes: int | None
    """None of a checkpoint whose dtypes are not known."""
    conv_parameters: int | None
    fc_parameters: int | None
    uncounted_ops: list[str]
    bytes_by_dtype: dict[str, int]
    state_dict_bytes: int | None = None
    """Parameters and persistent buffers, shared ones once."""
    buffers: int | None = None
    """Elements of the buffers; of a checkpoint only."""
    file_bytes: int | None = None
    """Of a checkpoint only."""


class TensorRow(msgspec.Struct):
    """One tensor of a checkpoint. ``shape`` and ``bytes`` are null where they are not known; ``dtype`` is torch's name, or
    "unknown"; tensors that share a ``storage`` share its bytes."""

    name: str
    shape: list[int] | None
    dtype: str
    bytes: int | None
    storage: str | None
    role: Literal["parameter", "buffer", "optimizer", "ema", "other"]


class GlobalRow(msgspec.Struct):
    """One name that loading a checkpoint would import: ``offset`` is in bytes from the start of ``member``."""

    name: str
    tier: Literal["tensors", "plain data", "classes", "code"]
    called: bool
    member: str
    offset: int
    arguments: str = ""
    """What it would be called with, shortened."""


class KernelRow(msgspec.Struct):
    """One filter. Sum, standard deviation (divisor n) and range are over all its weights; every figure is null where one
    of them is not finite.

    ``pixels`` is the base64 of planes × height × width bytes, plane after plane, row by row: a weight is
    (byte − 128) / 127 × ``limit``, so that 128 is zero and ``limit`` the largest absolute weight shown.
    """

    sum: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    plane: int | None
    """Which plane of the filter is shown, the one of largest norm (input channel × frames + frame); null: all of it."""
    limit: float | None
    pixels: str | None


class KernelGallery(msgspec.Struct):
    """The kernels of a checkpoint's first convolution (article §4.2): at most 64 filters, in their order.

    ``shape`` is that of the weight, [filters, channels of a group, height, width]; ``filters`` has the first of them.
    """

    layer: str
    shape: list[int]
    dtype: str
    planes: int
    """3: red, green and blue; 1: one plane of each filter, in grey."""
    height: int
    width: int
    filters: list[KernelRow]


class CheckpointInfo(msgspec.Struct):
    """What a checkpoint holds, read without running any of it."""

    format: Literal["safetensors", "torch-zip", "torch-legacy", "torchscript", "pt2", "sharded", "pickle"]
    sha256: str | None
    weights_read: bool
    tensors: list[TensorRow]
    globals: list[GlobalRow]
    kernels: KernelGallery | None = None
    """Null where the weights were not read, or no convolution is in it."""


class TargetResult(msgspec.Struct):
    """Everything said about one target."""

    target: str
    kind: Literal["model", "checkpoint"]
    status: Literal["ok", "partial", "failed"]
    error: TargetFailure | None
    tracer: str | None
    notes: list[str]
    inputs: list[InputInfo]
    totals: Totals | None
    flop_convention: Literal["fvcore", "two-per-mac"]
    rule_set: str
    layers: list[LayerRow]
    findings: list[Finding]
    location: Location | None = None
    """Where the model's class or factory is."""
    checkpoint: CheckpointInfo | None = None
    """Of a checkpoint only."""
    modules: dict[str, str] = {}
    """Class of each module that holds others, by qualified name."""
    versions: dict[str, str] = {}
    """Of Python, of torch (not for a checkpoint), and of the distributions that define the model's classes."""
    options: list[str] = []
    """What the command line said that bears on this result, as it was written."""

    @property
    def key(self) -> str:
        """The target as fingerprints and baselines spell it."""
        return target_key(self.target)


NoteKind = Literal["unreadable", "link", "other", "settings", "code", "folder"]
NOTE_KINDS: tuple[NoteKind, ...] = ("unreadable", "link", "other", "settings", "code", "folder")  # the worst first


class FolderNote(msgspec.Struct, frozen=True):
    """What a folder holds beside its targets: a file that is none or cannot be read, a link, settings that are not obeyed,
    code that is not run, a folder that is not looked into. ``message`` says what to do."""

    path: str
    kind: NoteKind
    message: str


def note_lines(notes: list[FolderNote], most: int = 5) -> list[str]:
    """A line for each note, the worst kind first, at most so many of one kind."""
    groups: dict[tuple[str, str], list[FolderNote]] = {}
    for note in sorted(notes, key=lambda note: NOTE_KINDS.index(note.kind)):
        groups.setdefault((note.kind, note.message if note.kind == "other" else ""), []).append(note)
    lines = []
    for (kind, said), group in groups.items():
        lines += [f"{note.path}: {note.message}" for note in group[:most]]
        if len(group) > most:
            lines.append(f"and {len(group) - most:,} more: {said or _MORE[kind]} (--format json names them all)")
    return lines


_MORE = {
    "unreadable": "cannot be read", "link": "links", "settings": "settings, not obeyed", "code": "Python files, not run",
    "folder": "folders, not looked into",
}  # fmt: skip


class Summary(msgspec.Struct):
    """Counts over all targets; findings that are suppressed count only as suppressed."""

    targets: int
    failed: int
    error: int
    warning: int
    info: int
    suppressed: int


class AuditResult(msgspec.Struct):
    """The result of one run over one or more targets."""

    schema_version: int
    convaudit_version: str
    targets: list[TargetResult]
    summary: Summary
    notes: list[FolderNote] = []
    """Of the folders that were audited."""

    def _repr_html_(self) -> str:
        from convaudit.integrations.notebook import fragment

        return fragment(self)


def summarise(targets: list[TargetResult]) -> Summary:
    """Count the targets and their findings by severity."""
    live = [f.severity for t in targets for f in t.findings if f.suppressed is None]
    return Summary(
        targets=len(targets),
        failed=sum(t.status == "failed" for t in targets),
        error=live.count("error"),
        warning=live.count("warning"),
        info=live.count("info"),
        suppressed=sum(f.suppressed is not None for t in targets for f in t.findings),
    )


def assemble(targets: list[TargetResult]) -> AuditResult:
    """One result of many targets."""
    return AuditResult(SCHEMA_VERSION, __version__, targets, summarise(targets))


def failed_target(
    target: str, failure: TargetFailure, *, flop_convention: Literal["fvcore", "two-per-mac"] = "fvcore"
) -> TargetResult:
    """The result of a target that could not be audited: no totals, no layers, its CNV001 and its error."""
    location = Location(failure.path, failure.line) if failure.path and failure.line else None
    finding = Finding(
        rule="CNV001",
        name="target-not-audited",
        severity="error",
        message=failure.message,
        layers=[],
        location=location,
        saving=None,
        alternatives=[],
        evidence={"step": failure.step, "type": failure.type},
        changes_state_dict=None,
        suggestion="",
        fingerprint=f"CNV001:{target_key(target)}:*",
    )
    return TargetResult(
        target=target,
        kind="model",
        status="failed",
        error=failure,
        tracer=None,
        notes=[],
        inputs=[],
        totals=None,
        flop_convention=flop_convention,
        rule_set=RULE_SET,
        layers=[],
        findings=[finding],
        location=location,
    )


def encoded(record: msgspec.Struct) -> bytes:
    """A record as JSON on one line; a file name that is not UTF-8, or an odd value in a rule's evidence, is spelled out."""
    try:
        return msgspec.json.encode(record)
    except (UnicodeEncodeError, TypeError):
        return msgspec.json.encode(_spelled(msgspec.to_builtins(record, enc_hook=repr)))


def _spelled(value: Any) -> Any:
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {_spelled(key): _spelled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(item) for item in value]
    return value
