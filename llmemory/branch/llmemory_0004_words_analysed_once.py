"""A chunk's words are analysed once, for finding and scoring it alike."""

from llmemory.branch import Step

revision = "llmemory_0004"
down_revision = "llmemory_0003"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0004").functions
