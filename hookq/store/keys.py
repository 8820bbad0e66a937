"""The names of the keys: all that Redis holds for webhookd, under one hash tag, so in one slot.

This table is the only one. Python makes a key by `key`, a script by `P ..` or `ready(`, with its
first word as a constant: tests/test_store.py finds every such word and compares it with the table.

    key                         type   contents                                          expiry
    {hookq}:sources             SET    every source that had a delivery or a worker      never
    {hookq}:ready:<source>      STREAM an entry per ready or leased job: the delivery    on settle
      group workers                    its pending list is the table of leases
    {hookq}:seen:<source>:<did> STRING job id of the delivery with this id (R6)          dedupe_s
    {hookq}:made:<job id>       STRING claims a job id where no `seen` outlives a day    1 day
    {hookq}:retry               ZSET   job id → due, unix seconds                        on promote
    {hookq}:retries             HASH   source → how many of its jobs are in retry        never
    {hookq}:dead                ZSET   job id → died at, unix seconds                    by a person
    {hookq}:dead:<source>       ZSET   the same, of one source                           by a person
    {hookq}:cause:<cause>       ZSET   the same, of one cause                            by a person
    {hookq}:causes              HASH   cause → its source and text                       with last
    {hookq}:job:<id>            HASH   a parked job (retry, dead, discarded), its body   24 h later
    {hookq}:batches             ZSET   batch (the act's id) → discarded at               24 h
    {hookq}:batch:<act>         ZSET   job id → died at, of what one act discarded       24 h
    {hookq}:ledger              HASH   accepted, done, discarded: move with the jobs     never
    {hookq}:metrics             HASH   counters: <name>:<source>[:<label>]               never
    {hookq}:last                HASH   the same names → when they were raised last       never
    {hookq}:minute:<minute>     HASH   accepted, done, dead, rejected of one minute      2 h
    {hookq}:history             STREAM what was done lately, without bodies              10,000
    {hookq}:recent              LIST   id, source, event type of what was accepted last  25
    {hookq}:acts                STREAM what operators did                                1,000
    {hookq}:workers             HASH   worker → when it came, heartbeat (JSON)           when gone
    {hookq}:ingestion           HASH   process → when it came, host, heartbeat (JSON)    a day after
    {hookq}:missing             HASH   worker → first seen without a connection          when back
    {hookq}:primary             HASH   who was asked last who is gone: run id, since     never
    {hookq}:hand                HASH   worker → entry of a suspect it is about to run    when gone
    {hookq}:format              STRING of all these: the newest that started here (1)    never
    {hookq}:epoch               STRING made once; gone: Redis came back empty            never

An entry of a stream, and a parked job, has the fields of hookq/job.py's table.

Promises: nothing; it only names.
"""

from typing import Final

PREFIX: Final = "{hookq}:"
GROUP: Final = "workers"


def key(*parts: str) -> str:
    """Return the name of a key; nobody else spells one."""
    return PREFIX + ":".join(parts)


def host_of(process: str) -> str:
    """Return the host in the name of a process: <kind>-<host>-<pid>-<token>, as `process.name_of`
    makes it.
    """
    return process.partition("-")[2].rsplit("-", 2)[0]
