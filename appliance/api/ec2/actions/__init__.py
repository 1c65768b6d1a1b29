"""The actions: one small function each, by noun."""
