"""The soak: hours of random faults, the printed remedies, and a comparison of all bytes."""
