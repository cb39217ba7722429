"""The networks of the article "From fully connected to convolution", written anew: what ``convaudit demo`` audits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _fc_stack(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inward, outward) in enumerate(zip(widths, widths[1:])):
        layers += [nn.ReLU()] * (index > 0) + [nn.Linear(inward, outward)]
    return nn.Sequential(*layers)


class FCNetwork(nn.Sequential):
    """§2.2: two Linear layers on the flattened 1×28×28 image."""

    def __init__(self) -> None:
        super().__init__(_fc_stack(28 * 28, 128, 10))


class FCNet(nn.Sequential):
    """§4.1's fc_net: three Linear layers on the flattened 3×32×32 image."""

    def __init__(self) -> None:
        super().__init__(_fc_stack(3 * 32 * 32, 1024, 512, 10))


class ConvNetwork(nn.Sequential):
    """§2.2: one 3×3 convolution, pooling, and a Linear on 1×28×28."""

    def __init__(self) -> None:
        conv = nn.Conv2d(1, 32, 3, padding=1)
        super().__init__(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 14 * 14, 10))


class BasicCNN(nn.Module):
    """§4.1: five 3×3 convolutions, then a Linear on the flattened 128×4×4 map."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (32, 32, 0, 64, 64, 0, 128):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(128 * 4 * 4, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images [N, 3, H, W]."""
        scores: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return scores


class ShallowWideNet(nn.Module):
    """§4.3: two wide convolutions with large kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, kernel_size=7, padding=3)
        self.conv2 = nn.Conv2d(128, 256, kernel_size=5, padding=2)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images [N, 3, H, W]."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv2(x)), 1)
        scores: Tensor = self.classifier(x.flatten(1))
        return scores


class DeepNarrowNet(nn.Module):
    """§4.3: four stages of two 3×3 convolutions each, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 128, 256):
            for inward in (channels, width):
                layers += [nn.Conv2d(inward, width, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images [N, 3, H, W]."""
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        scores: Tensor = self.classifier(x.view(x.size(0), -1))
        return scores


class EfficientConvNet(nn.Module):
    """§5: depthwise-separable convolutions with batch norm."""

    def __init__(self, num_classes: int = 10, input_channels: int = 3) -> None:
        super().__init__()

        def block(inward: int, outward: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(inward, outward, kernel, stride, kernel // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(outward), nn.ReLU(inplace=True)]

        layers = block(input_channels, 32, 3)
        channels = 32
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)):
            layers += block(channels, channels, 3, stride, groups=channels) + block(channels, width, 1)
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images [N, C, H, W]."""
        scores: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return scores


class LinearOnImage(nn.Sequential):
    """§1: a Linear from a flattened 224×224 image to 1000 units."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(224 * 224, 1000))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "FCNetwork": (FCNetwork, (1, 1, 28, 28)),
    "ConvNetwork": (ConvNetwork, (1, 1, 28, 28)),
    "FCNet": (FCNet, (1, 3, 32, 32)),
    "BasicCNN": (BasicCNN, (1, 3, 32, 32)),
    "ShallowWideNet": (ShallowWideNet, (1, 3, 32, 32)),
    "DeepNarrowNet": (DeepNarrowNet, (1, 3, 32, 32)),
    "EfficientConvNet": (EfficientConvNet, (1, 3, 32, 32)),
    "LinearOnImage": (LinearOnImage, (1, 1, 224, 224)),
}
"""Class and example input shape by name."""
