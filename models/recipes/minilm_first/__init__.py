"""The recipe of `minilm-first`: a small listwise reranker, begun as a bi-encoder with a trust in the first stage."""
