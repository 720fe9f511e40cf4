"""A Generator behind OpenAI's HTTP API: what is asked, what is answered, who waits; no models."""
