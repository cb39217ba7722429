"""A state_dict as an architecture, as far as names and shapes tell: its layers, its head. Never imports torch."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.pickle_reader import uncollected
from convaudit.checkpoints.tensors import role_of
from convaudit.result import LayerRow, TensorRow

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and a wrapping module put before every name."""
_BESIDE = (
    ("pruned", "{}_mask"), ("weight_norm", "{}_g"), ("weight_norm", "parametrizations.{}.original0"), ("spectral_norm", "{}_u"),
    ("spectral_norm", "parametrizations.{}.0._u"),
)  # fmt: skip
"""What stands beside a tensor that a hook or parametrization of torch.nn.utils makes a weight of."""
_DIGITS = re.compile(r"\d+")
_ATTENTION = frozenset(("k", "k_proj", "key", "kv", "q", "q_proj", "qkv", "query"))
"""What projections of attention are called."""
_CONV_AXES = (3, 4, 5)


@dataclass(slots=True)
class Layer:
    """One module that holds tensors. Widths are None where its shapes do not tell; ``kernel`` is a convolution's."""

    name: str
    kind: str
    op: str
    parameters: int
    dtype: str
    inward: int | None = None
    outward: int | None = None
    kernel: tuple[int, ...] = ()
    grouped: bool = False
    """A convolution of one input channel a group: depthwise."""
    transposed: bool | None = False
    """None where a convolution may be a transposed one as well."""
    stored: str = "weight"
    """The tensor its weight is made of, by its name behind the layer's."""
    parametrized: str = ""
    """How: "pruned", "weight_norm", "spectral_norm", or "other"; nothing where it is the weight itself."""
    beside: str = ""
    """The tensor that says the rest: mask, norms, singular vector."""

    def tensor(self, leaf: str) -> str:
        """The name of one of its tensors."""
        return f"{self.name}.{leaf}" if self.name else leaf

    @property
    def weights(self) -> int:
        """Number of weights of a Linear or convolution, bias left out."""
        return (1 if self.grouped else self.inward or 0) * (self.outward or 0) * math.prod(self.kernel)

    @property
    def auxiliary(self) -> bool:
        """Whether its name says that it is of a head that only trains (``aux1.fc``, ``AuxLogits.fc``)."""
        return is_auxiliary(self.name)

    def row(self) -> LayerRow:
        """Its row in the layer table."""
        return LayerRow(
            name=self.name, call=0, op=self.op, kind=self.kind, input_shapes=None, output_shapes=None,
            parameters=self.parameters, macs=None, flops=None, activation_bytes=None, dtype=self.dtype,
            receptive_field=None, receptive_field_largest=None, location=None,
        )  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """The state_dict of a model that a checkpoint is to fit: rows of its tensors, non-persistent buffers as "other"."""

    target: str
    tensors: list[TensorRow]

    @classmethod
    def of(cls, target: str, shapes: dict[str, list[int]]) -> Expected:
        """Of parameters with such names and shapes."""
        return cls(target, [TensorRow(name, shape, "float32", None, name, role_of(name, "float32")) for name, shape in shapes.items()])


@dataclass(frozen=True)
class Head:
    """The fully connected layers behind the last convolution, in order; the first reads ``side`` × ``side`` positions of
    each of its ``channels``."""

    layers: tuple[Layer, ...]
    channels: int
    side: int


