"""Lightning: a callback that audits the module when a fit begins, for ``lightning`` and ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convaudit import output
from convaudit.errors import ConvauditError, ReportError, TargetError, UsageError
from convaudit.result import AuditResult
from convaudit.settings import FAIL_ON, AuditSettings, at_least

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    _HOSTS = ("lightning.pytorch", "pytorch_lightning")
    _loaded = [host for host in _HOSTS if host in sys.modules]
    try:
        Callback = importlib.import_module((_loaded or _HOSTS)[0]).Callback
    except ModuleNotFoundError:
        Callback = importlib.import_module(_HOSTS[1]).Callback


class FindingsError(ConvauditError):
    """A fit was not begun: the module has findings that ``fail_on`` names, or could not be audited."""


class ConvauditCallback(Callback):
    """Audits the module at the start of ``fit`` and writes ``convaudit.html``, ``convaudit.json``, … into ``dirpath``.

    ``dirpath`` defaults to the trainer's ``log_dir``, else its ``default_root_dir``. ``input`` is a tensor, a tuple of
    positional or a dict of keyword arguments of ``forward``, and defaults to the module's ``example_input_array``.
    ``fail_on`` is the least severity that stops the fit, with :class:`FindingsError` in every process; so does a
    module that cannot be audited, which is a warning where ``fail_on`` is "never". ``settings`` are those of
    :func:`convaudit.audit`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        formats: Sequence[str] = ("html", "json"),
        fail_on: str = "never",
        input: Any = None,
        **settings: Any,
    ) -> None:
        if fail_on not in FAIL_ON:
            raise UsageError(f"fail_on is one of {', '.join(FAIL_ON)}, not {fail_on!r}")
        AuditSettings.from_mapping({k.replace("_", "-"): v for k, v in settings.items()}, "ConvauditCallback()")
        self.dirpath = dirpath
        self.reports = {f"convaudit{(made := output.report(name)).SUFFIX or '.txt'}": made for name in formats}
        self.fail_on = fail_on
        self.input = input
        self.settings = settings
        self.result: AuditResult | None = None
        """The last audit's result, on rank zero."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit, write, and stop the fit where that is asked for."""
        folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)  # log_dir is asked in every process
        problem = self._audit(pl_module, folder) if trainer.is_global_zero else None
        if self.fail_on == "never":
            if problem is not None:
                warnings.warn(problem, stacklevel=2)
            return
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise FindingsError(problem)

    def _audit(self, module: LightningModule, folder: Path) -> str | None:
        """Audit and write; what is to be said against the module."""
        from convaudit import audit
        from convaudit.registry import report_part

        text = report_part("text")

        name = type(module).__name__
        example = self.input if self.input is not None else module.example_input_array
        if example is None:
            return (
                f"convaudit: {name} was not audited: set example_input_array in the module, or give "
                "ConvauditCallback(input=…), a tensor as forward takes it"
            )
        try:
            self.result = result = audit(module, example, **self.settings)
        except TargetError as error:
            return f"convaudit: {name} was not audited: {error}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, report in self.reports.items():
                output.write(folder / file, report.render(result))
        except (OSError, ReportError) as error:
            return f"convaudit: the report on {name} was not written: {error}"
        if not any(getattr(result.summary, level) for level in at_least(self.fail_on)):
            return None
        return f"convaudit: {name} has findings (fail_on={self.fail_on!r}); report in {folder}\n{text.render(result)}"
