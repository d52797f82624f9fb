"""The half of the REST API that only looks."""
