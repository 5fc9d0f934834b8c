"""Moving traffic to a version in steps, and back: what is observed of a cluster, and what follows from it."""
