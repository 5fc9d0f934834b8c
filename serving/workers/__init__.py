"""Several processes as one server: a small supervisor, and workers that share the ports."""
