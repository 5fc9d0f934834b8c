"""Online features. The only package that speaks to Feast."""
