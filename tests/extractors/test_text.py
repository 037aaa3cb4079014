import json
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from dither.errors import BadModel, BadValue
from dither.extractors import open_clip_text, open_scorer

PROMPTS = ["a cat", "dog", "", "the end", "x"]


@pytest.fixture
def score(clip_folder):
    return open_clip_text(str(clip_folder))


def test_scores_are_the_cosines_of_the_library(score, clip_folder, pictures):
    library = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        both = library(pixel_values=score.preprocess(pictures), **tokens)
        cosines = (both.image_embeds * both.text_embeds).sum(dim=1).numpy()
    assert cosines.min() > 0
    assert np.ptp(cosines) > 0.01
    np.testing.assert_allclose(score(pictures, PROMPTS), 100 * cosines, atol=1e-3)


def test_scores_lie_in_range_and_belong_to_their_own_prompt(score, pictures):
    scores = score(pictures, PROMPTS)
    assert scores.shape == (5,)
    assert scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 100)).all()
    order = [3, 0, 4, 1, 2]
    again = score(pictures[order], [PROMPTS[i] for i in order])
    np.testing.assert_allclose(again, scores[order], atol=1e-3)


def test_a_negative_cosine_scores_zero(score, pictures):
    scores = score(pictures, PROMPTS)
    score.model.text_projection.weight.neg_()
    flipped = score(pictures, PROMPTS)
    assert (scores > 0).all()
    assert (flipped == 0).all()


def test_same_again_and_in_other_batches(score, clip_folder, pictures):
    scores = score(pictures, PROMPTS)
    np.testing.assert_array_equal(score(pictures, PROMPTS), scores)
    np.testing.assert_allclose(open_clip_text(str(clip_folder), batch=2)(pictures, PROMPTS), scores, atol=1e-3)


def test_long_prompts_are_cut(score, pictures):
    head = "a " * 14  # with both ends, the sixteen tokens that the model takes
    np.testing.assert_allclose(score(pictures, [head + "b " * 400] * 5), score(pictures, [head + "c"] * 5), atol=1e-3)


@pytest.mark.parametrize("prompts", [["a"], ["a"] * 6, [], "abcde", ["a", "b", None, "c", "d"], [1, 2, 3, 4, 5]])
def test_not_one_text_a_picture(score, pictures, prompts):
    with pytest.raises(BadValue, match="prompt"):
        score(pictures, prompts)


def test_a_tokenizer_with_another_end_is_refused(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "other-end")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="ends texts with token 7, and its tokenizer with 53"):
        open_clip_text(str(copy))


def test_no_tokenizer_is_refused(clip_folder, tmp_path):
    copy = shutil.copytree(
        clip_folder, tmp_path / "mute", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*")
    )
    with pytest.raises(BadModel, match="tokenizer"):
        open_clip_text(str(copy))


def test_another_model_is_refused(dinov2_folder):
    with pytest.raises(BadModel, match="type 'dinov2', not 'clip'"):
        open_clip_text(str(dinov2_folder))


def test_name_and_opening_by_text(score, clip_folder, pictures):
    opened = open_scorer(f"clip:{clip_folder}")
    assert opened.name == score.name
    assert opened.name.startswith("clip:tiny-clip@")
    assert opened.name.endswith("[crop, bicubic 32]")
    np.testing.assert_array_equal(opened(pictures, PROMPTS), score(pictures, PROMPTS))


def test_embeddings_have_unit_length_and_give_the_scores(score, pictures):
    images, texts = score.embed_pictures(pictures), score.embed_prompts(PROMPTS)
    assert images.shape == texts.shape == (5, 12)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(score(pictures, PROMPTS), 100 * (images * texts).sum(axis=1), atol=1e-3)


def test_nothing_to_score(score, pictures):
    with pytest.raises(BadValue, match="uint8"):
        score(pictures[:0], [])
