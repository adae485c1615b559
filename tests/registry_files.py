"""Writes registries for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_registry(folder: Path, models: Sequence[Mapping[str, Any]], *, default: str | None = None) -> Path:
    """Write folder/registry.toml with one `[[model]]` table for each of `models`; paths and nested tables are fine."""
    lines = [f"default = {_toml(default)}"] if default else []
    for model in models:
        lines += ["[[model]]", *(f"{json.dumps(key)} = {_toml(value)}" for key, value in model.items())]
    path = folder / "registry.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)
