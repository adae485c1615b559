"""The command `rerankd` with one more engine, `free`; `loadtest.host_path` starts it, over older commits too.

python -m loadtest.free_service serve --registry ...
"""

import json
from pathlib import Path
from typing import Final

from loadtest.free_engine import register
from rerankd.__main__ import main

_FILES: Final = ("config.json", "tokenizer.json", "tokenizer_config.json")


def free_registry(model: Path, *, batch_tokens: int) -> str:
    """A registry of this model on the free engine."""
    fields = {"name": "free", "path": str(model), "scorer": "cross-encoder", "engine": "free"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["[[model]]", *lines, f"batch_tokens = {batch_tokens}", ""])


def without_weights(model: Path, folder: Path) -> Path:
    """A new folder that has what the scorer reads of a model, and no graph."""
    folder.mkdir()
    for name in _FILES:
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


if __name__ == "__main__":
    register()
    main()
