"""An inert pickle reader: every opcode of protocols 0 to 5, and values that can do nothing.

Written after the comments of CPython's ``pickletools`` and the behaviour of its C unpickler. Nothing is imported, looked
up or called: a global stays a :class:`Global`, a call a :class:`Call`. Nothing recurses, whatever the nesting.
"""

from __future__ import annotations

import codecs
import gc
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convaudit.checkpoints.tiers import Tier, tier_of

MAX_PICKLE = 64 * 1000**2
"""Bytes of one pickle that are read unless more is asked for."""
MAX_OPCODES = 4_000_000
MAX_OBJECTS = 1_500_000
"""Containers, calls and memo entries of one pickle: about 150 MB of memory."""
MAX_GLOBALS = 10_000
KEPT_TEXT = 1 << 16
"""Bytes of a text or bytes value that are kept; a longer one becomes :class:`Opaque`."""
MAX_LINE = 1 << 16
"""Bytes of a line argument (GLOBAL, INST, INT and the like)."""

codecs.lookup("raw_unicode_escape")  # its module is imported now, never while a stranger's file is read


class Global:
    """A name that loading would import; ``use`` is its record."""

    __slots__ = ("module", "name", "use")

    def __init__(self, module: str, name: str, use: GlobalUse) -> None:
        self.module = module
        self.name = name
        self.use = use


class Call:
    """What loading would make by calling ``function``: with its state and the items set into it."""

    __slots__ = ("args", "function", "items", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.state: Any = None
        self.items: Dict | None = None  # SETITEM(S) on it, or APPEND(S) with the index left out (None)


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
    """A value too long to keep, or one that only its reader understands."""

    __slots__ = ("said",)

    def __init__(self, said: str) -> None:
        self.said = said


@dataclass
class GlobalUse:
    """How a pickle uses one global. ``offset`` is in bytes from the start of its member."""

    name: str
    tier: Tier
    offset: int
    called: bool = False
    arguments: str = ""
    """What it would be called with, shortened."""


class PickleProblem(Exception):
    """A pickle that cannot be read on; ``limit`` where it is convaudit's own limit that ends it."""

    def __init__(self, message: str, *, limit: bool = False, truncated: bool = False) -> None:
        super().__init__(message)
        self.limit = limit
        self.truncated = truncated


@dataclass
class Reading:
    """One pickle: its inert value, where it ends, its globals, and why it could not be read on."""

    value: Any = None
    end: int = 0
    opcodes: int = 0
    globals: dict[tuple[str, str], GlobalUse] = field(default_factory=dict)
    problem: PickleProblem | None = None


def read(data: bytes, start: int = 0, *, base: int = 0, max_opcodes: int = MAX_OPCODES) -> Reading:
    """Read one pickle at ``start``. Offsets in the answer are ``base`` + those in ``data``. Never raises."""
    machine = _Machine(data, start, base, max_opcodes)
    reading = machine.reading
    collecting = gc.isenabled()
    gc.disable()  # what is read stays alive until the end: collecting would only take time
    try:
        reading.value = machine.run()
    except PickleProblem as problem:
        reading.problem = problem
    except IndexError:
        reading.problem = PickleProblem(f"opcode at byte {machine.at + base:,} takes more than the stack holds")
    except (ValueError, struct.error, OverflowError) as error:
        reading.problem = PickleProblem(f"opcode at byte {machine.at + base:,}: {error}")
    finally:
        if collecting:
            gc.enable()
    reading.end = machine.position
    return reading


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

    def __init__(self, data: bytes, start: int, base: int, max_opcodes: int) -> None:
        self.data = data
        self.position = start
        self.at = start
        self.base = base
        self.max_opcodes = max_opcodes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.fence = 0
        self.memo: dict[int, Any] = {}
        self.objects = 0
        self.reading = Reading()

    def run(self) -> Any:
        data, table, end = self.data, _TABLE, len(self.data)
        left = self.max_opcodes
        while True:
            self.at = at = self.position
            if at >= end:
                raise PickleProblem(f"the pickle ends at byte {at + self.base:,} without STOP", truncated=True)
            code = data[at]
            self.position = at + 1
            if code == 0x2E:  # STOP
                self.reading.opcodes = self.max_opcodes - left
                if self.marks:
                    raise PickleProblem(f"STOP at byte {at + self.base:,} leaves an open mark")
                return self.pop()
            handler = table[code]
            if handler is None:
                raise PickleProblem(f"byte {at + self.base:,} ({code:#04x}) is no pickle opcode")
            handler(self)
            left -= 1
            if left <= 0 or self.objects > MAX_OBJECTS:
                what = f"{self.max_opcodes:,} opcodes" if left <= 0 else f"{MAX_OBJECTS:,} objects"
                raise PickleProblem(
                    f"the pickle goes beyond {what}; nothing after byte {at + self.base:,} was read", limit=True
                )

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
        if size > len(self.data) - start:
            raise PickleProblem(
                f"opcode at byte {self.at + self.base:,} needs {size:,} bytes; {len(self.data) - start:,} are left",
                truncated=True,
            )
        self.position = start + size
        return self.data[start : self.position]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE)
        if end < 0:
            short = len(self.data) - self.position < MAX_LINE
            raise PickleProblem(f"opcode at byte {self.at + self.base:,}: its line does not end", truncated=short)
        found = self.data[self.position : end]
        self.position = end + 1
        return found

    def sized(self, width: int, *, signed: bool = False) -> bytes:
        """A counted argument, or the first bytes of one that is too long to keep (then ``self.cut`` is its length)."""
        size = int.from_bytes(self.take(width), "little", signed=signed)
        if size < 0:
            raise PickleProblem(f"opcode at byte {self.at + self.base:,} has the negative length {size}")
        if size > len(self.data) - self.position:
            self.take(size)
        found = self.data[self.position : self.position + min(size, KEPT_TEXT + 1)]
        self.position += size
        return found

    def made(self, value: Any) -> None:
        self.objects += 1
        self.stack.append(value)

    # Globals and calls

    def named(self, module: str, name: str) -> Global:
        tier, module, name = tier_of(module, name)
        return self.known(module, name, f"{module}.{name}", tier)

    def known(self, module: str, name: str, shown: str, tier: Tier) -> Global:
        uses = self.reading.globals
        use = uses.get((module, name))
        if use is None:
            if len(uses) >= MAX_GLOBALS:
                raise PickleProblem(
                    f"the pickle names more than {MAX_GLOBALS:,} globals; nothing after byte {self.at + self.base:,} was read",
                    limit=True,
                )
            use = uses[module, name] = GlobalUse(shown, tier, self.at + self.base)
        self.objects += 1
        return Global(module, name, use)

    def computed(self, said: str) -> Global:
        return self.known("", said, said, "code")

    def call(self, function: Any, args: Any) -> Call:
        if isinstance(function, Global):
            if not function.use.called:
                function.use.called = True
                function.use.arguments = brief(args)
        elif isinstance(function, Call):  # the result of a call, called
            root = function.function
            name = root.use.name if isinstance(root, Global) else "a call"
            made = self.computed(f"the result of {name}")
            made.use.called, made.use.arguments = True, brief(args)
        self.objects += 1
        return Call(function, args)


