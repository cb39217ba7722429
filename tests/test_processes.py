"""Workers: what they cost their neighbours when they die, hang or lie, and that none outlives the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convaudit.errors import ConvauditError
from convaudit.pool import Pool
from convaudit.settings import AuditSettings

NETS = """
import os, time
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
    def forward(self, x):
        return self.conv(x)
class Sleeps(Net):
    def forward(self, x):
        os.system("sleep 1000 &")
        open("started", "w").close()
        time.sleep(1000)
class Lies(Net):
    def forward(self, x):
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"spoilt\\n")
            except OSError:
                pass
        return self.conv(x)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "convaudit", "check", *args, "--input", "1,3,8,8"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "CONVAUDIT_TEST_MARK": str(folder)},
    )  # fmt: skip


def marked(folder: Path) -> list[str]:
    """Command lines of living processes that carry this test's mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_command(folder: Path, how: signal.Signals) -> None:
    running = start(folder, "nets.py:Sleeps", "nets.py:Net", "--jobs", "2")
    wait_until((folder / "started").exists)
    running.send_signal(how)
    _, errors = running.communicate(timeout=30)

    wait_until(lambda: not marked(folder), 10)  # not even what the model's own code started
    assert "Traceback" not in errors
    if how == signal.SIGINT:
        assert running.returncode == 130


def test_a_lying_channel_costs_its_own_target_only(folder: Path) -> None:
    running = start(folder, "nets.py:Lies", "nets.py:Net", "--format", "json")
    out, _ = running.communicate(timeout=120)
    result = json.loads(out)

    assert [t["status"] for t in result["targets"]] == ["failed", "ok"]
    assert "channel" in result["targets"][0]["error"]["message"]


def test_a_timeout_costs_its_own_target_only(folder: Path) -> None:
    running = start(folder, "nets.py:Sleeps", "nets.py:Net", "--format", "json", "--timeout", "5")
    out, _ = running.communicate(timeout=120)

    assert [t["status"] for t in json.loads(out)["targets"]] == ["failed", "ok"]
    assert marked(folder) == []


@pytest.mark.parametrize(("code", "says"), [("while True: pass", "no answer within 5 s"), ("os._exit(3)", "exit code 3 in the import")])
def test_an_import_that_costs_a_worker_is_tried_once_for_a_file(folder: Path, code: str, says: str) -> None:
    (folder / "stuck.py").write_text(f"{NETS}\nopen('imports', 'a').write('x')\n{code}\n")
    running = start(folder, "stuck.py:Net", "nets.py:Net", "stuck.py:Lies", "stuck.py", "--format", "json", "--timeout", "5")
    out, errors = running.communicate(timeout=120)
    targets = json.loads(out)["targets"]

    assert [(t["target"], t["status"]) for t in targets] == [("stuck.py:Net", "failed"), ("nets.py:Net", "ok"), ("stuck.py:Lies", "failed")]
    assert all(says in t["error"]["message"] and t["error"]["step"] == "import" for t in targets[::2])
    assert (folder / "imports").read_text() == "x"
    assert "stuck.py:Sleeps is not audited: " in errors


def test_a_forward_that_loops_is_no_import(folder: Path) -> None:
    out, _ = start(folder, "nets.py:Sleeps", "--timeout", "2", "--format", "json").communicate(timeout=120)
    error = json.loads(out)["targets"][0]["error"]

    assert (error["step"], error["line"]) == ("trace", 10)
    assert error["message"].endswith("the constructor or the forward may loop")


def test_what_breaks_beside_a_worker_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(_: object) -> None:
        raise OSError("the terminal is gone")

    with Pool(2) as pool, pytest.raises(OSError, match="the terminal is gone"):
        pool.run([{"target": f"gone{index}.py", "settings": {}} for index in range(4)], 60.0, done)
    monkeypatch.setattr(sys, "executable", str(folder / "no-python"))
    with Pool() as pool, pytest.raises(ConvauditError, match="a worker process cannot be started: No such file"):
        pool.start()


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_checkpoint_that_costs_its_process_costs_no_other(folder: Path, how: str) -> None:
    torch.save({"w": torch.ones(2)}, folder / "good.pt")
    os.mkfifo(folder / "pipe.pt")  # reading it waits for a writer
    requests = [
        {"target": str(folder / name), "settings": dataclasses.asdict(AuditSettings()), "sha256": False}
        for name in ("good.pt", "pipe.pt", "good.pt")
    ]  # fmt: skip

    def kill() -> None:
        wait_until(lambda: opens(folder / "pipe.pt"))
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)

    with Pool(1, lambda target, read, size: None) as pool:
        if how == "dies":
            threading.Thread(target=kill, daemon=True).start()
        results = [answer.result for answer in pool.run(requests, 2.0 if how == "hangs" else 60.0, lambda _: None)]

    assert [result.status for result in results] == ["ok", "failed", "ok"]
    error = results[1].error
    assert error is not None
    assert (error.step, error.type) == ("read", "WorkerLost")
    assert error.message.endswith(
        "no answer within 2 s (--timeout) while it was read" if how == "hangs" else "its process died with signal 9 (SIGKILL) while it was read"
    )


def opens(pipe: Path) -> bool:
    """Whether somebody has a pipe open to read."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    held.append(descriptor)  # kept open: its reader would see the end otherwise
    return True


