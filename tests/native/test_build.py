"""Native code comes to a machine, or the reason why it does not is said once and nothing breaks."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sanitized import COMPILER, needs_compiler

from dither.native import build, cache_folder, library


@pytest.fixture(autouse=True)
def afresh(monkeypatch, tmp_path):
    monkeypatch.setenv("DITHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DITHER_NATIVE", raising=False)
    library.cache_clear()
    yield
    library.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_it_is_built_once_and_then_found(monkeypatch, caplog):
    assert library("trellis").dither_viterbi is not None
    (made,) = cache_folder().iterdir()
    assert made.name.startswith("trellis-")
    library.cache_clear()
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    assert library("trellis") is not None
    assert not caplog.records


@needs_compiler
def test_another_source_flag_or_compiler_is_another_library(monkeypatch, tmp_path):
    source, plain = Path(build.__file__).parent / "trellis.cpp", build._compiler()
    other = tmp_path / "trellis.cpp"
    other.write_text(source.read_text() + "\n")
    flags = build._flags("")
    keys = {
        build._key(source, plain, flags),
        build._key(other, plain, flags),
        build._key(source, [*plain, "-g"], flags),
    }
    (tmp_path / "included.h").write_text("// changed")
    keys |= {build._key(other, plain, flags), build._key(source, plain, (*flags, "-O1"))}
    monkeypatch.setattr(build, "_cpu", lambda: "another")
    keys.add(build._key(source, plain, flags))
    assert len(keys) == 6


@needs_compiler
def test_two_processes_may_build_it_at_once():
    code = "from dither.native import library; assert library('trellis').dither_viterbi"
    both = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(cache_folder().iterdir())) == 1


def refused(caplog, says: str) -> None:
    with caplog.at_level(logging.WARNING, "dither"):
        assert library("trellis") is None
        assert library("trellis") is None
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_it_can_be_switched_off_without_a_word(value, monkeypatch, caplog):
    monkeypatch.setenv("DITHER_NATIVE", value)
    assert library("trellis") is None
    assert not caplog.records
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [("avx3", "DITHER_NATIVE is 'avx3', and may be off, avx2, avx512 or empty"), ("avx2", "this CPU has no avx2")],
)
def test_instructions_that_are_not_there(value, says, monkeypatch, caplog):
    monkeypatch.setattr(build, "_cpu", lambda: "flags : sse2")
    monkeypatch.setenv("DITHER_NATIVE", value)
    refused(caplog, says)


def test_a_compiler_that_is_not_there(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    refused(caplog, "CXX names 'no-such-compiler', which is not there")


def test_no_compiler_at_all(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(caplog, "there is no C++ compiler")


def test_a_compiler_that_fails(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", "echo 'no such option' >&2; echo more >&2; exit 3"))
    refused(caplog, "ended with 3: no such option")
    assert not list(cache_folder().iterdir())


def test_a_compiler_that_writes_rubbish(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", 'for last; do :; done; echo rubbish > "$last"'))
    refused(caplog, "trellis-")


def test_a_compiler_that_never_ends(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(build, "SLOWEST", 0.1)
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", "exec sleep 60"))
    refused(caplog, "does not run: ")


@needs_compiler
def test_a_cache_that_others_can_write_to_is_not_used(caplog):
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o777)
    refused(caplog, "can be written by others: set DITHER_CACHE")


@needs_compiler
def test_a_cache_that_cannot_be_made(caplog, tmp_path):
    (tmp_path / "cache").write_text("a file")
    refused(caplog, "cannot be made")


@needs_compiler
def test_a_damaged_library_is_not_taken_for_one(caplog):
    cache_folder().mkdir(parents=True)
    key = build._key(Path(build.__file__).parent / "trellis.cpp", build._compiler(), build._flags(""))
    (cache_folder() / f"trellis-{key}.so").write_bytes(b"\x7fELF")
    refused(caplog, "no native code for 'trellis'")


def test_other_systems_do_without(monkeypatch, caplog):
    monkeypatch.setattr(build.os, "name", "nt")
    refused(caplog, "it is not built on")


@needs_compiler
def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DITHER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dither" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dither" / "native"
    assert COMPILER
