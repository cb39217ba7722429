"""CNV405 softmax-at-output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL, main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class SoftmaxAtOutput(Rule):
    """the model returns softmax probabilities

    ## What it does
    Finds a Softmax whose value leaves the model, where its own input does not.

    ## Why it matters
    CrossEntropyLoss applies log-softmax again: the gradients shrink and the loss cannot come near zero.

    ## Example
        return self.fc(x).softmax(1)

    ## Use instead
        return self.fc(x)      # and softmax where probabilities are shown

    ## Exceptions
    log_softmax, sigmoid, attention, a softmax over positions, nets that return logits or other values too, or leave
    the softmax out while training.

    ## References
    PyTorch documentation, torch.nn.CrossEntropyLoss: "The input is expected to contain the unnormalized logits",
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    code = "CNV405"
    name = "softmax-at-output"
    severity = "info"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model."""
        returned = [n for node in context.graph.graph.nodes if node.op == "output" for n in node.all_input_nodes]
        if context.graph.status == "partial" or any(
            self._softmax(node) is None and self._floats(node) for node in returned
        ):
            heads = [self._softmax(node) for node in returned]
            if not self._all_scores(context, heads):
                return
        layers = self._layers(context, returned)
        trained = context.trained() if layers else None
        if trained is not None:  # where it is left out in training, the loss sees logits
            kept = {call.layer for _, call in trained.calls if call.op == "softmax"}
            layers = [layer for layer in layers if layer in kept]
        if layers:
            yield context.finding(
                "Softmax is the model's last step: CrossEntropyLoss applies it again",
                layers,
                suggestion="return logits; apply softmax where probabilities are shown",
            )

    def _layers(self, context: Context, returned: list[Node]) -> list[str]:
        """Softmax layers over classes (not positions) whose value is read by nothing but the output."""
        layers: dict[str, None] = {}
        for node in returned:
            softmax = self._softmax(node)
            if softmax is None:
                continue
            source = main_input(softmax)
            axes = context.layouts.get(source, ()) if source is not None else ()
            dim = softmax.meta[CALL].scalars.get("dim")
            over = axes[dim] if isinstance(dim, int) and -len(axes) <= dim < len(axes) else frozenset({"C"})
            if "C" in over and not self._read_inside(softmax):
                layers[softmax.meta[CALL].layer] = None
        return list(layers)

    def _read_inside(self, softmax: Node) -> bool:
        """Whether the forward goes on with the probabilities: attention that is returned beside its result."""
        kinds = {user.meta[CALL].kind for user in softmax.users if CALL in user.meta}
        return not kinds <= {"reshape", "elementwise"}

    def _all_scores(self, context: Context, heads: list[Node | None]) -> bool:
        """Whether outputs beside a softmax are scores of their own (a discriminator's validity), not its logits."""
        shapes = [shape for shape, head in zip(context.output_shapes, heads) if head is None]
        found = [head for head in heads if head is not None]
        inputs = {main_input(head) for head in found}
        returned = {n for node in context.graph.graph.nodes if node.op == "output" for n in node.all_input_nodes}
        return bool(found) and not inputs & returned and all(len(s) == 2 and s[1] == 1 for s in shapes)

    def _floats(self, node: Node) -> bool:
        call = node.meta.get(CALL)
        return call is None or call.dtype is None or "float" in call.dtype

    def _softmax(self, node: Node) -> Node | None:
        at: Node | None = node
        while at is not None:
            call = at.meta.get(CALL)
            if call is None or call.op == "softmax":
                return at if call is not None else None
            if call.kind not in ("reshape", "elementwise"):
                return None
            at = main_input(at)
        return None

    @classmethod
    def bad(cls) -> list[Example]:
        """A module, a method, per pixel, beside a validity score."""
        import torch
        from torch import nn

        class Scores(nn.Module):
            def __init__(self, validity: bool) -> None:
                super().__init__()
                self.fc, self.valid, self.validity = nn.Linear(8, 4), nn.Linear(8, 1), validity

            def forward(self, x: torch.Tensor) -> object:
                classes = self.fc(x).softmax(1)
                return (self.valid(x).sigmoid(), classes) if self.validity else classes

        return [
            Example(lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)), ((1, 8),), "a module"),
            Example(lambda: Scores(False), ((1, 8),), "a method"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)), ((1, 3, 8, 8),), "per pixel"),
            Example(lambda: Scores(True), ((1, 8),), "beside a validity score"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 4)

            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                logits = self.fc(x)
                return logits, logits.softmax(1)

        class Regresses(Both):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.fc(x).softmax(1), self.fc(x + 1)

        class Shown(Both):
            def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
                logits: torch.Tensor = self.fc(x)
                return logits if self.training else logits.softmax(1)

        return [
            Example(Shown, ((1, 8),), "logits in train mode"),
            Example(lambda: nn.Sequential(nn.Conv1d(3, 4, 1), nn.Softmax(2)), ((1, 3, 8),), "over positions"),
            Example(lambda: nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(1)), ((1, 8),), "log_softmax"),
            Example(lambda: nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()), ((1, 8),), "sigmoid"),
            Example(lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(1), nn.Linear(4, 2)), ((1, 8),), "attention"),
            Example(Both, ((1, 8),), "its logits leave too"),
            Example(Regresses, ((1, 8),), "it regresses too"),
        ]
