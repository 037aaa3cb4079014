import csv
import io

from dither.measure.export import COLUMNS, to_csv, to_markdown

RESULT = {
    "model": "m|x", "checkpoint": "a\nb", "recipe": {"name": "rtn"}, "bits": "w8a8", "n": 4,
    "psnr_db": {"mean": 40.123456789, "ci95": [39.0, 41.0]}, "ssim": {"mean": 0.99, "ci95": [0.98, 1.0]},
    "fd": {"features": "zoo:x", "to_full_precision": 0.25, "to_full_precision_se": 0.01, "to_real": None},
    "noise_floor": {"psnr_db": 60.0}, "size": {"file_bytes": 1_500_000, "full_precision_bytes": 3e6, "bits_per_weight": 8.2},
}  # fmt: skip


def test_csv_has_every_number_in_full():
    head, row = csv.reader(io.StringIO(to_csv([RESULT])))
    found = dict(zip(head, row, strict=True))
    assert head == list(COLUMNS)
    assert float(found["psnr_db"]) == 40.123456789
    assert (found["psnr_db_low"], found["psnr_db_high"]) == ("39.0", "41.0")
    assert found["fd_to_real"] == found["lpips"] == ""
    assert found["checkpoint"] == "a\nb"


def test_markdown_shows_full_precision_first_and_keeps_its_cells():
    lines = to_markdown([RESULT, {**RESULT, "recipe": {"name": "evil | recipe"}}]).splitlines()
    assert lines[2].startswith("| full precision |")
    assert "60.00" in lines[3]
    assert "40.12 (39.00 to 41.00)" in lines[4]
    assert "0.2500 ± 0.01" in lines[4]
    assert r"evil \| recipe" in lines[5]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {9}
