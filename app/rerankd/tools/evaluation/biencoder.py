"""A sentence-transformers folder, which ranks by the cosine of the vectors of query and candidate.

Document vectors are kept in memory, as in an index. Only the query's part counts as time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rerankd.domain import FloatArray, RerankRequest
from rerankd.errors import ConfigError
from rerankd.serving.sources import content_hash
from rerankd.tools.evaluation.targets import Answer, Ask

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")
_SPECIAL_TOKENS = 2

Encode = Callable[[Sequence[str], int | None], FloatArray]


class BiEncoder:
    def __init__(self, folder: Path) -> None:
        """Check that the folder and the library are there.

        Raises:
            ConfigError: there is no such folder, or sentence-transformers is not installed.
        """
        if not (folder / "modules.json").is_file():
            raise ConfigError(f"{folder} is not a sentence-transformers folder: it has no modules.json")
        _library()
        self._folder = folder.resolve()
        self.name = f"{self._folder.parent.name}/{self._folder.name}"

    async def identity(self) -> Mapping[str, Any]:
        return {"biencoder": await asyncio.to_thread(content_hash, self._folder, patterns=_FILES)}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        index = _Index(await asyncio.to_thread(_load, self._folder))

        async def ask(request: RerankRequest) -> Answer:
            return await asyncio.to_thread(index.rank, request)

        yield ask


class _Index:
    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._vectors: dict[tuple[str, int | None], FloatArray] = {}

    def rank(self, request: RerankRequest) -> Answer:
        documents = self._documents(request.documents, request.options.max_tokens_per_doc)
        started = perf_counter()
        cosines = documents @ self._encode([request.query], None)[0]
        order = np.argsort(-cosines, kind="stable")
        values = cosines[order].tolist()
        return Answer(order.tolist(), values, perf_counter() - started, values)

    def _documents(self, texts: Sequence[str], max_tokens: int | None) -> FloatArray:
        new = [text for text in dict.fromkeys(texts) if (text, max_tokens) not in self._vectors]
        if new:
            vectors = self._encode(new, max_tokens)
            self._vectors.update({(text, max_tokens): vector for text, vector in zip(new, vectors, strict=True)})
        return np.stack([self._vectors[text, max_tokens] for text in texts])


def _load(folder: Path) -> Encode:
    from transformers.utils import logging  # noqa: PLC0415 - comes with sentence-transformers

    logging.disable_progress_bar()  # its progress bar would be drawn into ours
    model = _library().SentenceTransformer(str(folder))
    longest = model.max_seq_length

    def encode(texts: Sequence[str], max_tokens: int | None) -> FloatArray:
        model.max_seq_length = min(longest, max_tokens + _SPECIAL_TOKENS) if max_tokens else longest
        vectors: FloatArray = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors

    return encode


def _library() -> Any:  # noqa: ANN401 - a module that is not always there
    try:
        import sentence_transformers  # noqa: PLC0415 - imports torch, which nothing else here needs
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--biencoder needs {error.name}, which is not installed; run: pip install sentence-transformers"
        ) from None
    return sentence_transformers
