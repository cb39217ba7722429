"""CNV003 unused-suppression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class UnusedSuppression(Rule):
    """a suppression or a baseline entry that matches nothing any more

    ## What it does
    Reports `# convaudit: ignore[...]` comments, entries of `ignore-layers` and `per-file-ignores`, and entries of the
    baseline that no finding of this run matches.

    ## Why it matters
    What was accepted once and has since been mended would hide the next finding of its kind.

    ## Example
        self.fc = nn.Linear(512, 10)  # convaudit: ignore[CNV101] from the 2019 paper

    ## Use instead
        self.fc = nn.Linear(512, 10)

    ## Exceptions
    Rules that did not run, comments of lines that no audited model was built from, targets that were not audited.

    ## References
    ruff, rule unused-noqa (RUF100), for the practice.
    """

    code = "CNV003"
    name = "unused-suppression"
    severity = "info"
    needs_shapes = False

    def check(self, context: Context) -> Iterator[Finding]:
        """Nothing: the finding is made after all targets of a run are known (:mod:`convaudit.suppressions`)."""
        yield from ()
