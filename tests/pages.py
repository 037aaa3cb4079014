"""A page as tests read it: tags that nest, text that is shown, and results that are hostile or broken."""

import html
import html.parser
import re

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&${x}"


class Parser(html.parser.HTMLParser):
    """Collects every tag with its attributes, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page: str) -> Parser:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def visible(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def titles(page):
    return re.findall(r"<h2>([^<]+?) ?<", page)


def hostile_copy(value):
    if isinstance(value, dict):
        return {key: hostile_copy(entry) for key, entry in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile_copy(entry) for entry in value]
    return HOSTILE if isinstance(value, str) and not value.startswith("data:") else value


def paths(value, prefix=()):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield (*prefix, key)
            yield from paths(entry, (*prefix, key))


JUNK = (None, "text", 7, [], {}, [None], [{}], [[]], float("inf"), True, -1e300, 0)
