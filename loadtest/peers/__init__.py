"""Servers to compare with. Each file here is one small server that runs in an environment of its own, where neither
`app` nor this package is installed: `python FILE FOLDER PORT`. They use what their frameworks' own examples use.
"""
