"""The whole life of a message, from what the audit, its inbox and the dead letters say of it."""

from __future__ import annotations

import time
from typing import Any

import nats.errors

from broker_policy.audit.checkpoint import SignedCheckpoint
from broker_policy.audit.entry import Entry, refuses
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.query import OUTCOME_NAMES, Answer, Question, ask, search
from broker_policy.audit.record import Outcome
from broker_policy.audit.store import PAGE, StoredEntry
from broker_policy.dead_letters import letters
from broker_policy.dead_letters.letters import Wanted
from broker_policy.explorer import tokens
from broker_policy.explorer.feed import described
from broker_policy.explorer.sources import Sources
from broker_policy.explorer.views import PATIENCE, Views
from broker_policy.jetstream import JetStreamError, get_message
from mas_nats.message import reply_id
from mas_nats.wire import headers, subjects

_DECISIONS = 50
"""Decisions about one message that are told, the oldest first."""
_OUTCOME = b'"k":"o"'
_FAR = 20
"""Pages of the chain that are read to find when something happened to a message."""
_SIGNED_BACK = 200
_REQUESTS = 200
"""Requests looked at, the newest first, to find the one that a reply answers."""
_REPLIES = 5
"""Decisions about one reply, or one frame of it, that are told."""
_FRAMES = 20
"""Frames of a streamed reply that are told, the first ones."""

Document = dict[str, Any]
_SAID = {
    "c": "stored in the inbox, with its decision",
    "n": "it was never stored",
    "a": "the reply was published, the state written, or the connection made",
    "f": "it did not happen",
    "u": "it was there already",
    "v": "an attempt failed; it is delivered again",
    "h": "its agent acknowledged it",
    "d": "no attempt handled it",
    "x": "its time was over before it was handled",
    "?": "it cannot be found out any more",
}
_LAST = frozenset("rnafuhdx?")
"""Outcomes after which nothing more happens."""


