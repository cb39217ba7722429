"""A checkpoint beside a model: which model, whether the state_dicts fit, and the audit of both. Never imports torch."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import msgspec

from convaudit.checkpoints.architecture import Expected, is_auxiliary, shared_prefix
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.checkpoints.tensors import role_of
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

HEADS = frozenset(("classif", "classifier", "fc", "head", "head_dist", "heads", "heads_dist", "last_linear"))
"""First components of the names of classifiers in timm and torchvision."""
LEVELS = {
    "all": "its names and shapes{} are those of {}",
    "widths": "its names and shapes{}, widths of heads and num_batches_tracked aside, are those of {}",
    "auxiliary": "its names and shapes{}, auxiliary heads, widths of heads and num_batches_tracked aside, are those of {}",
    "trunk": "no well-known net has these names and shapes; parameters outside heads{} have those of {}",
}
"""What fingerprints see of a state_dict, less at each, and what is said of a file that has the same."""
_MOST_TENSORS = 5_000
"""No well-known net has more."""


@dataclass(frozen=True)
class Known:
    """The nets of timm and torchvision that a file is the state_dict of, as far as ``level`` sees."""

    level: str
    names: list[str]
    prefix: str = ""
    """What stands before every name in the file."""


def fingerprint(rows: Iterable[TensorRow], level: str, prefix: str = "") -> str:
    """16 hexadecimal digits of the names behind ``prefix`` and the shapes, whatever their order, as ``level`` sees them."""
    lines = sorted(line for row in rows if (line := _seen(row, row.name[len(prefix) :], level)) is not None)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _seen(row: TensorRow, name: str, level: str) -> str | None:
    """A tensor's line at a level; None where it is left out."""
    shape = ["?"] if row.shape is None else [str(side) for side in row.shape]
    head, auxiliary = name.partition(".")[0] in HEADS, is_auxiliary(name)
    if level == "trunk" and (head or auxiliary or role_of(name, row.dtype) == "buffer"):
        return None
    if level != "all" and (name.rpartition(".")[2] == "num_batches_tracked" or (auxiliary and level == "auxiliary")):
        return None
    if level != "all" and (head or auxiliary):
        shape[:1] = ["?"]
    return f"{name} {'×'.join(shape)}"


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    """Targets by fingerprint, at each level."""
    data = resources.files("convaudit.checkpoints").joinpath("fingerprints.json.gz").read_bytes()
    table: dict[str, dict[str, list[str]]] = {level: {} for level in LEVELS}
    for target, digests in json.loads(gzip.decompress(data))["fingerprints"].items():
        for level, digest in zip(LEVELS, digests.split()):
            table[level].setdefault(digest, []).append(target)
    return table


def well_known(rows: Iterable[TensorRow]) -> Known | None:
    """The well-known nets nearest to a file: those at the first level where any is the same, behind any prefix that its
    parameters share."""
    held = [row for row in rows if row.role in ("parameter", "buffer")]
    parameters = [row.name for row in held if role_of(row.name, row.dtype) == "parameter"]
    if not parameters or len(held) > _MOST_TENSORS:
        return None
    parts = shared_prefix(parameters).split(".")[:_MOST_PARTS]
    prefixes = ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts))]
    for level, table in _table().items():
        for prefix in prefixes:
            names = table.get(fingerprint((row for row in held if row.name.startswith(prefix)), level, prefix))
            if names:
                return Known(level, names, prefix)
    return None


def model_of(path: str, max_pickle: int) -> tuple[str | None, str | None]:
    """The well-known net whose state_dict a checkpoint is, where its library is there, and a sentence about it."""
    try:
        known = well_known(read_checkpoint(path, max_pickle=max_pickle * 1000**2).tensors)
    except (TargetError, OSError, MemoryError):
        return None, None  # its audit says it
    if known is None:
        return None, "--model auto: no well-known net has these names and shapes"
    names = known.names
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    behind = f" behind {known.prefix[:80]!r}" if known.prefix else ""
    said = f"--model auto: {LEVELS[known.level].format(behind, ', '.join(names[:6]) + more)}"
    if known.level == "trunk":
        return None, f"{said}; --model {names[0]} says what differs"
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
