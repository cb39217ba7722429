"""CNV607 architecture-mismatch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.checkpoints.match import Match, Shapes
    from convaudit.result import Finding


class ArchitectureMismatch(Rule):
    """a checkpoint whose names or shapes are not the model's

    ## What it does
    Compares a checkpoint with the model of `--model` by names and shapes, after what wrappers put before names
    (`module.`, `model.`, `_orig_mod.`, `state_dict`, an EMA copy) is resolved. A warning where only the width of the last
    layer differs; info for `num_batches_tracked`, buffers that the model does not save, and heads that only train.

    ## Why it matters
    `load_state_dict` fails on it, and with `strict=False` it leaves layers as they were initialised, without a word.

    ## Example
        convaudit check weights.pt --model timm:resnet50      # weights of a resnet101

    ## Use instead
        convaudit check weights.pt --model timm:resnet101

    ## Exceptions
    Tied tensors that the file holds once. Nothing is compared without `--model`.

    ## References
    PyTorch documentation, torch.nn.Module.load_state_dict (missing and unexpected keys).
    """

    code = "CNV607"
    name = "architecture-mismatch"
    severity = "error"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for what keeps it from loading, or for its head; one for what does not matter."""
        from convaudit.checkpoints.match import match

        if context.model is None or not context.file.complete:  # what is not listed may be there
            return
        found, target = match(context.file.tensors, context.model), context.model.target
        evidence = {
            "model": target, "prefix": found.prefix, "same": found.same, "missing": found.missing[:100],
            "unexpected": found.unexpected[:100],
            "shapes": [{"name": n, "file": a, "model": b} for n, a, b in (found.resized + found.head)[:100]],
        }  # fmt: skip
        wrong = _wrong(found)
        if not found.same and not found.resized and not found.head:
            yield context.finding(f"none of its names is one of {target}'s", evidence=evidence, suggestion=_NAME)
        elif wrong:
            said = f"does not fit {target}: {'; '.join(wrong)}"
            yield context.finding(said + _resolved(found), evidence=evidence, suggestion=_NAME)
        elif found.head:
            classes = found.head[0][1][0]
            yield context.finding(
                f"fits {target} but for the width of its last layer: {_shapes(found.head)}" + _resolved(found),
                severity="warning",
                evidence=evidence,
                suggestion=f"--model '{target}(num_classes={classes})'" if target.startswith(("timm:", "torchvision:")) and "(" not in target else _NAME,
            )
        if found.harmless and found.same:
            yield context.finding(
                f"{_keys(found.harmless)} without weight for {target} on one side only",
                severity="info",
                evidence={"keys": found.harmless[:100]},
            )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Another kernel, a layer more, another number of classes, a counter of batches."""
        model = {"conv.weight": [8, 3, 3, 3], "fc.weight": [10, 8]}
        return [
            FileExample(lambda: _file({**model, "conv.weight": [8, 3, 5, 5]}), "shape", ".safetensors", model),
            FileExample(lambda: _file({**model, "more.weight": [8]}), "unexpected", ".safetensors", model),
            FileExample(lambda: _file({**model, "fc.weight": [100, 8]}), "head", ".safetensors", model),
            FileExample(lambda: _file({**model, "bn.num_batches_tracked": []}), "counter", ".safetensors", model),
            FileExample(lambda: _file({"other.weight": [8]}), "nothing in common", ".safetensors", model),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """The same names, behind a wrapper's prefix or not; no model to compare with."""
        model = {"conv.weight": [8, 3, 3, 3], "fc.weight": [10, 8]}
        wrapped = {f"module._orig_mod.{name}": shape for name, shape in model.items()}
        return [
            FileExample(lambda: _file(model), "the same", ".safetensors", model),
            FileExample(lambda: _file(wrapped), "wrapped", ".safetensors", model),
            FileExample(lambda: _file(wrapped), "no model", ".safetensors"),
        ]


_NAME = "name the model that it was saved from"
_MOST = 4


def _wrong(found: Match) -> list[str]:
    """What keeps the file from loading."""
    said = [f"{_keys(found.missing)} missing"] if found.missing else []
    said += [f"{_keys(found.unexpected)} unexpected"] if found.unexpected else []
    said += [f"shapes differ: {_shapes(found.resized)}"] if found.resized else []
    return said + ([f"shapes differ: {_shapes(found.head)}"] if said and found.head else [])


def _keys(names: list[str]) -> str:
    """How many keys, and of which modules."""
    modules = Counter(".".join(name.split(".")[:2][: max(1, name.count("."))])[:80] for name in names)
    most = ", ".join(f"{module} {count}" if count > 1 else module for module, count in modules.most_common(_MOST))
    more = f" and {len(modules) - _MOST} more modules" if len(modules) > _MOST else ""
    return f"{len(names):,} key{'s' * (len(names) != 1)} ({most}{more})"


def _shapes(rows: list[Shapes]) -> str:
    said = [f"{name[:80]}: file {_size(ours)}, model {_size(theirs)}" for name, ours, theirs in rows[:2]]
    return "; ".join(said) + (f"; and {len(rows) - 2} more" if len(rows) > 2 else "")


def _size(shape: list[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _resolved(found: Match) -> str:
    if found.model_prefix:
        return f" (the model's names behind {found.model_prefix!r})"
    return f" (names behind {found.prefix[:80]!r}; {len(found.outside):,} others)" if found.outside else ""


def _file(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file of such tensors, all zero."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)
