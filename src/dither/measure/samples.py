"""Compare samples that lie in files, whoever drew them: pictures as ``dither sample --npz`` or ADM's scripts write them,
or videos (N, F, H, W, C) in the same layout.

Only what samples can tell is measured: there is no model here whose size, layers or steps could be looked at. Rows go
together: row i of all files must be of one label and one seed, and drawn with the same settings, as far as files say so.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dither.errors import BadValue
from dither.evaluation.admfile import PictureFile, open_pictures
from dither.evaluation.judge import Judge
from dither.evaluation.protocol import Label
from dither.extractors import ClipScore
from dither.measure.comparison import Asked
from dither.measure.gather import versions
from dither.measure.judges import Judging, judging_for
from dither.measure.ranks import compared
from dither.measure.videos import VBENCH, read_vbench_rows, video_judge

__all__ = ["compare_samples", "is_samples"]

BATCH_BYTES = 2**25
SETTINGS = ("steps", "guidance", "scheduler")
"""Settings that stand in results under their own names."""


def is_samples(text: str) -> bool:
    """Whether this names a file of samples."""
    return Path(text).suffix.lower() == ".npz"


def compare_samples(
    quantized: Sequence[str], against: str, asked: Asked, progress: Callable[[str, int, int], None], command: str
) -> dict[str, Any]:
    """Compare files of samples with one of full precision; row i of all of them has the same label and seed.

    Args:
        quantized, against: files, all of pictures or all of videos.
        asked: its features, metrics, reference and images count; the rest is what the files hold. Videos know one metric
            more, ``vbench:QUANTIZED.json,FULL.json``.
        progress: told (what, done, total).
        command: what to repeat.

    Returns:
        As ``compare``.

    Raises:
        BadValue: a file cannot be read, a model is named beside files, two files are not of the same samples, or a metric
            cannot be taken of them.
    """
    for text in (*quantized, against):
        if not is_samples(text):
            raise BadValue(f"'{text}' is no file of samples: compare files with files, or models with models")
    full = open_pictures(against)
    small = [open_pictures(path) for path in quantized]
    for one in small:
        _check_same(one, full)
    vbench = _vbench(asked, full, len(small))
    metrics = [text for text in asked.metrics if not text.startswith(VBENCH)]
    how = judging_for(None, asked.features, metrics, asked.reference, asked.images)
    for one in small:
        _check_prompts(one, full, how)
    judges: list[Judge] = []
    results: list[dict[str, Any]] = []
    for i, (one, rows) in enumerate(zip(small, vbench, strict=True)):
        progress("comparing files", i, len(small))
        started = time.perf_counter()
        judge = how.judge(0) if full.frames is None else video_judge(how)
        _feed(judge, one, full, asked.batch_size)
        found = {**_results(judge, one, full), "command": command}
        found["guards"] += rows
        results.append({**found, "seconds": {"total": time.perf_counter() - started}})
        judges.append(judge)
    progress("comparing files", len(small), len(small))
    return compared(full.path.name, results, judges, command)


def _results(judge: Judge, one: PictureFile, full: PictureFile) -> dict[str, Any]:
    """As ``eval.json``. The judge knows rows only: seeds are named where a file has them, and else are null."""
    seeds, settings = _known(one.seeds, full.seeds), _known(one.settings, full.settings) or {}
    found = judge.results()
    found["seeds"] = None if seeds is None else seeds.tolist()
    for entry in found["images"]:
        entry["seed"] = None if seeds is None else int(seeds[entry["index"]])
    return {
        "schema": 2,
        "kind": "eval",
        "model": full.path.name,
        "checkpoint": one.path.name,
        "bits": None,
        "recipe": {},
        **found,
        **({} if full.frames is None else {"frames": full.frames}),
        **{name: settings[name] for name in SETTINGS if name in settings},
        "skipped": [],
        "versions": versions(),
    }


def _check_same(one: PictureFile, full: PictureFile) -> None:
    """Row i must mean the same in both; what a file does not say is taken on trust."""
    a, b = f"'{one.path}'", f"'{full.path}'"
    if one.count != full.count:
        raise BadValue(f"{a} holds {one.count} samples and {b} {full.count}: they were not drawn in pairs")
    if one.shape != full.shape:
        raise BadValue(
            f"{a} holds {one.kind} of {one.shape} and {b} {full.kind} of {full.shape}: they cannot be compared"
        )
    if one.frames == 1:
        raise BadValue(f"{a} and {b} hold videos of one frame: write them as pictures (N, H, W, C)")
    for what, mine, other in (("label", one.labels, full.labels), ("seed", one.seeds, full.seeds)):
        if mine is not None and other is not None and not np.array_equal(mine, other):
            row = int(np.argmax(mine != other)) if mine.dtype.kind == other.dtype.kind else 0
            raise BadValue(
                f"sample {row} has {what} {mine[row]} in {a} and {other[row]} in {b}: these are not the same samples"
            )
    if one.settings is not None and full.settings is not None:
        for name, ours, theirs in _differing("", one.settings, full.settings):
            raise BadValue(
                f"{a} was drawn with {name} {ours} and {b} with {theirs}: they would differ without any quantization"
            )


def _differing(place: str, one: Any, other: Any) -> list[tuple[str, str, str]]:
    """Dotted names of settings that differ, with both values for people."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other else [(place, _short(one), _short(other))]
    names = sorted(set(one) | set(other))
    inner = [_differing(f"{place}.{name}".lstrip("."), one.get(name), other.get(name)) for name in names]
    return [difference for differences in inner for difference in differences]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _vbench(asked: Asked, full: PictureFile, files: int) -> list[list[dict[str, Any]]]:
    """VBench's rows for each file; and what makes no sense for videos, or only for them, is refused."""
    named = [text for text in asked.metrics if text.startswith(VBENCH)]
    if named and full.frames is None:
        raise BadValue(f"'{named[0]}' belongs to videos, and '{full.path}' holds pictures")
    if asked.reference is not None and full.frames is not None:
        raise BadValue(f"the reference '{asked.reference}' is of pictures, and '{full.path}' holds videos")
    return read_vbench_rows(named, files)


def _check_prompts(one: PictureFile, full: PictureFile, how: Judging) -> None:
    """A prompt that is not there would be measured as an empty text, and a class as its number."""
    labels = _known(one.labels, full.labels)
    for name, score in how.scores.items():
        metric = name.replace("_", "-")
        if labels is None:
            raise BadValue(f"'{metric}' needs prompts, and neither '{one.path}' nor '{full.path}' holds labels")
        if isinstance(score, ClipScore) and labels.dtype.kind != "U":
            raise BadValue(f"'{metric}' needs prompts, and the labels of '{one.path}' are class numbers")


def _feed(judge: Judge, one: PictureFile, full: PictureFile, batch_size: int) -> None:
    """Rows stand for seeds, which may repeat: each prompt with seed 0 is a usual way to draw."""
    labels = _known(one.labels, full.labels)
    size = max(1, min(batch_size, BATCH_BYTES // full.sample_bytes))
    start = 0
    for x, y in zip(full.batches(size), one.batches(size), strict=True):
        rows = range(start, start + len(x))
        start += len(x)
        named: list[Label] = [""] * len(x) if labels is None else [_label(labels[row]) for row in rows]
        judge.add(rows, named, rows, x, y)


def _known(one: Any, other: Any) -> Any:
    return other if one is None else one


def _label(value: Any) -> Label:
    return str(value) if value.dtype.kind == "U" else int(value)
