import ast
import base64
import copy
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from pages import HOSTILE, JUNK, hostile_copy, parse, paths, titles, visible

import dither.report
from dither.errors import BadCheckpoint
from dither.report import render, write
from dither.report.page import SCRIPTS, STYLES


def test_shows_the_numbers(result):
    shown = " ".join(visible(render([result])).split())
    mean = result["psnr_db"]["mean"]
    for part in (
        "1.80× smaller",
        "8.17 bits per weight",
        "8.90 over the whole model",
        f"{mean:.1f} dB",
        "full precision against itself reaches 59.6 dB",
        "unrelated pictures 11.4 dB",
        "36 of 39",
        "int_mm",
        "1.23× as fast",
        "59.60",
        "11.40",
        "0.0667",  # LPIPS
        "Minimum detectable difference",
        "precision and recall need 1000 pictures",
        "08080808080808080808080808080808",
        "DDIMScheduler",
        "2 processes, 1 thread each",
    ):
        assert part in shown, part
    assert "transformer_blocks.5.ff.net.2" in shown
    assert "first layer : pos_embed.proj" in shown
    assert "dither quantize zoo:fashion -o smoothquant-w8a8" in shown
    assert "dither eval smoothquant-w8a8 --against zoo:fashion" in shown
    assert '"alpha": 0.5' in shown


def test_sections_are_in_order(result):
    assert titles(render([result])) == [
        "Pictures", "Size and quality", "How close is every picture", "Guards of quality",
        "Along the trajectory", "Layers over timesteps", "Bits by layer", "Activation ranges", "The plan",
        "How to reproduce",
    ]  # fmt: skip


def test_older_results_still_open(result):
    for new in ("trajectory", "activation_ranges", "guards", "speed", "memory", "skipped", "digests", "commands"):
        del result[new]
    page = render([result | {"schema": 1, "lpips": None, "scheduler": None, "executor": None}])
    assert "Drift" in visible(page)
    assert "Guards of quality" not in titles(page)
    assert "dither eval smoothquant-w8a8 --against zoo:fashion" in visible(page)


def test_several_results_share_one_table(result, other_result):
    page = render([result, other_result])
    overview = page[: page.index("<article")]
    assert overview.count('<tr class="quantized">') == 2
    assert overview.count('<tr class="reference">') == 3
    assert page.count("<article") == 2
    assert page.count('role="tab"') == page.count('role="tabpanel"') == 2
    assert "compare only rows of one kind" not in page
    other_result["seed"] = 5
    assert "compare only rows of one kind" in render([result, other_result])


def test_a_comparison_expands_into_its_results(comparison):
    page = render([comparison])
    shown = " ".join(visible(page).split())
    assert titles(page)[:5] == [
        "Size against quality", "All numbers", "The same pictures in every result", "Pair by pair",
        "Along the trajectory",
    ]  # fmt: skip
    assert page.count("<article") == 6
    assert "Rank, PSNR" in shown
    assert "3–4" in shown
    assert "undecided" in shown
    assert "smoothquant w4a8 or dither w4a8" in shown or "dither w4a8 or smoothquant w4a8" in shown


def test_what_is_doubtful_is_said(result, other_result):
    clean, doubtful = visible(render([result])), visible(render([other_result]))
    for title in ("Simulated.", "Skipped."):
        assert title in doubtful
        assert title not in clean
    assert "no speed is claimed" in " ".join(doubtful.split())
    result["psnr_db"]["ci95"] = [30.0, 36.0]
    assert "known to 6.0 dB only with 64 pictures" in " ".join(visible(render([result])).split())


def test_policy_allows_only_the_inlined_style_and_script(result):
    page = render([result])
    tags = parse(page).tags
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attrs in tags:
        assert "style" not in attrs, tag
        assert not any(name.startswith("on") for name in attrs), tag
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith(("data:", "#")), tag


def test_hostile_text_stays_text(result):
    hostile = hostile_copy(result) | {"kind": "eval", "schema": 2}
    del hostile["versions"][HOSTILE]
    page = render([hostile])
    clean, dirty = parse(render([result])), parse(page)
    assert [tag for tag, _ in dirty.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attrs in dirty.tags for name in attrs)
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert HOSTILE in html.unescape(page)
    data = re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)[0]["heatmap"]["layers"][0] == HOSTILE
    assert json.loads(data)[0]["ranges"]["layers"][0] == HOSTILE


