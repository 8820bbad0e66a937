"""The crash matrix: every verb of the store, cut off before or just after each of its trips to
Redis (R4 to R6).

"After" is a lost reply: Redis has done the work and nobody was told. Whatever the cut, each job
must be in exactly one state, the ledger's gap 0, no orphan left; and asking once more must finish
the work without doubling it.
"""

import contextlib

import pytest
from conftest import Store, accepted, act, delivery
from redis import RedisError

from hookq.store.connection import Away
from hookq.store.keys import PREFIX, key
from hookq.store.records import Settled


class Died(OSError):
    """The client ended here."""


def dying(url, trip, when):
    """Return a store of worker w1 whose connection ends before, or after, its trip number `trip` to
    Redis.
    """
    store, count = Store(url, "w1"), [0]
    make = store.redis.connection_pool.make_connection

    def made():
        connection = make()
        connection.connect()
        send, read = connection.send_packed_command, connection.read_response

        def counted(*args, **more):
            count[0] += 1
            if (count[0], when) == (trip, "before"):
                connection.disconnect()
                raise Died("before")
            return send(*args, **more)

        def lost(*args, **more):
            try:
                return read(*args, **more)
            finally:
                if (count[0], when) == (trip, "after"):
                    connection.disconnect()
                    raise Died("after")

        connection.send_packed_command, connection.read_response = counted, lost
        return connection

    store.redis.connection_pool.make_connection = made
    return store, count


def leased(store, count=3):
    accepted(store, count)
    return store.lease({"github": 64}, 100)


def parked(store, outcome):
    leases = leased(store)
    store.settle([Settled(lease, outcome, {"attempt": 1}, reason="gave_up") for lease in leases])
    return [lease.delivery.id for lease in leases]


def discarded(store):
    store.discard(parked(store, "dead"), act("command", "b1"))


def old_and_new(store):
    """Prepare accept: the same calls are made by the verb and by the one who asks again."""
    return [(delivery(delivery_id=f"same-{n}"), 604_800) for n in range(3)] + [
        (delivery(delivery_id=""), 604_800)
    ]


# verb: (what is there before it, the verb, what the audit must say once it was asked for again)
VERBS = {
    "accept": (old_and_new, lambda s, batch: s.accept(batch), {"accepted": 4, "ready": 4}),
    "lease": (
        accepted,
        lambda s, _: s.lease({"github": 9}, 100) or s.lease({"github": 9}, 1, again=True),
        {"leased": 1},
    ),
    "complete": (
        leased,
        lambda s, held: s.settle([Settled(x, "done", {"attempt": 1}) for x in held]),
        {"done": 3},
    ),
    "reschedule": (
        leased,
        lambda s, held: s.settle([Settled(x, "retry", {"attempt": 1}, 60) for x in held]),
        {"retry": 3},
    ),
    "bury": (
        leased,
        lambda s, held: s.settle(
            [Settled(x, "dead", {"attempt": 1}, reason="gave_up") for x in held]
        ),
        {"dead": 3},
    ),
    "release": (
        leased,
        lambda s, held: s.settle([Settled(x, "ready") for x in held]),
        {"ready": 3},
    ),
    "promote": (lambda s: parked(s, "retry"), lambda s, _: s.promote(), {"ready": 3}),
    "reclaim": (leased, lambda s, _: s.reclaim("w1"), {"ready": 3}),
    "renew": (leased, lambda s, held: s.renew({"github": [x.entry for x in held]}), {"leased": 3}),
    "redrive": (
        lambda s: parked(s, "dead"),
        lambda s, ids: s.redrive(ids, act("command")),
        {"ready": 3},
    ),
    "redrive_rank": (lambda s: parked(s, "dead"), lambda s, _: s.redrive_rank(0, act()), None),
    "discard": (
        lambda s: parked(s, "dead"),
        lambda s, ids: s.discard(ids, act("command", "b1")),
        {"discarded": 3},
    ),
    "restore": (
        discarded,
        lambda s, _: s.restore(s.batch("b1"), act("command")),
        {"dead": 3, "discarded": 0},
    ),
}
TRIPS = range(1, 9)  # more than any verb makes: the connection's own set-up counts too


def whole(store):
    """Assert that nothing is lost, doubled or half done."""
    audit = store.audit()
    assert audit.gap == 0 and store.orphans() == []
    ids = [store.redis.hget(name, "id") for name in store.redis.scan_iter(key("job", "*"))]
    for source in store.sources():
        ids += [values[b"id"] for _, values in store.redis.xrange(key("ready", source))]
    assert len(ids) == len(set(ids))
    assert all(store.delivery(id.decode()).body == b'{"n":1}' for id in ids)
    return audit


def cut(store, url, prepare, verb, trip, when):
    """Run the verb on a client that dies; return whether it did, and what was prepared."""
    made = prepare(store)
    client, count = dying(url, trip, when)
    try:
        verb(client, made)
        return False, made
    except Away:
        assert count[0] >= trip
        return True, made
    finally:
        client.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("name", VERBS)
def test_verb_cut_off_leaves_the_state_before_or_after_it(store, redis_server, name, trip, when):
    prepare, verb, wanted = VERBS[name]
    died, made = cut(store, redis_server.url, prepare, verb, trip, when)
    whole(store)
    if died:
        with contextlib.suppress(Away):
            verb(store, made)
    audit = whole(store)
    if wanted:
        assert {name: getattr(audit, name) for name in wanted} == wanted
    # by rank: the first may have been put back before the reply was lost, and then the next is
    else:
        assert audit.ready in (1, 2) and audit.ready + audit.dead == 3


@pytest.mark.parametrize("name", VERBS)
def test_matrix_really_cuts_every_verb_off(store, redis_server, name):
    prepare, verb, _ = VERBS[name]
    for when in ("before", "after"):
        store.redis.flushall()
        store._groups.clear()
        assert cut(store, redis_server.url, prepare, verb, 1, when)[0]


def promote_in_two_steps(store, _):
    """What other queues do: take the due ones out, then put them into the queue. It exists to be
    caught.
    """
    try:
        ids = store.redis.zrange(key("retry"), 0, -1)
        store.redis.zrem(key("retry"), *ids)
        for id in ids:
            found = store.redis.hgetall(key("job", id.decode()))
            store.redis.xadd(PREFIX + "ready:github", found)
            store.redis.delete(key("job", id.decode()))
    except (OSError, RedisError) as error:
        raise Away(str(error)) from error


def test_matrix_finds_the_loss_of_a_verb_in_two_steps(store, redis_server):
    red = 0
    for trip in TRIPS:
        for when in ("before", "after"):
            store.redis.flushall()
            store._groups.clear()
            cut(
                store,
                redis_server.url,
                lambda s: parked(s, "retry"),
                promote_in_two_steps,
                trip,
                when,
            )
            try:
                whole(store)
            except AssertionError:
                red += 1
    assert red >= 2
