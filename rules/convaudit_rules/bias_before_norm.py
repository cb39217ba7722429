"""CNV403 bias-before-norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call, LayerGraph
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


class BiasBeforeNorm(Rule):
    """a bias that the next normalisation subtracts again

    ## What it does
    Finds convolutions and Linear layers with a bias whose every use is a BatchNorm or InstanceNorm (GroupNorm with one
    channel a group). A warning where these biases are 0.5% of the parameters.

    ## Why it matters
    The norm subtracts the channel's mean, bias included: the bias gets no gradient and costs memory, optimizer state
    and an add.

    ## Example
        nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128)

    ## Use instead
        nn.Conv2d(64, 128, 3, bias=False), nn.BatchNorm2d(128)

    ## Exceptions
    LayerNorm and GroupNorm over several channels, anything between (Dropout included), a second reader, a reshape
    between.

    ## References
    Ioffe, Szegedy 2015, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift,
    arXiv:1502.03167, section 3.2 (the bias is cancelled by the mean subtraction).
    """

    code = "CNV403"
    name = "bias-before-norm"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        redundant = self._redundant(context.graph)
        if not redundant:
            return
        trained = context.trained()  # where Dropout may stand between, and a frozen norm subtracts nothing
        if trained is not None:
            same = self._redundant(trained, training=True)
            redundant = {layer: made for layer, made in redundant.items() if layer in same}
        biases = {
            layer: next((s[0] for s in made[0][1].weights[::-1] if len(s) == 1), 0) for layer, made in redundant.items()
        }
        biases = {layer: size for layer, size in biases.items() if size}
        total = context.graph.totals.parameters if context.graph.totals else 0
        if not biases:
            return

        def rewrite(attempt: Rewrite) -> None:
            for layer in biases:
                for node, _ in redundant[layer]:
                    attempt.drop_bias(node)

        saving = context.prove("drop-bias", rewrite)
        share = sum(biases.values()) / max(1, total)
        yield context.finding(
            f"{len(biases)} bias{'es' * (len(biases) > 1)} ({sum(biases.values()):,} parameters, {share:.2%}) that the norm "
            "behind subtracts again",
            list(biases),
            severity="warning" if share >= 0.005 and saving is not None else "info",
            saving=saving,
            evidence={"biases": biases, "share": share},
            suggestion="bias=False",
        )

    def _redundant(self, graph: LayerGraph, training: bool = False) -> dict[str, list[tuple[Node, Call]]]:
        """Calls of the layers all of whose outputs are normalised, and whose bias nothing else reads."""
        calls: dict[str, list[tuple[Node, Call]]] = {}
        for node, call in graph.calls:
            if call.kind in ("conv", "linear"):
                calls.setdefault(call.layer, []).append((node, call))
        made = {n for found in calls.values() for n, _ in found}
        read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr" and any(u not in made for u in n.users)}
        return {
            layer: found
            for layer, found in calls.items()
            if f"{layer}.bias" not in read and all(c.biased and self._normed(n, c, training) for n, c in found)
        }

    def _normed(self, node: Node, call: Call, training: bool) -> bool:
        """Whether every reader is a norm that subtracts each channel's mean."""
        channels = call.outputs[0][1] if len(call.outputs[0]) > 1 else 0
        if call.kind == "linear" and len(call.outputs[0]) != 2:
            return False
        readers = [user.meta.get(CALL) for user in node.users]
        return bool(readers) and all(
            reader is not None
            and (
                (reader.op == "batch_norm" and (not training or reader.scalars.get("training", True)))
                or (reader.op == "instance_norm" and call.kind == "conv")
                or (reader.op == "group_norm" and reader.scalars.get("num_groups") == channels)
            )
            for reader in readers
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """Conv, transposed conv and Linear; BatchNorm, InstanceNorm (affine or not), GroupNorm of one channel."""
        from torch import nn

        image = ((2, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), image, "conv, BatchNorm"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False)), image, "not affine"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.InstanceNorm2d(8)), image, "InstanceNorm"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True)),
                image,
                "InstanceNorm, affine",
            ),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(8, 8)), image, "one channel a group"),
            Example(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), ((2, 8),), "Linear"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                value: torch.Tensor = self.norm(x) + x
                return value

        class BiasRead(Twice):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                assert self.conv.bias is not None
                value: torch.Tensor = self.norm(self.conv(x)) + self.conv.bias[:, None, None]
                return value

        class Frozen(Twice):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                norm = self.norm
                return nn.functional.batch_norm(
                    self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False
                )

        class DropsInTraining(Twice):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                if self.training:
                    x = nn.functional.dropout(x, 0.2)
                value: torch.Tensor = self.norm(x)
                return value

        image = ((2, 3, 8, 8),)
        viewed = [nn.Linear(8, 32), nn.Unflatten(1, (2, 4, 4)), nn.BatchNorm2d(2)]
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)), image, "no bias"),
            Example(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), ((2, 8),), "LayerNorm"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)), image, "GroupNorm"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)), image, "an activation between"
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.BatchNorm2d(8)), image, "Dropout between"
            ),
            Example(Twice, image, "a second reader"),
            Example(BiasRead, image, "the bias is read elsewhere"),
            Example(Frozen, image, "a frozen norm"),
            Example(DropsInTraining, image, "Dropout between in training"),
            Example(
                lambda: nn.Sequential(nn.Linear(8, 8), nn.InstanceNorm1d(8)), ((2, 8),), "normalised over features"
            ),
            Example(lambda: nn.Sequential(*viewed), ((2, 8),), "a reshape between"),
            Example(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4)), ((2, 4, 8),), "another axis"),
        ]
