"""What many write by hand: FastAPI around `CrossEncoder.predict`. `python fastapi_cross_encoder.py FOLDER PORT`."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

app = FastAPI()
model = CrossEncoder(sys.argv[1], device="cpu")


class Request(BaseModel):
    query: str
    documents: list[str]


@app.post("/rerank")
def rerank(request: Request) -> dict[str, list[dict[str, float]]]:
    scores = model.predict([(request.query, document) for document in request.documents], show_progress_bar=False)
    results = [{"index": index, "relevance_score": float(score)} for index, score in enumerate(scores)]
    return {"results": sorted(results, key=lambda result: -result["relevance_score"])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
