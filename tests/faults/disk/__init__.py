"""Disks that fail, under a node of its own process: full, broken, or not to be written."""
