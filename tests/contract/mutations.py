"""Is the behaviour suite worth something? Break the in-memory broker in many small ways and see it notice.

``python -m tests.contract.mutations [NAME ...]`` copies the tree, applies one change at a time (or those named), and
runs the tests of the in-memory broker. It says which changes nobody noticed, and ends with 1 when there are some.
Takes minutes and is not part of ``make test``: run it when the suite or the in-memory broker changes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path("mas_nats/testing")


@dataclass(frozen=True)
class Mutation:
    """One change: ``old`` becomes ``new`` in ``file``."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    # -- consumers
    Mutation(
        "one-instance-gets-all",
        "consumer.py",
        "self._pulls.append(pull)  #",
        "self._pulls.appendleft(pull)  #",
    ),
    Mutation(
        "no-shared-limit",
        "consumer.py",
        "if len(self._leases) >= self._limits().max_ack_pending:",
        "if False:",
    ),
    Mutation("newest-first", "consumer.py", "self._fresh.append(message", "self._fresh.appendleft(message"),
    Mutation("retry-at-once", "consumer.py", '["delay"] / 1e9 if given', '["delay"] * 0 if given'),
    Mutation("never-again", "consumer.py", "        self._again.append(sequence)\n", ""),
    Mutation(
        "no-signs-of-life",
        "consumer.py",
        "if lease.puller.handles(lease.ack_subject):\n            lease.timer",
        "if False:\n            lease.timer",
    ),
    Mutation("attempts-not-counted", "consumer.py", "message.deliveries += 1", "message.deliveries = 1"),
    Mutation(
        "no-end-of-attempts",
        "consumer.py",
        "if message.deliveries >= self._limits().max_deliver:",
        "if False:",
    ),
    Mutation(
        "one-attempt-less",
        "consumer.py",
        "deliveries >= self._limits().max_deliver",
        "deliveries >= self._limits().max_deliver - 1",
    ),
    Mutation(
        "acks-ignored",
        "consumer.py",
        "        else:\n            self.remove(sequence)",
        "        else:\n            pass",
    ),
    Mutation("pull-ignores-its-size", "consumer.py", "            pull.left -= 1\n", ""),
    # -- messages
    Mutation(
        "no-dedup",
        "service.py",
        "if (known := self._known.get((call.sender, call.message_id))) is not None:",
        "known = None\n        if known is not None:",
    ),
    Mutation("content-not-compared", "service.py", "if known != content:", "if False:"),
    Mutation(
        "ids-of-all-senders-are-one",
        "service.py",
        "self._known.get((call.sender, call.message_id))",
        'self._known.get(("", call.message_id))',
    ),
    Mutation("inbox-never-full", "service.py", "if len(waiting) >= limits.inbox_messages:", "if False:"),
    Mutation("inbox-never-large", "service.py", "held[call.target] > most", "False"),
    Mutation(
        "nothing-refused",
        "deciding.py",
        "return shape(call, self.table) or authorize(call, self.table)",
        "return shape(call, self.table)",
    ),
    Mutation(
        "no-shape",
        "deciding.py",
        "return shape(call, self.table) or authorize(call, self.table)",
        "return authorize(call, self.table)",
    ),
    Mutation("no-sent-time", "deciding.py", "headers.SENT: str(call.received)", 'headers.SENT: "0"'),
    Mutation("another-sender", "deciding.py", "headers.SENDER: call.sender", "headers.SENDER: call.target"),
    # -- presence
    Mutation("bye-ignored", "service.py", "self.instances.withdraw(call.sender, instance)", "pass"),
    Mutation("senders-are-found", "service.py", "if hello.receives:", "if True:"),
    Mutation(
        "one-name-for-all", "service.py", 'instance = f"{next(self._names):020x}"', 'instance = f"{1:020x}"'
    ),
    Mutation(
        "everybody-is-known",
        "connection.py",
        "return self.agent in self.server.document.agents",
        "return True",
    ),
    # -- replies
    Mutation("anybody-may-answer", "replies.py", "if capability.target != call.sender:", "if False:"),
    Mutation(
        "never-late",
        "replies.py",
        "if call.received > capability.deadline + CLOCK_TOLERANCE_MS:",
        "if False:",
    ),
    Mutation(
        "late-too-soon",
        "replies.py",
        "capability.deadline + CLOCK_TOLERANCE_MS",
        "capability.deadline - 10_000_000",
    ),
    Mutation(
        "replies-twice",
        "replies.py",
        "        if self.fetch(subject) is not None:\n            return False\n",
        "",
    ),
    Mutation("replies-lost", "replies.py", "        self.publish(said)\n", ""),
    # -- dead letters
    Mutation(
        "no-word-to-the-requester", "graves.py", "        if capability is not None:", "        if False:"
    ),
    Mutation("buried-and-kept", "graves.py", "        self._consumers[agent].remove(message.sequence)\n", ""),
    Mutation(
        "no-reason",
        "graves.py",
        "reason = _EXHAUSTED if failure.retryable else failure.error_class",
        "reason = _EXHAUSTED",
    ),
    Mutation(
        "no-attempts",
        "graves.py",
        "DeadLetter(letter, reason, attempts, error",
        "DeadLetter(letter, reason, 1, error",
    ),
    Mutation("no-error", "graves.py", "error[:300]", '""'),
    Mutation(
        "retries-what-is-rejected",
        "graves.py",
        "if failure.retryable and failure.attempt <",
        "if failure.attempt <",
    ),
    Mutation(
        "expired-is-dead",
        "graves.py",
        "if failure.error_class == Decision.EXPIRED and headers.DEADLINE in message.fields:",
        "if False:",
    ),
    # -- state
    Mutation(
        "last-write-wins",
        "states.py",
        "if expected is not None and expected != (newest.number if newest else 0):",
        "if False:",
    ),
    Mutation(
        "id-stands-for-two-states",
        "states.py",
        "if call_id and not later and any(",
        "if call_id and later and any(",
    ),
    Mutation(
        "one-state-for-all",
        "states.py",
        "self._revisions.setdefault(agent, []).append(revision)",
        'self._revisions.setdefault("b", []).append(revision)',
    ),
    Mutation(
        "deleted-stays",
        "states.py",
        "orjson.loads(newest.body) if newest is not None and newest.body else None",
        "{}",
    ),
    Mutation("state-forgotten", "states.py", "return revisions[-1] if revisions else None", "return None"),
    # -- connections
    Mutation(
        "nothing-buffered",
        "connection.py",
        "            self._buffer.append((subject, body, reply))",
        "            pass",
    ),
    Mutation(
        "nobody-told-of-the-reconnect",
        "connection.py",
        "        for listener in self.after_reconnect:",
        "        for listener in []:",
    ),
    # -- delayed messages
    Mutation("delayed-not-at-all", "delayed.py", "max(seconds, 0.0)", "0.0"),
    Mutation("cancelled-and-sent", "delayed.py", "            held[1].cancel()\n", ""),
    Mutation("not-judged-when-due", "delayed.py", "verdict = self._send(due)", "verdict = accepted()"),
    Mutation("refused-in-silence", "delayed.py", "        elif not verdict.ok:", "        elif False:"),
    Mutation("no-limit-of-delayed", "delayed.py", ">= limits.delayed_messages", ">= 10**9"),
    Mutation("any-time-will-do", "delayed.py", " or unfit_time(call, limits)", ""),
    # -- removed agents
    Mutation("backlog-left", "service.py", "            self._graves.clear(removed)\n", "            pass\n"),
    # -- streams
    Mutation(
        "no-flow",
        "answers.py",
        '        self._tell(call, to, {"requester": call.sender, "read": read})\n',
        "",
    ),
    Mutation(
        "no-cancel",
        "answers.py",
        '        self._tell(call, subjects.EVERY_INSTANCE, {"requester": call.sender, "cancelled": True})\n',
        "",
    ),
    Mutation("spliced", "answers.py", "if same and frame.mac(begins) == mark.mac:", "if True:"),
    Mutation("begins-anew", "answers.py", "if same and frame.mac(begins) == mark.mac:", "if False:"),
    Mutation("no-last-frame", "answers.py", '            fields[headers.END] = "1"', "            pass"),
    Mutation(
        "failed-frames-pass",
        "answers.py",
        "            fields[headers.FAILURE] = Decision.DEAD",
        "            pass",
    ),
    Mutation(
        "stored-frames-gone",
        "server.py",
        "stored = self.service.replies.fetch(",
        "stored = None and self.service.replies.fetch(",
    ),
)
"""Not here, since nobody on the outside can tell them from what is right: a reply that is sent to all instances (the
SDK takes its own), one refused retry more (it is buried all the same), messages dropped while a connection is drained
(in memory nothing is ever on its way then)."""


def noticed(mutation: Mutation) -> bool:
    """Whether the suite fails with it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("mas_nats", "broker_policy", "tests", "pyproject.toml"):
            source = REPOSITORY / part
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / part)
        changed = tree / PACKAGE / mutation.file
        text = changed.read_text()
        if mutation.old not in text:
            raise SystemExit(f"{mutation.name}: its text is not in {mutation.file} any more")
        changed.write_text(text.replace(mutation.old, mutation.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-k",
            "memory",
            "--timeout=10",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(
            [*command, "tests/contract", "tests/unit/test_memory_broker.py"],
            cwd=tree,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(
                f"{mutation.name}: the suite could not be run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        first = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        print(
            f"{'noticed' if done.returncode else 'MISSED ':8} {mutation.name:32} {' '.join(first)[7:110]}",
            flush=True,
        )
        return bool(done.returncode)


def main(names: list[str]) -> int:
    """Try them; how many nobody noticed."""
    started = time.monotonic()
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    with ThreadPoolExecutor(2) as pool:
        missed = [name for name, seen in zip(chosen, pool.map(noticed, chosen), strict=True) if not seen]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed in {time.monotonic() - started:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
