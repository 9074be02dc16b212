import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from textenv.feedback.store import FeedbackStore
from textenv.feedback.store_check import find_damage
from textenv.types import TextEnvError


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.db", clock=clock) as opened:
        yield opened


def add_task(store: FeedbackStore, count: int = 2, prompt: str = "Write.", **given: Any) -> int:
    number = store.add_prompt(prompt)
    return store.add_task([store.add_completion(number, f"text {place}") for place in range(count)], **given)


def test_what_is_added_is_there(store: FeedbackStore) -> None:
    conversation = ({"role": "user", "content": "Ärger?"},)
    prompt = store.add_prompt(conversation, columns={"topic": "a"})
    assert store.add_prompt(conversation, columns={"topic": "a"}) == prompt
    assert store.add_prompt(conversation) != prompt
    model = store.add_reward_model("rm", judgements=[])
    start = store.add_policy("start", folder="a")
    newer = store.add_policy("newer", folder="b", parent=start, reward_model=model)
    assert store.add_policy("newer", folder="b", parent=start, reward_model=model) == newer
    one = store.add_completion(prompt, "\x00 <b> \u202e", policy=newer, details={"round": 1})
    other = store.add_completion(prompt, "")
    task = store.add_task([other, one], gold=[1, 0], judgements=3, priority=2.5)
    assert store.prompts()[prompt] == conversation
    assert [(p.name, p.parent, p.reward_model) for p in store.policies()] == [("start", None, None), ("newer", 1, 1)]
    assert [(c.text, c.policy, c.details) for c in store.completions(prompt)] == [
        ("\x00 <b> \u202e", newer, {"round": 1}),
        ("", None, {}),
    ]
    (found,) = store.tasks()
    assert (found.id, found.items, found.gold, found.judgements, found.priority) == (task, (other, one), (1, 0), 3, 2.5)
    ann = store.annotator("ann", details={"since": 2026})
    assert store.annotator("ann") == ann
    assert [(a.name, a.kind) for a in store.annotators()] == [("ann", "person")]


def test_ranks_belong_to_what_was_shown_there(store: FeedbackStore) -> None:
    for place in range(40):
        add_task(store, 2 + place % 8, prompt=f"{place}")
    ann, rng, orders = store.annotator("ann"), random.Random(0), set()
    for _ in range(40):
        given = store.lease(ann)
        assert given is not None
        orders.add(tuple(item.id for item in given.items) == tuple(sorted(item.id for item in given.items)))
        said = {item.id: rng.choice([0, 1, None]) for item in given.items}
        said[given.items[0].id] = 0
        number = store.judge(given.id, [said[item.id] for item in given.items])
        (judgement,) = store.judgements(tasks=[given.task])
        (task,) = [task for task in store.tasks() if task.id == given.task]
        assert judgement.id == number
        assert dict(zip(task.items, judgement.ranks, strict=True)) == said
    assert orders == {True, False}  # shown in another order, too
    assert store.lease(ann) is None
    rankings = store.rankings()
    assert len(rankings) == 40
    assert rankings[3][1].prompt == "3"
    assert rankings[3][1].completions == tuple(f"text {place}" for place in range(5))
    assert (rankings[3][1].ranks, rankings[3][1].annotator) == (rankings[3][0].ranks, "ann")


def test_a_lease_is_for_one_until_it_expires(store: FeedbackStore, clock: Clock) -> None:
    add_task(store)
    ann, ben = store.annotator("ann"), store.annotator("ben")
    first = store.lease(ann, seconds=60)
    assert first is not None
    assert store.lease(ben) is None
    assert store.lease(ann, seconds=60) == first
    clock.now += 50
    store.renew(first.id, seconds=60)
    clock.now += 50
    assert store.lease(ben) is None
    clock.now += 11
    second = store.lease(ben)
    assert second is not None
    assert store.lease(ann) is None  # what she had is somebody else's now
    store.release(second.id)
    again = store.lease(ann)
    assert again is not None
    assert again.items == first.items
    clock.now += 10_000
    assert store.lease(ben) is not None
    store.judge(again.id, [0, 1])  # late, but first
    store.renew(second.id, seconds=60)  # he looks at it now: what he says is welcome
    clock.now += 61
    with pytest.raises(TextEnvError, match="others have judged"):
        store.renew(second.id)
    with pytest.raises(TextEnvError, match="judged already"):
        store.renew(again.id)
    assert store.progress() == type(store.progress())(wanted=1, done=1, open=0)


