"""The names of the keys, and the scripts: what Redis holds for webhookd. Nobody else spells a key
(one hash tag: one slot).

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
    {hookq}:epoch               STRING made once; gone: Redis came back empty            never

An entry of a stream holds: v (format, 1), id, delivery_id, event_type, received_at, attempt (runs
so far), deaths, suspect, head (header lines as they came), body, secret (its place among the
source's).

Why scripts: each either runs whole or not at all, also when memory is full ("#!lua" makes Redis
refuse it before it starts). Those that settle or free carry allow-oom, so that a full Redis can
still be drained.

Promises: nothing; it only names. The scripts are read once, when the module is imported.
"""

import hashlib
import re
from pathlib import Path
from typing import Final

PREFIX: Final = "{hookq}:"

_ALLOW_OOM: Final = (
    "settle",
    "promote",
    "reclaim",
    "redrive",
    "discard",
    "restore",
    "beat",
    "here",
    "announce",
    "gone",
)
_READ_ONLY: Final = ("audit", "find", "select", "story")


def _scripts() -> dict[str, tuple[str, str]]:
    """Return verb → (SHA-1, text) of every script; the shared prelude is part of each."""
    folder = Path(__file__).with_name("lua")
    prelude, made = (folder / "prelude.lua").read_text(), {}
    for path in folder.glob("*.lua"):
        flags = (
            " flags=allow-oom"
            if path.stem in _ALLOW_OOM
            else " flags=no-writes"
            if path.stem in _READ_ONLY
            else ""
        )
        # Without comments and indents: accept is sent whole with each batch.
        text = f"#!lua{flags}\n" + re.sub(r"(?m)^\s*(--.*\n)?", "", prelude + path.read_text())
        made[path.stem] = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text
    del made["prelude"]
    return made


SCRIPTS: Final = _scripts()


def key(*parts: str) -> str:
    """Return the name of a key; nobody else spells one."""
    return PREFIX + ":".join(parts)


def host_of(process: str) -> str:
    """Return the host in the name of a process: <kind>-<host>-<pid>-<token>, as `process.name_of`
    makes it.
    """
    return process.partition("-")[2].rsplit("-", 2)[0]
