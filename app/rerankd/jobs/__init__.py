"""Jobs: files of requests that are answered in the background, whatever process dies meanwhile."""