def test_sent_twice_is_stored_once(store: FeedbackStore) -> None:
    add_task(store)
    given = store.lease(store.annotator("ann"))
    assert given is not None
    number = store.judge(given.id, [0, 1], confidence=3, note="n")
    assert store.judge(given.id, [0, 1], confidence=3, note="n") == number
    with pytest.raises(TextEnvError, match="already, in another way"):
        store.judge(given.id, [1, 0], confidence=3, note="n")
    assert len(store.judgements(effective=False)) == 1


def test_undo_goes_back_step_by_step(store: FeedbackStore) -> None:
    for place in range(3):
        add_task(store, prompt=f"{place}")
    ann = store.annotator("ann")
    assert store.undo(ann) is None
    given = []
    for _ in range(2):
        given.append(store.lease(ann))
        assert given[-1] is not None
        store.judge(given[-1].id, [0, 1])
    assert store.lease(ann) is not None  # the third is out; undo releases it
    back = store.undo(ann)
    assert back is not None
    assert (back.id, back.items) == (given[1].id, given[1].items)  # type: ignore[union-attr]
    assert (now := store.lease(ann)) is not None
    assert now.id == back.id
    further = store.undo(ann)
    assert further is not None
    assert further.id == given[0].id  # type: ignore[union-attr]
    assert store.judgements() == []
    assert [row.verdict for row in store.judgements(effective=False)] == ["ranked", "ranked", "undone", "undone"]
    store.judge(further.id, [1, 0])
    assert len(store.judgements()) == 1
    with pytest.raises(TextEnvError, match="never deleted"), store.transaction() as connection:
        connection.execute("DELETE FROM judgements")
    with pytest.raises(TextEnvError, match="never changed"), store.transaction() as connection:
        connection.execute("UPDATE judgements SET note = 'x'")


def test_an_undo_that_comes_again_takes_nothing_else_back(store: FeedbackStore) -> None:
    for place in range(3):
        add_task(store, prompt=f"{place}")
    ann, ben = store.annotator("ann"), store.annotator("ben")
    assert store.last_judgement(ann) is None
    made = []
    for _ in range(2):
        given = store.lease(ann)
        assert given is not None
        made.append(store.judge(given.id, [0, 1]))
    assert store.last_judgement(ann) == made[1]
    with pytest.raises(TextEnvError, match="newer ones"):
        store.undo(ann, judgement=made[0])
    with pytest.raises(TextEnvError, match="not the last of annotator"):
        store.undo(ben, judgement=made[1])
    with pytest.raises(TextEnvError, match="no number 99"):
        store.undo(ann, judgement=99)
    assert store.undo(ann, judgement=made[1]) is not None
    for _ in range(3):
        assert store.undo(ann, judgement=made[1]) is None
    assert [judgement.id for judgement in store.judgements()] == [made[0]]
    assert store.last_judgement(ann) == made[0]


def test_names_that_look_the_same_are_one(store: FeedbackStore, tmp_path: Path) -> None:
    names = ["Ren\u00e9e  L", "Rene\u0301e L", " Ren\u00e9e\tL\n"]
    assert len({store.annotator(name) for name in names}) == 1
    assert [each.name for each in store.annotators()] == ["Ren\u00e9e L"]
    for name in ("", " \n"):
        with pytest.raises(TextEnvError, match="needs a name"):
            store.annotator(name)
    with store.transaction() as connection:  # a store of an earlier version
        connection.execute("UPDATE annotators SET name = ?", (names[1],))
    assert store.annotator(names[0]) == 1


def test_a_program_and_a_person_are_not_one_annotator(store: FeedbackStore) -> None:
    program, person = store.annotator("gold", "program"), store.annotator("ann")
    assert store.annotator("gold") == program
    assert store.annotator("ann", "person") == person
    with pytest.raises(TextEnvError, match="'gold' is the name of a program"):
        store.annotator("gold", "person")
    with pytest.raises(TextEnvError, match="'ann' is the name of a person"):
        store.annotator("ann", "program")


