"""Models behind an interface: text engines complete prompts, image engines paint captions."""
