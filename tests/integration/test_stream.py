"""The atomic steps of delivery, each against a real server: what they answer, and what they leave behind."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from cog_celery.delivery.link import Link
from cog_celery.delivery.stream import TICKET_VERSION, Delivery, Entry, Held, Queue, Ticket
from cog_celery.errors import GroupMissing, ServerError, ServerLost, SettingsConflict
from tests.support.monitor import Monitor
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.every_server, pytest.mark.ours]

BRIDGE = "b~00000001"
OTHER = "b~00000002"
LIFE = "w~00000003"
SLOT = f"{LIFE}.0"
SECOND = f"{LIFE}.1"


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[Link]:
    link = Link(redis_server.url, "test")
    yield link
    link.close()


@pytest.fixture
def queue(link: Link) -> Queue:
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
    queue.create_group(link)
    return queue


def add(link: Link, queue: Queue, value: str = "{}") -> str:
    entry: bytes = link.call("XADD", queue.name, "*", "value", value)
    return entry.decode()


def lives(link: Link, queue: Queue, *slots: str) -> None:
    queue.announce(link, LIFE, b"{}", 60)
    for slot in slots:
        queue.put_credit(link, slot)


def take(link: Link, queue: Queue, bridge: str = BRIDGE) -> tuple[str, Delivery]:
    answer = queue.take(link, bridge)
    assert answer[0] == "ticket"
    return answer[1], answer[3]


def claim(link: Link, queue: Queue, delivery: Delivery, slot: str = SLOT, bridge: str = BRIDGE) -> Delivery | None:
    return queue.claim(link, slot, Ticket(TICKET_VERSION, queue.name, delivery.entry, delivery.attempt, bridge, slot))


def owners(link: Link, queue: Queue) -> dict[str, tuple[str, int]]:
    return {line.at.id: (line.owner, line.attempt) for line in queue.overdue(link, queue.name, 0)}


def test_an_entry_is_taken_only_together_with_a_credit(link: Link, queue: Queue) -> None:
    entry = add(link, queue, '{"a":1}')
    assert queue.take(link, BRIDGE) == ("no credit",)
    assert owners(link, queue) == {}
    lives(link, queue, SLOT)
    assert take(link, queue) == (SLOT, Delivery(Entry(queue.name, entry), 1, b'{"a":1}'))
    assert link.call("LLEN", queue.credits) == 0
    assert owners(link, queue) == {entry: (BRIDGE, 1)}


def test_without_an_entry_the_credit_stays_and_the_last_delivered_id_comes_back(link: Link, queue: Queue) -> None:
    lives(link, queue, SLOT)
    assert queue.take(link, BRIDGE) == ("no entry", ("0-0",))
    assert link.call("LRANGE", queue.credits, 0, -1) == [SLOT.encode()]


def test_credits_of_a_dead_worker_are_void(link: Link, queue: Queue) -> None:
    add(link, queue)
    queue.put_credit(link, SLOT)
    assert queue.take(link, BRIDGE) == ("no credit",)
    assert link.call("LLEN", queue.credits) == 0


def test_a_credit_is_put_down_once(link: Link, queue: Queue) -> None:
    assert queue.put_credit(link, SLOT)
    assert not queue.put_credit(link, SLOT)
    assert link.call("LLEN", queue.credits) == 1
    assert queue.withdraw_credit(link, SLOT)
    assert not queue.withdraw_credit(link, SLOT)


def test_a_missing_group_is_said_and_no_credit_is_lost(link: Link) -> None:
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
    lives(link, queue, SLOT)
    with pytest.raises(GroupMissing):
        queue.take(link, BRIDGE)
    assert link.call("LLEN", queue.credits) == 1
    assert not queue.group_exists(link)
    assert queue.create_group(link)
    assert not queue.create_group(link)


def test_watch_and_wait_for_credit_return_at_once_when_there_is_something_and_consume_nothing(
    link: Link, queue: Queue, redis_server: RedisServer
) -> None:
    other = Link(redis_server.url, "other")
    for wait, act in (
        (lambda: queue.watch(link, ("0-0",), 10), lambda: add(other, queue)),
        (lambda: queue.wait_for_credit(link, 10), lambda: queue.put_credit(other, SLOT)),
    ):
        thread = threading.Thread(target=wait)
        thread.start()
        act()
        thread.join(5)
        assert not thread.is_alive()
    assert owners(link, queue) == {}
    assert link.call("LLEN", queue.credits) == 1
    other.close()


def test_a_claim_moves_the_entry_to_the_slot_and_keeps_the_attempt_and_may_be_repeated(
    link: Link, queue: Queue
) -> None:
    add(link, queue)
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    assert claim(link, queue, delivery) == delivery
    assert claim(link, queue, delivery) == delivery
    assert owners(link, queue) == {delivery.entry: (SLOT, 1)}
    assert claim(link, queue, delivery, slot=SECOND) is None


def test_a_void_ticket_changes_nothing(link: Link, queue: Queue) -> None:
    add(link, queue)
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    for wrong in (Delivery(delivery.at, 2, None), Delivery(Entry(queue.name, "1-1"), 1, None)):
        assert claim(link, queue, wrong) is None
    assert claim(link, queue, delivery, bridge=OTHER) is None
    assert owners(link, queue) == {delivery.entry: (BRIDGE, 1)}


def test_an_entry_that_was_deleted_before_its_start_is_acked(link: Link, queue: Queue) -> None:
    entry = add(link, queue)
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    link.call("XDEL", queue.name, entry)
    assert claim(link, queue, delivery) is None
    assert owners(link, queue) == {}


def running(link: Link, queue: Queue) -> Delivery:
    add(link, queue, '{"x":1}')
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    claimed = claim(link, queue, delivery)
    assert claimed is not None
    return claimed


def publish(link: Link, queue: Queue, delivery: Delivery, owner: str, key: str, cancel: str | None = None) -> str:
    return queue.publish(link, delivery, owner, key, cancel, "", b"snapshot")


def test_only_the_owner_at_its_attempt_publishes_and_learns_of_the_cancel_key(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    response, cancel = f"{queue.name}-r", f"{queue.name}-c"
    assert publish(link, queue, delivery, BRIDGE, response) == "lost"
    assert publish(link, queue, Delivery(delivery.at, 2, None), SLOT, response) == "lost"
    assert link.call("EXISTS", response) == 0
    assert publish(link, queue, delivery, SLOT, response, cancel) == "shown"
    link.call("RPUSH", cancel, "a list is a key too")
    assert publish(link, queue, delivery, SLOT, response, cancel) == "canceled"
    assert link.call("GET", response) == b"snapshot"


def test_a_commit_ends_the_delivery_and_takes_the_next_in_one_step(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    second = add(link, queue, "second")
    response = f"{queue.name}-r"
    answer = queue.commit(link, delivery, SLOT, response, b"end", before=b"burst", duration=0.25, take=True)
    assert answer == ("done", Delivery(Entry(queue.name, second), 1, b"second"))
    assert link.call("GET", response) == b"end"
    assert owners(link, queue) == {second: (SLOT, 1)}
    assert link.call("XLEN", queue.name) == 1
    assert link.call("XRANGE", queue.run_time, "-", "+")[0][1] == [b"duration", b"0.250000"]


def test_a_commit_that_is_repeated_after_a_lost_reply_is_settled_and_finds_what_it_took(
    link: Link, queue: Queue
) -> None:
    delivery = running(link, queue)
    second = add(link, queue, "second")
    response = f"{queue.name}-r"
    queue.commit(link, delivery, SLOT, response, b"end", take=True)
    link.call("SET", response, "read by its producer")
    answer = queue.commit(link, delivery, SLOT, response, b"end", take=True)
    assert answer == ("settled", Delivery(Entry(queue.name, second), 1, b"second"))
    assert link.call("GET", response) == b"read by its producer"
    assert link.call("XLEN", queue.run_time) == 0


def test_a_stale_commit_writes_nothing(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    (line,) = queue.overdue(link, queue.name, 0)
    assert queue.reclaim(link, line, OTHER, 0, counts=True) == 2
    response = f"{queue.name}-r"
    assert queue.commit(link, delivery, SLOT, response, b"end", take=True) == ("stale", None)
    assert link.call("EXISTS", response) == 0
    assert owners(link, queue) == {delivery.entry: (OTHER, 2)}


def test_what_may_not_be_written_ends_the_delivery_all_the_same(
    link: Link, queue: Queue, redis_server: RedisServer
) -> None:
    user, rules = f"u-{queue.name}", (f"~{queue.name}*", "~cog-celery:*", "+@all")
    link.call("ACL", "SETUSER", user, "on", ">secret", *rules)
    limited = Link(redis_server.url.replace("redis://", f"redis://{user}:secret@"), "limited")
    try:
        delivery = running(link, queue)
        assert publish(limited, queue, delivery, SLOT, "not-for-you") == "refused"
        assert queue.commit(limited, delivery, SLOT, "not-for-you", b"end") == ("refused", None)
        assert owners(link, queue) == {delivery.entry: (SLOT, 1)}
        assert "forbids" in str(queue.bury(limited, delivery, SLOT, "not-for-you", b"end", "why"))
        assert owners(link, queue) == {}
        assert link.call("XLEN", queue.dead) == 1
    finally:
        limited.close()
        link.call("ACL", "DELUSER", user)


def test_keys_of_another_type_cost_the_statistics_and_the_letter_but_not_the_answer(link: Link, queue: Queue) -> None:
    link.call("SET", queue.run_time, "a string")
    link.call("SET", queue.dead, "a string")
    delivery = running(link, queue)
    second = add(link, queue)
    assert queue.commit(link, delivery, SLOT, f"{queue.name}-r", b"end", duration=1.0, take=True)[1] is not None
    fault = queue.bury(link, Delivery(Entry(queue.name, second), 1, None), SLOT, None, b"", "why")
    assert isinstance(fault, str) and "WRONGTYPE" in fault
    assert owners(link, queue) == {}
    assert link.call("XLEN", queue.name) == 0


def test_a_reply_that_nobody_took_is_not_taken_for_anothers(link: Link, queue: Queue) -> None:
    link.post("ECHO", "somebody else's")
    assert link.call("ECHO", "ours") == b"ours"


def test_a_worker_that_was_not_known_learns_it_when_it_announces_itself(link: Link, queue: Queue) -> None:
    assert not queue.announce(link, LIFE, b"{}", 60)
    assert queue.announce(link, LIFE, b"{}", 60)
    queue.denounce(link, LIFE)
    assert not queue.announce(link, LIFE, b"{}", 60)


def test_run_times_are_capped_at_exactly_100(link: Link, queue: Queue) -> None:
    lives(link, queue, SLOT)
    for _ in range(130):
        add(link, queue)
    _, delivery = take(link, queue)
    next: Delivery | None = claim(link, queue, delivery)
    while next is not None:
        _, next = queue.commit(link, next, SLOT, None, b"", duration=0.001, take=True)
    assert link.call("XLEN", queue.name) == 0
    assert link.call("XLEN", queue.run_time) == 100


def test_a_response_lives_as_long_as_it_is_told(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    response = f"{queue.name}-r"
    queue.commit(link, delivery, SLOT, response, b"end", ttl=60_000)
    assert 55_000 < link.call("PTTL", response) <= 60_000


def test_a_buried_message_is_among_the_dead_letters_as_it_was(link: Link, queue: Queue) -> None:
    link.call("XADD", queue.name, "*", "value", b"\xff", "other", "field")
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    assert not queue.bury(link, delivery, OTHER, "r", b"s", "why")
    assert queue.bury(link, delivery, BRIDGE, f"{queue.name}-r", b"s", "why")
    assert link.call("XLEN", queue.name) == 0
    assert owners(link, queue) == {}
    (_, fields) = link.call("XRANGE", queue.dead, "-", "+")[0]
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter == {
        b"reason": b"why",
        b"entry": delivery.entry.encode(),
        b"attempts": b"0",
        b"owner": BRIDGE.encode(),
        b"value": b"\xff",
        b"other": b"field",
    }


def test_an_entry_with_more_fields_than_lua_can_pass_is_buried_all_the_same(link: Link, queue: Queue) -> None:
    link.call("XADD", queue.name, "*", *(f"f{i // 2}" for i in range(20_000)))
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    assert delivery.value is None
    assert queue.bury(link, delivery, BRIDGE, None, b"", "no value")
    assert link.call("XLEN", queue.name) == 0


def test_extend_tells_held_lost_and_deleted_apart_and_begins_the_lease_anew(link: Link, queue: Queue) -> None:
    first = running(link, queue)
    add(link, queue)
    lives(link, queue, SECOND)
    _, delivery = take(link, queue)
    second = claim(link, queue, delivery, slot=SECOND)
    assert second is not None
    link.call("XDEL", queue.name, second.entry)
    time.sleep(0.5)  # for idle time to be there: the server's clock cannot be awaited otherwise
    nowhere = Entry(queue.name, "1-1")
    held = [Held(first.at, SLOT, 1), Held(second.at, SECOND, 1), Held(first.at, OTHER, 1), Held(nowhere, SLOT, 1)]
    assert queue.extend(link, held) == ["held", "deleted", "lost", "lost"]
    idle = {line.at.id: line.idle for line in queue.overdue(link, queue.name, 0)}
    assert idle[first.entry] < 500 <= idle[second.entry]
    # Still pending, so that its last snapshot is fenced.
    assert queue.commit(link, second, SECOND, f"{queue.name}-r", b"canceled")[0] == "done"


def test_a_released_entry_is_reclaimed_at_once_at_the_same_attempt(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    assert not queue.release(link, Held(delivery.at, OTHER, 1), 10)
    assert queue.release(link, Held(delivery.at, SLOT, 1), 10)
    (line,) = queue.overdue(link, queue.name, 10)
    assert (line.owner, line.attempt) == ("released", 1)
    assert queue.reclaim(link, line, OTHER, 10, counts=False) == 1
    assert owners(link, queue) == {delivery.entry: (OTHER, 1)}
    assert queue.overdue(link, queue.name, 10) == []


def test_a_reclaim_that_counts_raises_the_attempt_by_one_and_voids_what_was_before(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    (line,) = queue.overdue(link, queue.name, 0)
    assert queue.reclaim(link, line, OTHER, 3600, counts=True) == 0  # not idle for so long
    assert queue.reclaim(link, line, OTHER, 0, counts=True) == 2
    assert queue.reclaim(link, line, BRIDGE, 0, counts=True) == 0  # somebody was faster
    lives(link, queue, SECOND)
    answer = queue.take(link, OTHER, delivery.at, 2)
    assert answer == ("ticket", SECOND, TICKET_VERSION, Delivery(delivery.at, 2, b'{"x":1}'))
    assert queue.take(link, BRIDGE, delivery.at, 2)[0] == "no credit"
    lives(link, queue, SECOND)
    assert queue.take(link, BRIDGE, delivery.at, 2) == ("gone",)
    assert link.call("LLEN", queue.credits) == 1


def test_recover_finds_what_a_consumer_owns_and_acks_what_was_deleted(link: Link, queue: Queue) -> None:
    assert queue.recover(link, SLOT, 10) is None
    first = running(link, queue)
    assert queue.recover(link, SLOT, 10) == first
    link.call("XDEL", queue.name, first.entry)
    assert queue.recover(link, SLOT, 10) is None
    assert owners(link, queue) == {}


def test_a_consumer_with_something_pending_is_not_deleted(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    queue.forget(link, SLOT)
    assert owners(link, queue) == {delivery.entry: (SLOT, 1)}
    queue.commit(link, delivery, SLOT, None, b"")
    assert set(queue.idle_consumers(link, -1)) == {SLOT, BRIDGE}
    queue.forget(link, SLOT)
    assert queue.idle_consumers(link, -1) == [BRIDGE]


def test_a_slot_in_its_turn_is_served_before_the_bridge_that_watches(
    link: Link, queue: Queue, redis_server: RedisServer
) -> None:
    slot = Link(redis_server.url, "slot")
    served: list[Delivery | None] = []
    thread = threading.Thread(target=lambda: served.append(queue.next(slot, SLOT, 10, 10)))
    thread.start()
    while b"cmd=xreadgroup" not in link.call("CLIENT", "LIST"):
        time.sleep(0.001)
    entry = add(link, queue, "now")
    thread.join(5)
    assert served == [Delivery(Entry(queue.name, entry), 1, b"now")]
    lives(link, queue, SECOND)
    assert queue.take(link, BRIDGE) == ("no entry", (entry,))
    slot.close()


def test_the_first_process_settles_how_a_queue_works(link: Link, queue: Queue) -> None:
    assert queue.agree(link, None, 2.5, None).lease == 2.5
    agreed = queue.agree(link, "cog-0.4", None, 3)
    assert (agreed.dialect, agreed.lease, agreed.max_attempts) == ("cog-0.4", 2.5, 3)
    with pytest.raises(SettingsConflict, match=r"lease=2\.5"):
        queue.agree(link, None, 10.0, None)


def test_scripts_that_the_server_forgot_are_loaded_again(link: Link, queue: Queue) -> None:
    queue.put_credit(link, SLOT)
    link.call("SCRIPT", "FLUSH")
    assert not queue.put_credit(link, SLOT)


def test_a_server_that_is_gone_is_said_so(own_server: RedisServer) -> None:
    link = Link(own_server.url, "test")
    link.call("PING")
    own_server.stop()
    with pytest.raises(ServerLost):
        link.call("PING")


# -- what was given back


def test_what_was_given_back_is_taken_before_what_is_new_and_its_attempt_does_not_count(
    link: Link, queue: Queue
) -> None:
    delivery = running(link, queue)
    add(link, queue, "new")
    assert queue.release(link, Held(delivery.at, SLOT, 1), 10)
    lives(link, queue, SECOND)
    assert take(link, queue) == (SECOND, Delivery(delivery.at, 1, b'{"x":1}'))


def test_a_commit_takes_what_was_given_back(link: Link, queue: Queue) -> None:
    given_back = running(link, queue)
    current = running(link, queue)
    queue.release(link, Held(given_back.at, SLOT, 1), 10)
    answer = queue.commit(link, current, SLOT, f"{queue.name}-r", b"end", take=True)
    assert answer == ("done", Delivery(given_back.at, 1, b'{"x":1}'))


def test_what_was_given_back_and_deleted_is_taken_by_nobody(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    queue.release(link, Held(delivery.at, SLOT, 1), 10)
    link.call("XDEL", queue.name, delivery.entry)
    lives(link, queue, SLOT)
    assert queue.take(link, BRIDGE) == ("no entry", (delivery.entry,))
    assert owners(link, queue) == {}


def test_whoever_watches_is_woken_by_what_is_given_back_also_just_before(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    watcher = Queue(queue.name)
    queue.release(link, Held(delivery.at, SLOT, 1), 10)
    since = time.monotonic()
    watcher.watch(link, (delivery.entry,), 5)
    assert time.monotonic() - since < 1
    watcher.watch(link, (delivery.entry,), 0.05)  # and only once
    assert time.monotonic() - since >= 0.05


# -- keys that are not for responses


@pytest.mark.parametrize("make", [("XADD", "*", "a", "b"), ("RPUSH", "a"), ("HSET", "a", "b")])
def test_a_response_never_replaces_what_is_no_response(link: Link, queue: Queue, make: tuple[str, ...]) -> None:
    delivery = running(link, queue)
    key = f"{queue.name}-somebodys"
    link.call(make[0], key, *make[1:])
    kind = link.call("TYPE", key)
    assert publish(link, queue, delivery, SLOT, key) == "refused"
    assert queue.commit(link, delivery, SLOT, key, b"end") == ("refused", None)
    assert "WRONGTYPE" in str(queue.bury(link, delivery, SLOT, key, b"end", "why"))
    assert link.call("TYPE", key) == kind
    assert owners(link, queue) == {}


# -- one id, one run


def enrolled(link: Link, queue: Queue, delivery: Delivery, key: str, id: str = "an id", slot: str = SLOT) -> str:
    return queue.enroll(link, delivery, slot, queue.record(id), f"{queue.name}-{key}", 0)


def test_the_second_request_with_an_id_is_ended_and_gets_what_the_first_one_gets(link: Link, queue: Queue) -> None:
    first, second = running(link, queue), running(link, queue)
    record = queue.record("an id")
    assert enrolled(link, queue, first, "1") == "first"
    assert enrolled(link, queue, first, "1") == "first", "the same attempt, after a lost reply"
    queue.publish(link, first, SLOT, f"{queue.name}-1", None, record, b"started")
    assert enrolled(link, queue, second, "2") == "follows"
    assert link.call("GET", f"{queue.name}-2") == b"started"
    assert owners(link, queue) == {first.entry: (SLOT, 1)}
    assert link.call("XLEN", queue.name) == 1
    queue.publish(link, first, SLOT, f"{queue.name}-1", None, record, b"shown")
    assert link.call("GET", f"{queue.name}-2") == b"shown"
    queue.commit(link, first, SLOT, f"{queue.name}-1", b"end", record=record, record_ttl=60)
    assert link.call("MGET", f"{queue.name}-1", f"{queue.name}-2") == [b"end", b"end"]
    third = running(link, queue)
    assert enrolled(link, queue, third, "3") == "follows"
    assert link.call("GET", f"{queue.name}-3") == b"end"
    assert 0 < link.call("PTTL", record) <= 60_000


def test_a_record_that_tells_no_stream_is_of_the_queues_own(link: Link, queue: Queue) -> None:
    first, second = running(link, queue), running(link, queue)
    link.call("HSET", queue.record("an id"), "entry", first.entry)
    assert enrolled(link, queue, second, "2") == "follows"
    assert enrolled(link, queue, first, "1") == "first"


def test_an_id_that_is_kept_no_more_or_whose_entry_was_deleted_may_be_run_again(link: Link, queue: Queue) -> None:
    first, second = running(link, queue), running(link, queue)
    assert enrolled(link, queue, first, "1") == "first"
    link.call("XDEL", queue.name, first.entry)
    link.call("XACK", queue.name, queue.name, first.entry)
    assert enrolled(link, queue, second, "2") == "first"
    queue.commit(link, second, SLOT, f"{queue.name}-2", b"end", record=queue.record("an id"), record_ttl=0)
    assert enrolled(link, queue, running(link, queue), "3") == "first"


def test_a_request_that_is_buried_tells_its_followers_and_its_id_may_be_sent_again(link: Link, queue: Queue) -> None:
    first, second = running(link, queue), running(link, queue)
    enrolled(link, queue, first, "1")
    enrolled(link, queue, second, "2")
    record = queue.record("an id")
    assert queue.bury(link, first, SLOT, f"{queue.name}-1", b"lost", "lost", record=record)
    assert link.call("MGET", f"{queue.name}-1", f"{queue.name}-2") == [b"lost", b"lost"]
    assert enrolled(link, queue, running(link, queue), "3") == "first"


def test_those_who_followed_a_request_that_vanished_follow_the_next(link: Link, queue: Queue) -> None:
    first, second, third = running(link, queue), running(link, queue), running(link, queue)
    enrolled(link, queue, first, "1")
    assert enrolled(link, queue, second, "2") == "follows"
    link.call("XDEL", queue.name, first.entry)
    link.call("XACK", queue.name, queue.name, first.entry)
    assert enrolled(link, queue, third, "3") == "first"
    queue.commit(link, third, SLOT, f"{queue.name}-3", b"end", record=queue.record("an id"), record_ttl=60)
    assert link.call("MGET", f"{queue.name}-2", f"{queue.name}-3") == [b"end", b"end"]


def test_a_request_that_is_sent_again_with_its_response_key_gets_one_final_response(
    link: Link, queue: Queue, redis_server: RedisServer
) -> None:
    first, second = running(link, queue), running(link, queue)
    key, record = f"{queue.name}-1", queue.record("an id")
    with Monitor(redis_server.client) as monitor:
        enrolled(link, queue, first, "1")
        assert enrolled(link, queue, second, "1") == "follows"
        queue.commit(link, first, SLOT, key, b'"end"', record=record, record_ttl=60)
        assert enrolled(link, queue, running(link, queue), "1") == "follows"
        assert len(monitor.sets(key)) == 1


def test_a_crowd_behind_one_id_and_a_key_that_is_no_response_are_refused(link: Link, queue: Queue) -> None:
    enrolled(link, queue, running(link, queue), "first")
    verdicts = [enrolled(link, queue, running(link, queue), f"r{number}") for number in range(104)]
    assert set(verdicts[:100]) == {"follows"} and verdicts[-1] == "crowded"
    link.call("RPUSH", f"{queue.name}-list", "a")
    assert enrolled(link, queue, running(link, queue), "list", id="another") == "refused"


def test_a_letter_that_may_not_be_kept_or_is_large_costs_itself_alone(
    link: Link, queue: Queue, redis_server: RedisServer
) -> None:
    user, rules = f"u-{queue.name}", (f"~{queue.name}", f"~{queue.name}-r", "~cog-celery:*", "+@all")
    link.call("ACL", "SETUSER", user, "on", ">secret", *rules)
    limited = Link(redis_server.url.replace("redis://", f"redis://{user}:secret@"), "limited")
    try:
        delivery = running(link, queue)
        assert queue.dead in str(queue.bury(limited, delivery, SLOT, f"{queue.name}-r", b"end", "why"))
        assert link.call("GET", f"{queue.name}-r") == b"end"
        assert owners(link, queue) == {}
    finally:
        limited.close()
        link.call("ACL", "DELUSER", user)
    large = add(link, queue, "x" * 1000)
    lives(link, queue, SLOT)
    _, delivery = take(link, queue)
    assert delivery.entry == large
    assert queue.bury(link, delivery, BRIDGE, None, b"", "why", most=100) is True
    fields = link.call("XRANGE", queue.dead, "-", "+")[0][1]
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"value"] == b"x" * 100 and b"cut" in letter[b"reason"]


def test_a_stale_attempt_enrolls_nothing(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    assert enrolled(link, queue, delivery, "1", slot=SECOND) == "stale"
    assert not link.call("EXISTS", queue.record("an id"))


def test_what_happens_to_deliveries_is_counted(link: Link, queue: Queue) -> None:
    delivery = running(link, queue)
    response = f"{queue.name}-r"
    queue.commit(link, delivery, SECOND, response, b"end")
    publish(link, queue, delivery, SECOND, response)
    for _ in range(2):
        queue.commit(link, delivery, SLOT, response, b"end")
    another = running(link, queue)
    queue.release(link, Held(another.at, SLOT, 1), 10)
    lives(link, queue, SLOT)
    _, again = take(link, queue)
    queue.bury(link, again, BRIDGE, None, b"", "why")
    flat = link.call("HGETALL", queue.counts)
    counts = dict(zip(flat[::2], map(int, flat[1::2]), strict=True))
    assert counts == {b"stale": 2, b"done": 1, b"settled": 1, b"released": 1, b"dead": 1}


# -- a lane


@pytest.fixture
def lanes(link: Link) -> Queue:
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}", priority=True)
    queue.create_group(link)
    return queue


def test_the_lane_is_served_first_and_every_tenth_time_last(link: Link, lanes: Queue) -> None:
    for i in range(20):
        link.call("XADD", lanes.name, "*", "value", f"low {i}")
        link.call("XADD", lanes.high, "*", "value", f"high {i}")
    delivery = lanes.next(link, SLOT, 1, 10)
    served = []
    while delivery is not None:
        served.append((delivery.value or b"").split()[0])
        _, delivery = lanes.commit(link, delivery, SLOT, None, b"", take=True)
    # The first read, of both at once, gave the one of the queue's own stream back.
    assert served == ([b"high"] * 10 + [b"low"] + [b"high"] * 9 + [b"low"] + [b"high"] + [b"low"] * 18)
    assert lanes.length(link) == 0


def test_bridges_take_from_the_lane_first_too_and_watch_both_streams(
    link: Link, lanes: Queue, redis_server: RedisServer
) -> None:
    lives(link, lanes, SLOT, SECOND)
    answer = lanes.take(link, BRIDGE)
    assert answer == ("no entry", ("0-0", "0-0"))
    other = Link(redis_server.url, "other")
    for stream in lanes.streams:
        thread = threading.Thread(target=lambda: lanes.watch(link, ("0-0", "0-0"), 10))
        thread.start()
        entry = other.call("XADD", stream, "*", "value", stream)
        thread.join(5)
        assert not thread.is_alive()
        other.call("XDEL", stream, entry)
    link.call("XADD", lanes.name, "*", "value", "low")
    link.call("XADD", lanes.high, "*", "value", "high")
    assert [take(link, lanes)[1].value for _ in range(2)] == [b"high", b"low"]
    assert lanes.owners(link) == {BRIDGE: 2}
    assert {line.at.stream for line in lanes.owned(link, BRIDGE)} == set(lanes.streams)
    other.close()


def test_what_a_consumer_owns_is_read_page_by_page(link: Link, lanes: Queue) -> None:
    for i in range(5):
        for stream in lanes.streams:
            link.call("XADD", stream, f"{i + 1}-1", "value", "x")
    while lanes.read_next(link, BRIDGE, 0.01):
        pass
    for page in (1, 2, 5, 1000):
        owned = lanes.owned(link, BRIDGE, page)
        assert [(line.at.stream, line.at.id) for line in owned] == [
            (stream, f"{i + 1}-1") for stream in lanes.streams for i in range(5)
        ]


def test_entries_of_the_same_id_in_both_streams_are_two(link: Link, lanes: Queue) -> None:
    for stream in lanes.streams:
        link.call("XADD", stream, "7-7", "value", stream)
    lives(link, lanes, SLOT, SECOND)
    (_, high), (_, low) = take(link, lanes), take(link, lanes)
    assert (high.entry, low.entry) == ("7-7", "7-7")
    assert (high.lane, low.lane) == (True, False)
    assert len({high.at, low.at}) == 2 == len({high.name, low.name})
    held = [claim_it(link, lanes, delivery) for delivery in (high, low)]
    assert lanes.extend(link, [Held(one.at, SLOT, 1) for one in held]) == ["held", "held"]
    assert lanes.commit(link, held[0], SLOT, "r-high", b"1")[0] == "done"
    # The commit before was of the other one: this is no retry of it.
    assert lanes.commit(link, Delivery(held[1].at, 2, None), SLOT, "r-low", b"2")[0] == "stale"
    assert lanes.commit(link, held[0], SLOT, "r-high", b"1") == ("settled", held[1])
    assert lanes.commit(link, held[1], SLOT, "r-low", b"2")[0] == "done"
    assert lanes.commit(link, held[0], SLOT, "r-high", b"1")[0] == "stale"


def claim_it(link: Link, queue: Queue, delivery: Delivery) -> Delivery:
    ticket = Ticket(TICKET_VERSION, delivery.at.stream, delivery.entry, delivery.attempt, BRIDGE, SLOT)
    claimed = queue.claim(link, SLOT, ticket)
    assert claimed == delivery
    return delivery


def test_of_two_entries_that_a_lost_reply_took_one_is_given_back(link: Link, lanes: Queue) -> None:
    for stream in lanes.streams:
        link.call("XADD", stream, "*", "value", stream)
    assert len(lanes.read_next(link, SLOT, 1)) == 2
    recovered = lanes.recover(link, SLOT, 10)
    assert recovered is not None and recovered.lane
    assert lanes.owners(link) == {SLOT: 1, "released": 1}
    assert lanes.recover(link, SLOT, 10) == recovered
    _, second = lanes.commit(link, recovered, SLOT, None, b"", take=True)
    assert second is not None and (second.lane, second.attempt) == (False, 1)


def test_a_lane_that_is_gone_is_said_and_made_again(link: Link, lanes: Queue) -> None:
    lives(link, lanes, SLOT)
    link.call("DEL", lanes.high)
    assert not lanes.group_exists(link)
    with pytest.raises(GroupMissing):
        lanes.take(link, BRIDGE)
    assert lanes.create_group(link)
    assert lanes.take(link, BRIDGE)[0] == "no entry"


@pytest.mark.parametrize("instead", [(), ("SET", "{lane}", "no stream")])
def test_what_runs_of_the_queue_does_not_end_with_the_lane(link: Link, lanes: Queue, instead: tuple[str, ...]) -> None:
    for stream in lanes.streams:
        link.call("XADD", stream, "*", "value", stream)
    held = [Held(one.at, SLOT, 1) for one in lanes.read_next(link, SLOT, 1)]
    link.call("DEL", lanes.high)
    if instead:
        link.call(*(word.format(lane=lanes.high) for word in instead))
    assert lanes.extend(link, held) == ["lost", "held"]
    link.call("DEL", lanes.name)
    assert lanes.extend(link, held) == ["lost", "lost"]


def test_reclaims_burials_and_forgotten_consumers_are_of_both_streams(link: Link, lanes: Queue) -> None:
    for stream in lanes.streams:
        link.call("XADD", stream, "*", "value", stream)
    assert len(lanes.read_next(link, SLOT, 1)) == 2
    for stream in lanes.streams:
        (line,) = lanes.overdue(link, stream, 0)
        assert lanes.reclaim(link, line, BRIDGE, 0, counts=True) == 2
        delivery = lanes.read(link, line.at, 2)
        assert delivery is not None and delivery.value == stream.encode()
        assert lanes.bury(link, delivery, BRIDGE, None, b"", "why") is True
    assert lanes.length(link) == 0
    assert link.call("XLEN", lanes.dead) == 2
    assert set(lanes.idle_consumers(link, -1)) == {SLOT, BRIDGE}
    lanes.forget(link, SLOT)
    assert lanes.idle_consumers(link, -1) == [BRIDGE]


def test_whether_there_is_a_lane_is_agreed_on(link: Link) -> None:
    queue, other = Queue(name := f"q-{uuid.uuid4().hex[:8]}"), Queue(name)
    assert queue.agree(link, None, None, None, priority=True).priority
    assert queue.streams == (f"{name}.high", name)
    assert other.agree(link, None, None, None).priority
    assert other.streams == queue.streams
    with pytest.raises(SettingsConflict, match="works with priority=True, not False"):
        other.agree(link, None, None, None, priority=False)


def test_no_stream_is_the_lane_of_a_queue_and_a_queue_besides(link: Link) -> None:
    name = f"q-{uuid.uuid4().hex[:8]}"
    high = Queue(f"{name}.high")
    high.agree(link, None, None, None)
    with pytest.raises(SettingsConflict, match=rf"Queue {name} has a lane, and its stream {name}.high is a queue"):
        Queue(name).agree(link, None, None, None, priority=True)
    high.agree(link, None, None, None)  # as before
    link.call("DEL", high.settings_key)
    assert Queue(name).agree(link, None, None, None, priority=True).priority
    with pytest.raises(SettingsConflict, match=rf"Queue {name}.high is the lane of queue {name}: name it otherwise"):
        high.agree(link, None, None, None)


# -- from one queue to another


def test_a_move_is_one_step_and_only_its_owner_s(link: Link, queue: Queue) -> None:
    target = Queue(f"{queue.name}-v1")
    entry = add(link, queue, '{"x":1}')
    (delivery,) = queue.read_next(link, BRIDGE, 1)
    assert queue.move(link, delivery, OTHER, target.name, b"") is None
    assert queue.move(link, Delivery(delivery.at, 2, None), BRIDGE, target.name, b"") is None
    assert not link.call("EXISTS", target.name)
    moved = queue.move(link, delivery, BRIDGE, target.name, b"{}")
    assert link.call("XRANGE", target.name, "-", "+") == [[(moved or "").encode(), [b"value", b'{"x":1}']]]
    assert queue.length(link) == 0 == len(queue.owners(link))
    assert queue.move(link, delivery, BRIDGE, target.name, b"") is None, (
        "a retry after a lost reply moves nothing twice"
    )
    assert link.call("XLEN", target.name) == 1
    ((_, note),) = link.call("XRANGE", queue.recent, "-", "+")
    assert note[:6] == [b"what", b"moved", b"entry", entry.encode(), b"owner", f"{target.name}/{moved}".encode()]


def test_nothing_is_moved_to_a_lane_that_nobody_serves(link: Link, lanes: Queue) -> None:
    target = Queue(f"{lanes.name}-v1")
    target.agree(link, None, None, None)
    for stream in lanes.streams:
        link.call("XADD", stream, "*", "value", stream)
    high, low = lanes.read_next(link, BRIDGE, 1)
    assert lanes.move(link, low, BRIDGE, target.name, b"")
    with pytest.raises(ServerError, match=f"NOLANE the processes of {target.name} were started without its lane"):
        lanes.move(link, high, BRIDGE, target.high, b"")
    assert lanes.owners(link) == {BRIDGE: 1} and not link.call("EXISTS", target.high)
    link.call("DEL", target.settings_key)
    target.agree(link, None, None, None, priority=True)
    assert lanes.move(link, high, BRIDGE, target.high, b"")
    assert link.call("XLEN", target.high) == 1


def test_what_was_deleted_is_not_moved_and_leaves_the_pending_list(link: Link, queue: Queue) -> None:
    add(link, queue)
    (delivery,) = queue.read_next(link, BRIDGE, 1)
    link.call("XDEL", queue.name, delivery.entry)
    assert queue.move(link, delivery, BRIDGE, f"{queue.name}-v1", b"") is None
    assert queue.owners(link) == {} and not link.call("EXISTS", f"{queue.name}-v1")


def test_a_queue_without_slots_is_no_worker_s(link: Link) -> None:
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
    assert queue.agree(link, None, None, None, front=True).front
    with pytest.raises(SettingsConflict, match="has no slots: its requests go to the queues of the versions"):
        queue.agree(link, None, None, None)
    plain = Queue(f"q-{uuid.uuid4().hex[:8]}")
    plain.agree(link, None, None, None)
    with pytest.raises(SettingsConflict, match="works with front=False, not True"):
        plain.agree(link, None, None, None, front=True)


# -- releases side by side


@pytest.mark.parametrize(
    ("announced", "version"),
    [
        (b"{}", 1),
        (b"not json", 1),
        (b'{"tickets": 1, "slots": 2}', 1),
        (b'{"tickets":2}', 2),
        (b'{"tickets": 3, "inputs": [["\\"tickets\\": 9", "str"]]}', 3),
    ],
)
def test_with_a_credit_comes_the_version_of_tickets_that_its_worker_reads(
    link: Link, queue: Queue, announced: bytes, version: int
) -> None:
    queue.announce(link, LIFE, announced, 60)
    queue.put_credit(link, SLOT)
    add(link, queue)
    answer = queue.take(link, BRIDGE)
    assert answer[0] == "ticket" and answer[2] == version
