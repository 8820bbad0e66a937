"""The way through: a job is leased, its handler is run, and what became of it is settled."""
