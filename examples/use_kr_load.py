"""The student of a bundle with this package.

python examples/use_kr_load.py BUNDLE
"""

import sys

import numpy as np

import knowledge_recycling as kr

student = kr.load(sys.argv[1])  # checks the bundle first
images = np.zeros((2, *student.shape), dtype=np.uint8)  # [N,C,H,W], 0 to 255
probabilities = student.predict(images)  # [N,K]
print([student.classes[k] for k in probabilities.argmax(axis=1)])