def test_signing_out_is_counted(store: FeedbackStore) -> None:
    ann = store.annotator("ann", details={"since": 2026})
    assert store.signed_out(ann) == 0
    store.sign_out(ann)
    store.sign_out(ann)
    assert store.signed_out(ann) == 2
    assert store.annotators()[0].details == {"since": 2026, "signed_out": 2}
    with pytest.raises(TextEnvError, match="no number 7"):
        store.sign_out(7)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_goes_back_does_not_make_leases_longer(tmp_path: Path, clock: Clock, *, restarted: bool) -> None:
    elapsed = Clock()
    times: dict[str, Any] = {"clock": clock, "monotonic": elapsed}
    with FeedbackStore(tmp_path / "store.db", **times) as store:
        add_task(store)
        ann, ben = store.annotator("ann"), store.annotator("ben")
        assert store.lease(ann, seconds=600)
        clock.now -= 86_400
        with FeedbackStore(tmp_path / "store.db", **times) as other:
            asked = other if restarted else store
            assert asked.lease(ben) is None
            clock.now, elapsed.now = clock.now + 590, elapsed.now + 590
            assert asked.lease(ben) is None
            clock.now, elapsed.now = clock.now + 11, elapsed.now + 11
            assert asked.lease(ben) is not None
    clock.now += 2 * 86_400  # put right: the store follows
    with FeedbackStore(tmp_path / "store.db", **times) as store:
        given = store.lease(ben, seconds=60)
        assert given is not None
        assert given.expires == clock.now + 60


def open_files(path: Path) -> int:
    """Return how many descriptors of this process belong to a store."""
    found = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{each}").startswith(str(path))
        except OSError:  # the descriptor of the list itself
            continue
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux lists them")
def test_threads_that_end_leave_no_files_open(tmp_path: Path) -> None:
    counts = []
    with FeedbackStore(tmp_path / "store.db") as store:
        for _ in range(16):
            together = threading.Barrier(12)

            def work(number: int, together: threading.Barrier = together) -> None:
                together.wait()
                store.annotator(f"a{number}")
                store.progress()

            threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            counts.append(open_files(tmp_path))
        assert len(store.annotators()) == 12
    assert max(counts) <= 12 * 2 + 2  # what twelve need at once, a file and its log each, not what all 192 had
    assert open_files(tmp_path) == 0


def test_opening_waits_for_no_writer(store: FeedbackStore) -> None:
    add_task(store)
    with store.transaction(), FeedbackStore(store.path) as other:
        assert len(other.tasks()) == 1


