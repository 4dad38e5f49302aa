"""Classifiers; a file per kind."""
