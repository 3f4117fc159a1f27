"""Embedding that adding has left for later: jobs, who takes them, and the worker."""
