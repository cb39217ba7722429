"""CNV002 partial-trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class PartialTrace(Rule):
    """part of the model could not be followed

    ## What it does
    Says that the forward pass was recorded only in part, and why. Totals are then lower bounds.

    ## Why it matters
    A figure that leaves something out must say so.

    ## Example
        if scores.max() > 0.5: ...      # control flow on data

    ## Use instead
        $ convaudit check model.py:Net --submodule backbone

    ## Exceptions
    Control flow on shapes is followed and is no partial trace.

    ## References
    PyTorch documentation, torch.fx, "Limitations of Symbolic Tracing".
    """

    code = "CNV002"
    name = "partial-trace"
    severity = "info"
    needs_shapes = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding where the graph is partial; an error with ``require-complete``."""
        if context.graph.status == "partial":
            yield context.finding(
                f"part of the model could not be followed: {context.graph.problem}",
                [],
                severity="error" if context.settings.require_complete else "info",
                suggestion="audit the part that can be followed with --submodule" if context.graph.inputs else "give the input with --input",
            )
