"""The recipe of `models/minilm-qa`: a bi-encoder turned into a small cross-encoder, quantized to int8."""
