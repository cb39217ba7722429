"""CNV611 needs-safe-globals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class NeedsSafeGlobals(Rule):
    """a checkpoint with plain data that torch's weights_only loader refuses until it is told

    ## What it does
    Names numpy values, Namespaces, paths, dates and other plain data of the pickle, and prints the line that lets
    `torch.load` read them with `weights_only=True`.

    ## Why it matters
    Since torch 2.6 `torch.load` refuses such a file by default; switching weights_only off gives up the protection
    altogether.

    ## Example
        torch.load("last.ckpt", weights_only=False)

    ## Use instead
        torch.serialization.add_safe_globals([argparse.Namespace])
        torch.load("last.ckpt")

    ## Exceptions
    Not said beside CNV601 or CNV610: such a file needs more than this line.

    ## References
    PyTorch documentation, `torch.serialization.add_safe_globals`.
    PyTorch 2.6 release notes: weights_only=True by default.
    """

    code = "CNV611"
    name = "needs-safe-globals"
    severity = "info"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding, with the line to write."""
        names = list(dict.fromkeys(row.name for row in context.of_tier("plain data")))
        if not names or context.of_tier("code") or context.of_tier("classes") or context.file.format == "torchscript":
            return
        yield context.finding(
            f"weights_only refuses its plain data: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else ""),
            suggestion=f"torch.serialization.add_safe_globals([{', '.join(names)}])",
            evidence={"globals": names},
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """The arguments of a training script."""
        return [FileExample(lambda: b"\x80\x02cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb.", "a Namespace")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """An ordered dict."""
        return [FileExample(lambda: b"\x80\x02ccollections\nOrderedDict\n)R.", "tensors tier")]
