"""``mount --tune``: what serves a source best is found by trying it."""
