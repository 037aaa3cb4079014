"""Ctrl-C, a full disk and other early ends of ``quantize``: nothing half-written, and ``--resume`` goes on."""

import errno
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from dither.store import FolderStore

RUN = [sys.executable, "-c", "from dither.cli import main; main()"]


@pytest.fixture
def interrupt(monkeypatch):
    """Real SIGINTs, when the run has stored so many layers."""
    plain = FolderStore.put

    def after(layers):
        count = 0

        def put(self, name, tensors):
            nonlocal count
            plain(self, name, tensors)
            count += 1
            if count == layers:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(FolderStore, "put", put)

    return after


@pytest.mark.parametrize(
    "recipe", ["rtn", "smoothquant --bits w4a8 --set assign.act.static=true --samples 4 --steps 4"]
)
def test_resumed_is_the_same_to_the_bit(dither, refused, model, tmp_path, interrupt, stored, recipe):
    command = f"quantize {model} --seed 3 --recipe {recipe} -o"
    assert dither(f"{command} whole").exit_code == 0
    interrupt(3)
    refused(dither(f"{command} out"), "interrupted", "3 finished layers", "--resume")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.partial", "whole"]
    refused(dither(f"{command} out"), "out.partial", "--resume")
    interrupt(4)
    refused(dither(f"{command} out --resume"), "7 finished layers")
    interrupt(0)
    result = dither(f"{command} out --resume --json out.json")
    assert result.exit_code == 0, result.stderr
    assert '"resumed_layers": 7' in (tmp_path / "out.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.json", "whole"]
    assert stored(tmp_path / "out") == stored(tmp_path / "whole")


@pytest.mark.parametrize("change", ["--seed 4", "--bits w4a8", "--set ranges.keep=0.5", "--samples 3"])
def test_another_job_does_not_resume(dither, refused, model, tmp_path, interrupt, change):
    interrupt(2)
    refused(dither(f"quantize {model} -o out"), "interrupted")
    refused(dither(f"quantize {model} -o out --resume {change}"), "out.partial", "another")


def test_changed_model_does_not_resume(dither, refused, model, packed, interrupt):
    interrupt(2)
    refused(dither(f"quantize {model} -o out"), "interrupted")
    file = model / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)  # file systems' clocks are coarse
    file.write_bytes(data)  # of the same size
    refused(dither(f"quantize {model} -o out --resume"), "out.partial")


def test_damaged_store(dither, refused, model, tmp_path, interrupt):
    interrupt(2)
    refused(dither(f"quantize {model} -o out"), "interrupted")
    kept = sorted((tmp_path / "out.partial").glob("*.safetensors"))
    kept[0].write_bytes(kept[0].read_bytes()[:20])
    refused(dither(f"quantize {model} -o out --resume"), kept[0].name)


def test_resume_without_a_run_starts_one(dither, model):
    assert dither(f"quantize {model} -o out --resume").exit_code == 0


def test_a_run_that_stored_nothing_blocks_nothing(dither, refused, model, tmp_path, monkeypatch):
    monkeypatch.setattr("dither.quantization.record", lambda *a, **k: signal.raise_signal(signal.SIGINT))
    sentence = refused(dither(f"quantize {model} -o out --recipe smoothquant"), "interrupted")
    assert "--resume" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback_and_blocks_nothing(dither, model, tmp_path, monkeypatch):
    monkeypatch.setattr("dither.cli.work.quantize", lambda *a, **k: 1 // 0)
    assert isinstance(dither(f"quantize {model} -o out").exception, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_sigint_from_outside(model, tmp_path):
    command = [
        *RUN,
        "quantize",
        str(model),
        "-o",
        "out",
        "--recipe",
        "smoothquant",
        "--samples",
        "64",
        "--steps",
        "900",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()  # the plan: the work begins
        while "full precision" not in line and "on disk" not in line:
            line = process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert (process.returncode, said) == (2, "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def largest_file(size):
    """No file of this process grows beyond ``size`` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_full_while_saving(dither, refused, model, tmp_path):
    with largest_file(30_000):
        sentence = refused(dither(f"quantize {model} -o out"), tmp_path / "out", "--resume")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.partial"]
    kept = int(re.search(r"(\d+) finished layers", sentence)[1])
    result = dither(f"quantize {model} -o out --resume")
    assert result.exit_code == 0, result.stderr
    assert kept == 14


@pytest.mark.parametrize("most", [500, 2_000])  # the job's own file, and the first layer's
def test_disk_full_at_the_start(dither, refused, model, tmp_path, most):
    with largest_file(most):
        refused(dither(f"quantize {model} -o out"), "out.partial")
    assert list(tmp_path.iterdir()) == []


def test_disk_full_says_so(dither, refused, model, tmp_path, monkeypatch):
    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dither.store.save_file", full)
    refused(dither(f"quantize {model} -o out"), "No space left on device", "out.partial")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    ["sample {m} -o out.png -n 10 --steps 1 --npz out.npz", "eval {p} --against {m} -n 2 --steps 1 --html out.html"],
)
def test_disk_full_for_pictures_and_pages(dither, refused, model, packed, tmp_path, command):
    with largest_file(500):
        refused(dither(command.format(m=model, p=packed)), "large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["sample {m} -o out.png -n 2 --steps 1", "eval {p} --against {m} -n 2 --json out.json"]
)
def test_ctrl_c_elsewhere(dither, refused, model, packed, tmp_path, monkeypatch, command):
    stop = "dither.sampling.PipelineSampler.__call__"
    monkeypatch.setattr(stop, lambda *a, **k: signal.raise_signal(signal.SIGINT))
    refused(dither(command.format(m=model, p=packed)), "interrupted")
    assert list(tmp_path.iterdir()) == []
