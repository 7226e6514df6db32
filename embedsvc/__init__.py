"""Learns: graph embeddings larger than memory, their evaluation and their publication."""
