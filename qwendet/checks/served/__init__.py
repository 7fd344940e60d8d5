"""``served.*``: a running server against the checkpoint that it is meant to serve."""
