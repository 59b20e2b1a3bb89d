"""Runtimes that answer the same question about the same picture, each in a process of its own."""
