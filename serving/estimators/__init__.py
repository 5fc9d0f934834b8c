"""Estimators saved as skops: read, checked for what compiled code would follow blindly, and only then used."""
