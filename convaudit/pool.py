"""Worker processes as the parent sees them: started early, one target at a time, replaced when they die or hang."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from convaudit.child import command
from convaudit.discovery import definition_of
from convaudit.errors import ConvauditError
from convaudit.result import TargetFailure, TargetResult, TensorRow, encoded, failed_target


class Answer(msgspec.Struct):
    """What a worker says about one target, and the files outside of installed packages that it read for it."""

    result: TargetResult
    sources: list[str] = []
    incomplete: bool = False
    """A plugin could not be loaded: the result may change with no file changing."""
    state_dict: list[TensorRow] = []
    """The model's, where the request asks for it; non-persistent buffers as "other"."""


_ANSWERS = msgspec.json.Decoder(Answer)
"""Made here, once: two threads that first decode one type at the same time crash msgspec 0.22."""


def spoken(answer: Answer) -> bytes:
    """The line that a worker says; ``incomplete`` where what is spelled out for it is not the same any more."""
    try:
        return msgspec.json.encode(answer)
    except (UnicodeEncodeError, TypeError):
        answer.incomplete = True
        return encoded(answer)


IMPORTED = b"imported"
"""What a worker says between the import of a target's module and the rest of its audit."""
_STEPS = {
    "import": ("in the import", "; the import may loop"), "read": ("while it was read", " while it was read"),
    "trace": ("in the constructor or the forward", "; the constructor or the forward may loop"),
}  # fmt: skip
"""Where a worker died, and what is said of one that does not answer."""
_AMOUNTS = re.compile(rb"(\d{1,18}) (\d{1,18})")
"""How many bytes of a file a worker has read, and of how many."""
Heard = Callable[[str, int, int], None]
"""Told a target, the bytes of it that are read, and all that will be."""
_START_LIMIT = 120.0  # seconds that a worker may take to import torch


class Worker:
    """One child process that audits targets: models, or, with ``heard``, checkpoints (without torch, in one thread)."""

    def __init__(self, heard: Heard | None = None) -> None:
        self.ready, self.heard = False, heard
        try:
            self.process = subprocess.Popen(
                command("convaudit.checkpoints.worker" if heard else "convaudit.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ} if heard else {**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        except OSError as error:
            raise ConvauditError(f"a worker process cannot be started: {error.strerror}: {sys.executable}") from error
        self._buffer = b""

    def ask(self, request: dict[str, Any], timeout: float) -> Answer:
        """The answer for one target; a dead or hung worker gives a failed one (the worker is then gone). One that says how
        much of a file it has read does not hang."""
        target, step = request["target"], "read" if self.heard else "import"
        if not self.ready and (said := self._line(_START_LIMIT)) != b"ready":
            why = said.decode(errors="replace") if said else "its worker did not start"
            lost = self._lost(target, f"{target}: a model target needs PyTorch ({why}); pip install torch, or see pytorch.org", step)
            lost.incomplete = self.heard is not None  # the file can be read without this process
            return lost
        self.ready = True
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._lost(target, "the worker died before the target was read", "read" if self.heard else "trace")
        deadline = time.monotonic() + timeout
        while (line := self._line(deadline - time.monotonic())) is not None:
            if line == IMPORTED and step == "import":
                step = "trace"
            elif self.heard and (amounts := _AMOUNTS.fullmatch(line)):
                self.heard(target, int(amounts[1]), int(amounts[2]))
                deadline = time.monotonic() + timeout
            else:
                break
        if line is None:
            where, loops = _STEPS[step]
            if self.process.poll() is None:
                return self._lost(target, f"{target}: no answer within {timeout:g} s (--timeout){loops}", step)
            code = self.process.returncode
            how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            return self._lost(target, f"{target}: its process died with {how} {where}", step)
        try:
            return _ANSWERS.decode(line)
        except msgspec.DecodeError:
            return self._lost(target, f"{target}: its code wrote into the worker's own channel", "trace")

    def _line(self, timeout: float) -> bytes | None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            if not chunk:
                self.process.wait()
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _lost(self, target: str, message: str, step: Any) -> Answer:
        self.kill()
        path, line = definition_of(target) or (None, None)
        return Answer(failed_target(target, TargetFailure(step, "WorkerLost", message, path, line)))

    def kill(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        """Whether it can take another target."""
        return self.process.poll() is None


MAX_READERS = 4
"""Processes that read checkpoints where nobody says how many."""


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Up to ``jobs`` workers, one by default; with ``heard`` they read checkpoints, and it is told how far they are."""

    def __init__(self, jobs: int | None = None, heard: Heard | None = None) -> None:
        self.jobs, self.heard = jobs or 1, heard
        self.readers = jobs or min(MAX_READERS, _processors())
        """How many processes may read checkpoints."""
        self._lost_at_import: dict[str, TargetFailure] = {}
        """Modules whose import cost a worker: the other targets in them have no better prospects."""
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Start the first worker, which takes a second to import torch, before there is work for it."""
        if not self._workers:
            self._workers.append(Worker(self.heard))

    def run(
        self, requests: list[dict[str, Any]], timeout: float, done: Callable[[TargetResult], None]
    ) -> list[Answer]:
        """Answers in the order of the requests; ``done`` is called after each."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(requests)):
            waiting.put(index)
        results: dict[int, Answer] = {}
        broken: list[BaseException] = []

        def answer(worker: Worker, request: dict[str, Any]) -> Answer:
            target, module = request["target"], request["target"].partition(":")[0]
            before = self._lost_at_import.get(module)
            if before is not None:
                return Answer(failed_target(target, before))
            found = worker.ask(request, timeout)
            error = found.result.error
            if error is not None and (error.type, error.step) == ("WorkerLost", "import") and worker.ready:
                said = error.message.removeprefix(f"{target}: ")
                self._lost_at_import[module] = TargetFailure("import", error.type, said, None, None)
            return found

        def serve(worker: Worker) -> None:
            try:
                while not broken:
                    index = waiting.get_nowait()
                    if not worker.alive:
                        worker = Worker(self.heard)
                        self._workers.append(worker)
                    results[index] = answer(worker, requests[index])
                    done(results[index].result)
            except queue.Empty:
                return
            except BaseException as error:  # noqa: BLE001 - raised again where the answers are waited for
                broken.append(error)

        while len(self._workers) < min(self.jobs, len(requests)):
            self._workers.append(Worker(self.heard))
        threads = [threading.Thread(target=serve, args=(w,), daemon=True) for w in list(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
        if broken:
            raise broken[0]
        return [results[i] for i in range(len(requests))]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker."""
        for worker in self._workers:
            worker.kill()
