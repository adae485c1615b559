"""The recipe of a FIRST adapter: a small chat model that ranks a window of passages by one pass."""
