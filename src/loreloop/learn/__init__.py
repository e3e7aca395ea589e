"""Training by the clients' door: learners, rollouts, rewards, environments, and jobs over OpenAI's fine-tuning API.

Everything here speaks the Tinker protocol through its SDK and runs against any server that speaks it. Knows no engine,
no routes and no tensors of torch.
"""
