"""Recipes of 1 to 4 bits: order, switches, formats by width; and what they do on a model that ships."""

import jobs
import pytest
import torch

import dither
from dither import zoo
from dither.checkpoint import header_of
from dither.numerics import stored_bits
from dither.quantization import plan_ahead
from dither.recipes import get, override
from dither.sampling import default_labels, sampler_for
from dither.spec import Codebook, Int, Trellis
from dither.stages import CodeProgram, stages_of

SHORT = ("codebooks.trajectories=2", "codebooks.steps=3", "codebooks.samples=2")
BRIEF = ("tune.trajectories=2", "tune.steps=3", "tune.samples=2", "assign.weight.states=6", "assign.adaln.states=6")
DRAWN = dither.Calibration(samples=4, steps=4, calls=4)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("vq4dit", "assign codebooks rtn ranges share"),
        ("dither", "teacher rotate assign gptq rtn tune ranges share"),
        ("dither-mixed", "teacher rotate assign code-program gptq rtn tune ranges share"),
    ],
)
def test_order(name, order):
    assert " ".join(stage.tag for stage in stages_of(get(name))) == order


@pytest.mark.parametrize(
    ("bits", "want"), [("w2", Codebook(4, 256)), ("w3", Codebook(2, 64)), ("w4", Codebook(2, 256)), ("w5", Int(5))]
)
def test_words_of_vq4dit_by_width(bits, want):
    specs = plan_ahead(zoo.load("fashion"), get("vq4dit", bits)).specs
    assert {s.weight for s in specs.values()} == {want}
    assert {s.act for s in specs.values()} == {None}
    assert sum("norm1.linear" in name for name in specs) == 6  # modulation is among them; embedders are not
    assert not any("emb" in name or "proj_out" in name for name in specs)


def test_words_of_narrow_layers_are_fewer_where_they_would_not_be_filled():
    specs = plan_ahead(jobs.pipeline(), get("vq4dit", "w2")).specs
    assert specs["transformer_blocks.0.attn1.to_q"].weight == Codebook(4, 16)  # 64 sub-vectors
    assert specs["transformer_blocks.0.ff.net.2"].weight == Codebook(4, 64)


@pytest.mark.parametrize("bits", ["w1", "w2", "w3", "w4", "w2a8"])
def test_codes_of_dither_by_width(bits):
    specs = plan_ahead(zoo.load("fashion"), get("dither", bits)).specs
    for name, spec in specs.items():
        assert spec.weight == Trellis(int(bits[1]))
        assert (spec.act is None) == (len(bits) == 2 or "norm1.linear" in name)


@pytest.mark.parametrize(("bits", "widths"), [("w2", (2, 3)), ("w3", (2, 3, 4)), ("w4", (3, 4))])
def test_widths_of_mixed(bits, widths):
    found = next(s for s in stages_of(get("dither-mixed", bits)) if isinstance(s, CodeProgram))
    assert found.widths == widths


@pytest.mark.parametrize(("name", "quick"), [("vq4dit", SHORT), ("dither", BRIEF), ("dither-mixed", BRIEF)])
@pytest.mark.parametrize("bits", ["w2", "w3", "w2a8"])
def test_checkpoints_reload_to_the_same_bits(name, quick, bits, tmp_path):
    pipe = jobs.pipeline()
    dither.quantize(pipe, override(get(name, bits), quick), calibration=DRAWN)
    want = jobs.outputs(pipe.transformer)
    dither.save(pipe, tmp_path / "saved")
    again = dither.load(tmp_path / "saved").transformer
    assert torch.equal(jobs.outputs(again), want)
    assert header_of(again).plan == header_of(pipe.transformer).plan


@pytest.mark.parametrize("setting", ["rotate=off", "gptq=off", "tune=off", "codebooks=off"])
def test_components_can_be_switched_off(setting):
    name, quick = ("vq4dit", SHORT) if setting.startswith("codebooks") else ("dither", BRIEF)
    off = [s for s in quick if s.partition(".")[0] != setting.partition("=")[0]]
    whole, part = (
        dither.quantize(jobs.pipeline(), override(get(name), given), calibration=DRAWN).transformer
        for given in (quick, [*off, setting])
    )
    assert not torch.equal(jobs.outputs(whole), jobs.outputs(part))


def psnr(*settings: str, name: str = "vq4dit") -> float:
    """Of 20 digits at 2 bits."""
    pictures = []
    for given in (None, settings):
        pipe = zoo.load("digits")
        if given is not None:
            dither.quantize(pipe, name, "w2", settings=given)
        drawn = sampler_for(pipe, 8, 1.5)(default_labels(pipe, 20), list(range(20)))
        pictures.append(torch.as_tensor(drawn, dtype=torch.float64) / 255)
    error = (pictures[0] - pictures[1]).square().flatten(1).mean(1)
    return float(-10 * error.log10().mean())


def test_calibrated_assignments_on_a_model_that_ships():
    short = ("codebooks.trajectories=3", "codebooks.steps=25", "codebooks.iterations=10")
    plain = psnr("codebooks=off")
    assert psnr(*short, "codebooks.candidates=1") > plain + 3
    assert psnr(*short) > plain + 3


def test_dither_is_ahead_at_the_same_bits():
    words = '{"kind": "gaussian", "dim": 4, "size": 256}'  # encoded in a moment
    quick = (f"assign.weight={words}", f"assign.adaln={words}", "tune.trajectories=3")
    short = ("codebooks.trajectories=3", "codebooks.steps=25", "codebooks.iterations=10")
    assert psnr(*quick, name="dither") > psnr(*short) + 3
    shape = (128, 128)
    assert stored_bits(Trellis(2), shape) < stored_bits(Codebook(4, 256), shape)
