"""The dialect of the closed loop: what was answered, what was said of it, and what became of it."""
