"""What says how good an answer is: OpenAI's graders, checks, judges, and the sandbox for code from outside."""
