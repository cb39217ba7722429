"""CNV601 unsafe-pickle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class UnsafePickle(Rule):
    """a checkpoint that would run code of the standard library, torch or numpy when it is loaded

    ## What it does
    Reads every pickle of the file by an inert parser and names each global of the *code* tier: its member, its byte
    offset, whether it would be called and with what. Archives in archives are read as far as four deep, their members
    written as `outer!inner`; arrays of objects (`.npy`) hold pickles too. Libraries and programs inside an
    archive are named.

    ## Why it matters
    `pickle.load`, and `torch.load(weights_only=False)`, import and call what a pickle names, before anything can be
    checked. Nobody needs `os.system` or `getattr` to store weights.

    ## Example
        torch.load("weights.pt", weights_only=False)   # its data.pkl calls posix.system

    ## Use instead
        safetensors.torch.load_file("weights.safetensors")   # from a source you know

    ## Exceptions
    What torch's weights_only loader allows is no finding; plain data is CNV611's, classes are CNV610's. `allow-globals`
    does not lower this rule. That nothing is found means that nothing outside tensors would be imported, no more.
    `functools.partial` of a name that is itself no code (`partial(nn.LayerNorm, eps=1e-6)` in a transformer pickled whole)
    counts as CNV610: making it calls nothing, and calling it does what calling the name does. So does `getattr` where all it
    is used for is what Python and torch pickle by it: members of enums of third-party classes (Python 3.11.0 to 3.11.4),
    `torch.relu` and other functions that only compute, the time zones of `zoneinfo`, sharded tensors; so do `type` of None,
    and type hints like `List[int]`. Any other use of one of them in the same pickle makes it a finding. A pickle that is held as
    bytes is not read by loading the file around it: what code it names is a note; a call that would read it is a finding.

    ## References
    Python documentation, `pickle`: "Warning: The pickle module is not secure".
    PyTorch documentation, `torch.load` and "Serialization semantics", weights_only.
    """

    code = "CNV601"
    name = "unsafe-pickle"
    severity = "error"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding a file: the first names are in its message, all of them in its evidence."""
        rows = sorted(context.of_tier("code"), key=lambda row: not row.called)
        parts = []
        for row in rows[:3]:
            how = f"call {row.name}{row.arguments if row.arguments.startswith('(') else f'({row.arguments})'}" if row.called else f"import {row.name}"
            parts.append(f"{how} ({row.member}, byte {row.offset:,})")
        if rows:
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            yield context.finding(
                f"loading it would {', '.join(parts)}{more}",
                suggestion="do not load it; ask its author for safetensors, or for torch.save(model.state_dict())",
                evidence={"globals": [row.name for row in rows[:100]]},
            )
        codes = context.file.codes
        if codes:
            yield context.finding(
                f"it holds programs or libraries: {', '.join(codes[:3])}" + (f" and {len(codes) - 3} more" if codes[3:] else ""),
                suggestion="do not load it unless you know who built it",
                evidence={"members": codes[:100]},
            )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """A call by REDUCE, and a name that is merely fetched."""
        return [
            FileExample(lambda: b"cposix\nsystem\n(S'id'\ntR.", "called"),
            FileExample(lambda: b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "fetched"),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """An ordered dict of nothing."""
        return [FileExample(lambda: b"\x80\x02ccollections\nOrderedDict\n)R.", "tensors tier")]
