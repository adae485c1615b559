"""The nouns of reranking. Frozen, and ignorant of HTTP, threads and storage."""

from rerankd.domain.anchors import AnchorPlan
from rerankd.domain.arrays import BoolArray, FloatArray, IntArray, NameArray, SpanArray
from rerankd.domain.confidence import Confidence, ConfidenceMethod, ConfidencePlan
from rerankd.domain.diversity import (
    NO_DIVERSITY,
    DiversityPlan,
    DiversityWishes,
    EmbeddedDocuments,
    Embedder,
)
from rerankd.domain.documents import Document, ImageLimits, images_of
from rerankd.domain.fusion import NO_FUSION, Fused, FusionMode, FusionPlan, FusionWishes
from rerankd.domain.options import (
    Aggregation,
    GroupPlan,
    PassagePlan,
    PassageWishes,
    PruneWishes,
    ScoreOptions,
    Side,
    SpanWishes,
    Truncation,
    WindowPlan,
    WindowWishes,
)
from rerankd.domain.queries import QueryMode, QueryWishes
from rerankd.domain.requests import RankedDocument, RerankRequest, RerankResult
from rerankd.domain.scores import PassageScores, Remark, Scores, Span, Timings
from rerankd.domain.settled import Settled, settled_of
from rerankd.domain.terms import LAST_PRIORITY, UNMETERED, Meter, Terms, Unmetered

__all__ = [
    "LAST_PRIORITY",
    "NO_DIVERSITY",
    "NO_FUSION",
    "UNMETERED",
    "Aggregation",
    "AnchorPlan",
    "BoolArray",
    "Confidence",
    "ConfidenceMethod",
    "ConfidencePlan",
    "DiversityPlan",
    "DiversityWishes",
    "Document",
    "EmbeddedDocuments",
    "Embedder",
    "FloatArray",
    "Fused",
    "FusionMode",
    "FusionPlan",
    "FusionWishes",
    "GroupPlan",
    "ImageLimits",
    "IntArray",
    "Meter",
    "NameArray",
    "PassagePlan",
    "PassageScores",
    "PassageWishes",
    "PruneWishes",
    "QueryMode",
    "QueryWishes",
    "RankedDocument",
    "Remark",
    "RerankRequest",
    "RerankResult",
    "ScoreOptions",
    "Scores",
    "Settled",
    "Side",
    "Span",
    "SpanArray",
    "SpanWishes",
    "Terms",
    "Timings",
    "Truncation",
    "Unmetered",
    "WindowPlan",
    "WindowWishes",
    "images_of",
    "settled_of",
]
