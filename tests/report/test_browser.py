"""The page in a real browser, offline: it loads nothing, says nothing on the console, and its controls do what they say."""

import json
import re
import shutil

import pytest

from dither.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]

CONTRAST = """(selector) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => { colours.forEach((c) => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); });
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = (parts) => parts.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector), behind = [];
  for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
  const style = getComputedStyle(element), ink = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [light(rgb([...behind, ink])), light(rgb(behind))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page; at the end nothing was requested and nothing was said on the console."""
    said, asked, contexts = [], [], []

    def visit(results, *, width=1280, scheme="light", motion="no-preference"):
        path = tmp_path / "report.html"
        path.write_text(render(results), encoding="utf-8")
        context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion=motion
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == len(contexts)


def test_every_picture_is_there(visit, comparison):
    page = visit([comparison])
    counts = page.evaluate("[...document.images].map((i) => i.complete && i.naturalWidth > 0)")
    assert all(counts)
    assert len(counts) > 6 * 24
    assert page.locator(".sheet button").count() == 7 * 10


def test_pictures_are_compared(visit, result):
    page = visit([result])
    over, stage = page.locator(".over"), page.locator(".stage")
    assert page.evaluate("getComputedStyle(document.querySelector('.over')).imageRendering") == "pixelated"
    page.locator(".slide").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert over.evaluate("(e) => e.style.clipPath") == "inset(0px 99.5% 0px 0px)"
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert float(page.locator(".slide").input_value()) == pytest.approx(80, abs=1)
    page.get_by_role("button", name="Difference ×8").click()
    assert over.evaluate("(e) => getComputedStyle(e).mixBlendMode") == "difference"
    page.get_by_role("button", name="Flicker").click()
    for wanted in ("hidden", "visible", "hidden"):  # it turns by itself
        playwright.expect(over).to_have_css("visibility", wanted, timeout=3000)


def test_flicker_stands_still_for_who_wants_less_motion(visit, result):
    page = visit([result], motion="reduce")
    button, over = page.get_by_role("button", name="Flicker"), page.locator(".over")
    button.click()
    page.wait_for_timeout(800)
    assert over.evaluate("(e) => e.style.visibility") == "visible"
    button.click()
    assert over.evaluate("(e) => e.style.visibility") == "hidden"
    page.locator(".stage").click()
    assert over.evaluate("(e) => e.style.visibility") == "visible"


def test_worst_come_first_and_go_back(visit, result):
    page = visit([result])
    shown = lambda: page.evaluate("[...document.querySelectorAll('.thumb')].map((t) => Number(t.dataset.psnr))")  # noqa: E731
    before = shown()
    assert before != sorted(before)
    page.get_by_role("button", name="Worst first").click()
    assert shown() == sorted(before)
    assert "one of the worst" in page.locator(".viewer .caption").inner_text()
    page.locator(".thumb").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".thumb").nth(1).get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Worst first").click()
    assert shown() == before


def test_table_sorts_both_ways(visit, comparison):
    page = visit([comparison])
    table = page.locator("table.sortable").first
    head = table.locator("th", has_text="PSNR, dB")
    at = head.evaluate("(e) => [...e.parentElement.children].indexOf(e)")
    column = f"(t) => [...t.tBodies[0].rows].map((r) => r.children[{at}].dataset.sort ?? null)"
    for direction, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = table.evaluate(column)
        known = [float(value) for value in values if value is not None]
        assert known == sorted(known, reverse=reverse)
        assert len(known) == 8
        assert values[-1] is None, "what is unknown stays last"


def test_heatmap_says_what_is_under_the_pointer_and_the_keys(visit, result):
    page = visit([result])
    cells, tip, snr = page.locator(".cells"), page.locator("#tip"), result["layer_snr"]
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 3)
    assert tip.inner_text() == f"{snr['layers'][0]}\ntimestep 0: {snr['db'][0][-1]:.1f} dB"
    cells.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert tip.inner_text().startswith(f"{snr['layers'][1]}\ntimestep {snr['timesteps'][-2]:.0f}: ")
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_charts_speak_to_the_keyboard(visit, comparison):
    page = visit([comparison])
    chart, tip = page.locator(".chooser svg.chart:visible").first, page.locator("#tip")
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("rtn w8a8\nPSNR ")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("rtn w6a8\nPSNR ")
    page.get_by_role("button", name="SSIM").first.click()
    assert page.locator("[data-shown=psnr_db]").first.is_hidden()
    assert page.locator("[data-shown=ssim]").first.is_visible()
    page.locator(".chooser svg.chart:visible .point").nth(2).hover()
    assert "rtn w4a8\nSSIM 0.9567" in tip.inner_text()


