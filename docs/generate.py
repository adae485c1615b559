"""Writes what docs/ says about the code from the code itself: `python -m docs.generate`.

The settings and the registry give configuration.md and limits.md, the import contracts of pyproject.toml the picture of
layers in architecture.md, the families of recognition models-supported.md, simulated models the schedules of
comparisons in models.md. A test says when a page is stale.
"""

import ast
import json
import re
import tomllib
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.comparisons import comparisons_table
from rerankd.api.dialects.fields import RANK_FIELD_CHARS
from rerankd.api.parsing.json_text import MAX_LEVELS
from rerankd.api.transport.request_reader import MAX_HEAD_BYTES
from rerankd.config.model_names import MOST_PREFIXES
from rerankd.config.options import fields_of
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import LAST_PRIORITY, AnchorPlan, ConfidencePlan, FusionPlan, PassagePlan
from rerankd.recognition.families import FAMILIES

_ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = _ROOT / "docs" / "configuration.md"
LIMITS = _ROOT / "docs" / "limits.md"
SUPPORTED = _ROOT / "docs" / "models-supported.md"
# Written by the tests of families, with RERANKD_TEST_RECORD=1.
DIFFERENCES = _ROOT / "docs" / "differences.json"
MODELS = _ROOT / "docs" / "models.md"
ARCHITECTURE = _ROOT / "docs" / "architecture.md"

_HEAD = """# Configuration

After reading this page you can set every option of the service and of its models. `python -m docs.generate` writes the
page from `app/rerankd/config/settings.py` and `app/rerankd/config/registry.py`.

## Environment

Every setting is an environment variable. The options of `rerankd serve` (`--host`, `--port`, `--registry`) override the
environment.

The service ignores nothing silently. A variable that begins with `RERANKD_` and is not in this table refuses the start,
and the message names the nearest setting. These variables are exempt:

- `RERANKD_BENCH_API_KEY` and `RERANKD_EVAL_API_KEY`, of `rerankd bench` and `rerankd eval`;
- `RERANKD_INSTRUCTION_SET`, for tests: the kernels use these instructions instead of the CPU's best (`avx2`,
  `avx_vnni`, `avx512_vnni`, `amx`; on Arm `neon_dot`, `neon_i8mm`);
- names that begin with `RERANKD_TEST_`, of the tests;
- variables that Kubernetes sets beside a Service with the name `rerankd` (`RERANKD_SERVICE_HOST`,
  `RERANKD_PORT_8000_TCP` and so on).

`RERANKD_PORT=tcp://...`, also from Kubernetes, is not a port and is refused. Set `enableServiceLinks: false` for the
pod, or the variable itself. Without API keys a name with a similar prefix, such as `RERANK_API_KEYS`, refuses the start
too: the service would be open.

An empty value counts as not set, except where a setting protects. The start is refused if `RERANKD_API_KEYS`,
`RERANKD_API_KEYS_FILE`, `RERANKD_PRIVATE`, `RERANKD_CACHE_SECRET` or `RERANKD_CACHE_SCOPE` is empty. To serve without
keys, unset them.

| variable | default | meaning |
|---|---|---|
"""

_REGISTRY = """
## Registry

The TOML file that `RERANKD_REGISTRY` names has one `[[model]]` table for each served model; [models.md](models.md) has
examples. `default = "name"` at the top names the model that answers requests without a model. Without it the first one
does. The table `[aliases]` gives models further names, such as `"rerank-v3.5" = "minilm-qa"`.

| key | default | meaning |
|---|---|---|
"""


_PASSAGES = """
### `passages`

Set `passages = { tokens = 256, overlap = 64 }` in a model's table. Requests may ask for other values, within
`max_passages`.

| key | default | meaning |
|---|---|---|
"""


_FUSION = """
### `fusion`

Set `fusion = { mode = "z-score", weight = 0.2 }` in a model's table. Requests may ask for other values.

| key | default | meaning |
|---|---|---|
"""


_CONFIDENCE = """
### `confidence`

Set `confidence = { method = "margin", threshold = 0.1 }` in a model's table. Requests may ask for other values.

| key | default | meaning |
|---|---|---|
"""

_ANCHORS = """
### `anchors`

Set `anchors = { file = "anchors.npz", anchors = 20, depth = 50 }` in a model's table; `rerankd anchors` makes the file.

| key | default | meaning |
|---|---|---|
"""


def configuration_page() -> str:
    """The whole page."""
    settings = [_row(f"RERANKD_{name.upper()}", field) for name, field in Settings.model_fields.items()]
    registry = _REGISTRY + "\n".join(_rows(ModelSpec)) + "\n"
    return _HEAD + "\n".join(settings) + "\n" + registry + _tables()


def _tables() -> str:
    tables = {_PASSAGES: PassagePlan, _FUSION: FusionPlan, _CONFIDENCE: ConfidencePlan, _ANCHORS: AnchorPlan}
    return "".join(head + "\n".join(_rows(shape)) + "\n" for head, shape in tables.items())


