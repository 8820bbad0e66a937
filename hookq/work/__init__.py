"""The way through: a job is leased, its handler is run, and what became of it is settled.

Read loop.py first, then attempt.py, keeper.py and pool.py; the rest serves these four.
"""
