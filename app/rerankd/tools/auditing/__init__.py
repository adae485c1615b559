"""Audits a model: how far its order moves when texts change, and what cannot be moved at all."""
