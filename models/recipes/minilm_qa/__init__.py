"""The recipe of `models/minilm-qa`: a bi-encoder turned into a small cross-encoder, quantised to int8."""
