"""Text engines: language models that complete prompts."""
