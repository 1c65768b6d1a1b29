"""The compute role: builds and removes the instances of its node."""
