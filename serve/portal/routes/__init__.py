"""The routes of the portal, one module for each noun."""

API = "/api/v1"
"""Beginning of all paths but those of health."""
