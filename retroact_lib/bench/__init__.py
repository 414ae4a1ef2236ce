"""Speed and memory, beside the peers and beside what the hardware allows (notebook 07)."""
