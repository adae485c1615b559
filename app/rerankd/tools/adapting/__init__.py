"""Adapts a model to a corpus, and proves on held-out queries that it has become better."""
