"""Break devserve.py in one place at a time, and see whether a test notices.

    python3 .ci/mutants.py                          200 mutants of the rooms for guard, server, watcher and restart
    python3 .ci/mutants.py --rooms 8 --count 50     other rooms, another number
    python3 .ci/mutants.py --seed 7                 other mutants; the same seed makes the same ones
    python3 .ci/mutants.py --functions close_gate   those of these functions alone

Each mutant is a copy of the file in which one comparison, one condition, one number or one statement is another.  The
tests of its room run against it, in a folder of its own, until the first that fails; those that name the function come
first.  A mutant that no test notices has survived: it is printed with its line.  Some are equivalent, as they behave
no otherwise than the original; those that have been looked at stand in EQUIVALENT with the reason.  Exit status 1 when
others survived.
"""

import argparse
import ast
import concurrent.futures
import copy
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

TREE = pathlib.Path(__file__).resolve().parent.parent
SOURCE = TREE / "devserve.py"
TESTS = TREE / "test_devserve.py"
ROOMS = (8, 10, 12, 13)  # where a fault loses requests or opens the console
PATIENCE = 900.0  # seconds for the tests of a room; a mutant that hangs them has been noticed
# sections of the tests in which a room is tested besides its own
BESIDES = {8: "9. Debugger", 12: "Reloading, end to end", 13: "Reloading, end to end"}

# (function, what was changed): why it behaves no otherwise
EQUIVALENT: dict[tuple[str, str], str] = {
    ("refuses_list", "without its first part: refusal or _is_local(environ) or self.has_cookie(environ)"): (
        "elsewhere and without the cookie it is no all the same, for another reason"
    ),
    ("refuses_stacks", "without its first part: refusal or self.has_cookie(environ)"): (
        "without the cookie it is no all the same, for another reason"
    ),
}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


class Mutant(NamedTuple):
    room: int
    function: str
    lineno: int
    change: str
    source: str


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


def tests_of(number: int) -> list[str]:
    """Return the names of the test classes below a room's banner, and of those that test it from end to end."""
    text = TESTS.read_text(encoding="utf-8")
    wanted = [
        span
        for title, span in sections(text).items()
        if re.search(rf"\b{number}\. ", title) or title.startswith(BESIDES.get(number, "\0"))
    ]
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    names = [
        node.name
        for node in classes
        for first, last in wanted
        if first <= node.lineno <= last and any(getattr(each, "name", "").startswith("test_") for each in node.body)
    ]
    if not names:
        raise SystemExit(f"no test class stands below the banner of room {number} in {TESTS.name}")
    return names


def tests_that_name(function: str, classes: list[str]) -> list[str]:
    """Return those tests of the classes in whose text the function's name stands."""
    text = TESTS.read_text(encoding="utf-8")
    lines = text.splitlines()
    return [
        f"{node.name}.{test.name}"
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for test in node.body
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_")
        if re.search(rf"\b{function}\b", "\n".join(lines[test.lineno - 1 : test.end_lineno]))
    ]


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may be put in a node's place, each with a word about it."""
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
    node: Any
    text = SOURCE.read_text(encoding="utf-8")
    first, last = room_lines(room)
    lines = text.splitlines(keepends=True)
    for outer in ast.walk(ast.parse(text)):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) and first <= outer.lineno <= last:
            for node in ast.walk(outer):
                if node is not outer and hasattr(node, "lineno") and not is_annotation(node, outer):
                    for word, other in changes(node):
                        change = f"{word}: {ast.unparse(node):.60}".replace("\n", " ")
                        yield Mutant(room, outer.name, node.lineno, change, replaced(lines, node, other))


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


def survives(mutant: Mutant, classes: list[str]) -> Optional[bool]:
    """Return whether all tests pass against a mutant; None when its source does not even compile."""
    try:
        compile(mutant.source, "devserve.py", "exec", dont_inherit=True)
    except SyntaxError:
        return None
    with tempfile.TemporaryDirectory(prefix="devserve mutant ") as folder:
        pathlib.Path(folder, "devserve.py").write_text(mutant.source, encoding="utf-8")
        for name in ("test_devserve.py", "README.md", "pyproject.toml"):
            shutil.copy(TREE / name, folder)
        first = tests_that_name(mutant.function, classes) if mutant.function else []
        command = [sys.executable, "test_devserve.py", "--failfast", *first, *classes]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            done = subprocess.run(command, cwd=folder, timeout=PATIENCE, **quiet)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            return False
    return bool(done.returncode == 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rooms", type=int, nargs="+", default=list(ROOMS))
    parser.add_argument("--count", type=int, default=200, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--functions", nargs="+", help="of these alone, by their own names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    for room in given.rooms:
        if not survives(Mutant(room, "", 0, "", SOURCE.read_text(encoding="utf-8")), tests_of(room)):
            raise SystemExit(f"the tests of room {room} fail without any mutation: mend that first")
    every = [mutant for room in given.rooms for mutant in mutants(room)]
    every = [mutant for mutant in every if not given.functions or mutant.function in given.functions]
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    classes = {room: tests_of(room) for room in given.rooms}
    left, tried = [], 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for mutant, alive in zip(chosen, pool.map(lambda each: survives(each, classes[each.room]), chosen)):
            tried += alive is not None
            if alive and (mutant.function, mutant.change) not in EQUIVALENT:
                left.append(mutant)
                print(f"line {mutant.lineno}, {mutant.function}: {mutant.change}", flush=True)
    print(f"{tried} mutants of {len(every)} tried, {len(left)} survived")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
