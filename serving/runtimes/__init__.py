"""Adapters of model flavours, one module each, imported when a version needs them."""
