"""Checking what callers pass, before anything is embedded or stored. Pure."""
