"""What a user may do in a project; the command line reads it, too, so it imports nothing."""

READER, MEMBER, ADMIN = "reader", "member", "admin"

ACCESS_LEVELS = (READER, MEMBER, ADMIN)
"""From the least to the most."""
