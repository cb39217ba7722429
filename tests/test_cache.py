"""The cache: what it answers without torch, and what it must never answer."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convaudit import audit, cache
from convaudit.networks import NETWORKS

NET = """
import json, pathlib
from torch import nn
from widths import WIDTH
class Net(nn.Module):
    def __init__(self, extra=0):
        super().__init__()
        more = json.loads((pathlib.Path(__file__).parent / "net.json").read_text())["more"]
        self.conv = nn.Conv2d(3, WIDTH + more + extra, 1, bias=False)
    def forward(self, x):
        return self.conv(x)
"""
WATCHED = """
import sys
from convaudit.cli import cli
started = []
sys.addaudithook(lambda event, args: started.append(args[0]) if event == "subprocess.Popen" else None)
try:
    cli(sys.argv[1:], standalone_mode=True)
finally:
    print("workers", sum(sys.executable == str(path) for path in started), "torch" in sys.modules, file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "widths.py").write_text("WIDTH = 8\n")
    (tmp_path / "net.json").write_text('{"more": 1}')
    return tmp_path


def check(folder: Path, *args: str, kept: str = "cache") -> tuple[int, int]:
    """Parameters of the first target, and how many workers that took."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "check", *args, "--input", "1,3,8,8", "--format", "json"], cwd=folder,
        capture_output=True, text=True, check=False, env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / kept)},
    )  # fmt: skip
    *_, workers, torch = done.stderr.splitlines()[-1].split()
    assert torch == "False"
    return json.loads(done.stdout)["targets"][0]["totals"]["parameters"], int(workers)


def test_an_unchanged_model_needs_no_worker_and_a_changed_one_does(folder: Path) -> None:
    assert check(folder, "net.py") == (27, 1)
    assert check(folder, "net.py") == (27, 0)
    (folder / "widths.py").write_text("WIDTH = 9\n")
    assert check(folder, "net.py") == (30, 1)
    (folder / "net.json").write_text('{"more": 2}')  # read by the constructor, not imported
    assert check(folder, "net.py") == (33, 1)
    assert check(folder, "net.py") == (33, 0)
    (folder / "torch.py").write_text("")  # would be imported in its place
    (folder / "torch.py").unlink()
    assert check(folder, "net.py:Net(extra=1)") == (36, 1)
    assert check(folder, "net.py", "--no-cache") == (33, 1)
    (folder / "convaudit.toml").write_text('ignore = ["CNV301"]\n')
    assert check(folder, "net.py") == (33, 1)


def test_a_kept_answer_has_the_versions_it_was_made_with(folder: Path) -> None:
    (folder / "own.py").write_text("import timm\n\ndef net(): return timm.create_model('resnet10t')\n")
    first, again = (
        subprocess.run(
            [sys.executable, "-m", "convaudit", "check", "own.py:net", "--format", "json", "--exit-zero"], cwd=folder, capture_output=True,
            text=True, check=True, env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "cache")},
        ).stdout
        for _ in range(2)
    )  # fmt: skip

    assert first == again
    found = json.loads(again)["targets"][0]["versions"]
    assert found == {"python": platform.python_version(), "torch": version("torch"), "timm": version("timm")}


def test_a_module_that_would_now_be_imported_instead(folder: Path) -> None:
    (folder / "net.py").write_text(NET.replace("from widths", "try:\n    import override\nexcept ImportError:\n    pass\nfrom widths"))
    assert check(folder, "net.py") == (27, 1)
    (folder / "override.py").write_text("import widths\nwidths.WIDTH = 99\n")

    assert check(folder, "net.py") == (300, 1)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "foreign", "empty", "a folder"])
def test_a_damaged_entry_is_no_entry(folder: Path, damage: str) -> None:
    check(folder, "net.py")
    (entry,) = (folder / "cache").glob("*.json")
    data = entry.read_bytes()
    entry.unlink()
    if damage == "a folder":
        entry.mkdir()
    else:
        changed = {"truncated": data[:-9], "garbage": b"\x80\x04." + data, "empty": b"", "foreign": data.replace(b"parameters", b"paramEters")}
        entry.write_bytes(changed[damage])

    assert check(folder, "net.py") == (27, 1)


def test_a_cache_that_cannot_be_written_is_said(folder: Path) -> None:
    (folder / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", "net.py", "--input", "1,3,8,8"], cwd=folder, capture_output=True,
        text=True, check=False, env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "file")},
    )  # fmt: skip

    assert done.returncode == 0
    assert "was not written: " in done.stderr
    assert "27 parameters" in done.stdout


def test_parallel_runs_share_it(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: check(folder, "net.py")[0], range(4)))

    assert found == [27] * 4
    assert check(folder, "net.py") == (27, 0)
    assert not list((folder / "cache").glob("*.part"))


def test_what_nobody_asked_for_in_a_month_goes(folder: Path) -> None:
    old, used, new, other = (folder / "cache" / name for name in (f"{'a' * 64}.json", f"{'b' * 64}.x.part", f"{'c' * 64}.json", "x.json"))
    check(folder, "net.py")
    (own,) = (folder / "cache").glob("*.json")
    now = time.time()
    for path, days in ((old, 31), (used, 31), (new, 29), (other, 99), (own, 40)):
        path.touch()
        os.utime(path, (now - days * 86_400,) * 2)
    assert check(folder, "net.py") == (27, 0)
    assert check(folder, "net.py:Net(1)") == (30, 1)

    assert [path.exists() for path in (old, used, new, other, own)] == [False, False, True, True, True]


def test_the_longest_unused_go_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVAUDIT_CACHE_DIR", str(tmp_path))
    paths = [tmp_path / f"{index:064x}.json" for index in range(3)]
    for index, path in enumerate(paths):
        with path.open("wb") as file:
            file.truncate(cache.MOST_BYTES // 2)  # takes no space on the disk
        os.utime(path, (time.time() - index,) * 2)
    cache.trim()

    assert [path.exists() for path in paths] == [True, True, False]


def test_a_source_that_targets_share_is_read_once(folder: Path) -> None:
    code = (
        "import sys\nopened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(args[0]) if event == 'open' else None)\n"
        "from convaudit.cli import cli\ntry:\n    cli(sys.argv[1:])\nfinally:\n    print(sum(str(p).endswith('widths.py') for p in opened))\n"
    )
    targets = [f"net.py:Net({extra})" for extra in range(3)]
    environment = {**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", code, "check", "--quiet", "--input", "1,3,8,8", *targets]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "1"


def test_clean_removes_what_is_kept(folder: Path) -> None:
    check(folder, "net.py")
    (folder / "cache" / "revisions" / f"{'a' * 12}-{'b' * 40}" / "models").mkdir(parents=True)  # of a diff that was killed
    environment = {**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "convaudit", "cache", "clean"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)

    assert done.stdout == f"removed 2 entries from {folder / 'cache'}\n"
    assert not (folder / "cache").exists()


@pytest.fixture(scope="module")
def entry(tmp_path_factory: Any) -> Path:
    """A cache folder whose one entry is good."""
    import torch

    build, shape = NETWORKS["FCNetwork"]
    where: Path = tmp_path_factory.mktemp("cache")
    os.environ["CONVAUDIT_CACHE_DIR"] = str(where)
    assert cache.keep("k", [], audit(build(), torch.empty(shape, device="meta")).targets[0], 0.0) is None
    return where / "k.json"


@given(st.data())
@settings(max_examples=200)
def test_no_flipped_byte_is_trusted(entry: Path, data: st.DataObject) -> None:
    os.environ["CONVAUDIT_CACHE_DIR"] = str(entry.parent)
    good = entry.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[at] ^ data.draw(st.integers(1, 255))
    try:
        entry.write_bytes(good[:at] + bytes([flipped]) + good[at + 1 :])
        assert cache.find("k") is None
    finally:
        entry.write_bytes(good)
    assert cache.find("k") is not None
