"""The dialects, in the order in which they may claim a body on a shared path. A new one is a file and a line here."""

from typing import Final

from rerankd.api.dialects.base import Dialect
from rerankd.api.dialects.bedrock import BEDROCK
from rerankd.api.dialects.cohere import COHERE_V2
from rerankd.api.dialects.dashscope import DASHSCOPE
from rerankd.api.dialects.elasticsearch import ELASTICSEARCH
from rerankd.api.dialects.infinity import INFINITY
from rerankd.api.dialects.jina import JINA
from rerankd.api.dialects.mixedbread import MIXEDBREAD
from rerankd.api.dialects.nim import NIM
from rerankd.api.dialects.pinecone import PINECONE
from rerankd.api.dialects.sglang import SGLANG
from rerankd.api.dialects.tei import TEI
from rerankd.api.dialects.tei_predict import TEI_PREDICT
from rerankd.api.dialects.vertex import VERTEX
from rerankd.api.dialects.vllm_score import VLLM_SCORE
from rerankd.api.dialects.voyage import VOYAGE
from rerankd.api.dialects.weaviate import WEAVIATE

DIALECTS: Final[tuple[Dialect, ...]] = (
    COHERE_V2,
    VLLM_SCORE,
    TEI_PREDICT,
    DASHSCOPE,
    VERTEX,
    SGLANG,
    ELASTICSEARCH,
    WEAVIATE,
    BEDROCK,
    TEI,
    NIM,
    MIXEDBREAD,
    PINECONE,
    VOYAGE,
    INFINITY,
    JINA,
)
