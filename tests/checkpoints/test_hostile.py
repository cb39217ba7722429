"""Malicious and damaged checkpoints: the right code, nothing imported or run, never a traceback."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.malicious import GLOBAL, cases, in_zip, tensor
from safetensors.torch import save

from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.pickle_reader import read
from convaudit.checkpoints.tiers import tier_of
from convaudit.settings import AuditSettings, Resolver

WATCHED = Path(__file__).with_name("watched.py")


def watch(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(WATCHED), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_malicious_files_are_named_and_nothing_runs(tmp_path: Path) -> None:
    wanted = []
    for index, (title, name, data, said) in enumerate(cases()):
        (tmp_path / f"{index:04}").mkdir()
        with open(tmp_path / f"{index:04}" / name, "wb") as file:
            file.write(data)
            file.truncate(getattr(data, "size", len(data)))
            file.seek(0, os.SEEK_END)
            file.write(getattr(data, "tail", b""))
        wanted.append((title, said))
    rows = watch(tmp_path)
    found = dict(zip([title for title, _ in wanted], rows, strict=True))

    assert len(wanted) == len(found) > 300
    codes = {title: row["codes"] for title, row in found.items()}
    notes = {title: " ".join(row["notes"]) for title, row in found.items()}
    assert [(title, codes[title]) for title, said in wanted if said.startswith("CNV") and said not in codes[title]] == []
    assert [title for title, said in wanted if said.startswith("~") and said[1:] not in notes[title]] == []
    assert {title: row["status"] for title, row in found.items() if row["status"] not in ("ok", "partial")} == {}
    assert {title: row["events"] for title, row in found.items() if row["events"]} == {}
    assert not any(row["torch"] for row in found.values())
    assert {title: row["kilobytes"] for title, row in found.items() if row["kilobytes"] > 300_000} == {}


def whole_files() -> dict[str, bytes]:
    state, files = torch.nn.Linear(3, 2).state_dict(), {}
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=zipped)
        files["a.pt" if zipped else "legacy.pt"] = out.getvalue()
    return files | {"a.safetensors": save(state)}


@pytest.mark.parametrize(("name", "whole"), whole_files().items())
def test_every_truncation_and_2000_flips(tmp_path: Path, name: str, whole: bytes) -> None:
    settings, path = AuditSettings(), tmp_path / name
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        assert "CNV602" in {f.rule for f in audit_file(str(path), settings).findings}, length
    chance = random.Random(0)
    for _ in range(700):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        result = audit_file(str(path), settings)
        assert "CNV001" not in {f.rule for f in result.findings} or result.error is not None


class Inert:
    """What every name of a random pickle becomes for Python's own unpickler: it takes part in everything, and does nothing."""

    def __new__(cls, *args: object, **options: object) -> Inert:
        return object.__new__(cls)

    def __call__(self, *args: object, **options: object) -> Inert:
        return self

    __init__ = __setstate__ = __setitem__ = append = extend = add = lambda self, *args, **options: None  # type: ignore[assignment]


