"""The peer: what a team would write today instead, as the documentation of its libraries has it.

FastAPI, Pydantic, SQLAlchemy with asyncpg: tables with the indexes that its queries need, a row of history for each
change in the same transaction, a version column against lost updates, a pool that is as large as the load needs. It
has no ledger, no replay, no proof and no exactly-once commands: it does less, and everything it leaves out is in its
favour here. Deliberately absent: anything of the product's, so that nothing of it can help or hinder.
"""
