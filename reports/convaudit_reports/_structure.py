"""A model's layers in the order in which they run, by module: each call in its own place, repeated parts folded, and what each
part reads where that is not the one before it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from convaudit.result import Finding, LayerRow, TargetResult

LANES = 5
"""Connections drawn side by side; the texts say them all."""
PERIOD = 4
"""Modules of a pattern that is looked for again."""
_LISTS = ("ModuleList", "ModuleDict")
"""They never run themselves: what they hold runs in its own place."""


@dataclass(eq=False)
class Part:
    """A module while it runs, or one call of a layer (``row``)."""

    path: str
    label: str
    module: str = ""
    """Class of a module that holds others; empty where not known."""
    row: LayerRow | None = None
    again: int = 0
    """How often the module ran before; −1 where it goes on after others ran."""
    children: list[Part] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """Those about this very part."""

    @cached_property
    def all_rows(self) -> list[LayerRow]:
        """Its rows and those below."""
        return [*([self.row] if self.row is not None else ()), *(row for child in self.children for row in child.all_rows)]

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """What two parts that repeat have in common: classes, names and ops; widths and resolutions may differ."""
        row = (self.row.op, self.row.kind, self.row.call is None) if self.row is not None else ()
        return (self.module, row, tuple((child.label, child.shape) for child in self.children))

    @cached_property
    def repeat(self) -> object:
        """Equal for parts shown as one: calls of one layer, or of one shape and one resolution (as many parameters where it is not known)."""
        output = next((row.output_shapes[0] for row in reversed(self.all_rows) if row.output_shapes), None)
        if self.row is not None:
            return (self.path, output)
        return (self.shape, self.parameters if output is None else output[2:] if len(output) > 3 else output[1:-1])

    @cached_property
    def parameters(self) -> int:
        """Of all its rows."""
        return sum(row.parameters for row in self.all_rows)

    @property
    def title(self) -> str:
        """Its class, as far as it is known."""
        rows = [self, *(child for child in self.children if child.path == self.path)]
        return self.module or next((part.row.op for part in rows if part.row is not None), "")

    @property
    def all_findings(self) -> list[Finding]:
        """Findings on it and below, each once."""
        below = [finding for child in self.children for finding in child.all_findings]
        return list({id(finding): finding for finding in [*self.findings, *below]}.values())


@dataclass(frozen=True)
class Rail:
    """The lines beside a part: ``above`` and ``below`` lead from the part before and to the one after, on the lanes lie
    connections that skip parts."""

    dot: bool
    above: bool
    below: bool
    passing: tuple[int, ...]
    begins: tuple[int, ...] = ()
    enters: tuple[int, ...] = ()
    """Lanes of the module's own input, which begin above this first part."""
    ends: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    """Lanes that this part reads and that go on."""


@dataclass
class Run:
    """Parts of equal shape that follow each other, shown as one; often just one."""

    parts: tuple[Part, ...]
    findings: list[Finding]
    """On any of them and below, each once; of a run inside a repeated part, on the same place in all of those."""
    children: list[Run]
    """What the first of the parts holds."""
    sources: list[str] | None = None
    """What it reads, where that is not just the part before; "" is the one input of the module that holds it."""
    inside: tuple[Literal["skip", "gate", "branches"], int] | None = None
    """How the input of the first of the parts is read inside: past other layers, or by so many branches."""
    dense: bool = False
    """The parts read more of those before than the last one."""
    rail: Rail | None = None

    @property
    def first(self) -> Part:
        """The one that is shown."""
        return self.parts[0]

    @property
    def last(self) -> Part:
        """The one that ends the run."""
        return self.parts[-1]

    @property
    def alike(self) -> bool:
        """Whether they are equal in widths and resolution too."""
        return len({tuple((r.parameters, r.macs) for r in part.all_rows) for part in self.parts}) == 1

    @property
    def rows(self) -> list[LayerRow]:
        """The rows of all of them."""
        return [row for part in self.parts for row in part.all_rows]

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int | None:
        """Of all their rows whose MACs are known; None where none are."""
        known = [row.macs for row in self.rows if row.macs is not None]
        return sum(known) if known else None

    @property
    def bound(self) -> bool:
        """Whether MACs of some that ran are not known."""
        return any(row.macs is None and row.call is not None for row in self.rows)

    @property
    def idle(self) -> bool:
        """Whether none of it ran."""
        return all(row.call is None for row in self.rows)

    @property
    def uniform(self) -> bool:
        """Whether it is one module that holds nothing but modules of one class."""
        below = [child.module for child in self.first.children]
        return len(self.parts) == 1 and len(below) > 1 and len(set(below)) == 1 and bool(below[0])

    @property
    def title(self) -> str:
        """``Bottleneck``; ``3 × Bottleneck`` of a repeat, and of a module that holds nothing but modules of one class."""
        if self.uniform:
            return f"{len(self.first.children)} × {self.first.children[0].module}"
        if len(self.parts) > 1:
            return f"{len(self.parts)} × {self.first.title}".removesuffix(" × ")
        return self.first.title


