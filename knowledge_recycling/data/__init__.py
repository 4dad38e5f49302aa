"""Image sets: sources, splits, augmentation."""
