"""The demonstration's Feast repository."""
