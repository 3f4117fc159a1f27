"""Searching, from a checked request to results: plans, vector indexes, highlighted passages."""
