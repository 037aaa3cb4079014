"""Studies: what each role's loss measures, which networks judge, noise of their own, and what cannot be judged."""

import jobs
import numpy as np
import pytest
import torch

from dither import study as study_module
from dither import zoo
from dither.errors import BadValue, DitherError
from dither.evaluation.frechet import fit_gaussian, frechet_distance
from dither.quantization import Calibration, quantize, sample_seeds
from dither.spec import Act, Bits, Int, Recipe
from dither.stages import Assign, Mixed, Rtn, StudySettings, describe
from dither.study import Alignment, Consistency, Distance, Drawn, Features, Likelihood, PictureStudy, study_of

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
VIDEOS = np.random.default_rng(1).integers(0, 256, (3, 5, 8, 8, 3), dtype=np.uint8)
SETTINGS = StudySettings(4, 2, 1.5, {"content": "zoo:fashion", "visual": "zoo:fashion"})


class Network:
    """Features are mean pixels; two classes, the brighter the first."""

    name = "means"

    def __init__(self, classifies: bool = True) -> None:
        self.classifies = classifies

    def __call__(self, images):
        mean = images.reshape(len(images), -1).mean(1, dtype=np.float64) / 255
        return np.stack([mean, 1 - mean], 1), np.stack([100 * mean, 0 * mean], 1) if self.classifies else None


class Scorer:
    """A picture's brightness times the length of its prompt."""

    name = "bright"

    def __call__(self, pictures, prompts):
        return pictures.reshape(len(pictures), -1).mean(1) * np.array([len(p) for p in prompts])


def seen(judge, pictures, other):
    return judge.loss(judge.see(other), judge.see(pictures))


