"""How tiny-sd, the built-in text-to-image model, is made: from drawings to a model folder."""