def test_a_writer_that_takes_too_long_is_named(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textenv.feedback.store_database._LOCK_SECONDS", 0.05)
    with FeedbackStore(store.path) as other:
        known = other.annotator("ann")
        with store.transaction():
            assert other.annotator("ann") == known  # reading needs no turn
            with pytest.raises(TextEnvError, match=r"another program has been writing for 0\.05 seconds"):
                other.annotator("ben")
        assert other.annotator("ben") != known


def test_repeats_gold_and_verdicts(store: FeedbackStore) -> None:
    items = [store.add_completion(store.add_prompt("p"), text) for text in "ab"]
    repeat = store.add_task(items, priority=1.0, repeat_of=store.add_task(items, judgements=2), judgements=2)
    store.add_task(items, gold=[0, 1], priority=-1.0)
    ann = store.annotator("ann")
    seen = []
    while (given := store.lease(ann)) is not None:
        seen.append(given.task)
        store.judge(given.id, [0, 0] if len(seen) == 2 else [0, 1], verdict="ranked")
    assert seen == [1, repeat, 3]
    assert len(store.rankings()) == 1  # repeated and gold tasks measure annotators
    ben = store.annotator("ben")
    given = store.lease(ben)
    assert given is not None
    store.judge(given.id, [], verdict="cant_tell")
    assert store.judgements(annotators=[ben])[0].ranks == (None, None)
    assert len(store.rankings()) == 1


def test_what_a_reward_model_was_trained_on(store: FeedbackStore) -> None:
    add_task(store)
    given = store.lease(store.annotator("ann"))
    assert given is not None
    number = store.judge(given.id, [0, 1])
    model = store.add_reward_model("rm", judgements=[number], details={"accuracy": 0.7})
    assert store.add_reward_model("rm", judgements=[number]) == model
    assert [(m.folder, m.judgements, m.details) for m in store.reward_models()] == [
        ("rm", (number,), {"accuracy": 0.7})
    ]
    with pytest.raises(TextEnvError, match="other judgements"):
        store.add_reward_model("rm", judgements=[])
    assert store.revision() == number


def test_bad_input(store: FeedbackStore, tmp_path: Path) -> None:
    prompt = store.add_prompt("p")
    items = [store.add_completion(prompt, "a"), store.add_completion(prompt, "b")]
    other = store.add_completion(store.add_prompt("q"), "c")
    clip = store.add_clip("f.gif", task="Pendulum-v1")
    for wrong in ([items[0]], [items[0], items[0]], [*items, other], [items[0], clip], [items[0], 99]):
        with pytest.raises(TextEnvError):
            store.add_task(wrong)
    for gold in ([0], [1, 1], [None, None], [0.5, 0]):
        with pytest.raises(TextEnvError, match="ranks"):
            store.add_task(items, gold=gold)  # type: ignore[arg-type]
    given: dict[str, Any]
    for given in ({"judgements": 0}, {"repeat_of": 7}, {"priority": float("nan")}):
        with pytest.raises(TextEnvError):
            store.add_task(items, **given)
    assert store.tasks() == []
    store.add_task(items)
    assignment = store.lease(store.annotator("ann"))
    assert assignment is not None
    for ranks in ([0], [0, 1, 2], [1, 2], [None, None], [0, True], [0, -1]):
        with pytest.raises(TextEnvError, match="rank"):
            store.judge(assignment.id, ranks)
    more: dict[str, Any]
    for more in ({"verdict": "maybe"}, {"confidence": 6}, {"confidence": 0}, {"seconds": -1.0}):
        with pytest.raises(TextEnvError, match="expected"):
            store.judge(assignment.id, [0, 1], **more)
    with pytest.raises(TextEnvError, match="no assignment with that number"):
        store.judge(99, [0, 1])
    with pytest.raises(TextEnvError, match="needs a name"):
        store.annotator(" ")
    with pytest.raises(TextEnvError, match="no number 5"):
        store.lease(5)
    store.add_policy("p", folder="a")
    with pytest.raises(TextEnvError, match="named 'p' already"):
        store.add_policy("p", folder="b")
    assert store.judgements(effective=False) == []


def test_files_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="no such store"):
        FeedbackStore(tmp_path / "none.db", create=False)
    (tmp_path / "text.db").write_text("not a database, whatever its name says; " * 100)
    with pytest.raises(TextEnvError, match="cannot be used"):
        FeedbackStore(tmp_path / "text.db")
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(TextEnvError, match="some other database"):
        FeedbackStore(tmp_path / "other.db")
    with FeedbackStore(tmp_path / "newer.db") as store, store.transaction() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(TextEnvError, match="version 99"):
        FeedbackStore(tmp_path / "newer.db")
    closed = FeedbackStore(tmp_path / "closed.db")
    closed.close()
    with pytest.raises(TextEnvError, match="closed"):
        closed.tasks()


def test_a_transaction_is_all_or_nothing(store: FeedbackStore) -> None:
    def fail() -> None:
        with store.transaction():
            add_task(store)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (store.tasks(), store.completions(), store.prompts()) == ([], [], {})


def test_many_threads(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "store.db") as store:
        for place in range(24):
            add_task(store, prompt=f"{place}")
        failures: list[BaseException] = []

        def work(name: str) -> None:
            try:
                mine = store.annotator(name)
                while (given := store.lease(mine)) is not None:
                    store.judge(given.id, [0, 1])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(f"a{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        judged = [judgement.task for judgement in store.judgements()]
        assert sorted(judged) == list(range(1, 25))  # each once


def judge_all(path: Path, name: str) -> None:
    with FeedbackStore(path) as store:
        mine = store.annotator(name)
        while (given := store.lease(mine)) is not None:
            store.judge(given.id, [0, 1])


def test_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with FeedbackStore(path) as store:
        for place in range(30):
            add_task(store, prompt=f"{place}")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=judge_all, args=(path, name)) for name in ("ann", "ben")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with FeedbackStore(path) as store:
        assert sorted(judgement.task for judgement in store.judgements()) == list(range(1, 31))


