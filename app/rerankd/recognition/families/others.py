"""Services elsewhere, and files of other runtimes: known, and not served as folders."""

from collections.abc import Sequence
from typing import Final

from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import Asked, Family, Outcome


def _never(_: ModelFiles, __: Asked) -> Outcome | None:
    """A service is no folder."""
    return None


def _remote(name: str, *, because: str, instead: str) -> Family:
    return Family(name=name, repositories=["none"], recognise=_never, refused=(because, instead))


SERVICES: Final[Sequence[Family]] = (
    _remote(
        "Cohere, Jina, Voyage, TEI, vLLM, NIM and other rerank services",
        because="no engine calls another rerank service yet",
        instead="call the service itself; `rerankd` answers its clients with a model of your own",
    ),
    Family(
        name="GGUF files of Llama, Qwen2 and Qwen3 models, converted by `rerankd import`",
        repositories=["SmolLM2-135M-Instruct.Q4_1.gguf and others of llama.cpp"],
        recognise=_never,
        oracle="transformers: the file itself (`gguf_file=`), whole logits at the last place",
    ),
)
