"""The half of the REST API that changes something."""
