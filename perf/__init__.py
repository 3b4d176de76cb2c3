"""The benchmark: uringfs, its peers and the plain file system, measured side by side."""
