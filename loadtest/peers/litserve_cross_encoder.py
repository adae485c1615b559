"""LitServe with its own batching of requests. `python litserve_cross_encoder.py FOLDER PORT`."""

import sys
from typing import Any

import litserve
from sentence_transformers import CrossEncoder

Request = dict[str, Any]
Scores = list[float]


class Reranker(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = CrossEncoder(sys.argv[1], device=device)

    def decode_request(self, request: Request) -> Request:
        return request

    def predict(self, requests: list[Request]) -> list[Scores]:
        """Scores of each request; the pairs of all of them go through the model together."""
        pairs = [(request["query"], document) for request in requests for document in request["documents"]]
        scores = iter(self.model.predict(pairs, show_progress_bar=False).tolist())
        return [[next(scores) for _ in request["documents"]] for request in requests]

    def encode_response(self, output: Scores) -> dict[str, list[dict[str, float]]]:
        results = [{"index": index, "relevance_score": score} for index, score in enumerate(output)]
        return {"results": sorted(results, key=lambda result: -result["relevance_score"])}


if __name__ == "__main__":
    api = Reranker(max_batch_size=8, batch_timeout=0.005, api_path="/rerank")
    server = litserve.LitServer(api, accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
