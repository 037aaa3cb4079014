"""Rows of a committed result: a machine that has not measured them keeps them, and compares later ones with them.

A row says by a digest what it is of (weights, recipe, calibration, pictures, version): a change of any of them asks for a
new row. It holds the PSNR of every picture, in hundredths of dB, as little-endian 16-bit integers in base64, so that rows
that were measured on different days can be compared picture by picture.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.plan import Asked

__all__ = ["Kept", "of_pictures", "pictures_of"]

_HUNDREDTHS = np.dtype("<i2")

Row = Mapping[str, Any]


def of_pictures(psnr_db: Sequence[float]) -> str:
    """PSNR of each picture as a row holds them."""
    return base64.b64encode(np.rint(100 * np.asarray(psnr_db)).astype(_HUNDREDTHS).tobytes()).decode("ascii")


def pictures_of(row: Row) -> NDArray[np.float64] | None:
    """PSNR of each picture in dB, (n,); None if the row does not hold them."""
    text = row.get("psnr_hundredths_db")
    return None if text is None else np.frombuffer(base64.b64decode(text), _HUNDREDTHS) / 100


@dataclass(frozen=True)
class Kept:
    """What a result holds.

    Args:
        rows: by what ``key`` says of them.
        full: rows of full precision, by model.
        differences: as they are in the result, by model, width and the names of both lines.
    """

    rows: Mapping[tuple[Any, ...], Row]
    full: Mapping[str, Row]
    differences: Mapping[tuple[str, str, str, str], Row]

    @staticmethod
    def read(path: Path, header: Mapping[str, Any]) -> "Kept":
        """Of a file; nothing if it is not there or was made with other pictures or another calibration."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if any(found.get(name) != value for name, value in header.items()):
            return Kept({}, {}, {})
        rows = [row for row in found["rows"] if row["bits"]]
        return Kept(
            {key(row): row for row in rows if "failed" not in row},
            {row["model"]: row for row in found["rows"] if not row["bits"]},
            {(d["model"], d["bits"], d["of"], d["minus"]): d for d in found["differences_db"]},
        )

    def row(self, asked: Asked, digest: str) -> Row | None:
        """That of a row, unless what it would be of has changed; rows without a digest, of older results, as they are."""
        row = self.rows.get(key(asdict(asked)))
        return row if row is not None and row.get("digest", digest) == digest else None


def key(row: Row) -> tuple[Any, ...]:
    """By which a row is found again."""
    return (*(row[name] for name in ("model", "recipe", "bits", "switch")), *row["settings"])
