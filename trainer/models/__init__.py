"""Networks: the encoder, its heads, student and teacher, the text encoder."""
