"""The three panels that scale apart."""
