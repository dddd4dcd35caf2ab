"""Reports as a test reads them: headings, tables, facts and charts."""

import json
from html.parser import HTMLParser

_VOID = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Reads an HTML file.

    Attributes:
        tags: Every element: its name and attributes.
        text: What a reader sees, in order.
        tables: By caption the rows, head first, as lists of text.
        facts: By name what is said.
        charts: What is drawn, as the page holds it.
    """

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.text, self.tables, self.facts, self.scripts = [], [], {}, {}, []
        self._open, self._held, self._caption = [], [], ""
        self._term = ""
        self.feed(self.source)
        self.close()
        self.charts = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag in ("caption", "th", "td", "dt", "dd"):
            self._held = []
        if tag == "tr":
            self.tables[self._caption].append([])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        text = "".join(self._held)
        if tag == "caption":
            self._caption = text
            self.tables[text] = []
        elif tag in ("th", "td"):
            self.tables[self._caption][-1].append(text)
        elif tag == "dt":
            self._term = text
        elif tag == "dd":
            self.facts[self._term] = text

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts.append(data)
        elif "style" not in self._open:
            self._held.append(data)
            self.text.append(data)

    @property
    def said(self):
        """All text."""
        return " ".join(self.text)
