"""The run as a page."""
