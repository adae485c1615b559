"""The picture of a trace shows the spans that the service leaves."""

import re
from xml.etree import ElementTree as ET

from docs.trace_picture import PICTURE

_SPANS = {"POST /v2/rerank", "parse", "write", "cache get", "cache put", "tokenize", "queue", "inference", "pass"}


def test_the_picture_has_every_span_of_a_cascade() -> None:
    drawn = ET.fromstring(PICTURE.read_text(encoding="utf-8"))  # noqa: S314 - our own file
    texts = [text.text or "" for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    names = {re.sub(r" \(\d+\)$", "", text) for text in texts if not text.endswith(" ms")}
    assert names == _SPANS | {"member first", "member second"}