def _constant(value: Any) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        m.stack.append(value)

    return push


def _new(kind: type[Any]) -> Callable[[_Machine], None]:
    return lambda m: m.made(kind())


def _unpacked(form: str) -> Callable[[_Machine], None]:
    one = struct.Struct(form)
    return lambda m: m.stack.append(one.unpack(m.take(one.size))[0])


def _int_line(m: _Machine) -> None:
    text = m.line().strip()
    if text in (b"00", b"01"):
        m.push(text == b"01")
        return
    m.push(int(text) if len(text) <= 64 else Opaque("a long integer"))


def _long_line(m: _Machine) -> None:
    text = m.line().strip().removesuffix(b"L")
    m.push(int(text) if len(text) <= 64 else Opaque("a long integer"))


def _long(width: int) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        data = m.sized(width, signed=width == 4)
        m.push(int.from_bytes(data, "little", signed=True) if len(data) <= 32 else Opaque("a long integer"))

    return push


def _text(m: _Machine, data: bytes) -> None:
    if len(data) > KEPT_TEXT:
        m.made(Opaque("a long text"))
        return
    m.push(data.decode("utf-8", "surrogatepass"))


def _old_text(m: _Machine, data: bytes) -> None:
    """Python 2's str: text where it is UTF-8, else its bytes as Latin-1."""
    if len(data) > KEPT_TEXT:
        m.made(Opaque("a long text"))
        return
    try:
        m.push(data.decode("utf-8"))
    except UnicodeDecodeError:
        m.push(data.decode("latin-1"))


def _bytes(m: _Machine, data: bytes) -> None:
    if len(data) > KEPT_TEXT:
        m.made(Opaque("long bytes"))
        return
    m.push(data)


