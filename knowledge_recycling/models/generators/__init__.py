"""Class-conditional generators; a file per kind."""
