"""What stays and what goes: the effect of redactions, holds, and deletion."""
