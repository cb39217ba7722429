"""CNV001 target-not-audited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class TargetNotAudited(Rule):
    """a target asked for by name could not be audited

    ## What it does
    Reports a target that could not be read, imported, constructed, fed or traced, with the step that failed, the
    user's own exception and its line.

    ## Why it matters
    A model that is skipped in silence looks like a model without findings.

    ## Example
        $ convaudit check model.py:Net      # Net needs an argument

    ## Use instead
        $ convaudit check "model.py:Net(num_classes=10)"

    ## Exceptions
    A plain file that holds no model is no failure.

    ## References
    None: this rule speaks about the audit itself.
    """

    code = "CNV001"
    name = "target-not-audited"
    severity = "error"

    def check(self, context: Context) -> Iterator[Finding]:
        """Nothing: the finding is made where a target fails, before there is a graph."""
        yield from ()
