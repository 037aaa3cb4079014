"""The page in a real browser: it uses its own controls (`#selftest`) and writes down what happened."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dither.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]


def open_page(tmp_path, page, *, width=1200):
    """Open the page with its self test; return what it found, and what the browser's console said."""
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{path.as_uri()}#selftest"], capture_output=True, text=True, timeout=120, check=True
    )
    written = re.search(r'<html[^>]*data-selftest="([^"]*)"', done.stdout)
    assert written, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(written[1])), console


def test_controls_work(tmp_path, result, other_result):
    found, console = open_page(tmp_path, render([result, other_result]))
    assert console == []
    assert found["images"] is True
    assert found["pixelated"] == "pixelated"
    assert found["slide"] == "inset(0px 80% 0px 0px)"
    assert found["toggle"] == "hidden"
    assert found["difference"] == "difference"
    assert "one of the worst" in found["thumb"]
    psnr = sorted([result["psnr_db"]["mean"], other_result["psnr_db"]["mean"], 59.6, 11.4])
    known = [float(value) for value in found["ascending"] if value is not None]
    assert known == pytest.approx(psnr)
    assert [float(value) for value in found["descending"] if value is not None] == pytest.approx(psnr[::-1])
    assert found["ascending"][-1] is None
    assert found["descending"][-1] is None
    snr = result["layer_snr"]
    assert found["tip"] == f"{snr['layers'][0]}timestep 0: {snr['db'][0][-1]:.1f} dB"
    assert found["key"] == f"{snr['layers'][1]}timestep {snr['timesteps'][-2]:.0f}: {snr['db'][1][-2]:.1f} dB"
    assert found["hidden"] is True
    assert found["theme"] is True
    assert found["tab"] == [False, True]


@pytest.mark.parametrize("width", [400, 1200])
def test_page_never_scrolls_sideways(tmp_path, result, width):
    found, console = open_page(tmp_path, render([result]), width=width)
    assert console == []
    assert found["overflow"] == 0


def test_partial_and_hostile_results_run_clean(tmp_path, result):
    hostile = "</script><script>document.documentElement.dataset.hacked=1</script><img src=x onerror=alert(1)>"
    result["model"] = result["recipe"]["name"] = result["images"][0]["label"] = hostile
    result["layer_snr"]["layers"][0] = hostile
    found, console = open_page(tmp_path, render([result]))
    assert console == []
    assert found["tip"].startswith(hostile)
    del result["layer_snr"], result["drift"]
    found, console = open_page(tmp_path, render([result]))
    assert console == []
    assert "tip" not in found
