"""What may leave the building: the bundle, its gate, and its use by others."""
