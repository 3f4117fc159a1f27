"""Words are found per owner, and in scripts that put no spaces between them."""

from llmemory.branch import Step

revision = "llmemory_0002"
down_revision = "llmemory_0001"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0002").functions
