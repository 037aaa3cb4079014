import json
import shutil

import diffusers
import pytest
import torch

from dither.errors import BadModel
from dither.measure.subjects import check_pair, header, open_subject, scheduler_settings
from dither.sources import open_source


def test_a_digest_names_what_is_drawn(folders, subjects):
    assert len({subject.digest for subject in subjects}) == 3
    assert [open_subject(folder).digest for folder in folders] == [subject.digest for subject in subjects]


def test_a_moved_model_is_the_same(folders, subjects, tmp_path):
    moved = shutil.copytree(folders[1], tmp_path / "moved")
    assert open_subject(moved).digest == subjects[1].digest


def test_a_changed_weight_or_scheduler_is_another(folders, subjects):
    source = open_source(str(folders[0]))
    with torch.no_grad():
        next(source.model.parameters()).view(-1)[0] += 1
    assert open_subject(source).digest != subjects[0].digest
    source = open_source(str(folders[0]))
    source.pipeline.scheduler.register_to_config(beta_end=0.03)
    assert open_subject(source).digest != subjects[0].digest


def test_the_hard_variant_of_a_zoo_model_is_another():
    assert open_subject("zoo:digits").digest != open_subject("zoo:digits-hard").digest


def test_an_opened_model_has_no_text_for_other_processes(folders):
    assert open_subject(open_source(str(folders[0]))).text is None
    assert open_subject(folders[0]).text == str(folders[0].resolve())
    assert open_subject("zoo:digits").text == "zoo:digits"


def test_another_scheduler_is_named(folders, subjects, tmp_path):
    other = shutil.copytree(folders[0], tmp_path / "other")
    file = other / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.5}))
    with pytest.raises(BadModel, match=r"schedulers of 'w8a8' and 'other' differ in 'beta_end' \(0.02 and 0.5\)"):
        check_pair(subjects[1].source, open_source(str(other)))
    check_pair(subjects[1].source, subjects[0].source)


def test_settings_of_a_scheduler_are_json(subjects):
    settings = json.loads(json.dumps(scheduler_settings(subjects[0].source), allow_nan=False))
    assert settings["class"] == "DDIMScheduler"


def test_only_a_quantized_model_has_a_header(subjects):
    assert header(subjects[1].source).plan.layers
    with pytest.raises(BadModel, match="'full' is not quantized by dither"):
        header(subjects[0].source)


def test_infinite_settings_are_still_json(folders):
    source = open_source(str(folders[0]))
    source.pipeline.scheduler = diffusers.DPMSolverMultistepScheduler()
    assert scheduler_settings(source)["lambda_min_clipped"] == "-Infinity"
    json.dumps(scheduler_settings(source), allow_nan=False)
