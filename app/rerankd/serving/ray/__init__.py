"""The service on a Ray cluster: `serve run rerankd.serving.ray:app`, or a config file of Ray Serve (docs/ray.md).

A front takes HTTP requests, finds the deployment that has the request's model, and asks one of its replicas. A replica
is what `rerankd serve` runs without its socket: the same gateway behind the same application. A request whose replica
dies is asked of another, since scoring changes nothing.
"""

from rerankd.serving.ray.application import app

__all__ = ["app"]
