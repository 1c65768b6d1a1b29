"""Clusters on one machine, and what they must bear."""
