"""Metrics and logs. The only package that speaks to prometheus_client."""
