"""Anynode: a private EC2 on bare machines."""
