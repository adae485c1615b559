"""Joins the metrics of several processes into one exposition of Prometheus's text format."""

import re
from collections.abc import Mapping
from typing import Final

_SAMPLE: Final = re.compile(rb"([a-zA-Z_:][\w:]*)(\{(.*)\})?( .+)")


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """All samples, each with a label `replica` that names where it comes from. The samples of one metric follow one
    another, behind its help and type, as the format wants it.
    """
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for replica, text in expositions.items():
        family = b""
        for line in text.splitlines():
            if line.startswith(b"# "):
                _, kind, family, *_ = line.split(b" ", 3)
                head = heads.setdefault(family, [])
                if not any(known.startswith(b"# %s " % kind) for known in head):
                    head.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, replica.encode()))
    return b"".join(line + b"\n" for family, head in heads.items() for line in (*head, *samples.get(family, ())))


def _labelled(line: bytes, replica: bytes) -> bytes:
    found = _SAMPLE.fullmatch(line)
    assert found is not None, line  # noqa: S101 - our own exposition
    name, _, labels, value = found.groups()
    return b'%s{%sreplica="%s"}%s' % (name, labels + b"," if labels else b"", replica, value)
