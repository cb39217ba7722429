"""CNV102 linear-on-raw-image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class LinearOnRawImage(Rule):
    """a Linear reads the flattened input image

    ## What it does
    Finds a fully connected layer that reads the input image (8×8 or more) with nothing spatial before it.

    ## Why it matters
    Each pixel has weights of its own and its neighbours are unknown: shift the image by one pixel and every weight
    meets another value. A few strided 3×3 convolutions reach the same width for a fraction of the weights.

    ## Example
        nn.Flatten(), nn.Linear(3 * 32 * 32, 1024)

    ## Use instead
        nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), ..., nn.AdaptiveAvgPool2d(1), nn.Flatten()

    ## Exceptions
    Vector inputs, patches (ViT, MLP-Mixer), images under 8×8.

    ## References
    LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition, Proceedings of the
    IEEE 86(11), section II.
    """

    code = "CNV102"
    name = "linear-on-raw-image"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for each layer."""
        for layer in context.fc_layers:
            if not layer.raw_image or len(layer.spatial) < 2 or min(layer.spatial) < 8:
                continue
            size = "×".join(map(str, (layer.channels, *layer.spatial)))
            width = layer.out_features
            convs, channels, stages = 0, layer.channels, []
            for step in (32, 64, width):
                convs += 9 * channels * step + step
                stages.append(step)
                channels = step
            yield context.finding(
                f"Linear reads the flattened {size} input image: {layer.weights:,} weights, one for each pixel and unit",
                [layer.call.layer],
                evidence={"weights": layer.weights, "image": [layer.channels, *layer.spatial], "conv_stages": stages,
                          "conv_stages_parameters": convs},
                suggestion=f"stride-2 3×3 convolutions ({'-'.join(map(str, stages))}) reach {width} features with {convs:,} parameters",
            )  # fmt: skip

    @classmethod
    def bad(cls) -> list[Example]:
        """The article's fully connected net; behind a norm, dropout, an activation, a view."""
        import torch
        from torch import nn

        class Viewed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(784, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.fc(x.view(x.size(0), -1))
                return value

        return [
            Example(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), ((1, 1, 28, 28),)),
            Example(
                lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(3072, 10)), ((1, 3, 32, 32),),
                "normalised",
            ),
            Example(lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)), ((1, 1, 28, 28),), "an activation"),
            Example(Viewed, ((1, 1, 28, 28),), "a view"),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Patches(nn.Module):
            def __init__(self, mixed: bool) -> None:
                super().__init__()
                self.project, self.mix, self.mixed = nn.Linear(192, 64), nn.Linear(16, 16), mixed

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x.reshape(1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, 16, 192)
                value: torch.Tensor = self.project(x)
                return self.mix(value.transpose(1, 2)) if self.mixed else value

        return [
            Example(lambda: nn.Linear(784, 10), ((1, 784),), "a vector input"),
            Example(lambda: nn.Sequential(nn.Flatten(), nn.Linear(49, 10)), ((1, 1, 7, 7),), "under 8×8"),
            Example(lambda: Patches(False), ((1, 3, 32, 32),), "patches"),
            Example(lambda: Patches(True), ((1, 3, 32, 32),), "mixed patches"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 676, 10)), ((1, 1, 28, 28),),
                "a convolution before",
            ),
        ]  # fmt: skip
