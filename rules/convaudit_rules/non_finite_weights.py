"""CNV603 non-finite-weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.checkpoints.weights import NonFinite
    from convaudit.result import Finding, TensorRow

OBSERVERS = ("min_val", "max_val")
"""Buffers of torch.ao.quantization's observers, infinite until they have seen a value."""


class NonFiniteWeights(Rule):
    """NaN or infinity among the weights of a checkpoint

    ## What it does
    Reads every parameter and buffer of floating point and counts what is NaN or infinite, tensor by tensor.

    ## Why it matters
    One NaN in a convolution makes NaN of every output behind it. It comes from a loss that diverged, from an overflow of
    float16 (above 65,504), or from a conversion.

    ## Example
        torch.save(model.half().state_dict(), "weights.pt")   # a weight of 1e5 became inf

    ## Use instead
        torch.save(model.bfloat16().state_dict(), "weights.pt")   # float32's range

    ## Exceptions
    Buffers are an info: observers of quantization begin at infinity. So is a tensor whose values are zero or infinite
    and never NaN, which is an attention mask. Optimizer state and EMA copies are not looked at.

    ## References
    IEEE Standard for Floating-Point Arithmetic, IEEE 754-2019.
    """

    code = "CNV603"
    name = "non-finite-weights"
    severity = "error"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding about parameters and one about buffers; each names all tensors."""
        if context.weights is None:
            return
        tensors = context.file.tensors
        found = dict(sorted(context.weights.nonfinite.items()))
        buffers = [index for index, said in found.items() if _is_buffer(tensors[index], said)]
        for kind, chosen in (("parameter", [index for index in found if index not in buffers]), ("buffer", buffers)):
            if not chosen:
                continue
            first, said = tensors[chosen[0]], found[chosen[0]]
            counts = " and ".join(f"{number:,} {word}" for number, word in ((said.nan, "NaN"), (said.infinite, "infinite")) if number)
            others = len(chosen) - 1
            more = f"; and {others:,} more such tensor{'s' * (others > 1)}" if others else ""
            yield context.finding(
                f"{kind} {first.name.removeprefix(context.weights.prefix)} has {counts} of {_elements(first):,} values{more}",
                [context.weights.layer(tensors[index].name) for index in chosen],
                severity="error" if kind == "parameter" else "info",
                suggestion="take an earlier checkpoint: a weight that is not finite cannot be repaired" if kind == "parameter" else "",
                evidence={"tensors": [
                    {"name": tensors[index].name, "nan": found[index].nan, "infinite": found[index].infinite, "elements": _elements(tensors[index])}
                    for index in chosen[:100]
                ]},
            )  # fmt: skip

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """A NaN in a convolution, an infinity in a bias and in an observer."""
        return [
            FileExample(lambda: file_of({"conv.weight": [[[[1, math.nan]]]]}), "NaN", ".safetensors"),
            FileExample(lambda: file_of({"conv.bias": [1, math.inf]}), "infinite", ".safetensors"),
            FileExample(lambda: file_of({"observer.min_val": [math.inf]}), "an observer", ".safetensors"),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """Weights whose squares overflow."""
        return [FileExample(lambda: file_of({"conv.weight": [[[[1e30, -3e38]]]]}), "large and finite", ".safetensors")]


def _elements(row: TensorRow) -> int:
    return math.prod(row.shape or ())


def _is_buffer(row: TensorRow, said: NonFinite) -> bool:
    leaf = row.name.rpartition(".")[2]
    masked = said.mask and (said.infinite < _elements(row) or leaf not in ("weight", "bias"))
    return row.role == "buffer" or leaf in OBSERVERS or masked
