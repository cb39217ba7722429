"""An inert pickle reader: every opcode of protocols 0 to 5, and values that can do nothing.

Written after the comments of CPython's ``pickletools`` and the behaviour of its C unpickler. Nothing is imported, looked
up or called: a global stays a :class:`Global`, a call a :class:`Call`. Nothing recurses, whatever the nesting.
"""

from __future__ import annotations

import codecs
import gc
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from convaudit.checkpoints.tiers import ATTRIBUTES, CONFIGS, GUARDED, SHARDED, TIERS, Tier, is_begun, tier_of
from convaudit.checkpoints.weights_only import FILLED, REFUSED, type_made

MAX_PICKLE = 64 * 1000**2
"""Bytes of one pickle that are read unless more is asked for (--max-pickle)."""
KEPT_TEXT = 1 << 16
"""Bytes of a text or bytes value that are kept; a longer one becomes :class:`Opaque`."""
MAX_NAME = 1000
"""Characters of a module's or global's name; nothing that Python can import has more."""
MAX_INSIDE = 3
"""Pickles in the bytes of pickles that are followed."""

codecs.lookup("raw_unicode_escape")  # its module is imported now, never while a stranger's file is read


class Global:
    """A name that loading would import; ``use`` is its record."""

    __slots__ = ("module", "name", "use")

    def __init__(self, module: str, name: str, use: GlobalUse) -> None:
        self.module = module
        self.name = name
        self.use = use


