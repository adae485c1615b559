"""HTTP: connections, dialects, keys, health and the playground."""
