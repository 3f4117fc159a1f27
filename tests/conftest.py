"""Fixtures come from the small plugins beside this file."""

pytest_plugins = [
    # First, as it changes what settings are by default.
    "plugins.poolers",
    "plugins.server",
    "plugins.clusters",
    "plugins.memories",
    "plugins.observers",
    "plugins.plans",
    "plugins.command_line",
    "plugins.openai_embedders",
    "plugins.embedded_processes",
    "plugins.guarded",
]
