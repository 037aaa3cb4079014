"""What the documents say is true: links resolve, commands parse, examples run, and tables stand between their markers."""

import json
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer

from dither.cli import app
from dither.cli.show import verdict
from dither.evaluation import parse_condition
from dither.evaluation.image import png_data_uri
from dither.recipes import get, override
from dither.stages import STAGES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("training/*.md")])
GUIDES = (
    "quickstart",
    "my-checkpoint",
    "new-stage",
    "new-family",
    "format",
    "evaluation",
    "results",
    "kernels",
    "gpu",
    "cpu",
    "vidit-q",
    "q-dit",
    "design",
)
COMMANDS = typer.main.get_command(app)


def of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, info: str) -> list[str]:
    """Contents of the fenced blocks with this info string."""
    return re.findall(rf"^```{info}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of headings as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def command_lines() -> list[tuple[str, str]]:
    """Every line of a fenced block that calls dither, with continuation lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, "(?:|bash|console)"):
            joined = block.replace("\\\n", " ")
            found += [(of(page), line) for line in joined.splitlines() if line.startswith("dither ")]
    return found


def test_every_guide_is_there_and_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in GUIDES:
        assert (ROOT / f"docs/{name}.md").is_file()
        assert f"docs/{name}.md" in readme


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_relative_links_resolve(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{of(page)} links to {target}"


def test_there_are_commands_to_check():
    named = {line.split()[1] for _, line in command_lines()}
    assert set(COMMANDS.commands) <= named


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page, line):
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command = COMMANDS.commands[words[0]]
    context = command.make_context(words[0], words[1:], resilient_parsing=False)  # raises on unknown options
    for condition in context.params.get("fail_if") or ():
        parse_condition(condition)
    if "recipe" in context.params and context.params["recipe_file"] is None:
        recipe = get(context.params["recipe"], context.params["bits"])
        override(recipe, context.params["settings"] or ())


def test_a_command_that_does_not_parse_is_noticed():
    with pytest.raises(Exception, match="--bots"):
        COMMANDS.commands["quantize"].make_context("quantize", ["zoo:digits", "-o", "x", "--bots", "w4a8"])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python runnable")], ids=of)
def test_examples_run(page, tmp_path, monkeypatch):
    """The runnable blocks of one page, one after the other, as one module in an empty folder."""
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    monkeypatch.setattr("dither.stages.STAGES", dict(STAGES))
    monkeypatch.chdir(tmp_path)
    for i, block in enumerate(blocks(page, "python runnable")):
        exec(compile(block, f"{of(page)}, block {i + 1}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python(?: runnable)?"):
        compile(block, of(page), "exec")


@pytest.mark.parametrize("table", ["quality", "speed", "xl"])
def test_tables_have_their_markers(table):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(f"<!-- table:{table} -->") == 1
    start = readme.index(f"<!-- table:{table} -->")
    assert "<!-- end -->" in readme[start:]


def test_the_readme_shows_the_line_that_the_demo_printed():
    """To the last digit, from the results that ``docs/images/refresh.py`` committed."""
    results = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- verdict -->\n```\n(.*)\n```\n<!-- end -->", readme)
    assert shown is not None
    assert shown[1] == verdict(results), "run docs/images/refresh.py"


def test_the_script_of_the_picture_shows_both_and_their_difference():
    refresh = runpy.run_path(str(ROOT / "docs/images/refresh.py"))
    full, quantized = np.full((8, 8, 1), 200, np.uint8), np.full((8, 8, 1), 205, np.uint8)
    pair = {"index": 0, "full_precision": png_data_uri(full), "quantized": png_data_uri(quantized)}
    image = np.asarray(refresh["strip"]({"images": [pair]}))
    step = (8 + refresh["GAP"]) * refresh["FACTOR"]
    assert [int(image[row * step, 0, 0]) for row in range(3)] == [200, 205, 255 - 10 * 5]


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_fences_are_closed(page):
    assert page.read_text(encoding="utf-8").count("```") % 2 == 0
