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
from checkpoints.malicious import EMPTY, GLOBAL, in_tar, in_zip, numpy_array
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


def small_dict(data: bytes) -> bytes:
    """A stream of lzma alone whose dictionary has 256 bytes."""
    made = lzma.compress(data, lzma.FORMAT_ALONE)
    return made[:1] + struct.pack("<I", 256) + made[5:]


def checked(head: bytes, form: bytes) -> bytes:
    """A tar header with its checksum in another form."""
    total = 256 + sum(head[:148]) + sum(head[156:])
    return head[:148] + (b"+%06o\0" % total if form == b"+" else b"\x80" + total.to_bytes(7, "big")) + head[156:]


def in_front(form: bytes) -> bytes:
    """A safetensors file whose header is a tar's first name."""
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    size = 512 - 8 - 80 + len(in_tar("storages", GLOBAL))
    head = struct.pack("<Q", 80) + (header % (size, size)).ljust(80)
    return checked(head.ljust(100, b"\0") + in_tar("x", b"")[100:257] + bytes(255), form) + in_tar("storages", GLOBAL)


def behind_a_line(opcodes: bytes) -> bytes:
    """A safetensors file whose first byte makes a text of its header."""
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(opcodes), len(opcodes))
    return struct.pack("<Q", 0x56) + header.ljust(0x56) + opcodes


HIDDEN: dict[str, tuple[bytes, str]] = {
    "code late in a stream": (zlib.compress(b"N0" * 3000 + GLOBAL), "CNV601"), "lzma with a small dictionary": (small_dict(EVIL), "CNV601"),
    "joblib's old format": (b"ZF" + hex(len(EVIL)).encode().ljust(19) + zlib.compress(EVIL), "CNV601"),
    "a tar in front": (in_front(b"+"), "CNV602"), "a tar in front, by a binary checksum": (in_front(b"256"), "CNV602"),
    "opcodes behind a header": (behind_a_line(b"\n" + b"N0" * 5 + b"R"), "CNV602"), "code behind a header": (behind_a_line(b"\n" + GLOBAL), "CNV601"),
    "a break in a stream": (zlib.compress(b"\x80\x04N0R"), "CNV602"), "a late break": (b"N0" * 20 + b"R", "CNV602"), "a break behind a header": (b"\x80\x04N0R", "CNV602"), "code late": (b"N0" * 150_000 + GLOBAL, "CNV601"),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_is_found_in_a_folder(tmp_path: Path, name: str) -> None:
    data, code = HIDDEN[name]
    (tmp_path / "a.joblib").write_bytes(data)

    assert sniff_any(str(tmp_path / "a.joblib"))[0]
    assert code in codes(tmp_path / "a.joblib")


@pytest.mark.parametrize("data", [b"N" * 100 + b"\n", b"\x80\x04\0\0", b"]\0" + bytes(100), behind_a_line(b"\xff" * 9), behind_a_line(b"\n\0R")])
def test_what_only_begins_so_is_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.joblib").write_bytes(data)

    assert sniff_any(str(tmp_path / "a.joblib"))[0] is None or codes(tmp_path / "a.joblib") == set()


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 93])
def test_members_of_an_archive_of_arrays(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing % 93) as archive:
        archive.writestr("a.npy", numpy_array(EVIL))
    data = (tmp_path / "a.npz").read_bytes()
    if packing == 93:
        data = data.replace(b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x5d\0").replace(b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x5d\0")
    (tmp_path / "a.npz").write_bytes(data)
    (tmp_path / "a.pt").write_bytes(data)

    assert (sniff_any(str(tmp_path / "a.npz"))[0] == "zip") == (packing != 93)
    assert ("CNV602" if packing == 93 else "CNV601") in codes(tmp_path / "a.pt")


def test_entries_that_share_their_bytes_are_read_once(tmp_path: Path) -> None:
    data = in_zip(EVIL)
    start = data.index(b"PK\1\2")
    entry = data[start : start + 46 + len("a/data.pkl")]
    (tmp_path / "a.pt").write_bytes(data[:start] + entry * 300 + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 300, 300, 300 * len(entry), start, 0))
    file = read_checkpoint(str(tmp_path / "a.pt"))

    assert [used.name for used in file.globals] == ["os.system"]
    assert "member 'a/data.pkl' is there twice" in file.problems


def test_an_archive_beyond_the_limit_of_a_stream_is_not_half_read(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(in_zip(EMPTY, ("a/data/0", bytes(33_000_000))), 1))

    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\x80\x02" + bytes(33_000_000), 1))

    assert read_checkpoint(str(tmp_path / "b.gz")).problems == ["its gzip stream unpacks to more than 32,000,000 bytes (--max-pickle)"]
    assert "a checkpoint in a gzip file: unpack it first" in str(audit_file(str(tmp_path / "a.gz"), AuditSettings()).error)
    assert sniff_any(str(tmp_path / "a.gz")) == (None, "a checkpoint in a gzip file: unpack it first")


OTHERS = {
    "a.pt": ([("a/.data/extern_modules", b"os\n"), ("a/b.py", b"x = 1"), ("a/m/m.pkl", pickle.dumps(1))], "a torch.package archive: importing from it runs its Python"),
    "b.pt": ([("a/data.pkl", EMPTY), ("a/code/x.py", b""), ("a/constants.pkl", b"\x80\2)."), ("a/constants/0", bytes(70_000))],
             "its constants (70,000 bytes in constants/) are not counted as tensors"),
    "c.pt2": ([("a/archive_format", b"pt2"), ("a/data/aotinductor/model/x.so", b"\x7fELF")],
              "where its weights are is not known: it is compiled (AOTInductor), and they are in its libraries"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_are_not_in_a_table(tmp_path: Path, name: str) -> None:
    members, said = OTHERS[name]
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member, data in members:
            archive.writestr(member, data)
    result = audit_file(str(tmp_path / name), AuditSettings())

    assert (result.totals, result.status, said in result.notes) == (None, "partial", True)
    assert "CNV602" not in {f.rule for f in result.findings}
    assert ("CNV601" in {f.rule for f in result.findings}) == (name != "b.pt")