def test_hostile_comparison_stays_text(comparison):
    hostile = hostile_copy(comparison) | {"kind": "compare", "schema": 2}
    hostile["results"] = [hostile_copy(r) | {"kind": "eval", "schema": 2} for r in comparison["results"][:3]]
    dirty = parse(render([hostile]))
    clean = parse(render([comparison]))
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert not any(name.startswith("on") for _, attrs in dirty.tags for name in attrs)


@pytest.mark.parametrize(
    "source", ["https://example.org/x.png", "javascript:alert(1)", "data:text/html,x", 'data:image/png;base64,"><b>', 3]
)
def test_pictures_can_only_be_inlined_png_or_webp(result, source):
    result["images"] = [{**result["images"][0], "quantized": source}]
    page = render([result])
    assert "<b>" not in page or 'base64,"><b>' not in page
    if not str(source).startswith("data:image/png"):
        assert "These results hold no pictures." in page


def test_any_missing_or_mistyped_key_leaves_a_page(result, other_result):
    for big in (result, other_result):
        del big["layers"]["rows"][3:-1], big["images"], big["psnr_db"]["per_image"][5:]
        for part, keys in (("layer_snr", ["layers", "db"]), ("activation_ranges", ["layers", "low", "high", "rms"])):
            for key in keys:
                del big[part][key][2:]
    for index, path in enumerate(paths(result)):
        if path[0] in {"kind", "schema"}:
            continue
        for offset in range(3):  # every kind of junk many times over, not every kind at every place
            junk = JUNK[(5 * index + offset) % len(JUNK)]
            partial = copy.deepcopy(result)
            place = partial
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            with_other = index % 4 == 0
            assert "</html>" in render([partial, other_result] if with_other else [partial]), (path, junk)


@pytest.mark.parametrize("junk", JUNK)
def test_any_mistyped_picture_leaves_a_page(result, junk):
    assert "</html>" in render([result | {"images": junk}])
    for key in list(result["images"][0]):
        result["images"][0][key] = junk
        assert "</html>" in render([result])


@pytest.mark.parametrize("key", ["ranks", "pairs"])
@pytest.mark.parametrize("junk", [*JUNK, [{"metric": "psnr_db", "a": 0, "b": 0}], {"psnr_db": [[1], "x", None]}])
def test_any_mistyped_comparison_leaves_a_page(comparison, key, junk):
    comparison["results"] = [{k: r[k] for k in ("kind", "schema", "psnr_db", "size")} for r in comparison["results"]]
    assert "</html>" in render([comparison | {key: junk}])


def test_empty_result_says_what_is_missing():
    page = render([{"kind": "eval", "schema": 1}])
    parse(page)
    for note in ("hold no pictures", "do not list the layers", "do not say how"):
        assert note in page
    assert "None" not in visible(page)
    assert "nan" not in visible(page)


def test_write_is_atomic_and_names_files(tmp_path, result):
    source, out = tmp_path / "eval.json", tmp_path / "report.html"
    source.write_text(json.dumps(result | {"model": "lone surrogate \ud800"}))
    write([source], out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "bad.json").write_text("{}")
    before = out.read_bytes()
    with pytest.raises(BadCheckpoint, match=r"bad\.json"):
        write([source, tmp_path / "bad.json"], out)
    assert out.read_bytes() == before
    with pytest.raises(BadCheckpoint, match=r"cannot write .*nowhere"):
        write([source], tmp_path / "nowhere" / "report.html")
    with pytest.raises(BadCheckpoint, match="cannot write"):
        write([source], source / "report.html")
    assert {path.name for path in tmp_path.iterdir()} == {"eval.json", "bad.json", "report.html"}


def test_nothing_to_report_is_refused(result):
    with pytest.raises(BadCheckpoint, match="at least one"):
        render([])
    with pytest.raises(BadCheckpoint, match="result 2"):
        render([result, {"kind": "other"}])


def test_report_imports_no_torch():
    for path in Path(dither.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("dither.") or node.module.startswith(
                    ("dither.report", "dither.errors")
                )
                assert node.module.split(".")[0] not in {"torch", "numpy", "PIL"}
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"torch", "numpy", "PIL", "dither"}


def test_every_file_of_the_page_is_used():
    """What lies in the folders is in the page, so nothing dead is shipped."""
    root = Path(dither.report.__file__).parent
    assert {path.name for path in (root / "static").iterdir()} == {*STYLES, *SCRIPTS}
    templates = {path.name: path.read_text(encoding="utf-8") for path in (root / "templates").iterdir()}
    named = set(re.findall(r'(?:include|import) "([^"]+)"', " ".join(templates.values())))
    assert named | {"page.html"} == set(templates)
    for path in [*root.glob("static/*"), *root.glob("templates/*")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.name
