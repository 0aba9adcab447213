"""A witness of the source apart from cgconvert's readers: transformers."""
