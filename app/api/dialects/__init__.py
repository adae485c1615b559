"""The dialects, in the order in which they may claim a body on a shared path. A new one is a file and one line here."""

from typing import Final

from app.api.dialects.base import Dialect
from app.api.dialects.cohere import COHERE_V2
from app.api.dialects.infinity import INFINITY
from app.api.dialects.jina import JINA
from app.api.dialects.mixedbread import MIXEDBREAD
from app.api.dialects.nim import NIM
from app.api.dialects.pinecone import PINECONE
from app.api.dialects.tei import TEI
from app.api.dialects.vllm_score import VLLM_SCORE
from app.api.dialects.voyage import VOYAGE

DIALECTS: Final[tuple[Dialect, ...]] = (
    COHERE_V2,
    VLLM_SCORE,
    TEI,
    NIM,
    MIXEDBREAD,
    PINECONE,
    VOYAGE,
    INFINITY,
    JINA,
)
