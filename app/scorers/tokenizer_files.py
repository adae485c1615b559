"""Reads the parts of a Hugging Face model folder that a scorer needs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from app.errors import ConfigError

# Tokenizer configs say "no limit" with numbers like 10**30.
_NO_LIMIT = 10**9
# These count positions from behind the padding id, so two of them are never used.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return content


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` without any truncation or padding of its own.

    Raises:
        ConfigError: the file is missing or the tokenizers library cannot read it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"no tokenizer.json in {folder}; save the model's fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise ConfigError(f"cannot read {path}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def longest_input(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens that the model can read: the smaller of what its tokenizer and its position table allow."""
    limits = []
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        offset = int(config.get("pad_token_id") or 1) + 1
        limits.append(positions - offset if config.get("model_type") in _OFFSET_POSITIONS else positions)
    saved = folder / "tokenizer_config.json"
    declared = read_json(saved).get("model_max_length") if saved.is_file() else None
    if isinstance(declared, int | float) and 0 < declared < _NO_LIMIT:
        limits.append(int(declared))
    return min(limits, default=512)
