"""Data: datasets, who holds what of them, batches, augmentation."""