def test_ranges_of_a_chosen_layer_are_drawn(visit, result):
    page = visit([result])
    sparks, caption = page.locator(".sparks button"), page.locator(".ranges .caption")
    assert sparks.count() == 36
    first = caption.inner_text()
    before = page.locator(".ranges .large .band").get_attribute("points")
    sparks.nth(20).click()
    assert caption.inner_text() != first
    assert page.locator(".ranges .large .band").get_attribute("points") != before


def test_tabs_open_one_result(visit, result, other_result):
    page = visit([result, other_result])
    tabs, articles = page.get_by_role("tab"), page.locator("article")
    assert [articles.nth(i).is_visible() for i in range(2)] == [True, False]
    tabs.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert [articles.nth(i).is_visible() for i in range(2)] == [False, True]
    page.locator(".sheet button").nth(12).click()  # the second picture of the first result: row 1 of 3, 10 columns
    assert articles.nth(0).is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_page_never_scrolls_sideways(visit, comparison, width):
    comparison["results"] = comparison["results"][:3]
    page = visit([comparison], width=width)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate(overflow) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(visit, result, scheme):
    page = visit([result, result], scheme=scheme)
    for selector in (
        ".verdict", ".verdict b", ".note", "h2 small", ".card .small", "td.num", "td small", "tr.reference td",
        "svg .tick", ".pill", ".db", ".badge", "thead button", ".facts dt", "footer", ".side",
    ):  # fmt: skip
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    first = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_maps_can_be_read_in_both_themes(visit, mixed_result, scheme):
    for i, row in enumerate(mixed_result["layers"]["rows"][:7]):
        row["by_time"] = [{"low": 0.0, "high": 1.0, "weight_bits": 2 + i, "act_bits": 8}]
    page = visit([mixed_result], scheme=scheme)
    shades = [f".map .w{bits}" for bits in range(2, 9)] + [f".map .h{shade}" for shade in range(7)]
    for selector in (
        *shades,
        ".widths .w5",
        ".widths .w6",
        ".widths span",
        ".map tfoot td",
        ".note .s0",
        ".note .s1",
        ".balance .place",
        ".lead b",
    ):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [360, 1280])
def test_maps_fit_a_phone(visit, mixed_result, width):
    page = visit([mixed_result], width=width)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    for region in page.locator(".scroll:has(.map):visible").all():
        assert region.evaluate("(e) => e.scrollWidth - e.clientWidth") == 0, "a map of quarters needs no scrolling"


def test_sensitivity_is_chosen_and_balance_sorted(visit, mixed_result):
    page = visit([mixed_result])
    page.get_by_role("button", name="a4 visual").click()
    shown = page.locator(".chooser [data-shown] table.map:visible")
    assert shown.count() == 1
    assert shown.locator("caption").inner_text().endswith("a4 visual")
    table = page.locator("table.balance")
    values = "(t) => [...t.tBodies[0].rows].map((r) => Number(r.children[2].dataset.sort))"
    first = table.evaluate(values)
    assert first == sorted(first, reverse=True), "the worst come first"
    table.locator("th", has_text="Worst quarter").get_by_role("button").click()
    assert table.evaluate(values) == sorted(first)


def test_prints(visit, other_result):
    page = visit([other_result], scheme="dark")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 14
    assert page.evaluate("document.documentElement.style.colorScheme") == "", "the theme comes back after printing"


def test_partial_and_hostile_results_run_clean(visit, result):
    hostile = "</script><script>document.documentElement.dataset.hacked=1</script><img src=x onerror=alert(1)>"
    result["model"] = result["recipe"]["name"] = result["images"][0]["label"] = hostile
    result["layer_snr"]["layers"][0] = result["activation_ranges"]["layers"][0] = hostile
    page = visit([result, json.loads(json.dumps(result))])
    assert page.evaluate("document.documentElement.dataset.hacked") is None
    cells = page.locator(".cells").first
    cells.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#tip").inner_text().startswith(hostile)
    visit([{"kind": "eval", "schema": 1}, {"kind": "eval", "schema": 2}])


def test_first_key_skips_to_the_content(visit, result):
    page = visit([result])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
