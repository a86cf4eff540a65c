"""What an append leaves in Redis is what was drafted, whatever the texts in it."""

from __future__ import annotations

from broker_policy.audit import entry
from broker_policy.audit.layout import id_place
from broker_policy.audit.record import Record, RecordKind, Way
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Tail
from tests.audit_log import NAMESPACE, line


async def test_entries_hashes_and_ids_are_those_of_the_draft(redis):
    store = Store(redis, NAMESPACE)
    tail = Tail(store, lambda: 1.0)
    drafted, ids = [], {}
    for number, count in enumerate((1, 0, 1100), 2):
        await tail.refresh()
        draft = tail.draft()
        draft.sequence = number
        for position in range(count):
            texts = {"message_id": f'ü"\0\\{number}.{position}', "type": "😀\r\n" * (position % 7)}
            made = line(Way.BATCH, **texts)
            record = Record(NAMESPACE, "w1i", number, "", RecordKind.DECISIONS, 1, 3, (made,))
            index = draft.add_decision(entry.decision(draft.next_index, number, record, 0, made, 3, ""))
            ids[index] = made.message_id
        draft.add(entry.alarm(draft.next_index, number, 1, entry.Alarm.GAP, "w1i", 4, 6))
        await tail.append(draft)
        drafted += [(body, each.hex()) for body, each in zip(draft.bodies, draft.hashes, strict=True)]
    stored = [one async for one in store.entries()]
    assert [(one.body, one.hash) for one in stored] == drafted
    assert [one.index for one in stored] == list(range(1, len(drafted) + 1))
    for index, message_id in ids.items():
        shard, fragment = id_place(message_id)
        assert await redis.hget(store.layout.shard(shard), str(index)) == fragment.encode()
    prefix = store.layout.ids
    assert sum([await redis.hlen(key) async for key in redis.scan_iter(f"{prefix}*")]) == len(ids)


async def test_an_append_after_another_one_changes_nothing(redis):
    store = Store(redis, NAMESPACE)
    tail, other = Tail(store, lambda: 1.0), Tail(store, lambda: 1.0)
    await tail.refresh()
    await other.refresh()
    for each, expected in ((tail, True), (other, False)):
        draft = each.draft()
        draft.add(entry.alarm(1, 0, 1, entry.Alarm.GAP, "w1i", 4, 6))
        draft.command("SET", "mas:audit:sign", str(expected))
        assert await store.append(draft) is expected
    assert len([one async for one in store.entries()]) == 1
    assert await redis.get("mas:audit:sign") == b"True"
