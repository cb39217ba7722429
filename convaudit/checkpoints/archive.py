"""Zip archives by their bytes: the central directory against every local header (APPNOTE.TXT 6.3.10). Never extracts."""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, SupportsIndex

from convaudit.checkpoints.pickle_reader import PickleProblem

MAX_DIRECTORY = 64 * 1000**2
"""Bytes of a central directory that are read."""
MAX_SAID = 200
"""Problems, or notes, of one file that are kept; nobody reads more."""


@dataclass
class Member:
    """One member: ``header`` is the offset of its local header, ``start`` that of its data; sizes are in bytes."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int
    start: int = 0


class Said(list[str]):
    """Sentences about a file: the first ``MAX_SAID`` of them, however many a stranger's file asks for."""

    def append(self, said: str) -> None:
        """Keep a sentence while there is room."""
        if len(self) < MAX_SAID:
            super().append(said[:2000])

    def extend(self, said: Iterable[str]) -> None:
        """Keep sentences while there is room."""
        for one in said:
            self.append(one)

    def __iadd__(self, said: Iterable[str]) -> Said:  # type: ignore[override, misc]
        self.extend(said)
        return self

    def insert(self, index: SupportsIndex, said: str) -> None:
        """Keep a sentence at its place."""
        super().insert(index, said[:2000])


class Readable(Protocol):
    """A file opened for bytes, or a part of one."""

    def seek(self, offset: int, /) -> int:
        """Go to an offset."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes from there."""


