"""The shipped model as weights: what it computes, how it is scored, read back and written; for recipes and `adapt`."""
