import io
import json
import os
import struct
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.evaluation import npzfile
from dither.evaluation.admfile import open_pictures, read_reference, write_npz


def pictures(n: int = 7, shape: tuple[int, ...] = (4, 5, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def in_batches(x: np.ndarray, size: int = 3) -> Iterator[np.ndarray]:
    for start in range(0, len(x), size):
        yield x[start : start + size]


def written(path: Path, x: np.ndarray | None = None) -> np.ndarray:
    x = pictures() if x is None else x
    write_npz(path, in_batches(x), len(x), x.shape[1:], range(len(x)), range(100, 100 + len(x)))
    return x


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_layout_is_what_a_reference_reader_reads_byte_by_byte(tmp_path):
    x = written(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.namelist() == ["arr_0.npy", "arr_1.npy", "seeds.npy"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with archive.open("arr_0.npy") as member:
            assert np.lib.format.read_magic(member) == (2, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
            assert (shape, fortran, dtype) == ((7, 4, 5, 3), False, np.dtype("|u1"))
            assert member.tell() % 64 == 0
            for picture in x:
                assert member.read(4 * 5 * 3) == picture.tobytes()
            assert member.read() == b""


def test_the_pictures_stand_in_the_file_as_they_are(tmp_path):
    x = written(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    assert content[:4] == b"PK\x03\x04"
    name_length, extra_length = struct.unpack("<HH", content[26:30])
    member = content[30 + name_length + extra_length :]
    assert member[:8] == b"\x93NUMPY\x02\x00"
    header = struct.unpack("<I", member[8:12])[0]
    assert b"'shape': (7, 4, 5, 3)" in member[12 : 12 + header]
    assert member[12 + header : 12 + header + x.nbytes] == x.tobytes()


def test_numpy_reads_it_without_pickles(tmp_path):
    x = written(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["arr_0"], x)
        np.testing.assert_array_equal(content["arr_1"], np.arange(7))
        np.testing.assert_array_equal(content["seeds"], np.arange(100, 107))
        assert content["arr_1"].dtype == content["seeds"].dtype == np.int64


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 10), st.sampled_from([1, 3, 4]))
def test_round_trips_in_any_batches(n, size, read_size, channels):
    x = pictures(n, (3, 2, channels))
    path = Path(tempfile.gettempdir()) / f"dither-admfile-{os.getpid()}.npz"
    try:
        write_npz(path, in_batches(x, size), n, (3, 2, channels))
        opened = open_pictures(path)
        assert (opened.count, opened.shape, opened.labels, opened.seeds) == (n, (3, 2, channels), None, None)
        batches = list(opened.batches(read_size))
        np.testing.assert_array_equal(np.concatenate(batches), x)
        assert [len(batch) for batch in batches[:-1]] == [read_size] * (len(batches) - 1)
    finally:
        path.unlink(missing_ok=True)


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    x = written(tmp_path / "a.npz")
    write_npz(tmp_path / "b.npz", [x], 7, x.shape[1:], list(range(7)), np.arange(100, 107))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_prompts_are_labels_too(tmp_path):
    x = pictures(2)
    write_npz(tmp_path / "a.npz", [x], 2, x.shape[1:], ["a cat", "ein Äffchen"])
    assert open_pictures(tmp_path / "a.npz").labels.tolist() == ["a cat", "ein Äffchen"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        assert content["arr_1"].tolist() == ["a cat", "ein Äffchen"]


def test_labels_and_seeds_are_read(tmp_path):
    written(tmp_path / "a.npz")
    opened = open_pictures(tmp_path / "a.npz")
    np.testing.assert_array_equal(opened.labels, np.arange(7))
    np.testing.assert_array_equal(opened.seeds, np.arange(100, 107))


def test_reads_what_numpy_writes_plain_and_compressed(tmp_path):
    x = pictures()
    np.savez(tmp_path / "a.npz", x)
    np.savez_compressed(tmp_path / "b.npz", x)
    for name in ("a.npz", "b.npz"):
        np.testing.assert_array_equal(np.concatenate(list(open_pictures(tmp_path / name).batches(2))), x)


def test_memory_is_that_of_a_batch(tmp_path):
    shape, count = (64, 64, 3), 2000  # 24.6 MB
    batch = pictures(20, shape)
    tracemalloc.start()
    try:
        write_npz(tmp_path / "a.npz", (batch for _ in range(count // 20)), count, shape, range(count))
        total = sum(int(part[0, 0, 0, 0]) for part in open_pictures(tmp_path / "a.npz").batches(20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 100 * int(batch[0, 0, 0, 0])
    assert peak < 4_000_000


def bad_batches() -> list[tuple[list[np.ndarray], str]]:
    x = pictures(4)
    return [
        ([x], "needs 7 pictures, but only 4 came"),
        ([x, x], "more pictures came than were announced: 4 where 3 were left"),
        ([x.astype(np.float32)], "got float32"),
        ([x[:, :3]], r"must be uint8 \(n, 4, 5, 3\)"),
        ([x[0]], "must be uint8"),
    ]


@pytest.mark.parametrize(("batches", "sentence"), bad_batches())
def test_bad_batches_leave_nothing(tmp_path, batches, sentence):
    with pytest.raises(BadValue, match=sentence):
        write_npz(tmp_path / "a.npz", batches, 7, (4, 5, 3))
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_when_writing_fails(tmp_path):
    written(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def interrupted() -> Iterator[np.ndarray]:
        yield pictures(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(tmp_path / "a.npz", interrupted(), 7, (4, 5, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == before


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            if self.tell() > 100:
                raise OSError(28, "No space left on device")
            return super().write(content)

    def limited(handle: int, mode: str) -> Full:
        return Full(handle, mode)

    monkeypatch.setattr(npzfile.os, "fdopen", limited)
    with pytest.raises(BadValue, match=r"cannot write .*a\.npz: No space left on device"):
        written(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    def full(dir: Path, prefix: str) -> tuple[int, str]:
        (tmp_path / "temporary").touch()
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "temporary")

    monkeypatch.setattr(npzfile.tempfile, "mkstemp", full)
    with pytest.raises(BadValue, match=r"cannot write .*a\.npz"):
        written(tmp_path / "a.npz", pictures(100))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_sampler_passes_through(tmp_path):
    def broken() -> Iterator[np.ndarray]:
        yield pictures(2)
        raise FileNotFoundError(2, "No such file or directory", "weights")

    with pytest.raises(FileNotFoundError, match="weights"):
        write_npz(tmp_path / "a.npz", broken(), 7, (4, 5, 3))
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_write_what_does_not_go_together(tmp_path):
    x = pictures(2)
    with pytest.raises(BadValue, match=r"arr_1 of shape \(3,\) does not go with 2 pictures"):
        write_npz(tmp_path / "a.npz", [x], 2, (4, 5, 3), [0, 1, 2])
    with pytest.raises(BadValue, match=r"seeds of shape \(1,\)"):
        write_npz(tmp_path / "a.npz", [x], 2, (4, 5, 3), [0, 1], [5])
    with pytest.raises(BadValue, match="no folder"):
        write_npz(tmp_path / "none" / "a.npz", [x], 2, (4, 5, 3))
    with pytest.raises(BadValue, match="at least one picture"):
        write_npz(tmp_path / "a.npz", [], 0, (4, 5, 3))


def test_a_file_has_the_rights_of_any_other(tmp_path):
    written(tmp_path / "a.npz")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.9, -1])
def test_names_a_truncated_file(tmp_path, keep):
    written(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    cut = int(keep * len(content)) if isinstance(keep, float) else keep
    (tmp_path / "a.npz").write_bytes(content[:cut])
    with pytest.raises(BadValue, match=r"a\.npz is not a whole npz file"):
        open_pictures(tmp_path / "a.npz")


def test_names_a_file_whose_pictures_were_changed(tmp_path):
    x = written(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(x.tobytes()) + 50] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BadValue, match="Bad CRC-32"):
        list(open_pictures(tmp_path / "a.npz").batches(3))


def test_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadValue, match=r"none\.npz: No such file"):
        open_pictures(tmp_path / "none.npz")


def test_refuses_pickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return os._exit, (3,)

    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pictures(2), arr_1=np.array([Trap(), 1], dtype=object), allow_pickle=True)
    with pytest.raises(BadValue, match="arr_1 holds pickled objects"):
        open_pictures(path)
    np.savez(path, arr_0=np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(BadValue, match="arr_0 holds pickled objects"):
        open_pictures(path)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"other": np.zeros(2)}, "holds no arr_0"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "must be uint8 .* got float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, "must be uint8"),
        ({"arr_0": np.zeros((2, 4, 4, 2), np.uint8)}, "must be uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "must be uint8"),
        ({"arr_0": np.asfortranarray(pictures(2))}, "Fortran order"),
        ({"arr_0": pictures(2), "arr_1": np.zeros(3, np.int64)}, "arr_1 .* does not go with 2 pictures"),
        ({"arr_0": pictures(2), "arr_1": np.zeros(2)}, "arr_1 has dtype float64"),
        ({"arr_0": pictures(2), "seeds": np.array(["a", "b"])}, "seeds has dtype <U1"),
    ],
)
def test_names_what_is_wrong_with_a_file(tmp_path, arrays, sentence):
    with pytest.raises(BadValue, match=sentence):
        open_pictures(npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not an array", "no npy header"),
        (b"\x93NUMPY\x09\x00", "no npy header"),
        (b"\x93NUMPY\x01\x00\x10\x00{broken         ", "no npy header"),
    ],
)
def test_names_a_member_that_is_no_array(tmp_path, content, sentence):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content)
    with pytest.raises(BadValue, match=sentence):
        open_pictures(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (10**9, 10**6, 10**6, 3), (1, 4, 5, 3)])
def test_a_header_that_lies_about_the_size_is_refused_before_reading(tmp_path, shape):
    member = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(member, described)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue() + pictures(2).tobytes())
    with pytest.raises(BadValue, match="bytes where its header asks for"):
        open_pictures(tmp_path / "a.npz")


def reference(**changes: np.ndarray) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(50, 4))
    fit = {"mu": x.mean(axis=0), "sigma": np.cov(x.T)}
    return {**fit, "mu_s": x[:, :2].mean(axis=0).astype(np.float32), "sigma_s": np.cov(x[:, :2].T), **changes}


def test_reads_statistics_of_a_reference(tmp_path):
    x = pictures()
    content = reference(arr_0=x)
    stats = read_reference(npz(tmp_path / "a.npz", **content))
    for name in ("mu", "sigma", "mu_s", "sigma_s"):
        read = getattr(stats, name)
        np.testing.assert_array_equal(read, content[name])
        assert read.dtype == np.float64
    np.testing.assert_array_equal(np.concatenate(list(stats.pictures.batches(3))), x)


def test_spatial_statistics_and_pictures_may_be_absent(tmp_path):
    content = reference()
    stats = read_reference(npz(tmp_path / "a.npz", mu=content["mu"], sigma=content["sigma"]))
    assert stats.mu_s is stats.sigma_s is stats.pictures is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sigma": np.eye(3)}, r"mu and sigma must be \(D,\) and \(D, D\)"),
        ({"mu": np.zeros(4, np.int64)}, "mu has dtype int64"),
        ({"mu": np.full(4, np.nan)}, "NaN"),
        ({"sigma": np.triu(np.ones((4, 4)))}, "sigma is not a covariance"),
        ({"sigma": -np.eye(4)}, "sigma is not a covariance"),
        ({"sigma_s": np.eye(3)}, "mu_s and sigma_s must be"),
    ],
)
def test_names_what_is_wrong_with_statistics(tmp_path, changes, sentence):
    with pytest.raises(BadValue, match=sentence):
        read_reference(npz(tmp_path / "a.npz", **reference(**changes)))


def test_names_statistics_that_are_missing(tmp_path):
    content = reference()
    del content["sigma"]
    with pytest.raises(BadValue, match="holds no sigma"):
        read_reference(npz(tmp_path / "a.npz", **content))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_damage_gets_past_the_checks(data):
    """A flipped byte anywhere, in header, pictures, labels or directory, is one sentence or leaves the pictures whole."""
    stream = io.BytesIO()
    x = pictures(2)
    np.savez(stream, arr_0=x, arr_1=np.array(["a", "b"]), settings=np.array('{"steps": 2}'))
    content = bytearray(stream.getvalue())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = Path(tempfile.gettempdir()) / f"dither-damaged-{os.getpid()}.npz"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers written by Python 2
            read = np.concatenate(list(open_pictures(path).batches(1)))
    except BadValue:
        pass
    else:
        np.testing.assert_array_equal(read, x)
    finally:
        path.unlink()


def test_videos_lie_in_the_same_layout(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 5, 3), dtype=np.uint8)
    written(tmp_path / "a.npz", x)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["arr_0"], x)
    opened = open_pictures(tmp_path / "a.npz")
    assert (opened.count, opened.shape, opened.frames, opened.kind) == (5, (3, 4, 5, 3), 3, "videos")
    assert opened.sample_bytes == 180
    batches = list(opened.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), x)
    assert (open_pictures(npz(tmp_path / "b.npz", arr_0=x[:, 0])).frames, open_pictures(tmp_path / "b.npz").kind) == (
        None, "pictures"
    )  # fmt: skip


