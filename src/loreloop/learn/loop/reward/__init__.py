"""The streaming reward: from what people say of answers to a number for any answer, learned as feedback arrives."""
