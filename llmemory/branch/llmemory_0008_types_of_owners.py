"""Documents are found by their type."""

from llmemory.branch import Step

revision = "llmemory_0008"
down_revision = "llmemory_0007"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0008").functions
