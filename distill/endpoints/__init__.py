"""OpenAI-compatible endpoints: requests, responses, pace, budgets and prices."""
