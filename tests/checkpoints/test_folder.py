"""A folder of checkpoints: each once, those of an index with it, whatever the others are."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.malicious import EMPTY, GLOBAL, LIKE, STACKED, in_zip, numpy_array
from safetensors.torch import save_file

from convaudit.folders import holds_models


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder.parent / "kept")},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def check(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = cli(folder, *arguments, "--format", "json")
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "weights"
    (made / "sharded").mkdir(parents=True)
    for i in range(12):
        torch.save({"w": torch.rand(i + 1)}, made / f"{i:02}.pt")
    (made / "03.pt").write_bytes((made / "03.pt").read_bytes()[:-40])
    (made / "05.pt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for name in ("a", "b", "c"):
        save_file({name: torch.ones(3)}, made / "sharded" / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors", "w": "../00.pt"}}
    (made / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    (made / "broken.index.json").write_text("{}")
    return made


def test_each_checkpoint_once(folder: Path) -> None:
    code, one = check(folder, ".")
    again, two = check(folder, ".", "--jobs", "3")
    targets = {t["target"]: t for t in one["targets"]}

    assert (code, again, two) == (2, 2, one)
    assert {name for name in targets if name.startswith("sharded")} == {"sharded/c.safetensors", "sharded/model.safetensors.index.json"}
    assert len(targets) == 12 + 2 + 1
    said = {name: [f["rule"] for f in t["findings"]] for name, t in targets.items() if t["findings"]}
    assert said == {
        "03.pt": ["CNV602"], "05.pt": ["CNV601"], "sharded/model.safetensors.index.json": ["CNV602"], "broken.index.json": ["CNV001"],
    }  # fmt: skip
    assert not (folder / "ran").exists()


def sparse(path: Path, size: int, dtype: str = "U8") -> None:
    """A safetensors file of so many bytes of zeros, which take no disk."""
    header = json.dumps({"w": {"dtype": dtype, "shape": [size // (1 if dtype == "U8" else 4)], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)


WATCHED = """
import os, sys
sys.path[:1] = []
here = os.getcwd()
def heard(event, arguments):
    if event == "subprocess.Popen" or (event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], (str, bytes))):
        path = os.fsdecode(arguments[0] or "")
        seen.append(os.path.relpath(path, here) if event != "subprocess.Popen" else "a process")
seen = []
sys.addaudithook(heard)
from convaudit.cli import cli
try:
    cli()
finally:
    with open(os.environ["SEEN"], "w", errors="replace") as file:
        file.write("\\n".join(name for name in seen if not name.startswith("..")))
