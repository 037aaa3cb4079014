"""``dither record``, and ``quantize --calls-file``: the same as drawing, and every file that does not fit named."""

import json
import signal

import jobs
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import dither as api
from dither.errors import DitherError
from dither.measure import evaluate
from dither.quantization import sample_seeds
from dither.recorded import digest_of, read_calls
from dither.store import FolderStore

SHORT = "--samples 3 --steps 3 --guidance 2 --calls 2 --seed 4"


@pytest.fixture
def calls(dither, model):
    """A file of two calls in the current folder."""
    result = dither(f"record {model} -o calls.safetensors {SHORT}")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "2 denoiser calls in calls.safetensors\n"


def test_recorded_calls_are_those_that_quantize_draws(dither, model, calls, tmp_path):
    how = api.Calibration(3, 3, 2.0, 2)
    found = read_calls(tmp_path / "calls.safetensors")
    assert found.made == {"samples": 3, "steps": 3, "guidance": 2.0, "calls": 2, "prompts": [], "seed": 4}
    assert digest_of(found.calls) == digest_of(api.record(jobs.pipeline(), calibration=how, seed=4))


@pytest.mark.parametrize("recipe", ["smoothquant", "vidit-q --bits w4a8"])
def test_calibrating_with_a_file_is_the_same_to_the_bit(dither, model, calls, tmp_path, recipe):
    assert dither(f"quantize {model} -o drawn --recipe {recipe} {SHORT}").exit_code == 0
    result = dither(f"quantize {model} -o stored --recipe {recipe} --seed 4 --calls-file calls.safetensors")
    assert result.exit_code == 0, result.stderr
    name = "transformer/diffusion_pytorch_model.safetensors"
    drawn, stored = load_file(tmp_path / "drawn" / name), load_file(tmp_path / "stored" / name)
    assert drawn.keys() == stored.keys()
    assert all(drawn[k].equal(stored[k]) for k in drawn)


def test_a_search_among_pictures_draws_the_same_ones(dither, refused, model, calls, monkeypatch):
    """Their noise begins after that of calibration."""
    asked = []

    def study_of(pipeline, settings, prompts, seeds):
        asked.append(seeds)
        raise DitherError("no picture was wanted")

    monkeypatch.setattr("dither.quantization.study_of", study_of)
    command = f"quantize {model} -o out --recipe vidit-q-mp"
    refused(dither(f"{command} {SHORT}"), "no picture was wanted")
    refused(dither(f"{command} --seed 4 --calls-file calls.safetensors"), "no picture was wanted")
    assert len(asked) == 2
    assert asked[0] == asked[1] != []
    assert not set(asked[0]) & set(sample_seeds(4, 3, calibration=True))


def test_the_checkpoint_and_its_results_tell_of_the_file(dither, model, calls, tmp_path):
    result = dither(f"quantize {model} -o out --recipe smoothquant --calls-file calls.safetensors")
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())["quantization_config"]
    digest = digest_of(read_calls(tmp_path / "calls.safetensors").calls)
    assert config["recipe"]["calibration"] == {"stored_calls": 2, "digest": digest}
    found = evaluate(tmp_path / "out", str(model), n=2, steps=1, noise_floor=0)
    assert found["commands"]["quantize"] is None  # nobody knows where the file lies


def test_stored_samples(dither, model, tmp_path):
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((40, 1, 8, 8)), rng.integers(0, 1000, 40), rng.integers(0, 11, 40)
    np.savez(tmp_path / "s.npz", x=x, t=t, y=y)
    result = dither(f"quantize {model} -o out --recipe smoothquant --calls-file s.npz")
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())["quantization_config"]
    assert config["recipe"]["calibration"]["stored_calls"] == 2


@pytest.mark.parametrize("option", ["--samples 16", "--steps 4", "--guidance 2", "--calls 64"])
def test_options_for_drawing_go_with_no_file(dither, refused, model, calls, tmp_path, option):
    sentence = refused(dither(f"quantize {model} -o out --calls-file calls.safetensors {option}"), "--calls-file")
    assert option.split()[0] in sentence
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_used(dither, refused, model, calls, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello, hello, hello")
    save_file(load_file(tmp_path / "calls.safetensors"), tmp_path / "weights.safetensors")
    data = (tmp_path / "calls.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-9])
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 4, 8, 8)), t=np.zeros(2), y=np.zeros(2, int))
    for name in ("nowhere.safetensors", "text.safetensors", "weights.safetensors", "short.safetensors", "s.npz"):
        refused(dither(f"quantize {model} -o out --calls-file {name}"), name)
        assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_calls_of_another_model(dither, refused, calls, tmp_path):
    result = dither("quantize zoo:fashion -o out --calls-file calls.safetensors")
    refused(result, "calls.safetensors", "(1, 8, 8)", "(1, 28, 28)")
    assert "\n" not in result.stdout  # before the plan
    assert [p.name for p in tmp_path.iterdir()] == ["calls.safetensors"]


def test_a_run_resumes_with_the_same_calls_only(dither, refused, model, calls, tmp_path, monkeypatch):
    plain, count = FolderStore.put, []

    def put(self, name, tensors):
        plain(self, name, tensors)
        count.append(name)
        if len(count) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FolderStore, "put", put)
    command = f"quantize {model} -o out --recipe smoothquant --seed 4"
    refused(dither(f"{command} --calls-file calls.safetensors"), "interrupted")
    assert dither(f"record {model} -o other.safetensors --samples 3 --steps 2").exit_code == 0
    refused(dither(f"{command} --calls-file other.safetensors --resume"), "out.partial", "another")
    refused(dither(f"{command} --resume"), "out.partial", "another")
    result = dither(f"{command} --calls-file calls.safetensors --resume --json q.json")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "q.json").read_text())["resumed_layers"] == 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("-o c.npz", "c.npz"),
        ("-o .", "folder"),
        ("-o c.safetensors --samples 0", "0"),
        ("-o c.safetensors --calls 0", "0"),
    ],
)
def test_record_options(dither, refused, model, tmp_path, options, name):
    refused(dither(f"record {model} {options}"), name)
    assert list(tmp_path.iterdir()) == []
