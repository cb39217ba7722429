"""A model's layers as a tree of modules, each in one place, all calls of a layer together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from convaudit.result import LayerRow, TargetResult


@dataclass(eq=False)
class Block:
    """A module, or a layer, of the tree; ``rows`` are its own rows of the layer table, in execution order."""

    path: str
    label: str
    module: str = ""
    """Class of a module that holds others; empty where not known."""
    rows: list[LayerRow] = field(default_factory=list)
    children: dict[str, Block] = field(default_factory=dict)

    @cached_property
    def all_rows(self) -> list[LayerRow]:
        """Its rows and those below."""
        return [*self.rows, *(row for child in self.children.values() for row in child.all_rows)]

    @cached_property
    def parts(self) -> dict[str, Block]:
        """Its children; before them its own rows, as a nameless block, where it has both."""
        own = {"": Block(self.path, "", rows=self.rows)} if self.rows else {}
        return own | self.children


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
    return root
