"""Spaces can be filled again and dropped; the number of one never comes to mean another model."""

from llmemory.branch import Step

revision = "llmemory_0003"
down_revision = "llmemory_0002"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0003").functions
