"""The scheduler role, and what scheduler plugins share."""
