"""What a file is, by its first bytes."""

from __future__ import annotations

import bz2
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator

from convaudit.checkpoints.archive import (
    Inflater,
    Readable,
    Unpacker,
    Window,
    unpacked,
)
from convaudit.checkpoints.pickle_reader import (
    OLD_PICKLE,
    looks_like_pickle,
)

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2", ".pkl", ".th", ".tar", ".index.json")
"""Suffixes worth a look in a folder; what a file is, its first bytes say."""
MAX_HEADER = 100 * 1000**2
"""Bytes of a safetensors header, the official library's own limit; 8 MB are read unless --max-pickle is raised."""
MAGIC_BYTES = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
PACKED = {
    b"\x1f\x8b\x08": "a gzip file", b"BZh": "a bzip2 file", b"\xfd7zXZ\0": "an xz file", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive", b"(\xb5/\xfd": "a Zstandard file", b"\4\x22\x4d\x18": "an LZ4 file",
}  # fmt: skip
"""What is packed, by its first bytes."""
UNREAD = ("a 7z archive", "a RAR archive", "a Zstandard file", "an LZ4 file", "a tar file", "a checkpoint in", "an archive beyond")
"""How it begins what is said of archives that are not looked into, or not to their end."""
STREAMS: dict[bytes, tuple[str, Callable[[], Unpacker]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda: Inflater(31)), b"BZh": ("bzip2", bz2.BZ2Decompressor),
    **dict.fromkeys((b"\xfd7zXZ\0", b"\x5d\0"), ("xz", lambda: lzma.LZMADecompressor(memlimit=100_000_000))),
    **dict.fromkeys((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"ZF0x"), ("zlib", lambda: Inflater(15))),
}  # fmt: skip
"""How a file is unpacked that is one stream, by its first bytes (joblib writes all of them, torch none)."""
OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras, h5py), which is not read: convert its weights to safetensors",
    b"GGUF": "a GGUF file (llama.cpp), which is not read: take the safetensors file that it was made from",
    b"\x93NUMPY": "a NumPy array, no checkpoint: save a dict of tensors by name",
    b"ggml": "a GGML file, which is not read: take the checkpoint that it was made from",
    b"%PDF": "a PDF document", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
}  # fmt: skip
"""Other kinds of files by their first bytes."""
_ONNX = re.compile(rb"\x08[\x01-\x0f]\x12[\x01-\x40](?:pytorch|keras|tf2onnx|onnx|skl2onnx)")
"""An ONNX ModelProto: its IR version, then its producer (``onnx/onnx.proto``)."""


def refusal(head: bytes) -> str | None:
    """What a file is that is no checkpoint, by its first 512 bytes; None where that cannot be told."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not downloaded (git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: an error page, or a link that was not the file's own"
    packed = packed_as(head)
    if packed:
        return f"{packed}: unpack it first"
    if is_tar(head):
        return "a tar file (torch 0.1 saved such): unpack it, and audit what is in it"
    for begin, said in OTHERS.items():
        if head.startswith(begin):
            return said
    if _ONNX.match(head):
        return "an ONNX model: audit the PyTorch model that it was exported from"
    return None


def packed_as(head: bytes) -> str | None:
    """What a file is packed as; None where it is not."""
    return next((said for start, said in PACKED.items() if head.startswith(start)), None)


def stream_of(file: Readable, head: bytes) -> tuple[str, Iterator[bytes]] | None:
    """What a file that is one compressed stream is packed with, and its bytes; None of any other."""
    how, make = next((found for start, found in STREAMS.items() if head.startswith(start)), ("", None))
    start = 0 if not head.startswith(b"ZF") else 22 if head[21:22] == b" " else 21  # joblib's old header, with the size
    return None if make is None else (how, unpacked(Window(file, start, 1 << 62), make, several=True))


def is_tar(head: bytes) -> bool:
    """A tar archive by its magic, or because ``tarfile`` (which torch.load tries first) takes the first header."""
    if head[257:262] == b"ustar":
        return True
    if len(head) < 512 or (head[148] > 0x37 and head[148] not in (0x80, 0xFF)):  # where the checksum is
        return False
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def recognise(head: bytes, name: str, size: int) -> str | None:
    """``zip``, ``safetensors``, ``pickle`` or ``sharded`` by the first bytes; the name decides where they are too few."""
    name = name.lower()
    if name.endswith(".index.json") and not (head.startswith(b"PK\3\4") or looks_like_pickle(head)):
        return "sharded"
    sure = "zip" if head.startswith(b"PK\3\4") else "safetensors" if _fits(head, size) else None
    if refusal(head) and not (sure and is_tar(head)):
        return None
    if sure:
        return sure
    if head.startswith(b"PK\5\6") or (len(head) < 4 and b"PK\3\4".startswith(head)):
        return "zip"
    if MAGIC_BYTES in head[:32] or (head[0] == 0x80 and (len(head) < 2 or head[1] <= 5)):
        return "pickle"
    if name.endswith(".safetensors") or (head[8:9] == b"{" and head[7] == 0):
        return "safetensors"
    if OLD_PICKLE.match(head.lstrip(b"(")) or head[:2] in (b"(d", b"(l", b"(t"):
        return "pickle"
    return None


def _fits(head: bytes, size: int) -> bool:
    """Whether a safetensors header begins, of a length that the file has."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size - 8, MAX_HEADER)
