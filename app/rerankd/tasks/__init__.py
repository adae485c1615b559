"""Tasks: what goes into an engine and what comes out, one file each. A scorer names the one it needs, an engine those
it runs (docs/extending.md).
"""
