import ast
import base64
import copy
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

import dither.report
from dither.errors import BadCheckpoint
from dither.report import render, write
from dither.report.charts import _ticks
from dither.report.form import byte_size

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&${x}"


class Parser(html.parser.HTMLParser):
    """Collects every tag with its attributes, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page: str) -> Parser:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def visible(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def test_shows_the_numbers(result):
    shown = " ".join(visible(render([result])).split())
    mean = result["psnr_db"]["mean"]
    for part in (
        "3.67× smaller",
        "8.17 bits per weight",
        f"{mean:.1f} dB",
        "36 of 39",
        "torch_int_mm",
        "59.60",
        "11.40",
    ):
        assert part in shown
    assert "transformer_blocks.5.ff.net.2" in shown
    assert "first layer : pos_embed.proj" in shown
    assert "dither eval fashion-w8a8 --against zoo:fashion" in shown
    assert '"alpha": 0.5' in shown


def test_sections_are_in_order(result):
    page = render([result])
    titles = re.findall(r"<h2>([^<]+?) ?<", page)
    assert titles == [
        "Pictures", "Size and quality", "How close is every picture", "Layers over timesteps", "Drift", "The plan",
        "How to reproduce",
    ]  # fmt: skip


def test_several_results_share_one_table(result, other_result):
    page = render([result, other_result])
    assert page.count('class="quantized"') == 2
    assert page.count('class="reference"') - page.count('line class="reference"') == 3
    assert page.count("<article") == 2
    assert "compare only rows of one kind" not in page
    other_result["seed"] = 5
    assert "compare only rows of one kind" in render([result, other_result])


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


def hostile_copy(value):
    if isinstance(value, dict):
        return {key: hostile_copy(entry) for key, entry in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile_copy(entry) for entry in value]
    return HOSTILE if isinstance(value, str) and not value.startswith("data:") else value


def test_hostile_text_stays_text(result):
    hostile = hostile_copy(result) | {"kind": "eval", "schema": 1}
    del hostile["versions"][HOSTILE]
    page = render([hostile])
    clean, dirty = parse(render([result])), parse(page)
    assert [tag for tag, _ in dirty.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attrs in dirty.tags for name in attrs)
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert HOSTILE in html.unescape(page)
    data = re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)[0]["layers"][0] == HOSTILE


@pytest.mark.parametrize(
    "source", ["https://example.org/x.png", "javascript:alert(1)", "data:text/html,x", 'data:image/png;base64,"><b>', 3]
)
def test_pictures_can_only_be_inlined_png_or_webp(result, source):
    result["images"] = [{**result["images"][0], "quantized": source}]
    page = render([result])
    assert "<b>" not in page or 'base64,"><b>' not in page
    if not str(source).startswith("data:image/png"):
        assert "These results hold no pictures." in page


def paths(value, prefix=()):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield (*prefix, key)
            yield from paths(entry, (*prefix, key))


def test_any_missing_or_mistyped_key_leaves_a_page(result):
    for path in list(paths(result)):
        if path[0] in {"kind", "schema"}:
            continue
        for junk in (None, "text", 7, [], {}, [None], [{}], float("inf"), True):
            partial = copy.deepcopy({key: value for key, value in result.items() if key != "images"})
            if path[0] == "images":
                partial["images"] = junk
            else:
                place = partial
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = junk
            assert "</html>" in render([partial]), (path, junk)


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


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [(0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (9.4, 61.6, 8, [10, 20, 30, 40, 50, 60]), (-3, 3, 3, [-2, 0, 2])],
)
def test_ticks_are_round(low, high, count, expected):
    assert _ticks(low, high, count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "–"), (12, "12 B"), (1500, "1.50 kB"), (4.2e6, "4.20 MB"), (123e6, "123 MB"), (2.7e9, "2.70 GB")],
)
def test_byte_size(count, shown):
    assert byte_size(count) == shown
