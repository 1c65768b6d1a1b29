"""Many nodes that are one cloud: who belongs to it, and what it needs for itself."""
