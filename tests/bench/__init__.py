"""Figures: what things cost. ``python -m tests.bench`` measures them; nothing here is a test."""