class Call:
    """What loading would make by calling ``function``: with its state and the items set into it. ``guarded`` where it is one
    of the calls that :data:`GUARDED` names are made for."""

    __slots__ = ("args", "function", "guarded", "items", "rebuilt", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.guarded = False
        self.state: Any = None
        self.items: Dict | None = None  # SETITEM(S) on it, or APPEND(S) with the index left out (None)
        self.rebuilt: dict[int, Any] | None = None  # the tensor that it is, as a part of others


class Dict(list[Any]):
    """A dict as keys and values in turn: nothing of a stranger's is hashed."""

    __slots__ = ()

    def pairs(self) -> list[tuple[Any, Any]]:
        """Keys with their values, in the file's order."""
        return list(zip(self[::2], self[1::2]))


class Set(list[Any]):
    """A set's items."""

    __slots__ = ()


class Persistent:
    """A persistent id: in torch's files, a storage."""

    __slots__ = ("id",)

    def __init__(self, identifier: Any) -> None:
        self.id = identifier


class Opaque:
    """A value too long to keep, or one that only its reader understands; ``span`` is where its bytes stand."""

    __slots__ = ("said", "span")

    def __init__(self, said: str, span: tuple[int, int] | None = None) -> None:
        self.said = said
        self.span = span


@dataclass
class GlobalUse:
    """How a pickle uses one global. ``offset`` is in bytes from the start of its member."""

    name: str
    tier: Tier
    offset: int
    called: bool = False
    arguments: str = ""
    """What it would be called with, shortened."""
    loose: int = 0
    """Of a guarded name: how often it came onto the stack, and was not called for what it may do."""
    worst: Tier = "tensors"
    """The tier of what it was called for."""


class PickleProblem(Exception):
    """A pickle that cannot be read on; ``limit`` where it is convaudit's own limit that ends it, ``truncated`` where its
    bytes end, ``needs`` how many it would have to have at least."""

    def __init__(self, message: str, *, limit: bool = False, truncated: bool = False, needs: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.truncated = truncated
        self.needs = needs


@dataclass
class Work:
    """What may still be read of one file, whatever number of pickles and archives it holds: about 2 s and 200 MB.

    ``pickle`` is the bytes of one pickle, ``header`` those of a JSON header; ``objects`` are containers, calls, texts and
    memo entries, ``text`` is the bytes of texts that are kept.
    """

    pickle: int = MAX_PICKLE
    bytes: int = 2 * MAX_PICKLE
    opcodes: int = 2_000_000
    objects: int = 700_000
    globals: int = 10_000
    text: int = 16_000_000
    tensors: int = 100_000
    members: int = 100_000
    header: int = 8_000_000

    @classmethod
    def of(cls, max_pickle: int) -> Work:
        """The limits for pickles of up to ``max_pickle`` bytes: all grow with it, and the others never shrink."""
        made = cls.part(max(max_pickle, MAX_PICKLE))
        made.pickle, made.bytes = max_pickle, 2 * max_pickle
        return made

    @classmethod
    def part(cls, size: int) -> Work:
        """All limits in proportion to pickles of ``size`` bytes."""
        given = cls()
        return cls(*(max(1, getattr(given, limit.name) * size // MAX_PICKLE) for limit in fields(cls)))


@dataclass
class Reading:
    """One pickle: its inert value, where it ends, its globals, and why it could not be read on."""

    value: Any = None
    end: int = 0
    globals: dict[tuple[str, str], GlobalUse] = field(default_factory=dict)
    problem: PickleProblem | None = None
    inside: list[tuple[int, str]] = field(default_factory=list)
    """Code that pickles held as bytes name, with the offset of those bytes: loading this pickle calls none of it."""
    persistent: list[Any] = field(default_factory=list)
    """Ids of what is stored outside the pickle, in order."""
    types: dict[str, None] = field(default_factory=dict)
    """Types that weights_only must be told as well, though the pickle does not name them."""
    refused: dict[str, None] = field(default_factory=dict)
    """What weights_only refuses, whatever it is told: the first opcode, and containers that it does not fill."""


_ZONE = re.compile(r"[A-Za-z][\w+-]{0,30}(?:/[A-Za-z][\w+-]{0,30}){0,3}", re.ASCII)
"""A key of the time zone database."""
OLD_PICKLE = re.compile(rb"(?:c|i)[A-Za-z_][\w.]{0,200}\r?\n[A-Za-z_][\w.]{0,200}\r?\n")
_NAMES_INSIDE = re.compile(rb"(?<![\w.])(?=[\w.]+\r?\n[A-Za-z_][\w.]{0,200}\r?\n)[\w.]*?[ci][A-Za-z_]")
"""The same anywhere, looked for once per run of letters: searching for the above takes a time that grows with their square."""


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: what is made meanwhile stays alive until the end, and collecting would only take time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if not gc.get_freeze_count():  # else what is not ours would be unfrozen
                gc.freeze()
                gc.unfreeze()  # all is old now: the next collection does not look through it
            gc.enable()


def looks_like_pickle(head: bytes) -> bool:
    """Whether bytes could be the start of a pickle: PROTO, or a GLOBAL or INST of protocols 0 and 1 near the start."""
    return (len(head) > 1 and head[0] == 0x80 and head[1] <= 5) or (head.count(b"\n") > 1 and _NAMES_INSIDE.search(head) is not None)


def may_begin(data: bytes) -> bool:
    """Whether the first byte is an opcode."""
    return bool(data) and _TABLE[data[0]] is not None


def read(data: bytes, start: int = 0, *, work: Work | None = None, depth: int = 0) -> Reading:
    """Read one pickle at ``start``, within what ``work`` has left. Never raises."""
    machine = _Machine(data, start, work or Work(), depth)
    machine.read()
    if machine.unframed is not None and isinstance(data, bytes):
        _read_otherwise(machine)
    return machine.reading


def _read_otherwise(first: _Machine) -> None:
    """Take the names that other unpicklers read where a pickle does not keep to its frames.

    CPython's C unpickler, given a file without ``peek``, reads a frame at once, and drops what is left of it when something
    needs more (``Modules/_pickle.c``, ``_Unpickler_ReadImpl``); after STOP it goes on behind the frame.
    """
    machines, held = [first], 0
    for each in machines:
        others: list[tuple[tuple[int, int, int] | None, int]] = [(crossing, each.start) for crossing in each.crossed]
        others += [(None, at) for at in sorted({each.position, max(each.position, each.frame)}) if each.stopped and at < len(each.data)]
        for crossing, start in others:
            held += len(each.data) if crossing else 0
            if len(machines) == 10 or held > 100_000_000:
                first.reading.globals.setdefault(("", "frames"), GlobalUse("what frames that something crosses hide", "code", first.at))
                return
            data = each.data
            if crossing:
                begun, at, end = crossing
                data = b"".join((data[: begun - 8], (at - begun).to_bytes(8, "little"), data[begun:at], data[end:]))
            other = _Machine(data, start, first.work, first.depth)
            other.read()
            machines.append(other)
            for (module, name), use in other.reading.globals.items():
                known = first.reading.globals.get((module, name))
                a_name = not module or (module.replace(".", "") + name.replace(".", "")).isidentifier()
                if a_name and (known is None or known.tier != "code"):
                    first.reading.globals[module, name] = use


def brief(value: Any, limit: int = 60) -> str:
    """A short, one-line picture of an inert value."""
    said = _brief(value, 2)
    return said if len(said) <= limit else said[: limit - 1] + "…"


def _brief(value: Any, depth: int) -> str:
    if isinstance(value, Global):
        return value.use.name
    if isinstance(value, (str, bytes)):
        return repr(value[:48])
    if value is None or isinstance(value, (bool, float, int)):
        return repr(value)
    if isinstance(value, Opaque):
        return value.said
    if depth == 0:
        return "…"
    if isinstance(value, Persistent):
        return f"persistent {_brief(value.id, depth - 1)}"
    if isinstance(value, Call):
        return f"{_brief(value.function, depth - 1)}(…)"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(_brief(item, depth - 1) for item in value[:4]) + (", …" if len(value) > 4 else "")
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return type(value).__name__


class _Machine:
    """pickle's stack machine over inert values."""

    def __init__(self, data: bytes, start: int, work: Work, depth: int) -> None:
        self.data = data
        self.position = start
        self.at = self.start = start
        self.work = work
        self.depth = depth
        self.spare: Work | None = None  # for the pickles in its bytes
        self.looked_at: dict[int, Any] = {}  # by their id, which they keep while they are held here
        self.guards: list[GlobalUse] = []
        self.table = _WATCHED.copy()
        self.protocol = 0
        self.overlong: PickleProblem | None = None
        self.begun = self.frame = 0  # where the frame begins and ends
        self.crossed: list[tuple[int, int, int]] = []  # frames whose end something crosses: where they begin, where it is, their end
        self.unframed: PickleProblem | None = None
        self.stopped = False
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.fence = 0
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Global] = {}  # by module and name, as they are written
        self.objects = 0
        self.reading = Reading()

    def read(self) -> None:
        """Fill ``reading``. Never raises."""
        reading = self.reading
        try:
            with uncollected():
                reading.value = self.run()
        except PickleProblem as problem:
            reading.problem = problem.with_traceback(None)  # its frames hold the reading
        except IndexError:
            reading.problem = PickleProblem(f"opcode at byte {self.at:,} takes more than the stack holds")
        except (ValueError, struct.error, OverflowError, Warning) as error:
            reading.problem = PickleProblem(f"opcode at byte {self.at:,}: {str(error)[:200]}")
        said = reading.problem
        if said is None or not said.limit:
            if self.overlong is not None:
                reading.problem = self.overlong
            elif said is None or not said.truncated:
                reading.problem = self.unframed or said
        self.settle()
        reading.end = self.position

    def run(self) -> Any:
        """The pickle's value. Numbers and the memo, most of a large pickle, are handled here: a call each would double the time."""
        data, table, end, work, stack, memo = self.data, self.table, len(self.data), self.work, self.stack, self.memo
        left, most, at, last = work.opcodes, work.objects, self.position, end - 4
        whole = last
        try:
            while True:
                if left <= 0 or self.objects > most:
                    raise self.limit("opcodes" if left <= 0 else "objects")
                left -= 1
                if at < whole:  # none of these is cut short, or crosses the end of a frame
                    code = data[at]
                    if code == 0x71 or code == 0x72:  # BINPUT, LONG_BINPUT
                        index = data[at + 1] if code == 0x71 else int.from_bytes(data[at + 1 : at + 5], "little")
                        if len(stack) > self.fence:
                            self.objects += index not in memo
                            memo[index] = stack[-1]
                            at += 2 if code == 0x71 else 5
                            continue
                    elif code == 0x68:  # BINGET
                        value = memo.get(data[at + 1], memo)
                        if value is not memo and not self.guards:
                            stack.append(value)
                            at += 2
                            continue
                    elif code == 0x4B:  # BININT1
                        stack.append(data[at + 1])
                        at += 2
                        continue
                elif whole < last and at >= self.frame:
                    whole = last
                self.at = at
                if at >= end:
                    self.position = at
                    raise PickleProblem(f"the pickle ends at byte {at:,} without STOP", truncated=True)
                code = data[at]
                self.position = at + 1
                if code == 0x2E:  # STOP
                    if self.position < self.frame:
                        self.misframed(f"the pickle ends at byte {at:,}, before its frame")
                    value = self.pop()
                    self.stopped = True
                    return value
                handler = table[code]
                if handler is None:
                    raise PickleProblem(f"byte {at:,} ({code:#04x}) is no pickle opcode")
                handler(self)
                at = self.position
                if code == 0x95:  # FRAME
                    whole = min(last, self.frame - 4)
        finally:
            work.opcodes = left
            work.objects -= min(self.objects, work.objects)

    def limit(self, what: str) -> PickleProblem:
        """That what may be read of a file is used up."""
        return PickleProblem(
            f"it goes beyond the {what} that are read (--max-pickle); nothing after byte {self.at:,} was read", limit=True
        )

    def misframed(self, said: str) -> None:
        """Unpicklers differ on what comes now; the first such place is told."""
        self.unframed = self.unframed or PickleProblem(said)

    def cross(self) -> None:
        """What is read at ``position`` goes beyond the end of the frame."""
        self.misframed(f"opcode at byte {self.at:,} crosses the end of its frame")
        self.crossed.append((self.begun, self.position, self.frame))
        self.frame = 0

    def settle(self) -> None:
        """A guarded name that is only ever called for what is no code is none."""
        for use in self.guards:
            if not use.loose:
                use.tier = use.worst

    # Stack and arguments

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= self.fence:
            raise IndexError
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= self.fence:
            raise IndexError
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise IndexError
        start = self.marks.pop()
        self.fence = self.marks[-1] if self.marks else 0
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, size: int) -> bytes:
        start = self.position
        if start < self.frame < start + size:
            self.cross()
        if size > len(self.data) - start:
            raise PickleProblem(
                f"opcode at byte {self.at:,} needs {size:,} bytes; {len(self.data) - start:,} are left",
                truncated=True, needs=start + size,
            )  # fmt: skip
        self.position = start + size
        return self.data[start : self.position]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if self.position < self.frame and not 0 <= end < self.frame:
            self.cross()
        if end < 0:
            raise PickleProblem(f"opcode at byte {self.at:,}: its line does not end", truncated=True)
        found = self.data[self.position : end]
        self.position = end + 1
        return found

    def sized(self, width: int, *, signed: bool = False) -> bytes:
        """A counted argument, or the first bytes of one that is too long to keep."""
        size = int.from_bytes(self.take(width), "little", signed=signed)
        if size < 0:
            raise PickleProblem(f"opcode at byte {self.at:,} has the negative length {size}")
        if size > len(self.data) - self.position or self.position < self.frame < self.position + size:
            self.take(size)  # says what is wrong
            self.position -= size
        found = self.data[self.position : self.position + min(size, KEPT_TEXT + 1)]
        self.position += size
        return found

    def made(self, value: Any) -> None:
        self.objects += 1
        self.stack.append(value)

    def long(self, size: int, what: str) -> bool:
        """Whether a text or bytes of ``size`` are not kept; then :class:`Opaque` stands for them."""
        if size <= KEPT_TEXT and size <= self.work.text:
            self.work.text -= size
            return False
        self.made(Opaque(what, (self.position - size, self.position)))
        return True

    def look_inside(self, data: bytes, size: int) -> None:
        """Read a bytes value that could be a pickle as one. ``data`` is its beginning, its end is at ``position``."""
        if self.depth < MAX_INSIDE and looks_like_pickle(data[:512]):
            self.inner(data if len(data) == size else self.data[self.position - size : self.position])

    def inner(self, data: bytes) -> None:
        if self.spare is None:
            self.spare = Work.part(self.work.pickle // 10)
        if self.spare.opcodes < 0:
            return
        found = read(data, work=self.spare, depth=self.depth + 1)
        self.spare.opcodes -= 20 + len(data) // 500
        names = [use.name for use in found.globals.values() if use.tier == "code"] + [name for _, name in found.inside]
        if self.spare.opcodes < 0 or (found.problem is not None and found.problem.limit):
            names.append("more than was read")
        kept = self.reading.inside
        kept += [(self.at, name) for name in names[: max(0, 100 - len(kept))]]

    # Globals and calls

    def named(self, module: str, name: str) -> Global:
        if len(module) > MAX_NAME or len(name) > MAX_NAME:
            return self.computed(f"a name of {len(module) + len(name):,} characters ({module[:40]}… {name[:40]}…)")
        made = self.names.get((module, name))
        if made is None:
            tier, held_in, real = tier_of(module, name)
            made = self.names[module, name] = self.known(held_in, real, f"{held_in}.{real}", tier)
            if made.use.name in GUARDED:
                self.guards.append(made.use)
        else:
            self.objects += 1
        self.loosen(made)
        return made

    def loosen(self, value: Any) -> None:
        """Count a guarded name where it comes onto the stack."""
        if self.guards and isinstance(value, Global):
            value.use.loose += 1

    def known(self, module: str, name: str, shown: str, tier: Tier) -> Global:
        uses = self.reading.globals
        use = uses.get((module, name))
        if use is None:
            if self.work.globals <= 0:
                raise self.limit("globals")
            self.work.globals -= 1
            use = uses[module, name] = GlobalUse(shown, tier, self.at)
        self.objects += 1
        return Global(module, name, use)

    def computed(self, said: str) -> Global:
        return self.known("", said, said, "code")

    def call(self, function: Any, args: Any) -> Call:
        made = Call(function, args)
        if isinstance(function, Global):
            use = function.use
            if not use.called:
                use.called = True
                use.arguments = brief(args)
            if self.guards and use.name in GUARDED:
                self.guard(made, use)
            elif use.name in _HONEST and not _HONEST[use.name](args):
                other = self.computed(use.name).use
                other.called, other.arguments = True, brief(args)
            elif (function.module, function.name) == ("_codecs", "encode") and isinstance(args, tuple) and args:
                self.encoded(args[0])
        elif isinstance(function, Call) and not _is_known(function, args):  # the result of a call, called
            root = function.function
            name = root.use.name if isinstance(root, Global) else "a call"
            result = self.computed(f"the result of {name}")
            result.use.called, result.use.arguments = True, brief(args)
        self.objects += 1
        return made

    def guard(self, made: Call, use: GlobalUse) -> None:
        """Whether a guarded name is called for what it may do; that takes a while, and is counted so."""
        self.objects += 4
        tier = _tier_of_call(use.name, made.args)
        if tier is not None and id(made.args) not in self.looked_at:
            made.guarded = True
            uses = [use]
            if use.name == "functools.reduce":
                uses.append(made.args[0].use)
                self.looked_at[id(made.args)] = made.args  # its or_ counts once
            for each in uses:
                each.loose -= 1
                each.worst = max(each.worst, tier, key=TIERS.index)
            if not use.name.startswith("torch."):  # weights_only may be told those
                self.reading.refused[f"a call of {use.name}"] = None

    def encoded(self, text: Any) -> None:
        """Bytes as protocols 0 to 2 write them: text of Latin-1."""
        if id(text) in self.looked_at:
            return
        head = text[:512] if isinstance(text, str) else ""
        if isinstance(text, Opaque) and text.span:
            head = self.data[text.span[0] : text.span[0] + 512].decode("utf-8", "replace")
        if self.depth < MAX_INSIDE and looks_like_pickle(head.encode("latin-1", "replace")):
            self.looked_at[id(text)] = text
            if isinstance(text, Opaque) and text.span:
                text = self.data[slice(*text.span)].decode("utf-8", "replace")
            self.inner(text.encode("latin-1", "replace"))


def _of_classes(args: Any) -> bool:
    return isinstance(args, tuple) and all(isinstance(arg, Global) for arg in args[:2])


def _of_bytes(args: Any) -> bool:
    """A numpy scalar of bytes; one of objects is its second argument itself."""
    return isinstance(args, tuple) and not any(isinstance(arg, Global) or (isinstance(arg, Call) and not _encodes(arg)) for arg in args[1:])


def _encodes(made: Call) -> bool:
    return isinstance(made.function, Global) and made.function.use.name in ("_codecs.encode", "builtins.bytes")


def _of_tensor(args: Any) -> bool:
    """A tensor of a type of its own: the function that makes it is one of torch's, or of that type's package."""
    made = args[0] if isinstance(args, tuple) and args else None
    return isinstance(made, Global) and (made.module.startswith("torch.") or made.use.tier == "classes")


_HONEST: dict[str, Callable[[Any], bool]] = {
    "zoneinfo.ZoneInfo": lambda args: False,  # no pickle calls it by itself
    "copyreg._reconstructor": _of_classes, "numpy.ma.core._mareconstruct": _of_classes, "torch._tensor._rebuild_from_type_v2": _of_tensor,
    "numpy.core.multiarray.scalar": _of_bytes, "numpy._core.multiarray.scalar": _of_bytes,
    **{name: lambda args: not args or args == ((), Dict()) for name in CONFIGS},
}  # fmt: skip
"""Whether data that calls, or gives back, what it is given is called as pickles are written."""


def _tier_of_call(name: str, args: Any) -> Tier | None:
    """The tier of a call of a guarded name; None where it could do more than it is made for."""
    if not isinstance(args, tuple) or not args:
        return None
    first = args[0]
    if name.startswith("torch.jit._pickle."):
        return "plain data" if type(first) in (list, Dict, tuple) else None
    if name == "functools.partial":
        return "classes" if _is_plain(first) else None
    if name == "builtins.type":  # of the values whose classes have no other name
        alone = first is None or (isinstance(first, Global) and first.use.name in ("builtins.Ellipsis", "builtins.NotImplemented"))
        return "plain data" if alone and len(args) == 1 else None
    if len(args) != 2:
        return None
    if name == "builtins.getattr":
        if isinstance(first, Global) and isinstance(args[1], str):
            if args[1] in ATTRIBUTES.get(first.use.name, ()):
                return first.use.tier
            return "classes" if _is_member(first, args[1]) else None
        return None
    hints = args[1] if isinstance(args[1], tuple) else args[1:]  # _operator.getitem and or_: typing.List[int], int | None
    if name == "functools.reduce":  # of or_, as Python before 3.14 pickles unions
        if not isinstance(first, Global) or first.use.name != "_operator.or_" or not isinstance(args[1], tuple) or len(hints) < 2:
            return None
        first, hints = hints[0], hints[1:]
    elif name == "_operator.getitem":
        if not (isinstance(first, Global) and first.module == "typing"):
            return None
        if first.name == "Literal" and all(hint is None or isinstance(hint, (str, int, bytes)) for hint in hints):
            return "plain data"
        if first.name == "Callable" and hints and type(hints[0]) is list:
            hints = (*hints[0], *hints[1:])
    if len(hints) > 10 or not all(_is_plain(hint) or hint is None for hint in (first, *hints)):
        return None
    return "classes" if any(isinstance(hint, Global) and hint.use.tier == "classes" for hint in (first, *hints)) else "plain data"


def _is_plain(value: Any) -> bool:
    """Whether a value is a name of no code, or a call that a guarded name is made for."""
    return value.use.tier != "code" if isinstance(value, Global) else isinstance(value, Call) and value.guarded


def _is_member(kind: Global, name: str) -> bool:
    """Whether ``getattr`` is called as Python 3.11.0 to 3.11.4 pickle a member of an enum: a class, and a name in capitals."""
    a_class = kind.use.tier == "classes" and kind.name[:1].isupper() and not kind.module.startswith("torch")
    return a_class and name.isidentifier() and name.isupper() and name[0] != "_"


def _is_known(function: Call, args: Any) -> bool:
    """Whether the result of ``getattr`` is called as dates with a time zone and sharded tensors are pickled."""
    fetched = function.guarded and isinstance(function.function, Global) and function.function.use.name == "builtins.getattr"
    if not fetched or not isinstance(args, tuple):
        return False
    name = function.args[0].use.name
    if name == "zoneinfo.ZoneInfo":
        return len(args) == 2 and isinstance(args[0], str) and _ZONE.fullmatch(args[0]) is not None and args[1] in (0, 1)
    return name == SHARDED and args == ()


def _constant(value: Any) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        m.stack.append(value)

    return push


def _new(kind: type[Any]) -> Callable[[_Machine], None]:
    return lambda m: m.made(kind())


def _unpacked(form: str) -> Callable[[_Machine], None]:
    one = struct.Struct(form)
    size, unpack = one.size, one.unpack

    def push(m: _Machine) -> None:
        m.stack.append(unpack(m.take(size))[0])

    return push


def _until_nul(m: _Machine) -> bytes:
    """A line as C reads a number from it: up to a NUL, without the spaces around."""
    return m.line().partition(b"\0")[0].strip()


def _number(m: _Machine, text: bytes) -> None:
    """A decimal, hexadecimal or octal number, as C's strtol reads it."""
    if len(text) > 64:
        m.push(Opaque("a long integer"))
        return
    digits = text.lstrip(b"+-")
    if digits.isdigit():
        m.made(int(text, 8 if digits[:1] == b"0" else 10))
    else:
        m.made(int(text, 0))


def _int_line(m: _Machine) -> None:
    text = _until_nul(m)
    if text == b"00" or text == b"01":
        m.stack.append(text == b"01")
    else:
        _number(m, text or b"0" * (m.data[m.at + 1 : m.at + 2] == b"\0"))  # strtol makes 0 of nothing before a NUL


def _long_line(m: _Machine) -> None:
    _number(m, _until_nul(m).removesuffix(b"L"))


def _short_long(m: _Machine) -> None:
    data, start = m.data, m.position + 1
    end = start + (data[start - 1] if start <= len(data) else 0)
    if end > len(data) or start < m.frame < end:
        m.take(m.take(1)[0])  # says what is missing
    m.position = end
    m.stack.append(int.from_bytes(data[start:end], "little", signed=True) if end - start <= 32 else Opaque("a long integer"))


def _long(m: _Machine) -> None:
    data = m.sized(4, signed=True)
    m.made(int.from_bytes(data, "little", signed=True) if len(data) <= 32 else Opaque("a long integer"))


def _text(m: _Machine, data: bytes, size: int) -> None:
    if not m.long(size, "a long text"):
        m.made(data.decode("utf-8", "surrogatepass"))


def _old_text(m: _Machine, data: bytes, size: int) -> None:
    """Python 2's str: text where it is UTF-8, else its bytes as Latin-1."""
    m.look_inside(data, size)
    if m.long(size, "a long text"):
        return
    try:
        m.made(data.decode("utf-8"))
    except UnicodeDecodeError:
        m.made(data.decode("latin-1"))


def _bytes(m: _Machine, data: bytes, size: int) -> None:
    m.look_inside(data, size)
    if not m.long(size, "long bytes"):
        m.made(data)


def _counted(width: int, keep: Callable[[_Machine, bytes, int], None], *, signed: bool = False) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        data = m.sized(width, signed=signed)
        keep(m, data, m.position - m.at - 1 - width)

    return push


def _string_line(m: _Machine) -> None:
    text = m.line().strip()
    if len(text) < 2 or text[:1] not in (b'"', b"'") or text[-1:] != text[:1]:
        raise PickleProblem(f"opcode at byte {m.at:,}: STRING without quotes")
    plain = codecs.escape_decode(text[1:-1])[0]
    _old_text(m, plain, len(plain))


def _unicode_line(m: _Machine) -> None:
    text = m.line()
    if not m.long(len(text), "a long text"):
        m.made(text.decode("raw_unicode_escape"))


def _float_line(m: _Machine) -> None:
    text = _until_nul(m)
    m.made(float(text) if len(text) <= 1000 else Opaque("a long number"))


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))
    m.fence = len(m.stack)
    m.objects += 1


def _pop(m: _Machine) -> None:
    if len(m.stack) > m.fence:
        m.stack.pop()
    else:
        m.pop_mark()


def _dup(m: _Machine) -> None:
    value = m.top()
    m.loosen(value)
    m.push(value)


def _tuple(m: _Machine) -> None:
    m.made(tuple(m.pop_mark()))


def _tuple_of(size: int) -> Callable[[_Machine], None]:
    def make(m: _Machine) -> None:
        if len(m.stack) - size < m.fence:
            raise IndexError
        items = tuple(m.stack[-size:])
        del m.stack[-size:]
        m.made(items)

    return make


def _list(m: _Machine) -> None:
    m.made(m.pop_mark())


def _dict(m: _Machine) -> None:
    m.made(Dict(m.pop_mark()))


def _frozenset(m: _Machine) -> None:
    m.made(Set(m.pop_mark()))


def _put_items(m: _Machine, holder: Any, items: list[Any], *, keyed: bool) -> None:
    if not items:
        return  # whatever the holder is: so does C's unpickler
    if keyed and len(items) % 2:
        raise PickleProblem(f"opcode at byte {m.at:,}: a key without its value")
    if isinstance(holder, Dict) if keyed else type(holder) in (list, Set):
        holder.extend(items)
    elif isinstance(holder, Call):
        if holder.items is None:
            holder.items = Dict()
            m.objects += 1
            made = holder.function.use if isinstance(holder.function, Global) else None
            if made is not None and made.tier == "plain data" and made.name not in FILLED:
                m.reading.refused[f"a {made.name} with items"] = None
        holder.items.extend(items if keyed else [part for item in items for part in (None, item)])
    elif isinstance(holder, Global):
        _changed(m, holder, items)
    elif not isinstance(holder, (list, bytes, Opaque, Persistent)):  # a list by its index, a bytearray, a storage: nothing to keep
        raise PickleProblem(f"opcode at byte {m.at:,} puts items into {brief(holder)}")


def _changed(m: _Machine, holder: Global | Call, state: Any) -> None:
    """Loading would change the named thing itself, as BUILD with a slot state does."""
    made = m.computed(f"a change of {holder.use.name if isinstance(holder, Global) else brief(holder)} itself")
    made.use.called, made.use.arguments = True, brief(state)


def _append(m: _Machine) -> None:
    item = m.pop()
    _put_items(m, m.top(), [item], keyed=False)


def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    _put_items(m, m.top(), items, keyed=False)


def _setitem(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    _put_items(m, m.top(), [key, value], keyed=True)


def _setitems(m: _Machine) -> None:
    items = m.pop_mark()
    _put_items(m, m.top(), items, keyed=True)


def _remember(m: _Machine, index: int) -> None:
    if index < 0:
        raise PickleProblem(f"opcode at byte {m.at:,} has a negative memo index")
    value = m.top()
    if index not in m.memo:
        m.objects += 1
    m.memo[index] = value


def _recall(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise PickleProblem(f"opcode at byte {m.at:,} asks for memo entry {index}, which was never put")
    value = m.memo[index]
    m.loosen(value)
    m.push(value)


def _index_line(m: _Machine) -> int:
    text = _until_nul(m)
    if len(text) > 20:
        text = b"-" * text.startswith(b"-") + (text.lstrip(b"+-0_") or b"0")
        if len(text) > 40:
            raise PickleProblem(f"opcode at byte {m.at:,} has a memo index of {len(text):,} digits")
    return int(text)


def _index(width: int, use: Callable[[_Machine, int], None]) -> Callable[[_Machine], None]:
    return lambda m: use(m, int.from_bytes(m.take(width), "little"))


def _memoize(m: _Machine) -> None:
    _remember(m, len(m.memo))


def _two_lines(m: _Machine) -> Global:
    module = m.line().decode("utf-8", "backslashreplace")
    start = m.position
    try:
        name = m.line().decode("utf-8", "backslashreplace")
    except PickleProblem:  # pickle looks up what there is but the last byte, before it misses the rest
        cut = m.data[start : start + MAX_NAME].decode("utf-8", "backslashreplace")[:-1]
        if cut and not is_begun(module, cut):
            m.named(module, cut)
        raise
    return m.named(module, name)


def _global(m: _Machine) -> None:
    m.push(_two_lines(m))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if isinstance(name, str) and isinstance(module, str):
        m.push(m.named(module, name))
    elif m.work.text < KEPT_TEXT and (isinstance(name, Opaque) or isinstance(module, Opaque)):
        raise m.limit("texts")
    else:
        m.push(m.computed(f"a computed name ({brief(module, 24)}, {brief(name, 24)})"))


def _extension(width: int) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        m.push(m.computed(f"extension code {int.from_bytes(m.take(width), 'little', signed=width == 4)}"))

    return push


def _reduce(m: _Machine) -> None:
    args, function = m.pop(), m.pop()
    m.push(m.call(function, args))


def _newobj(m: _Machine) -> None:
    args, kind = m.pop(), m.pop()
    m.push(m.call(kind, args))


def _newobj_ex(m: _Machine) -> None:
    kwargs, args, kind = m.pop(), m.pop(), m.pop()
    m.push(m.call(kind, (args, kwargs)))


def _inst(m: _Machine) -> None:
    kind = _two_lines(m)
    m.push(m.call(kind, tuple(m.pop_mark())))


def _obj(m: _Machine) -> None:
    items = m.pop_mark()
    m.push(m.call(items[0], tuple(items[1:])))


def _build(m: _Machine) -> None:
    state = m.pop()
    holder = m.top()
    if isinstance(holder, Call):
        use = holder.function.use if isinstance(holder.function, Global) else None
        if use is not None and use.name == "functools.partial":
            use.loose += _tier_of_call(use.name, state) is None
        elif use is not None and holder.guarded:  # a class or a function
            _changed(m, holder, state)
        elif use is not None and use.tier == "plain data":
            made = type_made(use.name, holder.args[0] if isinstance(holder.args, tuple) and holder.args else None)
            if made:
                m.reading.types[made] = None
        if isinstance(holder.state, Dict) and isinstance(state, Dict):
            m.objects += len(state)
            holder.state.extend(state)
        else:
            holder.state = state
    elif isinstance(holder, Global):
        _changed(m, holder, state)


def _persid(m: _Machine) -> None:
    _named(m, m.line().decode("utf-8", "backslashreplace"))


def _binpersid(m: _Machine) -> None:
    _named(m, m.pop())


def _named(m: _Machine, name: Any) -> None:
    m.reading.persistent.append(name)
    m.made(Persistent(name))


def _proto(m: _Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise PickleProblem(f"byte {m.at:,}: pickle protocol {version} does not exist")
    m.protocol = version


def _frame(m: _Machine) -> None:
    size = int.from_bytes(m.take(8), "little")
    if m.position < m.frame:
        m.misframed(f"the frame at byte {m.at:,} begins inside another")
        if m.position + size <= m.frame:
            return
        m.cross()
    m.begun, m.frame = m.position, m.position + size
    if size > len(m.data) - m.position and m.overlong is None:  # the unpickler in Python reads on, the one in C does not
        said = f"the frame at byte {m.at:,} is longer than what is left"
        m.overlong = PickleProblem(said, truncated=True, needs=m.position + size)


def _readonly(m: _Machine) -> None:
    m.top()


_OPCODES: dict[str, Callable[[_Machine], None]] = {
    "(": _mark, "0": _pop, "1": lambda m: (m.pop_mark(), None)[1], "2": _dup, "F": _float_line, "I": _int_line,
    "J": _unpacked("<i"), "K": _unpacked("<B"), "L": _long_line, "M": _unpacked("<H"), "N": _constant(None),
    "P": _persid, "Q": _binpersid, "R": _reduce, "S": _string_line, "T": _counted(4, _old_text, signed=True),
    "U": _counted(1, _old_text), "V": _unicode_line, "X": _counted(4, _text), "a": _append, "b": _build, "c": _global,
    "d": _dict, "}": _new(Dict), "e": _appends, "g": lambda m: _recall(m, _index_line(m)), "h": _index(1, _recall),
    "i": _inst, "j": _index(4, _recall), "l": _list, "]": _new(list), "o": _obj,
    "p": lambda m: _remember(m, _index_line(m)), "q": _index(1, _remember), "r": _index(4, _remember), "s": _setitem,
    "t": _tuple, ")": _constant(()), "u": _setitems, "G": _unpacked(">d"), "\x80": _proto, "\x81": _newobj,
    "\x82": _extension(1), "\x83": _extension(2), "\x84": _extension(4), "\x85": _tuple_of(1), "\x86": _tuple_of(2),
    "\x87": _tuple_of(3), "\x88": _constant(True), "\x89": _constant(False), "\x8a": _short_long, "\x8b": _long,
    "B": _counted(4, _bytes), "C": _counted(1, _bytes), "\x8c": _counted(1, _text), "\x8d": _counted(8, _text),
    "\x8e": _counted(8, _bytes), "\x8f": _new(Set), "\x90": _appends, "\x91": _frozenset, "\x92": _newobj_ex,
    "\x93": _stack_global, "\x94": _memoize, "\x95": _frame, "\x96": _counted(8, _bytes),
    "\x97": lambda m: m.made(Opaque("an out-of-band buffer")), "\x98": _readonly,
}  # fmt: skip
_TABLE: list[Callable[[_Machine], None] | None] = [_OPCODES.get(chr(code)) for code in range(256)]


def _watched(code: str) -> Callable[[_Machine], None]:
    """Say of the first opcode that weights_only refuses that it does."""

    def use(m: _Machine) -> None:
        m.reading.refused[f"opcode {REFUSED[code]} at byte {m.at:,} (pickle protocol {m.protocol or '0 or 1'})"] = None
        m.table[:] = _TABLE
        _OPCODES[code](m)

    return use


_WATCHED = [_watched(chr(code)) if chr(code) in REFUSED else handler for code, handler in enumerate(_TABLE)]
