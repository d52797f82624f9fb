"""The write side: what may happen to a ticket, and the record that it did.

Deliberately absent: HTTP, read models, settings. Nothing here imports `projections` or `api`.
"""
