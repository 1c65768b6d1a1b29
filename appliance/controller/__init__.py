"""The controller role: brings about what is wanted."""
