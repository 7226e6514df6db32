"""Softmax layers for a million classes: exact in chunks, or over the classes that matter."""
