"""The student as others get it: pixels in, probabilities out; as ONNX and as safetensors.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from knowledge_recycling.config import PluginConfig, kind_module
from knowledge_recycling.errors import RunError
from knowledge_recycling.extras import require
from knowledge_recycling.models.build import frozen
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.releasing.manifest import verify
from knowledge_recycling.storage import read_json, read_weights, write_json, write_weights

ONNX = "student.onnx"
STUDENT_WEIGHTS = "student.safetensors"
STUDENT = "student.json"
TOLERANCE = 1e-4
BATCH = 256


class Deployed(nn.Module):
    """The student with its normalisation: uint8 images [N,C,H,W] to probabilities [N,K]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the probabilities [N,K] of images [N,C,H,W], uint8, 0 to 255."""
        logits: Tensor = self.classifier(images.float() / 127.5 - 1.0)
        return torch.softmax(logits, dim=1)


@dataclass(frozen=True)
class ReleasedStudent:
    """The student of a bundle."""

    network: Deployed
    shape: tuple[int, int, int]
    """Channels, height and width that it takes."""
    classes: tuple[str, ...]

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Returns the class probabilities [N,K] of uint8 images [N,C,H,W]."""
        parts = [
            self.network(torch.from_numpy(np.array(images[i : i + BATCH])))
            for i in range(0, len(images), BATCH)
        ]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def load(bundle: Path | str) -> ReleasedStudent:
    """Returns the student of a bundle, after checking the bundle.

    Raises:
        RunError: The bundle is not as it was released.
    """
    bundle = Path(bundle)
    verify(bundle)
    known = read_json(bundle / STUDENT)
    module = kind_module("models.classifiers", known["classifier"]["kind"])
    config = module.Config(**known["classifier"])
    shape = tuple(known["shape"])
    classifier: Classifier = module.Classifier(config, shape, len(known["classes"]))
    read_weights(bundle / STUDENT_WEIGHTS, classifier)
    return ReleasedStudent(Deployed(frozen(classifier)), shape, tuple(known["classes"]))


def write_student(
    classifier: Classifier,
    config: PluginConfig,
    shape: tuple[int, int, int],
    classes: Sequence[str],
    bundle: Path,
) -> float:
    """Writes the student as safetensors with its recipe, and as ONNX.

    Returns:
        The largest difference between the probabilities of ONNX and of torch.

    Raises:
        RunError: They differ by more than 1e-4, or a library is missing.
    """
    write_weights(bundle / STUDENT_WEIGHTS, classifier)
    write_json(
        bundle / STUDENT,
        {
            "classifier": config.model_dump(mode="json"),
            "shape": shape,
            "classes": list(classes),
            "input": "uint8 [N,C,H,W], 0 to 255",
            "output": "class probabilities, float32 [N,K]",
        },
    )
    return export_onnx(Deployed(frozen(classifier)).cpu(), shape, bundle / ONNX)


def write_bare(model: Any, path: Path) -> None:
    """Writes an ONNX model without the source paths and names that the exporter notes in it."""
    strip_notes(model)
    require("onnx", "release").save(model, path)


def strip_notes(message: Any) -> None:
    """Clears the notes of a protobuf message and of all messages within it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                strip_notes(part)


def export_onnx(network: Deployed, shape: tuple[int, int, int], path: Path) -> float:
    """Writes the network as ONNX with a free batch size; returns its difference from torch.

    Raises:
        RunError: The difference is above 1e-4.
    """
    runtime = require("onnxruntime", "release")
    require("onnxscript", "release")
    random = torch.Generator().manual_seed(0)
    example = torch.randint(256, (2, *shape), generator=random, dtype=torch.uint8)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    write_bare(program.model_proto, path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    many = torch.randint(256, (7, *shape), generator=random, dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(many).numpy()
    got = session.run(None, {"images": many.numpy()})[0]
    difference = float(np.abs(got - expected).max())
    if not difference <= TOLERANCE:
        raise RunError(
            "the ONNX student differs from torch's",
            where=path,
            expected=f"probabilities within {TOLERANCE}",
            got=difference,
        )
    return difference