class Seen(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: set[tuple[str, ...]] = set()

    def find_class(self, module: str, name: str) -> type[Inert]:  # type: ignore[override]
        self.names.add(tier_of(module, name)[1:])
        return Inert

    def persistent_load(self, identifier: object) -> Inert:
        return Inert()


OPCODES = [
    b"cos\nsystem\n", b"cm\na.b\n", b"c__builtin__\neval\n", b"ios\nsystem\n", b"\x8c\2os", b"\x8c\6system", b"X\2\0\0\0os", b"U\2os",
    b"S'os'\n", b"Vx\n", b"\x93", b"I0x1f\n", b"I01\n", b"I017\n", b"L0x5L\n", b"F1.5\n", b"I0\0x\n", b"F1\0x\n", b"g0\0\n", b"h\0", b"h\1", b"g0\n", b"q\0", b"q\1",
    b"p0\n", b"\x94", b"P1\n", b"Q", b"\x80\4", b"C\1a", b"\x96\1\0\0\0\0\0\0\0a", b"\x8a\1a", b"J1234", b"K\1",
    *(bytes([code]) for code in b"((()}]N012tldaesubRo\x8f\x85\x86\x87\x90\x91\x81\x92\x88\x97\x98"),
]  # fmt: skip


def test_every_name_that_pickle_looks_up_is_seen() -> None:
    chance = random.Random(1)
    loaded = 0
    for number in range(50_000):
        parts = chance.choices(OPCODES, k=chance.randrange(2, 24))
        if number % 5 == 0:  # the unpickler of C drops what is left of a frame that something crosses
            parts.insert(chance.randrange(len(parts)), b"\x95" + struct.pack("<Q", chance.randrange(16)))
        data = b"".join(parts) + b"."
        theirs, mine = Seen(data), read(data)
        try:
            theirs.load()
        except Exception:  # noqa: BLE001 - most are no pickles
            assert theirs.names <= mine.globals.keys(), data
        else:
            loaded += 1
            if mine.problem is not None:
                assert "frame" in str(mine.problem), data
                assert theirs.names <= mine.globals.keys(), data
                continue
            assert theirs.names == mine.globals.keys() - {("", use.name) for use in mine.globals.values()}, data

    assert loaded > 500


def sparse_checkpoints(folder: Path, size: int) -> None:
    """A safetensors file and a zip checkpoint of one tensor of ``size`` bytes, nearly all of which is a hole."""
    for name in ("safetensors", "zip"):
        (folder / name).mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(folder / "safetensors" / "big.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    pickled = b"\x80\x02}U\1w" + tensor("0", size // 4) + b"s."
    local, central = [], []
    with open(folder / "zip" / "big.pt", "wb") as file:
        for member, data, length in ((b"a/data.pkl", pickled, len(pickled)), (b"a/data/0", b"", size)):
            crc, wide = zlib.crc32(pickled) if data else 0, struct.pack("<2H3Q", 1, 24, length, length, file.tell())
            head = struct.pack("<5H3L2H", 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(member), 20)
            local.append(file.tell())
            file.write(b"PK\3\4" + head + member + struct.pack("<2H2Q", 1, 16, length, length) + data)
            file.seek(length - len(data), os.SEEK_CUR)
            head = struct.pack("<6H3L5H2L", 45, 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(member), 28, 0, 0, 0, 0, 0xFFFFFFFF)
            central.append(b"PK\1\2" + head + member + wide)
        at, directory = file.tell(), b"".join(central)
        file.write(directory + b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 2, 2, len(directory), at))
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, at + len(directory), 1))
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def test_size_does_not_matter(tmp_path: Path) -> None:
    sparse_checkpoints(tmp_path, 100 * 10**9)
    for row in watch(tmp_path):
        assert (row["codes"], row["status"], row["torch"]) == ([], "ok", False)
        assert row["kilobytes"] < 80_000


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    tree.mkdir()
    (outside / "x.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    (tree / "m.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    (tree / "x.safetensors").symlink_to(outside / "x.safetensors")
    result = audit_file(str(tree / "m.safetensors.index.json"), AuditSettings())

    assert [f.rule for f in result.findings] == ["CNV602"]
    assert "lies outside the index's folder" in result.findings[0].message


def test_a_link_as_a_member_is_only_bytes(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("a/data/0")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}U\1w" + tensor("0", 2) + b"s.")
        archive.writestr(entry, "/etc/passwd"[:8])
    result = audit_file(str(tmp_path / "a.pt"), AuditSettings())

    assert (result.status, result.findings) == ("ok", [])


HOOKED = """
import sys
from convaudit.cli import cli
folder, where = sys.argv[1:]
names = ("modeling_x", "conftest", "sitecustomize", "usercustomize")
def hook(event, args):
    if event in ("import", "compile", "exec") and any(name in str(args[:2]) for name in names):
        open(where, "a").write(f"{event} {args[:1]}")
sys.addaudithook(hook)
cli(["check", folder, "--format", "json"])
"""


def test_a_downloaded_folder(tmp_path: Path) -> None:
    folder, here = tmp_path / "download", tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    here.mkdir()
    for name in ("modeling_x.py", "conftest.py", "sitecustomize.py", "sub/usercustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__file__)\nfrom torch import nn\nclass Net(nn.Module): pass\n")
    (folder / "convaudit.toml").write_text('ignore = ["CNV6"]\nallow-globals = ["*"]\n')
    (folder / "pyproject.toml").write_text('[tool.convaudit]\nselect = ["CNV101"]\n')
    (folder / "evil.pt").write_bytes(in_zip(b"\x80\x02" + GLOBAL))
    (folder / "sub" / "good.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    (folder / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "error.bin").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (folder / "linked.pt").symlink_to("/etc/hosts")
    (folder / "sub" / "up").symlink_to("..")
    done = subprocess.run(
        [sys.executable, "-c", HOOKED, str(folder), str(tmp_path / "ran")], cwd=here, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(tmp_path / "kept")},
    )  # fmt: skip
    targets = {Path(t["target"]).name: [f["rule"] for f in t["findings"]] for t in json.loads(done.stdout)["targets"]}

    assert done.returncode == 1
    assert targets == {"evil.pt": ["CNV601"], "good.safetensors": []}
    assert not (tmp_path / "ran").exists()
    for name, said in (("pointer.safetensors", "Git LFS pointer"), ("error.bin", "HTML page")):
        assert said in str(audit_file(str(folder / name), AuditSettings()).error)


def test_settings_beside_a_checkpoint_are_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "evil.pt").write_bytes(in_zip(b"\x80\x02" + GLOBAL))
    (tmp_path / "download" / "convaudit.toml").write_text('fail-on = "never"\nignore = ["CNV6"]\n')
    monkeypatch.chdir(tmp_path)

    assert Resolver().of("download/evil.pt") == Resolver().of(".")


def test_settings_cannot_hide_code_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"cos\nsystem\n(S'id'\ntR.")
    result = audit_file(str(tmp_path / "a.pt"), AuditSettings(ignore=["CNV6"]))
    [note] = [note for note in result.notes if "CNV601" in note]
    assert "names code that loading would run" in note
