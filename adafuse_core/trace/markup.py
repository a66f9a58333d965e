"""Elements of HTML and SVG. All texts and attributes are escaped when a page is written, by the standard library."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

Child = str | Element


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """An element with texts and elements inside.

    Args:
        tag: Name of the element.
        children: Texts and elements, in order.
        attributes: Attributes by name; an underscore stands for a hyphen, and one at the end is left out (`class_`).
    """
    named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
    made = Element(tag, named)
    add(made, children)
    return made


def add(parent: Element, children: Iterable[Child]) -> None:
    """Append texts and elements to an element."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        else:
            parent.text = (parent.text or "") + child


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], **attributes: object) -> Element:
    """A table with a row of headings. The first cell of each row is its heading."""
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    body = element("tbody")
    for row in rows:
        first, *others = row
        body.append(element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others)))
    return element("div", element("table", element("thead", titles), body, **attributes), class_="scroll")


def written(page: Element) -> bytes:
    """A page as UTF-8. Characters that UTF-8 can't represent become question marks."""
    return ("<!doctype html>\n" + fragment(page)).encode("utf-8", "replace")


def fragment(part: Element) -> str:
    """A part of a page as text."""
    return ElementTree.tostring(part, encoding="unicode", method="html")
