"""What the README shows of the demo, from its results file: the picture and the last line.

    python docs/images/refresh.py demo/results.json

The results themselves, without the pictures, go to ``benchmarks/results/demo.json``.

Top row full precision, middle row quantized, bottom row ten times their difference, on white.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dither.cli.show import verdict

README = Path(__file__).parents[2] / "README.md"
RESULTS = README.parent / "benchmarks" / "results" / "demo.json"
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


def write(results: dict) -> None:
    """Put all in their places."""
    kept = {key: value for key, value in results.items() if key != "images"}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    strip(results).save(Path(__file__).with_name("demo.png"), optimize=True)
    line = f"<!-- verdict -->\n```\n{verdict(results)}\n```\n<!-- end -->"
    text = README.read_text(encoding="utf-8")
    README.write_text(
        re.sub(r"<!-- verdict -->.*?<!-- end -->", lambda _: line, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
