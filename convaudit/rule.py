"""What a rule is: a class with a code, a docstring that is its documentation, and ``check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from convaudit.result import RULE_SETS, Finding, Severity

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.context import Context

DOC_HEADINGS = ("What it does", "Why it matters", "Example", "Use instead", "Exceptions", "References")


@dataclass(frozen=True)
class Options:
    """Base of a rule's options: subclass it as a frozen dataclass, one field an option, snake case.

    Settings spell the names with dashes (``min-params``); types are checked when settings are read.
    """


@dataclass(frozen=True)
class Example:
    """A model a rule must fire on (BAD) or stay silent on (GOOD), and the shapes of its inputs."""

    build: Callable[[], Any]
    inputs: tuple[tuple[int, ...], ...]
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings it is audited with, as :func:`convaudit.audit` takes them."""


@dataclass(frozen=True)
class FileExample:
    """A checkpoint's bytes that a rule must fire on, or stay silent on."""

    build: Callable[[], bytes]
    note: str = ""
    suffix: str = ".pt"
    model: dict[str, list[int]] | None = None
    """Names and shapes of the model that it is to fit."""


def file_of(tensors: dict[str, Any]) -> bytes:
    """A safetensors file of numpy arrays, or of lists as float32: the bytes of a :class:`FileExample`."""
    import json

    import numpy as np

    header: dict[str, Any] = {}
    data = b""
    for name, given in tensors.items():
        array = given if isinstance(given, np.ndarray) else np.array(given, np.float32)
        kind = {"f": "F", "i": "I", "u": "U"}[array.dtype.kind] + str(8 * array.itemsize)
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (len(data), len(data) + array.nbytes)}
        data += array.tobytes()
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


class Rule:
    """Base class of every rule.

    A rule never prints, loads or traces by itself: it reads the context and yields findings made with
    ``context.finding(...)``. Module-level imports of a rule file must not import torch.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    subject: ClassVar[Literal["model", "checkpoint"]] = "model"
    """What it speaks about: ``check`` is asked about models, ``check_checkpoint`` about checkpoints."""
    severity: ClassVar[Severity] = "warning"
    default: ClassVar[bool] = True
    """False where the rule runs only when it is selected by its whole code."""
    since: ClassVar[str | None] = RULE_SETS[0]
    """The first rule set it belongs to; None while it is a preview, which runs only when selected."""
    changes_state_dict: ClassVar[bool | None] = None
    options: ClassVar[type[Options]] = Options
    needs_complete: ClassVar[bool] = False
    """True where what a partial trace left out could change the answer: the rule is then not asked."""
    needs_input_size: ClassVar[bool] = False
    """True where the answer depends on the input's size: at most info where that was assumed."""
    needs_shapes: ClassVar[bool] = True
    """False where it can speak about a symbolic trace too, which has layers and parameters and nothing else."""

    def check(self, context: Context) -> Iterator[Finding]:
        """Yield this rule's findings about ``context.graph``."""
        raise NotImplementedError

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """Yield this rule's findings about ``context.file``; torch is not there to be imported."""
        raise NotImplementedError

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Checkpoints that a rule about checkpoints fires on."""
        return []

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """Checkpoints that it stays silent on."""
        return []

    @classmethod
    def bad(cls) -> list[Example]:
        """Models this rule fires on (imports torch)."""
        return []

    @classmethod
    def good(cls) -> list[Example]:
        """Models this rule stays silent on, one for each guard (imports torch)."""
        return []

    @classmethod
    def on_by_default(cls, rule_set: str) -> bool:
        """Whether the rule runs under a rule set when nothing selects it."""
        return cls.default and cls.since is not None and cls.since <= rule_set

    @classmethod
    def documentation(cls) -> str:
        """The docstring, dedented: the rule's page."""
        import inspect

        return inspect.cleandoc(cls.__doc__ or "")

    @classmethod
    def title(cls) -> str:
        """The docstring's first line."""
        return cls.documentation().partition("\n")[0]
