"""What is compressed is read within the limits: members of archives, and files that are one stream."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints.malicious import EMPTY, GLOBAL, in_zip
from safetensors.torch import save

from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.formats import read_checkpoint, sniff_any
from convaudit.settings import AuditSettings

EVIL = b"\x80\x02" + GLOBAL
BEHIND = in_zip(EVIL)
STREAMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zlib": zlib.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}  # fmt: skip


def codes(path: Path) -> set[str]:
    return {f.rule for f in audit_file(str(path), AuditSettings()).findings}


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a/data/0", bytes(600) + BEHIND), ("a/data/0", b"\0" + BEHIND), ("a/data/0", bytes(3_000_000) + BEHIND), ("a/in.bin", b"x" + BEHIND),
        *((f"a/x{suffix}", b"echo") for suffix in (".pyw", ".sh", ".ps1", ".bat", ".cmd", ".pyz", ".whl", ".egg", ".jar", ".PY")),
        ("a/x.pth", b"import os; os.system('id')"), ("a/x.pth", b"../lib\r\nimport\tos"), ("a/x.pth", b"#" * 40_000 + b"\0\nimport os"),
    ],
)  # fmt: skip
def test_code_in_members(tmp_path: Path, name: str, data: bytes, packing: int) -> None:
    (tmp_path / "a.pt").write_bytes(in_zip(EMPTY, (name, data), compress=packing))

    assert "CNV601" in codes(tmp_path / "a.pt")


@pytest.mark.parametrize(("name", "data"), [("a/x.pth", BEHIND[:0] + save({"w": torch.ones(2)})), ("a/x.pth", b"../lib\n"), ("a/important", b"import os")])
def test_no_code_in_members(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(in_zip(EMPTY, (name, data)))

    assert "CNV601" not in codes(tmp_path / "a.pt")


def test_a_compressed_member_beyond_the_limit_is_named(tmp_path: Path) -> None:
    large = ("a/data/0", bytes(70_000_000) + BEHIND), ("a/data/1", bytes(70_000_000))
    (tmp_path / "a.pt").write_bytes(in_zip(EMPTY, *large, compress=zipfile.ZIP_DEFLATED))

    assert "not searched for archives behind their beginning (--max-pickle): 'a/data/0' and 1 more" in read_checkpoint(str(tmp_path / "a.pt")).notes


@pytest.mark.parametrize("how", STREAMS)
def test_streams(tmp_path: Path, how: str) -> None:
    pack = STREAMS[how]
    state = {"a.weight": torch.ones(3, 2)}
    torch.save(state, tmp_path / "whole.pt")
    written = {
        "evil.pkl.z": EVIL, "old.joblib": GLOBAL, "zip.pt.gz": in_zip(EVIL), "honest.pkl.gz": pickle.dumps([1, 2]), "headless.z": b"N0" + GLOBAL,
        "bomb.pkl": b"\x80\x02" + bytes(40_000_000), "state.pt.gz": (tmp_path / "whole.pt").read_bytes(), "state.safetensors.gz": save(state),
    }  # fmt: skip
    for name, data in written.items():
        (tmp_path / name).write_bytes(pack(data))
    (tmp_path / "behind.gz").write_bytes(pack(pickle.dumps(1)) + BEHIND)
    (tmp_path / "two.gz").write_bytes(pack(pickle.dumps(1)) + pack(EVIL))
    (tmp_path / "cut.gz").write_bytes(pack(pickle.dumps(list(range(1000))))[:-30])
    (tmp_path / "table.gz").write_bytes(pack(b"a,b\n1,2\n" * 100))
    found = {path.name: codes(path) for path in tmp_path.iterdir() if path.name not in ("table.gz", "whole.pt")}

    assert {name for name, said in found.items() if "CNV601" in said} == {"evil.pkl.z", "old.joblib", "zip.pt.gz", "headless.z", "behind.gz", "two.gz"}
    assert {name for name, said in found.items() if "CNV602" in said} >= {"bomb.pkl", "behind.gz"}
    assert found["cut.gz"] & {"CNV001", "CNV602"}
    assert {name: sniff_any(str(tmp_path / name))[0] for name in ("evil.pkl.z", "headless.z", "honest.pkl.gz", "table.gz")} == {
        "evil.pkl.z": "packed", "headless.z": "packed", "honest.pkl.gz": None, "table.gz": None,
    }  # fmt: skip
    for name in ("state.pt.gz", "state.safetensors.gz"):
        file = read_checkpoint(str(tmp_path / name))
        assert (file.problems, file.parameters, file.places, file.away) == ([], 6, [None], {0: "the file is compressed: unpack it first"})
        assert found[name] == set()
    assert audit_file(str(tmp_path / "table.gz"), AuditSettings()).status == "failed"


def test_joblib_is_read_up_to_its_raw_arrays(tmp_path: Path) -> None:
    wrapper = b"\x80\x04cposix\nsystem\n0cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b"
    for name, pack in (("a.joblib", bytes), ("b.joblib", zlib.compress)):
        (tmp_path / name).write_bytes(pack(wrapper + b"\x07" + bytes(100) + b"."))
        file = read_checkpoint(str(tmp_path / name))

        assert {used.name: used.tier for used in file.globals} == {"posix.system": "code", "joblib.numpy_pickle.NumpyArrayWrapper": "classes"}
        assert file.problems[0].endswith(": joblib puts raw arrays between its opcodes, and nothing behind the first was read")


def test_members_that_are_one_large_pickle_are_not_read_again_and_again(tmp_path: Path) -> None:
    """3,000 entries of a directory for the same 60 MB."""
    name, begun, length = b"a/x.pickle", b"\x80\x04\x8e" + struct.pack("<Q", 60_000_000), 60_000_013
    entry = b"PK\1\2" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, length, length, len(name), 0, 0, 0, 0, 0, 0) + name
    with (tmp_path / "a.pt").open("wb") as file:
        file.write(b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, length, length, len(name), 0) + name + begun)
        file.seek(60_000_000, 1)
        file.write(b"0N")
        at = file.tell()
        file.write(entry * 3000 + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3000, 3000, 3000 * len(entry), at, 0))

    assert "member 'a/x.pickle' is there twice" in read_checkpoint(str(tmp_path / "a.pt")).problems
