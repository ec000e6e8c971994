"""The report in a real browser with the network off: nothing fetched, nothing run, nothing wider than a phone, and no barrier."""

import base64
import io
import os
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from conftest import needs_browser
from matplotlib.figure import Figure
from nbformat.v4 import new_output

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import (  # noqa: E402
    FAILING,
    HOSTILE,
    TOKENIZATION,
    add_audit,
    add_notebook,
    add_token_losses,
    execute_notebook,
    executed,
    html_output,
    make_run,
)

from gpt2_nb_utils.figures.html import shifted_pair  # noqa: E402
from gpt2_nb_utils.model.display import code_of  # noqa: E402
from gpt2_nb_utils.report.report import LARGEST_PAGE, build_report  # noqa: E402
from gpt2_nb_utils.tokenization.bpe import encode  # noqa: E402
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.events import samples_text
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.training.step import training_step  # noqa: E402

pytestmark = needs_browser
PAGES = ("index.html", "tokens.html", "01_tokenization.html", "03_training.html")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with one notebook that ran and one that failed, both really executed."""
    run = add_audit(
        make_run(tmp_path_factory.mktemp("runs") / "sanity"),
        "sha256 " + "0123456789abcdef" * 4,
        ok=False,
    )
    add_token_losses(run, measured=[0, 1, 2, 9, 10])
    execute_notebook(run, "01_tokenization.ipynb", TOKENIZATION)
    execute_notebook(run, "03_training.ipynb", FAILING)
    return build_report(run).parent


@pytest.fixture
def visit(browser, report):
    """Opens a page of the report; what it asked for and complained about is in `.asked` and `.said`."""
    contexts = []

    def open_page(name, width=1200, **options):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        )
        page = contexts[-1].new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto((report / name).resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_but_itself_and_complains_of_nothing(visit, name):
    page = visit(name)
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    assert page.said == []


@pytest.mark.parametrize("width", [320, 400])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_a_phone(visit, name, width):
    page = visit(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_wide_code_tables_and_formulas_scroll_in_their_own_boxes(visit):
    page = visit("01_tokenization.html", width=400)
    overflows = (
        "box => [...document.querySelectorAll(box)].some(e => e.scrollWidth > e.clientWidth)"
    )
    for box in (".output .scroll", ".formula"):
        assert page.evaluate(overflows, box), box


@pytest.mark.parametrize("width", [400, 1280])
def test_no_line_of_code_is_cut(visit, width):
    page = visit("01_tokenization.html", width=width)
    widths = page.evaluate(
        "[...document.querySelectorAll('.input pre')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert widths and all(whole <= shown for whole, shown in widths)


def test_the_contents_stay_beside_the_text(visit, printed):
    page = visit("01_tokenization.html", width=1280)
    box = page.locator(".contents").bounding_box()
    assert box["x"] + box["width"] <= page.locator(".notebook").bounding_box()["x"]
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    assert page.locator(".contents").bounding_box()["y"] >= 0


def test_the_curve_tells_the_values_of_the_point_that_is_pointed_at(visit):
    page = visit("index.html")
    page.locator(".wide").scroll_into_view_if_needed()
    texts = page.locator(".wide .point text")
    assert not texts.nth(9).is_visible()
    box = page.locator(".wide .point rect").nth(9).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert texts.nth(9).is_visible() and not texts.nth(10).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_drawn_figure_has_the_colours_of_its_page(visit, scheme):
    page = visit("index.html", color_scheme=scheme)
    ink, paper, drawn, behind = page.evaluate("""() => {
      const of = getComputedStyle, svg = document.querySelector('.wide svg');
      return [of(document.body).color, of(document.body).backgroundColor,
              [...svg.querySelectorAll('text')].map(e => of(e).fill), of(svg.querySelector('path')).fill]; }""")
    assert ink in drawn and behind == paper


def test_figures_can_be_read_on_a_phone(visit):
    page = visit("index.html", width=400)
    assert page.locator(".narrow").is_visible() and not page.locator(".wide").is_visible()
    heights = page.evaluate("""[...document.querySelectorAll('figure svg text')].filter(
      e => e.checkVisibility({visibilityProperty: true})).map(
      e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)""")
    level = [height for height in heights if height > 1]  # what is turned has no width here
    assert len(level) > 20 and min(level) > 6


def test_the_samples_of_a_step_are_chosen_without_a_script(visit, tmp_path):
    run = make_run(tmp_path / "run")
    samples = [Sample(step, 1, "All:", f"All: {step}", {}) for step in (0, 10, 20, 30)]
    run.samples.write_text(samples_text(samples), encoding="utf-8")
    page = visit(build_report(run).resolve())
    shown = page.locator(".sample:visible blockquote")
    assert [text.strip() for text in shown.all_inner_texts()] == ["All: 0", "All: 30"]
    page.locator(".picker label", has_text="10").click()
    assert [text.strip() for text in shown.all_inner_texts()] == ["All: 10", "All: 30"]
    page.keyboard.press("ArrowRight")
    assert [text.strip() for text in shown.all_inner_texts()] == ["All: 20", "All: 30"]


def test_a_cell_of_the_map_unfolds_its_window(visit, tmp_path):
    run = make_run(tmp_path / "run")
    add_token_losses(run, "Speak, speak. You are all resolved?\n" * 3_000, seq_len=128)
    page = visit(build_report(run).with_name("tokens.html").resolve())
    assert page.evaluate("document.documentElement.scrollHeight") < 6_000
    cell = page.locator(".part .strip a").nth(80)
    place = cell.get_attribute("href")
    assert not page.locator(place).is_visible()
    cell.click()
    assert page.locator(place).is_visible()
    assert 0 <= page.locator(place).bounding_box()["y"] < 900


def test_text_of_the_corpus_is_text(visit):
    page = visit("01_tokenization.html")
    assert page.title() == "Tokenization"  # the hostile line would have changed it
    assert " ".join(HOSTILE.split()) in " ".join(
        page.locator(".output.html").first.inner_text().split()
    )
    assert "<script>alert(1)</script>" in visit("03_training.html").locator(".error").inner_text()


def test_formulas_are_drawn(visit):
    page = visit("01_tokenization.html")
    heights = page.evaluate(
        "[...document.querySelectorAll('math')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) >= 5 and min(heights) > 5
    fraction = page.evaluate(
        "(() => { const [a, b] = document.querySelector('mfrac').children;"
        " return [a.getBoundingClientRect().bottom, b.getBoundingClientRect().top]; })()"
    )
    assert fraction[0] <= fraction[1]


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_drawn_and_has_an_alternative_text(visit, name):
    page = visit(name)
    pictures = page.evaluate("""[...document.querySelectorAll('img, svg')].filter(e => e.checkVisibility()).map(
      e => [e.alt ?? e.ariaLabel, e.naturalWidth ?? e.getBoundingClientRect().width])""")
    assert all(alt.strip() and width > 0 for alt, width in pictures)
    assert (
        len(pictures)
        == {"index.html": 4, "tokens.html": 0, "01_tokenization.html": 1, "03_training.html": 0}[
            name
        ]
    )


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_the_content_first_and_pages_link_to_each_other(visit, name):
    page = visit(name)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    links = [link.get_attribute("href") for link in page.locator("header a").all()]
    assert links == list(PAGES)
    assert page.locator("[aria-current=page]").get_attribute("href") == name


_CONTRASTS = """() => {
  const parse = c => { const v = c.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const light = v => v.slice(0, 3).map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
                      .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const v = parse(getComputedStyle(e).backgroundColor);
                        if (v[3] > .99) return v; } return [255, 255, 255, 1]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let n; n = walker.nextNode();) { const e = n.parentElement;
    if (!n.data.trim() || !e.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push(n.data.trim().slice(0, 40) + ' ' + (a + .05) / (b + .05)); }
  return found; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_word_stands_out_from_its_background(visit, name, scheme):
    assert visit(name, color_scheme=scheme).evaluate(_CONTRASTS) == []


@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_barrier(visit, name, width, scheme):
    page = visit(name, width=width, color_scheme=scheme, bypass_csp=True)
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15  # it did look
    assert [
        (each["id"], node["html"]) for each in found["violations"] for node in each["nodes"]
    ] == []


@pytest.mark.parametrize("width, height", [(1200, 800), (1366, 768)])
def test_the_answer_fits_one_screen(visit, width, height):
    page = visit("index.html", width=width)
    page.set_viewport_size({"width": width, "height": height})
    box = page.locator(".verdict").bounding_box()
    assert box["y"] + box["height"] <= height
    answers = page.locator(".answers dt").all_inner_texts()
    assert answers == [
        "Training loss",
        "Corpus",
        "Parameters",
        "Epochs",
        "Time",
        "Machine",
        "Run",
        "Audit",
    ]


_READOUT = "e => getComputedStyle(e, '::after').content"


def test_a_token_tells_its_loss_when_pointed_at(visit):
    for name in ("index.html", "tokens.html"):
        token = visit(name).locator("div.painted .b").first
        assert token.evaluate(_READOUT) == "none"
        token.hover()
        told = token.evaluate(_READOUT)
        assert token.get_attribute("data-l") in told and "probability 10 to 50 %" in told


def test_the_keyboard_stops_at_the_least_expected_tokens_of_the_first_page(visit):
    page = visit("index.html")
    page.locator("#tokens ~ p a").focus()
    told = []
    for _ in range(10):
        page.keyboard.press("Tab")
        told.append(
            page.evaluate(
                "[+document.activeElement.dataset.l, getComputedStyle(document.activeElement, '::after').content]"
            )
        )
    assert all(f"{loss:.2f}" in content for loss, content in told)
    shown = page.evaluate(
        "[...document.querySelectorAll('.excerpt [data-l]')].map(e => +e.dataset.l)"
    )
    assert max(shown) in [loss for loss, _ in told] and len(shown) > 10


def test_the_keyboard_goes_from_the_table_to_a_token_which_tells_its_loss_and_back(visit):
    page = visit("tokens.html")
    page.locator(".surprises a").nth(2).press("Enter")
    place = page.evaluate("document.activeElement.id")
    token = page.locator(f"#{place}")
    assert place.startswith("t") and token.get_attribute("data-l") in token.evaluate(_READOUT)
    page.keyboard.press("Enter")
    assert page.url.endswith(f"#r{place[1:]}")


def opened(visit, name):
    """Milliseconds until a page is loaded: of the first visit that takes less than a second, or the fastest of ten, for others share the machine."""
    times = []
    while len(times) < 10 and min(times, default=1000) >= 1000:
        times.append(
            visit(name).evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        )
    return min(times)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_at_once(visit, name):
    assert opened(visit, name) < 1000


def test_a_page_as_large_as_a_page_may_be_opens_at_once(visit, report, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "large")
    add_token_losses(
        run,
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 8_000,
        seq_len=128,
    )
    page = build_report(run).with_name("tokens.html")
    assert 2_500_000 < page.stat().st_size < LARGEST_PAGE
    assert opened(visit, page.resolve()) < 1000


def test_print_shows_what_a_screen_folds_away(visit, tmp_path):
    page = visit("01_tokenization.html")
    folded = page.locator("details.parameters .input")
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert (
        folded.is_visible() and folded.bounding_box()["height"] > 20
    )  # what is folded away has a height, too
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    assert os.path.getsize(tmp_path / "page.pdf") > 10_000


def test_on_paper_the_text_ends_after_its_first_part_and_says_so(visit):
    page = visit("tokens.html")
    assert page.locator(".on-screen-only").is_hidden() and page.locator(".part").nth(1).is_visible()
    page.emulate_media(media="print")
    assert page.locator(".part").nth(0).is_visible() and page.locator(".part").nth(1).is_hidden()
    assert page.locator(".on-screen-only").is_visible()


_PAPER = {"width": 673, "height": 986}
"""A4 within the margins of the style sheet, in CSS pixels. (A blank at the end of a painted line may hang over them.)"""
_BLOCKS = """() => [...document.querySelectorAll('main :not(.painted *)')].filter(e => e.checkVisibility()).map(e => [
  e.tagName, e.getBoundingClientRect().right, getComputedStyle(e).breakInside === 'avoid' ? e.getBoundingClientRect().height : 0])"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The report of a run whose notebook shows a tall picture, a row of tokens and long lines of code."""
    import torch

    run = make_run(tmp_path_factory.mktemp("runs") / "printed")
    add_token_losses(run)
    picture = io.BytesIO()
    Figure(figsize=(7, 12)).savefig(picture, format="png")
    shown = new_output("display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()})
    window = TokenDataset(
        torch.from_numpy(encode("First Citizen:\nBefore we proceed any further")), 8
    ).window(0)
    add_notebook(
        run,
        "02_model.ipynb",
        [
            executed("show()", shown),
            executed("pair()", html_output(shifted_pair(*window).data)),
            executed("code()", html_output(code_of(training_step).data)),
        ],
    )
    return build_report(run).parent


@pytest.mark.parametrize("name", ["index.html", "tokens.html", "02_model.html"])
def test_on_paper_nothing_is_cut_off_and_nothing_that_stays_together_leaves_half_a_page_empty(
    visit, printed, name
):
    page = visit((printed / name).resolve())
    page.set_viewport_size(_PAPER)
    page.emulate_media(media="print")
    blocks = page.evaluate(_BLOCKS)
    assert [(tag, right) for tag, right, _ in blocks if right > _PAPER["width"]] == []
    # What does not fit moves to the next page, and leaves its own height empty. The verdict stands on the first.
    assert [
        (tag, height)
        for tag, _, height in blocks
        if height > 0.4 * _PAPER["height"] and tag != "SECTION"
    ] == []
    assert (
        name != "02_model.html" or max(height for _, _, height in blocks) > 200
    )  # the picture is one of them


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_of_shown_code_stands_out_from_its_background(visit, printed, scheme):
    page = visit((printed / "02_model.html").resolve(), color_scheme=scheme)
    colours = page.locator(".output.html pre").last.evaluate(
        "e => new Set([...e.querySelectorAll('*')].map(e => getComputedStyle(e).color)).size"
    )
    assert colours > 4  # its words are coloured by what they are
    assert page.evaluate(_CONTRASTS) == []


def test_a_short_report_is_printed_on_few_pages(visit, printed, tmp_path):
    page = visit((printed / "index.html").resolve())
    pages = page.pdf(prefer_css_page_size=True).count(b"/Type /Page\n")
    assert 2 <= pages <= 5
