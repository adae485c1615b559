"""Admission, planner, cost model and batcher: what runs next, and in which forward pass."""
