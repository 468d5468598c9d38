"""Benchmarks that others publish, read and written in their authors' files."""
