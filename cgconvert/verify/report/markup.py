"""Elements of XML and HTML built as a tree, so that no text gets into them unescaped."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

__all__ = ["clean", "element"]

# All but what XML 1.0 allows (section 2.2, Char): a file's name may hold any of these.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(tag: str, *children: str | Element | None, **attributes: object) -> Element:
    """An element with its text and children in order; a child or attribute of None is left out.

    Underscores in an attribute's name become hyphens, one at its end is dropped (`class_`).
    """
    made = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): clean(str(value))
            for name, value in attributes.items()
            if value is not None
        },
    )
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif child is not None and last is None:
            made.text = (made.text or "") + clean(child)
        elif child is not None and last is not None:
            last.tail = (last.tail or "") + clean(child)
    return made


def clean(text: str) -> str:
    """Characters that no XML document may hold, as Python's escapes of them."""
    return _FORBIDDEN.sub(lambda m: ascii(m[0])[1:-1], text)
