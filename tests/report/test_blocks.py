"""Where a layer stands is read off its name."""

import pytest

from dither.report.blocks import block_of, block_spans, block_title, inner_name


@pytest.mark.parametrize(
    ("name", "block", "inner"),
    [
        ("transformer_blocks.3.attn1.to_out.0", "transformer_blocks.3", "attn1.to_out.0"),
        ("blocks.12", "blocks.12", "blocks.12"),
        ("proj_out", "", "proj_out"),
    ],
)
def test_names(name, block, inner):
    assert (block_of({"name": name}), inner_name(name)) == (block, inner)


def test_titles():
    assert block_title("b.3", "b.3", False) == "3"
    assert block_title("b.3", "b.6", False) == "3–6"
    assert block_title("single_transformer_blocks.3", "single_transformer_blocks.4", True) == "single transformer 3–4"
    assert block_title("", "", True) == "other"


def test_spans():
    assert block_spans(["b.0", "b.4", "b.3", "b.3", "b.2", ""]) == "0, 2-4"
    assert block_spans(["a.0", "c.1", "c.2"]) == "a 0; c 1-2"
    assert block_spans([""]) == "-"
