"""Documents, chunks, embeddings and what searching and queueing need."""

from llmemory.branch import Step

revision = "llmemory_0001"
down_revision = None
branch_labels = ("llmemory",)
depends_on = None

upgrade, downgrade = Step("0001").functions
