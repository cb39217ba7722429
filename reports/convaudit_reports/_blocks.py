"""A model's layers as a tree of modules, repeated blocks folded: the same module again and again is shown once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from convaudit.result import Finding, LayerRow, TargetResult


@dataclass(eq=False)
class Block:
    """A module, or a layer, of the tree; ``rows`` are its own rows of the layer table, in execution order."""

    path: str
    label: str
    module: str = ""
    """Class of a module that holds others; empty where not known."""
    rows: list[LayerRow] = field(default_factory=list)
    children: dict[str, Block] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    """Those about this very block."""

    @cached_property
    def all_rows(self) -> list[LayerRow]:
        """Its rows and those below."""
        return [*self.rows, *(row for child in self.children.values() for row in child.all_rows)]

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """What two blocks that repeat have in common: classes, names and ops; widths and resolutions may differ."""
        below = tuple((name, child.shape) for name, child in self.children.items())
        return (self.module, tuple((row.op, row.kind, row.call is None) for row in self.rows), below)

    @cached_property
    def repeat(self) -> object:
        """Equal for blocks that are shown as one: of one shape and one resolution, or as many parameters where it is not known."""
        output = next((row.output_shapes[0] for row in reversed(self.all_rows) if row.output_shapes), None)
        return (self.shape, self.parameters if output is None else output[2:] if len(output) > 3 else output[1:-1])

    @cached_property
    def parameters(self) -> int:
        """Of all its rows."""
        return sum(row.parameters for row in self.all_rows)

    @cached_property
    def macs(self) -> int | None:
        """Of all its rows; None where any is not known."""
        known = [row.macs for row in self.all_rows if row.call is not None]
        return None if None in known else sum(number or 0 for number in known)

    @cached_property
    def parts(self) -> dict[str, Block]:
        """Its children; before them its own rows, as a nameless block, where it has both."""
        own = {"": Block(self.path, "", rows=self.rows, findings=self.findings)} if self.rows else {}
        return own | self.children

    @property
    def all_findings(self) -> list[Finding]:
        """Findings on it and below, each once."""
        below = [finding for child in self.children.values() for finding in child.all_findings]
        return list({id(finding): finding for finding in [*self.findings, *below]}.values())


@dataclass(frozen=True)
class Run:
    """Blocks of equal shape that follow each other, shown as one; often just one."""

    blocks: tuple[Block, ...]
    findings: list[Finding]
    """On any of them and below, each once; of a run inside a repeated block, on the same place in all of those."""
    children: list[Run]
    """What the first of the blocks holds."""

    @property
    def first(self) -> Block:
        """The one that is shown."""
        return self.blocks[0]

    @property
    def last(self) -> Block:
        """The one that ends the run."""
        return self.blocks[-1]

    @property
    def alike(self) -> bool:
        """Whether they are equal in widths and resolution too."""
        return len({tuple((r.parameters, r.macs) for r in block.all_rows) for block in self.blocks}) == 1

    @property
    def rows(self) -> list[LayerRow]:
        """The rows of all of them."""
        return [row for block in self.blocks for row in block.all_rows]

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return sum(block.parameters for block in self.blocks)

    @property
    def macs(self) -> int | None:
        """Of all of them; None where any is not known."""
        known = [block.macs for block in self.blocks]
        return None if None in known else sum(number or 0 for number in known)

    @property
    def title(self) -> str:
        """``Bottleneck``; ``3 × Bottleneck`` of a repeat, and of a module that holds nothing but modules of one class."""
        below = [child.module for child in self.first.children.values()]
        if len(self.blocks) > 1:
            return f"{len(self.blocks)} × {self.first.module}".removesuffix(" × ")
        if len(below) > 1 and len(set(below)) == 1 and below[0] and not self.first.rows:
            return f"{len(below)} × {below[0]}"
        rows = self.first.rows or self.first.all_rows
        return self.first.module or (rows[0].op if self.first.rows or len(rows) == 1 else "")


def tree(target: TargetResult) -> Block:
    """The root of the target's modules, children in the order in which they first ran."""
    root = Block("", "", target.modules.get("", ""))
    for row in target.layers:
        block = root
        for part in row.name.split(".") if row.name else ():
            path = f"{block.path}.{part}" if block.path else part
            if part not in block.children:
                block.children[part] = Block(path, part, target.modules.get(path, ""))
            block = block.children[part]
        block.rows.append(row)
    for finding in target.findings:
        if finding.suppressed is None:
            for name in finding.layers:
                found = find(root, name)
                if found is not None:
                    found.findings.append(finding)
    return root


def find(root: Block, path: str) -> Block | None:
    """The block called ``path``."""
    block: Block | None = root
    for part in path.split(".") if path else ():
        block = block.children.get(part) if block is not None else None
    return block


def folded(target: TargetResult) -> list[Run]:
    """What the model holds, repeated blocks folded at every depth."""
    return runs([tree(target)])


def runs(alike: Sequence[Block]) -> list[Run]:
    """What blocks of equal shape hold, as the first has it; findings are those of all. A single layer never repeats."""
    found: list[list[str]] = []
    parts = [block.parts for block in alike]
    for label, child in parts[0].items():
        if found and child.children and parts[0][found[-1][0]].repeat == child.repeat:
            found[-1].append(label)
        else:
            found.append([label])
    made = []
    for labels in found:
        everywhere = [part[label] for part in parts for label in labels]
        findings = {id(finding): finding for block in everywhere for finding in block.all_findings}
        children = runs(everywhere) if everywhere[0].children else []
        made.append(Run(tuple(parts[0][label] for label in labels), list(findings.values()), children))
    return made


def repeats(found: Sequence[Run]) -> Iterator[Run]:
    """The outermost runs of more than one block."""
    for run in found:
        if len(run.blocks) > 1:
            yield run
        else:
            yield from repeats(run.children)
