import sys

import pytest

from dither.errors import DitherError
from dither.extractors import MissingExtra, open_extractor, open_inception, open_lpips
from dither.extractors.extras import import_extra

TORCHVISION = "pip install torchvision --index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package ``halfway`` whose import fails as the given line says."""

    def write(line):
        (tmp_path / "halfway.py").write_text(line + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "halfway", raising=False)

    return write


def load():
    return import_extra("halfway", package="half-way", extra="fid", what="FID")


@pytest.mark.parametrize(
    ("module", "extra", "package", "opening"),
    [
        ("torch_fidelity", "fid", "torch-fidelity", lambda: open_extractor("inception")),
        ("torch_fidelity", "fid", "torch-fidelity", lambda: open_inception("weights.pth")),
        ("lpips", "lpips", "lpips", open_lpips),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch, module, extra, package, opening):
    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        opening()
    sentence = str(caught.value)
    assert f"needs {package}: pip install 'dither[{extra}]'" in sentence
    assert TORCHVISION in sentence
    assert isinstance(caught.value, DitherError)


def test_a_package_that_works_is_given(broken):
    broken("answer = 42")
    assert load().answer == 42


def test_torchvision_missing_below_a_package_is_named(broken):
    broken("import torchvision_that_is_not_there")
    with pytest.raises(MissingExtra, match=r"does not import \(torchvision_that_is_not_there is missing\)"):
        load()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
        (
            "raise OSError('libcudart.so.13: cannot open\\nshared object file')",
            r"OSError: libcudart.so.13: cannot open\)",
        ),
        ("raise AttributeError", "AttributeError: no message"),
        ("from os import nothing", "ImportError: cannot import name 'nothing'"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_a_package_that_breaks_while_importing_is_named_with_the_reason(broken, line, reason):
    broken(line)
    with pytest.raises(MissingExtra, match=reason) as caught:
        load()
    assert str(caught.value).startswith("FID needs half-way, which does not import (")
    assert "--index-url https://download.pytorch.org/whl/cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stop", ["raise KeyboardInterrupt", "raise SystemExit"])
def test_a_person_who_interrupts_is_not_told_of_extras(broken, stop):
    broken(stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        load()


def test_transformers_beside_a_broken_torchvision_is_named(monkeypatch, clip_folder):
    class Lazy:
        def __getattr__(self, name):
            try:
                raise RuntimeError("operator torchvision::nms does not exist\nand more")
            except RuntimeError as error:
                raise ModuleNotFoundError(f"Could not import module '{name}'") from error

    monkeypatch.setitem(sys.modules, "transformers", Lazy())
    with pytest.raises(MissingExtra) as caught:
        open_extractor(f"clip:{clip_folder}")
    assert "does not import (RuntimeError: operator torchvision::nms does not exist): uninstall" in str(caught.value)
