"""What ships: names, sizes, provenance, and that unknown names are answered."""

import json

import pytest
import torch

from dither import zoo
from dither.errors import BadModel

MEGABYTE = 1_000_000


def test_names() -> None:
    assert {"digits", "fashion"} <= set(zoo.names())


@pytest.mark.parametrize("name", ["ghost", "ghost-hard", "", "../zoo", "fashion-hard-hard"])
def test_an_unknown_name_is_answered_with_those_that_exist(name: str) -> None:
    for ask in (zoo.load, zoo.path, zoo.load_features):
        with pytest.raises(BadModel, match=r"digits.*fashion"):
            ask(name)


def test_everything_together_is_small() -> None:
    total = sum(f.stat().st_size for name in zoo.names() for f in zoo.path(name).rglob("*") if f.is_file())
    assert total < 20 * MEGABYTE


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_is_complete(name: str) -> None:
    pipe = zoo.load(name)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    assert not pipe.transformer.training
    facts = json.loads((zoo.path(name) / "provenance.json").read_text())
    assert {"data", "data_licence", "commands", "steps", "minutes", "loss", "versions", "seed", "known_limits"} <= set(
        facts
    )


def test_hard_shares_the_folder_and_differs_in_weights() -> None:
    assert zoo.path("digits-hard") == zoo.path("digits")
    easy, hard = (zoo.load(n).transformer.transformer_blocks[0].attn1.to_v.weight for n in ("digits", "digits-hard"))
    assert not torch.allclose(easy, hard, rtol=0.5)
