"""The servers that `loadtest.cross_server` compares: how each is installed, started and asked.

text-embeddings-inference is not among them: it is a Rust program without a package that pip can install. Where it
runs, `rerankd bench http://its-host:port --path /rerank --documents-field texts` loads it in the same way.
"""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

CACHE: Final = Path(__file__).resolve().parent / ".peers"
PEERS: Final = Path(__file__).resolve().parent / "peers"
# Alone and first, so that pip does not take a build that is several times larger.
_TORCH = "torch==2.13.0"
# Nothing of ours is seen, nothing is downloaded.
_ALONE: Final = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}

Precision = Literal["float32", "int8"]


@dataclass(frozen=True, slots=True)
class Weights:
    """The same weights in the layouts that servers want; each folder holds tokenizer and configuration too."""

    safetensors: Path
    onnx: Path
    only_float32: Path
    only_quantized: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """`command` gives the program's arguments; `python` is that of the environment that `requirements` name, or ours.
    `ready` is a path that answers 200 when the server can rank, `folder` where it runs.
    """

    name: str
    precision: Precision
    command: Callable[[str, Weights, int], Sequence[str]]
    requirements: str | None = None
    path: str = "/rerank"
    ready: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Callable[[Weights], Path] | None = None

    def python(self) -> str:
        """The interpreter of its environment, which is made now if it is not there."""
        return sys.executable if self.requirements is None else str(_environment(PEERS / self.requirements))


@dataclass(frozen=True, slots=True)
class OurEngine:
    """An engine of rerankd, the graph that it loads, and whether with our own kernels where they suit."""

    engine: str
    precision: Precision
    fused: bool = True

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}" + ("" if self.fused else " without fused layers")

    @property
    def registry(self) -> str:
        """The file beside the graphs with which it is served."""
        return f"{self.engine}-{self.precision}{'' if self.fused else '-not-fused'}.toml"


OUR_ENGINES: Final = (
    OurEngine("onnx", "int8"),
    OurEngine("onnx", "int8", fused=False),
    OurEngine("onnx", "float32"),
    OurEngine("openvino", "int8"),
)


def _ours(engine: OurEngine) -> Contestant:
    def command(python: str, weights: Weights, port: int) -> Sequence[str]:
        registry = weights.onnx / engine.registry
        return [python, "-m", "rerankd", "serve", "--port", str(port), "--registry", str(registry)]

    return Contestant(
        name=f"rerankd {engine.name}",
        precision=engine.precision,
        command=command,
        path="/v2/rerank",
        ready="/ready",
        environment={"RERANKD_CACHE_URL": "none://", "RERANKD_LOG_LEVEL": "WARNING"},
    )


def _infinity(name: str, precision: Precision, engine: str, folder: Callable[[Weights], Path]) -> Contestant:
    def command(python: str, _: Weights, port: int) -> Sequence[str]:
        # Through the interpreter, because the program's first line names where the environment was made.
        program = [python, str(Path(python).with_name("infinity_emb")), "v2"]
        # optimum finds no graph of a local model by its whole path, which infinity makes of any other name
        where = ["--model-id", ".", "--served-model-name", "default/not-specified"]
        how = ["--engine", engine, "--device", "cpu", "--port", str(port), "--log-level", "warning"]
        return [*program, *where, *how]

    return Contestant(
        name=name,
        precision=precision,
        command=command,
        requirements="infinity.txt",
        folder=folder,
        environment={**_ALONE, "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
    )


def _script(name: str, file: str, *, ready: str) -> Contestant:
    def command(python: str, weights: Weights, port: int) -> Sequence[str]:
        return [python, str(PEERS / file), str(weights.safetensors), str(port)]

    return Contestant(
        name=name,
        precision="float32",
        command=command,
        requirements="sentence_transformers.txt",
        ready=ready,
        environment=_ALONE,
    )


CONTESTANTS: Final[Mapping[str, Contestant]] = {
    contestant.name: contestant
    for contestant in (
        *map(_ours, OUR_ENGINES),
        _infinity("infinity onnx int8", "int8", "optimum", lambda weights: weights.only_quantized),
        _infinity("infinity onnx float32", "float32", "optimum", lambda weights: weights.only_float32),
        _infinity("infinity torch", "float32", "torch", lambda weights: weights.safetensors),
        _script("fastapi + CrossEncoder", "fastapi_cross_encoder.py", ready="/openapi.json"),
        _script("litserve + CrossEncoder", "litserve_cross_encoder.py", ready="/health"),
        _script("mosec + CrossEncoder", "mosec_cross_encoder.py", ready="/"),
    )
}


def _environment(requirements: Path) -> Path:
    """A virtual environment with exactly these packages; its folder's name holds their hash."""
    digest = hashlib.sha256(f"{_TORCH}\n{requirements.read_text()}".encode()).hexdigest()[:12]
    folder = CACHE / f"{requirements.stem}-{digest}"
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, _TORCH], check=True)
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        installed.touch()
    return python