@dataclass
class Architecture:
    """Layers in the file's order, which is the network's as a rule; counted 1, 2, 10 where the writer sorted names
    (safetensors does), and then the order of the parts is not known."""

    layers: list[Layer] = field(default_factory=list)
    by_name: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def conv_parameters(self) -> int:
        """Parameters of convolutions."""
        return sum(layer.parameters for layer in self.layers if layer.kind == "conv")

    @property
    def fc_parameters(self) -> int | None:
        """Parameters of fully connected layers; None where Linear layers may be projections of tokens or pixels."""
        linears = [layer for layer in self.layers if layer.kind == "linear"]
        return None if linears and self.head is None else sum(layer.parameters for layer in linears)

    @cached_property
    def convs(self) -> list[Layer]:
        """Convolutions, those of auxiliary heads left out."""
        return [layer for layer in self.layers if layer.kind == "conv" and not layer.auxiliary]

    @cached_property
    def linears(self) -> list[Layer]:
        """Linear layers, those of auxiliary heads left out."""
        return [layer for layer in self.layers if layer.kind == "linear" and not layer.auxiliary]

    @cached_property
    def _made(self) -> Counter[int | None]:
        return Counter(layer.outward for layer in self.layers)

    @cached_property
    def _read(self) -> Counter[int | None]:
        head = (self.head.channels, *(layer.inward for layer in self.head.layers[1:])) if self.head else ()
        return Counter([*(conv.inward for conv in self.convs if not conv.grouped), *head])

    def made(self, width: int | None, *, but: Layer | None = None) -> bool:
        """Whether a layer (other than ``but``) puts out this width."""
        return self._made[width] > (but is not None and but.outward == width)

    def read(self, width: int | None, *, but: Layer | None = None) -> bool:
        """Whether a convolution (other than ``but``) or the head reads this width as a whole."""
        return self._read[width] > (but is not None and not but.grouped and but.inward == width)

    @cached_property
    def joins(self) -> bool:
        """Whether a convolution reads a width that no layer puts out: features are concatenated, or groups are used."""
        return any(not self.made(conv.inward, but=conv) for conv in self.convs if not conv.grouped and (conv.inward or 0) > 4)

    @cached_property
    def head(self) -> Head | None:
        """The head of a convolutional net; None where Linear layers stand anywhere else, or widths do not say it.

        A net whose blocks hold Linear layers, attention or recurrence is no such net.
        """
        mixing = ("attention", "recurrent", "embedding")
        if not self.convs or any(layer.kind in mixing or layer.name.rpartition(".")[2] in _ATTENTION for layer in self.layers):
            return None
        last, linears = self.convs[-1], self.linears
        if last.outward is None or not linears or self._mixed:
            return None
        first = next((layer for layer in linears if self._side(layer, last.outward)), None)
        if first is None:
            return None
        chain = [first]
        for layer in linears[linears.index(first) + 1 :]:
            if layer.inward == chain[-1].outward:
                chain.append(layer)
        if len(chain) != len(linears):
            return None
        side = self._side(first, last.outward)
        return Head(tuple(chain), (first.inward or 0) // side**2, side)

    def _side(self, layer: Layer, channels: int) -> int:
        """k where a Linear reads k·k positions of each channel, 0 where widths say that it reads something else."""
        if layer.inward == channels or (self.by_name and any(conv.outward == layer.inward for conv in self.convs)):
            return 1
        side = math.isqrt((layer.inward or 0) // channels)
        flattened = side > 1 and layer.inward == channels * side**2
        return side if flattened and not self.joins and not self.made(layer.inward, but=layer) else 0

    @cached_property
    def _mixed(self) -> bool:
        """Whether a Linear stands before a convolution (of its part of the net, where the order of the parts is not known)."""
        last: dict[str, int] = {}
        for place, layer in enumerate(self.layers):
            if layer.kind == "conv" and not layer.auxiliary:
                last[self._part(layer)] = place
        return any(
            place < last.get(self._part(layer), -1)
            for place, layer in enumerate(self.layers)
            if layer.kind == "linear" and not layer.auxiliary
        )

    def _part(self, layer: Layer) -> str:
        """Where names are sorted, the first component of a name behind what all names share."""
        return "" if not self.by_name else layer.name[len(self._shared) :].partition(".")[0]

    @cached_property
    def _shared(self) -> str:
        return shared_prefix([layer.name for layer in self.layers])


def is_auxiliary(name: str) -> bool:
    """Whether a name is of a head that only trains."""
    return any(part.lower().startswith("aux") for part in name.split("."))


def _natural(name: str) -> str:
    """A key that sorts numbers in names by their size: by how many digits they have, then by these."""
    return _DIGITS.sub(lambda found: chr(len(digits := found[0].lstrip("0"))) + digits, name)


def shared_prefix(names: Sequence[str]) -> str:
    """The components that all ``names`` (one at least) begin with, with the dot behind them."""
    shared = os.path.commonprefix([min(names), max(names)])  # noqa: RUF071 - cut at a dot below
    return shared[: shared.rfind(".") + 1]


def wrapper_of(names: Sequence[str]) -> str:
    """The well-known prefixes that every name has."""
    found = ""
    while names:
        more = next((w for w in WRAPPERS if all(name.startswith(found + w) for name in names)), None)
        if more is None:
            break
        found += more
    return found


@uncollected()
def architecture_of(file: Checkpoint) -> Architecture:
    """The layers of a checkpoint's parameters and buffers; each tensor's elements count where they stand first."""
    rows = [(index, row) for index, row in enumerate(file.tensors) if row.role in ("parameter", "buffer")]
    prefix = wrapper_of([row.name for _, row in rows])
    by_name = all(names == sorted(names) for names in _by_dtype(rows))
    groups: dict[str, dict[str, tuple[TensorRow, int]]] = {}
    for index, row in rows:
        owner, leaf = owner_of(row.name[len(prefix) :])
        held = groups.setdefault(owner, {})
        elements = file.counted[index] if row.role == "parameter" else 0
        held[leaf] = row, elements + (held[leaf][1] if leaf in held else 0)  # a damaged file has a name twice
    for owner in [owner for owner in groups if f"{owner}.out_proj" in groups and "in_proj_weight" in groups[owner]]:
        groups[owner].update({f"out_proj.{leaf}": held for leaf, held in groups.pop(f"{owner}.out_proj").items()})
    layers = [layer for owner, held in groups.items() if (layer := _layer(owner, held)) is not None]
    if by_name:
        layers.sort(key=lambda layer: _natural(layer.name))
    _orient(layers, in_order=not by_name)
    return Architecture(layers, by_name)


def _by_dtype(rows: Iterable[tuple[int, TensorRow]]) -> Iterable[list[str]]:
    names: dict[str, list[str]] = {}
    for _, row in rows:
        names.setdefault(row.dtype, []).append(row.name)
    return names.values()


def owner_of(name: str) -> tuple[str, str]:
    """The layer that a tensor is of, and the tensor's name in it."""
    if "parametrizations." in name and (at := f".{name}".find(".parametrizations.")) >= 0:
        return name[: max(at - 1, 0)], name[at:]
    if "_packed_params" in name:
        owner, packed, place = name.rpartition("._packed_params._packed_params.")
        if packed and place in ("0", "1"):  # a quantized Linear
            return owner, ("weight", "bias")[int(place)]
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def _made_of(leaf: str, held: dict[str, tuple[TensorRow, int]]) -> str:
    """The name of the weight or bias that a stored tensor is for; its own where it is that itself, or no part of one."""
    if leaf in ("weight", "bias"):
        return leaf
    if leaf.startswith("parametrizations."):
        name, _, last = leaf[17:].rpartition(".")
        return name if last in ("original", "original1") else leaf
    if leaf.endswith("_orig"):
        return leaf[:-5]
    return leaf[:-2] if leaf.endswith("_v") and f"{leaf[:-2]}_g" in held else leaf


def _layer(owner: str, held: dict[str, tuple[TensorRow, int]]) -> Layer | None:
    """A layer by its tensors; None for buffers alone that are no norm's."""
    names = {_made_of(leaf, held): leaf for leaf in held}
    shapes = {name: tuple(shape) for name, leaf in names.items() if (shape := held[leaf][0].shape) is not None}
    parameters = sum([count for _, count in held.values()])
    row = held[next((leaf for name, leaf in names.items() if name.endswith("weight")), next(iter(held)))][0]
    weight, bias = shapes.get("weight"), shapes.get("bias")
    word = owner.rpartition(".")[2].lower()

    def made(kind: str, op: str, **widths: object) -> Layer:
        layer = Layer(owner, kind, op, parameters, row.dtype, **widths)  # type: ignore[arg-type]
        if names.get("weight", "weight") != "weight":
            layer.stored = names["weight"]
            beside = ((how, leaf.format("weight")) for how, leaf in _BESIDE)
            layer.parametrized, layer.beside = next(((how, leaf) for how, leaf in beside if leaf in held), ("other", ""))
        return layer

    recurrent = next((leaf for leaf in shapes if leaf.startswith("weight_hh") and len(shapes[leaf]) == 2), None)
    if recurrent:
        gates = {1: "RNN", 3: "GRU", 4: "LSTM"}.get(shapes[recurrent][0] // max(shapes[recurrent][1], 1), "RNN")
        return made("recurrent", gates + "Cell" * (recurrent == "weight_hh"))
    if "in_proj_weight" in shapes:
        return made("attention", "MultiheadAttention")
    if "running_mean" in shapes or "running_var" in shapes:
        return made("norm", "BatchNorm", outward=(shapes.get("running_mean") or shapes.get("running_var") or (None,))[-1])
    if not parameters and not any(row.role == "parameter" for row, _ in held.values()):
        return None
    if weight is None or min(weight, default=1) < 1:
        return made("parameter", "Parameter")
    if len(weight) < 2 and ("prelu" in word or "act" in word or weight in ((), (1,))) and bias is None:
        return made("activation", "PReLU")
    if len(weight) < 2 or bias == weight:
        return made("norm", "LayerNorm or GroupNorm" if bias else "RMSNorm", outward=weight[-1] if weight else None)
    if len(weight) == 2 and (bias is None or bias == weight[:1]):
        if bias is None and ("emb" in word or word in ("wte", "wpe")):
            return made("embedding", f"Embedding {weight[0]:,}×{weight[1]:,}", outward=weight[1])
        return made("linear", f"Linear {weight[1]:,}→{weight[0]:,}", inward=weight[1], outward=weight[0])
    if len(weight) in _CONV_AXES and (bias is None or len(bias) == 1):
        transposed = None if bias is None or weight[0] == weight[1] else bias != weight[:1]
        depthwise = weight[1] == 1 and weight[0] > 1
        return made(
            "conv", "", inward=weight[0] if depthwise else weight[1], outward=weight[0], kernel=weight[2:], grouped=depthwise,
            transposed=transposed,
        )  # fmt: skip
    return made("parameter", "Parameter")


def _orient(layers: list[Layer], *, in_order: bool) -> None:
    """Tell convolutions from transposed ones where the norm behind them or the layer before says so, and name them."""
    before = None
    for index, layer in enumerate(layers):
        before = layers[index - 1].outward or before if index else None
        if layer.kind != "conv":
            continue
        inward, outward = layer.inward or 0, layer.outward or 0
        if layer.transposed is None and inward != outward and in_order:
            behind = layers[index + 1].outward if index + 1 < len(layers) and layers[index + 1].kind == "norm" else None
            if before == inward or behind == outward:
                layer.transposed = False if behind != inward else None
            elif behind == inward:
                layer.transposed = True
        if layer.grouped:
            layer.transposed = bool(layer.transposed)
        elif layer.transposed:
            inward, outward = layer.inward, layer.outward = outward, inward
        name = f"Conv{'Transpose' * bool(layer.transposed)}{len(layer.kernel)}d {'×'.join(map(str, layer.kernel))}"
        layer.op = f"{name} {outward:,}, depthwise" if layer.grouped else f"{name} {inward:,}→{outward:,}"
