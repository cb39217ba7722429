"""CNV608 deployment-baggage."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.checkpoints.regions import row_major
from convaudit.rule import FileExample, Options, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.checkpoints.checkpoint import Checkpoint
    from convaudit.result import Finding

_ADVICE = {
    "optimizer state": "publish the weights alone",
    "EMA copies": "publish the weights alone",
    "float64": "save float32",
    "storages held twice": "tie what is one tensor before saving",
    "storages of no tensor": "clone() slices of larger tensors before saving",
}
_LEAST, _COMPARED = 1 << 16, 1 << 26
"""Bytes below which storages are alike because they begin alike (a norm's ones), and up to which a CRC is compared with
that of zeros."""
_PLAIN = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


@dataclass(frozen=True)
class DeploymentBaggageOptions(Options):
    """Share of the file below which nothing is said."""

    min_share: float = 0.01


class DeploymentBaggage(Rule):
    """what a checkpoint carries that its model does not need to run

    ## What it does
    Adds up, from headers alone, optimizer state, EMA copies beside the weights, float64, storages that are there twice,
    and storages or parts of them that no tensor is in; says what the file would weigh without. Silent below 1% of the file.

    ## Why it matters
    Adam's state is twice the model, an EMA copy once more. `torch.save` of a slice writes the whole storage behind it.
    All of it is downloaded and kept by everyone who only wants to run the model.

    ## Example
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "release.pt")

    ## Use instead
        torch.save(model.state_dict(), "release.pt")   # and .clone() what is a slice of something larger

    ## Exceptions
    A file without a model's weights (an optimizer's own). float64 counts by what float32 would save. Storages that are
    there twice are told by their size and CRC, in a zip checkpoint only, from 64 KB on; those that are zero throughout are none.

    ## References
    PyTorch documentation, "Serialization semantics", section "Saving and loading tensors preserves views".
    """

    code = "CNV608"
    name = "deployment-baggage"
    severity = "info"
    subject = "checkpoint"

    options = DeploymentBaggageOptions

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding a file."""
        file, options = context.file, context.options
        assert isinstance(options, DeploymentBaggageOptions)
        if file.problems or file.packed or not any(row.role == "parameter" for row in file.tensors):
            return
        found = {what: size for what, size in _baggage(file).items() if size}
        total = sum(found.values())
        share = total / file.file_bytes
        if not total or share < options.min_share:
            return
        parts = ", ".join(f"{what} {_size(size)}" for what, size in sorted(found.items(), key=lambda part: -part[1]))
        left = file.file_bytes - total
        yield context.finding(
            f"{f'{share:.0%}' if share < 0.995 else '>99%'} of the file is not needed to run the model: {parts}; without, it weighs {_size(left)} of {_size(file.file_bytes)}",
            suggestion="; ".join(dict.fromkeys(_ADVICE[what] for what in found)),
            evidence={"bytes": found, "file_bytes": file.file_bytes, "without": left},
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Weights in float64."""
        import numpy as np

        return [FileExample(lambda: file_of({"fc.weight": np.zeros((10, 10))}), "float64", ".safetensors")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """A float32 layer with a scalar in float64."""
        import numpy as np

        return [FileExample(lambda: file_of({"fc.weight": np.zeros((100, 10), np.float32), "scale": np.zeros(())}), "a scalar", ".safetensors")]


def _baggage(file: Checkpoint) -> dict[str, int]:
    """Bytes that are not needed, by what they are; each byte counts once."""
    found = dict.fromkeys(_ADVICE, 0)
    needed = {row.storage for row in file.tensors if row.role in ("parameter", "buffer", "other")}
    spans: dict[str | None, list[tuple[float, float]]] = {}
    sizes: dict[str | None, int] = {}
    counted: set[object] = set()
    whole: set[str | None] = set()
    for number, (row, place) in enumerate(zip(file.tensors, file.places)):
        if row.role in ("parameter", "buffer") and row.dtype == "float64":
            found["float64"] += 4 * file.counted[number]
        if row.role in ("optimizer", "ema") and row.storage not in needed and (row.storage or number) not in counted:
            counted.add(row.storage or number)
            found["optimizer state" if row.role == "optimizer" else "EMA copies"] += place.size if place else row.bytes or 0
        elif row.storage in needed and place is not None and row.shape is not None and row.bytes is not None and 0 not in row.shape:
            if place.size == row.bytes and place.stride == row_major(row.shape):
                whole.add(row.storage)
                continue
            width = row.bytes / math.prod(row.shape)  # below 1 where elements are packed
            last = 1 + sum((size - 1) * step for size, step in zip(row.shape, place.stride))
            spans.setdefault(row.storage, []).append((place.offset * width, (place.offset + last) * width))
            sizes[row.storage] = place.size
    found["storages of no tensor"] += sum(sizes[storage] - _covered(held) for storage, held in spans.items() if storage not in whole)
    uses = {used.name.rpartition(".")[2] for used in file.globals}
    if not any(name.startswith("_rebuild") and name not in _PLAIN for name in uses):  # others keep parts that are in no row
        found["storages of no tensor"] += sum(file.checksums[name][0] for name in file.unnamed)
    first: dict[tuple[int, int], str] = {}
    for name, known in file.checksums.items():
        size, crc = known
        if crc and (name in spans or name in whole) and size >= _LEAST and first.setdefault(known, name) != name:  # 0: saved without
            found["storages held twice"] += size * (size > _COMPARED or crc != zlib.crc32(bytes(size)))
    return found


def _size(number: float) -> str:
    units = ["bytes", "kB", "MB", "GB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:,.0f} {units[0]}" if number >= 100 else f"{number:.3g} {units[0]}"


def _covered(spans: list[tuple[float, float]]) -> int:
    """How many bytes lie in one of the spans at least."""
    total = end = 0.0
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return math.ceil(total)
