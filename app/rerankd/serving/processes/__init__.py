"""Front-end processes that share one scheduler: they read and answer requests, and it has the engines."""
