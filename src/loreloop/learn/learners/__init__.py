"""One page for each way to learn: from examples or rollouts to a step of the Tinker API."""
