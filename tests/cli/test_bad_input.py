"""One test for each bad input that the command line promises to name in one sentence."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def change(file, edit):
    """Rewrite a safetensors file with its tensors edited in place."""
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def nothing_written(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(("out", ".out"))] == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--recipe gptqq", ["gptqq", "rtn", "smoothquant"]),
        ("--set gptq.damp=1", ["gptq", "assign"]),
        ("--set rtn.damp=1", ["rtn", "damp"]),
        ("--set rtn", ["rtn", "STAGE.FIELD=VALUE"]),
        ("--set assign.weight.bits=many", ["assign.weight", "many"]),
        ("--set assign.weight.bits=9", ["9"]),
        ("--set assign.exclude=(", ["assign.exclude"]),
        ("--bits w9a8", ["w9a8"]),
        ("--bits w0", ["w0"]),
        ("--bits fp4", ["fp4", "fp8"]),
        ("--recipe gptq --bits fp8", ["gptq", "fp8", "smoothquant"]),
        ("--bits fp8 --set assign.weight.bits=4", ["assign.weight", "bits"]),
        ("--bits eight", ["eight"]),
        ("--set assign.weight.group=5", ["transformer_blocks.0.attn1.to_q", "5", "16"]),
        ("--set assign.exclude=.", ["rtn", "full precision"]),
        ("--recipe-file nowhere.json", ["nowhere.json"]),
        ("--recipe smoothquant --samples 0", ["0"]),
        ("--recipe smoothquant --steps 0", ["0"]),
        ("--prompts nowhere.txt", ["nowhere.txt"]),
    ],
)
def test_quantize_options(dither, refused, model, tmp_path, options, names):
    refused(dither(f"quantize {model} -o out {options}"), *names)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{", "recipe.json"),
        ("[" * 100_000, "recipe.json"),
        ("[]", "list"),
        ('{"name": "mine", "bits": "w4", "stages": [{"stage": "magic"}]}', "magic"),
        ('{"name": "mine", "bits": "w4", "stages": [{"stage": "rtn", "speed": 3}]}', "speed"),
        ('{"name": "mine", "bits": "w4", "stages": [], "code": "import os"}', "code"),
    ],
)
def test_recipe_file(dither, refused, model, tmp_path, text, name):
    (tmp_path / "recipe.json").write_text(text)
    refused(dither(f"quantize {model} -o out --recipe-file recipe.json"), name)
    assert nothing_written(tmp_path)


def test_bits_with_a_recipe_file(dither, refused, model, tmp_path):
    (tmp_path / "recipe.json").write_text(dither("recipes rtn").stdout)
    refused(dither(f"quantize {model} -o out --recipe-file recipe.json --bits w4"), "--bits")


@pytest.mark.parametrize(
    "command", ["quantize {} -o out", "inspect {}", "sample {} -o out.png", "eval {} --against {}"]
)
@pytest.mark.parametrize("name", ["nowhere", "zoo:nothing", "nobody/nothing", "readme.txt", "empty"])
def test_what_is_no_model(dither, refused, tmp_path, command, name):
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    refused(dither(command.format(name, name)), name.removeprefix("zoo:"))
    assert nothing_written(tmp_path)


def test_family_nobody_knows(dither, refused, model, tmp_path):
    config = model / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "MysteryTransformer2DModel"}))
    refused(dither(f"quantize {model} -o out"), "MysteryTransformer2DModel")
    assert nothing_written(tmp_path)


def test_truncated_weights(dither, refused, model, packed, tmp_path):
    for folder in (model, packed):
        file = folder / WEIGHTS
        file.write_bytes(file.read_bytes()[:-100])
        refused(dither(f"inspect {folder}"), "diffusion_pytorch_model.safetensors")
    refused(dither(f"quantize {model} -o out"), "diffusion_pytorch_model.safetensors")
    assert nothing_written(tmp_path)


def test_header_that_lies(dither, refused, model):
    (model / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    refused(dither(f"inspect {model}"), "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("command", ["inspect {}", "sample {} -o out.png -n 2 --steps 1", "eval {} --against {}"])
def test_flipped_byte_of_a_checkpoint(dither, refused, packed, tmp_path, command):
    data = bytearray((packed / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (packed / WEIGHTS).write_bytes(data)
    refused(dither(command.format(packed, packed)), "digest")
    assert nothing_written(tmp_path)


def test_plan_that_names_other_layers(dither, refused, packed):
    config = packed / "transformer/config.json"
    config.write_text(config.read_text().replace("transformer_blocks.1.ff", "transformer_blocks.7.ff"))
    refused(dither(f"inspect {packed}"), "plan")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(dither, refused, model, tmp_path, value):
    name = "transformer_blocks.1.ff.net.2.weight"
    change(model / WEIGHTS, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    refused(dither(f"quantize {model} -o out"), name)
    assert nothing_written(tmp_path)


def test_calibration_that_is_not_finite(dither, refused, model, tmp_path):
    name = "transformer_blocks.0.attn1.to_q.weight"
    change(model / WEIGHTS, lambda tensors: tensors[name].fill_(1e38))  # finite; its products are not
    refused(dither(f"quantize {model} -o out --recipe smoothquant --samples 2 --steps 2"), "NaN or infin")
    assert nothing_written(tmp_path)


def test_output_that_is_in_use(dither, refused, model, packed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me too")
    refused(dither(f"quantize {model} -o out"), "out", "not empty")
    refused(dither(f"quantize {model} -o file"), "file")
    before = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
    refused(dither(f"quantize {model} -o {model}"), model.name)
    assert {p: p.read_bytes() for p in model.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_quantized_already(dither, refused, packed, tmp_path):
    refused(dither(f"quantize {packed} -o out"), packed.name, "quantized already")
    assert nothing_written(tmp_path)


def test_below_a_file(dither, refused, model, tmp_path):
    (tmp_path / "file").write_text("")
    refused(dither(f"quantize {model} -o file/out"), "file")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("-o out.jpg", "out.jpg"),
        ("-o out.png --npz out.txt", "out.txt"),
        ("-o out.png -n 0", "0"),
        ("-o out.png --steps 0", "0"),
        ("-o out.png --batch-size 0", "0"),
        ("-o out.png --classes cat", "cat"),
        ("-o out.png --classes 0,77", "77"),
        ("-o out.png --classes 1 --prompts p.txt", "--prompts"),
        ("-o out.png --json .", "--json"),
    ],
)
def test_sample_options(dither, refused, model, tmp_path, options, name):
    (tmp_path / "p.txt").write_text("a cat\n")
    refused(dither(f"sample {model} -n 4 --steps 2 {options}"), name)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    "condition", ["psnr", "psnr<", "psnr<x", "psnr==3", "__import__('os')", "pnsr<30", "psnr<1e999"]
)
def test_condition_that_cannot_be_read(dither, refused, packed, model, monkeypatch, condition):
    monkeypatch.setattr("dither.measure.comparison.run", lambda *a, **k: pytest.fail("it sampled first"))
    refused(dither(f"eval {packed} --against {model} -n 2 --fail-if", condition), condition)


def test_condition_about_what_was_not_measured(dither, refused, packed, model, tmp_path):
    refused(
        dither(f"eval {packed} --against {model} -n 2 --steps 1 --json e.json --fail-if fd<1"), "fd.to_full_precision"
    )
    assert json.loads((tmp_path / "e.json").read_text())["n"] == 2  # the work is not lost


def test_eval_of_what_cannot_be_compared(dither, refused, packed, model):
    refused(dither(f"eval {model} --against {model} -n 2 --steps 1"), model.name, "not quantized")
    refused(dither(f"eval {packed} --against zoo:digits -n 2 --steps 1"), packed.name, "digits")
    refused(dither(f"eval {packed} --against {model} -n 1"), "1")
    refused(dither(f"eval {packed} --against {model} -n 2 --json ."), "--json")


def test_pictures_of_no_numbers(dither, refused, packed, model):
    change(model / WEIGHTS, lambda tensors: tensors["proj_out_2.weight"].fill_(3e38))
    refused(dither(f"eval {packed} --against {model} -n 2 --steps 2"), "NaN")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "[" * 100_000,
        '{"kind": "eval"}',
        '{"kind": "eval", "schema": 99}',
        "\x00",
        '"\ud800"',
    ],
)
def test_report_of_what_is_no_result(dither, refused, tmp_path, text):
    (tmp_path / "r.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(dither("report r.json -o out.html"), "r.json")
    assert nothing_written(tmp_path)


def test_report_of_hostile_results(dither, tmp_path):
    evil = "<script>alert(1)</script>"
    hostile = {
        "kind": "eval",
        "schema": 1,
        "model": evil,
        "checkpoint": evil,
        "command": evil,
        "psnr_db": {"mean": evil},
    }
    hostile |= {"images": [{"full_precision": "javascript:alert(1)"}], "layers": 5, "size": [], "kernels": {evil: evil}}
    (tmp_path / "r.json").write_text(json.dumps(hostile))
    result = dither("report r.json -o out.html")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "out.html").read_text()
    assert evil not in page
    assert 'src="javascript:' not in page


def test_report_of_nothing(dither, refused):
    refused(dither("report nowhere.json -o out.html"), "nowhere.json")


def test_unknown_recipe_to_print(dither, refused):
    refused(dither("recipes magic"), "magic")
    refused(dither("recipes rtn --bits w99"), "w99")


@pytest.mark.parametrize(
    "words", ["", "nothing", "quantize", "eval", "sample zoo:digits", "quantize zoo:digits -o x --seed a"]
)
def test_usage(dither, words):
    result = dither(words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_original_checkpoint_with_code_in_it(dither, refused, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"x_embedder.proj.weight": Evil()}, tmp_path / "DiT-XL-2-256x256.pt")
    result = dither("inspect DiT-XL-2-256x256.pt")
    refused(result, "DiT-XL-2-256x256.pt")
    assert "run" not in result.stdout


def test_hub_is_not_waited_for(dither, refused):
    sentence = refused(dither("inspect nobody/nothing"), "nobody/nothing", "HF_HUB_OFFLINE")
    assert len(sentence) < 250
