"""Speed: steps, whole runs and the PyTorch loop beside them."""
