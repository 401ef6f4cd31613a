"""What all our pages have in common: they need nothing but themselves, and claim no more than they
can.
"""

import re
from html.parser import HTMLParser

from stillhouse.audit.words import FORBIDDEN


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def needs_nothing_but_itself(written, beside=()):
    """No script, nothing fetched, every element closed; links go to places of the page, or to the
    files `beside` it.
    """
    page = Page(written)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    followed = [v for name, v in page.attributes if name in ("src", "href", "srcset", "action")]
    assert [v for v in followed if not (v or "").startswith("#")] == list(beside)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in written
    assert not re.search(r"url\(", written)
    assert "default-src 'none'; style-src 'unsafe-inline'" in written
    assert page.open == []


def claims_no_more_than_it_can(written):
    """No word of certainty or guilt."""
    said = Page(written).text.lower()
    assert not re.search(rf"\b({'|'.join(FORBIDDEN)}|guarantees?)", said)
