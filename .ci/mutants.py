"""Break devserve.py in one place at a time, and see whether a test notices.

    python3 .ci/mutants.py                          200 mutants of the rooms for guard, server, watcher and restart
    python3 .ci/mutants.py --room 8 --count 50      other rooms, another number
    python3 .ci/mutants.py --seed 7                 other mutants; the same seed makes the same ones
    python3 .ci/mutants.py --functions close_gate   those of these functions alone

Each mutant is a copy of the file in which one comparison, one condition, one number or one statement is another.
First the tests run once against a copy that notes which of them comes to which statement, and how long each takes.
Then those that come to a mutant's statement run against it, its room's own and the fastest first, until one fails or
the limit is reached.  A mutant that no test notices has survived: it is printed with its line.  Some are equivalent,
as they behave no otherwise than the original; those that have been looked at stand in EQUIVALENT with the reason.
Exit status 1 when others survived.

What was measured and tried is kept in the folder of --notes, so that a run that was broken off goes on there.
"""

import argparse
import ast
import contextlib
import copy
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

TREE = pathlib.Path(__file__).resolve().parent.parent
SOURCE = TREE / "devserve.py"
TESTS = TREE / "test_devserve.py"
ROOMS = (8, 10, 12, 13)  # where a fault loses requests or opens the console
SECTIONS = (*ROOMS, 9, 14, 0)  # of the tests, by the numbers in their banners; 0 are those of whole processes
DEADLINE = 10.0  # seconds in place of the tests' own, since most mutants are noticed by something that never comes

