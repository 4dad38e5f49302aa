"""Any image classifier of timm by name, built without weights from the network.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import PluginConfig, did_you_mean
from knowledge_recycling.errors import RecipeError


class Config(PluginConfig):
    """A backbone of timm."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet18"
    """Name of the model, see `timm.list_models()`."""
    min_side: int = Field(32, ge=1)
    """Smaller images are enlarged (bilinear) so that their shorter side has this many pixels."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `drop_path_rate`."""


class Classifier(nn.Module):
    """Images [N,C,H,W] in [-1, 1] to logits [N,K].

    Raises:
        RecipeError: timm has no model of that name, or refuses the options.
    """

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        if not timm.is_model(config.name):
            raise RecipeError(
                f"timm has no model '{config.name}'",
                where="classifier.name",
                expected="a name listed by timm.list_models()",
                got=config.name,
                next_step=did_you_mean(config.name, timm.list_models()),
            )
        try:
            self.model = timm.create_model(
                config.name, in_chans=shape[0], num_classes=num_classes, **config.options
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"timm cannot build '{config.name}' for images of shape {shape}",
                where="classifier.options",
                got=error,
                next_step="correct the options, or choose another model",
            ) from error
        enlarge = max(1.0, config.min_side / min(shape[1:]))
        self.size = tuple(round(side * enlarge) for side in shape[1:])

    def features(self, images: Tensor) -> Tensor:
        """Returns the pooled features [N,D] that the last layer reads."""
        model: Any = self.model
        features: Tensor = model.forward_head(
            model.forward_features(self._enlarged(images)), pre_logits=True
        )
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N,K]."""
        logits: Tensor = self.model(self._enlarged(images))
        return logits

    def _enlarged(self, images: Tensor) -> Tensor:
        if images.shape[2:] == self.size:
            return images
        return functional.interpolate(images, self.size, mode="bilinear")
