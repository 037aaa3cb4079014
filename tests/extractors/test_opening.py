import numpy as np
import pytest

from dither import zoo
from dither.errors import BadModel, BadValue, DitherError
from dither.extractors import EXTRACTORS, SCORERS, named, open_extractor, open_scorer

HOSTILE = ["", ":", "clip:", "clip: ", "zoo", "zoo:", "CLIP", "clip2", "resnet", "inception:", " clip", "os.system:ls",
           "__import__('os')", "n" * 5000, "\0", "external:x"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_an_unknown_extractor_lists_what_there_is(text):
    with pytest.raises(BadValue, match="There is no feature extractor") as caught:
        open_extractor(text)
    assert all(kind in str(caught.value) for kind in EXTRACTORS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", ":", "clip:", "dinov2", "external", "external: ", "image-reward:", "x" * 5000])
def test_an_unknown_scorer_lists_what_there_is(text):
    with pytest.raises(BadValue, match="There is no prompt scorer") as caught:
        open_scorer(text)
    assert all(kind in str(caught.value) for kind in SCORERS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["zoo:nothing", "zoo:../digits", "zoo:/etc", "zoo:\0"])
def test_an_unknown_zoo_model(text):
    with pytest.raises(BadModel, match="There is no zoo model"):
        open_extractor(text)


@pytest.mark.parametrize("text", ["clip:/no/such", "dinov2:../x", "clip:a/b/c", "zoo:nothing", "inception:/no/such"])
def test_every_error_is_one_sentence_for_people(text):
    with pytest.raises(DitherError) as caught:
        open_extractor(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fashion", "fashion-hard", "digits"])
def test_the_zoo_network_under_its_name(name):
    network, _ = zoo.load_features(name)
    extract = open_extractor(f"zoo:{name}")
    channels = {"fashion": 1, "fashion-hard": 1, "digits": 1}[name]
    grey = np.random.default_rng(0).integers(0, 256, (4, 28, 28, channels), np.uint8)
    features, logits = extract(grey)
    wanted = network(grey)
    np.testing.assert_array_equal(features, wanted[0])
    np.testing.assert_array_equal(logits, wanted[1])
    assert extract.name == f"zoo:{name.removesuffix('-hard')}"  # they share it
    with pytest.raises(BadValue, match="of 1 channels, not 3"):
        extract(np.repeat(grey, 3, axis=-1))
    with pytest.raises(BadValue, match="uint8"):
        extract(grey / 255)


def test_any_function_under_a_name(pictures):
    extract = named(lambda images: (images.reshape(len(images), -1)[:, :4].astype(np.float64), None), "first pixels")
    features, logits = extract(pictures)
    assert extract.name == "first pixels"
    assert features.shape == (5, 4)
    assert logits is None


@pytest.mark.parametrize("name", ["", "  "])
def test_a_function_without_a_name_is_refused(name):
    with pytest.raises(BadValue, match="needs a name"):
        named(lambda images: (images, None), name)
