"""The program behind ``open_image_reward``: run by another environment's Python, it knows nothing of dither.

python image_reward.py PICTURES.npz SCORES.json
"""

import importlib
import json
import sys

import numpy as np
from PIL import Image


def main(asked: str, answered: str) -> None:
    """Scores the pictures of one file and writes the scores to the other."""
    with np.load(asked) as data:
        pictures, prompts = data["arr_0"], data["prompts"]
    model = importlib.import_module("ImageReward").load("ImageReward-v1.0")
    pairs = zip(pictures, prompts, strict=True)
    scores = [float(model.score(str(prompt), Image.fromarray(picture))) for picture, prompt in pairs]
    with open(answered, "w", encoding="utf-8") as f:
        json.dump(scores, f)


if __name__ == "__main__":
    main(*sys.argv[1:])
