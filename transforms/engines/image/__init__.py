"""Image engines: text-to-image models that paint captions."""
