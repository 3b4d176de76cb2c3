"""Tests of uringfs.fuse."""
