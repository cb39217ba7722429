"""CNV610 code-bearing-checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding, Severity


class CodeBearingCheckpoint(Rule):
    """a checkpoint that needs somebody's classes to be loaded

    ## What it does
    Names the classes of third-party packages, of `__main__`, of `torch.nn.modules` and of `torch.optim` that a pickle
    would import and make. TorchScript archives are reported as the programs they are, as info.

    ## Why it matters
    Loading it runs those classes' code, and breaks when they are renamed or moved.

    ## Example
        torch.save(model, "model.pt")

    ## Use instead
        torch.save(model.state_dict(), "model.pt")

    ## Exceptions
    It is fine if you wrote the classes: `allow-globals = ["mypkg.*"]` lowers what it names to info. `--strict-pickle`
    makes the rest an error; a TorchScript archive stays info.

    ## References
    PyTorch documentation, "Saving and Loading Models": saving the entire model is discouraged.
    """

    code = "CNV610"
    name = "code-bearing-checkpoint"
    severity = "warning"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for the classes that are not allowed by name, one for those that are."""
        if context.file.format == "torchscript":
            yield context.finding(
                "a TorchScript archive: loading it runs the program inside, by torch's own interpreter", severity="info"
            )
        names = dict.fromkeys(row.name for row in context.of_tier("classes"))
        if context.file.format == "torchscript":
            names = dict.fromkeys(name for name in names if not name.startswith("__torch__"))
        allowed = [name for name in names if context.allowed(name)]
        others = [name for name in names if not context.allowed(name)]
        loud: Severity = "error" if context.settings.strict_pickle else "warning"
        groups: list[tuple[list[str], Severity]] = [(others, loud), (allowed, "info")]
        for group, severity in groups:
            if group:
                more = f" and {len(group) - 3} more" if len(group) > 3 else ""
                packed = group == ["torch.ScriptObject"]  # a state_dict of a quantized LSTM
                advice = "save state_dict() to share it" if context.file.tensors else "load it only where you trust its author"
                if packed:
                    advice = "it is a state_dict already, whose packed weights need torch's own class: save the model before it is quantized to share it"
                yield context.finding(
                    f"loading runs the code of {', '.join(group[:3])}{more}; fine if you wrote it",
                    severity=severity, suggestion=advice, evidence={"globals": group[:100]},
                )  # fmt: skip

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """An instance of a class of the saving script."""
        return [FileExample(lambda: b"\x80\x02c__main__\nNet\n)\x81.", "a class of __main__")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """A plain dict."""
        return [FileExample(lambda: b"\x80\x02}.", "a dict")]
