"""pytest: ``--convaudit`` adds a test for each model. Until it is given, nothing of convaudit is imported.

Models are chosen and audited once in a run, by one pool: before the first test runs, or, under xdist, by the
controller, which hands the verdicts to its workers.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from convaudit.result import TargetResult


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("convaudit", "models audited by convaudit")
    group.addoption("--convaudit", action="store_true", help="Add a test for each model.")
    group.addoption(
        "--convaudit-target", action="append", default=[], metavar="TARGET",
        help="What to audit, as for convaudit check; repeats. Default: the models under the rootdir.",
    )  # fmt: skip
    parser.addini("convaudit_targets", "As --convaudit-target; paths are relative to this file.", "linelist", [])


def pytest_configure(config: pytest.Config) -> None:
    """Choose the models, where they are asked for."""
    if config.getoption("convaudit"):
        config.addinivalue_line("markers", "convaudit: the audit of a model")
        config.pluginmanager.register(Audits(config), "convaudit-audits")


@dataclass
class Verdict:
    """What became of one target, and where to look first (``line`` counts from 1; 0 is the whole file)."""

    outcome: str
    """"passed", "failed" or "skipped"."""
    text: str
    path: str
    line: int


class Audits:
    """The models of one pytest run and their verdicts."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.lines: list[str] = []
        self.discovered: set[str] = set()
        self.verdicts: dict[str, Verdict] = {}
        given = getattr(config, "workerinput", {}).get("convaudit")
        if given is not None:
            self.verdicts = {target: Verdict(*verdict) for target, verdict in given.items()}
            self.targets = list(self.verdicts)
            return
        from convaudit.errors import ConvauditError

        try:
            self.targets = self._chosen()
        except ConvauditError as error:
            raise pytest.UsageError(f"convaudit: {error}") from error

    def _chosen(self) -> list[str]:
        from convaudit.selection import select
        from convaudit.session import settings_of

        written = [self._from_here(word) for word in self.config.getini("convaudit_targets")]
        words = tuple(dict.fromkeys([*self.config.getoption("convaudit_target"), *written]))
        self.settings, root = settings_of({}), os.path.relpath(self.config.rootpath)
        selection = select(words, self.settings, default=root)
        if selection.lost and (words or self.settings.of(root).strict):
            raise pytest.UsageError("\n".join(f"convaudit: {line}" for line in selection.lines))
        self.lines, self.discovered = selection.lines, selection.discovered
        return selection.targets

    def _from_here(self, word: str) -> str:
        """A target of the ini file as seen from the working directory."""
        place, colon, name = word.partition(":")
        path = (self.config.inipath or self.config.rootpath / "ini").parent / place
        return os.path.relpath(path) + colon + name if path.exists() and (place.endswith(".py") or not colon) else word

    def audit(self, targets: list[str]) -> None:
        """Audit what has no verdict yet, all in one pool."""
        missing = [target for target in targets if target not in self.verdicts]
        if not missing:
            return
        from convaudit.errors import ConvauditError
        from convaudit.integrations import default_options
        from convaudit.pool import Pool
        from convaudit.session import Run

        try:
            run = Run(missing, self.settings, default_options())
            with Pool(self.config.getoption("numprocesses", None) or 1) as pool:
                result = run.judged(run.results(pool))
        except ConvauditError as error:
            raise pytest.UsageError(f"convaudit: {error}") from error
        self.verdicts |= {target.target: self._verdict(target) for target in result.targets}

    def _verdict(self, target: TargetResult) -> Verdict:
        from convaudit.paths import repository_root
        from convaudit.registry import report_part
        from convaudit.result import assemble
        from convaudit.session import unbuilt
        from convaudit.settings import at_least

        text, figures = report_part("text"), report_part("_figures")
        settings = self.settings.of(target.target)
        levels = at_least(settings.fail_on)
        failing = figures.live(target, *levels) if levels else []
        places = [finding.location for finding in failing] + [target.location]
        root = Path(repository_root(os.getcwd()))
        path, line = next(
            ((root / at.path, at.line) for at in places if at and (root / at.path).is_file()),
            (Path(target.target.partition(":")[0]).resolve(), 0),
        )
        discovered = target.target in self.discovered
        said = unbuilt(target)
        if said is not None and (discovered or target.error is not None):
            lenient = discovered and not settings.strict
            return Verdict("skipped" if lenient else "failed", f"not audited: {figures.one_line(said)}", str(path), line)
        *lines, summary = text.render(assemble([target]), show_info="info" in levels).splitlines()
        return Verdict("failed" if failing else "passed", "\n".join([summary, *lines]), str(path), line)

    def pytest_report_header(self) -> list[str]:
        """How many models there are, and what is to be said about the rest."""
        from convaudit.registry import report_part

        return [f"convaudit: {report_part('_figures').plural(len(self.targets), 'model')}", *(f"convaudit: {line}" for line in self.lines)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the models behind the tests."""
        files: dict[Path, dict[str, str]] = {}
        for target in self.targets:
            place, _, name = target.partition(":")
            own = place.endswith(".py")
            path = Path(place).resolve() if own else self.config.inipath or self.config.rootpath
            name = f"convaudit:{name if own else target}".replace("[", "(").replace("]", ")")  # "[" begins parameters
            files.setdefault(path, {})[target] = name
        for path, names in files.items():
            items += session.genitems(ModelFile.from_parent(session, path=path, names=names, audits=self))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Audit the models that are to be run."""
        option = self.config.option
        if option.collectonly or (session.testsfailed and not option.continue_on_collection_errors):
            return
        models = [item for item in session.items if isinstance(item, Model)]
        self.audit([model.target for model in models])
        for model in models:
            if model.verdict.outcome == "skipped":
                model.add_marker(pytest.mark.skip(reason=model.verdict.text))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand every verdict to a worker of xdist, once all are known."""
        self.audit(self.targets)
        node.workerinput["convaudit"] = {target: astuple(self.verdicts[target]) for target in self.targets}


class ModelFile(pytest.File):
    """The file that the tests of some models belong to: their own, or the settings of pytest."""

    def __init__(self, *, names: dict[str, str], audits: Audits, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names
        self.audits = audits

    def collect(self) -> list[pytest.Item]:
        """A test for each target."""
        return [Model.from_parent(self, name=name, target=it, audits=self.audits) for it, name in self.names.items()]


class NotClean(Exception):
    """A model has findings, or was not audited."""


class Model(pytest.Item):
    """The audit of one target."""

    def __init__(self, *, target: str, audits: Audits, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = target
        self.audits = audits
        self.add_marker(pytest.mark.convaudit)

    @property
    def verdict(self) -> Verdict:
        """What became of the target, which is audited now where it was not before."""
        self.audits.audit([self.target])
        return self.audits.verdicts[self.target]

    def runtest(self) -> None:
        """Fail with the findings."""
        if self.verdict.outcome == "failed":
            raise NotClean(self.verdict.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The report's lines in place of a traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, NotClean) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Where the first finding is."""
        found = self.audits.verdicts.get(self.target)
        return (Path(found.path), max(0, found.line - 1), self.name) if found else (self.path, 0, self.name)
