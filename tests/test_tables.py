"""The tables in the documents are those that the committed results make."""

import json

import pytest

from benchmarks import common, evaluation_tables, markdown, tables


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_are_what_the_results_say(path):
    assert not tables.update(path, check=True), "run: python -m benchmarks.tables"


def test_every_result_has_a_table_in_some_document():
    text = "\n".join(path.read_text(encoding="utf-8") for path in tables.documents())
    assert {name for _, name, _ in tables.MARKED.findall(text)} == set(tables.TABLES)


@pytest.mark.parametrize("path", sorted(common.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_is_told_with_its_command(path):
    readme = (tables.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"(results/{path.name})" in readme
    assert json.loads(path.read_text(encoding="utf-8"))["command"]


def row(recipe, low, high):
    psnr = {"mean": (low + high) / 2, "ci95": [low, high]}
    asked = {"model": "zoo:digits", "recipe": recipe, "bits": "w4a8", "switch": "", "settings": []}
    size = {"bits_per_weight": 4.3, "ratio": 2.5}
    fd = {"to_full_precision": 0.5, "to_full_precision_se": 0.1}
    return {**asked, "psnr_db": psnr, "fd": fd, "size": size}


def quality_of(*rows):
    return tables.quality({"n": 8, "steps": 5, "guidance": 1.5, "rows": rows}).splitlines()[2]


def test_only_what_can_be_told_apart_is_bold():
    assert "| **35.0 [34.0, 36.0]**, 0.5 ± 0.1 |" in quality_of(row("a", 34, 36), row("b", 30, 33))
    assert "**" not in quality_of(row("a", 34, 36), row("b", 30, 34.5))
    assert "**" not in quality_of(row("a", 34, 36), row("b", 31, 33), row("c", 33, 34.5))
    assert "**" not in quality_of(row("a", 34, 36))


def test_a_failed_row_stays_in_the_table_and_is_never_the_best():
    failed = {
        **{key: row("b", 0, 0)[key] for key in ("model", "recipe", "bits", "switch")},
        "failed": "BadValue: a | b",
    }
    line = quality_of(failed, row("a", 34, 36), row("c", 30, 31))
    assert "| failed: BadValue: a \\| b | **35.0" in line
    assert "| 4.30 | 2.50x |" in line
    assert quality_of(failed).startswith("| `zoo:digits` | W4A8 |  |  | failed")


def test_a_coverage_outside_its_aim_says_so_and_a_refusal_is_no_number(monkeypatch):
    cell = {"what": "mean PSNR", "case": "skewed", "coverage": 0.9, "low": 0.88, "high": 0.92, "right": False}
    rows = [cell | {"n": 16}, cell | {"n": 64, "coverage": 0.95, "right": True}]
    rows.append(cell | {"what": "FD", "n": 16, "coverage": None})
    monkeypatch.setattr(evaluation_tables, "result", lambda name: {"level": 0.95, "right": [0.92, 0.98], "rows": rows})
    lines = evaluation_tables.coverage().splitlines()
    assert lines[2] == "| mean PSNR | skewed | 90.0 % [88.0, 92.0] (outside) | 95.0 % [88.0, 92.0] |"
    assert lines[3] == "| FD | skewed | refused |  |"


def test_correlations_are_those_of_the_fewest_pictures(monkeypatch):
    def line(among, pictures, rho):
        asked = {"model": "digits", "among": among, "metric": "drift_final", "pictures": pictures, "cost": 0.0625}
        psnr, fd = ({"spearman": value, "ci95": [0.5, 1.0]} for value in (rho, rho / 2))
        return asked | {"models": 20, "psnr_db": psnr, "fd_to_full_precision": fd}

    lines = [line("all", 8, 0.9), line("all", 16, 0.7), line("w4a8", 8, 0.6)]
    data = {"correlations": lines, "n": 128, "interval": "95 %"}
    monkeypatch.setattr(evaluation_tables, "result", lambda name: data)
    made = evaluation_tables.trajectory().splitlines()
    assert made[0] == "| metric | cost | `zoo:digits`, all (20) | `zoo:digits`, w4a8 (20) |"
    assert made[2].startswith("| drift final | 6.2 % | 0.90 [0.50, 1.00]; 0.45 [0.50, 1.00] | 0.60 ")
    assert "on 8 pictures" in made[4]


def test_percentages_are_100_only_where_all_are_right():
    assert [markdown.percent(share) for share in (0, 0.5, 0.999, 1.0)] == ["0 %", "50 %", "99 %", "100 %"]


def test_a_stale_table_is_made_anew(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table:speed -->\n| old |\n<!-- end -->\nafter\n")
    assert tables.update(path, check=True)
    assert "| old |" in path.read_text()
    assert tables.update(path)
    assert "| old |" not in path.read_text()
    assert not tables.update(path)
    assert path.read_text().startswith("before\n<!-- table:speed -->\n| ")
    assert path.read_text().endswith("<!-- end -->\nafter\n")


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError, match="nonsense"):
        tables.filled("<!-- table:nonsense -->\n<!-- end -->\n")


def test_turns_alternate_and_ratios_are_within_rounds():
    order = []
    times = common.by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, at_least=0)
    assert order[2:] == ["a", "b", "b", "a"]
    assert {name: len(t) for name, t in times.items()} == {"a": 2, "b": 2}
    times = {"slow": [4.0, 40.0, 8.0], "fast": [2.0, 10.0, 4.0]}
    assert common.speedup(times, "fast", "slow") == {"median": 2.0, "q25": 2.0, "q75": 3.0}


def test_a_measured_command_runs_alone_and_its_failure_is_told():
    import subprocess
    import sys

    done = common.run([sys.executable, "-c", "b = bytearray(64_000_000); print(len(b))"], threads=1)
    assert done.output.strip() == "64000000"
    assert done.peak_bytes > 64_000_000
    assert done.seconds > 0
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        common.run([sys.executable, "-c", "raise SystemExit(3)"], threads=1)
