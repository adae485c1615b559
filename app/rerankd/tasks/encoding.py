"""Token ids of one sequence: what goes into a pass that reads and does not write."""

from dataclasses import dataclass

from rerankd.domain import IntArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of one sequence, shape [length]. Ids from `boundary` on belong to segment 1; those before it are
    the query's part, which a request's encodings share and an engine may compute once.
    """

    ids: IntArray
    boundary: int
