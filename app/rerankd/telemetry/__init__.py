"""Logs, metrics and the observer that the hot path reports to."""
