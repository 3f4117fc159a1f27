"""Identifiers are found by the whole and by each part, in any spelling that Unicode has."""

from llmemory.branch import Step

revision = "llmemory_0005"
down_revision = "llmemory_0004"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0005").functions
