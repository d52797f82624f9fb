"""The edge: HTTP, the command line, settings, and where everything is put together."""