def _rows(shape: type) -> list[str]:
    return [_row(name, field) for name, field in fields_of(shape).items()]


def _row(name: str, field: FieldInfo) -> str:
    meaning = (field.description or _MEANINGS[name]).replace("|", "\\|")
    return f"| `{name}` | {_default(field)} | {meaning} |"


# What the name says by itself needs no description in the code, but a table without words looks unfinished.
_MEANINGS = {
    "name": "What requests call the model.",
    "aliases": "Other names for it, such as the one that a client library insists on.",
    "scorer": "What its numbers mean: `cross-encoder`, `prompted-classifier`, `pruning`, `yes-no`, `reasoning`, "
    "`graded`, `groupwise`, `first`, `attention`, `pairwise`, `generative`, `last-but-not-late`, `bi-encoder`, "
    "`listwise-embedding`, `late-interaction`, `splade`, `vision-language`, `remote`; "
    "`auto`: by the model's files.",
    "engine": "What computes them: `onnx`, `openvino`, `torch-encoder`, `torch-vectors`, `torch-causal`, "
    "`torch-seq2seq`, `torch-vision`, `torch-markers`, `torch-attention`, `torch-generate`, `endpoint`, `remote`; "
    "`auto`: by the model's files and this machine.",
}


def _default(field: FieldInfo) -> str:
    if field is Settings.model_fields["profiles"]:
        return "in the user's cache"
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(value, PassagePlan | FusionPlan | ConfidencePlan | AnchorPlan):
        return "below"
    if value is None or value is PydanticUndefined or value in ((), {}, ""):
        return "none"
    if value == SHIPPED_REGISTRY:
        return "the shipped `models/registry.toml`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_LIMITS_HEAD = """# Limits

After reading this page you can find every limit of a request, its setting, and the answer beyond it. `python -m
docs.generate` writes the page; a test fails if it is stale or lacks a setting that limits something.

The service rejects what exceeds a limit before it builds anything from it, with the error body of [api.md](api.md). The
message names the limit, the received amount and the accepted amount. Below its limits a body takes time in proportion
to its bytes, and memory of at most ten times its bytes and 64 MiB. Tests check that for every field of every dialect.
With several front-end processes some limits are divided among them: [processes.md](processes.md).

| limit | default | setting | beyond it |
|---|---|---|---|
"""

# Every setting that limits what a request may have or how long it may take: what it limits, and what comes beyond it.
LIMIT_SETTINGS = {
    "max_body_bytes": ("bytes of a body", "413: the body has ... bytes or more"),
    "max_body_values": ("JSON values in a large body; an object counts as four", "413: more than ... JSON values"),
    "max_body_fields": ("fields of a request, and of an object in it that is no document", "413: ... fields"),
    "max_text_bytes": ("bytes of one text, or between two commas or brackets", "413: the text at byte ..."),
    "max_documents": (
        "entries of any list of a request: documents, texts, passages, input, records, text_1, initial_order, ...",
        "413: at most ... documents per request",
    ),
    "max_queries": ("different queries of a call to `/score` or `/predict`; `queries`", "413: at most ... queries"),
    "max_query_chars": ("characters of a query, and of an instruction", "413: at most ... characters in a query"),
    "max_rank_fields": ("`rank_fields`, each named once", "413: at most ... rank_fields"),
    "max_images": ("images in a request", "413: at most ... images per request"),
    "max_image_bytes": ("bytes of an image's file", "413: at most ... bytes in an image"),
    "max_image_pixels": ("pixels of an image, by its header", "400: the image of ... cannot be read"),
    "max_held_bytes": ("bytes of all bodies and answers at a time", "429 with Retry-After"),
    "max_waiting_tokens": ("tokens that wait for one model", "429 with Retry-After"),
    "max_connections": ("connections at a time", "503, then closed"),
    "max_connections_per_address": ("connections from one address", "closed"),
    "head_timeout_s": ("seconds for a request's head", "408, and the connection is closed"),
    "body_timeout_s": ("seconds for a request's body", "408, and the connection is closed"),
    "idle_timeout_s": ("seconds between two requests of a connection", "closed"),
    "write_timeout_s": ("seconds for reading an answer", "closed"),
    "request_timeout_s": ("seconds for an answer", "504"),
    "loading_timeout_s": ("seconds that a request waits for a model that is loading", "503"),
}
_FIXED_LIMITS = (
    ("bytes of a request's head", MAX_HEAD_BYTES, "431"),
    ("levels of lists and objects in each other", MAX_LEVELS, "400: nested more than ... levels deep"),
    ("characters of a name in `rank_fields`", RANK_FIELD_CHARS, "400: too long a name"),
    ("vendors before a model's name", MOST_PREFIXES, "404: unknown model"),
    ("`priority`", LAST_PRIORITY, "400"),
)


def limits_page() -> str:
    """The whole page of limits."""
    rows = [
        f"| {what} | {_default(Settings.model_fields[name])} | `RERANKD_{name.upper()}` | {comes} |"
        for name, (what, comes) in LIMIT_SETTINGS.items()
    ]
    rows += [f"| {what} | `{limit}` | fixed | {comes} |" for what, limit, comes in _FIXED_LIMITS]
    return _LIMITS_HEAD + "\n".join(rows) + "\n"


_LAYERS_BEGIN = "<!-- layers: written by `python -m docs.generate` -->\n"
_LAYERS_END = "<!-- end of layers -->\n"
_PICTURE_WIDTH = 118


def architecture_page() -> str:
    """The page of the architecture, with its picture of layers drawn again."""
    page = ARCHITECTURE.read_text(encoding="utf-8")
    before, rest = page.split(_LAYERS_BEGIN)
    return before + _LAYERS_BEGIN + _layers() + _LAYERS_END + rest.split(_LAYERS_END)[1]


def _layers() -> str:
    """A box for each layer of the import contracts, the highest first, and a sentence for each other contract."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    names = [[name.strip() for name in layer.split("|")] for layer in layers]
    widest = max(len(_short(name)) for layer in names for name in layer)
    boxes = ["\n".join(_line(name, widest) for name in layer) for layer in names]
    edge = "─" * (_PICTURE_WIDTH - 2)
    picture = f"┌{edge}┐\n" + f"\n├{edge}┤\n".join(boxes) + f"\n└{edge}┘"
    others = "\n".join(f"- {contract['name']}." for contract in contracts if contract["type"] != "layers")
    return f"\n```text\n{picture}\n```\n\nThe other contracts:\n\n{others}\n\n"


