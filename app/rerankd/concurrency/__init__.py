"""Threads and turns that API keys share."""
