"""What may stand in a self-contained page: no script, nothing fetched, headings in order.

The page's content security policy forbids the same things; taking them out as well keeps the browser's
console empty and dead boxes off the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString
from markupsafe import Markup

from gpt2_nb_utils.text import visible

# With `style`: inside a drawing a browser reads it as tags.
_DROPPED = (
    "script style iframe frame object embed applet link meta base noscript template audio video portal "
    "xmp plaintext noembed noframes textarea title animate set"
).split()
_UNWRAPPED = "form html body head main".split()
_FETCHING = "src srcset poster background action formaction data ping manifest".split()
_INLINE = (("img", "src"), ("image", "href"))
"""Tags and attributes that may hold a picture, as a `data:` URL."""
# A backslash could spell any of the others.
_FETCHING_CSS = re.compile(
    r"@import|url\(\s*[\"']?(?!\s*[\"']?(?:data:|#))|expression\(|image-set\(|src\(|\\",
    re.IGNORECASE,
)


def safe_html(fragment: str, pages: Mapping[str, str] | None = None) -> str:
    """The fragment, balanced and without anything that would run or be fetched.

    Args:
        fragment: HTML from a Markdown cell or an output.
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
    for tag in soup.find_all(True):
        _disarm(tag, pages or {})
    for table in soup.select("table:not(table table)"):
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "Table"}
        table.wrap(soup.new_tag("div", attrs=box))
    for code in soup.select("pre:not([tabindex])"):
        code["tabindex"] = "0"
    return str(soup)


def _disarm(tag: Tag, pages: Mapping[str, str]) -> None:
    """Take out of the tag what would run, be fetched or lead nowhere."""
    tag.attrs = {
        name: value for name, value in tag.attrs.items() if _may_stay(tag, name, str(value))
    }
    if tag.name == "a" and "href" in tag.attrs:
        target = str(tag["href"]).strip()
        file, _, section = target.rpartition("/")[2].partition("#")
        if file in pages and "://" not in target:
            tag["href"] = f"{pages[file]}#{section}" if section else pages[file]
        elif not re.match(r"https?://|mailto:|#", target, re.IGNORECASE):
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
    if (tag.name, name) in _INLINE:
        return value.strip().lower().startswith("data:image/")
    if name.endswith("href") or name in _FETCHING:
        return (tag.name, name) == ("a", "href") or value.startswith("#")
    return not name.startswith("on") and not (name == "style" and _FETCHING_CSS.search(value))


def in_order(
    content: str, level: int = 0, ids: Iterable[str] = ()
) -> tuple[Markup, Markup, list[tuple[str, str]]]:
    """The content of a page with headings whose levels follow each other, and with no id twice.

    Args:
        content: safe HTML.
        level: of the heading before it; 0 where the first of level 1 is the title of the page.
        ids: those that are taken.

    Returns:
        The content without its title, the title, and (id, text) of the headings of level 2.
    """
    soup = BeautifulSoup(content, "html.parser")
    taken, title, sections = set(ids), "", []
    for tag in soup.find_all(True):
        if tag.decomposed:  # it was in the title
            continue
        if tag.get("id") in taken:
            del tag["id"]
        if re.fullmatch("h[1-6]", tag.name):
            text = " ".join(tag.get_text(" ").split())
            if tag.name == "h1" and level == 0:
                title, level = tag.decode_contents(), 1
                tag.decompose()
                continue
            level = max(2, min(int(tag.name[1]), level + 1))  # one page, one title
            tag.name = f"h{level}"
            if "id" not in tag.attrs:
                name = text.replace(" ", "-") or "section"  # as in JupyterLab: links lead there too
                tag["id"] = f"{name}-{len(taken)}" if name in taken else name
            if level == 2:
                sections.append((str(tag["id"]), text))
        taken.add(tag.get("id"))
    return Markup(soup), Markup(title), sections
