"""CNV602 corrupt-checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class CorruptCheckpoint(Rule):
    """a checkpoint that is truncated, contradicts itself, or goes beyond the reader's limits

    ## What it does
    Compares headers with the file: a zip's central directory with every local header, storages with the sizes that the
    pickle names, safetensors offsets with dtypes, shapes and each other, an index with its shards. What goes beyond the
    reader's limits is reported here, as nothing can be said of the rest: by default a pickle of 64 MB, all pickles of a
    file with 2,000,000 opcodes, 700,000 objects and 10,000 names, 100,000 members or tensors, a safetensors header of
    8 MB, archives nested four deep. `--max-pickle` raises them together.

    ## Why it matters
    A truncated download loads with an error at best. A file that says two things is read one way by a scanner and
    another way by the loader: that is how payloads are hidden.

    ## Example
        model.safetensors   # its tensors end before, or after, the file does

    ## Use instead
        sha256sum model.safetensors   # compare with the publisher's, download again

    ## Exceptions
    A wrong CRC of a pickle alone is told with the notes, without a finding: torch can save without one. Those of tensors are
    not compared: that would read all of the file. The pickles of a corrupt file are still read.

    ## References
    PKWARE, .ZIP File Format Specification (APPNOTE.TXT), version 6.3.10.
    safetensors, README, section Format.
    """

    code = "CNV602"
    name = "corrupt-checkpoint"
    severity = "error"
    subject = "checkpoint"

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding a file: the first contradictions in its message, all in its evidence."""
        problems = list(dict.fromkeys(context.file.problems))
        if problems:
            more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
            advice = "compare its checksum with the publisher's and download it again"
            if all("--max-pickle" in said for said in problems):
                advice = "raise --max-pickle to have all of it read"
            elif all("joblib" in said for said in problems):
                advice = "load it only where you trust its author"
            yield context.finding(
                "; ".join(problems[:2]) + more,
                suggestion=advice,
                evidence={"problems": problems[:100]},
            )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """A header that is longer than its file, and a pickle without its end."""
        return [
            FileExample(lambda: (1 << 20).to_bytes(8, "little") + b"{}", "header too long", ".safetensors"),
            FileExample(lambda: b"\x80\x02}q\x00", "truncated pickle"),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """A safetensors file of no tensors."""
        return [FileExample(lambda: (2).to_bytes(8, "little") + b"{}", "empty", ".safetensors")]
