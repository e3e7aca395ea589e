"""Training of the memory's two adapters, the head that judges a line and the refill."""
