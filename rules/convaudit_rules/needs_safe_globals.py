"""CNV611 needs-safe-globals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.checkpoints.weights_only import line_allowing
from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class NeedsSafeGlobals(Rule):
    """a checkpoint with plain data that torch's weights_only loader refuses until it is told

    ## What it does
    Names numpy values, Namespaces, paths, dates and other plain data of the pickle, and prints the line of Python after which
    `torch.load` reads them with `weights_only=True`; or says what it refuses whatever is allowed.

    ## Why it matters
    Since torch 2.6 `torch.load` refuses such a file by default; switching weights_only off gives up the protection
    altogether.

    ## Example
        torch.load("last.ckpt", weights_only=False)

    ## Use instead
        import argparse, torch; torch.serialization.add_safe_globals([argparse.Namespace])
        torch.load("last.ckpt")

    ## Exceptions
    Not said beside CNV601 or CNV610: such a file needs more than this line. No line helps where a container that is no plain
    dict or list holds items (a filled `defaultdict` or `deque`), where the pickle has opcodes that weights_only does not know
    (protocols other than 2), or where torch.save did not write it. The line is for torch 2.6 or later and numpy 1.26 or later.

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
        allowed, refused = list(context.file.to_allow), context.file.refused
        named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        if allowed and not refused:
            message, advice = f"weights_only refuses its plain data: {named}", line_allowing(allowed)
        elif allowed:
            message = f"weights_only refuses its plain data, whatever it is told to allow: {named}"
            advice = f"no line helps with {refused[0]}: save plain dicts, lists and tensors with torch.save, or convert it to safetensors"
        else:
            message = f"it holds plain data in a pickle that torch.load does not read: {named}"
            advice = "save plain dicts, lists and tensors with torch.save"
        yield context.finding(message, suggestion=advice, evidence={"globals": names})

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """The arguments of a training script, as torch.save wrote them before 1.6."""
        before = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
        return [FileExample(lambda: before + b"\x80\x02cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb.\x80\x02].", "a Namespace")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """An ordered dict."""
        return [FileExample(lambda: b"\x80\x02ccollections\nOrderedDict\n)R.", "tensors tier")]