def folded(target: TargetResult) -> list[Run]:
    """What the model holds, repeated parts folded at every depth, with the connections between them."""
    edges = _Edges(target)
    root = flow(target)
    found = _runs([root.children], edges)
    _connect(found, edges, (-1,))
    return found


def flow(target: TargetResult) -> Part:
    """The model as it ran. A bare parameter and what never ran stand with the module that holds them."""
    names = {row.name for row in target.layers}
    held = Counter(name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)) + Counter(names)
    alone = {path for path, count in held.items() if count == 1 and path not in target.modules}
    holders = {path for path in held if path not in alone and target.modules.get(path) not in _LISTS and (path not in names or held[path] > 1)}
    holders.add("")
    about: dict[str, list[Finding]] = {}
    for finding in target.findings:
        for name in dict.fromkeys(finding.layers) if finding.suppressed is None else ():
            about.setdefault(name, []).append(finding)
    root = Part("", "", target.modules.get("", ""), findings=about.get("", []))
    first, times, ran = {"": root}, {"": 1}, set[str]()
    own = names & holders

    def added(parent: Part, path: str, row: LayerRow | None = None) -> Part:
        part = Part(path, path[len(parent.path) :].lstrip("."), findings=about.get(path, []) if row or path not in own else [])
        if row is None:
            part.module, part.again = target.modules.get(path, ""), times.get(path, 0)
            times[path] = part.again + 1
            first.setdefault(path, part)
        else:
            part.row = row
        parent.children.append(part)
        return part

    open_parts = [root]
    for row in target.layers:
        if row.call is None or row.kind == "parameter":
            continue
        chain = _chain(row.name, holders)
        while open_parts[-1].path not in chain:
            open_parts.pop()
        for path in chain[chain.index(open_parts[-1].path) + 1 :]:
            part = added(open_parts[-1], path)
            part.again = part.again if row.name in ran or not part.again else -1
            open_parts.append(part)
        added(open_parts[-1], row.name, row)
        ran.add(row.name)
    for row in target.layers:
        if row.call is None or row.kind == "parameter":
            chain = _chain(row.name, holders)
            parent = first[next(path for path in reversed(chain) if path in first)]
            for path in chain[chain.index(parent.path) + 1 :]:
                parent = added(parent, path)
            added(parent, row.name, row)
            if row.name == parent.path:
                parent.children.insert(0, parent.children.pop())
    return root


def _chain(name: str, holders: set[str]) -> list[str]:
    """The modules that hold a layer, outermost first."""
    cuts = [at for at, letter in enumerate(name) if letter == "."]
    return [path for path in dict.fromkeys(("", *(name[:at] for at in cuts), name)) if path in holders]


def _runs(alike: Sequence[Sequence[Part]], edges: _Edges) -> list[Run]:
    """Parts of equal shape as one run, and what they hold as the first has it; findings are those of all."""
    made, at, parts = [], 0, alike[0]
    while at < len(parts):
        period, times = _pattern(parts, at, edges)
        groups = [[_group(each[at + n * period : at + (n + 1) * period]) for n in range(times)] for each in alike]
        everywhere = [part for each in groups for part in each]
        findings = {id(finding): finding for part in everywhere for finding in part.all_findings}
        children = _runs([part.children for part in everywhere], edges) if everywhere[0].children else []
        made.append(Run(tuple(groups[0]), list(findings.values()), children))
        at += period * times
    return made


