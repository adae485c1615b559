"""docs/ builds as a site whose links all lead somewhere (`make docs`)."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs.readability import ROOT


def _build(folder: Path) -> "subprocess.CompletedProcess[str]":
    config = folder / "mkdocs.yml"
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for ours, here in {
        "docs_dir: docs": f"docs_dir: {ROOT / 'docs'}",
        "site_dir: build/site": f"site_dir: {folder / 'site'}",
        "[docs/site_pages.py]": f"[{ROOT / 'docs' / 'site_pages.py'}]",
        "paths: [app]": f"paths: [{ROOT / 'app'}]",
    }.items():
        assert ours in text, ours
        text = text.replace(ours, here)
    config.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.slow
def test_the_site_builds_and_holds_the_seams(tmp_path: Path) -> None:
    done = _build(tmp_path)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="api/"' in start, "README's links lead to the site's pages"
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    assert "AnyPairScorer" in reference
    loaded = [line for line in start.splitlines() if 'src="http' in line or 'rel="stylesheet" href="http' in line]
    assert loaded == [], "a page loads nothing from other hosts"
