"""The read side: read models made of the ledger, a file for each, its writes and its reads together.

Deliberately absent: commands, HTTP. Nothing here imports `api`, and nothing here causes anything.
"""