WRITER = """
import sys
from textenv.feedback.store import FeedbackStore
with FeedbackStore(sys.argv[1]) as store:
    mine = store.annotator("ann")
    while (given := store.lease(mine)) is not None:
        print(store.judge(given.id, [0, 1]), flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with FeedbackStore(path) as store, store.transaction():
        add_task(store)
        for _ in range(3000):
            store.add_task([1, 2])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(line) for line in itertools.islice(writer.stdout, 25)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    with FeedbackStore(path) as store:
        assert set(acknowledged) <= {judgement.id for judgement in store.judgements()}
        ann = store.annotator("ann")
        assert store.lease(ann) is not None  # and it goes on


class Leases(RuleBasedStateMachine):
    """The store beside a model of it in plain Python."""

    @initialize(wanted=st.lists(st.tuples(st.integers(1, 2), st.booleans()), min_size=1, max_size=4))
    def begin(self, wanted: list[tuple[int, bool]]) -> None:
        self.clock = Clock()
        self.folder = Path(os.environ["LEASES"]) / f"{next(COUNTER)}.db"
        self.store = FeedbackStore(self.folder, clock=self.clock)
        self.wanted: dict[int, int] = {}
        self.to_write: set[int] = set()  # tasks that ask for a demonstration
        for place, (count, to_write) in enumerate(wanted):
            if to_write:
                task = self.store.add_demonstration_task(self.store.add_prompt(f"{place}"), demonstrations=count)
                self.to_write.add(task)
            else:
                task = add_task(self.store, 3, f"{place}", judgements=count)
            self.wanted[task] = count
        self.people = [self.store.annotator(name) for name in ("ann", "ben", "eve")]
        self.leases: dict[tuple[int, int], float] = {}  # (person, task): until when
        self.done: list[tuple[int, int]] = []  # in the order of judging
        self.skipped: set[tuple[int, int]] = set()  # of those done, what somebody could not write
        self.written: dict[int, tuple[int, int, str]] = {}  # by number: who, at which task, and what
        self.shown: dict[tuple[int, int], tuple[int, ...]] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def others(self, person: int, task: int) -> int:
        judged = sum(pair[1] == task and pair[0] != person and pair not in self.skipped for pair in self.done)
        live = [p for (p, t), until in self.leases.items() if t == task and p != person and until > self.clock.now]
        return judged + sum((p, task) not in self.done for p in live)

    @rule(who=st.integers(0, 2), seconds=st.sampled_from([5.0, 60.0]))
    def lease(self, who: int, seconds: float) -> None:
        person = self.people[who]
        given = self.store.lease(person, seconds=seconds)
        held = [
            task
            for (p, task), until in self.leases.items()
            if p == person and until > 0 and (p, task) not in self.done and self.others(p, task) < self.wanted[task]
        ]
        free = [
            task
            for task, wanted in self.wanted.items()
            if (person, task) not in self.done and self.others(person, task) < wanted
        ]
        if given is None:
            assert not free
            return
        assert given.task in (held or free[:1])
        order = tuple(item.id for item in given.items)
        assert self.shown.setdefault((person, given.task), order) == order
        self.leases[person, given.task] = given.expires
        assert given.expires == self.clock.now + seconds

    @rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), renewing=st.booleans(), skipping=st.booleans())
    def answer(self, data: st.DataObject, renewing: bool, skipping: bool) -> None:
        person, task = data.draw(st.sampled_from(sorted(self.leases)))
        number = self.number(person, task)
        judged = (person, task) in self.done
        late = self.leases[person, task] <= self.clock.now
        closed = sum(pair[1] == task and pair not in self.skipped for pair in self.done) >= self.wanted[task]
        if judged or (late and closed):
            act: Callable[[], Any] = partial(self.store.judge, number, [2, 1, 0], note="another")
            if task in self.to_write:
                act = partial(self.store.demonstrate, number, "another")
            with pytest.raises(TextEnvError):
                self.store.renew(number) if renewing else act()
        elif renewing:
            self.store.renew(number, seconds=60)
            self.leases[person, task] = self.clock.now + 60
        else:
            if task in self.to_write and skipping:
                self.store.judge(number, [], verdict="cant_tell")
                self.skipped.add((person, task))
            elif task in self.to_write:
                self.written[self.store.demonstrate(number, "an answer")] = (person, task, "an answer")
            else:
                self.store.judge(number, [0, 1, 2])
            self.done.append((person, task))

    def number(self, person: int, task: int) -> int:
        (row,) = self.store._rows("SELECT id FROM assignments WHERE task = ? AND annotator = ?", task, person)
        return int(row["id"])

    @precondition(lambda self: any(task not in self.to_write for _, task in self.leases))
    @rule(data=st.data(), text=st.sampled_from(["a", "b"]))
    def write(self, data: st.DataObject, text: str) -> None:
        beside = sorted(pair for pair in self.leases if pair[1] not in self.to_write)
        person, task = data.draw(st.sampled_from(beside))
        found = self.store.demonstrate(self.number(person, task), text)
        assert self.written.setdefault(found, (person, task, text)) == (person, task, text)

    @precondition(lambda self: any(task not in self.to_write for _, task, _ in self.written.values()))
    @rule(data=st.data(), text=st.sampled_from(["a", "b", "c", ""]))
    def change(self, data: st.DataObject, text: str) -> None:
        beside = [number for number, (_, task, _) in self.written.items() if task not in self.to_write]
        number = data.draw(st.sampled_from(beside))
        person, task, before = self.written[number]
        if not text:
            self.store.take_back(number, person)
            del self.written[number]
            return
        found = self.store.demonstrate(self.number(person, task), text, supersedes=number)
        assert (found == number) == (text == before)
        if found != number:
            del self.written[number]
            self.written[found] = (person, task, text)
            with pytest.raises(TextEnvError, match="replaced"):
                self.store.take_back(number, person)

    @rule(who=st.integers(0, 2))
    def undo(self, who: int) -> None:
        person = self.people[who]
        mine = [pair for pair in self.done if pair[0] == person]
        given = self.store.undo(person, seconds=60)
        if not mine:
            assert given is None
            return
        assert given is not None
        assert given.task == mine[-1][1]
        assert tuple(item.id for item in given.items) == self.shown[mine[-1]]
        self.done.remove(mine[-1])
        self.skipped.discard(mine[-1])
        if given.task in self.to_write:
            self.written = {number: what for number, what in self.written.items() if what[:2] != mine[-1]}
        for pair in self.leases:
            if pair[0] == person:
                self.leases[pair] = 0.0
        self.leases[mine[-1]] = self.clock.now + 60

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "store"):
            assert [(j.annotator, j.task) for j in self.store.judgements()] == self.done
            assert self.store.progress().done == len(self.done) - len(self.skipped)
            stored = {each.id: each for each in self.store.demonstrations()}
            assert stored.keys() == self.written.keys()
            for number, (person, task, text) in self.written.items():
                each = stored[number]
                assert (each.annotator, each.assignment, each.texts) == (person, self.number(person, task), (text,))
            with self.store._connection() as connection:
                assert find_damage(connection) is None


COUNTER = itertools.count()


def test_leases_beside_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASES", str(tmp_path))
    run = settings(max_examples=25, stateful_step_count=25, deadline=None)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Leases, settings=run)


def listed(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def judge_one(store: FeedbackStore) -> None:
    add_task(store)
    annotator = store.annotator("ann")
    given = store.lease(annotator)
    assert given is not None
    store.judge(given.id, [0 if item.text == "text 0" else 1 for item in given.items])  # they are shown in random order


@pytest.mark.parametrize("in_use", [False, True])
def test_reading_needs_no_folder_that_can_be_written(tmp_path: Path, in_use: bool) -> None:
    store = FeedbackStore(tmp_path / "shared" / "a#b?.db")
    judge_one(store)
    if not in_use:
        store.close()
    before = listed(tmp_path / "shared")
    assert len(before) == (3 if in_use else 1), "with a log that is not in the file yet, or without"
    (tmp_path / "shared").chmod(0o555)
    with FeedbackStore(store.path, read_only=True) as reader:
        assert reader.progress().done == 1
        assert [ranking.ranks for _, ranking in reader.rankings()] == [(0, 1)]
        with pytest.raises(TextEnvError, match="readonly"):
            reader.add_prompt("more")
    (tmp_path / "shared").chmod(0o755)
    after = listed(tmp_path / "shared")
    assert {name: after[name] for name in after if "-shm" not in name} == {
        name: before[name] for name in before if "-shm" not in name
    }
    assert after.keys() == before.keys()
    store.close()


def test_reading_refuses_what_is_no_store_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="there is no such store"):
        FeedbackStore(tmp_path / "missing.db", read_only=True)
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like one" * 40)
    (tmp_path / "empty.db").touch()
    for name in ("text.db", "empty.db"):
        with pytest.raises(TextEnvError, match=f"{name}.* (not a store|cannot be used as a store)"):
            FeedbackStore(tmp_path / name, read_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "text.db"]
