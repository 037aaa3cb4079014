"""What each command writes and prints when all is well."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import tiny
from PIL import Image

from dither import __version__, recipes
from dither.cli.console import write, write_json
from dither.errors import DitherError

PROMISED = [
    "psnr_db.mean", "psnr_db.ci95", "fd.to_full_precision", "fd.to_real", "fd.full_precision_to_real", "size.file_bytes",
    "size.full_precision_bytes", "size.bits_per_weight", "layers.quantized", "layers.total", "layers.simulated", "kernels",
    "n", "seed", "device", "versions",
]  # fmt: skip


def look(value, path):
    for key in path.split("."):
        value = value[key]
    return value


def test_entry_point():
    found = entry_points(group="console_scripts", name="dither")
    assert {e.value for e in found} == {"dither.cli:main"}
    code = "import sys; from dither.cli import main; sys.argv = ['dither', 'recipes']; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert all(name in run.stdout for name in recipes.names())


def test_help_names_every_command(dither):
    text = dither("--help").stdout
    for command in ("quantize", "record", "sample", "eval", "inspect", "report", "recipes", "demo"):
        assert command in text
        assert dither(f"{command} --help").exit_code == 0
    assert dither("--version").stdout == f"dither {__version__}\n"


def test_quantize(dither, model, tmp_path):
    result = dither(
        f"quantize {model} -o a/b/out --recipe smoothquant --bits w4a8 --set smooth.alpha=0.6 --set assign.weight.group=8"
        " --seed 5 --samples 2 --steps 2 --json q.json"
    )
    assert result.exit_code == 0, result.stderr
    table = result.stdout.partition("\n\n")[2].partition(" in full precision")[0].splitlines()[:-1]
    assert len(table) == 8  # kinds of layers, and a head
    assert all(len(line) <= 80 for line in table)
    for word in ("int4 group 8", "int8 per token", "in full precision: ", "peak memory", "bits per weight"):
        assert word in result.stdout
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["out"]
    data = json.loads((tmp_path / "q.json").read_text())
    assert (data["kind"], data["seed"], data["recipe"]["bits"]) == ("quantize", 5, "w4a8")
    assert data["layers"]["quantized"] == 14
    files = (tmp_path / "a/b/out/transformer").glob("*.safetensors")
    assert data["size"]["file_bytes"] == sum(f.stat().st_size for f in files)


def test_float8(dither, model, tmp_path):
    """Stored as it says, simulated where the CPU multiplies no float8, and loaded to the same bits."""
    result = dither(f"quantize {model} -o out --recipe smoothquant --bits fp8 --samples 2 --steps 2 --json q.json")
    assert result.exit_code == 0, result.stderr
    assert "float8 per row" in result.stdout
    assert "simulated: " in result.stdout
    data = json.loads((tmp_path / "q.json").read_text())
    assert data["recipe"]["bits"] == "fp8"
    assert data["layers"]["simulated"] == 12
    shown = json.loads(dither("inspect out --json").stdout)
    rows = [r for r in shown["layers"]["rows"] if r["weight"] == "float8 per row"]
    assert len(rows) == 12
    assert {(r["act"], r["kernel"], r["simulated"]) for r in rows} == {("float8 per token dynamic", "reference", True)}
    for row in rows:
        _, k = row["shape"]
        assert row["bits_per_weight"] == pytest.approx(8 + (32 + 32) / k)  # codes, scale, bias
    result = dither(f"eval out --against {model} -n 4 --steps 2 --json e.json")
    assert result.exit_code == 0, result.stderr


def test_recipe_file_is_the_recipe_that_was_printed(dither, model, tmp_path, stored):
    (tmp_path / "r.json").write_text(dither("recipes smoothquant --bits w4a8").stdout)
    short = "--samples 2 --steps 2"
    assert dither(f"quantize {model} -o a --recipe-file r.json {short}").exit_code == 0
    assert dither(f"quantize {model} -o b --recipe smoothquant --bits w4a8 {short}").exit_code == 0
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_sample(dither, model, packed, tmp_path):
    result = dither(f"sample {packed} -o new/g.png --npz o.npz -n 6 --steps 2 --seed 1 --classes 3,4 --json s.json")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "new/g.png") as picture:
        assert picture.format == "PNG"
    pictures = np.load(tmp_path / "o.npz")
    assert pictures["arr_0"].shape == (6, 8, 8, 1)
    assert pictures["arr_1"].tolist() == [3, 4, 3, 4, 3, 4]
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["seeds"] == pictures["seeds"].tolist()
    smaller = dither(f"sample {packed} -o g.png --npz again.npz -n 6 --steps 2 --seed 1 --classes 3,4 --batch-size 4")
    assert smaller.exit_code == 0
    again = np.load(tmp_path / "again.npz")["arr_0"]
    # torch's sums of embeddings differ in the last place with the batch, and a code next to a tie with them
    off = np.abs(again.astype(int) - pictures["arr_0"])
    assert off.mean() < 0.5


def test_transformer_folder_is_a_model_too(dither, model, tmp_path):
    assert dither(f"quantize {model / 'transformer'} -o out").exit_code == 0
    result = dither(f"eval out --against {model} -n 2 --steps 2")
    assert result.exit_code == 0, result.stderr


def test_eval(dither, packed, model, tmp_path):
    result = dither(f"eval {packed} --against {model} -n 4 --steps 2 --json e.json --html e.html --fail-if psnr<1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1  # the verdict
    for word in ("x smaller", "bits per weight", "PSNR", "95%", "n=4", "14/20 layers", f"{tiny.INTEGER} x12"):
        assert word in result.stdout
    data = json.loads((tmp_path / "e.json").read_text())
    for path in PROMISED:
        look(data, path)
    assert (data["n"], data["seed"]) == (4, 0)
    assert data["command"].split()[0] == "dither"  # what follows is the test runner's own line
    page = (tmp_path / "e.html").read_text()
    assert dither("report e.json -o again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text() == page


def test_failed_condition(dither, packed, model, tmp_path):
    result = dither(
        f"eval {packed} --against {model} -n 2 --steps 1 --json e.json --fail-if 'psnr<1e9' --fail-if 'n>=2'"
    )
    assert result.exit_code == 1
    said = result.stdout.splitlines()[1:]
    assert len(said) == 2
    assert said[0].startswith("failed: psnr_db.mean is ")
    assert said[1].startswith("failed: n is 2, so ")
    assert json.loads((tmp_path / "e.json").read_text())["n"] == 2


@pytest.mark.parametrize("kind", ["model", "packed"])
def test_inspect(dither, request, kind):
    folder = request.getfixturevalue(kind)
    result = dither(f"inspect {folder} --json")
    data = json.loads(result.stdout)
    assert data["layers"]["total"] == 20
    assert data["layers"]["quantized"] == (14 if kind == "packed" else 0)
    assert ("bits_per_weight" in data) == (kind == "packed")
    assert {s["fold"] for s in data["sites"]} == {"AdaLN", "Rows", "online"}
    assert result.stderr == ""
    table = dither(f"inspect {folder}").stdout
    for word in (folder.name, "adaln", "Conv2d", "folds", "timestep embedder"):
        assert word in table


def test_recipes(dither):
    table = dither("recipes").stdout
    everything = json.loads(dither("recipes --json").stdout)
    assert [r["name"] for r in everything] == list(recipes.names())
    for name in recipes.names():
        assert name in table
        assert recipes.recipe_from(json.loads(dither(f"recipes {name}").stdout)) == recipes.get(name)


def test_report_of_several(dither, packed, model, tmp_path):
    for seed in (0, 1):
        assert dither(f"eval {packed} --against {model} -n 2 --steps 1 --seed {seed} --json {seed}.json").exit_code == 0
    assert dither("report 0.json 1.json -o page.html").exit_code == 0
    assert "2 results" in (tmp_path / "page.html").read_text()


def test_demo_replaces_only_a_demo(dither, refused, tmp_path):
    (tmp_path / "demo/checkpoint").mkdir(parents=True)
    (tmp_path / "demo/checkpoint/mine").write_text("keep me")
    refused(dither("demo"), "demo/checkpoint")
    assert (tmp_path / "demo/checkpoint/mine").read_text() == "keep me"


def test_files_appear_whole(tmp_path, monkeypatch):
    target = tmp_path / "new/file.json"
    write_json(target, {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1}
    with pytest.raises(DitherError, match=r"file\.json"):
        write_json(target, {"a": float("nan")})
    monkeypatch.setattr("os.replace", lambda *a: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        write(target, b"half")
    assert json.loads(target.read_text()) == {"a": 1}
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]
