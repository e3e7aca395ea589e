"""The closed loop: what people say of a deployment's answers makes the next revision, tested before it serves."""