def _counted(width: int, keep: Callable[[_Machine, bytes], None], *, signed: bool = False) -> Callable[[_Machine], None]:
    return lambda m: keep(m, m.sized(width, signed=signed))


def _string_line(m: _Machine) -> None:
    text = m.line().strip()
    if len(text) < 2 or text[:1] not in (b'"', b"'") or text[-1:] != text[:1]:
        raise PickleProblem(f"opcode at byte {m.at + m.base:,}: STRING without quotes")
    _old_text(m, codecs.escape_decode(text[1:-1])[0])


def _unicode_line(m: _Machine) -> None:
    m.push(m.line().decode("raw_unicode_escape"))


def _float_line(m: _Machine) -> None:
    m.push(float(m.line()))


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
    m.push(m.top())


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
    if keyed and len(items) % 2:
        raise PickleProblem(f"opcode at byte {m.at + m.base:,}: a key without its value")
    if isinstance(holder, Dict) if keyed else type(holder) in (list, Set):
        holder.extend(items)
    elif isinstance(holder, Call):
        if holder.items is None:
            holder.items = Dict()
            m.objects += 1
        holder.items.extend(items if keyed else [part for item in items for part in (None, item)])
    elif isinstance(holder, Global):
        _changed(m, holder, items)
    else:
        raise PickleProblem(f"opcode at byte {m.at + m.base:,} puts items into {brief(holder)}")


def _changed(m: _Machine, holder: Global, state: Any) -> None:
    """Loading would change the named thing itself, as BUILD with a slot state does."""
    made = m.computed(f"a change of {holder.use.name} itself")
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
        raise PickleProblem(f"opcode at byte {m.at + m.base:,} has a negative memo index")
    value = m.top()
    if index not in m.memo:
        m.objects += 1
    m.memo[index] = value


def _recall(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise PickleProblem(f"opcode at byte {m.at + m.base:,} asks for memo entry {index}, which was never put")
    m.push(m.memo[index])


def _index_line(m: _Machine) -> int:
    text = m.line().strip()
    if len(text) > 20:
        raise PickleProblem(f"opcode at byte {m.at + m.base:,} has a memo index of {len(text):,} digits")
    return int(text)


def _index(width: int, use: Callable[[_Machine, int], None]) -> Callable[[_Machine], None]:
    return lambda m: use(m, int.from_bytes(m.take(width), "little"))


def _memoize(m: _Machine) -> None:
    _remember(m, len(m.memo))


def _two_lines(m: _Machine) -> Global:
    module, name = (m.line().decode("utf-8", "backslashreplace") for _ in range(2))
    return m.named(module, name)


def _global(m: _Machine) -> None:
    m.push(_two_lines(m))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if isinstance(name, str) and isinstance(module, str):
        m.push(m.named(module, name))
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
        if holder.state is not None and isinstance(holder.state, Dict) and isinstance(state, Dict):
            holder.state.extend(state)
        else:
            holder.state = state
    elif isinstance(holder, Global):
        _changed(m, holder, state)


def _persid(m: _Machine) -> None:
    m.made(Persistent(m.line().decode("utf-8", "backslashreplace")))


def _binpersid(m: _Machine) -> None:
    m.made(Persistent(m.pop()))


def _proto(m: _Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise PickleProblem(f"byte {m.at + m.base:,}: pickle protocol {version} does not exist")


def _frame(m: _Machine) -> None:
    size = int.from_bytes(m.take(8), "little")
    if size > len(m.data) - m.position:
        raise PickleProblem(f"the frame at byte {m.at + m.base:,} is longer than what is left", truncated=True)


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
    "\x87": _tuple_of(3), "\x88": _constant(True), "\x89": _constant(False), "\x8a": _long(1), "\x8b": _long(4),
    "B": _counted(4, _bytes), "C": _counted(1, _bytes), "\x8c": _counted(1, _text), "\x8d": _counted(8, _text),
    "\x8e": _counted(8, _bytes), "\x8f": _new(Set), "\x90": _appends, "\x91": _frozenset, "\x92": _newobj_ex,
    "\x93": _stack_global, "\x94": _memoize, "\x95": _frame, "\x96": _counted(8, _bytes),
    "\x97": lambda m: m.made(Opaque("an out-of-band buffer")), "\x98": _readonly,
}  # fmt: skip
_TABLE: list[Callable[[_Machine], None] | None] = [_OPCODES.get(chr(code)) for code in range(256)]
