"""The ring alone, without a file system on it, beside the other ways that Python has to read."""