# (function, what was changed): why it behaves no otherwise
EQUIVALENT: dict[tuple[str, str], str] = {
    ("_read_request", "always the last: _remembered_head(raw) if end <= _REMEMBERED_SIZE else _parse"): (
        "what is remembered saves time alone"
    ),
    ("stop", "left out: self._woken.set()"): ("the thread ends in its next round, 50 ms later"),
    ("adopt", "its condition decided: if len(sys.modules) != len(self._modules):     self._adopt_m"): (
        "to look when nothing is new costs time alone"
    ),
    ("note_worker", "one more: 16"): ("the secret is a byte longer"),
    ("__init__", "another comparison: {'pin', 'secret', 'token'} <= notes.keys()"): (
        "the PIN configured is there, too"
    ),
    ("cookie_name", "one more: 0"): ("every server tells its port (PEP 3333)"),
    ("_checked_head", "without its first part: key == 'connection' and 'close' in _options(value)"): (
        "no other hop-by-hop header has this value"
    ),
    ("refuses_list", "without its first part: refusal or _is_local(environ) or self.has_cookie(environ)"): (
        "elsewhere and without the cookie it is no all the same, for another reason"
    ),
    ("refuses_stacks", "without its first part: refusal or self.has_cookie(environ)"): (
        "without the cookie it is no all the same, for another reason"
    ),
    ("_accepted", "one more: 0"): ("0 is the pid where a system tells none, and Linux tells it"),
    ("_relay", "and for or: self.child is not None and (not (number == signal.SIGINT and"): (
        "a second interrupt finds the child at its end already"
    ),
    ("_reaches_children", "one more: 0"): ("as above, and only where the output is no terminal"),
    ("_is_program", "one more: 0"): ("the start is then repeated word for word, which is slower and no more"),
    ("_first_folder", "always the first: os.sep + sys.argv[0] if sys.argv and sys.argv[0] else ''"): (
        "a program has a name, and no file's name ends with a separator"
    ),
    ("_wait", "always the first: 0.0 if ended else _PARENT_INTERVAL"): ("the parent only looks more often"),
    ("_receive", "one more: 65536"): ("a buffer's size"),
    ("write", "without its first part: head and len(wire) > _JOIN_LIMIT"): ("an empty head is sent, which is nothing"),
    ("_certificate_by_cryptography", "the other flag: True"): ("clients do not ask which parts are critical"),
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


# What stands at the end of the copy that measures: each statement of the rooms calls `_at` with its line number first.
PROBE = """
_came: set[tuple[str, int]] = set()


def _at(lineno: int) -> None:
    if (_test, lineno) not in _came:
        _came.add((_test, lineno))
        with open(_FOLDER + "/came", "a") as file:
            file.write(f"{_test} {lineno}\\n")


with open(_FOLDER + "/test") as _file:
    _test = _file.read()
"""

# Runs the classes that are named, and writes what each test costs.
RUNNER = """
import json, sys, time, unittest

sys.path.insert(0, "")
import devserve, test_devserve

class Result(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began, self.bad = time.monotonic(), len(self.failures) + len(self.errors) + len(self.skipped)
        devserve._test = ".".join(test.id().split(".")[1:])
        with open(devserve._FOLDER + "/test", "w") as file:
            file.write(devserve._test)

    def stopTest(self, test):
        if self.bad == len(self.failures) + len(self.errors) + len(self.skipped):
            with open(devserve._FOLDER + "/costs", "a") as file:
                file.write(f"{devserve._test} {time.monotonic() - self.began:.3f}\\n")
        super().stopTest(test)

suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:], test_devserve)
unittest.TextTestRunner(resultclass=Result, verbosity=2).run(suite)
"""


class Mutant(NamedTuple):
    room: int
    function: str
    lineno: int  # of the whole statement
    change: str
    source: str


class Tests(NamedTuple):
    costs: dict[str, float]  # test: seconds
    came: dict[int, list[str]]  # line number: tests that come there


def sections(text: str) -> dict[str, tuple[int, int]]:
    """Return the line numbers of what stands below each banner, by the banner's first line."""
    lines = text.splitlines()
    rule = "# " + "=" * 117
    heads = [n for n, line in enumerate(lines) if line == rule and n + 1 < len(lines) and lines[n + 1] != "#"]
    heads = [n for n in heads if lines[n + 1].startswith("# ")]
    ends = [*heads[1:], len(lines)]
    return {lines[head + 1][2:]: (head + 1, end) for head, end in zip(heads, ends)}


def room_lines(number: int) -> tuple[int, int]:
    """Return the first and the last line of a room."""
    for title, span in sections(SOURCE.read_text(encoding="utf-8")).items():
        if title.startswith(f"{number}. "):
            return span
    raise SystemExit(f"there is no room {number} in {SOURCE.name}")


def test_classes(*numbers: int) -> list[str]:
    """Return the names of the test classes below the banners of these rooms; 0 is one that names no room."""
    text = TESTS.read_text(encoding="utf-8")
    numbered = {title: [int(each) for each in re.findall(r"\b(\d+)\. ", title)] or [0] for title in sections(text)}
    spans = [span for title, span in sections(text).items() if set(numbered[title]) & set(numbers)]
    return [
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        if any(first <= node.lineno <= last for first, last in spans)
        if any(getattr(each, "name", "").startswith("test_") for each in node.body)
    ]


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may be put in a node's place, each with a word about it."""
    if "sys.platform" in ast.unparse(node).partition("\n")[0]:
        return  # what another system does is seen by no test here
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = copy.deepcopy(node)
        other.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield "another comparison", other
    elif isinstance(node, ast.BoolOp):
        other_op = copy.deepcopy(node)
        other_op.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and for or", other_op
        for word, values in (("first", node.values[1:]), ("last", node.values[:-1])):
            rest = ast.copy_location(ast.BoolOp(node.op, values), node) if len(values) > 1 else values[0]
            yield f"without its {word} part", rest
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "without not", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "the other flag", ast.copy_location(ast.Constant(not node.value), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "one more", ast.copy_location(ast.Constant(node.value + 1), node)
    elif isinstance(node, ast.IfExp):
        yield "always the first", node.body
        yield "always the last", node.orelse
    elif isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign)) and not is_docstring(node):
        yield "left out", ast.copy_location(ast.Pass(), node)
    elif isinstance(node, (ast.If, ast.While)):
        always = copy.deepcopy(node)
        always.test = ast.copy_location(ast.Constant(isinstance(node, ast.If)), node.test)
        yield "its condition decided", always
    elif isinstance(node, ast.Break):
        yield "continue for break", ast.copy_location(ast.Continue(), node)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def mutants(room: int) -> Iterator[Mutant]:
    """Yield every mutant of a room's functions."""
    text = SOURCE.read_text(encoding="utf-8")
    first, last = room_lines(room)
    lines = text.splitlines(keepends=True)
    seen: set[ast.AST] = set()
    for outer in ast.walk(ast.parse(text)):
        if isinstance(outer, FUNCTIONS) and first <= outer.lineno <= last and outer not in seen:
            for statement, node in with_statements(outer):
                seen.add(node)
                if not is_annotation(node, outer):
                    for word, other in changes(node):
                        change = f"{word}: {ast.unparse(node):.60}".replace("\n", " ")
                        yield Mutant(room, outer.name, statement.lineno, change, replaced(lines, node, other))


