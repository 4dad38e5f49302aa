"""What the network of a kind can do. Kinds need not inherit from these; a contract test checks.

Shapes: N images, C channels, H rows, W columns, K classes, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from knowledge_recycling.models.knobs import Knobs


class Classifier(nn.Module):
    """Images to logits; built as `Classifier(config, shape, num_classes)`."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N,K] of images [N,C,H,W] in [-1, 1]."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Returns the features [N,D] that the last layer reads."""
        raise NotImplementedError


class Generator(nn.Module):
    """Labels to images; built as `Generator(config, shape, num_classes)`.

    It may have `losses(images, labels)` as well: how badly it explains real images [N,C,H,W], [N],
    the same for an image whatever else is in the batch. An audit then attacks it by them. And a
    `network`, the module that all its evaluations call: that is what `compute.compile` compiles.
    A kind that evaluates it several times for an image may have `evaluations(knobs)`, how often,
    and `accelerated(knobs, evaluations, num_steps, fabric)`: the objective that distils sampling
    with these knobs into so few, given batches of noise [N, *shape] and labels [N]; its
    `averaged()` generator is sampled with its `knobs`.
    """

    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] for labels [N] (on the device) and seeds [N] (CPU).

        Image i depends on its label, its seed and the knobs alone, whatever else is in the batch.
        """
        raise NotImplementedError
