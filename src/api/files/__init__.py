"""What becomes of a file's bytes: received, looked at, scanned, kept, and in the end removed."""
