"""The student of a bundle without this package.

python examples/use_onnx.py BUNDLE IMAGE
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

bundle, picture = map(Path, sys.argv[1:])
channels, height, width = json.loads((bundle / "student.json").read_text())["shape"]
image = Image.open(picture).convert("L" if channels == 1 else "RGB").resize((width, height))
pixels = np.asarray(image).reshape(1, height, width, channels).transpose(0, 3, 1, 2)  # [N,C,H,W]
session = onnxruntime.InferenceSession(bundle / "student.onnx")
print(session.run(None, {"images": pixels})[0])  # probabilities [N,K]
