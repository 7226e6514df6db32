"""Exact offline evaluation."""
