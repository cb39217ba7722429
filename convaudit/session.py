"""One run of the command line: its options, the settings that hold for its targets, and the workers that audit them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convaudit import baseline as baselines
from convaudit import cache, suppressions
from convaudit.errors import ConvauditError, UsageError
from convaudit.paths import target_key
from convaudit.pool import Answer, Pool
from convaudit.result import AuditResult, TargetResult, assemble
from convaudit.settings import CONVENTIONS, INPUT_FORM, Resolver, at_least, read_input
from convaudit.terminal import Bars, say

if TYPE_CHECKING:
    from convaudit.checkpoints.architecture import Expected

F = TypeVar("F", bound=Callable[..., Any])
_HEADERS = 20 * 1000**2
"""What the headers of a large checkpoint take to read, in bytes of weights that could be read meanwhile."""
_READERS_PAY = 800 * 1000**2
"""What the start of processes that read checkpoints takes, in the same bytes."""


def audit_options(command: F) -> F:
    """The options of every command that audits targets."""
    for option in (
        click.option(
            "--input", "inputs", multiple=True, metavar="[NAME:]SHAPE[:DTYPE]", help="Example input; repeats."
        ),
        click.option(
            "--input-from", metavar="MODULE:FUNCTION", help="A function (of a module or FILE.py) that makes the input."
        ),
        click.option("--submodule", metavar="NAME", help="Audit a part of the model."),
        click.option("--config", type=click.Path(path_type=Path), help="Settings file, in place of each target's own."),
        click.option(
            "--flop-convention", type=click.Choice(CONVENTIONS),
            help="FLOPs of a multiply-accumulate: one (fvcore), or two.  [default: fvcore]",
        ),
        click.option("--jobs", type=click.IntRange(1), help="Worker processes.  [default: 1 for models, up to 4 for checkpoints]"),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=60.0,
            show_default=True,
            help="Seconds per target.",
        ),
        click.option(
            "--memory-limit", type=click.FloatRange(0, min_open=True), default=8.0, show_default=True, metavar="GB",
            help="Memory that a target's own code may take.",
        ),
        click.option("--no-cache", is_flag=True, help="Audit anew, and keep nothing."),
    ):
        command = option(command)
    return command


def settings_of(options: dict[str, Any], **forced: Any) -> Resolver:
    """The settings files and the command line over them; ``forced`` holds whatever either says."""
    given = {
        "select": _codes(options.get("select")), "extend-select": _codes(options.get("extend_select")),
        "ignore": _codes(options.get("ignore")), "fail-on": options.get("fail_on"),
        "flop-convention": options.get("flop_convention"), "dataset-size": options.get("dataset_size"),
        "strict-pickle": options.get("strict_pickle"), "max-pickle": options.get("max_pickle"),
        "weights": {None: None, True: "always", False: "never"}[options.get("weights")],
        "pretrained": options.get("pretrained"), "require-complete": options.get("require_complete"),
    }  # fmt: skip
    return Resolver(options.get("config"), {k: v for k, v in given.items() if v} | forced)


_REPEATED = {"inputs": "--input"} | {
    name: f"--{name.replace('_', '-')}"
    for name in ("input_from", "submodule", "config", "select", "extend_select", "ignore", "model", "pretrained", "dataset_size",
                 "baseline", "flop_convention", "require_complete", "strict_pickle", "max_pickle", "weights", "sha256")
}  # fmt: skip
"""Options that bear on a result, by their parameters."""


_STEERING = {"inputs": "--input", "input_from": "--input-from", "submodule": "--submodule", "batch": "--batch"}
"""Options that say which part of a model or which input is meant, by their parameters."""


def repeated(options: dict[str, Any]) -> list[str]:
    """The words of the command line that bear on a result."""
    words = []
    for name, flag in _REPEATED.items():
        given = options.get(name)
        if isinstance(given, bool):
            words += [flag] if given else ["--no-weights"] if name == "weights" else []
        elif given is not None:
            words += [word for value in (given if isinstance(given, tuple) else (given,)) for word in (flag, str(value))]
    return words


def _codes(values: Any) -> list[str]:
    return [code.strip() for value in values or () for code in value.split(",") if code.strip()]


class Run:
    """Targets to audit with their settings; those whose result is still in the cache need no worker."""

    def __init__(self, targets: list[str], settings: Resolver, options: dict[str, Any]) -> None:
        for spec in options.get("inputs") or ():
            if read_input(spec) is None:
                raise UsageError(f"--input {spec!r} is not {INPUT_FORM}")
        if options.get("write_baseline") and options.get("prune_baseline"):
            raise UsageError("--write-baseline and --prune-baseline exclude each other")
        self.settings, self.options = settings, dict(options)
        self.said = repeated(options)
        self.timeout = float(options.get("timeout") or 60.0)
        self._baselines: dict[Path, baselines.Baseline] = {}
        self.requests = [self._request(target) for target in targets]
        self.keys = [] if options.get("no_cache") else [cache.key_of(request) for request in self.requests]
        files = {i for i, target in enumerate(targets) if names_checkpoint(target)}
        digests: dict[str, str] = {}
        self.known = {i: kept for i, key in enumerate(self.keys) if i not in files and (kept := cache.find(key, digests)) is not None}
        self.beside = self._beside(files) if options.get("model") else {}
        self.files = sorted(files - self.beside.keys())
        """Checkpoints that are audited by themselves, without torch."""
        for name, flag in _STEERING.items() if targets and len(files) == len(targets) and not options.get("model") else ():
            if options.get(name):
                raise UsageError(f"{flag} is for models, and every target is a checkpoint")

    def _beside(self, files: set[int]) -> dict[int, str]:
        """The model target that each checkpoint is audited beside (``--model``)."""
        from convaudit.checkpoints.match import model_of

        if not files:
            raise UsageError("--model is for checkpoints, and no target is one")
        word = str(self.options["model"])
        found = {}
        for index in sorted(files):
            target = self.requests[index]["target"]
            model, said = model_of(target, self.settings.of(target).max_pickle) if word == "auto" else (word, None)
            if said:
                say(f"{target}: {said}")
            if model is not None:
                found[index] = model
        return found

    def _checkpoints(self, jobs: int) -> dict[int, TargetResult]:
        """Results of checkpoints: read here one by one, or in up to ``jobs`` processes where these pay. (Two threads take longer
        than one, as each waits for the other's Python.)"""
        found: dict[int, TargetResult] = {}
        with Bars(len(self.files)) as bars:
            work = {index: self._work(index) for index in self.files} if len(self.files) > 1 and jobs > 1 else {}
            if work and sum(work.values()) - max(sum(work.values()) / jobs, *work.values()) > _READERS_PAY:
                try:
                    found = self._read_apart(sorted(work, key=lambda index: -work[index]), jobs, bars)
                except ConvauditError as error:
                    say(f"checkpoints are read one by one: {error}")
            for index in self.files:
                if index not in found:
                    found[index] = self._checkpoint(index, bars)
                    bars.done(self.requests[index]["target"])
        return found

    def _work(self, index: int) -> int:
        """About how many bytes of a checkpoint are read. (Another process saves nothing on small files, however many.)"""
        from convaudit.checkpoints.audit import MAX_WEIGHTS
        from convaudit.checkpoints.shards import shards_of

        target = self.requests[index]["target"]
        files = [target, *(shards_of(Path(target)) if target.endswith(".index.json") else ())]
        size = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
        weights = self.settings.of(target).weights
        read = self.options.get("sha256") or weights == "always" or (weights == "auto" and size <= MAX_WEIGHTS)
        return size if read else min(size, _HEADERS * len(files))

    def _read_apart(self, indices: list[int], jobs: int, bars: Bars) -> dict[int, TargetResult]:
        """Results of checkpoints that other processes read, begun in this order; without those that are to be read here: their
        process did not start, or their result loses something on its way."""
        from convaudit.checkpoints.audit import failed_checkpoint

        given = [self._to_read(index) for index in indices]
        requests = [{**each, "settings": dataclasses.asdict(each["settings"])} for each in given]
        with Pool(jobs, bars.heard) as pool:
            answers = pool.run(requests, self.timeout, lambda result: bars.done(result.target))
        found = {}
        for index, each, answer in zip(indices, given, answers):
            error = answer.result.error
            if error is not None and error.type == "WorkerLost":
                answer.result = failed_checkpoint(each["target"], error, each["settings"])
            if not answer.incomplete:
                found[index] = answer.result
        return found

    def _to_read(self, index: int) -> dict[str, Any]:
        target = self.requests[index]["target"]
        return {"target": target, "settings": self.settings.of(target).for_target(target), "sha256": bool(self.options.get("sha256"))}

    def _checkpoint(self, index: int, bars: Bars, model: Expected | None = None) -> TargetResult:
        from convaudit.checkpoints.audit import audit_or_say

        given = self._to_read(index)
        return audit_or_say(**given, model=model, heard=lambda read, size: bars.heard(given["target"], read, size))

    def _request(self, target: str) -> dict[str, Any]:
        here, options = self.settings.of(target).for_target(target), self.options
        accepted = self.baseline(target)
        if accepted is not None:
            here.reference = accepted.figures(target_key(target))
        return {
            "target": target, "settings": dataclasses.asdict(here), "input": list(options.get("inputs") or ()),
            "input_from": options.get("input_from"), "submodule": options.get("submodule"),
            "batch": options.get("batch"), "memory_limit": options.get("memory_limit"),
        }  # fmt: skip

    def baseline(self, target: str) -> baselines.Baseline | None:
        """The baseline of the command line, else of the target's settings (relative to their file)."""
        where = self._baseline_file(target)
        about_to_be_written = self.options.get("write_baseline") and not self.options.get("baseline")
        if where is None or (about_to_be_written and not where.exists()):
            return None
        if where not in self._baselines:
            self._baselines[where] = baselines.read(where)
        return self._baselines[where]

    def _baseline_file(self, target: str) -> Path | None:
        given: Path | None = self.options.get("baseline")
        settings = self.settings.of(target)
        return given or (Path(settings.root, settings.baseline) if settings.baseline else None)

    @property
    def complete(self) -> bool:
        """Whether no worker is needed: no model is to be audited."""
        return len(self.known) + len(self.files) == len(self.requests)

    def results(self, pool: Pool) -> AuditResult:
        """Every target's result, in order; new ones are kept, unless a plugin could not be loaded."""
        found = self.known | self._checkpoints(pool.readers)
        missing = [i for i in range(len(self.requests)) if i not in found and i not in self.beside]
        models = list(dict.fromkeys(self.beside.values()))
        started = time.time()
        requests = [self.requests[i] for i in missing] + [{**self._request(model), "state_dict": True} for model in models]
        answers = ask(pool, requests, self.timeout)
        problems = set()
        for index, answer in zip(missing, answers):
            if self.keys and not answer.incomplete:
                problems.add(cache.keep(self.keys[index], answer.sources, answer.result, started))
        if problems:
            cache.trim()
        for problem in problems - {None}:
            say(str(problem))
        found.update(zip(missing, (answer.result for answer in answers)))
        built = dict(zip(models, answers[len(missing) :]))
        found.update({i: self._both(i, built[model]) for i, model in self.beside.items()})
        lost = [answer.result for answer in built.values() if answer.result.totals is None]
        results = [found[i] for i in range(len(self.requests))] + lost
        for result in results:
            result.options = self.said
        return assemble(results)

    def _both(self, index: int, model: Answer) -> TargetResult:
        """A checkpoint's result with that of the model it was audited beside."""
        from convaudit.checkpoints.architecture import Expected
        from convaudit.checkpoints.match import merged

        with Bars(1) as bars:
            if model.result.totals is None:
                return self._checkpoint(index, bars)
            expected = Expected(model.result.target, model.state_dict)
            found = self._checkpoint(index, bars, expected)
        return merged(found, model.result, expected) if found.totals is not None else found

    def lenient(self, discovered: set[str]) -> set[str]:
        """Those of ``discovered`` that may be left out where they cannot be built: their settings are not ``strict``."""
        return {target for target in discovered if not self.settings.of(target).strict}

    @property
    def steered(self) -> bool:
        """Whether the command line says which part or which input is meant."""
        return any(self.options.get(name) for name in _STEERING)

    def judged(self, result: AuditResult) -> AuditResult:
        """The result with its suppressed findings marked."""
        return suppressions.apply(result, self.settings.of, self.baseline)

    def fails(self, result: AuditResult) -> bool:
        """Whether a target has a finding that its own ``fail-on`` names."""
        return any(
            finding.suppressed is None and finding.severity in at_least(self.settings.of(target.target).fail_on)
            for target in result.targets for finding in target.findings
        )  # fmt: skip

    def write_baseline(self, path: Path, result: AuditResult) -> AuditResult:
        """Accept today's findings in a file; the result with them marked."""
        if baselines.is_result(path):
            raise UsageError(f"--write-baseline {path}: is a saved result, and would be lost; name another file")
        old = baselines.read(path) if path.exists() else baselines.Baseline()
        result = suppressions.apply(result, self.settings.of)
        made = baselines.updated(old, result.targets, suppressions.ran(self.settings.of))
        baselines.write(path, made)
        say(f"wrote {path}: {made.entries} accepted finding{'s' * (made.entries != 1)}")
        self.options["baseline"], self._baselines[path] = path, made
        return self.judged(result)

    def prune_baselines(self, result: AuditResult, words: tuple[str, ...]) -> None:
        """Take what no longer is out of the baselines that hold for the targets and for the ``words`` that named them."""
        files: dict[Path, list[TargetResult]] = {where: [] for word in words if (where := self._baseline_file(word))}
        for target in result.targets:
            where = self._baseline_file(target.target)
            if where is not None:
                files.setdefault(where, []).append(target)
        if not files:
            raise UsageError("--prune-baseline: there is no baseline; name one with --baseline FILE")
        for where, targets in files.items():
            if baselines.is_result(where):
                raise UsageError(f"--prune-baseline: {where} is a saved result, and would be lost; --write-baseline makes a baseline")
            old = baselines.read(where)
            made = self._baselines[where] = baselines.pruned(old, targets, suppressions.ran(self.settings.of))
            baselines.write(where, made)
            say(f"{where}: {old.entries - made.entries} of {old.entries} entries removed")


def unbuilt(target: TargetResult) -> str | None:
    """Why a target is no model that can be audited by itself; None where it is one."""
    if target.error is not None:
        return target.error.message.removeprefix(f"{target.target}: ")
    return "it has no parameters" if target.totals is not None and not target.totals.parameters else None


def without_unbuilt(result: AuditResult, lenient: set[str]) -> tuple[AuditResult, list[str]]:
    """The result without those of ``lenient`` that cannot be audited by themselves, and a line for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    kept = []
    for target in result.targets:
        reason = unbuilt(target) if target.target in lenient else None
        if reason is None:
            kept.append(target)
        else:
            reasons.setdefault((target.target.partition(":")[0], reason), []).append(target.target)
    return assemble(kept), [
        f"{names[0]} is not audited: {reason}" if len(names) == 1 else f"{file}: {len(names)} models are not audited: {reason}"
        for (file, reason), names in reasons.items()
    ]


def name_broken_plugins() -> None:
    """A line for each plugin of rules or reports that could not be loaded."""
    from convaudit import registry

    for problem in registry.load_problems():
        say(problem)


def names_checkpoint(target: str) -> bool:
    """Whether a target is a file that is no Python source: it is read here, without a worker and without torch."""
    return not target.endswith(".py") and os.path.isfile(target)


def ask(pool: Pool, requests: list[dict[str, Any]], timeout: float) -> list[Answer]:
    """Answers to the requests, in their order."""
    with Bars(len(requests)) as bars:
        return pool.run(requests, timeout, lambda result: bars.done(result.target))
