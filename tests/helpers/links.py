"""Links and ids of a page."""

import base64
from html.parser import HTMLParser
from pathlib import Path


class Links(HTMLParser):
    """Addresses of all links and pictures of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for address in (value for name, value in attrs if name in ("src", "href") and value):
            kind, _, content = address.partition(",")
            if kind == "data:image/png;base64":
                self.pictures.append(base64.b64decode(content))
            else:
                self.found.append(address)
