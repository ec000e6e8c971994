"""What may stand in a self-contained page: no script, nothing fetched, headings in order.

The page's content security policy forbids the same things; taking them out as well keeps the browser's
console empty and dead boxes off the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString

from gpt2_nb_utils.text import visible

_DROPPED = (
    "script iframe frame object embed applet link meta base noscript template audio video portal "
    "xmp plaintext noembed noframes textarea title animate set"
).split()
_UNWRAPPED = "form html body head main".split()
_FETCHING = "src srcset poster background action formaction data ping manifest".split()
# A backslash could spell any of the others.
_FETCHING_CSS = re.compile(
    r"@import|url\(\s*[\"']?(?!\s*[\"']?(?:data:|#))|expression\(|image-set\(|src\(|\\",
    re.IGNORECASE,
)
_HEADINGS = re.compile(r"h[1-6]")


@dataclass
class Outline:
    """The headings and ids that a page has so far, over all its fragments."""

    level: int = 0
    title: str = ""
    """HTML of the page's title: the first heading, when it is of level 1; it is taken out of its fragment."""
    sections: list[tuple[str, str]] = field(default_factory=list)
    """(id, text) of the headings of level 2, for the contents list."""
    ids: set[str] = field(default_factory=set)


def safe_html(fragment: str, outline: Outline, pages: dict[str, str] | None = None) -> str:
    """The fragment, balanced and without anything that would run or be fetched.

    Args:
        fragment: HTML from a Markdown cell or an output.
        outline: the page's headings; the fragment's are added, and their levels made to follow.
        pages: where links to these files lead now, such as `{"02_model.ipynb": "02_model.html"}`.
    """
    soup = BeautifulSoup(fragment, "html.parser")
    for text in soup.find_all(string=True):
        if isinstance(text, PreformattedString):
            # Comments, CDATA, doctypes: a browser may end them sooner, and see tags behind.
            text.extract()
        elif (harmless := visible(text)) != text:
            text.replace_with(harmless)
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_UNWRAPPED):
        tag.unwrap()
    for tag in soup.find_all("style"):
        css = tag.get_text()
        # Inside a drawing a browser reads a style as tags.
        if "<" in css or tag.find_parent(["svg", "math"]) or _FETCHING_CSS.search(css):
            tag.decompose()
    for tag in soup.find_all(True):
        _disarm(tag, pages or {})
    # After all were disarmed: the title leaves with all that is in it.
    for tag in soup.find_all(True):
        if not tag.decomposed:
            _order(tag, outline)
    for table in soup.select("table:not(table table)"):
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "Table"}
        table.wrap(soup.new_tag("div", attrs=box))
    for code in soup.select("pre:not([tabindex])"):
        code["tabindex"] = "0"
    return str(soup)


def _disarm(tag: Tag, pages: dict[str, str]) -> None:
    """Take out of the tag what would run, be fetched or lead nowhere."""
    tag.attrs = {
        name: value for name, value in tag.attrs.items() if _may_stay(tag, name, str(value))
    }
    if tag.name == "a" and "href" in tag.attrs:
        target = str(tag["href"]).strip()
        file = target.rpartition("/")[2]
        if file in pages and "://" not in target:
            tag["href"] = pages[file]
        elif re.match(r"https?://|mailto:", target, re.IGNORECASE):
            tag["rel"] = "noopener noreferrer"
        elif not target.startswith("#"):
            del tag["href"]  # a file beside the notebook is not beside the report
    elif tag.name == "th" and not tag.get_text(strip=True) and not tag.find("img"):
        tag.name = "td"  # an empty corner heads nothing; screen readers would announce it
        tag.attrs.pop("scope", None)
    elif tag.name == "img" and "src" in tag.attrs:
        tag.attrs.setdefault("alt", "")
    elif tag.name == "img":
        description = tag.get("alt") or "no description"
        tag.name, tag.attrs = "span", {"class": "missing"}
        tag.string = f"[image not part of the report: {description}]"


def _may_stay(tag: Tag, name: str, value: str) -> bool:
    """Whether an attribute neither runs nor fetches anything; where links lead is looked at later."""
    if name.endswith("href") or name in _FETCHING:
        inline = value.strip().lower().startswith("data:image/") and name in ("src", "href")
        return (
            (inline and tag.name in ("img", "image"))
            or (tag.name, name) == ("a", "href")
            or (name.endswith("href") and value.startswith("#"))
        )
    return not name.startswith("on") and not (name == "style" and _FETCHING_CSS.search(value))


def _order(tag: Tag, outline: Outline) -> None:
    """Give the tag an id of its own, and a heading a level that follows the one before it."""
    if tag.get("id") in outline.ids:
        del tag["id"]
    if _HEADINGS.fullmatch(tag.name):
        text = " ".join(tag.get_text(" ").split())
        level = int(tag.name[1])
        if level == 1 and outline.level == 0:
            outline.title, outline.level = tag.decode_contents(), 1
            tag.decompose()
            return
        level = max(2, min(level, outline.level + 1))  # one page, one title
        tag.name, outline.level = f"h{level}", level
        if "id" not in tag.attrs:
            name = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
            tag["id"] = f"{name}-{len(outline.ids)}" if name in outline.ids else name
        if level == 2:
            outline.sections.append((str(tag["id"]), text))
    if "id" in tag.attrs:
        outline.ids.add(str(tag["id"]))
