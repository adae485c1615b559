"""What MkDocs does not do by itself (a hook of mkdocs.yml): pages of the repository beside docs/ become pages of the
site, and links between pages lead to the site's pages. A link to another file of the repository becomes its text; one
that leads nowhere stays, and fails the build.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).resolve().parent.parent
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
# A page of the repository, and its name on the site.
_PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "loadtest/README.md": "load-tests.md",
    "models/minilm-qa/README.md": "shipped-model.md",
    "models/recipes/minilm_qa/README.md": "recipe.md",
}
_SOURCES: Final = {site: source for source, site in _PAGES.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every decision in the navigation, so that a new one needs no line there."""
    config.nav = _expanded(config.nav or [])
    return config


def _expanded(entries: list[object]) -> list[object]:
    found: list[object] = []
    for entry in entries:
        if isinstance(entry, dict):
            found.append(
                {title: _expanded(below) if isinstance(below, list) else below for title, below in entry.items()}
            )
        elif isinstance(entry, str) and "*" in entry:
            pages = sorted((_ROOT / "docs").glob(entry))
            found += [page.relative_to(_ROOT / "docs").as_posix() for page in pages if page.name != "README.md"]
        else:
            found.append(entry)
    return found


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for source, site in _PAGES.items():
        files.append(File.generated(config, site, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs's
    """Lead each link to the site's page of what it names."""
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def led(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        named = os.path.normpath(PurePosixPath(source).parent / target)
        site = _PAGES.get(named) or (named.removeprefix("docs/") if named.startswith("docs/") else None)
        if site is None:
            return text if (_ROOT / named).exists() else link[0]
        return f"{image}[{text}]({os.path.relpath(site, PurePosixPath(page.file.src_uri).parent)}{anchor})"

    return _LINK.sub(led, markdown)
