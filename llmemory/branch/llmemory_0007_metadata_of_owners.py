"""Metadata have an index of each owner's own, so that what others have takes a filter no time."""

from llmemory.branch import Step

revision = "llmemory_0007"
down_revision = "llmemory_0006"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0007").functions
