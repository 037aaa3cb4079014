"""One row, the way a user goes: quantize, save, load, evaluate. Whatever goes wrong in it becomes the row's result.

Checkpoints, and results of finished rows, are kept in a folder under what determines them, so that an interrupted run goes
on, and other pictures of a row (another number of steps) are drawn from the same checkpoint. A failed row is tried again by
the next run.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import dither
from benchmarks.common import write_result
from benchmarks.quality.plan import Asked
from dither.inspection import stored_dtype
from dither.measure import Asked as Compared
from dither.measure import Running, compare
from dither.quantization import Calibration, resolve_recipe
from dither.recipes import recipe_to
from dither.sources import open_source
from dither.stages import SEARCHES
from dither.stages.needs import MEASURED
from dither.store import FolderStore

__all__ = ["Pictures", "full_precision", "is_measured", "measure", "numbers"]

SPENT = {"mixed": ("weight", "act"), "integer-program": ("weight", "act")}
"""Fields of a stage that say how measurements are used, and not what is measured."""

LOSSLESS = frozenset({"share"})
"""Stages that change no value."""

LONG = ("groups", "history", "rungs")
"""What a search notes layer by layer, and step by step."""

DISTANCES = (
    "to_full_precision", "to_full_precision_se", "ci95", "to_real", "difference_to_real", "difference_ci95",
)  # fmt: skip

Evaluate = Callable[[Path, Asked, "Pictures", Path], dict[str, Any]]


@dataclass(frozen=True)
class Pictures:
    """What is drawn for every row; arguments of ``dither eval``."""

    n: int = 128
    seed: int = 0
    steps: int = 25
    guidance: float = 1.5
    batch_size: int = 64


def evaluated(checkpoint: Path, asked: Asked, pictures: Pictures, work: Path) -> dict[str, Any]:
    """``dither eval``: the one place where a row is measured. Full precision is drawn once for all rows of a model."""
    what = Compared(**asdict(pictures), trajectory=0, images=0, speed=False)
    found: dict[str, Any] = compare([checkpoint], asked.model, what, Running(store=work / "shards"))["results"][0]
    return found


def measure(asked: Asked, pictures: Pictures, work: Path, evaluate: Evaluate = evaluated) -> dict[str, Any]:
    """Contents of ``eval.json`` of a row, from the folder where it is there, or ``{"failed": sentence}``."""
    try:
        kept = _evaluation(asked, pictures, work)
        if not kept.is_file():
            made = packed(asked, pictures.seed, work)
            cost = json.loads((made.parent / "cost.json").read_text(encoding="utf-8"))
            write_result(kept, {**evaluate(made, asked, pictures, work), "quantize": cost})
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    except Exception as e:  # one row must not end a run of hours; its reader learns what became of it
        return {"failed": f"{type(e).__name__}: {e}"}
    return found


def is_measured(asked: Asked, pictures: Pictures, work: Path) -> bool:
    """Whether ``measure`` finds the row in the folder."""
    return _evaluation(asked, pictures, work).is_file()


def _evaluation(asked: Asked, pictures: Pictures, work: Path) -> Path:
    """Where a row's result is kept."""
    return work / digest(asked, pictures) / "eval.json"


def digest(asked: Asked, pictures: Pictures) -> str:
    """What determines a row: weights, recipe as it is, calibration, pictures, version."""
    return _digest_of_row(asked, asdict(pictures))


def _digest_of_row(asked: Asked, *what: Any) -> str:
    return _digest(asked.model, _recipe(asked), asdict(Calibration()), *what, dither.__version__)


def _recipe(asked: Asked) -> dict[str, Any]:
    """As it is, but for what changes no picture."""
    recipe = recipe_to(resolve_recipe(asked.recipe, asked.bits, asked.settings))
    return {**recipe, "stages": [stage for stage in recipe["stages"] if stage["stage"] not in LOSSLESS]}


