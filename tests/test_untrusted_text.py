"""Text of a corpus, a prompt, a model or a foreign run directory is shown as text wherever it goes, and does nothing there."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, needs_browser

sys.path.insert(0, str(Path(__file__).parent))
from nbformat.v4 import new_markdown_cell, new_output  # noqa: E402
from run_fixture import add_notebook, executed, html_output, make_run  # noqa: E402

from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.report.drawing import drawing  # noqa: E402
from gpt2_nb_utils.report.readme import fill_readme  # noqa: E402
from gpt2_nb_utils.report.report import build_report  # noqa: E402
from gpt2_nb_utils.text import one_line, visible  # noqa: E402

ACTS = [
    char for char in map(chr, range(160)) if not char.isprintable() and char not in "\n\t"
] + list("\u202e\u2066\u200f\u2028\ufeff")


@pytest.fixture
def visit(browser):
    """Opens a file; what it did besides showing itself is in `.did`."""
    context = browser.new_context(offline=True)

    def open_page(path: Path):
        page = context.new_page()
        page.did = []
        page.on(
            "request",
            lambda request: (
                page.did.append(request.url)
                if request.url != path.resolve().as_uri() and not request.url.startswith("data:")
                else None
            ),
        )
        page.on("dialog", lambda dialog: (page.did.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: page.did.append(message.text))
        page.on("pageerror", lambda error: page.did.append(str(error)))
        page.on("popup", lambda popup: page.did.append("popup"))
        page.goto(path.resolve().as_uri())
        for link in page.locator(
            "main a:not([href$='.html']):not([href$='.html#Glossary']):not([href^='#'])"
        ).all():
            link.click(no_wait_after=True)
        page.wait_for_timeout(100)
        return page

    yield open_page
    context.close()


# --- a whole run on a hostile text ------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    "name", ["index", "01_tokenization", "02_model", "03_training", "04_results", "05_space"]
)
def test_a_page_of_the_report_shows_the_text_and_does_nothing(finished, visit, name):
    page = visit(finished[0].report / f"{name}.html")
    assert page.did == [] and page.title() != "broken"
    assert (
        page.locator(
            "script, iframe, meta[http-equiv=refresh], [onerror], [onload], [href^=javascript]"
        ).count()
        == 0
    )
    shown = " ".join(page.locator("main").inner_text().replace("·", " ").split())
    assert "script" in shown and (
        name == "02_model" or "document.title" in shown and "onerror=alert(" in shown
    )
    assert not set(page.locator("main").inner_text()) & set(ACTS)


def test_the_log_and_the_samples_hold_nothing_that_a_terminal_acts_on(finished):
    directory, done = finished
    for text in (
        directory.log.read_text(encoding="utf-8"),
        directory.samples.read_text(encoding="utf-8"),
        done.stdout,
        done.stderr,
    ):
        assert not set(text) & set(ACTS)
    assert "alert(1)" in directory.samples.read_text(encoding="utf-8")


def test_the_command_sample_prints_nothing_that_a_terminal_acts_on_whatever_its_encoding(finished):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gpt2_nb_utils",
            "sample",
            str(finished[0]),
            "--prompt=\x1b[2J ♞ \x9b2J\u202eabc\r\x07",
            "--max_new_tokens=2",
        ],
        cwd=PROJECT,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"\u241b[2J \u265e \x9b2J\u202eabc")
    assert not set(done.stdout.decode("ascii")) & set(ACTS)


def test_an_error_about_a_hostile_name_is_one_harmless_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gpt2_nb_utils",
            "train",
            "--input_file=\x1b[2J\nerror: all is well\r\x9b",
            f"--out_dir={tmp_path / 'run'}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
    ), done.stderr


def test_the_readme_keeps_hostile_text_in_its_blocks(finished, tmp_path):
    readme = tmp_path / "README.md"
    markers = "\n".join(
        f"<!--AUTO:{name}:START-->\n<!--AUTO:{name}:END-->"
        for name in ("SUMMARY", "PLOT", "LOGS", "METRICS", "SAMPLES", "REPRO")
    )
    readme.write_text(markers, encoding="utf-8")
    assert fill_readme(finished[0], readme) and not fill_readme(finished[0], readme)
    text = readme.read_text(encoding="utf-8")
    assert text.count("<!--AUTO:") == 12 and not set(text) & set(ACTS)


# --- tables --------------------------------------------------------------------------------------------------------------


def test_the_metrics_hold_numbers_only(finished):
    with finished[0].metrics.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert len(rows) >= 3 and all(float(cell) >= 0 for cells in rows for cell in cells if cell)


# --- a run directory of somebody: its notebooks may hold any HTML -----------------------------------------------------------

FORGED = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "<details open ontoggle=alert(1)>x</details>",
    "<!--><meta http-equiv=refresh content='0;url=https://example.org/1'>-->",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[><img src=x onerror=alert(1)>]]>",
    "<?x ><img src=//example.org/2 onerror=alert(1)>?>",
    "<svg><style><meta http-equiv=refresh content='0;url=https://example.org/3'></style></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "<xmp><p title='</xmp><img src=x onerror=alert(1)>'></xmp>",
    "<textarea><p title='</textarea><img src=x onerror=alert(1)>'></textarea>",
    "<title><p title='</title><img src=x onerror=alert(1)>'></title>",
    "<select><style></select><img src=x onerror=alert(1)></style></select>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<svg><a xlink:href='javascript:alert(1)'><text y=20>link</text></a></svg>",
    "<svg><a><animate attributeName=href values='javascript:alert(1)'/><text y=20>link</text></a></svg>",
    "<a href='&#106;avascript:alert(1)'>link</a>",
    "<a href=' java\nscript:alert(1)'>link</a>",
    "<a href='vbscript:x'>link</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>link</a>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<object data='javascript:alert(1)'></object>",
    "<embed src='https://example.org/4'>",
    "<base href='https://example.org/5/'>",
    "<link rel=stylesheet href='https://example.org/6'>",
    "<style>@import 'https://example.org/7';</style>",
    "<style>p { background: url(https://example.org/8) }</style><p>styled</p>",
    "<p style='background: url(https://example.org/9)'>styled</p>",
    "<p style=\"background-image: image-set('https://example.org/10' 1x)\">styled</p>",
    "<style>p { background: \\75 rl(https://example.org/11) }</style>",
    "<img srcset='https://example.org/12 1x'>",
    "<picture><source srcset='https://example.org/13'><img></picture>",
    "<video poster='https://example.org/14'></video>",
    "<svg><image href='https://example.org/15'/></svg>",
    "<svg><use href='https://example.org/16#x'/></svg>",
    "<svg><feImage href='https://example.org/17'/></svg>",
    "<input type=image src='https://example.org/18'>",
    "<table background='https://example.org/19'><tr><td>x</table>",
    "</div></main></body></html><script>alert(1)</script>",
    "<button onclick=alert(1) autofocus onfocus=alert(1)>press</button>",
    "<p id=content>clobbered</p>",
    "<template><script>alert(1)</script></template>",
]


_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="90pt" height="90pt" viewBox="0 0 90 90"{}>{}</svg>'
)
FORGED_SVG = [
    _SVG.format("", content)
    for content in (
        "<script>alert(1)</script>",
        "<g onclick='alert(1)'/>",
        "<foreignObject><img xmlns='http://www.w3.org/1999/xhtml' src='x' onerror='alert(1)'/></foreignObject>",
        "<img xmlns='http://www.w3.org/1999/xhtml' src='x' onerror='alert(1)'/>",
        "<a xlink:href='javascript:alert(1)'><text y='9'>x</text></a>",
        "<use xlink:href='https://example.org/30#x'/>",
        "<image xlink:href='https://example.org/31'/>",
        "<image xlink:href='data:image/svg+xml,x'/>",
        "<g><defs><g id='a'><path d='M 0 0'/></g></defs><use xlink:href='#a'/><set attributeName='x'/></g>",
        "<rect style='fill: url(https://example.org/32)'/>",
        "<rect fill='url(&quot;https://example.org/33&quot;)'/>",
        "<rect style='background: url(//example.org/34)'/>",
        "<rect style='fill: \\75rl(//example.org/35)'/>",
        "<path d='M 0 0&quot; onload=&quot;alert(1)'/>",
        "<feImage href='https://example.org/36'/>",
        "<animate attributeName='href' values='javascript:alert(1)'/>",
        "<text x='1' class='skip'>x</text>",
        "<" + "g>" * 1 + "<g>" * 2000 + "</g>" * 2001,
    )
] + [
    _SVG.format(" onload='alert(1)' viewBox='0 0 1 1'", ""),  # an attribute twice: no XML
    "<!DOCTYPE svg [<!ENTITY a 'x'><!ENTITY b '&a;&a;&a;'>]>" + _SVG.format("", "<text>&b;</text>"),
    _SVG.format("", "<g>"),
    "no picture",
]


@pytest.mark.parametrize("svg", FORGED_SVG, ids=range(len(FORGED_SVG)))
def test_what_matplotlib_does_not_write_is_no_drawing(svg):
    assert drawing(svg, "x") is None


def test_text_of_a_drawing_is_text():
    hostile = "&lt;script>alert(1)&lt;/script> \u202ex"
    drawn = drawing(_SVG.format(" onload='alert(1)'", f"<text>{hostile}</text>"), '"><script>')
    assert "<script" not in drawn and "onload" not in drawn and "\\u202e" in drawn
    assert drawn.count('"') % 2 == 0 and "&lt;script&gt;" in drawn


@needs_browser
def test_forged_drawings_in_a_notebook_do_nothing(tmp_path, visit):
    run = make_run(tmp_path / "run")
    outputs = (new_output("display_data", {"image/svg+xml": svg}) for svg in FORGED_SVG)
    add_notebook(run, "01_tokenization.ipynb", [executed("x", output) for output in outputs])
    build_report(run)
    path = run.report / "01_tokenization.html"
    whole = path.read_text(encoding="utf-8")
    begin = whole.index("<meta http-equiv")
    path.write_text(whole[:begin] + whole[whole.index(">", begin) + 1 :], encoding="utf-8")
    page = visit(path)
    assert page.did == [] and page.locator("main svg").count() == 0


@needs_browser
def test_forged_html_in_a_notebook_does_nothing_even_without_the_content_security_policy(
    tmp_path, visit
):
    run = make_run(tmp_path / "run")
    titled = "# Title <img src=//example.org/20 onerror=alert(1)> <a href='javascript:alert(2)'>link</a>\n\n[link](javascript:alert(3)) <b onclick=alert(4)>b</b>"
    add_notebook(
        run,
        "01_tokenization.ipynb",
        [
            new_markdown_cell(titled),
            *(executed("x", html_output(fragment)) for fragment in FORGED),
            *(new_markdown_cell(fragment) for fragment in FORGED),
            executed(
                "x",
                new_output(
                    "display_data",
                    data={
                        "text/latex": "$\\href{javascript:alert(1)}{x} <img src=x onerror=alert(1)>$"
                    },
                ),
            ),
            executed(
                "x",
                new_output(
                    "display_data",
                    data={
                        "image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
                    },
                ),
            ),
            executed(
                "x",
                new_output(
                    "display_data", data={"image/png": 'no base64 "><script>alert(1)</script>'}
                ),
            ),
            executed(
                "x",
                new_output(
                    "stream",
                    name="stdout",
                    text="HALF A PAIR \x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07 \x1b[31m<img src=x onerror=alert(1)>",
                ),
            ),
        ],
    )
    notebook = run.notebooks / "01_tokenization.ipynb"
    notebook.write_text(
        notebook.read_text(encoding="utf-8").replace("HALF A PAIR", "\\ud800"), encoding="utf-8"
    )
    build_report(run)
    path = run.report / "01_tokenization.html"
    whole = path.read_text(encoding="utf-8")
    begin = whole.index("<meta http-equiv")
    path.write_text(whole[:begin] + whole[whole.index(">", begin) + 1 :], encoding="utf-8")
    assert "Content-Security-Policy" not in path.read_text(encoding="utf-8")
    page = visit(path)
    assert page.did == [] and page.url == path.resolve().as_uri()
    assert page.locator("script, [onerror], [onload], [onclick], [href^=javascript]").count() == 0
    assert page.locator("nav[aria-label='Previous and next page']").count() == 1


# --- the two ways to make a text harmless -----------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ACTS, ids=ascii)
def test_no_character_that_acts_remains(character):
    for text in (
        visible(f"a{character}b"),
        one_line(f"a{character}b"),
        str(UserError(f"a{character}b")),
    ):
        assert character not in text and text[0] == "a" and text[-1] == "b" and text.isprintable()


def test_plain_text_of_any_language_stays_as_it_is():
    text = "Müller, 日本語, עברית, ☃ 👩‍👩‍👧:\n\tline"
    assert visible(text) == text and one_line("Müller, 日本語, עברית") == "Müller, 日本語, עברית"