class Window:
    """A part of a file, as a file of its own."""

    def __init__(self, file: Readable, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def seek(self, offset: int, /) -> int:
        """Go to an offset of the part."""
        self.at = offset
        return offset

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none of them beyond the part."""
        found = read_at(self.file, self.start + self.at, max(0, min(size, self.size - self.at)))
        self.at += len(found)
        return found


class Skipping:
    """A part of a file as the bytes of a pickle most of which is skipped: only what is looked at is read, ``left`` bytes at
    most, and :class:`PickleProblem` raised beyond them."""

    def __init__(self, file: Readable, start: int, size: int, left: int) -> None:
        self.file, self.start, self.size, self.left = file, start, size, left
        self.at, self.held = 0, b""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, where: int | slice) -> int | bytes:
        if isinstance(where, slice):
            first, last, _ = where.indices(self.size)
            return self._read(first, max(0, last - first))
        if not self.at <= where < self.at + len(self.held):
            self.at, self.held = where, self._read(where, min(1 << 12, self.size - where))
        return self.held[where - self.at]

    def find(self, what: bytes, start: int) -> int:
        """Where a byte stands first; -1 where it does not."""
        at, size = start, 1 << 10
        while at < self.size:
            found = self._read(at, min(size, self.size - at)).find(what)
            if found >= 0:
                return at + found
            at, size = at + size, 2 * size
        return -1

    def _read(self, at: int, size: int) -> bytes:
        if size > self.left:
            raise PickleProblem(f"it goes beyond the bytes that are read (--max-pickle), at byte {at:,}", limit=True)
        self.left -= size
        return read_at(self.file, self.start + at, size)


@dataclass
class Archive:
    """What an archive lists, and where it contradicts itself."""

    members: list[Member] = field(default_factory=list)
    problems: Said = field(default_factory=Said)
    read: int = 0
    """Bytes of its directory."""


def read_at(file: Readable, offset: int, size: int) -> bytes:
    """Up to ``size`` bytes at ``offset``."""
    file.seek(offset)
    return file.read(size)


def has_directory(file: Readable, size: int) -> bool:
    """Whether an end-of-central-directory record stands near the end of the file."""
    return b"PK\5\6" in read_at(file, max(0, size - 65557), 65557)


def read_archive(file: Readable, size: int, most: int, room: int = MAX_DIRECTORY) -> Archive:
    """Up to ``most`` members of a zip file of ``size`` bytes, from a directory of up to ``room``; what is wrong is listed,
    never raised."""
    found = Archive()
    for least in (42, 65557):  # without a comment, and with one
        tail_at = max(0, size - least)
        tail = read_at(file, tail_at, least)
        at = tail.rfind(b"PK\5\6")
        if at == len(tail) - 22:
            break
    if at < 0 or at + 22 > len(tail):
        found.problems.append("it has no central directory: truncated, or no zip file")
        return found
    _, disk, _, here, count, length, offset, comment = struct.unpack("<4s4H2LH", tail[at : at + 22])
    end = tail_at + at
    if end + 22 + comment != size:
        found.problems.append(f"{size - end - 22 - comment:,} bytes stand after the end of the archive")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        wide_at = struct.unpack("<Q", tail[at - 12 : at - 4])[0]
        wide = read_at(file, min(wide_at, size), 56)
        if len(wide) == 56 and wide[:4] == b"PK\6\6":
            here, count, length, offset = struct.unpack("<4Q", wide[24:56])
            end = wide_at
        else:
            found.problems.append("its zip64 record is not where it should be")
    if disk or here != count:
        found.problems.append("it is one disk of several")
    if offset + length != end:
        found.problems.append(f"its central directory is {end - offset - length:,} bytes away from its stated place")
    room = min(room, MAX_DIRECTORY)
    if length > room or count > most:
        found.problems.append(f"it has {count:,} members in {length:,} bytes; only {most:,} members are read (--max-pickle)")
    shift = end - offset - length
    for moved in {0, shift} if shift > 0 else {0}:  # where it is said to be, and where it would be behind a prefix
        directory = read_at(file, min(offset + moved, size), min(length, room))
        found.read += len(directory)
        if directory[:4] == b"PK\1\2" or not moved:
            _entries(file, directory, moved, count, most, found)
    _order(file, found, min(offset, size))
    return found


def _entries(file: Readable, directory: bytes, moved: int, count: int, most: int, found: Archive) -> None:
    at = 0
    for _ in range(min(count, most)):
        head = directory[at : at + 46]
        if len(head) < 46 or head[:4] != b"PK\1\2":
            found.problems.append(f"its central directory breaks off after {len(found.members):,} of {count:,} members")
            return
        flags, method, _, crc, packed, size, name_size, extra_size, comment = struct.unpack("<2HL3L3H", head[8:34])
        start = struct.unpack("<L", head[42:46])[0]
        raw = directory[at + 46 : at + 46 + name_size]
        extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
        size, packed, start = _wide(extra, [size, packed, start])
        at += 46 + name_size + extra_size + comment
        name = raw.decode("utf-8", "backslashreplace")
        _add(file, found, Member(name, method, crc, packed, size, start + moved), raw, flags)
    if at != len(directory) and count <= most:
        found.problems.append(f"its central directory has {len(directory) - at:,} bytes too many")


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, those written as 2³²−1 taken from the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack("<2H", extra[at : at + 4])
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF and len(body) >= 8:
                    values[index], body = struct.unpack("<Q", body[:8])[0], body[8:]
            break
        at += 4 + size
    return values


def _add(file: Readable, found: Archive, member: Member, raw: bytes, flags: int) -> None:
    name, header = member.name, member.header
    shown = repr(name[:80])
    if flags & 1:
        found.problems.append(f"member {shown} is encrypted")
    parts = re.split(r"[/\\]", name)
    if name[:1] in ("/", "\\") or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:[/\\]", name):
        found.problems.append(f"member {shown} would be written outside its folder")
    local = read_at(file, min(header, 2**62), 30)
    if len(local) < 30 or local[:4] != b"PK\3\4":
        found.problems.append(f"member {shown} has no local header at byte {header:,}")
        return
    local_flags, method, _, crc, packed, size, name_size, extra_size = struct.unpack("<2HL3L2H", local[6:30])
    rest = file.read(name_size + extra_size)
    size, packed = _wide(rest[name_size:], [size, packed])
    if rest[:name_size] != raw:
        other = rest[:name_size].decode("utf-8", "backslashreplace")
        found.problems.append(f"member {shown} is called {other[:80]!r} in its local header")
    if method != member.method or (local_flags ^ flags) & 1:
        found.problems.append(f"member {shown}: its local header differs from the central one")
    elif not local_flags & 8 and (crc, packed, size) != (member.crc, member.packed, member.size):
        found.problems.append(f"member {shown}: its local header gives other sizes or another CRC than the central one")
    if member.method == 0 and member.packed != member.size:
        found.problems.append(f"member {shown} is stored, and has two different sizes")
    member.start = header + 30 + name_size + extra_size
    found.members.append(member)


def _order(file: Readable, found: Archive, directory: int) -> None:
    """No doubled names, no overlaps, nothing before the first member or hidden between two."""
    names: dict[str, str] = {}
    for member in found.members:
        folded = member.name.casefold()
        if folded in names:
            how = "twice" if names[folded] == member.name else f"beside {names[folded][:80]!r}"
            found.problems.append(f"member {member.name[:80]!r} is there {how}")
        names[folded] = member.name
    last, before = 0, ""
    for member in sorted(found.members, key=lambda m: m.start):
        if member.start < last:
            found.problems.append(f"members {before[:80]!r} and {member.name[:80]!r} overlap")
        elif _hidden(file, last, member.header):
            found.problems.append(f"bytes stand before member {member.name[:80]!r} that the central directory does not list")
        last, before = max(last, member.start + member.packed), member.name
    if _hidden(file, last, directory):
        found.problems.append("bytes stand after the last member that the central directory does not list")
    if last > directory:
        found.problems.append(f"member {before[:80]!r} reaches {last - directory:,} bytes beyond the members' part of the file")
    if found.members and read_at(file, 0, 4) != b"PK\3\4":
        found.problems.append("other bytes stand before the archive")


def _hidden(file: Readable, start: int, end: int) -> bool:
    """Whether a member could stand between two listed ones, where a data descriptor (24 bytes) or padding may be."""
    gap = end - start
    return gap > 4096 or (gap > 24 and b"PK\3\4" in read_at(file, start, gap))


class Unpacker(Protocol):
    """The decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool:
        """Whether its stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether more bytes must be given."""

    @property
    def unused_data(self) -> bytes:
        """What stands behind the stream."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Up to ``max_length`` bytes."""


class Inflater:
    """zlib's decompressor as those of bz2 and lzma are; ``bits`` as in ``zlib.decompressobj``."""

    def __init__(self, bits: int) -> None:
        self._made = zlib.decompressobj(bits)

    @property
    def eof(self) -> bool:
        """Whether its stream has ended."""
        return self._made.eof

    @property
    def needs_input(self) -> bool:
        """Whether more bytes must be given."""
        return not self._made.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What stands behind the stream."""
        return self._made.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Up to ``max_length`` bytes."""
        return self._made.decompress(self._made.unconsumed_tail + data, max_length)


def unpacked(packed: Readable, make: Callable[[], Unpacker], *, several: bool = False) -> Iterator[bytes]:
    """The bytes of a stream (and of the ``several`` behind it), a little of them first. Raises one of ``UNPACKING``."""
    stream, size = make(), 512
    while True:
        data = b""
        if stream.eof:
            data = (stream.unused_data or packed.read(1 << 16)) if several else b""
            if not data:
                return
            stream = make()
        elif stream.needs_input:
            data = packed.read(1 << 16)
        found = stream.decompress(data, size)
        if found:
            yield found
            size = min(2 * size, 1 << 20)
        elif not data and several:
            raise EOFError("its end is missing")
        elif not data:
            return  # a member's size says it


UNPACKING = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, IndexError)
"""What decompressors raise for bytes that are no stream of theirs."""


