"""Networks: encoders, decoders, the two heads, the prototype bank."""
