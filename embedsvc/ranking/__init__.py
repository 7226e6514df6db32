"""Models that rank items for somebody: towers of histories, and the examples they learn from."""