BEYOND = "unpacks to more than"
"""How :func:`gathered` says that its limit ends a stream."""


def gathered(parts: Iterator[bytes], limit: int) -> tuple[bytes, str | None]:
    """Up to ``limit`` bytes, and why they are not all."""
    kept, left = [], limit
    try:
        for part in parts:
            kept.append(part[:left])
            if len(part) > left:
                return b"".join(kept), f"{BEYOND} {limit:,} bytes (--max-pickle)"
            left -= len(part)
    except UNPACKING as error:
        return b"".join(kept), f"cannot be unpacked: {error}"
    return b"".join(kept), None


def member_bytes(file: Readable, member: Member) -> Iterator[bytes]:
    """The bytes of a compressed member."""
    packed = Window(file, member.start, member.packed)
    if member.method != 14:
        return unpacked(packed, _METHODS[member.method])
    head = packed.read(9)  # version, size of the properties, properties (APPNOTE.TXT 5.8.8)
    return unpacked(packed, lambda: _raw_lzma(head[4:]))


def _raw_lzma(properties: bytes) -> Unpacker:
    first, size = properties[0], int.from_bytes(properties[1:5], "little")
    chain = {"id": lzma.FILTER_LZMA1, "lc": first % 9, "lp": first // 9 % 5, "pb": first // 45, "dict_size": max(4096, min(size, 1 << 26))}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[chain])


_METHODS: dict[int, Callable[[], Unpacker]] = {8: lambda: Inflater(-15), 12: bz2.BZ2Decompressor}
UNPACKED = (*_METHODS, 14)
"""Methods of compression that are unpacked: those of Python's ``zipfile``; torch reads the first alone."""


def end_of(file: Readable, member: Member, most: int) -> bytes:
    """The last ``most`` bytes of a stored or compressed member."""
    if member.method == 0:
        return read_at(file, member.start + max(0, member.packed - most), min(most, member.packed))
    kept, left = b"", member.size
    with suppress(*UNPACKING):
        for part in member_bytes(file, member):
            kept, left = (kept + part[:left])[-most:], left - len(part)
            if left <= 0:
                break
    return kept


def content(file: Readable, member: Member, limit: int) -> tuple[bytes, str | None]:
    """Up to ``limit`` unpacked bytes of a member, and why they are not all of it."""
    if member.method == 0:
        data = read_at(file, member.start, min(member.packed, limit))
    elif member.method in UNPACKED:
        data, short = gathered(member_bytes(file, member), limit)
        if short:
            return data, short
    else:
        return b"", f"is packed by method {member.method}, which is not read"
    if member.size > limit:
        return data, f"has {member.size:,} bytes, more than {limit:,} (--max-pickle)"
    return data, None if len(data) == member.size else f"has {len(data):,} of its {member.size:,} bytes"
