"""Compare samples that lie in files, whoever drew them: pictures as ``dither sample --npz`` or ADM's scripts write them.

Only what pictures can tell is measured: there is no model here whose size, layers or steps could be looked at.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dither.errors import BadValue
from dither.evaluation.admfile import PictureFile, open_pictures
from dither.evaluation.judge import Judge
from dither.evaluation.protocol import Label
from dither.measure.comparison import Asked
from dither.measure.gather import versions
from dither.measure.judges import judging_for
from dither.measure.ranks import ranks

__all__ = ["compare_samples", "is_samples"]


def is_samples(text: str) -> bool:
    """Whether this names a file of samples."""
    return Path(text).suffix.lower() == ".npz"


def compare_samples(
    quantized: Sequence[str], against: str, asked: Asked, progress: Callable[[str, int, int], None], command: str
) -> dict[str, Any]:
    """Compare files of samples with one of full precision; row i of all of them has the same label and seed.

    Args:
        quantized, against: files.
        asked: its features, metrics, reference and images count; the rest is what the files hold.
        progress: told (what, done, total).
        command: what to repeat.

    Returns:
        As ``compare``.

    Raises:
        BadValue: a file cannot be read, a model is named beside files, or two files are not of the same samples.
    """
    for text in (*quantized, against):
        if not is_samples(text):
            raise BadValue(f"'{text}' is no file of samples: compare files with files, or models with models")
    full = open_pictures(against)
    small = [open_pictures(path) for path in quantized]
    for one in small:
        _check_same(one, full)
    how = judging_for(None, asked.features, asked.metrics, asked.reference, asked.images)
    results, judges = [], []
    for i, one in enumerate(small):
        progress("comparing files", i, len(small))
        started = time.perf_counter()
        judge = how.judge(0)
        _feed(judge, one, full, asked.batch_size)
        found = {
            "schema": 2,
            "kind": "eval",
            "model": full.path.name,
            "checkpoint": one.path.name,
            "bits": None,
            "recipe": {},
            **judge.results(),
            "skipped": [],
            "versions": versions(),
            "command": command,
        }
        results.append({**found, "seconds": {"total": time.perf_counter() - started}})
        judges.append(judge)
    progress("comparing files", len(small), len(small))
    return {
        "schema": 2,
        "kind": "compare",
        "model": full.path.name,
        "results": results,
        **ranks(judges),
        "command": command,
    }


def _check_same(one: PictureFile, full: PictureFile) -> None:
    """Row i must mean the same in both; what a file does not say is taken on trust."""
    a, b = f"'{one.path}'", f"'{full.path}'"
    if one.count != full.count:
        raise BadValue(f"{a} holds {one.count} samples and {b} {full.count}: they were not drawn in pairs")
    if one.shape != full.shape:
        raise BadValue(f"{a} holds pictures of {one.shape} and {b} of {full.shape}: they cannot be compared")
    for what, mine, other in (("label", one.labels, full.labels), ("seed", one.seeds, full.seeds)):
        if mine is not None and other is not None and not np.array_equal(mine, other):
            row = int(np.argmax(mine != other)) if mine.dtype.kind == other.dtype.kind else 0
            raise BadValue(
                f"sample {row} has {what} {mine[row]} in {a} and {other[row]} in {b}: these are not the same samples"
            )


def _feed(judge: Judge, one: PictureFile, full: PictureFile, batch_size: int) -> None:
    labels = _known(one.labels, full.labels)
    seeds = _known(one.seeds, full.seeds)
    start = 0
    for x, y in zip(full.batches(batch_size), one.batches(batch_size), strict=True):
        rows = range(start, start + len(x))
        start += len(x)
        named: list[Label] = [""] * len(x) if labels is None else [_label(labels[row]) for row in rows]
        judge.add(rows, named, [row if seeds is None else int(seeds[row]) for row in rows], x, y)


def _known(one: Any, other: Any) -> Any:
    return other if one is None else one


def _label(value: Any) -> Label:
    return str(value) if value.dtype.kind == "U" else int(value)
