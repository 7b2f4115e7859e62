"""MLflow: live logging and idempotent sync from what DVC recorded."""
