"""The commands and their options."""

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dither._version import __version__
from dither.cli import show
from dither.cli.calls import ABOUT_RECORD, record
from dither.cli.console import check_target, command_line, errors, note, out, progress_bars, write_json
from dither.cli.evaluate import ABOUT, judge
from dither.cli.options import (
    Batch,
    CallsFile,
    CallsKept,
    Drawn,
    GroupsFile,
    Guidance,
    Labels,
    Model,
    Prompts,
    Seed,
    Settings,
    Steps,
    ToJson,
    check_no_drawing,
    labels_of,
    lines_of,
)
from dither.errors import BadRecipe, DitherError

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize diffusion transformers after training, and prove that their pictures stayed the same.",
)


def _version(value: bool) -> None:
    if value:
        out.print(f"dither {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Options of the program itself."""


@app.command()
def quantize(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write; must not exist, or be empty")],
    recipe: Annotated[str, typer.Option(help="name of a recipe; see 'dither recipes'")] = "rtn",
    bits: Annotated[Optional[str], typer.Option(help="such as w8a8, w4a8 or fp8")] = None,  # noqa: UP045
    settings: Settings = None,
    recipe_file: Annotated[Optional[Path], typer.Option(help="a recipe as JSON, in place of a name")] = None,  # noqa: UP045
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    samples: Drawn = 16,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    calls: CallsKept = 64,
    prompts: Prompts = None,
    calls_file: CallsFile = None,
    groups_file: GroupsFile = None,
    json_file: ToJson = None,
) -> None:
    """Quantize a model and save it packed; prints the plan first."""
    with errors():
        from dither.cli.work import quantize_to
        from dither.quantization import Calibration, resolve_recipe
        from dither.recipes import recipe_from

        if recipe_file is None:
            found = resolve_recipe(recipe, bits, settings or ())
        else:
            if bits is not None:
                raise BadRecipe("--bits belongs to a named recipe; a recipe file has its own")
            found = resolve_recipe(recipe_from(_read_json(recipe_file)), None, settings or ())
        check_no_drawing(context, calls_file)
        check_target("--json", json_file)
        how = Calibration(samples, steps, guidance, calls, tuple(lines_of(prompts)))
        with progress_bars() as progress:
            result = quantize_to(model, output, found, how, seed, resume, progress, calls_file, groups_file)
        out.print(show.saved(output, result["size"]))
        if json_file is not None:
            write_json(json_file, {**result, "command": command_line()})


@app.command()
def sample(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="picture of the grid, .png")],
    npz: Annotated[Optional[Path], typer.Option(help="also write pictures and labels here")] = None,  # noqa: UP045
    n: Annotated[int, typer.Option("-n", help="how many pictures")] = 64,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    seed: Seed = 0,
    classes: Labels = None,
    prompts: Prompts = None,
    batch_size: Batch = 64,
    json_file: ToJson = None,
) -> None:
    """Draw pictures with a model, quantized or not. The same seed gives the same noise in every precision."""
    with errors():
        from dither.cli.work import sample_to

        labels = labels_of(classes, prompts)
        check_target("-o", output, ".png")
        check_target("--npz", npz, ".npz")
        check_target("--json", json_file)
        with progress_bars() as progress:
            result = sample_to(model, output, npz, n, steps, guidance, seed, labels, batch_size, progress)
        out.print(f"{n} pictures in {output}" + (f" and {npz}" if npz else ""))
        if json_file is not None:
            write_json(json_file, {**result, "command": command_line()})


for _name, _about in ABOUT.items():
    app.command(_name, help=_about)(judge)


app.command(help=ABOUT_RECORD)(record)


@app.command()
def inspect(model: Model, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Show what is in a model: layers, formats, true bits, sites, what stays in full precision and why."""
    with errors():
        from dither.cli.work import inspect_model

        found = inspect_model(model)
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            out.print(show.inspection(found))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="results that 'dither eval --json' wrote")],
    output: Annotated[Path, typer.Option("-o", "--output", help="page to write, .html")],
) -> None:
    """Make one self-contained page of one or several results."""
    with errors():
        from dither.report import write

        write(files, output)
        out.print(f"report in {output}")


@app.command("recipes")
def list_recipes(
    name: Annotated[Optional[str], typer.Argument(help="print this recipe as JSON")] = None,  # noqa: UP045
    bits: Annotated[Optional[str], typer.Option(help="such as w4a8 or fp8")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the recipes, or print one with its paper and its switches."""
    with errors():
        from dither import recipes

        if name is not None:
            found = recipes.get(name, bits)
            note(f"{name}: {recipes.RECIPES[name].about}")  # on standard error: what is printed can be a recipe file
            print(json.dumps(recipes.recipe_to(found), indent=1))
        elif as_json:
            print(json.dumps([recipes.recipe_to(recipes.get(n)) for n in recipes.names()], indent=1))
        else:
            out.print(show.recipe_table(list(recipes.RECIPES.values())))


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="folder to write; an older demo there is replaced")
    ] = Path("demo"),
    n: Annotated[int, typer.Option("-n", help="pictures from each model")] = 128,
) -> None:
    """Quantize the bundled zoo:fashion, reload it, compare it with the original, and make a report."""
    with errors():
        from dither.cli.work import run_demo

        with progress_bars() as progress:
            results = run_demo(output, n, command_line(), progress)
        for what, name in (("report", "report.html"), ("results", "results.json"), ("checkpoint", "checkpoint")):
            out.print(f"{what:<10}  {output / name}")
        out.print(show.verdict(results))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise DitherError(f"'{path}' is not JSON: {e}") from None
