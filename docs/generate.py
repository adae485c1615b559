"""Writes docs/configuration.md from the settings and the registry's models: `python -m docs.generate`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.config import SHIPPED_REGISTRY, ModelSpec, PassageSpec, Settings

TARGET = Path(__file__).parent / "configuration.md"

_HEAD = """# Configuration

Written by `python -m docs.generate` from `app/config.py`; a test fails when this page is stale.

## Environment

Every setting is an environment variable. The options of `rerankd serve` (`--host`, `--port`, `--registry`) win over
the environment.

Nothing is ignored in silence. A variable that begins with `RERANKD_` and is not in this table refuses the start, and
the message names the nearest setting. Exceptions are `RERANKD_BENCH_API_KEY` and `RERANKD_EVAL_API_KEY` (of `rerankd
bench` and `rerankd eval`), names that begin with `RERANKD_TEST_` (of the tests), and those that Kubernetes sets beside
a Service with the name `rerankd` (`RERANKD_SERVICE_HOST`, `RERANKD_PORT_8000_TCP` and so on). Its
`RERANKD_PORT=tcp://...` cannot be a port and is refused: set `enableServiceLinks: false` for the pod, or the variable
itself.

An empty value counts as not set, except where a setting protects: `RERANKD_API_KEYS`, `RERANKD_API_KEYS_FILE`,
`RERANKD_PRIVATE`, `RERANKD_CACHE_SECRET` and `RERANKD_CACHE_SCOPE` refuse the start when they are empty. To serve
without keys, unset them.

| variable | default | meaning |
|---|---|---|
"""

_REGISTRY = """
## Registry

One `[[model]]` table a served model, in the TOML file that `RERANKD_REGISTRY` names ([models.md](models.md) explains
them by example). `default = "name"` at the top says which one answers requests that name none; without it the first.

| key | default | meaning |
|---|---|---|
"""


_PASSAGES = """
### `passages`

`passages = { tokens = 256, overlap = 64 }` of a model; requests may ask for other values, within `max_passages`.

| key | default | meaning |
|---|---|---|
"""


def configuration_page() -> str:
    """The whole page."""
    settings = [_row(f"RERANKD_{name.upper()}", field) for name, field in Settings.model_fields.items()]
    registry = _REGISTRY + "\n".join(_rows(ModelSpec)) + "\n"
    return _HEAD + "\n".join(settings) + "\n" + registry + _PASSAGES + "\n".join(_rows(PassageSpec)) + "\n"


def _rows(model: type[BaseModel]) -> list[str]:
    return [_row(name, field) for name, field in model.model_fields.items()]


def _row(name: str, field: FieldInfo) -> str:
    meaning = (field.description or _MEANINGS[name]).replace("|", "\\|")
    return f"| `{name}` | {_default(field)} | {meaning} |"


# What the name says by itself needs no description in the code, but a table without words looks unfinished.
_MEANINGS = {
    "name": "What requests call the model.",
    "aliases": "Other names for it, such as the one that a client library insists on.",
    "scorer": "What its numbers mean: `cross-encoder`, `yes-no`, `first` or `generative`.",
    "engine": "What computes them: `onnx`, `openvino`, `torch-encoder`, `torch-causal`, `torch-generate`, `endpoint`.",
}


def _default(field: FieldInfo) -> str:
    if field is Settings.model_fields["profiles"]:
        return "in the user's cache"
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(value, BaseModel):
        return "below"
    if value is None or value is PydanticUndefined or value in ((), {}, ""):
        return "none"
    if value == SHIPPED_REGISTRY:
        return "the shipped `models/registry.toml`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    TARGET.write_text(configuration_page(), encoding="utf-8")