def _digest(model: str, *what: Any) -> str:
    found = hashlib.blake2b(json.dumps([model, *what], sort_keys=True).encode(), digest_size=16)
    for file in open_source(model).weight_files:
        found.update(file.read_bytes())
    return found.hexdigest()


def packed(asked: Asked, seed: int, work: Path) -> Path:
    """``dither quantize``, unless an earlier run did it: the checkpoint, with what it cost beside it."""
    target = work / "packed" / _digest_of_row(asked, seed) / "checkpoint"
    if not target.is_dir():
        full = open_source(asked.model)
        storage = stored_dtype(full.weight_files)
        started = time.process_time()
        dither.quantize(
            full.pipeline,
            asked.recipe,
            asked.bits,
            settings=asked.settings,
            seed=seed,
            storage=storage,
            store=measurements(asked, seed, work),
        )
        minutes = (time.process_time() - started) / 60
        write_result(target.with_name("cost.json"), {"cpu_minutes": round(minutes, 2)})
        dither.save(full.pipeline, target, storage=storage)
    return target


@dataclass(frozen=True)
class Measurements:
    """A store that keeps measurements, and no layers."""

    inner: FolderStore

    def __contains__(self, name: object) -> bool:
        """Whether it was measured earlier."""
        return str(name).startswith(MEASURED) and name in self.inner

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """A measurement made earlier, or None."""
        return self.inner.get(name) if name.startswith(MEASURED) else None

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a measurement."""
        if name.startswith(MEASURED):
            self.inner.put(name, tensors)


def measurements(asked: Asked, seed: int, work: Path) -> Measurements:
    """What rows whose recipes differ in what they do with their measurements alone can share."""
    stages = []
    for stage in _recipe(asked)["stages"]:
        stages.append({key: value for key, value in stage.items() if key not in SPENT.get(stage["stage"], ())})
    folder = work / "measured" / _digest(asked.model, stages, asdict(Calibration()), seed, dither.__version__)
    folder.mkdir(parents=True, exist_ok=True)
    return Measurements(FolderStore(folder))


def numbers(asked: Asked, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the committed result holds: no picture, no seeds, no layers one by one."""
    head = {**asdict(asked), "settings": list(asked.settings)}
    if "failed" in found:
        return {**head, "failed": found["failed"]}
    fd, psnr, accuracy = found["fd"], found["psnr_db"], found["class_accuracy"]
    return {
        **head,
        "n": found["n"],
        "psnr_db": {key: psnr[key] for key in ("mean", "ci95", "worst")},
        "ssim": found["ssim"]["mean"],
        "fd": {key: fd.get(key) for key in DISTANCES},
        "class_accuracy": None if accuracy is None else accuracy["quantized"],
        "size": found["size"],
        "layers": {key: found["layers"][key] for key in ("quantized", "total", "simulated")},
        "kernels": found["kernels"],
        "quantize": found["quantize"],
        "search": searched(found),
    }


def searched(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a search for group sizes noted, but for the sizes themselves; None where there was none."""
    notes = found.get("notes") or {}
    for stage in SEARCHES & set(notes):
        return {"stage": stage, **{key: value for key, value in notes[stage].items() if key not in LONG}}
    return None


def full_precision(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The control row: full precision against itself and against real pictures, from any evaluation of the model."""
    fd, floor, accuracy = found["fd"], found["noise_floor"], found["class_accuracy"]
    return {
        "model": model,
        "recipe": "full precision",
        "bits": "",
        "switch": "",
        "psnr_db": {"other_batch_size": floor["psnr_db"], "other_seeds": floor["other_seeds_psnr_db"]},
        "noise_floor_pictures": floor["n"],
        "fd": {"noise_floor": fd["noise_floor"], "to_real": fd["full_precision_to_real"]},
        "class_accuracy": None if accuracy is None else accuracy["full_precision"],
    }
