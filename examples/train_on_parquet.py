"""A classifier of one's own from a bundle's images.

python examples/train_on_parquet.py BUNDLE
"""

import io
import sys

import numpy as np
import pandas
from PIL import Image
from sklearn.linear_model import LogisticRegression

frame = pandas.read_parquet(f"{sys.argv[1]}/synthetic.parquet")
pictures = [Image.open(io.BytesIO(image["bytes"])) for image in frame["image"]]
pixels = np.stack([np.asarray(picture).ravel() / 255 for picture in pictures])
train = np.arange(len(frame)) % 5 > 0
own = LogisticRegression(max_iter=1000).fit(pixels[train], frame["class_name"][train])
print("on synthetic images left out:", own.score(pixels[~train], frame["class_name"][~train]))