def test_features_are_relative_squared_distances():
    a, b = Network()(PICTURES)[0], Network()(PICTURES // 2)[0]
    want = ((a - b) ** 2).sum(1).mean() / (a**2).sum(1).mean()
    assert seen(Features(Network(), "x"), PICTURES, PICTURES // 2) == pytest.approx(want)
    assert seen(Features(Network(), "x"), VIDEOS, VIDEOS) == 0
    assert seen(Features(Network(), "x"), VIDEOS, VIDEOS // 2) > 0


def test_likelihood_is_of_each_pictures_own_label():
    judge = Likelihood(Network(), (0, 1, 0, 1), "x")
    logits = torch.from_numpy(Network()(PICTURES)[1])
    want = torch.log_softmax(logits, 1)[range(4), [0, 1, 0, 1]].clamp(min=-50)
    np.testing.assert_allclose(judge.see(PICTURES), want.numpy())
    assert judge.see(PICTURES).min() > -51
    assert np.isfinite(Likelihood(Network(), (1,) * 4, "x").see(np.full_like(PICTURES, 255))).all()
    assert judge.loss(np.array([-1.0, -3.0]), np.array([-2.0, -1.0])) == 1.5


def test_what_classifies_nothing_or_too_little_cannot_judge_classes():
    with pytest.raises(BadValue, match="'x' classifies nothing"):
        Likelihood(Network(classifies=False), (0,) * 4, "x").see(PICTURES)
    with pytest.raises(BadValue, match="'x' knows 2 classes, and class 7 is drawn"):
        Likelihood(Network(), (0, 7, 0, 0), "x").see(PICTURES)


def test_alignment_is_of_each_picture_or_video_with_its_prompt():
    judge = Alignment(Scorer(), ("a", "bb", "ccc"), "x")
    scores = VIDEOS.reshape(3, 5, -1).mean(2) * np.array([[1], [2], [3]])
    np.testing.assert_allclose(judge.see(VIDEOS), scores)
    assert judge.see(PICTURES[:3]).shape == (3,)
    swapped = judge.see(VIDEOS[:, ::-1])  # frames in another order: each video's mean is the same
    assert judge.loss(swapped, judge.see(VIDEOS)) == pytest.approx(0)
    assert judge.loss(np.array([1.0, 5.0]), np.array([2.0, 3.0])) == 1.5


def test_consistency_needs_videos_and_sees_the_order_of_frames():
    judge = Consistency(Network(), "x")
    assert seen(judge, VIDEOS, VIDEOS) == 0
    assert seen(judge, VIDEOS, np.repeat(VIDEOS[:, :1], 5, 1)) > 0
    with pytest.raises(BadValue, match="temporal role needs videos"):
        judge.see(PICTURES)


def test_distance_is_that_of_fitted_gaussians():
    a, b = np.random.default_rng(2).normal(size=(2, 40, 3))
    assert Distance(Network(), "x").loss(b, a) == pytest.approx(frechet_distance(*fit_gaussian(b), *fit_gaussian(a)))
    assert seen(Distance(Network(), "x"), PICTURES, PICTURES) == 0
    assert seen(Distance(Network(), "x"), PICTURES, PICTURES // 2) > 0
    assert Distance(Network(), "x").see(VIDEOS).shape == (15, 2)  # a row for each frame


def test_distance_of_fewer_pictures_than_features_does_not_need_pairs_in_order():
    a, b = np.random.default_rng(3).normal(size=(2, 5, 20))
    judge = Distance(Network(), "x")
    assert judge.loss(a[::-1], a) == pytest.approx(0, abs=1e-12)
    assert judge.loss(b[::-1], a) == pytest.approx(judge.loss(b, a))
    assert judge.loss(b, a) == pytest.approx(frechet_distance(*fit_gaussian(b), *fit_gaussian(a)), rel=1e-6)


def test_one_picture_has_no_distribution():
    with pytest.raises(BadValue, match="'x' needs at least 2 pictures"):
        seen(Distance(Network(), "x"), PICTURES[:1], PICTURES[1:2])


def test_a_study_judges_the_distance():
    pipe = jobs.pipeline()
    study = study_of(pipe, StudySettings(4, 2, 1.5, {"distance": "zoo:fashion"}), (), sample_seeds(0, 4))
    study.begin()
    assert study.metrics == {"distance": "Frechet distance of zoo:fashion"}
    assert study.losses() == {"mse": 0.0, "distance": 0.0}
    pipe.transformer.transformer_blocks[0].ff.net[2].weight.data *= 3
    assert study.losses()["distance"] > 0


def test_a_study_draws_full_precision_once_and_holds_all_else_against_it():
    drawn = [Drawn(torch.zeros(4, 1, 8, 8), PICTURES), Drawn(torch.full((4, 1, 8, 8), 0.5), PICTURES // 2)]
    study = PictureStudy(iter(drawn).__next__, {"visual": Features(Network(), "means")})
    with pytest.raises(RuntimeError, match="begin"):
        study.losses()
    study.begin()
    study.begin()
    assert study.metrics == {"visual": "means"}
    losses = study.losses()
    assert losses["mse"] == 0.25
    assert losses["visual"] == seen(Features(Network(), "x"), PICTURES, PICTURES // 2)


def test_the_same_model_loses_nothing_and_another_one_does():
    pipe = jobs.pipeline()
    study = study_of(pipe, SETTINGS, (), sample_seeds(0, 4))
    study.begin()
    assert set(study.losses().values()) == {0.0}
    pipe.transformer.transformer_blocks[0].ff.net[2].weight.data *= 3
    assert set(study.losses()) == {"mse", "content", "visual"}
    assert all(value > 0 for value in study.losses().values())


def test_final_states_of_all_batches_are_seen(monkeypatch):
    pipe, states = jobs.pipeline(), []
    real = study_module.sampler_for
    monkeypatch.setattr(study_module, "sampler_for", lambda p, steps, guidance: real(p, steps, guidance, 3))
    for batch in (3, 64):
        monkeypatch.setattr(study_module, "sampler_for", lambda p, s, g, batch=batch: real(p, s, g, batch))
        study = study_of(pipe, SETTINGS, (), sample_seeds(0, 4))
        states.append(study.draw().states)
    torch.testing.assert_close(*states)
    assert states[0].shape == (4, 1, 8, 8)
    assert float(states[0].abs().max()) <= 1


def test_a_zoo_model_is_judged_by_the_network_that_ships_with_it():
    study = study_of(zoo.load("fashion"), StudySettings(judges={"content": "", "visual": ""}), (), range(16))
    assert study.metrics == {
        "content": "|log-likelihood difference| of zoo:fashion",
        "visual": "relative squared feature distance of zoo:fashion",
    }


@pytest.mark.parametrize("role", ["content", "visual"])
def test_a_model_that_nobody_knows_needs_a_judge(role):
    with pytest.raises(BadValue, match=rf"mixed\.{role}: no network is known .* --set mixed\.{role}=zoo:"):
        study_of(jobs.pipeline(), StudySettings(judges={role: ""}), (), range(16))


def test_an_unknown_judge_is_named():
    with pytest.raises(DitherError, match="no feature extractor 'nobody'"):
        study_of(jobs.pipeline(), StudySettings(judges={"visual": "nobody"}), (), range(16))


class Prompted:
    """A text-to-image pipeline, as far as a study looks before it draws."""

    def __call__(self, prompt, generator, num_inference_steps, guidance_scale, callback_on_step_end):
        raise AssertionError

    def set_progress_bar_config(self, disable):
        pass


def test_prompts_are_judged_by_clip(monkeypatch):
    asked = []
    monkeypatch.setattr(study_module, "open_scorer", lambda text: asked.append(("scorer", text)) or Scorer())
    monkeypatch.setattr(study_module, "open_extractor", lambda text: asked.append(("extractor", text)) or Network())
    settings = StudySettings(judges={"content": "", "visual": "", "temporal": ""})
    study = study_of(Prompted(), settings, ("a cat", "a dog"), range(16))
    assert asked == [("scorer", "clip"), ("extractor", "clip"), ("extractor", "clip")]
    assert study.judges["content"].prompts == ("a cat", "a dog") * 8
    with pytest.raises(BadValue, match="samples from prompts, and none were given"):
        study_of(Prompted(), settings, (), range(16))


def test_quantize_studies_other_noise_than_calibration_and_evaluation(monkeypatch):
    noise = []
    real = study_module.sampler_for

    def sampler(pipeline, steps, guidance):
        inner = real(pipeline, steps, guidance)
        return lambda labels, seeds, on_step: noise.append(seeds) or inner(labels, seeds, on_step)

    monkeypatch.setattr(study_module, "sampler_for", sampler)
    judge = {"content": "zoo:fashion", "visual": "zoo:fashion", "samples": 3, "steps": 2, "ranges": 1}
    stages = (
        Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(4)),
        Mixed(weight=6.0, weight_widths=(4, 8), **judge),
        Rtn(),
    )
    quantize(jobs.pipeline(), Recipe("t", "", Bits(4, 8), describe(stages)), calibration=Calibration(samples=4), seed=2)
    assert len(noise) == 7  # full precision, and six units at one width
    assert len({tuple(seeds) for seeds in noise}) == 1
    assert len(noise[0]) == 3
    assert not set(noise[0]) & set(sample_seeds(2, 4, calibration=True))
    assert not set(noise[0]) & set(sample_seeds(2, 1000))