"""


def watched(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[bytes], list[str]]:
    """The command, and what it opens in the working directory (``a process``: one that it starts)."""
    environment = {**os.environ, "SEEN": str(folder.parent / "seen"), "CONVAUDIT_CACHE_DIR": str(folder.parent / "kept")}
    done = subprocess.run([sys.executable, "-c", WATCHED, "check", *arguments], cwd=folder, capture_output=True, check=False, env=environment)
    return done, (folder.parent / "seen").read_text().splitlines()


def test_bars_on_a_terminal_tell_how_much_is_read(tmp_path: Path) -> None:
    for name in "ab":
        sparse(tmp_path / f"{name}[red]\x1b[31m.safetensors", 10**8, "F32")
    code = "from convaudit import terminal; terminal.PATIENCE = 0.0; from convaudit.cli import cli; cli()"
    command = [sys.executable, "-c", code, "check", "."]
    terminal, end = os.openpty()
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
    os.close(end)
    bars = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as file:  # its end is an error
        while more := file.read(1 << 16):
            bars += more
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)

    assert all(said in bars for said in (b"auditing", b"1 of 2", rb"a[red]\x1b[31m.safetensors", b"of 0.1 GB"))
    assert (plain.stdout, plain.stderr) == (running.communicate()[0], b"")


def test_processes_that_read_change_nothing_of_the_output(folder: Path) -> None:
    (folder / os.fsdecode(b"\xfe.pt")).write_bytes((folder / "00.pt").read_bytes())
    for name in ("one", "two"):
        sparse(folder / f"{name}.safetensors", 10**9)
    (one, alone), (two, apart) = (watched(folder, ".", "-o", f"../{jobs}.json", "--jobs", jobs) for jobs in "12")

    assert (alone.count("a process"), apart.count("a process")) == (0, 2)
    assert apart.count("05.pt") < alone.count("05.pt")
    assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)
    assert (folder.parent / "1.json").read_bytes() == (folder.parent / "2.json").read_bytes()
    assert all(name in one.stdout for name in (b"one.safetensors", b"udcfe.pt"))


@pytest.mark.parametrize(("word", "opened"), [("deep/a.pt", {"deep/a.pt"}), ("deep", {"deep", "deep/a.pt"}), ("code/net.py", {"code", "code/net.py", "code/near.py"}),
                                              ("package/inner/net.py", {".", "top.py", "package", "package/inner", "package/near.py", *(f"package/inner/{name}.py" for name in ("net", "__init__")), "package/__init__.py"})])  # fmt: skip
def test_outside_a_repository_nothing_but_the_targets_own_tree_is_looked_at(tmp_path: Path, word: str, opened: set[str]) -> None:
    here = tmp_path / "here"
    for name in ("deep", "code", "package/inner", "other/deeper"):
        (here / name).mkdir(parents=True)
    net = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width): self.net = nn.Conv2d(3, width, 3)\n    def forward(self, x): return x\n"
    for name in ("code/net.py", "code/near.py", "package/inner/net.py", "package/near.py", "top.py", "other/deeper/a.py"):
        (here / name).write_text(net)
    for name in ("package/__init__.py", "package/inner/__init__.py"):
        (here / name).write_text("")
    torch.save({"w": torch.ones(2)}, here / "deep/a.pt")
    os.mkfifo(here / "other/pipe.py")  # whoever opens it waits
    for place in (word, str(here / word)):
        assert set(watched(here, place)[1]) == opened


FOUND = {
    "pointer.safetensors": ("other", "Git LFS pointer", "(git lfs pull)"), "error.bin": ("other", "an HTML page"), "empty.pt": ("other", "an empty file"),
    "vocab.bin": ("other", "no checkpoint"), **dict.fromkeys(("pipe.pt", "pipe.py", "pipe.index.json"), ("other", "no regular file")), "weights.tar.gz": ("other", "a gzip file: unpack it"),
    "self.pt": ("link", "a link to self.pt, which leads to itself"), "packed.dat": ("other", "a 7z archive: unpack it first"),
    "model.joblib": ("other", "a pickle that names no code: name it to audit it"),
    "gone.pt": ("link", "a link to nowhere.pt, which is not there"), "hosts.pt": ("link", "out of the folder, to /etc/hosts", "no checkpoint"),
    "out.pt": ("link", "out of the folder", "audited"), "up": ("link", "a link to a folder"), "convaudit.toml": ("settings", "not obeyed"),
    "modeling_x.py": ("code", "not run", "--allow-code"), "conftest.py": ("code", "not run"), "node_modules": ("folder", "not looked into"),
}  # fmt: skip


def downloaded(made: Path) -> Path:
    made.mkdir()
    torch.save({"w": torch.ones(3)}, made / "good.pt")
    torch.save({"w": torch.ones(3)}, made.parent / "out.pt")
    for name, data in (("pointer.safetensors", "version https://git-lfs.github.com/spec/v1\n"), ("error.bin", "<!DOCTYPE html>"), ("empty.pt", ""),
                       ("vocab.bin", "words"), ("convaudit.toml", ""), ("pyproject.toml", "[project]\n"), ("modeling_x.py", ""), ("conftest.py", "")):  # fmt: skip
        (made / name).write_text(data)
    for name, begun in (("weights.tar.gz", b"\x1f\x8b\x08"), ("packed.dat", b"7z\xbc\xaf\x27\x1c"), ("model.joblib", EMPTY)):
        (made / name).write_bytes(begun)
    for name, place in (("gone.pt", "nowhere.pt"), ("self.pt", "self.pt"), ("hosts.pt", "/etc/hosts"), ("out.pt", made.parent / "out.pt"), ("up", "..")):
        (made / name).symlink_to(place)
    for name in ("pipe.pt", "pipe.py", "pipe.index.json", "pipe.json", "pipe"):
        os.mkfifo(made / name)
    (made / "node_modules").mkdir()
    return made


def test_each_oddity_is_named_in_every_report(tmp_path: Path) -> None:
    downloaded(tmp_path / "download")
    (tmp_path / "here").mkdir()
    code, result = check(tmp_path / "here", "../download", "-o", "a.md", "-o", "a.html", "-o", "a.json")
    notes = {Path(note["path"]).name: (note["kind"], note["message"]) for note in result["notes"]}
    text = cli(tmp_path / "here", "../download").stdout

    assert code == 0
    assert {Path(t["target"]).name for t in result["targets"]} == {"good.pt", "out.pt"}
    assert notes.keys() == FOUND.keys()
    for name, (kind, *said) in FOUND.items():
        assert notes[name][0] == kind
        assert all(word in notes[name][1] for word in said)
    for report in (text, (tmp_path / "here" / "a.md").read_text(), (tmp_path / "here" / "a.html").read_text()):
        assert all(name in report for name in FOUND)


def test_each_oddity_that_is_named_is_a_2(tmp_path: Path) -> None:
    made = downloaded(tmp_path / "download")
    said = {
        "pipe.pt": "no regular file", "pipe.py": "no regular file", "self.pt": "which leads to itself", "gone.pt": "which is not there",
        "empty.pt": "an empty file", "pointer.safetensors": "Git LFS", "error.bin": "an HTML page",
    }  # fmt: skip
    code, result = check(made, *said)

    assert code == 2
    assert {t["target"]: said[t["target"]] in t["error"]["message"] for t in result["targets"]} == dict.fromkeys(said, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_a_2(tmp_path: Path) -> None:
    made = downloaded(tmp_path / "download")
    (made / "good.pt").chmod(0)
    code, result = check(made, ".")

    assert code == 2
    assert [n["path"] for n in result["notes"] if n["kind"] == "unreadable"] == ["good.pt"]


def test_many_oddities_of_a_kind_are_counted(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.bin").write_text("<html>")
    done = cli(tmp_path, ".")

    assert done.returncode == 2  # as where one of them is named
    assert done.stdout.count("an HTML page") == 6  # and one for the rest
    assert "and 4 more: an HTML page" in done.stdout
    assert "nothing was audited" in done.stdout


def test_a_linked_folder_is_followed_where_it_is_named(tmp_path: Path) -> None:
    (downloaded(tmp_path / "download") / "round").symlink_to(tmp_path / "download")
    (tmp_path / "named").symlink_to(tmp_path / "download")
    targets = {t["target"] for t in check(tmp_path, "named/")[1]["targets"]}

    assert targets == {"named/good.pt", "named/out.pt"}


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode")
def test_a_name_that_is_not_utf_8_is_spelled_out(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.mkdir()
    (odd / "net.py").write_text("from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3))\n")
    torch.save({"w": torch.full((2,), float("nan"))}, odd / os.fsdecode(b"\xfe.pt"))
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pt")
    reports = [tmp_path / f"a.{suffix}" for suffix in ("html", "md", "csv", "sarif", "xml")]
    for name in ("text", "github", "gitlab"):
        written = [word for path in reports for word in ("-o", str(path))] if name == "text" else []
        done = cli(tmp_path, str(odd / os.fsdecode(b"\xfe.pt")), "good.pt", "--format", name, *written)
        assert done.returncode == 1, (name, done)
        said = [done.stdout, *(path.read_text() for path in reports if written)]
        assert all(r"\udcfe.pt" in text.replace(r"\\u", r"\u") for text in said), name
    code, result = check(tmp_path, ".", "--allow-code", "--input", "1,3,8,8", "--write-baseline", "b.json")
    assert code == 0
    assert {t["target"]: (t["status"], len(t["findings"])) for t in result["targets"]} == {
        "good.pt": ("ok", 0), r"\udcff/\udcfe.pt": ("ok", 1), r"\udcff/net.py:Net": ("ok", 0),
    }  # fmt: skip
    assert check(tmp_path, ".", "--allow-code", "--input", "1,3,8,8", "--baseline", "b.json")[0] == 0


def test_the_checksum_is_shown(folder: Path) -> None:
    import hashlib

    digest = hashlib.sha256((folder / "00.pt").read_bytes()).hexdigest()
    shown = cli(folder, "00.pt", "--sha256", "-o", "../a.md", "-o", "../a.html").stdout

    assert f"sha256 {digest}" in shown
    assert all(digest in (folder.parent / name).read_text() for name in ("a.md", "a.html"))


def test_code_of_a_repository_within_this_one_is_not_run(tmp_path: Path) -> None:
    net = "import torch.nn as nn\nopen({!r}, 'w')\nclass Net(nn.Sequential):\n    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3))\n"
    for place in ("own", "cloned/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "net.py").write_text(net.format(str(tmp_path / f"{place[:3]} ran")))
    torch.save({"w": torch.ones(2)}, tmp_path / "cloned/a.pt")
    for repository in (tmp_path, tmp_path / "cloned"):
        subprocess.run(["git", "init", "-q", repository], check=True)

    for word, targets in ((".", ["cloned/a.pt", "own/net.py:Net"]), ("cloned", ["cloned/a.pt"]), ("cloned/deep", [])):
        _, result = check(tmp_path, word)
        assert [t["target"] for t in result["targets"]] == targets
        assert [n["path"] for n in result["notes"] if n["kind"] == "code"] == ["cloned/deep/net.py"]
    assert not (tmp_path / "clo ran").exists()
    check(tmp_path, "cloned/deep", "--allow-code")
    assert (tmp_path / "clo ran").exists()


HOSTILE = {
    **dict.fromkeys(("evil", "evil.PT", "evil.dat", "evil.joblib", "evil.npz", "evil.txt", "evil.zip", "evil.mar", "evil.weights"), in_zip(GLOBAL)),
    **dict.fromkeys(("config.json", "image.PNG"), in_zip(GLOBAL)), "song.mp3": b"\x80\x02" + GLOBAL, **dict.fromkeys(("old.pickle", "old.sav"), GLOBAL), **dict.fromkeys(("stacked.dat", "stacked.joblib"), STACKED), "objects.npy": numpy_array(GLOBAL),
    "before.dat": STACKED + in_zip(EMPTY), "old.gguf": LIKE["GGUF"], "a.bz2": LIKE["bzip2"], "a.tar": LIKE["a tar"], "part.distcp": GLOBAL,
}  # fmt: skip


def honest(folder: Path) -> None:
    """Files of an ordinary repository, some of which begin as pickles do."""
    folder.mkdir()
    np.savez(folder / "a.npz", w=np.ones(3), n=np.array(["a"]))
    np.save(folder / "a.npy", np.ones(3))
    for name in ("book.docx", "a.jar", "a.whl", "data.zip"):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in (("models/a.py", "import os"), ("lib.so", b"\x7fELF"), ("x.data", bytes(9)), ("models/cos.txt", "cos\nsin\n")):
                archive.writestr(f"a/{member}", data)
    for name, data in (("words.txt", b"cos\nsin\ntan\n"), ("more", b"import\nlist\n"), ("story", b"(the end)"), ("noise.dat", b"\x80\x02\xff" * 300),
                       ("log", b"Vanilla\n."), ("a.json", b'{"a": 1}'), ("a.png", b"\x89PNG\r\n"), ("a.csv", b"a,b\n"), ("words.md", b"cos\nsin\n"), ("a.sh", in_zip(GLOBAL)), ("cached.pickle", pickle.dumps([1, {"a": 2}])), ("empty", b"")):  # fmt: skip
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_hostile_file_is_found_whatever_it_is_called(tmp_path: Path, foreign: bool) -> None:
    honest(tmp_path / "files")
    for name, data in HOSTILE.items():
        (tmp_path / "files" / name).write_bytes(data)
    (tmp_path / "here").mkdir()
    code, result = check(tmp_path / "here" if foreign else tmp_path / "files", "../files" if foreign else ".")

    assert code == 1
    assert {Path(t["target"]).name: {f["rule"] for f in t["findings"]} - {"CNV602"} for t in result["targets"]} == {name: {"CNV601"} for name in HOSTILE}
    assert {Path(note["path"]).name for note in result["notes"]} == ({"a.npz", "data.zip"} if foreign else set())


CAME = {
    **{f"empty{suffix}/a{suffix}": b"" for suffix in (".pt", ".onnx", ".h5", ".gguf", ".npy", ".Pickle")}, "page/a.bin": b"<html>", "build/weights.pt": b"",
    "pointer/a.safetensors": b"version https://git-lfs.github.com/spec/v1\n", "named/config.json": in_zip(EMPTY), "picture/image.png": in_zip(EMPTY),
    "bytes/a.dat": LIKE["GGUF"], "array/a": numpy_array(EMPTY), "deep/er/a/b.pkl": EMPTY,
}  # fmt: skip


@pytest.mark.parametrize("git", [False, True])
def test_code_that_came_with_any_file_of_a_model_is_not_run(tmp_path: Path, git: bool) -> None:
    for name, data in CAME.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    for link, to in (("nowhere/a.pt", "gone.pt"), ("outside/a.pt", "/etc/hosts")):
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(to)
    tops = [path for path in tmp_path.iterdir() if path.is_dir()]
    places = [top / "code" if top.name == "deep" else top for top in tops]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / "came.py").write_text("open('ran', 'w')\nimport torch.nn as nn\nclass Net(nn.Sequential): ...\n")
    if git:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    result = check(tmp_path, *(os.path.relpath(place, tmp_path) for place in places))[1]

    assert {n["path"] for n in result["notes"] if n["kind"] == "code"} == {os.path.relpath(place / "came.py", tmp_path) for place in places}
    assert {t["kind"] for t in result["targets"]} <= {"checkpoint"}
    assert not (tmp_path / "ran").exists()


def test_ordinary_files_are_no_models(tmp_path: Path) -> None:
    honest(tmp_path / "files")
    assert holds_models(str(tmp_path / "files"))
    for name in ("a.npz", "a.npy", "data.zip", "cached.pickle", "noise.dat"):
        (tmp_path / "files" / name).unlink()
    (tmp_path / "files" / ".venv").mkdir()
    (tmp_path / "files" / ".venv" / "a.pt").touch()
    os.mkfifo(tmp_path / "files" / "pipe")
    assert not holds_models(str(tmp_path / "files"))


def test_a_folder_s_settings_are_not_its_checkpoints(tmp_path: Path) -> None:
    made = downloaded(tmp_path / "download")
    (made / "convaudit.toml").write_text("ignore = ['CNV6']\nfail-on = 'never'\n")
    (made / "evil.pkl").write_bytes(GLOBAL)

    assert check(tmp_path, "download")[0] == 1
    assert "# checkpoints in it take those of the working directory: no settings file\n" in cli(tmp_path, "download", "--show-settings").stdout


def test_an_archive_that_is_no_checkpoint_is_none(tmp_path: Path) -> None:
    honest(tmp_path / "files")
    done = cli(tmp_path, "files/a.npz", "files/data.zip")

    assert done.returncode == 2
    assert all(said in done.stdout + done.stderr for said in ("a NumPy archive", "a zip archive without a pickle"))


def test_code_beside_checkpoints_runs_where_git_tracks_it(tmp_path: Path) -> None:
    (tmp_path / "nets" / "deep").mkdir(parents=True)
    net = "import torch.nn as nn\nclass {}(nn.Sequential):\n    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3))\n"
    for place, name in (("own.py", "Own"), ("nets/kept.py", "Kept"), ("nets/came.py", "Came")):
        (tmp_path / place).write_text(net.format(name))
    torch.save({"w": torch.ones(2)}, tmp_path / "nets/deep/a.pt")

    def audited(word: str) -> list[str]:
        return [t["target"] for t in check(tmp_path, word)[1]["targets"] if t["kind"] == "model"]

    assert (audited("."), audited("nets")) == (["own.py:Own"], [])
    subprocess.run("git init -q . && git add nets/kept.py", shell=True, cwd=tmp_path, check=True)
    assert (audited("."), audited("nets")) == (["own.py:Own", "nets/kept.py:Kept"], ["nets/kept.py:Kept"])
    (tmp_path / "nets/deep/a.pt").unlink()
    assert audited("nets") == ["nets/came.py:Came", "nets/kept.py:Kept"]
