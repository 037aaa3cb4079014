"""``dither record``: calibration calls as a file; and what ``quantize`` reads of one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dither.cli.console import check_target, errors, out
from dither.cli.options import CallsKept, Drawn, Guidance, Model, Prompts, Seed, Steps, lines_of
from dither.errors import DitherError

if TYPE_CHECKING:  # imported where it is used, so that --help does not wait for torch
    from dither.quantization import Calibration
    from dither.recorded import CallFile

__all__ = ["ABOUT_RECORD", "beside", "record", "told"]

ABOUT_RECORD = "Draw calibration pictures with a model and keep its denoiser calls, for 'dither quantize --calls-file'."


def record(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write, .safetensors")],
    seed: Seed = 0,
    samples: Drawn = 16,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    calls: CallsKept = 64,
    prompts: Prompts = None,
) -> None:
    """Record what ``quantize`` would record with the same options."""
    with errors():
        from dither.quantization import Calibration, record_calls
        from dither.recorded import save_calls
        from dither.sources import open_source

        check_target("-o", output, ".safetensors")
        how = Calibration(samples, steps, guidance, calls, tuple(lines_of(prompts)))
        source = open_source(model)
        if source.pipeline is None:
            raise DitherError(f"'{source.name}' has no pipeline to sample with, only a network")
        found = record_calls(source.pipeline, calibration=how, seed=seed)
        save_calls(output, found, source.model, {**vars(how), "prompts": list(how.prompts), "seed": seed})
        out.print(f"{len(found)} denoiser calls in {output}")


def beside(how: "Calibration", given: "CallFile") -> "Calibration":
    """For pictures that a recipe draws besides: their prompts, and noise that those of the file do not share."""
    made = given.made or {}
    return replace(how, samples=made.get("samples", how.samples), prompts=how.prompts or tuple(made.get("prompts", ())))


def told(given: "CallFile | None") -> dict[str, Any]:
    """What of stored calls must be the same for a run to go on where another stopped."""
    from dither.recorded import digest_of

    return {"calls": None if given is None else digest_of(given.calls)}
