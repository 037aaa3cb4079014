"""The picture in the README: full precision, quantized, and their difference ten times, from a results file.

    python docs/images/strip.py demo/results.json docs/images/demo.png
"""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, FACTOR, GAP = 14, 2, 4


def picture(uri: str) -> np.ndarray:
    """(H, W, 3) of a PNG data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def strip(results: dict) -> Image.Image:
    """Three rows of the first pictures, whatever they look like: none is chosen."""
    pairs = sorted(results["images"], key=lambda pair: pair["index"])[:COUNT]
    rows = [[picture(pair[key]) for pair in pairs] for key in ("full_precision", "quantized")]
    change = [abs(a.astype(int) - b) for a, b in zip(*rows, strict=True)]
    rows.append([(255 - 10 * d).clip(0).astype(np.uint8) for d in change])
    height, width = rows[0][0].shape[:2]
    canvas = np.full((3 * (height + GAP) - GAP, COUNT * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = tile
    image = Image.fromarray(canvas)
    return image.resize((image.width * FACTOR, image.height * FACTOR), Image.Resampling.NEAREST)


if __name__ == "__main__":
    strip(json.loads(Path(sys.argv[1]).read_text())).save(sys.argv[2], optimize=True)
