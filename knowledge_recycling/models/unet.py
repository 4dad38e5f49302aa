"""Compact U-Net on patches, conditioned on time and label: the network of the flow.

Shapes: N images, C channels, H rows, W columns; E embedding width; t in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.models.layers import zeroed


class UNet(nn.Module):
    """Two-level U-Net on patches; every block is scaled and shifted by time and label.

    Args:
        channels: C.
        num_labels: Labels it knows.
        width: Channels of its finest level, a multiple of 8; the level below has twice as many.
        depth: Residual blocks per level on the way down, and again on the way up.
        patch: Pixels per side of what becomes one position.
    """

    def __init__(
        self, channels: int, num_labels: int, *, width: int, depth: int, patch: int
    ) -> None:
        super().__init__()
        self.patch = patch
        fine, coarse, embedding = width, 2 * width, 4 * width
        pixels = channels * patch**2
        self.embed_time = nn.Sequential(
            FourierFeatures(width), nn.Linear(width, embedding), nn.SiLU()
        )
        self.embed_label = nn.Embedding(num_labels, embedding)
        self.enter = nn.Conv2d(pixels, fine, 3, padding=1)
        self.down_fine = Blocks(depth, fine, embedding)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.down_coarse = Blocks(depth, coarse, embedding)
        self.attention = Attention(coarse)
        self.up_coarse = Blocks(depth, coarse, embedding)
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.merge = nn.Conv2d(2 * fine, fine, 1)
        self.up_fine = Blocks(depth, fine, embedding)
        self.leave = nn.Sequential(
            group_norm(fine), nn.SiLU(), zeroed(nn.Conv2d(fine, pixels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Returns a map of the shape of `x` [N,C,H,W], given `t` [N] and `labels` [N]."""
        height, width = x.shape[2:]
        unit = 2 * self.patch
        x = functional.pad(x, (0, -width % unit, 0, -height % unit))
        embedding = functional.silu(self.embed_time(t) + self.embed_label(labels))  # [N, E]
        fine = self.enter(functional.pixel_unshuffle(x, self.patch))
        fine = self.down_fine(fine, embedding)
        coarse = self.down_coarse(self.down(fine), embedding)
        coarse = self.up_coarse(self.attention(coarse), embedding)
        fine = self.merge(torch.cat([fine, self.up(coarse)], dim=1))
        pixels = self.leave(self.up_fine(fine, embedding))
        return functional.pixel_shuffle(pixels, self.patch)[:, :, :height, :width]


class FourierFeatures(nn.Module):
    """Cosines and sines of t [N] at frequencies from 1 to 100 half-turns: [N, width]."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.logspace(0, 2, width // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Returns the features of `t`."""
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Block(nn.Module):
    """Residual block with adaptive group normalisation (Dhariwal & Nichol 2021, section 4.3)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulate = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Returns `x` [N,C,H,W] plus its residual, given `embedding` [N,E]."""
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.norm2(hidden) * (1 + scale) + shift
        residual: Tensor = self.conv2(functional.silu(hidden))
        return x + residual


class Blocks(nn.ModuleList):
    """Several `Block`s in a row."""

    def __init__(self, depth: int, channels: int, embedding: int) -> None:
        super().__init__(Block(channels, embedding) for _ in range(depth))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Applies the blocks to `x` in order."""
        for block in self:
            x = block(x, embedding)
        return x


class Attention(nn.Module):
    """Residual self-attention over the positions of a map, heads of 32 channels or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = channels // math.gcd(channels, 32)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` [N,C,H,W] plus what its positions gather from each other."""
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # [N, H*W, 3C]
        q, k, v = qkv.view(n, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # plain matrix products: on a CPU in bf16 the backward pass of torch's fused attention takes
        # six times as long over so few positions (64 at most)
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        gathered = weights.type_as(v) @ v  # [N, heads, H*W, C/heads]
        gathered = gathered.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)
        residual: Tensor = self.out(gathered)
        return x + residual


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a normalisation over groups of 16 channels where they divide, of 8 elsewhere.

    With 8 channels torch's bf16 channels-last kernel cannot fill a vector and is ten times slower.
    """
    return nn.GroupNorm(channels // (16 if channels % 16 == 0 else 8), channels)
