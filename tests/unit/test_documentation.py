"""Pages that are written from the code, and links between pages."""

import re
from pathlib import Path

import pytest

from docs.generate import TARGET, configuration_page

_ROOT = Path(__file__).parents[2]
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md"), *(_ROOT / "models").rglob("*.md")]
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def test_the_configuration_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == configuration_page(), "run: python -m docs.generate"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
