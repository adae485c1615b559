"""Stages that wrap one another: cache, blanks, passages, windows and cascades."""
