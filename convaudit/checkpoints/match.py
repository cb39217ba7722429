"""A checkpoint beside a model: which model, whether the state_dicts fit, and the audit of both. Never imports torch."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import msgspec

from convaudit.checkpoints.architecture import Expected, fingerprint_of, is_auxiliary
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.errors import TargetError
from convaudit.paths import target_key
from convaudit.result import SEVERITIES, TargetResult, TensorRow

_MOST_PARTS = 8
"""Components of a name that a wrapper may have put before it."""

Shapes = tuple[str, list[int], list[int]]
"""A name, the file's shape and the model's."""


@dataclass
class Match:
    """How a checkpoint's names and shapes lie against a model's. Names are the model's, or the file's without ``prefix``."""

    prefix: str = ""
    """What stands before every name in the file."""
    model_prefix: str = ""
    """What stands before every name in the model, and not in the file."""
    same: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[Shapes] = field(default_factory=list)
    head: list[Shapes] = field(default_factory=list)
    """Of the last layer, whose width alone differs; then ``resized`` is empty."""
    harmless: list[str] = field(default_factory=list)
    """Missing or unexpected: counters of batches, buffers that the model does not save, heads that only train."""
    outside: list[str] = field(default_factory=list)
    """Names in the file that do not have its prefix."""

    @property
    def fits(self) -> bool:
        """Whether the model could hold the file's tensors, but for the width of its last layer."""
        return not (self.missing or self.unexpected or self.resized) and bool(self.same or self.head)


def match(rows: Iterable[TensorRow], model: Expected) -> Match:
    """Compare a file's tensors with a model's, after the prefix that lets most names agree."""
    held = [row for row in rows if row.role != "optimizer"]
    own = {row.name: row for row in held if row.role in ("parameter", "buffer")}
    theirs = {row.name: row for row in model.tensors}
    found = Match()
    found.prefix, votes = _prefix((row.name for row in held), theirs)
    model_prefix, other_votes = _prefix(theirs, own)
    if other_votes > votes:
        found.prefix, found.model_prefix = "", model_prefix
    if found.prefix:
        found.outside = [name for name in own if not name.startswith(found.prefix)]
        own = {row.name[len(found.prefix) :]: row for row in held if row.name.startswith(found.prefix)}
    else:
        own = {found.model_prefix + name: row for name, row in own.items()}
    stored = {row.storage for name, row in theirs.items() if name in own}
    hidden = {name for name, row in theirs.items() if row.role == "other"}
    for name in [name for name, row in theirs.items() if name not in own and name not in hidden and row.storage not in stored]:
        (found.harmless if _harmless(name) else found.missing).append(name)
    for name in [name for name in own if name not in theirs or name in hidden]:
        (found.harmless if _harmless(name) or name in hidden else found.unexpected).append(name)
    for name, row in own.items():
        if name in theirs and row.shape is not None and row.shape != theirs[name].shape:
            found.resized.append((name, row.shape, theirs[name].shape or []))
    found.same = sum(name in theirs for name in own) - len(found.resized)
    if _is_head(found.resized, [row.name for row in model.tensors if row.role == "parameter" and not is_auxiliary(row.name)]):
        found.head, found.resized = found.resized, []
    return found


def _prefix(names: Iterable[str], known: Iterable[str]) -> tuple[str, int]:
    """The prefix without which most ``names`` are among ``known``, and how many are."""
    wanted, votes = set(known), Counter({"": 0})
    for name in names:
        at = 0
        for _ in range(_MOST_PARTS):
            if name[at:] in wanted:
                votes[name[:at]] += 1
            at = name.find(".", at) + 1
            if not at:
                break
    return max(votes.items(), key=lambda item: item[1])


def _harmless(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked" or is_auxiliary(name)


def _is_head(resized: list[Shapes], parameters: list[str]) -> bool:
    """Whether what differs is the width of the model's last layer alone."""
    owners = {name.rpartition(".")[0] for name, _, _ in resized}
    widths = {(tuple(ours[:1]), tuple(theirs[:1])) for _, ours, theirs in resized}
    last = parameters[-1].rpartition(".")[0] if parameters else ""
    same = all(len(ours) == len(theirs) and ours[1:] == theirs[1:] for _, ours, theirs in resized)
    return bool(resized) and same and len(widths) == 1 and len(owners) <= 3 and last in owners


# Which model


@cache
def _fingerprints() -> dict[str, list[str]]:
    data = resources.files("convaudit.checkpoints").joinpath("fingerprints.json.gz").read_bytes()
    return {key: names.split() for key, names in json.loads(gzip.decompress(data))["fingerprints"].items()}


def well_known(rows: Iterable[TensorRow]) -> list[str]:
    """The nets of timm and torchvision whose state_dict has these names and shapes, heads aside."""
    return _fingerprints().get(fingerprint_of(rows), [])


def model_of(path: str, max_pickle: int) -> tuple[str | None, str | None]:
    """The well-known net whose state_dict a checkpoint is, where its library is there, and a sentence about it."""
    try:
        names = well_known(read_checkpoint(path, max_pickle=max_pickle * 1000**2).tensors)
    except (TargetError, OSError, MemoryError):
        return None, None  # its audit says it
    if not names:
        return None, "--model auto: no well-known net has these names and shapes"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    said = f"--model auto: its names and shapes are those of {', '.join(names[:6])}{more}"
    there = next((name for name in names if importlib.util.find_spec(name.partition(":")[0])), None)
    if there is None:
        return None, f"{said}; to audit it, pip install {names[0].partition(':')[0]}"
    return there, f"{said}; audited as {there}" if len(names) > 1 else said


# Both audits


def merged(file: TargetResult, model: TargetResult, expected: Expected) -> TargetResult:
    """The checkpoint's result with the model's inputs, layers, costs and findings, where it fits; bytes stay the file's."""
    assert file.totals is not None
    assert model.totals is not None
    if file.checkpoint is not None and not match(file.checkpoint.tensors, expected).fits:
        said = f"all of this is the file's alone: it does not fit {model.target}, which convaudit check audits by itself"
        return msgspec.structs.replace(file, notes=[*file.notes, said])
    own, theirs = target_key(file.target), target_key(model.target)
    findings = [
        msgspec.structs.replace(f, fingerprint=f"{f.rule}:{own}:{f.fingerprint.removeprefix(f'{f.rule}:{theirs}:')}") for f in model.findings
    ]
    kept = file.totals
    totals = msgspec.structs.replace(
        model.totals, parameter_bytes=kept.parameter_bytes, bytes_by_dtype=kept.bytes_by_dtype, buffers=kept.buffers,
        file_bytes=kept.file_bytes, state_dict_bytes=kept.state_dict_bytes,
    )  # fmt: skip
    return msgspec.structs.replace(
        file, status="partial" if "partial" in (file.status, model.status) else "ok", tracer=model.tracer,
        notes=[*file.notes, f"inputs, layers, parameters and costs are those of the model {model.target}; bytes and buffers are the file's", *model.notes], inputs=model.inputs,
        totals=totals, layers=model.layers, location=model.location, flop_convention=model.flop_convention,
        modules=model.modules, versions=model.versions,
        findings=sorted([*file.findings, *findings], key=lambda f: -SEVERITIES.index(f.severity)),
    )  # fmt: skip
