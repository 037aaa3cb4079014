import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Dinov2Model

from dither.errors import BadModel, BadValue
from dither.extractors import open_clip, open_dinov2, open_extractor
from dither.extractors.vision import clip_preprocess

OPEN = {"clip": open_clip, "dinov2": open_dinov2}


@pytest.fixture(params=sorted(OPEN))
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, clip_folder, dinov2_folder):
    return {"clip": clip_folder, "dinov2": dinov2_folder}[kind]


@pytest.fixture
def extract(kind, folder):
    return OPEN[kind](str(folder))


def test_one_finite_row_a_picture_and_no_logits(extract, pictures, kind):
    features, logits = extract(pictures)
    assert features.shape == (5, {"clip": 12, "dinov2": 16}[kind])
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert logits is None
    assert np.unique(features, axis=0).shape == features.shape  # different pictures, different features


def test_clip_embeddings_are_what_the_library_projects_divided_by_their_length(clip_folder, pictures):
    extract = open_clip(str(clip_folder))
    library = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        whole = library(input_ids=torch.tensor([[52, 53]]), pixel_values=extract.preprocess(pictures))
    features, _ = extract(pictures)
    np.testing.assert_allclose(features, whole.image_embeds, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_dinov2_features_are_the_normalised_class_token_at_224_pixels(dinov2_folder, pictures):
    extract = open_dinov2(str(dinov2_folder))
    library = Dinov2Model.from_pretrained(dinov2_folder).eval()
    x = extract.preprocess(pictures)
    assert x.shape == (5, 3, 224, 224)
    with torch.no_grad():
        wanted = library(pixel_values=x).pooler_output.numpy()
    np.testing.assert_allclose(extract(pictures)[0], wanted, atol=1e-5)


def test_same_again_and_in_other_batches(extract, folder, kind, pictures):
    first, _ = extract(pictures)
    np.testing.assert_array_equal(extract(pictures)[0], first)
    np.testing.assert_array_equal(OPEN[kind](str(folder))(pictures)[0], first)
    np.testing.assert_allclose(OPEN[kind](str(folder), batch=2)(pictures)[0], first, atol=1e-5)
    np.testing.assert_allclose(extract(pictures[3:4])[0], first[3:4], atol=1e-5)


def test_grey_pictures_are_repeated_to_colour(extract, pictures):
    grey = pictures[..., :1]
    np.testing.assert_array_equal(extract(grey)[0], extract(np.repeat(grey, 3, axis=-1))[0])


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 300, 300, 1), (2, 9, 40, 3)])
def test_pictures_of_any_size(extract, shape):
    features, _ = extract(np.random.default_rng(3).integers(0, 256, shape, np.uint8))
    assert len(features) == 2


def test_the_name_tells_model_weights_and_preprocessing(kind, folder, tmp_path, extract):
    assert extract.name.startswith(f"{kind}:tiny-{kind}@")
    wanted = {"clip": "[crop, bicubic 32, unit]", "dinov2": "[squeeze, bicubic 224, class token]"}[kind]
    assert extract.name.endswith(wanted)
    copy = shutil.copytree(folder, tmp_path / "a" / folder.name)
    assert OPEN[kind](str(copy)).name == extract.name  # wherever it lies
    weights = load_file(copy / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"})
    assert OPEN[kind](str(copy)).name != extract.name  # other weights


def test_half_precision_checkpoints_run_in_float32(kind, folder, tmp_path, pictures, extract):
    copy = shutil.copytree(folder, tmp_path / "half")
    weights = load_file(copy / "model.safetensors")
    halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(halved, copy / "model.safetensors", metadata={"format": "pt"})
    small = OPEN[kind](str(copy))
    assert {p.dtype for p in small.tower.parameters()} == {torch.float32}
    np.testing.assert_allclose(small(pictures)[0], extract(pictures)[0], atol=0.02)


def test_the_other_kind_of_model_is_refused(clip_folder, dinov2_folder):
    with pytest.raises(BadModel, match="type 'dinov2', not 'clip'"):
        open_clip(str(dinov2_folder))
    with pytest.raises(BadModel, match="type 'clip', not 'dinov2'"):
        open_dinov2(str(clip_folder))


def test_a_missing_weight_is_named_and_never_random(kind, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "lacking")
    weights = load_file(copy / "model.safetensors")
    gone = {"clip": "visual_projection.weight", "dinov2": "layernorm.weight"}[kind]
    assert gone in weights
    save_file({k: v for k, v in weights.items() if k != gone}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match=f"lacks 1 of its weights, such as '{gone}'"):
        OPEN[kind](str(copy))


def test_a_weight_of_another_shape_is_refused(kind, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "reshaped")
    weights = load_file(copy / "model.safetensors")
    bent = {"clip": "visual_projection.weight", "dinov2": "layernorm.weight"}[kind]
    weights[bent] = weights[bent][:-1].contiguous()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match=kind):
        OPEN[kind](str(copy))


def test_a_truncated_file_is_refused(kind, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "cut")
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadModel, match="cannot be loaded"):
        OPEN[kind](str(copy))


def test_pickled_weights_are_not_read(kind, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=r"no \.safetensors"):
        OPEN[kind](str(copy))


def test_code_named_by_a_checkpoint_is_never_run(kind, folder, tmp_path, pictures, extract):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    (copy / "evil.py").write_text("raise SystemExit('ran')\n")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(OPEN[kind](str(copy))(pictures)[0], extract(pictures)[0])


@pytest.mark.parametrize("text", ["", "/no/such/folder", "a/b/c", "../up", "~nobody/x", "x\0y", "n" * 5000, "a b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(kind, text):
    with pytest.raises(BadModel, match=kind) as caught:
        OPEN[kind](text)
    assert len(str(caught.value)) < 400


def test_a_hub_id_that_cannot_be_reached_is_named(kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadModel, match="'nobody/nothing' cannot be loaded"):
        OPEN[kind]("nobody/nothing")


def test_loading_says_nothing_and_leaves_the_library_as_it_was(clip_folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    open_clip(str(clip_folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_unknown_device_is_refused(kind, folder):
    with pytest.raises(BadValue, match="Device 'moon'"):
        OPEN[kind](str(folder), device="moon")


def test_a_text_opens_them_too(kind, folder, extract, pictures):
    opened = open_extractor(f"{kind}:{folder}", batch=2)
    assert opened.name == extract.name
    np.testing.assert_allclose(opened(pictures)[0], extract(pictures)[0], atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, [32, 32], None, "32"])
def test_a_clip_that_is_not_for_square_pictures_is_refused(size):
    with pytest.raises(BadModel, match="'some/model' is for pictures of size"):
        clip_preprocess(size, "some/model")
