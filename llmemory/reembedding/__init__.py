"""Changing the model while searches go on: a second space is filled, the first one removed."""