held: list[int] = []


def test_files_of_the_working_directory_do_not_stand_in_for_modules(folder: Path) -> None:
    for name in ("json.py", "queue.py", "msgspec.py", "convaudit.py"):
        (folder / name).write_text("raise SystemExit('the wrong module')\n")
    script = Path(sys.executable).with_name("convaudit")
    done = subprocess.run(
        [str(script), "check", "nets.py:Net", "--input", "1,3,8,8"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "224 parameters" in done.stdout


def test_two_files_of_one_name_are_two_worlds(folder: Path) -> None:
    for name, width in (("a", 8), ("b", 16)):
        (folder / name).mkdir()
        (folder / name / "widths.py").write_text(f"WIDTH = {width}\n")
        (folder / name / "models.py").write_text(
            "from torch import nn\nfrom widths import WIDTH\n\n\ndef net():\n    return nn.Conv2d(3, WIDTH, 1, bias=False)\n"
        )
    out, _ = start(folder, "a/models.py:net", "b/models.py:net", "--format", "json").communicate(timeout=120)

    assert [t["totals"]["parameters"] for t in json.loads(out)["targets"]] == [24, 48]


def test_a_folder_without_init_is_forgotten_with_its_package(folder: Path) -> None:
    inner = folder / "package" / "models"
    inner.mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (inner / "parts.py").write_text(NETS)
    for name in ("one", "two"):
        (inner / f"{name}.py").write_text("from .parts import Net\n")
    out, errors = start(folder, *(f"package/models/{name}.py:Net" for name in ("one", "two")), "--format", "json").communicate()

    assert [target["status"] for target in json.loads(out)["targets"]] == ["ok", "ok"], errors


def test_a_target_cannot_take_all_memory(folder: Path) -> None:
    (folder / "greedy.py").write_text(
        NETS + "class Greedy(Net):\n    def __init__(self):\n        super().__init__()\n        self.held = bytearray(3 * 10**9)\n"
    )
    running = start(folder, "greedy.py:Greedy", "nets.py:Net", "--format", "json", "--memory-limit", "2")
    out, _ = running.communicate(timeout=120)
    targets = json.loads(out)["targets"]

    assert [t["status"] for t in targets] == ["failed", "ok"]
    assert targets[0]["error"]["type"] == "MemoryError"
    assert targets[0]["error"]["message"].endswith("it takes more memory than --memory-limit allows")
    assert targets[0]["error"]["line"] == 26


def test_accelerators_that_are_not_there_are_answered(folder: Path) -> None:
    (folder / "gpu.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        torch.cuda.set_device(0)\n        self.conv = nn.Conv2d(3, 8, 3).cuda()\n"
        "        self.mean = torch.zeros(8, device='cuda')\n        self.fc = nn.Linear(8, 4).to(torch.device('cuda:0'), torch.float32)\n"
        "    def forward(self, x):\n        x = self.conv(x.cuda()).mean((2, 3)) + self.mean\n"
        "        return self.fc(x.to('cuda:1')) + torch.zeros(4, device='cuda')\n"
        "net = nn.DataParallel(Net().cuda())\n"
    )
    out, _ = start(folder, "gpu.py:Net", "gpu.py:net", "--format", "json").communicate(timeout=120)

    assert [(t["status"], t["totals"]["parameters"]) for t in json.loads(out)["targets"]] == [("ok", 260)] * 2


def test_a_target_leaves_nothing_to_the_next(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "messy.py").write_text(
        "import os, sys, torch\nos.chdir('elsewhere')\nos.environ['LEFT'] = 'yes'\nsys.path.insert(0, '/nowhere')\n"
        "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n" + NETS
    )
    (folder / "tidy.py").write_text(
        NETS + "assert 'LEFT' not in os.environ\nassert os.path.exists('messy.py')\n"
    )
    out, errors = start(folder, "messy.py:Net", "tidy.py:Net", "--format", "json").communicate(timeout=120)
    after = json.loads(out)["targets"][1]

    assert after["status"] == "ok", errors
    assert after["layers"][0]["dtype"] == "float32"