def _pattern(parts: Sequence[Part], at: int, edges: _Edges) -> tuple[int, int]:
    """How many parts make the pattern that begins ``at``, and how often it follows itself. Different single layers never
    repeat, nor do branches, which read the same."""
    best = (1, 1)
    for period in range(1, PERIOD + 1):
        pattern = [part.repeat for part in parts[at : at + period]]
        times = 1
        while [part.repeat for part in parts[at + times * period : at + (times + 1) * period]] == pattern and edges.follows(
            parts[at + times * period], parts[at + times * period - 1]
        ):
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _group(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    names = ", ".join(part.title for part in parts)
    return Part(parts[0].path, f"{parts[0].label} … {parts[-1].label}", f"({names})", children=list(parts))


def repeats(found: Sequence[Run]) -> Iterator[Run]:
    """The outermost runs of more than one part."""
    for run in found:
        if len(run.parts) > 1:
            yield run
        else:
            yield from repeats(run.children)


# Connections


class _Edges:
    """What each row reads, rows that are made of weights alone left out."""

    def __init__(self, target: TargetResult) -> None:
        self.rows = target.layers
        self.place = {id(row): index for index, row in enumerate(target.layers)}
        self.known = any(row.inputs_from is not None for row in target.layers)
        self.reads: list[list[int]] = []
        """The example input is −1."""
        for row in target.layers:
            found = [-1 if source == "input" else source for source in row.inputs_from or ()]
            self.reads.append([at for at in found if at == -1 or (at < len(self.reads) and self.reads[at])])

    def of(self, part: Part) -> tuple[set[int], list[int]]:
        """The rows of a part, and what they read from outside of it, in order."""
        own = {self.place[id(row)] for row in part.all_rows}
        return own, list(dict.fromkeys(at for row in sorted(own) for at in self.reads[row] if at not in own))

    def follows(self, part: Part, before: Part) -> bool:
        """Whether a part reads another; where nothing is known, it does."""
        own, (_, sources) = {self.place[id(row)] for row in before.all_rows}, self.of(part)
        return not self.known or not sources or bool(own & set(sources))

    def name(self, at: int) -> str:
        """A row's layer."""
        return "input" if at < 0 else self.rows[at].name or self.rows[at].op


def _connect(found: list[Run], edges: _Edges, outside: Sequence[int]) -> None:
    """Fill in what the runs of one module read, whose own input is ``outside``. What reads nothing of the forward (weights that are made, modules that never ran) is left out."""
    if not edges.known:
        return
    everything = [[edges.of(part) for part in run.parts] for run in found]
    moving = [number for number, parts in enumerate(everything) if any(sources for _, sources in parts)]
    run_of = {at: place for place, number in enumerate(moving) for own, _ in everything[number] for at in own}
    links: list[list[int]] = []
    for place, number in enumerate(moving):
        run, parts = found[number], everything[number]
        read = list(dict.fromkeys(at for _, sources in parts for at in sources if run_of.get(at, -1) != place))
        links.append(list(dict.fromkeys(run_of.get(at, -1) for at in read)))
        if links[-1] != [place - 1] or (place == 0 and len(read) > 1):
            run.sources = list(dict.fromkeys(
                found[moving[run_of[at]]].last.label or edges.name(at) if at in run_of else edges.name(at) if len(outside) > 1 else ""
                for at in read
            ))  # fmt: skip
        run.dense = any(sum(bool(own & set(sources)) for own, _ in parts) > 1 for _, sources in parts)
        if run.children:
            _connect(run.children, edges, parts[0][1])
            run.inside = _inside(run.children) or (run.children[-1].inside if run.uniform else None)
    for number, rail in _rails(links, moving, len(found)):
        found[number].rail = rail


def _inside(children: Sequence[Run]) -> tuple[Literal["skip", "gate", "branches"], int] | None:
    late = [child for child in children if child.sources and "" in child.sources]
    joins = [child for child in late if len(child.sources or ()) > 1]
    if joins:
        return ("gate" if all(child.first.title == "mul" for child in joins) else "skip", len(joins))
    return ("branches", 1 + len(late)) if late else None


def _rails(links: Sequence[Sequence[int]], moving: Sequence[int], total: int) -> Iterator[tuple[int, Rail]]:
    """The rail of each run of one module, by its number; ``moving`` are those that read anything, ``links`` what they read."""
    until: dict[int, int] = {}
    for place, sources in enumerate(links):
        until.update(dict.fromkeys((source for source in sources if source < place - 1), place))
    lanes: dict[int, int] = {}
    free = [-2] * LANES
    for source in sorted(until):
        lane = next((lane for lane, taken in enumerate(free) if taken <= source), None)
        if lane is not None:
            lanes[source], free[lane] = lane, until[source]
    place_of = {number: place for place, number in enumerate(moving)}
    place = -1
    for number in range(total):
        if number not in place_of:  # nothing is read: lines pass it by
            on = place + 1 < len(links) and place in links[place + 1] and place >= 0
            yield number, Rail(False, on, on, tuple(at for source, at in lanes.items() if 0 <= source <= place < until[source]))
            continue
        place = place_of[number]
        here = [source for source in links[place] if source in lanes and source < place - 1]
        yield number, Rail(
            True, place - 1 in links[place], place + 1 < len(links) and place in links[place + 1],
            tuple(at for source, at in lanes.items() if source < place < until[source] and source not in here and (source >= 0 or place > 0)),
            (lanes[place],) if place in lanes else (), (lanes[-1],) if place == 0 and -1 in lanes else (),
            tuple(lanes[source] for source in here if until[source] == place),
            tuple(lanes[source] for source in here if until[source] > place),
        )  # fmt: skip


def width(found: Sequence[Run]) -> int:
    """Lanes that the runs of one module need; −1 where no connection is known."""
    rails = [run.rail for run in found if run.rail is not None]
    return max((lane for rail in rails for lane in (*rail.passing, *rail.begins, *rail.enters, *rail.ends, *rail.taps)), default=-1) + 1 if rails else -1
