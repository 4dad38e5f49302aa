"""Membership attacks; a kind is a file: `Config`, `NEEDS`, `score(signals, config)`."""
