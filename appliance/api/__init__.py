"""The API role: front doors that clients call."""