def _line(name: str, widest: int) -> str:
    room = _PICTURE_WIDTH - widest - 6
    purpose = _purpose(name)
    shown = purpose if len(purpose) <= room else f"{purpose[: room - 1].rsplit(' ', 1)[0]}…"
    return f"│ {_short(name):<{widest}}  {shown:<{room}} │"


def _short(name: str) -> str:
    return name.removeprefix("rerankd.")


def _purpose(name: str) -> str:
    """The first sentence of a module's docstring."""
    path = _ROOT / "app" / name.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\w)\.(?=\s|$)", " ".join(docstring.split()), maxsplit=1)[0].replace("`", "")


_SUPPORTED_HEAD = """# Supported models

After reading this page you can tell whether a model is served, and what to use instead if it is not. Written by
`python -m docs.generate` from `app/rerankd/recognition/families/`; a test fails when this page is stale.

`rerankd inspect MODEL` says of which family a folder or repository is. Tests build a tiny model of a served family with
random weights, serve it, and compare its scores with the oracle's: alone, and in batches with longer texts. The
largest difference in float32 was as below. The last column says of which families `rerankd export` makes ONNX graphs
([models.md](models.md#from-torch-to-onnx)).

| family | repositories | oracle | largest difference | exported |
|---|---|---|---|---|
"""
_REFUSED_HEAD = """
Not served yet. Loading one of these fails with the reason:

| family | repositories | why not | instead |
|---|---|---|---|
"""


def supported_page() -> str:
    """The whole page of families."""
    measured = json.loads(DIFFERENCES.read_text(encoding="utf-8"))
    served = [
        f"| {family.name} | {', '.join(family.repositories)} | {family.oracle} | {_at_most(measured.get(family.name))} "
        f"| {'yes' if family.exported else 'no'} |"
        for family in FAMILIES
        if family.refused is None
    ]
    refused = [
        f"| {family.name} | {', '.join(family.repositories)} | {' | '.join(family.refused)} |"
        for family in FAMILIES
        if family.refused is not None
    ]
    return _SUPPORTED_HEAD + "\n".join(served) + "\n" + _REFUSED_HEAD + "\n".join(refused) + "\n"


def _at_most(difference: float | None) -> str:
    """One digit, rounded up: other CPUs differ in the last bits."""
    if difference is None:
        return "not measured"
    power = floor(log10(max(difference, 1e-7)))
    return f"{ceil(max(difference, 1e-7) / 10**power)}e{power}"


_COMPARISONS_BEGIN = "<!-- comparisons: written by `python -m docs.generate` -->\n"
_COMPARISONS_END = "<!-- end of comparisons -->\n"


def models_page() -> str:
    """The page of models, with its table of schedules written again."""
    page = MODELS.read_text(encoding="utf-8")
    before, rest = page.split(_COMPARISONS_BEGIN)
    after = rest.split(_COMPARISONS_END)[1]
    return f"{before}{_COMPARISONS_BEGIN}\n{comparisons_table()}\n{_COMPARISONS_END}{after}"


PAGES = {
    CONFIGURATION: configuration_page,
    LIMITS: limits_page,
    ARCHITECTURE: architecture_page,
    SUPPORTED: supported_page,
    MODELS: models_page,
}

if __name__ == "__main__":
    for target, page in PAGES.items():
        target.write_text(page(), encoding="utf-8")
