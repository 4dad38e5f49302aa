"""What a classifier or a synthetic set is worth, in numbers."""
