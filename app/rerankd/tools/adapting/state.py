"""What an interrupted adaptation keeps in a folder beside its output, so that the same command continues."""

import shutil
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from rerankd.errors import ConfigError

_PLAN = "plan.json"


class State:
    """Files of one adaptation; another one of other inputs or options cannot use them."""

    def __init__(self, output: Path, *, inputs: Iterable[Path], options: Mapping[str, Any], fresh: bool) -> None:
        """Open the folder beside `output`, or make it; `fresh` forgets what it has.

        Raises:
            ConfigError: it belongs to other options or inputs, or cannot be written.
        """
        self.folder = output.with_name(f"{output.name}.state")
        if fresh and self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = _digest(inputs, options)
        if self._plan().setdefault("digest", digest) != digest:
            raise ConfigError(
                f"{self.folder} is of an adaptation with other options or inputs; --fresh forgets it, and another "
                "OUTPUT leaves it alone"
            )
        self._keep("digest", digest)

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def steps(self) -> int | None:
        """How many steps were planned, once they were."""
        return self._plan().get("steps")

    def plan(self, steps: int) -> None:
        self._keep("steps", steps)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _plan(self) -> dict[str, Any]:
        path = self.folder / _PLAN
        plan: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
        return plan

    def _keep(self, name: str, value: object) -> None:
        unfinished = self.folder / f"{_PLAN}.unfinished"
        unfinished.write_bytes(orjson.dumps({**self._plan(), name: value}))
        unfinished.replace(self.folder / _PLAN)


def _digest(inputs: Iterable[Path], options: Mapping[str, Any]) -> str:
    digest = blake2b(orjson.dumps(options, option=orjson.OPT_SORT_KEYS), digest_size=16)
    for path in inputs:
        try:
            digest.update(blake2b(path.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()
