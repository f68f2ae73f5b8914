"""Training: the loop, a step, and what is measured and kept of them."""
