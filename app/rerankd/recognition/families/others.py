"""Services elsewhere, and files of other runtimes: known, and not served as folders."""

from collections.abc import Sequence
from typing import Final

from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import Asked, Family, Outcome


def _never(_: ModelFiles, __: Asked) -> Outcome | None:
    """A service is no folder."""
    return None


SERVICES: Final[Sequence[Family]] = (
    Family(
        name="Cohere, Jina, Voyage, TEI, vLLM, NIM, llama.cpp, other rerankd servers and OpenAI-compatible chat models",
        repositories=['a service elsewhere: `engine = "remote"` ([models.md](models.md))'],
        recognise=_never,
        oracle="the service asked directly",
    ),
    Family(
        name="GGUF files of Llama, Qwen2 and Qwen3 models, converted by `rerankd import`",
        repositories=["SmolLM2-135M-Instruct.Q4_1.gguf and others of llama.cpp"],
        recognise=_never,
        oracle="transformers: the file itself (`gguf_file=`), whole logits at the last place",
        exported=True,
    ),
)
