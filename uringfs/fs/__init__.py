"""What each file operation means: a passthrough of a directory tree, written once over FileIO."""
