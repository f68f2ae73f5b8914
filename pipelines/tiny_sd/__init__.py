"""Training of tiny-sd, the built-in text-to-image model: from drawings to a model folder."""
