"""ResNet of the CIFAR kind (He et al. 2016, arXiv 1512.03385, section 4.2); ResNet14 by default.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import PluginConfig


class Config(PluginConfig):
    """A ResNet of 6 * blocks + 2 layers."""

    kind: Literal["resnet"] = "resnet"
    width: PositiveInt = Field(16, multiple_of=8)
    """Channels of the first of the three levels, a multiple of 8; each further level has twice as
    many."""  # below 8, torch 2.14's strided channels-last 1x1 convolution corrupts memory on x86
    blocks: PositiveInt = 2
    """Residual blocks per level: 2 is ResNet14, 3 is ResNet20."""


class Classifier(nn.Module):
    """Images [N,C,H,W] in [-1, 1] to logits [N,K]."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(3)]
        self.enter = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential()
        previous = widths[0]
        for level, width in enumerate(widths):
            for block in range(config.blocks):
                stride = 2 if level > 0 and block == 0 else 1
                self.blocks.append(Block(previous, width, stride))
                previous = width
        self.head = nn.Linear(previous, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Returns the pooled features [N, 4 * width] that the last layer reads."""
        maps = self.blocks(functional.relu(self.norm(self.enter(images))))
        return functional.adaptive_avg_pool2d(maps, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N,K]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        residual = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(residual + self.shortcut(x))
