"""What the commands do, between reading options and printing."""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dither import allocation, api, recipes
from dither._version import __version__
from dither.checkpoint import header_of
from dither.cli import show
from dither.cli.calls import beside, told
from dither.cli.console import out, resumable, write, write_json
from dither.errors import DitherError, Refused
from dither.inspection import describe, estimate, size_on_disk, stays, stored_dtype, summary
from dither.measure import evaluate, versions
from dither.measure.subjects import scheduler_settings
from dither.nn import QLinear, TimedLinear
from dither.pictures import grid, save_npz
from dither.quantization import Calibration, plan_ahead, quantize, sample_seeds
from dither.recorded import open_calls
from dither.report import render
from dither.sampling import default_labels, sampler_for
from dither.sources import Source, open_source
from dither.spec import Recipe
from dither.stages import SEARCHES, Mixed, Program, Share, repeated, stages_of
from dither.store import FolderStore, check_output, open_store

__all__ = ["inspect_model", "quantize_to", "run_demo", "sample_to"]

Progress = Callable[[str, int, int], None]
SIZES = ("bits_per_weight", "model_bits_per_weight", "running_bits_per_weight", "running_bits_per_activation")
"""Of ``size_on_disk``, what ``inspect`` tells too."""
DEMO_BATCH = 16
"""Pictures at a time: as fast as larger batches, and the progress bar moves."""


def quantize_to(
    model: str,
    output: Path,
    recipe: Recipe,
    how: Calibration,
    seed: int,
    resume: bool,
    progress: Progress,
    calls_file: Path | None = None,
    groups_file: Path | None = None,
) -> dict[str, Any]:
    """Open, show the plan, quantize, save. Returns sizes and layers as JSON."""
    check_output(output, resume)
    groups = None if groups_file is None else allocation.open_groups(groups_file)
    source = open_source(model)
    if any(isinstance(m, QLinear | TimedLinear) for m in source.model.modules()):
        raise Refused(f"'{model}' is quantized already: quantize its full-precision original instead")
    if groups is not None:
        recipe = recipes.with_groups(recipe, groups.sizes_for(source.model))
    given = None if calls_file is None else open_calls(calls_file, source.model)
    how = how if given is None else beside(how, given)
    storage = stored_dtype(source.weight_files)
    target = source.pipeline if source.pipeline is not None else source.model
    ahead = plan_ahead(target, recipe, seed)
    rows = describe(source.model, source.adapter, ahead.promised, ahead.clock, ahead.attention)
    shared = repeated(source.model, ahead.promised) if Share.tag in dict(recipe.stages) else {}
    expected = estimate(source.model, rows, storage, shared)
    out.print(show.plan(source.name, recipe, rows, expected, source.weight_bytes))
    _say_what_follows(recipe)
    search = allocation.search_of(recipe)
    prints = {} if search is None else allocation.fingerprints(source.model)
    store = open_store(output, _job(source, recipe, how, seed) | told(given), resume)
    with resumable(lambda: _way_on(store)), _named_writes():
        calls = None if given is None else given.calls
        quantize(
            target, recipe, calls=calls, calibration=how, seed=seed, storage=storage, store=store, progress=progress
        )
        is_file = Path(model).is_file()
        api.save(source.model if source.pipeline is None or is_file else target, output, storage=storage)
        if search is not None:
            write_json(output / allocation.FILE, allocation.found(source.model, search, prints))
    store.remove()
    saved = _opened_folder(output)
    rows = describe(source.model, source.adapter)
    return {
        "kind": "quantize",
        "model": source.name,
        "recipe": recipes.recipe_to(recipe),
        "size": size_on_disk(source.model, saved, source.weight_bytes),
        "notes": _notes(source),
        **summary(rows),
        "resumed_layers": store.reused,
        "seed": seed,
        "versions": versions(),
    }


def _say_what_follows(recipe: Recipe) -> None:
    """Which stages go on from the plan that was shown."""
    for stage in stages_of(recipe):
        if stage.tag in SEARCHES:
            out.print(f"'{stage.tag}' searches a group size for each layer: the plan shows what it starts from")
        if isinstance(stage, Mixed | Program) and (stage.weight, stage.act) != (None, None):
            out.print(
                f"'{stage.tag}' gives each layer its widths after drawing pictures: the plan shows what it starts from"
            )


def _job(source: Source, recipe: Recipe, how: Calibration, seed: int) -> dict[str, Any]:
    """What must be the same for a run to go on where another stopped."""
    stats = [(file.name, file.stat()) for file in source.weight_files]
    return {
        "model": source.name,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "recipe": recipes.recipe_to(recipe),
        "seed": seed,
        "calibration": vars(how) | {"prompts": list(how.prompts)},
        "dither": __version__,
    }


