"""mosec with its own batching of requests. `python mosec_cross_encoder.py FOLDER PORT`."""

import os
import sys
from typing import Any

from mosec import Server, Worker
from sentence_transformers import CrossEncoder

Request = dict[str, Any]

_FOLDER = "RERANKER_FOLDER"


class Reranker(Worker):
    def __init__(self) -> None:
        self.model = CrossEncoder(os.environ[_FOLDER], device="cpu")

    def forward(self, data: list[Request]) -> list[dict[str, list[dict[str, float]]]]:
        """Answers of the requests; the pairs of all of them go through the model together."""
        pairs = [(request["query"], document) for request in data for document in request["documents"]]
        scores = iter(self.model.predict(pairs, show_progress_bar=False).tolist())
        return [_answer([next(scores) for _ in request["documents"]]) for request in data]


def _answer(scores: list[float]) -> dict[str, list[dict[str, float]]]:
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    return {"results": sorted(results, key=lambda result: -result["relevance_score"])}


if __name__ == "__main__":
    # mosec reads its own command line, and starts its workers as processes that inherit the environment
    _, os.environ[_FOLDER], port = sys.argv
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--timeout", "600000"]
    server = Server()
    server.append_worker(Reranker, num=1, max_batch_size=8, max_wait_time=5, timeout=600, route="/rerank")
    server.run()
