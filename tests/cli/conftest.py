"""The command line as users run it, on tiny models in folders of their own."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
from click.testing import Result
from typer.testing import CliRunner

from dither.cli import app

Dither = Callable[..., Result]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def dither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dither:
    """Runs ``dither WORDS``, in an empty folder; paths are taken as they are, text is split like in a shell."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *more: object) -> Result:
        return CliRunner().invoke(app, [*shlex.split(text), *map(str, more)])

    return run


@pytest.fixture(scope="session")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    jobs.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _packed(_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "packed"
    result = CliRunner().invoke(app, ["quantize", str(_model), "-o", str(folder)])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def model(_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a tiny pipeline folder, free to be damaged."""
    return Path(shutil.copytree(_model, tmp_path_factory.mktemp("copy") / "tiny"))


@pytest.fixture
def packed(_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its w8a8 checkpoint, free to be damaged."""
    return Path(shutil.copytree(_packed, tmp_path_factory.mktemp("copy") / "packed"))


@pytest.fixture
def stored() -> Callable[[Path], tuple[object, bytes, str]]:
    """A checkpoint's header, data and config; safetensors writes metadata in any order, and nothing else is free."""

    def read(folder: Path) -> tuple[object, bytes, str]:
        data = (folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:end]), data[end:], (folder / "transformer/config.json").read_text()

    return read


@pytest.fixture
def refused() -> Callable[..., str]:
    """Checks that a run ended as bad input must: exit code 2, one sentence, no traceback. Returns the sentence."""

    def check(result: Result, *names: object) -> str:
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        lines = [line for line in result.stderr.splitlines() if not re.fullmatch(r".+: (\d+) of \1", line)]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert "Traceback" not in result.output
        for name in names:
            assert str(name) in lines[0]
        return lines[0]

    return check
