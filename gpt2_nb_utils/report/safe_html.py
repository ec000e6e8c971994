"""What may stand in a self-contained page: no script, nothing fetched, headings in order.

It knows HTML. It deliberately does not know where a fragment comes from. The page's content security policy
forbids the same things; taking them out as well keeps the browser's console empty and dead boxes off the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString

from gpt2_nb_utils.text import visible

_DROPPED = (
    "script",
    "iframe",
    "frame",
    "object",
    "embed",
    "applet",
    "link",
    "meta",
    "base",
    "noscript",
    "template",
    "audio",
    "video",
    "portal",
    "xmp",
    "plaintext",
    "noembed",
    "noframes",
    "textarea",
    "title",
    "animate",
    "set",
)
_UNWRAPPED = ("form", "html", "body", "head", "main")
_FETCHING = (
    "src",
    "srcset",
    "poster",
    "background",
    "action",
    "formaction",
    "data",
    "ping",
    "manifest",
)
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
    for aside in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        aside.extract()  # comments, CDATA, doctypes: a browser may end them sooner than this parser, and see tags behind
    for text in soup.find_all(string=True):
        if (harmless := visible(text)) != text:
            text.replace_with(harmless)
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_UNWRAPPED):
        tag.unwrap()
    for tag in soup.find_all("style"):
        if (
            "<" in tag.get_text()
            or tag.find_parent(["svg", "math"])
            or _FETCHING_CSS.search(tag.get_text())
        ):
            tag.decompose()  # inside a drawing a browser reads a style as tags
    for tag in soup.find_all(True):
        _disarm(tag, pages or {})
    for tag in soup.find_all(
        True
    ):  # after all were disarmed: the title leaves with all that is in it
        if not tag.decomposed:
            _order(tag, outline)
    for table in soup.find_all("table"):
        if table.find_parent("table") is None:
            box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "Table"}
            table.wrap(soup.new_tag("div", attrs=box))
    for code in soup.find_all("pre"):
        code.attrs.setdefault("tabindex", "0")
    return str(soup)


def _disarm(tag: Tag, pages: dict[str, str]) -> None:
    """Take out of the tag what would run, be fetched or lead nowhere."""
    for name in list(tag.attrs):
        value = str(tag.attrs[name])
        inline_image = tag.name in ("img", "image") and value.strip().lower().startswith(
            "data:image/"
        )
        if (
            name.startswith("on")
            or (name == "style" and _FETCHING_CSS.search(value))
            or (name in _FETCHING and not inline_image)
            or (
                name.endswith("href")
                and (tag.name, name) != ("a", "href")
                and not inline_image
                and not value.startswith("#")
            )
        ):
            del tag.attrs[name]
    if tag.name == "a" and "href" in tag.attrs:
        target = str(tag["href"]).strip()
        if target.rpartition("/")[2] in pages and "://" not in target:
            tag["href"] = pages[target.rpartition("/")[2]]
        elif re.match(r"https?://|mailto:", target, re.IGNORECASE):
            tag["rel"] = "noopener noreferrer"
        elif not target.startswith("#"):
            del tag["href"]  # a file beside the notebook is not beside the report
    if tag.name == "th" and not tag.get_text(strip=True) and not tag.find("img"):
        tag.name = "td"  # an empty corner heads nothing; screen readers would announce it
        tag.attrs.pop("scope", None)
    if tag.name == "img":
        if "src" not in tag.attrs:
            tag.name, tag.string = (
                "span",
                f"[image not part of the report: {tag.get('alt') or 'no description'}]",
            )
            tag.attrs = {"class": "missing"}
        else:
            tag.attrs.setdefault("alt", "")


def _order(tag: Tag, outline: Outline) -> None:
    """Give the tag an id of its own, and a heading a level that follows the one before it."""
    if "id" in tag.attrs and tag["id"] in outline.ids:
        del tag.attrs["id"]
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
            tag["id"] = _free_id(
                re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section", outline.ids
            )
        if level == 2:
            outline.sections.append((str(tag["id"]), text))
    if "id" in tag.attrs:
        outline.ids.add(str(tag["id"]))


def _free_id(wish: str, taken: set[str]) -> str:
    name, number = wish, 2
    while name in taken:
        name, number = f"{wish}-{number}", number + 1
    return name
