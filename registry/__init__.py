"""What the MLflow registry says: references, versions, policies, artifacts. The only package that speaks to MLflow."""
