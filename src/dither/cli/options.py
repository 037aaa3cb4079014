"""Options that several commands share, and what they mean."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from dither.errors import DitherError

__all__ = [
    "Batch",
    "CallsFile",
    "CallsKept",
    "Drawn",
    "GroupsFile",
    "Guidance",
    "Labels",
    "Model",
    "Prompts",
    "Seed",
    "Settings",
    "Steps",
    "ToJson",
    "check_no_drawing",
    "labels_of",
    "lines_of",
]

Model = Annotated[str, typer.Argument(help="zoo:NAME, a diffusers folder, a Hub id, or an original DiT checkpoint")]
Seed = Annotated[int, typer.Option(help="of everything random")]
Steps = Annotated[int, typer.Option(help="sampling steps")]
Guidance = Annotated[float, typer.Option(help="scale of classifier-free guidance; 1 is none")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="change the recipe: STAGE.FIELD=VALUE, or STAGE=off"),
]
Labels = Annotated[Optional[str], typer.Option("--classes", help="class numbers, separated by commas; all by default")]  # noqa: UP045
Prompts = Annotated[Optional[Path], typer.Option(help="text file with one prompt a line")]  # noqa: UP045
Drawn = Annotated[int, typer.Option(help="pictures drawn for calibration")]
CallsKept = Annotated[int, typer.Option(help="denoiser calls kept for calibration")]
CallsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="calibrate with these calls ('dither record', or x, t, y as .npz) instead of drawing"),
]
GroupsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--groups", help="use the group sizes in this groups.json, which a search wrote, instead of searching"
    ),
]
Batch = Annotated[int, typer.Option(help="pictures at a time")]
ToJson = Annotated[Optional[Path], typer.Option("--json", help="write the results here")]  # noqa: UP045


def check_no_drawing(context: typer.Context, calls_file: Path | None) -> None:
    """Refuse options that say how calibration pictures are drawn beside a file of calls: nothing is drawn then."""
    for name in ("samples", "steps", "guidance", "calls"):
        source = context.get_parameter_source(name)
        if calls_file is not None and source is not None and source.name != "DEFAULT":
            raise DitherError(f"give --calls-file or --{name}, not both: stored calls were drawn already")


def lines_of(path: Path | None) -> list[str]:
    """The prompts in a file, one a line; none without a file."""
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DitherError(f"'{path}' is not a text file in UTF-8") from None
    if not lines:
        raise DitherError(f"'{path}' holds no prompt")
    return lines


def labels_of(classes: str | None, prompts: Path | None) -> list[int | str]:
    """Class numbers or prompts to take turns, or nothing for all classes."""
    if classes is not None and prompts is not None:
        raise DitherError("give --classes or --prompts, not both")
    if classes is None:
        return list(lines_of(prompts))
    try:
        return [int(c) for c in classes.split(",")]
    except ValueError:
        raise DitherError(f"--classes '{classes}': write numbers separated by commas") from None
