"""The files that serve the adapter: its prompt template, and a registry that puts it over its base."""

import json
from pathlib import Path

from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.first import First

NAME = "first-smollm2"
TEMPLATE = Path(__file__).with_name("template.toml")


def write_served(out: Path, *, base: Path, window: int) -> None:
    """Write OUT/registry.toml and OUT/templates; the adapter itself belongs in OUT/first-smollm2."""
    templates = out / "templates"
    templates.mkdir(parents=True, exist_ok=True)
    (templates / f"{NAME}.toml").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    registry = (
        f'default = "{NAME}"\n\n[[model]]\nname = "{NAME}"\nscorer = "first"\nengine = "torch-causal"\n'
        f'path = {json.dumps(str(base.resolve()))}\nadapter = "{NAME}"\n'
        f'options = {{ template = "{NAME}", window = {window} }}\n'
    )
    (out / "registry.toml").write_text(registry, encoding="utf-8")


def load_scorer(out: Path, *, base: Path) -> First:
    """Return the scorer that the registry's model is served with."""
    options = {"template": NAME}
    return First.load(ScorerSpec(folder=base, templates=[out / "templates"], options=options))
