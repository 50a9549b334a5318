"""The limit of many GPUs: the fluid model, its paths and its steady states."""