@contextmanager
def _named_writes() -> Iterator[None]:
    """A full disk, told as what could not be written."""
    try:
        yield
    except OSError as e:
        where = f"cannot write '{e.filename}'" if e.filename else "cannot write"
        raise DitherError(f"{where}: {e.strerror or e}") from e


def _way_on(store: FolderStore) -> str:
    """What of a run that ended early is kept; a store without a layer or a measurement is removed."""
    if told := store.told():
        return f"; kept: {told}; --resume goes on from there"
    store.remove()
    return ""


def _opened_folder(folder: Path) -> list[Path]:
    """Weight files of a saved checkpoint."""
    inside = next((folder / c for c in ("transformer", "unet") if (folder / c).is_dir()), folder)
    return sorted(inside.glob("*.safetensors"))


def sample_to(
    model: str,
    output: Path,
    npz: Path | None,
    n: int,
    steps: int,
    guidance: float,
    seed: int,
    labels: Sequence[int | str],
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    """Draw a grid, and perhaps an npz. Returns what was drawn as JSON."""
    if n < 1:
        raise DitherError(f"-n {n}: must be at least 1")
    source = open_source(model)
    if source.pipeline is None:
        raise DitherError(f"'{source.name}' has no pipeline to sample with, only a network")
    sampler = sampler_for(source.pipeline, steps, guidance, batch_size, lambda i, total: progress("sampling", i, total))
    chosen, seeds = default_labels(source.pipeline, n, labels), sample_seeds(seed, n)
    images = sampler(chosen, seeds)  # (N, H, W, C)
    picture = io.BytesIO()
    grid(images, _columns(n)).save(picture, "png")
    write(output, picture.getvalue())
    if npz is not None:
        settings = {"scheduler": scheduler_settings(source), "steps": steps, "guidance": guidance}
        save_npz(npz, images, chosen, seeds, settings)
    return {"kind": "sample", "model": source.name, "n": n, "seed": seed, "steps": steps, "guidance": guidance,
            "labels": chosen, "seeds": seeds, "versions": versions()}  # fmt: skip


def _columns(n: int) -> int:
    """A grid about twice as wide as high, in tens where that fits."""
    return 10 if n % 10 == 0 and n <= 100 else max(1, round((2 * n) ** 0.5))


def inspect_model(model: str) -> dict[str, Any]:
    """Layers, formats, bits, sites and the rest as JSON."""
    source: Source = open_source(model)
    rows = describe(source.model, source.adapter)
    summed = summary(rows)
    found: dict[str, Any] = {
        "kind": "inspect",
        "model": source.name,
        "family": source.adapter.family,
        "parameters": sum(p.numel() for p in source.model.parameters()),
        "file_bytes": source.weight_bytes,
        **summed,
        "sites": [
            {"name": s.name, "readers": list(s.readers), "fold": "online" if s.fold is None else type(s.fold).__name__}
            for s in source.adapter.sites(source.model)
        ],
        "not_linear": stays(source.model),
        "versions": versions(),
    }
    if summed["layers"]["quantized"]:
        size = size_on_disk(source.model, source.weight_files, 0)
        found |= {key: size[key] for key in SIZES}
        found["notes"] = _notes(source)
        found["parameters"] = None  # of the original; a packed model no longer has them
    return found


def _notes(source: Source) -> Any:
    """What stages noted of layers, or None."""
    return (header_of(source.model).recipe or {}).get("notes")


def run_demo(output: Path, n: int, command: str, progress: Progress) -> dict[str, Any]:
    """The whole path on the bundled model."""
    checkpoint = output / "checkpoint"
    if checkpoint.exists():
        if not (checkpoint / "model_index.json").is_file():
            raise DitherError(f"'{checkpoint}' is not an earlier demo's checkpoint: choose another folder with -o")
        shutil.rmtree(checkpoint)
    recipe = recipes.get("rtn", "w8a8")
    partial = checkpoint.with_name("checkpoint.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a demo always starts anew
    quantize_to("zoo:fashion", checkpoint, recipe, Calibration(), 0, False, progress)
    results = evaluate(
        str(checkpoint),
        "zoo:fashion",
        n=n,
        batch_size=DEMO_BATCH,
        command=command,
        progress=progress,
    )
    write_json(output / "results.json", results)
    write(output / "report.html", render([results]).encode())
    return results
