"""The routes of the portal, one module for each noun."""
