"""``dither compare``, stores, shards and executors, as users run them."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

SHORT = "-n 6 --steps 2 --batch-size 2 --noise-floor 2 --trajectory 2 --no-speed"


def numbers(path):
    """What must not depend on where or how often it ran."""
    data = json.loads(path.read_text())
    for result in data.get("results", [data]):
        for key in ("seconds", "command", "commands", "executor", "threads"):
            result.pop(key)
    return {key: value for key, value in data.items() if key != "command"}


@pytest.fixture
def better(dither, model, tmp_path):
    assert (
        dither(f"quantize {model} -o {tmp_path / 'better'} --recipe smoothquant --samples 2 --steps 2").exit_code == 0
    )
    return tmp_path / "better"


def test_compare(dither, packed, better, model, tmp_path):
    result = dither(
        f"compare {packed} {better} --against {model} {SHORT} --json c.json --html c.html --csv c.csv --markdown c.md"
    )
    assert result.exit_code == 0, result.stderr
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["kind"], [r["checkpoint"] for r in data["results"]]) == ("compare", ["packed", "better"])
    assert all(1 <= best <= worst <= 2 for best, worst in data["ranks"]["psnr_db"])
    assert {(pair["a"], pair["b"]) for pair in data["pairs"]} == {(0, 1)}
    rows = csv.DictReader((tmp_path / "c.csv").read_text().splitlines())
    assert [row["checkpoint"] for row in rows] == ["packed", "better"]
    assert (tmp_path / "c.md").read_text().startswith("| recipe |")
    assert "smoothquant" in (tmp_path / "c.html").read_text()
    assert "smoothquant w8a8 (better)" in result.stdout
    assert dither("report c.json -o again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "c.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if "partial" in p.name) == []  # the batches were dropped


def test_a_gate_names_the_model_that_failed(dither, packed, better, model):
    result = dither(f"compare {packed} {better} --against {model} {SHORT} --fail-if 'psnr<1e9'")
    assert result.exit_code == 1
    assert "failed: packed: psnr_db.mean" in result.stdout
    assert "failed: better: psnr_db.mean" in result.stdout


def test_eval_takes_one_model(dither, refused, packed, model):
    refused(dither(f"eval {packed} {packed} --against {model} {SHORT}"), "dither compare")


def test_a_store_is_used_again_and_shared(dither, packed, better, model, tmp_path):
    first = dither(f"eval {packed} --against {model} {SHORT} --store shards --json a.json")
    assert first.exit_code == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.safetensors")}
    again = dither(f"eval {packed} --against {model} {SHORT} --store shards --json b.json")
    assert "stored already" in again.stderr
    assert numbers(tmp_path / "a.json") == numbers(tmp_path / "b.json")
    other = dither(f"eval {better} --against {model} {SHORT} --store shards --json c.json")
    assert other.exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.safetensors")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 4  # its three batches and its trajectory; full precision is not drawn again


def test_damaged_batches_are_drawn_again_and_said(dither, packed, model, tmp_path):
    assert dither(f"eval {packed} --against {model} {SHORT} --store shards --json a.json").exit_code == 0
    first, second, *_ = sorted((tmp_path / "shards").rglob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(bytes(data))
    second.write_bytes(second.read_bytes()[:50])
    again = dither(f"eval {packed} --against {model} {SHORT} --store shards --json b.json")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("damaged, computed again") == 2
    assert first.name in again.stderr
    assert numbers(tmp_path / "a.json") == numbers(tmp_path / "b.json")


def test_shards_of_the_work_add_up(dither, refused, packed, model, tmp_path):
    assert dither(f"eval {packed} --against {model} {SHORT} --json whole.json").exit_code == 0
    told = [dither(f"eval {packed} --against {model} {SHORT} --store s --shard {i}/2").stdout for i in (0, 1)]
    assert "shard 0/2" in told[0]
    assert not told[0].endswith(" 0 left to other shards\n")
    assert told[1].endswith(" 0 left to other shards\n")
    last = dither(f"eval {packed} --against {model} {SHORT} --store s --json parts.json")
    assert "11 of 11 are stored already" in last.stderr
    assert numbers(tmp_path / "whole.json") == numbers(tmp_path / "parts.json")
    refused(dither(f"eval {packed} --against {model} {SHORT} --store s --shard 2/2"), "--shard '2/2'", "0/4")
    refused(dither(f"eval {packed} --against {model} {SHORT} --shard 0/2"), "--store")


def test_processes_give_the_same_results(dither, packed, model, tmp_path):
    assert dither(f"eval {packed} --against {model} {SHORT} --json here.json --threads 1").exit_code == 0
    words = f"eval {packed} --against {model} {SHORT} --json there.json --executor processes --workers 2 --threads 1"
    result = dither(words)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "there.json").read_text())["executor"] == "Processes"
    assert numbers(tmp_path / "here.json") == numbers(tmp_path / "there.json")


def test_ray_gives_the_same_results(dither, packed, model, tmp_path):
    """In a process of its own: Ray must not stay in the one of the tests."""
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    assert dither(f"eval {packed} --against {model} {SHORT} --json here.json --threads 1").exit_code == 0
    words = f"eval {packed} --against {model} {SHORT} --json there.json --executor ray --workers 1 --threads 1"
    code = f"import sys; from dither.cli import main; sys.argv = {['dither', *shlex.split(words)]}; main()"
    alone = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64, "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "there.json").read_text())["executor"] == "RayActors"
    assert numbers(tmp_path / "here.json") == numbers(tmp_path / "there.json")


@pytest.mark.parametrize("words", ["--workers 0 --executor processes", "--threads 0", "--ray-address x"])
def test_executors_that_make_no_sense(dither, refused, packed, model, words):
    refused(dither(f"eval {packed} --against {model} {SHORT} {words}"), words.split()[0])


def test_progress_as_lines_of_json(dither, packed, model):
    result = dither(f"eval {packed} --against {model} {SHORT} --progress json")
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert {line["event"] for line in lines} == {"progress"}
    drawn = [line for line in lines if line["what"] == "drawing batches"]
    assert [line["done"] for line in drawn] == list(range(1, 12))
    assert {line["total"] for line in drawn} == {11}


def test_samples_in_files(dither, packed, model, tmp_path):
    for name, folder in (("small", packed), ("full", model)):
        assert dither(f"sample {folder} -o {name}.png --npz {name}.npz -n 6 --steps 2").exit_code == 0
    assert dither(f"eval {packed} --against {model} {SHORT} --json models.json").exit_code == 0
    result = dither("eval small.npz --against full.npz --json files.json --html files.html --fail-if psnr<1")
    assert result.exit_code == 0, result.stderr
    files, models = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("files", "models"))
    assert files["seeds"] == models["seeds"]
    assert files["psnr_db"]["mean"] > 20


@pytest.mark.parametrize(
    "words", ["--features nothing", "--features inception", "--metric nothing", "--reference no.npz"]
)
def test_what_cannot_be_measured_is_said_before_any_work(dither, refused, packed, model, words, monkeypatch):
    monkeypatch.setattr("dither.measure.comparison.run", lambda *a, **k: pytest.fail("it drew first"))
    refused(dither(f"eval {packed} --against {model} {SHORT} {words}"))


def test_other_schedulers_are_refused(dither, refused, packed, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    file = other / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.5}))
    refused(dither(f"eval {packed} --against {other} {SHORT}"), "schedulers", "beta_end")


def test_the_results_tell_how_to_make_the_checkpoint_again(dither, better, model, tmp_path, stored):
    assert dither(f"eval {better} --against {model} {SHORT} --json e.json").exit_code == 0
    data = json.loads((tmp_path / "e.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps(data["recipe"]))
    command = data["commands"]["quantize"].replace(f" {model.name} ", f" {model} ").replace("-o better", "-o again")
    result = dither(command.removeprefix("dither "))
    assert result.exit_code == 0, result.stderr
    assert stored(tmp_path / "again") == stored(better)