def with_statements(node: Any, statement: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield all that stands in a node, each with the innermost statement that holds it; an elif belongs to its if."""
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child.col_offset == node.col_offset
        inner = child if isinstance(child, ast.stmt) and not is_elif else statement
        if hasattr(child, "lineno") and inner is not None:
            yield inner, child
        yield from with_statements(child, inner)


def probed(folder: str) -> str:
    """Return the source with a line before each statement of the rooms' functions that notes who comes there."""
    text = SOURCE.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    spans = [room_lines(room) for room in ROOMS]
    starts: dict[int, int] = {}
    for outer in ast.walk(ast.parse(text)):
        if isinstance(outer, FUNCTIONS) and any(first <= outer.lineno <= last for first, last in spans):
            for statement, _ in with_statements(outer):
                if not is_docstring(statement) and not is_annotation(statement, outer):
                    first = min([statement, *getattr(statement, "decorator_list", [])], key=lambda each: each.lineno)
                    starts[first.lineno] = statement.lineno
    for first, lineno in starts.items():
        line = lines[first - 1]
        lines[first - 1] = f"{' ' * (len(line) - len(line.lstrip()))}_at({lineno})\n{line}"
    return "".join(lines).replace("\nclass ", f"\n_FOLDER = {folder!r}\n{PROBE}\n\nclass ", 1)


def is_annotation(node: Any, function: Any) -> bool:
    """Return whether a node belongs to a function's signature, whose types are not looked at when it runs."""
    return bool(node.lineno < function.body[0].lineno)


def replaced(lines: list[str], node: Any, other: ast.AST) -> str:
    """Return the whole source with one node's text replaced; an expression in brackets, so that nothing else binds."""
    start, end = node.lineno - 1, node.end_lineno - 1
    head = lines[start].encode()[: node.col_offset].decode()
    tail = lines[end].encode()[node.end_col_offset :].decode()
    indent = " " * (len(head) if not head.strip() else 0)
    text = ast.unparse(other).replace("\n", "\n" + indent)
    text = text if isinstance(other, ast.stmt) else f"({text})"
    return "".join([*lines[:start], head + text + tail, *lines[end + 1 :]])


def copy_tree(folder: str, source: str) -> None:
    pathlib.Path(folder, "devserve.py").write_text(source, encoding="utf-8")
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(TREE / name, folder)
    text, count = re.subn(r"(?m)^DEADLINE = [\d.]+", f"DEADLINE = {DEADLINE}", TESTS.read_text(encoding="utf-8"))
    assert count == 1, "the tests have one DEADLINE"
    pathlib.Path(folder, "test_devserve.py").write_text(text, encoding="utf-8")


def measure(notes: pathlib.Path) -> Tests:
    """Return what each test costs and where it comes to, from a run that is kept in the notes."""
    kept = notes / "tests.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="devserve probe ") as folder:
            copy_tree(folder, probed(folder))
            for name in ("came", "costs", "test"):
                pathlib.Path(folder, name).touch()
            subprocess.run(
                [sys.executable, "-c", RUNNER, *test_classes(*SECTIONS)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            costs = dict(line.rsplit(" ", 1) for line in pathlib.Path(folder, "costs").read_text().splitlines())
            came: dict[str, list[str]] = {}
            for line in sorted(set(pathlib.Path(folder, "came").read_text().splitlines())):
                test, _, lineno = line.rpartition(" ")
                if test in costs:
                    came.setdefault(lineno, []).append(test)
        kept.write_text(json.dumps([costs, came]))
    costs, came = json.loads(kept.read_text())
    return Tests(
        {test: float(cost) for test, cost in costs.items()}, {int(line): tests for line, tests in came.items()}
    )


def fate(mutant: Mutant, tests: Tests, limit: float) -> str:
    """Return "noticed", "survived", or that no test comes to the mutant; "" when its source does not even compile."""
    try:
        compile(mutant.source, "devserve.py", "exec", dont_inherit=True)
    except SyntaxError:
        return ""
    chosen, seconds = [], 0.0
    own = test_classes(mutant.room)
    for test in sorted(
        tests.came.get(mutant.lineno, ()), key=lambda each: (each.split(".")[0] not in own, tests.costs[each])
    ):
        seconds += tests.costs[test]
        if seconds < limit:
            chosen.append(test)
    if not chosen:
        return "survived, as no test comes to it"
    with tempfile.TemporaryDirectory(prefix="devserve mutant ") as folder:
        copy_tree(folder, mutant.source)
        command = [sys.executable, "test_devserve.py", "--failfast", *chosen]
        quiet: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        process = subprocess.Popen(command, cwd=folder, start_new_session=True, **quiet)
        try:
            code = process.wait(3 * limit)
        except subprocess.TimeoutExpired:
            return "noticed, as it hangs"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "noticed" if code else f"survived {len(chosen)} of {len(tests.came[mutant.lineno])} tests"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rooms", type=int, nargs="+", default=list(ROOMS))
    parser.add_argument("--count", type=int, default=200, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--functions", nargs="+", help="of these alone, by their own names")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds of tests for a mutant (default: %(default)s)"
    )
    parser.add_argument(
        "--notes", type=pathlib.Path, help="a folder; the default is one for this source in the system's"
    )
    given = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(19)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # and the tests that run now end, too
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    notes = given.notes or pathlib.Path(tempfile.gettempdir(), f"devserve mutants {digest}")
    notes.mkdir(exist_ok=True)
    tests = measure(notes)
    every = [mutant for room in given.rooms for mutant in mutants(room)]
    every = [mutant for mutant in every if not given.functions or mutant.function in given.functions]
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    fates = notes / "fates.json"
    known: dict[str, str] = json.loads(fates.read_text()) if fates.exists() else {}
    left, tried = 0, 0
    for mutant in chosen:
        name = f"line {mutant.lineno}, {mutant.function}: {mutant.change}"
        if name not in known:
            known[name] = fate(mutant, tests, given.limit)
            fates.write_text(json.dumps(known, indent=1))
        tried += bool(known[name])
        if known[name].startswith("survived") and (mutant.function, mutant.change) not in EQUIVALENT:
            left += 1
            print(f"{name}  ({known[name]})", flush=True)
    print(f"{tried} mutants of {len(every)} tried, {left} survived")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
