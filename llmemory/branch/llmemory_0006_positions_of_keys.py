"""A lexeme's position among the weights is part of its key, so that it is hashed only once."""

from llmemory.branch import Step

revision = "llmemory_0006"
down_revision = "llmemory_0005"
branch_labels = None
depends_on = None

upgrade, downgrade = Step("0006").functions