def test_videos_are_no_reference(tmp_path):
    x = np.zeros((2, 3, 4, 5, 3), np.uint8)
    with pytest.raises(BadValue, match="must be pictures, and these are videos"):
        read_reference(npz(tmp_path / "a.npz", **reference(arr_0=x)))


SETTINGS = {"steps": 25, "guidance": 1.5, "scheduler": {"class": "DDIMScheduler", "clip": [1, None, True], "name": "ä"}}


def test_settings_are_json_text_that_any_reader_may_pass_over(tmp_path):
    x = pictures(2)
    write_npz(tmp_path / "a.npz", [x], 2, x.shape[1:], settings=SETTINGS)
    assert open_pictures(tmp_path / "a.npz").settings == SETTINGS
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["arr_0"], x)
        assert content["settings"].shape == ()
        assert json.loads(content["settings"].item()) == SETTINGS
    write_npz(tmp_path / "b.npz", [x], 2, x.shape[1:], settings=dict(reversed(SETTINGS.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    write_npz(tmp_path / "c.npz", [x], 2, x.shape[1:])
    assert open_pictures(tmp_path / "c.npz").settings is None


def test_infinite_settings_are_text(tmp_path):
    """As ``lambda_min_clipped`` of DPM-Solver is."""
    x = pictures(2)
    write_npz(tmp_path / "a.npz", [x], 2, x.shape[1:], settings={"low": [-float("inf")], "nan": float("nan")})
    assert open_pictures(tmp_path / "a.npz").settings == {"low": ["-inf"], "nan": "nan"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (np.array("[1]"), "settings must be one JSON object"),
        (np.array(["{}"]), "settings must be one JSON object"),
        (np.array("{"), "settings are no JSON"),
        (np.array('{"a": NaN}'), "settings are no JSON"),
        (np.array('{"a": 1e999}'), "settings are no JSON"),
        (np.array("[" * 100_000), "settings are no JSON"),
        (np.array(3), "settings has dtype int64"),
        (np.array("x" * 2**21), "more than any honest file's"),
    ],
)
def test_refuses_what_is_no_settings(tmp_path, settings, sentence):
    with pytest.raises(BadValue, match=sentence):
        open_pictures(npz(tmp_path / "a.npz", arr_0=pictures(2), settings=settings))


@pytest.mark.parametrize("order", ["<", ">"])
def test_refuses_letters_that_do_not_exist(tmp_path, order):
    labels = np.array([0x61, 0x110000], np.dtype(np.uint32).newbyteorder(order)).view(f"{order}U1")
    with pytest.raises(BadValue, match="arr_1 holds what is no text"):
        open_pictures(npz(tmp_path / "a.npz", arr_0=pictures(2), arr_1=labels))