async def lifeline(sources: Sources, views: Views, message_id: str) -> Document | None:
    """Each decision about ``message_id`` with its steps in order; None where the audit has none.

    Calls about tokens that were asked for under this id stand apart: they are no message, but checks of one.

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    wanted = Question(message_id=message_id)
    all_of_them = await ask(sources.store, wanted, limit=_DECISIONS + 1, oldest_first=True)
    if not all_of_them:
        return None
    listed = all_of_them[:_DECISIONS]
    checks = [each for each in listed if each.entry["o"] == subjects.Op.TOKEN]
    found = [each for each in listed if each.entry["o"] != subjects.Op.TOKEN]
    signed = await views.newest_checkpoints(_SIGNED_BACK)
    lives = [await _life(sources, answer, signed) for answer in found]
    related, all_related = await _related(sources, found)
    return {
        "namespace": sources.namespace,
        "message_id": message_id,
        "decisions": lives,
        "checks": [tokens.described(described(each)) for each in checks],
        "more": len(all_of_them) > _DECISIONS,
        "related": related,
        "related_complete": all_related,
    }


async def _life(sources: Sources, answer: Answer, signed: list[SignedCheckpoint]) -> Document:
    entry = answer.entry
    refused = refuses(entry)
    inbox = await _in_inbox(sources, entry)
    steps: list[Document] = []
    sent = inbox.get(headers.SENT, "")
    if sent.isdecimal():
        steps.append(_step(int(sent), "sent", f"by {entry['f']}", "ok"))
    steps.append(
        _step(
            entry["at"],
            "refused" if refused else "decided",
            f"{entry['d']}" + (f", by rule {entry['r']}" if entry["r"] else ""),
            "bad" if refused else "ok",
            policy_revision=entry["v"],
            worker=entry["w"],
            **({"operator": entry["b"]} if entry.get("b") else {}),
        )
    )
    steps.append(
        _step(
            None,
            "audited",
            f"entry {answer.index} of the chain",
            "ok",
            hash=answer.hash,
            log_sequence=entry["s"],
            commitment=entry.get("c", "") or "none: nothing was passed on",
        )
    )
    audited = len(steps)
    if entry["wy"] == "b" or (entry.get("q") and not refused):
        steps.append(_step(None, "committed", _SAID["c"], "ok", sequence=entry.get("q", 0)))
    happened, complete = await _happened(sources, answer)
    if answer.outcome == Outcome.DEAD:  # it is buried first, and then reported
        place = next((at for at, step in enumerate(happened) if step["name"] == "dead"), len(happened))
        happened[place:place] = await _buried(sources, entry)
    steps += happened
    if inbox and answer.outcome not in _LAST:
        steps.append(_step(None, "waiting", f"in the inbox of {entry['t']}", "wait"))
    _insert(steps, audited, _signed(answer.index, signed, sources.checkpoint_keys))
    trace = inbox.get(headers.TRACEPARENT, "").split("-")
    return {
        **described(answer),
        "steps": steps,
        "complete": complete,
        "trace_id": trace[1] if len(trace) == 4 else "",
    }


def _step(time: int | None, name: str, text: str, state: str, **facts: Any) -> Document:
    return {"time": time, "name": name, "text": text, "state": state, "facts": facts}


def _insert(steps: list[Document], first: int, step: Document) -> None:
    """Put ``step`` among those from ``first`` on, before what happened later."""
    at = first
    while at < len(steps) and not (step["time"] and steps[at]["time"] and steps[at]["time"] > step["time"]):
        at += 1
    steps.insert(at, step)


def _signed(index: int, newest: list[SignedCheckpoint], keys: CheckpointKeys) -> Document:
    if len(newest) == _SIGNED_BACK and newest[0].checkpoint.index >= index:
        return _step(None, "signed", "by an earlier checkpoint", "ok")
    for each in newest:
        if each.checkpoint.index >= index and keys.signed(each):
            text = f"checkpoint at entry {each.checkpoint.index}"
            return _step(each.checkpoint.time, "signed", text, "ok", key=each.key)
    return _step(None, "signed", "not yet: no checkpoint covers it", "wait")


async def _happened(sources: Sources, answer: Answer) -> tuple[list[Document], bool]:
    """What outcome entries say about a decision, and whether they were read up to its present outcome."""
    if answer.outcome == Outcome.REFUSED:
        return [], True
    first = answer.entry["wy"] == "n"
    if first:
        return [_of_letter(answer.entry["at"], answer.outcome, {})], True
    steps: list[Document] = []
    at = answer.index + 1
    settled = answer.outcome not in _LAST
    for _ in range(_FAR):
        page = await sources.store.page(at)
        for stored in page:
            entry = _outcome_of(stored, answer.index)
            if entry is not None:
                steps.append(_of_letter(entry["at"], entry["o"], _facts(entry)))
                settled = settled or entry["o"] == answer.outcome
        if len(page) < PAGE or (settled and answer.outcome in _LAST):
            return steps, settled
        at = page[-1].index + 1
    name = OUTCOME_NAMES.get(answer.outcome, answer.outcome)
    if not any(step["name"] == name for step in steps) and answer.outcome in _LAST:
        steps.append(
            {**_of_letter(None, answer.outcome, {}), "text": f"{_SAID[answer.outcome]} (when: far on)"}
        )
    return steps, settled


def _outcome_of(stored: StoredEntry, index: int) -> Entry | None:
    if _OUTCOME not in stored.body:  # most are none: it need not be read to see that
        return None
    try:
        entry = stored.entry()
    except ValueError:  # damaged: verification names it
        return None
    if entry.get("k") != "o" or not any(first <= index <= last for first, last in entry["x"]):
        return None
    return entry


def _facts(entry: Entry) -> Document:
    facts: Document = {"entry": entry["i"]}
    if entry.get("a"):
        facts["attempt"] = entry["a"]
    if entry.get("r"):
        facts["reason"] = entry["r"]
    return facts


def _of_letter(time: int | None, letter: str, facts: Document) -> Document:
    state = "ok" if letter in "chau" else "wait" if letter in " v" else "bad"
    name = OUTCOME_NAMES.get(letter, letter)
    return _step(time, name, _SAID.get(letter, "nothing is known yet"), state, **facts)


async def _in_inbox(sources: Sources, entry: Entry) -> dict[str, str]:
    """The headers of the message while it lies in the inbox; its body is not looked at."""
    if not entry.get("q"):
        return {}
    try:
        stored = await get_message(sources.tenant, subjects.INBOX_STREAM, entry["q"])
    except (JetStreamError, nats.errors.Error):
        return {}
    if stored is None or stored.headers.get(headers.MESSAGE_ID) != entry["id"]:
        return {}
    return stored.headers


async def _buried(sources: Sources, entry: Entry) -> list[Document]:
    try:
        async for letter in letters.letters(sources.tenant, Wanted(agent=entry["t"], sender=entry["f"])):
            row = letter.row()
            if row["audit"] == f"{entry['w']}.{entry['n']}.{entry['p']}":  # redriven, it dies another death
                facts = {name: row[name] for name in ("sequence", "reason", "attempts", "redrives")}
                return [_step(row["died"] or None, "buried", "lies among the dead letters", "bad", **facts)]
    except (JetStreamError, nats.errors.Error):
        pass
    return []


async def _related(sources: Sources, answers: list[Answer]) -> tuple[list[Document], bool]:
    """The replies to a request, or the request that a reply answers, by the ids that the SDK makes.

    False: a request was looked for among those of late only, and not found there.
    """
    found: dict[int, Document] = {}
    complete = True
    deadline = time.monotonic() + PATIENCE
    asked = [answer.entry for answer in answers if answer.entry["o"] in ("request", "delay", "release")]
    for wanted in dict.fromkeys(_reply_id(sources.namespace, entry) for entry in asked):
        found |= {reply.index: described(reply) for reply in await _replies(sources, wanted)}
    for answer in answers:
        entry = answer.entry
        if entry["o"] in ("reply", "frame"):
            back = Question(sender=entry["t"], target=entry["f"], until=entry["at"])
            within = max(deadline - time.monotonic(), 0)
            looked = await search(sources.store, back, limit=_REQUESTS, within=within)
            matching = [
                request
                for request in looked.answers
                if entry["id"].startswith(_reply_id(sources.namespace, request.entry))
            ]
            found |= {request.index: described(request) for request in matching}
            complete = complete and (bool(matching) or looked.following is None)
    return list(found.values()), complete


async def _replies(sources: Sources, wanted: str) -> list[Answer]:
    """The decisions about the reply ``wanted``, or about the first of its frames where it is streamed."""
    found = await ask(sources.store, Question(message_id=wanted), limit=_REPLIES)
    for number in range(_FRAMES):
        frames = await ask(sources.store, Question(message_id=f"{wanted}.{number}"), limit=_REPLIES)
        if not frames:
            break
        found += frames
    return found


def _reply_id(namespace: str, request: Entry) -> str:
    """The id of the reply to a request, made with the names that who was asked knows them by."""
    sender, target = request["f"], request["t"]
    if "/" in target:
        sender, target = f"{namespace}/{sender}", target.partition("/")[2]
    return reply_id(sender, target, request["id"])
