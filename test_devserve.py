"""Tests of devserve.  The standard library is enough: python3 test_devserve.py

Tests that need a package or a program from outside are skipped with the reason when it is missing; with
DEVSERVE_REQUIRE_ALL=1 (as in CI) a missing one is a failure.
"""

import ast
import base64
import bisect
import builtins
import collections
import contextlib
import contextvars
import copy
import decimal
import errno
import functools
import gc
import gzip
import html
import html.parser
import http.client
import http.server
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import itertools
import json
import keyword
import marshal
import os
import pathlib
import pickle
import py_compile
import queue
import random
import re
import select
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import unittest
import unittest.mock
import urllib.parse
import weakref
import wsgiref.simple_server
import wsgiref.util
import wsgiref.validate
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Callable, ClassVar, NamedTuple, Optional, TypeVar, Union
from unittest import mock
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import devserve

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a background job, whose children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # what is tested is on this machine

DEADLINE = 20.0  # seconds that anything may take before a test fails; generous, since machines under load are slow
REQUIRE_ALL = os.environ.get("DEVSERVE_REQUIRE_ALL") == "1"
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()  # not so in the free-threaded builds of 3.13 on
SCRIPT = pathlib.Path(devserve.__file__).resolve()
README = SCRIPT.with_name("README.md")


Test = TypeVar("Test", bound=Callable[..., Any])


def needs(module: str) -> Callable[[Test], Test]:
    """Skip the decorated test when `module` cannot be imported, or let it fail when nothing may be missing."""
    present = importlib.util.find_spec(module) is not None
    return unittest.skipUnless(present or REQUIRE_ALL, f"needs the package {module}")


def eventually(condition: Callable[[], Any], what: Union[str, Callable[[], str]], deadline: float = DEADLINE) -> Any:
    """Return the first true value of `condition`; fail when there is none before the deadline.

    The message names `what`, and has what all processes have written until then.
    """
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            message = what if isinstance(what, str) else what()
            logs = [f"\n\n{each.process.args!r}:\n{each.log}" for each in Served.running]
            raise AssertionError(f"not within {deadline} s: {message}{''.join(logs)}")
        time.sleep(0.01)


def returning(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call in a thread of its own returns; fail when it has not returned before the deadline."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call(*arguments)), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    if not results:
        raise AssertionError(f"not within {DEADLINE} s: the return of {call}")
    return results[0]


def steps(call: Callable[[], object]) -> int:
    """Return how many lines Python runs for a call in this thread, and how many functions it calls."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return count


def growth(call: Callable[[int], object], size: int) -> float:
    """Return how many times as long a call takes for a size eight times as large: 8 where it is linear, else 64.

    It is the processor's time, and of three tries the least; what takes less than a millisecond counts as one.
    """

    def cost(size: int) -> float:
        began = time.process_time()
        call(size)
        return time.process_time() - began

    small = min(cost(size) for _ in range(3))
    return min(cost(8 * size) for _ in range(3)) / max(small, 0.001)


def allow_descriptors(count: int) -> None:
    """Let this process have so many descriptors, which is more than macOS gives; skip the test where it may not."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count:
            raise unittest.SkipTest(f"a process may have only {hard} descriptors here")
        if soft != resource.RLIM_INFINITY and soft < count:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Folder(unittest.TestCase):
    """A test with an empty folder of its own, `self.folder`, and a way to write files in it."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory(prefix="devserve test é ")
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name).resolve()

    def write(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path


class Cut(ConnectionError):
    """The connection ended before the answer was whole."""


class Answer(NamedTuple):
    """A server's answer: `headers` in their order, `body` without its framing."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def all(self, name: str) -> list[str]:
        values: list[str] = self.headers.get_all(name, [])
        return values

    def get(self, name: str) -> Optional[str]:
        """Return the value of a header that may come once at most."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


class Client:
    """One connection to a server: bytes go out as they are, and answers are taken apart strictly.

    It never connects again by itself, and sees a connection that is cut or reset for what it is.  `address` is a port
    of this machine, a URL, the path of a socket file or a connected socket; with a context it speaks TLS.
    """

    def __init__(
        self,
        address: Union[int, str, socket.socket],
        context: Optional[ssl.SSLContext] = None,
        timeout: float = DEADLINE,
        version: str = "1.1",
    ) -> None:
        self.version = version  # of HTTP, that each answer must have
        self.host = "localhost"
        self.sock: Any = address if isinstance(address, socket.socket) else self._connected(address, timeout)
        self.sock.settimeout(timeout)
        if context:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        self.file = self.sock.makefile("rb")

    def _connected(self, address: Union[int, str], timeout: float) -> socket.socket:
        if isinstance(address, int):
            sock = socket.create_connection(("127.0.0.1", address), timeout)
        elif address.startswith("http"):
            url = urllib.parse.urlsplit(address)
            self.host = url.netloc
            sock = socket.create_connection((url.hostname or "", url.port or 80), timeout)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address)
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def send(self, *pieces: Union[bytes, str], pause: float = 0.0) -> "Client":
        for piece in pieces:
            self.sock.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
            if pause:
                time.sleep(pause)
        return self

    def request(self, path: str = "/", method: str = "GET", body: Optional[bytes] = None, **headers: Any) -> "Client":
        """Send a request.  A header of None is left out, `_` in a name stands for `-`."""
        fields: dict[str, Any] = {"Host": self.host, **({} if body is None else {"Content-Length": len(body)})}
        fields.update((name.replace("_", "-"), value) for name, value in headers.items())
        lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
        return self.send("".join([f"{method} {path} HTTP/1.1\r\n", *lines, "\r\n"]).encode("latin-1") + (body or b""))

    def ask(self, path: str = "/", method: str = "GET", body: Optional[bytes] = None, **headers: Any) -> Answer:
        """Send a request and return the whole answer."""
        return self.request(path, method, body, **headers).answer(method)

    def end(self) -> "Client":
        """Send no more, and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def line(self) -> str:
        line: bytes = self.file.readline(65537)
        if not line.endswith(b"\r\n"):
            raise Cut(f"in a line: {line!r}")
        assert b"\r" not in line[:-2], line
        return line[:-2].decode("latin-1")

    def head(self) -> Answer:
        """Read the head of an answer; its body stays unread."""
        version, status, reason = re.fullmatch(r"HTTP/(\d\.\d) (\d{3}) (.*)", self.line()).groups()  # type: ignore[union-attr]
        assert version == self.version, version
        headers = http.client.HTTPMessage()
        for line in iter(self.line, ""):
            name, value = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?(.*)", line).groups()  # type: ignore[union-attr]
            headers[name] = value
        return Answer(int(status), reason, headers, b"")

    def exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise Cut(f"{len(data)} bytes of {count}")
        return bytes(data)

    def chunk(self) -> bytes:
        size = int(self.line(), 16)
        data = self.exactly(size)
        assert self.line() == ""
        return data

    def answer(self, method: str = "GET") -> Answer:
        """Read one whole answer by its framing."""
        head = self.head()
        length, coding = head.get("Content-Length"), head.get("Transfer-Encoding")
        assert length is None or coding is None, head
        if method == "HEAD" or head.status in (204, 304) or head.status < 200:
            return head
        if coding:
            assert coding == "chunked", head
            return head._replace(body=b"".join(iter(self.chunk, b"")))
        return head._replace(body=self.file.read() if length is None else self.exactly(int(length)))

    def rest(self) -> bytes:
        """Read all that comes until the server ends the connection."""
        return bytes(self.file.read())

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def fetch(
    address: Union[int, str],
    path: str = "/",
    method: str = "GET",
    body: Optional[bytes] = None,
    context: Optional[ssl.SSLContext] = None,
    **headers: Any,
) -> Answer:
    """Return the answer to one request on a connection of its own."""
    with Client(address, context) as client:
        return client.ask(path, method, body, **{"Connection": "close", **headers})


class Served:
    """A devserve process started as a person starts it: command line, folder, output read line by line.

    `url` waits for the start-up line that names the address.  `log` is all of standard error and output so far.
    """

    running: ClassVar["list[Served]"] = []

    def __init__(
        self,
        *arguments: str,
        cwd: pathlib.Path,
        script: Optional[list[str]] = None,
        port: bool = True,
        env: Optional[dict[str, str]] = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        command = [sys.executable, *flags, *(script or [str(SCRIPT)]), *arguments] + (["--port", "0"] if port else [])
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("DEVSERVE_", "FLASK_"))}
        environ.update({"PYTHONIOENCODING": "utf-8", **(env or {})})
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.follow(subprocess.Popen(command, cwd=cwd, env=environ, **streams))

    def follow(self, process: "subprocess.Popen[bytes]") -> None:
        """Keep what a process writes until it is stopped."""
        self.process = process
        self.chunks: list[bytes] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.running.append(self)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, b""):
            self.chunks.append(line)

    @property
    def log(self) -> str:
        return b"".join(self.chunks).decode("utf-8", "replace")

    def wait_for(self, pattern: str, deadline: float = DEADLINE) -> "re.Match[str]":
        """Return the first match of `pattern` in the log."""

        def look() -> Any:
            return re.search(pattern, self.log) or (
                self.process.poll() is not None and not self.reader.is_alive() and self._dead(pattern)
            )

        found: re.Match[str] = eventually(look, f"{pattern!r} in the log", deadline)
        return found

    def _dead(self, pattern: str) -> "Optional[re.Match[str]]":
        found = re.search(pattern, self.log)
        if found is None:
            raise AssertionError(f"the process ended with {self.process.returncode}, no {pattern!r} in:\n{self.log}")
        return found

    @property
    def url(self) -> str:
        return self.wait_for(r"(https?://[^\s/]+)").group(1)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def ask(self, path: str = "/", method: str = "GET", body: Optional[bytes] = None, **headers: Any) -> Answer:
        return fetch(self.url, path, method, body, **headers)

    def get(self, path: str = "/", **headers: Any) -> str:
        """Return the text of an answer that is no error."""
        answer = self.ask(path, **headers)
        assert answer.status < 400, answer
        return answer.text

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join(DEADLINE)
            if self in self.running:
                self.running.remove(self)
            assert not self.reader.is_alive(), f"a child has outlived the process and holds its output: {self.log}"
            if self.process.stdout:
                self.process.stdout.close()
        return self.process.returncode

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


# =====================================================================================================================
# 0. The house
#
# What the title page says of the rooms, kept true: who may know whom, who alone may do what.
# =====================================================================================================================

# room: the rooms with a smaller number that it may name, besides the title page
MAY_KNOW: dict[int, set[int]] = {
    0: set(), 1: set(), 2: set(), 3: {1, 2}, 4: {1, 2, 3}, 5: {2}, 6: {2, 3, 5}, 7: {2, 5}, 8: {1, 2},
    9: {1, 2, 3, 5, 6, 7, 8}, 10: {1, 2, 3}, 11: {1, 2, 3, 10}, 12: {1, 2}, 13: {1, 2, 3}, 14: set(range(1, 14)),
    15: {1, 2, 3, 4, 14}, 16: set(),
}  # fmt: skip
PAPER = 16  # what is on paper may be used by rooms that write
MAY_USE_PAPER = {6, 9, 10, 11, 14, 15}
WRITERS = ("print", "sys.stderr.write", "sys.stderr.writelines", "sys.__stderr__.write", "warnings.warn")
RULE = "# " + "=" * 117


class Room(NamedTuple):
    number: int
    name: str
    first: int  # line numbers of the file
    last: int
    text: str


def rooms() -> dict[int, Room]:
    """Return the rooms by their banners: a rule, `# N. Name`, a paragraph, a rule."""
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    pairs = list(zip(lines, [*lines[1:], ""]))
    starts = [n for n, (line, following) in enumerate(pairs) if line == RULE and re.match(r"# \d+\. ", following)]
    found = {0: Room(0, "Title page", 1, starts[0], "\n".join(lines[: starts[0]]))}
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        number, name = re.match(r"# (\d+)\. (.+)", lines[start + 1]).groups()  # type: ignore[union-attr]
        found[int(number)] = Room(int(number), name, start + 1, end, "\n".join(lines[start:end]))
    return found


def targets(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (
                part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
    elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For)):
        for child in ast.iter_child_nodes(node):
            yield from targets(child)


class Names(ast.NodeVisitor):
    """Collects the global names that code refers to, with their lines; what a function binds itself is not one."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []
        self.local: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and not any(node.id in names for names in self.local):
            self.found.append((node.id, node.lineno))

    def _visit_scope(self, node: Any) -> None:
        """Visit a function: defaults, decorators and annotations outside its names, the body inside."""
        bound = {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
        body = node.body if isinstance(node.body, list) else [node.body]
        for part in body:
            for inner in ast.walk(part):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    bound.add(inner.id)
                elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                    bound |= {(alias.asname or alias.name).split(".")[0] for alias in inner.names}
                elif isinstance(inner, (ast.ExceptHandler, ast.FunctionDef, ast.ClassDef)) and inner.name:
                    bound.add(inner.name)
        for child in ast.iter_child_nodes(node):
            if child not in body:
                self.visit(child)
        self.local.append(bound)
        for part in body:
            self.visit(part)
        self.local.pop()

    visit_FunctionDef = _visit_scope
    visit_AsyncFunctionDef = _visit_scope
    visit_Lambda = _visit_scope

    def _visit_comprehension(self, node: Any) -> None:
        bound = {n.id for part in node.generators for n in ast.walk(part.target) if isinstance(n, ast.Name)}
        self.local.append(bound)
        self.generic_visit(node)
        self.local.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension


class House(unittest.TestCase):
    """The map on the title page is true."""

    text = SCRIPT.read_text(encoding="utf-8")
    rooms = rooms()
    firsts = [room.first for room in rooms.values()]
    lines = text.splitlines()
    tree: ast.Module

    @classmethod
    def setUpClass(cls) -> None:
        cls.tree = ast.parse(cls.text)

    @classmethod
    def tearDownClass(cls) -> None:
        del cls.tree  # half a million objects, through which every collection of garbage would go

    def room_of(self, line: int) -> int:
        return bisect.bisect_right(self.firsts, line) - 1

    def attributes(self) -> Iterator[tuple[str, int]]:
        """Yield each `module.name` of the file with its room."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield f"{node.value.id}.{node.attr}", self.room_of(node.lineno)

    def test_rooms_are_numbered_without_a_gap_and_each_begins_with_a_paragraph(self) -> None:
        self.assertEqual(list(self.rooms), list(range(17)))
        for room in list(self.rooms.values())[1:]:
            with self.subTest(room.name):
                banner = room.text.split(RULE)[1].strip("\n").split("\n")
                self.assertEqual(banner[1], "#")
                self.assertGreater(len(" ".join(banner[2:])), 80, "a paragraph")

    def test_the_title_page_lists_every_room(self) -> None:
        title = ast.get_docstring(self.tree) or ""
        for room in list(self.rooms.values())[1:]:
            self.assertRegex(title, rf"(?m)^ *{room.number} +{re.escape(room.name)}\b")

    def test_the_stories_on_the_title_page_name_what_is_there(self) -> None:
        named = re.compile(r"\b(?:_?[A-Za-z]+\.[a-z_]+|[a-z]+_[a-z_]+|_[A-Za-z]\w+|(?:[A-Z][a-z]+){2,})\b")
        there = {"devserve.run", "os.execve"}
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                there.add(node.name)
            if isinstance(node, ast.ClassDef):
                kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
                methods = [method.name for method in node.body if isinstance(method, kinds)]
                there |= {*methods, *(f"{node.name}.{method}" for method in methods)}
        stories = (ast.get_docstring(self.tree) or "").partition("stories.")[2]
        self.assertEqual([name for name in named.findall(stories) if name not in there], [])

    def test_no_name_is_given_twice(self) -> None:
        """A second one would replace the first without a word."""
        where: dict[str, list[int]] = collections.defaultdict(list)
        for node in self.tree.body:
            for name in set(targets(node)):
                where[name].append(node.lineno)
        twice = {name: lines for name, lines in where.items() if len({self.room_of(line) for line in lines}) > 1}
        self.assertEqual(twice, {})

    def test_a_room_names_only_the_rooms_that_it_may_know(self) -> None:
        home: dict[str, int] = {}
        for node in self.tree.body:
            for name in targets(node):
                home.setdefault(name, self.room_of(node.lineno))
        names = Names()
        names.visit(self.tree)
        wrong = collections.defaultdict(set)
        for name, line in names.found:
            here, there = self.room_of(line), home.get(name, 0)
            if there in (0, here) or there in MAY_KNOW[here] or (there == PAPER and here in MAY_USE_PAPER):
                continue
            if self.lines[line - 1].strip() in ("sys.exit(main())",):
                continue  # the last lines of the file start it
            wrong[f"room {here} names room {there}"].add(name)
        self.assertEqual(dict(wrong), {})

    def test_a_name_without_an_underscore_is_a_door(self) -> None:
        """Other rooms use it, or the world does; every other name of a room is private."""
        home = {name: self.room_of(node.lineno) for node in self.tree.body for name in targets(node)}
        names = Names()
        names.visit(self.tree)
        users: dict[str, set[int]] = collections.defaultdict(set)
        for name, line in names.found:
            users[name].add(self.room_of(line))
        public = {*devserve.__all__, "main", "demo"}
        wrong = {}
        for name, room in home.items():
            if room not in (0, PAPER) and not name.startswith("__"):
                is_door = name in public or bool(users[name] - {room})
                if is_door == name.startswith("_"):
                    wrong[name] = f"room {room}, used by {sorted(users[name])}"
        self.assertEqual(wrong, {})

    def paragraphs(self, number: int) -> dict[str, str]:
        """Return what a room's banner says under each of its headings."""
        lines = [line[1:].strip() for line in self.rooms[number].text.split(RULE)[1].strip("\n").split("\n")]
        parts = re.split(r"(?m)^(Doors|Invariants|Read first):\s", "\n".join(lines))
        return {word: rest.partition("\n\n")[0] for word, rest in zip(parts[1::2], parts[2::2])}

    def doors(self) -> dict[int, set[str]]:
        """Return the names of each room that other rooms, or the world, may use."""
        found: dict[int, set[str]] = collections.defaultdict(set)
        for node in self.tree.body:
            types_alone = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for name in () if types_alone else targets(node):
                if not name.startswith("_"):
                    found[self.room_of(node.lineno)].add(name)
        return found

    def test_each_banner_names_the_doors_of_its_room(self) -> None:
        doors = self.doors()
        for number in range(1, PAPER):
            with self.subTest(self.rooms[number].name):
                named = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", self.paragraphs(number).get("Doors", "")))
                self.assertEqual(sorted(named & set().union(*doors.values())), sorted(doors[number]))

    def test_each_banner_says_what_always_holds_and_what_to_read_first(self) -> None:
        for number in range(1, PAPER):
            with self.subTest(self.rooms[number].name):
                paragraphs = self.paragraphs(number)
                self.assertGreater(len(paragraphs.get("Invariants", "")), 40)
                first = re.findall(r"`?([A-Za-z_]\w*)(?:\.\w+)*`?[,. ]", paragraphs.get("Read first", "") + " ")
                text = self.rooms[number].text
                missing = [
                    name for name in first if not re.search(rf"(?m)^ *(def|class|async def) {name}\b|^{name}\b", text)
                ]
                self.assertEqual((missing, bool(first)), ([], True))

    def test_only_the_terminal_writes_to_standard_error(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and self.room_of(node.lineno) != 3:
                called = ast.unparse(node.func)
                if called == "print" and self.room_of(node.lineno) == 7:
                    continue  # what the console prints it captures itself
                self.assertNotIn(called, WRITERS, f"line {node.lineno}")

    def test_only_the_reloader_replaces_the_process(self) -> None:
        users = {room for name, room in self.attributes() if re.match(r"os\.(exec|spawn|posix_spawn|fork)", name)}
        self.assertLessEqual(users, {13})

    def test_only_the_command_line_knows_argparse(self) -> None:
        for node in ast.walk(self.tree):
            if "argparse" in imported(node):
                self.assertEqual(self.room_of(getattr(node, "lineno", 0)), 15)
        self.assertLessEqual({room for name, room in self.attributes() if name.startswith("argparse.")}, {15})

    def test_reading_a_traceback_holds_no_markup(self) -> None:
        tags = "|".join(sorted(set(re.findall("<([a-z]+[0-9]?)", self.rooms[PAPER].text))))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and self.room_of(node.lineno) == 5:
                self.assertNotRegex(node.value, rf"<(/\s*)?({tags})\b")

    def test_the_guard_builds_no_response(self) -> None:
        self.assertNotIn("start_response", self.rooms[8].text)

    def test_the_reloader_never_mentions_server_or_application(self) -> None:
        words = set()
        for node in ast.walk(self.tree):
            if hasattr(node, "lineno") and self.room_of(node.lineno) in (12, 13):
                for field in ("id", "attr", "arg", "name"):
                    words |= set(re.split(r"_", str(getattr(node, field, ""))))
        self.assertEqual(words & {"server", "app", "environ_start", "wsgi", "application"}, set())

    def test_paper_is_text_alone(self) -> None:
        for node in self.tree.body:
            if self.room_of(node.lineno) == PAPER and node.lineno < self.rooms[PAPER].last - 5:
                self.assertIsInstance(node, (ast.Assign, ast.AnnAssign, ast.Expr, ast.If), f"line {node.lineno}")

    @unittest.skipUnless(shutil.which("node") or REQUIRE_ALL, "needs the program node")
    def test_the_scripts_on_paper_can_be_parsed(self) -> None:
        for name in ("SCRIPT", "LIVE_SCRIPT"):
            text = getattr(devserve, name)
            done = subprocess.run(
                ["node", "--check", "-"], input=text, capture_output=True, text=True, timeout=DEADLINE
            )
            self.assertEqual((name, done.returncode, done.stderr), (name, 0, ""))

    def test_there_is_no_global_state(self) -> None:
        for node in ast.walk(self.tree):
            self.assertNotIsInstance(node, ast.Global, f"line {getattr(node, 'lineno', 0)}")
        for node in self.tree.body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for name in targets(node):
                    alias = isinstance(
                        node.value, (ast.Call, ast.Subscript, ast.Name, ast.Attribute)
                    )  # of a type, a function
                    constant = alias or name.isupper() or name.startswith("__")
                    self.assertTrue(constant, f"line {node.lineno}: {name} looks like a variable")

    def test_only_the_standard_library_is_imported(self) -> None:
        known = getattr(sys, "stdlib_module_names", None)
        if known is None:
            self.skipTest("Python 3.10 and later know the names")
        for node in ast.walk(self.tree):
            for module in imported(node):
                self.assertIn(module, {*known, "_typeshed", "_hashlib"}, f"line {getattr(node, 'lineno', 0)}")

    def test_a_start_does_not_import_what_is_dear(self) -> None:
        """Each of these costs milliseconds of every reload."""
        dear = "http.server email ssl argparse inspect tempfile subprocess logging json html asyncio".split()
        tell = f"print([name for name in {dear!r} if name in sys.modules])"
        load = f"sys.path.insert(0, {str(SCRIPT.parent)!r}); import devserve"
        bare, done = (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
            for code in (f"import sys; {tell}", f"import sys; {load}; {tell}")
        )
        self.assertEqual(done.stdout, bare.stdout, done.stderr)

    def test_every_broad_except_says_why(self) -> None:
        lines = self.text.splitlines()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or any(
                    isinstance(part, ast.Name) and part.id in ("Exception", "BaseException")
                    for part in ast.walk(node.type)
                )
                passes_on = any(isinstance(part, ast.Raise) and part.exc is None for part in node.body)
                if broad and not passes_on:
                    self.assertRegex(
                        lines[node.lineno - 1],
                        r"# (noqa: BLE001 - )?\w+.*\w+",
                        f"line {node.lineno}: without a reason",
                    )

    def test_nothing_is_left_to_do(self) -> None:
        for number, line in enumerate(self.text.splitlines(), 1):
            self.assertNotRegex(line, r"\b(TODO|FIXME|XXX)\b", f"line {number}")


def imported(node: ast.AST) -> set[str]:
    """Return the top-level modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.split(".")[0]}
    return set()


# =====================================================================================================================
# 1. Configuration
# =====================================================================================================================


class Configuration(unittest.TestCase):
    def test_a_config_is_a_named_tuple_like_any_other(self) -> None:
        config = devserve.Config("hello", port=80)
        self.assertEqual((config.app, config.host, config.port, config[2]), ("hello", "127.0.0.1", 80, 80))
        self.assertEqual(config, devserve.Config(*config))
        self.assertEqual(config._asdict()["port"], 80)
        self.assertIn("Config(app='hello', host='127.0.0.1', port=80, ", repr(config))
        self.assertEqual(config._replace(port=81), devserve.Config("hello", port=81))
        self.assertEqual(len(config), len(devserve.Config._fields))
        with self.assertRaises(AttributeError):
            config.port = 81  # type: ignore[misc]

    def test_a_config_can_be_copied_and_pickled(self) -> None:
        config = devserve.Config("hello", port=80)
        for made in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            self.assertEqual(made, config)
            self.assertIs(type(made), devserve.Config)

    def test_wrong_values_for_a_named_tuple_are_an_error(self) -> None:
        self.assertEqual(devserve.Handover({}, {"a": "b"}).notes, {"a": "b"})
        wrong: list[tuple[list[Any], dict[str, Any]]] = [
            ([], {}),
            ([{}], {"host": ""}),
            ([{}, {}, {}], {}),
            ([{}], {"sockets": {}}),
        ]
        for values, named in wrong:
            with self.subTest(values=values, named=named), self.assertRaises(TypeError):
                devserve.Handover(*values, **named)


class Options(unittest.TestCase):
    """The table, and what it makes."""

    def test_the_rows_are_the_fields(self) -> None:
        self.assertEqual(tuple(devserve.OPTIONS), devserve.Config._fields)
        self.assertEqual({row.field: row.default for row in devserve.OPTIONS.values()}, devserve.Config()._asdict())

    def test_no_flag_variable_or_foreign_word_means_two_things(self) -> None:
        for words in (
            [flag for row in devserve.OPTIONS.values() for flag in (*row.flags, *row.others.split())],
            [name for row in devserve.OPTIONS.values() for name, _ in row.variables()],
        ):
            self.assertEqual([word for word, count in collections.Counter(words).items() if count > 1], [])

    @unittest.skipUnless(devserve.run.__doc__, "without docstrings")
    def test_every_keyword_stands_with_its_default_in_the_docstring_that_promises_it(self) -> None:
        texts = {
            run_only: inspect.getdoc(made) or ""
            for run_only, made in ((True, devserve.run), (False, devserve.make_server))
        }
        for row in list(devserve.OPTIONS.values())[1:]:
            default = {"()": r"\[\]", "False": "(False|debug)", "''": '""'}.get(repr(row.default), str(row.default))
            with self.subTest(row.field):
                self.assertRegex(texts[True], rf"(?m)^([\w, ]+, )?{row.field}\b[\w, ]* \(.*{default}")
                self.assertEqual(
                    bool(re.search(rf"(?m)^([\w, ]+, )?{row.field}\b.*(\(|:)", texts[False])), not row.run_only
                )

    @unittest.skipUnless(README.exists(), "README.md is not here")
    def test_the_readme_has_the_same_options_defaults_and_variables(self) -> None:
        readme = README.read_text(encoding="utf-8").partition("## Options")[2].partition("##")[0]
        rows = [line.split("|")[1:-1] for line in readme.splitlines() if line.startswith("| `")]
        flags = [tuple(re.findall(r"(?<=`)-[\w-]+", words)) for words, *_ in rows]
        self.assertEqual(
            sorted(flags), sorted([*(row.flags for row in devserve.OPTIONS.values()), ("--version", "-h", "--help")])
        )
        for words, _, default, variables in rows[:-1]:
            option = next(row for row in devserve.OPTIONS.values() if f"`{row.flags[-1]}`" in words)
            with self.subTest(option.field):
                if isinstance(option.default, (str, int)) and option.default and option.default is not True:
                    self.assertEqual(default.strip(), str(option.default))
                named = re.findall(r"FLASK_\w+", variables)
                self.assertEqual(named[: len(option.flask.split())], option.flask.split())

    @unittest.skipUnless(README.exists(), "README.md is not here")
    def test_the_readme_names_the_rooms_as_the_file_does(self) -> None:
        named = re.findall(r"(\d+) ([A-Z][A-Za-z ]+?)(?=,| \|)", README.read_text(encoding="utf-8"))
        self.assertEqual(named, [(str(room.number), room.name) for room in list(rooms().values())[1:]])

    def test_an_option_without_effect_is_refused(self) -> None:
        app: Any = lambda environ, start_response: []  # noqa: E731
        for option in devserve.OPTIONS.values():
            if option.run_only:
                with self.subTest(option.field), self.assertRaisesRegex(TypeError, f"{option.field}.* no effect"):
                    devserve.make_server(app, **{option.field: option.default})

    def test_an_unknown_option_is_a_type_error_that_names_the_right_one(self) -> None:
        for run in (True, False):
            for option, named in (
                ("use_reloader", "reload"), ("threaded", "threads"), ("reloader", "reload"), ("ports", "port"),
                ("ssl_context", "cert"), ("hostname", "host"), ("use_debugger", "debugger"),
            ):  # fmt: skip
                with self.subTest(run=run, option=option), self.assertRaises(TypeError) as caught:
                    devserve.check_keywords([option], run=run)
                self.assertIn(option, str(caught.exception))
                self.assertIn(named, str(caught.exception))

    def test_a_keyword_may_be_a_path_a_text_or_none(self) -> None:
        given = {
            "cert": pathlib.Path("c.pem"), "extra_files": [pathlib.Path("a"), "b"], "exclude_patterns": "*.tmp",
            "debug": "yes", "reload": 0, "port": "80", "pin": None, "trusted_hosts": "a.test, b.test",
        }  # fmt: skip
        self.assertEqual(
            devserve.config_of_keywords(**given),
            devserve.Config(
                cert="c.pem", extra_files=("a", "b"), exclude_patterns=("*.tmp",), debug=True, debugger=True, port=80,
                trusted_hosts=("a.test", "b.test"),
            ),
        )  # fmt: skip

    def test_a_keyword_of_the_wrong_type_is_a_type_error_that_names_it(self) -> None:
        wrong: tuple[dict[str, Any], ...] = (
            {"port": 1.5},
            {"extra_files": 3},
            {"debug": []},
            {"host": 1},
            {"cert": ()},
        )
        for given in wrong:
            with self.subTest(given), self.assertRaisesRegex(TypeError, next(iter(given))):
                devserve.config_of_keywords(**given)

    def test_what_does_not_fit_together_is_one_line(self) -> None:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"key": "k.pem"}, "--cert"), ({"key": "k", "cert": "adhoc"}, "its own"),
            ({"live": True}, "--reload"), ({"path_map": "/app"}, "HERE=THERE"),
            ({"host": "0.0.0.0:80", "port": 81}, "81"), ({"port": "x"}, "port='x'"),
            ({"debug": "maybe"}, "debug='maybe'"),
            ({"trusted_hosts": "http://dev.test:80/x"}, "http://dev.test:80/x' is .* name dev.test:80 alone"),
            ({"trusted_hosts": ".dev.test"}, "'.dev.test' is a pattern; name each host, as in dev.dev.test"),
            ({"trusted_hosts": "a.test, *.dev.test"}, "'[*].dev.test' is a pattern"),
        ]  # fmt: skip
        for given, named in wrong:
            with self.subTest(given), self.assertRaisesRegex(devserve.DevserveError, named):
                devserve.config_of_keywords(**given)

    def test_a_host_may_name_the_port(self) -> None:
        for text, expected in {
            "0.0.0.0:8000": ("0.0.0.0", 8000), "[::1]:8000": ("::1", 8000), "localhost:0": ("localhost", 0),
            ":8000": ("127.0.0.1", 8000), "::1": ("::1", 5000), "unix:80": ("unix:80", 5000), "a": ("a", 5000),
        }.items():  # fmt: skip
            with self.subTest(text):
                config = devserve.config_of_keywords(host=text)
                self.assertEqual((config.host, config.port), expected)

    def test_a_pattern_that_cannot_match_is_a_warning(self) -> None:
        with mock.patch.dict(os.environ, {"FLASK_SKIP_DOTENV": "1"}, clear=True):
            for field in ("extra_files", "exclude_patterns"):
                for pattern, expected in {
                    "log[9-0]*": 1,
                    "log[0-9]*": 0,
                    "a\\z": 0,
                    "[!z-a]": 1,
                    "[a-a]": 0,
                    "[": 0,
                }.items():
                    with self.subTest(field=field, pattern=pattern):
                        warnings: list[str] = []
                        config = devserve.configure({field: (pattern,)}, warnings.append)
                        self.assertEqual(getattr(config, field), (pattern,))
                        self.assertEqual(len([text for text in warnings if pattern in text]), expected)


class InEmptyEnvironment(Folder):
    """Tests in a folder of their own, whose changes to the environment do not outlive them."""

    def setUp(self) -> None:
        super().setUp()
        here = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, here)
        patch = mock.patch.dict(os.environ, {}, clear=True)
        patch.start()
        self.addCleanup(patch.stop)


class EnvironmentFiles(InEmptyEnvironment):
    def values(self, text: str) -> dict[str, str]:
        """Return what an environment file sets in an environment of HOME_TOWN only."""
        self.write(".env", "").write_bytes(text.encode("utf-8"))
        with unittest.mock.patch.dict(os.environ, {"HOME_TOWN": "Ulm"}, clear=True):
            devserve._read_env_files()
            return {key: value for key, value in os.environ.items() if key != "HOME_TOWN"}

    def test_forms_of_a_line(self) -> None:
        for text, expected in {
            "A=1": "1",
            "A = 1 ": "1",
            "export A=1": "1",
            "  A=": "",
            "'A'=1": "1",
            "A=a b # c": "a b",
            "A=a#b": "a#b",
            "A=#b": "#b",
            "A= # b": "",
            "A='a # b' # c": "a # b",
            'A="a\\tb\\"c\\\\"#d': 'a\tb"c\\',
            "A='it\\'s\\n'": "it's\\n",
            "A=\u00e9\u4e2d": "\u00e9\u4e2d",
            "\ufeffA=1": "1",
            "A=1\r\nB=2\r\n": "1",
            "# A=0\n\nA=1\n": "1",
            "A=1\nA=2": "2",
            "A='1\n2'": "1\n2",
            'A="1\\\n2"': "1\\\n2",
            "A=x=y": "x=y",
            "A=in ${HOME_TOWN}!": "in Ulm!",
            "A='${HOME_TOWN}'": "Ulm",
            "B=b\nA=${B}c": "bc",
            "A=${NO}x": "x",
            "A=${NO:-else}": "else",
            "A=${HOME_TOWN:-else}": "Ulm",
            "A=$HOME_TOWN": "$HOME_TOWN",
            "A=${": "${",
        }.items():
            with self.subTest(text):
                self.assertEqual(self.values(text).get("A"), expected)

    @needs("dotenv")
    def test_reads_as_python_dotenv_does(self) -> None:
        import dotenv

        text = (
            "A=1\nB = two # c\nexport C='x ${A}'\nD=\"q\\n${B}\\x\" # d\nE=${C}${NO:-e}\n"
            "'F'=6\nG=#g\nH=\"a\nb\"\nI=\nJ=j#j #j\n"
            "HOME_TOWN=Bonn\nK=${HOME_TOWN}\nL='\\a\\\\b'\nM=\"\\\\n\"\n N=$A\nO=a'b'\n"
        )
        expected = dict(os.environ)
        with unittest.mock.patch.dict(os.environ, {"HOME_TOWN": "Ulm"}, clear=True):
            path = self.write("theirs.env", "")
            path.write_text(text, encoding="utf-8")
            dotenv.load_dotenv(path)
            expected = {key: value for key, value in os.environ.items() if key != "HOME_TOWN"}
        self.assertEqual(self.values(text), expected)

    @needs("dotenv")
    @needs("hypothesis")
    def test_reads_whatever_python_dotenv_reads(self) -> None:
        """Lines of entries, of mistakes and of noise, in any order, mean the same to both."""
        import logging

        from dotenv.main import DotEnv
        from hypothesis import example, given, settings
        from hypothesis import strategies as st

        logging.disable(logging.WARNING)  # of python-dotenv, about each mistake
        self.addCleanup(logging.disable, logging.NOTSET)
        key = st.sampled_from(["A", "B", "export A", "'A'", "'B C'", "A-b", '"A"', "export", "é", "", "'A", "#A"])
        equals = st.sampled_from(["=", " = ", "= ", "\t=", "", "==", "\x0b=", "\x85=\xa0"])
        piece = st.sampled_from(
            ["x", "'", '"', "\\", "\\n", "\\'", '\\"', "#", " #", " ", "\t", "\n", "\x0c", "${A}", "${B:-d}", "${"]
        )  # fmt: skip
        value = st.one_of(
            st.lists(piece, max_size=8).map("".join),
            st.lists(piece, max_size=4).map(lambda pieces: f"'{''.join(pieces)}'"),
            st.lists(piece, max_size=4).map(lambda pieces: f'"{"".join(pieces)}" # c'),
        )
        line = st.tuples(key, equals, value, st.sampled_from(["\n", "\r\n", "\n\n  ", ""])).map("".join)

        @settings(max_examples=500, deadline=None)
        @given(st.lists(line, max_size=5).map("".join))
        @example("A='1\n2' x\nB=2")
        @example("export =1\nB=2")
        @example("A='unclosed\nB=2\n")
        @example("A\nB=${A}x")
        @example("A=1\nA\nB=${A:-d}")
        def same(text: str) -> None:
            values = self.values(text)
            with mock.patch.dict(os.environ, {"HOME_TOWN": "Ulm"}, clear=True):
                theirs = DotEnv(self.folder / ".env", encoding="utf-8", override=False).dict()
            self.assertEqual(values, {k: v for k, v in theirs.items() if v is not None and "=" not in k})

        same()

    def test_precedence(self) -> None:
        os.environ["A"] = "shell"
        self.write(".flaskenv", "A=flaskenv\nB=flaskenv\nC=flaskenv\nD=flaskenv")
        self.write(".env", "A=env\nB=env\nC=env")
        self.write("mine.env", "A=mine\nB=mine\nE=${C}")
        self.assertEqual(devserve._read_env_files("mine.env"), [])
        self.assertEqual([os.environ[name] for name in "ABCDE"], ["shell", "mine", "env", "flaskenv", ""])

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs named pipes")
    def test_a_named_pipe_is_read_and_not_watched(self) -> None:
        pipe = self.folder / ".env"
        os.mkfifo(pipe)
        threading.Thread(target=pipe.write_text, args=("A=1",), daemon=True).start()
        self.assertEqual(devserve._read_env_files(), [])
        self.assertEqual(os.environ["A"], "1")
        self.assertIsNone(devserve._state(str(pipe)))

    def test_bad_line_is_a_warning_that_names_file_and_line_and_no_secret(self) -> None:
        path = self.write(".env", "A=1\nsecret words\nC=3\n=secret\nD='4' secret\nE=5\nB='secret\n")
        warnings = devserve._read_env_files()
        self.assertEqual(
            [line.partition(" is left out")[0] for line in warnings], [f"{path}, line {n}" for n in (2, 4, 5, 7)]
        )
        self.assertNotIn("secret", "".join(warnings))
        self.assertEqual(dict(os.environ), {"A": "1", "C": "3", "E": "5"})

    def test_missing_env_file_is_an_error_and_others_may_be_missing(self) -> None:
        with self.assertRaisesRegex(devserve.DevserveError, "no file 'no.env'"):
            devserve._read_env_files("no.env")
        os.mkdir(".env")
        self.assertEqual(devserve._read_env_files(), [])

    def test_file_that_is_no_text_is_a_warning(self) -> None:
        (self.folder / ".env").write_bytes("A=1".encode("utf-16"))
        (warning,) = devserve._read_env_files()
        self.assertIn("UTF-8", warning)
        (self.folder / ".env").write_bytes(b"A=1\0\nB=2")
        (warning,) = devserve._read_env_files()
        self.assertIn("line 1", warning)
        self.assertEqual(os.environ["B"], "2")

    def test_files_are_found_in_the_folders_above(self) -> None:
        for depth in (1, 3):
            with self.subTest(depth=depth):
                below = self.folder.joinpath(*["below"] * depth)
                below.mkdir(parents=True, exist_ok=True)
                os.chdir(below)
                self.write(".env", "A=above")
                self.write("below/.flaskenv" if depth == 3 else ".flaskenv", "B=above")
                os.environ.clear()
                self.assertEqual(devserve._read_env_files(), [])
                self.assertEqual((os.environ.get("A"), os.environ.get("B")), ("above", "above"))
                folders = [below, *below.parents][: depth + 1]  # a nearer one would win, so each is watched
                paths = [path for path in devserve.env_files() if path.endswith(f"{os.sep}.env")]
                self.assertEqual(paths, [str(folder / ".env") for folder in folders])

    def test_the_nearest_file_wins(self) -> None:
        self.write(".env", "A=above\nB=above")
        self.write("here/.env", "A=here")
        os.chdir("here")
        devserve._read_env_files()
        self.assertEqual((os.environ.get("A"), os.environ.get("B")), ("here", None))

    @unittest.skipIf(sys.platform == "win32", "modes of POSIX")
    def test_a_file_in_a_folder_above_where_everybody_may_write_is_passed_over(self) -> None:
        self.write("shared/.env", "A=foe")
        self.write(".env", "A=mine")
        self.write("shared/project/app.py", "")
        os.chmod("shared", 0o1777)
        os.chdir("shared/project")
        devserve._read_env_files()
        self.assertEqual(os.environ["A"], "mine")
        os.chdir("..")
        os.environ.clear()
        devserve._read_env_files()
        self.assertEqual(os.environ["A"], "foe", "the current folder is the person's choice")

    def test_flask_skip_dotenv_leaves_out_all_but_a_file_that_is_named(self) -> None:
        self.write(".env", "A=env")
        self.write("mine.env", "B=mine")
        for value, skipped in {"1": True, "yes": True, "0": False, "no": False, "": False}.items():
            with self.subTest(value), mock.patch.dict(os.environ, {"FLASK_SKIP_DOTENV": value}, clear=True):
                devserve._read_env_files("mine.env")
                self.assertEqual((os.environ.get("A"), os.environ.get("B")), (None if skipped else "env", "mine"))
                self.assertEqual(str(self.folder / ".flaskenv") in devserve.env_files(), not skipped)
                self.assertEqual(devserve.env_files() == [], skipped)

    def test_files_to_watch_are_named_absolutely(self) -> None:
        self.write(".env", "")
        self.write(".flaskenv", "")
        names = [str(self.folder / name) for name in ("mine.env", ".env", ".flaskenv")]
        self.assertEqual(devserve.env_files("mine.env"), names)
        self.assertEqual(devserve.env_files(""), names[1:])


# =====================================================================================================================
# 2. Foreign code
# =====================================================================================================================


class ForeignFrames(Folder):
    """Whose a frame is, by its file."""

    def own(self, *names: str) -> list[bool]:
        """Return for each file below the folder whether it is the application's, when work is done in the folder."""
        with mock.patch.object(os, "getcwd", lambda: str(self.folder)):
            return [devserve.is_app_file(str(self.folder / name)) for name in names]

    def test_what_lies_below_the_working_directory_is_the_applications(self) -> None:
        for name in ("app.py", "pkg/views.py", "venv-like/src/site.py", "templates/page.html"):
            self.write(name, "")
            self.assertEqual(self.own(name), [True])

    def test_what_is_not_there_is_nobodys(self) -> None:
        self.assertEqual(self.own("gone.py", "."), [False, False])
        for name in (
            "src/lxml/parser.pyx",
            "<string>",
            "<sqlalchemy generated __init__>",
            "<frozen importlib._bootstrap>",
        ):
            self.assertFalse(devserve.is_app_file(name))

    def test_what_was_typed_at_a_prompt_is_the_applications(self) -> None:
        for name in ("<stdin>", "<python-input-3>", "<ipython-input-1-abc>", "/tmp/ipykernel_12/345.py"):
            self.assertTrue(devserve.is_app_file(name))

    def test_a_file_with_a_relative_name_is_found_from_the_working_directory(self) -> None:
        self.write("app.py", "")
        before = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        self.assertTrue(devserve.is_app_file("app.py"))

    def test_packages_are_a_librarys_in_whatever_environment_they_lie(self) -> None:
        for name in (
            ".venv/lib/python3.12/site-packages/flask/app.py",
            "Lib/site-packages/x.py",
            "dist-packages/y.py",
        ):
            self.write(name, "")
            self.assertEqual(self.own(name), [False])
        self.assertFalse(devserve.is_app_file(json.__file__))
        self.assertTrue(devserve.is_library(r"C:\project\venv\Lib\site-packages\flask\app.py", "/x"))

    def test_the_running_environment_is_a_librarys_unless_work_is_done_there(self) -> None:
        self.write("env/bin/tool.py", "")
        with mock.patch.object(sys, "prefix", str(self.folder / "env")):
            self.assertEqual(self.own("env/bin/tool.py"), [False])
            with mock.patch.object(os, "getcwd", lambda: str(self.folder / "env")):
                self.assertTrue(devserve.is_app_file(str(self.folder / "env/bin/tool.py")))

    def test_a_project_inside_of_a_library_is_ones_own(self) -> None:
        path = self.write("site-packages/mine/app.py", "")
        with mock.patch.object(os, "getcwd", lambda: str(path.parent)):
            self.assertTrue(devserve.is_app_file(str(path)))

    def test_packages_that_were_installed_into_the_project_are_a_librarys(self) -> None:
        for folder in ("", "vendor/"):
            self.write(f"{folder}Fake-1.0.dist-info/METADATA", "")
            self.write(
                f"{folder}PyYAML-6.0.dist-info/RECORD", "yaml/__init__.py,sha256=x,1\n_yaml.py,,\n../../bin/y,,\n"
            )
            names = [
                f"{folder}{name}" for name in ("fake/sub/a.py", "yaml/__init__.py", "_yaml.py", "mine/b.py", "bin/y")
            ]
            for name in names:
                self.write(name, "")
            devserve._installed_names.cache_clear()
            self.assertEqual(self.own(*names), [False, False, False, True, True])

    def test_other_folders_of_the_project_are_those_on_the_path(self) -> None:
        path = str(self.write("beside/app.py", ""))
        with mock.patch.object(os, "getcwd", lambda: str(self.folder / "elsewhere")):
            self.assertFalse(devserve.is_app_file(path))
            with mock.patch.object(sys, "path", [*sys.path, str(self.folder / "beside")]):
                self.assertTrue(devserve.is_app_file(path))

    def test_devserves_own_frames_are_nobodys_but_its_demonstration_is_an_application(self) -> None:
        self.assertFalse(devserve.is_app_code(devserve.main.__code__))
        self.assertTrue(devserve._is_machinery(devserve.main.__code__.co_filename, "main"))
        self.assertFalse(devserve._is_machinery(devserve.demo.__code__.co_filename, "demo"))


class ForeignCode(unittest.TestCase):
    """Calls that raise or hang, and texts that cannot be had."""

    def test_a_thread_is_debugged_in_what_a_debugger_runs_for_its_prompt(self) -> None:
        waiting = ("bdb", "pdb", "remote_pdb", "pudb.remote", "celery.contrib.rdb", "code", "IPython.terminal.embed")
        others = ("codecs", "celery.app", "_pydevd_bundle.pydevd_trace_dispatch", "threading")
        for module in (*waiting, *others):
            entered, go_on = threading.Event(), threading.Event()
            names = {"__name__": module, "entered": entered, "go_on": go_on}
            exec(compile("def wait():\n    entered.set()\n    go_on.wait(60)", threading.__file__, "exec"), names)
            wait: Any = names["wait"]
            for target, is_its_own in ((lambda: wait(), False), (wait, True)):
                thread = threading.Thread(target=target)
                thread.start()
                entered.wait(DEADLINE)
                with self.subTest(module, is_its_own=is_its_own):
                    expected = module in waiting and not is_its_own
                    self.assertEqual(devserve.is_debugged(thread.ident or 0), expected)
                go_on.set()
                thread.join()
                entered.clear()
                go_on.clear()

    def test_a_call_returns_what_it_returns_or_what_it_raises(self) -> None:
        self.assertEqual(devserve.call_bounded(lambda: 3, 5.0), (3, None))
        self.assertIsInstance(devserve.call_bounded(sys.exit, 5.0)[1], SystemExit)

    def test_a_call_that_hangs_is_left_behind_and_interrupted(self) -> None:
        ended, release = threading.Event(), threading.Event()

        def hang() -> None:
            try:
                while not release.wait(0.001):
                    pass
            finally:
                ended.set()

        self.addCleanup(release.set)
        called = devserve.call_each_bounded({"first": lambda: 1, "hangs": hang, "last": lambda: 2}, 0.1)
        self.assertEqual((called["first"], called["last"]), ((1, None), (2, None)))
        self.assertIsInstance(called["hangs"][1], devserve.TooLate)
        if sys.implementation.name == "cpython":
            self.assertTrue(ended.wait(DEADLINE))

    @unittest.skipUnless(sys.platform == "linux", "the threads of other systems are not touched")
    def test_threads_get_a_large_stack_where_the_c_library_gives_a_small_one(self) -> None:
        self.addCleanup(threading.stack_size, threading.stack_size())  # which also sets it, to 0
        with mock.patch("os.confstr", return_value="glibc 2.36"):
            devserve.enlarge_stacks()
        self.assertEqual(threading.stack_size(), 0, "glibc's is large")
        for answer in ({"side_effect": OSError(22, "Invalid argument")}, {"return_value": None}):  # as musl does
            with self.subTest(answer), mock.patch("os.confstr", **answer):
                devserve.make_server(hello).server_close()
                self.assertEqual(threading.stack_size(), devserve._STACK_SIZE)
                threading.stack_size(1024**2)
                devserve.DebuggedApplication(hello, pin="off")
                self.assertEqual(threading.stack_size(), 1024**2, "what the application has chosen stays")

    def test_calls_are_made_where_no_thread_can_be_started(self) -> None:
        with mock.patch.object(devserve.ForeignCalls, "start", side_effect=RuntimeError("can't start new thread")):
            self.assertEqual(devserve.call_bounded(lambda: 3, 5.0), (3, None))

    def test_a_call_is_made_in_the_context_of_its_caller(self) -> None:
        import contextvars

        variable = contextvars.ContextVar("variable", default="outside")
        token = variable.set("inside")
        self.addCleanup(variable.reset, token)
        self.assertEqual(devserve.call_bounded(variable.get, 5.0), ("inside", None))

    def test_a_folded_traceback_counts_the_frames_of_libraries_between_the_applications(self) -> None:
        def view() -> Any:
            return json.loads("{", cls=Decoder)

        class Decoder(json.JSONDecoder):
            def raw_decode(self, s: str, idx: int = 0) -> Any:
                raise LookupError("here")

        error = failure_of(view)
        folded = devserve.traceback_text(error, folded=True).splitlines()
        self.assertIn("  … 2 frames of json", folded)
        self.assertEqual(folded[-1], "LookupError: here")
        self.assertIn("decoder.py", devserve.traceback_text(error))

    def test_causes_and_members_are_folded_too(self) -> None:
        def view() -> None:
            try:
                json.loads("{")
            except ValueError as error:
                raise LookupError from error

        text = devserve.traceback_text(failure_of(view), folded=True)
        self.assertEqual(text.count("json/"), 1)  # where it was raised

    def test_a_traceback_of_libraries_alone_is_printed_whole(self) -> None:
        error = failure_of(lambda: json.loads("{"))
        error.__traceback__ = error.__traceback__.tb_next.tb_next  # type: ignore[union-attr]
        self.assertEqual(devserve.traceback_text(error, folded=True), devserve.traceback_text(error))


# =====================================================================================================================
# 3. Terminal
# =====================================================================================================================


class Screen(io.StringIO):
    """A stream that says it is a terminal, and remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


class TerminalLines(unittest.TestCase):
    """What the person at the keyboard reads."""

    def shown(self, act: Callable[[Any], None], stream: Optional[io.StringIO] = None, **options: Any) -> str:
        stream = stream or io.StringIO()
        terminal = devserve.Terminal(stream, **options)
        act(terminal)
        terminal.flush()
        return stream.getvalue()

    def test_the_token_of_the_debuggers_link_is_not_in_the_log(self) -> None:
        screen = Screen()
        terminal = devserve.Terminal(screen)
        terminal.access("GET", "/mount/__devserve__/unlock?token=0123abc", "303", 0, 0.1)
        terminal.access("GET", "/__devserve__/unlock%3Ftoken=0123abc", "404", 0, 0.1)
        terminal.access("GET", "/__devserve__/unlock/?token=0123abc", "404", 0, 0.1)
        terminal.access("GET", "/__devserve__%2funlock?token=0123abc", "303", 0, 0.1)
        terminal.access("GET", f"/__devserve__/%75nlock?token={'0123abcd' * 4}", "303", 0, 0.1)
        terminal.flush()
        self.assertIn("GET /mount/__devserve__/unlock?token=… 303", screen.getvalue())
        self.assertNotIn("0123abc", screen.getvalue())

    def test_a_line_of_the_log_has_time_method_path_status_size_and_duration(self) -> None:
        text = self.shown(lambda t: t.access("GET", "/a?b", "200", 5, 0.0123))
        self.assertRegex(text, r"^\d\d:\d\d:\d\d GET /a\?b 200 5 12\.3ms\n$")

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_worker_that_its_server_has_forked_writes_its_own_lines_and_no_other(self) -> None:
        """The thread that writes is only in the parent, where it lingers after a line."""
        here, there = os.pipe()
        with open(here, encoding="utf-8") as reader, open(there, "w", encoding="utf-8") as writer:
            terminal = devserve.Terminal(writer)
            with unittest.mock.patch.object(devserve, "_LOG_INTERVAL", DEADLINE):
                terminal.say("parent")
                terminal._add("of the parent")
                child = os.fork()
                if not child:
                    try:
                        terminal.say("child")
                        terminal.flush()  # Python 3.13 does not know a child's only thread for the main one
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
            terminal.flush()
            writer.close()
            self.assertEqual(reader.read(), "parent\nchild\nof the parent\n")

    def test_an_exception_whose_text_hangs_is_printed_all_the_same(self) -> None:
        end = threading.Event()
        self.addCleanup(end.set)

        class Hangs(Exception):
            def __str__(self) -> str:
                end.wait()
                return ""

        def crash(terminal: Any) -> None:
            try:
                raise Hangs
            except Hangs as error:
                terminal.crash(error, "GET /")

        text = self.shown(crash)
        self.assertIn("raise Hangs", text)
        self.assertTrue(text.endswith("Hangs: (its text takes too long)\n"), text)

    def test_a_text_that_has_no_end_is_stopped(self) -> None:
        ended = threading.Event()

        class Endless(Exception):
            def __str__(self) -> str:
                try:
                    while not ended.wait(0.001):
                        pass
                    return ""
                finally:
                    ended.set()

        self.addCleanup(ended.set)
        text = self.shown(lambda terminal: terminal.crash(Endless(), "GET /"))
        self.assertTrue(text.endswith("Endless: (its text takes too long)\n"), text)
        if sys.implementation.name == "cpython":
            self.assertTrue(ended.wait(DEADLINE))

    def test_an_exception_whose_text_cannot_be_had_is_printed_all_the_same(self) -> None:
        class Odd(Exception):
            __cause__ = property(lambda self: 1 / 0)

        def crash(terminal: Any) -> None:
            try:
                raise Odd
            except Odd as error:
                terminal.crash(error, "GET /")

        strays: list[Any] = []
        with mock.patch.object(threading, "excepthook", strays.append):
            text = self.shown(crash)
        self.assertIn("raise Odd", text)
        self.assertRegex(text, r"Odd: \(its text cannot be had: \w+\)\n$")
        self.assertEqual(strays, [])

    def test_control_characters_of_a_message_are_escaped_and_its_lines_kept(self) -> None:
        text = self.shown(
            lambda terminal: terminal.crash(ValueError("\x1b]0;owned\x07\n\tcaf\u00c3\u00a9 \x9b2J\r日本"))
        )
        self.assertTrue(text.endswith("ValueError: \\x1b]0;owned\\x07\n\tcaf\u00c3\u00a9 \\x9b2J\\r日本\n"), text)

    def test_colors_only_on_a_terminal(self) -> None:
        with mock.patch.dict(os.environ, {"TERM": "xterm"}):
            os.environ.pop("NO_COLOR", None)
            for status in ("404", "500"):
                self.assertIn("\x1b[", self.shown(lambda t: t.access("GET", "/", status, 0, 0), Screen()))
                self.assertNotIn("\x1b", self.shown(lambda t: t.access("GET", "/", status, 0, 0)))
            self.assertIn("\x1b[", self.shown(lambda t: t.warn("careful"), Screen()))
            self.assertIn("\x1b[", self.shown(lambda t: t.error("wrong"), Screen()))

    def test_no_color_for_no_color_and_dumb_terminals(self) -> None:
        for variables in ({"NO_COLOR": "1", "TERM": "xterm"}, {"NO_COLOR": "", "TERM": "dumb"}):
            with self.subTest(variables), mock.patch.dict(os.environ, variables):
                for act in (
                    lambda t: t.warn("x"),
                    lambda t: t.access("GET", "/", "500", 0, 0),
                    lambda t: t.crash(ValueError("x"), "y"),
                ):
                    self.assertNotIn("\x1b", self.shown(act, Screen()))

    def test_an_empty_no_color_does_not_count(self) -> None:
        with mock.patch.dict(os.environ, {"NO_COLOR": "", "TERM": "xterm"}):
            self.assertIn("\x1b", self.shown(lambda t: t.warn("x"), Screen()))

    def test_control_characters_are_escaped_and_letters_are_not(self) -> None:
        table = {
            "/\x1b[31m": "/\\x1b[31m", "/a\nb": "/a\\nb", "/\r": "/\\r", "/\x9b": "/\\x9b", "/\x00": "/\\x00",
            "/\x7f": "/\\x7f", "/caf\u00c3\u00a9": "/café", "/\u00ff": "/\\xff", "/\u202e": "/\\u202e",
            "/\u2028": "/\\u2028", "/日本": "/日本",
        }  # fmt: skip
        for target, shown in table.items():
            with self.subTest(target):
                self.assertIn(f" {shown} ", self.shown(lambda t: t.access("GET", target, "200", 0, 0)))

    def test_each_line_is_written_whole(self) -> None:
        stream = Screen()
        terminal = devserve.Terminal(stream)

        def log(number: int) -> None:
            for _ in range(50):
                terminal.access("GET", f"/{number}/" + "x" * 500, "200", 0, 0)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        terminal.flush()
        writes = filter(None, stream.writes)  # `flush` may find nothing left
        self.assertTrue(all(write.endswith("\n") for write in writes))
        lines = stream.getvalue().splitlines()
        self.assertEqual(len(lines), 400)
        for line in lines:
            self.assertRegex(line, r"^\S*\d\d:\d\d:\d\d GET /\d/x{500} 200 0 0\.0ms\S*$")

    def test_the_log_does_not_wait_for_further_lines(self) -> None:
        stream = io.StringIO()
        terminal = devserve.Terminal(stream)
        for number in range(20):
            terminal.access("GET", f"/{number}", "200", 0, 0)
        eventually(lambda: "/19 " in stream.getvalue(), "the last line", 2.0)

    def test_lines_that_follow_one_another_are_written_by_one_thread(self) -> None:
        """Whoever starts a thread waits until it runs: under load that was more work than the requests."""
        terminal = devserve.Terminal(io.StringIO())
        with mock.patch("devserve.native_threading.Thread", wraps=threading.Thread) as started:
            for number in range(40):
                terminal.access("GET", f"/{number}", "200", 0, 0)
                terminal.flush()
        self.assertLess(started.call_count, 20)  # one, but on a busy machine some may come late

    def test_lines_keep_their_order(self) -> None:
        def act(terminal: Any) -> None:
            terminal.access("GET", "/1", "200", 0, 0)
            terminal.access("GET", "/2", "200", 0, 0)
            terminal.warn("three")
            terminal.access("GET", "/4", "200", 0, 0)

        text = self.shown(act)
        self.assertEqual(re.findall(r"/1|/2|three|/4", text), ["/1", "/2", "three", "/4"])

    def test_quiet_hides_the_log_alone(self) -> None:
        def act(terminal: Any) -> None:
            terminal.access("GET", "/", "200", 0, 0)
            terminal.warn("careful")
            terminal.crash(ValueError("broken"), "GET /")

        text = self.shown(act, quiet=True)
        self.assertNotIn("200", text)
        self.assertIn("careful", text)
        self.assertIn("ValueError: broken", text)

    def test_a_stream_that_is_closed_full_or_missing_stops_nothing(self) -> None:
        closed = io.StringIO()
        closed.close()

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError("no space")

        for stream in (closed, Full()):
            terminal = devserve.Terminal(stream)
            terminal.say("x")
            terminal.access("GET", "/", "200", 0, 0)
            terminal.crash(ValueError("x"))
        with mock.patch.object(sys, "stderr", None):
            devserve.Terminal().say("x")

    def test_letters_that_the_stream_cannot_show_are_escaped(self) -> None:
        raw = io.BytesIO()
        terminal = devserve.Terminal(io.TextIOWrapper(raw, encoding="ascii"))
        terminal.say("caf\u00e9 \u65e5")
        terminal.say("next")
        self.assertEqual(raw.getvalue().replace(b"\r\n", b"\n"), b"caf\\xe9 \\u65e5\nnext\n")

    def test_a_crash_shows_the_traceback_of_the_application_with_its_causes(self) -> None:
        def inner() -> None:
            raise KeyError("the cause")

        def outer() -> None:
            try:
                inner()
            except KeyError as error:
                raise ValueError("the effect") from error

        try:
            outer()
        except ValueError as error:
            caught = error
        text = self.shown(lambda t: t.crash(caught, "GET /x"))
        self.assertLess(text.index("GET /x"), text.index("KeyError: 'the cause'"))
        self.assertLess(text.index("KeyError: 'the cause'"), text.index("ValueError: the effect"))
        self.assertIn("direct cause", text)

    def test_what_a_crash_was_doing_cannot_drive_the_terminal(self) -> None:
        self.assertNotIn("\x1b[2J", self.shown(lambda t: t.crash(ValueError("x"), "GET /\x1b[2J")))

    def test_what_is_said_while_a_line_is_written_comes_after_it(self) -> None:
        """A destructor may run in the thread that writes."""

        class Talkative(io.StringIO):
            def write(self, text: str) -> int:
                if "first" in text:
                    terminal.say("second")
                return super().write(text)

        stream = Talkative()
        terminal = devserve.Terminal(stream)
        terminal.say("first")
        eventually(lambda: stream.getvalue() == "first\nsecond\n", "both lines in this order")

    @unittest.skipUnless(hasattr(signal, "setitimer"), "needs a signal from a timer")
    def test_a_signal_handler_speaks_while_the_main_thread_waits_for_a_line(self) -> None:
        spoken = threading.Event()

        class Slow(io.StringIO):
            def write(self, text: str) -> int:
                if "first" in text:
                    spoken.wait(DEADLINE)
                return super().write(text)

        stream = Slow()
        terminal = devserve.Terminal(stream)

        def handler(number: int, frame: Any) -> None:
            terminal.say("second")
            spoken.set()

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, handler))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        terminal.say("first")
        eventually(lambda: stream.getvalue() == "first\nsecond\n", "both lines")

    def test_a_lone_line_is_written_before_its_request_goes_on(self) -> None:
        stream = io.StringIO()
        devserve.Terminal(stream).access("GET", "/lone", "200", 0, 0)
        self.assertIn("/lone", stream.getvalue())

    def test_a_standard_error_that_another_program_has_made_not_wait_loses_nothing(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        with open(writing, "w", encoding="utf-8") as stream:
            os.set_blocking(writing, False)
            terminal = devserve.Terminal(stream)
            for number in range(100):
                terminal.say(f"{number:>9999}")
            came = bytearray()
            while len(came) < 1_000_000:
                came += os.read(reading, 1 << 16)
            terminal.flush()
        self.assertEqual([int(line) for line in came.split()], list(range(100)))

    def test_a_standard_error_that_takes_nothing_holds_nobody_and_costs_bounded_memory(self) -> None:
        free = threading.Event()
        self.addCleanup(free.set)

        class Stopped(io.StringIO):
            def write(self, text: str) -> int:
                free.wait()
                return super().write(text)

        stream = Stopped()
        terminal = devserve.Terminal(stream)
        returning(terminal.crash, ValueError("x"), "GET /")
        with mock.patch.object(devserve, "_UNWRITTEN_LIMIT", 10):
            returning(lambda: list(map(terminal.say, map(str, range(1000)))))
        free.set()
        eventually(lambda: "not written" in stream.getvalue(), "the count of what was dropped")
        self.assertRegex(stream.getvalue(), r"(?s)^GET /\nValueError: x\n0\n1\n.*\((9\d\d) lines were not written")

    def test_a_crash_page_comes_while_standard_error_is_full(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name, "app.py")
        path.write_text("def app(environ, start_response): raise ValueError('y' * 30_000)\n", encoding="utf-8")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, str(SCRIPT), "app", "--port", str(port), "--debug", "--no-reload"]
        process = subprocess.Popen(command, cwd=folder.name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)  # type: ignore[union-attr]
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def ask() -> bool:
            with contextlib.suppress(OSError):
                return fetch(port).status == 500
            return False

        eventually(ask, "a page")
        for _ in range(6):  # a pipe holds 64 KiB
            self.assertTrue(ask())

    def test_a_crash_with_a_link_counts_library_frames_and_ends_with_the_link(self) -> None:
        class Decoder(json.JSONDecoder):
            def raw_decode(self, s: str, idx: int = 0) -> Any:
                raise LookupError("here")

        error = failure_of(lambda: json.loads("{", cls=Decoder))
        text = self.shown(lambda t: t.crash(error, "GET /", "http://h/__devserve__/x"))
        self.assertIn("  … 2 frames of json\n", text)
        self.assertTrue(text.endswith("\n  http://h/__devserve__/x\n"), text)

    def test_places_are_links_to_the_editor_where_the_terminal_understands_them(self) -> None:
        def crash(terminal: Any) -> None:
            terminal.crash(failure_of(lambda: 1 / 0), link="http://h/x")

        seen = {"TERM": "xterm", "TERM_PROGRAM": "vscode", "NO_COLOR": ""}
        with mock.patch.dict(os.environ, seen):
            text = self.shown(crash, Screen(), editor="vscode")
            self.assertIn(f'File "\x1b]8;;vscode://file{urllib.parse.quote(__file__)}:', text)
            self.assertIn("\x1b]8;;http://h/x\x1b\\http://h/x\x1b]8;;\x1b\\", text)
            self.assertNotIn("vscode:", self.shown(crash, Screen()))
            self.assertNotIn("\x1b]8", self.shown(crash, editor="vscode"))
        with mock.patch.dict(os.environ, {"TERM": "xterm", "NO_COLOR": ""}):
            for name in devserve._HYPERLINK_SIGNS:
                os.environ.pop(name, None)
            self.assertNotIn("\x1b]8", self.shown(crash, Screen(), editor="vscode"))

    def test_an_editors_link_maps_whole_components_of_the_path(self) -> None:
        table = {
            ("VS Code", "/app/x y.py", ("/app=/home/me/p",)): "vscode://file/home/me/p/x%20y.py:3:5",
            ("vscode", "/application/x.py", ("/app=/home/me/p",)): "vscode://file/application/x.py:3:5",
            ("pycharm", "/b/é.py", ("/a=/x", "/b/=/y/")): "pycharm://open?file=/y/%C3%A9.py&line=3",
            ("my://{path}#{line}", "C:\\a\\b.py", ()): "my:///C:/a/b.py#3",
            ("nano", "/a", ()): "",
        }
        for (editor, path, path_map), link in table.items():
            self.assertEqual(devserve._editor_link(editor, path, 3, 5, path_map), link)


# =====================================================================================================================
# 4. App loading
# =====================================================================================================================

FINDING_WSGI = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"app"]
"""


class FindingFolder(Folder):
    """A folder that is the current one, with imports, environment and path put back after each test."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("DEVSERVE_", "FLASK_"))}
        for patch in (
            unittest.mock.patch.dict(os.environ, environ, clear=True),
            unittest.mock.patch.dict(sys.modules),
            unittest.mock.patch.object(sys, "path", list(sys.path)),
            unittest.mock.patch.object(sys, "dont_write_bytecode", True),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def load(self, spec: str = "", **options: Any) -> Any:
        importlib.invalidate_caches()
        return devserve.load_app(spec, **options)

    def body(self, spec: str = "") -> str:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        return b"".join(self.load(spec)(environ, lambda status, headers, exc_info=None: None)).decode()

    def refused(self, spec: str, *words: str) -> str:
        """Load `spec`, which must be refused in one line that has all of `words`; return the line."""
        with self.assertRaises(devserve.DevserveError) as caught:
            self.load(spec)
        line = str(caught.exception)
        self.assertNotIn("\n", line)
        for word in words:
            self.assertIn(word, line)
        return line

    def app_file(self, name: str, body: str = "app") -> pathlib.Path:
        return self.write(name, FINDING_WSGI.replace('b"app"', f'"{body}".encode()'))


class FindingByTarget(FindingFolder):
    def test_module_in_the_current_folder(self) -> None:
        self.app_file("hello.py")
        self.assertEqual(self.body("hello"), "app")
        self.assertEqual(self.body("hello:app"), "app")

    def test_module_in_a_package(self) -> None:
        self.write("site_a/__init__.py", "")
        self.app_file("site_a/web/__init__.py", "package")
        self.app_file("site_a/web/views.py", "views")
        self.assertEqual(self.body("site_a.web"), "package")
        self.assertEqual(self.body("site_a.web.views:app"), "views")

    def test_module_in_a_namespace_package(self) -> None:
        self.app_file("space/inner/hello.py")
        self.assertEqual(self.body("space.inner.hello"), "app")

    def test_files_relative_absolute_and_outside_the_current_folder(self) -> None:
        path = self.app_file("elsewhere/hello.py")
        os.mkdir("here")
        os.chdir("here")
        self.assertEqual(self.body(f"{path}:app"), "app")
        self.assertEqual(self.body("../elsewhere/hello.py"), "app")
        self.assertEqual(sys.path[:2], [str(path.parent), str(self.folder / "here")])

    def test_file_without_its_suffix(self) -> None:
        self.app_file("src/hello.py")
        self.assertEqual(self.body("src/hello:app"), "app")

    def test_file_names_with_dots_spaces_and_letters_of_any_language(self) -> None:
        self.write("beside.py", "word = 'beside'")
        for name in ("my.app.v2.py", "my app.py", "приложение.py", "größe 2.py", "dash-ed.py", "2nd.py", "site.wsgi"):
            with self.subTest(name):
                self.write(
                    name,
                    "from beside import word\nfrom sys import modules\nassert __name__ in modules\n"
                    "def app(environ, start_response):\n    return [word.encode()]",
                )
                self.assertEqual(self.body(f"{name}:app"), "beside")
                self.assertEqual(self.body(str(self.folder / name)), "beside")

    def test_file_in_a_package_is_imported_under_its_package_name(self) -> None:
        self.write("root/pack/__init__.py", "")
        self.write("root/pack/near.py", "word = 'near'")
        for name in ("views.py", "views.old.py"):
            self.write(
                f"root/pack/{name}",
                "from .near import word\n"
                "def app(environ, start_response):\n    return [f'{__name__} {word}'.encode()]",
            )
        self.assertEqual(self.body("root/pack/views.py"), "pack.views near")
        self.assertEqual(self.body("root/pack/views.old.py"), "pack.views_old near")
        self.assertEqual(sys.path[0], str(self.folder / "root"))

    def test_folders_packages_and_plain_ones(self) -> None:
        self.app_file("pack/__init__.py", "package")
        self.app_file("plain/wsgi.py", "plain")
        for spec, body in (
            ("pack", "package"),
            ("./pack", "package"),
            ("pack/", "package"),
            ("plain", "plain"),
            (str(self.folder / "plain") + ":app", "plain"),
        ):
            with self.subTest(spec):
                self.assertEqual(self.body(spec), body)

    def test_a_plain_folder_gives_way_to_an_installed_package(self) -> None:
        self.app_file("site-packages/shop/__init__.py", "installed")
        self.app_file("work/shop/app.py", "folder")
        os.chdir("work")
        self.assertEqual(self.body("shop"), "folder")
        sys.path.append(str(self.folder / "site-packages"))
        self.assertEqual(self.body("shop"), "installed")

    def test_file_named_like_a_module_of_the_standard_library(self) -> None:
        import code

        for name in ("code.py", "time.py", "re.py", "__main__.py"):
            with self.subTest(name):
                self.app_file(name, name)
                self.assertEqual(self.body(name), name)
                self.assertEqual(self.body(f"{name[:-3]}:app"), name)
        self.assertIs(sys.modules["code"], code)

    def test_windows_drive_letters_and_colons(self) -> None:
        for spec, expected in {
            r"C:\x\app.py:app": (r"C:\x\app.py", "app"),
            r"C:\x\app.py": (r"C:\x\app.py", ""),
            "C:/x/app.py:make('a:b')": ("C:/x/app.py", "make('a:b')"),
            "hello:make('a:b')": ("hello", "make('a:b')"),
            "hello": ("hello", ""),
            ":app": ("", "app"),
        }.items():
            with self.subTest(spec):
                self.assertEqual(devserve._split_spec(spec), expected)

    @unittest.skipIf(sys.platform == "win32", "no colons in Windows file names")
    def test_colon_in_an_existing_path(self) -> None:
        self.app_file("a:b/hello.py")
        self.assertEqual(self.body("a:b/hello.py:app"), "app")

    def test_without_a_spec_the_environment_then_the_default_files(self) -> None:
        self.app_file("wsgi.py", "wsgi")
        self.assertEqual(self.body(), "wsgi")
        self.app_file("app.py", "app")
        self.assertEqual(self.body(), "app")
        self.assertEqual(self.body(":app"), "app")
        self.app_file("other.py", "flask")
        os.environ["FLASK_APP"] = "other"
        self.assertEqual(self.body(), "flask")
        self.app_file("ours.py", "devserve")
        os.environ["DEVSERVE_APP"] = "ours:app"
        self.assertEqual(self.body(), "devserve")

    def test_django_project_is_found_by_its_manage_py(self) -> None:
        self.write("manage.py", "")
        self.app_file("mysite/wsgi.py", "django")
        self.write("mysite/__init__.py", "")
        self.assertEqual(self.body(), "django")
        self.assertEqual(self.body("manage.py"), "django")

    def test_default_files_in_the_order_of_their_likeliness(self) -> None:
        """Of those that are there the first that looks like an application; files before packages."""
        for what, files, body in (
            ("main.py comes last", ("main.py", "wsgi.py"), "wsgi.py"),
            ("main.py alone", ("main.py",), "main.py"),
            ("a package with an application", ("app/__init__.py",), "app/__init__.py"),
            ("a package with a file of a usual name", ("app/main.py",), "app/main.py"),
            ("a package called wsgi", ("wsgi/__init__.py",), "wsgi/__init__.py"),
            ("a file before a package", ("app/__init__.py", "main.py"), "main.py"),
            (
                "a Django project's before a package",
                ("app/__init__.py", "mysite/wsgi.py", "manage.py"),
                "mysite/wsgi.py",
            ),
            ("a Django project's asgi.py where it is all", ("mysite/asgi.py", "manage.py"), "mysite/asgi.py"),
        ):
            with self.subTest(what):
                folder = self.folder / what
                for name in files:
                    self.app_file(f"{what}/{name}", name)
                    if name == "manage.py":
                        self.write(f"{what}/{name}", "import django")
                    package = (folder / name).parent
                    if package != folder and not (package / "__init__.py").exists():
                        self.write(f"{what}/{package.name}/__init__.py", "")
                os.chdir(folder)
                with unittest.mock.patch.dict(sys.modules), unittest.mock.patch.object(sys, "path", list(sys.path)):
                    self.assertEqual(self.body(), body)

    def test_the_package_whose_settings_manage_py_names_comes_first(self) -> None:
        for name in ("admin", "site_"):
            self.app_file(f"{name}/wsgi.py", name)
            self.write(f"{name}/__init__.py", "")
        self.write("manage.py", "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site_.settings')")
        self.assertEqual(devserve.default_file(os.curdir), os.path.join("site_", "wsgi.py"))

    def test_a_django_project_with_websockets_is_served_by_its_asgi_py(self) -> None:
        self.write("manage.py", "import django")
        self.write("site_/wsgi.py", "application = get_wsgi_application()")
        self.write("site_/asgi.py", "application = get_asgi_application()")
        self.assertEqual(devserve.default_file(os.curdir), os.path.join("site_", "wsgi.py"))
        self.write("site_/asgi.py", "application = ProtocolTypeRouter({'websocket': URLRouter([])})")
        self.assertEqual(devserve.default_file(os.curdir), os.path.join("site_", "asgi.py"))

    def test_a_manage_py_without_django_is_a_module_as_any(self) -> None:
        self.app_file("manage.py", "flask")
        for spec in ("manage.py", "manage", "manage:app"):
            with self.subTest(spec), unittest.mock.patch.dict(sys.modules):
                self.assertEqual(self.body(spec), "flask")

    def test_default_file_that_holds_no_application_gives_way(self) -> None:
        self.write("app.py", "colours = ['green']\n")
        self.assertIn("'app.py'", self.refused(""))  # it is all there is
        self.app_file("wsgi.py", "wsgi")
        self.assertEqual(self.body(), "wsgi")

    def test_packages_with_a_factory_are_found(self) -> None:
        self.write("app/__init__.py", "from .factory import create_app\n")
        self.write(
            "app/factory.py", "def create_app():\n    return lambda environ, start_response: [__name__.encode()]\n"
        )
        self.assertEqual(self.body(), "app.factory")

    def test_wsgi_file_beside_the_module_that_it_imports(self) -> None:
        """As for mod_wsgi."""
        self.app_file("hello.py", "hello")
        self.write("hello.wsgi", "from hello import app as application")
        self.assertEqual(self.body("hello.wsgi"), "hello")
        self.assertEqual(self.body("hello.wsgi:application"), "hello")

    def test_spaces_around_any_part(self) -> None:
        self.write("hello.py", "def create_app(*words):\n    return lambda environ, start_response: [b'made']\n")
        for spec in ("hello: create_app () ", " hello : create_app ( 'a b' , 1 ) ", "hello :create_app", " hello "):
            with self.subTest(spec):
                self.assertEqual(self.body(spec), "made")

    def test_current_folder_comes_first_and_once_on_the_path(self) -> None:
        self.app_file("hello.py")
        sys.path[:] = ["", "/somewhere", str(self.folder), *sys.path]
        self.load("hello")
        self.load("hello.py")
        self.assertEqual(sys.path[:2], [str(self.folder), "/somewhere"])
        self.assertEqual(sys.path.count(str(self.folder)), 1)
        self.assertNotIn("", sys.path)


class FindingByName(FindingFolder):
    def test_order_of_discovery(self) -> None:
        lines = [
            "def create_app():\n    return lambda environ, start_response: [b'create_app']\n",
            "def application(environ, start_response):\n    return [b'application']\n",
            "def app(environ, start_response):\n    return [b'app']\n",
        ]
        for count, name in enumerate(("create_app", "application", "app"), 1):
            with self.subTest(name):
                self.write(
                    f"order{count}.py", "def make_app(): raise Exception('comes last')\n" + "".join(lines[:count])
                )
                self.assertEqual(self.body(f"order{count}"), name)

    def test_dotted_names_and_factories_with_literals(self) -> None:
        self.write(
            "hello.py",
            """
            class holder:
                def create(*args, **kwargs):
                    return lambda environ, start_response: [repr((args, kwargs)).encode()]
                class inner:
                    def app(environ, start_response):
                        return [b"inner"]
            create = holder.create
        """,
        )
        self.assertEqual(self.body("hello:holder.inner.app"), "inner")
        self.assertEqual(self.body("hello:create()"), "((), {})")
        self.assertEqual(
            self.body("""hello:holder.create("a:b", -1, [None], key={'x': (1.5,)}, on=True)"""),
            "(('a:b', -1, [None]), {'key': {'x': (1.5,)}, 'on': True})",
        )

    def test_factory_named_without_parentheses(self) -> None:
        self.write(
            "hello.py",
            """
            def create_app(config=None, *more): return lambda environ, start_response: [b"made"]
            def build(config=None, testing=False): return create_app()
            def app(): return create_app()
        """,
        )
        for spec in ("hello", "hello:create_app", "hello:build", "hello:app"):
            with self.subTest(spec):
                self.assertEqual(self.body(spec), "made")

    def test_factory_behind_decorators(self) -> None:
        self.write(
            "hello.py",
            """
            import functools
            def decorated(function):
                @functools.wraps(function)
                def wrapper(*args, **kwargs): return function(*args, **kwargs)
                return wrapper
            def site(environ, start_response): return [b"made"]
            def make(config): return site
            cached = functools.lru_cache(maxsize=None)(lambda: site)
            twice = decorated(decorated(lambda config=None: site))
            class Maker:
                def __call__(self): return site
            maker = Maker()
            app = decorated(site)
            @decorated
            def view(request): return [b"made"]
            request_application = functools.wraps(view)(lambda *args: view(args))
            class Proxy:  # as Werkzeug's LocalProxy, whose `__wrapped__` is no factory
                __wrapped__ = staticmethod(lambda: site)
                def __call__(self, *args): return site(*args)
            proxy = Proxy()
        """,
        )
        for name in ("cached", "twice", "maker", "app", "request_application", "proxy"):
            with self.subTest(name):
                self.assertEqual(self.body(f"hello:{name}"), "made")
        for line in ("lru_cache(maxsize=None)(lambda: site)", "partial(make, 'dev')"):
            with self.subTest(line):
                self.write(
                    "late.py", f"import functools\nfrom hello import make, site\ncreate_app = functools.{line}\n"
                )
                sys.modules.pop("late", None)
                for spec in ("late", "late:create_app"):
                    self.assertEqual(self.body(spec), "made")

    def test_call_that_is_a_static_method(self) -> None:
        self.write(
            "hello.py",
            """
            class Site:
                @staticmethod
                def __call__(environ, start_response): return [b"static"]
            class Other:
                @classmethod
                def __call__(cls, environ, start_response): return [b"class"]
            app, other = Site(), Other()
        """,
        )
        self.assertEqual(self.body("hello"), "static")
        self.assertEqual(self.body("hello:other"), "class")

    def test_application_class_of_pep_3333(self) -> None:
        self.write(
            "hello.py",
            """
            class app:
                def __init__(self, environ, start_response): pass
                def __iter__(self): yield b"iterated"
        """,
        )
        self.assertEqual(self.body("hello"), "iterated")

    def test_application_whose_signature_says_nothing(self) -> None:
        self.write(
            "hello.py",
            """
            import functools
            def three(word, environ, start_response): return [word]
            app = functools.partial(three, b"partial")
            def decorated(*args): return three(b"decorated", *args)
            class Site:
                def __call__(self, environ, start_response): return [b"object"]
                def method(self, environ, start_response): return [b"method"]
            site = Site()
        """,
        )
        for spec, body in (
            ("hello", "partial"),
            ("hello:decorated", "decorated"),
            ("hello:site", "object"),
            ("hello:site.method", "method"),
        ):
            with self.subTest(spec):
                self.assertEqual(self.body(spec), body)


class FindingMistakes(FindingFolder):
    TARGETS: ClassVar[
        dict[str, str]
    ] = {  # what stands before the colon, and a word of the answer; "" where it is right
        "hello": "",
        "hello.py": "",
        "./hello": "",
        "pack.web": "",
        "helo": "did you mean 'hello'?",
        "pack.wbe": "did you mean 'pack.web'?",
        "nosuchthing": "did you mean 'hello'?",
        "pack.nosuchthing": "did you mean 'pack.web'?",
        "shop.site": f"did you mean '{os.path.join('src', 'shop', 'site')}'?",
        "shop/site.py": f"did you mean '{os.path.join('src', 'shop', 'site')}'?",
        "pack.web.py": f"did you mean '{os.path.join('pack', 'web')}'?",
        "helo.py": "did you mean 'hello.py'?",
        "nosuch/thing.py": "did you mean 'hello'?",
        "./empty": "say what to serve",
        "settings.ini": "paste.deploy",
        "empty/notes.txt": "notes.txt is no Python; name the module or the file",
        "./settings": "did you mean './settings.ini'?",
        "..": "no app.py, wsgi.py or main.py",
        "empty": "say what to serve",
        "hello/app": "did you mean 'hello:app'?",
        "HELLO": "did you mean 'hello'?",
        "hello.app": "did you mean 'hello:app'?",
        "hello.py.app": "did you mean 'hello:app'?",
        "helo.app": "did you mean 'hello'?",
        "notes.ipynb": "jupyter nbconvert --to python notes.ipynb",
        "site.zip": "unpack it",
        "table.csv": "did you mean 'hello'?",
        "Procfile": "Procfile is no Python; did you mean 'hello'?",
        ".env": ".env is no Python; did you mean 'hello'?",
        "uwsgi.ini": "uwsgi.ini is no Python; did you mean 'hello'?",
        "old.py.txt": "rename it to old.py",
    }
    NAMES: ClassVar[dict[str, str]] = {  # what stands behind it
        "app": "",
        "create_app": "",
        "create_app('x', n=1)": "",
        "holder.app": "",
        "": "",
        "ap": ":app'?",
        "holder.ap": ":holder.app'?",
        "nosuchthing": "' has app, main({}), create_app, make_app",
        "number": "name an application",
        "os": "name the object in it: 'os:app'",
        "Site": "call it: Site()",
        "view": "give its arguments",
        "task": "(scope, receive, send)",
        "make_app": 'make_app("text", key=1)',
        "make_app(1, 2)": 'make_app("text", key=1)',
        "create_app(os)": "arguments must be literals",
        "create_app(": "arguments must be literals",
        "a b": "write NAME",
        "number()": "name an application",
        "app.zzz": "leave .zzz out",
        "app()": "leave the arguments out",
        "APP": ":app'?",
        "app.wsgi": "leave .wsgi out",
        "build": "give its arguments: (config=...)",
        "main": "give its arguments: ({})",
        "make_task()": "a factory is a plain function",
        "site()": "leave the arguments out",
        "holder.old()": "leave the arguments out",
        "holder.preset('x')": "",
        "os.path": "is a module",
    }

    def test_each_mistake_has_its_remedy_and_the_first_one_is_told(self) -> None:
        source = """
            import os
            class Site:
                def __call__(self, environ, start_response): pass
            class holder:
                def app(environ, start_response): return [b"app"]
                def old(_, start_response): return [b"old"]
                def preset(env="dev", start_response=None): return app
            app, number = holder.app, 42
            def view(request): pass
            async def task(): pass
            async def make_task(): return app
            async def site(scope, receive, send): pass
            def build(config): return app
            def main(global_config, **settings): return app
            def create_app(*words, **more): return app
            def make_app(config): return app
        """
        self.write("hello.py", source)
        self.write("pack/__init__.py", "")
        self.write("pack/web.py", source)
        self.write("empty/notes.txt", "")
        self.write("settings.ini", "[app:main]\nuse = egg:hello\n")
        self.write("src/shop/site.py", source)
        self.write("uwsgi.ini", "[uwsgi]\nmodule = hello:app\n")
        for name in ("notes.ipynb", "site.zip", "table.csv", "Procfile", ".env", "old.py.txt"):
            self.write(name, "")
        for (target, of_target), (name, of_name) in itertools.product(self.TARGETS.items(), self.NAMES.items()):
            spec = f"{target}:{name}" if name else target
            with self.subTest(spec):
                if of_target or of_name:
                    line = self.refused(spec, of_target or of_name)
                    self.assertRegex(line, r"[^;]; [^;]+$", "what is wrong; what to do")
                else:
                    self.assertEqual(self.body(spec), "app")

    @needs("hypothesis")
    def test_any_text_is_an_application_or_a_mistake(self) -> None:
        from hypothesis import example, given, settings
        from hypothesis import strategies as st

        self.app_file("hello.py")
        piece = st.sampled_from(
            ["hello", "app", ":", ".", "(", ")", "'", '"', "/", "\\", " ", ",", "=", "*", "[", "1", "é"]
        )
        odd = st.characters(exclude_characters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")

        @settings(max_examples=300, deadline=None)
        @given(st.lists(piece | odd, min_size=1, max_size=12).map("".join))
        @example("hello:app\0")
        @example("hel\0lo")
        @example("\0/hello")
        @example("hello:" + "(" * 5000)
        @example("hello:app(" + "[" * 5000)
        @example("hello:app(" + "-" * 100_000 + "1)")
        def load(spec: str) -> None:
            try:
                self.load(spec)
            except devserve.DevserveError as error:
                self.assertNotIn("\n", str(error))

        load()

    @needs("hypothesis")
    def test_module_and_name_come_apart_as_they_were_put_together(self) -> None:
        from hypothesis import given, settings
        from hypothesis import strategies as st

        word = st.from_regex(r"[a-z_éл][a-z_0-9é]{0,5}", fullmatch=True).filter(
            lambda text: not keyword.iskeyword(text)
        )
        dotted = st.lists(word, min_size=1, max_size=3).map(".".join)
        files = st.tuples(st.sampled_from(["", "./", "../", "C:\\", "C:/", "/"]), dotted).map("".join)
        space = st.sampled_from(["", " ", "  "])
        simple = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
        literal = st.recursive(simple, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
        arguments = st.none() | st.tuples(st.lists(literal, max_size=3), st.dictionaries(word, literal, max_size=3))

        @settings(max_examples=200, deadline=None)
        @given(dotted | files, dotted, arguments, space)
        def come_apart(target: str, name: str, given_arguments: Any, gap: str) -> None:
            call = ""
            if given_arguments is not None:
                positional, named = given_arguments
                listed = [*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())]
                call = f"{gap}({gap}{', '.join(listed)}{gap})"
            self.assertEqual(devserve._split_spec(f"{gap}{target}{gap}:{gap}{name}{call}{gap}")[0], target)
            parts, read = devserve._parse_name(f"{gap}{name}{call}{gap}")
            self.assertEqual(".".join(parts), name)
            self.assertEqual(read, None if given_arguments is None else (positional, named))

        come_apart()

    def test_no_such_module_with_the_nearest(self) -> None:
        self.app_file("hello.py")
        self.app_file("pack/sub.py")
        self.write("pack/__init__.py", "")
        self.refused("helo:app", "no module 'helo'", "did you mean 'hello'?")
        self.refused("pakc.sub", "no module 'pakc.sub'", "did you mean 'pack.sub'?")
        self.app_file("pack/plain/deep.py")
        self.refused("pack.pain.deep", "no module 'pack.pain.deep'", "did you mean 'pack.plain.deep'?")
        self.refused("pack.subb", "no module 'pack.subb'", "did you mean 'pack.sub'?")
        for dotted in ("hello.app", "hello.wsgi", "hello.txt"):
            self.refused(dotted, f"no module '{dotted}'", "did you mean 'hello:app'?")
        self.refused("quite_different", "no module 'quite_different'", "did you mean 'hello'?")
        self.write("hello.py", "")
        self.write("other.py", "")
        self.write("pack/sub.py", "")
        self.refused("pack.quite_different", "name the object: 'pack:NAME'")
        self.refused("quite_different", "start devserve in the folder that holds it")
        for odd in ("..hello", ".hello", "hello.", "hello..x", "."):
            self.refused(odd)

    def test_a_package_s_factory_comes_before_a_module_whose_name_is_similar(self) -> None:
        self.write("shop/__init__.py", "from .make import create_site\ndef create_app(): pass")
        for module in ("api", "create", "views"):
            self.write(f"shop/{module}.py", "")
        self.write("shop/make.py", "def create_site(): pass")
        self.refused("shop:app", "did you mean 'shop:create_app'?")
        self.refused("shop.create_site", "did you mean 'shop:create_site'?")
        self.refused("shop.veiws", "did you mean 'shop.views'?")

    def test_what_the_folder_above_has_is_named(self) -> None:
        self.app_file("hello.py")
        self.write("manage.py", "from django.core.management import execute_from_command_line")
        self.write("shop/asgi.py", "")
        os.chdir("shop")
        for spec, path in {"hello": "hello", "hello.py": "hello", "manage.py": "manage"}.items():
            self.refused(spec, f"did you mean '{os.path.join(os.pardir, path)}'?")

    def test_where_a_module_has_no_application_what_the_folder_has_is_named(self) -> None:
        self.write("shop/__init__.py", "def create_app(): pass")
        self.write("shop/views.py", "view = 5")
        self.write("bare/__init__.py", "")
        for spec in ("shop.views", "shop/views.py", "bare", "bare:app", "json"):
            self.refused(spec, "name the object: '", "or did you mean 'shop'?")
        self.write("bare/main.py", "app = make()")
        self.refused("bare:app", "no 'app' in 'bare'; did you mean 'bare.main'?")
        self.write("guarded.py", "if __name__ == '__main__':\n    app = make()")
        self.refused("guarded:app", "no 'app' in 'guarded', which makes it under if __name__ == '__main__' only")
        os.chdir("shop")
        self.refused("", f"did you mean {os.getcwd()!r}?")

    def test_no_such_file_with_the_nearest(self) -> None:
        self.app_file("src/hello.py")
        self.refused("src/helo.py:app", "no file 'src/helo.py'", "hello.py'?")
        self.refused("nowhere/zzz.py", "no file 'nowhere/zzz.py'", "check its spelling, or start devserve in")
        self.refused(r"C:\x\app.py:app", "no file", "app.py")

    def test_nothing_to_serve_in_the_folder(self) -> None:
        self.refused("", "no app.py, wsgi.py or main.py", str(self.folder))
        for name in ("hello.py", "test_hello.py", "conftest.py", "notes.txt"):
            self.write(name, "")
        self.refused("", "did you mean 'hello'?")
        self.write("flaskr/__init__.py", "def create_app(): pass")
        self.refused("", "did you mean 'flaskr'?")  # hello.py does not look like an application
        self.write("hello.py", "app = make()")
        self.refused("", "say what to serve, one of: hello, flaskr")
        os.mkdir("empty")
        self.refused("./empty", "no app.py, wsgi.py or main.py", "empty")
        self.write("empty/manage.py", "")
        self.refused("./empty", "DJANGO_SETTINGS_MODULE")

    def test_what_a_folder_below_has_to_serve_is_named(self) -> None:
        self.write("util.py", "")
        for name in ("development.ini", "production.ini"):
            self.write(name, "[app:main]")
        self.refused("", "development.ini is no Python; write a file app.py")
        self.write("src/manage.py", "from django.core.management import execute_from_command_line")
        self.refused("", f"did you mean '{os.path.join('src', 'manage')}'?")
        self.write("backend/main.py", "app = make()")
        self.refused("", f"one of: {os.path.join('backend', 'main')}, {os.path.join('src', 'manage')}")

    def test_what_a_src_layout_has_to_serve_is_named(self) -> None:
        self.app_file("src/shop/app.py")
        shop = os.path.join("src", "shop", "app")
        self.refused("", f"did you mean '{shop}'?")
        self.refused("nosuchthing", f"did you mean '{shop}'?")
        self.assertEqual(self.body(shop), "app")
        self.write("src/shop/app.py", "")
        self.write("src/shop/__init__.py", "def create_app(): pass")
        for spec in ("", "shop"):
            self.refused(spec, f"did you mean '{os.path.join('src', 'shop')}'?")

    def test_no_such_name_with_the_nearest(self) -> None:
        self.app_file("hello.py")
        self.refused("hello:ap", "no 'ap' in 'hello'", "did you mean 'hello:app'?")
        self.refused("hello:wsgi_thing", "no 'wsgi_thing' in 'hello'", "did you mean 'hello:app'?")
        self.refused("hello:app.zzz", "no 'zzz' in 'hello:app'")
        self.refused("hello:no()", "no 'no' in 'hello'")
        self.write("bare.py", "class Slots: __slots__ = ('z',)\nnumber, table, slots = 5, {}, Slots()")
        for holder in ("number", "table", "slots"):
            self.refused(f"bare:{holder}.application", f"no 'application' in 'bare:{holder}'", "check the spelling")

    def test_no_such_name_where_code_of_the_application_answers_for_names(self) -> None:
        self.write("hello.py", "def __getattr__(name): raise AttributeError(name)")
        self.refused("hello:site", "no 'site' in 'hello'")

    def test_what_is_no_application(self) -> None:
        self.write(
            "hello.py",
            """
            import os
            class Site:
                def __call__(self, environ, start_response): pass
            def view(request): pass
            number = 42
            nothing = None
            def build(): return 42
            def create_app(): build()
        """,
        )
        self.refused("hello:create_app", "what 'hello:create_app()' returned", "is a `return` missing?")
        self.refused("hello:os", "'hello:os' is a module", "'os:app'")
        self.refused("hello:Site", "'hello:Site' is a class", "Site()")
        self.refused("hello:number", "'hello:number' is not callable", "int")
        self.refused("hello:nothing", "'hello:nothing' is not callable", "NoneType")
        self.refused("hello:view", "'hello:view' does not take (environ, start_response)")
        self.refused("hello:build", "what 'hello:build()' returned is not callable")
        self.refused("hello:number()", "'hello:number' is not callable")
        self.write("nothing.py", "number = 42")
        self.refused("nothing", "no application in 'nothing'", "nothing:NAME")
        self.write("lazy.py", "class Lazy:\n    @property\n    def __class__(self): 1 / 0\nsettings = Lazy()")
        self.refused("lazy", "no application in 'lazy'")
        self.write("simple.py", "def demo(environ, start_response): pass")
        self.refused("simple", "did you mean 'simple:demo'?")
        self.write(
            "made.py", "def remap(): pass\ndef add_to_app(app): pass\nasync def aget_app(): pass\ndef get_app(): pass"
        )
        self.refused("made", "did you mean 'made:get_app'?")
        self.write("project/__init__.py", "")
        self.app_file("project/wsgi.py")
        self.write("project/inner/__init__.py", "")
        self.app_file("project/inner/wsgi.py")
        for spec in ("project", "project:wsgi", "project:wsgi.app", "project.inner"):
            self.refused(spec, f"did you mean '{spec.partition(':')[0]}.wsgi'?")
        self.assertEqual(self.body("project.inner.wsgi"), "app")
        self.refused("./project", f"did you mean '{os.path.join('./project', 'wsgi')}'?")
        self.write("settings.py", "WSGI_APPLICATION = 'mysite.wsgi.application'")
        self.refused("settings", "the settings of Django; did you mean 'mysite.wsgi:application'?")

    def test_wrong_arguments_are_told_from_a_type_error_inside(self) -> None:
        self.write(
            "hello.py",
            """
            def create_app(config): return config + 1
            class Site:
                def __init__(self, name): len(name)
        """,
        )
        self.refused("hello", "wrong arguments for 'hello:create_app'", "config", 'create_app("text", key=1)')
        self.refused("hello:create_app(1, 2)", "wrong arguments for 'hello:create_app'", "takes 1")
        self.refused("hello:Site()", "wrong arguments for 'hello:Site'", "name")
        for spec in ("hello:create_app('text')", "hello:Site(1)"):
            with self.subTest(spec), self.assertRaises(TypeError):
                self.load(spec)

    def test_arguments_that_are_no_literals(self) -> None:
        self.write("hello.py", "def make(*args, **kwargs): raise AssertionError('called')")
        for call in (
            "make(os)",
            "make(x())",
            "make(1",
            "make(*[1])",
            "make(**{'a': 1})",
            "make({[]: 1})",
            "make()()",
            "make().x()",
            "make(1)+1",
        ):
            with self.subTest(call):
                self.refused(f"hello:{call}", "cannot read", call)
        for name in ("a b", "x[0]", "1", "a..b", "app.", "lambda: 1"):
            with self.subTest(name):
                self.refused(f"hello:{name}", "names no application", name)

    ASGI = """
        import functools
        async def function(scope, receive, send): pass
        async def generator(scope, receive, send): yield
        def plain(scope, receive, send): return function(scope, receive, send)
        def plain_with_more(scope, receive, send, *more): pass
        class Site:
            async def __call__(self, scope, receive, send): pass
            async def method(self, scope, receive, send): pass
        class Child(Site): pass
        class Endpoint:
            def __init__(self, scope, receive, send): pass
            def __await__(self): yield
        def double(scope): return method
        site, child = Site(), Child()
        method = site.method
        def decorated(inner):
            @functools.wraps(inner)
            def wrapper(*args): return inner(*args)
            return wrapper
        wrapped = decorated(function)
        bound = functools.partial(function)
        def with_word(word, scope, receive, send): pass
        bound_word = functools.partial(with_word, "word")
        async def other_names(s, r, w): pass
        async def with_default(scope, receive, send, more=None): pass
        def build(): return site
        other_word = lambda s, r, d: function(s, r, d)
    """

    def test_asynchronous_applications(self) -> None:
        self.write("hello.py", self.ASGI)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        module = importlib.import_module("hello")
        also = "Endpoint wrapped bound bound_word other_names with_default"
        for name in f"function generator plain plain_with_more site child method {also}".split():
            with self.subTest(name):
                self.assertTrue(devserve.is_asgi(getattr(module, name)))
                self.assertIs(self.load(f"hello:{name}"), getattr(sys.modules["hello"], name))
        for name in ("build", "build()"):
            with self.subTest(name):
                self.assertTrue(devserve.is_asgi(self.load(f"hello:{name}")))
        for name in ("Site", "decorated", "build", "with_word", "functools", "double"):
            with self.subTest(name):
                self.assertFalse(devserve.is_asgi(getattr(module, name)))
        self.refused("hello:other_word", "(scope, receive, send) if it is an ASGI application")
        self.refused("hello:double", "'hello:double' is an ASGI 2 application", "guarantee_single_callable")
        self.write("only.py", "from hello import Site\nasync def helper(scope, receive, send): pass\napi = Site()")
        self.assertEqual(type(self.load("only")).__name__, "Site")

    def test_coroutine_functions_that_are_no_applications(self) -> None:
        self.write(
            "hello.py",
            "async def create_app(): pass\nasync def view(request): pass\nasync def nothing(): pass\n"
            "async def four(scope, receive, send, word): pass",
        )
        self.refused("hello", "'hello:create_app' is a coroutine function", "a factory")
        self.refused("hello:view", "'hello:view' is a coroutine function", "(scope, receive, send)")
        for name in ("nothing", "four"):
            self.refused(f"hello:{name}", f"'hello:{name}' is a coroutine function")

    def test_application_of_a_framework_with_a_server_of_its_own(self) -> None:
        self.write(
            "hello.py",
            """
            class Application:
                __module__ = "aiohttp.web_app"
                def __call__(self): return self  # as aiohttp's, for gunicorn
            app = Application()
            """,
        )
        self.refused("hello", "'hello:app' is neither a WSGI nor an ASGI application", "aiohttp.web.run_app(app)")
        self.write("script.py", "if False:\n    import streamlit as st\n")
        self.refused("script", "no application in 'script'; Streamlit serves it: streamlit run script.py")
        self.write("counter.py", "if False:\n    from twisted.internet import reactor\n")
        self.refused("counter", "no application in 'counter'; Twisted serves it: python counter.py")
        self.write("files.py", "from http.server import HTTPServer\nif __name__ == '__main__':\n    HTTPServer\n")
        self.refused("files", "no application in 'files'; http.server serves it: python files.py")
        self.write("guarded.py", "from http import HTTPStatus\nif __name__ == '__main__':\n    app = HTTPStatus\n")
        self.refused("guarded", "no application in 'guarded', which makes it under if __name__ == '__main__' only")

    def test_what_a_module_makes_itself_is_named_before_what_it_imports(self) -> None:
        imports = "from wsgiref.simple_server import demo_app, make_server\nfrom http.server import HTTPServer\n"
        for source, spelled in {
            "": "demo_app",  # it may well be what they serve
            "def site(environ, start_response): pass": "site",
            "class Site:\n    def __call__(self, environ, start_response): pass\nsite = Site()": "site",
            "def main(global_config, **settings): pass": "main({})",
        }.items():
            self.write("hello.py", imports + source)
            for spec in ("hello", "hello:server"):
                sys.modules.pop("hello", None)
                with self.subTest(source, spec=spec):
                    self.refused(spec, f"did you mean 'hello:{spelled}'?")

    def test_a_module_that_is_called_like_an_application_is_not_named(self) -> None:
        self.write("hello.py", "import os as app\n")
        self.refused("hello", "name the object: 'hello:NAME'")

    def test_application_in_an_object_that_is_none(self) -> None:
        self.write(
            "hello.py",
            """
            class Api:
                def wsgi_app(self, environ, start_response): return [b"inside"]
            app = Api()
            """,
        )
        self.refused("hello", "'hello:app' is not callable, its type is Api; add .wsgi_app")
        self.assertEqual(self.body("hello:app.wsgi_app"), "inside")

    def test_command_line_that_is_called_like_an_application(self) -> None:
        self.write(
            "hello.py",
            """
            class Command:
                __module__ = "click.core"
                def __call__(self, *args, **kwargs): pass
            class Group(Command): pass
            app = Group()
            """,
        )
        self.refused("hello", "'hello:app' is a command line, not an application")

    def test_application_that_a_framework_keeps_inside_of_its_object(self) -> None:
        """As Dash keeps a Flask application, which is no application itself."""
        self.write(
            "hello.py",
            """
            class Dash:
                __module__ = "dash.dash"
                def server(self, environ, start_response): return [b"served"]
                def run(self, host=None): raise AssertionError
                async def run_task(self): raise AssertionError
            app = Dash()
            """,
        )
        for name in ("run", "run_task", "run()"):
            self.refused(f"hello:app.{name}", f"'hello:app.{name}' starts a server of its own; leave .run")
        self.assertEqual(self.body("hello"), "served")

    def test_middleware_of_the_other_interface(self) -> None:
        self.write(
            "hello.py",
            """
            async def api(scope, receive, send): pass
            class Prefix:
                def __init__(self, app): self.app = app
                def __call__(self, environ, start_response): return [b"adapted"]
            class ASGIMiddleware(Prefix): pass
            wrong, right = Prefix(api), ASGIMiddleware(api)
            class Dispatcher(Prefix):
                def __init__(self, app, mounts): self.app, self.mounts = app, mounts
            also_wrong = Dispatcher(right, {"/api": api})
            """,
        )
        self.refused("hello:also_wrong", "'hello:also_wrong' is WSGI middleware, but the application in it is ASGI")
        self.refused(
            "hello:wrong", "'hello:wrong' is WSGI middleware, but the application in it is ASGI", "ASGI middleware"
        )
        self.assertEqual(self.body("hello:right"), "adapted")

    @needs("flask")
    def test_asgi_middleware_around_flask(self) -> None:
        self.write(
            "hello.py",
            """
            import flask
            class Site:
                def __init__(self, app): self.app = app
                async def __call__(self, scope, receive, send): pass
            class WsgiToAsgi(Site): pass
            wrong, right = Site(flask.Flask("site")), WsgiToAsgi(flask.Flask("site"))
            adapted = Site(right.app)
            adapted.middleware = right
            """,
        )
        self.refused("hello:wrong", "'hello:wrong' is ASGI middleware, but the application in it is WSGI")
        for name in ("right", "adapted"):
            self.assertTrue(devserve.is_asgi(self.load(f"hello:{name}")))

    def test_remedy_for_a_package_that_is_missing_beside_a_virtual_environment(self) -> None:
        missing, other = ModuleNotFoundError("No module named 'x'", name="x"), ImportError("x")
        self.assertEqual(devserve.import_remedy(missing), "")
        self.write("venv/pyvenv.cfg", "")
        self.assertRegex(devserve.import_remedy(missing), r"start devserve by venv[\\/]")
        self.assertEqual(devserve.import_remedy(other), "")
        self.write("source/app.py", "")
        os.chdir(self.folder / "source")
        with unittest.mock.patch.object(sys, "prefix", sys.base_prefix):
            self.assertRegex(devserve.import_remedy(missing), r"start devserve by \.\.[\\/]venv[\\/]")
        with unittest.mock.patch.object(sys, "prefix", str(self.folder / "venv")):
            self.assertEqual(devserve.import_remedy(missing), "")

    def test_remedy_for_a_package_that_is_missing_beside_the_lock_file_of_a_tool_with_its_own_environment(
        self,
    ) -> None:
        missing = ModuleNotFoundError("No module named 'x'", name="x")
        self.write("poetry.lock", "")
        for prefix, remedy in ((sys.base_prefix, "start devserve by poetry run python"), ("/elsewhere", "")):
            with self.subTest(prefix), unittest.mock.patch.object(sys, "prefix", prefix):
                self.assertRegex(devserve.import_remedy(missing), f"{remedy}$")

    @unittest.skipIf(
        sys.implementation.name == "pypy" and sys.version_info >= (3, 10),
        "there, to import from a module that is being imported gives no error, or one without its path",
    )
    def test_remedy_for_a_file_that_hides_the_library_that_it_imports(self) -> None:
        for name, hides in {"csv": True, "nosuchlibrary": False}.items():
            self.write(f"{name}.py", f"from {name} import Anything")
            sys.modules.pop(name, None)
            with self.subTest(name), self.assertRaises(ImportError) as caught:
                self.load(name)
            self.assertEqual(
                devserve.import_remedy(caught.exception),
                f"your {name}.py hides the library {name}, since it is found first: give it another name"
                if hides
                else "",
            )

    def test_a_module_of_the_package_in_whose_folder_one_works_hides_no_library(self) -> None:
        for name, text in {"__init__": "", "models": "", "views": "from shop.models import Item"}.items():
            self.write(f"shop/{name}.py", text)
        os.chdir("shop")
        with self.assertRaises(ImportError) as caught:
            self.load("views")
        self.assertEqual(devserve.import_remedy(caught.exception), "")

    def test_remedy_for_a_file_that_hides_a_package_of_which_a_library_imports_a_module(self) -> None:
        self.write("wsgiref.py", "")
        for name in [name for name in sys.modules if name.partition(".")[0] == "wsgiref"]:
            self.addCleanup(sys.modules.__setitem__, name, sys.modules.pop(name))
        self.write("hello.py", "import wsgiref.util")
        with self.assertRaises(ImportError) as caught:
            self.load("hello")
        self.assertIn("your wsgiref.py hides the library wsgiref", devserve.import_remedy(caught.exception))

    def test_remedy_for_a_module_that_lies_where_no_import_looks(self) -> None:
        missing = ModuleNotFoundError("No module named 'shop.models'", name="shop")
        self.write("src/shop/__init__.py", "")
        for platform, verb in {"linux": "export", "win32": "set"}.items():
            with unittest.mock.patch.object(sys, "platform", platform):
                remedy = f"shop is in the folder src: type {verb} PYTHONPATH=src"
                self.assertEqual(devserve.import_remedy(missing), remedy)
        self.assertEqual(devserve.import_remedy(ModuleNotFoundError("without a name")), "")
        self.write("shop/__init__.py", "")
        os.chdir("shop")
        self.assertEqual(devserve.import_remedy(missing), "shop is in the folder above: start devserve there")

    def test_remedy_for_a_file_of_utf_16(self) -> None:
        (self.folder / "hello.py").write_text("app = 5", encoding="utf-16")
        with self.assertRaises((SyntaxError, ValueError)) as caught:
            self.load("hello")
        self.assertIn("save it as UTF-8", devserve.import_remedy(caught.exception))

    def test_remedy_for_what_an_import_cannot_do(self) -> None:
        for text, remedy in {
            "exit()": "under if __name__ == '__main__'",
            "import argparse\nargparse.ArgumentParser().parse_args(['--no-such-option'])": "under if __name__",
            "from .models import x": "write the import without the dot, or put an __init__.py beside it",
            "class AppRegistryNotReady(Exception): pass\nraise AppRegistryNotReady": "serve the project's wsgi.py",
            "raise ValueError": "",
            "class Bad(Exception):\n    def __str__(self): return self.code\nraise Bad": "",
            "exit('set SECRET_KEY')": "",
        }.items():
            self.write("hello.py", text)
            sys.modules.pop("hello", None)
            with self.subTest(text), contextlib.redirect_stderr(io.StringIO()):
                with self.assertRaises(BaseException) as caught:
                    self.load("./hello.py")
                self.assertIn(remedy, devserve.import_remedy(caught.exception))
                self.assertEqual(bool(remedy), bool(devserve.import_remedy(caught.exception)))

    def test_exceptions_of_the_application_come_out_untouched(self) -> None:
        self.write("uses_missing.py", "import missing_elsewhere")
        self.write("pack/__init__.py", "import pack.missing")
        self.write("half.py", "from os import no_such_name")
        self.write("typo.py", "def app(:\n")
        self.write("fails.py", "1 / 0")
        self.write("exits.py", "import sys\nsys.exit('bye')")
        self.write("dotted.name.py", "1 / 0")
        self.write("factory.py", "def create_app(): raise KeyError('inside')")
        self.write("attribute.py", "None.x")
        self.write(
            "prop.py", "class Holder:\n    @property\n    def site(self): return self.missing\nholder = Holder()"
        )
        for spec, kind in (
            ("uses_missing", ModuleNotFoundError),
            ("pack.missing", ModuleNotFoundError),
            ("half", ImportError),
            ("typo", SyntaxError),
            ("fails:app", ZeroDivisionError),
            ("exits", SystemExit),
            ("dotted.name.py", ZeroDivisionError),
            ("factory", KeyError),
            ("attribute.py:x", AttributeError),
            ("prop:holder.site", AttributeError),
        ):
            with self.subTest(spec), self.assertRaises(kind) as caught:
                self.load(spec)
            self.assertNotIsInstance(caught.exception, devserve.DevserveError)
            self.assertIsNone(caught.exception.__context__)

    def test_traceback_of_a_failed_import_has_only_the_application_beside_devserve(self) -> None:
        ours = (__file__, devserve.__file__)  # not even importlib's frames stand between
        for name in ("fails.py", "dotted.name.py"):
            path = self.write(name, "1 / 0")
            with self.subTest(name):
                frames = traceback.extract_tb(self.failure(lambda: self.load(name)).__traceback__)
                self.assertEqual([frame.filename for frame in frames if frame.filename not in ours], [str(path)])

    def test_broken_app_raises_the_same_error_without_growing(self) -> None:
        self.write("fails.py", "1 / 0")
        app = devserve.BrokenApp(self.failure(lambda: self.load("fails")))
        first, second, third = (self.failure(lambda: app({}, None)) for _ in range(3))
        self.assertTrue(first is second is third is app.error)
        depths = []
        for _ in range(3):
            depths.append(len(traceback.extract_tb(self.failure(lambda: app({}, None)).__traceback__)))
        self.assertEqual(len(set(depths)), 1)
        self.assertTrue(app.deferred)

    def failure(self, call: Callable[[], Any]) -> BaseException:
        """Return what `call` raises with its traceback, which `assertRaises` would take away."""
        try:
            call()
        except ZeroDivisionError as error:
            return error
        raise AssertionError("nothing was raised")


class FindingServers(FindingFolder):
    """A module that starts a server while it is imported is imported to its end."""

    SERVERS: ClassVar[dict[str, str]] = {
        "wsgiref": "from wsgiref.simple_server import make_server\nmake_server('127.0.0.1', 0, app).serve_forever()",
        "werkzeug": "from werkzeug.serving import run_simple\nrun_simple('127.0.0.1', 0, app)",
        "bottle": "import bottle\nbottle.run(app, port=0)",
        "uvicorn": "import uvicorn\nuvicorn.run(app)",
        "uvicorn.supervisors": "from uvicorn.supervisors.basereload import BaseReload\nBaseReload.run(None)",
        "uvicorn.server": "import asyncio, uvicorn\nasyncio.run(uvicorn.Server(uvicorn.Config(app)).serve())",
        "hypercorn": "from hypercorn.run import run\nrun(None)",
        "hypercorn.asyncio": "import asyncio\nfrom hypercorn.asyncio import serve\nasyncio.run(serve(app, None))",
        "werkzeug.reloader": "from werkzeug.serving import run_simple\n"
        "run_simple('127.0.0.1', 0, app, use_reloader=True)",
        "django": "from django.conf import settings\nsettings.configure(DEBUG=True)\nimport django\ndjango.setup()\n"
        "from django.core.management import call_command\ncall_command('runserver', '0')",
        "watchfiles": "from watchfiles import run_process\nrun_process('.', target='this.that')",
        "cheroot": "from cheroot import wsgi\nwsgi.Server(('127.0.0.1', 0), app).start()",
        "gevent": "from gevent.pywsgi import WSGIServer\nWSGIServer(('127.0.0.1', 0), app).serve_forever()",
        "eventlet": "import eventlet, eventlet.wsgi\neventlet.wsgi.server(eventlet.listen(('127.0.0.1', 0)), app)",
        "eventlet.patcher": "import eventlet, eventlet.wsgi\neventlet.monkey_patch()\n"
        "eventlet.wsgi.server(eventlet.listen(('127.0.0.1', 0)), app)",
        "waitress": "from waitress import serve\nserve(app)",
        "waitress.server": "from waitress.server import create_server\ncreate_server(app, port=0).run()",
        "web": "from web.wsgi import runwsgi\nrunwsgi(app)",
        "granian": "from granian.server.common import AbstractServer as Server\nServer.serve(None)",
        "daphne": "from daphne.server import Server\nServer.run(None)",
        "fastwsgi": "import fastwsgi\nfastwsgi.run(app)",
        "aiohttp": "from aiohttp import web\nweb.run_app(app)",
        "gunicorn": "from gunicorn.app.base import BaseApplication as Base\nBase().run()",
        "twisted": "from twisted.internet.base import ReactorBase as Base\nBase.run(None)",
        "cherrypy": "import cherrypy\nclass Root:\n    @cherrypy.expose\n    def index(self): return 'root'\n"
        "del app\ncherrypy.quickstart(Root())",
    }
    STAND_INS: ClassVar[dict[str, str]] = {  # where the package is not installed
        "waitress/__init__.py": "def serve(*_, **__): raise RuntimeError",
        "waitress/server.py": "class BaseWSGIServer:\n    def run(self): raise RuntimeError\n"
        "def create_server(*_, **__): return BaseWSGIServer()",
        "web/wsgi.py": "def runwsgi(*_): raise RuntimeError",
        "granian/server/common.py": "class AbstractServer:\n    def serve(self): raise RuntimeError",
        "daphne/server.py": "class Server:\n    def run(self): raise RuntimeError",
        "fastwsgi/__init__.py": "def run(*_): raise RuntimeError",
        "watchfiles/__init__.py": "from watchfiles.run import run_process",
        "watchfiles/run.py": "def run_process(*_, **__): raise RuntimeError",
        "aiohttp/web.py": "def run_app(*_, **__): raise RuntimeError",
        "gunicorn/app/base.py": "class BaseApplication:\n    def run(self): raise RuntimeError",
        "twisted/internet/base.py": "class ReactorBase:\n    def run(self): raise RuntimeError",
    }

    def left_out(self, name: str, source: str) -> list[str]:
        """Import `source` in its own process; return its output: the application's body, and each warning."""
        self.app_file("unguarded.py").write_text(FINDING_WSGI + source + "\nended = True\n")
        self.write(
            "check.py",
            f"""
            import os, sys
            sys.path.insert(0, {str(SCRIPT.parent)!r})
            import devserve
            from wsgiref.util import setup_testing_defaults
            with devserve.servers_left_out(print):
                app = devserve.load_app("unguarded")
            assert sys.modules["unguarded"].ended
            environ = {{}}
            setup_testing_defaults(environ)
            print(b"".join(app(environ, lambda *_: None)), flush=True)
            os._exit(0)  # whatever runs
            """,
        )
        command = [sys.executable, "check.py"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * DEADLINE)
        *lines, body = run.stdout.decode().splitlines()
        return [*(line for line in lines if "left out" in line), body]

    def test_servers_of_any_make_are_left_out_with_one_warning(self) -> None:
        for name, text in self.STAND_INS.items():
            package = name.partition("/")[0]
            if importlib.util.find_spec(package) is None:
                self.write(name, text)
        stand_ins = " ".join(self.STAND_INS)
        for name, source in self.SERVERS.items():
            with self.subTest(name):
                package = name.partition(".")[0]
                if f"{package}/" not in stand_ins and not importlib.util.find_spec(package):
                    self.skipTest(f"needs the package {name}")
                *warnings, body = self.left_out(name, source)
                self.assertEqual(body, "b'root'" if name == "cherrypy" else "b'app'", warnings)
                self.assertEqual(len(warnings), 1, warnings)
                self.assertIn("is left out; start it under if __name__ == '__main__':", warnings[0])

    def test_what_starts_only_in_the_process_that_a_reloader_serves_from_starts(self) -> None:
        """As schedulers do: `if not app.debug or os.environ.get("WERKZEUG_RUN_MAIN") == "true": scheduler.start()`."""
        self.write(
            "marked.py",
            """
            import os
            def marks(): return [os.environ.get(name) for name in ("WERKZEUG_RUN_MAIN", "RUN_MAIN")]
            then = marks()
            def app(environ, start_response):
                start_response("200 OK", [])
                return [repr(then + marks()).encode()]
            """,
        )
        for option, then in (("--debug", "true"), ("--debugger", None)):
            with self.subTest(option), Served("marked", option, cwd=self.folder) as served:
                self.assertEqual(served.ask().text, repr([then, then, None, None]))

    def test_afterwards_and_in_other_threads_servers_start(self) -> None:
        path = list(sys.meta_path)
        warnings: list[str] = []
        self.write("late_server.py", "def serve(): return 'served'")
        with unittest.mock.patch.dict(devserve._SERVERS, {"late_server": ("serve", "no_such.name")}):
            sys.path.insert(0, str(self.folder))
            importlib.invalidate_caches()
            with devserve.servers_left_out(warnings.append):
                serve = importlib.import_module("late_server").serve
                told: list[Any] = [serve(), serve()]
                if hasattr(os, "fork"):
                    child = os.fork()
                    if not child:
                        os._exit(7 if serve() == "served" else 0)
                    self.assertEqual(os.waitpid(child, 0)[1] >> 8, 7)
                thread = threading.Thread(target=lambda: told.append(serve()))
                thread.start()
                thread.join(DEADLINE)
            told.append(serve())
        self.assertEqual(told, [None, None, "served", "served"])
        self.assertEqual(len(warnings), 1)
        self.assertEqual(sys.meta_path, path)
        self.assertNotIn("FLASK_RUN_FROM_CLI", os.environ)


class FailingApp(NamedTuple):
    """An application of a framework whose view at / divides by zero, with a local variable and around it a hook."""

    package: str
    source: str
    status: str = "500 Internal Server Error"
    around: bool = True  # the framework, by itself, runs the hook for a failing view and sends its header X-Around


FAILING_APPS = {
    "bottle": FailingApp(
        "bottle",
        """
        import bottle
        app = bottle.Bottle()
        @app.route("/")
        def view():
            colour_of_view = "green"
            return 1 / 0
        @app.hook("after_request")
        def around():
            print("around")
            bottle.response.headers["X-Around"] = "yes"
        """,
    ),
    "cherrypy": FailingApp(
        "cherrypy",
        """
        import cherrypy
        def around():
            print("around")
            cherrypy.response.headers["X-Around"] = "yes"
        cherrypy.tools.around = cherrypy.Tool("after_error_response", around)
        class Root:
            @cherrypy.expose
            @cherrypy.tools.around()
            def index(self):
                colour_of_view = "green"
                return 1 / 0
        app = cherrypy.Application(Root(), "")
        """,
    ),
    "django": FailingApp(
        "django",
        """
        from django.conf import settings
        settings.configure(DEBUG=True, SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
                           MIDDLEWARE=["django.middleware.gzip.GZipMiddleware", __name__ + ".around",
                                       "django.middleware.common.CommonMiddleware"])
        from django.core.signals import got_request_exception
        from django.core.wsgi import get_wsgi_application
        from django.urls import path
        def signalled(**more): print("signalled")
        got_request_exception.connect(signalled)
        def around(get_response):
            def middleware(request):
                response = get_response(request)
                print("around")
                response["X-Around"] = "yes"
                return response
            return middleware
        def view(request):
            colour_of_view = "green"
            return 1 / 0
        urlpatterns = [path("", view)]
        app = get_wsgi_application()
        """,
    ),
    "falcon": FailingApp(
        "falcon",
        """
        import falcon
        class Around:
            def process_response(self, request, response, resource, req_succeeded):
                print("around")
                response.set_header("X-Around", "yes")
        class View:
            def on_get(self, request, response):
                colour_of_view = "green"
                return 1 / 0
        app = falcon.App(middleware=[Around()])
        app.add_route("/", View())
        """,
    ),
    "flask": FailingApp(
        "flask",
        """
        import flask
        app = flask.Flask(__name__)
        @app.route("/")
        def view():
            colour_of_view = "green"
            return 1 / 0
        @app.teardown_request
        def around(error): print("around")
        """,
        around=False,  # in debug mode, as under `flask run`
    ),
    "pyramid": FailingApp(
        "pyramid",
        """
        from pyramid.config import Configurator
        def view(request):
            colour_of_view = "green"
            return 1 / 0
        def around(handler, registry):
            def tween(request):
                try:
                    return handler(request)
                finally:
                    print("around")
            return tween
        with Configurator() as config:
            config.add_route("home", "/")
            config.add_view(view, route_name="home")
            config.add_tween(__name__ + ".around")
            app = config.make_wsgi_app()
        """,
        around=False,  # its exceptions go through of themselves
    ),
    "web.py": FailingApp(
        "web",
        """
        import web
        class View:
            def GET(self):
                colour_of_view = "green"
                return 1 / 0
        def around(handler):
            try:
                return handler()
            finally:
                print("around")
                web.header("X-Around", "yes")
        app = web.application(("/", "View"), globals())
        app.add_processor(around)
        """,
        around=False,  # processors see the exception, as they see an HTTPError otherwise
    ),
}


FAILING_ASGI_APPS = {
    "blacksheep": FailingApp(
        "blacksheep",
        """
        from blacksheep import Application, get
        site = Application()
        @get("/")
        async def view():
            colour_of_view = "green"
            return 1 / 0
        """,
        around=False,
    ),
    "django": FailingApp(
        "django",
        """
        from django.conf import settings
        settings.configure(DEBUG=True, SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
                           MIDDLEWARE=[__name__ + ".around"])
        from django.core.asgi import get_asgi_application
        from django.urls import path
        def around(get_response):
            def middleware(request):
                response = get_response(request)
                response["X-Around"] = "yes"
                return response
            return middleware
        async def view(request):
            colour_of_view = "green"
            return 1 / 0
        urlpatterns = [path("", view)]
        app = get_asgi_application()
        """,
    ),
    "falcon": FailingApp(
        "falcon",
        """
        import falcon.asgi
        class Around:
            async def process_response(self, request, response, resource, req_succeeded):
                response.set_header("X-Around", "yes")
        class View:
            async def on_get(self, request, response):
                colour_of_view = "green"
                return 1 / 0
        app = falcon.asgi.App(middleware=[Around()])
        app.add_route("/", View())
        """,
    ),
    "fastapi": FailingApp(
        "fastapi",
        """
        import fastapi
        site = fastapi.FastAPI()
        @site.get("/")
        async def view():
            colour_of_view = "green"
            return 1 / 0
        """,
        around=False,
    ),
    "litestar": FailingApp(
        "litestar",
        """
        from litestar import Litestar, Response, WebSocket, get, websocket
        from litestar.exceptions import ServiceUnavailableException
        @get("/")
        async def view() -> str:
            colour_of_view = "green"
            return 1 / 0
        @get("/meant")
        async def meant() -> str:
            raise ServiceUnavailableException
        @get("/handled")
        async def handled() -> str:
            raise KeyError
        @websocket("/ws")
        async def feed(socket: WebSocket) -> None:
            await socket.accept()
            1 / 0
        def own(request, error):
            return Response("own", status_code=500)
        site = Litestar([view, meant, handled, feed], exception_handlers={KeyError: own})
        """,
        around=False,
    ),
    "quart": FailingApp(
        "quart",
        """
        import quart
        site = quart.Quart(__name__)
        @site.route("/")
        async def view():
            colour_of_view = "green"
            return 1 / 0
        """,
        around=False,
    ),
    "sanic": FailingApp(
        "sanic",
        """
        import sanic
        site = sanic.Sanic("site")
        @site.get("/")
        async def view(request):
            colour_of_view = "green"
            return 1 / 0
        @site.on_response
        async def around(request, response):
            response.headers["X-Around"] = "yes"
        @site.get("/meant")
        async def meant(request):
            raise sanic.exceptions.ServiceUnavailable
        """,
    ),
    "starlette with flask": FailingApp(
        "fastapi",
        """
        import warnings
        import flask
        from starlette.applications import Starlette
        from starlette.routing import Mount
        warnings.simplefilter("ignore")
        from starlette.middleware.wsgi import WSGIMiddleware
        inner = flask.Flask(__name__)
        @inner.route("/")
        def view():
            colour_of_view = "green"
            return 1 / 0
        app = Starlette(routes=[Mount("/", WSGIMiddleware(inner))])
        """,
        around=False,
    ),
}


class FindingFrameworks(FindingFolder):
    """Each framework's application is found, and its exceptions get to the debugger, and nothing else changes."""

    def outcome(
        self, text: str, path: str = "/", options: str = "debug=True, debugger=True", accept: str = "text/html"
    ) -> str:
        """Serve the module `text` in its own process, since frameworks keep state; return what becomes of two GETs.

        Around it is what the debugger has there: it tells whether an exception is raised, or handed over and answered.
        """
        self.write("site_app.py", text)
        self.write(
            "check.py",
            f"""
            import sys
            sys.path.insert(0, {str(SCRIPT.parent)!r})
            import devserve
            from wsgiref.util import setup_testing_defaults
            try:
                app = devserve.load_app("site_app", {options})
            except devserve.DevserveError as error:
                sys.exit(print("refused", error))
            for _ in range(2):
                handed = []
                environ = {{"PATH_INFO": {path!r}, "wsgi.errors": sys.stderr, "HTTP_ACCEPT": {accept!r},
                            "HTTP_ACCEPT_ENCODING": "gzip", devserve.ON_EXCEPTION: handed.append}}
                setup_testing_defaults(environ)
                def start_response(status, headers, *more):
                    head.update(status=status, around={{k.lower(): v for k, v in headers}}.get("x-around"))
                head = {{}}
                try:
                    answer = app(environ, start_response)
                    body = b"".join(answer)
                    getattr(answer, "close", int)()
                except BaseException as error:
                    print("raised", type(error).__name__)
                else:
                    if handed and devserve.HANDED_OVER.encode() in body:
                        print("handed", *(type(error).__name__ for error in handed), head["status"], head["around"])
                    else:
                        print("answered", head["status"], body[:999])
            """,
        )
        command = [sys.executable, "check.py"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * DEADLINE)
        return run.stdout.decode()

    def raises(self, text: str, **how: str) -> None:
        """Demand that the view's Boom comes out of the application, time and again, and is printed by nobody."""
        outcome = self.outcome(text, **how)
        self.assertEqual(len(re.findall(r"^(?:raised|handed) Boom", outcome, re.MULTILINE)), 2, outcome)
        self.assertEqual(outcome.count("Boom"), 2, outcome)

    def test_an_exception_gets_to_the_debugger_and_the_rest_is_as_without_it(self) -> None:
        for name, app in FAILING_APPS.items():
            for options in ("debug=True, debugger=True", "debugger=True"):
                if importlib.util.find_spec(app.package) is None and not REQUIRE_ALL:
                    continue
                with self.subTest(name, options=options):
                    told = ["signalled"] if name == "django" else []
                    end = f"handed ZeroDivisionError {app.status} yes" if app.around else "raised ZeroDivisionError"
                    lines = self.outcome(textwrap.dedent(app.source), options=options).splitlines()
                    lines = [line for line in lines if '"GET / HTTP' not in line]  # CherryPy has a log of its own
                    self.assertEqual(lines, [*told, "around", end] * 2)

    @needs("flask")
    def test_flask_is_told_what_has_been_decided_about_debugging(self) -> None:
        self.write(
            "app.py", "import flask\napp = flask.Flask(__name__)\napp.add_url_rule('/', 'x', lambda: f'{app.debug}')"
        )
        for variable, option, debug in (("1", "--no-debug", False), ("off", "-q", False), ("0", "--debug", True)):
            served = Served("app", option, cwd=self.folder, env={"FLASK_DEBUG": variable})
            with self.subTest(variable), served:
                self.assertEqual(served.get(), str(debug))

    @needs("flask")
    def test_flask_is_told_to_debug_before_its_import_and_its_application_is_found_by_its_class(self) -> None:
        self.raises("""
            import flask, os
            class Boom(Exception): pass
            assert os.environ["FLASK_DEBUG"] == "1"
            site = also = flask.Flask(__name__)
            @site.route("/")
            def view(): raise Boom
        """)

    @needs("flask")
    def test_flask_inside_middleware_of_any_form(self) -> None:
        forms = """
            app = ProxyFix(ProxyFix(site))

            site.wsgi_app = ProxyFix(site.wsgi_app); app = site

            class Prefix:
                def __init__(self, wrapped): self._inside = wrapped
                def __call__(self, environ, start_response): return self._inside(environ, start_response)
            app = Prefix(site)

            def closed(inner):
                def app(environ, start_response): return inner(environ, start_response)
                return app
            app = closed(site.wsgi_app)

            def app(environ, start_response): return site(environ, start_response)

            def outer(inner, environ, start_response): return inner(environ, start_response)
            app = functools.partial(outer, site)
        """
        for line in textwrap.dedent(forms).strip().split("\n\n"):
            with self.subTest(line):
                self.raises(
                    textwrap.dedent("""
                    import flask, functools
                    from werkzeug.middleware.proxy_fix import ProxyFix
                    class Boom(Exception): pass
                    site = flask.Flask(__name__)
                    site.config["DEBUG"] = False
                    @site.route("/")
                    def view(): raise Boom
                    """)
                    + line
                )

    @needs("flask")
    def test_flask_lets_exceptions_through_for_the_debugger_alone_and_is_not_told_to_debug(self) -> None:
        text = """
            import flask, os
            class Boom(Exception): pass
            assert "FLASK_DEBUG" not in os.environ
            site = flask.Flask(__name__)
            @site.route("/")
            def view():
                if not site.debug: raise Boom
            """
        self.raises(text, options="debugger=True")

    @needs("flask")
    def test_flask_keeps_its_handling_when_its_configuration_says_so(self) -> None:
        outcome = self.outcome("""
            import flask
            site = flask.Flask(__name__)
            site.config["PROPAGATE_EXCEPTIONS"] = False
            @site.route("/")
            def view(): 1 / 0
            """)
        self.assertIn("answered 500 INTERNAL SERVER ERROR", outcome)

    DISPATCHED = """
        import bottle, falcon, flask
        from werkzeug.middleware.dispatcher import DispatcherMiddleware
        class Boom(Exception): pass
        def view(*_): raise Boom
        site, shop, blog = flask.Flask("site"), bottle.Bottle(), falcon.App()
        site.add_url_rule("/", view_func=view)
        shop.route("/", callback=view)
        blog.add_route("/", type("View", (), {"on_get": view})())
        mounts = {"/shop": shop, "/blog": blog}
    """

    @needs("flask")
    @needs("bottle")
    @needs("falcon")
    def test_each_application_under_a_dispatcher(self) -> None:
        for line in (
            "app = DispatcherMiddleware(site, mounts)",
            "app = DispatcherMiddleware(site.wsgi_app, mounts)",
            "app = site; site.wsgi_app = DispatcherMiddleware(site.wsgi_app, mounts)",
        ):
            for path in ("/", "/shop/", "/blog/"):
                with self.subTest(line, path=path):
                    self.raises(textwrap.dedent(self.DISPATCHED) + line, path=path)

    @needs("flask")
    def test_several_flask_applications_must_be_chosen_from(self) -> None:
        outcome = self.outcome("import flask\nshop = flask.Flask('a')\nblog = flask.Flask('b')\n")
        self.assertIn("'site_app' holds the applications shop, blog; choose one: 'site_app:shop'", outcome)

    @needs("bottle")
    def test_bottle_without_an_application_object(self) -> None:
        for line in ("from bottle import route", "from bottle import *"):
            with self.subTest(line):
                self.raises(f"""
                    {line}
                    class Boom(Exception): pass
                    @route("/")
                    def view(): raise Boom
                """)

    @needs("bottle")
    def test_bottle_with_a_mounted_application_serves_both(self) -> None:
        text = """
            import bottle
            class Boom(Exception): pass
            shop = bottle.Bottle()
            @bottle.route("/")
            @shop.route("/view")
            def view(): raise Boom
            bottle.default_app()."""
        for call, path in (
            ("mount('/shop/', shop)", "/shop/"),
            ("mount('/shop', shop)", "/shop/"),
            ("merge(shop)", "/"),
        ):
            for route in ("/", path + "view"):
                with self.subTest(call, route=route):
                    self.raises(text + call, path=route)

    @needs("bottle")
    def test_bottle_answers_are_no_exceptions(self) -> None:
        outcome = self.outcome("""
            import bottle
            app = bottle.Bottle()
            @app.route("/")
            def view(): bottle.abort(418, "tea")
        """)
        self.assertEqual(outcome.count("answered 418"), 2, outcome)

    @needs("bottle")
    def test_bottles_plugins_see_the_exception(self) -> None:
        """As one for a database, which commits unless there is any."""
        text = """
            import bottle
            class Boom(Exception): pass
            app = bottle.Bottle()
            def plugin(callback):
                def call(*args, **options):
                    try:
                        return callback(*args, **options)
                    except Boom:
                        {end}
                return call
            app.install(plugin)
            @app.route("/")
            def view(): raise Boom
        """
        self.raises(text.format(end="raise"))
        outcome = self.outcome(text.format(end="return bottle.HTTPResponse('no', 422)"))
        self.assertEqual(outcome.count("answered 422"), 2, outcome)

    @needs("web")
    def test_webpy_with_an_application_inside(self) -> None:
        self.raises(
            """
            import web
            class Boom(Exception): pass
            class View:
                def GET(self): raise Boom
            shop = web.application(("/", "View"), globals())
            app = web.application(("/shop", shop), globals())
            """,
            path="/shop/",
        )

    @needs("falcon")
    def test_falcon_keeps_an_error_handler_of_the_application(self) -> None:
        outcome = self.outcome("""
            import falcon
            class View:
                def on_get(self, request, response): raise KeyError
            def handler(request, response, error, params): response.text = "handled"
            app = falcon.App()
            app.add_route("/", View())
            app.add_error_handler(Exception, handler)
            """)
        self.assertIn("answered 200 OK b'handled'", outcome)

    @needs("pyramid")
    def test_pyramid_by_its_factory_with_templates_that_are_read_again(self) -> None:
        self.raises("""
            from pyramid.config import Configurator
            class Boom(Exception): pass
            def view(request): raise Boom
            def make_app(settings=None):
                config = Configurator()
                assert config.registry.settings["pyramid.reload_templates"]
                config.add_route("home", "/")
                config.add_view(view, route_name="home")
                return config.make_wsgi_app()
        """)

    @needs("cherrypy")
    def test_cherrypy_by_its_tree(self) -> None:
        self.raises("""
            import cherrypy
            class Boom(Exception): pass
            class Root:
                @cherrypy.expose
                def index(self): raise Boom
            cherrypy.tree.mount(Root(), '/')
            """)

    @needs("cherrypy")
    def test_cherrypy_answers_as_the_application_has_configured(self) -> None:
        text = """
            import cherrypy
            def own():
                cherrypy.response.status, cherrypy.response.body = 503, [b"own"]
            class Root:
                @cherrypy.expose
                def index(self): 1 / 0
            {}
            app = cherrypy.Application(Root(), "")
        """
        for way in (
            "Root._cp_config = {'request.error_response': own}",
            "cherrypy.config.update({'request.error_response': own})",
        ):
            with self.subTest(way):
                outcome = self.outcome(text.format(way))
                self.assertEqual(outcome.count("answered 503"), 2, outcome)

    DJANGO = """
        from django.conf import settings
        class Boom(Exception): pass
        settings.configure(DEBUG=True, SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], {more}
                           MIDDLEWARE=["django.middleware.common.CommonMiddleware"])
        from django.urls import path
        def view(request): {view}
        urlpatterns = [path("", view)]
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
    """

    @needs("django")
    def test_django_does_as_the_settings_say_about_its_exceptions(self) -> None:
        for value, end in (("True", "raised Boom"), ("False", "answered 500 Internal Server Error")):
            with self.subTest(value):
                more = f"LOGGING_CONFIG=None, DEBUG_PROPAGATE_EXCEPTIONS={value},"
                lines = self.outcome(self.DJANGO.format(more=more, view="raise Boom")).splitlines()
                self.assertEqual([line[: len(end)] for line in lines if line[:6] in ("raised", "answer")], [end] * 2)

    @needs("django")
    def test_django_asks_for_a_page_with_a_status_of_its_own_too(self) -> None:
        view = "from django.core.exceptions import BadRequest; raise BadRequest"
        lines = self.outcome(self.DJANGO.format(more="", view=view)).splitlines()
        self.assertEqual(lines, ["handed BadRequest 400 Bad Request None"] * 2)
        lines = self.outcome(self.DJANGO.format(more="", view="raise Boom"), accept="application/json").splitlines()
        self.assertEqual(lines, ["handed Boom 500 Internal Server Error None"] * 2)

    @needs("django")
    def test_django_names_the_templates_that_it_has_tried(self) -> None:
        more = "TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'DIRS': ['/nowhere']}],"
        view = "from django.shortcuts import render; return render(request, 'missing.html')"
        text = textwrap.dedent(self.DJANGO.format(more=more, view=view))
        notes = """
            def wrapped(environ, start_response):
                answer = site(environ, start_response)
                print(environ["devserve.on_exception"].__self__[0].__notes__)
                return answer
            site, application = application, wrapped
        """
        outcome = self.outcome(text + textwrap.dedent(notes))
        self.assertIn("handed TemplateDoesNotExist 500", outcome)
        self.assertIn("Django tried /nowhere/missing.html (Source does not exist)", outcome)

    STATIC = ("staticfiles", "admin", "auth", "contenttypes", "sessions", "messages")

    @needs("django")
    def test_django_serves_the_static_files_of_its_applications(self) -> None:
        more = f"STATIC_URL='static/', INSTALLED_APPS={['django.contrib.' + name for name in self.STATIC]},"
        text = textwrap.dedent(self.DJANGO.format(more=more, view="raise Boom"))
        wrapped = text + textwrap.dedent("""
            class Prefix:
                def __init__(self, wrapped): self.wrapped = wrapped
                def __call__(self, environ, start_response): return self.wrapped(environ, start_response)
            application = Prefix(application)
        """)
        for what, code in {"bare": text, "inside middleware": wrapped}.items():
            for options in ("debug=True", "debug=False"):
                with self.subTest(what, options=options):
                    outcome = self.outcome(code, "/static/admin/css/base.css", options)
                    self.assertEqual(outcome.count("answered 200 OK"), 2, outcome)
        self.write("whitenoise/runserver_nostatic/__init__.py", "")  # which leaves them to a middleware
        self.write("whitenoise/__init__.py", "")
        for other in (
            text.replace("DEBUG=True", "DEBUG=False"),
            text.replace("INSTALLED_APPS=[", "INSTALLED_APPS=['whitenoise.runserver_nostatic', "),
        ):
            outcome = self.outcome(other, "/static/admin/css/base.css")
            self.assertEqual(outcome.count("answered 404"), 2, outcome)

    @needs("django")
    def test_django_is_given_the_settings_of_its_manage_py(self) -> None:
        self.write("config/__init__.py", "")
        for name, debug in (("local", True), ("production", False), ("test", False)):
            self.write(
                f"config/{name}.py",
                f"import sys\nARGV = sys.argv[1:]\n"  # some choose by it
                f"DEBUG = {debug}\nSECRET_KEY = 'x'\nROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']",
            )
        self.write("urls.py", "urlpatterns = []")
        self.write(
            "manage.py",
            """
            import os, sys
            def main():
                if "test" in sys.argv:
                    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.test")
                os.environ.setdefault('DJANGO_SETTINGS_MODULE', "config.local")
                os.environ["DJANGO_CONFIGURATION"] = "Local" if sys.argv[1:] == ["runserver"] else "Other"
                from django.core.management import execute_from_command_line
                execute_from_command_line(sys.argv)
            if __name__ == "__main__":
                sys.exit(main())
            """,
        )
        wsgi = """
            import os
            os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.production")
            from django.core.wsgi import get_wsgi_application
            site = get_wsgi_application()
            def application(environ, start_response):
                from django.conf import settings
                start_response("200 OK", [])
                return [repr([settings.DEBUG, settings.ARGV, os.environ["DJANGO_CONFIGURATION"]]).encode()]
            """
        self.write("config/wsgi.py", wsgi)
        shutil.copytree(self.folder, self.folder / "inner" / "project")
        for spec in ("", "config.wsgi", "config/wsgi.py", "inner/project/config/wsgi.py", "inner/project/manage.py"):
            with self.subTest(spec):
                outcome = self.outcome(f"import devserve\napp = devserve.load_app({spec!r})")
                self.assertEqual(outcome.count("[True, ['runserver'], 'Local']"), 2, outcome)

    @needs("django")
    def test_django_is_left_to_itself_without_the_debugger(self) -> None:
        lines = self.outcome(self.DJANGO.format(more="", view="raise Boom"), options="debug=True").splitlines()
        self.assertEqual(sum(line.startswith("answered 500 Internal Server Error") for line in lines), 2)
        self.assertEqual(sum("Internal Server Error: /" in line for line in lines), 2)

    @needs("django")
    def test_django_is_asked_which_files_it_reads_and_told_when_they_change(self) -> None:
        self.write("templates/page.html", "one")
        backend = "django.template.backends.django.DjangoTemplates"
        more = f"TEMPLATES=[{{'BACKEND': {backend!r}, 'DIRS': [{str(self.folder / 'templates')!r}]}}],"
        view = "import page; return page.answer(request)"
        self.write(
            "page.py",
            f"""
            import os, pathlib, sys, devserve
            from django.http import HttpResponse
            from django.utils import autoreload
            sys.argv[1:] = ["templates/page.html locale/de/x.mo locale/de/x.po conf/a.conf conf/a.txt templates/a.py"]
            def more(sender, **kw): sender.watch_dir("conf", "*.conf")
            def fails(sender, **kw): 1 / 0
            autoreload.autoreload_started.connect(more)
            autoreload.autoreload_started.connect(fails)
            autoreload.file_changed.connect(fails)
            from django.template import loader
            path = {str(self.folder / "templates" / "page.html")!r}
            def shown(): return loader.get_template("page.html").render()
            def answer(request):
                folders, heed, _ = devserve.framework_files(__import__("site_app").application)
                here = os.getcwd() + os.sep
                before = shown()
                pathlib.Path(path).write_text("two")
                heeds = [heed([here + name]) for name in sys.argv[1].split()]
                return HttpResponse(repr([before, shown(), heeds, sorted(map(os.path.relpath, folders))]))
            """,
        )
        outcome = self.outcome(self.DJANGO.format(more=more, view=view))
        heeds = [True, True, True, False, True, False]  # no for the file that only `more` wanted, and the module
        self.assertIn(repr(["one", "two", heeds, ["conf", "locale", "templates"]]), outcome)


class FindingAsgiFrameworks(Folder):
    """An exception in an ASGI framework's view is the page's and the terminal's, once."""

    def test_an_exception_gets_to_the_debugger(self) -> None:
        for name, app in FAILING_ASGI_APPS.items():
            for options in ("--debug",), ("--debugger",):
                if importlib.util.find_spec(app.package) is None and not REQUIRE_ALL:
                    continue
                with self.subTest(name, options=options):
                    folder = self.folder / (name + options[0])
                    self.write(f"{folder.name}/site_app.py", app.source)
                    with Served("site_app", *options, cwd=folder) as served:
                        answer = served.ask(Accept="application/json")
                        self.assertEqual(answer.status, 500)
                        self.assertIn("green", json.dumps(answer.json))
                        self.assertEqual(answer.get("X-Around"), "yes" if app.around else None)
                        served.wait_for("GET / 500")
                    self.assertEqual(served.log.count("ZeroDivisionError"), 1, served.log)

    @needs("falcon")
    def test_an_exception_in_falcons_websocket_closes_it_with_1011_and_is_told(self) -> None:
        """Falcon calls one handler for both, and for a WebSocket with no response."""
        source = FAILING_ASGI_APPS["falcon"].source.replace("on_get(self, request, response)", "on_websocket(*_)")
        self.write("site_app.py", source.replace("return 1", "await _[2].accept(); 1"))
        with Served("site_app", "--debug", cwd=self.folder) as served:
            client = WebSocketClient(served.port)
            self.addCleanup(client.close)
            self.assertEqual(client.shake_hands().status, 101)
            self.assertEqual(client.close_code(), 1011)
            served.wait_for("ZeroDivisionError")
            self.assertNotIn("AttributeError", served.log)

    @needs("litestar")
    @needs("sanic")
    def test_what_a_framework_answers_on_purpose_is_its_own(self) -> None:
        for name in ("litestar", "sanic"):
            with self.subTest(name):
                self.write("site_app.py", FAILING_ASGI_APPS[name].source)
                with Served("site_app", "--debug", cwd=self.folder) as served:
                    answer = served.ask("/meant", Accept="application/json")
                self.assertEqual(answer.status, 503)
                self.assertIn("Service Unavailable", answer.json.values())

    @needs("sanic")
    def test_sanics_own_error_handler_answers(self) -> None:
        self.write(
            "site_app.py",
            """
            import sanic
            class Own(sanic.handlers.ErrorHandler):
                def default(self, request, exception):
                    return sanic.response.text("own", 503)
            app = sanic.Sanic("site", error_handler=Own())
            @app.get("/")
            def view(request): 1 / 0
            """,
        )
        with Served("site_app", "--debug", cwd=self.folder) as served:
            answer = served.ask()
            self.assertEqual((answer.status, answer.text), (503, "own"))

    @needs("litestar")
    def test_what_a_handler_in_litestar_answers_is_its_own_and_a_websockets_exception_is_told(self) -> None:
        self.write("site_app.py", FAILING_ASGI_APPS["litestar"].source)
        with Served("site_app", "--debug", cwd=self.folder) as served:
            answer = served.ask("/handled", Accept="application/json")
            self.assertEqual((answer.status, answer.text), (500, "own"))
            client = WebSocketClient(served.port)
            self.addCleanup(client.close)
            self.assertEqual(client.shake_hands(path="/ws").status, 101)
            self.assertEqual(client.close_code(), 1011)
            served.wait_for("ZeroDivisionError")
        self.assertNotIn("KeyError", served.log)


class FindingFlaskFiles(Folder):
    @needs("flask")
    def test_a_configuration_that_appears_in_the_instance_folder_reloads_and_nothing_else_there(self) -> None:
        self.write(
            "app.py",
            """
            import flask
            app = flask.Flask(__name__, instance_relative_config=True)
            app.config["WORD"] = "none"
            app.config.from_pyfile("config.py", silent=True)
            app.add_url_rule("/", "index", lambda: app.config["WORD"])
            """,
        )
        with Served("app", "--reload", "--live", cwd=self.folder) as served:
            self.assertEqual(served.get(), "none")
            self.write("instance/data.sqlite", "no configuration")
            self.write("instance/uploads/some.py", "no configuration either")
            self.write("instance/config.py", "WORD = 'one'")
            eventually(lambda: served.get() == "one", "the new file")
            self.write("instance/config.py", "WORD = 'two'")
            eventually(lambda: served.get() == "two", "its edit")
            self.assertNotIn("sqlite", served.log)
            self.assertNotIn("some.py", served.log)


class FindingDjangoFiles(Folder):
    """A Django project from the command line sees edits of what is no module as under its runserver."""

    def setUp(self) -> None:
        super().setUp()
        self.write("manage.py", "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')")
        self.write("mysite/__init__.py", "")
        self.write(
            "mysite/settings.py",
            """
            import pathlib
            BASE = pathlib.Path(__file__).parent
            DEBUG, SECRET_KEY, ROOT_URLCONF, ALLOWED_HOSTS = True, "x", "mysite.urls", ["*"]
            LANGUAGE_CODE, USE_I18N, LOCALE_PATHS = "de", True, [BASE / "locale"]
            TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [BASE / "templates"]}]
            """,
        )
        self.write(
            "mysite/urls.py",
            """
            from django.shortcuts import render
            from django.urls import path
            urlpatterns = [path("", lambda request: render(request, "page.html"))]
            """,
        )
        self.write("mysite/wsgi.py", "import django.core.wsgi\napplication = django.core.wsgi.get_wsgi_application()")
        self.template("one")
        self.translate("eins")

    def template(self, text: str) -> None:
        self.write("mysite/templates/page.html", "{% load i18n %}" + text + " {% translate 'word' %}")

    def translate(self, word: str) -> None:
        """Write a catalog as GNU gettext's `msgfmt` does: a head, two tables, the texts."""
        texts = [(b"", b"Content-Type: text/plain; charset=UTF-8\n"), (b"word", word.encode())]
        begin, tables, blob = 28 + 16 * len(texts), [b"", b""], b""
        for index in range(2):
            for pair in texts:
                tables[index] += struct.pack("<II", len(pair[index]), begin + len(blob))
                blob += pair[index] + b"\0"
        head = struct.pack("<7I", 0x950412DE, 0, len(texts), 28, 28 + len(tables[0]), 0, 0)
        path = self.write("mysite/locale/de/LC_MESSAGES/django.mo", "")
        path.write_bytes(head + tables[0] + tables[1] + blob)

    @needs("django")
    def test_templates_and_translations_change_without_a_reload(self) -> None:
        with Served("--debug", cwd=self.folder) as served:
            self.assertEqual(served.get(), "one eins")
            self.template("two")
            eventually(lambda: served.get() == "two eins", "the template's edit")
            self.translate("zwei")
            eventually(lambda: served.get() == "two zwei", "the translation's edit")
            self.write("mysite/locale/de/LC_MESSAGES/django.po", "no part of Django reads it")
            self.template("three")
            eventually(lambda: served.get() == "three zwei", "the template's second edit")
            self.assertNotIn("reloading", served.log)
            self.write("mysite/urls.py", (self.folder / "mysite/urls.py").read_text() + "# an edit of a module\n")
            served.wait_for("urls.py changed, reloading")


# =====================================================================================================================
# 5. Traceback
# =====================================================================================================================

SECRET = "hunter2-xyzzy"  # what must never be seen
HOSTILE_TEXT = "</pre><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x00\ud800\x1b[31m\u202e"


def failure_of(function: Callable[..., Any], *arguments: Any) -> BaseException:
    """Return what a call raises."""
    try:
        function(*arguments)
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing was raised")


class Reading(Folder):
    """A test with modules that fail, and a report about their failures.  Its folder is the project's."""

    def setUp(self) -> None:
        super().setUp()
        before = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)

    def module(self, source: str, name: str = "views.py") -> dict[str, Any]:
        path = self.write(name, source)
        namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        return namespace

    def crash(self, source: str, name: str = "views.py") -> BaseException:
        """Return what `view` of a module raises."""
        return failure_of(self.module(source, name)["view"])

    def read(self, source: str) -> devserve.ExceptionView:
        return devserve.read_report(self.crash(source)).problems[-1]


def values(frame: devserve.FrameView) -> dict[str, Optional[str]]:
    return {variable.name: variable.value for variable in frame.variables}


class ReadingProblems(Reading):
    def test_reports_type_message_place_and_source(self) -> None:
        problem = self.read("""\
            def view():
                number = 1
                return number / 0
            """)
        frame = problem.frames[-1]
        self.assertEqual((problem.type, problem.message), ("ZeroDivisionError", "division by zero"))
        self.assertEqual((frame.lineno, frame.name, frame.app, frame.kind), (3, "view", True, "python"))
        self.assertEqual(frame.filename, str(self.folder / "views.py"))
        self.assertEqual(
            [line.text for line in frame.source], ["def view():", "    number = 1", "    return number / 0"]
        )
        self.assertEqual(values(frame), {"number": "1"})

    def test_qualifies_the_type_by_its_module(self) -> None:
        problem = self.read("import decimal\ndef view():\n    decimal.Decimal('x')\n")
        self.assertEqual(problem.type, "decimal.InvalidOperation")

    @unittest.skipUnless(hasattr((lambda: 0).__code__, "co_positions"), "needs positions of expressions")
    def test_marks_the_failing_expression_in_characters(self) -> None:
        frame = self.read("def view():\n    return 'é€😀' and (1 / 0) + 2\n").frames[-1]
        line = "    return 'é€😀' and (1 / 0) + 2"
        self.assertEqual(frame.marks, (devserve._Mark(2, line.index("1 / 0"), line.index("1 / 0") + 5),))

    @unittest.skipUnless(hasattr((lambda: 0).__code__, "co_positions"), "needs positions of expressions")
    def test_marks_the_head_of_a_compound_statement_and_not_its_body(self) -> None:
        for head in ("with  closing({1: ':'}, lambda: 1):", "for x in closing({1: 2}):", "while closing(1):"):
            problem = self.read(f"""\
                def closing(*arguments):
                    import contextlib
                    @contextlib.contextmanager
                    def manager(): yield 1; raise OSError(1)
                    def rows(): yield 1; raise OSError(2)
                    if len(arguments) == 2: return manager()
                    if arguments == (1,): raise OSError(3)
                    return rows()
                def view():
                    {head}  # why
                        a = 1
                        b = 2
                """)
            frame = next(each for each in problem.frames if each.name == "view")
            text = next(line.text for line in frame.source if line.number == frame.lineno)
            marked = [(mark.number, text[mark.start : mark.end]) for mark in frame.marks]
            with self.subTest(head):
                self.assertIn(
                    marked,
                    [
                        [],
                        [(frame.lineno, head[:-1])],
                        [(frame.lineno, head.split(" ", 3)[-1][:-1])],
                        [(frame.lineno, re.sub(r"^(with|for x in|while) +|:$", "", head))],
                    ],
                )

    @unittest.skipUnless(hasattr((lambda: 0).__code__, "co_positions"), "needs positions of expressions")
    def test_marks_and_shows_an_expression_far_out_on_its_line(self) -> None:
        for before in (10, 385, 2_000) if sys.implementation.name == "cpython" else (10, 60):  # PyPy's end at 255
            frame = self.read(
                f"def view():\n    x = [{'é, ' * (before // 3)}1 / 0, {'2, ' * 500}]\n".replace("é", "3")
            ).frames[-1]
            text = frame.source[-1].text
            self.assertEqual([text[mark.start : mark.end] for mark in frame.marks], ["1 / 0"])
            self.assertLess(len(text), devserve._LINE_LIMIT + 5)

    @unittest.skipUnless(hasattr((lambda: 0).__code__, "co_positions"), "needs positions of expressions")
    def test_marks_an_expression_of_several_lines(self) -> None:
        frame = self.read("def view():\n    x = max(1,\n            key=2,\n        )\n").frames[-1]
        self.assertEqual([mark.number for mark in frame.marks], [2, 3, 4])
        self.assertEqual((frame.marks[0].start, frame.marks[1].start, frame.marks[2].end), (8, 12, 9))

    def test_marks_nothing_when_it_is_the_whole_line(self) -> None:
        self.assertEqual(self.read("def view():\n    undefined_name\n").frames[-1].marks, ())

    def test_names_methods_by_their_class(self) -> None:
        problem = self.read("class Shop:\n    def sell(self): 1 / 0\ndef view(): Shop().sell()\n")
        self.assertEqual(problem.frames[-1].name, "Shop.sell")

    def test_reports_causes_and_contexts_oldest_first(self) -> None:
        report = devserve.read_report(
            self.crash("""\
            def view():
                try:
                    try:
                        {}['a']
                    except KeyError as error:
                        raise ValueError('b') from error
                except ValueError:
                    raise RuntimeError('c')
            """)
        )
        shown = [(problem.type, problem.relation) for problem in report.problems]
        self.assertEqual(shown, [("KeyError", ""), ("ValueError", "cause"), ("RuntimeError", "context")])

    def test_leaves_out_a_suppressed_context(self) -> None:
        error = self.crash("def view():\n    try: 1 / 0\n    except ZeroDivisionError: raise ValueError from None\n")
        self.assertEqual([problem.type for problem in devserve.read_report(error).problems], ["ValueError"])

    def test_ends_in_a_circle_of_causes(self) -> None:
        first, second = ValueError("a"), ValueError("b")
        first.__cause__, second.__cause__ = second, first
        self.assertEqual([p.message for p in devserve.read_report(first).problems], ["b", "a"])

    def test_bounds_a_chain_without_end(self) -> None:
        error = ValueError("the root")
        for number in range(500):
            after = ValueError(str(number))
            after.__context__ = error
            error = after
        report = devserve.read_report(error)
        root, second, *_, newest = report.problems
        self.assertEqual((newest.message, root.message, root.skipped), ("499", "the root", 0))
        self.assertIn(len(report.problems), range(10, 60))
        self.assertEqual(second.skipped, 501 - len(report.problems))
        self.assertIn(f"(through {second.skipped} exceptions not shown)", untagged(page_of(report)))

    def test_reports_notes_also_those_that_are_no_text(self) -> None:
        error = ValueError("x")
        error.__notes__ = ["first\nsecond", 3]  # type: ignore[attr-defined]
        self.assertEqual(devserve.read_report(error).problems[0].notes, ("first\nsecond", "3"))
        error.__notes__ = 4  # type: ignore[attr-defined]
        self.assertEqual(devserve.read_report(error).problems[0].notes, ("4",))

    def test_reports_groups_within_groups_with_frames(self) -> None:
        class BaseExceptionGroup(Exception):  # as the backport for Python 3.10 and earlier has it
            def __init__(self, message: str, exceptions: list[BaseException]) -> None:
                super().__init__(message)
                self.exceptions = tuple(exceptions)

        inner = BaseExceptionGroup("inner", [failure_of(lambda: 1 / 0), failure_of(dict[str, int]().__getitem__, "x")])
        problem = devserve.read_report(BaseExceptionGroup("outer", [ValueError("v"), inner])).problems[-1]
        self.assertEqual(problem.members[0][-1].type, "ValueError")
        leaves = [chain[-1] for chain in problem.members[1][-1].members]
        self.assertEqual([leaf.type for leaf in leaves], ["ZeroDivisionError", "KeyError"])
        self.assertTrue(all(leaf.frames for leaf in leaves))

    @unittest.skipIf(sys.version_info < (3, 11), "needs exception groups")
    def test_reports_the_interpreters_groups_and_bounds_them(self) -> None:
        group_type: Any = vars(builtins)["ExceptionGroup"]  # older Pythons have no such name
        group = group_type("many", [ValueError(str(n)) for n in range(1000)])
        problem = devserve.read_report(group).problems[-1]
        self.assertEqual(len(problem.members) + problem.unlisted, 1000)
        self.assertIn(len(problem.members), range(10, 100))
        deep: BaseException = ValueError("leaf")
        for _ in range(100):
            deep = group_type("deep", [deep, ValueError("x")])
        self.assertTrue(devserve.read_report(deep).problems)

    def test_of_a_recursion_only_the_first_and_the_last_round_are_listed(self) -> None:
        problem = self.read("def down(n):\n    return down(n + 1)\ndef view():\n    down(0)\n")
        self.assertEqual(problem.type, "RecursionError")
        self.assertEqual([frame.name for frame in problem.frames], ["failure_of", "view", "down", "down"])
        first, last = problem.frames[-2:]
        self.assertEqual((values(first)["n"], last.skipped), ("0", 0))
        self.assertEqual(int(values(last)["n"] or 0), first.skipped + 1)

    def test_of_a_recursion_without_a_rhythm_each_line_is_listed_twice(self) -> None:
        problem = self.read("""\
            def walk(node):
                if node % 3:
                    return left(node)
                return walk(node + 1)
            def left(node):
                return walk(node * 7 % 1_000 + 1)
            def view(): walk(1)
            """)
        own = [frame for frame in problem.frames if frame.filename.endswith("views.py")]
        linenos = [frame.lineno for frame in own]
        self.assertEqual({lineno: linenos.count(lineno) for lineno in (3, 4, 6, 7)}, {3: 2, 4: 2, 6: 2, 7: 1})
        self.assertLessEqual(len(linenos), 8, "and the innermost, where that is on a line of its own")
        self.assertGreater(sum(frame.skipped for frame in problem.frames), 500)

    def test_three_rounds_of_a_recursion_are_all_listed(self) -> None:
        problem = self.read("def down(n):\n    return 1 / n if n < 1 else down(n - 1)\ndef view(): down(2)\n")
        self.assertEqual([frame.name for frame in problem.frames[-4:]], ["view", "down", "down", "down"])

    def test_bounds_a_deep_traceback_that_does_not_repeat(self) -> None:
        functions = "\n".join(f"def f{n}(): return f{n + 1}()" for n in range(300))
        problem = self.read(f"{functions}\ndef f300(): 1 / 0\ndef view(): f0()\n")
        self.assertEqual((problem.frames[0].name, problem.frames[-1].name), ("failure_of", "f300"))
        self.assertIn(len(problem.frames), range(30, 100))
        self.assertEqual([f.skipped for f in problem.frames if f.skipped], [302 + 1 - len(problem.frames)])

    def test_hides_frames_that_ask_for_it(self) -> None:
        problem = self.read("""\
            def wrapper(function):
                __traceback_hide__ = True
                function()
            def view():
                wrapper(lambda: 1 / 0)
            """)
        self.assertEqual(
            [frame.name for frame in problem.frames[-2:]],
            ["view", "view.<locals>.<lambda>"][-2:] if sys.version_info >= (3, 11) else ["view", "<lambda>"],
        )

    def test_distinguishes_the_application_from_libraries(self) -> None:
        problem = self.read("import json\ndef view():\n    json.loads('{')\n")
        kinds = [frame.app for frame in problem.frames if "views.py" in frame.filename or "json" in frame.filename]
        self.assertEqual(kinds[0], True)
        self.assertFalse(any(kinds[1:]))

    def test_reads_all_frames_of_the_application_and_no_others(self) -> None:
        problem = self.read("""\
            import json
            def parse(text):
                json.loads(text)
            def view():
                text = '{'
                parse(text)
            """)
        read = {frame.name: values(frame) for frame in problem.frames if frame.variables}
        del read["failure_of"]  # of this very file
        self.assertEqual(read, {"view": {"text": "'{'"}, "parse": {"text": "'{'"}})

    def test_values_of_the_failing_line_come_first_whatever_holds_them(self) -> None:
        problem = self.read("""\
            RATES = {'de': 19}
            class Slots:
                __slots__ = ('country',)
            class Order:
                def __init__(self):
                    self.total, self.rows, self.where = 5, [{'price': 3}], Slots()
                    self.where.country = 'de'
                @property
                def zero(self): return 0
                def price(self, unused, row):
                    spare, key = 1, 'price'
                    return (self.total + self.rows[0]['price'] + row[key] + RATES[self.where.country]) / self.zero
            def view():
                Order().price(1, {'price': 4})
            """)
        frame = problem.frames[-1]
        used = {v.name: v.value for v in frame.variables if v.used}
        for name, value in {
            "self.total": "5", "self.rows[0]['price']": "3", "row": "{'price': 4}", "row[key]": "4", "key": "'price'",
            "RATES": "{'de': 19}", "self.where.country": "'de'", "self.zero": "0",
        }.items():  # fmt: skip
            self.assertEqual(used[name], value)
        self.assertEqual([v.name for v in frame.variables if not v.used], ["unused", "spare"])

    @unittest.skipUnless(hasattr((lambda: 0).__code__, "co_positions"), "needs positions of expressions")
    def test_values_of_the_failing_expression_come_before_others_of_its_line(self) -> None:
        frame = self.read("""\
            def view():
                for number in (1, 0):
                    result = len(str(number)) + 1 / number
            """).frames[-1]
        self.assertEqual([v.name for v in frame.variables if v.used], ["number", "result"])
        frame = self.read("""\
            class Order:
                price, rows = 3, [0]
                def total(self, count):
                    return self.price * count / self.rows[0]
            def view(): Order().total(2)
            """).frames[-1]
        used = ["self.price", "count", "self.rows[0]", "self", "self.rows"]
        self.assertEqual([v.name for v in frame.variables if v.used], used)

    def test_looking_at_a_key_adds_none_to_a_dictionary_with_defaults(self) -> None:
        error = self.crash("""\
            import collections
            def view():
                counts, name, pair = collections.defaultdict(list, {'b': 2}), 'c', ('d', 1)
                return 1 / 0, counts['a'], counts['b'], counts[name], counts[pair]
            """)
        for _ in range(2):
            shown = values(devserve.read_report(error).problems[-1].frames[-1])
            self.assertEqual((shown["counts"], shown["counts['b']"]), ("defaultdict({'b': 2})", "2"))
            self.assertFalse({"counts['a']", "counts[name]", "counts[pair]"} & shown.keys())

    def test_what_failed_is_not_tried_again(self) -> None:
        frame = self.read("""\
            class Order:
                tries = 0
                @property
                def total(self):
                    Order.tries += 1
                    raise LookupError(Order.tries)
            def view():
                order = Order()
                return order.total + 1
            """).frames[-2]
        if sys.version_info >= (3, 11):
            self.assertEqual([v.name for v in frame.variables], ["order"])
        self.assertNotIn("order.total", [v.name for v in frame.variables])

    def test_names_in_strings_and_comments_are_no_expressions_but_those_of_f_strings_are(self) -> None:
        def found(line: str, is_template: bool = False) -> list[str]:
            return [text for _, _, text in devserve.expressions_in(line, is_template)]

        self.assertEqual(found("a = 'b' + f'{c.d} e'  # f"), ["a", "c", "c.d"])
        self.assertEqual(found("return f(x).y + 'z'.join(q)[0]"), ["f", "x", "q"])
        self.assertEqual(found("{{ user.name }} 'x.y'", True), ["user", "user.name", "x", "x.y"])
        self.assertEqual(found('row["a"][k].b'), ["row", 'row["a"]', "k", 'row["a"][k]', 'row["a"][k].b'])

    def test_values_are_read_in_the_context_of_the_request(self) -> None:
        import contextvars

        variable = contextvars.ContextVar("variable", default="outside")
        context = contextvars.copy_context()
        context.run(variable.set, "inside")

        class Proxy:
            def __getattr__(self, name: str) -> str:
                return variable.get() + name

        def view() -> None:
            proxy = Proxy()
            raise ValueError(proxy.path)

        problem = devserve.read_report(failure_of(view), context=context).problems[-1]
        self.assertEqual(values(problem.frames[-1])["proxy.path"], "'insidepath'")

    def test_members_of_a_value_are_found_by_its_path(self) -> None:
        error = self.crash("""\
            class Slots:
                __slots__ = ('a', 'unset')
            class Order:
                def __init__(self):
                    self.rows, self.token, self.slots = [{'price': 3}, (1, 2)], 'x1', Slots()
                    self.slots.a = 'A'
                @property
                def total(self): raise SystemExit
            def view():
                order = Order()
                return order.missing, order.rows, order.total, order.token, order.rows[0]
            """)
        position = devserve._positions_of(error, None)[-1]

        def shown(*path: Any) -> dict[str, str]:
            return {v.name: v.value for v in devserve.members_at(position, path)}

        self.assertEqual(list(shown("order")), ["rows", "token", "slots"])
        self.assertEqual(shown("order")["token"], devserve._MASK)
        self.assertEqual(shown("order.rows"), {"0": "{'price': 3}", "1": "(1, 2)"})
        self.assertEqual(shown("order", 0, 0), {"price": "3"})
        self.assertEqual(shown("order", 2), {"a": "'A'"})
        for path in (("nothing",), ("order", 9), ("order", "x"), ("order.total",), ("order", 1), ("order.token",)):
            with self.assertRaises(LookupError):
                shown(*path)
        for other in ("order.slots", "order.rows[1]", "Order", "Order.__init__", "len", "order.__class__", "order "):
            with self.subTest(other), self.assertRaisesRegex(LookupError, "does not show it"):
                shown(other)

    def test_only_what_has_members_opens(self) -> None:
        frame = self.read("""\
            class Empty: pass
            def view():
                text, number, empty, rows, nobody = 'x', 1, [], [1], Empty()
                nobody2 = Empty(); nobody2.a = 1
                1 / 0
            """).frames[-1]
        self.assertEqual([v.name for v in frame.variables if v.opens], ["rows", "nobody2"])

    def test_distinguishes_arguments_from_other_variables(self) -> None:
        frame = self.read("""\
            def called(a, /, b, *rest, c=3, **more):
                local = 1
                1 / 0
            def view():
                called(1, 2, 5, d=4)
            """).frames[-1]
        self.assertEqual({v.name for v in frame.variables if v.argument}, {"a", "b", "rest", "c", "more"})
        self.assertEqual([v.name for v in frame.variables if not v.argument], ["local"])

    def test_lists_of_a_module_only_what_it_holds(self) -> None:
        error = failure_of(self.module, "import os\nclass K: pass\ndef f(): pass\nvalue = 3\n1 / 0\n")
        names = [variable.name for variable in devserve.read_report(error).problems[-1].frames[-1].variables]
        self.assertEqual(names, ["value"])

    def test_lists_of_a_function_no_modules_that_it_imports(self) -> None:
        frame = self.read("def view():\n    import json, os\n    loads = json.loads\n    1 / 0\n").frames[-1]
        self.assertEqual([variable.name for variable in frame.variables], ["loads"])

    def test_keeps_every_listed_frame(self) -> None:
        kept: list[devserve.FramePosition] = []

        def keep(place: devserve.FramePosition) -> str:
            kept.append(place)
            return f"id{len(kept)}"

        problem = devserve.read_report(self.crash("def view():\n    1 / 0\n"), None, keep).problems[-1]
        self.assertEqual([frame.id for frame in problem.frames], [f"id{n + 1}" for n in range(len(kept))])
        self.assertEqual(kept[-1].frame.f_code.co_name, "view")

    def test_shows_no_frames_of_devserve_but_those_of_its_own_errors(self) -> None:
        def frames(error: BaseException) -> list[str]:
            broken = failure_of(devserve.BrokenApp(error))
            broken.__traceback__ = broken.__traceback__ and broken.__traceback__.tb_next  # without the test's own
            return [frame.kind for frame in devserve.read_report(broken).problems[-1].frames]

        path = self.write("half_typed.py", "def view(:\n")
        self.assertEqual(frames(SyntaxError("invalid syntax", (str(path), 1, 10, "def view(:\n"))), ["syntax"])
        self.assertEqual(frames(devserve.DevserveError("no 'app' in 'views'; did you mean 'application'?")), [])
        self.assertEqual(frames(RuntimeError("a bug")), ["python"])


class ReadingHostileObjects(Reading):
    """One bad object costs what would have been shown of it, and nothing else."""

    def test_survives_properties_in_the_place_of_what_the_interpreter_keeps(self) -> None:
        def refuse(self: object) -> None:
            raise RuntimeError("a property")

        for name in (
            "args",
            "__cause__",
            "__context__",
            "__suppress_context__",
            "__notes__",
            "__dict__",
            "exceptions",
        ):
            with self.subTest(name):
                group: Any = type("BaseExceptionGroup", (Exception,), {})
                error = type("Odd", (group,), {name: property(refuse)})("the message")
                problem = devserve.read_report(error).problems[-1]
                self.assertTrue(problem.type.endswith("Odd"))
                self.assertEqual(problem.message, "the message")

    def test_survives_arguments_and_names_that_are_no_text(self) -> None:
        class Hangs:
            def __str__(self) -> str:
                return str(end.wait())

        class Raises:
            def __str__(self) -> str:
                raise RuntimeError("no text")

        end = threading.Event()
        self.addCleanup(end.set)
        for argument in (Hangs(), Raises()):
            for kind in (TypeError, AttributeError, NameError, KeyError):
                with self.subTest(kind=kind, argument=type(argument)):

                    def view(kind: Any = kind, argument: Any = argument) -> None:
                        raise kind(argument)

                    problem = devserve.read_report(failure_of(view)).problems[-1]
                    self.assertEqual((problem.type, problem.hint, len(problem.frames)), (kind.__name__, "", 2))

        odd: Any = ["no", "name"]
        self.assertEqual(devserve.read_report(ModuleNotFoundError("x", name=odd)).problems[-1].hint, "")

    def test_survives_a_mapping_of_variables_that_is_no_dictionary(self) -> None:
        class Endless:
            def __getitem__(self, name: object) -> int:
                return 0

        class Lost:
            def __getitem__(self, name: object) -> int:
                raise KeyError(name)

        for mapping in (Endless(), Lost()):
            for code in ("1 / 0", "undefined.name", "print['key']", "len(1, 2)"):
                with self.subTest(code=code, mapping=type(mapping)):
                    error = failure_of(lambda c=code, m=mapping: eval(c, {}, m))
                    frame = devserve.read_report(error).problems[-1].frames[-1]
                    self.assertEqual((frame.filename, frame.variables), ("<string>", ()))
                    shelf = devserve.CrashStore()
                    id = shelf.add(devserve.Crash()).keep(devserve._positions_of(error, None)[-1])
                    self.assertIn("__builtins__", shelf.console(id).namespace)

    def test_survives_objects_with_an_odd_dict(self) -> None:
        class Odd:
            __dict__ = "abc"  # type: ignore[assignment]

            def view(self) -> None:
                undefined_name  # type: ignore[name-defined]  # noqa: B018, F821

        problem = devserve.read_report(failure_of(Odd().view)).problems[-1]
        self.assertEqual((problem.hint, problem.frames[-1].variables[0].name), ("", "self"))

    def test_reports_where_a_frame_was_that_cannot_be_read(self) -> None:
        error = failure_of(lambda: exec("1 / 0"))
        with mock.patch.object(devserve, "_qualified_name", side_effect=RuntimeError):
            frame = devserve.read_report(error).problems[-1].frames[-1]
        self.assertEqual((frame.filename, frame.lineno, frame.missing), ("<string>", 1, "The frame cannot be read."))

    def test_seeks_a_hint_for_a_short_time_only(self) -> None:
        end = threading.Event()
        self.addCleanup(end.set)
        with mock.patch.object(devserve, "_names_meant", side_effect=lambda *_: end.wait()):
            problem = returning(devserve.read_report, failure_of(lambda: {"kez": 1}["key"])).problems[-1]
        self.assertEqual(problem.hint, "")


class ReadingSyntaxErrors(Reading):
    def syntax(self, error: BaseException) -> devserve.FrameView:
        frame = devserve.read_report(error).problems[-1].frames[-1]
        self.assertEqual(frame.kind, "syntax")
        return frame

    def test_points_at_the_place_in_the_file(self) -> None:
        path = self.write("broken.py", "fine = 1\nbroken = = 2\n")
        frame = self.syntax(failure_of(lambda: compile(path.read_text(), str(path), "exec")))
        self.assertEqual((frame.filename, frame.lineno, frame.app), (str(path), 2, True))
        self.assertEqual([line.text for line in frame.source], ["fine = 1", "broken = = 2"])
        self.assertEqual([(mark.number, mark.start) for mark in frame.marks], [(2, 9)])

    def test_shows_the_text_that_it_carries_when_there_is_no_file(self) -> None:
        frame = self.syntax(failure_of(lambda: compile("x = 1 +", "<string>", "exec")))
        self.assertEqual([line.text for line in frame.source], ["x = 1 +"])
        self.assertEqual(len(frame.marks), 1)

    def marked(self, source: str, error: SyntaxError) -> list[str]:
        """Return what is marked in the file of `source`, of which `error` tells."""
        error.filename = str(self.write("broken.py", source))
        frame = self.syntax(error)
        texts = {line.number: line.text for line in frame.source}
        return [texts[mark.number][mark.start : mark.end] for mark in frame.marks]

    def test_marks_the_place_behind_characters_that_are_shown_as_escapes(self) -> None:
        for line, offset, marked in (("x =\xa01", 4, r"\xa0"), ("s = '\u3000\u3000' = 1", 10, "=")):
            with self.subTest(line):
                error = SyntaxError("invalid", ("", 1, offset, line + "\n"))
                self.assertEqual(self.marked(line + "\n", error), [marked])

    def test_marks_nothing_when_the_error_is_about_another_text_than_the_line(self) -> None:
        for text in ("(1 + )\n", "x = 1 + + 2"):
            self.assertEqual(self.marked("x = f'{1 + }'\n", SyntaxError("invalid", ("", 1, 6, text))), [])

    def test_shows_the_head_of_a_file_whose_encoding_nobody_knows(self) -> None:
        path = self.write("broken.py", "# coding: nonsense\nx = 1\n")
        frame = self.syntax(failure_of(lambda: compile(path.read_bytes(), str(path), "exec")))
        self.assertEqual((frame.lineno, frame.source[0].text), (1, "# coding: nonsense"))

    def test_says_when_there_is_neither_file_nor_text(self) -> None:
        frame = self.syntax(SyntaxError("invalid", (str(self.folder / "gone.py"), 3, 1, None)))
        self.assertEqual((frame.source, frame.missing), ((), "The file is not there."))

    def test_does_without_the_place_in_the_message(self) -> None:
        error = failure_of(lambda: compile("x = = 1", "<string>", "exec"))
        self.assertNotIn("line 1", devserve.read_report(error).problems[-1].message)

    def test_survives_attributes_that_make_no_sense(self) -> None:
        for details in [
            ("f", 10**9, 5, "x"),
            ("f", -3, -5, "x"),
            ("f", 1, 10**9, "x"),
            (None, None, None, None),
            (3, "x", "y", 4),
            ("\x00", 1, 1, "x"),
            ("f", 1, 1, HOSTILE_TEXT),
        ]:
            with self.subTest(details):
                error = SyntaxError("m", details)  # type: ignore[arg-type]
                self.assertTrue(devserve.read_report(error).problems)


class ReadingHints(Reading):
    def setUp(self) -> None:
        super().setUp()
        patient = mock.patch.object(devserve._ReportBuilder, "seconds", lambda builder, most=0.0: DEADLINE)
        patient.start()  # a machine may be too busy for the tenth of a second that a hint has
        self.addCleanup(patient.stop)

    def hint(self, body: str) -> str:
        return self.read("def view():\n" + textwrap.indent(textwrap.dedent(body), "    ")).hint

    def test_suggests_names(self) -> None:
        self.assertEqual(self.hint("customer = 1\ncustomr"), "Did you mean: 'customer'?")
        self.assertEqual(self.hint("pront(1)"), "Did you mean: 'print'?")
        self.assertEqual(self.hint("completely_different_thing"), "")

    def test_suggests_an_import(self) -> None:
        self.assertEqual(self.hint("json.loads"), "Did you forget to import 'json'?")
        self.assertNotIn("tabnanny", sys.modules)
        if sys.version_info >= (3, 10):  # which knows the modules that nobody has imported
            self.assertEqual(self.hint("tabnanny.check"), "Did you forget to import 'tabnanny'?")
            self.assertEqual(self.hint("import tabnany"), "Did you mean: 'tabnanny'?")

    def test_trios_words_for_another_loop_name_trio(self) -> None:
        bad_yield = "Task got bad yield: <class 'trio._core._traps.CancelShieldedCheckpoint'>"
        for text in (bad_yield, "must be called from async context"):
            self.assertIn("Trio's event loop", self.hint(f"raise RuntimeError({text!r})"))
        self.assertEqual(self.hint("raise RuntimeError('trio')"), "")

    def test_suggests_an_attribute_of_self(self) -> None:
        source = "class K:\n    def __init__(self): self.total = 1\n    def go(self): total\ndef view(): K().go()\n"
        self.assertEqual(self.read(source).hint, "Did you mean: 'self.total'?")

    def test_suggests_attributes_without_running_a_property(self) -> None:
        problem = self.read("""\
            class Customer:
                address = 1
                @property
                def adress_book(self): raise SystemExit
                def __dir__(self): raise SystemExit
            def view():
                customer = Customer()
                customer.addres
            """)
        self.assertEqual(problem.hint, "Did you mean: 'address'?")

    def test_suggests_what_a_module_has(self) -> None:
        self.assertEqual(self.hint("from os import pathh"), "Did you mean: 'path'?")
        self.assertEqual(self.hint("import jsonn"), "Did you mean: 'json'?")

    def test_suggests_a_key_of_the_dictionary_in_the_failing_line(self) -> None:
        self.assertEqual(
            self.hint("settings = {'debug': 1}\nother = {'debugs': 1}\nsettings['debg']"), "Did you mean: 'debug'?"
        )
        self.assertEqual(self.hint("import os\nos.environ['DEVSERVE_NO_SUCH']"), "")
        with_environ = "import os\nos.environ['HOMEE_OF_TEST'] = 'x'\nos.environ['HOMEE_OF_TES']"
        self.addCleanup(os.environ.pop, "HOMEE_OF_TEST", None)
        self.assertEqual(self.hint(with_environ), "Did you mean: 'HOMEE_OF_TEST'?")
        frame = """
            class Frame:
                def keys(self): return ["price", "count"]
                def __getitem__(self, key): raise KeyError(key)
            frame = Frame()
            frame["prize"]
            """
        self.assertEqual(self.hint(frame), "Did you mean: 'price'?")

    def test_shows_the_signature_beside_a_wrong_call(self) -> None:
        source = "class S:\n    def sell(self, item, *, price=1): pass\ndef view():\n    s = S()\n    s.sell()\n"
        self.assertRegex(self.read(source).hint, r"^It takes \w*\.?sell\(self, item, \*, price=1\)\.$")
        source = "class Shop:\n    def __init__(self, name): pass\ndef view():\n    Shop()\n"
        self.assertIn("__init__(self, name)", self.read(source).hint)
        source = "def connect(host, password='hunter2', user='joe'): pass\ndef view():\n    connect()\n"
        self.assertRegex(self.read(source).hint, r"^It takes connect\(host, password=[^\w]+, user='joe'\)\.$")
        self.assertEqual(self.read("def view():\n    'a' + 1\n").hint, "")

    def test_survives_a_default_whose_repr_raises(self) -> None:
        source = "class B:\n    def __repr__(self): 1 / 0\ndef f(a, b=B()): pass\ndef view():\n    f()\n"
        self.assertIn("ZeroDivisionError", self.read(source).hint)


class ReadingSources(Reading):
    def test_says_why_there_is_no_source(self) -> None:
        frames = devserve.read_report(failure_of(lambda: exec("1 / 0"))).problems[-1].frames
        self.assertEqual((frames[-1].source, frames[-1].filename), ((), "<string>"))
        self.assertIn("exec", frames[-1].missing)
        error = self.crash("def view():\n    1 / 0\n")
        (self.folder / "views.py").unlink()
        frame = devserve.read_report(error).problems[-1].frames[-1]
        self.assertEqual((frame.source, frame.missing), ((), "The file is not there."))

    def test_shows_no_source_that_was_saved_after_the_import_and_has_other_lines(self) -> None:
        error = self.crash("import functools\n@functools.lru_cache(None)\ndef view(): 1 / 0\n")
        self.assertTrue(devserve.read_report(error).problems[-1].frames[-1].source)
        self.write("views.py", "import functools\nimport json\n@functools.lru_cache(None)\ndef view(): 1 / 0\n")
        frame = devserve.read_report(error).problems[-1].frames[-1]
        self.assertEqual((frame.source, frame.missing), ((), "The file has changed since it was loaded."))

    def test_says_when_the_file_has_become_shorter(self) -> None:
        error = self.crash("\n\n\n\ndef view():\n    1 / 0\n")
        self.write("views.py", "x = 1")
        self.assertIn("changed", devserve.read_report(error).problems[-1].frames[-1].missing)

    def test_reads_the_encoding_that_a_file_declares(self) -> None:
        path = self.folder / "latin.py"
        path.write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
        self.assertEqual(devserve._read_source(str(path))[0][1], "name = 'é'")
        path.write_bytes(b"\xef\xbb\xbfname = '\xc3\xa9'\r\nb = 1\rc = 2")
        self.assertEqual(devserve._read_source(str(path))[0], ["name = 'é'", "b = 1", "c = 2"])

    def test_takes_a_declaration_of_line_one_or_two_where_the_interpreter_does(self) -> None:
        for head, encoding in {
            "# coding: latin-1\n": "latin-1",
            "\n# coding: latin-1\n": "latin-1",
            "#!/usr/bin/python\r\n# vim: set fileencoding=latin-1 :\r\n": "latin-1",
            "x = 1\n# coding: latin-1\n": "utf-8",
            "# coding: utf-8\n# this encoding: latin-1 is gone\n": "utf-8",
            "\n\n# coding: latin-1\n": "utf-8",
        }.items():
            with self.subTest(head):
                path = self.folder / f"{len(head)}.py"
                path.write_bytes(f"{head}é".encode(encoding))
                self.assertEqual(devserve._read_source(str(path))[0][-1], "é")

    def test_shows_what_no_codec_takes_as_escapes(self) -> None:
        for data in (b"x = '\xe9\xff'\n", b"# coding: no-such-codec\nx = '\xe9\xff'\n"):
            path = self.folder / "odd.py"
            path.write_bytes(data)
            with self.subTest(data):
                self.assertIn(r"x = '\xe9\xff'", devserve._read_source(str(path))[0])

    def test_opens_no_device_and_no_pipe(self) -> None:
        self.assertEqual(devserve._read_source("/dev/zero")[0], [])
        self.assertEqual(devserve._read_source(str(self.folder))[0], [])
        self.assertEqual(devserve._read_source("a\x00b")[0], [])

    def test_cuts_a_line_that_is_too_long(self) -> None:
        frame = self.read(f"def view():\n    x = '{'y' * 100_000}'; 1 / 0\n").frames[-1]
        self.assertLess(max(len(line.text) for line in frame.source), 1000)


class ReadingValues(unittest.TestCase):
    def test_shows_ordinary_values_as_repr_does(self) -> None:
        for value in [
            1,
            1.5,
            "a'b",
            b"x",
            None,
            True,
            [1, [2]],
            (1,),
            (),
            {},
            {"a": {1}},
            set(),
            frozenset({1}),
            1j,
            decimal.Decimal("1.5"),
            range(3),
            pathlib.PurePosixPath("a"),
            "é\n\t",
        ]:
            with self.subTest(value):
                self.assertEqual(devserve._safe_repr(value), "{}" if value == set() else repr(value))

    def test_shows_the_attributes_of_the_applications_objects_that_have_no_repr(self) -> None:
        class Author:
            __slots__ = ("name",)

            def __init__(self, name: str) -> None:
                self.name = name

        class Book:
            def __init__(self) -> None:
                self._state, self.title, self.pages, self.password = object(), "T", [1, {"a": 2}], SECRET
                self.author = Author("Ann")

        with mock.patch.object(devserve, "is_app_file", lambda path: path == __file__):
            shown, listed = devserve._safe_repr(Book()), devserve._safe_repr([Book().author])
            masked = devserve._safe_repr(Book(), name="secret")
        self.assertRegex(
            shown,
            r"^<\S*Book object: title='T', pages=\[1, \{'a': 2\}\], password=•+,"
            r" author=<\S*Author object at 0x\w+>, _state=<object object at 0x\w+>>$",
        )
        self.assertRegex(listed, r"^\[<\S*Author object: name='Ann'>\]$")
        self.assertRegex(masked, r"^<\S*Book object at 0x\w+>$")
        self.assertRegex(devserve._safe_repr(threading.Event()), "^<threading.Event ")

    def test_reports_what_became_of_a_repr_that_fails(self) -> None:
        class Raises:
            def __repr__(self) -> str:
                raise ValueError("no repr today")

        class Exits:
            def __repr__(self) -> str:
                raise SystemExit

        class Wrong:
            def __repr__(self) -> str:
                return 3  # type: ignore[return-value]

        class Worse(Exception):
            def __str__(self) -> str:
                raise self

        class Worst:
            def __repr__(self) -> str:
                raise Worse

        self.assertIn("ValueError: no repr today", devserve._safe_repr(Raises()))
        self.assertIn("SystemExit", devserve._safe_repr(Exits()))
        self.assertIn("TypeError", devserve._safe_repr(Wrong()))
        self.assertIn("Worse", devserve._safe_repr(Worst()))
        self.assertTrue(devserve._safe_repr([1, Raises(), 2]).startswith("[1, (reading it raised"))

    def test_leaves_a_hanging_repr_behind(self) -> None:
        release = threading.Event()

        class Hangs:
            def __repr__(self) -> str:
                release.wait()
                return "done"

        self.addCleanup(release.set)
        self.assertIn("takes longer", returning(lambda: devserve._safe_repr(Hangs(), seconds=0.05)))

        def view(argument: object) -> None:
            raise LookupError(argument is None)

        variable = devserve.read_report(failure_of(view, Hangs())).problems[-1].frames[-1].variables[0]
        self.assertIn("takes longer", variable.value)
        self.assertEqual((variable.name, variable.used, variable.argument), ("argument", True, True))

    def test_runs_a_bounded_number_of_helpers(self) -> None:
        release = threading.Event()

        class Hangs:
            def __repr__(self) -> str:
                release.wait(DEADLINE)
                return "done"

        self.addCleanup(lambda: eventually(lambda: not helpers(), "the helpers end"))
        self.addCleanup(release.set)

        def helpers() -> list[threading.Thread]:
            return [thread for thread in threading.enumerate() if isinstance(thread, devserve.ForeignCalls)]

        for _ in range(3 * devserve._STUCK_LIMIT):
            devserve._safe_repr(Hangs(), seconds=0.001)
        self.assertLessEqual(len(helpers()), devserve._STUCK_LIMIT)
        self.assertIn("hang", devserve._safe_repr(object()))

        def view() -> None:
            number, text, other = 1, "plain", Hangs()
            if number and text and other is not None:
                raise LookupError("an ordinary message")

        problem = devserve.read_report(failure_of(view)).problems[-1]
        shown = values(problem.frames[-1])
        self.assertEqual(problem.message, "an ordinary message")
        self.assertEqual((shown["number"], shown["text"]), ("1", "'plain'"))
        self.assertIn("hang", str(shown["other"]))

    def test_looks_at_no_more_than_it_shows(self) -> None:
        class Counted:
            count = 0

            def __repr__(self) -> str:
                Counted.count += 1
                return "x" * 10

        text = devserve._safe_repr([Counted() for _ in range(100_000)])
        self.assertLess(Counted.count, 1000)
        self.assertIn("100,000 items", text)
        self.assertLess(len(devserve._safe_repr("x" * 50_000_000)), 4000)
        self.assertLess(len(devserve._safe_repr(dict.fromkeys(range(10_000), "x" * 1000))), 4000)

    def test_shows_the_last_key_before_the_limit_whole(self) -> None:
        text = devserve._safe_repr({"x" * 30: 1, "HTTP_ACCEPT_LANGUAGE": 2, "HTTP_HOST": 3}, limit=50)
        self.assertEqual(text, f"{{'{'x' * 30}': 1, 'HTTP_ACCEPT_LANGUAGE': 2, … (3 items)}}")

    def test_bounds_a_repr_of_50_megabytes_and_an_enormous_number(self) -> None:
        class Big:
            def __repr__(self) -> str:
                return "x" * 50_000_000

        self.assertLess(len(devserve._safe_repr(Big(), seconds=5.0)), 4000)
        self.assertIn("bits", devserve._safe_repr(1 << 10_000_000))

    def test_ends_in_containers_that_hold_themselves(self) -> None:
        value: list[Any] = []
        value.append(value)
        mapping: dict[str, Any] = {"self": value}
        mapping["again"] = mapping
        self.assertLess(len(devserve._safe_repr(value) + devserve._safe_repr(mapping)), 5000)

    def test_shows_what_cannot_be_encoded_as_escapes(self) -> None:
        class Odd:
            def __repr__(self) -> str:
                return HOSTILE_TEXT

        text = devserve._safe_repr([HOSTILE_TEXT, Odd()])
        text.encode("utf-8")
        self.assertFalse({"\x00", "\ud800", "\x1b", "\u202e"} & set(text))

    def test_is_not_led_astray_by_a_proxy_or_a_metaclass(self) -> None:
        class Meta(type):
            def __getattribute__(cls, name: str) -> Any:
                raise SystemExit(name)

        class Strange(metaclass=Meta):
            pass

        class Proxy:
            __class__ = property(lambda self: sys.exit())

        self.assertEqual(devserve.type_name(Strange).rpartition(".")[2], "Strange")
        for value in (Strange(), Proxy(), Strange):
            self.assertIsInstance(devserve._safe_repr(value), str)

        def view() -> None:
            strange, proxy = Strange(), Proxy()
            print(strange.x, proxy)  # type: ignore[attr-defined]

        self.assertTrue(devserve.read_report(failure_of(view)).problems)

    def test_runs_a_repr_in_the_context_of_the_request(self) -> None:
        import contextvars

        variable = contextvars.ContextVar("variable", default="outside")

        class Proxy:
            def __repr__(self) -> str:
                return variable.get()

        token = variable.set("inside")
        self.addCleanup(variable.reset, token)
        self.assertEqual(devserve._safe_repr(Proxy()), "inside")

    def test_survives_a_message_that_is_hostile(self) -> None:
        class Silent(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no message today")

        class Hanging(Exception):
            def __str__(self) -> str:
                time.sleep(1.5)
                return ""

        self.assertIn("no message today", devserve.read_report(Silent()).problems[0].message)
        self.assertIn("takes longer", devserve.read_report(Hanging()).problems[0].message)
        problem = devserve.read_report(ValueError(HOSTILE_TEXT + "x" * 1_000_000)).problems[0]
        self.assertLess(len(problem.message), 12_000)
        problem.message.encode("utf-8")


class ReadingSecrets(Reading):
    def test_knows_secrets_by_the_words_of_their_names(self) -> None:
        secrets = """password PASSWD userPassword dbpassword password_hash api_key apiKey SECRET_KEY access_token
            csrftoken csrfmiddlewaretoken HTTP_AUTHORIZATION HTTP_COOKIE Cookie X-Api-Key session sessionid session_id
            signature credentials private_key AWS_SECRET_ACCESS_KEY tokens next_token clientSecret auth pwd pin otp
            devserve_5000 encryption_key azure_subscription_key Ocp-Apim-Subscription-Key signing_key FERNET_KEY
            STRIPE_KEY openai_key ssh_key AccountKey auth_header"""
        for name in secrets.split():
            with self.subTest(name):
                self.assertTrue(devserve._is_secret(name))
        plain = """devserve devserve_x monkey keyboard key keys primary_key sort_key cache_key foreignKey public_key
            tokenizer token_count token_type pass_rate password_validators secretary author passenger compass path x
            spinning HTTP_HOST api_version session_cookie_name SESSION_COOKIE_AGE private_key_path AUTH_USER_MODEL
            SESSION_ENGINE auth_provider password_changed s3_key file_key env_key"""
        for name in ["", *plain.split()]:
            with self.subTest(name):
                self.assertFalse(devserve._is_secret(name))

    def test_numbers_flags_and_what_is_inside_a_session_are_no_secrets(self) -> None:
        for name, value in {
            "max_tokens": 100,
            "token": True,
            "pass": 0.5,
            "pin": None,
            "session": {"user": 3},
        }.items():
            self.assertEqual(devserve._safe_repr(value, name=name), repr(value))
        self.assertEqual(
            devserve._safe_repr({"session": {"token": "x"}}), f"{{'session': {{'token': {devserve._MASK}}}}}"
        )
        self.assertEqual(devserve._safe_repr("abc", name="session"), devserve._MASK)

        class Model:
            def __repr__(self) -> str:
                return f"Model(max_tokens=100, token={SECRET}, password=12345)"

        shown = f"Model(max_tokens=100, token={devserve._MASK}, password={devserve._MASK})"
        self.assertEqual(devserve._safe_repr(Model()), shown)

        class Table:
            def __repr__(self) -> str:
                return "Table(Column('token', String()), session=<Session 3>, fields=['id', 'password', 'email'])"

        self.assertEqual(devserve._safe_repr(Table()), repr(Table()))

    def test_escapes_and_cuts_the_names_of_attributes(self) -> None:
        class Bunch:
            pass

        bunch = Bunch()
        vars(bunch).update({"\x1b]0;title\x07": 1, "a" * 10_000: 2})
        with mock.patch.object(devserve, "_is_app_class", lambda kind: True):
            shown = devserve._safe_repr(bunch)
        self.assertIn("\\x1b]0;title\\x07=1", shown)
        self.assertTrue(shown.isprintable())
        self.assertLess(len(shown), 1_000)

    def test_masks_values_wherever_they_are(self) -> None:
        class User:
            def __repr__(self) -> str:
                return f"User(name='n', password='{SECRET}', token={SECRET!r})"

        for value in [
            {"password": SECRET},
            {"a": [{"b": {"api_key": SECRET}}]},
            [("Authorization", SECRET)],
            {b"cookie": SECRET},
            ("token", SECRET),
            f"http://x/?a=1&token={SECRET}&b=2",
            User(),
            [User()],
            f"secret={SECRET}",
            f"host=h user=u password={SECRET}",
            f"host=h password='a {SECRET}' user=u",
            f"postgres://user:{SECRET}@host/name",
            f"redis://:{SECRET}@host:6379/0",
            f"amqp://user:a/{SECRET}@host",
            f"amqp://user:a@{SECRET}@host",
            f"Authorization: Bearer {SECRET}",
            f"'authorization': 'Basic {SECRET}'",
            f'{{"password": "{SECRET}", "n": [1,}}',
            f"user=u&password={SECRET}&x=1".encode(),
            bytearray(f'{{"token": "{SECRET}"'.encode()),
            {"DATABASE_URL": f"postgres://user:{SECRET}@host/name"},
            ["curl", "--password", SECRET, "http://x/"],
            f"mysql --user me --password {SECRET} -h db",
            f"mysql --password={SECRET}",
            f"mysqldump --verbose --password {SECRET} db",
            ["mysqldump", "--verbose", "--password", SECRET],
            f"Bearer {SECRET}",
            f"the header was Basic {base64.b64encode(SECRET.encode()).decode()}",
            f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----",
            f"-----BEGIN PRIVATE KEY-----{SECRET}",
            f"https://x/#access_token={SECRET}&state=1",
            f"https://{SECRET}{SECRET}@github.com/a/b",
            f"https://x/?sv=1&sig={SECRET}",
            f"user = u\npassword = {SECRET}9\n",
            f"UPDATE users SET password = '{SECRET}' WHERE id=1",
            f"Server=h; Password = {SECRET}9;",
            f"user: u\n  password: {SECRET}9\n",
            f"GET / HTTP/1.1\r\nX-Api-Key: {SECRET}9\r\n\r\n",
            f'{{"body": "{{\\"password\\": \\"{SECRET}\\"}}"}}',
            f'{{"user": {{"password": "{SECRET}"}}}}',
            f'{{"auth": {{"name": "me", "password": "{SECRET}"}}}}',
            f'{{"users": [{{"password": "{SECRET}"}}]}}',
            f'{{"passwords": ["none", "{SECRET}"]}}',
            f"{{'auth': ('me', '{SECRET}')}}",
            f'{{"name": "DB_PASSWORD", "value": "{SECRET}"}}',
            f"Command '['curl', '-u', 'me:{SECRET}']' returned non-zero exit status 22.",
            f"CREATE USER me IDENTIFIED BY '{SECRET}'",
            f"ALTER USER me WITH PASSWORD '{SECRET}'",
            f"<user><password>{SECRET}</password></user>",
            f"Incorrect key: sk-{SECRET}{SECRET}",
            f"Incorrect key: sk-proj-word-{SECRET}",
            f"$argon2id$v=19$m=65536,t=3,p=4${SECRET}${SECRET}",
            f"$2b$12${SECRET}{SECRET}",
            f"pbkdf2_sha256$600000${SECRET}${SECRET}=",
            f"scrypt:32768:8:1${SECRET}${SECRET}",
            f"Client(url='/x?token={SECRET}', dsn='host=h password={SECRET}')",
            urllib.parse.urlsplit(f"postgres://user:{SECRET}@host/name"),
            f"//registry.npmjs.org/:_authToken={SECRET}",
            f"mutation {{ login(user: 'me', password: '{SECRET}9') {{ id }} }}",
            f"user.password\n  Should be longer [type=string_too_short, input_value='{SECRET}', input_type=str]",
            ["-----BEGIN EC PRIVATE KEY-----\n", f"{SECRET}\n", f"{SECRET}\n", "-----END EC PRIVATE KEY-----\n"],
            f"Max retries exceeded with url: /bot123456789:AA{SECRET}{SECRET}/getMe",
            f"GOCSPX-{SECRET}{SECRET}",
            *(
                {name: SECRET}
                for name in "Passwort contraseña Senha mot_de_passe пароль パスワード DB_PSWD passkey".split()
            ),
        ]:
            with self.subTest(value):
                text = devserve._safe_repr(value)
                self.assertNotIn(SECRET, text)
                self.assertIn(devserve._MASK, text)
        self.assertEqual(devserve._safe_repr(SECRET, name="password"), devserve._MASK)
        self.assertEqual(devserve._safe_repr([SECRET], name="tokens"), devserve._MASK)

    def test_masks_what_a_subscript_or_a_member_names(self) -> None:
        error = self.crash(f"""\
            def view():
                headers, tokens = {{"X-Api-Key": "{SECRET}"}}, ["{SECRET}"]
                pair, command = ("password", "{SECRET}"), ["mysql", "--password", "{SECRET}"]
                return headers["X-Api-Key"] / tokens[0]
            """)
        shown = values(devserve.read_report(error).problems[-1].frames[-1])
        self.assertEqual(shown["tokens[0]"], devserve._MASK)
        self.assertEqual(shown['headers["X-Api-Key"]'], devserve._MASK)
        position = devserve._positions_of(error, None)[-1]
        for name in ("headers", "pair", "command"):
            self.assertEqual(devserve.members_at(position, [name])[-1].value, devserve._MASK)

    def test_leaves_alone_what_only_looks_like_a_secret(self) -> None:
        for text in (
            "http://localhost:5173/@vite/client",
            "http://[::1]:80/@x",
            "scrypt costs $20, and $2a is no hash",
            "https://user@host/path",
            "Authorization is missing",
            "a: b, c=d",
            "invalid token: '}'",
            "{'a': 'b'}",
            "12:30 x@y",
            "Bearer authentication is required",
            "Basic Authentication is required, or a basic understanding",
            "-----BEGIN CERTIFICATE-----MII",
            "--token-file x --output y",
            "max_tokens=100",
            "SELECT * FROM t WHERE token = %s AND password = ? AND pin = $1 AND token = t.token",
            "token: this field is required",
            "InvalidTokenError: Signature verification failed",
            "KeyError: 'token'",
            "<token>",
            "task-force-of-a-very-long-name",
            "<div class='sk-folding-cube-something-long sk-cube'>",
            "{'password': ['This field is required.'], 'token': [ErrorDetail('Not valid.', code='x')]}",
            '{"auth": {"type": "basic"}, "cookie": {"path": "/"}, "tokens": [',
            "AUTH_USER_MODEL = 'users.User1'",
            '{"name": "title", "value": "text"}',
            "docker run -u app:app python -u app:app",
        ):
            with self.subTest(text):
                self.assertEqual(devserve.mask_secrets(text), text)

    def test_masks_messages_notes_and_what_a_repr_says_of_itself(self) -> None:
        class Engine:
            def __repr__(self) -> str:
                return f"Engine(postgres://user:{SECRET}@host/name)"

        self.assertNotIn(SECRET, devserve._safe_repr(Engine()))
        for head in (
            "x" * (devserve._VALUE_LIMIT - 25),
            "y" * 50,
        ):  # the one is cut before the @ that tells the secret
            text = f"{head} postgres://user:{SECRET}@host/name" + "z" * 2000
            for value in (text, text.encode(), type("Foreign", (), {"__repr__": lambda self: text})()):
                shown = devserve._safe_repr(value)
                self.assertNotIn(SECRET[:6], shown)
                self.assertRegex(shown, r"… \([1-3],[0-9]{3} (in all|more characters)\)$")
        bad = ValueError("x" * (devserve.NAME_LIMIT - 25) + f" postgres://user:{SECRET}@host/name")
        self.assertNotIn(SECRET[:6], devserve._text_or_why(None, bad))
        error = ConnectionError(f"cannot connect: host=h password={SECRET}")
        error.__notes__ = [f"postgres://user:{SECRET}@host/name"]  # type: ignore[attr-defined]
        problem = devserve.read_report(error).problems[-1]
        self.assertEqual(problem.message, f"cannot connect: host=h password={devserve._MASK}")
        self.assertEqual(problem.notes, (f"postgres://user:{devserve._MASK}@host/name",))

    def test_masks_a_secret_of_several_lines_in_the_text_of_a_traceback(self) -> None:
        error = ValueError(f"bad: -----BEGIN PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END PRIVATE KEY-----\nthe end")
        text = devserve.read_report(error).text
        self.assertNotIn(SECRET, text)
        self.assertIn("the end", text)

    def test_what_masking_a_message_costs_is_bounded_and_nothing_past_that_is_shown(self) -> None:
        error = ValueError(f"password={'x=1' * 100_000} {SECRET} {'x=1 ' * 500_000}")
        with mock.patch.object(devserve, "_hide_value", side_effect=devserve._hide_value) as hide:
            report = devserve.read_report(error)
        self.assertLess(hide.call_count, 100_000)
        self.assertNotIn("x=1", report.problems[0].message)
        self.assertNotIn(SECRET, report.text)
        self.assertRegex(report.problems[0].message, r"\(2,2..,... more characters\)$")

    def test_shows_that_a_secret_is_missing(self) -> None:
        for value in (None, "", False):
            self.assertEqual(devserve._safe_repr(value, name="token"), repr(value))

    def test_masks_locals_headers_environ_and_forms(self) -> None:
        error = self.crash(
            f"""\
            def view(password='{SECRET}'):
                config = {{'db': {{'password': password}}}}
                1 / 0
            """.replace(f"'{SECRET}'", f"'{SECRET[:7]}' + '{SECRET[7:]}'")
        )
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/p",
            "QUERY_STRING": f"token={SECRET}&a=1",
            "HTTP_HOST": "h",
            "HTTP_COOKIE": SECRET,
            "HTTP_AUTHORIZATION": f"Bearer {SECRET}",
            "HTTP_REFERER": f"http://x/?key={SECRET}",
            "wsgi.url_scheme": "http",
            "myapp.secret": SECRET,
            "myapp.config": {"password": SECRET},
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
        }
        request = devserve.read_request(environ, f"name=n&password={SECRET}".encode())
        report = devserve.read_report(error, request)
        self.assertNotIn(SECRET, repr(report))
        self.assertEqual(request.form, (("name", "n"), ("password", devserve._MASK)))
        self.assertEqual(request.url, f"http://h/p?token={devserve._MASK}&a=1")
        for written in (devserve.write_text(report), devserve.write_markdown(report), devserve.write_json(report)):
            self.assertNotIn(SECRET, written)

    def test_reads_forms_of_each_kind(self) -> None:
        def form(kind: str, body: bytes) -> dict[str, str]:
            return dict(devserve.read_request({"CONTENT_TYPE": kind}, body).form)

        multipart = (
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nvalue\r\n'
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="x.png"\r\n'
            b"Content-Type: image/png\r\n\r\n\x89PNG\r\n--b--"
        )
        self.assertEqual(form("multipart/form-data; boundary=b", multipart), {"a": "value", "f": "(the file x.png)"})
        self.assertEqual(form("application/json", b'{"a": 1, "token": "t"}'), {"a": "1", "token": devserve._MASK})
        self.assertEqual(form("application/json", b"[1"), {"JSON": "'[1'"})
        broken = form("application/json", b'{"password": "hunter2", "n": [1,2,],}')
        self.assertNotIn("hunter2", str(broken))
        self.assertIn('"n": [1,2,]', broken["JSON"])
        self.assertEqual(form("multipart/form-data", multipart), {})
        self.assertEqual(form("text/plain", b"a=1"), {})


class ReadingForms(unittest.TestCase):
    def test_the_time_for_a_hostile_form_grows_with_its_size_and_no_faster(self) -> None:
        """Each looks, from every place in it, as if a part began there."""

        for piece in (b'a; name="b"\r\n', b'; name="', b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'):
            with self.subTest(piece):

                def read(size: int) -> list[Any]:
                    body = piece * (size // len(piece))
                    return list(devserve._form_fields("multipart/form-data; boundary=x", body))

                self.assertLess(growth(read, 2 * devserve._RECORDED_BODY), 32)
                self.assertLessEqual(len(read(devserve._RECORDED_BODY)), devserve._LIST_LIMIT)


class ReadingVersions(unittest.TestCase):
    def test_reports_only_versions_that_are_known(self) -> None:
        named = {
            "pyramid": types.ModuleType("pyramid"),
            "web": types.ModuleType("web"),
            "bottle": types.ModuleType("bottle"),
        }
        setattr(named["bottle"], "__version__", "0.99")  # noqa: B010
        with mock.patch.dict(sys.modules, named):
            sys.modules.pop("importlib.metadata", None)
            shown = dict(devserve._versions())
        self.assertEqual(shown["bottle"], "0.99")
        self.assertFalse({"pyramid", "web.py"} & shown.keys())


class ReadingTemplates(Reading):
    def template(self, error: BaseException) -> devserve.FrameView:
        found = [
            frame
            for problem in devserve.read_report(error).problems
            for frame in problem.frames
            if frame.kind == "template"
        ]
        self.assertTrue(found)
        return found[-1]

    @needs("jinja2")
    def test_shows_the_line_of_a_jinja2_template(self) -> None:
        self.write("page.html", "<ul>\n{% for item in items %}\n<li>{{ 1 / item }}</li>\n{% endfor %}\n")
        jinja2 = importlib.import_module("jinja2")
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(str(self.folder)))
        frame = self.template(failure_of(lambda: environment.get_template("page.html").render(items=[0])))
        self.assertEqual((frame.lineno, os.path.basename(frame.filename), frame.app), (3, "page.html", True))
        self.assertIn("<li>{{ 1 / item }}</li>", [line.text for line in frame.source])
        self.assertEqual(values(frame)["item"], "0")
        self.write("named.html", "{{ 1 / b }}")
        given = {"a": 1, "b": 0, "url_for": len, "_hidden": 2}
        frame = self.template(failure_of(lambda: environment.get_template("named.html").render(**given)))
        self.assertEqual(values(frame), {"b": "0", "a": "1"})
        self.assertEqual([variable.name for variable in frame.variables], ["b", "a"])
        self.assertIn('class="values"', devserve._write_frame(frame, opened=True))
        self.write("broken.html", "<p>\n{% if %}\n")
        frame = self.template(failure_of(lambda: environment.get_template("broken.html")))
        self.assertEqual(frame.lineno, 2)

    @needs("flask")
    def test_shows_the_line_of_a_template_that_flask_was_given_as_a_text(self) -> None:
        flask = importlib.import_module("flask")
        with flask.Flask("app").app_context():
            for text in ("<p>\n{{ 1 / x }}\n</p>", "<p>\n{% if %}\n</p>"):
                with self.subTest(text):
                    frame = self.template(failure_of(lambda text=text: flask.render_template_string(text, x=0)))
                    self.assertEqual([line.text for line in frame.source], text.split("\n"))
                    self.assertEqual((frame.lineno, frame.app), (2, True))

    @needs("jinja2")
    def test_shows_the_line_of_a_jinja2_macro_that_python_calls(self) -> None:
        path = self.write("macros.html", "\n{% macro price(x) %}\n<b>{{ 1 / x }}</b>\n{% endmacro %}\n")
        jinja2 = importlib.import_module("jinja2")
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(str(self.folder)))
        module = environment.get_template("macros.html").module
        frame = self.template(failure_of(lambda: module.price(0)))
        self.assertEqual((frame.lineno, frame.filename, frame.app, values(frame)), (3, str(path), True, {"x": "0"}))

    @needs("bottle")
    def test_shows_the_line_of_a_bottle_template_without_columns_of_other_code(self) -> None:
        self.write("page.tpl", "<ul>\n% for i in items:\n<li>{{i}}</li>\n% end\n</ul>\n<p>{{user.name}}</p>\n")
        bottle = importlib.import_module("bottle")
        template = bottle.SimpleTemplate(name="page", lookup=[str(self.folder)])
        frame = self.template(failure_of(lambda: template.render(user=None, items=[1])))
        self.assertEqual((frame.lineno, frame.app, frame.marks), (6, True, ()))
        self.assertEqual(values(frame)["user"], "None")
        self.assertTrue(frame.variables[0].used)

    @needs("chameleon")
    def test_shows_the_line_of_a_chameleon_template(self) -> None:
        path = self.write("page.pt", '<div>\n <p tal:repeat="i items">${i}</p>\n <b>${user.nmae}</b>\n</div>\n')
        chameleon = importlib.import_module("chameleon")
        user = types.SimpleNamespace(name="Ann")
        frame = self.template(failure_of(lambda: chameleon.PageTemplateFile(str(path)).render(items=[1], user=user)))
        self.assertEqual((frame.lineno, frame.filename, frame.app), (3, str(path), True))
        text = next(line.text for line in frame.source if line.number == 3)
        self.assertEqual([text[mark.start : mark.end] for mark in frame.marks], ["user.nmae"])
        self.assertEqual((values(frame)["user"], values(frame)["items"]), ("namespace(name='Ann')", "[1]"))

    @needs("mako")
    def test_shows_the_line_of_a_mako_template(self) -> None:
        path = self.write("page.mako", "<p>\n% for item in items:\n<b>${1 / item}</b>\n% endfor\n")
        lookup = importlib.import_module("mako.lookup").TemplateLookup([str(self.folder)])
        frame = self.template(failure_of(lambda: lookup.get_template("page.mako").render(items=[0])))
        self.assertEqual((frame.lineno, frame.filename), (3, str(path)))
        self.assertIn("<b>${1 / item}</b>", [line.text for line in frame.source])

    @needs("django")
    def test_shows_the_line_of_a_django_template(self) -> None:
        path = self.write("page.html", "<p>\n{% load nothing_like_it %}\n</p>\n")
        engine = importlib.import_module("django.template").Engine(dirs=[str(self.folder)], debug=True)
        frame = self.template(failure_of(lambda: engine.get_template("page.html")))
        self.assertEqual((frame.lineno, frame.filename), (2, str(path)))
        self.assertEqual([line.text for line in frame.source], ["<p>", "{% load nothing_like_it %}", "</p>"])
        self.assertEqual([(mark.start, mark.end) for mark in frame.marks], [(0, 26)])

    @needs("django")
    def test_shows_what_a_django_template_was_given(self) -> None:
        self.write(
            "page.html", "<p>{% widthratio price 'x' 100 1 2 %}{{ customer.name }}</p>\n{% cycle a.b %}{% x y %}"
        )
        template = importlib.import_module("django.template")
        library = template.Library()

        @library.simple_tag
        def fails(price: Any) -> None:
            raise ValueError(price)

        self.write("page.html", "<p>\n{% fails price %}\n{{ customer }}\n")
        engine = template.Engine(dirs=[str(self.folder)], debug=True)
        engine.template_builtins.append(library)
        context = template.Context({"price": 3, "customer": "Ann", "password": SECRET})
        frame = self.template(failure_of(lambda: engine.get_template("page.html").render(context)))
        self.assertEqual(frame.lineno, 2)
        self.assertEqual(values(frame), {"price": "3", "customer": "'Ann'", "password": devserve._MASK})
        self.assertEqual([v.name for v in frame.variables if v.used], ["price"])

    @needs("django")
    def test_reports_where_django_looked_for_a_template(self) -> None:
        engine = importlib.import_module("django.template").Engine(
            dirs=[str(self.folder / "a"), str(self.folder / "b")]
        )
        problem = devserve.read_report(failure_of(lambda: engine.get_template("shop/none.html"))).problems[-1]
        self.assertIn(str(self.folder / "b" / "shop" / "none.html"), problem.notes[0])

    @needs("django")
    def test_shows_the_line_of_a_django_template_without_a_file(self) -> None:
        engine = importlib.import_module("django.template").Engine(debug=True)
        for before in (0, 1, 30):
            with self.subTest(before):
                text = "plain\n" * before + "{% load nothing_like_it %}\nlast"
                frame = self.template(failure_of(lambda text=text: engine.from_string(text)))
                shown = {line.number: line.text for line in frame.source}
                self.assertEqual((frame.lineno, shown[before + 1]), (before + 1, "{% load nothing_like_it %}"))
                self.assertEqual([(mark.start, mark.end) for mark in frame.marks], [(0, 26)])


class ReadingCost(Reading):
    def test_of_a_thousand_frames_only_those_that_are_shown_are_looked_at(self) -> None:
        error = self.crash(
            "def down(n):\n    payload = list(range(n))\n    return down(n + 1)\ndef view():\n    down(0)\n"
        )
        with (
            mock.patch.object(devserve, "view_position", wraps=devserve.view_position) as views,
            mock.patch.object(devserve, "_describe", wraps=devserve._describe) as described,
        ):
            report = devserve.read_report(error)
        self.assertLess(views.call_count, 10)
        self.assertLess(described.call_count, 1_000)
        self.assertLess(len(repr(report)), 50_000)

    def test_where_everything_hangs_a_report_and_its_text_take_about_a_second(self) -> None:
        class Hangs(Exception):
            def __str__(self) -> str:
                return ""

        def view(number: int) -> None:
            first, second = Hangs(), Hangs()
            try:
                if number:
                    view(number - 1)
                raise TypeError(first, second)
            except Exception as error:
                raise Hangs(first) from error

        clock: Any = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now, strftime=time.strftime)

        def hang(jobs: dict[str, Any], seconds: float, context: Any = None) -> dict[str, Any]:
            clock.now += seconds if jobs else 0
            return dict.fromkeys(jobs, (None, devserve.TooLate("it hangs")))

        error = failure_of(view, 10)
        with mock.patch.object(devserve, "time", clock), mock.patch.object(devserve, "call_each_bounded", hang):
            text = devserve.traceback_text(error)
            report = devserve.read_report(error, text=text)
        self.assertLess(clock.now - 100.0, 1.3)
        self.assertIn("takes too long", text)
        self.assertEqual(report.problems[-1].message, "(not read: it hangs)")
        group: Any = type("BaseExceptionGroup", (Exception,), {"exceptions": (Hangs(), error)})()
        with mock.patch.object(devserve, "call_each_bounded", side_effect=hang) as calls:
            devserve.traceback_text(group)
        self.assertEqual(len(calls.call_args_list[0].args[0]), 2 + 11, "with its members, and what led to them")

    def test_a_traceback_that_was_printed_is_not_written_again(self) -> None:
        error = self.crash("def view():\n    1 / 0\n")
        with mock.patch.object(devserve, "traceback_text", side_effect=AssertionError):
            self.assertEqual(devserve.read_report(error, text="as printed").text, "as printed")


# =====================================================================================================================
# 6. Traceback pages
# =====================================================================================================================

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</textarea></template></style></title><!-- ",
    "&lt;b&gt; &amp; &#60;",
    "{path} {0} {__class__} %s",
    "nul \0 surrogate \ud800 bidi \u202e escape \x1b[31m",
    "``` ~~~ # [a](javascript:x) <b>",
)
VOID = {"meta", "link", "input", "br", "img"}


class Skeleton(html.parser.HTMLParser):
    """The tags and attribute names of a page, without any of its text: what an attacker would have to change."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.values: list[tuple[str, str, Optional[str]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: "list[tuple[str, Optional[str]]]") -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def frame_view(text: str = "x", **changes: Any) -> "devserve.FrameView":
    values: dict[str, Any] = dict(  # noqa: C408 - as the fields are written in the module
        id="f1",
        kind="template",
        filename=f"/srv/{text}.py",
        path=f"/srv/{text}.py",
        lineno=2,
        name=text,
        module=text,
        app=True,
        source=(devserve._SourceLine(1, text), devserve._SourceLine(2, text), devserve._SourceLine(3, text)),
        missing="",
        marks=(devserve._Mark(2, 1, 3),),
        variables=(
            devserve.Variable(text, text, text, True),
            devserve.Variable(text, text, text, False),
        ),
        unlisted=3,
        skipped=7,
    )
    return devserve.FrameView(**{**values, **changes})


def crash_report(text: str = "x", frames: "Optional[Iterable[devserve.FrameView]]" = None) -> "devserve.Report":
    """A report in which every text is `text`: a chain, a group, a request."""
    views = tuple(frames) if frames is not None else (frame_view(text, app=False), frame_view(text, kind="python"))
    inner = devserve.ExceptionView(text, text, text, (text,), "", views, (), 0)
    outer = devserve.ExceptionView(
        text, text, text, (text, text), "cause", views, ((inner, inner._replace(relation="context")),), 4
    )
    rows = ((text, text), (text, text))
    request = devserve._Request("POST", text, rows, rows, rows)
    return devserve.Report((inner, outer), request, rows, "2026-01-02T03:04:05+0000", text=text)


def page_of(report: "devserve.Report", **state: str) -> str:
    known = {"state": "locked", "secret": "s", "reload_id": "g", "nonce": "abc", "prefix": "/__devserve__", **state}
    return devserve.write_page(report, devserve.PageState(**known))


def raised(action: Any) -> BaseException:
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing was raised")


def untagged(markup: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", markup))


class PageDoor(unittest.TestCase):
    def test_escape_shows_exactly_the_text(self) -> None:
        for text in HOSTILE[:5]:
            escaped = devserve._escape(text)
            self.assertEqual(html.unescape(escaped), text)
            self.assertFalse(set(escaped) & set("<>\"'"))

    def test_escape_writes_nul_and_lone_surrogates_out(self) -> None:
        self.assertEqual(devserve._escape("a\0b\udc80c"), "a\\x00b\\udc80c")

    def test_markup_passes_the_door_unchanged_and_once_only(self) -> None:
        once = devserve._escape("<b>")
        self.assertEqual(devserve._escape(once), "&lt;b&gt;")
        self.assertEqual(devserve._fill_template("<i>{text}</i>", text=once), "<i>&lt;b&gt;</i>")

    def test_joining_with_plain_text_is_no_way_around_the_door(self) -> None:
        self.assertNotIsInstance(devserve._escape("a") + "<b>", devserve._Markup)
        self.assertEqual(devserve._escape(devserve._escape("a") + "<b>"), "a&lt;b&gt;")

    def test_fill_reads_no_braces_in_what_it_fills_in(self) -> None:
        self.assertEqual(
            devserve._fill_template("<b>{a}</b>{b}", a="{b} {b.__class__}", b=1), "<b>{b} {b.__class__}</b>1"
        )

    def test_fill_complains_about_a_word_that_nobody_gave(self) -> None:
        with self.assertRaises(KeyError):
            devserve._fill_template("{forgotten}", given="x")


class PageHostileText(unittest.TestCase):
    def test_hostile_text_changes_no_tag_and_no_attribute(self) -> None:
        for text in (*HOSTILE, "\n".join(HOSTILE) * 3):
            with self.subTest(text=text):
                harmless = re.sub(r"[^\n]", "x", text)
                pages = [page_of(crash_report(t, [frame_view(t, variables=())])) for t in (text, harmless)]
                self.assertEqual(Skeleton(pages[0]).tags, Skeleton(pages[1]).tags)

    def test_hostile_source_gets_no_tags_but_those_of_its_colours(self) -> None:
        for text in HOSTILE:
            tags = {tag for tag, _ in Skeleton(devserve.write_source(frame_view(text, kind="python"))).tags}
            self.assertLessEqual(tags, {"pre", "code", "span", "i", "mark"})

    def test_hostile_state_and_prefix_stay_in_their_attributes(self) -> None:
        script = '"><script>alert(1)</script>'
        hostile = devserve.PageState("closed", script, script, script, '/"><b>', '"><b>', "abc")
        page = devserve.console_page(hostile)
        harmless = devserve.console_page(devserve.PageState("closed", "", "x", "x", "/x", "x", "abc"))
        self.assertEqual(Skeleton(page).tags, Skeleton(harmless).tags)
        notice = devserve.notice_page("<script>", '"><script>', nonce="abc")
        self.assertEqual(Skeleton(notice).tags, Skeleton(devserve.notice_page("x", "x", nonce="abc")).tags)

    def test_every_form_can_be_encoded_and_holds_no_nul(self) -> None:
        for text in HOSTILE:
            report = crash_report(text)
            self.assertNotIn("\0", page_of(report))
            page_of(report).encode("utf-8")
            json.dumps(devserve.write_json(report)).encode("ascii")

    def test_a_megabyte_of_message_and_values_makes_no_heavy_page(self) -> None:
        def fail() -> None:
            long = "<script>" * 131_072
            raise ValueError(long, [long])

        page = page_of(devserve.read_report(raised(fail)))
        self.assertLess(len(page.encode("utf-8")), 200_000)
        self.assertEqual([tag for tag, _ in Skeleton(page).tags].count("script"), 1)

    def test_markdown_fences_are_longer_than_any_run_of_backticks_inside(self) -> None:
        text = devserve.write_markdown(crash_report("a\n`````\n# b `` c"))
        fences = re.findall(r"^`{3,}(?=\w*$)", text, re.MULTILINE)
        self.assertTrue(all(len(fence) in (5, 6) for fence in fences), fences)
        self.assertEqual(len([fence for fence in fences if len(fence) == 6]) % 2, 0)
        self.assertTrue(text.startswith(("# ``` a ````` # b `` c: a", "# `````` ")), text[:60])


class PagePaper(unittest.TestCase):
    def pages(self) -> dict[str, str]:
        return {
            "crash": page_of(crash_report()),
            "console": devserve.console_page(devserve.PageState("open", "s", nonce="abc")),
            "notice": devserve.notice_page("Title", "Text", nonce="abc"),
        }

    def test_pages_are_well_formed(self) -> None:
        for name, page in self.pages().items():
            with self.subTest(name):
                skeleton = Skeleton(page)
                self.assertEqual((skeleton.unbalanced, skeleton.open), ([], []))
                ids = [value for _, attribute, value in skeleton.values if attribute == "id"]
                self.assertEqual(len(ids), len(set(ids)), "an id occurs twice")

    def test_pages_obey_the_strict_policy(self) -> None:
        for name, page in self.pages().items():
            with self.subTest(name):
                for tag, attribute, value in Skeleton(page).values:
                    self.assertFalse(
                        attribute == "style" or attribute.startswith("on"), f"<{tag} {attribute}={value}>"
                    )
                    if attribute in ("src", "href", "action"):
                        self.assertRegex(value or "", r"^(#|/|data:image/)")
                for tag, names in Skeleton(page).tags:
                    if tag in ("script", "style"):
                        self.assertEqual(names, ("nonce",))
                self.assertNotRegex(page, r"url\(|@import|\beval\(|new Function")

    def test_style_and_script_together_are_light(self) -> None:
        self.assertLess(len(devserve.STYLE) + len(devserve.SCRIPT), 35_000)

    def test_an_ordinary_page_is_light(self) -> None:
        def deep(n: int) -> Any:
            return json.loads("{") if n == 0 else deep(n - 1)

        def other(n: int) -> Any:
            return deep(n) if n % 2 else list(map(other, [n - 1]))

        report = devserve.read_report(raised(lambda: other(20)))
        with mock.patch.object(devserve, "_fill_template", wraps=devserve._fill_template) as filled:
            page = page_of(report)
        self.assertLess(len(page.encode("utf-8")), 100_000)
        self.assertLess(filled.call_count, 2_000)  # of microseconds each

    def test_a_long_message_stands_whole_in_the_heading_and_in_the_markdown_alone(self) -> None:
        def fail() -> None:
            raise ValueError("".join(f"word{n} " for n in range(1_200)))

        report = devserve.read_report(raised(fail))
        page, word = page_of(report), f"word{1_100}"
        self.assertEqual(page.count(word), 2)
        self.assertIn(word, page[page.index("<h1>") : page.index("</h1>")])
        self.assertEqual(devserve.write_markdown(report).count(word), 1)
        self.assertEqual(devserve.write_text(report).count(word), 1)
        self.assertLess(len(page.encode("utf-8")), 80_000)

    def test_a_recursion_error_makes_a_light_page_that_counts_the_frames_left_out(self) -> None:
        def first(n: int) -> int:
            return second(n + 1)

        def second(n: int) -> int:
            return first(n + 1)

        page = page_of(devserve.read_report(raised(lambda: first(0))))
        self.assertLess(len(page.encode("utf-8")), 300_000)
        self.assertTrue(re.search(r">[\d,]{3,} frames not shown<", page))

    def test_without_scripts_the_page_shows_source_and_values(self) -> None:
        def fail(basket: str) -> None:
            raise KeyError(basket)

        page = page_of(devserve.read_report(raised(lambda: fail("unlikely value"))))
        self.assertRegex(page, r"<dt[^>]*>basket</dt><dd>&#39;unlikely value&#39;</dd>")
        body = page.split("<body", 1)[1].split("<template", 1)[0]
        for tag in re.findall(r"<[^>]* hidden[^>]*>", body):
            self.assertRegex(tag, 'id="(news|answers)"')


class PageContents(unittest.TestCase):
    def test_what_failed_last_comes_first_and_its_causes_below(self) -> None:
        page = page_of(crash_report())
        wordings = re.findall(r'<span class="wording">([^<]*)', page)
        self.assertIn("Caused by", wordings)
        self.assertIn("Raised while handling", wordings)
        newest_frame = page.index('data-frame="f1"')
        self.assertLess(page.index("<h1>"), newest_frame)
        self.assertLess(newest_frame, page.index('<span class="wording">Caused by'))

    def test_members_of_a_group_are_all_linked_from_the_top(self) -> None:
        skeleton = Skeleton(page_of(crash_report()))
        links = [
            value
            for tag, name, value in skeleton.values
            if tag == "a" and name == "href" and value and value[0] == "#"
        ]
        ids = {value for _, name, value in skeleton.values if name == "id"}
        self.assertEqual(len(links), 3)  # the cause, the member and its cause
        self.assertLessEqual({link[1:] for link in links}, ids)

    def test_application_frames_are_open_and_runs_of_library_frames_folded(self) -> None:
        library = frame_view(app=False, skipped=0, module="flask.app", kind="python")
        own = frame_view(skipped=0, kind="python")
        markup = devserve._write_stack([*(library._replace(lineno=n) for n in (3, 4, 5)), own, library])
        kinds = re.findall(r'<details class="(fold|frame [a-z ]+)"( open)?', markup)
        self.assertEqual(
            kinds,
            [
                ("frame foreign hot", ""),
                ("frame ours hot", " open"),
                ("fold", ""),
                *[("frame foreign", "")] * 3,
            ],
        )
        self.assertIn("3 frames <span>flask.app</span>", markup)

    def test_the_raising_frame_is_open_when_none_is_the_applications(self) -> None:
        library = frame_view(app=False, skipped=0, kind="python")
        markup = devserve._write_stack([library, library._replace(lineno=3)])
        self.assertEqual(re.findall(r"<details [^>]* open", markup), ['<details class="frame foreign hot" open'])

    def test_the_failing_expression_is_marked_on_each_of_its_lines(self) -> None:
        lines = (devserve._SourceLine(7, "    total = add(one,"), devserve._SourceLine(8, "                two)"))
        marks = (devserve._Mark(7, 12, 20), devserve._Mark(8, 16, 20))
        markup = devserve.write_source(frame_view(kind="python", lineno=7, source=lines, marks=marks))
        self.assertEqual(re.findall("<mark>(.*?)</mark>", markup), ["add(one,", "two)"])
        self.assertEqual(re.findall('class="l i[0-9] at" data-n="([0-9]+)"', markup), ["7", "8"])

    def test_values_of_the_failing_line_stand_out_and_are_shown_over_its_expressions(self) -> None:
        lines = (devserve._SourceLine(1, "self = other"), devserve._SourceLine(2, "total = self.price * count"))
        variables = (
            devserve.Variable("self", "Order", "Order()", used=True, argument=True),
            devserve.Variable("self.price", "int", "3", used=True),
            devserve.Variable("other", "int", "<1>", argument=True),
        )
        frame = frame_view(kind="python", source=lines, marks=(), variables=variables, unlisted=0)
        markup = devserve.write_variables(frame)
        self.assertEqual(re.findall(r'class="used"><dt[^>]*>([\w.]+)', markup), ["self", "self.price"])
        source = devserve.write_source(frame)
        shown = re.findall(r'<span class="has-value" title="([^"]*)">([^<]*)', source)
        self.assertEqual(shown, [("self = Order()", "self"), ("self.price = 3", ".price")])
        self.assertEqual(untagged(source), "self = othertotal = self.price * count")

    def test_library_paths_are_shortened_and_links_keep_the_whole(self) -> None:
        path = os.path.join(os.sep, "venv", "lib", "site-packages", "flask", "app.py")
        self.assertEqual(devserve.short_path(path), os.path.join("flask", "app.py"))
        markup = devserve._write_frame(frame_view(filename=path), opened=True)
        self.assertIn(f'title="{path}"', markup)

    def test_paths_of_windows_are_shortened_however_they_are_written(self) -> None:
        import ntpath

        with mock.patch("os.path", ntpath), mock.patch("os.getcwd", return_value=r"C:\Users\me\shop"):
            for path, short in {
                "c:/Users/me/shop/views/cart.py": r"views\cart.py",
                r"C:\Users\me\shop/views\cart.py": r"views\cart.py",
                "C:/Users/me/shop/.venv/Lib/site-packages/flask/app.py": "flask/app.py",
                r"C:\Users\me\shop2\cart.py": r"C:\Users\me\shop2\cart.py",
                r"D:\shop\cart.py": r"D:\shop\cart.py",
            }.items():
                with self.subTest(path):
                    self.assertEqual(devserve.short_path(path), short)

    def test_a_name_that_is_no_file_has_no_editor_link(self) -> None:
        self.assertNotIn('class="edit"', devserve._write_frame(frame_view(filename="<string>"), opened=True))

    def test_the_text_is_what_the_interpreter_prints(self) -> None:
        def inner() -> None:
            raise KeyError("missing")

        def outer() -> None:
            try:
                inner()
            except KeyError as error:
                raise RuntimeError("outer") from error

        error = raised(outer)
        expected = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        names = r"PageContents\.test_the_text_is_what_the_interpreter_prints\.<locals>\."
        shown = re.sub(names, "", devserve.write_text(devserve.read_report(error)))
        carets = re.compile(r"^ *[~^]+ *\n", re.MULTILINE)
        self.assertTrue(carets.sub("", shown).startswith(carets.sub("", expected)), shown)

    def test_json_names_everything(self) -> None:
        shown = json.loads(devserve.write_json(crash_report()))
        self.assertEqual(shown["problems"][0]["frames"][0]["path"], "/srv/x.py")
        self.assertEqual(shown["problems"][1]["relation"], "cause")
        self.assertEqual(shown["problems"][1]["frames"][0]["source"][0], {"number": 1, "text": "x"})
        self.assertEqual(shown["request"]["method"], "POST")

    def test_markdown_holds_place_values_traceback_request_and_versions(self) -> None:
        text = devserve.write_markdown(crash_report("word")._replace(link="http://h/crash/1"))
        for part in (
            "# `word: word`",
            "## `/srv/word.py:2` in `word`",
            ">    2 word",
            "word = word",
            "Caused by `word: word`:",
            "## Traceback",
            "POST word",
            "<http://h/crash/1>",
        ):
            self.assertIn(part, text)

    def test_markdown_has_each_frame_of_the_application_with_relative_paths(self) -> None:
        def inner(row: dict[str, int]) -> int:
            return row["price"]

        def outer() -> None:
            basket = {"prize": 1}
            try:
                inner(basket)
            except KeyError as error:
                raise LookupError("no price\nat all") from error

        text = devserve.write_markdown(devserve.read_report(raised(outer)))
        heads = re.findall(r"^## `test_devserve\.py:\d+` in `.*?(\w+)`$", text, re.MULTILINE)
        self.assertEqual(heads[:1] + heads[-2:], ["outer", "inner", "outer"] if len(heads) > 3 else heads)
        self.assertIn("```\nno price\nat all\n```", text)
        self.assertIn("row = {'prize': 1}", text)
        self.assertIn(
            "Did you mean: 'prize'", devserve.write_markdown(devserve.read_report(raised(lambda: inner({"prize": 1}))))
        )
        self.assertNotIn(os.getcwd(), text)

    def test_members_of_a_group_are_in_markdown_and_in_a_fragment(self) -> None:
        class BaseExceptionGroup(Exception):  # as the backport for Python 3.10 and earlier has it
            exceptions: tuple[BaseException, ...] = ()

        def member(divisor: int) -> None:
            print(1 / divisor)

        group = BaseExceptionGroup("of a group")
        group.exceptions = (raised(lambda: member(0)), ValueError("second"))
        report = devserve.read_report(group)
        text = devserve.write_markdown(report)
        for part in ("1. `ZeroDivisionError: division by zero`:", "divisor = 0"):
            self.assertIn(part, text)
        fragment = untagged(devserve.write_fragment(report))
        for part in ("of a group", "1. ZeroDivisionError: division by zero", "2. ValueError: second", "divisor = 0"):
            self.assertIn(part, fragment)

    def test_a_line_end_in_the_name_of_a_file_breaks_no_markdown(self) -> None:
        code = compile("1 / 0", "/srv/a\n# b`.py", "exec")
        text = devserve.write_markdown(devserve.read_report(raised(lambda: exec(code))))
        self.assertNotRegex(text.split("## Traceback")[0], r"(?m)^# b")

    def test_a_fragment_has_type_message_place_values_and_link_and_no_script(self) -> None:
        for text in ("word", *HOSTILE):
            fragment = devserve.write_fragment(crash_report(text)._replace(link="http://h/crash/1"))
            skeleton = Skeleton(fragment)
            self.assertEqual((skeleton.unbalanced, skeleton.open), ([], []))
            self.assertLessEqual({tag for tag, _ in skeleton.tags}, {"div", "b", "pre", "a"})
            self.assertLessEqual(
                {name for _, name, _ in skeleton.values}, {"style", "tabindex", "href", "target", "rel"}
            )
            self.assertIn(("a", "href", "http://h/crash/1"), skeleton.values)
        text = untagged(devserve.write_fragment(crash_report("word")))
        for part in ("word word", "/srv/word.py:2 in word", "word = word"):
            self.assertIn(part, text)

    def test_messages_are_whole_and_long_ones_scroll_in_their_place(self) -> None:
        long = "\n".join(f"field {n}: input should be a valid string" for n in range(40))
        for report in (crash_report(long), crash_report("short")):
            message = report.problems[-1].message
            page = page_of(report)
            heading = page[page.index("<h1>") : page.index("</h1>")]
            self.assertIn(html.escape(message), heading)
            self.assertEqual('class="message tall" tabindex="0"' in heading, message == long)

    def test_the_editor_of_the_configuration_is_chosen(self) -> None:
        def page(editor: str) -> str:
            state = devserve.PageState("locked")
            return devserve.write_page(crash_report(), state, editor=editor, path_map=("/app=/me", "/b=/c"))

        self.assertRegex(page("pycharm"), r'<option value="pycharm:[^"]*" selected>PyCharm')
        self.assertIn('id="folders" value="/app=/me,/b=/c"', page(""))
        own = page("my://{path}")
        self.assertIn(" selected>Own link", own)
        self.assertIn('id="own-link" value="my://{path}"', own)


class PageColors(unittest.TestCase):
    def windows(self) -> Iterable[list[str]]:
        lines = SCRIPT.read_text(encoding="utf-8").splitlines()
        for start in range(0, len(lines), 23):
            window = lines[start : start + 11]
            yield window
            yield [line[3:] for line in window]
            yield [line[: len(line) // 2] for line in window]

    def test_any_window_of_any_source_is_shown_exactly(self) -> None:
        for window in self.windows():
            for text, spans in zip(window, devserve._highlight(window)):
                self.assertEqual(untagged(devserve._paint(text, spans, 3, 9)), text)

    def test_broken_source_is_shown_exactly(self) -> None:
        broken = (
            "def f(:",
            "'",
            '"""',
            "x = (]",
            "0777 1_a $ ?",
            "\tif\\",
            "f'{'",
            "    a\n  b",
            "\x0c",
            "é = 'ü' # ü",
            "",
        )
        for first in broken:
            for second in broken:
                lines = [*first.split("\n"), *second.split("\n"), "return 1"]
                for text, spans in zip(lines, devserve._highlight(lines)):
                    self.assertEqual(untagged(devserve._paint(text, spans, 0, 0)), text)

    def test_keywords_strings_numbers_and_comments_have_colors_of_their_own(self) -> None:
        lines = ["def f(x):  # why", '    return "a" + 1']
        markup = "".join(devserve._paint(text, spans, 0, 0) for text, spans in zip(lines, devserve._highlight(lines)))
        self.assertEqual(
            re.findall(r'<i class="(\w)">([^<]*)', html.unescape(markup)),
            [("k", "def"), ("d", "f"), ("c", "# why"), ("k", "return"), ("s", '"a"'), ("n", "1")],
        )

    def test_a_window_that_begins_in_a_docstring_colours_it_as_one(self) -> None:
        lines = ["    if this is prose, it isn't code", '    """', "    return None"]
        self.assertEqual(
            devserve._highlight(lines), [[(0, 35, "s", "")], [(0, 7, "s", "")], [(4, 10, "k", ""), (11, 15, "k", "")]]
        )


# =====================================================================================================================
# 7. Console
# =====================================================================================================================

CAN_INTERRUPT = sys.implementation.name == "cpython"


class ConsolePrompt(unittest.TestCase):
    def setUp(self) -> None:
        for name in ("stdin", "stdout", "stderr"):
            self.addCleanup(setattr, sys, name, getattr(sys, name))
        self.console = devserve.Console({"number": 41})

    def typed(self, code: str) -> str:
        evaluation = self.console.run(textwrap.dedent(code))
        self.assertFalse(evaluation.more, code)
        return evaluation.output

    def test_shows_the_value_of_an_expression(self) -> None:
        self.assertEqual(self.typed("number + 1"), "42\n")
        self.assertEqual(self.typed("None"), "")
        self.assertEqual(self.typed(""), "")

    def test_remembers_assignments_and_the_last_value(self) -> None:
        self.typed("a = 5")
        self.assertEqual(self.typed("a * number"), "205\n")
        self.assertEqual(self.typed("_ + 1"), "206\n")

    def test_lets_functions_and_comprehensions_see_all_names(self) -> None:
        self.assertEqual(self.typed("[number + k for k in range(2)]"), "[41, 42]\n")
        self.typed("def double():\n    return number * 2\n")
        self.assertEqual(self.typed("(lambda: double() + number)()"), "123\n")

    def test_asks_for_more_until_a_block_is_complete(self) -> None:
        for code in (
            "for k in range(3):",
            "for k in range(3):\n    print(k)",
            "x = (1,",
            "'''open",
            "if 1:\n    if 2:\n        3",
            "@property",
            "try:\n    1",
        ):
            with self.subTest(code):
                self.assertEqual(self.console.run(code), devserve._Evaluation("", True))
        self.assertEqual(self.typed("for k in range(3):\n    print(k)\n"), "0\n1\n2\n")

    def test_runs_several_statements_that_were_pasted(self) -> None:
        self.assertEqual(self.typed("a = 1\na\nfor k in 'xy':\n    print(k)\na + 1"), "1\nx\ny\n2\n")

    def test_runs_code_as_the_interpreter_does_without_a_future(self) -> None:
        self.typed("def function(x: int): pass\n")
        self.assertEqual(self.typed("function.__annotations__"), "{'x': <class 'int'>}\n")

    def test_shows_what_is_written_by_lines(self) -> None:
        self.assertEqual(self.typed("import sys; sys.stdout.writelines(['a\\n', 'b\\n'])"), "a\nb\n")

    def test_shows_tracebacks_without_its_own_frames(self) -> None:
        text = self.typed("def fail(): 1 / 0\n")
        text = self.typed("fail()")
        self.assertTrue(
            text.startswith('Traceback (most recent call last):\n  File "<console>", line 1, in <module>\n'), text
        )
        self.assertTrue(text.endswith("ZeroDivisionError: division by zero\n"))
        self.assertNotIn("devserve", text)

    def test_shows_syntax_errors_with_their_place(self) -> None:
        text = self.typed("a = = 1")
        self.assertIn("SyntaxError", text)
        self.assertIn("a = = 1", text)
        for code in ("\x00", "x = '\ud800'", "(" * 10_000, "def f():\nreturn", "return 1", "await x", "\ud800"):
            with self.subTest(code[:10]):
                self.assertIsInstance(self.console.run(code).output, str)

    def test_survives_whatever_the_code_raises(self) -> None:
        for code in (
            "exit()",
            "raise SystemExit(3)",
            "raise KeyboardInterrupt",
            "raise GeneratorExit",
            "raise MemoryError",
            "def f(): f()\n\nf()",
            "class E(BaseException):\n    def __str__(self): raise self\n\nraise E()",
        ):
            with self.subTest(code):
                self.assertTrue(self.typed(code))
        self.assertEqual(self.typed("number"), "41\n")
        self.assertFalse(sys.stdin is not None and sys.stdin.closed)

    def test_captures_what_this_evaluation_prints_and_nothing_else(self) -> None:
        begun, ended = threading.Event(), threading.Event()
        elsewhere = io.StringIO()
        self.addCleanup(setattr, sys, "stdout", sys.stdout)
        sys.stdout = elsewhere
        self.console.namespace.update(begun=begun, ended=ended)

        def print_elsewhere() -> None:
            begun.wait(DEADLINE)
            print("from the application")
            ended.set()

        thread = threading.Thread(target=print_elsewhere)
        thread.start()
        text = self.typed("import sys\nprint('one')\nbegun.set()\nended.wait(20)\nprint('two', file=sys.stderr)")
        thread.join()
        self.assertEqual(text, "one\nTrue\ntwo\n")
        self.assertEqual(elsewhere.getvalue(), "from the application\n")

    def test_bounds_the_output(self) -> None:
        text = self.typed("for k in range(100_000): print('x' * 100)\n")
        self.assertLess(len(text), devserve._OUTPUT_LIMIT + 200)
        self.assertIn("not kept", text)
        self.assertLess(len(self.typed("'x' * 50_000_000")), devserve._OUTPUT_LIMIT + 200)

    def test_reads_nothing_from_the_terminal(self) -> None:
        self.assertIn("EOFError", self.typed("input('name: ')"))
        self.assertEqual(
            self.typed("import sys\nsys.stdin.read(), sys.stdin.readline(), list(sys.stdin), sys.stdin.isatty()"),
            "('', '', [], False)\n",
        )

    @unittest.skipUnless(CAN_INTERRUPT, "needs an interpreter that can interrupt a thread")
    def test_interrupts_an_evaluation_that_runs_away(self) -> None:
        begun = threading.Event()
        self.console.namespace["begun"] = begun
        evaluations: list[devserve._Evaluation] = []
        code = "begun.set()\nwhile True: pass\n"
        thread = threading.Thread(target=lambda: evaluations.append(self.console.run(code)))
        thread.start()
        self.assertTrue(begun.wait(DEADLINE))
        self.assertTrue(self.console.interrupt())
        thread.join(DEADLINE)
        self.assertIn("KeyboardInterrupt", evaluations[0].output)
        self.assertFalse(self.console.interrupt())
        self.assertEqual(self.typed("number"), "41\n")

    def test_does_not_wait_for_what_cannot_be_interrupted(self) -> None:
        begun, release = threading.Event(), threading.Event()
        self.console.namespace.update(begun=begun, release=release)
        self.addCleanup(release.set)
        evaluations: list[devserve._Evaluation] = []
        code = "begun.set()\nrelease.wait(60)"
        thread = threading.Thread(target=lambda: evaluations.append(self.console.run(code)))
        thread.start()
        begun.wait(DEADLINE)
        self.console.interrupt()
        thread.join(DEADLINE)
        self.assertIn("cannot be interrupted", evaluations[0].output)
        release.set()
        self.assertEqual(self.typed("number"), "41\n")

    def test_takes_turns(self) -> None:
        threads = [threading.Thread(target=self.console.run, args=("number += 1",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(self.typed("number"), "61\n")

    def test_keeps_its_state_over_fifty_evaluations(self) -> None:
        for _ in range(50):
            self.typed("number += 1")
        self.assertEqual(self.typed("number"), "91\n")

    def test_stays_in_the_frameworks_contexts_and_in_its_own_for_its_life(self) -> None:
        events = []
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

        class Context:
            def __enter__(self) -> None:
                events.append("enter")
                variable.set(1)

            def __exit__(self, *exc_info: object) -> None:
                events.append(f"exit {variable.get()}")

        entered = devserve.EnteredContexts([Context()])
        console = devserve.Console({"events": events, "variable": variable}, entered)
        self.assertEqual(console.run("events, variable.get()").output, "(['enter'], 1)\n")
        console.run("variable.set(2); 1 / 0")
        self.assertEqual(console.run("variable.get()").output, "2\n")
        self.assertEqual(events, ["enter"])
        console.close()
        entered.close()
        self.assertEqual(events, ["enter", "exit 1"])  # each console has a copy
        self.assertRaises(LookupError, variable.get)

    def test_shows_output_while_it_is_printed(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        self.console.namespace["go_on"] = go_on
        evaluation = self.console.run("print('first')\ngo_on.wait(60)\nprint('second')", 0.0)
        self.assertTrue(evaluation.running)
        eventually(lambda: self.console.output(0.1).output == "first\n", "the first line")
        go_on.set()
        self.assertEqual(self.console.output(DEADLINE), devserve._Evaluation("first\nTrue\nsecond\n"))

    def test_evaluates_one_piece_of_code_at_a_time(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        self.console.namespace["go_on"] = go_on
        self.assertTrue(self.console.run("go_on.wait(60)", 0.0).running)
        with mock.patch.object(devserve, "_TURN_SECONDS", 0.01):
            self.assertRaises(devserve.Busy, self.console.run, "2")
        go_on.set()
        self.assertEqual(self.console.run("3").output, "3\n")

    def test_standard_streams_are_as_libraries_expect_them(self) -> None:
        for code, output in (
            ("sys.stdout.encoding, sys.stdout.isatty()", "('utf-8', False)\n"),
            ("sys.stdin.read(), sys.stdin.readline(), list(sys.stdin)", "('', '', [])\n"),
            ("sys.stdout.writelines(['a', 'b']); sys.stdout.flush(); print()", "ab\n"),
        ):
            self.assertEqual(self.typed(f"import sys\n{code}"), output)
        self.assertIn("EOFError", self.typed("input()"))
        self.assertIn("UnsupportedOperation", self.typed("sys.stdout.fileno()"))

    def test_runs_what_is_pasted_indented_or_from_a_session(self) -> None:
        for code in (
            "    a = 5\n    if a:\n        a = 6\n    a",
            ">>> a = 5\n>>> if a:\n...     a = 6\n... \n>>> a\n17",
            "  >>> a = 6\n  >>> print(a)\n  6\n  >>>",
        ):
            with self.subTest(code):
                self.assertEqual(self.console.run(code).output, "6\n")

    def test_shows_no_colors_of_a_terminal(self) -> None:
        self.assertEqual(
            self.typed(r"print('\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07')"), "red link\n"
        )
        self.assertEqual(self.typed(r"print('cut \x1b[1;3', end='')"), "cut ")


class ConsoleCompletion(unittest.TestCase):
    seconds = DEADLINE  # that a completion may take: a busy machine is no fault of its

    def complete(self, code: str, **namespace: Any) -> list[str]:
        with mock.patch.object(devserve, "_COMPLETION_SECONDS", self.seconds):
            start, matches = devserve.Console(namespace).complete(code)
        return [code[:start] + match for match in matches]

    def test_completes_names_keywords_and_builtins(self) -> None:
        self.assertEqual(self.complete("custo", customer=1, custom=2), ["custom", "customer"])
        self.assertEqual(self.complete("1 + prin"), ["1 + print"])
        self.assertEqual(self.complete("nonl"), ["nonlocal"])

    def test_completes_attributes_of_attributes(self) -> None:
        class Shop:
            def __init__(self) -> None:
                self.address = "x"

            def sell(self) -> None: ...

        self.assertEqual(self.complete("f(shop.s", shop=Shop()), ["f(shop.sell"])
        self.assertEqual(
            self.complete("shop.address.isal", shop=Shop()), ["shop.address.isalnum", "shop.address.isalpha"]
        )
        self.assertEqual(self.complete("sys.stdi", sys=sys), ["sys.stdin"])

    def test_hides_private_names_until_they_are_asked_for(self) -> None:
        class Shop:
            _hidden = 1
            shown = 2

        self.assertEqual(self.complete("s.", s=Shop()), ["s.shown"])
        self.assertEqual(self.complete("s._h", s=Shop()), ["s._hidden"])

    def test_runs_no_property(self) -> None:
        class Trap:
            @property
            def spring(self) -> Any:
                raise SystemExit

            def __getattr__(self, name: str) -> Any:
                raise SystemExit

            def __dir__(self) -> Any:
                raise SystemExit

        self.assertEqual(self.complete("trap.spri", trap=Trap()), ["trap.spring"])
        self.assertEqual(self.complete("trap.spring.x", trap=Trap()), [])

    def test_completes_behind_proxies_and_cached_properties(self) -> None:
        class LocalProxy:
            __slots__ = ("_get_current_object",)

            def __getattr__(self, name: str) -> Any:
                raise SystemExit

        class Request:
            @functools.cached_property
            def args(self) -> dict[str, str]:
                return {"page": "1"}

        proxy = LocalProxy()
        setattr(proxy, "_get_current_object", Request)  # noqa: B010 - its class declares a slot only
        self.assertEqual(self.complete("request.ar", request=proxy), ["request.args"])
        self.assertEqual(self.complete("request.args.it", request=proxy), ["request.args.items"])
        self.assertEqual(self.complete("request.args['p", request=proxy), ["request.args['page'"])

    def test_completes_keys_and_columns(self) -> None:
        class Frame:
            def _ipython_key_completions_(self) -> list[str]:
                return ["price", "a b"]

        class Samples:
            def keys(self) -> Iterator[int]:
                yield from range(20_000)
                raise AssertionError("nobody reads through so many, which may be without end")

        self.assertIn("samples[0", self.complete("samples[", samples=Samples()))
        prices = {"apple": 1, "ap'ple": 2, 3: 4, ("x",): 5}
        self.assertEqual(self.complete("prices['ap", prices=prices), ["prices['apple'"])
        self.assertEqual(self.complete('f(prices["ap', prices=prices), ['f(prices["ap\'ple"', 'f(prices["apple"'])
        self.assertEqual(self.complete("prices[3", prices=prices), ["prices[3"])
        self.assertEqual(self.complete("d['a.", d={"a._id": 1, "a.b": 2}), ["d['a._id'", "d['a.b'"])
        self.assertEqual(self.complete("f.pr", f=Frame()), ["f.price"])
        self.assertEqual(self.complete("f['a", f=Frame()), ["f['a b'"])

    def test_completes_modules_and_what_they_hold(self) -> None:
        self.assertIn("import json", self.complete("import js"))
        self.assertIn("import os, json", self.complete("import os, js"))
        self.assertNotIn("import jsonify", self.complete("import js", jsonify=1))
        self.assertIn("from json", self.complete("from js"))
        self.assertEqual(self.complete("from os import getpi"), ["from os import getpid"])
        self.assertEqual(self.complete("x = 1; from wsgiref import handl"), ["x = 1; from wsgiref import handlers"])
        self.assertNotIn("from os import pass", self.complete("from os import pa"))
        with mock.patch.dict(sys.modules, {"odd": types.ModuleType("odd")}):
            vars(sys.modules["odd"]).update({"good": 1, 5: 2})  # type: ignore[dict-item]
            self.assertEqual(self.complete("from odd import go"), ["from odd import good"])

    def test_inserts_nothing_that_is_not_meant(self) -> None:
        for code in (
            *("'pri", 'f("x = pri', "1 # pri", "'''a\npri", "d.copy().pri", "d[0].pri", "1.pri", "'x'.pri"),
            *("f().d['pri", "# d['pri", "'d[\"pri"),
        ):
            with self.subTest(code):
                self.assertEqual(self.complete(code, d={"price": 1}), [])
        self.assertEqual(self.complete("'it\\'s' + custo", customer=1), ["'it\\'s' + customer"])

    def test_takes_a_moment_whatever_stands_before(self) -> None:
        for piece in ("data = '{}QUJD", "{}x.", "{}a", "{}((", "x = {}'a',"):
            with self.subTest(piece):
                before, _, repeated = piece.partition("{}")
                self.assertLess(growth(lambda size: self.complete(before + repeated * size), 12_500), 32)

    def test_what_completes_for_too_long_is_left_behind(self) -> None:
        end = threading.Event()
        self.addCleanup(end.set)

        class Slow:
            def _ipython_key_completions_(self) -> list[str]:
                end.wait()
                return []

        self.seconds = devserve._COMPLETION_SECONDS
        self.assertEqual(returning(lambda: self.complete("slow['x", slow=Slow())), [])


class ConsoleCrashStore(unittest.TestCase):
    def place(self, payload: object = None) -> devserve.FramePosition:
        try:
            print(1 / 0)
        except ZeroDivisionError as error:
            tb = error.__traceback__
            assert tb is not None
            return devserve.FramePosition(tb.tb_frame, tb.tb_lineno, tb.tb_lasti)
        raise AssertionError

    def test_opens_a_console_in_the_frame(self) -> None:
        store = devserve.CrashStore()
        id = store.add(devserve.Crash()).keep(self.place("the payload"))
        self.assertEqual(store.console(id).run("payload").output, "'the payload'\n")
        self.assertIs(store.console(id), store.console(id))

    def test_lets_the_oldest_crash_go(self) -> None:
        store = devserve.CrashStore()
        ids = [store.add(devserve.Crash()).keep(self.place(n)) for n in range(devserve.CRASH_LIMIT + 1)]
        self.assertRaises(KeyError, store.console, ids[0])
        self.assertEqual(store.console(ids[1]).run("payload").output, "1\n")

    def test_gives_ids_that_nobody_guesses(self) -> None:
        store = devserve.CrashStore()
        ids = {store.add(devserve.Crash()).keep(self.place()) for _ in range(100)}
        self.assertEqual(len(ids), 100)
        self.assertTrue(all(len(id) >= 18 for id in ids))
        for wrong in (
            "",
            "-",
            "app",
            "0-0",
            f"{min(ids)}9",
            f"{store.add(devserve.Crash()).id}--1",
            f"{store.add(devserve.Crash()).id}-²",
            f"{store.add(devserve.Crash()).id}-{'9' * 5_000}",
        ):
            self.assertRaises(KeyError, store.console, wrong)

    def test_frees_what_crashes_held_even_in_circles(self) -> None:
        class Payload:
            def __init__(self) -> None:
                self.data = bytearray(b"x" * 1_000_000)
                self.kept: Any = None

        alive: weakref.WeakSet[Payload] = weakref.WeakSet()

        def crash() -> None:
            payload = Payload()
            alive.add(payload)
            try:
                print(1 / 0)
            except ZeroDivisionError as error:
                payload.kept = error  # the frame holds the exception that holds the frame
                raise

        store = devserve.CrashStore()
        for _ in range(60):
            devserve.read_report(failure_of(crash), None, store.add(devserve.Crash()).keep)
            self.assertLessEqual(len(alive), devserve.CRASH_LIMIT + 1)
        del store
        gc.collect()
        self.assertEqual(len(alive), 0)


# =====================================================================================================================
# 8. Guard
# =====================================================================================================================


def failing_app(environ: Any, start_response: Any) -> Any:
    """Fail, with a local variable that the console can see."""
    number = 41
    return number / 0


class ThreadedWSGIServer(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...

    def get_stderr(self) -> Any:
        return io.StringIO()


class Debugged(unittest.TestCase):
    """A test of the debugger under another server than devserve's, the standard library's, with its validator."""

    pin = ""
    trusted_hosts: tuple[str, ...] = ()
    bound_hosts: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.server = wsgiref.simple_server.make_server("127.0.0.1", 0, failing_app, ThreadedWSGIServer, QuietHandler)
        self.addCleanup(self.server.server_close)
        self.port = self.server.server_port
        self.guard = devserve.Guard(self.pin, self.port, self.trusted_hosts, self.bound_hosts)
        self.terminal = io.StringIO()
        self.app: Any = failing_app  # a test may set another one
        self.install(lambda *arguments: self.app(*arguments))
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)

    @property
    def printed(self) -> str:
        self.debugger.terminal.flush()
        return self.terminal.getvalue()

    def install(self, app: Any, validate: bool = True) -> None:
        terminal = devserve.Terminal(self.terminal)
        self.debugger = devserve.DebuggedApplication(app, guard=self.guard, terminal=terminal)
        self.server.set_app(wsgiref.validate.validator(self.debugger) if validate else self.debugger)

    def ask(self, path: str = "/", method: str = "GET", body: Optional[bytes] = None, **headers: Any) -> Answer:
        """Send a request as a browser does; a header of None is left out, `_` in a name stands for `-`."""
        sent = {"Host": f"localhost:{self.port}", "Accept": "text/html", **headers}
        with Client(self.port, version="1.0") as client:
            return client.ask(path, method, body, **sent)

    @property
    def cookie(self) -> str:
        return self.guard.cookie({}).partition(";")[0]

    def post(self, name: str, payload: Any = None, **headers: Any) -> Answer:
        """Send what the page's script in an unlocked browser sends, but for the headers given."""
        sent: dict[str, Any] = {
            "Accept": "*/*",
            "Content_Type": "application/json",
            "Origin": f"http://localhost:{self.port}",
            "Sec_Fetch_Site": "same-origin",
            "Cookie": self.cookie,
            **headers,
        }
        says_site = {"HTTP_SEC_FETCH_SITE": ""} if sent["Sec_Fetch_Site"] else {}
        sent.setdefault("X_Devserve_Secret", self.guard.secret_for(says_site))
        body = payload if isinstance(payload, bytes) else json.dumps(payload or {}).encode()
        return self.ask(f"/__devserve__/{name}", body=body, **{"method": "POST", **sent})

    def frame(self, path: str = "/", **headers: Any) -> str:
        """Crash, and return the id of the innermost frame."""
        ids = re.findall(r"[0-9a-f]{16}-\d+", self.ask(path, **headers).text)
        return str(max(ids, key=lambda id: int(id.partition("-")[2])))


class GuardRules(Debugged):
    """One test for each way in; all of them send what would work but for one thing."""

    payload: ClassVar = {"frame": "app", "code": "1 + 1"}

    def assert_refused(self, error: str, answer: Answer) -> None:
        self.assertGreaterEqual(answer.status, 400)
        self.assertEqual(answer.json["error"], error)
        self.assertEqual({*answer.json}, {"error", "reason", "remedy"})
        self.assertFalse([name for name in answer.headers if name.lower().startswith("access-control")])
        self.assertNotIn("Set-Cookie", answer.headers)

    def test_guard_lets_its_own_page_in(self) -> None:
        answer = self.post("eval", self.payload)
        self.assertEqual((answer.status, answer.json["output"]), (200, "2\n"))

    def test_guard_refuses_without_the_cookie(self) -> None:
        for cookie in (
            None,
            "",
            "x=y",
            f"devserve_{self.port}=",
            f"devserve_{self.port}={self.guard.pin}",
            f"devserve_{self.port}={self.guard.secret}",
            f"devserve_{self.port}={self.guard.token}",
            "=;=;;",
        ):
            with self.subTest(cookie):
                self.assert_refused("cookie", self.post("eval", self.payload, Cookie=cookie))

    def test_guard_refuses_the_cookie_of_another_port(self) -> None:
        value = self.cookie.partition("=")[2]
        self.assert_refused("cookie", self.post("eval", self.payload, Cookie=f"devserve_{self.port + 1}={value}"))

    def test_guard_finds_its_cookie_among_others(self) -> None:
        cookies = f"a=b; devserve_{self.port}=old; {self.cookie}; devserve_1=x"
        self.assertEqual(self.post("eval", self.payload, Cookie=cookies).status, 200)

    def test_guard_refuses_without_the_secret(self) -> None:
        for secret in (None, "", "x", self.guard.pin, self.guard.secret[:-1], "é\xff"):
            with self.subTest(secret):
                self.assert_refused("secret", self.post("eval", self.payload, X_Devserve_Secret=secret))

    def test_guard_refuses_all_methods_but_post(self) -> None:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "post"):
            with self.subTest(method):
                self.assert_refused("method", self.post("eval", self.payload, method=method))

    def test_guard_gives_a_cors_preflight_no_permission(self) -> None:
        answer = self.ask(
            "/__devserve__/eval",
            "OPTIONS",
            Accept="*/*",
            Origin="http://evil.example",
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="x-devserve-secret,content-type",
        )
        self.assert_refused("method", answer)

    def test_guard_refuses_a_foreign_origin(self) -> None:
        for origin in (
            "http://evil.example",
            "null",
            "",
            f"http://localhost:{self.port + 1}",
            "http://localhost",
            f"http://evil.example:{self.port}",
            f"http://localhost:{self.port}.evil.example",
            f"http://localhost:{self.port}/",
            f"http://127.0.0.1:{self.port}",
            f"file://localhost:{self.port}",
            f"localhost:{self.port}",
            f"http://x@localhost:{self.port}",
            f"http://localhost:{self.port}, http://evil.example",
        ):
            with self.subTest(origin):
                self.assert_refused("origin", self.post("eval", self.payload, Origin=origin))

    def test_guard_refuses_a_request_without_origin(self) -> None:
        self.assert_refused("origin", self.post("eval", self.payload, Origin=None, Sec_Fetch_Site=None))
        for site in ("cross-site", "same-site", "none", ""):
            with self.subTest(site):
                self.assert_refused("origin", self.post("eval", self.payload, Origin=None, Sec_Fetch_Site=site))
                self.assert_refused("origin", self.post("eval", self.payload, Sec_Fetch_Site=site))

    def test_guard_wants_a_key_beside_the_cookie_that_a_browser_sends_to_every_port(self) -> None:
        for browser in ({"HTTP_USER_AGENT": "Mozilla/5.0 (X11)"}, {"HTTP_SEC_FETCH_MODE": "navigate"}):
            cookie = self.guard.cookie(browser).partition(";")[0]
            self.assertNotEqual(cookie, self.cookie)
            for key in (None, "", "x", self.guard.secret, self.guard.token, cookie.partition("=")[2]):
                answer = self.post("eval", self.payload, Cookie=cookie, X_Devserve_Key=key)
                self.assert_refused("cookie", answer)
            answer = self.post("eval", self.payload, Cookie=cookie, X_Devserve_Key=self.guard.key())
            self.assertEqual(answer.status, 200)
        self.assert_refused("cookie", self.post("eval", self.payload, Cookie=None, X_Devserve_Key=self.guard.key()))

    def test_guard_tells_a_proxy_that_changes_host_from_an_attack(self) -> None:
        for origin in ("http://shop.example", "https://shop.example:8443", "http://10.0.0.1:80"):
            answer = self.post("eval", self.payload, Origin=origin)
            self.assert_refused("origin", answer)
            self.assertIn(f"--trusted-host {origin.split('/')[2]}. ", answer.json["remedy"])
        self.assertIn("--trusted-host localhost:1.", self.post("eval", Origin="http://localhost:1").json["remedy"])
        self.guard.trust(["shop.example", "localhost:5173"], ["10.0.0.1"])
        for origin in ("http://shop.example", "https://shop.example:8443", "http://localhost:5173"):
            self.assertEqual(self.post("eval", self.payload, Origin=origin).status, 200)
            self.assert_refused("origin", self.post("eval", self.payload, Origin=origin, Sec_Fetch_Site="same-site"))
        for origin in ("http://localhost:5174", "http://10.0.0.1:81", "http://x.shop.example", "ftp://shop.example"):
            self.assert_refused("origin", self.post("eval", self.payload, Origin=origin))

    def test_guard_takes_a_browsers_word_for_a_hidden_origin(self) -> None:
        self.assertEqual(self.post("eval", self.payload, Origin=None).status, 200)
        self.assertEqual(self.post("eval", self.payload, Sec_Fetch_Site=None).status, 200)

    def test_guard_refuses_what_a_form_can_send(self) -> None:
        for kind in (
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=b",
            "text/plain",
            "text/plain; x=application/json",
            "application/jsonp",
            "",
            None,
        ):
            with self.subTest(kind):
                self.assert_refused("type", self.post("eval", self.payload, Content_Type=kind))
        self.assertEqual(self.post("eval", self.payload, Content_Type="Application/JSON; charset=utf-8").status, 200)

    def test_guard_refuses_a_foreign_or_missing_host(self) -> None:
        for host in (
            None,
            "",
            "evil.example",
            f"evil.example:{self.port}",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.256",
            "127.0.0.1x",
            "0.0.0.0",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "[::2]",
            "[localhost]",
            "localhost@evil.example",
            "evil.example/localhost",
            "localhost, evil.example",
            "localhost:80:80",
            "localhost#",
            "local host",
            "10.0.0.1",
            "169.254.169.254",
        ):
            with self.subTest(host):
                origin = f"http://{host}"
                self.assert_refused("host", self.post("eval", self.payload, Host=host, Origin=origin))

    def test_guard_trusts_the_names_of_loopback(self) -> None:
        for host in (
            "localhost",
            "LOCALHOST:1",
            "localhost.:5",
            "app.localhost",
            "127.0.0.1",
            "127.1.2.3:99",
            "[::1]",
            "[::1]:5000",
        ):
            with self.subTest(host):
                answer = self.post("eval", self.payload, Host=host, Origin=f"http://{host}")
                self.assertEqual(answer.status, 200)

    def test_guard_reads_no_forwarded_host(self) -> None:
        forwarded: dict[str, Any] = {
            "X_Forwarded_Host": "localhost",
            "Forwarded": "host=localhost",
            "X_Host": "localhost",
            "X_Original_Host": "localhost",
        }
        answer = self.post("eval", self.payload, Host="evil.example", Origin="http://evil.example", **forwarded)
        self.assert_refused("host", answer)
        self.assertIn("--trusted-host evil.example", answer.json["remedy"])
        self.assertNotIn(self.guard.secret, self.ask(Host="evil.example", Accept="text/html", **forwarded).text)

    def test_guard_protects_each_endpoint_that_acts(self) -> None:
        for name in ("eval", "complete", "interrupt"):
            self.assert_refused("cookie", self.post(name, self.payload, Cookie=None))
        for name in ("eval", "complete", "interrupt", "variables", "source", "pin"):
            with self.subTest(name):
                self.assert_refused("secret", self.post(name, self.payload, X_Devserve_Secret=None))
                self.assert_refused("method", self.post(name, self.payload, method="GET"))
                self.assert_refused("origin", self.post(name, self.payload, Origin="http://evil.example"))
                self.assert_refused("host", self.post(name, self.payload, Host="evil.example"))
                self.assert_refused("type", self.post(name, self.payload, Content_Type="text/plain"))

    def test_guard_answers_at_no_other_address(self) -> None:
        for path in (
            "x",
            "threads/",
            "../etc/passwd",
            "..%2f..%2fetc/passwd",
            "eval/",
            "eval/x",
            "EVAL",
            "%65val/",
            "style.css",
            "__class__",
            "reply",
        ):
            with self.subTest(path):
                self.assert_refused("unknown", self.post(path, self.payload))
        self.assertEqual(self.post("eval", {**self.payload, "frame": "../app"}).json["error"], "gone")

    def test_guard_takes_nothing_from_the_address(self) -> None:
        path = f"eval?frame=app&code=1&secret={self.guard.secret}&token={self.guard.token}&pin={self.guard.pin}"
        self.assert_refused("secret", self.post(path, self.payload, X_Devserve_Secret=None))

    def test_guard_refuses_bodies_that_are_no_question(self) -> None:
        for body in (
            b"",
            b"[]",
            b"3",
            b"{",
            b"\xff",
            b"{}",
            b'{"frame": 3, "code": "1"}',
            b'{"frame": "app", "code": null}',
            b"[" * 100_000,
        ):
            with self.subTest(body[:20]):
                self.assert_refused("body", self.post("eval", body))
        for length in (str(devserve.REQUEST_LIMIT + 1), "-1", "x", "", "²"):
            endpoint = devserve._DebuggerEndpoint(
                self.debugger, {"CONTENT_LENGTH": length, "wsgi.input": io.BytesIO(b"{}")}
            )
            self.assertRaises(devserve._Refused, endpoint.read_payload)


class GuardPin(Debugged):
    def try_pin(self, pin: Any, **headers: Any) -> Answer:
        return self.post("pin", {"pin": pin}, **{"Cookie": None, **headers})

    def test_pin_unlocks_the_browser(self) -> None:
        answer = self.try_pin(self.guard.pin)
        self.assertEqual((answer.status, answer.json), (200, {"console": "open", "key": self.guard.key()}))
        cookie = answer.headers["Set-Cookie"]
        self.assertEqual(cookie.partition("=")[0], f"devserve_{self.port}")
        self.assertEqual(cookie.partition("; ")[2], "HttpOnly; SameSite=Strict")
        unlocked = {"Cookie": cookie.partition(";")[0], "X_Devserve_Key": answer.json["key"]}
        self.assertEqual(self.post("eval", {"frame": "app", "code": "2"}, **unlocked).status, 200)

    def test_pin_may_be_typed_with_and_without_dashes(self) -> None:
        plain = self.guard.pin.replace("-", "")
        self.assertRegex(self.guard.pin, r"^\d{3}-\d{3}-\d{3}$")
        for pin in (plain, f" {plain[:3]} {plain[3:]} "):
            self.assertEqual(self.try_pin(pin).status, 200)

    def test_pin_that_leaves_nothing_to_type_is_refused_at_the_start(self) -> None:
        for pin in ("-", " ", "- -"):
            with self.subTest(pin), self.assertRaisesRegex(devserve.DevserveError, f"the PIN '{pin}' .*--pin 123-456"):
                devserve.Guard(pin)

    def test_pin_is_random(self) -> None:
        guards = [devserve.Guard() for _ in range(50)]
        for words in (
            {guard.pin for guard in guards},
            {guard.secret for guard in guards},
            {guard.token for guard in guards},
        ):
            self.assertEqual(len(words), 50)
        self.assertTrue(all(len(guard.token) >= 32 for guard in guards))

    def test_ten_wrong_pins_shut_it_for_the_right_one_too(self) -> None:
        for left in range(9, 0, -1):
            answer = self.try_pin("000")
            self.assertEqual((answer.status, answer.json["error"]), (403, "pin"))
            self.assertIn(str(left), answer.json["reason"])
        self.assertEqual(self.try_pin("000").json["error"], "shut")
        answer = self.try_pin(self.guard.pin)
        self.assertEqual((answer.status, answer.json["error"]), (403, "shut"))
        self.assertNotIn("Set-Cookie", answer.headers)
        self.assertEqual(self.ask(f"/__devserve__/unlock?token={self.guard.token}").status, 303)

    def test_an_unlocked_browser_stays_so_when_it_is_shut(self) -> None:
        for _ in range(12):
            self.try_pin("000")
        self.assertEqual(self.post("eval", {"frame": "app", "code": "2"}).status, 200)
        self.assertEqual(self.post("eval", {"frame": "app", "code": "2"}, Cookie=None).json["error"], "shut")

    def test_a_right_pin_forgives_wrong_ones(self) -> None:
        for _ in range(3):
            for _ in range(9):
                self.try_pin("000")
            self.assertEqual(self.try_pin(self.guard.pin).status, 200)

    def test_parallel_guesses_are_counted_one_by_one(self) -> None:
        guard = devserve.Guard()
        start = threading.Barrier(40)
        refusals: list[Any] = []

        def guess() -> None:
            start.wait(DEADLINE)
            refusals.append(guard.try_pin("000", {}))

        threads = [threading.Thread(target=guess) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(sum(refusal.error == "pin" for refusal in refusals), devserve._PIN_FAILURES - 1)
        self.assertEqual(guard.failures, devserve._PIN_FAILURES)

    def test_guesses_stay_counted_over_a_reload(self) -> None:
        for _ in range(6):
            self.guard.try_pin("000", {})
        again = devserve.Guard("", self.port, notes=self.guard.remember())
        self.assertEqual(
            (again.pin, again.secret, again.token, again.failures),
            (self.guard.pin, self.guard.secret, self.guard.token, 6),
        )
        self.assertTrue(again.knows({"HTTP_COOKIE": self.cookie}))
        self.assertTrue(devserve.Guard(notes={}).pin)

    def test_guesses_from_elsewhere_are_not_even_counted(self) -> None:
        for headers in ({"Origin": "http://evil.example"}, {"X_Devserve_Secret": None}, {"Host": "evil.example"}):
            for _ in range(12):
                self.try_pin("000", **headers)
        self.assertEqual(self.try_pin(self.guard.pin).status, 200)

    def test_odd_guesses_are_wrong_guesses(self) -> None:
        for pin in ("", "\ud800", "\x00", "é" * 10_000, "off"):
            self.assertIn(self.try_pin(pin).json["error"], ("pin", "shut"))
        self.assertEqual(self.try_pin(3).json["error"], "body")

    def test_a_pin_of_ones_own_and_none_at_all(self) -> None:
        self.assertIsNone(devserve.Guard("open sesame").try_pin("open sesame", {}))
        for word in ("off", "OFF", "Off "):  # a PIN that is called so would be the first guess
            off = devserve.Guard(word)
            self.assertTrue(off.knows({"REMOTE_ADDR": "127.0.0.1"}))
            self.assertIsNotNone(off.try_pin(word, {"REMOTE_ADDR": "10.0.0.5"}))
        self.assertIsNotNone(off.refuses_running({"REQUEST_METHOD": "POST", "HTTP_HOST": "localhost"}))
        self.assertNotIn(off.token, off.banner_line("http://localhost:1"))

    def test_no_pin_opens_the_console_to_this_machine_only(self) -> None:
        off = devserve.Guard("off", self.port)
        for elsewhere in (
            {"REMOTE_ADDR": "10.0.0.5"},
            {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "10.0.0.5"},
            {"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=10.0.0.5"},
            {"REMOTE_ADDR": "127.0.0.1.evil.example"},
            {"REMOTE_ADDR": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.0"},  # nginx, which says nothing else
            *(
                {"REMOTE_ADDR": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1", f"HTTP_{name}": "x"}
                for name in (
                    "VIA X_REAL_IP X_FORWARDED_PROTO X_FORWARDED_HOST X_FORWARDED_PREFIX X_CLIENT_IP X_ORIGINAL_URI "
                    "X_CLUSTER_CLIENT_IP TRUE_CLIENT_IP CF_CONNECTING_IP CDN_LOOP FORWARDED CLIENT_IP FLY_CLIENT_IP "
                    "X_REMOTE_ADDR X_PROXIED_BY X_SCHEME X_SCRIPT_NAME X_SSL_CLIENT_CERT CF_RAY TAILSCALE_USER_LOGIN"
                ).split()
            ),
            {},
        ):
            with self.subTest(elsewhere):
                self.assertFalse(off.knows(elsewhere))
                for guess in ("", "off", "000"):
                    refusal = off.try_pin(guess, elsewhere)
                    self.assertEqual(refusal and refusal.error, "shut")
        for here in ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "::ffff:127.0.0.2", ""):
            self.assertTrue(off.knows({"REMOTE_ADDR": here}))
            self.assertIsNone(off.try_pin("000", {"REMOTE_ADDR": here}))  # in a page that is older than the setting
        self.assertIn("127.0.0.1 or ::1 only", off.banner_line("http://0.0.0.0:1"))
        self.assertNotIn(self.guard.token, self.guard.banner_line("unix:/run/s"))  # no browser opens a socket file

    def test_the_configured_pin_is_compared_after_a_reload(self) -> None:
        for before, after in (("off", ""), ("off", "77-88"), ("77-88", ""), ("", "off"), ("", "77-88")):
            with self.subTest(before=before, after=after):
                old = devserve.Guard(before, self.port)
                same, new = (devserve.Guard(pin, self.port, notes=old.remember()) for pin in (before, after))
                self.assertEqual((same.pin, same.token), (old.pin, old.token))
                self.assertEqual(same.is_announced, before != "off")
                self.assertNotIn(new.pin, ("", old.pin))
                self.assertNotEqual(new.token, old.token)
                self.assertFalse(new.is_announced)
                self.assertFalse(new.has_cookie({"HTTP_COOKIE": old.cookie({})}))

    def test_under_another_server_the_cookie_is_named_by_its_port_too(self) -> None:
        cookie = devserve.Guard().cookie({"SERVER_PORT": "8001"})
        self.assertTrue(cookie.startswith("devserve_8001="))

    def test_cookie_is_secure_over_https(self) -> None:
        self.assertTrue(self.guard.cookie({"wsgi.url_scheme": "https"}).endswith("; Secure"))


class GuardLink(Debugged):
    def test_link_unlocks_and_leaves_the_address_bar(self) -> None:
        link = self.guard.unlock_url(f"http://localhost:{self.port}")
        answer = self.ask(link.partition(str(self.port))[2])
        self.assertEqual((answer.status, answer.headers["Location"]), (303, f"console#{self.guard.key()}"))
        self.assertEqual(answer.headers["Cache-Control"], "no-store")
        self.assertEqual(answer.headers["Referrer-Policy"], "same-origin")
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        page = self.ask("/__devserve__/console", Cookie=cookie)
        self.assertEqual(page.status, 200)
        self.assertIn(self.guard.secret, page.text)

    def test_link_with_a_wrong_token_does_nothing(self) -> None:
        for query in (
            "",
            "?token=",
            "?token=x",
            f"?token={self.guard.pin}",
            f"?token={self.guard.secret}",
            "?token=%ff%00",
            f"?token=x&token={self.guard.token}",
            f"?t={self.guard.token}",
        ):
            with self.subTest(query):
                answer = self.ask(f"/__devserve__/unlock{query}")
                self.assertEqual(answer.status, 403)
                self.assertNotIn("Set-Cookie", answer.headers)
                self.assertNotIn(self.guard.token, answer.text)
                self.assertIn("text/html", answer.headers["Content-Type"])

    def test_link_works_on_a_trusted_host_only(self) -> None:
        answer = self.ask(f"/__devserve__/unlock?token={self.guard.token}", Host="evil.example")
        self.assertEqual((answer.status, answer.headers["Set-Cookie"]), (403, None))

    def test_link_used_by_another_site_only_sets_the_cookie(self) -> None:
        answer = self.ask(
            f"/__devserve__/unlock?token={self.guard.token}",
            Origin="http://evil.example",
            Sec_Fetch_Site="cross-site",
            Referer="http://evil.example/",
        )
        self.assertEqual((answer.status, answer.body), (303, b""))
        self.assertFalse([name for name in answer.headers if name.lower().startswith("access-control")])

    def test_link_takes_get_only(self) -> None:
        self.assertEqual(self.ask(f"/__devserve__/unlock?token={self.guard.token}", "POST", b"").status, 405)


class GuardSecrets(Debugged):
    """The PIN, the token and the cookie's value are in no page and no log; the secret only where it must be."""

    trusted_hosts = ("shop.example", "[2001:db8::1]")

    def test_pin_and_token_are_in_no_page(self) -> None:
        frame = self.frame()
        answers = [
            *(self.ask(Accept=accept) for accept in ("text/html", "*/*", "text/markdown", "application/json")),
            self.ask("/__devserve__/console"),
            self.ask("/__devserve__/console", Cookie=self.cookie),
            self.ask("/__devserve__/alive"),
            self.ask(Cookie=self.cookie),
            self.post("variables", {"frame": frame}),
            self.post("source", {"frame": frame, "lines": 9}),
            self.post("pin", {"pin": self.guard.pin}),
            self.post("pin", {"pin": "1"}),
        ]
        for answer in answers:
            for word in (
                self.guard.pin,
                self.guard.pin.replace("-", ""),
                self.guard.token,
                self.guard.cookie_value("program", {}),
            ):
                self.assertNotIn(word, answer.text)
        for word in (self.guard.pin, self.guard.token, self.guard.secret, self.guard.cookie_value("program", {})):
            self.assertNotIn(word, self.printed)

    def test_a_pin_that_stands_in_the_source_is_shown_to_nobody(self) -> None:
        for configured, is_shown in (("", True), ("failing_app", False), ("failing_ap", True)):
            self.guard.configured = configured
            answers = [self.ask(Accept=accept) for accept in ("text/html", "text/markdown", "application/json")]
            self.guard.configured = ""
            frame = self.frame()
            self.guard.configured = configured
            answers.append(self.post("source", {"frame": frame, "lines": 2000}))
            for answer in answers:
                self.assertEqual("failing_app" in answer.text, is_shown, (configured, answer.text[:300]))

    def test_a_pin_is_hidden_in_whatever_way_it_is_written(self) -> None:
        for pin in ("geheim-über99", 'quo"te-99', "it's-99", "back\\slash-99", "a&b<99>x", "two words"):

            def failing(environ: Any, start_response: App, note: str = pin) -> Any:
                kept = {"note": note}
                return 1 / 0 if kept else None

            with self.subTest(pin):
                self.guard.configured = ""
                self.install(failing)
                frame = self.frame()
                self.guard.configured = pin
                answers = [self.ask(Accept=kind) for kind in ("text/html", "text/markdown", "application/json")]
                answers.append(self.post("variables", {"frame": frame}))
                answers.append(self.post("members", {"frame": frame, "path": ["kept"]}))
                for answer in answers:
                    for form in (
                        pin,
                        repr(pin)[1:-1],
                        json.dumps(pin)[1:-1],
                        html.escape(pin),
                        html.escape(repr(pin)),
                    ):
                        self.assertNotIn(form, answer.text)

    def test_a_pin_that_is_a_word_of_ours_spoils_no_page(self) -> None:
        def ours() -> set[str]:
            """Return scripts and styles of the page, and the names of tags and classes."""
            page = re.sub(r'nonce="\w+"', "", self.ask(Accept="text/html").text)
            return set(re.findall(r"(?s)<script.*?</script>|<style.*?</style>|<\w+|class=\"[^\"]*", page))

        before = ours()
        for pin in ("1000", "class", "true", "open", "console", "python", "button"):
            with self.subTest(pin):
                self.guard.configured = pin
                self.assertLessEqual(ours(), before)
                report = self.ask(Accept="application/json").json
                self.assertEqual(report["problems"][0]["frames"][-1]["kind"], "python")

    def test_each_client_elsewhere_has_a_secret_of_its_own(self) -> None:
        """A stranger who reads it in his page, and plants it in one of the application's, helps no script there."""
        near = [{}, {"REMOTE_ADDR": ""}, {"REMOTE_ADDR": "127.0.0.1"}, {"REMOTE_ADDR": "::1"}]
        self.assertEqual({self.guard.secret_for(environ) for environ in near}, {self.guard.secret})
        secrets = {self.guard.secret_for({"REMOTE_ADDR": address}) for address in ("10.0.0.5", "10.0.0.6", "::2")}
        self.assertEqual(len(secrets | {self.guard.secret}), 4)
        there = {"REMOTE_ADDR": "10.0.0.5"}
        frame = self.frame()
        self.server.set_app(lambda environ, start_response: self.debugger({**environ, **there}, start_response))
        page = self.ask("/__devserve__/console").text
        self.assertIn(self.guard.secret_for(there), page)
        self.assertNotIn(self.guard.secret, page)
        self.assertEqual(self.post("variables", {"frame": frame}).json["error"], "secret")
        own = {"X_Devserve_Secret": self.guard.secret_for({**there, "HTTP_SEC_FETCH_SITE": "same-origin"})}
        self.assertEqual(self.post("variables", {"frame": frame}, **own).status, 200)

        def behind_proxy_fix(environ: dict[str, Any], start_response: App) -> Any:
            environ["REMOTE_ADDR"] = "10.0.0.6"  # from X-Forwarded-For
            return failing_app(environ, start_response)

        self.app = behind_proxy_fix
        self.assertIn(self.guard.secret_for(there), self.ask().text)

    def test_what_the_application_reads_of_our_pages_is_of_no_use_to_script_in_its_own(self) -> None:
        """As script has it fetch a preview of a link: that comes from this machine, without a browser's headers."""
        frame = self.frame()
        preview = self.ask("/__devserve__/console", User_Agent="Mozilla/5.0 (preview)").text
        stolen = {"X_Devserve_Secret": re.findall('data-secret="([0-9a-f]+)"', preview)[0]}
        self.assertEqual(self.post("variables", {"frame": frame}, **stolen).json["error"], "secret")
        self.assertEqual(self.post("variables", {"frame": frame}).status, 200)

    def test_the_cookie_of_a_client_is_of_no_use_to_another(self) -> None:
        """A browser sends it to all servers of its machine, whatever their port."""
        cookies = {self.guard.cookie({"REMOTE_ADDR": each}) for each in ("127.0.0.1", "::1", "10.0.0.5", "10.0.0.6")}
        self.assertEqual(len(cookies), 3)
        cookie = {"HTTP_COOKIE": self.guard.cookie({"REMOTE_ADDR": "127.0.0.1"}).partition(";")[0]}
        self.assertTrue(self.guard.knows({**cookie, "REMOTE_ADDR": "::1"}))
        self.assertFalse(self.guard.has_cookie({**cookie, "REMOTE_ADDR": "10.0.0.5"}))

    def test_secret_is_in_documents_only_and_what_the_browser_opens_has_no_opener(self) -> None:
        for path in ("/", "/__devserve__/console"):
            self.assertIn(self.guard.secret, self.ask(path, Sec_Fetch_Dest="document").text)
            for kind in ("empty", "iframe", "frame", "object", "embed", "serviceworker", "script", "image", ""):
                with self.subTest(path=path, dest=kind):
                    answer = self.ask(path, Sec_Fetch_Dest=kind)
                    self.assertNotIn(self.guard.secret, answer.text)
            preload: dict[str, Any] = {"Sec_Fetch_Dest": "document", "Service_Worker_Navigation_Preload": "any"}
            self.assertNotIn(self.guard.secret, self.ask(path, **preload).text)
        for answer in (self.ask(), self.ask("/__devserve__/console"), self.ask("/__devserve__/alive"), self.post("x")):
            self.assertEqual(answer.headers["Cross-Origin-Opener-Policy"], "same-origin")
            self.assertEqual(answer.headers["Cross-Origin-Embedder-Policy"], "require-corp")
            self.assertEqual(answer.headers["Document-Isolation-Policy"], "isolate-and-require-corp")

    def test_a_service_worker_takes_another_secret_and_reloads_that_leave_it_out(self) -> None:
        before = self.guard.secret
        self.ask("/worker.js", Service_Worker="script", Sec_Fetch_Dest="serviceworker")
        secret = self.guard.secret
        self.assertNotEqual(secret, before)
        self.ask("/worker.js", Service_Worker="script", Sec_Fetch_Dest="serviceworker")
        self.assertEqual(self.guard.secret, secret)
        after_reload = devserve.Guard(self.guard.configured, notes=self.guard.remember())
        self.assertIsNotNone(after_reload.refuses_script({"HTTP_SEC_FETCH_DEST": "document"}))
        no_worker = devserve.Guard(notes=devserve.Guard().remember())
        self.assertIsNone(no_worker.refuses_script({"HTTP_SEC_FETCH_DEST": "document"}))
        for path in ("/", "/__devserve__/console"):
            for cache in (None, "max-age=0"):
                answer = self.ask(path, Sec_Fetch_Dest="document", Cache_Control=cache)
                self.assertNotIn(secret, answer.text)
            self.assertIn(secret, self.ask(path, Sec_Fetch_Dest="document", Cache_Control="no-cache").text)
            self.assertIn(secret, self.ask(path).text)  # a program, which has no workers
            for kind in ("empty", "iframe"):
                self.assertNotIn(secret, self.ask(path, Sec_Fetch_Dest=kind, Cache_Control="no-cache").text)

    def test_secret_is_only_in_pages_of_trusted_hosts(self) -> None:
        self.assertIn(self.guard.secret, self.ask().text)
        self.assertIn(self.guard.secret, self.ask(Host=f"shop.example:{self.port}").text)
        self.assertIn(self.guard.secret, self.ask(Host="[2001:db8::1]").text)
        for host in (None, "evil.example", "sub.shop.example", "shop.example.evil.example", "10.0.0.1", "a!b"):
            page = self.ask(Host=host)
            self.assertEqual(page.status, 500)
            self.assertNotIn(self.guard.secret, page.text)
        for accept in ("*/*", "text/markdown", "application/json"):
            self.assertNotIn(self.guard.secret, self.ask(Accept=accept).text)
        self.assertEqual(self.ask("/__devserve__/console", Host="evil.example").status, 403)
        self.assertEqual(self.ask("/__devserve__/console", Origin="http://evil.example").status, 403)

    def test_a_name_that_could_be_rebound_reads_neither_source_nor_values(self) -> None:
        for host in ("evil.example", "localhost.evil.example", "1.2.3.4.evil.example", "a!b", "2130706433", "::1"):
            for accept in ("text/html", "*/*", "text/markdown", "application/json"):
                with self.subTest(host=host, accept=accept):
                    answer = self.ask(f"/?{SECRET}", Host=host, Accept=accept)
                    self.assertEqual(answer.status, 500)
                    for word in ("ZeroDivisionError", "failing_app", SECRET, ".py"):
                        self.assertNotIn(word, answer.text)
                    self.assertIn("--trusted-host" if "." in host else "localhost", answer.text)
        report = self.ask(Host="evil.example", Accept="application/json").json  # programs find what they look for
        self.assertIn("--trusted-host", str(report["problems"][0]["frames"][0]))
        addresses = ("10.0.0.1", "10.0.0.1:80", "[2001:db8::1]", "[fe80::1%25eth0]:80")
        for shown in (*addresses, "shop.example", None):
            with self.subTest(shown):
                self.assertIn("ZeroDivisionError", self.ask(Host=shown).text)
        self.assertEqual(self.ask("/__devserve__/console", Host="10.0.0.1").status, 403)  # it would not open there

    def test_of_the_ports_of_localhost_only_those_that_are_named_may_act(self) -> None:
        for named, is_refused in (("localhost", True), ("localhost:3000", False), ("localhost:3001", True)):
            guard = devserve.Guard("", self.port, (named,), ())
            refusal = guard._refuses_origin({"HTTP_HOST": "localhost:5000", "HTTP_ORIGIN": "http://localhost:3000"})
            self.assertEqual(refusal is not None, is_refused, named)

    def test_script_of_a_trusted_host_may_read_and_of_another_is_told_the_remedy(self) -> None:
        guard = devserve.Guard("", self.port, ("Shop.example", "2001:db8::1"), ())
        of_itself = {"HTTP_HOST": "10.0.0.1:5000", "HTTP_ORIGIN": "http://10.0.0.1:5000"}
        self.assertIsNone(guard.refuses_reading(of_itself))
        for origin, remedy in {
            "http://localhost:3000": None,
            "https://shop.example": None,
            "http://[2001:db8::1]:3000": None,
            "http://evil.example": "Start devserve with --trusted-host evil.example.",
            "null": "Open the address in a tab of its own.",
        }.items():
            with self.subTest(origin):
                refusal = guard.refuses_reading({"HTTP_HOST": "localhost", "HTTP_ORIGIN": origin})
                self.assertEqual(refusal and refusal.remedy, remedy)

    def test_script_of_another_site_reads_neither_source_nor_values(self) -> None:
        """A framework's own CORS headers stay on the page, and may allow all the world to read it."""
        for origin, site in (
            ("https://evil.example", "cross-site"),
            ("http://evil.localhost.example", "same-site"),  # another host of the same company, say
            ("null", "cross-site"),
            ("http://x.example", None),
        ):
            for method in ("GET", "POST"):
                with self.subTest(origin, site=site, method=method):
                    headers: dict[str, Any] = {"Origin": origin, "Sec_Fetch_Site": site, "Sec_Fetch_Dest": "empty"}
                    answer = self.ask(f"/?{SECRET}", method=method, **headers)
                    self.assertEqual(answer.status, 500)
                    for word in ("ZeroDivisionError", "failing_app", SECRET, ".py"):
                        self.assertNotIn(word, answer.text)
        for origin, site in (
            ("http://localhost:3000", "same-site"),  # the development server of a front end
            ("http://127.0.0.1:3000", "cross-site"),
            ("https://tunnel.example", "same-origin"),  # behind a proxy that changes Host
            ("http://shop.example", "cross-site"),
        ):
            with self.subTest(origin):
                answer = self.ask(Origin=origin, Sec_Fetch_Site=site, Sec_Fetch_Dest="empty")
                self.assertIn("ZeroDivisionError", answer.text)
        form = {"Origin": "https://pay.example", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
        self.assertIn("ZeroDivisionError", self.ask(method="POST", body=None, **form).text)

    def test_the_link_on_the_terminal_leads_to_no_host_that_is_not_trusted(self) -> None:
        """A stranger on the network says that he is at his own address, where a page may ask for the PIN."""
        path = r"/__devserve__/crash/\w+"
        answer = self.ask(Host="10.6.6.6:80", Accept="text/plain")
        self.assertRegex(answer.text, rf"http://10\.6\.6\.6:80{path}")
        self.assertRegex(self.printed, rf"http://localhost:{self.port}{path}")
        self.assertNotIn("10.6.6.6", self.printed)
        self.ask(Host="shop.example")
        self.assertRegex(self.printed, rf"http://shop\.example{path}")

    def test_page_of_a_foreign_host_says_what_would_help(self) -> None:
        page = self.ask(Host="192.168.1.7:5000").text
        self.assertIn("ZeroDivisionError", page)
        self.assertIn("--trusted-host 192.168.1.7", page)

    def test_pages_may_not_be_framed_kept_or_guessed(self) -> None:
        for answer in (
            self.ask(),
            self.ask("/__devserve__/console"),
            self.ask("/__devserve__/alive"),
            self.post("eval", {}),
        ):
            policy = answer.headers["Content-Security-Policy"]
            for rule in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
                self.assertIn(rule, policy)
            self.assertNotIn("unsafe", policy)
            self.assertEqual(answer.headers["X-Frame-Options"], "DENY")
            self.assertEqual(answer.headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(answer.headers["Referrer-Policy"], "same-origin")
            self.assertEqual(answer.headers["Cache-Control"], "no-store")

    def test_nonce_is_new_each_time(self) -> None:
        self.assertEqual(len({self.ask().headers["Content-Security-Policy"] for _ in range(5)}), 5)


# =====================================================================================================================
# 9. Debugger
# =====================================================================================================================


def failing(error: BaseException) -> Iterator[bytes]:
    """Return an iterator that raises `error` at its first step."""
    yield from ()
    raise error


class Markup(html.parser.HTMLParser):
    """Which elements and attributes a page has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.scripts += tag == "script"


class DebuggerPages(Debugged):
    def test_page_tells_what_failed(self) -> None:
        answer = self.ask("/some/path?a=1")
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (500, "text/html; charset=utf-8"))
        self.assertEqual(int(answer.headers["Content-Length"]), len(answer.body))
        for text in ("ZeroDivisionError", "division by zero", "number", "/some/path"):
            self.assertIn(text, answer.text)
        self.assertIn("ZeroDivisionError: division by zero", self.printed)
        self.assertIn("GET /some/path", self.printed)
        self.assertNotIn("/devserve.py", self.printed)

    def test_answers_in_the_type_that_the_client_prefers(self) -> None:
        browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
        for accept, kind in {
            browser: "text/html",
            "*/*": "text/plain",
            None: "text/plain",
            "": "text/plain",
            "image/png": "text/plain",
            "text/markdown": "text/markdown",
            "text/markdown, */*": "text/markdown",
            "application/json": "application/json",
            "application/json, text/plain, */*": "application/json",
            "text/html;q=0.1, application/json;q=0.9": "application/json",
            "text/html;q=0, */*": "text/plain",
            "TEXT/HTML": "text/html",
            "text/*": "text/plain",
            "text/html;q=x": "text/plain",
            "text/html;q=0.5, */*;q=0.9": "text/plain",
            "text/html;level=1": "text/html",
            ",;,;q=": "text/plain",
        }.items():
            with self.subTest(accept):
                answer = self.ask(Accept=accept)
                self.assertEqual((answer.status, answer.headers["Content-Type"]), (500, f"{kind}; charset=utf-8"))
                self.assertIn("ZeroDivisionError", answer.text)

    @needs("hypothesis")
    def test_no_type_is_answered_that_a_client_likes_less_than_another_or_refuses(self) -> None:
        """RFC 9110, section 12.5.1, in any order, case and spacing, among types that are not ours."""
        from hypothesis import given, settings
        from hypothesis import strategies as st

        ours = list(devserve._WRITERS)
        kinds = st.sampled_from([*ours, "image/png", "application/xml", "text/css"])
        quality = st.integers(0, 10).map(lambda tenths: tenths / 10)
        space = st.sampled_from(["", " ", "\t"])
        written = st.sampled_from([str.lower, str.upper, str.title])
        ranges = st.dictionaries(kinds, quality, max_size=6)

        @settings(max_examples=300, deadline=None)
        @given(ranges, space, written, st.sampled_from(["", ";level=1"]), st.sampled_from(ours), st.booleans())
        def preferred(
            wanted: dict[str, float], gap: str, write: Any, parameter: str, default: str, rest: bool
        ) -> None:
            parts = [f"{gap}{write(kind)}{parameter}{gap};{gap}q={value}" for kind, value in wanted.items()]
            answered = devserve._preferred_type(",".join([*parts, "*/*;q=0.05"] if rest else parts), default)
            named = {kind: value for kind, value in wanted.items() if kind in ours and value}
            self.assertIn(answered, named or [default])
            self.assertEqual(named.get(answered, 0), max(named.values(), default=0))

        preferred()

    def test_answers_head_without_a_body(self) -> None:
        self.assertEqual(self.ask(method="HEAD").body, b"")
        self.assertEqual(self.ask("/__devserve__/alive", "HEAD").body, b"")

    def test_page_is_written_when_the_environ_or_the_working_directory_is_odd(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            environ[42] = environ["app.odd"] = "odd"
            raise LookupError

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        environ["HTTP_ACCEPT"] = "text/html"
        debugged = devserve.DebuggedApplication(app, guard=self.guard, terminal=devserve.Terminal(self.terminal))
        with mock.patch.object(os, "getcwd", side_effect=FileNotFoundError):
            page = b"".join(debugged(environ, lambda *arguments: print)).decode()
        self.assertTrue(page.startswith("<!doctype html>"), page[:200])
        self.assertIn("42", page)

    def test_says_what_failed_when_no_page_can_be_written(self) -> None:
        class Odd(Exception):
            __cause__ = property(lambda self: 1 / 0)

        for kind in (LookupError, Odd):

            def app(environ: Any, start_response: Any, kind: type[Exception] = kind) -> Any:
                raise kind("the crash")

            self.app = app
            with self.subTest(kind), mock.patch.object(devserve, "read_report", side_effect=ValueError):
                answer = self.ask()
                self.assertEqual((answer.status, answer.headers["Content-Type"]), (500, "text/plain; charset=utf-8"))
                self.assertIn("(ValueError)", answer.text)
                self.assertIn(kind.__name__, answer.text)

    def test_page_of_an_unlocked_browser_has_the_console_and_not_the_cookie(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            header = environ["HTTP_COOKIE"]
            jar = dict(pair.split("=") for pair in header.split("; "))
            raise LookupError(header, jar)

        self.app = app
        answer = self.ask(Cookie=f"a=b; {self.cookie}")
        self.assertIn('data-console="open"', answer.text)
        self.assertNotIn(self.guard.cookie_value("program", {}), answer.text)

    def test_page_shows_the_form_without_its_secrets(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            raise ValueError("after reading")

        self.app = app
        kind = "application/x-www-form-urlencoded"
        page = self.ask(
            "/buy", "POST", f"colour=green&password={SECRET}".encode(), Content_Type=kind, Cookie=f"a={SECRET}"
        ).text
        self.assertIn("green", page)
        self.assertNotIn(SECRET, page)

    def test_hostile_texts_never_become_markup(self) -> None:
        attack = HOSTILE_TEXT + "x" * 1_000_000
        kind = type("Attack<script>", (Exception,), {"__module__": "mod<script>"})
        friendly = Markup(self.ask().text)

        def app(environ: Any, start_response: Any) -> Any:
            code = compile(
                "def f(**k):\n    a = k\n    raise error",
                HOSTILE_TEXT.replace("\x00", "").replace("\ud800", ""),
                "exec",
            )
            error = kind(attack)
            error.__notes__ = [attack]
            error.__cause__ = KeyError(attack)
            namespace: dict[str, Any] = {"error": error, "__name__": attack}
            exec(code, namespace)
            namespace["f"](**{attack[:500].replace("\ud800", ""): attack, "b": [attack, {attack: attack}]})

        self.app = app
        for accept in ("text/html", "text/plain", "text/markdown", "application/json"):
            answer = self.ask(
                "/%3Cscript%3E",
                Accept=accept,
                X_Attack="<script>alert(1)</script>",
                Cookie="<script>",
                User_Agent="<img onerror=x>",
            )
            self.assertEqual(answer.status, 500)
            self.assertLess(len(answer.body), 300_000)
            self.assertNotIn("\x00", answer.text)
            if accept == "text/html":
                self.assertIn("Attack", answer.text)
                page = Markup(answer.text)
                self.assertEqual(page.scripts, friendly.scripts)
                self.assertFalse(page.attributes & {"onerror", "onclick", "onload", "style"})
                self.assertFalse(page.tags & {"img", "iframe", "object", "embed", "base"})

    def test_a_traceback_is_written_once_for_terminal_and_page(self) -> None:
        with mock.patch.object(devserve, "traceback_text", wraps=devserve.traceback_text) as terminal_text:
            self.assertIn("ZeroDivisionError", self.ask().text)
        self.assertEqual(terminal_text.call_count, 1)

    def test_page_of_endless_recursion_is_small_and_made_of_few_frames(self) -> None:
        def down(n: int) -> int:
            values = list(range(100))
            return down(n + 1) + len(values)

        self.app = lambda environ, start_response: down(0)
        answer = self.ask()
        self.assertIn("RecursionError", answer.text)
        self.assertLess(len(answer.body), 100_000)
        with (
            mock.patch.object(devserve, "view_position", wraps=devserve.view_position) as views,
            mock.patch.object(devserve, "_fill_template", wraps=devserve._fill_template) as filled,
        ):
            report = devserve.read_report(failure_of(down, 0))
            devserve.write_page(report, self.debugger.page_state({}, "n"))
        self.assertLess(views.call_count, 10)
        self.assertLess(filled.call_count, 2_000)

    def test_a_fault_in_the_page_itself_gives_plain_text(self) -> None:
        class Rude(Exception):
            def __str__(self) -> str:
                raise AssertionError("asked")

            __repr__ = __str__

        for fault in (MemoryError("no page today"), Rude()):
            for room in ("read_report", "write_page"):
                with self.subTest(room, fault=type(fault)), mock.patch.object(devserve, room, side_effect=fault):
                    answer = self.ask()
                    self.assertEqual(answer.status, 500)
                    self.assertEqual(answer.headers["Content-Type"], "text/plain; charset=utf-8")
                    self.assertIn("ZeroDivisionError: division by zero", answer.text)
                    self.assertIn(type(fault).__name__, answer.text)

    def test_alive_tells_the_reload_id(self) -> None:
        answer = self.ask("/__devserve__/alive")
        self.assertEqual(answer.json, {"reload_id": self.debugger.reload_id, "console": "locked", "why": ""})
        self.assertIn(self.debugger.reload_id, self.ask().text)
        self.assertEqual(self.ask("/__devserve__/alive", Cookie=self.cookie).json["console"], "open")
        closed = self.ask("/__devserve__/alive", Host="evil.example").json
        self.assertEqual(closed["console"], "closed")
        self.assertTrue(closed["why"])
        before = self.debugger.reload_id
        self.install(self.app)
        self.assertNotEqual(self.debugger.reload_id, before)

    def test_what_an_open_page_asks_by_itself_is_not_worth_a_line_of_the_log(self) -> None:
        environ: dict[str, Any] = {}
        for path, unlogged in (("alive", True), ("console", False), ("unlock", False), ("nothing", False)):
            with self.subTest(path):
                environ = {"PATH_INFO": f"/__devserve__/{path}"}
                wsgiref.util.setup_testing_defaults(environ)
                self.debugger(environ, lambda status, headers, exc_info=None: print)
                self.assertIs(environ.get(devserve.UNLOGGED, False), unlogged)

        def noting(given: Any, start_response: Any) -> Any:
            nonlocal environ
            environ = given
            return self.debugger(environ, start_response)

        self.server.set_app(noting)
        frame = self.frame()
        for name, fields in ("variables", {}), ("members", {"path": ["environ"]}), ("eval", {"code": "1"}):
            self.assertEqual(self.post(name, {"frame": frame, **fields}).status, 200)
            self.assertTrue(environ.get(devserve.UNLOGGED), name)

    def test_endpoints_lie_under_the_mount_point(self) -> None:
        def mount(environ: Any, start_response: Any) -> Any:
            wsgiref.util.shift_path_info(environ)
            return self.debugger(environ, start_response)

        self.server.set_app(mount)
        for path in ("/mount/x", "/mount/", "/mount/a/b/", "/mount", "/mount//x"):
            prefix = re.findall('data-prefix="([^"]*)"', self.ask(path).text)[0]
            joined = urllib.parse.urljoin(f"http://h/proxy/5000{path}", prefix + "/alive")
            self.assertEqual(joined, "http://h/proxy/5000/mount/__devserve__/alive", path)
        encoded = {"SCRIPT_NAME": "/", "PATH_INFO": "/a/b/c", "REQUEST_URI": "/a%2Fb/c?d=/e/f"}
        self.assertEqual(devserve._prefix_from(encoded), "../__devserve__")
        self.assertEqual(devserve._prefix_from({"SCRIPT_NAME": "/", "PATH_INFO": "/a"}), "__devserve__")
        self.assertEqual(self.ask("/mount/__devserve__/alive").status, 200)
        answer = self.ask(f"/mount/__devserve__/unlock?token={self.guard.token}")
        self.assertEqual(answer.headers["Location"].partition("#")[0], "console")

    def test_a_path_that_only_begins_alike_is_the_applications(self) -> None:
        self.assertIn("ZeroDivisionError", self.ask("/__devserve__x").text)

    def test_makes_a_guard_and_tells_its_pin_when_it_gets_none(self) -> None:
        output = io.StringIO()
        debugger = devserve.DebuggedApplication(
            self.app, pin="77-88", trusted_hosts=["shop.example"], terminal=devserve.Terminal(output)
        )
        debugger.terminal.flush()
        self.assertIn("PIN is 77-88", output.getvalue())
        self.assertIsNone(debugger.guard.refuses_host({"HTTP_HOST": "shop.example"}))
        self.assertRaises(devserve.DevserveError, devserve.DebuggedApplication, self.app, pin="-")
        debugger = devserve.DebuggedApplication(self.app, terminal=devserve.Terminal(output))
        self.assertIn(debugger.guard.pin, output.getvalue())

    def test_does_not_print_what_was_printed_before(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            raise ImportError("printed at the import")

        app.deferred = True  # type: ignore[attr-defined]
        self.install(app)
        self.assertIn("printed at the import", self.ask().text)
        self.assertEqual(self.printed, "")

    def test_console_is_closed_where_several_processes_serve(self) -> None:
        state = self.debugger.console_state({"HTTP_HOST": "localhost", "wsgi.multiprocess": True})
        self.assertEqual((state.state, state.secret), ("closed", ""))


class DebuggerCrashes(Debugged):
    """Every crash has an address, whoever the client was."""

    trusted_hosts = ("shop.example",)
    KINDS = ("text/html", "text/plain", "text/markdown", "application/json")

    def crash_id(self) -> str:
        return self.debugger.crashes.all()[0].id

    def test_the_link_stands_on_the_terminal_and_in_what_programs_get(self) -> None:
        for kind in ("text/plain", "text/markdown", "application/json", "*/*"):
            text = self.ask("/a", Accept=kind).text
            link = f"http://localhost:{self.port}/__devserve__/crash/{self.crash_id()}"
            self.assertIn(link, text)
            self.debugger.terminal.flush()
            self.assertIn(link, self.terminal.getvalue())
            page = self.ask(link.partition(str(self.port))[2])
            self.assertEqual((page.status, page.headers["Content-Type"]), (200, "text/html; charset=utf-8"))
            for word in ("ZeroDivisionError", "number", f"{self.crash_id()}-", "/a", self.guard.secret):
                self.assertIn(word, page.text)
            frame = re.findall(r"[0-9a-f]{16}-\d+", page.text)[0]
            self.assertEqual(self.post("eval", {"frame": frame, "code": "number"}).json["output"], "41\n")

    def test_the_link_is_by_the_host_that_was_used_if_it_is_trusted(self) -> None:
        for host, shown in (("shop.example", "shop.example"), ("10.0.0.7:1", "10.0.0.7:1")):
            self.assertIn(f"http://{shown}/__devserve__/crash/", self.ask(Host=host, Accept="*/*").text)
        self.ask(Host="evil.example")
        self.debugger.terminal.flush()
        link = f"http://localhost:{self.port}/__devserve__/crash/{self.crash_id()}"
        self.assertIn(link, self.terminal.getvalue())
        self.assertEqual(self.ask(link.partition(str(self.port))[2]).status, 200)

    def test_a_crash_is_shown_in_the_form_that_is_asked_for(self) -> None:
        self.ask("/a")
        for path in (f"crash/{self.crash_id()}", "last"):
            for kind in self.KINDS[1:]:
                answer = self.ask(f"/__devserve__/{path}", Accept=kind)
                self.assertEqual((answer.status, answer.headers["Content-Type"]), (200, f"{kind}; charset=utf-8"))
                self.assertIn("ZeroDivisionError", answer.text)
            for accept in ("*/*", None):
                answer = self.ask(f"/__devserve__/{path}", Accept=accept)
                self.assertEqual(answer.headers["Content-Type"], "text/markdown; charset=utf-8")
        answer = self.ask("/__devserve__/last")
        self.assertEqual((answer.status, answer.headers["Location"]), (303, f"crash/{self.crash_id()}"))

    def test_the_last_crashes_are_listed(self) -> None:
        self.assertIn("Nothing has failed", self.ask("/__devserve__/").text)
        self.assertEqual(self.ask("/__devserve__/last").status, 404)
        self.ask("/first", Accept="*/*")
        self.ask("/second?<b>", "POST", b"x")
        for accept in ("text/html", "*/*", "application/json"):
            text = self.ask("/__devserve__/", Accept=accept).text
            self.assertLess(text.index("POST /second"), text.index("GET /first"))
            self.assertEqual(text.count("ZeroDivisionError: division by zero"), 2)
            self.assertIn(self.crash_id(), text)
        row = self.ask("/__devserve__/", Accept="application/json").json[0]
        self.assertEqual((row["request"], row["id"]), ("POST /second", self.crash_id()))

    def test_a_path_commands_no_terminal_and_makes_no_line_of_the_list(self) -> None:
        self.ask("/a%1b%5d0;title%07%0a12:00:00%20GET%20/b%c2%9b2J", Accept="*/*")
        text = self.ask("/__devserve__/", Accept="*/*").text
        self.assertEqual(text.count("\n"), 1)
        self.assertTrue(text[:-1].isprintable(), text)
        for accept in ("text/html", "application/json"):
            self.assertTrue(self.ask("/__devserve__/", Accept=accept).text.replace("\n", "").isprintable(), accept)
        self.ask("/caf%C3%A9")
        self.assertIn(" GET /café ", self.ask("/__devserve__/", Accept="*/*").text)

    def test_crashes_that_are_gone_or_never_were_have_no_page(self) -> None:
        self.ask("/first")
        first = self.crash_id()
        for number in range(devserve.CRASH_LIMIT):
            self.ask(f"/{number}")
        for id in (first, "", "x", "../console", "0" * 16, first + "-0", "é"):
            answer = self.ask(f"/__devserve__/crash/{urllib.parse.quote(id)}")
            self.assertEqual(answer.status, 410)
            self.assertIn("This crash is gone", answer.text)

    def test_what_the_guard_asks_for(self) -> None:
        self.ask("/a")
        paths = (f"crash/{self.crash_id()}", "last", "")
        for path in paths:
            with self.subTest(path):
                path = f"/__devserve__/{path}"
                for host in ("evil.example", "a!b"):
                    for kind in self.KINDS:
                        answer = self.ask(path, Host=host, Accept=kind)
                        self.assertEqual(answer.status, 403)
                        self.assertNotIn("ZeroDivision", answer.text)
                for dest in ("empty", "iframe", "script", "image", "style", "object"):
                    self.assertEqual(self.ask(path, Accept="*/*", Sec_Fetch_Dest=dest).status, 403)
                self.assertLess(self.ask(path, Sec_Fetch_Dest="document").status, 400)
                self.assertEqual(self.ask(path, "POST", b"").status, 405)
        for path in paths[1:]:  # who was not given the address must be on this machine, or unlocked
            elsewhere: dict[str, Any] = {"X_Forwarded_For": "10.0.0.5", "Host": "10.0.0.7"}
            self.assertEqual(self.ask(f"/__devserve__/{path}", **elsewhere).status, 403)
            self.assertLess(self.ask(f"/__devserve__/{path}", Cookie=self.cookie, **elsewhere).status, 400)
        page = self.ask(f"/__devserve__/{paths[0]}", Host="10.0.0.7")
        self.assertEqual((page.status, self.guard.secret in page.text), (200, False))

    def test_all_stacks_are_for_the_person_at_the_keyboard(self) -> None:
        self.assertEqual(self.ask("/__devserve__/threads").status, 403)
        self.assertEqual(self.ask("/__devserve__/threads", Cookie=self.cookie, Host="10.0.0.7").status, 403)
        self.assertEqual(self.ask("/__devserve__/threads", Cookie=self.cookie, Sec_Fetch_Dest="empty").status, 403)
        end = threading.Event()
        self.addCleanup(end.set)
        native: Any = devserve.Watcher.__mro__[1]  # threads of which the module `threading` does not know
        native(target=end.wait, args=(DEADLINE,), name="a watcher", daemon=True).start()
        of_a_browser = self.guard.cookie({"HTTP_USER_AGENT": "Mozilla/5.0"}).partition(";")[0]
        for accept, cookie in (("text/html", of_a_browser), ("text/html", self.cookie), ("*/*", self.cookie)):
            text = self.ask("/__devserve__/threads", Cookie=cookie, Accept=accept).text
            self.assertIn("test_all_stacks_are_for_the_person_at_the_keyboard", text)
            self.assertLess(text.index("MainThread"), text.index("a watcher"), "first who stands in the application")

    def test_a_crash_after_the_headers_is_stored_and_a_stream_of_text_says_so_in_a_last_line(self) -> None:
        self.install(self.app, validate=False)
        for kind, last in (
            ("text/plain", r"first\ndevserve: LookupError ended this response; see (http\S+)\n"),
            ("text/html; charset=utf-8", r"first\n<p>devserve: LookupError ended this response; see (http\S+)</p>\n"),
            ("text/event-stream", r"first\n: devserve: LookupError ended this response; see (http\S+)\n"),
            ("application/json", "first"),
            ("image/png", "first"),
        ):
            chunks: list[bytes] = []

            def app(environ: Any, start_response: Any, kind: str = kind) -> Any:
                start_response("200 OK", [("Content-Type", kind)])
                yield b"first"
                raise LookupError("late <b>")

            environ: dict[str, Any] = {"HTTP_HOST": "localhost", "PATH_INFO": "/\x1b]0;title\x07\n\xc2\x9b2J"}
            wsgiref.util.setup_testing_defaults(environ)
            self.debugger.app = app
            with self.subTest(kind), self.assertRaisesRegex(LookupError, "late"):
                response = iter(self.debugger(environ, lambda *arguments: chunks.append))
                while True:
                    chunks.append(next(response))
            found = re.fullmatch(last, b"".join(chunks).decode())
            self.assertTrue(found, chunks)
            link = environ[devserve.CRASH_LINK]
            self.assertIn(f"GET /\\x1b]0;title\\x07\\n\\x9b2J failed: {link}", self.printed)
            self.assertIn("LookupError", self.ask(link.partition("localhost")[2]).text)
            if found and found.groups():
                self.assertEqual(found.group(1), link)

    def test_a_stream_whose_length_or_encoding_is_known_gets_no_last_line(self) -> None:
        for header in (("Content-Length", "100"), ("Content-Encoding", "gzip")):
            headers = {name.lower(): value for name, value in (header, ("Content-Type", "text/plain"))}
            self.assertEqual(devserve._last_line(LookupError(), "http://x", headers), b"")

    def test_what_other_code_reports_has_an_address_too(self) -> None:
        for environ, what, shown in (
            (None, "", "outside of a request"),
            (None, "the task send_mail", "the task send_mail"),
            ({"REQUEST_METHOD": "PUT", "PATH_INFO": "/x", "HTTP_HOST": "localhost:1"}, "", "PUT /x"),
        ):
            link = self.debugger.report(failure_of(lambda: 1 / 0), environ, what)
            id = link.rpartition("/")[2]
            self.assertIn("ZeroDivisionError", self.ask("/__devserve__/crash/" + id).text)
            self.assertEqual(self.debugger.crashes.all()[0].what, shown)
            reason = self.post("again", {"crash": id}).json.get("reason", "")
            self.assertEqual("there was none" in reason, environ is None, reason)
            self.assertTrue(
                link.startswith(f"http://localhost:{1 if environ else self.port}/__devserve__/crash/"), link
            )

    def test_what_was_read_of_the_body_of_a_request_that_fails_later_is_sent_again(self) -> None:
        seen: list[bytes] = []

        def app(environ: Any, start_response: Any) -> Any:
            seen.append(environ["wsgi.input"].read(size))
            threading.Thread(target=self.debugger.report, args=(failure_of(lambda: 1 / 0), environ)).start()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return []

        self.app = app
        for size, answer in ((4, "200 OK"), (2, None)):
            self.ask(f"/{size}", "POST", b"body", Accept="*/*")
            id = eventually(lambda: [c.id for c in self.debugger.crashes.all() if c.what == f"POST /{size}"], "it")[0]
            self.assertEqual(self.post("again", {"crash": id}).json.get("status"), answer)
        self.assertEqual(seen, [b"body", b"body", b"bo"])

    def test_a_request_is_sent_again_as_it_was(self) -> None:
        seen: list[Any] = []

        def app(environ: Any, start_response: Any) -> Any:
            body = environ["wsgi.input"].read(3)
            names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_X_SHOP", "CONTENT_TYPE", "HTTP_COOKIE")
            seen.append([environ.get(name) for name in names] + [body + environ["wsgi.input"].read(4)])
            if len(seen) != 2:
                raise LookupError
            start_response("201 Created", [("Content-Type", "text/plain")])
            return [b"x"]

        self.app = app
        headers = {"X_Shop": "1", "Content_Type": "text/x", "Accept": "*/*", "Cookie": f"a=b; {self.cookie}"}
        self.ask("/order?a=1", "POST", b"body and", **headers)
        id = self.crash_id()
        self.assertEqual(self.post("again", {"crash": id}, Cookie=None).json["error"], "cookie")
        reply = self.post("again", {"crash": id}).json
        self.assertEqual((reply["status"], reply["crash"]), ("201 Created", ""))
        self.assertGreaterEqual(reply["seconds"], 0)
        self.assertEqual(seen[0], ["POST", "/order", "a=1", "1", "text/x", "a=b", b"body an"])
        self.assertEqual(seen[0], seen[1])
        reply = self.post("again", {"crash": id}).json
        self.assertEqual((reply["status"], reply["crash"]), ("500 Internal Server Error", self.crash_id()))
        self.assertNotEqual(self.crash_id(), id)
        self.assertEqual(self.post("again", {"crash": "x"}).json["error"], "gone")

    def test_requests_that_failed_outlive_a_reload_and_go_to_the_new_code(self) -> None:
        self.ask("/first", Accept="*/*")
        self.ask("/order?a=1", "POST", b"body", Accept="*/*")
        told = marshal.loads(marshal.dumps(self.debugger.remember()))
        before = self.crash_id()

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["wsgi.input"].read()]

        self.install(app)
        self.debugger.recall(told)
        self.assertEqual([crash.what for crash in self.debugger.crashes.all()], ["POST /order", "GET /first"])
        page = self.ask(f"/__devserve__/crash/{before}")
        self.assertEqual(page.status, 200)
        for word in ("ZeroDivisionError", "division by zero", "The code was reloaded", "/order?a=1"):
            self.assertIn(word, page.text)
        for kind in self.KINDS[1:]:
            self.assertIn("ZeroDivisionError", self.ask(f"/__devserve__/crash/{before}", Accept=kind).text)
        self.assertEqual(self.post("again", {"crash": before}).json["status"], "200 OK")
        self.assertEqual(len(self.debugger.remember()), 2)

    def test_a_save_that_breaks_the_application_keeps_crashes_and_frames(self) -> None:
        frame = self.frame("/page")
        self.debugger.console("app")
        self.debugger.install(failing_app, "another")
        self.assertEqual(self.post("eval", {"frame": frame, "code": "number"}).json["output"], "41\n")
        self.assertEqual(self.ask("/__devserve__/alive").json["reload_id"], "another")
        self.assertIn("failing_app", self.post("eval", {"frame": "app", "code": "app"}).json["output"])

    def test_a_body_that_the_application_did_not_read_is_kept_if_it_is_small(self) -> None:
        self.ask("/a", "POST", b"small")
        self.assertEqual(self.debugger.crashes.all()[0].request.body, b"small")
        environ = {"CONTENT_LENGTH": "100000", "wsgi.input": io.BytesIO(b"x" * 100_000)}
        self.assertIsNone(devserve.record_body({}))
        body = devserve.record_body(environ)
        assert body is not None
        body.finish()
        self.assertEqual((bytes(body.kept), body.is_whole), (b"", False))
        while body.read(1000):
            pass
        self.assertEqual((len(body.kept), body.is_whole), (devserve._RECORDED_BODY, False))

    def test_a_body_without_length_is_whole_when_its_end_has_been_read(self) -> None:
        def body() -> Any:
            stream = io.BytesIO(b"one\ntwo\n")
            return devserve.record_body({"wsgi.input": stream, "wsgi.input_terminated": True})

        ways: dict[str, Callable[[Any], object]] = {
            "read": lambda body: body.read(),
            "read in pieces": lambda body: [*iter(lambda: body.read(3), b"")],
            "read1": lambda body: [*iter(lambda: body.read1(3), b"")],
            "readlines": lambda body: body.readlines(),
            "lines": lambda body: [next(body), *body],
            "text": lambda body: [*io.TextIOWrapper(body, "utf-8")],
        }
        for name, read in ways.items():
            with self.subTest(name):
                recorded = body()
                read(recorded)
                self.assertEqual((recorded.kept, recorded.is_whole), (b"one\ntwo\n", True))
        receive, send = map(os.fdopen, os.pipe(), ("rb", "wb"))
        with receive, send:
            live: Any = devserve.record_body({"wsgi.input": receive, "wsgi.input_terminated": True})
            send.write(b"now")
            send.flush()
            self.assertEqual(returning(live.read1, 100), b"now", "it does not wait for more")
        recorded = body()
        self.assertFalse(recorded.is_whole)
        self.assertEqual(next(recorded), b"one\n")
        recorded.read(0)
        self.assertFalse(recorded.is_whole)

    def test_a_response_without_end_is_left_when_it_is_sent_again(self) -> None:
        closed: list[bool] = []

        class Endless:
            def __iter__(self) -> Iterator[bytes]:
                return iter(lambda: b"x", b"")

            def close(self) -> None:
                closed.append(True)

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return Endless()

        request = devserve._RecordedRequest.of({"REQUEST_METHOD": "GET", "PATH_INFO": "/stream"})
        with mock.patch.object(devserve, "_REPLAY_SECONDS", 0.01):
            reply = devserve.DebuggedApplication(app, guard=self.guard).replay(request, {})
        self.assertEqual((reply["status"], closed), ("200 OK", [True]))


class DebuggerFragments(Debugged):
    """What a script puts into the application's own page, or a frame shows, is a piece and not a page."""

    BY: ClassVar[tuple[dict[str, Any], ...]] = (
        {"HX_Request": "true", "Accept": "*/*"},
        {"HX_Request": "true", "Accept": "text/html"},
        {"Turbo_Frame": "cart", "Accept": "text/html, application/xhtml+xml"},
        {"Accept": "text/vnd.turbo-stream.html, text/html, application/xhtml+xml"},
        {"X_Up_Version": "3.0", "Accept": "text/html"},
        {"X_Requested_With": "XMLHttpRequest", "Accept": "*/*"},
        {"Sec_Fetch_Dest": "empty", "Accept": "*/*"},
        {"Sec_Fetch_Dest": "empty", "Accept": "text/html"},
        {"Sec_Fetch_Dest": "iframe", "Accept": "text/html"},
    )

    def test_it_is_small_runs_nothing_asks_nothing_and_may_be_framed_by_its_site(self) -> None:
        for headers in self.BY:
            with self.subTest(headers):
                answer = self.ask(**headers)
                self.assertEqual((answer.status, answer.headers["Content-Type"]), (500, "text/html; charset=utf-8"))
                page = Markup(answer.text)
                self.assertFalse(page.tags & {"script", "html", "body", "head", "style", "form", "input", "template"})
                self.assertFalse(page.attributes & {"id", "class", "onclick"})
                id = self.debugger.crashes.all()[0].id
                for word in ("ZeroDivisionError", "number / 0", f"/__devserve__/crash/{id}"):
                    self.assertIn(word, answer.text)
                self.assertNotIn(self.guard.secret, answer.text)
                self.assertEqual(answer.headers["X-Frame-Options"], "SAMEORIGIN")
                self.assertIn("default-src 'none'", answer.headers["Content-Security-Policy"])

    def test_programs_and_documents_get_what_they_did(self) -> None:
        cases: tuple[tuple[dict[str, Any], str], ...] = (
            ({"Accept": "*/*"}, "text/plain"),
            ({"Accept": "text/html", "Sec_Fetch_Dest": "document"}, "text/html"),
            ({"Accept": "application/json, text/plain, */*", "Sec_Fetch_Dest": "empty"}, "application/json"),
            ({"Accept": "text/plain, */*", "HX_Request": "true"}, "text/plain"),
        )
        for headers, kind in cases:
            answer = self.ask(**headers)
            self.assertEqual(answer.headers["Content-Type"].partition(";")[0], kind)
            self.assertEqual(answer.text.startswith("<!doctype html>"), kind == "text/html")

    def test_hostile_texts_are_no_markup_in_it(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            raise LookupError(HOSTILE_TEXT)

        self.app = app
        page = Markup(self.ask("/%3Cscript%3E", HX_Request="true").text)
        self.assertFalse(page.tags - {"div", "b", "pre", "a", "span", "i", "mark", "code", "p", "table", "tr", "td"})


class DebuggerLive(unittest.TestCase):
    """Pages that a browser navigates to follow a save; nothing else is touched."""

    PAGE = b"<!doctype html><title>Shop</title>"
    HTML = ("Content-Type", "text/html; charset=utf-8")

    def setUp(self) -> None:
        self.warnings: list[str] = []
        self.live = devserve.LivePages(self.answer, "r1", self.warnings.append)
        self.status, self.headers = "200 OK", [self.HTML]
        self.body: Iterable[bytes] = [self.PAGE]
        self.seen: dict[str, Any] = {}

    def answer(self, environ: Any, start_response: Any) -> Any:
        self.seen = dict(environ)
        start_response(self.status, self.headers)
        return self.body

    def ask(self, path: str = "/a/b", **environ: Any) -> tuple[str, dict[str, str], bytes]:
        heads: list[Any] = []
        sent: dict[str, Any] = {"PATH_INFO": path, "HTTP_SEC_FETCH_DEST": "document", **environ}
        wsgiref.util.setup_testing_defaults(sent)
        response = self.live(sent, lambda *arguments: heads.append(arguments) or print)  # type: ignore[func-returns-value]
        body = b"".join(response)
        getattr(response, "close", lambda: None)()
        return heads[-1][0], {name.lower(): value for name, value in heads[-1][1]}, body

    def follows(self, **environ: Any) -> bool:
        body = self.ask(**environ)[2]
        self.assertTrue(body.startswith(self.PAGE))
        return b"live.js" in body

    def test_one_script_is_added_and_the_length_kept_right(self) -> None:
        for body in ([self.PAGE], (self.PAGE,), [self.PAGE[:3], self.PAGE[3:]], iter([self.PAGE])):
            self.body, self.headers = body, [self.HTML, ("Content-Length", str(len(self.PAGE)))]
            with self.subTest(type(body)):
                _, headers, text = self.ask()
                self.assertEqual(int(headers["content-length"]), len(text))
                self.assertRegex(
                    text.decode()[len(self.PAGE) :],
                    r'^\n<script src="../__devserve__/live.js" data-reload-id="r1" data-seen="0"></script>\n$',
                )
        self.body, self.headers = [], [self.HTML, ("Content-Length", "0")]
        self.assertEqual(int(self.ask()[1]["content-length"]), len(self.ask()[2]))

    def test_only_navigations_are_touched(self) -> None:
        self.assertTrue(self.follows())
        self.assertTrue(self.follows(HTTP_SEC_FETCH_DEST="document", HTTP_ACCEPT="*/*"))
        for environ in (
            {"HTTP_SEC_FETCH_DEST": "empty"},
            {"HTTP_SEC_FETCH_DEST": "iframe"},
            {"HTTP_HX_REQUEST": "true"},
            {"HTTP_X_REQUESTED_WITH": "XMLHttpRequest", "HTTP_ACCEPT": "text/html"},
            {"REQUEST_METHOD": "POST"},
            {"REQUEST_METHOD": "HEAD"},
        ):
            with self.subTest(environ):
                self.assertFalse(self.follows(**environ))
        program: dict[str, Any] = {"PATH_INFO": "/", "HTTP_ACCEPT": "*/*"}
        self.assertFalse(devserve._is_navigation({**program, "REQUEST_METHOD": "GET"}))
        browser = {**program, "REQUEST_METHOD": "GET", "HTTP_ACCEPT": "text/html,*/*;q=0.8"}
        self.assertTrue(devserve._is_navigation(browser))

    def test_only_complete_and_unencoded_pages_are_touched(self) -> None:
        for status, header in (
            ("200 OK", ("Content-Type", "application/xhtml+xml")),
            ("200 OK", ("Content-Type", "text/html5")),
            ("200 OK", ("Content-Encoding", "gzip")),
            ("206 Partial Content", ("Content-Range", "bytes 0-3/40")),
            ("200 OK", ("Content-Disposition", "attachment")),
            ("200 OK", ("Content-Digest", "sha-256=:x:")),
            ("304 Not Modified", ("X-A", "b")),
        ):
            self.status, self.headers = status, [header] if header[0] == "Content-Type" else [self.HTML, header]
            with self.subTest(header):
                self.assertFalse(self.follows())
        self.status, self.headers = "404 Not Found", [self.HTML]
        self.assertTrue(self.follows())

    def test_a_page_with_the_script_has_validators_of_its_own(self) -> None:
        for tag, marked in (('"a"', '"a-live"'), ('W/"a"', 'W/"a-live"')):
            self.status, self.headers = "200 OK", [self.HTML, ("ETag", tag)]
            self.assertEqual(self.ask()[1]["etag"], marked)
            self.assertEqual(self.ask(HTTP_SEC_FETCH_DEST="empty")[1]["etag"], tag)
            self.status = "304 Not Modified"
            self.assertEqual(self.ask(HTTP_IF_NONE_MATCH=f'{marked}, "b"')[1]["etag"], marked)
            self.assertEqual(self.seen["HTTP_IF_NONE_MATCH"], f'{tag}, "b"')
            self.assertEqual(self.ask(HTTP_IF_NONE_MATCH=tag)[1]["etag"], tag)

    def test_a_policy_is_respected_and_said_once(self) -> None:
        for policy, runs in (
            ("default-src 'self'", True),
            ("script-src 'self' 'nonce-x'; connect-src *", True),
            ("img-src 'none'", True),
            ("default-src 'self'; script-src 'nonce-x'", False),
            ("script-src 'self' 'strict-dynamic' 'nonce-x'", False),
            ("script-src 'self'; connect-src https://api.example", False),
            ("default-src 'none'", False),
            ("default-src *, script-src 'none'", False),
            ("sandbox", False),
        ):
            self.headers = [self.HTML, ("Content-Security-Policy", policy)]
            with self.subTest(policy):
                self.assertEqual(self.follows(), runs)
        self.assertEqual(len(self.warnings), 1)
        self.assertIn("/a/b does not follow a save", self.warnings[0])
        self.assertIn("'self'", self.warnings[0])

    def test_it_tells_what_has_changed_since(self) -> None:
        def ask(since: str) -> Any:
            return json.loads(self.ask("/__devserve__/live", QUERY_STRING=f"since={since}")[2])

        self.assertEqual(ask("0"), {"reload_id": "r1", "count": 0, "changes": []})
        self.assertTrue(self.live.changed(["/shop/static/a.css", "/shop/static/b.png"]))
        self.assertEqual(ask("0"), {"reload_id": "r1", "count": 2, "changes": ["a.css", "b.png"]})
        self.assertEqual(ask("1")["changes"], ["b.png"])
        for odd in ("2", "3", "", "x", "-1", "9" * 5000, "²"):
            self.assertEqual(ask(odd)["changes"], [])
        self.live.changed(f"{n}.css" for n in range(1000))
        self.assertEqual(len(ask("0")["changes"]), 1002)  # none is lost, however many a build has written
        self.live.changed(["/shop/static/a.css"] * 2)
        self.assertEqual(ask("1002"), {"reload_id": "r1", "count": 1004, "changes": ["a.css"]})
        self.assertIn(b'data-seen="1004"', self.ask()[2])
        self.live.changes["later.css"] = self.live.count  # the watcher is about to count it
        self.assertEqual(ask("1002")["changes"], ["a.css"])
        status, headers, text = self.ask("/__devserve__/live.js")
        self.assertEqual((status, headers["content-type"]), ("200 OK", "text/javascript; charset=utf-8"))
        self.assertIn(b"currentScript", text)

    def test_the_guard_is_asked_and_other_paths_of_ours_pass(self) -> None:
        self.assertFalse(self.follows(path="/__devserve__/console"))
        guard = devserve.Guard()
        self.live.refuses = guard.refuses_reading
        self.assertEqual(self.ask("/__devserve__/live", HTTP_HOST="evil.example")[0], "403 Forbidden")
        self.assertEqual(self.ask("/__devserve__/live", HTTP_HOST="localhost")[0], "200 OK")

    def test_error_pages_of_the_debugger_are_not_touched(self) -> None:
        guard, terminal = devserve.Guard(), devserve.Terminal(io.StringIO())
        self.live.app = devserve.DebuggedApplication(failing_app, guard=guard, terminal=terminal)
        status, _, text = self.ask(HTTP_ACCEPT="text/html")
        self.assertEqual((status[:3], b"live.js" in text, self.warnings), ("500", False, []))


class DebuggerConsole(Debugged):
    def eval(self, frame: str, code: str) -> str:
        answer = self.post("eval", {"frame": frame, "code": code})
        self.assertEqual(answer.status, 200, answer.text)
        return str(answer.json["output"])

    def test_evaluates_in_the_frame(self) -> None:
        frame = self.frame()
        self.assertEqual(self.eval(frame, "number + 1"), "42\n")
        self.eval(frame, "number = 7")
        self.assertEqual(self.eval(frame, "number"), "7\n")
        self.assertEqual(
            self.post("eval", {"frame": frame, "code": "if 1:"}).json, {"output": "", "more": True, "running": False}
        )

    def test_two_pages_keep_their_own_state(self) -> None:
        frames = self.frame("/one"), self.frame("/two")
        for _ in range(50):
            for frame in frames:
                self.eval(frame, f"number += {1 + frames.index(frame)}")
        self.assertEqual([self.eval(frame, "number") for frame in frames], ["91\n", "141\n"])

    def test_has_a_console_for_the_application_alone(self) -> None:
        self.assertIn("function", self.eval("app", "app"))
        self.assertEqual(self.ask("/__devserve__/console", Cookie=self.cookie).status, 200)

    def test_completes(self) -> None:
        answer = self.post("complete", {"frame": self.frame(), "code": "1 + numb"}).json
        self.assertEqual(answer, {"start": 4, "matches": ["number"]})

    def test_interrupts_from_another_connection(self) -> None:
        if not CAN_INTERRUPT:
            self.skipTest("needs an interpreter that can interrupt a thread")
        outputs: list[str] = []
        thread = threading.Thread(target=lambda: outputs.append(self.eval("app", "while True: pass\n")))
        thread.start()
        eventually(
            lambda: self.post("interrupt", {"frame": "app"}).json["interrupted"], "the evaluation is interrupted"
        )
        thread.join(DEADLINE)
        self.assertIn("KeyboardInterrupt", outputs[0])

    def test_reads_variables_when_asked(self) -> None:
        answer = self.post("variables", {"frame": self.frame()}, Cookie=None)
        self.assertIn("41", answer.json["html"])

    def test_shows_more_source_when_asked(self) -> None:
        frame = self.frame()
        few, many = (self.post("source", {"frame": frame, "lines": lines}, Cookie=None).json for lines in (3, 400))
        self.assertLess(len(few["html"]), len(many["html"]))
        self.assertFalse(few["all"])
        for lines in (0, -1, 10**9, "x", None, 1.5, True):
            self.assertEqual(self.post("source", {"frame": frame, "lines": lines}).status, 200)

    def test_says_when_a_frame_is_gone(self) -> None:
        frame = self.frame("/page")
        for number in range(devserve.CRASH_LIMIT):
            self.ask(f"/{number}")
        for name in ("eval", "complete", "interrupt", "variables", "source"):
            answer = self.post(name, {"frame": frame, "code": "1"})
            self.assertEqual((answer.status, answer.json["error"]), (410, "gone"))

    def test_what_fails_again_and_again_does_not_push_out_other_crashes(self) -> None:
        frame = self.frame("/page")
        for _ in range(2 * devserve.CRASH_LIMIT):
            self.ask("/polled", Accept="application/json")
        self.assertEqual(self.eval(frame, "number"), "41\n")

    def test_a_page_that_is_asked_for_again_lets_go_of_its_last_crash(self) -> None:
        class Lock:
            pass

        held: weakref.WeakSet[Lock] = weakref.WeakSet()
        before: list[int] = []

        def app(environ: Any, start_response: Any) -> Any:
            before.append(len(held))
            lock = Lock()
            held.add(lock)
            try:
                return 1 / 0
            except ZeroDivisionError as error:
                lock.error = error  # type: ignore[attr-defined]
                raise

        self.app = app
        frame = self.frame("/locked?a=1")
        self.assertIn("Lock", self.eval(frame, "lock"))
        self.ask("/locked?a=2")
        self.ask("/locked?a=1")
        self.assertEqual(before, [0, 1, 1])
        self.assertEqual(self.post("eval", {"frame": frame, "code": "1"}).json["error"], "gone")
        self.assertEqual(self.ask(f"/__devserve__/crash/{frame.partition('-')[0]}").status, 200)

    def test_reaches_each_leaf_of_a_group(self) -> None:
        class BaseExceptionGroup(Exception):
            exceptions: tuple[BaseException, ...] = ()

        def leaf(value: int) -> None:
            inside = value
            raise ValueError(inside)

        group = BaseExceptionGroup("both")
        group.exceptions = tuple(failure_of(leaf, value) for value in (1, 2))

        def app(environ: Any, start_response: Any) -> Any:
            raise group

        self.app = app
        ids = sorted(set(re.findall(r"[0-9a-f]{16}-\d+", self.ask().text)))
        found = {self.eval(id, "inside") for id in ids}
        self.assertLessEqual({"1\n", "2\n"}, found)


class DebuggerTransparency(Debugged):
    """A response that does not fail is not touched."""

    def environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        return environ

    def test_passes_lists_and_files_through_as_they_are(self) -> None:
        chunks = [b"a", b"b"]
        file = wsgiref.util.FileWrapper(io.BytesIO(b"x"))

        def start_response(*arguments: Any) -> Any: ...

        class Chunks(list[bytes]):
            pass

        for response in (chunks, (b"a",), [], Chunks([b"a"]), file):

            def app(environ: Any, start_response: Any, response: Any = response) -> Any:
                start_response("200 OK", [])
                return response

            environ = {**self.environ(), "wsgi.file_wrapper": wsgiref.util.FileWrapper}
            self.assertIs(devserve.DebuggedApplication(app, guard=self.guard)(environ, start_response), response)

    def test_each_kind_of_iterable_comes_whole_and_is_closed(self) -> None:
        closed: list[bool] = []

        class Response:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"a", b"b"])

            def close(self) -> None:
                closed.append(True)

        class Forwarding:
            def __getitem__(self, index: int) -> bytes:
                return [b"a", b"b"][index]

            def __getattr__(self, name: str) -> Any:
                return getattr([b"a", b"b"], name)

        made: Any
        for made, body in (
            (collections.deque([b"a"]), b"a"),
            (Response(), b"ab"),
            (Forwarding(), b"ab"),
            (iter([b"a"]), b"a"),
            ((), b""),
        ):

            def app(environ: Any, start_response: Any, made: Any = made) -> Any:
                start_response("200 OK", [])
                return made

            with self.subTest(made):
                response: Any = devserve.DebuggedApplication(app, guard=self.guard)(self.environ(), lambda *a: print)
                self.assertEqual(b"".join(response), body)
                getattr(response, "close", lambda: None)()
        self.assertEqual(closed, [True])

    def test_application_gets_all_cookies_but_those_that_open_a_console(self) -> None:
        seen: list[Any] = []

        def app(environ: Any, start_response: Any) -> Any:
            seen.append(environ.get("HTTP_COOKIE"))
            start_response("200 OK", [])
            return []

        debugged = devserve.DebuggedApplication(app, guard=self.guard)
        table = {
            "a=1;b=2 ; c": "a=1;b=2 ; c",
            f"a=1; {self.cookie}; b=2": "a=1; b=2",
            f"{self.cookie}; devserve_5000=x; b=devserve_1": "b=devserve_1",
            "devserve_theme=dark; devserve_5000x=y": "devserve_theme=dark; devserve_5000x=y",
            self.cookie: None,
            "": "",
        }
        for sent in table:
            debugged({**self.environ(), "HTTP_COOKIE": sent}, lambda *arguments: print)
        self.assertEqual(seen, list(table.values()))

    def test_passes_each_chunk_before_the_next_is_asked_for(self) -> None:
        events: list[str] = []

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            for n in range(3):
                events.append(f"made {n}")
                yield b"%d" % n

        for chunk in devserve.DebuggedApplication(app, guard=self.guard)(self.environ(), lambda *a: None):  # type: ignore[arg-type]
            events.append(f"sent {chunk.decode()}")
        self.assertEqual(events, ["made 0", "sent 0", "made 1", "sent 1", "made 2", "sent 2"])

    def test_passes_status_headers_and_bytes_on(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            write = start_response("202 Fine", [("Content-Type", "text/x"), ("X-A", "1"), ("X-A", "2")])
            write(b"written ")
            return (part for part in (b"", b"and ", b"yielded"))

        self.app = app
        answer = self.ask()
        self.assertEqual(
            (answer.status, answer.body, answer.headers.get_all("X-A")), (202, b"written and yielded", ["1", "2"])
        )

    def test_passes_the_request_body_on(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            stream = environ["wsgi.input"]
            body = stream.readline() + stream.read(3) + b"".join(stream.readlines(4))
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [body]

        sent = b"one\ntwo\nthree"
        self.install(lambda environ, start_response: app({**environ, "wsgi.input": io.BytesIO(sent)}, start_response))
        self.assertEqual(self.ask().body, sent)
        buffer = bytearray(5)
        recorded = devserve._RecordedBody(io.BytesIO(b"password=x"), 10)
        self.assertEqual((recorded.readinto(memoryview(buffer)), bytes(buffer)), (5, b"passw"))
        self.assertEqual((recorded.read(), recorded.readinto(buffer), bytes(buffer)), (b"ord=x", 0, b"passw"))
        self.assertEqual(bytes(recorded.kept), b"password=x")
        recorded = devserve._RecordedBody(io.BytesIO(b"x" * 1_000_000), 1_000_000)
        self.assertEqual(sum(len(line) for line in recorded), 1_000_000)
        self.assertEqual(len(recorded.kept), devserve._RECORDED_BODY)

    def test_records_the_fields_of_a_form_around_a_large_file(self) -> None:
        part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
        parts = [("first", "", "1"), ("photo", '; filename="x.png"', "\n" * 300_000), ("last", "", "2")]
        body = ("".join(part.format(*each) for each in parts) + "--b--").encode()
        for read in (
            lambda stream: stream.read(),
            lambda stream: list(stream),
            lambda stream: iter(lambda: stream.read(999), b""),
        ):
            recorded = devserve._RecordedBody(io.BytesIO(body), len(body))
            for _ in read(recorded):
                pass
            form = devserve.read_request(
                {"CONTENT_TYPE": "multipart/form-data; boundary=b"}, bytes(recorded.kept)
            ).form
            self.assertEqual(form, (("first", "1"), ("photo", "(the file x.png)"), ("last", "2")))

    def test_closes_what_the_application_returned(self) -> None:
        closed: list[str] = []

        class Response:
            def __init__(self, fail: bool) -> None:
                self.fail = fail

            def __iter__(self) -> Iterator[bytes]:
                if self.fail:
                    raise ValueError
                yield b"x"

            def close(self) -> None:
                closed.append("closed")

        for fail in (False, True):

            def app(environ: Any, start_response: Any, fail: bool = fail) -> Any:
                start_response("200 OK", [("Content-Type", "text/plain")])
                return Response(fail)

            self.app = app
            self.assertEqual(self.ask().status, 500 if fail else 200)
        eventually(lambda: closed == ["closed", "closed"], "two closings, of which the client does not hear")

    def test_leaves_no_circle_behind_that_only_the_collector_frees(self) -> None:
        class Context:
            def __init__(self, environ: Any) -> None:
                self.environ = environ

        alive: weakref.WeakSet[Context] = weakref.WeakSet()

        def app(environ: Any, start_response: Any) -> Any:
            context = Context(environ)
            alive.add(context)
            environ[devserve.PRESERVE_CONTEXT](context)
            start_response("200 OK", [])
            return iter([b"x"]) if environ["PATH_INFO"] == "/iterator" else [b"x"]

        self.addCleanup(gc.enable)
        gc.disable()
        for path in ("/list", "/iterator"):
            response = devserve.DebuggedApplication(app, guard=self.guard)(
                {**self.environ(), "PATH_INFO": path}, lambda *arguments: print
            )
            self.assertEqual(b"".join(response), b"x")
            getattr(response, "close", list)()
            del response
            if sys.implementation.name == "cpython":
                self.assertEqual(len(alive), 0, path)

    def test_costs_a_healthy_request_little(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return [b"x"]

        debugged = devserve.DebuggedApplication(app, guard=self.guard)
        environ = self.environ()

        for _ in range(2):  # the first may import something
            count = steps(lambda: debugged(environ, lambda *arguments: print))
        most = 250 if sys.implementation.name == "pypy" else 150  # PyPy counts more calls: 187
        self.assertLess(count, most)  # a Flask view that says hello takes 1,200


class DebuggerFailures(Debugged):
    """Wherever an application fails, the client sees a page or a cut, never a lie."""

    def debugged(self, app: Any) -> devserve.DebuggedApplication:
        return devserve.DebuggedApplication(app, guard=self.guard, terminal=devserve.Terminal(self.terminal))

    def fails(self, app: Callable[[Any, Any], Any], error: str) -> None:
        self.app = app
        answer = self.ask()
        self.assertEqual(answer.status, 500)
        self.assertIn(error, answer.text)
        self.assertIn(error, self.printed)

    def test_in_the_first_step_of_a_generator(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5"), ("X-Gone", "1")])
            yield from failing(LookupError("at once"))

        self.fails(app, "LookupError: at once".split(":")[0])
        self.assertIsNone(self.ask().headers["X-Gone"])

    def test_after_start_response_and_an_empty_chunk(self) -> None:
        self.install(self.app, validate=False)
        sent: list[Any] = []

        def start_response(*arguments: Any) -> Any:
            sent.append(arguments)

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            yield b""
            raise LookupError("late")

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        body = b"".join(
            devserve.DebuggedApplication(app, guard=self.guard, terminal=devserve.Terminal(self.terminal))(
                environ, start_response
            )
        )
        self.assertIn(b"late", body)
        self.assertEqual([arguments[0] for arguments in sent], ["200 OK", "500 Internal Server Error"])
        self.assertIsInstance(sent[1][2][1], LookupError)

    def test_after_the_first_chunk_the_server_gets_the_exception(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            yield b"first"
            raise LookupError("in mid-stream")

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        response = iter(self.debugged(app)(environ, lambda *a: None))  # type: ignore[arg-type]
        self.assertEqual(next(response), b"first")
        self.assertRaisesRegex(LookupError, "in mid-stream", next, response)

    def test_after_write_the_server_gets_the_exception(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])(b"first")
            raise LookupError("after write")

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        debugged = self.debugged(app)
        self.assertRaisesRegex(LookupError, "after write", debugged, environ, lambda *a: lambda data: None)

    def test_in_close_the_server_gets_the_exception(self) -> None:
        class Response:
            def __iter__(self) -> Iterator[bytes]:
                yield b"x"

            def close(self) -> None:
                raise LookupError("in close")

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return Response()

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        response = self.debugged(app)(environ, lambda *a: None)  # type: ignore[arg-type]
        self.assertEqual(b"".join(response), b"x")
        self.assertRaisesRegex(LookupError, "in close", response.close)  # type: ignore[attr-defined]

    def test_responses_that_are_none(self) -> None:
        def returns(value: Any, start: bool = True) -> Callable[[Any, Any], Any]:
            def app(environ: Any, start_response: Any) -> Any:
                if start:
                    start_response("200 OK", [("Content-Type", "text/plain")])
                return value

            return app

        for value, words in (
            ("text", "returned str"),
            (None, "returned NoneType, not a list of bytes or another iterable of bytes; is a `return` missing"),
            (b"bytes", "returned bytes"),
            (3, "returned int"),
            (["text"], "sends str"),
            (iter(["text"]), "sends str"),
            ([None], "sends NoneType"),
            ([b"x", 3], "sends int"),
        ):
            with self.subTest(value):
                self.fails(returns(value), words)
        for unannounced in ([b"x"], iter([b"x"]), [], iter([])):
            with self.subTest(unannounced):
                self.fails(returns(unannounced, start=False), "without having called start_response")

    def test_exceptions_that_are_no_errors(self) -> None:
        for kind in (
            SystemExit,
            KeyboardInterrupt,
            GeneratorExit,
            StopIteration,
            MemoryError,
            RecursionError,
            BaseException,
        ):
            with self.subTest(kind):

                def app(environ: Any, start_response: Any, kind: type[BaseException] = kind) -> Any:
                    raise kind("from the view")

                def late(environ: Any, start_response: Any, kind: type[BaseException] = kind) -> Any:
                    start_response("200 OK", [("Content-Type", "text/plain")])
                    yield from failing(kind("from the view"))

                self.fails(app, kind.__name__)
                self.fails(late, kind.__name__)

    def test_ctrl_c_in_the_main_thread_passes(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            raise KeyboardInterrupt

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        self.assertRaises(KeyboardInterrupt, self.debugged(app), environ, lambda *a: None)

    def test_a_terminal_that_is_gone_keeps_no_page_back(self) -> None:
        broken = io.StringIO()
        broken.close()
        self.debugger.terminal = devserve.Terminal(broken)
        self.assertEqual(self.ask().status, 500)

    def test_holds_no_memory_of_crashes_long_past(self) -> None:
        class Payload:
            pass

        alive: weakref.WeakSet[Payload] = weakref.WeakSet()

        def app(environ: Any, start_response: Any) -> Any:
            payload = Payload()
            alive.add(payload)
            environ["app.payload"] = payload
            raise ValueError

        self.app = app
        for _ in range(40):
            self.ask()
        self.assertLessEqual(len(alive), devserve.CRASH_LIMIT + 1)


class DebuggerHandedOver(Debugged):
    """An exception that a framework has caught is shown in the place of its own page, and told in any case."""

    def answering(self, body: Callable[[str], Any], status: str = "503 Busy") -> None:
        """Have an application hand over an exception, and answer with what `body` makes of the text for it."""

        def app(environ: Any, start_response: Any) -> Any:
            try:
                return [{"some": b""}["other"]]
            except KeyError as error:
                text = devserve.hand_over(environ, error)
            headers = [("Content-Type", "text/plain"), ("X-Around", "yes"), ("ETag", '"1"'), ("Set-Cookie", "a=b")]
            start_response(status, headers)
            answer = body(text)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else answer

        self.app = app

    def test_page_takes_the_place_of_the_text_under_the_frameworks_head(self) -> None:
        bodies: dict[str, Callable[[str], Any]] = {
            "a list": lambda text: [text.encode()],
            "an iterator": lambda text: iter([text.encode()]),
            "inside of a template": lambda text: [f"<p>{text}</p>".encode()],
        }
        for what, body in bodies.items():
            with self.subTest(what):
                self.answering(body)
                answer = self.ask(Accept="application/json")
                self.assertEqual(answer.status, 503)
                self.assertEqual((answer.headers["X-Around"], answer.headers["Set-Cookie"]), ("yes", "a=b"))
                self.assertIsNone(answer.headers["ETag"])
                self.assertEqual(answer.headers.get_all("Content-Type"), ["application/json; charset=utf-8"])
                self.assertEqual(json.loads(answer.text)["problems"][0]["type"], "KeyError")
        self.assertEqual(self.printed.count("Traceback"), len(bodies))

    def test_head_has_the_head_and_the_terminal_the_crash(self) -> None:
        self.answering(lambda text: [text.encode()])
        answer = self.ask(method="HEAD")
        self.assertEqual((answer.status, answer.headers["X-Around"], answer.text), (503, "yes", ""))
        self.assertEqual((answer.headers["Content-Type"], answer.headers["ETag"]), ("text/html; charset=utf-8", None))
        self.assertEqual(self.printed.count("Traceback"), 1)

    def test_another_answer_of_the_application_is_its_own_and_the_terminal_is_told(self) -> None:
        for body in (lambda text: [b"own"], lambda text: iter([b"own"])):
            self.answering(body, "200 OK")
            answer = self.ask()
            self.assertEqual((answer.status, answer.text, answer.headers["ETag"]), (200, "own", '"1"'))
        self.assertEqual(self.printed.count("Traceback"), 2)

    def test_the_exceptions_own_traceback_is_shown_and_the_next_request_knows_nothing_of_it(self) -> None:
        self.answering(lambda text: [text.encode()])
        self.assertIn('["other"]', self.ask(Accept="text/plain").text)
        self.app = failing_app
        self.assertNotIn("KeyError", self.ask(Accept="text/plain").text)

    def test_without_a_debugger_there_is_no_text(self) -> None:
        self.assertEqual(devserve.hand_over({}, KeyError()), "")


class DebuggerFrameworks(Folder):
    """With each framework's real package: an exception in a view reaches the page."""

    def crash_in(self, source: str, around: bool) -> None:
        """Run a module that makes `app`, ask for /, and find the failing line on the page; each in its own process.

        With `around` the page has the header that the application's own hook has added.
        """
        self.write("site_under_test.py", source)
        self.write(
            "run_it.py",
            """\
            import io, json, sys, wsgiref.util
            import devserve
            app = devserve.load_app("site_under_test:app", debug=True, debugger=True)
            environ = {}
            wsgiref.util.setup_testing_defaults(environ)
            environ.update(HTTP_ACCEPT="text/html", HTTP_HOST="localhost", SERVER_PORT="80")
            environ.update({"HTTP_ACCEPT_ENCODING": "gzip", "wsgi.errors": sys.stderr})
            heads = []
            terminal = devserve.Terminal(io.StringIO())
            debugger = devserve.DebuggedApplication(app, guard=devserve.Guard("", 80), terminal=terminal)
            response = debugger(environ, lambda status, headers, exc_info=None: heads.append([status, headers]))
            page = b"".join(response).decode()
            getattr(response, "close", int)()
            print(json.dumps([*heads[-1], page, terminal.stream.getvalue()]))
            """,
        )
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), str(self.folder)]),
            "PYTHONIOENCODING": "utf-8",
        }
        done = subprocess.run(
            [sys.executable, "run_it.py"], cwd=self.folder, env=environ, capture_output=True, timeout=60
        )
        errors = done.stderr.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 0, errors)
        status, headers, page, terminal = json.loads(done.stdout.decode("utf-8").splitlines()[-1])
        self.assertEqual(status, "500 Internal Server Error")
        names = [name.lower() for name, _ in headers]
        self.assertEqual(sorted(names), sorted(set(names)), "a header came twice")
        self.assertEqual("x-around" in names, around)
        self.assertEqual(dict(headers)["Content-Length"], str(len(page.encode())))
        self.assertIn("ZeroDivisionError", page)
        self.assertIn("colour_of_view", page)  # a local variable of the view
        self.assertIn("green", page)
        self.assertLess(len(page), 100_000)
        self.assertEqual(terminal.count("ZeroDivisionError"), 1)
        self.assertEqual(errors, "", "the framework has told it too")

    def test_each_framework_shows_the_page_once_with_what_hooks_have_added(self) -> None:
        for name, app in FAILING_APPS.items():
            if importlib.util.find_spec(app.package) is not None or REQUIRE_ALL:
                with self.subTest(name):
                    self.crash_in(app.source, app.around)

    @needs("flask")
    def test_flask_context_is_there_in_the_console(self) -> None:
        flask: Any = importlib.import_module("flask")
        app = flask.Flask(__name__)
        app.debug = True

        def buy() -> Any:
            flask.g.colour = "green"
            raise ValueError(flask.request.form["size"])

        app.add_url_rule("/buy", view_func=buy, methods=["POST"])

        environ: dict[str, Any] = {}
        wsgiref.util.setup_testing_defaults(environ)
        body = b"size=xl"
        environ.update(
            {
                "PATH_INFO": "/buy",
                "REQUEST_METHOD": "POST",
                "HTTP_ACCEPT": "text/html",
                "wsgi.input": io.BytesIO(body),
                "CONTENT_LENGTH": str(len(body)),
                "CONTENT_TYPE": "application/x-www-form-urlencoded",
            }
        )
        debugger = devserve.DebuggedApplication(app, guard=devserve.Guard(), terminal=devserve.Terminal(io.StringIO()))
        page = b"".join(debugger(environ, lambda *a: None)).decode()  # type: ignore[arg-type]
        frames = re.findall(r"[0-9a-f]{16}-\d+", page)
        console = debugger.console(max(frames, key=lambda id: int(id.partition("-")[2])))
        console.namespace["flask"] = flask
        self.assertEqual(console.run("flask.request.form['size'], flask.g.colour").output, "('xl', 'green')\n")
        self.assertEqual(console.run("flask.url_for('buy')").output, "'/buy'\n")
        self.assertEqual(
            debugger.console("app").run("import flask\nflask.current_app.name == app.name").output, "True\n"
        )


class DebuggerServed(Folder):
    """The debugger under devserve's own server, from the command line."""

    def setUp(self) -> None:
        super().setUp()
        self.write(
            "app.py",
            """\
            def app(environ, start_response):
                number = 41
                if environ["PATH_INFO"] == "/stream":
                    return stream(start_response)
                return number / 0

            def stream(start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                yield b"the beginning "
                raise LookupError("in mid-stream")
            """,
        )

    def eval(self, served: Served, page: str, cookie: str, code: str) -> Answer:
        secret = re.search(r"\b[0-9a-f]{32}\b", page.replace(self.nonce(page), ""))
        frame = max(re.findall(r"[0-9a-f]{16}-\d+", page), key=lambda id: int(id.partition("-")[2]))
        return served.ask(
            "/__devserve__/eval",
            "POST",
            json.dumps({"frame": frame, "code": code}).encode(),
            Origin=served.url,
            Cookie=cookie,
            Content_Type="application/json",
            X_Devserve_Secret=secret.group() if secret else "",
        )

    def nonce(self, page: str) -> str:
        return "".join(re.findall(r'nonce="([0-9a-f]+)"', page)[:1])

    def page(self, served: Served, path: str = "/", **headers: Any) -> str:
        answer = served.ask(path, Accept="text/html", **headers)
        self.assertEqual(answer.status, 500)
        return answer.text

    def unlock(self, served: Served) -> str:
        link = served.wait_for(r"https?://\S+(/__devserve__/unlock\?token=\w+)").group(1)
        return str(served.ask(link).get("Set-Cookie")).partition(";")[0]

    def test_link_on_the_terminal_opens_the_console_of_a_crash(self) -> None:
        with Served("app:app", "--debugger", cwd=self.folder) as served:
            cookie = self.unlock(served)
            page = self.page(served)
            answer = self.eval(served, page, cookie, "number + 1")
            self.assertEqual((answer.status, answer.json["output"]), (200, "42\n"))
            self.assertEqual(self.eval(served, page, "", "number + 1").status, 403)
            self.assertRegex(served.log, r"\d{3}-\d{3}-\d{3}")
            served.wait_for("ZeroDivisionError")

    def test_a_failure_in_mid_stream_cuts_the_connection(self) -> None:
        with Served("app:app", "--debugger", cwd=self.folder) as served:
            self.assertRaises(ConnectionError, served.ask, "/stream")
            served.wait_for("LookupError: in mid-stream")

    def test_without_the_debugger_none_of_it_exists(self) -> None:
        with Served("app:app", "--no-debugger", cwd=self.folder) as served:
            for path in ("/", "/__devserve__/alive", "/__devserve__/console", "/__devserve__/unlock?token=x"):
                text = self.page(served, path)  # the application's own failure
                self.assertNotIn("ZeroDivisionError", text)
                self.assertNotIn("__devserve__", text)
            self.assertNotIn("PIN", served.log)
            served.wait_for("ZeroDivisionError")

    def test_open_pages_are_told_of_a_save_without_the_debugger_but_no_rebound_name_is(self) -> None:
        with Served("app:app", "--reload", "--live", cwd=self.folder) as served:
            for host, status in (("localhost", 200), ("192.168.1.7", 200), ("evil.example", 403)):
                self.assertEqual(fetch(served.port, "/__devserve__/live", Host=host).status, status)
            self.assertNotIn("PIN", served.log)

    def test_all_addresses_are_served_but_only_loopback_gets_a_console(self) -> None:
        with Served("app:app", "--debugger", "--host", "0.0.0.0", cwd=self.folder) as served:
            page = self.page(served, Host=f"192.168.1.7:{served.port}")
            self.assertIn("--trusted-host 192.168.1.7", page)
            secret = re.search(r"\b[0-9a-f]{32}\b", self.page(served))
            self.assertIsNotNone(secret)

    def test_after_a_reload_old_frames_are_gone_and_the_browser_is_still_unlocked(self) -> None:
        with Served("app:app", "--debugger", "--reload", cwd=self.folder) as served:
            cookie = self.unlock(served)
            page = self.page(served)
            before = served.ask("/__devserve__/alive").json["reload_id"]
            self.write("app.py", (self.folder / "app.py").read_text(encoding="utf-8").replace("41", "51"))
            eventually(lambda: served.ask("/__devserve__/alive").json["reload_id"] != before, "a reload")
            answer = self.eval(served, page, cookie, "number")
            self.assertEqual((answer.status, answer.json["error"]), (410, "gone"))
            self.assertIn("reloaded", answer.json["reason"])
            self.assertEqual(self.eval(served, self.page(served), cookie, "number").json["output"], "51\n")


# =====================================================================================================================
# 10. HTTP server
#
# What is right is what RFC 9110, RFC 9112 and PEP 3333 say; everything is looked at from outside, over raw sockets.
# =====================================================================================================================

App = Callable[..., Any]
ACCESS = re.compile(r"\d\d:\d\d:\d\d (\S+) (.+) (\d\d\d|-) (\d+) [\d.]+ms")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class ServerCase(Folder):
    """A test with servers in this process; `self.log` is what the terminal of the last one showed."""

    def serve(self, app: App, *, wait: float = 0.02, **options: Any) -> Any:
        server = devserve.make_server(app, **options)
        self.stream = io.StringIO()
        server.terminal = devserve.Terminal(self.stream)
        thread = threading.Thread(target=server.serve_forever, args=(wait,), daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(DEADLINE)

        self.addCleanup(stop)
        self.server = server
        return server

    @property
    def log(self) -> str:
        self.server.terminal.flush()
        return self.stream.getvalue()

    def connect(self, *sent: Union[bytes, str], **options: Any) -> Client:
        client = Client(self.server.server_port, **options)
        self.addCleanup(client.close)
        return client.send(*sent)

    def ask(self, request: Union[bytes, str] = GET, method: str = "GET") -> Answer:
        """Send a request on a connection of its own and return its answer."""
        with Client(self.server.server_port) as client:
            return client.send(request).answer(method)

    def lines(self, count: int) -> list[tuple[str, ...]]:
        """Wait for `count` lines of the request log, and return them: method, target, status, size."""

        def found() -> Any:
            lines = [ACCESS.fullmatch(line) for line in self.log.splitlines()]
            return [line.groups() for line in lines if line]

        eventually(lambda: len(found()) >= count, lambda: f"{count} lines in the log:\n{self.log}")
        self.assertEqual(len(found()), count, self.log)
        return found()  # type: ignore[no-any-return]

    def patch(self, name: str, value: Any) -> None:
        """Set a limit of devserve for this test."""
        patcher = mock.patch.object(devserve, name, value)
        patcher.start()
        self.addCleanup(patcher.stop)


def hello(environ: dict[str, Any], start_response: App) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def echo(environ: dict[str, Any], start_response: App) -> list[bytes]:
    """Answer with method, path and body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode("latin-1") + body]


class Recorder:
    """An application that answers 200 and remembers the path and the body of each request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    def __call__(self, environ: dict[str, Any], start_response: App) -> list[bytes]:
        self.seen.append((environ["PATH_INFO"], environ["wsgi.input"].read()))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]


class Pieces:
    """An application's iterable that counts how often it is closed; an exception among the pieces is raised."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            result = piece() if callable(piece) else piece
            if result is not None or piece is None:
                yield result

    def close(self) -> None:
        self.closed += 1


def answering(result: Any, *headers: tuple[str, str], status: str = "200 OK") -> App:
    """Return an application that answers with `result`; an exception is raised."""

    def app(environ: dict[str, Any], start_response: App) -> Any:
        start_response(status, list(headers))
        if isinstance(result, BaseException):
            raise result
        return result

    return app


def post(headers: str, body: Union[bytes, str] = b"", version: str = "1.1") -> bytes:
    """Return a POST of /first with header lines; Host is among them."""
    body = body.encode("latin-1") if isinstance(body, str) else body
    head = "".join(f"{line}\r\n" for line in ["Host: x", *headers.split("\n")] if line)
    return f"POST /first HTTP/{version}\r\n{head}\r\n".encode("latin-1") + body


def chunked(body: Union[bytes, str], headers: str = "") -> bytes:
    """Return a POST whose chunked body is `body` as it stands, framing included."""
    return post(f"Transfer-Encoding: chunked\n{headers}", body)


CHUNKS = "5\r\nhello\r\n0\r\n\r\n"

# name: the bytes.  Each is refused with a status of the 400 class (505 for a version) and a closed connection.
MALFORMED: dict[str, Union[bytes, str]] = {
    # two framings
    "both Content-Length and Transfer-Encoding": post("Content-Length: 5\nTransfer-Encoding: chunked", CHUNKS),
    "the same the other way round": post("Transfer-Encoding: chunked\nContent-Length: 15", CHUNKS),
    "two lengths that differ": post("Content-Length: 5\nContent-Length: 6", "hello!"),
    "two lengths in a list": post("Content-Length: 5, 6", "hello!"),
    # no number
    "a length with a plus": post("Content-Length: +5", "hello"),
    "a negative length": post("Content-Length: -5", "hello"),
    "a hexadecimal length": post("Content-Length: 0x5", "hello"),
    "a length with an underscore": post("Content-Length: 5_0", "hello"),
    "a length with a space inside": post("Content-Length: 5 0", "hello"),
    "an empty length": post("Content-Length:", "hello"),
    "a length with a fraction": post("Content-Length: 5.0", "hello"),
    "a length in superscript": post("Content-Length: \xb2", "he"),
    "a length with a letter": post("Content-Length: 5a", "hello"),
    "a length past every number": post("Content-Length: " + "9" * 400, "hello"),
    "a length followed by a no-break space": post("Content-Length: 5\xa0", "hello"),
    "a length of a quoted string": post('Content-Length: "5"', "hello"),
    # transfer codings
    "xchunked": post("Transfer-Encoding: xchunked", CHUNKS),
    "chunked, identity": post("Transfer-Encoding: chunked, identity", CHUNKS),
    "identity": post("Transfer-Encoding: identity", CHUNKS),
    "gzip, chunked": post("Transfer-Encoding: gzip, chunked", CHUNKS),
    "gzip alone": post("Transfer-Encoding: gzip", CHUNKS),
    "chunked twice": post("Transfer-Encoding: chunked, chunked", CHUNKS),
    "chunked twice in two lines": post("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", CHUNKS),
    "chunked after identity in two lines": post("Transfer-Encoding: identity\nTransfer-Encoding: chunked", CHUNKS),
    "an empty coding": post("Transfer-Encoding:", CHUNKS),
    "chunked with a parameter": post("Transfer-Encoding: chunked;q=1", CHUNKS),
    "chunked with a no-break space": post("Transfer-Encoding: chunked\xa0", CHUNKS),
    "chunked with a vertical tab": post("Transfer-Encoding: \x0bchunked", CHUNKS),
    "chunked in quotes": post('Transfer-Encoding: "chunked"', CHUNKS),
    "chunked for HTTP/1.0": post("Transfer-Encoding: chunked", CHUNKS, version="1.0"),
    # chunks
    "a chunk size that is no number": chunked("xyz\r\nhello\r\n0\r\n\r\n"),
    "an empty chunk size": chunked("\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": chunked("-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a plus": chunked("+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with 0x": chunked("0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with an underscore": chunked("0_5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a leading space": chunked(" 5\r\nhello\r\n0\r\n\r\n"),
    "a huge chunk size": chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk size past 64 bits": chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "a chunk size past the limit": chunked("ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than its size": chunked("3\r\nhello\r\n0\r\n\r\n"),
    "a chunk shorter than its size": chunked("7\r\nhello\r\n0\r\n\r\n"),
    "a chunk that ends in LF": chunked("5\r\nhello\n0\r\n\r\n"),
    "a chunk size that ends in LF": chunked("5\nhello\r\n0\r\n\r\n"),
    "a last chunk that ends in LF": chunked("5\r\nhello\r\n0\n\r\n"),
    "a chunk extension with LF": chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "a chunk extension with CR": chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "a chunk extension without end": chunked("5;" + "a" * 100_000),
    "a trailer without a colon": chunked("5\r\nhello\r\n0\r\nbad\r\n\r\n"),
    "a trailer with a space before the colon": chunked("5\r\nhello\r\n0\r\nA : b\r\n\r\n"),
    "a trailer with a bare LF": chunked("5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n"),
    "a folded trailer": chunked("5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n"),
    "a trailer with NUL": chunked("5\r\nhello\r\n0\r\nA: \0\r\n\r\n"),
    "trailers without end": chunked("5\r\nhello\r\n0\r\n" + "A: b\r\n" * 5000 + "\r\n"),
    # lines and fields
    "bare LF": "GET / HTTP/1.1\nHost: x\n\n",
    "bare LF after the request line": "GET / HTTP/1.1\nHost: x\r\n\r\n",
    "bare LF between fields": "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "bare LF at the end of the head": "GET / HTTP/1.1\r\nHost: x\r\n\nA: b\r\n\r\n",
    "bare CR between fields": "GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "bare CR in a value": "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "CR CR LF": "GET / HTTP/1.1\r\r\nHost: x\r\r\n\r\r\n",
    "NUL in a value": "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "NUL in a name": "GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
    "NUL in the target": "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "ESC in a value": "GET / HTTP/1.1\r\nHost: x\r\nA: \x1b[31m\r\n\r\n",
    "DEL in a value": "GET / HTTP/1.1\r\nHost: x\r\nA: \x7f\r\n\r\n",
    "a folded line": "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a line folded with a tab": "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n",
    "a first header line that is folded": "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "a space before the colon": "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
    "a space before the colon of Content-Length": post("Content-Length : 5", "hello"),
    "a tab before the colon": "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "a header without a colon": "GET / HTTP/1.1\r\nHost: x\r\nbad\r\n\r\n",
    "an empty name": "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
    "a name with a letter outside ASCII": "GET / HTTP/1.1\r\nHost: x\r\n\xe9: b\r\n\r\n",
    "a name with a bracket": "GET / HTTP/1.1\r\nHost: x\r\nA[]: b\r\n\r\n",
    "a name with a space": "GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
    # the request line
    "HTTP/0.9": "GET /\r\n\r\n",
    "HTTP/0.9 as a version": "GET / HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/1.10": "GET / HTTP/1.10\r\nHost: x\r\n\r\n",
    "HTTP/01.1": "GET / HTTP/01.1\r\nHost: x\r\n\r\n",
    "HTTP/2.0": "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.1": "GET / http/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.1 with a digit outside ASCII": "GET / HTTP/1.\xb9\r\nHost: x\r\n\r\n",
    "HTTP/1": "GET / HTTP/1\r\nHost: x\r\n\r\n",
    "another protocol": "GET / ICY/1.1\r\nHost: x\r\n\r\n",
    "two spaces": "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space at the end of the line": "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
    "a space in front of the line": " GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab in the target": "GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n",
    "tabs for spaces": "GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "a form feed for a space": "GET\x0c/\x0cHTTP/1.1\r\nHost: x\r\n\r\n",
    "a no-break space for a space": "GET\xa0/\xa0HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method with a brace": "G{T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method with a letter outside ASCII": "G\xc9T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an empty method": " / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no target": "GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target without a slash": "GET first HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment in the target": "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a star for another method than OPTIONS": "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "another word than a star for OPTIONS": "OPTIONS x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a scheme that is not served": "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute target without a host": "GET http:/// HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute target with a user": "GET http://user@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
    "CONNECT with a path": "CONNECT /first HTTP/1.1\r\nHost: x\r\n\r\n",
    # the host
    "no Host": "GET / HTTP/1.1\r\nA: b\r\n\r\n",
    "no field at all": "GET / HTTP/1.1\r\n\r\n",
    "no Host with an absolute target": "GET http://x/ HTTP/1.1\r\n\r\n",
    "two Hosts": "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two Hosts that are alike": "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "a Host with a path": "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "a Host with a user": "GET / HTTP/1.1\r\nHost: u@x\r\n\r\n",
    "a Host with a space": "GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
    "a Host that is a list": "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "a Host with a port of letters": "GET / HTTP/1.1\r\nHost: x:http\r\n\r\n",
    "a Host with two ports": "GET / HTTP/1.1\r\nHost: x:80:80\r\n\r\n",
    # what is no HTTP
    "garbage": b"\xff\xfe\x00\x01\r\n\r\n",
    "the first byte of a TLS handshake": b"\x16",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "an expectation that nobody knows": post("Expect: coffee\nContent-Length: 5", "hello"),
}
TOO_LARGE: dict[str, tuple[Union[bytes, str], int]] = {
    "a request line": (f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "a request line just over the limit": (f"GET /{'a' * 65523} HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "a request line without end": ("GET /" + "a" * 200_000, 414),
    "a header line": (f"GET / HTTP/1.1\r\nHost: x\r\nA: {'b' * 100_000}\r\n\r\n", 431),
    "a header line without end": (f"GET / HTTP/1.1\r\nHost: x\r\nA: {'b' * 200_000}", 431),
    "the head of many lines": ("GET / HTTP/1.1\r\nHost: x\r\n" + f"A: {'b' * 1000}\r\n" * 100 + "\r\n", 431),
    "the number of header lines": ("GET / HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 1000 + "\r\n", 431),
}

# name: the bytes, and the path and body that the application must see.
ODD_BUT_GOOD: dict[str, tuple[Union[bytes, str], tuple[str, bytes]]] = {
    "Chunked": (post("Transfer-Encoding: Chunked", CHUNKS), ("/first", b"hello")),
    "CHUNKED and a tab": (post("TRANSFER-ENCODING:\tCHUNKED\t", CHUNKS), ("/first", b"hello")),
    "spaces around a length": (post("Content-Length:   5  ", "hello"), ("/first", b"hello")),
    "no space before a length": (post("Content-Length:5", "hello"), ("/first", b"hello")),
    "a length with a leading zero": (post("Content-Length: 005", "hello"), ("/first", b"hello")),
    "a length of nothing": (post("Content-Length: 0"), ("/first", b"")),
    "a POST without a length": (post(""), ("/first", b"")),
    "a GET with a body": ("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", ("/a", b"hello")),
    "a body of HTTP": (post(f"Content-Length: {len(GET)}", GET), ("/first", GET)),
    "no chunks": (chunked("0\r\n\r\n"), ("/first", b"")),
    "chunk sizes in either case": (
        chunked("A\r\n0123456789\r\nb\r\n0123456789a\r\n00\r\n\r\n"),
        ("/first", b"01234567890123456789a"),
    ),
    "chunk extensions": (chunked('5;a;b=c;d="e"\r\nhello\r\n0;x\r\n\r\n'), ("/first", b"hello")),
    "leading zeros of a chunk size": (chunked("0005\r\nhello\r\n000\r\n\r\n"), ("/first", b"hello")),
    "trailers": (chunked("5\r\nhello\r\n0\r\nA: b\r\nContent-Length: 99\r\nHost: evil\r\n\r\n"), ("/first", b"hello")),
    "CRLF in a chunk": (chunked("4\r\n\r\n\r\n\r\n0\r\n\r\n"), ("/first", b"\r\n\r\n")),
    "an empty line in front": ("\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", ("/a", b"")),
    "an empty value": ("GET /a HTTP/1.1\r\nHost: x\r\nA:\r\n\r\n", ("/a", b"")),
    "an empty Host": ("GET /a HTTP/1.1\r\nHost:\r\n\r\n", ("/a", b"")),
    "a Host with a port": ("GET /a HTTP/1.1\r\nHost: x:80\r\n\r\n", ("/a", b"")),
    "an IPv6 Host": ("GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ("/a", b"")),
    "a name of odd characters": ("GET /a HTTP/1.1\r\nHost: x\r\n!#$%&'*+-.^`|~: b\r\n\r\n", ("/a", b"")),
    "a value outside ASCII": ("GET /a HTTP/1.1\r\nHost: x\r\nA: \xe9\xff\r\n\r\n", ("/a", b"")),
    "an unknown method": ("BREW /a HTTP/1.1\r\nHost: x\r\n\r\n", ("/a", b"")),
    "an absolute target": ("GET http://y:81/a?b HTTP/1.1\r\nHost: x\r\n\r\n", ("/a", b"")),
    "an absolute target without a path": ("GET HTTP://y HTTP/1.1\r\nHost: x\r\n\r\n", ("/", b"")),
    "a target of slashes": ("GET //a//b/../c HTTP/1.1\r\nHost: x\r\n\r\n", ("//a//b/../c", b"")),
    "an escaped slash and NUL": ("GET /a%2Fb%00 HTTP/1.1\r\nHost: x\r\n\r\n", ("/a/b\0", b"")),
    "a bad escape": ("GET /%zz%4 HTTP/1.1\r\nHost: x\r\n\r\n", ("/%zz%4", b"")),
    "HTTP/1.2": ("GET /a HTTP/1.2\r\nHost: x\r\n\r\n", ("/a", b"")),
    "an IPv6 Host with a zone": ("GET /a HTTP/1.1\r\nHost: [fe80::1%25eth0]:80\r\n\r\n", ("/a", b"")),
    "the same as curl writes it": ("GET /a HTTP/1.1\r\nHost: [fe80::1%eth0]\r\n\r\n", ("/a", b"")),
    "HTTP/1.0 without a Host": ("GET /a HTTP/1.0\r\n\r\n", ("/a", b"")),
    "an expectation of nothing": ("GET /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", ("/a", b"")),
    "a request line of 64 KiB": (f"GET /{'a' * 65522} HTTP/1.1\r\nHost: x\r\n\r\n", ("/" + "a" * 65522, b"")),
    "the same and many headers": (
        f"GET /{'a' * 65522} HTTP/1.1\r\nHost: x\r\nCookie: {'b' * 60_000}\r\n\r\n",
        ("/" + "a" * 65522, b""),
    ),
    "a cookie of 30,000 bytes": (f"GET /a HTTP/1.1\r\nHost: x\r\nCookie: {'b' * 30_000}\r\n\r\n", ("/a", b"")),
    "100 header lines": ("GET /a HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 100 + "\r\n", ("/a", b"")),
}


class ServerFraming(ServerCase):
    """One framing of a message, or a refusal: never a 2xx, a 500, a hang or a traceback, and one line in the log."""

    def setUp(self) -> None:
        super().setUp()
        self.app = Recorder()
        self.serve(self.app)

    def check_refused(self, request: Union[bytes, str]) -> Answer:
        """Send a request and another behind it; one answer must come, and then the end."""
        self.app.seen.clear()
        before = len(self.log.splitlines())
        with Client(self.server.server_port) as client:
            with contextlib.suppress(OSError):  # it may be refused before it has been sent whole
                client.send(request, LAST)
            answer = client.answer()
            self.assertEqual(client.rest(), b"", "more than one answer")
        self.assertTrue(400 <= answer.status < 500 or answer.status in (501, 505), answer)
        self.assertEqual(answer.get("Connection"), "close")
        self.assertEqual(self.app.seen, [], "the application was called")
        self.assertEqual(self.lines(before + 1)[-1][2], str(answer.status))
        self.assertEqual(len(self.log.splitlines()), before + 1, "one line, and no traceback")
        return answer

    def test_another_version_than_ours_is_505_and_what_is_no_version_400(self) -> None:
        for version, status in (("0.9", 505), ("2.0", 505), ("3.0", 505), ("1.10", 400), ("2", 400)):
            with self.subTest(version):
                answer = self.check_refused(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n")
                self.assertEqual(answer.status, status)

    def test_a_head_that_can_become_no_good_one_is_refused_before_it_ends(self) -> None:
        for begun in ("GET / HTTP/1.1\nHost: x\n\n", "GET / HTTP/1.1\r\nHost: x\nA", "GET /\0", "GET /\r\n", "\rG"):
            with self.subTest(begun), Client(self.server.server_port) as client:
                self.assertEqual(client.send(begun).answer().status, 400)

    def test_every_malformed_request_is_refused_once(self) -> None:
        for name, request in MALFORMED.items():
            with self.subTest(name):
                self.check_refused(request)

    def test_malformed_requests_are_refused_on_a_connection_that_was_used_before(self) -> None:
        for name in ("both Content-Length and Transfer-Encoding", "bare LF", "a huge chunk size", "no Host"):
            with self.subTest(name), Client(self.server.server_port) as client:
                self.assertEqual(client.send(GET).answer().body, b"ok")
                client.send(MALFORMED[name], LAST)
                self.assertEqual(client.answer().status, 400)
                self.assertEqual(client.rest(), b"")

    def test_what_is_too_large_is_refused_with_its_own_status(self) -> None:
        for name, (request, status) in TOO_LARGE.items():
            with self.subTest(name):
                self.assertEqual(self.check_refused(request).status, status)

    def test_no_truncated_request_is_taken_for_a_whole_one(self) -> None:
        """Whatever a client sent when it half-closed: no 2xx for a part of a request, no hang."""
        for whole in (post("Content-Length: 5", "hello"), chunked(CHUNKS)):
            for cut in range(1, len(whole)):
                with Client(self.server.server_port) as client:
                    rest = client.send(whole[:cut]).end().rest()
                self.assertRegex(rest, rb"^HTTP/1\.1 4\d\d |^$", whole[:cut])
        self.assertNotIn("Traceback", self.log)

    def test_odd_but_good_requests_are_understood(self) -> None:
        for name, (request, seen) in ODD_BUT_GOOD.items():
            with self.subTest(name), Client(self.server.server_port) as client:
                self.app.seen.clear()
                client.send(request, LAST)
                self.assertEqual(client.answer().status, 200)
                if "HTTP/1.0" not in name:
                    self.assertEqual(client.answer().status, 200, "the next request on the connection")
                    self.assertEqual(self.app.seen[1:], [("/last", b"")])
                self.assertEqual(client.rest(), b"")
                self.assertEqual(self.app.seen[0], seen)

    def test_a_request_means_the_same_however_its_bytes_arrive(self) -> None:
        requests = {
            "plain": b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            "a body": post("Content-Length: 5", "hello"),
            "chunks": chunked("3;x\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n"),
            "an empty line in front": b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        }
        for name, request in requests.items():
            with self.subTest(name), Client(self.server.server_port) as client:
                for position in range(len(request)):
                    client.send(request[position : position + 1], pause=0.001)
                self.assertEqual(client.answer().status, 200)
                self.assertEqual(client.send(LAST).answer().status, 200)
                self.assertEqual(client.rest(), b"")

    def test_a_refused_head_request_gets_no_body(self) -> None:
        with Client(self.server.server_port) as client:
            client.send("HEAD / HTTP/1.1\r\n\r\n")
            self.assertEqual(client.answer("HEAD").status, 400)
            self.assertEqual(client.rest(), b"")

    def test_a_refusal_says_why(self) -> None:
        self.assertIn(b"Host", self.check_refused(MALFORMED["no Host"]).body)
        self.assertIn("Host", self.log)

    def test_options_star_is_answered_by_the_server(self) -> None:
        with Client(self.server.server_port) as client:
            client.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", LAST)
            self.assertEqual(client.answer().body, b"")
            self.assertEqual(client.answer().body, b"ok")
        self.assertEqual(self.app.seen, [("/last", b"")])
        self.assertIn("OPTIONS * 200 0", self.log)

    def test_tokens_that_differ_for_lenient_parsers_do_not_reach_the_application_as_framing(self) -> None:
        """Names with an underscore are dropped, so that none passes itself off as a header that frames or trusts."""
        self.app.seen.clear()
        with Client(self.server.server_port) as client:
            client.send(post("Content_Length: 5\nTransfer_Encoding: chunked"), LAST)
            self.assertEqual(client.answer().status, 200)
            self.assertEqual(client.answer().status, 200)
        self.assertEqual(self.app.seen, [("/first", b""), ("/last", b"")])

    def test_each_of_many_one_byte_chunks_costs_the_same(self) -> None:
        def upload(count: int) -> None:
            body = b"1\r\na\r\n" * count + b"0\r\n\r\n"
            self.assertEqual(self.ask(chunked(body)).status, 200)
            self.assertEqual(len(self.app.seen.pop()[1]), count)

        self.assertLess(growth(upload, 6250), 32)


class ServerConnections(ServerCase):
    """Keep-alive, pipelining, bodies that nobody read, clients that go or dawdle."""

    def test_a_thread_that_cannot_be_started_costs_one_connection_and_not_the_server(self) -> None:
        start, failed = threading.Thread.start, threading.Event()

        def start_one_later(thread: threading.Thread) -> None:
            if thread.name == "devserve connection" and not failed.is_set():
                failed.set()
                raise RuntimeError("can't start new thread")
            start(thread)

        with mock.patch.object(threading.Thread, "start", start_one_later):
            self.serve(hello)
            with self.assertRaises((Cut, ConnectionError)):
                self.connect(GET).answer()
            self.assertEqual(self.ask().body, b"hello")
        self.assertEqual(self.log.count("can't start new thread"), 1)

    def test_a_default_timeout_of_the_application_is_not_the_connections(self) -> None:
        self.addCleanup(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(0.05)
        self.serve(hello)
        client = self.connect(timeout=DEADLINE)
        time.sleep(0.2)  # longer than the default
        self.assertEqual(client.send(GET).answer().body, b"hello")
        eventually(lambda: not any(c.phase for c in list(self.server.connections)), "it rests")
        self.assertEqual(len(self.server.close_gate(5.0)), 1)
        self.server.open_gate()

    def test_a_thread_serves_one_connection_after_the_other(self) -> None:
        used: set[int] = set()
        self.serve(lambda e, sr, u=used: [u.add(threading.get_ident())] and hello(e, sr))
        for _ in range(3):
            with Client(self.server.server_port) as client:
                self.assertEqual(client.send(GET).answer().body, b"hello")
            eventually(lambda: len(self.server._idle_threads) == 1, "the thread is free")
        self.assertEqual(len(used), 1)

    def test_a_thread_that_is_free_takes_a_connection_that_waits_already(self) -> None:
        connected, used = threading.Event(), []

        def app(environ: Any, start_response: Any) -> list[bytes]:
            used.append(threading.get_ident())
            self.assertTrue(connected.wait(DEADLINE))
            return hello(environ, start_response)

        def ready(socks: Any, *arguments: Any) -> bool:  # the acceptor sees one connection alone
            return bool(wait(socks, *arguments)) and not (used and socks is self.server.listeners)

        wait = devserve.wait_until_ready
        self.patch("wait_until_ready", ready)
        self.serve(app)
        with self.connect(GET) as first:
            eventually(lambda: used, "the first request runs")
            second = self.connect(GET)
            connected.set()
            self.assertEqual(first.answer().body, b"hello")
        self.assertEqual(second.answer().body, b"hello")
        self.assertEqual(used, [used[0]] * 2)

    def test_threads_beyond_those_that_may_be_idle_end(self) -> None:
        self.patch("_IDLE_THREADS", 2)
        before = threading.active_count()
        self.serve(hello)
        clients = [self.connect(GET) for _ in range(5)]
        for client in clients:
            client.answer()
        for client in clients:
            client.close()
        # The limit is looked at without a lock, so one more may stay.
        eventually(lambda: threading.active_count() <= before + 4, "besides these only the one that accepts is left")

    def test_threads_end_with_their_server(self) -> None:
        before = {thread.ident for thread in threading.enumerate()}
        server = devserve.make_server(hello)
        server.terminal = devserve.Terminal(io.StringIO())
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        self.server = server
        clients = [self.connect(GET, GET, GET) for _ in range(4)]
        for client in clients:
            for _ in range(3):
                client.answer()
            client.close()
        server.shutdown()
        server.server_close()
        eventually(lambda: {thread.ident for thread in threading.enumerate()} <= before, "no thread is left")

    def test_a_server_that_is_closed_before_it_is_shut_down_ends_quietly(self) -> None:
        failures: list[Any] = []
        with unittest.mock.patch.object(threading, "excepthook", failures.append):
            for _ in range(4):
                server = devserve.make_server(hello)
                thread = threading.Thread(target=server.serve_forever, args=(0.02,))
                thread.start()
                server.server_close()
                thread.join(DEADLINE)
                self.assertFalse(thread.is_alive())
                returning(server.shutdown)
        self.assertEqual(failures, [])

    def test_shutdown_returns_when_nobody_takes_connections_any_more(self) -> None:
        server = self.serve(hello)
        entered, left = threading.Event(), threading.Event()

        def slow_look() -> None:
            entered.set()
            eventually(lambda: server._shutting_down, "shutdown is called")
            time.sleep(0.1)  # a shutdown that does not wait returns meanwhile
            left.set()

        with mock.patch.object(server, "_report_hangs", slow_look):
            self.assertTrue(entered.wait(DEADLINE))
            server.shutdown()
        self.assertTrue(left.is_set())

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_child_of_the_application_does_not_keep_a_finished_connection_open(self) -> None:
        children: list[int] = []

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            pid = os.fork()
            if not pid:
                time.sleep(600)
                os._exit(0)
            children.append(pid)
            return hello(environ, start_response)

        self.serve(app)
        try:
            self.assertTrue(self.connect(LAST).rest().endswith(b"hello"))
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def test_a_client_may_go_on_sending_the_body_that_was_refused(self) -> None:
        self.serve(hello)
        client = self.connect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        self.assertEqual(client.answer().get("Connection"), "close")
        self.assertEqual(client.rest(), b"")
        client.send(*[b"x" * 1000] * 20, pause=0.01)  # after a reset, a second one would raise

    def test_an_unread_body_that_is_read_away_keeps_nobody_waiting(self) -> None:
        self.serve(hello, threads=False)
        slow = self.connect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        self.assertEqual(slow.answer().body, b"hello")
        self.assertEqual(self.ask().body, b"hello")
        slow.send(b"x" * 997, GET)
        self.assertEqual(slow.answer().body, b"hello")

    def test_persistence_follows_version_and_header(self) -> None:
        self.serve(hello)
        table = [
            ("1.1", "", True), ("1.1", "close", False), ("1.1", "Close", False), ("1.1", "keep-alive", True),
            ("1.1", "upgrade, close", False), ("1.1", "x-closed", True),
            ("1.0", "", False), ("1.0", "close", False), ("1.0", "keep-alive", True), ("1.0", "Keep-Alive", True),
            ("1.0", "keep-alive, close", False),
        ]  # fmt: skip
        for version, connection, persists in table:
            header = f"Connection: {connection}\r\n" if connection else ""
            with self.subTest(version=version, connection=connection), Client(self.server.server_port) as client:
                client.send(f"GET / HTTP/{version}\r\nHost: x\r\n{header}\r\n")
                answer = client.answer()
                self.assertEqual(answer.body, b"hello")
                if persists:
                    self.assertEqual(answer.get("Connection"), "keep-alive" if version == "1.0" else None)
                    self.assertEqual(client.send(LAST).answer().body, b"hello")
                else:
                    self.assertEqual(answer.get("Connection"), "close")
                self.assertEqual(client.rest(), b"")

    def test_ten_pipelined_requests_are_answered_in_order(self) -> None:
        self.serve(echo)
        requests = [f"GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n" for n in range(10)]
        client = self.connect("".join(requests))
        self.assertEqual([client.answer().body for _ in range(10)], [b"GET /%d " % n for n in range(10)])

    def test_pipelined_requests_with_bodies_read_or_not_are_answered_in_order(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            start_response("200 OK", [])
            number = int(environ["PATH_INFO"][1:])
            return [b"%d %s" % (number, environ["wsgi.input"].read((0, 2, -1)[number % 3]))]

        self.serve(app)
        framings = ["Content-Length: 5\r\n\r\nhello", f"Transfer-Encoding: chunked\r\n\r\n{CHUNKS}"]
        client = self.connect("".join(f"POST /{n} HTTP/1.1\r\nHost: x\r\n{framings[n % 2]}" for n in range(12)))
        expected = [b"%d %s" % (n, (b"", b"he", b"hello")[n % 3]) for n in range(12)]
        self.assertEqual([client.answer().body for _ in range(12)], expected)

    def test_a_small_body_that_nobody_read_leaves_the_connection_usable(self) -> None:
        self.serve(hello)
        client = self.connect(post("Content-Length: 100000"), b"x" * 100_000)
        self.assertEqual(client.answer().body, b"hello")
        self.assertEqual(client.send(LAST).answer().body, b"hello")

    def test_a_large_body_that_nobody_reads_ends_the_connection_after_the_answer(self) -> None:
        self.serve(hello)
        size = devserve._DRAIN_LIMIT * 8
        client = self.connect(post(f"Content-Length: {size}"))
        client.send(b"x" * size)  # as simple clients do: everything is sent before the answer is read
        answer = client.answer()
        self.assertEqual((answer.body, answer.get("Connection")), (b"hello", "close"))
        self.assertEqual(client.rest(), b"")

    def test_what_is_drained_is_bounded(self) -> None:
        self.patch("_DRAIN_LIMIT", 1000)
        self.serve(hello)
        for size, persists in ((1000, True), (1001, False)):
            with self.subTest(size=size), Client(self.server.server_port) as client:
                answer = client.send(post(f"Content-Length: {size}"), b"x" * size).answer()
                self.assertEqual(answer.get("Connection"), None if persists else "close")

    def test_a_client_that_sends_for_ever_is_left_after_a_while(self) -> None:
        self.patch("_LINGER_TIMEOUT", 0.3)
        self.serve(hello)
        client = self.connect(post("Content-Length: 999999999999"))
        end = time.monotonic() + DEADLINE
        with self.assertRaises(OSError):
            while time.monotonic() < end:
                client.send(b"x" * 100_000)

    def test_a_client_that_has_sent_nothing_more_is_not_waited_for(self) -> None:
        self.patch("_LINGER_TIMEOUT", 600.0)
        self.serve(hello)
        client = self.connect("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(client.answer().body, b"hello")  # and this client keeps its end open
        eventually(lambda: not self.server.connections, "the connection ends")

    def test_an_answer_survives_input_that_nobody_read(self) -> None:
        """Old clients send a CRLF behind the body; a close with that unread would reset what is under way."""
        arrived = threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            environ["wsgi.input"].read()
            arrived.wait(DEADLINE)
            start_response("200 OK", [("Content-Length", "8000000")])
            return [b"x" * 8_000_000]

        self.serve(app)
        client = self.connect(post("Connection: close\nContent-Length: 5"))
        client.send(b"hell", b"o\r\n", pause=0.05)
        arrived.set()
        client.head()
        left = 8_000_000
        while not self.log:  # read until the server is done: then the rest is in the kernel alone
            left -= len(client.exactly(min(50_000, left)))
        time.sleep(0.1)  # it has closed by now, if it closes without waiting
        self.assertEqual(len(client.exactly(left)), left)
        self.assertEqual(client.rest(), b"")

    def test_a_failure_with_a_further_request_waiting_arrives_whole(self) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            entered.set()
            go_on.wait(DEADLINE)
            raise ValueError("broken")

        self.serve(app)
        client = self.connect(GET)
        entered.wait(DEADLINE)
        client.send(GET, pause=0.05)
        go_on.set()
        self.assertEqual(client.answer().status, 500)
        self.assertRegex(client.rest(), rb"^$|^HTTP/1.1 500 ")

    # -- 100-continue

    def test_continue_is_sent_once_and_only_when_the_application_reads(self) -> None:
        reading, read = threading.Event(), threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            reading.wait(DEADLINE)
            body = environ["wsgi.input"].read(2)
            body += environ["wsgi.input"].read()
            read.set()
            start_response("200 OK", [])
            return [body]

        self.serve(app)
        client = self.connect(post("Expect: 100-continue\nContent-Length: 5"))
        client.sock.settimeout(0.2)
        with self.assertRaises(OSError):
            client.sock.recv(1)
        client.sock.settimeout(DEADLINE)
        reading.set()
        client.file = client.sock.makefile("rb")
        self.assertEqual((client.line(), client.line()), ("HTTP/1.1 100 Continue", ""))
        client.send("hello")
        self.assertEqual(client.answer().body, b"hello")
        self.assertEqual(client.send(LAST).head().status, 200)

    def test_continue_is_sent_for_a_chunked_body(self) -> None:
        self.serve(echo)
        client = self.connect(chunked("", "Expect: 100-Continue\nExpect: 100-continue"))  # in any case, and doubled
        self.assertEqual((client.line(), client.line()), ("HTTP/1.1 100 Continue", ""))
        self.assertEqual(client.send(CHUNKS).answer().body, b"POST /first hello")

    def test_no_continue_when_the_application_does_not_read(self) -> None:
        self.serve(hello)
        client = self.connect(post("Expect: 100-continue\nContent-Length: 5"))
        answer = client.answer()
        self.assertEqual((answer.status, answer.get("Connection")), (200, "close"))
        self.assertEqual(client.rest(), b"")

    def test_no_continue_for_http_1_0(self) -> None:
        self.serve(echo)
        client = self.connect(post("Expect: 100-continue\nContent-Length: 5", version="1.0"))
        time.sleep(0.05)
        self.assertEqual(client.send("hello").answer().body, b"POST /first hello")

    def test_no_continue_in_the_middle_of_an_answer(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Length", "10")])
            yield b"hello"
            yield environ["wsgi.input"].read()

        self.serve(app)
        client = self.connect(post("Expect: 100-continue\nContent-Length: 5"))
        self.assertEqual(client.head().status, 200)
        self.assertEqual(client.exactly(5), b"hello")
        self.assertEqual(client.send("world").exactly(5), b"world")

    # -- clients that go away

    def test_a_client_that_leaves_in_the_middle_of_an_answer_is_logged_once_without_a_traceback(self) -> None:
        gone = threading.Event()
        pieces = Pieces(b"first", lambda: gone.wait(DEADLINE) and b"x" * 1000, *[b"x" * 100_000] * 200)
        self.serve(answering(pieces))
        client = self.connect(GET)
        client.head()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        gone.set()
        self.lines(1)
        self.assertNotIn("Traceback", self.log)
        eventually(lambda: pieces.closed == 1, "close() of what the application returned")

    def test_a_client_that_leaves_in_the_middle_of_its_body_is_logged_once_without_a_traceback(self) -> None:
        for name, request in (("length", post("Content-Length: 50", "hello")), ("chunks", chunked("5\r\nhel"))):
            with self.subTest(name):
                self.serve(echo)
                self.connect(request).close()
                self.assertIn(self.lines(1)[0][2], ("400", "-"))
                self.assertNotIn("Traceback", self.log)

    def test_what_fails_after_a_client_has_gone_is_told_without_the_servers_own_calls(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            try:
                environ["wsgi.input"].read()
            except OSError:
                int("a mistake of its own")
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(post("Content-Length: 50", "hello"))
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        self.lines(1)
        self.assertIn("a mistake of its own", self.log)
        self.assertNotIn("in attempt", self.log)

    def test_a_client_that_half_closes_gets_all_its_answers(self) -> None:
        self.serve(echo)
        client = self.connect(GET, post("Content-Length: 5", "hello")).end()
        self.assertEqual(client.answer().body, b"GET / ")
        self.assertEqual(client.answer().body, b"POST /first hello")
        self.assertEqual(client.rest(), b"")

    def test_a_client_that_half_closes_waits_for_an_application_that_takes_its_time(self) -> None:
        ended = threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            ended.wait(DEADLINE)
            start_response("200 OK", [])
            yield b"hello"
            yield b"x" * 1_000_000

        self.serve(app)
        client = self.connect(GET).end()
        eventually(lambda: [c for c in list(self.server.connections) if c.phase], "the request")
        ended.set()
        self.assertEqual(len(client.answer().body), 1_000_005)

    def test_a_body_that_is_cut_off_is_400_and_never_a_success(self) -> None:
        self.serve(echo)
        client = self.connect(post("Content-Length: 50", "hello")).end()
        self.assertEqual(client.answer().status, 400)

    def test_connections_without_a_request_leave_no_line(self) -> None:
        self.serve(hello)
        self.connect().close()
        self.connect().end().rest()
        self.connect("\r\n").end().rest()
        self.ask()
        self.lines(1)

    # -- waiting

    def test_a_silent_client_is_let_go(self) -> None:
        self.patch("_FIRST_BYTE_TIMEOUT", 0.2)
        self.serve(hello)
        self.assertEqual(self.connect().rest(), b"")
        self.assertEqual(self.log, "")

    def test_an_idle_connection_is_let_go(self) -> None:
        self.patch("_IDLE_TIMEOUT", 0.2)
        self.serve(hello)
        client = self.connect(GET)
        self.assertEqual(client.answer().body, b"hello")
        self.assertEqual(client.rest(), b"")
        self.lines(1)

    def test_a_head_of_a_byte_at_a_time_ends_with_408(self) -> None:
        self.patch("_HEAD_TIMEOUT", 0.4)
        self.serve(hello)
        client = self.connect()
        with contextlib.suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 500:
                client.send(bytes([byte]), pause=0.05)
                if client.sock in select.select([client.sock], [], [], 0)[0]:
                    break
            else:
                self.fail("a head may take for ever")
        self.assertEqual(client.answer().status, 408)
        self.assertEqual(self.lines(1)[0][2], "408")

    def test_a_body_that_stops_coming_ends_with_400(self) -> None:
        self.patch("_SILENCE_TIMEOUT", 1.0)
        for name, request in (("length", post("Content-Length: 50", "hello")), ("chunks", chunked("5\r\nhel"))):
            with self.subTest(name):
                self.serve(echo)
                self.assertIn(self.connect(request).answer().status, (400, 408))
                self.assertNotIn("Traceback", self.log)
                self.lines(1)

    def test_a_client_that_takes_no_byte_is_let_go(self) -> None:
        self.patch("_SILENCE_TIMEOUT", 1.0)
        pieces = Pieces(*[b"x" * 1_000_000] * 100)
        self.serve(answering(pieces))
        self.connect(GET)
        self.lines(1)
        eventually(lambda: pieces.closed == 1, "close() of what the application returned")
        self.assertNotIn("Traceback", self.log)

    def test_a_slow_request_holds_up_no_other(self) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            if environ["PATH_INFO"] == "/slow":
                entered.set()
                go_on.wait(DEADLINE)
            return hello(environ, start_response)

        self.serve(app)
        slow = self.connect("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(entered.wait(DEADLINE))
        for _ in range(3):
            self.assertEqual(self.ask().body, b"hello")
        go_on.set()
        self.assertEqual(slow.answer().body, b"hello")

    def test_a_descriptor_past_1023_can_be_waited_for(self) -> None:
        if sys.platform == "win32":
            self.skipTest("its descriptors are no small numbers")
        allow_descriptors(2000)
        here, there = socket.socketpair()
        with here, there, socket.socket(fileno=os.dup2(there.fileno(), 1500)) as high:
            here.send(b"x")
            self.assertTrue(devserve.wait_until_ready([high], DEADLINE))
            self.assertFalse(returning(devserve.wait_until_ready, [here], -1.0), "a deadline may be past")

    def test_two_hundred_idle_connections_and_a_new_one_is_served(self) -> None:
        allow_descriptors(1000)
        self.serve(hello)
        idle = [self.connect() for _ in range(100)]
        used = [self.connect(GET) for _ in range(100)]
        for client in used:
            self.assertEqual(client.answer().body, b"hello")
        self.assertEqual(self.ask().body, b"hello")
        for client in (idle[0], idle[-1], used[0], used[-1]):
            self.assertEqual(client.send(GET).answer().body, b"hello")

    @unittest.skipIf(sys.platform == "win32", "Windows has no such limit")
    def test_running_out_of_descriptors_does_not_end_the_service(self) -> None:
        self.write(
            "small.py",
            """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (48, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            def app(environ, start_response):
                start_response("200 OK", [])
                return [b"hello"]
        """,
        )
        with Served("small", cwd=self.folder) as served, contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(Client(served.port))
            self.assertEqual(served.get(), "hello")
            self.assertEqual(served.get(), "hello")
            self.assertNotIn("Traceback", served.log)

    def test_without_threads_requests_never_overlap_and_idle_connections_block_nobody(self) -> None:
        inside, overlaps = [0], [0]

        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            inside[0] += 1
            overlaps[0] = max(overlaps[0], inside[0])
            time.sleep(0.01)
            start_response("200 OK", [])
            yield b"hello" if environ["wsgi.multithread"] is False else b"bad"
            time.sleep(0.01)
            inside[0] -= 1

        self.serve(app, threads=False)
        idle = self.connect(GET)
        self.assertEqual(idle.answer().body, b"hello")
        clients = [self.connect(GET) for _ in range(8)]
        self.assertEqual([client.answer().body for client in clients], [b"hello"] * 8)
        self.assertEqual(overlaps, [1])

    def test_many_clients_at_once_get_their_own_answers(self) -> None:
        self.serve(echo)
        wrong: list[str] = []

        def client(name: str) -> None:
            with Client(self.server.server_port) as client:
                for n in range(20):
                    body = f"{name}{n}" * (n * 50 + 1)
                    answer = client.send(post(f"Content-Length: {len(body)}", body)).answer()
                    if answer.body != f"POST /first {body}".encode():
                        wrong.append(body)

        threads = [threading.Thread(target=client, args=(f"c{n}-",)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(wrong, [])
        self.assertEqual(len(self.lines(240)), 240)

    def test_a_server_in_code_is_a_context_manager_that_ends_its_connections(self) -> None:
        with devserve.make_server(hello, quiet=True) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            client = Client(server.server_port)
            self.assertEqual(client.send(GET).answer().body, b"hello")
            server.shutdown()
            thread.join(DEADLINE)
        self.assertEqual(client.rest(), b"")
        client.close()
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", server.server_port), 1.0)


class ServerGate(ServerCase):
    """What a reload needs: the gate closes, connections that wait are handed on, none loses a byte."""

    def test_a_closed_gate_lets_requests_finish_and_returns_the_connections_that_wait(self) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            if environ["PATH_INFO"] == "/slow":
                entered.set()
                go_on.wait(DEADLINE)
            return hello(environ, start_response)

        server = self.serve(app)
        waiting = self.connect(GET)
        waiting.answer()
        fresh = self.connect()
        slow = self.connect("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        entered.wait(DEADLINE)
        eventually(lambda: len(server.connections) == 3, "three connections")
        threading.Timer(0.1, go_on.set).start()
        sockets = server.close_gate(DEADLINE)
        self.assertTrue(go_on.is_set(), "the running request was waited for")
        self.assertEqual(slow.answer().body, b"hello")
        for client in (waiting, fresh):
            client.send(GET, LAST)
        late = self.connect(LAST)
        ports = {sock.getpeername()[1] for sock in sockets}
        self.assertEqual(ports, {w.sock.getsockname()[1] for w in (waiting, fresh, slow)})
        copies = [sock.dup() for sock in sockets]
        successor = devserve.DevServer([server.listeners[0].dup()], answering([b"new"]), server.terminal)
        thread = threading.Thread(target=successor.serve_forever, args=(0.02,), daemon=True)
        successor.adopt(copies)
        thread.start()
        try:
            for client in (waiting, fresh):
                self.assertEqual([client.answer().body, client.answer().body], [b"new", b"new"])
            self.assertEqual(late.answer().body, b"new", "a client that came while the gate was closed")
        finally:
            successor.shutdown()
            successor.server_close()
            server.open_gate()

    def test_nothing_is_read_of_a_connection_that_counts_as_at_rest(self) -> None:
        attempt = devserve._Connection.attempt
        phases: set[int] = set()

        def watched(connection: Any, *arguments: Any, **options: Any) -> Any:
            phases.add(connection.phase)
            return attempt(connection, *arguments, **options)

        patcher = mock.patch.object(devserve._Connection, "attempt", watched)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.serve(hello)
        client = self.connect(GET)
        client.answer()
        client.send(GET).answer()
        self.assertEqual(phases, {devserve._BUSY})

    def test_a_request_past_its_grace_is_cut_and_the_log_says_so(self) -> None:
        entered, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        self.serve(answering(Pieces(b"a", entered.set, lambda: go_on.wait() and b"b")))
        client = self.connect(GET)
        entered.wait(DEADLINE)
        returning(self.server.close_gate, 0.3)
        with self.assertRaises(Cut):
            client.answer()
        self.assertIn("grace", self.log)
        self.server.open_gate()

    def test_the_end_of_a_connection_has_its_moment_from_the_answer_on(self) -> None:
        """Else an answer that comes late in its grace is cut before TLS's last word, or by a reset."""
        self.serve(hello)
        client = self.connect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n")
        client.answer()
        (connection,) = self.server.connections
        eventually(lambda: connection.phase == devserve._ANSWERED, "the end of the request")
        closed = connection.started - 60
        self.assertGreater(connection.deadline(connection.phase, closed, 5), connection.started)

    def test_a_request_that_waits_for_its_turn_has_its_grace_from_then_on(self) -> None:
        self.patch("_PAUSED_INTERVAL", 0.02)
        for is_stopped in (False, True):
            with self.subTest(is_stopped=is_stopped):
                entered: queue.Queue[int] = queue.Queue()
                go_on: queue.Queue[None] = queue.Queue()

                def app(environ: dict[str, Any], start_response: App, e: Any = entered, g: Any = go_on) -> list[bytes]:
                    e.put(threading.get_ident())
                    g.get(timeout=DEADLINE)
                    return hello(environ, start_response)

                server = self.serve(app, threads=False)
                clients = [self.connect(GET) for _ in range(3)]
                entered.get(timeout=DEADLINE)
                eventually(
                    lambda: [c.request_line[0] for c in list(self.server.connections)] == ["GET"] * 3, "two wait"
                )
                for connection in server.connections:
                    connection.started -= 600.0
                go_on.put(None)
                holder = entered.get(timeout=DEADLINE)
                server.is_paused = ({holder} if is_stopped else set()).__contains__
                gate = threading.Thread(target=server.close_gate, args=(0.1 if is_stopped else DEADLINE,))
                gate.start()
                if is_stopped:
                    eventually(lambda: self.log.count("stopped in a debugger") == 2, "it, and the one behind it")
                for _ in range(2):
                    go_on.put(None)
                self.assertEqual([client.answer().body for client in clients], [b"hello"] * 3)
                gate.join(DEADLINE)
                self.assertFalse(gate.is_alive())
                server.open_gate()

    def test_a_response_without_end_gets_no_grace(self) -> None:
        for kind in (
            "text/event-stream", "multipart/x-mixed-replace; boundary=x", "Multipart/Mixed; subscriptionSpec=1.0",
            "application/json;stream=watch", "text/x-dom-event-stream",
            "application/x-ndjson", "application/nd-json", "text/x-ndjson; charset=utf-8", "application/x-ldjson",
            "application/jsonl", "application/x-jsonlines", "application/json-lines", "application/x-json-stream",
            "application/stream+json", "application/json-seq", "application/geo+json-seq", " text/event-stream",
            "application/json+lines", "application/newline-delimited-json", "early",
        ):  # fmt: skip
            entered, go_on = threading.Event(), threading.Event()
            self.addCleanup(go_on.set)
            first = [] if kind == "early" else [b"data: 1\n\n"]  # a queue may be empty at first
            pieces = Pieces(*first, lambda e=entered, go_on=go_on: e.set() or (go_on.wait() and b""))
            self.serve(answering(pieces, ("Content-Type", kind if first else "text/event-stream")))
            self.connect(post("") if "subscription" in kind else GET)
            entered.wait(DEADLINE)
            returning(self.server.close_gate, 600.0)
            self.assertNotIn("grace", self.log)
            self.server.open_gate()

    def test_a_long_poll_of_socketio_gets_no_grace(self) -> None:
        entered, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            entered.set()
            go_on.wait()
            return hello(environ, start_response)

        self.serve(app)
        self.connect("GET /socket.io/?transport=polling&EIO=4&sid=a HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(entered.wait(DEADLINE))
        self.assertEqual(returning(self.server.close_gate, 600.0), [])
        self.assertNotIn("grace", self.log)

    def test_a_response_that_may_have_an_end_is_waited_for(self) -> None:
        rows = ("Content-Type", "application/x-ndjson")
        for request, headers in (
            (GET, [rows, ("Content-Length", "4")]),
            (GET, [rows, ("Content-Disposition", 'Attachment; filename="export.jsonl"')]),
            (post(""), [rows]),  # a language model's answer
            (post(""), [("Content-Type", "text/event-stream")]),
            *((GET, [("Content-Type", kind)]) for kind in (
                "text/html", "application/octet-stream", "application/ld+json", "application/json", "audio/mpeg",
                "multipart/mixed; boundary=x", "application/json; profile=json-seq-of-rows",
            )),
        ):  # fmt: skip
            with self.subTest(headers, request=request):
                begun, go_on = threading.Event(), threading.Event()
                pieces = Pieces(b"{}", lambda b=begun, g=go_on: b.set() or (g.wait(DEADLINE) and b"[]"))
                self.serve(answering(pieces, *headers))
                client = self.connect(request)
                self.assertTrue(begun.wait(DEADLINE))
                threading.Timer(0.05, go_on.set).start()
                self.server.close_gate(DEADLINE)
                self.assertEqual(client.answer().body, b"{}[]")
                self.server.open_gate()

    def test_a_request_that_is_stopped_in_a_debugger_is_waited_for(self) -> None:
        for runner in ("its own thread", "another, as an event loop's or a pool's"):
            with self.subTest(runner):
                self.try_stopped_request(in_another=runner.startswith("another"))

    def try_stopped_request(self, *, in_another: bool) -> None:
        entered, go_on = threading.Event(), threading.Event()
        stopped: list[int] = []

        def view() -> None:
            stopped.append(threading.get_ident())
            entered.set()
            go_on.wait(DEADLINE)

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            if in_another:
                thread = threading.Thread(target=view)
                thread.start()
                thread.join()
            else:
                view()
            return hello(environ, start_response)

        self.patch("_PAUSED_INTERVAL", 0.02)
        self.serve(app)
        self.server.is_paused = lambda thread_id: thread_id in stopped
        client = self.connect(GET)
        self.assertTrue(entered.wait(DEADLINE))
        gate = threading.Thread(target=self.server.close_gate, args=(0.1,))
        gate.start()
        eventually(lambda: "stopped in a debugger" in self.log, "the warning")
        time.sleep(0.2)  # several looks
        self.assertEqual(self.log.count("stopped in a debugger"), 1)
        go_on.set()
        self.assertEqual(client.answer().body, b"hello")
        gate.join(DEADLINE)
        self.assertFalse(gate.is_alive())
        self.server.open_gate()

    def test_threads_are_searched_for_a_debugger_once_for_all_connections(self) -> None:
        """A search looks at every frame of every thread: with 300 WebSockets, one for each took eight seconds."""
        go_on, begun = threading.Event(), queue.Queue[int]()
        self.addCleanup(go_on.set)
        stream = Pieces(lambda: begun.put(1), lambda: go_on.wait() and b"")
        self.serve(answering(stream, ("Content-Type", "text/event-stream")))
        for _ in range(10):
            self.connect(GET)
            threading.Thread(target=go_on.wait, daemon=True).start()
        eventually(lambda: begun.qsize() == 10, "ten streams")
        looks: collections.Counter[int] = collections.Counter()
        self.server.is_paused = lambda ident: bool(looks.update([ident]))
        returning(self.server.close_gate, 600.0)
        self.assertLess(max(looks.values()), 5)

    def test_a_client_that_comes_while_the_gate_closes_is_not_taken(self) -> None:
        """The gate may close between the look at it and the connection's coming; who is taken then would be lost."""
        server, looks, case = self.serve(hello), itertools.count(), self
        clients: list[Client] = []

        class Gate(threading.Event):
            def wait(self, timeout: Optional[float] = None) -> bool:
                next(looks)
                is_open = super().wait(timeout)
                if is_open and not clients:
                    server.hold()
                    clients.append(case.connect(GET))
                return is_open

        gate = Gate()
        gate.set()
        server.gate = gate
        eventually(lambda: clients, "a look at the gate")
        now = next(looks)
        eventually(lambda: next(looks) > now + 10, "the server has looked again and again")
        self.assertEqual(server.connections, set())
        server.open_gate()
        self.assertEqual(clients[0].answer().body, b"hello")

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_can_let_go_of_our_sockets(self) -> None:
        self.serve(hello)
        client = self.connect(GET)
        client.answer()
        pid = os.fork()
        if not pid:
            try:
                self.server.after_fork()
                left = [sock for sock in self.server.listeners if sock.fileno() >= 0]
                left += [c.sock for c in list(self.server.connections) if c.sock.fileno() >= 0]
            finally:
                os._exit(len(left) if "left" in locals() else 99)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        self.assertEqual(client.send(GET).answer().body, b"hello")
        self.assertEqual(self.ask().body, b"hello")

    def test_a_connection_that_ends_is_hardly_waited_for(self) -> None:
        self.patch("_LINGER_TIMEOUT", 600.0)
        self.serve(hello)
        client = self.connect("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
        self.assertEqual(client.answer().body, b"hello")  # and this client keeps its end open
        self.assertEqual(returning(self.server.close_gate, 600.0), [])
        self.assertNotIn("grace", self.log)
        self.server.open_gate()

    def test_empty_lines_after_a_body_are_no_request_in_flight(self) -> None:
        self.serve(hello)
        client = self.connect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        client.answer()
        for _ in range(2):
            client.send("\r\n\r\n")
            eventually(lambda: not any(c.phase for c in list(self.server.connections)), "it rests")
            self.assertEqual(len(self.server.close_gate(DEADLINE)), 1)
            self.server.open_gate()
            self.assertEqual(client.send(GET).answer().body, b"hello")

    def test_a_server_is_shut_down_while_its_gate_is_closed(self) -> None:
        server = self.serve(hello)
        server.close_gate(1.0)
        self.connect(GET)
        thread = threading.Thread(target=server.shutdown)
        thread.start()
        thread.join(DEADLINE)
        self.assertFalse(thread.is_alive())

    def test_a_gate_that_opens_again_serves_whoever_waited(self) -> None:
        self.serve(hello)
        client = self.connect(GET)
        client.answer()
        self.server.close_gate(1.0)
        client.send(GET)
        late = self.connect(GET)
        self.server.open_gate()
        self.assertEqual(client.answer().body, b"hello")
        self.assertEqual(late.answer().body, b"hello")


class ServerEnviron(ServerCase):
    """PEP 3333's environ."""

    def environ(self, request: Union[bytes, str] = GET, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            found.update(environ)
            found["type"] = type(environ)
            found["body"] = environ["wsgi.input"].read()
            return hello(environ, start_response)

        self.serve(app, **options)
        self.assertEqual(self.ask(request).status, 200)
        return found

    def test_every_key_has_its_type(self) -> None:
        headers = "Host: x:1\r\nContent-Type: a/b\r\nContent-Length: 5\r\nX-Two: 2\r\n"
        environ = self.environ(f"POST /a%20b/%C3%A9?q=%20&r HTTP/1.1\r\n{headers}\r\nhello")
        expected = {
            "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a b/\xc3\xa9", "QUERY_STRING": "q=%20&r",
            "CONTENT_TYPE": "a/b", "CONTENT_LENGTH": "5", "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(self.server.server_port), "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "x:1", "HTTP_X_TWO": "2", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
            "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
            "type": dict, "body": b"hello",
        }  # fmt: skip
        for key, value in expected.items():
            with self.subTest(key):
                self.assertEqual(environ.get(key), value)
                self.assertIs(type(environ[key]), type(value))
        self.assertRegex(environ["REMOTE_PORT"], r"^\d+$")
        for name in ("write", "writelines", "flush"):
            self.assertTrue(callable(getattr(environ["wsgi.errors"], name)))
        self.assertTrue(callable(environ["wsgi.file_wrapper"]))
        self.assertNotIn("HTTP_CONTENT_TYPE", environ)
        self.assertNotIn("HTTP_CONTENT_LENGTH", environ)

    def test_all_values_of_variables_are_plain_strings(self) -> None:
        environ = self.environ("GET /\xe9?\xe9 HTTP/1.0\r\nX: \xff\xe9\r\n\r\n")
        for key, value in environ.items():
            if key.isupper():
                self.assertIs(type(value), str, key)
                value.encode("latin-1")
        self.assertEqual(environ["HTTP_X"], "\xff\xe9")
        self.assertEqual(environ["PATH_INFO"], "/\xe9")
        self.assertEqual(environ["SERVER_PROTOCOL"], "HTTP/1.0")

    def test_a_path_with_raw_and_escaped_letters_is_unquoted_once(self) -> None:
        table = {
            "/a%2520b": "/a%20b", "/%C3%A9": "/\xc3\xa9", "/\xc3\xa9": "/\xc3\xa9", "/\xc3\xa9%20a": "/\xc3\xa9 a",
            "/%FF%fe": "/\xff\xfe", "/a+b": "/a+b", "/a;b=c": "/a;b=c", "/%": "/%", "//": "//", "/?a?b": "/",
            "/a%3Fb": "/a?b",
        }  # fmt: skip
        self.serve(
            lambda environ, start_response: hello(environ, start_response) and [environ["PATH_INFO"].encode("latin-1")]
        )
        for target, path in table.items():
            with self.subTest(target):
                self.assertEqual(self.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").body.decode("latin-1"), path)

    def test_a_header_that_comes_twice_is_joined(self) -> None:
        headers = "A: b\r\nCookie: c=1\r\na: \td \t\r\nCookie: d=2\r\nE: \xc3\xa0\r\nE: \xc3\xa0\r\n"
        environ = self.environ(f"GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
        self.assertEqual(re.split(", ?", environ["HTTP_A"]), ["b", "d"])
        self.assertEqual(environ["HTTP_COOKIE"], "c=1; d=2")
        self.assertEqual(re.split(", ?", environ["HTTP_E"]), ["\xc3\xa0", "\xc3\xa0"])

    def test_what_could_pass_itself_off_as_something_else_is_dropped(self) -> None:
        environ = self.environ(
            "GET / HTTP/1.1\r\nHost: x\r\nProxy: http://evil\r\nX_Real_Ip: 1\r\nREMOTE_ADDR: 1\r\nX-Fine: 1\r\n\r\n"
        )
        self.assertEqual(environ["HTTP_X_FINE"], "1")
        for key in ("HTTP_PROXY", "HTTP_X_REAL_IP", "HTTP_REMOTE_ADDR"):
            self.assertNotIn(key, environ)
        self.assertEqual(environ["REMOTE_ADDR"], "127.0.0.1")

    def test_the_host_of_an_absolute_target_overrules_the_header(self) -> None:
        self.assertEqual(self.environ("GET http://y:81/a?b HTTP/1.1\r\nHost: x\r\n\r\n")["HTTP_HOST"], "y:81")

    def test_a_chunked_body_has_its_length_and_its_coding_is_gone(self) -> None:
        environ = self.environ(chunked("3\r\nhel\r\n2\r\nlo\r\n0\r\nX: y\r\n\r\n"))
        self.assertEqual((environ["CONTENT_LENGTH"], environ["body"]), ("5", b"hello"))
        self.assertNotIn("HTTP_TRANSFER_ENCODING", environ)
        self.assertNotIn("HTTP_X", environ)
        self.assertNotIn("wsgi.input_terminated", environ)

    def test_nothing_of_one_request_is_seen_by_the_next(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            seen = sorted(key for key in environ if key in ("CONTENT_TYPE", "HTTP_A", "mine", "HTTP_COOKIE"))
            environ["mine"] = environ["HTTP_A"] = 1
            start_response("200 OK", [])
            return [repr(seen).encode()]

        self.serve(app)
        client = self.connect("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nContent-Type: c\r\nCookie: d\r\n\r\n", GET, GET)
        self.assertEqual(
            [client.answer().body for _ in range(3)], [b"['CONTENT_TYPE', 'HTTP_A', 'HTTP_COOKIE']", b"[]", b"[]"]
        )

    def test_an_application_may_do_with_its_environ_what_it_likes(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            environ.clear()
            environ["REQUEST_METHOD"] = "HEAD"
            environ["SERVER_PROTOCOL"] = 1
            start_response("200 OK", [])
            yield b"hel"
            yield b"lo"

        self.serve(app)
        self.assertEqual(self.ask().body, b"hello")
        self.assertEqual(self.ask("GET / HTTP/1.0\r\n\r\n").body, b"hello")
        self.assertEqual(self.lines(2)[0][:3], ("GET", "/", "200"))

    def test_an_application_under_wsgiref_validate_has_no_complaint(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Any:
            body = environ["wsgi.input"].read(-1)
            lines = [*environ["wsgi.input"].readlines(), environ["wsgi.input"].readline()]
            environ["wsgi.errors"].write("")
            environ["wsgi.errors"].flush()
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            write(b"body: ")
            return iter([body, *lines])

        self.serve(validator(app))
        typed = b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n\r\n"
        bodies = [post("Content-Length: 5", "hello"), chunked(CHUNKS), post("Content-Length: 0")]
        for request in (GET, typed, *bodies, b"HEAD / HTTP/1.0\r\n\r\n"):
            with self.subTest(request):
                answer = self.ask(request, request[:4].decode())
                self.assertEqual(answer.status, 200, self.log)
        self.assertNotIn("Traceback", self.log)


# What an application may do with wsgi.input; io.BytesIO tells the right result.
INPUT: dict[str, Callable[[Any], Any]] = {
    "read()": lambda f: f.read(),
    "read(-1)": lambda f: f.read(-1),
    "read(0)": lambda f: (f.read(0), f.read()),
    "read(3)": lambda f: (f.read(3), f.read(1), f.read()),
    "read(n) past the end": lambda f: f.read(10**7),
    "read after the end": lambda f: (f.read(), f.read(), f.read(5), f.readline(), f.readlines(), list(f)),
    "read by single bytes": lambda f: [f.read(1) for _ in range(50)],
    "readline()": lambda f: [f.readline() for _ in range(8)],
    "readline(n)": lambda f: [f.readline(n) for n in (0, 1, 2, 3, 1000, -1, 100_000)],
    "readlines()": lambda f: f.readlines(),
    "readlines(hint)": lambda f: f.readlines(1) + f.readlines(4) + f.readlines(),
    "iteration": list,
    "next and read": lambda f: (next(f, None), f.read(2), f.readline(), f.read()),
    "read in blocks": lambda f: list(iter(lambda: f.read(4096), b"")),
}
BODIES = {
    "nothing": b"",
    "no newline": b"hello",
    "lines": b"a\nbb\n\nccc\r\nd",
    "a newline": b"\n",
    "many lines": b"".join(b"%d\n" % n for n in range(30_000)),
    "a long line": b"x" * 200_000 + b"\ny",
    "over the spool's memory": b"0123456789abcde\n" * 80_000,
}


class ServerInput(ServerCase):
    """wsgi.input reads as a file that ends where the body ends."""

    def test_a_client_that_leaves_in_its_body_is_no_failure_of_the_application(self) -> None:
        def read(environ: dict[str, Any], start_response: App) -> list[bytes]:
            environ["wsgi.input"].read()
            return hello(environ, start_response)

        def read_as_django(environ: dict[str, Any], start_response: App) -> list[bytes]:
            try:
                try:
                    return read(environ, start_response)
                except OSError as error:
                    raise OSError(*error.args) from error
            except OSError as error:
                raise OSError(*error.args) from error

        for app, debugger in itertools.product((read, read_as_django), (False, True)):
            with self.subTest(app=app, debugger=debugger):
                self.serve(app, debugger=debugger, quiet=True)
                client = self.connect("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc")
                client.sock.shutdown(socket.SHUT_WR)
                answer = client.answer()
                self.assertEqual(answer.status, 400)
                self.assertNotIn("Traceback", f"{answer.body!r}{self.log}")

    @needs("flask")
    def test_an_upload_to_flask_that_breaks_off_is_400(self) -> None:
        import flask

        flask_app = flask.Flask("uploads")

        @flask_app.route("/first", methods=["POST"])
        def view() -> str:
            return str(flask.request.files)

        @flask_app.route("/late", methods=["POST"])
        def late() -> Any:
            def pieces() -> Iterator[bytes]:
                yield from iter(lambda: flask.request.stream.read(4096), b"")

            return flask.Response(flask.stream_with_context(pieces()))

        self.serve(flask_app)
        broken = self.connect(b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").end()
        self.assertEqual(broken.answer().status, 400)
        self.assertNotIn("Traceback", self.log)
        part = '--B\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + "x" * 100_000
        client = self.connect(
            post("Content-Type: multipart/form-data; boundary=B\nContent-Length: 9999999", part)
        ).end()
        self.assertEqual(client.answer().status, 400)

    @needs("bottle")
    @needs("flask")
    def test_a_framework_that_catches_what_ended_its_read_gives_a_line_and_a_400(self) -> None:
        import logging

        import bottle
        import flask

        flask_app, bottle_app = flask.Flask("uploads"), bottle.Bottle()
        began = threading.Event()

        @flask_app.route("/first", methods=["POST"])
        def read() -> bytes:
            began.set()
            data: bytes = flask.request.stream.read()
            return data

        flask_app.add_url_rule("/fails", "fails", lambda: 1 / 0)
        bottle_app.route("/first", "POST", lambda: bottle.request.body.read())
        told = io.StringIO()
        handler = logging.StreamHandler(told)
        flask_app.logger.addHandler(handler)
        self.addCleanup(flask_app.logger.removeHandler, handler)
        chunked = post("Transfer-Encoding: chunked", "9\r\na")
        for app, head in ((flask_app, chunked), (bottle_app, post("Content-Length: 9"))):
            with mock.patch("sys.stderr", told):
                self.serve(app, quiet=True)
                client = self.connect(head)
                if head is chunked:  # as it pauses, the view reads it as it comes
                    self.assertTrue(began.wait(DEADLINE))
                self.assertEqual(client.end().answer().status, 400)
        self.assertRegex(
            told.getvalue(), r"Exception on /first \[POST\]\n.*closed the connection\n.*closed the connection\n"
        )
        self.assertNotIn("Traceback", told.getvalue())
        # A failure of the application's own keeps its traceback.
        self.serve(flask_app, quiet=True)
        self.connect("GET /fails HTTP/1.1\r\nHost: x\r\n\r\n").answer()
        self.assertIn("Traceback", told.getvalue())

    def test_a_read_of_a_live_body_is_whole_as_long_as_more_comes(self) -> None:
        """As a protocol needs it whose frames have a length."""

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            read = environ["wsgi.input"].read
            start_response("200 OK", [])
            return [repr([len(read(count)) for count in (1, 10_000, 4, 10_000)]).encode()]

        self.patch("_SPOOL_PAUSE", 0.3)
        self.serve(app)
        client = self.connect(chunked("1\r\na\r\n"))
        time.sleep(0.5)  # now it is live
        for _ in range(20_004 // 12):
            client.send("C\r\n" + "x" * 12 + "\r\n")
        self.assertEqual(client.send("0\r\n\r\n").answer().body, b"[1, 10000, 4, 10000]")

    def test_a_chunked_body_whose_client_pauses_is_read_as_it_comes(self) -> None:
        came: queue.Queue[bytes] = queue.Queue()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            self.assertNotIn("CONTENT_LENGTH", environ)
            self.assertNotIn("HTTP_TRANSFER_ENCODING", environ)
            self.assertIs(environ["wsgi.input_terminated"], True)
            for data in iter(lambda: environ["wsgi.input"].read(65536), b""):
                came.put(data)
            self.assertEqual(environ["wsgi.input"].read(), b"", "nothing of the next request")
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(chunked(""))
        for data in (b"one", b"two", b"three"):
            client.send(b"%x\r\n%b" % (len(data), data))
            self.assertEqual(came.get(timeout=DEADLINE), data)
            client.send("\r\n")
        client.send("0\r\n\r\n", GET)
        self.assertEqual([client.answer().status for _ in range(2)], [200, 500], "the second has another environ")

    def test_an_application_that_reads_by_the_length_alone_is_told_of_a_body_without_one(self) -> None:
        for status, size, sent, told in (
            ("200 OK", 0, "1\r\nx\r\n", 1),
            ("200 OK", -1, "1\r\nx\r\n", 0),
            ("200 OK", 0, CHUNKS, 0),
            ("200 OK", 0, "", 0),  # it comes to nothing
            ("302 Found", 0, "1\r\nx\r\n", 0),  # an answer that needs no body
            ("404 Not Found", 0, "1\r\nx\r\n", 0),
            ("422 Unprocessable Content", 0, "1\r\nx\r\n", 1),
            ("500 Internal Server Error", 0, "1\r\nx\r\n", 1),
        ):
            calls: queue.Queue[int] = queue.Queue()

            def app(
                environ: Any, start_response: Any, status: str = status, size: int = size, calls: Any = calls
            ) -> list[bytes]:
                calls.put(1)
                environ["wsgi.input"].read(size)
                start_response(status, [])
                return [b"hello"]

            self.serve(app)
            for _ in range(2):
                client = self.connect(chunked(sent))
                calls.get(timeout=DEADLINE)
                if sent != CHUNKS:
                    client.send("0\r\n\r\n")
                self.assertEqual(client.answer().status, int(status[:3]))
                client.end()
            eventually(lambda: not self.server.connections, "the connections end")
            self.assertEqual(self.log.count("Django and Bottle"), told, (status, size, sent))

    def test_a_slow_trickle_of_chunks_is_no_upload_in_one_go(self) -> None:
        called = threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            called.set()
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(chunked(""))
        end = time.monotonic() + DEADLINE
        while not called.is_set() and time.monotonic() < end:
            client.send("1\r\nx\r\n", pause=0.02)
        self.assertTrue(called.is_set())

    def test_a_chunked_body_past_what_is_stored_is_read_as_it_comes(self) -> None:
        self.patch("_SPOOL_LIMIT", 100_000)
        self.serve(lambda e, sr: hello(e, sr) and [str(e.get("CONTENT_LENGTH")).encode() + e["wsgi.input"].read()])
        for size, length in ((100, b"100"), (60_000, b"60000"), (3_000_000, b"None")):
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            pieces = [body[n : n + 7000] for n in range(0, size, 7000)]
            client = self.connect(chunked(chunks_of(*pieces)), GET)
            self.assertTrue(client.answer().body == length + body)
            self.assertEqual(client.answer().body, b"None")

    def test_a_chunked_body_that_goes_wrong_while_it_is_read_is_400(self) -> None:
        self.patch("_SPOOL_LIMIT", 10)
        for wrong in ("xyz\r\n", "5\r\nhello!\r\n0\r\n\r\n", "0\r\nbad\r\n\r\n"):
            self.serve(echo)
            client = self.connect(chunked("a\r\n0123456789\r\n" + wrong), GET)
            answer = client.answer()
            self.assertEqual((answer.status, answer.get("Connection")), (400, "close"))
            self.assertEqual(client.rest(), b"")
            self.assertNotIn("Traceback", self.log)

    def test_nothing_of_a_body_is_stored_longer_than_its_exchange(self) -> None:
        kept: list[Any] = []

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            kept.append(environ["wsgi.input"])
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(chunked(chunks_of(b"x" * 5000)), GET)
        self.assertEqual([client.answer().body for _ in range(2)], [b"hello"] * 2)
        self.assertTrue(kept[0].closed)

    def test_every_way_to_read_gives_what_a_file_gives(self) -> None:
        results: list[Any] = []

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            results.append(INPUT[environ["HTTP_X_DO"]](environ["wsgi.input"]))
            return hello(environ, start_response)

        self.serve(app)
        with Client(self.server.server_port) as client:
            for kind, body in BODIES.items():
                half = len(body) // 2
                framings = {
                    "length": (f"Content-Length: {len(body)}", body),
                    "chunks": ("Transfer-Encoding: chunked", chunks_of(body[:half], body[half:])),
                }
                for (name, operation), (framing, (header, sent)) in (
                    (o, f) for o in INPUT.items() for f in framings.items()
                ):
                    if len(body) > 10**6 and name not in ("read()", "iteration", "read in blocks"):
                        continue
                    with self.subTest(body=kind, operation=name, framing=framing):
                        client.send(post(f"{header}\nX-Do: {name}"), sent)
                        self.assertEqual(client.answer().status, 200, self.log[-2000:])
                        expected = operation(io.BytesIO(body))
                        self.assertTrue(results.pop() == expected, "not what io.BytesIO gives")

    def test_a_body_that_is_read_whole_is_asked_for_in_large_pieces(self) -> None:
        sizes: list[int] = []
        receive_into = devserve._Connection.receive_into

        def noted(connection: Any, buffer: Any) -> int:
            sizes.append(len(buffer))
            return receive_into(connection, buffer)

        with mock.patch.object(devserve._Connection, "receive_into", noted):
            self.serve(echo)
            self.connect(post("Content-Length: 200000"), b"x" * 200_000).answer()
        self.assertEqual(sizes[0], devserve._READ_SIZE)

    def test_a_read_past_the_length_does_not_wait(self) -> None:
        self.serve(lambda environ, sr: hello(environ, sr) and [b"%r" % environ["wsgi.input"].read(100)])
        client = self.connect(post("Content-Length: 5", "hello"))  # the connection stays open
        self.assertEqual(client.answer().body, b"b'hello'")

    def test_a_line_is_given_as_soon_as_it_is_there(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield environ["wsgi.input"].readline()
            yield environ["wsgi.input"].read()

        self.serve(app)
        client = self.connect(post("Content-Length: 12", "first\n"))
        self.assertEqual(client.head().status, 200)
        self.assertEqual(client.chunk(), b"first\n")
        client.send("second")
        self.assertEqual(client.chunk(), b"second")

    def test_a_body_survives_in_pieces_of_any_size(self) -> None:
        self.serve(echo)
        body = bytes(random.Random(1).randrange(256) for _ in range(3000))
        for size in (1, 7, 1000):
            with self.subTest(size=size), Client(self.server.server_port) as client:
                pieces = [body[n : n + size] for n in range(0, len(body), size)]
                client.send(chunked(chunks_of(*pieces)))
                self.assertEqual(client.answer().body, b"POST /first " + body)
                client.send(post(f"Content-Length: {len(body)}"), *pieces)
                self.assertEqual(client.answer().body, b"POST /first " + body)

    def test_a_declared_length_that_is_a_lie_costs_no_memory(self) -> None:
        self.serve(echo)
        self.assertEqual(self.connect(post("Content-Length: 900000000000000"), "hello").end().answer().status, 400)
        self.assertNotIn("Traceback", self.log)

    def test_the_input_may_be_closed_by_the_application(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            environ["wsgi.input"].read(1)
            environ["wsgi.input"].close()
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(post("Content-Length: 5", "hello"), chunked(CHUNKS), GET)
        self.assertEqual([client.answer().body for _ in range(3)], [b"hello"] * 3)


def chunks_of(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*filter(None, pieces), b""))


class ServerResponses(ServerCase):
    """PEP 3333's start_response, write, iterables, and how the answers are framed."""

    def crash(self, app: App, request: Union[bytes, str] = GET, method: str = "GET") -> Answer:
        """Ask a broken application: a 500, one line, a traceback without devserve's frames, and the server lives."""
        self.serve(app)
        answer = self.ask(request, method)
        self.assertEqual(answer.status, 500)
        self.assertEqual(answer.get("Connection"), "close")
        self.assertIn("Traceback", self.log)
        self.assertEqual(self.lines(1)[0][2], "500")
        self.server.app = hello
        self.assertEqual(self.ask().body, b"hello")
        return answer

    # -- start_response

    def test_start_response_twice_is_an_error(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            start_response("200 OK", [])
            start_response("201 Created", [])
            return [b"no"]

        self.crash(app)

    def test_start_response_with_exc_info_before_the_headers_replaces_them(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [("X-First", "1"), ("Content-Length", "99")])
            yield b""  # sends nothing
            try:
                raise ValueError("broken")
            except ValueError:
                start_response("503 Sorry", [("X-Second", "2")], sys.exc_info())
            yield b"sor"
            yield b"ry"

        self.serve(app)
        answer = self.ask()
        self.assertEqual((answer.status, answer.reason, answer.body), (503, "Sorry", b"sorry"))
        self.assertEqual((answer.get("X-First"), answer.get("X-Second")), (None, "2"))

    def test_start_response_with_exc_info_after_the_headers_raises_it_and_cuts(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"first"
            try:
                raise ValueError("the original mistake")
            except ValueError:
                start_response("500 Sorry", [], sys.exc_info())
            yield b"never"

        self.serve(app)
        client = self.connect(GET)
        with self.assertRaises(Cut):
            client.answer()
        self.assertIn("ValueError: the original mistake", eventually(lambda: self.log, "a log"))
        self.assertEqual(self.lines(1)[0][2], "200")

    def test_headers_wait_for_the_first_piece_that_is_not_empty(self) -> None:
        go_on = threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b""
            go_on.wait(DEADLINE)
            yield b"late"

        self.serve(app)
        client = self.connect(GET)
        self.assertEqual(select.select([client.sock], [], [], 0.15)[0], [], "the headers have been sent")
        go_on.set()
        self.assertEqual(client.answer().body, b"late")

    def test_start_response_may_be_called_by_the_first_iteration(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Length", "2")])
            yield b"ok"

        self.serve(app)
        self.assertEqual(self.ask().body, b"ok")

    def test_write_sends_at_once_and_goes_before_the_iterable(self) -> None:
        go_on = threading.Event()

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            write = start_response("200 OK", [])
            write(b"one")
            go_on.wait(DEADLINE)
            write(b"")
            write(b"two")
            return [b"three"]

        self.serve(app)
        client = self.connect(GET)
        client.head()
        self.assertEqual(client.chunk(), b"one")
        go_on.set()
        self.assertEqual([client.chunk() for _ in range(3)], [b"two", b"three", b""])

    def test_write_with_a_declared_length_is_framed_by_it(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            start_response("200 OK", [("Content-Length", "6")])(b"one")
            return [b"two"]

        self.serve(app)
        client = self.connect(GET, LAST)
        self.assertEqual([client.answer().body, client.answer().body], [b"onetwo"] * 2)

    # -- close()

    def test_close_is_called_exactly_once_whatever_happens(self) -> None:
        cases: dict[str, tuple[Pieces, list[tuple[str, str]], str, Union[bytes, str]]] = {
            "a good answer": (Pieces(b"a", b"b"), [], "200 OK", GET),
            "nothing": (Pieces(), [], "200 OK", GET),
            "an exception at once": (Pieces(ValueError("broken")), [], "200 OK", GET),
            "an exception later": (Pieces(b"a", ValueError("broken")), [], "200 OK", GET),
            "SystemExit": (Pieces(b"a", SystemExit(3)), [], "200 OK", GET),
            "a str": (Pieces(b"a", "b"), [], "200 OK", GET),
            "None": (Pieces(None), [], "200 OK", GET),
            "too much": (Pieces(b"abc", b"def"), [("Content-Length", "2")], "200 OK", GET),
            "too little": (Pieces(b"abc"), [("Content-Length", "5")], "200 OK", GET),
            "HEAD": (Pieces(b"abc", b"def"), [], "200 OK", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"),
            "204": (Pieces(b"abc"), [], "204 No Content", GET),
            "304": (Pieces(), [], "304 Not Modified", GET),
        }
        for name, (pieces, headers, status, request) in cases.items():
            with self.subTest(name):
                self.serve(answering(pieces, *headers, status=status))
                self.connect(request).end().rest()
                self.lines(1)
                eventually(lambda: pieces.closed, "close()")
                self.assertEqual(pieces.closed, 1)

    def test_close_that_fails_is_shown_and_the_answer_stays_whole(self) -> None:
        class Stubborn(Pieces):
            def close(self) -> None:
                super().close()
                raise ValueError("cannot close")

        pieces = Stubborn(b"abc", b"def")
        self.serve(answering(pieces))
        self.assertEqual(self.ask().body, b"abcdef")
        eventually(lambda: "ValueError: cannot close" in self.log, "the traceback")
        self.lines(1)
        self.assertEqual(pieces.closed, 1)

    def test_close_is_called_after_the_last_byte_was_sent(self) -> None:
        class Late(Pieces):
            def close(self) -> None:
                go_on.wait(DEADLINE)
                super().close()

        go_on = threading.Event()
        pieces = Late(b"abc")
        self.serve(answering(pieces))
        client = self.connect(GET)
        self.assertEqual(client.answer().body, b"abc")
        self.assertEqual(pieces.closed, 0)
        go_on.set()
        eventually(lambda: pieces.closed == 1, "close()")

    # -- framing

    def test_a_body_of_one_piece_has_a_length(self) -> None:
        for result, body in (
            ([b"hello"], b"hello"),
            ((b"hello",), b"hello"),
            ([], b""),
            ([b""], b""),
            (Pieces(), b""),
        ):
            with self.subTest(result):
                self.serve(answering(result))
                client = self.connect(GET, LAST)
                answer = client.answer()
                self.assertEqual((answer.get("Content-Length"), answer.body), (str(len(body)), body))
                self.assertEqual(client.answer().body, body)

    def test_a_body_of_unknown_length_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0(self) -> None:
        for result in (lambda: iter([b"ab", b"", b"c"]), lambda: Pieces(b"ab", b"", b"c"), lambda: [b"ab", b"c"]):
            self.serve(lambda environ, start_response: answering(result())(environ, start_response))
            client = self.connect(GET, LAST)
            for connection in (None, "close"):
                answer = client.answer()
                self.assertEqual((answer.get("Transfer-Encoding"), answer.get("Content-Length")), ("chunked", None))
                self.assertEqual((answer.body, answer.get("Connection")), (b"abc", connection))
            client = self.connect("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = client.answer()
            self.assertEqual(
                (answer.body, answer.get("Connection"), answer.get("Transfer-Encoding")), (b"abc", "close", None)
            )

    def test_head_sends_the_head_of_get_and_no_body(self) -> None:
        cases: list[tuple[Any, list[tuple[str, str]]]] = [
            ([b"hello"], []), ([b"a", b"b"], []), ([], []), ([b"hello"], [("Content-Length", "5")]),
            ([], [("Content-Length", "5")]), ([b""], [("Content-Length", "5")]),
        ]  # fmt: skip
        for result, headers in cases:
            for version in ("1.1", "1.0"):
                with self.subTest(result=result, headers=headers, version=version):
                    self.serve(answering(result, *headers))
                    client = self.connect(f"HEAD / HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
                    answer = client.answer("HEAD")
                    self.assertEqual(answer.status, 200)
                    self.assertIn(answer.get("Content-Length"), (None, "5"))
                    if headers:
                        self.assertEqual(answer.get("Content-Length"), "5")
                    client.send("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    self.assertRegex(client.rest(), rb"(?s)^HTTP/1.1 200 OK\r\n.*\r\n\r\n$|^$")
                    self.lines(2 if answer.get("Connection") != "close" else 1)
                    self.assertNotIn("Traceback", self.log)

    def test_204_and_304_have_no_body(self) -> None:
        for status in ("204 No Content", "304 Not Modified"):
            for result in ([], [b""], [b"bad"], Pieces(b"bad", b"worse")):
                for headers in ([], [("Content-Length", "3" if status[0] == "3" else "0")]):
                    with self.subTest(status=status, result=result, headers=headers):
                        self.serve(answering(result, *headers, status=status))
                        client = self.connect(GET, LAST)
                        answer = client.answer()
                        self.assertEqual(answer.status, int(status[:3]))
                        self.assertIsNone(answer.get("Transfer-Encoding"))
                        self.assertEqual(answer.get("Content-Length"), "3" if headers and status[0] == "3" else None)
                        self.assertEqual(client.answer().status, int(status[:3]))
                        self.assertEqual(client.rest(), b"")

    def test_more_than_declared_is_left_out_and_told_once(self) -> None:
        for result in ([b"hello world"], Pieces(b"hel", b"lo wor", b"ld"), Pieces(*[b"hello"] * 50)):
            with self.subTest(result):
                self.serve(answering(result, ("Content-Length", "5")))
                client = self.connect(GET, LAST)
                self.assertEqual(client.answer().body, b"hello")
                self.assertEqual(client.rest(), b"", "nothing may pass for the next answer")
                self.lines(1)
                self.assertEqual(self.log.count("warning"), 1, self.log)

    def test_less_than_declared_is_cut(self) -> None:
        for result in ([b"hello"], Pieces(b"hel", b"lo"), []):
            for version in ("1.1", "1.0"):
                with self.subTest(result=result, version=version):
                    self.serve(answering(result, ("Content-Length", "9")))
                    client = self.connect(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n", LAST)
                    with self.assertRaises(Cut):
                        answer = client.answer()
                        if answer.status == 500:  # nothing was sent yet: an honest answer is as good
                            raise Cut
                    eventually(lambda: "declared" in self.log, "a word in the log")
                    self.lines(1)

    def test_an_application_that_breaks_after_its_headers_is_cut(self) -> None:
        for headers in ([], [("Content-Length", "99")]):
            for version in ("1.1", "1.0"):
                with self.subTest(headers=headers, version=version):
                    self.serve(answering(Pieces(b"begun", ValueError("broken")), *headers))
                    client = self.connect(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n", LAST)
                    if not headers and version == "1.0":  # there an orderly end would make it a whole answer
                        with self.assertRaises(ConnectionResetError):
                            client.rest()
                        continue
                    rest = client.rest()
                    self.assertEqual(rest.count(b"HTTP/1.1"), 1)
                    self.assertFalse(rest.endswith(b"0\r\n\r\n"), "a chunked body that ends as if it were whole")
                    eventually(lambda: "ValueError: broken" in self.log, "the traceback")
                    self.lines(1)

    def test_what_is_written_after_the_end_of_a_response_never_reaches_the_client(self) -> None:
        writes: list[Callable[[bytes], None]] = []

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            writes.append(start_response("200 OK", []))
            return [b"one", b"two"]

        self.serve(app)
        client = self.connect(GET)
        self.assertEqual(client.answer().body, b"onetwo")
        with self.assertRaisesRegex(RuntimeError, "ended"):
            writes[0](b"late")
        self.assertEqual(client.send(GET).answer().body, b"onetwo")

    def test_an_application_that_declared_a_length_is_asked_for_no_more(self) -> None:
        pieces = itertools.count()
        self.serve(lambda e, sr: sr("200 OK", [("Content-Length", "5")]) and (b"%d" % n for n in pieces))
        self.assertEqual(self.ask().body, b"01234")
        self.lines(1)
        self.assertLess(next(pieces), 10)

    def test_exc_info_may_be_given_by_name(self) -> None:
        self.serve(lambda e, sr: sr("200 OK", [], exc_info=None) and [b"hello"])
        self.assertEqual(self.ask().body, b"hello")

    # -- headers

    def test_date_and_server_are_added(self) -> None:
        self.serve(hello)
        answer = self.ask()
        self.assertRegex(
            answer.get("Date") or "", r"^(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT$"
        )
        self.assertEqual(answer.get("Server"), f"devserve/{devserve.__version__}")

    def test_date_and_server_of_the_application_win(self) -> None:
        date = "Mon, 01 Jan 2024 00:00:00 GMT"
        self.serve(answering([b"x"], ("date", date), ("SERVER", "mine")))
        answer = self.ask()
        self.assertEqual((answer.get("Date"), answer.get("Server")), (date, "mine"))

    def test_headers_keep_their_order_case_and_repetition(self) -> None:
        headers = [("Set-Cookie", "a=1"), ("X-a", "1"), ("Set-Cookie", "b=2"), ("X-A", "\xe9\tz"), ("X-Empty", "")]
        self.serve(answering([b"x"], *headers))
        self.assertEqual([h for h in self.ask().headers.items() if h in headers], headers)

    def test_two_equal_lengths_are_sent_as_one(self) -> None:
        self.serve(answering([b"x"], ("Content-Length", "1"), ("content-length", "1")))
        self.assertEqual(self.ask().get("Content-Length"), "1")

    def test_headers_that_are_not_http_are_refused(self) -> None:
        bad: list[tuple[Any, Any]] = [
            ("X-A", "a\r\nSet-Cookie: evil=1"), ("X-A", "a\nb"), ("X-A", "a\rb"), ("X-A", "\0"), ("X-A", "\x1b[0m"),
            ("X-A", "\x7f"), ("X-A", "\u20ac"), ("X-A", b"bytes"), ("X-A", None), ("X-A", 5), (b"X-A", "a"),
            ("X A", "a"), ("X-A:", "a"), ("", "a"), ("X-A\r\nB", "a"), ("X-\xe9", "a"), ("X-A\n", "a"),
            ("Content-Length", "5x"), ("Content-Length", "-1"), ("Content-Length", "+5"), ("Content-Length", ""),
            ("Content-Length", "\u0665"), ("Content-Length", "5, 5"), ("Content-Length", 5),
        ]  # fmt: skip
        for header in bad:
            with self.subTest(header):
                answer = self.crash(answering([b"hello"], header))
                self.assertEqual(answer.all("Set-Cookie"), [])
                self.assertEqual(self.log.count("Traceback"), 1, self.log)
        self.crash(answering([b"hello"], ("Content-Length", "5"), ("Content-Length", "4")))

    def test_a_length_that_is_said_twice_goes_out_once(self) -> None:
        for length in ("0", "5"):
            self.serve(answering([b"x" * int(length)], *[("Content-Length", length)] * 2))
            self.assertEqual(self.ask().all("Content-Length"), [length])

    def test_hop_by_hop_headers_are_left_out_with_one_warning_for_each(self) -> None:
        names = [
            "Connection", "Keep-Alive", "Proxy-Authenticate", "TE", "Trailers", "Transfer-Encoding", "Upgrade",
        ]  # fmt: skip
        self.serve(answering([b"hello"], *[(spelt, "chunked") for name in names for spelt in (name, name.lower())]))
        client = self.connect(GET, GET, GET)
        for _ in range(3):
            answer = client.answer()
            self.assertEqual((answer.status, answer.body), (200, b"hello"))
            self.assertEqual([name for name in answer.headers if name in names], [])
        eventually(lambda: self.log.count("left out the header") == len(names), "the warnings")

    def test_an_application_may_ask_for_the_end_of_the_connection(self) -> None:
        self.serve(answering([b"hello"], ("Connection", "keep-alive, Close")))
        client = self.connect(GET, GET)
        self.assertEqual(client.answer().all("Connection"), ["close"])
        self.assertEqual(client.rest(), b"")
        self.assertNotIn("left out", self.log)

    def test_statuses_up_to_999_pass(self) -> None:
        for code in (299, 600, 999):
            self.serve(answering([b""], status=f"{code} Whatever"))
            self.assertEqual(self.ask().status, code)

    def test_what_never_ends_is_logged_when_it_begins_and_when_it_ends(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        pieces = Pieces(b"data: 1\n\n", lambda: go_on.wait(DEADLINE) and b"end")
        self.serve(answering(pieces, ("Content-Type", "text/event-stream; charset=utf-8")))
        client = self.connect(GET)
        client.head()
        self.assertEqual(self.lines(1), [("GET", "/ (begins)", "200", "0")])
        go_on.set()
        client.chunk()
        client.chunk()
        self.assertEqual(self.lines(2)[1], ("GET", "/", "200", "12"))

    def test_heads_that_are_long_and_many_are_not_remembered(self) -> None:
        self.serve(hello)
        before = devserve._remembered_head.cache_info().currsize
        client = self.connect()
        for n in range(10):
            client.send(f"GET /{n} HTTP/1.1\r\nHost: x\r\n{'Y' * 9000}{n}: z\r\n\r\n").answer()
        self.assertEqual(devserve._remembered_head.cache_info().currsize, before)
        self.assertLessEqual(devserve._remembered_head.cache_info().maxsize or 0, 128)
        self.assertLessEqual(devserve._remembered_response_head.cache_info().maxsize or 0, 128)

    def test_a_bad_status_is_refused(self) -> None:
        bad: list[Any] = [
            "200", "", "OK", "20 OK", "2000 OK", "200OK", " 200 OK", "200 OK\r\nX: y", "200 OK\n", "+20 OK",
            "100 Continue", "101 Switching", "\u0662\u0660\u0660 OK", "200 \u20ac", b"200 OK", 200, None,
        ]  # fmt: skip
        for status in bad:
            with self.subTest(status):
                self.crash(answering([b"hello"], status=status))
        self.crash(answering([b"hello"], status="420"))  # as Werkzeug and gunicorn take it, but not wsgiref
        self.assertIn("'420' is no status; PEP 3333 wants a code from 200 on, a space and a reason", self.log)

    def test_a_reason_may_be_empty_or_any_text(self) -> None:
        for status in ("200 ", "404 Nicht gefunden", "299 \xe9\t!"):
            with self.subTest(status):
                self.serve(answering([b"x"], status=status))
                answer = self.ask()
                self.assertEqual((f"{answer.status} {answer.reason}", answer.body), (status, b"x"))

    # -- broken applications

    def test_a_broken_application_is_a_500_with_a_traceback(self) -> None:
        def silent(environ: dict[str, Any], start_response: App) -> list[bytes]:
            return [b"never started"]

        def silent_and_empty(environ: dict[str, Any], start_response: App) -> list[bytes]:
            return []

        def recursive(environ: dict[str, Any], start_response: App) -> Any:
            return recursive(environ, start_response)

        broken: dict[str, App] = {
            "an exception": answering(ValueError("broken")),
            "SystemExit": answering(SystemExit(0)),
            "KeyboardInterrupt": answering(KeyboardInterrupt()),
            "GeneratorExit": answering(GeneratorExit()),
            "a str": answering("text"),
            "a list of str": answering(["text"]),
            "an empty str in a list": answering([""]),
            "bytes": answering(b"bytes"),
            "None": answering(None),
            "a number": answering(5),
            "a list of None": answering([None]),
            "a bytearray": answering([bytearray(b"x")]),
            "no start_response": silent,
            "no start_response and no body": silent_and_empty,
            "the wrong arguments": lambda: None,
            "no callable": 5,  # type: ignore[dict-item]
            "recursion": recursive,
        }
        for name, app in broken.items():
            with self.subTest(name):
                if name == "bytes":  # an iterable of ints, or, for the lenient, a body
                    self.serve(app)
                    self.assertIn(self.ask().status, (200, 500))
                else:
                    answer = self.crash(app)
                    self.assertTrue((answer.get("Content-Type") or "").startswith("text/plain"))
                    self.assertNotIn(b"Traceback", answer.body)

    def test_the_traceback_begins_with_the_applications_own_frame(self) -> None:
        def view(environ: dict[str, Any], start_response: App) -> list[bytes]:
            raise ValueError("broken")

        self.crash(view)
        self.assertIn("in view", self.log)
        self.assertNotIn("devserve.py", self.log.replace("test_devserve.py", ""))
        self.assertEqual(self.log.count("Traceback"), 1)

    def test_a_broken_application_under_head_gets_no_body(self) -> None:
        self.crash(answering(ValueError("broken")), "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD")

    def test_an_exception_whose_text_fails_is_still_an_answer(self) -> None:
        class Odd(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        self.crash(answering(Odd()))

    def test_an_oserror_of_the_application_is_no_lost_client(self) -> None:
        for error in (OSError("disk"), ConnectionError("database"), BrokenPipeError("pipe"), TimeoutError("late")):
            with self.subTest(error):
                self.crash(answering(error))

    def test_the_app_may_be_replaced_while_serving(self) -> None:
        self.serve(hello)
        client = self.connect(GET)
        client.answer()
        self.server.app = answering([b"other"])
        self.assertEqual(client.send(GET).answer().body, b"other")

    # -- streaming

    def test_a_piece_is_on_the_wire_before_the_next_is_made(self) -> None:
        for version in ("1.1", "1.0"):
            for headers in ([], [("Content-Length", "9")], [("Content-Type", "text/event-stream")]):
                with self.subTest(version=version, headers=headers):
                    steps = [threading.Event() for _ in range(3)]
                    made: list[int] = []

                    def app(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
                        start_response("200 OK", headers)
                        for number, step in enumerate(steps):
                            step.wait(DEADLINE)
                            made.append(number)
                            yield b"<%d>" % number

                    self.serve(app)
                    client = self.connect(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n")
                    coding = ""
                    for number, step in enumerate(steps):
                        self.assertEqual(len(made), number)
                        step.set()
                        if number == 0:
                            coding = client.head().get("Transfer-Encoding") or ""
                        self.assertEqual(client.chunk() if coding else client.exactly(3), b"<%d>" % number)

    def test_a_small_answer_leaves_in_one_packet(self) -> None:
        """A head and a body sent apart meet Nagle's algorithm and delayed acknowledgements: 40 ms an answer."""
        self.serve(hello)
        sent: list[int] = []
        original = devserve._Connection.send

        def send(connection: Any, data: Any) -> None:
            sent.append(len(data))
            original(connection, data)

        with mock.patch.object(devserve._Connection, "send", send):
            self.assertEqual(self.ask().body, b"hello")
        self.assertEqual(len(sent), 1)

    def test_keep_alive_requests_do_not_wait_for_acknowledgements(self) -> None:
        self.serve(answering([b"a", b"b"]))
        self.connect(GET).answer()
        (connection,) = self.server.connections
        self.assertTrue(connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_a_large_answer_arrives_whole(self) -> None:
        body = bytes(range(256)) * 40_000
        for result in ([body], [body[:5], body[5:]]):
            self.serve(answering(result))
            self.assertTrue(self.ask().body == body)


class ServerFiles(ServerCase):
    """wsgi.file_wrapper: the kernel copies a plain file, everything else is read."""

    CONTENT = b"".join(b"line %d\n" % n for n in range(20_000))

    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "file.bin"
        self.path.write_bytes(self.CONTENT)
        self.sent: list[Any] = []
        if sys.platform == "win32":
            return
        original = os.sendfile

        def sendfile(*arguments: int) -> int:
            self.sent.append(arguments)
            return original(*arguments)

        patcher = mock.patch.object(os, "sendfile", sendfile)
        patcher.start()
        self.addCleanup(patcher.stop)

    def check(
        self, make: Callable[[], Any], body: bytes, *headers: tuple[str, str], by_kernel: Optional[bool] = None
    ) -> Answer:
        """Serve a file twice on a connection; it must be closed each time."""
        files: list[Any] = []

        def app(environ: dict[str, Any], start_response: App) -> Any:
            start_response("200 OK", list(headers))
            files.append(make())
            return environ["wsgi.file_wrapper"](files[-1], 4096)

        self.sent.clear()
        self.serve(app)
        client = self.connect(GET, LAST)
        answer = client.answer()
        self.assertTrue(answer.body == body, f"{len(answer.body)} bytes for {len(body)}; {self.log}")
        self.assertTrue(client.answer().body == body)
        self.assertEqual(client.rest(), b"")
        self.assertEqual(self.lines(2)[0][3], str(len(body)))
        self.assertNotIn("Traceback", self.log)
        for file in files:
            eventually(lambda: getattr(file, "closed", True), "the file closed")
        if by_kernel is not None and sys.platform != "win32":
            self.assertEqual(bool(self.sent), by_kernel)
        return answer

    def test_a_plain_file_goes_by_the_kernel_with_its_length(self) -> None:
        answer = self.check(lambda: open(self.path, "rb"), self.CONTENT, by_kernel=True)
        self.assertEqual(answer.get("Content-Length"), str(len(self.CONTENT)))

    def test_an_unbuffered_file_goes_by_the_kernel(self) -> None:
        self.check(lambda: open(self.path, "rb", buffering=0), self.CONTENT, by_kernel=True)

    def test_a_file_is_sent_from_its_position_on(self) -> None:
        def opened() -> Any:
            file = open(self.path, "rb")
            file.read(10)
            return file

        self.check(opened, self.CONTENT[10:])
        self.check(opened, self.CONTENT[10:], ("Content-Length", str(len(self.CONTENT) - 10)))

    def test_a_declared_length_bounds_the_file(self) -> None:
        for length in (5, 1, 0, len(self.CONTENT)):
            with self.subTest(length):
                self.check(lambda: open(self.path, "rb"), self.CONTENT[:length], ("Content-Length", str(length)))

    def test_a_declared_length_beyond_the_file_is_cut(self) -> None:
        self.serve(
            lambda e, sr: (
                sr("200 OK", [("Content-Length", "999999")]) and e["wsgi.file_wrapper"](open(self.path, "rb"))
            )
        )
        with self.assertRaises(Cut):
            self.connect(GET).answer()
        self.lines(1)

    def test_an_empty_file(self) -> None:
        self.path.write_bytes(b"")
        self.check(lambda: open(self.path, "rb"), b"")

    def test_a_file_at_its_end(self) -> None:
        def opened() -> Any:
            file = open(self.path, "rb")
            file.seek(0, 2)
            return file

        self.check(opened, b"")

    def test_a_gzip_file_is_unpacked_and_never_copied_raw(self) -> None:
        packed = self.folder / "file.gz"
        packed.write_bytes(gzip.compress(self.CONTENT))
        self.check(lambda: gzip.open(packed), self.CONTENT, by_kernel=False)

    def test_a_file_in_memory_and_an_object_with_read_alone(self) -> None:
        self.check(lambda: io.BytesIO(self.CONTENT), self.CONTENT, by_kernel=False)

        class Reader:
            def __init__(self) -> None:
                self.read = io.BytesIO(b"abc").read

        self.check(Reader, b"abc", by_kernel=False)

    def test_an_object_with_a_read_or_an_iteration_of_its_own_is_asked(self) -> None:
        class Shouting(io.FileIO):
            def read(self, size: Any = -1) -> bytes:
                return super().read(size).upper()

        class Rewriting(wsgiref.util.FileWrapper):
            def __next__(self) -> bytes:
                return super().__next__().replace(b"line", b"LINE")

        self.check(lambda: Shouting(self.path), self.CONTENT.upper(), by_kernel=False)
        self.serve(lambda e, sr: sr("200 OK", []) and Rewriting(open(self.path, "rb"), 1 << 20))
        self.assertTrue(self.ask().body == self.CONTENT.upper())

    def test_a_temporary_file(self) -> None:
        def made() -> Any:
            file = tempfile.TemporaryFile()
            file.write(self.CONTENT)
            file.seek(0)
            return file

        self.check(made, self.CONTENT)

    def test_a_named_temporary_file(self) -> None:
        def made() -> Any:
            file = tempfile.NamedTemporaryFile()
            file.write(self.CONTENT)
            file.seek(5)
            return file

        self.check(made, self.CONTENT[5:])

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "needs /proc")
    def test_a_file_without_a_size(self) -> None:
        self.serve(lambda e, sr: sr("200 OK", []) and e["wsgi.file_wrapper"](open("/proc/self/status", "rb")))
        self.assertIn(b"Threads:", self.ask().body)

    @unittest.skipIf(sys.platform == "win32", "pipes")
    def test_a_pipe(self) -> None:
        def made() -> Any:
            reader, writer = os.pipe()
            os.write(writer, b"through a pipe")
            os.close(writer)
            return open(reader, "rb")

        self.check(made, b"through a pipe", by_kernel=False)

    def test_head_and_304_send_nothing_of_the_file(self) -> None:
        for status, method in (("200 OK", "HEAD"), ("304 Not Modified", "GET")):
            with self.subTest(status):
                self.serve(lambda e, sr: sr(status, []) and e["wsgi.file_wrapper"](open(self.path, "rb")))
                client = self.connect(f"{method} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                client.answer(method)
                self.assertEqual(client.rest(), b"")
                self.assertNotIn("Traceback", self.log)

    def test_after_write_the_file_follows(self) -> None:
        self.serve(lambda e, sr: (sr("200 OK", [])(b"before "), e["wsgi.file_wrapper"](open(self.path, "rb")))[1])
        self.assertTrue(self.ask().body == b"before " + self.CONTENT)

    @unittest.skipIf(sys.platform == "win32", "has no sendfile")
    def test_a_file_that_the_kernel_cannot_copy_is_read(self) -> None:
        with mock.patch.object(os, "sendfile", side_effect=OSError(errno.EINVAL, "Invalid argument")):
            self.check(lambda: open(self.path, "rb"), self.CONTENT)
            self.check(lambda: open(self.path, "rb"), self.CONTENT[:5000], ("Content-Length", "5000"))

    def test_a_client_that_reads_nothing_of_a_file_is_given_up(self) -> None:
        self.path.write_bytes(b"x" * 30_000_000)
        self.patch("_SILENCE_TIMEOUT", 0.2)
        self.serve(lambda e, sr: sr("200 OK", []) and e["wsgi.file_wrapper"](open(self.path, "rb")))
        self.connect(GET).exactly(1000)
        self.lines(1)
        self.assertNotIn("Traceback", self.log)

    def test_a_client_that_leaves_while_a_file_is_sent_is_logged_once(self) -> None:
        self.path.write_bytes(b"x" * 30_000_000)
        self.serve(lambda e, sr: sr("200 OK", []) and e["wsgi.file_wrapper"](open(self.path, "rb")))
        client = self.connect(GET)
        client.exactly(1000)
        client.close()
        sent = int(self.lines(1)[0][3])
        self.assertTrue(1000 <= sent < 30_000_000, f"{sent} bytes of what was sent are in the log")
        self.assertNotIn("Traceback", self.log)


# A certificate for localhost, valid until 2124, and its key: made for these tests, worth nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+drNQOLtVtFAN/By
7uR4eMbfHN9mwoPi5f1iQJNB9eahRANCAATwj4C4oQCdOFc5fok5mPGlTblWKEpv
6/1IwZL1SigXMl/tkE8xFN+Aj7d0LpY1unltAID6eWhT+MB9q8V1oGEY
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUf3Pzbrh7lgXg53/N46cXjoYhxVowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDA1MzMwOFoYDzIxMjYxMDMx
MDUzMzA4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATwj4C4oQCdOFc5fok5mPGlTblWKEpv6/1IwZL1SigXMl/tkE8xFN+A
j7d0LpY1unltAID6eWhT+MB9q8V1oGEYo28wbTAdBgNVHQ4EFgQU7W0Yrn7RXmg6
IOQjeG1B6UO7NowwHwYDVR0jBBgwFoAU7W0Yrn7RXmg6IOQjeG1B6UO7NowwGgYD
VR0RBBMwEYIJbG9jYWxob3N0hwR/AAABMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZI
zj0EAwIDSQAwRgIhAPpaitFi0QXX9UWiY9AtG6F3faZred22NgxUIuI0LkPSAiEA
v/faTvmg0eJnGGdHH3x7Jm6Ayb84WK5+sd2UuEaD8KY=
-----END CERTIFICATE-----
"""


class ServerTls(ServerCase):
    """HTTPS with a certificate from a file."""

    def serve_tls(self, app: App) -> None:
        self.pem = self.write("cert.pem", CERTIFICATE)
        self.serve(app, cert=str(self.pem))
        self.context = ssl.create_default_context(cafile=str(self.pem))

    def test_requests_are_served_and_the_environ_says_https(self) -> None:
        self.serve_tls(lambda e, sr: hello(e, sr) and [e["wsgi.url_scheme"].encode() + e["wsgi.input"].read()])
        client = self.connect(GET, post("Content-Length: 5", "hello"), chunked(CHUNKS), context=self.context)
        self.assertEqual([client.answer().body for _ in range(3)], [b"https", b"httpshello", b"httpshello"])

    def test_large_bodies_pass_both_ways(self) -> None:
        body = bytes(range(256)) * 8000
        self.serve_tls(echo)
        client = self.connect(post(f"Content-Length: {len(body)}"), body, context=self.context)
        self.assertTrue(client.answer().body == b"POST /first " + body)

    def test_pipelined_requests_do_not_get_stuck_in_the_decrypted_bytes(self) -> None:
        self.serve_tls(echo)
        client = self.connect(
            b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(10)), context=self.context
        )
        self.assertEqual([client.answer().body for _ in range(10)], [b"GET /%d " % n for n in range(10)])
        big = post("Content-Length: 70000", b"x" * 70_000)  # several records; the first recv does not take all
        client.send(big + GET)
        self.assertEqual(len(client.answer().body), 70_012)
        self.assertEqual(client.answer().body, b"GET / ")

    def test_a_file_is_sent(self) -> None:
        path = self.write("file.txt", "content " * 50_000)
        self.serve_tls(lambda e, sr: sr("200 OK", []) and e["wsgi.file_wrapper"](open(path, "rb")))
        self.assertTrue(self.connect(GET, context=self.context).answer().body == path.read_bytes())

    def test_a_piece_is_on_the_wire_before_the_next_is_made(self) -> None:
        go_on = threading.Event()
        self.serve_tls(answering(Pieces(b"one", lambda: go_on.wait(DEADLINE) and b"two")))
        client = self.connect(GET, context=self.context)
        client.head()
        self.assertEqual(client.chunk(), b"one")
        go_on.set()
        self.assertEqual(client.chunk(), b"two")

    def test_the_end_is_announced_so_that_no_answer_looks_cut(self) -> None:
        self.serve_tls(answering(iter([b"a", b"b"])))
        client = self.connect("GET / HTTP/1.0\r\n\r\n", context=self.context)
        self.assertEqual(client.answer().body, b"ab")  # raises SSLEOFError without a close_notify

    def test_an_answer_that_breaks_looks_cut(self) -> None:
        self.serve_tls(answering(Pieces(b"a", ValueError("broken"))))
        client = self.connect(GET, context=self.context)
        with self.assertRaises((Cut, OSError)):
            client.answer()

    def test_a_silent_client_freezes_nobody(self) -> None:
        self.serve_tls(hello)
        self.connect()
        self.connect(b"\x16\x03")
        self.assertEqual(self.connect(GET, context=self.context).answer().body, b"hello")

    def test_a_client_that_only_shook_hands_delays_no_reload(self) -> None:
        """Browsers connect ahead of need."""
        self.serve_tls(hello)
        self.connect(context=self.context)
        eventually(lambda: any(connection.is_secured for connection in list(self.server.connections)), "the handshake")
        time.sleep(0.05)
        returning(self.server.close_gate, 600.0)
        self.assertEqual(self.log, "")
        self.server.open_gate()

    def test_a_client_that_only_shook_hands_may_wait_with_its_request(self) -> None:
        self.patch("_SILENCE_TIMEOUT", 0.2)
        self.serve_tls(hello)
        client = self.connect(context=self.context)
        time.sleep(0.5)
        self.assertEqual(client.send(GET).answer().body, b"hello")

    def test_a_reload_waits_for_the_request_after_a_handshake(self) -> None:
        """A connection inside TLS cannot be handed over; so each has one request while the reloader is on."""
        self.serve_tls(hello)
        self.server.keeps_alive = False
        fresh = self.connect()  # has not shaken hands yet
        client = self.connect(context=self.context)
        eventually(
            lambda: [c.phase for c in list(self.server.connections) if c.is_secured] == [devserve._SECURED], "shaken"
        )
        threading.Timer(0.1, client.send, (GET, GET)).start()
        sockets = self.server.close_gate(DEADLINE)
        answer = client.answer()
        self.assertEqual((answer.body, answer.get("Connection")), (b"hello", "close"))
        self.assertEqual(client.rest(), b"")
        self.assertEqual([sock.getpeername() for sock in sockets], [fresh.sock.getsockname()])
        self.server.open_gate()

    def test_a_client_that_asks_nothing_after_its_handshake_is_hardly_waited_for(self) -> None:
        self.serve_tls(hello)
        self.connect(context=self.context)
        eventually(lambda: [c.phase for c in list(self.server.connections)] == [devserve._SECURED], "shaken")
        self.assertEqual(returning(self.server.close_gate, 600.0), [])
        self.server.open_gate()

    def test_a_download_may_pause(self) -> None:
        self.serve_tls(answering([b"x" * 5_000_000] * 6))
        client = self.connect(GET, context=self.context)
        client.head()
        time.sleep(0.3)
        self.assertEqual(sum(len(client.chunk()) for _ in range(6)), 30_000_000)

    def test_what_was_sent_of_a_download_that_breaks_off_is_logged(self) -> None:
        self.serve_tls(answering([b"x" * 30_000_000]))
        client = self.connect(GET, context=self.context)
        client.head()
        client.exactly(1_000_000)
        client.close()
        (line,) = self.lines(1)
        self.assertIn(int(line[3]), range(1_000_000, 30_000_000))

    def test_plain_http_is_told_so(self) -> None:
        self.serve_tls(hello)
        client = self.connect(GET)
        answer = client.answer()
        self.assertEqual(answer.status, 400)
        self.assertIn(b"https", answer.body.lower())
        self.assertEqual(client.rest(), b"")
        client.close()  # for which the server waits, lest a reset destroy the answer
        eventually(lambda: not self.server.connections, "the end of the connection")
        self.assertEqual([line[2] for line in self.lines(1)], ["400"])
        self.assertNotIn("itself failed", self.log)

    def test_a_handshake_that_a_reload_cuts_ends_quietly(self) -> None:
        self.serve_tls(hello)
        self.connect(b"\x16\x03\x01")
        eventually(
            lambda: [c.phase for c in list(self.server.connections)] not in ([], [devserve._AT_REST]), "it begins"
        )
        self.assertEqual(returning(self.server.close_gate, 0.1), [])
        eventually(lambda: not self.server.connections, "the end of the connection")
        self.server.open_gate()
        self.assertNotIn("Traceback", self.log)

    def test_garbage_in_the_handshake_ends_the_connection_quietly(self) -> None:
        self.serve_tls(hello)
        client = self.connect(b"\x16\x03\x01\x00\x05hello")
        with contextlib.suppress(ConnectionError):
            client.rest()
        self.assertEqual(self.connect(GET, context=self.context).answer().body, b"hello")
        self.assertNotIn("Traceback", self.log)


class ServerWebSockets(ServerCase):
    """A request that asks to upgrade finds its socket in the environ, and the connection becomes the application's."""

    UPGRADE = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

    def serve_each(self, app: App) -> Iterator[Any]:
        """Serve `app` plain and over TLS, with and without the debugger; yield what makes a connection's context."""
        pem = str(self.write("cert.pem", CERTIFICATE))
        for debugger in (False, True):
            for cert in ("", pem):
                with self.subTest(debugger=debugger, tls=bool(cert)):
                    self.serve(app, cert=cert)
                    if debugger:
                        self.put_debugger_before(app)
                    yield ssl.create_default_context(cafile=cert) if cert else None

    def put_debugger_before(self, app: App) -> None:
        guard = devserve.Guard()
        self.server.app = devserve.DebuggedApplication(app, guard=guard, terminal=self.server.terminal)

    def echo_bytes(self, environ: dict[str, Any], start_response: App) -> list[bytes]:
        """Speak a protocol of its own: what comes is sent back, until the client ends or says b"bye"."""
        sock = environ["werkzeug.socket"]
        sock.sendall(self.SWITCH)
        for data in iter(lambda: sock.recv(65536), b""):
            sock.send(data)
            if data == b"bye":
                break
        return []

    def check_log(self, status: str = "101") -> None:
        lines = self.lines(2)
        self.assertEqual([line[:3] for line in lines], [("GET", "/ws (begins)", status), ("GET", "/ws", status)])
        self.assertNotIn("Traceback", self.log)

    def test_an_application_speaks_a_protocol_of_its_own(self) -> None:
        self.patch("_SILENCE_TIMEOUT", 0.1)
        for context in self.serve_each(self.echo_bytes):
            client = self.connect(self.UPGRADE, context=context)
            self.assertEqual((client.head().status, client.send(b"one").exactly(3)), (101, b"one"))
            time.sleep(0.3)  # longer than HTTP's timeout
            big = bytes(range(256)) * 400
            for _ in range(20):
                self.assertTrue(client.send(big).exactly(len(big)) == big)
            self.assertEqual(client.send(b"bye").rest(), b"bye")
            self.check_log()

    def test_one_thread_at_a_time_is_in_a_tls_connection(self) -> None:
        """Two of them destroy OpenSSL's memory, and the process crashes (CPython's gh-134698)."""
        inside, overlaps = threading.Lock(), []

        def watched(name: str) -> Any:
            method = getattr(ssl.SSLSocket, name)

            def call(sock: Any, *arguments: Any) -> Any:
                if not sock.server_side:
                    return method(sock, *arguments)
                if not inside.acquire(blocking=False):
                    overlaps.append(name)
                    return method(sock, *arguments)
                try:
                    time.sleep(0.01)  # so that others come meanwhile, if they can
                    return method(sock, *arguments)
                finally:
                    inside.release()

            return mock.patch.object(ssl.SSLSocket, name, call)

        def reading(read: Callable[[int], bytes]) -> None:
            with contextlib.suppress(OSError, ValueError):
                while read(10):
                    pass
            ended.set()

        def leaves_a_reader(environ: dict[str, Any], start_response: App) -> list[bytes]:
            sock = environ["werkzeug.socket"]
            sock.sendall(self.SWITCH)
            threading.Thread(target=reading, args=(sock.recv,), daemon=True).start()
            return []

        def reads_in_a_thread(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            threading.Thread(target=reading, args=(environ["wsgi.input"].read,), daemon=True).start()
            start_response("200 OK", [])
            yield from [b"piece"] * 20

        upload = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        pem = str(self.write("cert.pem", CERTIFICATE))
        for app, request in ((leaves_a_reader, self.UPGRADE), (reads_in_a_thread, upload)):
            with self.subTest(app.__name__), contextlib.ExitStack() as patches:
                for name in ("recv", "recv_into", "send", "unwrap"):
                    patches.enter_context(watched(name))
                ended = threading.Event()
                overlaps.clear()
                self.serve(app, cert=pem)
                client = self.connect(request, context=ssl.create_default_context(cafile=pem))
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        client.send(b"ten bytes.")
                        time.sleep(0.002)
                client.close()
                self.assertTrue(ended.wait(DEADLINE))
                eventually(lambda: not self.server.connections, "the connection's end")
                self.assertEqual(overlaps, [])

    def test_what_came_with_the_head_is_received_first(self) -> None:
        self.serve(self.echo_bytes)
        client = self.connect(self.UPGRADE + b"early")
        client.head()
        self.assertEqual(client.exactly(5), b"early")
        self.assertEqual(client.send(b"bye").rest(), b"bye")

    def test_what_is_looked_at_is_received_again(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            sock = environ["werkzeug.socket"]
            sock.sendall(self.SWITCH)
            sock.sendall(sock.recv(3, socket.MSG_PEEK) + sock.recv(10))
            return []

        self.serve(app)
        client = self.connect(self.UPGRADE + b"early")
        client.head()
        self.assertEqual(client.rest(), b"earearly")

    def test_an_answer_to_the_request_is_plain_http(self) -> None:
        for context in self.serve_each(answering([b"no"], status="426 Upgrade Required")):
            client = self.connect(self.UPGRADE, self.UPGRADE, context=context)
            self.assertEqual([client.answer().body for _ in range(2)], [b"no", b"no"])
            self.assertEqual(client.send(GET).answer().status, 426)
            self.assertEqual([line[2] for line in self.lines(3)], ["426"] * 3)

    def test_a_request_that_does_not_ask_has_no_socket(self) -> None:
        self.serve(lambda e, sr: hello(e, sr) and [str("werkzeug.socket" in e).encode()])
        for request, there in (
            (GET, b"False"),
            (self.UPGRADE, b"True"),
            (self.UPGRADE.replace(b", Upgrade", b""), b"False"),
            (self.UPGRADE.replace(b"Upgrade: websocket\r\n", b""), b"False"),
            (self.UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), b"False"),
        ):
            self.assertEqual(self.ask(request).body, there, request)

    def test_however_the_application_ends_nothing_is_added(self) -> None:
        def answer_too(environ: dict[str, Any], start_response: App) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/html")])
            yield b"an answer"

        def end_quietly(environ: dict[str, Any], start_response: App) -> list[bytes]:
            raise ConnectionError

        def lose_the_client(environ: dict[str, Any], start_response: App) -> list[bytes]:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        ends: list[App] = [hello, answer_too, end_quietly, lose_the_client, lambda environ, start_response: []]
        for end in ends:

            def app(environ: dict[str, Any], start_response: App, end: App = end) -> Any:
                environ["werkzeug.socket"].sendall(self.SWITCH + b"bye")
                return end(environ, start_response)

            for context in self.serve_each(app):
                client = self.connect(self.UPGRADE, context=context)
                self.assertEqual((client.head().status, client.rest()), (101, b"bye"))
                self.check_log()

    def test_a_failure_of_the_application_is_told_on_the_terminal(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            environ["werkzeug.socket"].sendall(self.SWITCH)
            socket.create_connection(("127.0.0.1", 1)).close()
            return []

        for context in self.serve_each(app):
            client = self.connect(self.UPGRADE, context=context)
            self.assertEqual((client.head().status, client.rest()), (101, b""))
            self.assertEqual(len(self.lines(2)), 2)
            self.assertEqual(self.log.count("Traceback"), 1, self.log)
            self.assertIn("ConnectionRefusedError", self.log)

    def test_the_socket_does_what_libraries_ask_of_it(self) -> None:
        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            sock = environ["werkzeug.socket"]
            sock.settimeout(0.05)
            self.assertEqual((sock.gettimeout(), sock.getpeername()[0]), (0.05, "127.0.0.1"))
            self.assertFalse(sock.is_taken_over)
            with self.assertRaises(socket.timeout):
                sock.recv(1)
            sock.setblocking(False)
            with self.assertRaises(BlockingIOError):
                sock.recv(1)
            sock.setblocking(True)
            with sock.makefile("rwb") as file:
                file.write(self.SWITCH + b"go")
                file.flush()
                line = file.readline()
            buffer = bytearray(10)
            count = sock.recv_into(buffer)
            sock.sendall(memoryview(line + buffer[:count]))
            sock.close()
            with self.assertRaises(OSError):
                sock.sendall(b"more")
            return []

        for context in self.serve_each(app):
            client = self.connect(self.UPGRADE, context=context)
            client.head()
            self.assertEqual(client.exactly(2), b"go")
            client.send(b"a line\n", b"more", pause=0.1)
            self.assertEqual(client.rest(), b"a line\nmore")
            self.check_log()

    def test_one_thread_sends_while_another_receives(self) -> None:
        """Over TLS too, where OpenSSL itself would not bear it; and no message is torn apart."""

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            sock = environ["werkzeug.socket"]
            sock.sendall(self.SWITCH)
            senders = [
                threading.Thread(target=lambda n=n: [sock.send(b"%d" % n * 50_000) for _ in range(20)])
                for n in range(3)
            ]
            for sender in senders:
                sender.start()
            received = 0
            while received < 3_000_000:
                received += len(sock.recv(65536))
            for sender in senders:
                sender.join()
            return []

        for context in self.serve_each(app):
            client = self.connect(self.UPGRADE, context=context)
            client.head()
            messages: collections.Counter[bytes] = collections.Counter()
            for _ in range(3):
                client.send(b"x" * 1_000_000)
                messages.update(client.exactly(50_000) for _ in range(20))
            self.assertEqual(messages, {b"%d" % n * 50_000: 20 for n in range(3)})

    def test_a_reload_closes_it_at_once_and_waits_for_nothing(self) -> None:
        for context in self.serve_each(self.echo_bytes):
            client = self.connect(self.UPGRADE, context=context)
            client.head()
            self.assertEqual(client.send(b"one").exactly(3), b"one")
            self.assertEqual(returning(self.server.close_gate, 600.0), [])
            with contextlib.suppress(OSError):
                self.assertEqual(client.rest(), b"")
            self.check_log()
            self.server.open_gate()

    def test_a_client_that_goes_while_it_is_sent_to_is_no_failure(self) -> None:
        def send_for_ever(environ: dict[str, Any], start_response: App) -> list[bytes]:
            environ["werkzeug.socket"].sendall(self.SWITCH)
            while True:
                environ["werkzeug.socket"].sendall(b"x" * 65536)

        for leave in (lambda client: client.close(), lambda client: self.server.close_gate(600.0)):
            for context in self.serve_each(send_for_ever):
                client = self.connect(self.UPGRADE, context=context)
                client.head()
                leave(client)
                self.check_log()

    @needs("simple_websocket")
    @needs("websocket")
    @needs("websockets")
    def test_clients_talk_to_a_library_for_wsgi(self) -> None:
        import simple_websocket
        import websocket
        from websockets.sync.client import connect

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            # The library ends a connection whose client has not answered a ping when the next is due.
            ws = simple_websocket.Server.accept(
                environ, ping_interval=1.0 if environ["PATH_INFO"] == "/pings" else None
            )
            while True:  # until ConnectionClosed, as in its documentation but for the `except`
                ws.send(ws.receive())

        for context in self.serve_each(app):
            url = f"{'wss' if context else 'ws'}://localhost:{self.server.server_port}/ws"
            theirs = websocket.create_connection(url, timeout=DEADLINE, sslopt={"context": context} if context else {})
            for text in ("one", "x" * 1_000_000):
                theirs.send(text)
                self.assertTrue(theirs.recv() == text)
            theirs.close()
            self.check_log()
            with connect(url.replace("/ws", "/pings"), ssl=context) as others:
                others.send(b"two")
                self.assertEqual(others.recv(), b"two")
                time.sleep(1.5)  # one ping, and half a second before the next is due
                others.send("three")
                self.assertEqual(others.recv(), "three")
            self.lines(4)
            self.assertNotIn("Traceback", self.log)

    @needs("flask_sock")
    @needs("websocket")
    def test_a_view_of_flask_sock_ends_the_websocket(self) -> None:
        import flask
        import flask_sock
        import websocket

        flask_app = flask.Flask("websockets")
        sock = flask_sock.Sock(flask_app)

        @sock.route("/ws")
        def view(ws: Any) -> None:
            ws.send(ws.receive())
            ws.close(4000, "enough")

        for context in self.serve_each(flask_app):
            url = f"{'wss' if context else 'ws'}://localhost:{self.server.server_port}/ws"
            client = websocket.create_connection(url, timeout=DEADLINE, sslopt={"context": context} if context else {})
            client.send("one")
            self.assertEqual(client.recv(), "one")
            opcode, data = client.recv_data()
            self.assertEqual((opcode, data), (websocket.ABNF.OPCODE_CLOSE, b"\x0f\xa0enough"))
            client.close()
            self.check_log()

    @needs("socketio")
    @needs("websocket")
    @needs("requests")
    def test_socketio_connects_by_every_transport(self) -> None:
        import socketio

        server = socketio.Server(async_mode="threading")
        server.on("ask", lambda sid, number: {"got": number})
        for debugger in (False, True):
            for transports in (["polling"], ["websocket"], ["polling", "websocket"]):
                with self.subTest(debugger=debugger, transports=transports):
                    app = socketio.WSGIApp(server, hello)
                    self.serve(app)
                    if debugger:
                        self.put_debugger_before(app)
                    client = socketio.Client()
                    client.connect(f"http://127.0.0.1:{self.server.server_port}", transports=transports)
                    self.assertEqual(client.call("ask", 5, timeout=DEADLINE), {"got": 5})
                    self.assertEqual(client.transport(), transports[-1])
                    client.disconnect()
                    eventually(lambda: not any(c.phase for c in list(self.server.connections)), "all requests end")
                    self.assertNotIn("Traceback", self.log)


class ServerCertificate(Folder):
    """A certificate of this machine's own, made once and kept."""

    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(self.folder), "LOCALAPPDATA": str(self.folder)})
        patch.start()
        self.addCleanup(patch.stop)
        self.told: list[str] = []

    def made(self, host: str = "127.0.0.1") -> pathlib.Path:
        return pathlib.Path(devserve.adhoc_certificate(host, self.told.append))

    def shaken_hands(self, cert: pathlib.Path, name: str) -> None:
        """Serve with a certificate, and ask for it as a client that trusts nothing else does."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            secured: Any = devserve.tls_from_files(str(cert), "")(ours)
            server = threading.Thread(target=lambda: (secured.do_handshake(), secured.close()))
            server.start()
            ssl.create_default_context(cafile=str(cert)).wrap_socket(theirs, server_hostname=name).close()
            server.join(DEADLINE)

    def without(self, *modules: str) -> Any:
        return mock.patch.dict(sys.modules, dict.fromkeys(modules))

    def test_both_makers_make_what_a_strict_client_believes(self) -> None:
        for maker, missing in (("cryptography", ()), ("openssl", ("cryptography", "cryptography.x509"))):
            with self.subTest(maker), self.without(*missing):
                if maker == "cryptography" and importlib.util.find_spec(maker) is None:
                    self.skipTest("needs the package cryptography")
                if maker == "openssl" and not shutil.which(maker):
                    self.skipTest("needs the program openssl")
                self.folder.joinpath("devserve/adhoc.pem").unlink(missing_ok=True)
                cert = self.made("dev.test")
                for name in ("localhost", "127.0.0.1", "::1", "dev.test", socket.gethostname().lower()):
                    self.shaken_hands(cert, name)

    def test_it_is_the_users_alone_and_kept_for_the_next_start(self) -> None:
        cert = self.made()
        first = cert.read_bytes()
        if sys.platform != "win32":
            self.assertEqual(cert.stat().st_mode & 0o777, 0o600)
            self.assertEqual(cert.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.made(), cert)
        self.assertEqual(cert.read_bytes(), first)
        self.assertEqual(len(self.told), 1)
        self.assertEqual([path.name for path in cert.parent.iterdir()], ["adhoc.pem"])

    def test_another_address_is_added_to_those_before(self) -> None:
        self.made("one.test")
        cert = self.made("two.test")
        for name in ("one.test", "two.test"):
            self.shaken_hands(cert, name)
        first = cert.read_bytes()
        self.made("one.test")
        self.assertEqual(cert.read_bytes(), first)

    def test_one_that_ends_soon_that_others_can_read_or_that_is_damaged_is_made_anew(self) -> None:
        def soon(cert: pathlib.Path) -> None:
            text = cert.read_text()
            cert.write_text(text.replace(text.split()[1], str(int(time.time()) + 3600), 1))

        damages: list[Callable[[pathlib.Path], Any]] = [
            soon,
            lambda cert: cert.write_text("x"),
            lambda cert: cert.write_bytes(b"\xff"),
            lambda cert: cert.unlink(),
        ]
        if sys.platform != "win32":
            damages.append(lambda cert: cert.chmod(0o644))
        for damage in damages:
            cert = self.made()
            damage(cert)
            broken = cert.read_bytes() if cert.exists() else b""
            self.made()
            self.assertNotEqual(cert.read_bytes(), broken)
            self.shaken_hands(cert, "localhost")

    def test_without_a_maker_or_a_place_it_is_one_line_that_says_how(self) -> None:
        remedy = self.assertRaisesRegex(devserve.DevserveError, "pip install cryptography.* openssl.* --cert FILE")
        with (
            self.without("cryptography", "cryptography.x509"),
            mock.patch.dict(os.environ, {"PATH": "/nowhere"}),
            remedy,
        ):
            self.made()
        self.write("devserve", "a file where the folder should be")
        with self.assertRaisesRegex(devserve.DevserveError, "cannot keep a certificate"):
            self.made()

    def test_served_over_https_by_name(self) -> None:
        self.write("hello.py", HELLO)
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache"), "LOCALAPPDATA": str(self.folder / "cache")}
        with Served("hello", "--cert", "adhoc", cwd=self.folder, env=cache) as served:
            context = ssl.create_default_context(cafile=None)
            served.wait_for("made a certificate for .*localhost")
            self.assertTrue(served.url.startswith("https://"))
            context.load_verify_locations(str(self.folder / "cache/devserve/adhoc.pem"))
            self.assertEqual(fetch(served.port, context=context).body, b"hello")

    @unittest.skipIf(sys.platform == "win32", "the program is a script for sh")
    def test_a_maker_that_fails_is_one_line_and_nothing_of_its_own(self) -> None:
        self.write("openssl", "#!/bin/sh\necho loud\necho loud >&2\nexit 1\n")
        self.folder.joinpath("openssl").chmod(0o755)
        call = "import devserve; devserve._certificate_by_openssl(['localhost'])"
        environ = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(SCRIPT.parent)}
        done = subprocess.run([sys.executable, "-c", call], env=environ, capture_output=True, text=True, check=False)
        self.assertNotIn("loud", done.stdout + done.stderr)
        self.assertIn("DevserveError: --cert adhoc makes no certificate", done.stderr)


class ServerUnderFuzz(ServerCase):
    """Random requests: whatever comes, an HTTP answer or nothing, at once, and no traceback."""

    SEEDS = [
        GET,
        post("Content-Length: 5", "hello"),
        chunked("5;x\r\nhello\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"),
        b"HEAD /a?b HTTP/1.0\r\nConnection: keep-alive\r\nCookie: a=b\r\n\r\n",
        b"GET http://x/a%20b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + GET,
    ]
    SPICE = [
        b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b"\xff", b"-", b"+", b",", b";",
        b"%", b"#", b"*", b"9" * 30,
        b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"\x16\x03\x01",
    ]  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        self.serve(echo)

    def check(self, data: bytes) -> None:
        with Client(self.server.server_port, timeout=10.0) as client:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                client.send(data).end()
            try:
                rest = client.rest()
            except ConnectionError:
                rest = b""
        self.assertRegex(rest, rb"^$|^HTTP/1\.1 [1245]\d\d ", data)
        self.assertNotIn(b"HTTP/1.1 500", rest, data)
        self.assertNotIn("Traceback", self.log, data)

    def mutated(self, chance: random.Random) -> bytes:
        data = bytearray(chance.choice(self.SEEDS))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            kind = chance.randrange(4)
            if kind == 0:
                data[at:at] = chance.choice(self.SPICE)
            elif kind == 1:
                del data[at : at + chance.randint(1, 4)]
            elif kind == 2 and at < len(data):
                data[at] = chance.randrange(256)
            else:
                data[at : at + 2] = chance.choice(self.SPICE)
        return bytes(data)

    def test_mutated_requests_crash_and_hang_nothing(self) -> None:
        chance = random.Random(20_260_101)
        for _ in range(400):
            self.check(self.mutated(chance))
        self.assertEqual(self.ask().body, b"GET / ")

    @needs("hypothesis")
    def test_hypothesis_finds_no_request_that_crashes_or_hangs(self) -> None:
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st

        piece = st.one_of(st.sampled_from(self.SEEDS), st.sampled_from(self.SPICE), st.binary(max_size=20))

        @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(piece, min_size=1, max_size=6), st.integers(0, 400))
        def check(pieces: list[bytes], cut: int) -> None:
            data = b"".join(pieces)
            self.check(data[: len(data) - cut] if cut < 50 else data)

        check()

    @needs("hypothesis")
    @needs("h11")
    def test_heads_mean_what_h11_takes_them_for(self) -> None:
        import h11
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st

        seen: list[dict[str, Any]] = []

        def app(environ: dict[str, Any], start_response: App) -> list[bytes]:
            seen.append({**environ, "body": environ["wsgi.input"].read()})
            return hello(environ, start_response)

        self.server.app = app
        token = st.text("!#$%&'*+-.^`|~0123456789abcXYZ", min_size=1, max_size=8)
        path = st.text("abz09-._~%/:@!$&'()*+,;=", max_size=12)
        value = st.text('ab \t"\\,;:=\xe9\xff()<>@', max_size=12).map(lambda text: text.strip(" \t"))
        reserved = {
            "host",
            "content-length",
            "transfer-encoding",
            "expect",
            "connection",
            "proxy",
            "content-type",
            "upgrade",
        }
        fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in reserved), value), max_size=6)
        framing = st.sampled_from(
            [("", b""), ("Content-Length: 5\r\n", b"hello"), ("Transfer-Encoding: chunked\r\n", CHUNKS.encode())]
        )
        space = st.sampled_from(["", " ", "\t", "  "])

        @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(token, path, st.one_of(st.none(), path), fields, framing, space)
        def check(
            method: str, path: str, query: Optional[str], fields: Any, framing: tuple[str, bytes], space: str
        ) -> None:
            if method.upper() == "CONNECT":
                return
            target = f"/{path}" + ("" if query is None else f"?{query}")
            lines = "".join(f"{name}:{space}{value}{space}\r\n" for name, value in fields)
            head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{lines}{framing[0]}\r\n".encode("latin-1")
            theirs = h11.Connection(h11.SERVER)
            theirs.receive_data(head + framing[1])
            event = theirs.next_event()
            assert isinstance(event, h11.Request)
            data = theirs.next_event()
            body = bytes(data.data) if isinstance(data, h11.Data) else b""
            with Client(self.server.server_port) as client:
                self.assertEqual(client.send(head, framing[1]).answer(method).status, 200, head)
            ours = seen.pop()
            self.assertEqual(ours["REQUEST_METHOD"].encode(), event.method)
            self.assertEqual(ours["RAW_URI"].encode("latin-1"), event.target)
            joined: dict[str, list[str]] = {}
            for name, text in event.headers:
                if b"_" not in name:
                    joined.setdefault("HTTP_" + name.decode().upper().replace("-", "_"), []).append(
                        text.decode("latin-1")
                    )
            for key, texts in joined.items():
                if key not in ("HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"):
                    self.assertEqual(ours[key], (";" + " " if key == "HTTP_COOKIE" else ",").join(texts))
            self.assertEqual(ours["body"], body)
            self.assertEqual(
                ours["PATH_INFO"], urllib.parse.unquote_to_bytes(f"/{path}".encode("latin-1")).decode("latin-1")
            )
            self.assertEqual(ours["QUERY_STRING"], query or "")

        check()


@needs("hypothesis")
class ServerGrammars(ServerCase):
    """Property tests: what the grammars of the RFCs produce is understood, and what they do not produce is refused."""

    def examples(self, check: Callable[..., None], *strategies: Any, count: int = 200) -> None:
        from hypothesis import HealthCheck, given, settings

        health = list(HealthCheck)
        settings(max_examples=count, deadline=None, database=None, suppress_health_check=health)(
            given(*strategies)(check)
        )()

    def parsed(self, *lines: str, host: str = "Host: x") -> Any:
        """Return what the head of a request says, or None when it is refused."""
        head = "\r\n".join(["POST /a HTTP/1.1", *filter(None, [host]), *lines])
        try:
            return devserve._parse_head(head.encode("latin-1"))
        except devserve._BadRequest:
            return None

    def test_a_host_is_what_rfc_3986_calls_one(self) -> None:
        from hypothesis import strategies as st

        letters = "abcXYZ019-._~!$&'()*+;="  # the comma of sub-delims would be a list of two hosts
        name = st.lists(st.one_of(st.sampled_from(list(letters)), st.sampled_from(["%41", "%c3"])), max_size=12)
        four = st.ip_addresses(v=4).map(str)
        six = st.ip_addresses(v=6).map(lambda address: f"[{address}]")
        zoned = st.ip_addresses(v=6).map(lambda address: f"[{address}%25eth0]")
        port = st.one_of(st.just(""), st.just(":"), st.integers(0, 65535).map(lambda number: f":{number}"))
        host = st.one_of(name.map("".join), four, six, zoned)

        def check_good(host: str, port: str) -> None:
            head = self.parsed(host=f"Host: {host}{port}")
            self.assertIsNotNone(head, host + port)
            self.assertEqual(head.environ["HTTP_HOST"], host + port)

        self.examples(check_good, host, port)

        def check_bad(host: str, wrong: str, at: int) -> None:
            at = min(at, len(host))
            self.assertIsNone(self.parsed(host=f"Host: x{host[:at]}{wrong}{host[at:]}y"))

        self.examples(check_bad, name.map("".join), st.sampled_from('/@?#[],\\"<>{}|^` \t'), st.integers(0, 12))

    def test_lines_of_a_head_are_fields_and_never_folded(self) -> None:
        from hypothesis import strategies as st

        name = st.text("!#$%&'*+-.^`|~0123456789abcXYZ", min_size=1, max_size=8).map(lambda text: f"X{text}")
        value = st.text('ab \t"\\,;:=\xe9\xff()<>@\x80', max_size=12)

        def check_good(name: str, value: str) -> None:
            head = self.parsed(f"{name}:{value}")
            self.assertEqual(head.environ[f"HTTP_{name.upper().replace('-', '_')}"], value.strip(" \t"))

        self.examples(check_good, name, value)

        def check_bad(name: str, value: str, fold: str) -> None:
            self.assertIsNone(self.parsed(f"{name}: {value}", f"{fold}{value}"), "a folded line")
            self.assertIsNone(self.parsed(f"{name}{fold}: {value}"), "a space before the colon")
            self.assertIsNone(self.parsed(f"{fold}{name}: {value}"), "a space before the name")

        self.examples(check_bad, name, value, st.sampled_from([" ", "\t", "  ", " \t"]))

        def check_control(name: str, value: str, at: int, control: str) -> None:
            at = min(at, len(value))
            self.assertIsNone(self.parsed(f"{name}: a{value[:at]}{control}{value[at:]}b"))

        controls = [chr(code) for code in (*range(9), *range(10, 32), 127)]
        self.examples(check_control, name, value, st.integers(0, 12), st.sampled_from(controls))

    def test_a_chunked_body_is_its_chunks_and_nothing_of_its_framing(self) -> None:
        from hypothesis import strategies as st

        app = Recorder()
        self.serve(app)
        word = st.text("!#$%&'*+-.^_`|~019azAZ", min_size=1, max_size=6)
        quoted = st.text(" \t!#[]az019;=,\xe9", max_size=6).map(lambda text: f'"{text}"')
        extension = st.tuples(st.sampled_from(["", " ", "\t"]), word, st.one_of(st.just(""), word, quoted)).map(
            lambda parts: f"{parts[0]};{parts[1]}{'=' if parts[2] else ''}{parts[2]}"
        )
        chunk = st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 3), st.booleans(), st.lists(extension))
        trailer = st.lists(st.tuples(word, st.text("az \t:;", max_size=6)), max_size=3)

        def wire(chunks: Any, trailer: Any) -> bytes:
            data = b""
            for body, zeros, upper, extensions in chunks:
                size = f"{'0' * zeros}{len(body):{'X' if upper else 'x'}}{''.join(extensions)}"
                data += size.encode("latin-1") + b"\r\n" + body + b"\r\n"
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailer)
            return data + b"0\r\n" + lines.encode("latin-1") + b"\r\n"

        def check_good(chunks: Any, trailer: Any, cuts: list[int]) -> None:
            app.seen.clear()
            request = chunked(wire(chunks, trailer)) + LAST
            places = sorted({0, *(cut % len(request) for cut in cuts), len(request)})
            with Client(self.server.server_port) as client:
                for start, end in zip(places, places[1:]):
                    client.send(request[start:end])
                self.assertEqual([client.answer().status, client.answer().status], [200, 200])
            self.assertEqual(app.seen, [("/first", b"".join(body for body, *_ in chunks)), ("/last", b"")])

        chunks = st.lists(chunk, max_size=4)
        self.examples(check_good, chunks, trailer, st.lists(st.integers(0, 500), max_size=4), count=60)

        def check_bad(chunks: Any, wrong: str, place: int) -> None:
            app.seen.clear()
            data = wire(chunks, [])
            size_line = data.find(b"\r\n")
            at = place % (size_line + 1)
            request = chunked(data[:at] + wrong.encode("latin-1") + data[at:]) + LAST
            with Client(self.server.server_port) as client:
                self.assertEqual(client.send(request).answer().status, 400, request)
                self.assertEqual(client.rest(), b"")
            self.assertEqual(app.seen, [])

        plain = st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 3), st.booleans(), st.just([]))
        wrong = st.sampled_from(["g", "-", "+", "_", ".", " ", "\t", "x", "\0", "\n", "\r", "\xe9", "'"])
        self.examples(check_bad, st.lists(plain, min_size=1, max_size=3), wrong, st.integers(0, 9), count=100)


class ServerLog(ServerCase):
    """The request log: one line a request, whatever the request holds."""

    def test_a_line_tells_time_method_path_status_size_and_duration(self) -> None:
        self.serve(hello)
        self.ask("GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(self.lines(1), [("GET", "/a?b=c", "200", "5")])

    def test_a_refused_request_is_logged_by_its_own_line(self) -> None:
        self.serve(hello)
        self.connect(GET, "BAD\r\n\r\n").rest()
        self.connect(chunked("x\r\n")).rest()
        lines = self.lines(3)
        self.assertEqual([line[0] for line in lines], ["GET", "BAD", "POST"])
        self.assertTrue(lines[2][1].startswith("/first ("))

    def test_a_target_cannot_drive_the_terminal_or_forge_a_line(self) -> None:
        self.serve(hello)
        for target in ("/\x9b31m", "/\x85", "/\xc2\x9b", "/\xe2\x80\xa8", "/\xe2\x80\xae", "/%0d%0aforged", "/\xad"):
            self.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(len(self.lines(7)), 7)
        self.assertEqual(len(self.log.splitlines()), 7)
        self.assertTrue(all(c == "\n" or c.isprintable() for c in self.log), ascii(self.log))

    def test_letters_of_a_target_are_shown(self) -> None:
        self.serve(hello)
        self.ask("GET /caf\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(self.lines(1)[0][1], "/café")

    def test_a_request_that_hangs_says_where_twice_and_no_other(self) -> None:
        self.patch("_HANG_SECONDS", (0.2, 0.4, float("inf")))
        self.patch("_HANG_INTERVAL", 0.01)
        go_on, line = threading.Event(), 0

        def app(environ: dict[str, Any], start_response: App) -> Any:
            nonlocal line
            if environ["PATH_INFO"] == "/stream":
                start_response("200 OK", [("Content-Type", "text/event-stream")])
                return stream()
            line = sys._getframe().f_lineno + 1
            go_on.wait(DEADLINE)
            start_response("200 OK", [])
            return [b"x"]

        def stream() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            go_on.wait(DEADLINE)

        self.serve(app)
        idle, stopped, streaming = self.connect(), self.connect(GET.replace(b"/ ", b"/hangs ", 1)), self.connect()
        streaming.send(GET.replace(b"/ ", b"/stream ", 1))
        writing = self.connect("POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        hangs = re.compile(r"warning: GET /(\w*) has not been answered after \d+ s; it is at (.*), line (\d+)")
        eventually(lambda: len(hangs.findall(self.log)) == 2, "two lines")
        seen = self.server.hangs_looked_for
        eventually(lambda: self.server.hangs_looked_for > seen + 0.4, "some more looks")
        go_on.set()
        self.assertEqual(self.log.count("has not been answered"), 2, self.log)
        self.assertEqual(hangs.findall(self.log), [("hangs", __file__, str(line))] * 2)
        stopped.answer()
        writing.answer()
        idle.close()

    def test_a_request_that_a_debugger_has_stopped_does_not_hang(self) -> None:
        self.patch("_HANG_SECONDS", (0.1, 0.2, float("inf")))
        self.patch("_HANG_INTERVAL", 0.01)
        go_on = threading.Event()
        at_prompt = types.FunctionType(
            compile("go_on.wait(20)", "pdb.py", "exec"), {"__name__": "pdb", "go_on": go_on}
        )

        def app(environ: dict[str, Any], start_response: App) -> Any:
            at_prompt()
            return hello(environ, start_response)

        self.serve(app)
        client = self.connect(GET)
        began = time.perf_counter()
        eventually(lambda: self.server.hangs_looked_for > began + 0.5, "many looks")
        go_on.set()
        client.answer()
        self.assertNotIn("has not been answered", self.log)

    def test_quiet_servers_log_no_request_but_show_crashes(self) -> None:
        self.serve(answering(ValueError("broken")))
        self.server.terminal.quiet = True
        self.ask()
        eventually(lambda: "ValueError: broken" in self.log, "the traceback")
        self.assertIsNone(ACCESS.search(self.log))


# =====================================================================================================================
# 11. ASGI and WebSockets
#
# What is right is what the ASGI specification 3.0 (HTTP and WebSocket 2.4, lifespan 2.0) and RFC 6455 say.
# =====================================================================================================================


REQUEST_NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")


async def asgi_answer(send: App, body: bytes = b"hello", status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def fails_like_starlette(scope: Any, receive: App, send: App) -> None:
    """Answer 500 as its outermost middleware does, and let the exception follow."""
    try:
        raise LookupError("the reason")
    except LookupError:
        await asgi_answer(send, b"Internal Server Error", 500)
        raise


async def is_unavailable(scope: Any, receive: App, send: App) -> None:
    """Answer by a page of its own, where nothing has failed."""
    await asgi_answer(send, b"own page", 503)


class AsgiCase(ServerCase):
    """A test with an ASGI application in this process; `self.ended` gets what each call of it ended with."""

    def serve_asgi(self, view: App, **options: Any) -> Any:
        """Serve `view(scope, receive, send)` for requests, without a lifespan."""
        self.ended: list[Any] = []

        async def app(scope: Any, receive: App, send: App) -> None:
            assert scope["type"] in ("http", "websocket")
            try:
                await view(scope, receive, send)
            except BaseException as error:
                self.ended.append(error)
                raise
            self.ended.append(None)

        return self.serve(app, **options)

    def serve(self, app: App, *, wait: float = 0.02, **options: Any) -> Any:
        server = super().serve(app, wait=wait, **options)
        bridge = server.app if isinstance(server.app, devserve.AsgiBridge) else server.app.app
        bridge.terminal = server.app.terminal = server.terminal
        return server

    def end(self) -> Any:
        """Wait for the first call of the application to end; return the exception, None without."""
        eventually(lambda: self.ended, "the end of the application")
        return self.ended[0]


class AsgiScope(AsgiCase):
    """What an application is told of a request."""

    def scope(self, request: Union[bytes, str], **options: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        async def view(scope: Any, receive: App, send: App) -> None:
            seen.update(scope)
            await asgi_answer(send)

        self.serve_asgi(view, **options)
        self.assertEqual(self.ask(request).status, 200, self.log)
        return seen

    def test_it_is_whole(self) -> None:
        scope = self.scope("PUT /caf%C3%A9/%2F?q=%20 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n")
        (address, port), headers = scope.pop("client"), scope.pop("headers")
        self.assertEqual((address, type(port)), ("127.0.0.1", int))
        self.assertEqual(headers, [(b"host", b"x:1"), (b"connection", b"close")])
        self.assertLessEqual(
            {"type": "http", "http_version": "1.1", "method": "PUT", "scheme": "http"}.items(), scope.items()
        )
        self.assertEqual((scope["path"], scope["raw_path"]), ("/café//", b"/caf%C3%A9/%2F"))
        self.assertEqual((scope["query_string"], scope["root_path"], scope["state"]), (b"q=%20", "", {}))
        self.assertEqual(scope["server"], ("127.0.0.1", self.server.server_port))
        self.assertEqual(scope["asgi"]["version"], "3.0")
        self.assertGreaterEqual(scope["asgi"]["spec_version"], "2.4")

    def test_headers_come_in_the_order_number_and_bytes_in_which_they_were_sent(self) -> None:
        lines = ["Host: x", "X-B: 2", "X-A: \xff", "x-b: 1", "Under_Score: y", "Cookie: a=1", "Cookie: b=2", "Empty:"]
        scope = self.scope("GET / HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n")
        expected = [line.partition(":") for line in lines]
        pairs = [(name.lower().encode(), value.strip().encode("latin-1")) for name, _, value in expected]
        self.assertEqual(scope["headers"], pairs)

    def test_the_debuggers_cookies_are_kept_from_the_application(self) -> None:
        cookie = devserve._COOKIE_PREFIX + "5000=1"
        scope = self.scope(f"GET / HTTP/1.1\r\nHost: x\r\nCookie: a=1; {cookie}\r\n\r\n", debugger=True, pin="off")
        self.assertEqual([value for name, value in scope["headers"] if name == b"cookie"], [b"a=1"])

    def test_the_host_of_a_target_in_absolute_form_counts(self) -> None:
        scope = self.scope("GET http://there:8/path?q HTTP/1.1\r\nHost: here\r\n\r\n")
        self.assertEqual(scope["headers"], [(b"host", b"there:8")])
        self.assertEqual((scope["path"], scope["raw_path"], scope["query_string"]), ("/path", b"/path", b"q"))

    def test_http_1_0_is_told(self) -> None:
        self.assertEqual(self.scope("GET / HTTP/1.0\r\n\r\n")["http_version"], "1.0")

    def test_bytes_that_are_no_utf_8_do_not_break_the_path(self) -> None:
        scope = self.scope("GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual((scope["path"], scope["raw_path"]), ("/\ufffd", b"/%ff"))


class AsgiReceiving(AsgiCase):
    """A request's body as it arrives, and its client's end."""

    async def collect(self, scope: Any, receive: App, send: App) -> None:
        """Answer with what came in each message."""
        pieces, more = [], True
        while more:
            message = await receive()
            self.messages.append(message)
            more = message["type"] == "http.request" and message["more_body"]
            pieces.append(message.get("body", b""))
        await asgi_answer(send, b"".join(pieces))

    def setUp(self) -> None:
        super().setUp()
        self.messages: list[dict[str, Any]] = []

    def test_a_request_without_a_body_has_one_empty_message(self) -> None:
        self.serve_asgi(self.collect)
        self.ask(GET)
        self.assertEqual(self.messages, [{"type": "http.request", "body": b"", "more_body": False}])

    def test_bodies_of_every_size_arrive_whole_and_leave_the_connection_for_the_next_request(self) -> None:
        self.serve_asgi(self.collect)
        for size in (1, 65_535, 65_536, 65_537, 3_000_000):
            body = random.Random(size).randbytes(size) if sys.version_info >= (3, 9) else b""
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:7], body[7:90_000], body[90_000:]) if c)
            for request in (post(f"Content-Length: {size}", body), chunked(chunks + b"0\r\nTrailer: x\r\n\r\n")):
                with self.subTest(size=size, head=request[:60]), Client(self.server.server_port) as client:
                    client.send(request)
                    self.assertEqual(client.answer().body, body)
                    client.send(post("Content-Length: 3", "abc") + LAST)
                    self.assertEqual([client.answer().body, client.answer().body], [b"abc", b""])

    def test_each_piece_is_received_before_the_next_one_is_sent(self) -> None:
        self.patch("_SPOOL_PAUSE", 2 * DEADLINE)  # for WSGI the server would wait so long for the rest
        self.serve_asgi(self.collect)
        for head, pieces in (
            (post("Content-Length: 6"), ["ab", "cd", "ef"]),
            (chunked(""), ["2\r\nab\r\n", "2\r\nc", "d\r", "\n2\r\nef\r\n", "0\r\n", "\r\n"]),
        ):
            self.messages.clear()
            client = self.connect(head)
            got = 0
            for piece in pieces:
                client.send(piece)
                got = got + 1 if re.search("[a-f]", piece) else got
                eventually(lambda: len([m for m in self.messages if m["body"]]) >= got, f"{piece!r} received")
            self.assertEqual(client.answer().body, b"abcdef")

    def test_a_client_that_waits_for_it_is_told_to_continue_when_the_body_is_asked_for(self) -> None:
        asked = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            while not asked.is_set():
                await asyncio.sleep(0.01)
            await self.collect(scope, receive, send)

        self.serve_asgi(view)
        client = self.connect(post("Content-Length: 3\nExpect: 100-continue"))
        self.assertEqual(select.select([client.sock], [], [], 0.1)[0], [])
        asked.set()
        self.assertEqual(client.head().status, 100)
        self.assertEqual(client.send("abc").answer().body, b"abc")

    def test_an_upload_waits_for_the_application(self) -> None:
        go = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            while not go.is_set():
                await asyncio.sleep(0.01)
            await self.collect(scope, receive, send)

        self.serve_asgi(view)
        size = 30_000_000  # more than sockets hold
        client = self.connect(post(f"Content-Length: {size}"))
        client.sock.settimeout(0.5)
        with self.assertRaises(OSError):
            client.send(bytes(size))
        go.set()
        client.sock.settimeout(DEADLINE)
        eventually(lambda: sum(len(m["body"]) for m in self.messages) > 1_000_000, "the upload goes on")

    def test_a_body_that_is_not_read_does_not_keep_the_connection_from_the_next_request(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await asgi_answer(send, scope["path"].encode())

        self.serve_asgi(view)
        for request in (post("Content-Length: 5", "hello"), chunked(CHUNKS)):
            client = self.connect(request, LAST)
            self.assertEqual([client.answer().body, client.answer().body], [b"/first", b"/last"])

    def test_a_bad_chunk_is_the_clients_mistake(self) -> None:
        for debugger in (False, True):
            self.messages.clear()
            self.serve_asgi(self.collect, debugger=debugger, pin="off")
            client = self.connect(chunked("3\r\nabc\r\nxyz\r\n"))
            self.assertEqual(client.answer().status, 400)
            eventually(lambda: self.messages and self.messages[-1]["type"] == "http.disconnect", "the disconnect")
            self.assertNotIn("Traceback", self.log)

    def test_a_client_that_leaves_is_told_while_the_application_sleeps(self) -> None:
        for request in (GET, post("Content-Length: 5", "he"), chunked("5\r\nhe"), GET + GET):
            seen: list[Any] = []

            async def view(scope: Any, receive: App, send: App, seen: Any = seen) -> None:
                while not seen or seen[-1]["type"] != "http.disconnect":
                    seen.append(await receive())
                await asgi_answer(send)

            with self.subTest(request=request):
                self.serve_asgi(view)
                client = self.connect(request)
                eventually(lambda: seen, "the request")
                self.assertFalse(self.ended)
                client.close()
                self.assertIsInstance(self.end(), OSError)
                self.assertEqual(seen[-1], {"type": "http.disconnect"})
                self.assertNotIn("Traceback", self.log)

    def test_a_client_that_half_closes_gets_its_whole_answer_when_the_application_sends_it(self) -> None:
        """It listens on (`nc -N`); only an application that asks hears that the client has gone, as it may have."""
        go_on, noticed = threading.Event(), threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            more = True
            while more:
                more = (await receive())["more_body"]
            while not go_on.is_set():
                await asyncio.sleep(0.01)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(20):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            await send({"type": "http.response.body"})

        read_ahead = devserve._Connection.read_ahead

        def notice(connection: Any) -> None:
            try:
                read_ahead(connection)
            except ConnectionError:
                noticed.set()
                raise

        for request in (GET, post("Content-Length: 5", "hello"), chunked(CHUNKS)):
            with self.subTest(request=request), mock.patch.object(devserve._Connection, "read_ahead", notice):
                go_on.clear()
                noticed.clear()
                self.serve_asgi(view)
                client = self.connect(request).end()
                self.assertTrue(noticed.wait(DEADLINE))
                go_on.set()
                self.assertEqual(len(client.answer().body), 2_000_000)
                self.assertEqual(self.lines(1)[0][2], "200")

    @unittest.skipUnless(sys.implementation.name == "cpython", "PyPy frees nothing without a collection")
    def test_what_a_generator_has_to_clean_up_is_cleaned_up_when_its_client_has_left(self) -> None:
        cleaned_up = threading.Event()

        async def pieces() -> Any:
            import asyncio

            try:
                while True:
                    yield bytes(1000)
                    await asyncio.sleep(0.001)
            finally:
                cleaned_up.set()

        async def view(scope: Any, receive: App, send: App) -> None:
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            body = pieces()  # a variable of a frame that the exception leads to
            async for piece in body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        self.serve(view)
        self.addCleanup(gc.enable)
        gc.disable()  # nothing is to wait for a collection, which may be minutes away
        client = self.connect(GET)
        client.line()
        client.close()
        self.assertTrue(cleaned_up.wait(DEADLINE))

    def test_what_fails_after_the_client_has_left_is_told_all_the_same(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            raise LookupError("in the cleanup")

        self.serve_asgi(view)
        self.connect(GET).close()
        eventually(lambda: "in the cleanup" in self.log, "the traceback")

    def test_after_the_answer_receive_returns_the_disconnect(self) -> None:
        seen: list[Any] = []

        async def view(scope: Any, receive: App, send: App) -> None:
            await receive()
            await asgi_answer(send)
            seen.append(await receive())

        self.serve_asgi(view)
        self.ask()
        self.end()
        self.assertEqual(seen, [{"type": "http.disconnect"}])


class AsgiSending(AsgiCase):
    """An answer, piece by piece, and what breaks the protocol."""

    def answering(self, *messages: dict[str, Any], **options: Any) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            for message in messages:
                await send(message)

        self.serve_asgi(view, **options)

    START: ClassVar = {"type": "http.response.start", "status": 200}
    BODY: ClassVar = {"type": "http.response.body"}

    def test_an_answer_of_one_piece_has_a_length(self) -> None:
        self.answering(
            {**self.START, "headers": [[bytearray(b"x-a"), b"1"], (b"x-a", b"\xff")]}, {**self.BODY, "body": b"hello"}
        )
        answer = self.ask()
        self.assertEqual((answer.status, answer.body, answer.all("x-a")), (200, b"hello", ["1", "\xff"]))
        self.assertEqual(answer.get("Content-Length"), "5")

    def test_a_missing_body_is_empty(self) -> None:
        self.answering(self.START, self.BODY)
        self.assertEqual(self.ask().body, b"")

    def test_each_piece_is_on_the_wire_before_the_next(self) -> None:
        go = threading.Semaphore(0)

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            await send(self.START)
            for piece in (b"", b"one", b"two"):
                await send({**self.BODY, "body": piece, "more_body": True})
                await asyncio.get_running_loop().run_in_executor(None, go.acquire)
            await send(self.BODY)

        self.serve_asgi(view)
        client = self.connect()
        client.send(GET)
        self.assertEqual(client.head().get("Transfer-Encoding"), "chunked")
        for piece in (b"one", b"two", b""):
            go.release()
            self.assertEqual(client.chunk(), piece)
        self.assertIsNone(self.end())

    def test_heads_that_are_long_and_many_are_not_remembered(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await send({**self.START, "headers": [(b"x", b"y" * 9000 + scope["path"].encode())]})
            await send(self.BODY)

        names = ("head", "response_head", "scope_headers", "start")
        caches = [vars(devserve)[f"_remembered_{name}"].cache_info for name in names]
        before = [cache().currsize for cache in caches]
        self.serve_asgi(view)
        client = self.connect()
        for n in range(10):
            client.send(f"GET /{n} HTTP/1.1\r\nHost: {'z' * 9000}{n}\r\n\r\n")
            self.assertEqual(client.answer().status, 200)
        self.assertEqual([cache().currsize for cache in caches], before)

    def test_send_waits_for_a_slow_client(self) -> None:
        sent = []

        async def view(scope: Any, receive: App, send: App) -> None:
            await send(self.START)
            for _ in range(1000):
                await send({**self.BODY, "body": bytes(65_536), "more_body": True})
                sent.append(1)
            await send(self.BODY)

        self.serve_asgi(view)
        client = self.connect(GET)
        last = -1
        while last != len(sent) or not sent:  # until nothing moves any more
            last = len(sent)
            time.sleep(0.3)
        self.assertLess(last, 500)
        self.assertEqual(len(client.answer().body), 65_536_000)

    def test_a_426_says_which_protocol_it_wants(self) -> None:
        headers = [(b"upgrade", b"TLS/1.2"), (b"connection", b"Upgrade")]
        self.answering({**self.START, "status": 426, "headers": headers}, self.BODY)
        head = self.connect(GET).head()
        self.assertEqual((head.all("Upgrade"), head.all("Connection")), (["TLS/1.2"], ["Upgrade"]))

    def test_a_client_that_leaves_ends_what_is_sent_to_it(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await send(self.START)
            while True:
                await send({**self.BODY, "body": bytes(65_536), "more_body": True})

        self.serve_asgi(view)
        client = self.connect(GET)
        client.head()
        client.close()
        self.assertIsInstance(self.end(), OSError)
        self.assertNotIn("Traceback", self.log)

    def test_a_bodiless_answer_has_none_whatever_the_application_sends(self) -> None:
        for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)):
            for more in (False, True):
                with self.subTest(method=method, status=status, more=more):
                    self.answering(
                        {**self.START, "status": status, "headers": [(b"content-length", b"5")]},
                        {**self.BODY, "body": b"hel", "more_body": more},
                        *[{**self.BODY, "body": b"lo"}] * more,
                    )
                    client = self.connect(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n")
                    self.assertEqual(client.answer(method).status, status)
                    self.assertEqual(client.send(LAST.replace(b"GET", method.encode())).answer(method).status, status)
                    self.assertEqual(client.rest(), b"")
                    self.assertIsNone(self.end())

    def test_an_endless_answer_to_head_ends_with_its_client_and_is_kept_nowhere(self) -> None:
        import asyncio

        requests: list[Any] = []

        async def view(scope: Any, receive: App, send: App) -> None:
            requests.extend(bridge.requests)
            await send(self.START)
            while True:
                await send({**self.BODY, "body": bytes(10_000), "more_body": True})
                await asyncio.sleep(0)

        bridge: Any = self.serve_asgi(view).app
        client = self.connect("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(client.answer("HEAD").status, 200)
        eventually(lambda: requests[0].sent > 3 * devserve._HIGH_WATER, "more than may wait")
        self.assertLess(requests[0].outbox.qsize(), 100)
        client.close()
        self.assertIsInstance(self.end(), OSError)

    def test_an_event_stream_that_answers_head_ends_as_the_next_request_must_not_wait_for_it(self) -> None:
        import asyncio

        async def view(scope: Any, receive: App, send: App) -> None:
            if scope["method"] == "GET":
                await asgi_answer(send)
                return
            await send({**self.START, "headers": [(b"content-type", b"text/event-stream")]})
            await send({**self.BODY, "body": b": begins\n\n", "more_body": True})
            await receive()  # the request
            told.append((await receive())["type"])
            await asyncio.sleep(DEADLINE)

        told: list[str] = []
        self.serve_asgi(view)
        client = self.connect("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(client.answer("HEAD").status, 200)
        self.assertEqual(client.send(LAST).answer().body, b"hello")
        eventually(lambda: told == ["http.disconnect"], "the application's word of it")

    def test_a_stream_whose_application_sleeps_holds_no_reload(self) -> None:
        import asyncio

        asleep = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            await send({**self.START, "headers": [(b"content-type", b"text/event-stream")]})
            if scope["path"] != "/early":
                await send({**self.BODY, "body": b": begins\n\n", "more_body": True})
            asleep.set()
            await asyncio.sleep(DEADLINE)

        for request in ("GET /", "HEAD /", "GET /early"):
            with self.subTest(request):
                asleep.clear()
                bridge: Any = self.serve_asgi(view).app
                client = self.connect(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n")
                asleep.wait(DEADLINE)
                if request != "GET /early":
                    client.head()
                kept = self.server.close_gate(3.0)
                if request != "HEAD /":  # that one has its whole answer: its connection is cut, or at rest by now
                    self.assertEqual(kept, [])
                bridge.stop(3.0)
                self.assertIsInstance(self.end(), asyncio.CancelledError)
                self.assertNotIn("grace", self.log)
                self.assertNotIn("Traceback", self.log)

    def test_a_request_that_runs_when_the_process_ends_is_cut_and_no_crash(self) -> None:
        import asyncio

        asleep = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            asleep.set()
            await asyncio.sleep(DEADLINE)

        bridge: Any = self.serve_asgi(view, debugger=True, pin="off").app.app
        client = self.connect(GET)
        asleep.wait(DEADLINE)
        bridge.stop(0.0)
        self.assertEqual(client.rest(), b"")
        self.assertIsInstance(self.end(), asyncio.CancelledError)
        self.assertNotIn("Traceback", self.log)

    def test_a_stream_ends_quietly_with_its_server(self) -> None:
        import asyncio

        async def view(scope: Any, receive: App, send: App) -> None:
            await send({**self.START, "headers": [(b"content-type", b"text/event-stream")]})
            await send({**self.BODY, "body": b": begins\n\n", "more_body": True})
            await asyncio.sleep(DEADLINE)

        server = self.serve_asgi(view)
        self.connect(GET).head()
        server.server_close()
        eventually(lambda: not server.connections, "the end of the connection")
        self.assertNotIn("Traceback", self.log)

    def test_a_stream_that_answers_a_post_is_waited_for(self) -> None:
        import asyncio

        begun, go_on = threading.Event(), threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            await send({**self.START, "headers": [(b"content-type", b"text/event-stream")]})
            await send({**self.BODY, "body": b"data: 1\n\n", "more_body": True})
            begun.set()
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait, DEADLINE)
            await send({**self.BODY, "body": b"data: 2\n\n"})

        self.serve_asgi(view)
        client = self.connect(post(""))
        self.assertTrue(begun.wait(DEADLINE))
        threading.Timer(0.05, go_on.set).start()
        self.server.close_gate(DEADLINE)
        self.assertEqual(client.answer().body, b"data: 1\n\ndata: 2\n\n")

    def test_http_1_0_gets_no_chunks(self) -> None:
        self.answering(self.START, {**self.BODY, "body": b"one", "more_body": True}, {**self.BODY, "body": b"two"})
        answer = self.ask(b"GET / HTTP/1.0\r\n\r\n")
        self.assertEqual((answer.get("Transfer-Encoding"), answer.body), (None, b"onetwo"))

    def test_what_belongs_to_the_connection_is_left_out(self) -> None:
        headers = [(b"Transfer-Encoding", b"chunked"), (b"connection", b"Close"), (b"Keep-Alive", b"3")]
        self.answering({**self.START, "headers": headers}, {**self.BODY, "body": b"hello"})
        client = self.connect(GET)
        answer = client.answer()
        self.assertEqual((answer.body, answer.get("Connection"), answer.get("Keep-Alive")), (b"hello", "close", None))
        self.assertEqual(client.rest(), b"")
        eventually(lambda: "left out the header Keep-Alive" in self.log, "a warning")
        self.assertEqual(self.log.count("left out the header"), 1)  # the server chooses the Transfer-Encoding

    @needs("starlette")
    def test_a_file_gets_through_middleware_that_knows_two_messages(self) -> None:
        """So do those that compress; what a server offers besides is lost in them."""
        from starlette.responses import FileResponse

        async def middleware(scope: Any, receive: App, send: App) -> None:
            async def sending(message: Any) -> None:
                if message["type"] in ("http.response.start", "http.response.body"):
                    await send(message)

            await FileResponse(path)(scope, receive, sending)

        path = self.folder / "file"
        path.write_bytes(b"abc" * 100_000)
        self.serve(middleware)
        self.assertEqual(self.ask().body, b"abc" * 100_000)

    def test_what_breaks_the_protocol_is_raised_where_it_was_sent(self) -> None:
        declared = {**self.START, "headers": [(b"content-length", b"5")]}
        late = {**self.BODY, "body": b"x"}
        cases: dict[str, tuple[type[BaseException], list[dict[str, Any]]]] = {
            "expected is 'http.response.start'": (RuntimeError, [self.BODY]),
            "expected is 'http.response.body'": (RuntimeError, [self.START, self.START]),
            "expected is nothing": (RuntimeError, [self.START, late, late]),
            "sent 'nonsense'": (RuntimeError, [{"type": "nonsense"}]),
            "must be bytes, not str": (TypeError, [self.START, {**self.BODY, "body": "text"}]),
            "headers must be bytes": (TypeError, [{**self.START, "headers": [("a", "b")]}]),
            "sent 6 bytes and declared a": (RuntimeError, [declared, {**self.BODY, "body": b"hello!"}]),
            "sent 4 bytes and declared a": (RuntimeError, [declared, {**self.BODY, "body": b"hell"}]),
            "control character": (ValueError, [{**self.START, "headers": [(b"a", b"b\r\nc: d")]}]),
            "is no header name": (ValueError, [{**self.START, "headers": [(b"a b", b"c")]}]),
            "is no status": (ValueError, [{**self.START, "status": 103}]),
        }  # fmt: skip
        for text, (kind, messages) in cases.items():
            with self.subTest(text):
                self.answering(*messages)
                with contextlib.suppress(Cut):  # where an answer has begun
                    self.ask()
                error = self.end()
                self.assertIsInstance(error, kind)
                self.assertIn(text, str(error))
                eventually(lambda: text in self.log, "the traceback on the terminal")

    def test_an_application_that_does_not_answer_gets_a_500_that_says_so(self) -> None:
        self.answering(debugger=True, pin="off")
        answer = self.ask("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual(answer.status, 500)
        self.assertIn(b"returned before it had answered", answer.body)

    def test_an_answer_that_is_left_unfinished_is_cut(self) -> None:
        self.answering(self.START, {**self.BODY, "body": b"x", "more_body": True})
        with self.assertRaises(Cut):
            self.ask()
        eventually(lambda: "in the middle of its answer" in self.log, "the reason")

    def test_work_after_the_answer_does_not_hold_the_next_request(self) -> None:
        go = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            await asgi_answer(send)
            while not go.is_set():
                await asyncio.sleep(0.01)
            raise LookupError("in the background")

        self.serve_asgi(view)
        client = self.connect(GET, GET)
        self.assertEqual([client.answer().body, client.answer().body], [b"hello", b"hello"])
        self.assertFalse(self.ended)
        go.set()
        eventually(lambda: self.log.count("in the background") >= 2, "both tracebacks")
        self.assertIn("GET / failed after its answer", self.log)

    def test_what_fails_is_told_unless_it_only_says_that_the_client_has_gone(self) -> None:
        import asyncio

        async def times_out() -> None:
            await asyncio.wait_for(asyncio.sleep(DEADLINE), 0.001)

        async def is_cut_off() -> None:
            raise named("ServerDisconnectedError")  # as aiohttp's client says it of another server

        async def leaves() -> None:
            raise RuntimeError from named("ClientDisconnect")

        async def is_cancelled() -> None:
            raise asyncio.CancelledError

        def named(name: str) -> Exception:
            return type(name, (Exception,), {})()  # type: ignore[no-any-return]

        for work, is_told in ((times_out, True), (is_cut_off, True), (leaves, False), (is_cancelled, False)):

            async def view(scope: Any, receive: App, send: App, work: Any = work) -> None:
                await asgi_answer(send)
                await work()

            with self.subTest(work=work.__name__):
                self.serve_asgi(view)
                self.ask()
                self.assertIsNot(devserve.is_disconnect(self.end()), is_told)
                if is_told:
                    eventually(lambda: "GET / failed after its answer" in self.log, "the traceback")

    def test_requests_run_at_the_same_time(self) -> None:
        import asyncio

        barrier: list[asyncio.Event] = []

        async def view(scope: Any, receive: App, send: App) -> None:
            barrier.append(asyncio.Event())
            if len(barrier) == 20:
                for event in barrier:
                    event.set()
            await barrier[len(barrier) - 1].wait()
            await asgi_answer(send)

        for threads in (True, False):
            barrier.clear()
            self.serve_asgi(view, threads=threads)
            clients = [self.connect(GET) for _ in range(20)]
            self.assertEqual({client.answer().status for client in clients}, {200})


def client_frame(opcode: int, payload: bytes = b"", first: int = 0x80, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """Return a frame as a client sends it; the mask is applied the slow way."""
    size = len(payload)
    length = bytes([0x80 | min(size, 125)])
    length = b"\xfe" + size.to_bytes(2, "big") if 126 <= size < 65536 else length
    length = length if size < 65536 else b"\xff" + size.to_bytes(8, "big")
    return bytes([first | opcode]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


class WebSocketClient(Client):
    """A WebSocket client that sends what it is told to, and reads strictly."""

    KEY = "dGhlIHNhbXBsZSBub25jZQ=="

    def send(self, *pieces: Union[bytes, str], pause: float = 0.0) -> "WebSocketClient":
        super().send(*pieces, pause=pause)
        return self

    def shake_hands(self, *lines: str, path: str = "/") -> Answer:
        head = ["Host: localhost", "Upgrade: websocket", "Connection: keep-alive, Upgrade"]
        more = [f"Sec-WebSocket-Key: {self.KEY}", "Sec-WebSocket-Version: 13", *lines]
        self.send(f"GET {path} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in head + more) + "\r\n")
        answer = self.head()
        if answer.status == 101:
            assert answer.get("Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", answer  # RFC 6455 section 1.3
            assert (answer.get("Upgrade") or "").lower() == "websocket", answer
            assert (answer.get("Connection") or "").lower() == "upgrade", answer
        return answer

    def frame(self) -> tuple[int, bytes]:
        """Return the first byte and the payload of the next frame."""
        first, size = self.exactly(2)
        size = int.from_bytes(self.exactly({126: 2, 127: 8}[size]), "big") if size > 125 else size
        return first, self.exactly(size)

    def close_code(self) -> int:
        """Skip to the close frame and return its code; the connection ends after it."""
        first = 0
        while first != 0x88:
            first, payload = self.frame()
        self.send(client_frame(8, payload))
        assert self.rest() == b""
        return int.from_bytes(payload[:2], "big")


class AsgiWebSockets(AsgiCase):
    """RFC 6455 and RFC 7692, as far as Autobahn does not tell it better; and what ASGI says of it."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[dict[str, Any]] = []

    async def echo(self, scope: Any, receive: App, send: App) -> None:
        self.assertEqual(await receive(), {"type": "websocket.connect"})
        await send({"type": "websocket.accept"})
        while True:
            self.seen.append(await receive())
            if self.seen[-1]["type"] == "websocket.disconnect":
                return
            await send({**self.seen[-1], "type": "websocket.send"})

    def test_tasks_that_send_at_once_all_go_on_when_the_client_has_taken_what_was_sent(self) -> None:
        import asyncio

        async def both() -> None:
            loop, size = asyncio.get_running_loop(), devserve._LOW_WATER + 1
            request = object.__new__(devserve._HttpRequest)
            request.sent, request.written, request.is_full, request.is_gone = size, 0, False, False
            request.held, request.waiters = None, []
            request.bridge = mock.Mock(post=loop.call_soon, loop=loop)

            async def first() -> None:
                await request.drain()
                request.sent += size  # less than what it would have to wait for

            tasks = [loop.create_task(first()), loop.create_task(request.drain())]
            for _ in range(2):
                await asyncio.sleep(0)
                request.note_written(size)
                for _ in range(5):
                    await asyncio.sleep(0)
            self.assertEqual([task.done() for task in tasks], [True, True])

        asyncio.run(both())

    def sending(self, *messages: dict[str, Any], **options: Any) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await receive()
            for message in messages:
                await send(message)

        self.serve_asgi(view, **options)

    def socket(self, **options: Any) -> WebSocketClient:
        client = WebSocketClient(self.server.server_port, **options)
        self.addCleanup(client.close)
        return client

    def opened(self, *lines: str) -> WebSocketClient:
        client = self.socket()
        self.assertEqual(client.shake_hands(*lines).status, 101)
        return client

    ACCEPT: ClassVar = {"type": "websocket.accept"}

    def test_messages_of_every_size_come_back(self) -> None:
        self.serve_asgi(self.echo)
        client = self.opened()
        for size in (0, 1, 125, 126, 65_535, 65_536, 1_000_000):
            for opcode in (1, 2):
                payload = b"abcdefg"[: size % 7 + 1] * (size // (size % 7 + 1) + 1)
                client.send(client_frame(opcode, payload[:size]))
                self.assertEqual(client.frame(), (0x80 | opcode, payload[:size]))
        client.send(client_frame(8, b"\x0f\xa0bye"))
        self.assertEqual(client.close_code(), 4000)
        self.end()
        self.assertEqual(self.seen[-1], {"type": "websocket.disconnect", "code": 4000, "reason": "bye"})
        self.assertEqual([line[2] for line in self.lines(2)], ["101", "101"])

    def test_a_ping_between_fragments_does_not_count_towards_the_messages_limit(self) -> None:
        self.patch("_MESSAGE_LIMIT", 200)
        self.serve_asgi(self.echo)
        client = self.opened()
        client.send(client_frame(2, bytes(200), first=0) + client_frame(9, b"ping") + client_frame(0))
        self.assertEqual(client.frame(), (0x8A, b"ping"))
        self.assertEqual(client.frame()[1][-200:], bytes(200))
        client.send(client_frame(2, bytes(200), first=0) + client_frame(0, b"1"))
        self.assertEqual(client.close_code(), 1009)

    def test_the_scope_is_whole(self) -> None:
        scopes = []

        async def view(scope: Any, receive: App, send: App) -> None:
            scopes.append(scope)
            await send({**self.ACCEPT, "subprotocol": "b", "headers": [(b"x-a", b"1")]})

        self.serve_asgi(view)
        client = self.socket()
        answer = client.shake_hands("Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: c", path="/a%20b?q")
        self.assertEqual((answer.get("Sec-WebSocket-Protocol"), answer.get("x-a")), ("b", "1"))
        self.assertEqual(client.close_code(), 1000)
        scope = scopes[0]
        self.assertEqual((scope["type"], scope["scheme"], scope["subprotocols"]), ("websocket", "ws", ["a", "b", "c"]))
        self.assertEqual((scope["path"], scope["raw_path"], scope["query_string"]), ("/a b", b"/a%20b", b"q"))
        self.assertIn("websocket.http.response", scope["extensions"])
        self.assertNotIn("method", scope)

    def test_a_bad_handshake_is_refused(self) -> None:
        self.serve_asgi(self.echo)
        good = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key, version = f"Sec-WebSocket-Key: {WebSocketClient.KEY}\r\n", "Sec-WebSocket-Version: 13\r\n"
        for head, status in (
            (good + key + "Sec-WebSocket-Version: 8\r\n", 426),
            (good + key, 426),
            (good + version, 400),
            (good + "Sec-WebSocket-Key: short\r\n" + version, 400),
            (good.replace("GET", "POST") + key + version, 400),
        ):
            answer = self.ask(head + "\r\n")
            self.assertEqual(answer.status, status, head)
            due = ("websocket", "13") if status == 426 else (None, None)
            self.assertEqual((answer.get("Upgrade"), answer.get("Sec-WebSocket-Version")), due)
            self.assertEqual(answer.all("Connection").count("Upgrade"), int(status == 426))
        self.assertEqual(self.seen, [])

    def test_what_breaks_the_protocol_ends_with_its_code_and_one_line(self) -> None:
        frame = client_frame
        fragment = frame(1, b"a", first=0)
        cases = {
            "without a mask": (b"\x81\x01a", 1002),
            "reserved bits": (frame(1, first=0xC0), 1002),
            "the opcode 3": (frame(3), 1002),
            "a control frame that is too long": (frame(9, bytes(126)), 1002),
            "or fragmented": (frame(9, first=0), 1002),
            "fragments of two": (fragment + frame(1), 1002),
            "of two messages": (frame(0), 1002),
            "the shortest way": (b"\x81\xfe\x00\x01", 1002),
            "shortest": (b"\x81\xff" + (5).to_bytes(8, "big") + bytes(4), 1002),
            "not UTF-8": (frame(1, b"ab\xff" + bytes(100))[:9], 1007),  # at the byte, not at the end
            "text that is not": (fragment + frame(0, b"\xc3"), 1007),
            "of over 16,777,216 bytes": (b"\x82\xff" + (2**24 + 1).to_bytes(8, "big") + bytes(4), 1009),
            "with the code 1005": (frame(8, b"\x03\xed"), 1002),
            "the code 0": (frame(8, b"\x00"), 1002),
            "whose reason": (frame(8, b"\x03\xe8\xff"), 1007),
        }
        for reason, (data, code) in cases.items():
            with self.subTest(reason):
                self.serve_asgi(self.echo)
                data += b"" if reason != "the shortest way" else bytes(4)
                self.assertEqual(self.opened().send(data).close_code(), code)
                self.end()
                self.assertEqual(self.seen[-1]["code"], code)
                line = rf"warning: GET /: the client broke the WebSocket protocol: .*{reason}.* \({code}\)\n"
                eventually(lambda: re.search(line, self.log), "the line")
                self.assertNotIn("Traceback", self.log)
                self.doCleanups()  # a server for each, and a process may have few descriptors

    def test_what_came_before_the_breach_is_answered(self) -> None:
        self.serve_asgi(self.echo)
        client = self.opened().send(client_frame(1, b"one") + client_frame(2, b"two") + client_frame(3))
        self.assertEqual([client.frame(), client.frame()], [(0x81, b"one"), (0x82, b"two")])
        self.assertEqual(client.close_code(), 1002)

    def test_fragments_with_control_frames_between_are_put_together_byte_by_byte(self) -> None:
        self.serve_asgi(self.echo)
        text = "héllo".encode()
        data = client_frame(1, text[:2], first=0) + client_frame(9, b"ping") + client_frame(0, text[2:])
        client = self.opened()
        for byte in data:
            client.send(bytes([byte]))
        self.assertEqual([client.frame(), client.frame()], [(0x8A, b"ping"), (0x81, text)])

    def test_frames_sent_with_the_handshake_are_not_lost(self) -> None:
        self.serve_asgi(self.echo)
        client = self.socket()
        with mock.patch.object(
            client, "send", lambda head: client.sock.sendall(head.encode() + client_frame(1, b"early"))
        ):
            client.shake_hands()
        self.assertEqual(client.frame(), (0x81, b"early"))

    def test_deflated_messages_come_back_deflated(self) -> None:
        self.serve_asgi(self.echo)
        forget = "; server_no_context_takeover; client_no_context_takeover"
        for offer, bits in (
            ("permessage-deflate", 15),
            ("permessage-deflate; client_max_window_bits", 15),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", 15),
            ("x; y, permessage-deflate; server_max_window_bits=10", 10),
            (f"permessage-deflate{forget}; server_max_window_bits=9; client_max_window_bits=8", 9),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; client_max_window_bits=9; client_max_window_bits=9", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
        ):
            with self.subTest(offer):
                client = self.socket()
                answer = client.shake_hands(f"Sec-WebSocket-Extensions: {offer}").get("Sec-WebSocket-Extensions")
                if not bits:
                    self.assertIsNone(answer)
                    self.assertEqual(client.send(client_frame(1, first=0xC0)).close_code(), 1002)
                    continue
                asked = f"; server_max_window_bits={bits}" if bits < 15 else ""
                self.assertEqual(answer, f"permessage-deflate{forget}{asked}")
                text = random.Random(1).randbytes(3000).hex().encode() * 2  # which repeats itself beyond small windows
                for _ in range(3):
                    deflater, inflater = zlib.compressobj(wbits=-15), zlib.decompressobj(-bits)
                    payload = (deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
                    half = len(payload) // 2
                    client.send(client_frame(1, payload[:half], first=0x40), client_frame(0, payload[half:]))
                    first, data = client.frame()
                    self.assertEqual(first, 0xC1)
                    self.assertLess(len(data), len(text))
                    self.assertEqual(inflater.decompress(data + b"\0\0\xff\xff"), text)

    def test_a_message_that_inflates_past_the_limit_is_refused_before_it_fills_the_memory(self) -> None:
        self.serve_asgi(self.echo)
        client = self.opened("Sec-WebSocket-Extensions: permessage-deflate")
        deflater = zlib.compressobj(wbits=-15)
        bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(64)) + deflater.flush(zlib.Z_SYNC_FLUSH)
        self.assertEqual(client.send(client_frame(2, bomb[:-4], first=0xC0)).close_code(), 1009)

    def test_unmasking_is_right_at_every_offset_and_costs_little(self) -> None:
        data, mask = random.Random(1).randbytes(1000), b"\x01\x80\xff\x07"
        for start in range(5):
            for size in (0, 1, 2, 3, 4, 5, 997):
                slow = bytes(b ^ mask[(i + start) % 4] for i, b in enumerate(data[:size]))
                self.assertEqual(devserve._unmask(data[:size], mask, start), slow)
        small, large = (steps(lambda: devserve._unmask(bytes(size), mask, 1)) for size in (2**10, 2**20))
        self.assertEqual(small, large, "no loop over the bytes")

    def test_pings_are_sent_and_a_peer_without_pongs_is_given_up(self) -> None:
        self.patch("_PING_SECONDS", 0.2)
        self.serve_asgi(self.echo)
        client = self.opened()
        for _ in range(3):
            first, payload = client.frame()
            self.assertEqual(first, 0x89)
            client.send(client_frame(10, payload))
        self.assertEqual(client.close_code(), 1011)
        self.end()
        self.assertEqual(self.seen[-1]["type"], "websocket.disconnect")

    def test_a_client_whose_messages_wait_for_the_application_is_not_given_up(self) -> None:
        self.patch("_PING_SECONDS", 0.4)
        go = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            await receive()
            await send(self.ACCEPT)
            while not go.is_set():
                await asyncio.sleep(0.01)
            for _ in range(3):
                await send({**await receive(), "type": "websocket.send"})

        self.serve_asgi(view)
        client = self.opened().send(client_frame(2, bytes(100_000)) * 3)
        for _ in range(3):  # pings, whose pongs nobody reads while the application does not take the messages
            first, payload = client.frame()
            self.assertEqual(first, 0x89)
            client.send(client_frame(10, payload))
        go.set()
        sizes: list[int] = []
        while len(sizes) < 3:
            first, payload = client.frame()
            if first == 0x89:
                client.send(client_frame(10, payload))
            else:
                sizes.append(len(payload))
        self.assertEqual(sizes, [100_000] * 3)

    def test_the_application_closes(self) -> None:
        self.sending(
            self.ACCEPT, {"type": "websocket.send", "text": "last"}, {"type": "websocket.close", "code": 4001}
        )
        client = self.opened()
        self.assertEqual(client.frame(), (0x81, b"last"))
        self.assertEqual(client.close_code(), 4001)

    def test_a_client_that_does_not_close_is_given_up(self) -> None:
        self.patch("_CLOSE_SECONDS", 0.2)
        self.sending(self.ACCEPT, {"type": "websocket.close", "reason": "é" * 100})
        client = self.opened()
        first, payload = client.frame()
        self.assertEqual((first, payload[:2]), (0x88, b"\x03\xe8"))
        self.assertEqual(payload[2:].decode(), "é" * 61)
        self.assertEqual(client.rest(), b"")

    def test_a_client_that_vanishes_is_told_to_the_application_and_a_send_raises(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await receive()
            await send(self.ACCEPT)
            self.seen.append(await receive())
            await send({"type": "websocket.send", "text": "x"})

        self.serve_asgi(view)
        self.opened().close()
        self.assertIsInstance(self.end(), OSError)
        self.assertEqual(self.seen, [{"type": "websocket.disconnect", "code": 1006, "reason": ""}])
        self.assertNotIn("Traceback", self.log)

    def test_a_close_before_accept_is_a_403(self) -> None:
        self.sending({"type": "websocket.close"})
        self.assertEqual(self.socket().shake_hands().status, 403)

    def test_a_denial_is_answered_as_it_is_sent(self) -> None:
        start = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"1")]}
        body = {"type": "websocket.http.response.body", "body": b"no", "more_body": True}
        self.sending(start, body, {**body, "more_body": False})
        client = self.socket()
        answer = client.shake_hands()
        self.assertEqual((answer.status, answer.get("x-a")), (401, "1"))
        self.assertEqual(b"".join(iter(client.chunk, b"")), b"nono")

    def test_an_exception_before_accept_is_a_500_and_one_after_it_a_1011_with_a_traceback(self) -> None:
        self.sending({"type": "nonsense"}, debugger=True, pin="off")
        self.assertEqual(self.socket().shake_hands().status, 500)
        self.assertIn("the application sent 'nonsense'", self.log)
        self.sending(self.ACCEPT, {"type": "websocket.send", "text": b"bytes"}, debugger=True, pin="off")
        self.assertEqual(self.opened().close_code(), 1011)
        eventually(lambda: "TypeError: 'websocket.send' needs either text" in self.log, "the traceback")

    def test_a_lost_connection_of_the_applications_own_is_no_lost_client(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await send(self.ACCEPT)
            raise ConnectionResetError("the database has gone")

        for options in ({}, {"debugger": True, "pin": "off"}):
            with self.subTest(options=options):
                self.serve_asgi(view, **options)
                self.assertEqual(self.opened().close_code(), 1011)
                eventually(lambda: "ConnectionResetError: the database has gone" in self.log, "the traceback")

    def test_bad_sends_are_raised_where_they_are_sent(self) -> None:
        for message in (
            {"type": "websocket.send"},
            {"type": "websocket.send", "text": "a", "bytes": b"b"},
            {"type": "websocket.send", "text": b"a"},
            {"type": "websocket.close", "code": 1005},
            {"type": "websocket.accept"},
            {"type": "http.response.start", "status": 200},
        ):
            with self.subTest(message=message):
                self.sending(self.ACCEPT, message)
                self.assertEqual(self.opened().close_code(), 1011)
                self.assertIsInstance(self.end(), (TypeError, ValueError, RuntimeError))

    def test_both_sides_may_send_at_the_same_time(self) -> None:
        """More than sockets hold, and neither reads before it has sent: no deadlock, and all comes in order."""
        bodies = [bytes([number]) * 200_000 for number in range(60)]

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            async def take() -> None:
                for _ in bodies:
                    self.seen.append(await receive())

            await receive()
            await send(self.ACCEPT)
            task = asyncio.ensure_future(take())
            for body in bodies:
                await send({"type": "websocket.send", "bytes": body})
            await task

        pem = str(self.write("cert.pem", CERTIFICATE))
        for options in ({}, {"cert": pem}):
            with self.subTest(**options):
                self.serve_asgi(view, **options)
                client = self.socket(context=ssl.create_default_context(cafile=pem) if options else None)
                self.assertEqual(client.shake_hands().status, 101)
                client.send(*(client_frame(2, body) for body in bodies))
                self.assertTrue([client.frame()[1] for _ in bodies] == bodies)
                self.assertEqual(client.close_code(), 1000)
                self.assertTrue([message["bytes"] for message in self.seen] == bodies)
                self.seen.clear()
                self.assertIsNone(self.end())

    def test_a_client_that_takes_nothing_holds_up_nobody_else(self) -> None:
        bodies = [bytes([number]) * 200_000 for number in range(100)]

        async def view(scope: Any, receive: App, send: App) -> None:
            if scope["path"] != "/much":
                await self.echo(scope, receive, send)
                return
            await receive()
            await send(self.ACCEPT)
            for body in bodies:
                await send({"type": "websocket.send", "bytes": body})
                self.seen.append({"sent": body[0]})

        self.serve_asgi(view)
        slow = self.socket()
        self.assertEqual(slow.shake_hands(path="/much").status, 101)
        eventually(lambda: self.seen, "the first message")
        quick = self.opened()
        for _ in range(100):
            quick.send(client_frame(1, b"hello"))
            self.assertEqual(quick.frame(), (0x81, b"hello"))
        self.assertNotIn({"sent": 99}, self.seen)
        self.assertTrue([slow.frame()[1] for _ in bodies] == bodies)
        self.assertEqual(slow.close_code(), 1000)

    def test_one_thread_reads_all_of_them_and_what_fails_in_it_ends_one_alone(self) -> None:
        before = self.readers()
        self.serve_asgi(self.echo)
        clients = [self.opened() for _ in range(20)]
        feed = devserve._MessageReader.feed

        def feed_or_fail(frames: Any, data: bytes) -> Any:
            if b"FAIL" in data:
                raise RuntimeError("what no client can cause")
            return feed(frames, data)

        with mock.patch.object(devserve._MessageReader, "feed", feed_or_fail):
            clients[0].send(b"\x81\x84" + bytes(4) + b"FAIL")
            self.assertEqual(clients[0].rest(), b"")
        eventually(lambda: "RuntimeError: what no client can cause" in self.log, "the traceback")
        for client in clients[1:]:
            client.send(client_frame(1, b"x"))
        self.assertEqual([client.frame() for client in clients[1:]], [(0x81, b"x")] * 19)
        self.assertEqual(len(self.readers() - before), 1)
        self.doCleanups()
        eventually(lambda: not self.readers() - before, "the end of the thread")

    def test_the_thread_that_reads_them_is_made_by_the_loop_so_that_there_is_one(self) -> None:
        makers, make = [], devserve._WebSocketReader

        def note_maker() -> Any:
            makers.append(threading.current_thread().name)
            return make()

        self.serve_asgi(self.echo)
        with mock.patch.object(devserve, "_WebSocketReader", note_maker):
            for _ in range(2):
                self.opened()
        self.assertEqual(makers, ["devserve loop"])

    def test_one_that_is_opened_while_the_server_ends_does_not_wait_for_ever(self) -> None:
        before, reader = self.readers(), devserve._WebSocketReader()
        reader.jobs.post(reader.stop)
        eventually(lambda: not self.readers() - before, "the end of the thread")
        outbox: queue.SimpleQueue[None] = queue.SimpleQueue()
        carry = threading.Thread(target=reader.carry, args=[mock.Mock(outbox=outbox)], daemon=True)
        carry.start()
        eventually(lambda: not carry.is_alive(), "the end of a WebSocket that came too late")

    def test_a_client_that_floods_the_server_with_small_frames_leaves_others_their_turns(self) -> None:
        self.serve_asgi(self.echo)
        client, turns, take, receive = self.opened(), [0], devserve._WebSocket.take, devserve._WebSocket.receive_frames

        def note_frame(*args: Any) -> None:
            turns[-1] += 1
            take(*args)

        def note_turn(websocket: Any) -> bool:
            turns.append(0)
            return receive(websocket)

        with mock.patch.multiple(devserve._WebSocket, take=note_frame, receive_frames=note_turn):
            client.send(client_frame(9) * 5000)
            self.assertEqual([client.frame() for _ in range(5000)], [(0x8A, b"")] * 5000)
            self.assertLess(max(turns), 500)
            del turns[1:]
            client.send(client_frame(2, bytes(2_000_000)))
            self.assertEqual(len(client.frame()[1]), 2_000_000)
            self.assertGreater(2_000_000 / len(turns), 4096)

    def test_the_reader_is_not_woken_for_each_frame_that_waits_behind_others(self) -> None:
        ready = threading.Event()

        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            await receive()
            await send(self.ACCEPT)
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
            await send({"type": "websocket.send", "bytes": bytes(8_000_000)})
            for _ in range(100):
                await send({"type": "websocket.send", "text": "x"})

        self.serve_asgi(view)
        client, advance = self.opened(), devserve._WebSocket.advance
        drains = mock.patch.object(devserve._HttpRequest, "drain", return_value=None)
        advances = mock.patch.object(devserve._WebSocket, "advance", autospec=True, side_effect=advance)
        with drains as drain, advances as advanced:
            ready.set()
            eventually(lambda: drain.call_count > 100, "the last message")
            self.assertLess(advanced.call_count, 20)
            self.assertEqual(len(client.frame()[1]), 8_000_000)
            self.assertEqual([client.frame() for _ in range(100)], [(0x81, b"x")] * 100)

    def test_what_a_job_posts_has_its_turn_after_other_events(self) -> None:
        woken: list[None] = []
        jobs = devserve._Jobs()
        self.addCleanup(jobs.wakeup.__exit__)
        jobs.wake = lambda: woken.append(None)

        def go_on() -> None:
            self.assertLess(len(woken), 10)
            jobs.post(go_on)

        jobs.post(go_on)
        for rounds in (1, 2, 3):
            self.assertEqual((len(woken), len(jobs.waiting)), (rounds, 1))
            jobs.run()

    def readers(self) -> set[int]:
        return {thread.native_id or 0 for thread in threading.enumerate() if thread.name == "devserve WebSockets"}

    def test_an_application_that_never_stops_sending_hears_its_client_all_the_same(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            import asyncio

            async def take() -> None:
                self.seen.append(await receive())

            await receive()
            await send(self.ACCEPT)
            task = asyncio.ensure_future(take())
            while not task.done():
                await send({"type": "websocket.send", "bytes": bytes(1000)})
                await asyncio.sleep(0)
            await send({"type": "websocket.send", "text": "heard"})

        self.serve_asgi(view)
        client = self.opened()
        client.frame()
        client.send(client_frame(1, b"hello"))
        while client.frame()[0] != 0x81:
            pass
        self.assertEqual(client.close_code(), 1000)
        self.assertEqual(self.seen, [{"type": "websocket.receive", "text": "hello"}])

    def test_a_reload_closes_with_1012_and_waits_for_nothing(self) -> None:
        self.serve_asgi(self.echo)
        client = self.opened()
        closer = threading.Thread(target=self.server.close_gate, args=(600.0,))
        closer.start()
        self.assertEqual(client.close_code(), 1012)
        closer.join(DEADLINE)
        self.assertFalse(closer.is_alive())
        self.end()
        self.assertEqual(self.seen[-1]["code"], 1012)
        self.server.open_gate()

    def test_the_end_of_the_server_closes_with_1001(self) -> None:
        self.serve_asgi(self.echo)
        client = self.opened()
        stop = threading.Thread(target=self.server.at_close)
        stop.start()
        self.assertEqual(client.close_code(), 1001)
        stop.join(DEADLINE)
        self.server.at_close = int

    def test_over_tls_bodies_and_messages_go_both_ways_and_a_client_that_leaves_is_told(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            if scope["type"] == "websocket":
                await self.echo(scope, receive, send)
                return
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.seen.append(await receive())

        pem = self.write("cert.pem", CERTIFICATE)
        self.serve_asgi(view, cert=str(pem))
        context = ssl.create_default_context(cafile=str(pem))
        body = bytes(range(256)) * 8000
        for request in (
            post(f"Content-Length: {len(body)}", body),
            chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        ):
            client = Client(self.server.server_port, context=context)
            client.send(request).head()
            got = b""
            while len(got) < len(body):
                got += client.chunk()
            self.assertTrue(got == body)
            self.assertEqual(self.seen, [])
            client.close()
            eventually(lambda: self.seen, "the disconnect")
            self.assertEqual(self.seen.pop(), {"type": "http.disconnect"})
        socket = self.socket(context=context)
        self.assertEqual(socket.shake_hands().status, 101)
        socket.send(client_frame(2, body))
        self.assertTrue(socket.frame() == (0x82, body))
        socket.send(client_frame(8, b"\x03\xe8"))
        self.assertEqual(socket.close_code(), 1000)


class AsgiPages(AsgiCase):
    """What an exception becomes, in the page and at its console."""

    def page(self, view: App, accept: str = "text/html") -> Answer:
        self.serve_asgi(view, debugger=True, pin="off")
        return self.ask(f"GET /path HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")

    def console(self, answer: Answer) -> Any:
        """Return the console of the innermost frame."""
        ids = re.findall(r"[0-9a-f]{16}-\d+", answer.body.decode())
        debugger: Any = self.server.app
        return debugger.crashes.console(max(ids, key=lambda id: int(id.partition("-")[2])))

    async def failing(self, scope: Any, receive: App, send: App) -> None:
        import asyncio

        REQUEST_NAME.set("the failing one")

        async def inner(divisor: int) -> float:
            await asyncio.sleep(0)
            return 1 / divisor

        await inner(0)

    def test_the_page_shows_the_frames_through_every_await(self) -> None:
        answer = self.page(self.failing)
        self.assertEqual(answer.status, 500)
        for text in ("ZeroDivisionError", "divisor", "await inner(0)"):
            self.assertIn(text, answer.body.decode())
        for kind, text in (
            ("text/plain", "await inner(0)"),
            ("application/json", '"divisor"'),
            ("text/markdown", "`"),
        ):
            self.assertIn(text, self.page(self.failing, kind).body.decode())
        self.assertIn("ZeroDivisionError: division by zero", self.log)
        self.assertNotIn(str(SCRIPT), self.log, "no frames of devserve")

    def test_the_body_that_was_read_is_on_the_page(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            raise LookupError((await receive())["body"])

        self.serve_asgi(view, debugger=True, pin="off")
        form = "Host: localhost\nContent-Type: application/x-www-form-urlencoded\nContent-Length: 11"
        request = post(form, "fruit=apple").replace(b"Host: x\r\n", b"")
        self.assertRegex(self.ask(request).body.decode(), r"fruit\s.*apple|fruit: apple|fruit=apple|LookupError")

    def test_the_console_awaits_on_the_loop_with_the_requests_context_variables(self) -> None:
        console = self.console(self.page(self.failing))
        for code, output in (
            ("divisor + 1", "1\n"),
            ("REQUEST_NAME.get()", "'the failing one'\n"),
            ("import asyncio", ""),
            ("async def inner(n):\n    return 1 / n\n\n", ""),
            ("task = await inner(2)", ""),
            ("task", "0.5\n"),
            ("await asyncio.sleep(0, result=REQUEST_NAME.get())", "'the failing one'\n"),
            ("async def f():\n    print('on', threading.current_thread().name)\n    return 7\n\n", ""),
            ("await f()", "on devserve loop\n7\n"),
            ("await asyncio.gather(f(), f())", "on devserve loop\non devserve loop\n[7, 7]\n"),
            ("task = asyncio.create_task(inner(4))", ""),
            ("await task", "0.25\n"),
            ("tasks = [asyncio.create_task(inner(n)) for n in (1, 2)]", ""),
            ("[await each for each in tasks]", "[1.0, 0.5]\n"),
            ("from asyncio import create_task", ""),
            ("await create_task(inner(4))", "0.25\n"),
            ("task = create_task(inner(4))", ""),
            ("threading.current_thread().name == 'devserve loop'", "False\n"),
        ):
            self.assertEqual(console.run(code).output, output, code)
        self.assertIn("ZeroDivisionError", console.run("await inner(0)").output)
        self.assertNotIn("concurrent", console.run("await inner(0)").output)

    @unittest.skipUnless(sys.implementation.name == "cpython", "PyPy cannot interrupt a thread")
    def test_what_the_console_awaits_can_be_interrupted(self) -> None:
        console = self.console(self.page(self.failing))
        console.run("import asyncio\nwoken = []")
        self.assertTrue(console.run("await asyncio.sleep(60)", 0.2).running)
        self.assertTrue(console.interrupt())
        eventually(lambda: not console.output(0.1).running, "the end of the evaluation")
        self.assertIn("KeyboardInterrupt", console.output(1).output)

    def test_the_console_of_the_application_has_the_loop_too(self) -> None:
        self.serve_asgi(self.failing, debugger=True, pin="off")
        debugger: Any = self.server.app
        console = debugger.console("app")
        self.assertIn("function", console.run("app").output)
        self.assertEqual(console.run("import asyncio\nawait asyncio.sleep(0, result=3)").output, "3\n")

    def test_a_page_takes_the_place_of_a_frameworks_own_500_when_an_exception_follows(self) -> None:
        self.assertIn(b"the reason", self.page(fails_like_starlette).body)
        self.assertEqual(self.log.count("LookupError: the reason"), 1)
        answer = self.page(is_unavailable)
        self.assertEqual((answer.status, answer.body), (503, b"own page"))
        self.serve_asgi(fails_like_starlette)  # without a debugger it is the framework's to say
        self.assertEqual(self.ask().body, b"Internal Server Error")
        eventually(lambda: "LookupError: the reason" in self.log, "the traceback")

    def test_work_in_the_background_holds_no_500_back(self) -> None:
        import asyncio

        async def view(scope: Any, receive: App, send: App) -> None:
            await asgi_answer(send, b"own page", 500)
            await asyncio.Event().wait()

        self.assertEqual(self.page(view).body, b"own page")

    def test_what_fails_in_the_background_has_an_address(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await asgi_answer(send)
            raise LookupError("in the background")

        self.assertEqual(self.page(view).status, 200)
        eventually(lambda: "/__devserve__/crash/" in self.log, "the link")
        self.assertIn("LookupError: in the background", self.log)

    def test_a_request_that_hangs_says_where_it_awaits(self) -> None:
        self.patch("_HANG_SECONDS", (0.2, float("inf")))
        self.patch("_HANG_INTERVAL", 0.01)
        import asyncio

        go_on, line = threading.Event(), 0

        async def view(scope: Any, receive: App, send: App) -> None:
            await waits()
            await asgi_answer(send)

        async def waits() -> None:
            nonlocal line
            while not go_on.is_set():
                line = sys._getframe().f_lineno + 1
                await asyncio.sleep(0.01)

        self.serve_asgi(view)
        client = self.connect(GET)
        hangs = re.compile(r"GET / has not been answered after \d+ s; it is at (.*), line (\d+)")
        eventually(lambda: hangs.search(self.log), "a line")
        go_on.set()
        client.answer()
        self.assertEqual(hangs.findall(self.log), [(__file__, str(line))])

    def test_a_view_that_hangs_in_a_pools_thread_says_where_each_for_its_own_request(self) -> None:
        """As views without `async` do: no frame of the application's is in the task that waits for them."""
        self.patch("_HANG_SECONDS", (0.2, float("inf")))
        self.patch("_HANG_INTERVAL", 0.01)
        go_on, lines = threading.Event(), {}

        def one() -> None:
            lines["one"] = sys._getframe().f_lineno + 1
            go_on.wait(DEADLINE)

        def two() -> None:
            lines["two"] = sys._getframe().f_lineno + 1
            go_on.wait(DEADLINE)

        namespace: dict[str, Any] = {"views": {"/one": one, "/two": two}, "answer": asgi_answer}
        framework = """
            import asyncio
            from contextvars import copy_context
            from functools import partial
            try:
                from anyio.to_thread import run_sync
            except ImportError:
                run_sync = asyncio.to_thread

            async def app(scope, receive, send):
                view, loop = views[scope["path"]], asyncio.get_running_loop()
                await WAY
                await answer(send)
        """
        for way in (
            "run_sync(view)",
            "asyncio.to_thread(view)",
            "loop.run_in_executor(None, partial(copy_context().run, view))",
            "loop.run_in_executor(None, copy_context().run, view)",
        ):
            with self.subTest(way):
                go_on.clear()
                exec(compile(textwrap.dedent(framework).replace("WAY", way), "<framework>", "exec"), namespace)
                self.serve_asgi(namespace["app"]).app.served = namespace["app"]  # nothing of this file around it
                clients = [self.connect(GET.replace(b"/ ", f"/{name} ".encode(), 1)) for name in ("one", "two")]
                eventually(lambda: self.log.count("has not been answered") == 2, "two lines")
                hangs = r"GET /(\w+) has not been answered after \d+ s; it is at (.*), line (\d+)"
                found = set(re.findall(hangs, self.log))
                go_on.set()
                for client in clients:
                    client.answer()
                self.assertEqual(found, {(name, __file__, str(line)) for name, line in lines.items()})


class AsgiMiddleware(AsgiCase):
    """`DebuggedASGI` under a server that has no debugger: ours without its own, and uvicorn."""

    def test_a_service_worker_of_the_application_is_noticed(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await asgi_answer(send)

        self.wrapped(view)
        secret = self.debugged.debugger.guard.secret
        worker = (
            "GET /w.js HTTP/1.1\r\nHost: localhost\r\nService-Worker: script\r\nSec-Fetch-Dest: serviceworker\r\n\r\n"
        )
        self.assertEqual(self.connect(worker).answer().status, 200)
        self.assertNotEqual(self.debugged.debugger.guard.secret, secret)

    def wrapped(self, view: App, **options: Any) -> Any:
        self.debugged = devserve.DebuggedASGI(view, pin="off", terminal=devserve.Terminal(io.StringIO()), **options)
        self.serve(self.debugged)
        return self.debugged

    def page(self, view: App, accept: str = "text/html", path: str = "/path") -> Answer:
        self.wrapped(view)
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")

    @property
    def printed(self) -> str:
        terminal: Any = self.debugged.debugger.terminal
        terminal.flush()
        return str(terminal.stream.getvalue())

    async def failing(self, scope: Any, receive: App, send: App) -> None:
        assert scope["type"] == "http"
        REQUEST_NAME.set("the failing one")
        secret = (await receive())["body"]
        raise LookupError(f"{len(secret)} bytes")

    def test_an_exception_becomes_the_page_and_is_printed_once(self) -> None:
        answer = self.page(self.failing)
        self.assertEqual(answer.status, 500)
        self.assertIn("LookupError", answer.text)
        self.assertIn("raise LookupError(f", answer.text)
        self.assertEqual(self.printed.count("LookupError: 0 bytes"), 1)
        self.assertNotIn(str(SCRIPT), self.printed, "no frames of devserve")
        self.assertNotIn("Traceback", self.log, "the server has nothing to report")
        self.assertIn("secret", self.page(self.failing, "application/json").text)

    def test_a_mount_point_of_any_alphabet_is_part_of_the_crashs_address(self) -> None:
        async def mounted(scope: Any, receive: App, send: App) -> None:
            await debugged({**scope, "root_path": "/für/€", "path": "/für/€/x"}, receive, send)

        debugged = self.wrapped(self.failing)
        self.serve(mounted)
        answer = self.ask("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n")
        self.assertIn("LookupError: 0 bytes", answer.text)
        self.assertIn("//localhost/f%C3%BCr/%E2%82%AC/__devserve__/", answer.text)

    def test_the_console_of_its_frame_awaits_with_the_requests_context(self) -> None:
        answer = self.page(self.failing)
        frame = max(re.findall(r"[0-9a-f]{16}-\d+", answer.text), key=lambda id: int(id.partition("-")[2]))
        console = self.debugged.debugger.console(frame)
        code = "import asyncio\nawait asyncio.sleep(0, result=(secret, REQUEST_NAME.get()))"
        self.assertEqual(console.run(code).output, "(b'', 'the failing one')\n")

    def test_the_debuggers_addresses_are_answered(self) -> None:
        self.page(self.failing)
        head = "Host: localhost\r\nAccept: text/markdown\r\nConnection: close\r\n\r\n"
        answer = self.ask(f"GET /__devserve__/last HTTP/1.1\r\n{head}")
        self.assertEqual(answer.status, 200)
        self.assertIn("LookupError", answer.text)
        self.assertEqual(self.ask(f"POST /__devserve__/eval HTTP/1.1\r\nContent-Length: 0\r\n{head}").status, 403)

    def test_what_does_not_fail_passes_through_untouched(self) -> None:
        seen: list[Any] = []

        async def view(scope: Any, receive: App, send: App) -> None:
            seen.extend(scope["headers"])
            await send({"type": "http.response.start", "status": 503, "headers": [(b"x-a", b"1")]})
            await send({"type": "http.response.body", "body": b"own ", "more_body": True})
            await send({"type": "http.response.body", "body": b"page"})

        self.wrapped(view)
        cookie = devserve._COOKIE_PREFIX + "5000=1"
        answer = self.ask(f"GET / HTTP/1.1\r\nHost: x\r\nCookie: a=1; {cookie}\r\nConnection: close\r\n\r\n")
        self.assertEqual((answer.status, answer.get("x-a"), answer.body), (503, "1", b"own page"))
        self.assertEqual([value for name, value in seen if name == b"cookie"], [b"a=1"])

    def test_a_frameworks_own_500_waits_for_the_exception(self) -> None:
        async def hands_over(scope: Any, receive: App, send: App) -> None:
            error = LookupError("the reason")
            await asgi_answer(send, devserve.hand_over(scope, error).encode(), 500)

        self.assertIn("the reason", self.page(fails_like_starlette).text)
        self.assertIn("the reason", self.page(hands_over).text)
        answer = self.page(is_unavailable)
        self.assertEqual((answer.status, answer.body), (503, b"own page"))

    def test_what_fails_when_it_has_begun_goes_on_to_the_server_and_has_an_address(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise LookupError("in the middle")

        with self.assertRaises(Cut):
            self.page(view)
        self.assertRegex(self.printed, r"GET /path failed: http://localhost.*/__devserve__/crash/")
        self.assertIn("asks for no PIN", self.printed)
        with self.assertRaises(Cut):
            self.page(view, path="/%1b%5d0;title%07%0a")
        self.assertIn("GET /\\x1b]0;title\\x07\\n failed: ", self.printed)
        eventually(lambda: "LookupError: in the middle" in self.log, "the server's traceback")

    def test_what_was_received_of_the_body_is_recorded_however_it_came_and_whenever_the_crash(self) -> None:
        async def view(scope: Any, receive: App, send: App) -> None:
            assert scope["type"] == "http"
            await receive()
            if scope["path"] == "/late":
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise LookupError("with a body")

        for body in ("Content-Length: 4\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"):
            self.wrapped(view)
            for path in ("/early", "/late"):
                with self.subTest(body=body, path=path):
                    try:
                        self.ask(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{body}")
                    except Cut:
                        pass
                    crash = self.debugged.debugger.crashes.all()[0]
                    self.assertEqual((crash.request.line(), crash.request.body), (f"POST {path}", b"body"))

    def test_a_request_cannot_be_sent_again(self) -> None:
        self.page(self.failing)
        debugger = self.debugged.debugger
        (crash,) = debugger.crashes.all()
        again = debugger.replay(crash.request, {})
        self.assertEqual((again["status"], again["crash"]), ("501 Not Implemented", ""))

    def test_under_a_debugger_it_only_passes_on(self) -> None:
        self.debugged = devserve.DebuggedASGI(self.failing, terminal=devserve.Terminal(io.StringIO()))
        self.serve(self.debugged, debugger=True, pin="off")
        answer = self.ask("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
        self.assertIn("LookupError", answer.text)
        self.assertEqual(self.log.count("LookupError: 0 bytes"), 1)
        self.assertEqual(self.debugged.debugger.crashes.all(), [])

    @needs("uvicorn")
    def test_under_uvicorn(self) -> None:
        self.write("main.py", """
            import devserve

            async def app(scope, receive, send):
                if scope["type"] == "lifespan":
                    while True:
                        await send({"type": (await receive())["type"] + ".complete"})
                divisor = len((await receive())["body"])
                1 / divisor

            app = devserve.DebuggedASGI(app, pin="off")
        """)  # fmt: skip
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        command = ["-m", "uvicorn", "main:app", "--port", str(port)]
        path = os.pathsep.join([str(SCRIPT.parent), str(self.folder)])
        served = Served(cwd=self.folder, script=command, port=False, env={"PYTHONPATH": path})
        self.addCleanup(served.stop)
        served.wait_for("Uvicorn running")
        answer = fetch(port, "/", Accept="text/html", Host="localhost")
        self.assertEqual(answer.status, 500)
        self.assertIn("ZeroDivisionError", answer.text)
        self.assertIn("divisor", fetch(port, "/__devserve__/last", Accept="text/markdown", Host="localhost").text)
        self.assertNotIn("Exception in ASGI application", served.log)


class AsgiLifespan(AsgiCase):
    """The application's startup and shutdown."""

    def test_startup_comes_before_and_shutdown_after_all_requests_and_each_request_gets_a_copy_of_the_state(
        self,
    ) -> None:
        told: list[str] = []
        inner = {"n": 1}

        async def app(scope: Any, receive: App, send: App) -> None:
            if scope["type"] == "lifespan":
                self.assertEqual(await receive(), {"type": "lifespan.startup"})
                scope["state"]["inner"] = inner
                told.append("up")
                await send({"type": "lifespan.startup.complete"})
                self.assertEqual(await receive(), {"type": "lifespan.shutdown"})
                told.append("down")
                await send({"type": "lifespan.shutdown.complete"})
            else:
                told.append(f"{sorted(scope['state'])} {scope['state']['inner'] is inner}")
                scope["state"]["own"] = 1
                await asgi_answer(send)

        self.serve(app)
        self.ask()
        self.ask()
        self.doCleanups()
        self.assertEqual(told, ["up", "['inner'] True", "['inner'] True", "down"])

    def test_an_application_without_a_lifespan_is_fine(self) -> None:
        async def raises(scope: Any, receive: App, send: App) -> None:
            assert scope["type"] == "http"
            await asgi_answer(send)

        async def returns(scope: Any, receive: App, send: App) -> None:
            if scope["type"] == "http":
                await asgi_answer(send)

        async def answers_all(scope: Any, receive: App, send: App) -> None:
            await receive()
            await asgi_answer(send)

        for app in (raises, returns, answers_all):
            with self.subTest(app.__name__):
                self.serve(app)
                self.assertEqual(self.ask().body, b"hello")
                self.assertEqual(self.lines(1)[0][:3], ("GET", "/", "200"))

    def test_a_startup_that_fails_is_raised(self) -> None:
        ended: list[str] = []

        async def raises(scope: Any, receive: App, send: App) -> None:
            await receive()
            raise LookupError("no database")

        async def says(scope: Any, receive: App, send: App) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})

        async def both(scope: Any, receive: App, send: App) -> None:
            await says(scope, receive, send)
            raise LookupError("no database")

        async def waits(scope: Any, receive: App, send: App) -> None:
            await says(scope, receive, send)
            try:
                await receive()  # as Quart does
            finally:
                ended.append("waits")

        for app, kind in ((raises, LookupError), (says, Exception), (both, LookupError), (waits, Exception)):
            with self.subTest(app.__name__), self.assertRaisesRegex(kind, "no database"):
                self.serve(app)
        self.assertEqual(ended, ["waits"])

    def test_tasks_of_the_application_are_cancelled_after_its_shutdown(self) -> None:
        import asyncio

        events: list[str] = []
        tasks: list[Any] = []

        async def work() -> None:
            try:
                await asyncio.sleep(DEADLINE)
            finally:
                events.append("cancelled")

        async def app(scope: Any, receive: App, send: App) -> None:
            if scope["type"] == "http":
                tasks.append(asyncio.ensure_future(work()))
                await asgi_answer(send)
                return
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            events.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})

        self.serve(app)
        self.ask()
        self.doCleanups()
        self.assertEqual(events, ["shutdown", "cancelled"])

    def test_two_threads_that_stop_it_cancel_each_other_without_a_warning(self) -> None:
        import asyncio

        async def app(scope: Any, receive: App, send: App) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            going_on.append(asyncio.Event())
            await going_on[0].wait()
            await send({"type": "lifespan.shutdown.complete"})

        async def counted() -> None:
            begun.append(1)
            await stop()

        going_on: list[Any] = []
        begun: list[int] = []
        bridge: Any = self.serve(app).app
        stop, bridge.lifespan.stop = bridge.lifespan.stop, counted
        threads = [threading.Thread(target=bridge.stop, args=(grace,)) for grace in (5.0, 0.0)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(begun) == 2 and going_on, "both wait for the shutdown")
        bridge.post(going_on[0].set)
        for thread in threads:
            thread.join(DEADLINE)
        self.assertNotIn("did not shut down", self.log)

    def test_a_shutdown_that_does_not_end_is_given_up(self) -> None:
        self.patch("_SHUTDOWN_SECONDS", 0.1)

        async def app(scope: Any, receive: App, send: App) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await receive()

        self.serve(app)
        self.doCleanups()
        self.assertIn("shutdown took over", self.log)


ASGI_HELLO = """
    import sys

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                sys.stdout.write(f"{message['type']} {VERSION}\\n")  # at once, else the log may come between two words
                sys.stdout.flush()
                await send({"type": message["type"] + ".complete"})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": VERSION.encode()})
"""


class AsgiProcess(Folder):
    """A devserve process with an ASGI application."""

    def served(self, *arguments: str, **options: Any) -> Served:
        served = Served(*arguments, cwd=self.folder, **options)
        self.addCleanup(served.stop)
        return served

    def save(self, version: str, text: str = ASGI_HELLO) -> None:
        self.write("hello.py", f"VERSION = {version!r}\n{textwrap.dedent(text)}")

    def test_a_wsgi_application_does_not_pay(self) -> None:
        names = "asyncio queue concurrent.futures"
        self.write("hello.py", f"""
            def app(environ, start_response):
                import sys
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [repr([name for name in {names.split()!r} if name in sys.modules]).encode()]
        """)  # fmt: skip
        self.assertEqual(self.served("hello", "--debug").get(), "[]")

    def test_the_application_runs_in_the_main_thread_and_is_shut_down_at_the_end(self) -> None:
        self.save("one", ASGI_HELLO + "    import threading\n    VERSION = threading.current_thread().name\n")
        served = self.served("hello")
        self.assertEqual(served.get(), "MainThread")
        self.assertEqual(served.stop(), 0, served.log)
        self.assertRegex(served.log, r"lifespan.startup MainThread\n[^$]*lifespan.shutdown MainThread\n")

    def test_a_reload_shuts_the_application_down_and_starts_the_new_one(self) -> None:
        self.save("one")
        served = self.served("hello", "--reload")
        self.assertEqual(served.get(), "one")
        self.save("two")
        served.wait_for("lifespan.startup two")
        self.assertEqual(served.get(), "two")
        self.assertLess(served.log.index("lifespan.shutdown one"), served.log.index("lifespan.startup two"))

    def test_a_startup_that_takes_long_is_told_with_its_place_in_the_application(self) -> None:
        waiting = "import asyncio, time\n\n\nasync def app(scope, receive, send):\n    await receive()\n    try: "
        start = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import devserve"
        script = self.write("impatient.py", f"{start}; devserve._IMPORT_PATIENCE = 0.2; sys.exit(devserve.main())")
        for line in ("await asyncio.Event().wait()", "time.sleep(600)"):
            with self.subTest(line):
                self.save("one")
                served = self.served("hello", "--reload", script=[str(script)])
                self.assertEqual(served.get(), "one")
                self.save("two", waiting + line + "\n    finally: print('cleaned up', flush=True)\n")
                served.wait_for(r"warning: still starting the application after .*hello\.py, line 7\n")
                self.assertRegex(served.ask().text, r"startup has not ended after .*hello\.py, line 7\n")
                self.save("three")
                eventually(lambda: served.ask().text == "three", "the mended application")
                self.assertNotIn("Traceback", served.log)
                self.assertNotIn("took over", served.log)
                self.assertEqual("cleaned up" in served.log, "await" in line, served.log)

    def test_a_startup_that_fails_ends_the_first_start_and_is_deferred_after_a_reload(self) -> None:
        failing = "async def app(scope, receive, send):\n    await receive()\n    raise LookupError('no database')\n"
        self.save("one", failing)
        served = self.served("hello", "--debug")
        self.assertEqual(served.process.wait(DEADLINE), 1)
        self.assertIn("LookupError: no database", served.log)
        self.save("one")
        served = self.served("hello", "--debug", "--pin", "off")
        self.assertEqual(served.get(), "one")
        self.save("two", failing)
        served.wait_for("LookupError: no database")
        answer = served.ask()
        self.assertEqual(answer.status, 500)
        self.assertIn("LookupError: no database", answer.text)
        self.save("three")
        eventually(lambda: "lifespan.startup three" in served.log, "the mended application")
        self.assertEqual(served.get(), "three")

    def test_an_application_that_blocks_the_loop_is_told_with_the_line_and_holds_up_neither_page_nor_reload(
        self,
    ) -> None:
        self.save("one", """
            import time

            async def app(scope, receive, send):
                assert scope["type"] == "http"
                if scope["path"] == "/block":
                    time.sleep(30)  # here
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": VERSION.encode()})
        """)  # fmt: skip
        served = self.served("hello", "--debug", "--pin", "off")
        with Client(served.port) as client:
            client.request("/block")
            served.wait_for(r"the event loop has been blocked for 1 s; it is at .*hello.py, line 8")
            self.assertIn("console", served.get("/__devserve__/console", Accept="text/html"))
            self.save("two")
            served.wait_for("reloaded in")
        self.assertEqual(served.get(), "two")


# =====================================================================================================================
# 12. File watcher, and 13. Restart
# =====================================================================================================================

EXECS = sys.platform != "win32"


class ReloaderWatching(Folder):
    """A watcher on real files in `self.folder`, which is the working directory; `self.calls` is what it said."""

    def setUp(self) -> None:
        super().setUp()
        before, path, modules = os.getcwd(), sys.path[:], set(sys.modules)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        self.calls: list[Any] = []
        self.warnings: list[str] = []
        self.watcher: Any = None
        self.addCleanup(lambda: [sys.modules.pop(name) for name in set(sys.modules) - modules])
        self.addCleanup(lambda: sys.path.__setitem__(slice(None), path))
        self.addCleanup(os.chdir, before)
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
            if self.watcher.ident:
                self.watcher.join(DEADLINE)

    def make(self, **options: Any) -> Any:
        """Make a watcher that counts how often it looks, and have it take note of imports."""
        options = {"warn": self.warnings.append, "since": time.time(), **options}
        self.watcher = devserve.Watcher(self.calls.append, self.calls.append, **options)
        self.looks = 0
        look = self.watcher._different

        def counted(paths: Any) -> Any:
            self.looks += 1
            return look(paths)

        self.watcher._different = counted
        self.watcher.record_imports()
        return self.watcher

    def start(self, *modules: str, seen: Iterable[str] = (), **options: Any) -> Any:
        """Start watching, import modules, and wait until they and the paths `seen` have been looked at."""
        settling = options.pop("settling", None)
        self.make(**options).start()
        importlib.invalidate_caches()  # a folder of the same name in another test's folder may have been as old
        for module in modules:
            __import__(module)
        self.watcher.import_ended()
        eventually(lambda: not self.watcher._importing, "a look at what was imported")
        if settling is not None:
            self.watcher.settling = settling
        self.wait_until_seen([path for path in (sys.modules[module].__file__ for module in modules) if path])
        self.wait_until_seen([str(self.folder / name) for name in seen])
        return self.watcher

    def wait_until_seen(self, paths: Iterable[str]) -> None:
        for path in paths:
            eventually(lambda: path in self.watcher._contents.seen, f"{path} is known")

    def let_it_look(self, times: int = 3) -> None:
        """Wait until it has begun to look so many times more."""
        end = self.looks + times
        eventually(lambda: self.looks >= end, "more looks")

    def said(self, count: int = 1) -> list[Any]:
        """Wait for so many calls; return them with paths relative to the folder."""
        eventually(lambda: len(self.calls) >= count, f"{count} calls")
        return [self.relative(call) for call in self.calls]

    def relative(self, call: Any) -> Any:
        return [self.name(path) for path in call] if isinstance(call, list) else call

    def name(self, path: str) -> str:
        return os.path.relpath(path, self.folder).replace(os.sep, "/")

    def is_silent_until(self, name: str = "barrier.txt") -> None:
        """Change a file that is watched and see that nothing else was reported before."""
        self.let_it_look()
        self.write(name, "changed")
        self.assertEqual(self.said(), [[name]])

    def replace(self, name: str, text: str) -> pathlib.Path:
        """Save as careful editors do: keep the old file, write another, rename it."""
        path = self.folder / name
        os.replace(path, f"{path}~")
        os.replace(self.write(f"{name}.tmp", text), path)
        return path

    def write_with_times(self, name: str, text: str, status: os.stat_result) -> None:
        os.utime(self.write(name, text), ns=(status.st_atime_ns, status.st_mtime_ns))

    def zip(self, name: str, module: str, text: str) -> None:
        with zipfile.ZipFile(self.folder / name, "w") as file:
            file.writestr(module, text)

    def link(self, target: str, name: str) -> None:
        os.symlink(target, self.folder / "new link")
        os.replace(self.folder / "new link", self.folder / name)


class Save(NamedTuple):
    """Files, what is imported of them, what happens then, and what is said; `barrier.txt` is watched always."""

    files: dict[str, str]
    imports: str
    then: Callable[[ReloaderWatching], object]
    said: list[list[str]]  # empty: nothing, until the barrier changes
    extra: str = ""
    exclude: str = ""


def in_order(*steps: Callable[[ReloaderWatching], object]) -> Callable[[ReloaderWatching], object]:
    return lambda case: [step(case) for step in steps]


def later(case: ReloaderWatching) -> None:
    __import__("later_a")
    case.wait_until_seen([str(case.folder / "later_a.py")])
    case.write("later_a.py", "x = 2")


SAVES = {
    "an_edited_module_is_a_change": Save(
        {"first_a.py": "x = 1"}, "first_a", lambda case: case.write("first_a.py", "x = 2"), [["first_a.py"]]
    ),
    "an_edit_and_a_file_that_appears_with_it_are_one_change": Save(  # as when a branch is switched
        {"with_a.py": "x = 1", "texts/a.txt": "1"},
        "with_a",
        lambda case: [case.write("with_a.py", "x = 2"), case.write("texts/b.txt", "2")],
        [["texts/b.txt", "with_a.py"]],
        extra="texts",
    ),
    "an_older_file_is_a_change": Save(
        {"older_a.py": "x = 1"},
        "older_a",
        in_order(
            lambda case: os.utime(case.write("other.tmp", "x = 2"), (1e9, 1e9)),
            lambda case: os.replace("other.tmp", "older_a.py"),
        ),
        [["older_a.py"]],
    ),
    "a_file_of_the_same_size_and_times_is_a_change": Save(  # as `cp -p` leaves it
        {"timed_a.py": "x = 1"},
        "timed_a",
        lambda case: case.write_with_times("timed_a.py", "x = 2", os.stat("timed_a.py")),
        [["timed_a.py"]],
    ),
    "another_mode_is_no_change": Save({"mode_a.py": "x = 1"}, "mode_a", lambda case: os.chmod("mode_a.py", 0o600), []),
    "a_further_link_to_an_installed_file_is_no_change": Save(
        {
            "lib/site-packages/installed_b.py": "x = 1",
            "uses_b.py": "import sys\nsys.path.insert(0, 'lib/site-packages')\nimport installed_b",
        },
        "uses_b",
        lambda case: os.link("lib/site-packages/installed_b.py", "lib/site-packages/elsewhere"),
        [],
    ),
    "a_file_saved_by_renaming_is_a_change": Save(
        {"renamed_a.py": "x = 1"}, "renamed_a", lambda case: case.replace("renamed_a.py", "x = 2"), [["renamed_a.py"]]
    ),
    "a_deleted_module_is_a_change": Save(
        {"deleted_a.py": "x = 1"}, "deleted_a", lambda case: os.unlink("deleted_a.py"), [["deleted_a.py"]]
    ),
    "the_init_of_a_package_is_watched": Save(
        {"pack_a/__init__.py": "x = 1"},
        "pack_a",
        lambda case: case.write("pack_a/__init__.py", "x = 2"),
        [["pack_a/__init__.py"]],
    ),
    "a_module_of_a_namespace_package_is_watched": Save(
        {"space_a/inner.py": "x = 1"},
        "space_a.inner",
        lambda case: case.write("space_a/inner.py", "x = 2"),
        [["space_a/inner.py"]],
    ),
    "names_may_hold_any_letter": Save(
        {"größe.py": "x = 1"}, "größe", lambda case: case.write("größe.py", "x = 2"), [["größe.py"]]
    ),
    "names_may_hold_spaces": Save(
        {"two words.txt": "1"}, "", lambda case: case.write("two words.txt", "2"), [["two words.txt"]], "two words.txt"
    ),
    "a_module_that_is_imported_later_is_watched": Save({"later_a.py": "x = 1"}, "", later, [["later_a.py"]]),
    "a_file_is_watched_that_was_executed_without_import_in_another_working_directory": Save(
        {
            "conf/conf_a.py": "x = 1",
            "executes_a.py": "import os\nos.chdir('conf')\nwith open('conf_a.py') as file:\n"
            "    exec(compile(file.read(), 'conf_a.py', 'exec'))\nos.chdir('..')",
        },
        "executes_a",
        lambda case: case.write("conf/conf_a.py", "x = 2"),
        [["conf/conf_a.py"]],
    ),
    "a_module_of_an_installed_package_is_watched": Save(
        {
            "site-packages/installed_a.py": "x = 1",
            "uses_a.py": "import sys\nsys.path.insert(0, 'site-packages')\nimport installed_a",
        },
        "uses_a",
        lambda case: case.write("site-packages/installed_a.py", "x = 2"),
        [["site-packages/installed_a.py"]],
    ),
    "the_same_bytes_are_no_change": Save(
        {"same_a.py": "x = 1"},
        "same_a",
        in_order(
            lambda case: case.write("same_a.py", "x = 1"),
            lambda case: case.let_it_look(),
            lambda case: os.utime("same_a.py", (1, 1)),
        ),
        [],
    ),
    "a_new_file_that_nobody_waits_for_is_no_change": Save(
        {"beside_a.py": "x = 1"}, "beside_a", lambda case: case.write("beside_b.py", "x = 1"), []
    ),
    "a_module_that_was_looked_for_in_vain_is_a_change": Save(
        {"wants_a.py": "try:\n    import local_settings_a\nexcept ImportError:\n    pass"},
        "wants_a",
        lambda case: case.write("local_settings_a.py", "y = 1"),
        [["local_settings_a.py"]],
    ),
    "a_package_that_was_looked_for_in_vain_is_a_change": Save(
        {"wants_b.py": "import importlib.util\nx = importlib.util.find_spec('local_settings_b')"},
        "wants_b",
        lambda case: case.write("local_settings_b/__init__.py", "y = 1"),
        [["local_settings_b/__init__.py"]],
    ),
    "a_namespace_package_that_was_looked_for_in_vain_is_a_change": Save(
        {"wants_d.py": "try:\n    import space_b.inner\nexcept ImportError:\n    pass"},
        "wants_d",
        lambda case: case.write("space_b/inner.py", "y = 1"),
        [["space_b/inner.py"]],
    ),
    "an_init_in_a_namespace_package_is_a_change": Save(
        {"space_c/inner.py": "x = 1"},
        "space_c.inner",
        lambda case: case.write("space_c/__init__.py", "y = 1"),
        [["space_c/__init__.py"]],
    ),
    "a_submodule_that_was_looked_for_in_vain_is_a_change": Save(
        {"pack_c/__init__.py": "try:\n    from . import admin\nexcept ImportError:\n    pass"},
        "pack_c",
        lambda case: case.write("pack_c/admin.py", "y = 1"),
        [["pack_c/admin.py"]],
    ),
    "a_module_that_the_application_writes_and_imports_is_no_change": Save(
        {"engine_a.py": "try:\n    import made_a\nexcept ImportError:\n    pass"},
        "engine_a",
        in_order(
            lambda case: case.write("made_a.py", "x = 1"),
            lambda case: importlib.invalidate_caches(),
            lambda case: __import__("made_a"),
        ),
        [],
    ),
    "a_file_that_was_executed_without_an_import_is_watched": Save(
        {
            "config.cfg": "x = 1",
            "executes_a.py": "with open('config.cfg') as f:\n    exec(compile(f.read(), 'config.cfg', 'exec'))",
        },
        "executes_a",
        lambda case: case.write("config.cfg", "x = 2"),
        [["config.cfg"]],
    ),
    "a_file_that_a_loader_executed_without_an_import_is_watched": Save(
        {
            "wiki/config.py": "x = 1",
            "executes_b.py": """
                import importlib.util
                spec = importlib.util.spec_from_file_location("config", "wiki/config.py")
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
            """,
        },
        "executes_b",
        lambda case: case.write("wiki/config.py", "x = 2"),
        [["wiki/config.py"]],
    ),
    "a_file_that_the_application_loads_again_by_itself_is_no_change": Save(
        {"again_a.py": "x = 1"},
        "again_a",
        in_order(
            lambda case: case.write("again_a.py", "x = 2"), lambda case: importlib.reload(sys.modules["again_a"])
        ),
        [],
    ),
    "an_edit_between_its_import_and_the_next_look_is_a_change": Save(
        {"during_a.py": "import pathlib\npathlib.Path(__file__).write_text('x = 3')"},
        "during_a",
        lambda case: None,
        [["during_a.py"]],
    ),
    "a_declared_encoding_is_honoured": Save(
        {"latin_a.py": "x = 1"},
        "latin_a",
        lambda case: (case.folder / "latin_a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1")),
        [["latin_a.py"]],
    ),
}


class ReloaderChanges(ReloaderWatching):
    def case(self, case: Save) -> None:
        for name, text in case.files.items():
            self.write(name, text)
        self.write("barrier.txt", "")
        os.makedirs(self.folder / "empty")
        extra = ["barrier.txt", *case.extra.split(",")] if case.extra else ["barrier.txt"]
        seen = [name for name in case.files if name.endswith((".txt", ".cfg"))]
        self.start(*case.imports.split(), extra_files=extra, seen=["barrier.txt", *seen])
        self.let_it_look()
        case.then(self)
        if case.said:
            self.assertEqual(self.said(), case.said)
        else:
            self.is_silent_until()

    def test_requests_do_not_wait_while_an_installed_package_changes(self) -> None:
        settled: list[bool] = []
        self.write("site-packages/installed_b.py", "x = 1")
        self.write(
            "uses_b.py", "import os, sys\nsys.path.insert(0, os.path.abspath('site-packages'))\nimport installed_b"
        )
        with mock.patch.object(devserve, "_PERIOD", 0.01):
            self.start("uses_b", settling=settled.append)
            self.write("site-packages/installed_b.py", "x = 2")
            self.assertEqual(self.said(), [["site-packages/installed_b.py"]])
        self.assertEqual(settled, [])

    def test_what_the_application_imports_while_a_save_settles_is_no_change(self) -> None:
        self.write("barrier.txt", "")
        self.write("wants_c.py", "try:\n    import made_b\nexcept ImportError:\n    pass")

        def load(begins: bool) -> None:
            importlib.invalidate_caches()
            __import__("made_b")

        self.start("wants_c", settling=load, extra_files=["barrier.txt"], seen=["barrier.txt"])
        self.write("made_b.py", "x = 1")
        eventually(lambda: "made_b" in sys.modules, "the import")
        self.is_silent_until()

    def test_a_file_that_is_gone_for_a_moment_is_no_change(self) -> None:
        self.write("barrier.txt", "")
        path = self.write("moment_a.py", "x = 1")
        settled: list[bool] = []
        with mock.patch.multiple(devserve, _SETTLE_DOUBTFUL=1000.0, _SETTLE_LIMIT=1000.0):
            self.start("moment_a", settling=settled.append, extra_files=["barrier.txt"], seen=["barrier.txt"])
            path.unlink()
            eventually(lambda: settled, "its absence is seen")
            self.let_it_look(5)
            self.write("moment_a.py", "x = 1")
            eventually(lambda: settled == [True, False], "it settles")
        self.is_silent_until()

    def test_a_zip_file_on_the_path_is_watched(self) -> None:
        self.zip("bundle.zip", "zipped_a.py", "x = 1")
        sys.path.insert(0, str(self.folder / "bundle.zip"))
        self.start()
        __import__("zipped_a")
        self.wait_until_seen([str(self.folder / "bundle.zip")])
        self.zip("bundle.zip", "zipped_a.py", "x = 22")
        self.assertEqual(self.said(), [["bundle.zip"]])

    @unittest.skipUnless(EXECS, "needs symbolic links")
    def test_a_link_that_points_elsewhere_is_a_change(self) -> None:
        self.write("..one/linked_a.py", "x = 1")
        self.write("..two/linked_a.py", "x = 2")
        os.symlink("..one", "..data")
        os.symlink("..data/linked_a.py", "linked_a.py")
        self.start("linked_a")
        self.link("..two", "..data")
        self.assertEqual(self.said(), [["linked_a.py"]])

    def test_many_writes_in_a_row_are_one_change(self) -> None:
        self.write("row_a.py", "x = 1")
        self.write("row_b.py", "x = 1")
        self.start("row_a", "row_b")
        numbers = iter(range(10, 30))
        sleep = devserve.native_sleep

        def write_meanwhile(seconds: float) -> None:
            for number in itertools.islice(numbers, int(seconds == devserve._SETTLE)):
                self.write("row_a.py", f"x = {number}")
                self.write("row_b.py", f"x = {number}")
            sleep(seconds)

        just_now = mock.Mock(return_value=0.0)  # the first write is seen at once
        with mock.patch.multiple(devserve, native_sleep=write_meanwhile, _SETTLE_LIMIT=DEADLINE, _age=just_now):
            self.write("row_a.py", "x = 2")
            self.assertEqual(self.said(), [["row_a.py", "row_b.py"]])
        self.assertEqual(list(numbers), [])

    def test_a_file_written_without_end_is_reported_all_the_same(self) -> None:
        self.write("endless_a.py", "x = 1")
        self.start("endless_a")
        end = time.monotonic() + DEADLINE
        number = 0
        while not self.calls and time.monotonic() < end:
            number += 1
            self.write("endless_a.py", f"x = {number}")
        self.assertTrue(self.calls)

    def test_what_was_edited_before_the_watcher_started_is_a_change(self) -> None:
        self.write("early_a.py", "x = 1")
        __import__("early_a")
        since = time.time()
        eventually(lambda: os.stat(self.write("early_a.py", "x = 2")).st_ctime > since, "the kernel's next tick")
        self.start(since=since)
        self.assertEqual(self.said(), [["early_a.py"]])

    def test_what_the_watcher_itself_reads_is_not_taken_for_executed(self) -> None:
        self.write("early_b.py", "x = 1")
        __import__("early_b")
        since = time.time()
        eventually(lambda: os.stat(self.write("early_b.py", "x = 2")).st_ctime > since, "the kernel's next tick")
        self.make(since=since).start()
        self.assertEqual(self.said(), [["early_b.py"]])  # it has read the file, and the import goes on

    def test_a_time_in_the_future_is_no_change(self) -> None:
        path = self.write("future_a.py", "x = 1")
        self.write("barrier.txt", "")
        os.utime(path, (time.time() + 86400, time.time() + 86400))
        self.start("future_a", extra_files=["barrier.txt"], seen=["barrier.txt"])
        self.is_silent_until()

    def test_an_edit_while_its_content_is_read_is_a_change(self) -> None:
        path = self.write("raced_a.py", "x = 1")
        digest = devserve._digest

        def edited_first(name: str) -> Any:
            if name == str(path) and "x = 1" in path.read_text():
                self.write("raced_a.py", "x = 2")
            return digest(name)

        with mock.patch.object(devserve, "_digest", edited_first):
            self.make().start()
            __import__("raced_a")
            self.watcher.import_ended()
            self.assertEqual(self.said(), [["raced_a.py"]])

    def test_a_reload_by_hand_gives_its_reason(self) -> None:
        self.start().reload_now("SIGHUP")
        eventually(lambda: self.calls, "a call")
        self.assertEqual(self.calls, [["SIGHUP"]])

    def test_a_stopped_watcher_ends_and_leaves_the_import_system_as_it_was(self) -> None:
        loader = importlib.machinery.SourceFileLoader

        def places() -> list[Any]:
            return [open, io.open, loader.path_stats, compile, sys.meta_path[:]]

        before = places()
        self.start()
        self.assertEqual(places()[:2], before[:2], "the import has ended")
        for now, then in zip(places()[2:], before[2:]):
            self.assertNotEqual(now, then)
        self.stop()
        self.assertFalse(self.watcher.is_alive())
        self.assertEqual(places(), before)


for words, saved in SAVES.items():
    setattr(ReloaderChanges, f"test_{words}", functools.partialmethod(ReloaderChanges.case, saved))


class ReloaderImports(ReloaderWatching):
    """What is loaded while the watcher takes note of it."""

    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch.object(sys, "dont_write_bytecode", False)
        patch.start()
        self.addCleanup(patch.stop)

    def cached(self, name: str) -> pathlib.Path:
        return pathlib.Path(importlib.util.cache_from_source(str(self.folder / name)))

    def test_bytecode_of_a_young_source_is_neither_read_nor_written(self) -> None:
        path = self.write("young_a.py", "x = 'A'")
        py_compile.compile(str(path), doraise=True)
        state = os.stat(path)
        path.write_text("x = 'B'")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        stale = self.cached("young_a.py").read_bytes()
        self.write("young_b.py", "x = 1")
        os.utime(self.write("young_e.py", "x = 1"), (1e9, 1e9))  # as `cp -p` and `rsync -a` bring an older file
        self.make()
        self.assertEqual(__import__("young_a").x, "B")
        self.assertEqual(self.cached("young_a.py").read_bytes(), stale)
        for name in ("young_b", "young_e"):
            __import__(name)
            self.assertFalse(self.cached(f"{name}.py").exists(), name)

    def test_whoever_compiles_a_young_source_himself_gets_its_bytecode(self) -> None:
        path = self.write("young_d.py", "x = 1")  # as Chameleon does with each template
        self.make()
        self.assertEqual(py_compile.compile(str(path), doraise=True), str(self.cached("young_d.py")))

    def test_bytecode_of_an_older_source_is_written_and_read(self) -> None:
        os.utime(self.write("aged_a.py", "x = 1"), (1e9, 1e9))
        self.make()
        with mock.patch.object(devserve, "_YOUNG", 0.0):  # nobody can set the ctime back
            __import__("aged_a")
        self.assertTrue(self.cached("aged_a.py").exists())

    def test_a_reload_leaves_no_bytecode_of_what_was_edited(self) -> None:
        names = ("changed_a.py", "aged_b.py", "young_c.py", "young_f.py")
        paths = [self.write(name, "x = 1") for name in names]
        for path in paths[:2]:
            os.utime(path, (1e9, 1e9))
        aged = os.stat(paths[1]).st_ctime

        def is_later() -> bool:  # nobody can set the ctime back
            paths[2].write_text("x = 1")
            paths[3].write_text("x = 1")
            return os.stat(paths[3]).st_mtime > aged + 0.1

        eventually(is_later, "younger files")
        os.utime(paths[3], (1e9, 1e9))
        self.cached("aged_b.py").parent.mkdir(exist_ok=True)
        for path in paths:
            py_compile.compile(str(path), doraise=True)
            __import__(path.stem)  # as code that calls `run` has done before
        self.start(since=aged + devserve._YOUNG + 0.05, seen=names)  # the edits came before
        self.write("changed_a.py", "x = 2")
        self.assertEqual(self.said(), [["changed_a.py"]])
        self.assertEqual([self.cached(name).exists() for name in names], [False, True, False, not EXECS])

    def test_compile_does_what_it_does_otherwise(self) -> None:
        self.make()
        names: dict[str, Any] = {}
        code = "from __future__ import annotations\ncode = compile('def f(x: int): 0', '<made>', 'exec')"
        exec(compile(code, "<maker>", "exec"), names)
        exec(names["code"], names)
        self.assertEqual(names["f"].__annotations__, {"x": "int"})
        names = {}
        exec(compile("def f(x: int): 0", filename="<made>", mode="exec", optimize=0), names)
        self.assertEqual(names["f"].__annotations__, {"x": int})
        holder = type("Holder", (), {"compile": compile, "open": open})()
        self.assertEqual(eval(holder.compile("6 * 7", "<made>", "eval")), 42, "it does not become a method")
        holder.open(__file__).close()
        for arguments in ((), ("x",), ("x", "y", "z"), ("x =", "f", "exec"), ("x", 3, "exec")):
            with self.assertRaises((TypeError, ValueError, SyntaxError)):
                compile(*arguments)

    def test_what_is_loaded_is_compared_with_the_state_in_which_it_was_loaded(self) -> None:
        """Whatever falls between a load and the next look, and however often."""
        self.write("barrier.txt", "")
        self.write("before_a.py", "x = 1")
        watcher = self.make(extra_files=["barrier.txt"])
        self.write("before_a.py", "x = 2")  # which the import then loads
        __import__("before_a")
        watcher.import_ended()
        watcher.start()
        self.wait_until_seen([str(self.folder / "barrier.txt")])
        self.is_silent_until()

    def test_what_was_looked_for_in_vain_costs_a_look_at_its_folder_alone(self) -> None:
        self.write("wants_e.py", "try:\n    import never_e\nexcept ImportError:\n    pass")
        self.start("wants_e")
        eventually(lambda: "never_e" in self.watcher.files.awaited.get(str(self.folder), ()), "it is waited for")
        self.assertEqual([path for path in self.watcher.files.own if "never_e" in path], [])
        self.assertNotIn(str(self.folder / "never_e"), self.watcher.files.trees)

    def import_and_tell(self, module: str) -> list[Any]:
        """Import a module between two rounds; return the list of what is said from then on, requests held included."""
        told: list[Any] = []
        patched = mock.patch.object(devserve, "_INTERVAL", 1000.0)
        patched.start()
        self.addCleanup(patched.stop)
        self.make(settling=told.append).start()
        eventually(lambda: self.looks, "the only round")
        self.watcher.changed = lambda paths: told.append(self.relative(paths))
        importlib.invalidate_caches()
        __import__(module)
        return told

    def test_what_changes_during_an_import_is_a_change_before_a_request_is_answered(self) -> None:
        self.write("during_a.py", "x = 1")
        told = self.import_and_tell("during_a")
        self.write("during_a.py", "x = 2")
        self.watcher.import_ended()
        eventually(lambda: told.count(False) == 2, "requests go on")
        self.assertEqual([word for word in told if word is not True], [["during_a.py"], False, False])

    def test_a_module_that_was_imported_while_a_save_had_emptied_it_is_awaited(self) -> None:
        self.write("emptied_a.py", "")
        with mock.patch.multiple(devserve, _SETTLE_DOUBTFUL=1000.0, _SETTLE_LIMIT=1000.0):
            told = self.import_and_tell("emptied_a")
            self.watcher.import_ended()
            eventually(lambda: len(told) == 2, "requests are held")
            self.write("emptied_a.py", "x = 2")
            eventually(lambda: told.count(False) == 2, "requests go on")
        self.assertEqual(told, [True, True, ["emptied_a.py"], False, False])


class ReloaderMemory(ReloaderWatching):
    """What one process tells the next."""

    def restart(self, **options: Any) -> Any:
        """Replace the watcher, as a reload does, by one that is told what the first one remembers."""
        memory = marshal.loads(marshal.dumps(self.watcher.remember()))
        self.stop()
        self.calls.clear()
        return self.make(memory=memory, **options)

    def test_what_is_removed_before_the_first_look_is_a_change(self) -> None:
        self.write(".env", "A=1")
        self.write("conf/a.txt", "1")
        self.write("barrier.txt", "")
        options: dict[str, Any] = {"extra_files": ["conf"], "also": [str(self.folder / ".env")]}
        self.start(seen=["conf/a.txt", ".env"], **options)
        watcher = self.restart(**options)
        os.unlink(".env")
        shutil.rmtree("conf")
        watcher.start()
        eventually(lambda: self.calls, "a change")
        self.assertEqual(
            sorted(self.name(path) for call in self.calls for path in call), [".env", "conf", "conf/a.txt"]
        )

    def test_what_is_edited_before_the_first_look_is_a_change(self) -> None:
        self.write("a.txt", "1")
        self.start(extra_files=["a.txt"], seen=["a.txt"])
        watcher = self.restart(extra_files=["a.txt"])
        self.write("a.txt", "2")
        watcher.files.since = time.time() + 100  # it cannot tell by that
        watcher.start()
        self.assertEqual(self.said(), [["a.txt"]])

    def test_what_is_edited_after_the_last_look_is_a_change_for_the_next_process(self) -> None:
        self.write("a.txt", "1")
        self.start(extra_files=["a.txt"], seen=["a.txt"])
        self.stop()
        self.write("a.txt", "2")
        watcher = self.restart(extra_files=["a.txt"])
        watcher.files.since = time.time() + 100  # it cannot tell by that
        watcher.start()
        self.assertEqual(self.said(), [["a.txt"]])

    def test_what_a_save_removed_is_waited_for(self) -> None:
        """As of Flask's `from_pyfile("local.cfg", silent=True)`, which does without the file as long as it is gone."""
        self.write("local.cfg", "A = 1")
        self.start()
        self.watcher.files.recorder.loaded.append(
            (str(self.folder / "local.cfg"), devserve._state("local.cfg"), False)
        )
        self.wait_until_seen([str(self.folder / "local.cfg")])
        os.unlink("local.cfg")
        self.assertEqual(self.said(), [["local.cfg"]])
        for _ in range(2):  # for more than one reload
            watcher = self.restart()
        watcher.import_ended()
        watcher.start()
        self.let_it_look()
        self.write("local.cfg", "A = 2")
        self.assertEqual(self.said(), [["local.cfg"]])
        self.restart().start()  # which has not loaded it again
        self.let_it_look()
        self.assertEqual(self.calls, [])

    def test_what_comes_back_before_it_is_executed_is_no_change(self) -> None:
        """As of a file that the application writes anew when it is missing."""
        self.write("made.cfg", "A = 1")
        path = str(self.folder / "made.cfg")
        self.start(extra_files=["made.cfg"], seen=["made.cfg"])
        os.unlink("made.cfg")
        self.said()
        watcher = self.restart(extra_files=["made.cfg"])
        self.write("made.cfg", "A = 2")
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), {})
        watcher.import_ended()
        watcher.start()
        self.wait_until_seen([path])
        self.let_it_look()
        self.assertEqual(self.calls, [])
        self.write("made.cfg", "A = 3")
        self.assertEqual(self.said(), [["made.cfg"]])

    def test_what_is_no_longer_asked_for_is_forgotten(self) -> None:
        self.write("a.txt", "1")
        self.write("barrier.txt", "")
        self.start(extra_files=["a.txt"], seen=["a.txt"])
        watcher = self.restart(extra_files=["barrier.txt"])
        watcher.import_ended()
        watcher.start()
        self.wait_until_seen([str(self.folder / "barrier.txt")])
        self.write("a.txt", "2")
        self.is_silent_until()

    def test_the_bytes_that_the_process_before_knew_are_no_change(self) -> None:
        """As of a module that the application writes at each import, after having loaded it."""
        self.write("barrier.txt", "")
        self.write("writer_a.py", "x = 1")
        self.start("writer_a")
        self.write("writer_a.py", "x = 2")
        self.said()
        watcher = self.restart(extra_files=["barrier.txt"])
        del sys.modules["writer_a"]
        __import__("writer_a")
        self.write("writer_a.py", "x = 2")
        watcher.start()
        self.wait_until_seen([])
        eventually(lambda: str(self.folder / "writer_a.py") in watcher.files.states, "the module is known")
        self.let_it_look()
        watcher.import_ended()
        self.wait_until_seen([str(self.folder / "barrier.txt")])
        self.is_silent_until()

    def test_a_file_that_changes_at_each_import_is_left_out_after_a_while_and_named_once(self) -> None:
        self.write("writer_b.py", "x = 0")
        path = str(self.folder / "writer_b.py")
        self.start()
        reloads = 0
        for number in range(1, devserve._REPEATED + 3):
            watcher = self.restart()
            sys.modules.pop("writer_b", None)
            importlib.invalidate_caches()
            __import__("writer_b")
            self.write("writer_b.py", f"x = {number}")
            watcher.start()
            eventually(lambda: watcher.files.states.get(path) == devserve._state(path), "the change is seen")
            self.let_it_look()
            watcher.import_ended()
            eventually(lambda: not watcher._importing, "a look at what was imported")
            reloads += len(self.calls)
        self.assertEqual(reloads, devserve._REPEATED - 1)
        self.assertEqual(len(self.warnings), 1)
        self.assertIn("writer_b.py is written again and again", self.warnings[0])
        with mock.patch.object(devserve, "_HEELS", 0.0):  # it has rested long enough
            self.write("writer_b.py", "x = 'by hand'")
            self.assertEqual(self.said(), [["writer_b.py"]])

    def test_a_log_in_a_watched_folder_does_not_reload_without_end(self) -> None:
        self.write("logs/a.log", "")
        path = str(self.folder / "logs/a.log")
        self.start(extra_files=["logs"], seen=["logs/a.log"])
        with mock.patch.object(devserve, "_HEELS", 1000.0):
            for number in range(devserve._REPEATED + 5):
                self.write("logs/a.log", f"line {number}")
                eventually(lambda: self.watcher.files.states[path] == devserve._state(path), "the change is seen")
        self.assertEqual(len(self.calls), devserve._REPEATED - 1)
        self.assertEqual(len(self.warnings), 1)

    def test_whoever_saves_very_often_is_heeded_each_time(self) -> None:
        self.write("often_a.py", "x = 0")
        self.write("often.txt", "0")
        self.start("often_a", extra_files=["often.txt"], seen=["often.txt"])
        for name, seconds in (("often_a.py", 1000.0), ("often.txt", 0.0)):
            with mock.patch.object(devserve, "_HEELS", seconds), self.subTest(name):
                for number in range(1, devserve._REPEATED + 3):
                    del self.calls[:]
                    self.write(name, f"x = {number}")
                    self.assertEqual(self.said(), [[name]])

    def test_whoever_saves_a_module_and_data_in_turn_is_heeded_each_time(self) -> None:
        self.write("turn_a.py", "x = 0")
        self.write("turn.txt", "0")
        self.start("turn_a", extra_files=["turn.txt"], seen=["turn.txt"])
        with mock.patch.object(devserve, "_HEELS", 1000.0):
            for number in range(1, devserve._REPEATED + 3):
                for name in ("turn_a.py", "turn.txt"):
                    del self.calls[:]
                    self.replace(name, f"x = {number}")  # at once, however busy the machine is
                    self.assertEqual(self.said(), [[name]])

    def test_a_log_that_never_rests_has_no_file_loaded_that_is_being_saved(self) -> None:
        self.write("logs/c.log", "")
        self.write("saved_a.py", "x = 1")
        self.start("saved_a", extra_files=["logs"], seen=["logs/c.log"])
        numbers, sleep = itertools.count(10), devserve.native_sleep

        def write_meanwhile(seconds: float) -> None:
            if seconds == devserve._SETTLE and not self.calls:
                self.write("logs/c.log", f"line {next(numbers)}")
                self.write("saved_a.py", "")
            sleep(seconds)

        with mock.patch.multiple(devserve, native_sleep=write_meanwhile, _SETTLE_LIMIT=0.1, _SETTLE_DOUBTFUL=DEADLINE):
            self.write("logs/c.log", "line 1")
            self.assertEqual(self.said(), [["logs/c.log"]])
            self.write("saved_a.py", "x = 2")
            eventually(lambda: any("saved_a.py" in self.relative(call) for call in self.calls), "it is saved")

    def test_a_log_that_never_rests_holds_no_request_for_long(self) -> None:
        settled: list[bool] = []
        self.write("logs/b.log", "")
        path, state = self.folder / "logs/b.log", devserve._state

        def state_in_between(name: str) -> Any:
            if name == str(path):
                with path.open("a", encoding="utf-8") as log:
                    print("a line", file=log)
            return state(name)

        self.start(extra_files=["logs"], seen=["logs/b.log"], settling=settled.append)
        with mock.patch.multiple(devserve, _HEELS=1000.0, _SETTLE_LIMIT=0.1, _state=state_in_between):
            self.write("logs/b.log", "the first line")
            eventually(lambda: self.warnings and not settled[-1], "it is left out")
            del settled[:]
            self.let_it_look(5)
            self.assertEqual(settled, [])
        self.assertEqual(len(self.calls), devserve._REPEATED // devserve._RESTLESS - 1)


class ReloaderBrokenFiles(ReloaderWatching):
    def test_a_file_that_does_not_compile_is_told_and_nothing_reloads(self) -> None:
        self.write("broken_a.py", "x = 1")
        self.start("broken_a")
        self.write("broken_a.py", "x = (")
        (error,) = self.said()
        self.assertIsInstance(error, SyntaxError)
        self.assertEqual(error.filename, str(self.folder / "broken_a.py"))

    def test_the_original_bytes_mend_a_broken_file(self) -> None:
        self.write("broken_b.py", "x = 1")
        self.start("broken_b")
        self.write("broken_b.py", "x = (")
        self.said()
        self.write("broken_b.py", "x = 1")
        self.assertEqual(self.said(2)[1], ["broken_b.py"])

    def test_another_change_waits_until_the_broken_file_is_mended(self) -> None:
        self.write("broken_c.py", "x = 1")
        self.write("broken_d.py", "x = 1")
        self.start("broken_c", "broken_d")
        self.write("broken_c.py", "x = (")
        self.said()
        self.write("broken_d.py", "x = 2")
        self.assertIsInstance(self.said(2)[1], SyntaxError)
        self.write("broken_c.py", "x = 3")
        self.assertEqual(self.said(3)[2], ["broken_c.py", "broken_d.py"])

    def test_a_file_that_is_being_saved_again_while_it_is_compiled_is_not_broken(self) -> None:
        path = self.write("broken_g.py", "x = 1")
        self.start("broken_g")
        compiled = devserve._syntax_error

        def compiled_half(name: str) -> Optional[SyntaxError]:
            text = path.read_text()
            path.write_text("x = (")
            error = compiled(name)
            path.write_text(text + "0")
            return error

        first = iter([compiled_half])
        with mock.patch.object(devserve, "_syntax_error", lambda name: next(first, compiled)(name)):
            self.write("broken_g.py", "x = 2")
            self.assertEqual(self.said(), [["broken_g.py"]])

    def test_bytes_that_are_no_text_are_a_syntax_error(self) -> None:
        self.write("broken_e.py", "x = 1")
        self.start("broken_e")
        for number, data in enumerate((b"x = '\xff'", b"x = 1\0", b"# coding: no-such-codec\n")):
            (self.folder / "broken_e.py").write_bytes(data)
            self.assertIsInstance(self.said(number + 1)[number], SyntaxError, data)

    def test_a_broken_file_is_not_taken_for_loaded(self) -> None:
        """Compiling it to see whether it is broken is no execution."""
        self.write("broken_f.py", "x = 1")
        self.make().start()
        __import__("broken_f")
        eventually(lambda: str(self.folder / "broken_f.py") in self.watcher.files.states, "it is known")
        self.write("broken_f.py", "x = (")
        self.said()
        self.write("broken_f.py", "x = 2")
        self.assertEqual(self.said(2)[1], ["broken_f.py"])


class ReloaderExtraFiles(ReloaderWatching):
    def test_a_file_that_does_not_exist_yet_is_watched(self) -> None:
        watcher = self.start(extra_files=["later.ini"], also=[str(self.folder / ".env")])
        eventually(lambda: str(self.folder / "later.ini") in watcher.files.states, "the place is known")
        self.write("later.ini", "a = 1")
        self.said()
        self.write(".env", "A=1")
        self.assertEqual(self.said(2), [["later.ini"], [".env"]])

    def test_a_folder_is_watched_with_all_that_lies_and_comes_in_it(self) -> None:
        self.write("templates/deep/page.html", "1")
        self.start(extra_files=["templates"], seen=["templates/deep/page.html"])
        self.write("templates/deep/page.html", "2")
        self.said()
        self.write("templates/deep/new.html", "1")
        self.said(2)
        self.write("templates/other/newer.html", "1")
        expected = [["templates/deep/page.html"], ["templates/deep/new.html"], ["templates/other/newer.html"]]
        self.assertEqual(self.said(3), expected)

    def test_globs_match_names_and_with_two_stars_whole_trees(self) -> None:
        for name in ("conf/a.yml", "conf/a.txt", "conf/b/c.yml", "data/x/y/z.csv", "data/top.csv"):
            self.write(name, "1")
        watched = ["conf/a.yml", "data/x/y/z.csv", "data/top.csv"]
        watcher = self.start(extra_files=["conf/*.yml", "data/**/*.csv"], seen=watched)
        states = {os.path.relpath(path, self.folder).replace(os.sep, "/") for path in watcher.files.states}
        self.assertEqual(
            {name for name in states if name.startswith(("conf/", "data/")) and "." in name}, set(watched)
        )
        self.write("data/new/w.csv", "1")
        self.assertEqual(self.said(), [["data/new/w.csv"]])

    def test_what_editors_leave_behind_is_not_watched(self) -> None:
        self.write("texts/a.txt", "1")
        self.start(extra_files=["texts"], seen=["texts/a.txt"])
        for name in (".a.txt.swp", "a.txt~", ".#a.txt", "4913", "#a.txt#"):
            self.write(f"texts/{name}", "litter")
        self.is_silent_until("texts/a.txt")

    def test_brackets_and_strange_letters_in_globs(self) -> None:
        for pattern, good, bad in (
            ("log[0-9].txt", "log3.txt", "logx.txt"),
            ("log[!0-9].txt", "logx.txt", "log3.txt"),
            ("a[]b].txt", "a].txt", "ac.txt"),
            ("a[^b].txt", "a^.txt", "ac.txt"),
            ("log[9-0]*", "log[9-0]x", "log5"),
            ("[[&&||~~x].txt", "&.txt", "a.txt"),
            ("[+--].txt", ",.txt", "a.txt"),
            ("[--a].txt", "A.txt", "b.txt"),
            ("a\\z", "a\\z", "az"),
            ("a[", "a[", "a"),
            ("**/b.c", "x/y/b.c", "b_c"),
            ("a?c", "abc", "a/c"),
        ):
            with self.subTest(pattern):
                expression = re.compile(devserve._glob(pattern, "[^/]*"))
                matches = [bool(expression.fullmatch(name)) for name in (good, bad)]
                self.assertEqual(matches, [pattern != "log[9-0]*", False])
        self.write("barrier.txt", "")
        strange = ["log[9-0]*", "a\\z", "[", "[]", "[!]", "(", "{", "*["]
        self.start(extra_files=[*strange, "barrier.txt"], exclude_patterns=strange, seen=["barrier.txt"])
        self.is_silent_until()

    def test_whoever_asks_for_it_deals_with_data_instead_of_a_reload(self) -> None:
        self.write("templates/a.html", "1")
        self.write("templates/b.html", "1")
        self.write("templates/tags_a.py", "x = 1")
        sys.path.insert(0, str(self.folder / "templates"))
        handled: list[list[str]] = []

        def handle(paths: list[str]) -> bool:
            handled.append([self.name(path) for path in paths])
            return not paths[0].endswith("b.html")

        watcher = self.start("tags_a")
        watcher.watch_data(["templates"], handle)
        self.wait_until_seen([str(self.folder / "templates" / name) for name in ("a.html", "b.html")])
        self.write("templates/a.html", "2")
        eventually(lambda: handled == [["templates/a.html"]], "it is handled")
        self.write("templates/b.html", "2")
        self.assertEqual(self.said(), [["templates/b.html"]])
        self.write("templates/tags_a.py", "x = 2")
        self.assertEqual(self.said(2)[1:], [["templates/tags_a.py"]])
        self.assertEqual(len(handled), 2)

    def test_a_pattern_excludes_nothing_by_a_folder_above_the_project(self) -> None:
        self.write("above_a.py", "x = 1")
        names = [self.folder.name, self.folder.parent.name, f"{self.folder.parent.name[:2]}*"]
        self.start("above_a", exclude_patterns=names)
        self.write("above_a.py", "x = 2")
        self.assertEqual(self.said(), [["above_a.py"]])

    def test_a_glob_is_looked_for_in_no_deeper_folder_than_it_names(self) -> None:
        for name in ("a.txt", "deep/b.txt", "deep/deeper/c.txt"):
            self.write(f"sub/{name}", "1")
        for glob, seen in (
            ("sub/*.txt", "sub/a.txt"),
            ("sub/*/*.txt", "sub/deep/b.txt"),
            ("sub/**/c.txt", "sub/deep/deeper/c.txt"),
        ):
            with self.subTest(glob):
                watcher = self.start(extra_files=[glob], seen=[seen])
                deepest = max(map(self.name, watcher.files.trees), key=len)
                self.assertEqual(deepest, os.path.dirname(seen))
                watcher.stop()

    def test_exclude_patterns_win_over_all(self) -> None:
        self.write("excluded_a.py", "x = 1")
        self.write("sub/data/a.txt", "1")
        self.write("sub/b.log", "1")
        self.write("sub/c.txt", "1")
        watcher = self.start(
            extra_files=["sub"], exclude_patterns=["excluded_*", "*/data/*", "./sub/*.log"], seen=["sub/c.txt"]
        )
        __import__("excluded_a")
        for name in ("excluded_a.py", "sub/data/a.txt", "sub/b.log"):
            self.write(name, "x = 2")
        self.is_silent_until("sub/c.txt")
        names = {os.path.basename(path) for path in watcher.files.states}
        self.assertTrue(names.isdisjoint({"excluded_a.py", "a.txt", "b.log"}))

    def test_caches_repositories_and_environments_are_not_walked(self) -> None:
        self.write("any name/pyvenv.cfg", "")
        for folder in ("any name", "node_modules", ".git", "__pycache__", "x.dist-info"):
            self.write(f"{folder}/inner/a.txt", "1")
        self.write("kept/a.txt", "1")
        watcher = self.start(extra_files=["."], seen=["kept/a.txt"])
        inside = {
            os.path.relpath(path, self.folder) for path in watcher.files.states if path.startswith(str(self.folder))
        }
        self.assertEqual(inside, {".", "kept", os.path.join("kept", "a.txt")})


class ReloaderFailedImports(ReloaderWatching):
    def fails(self, module: str, **options: Any) -> Any:
        watcher = self.start(**options)
        try:
            __import__(module)
        except BaseException as error:  # noqa: BLE001 - SystemExit is one of the failures
            watcher.failed(error)
        else:
            raise AssertionError(f"{module} was imported")
        eventually(
            lambda: not watcher._errands and str(self.folder / module) + ".py" in watcher._contents.seen,
            "the project is known",
        )
        return watcher

    def test_a_new_module_mends_a_missing_one(self) -> None:
        self.write("needs_a.py", "import missing_a")
        self.fails("needs_a")
        with mock.patch.object(
            devserve, "_SLOW", sys.maxsize
        ):  # the change of the folder tells, before its turn comes
            self.write("missing_a.py", "")
            self.assertEqual(self.said(), [["missing_a.py"]])
            os.unlink("missing_a.py")
            self.said(2)
            self.write("missing_a.py", "x = 1")
            self.assertEqual(self.said(3), [["missing_a.py"]] * 3)

    def test_a_missing_module_of_a_relative_place_is_one_file(self) -> None:
        sys.path[:0] = ["", "lib"]
        self.write("lib/other.py", "")
        self.write("needs_f.py", "import missing_f")
        self.fails("needs_f")
        self.write("lib/missing_f.py", "")
        self.assertEqual(self.said(), [["lib/missing_f.py"]])

    def test_a_new_package_anywhere_on_the_path_mends_a_missing_one(self) -> None:
        elsewhere = self.folder / "site-packages"
        elsewhere.mkdir()
        sys.path.append(str(elsewhere))
        self.write("needs_b.py", "import missing_b")
        self.fails("needs_b")
        self.write("site-packages/missing_b/__init__.py", "x = 1")
        self.assertIn("site-packages/missing_b/__init__.py", [path for paths in self.said() for path in paths])

    def test_an_entry_of_sys_path_that_is_no_text_does_no_harm(self) -> None:
        with mock.patch.object(sys, "path", [None, *sys.path]):
            self.make().start()
            self.watcher.failed(ImportError("no module", name="never_f"))
            self.watcher.import_ended()
            eventually(lambda: not self.watcher._importing, "a look at what was imported")
            self.write("never_f.py", "")
            self.assertEqual(self.said(), [["never_f.py"]])

    def test_the_file_with_the_syntax_error_is_watched(self) -> None:
        self.write("wrong_a.py", "x = (")
        self.write("needs_c.py", "import wrong_a")
        self.fails("needs_c")
        self.write("wrong_a.py", "x = 1")
        self.assertEqual(self.said(), [["wrong_a.py"]])

    def test_every_file_of_the_traceback_and_of_its_causes_is_watched(self) -> None:
        self.write("deep_a.py", "def f():\n    raise ValueError")
        self.write(
            "needs_d.py", "import deep_a\ntry:\n    deep_a.f()\nexcept ValueError as e:\n    raise SystemExit from e"
        )
        self.fails("needs_d")
        self.write("deep_a.py", "def f(): pass")
        self.assertEqual(self.said(), [["deep_a.py"]])

    def test_any_module_of_the_project_may_mend_it(self) -> None:
        self.write("package_e/part.py", "x = 1")
        self.write("venv of mine/pyvenv.cfg", "")
        self.write("venv of mine/lib/foreign.py", "x = 1")
        self.write("needs_e.py", "raise RuntimeError")
        watcher = self.fails("needs_e")
        self.wait_until_seen([str(self.folder / "package_e/part.py")])
        self.assertNotIn(str(self.folder / "venv of mine/lib/foreign.py"), watcher.files.states)
        self.write("package_e/part.py", "x = 2")
        self.assertEqual(self.said(), [["package_e/part.py"]])


class ReloaderBadInput(ReloaderWatching):
    @unittest.skipUnless(EXECS, "needs symbolic links")
    def test_broken_links_and_circles_do_no_harm(self) -> None:
        self.write("loops/a.txt", "1")
        os.symlink("nowhere", "loops/broken")
        os.symlink("itself", "loops/itself")
        os.symlink("..", "loops/up")
        os.symlink(".", "loops/here")
        self.start(extra_files=["loops", "loops/broken", "loops/itself"], seen=["loops/a.txt"])
        self.write("loops/a.txt", "2")
        self.assertIn("loops/a.txt", self.said()[0])
        self.assertLess(len(self.watcher.files.own), 20)

    def test_a_folder_that_vanishes_and_comes_back_is_watched_again(self) -> None:
        self.write("comes/a.txt", "1")
        self.start(extra_files=["comes"], seen=["comes/a.txt"])
        shutil.rmtree("comes")
        self.assertEqual(self.said(), [["comes/a.txt"]])
        self.write("comes/a.txt", "2")
        self.assertEqual(self.said(2)[1], ["comes/a.txt"])

    @unittest.skipUnless(EXECS and hasattr(os, "geteuid") and os.geteuid(), "needs a user whom permissions bind")
    def test_a_folder_that_may_not_be_read_is_a_warning(self) -> None:
        self.write("closed/a.txt", "1")
        self.write("barrier.txt", "")
        os.chmod("closed", 0)
        self.addCleanup(os.chmod, self.folder / "closed", 0o700)
        self.start(extra_files=["closed", "barrier.txt"], seen=["barrier.txt"])
        self.is_silent_until()
        self.assertIn("cannot look into", self.warnings[0])

    def test_a_module_with_a_strange_file_does_no_harm(self) -> None:
        self.write("odd_a.py", "x = 1")
        for name, file in (("odd_b", "nul\0"), ("odd_c", 3), ("odd_d", "<string>")):
            sys.modules[name] = type(sys)(name)
            sys.modules[name].__file__ = file  # type: ignore[assignment]
        sys.modules["odd_e"] = object()  # type: ignore[assignment]
        sys.modules["odd_f"] = None  # type: ignore[assignment]
        sys.modules["odd_g"] = type(sys)("odd_g")
        sys.modules["odd_g"].__path__ = type("NamespacePath", (list,), {"_path": []})()  # a namespace of no folder
        self.start("odd_a")
        self.write("odd_a.py", "x = 2")
        self.assertEqual(self.said(), [["odd_a.py"]])

    def test_thousands_of_files_are_bearable(self) -> None:
        for folder in range(60):
            os.makedirs(f"many/{folder}")
            for number in range(50):
                open(f"many/{folder}/{number}.txt", "w").close()
        self.start(extra_files=["many"])
        eventually(lambda: len(self.watcher.files.own) > 3_000, "all are known")
        self.write("many/50/40.txt", "changed")
        self.assertEqual(self.said(), [["many/50/40.txt"]])

    @unittest.skipUnless(EXECS, "needs named pipes")
    def test_a_named_pipe_and_a_large_file_are_not_read(self) -> None:
        self.write("files/a.txt", "")
        os.mkfifo(self.folder / "files" / "pipe")
        with open(self.folder / "files" / "large", "wb") as file:
            file.truncate(devserve._CONTENT_LIMIT + 1)
        seen = ["files/a.txt", "files/pipe", "files/large"]
        self.start(extra_files=["files"], seen=seen)
        self.assertIsNone(self.watcher._contents.seen[str(self.folder / "files" / "large")][1])
        self.is_silent_until("files/a.txt")

    @unittest.skipUnless(EXECS, "needs named pipes")
    def test_a_named_pipe_holds_no_request(self) -> None:
        """As of the `.env` of a password manager, which has no state at any look."""
        os.mkfifo(self.folder / ".env")
        settled: list[bool] = []
        with mock.patch.object(devserve, "_SLOW", 1):
            self.start(also=[str(self.folder / ".env")], seen=[".env"], settling=settled.append)
            self.let_it_look()
        self.assertEqual(settled, [])

    def test_a_module_that_names_a_folder_which_is_not_there_does_no_harm(self) -> None:
        made = types.ModuleType("made_d")
        made.__file__ = str(self.folder / "no" / "such" / "made_d.py")
        with mock.patch.dict(sys.modules, {"made_d": made}):
            self.write("barrier.txt", "")
            self.start(extra_files=["barrier.txt"], seen=["barrier.txt"])
            self.is_silent_until()

    @unittest.skipUnless(EXECS, "Windows keeps a folder that somebody works in")
    def test_a_module_of_a_relative_path_does_no_harm_where_the_working_directory_has_gone(self) -> None:
        made = types.ModuleType("made_e")
        made.__file__ = "made_e.py"
        self.write("barrier.txt", "")
        self.start(extra_files=["barrier.txt"], seen=["barrier.txt"])
        os.makedirs("gone")
        os.chdir("gone")
        os.rmdir(self.folder / "gone")
        with mock.patch.dict(sys.modules, {"made_e": made}):
            self.is_silent_until()

    def test_more_files_than_can_be_borne_are_left_out_and_it_is_said(self) -> None:
        for number in range(9):
            self.write(f"many/{number}.txt", "")
        with mock.patch.object(devserve, "_FILES_LIMIT", 5):
            self.start(extra_files=["many"])
            eventually(lambda: self.warnings, "a warning")
            self.let_it_look()
        self.assertEqual(len(self.watcher.files.own), 5)
        self.assertRegex(self.warnings[0], "^5 files are watched, further ones are not")
        self.assertEqual(len(self.warnings), 1)

    def test_a_late_look_is_told_once(self) -> None:
        with mock.patch.object(devserve, "_PERIOD", 1e-9):
            self.write("a.txt", "")
            self.start(extra_files=["a.txt"], seen=["a.txt"])
            self.write("later_b.py", "")
            __import__("later_b")
            self.wait_until_seen([str(self.folder / "later_b.py")])
        self.assertEqual(len(self.warnings), 1, self.warnings)
        self.assertIn("may be seen", self.warnings[0])


class ReloaderTiers(ReloaderWatching):
    """What is looked at how often."""

    def turns(self, own: int, installed: int, cost: float, python: int = 0) -> Iterator[list[str]]:
        """Yield what each round looks at, when a file costs so many seconds; the first `python` ones are modules."""
        watcher = self.make()
        watcher.files.own = [f"own{n}.py" if n < python else f"own{n}" for n in range(own)]
        watcher.files.installed = [f"installed{n}" for n in range(installed)]
        watcher.files.states = {path: (n, 0, 0, 0) for n, path in enumerate(watcher.files.own)}
        watcher._rounds.edited(watcher.files.own)
        watcher._rounds.cost = cost
        while True:
            yield watcher._rounds.next()

    def test_a_save_counts_from_when_it_was_written_if_its_time_can_be_trusted(self) -> None:
        now = 1_000_000.0
        old, fresh, future = ((int(at * 1e9), 1, 1, int(at * 1e9)) for at in (now - 60, now - 0.03, now + 0.03))
        for states, age in (
            ([fresh], 0.03),
            ([old, fresh, None], 0.03),
            ([old], 0.0),
            ([fresh, future], 0.0),
            ([None], 0.0),
            ([], 0.0),
        ):
            with self.subTest(states), mock.patch("time.time", return_value=now):
                self.assertAlmostEqual(devserve._age(states), age, 6)

    def test_few_files_are_all_looked_at_in_each_round(self) -> None:
        turns = self.turns(100, 0, 1e-6)
        for _ in range(3):
            self.assertEqual(len(next(turns)), 100)

    def test_of_many_files_those_edited_last_are_in_each_round_and_all_in_a_while(self) -> None:
        cost = 5e-6
        turns = self.turns(1000, 0, cost)
        rounds = [next(turns) for _ in range(70)]
        for paths in rounds:
            self.assertLessEqual({f"own{n}" for n in range(1000 - devserve._HOT, 1000)}, set(paths))
            self.assertLessEqual(len(paths) * cost, devserve._SHARE * devserve._INTERVAL)
        self.assertEqual(len(set().union(*rounds)), 1000)

    def test_python_files_take_half_of_a_round_however_many_other_files_there_are(self) -> None:
        cost = 5e-6
        turns = self.turns(10_000, 0, cost, python=10)
        rounds = [next(turns) for _ in range(3)]
        for paths in rounds:
            self.assertLessEqual(len(paths) * cost, devserve._SHARE * devserve._INTERVAL)
        self.assertLessEqual({f"own{n}.py" for n in range(10)}, set().union(*rounds))
        self.assertLessEqual({f"own{n}" for n in range(10, 30)}, set().union(*rounds))

    def test_a_round_costs_the_same_however_many_files_there_are(self) -> None:
        looks = [len(next(self.turns(count, 0, 1e-6))) for count in (100, 1000, 10_000, 100_000)]
        self.assertEqual(looks, [100, *[int(devserve._SHARE * devserve._INTERVAL / 1e-6)] * 3])

    def test_after_a_reload_more_are_looked_at(self) -> None:
        turns = self.turns(1000, 0, 4e-6)
        before = len(next(turns))
        self.watcher._rounds.busy_until = float("inf")
        self.assertEqual([before < 1000, len(next(turns))], [True, 1000])

    def test_installed_files_are_all_looked_at_within_the_period_some_in_each_tenth_round(self) -> None:
        turns = self.turns(1, 1500, 1e-6)
        rounds = [next(turns) for _ in range(int(devserve._PERIOD / devserve._INTERVAL) + devserve._SLOW)]
        self.assertLess(max(map(len, rounds)), 200)
        self.assertEqual([len(paths) > 1 for paths in rounds[:20]], [False, *[False] * 8, True] * 2)
        self.assertEqual(len(set().union(*rounds)), 1501)

    def test_files_that_do_not_exist_are_looked_at_in_each_tenth_round(self) -> None:
        turns = self.turns(100, 0, 1e-6)
        next(turns)
        states = self.watcher.files.states
        for gone in ("own7", "own8"):
            states[gone] = None
        self.watcher._rounds.edited(["own7", "own8"])
        self.assertEqual([len(next(turns)) for _ in range(20)], [98, *[98] * 7, 100, 98, 98, *[98] * 7, 100, 98])
        states["own7"] = states["own6"]
        self.watcher._rounds.edited(["own7"])
        self.assertEqual(len(next(turns)), 99)

    def test_what_a_look_costs_is_the_least_of_late(self) -> None:
        self.write("a.txt", "")
        self.start(extra_files=["a.txt"], seen=["a.txt"])
        eventually(lambda: self.watcher._rounds.cost < 0.001, "its measure")
        self.stop()
        self.watcher._rounds.cost = 1e-5
        with mock.patch("time.perf_counter", side_effect=[0.0, 1000.0]):
            self.watcher._look([])
        self.assertEqual(self.watcher._rounds.cost, 2e-5)


@unittest.skipUnless(EXECS, "needs an exec that replaces")
class ReloaderRestart(Folder):
    """A small program that restarts itself by its room alone and writes, each time, a line of JSON about its state."""

    PROGRAM = """
        import atexit, json, os, signal, socket, subprocess, sys, threading, time
        sys.path.insert(0, {folder!r})
        {before}
        import devserve
        launch = devserve.Launch.capture()
        left = launch.handover
        notes = left.notes if left else {{}}
        sock = socket.socket(fileno=left.sockets["listener"][0]) if left else socket.create_server(("127.0.0.1", 0))
        turn = notes.get("turn", 0)
        facts = dict(
            turn=turn, pid=os.getpid(), cwd=os.getcwd(), argv=sys.argv, flags=repr(sys.flags), warn=sys.warnoptions,
            x=dict(sys._xoptions), environ=dict(os.environ), umask=oct(os.umask(0o22)), port=sock.getsockname()[1],
            fds=len(os.listdir("/dev/fd")), mask=[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            ignored=sorted(devserve._save_ignored()), blocking=os.get_blocking(0), name=__name__,
            rss=[line for line in open("/proc/self/status") if "RSS" in line] if os.path.exists("/proc") else [],
            path=sys.path[1:2], timer=signal.getitimer(signal.ITIMER_REAL)[0],
        )
        os.umask(launch.kept["umask"])
        print(json.dumps(facts))
        def again():
            sockets, notes = {{"listener": [sock.fileno()]}}, {{"turn": turn + 1}}
            devserve.restart_process(launch, devserve.Handover(sockets, notes))
        {body}
    """

    def run_program(
        self,
        body: str,
        *flags: str,
        turns: int = 3,
        command: Optional[list[str]] = None,
        before: str = "",
        **more: Any,
    ) -> Any:
        program = textwrap.dedent(self.PROGRAM).format(folder=str(SCRIPT.parent), body=body, before=before)
        path = self.folder / "again.py"
        path.write_text(program + f"\nif turn < {turns}:\n    again()\n", encoding="utf-8")
        words = [sys.executable, *flags, *(command or ["again.py", "one", "two words"])]
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = str(SCRIPT.parent / "__pycache__" / "prefix")  # compile devserve.py once
        options: dict[str, Any] = {
            "cwd": self.folder,
            "stdin": subprocess.DEVNULL,
            "timeout": 60,
            "env": environ,
            **more,
        }
        done = subprocess.run(words, capture_output=True, **options)
        output = done.stdout.decode()
        self.assertEqual(done.returncode, 0, output + done.stderr.decode())
        self.errors = done.stderr.decode()
        self.output = output
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def assert_all_as_first(self, facts: list[dict[str, Any]], turns: int = 3) -> None:
        self.assertEqual([fact.pop("turn") for fact in facts], list(range(turns + 1)))
        first = {**facts[0], "rss": [], "fds": 0}
        for fact in facts[1:]:
            self.assertEqual({**fact, "rss": [], "fds": 0}, first)

    def test_restarts_pile_nothing_up(self) -> None:
        facts = self.run_program("os.dup2(sock.fileno(), 77); os.set_inheritable(os.open('/', 0), True)", turns=30)
        self.assertEqual({fact["pid"] for fact in facts}, {facts[0]["pid"]})
        self.assertEqual(len({fact["fds"] for fact in facts[1:]}), 1)
        if facts[0]["rss"]:
            sizes = [int(fact["rss"][0].split()[1]) for fact in facts]
            self.assertLess(max(sizes) - sizes[0], 3000)
        self.assert_all_as_first(facts, 30)

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_an_interpreter_that_does_not_know_its_own_file_is_started_again(self) -> None:
        self.assert_all_as_first(self.run_program("", before="sys.executable = ''"))

    def test_an_entry_of_sys_path_that_is_no_text_does_no_harm(self) -> None:
        """As of `sys.path.insert(0, os.environ.get("HOME_OF_MINE"))`, which Python itself passes over."""
        self.assert_all_as_first(self.run_program("", before="sys.path.insert(0, None)", turns=1), turns=1)

    def test_what_the_application_changed_is_as_at_the_start(self) -> None:
        body = (
            "os.chdir('/'); os.environ['ADDED'] = '1'; os.environ['PATH'] += ':/more'; os.umask(0o777); "
            "sys.argv[:] = ['else']; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
            "signal.signal(signal.SIGUSR2, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "signal.alarm(50); os.set_blocking(0, False)"
        )
        self.assert_all_as_first(self.run_program(body))

    def test_what_a_sandbox_forbids_or_a_python_lacks_stays_as_it_is(self) -> None:
        for before in (
            "del os.getsid", "os.getsid = os.ttyname  # which fails here", "sys.modules['termios'] = None",
            "del os.isatty",
        ):  # fmt: skip
            with self.subTest(before):
                body = "launch.release_signals(), launch.restore_terminal(), launch.terminal_is_gone()"
                self.assert_all_as_first(self.run_program(body, before=before, turns=1), turns=1)

    def test_a_store_that_does_not_answer_is_given_up(self) -> None:
        listener, address = devserve._listen_for_handover()
        self.addCleanup(listener.close)
        fetched: list[Any] = []
        with mock.patch.object(devserve, "_FETCH_SECONDS", 0.01), mock.patch.dict(os.environ):
            os.environ[devserve._HANDOVER_ENV] = f"{os.getpid()}:{address}"
            fetching = threading.Thread(target=lambda: fetched.append(devserve._fetch()), daemon=True)
            fetching.start()
            fetching.join(DEADLINE)
        devserve._remove_address(address)
        self.assertEqual(fetched, [(None, {}, [])])

    def test_a_title_written_over_the_environment_costs_no_variable_and_piles_none_up(self) -> None:
        """As on systems that do not tell, what was set before is kept; but it is set once more, and no more."""
        before = (
            "import builtins, io; os.environ['PATH'] += ':/more'; real = open; "
            "builtins.open = lambda path, *rest, **more: "
            "io.BytesIO(b'a title\\0\\0') if path == '/proc/self/environ' else real(path, *rest, **more)"
        )
        facts = self.run_program("", before=before)
        self.assertEqual([fact["environ"]["PATH"].count("/more") for fact in facts], [1, 2, 2, 2])

    def test_interpreter_flags_survive(self) -> None:
        for flags in (["-I"], ["-u", "-W", "ignore::UserWarning"], ["-X", "dev", "-B"], ["-E", "-s", "-OO"]):
            with self.subTest(flags):
                self.assert_all_as_first(self.run_program("", *flags))

    def test_a_module_start_survives(self) -> None:
        facts = self.run_program("", command=["-m", "again", "three"])
        self.assert_all_as_first(facts)
        self.assertEqual(facts[-1]["argv"][1:], ["three"])

    def test_a_program_given_on_the_command_line_survives(self) -> None:
        self.run_program("")  # writes again.py
        facts = self.run_program("", command=["-c", "exec(open('again.py').read())", "four"])
        self.assertEqual(facts[-1]["argv"], ["-c", "four"])

    def test_it_works_from_another_thread(self) -> None:
        body = "t = threading.Thread(target=again) if turn < 3 else None; t and t.start(); t and time.sleep(60)"
        self.assert_all_as_first(self.run_program(body))

    def test_exit_handlers_run_and_output_is_flushed(self) -> None:
        self.run_program("atexit.register(print, 'bye', turn); print('said', end=' ')")
        self.assertEqual(self.output.count("said bye"), 4)

    def test_an_exit_handler_that_hangs_or_raises_holds_nothing(self) -> None:
        body = (
            "atexit.register(time.sleep, 600) if turn == 0 else atexit.register(lambda: 1 / 0) if turn == 1 else None"
        )
        facts = self.run_program(body)
        self.assertEqual(len(facts), 4)

    def test_a_worker_that_an_exit_handler_waits_for_without_end_is_ended(self) -> None:
        body = """
import multiprocessing
devserve._EXIT_SECONDS = 0.5
if turn == 0:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    print("worker", worker.pid)
"""
        self.run_program(body, turns=1)
        pid = int(self.output.partition("worker ")[2].split()[0])
        eventually(lambda: gone(pid), "the worker's end")

    def test_an_interpreter_that_is_gone_is_an_error_and_the_process_lives_on(self) -> None:
        body = """
launch = launch._replace(command=["/no/such/python"])
try:
    again()
except OSError as error:
    print("lives", error.filename)
"""
        self.run_program(body, turns=0)
        self.assertIn("lives /no/such/python", self.output)

    def test_an_exec_that_the_system_refuses_leaves_all_as_it_was(self) -> None:
        body = """
import posix
def refuse(*words):
    print("tried in", os.getcwd())
    raise OSError("refused")
os.chdir("/"); os.umask(0o077); posix.execve = refuse; signal.alarm(50)
try:
    again()
except OSError as error:
    print(error, "in", os.getcwd(), oct(os.umask(0)), signal.alarm(0) > 0, devserve._children())
"""
        self.run_program(body, turns=0)
        self.assertIn(f"tried in {self.folder}\nrefused in / 0o77 True []\n", self.output)

    def test_a_child_started_before_the_handover_is_fetched_can_neither_inherit_nor_fetch_it(self) -> None:
        child = """
import os, sys
sys.path.insert(0, sys.argv[1])
import devserve
pid, _, address = os.environ.get("DEVSERVE_HANDOVER", "").partition(":")
inherited = [fd for fd in range(3, 64) if devserve._is_open(fd) and os.get_inheritable(fd)]
fetched = []
devserve._FETCH_SECONDS = None  # who listens hangs up at once
for number in (os.getpid(), os.getppid()):
    os.environ["DEVSERVE_HANDOVER"] = f"{number}:{address}"
    fetched.append(devserve._fetch())
print("child", bool(address), inherited, fetched, flush=True)
"""
        self.write("child.py", child)
        before = "subprocess.run([sys.executable, 'child.py', sys.path[0]], close_fds=False)"
        body = "print('seen', [key for key in os.environ if key.startswith('DEVSERVE_H')])"
        facts = self.run_program(body, turns=2, before=before)
        self.assertEqual([fact["turn"] for fact in facts], [0, 1, 2])
        nothing = "[] [(None, {}, []), (None, {}, [])]"
        self.assertEqual(self.output.count(f"child False {nothing}"), 1, self.output)
        self.assertEqual(self.output.count(f"child True {nothing}"), 2, self.output)
        self.assertEqual(self.output.count("seen []"), 3)

    @unittest.skipUnless(sys.platform == "linux", "only Linux tells a process's children")
    def test_children_of_earlier_images_are_reaped_and_the_new_ones_are_not_stolen(self) -> None:
        body = """
import subprocess
if turn == 0: subprocess.Popen(["true"]); subprocess.Popen(["sleep", "0.3"]); time.sleep(0.1)
if turn == 1:
    own = subprocess.Popen(["true"])
    end = time.monotonic() + 20
    while len(devserve._children()) > 1 and time.monotonic() < end: time.sleep(0.05)
    print("children", len(devserve._children()), "own", own.wait())
"""
        self.run_program(body, turns=1)
        self.assertIn("children 1 own 0", self.output)

    def test_a_thousand_sockets_and_long_notes_cross(self) -> None:
        body = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
if turn == 0:
    many = [socket.socket() for _ in range(1000)]
    devserve.restart_process(launch, devserve.Handover(
        {"listener": [sock.fileno()], "waiting": [s.fileno() for s in many]}, {"turn": 1, "long": "x" * 2000000}))
print("crossed", len(left.sockets["waiting"]), len(notes["long"]), os.get_inheritable(left.sockets["waiting"][0]))
"""
        allow_descriptors(1500)
        self.run_program(body, turns=0)
        self.assertIn("crossed 1000 2000000 False", self.output)

    @unittest.skipUnless(sys.platform == "linux", "uses Linux's terminals")
    def test_the_terminal_gets_its_echo_back_and_stays_standard_input(self) -> None:
        import pty
        import termios

        leader, follower = pty.openpty()
        self.addCleanup(os.close, leader)
        self.addCleanup(os.close, follower)
        body = """
import termios
echo = termios.tcgetattr(0)
print("echo", bool(echo[3] & termios.ECHO), os.isatty(0))
echo[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, echo)
"""

        def session() -> None:
            import fcntl

            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.run_program(body, turns=2, stdin=follower, preexec_fn=session)
        self.assertEqual(self.output.count("echo True True"), 3)

    def test_an_address_with_a_file_is_short_and_lies_in_a_folder_that_is_there(self) -> None:
        for tmpdir, expected in (
            ("/var/tmp", "/var/tmp"),
            ("/" * 99 + "tmp", "/tmp"),  # it is there, and too long for the path of a socket on macOS
            ("/no/such/folder", "/tmp"),
            ("", "/tmp"),
        ):
            with mock.patch.dict(os.environ, TMPDIR=tmpdir), mock.patch.object(sys, "platform", "darwin"):
                listener, address = devserve._listen_for_handover()
            self.addCleanup(listener.close)
            self.addCleanup(os.unlink, address)
            self.assertEqual(os.path.dirname(address), expected)


@unittest.skipUnless(EXECS, "needs signals")
class ReloaderSupervised(Folder):
    """The strategy for systems where exec does not replace, on one where it would."""

    PROGRAM = """
        import os, signal, socket, sys, time
        sys.path.insert(0, {folder!r})
        import devserve
        launch = devserve.Launch.capture()
        if launch.must_supervise:
            print("parent", os.getpid(), flush=True)
            sock = socket.create_server(("127.0.0.1", 0))
            first = devserve.Handover({{"listener": [sock.detach()]}}, {{"turn": 0}})
            sys.exit(devserve.Supervisor(launch, first).run())
        left = launch.handover
        turn = left.notes["turn"]
        sock = socket.socket(fileno=left.sockets["listener"][0])
        print("child", turn, os.getpid(), sock.getsockname()[1], flush=True)
        {body}
    """

    def start(self, body: str) -> "subprocess.Popen[str]":
        self.write("supervised.py", textwrap.dedent(self.PROGRAM).format(folder=str(SCRIPT.parent), body=body))
        environ = {**os.environ, "DEVSERVE_RELOADER": "spawn", "PYTHONPATH": str(SCRIPT.parent)}
        process = subprocess.Popen(
            [sys.executable, "supervised.py"],
            cwd=self.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    AGAIN = "devserve.restart_process(launch, devserve.Handover({'listener': [sock.fileno()]}, {'turn': turn + 1}))"

    def child(self, process: "subprocess.Popen[str]") -> list[str]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("child"):
                return line.split()
        raise AssertionError("no child")

    def test_children_follow_each_other_with_the_same_socket_until_one_ends_otherwise(self) -> None:
        process = self.start(f"\nif turn < 3:\n    {self.AGAIN}\nsys.exit(7)")
        turns = [self.child(process) for _ in range(4)]
        self.assertEqual([turn[1] for turn in turns], ["0", "1", "2", "3"])
        self.assertEqual(len({turn[3] for turn in turns}), 1, "one port")
        self.assertEqual(len({turn[2] for turn in turns}), 4, "four processes")
        self.assertEqual(process.wait(DEADLINE), 7)

    def test_a_stranger_who_knows_the_address_is_given_nothing_and_delays_nothing(self) -> None:
        ask = "import devserve, sys; print(devserve._receive(devserve._connect(sys.argv[1])), flush=True)"
        stranger = f"__import__('subprocess').run([sys.executable, '-c', {ask!r}, launch.parent.address])"
        process = self.start(f"\n{stranger}\nif turn < 2:\n    {self.AGAIN}\nsys.exit(7)")
        self.assertEqual(process.communicate(timeout=DEADLINE)[0].count("({}, [])"), 3)
        self.assertEqual(process.returncode, 7)

    def test_signals_reach_the_child_and_no_orphan_stays(self) -> None:
        """A child that ends for a reload, or before it has a handler, ends by what it was asked all the same."""
        ends = {"sys.exit(4)": 4, "os._exit(devserve._RELOAD_STATUS)": 0, "": 0}
        for number, (end, status) in itertools.product((signal.SIGINT, signal.SIGTERM), ends.items()):
            handler = f"lambda *words: {end}" if end else "signal.SIG_DFL"
            process = self.start(
                f"\nsignal.signal({int(number)}, {handler})\nprint('child ready', flush=True)\n"
                "while True:\n    time.sleep(0.05)"
            )  # not one long sleep: of a signal that comes a moment before it, the interpreter does not hear
            pid = int(self.child(process)[2])
            self.child(process)
            with self.subTest(end, number=number):
                process.send_signal(number)
                self.assertEqual(process.wait(DEADLINE), status)
                self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_a_child_ends_with_its_parent(self) -> None:
        process = self.start("time.sleep(60)")
        pid = int(self.child(process)[2])
        process.kill()
        process.wait(DEADLINE)
        eventually(lambda: not pathlib.Path(f"/proc/{pid}").exists() or gone(pid), "the orphan has ended")

    def test_a_child_killed_by_a_signal_gives_the_shells_status(self) -> None:
        process = self.start("os.kill(os.getpid(), signal.SIGKILL)")
        self.assertEqual(process.wait(DEADLINE), 128 + signal.SIGKILL)


def gone(pid: int) -> bool:
    """Tell whether a process has ended, be it that nobody reaped it yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


# =====================================================================================================================
# 14. Runner
#
# Start-up lines, signals, sockets of every kind, a port in use; run and make_server in code.
# =====================================================================================================================

HELLO = """
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]
"""
HAS_IPV6 = False
with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
    probe.bind(("::1", 0))
    HAS_IPV6 = True


def listening(*address: Any) -> socket.socket:
    """Return a socket of this process that listens on a free port, or on the address."""
    sock = socket.socket(socket.AF_INET6 if address and ":" in str(address[0]) else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address or ("127.0.0.1", 0))
    sock.listen()
    return sock


class RunnerCase(Folder):
    """A test with hello.py in its folder."""

    def setUp(self) -> None:
        super().setUp()
        self.write("hello.py", HELLO)

    def served(self, *arguments: str, **options: Any) -> Served:
        served = Served(*arguments, cwd=self.folder, **options)
        self.addCleanup(served.stop)
        return served

    def failed(self, *arguments: str, **options: Any) -> str:
        """Run a command that cannot start; return its one line.  It binds before it imports, and 5000 may be taken."""
        options["env"] = {"DEVSERVE_PORT": "0", **options.get("env", {})}
        served = self.served(*arguments, port=False, **options)
        served.process.wait(DEADLINE)
        served.reader.join(DEADLINE)
        self.assertEqual(served.process.returncode, 2, served.log)
        self.assertRegex(served.log, r"^devserve: error: [^\n]+\n$")
        return served.log


class RunnerGreeting(RunnerCase):
    """What the terminal says at the start."""

    def test_it_says_what_is_served_where_how_to_stop_and_what_for(self) -> None:
        served = self.served("hello")
        served.wait_for("production")
        self.assertIn("hello", served.log)
        self.assertRegex(served.log, r"http://127\.0\.0\.1:\d+")
        self.assertIn("Ctrl-C", served.log)
        self.assertRegex(served.log, r"(?i)development")
        self.assertIn(devserve.__version__, served.log)

    def test_port_0_names_the_port_that_was_given(self) -> None:
        served = self.served("hello")
        self.assertGreater(served.port, 0)
        self.assertEqual(served.get(), "hello")

    def test_each_request_is_one_line(self) -> None:
        served = self.served("hello")
        served.get("/a?b=c")
        served.wait_for(r"(?m)^\d\d:\d\d:\d\d GET /a\?b=c 200 5 [\d.]+ms$")
        self.assertNotIn("\x1b", served.log)

    def test_all_addresses_are_named_and_each_of_them_answers(self) -> None:
        hosts = ["0.0.0.0"] + (["::"] if HAS_IPV6 else [])
        for host in hosts:
            with self.subTest(host):
                served = self.served("hello", "--host", host)
                served.wait_for("production")
                urls = re.findall(r"http://[^\s/]+", served.log)
                self.assertIn(f"http://127.0.0.1:{served.port}", urls)
                self.assertEqual(len(urls), len(set(urls)))
                self.assertNotIn("0.0.0.0", served.log)
                if host == "::":
                    self.assertIn(f"http://[::1]:{served.port}", urls)
                for url in urls:
                    self.assertEqual(fetch(url).body, b"hello", url)

    def test_loopback_alone_is_bound_by_default(self) -> None:
        served = self.served("hello")
        with self.assertRaises(OSError):
            socket.create_connection((devserve._network_address() or "127.0.0.2", served.port), 2.0)

    @unittest.skipUnless(HAS_IPV6, "needs IPv6")
    def test_localhost_is_both_loopbacks_before_and_after_a_reload(self) -> None:
        """Node and Chrome ask ::1 first, others 127.0.0.1; with port 0 both have the same number."""
        served = self.served("hello", "--host", "LocalHost", "--reload")
        served.wait_for(rf"on http://localhost:{served.port} ")
        for text in ("hello", "changed"):
            self.write("hello.py", HELLO.replace("hello", text))
            for host in ("127.0.0.1", "[::1]"):

                def answers(host: str = host, text: str = text) -> bool:
                    return fetch(f"http://{host}:{served.port}").text == text

                eventually(answers, f"{text} from {host}")

    def test_localhost_is_one_loopback_where_the_other_is_missing_or_taken(self) -> None:
        listen_on = devserve._listen_on_address

        def without_ipv6(family: int, address: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            return listen_on(family, address)

        with mock.patch.object(devserve, "_listen_on_address", without_ipv6):
            listeners = devserve.listen("localhost", 0, again=str)
        self.assertEqual([sock.getsockname()[0] for sock in listeners], ["127.0.0.1"])
        listeners[0].close()

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_of_the_application_does_not_keep_the_port(self) -> None:
        self.write(
            "forks.py",
            """
            import os, signal
            pid = os.fork()
            if not pid:
                os.close(1)
                os.close(2)
                signal.pause()
                os._exit(0)
            def app(environ, start_response):
                start_response("200 OK", [])
                return [str(pid).encode()]
        """,
        )
        served = self.served("forks")
        child = int(served.get())
        try:
            self.assertEqual(served.stop(), 0)
            os.kill(child, 0)  # it is still there
            listening("127.0.0.1", served.port).close()
        finally:
            os.kill(child, signal.SIGKILL)

    @unittest.skipUnless(HAS_IPV6, "needs IPv6")
    def test_a_port_that_is_taken_on_one_loopback_is_told(self) -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
            port = other.getsockname()[1]
            with self.assertRaisesRegex(devserve.DevserveError, f"localhost:{port}: already in use"):
                devserve.listen("localhost", port, again=str)

    @unittest.skipUnless(HAS_IPV6, "needs IPv6")
    def test_ipv6_is_served_and_its_address_is_in_brackets(self) -> None:
        for host in ("::1", "[::1]"):
            with self.subTest(host):
                served = self.served("hello", "--host", host)
                self.assertIn("http://[::1]:", served.url)
                self.assertEqual(served.get(), "hello")

    def test_a_name_is_resolved(self) -> None:
        self.assertEqual(self.served("hello", "--host", "localhost").get(), "hello")

    def test_https_with_a_certificate_and_key_in_two_files(self) -> None:
        key, _, certificate = CERTIFICATE.partition("-----BEGIN CERTIFICATE-----")
        self.write("key.pem", key)
        cert = self.write("cert.pem", "-----BEGIN CERTIFICATE-----" + certificate)
        served = self.served("hello", "--cert", "cert.pem", "--key", "key.pem")
        self.assertTrue(served.url.startswith("https://"))
        context = ssl.create_default_context(cafile=str(cert))
        self.assertEqual(fetch(served.url, context=context).body, b"hello")


NATIVE_THREADING: Any = vars(devserve)["native_threading"]  # in which the threads are that no greenlets replace
posix_signals = unittest.skipIf(sys.platform == "win32", "signals of POSIX")


class RunnerSignals(RunnerCase):
    """One signal ends it, whatever the application does, and nothing is left."""

    STUBBORN = """
        import threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()  # no daemon: an ordinary exit would wait for it
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/stuck":
                print("stuck", flush=True)
                while True:
                    try:
                        time.sleep(600)
                    except BaseException:
                        pass
            start_response("200 OK", [])
            def stream():
                while True:
                    yield b"x" * 100
                    time.sleep(0.01)
            return stream() if environ["PATH_INFO"] == "/stream" else [b"hello"]
    """

    def end(self, served: Served, number: int) -> int:
        served.process.send_signal(number)
        status = served.process.wait(DEADLINE)
        served.reader.join(DEADLINE)
        self.assertNotIn("Traceback", served.log)
        return status

    @posix_signals
    def test_a_child_of_the_application_hears_a_signal_that_comes_right_after_its_fork(self) -> None:
        self.write(
            "pools.py",
            """
            import os, signal, time
            def app(environ, start_response):
                start_response("200 OK", [])
                for _ in range(300):
                    child = os.fork()
                    if not child:
                        time.sleep(600)
                        os._exit(0)
                    os.kill(child, signal.SIGTERM)
                    os.waitpid(child, 0)
                return [str(signal.pthread_sigmask(signal.SIG_BLOCK, [])).encode()]
            """,
        )
        self.assertEqual(Client(self.served("pools").port).request("/").answer().body, b"set()")

    @posix_signals
    def test_ctrl_c_ends_it_at_once_with_status_0_whatever_is_running(self) -> None:
        self.write("stubborn.py", self.STUBBORN)
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number), contextlib.ExitStack() as stack:
                served = self.served("stubborn")
                port = served.port
                for path in ("/", "/stream", "/stuck"):
                    client = stack.enter_context(Client(port)).request(path)
                    if path != "/stuck":
                        self.assertEqual(client.head().status, 200)
                served.wait_for("stuck")
                status = self.end(served, number)
                self.assertIn(status, (0,) if number == signal.SIGINT else (0, 128 + number, -number))
                with self.assertRaises(OSError):
                    Client(port)
                again = self.served("hello", "--port", str(port), port=False)
                self.assertEqual(again.get(), "hello", "the port can be bound again at once")

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_child_of_the_application_ends_without_ending_anything_of_the_parent(self) -> None:
        text = """
            import os, signal, time
            def app(environ, start_response):
                read, write = os.pipe()
                pid = os.fork()
                if not pid:
                    os.write(write, b"x")
                    time.sleep(60)
                    os._exit(0)
                os.read(read, 1)
                os.kill(pid, getattr(signal, environ["PATH_INFO"][1:]))
                status = os.waitpid(pid, 0)[1]
                start_response("200 OK", [])
                return [b"ended by %d" % os.WTERMSIG(status)]
        """
        self.write("forking.py", text)
        with tempfile.TemporaryDirectory(prefix="ds") as folder:
            served = self.served("forking", "--reload", "--host", f"unix:{folder}/s")
            served.wait_for("production")
            for name in ("SIGTERM", "SIGHUP"):
                self.assertIn(b"ended by %d" % getattr(signal, name), fetch(folder + "/s", "/" + name).body)
            self.assertEqual(os.listdir(folder), ["s"])
            self.assertNotIn("reloading", served.log)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_child_ends_by_a_handler_of_the_application_that_calls_ours_and_takes_nothing_with_it(self) -> None:
        text = """
            import os, signal, time
            ours = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda number, frame: ours(number, frame))
            def app(environ, start_response):
                pid = os.fork()
                if not pid:  # it sends the signal itself: of one that comes while it runs, CPython 3.13+ may not hear
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)
                status = os.waitpid(pid, 0)[1]
                start_response("200 OK", [])
                return [b"ended by %d" % os.WTERMSIG(status)]
        """
        self.write("wrapping.py", text)
        with tempfile.TemporaryDirectory(prefix="ds") as folder:
            served = self.served("wrapping", "--reload", "--host", f"unix:{folder}/s")
            served.wait_for("production")
            self.assertEqual(fetch(folder + "/s", "/").body, b"ended by %d" % signal.SIGTERM)
            self.assertEqual(os.listdir(folder), ["s"])
            self.assertNotIn("Traceback", served.log)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_child_that_comes_back_from_the_application_ends_and_takes_nothing_with_it(self) -> None:
        self.write("forking.py", """
            import os, sys
            def child(path):
                pid = os.fork()
                if pid:
                    os.waitpid(pid, 0)
                elif path == "/exits":
                    sys.exit(3)
                elif path == "/fails":
                    raise ValueError
            child("/exits")
            def wsgi(environ, start_response):
                child(environ["PATH_INFO"])
                start_response("200 OK", [])
                return [b"it has ended"]
            async def asgi(scope, receive, send):
                assert scope["type"] == "http"
                child(scope["path"])
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"it has ended"})
        """)  # fmt: skip
        # Under PyPy, about one child in a hundred of an event loop waits for ever, for a lock of another thread.
        for name in ("wsgi",) if sys.implementation.name == "pypy" else ("wsgi", "asgi"):
            with self.subTest(name), tempfile.TemporaryDirectory(prefix="ds") as folder:
                served = self.served(f"forking:{name}", "--host", f"unix:{folder}/s")
                served.wait_for("production")
                for path in ("/exits", "/returns", "/fails") * 2:
                    self.assertEqual(fetch(folder + "/s", path).body, b"it has ended")
                    self.assertEqual(os.listdir(folder), ["s"])

    @posix_signals
    def test_what_the_application_starts_finds_its_signals_as_they_are_anywhere(self) -> None:
        text = """
            import subprocess, sys
            CODE = "import signal; print([s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN])"
            CODE += "; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
            def app(environ, start_response):
                start_response("200 OK", [])
                return [subprocess.check_output([sys.executable, "-c", CODE])]
        """
        self.write("starting.py", text)
        served = self.served("starting", "--reload")
        run = textwrap.dedent(text) + "print(subprocess.check_output([sys.executable, '-c', CODE]).decode())"
        code = self.write("expected.py", run)
        expected = subprocess.run([sys.executable, str(code)], capture_output=True, text=True, check=True).stdout
        self.assertEqual(served.get().split(), expected.split())

    @posix_signals
    def test_a_terminal_that_takes_nothing_more_does_not_keep_it_alive(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, str(SCRIPT), "hello", "--port", str(port)]
        with subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            self.addCleanup(process.kill)
            self.assertIn(b"serves hello", process.stderr.readline())
            client = socket.create_connection(("127.0.0.1", port), DEADLINE)
            self.addCleanup(client.close)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)  # their log fills the pipe
            client.settimeout(0.5)
            with self.assertRaises(OSError):  # a timeout
                while client.recv(1 << 20):
                    pass
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)

    @posix_signals
    def test_a_signal_right_at_the_start_ends_it_too(self) -> None:
        """The handler may run while the main thread is in the middle of a start-up line."""
        for _ in range(4):
            served = self.served("hello")
            self.assertTrue(served.url)
            self.assertEqual(self.end(served, signal.SIGINT), 0)

    @posix_signals
    def test_a_signal_while_the_application_is_imported_ends_it(self) -> None:
        self.write("slow.py", "import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(1)\n")
        for number in (signal.SIGINT, signal.SIGTERM):
            served = self.served("slow")
            served.wait_for("importing")
            self.end(served, number)

    @posix_signals
    def test_an_exception_that_ends_a_program_ends_only_the_request_that_raises_it(self) -> None:
        self.write("main.py", """
            import asyncio, builtins

            async def app(scope, receive, send):
                async def leave():
                    raise getattr(builtins, scope["query_string"].decode())

                assert scope["type"] == "http"
                if scope["query_string"]:
                    await (asyncio.create_task(leave()) if scope["path"] == "/task" else leave())
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"hello"})

            if __name__ == "__main__":
                import devserve
                devserve.run(app, port=0)
        """)  # fmt: skip
        path = {"PYTHONPATH": str(SCRIPT.parent)}
        for script in (None, ["main.py"]):
            served = self.served(*([] if script else ["main"]), script=script, port=not script, env=path)
            for target in (
                "/view?SystemExit",
                "/task?SystemExit",
                "/view?KeyboardInterrupt",
                "/task?KeyboardInterrupt",
            ):
                self.assertEqual(served.ask(target).status, 500, target)
            self.assertEqual(served.get(), "hello")
            served.process.send_signal(signal.SIGINT)
            self.assertEqual(served.process.wait(DEADLINE), 0, served.log)

    @posix_signals
    def test_a_handler_of_the_applications_own_ends_the_server(self) -> None:
        for handler in ("signal.default_int_handler", "lambda *_: sys.exit(7)"):
            start = f"import signal, sys\nsignal.signal(signal.SIGINT, {handler})\nVERSION = 'one'\n"
            self.write("main.py", start + textwrap.dedent(ASGI_HELLO))
            served = self.served("main")
            self.assertEqual(served.get(), "one")
            served.process.send_signal(signal.SIGINT)
            self.assertEqual(served.process.wait(DEADLINE), 7 if "exit" in handler else 0, served.log)

    @posix_signals
    def test_exit_handlers_run_and_output_is_flushed(self) -> None:
        self.write(
            "leaving.py",
            "import atexit, sys\natexit.register(print, 'goodbye')\nsys.stdout.write('unflushed ')"
            + textwrap.dedent(HELLO),
        )
        served = self.served("leaving")
        served.get()
        self.end(served, signal.SIGTERM)
        self.assertIn("unflushed", served.log)
        self.assertIn("goodbye", served.log)

    @posix_signals
    def test_the_last_lines_of_the_log_are_not_lost(self) -> None:
        served = self.served("hello")
        for number in range(5):
            served.get(f"/{number}")
        self.end(served, signal.SIGINT)
        self.assertEqual(sorted(re.findall(r"GET /(\d) ", served.log)), ["0", "1", "2", "3", "4"])

    @posix_signals
    def test_the_line_of_a_request_whose_client_has_the_answer_is_not_lost(self) -> None:
        self.write("closing.py", """
            import time
            class Answer(list):
                def close(self):
                    time.sleep(0.05)
            def app(environ, start_response):
                start_response("200 OK", [])
                return Answer([b"hello"])
        """)  # fmt: skip
        served = self.served("closing")
        served.get("/last")
        self.end(served, signal.SIGINT)
        self.assertIn("GET /last 200", served.log)

    @posix_signals
    @unittest.skipIf(sys.implementation.name == "pypy", "PyPy runs the handlers in an order of its own")
    def test_a_signal_that_has_come_before_a_restart_is_acted_on_before_its_handler_goes(self) -> None:
        """Both signals have come when the interpreter looks: it runs the handler of the smaller number first."""
        text = f"""
            import signal, sys
            sys.path.insert(0, {str(SCRIPT.parent)!r})
            import devserve
            ended = []
            signals = devserve._Signals(lambda: ended.append(1), print, at_once=True, in_code=False, reloads=True)
            signals.take(after_fork=lambda: None)
            signals.errands.append(signals._pause)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGHUP])
            print(signals.stopped, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
            signals._resume()
            print(signal.getsignal(signal.SIGTERM) == signals._on_stop)
        """
        path = self.write("pausing.py", text)
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=DEADLINE)
        self.assertEqual(done.stdout.split(), ["True", "True", "True"], done.stderr)

    def stopped(self, kind: Any = devserve._Signals, delay: float = 0.0) -> list[str]:
        """Return what `_Signals.stop` has called."""
        called: list[str] = []
        signals = kind(lambda: called.append("end"), print, at_once=True, in_code=False, reloads=True)
        signals.stop(delay)
        for thread in NATIVE_THREADING.enumerate():
            if thread.name == "devserve end":
                thread.join(DEADLINE)
        self.assertTrue(signals.stopped)
        return called

    def test_a_signal_ends_it_though_the_system_has_no_thread_left(self) -> None:
        self.assertEqual(self.stopped(), ["end"])
        with mock.patch.object(NATIVE_THREADING.Thread, "start", side_effect=RuntimeError):
            self.assertEqual(self.stopped(), ["end"])
            self.assertEqual(self.stopped(delay=600.0), [], "the signal handler waits for nothing")

    def test_nothing_ends_what_pdb_has_begun_anew_in_an_emptied_main(self) -> None:
        with mock.patch.dict(vars(devserve)):
            ours = vars(devserve).pop("_Signals")
            for anew in (None, type("_Signals", (ours,), {})):  # before the second start, and after it
                vars(devserve)["_Signals"] = anew
                self.assertEqual(self.stopped(ours), [])

    @posix_signals
    def test_a_signal_at_any_moment_of_a_reload_ends_the_process(self) -> None:
        run = "\nif __name__ == '__main__':\n    import devserve\n    devserve.run(app, port=0, reload=True)\n"
        self.write("main.py", textwrap.dedent(HELLO) + run)
        command: dict[str, Any] = {}
        in_code: dict[str, Any] = {"script": ["main.py"], "port": False, "env": {"PYTHONPATH": str(SCRIPT.parent)}}
        ways = {"command": (["hello", "--reload"], command, "hello.py"), "code": ([], in_code, "main.py")}
        if sys.implementation.name == "pypy":  # acts on a signal some time after it came, and an exec may come between
            del ways["code"]
        moments = random.Random(5)
        for name, (arguments, options, file) in ways.items():
            for number in (signal.SIGTERM, signal.SIGINT) * 6:
                with self.subTest(name, number=number):
                    served = self.served(*arguments, **options)
                    self.assertEqual(served.get(), "hello")
                    path = self.folder / file
                    path.write_text(path.read_text() + "\n# edited\n")
                    served.wait_for("reloading")
                    time.sleep(moments.random() * 0.1)  # any moment is meant
                    served.process.send_signal(number)
                    status = served.process.wait(DEADLINE)
                    meanwhile = {0, -number} if name == "command" else {0, -number, 1}  # 1: of the script itself
                    self.assertIn(status, meanwhile, served.log)


class RunnerSockets(RunnerCase):
    """Socket files."""

    def setUp(self) -> None:
        super().setUp()
        if not hasattr(socket, "AF_UNIX") or sys.platform == "win32":
            self.skipTest("needs socket files")
        holder = tempfile.TemporaryDirectory(prefix="ds")  # a socket's path may have about 100 bytes
        self.addCleanup(holder.cleanup)
        self.path = os.path.join(holder.name, "s.sock")

    def test_a_socket_file_is_served_and_removed_at_the_end(self) -> None:
        for prefix in ("unix:", "unix://"):
            with self.subTest(prefix):
                served = self.served("hello", "--host", prefix + self.path, port=False)
                served.wait_for(re.escape(self.path))
                self.assertEqual(fetch(self.path).body, b"hello")
                served.wait_for("GET / 200 5")
                self.assertEqual(served.stop(), 0)
                self.assertFalse(os.path.exists(self.path))

    def test_a_stale_socket_file_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(self.path)
        served = self.served("hello", "--host", f"unix:{self.path}", port=False)
        served.wait_for("production")
        self.assertEqual(fetch(self.path).body, b"hello")

    def test_a_socket_file_in_use_is_left_alone(self) -> None:
        first = self.served("hello", "--host", f"unix:{self.path}", port=False)
        first.wait_for("production")
        line = self.failed("hello", "--host", f"unix:{self.path}")
        self.assertIn(self.path, line)
        self.assertIn("in use", line)
        self.assertEqual(fetch(self.path).body, b"hello")

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        with open(self.path, "w", encoding="utf-8") as file:
            file.write("precious")
        self.assertIn(self.path, self.failed("hello", "--host", f"unix:{self.path}"))
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "precious")

    def test_socket_paths_that_cannot_be_are_one_line(self) -> None:
        for path in ("/nonexistent/folder/s.sock", "/tmp/" + "x" * 200, ""):
            with self.subTest(path):
                self.failed("hello", "--host", f"unix:{path}")

    def test_a_relative_socket_file_is_removed_though_the_application_changed_folders(self) -> None:
        self.write("mover.py", "import os\nos.chdir('/')" + textwrap.dedent(HELLO))
        folder = os.path.dirname(self.path)
        served = self.served("mover", "--host", f"unix:{os.path.relpath(self.path, self.folder)}", port=False)
        served.wait_for("production")
        eventually(lambda: os.path.exists(self.path), "the socket file")
        self.assertEqual(eventually(lambda: fetch(self.path), "an answer").body, b"hello")
        served.stop()
        self.assertEqual(os.listdir(folder), [])

    def test_the_environ_of_a_socket_file_is_whole(self) -> None:
        self.write(
            "shows.py",
            """
            from wsgiref.validate import validator
            @validator
            def app(environ, start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [repr(sorted((k, v) for k, v in environ.items() if k[:6] in ("SERVER", "REMOTE"))).encode()]
        """,
        )
        served = self.served("shows", "--host", f"unix:{self.path}", port=False)
        served.wait_for("production")
        answer = fetch(self.path)
        self.assertEqual(answer.status, 200)
        environ = {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "REMOTE_ADDR": "", "REMOTE_PORT": ""}
        self.assertEqual(environ, {key: value for key, value in ast.literal_eval(answer.text) if key in environ})


class RunnerPortInUse(RunnerCase):
    """Whatever keeps an address from being bound is one line with its remedy."""

    def test_the_line_names_address_program_pid_and_a_command_that_works(self) -> None:
        with listening() as sock:
            port = sock.getsockname()[1]
            line = self.failed("hello", "--port", str(port), "-q")
            self.assertIn(f"127.0.0.1:{port}", line)
            self.assertIn("in use", line)
            if os.path.exists("/proc/net/tcp"):
                with open("/proc/self/comm", encoding="utf-8") as name:
                    self.assertIn(f"{name.read().strip()} (pid {os.getpid()})", line)
            command = shlex.split(line.rpartition("try: ")[2])
            self.assertIn("-q", command)
            self.assertIn("hello", command)
            self.assertNotIn(str(port), command)
            served = self.served(*command[2:], port=False)
            self.assertEqual(served.get(), "hello")
            self.assertGreater(served.port, port)

    @unittest.skipUnless(HAS_IPV6, "needs IPv6")
    def test_the_holder_of_an_ipv6_port_is_found(self) -> None:
        with listening("::1", 0) as sock:
            port = sock.getsockname()[1]
            for host in ("::1", "[::1]"):
                line = self.failed("hello", "--host", host, "--port", str(port))
                self.assertIn(f" [::1]:{port}", line)
                if os.path.exists("/proc/net/tcp6"):
                    self.assertIn(f"(pid {os.getpid()})", line)

    def test_a_used_port_is_told_before_the_application_is_imported(self) -> None:
        self.write("noisy.py", "print('imported')" + textwrap.dedent(HELLO))
        with listening() as sock:
            self.failed("noisy", "--port", str(sock.getsockname()[1]))

    def test_hosts_that_cannot_be_bound_have_their_own_lines(self) -> None:
        lines = {
            "192.0.2.1": "not an address of this machine", "nowhere.invalid": "does not resolve",
            "": "names no address", "unix:": "names no address", "a..b": "resolve", "x" * 300: "resolve",
        }  # fmt: skip
        for host, word in lines.items():
            with self.subTest(host):
                self.assertIn(word, self.failed("hello", "--host", host, "--port", "0"))

    def test_the_next_free_port_is_really_free(self) -> None:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(listening())
            port = first.getsockname()[1]
            for neighbour in (port + 1, port + 2):
                with contextlib.suppress(OSError, OverflowError):
                    stack.enter_context(listening("127.0.0.1", neighbour))
            free = devserve._next_free_port("127.0.0.1", port)
            self.assertTrue(free == 0 or free > port)
            if free:
                listening("127.0.0.1", free).close()

    def error(self, number: int, *, host: str = "127.0.0.1", port: int = 5000) -> str:
        error = OSError(number, "the system's words")
        return str(devserve._bind_error(error, host, port, lambda free: f"COMMAND {free}"))

    def test_every_system_s_number_for_a_used_port_is_understood(self) -> None:
        with mock.patch.object(devserve, "_port_holder", lambda port: " by python (pid 4711)"):
            for number in (errno.EADDRINUSE, errno.EACCES):  # the second on Windows, as [WinError 10013]
                line = self.error(number)
                self.assertIn("already in use by python (pid 4711)", line)
                self.assertRegex(line, r"COMMAND 50\d\d")

    def test_a_port_that_needs_privileges(self) -> None:
        with mock.patch.object(devserve, "_port_holder", lambda port: ""):
            line = self.error(errno.EACCES, port=80)
            self.assertIn("privileges", line)
            self.assertIn("COMMAND 8080", line)

    def test_the_suggestion_is_a_port_for_every_port(self) -> None:
        for port in (1, 80, 443, 1023, 60_000, 65_535):
            suggested = re.search(r"COMMAND (\d+)", self.error(errno.EACCES, port=port))
            self.assertTrue(suggested is None or 1024 <= int(suggested[1]) <= 65_535, suggested)

    def test_the_command_that_is_proposed_names_one_port_wherever_the_taken_one_stood(self) -> None:
        for words, proposed in {
            "hello": "hello --port 8001",
            "hello -p 8000 --debug": "hello -p 8001 --debug",
            "hello -p8000": "hello -p8001",
            "hello --port=8000": "hello --port=8001",
            "manage.py runserver 8000": "manage.py runserver 8001",
            "0.0.0.0:8000 hello8000": "0.0.0.0:8001 hello8000",
            "hello --host http://localhost:8000/": "hello --host http://localhost:8001/",
            "hello:app:8000": "hello:app:8001",
            "hello --port 08000": "hello --port 08000 --port 8001",
        }.items():
            with self.subTest(words), mock.patch.object(sys, "argv", ["devserve.py", *words.split()]):
                command = devserve._command_for_port(8000, 8001)
                self.assertTrue(command.endswith(f"devserve.py {proposed}"), command)
                given = devserve._read_command(shlex.split(command.partition("devserve.py ")[2]))[0]
                self.assertEqual(given["port"], 8001)

    def test_the_airplay_hint_for_port_5000_on_macos(self) -> None:
        with (
            mock.patch.object(sys, "platform", "darwin"),
            mock.patch.object(devserve, "_port_holder", lambda port: ""),
        ):
            self.assertIn("AirPlay", self.error(errno.EADDRINUSE))
            self.assertNotIn("AirPlay", self.error(errno.EADDRINUSE, port=5001))
        self.assertNotIn("AirPlay", self.error(errno.EADDRINUSE))

    def test_lsof_and_netstat_are_understood_and_their_absence_too(self) -> None:
        lsof = "p4711\ncControlCe\np4712\ncanother\n"
        netstat = (
            "\nActive Connections\n\n  Proto  Local Address          Foreign Address        State           PID\n"
            "  TCP    0.0.0.0:135            0.0.0.0:0              LISTENING       900\n"
            "  TCP    127.0.0.1:5000         127.0.0.1:5999         ESTABLISHED     1\n"
            "  TCP    127.0.0.1:50001        0.0.0.0:0              ABH\xd6REN         2\n"
            "  TCP    127.0.0.1:5000         0.0.0.0:0              ABH\xd6REN         4711\n"
        )
        said = {"lsof": lsof, "netstat": netstat, "tasklist": '"python.exe","4711","Console","1","20,000 K"\n'}
        with mock.patch.object(devserve, "_tool_output", lambda tool, *arguments: said[tool]):
            for platform, name in (("darwin", "ControlCe"), ("freebsd13", "ControlCe"), ("win32", "python.exe")):
                with mock.patch.object(sys, "platform", platform):
                    self.assertEqual(devserve._port_holder(5000), f" by {name} (pid 4711)")
        for platform in ("darwin", "win32", "freebsd13"):
            with mock.patch.object(sys, "platform", platform), mock.patch.dict(os.environ, {"PATH": "/nowhere"}):
                self.assertEqual(devserve._port_holder(5000), "")

    def test_an_unknown_holder_is_no_failure(self) -> None:
        with mock.patch.object(os, "listdir", side_effect=PermissionError("no")):
            self.assertIn("already in use;", self.error(errno.EADDRINUSE))


class RunnerImport(RunnerCase):
    """What the module does while it is imported."""

    APP = """
        import os, threading
        from wsgiref.simple_server import make_server
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"hello ", os.environ.get("FLASK_RUN_FROM_CLI", "unset").encode()]
    """

    def module(self, text: str) -> None:
        self.write("unguarded.py", textwrap.dedent(self.APP) + textwrap.dedent(text))

    def test_server_that_the_module_starts_is_left_out_with_a_warning(self) -> None:
        self.module("with make_server('127.0.0.1', 0, app) as server: server.serve_forever()")
        served = self.served("unguarded")
        self.assertEqual(served.get(), "hello unset")
        self.assertRegex(
            served.log, r"warning: the server that the import starts .* is left out; start it under if __name__"
        )

    def test_first_import_that_fails_is_the_end_whatever_threads_it_has_left(self) -> None:
        for last, status in (("1 / 0", 1), ("del app", 2)):
            with self.subTest(last):
                self.module("import time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n" + last)
                served = self.served("unguarded", "--reload")
                self.assertEqual(served.process.wait(DEADLINE), status)

    def test_server_that_the_module_starts_in_a_thread_serves(self) -> None:
        self.module("""
            server = make_server("127.0.0.1", 0, app)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(f"beside: {server.server_port}.", flush=True)
        """)
        served = self.served("unguarded")
        port = served.wait_for(r"beside: (\d+)\.").group(1)

        def asked() -> bytes:
            with Client(int(port), version="1.0") as client:
                return client.ask().body

        eventually(lambda: asked() == b"hello unset", "the environment after the import, which may go on for a moment")
        self.assertNotIn("left out", served.log)

    @needs("flask")
    def test_flask_run_without_a_main_guard_is_left_out(self) -> None:
        self.module("""
            import flask
            app = flask.Flask("hello")
            app.add_url_rule("/", view_func=lambda: flask.request.environ["SERVER_SOFTWARE"])
            app.run(port=0)
        """)
        self.assertIn("devserve", self.served("unguarded").get())

    @needs("bottle")
    def test_bottle_run_without_a_main_guard_is_left_out(self) -> None:
        self.module("""
            import bottle
            del app
            bottle.route("/", callback=lambda: "bottle")
            bottle.run(port=0, quiet=True)
        """)
        self.assertEqual(self.served("unguarded").get(), "bottle")
        self.served("unguarded:app").wait_for("no 'app' in 'unguarded'; did you mean 'unguarded'?")

    def test_import_that_takes_long_is_told_with_its_place_and_clients_wait(self) -> None:
        self.module("import socket\nlisten = socket.create_server(('127.0.0.1', 0))\nprint(listen.getsockname())")
        lines = (self.folder / "unguarded.py").read_text(encoding="utf-8").count("\n")
        with (self.folder / "unguarded.py").open("a", encoding="utf-8") as file:
            file.write("\nlisten.accept()\n")
        start = (
            f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import devserve; devserve._IMPORT_PATIENCE = 0.2"
        )
        script = self.write("impatient.py", f"{start}; sys.exit(devserve.main())")
        served = self.served("unguarded", script=[str(script)], flags=("-u",))
        served.wait_for(rf"warning: still importing after .*unguarded\.py, line {lines + 2}\n")
        with Client(served.port) as client:
            client.request()
            port = int(served.wait_for(r"\('127\.0\.0\.1', (\d+)\)").group(1))
            socket.create_connection(("127.0.0.1", port), DEADLINE).close()
            self.assertEqual(client.answer().text, "hello unset")

    def test_import_that_stays_in_an_event_loop_is_told_the_remedy(self) -> None:
        self.module("import asyncio\nasyncio.new_event_loop().run_forever()")
        self.served("unguarded").wait_for(r"line \d+, in an event loop; one that serves belongs under if __name__ ==")

    def test_import_of_asyncio_that_takes_long_is_taken_for_no_event_loop(self) -> None:
        places: list[str] = []
        names = {"__name__": "asyncio.events", "places": places, "ident": threading.get_ident(), "devserve": devserve}
        exec("places.append(devserve._thread_place(ident))", names)
        self.assertNotIn("event loop", places[0])

    @unittest.skipUnless(hasattr(gc, "freeze"), "PyPy collects otherwise")
    def test_no_garbage_is_collected_while_the_application_is_imported(self) -> None:
        self.write(
            "young.py",
            """
            import gc, json
            froze = []
            freeze = gc.freeze
            gc.freeze = lambda: froze.append(freeze())
            looks = []
            gc.callbacks.append(lambda phase, info: looks.append(phase))
            garbage = [[] for _ in range(50_000)]
            at_import = len(looks)
            del gc.callbacks[:]

            def app(environ, start_response):
                start_response("200 OK", [])
                facts = [at_import, len(froze), gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 50_000]
                return [json.dumps(facts).encode()]
            """,
        )
        plain = subprocess.run(
            [sys.executable, "-c", "import gc; print(list(gc.get_threshold()))"], stdout=subprocess.PIPE, check=True
        )
        facts = json.loads(self.served("young").get())
        self.assertEqual(facts, [0, 1, json.loads(plain.stdout), True, True])

    @unittest.skipUnless(hasattr(gc, "freeze"), "PyPy collects otherwise")
    def test_what_the_import_leaves_behind_in_a_cycle_is_collected(self) -> None:
        self.write(
            "left.py",
            """
            import weakref
            class Connection: pass
            connection = Connection()
            connection.itself, left = connection, weakref.ref(connection)
            del connection
            def app(environ, start_response):
                start_response("200 OK", [])
                return [str(left()).encode()]
            """,
        )
        self.assertEqual(self.served("left").get(), "None")

    @unittest.skipUnless(hasattr(gc, "freeze"), "PyPy collects otherwise")
    def test_an_applications_own_rules_for_garbage_are_kept_and_a_failed_import_changes_none(self) -> None:
        get_threshold, before = gc.get_threshold, gc.get_threshold()
        self.addCleanup(gc.set_threshold, *before)
        self.addCleanup(gc.enable)

        def load(act: Callable[[], Any]) -> Any:
            with devserve._CollectorAtRest():
                return act()

        def own() -> int:
            gc.set_threshold(50)
            return gc.get_threshold()[0]

        with mock.patch.object(gc, "collect"), mock.patch.object(gc, "freeze") as freeze:
            self.assertRaises(ZeroDivisionError, load, lambda: 1 // 0)
            self.assertEqual((gc.get_threshold(), freeze.call_count), (before, 1))
            load(lambda: gc.set_threshold(12_345, 6, 7))
            self.assertEqual(gc.get_threshold()[:2], (12_345, 6))
            load(lambda: gc.set_threshold(0))
            self.assertEqual(gc.get_threshold()[:2], (0, 6))
            gc.set_threshold(12_345)
            load(gc.disable)
            self.assertFalse(gc.isenabled())
            self.assertEqual(gc.get_threshold()[:2], (12_345, 6))
            gc.set_threshold(700, 7, 8)
            load(lambda: gc.set_threshold(2 * gc.get_threshold()[0] + 50, 9))
            self.assertEqual(gc.get_threshold()[:2], (1450, 9), "the application computes from what it finds")
            self.assertEqual(load(own), 50)
        self.assertIs(gc.get_threshold, get_threshold)
        with mock.patch.object(devserve, "gc", object()):  # PyPy's has no thresholds and nothing to freeze
            self.assertEqual(load(lambda: "loaded"), "loaded")

    @unittest.skipUnless(hasattr(gc, "freeze") and hasattr(os, "fork"), "needs fork, and a collector that can rest")
    def test_a_worker_that_is_forked_during_the_import_collects_garbage(self) -> None:
        self.write(
            "workers.py",
            """
            import gc, os
            read, write = os.pipe()
            if not os.fork():
                os.write(write, str(gc.get_threshold()[0]).encode())
                os._exit(0)
            threshold = os.read(read, 99)
            def app(environ, start_response):
                start_response("200 OK", [])
                return [threshold, b" ", str(gc.get_threshold()[0]).encode()]
            """,
        )
        child, parent = self.served("workers").get().split()
        self.assertEqual(child, parent)


class RunnerInCode(RunnerCase):
    """run and make_server."""

    def test_make_server_tells_how_to_open_the_console(self) -> None:
        screen = io.StringIO()
        with mock.patch.object(sys, "stderr", screen), devserve.make_server(failing_app, debugger=True) as server:
            guard = server.app.guard  # type: ignore[attr-defined]
            self.assertIn(guard.pin, screen.getvalue())
            self.assertIn(guard.unlock_url(f"http://127.0.0.1:{server.server_port}"), screen.getvalue())

    def program(self, call: str, before: str = "", after: str = "") -> pathlib.Path:
        text = f"""
            import sys
            sys.path.insert(0, {str(SCRIPT.parent)!r})
            import devserve
            {before}
            def app(environ, start_response):
                start_response("200 OK", [])
                return [b"hello"]
            if __name__ == "__main__":
                print("started", flush=True)
                {call}
                {after}
        """
        return self.write("program.py", text)

    def ran(self, call: str, before: str = "", after: str = "") -> Served:
        path = self.program(call, before, after)
        return self.served(script=[str(path)], port=False)

    def test_run_serves(self) -> None:
        served = self.ran("devserve.run(app, port=0)")
        self.assertEqual(served.get(), "hello")
        served.wait_for("GET / 200 5")
        self.assertEqual(served.stop(), 0)

    @posix_signals
    def test_after_ctrl_c_the_program_goes_on_and_nothing_is_left_of_the_server(self) -> None:
        tell = "print('threads', [thread.name for thread in threading.enumerate()], flush=True)"
        bind = "socket.create_server(('127.0.0.1', int(open('port').read()))); print('bound')"
        served = self.ran("devserve.run(app, port=0)", after=f"import threading, socket; {tell}; {bind}")
        (self.folder / "port").write_text(str(served.port))
        served.get()
        self.assertEqual(served.stop(), 0, served.log)
        self.assertIn("bound", served.log)
        self.assertNotIn("acceptor", served.log)

    @posix_signals
    def test_ctrl_c_that_meets_a_destructor_ends_it_too(self) -> None:
        """The exception is ignored there, and comes no further."""
        before = """
            import os, signal, time
            class Interrupted:
                def __del__(self):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.1)
            def destroy(*args):
                Interrupted()
                import gc
                gc.collect()
            signal.signal(signal.SIGUSR1, destroy)
        """
        self.write("before.py", before)
        served = self.ran("devserve.run(app, port=0)", before="import before")
        self.assertEqual(served.get(), "hello")
        served.process.send_signal(signal.SIGUSR1)
        self.assertEqual(served.process.wait(DEADLINE), 0)
        served.reader.join(DEADLINE)
        if sys.implementation.name == "cpython":  # PyPy runs handlers at moments of its own
            self.assertIn("Exception ignored", served.log)

    @posix_signals
    def test_ctrl_c_while_a_reload_waits_for_a_request_ends_the_program(self) -> None:
        run = "devserve.run(app, port=0, reload=True)"
        path = self.program(run, before="import time", after="print('goes on', flush=True)")
        slow_view = "environ['PATH_INFO'] == '/slow' and (print('began', flush=True), time.sleep(2)); start_response("
        path.write_text(path.read_text().replace('start_response("', slow_view + '"'))
        served = self.served(script=[str(path)], port=False)
        with Client(served.port) as slow, Client(served.port) as late:
            slow.request("/slow")
            served.wait_for("began")
            path.write_text(path.read_text() + "# changed\n")
            served.wait_for("changed, reloading")
            late.request()
            Client(served.port).close()
            self.assertEqual(served.stop(), 0, served.log)
        self.assertEqual(served.log.count("started"), 1, served.log)
        self.assertIn("goes on", served.log)

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_a_run_that_returns_leaves_no_descriptor_and_can_be_repeated(self) -> None:
        run = "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start(); devserve.run(app, 0, reload=True)"
        tell = "print('left', sorted(os.listdir('/proc/self/fd')), signal.set_wakeup_fd(-1), flush=True)"
        served = self.ran(
            f"{tell}; {run.replace('app, 0', 'app, port=0')}; {tell}", before="import os, signal, threading"
        )
        served.process.wait(DEADLINE)
        served.reader.join(DEADLINE)
        before, after = re.findall("left .*", served.log)
        self.assertEqual(before, after)

    @posix_signals
    def test_run_at_a_prompt_serves_without_the_reloader_and_says_so(self) -> None:
        lines = [
            f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import devserve",
            "def app(environ, start_response):",
            "    start_response('200 OK', [])",
            "    return [b'typed']",
            "",
            "try: devserve.run(app, port=0, debug=True)",
            "finally: print('the prompt', 'goes on')",
            "",
        ]
        typed = self.write("typed", "\n".join([*lines, ""]))
        script = self.write("script", "\n".join(line for line in lines if line))
        for name, path, words in (
            ("the interpreter", typed, ["-i"]),
            ("code.interact", typed, ["-c", "import code; code.interact()"]),
            ("standard input", script, ["-"]),
            ("a pipe that the shell names", script, ["/dev/stdin"]),
            ("another's prompt", script, ["-c", "exec(compile(open(0).read(), '<stdin>', 'exec'))"]),
        ):
            with self.subTest(name):
                start = f"import os; os.dup2(os.open({str(path)!r}, os.O_RDONLY), 0); "
                start += f"os.execv({sys.executable!r}, {[sys.executable, *words]!r})"
                served = self.served(script=["-c", start], port=False)
                self.assertEqual(served.get(), "typed")
                self.assertRegex(served.log, "warning: there is no reloader at a prompt")
                served.stop()
                self.assertIn("the prompt goes on", served.log)

    @posix_signals
    def test_no_socket_takes_the_number_of_a_standard_stream_that_is_closed(self) -> None:
        self.write(
            "streams.py",
            """
            import os, stat
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0, inheritable=False)  # a reload closes it again

            def app(_, start):
                start('200 OK', [])
                return [repr([VERSION, [stat.S_ISCHR(os.fstat(fd).st_mode) for fd in (0, 1)]]).encode()]

            VERSION = 1
            """,
        )
        start = "import os, sys; os.closerange(0, 2); "
        command = [sys.executable, str(SCRIPT), "streams:app", "--reload", "--port", "0"]
        served = self.served(script=["-c", f"{start}os.execv(sys.executable, {command!r})"], port=False)
        self.assertEqual(served.get(), "[1, [True, True]]")
        path = self.folder / "streams.py"
        path.write_text(path.read_text().replace("VERSION = 1", "VERSION = 2 "))
        eventually(lambda: served.get() == "[2, [True, True]]", "the new version")

    @posix_signals
    def test_devserve_itself_from_standard_input_serves_without_the_reloader_and_says_so(self) -> None:
        self.write("typed.py", "def app(_, start):\n    start('200 OK', [])\n    return [b'typed']\n")
        start = f"import os; os.dup2(os.open({str(SCRIPT)!r}, os.O_RDONLY), 0); "
        start += f"os.execv({sys.executable!r}, [{sys.executable!r}, '-', 'typed:app', '--debug', '--port', '0'])"
        served = self.served(script=["-c", start], port=False)
        self.assertEqual(served.get(), "typed")
        self.assertRegex(served.log, "warning: there is no reloader [^\n]* standard input")

    @posix_signals
    def test_a_signal_handler_of_the_program_is_its_own_again_after_ctrl_c(self) -> None:
        served = self.ran(
            "devserve.run(app, port=0)",
            before="import signal\n            signal.signal(signal.SIGTERM, print)",
            after="print('handler', signal.getsignal(signal.SIGTERM) is print)",
        )
        served.get()
        self.assertEqual(served.stop(), 0, served.log)
        self.assertIn("handler True", served.log)

    @posix_signals
    def test_a_socket_file_is_removed_after_ctrl_c_in_code(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ds") as folder:
            served = self.ran(f"devserve.run(app, host={'unix:' + folder + '/s'!r})")
            served.wait_for("production")
            self.assertEqual(fetch(folder + "/s").body, b"hello")
            served.stop()
            self.assertEqual(os.listdir(folder), [])

    def test_a_mistake_in_code_is_one_line_and_status_2(self) -> None:
        for call in (
            "devserve.run(app, port=70000)",
            "devserve.run(app, host='nowhere.invalid')",
            "devserve.run(app, port=0, cert='missing.pem')",
            "devserve.run('program:app', port=0)",
            "devserve.run(devserve, port=0)",
        ):
            with self.subTest(call):
                served = self.ran(call)
                served.process.wait(DEADLINE)
                served.reader.join(DEADLINE)
                self.assertEqual(served.process.returncode, 2)
                self.assertRegex(served.log, r"^started\ndevserve: error: [^\n]+\n$")

    def test_a_used_port_in_code_is_told_with_the_keyword_for_a_free_one(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as used:
            served = self.ran(f"devserve.run(app, port={used.getsockname()[1]})")
            served.process.wait(DEADLINE)
            served.reader.join(DEADLINE)
        self.assertRegex(served.log, r"already in use[^\n]*; try: port=\d+\n$")

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_a_module_that_starts_the_same_command_again_is_told_so(self) -> None:
        text = """
            import subprocess, sys
            subprocess.run([sys.executable, *sys.argv])
            def app(environ, start_response):
                start_response("200 OK", [])
                return []
        """
        self.write("again.py", text)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        served = self.served("again", "--reload", "--port", str(port), port=False)
        served.wait_for("already in use by the same command; a module that starts a reloader of its own")

    def test_a_file_of_the_name_of_a_module_of_the_interpreter_is_served(self) -> None:
        self.write("select.py", HELLO)
        self.assertEqual(self.served("select").get(), "hello")

    @unittest.skipIf(sys.platform == "win32", "has no socket files")
    def test_open_shows_the_application_when_it_answers_and_not_again_after_a_reload(self) -> None:
        get = "print(sys.argv[1], urllib.request.urlopen(sys.argv[1]).read(), file=open('seen', 'a'))"
        script = self.write("visit.py", f"import sys, urllib.request; {get}")
        browser = {"BROWSER": f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} %s"}
        served = self.served("hello", "--open", "--reload", env=browser)
        seen = self.folder / "seen"
        eventually(lambda: seen.exists() and seen.read_text(), "a visit")
        self.assertEqual(seen.read_text(), f"{served.url} b'hello'\n")
        (self.folder / "hello.py").write_text(textwrap.dedent(HELLO).replace("hello", "again"))
        served.wait_for("reloaded in")
        self.assertEqual(served.get(), "again")
        self.assertEqual(seen.read_text().count("http"), 1)

    def test_open_without_a_browser_is_a_warning(self) -> None:
        served = self.served("hello", "--open", env={"BROWSER": "no-such-browser", "PATH": "", "DISPLAY": ""})
        served.wait_for("warning: --open finds no browser that shows http")
        self.assertEqual(served.get(), "hello")

    def test_a_python_without_ssl_says_so(self) -> None:
        with mock.patch.dict(sys.modules, {"ssl": None}), self.assertRaisesRegex(devserve.DevserveError, "has no ssl"):
            devserve.make_server(hello, cert="cert.pem")

    def test_a_bad_certificate_leaves_no_socket_file_behind(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ds") as folder:
            self.failed("hello", "--host", f"unix:{folder}/s", "--cert", "missing.pem")
            self.assertEqual(os.listdir(folder), [])

    def test_an_unknown_option_is_a_type_error_before_anything_is_done(self) -> None:
        for function in (devserve.run, devserve.make_server):
            with mock.patch.object(devserve.Launch, "capture", side_effect=AssertionError):
                call: Any = function
                with self.assertRaisesRegex(TypeError, "use_reloader.* reload "):
                    call(lambda environ, start_response: [], use_reloader=True)

    def test_run_reads_env_files_and_variables_as_the_command_line_does(self) -> None:
        self.write(".env", "DEVSERVE_PORT=0\nFROM_ENV=a\n")
        self.write("mine.env", "FROM_MINE=b\n")
        tell = "print('read', os.environ['FROM_ENV'], os.environ['FROM_MINE'], flush=True)"
        served = self.ran("import os; devserve.run(app, env_file='mine.env')", after=tell)
        self.assertEqual(served.get(), "hello")
        self.assertNotEqual(served.port, 5000)
        served.stop()
        self.assertIn("read a b", served.log)

    def test_a_keyword_wins_over_a_variable(self) -> None:
        self.write(".env", "DEVSERVE_PORT=1\nDEVSERVE_DEBUG=maybe\n")
        served = self.ran("devserve.run(app, port=0)")
        served.wait_for("error: DEVSERVE_DEBUG=maybe: not a yes or no")
        self.write(".env", "DEVSERVE_PORT=1\nDEVSERVE_DEBUG=1\n")
        served = self.ran("devserve.run(app, port=0, debug=False)")
        self.assertEqual(served.get(), "hello")
        self.assertNotIn("PIN", served.log)

    def test_run_without_a_main_guard_is_left_out_when_devserve_serves_already(self) -> None:
        self.write("unguarded.py", "import devserve" + textwrap.dedent(HELLO) + "devserve.run(app, port=1)\n")
        served = self.served("unguarded")
        self.assertEqual(served.get(), "hello")
        self.assertIn("warning", served.log)

    def test_make_server_takes_a_free_port_and_is_a_context_manager(self) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"hello"]

        with devserve.make_server(app, quiet=True) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            self.assertEqual(fetch(server.server_port).body, b"hello")
            server.shutdown()
            thread.join(DEADLINE)
        listening("127.0.0.1", server.server_port).close()

    def test_make_server_listens_before_it_serves(self) -> None:
        """A test may connect at once: the connection waits until serve_forever runs."""
        with devserve.make_server(lambda e, sr: [], quiet=True) as server:
            socket.create_connection(("127.0.0.1", server.server_port), 2.0).close()

    def test_make_server_raises_what_the_person_can_mend(self) -> None:
        with listening() as sock, self.assertRaises(devserve.DevserveError) as caught:
            devserve.make_server(lambda e, sr: [], port=sock.getsockname()[1])
        self.assertIn("in use", str(caught.exception))
        for options in (
            {"port": 70_000},
            {"port": -1},
            {"host": "nowhere.invalid"},
            {"cert": "missing.pem"},
            {"key": "key.pem"},
        ):
            with self.subTest(options), self.assertRaises(devserve.DevserveError):
                devserve.make_server(lambda e, sr: [], **options)

    def test_a_failed_make_server_keeps_no_port(self) -> None:
        with listening() as sock:
            port = sock.getsockname()[1]
        with self.assertRaises(devserve.DevserveError):
            devserve.make_server(lambda e, sr: [], port=port, cert="missing.pem")
        listening("127.0.0.1", port).close()

    def test_load_app_is_public(self) -> None:
        with mock.patch.object(sys, "path", [str(self.folder), *sys.path]):
            app: Any = devserve.load_app(str(self.folder / "hello.py"))
        self.assertEqual(b"".join(app({}, lambda *arguments: None)), b"hello")

    # What makes an `app` in code whose view fails; the frameworks themselves would answer "Internal Server Error".
    FAILING: ClassVar[dict[str, str]] = {
        "flask": "import flask; app = flask.Flask('hello'); app.add_url_rule('/', view_func=lambda: 1 / 0)",
        "bottle": "import bottle; app = bottle.Bottle(); app.route('/', callback=lambda: 1 / 0)",
        "falcon": "import falcon; app = falcon.App(); view = type('View', (), {'on_get': lambda *_: 1 / 0});"
        " app.add_route('/', view())",
        "web": "import web; index = type('index', (), {'GET': lambda _: 1 / 0});"
        " app = web.application(('/', 'index'), globals())",
    }

    def failing_page(self, framework: str, call: str) -> str:
        """Run the application of FAILING by `call`; return the page of its failing view."""
        if not REQUIRE_ALL and importlib.util.find_spec(framework) is None:
            self.skipTest(f"needs the package {framework}")
        served = self.ran(f"{self.FAILING[framework]}; {call}")
        answer = served.ask(Accept="text/html")
        self.assertEqual(answer.status, 500)
        return answer.text

    def test_run_shows_the_debugger_for_frameworks_too(self) -> None:
        for framework in self.FAILING:
            for options in ("debug=True", "debugger=True"):
                with self.subTest(framework, options=options):
                    page = self.failing_page(framework, f"devserve.run(app, port=0, {options})")
                    self.assertIn("ZeroDivisionError", page)

    def test_make_server_shows_the_debugger_for_frameworks_too(self) -> None:
        tell = "print(f'http://127.0.0.1:{server.server_port}/', flush=True)"
        call = f"server = devserve.make_server(app, debugger=True); {tell}; server.serve_forever()"
        for framework in self.FAILING:
            with self.subTest(framework):
                self.assertIn("ZeroDivisionError", self.failing_page(framework, call))

    def test_run_in_a_thread_serves_without_touching_signals(self) -> None:
        start = "threading.Thread(target=devserve.run, args=(app,), kwargs={'port': 0}, daemon=True).start()"
        served = self.ran(f"import threading, time; {start}", after="while True: time.sleep(0.2)")
        self.assertEqual(served.get(), "hello")


# =====================================================================================================================
# 15. Command line
# =====================================================================================================================


def read_command(*arguments: str, **variables: str) -> Any:
    """Return the configuration of a command line with these DEVSERVE_* variables and no others."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("DEVSERVE_", "FLASK_"))}
    with mock.patch.dict(os.environ, {**environ, **variables}, clear=True):
        return devserve.configure(devserve._read_command(arguments)[0], lambda text: None)


class CommandLineOptions(Folder):
    """Options and variables become a Config."""

    # arguments, variables, and what differs from the defaults
    TABLE: list[tuple[list[str], dict[str, str], dict[str, Any]]] = [
        ([], {}, {}),
        (["hello"], {}, {"app": "hello"}),
        (["hello:app"], {}, {"app": "hello:app"}),
        (["--app", "hello"], {}, {"app": "hello"}),
        (["-A", "hello"], {}, {"app": "hello"}),
        (["--app", "hello", "--debug", "run"], {}, {"app": "hello", "debug": True, "reload": True, "debugger": True}),
        (["run", "--app=hello"], {}, {"app": "hello"}),
        (["--host", "0.0.0.0"], {}, {"host": "0.0.0.0"}),
        (["-H", "::1"], {}, {"host": "::1"}),
        (["-H", "unix:/tmp/a"], {}, {"host": "unix:/tmp/a"}),
        (["--port", "0"], {}, {"port": 0}),
        (["--port=8000"], {}, {"port": 8000}),
        (["-p8000"], {}, {"port": 8000}),
        (["-p", "65535"], {}, {"port": 65535}),
        (
            ["hello", "-p", "1", "--debug"],
            {},
            {"app": "hello", "port": 1, "debug": True, "reload": True, "debugger": True},
        ),
        (["-d"], {}, {"debug": True, "reload": True, "debugger": True}),
        (["--debug", "--no-debug"], {}, {}),
        (["--debug", "--no-reload"], {}, {"debug": True, "debugger": True}),
        (["--debug", "--no-debugger"], {}, {"debug": True, "reload": True}),
        (["--reload"], {}, {"reload": True}),
        (["--debugger"], {}, {"debugger": True}),
        (["--extra-files", "a", "--extra-files", f"b{os.pathsep}c"], {}, {"extra_files": ("a", "b", "c")}),
        (["--exclude-patterns", "*.tmp"], {}, {"exclude_patterns": ("*.tmp",)}),
        (["--without-threads"], {}, {"threads": False}),
        (["--with-threads"], {}, {}),
        (["--without-threads", "--with-threads"], {}, {}),
        (["--cert", "c.pem", "--key", "k.pem"], {}, {"cert": "c.pem", "key": "k.pem"}),
        (["--pin", "off"], {}, {"pin": "off"}),
        (["--trusted-host", "a.test", "--trusted-host", "b.test"], {}, {"trusted_hosts": ("a.test", "b.test")}),
        (["--open"], {}, {"open": True}),
        (["--live", "--reload"], {}, {"live": True, "reload": True}),
        (["--live", "--no-live"], {}, {}),
        (["--cert", "adhoc"], {}, {"cert": "adhoc"}),
        (["--editor", "vscode"], {}, {"editor": "vscode"}),
        (["--path-map", "/a=/b", "--path-map", "/c=/d"], {}, {"path_map": ("/a=/b", "/c=/d")}),
        (["-q"], {}, {"quiet": True}),
        (["--quiet"], {}, {"quiet": True}),
        # variables
        ([], {"DEVSERVE_HOST": "::"}, {"host": "::"}),
        ([], {"DEVSERVE_PORT": "8001"}, {"port": 8001}),
        (["-p", "8002"], {"DEVSERVE_PORT": "8001"}, {"port": 8002}),
        ([], {"DEVSERVE_DEBUG": "1"}, {"debug": True, "reload": True, "debugger": True}),
        ([], {"DEVSERVE_DEBUG": "0"}, {}),
        ([], {"DEVSERVE_DEBUG": ""}, {}),
        (["--no-debug"], {"DEVSERVE_DEBUG": "true"}, {}),
        ([], {"DEVSERVE_DEBUG": "yes", "DEVSERVE_RELOAD": "no"}, {"debug": True, "debugger": True}),
        ([], {"DEVSERVE_DEBUG": "on", "DEVSERVE_NO_DEBUGGER": "1"}, {"debug": True, "reload": True}),
        ([], {"DEVSERVE_QUIET": "1"}, {"quiet": True}),
        ([], {"DEVSERVE_QUIET": "off"}, {}),
        ([], {"DEVSERVE_WITHOUT_THREADS": "1"}, {"threads": False}),
        ([], {"DEVSERVE_WITHOUT_THREADS": "0"}, {}),
        ([], {"DEVSERVE_NO_DEBUG": "", "DEVSERVE_NO_RELOAD": "0", "DEVSERVE_NO_DEBUGGER": "no"}, {}),
        ([], {"DEVSERVE_DEBUG": "1", "DEVSERVE_NO_RELOAD": "0"}, {"debug": True, "reload": True, "debugger": True}),
        ([], {"DEVSERVE_WITH_THREADS": "0"}, {"threads": False}),
        (["--with-threads"], {"DEVSERVE_WITHOUT_THREADS": "1"}, {}),
        ([], {"DEVSERVE_EXTRA_FILES": f"a{os.pathsep}b"}, {"extra_files": ("a", "b")}),
        ([], {"DEVSERVE_CERT": "c.pem", "DEVSERVE_KEY": "k.pem"}, {"cert": "c.pem", "key": "k.pem"}),
        ([], {"DEVSERVE_PIN": "1234"}, {"pin": "1234"}),
        ([], {"DEVSERVE_TRUSTED_HOST": "a.test, b.test"}, {"trusted_hosts": ("a.test", "b.test")}),
        ([], {"DEVSERVE_NOTHING_OF_OURS": "1"}, {}),
        ([], {"DEVSERVE_OPEN": "1"}, {"open": True}),
        ([], {"DEVSERVE_LIVE": "1", "DEVSERVE_RELOAD": "1"}, {"live": True, "reload": True}),
        ([], {"DEVSERVE_LIVE": "1"}, {}),
        (["--debug", "--no-reload"], {"DEVSERVE_LIVE": "1"}, {"debug": True, "debugger": True}),
        ([], {"DEVSERVE_EDITOR": "idea"}, {"editor": "idea"}),
        ([], {"DEVSERVE_PATH_MAP": "/a=/b"}, {"path_map": ("/a=/b",)}),
        ([], {"DEVSERVE_EXCLUDE_PATTERNS": "*.log"}, {"exclude_patterns": ("*.log",)}),
        ([], {"DEVSERVE_APP": "hello"}, {"app": "hello"}),
        (["hello"], {"DEVSERVE_APP": "other", "FLASK_APP": "third"}, {"app": "hello"}),
        # words that are understood as something else
        (["hello", "8000"], {}, {"app": "hello", "port": 8000}),
        (["manage.py", "runserver", "8000"], {}, {"app": "manage.py", "port": 8000}),
        (["runserver", "0.0.0.0:8000"], {}, {"host": "0.0.0.0", "port": 8000}),
        (["runserver", "[::1]:8000"], {}, {"host": "::1", "port": 8000}),
        (["hello:app", "localhost:80"], {}, {"app": "hello:app", "host": "localhost", "port": 80}),
        (["hello", "127.0.0.1"], {}, {"app": "hello"}),
        (["hello", "localhost", "8000"], {}, {"app": "hello", "host": "localhost", "port": 8000}),
        (["[::1]"], {}, {"host": "::1"}),
        (["0.0.0.0"], {}, {"host": "0.0.0.0"}),
        (["hello:app:8000"], {}, {"app": "hello:app", "port": 8000}),
        (["hello:make('a:1'):8000"], {}, {"app": "hello:make('a:1')", "port": 8000}),
        (["hello:make('sqlite://')"], {}, {"app": "hello:make('sqlite://')"}),
        (["hello:make ( True )"], {}, {"app": "hello:make ( True )"}),
        (["dev", "hello.py"], {}, {"app": "hello.py"}),
        (["hello", "serve"], {}, {"app": "hello"}),
        (["--host", "0.0.0.0:8000"], {}, {"host": "0.0.0.0", "port": 8000}),
        (["--host", "0.0.0.0:8000", "-p", "8000"], {}, {"host": "0.0.0.0", "port": 8000}),
        (["--host", "0.0.0.0:8000"], {"DEVSERVE_PORT": "9"}, {"host": "0.0.0.0", "port": 8000}),
        ([], {"DEVSERVE_HOST": "0.0.0.0:8000"}, {"host": "0.0.0.0", "port": 8000}),
        # Flask's variables
        ([], {"FLASK_APP": "hello"}, {"app": "hello"}),
        ([], {"FLASK_DEBUG": "1"}, {"debug": True, "reload": True, "debugger": True}),
        ([], {"FLASK_DEBUG": "1", "DEVSERVE_DEBUG": "0"}, {}),
        ([], {"FLASK_DEBUG": "1", "DEVSERVE_DEBUG": ""}, {"debug": True, "reload": True, "debugger": True}),
        (["--no-debug"], {"FLASK_DEBUG": "1"}, {}),
        ([], {"FLASK_DEBUG": "true", "FLASK_RUN_RELOAD": "false"}, {"debug": True, "debugger": True}),
        ([], {"FLASK_DEBUG": "t", "FLASK_RUN_DEBUGGER": "n"}, {"debug": True, "reload": True}),
        ([], {"FLASK_DEBUG": "0", "FLASK_RUN_DEBUG": "1 "}, {"debug": True, "reload": True, "debugger": True}),
        ([], {"FLASK_RUN_PORT": "8001 "}, {"port": 8001}),
        ([], {"FLASK_RUN_HOST": "::", "FLASK_RUN_PORT": "8001"}, {"host": "::", "port": 8001}),
        ([], {"FLASK_RUN_PORT": "8001", "DEVSERVE_PORT": "8002"}, {"port": 8002}),
        (["-p", "8003"], {"FLASK_RUN_PORT": "8001"}, {"port": 8003}),
        ([], {"FLASK_RUN_CERT": "c.pem", "FLASK_RUN_KEY": "k.pem"}, {"cert": "c.pem", "key": "k.pem"}),
        ([], {"FLASK_RUN_EXTRA_FILES": f"a{os.pathsep}b"}, {"extra_files": ("a", "b")}),
        ([], {"FLASK_RUN_EXCLUDE_PATTERNS": "*.log"}, {"exclude_patterns": ("*.log",)}),
        ([], {"FLASK_RUN_WITH_THREADS": "0"}, {"threads": False}),
    ]

    def setUp(self) -> None:
        super().setUp()
        here = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, here)

    def test_options_and_variables_become_fields(self) -> None:
        for arguments, variables, fields in self.TABLE:
            with self.subTest(arguments=arguments, variables=variables):
                self.assertEqual(read_command(*arguments, **variables), devserve.Config(**fields))

    def test_every_field_is_tried_by_an_option_and_a_variable(self) -> None:
        by_option = {field for arguments, _, fields in self.TABLE if arguments for field in fields}
        self.assertEqual(by_option | {"env_file"}, set(devserve.Config._fields))
        by_variable = {field for arguments, _, fields in self.TABLE if not arguments for field in fields}
        self.assertEqual(by_variable | {"env_file"}, set(devserve.Config._fields))

    def test_a_file_is_named_by_a_variable_too(self) -> None:
        self.write("more.env", "DEVSERVE_PORT=8003\n")
        for name in ("DEVSERVE_ENV_FILE", "FLASK_ENV_FILE"):
            config = read_command(**{name: "more.env"})
            self.assertEqual((config.port, config.env_file), (8003, "more.env"))

    def test_a_word_that_is_understood_as_something_else_is_told(self) -> None:
        for arguments, note in {
            ("hello", "8000"): "8000 is taken as --port 8000",
            ("runserver", "0:8000"): "0:8000 is taken as --host 0 --port 8000",
            ("--host", "[::1]:80"): "--host [::1]:80 is taken as --host ::1 --port 80",
            ("127.0.0.1",): "127.0.0.1 is taken as --host 127.0.0.1",
            ("hello", "LOCALHOST"): "LOCALHOST is taken as --host LOCALHOST",
            ("hello", "unix:/tmp/s"): "unix:/tmp/s is taken as --host unix:/tmp/s",
            ("--host", "8000"): "--host 8000 is taken as --port 8000",
            ("hello:app:8000",): "hello:app:8000 is taken as hello:app --port 8000",
        }.items():
            self.assertEqual(devserve._read_command(arguments)[1], [note])
        self.assertEqual(devserve._read_command(("hello", "run", "--host", "::1"))[1], [])

    def test_a_file_that_is_called_like_another_servers_command_is_served(self) -> None:
        for name in devserve._RUN_COMMANDS:
            self.assertEqual(read_command(name).app, "")
            self.write(f"{name}.py", "")
            self.assertEqual(read_command(name).app, name)
            self.assertEqual(read_command("--app", "hello", name).app, "hello")

    def test_a_port_behind_what_is_in_the_folder_belongs_to_no_host(self) -> None:
        self.assertEqual(read_command("hello:8000").host, "hello")
        self.write("hello.py", "")
        self.write("shop/web.py", "")
        for word in ("hello", "hello.py", "shop.web", "shop/web.py"):
            config = read_command(f"{word}:8000")
            self.assertEqual((config.app, config.host, config.port), (word, "127.0.0.1", 8000))

    def test_devserve_itself_offers_the_demo(self) -> None:
        for word in ("devserve", "devserve.py", "./devserve.py"):
            with self.assertRaisesRegex(devserve.DevserveError, "devserve:demo --debug"):
                read_command(word)
        self.assertEqual(read_command("devserve:demo").app, "devserve:demo")

    def test_variables_may_stand_in_env_files(self) -> None:
        self.write(".env", "DEVSERVE_PORT=8003\n")
        self.write("more.env", "DEVSERVE_HOST=::1\n")
        config = read_command("--env-file", "more.env")
        self.assertEqual((config.port, config.host, config.env_file), (8003, "::1", "more.env"))
        self.assertEqual(read_command(DEVSERVE_PORT="1").port, 1)
        self.assertEqual(read_command("-p", "2").port, 2)

    def test_mistakes_are_named_with_their_value(self) -> None:
        table: list[tuple[list[str], dict[str, str], str]] = [
            (["--port", "70000"], {}, "70000"), (["--port", "-1"], {}, "-1"), (["--port", "http"], {}, "http"),
            (["--port", ""], {}, "port"), (["--port", "1e3"], {}, "1e3"), (["--port", "\u0661"], {}, "port"),
            (["--port", "5_0"], {}, "5_0"), (["--port"], {}, "--port"), (["--port", "9" * 5000], {}, "port"),
            (["--bogus"], {}, "--bogus"), (["--debug=3"], {}, "3"), (["hello", "other"], {}, "hello and other"),
            (["hello", "--app", "other"], {}, "other and hello"), (["band", "banana and"], {}, "band and banana and"),
            ([], {"DEVSERVE_PORT": "many"}, "many"), ([], {"DEVSERVE_DEBUG": "maybe"}, "DEVSERVE_DEBUG=maybe"),
            (["--env-file", "missing.env"], {}, "missing.env"), (["hello", "99999"], {}, "99999"),
            (["hello", "8000", "--port", "9000"], {}, "9000"), (["--host", "a:1", "b:2"], {}, "a"),
            (["--prot", "80"], {}, "did you mean --port?"), (["--relaod=1"], {}, "mean --reload?"),
            (["--por", "1"], {}, "--por"),
            (["--live"], {}, "--reload"), ([], {"FLASK_DEBUG": "maybe"}, "FLASK_DEBUG=maybe"),
            ([], {"FLASK_RUN_PORT": "http"}, "FLASK_RUN_PORT=http"), (["--path-map", "x"], {}, "HERE=THERE"),
        ]  # fmt: skip
        for arguments, variables, named in table:
            with self.subTest(arguments=arguments, variables=variables):
                with self.assertRaises(devserve.DevserveError) as caught:
                    read_command(*arguments, **variables)
                self.assertIn(named, str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))


class CommandLineMistakes(InEmptyEnvironment):
    """Commands as users of other servers type them, and what each is answered: a line that holds what to type."""

    FLAGS: ClassVar[dict[str, str]] = {
        # a word that is none of the flags, or that has no value, or one too many
        "--debug true": "leave true out",
        "--debug=1": "--debug takes no value; write one of -d, --debug, --no-debug",
        "--reload=false": "--no-reload",
        "--open=firefox": "--open takes no value",
        "--help=x": "--help takes no value; write one of -h, --help",
        "--version=1": "--version takes no value",
        "--port": "write --port PORT",
        "--port --debug": "--port lacks its value",
        "--extra-files": "write --extra-files PATH",
        "--port :8000": "--port :8000: not a port; write 8000",
        "--port 70000": "--port 70000: not a port; choose one from 1 to 65535, or 0",
        "--port localhost:70000": "choose one from 1 to 65535, or 0",
        "--port localhost:8000": "write 8000",
        "--port http": "choose one from 1 to 65535, or 0",
        "-p8000x": "--port 8000x: not a port",
        "--prot 80": "no option --prot; did you mean --port?",
        "--bogus": "no option --bogus; see --help",
        "-debug": "no option -debug; did you mean --debug?",
        "-port 8000": "no option -port; did you mean --port?",
        "-host=::": "no option -host=::; did you mean --host=::?",
        "--PORT 8000": "did you mean --port?",
        "debug": "did you mean --debug?",
        "help": "did you mean --help?",
        "--host https://localhost:5000/x": "name localhost:5000 alone, and add --cert adhoc",
        # gunicorn's
        "-b 0.0.0.0:8000": "no option -b; here it is --host 0.0.0.0:8000",
        "--bind=0.0.0.0:8000": "no option --bind; here it is --host 0.0.0.0:8000",
        "--workers 4": "no option --workers; one process",
        "-w 4": "one process",
        "-k gevent": "one process",
        "--threads 4": "in threads: leave it out",
        "--chdir src": "start devserve in that folder",
        "-c gunicorn.conf.py": ".env",
        "--reload-extra-file a.txt": "here it is --extra-files a.txt",
        "--certfile=c.pem": "here it is --cert c.pem",
        "--keyfile k.pem": "here it is --key k.pem",
        "--timeout 30": "leave it out",
        "--access-logfile -": "to the terminal",
        # uvicorn's
        "--factory": "devserve finds that out by itself",
        "--loop uvloop": "devserve finds that out by itself",
        "--reload-dir src": "here it is --extra-files src",
        "--log-level debug": "application's own logging",
        "--ssl-keyfile k.pem": "here it is --key k.pem",
        "--ssl-certfile c.pem": "here it is --cert c.pem",
        "--app-dir src": "start devserve in that folder",
        "--root-path /api": "tell the application",
        "--uds /tmp/a": "--host unix:PATH",
        # Flask's and Django's
        "--processes 2": "one process",
        "--settings=mysite.dev": "DJANGO_SETTINGS_MODULE",
        "--noreload": "here it is --no-reload",
        "--nothreading": "here it is --without-threads",
        "--insecure": "DEBUG is True",
        "--https": "write --cert adhoc",
        "--auto-reload": "here it is --reload",
        "--use-reloader": "here it is --reload",
        "--livereload": "here it is --live",
        "--no-access-log": "here it is --quiet",
        "--no-color": "set NO_COLOR=1",
        "-D": "no option -D; leave it out",
    }
    WORDS: ClassVar[dict[str, str]] = {  # with {} for the command that starts devserve
        "flask run": "flask is another program; leave it out: {}",
        "flask --app hello run --debug": "leave it out: {} --app hello --debug",
        "gunicorn hello:app --debug": "leave it out: {} hello:app --debug",
        "uvicorn hello:app": "leave it out: {} hello:app",
        "bottle hello:app": "leave it out: {} hello:app",
        "fastapi dev hello.py": "leave it out: {} hello.py",
        "python manage.py runserver 8000": "leave it out: {} manage.py 8000",
        "hello -h 0.0.0.0": "-h shows the help; for the host write -H 0.0.0.0",
        "hello \u2013-debug": "has the dash of a word processor; type --debug",
        "python3.12 hello.py": "python3.12 is another program; leave it out: {} hello.py",
        "manage.py migrate --fake": "no option --fake; see --help",
        "manage.py migrate": "devserve only serves; for the rest type: python manage.py migrate",
        "./manage.py test shop": "type: python ./manage.py test shop",
        "migrate": "for migrate type: python manage.py migrate",
        "makemigrations shop": "type: python manage.py makemigrations shop",
        "--app hello shell": "for shell type: flask --app hello shell",
        "--app hello init-db": "type: flask --app hello init-db",
        "db upgrade": "type: flask db upgrade",
        "hello,app": "did you mean hello:app?",
        "flask --app hello routes": "for routes type: flask --app hello routes",
        "hello other third": "more than one application: hello and other and third; name one",
        "--app hello other.thing": "more than one application: hello and other.thing; name one",
        "hello.py app": "did you mean hello.py:app?",
        "hello app --debug": "did you mean hello:app?",
        "hello: app": "did you mean hello:app?",
        "run hello.py app": "did you mean hello.py:app?",
        "app=hello": "did you mean --app=hello?",
        "port=8000": "did you mean --port=8000?",
        "FLASK_APP=hello": "FLASK_APP=hello sets a variable; write it in a file .env, or before the command",
        "hello \u2013debug": "type --debug",
        "hello \u2014port 8000": "type --port",
        "hello \u2013p 8000": "type -p",
        "python -m uvicorn main:app": "no option -m; leave it out",
        "python uvicorn main:app": "leave it out: {} main:app",
        "hello 8000 --port 9000": "8000 names another port than 9000; name one",
        "devserve": "try: {} devserve:demo --debug",
        "http://localhost:5000/hello": "name the application, and the address by --host and --port",
    }

    def test_what_another_program_is_to_do_is_typed_for_the_one_that_the_folder_has(self) -> None:
        self.write("manage.py", "")
        self.assertIn("type: python manage.py shell", self.refused("shell"))
        self.assertIn("here it is --extra-files '*.yml'", self.refused("hello", "--reload-include", "*.yml"))

    def refused(self, *arguments: str) -> str:
        with self.assertRaises(devserve.DevserveError) as caught:
            read_command(*arguments)
        line = str(caught.exception)
        self.assertRegex(line, r"^[^\n]+(; |: )[^\n]+$", "what is wrong; what to do")
        return line

    def test_a_flag_of_another_server_or_a_wrong_one_is_answered_by_what_to_write(self) -> None:
        for words, remedy in self.FLAGS.items():
            with self.subTest(words):
                self.assertIn(remedy, self.refused("hello", *words.split()))

    def test_a_command_of_another_program_is_answered_by_the_one_to_type(self) -> None:
        self.write("hello.py", "")
        for words, remedy in self.WORDS.items():
            with self.subTest(words):
                self.assertIn(remedy.format(" ".join(devserve.own_command())), self.refused(*words.split()))

    def test_what_is_in_the_folder_is_served_whatever_its_name(self) -> None:
        for word in ("true", "debug", "flask", "uvicorn", "run", "shell", "localhost", "8000"):
            self.write(f"{word}.py", "")
            self.assertEqual(read_command(word).app, word)

    def test_a_url_is_taken_for_the_address_in_it(self) -> None:
        for words in (("--host", "http://localhost:80"), ("http://localhost:80/",)):
            config = read_command(*words)
            self.assertEqual((config.host, config.port), ("localhost", 80))

    def test_every_flag_of_another_server_is_in_one_place(self) -> None:
        known = [flag for flags in devserve._NOT_HERE for flag in flags.split()]
        known += [flag for row in devserve.OPTIONS.values() for flag in (*row.flags, *row.others.split())]
        self.assertEqual([flag for flag, count in collections.Counter(known).items() if count > 1], [])


class CommandLineProcess(Folder):
    """The command as a person types it."""

    def run_command(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("DEVSERVE_", "FLASK_"))}
        environ.update({**variables, "PYTHONIOENCODING": "utf-8"})
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, encoding="utf-8", timeout=DEADLINE
        )

    def test_a_mistake_is_one_line_and_status_2(self) -> None:
        self.write("hello.py", "app = lambda environ, start_response: []")
        for arguments in (
            ["nowhere", "--port", "0"],
            ["hello:ap", "--port", "0", "--debug"],
            ["--port", "70000"],
            ["--bogus"],
            ["hello", "--key", "k.pem"],
            ["hello", "--cert", "nope.pem"],
            ["--help-me"],
        ):
            with self.subTest(arguments):
                done = self.run_command(*arguments)
                self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
                self.assertRegex(done.stderr, r"^devserve: error: [^\n]+\n$")

    def test_an_older_python_is_told_in_one_line(self) -> None:
        text = SCRIPT.read_text(encoding="utf-8").replace("sys.version_info < (3, 9)", "sys.version_info < (99,)")
        path = self.write("devserve_for_later.py", "")
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, str(path), "hello"], capture_output=True, encoding="utf-8")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"^devserve: error: Python 3\.9 or later is needed; this is \S+\n$")

    def test_a_python_that_is_too_old_for_it_parses_the_file_as_far_as_the_line_that_says_so(self) -> None:
        text = SCRIPT.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text, feature_version=(3, 7))):  # which does not know that 3.7 refuses this:
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Tuple):
                segment = ast.get_source_segment(text, node) or ""
                self.assertRegex(segment, r"= \(", f"line {node.lineno}: 3.7 wants parentheses")
        all_that_3_6_shows = r"\nfrom __future__ import annotations  # [^\n]*Python 3\.9 or later"
        self.assertRegex(text, all_that_3_6_shows)

    def test_a_mistake_in_a_variable_names_the_variable(self) -> None:
        done = self.run_command("hello", DEVSERVE_PORT="x")
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, r"^devserve: error: DEVSERVE_PORT=x: [^\n]+\n$")

    def test_version(self) -> None:
        done = self.run_command("--version")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, f"devserve {devserve.__version__}\n", ""))

    def test_help_names_every_option_in_groups_and_each_form_of_app(self) -> None:
        done = self.run_command("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for row in devserve.OPTIONS.values():
            for word in (*row.flags, f"\n{row.topic}:\n"):
                self.assertIn(word, done.stdout)
        for words in (
            "--help", "-h", "--version", "DEVSERVE_PIN", " hello ", "package.module:site.wsgi", "path/to/file.py:app",
            "'hello:make_app(\"test\")'", f"{SCRIPT} devserve:demo --debug",
        ):  # fmt: skip
            self.assertIn(words, done.stdout)

    def test_help_and_a_mistake_touch_nothing_of_the_process(self) -> None:
        for words, status in ((["--help"], 0), (["--version"], 0), (["--bogus"], 2), (["hello", "other"], 2)):
            with self.subTest(words), mock.patch.object(devserve.Launch, "capture", side_effect=AssertionError):
                screen = io.StringIO()
                with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                    try:
                        ended = devserve.main(words)
                    except SystemExit as end:
                        ended = int(end.code or 0)
                self.assertEqual(ended, status, screen.getvalue())

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_a_pin_on_the_command_line_is_not_in_the_process_list_also_after_a_reload(self) -> None:
        hello = self.write(
            "hello.py", "app = lambda environ, start_response: (start_response('200 OK', []), [b'old'])[1]"
        )
        twice = ("--pin=correct-horse-9", "--pin", "correct-horse-9")
        with Served("hello", "--debug", *twice, cwd=self.folder) as served:
            commands = pathlib.Path(f"/proc/{served.process.pid}/cmdline")
            served.wait_for("The PIN is correct-horse-9|correct-horse-9")
            self.assertNotIn("correct-horse-9", commands.read_text())
            self.assertIn("--pin\0***", commands.read_text())
            hello.write_text(hello.read_text().replace("old", "new"))
            served.wait_for("reloaded in")
            self.assertNotIn("correct-horse-9", commands.read_text())
            self.assertEqual(served.get(), "new")

    def test_a_pin_in_a_variable_is_inherited_by_no_child_also_after_a_reload(self) -> None:
        code = "import os; print('PIN' in str(os.environ), end='')"
        hello = self.write(
            "hello.py",
            f"""
            import subprocess, sys

            def child():
                return subprocess.run([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE).stdout

            early = child()

            def app(environ, start_response):
                start_response("200 OK", [])
                return [b"old ", early, child()]
            """,
        )
        for variables, text in (({"DEVSERVE_PIN": "123-45"}, "X=1\n"), ({}, "DEVSERVE_PIN=123-45\n")):
            self.write(".env", text)
            with self.subTest(text), Served("hello", "--debug", cwd=self.folder, env=variables) as served:
                served.wait_for("PIN is 123-45")
                self.assertEqual(served.get(), "old FalseFalse")
                hello.write_text(hello.read_text().replace("old", "new"))
                served.wait_for("reloaded in")
                self.assertEqual(served.get(), "new FalseFalse")
                self.assertEqual(served.log.count("PIN is"), 1)  # another PIN would be told anew
            hello.write_text(hello.read_text().replace("new", "old"))

    def test_an_abbreviated_option_is_not_guessed_wrong(self) -> None:
        done = self.run_command("--no")
        self.assertEqual(done.returncode, 2)

    def test_variables_set_options_in_a_process_too(self) -> None:
        self.write(
            "hello.py", "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"
        )
        with Served(
            cwd=self.folder, port=False, env={"DEVSERVE_PORT": "0", "DEVSERVE_APP": "hello", "DEVSERVE_QUIET": "1"}
        ) as served:
            self.assertEqual(served.get(), "hello")
            self.assertNotIn("GET /", served.log)

    def test_quiet_and_threads_reach_the_server(self) -> None:
        self.write(
            "hello.py",
            """
            def app(environ, start_response):
                start_response("200 OK", [])
                return [repr(environ["wsgi.multithread"]).encode()]
        """,
        )
        with Served("hello", "-q", "--without-threads", cwd=self.folder) as served:
            self.assertEqual(served.get(), "False")
            self.assertEqual(served.stop(), 0)
            self.assertNotIn("GET /", served.log)


class Demo(unittest.TestCase):
    """The application to try devserve with."""

    def answer(self, path: str, query: str = "") -> tuple[str, Iterable[bytes]]:
        started: list[str] = []
        environ = {"PATH_INFO": path, "QUERY_STRING": query}
        pieces = devserve.demo(environ, lambda status, headers: started.append(status))  # type: ignore[arg-type]
        return started[0] if started else "", pieces

    def test_its_page_links_to_what_it_shows(self) -> None:
        status, pieces = self.answer("/")
        page = b"".join(pieces).decode()
        self.assertEqual(status, "200 OK")
        for path in re.findall(r'href="(/[^"_][^"]*)"', page):
            with self.subTest(path), contextlib.suppress(KeyError):
                self.assertEqual(self.answer(*path.partition("?")[::2])[0], "200 OK")
        self.assertIn("/fail", page)
        self.assertEqual(self.answer("/nowhere")[0], "404 Not Found")

    def test_it_streams_a_line_a_second(self) -> None:
        status, pieces = self.answer("/stream")
        with mock.patch.object(time, "sleep") as slept:
            lines = b"".join(pieces).decode().splitlines()
        self.assertEqual((status, len(lines), slept.call_count), ("200 OK", 10, 10))
        self.assertTrue(lines[9].startswith("line 10 of 10, made at "))

    def test_it_fails_for_a_fruit_that_is_spelt_wrong_alone(self) -> None:
        with self.assertRaisesRegex(KeyError, "peers"):
            self.answer("/fail")
        with self.assertRaisesRegex(KeyError, "grapes"):
            self.answer("/fail", "fruit=grapes")
        status, pieces = self.answer("/fail", "fruit=plums")
        self.assertEqual((status, b"".join(pieces)), ("200 OK", b"plums cost 90 a kilo"))


# =====================================================================================================================
# 16. The page in a real browser
# =====================================================================================================================

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP www.rebound.test 127.0.0.1",
]
BROWSER_MISSING = (
    ""
    if importlib.util.find_spec("playwright") and CHROMIUM
    else "needs Chromium"
    if importlib.util.find_spec("playwright")
    else "needs the package playwright"
)

FAILING = "mark" if sys.version_info >= (3, 11) else ".l.at"  # Python tells the failing expression since 3.11

FAILING_APP = """
import json
import marshal

FRUITS = {"apple": 3, "pear": 2}


def app(environ, start_response):
    path = environ["PATH_INFO"]
    action = ACTIONS.get(path)
    if action:
        action(environ)
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [b"<title>fine</title><h1>It works</h1>"]


def price(fruit, count):
    total = FRUITS[fruit] * count
    return total


def key(environ):
    basket = ["plum"] * 3
    return price(basket[0], count=len(basket))


def library(environ):
    json.loads('{"a": ')


def chain(environ):
    try:
        key(environ)
    except KeyError as error:
        raise RuntimeError("no such fruit") from error


def group(environ):
    problems = []
    for fruit in ("plum", "cherry"):
        try:
            price(fruit, 1)
        except KeyError as error:
            error.add_note("ask the gardener")
            problems.append(error)
    raise ExceptionGroup("two fruits", [*problems, ExceptionGroup("inner", [OSError("deep")])])


def deep(environ, n=0):
    deep(environ, n + 1)


def call(environ):
    price("apple", number=3)


def hostile(environ):
    name = "<script>document.title='hacked'</script><img src=//evil.test/x onerror=document.title='hacked'>"
    raise ValueError(name * 30)


def order(environ):
    form = environ["wsgi.input"].read().decode()
    raise RuntimeError("order " + form + " from " + str(environ.get("HTTP_ORIGIN")))


def syntax(environ):
    compile("def f(:\\n    pass\\n", "half.py", "exec")


def nested(environ):
    order = {"customer": {"address": {"street_name": {"house": {"floor": "x" * 300}}}}}
    return order["missing"]


ACTIONS = (key, library, chain, group, deep, call, hostile, order, syntax, nested)
ACTIONS = {f"/{action.__name__}": action for action in ACTIONS}
"""


class InBrowser(unittest.TestCase):
    """Tests share one browser and one server; each has a window of its own, with its own cookies and storage."""

    manager: Any
    browser: Any
    served: "Served"
    folder: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        if BROWSER_MISSING and not REQUIRE_ALL:
            raise unittest.SkipTest(BROWSER_MISSING)
        from playwright.sync_api import sync_playwright

        holder = tempfile.TemporaryDirectory(prefix="devserve browser ")
        cls.addClassCleanup(holder.cleanup)
        cls.folder = pathlib.Path(holder.name).resolve()
        cls.write(FAILING_APP)
        cls.served = Served("fruits:app", "--debug", cwd=cls.folder)
        cls.addClassCleanup(cls.served.stop)
        assert cls.served.url
        manager = sync_playwright()
        cls.manager = manager.start()
        cls.addClassCleanup(manager.__exit__)
        cls.browser = cls.manager.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        cls.addClassCleanup(cls.browser.close)

    @classmethod
    def write(cls, text: str, name: str = "fruits.py") -> None:
        (cls.folder / name).write_text(textwrap.dedent(text), encoding="utf-8")

    def setUp(self) -> None:
        self.problems: list[str] = []
        self.page = self.window()

    def tearDown(self) -> None:
        self.assertEqual(self.problems, [], "errors of the script, or requests to other hosts")

    def window(self, watched: Optional["Served"] = None, **options: Any) -> Any:
        """Return a page of a new browser context, watched for script errors and requests to other hosts."""
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = self.browser.new_context(**options)
        context.set_default_timeout(DEADLINE * 1000)
        self.addCleanup(context.close)
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._hear)
        page.on("request", lambda request: self._watch(request, watched or self.served))
        return page

    def _hear(self, message: Any) -> None:
        answered = (
            "the server responded with a status of"  # the page's own 500, and refusals: not errors of the script
        )
        if message.type == "error" and answered not in message.text:
            self.problems.append(message.text)

    def _watch(self, request: Any, served: "Served") -> None:
        host = re.sub(r"^\w+://([^/]*).*", r"\1", request.url)
        if not request.url.startswith("data:") and not host.endswith(f":{served.port}"):
            self.problems.append(request.url)

    def open(self, path: str, page: Optional[Any] = None) -> Any:
        page = page or self.page
        page.goto(self.served.url + path)
        return page

    def until(self, expression: str) -> None:
        """Wait until the expression is true in the page; Playwright's own wait is stopped by the page's policy."""
        eventually(lambda: self._holds(expression), expression)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.page.evaluate(expression))
        except Exception as error:
            if "context was destroyed" in str(error):  # the page is being left
                return False
            raise

    @property
    def pin(self) -> str:
        return self.served.wait_for(r"PIN is ([-0-9]+)").group(1)

    def unlock(self, page: Optional[Any] = None) -> Any:
        """Unlock the page's consoles as a person does and return the prompt of the frame that failed."""
        page = page or self.page
        page.locator(".console button.sign").first.click()
        page.keyboard.type(self.pin)
        page.keyboard.press("Enter")
        return page.locator(".console textarea").first

    def type(self, *lines: str) -> str:
        """Type lines into the prompt that has the focus; return what is printed once the last was evaluated."""
        for line in lines:
            self.page.keyboard.type(line)
            with self.page.expect_response("**/eval"):
                self.page.keyboard.press("Enter")
        self.until("!document.activeElement.readOnly")
        return str(self.page.locator(".printed").first.text_content())


class BrowserPage(InBrowser):
    def test_what_failed_and_where_and_with_which_values_is_seen_at_once(self) -> None:
        self.open("/key")
        self.assertEqual(self.page.title(), "KeyError: 'plum'")
        self.assertIn("FRUITS[fruit]", self.page.locator(FAILING).first.inner_text())
        values = self.page.locator(".values").first
        self.assertRegex(values.inner_text(), r"fruit\s+'plum'\s+(?s:.*)count\s+3|count\s+3\s+(?s:.*)fruit\s+'plum'")
        for place in ("h1", FAILING, ".values dd"):
            box = self.page.locator(place).first.bounding_box()
            self.assertLess(box["y"] + box["height"], 900, f"{place} is below the first screen")

    def test_nothing_is_wider_than_the_window_and_axe_finds_nothing(self) -> None:
        group = ["/group"] if sys.version_info >= (3, 11) else []
        paths = [
            "/key",
            "/chain",
            "/deep",
            "/syntax",
            "/hostile",
            "/library",
            *group,
            "/__devserve__/console",
            "/__devserve__/",
        ]
        scanned = {"light": {"/chain", "/group", "/library"}, "dark": {"/chain", "/syntax", "/__devserve__/console"}}
        for width, scheme in ((1280, "light"), (375, "dark")):
            page = self.window(viewport={"width": width, "height": 800}, color_scheme=scheme)
            for path in paths:
                with self.subTest(path=path, width=width, scheme=scheme):
                    self.open(path, page)
                    if path == "/chain":
                        self.unlock(page).fill("1 + 1")
                    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
                    self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth - innerWidth"), 0)
                    if path in scanned[scheme]:
                        self.assertEqual(self.axe(page), [])

    def axe(self, page: Any) -> list[str]:
        """Return the findings of axe-core, when it is installed (it comes with axe-playwright-python)."""
        spec = importlib.util.find_spec("axe_playwright_python")
        if spec is None or spec.origin is None:
            if REQUIRE_ALL:
                self.fail("needs the package axe-playwright-python")
            self.skipTest("needs the package axe-playwright-python")
        page.evaluate(pathlib.Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
        alike = "[['.table dl > div:nth-child(n+4)'], ['.fold .source']]"  # rows like the first ones: to save minutes
        options = "{resultTypes: ['violations'], rules: {'target-size': {enabled: true}}}"
        found = page.evaluate(f"axe.run({{exclude: {alike}}}, {options})")["violations"]
        return [f"{each['id']}: {node['html'][:200]} {node['any'][:1]}" for each in found for node in each["nodes"]]

    def test_an_answer_that_is_not_the_debuggers_counts_as_none(self) -> None:
        self.page.route("**/members", lambda route: route.fulfill(status=404, json={"detail": "Not Found"}))
        self.open("/key")
        self.page.locator(".unfold").first.click()
        self.until("document.querySelector('dd > .nothing')?.textContent.includes('does not answer')")

    def test_a_value_unfolds_and_folds_at_a_click(self) -> None:
        self.open("/key")
        button = self.page.locator(".unfold").first
        row = button.locator("xpath=ancestor::dd[1]")
        button.click()
        row.locator(".inside").wait_for()
        self.assertEqual(row.locator(".inside dt").all_inner_texts(), ["apple", "pear"])
        self.assertEqual(button.get_attribute("aria-expanded"), "true")
        button.click()
        self.assertFalse(row.locator(".inside").is_visible())

    def test_values_unfolded_deep_inside_of_others_stay_in_the_window(self) -> None:
        self.open("/nested")
        for depth in range(1, 5):
            self.page.locator(".unfold[aria-expanded=false]").first.click()
            self.until(f"document.querySelectorAll('.inside').length === {depth}")
        self.assertLessEqual(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"), 0)
        self.assertGreater(self.page.locator(".inside dd").last.bounding_box()["width"], 120)

    def test_the_value_of_an_expression_is_shown_over_it(self) -> None:
        self.open("/key")
        shown = self.page.locator(f"{FAILING} .has-value").first
        self.assertRegex(shown.get_attribute("title"), "^FRUITS = {'apple': 3, 'pear': 2}$")
        self.assertEqual(shown.inner_text(), "FRUITS")

    def test_a_fragment_in_a_page_of_the_applications_is_seen_and_runs_nothing(self) -> None:
        report = devserve.read_report(failure_of(lambda: dict[str, int]()["x"]))._replace(link="http://h/crash/1")
        page = self.window()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content("<style>* { color: white; font-size: 1px }</style><div id=there></div>")
        page.evaluate("html => { document.getElementById('there').innerHTML = html }", devserve.write_fragment(report))
        box = page.locator("#there").bounding_box()
        self.assertGreater(box["height"], 60)
        self.assertEqual(errors, [])

    def test_dark_and_light_follow_the_system(self) -> None:
        shades = {}
        for scheme in ("light", "dark"):
            page = self.open("/key", self.window(color_scheme=scheme))
            shades[scheme] = page.evaluate(
                "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            )
        self.assertGreater(min(shades["light"][:3]), 200)
        self.assertLess(max(shades["dark"][:3]), 60)

    def test_without_scripts_everything_opens_and_the_values_are_there(self) -> None:
        page = self.open("/library", self.window(java_script_enabled=False))
        self.assertIn("app(environ, start_response)", page.locator("body").inner_text())
        head = page.locator(".foreign > summary").first
        self.assertFalse(page.locator(".foreign .source").first.is_visible())
        head.click()
        self.assertTrue(page.locator(".foreign .source").first.is_visible())
        page.locator(".table > summary", has_text="As Markdown").click()
        self.assertIn("## Traceback", page.locator("#as-markdown").input_value())
        self.assertFalse(page.get_by_text("Copy Markdown").is_visible())

    def test_the_keyboard_alone_reaches_everything(self) -> None:
        self.open("/library")
        press = self.page.keyboard.press
        press("j")
        first = self.page.evaluate("document.activeElement.textContent")
        self.assertIn("decoder.py", first)
        outline = self.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        self.assertNotEqual(outline, "none", "the focus is invisible")
        press("Enter")
        self.until("document.activeElement.parentElement.open")
        press("ArrowDown")
        self.assertNotEqual(self.page.evaluate("document.activeElement.textContent"), first)
        press("k")
        self.assertEqual(self.page.evaluate("document.activeElement.textContent"), first)
        press("c")
        press("Enter")
        press("Escape")
        self.assertIn("sign", self.page.evaluate("document.activeElement.className"))
        press("Enter")
        self.page.keyboard.type(self.pin)
        press("Enter")
        self.until("document.activeElement.tagName === 'TEXTAREA'")
        press("Tab")
        self.assertNotEqual(self.page.evaluate("document.activeElement.tagName"), "TEXTAREA", "Tab is caught")
        press("c")
        self.page.keyboard.type("json.loa")
        press("Escape")  # where Tab completes
        self.assertEqual(self.page.evaluate("document.activeElement.tagName"), "SUMMARY")
        self.page.locator(".menu > summary").focus()
        press("Enter")
        press("Tab")
        self.assertEqual(self.page.evaluate("document.activeElement.id"), "editor")
        press("Escape")
        self.assertFalse(self.page.locator("#editor").is_visible())
        self.assertIn("Editor", self.page.evaluate("document.activeElement.textContent"))
        seen = set()
        for _ in range(80):
            press("Tab")
            seen.add(self.page.evaluate("document.activeElement.textContent.trim().slice(0, 20)"))
        for name in ("Copy text", "Copy Markdown", "Reload", "More source", "As Markdown"):
            self.assertIn(name, seen)

    def test_values_of_a_frame_are_read_when_it_is_opened(self) -> None:
        asked: list[str] = []
        self.page.on("request", lambda request: asked.append(request.url) if "variables" in request.url else None)
        self.open("/library")
        self.until("document.querySelectorAll('.ours .values dd').length > 0")
        before = len(asked)
        self.page.locator(".foreign > summary").first.click()
        self.until("document.querySelector('.foreign .values dd')")
        self.assertIn("self", self.page.locator(".foreign .values").first.inner_text())
        self.assertEqual(len(asked), before + 1)

    def test_more_of_the_source_comes_on_demand(self) -> None:
        self.open("/key")
        frame = self.page.locator(".frame").first
        before = frame.locator(".l").count()
        with self.page.expect_response("**/source"):
            frame.locator(".widen").click()
        self.until(f"document.querySelectorAll('.frame')[0].querySelectorAll('.l').length > {before}")
        self.assertIn("FRUITS[fruit]", frame.locator(FAILING).first.inner_text())

    def test_text_and_markdown_are_copied(self) -> None:
        page = self.window(permissions=["clipboard-read", "clipboard-write"])
        self.open("/key", page)
        for button, start in (("Copy text", "Traceback (most recent"), ("Copy Markdown", "# `KeyError: 'plum'`")):
            page.get_by_text(button, exact=True).click()
            eventually(lambda: page.evaluate("navigator.clipboard.readText()").startswith(start), f"{button} copied")
        page.get_by_text("Copied").first.wait_for()

    def test_the_editor_is_chosen_once_and_paths_are_mapped(self) -> None:
        self.open("/key")
        link = self.page.locator("a.edit").first
        self.assertRegex(link.get_attribute("href"), r"^vscode://file/.*devserve%20browser%20.*/fruits\.py:18:\d+$")
        self.page.locator(".menu > summary").click()
        self.page.locator("#editor").select_option(label="Sublime")
        self.page.locator("#folders").fill(f"{self.folder}=/home/me")
        self.page.keyboard.press("Tab")
        self.open("/key")
        self.assertEqual(link.get_attribute("href"), "subl://open?url=file:///home/me/fruits.py&line=18")
        self.page.locator(".menu > summary").click()
        self.page.locator("#editor").select_option(label="Own link")
        self.page.locator("#own-link").fill("my:{line}:{path}")
        self.page.keyboard.press("Tab")
        self.assertEqual(link.get_attribute("href"), "my:18:/home/me/fruits.py")

    def test_hostile_text_never_becomes_markup(self) -> None:
        self.open("/hostile")
        self.page.locator(".long summary").first.click()
        self.assertNotEqual(self.page.title(), "hacked")
        self.assertEqual(self.page.locator("img").count(), 0)

    @unittest.skipIf(sys.version_info < (3, 11), "exception groups came with Python 3.11")
    def test_each_leaf_of_a_group_has_its_frames(self) -> None:
        self.open("/group")
        self.assertEqual(self.page.locator(".links a").count(), 4)
        self.page.locator(".links a", has_text="deep").click()
        self.assertEqual(self.page.locator(".member").count(), 4)
        self.assertIn("ask the gardener", self.page.locator(".member .note").first.inner_text())
        prompts = self.page.locator(".member .frame .console")
        self.assertGreaterEqual(prompts.count(), 2)

    def test_a_page_whose_host_is_not_trusted_says_why_and_what_to_do(self) -> None:
        self.page.goto(f"http://www.rebound.test:{self.served.port}/key")
        self.assertIn("--trusted-host www.rebound.test", self.page.locator(".hint").inner_text())
        self.assertNotIn("FRUITS", self.page.content())
        # On plain HTTP, at a name that is not loopback's, browsers heed neither of the two policies, and say so.
        self.problems = [text for text in self.problems if "-Policy header has been ignored" not in text]


class BrowserConsole(InBrowser):
    def prompt(self, path: str = "/key") -> Any:
        self.open(path)
        prompt = self.unlock()
        prompt.wait_for()
        self.until("document.activeElement.tagName === 'TEXTAREA'")
        return prompt

    def test_a_wrong_pin_says_so_and_the_right_one_opens_every_frame(self) -> None:
        self.open("/key")
        self.page.locator(".console button.sign").first.click()
        self.page.keyboard.type("000")
        self.page.keyboard.press("Enter")
        self.page.locator(".why", has_text="attempts left: 9").wait_for()
        self.page.keyboard.type(self.pin)
        self.page.keyboard.press("Enter")
        self.page.locator("textarea[aria-label^=Python]").first.wait_for()
        self.assertEqual(self.page.locator(".frame .console textarea").count(), self.page.locator(".frame").count())

    def test_the_terminals_link_unlocks_the_page_in_another_tab(self) -> None:
        self.open("/key")
        other = self.page.context.new_page()
        other.goto(self.served.wait_for(r"(http\S+/unlock\?token=\w+)").group(1))
        self.assertEqual(other.url, self.served.url + "/__devserve__/console")
        self.page.bring_to_front()
        self.page.locator(".console textarea").first.wait_for()

    def test_a_link_with_a_false_key_locks_nobody_out(self) -> None:
        """As any site may have one; with the right key the address alone unlocks."""
        self.prompt()
        for key in ("0" * 64, self.page.evaluate("Object.values(localStorage).find(each => each.length === 64)")):
            self.page.goto("about:blank")
            self.page.goto(f"{self.served.url}/key?fruit=plum#{key}")
            self.page.locator(".console textarea").first.wait_for()
            self.until("location.hash === ''")
            self.assertEqual(self.page.url, f"{self.served.url}/key?fruit=plum")
            self.page.reload()
            self.page.locator(".console textarea").first.wait_for()

    def test_the_prompt_works_in_the_frame_that_failed(self) -> None:
        self.prompt()
        self.assertTrue(self.type("fruit").endswith("'plum'"))
        self.assertTrue(self.type("_ * 2").endswith("'plumplum'"))
        self.assertTrue(self.type("FRUITS[fruit]").rstrip().endswith("KeyError: 'plum'"))
        self.assertTrue(self.type("print('<b>x</b>')").endswith("<b>x</b>"))
        self.assertEqual(self.page.locator(".printed b").count(), 0)

    def test_blocks_are_continued_and_end_with_an_empty_line(self) -> None:
        prompt = self.prompt()
        self.type("for n in range(2):")
        self.assertEqual(prompt.input_value(), "for n in range(2):\n    ")
        self.type("print(n + 40)")
        told = self.type("")
        self.assertTrue(told.endswith("40\n41"), told)
        self.page.keyboard.type("a = 5")
        self.page.keyboard.press("Shift+Enter")
        self.assertEqual(prompt.input_value(), "a = 5\n")
        self.assertTrue(self.type("a * 9").endswith("45"))

    def test_history_is_kept_for_the_session(self) -> None:
        prompt = self.prompt()
        self.type("111")
        self.type("222")
        self.page.reload()
        prompt.focus()
        self.page.keyboard.type("333")
        for key, shown in (("ArrowUp", "222"), ("ArrowUp", "111"), ("ArrowDown", "222"), ("ArrowDown", "333")):
            self.page.keyboard.press(key)
            self.assertEqual(prompt.input_value(), shown)

    def test_tab_completes_names_and_attributes(self) -> None:
        prompt = self.prompt()
        self.page.keyboard.type("fru")
        self.page.keyboard.press("Tab")
        self.until("document.activeElement.value === 'fruit'")
        self.page.keyboard.type(".isal")
        self.page.keyboard.press("Tab")
        self.page.locator(".choices", has_text="isalpha").wait_for()
        self.assertEqual(prompt.input_value(), "fruit.isal")
        self.page.keyboard.type("p")
        self.page.keyboard.press("Tab")
        self.until("document.activeElement.value.startsWith('fruit.isalpha')")

    def test_control_l_clears(self) -> None:
        self.prompt()
        self.assertIn("42", self.type("6 * 7"))
        self.page.keyboard.press("Control+l")
        self.assertEqual(self.page.locator(".printed").first.text_content(), "")

    def test_an_evaluation_that_runs_away_is_interrupted(self) -> None:
        prompt = self.prompt()
        stops: tuple[Callable[[], None], ...] = (
            lambda: self.page.keyboard.press("Control+c"),
            lambda: self.page.get_by_text("Interrupt").first.click(),
        )
        for stop in stops:
            self.page.keyboard.type("while True: pass")
            self.page.keyboard.press("Shift+Enter")
            self.page.keyboard.press("Enter")
            self.page.locator(".stop:visible").wait_for()
            with self.page.expect_response("**/interrupt"):
                stop()
            self.until("!document.querySelector('.console textarea').readOnly")
            self.assertIn("KeyboardInterrupt", self.page.locator(".printed").first.text_content())
            self.page.keyboard.press("Control+l")
            prompt.focus()
        self.assertTrue(self.type("1 + 1").endswith("2"))

    def test_two_windows_keep_their_frames_apart(self) -> None:
        self.prompt()
        first = self.page
        self.type("mine = 'first'")
        self.page = self.window()
        self.prompt("/chain")
        self.assertIn("NameError", self.type("mine"))
        self.page = first
        self.page.locator(".console textarea").first.focus()
        self.assertTrue(self.type("mine").endswith("'first'"))

    def test_the_console_of_the_application_alone(self) -> None:
        self.open("/__devserve__/console")
        self.unlock().wait_for()
        self.until("document.activeElement.tagName === 'TEXTAREA'")
        self.assertRegex(self.type("app"), r"<function app at|DebuggedApplication|function app")

    def test_two_debuggers_of_one_site_are_unlocked_beside_each_other(self) -> None:
        source = """
            import wsgiref.util
            import devserve
            sites = {name: devserve.DebuggedApplication(lambda *_: 1 / 0, pin="1234567") for name in ("one", "two")}
            def app(environ, start_response):
                return sites[wsgiref.util.shift_path_info(environ)](environ, start_response)
            """
        self.write(source, "twins.py")
        served = Served("twins:app", cwd=self.folder)
        self.addCleanup(served.stop)
        page = self.window(served)
        for name in ("one", "two"):
            page.goto(f"{served.url}/{name}/")
            page.locator(".console button.sign").first.click()
            page.keyboard.type("1234567")
            page.keyboard.press("Enter")
            page.locator(".console textarea").first.wait_for()
        page.goto(f"{served.url}/one/")
        page.locator(".console textarea").first.wait_for()


class BrowserMending(InBrowser):
    """Each test leaves the application as it found it, and waits until that version answers."""

    FIXED = FAILING_APP.replace("total = FRUITS[fruit]", "total = FRUITS.get(fruit, 0)")

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.save, FAILING_APP)

    def save(self, text: str) -> None:
        """Write another version and wait until it answers (or its mistake does)."""
        before = self.reload_id()
        self.write(text)
        eventually(lambda: self.reload_id() not in ("", before), "another version")

    def reload_id(self) -> str:
        try:
            return str(json.loads(self.served.get("/__devserve__/alive"))["reload_id"])
        except OSError:
            return ""

    def test_the_page_mends_itself_when_the_bug_is_fixed(self) -> None:
        self.open("/key")
        self.save(self.FIXED)
        self.page.locator("h1", has_text="It works").wait_for()

    def test_the_next_error_is_shown_when_the_next_version_fails_too(self) -> None:
        self.open("/key")
        self.save(FAILING_APP.replace("total = FRUITS[fruit]", "total = FRUITS.no_such[fruit]"))
        self.page.locator("h1", has_text="no_such").wait_for()

    def test_half_typed_code_is_shown_and_mended(self) -> None:
        self.open("/key")
        self.save(FAILING_APP.replace("def price(", "def price(("))
        self.page.locator("h1", has_text="SyntaxError").wait_for()
        self.assertIn("fruits.py", self.page.locator(".frame .place").first.inner_text())
        self.save(self.FIXED)
        self.page.locator("h1", has_text="It works").wait_for()

    def test_an_error_while_importing_is_shown_and_mended(self) -> None:
        self.open("/fine")
        self.save(FAILING_APP + "\n\nimport no_such_module\n")
        self.open("/key")
        self.page.locator("h1", has_text="no_such_module").wait_for()
        self.save(self.FIXED)
        self.page.locator("h1", has_text="It works").wait_for()

    def test_a_failed_post_is_not_sent_again_without_being_asked(self) -> None:
        self.open("/fine")
        self.page.evaluate(
            "document.body.innerHTML = `<form method=post action=/order><input name=fruit value=plum></form>`;"
            "document.forms[0].submit()"
        )
        self.page.locator("h1", has_text=f"order fruit=plum from {self.served.url}").wait_for()
        self.unlock().wait_for()
        self.save(FAILING_APP.replace('"order "', '"the second order "'))
        news = self.page.locator("#news")
        news.get_by_text("frames on this page are gone").wait_for()
        self.assertFalse(self.page.locator(".console textarea").first.is_editable())
        news.get_by_text("Send again").click()
        self.page.locator("h1", has_text=f"the second order fruit=plum from {self.served.url}").wait_for()

    def test_a_page_with_something_typed_waits_for_the_person(self) -> None:
        self.open("/key")
        self.unlock().fill("half a thought")
        self.save(self.FIXED)
        self.page.locator("#news").get_by_text("frames on this page are gone").wait_for()
        self.page.locator("#news button").click()
        self.page.locator("h1", has_text="It works").wait_for()


LIVE_APP = """
import mimetypes, pathlib

HERE = pathlib.Path(__file__).parent
WORD = "one"


def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    if name in ("a.css", "dot.svg"):
        body, kind = (HERE / "static" / name).read_bytes(), mimetypes.guess_type(name)[0]
    else:
        body, kind = (HERE / "templates" / "page.html").read_text().format(word=WORD).encode(), "text/html"
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
"""
LIVE_PAGE = """<!doctype html><title>Shop</title><link rel=stylesheet href="/a.css"><h1>{word}</h1><p>old</p>
<img src="/dot.svg">"""


class BrowserLive(InBrowser):
    """With --live, an open page of the application follows each save, as it is seen in a browser."""

    started: "Served"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.write(LIVE_APP, "shop.py")
        for name, text in (("templates/page.html", LIVE_PAGE), ("static/a.css", "h1 { color: rgb(1, 1, 1) }")):
            (cls.folder / name).parent.mkdir(exist_ok=True)
            cls.write(text, name)
        cls.write(cls.dot("red"), "static/dot.svg")
        cls.served = Served("shop:app", "--debug", "--live", cwd=cls.folder)
        cls.addClassCleanup(cls.served.stop)

    @staticmethod
    def dot(color: str) -> str:
        size = {"red": 10, "blue": 20}[color]
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{0}"><rect fill="{1}" width="20"/></svg>'
        return svg.format(size, color)

    def test_it_follows_code_templates_stylesheets_and_images_and_shows_what_breaks(self) -> None:
        self.open("/shop")
        self.page.evaluate("window.mark = 1")
        color = "getComputedStyle(document.querySelector('h1')).color"
        self.assertEqual(self.page.evaluate(color), "rgb(1, 1, 1)")
        self.write("h1 { color: rgb(2, 2, 2) }", "static/a.css")
        self.until(f"{color} === 'rgb(2, 2, 2)'")
        self.write(self.dot("blue"), "static/dot.svg")
        self.until("document.querySelector('img').naturalWidth === 20")
        self.assertEqual(self.page.evaluate("window.mark"), 1, "in place")
        pid = self.served.process.pid
        self.write(LIVE_PAGE.replace("old", "new"), "templates/page.html")
        self.until("document.querySelector('p').textContent === 'new'")
        self.assertNotIn("reloading", self.served.log)
        self.write(LIVE_APP.replace('"one"', '"two"'), "shop.py")
        self.page.locator("h1", has_text="two").wait_for()
        self.until("document.readyState === 'complete'")  # or its style sheet would be asked of what is broken
        self.write(LIVE_APP.replace("def app(", "def app(("), "shop.py")
        self.page.locator("h1", has_text="SyntaxError").wait_for()
        self.write(LIVE_APP.replace('"one"', '"three"'), "shop.py")
        self.page.locator("h1", has_text="three").wait_for()
        self.write("h1 { color: rgb(3, 3, 3) }", "static/a.css")
        self.until(f"{color} === 'rgb(3, 3, 3)'")
        self.assertEqual(self.served.process.pid, pid)
        self.assertNotIn("__devserve__/live", self.served.log)

    def test_a_broken_save_is_healed_without_the_debugger_too(self) -> None:
        self.write(LIVE_APP, "bare.py")
        bare = Served("bare:app", "--reload", "--live", cwd=self.folder)
        self.addCleanup(bare.stop)
        self.page = self.window(watched=bare)
        self.page.goto(f"{bare.url}/shop")
        for broken, name in (
            (LIVE_APP.replace("def app(", "def app(("), "SyntaxError"),
            (LIVE_APP + "\n1 / 0 if '<b>' else 0\n", "ZeroDivisionError"),
            (LIVE_APP + "\nimport nowhere_to_be_found\n", "ModuleNotFoundError"),
        ):
            self.write(broken, "bare.py")
            self.page.locator("pre", has_text=name).wait_for()
            self.assertEqual(self.page.title(), "The application cannot be loaded")
            self.write(LIVE_APP, "bare.py")
            self.page.locator("h1", has_text="one").wait_for()
            self.until("document.readyState === 'complete'")


HOSTILE_SITE = '''
WORKER = """
let seen = [];
self.addEventListener("install", event => {
  self.skipWaiting();
  const route = {condition: {urlPattern: "/*"}, source: "race-network-and-fetch-handler"};
  if (HOW === "routes" && event.addRoutes) event.waitUntil(event.addRoutes(route));
});
self.addEventListener("activate", event => event.waitUntil((async () => {
  if (HOW === "preload") await self.registration.navigationPreload.enable();
  await self.clients.claim();
})()));
self.addEventListener("message", event => event.source.postMessage(seen));
self.addEventListener("fetch", event => {
  if (event.request.mode !== "navigate") {
    seen.push(event.request.headers.get("X-Devserve-Secret"));
    return;
  }
  if (HOW === "ignore") return;
  event.respondWith((async () => {
    const answer = HOW === "preload" ? await event.preloadResponse : await fetch(event.request);
    seen.push(await answer.clone().text());
    return answer;
  })());
});
"""


def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/fail":
        return {}["missing"]
    kind = "text/javascript" if path == "/worker.js" else "text/html"
    headers = [("Content-Type", kind)]
    if "isolated" in path:
        headers.append(("Cross-Origin-Opener-Policy", "same-origin"))
    if path == "/cross-origin-isolated":
        headers.append(("Cross-Origin-Embedder-Policy", "require-corp"))
    start_response("200 OK", headers)
    text = f"const HOW = {query!r};{WORKER}" if path == "/worker.js" else "<!doctype html><title>Site</title>"
    return [text.encode()]
'''


class BrowserGuard(InBrowser):
    """Script in the application's own page gets no secret, however it goes about it."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.write(HOSTILE_SITE, "site_app.py")

    def setUp(self) -> None:
        super().setUp()
        self.served = Served("site_app:app", "--debug", cwd=self.folder)
        self.addCleanup(self.served.stop)
        self.page.goto(self.served.wait_for(r"(http\S+/unlock\?token=\w+)").group(1))
        self.page.locator(".console textarea").first.wait_for()
        self.secret = self.page.evaluate("document.body.dataset.secret")
        self.assertEqual(len(self.secret), 32)

    def tearDown(self) -> None:
        expected = ("frame-ancestors", "Opener-Policy", "service worker navigation preload")
        self.problems = [text for text in self.problems if not any(word in text for word in expected)]
        super().tearDown()

    def test_a_window_that_a_page_with_an_opener_policy_opens_is_not_its_own(self) -> None:
        for path in ("/", "/isolated", "/cross-origin-isolated"):
            for target in ("/fail", "/__devserve__/console"):
                self.open(path)
                with self.page.context.expect_page() as opened:
                    self.page.evaluate(f"window.made = window.open({target!r}), 0")
                opened.value.wait_for_load_state()
                self.assertEqual(opened.value.evaluate("document.body.dataset.secret"), self.secret)
                read = "(() => { try { return window.made.document.body.outerHTML } catch (error) { return '' } })()"
                self.assertNotIn(self.secret, str(self.page.evaluate(read)))
                opened.value.close()

    def test_a_service_worker_reads_neither_pages_nor_what_they_send(self) -> None:
        for how in ("fetch", "preload", "routes", "ignore"):
            with self.subTest(how):
                self.open("/")
                self.page.evaluate(
                    f"""async () => {{ await navigator.serviceWorker.register("/worker.js?{how}");
                    while (!navigator.serviceWorker.controller) await new Promise(done => setTimeout(done, 10)); }}"""
                )
                for path in ("/fail", "/__devserve__/console"):
                    self.open(path)
                    why = self.page.locator(".console .why")
                    why.first.wait_for()
                    self.assertRegex(
                        why.first.inner_text(), r"^The console is closed: .*service worker.*Shift[^.]*\.$"
                    )
                self.open("/")
                seen = self.page.evaluate(
                    """() => new Promise(done => { navigator.serviceWorker.onmessage = event => done(event.data);
                    navigator.serviceWorker.controller.postMessage("") })"""
                )
                secret = re.search(r'data-secret="(\w+)"', self.served.get("/__devserve__/console"))
                assert secret is not None
                self.assertNotIn(self.secret, json.dumps(seen))
                self.assertNotIn(secret.group(1), json.dumps(seen))
                self.page.evaluate(
                    """async () => { for (const each of await navigator.serviceWorker.getRegistrations())
                    await each.unregister() }"""
                )
        self.open("/fail")
        self.page.context.new_cdp_session(self.page).send("Page.reload", {"ignoreCache": True})  # Shift and reload
        self.page.locator(".console textarea").first.wait_for()

    def test_the_console_opens_where_the_application_has_filled_the_storage_or_the_browser_keeps_none(self) -> None:
        link = self.served.wait_for(r"(http\S+/unlock\?token=\w+)").group(1)
        self.open("/")
        self.page.evaluate(
            """() => { localStorage.clear(); for (let size = 1 << 23; size >= 1;) {
            try { localStorage.setItem(Math.random(), "x".repeat(size)) } catch { size >>= 1 } } }"""
        )
        for _ in range(2):
            self.page.goto(link)
            self.page.locator(".console textarea").first.fill("6 * 7")
            self.page.locator(".console textarea").first.press("Enter")
            self.page.get_by_text("42", exact=True).first.wait_for()
            self.page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error() }})")

    def test_a_page_of_the_site_reads_nothing_of_what_was_typed_and_what_it_plants_is_left_out(self) -> None:
        keep = "text => sessionStorage.setItem('devserve.typed', text)"
        kept = "sessionStorage.getItem('devserve.typed')"
        self.open("/fail")
        self.page.locator(".console textarea").first.fill("mine")
        self.until(kept)
        self.open("/")
        typed = self.page.evaluate(kept)
        self.assertTrue(all(isinstance(byte, int) for part in json.loads(typed) for byte in part), typed[:200])
        vector, data = json.loads(typed)
        planted = json.dumps([vector, [data[0] ^ 1, *data[1:]]])
        for other in (planted, "[]", "{", json.dumps([vector, [*b'[["evil"], {}]']])):
            self.page.evaluate(keep, other)
            self.open("/fail")
            prompt = self.page.locator(".console textarea").first
            prompt.wait_for()
            self.assertEqual(prompt.input_value(), "")
            prompt.press("ArrowUp")
            self.assertEqual(prompt.input_value(), "")
        self.page.evaluate(keep, typed)
        self.open("/fail")
        self.until("document.querySelector('.console textarea')?.value === 'mine'")


class BrowserCrashes(InBrowser):
    """The page of a crash under its own address, whoever the client was."""

    def crash(self, path: str, body: Optional[bytes] = None, **headers: str) -> str:
        """Fail a request that no browser sent; return the link in the answer."""
        form = {} if body is None else {"Content_Type": "application/x-www-form-urlencoded"}
        sent: dict[str, Any] = {"Accept": "*/*", **form, **headers}
        answer = self.served.ask(path, "GET" if body is None else "POST", body, **sent)
        self.assertEqual(answer.status, 500)
        return str(re.findall(r"http\S+/crash/\w+", answer.text)[0])

    def test_the_page_of_another_clients_crash_has_values_and_console(self) -> None:
        self.page.goto(self.crash("/order", b"fruit=plum"))
        self.assertIn("fruit=plum", self.page.locator("h1").inner_text())
        self.unlock().wait_for()
        self.until("document.activeElement.tagName === 'TEXTAREA'")
        self.assertIn("POST", self.type("environ['REQUEST_METHOD']"))
        self.page.get_by_text("The last crashes").click()
        self.page.locator(".crashes a", has_text="fruit=plum").first.click()
        self.page.locator("h1", has_text="fruit=plum").wait_for()

    def test_a_request_is_sent_again_after_a_question_unless_it_is_a_get(self) -> None:
        questions: list[str] = []

        def answer(dialog: Any) -> None:
            questions.append(dialog.message)
            dialog.accept()

        for path, body in (("/key", None), ("/order", b"fruit=plum")):
            self.page.goto(self.crash(path, body))
            if not self.page.locator(".console textarea").count():
                self.page.locator(".console").first.wait_for()
                if self.page.locator(".console button.sign").count():
                    self.unlock().wait_for()
            if body:
                self.page.once("dialog", answer)
            self.page.locator("#again").click()
            answers = self.page.locator("#answers", has_text="The second: 500 Internal Server Error after")
            answers.wait_for()
            self.assertRegex(
                answers.inner_text(), r"The first answer: 500 after [\d.]+ ms. The second: 500 .* [\d.]+ ms"
            )
            before = self.page.url
            answers.locator("a").click()
            self.until(f"location.href !== '{before}'")
        self.assertEqual(len(questions), 1)
        self.assertIn("/order", questions[0])

    def test_a_request_is_sent_again_to_new_code(self) -> None:
        self.addCleanup(self.write, FAILING_APP)
        self.page.goto(self.crash("/key"))
        self.unlock().wait_for()
        self.write(FAILING_APP.replace("total = FRUITS[fruit]", "total = FRUITS.get(fruit, 0)"))
        self.page.locator("#news", has_text="New code is running").wait_for()
        self.page.locator("#news button").click()
        self.page.locator("#answers", has_text="The second: 200 OK after").wait_for()

    def test_a_locked_page_does_not_send(self) -> None:
        self.page.goto(self.crash("/key"))
        self.page.locator("#again").click()
        self.page.locator("#answers", has_text="has not been unlocked").wait_for()

    def test_a_piece_in_the_applications_page_and_in_a_frame_does_nothing_there(self) -> None:
        asked: list[str] = []
        self.page.on("request", lambda request: asked.append(request.url))
        self.open("/fine")
        self.page.evaluate(
            """async () => { const text = await (await fetch("/key", {headers: {Accept: "text/html"}})).text();
            document.body.append(document.createRange().createContextualFragment(text));
            const frame = document.createElement("iframe"); frame.src = "/key"; document.body.append(frame);
            await new Promise(done => frame.onload = done); }"""
        )
        self.assertIn(
            "KeyError", self.page.evaluate("document.querySelector('iframe').contentDocument.body.innerText")
        )
        self.assertRegex(self.page.locator("body").inner_text(), "KeyError:? 'plum'")
        self.page.wait_for_timeout(700)  # twice the time between two questions of a page that does something
        self.assertEqual([url for url in asked if "__devserve__" in url], [])
        taken = (
            "!document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true, cancelable: true}))"
        )
        self.assertFalse(self.page.evaluate(taken))
        with self.page.context.expect_page() as opened:
            self.page.locator("a", has_text="console").first.click()
        opened.value.locator("h1", has_text="KeyError").wait_for()

    def test_output_appears_while_it_is_printed_and_is_interrupted(self) -> None:
        self.open("/key")
        prompt = self.unlock()
        prompt.fill("import time\nwhile True: print('tick'); time.sleep(0.05)\n")
        prompt.press("Enter")
        self.page.locator(".printed", has_text="tick").first.wait_for()
        self.page.locator(".stop:visible").first.click()
        self.page.locator(".printed", has_text="KeyboardInterrupt").first.wait_for()

    def test_nothing_half_typed_is_lost_by_a_reload(self) -> None:
        self.open("/key")
        self.unlock().fill("rows = [each for each in")
        self.page.reload()
        self.until("document.querySelector('.console textarea')?.value === 'rows = [each for each in'")

    def test_script_in_the_applications_page_gets_no_secret(self) -> None:
        self.open("/key")
        self.unlock().wait_for()
        self.open("/fine")
        for way in (
            "(await fetch('/key', {headers: {Accept: 'text/html'}})).text()",
            "(await fetch('/__devserve__/console', {headers: {Accept: 'text/html'}})).text()",
            """new Promise(done => { const made = window.open('/key'); setTimeout(() => { try {
            done(made.document.body.outerHTML) } catch (error) { done(String(error)) } }, 1000) })""",
            """new Promise(done => { const made = document.createElement('iframe'); made.src = '/__devserve__/console';
            document.body.append(made); setTimeout(() => { try { done(made.contentDocument.body.outerHTML) }
            catch (error) { done(String(error)) } }, 500) })""",
        ):
            text = str(self.page.evaluate(f"async () => await {way}"))
            self.assertIsNone(re.search(r'data-secret="\w', text), way)
        self.problems = [text for text in self.problems if "frame-ancestors" not in text]

    def test_behind_a_proxy_that_takes_a_part_of_the_path_away_everything_works(self) -> None:
        target = self.served.port

        class Strip(http.server.BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                path = self.path[len("/proxy/5000") :]
                headers: dict[str, Any] = dict(self.headers)
                answer = fetch(target, path, self.command, body or None, **headers)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = forward

            def log_message(self, *arguments: Any) -> None: ...

        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Strip)
        self.addCleanup(proxy.server_close)
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(proxy.shutdown)
        base = f"http://127.0.0.1:{proxy.server_port}/proxy/5000"
        self.page.goto(base + "/key")
        self.unlock().wait_for()
        self.until("document.activeElement.tagName === 'TEXTAREA'")
        self.assertTrue(self.type("fruit").endswith("'plum'"))
        self.page.get_by_text("Address of this crash").click()
        self.page.locator(".console textarea").first.wait_for()
        self.assertRegex(self.page.url, base + r"/__devserve__/crash/\w+$")
        self.assertEqual(self.page.locator("#state").inner_text(), "")
        self.problems = [url for url in self.problems if not url.startswith(base)]


# =====================================================================================================================
# Reloading, end to end: real processes, real files, real sockets.  What the watcher alone can show is tested with it;
# here the whole way is walked, from the save to the answer that a client reads.
# =====================================================================================================================

posix_only = unittest.skipIf(sys.platform == "win32", "Windows does not replace a process by another")

RELOADED_APP = """
import json, os, sys, time

VERSION = "v1"


def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(float(query))
    if path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events()
    if path == "/slow":
        print("slow request began", flush=True)
        time.sleep(float(query))
    if path == "/upload":
        print("upload began", flush=True)
    size = len(environ["wsgi.input"].read())
    body = json.dumps({"version": VERSION, "pid": os.getpid(), "size": size, **more()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def stream(pause):
    for number in range(5):
        yield f"{VERSION} {number}, ".encode()
        time.sleep(pause)
    yield b"whole"


def events():
    while True:
        yield b"data: tick\\n\\n"
        time.sleep(0.05)


def more():
    return {}
"""


ASGI_RELOADED = """
    import asyncio, json, os

    VERSION = "v0"

    async def app(scope, receive, send):
        assert scope["type"] in ("http", "websocket")
        await receive()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({**message, "type": "websocket.send"})
            return
        kind = b"text/event-stream" if scope["path"] == "/events" else b"text/plain"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        while scope["path"] == "/events":
            await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
            await asyncio.sleep(0.01)
        for _ in range(10 if scope["path"] == "/stream" else 0):
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            await asyncio.sleep(0.002)
        told = json.dumps({"version": VERSION, "pid": os.getpid()}).encode()
        await send({"type": "http.response.body", "body": b"whole" if scope["path"] == "/stream" else told})
"""


class Reload(Folder):
    """An application in `self.folder`, served with the reloader on."""

    def setUp(self) -> None:
        super().setUp()
        self.write("app.py", RELOADED_APP)

    def serve(self, *arguments: str, **options: Any) -> Served:
        self.served = Served(*(arguments or ("app", "--reload", "-q")), cwd=self.folder, **options)
        self.addCleanup(self.served.stop)
        return self.served

    def connect(self, served: Union[Served, str, socket.socket], context: Optional[ssl.SSLContext] = None) -> Client:
        client = Client(served.port if isinstance(served, Served) else served, context)
        self.addCleanup(client.close)
        return client

    def save(self, version: str, more: str = "{}") -> None:
        """Save the application as another version, whose answers hold what the expression `more` gives."""
        text = RELOADED_APP.replace('"v1"', f'"{version}"').replace("return {}", f"return {more}")
        self.write("app.py", text)

    def settle(self) -> None:
        """Give the watcher the time for a few looks, in which it learns of every module and what its file holds."""
        time.sleep(1.0)  # nothing tells of it; one look in 40 ms is the rule

    def reaches(self, client: Client, version: str) -> Any:
        """Return the first answer on the connection that comes from `version`."""

        def look() -> Any:
            answer = client.ask()
            return answer.status == 200 and answer.json["version"] == version and answer.json

        return eventually(look, f"an answer from {version}")

    def patched(self, **constants: Any) -> list[str]:
        """Return a script to start in place of devserve.py, which gives other values to its constants first."""
        lines = [f"devserve.{name} = {value!r}" for name, value in constants.items()]
        start = ["import sys", f"sys.path.insert(1, {str(SCRIPT.parent)!r})", "import devserve"]
        path = self.write("patched.py", "\n".join([*start, *lines, "sys.exit(devserve.main())", ""]))
        return [str(path)]


@posix_only
class ReloadLosesNothing(Reload):
    """Not one response is refused, reset or truncated, and connections that wait are never closed."""

    def test_twenty_edits_under_load_lose_nothing(self) -> None:
        served = self.serve()
        stop = threading.Event()
        failures: list[str] = []
        counts: dict[str, int] = {}
        loads = [(path, close) for path in ("/", "/stream?0.002") for close in (False, True)]
        askers = [
            threading.Thread(target=self.keep_asking, args=(served, *load, stop, failures, counts)) for load in loads
        ]
        own = self.connect(served)
        for asker in askers:
            asker.start()
        pids = set()
        try:
            for number in range(100):
                self.save(f"v{number}")
                pids.add(self.reaches(own, f"v{number}")["pid"])
                if number >= 19 and len(counts) == 4 and min(counts.values()) > 20:
                    break
        finally:
            stop.set()
            for asker in askers:
                asker.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(counts), 4)
        self.assertEqual(pids, {served.process.pid})
        self.assertGreater(min(counts.values()), 20, counts)

    def test_twenty_edits_of_an_asgi_application_under_load_lose_nothing(self) -> None:
        """As above; and an event stream and a WebSocket are cut at each, and come again."""
        self.write("app.py", ASGI_RELOADED)
        served = self.serve()
        stop = threading.Event()
        failures: list[str] = []
        counts: dict[str, int] = {}
        loads = [(path, close) for path in ("/", "/stream") for close in (False, True)]
        askers = [
            threading.Thread(target=self.keep_asking, args=(served, *load, stop, failures, counts)) for load in loads
        ]
        own = self.connect(served)
        for asker in askers:
            asker.start()
        try:
            for number in range(1, 21):
                events, peer = self.connect(served), WebSocketClient(served.port)
                self.addCleanup(peer.close)
                events.request("/events")
                self.assertEqual(peer.shake_hands().status, 101)
                peer.send(client_frame(1, b"hello"))
                self.assertEqual(peer.frame(), (0x81, b"hello"))
                self.write("app.py", ASGI_RELOADED.replace('"v0"', f'"v{number}"'))
                self.assertEqual(peer.close_code(), 1012)
                self.reaches(own, f"v{number}")
        finally:
            stop.set()
            for asker in askers:
                asker.join()
        self.assertEqual(failures, [])
        self.assertGreater(min(counts.values()), 20, counts)

    def test_no_request_is_answered_by_what_has_changed_while_it_was_imported(self) -> None:
        self.write("part.py", 'version = "v1"')
        late = """
            import pathlib, part
            if part.version == "v1":
                pathlib.Path("part.py").write_text("version = 'v22'")
        """
        self.save("v1", '{"part": part.version}')
        app = self.folder / "app.py"
        app.write_text(textwrap.dedent(late) + app.read_text())
        served = self.serve(script=self.patched(_INTERVAL=1000.0))
        self.assertEqual(self.connect(served).ask().json["part"], "v22")

    def test_where_devserve_itself_has_gone_the_process_stays_and_says_so_until_it_is_back(self) -> None:
        """As on a branch that does not have it."""
        script = self.folder / "devserve.py"
        shutil.copy(SCRIPT, script)
        self.save("v1")
        served = self.serve("app", "--reload", script=[str(script)])
        client = self.connect(served)
        client.ask()
        script.rename(self.folder / "elsewhere")
        served.wait_for("it is gone")
        self.save("v2")
        self.assertIn("it is gone", client.ask().text)
        (self.folder / "elsewhere").rename(script)
        self.reaches(client, "v2")

    def test_a_save_of_devserve_itself_loses_nothing_and_the_pin_stays(self) -> None:
        script = self.folder / "devserve.py"
        shutil.copy(SCRIPT, script)
        self.save("v1", '{"born": BORN}\n\n\nBORN = time.time_ns()')
        served = self.serve("app", "--reload", "--debugger", script=[str(script)])
        client = self.connect(served)
        pin = served.wait_for(r"PIN is ([-\d]+)").group(1)
        stop = threading.Event()
        failures: list[str] = []
        counts: dict[str, int] = {}
        askers = [
            threading.Thread(target=self.keep_asking, args=(served, "/", close, stop, failures, counts))
            for close in (False, True)
        ]
        for asker in askers:
            asker.start()
        try:
            for _ in range(2):
                eventually(lambda: len(counts) == 2, "answers for both clients")
                born = client.ask().json["born"]
                with script.open("a", encoding="utf-8") as file:
                    file.write("# saved\n")
                answer = eventually(lambda: (a := client.ask().json)["born"] != born and a, "the reload")
                self.assertEqual(answer["pid"], served.process.pid)
                counts.clear()
            eventually(lambda: len(counts) == 2, "answers for both clients after the last reload")
        finally:
            stop.set()
            for asker in askers:
                asker.join()
        self.assertEqual(failures, [])
        self.assertEqual(served.log.count("devserve.py changed, reloading"), 2, served.log)
        page = client.ask("/__devserve__/console", Accept="text/html").text
        secret = re.search(r"\b[0-9a-f]{32}\b", re.sub(r'nonce="[0-9a-f]+"', "", page))
        assert secret, page
        headers = {
            "Content_Type": "application/json",
            "Origin": "http://localhost",
            "X_Devserve_Secret": secret.group(),
        }
        for typed, status in (("0", 403), (pin, 200)):
            body = json.dumps({"pin": typed}).encode()
            answer = client.ask("/__devserve__/pin", "POST", body, **headers)
            self.assertEqual(answer.status, status, answer)

    def keep_asking(
        self,
        served: Served,
        path: str,
        close: bool,
        stop: threading.Event,
        failures: list[str],
        counts: dict[str, int],
    ) -> None:
        """Ask until told to stop, on one connection or on a new one each time; note each answer that is not whole."""
        name = f"{path} {'closing' if close else 'kept'}"
        try:
            client = Client(served.port)
            while not stop.is_set():
                answer = client.ask(path, Connection="close" if close else None)
                if answer.status != 200 or not answer.body.endswith((b"}", b"whole")):
                    failures.append(f"{name}: {answer}")
                counts[name] = counts.get(name, 0) + 1
                if close:
                    client.close()
                    client = Client(served.port)
            client.close()
        except (OSError, ValueError) as error:
            failures.append(f"{name}: {error!r} after {counts.get(name, 0)}")

    def test_request_in_flight_completes_and_its_connection_goes_on(self) -> None:
        served = self.serve()
        client = self.connect(served)
        client.request("/slow?1")
        served.wait_for("slow request began")
        self.save("v2")
        self.assertEqual(client.answer().json["version"], "v1")
        self.reaches(client, "v2")
        self.assertNotIn("cut", served.log)

    def test_stream_in_flight_completes(self) -> None:
        served = self.serve()
        client = self.connect(served)
        client.request("/stream?0.2")
        head = client.head()
        self.save("v2")
        served.wait_for("changed, reloading")
        self.assertEqual((head.status, head.get("Transfer-Encoding")), (200, "chunked"))
        self.assertEqual(b"".join(iter(client.chunk, b"")), b"v1 0, v1 1, v1 2, v1 3, v1 4, whole")
        self.reaches(client, "v2")

    def test_upload_in_flight_completes(self) -> None:
        served = self.serve()
        client = self.connect(served)
        client.request("/upload", "POST", b"12345", Content_Length=10)
        served.wait_for("upload began")
        self.save("v2")
        served.wait_for("changed, reloading")
        client.send(b"67890")
        answer = client.answer().json
        self.assertEqual((answer["version"], answer["size"]), ("v1", 10))
        self.reaches(client, "v2")

    def test_request_past_its_grace_is_cut_and_the_log_says_so_once(self) -> None:
        served = self.serve("app", "--reload", script=self.patched(_GRACE=2.0))
        client, *others = (self.connect(served) for _ in range(3))
        client.request("/slow?1000")
        served.wait_for("slow request began")
        time.sleep(2.0)  # the grace itself
        for other in others:
            other.request("/upload", "POST", Content_Length=1)
        eventually(lambda: served.log.count("upload began") == 2, "two more requests")
        self.save("v2")
        with self.assertRaises(ConnectionError):
            client.answer()
        for other in others:  # still within theirs, and each one's end makes the server look around
            other.send(b"x")
            self.assertEqual(other.answer().json["version"], "v1")
        self.reaches(others[0], "v2")
        cuts = re.findall(r"warning: cut .*", served.log)
        self.assertEqual(len(cuts), 1, served.log)
        self.assertIn("GET /slow?1000", cuts[0])

    def test_an_asgi_stream_past_its_grace_and_work_after_an_answer_are_told_once_each(self) -> None:
        self.write("stream.py", """
            import asyncio

            async def app(scope, receive, send):
                assert scope["type"] == "http"
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"x", "more_body": scope["path"] == "/stream"})
                await asyncio.sleep(1000)
        """)  # fmt: skip
        served = Served("stream", "--reload", cwd=self.folder, script=self.patched(_GRACE=0.5))
        self.addCleanup(served.stop)
        stream, work = self.connect(served), self.connect(served)
        work.request("/work")
        self.assertEqual(work.answer().status, 200)
        stream.request("/stream")
        self.assertEqual((stream.head().status, stream.chunk()), (200, b"x"))
        self.write("stream.py", (self.folder / "stream.py").read_text() + "# saved")
        served.wait_for("reloaded in")
        told = re.findall(r"warning: (.*): still running after its grace", served.log)
        self.assertEqual(told, ["cut GET /stream", "cancelled GET /work"])

    def test_two_hundred_waiting_connections_cross(self) -> None:
        served = self.serve()
        clients = [self.connect(served) for _ in range(200)]
        for client in clients[:100]:  # the others have been opened ahead of need, as browsers do
            self.assertEqual(client.ask().json["version"], "v1")
        self.save("v2")
        self.reaches(clients[0], "v2")
        for client in clients:
            self.assertEqual(client.ask().json["version"], "v2")
        self.save("v3")
        self.reaches(clients[-1], "v3")
        self.assertEqual({client.ask().json["version"] for client in clients}, {"v3"})

    def test_half_sent_head_is_waited_for(self) -> None:
        served = self.serve()
        client, other = self.connect(served), self.connect(served)
        client.send(b"GET / HTTP/1.1\r\nHost: lo")
        self.assertEqual(other.ask().json["version"], "v1")  # the half head was sent before and has surely been read
        self.save("v2")
        served.wait_for("changed, reloading")
        client.send(b"calhost\r\n\r\n")
        self.assertEqual(client.answer().json["version"], "v1")
        self.reaches(client, "v2")

    def test_pipelined_requests_are_all_answered_in_order(self) -> None:
        served = self.serve()
        client = self.connect(served)
        head = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.send("".join(map(head.format, ["/slow?0.5", "/stream?0", "/", "/"])).encode())
        served.wait_for("slow request began")
        self.save("v2")
        self.assertEqual(client.answer().json["version"], "v1")
        self.assertEqual(client.answer().body, b"v1 0, v1 1, v1 2, v1 3, v1 4, whole")
        for _ in range(2):
            self.assertIn(b"v1", client.answer().body)
        self.reaches(client, "v2")

    def test_client_that_pipelines_without_end_does_not_hold_a_reload(self) -> None:
        """Each read ends in the middle of a head, so that the connection is never at rest."""
        served = self.serve("app", "--reload", "-q", script=self.patched(_GRACE=0.4))
        greedy, other = self.connect(served), self.connect(served)
        stop = threading.Event()
        threading.Thread(target=self.drain, args=(greedy,), daemon=True).start()
        sender = threading.Thread(target=self.flood, args=(greedy, stop), daemon=True)
        sender.start()
        self.addCleanup(sender.join)
        self.addCleanup(self.hang_up, greedy)  # else it may wait for a window of a socket that nobody reads
        self.addCleanup(stop.set)
        self.assertEqual(other.ask().json["version"], "v1")
        self.save("v2")
        self.reaches(other, "v2")

    def flood(self, client: Client, stop: threading.Event) -> None:
        head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".ljust(60, b"x") + b"\r\n\r\n"
        try:
            client.send(b"\r\n" + head[:9])  # so that of a head of 64 bytes no large read ends with one
            while not stop.is_set():
                client.send(head[9:] + head * 20 + head[:9])
        except OSError:
            pass

    def hang_up(self, client: Client) -> None:
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)

    def drain(self, client: Client) -> None:
        try:
            while client.sock.recv(1 << 16):
                pass
        except (OSError, ValueError):
            pass

    def test_event_stream_does_not_delay_a_reload(self) -> None:
        served = self.serve("app", "--reload", "-q", script=self.patched(_GRACE=1000.0))
        stream, other = self.connect(served), self.connect(served)
        stream.request("/events")
        stream.head()
        stream.chunk()
        self.save("v2")
        self.reaches(other, "v2")
        self.assertNotIn("cut", served.log)

    def test_requests_sent_during_a_long_import_are_answered_by_the_new_code(self) -> None:
        served = self.serve()
        kept = self.connect(served)
        kept.ask()
        self.write(
            "app.py", "import time\nprint('importing', flush=True)\ntime.sleep(1)\n" + RELOADED_APP.replace("v1", "v2")
        )
        served.wait_for("importing")
        fresh = [self.connect(served) for _ in range(20)]
        for client in (kept, *fresh):
            client.request()
        self.assertEqual({client.answer().json["version"] for client in (kept, *fresh)}, {"v2"})

    def test_unix_socket_crosses_and_its_file_is_removed_at_the_end(self) -> None:
        with tempfile.TemporaryDirectory() as short:  # a socket's path may have 107 bytes
            path = os.path.join(short, "s")
            served = self.serve("app", "--reload", "-q", "--host", f"unix:{path}")
            eventually(lambda: os.path.exists(path), "the socket file")
            served.wait_for("serves")
            client = self.connect(path)
            self.assertEqual(client.ask().json["version"], "v1")
            self.save("v2")
            self.reaches(client, "v2")
            self.assertEqual(fetch(path).json["version"], "v2")
            served.stop()
            self.assertFalse(os.path.exists(path))

    def test_port_zero_keeps_its_port(self) -> None:
        served = self.serve("app", "--reload")
        port = served.port
        client = self.connect(served)
        for version in ("v2", "v3"):
            self.save(version)
            self.reaches(client, version)
            self.assertEqual(fetch(port).json["version"], version)

    @unittest.skipUnless(shutil.which("openssl") or REQUIRE_ALL, "needs the program openssl")
    def test_tls_connections_are_closed_while_idle_and_cleanly(self) -> None:
        import ssl

        self.make_certificate()
        served = self.serve("app", "--reload", "-q", "--cert", "cert.pem")
        context = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        idle, busy = (self.connect(served, context) for _ in range(2))
        early = socket.create_connection(("127.0.0.1", served.port), DEADLINE)  # has not begun its handshake
        self.addCleanup(early.close)
        self.assertEqual(idle.ask().json["version"], "v1")
        busy.request("/slow?0.5")
        served.wait_for("slow request began")
        self.save("v2")
        self.assertEqual(busy.answer().json["version"], "v1")
        for client in (idle, busy):
            self.assertEqual(client.file.read(), b"")  # anything but a closing alert would raise
        self.reaches(self.connect(early, context), "v2")

    def make_certificate(self) -> None:
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", *name]
        subprocess.run(made, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pem = (self.folder / "cert").read_text() + (self.folder / "key").read_text()
        (self.folder / "cert.pem").write_text(pem)


@posix_only
class ReloadSeesEverything(Reload):
    """What the watcher's own tests show for files is shown here for answers."""

    def setUp(self) -> None:
        super().setUp()

    def start(self, *arguments: str, **options: Any) -> Client:
        self.served = self.serve("app", "--reload", "-q", *arguments, **options)
        return self.connect(self.served)

    def reloads(self) -> int:
        return self.served.log.count("changed, reloading")

    def reloads_at_rest(self) -> int:
        """Return their number when no more come: what is saved during an import needs one, though it was loaded."""
        before = -1
        while before != self.reloads():
            before = self.reloads()
            self.settle()
        return before

    def sees(self, client: Client, **expected: Any) -> None:
        """Ask until the answer holds what is expected; no more than one reload may be needed."""
        before = self.reloads()

        def look() -> bool:
            answer = client.ask()
            return answer.status == 200 and expected.items() <= answer.json.items()

        eventually(look, f"{expected} in the answer")
        self.assertLessEqual(self.reloads(), before + 1, self.served.log)

    def test_a_request_at_the_heels_of_a_save_is_answered_by_the_new_code(self) -> None:
        client = self.start(script=self.patched(_SETTLE=2.5))
        self.assertEqual(client.ask().json["version"], "v1")
        self.settle()
        self.save("v2")
        time.sleep(1.0)  # the save is seen by then, and not yet over
        self.assertEqual(self.reloads(), 0)
        other = self.connect(self.served)
        self.assertEqual([client.ask().json["version"], other.ask().json["version"]], ["v2", "v2"])
        self.write("app.py", (self.folder / "app.py").read_text())  # the same bytes
        self.assertEqual(client.ask().json["version"], "v2")

    def test_edits_of_every_kind(self) -> None:
        self.write("plain.py", "VALUE = 1\n")
        self.write("pack/__init__.py", "VALUE = 1\n")
        self.write("space/inner/name.py", "VALUE = 1\n")  # space is a namespace package
        self.write("elsewhere/target.py", "VALUE = 1\n")
        os.symlink(self.folder / "elsewhere" / "target.py", self.folder / "linked.py")
        self.write("módulo.py", "VALUE = 1\n")
        self.write("lazy.py", "VALUE = 1\n")
        self.zip("zipped.zip", "VALUE = 1\n")
        names = ["plain", "pack", "space.inner.name", "linked", "módulo", "lazy", "zipped"]
        self.write(
            "helper.py",
            f"""
            import importlib, sys
            sys.path.append("zipped.zip")
            for name in {names[:5] + names[6:]!r}:
                importlib.import_module(name)

            def values():
                import lazy
                return {{name: sys.modules[name].VALUE for name in {names!r}}}
            """,
        )
        self.save("v1", '__import__("helper").values()')
        client = self.start()
        self.sees(client, **dict.fromkeys(names, 1))
        edits: dict[str, Callable[[], object]] = {
            "plain": lambda: self.write("plain.py", "VALUE = 2\n"),
            "pack": lambda: self.write("pack/__init__.py", "VALUE = 2\n"),
            "space.inner.name": lambda: self.rename_over("space/inner/name.py", "VALUE = 2\n"),
            "linked": lambda: self.write("elsewhere/target.py", "VALUE = 2\n"),
            "módulo": lambda: self.rename_over("módulo.py", "VALUE = 2\n"),
            "lazy": lambda: self.write_with_time("lazy.py", "VALUE = 2\n", 1e9),
            "zipped": lambda: self.zip("zipped.zip", "VALUE = 2\n"),
        }
        for name, edit in edits.items():
            with self.subTest(name):
                edit()
                self.sees(client, **{name: 2})
        with self.subTest("the link's other end is another file"):
            self.write("elsewhere/other.py", "VALUE = 3\n")
            os.symlink(self.folder / "elsewhere" / "other.py", self.folder / "new link")
            os.replace(self.folder / "new link", self.folder / "linked.py")
            self.sees(client, linked=3)
        with self.subTest("a time in the future makes no loop"):
            self.write_with_time("plain.py", "VALUE = 3\n", time.time() + 1e6)
            self.sees(client, plain=3)
            self.write("pack/__init__.py", "VALUE = 3\n")
            self.sees(client, pack=3)

    def zip(self, name: str, text: str) -> None:
        with zipfile.ZipFile(self.folder / "new zip", "w") as archive:
            archive.writestr("zipped.py", text)
        os.replace(self.folder / "new zip", self.folder / name)

    def rename_over(self, name: str, text: str) -> None:
        """Save as careful editors do: write another file, then rename it."""
        self.write(f"{name}~", text)
        os.replace(self.folder / f"{name}~", self.folder / name)

    def write_with_time(self, name: str, text: str, moment: float) -> None:
        self.write(f"{name}~", text)
        os.utime(self.folder / f"{name}~", (moment, moment))
        os.replace(self.folder / f"{name}~", self.folder / name)

    def test_deleted_module_is_missed_and_one_that_comes_back_heals(self) -> None:
        self.write("helper.py", "VALUE = 1\n")
        self.save("v1", '{"value": helper.VALUE}\n\n\nimport helper')
        client = self.start()
        self.sees(client, value=1)
        self.settle()
        (self.folder / "helper.py").unlink()
        self.served.wait_for("No module named 'helper'")
        self.write("helper/__init__.py", "VALUE = 2\n")  # as a package this time
        self.sees(client, value=2)

    def test_extra_files_and_excluded_ones(self) -> None:
        self.write("settings.toml", "1")
        self.write("templates/deep/page.html", "1")
        reads = '{p.name: p.read_text() for p in sorted(__import__("pathlib").Path(".").rglob("*.*ml"))}'
        self.save("v1", f'{{"files": FILES}}\n\n\nFILES = {reads}')
        client = self.start(
            "--extra-files",
            os.pathsep.join(["settings.toml", "templates", "later.yaml", "*.xml"]),
            "--exclude-patterns",
            "*/secret.html",
        )
        files = {"settings.toml": "1", "page.html": "1"}
        self.sees(client, files=files)
        for name in ("settings.toml", "templates/deep/page.html", "later.yaml", "glob.xml", "templates/new/new.html"):
            with self.subTest(name):
                self.write(name, "2")
                files = {**files, os.path.basename(name): "2"}
                self.sees(client, files=files)
        before = self.reloads_at_rest()
        self.write("templates/secret.html", "3")
        self.write("templates/deep/page.html", "3")
        self.sees(client, files={**files, "page.html": "3", "secret.html": "3"})
        self.assertEqual(self.reloads(), before + 1)

    def test_env_file_changes_the_environment_of_the_new_image(self) -> None:
        self.write(".env", "COLOUR=red\nSET=file\n")
        self.save("v1", '{k: os.environ.get(k) for k in ("COLOUR", "SET", "NEW")}')
        client = self.start(env={"SET": "shell"})
        self.sees(client, COLOUR="red", SET="shell", NEW=None)
        self.write(".env", "NEW=1\nSET=other\n")
        self.sees(client, COLOUR=None, SET="shell", NEW="1")
        self.write(".flaskenv", "COLOUR=blue\n")
        self.sees(client, COLOUR="blue")
        (self.folder / ".env").unlink()
        self.sees(client, NEW=None)

    def test_edit_during_the_import_is_not_lost_and_the_address_is_named(self) -> None:
        """As in the first moments of a start, before there is a banner."""
        wait = "while not pathlib.Path('go').exists():\n    time.sleep(0.01)\n"
        slow = f"import pathlib, time\nprint('importing', flush=True)\n{wait}"
        self.write("app.py", RELOADED_APP + slow)
        self.served = self.serve("app", "--reload", "-q")
        self.served.wait_for("importing")
        self.write("app.py", RELOADED_APP.replace("v1", "v2") + slow)
        self.served.wait_for("changed, reloading")
        self.write("go", "")
        client = self.connect(self.served)
        self.reaches(client, "v2")
        self.assertEqual(self.served.log.count("http://"), 1, self.served.log)

    def test_a_branch_that_is_switched_there_and_back_never_ends_with_a_mixture(self) -> None:
        """Bytecode is told from its source by whole seconds and size, which are the same here."""
        names = [f"part{n}" for n in range(40)]

        def switch(branch: str) -> None:
            for name in names:
                self.rename_over(f"{name}.py", f"import time\ntime.sleep(0.002)\nBRANCH = '{branch}'\n")

        switch("A")
        parts = '__import__("collections").Counter(__import__(name).BRANCH for name in PARTS)'
        self.save("v0", f'{parts}\n\n\nPARTS = {names!r}\nprint("importing", flush=True)\nBRANCHES = {parts}')
        client = self.start(env={"PYTHONDONTWRITEBYTECODE": ""})
        self.sees(client, A=40)
        for number in range(1, 9):
            imports = self.served.log.count("importing")
            switch("B")
            eventually(lambda: self.served.log.count("importing") > imports, "the other branch is being imported")
            time.sleep(random.random() / 10)  # anywhere in the import
            switch("A")
            text = (self.folder / "app.py").read_text()
            self.write("app.py", text.replace(f'"v{number - 1}"', f'"v{number}"'))
            answer = self.reaches(client, f"v{number}")
            self.assertEqual((answer.get("A"), answer.get("B")), (40, None), f"after {number} switches")

    def test_a_file_that_is_executed_without_an_import_is_watched(self) -> None:
        ways = {
            "run_path": 'TITLE = __import__("runpy").run_path("instance/run_path.py")["TITLE"]',
            "open": 'exec(open("instance/open.py").read(), OPEN := {})',
            "pathlib": 'exec(__import__("pathlib").Path("instance/pathlib.py").read_text(), PATHLIB := {})',
            "io": 'exec(__import__("io").open(file="instance/io.py", mode="rb").read(), IO := {})',
            "update": 'exec(open("instance/update.py", "r+").read(), UPDATE := {})',
        }
        for name in ways:
            self.write(f"instance/{name}.py", "TITLE = 'one'\n")
        body = '[TITLE, *(each["TITLE"] for each in (OPEN, PATHLIB, IO, UPDATE))]'
        self.save("v1", "\n".join([f'{{"titles": {body}}}\n\n', *ways.values()]))
        client = self.start()
        titles = ["one"] * 5
        self.sees(client, titles=titles)
        for number, name in enumerate(ways):
            self.write(f"instance/{name}.py", "TITLE = 'two'\n")
            titles[number] = "two"
            self.sees(client, titles=titles)

    def test_a_file_that_the_first_request_executes_is_watched(self) -> None:
        names = ["conf.py", "conf.cfg"]
        for name in names:
            self.write(name, "TITLE = 'one'\n")
        self.save("v1", f"""titles()

def titles(kept=[]):
    import runpy
    kept[:] = kept or [runpy.run_path(name)["TITLE"] for name in {names}]
    return {{"titles": kept}}
""")  # fmt: skip
        client = self.start()
        titles = ["one", "one"]
        self.sees(client, titles=titles)
        for number, name in enumerate(names):
            self.settle()
            self.write(name, "TITLE = 'two'\n")
            titles[number] = "two"
            self.sees(client, titles=titles)

    def test_an_edit_is_seen_although_somebody_compiles_the_file_right_after_it(self) -> None:
        self.save("v1", """look() or {}

def look():
    import ast
    text = open(__file__).read()
    ast.parse(text, __file__)
    compile(text, __file__, "exec")
""")  # fmt: skip
        client = self.start()
        for version in ("v2", "v3"):
            self.write("app.py", (self.folder / "app.py").read_text().replace(client.ask().json["version"], version))
            client.ask()
            self.reaches(client, version)

    def test_a_script_that_clears_its_environment_before_run_goes_on_at_the_same_port(self) -> None:
        run = "if __name__ == '__main__':\n    os.environ.clear()\n    import devserve\n"
        run += "    devserve.run(app, port=0, reload=True)\n"
        self.save("v1", "{}\n\n\nimport os\n\n" + run)
        served = self.serve(script=["app.py"], port=False, env={"PYTHONPATH": str(SCRIPT.parent)})
        client = self.connect(served)
        client.ask()
        self.save("v2", "{}\n\n\nimport os\n\n" + run)
        self.reaches(client, "v2")

    def test_a_file_that_was_executed_before_run_is_watched(self) -> None:
        self.write("shop/__init__.py", """
            import os, runpy
            places = [("shop", "settings.py"), ("shop", "conf", "dev.py"), (os.environ["SETTINGS"],)]
            TITLES = [runpy.run_path(os.path.join(*parts))["TITLE"] for parts in places]
        """)  # fmt: skip
        names = ["shop/settings.py", "shop/conf/dev.py", "far/away.cfg"]
        for name in names:
            self.write(name, "TITLE = 'one'\n")
        run = "import devserve, shop\n\nif __name__ == '__main__':\n    devserve.run(app, port=0, reload=True)\n"
        self.save("v1", '{"titles": shop.TITLES}\n\n\n' + run)
        env = {"PYTHONPATH": str(SCRIPT.parent), "SETTINGS": names[-1]}
        served = self.serve(script=["app.py"], port=False, env=env)
        client = self.connect(served)
        titles = ["one"] * 3
        self.sees(client, titles=titles)
        for number, name in enumerate(names):
            self.write(name, "TITLE = 'two'\n")
            titles[number] = "two"
            self.sees(client, titles=titles)

    def test_a_module_that_is_written_for_a_view_reloads_nothing(self) -> None:
        self.save(
            "v1",
            """page()

VISITS = []


def page():
    import importlib.util, pathlib
    VISITS.append(1)
    path = pathlib.Path("cache") / f"page{len(VISITS)}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"TEXT = {len(VISITS)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"visits": module.TEXT}
""",
        )
        self.write("other.py", "")
        client = self.start()
        for visits in (1, 2, 3):
            self.assertEqual(client.ask().json["visits"], visits)
            self.settle()
        self.assertEqual(self.reloads(), 0)

    def test_what_is_removed_right_after_a_reload_is_noticed(self) -> None:
        self.save("v1", '{"colour": os.environ.get("COLOUR")}\n\n\nprint("importing", flush=True)')
        self.write(".env", "COLOUR=red\n")
        client = self.start()
        self.sees(client, colour="red")
        for number in range(3):
            imports = self.served.log.count("importing")
            self.write(".env", f"COLOUR=green{number}\n")
            eventually(lambda: self.served.log.count("importing") > imports, "the reload")
            (self.folder / ".env").unlink()
            eventually(lambda: client.ask().json["colour"] is None, "an answer without it")

    def test_a_log_in_a_watched_folder_does_not_reload_without_end(self) -> None:
        code = 'with open("data/app.log", "a") as log:\n    log.write("a line")'
        self.write("data/app.log", "")
        self.save("v1", f"{{}}\n\n\n{code}")
        client = self.start("--extra-files", "data")
        self.served.wait_for(r"app\.log is written again and again")
        self.save("v2", f"{{}}\n\n\n{code}")
        self.reaches(client, "v2")
        self.settle()
        # One of them for the code, and one more when that was saved while a reload imported it.
        self.assertIn(self.reloads() - devserve._REPEATED, (0, 1))
        self.assertEqual(self.served.log.count("app.log is written"), 1)

    def test_twenty_edits_in_two_seconds_end_with_the_last(self) -> None:
        client = self.start()
        client.ask()
        for number in range(20):
            self.save(f"v{number}")
            time.sleep(0.1)
        self.reaches(client, "v19")
        before = self.reloads_at_rest()
        self.assertLessEqual(before, 20)
        self.save("last")
        self.reaches(client, "last")
        self.assertEqual(self.reloads(), before + 1)

    def test_save_of_the_same_bytes_says_nothing_and_reloads_nothing(self) -> None:
        self.write("other.py", "VALUE = 1\n")
        self.save("v1", '{"other": __import__("other").VALUE}')
        client = self.start()
        self.sees(client, other=1)
        self.write("other.py", "VALUE = 2\n")
        self.sees(client, other=2)
        self.settle()
        log = self.served.log
        for name in ("app.py", "other.py"):
            text = (self.folder / name).read_text()
            self.write(name, text)
            self.rename_over(name, text)
        self.assertEqual(self.served.log, log)
        self.write("other.py", "VALUE = 3\n")  # which is seen later than the saves before
        self.sees(client, other=3)
        said = self.served.log[len(log) :]
        self.assertEqual(said.count("changed, reloading"), 1, said)
        self.assertIn("other.py changed, reloading", said)


@posix_only
class ReloadDefersErrors(Reload):
    """After a failed reload the process lives on and says what is wrong until a save mends it."""

    def serve_debugged(self, *arguments: str, **options: Any) -> Served:
        served = self.serve("app", "--debug", "-q", *arguments, **options)
        self.mended(served, "v1")
        return served

    def fails(self, served: Served, text: str, accept: str = "text/plain") -> str:
        """Wait for an answer that tells of a failure with this text; return it.  Each may end its connection."""

        def look() -> Any:
            answer = fetch(served.port, Accept=accept)
            return answer.status == 500 and text in answer.text and answer.text

        return str(eventually(look, f"{text!r} in an answer with status 500"))

    def mended(self, served: Served, version: str) -> Any:
        """Wait for an answer from this version; return it."""

        def look() -> Any:
            answer = fetch(served.port)
            return answer.status == 200 and answer.json["version"] == version and answer.json

        return eventually(look, f"an answer from {version}")

    def test_error_of_syntax_is_shown_at_once_and_mended_by_either_save(self) -> None:
        served = self.serve_debugged()
        for version in ("v1", "v2", "v2"):  # the first and the last restore the bytes that had been loaded
            with self.subTest(version):
                self.write("app.py", "def broken(:\n")
                self.assertNotIn("devserve.py", self.fails(served, "SyntaxError"))
                self.save(version)
                self.mended(served, version)
        self.assertIn("def broken(:", served.log)

    def test_half_typed_code_restarts_nothing(self) -> None:
        served = self.serve_debugged()
        for text in ("def half(\n", "def half(a,\n"):
            self.write("app.py", text)
            self.fails(served, text.strip())
        self.assertNotIn("changed, reloading", served.log)
        page = self.fails(served, "SyntaxError", accept="text/html")
        self.assertIn("<html", page)
        self.save("v2")
        self.mended(served, "v2")

    def test_without_the_debugger_a_failed_import_shows_no_secret_and_no_stranger_its_message(self) -> None:
        self.save("v1")
        served = self.serve("app", "--reload")
        self.assertEqual(served.ask("/").status, 200)
        self.save("v2", "{}\n\n\nraise ValueError('no postgres://bob:' + 'hunter2x' + '@db/shop')")
        eventually(lambda: served.ask("/").status == 500, "the failure")
        shown, stranger = served.ask("/").text, served.ask("/", Host="evil.example").text
        self.assertIn("ValueError: no postgres://bob:•", shown)
        self.assertNotIn("hunter2x", shown)
        self.assertIn("ValueError\n", stranger)
        self.assertNotIn("postgres", stranger)

    def test_exceptions_and_exits_at_import_are_deferred(self) -> None:
        served = self.serve_debugged()
        for code, text in {
            "1 / 0": "\nZeroDivisionError: division by zero",
            "import no_such_module_at_all": ": No module named 'no_such_module_at_all'",
            "import sys; sys.exit('enough')": "\nSystemExit: enough",
            "raise KeyboardInterrupt": "\nKeyboardInterrupt",
            "del app": "no application in 'app'",
        }.items():
            with self.subTest(code):
                self.write("app.py", RELOADED_APP + code + "\n")
                self.fails(served, text)
        self.save("v2")
        self.assertEqual(self.mended(served, "v2")["pid"], served.process.pid)

    def test_error_in_another_module_is_mended_there(self) -> None:
        self.write("helper.py", "VALUE = 1\n")
        self.save("v1", '{"value": VALUE}\n\n\nfrom helper import VALUE')
        served = self.serve_debugged()
        for broken in ("1 / 0\n", "def half(\n", "VALU = 1\n"):
            with self.subTest(broken):
                self.write("helper.py", broken)
                self.fails(served, "helper")
                self.write("helper.py", "VALUE = 2\n")
                self.assertEqual(self.mended(served, "v1")["value"], 2)

    def test_without_the_debugger_the_answer_holds_no_traceback(self) -> None:
        served = self.serve_debugged("--no-debugger")
        self.write("app.py", RELOADED_APP + "secret = 'password'; 1 / 0\n")
        for _ in range(3):
            body = self.fails(served, "", accept="text/html")
            for word in ("Traceback", "password", "line "):
                self.assertNotIn(word, body)
        served.wait_for("ZeroDivisionError: division by zero")
        self.assertEqual(served.log.count("Traceback"), 1, served.log)  # not once more for each request

    def test_import_without_end_is_cured_by_a_save_and_loses_no_request(self) -> None:
        served = self.serve()
        client, idle = self.connect(served), self.connect(served)
        self.assertEqual(client.ask().json["version"], "v1")
        self.write("app.py", RELOADED_APP + "print('looping', flush=True)\nwhile True:\n    pass\n")
        served.wait_for("looping")
        client.request()
        fresh = self.connect(served)
        fresh.request()
        self.save("v2")
        self.assertEqual({each.answer().json["version"] for each in (client, fresh)}, {"v2"})
        self.assertEqual(idle.ask().json["version"], "v2")

    def test_import_without_end_is_explained_after_a_while(self) -> None:
        served = self.serve_debugged(script=self.patched(_IMPORT_PATIENCE=0.2))
        loop = "\nwhile True:  # for ever\n    pass\n"
        self.write("app.py", RELOADED_APP + loop)
        line = (RELOADED_APP + loop).count("\n")
        body = self.fails(served, "the import has not ended")
        self.assertRegex(body, rf"app\.py.*line ({line}|{line - 1})")
        self.save("v2")
        self.mended(served, "v2")

    def test_failure_at_the_first_start_ends_the_process_with_its_traceback(self) -> None:
        for code in ("1 / 0\n", "def half(\n", "import sys; sys.exit(0)\n", "import no_such_module_at_all\n"):
            with self.subTest(code):
                self.write("app.py", code)
                served = self.serve("app", "--debug")
                self.assertEqual(served.process.wait(DEADLINE), 1)
                served.reader.join(DEADLINE)
                self.assertIn('app.py", line 1', served.log)
                self.assertNotIn("devserve.py", served.log)

    def test_in_code_a_reload_that_fails_ends_the_process_with_its_traceback(self) -> None:
        main = "\n\nif __name__ == '__main__':\n    import devserve\n    devserve.run(app, port=0, debug=True)\n"
        self.write("app.py", RELOADED_APP + main)
        served = self.serve("--", script=["app.py"], port=False, env={"PYTHONPATH": str(SCRIPT.parent)})
        client = self.connect(served)
        self.assertEqual(client.ask().json["version"], "v1")
        self.write("app.py", RELOADED_APP.replace("v1", "v2") + main)
        self.assertEqual(self.reaches(client, "v2")["pid"], served.process.pid)
        # By a rename, as a busy machine may stop us for a moment between emptying a file and writing it.
        self.write("new", RELOADED_APP + "1 / 0\n" + main).replace(self.folder / "app.py")
        status = served.process.wait(DEADLINE)
        served.reader.join(DEADLINE)
        self.assertEqual(status, 1, served.log)
        self.assertIn("ZeroDivisionError", served.log)
        self.assertIn('app.py", line', served.log)


STATE = """{
    "argv": sys.argv, "flags": [sys.flags.isolated, sys.flags.utf8_mode, sys.warnoptions, sys._xoptions.get("mark")],
    "unbuffered": sys.stdout.write_through, "orig": START, "cwd": START_CWD, "path": sys.path[:1],
    "colour": START_COLOUR, "umask": START_UMASK, "main": sys.modules["__main__"] is sys.modules.get("devserve"),
    "ignored": START_IGNORED, "file": sys.modules["__main__"].__file__, "all flags": repr(sys.flags),
}


import signal
START = list(getattr(sys, "orig_argv", ()))[-1:]
START_CWD, START_COLOUR = os.getcwd(), os.environ.get("COLOUR")
START_UMASK, START_IGNORED = os.umask(0o027), signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
os.environ["COLOUR"] = "changed"
os.chdir("/")
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
"""


@posix_only
class ReloadIsTheSameProcess(Reload):
    """What a person set at the start holds for ever, whatever the application did to its process."""

    def state_after_reload(self, *arguments: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the application sees of its process in the first image and in the third."""
        self.save("v1", STATE)
        served = self.serve(*arguments, **options)
        client = self.connect(served)
        first = client.ask().json
        for version in ("v2", "v3"):
            self.save(version, STATE)
            last = self.reaches(client, version)
        self.assertEqual(last["pid"], served.process.pid)
        self.assertEqual((first.pop("version"), last.pop("version")), ("v1", "v3"))
        served.stop()  # else it reloads with the next one, and PyPy drops a signal that comes while it imports `site`
        return first, last

    def test_every_way_of_starting_is_repeated(self) -> None:
        arguments = ("app", "--reload", "-q")
        path = {"PYTHONPATH": str(SCRIPT.parent), "COLOUR": "first"}
        self.write("start.py", "import sys, devserve\nsys.exit(devserve.main())\n")
        ways: dict[str, dict[str, Any]] = {
            "a script": {},
            "a module": {"script": ["-m", "devserve"]},
            "a console script": {"script": ["start.py"]},
            "in code": {"script": ["app.py"], "port": False},
            "a module beside the application": {"script": ["-m", "devserve"]},
            "a module beside the application, behind a flag in one word": {"script": ["-um", "devserve"]},
        }
        for name, options in ways.items():
            if "beside" in name:
                shutil.copy(SCRIPT, self.folder)
            with self.subTest(name):
                first, last = self.state_after_reload(
                    *arguments, env=path, flags=("-W", "error::UserWarning"), **options
                )
                if name == "in code":  # where the application came first, and will come first again
                    del first["umask"], first["ignored"], last["umask"], last["ignored"]
                self.assertEqual(last, first)
                self.assertEqual(first["colour"], "first")
                self.assertEqual(os.path.realpath(first["cwd"]), str(self.folder))

    def save(self, version: str, more: str = "{}") -> None:
        run = "    import devserve\n    devserve.run(app, port=0, reload=True, quiet=True)\n"
        super().save(version, f"{more}\n\n\nif __name__ == '__main__':\n{run}")

    def test_flags_of_the_interpreter_stay(self) -> None:
        for flags in (("-I",), ("-u", "-X", "mark=1", "-X", "utf8"), ("-B", "-W", "ignore"), ("-O", "-s", "-E")):
            with self.subTest(flags):
                first, last = self.state_after_reload("app.py", "--reload", "-q", flags=flags)
                self.assertEqual(last, first)
                self.assertTrue(first["main"], "devserve is one module, although a script is not compiled again")
                self.assertTrue(os.path.samefile(first["file"], SCRIPT))
                self.assertEqual(first["flags"][0], int("-I" in flags))
                self.assertGreaterEqual(first["unbuffered"], "-u" in flags)  # PYTHONUNBUFFERED may be set
                self.assertEqual(first["flags"][3], "1" if "mark=1" in flags else None)

    def test_exit_handlers_run_and_output_is_flushed(self) -> None:
        more = '{}\n\n\nimport atexit\natexit.register(lambda: print("handler of", VERSION))\nprint("loaded", VERSION)'
        self.save("v1", more)
        served = self.serve()
        client = self.connect(served)
        client.ask()
        self.save("v2", more)
        self.reaches(client, "v2")
        served.wait_for("handler of v1")
        self.assertIn("loaded v1", served.log)
        served.stop()
        self.assertIn("handler of v2", served.log)
        self.assertEqual(served.log.count("handler of v1"), 1)

    def test_what_runs_before_the_exit_handlers_runs_too_except_that_nobody_waits_for_threads(self) -> None:
        told: list[str] = []
        waits = functools.partial(told.append, "waits")
        partial = mock.Mock(func=mock.Mock(__module__="concurrent.futures.thread"), side_effect=waits)
        handlers = [functools.partial(told.append, "first"), partial, functools.partial(told.append, "second"), abs]
        with (
            mock.patch.object(threading, "_threading_atexits", handlers),
            mock.patch.object(devserve, "atexit") as late,
        ):
            late._run_exitfuncs = lambda: told.append("late")
            devserve._run_exit_handlers()
        self.assertEqual(told, ["second", "first", "late"])

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_an_interpreter_that_calls_itself_a_script_is_started_by_its_own_path(self) -> None:
        script, python = str(self.write("python", "#!/bin/sh")), os.path.realpath("/proc/self/exe")
        with mock.patch.object(sys, "executable", script):
            for first, expected in ((python, python), ("python", script)):
                with mock.patch.object(devserve, "_original_command", return_value=[first, "app.py"]):
                    self.assertEqual(devserve._start_command()[0], [expected, "app.py"])

    def test_exit_handlers_run_also_when_no_thread_is_left(self) -> None:
        job = mock.Mock(side_effect=ValueError)  # as Python 3.9 raises what the last of them has raised
        with mock.patch.object(devserve, "_start_thread", side_effect=RuntimeError("can't start new thread")):
            self.assertTrue(devserve._ends_in_time(job))
        job.assert_called_once_with()

    def test_exit_handler_that_never_ends_delays_a_reload_but_little(self) -> None:
        self.save("v1", "{}\n\n\nimport atexit, threading\natexit.register(threading.Event().wait)")
        served = self.serve("app", "--reload", "-q", script=self.patched(_EXIT_SECONDS=0.2))
        client = self.connect(served)
        client.ask()
        self.save("v2")
        self.reaches(client, "v2")

    def test_hang_up_reloads(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        counter = (
            "{'loads': LOADS}\n\n\nwith open('loads', 'a+') as file:\n    file.write('x')\n    LOADS = file.tell()"
        )
        self.save("v1", counter)
        served = self.serve()
        client = self.connect(served)
        self.assertEqual(client.ask().json["loads"], 1)
        for loads in (2, 3):
            served.process.send_signal(signal.SIGHUP)
            eventually(lambda: client.ask().json["loads"] == loads, "a reload by hand")
        self.assertEqual(client.ask().json["pid"], served.process.pid)

    def test_stops_at_one_signal_after_a_reload(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                self.save("v1")
                served = self.serve()
                client = self.connect(served)
                client.ask()
                self.save("v2")
                self.reaches(client, "v2")
                served.process.send_signal(number)
                self.assertEqual(served.process.wait(DEADLINE), 0)
                with self.assertRaises(OSError):
                    socket.create_connection(("127.0.0.1", served.port)).close()

    def test_children_inherit_no_socket_and_are_reaped(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        if sys.platform != "linux":
            self.skipTest("needs /proc")
        family = """family()


import subprocess


def family():
    child = subprocess.Popen(["sleep", "1000"], close_fds=False)
    dead = os.fork()
    if not dead:
        os._exit(0)
    return {"child": child.pid, "dead": dead}
"""
        self.save("v1", family)
        served = self.serve()
        self.addCleanup(self.end_children, served.process.pid)
        client = self.connect(served)
        first = client.ask().json
        self.save("v2", '{"child": 0}')
        self.reaches(client, "v2")
        self.save("v3", family)
        second = self.reaches(client, "v3")
        for child in (first["child"], second["child"]):
            links = self.links(child)
            self.assertGreater(len(links), 2)
            self.assertEqual([link for link in links if link.startswith(("socket:", "/memfd", "anon"))], [])
        eventually(lambda: first["dead"] not in self.children(served.process.pid), "the dead child's end")
        os.kill(first["child"], signal.SIGKILL)  # a child that outlived its image
        eventually(lambda: first["child"] not in self.children(served.process.pid), "the killed child's end")

    def links(self, pid: int) -> list[str]:
        try:
            return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        except OSError:
            return []

    def children(self, pid: int) -> list[int]:
        found: list[int] = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError):  # the thread may end meanwhile
                found += map(int, pathlib.Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        return found

    def end_children(self, pid: int) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        try:
            for child in self.children(pid):
                os.kill(child, signal.SIGKILL)
        except OSError:
            pass

    def test_child_that_inherits_the_environment_is_no_server(self) -> None:
        """A view starts devserve itself: the child must take neither the socket nor the parent's place."""
        child = '[sys.executable, DEVSERVE, "app", "--reload", "--port", "0"]'
        more = f'{{}} if "INNER" in os.environ else inner()\n\n\nDEVSERVE = {str(SCRIPT)!r}\n\n\n'
        more += f"""def inner():
    import subprocess
    child = subprocess.Popen({child}, env={{**os.environ, "INNER": "1"}}, stderr=subprocess.PIPE)
    line = child.stderr.readline().decode()
    child.terminate()
    child.wait()
    return {{"line": line}}"""
        self.save("v1", more)
        served = self.serve()
        client = self.connect(served)
        self.save("v2", more)
        line = self.reaches(client, "v2")["line"]
        self.assertIn("http://127.0.0.1:", line)
        self.assertNotIn(f":{served.port} ", line)

    def test_multiprocessing_at_import_and_in_a_view(self) -> None:
        self.write("work.py", "def double(n):\n    return 2 * n\n")
        for method in ("spawn", "fork"):
            with self.subTest(method):
                more = f"""{{"doubled": pool().map(work.double, [1, 2])}}


import multiprocessing, work


def pool():
    return multiprocessing.get_context({method!r}).Pool(1)
"""
                self.save("v1", more)
                served = self.serve()
                client = self.connect(served)
                self.assertEqual(client.ask().json["doubled"], [2, 4])
                self.save("v2", more)
                self.assertEqual(self.reaches(client, "v2")["doubled"], [2, 4])
                self.assertEqual(served.stop(), 0)

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_a_pool_made_at_import_delays_neither_a_reload_nor_the_end(self) -> None:
        """Nor is a worker left behind, which would hold the port."""
        tell = '{"workers": [child.pid for child in multiprocessing.active_children()]}\n\n\nimport multiprocessing\n'
        pools = {
            "none": "",
            "futures": "import concurrent.futures\npool = concurrent.futures.ProcessPoolExecutor(2, CONTEXT)\n"
            "pool.submit(os.getpid).result()\n",
            "multiprocessing": "pool = CONTEXT.Pool(2)\npool.apply(os.getpid)\n",
        }
        script = self.patched(_EXIT_SECONDS=600.0)  # what waits for it has waited for a worker
        for name, pool in pools.items():
            more = f"{tell}CONTEXT = multiprocessing.get_context('fork')\n{pool}"
            self.save("v0", more)
            served = self.serve(script=script)
            client = self.connect(served)
            workers = [client.ask().json["workers"]]
            for version in ("v1", "v2"):
                self.save(version, more)
                workers.append(self.reaches(client, version)["workers"])
            port = served.port
            self.assertEqual(served.stop(), 0, served.log)
            with self.subTest(name):
                self.assertEqual([bool(pids) for pids in workers], [bool(pool)] * 3)
                for pid in itertools.chain(*workers):
                    eventually(functools.partial(gone, pid), f"the end of worker {pid}")
                socket.create_server(("127.0.0.1", port)).close()

    def test_nothing_piles_up_over_many_reloads(self) -> None:
        self.save("v0")
        served = self.serve()
        client = self.connect(served)
        counts, sizes = [], []
        for number in range(1, 13):
            self.save(f"v{number}")
            self.reaches(client, f"v{number}")
            counts.append(self.descriptors(served.process.pid))
            sizes.append(self.resident(served.process.pid))
        few = max(counts[:4])  # the watcher has one more open while it reads
        eventually(
            lambda: self.descriptors(served.process.pid) <= few, lambda: f"as few descriptors as {counts} at first"
        )
        self.assertLess(min(sizes[-4:]), max(sizes[:4]) + 2**21, sizes)

    def descriptors(self, pid: int) -> int:
        try:
            return len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return 0

    def resident(self, pid: int) -> int:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                return int(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        except OSError:
            return 0

    @unittest.skipUnless(
        sys.platform == "linux" and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("unshare"),
        "needs root and unshare",
    )
    def test_reloads_as_the_first_process_of_a_container(self) -> None:
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, str(SCRIPT)]
        probe = subprocess.run([*command[:5], "true"], stderr=subprocess.DEVNULL)
        if probe.returncode:
            self.skipTest("may not unshare")
        self.write(
            "run.py", f"import os\nos.execvp('unshare', {[*command, 'app', '--reload', '-q', '--port', '0']!r})\n"
        )
        served = self.serve("unused", script=["run.py"], port=False)
        self.addCleanup(self.end_children, served.process.pid)  # unshare itself takes no notice of an interrupt
        client = self.connect(served)
        self.assertEqual(client.ask().json["pid"], 1)
        for version in ("v2", "v3"):
            self.save(version)
            self.assertEqual(self.reaches(client, version)["pid"], 1)

    def test_a_session_that_the_application_begins_at_import_survives_a_reload(self) -> None:
        """A process that leads a session already cannot begin one again, and an exec does not change that."""
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        leads = '{"leads": os.getsid(0) == os.getpid()}\n\n\nos.setsid()\n'
        self.save("v1", leads)
        # Once with a program of one's own, that begins the session itself.
        run = "import app, devserve, os\nos.setsid()\ndevserve.run(app.app, port=0, reload=True)\n"
        self.write("main.py", run)
        in_code: dict[str, Any] = {"script": ["main.py"], "port": False, "env": {"PYTHONPATH": str(SCRIPT.parent)}}
        for arguments, options, begins in (([], {}, leads), (["unused"], in_code, leads.partition("\n")[0])):
            with self.subTest(arguments):
                self.save("v1", begins)
                served = self.serve(*arguments, **options)
                client = self.connect(served)
                self.assertTrue(client.ask().json["leads"])
                for version in ("v2", "v3"):
                    self.save(version, begins)
                    self.assertTrue(self.reaches(client, version)["leads"])
                self.assertNotIn("Traceback", served.log)
                served.stop()

    @unittest.skipUnless(
        sys.platform == "linux" and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("unshare"),
        "needs root and unshare",
    )
    def test_starts_and_reloads_where_nothing_can_be_read_in_proc(self) -> None:
        hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
        if subprocess.run([*hidden, "true"], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("may not unshare")
        command = [*hidden, sys.executable, str(SCRIPT), "app", "--reload", "-q", "--port", "0"]
        self.write("run.py", f"import os\nos.execvp('unshare', {command!r})\n")
        served = self.serve("unused", script=["run.py"], port=False)
        client = self.connect(served)
        self.assertEqual(client.ask().json["version"], "v1")
        for version in ("v2", "v3"):
            self.save(version)
            self.assertEqual(self.reaches(client, version)["pid"], served.process.pid)
        self.assertNotIn("Traceback", served.log)


@unittest.skipUnless(sys.platform == "linux", "pseudo-terminals differ between systems")
class ReloadAtATerminal(Reload):
    """A person at a keyboard: standard input stays a terminal, with its echo, and the job keeps its Ctrl-C."""

    START = "os.execv(command[0], command)"

    def at_terminal(self, *arguments: str, start: str = START, **environ: str) -> tuple[Served, int]:
        """Start devserve on a terminal of its own; return it and the end of the terminal where a person sits."""
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        import pty

        person, terminal = pty.openpty()
        self.addCleanup(os.close, person)
        self.write(
            "seat.py",
            f"""
            import fcntl, os, signal, subprocess, sys, termios
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            command = [sys.executable, {self.patched(_GRACE=0.5)[0]!r}, *sys.argv[1:]]
            {start}
            """,
        )
        served = SeatedServed(terminal, person, self.folder, ["seat.py", *arguments, "--port", "0"], environ)
        self.addCleanup(served.stop)
        return served, person

    @needs("gevent")
    def test_a_save_while_a_greenlet_stands_at_a_prompt_is_told_and_waits(self) -> None:
        patched = "from gevent import monkey\nmonkey.patch_all()\n"
        self.save("v1", "breakpoint() or {}")
        path = self.folder / "app.py"
        path.write_text(patched + path.read_text())
        served, person = self.at_terminal("app", "--reload", "-q")
        client = self.connect(served).send(GET)
        served.wait_for(r"\(Pdb\)")
        path.write_text(path.read_text().replace("breakpoint() or ", "").replace("v1", "v2"))
        served.wait_for("a greenlet is stopped in a debugger; the reload waits for it")
        os.write(person, b"continue\n")
        self.assertEqual(client.answer().json["version"], "v1")
        self.reaches(client, "v2")

    def test_it_ends_with_the_shell_that_started_it_though_the_terminal_stays_open(self) -> None:
        """As an editor ends its terminal: by a SIGHUP for the shell, which some shells pass on to their jobs first."""
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        for passed_on in ("", "child.send_signal(signal.SIGHUP);"):
            with self.subTest(passed_on):
                shell = f"child = subprocess.Popen(command); input(); {passed_on} os._exit(0)"
                served, person = self.at_terminal("app", "--reload", "-q", start=shell)
                pid = self.connect(served).ask().json["pid"]
                self.assertNotEqual(pid, served.process.pid)
                os.write(person, b"\n")
                try:
                    eventually(functools.partial(gone, pid), "the server's end")
                except BaseException:
                    os.kill(pid, signal.SIGKILL)
                    raise

    def test_breakpoint_works_after_a_reload_and_echo_is_restored(self) -> None:
        self.save("v1", '__import__("getpass").getpass("secret? ") and {}')
        served, person = self.at_terminal("app", "--reload", "-q")
        asking = self.connect(served)
        asking.request()
        served.wait_for(r"secret\?")  # a reload now leaves the terminal without echo
        self.assertFalse(self.echoes(person))
        self.save("v2", "breakpoint() or {}")
        eventually(lambda: self.echoes(person), "the echo")
        client = self.connect(served)
        client.request()
        served.wait_for(r"\(Pdb\)")
        os.write(person, b"p 'seen', 6 * 7\n")
        served.wait_for(r"\('seen', 42\)")
        os.write(person, b"c\n")
        self.assertEqual(client.answer().json["version"], "v2")
        os.write(person, b"\x03")
        self.assertEqual(served.process.wait(DEADLINE), 0)

    @unittest.skipIf(sys.implementation.name == "pypy", "its own readline was seen to leave no echo")
    def test_an_interrupt_at_the_prompt_of_the_debugger_leaves_the_echo(self) -> None:
        """A prompt that edits its line echoes by itself, and a secret is not echoed: both turn the echo off."""
        prompts = {r"\(Pdb\)": "breakpoint() or {}", r"secret\?": '__import__("getpass").getpass("secret? ") and {}'}
        for (prompt, view), by_key in itertools.product(prompts.items(), (True, False)):
            with self.subTest(view, by_key=by_key):
                self.save("v1", view)
                served, person = self.at_terminal("app", "--reload", "-q")
                self.assertTrue(self.echoes(person))
                self.connect(served).request()
                served.wait_for(prompt)
                eventually(lambda: not self.echoes(person), "the mode of a prompt")
                if by_key:
                    os.write(person, b"\x03")
                else:
                    served.process.send_signal(signal.SIGINT)
                self.assertEqual(served.process.wait(DEADLINE), 0, served.log)
                self.assertTrue(self.echoes(person))
                served.stop()

    def echoes(self, terminal: int) -> bool:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        import termios

        return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)

    def test_one_interrupt_from_the_keyboard_is_enough(self) -> None:
        for strategy in ("exec", "spawn"):
            with self.subTest(strategy):
                self.save("v1")
                served, person = self.at_terminal("app", "--reload", "-q", DEVSERVE_RELOADER=strategy)
                client = self.connect(served)
                client.ask()
                self.save("v2")
                eventually(lambda: self.version(served) == "v2", "the new version")
                os.write(person, b"\x03")
                self.assertEqual(served.process.wait(DEADLINE), 0)
                self.assertNotIn("Traceback", served.log)

    def version(self, served: Served) -> str:
        try:
            with Client(served.port) as client:
                return str(client.ask().json["version"])
        except OSError:
            return "none"


class SeatedServed(Served):
    """The same on a terminal: what it prints is read from there."""

    def __init__(
        self, terminal: int, person: int, cwd: pathlib.Path, command: list[str], environ: dict[str, str]
    ) -> None:
        self.person = person
        streams: dict[str, Any] = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
        self.follow(subprocess.Popen([sys.executable, *command], cwd=cwd, env={**os.environ, **environ}, **streams))
        os.close(terminal)

    def _read(self) -> None:
        try:
            for piece in iter(lambda: os.read(self.person, 1 << 16), b""):
                self.chunks.append(piece)
        except OSError:
            pass  # nobody has the terminal any more


@posix_only
class ReloadBySpawning(Reload):
    """The strategy for systems whose exec does not replace the process, which works on any."""

    def spawn(self, *arguments: str, **options: Any) -> Served:
        environ = {"DEVSERVE_RELOADER": "spawn", **options.pop("env", {})}
        return self.serve(*(arguments or ("app", "--reload", "-q")), env=environ, **options)

    def child_of(self, served: Served) -> int:
        with Client(served.port) as client:
            return int(client.ask().json["pid"])

    def is_gone(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def test_edits_reach_the_clients_and_the_port_stays(self) -> None:
        served = self.spawn()
        client = self.connect(served)
        first = client.ask().json
        self.assertNotEqual(first["pid"], served.process.pid)
        for version in ("v2", "v3"):
            self.save(version)
            answer = self.reaches(client, version)  # on the same connection, which crosses here as well
        self.assertNotEqual(answer["pid"], first["pid"])
        self.assertTrue(self.is_gone(first["pid"]))
        self.write("app.py", "1 / 0\n")
        served.wait_for("ZeroDivisionError")
        self.save("v4")
        with Client(served.port) as fresh:
            self.reaches(fresh, "v4")

    def test_an_interrupt_that_meets_a_reload_ends_with_status_0(self) -> None:
        for moment in (0.02, 0.05, 0.1, 0.2):
            with self.subTest(moment):
                self.save("v1")
                served = self.spawn("app", "--reload")
                self.connect(served).ask()
                self.save("v2")
                served.wait_for("reloading")
                time.sleep(moment)  # any moment is meant
                served.process.send_signal(signal.SIGINT)
                self.assertEqual(served.process.wait(DEADLINE), 0, served.log)
                self.assertNotIn("Traceback", served.log)

    def test_no_orphan_is_left_however_the_parent_ends(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            with self.subTest(number):
                self.save("v1")
                served = self.spawn()
                client = self.connect(served)
                client.ask()
                self.save("v2")
                child = self.reaches(client, "v2")["pid"]
                served.process.send_signal(number)
                self.assertIn(served.process.wait(DEADLINE), (0, 128 + number, -signal.SIGKILL))
                eventually(lambda: self.is_gone(child), "the child's end")

    def test_exit_status_of_the_child_is_the_parents(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        self.write("app.py", "1 / 0\n")
        failed = self.spawn()
        self.assertEqual(failed.process.wait(DEADLINE), 1)
        wrong = self.spawn("no_such_module_at_all", "--reload")
        self.assertEqual(wrong.process.wait(DEADLINE), 2)
        self.save("v1")
        killed = self.spawn()
        os.kill(self.child_of(killed), signal.SIGKILL)
        self.assertEqual(killed.process.wait(DEADLINE), 128 + signal.SIGKILL)
        self.save("v1", '{"end": QUERY()}\n\n\ndef QUERY():\n    os._exit(7)')
        ended = self.spawn()
        with self.assertRaises(OSError):
            self.child_of(ended)
        self.assertEqual(ended.process.wait(DEADLINE), 7)

    def test_hang_up_reloads(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        served = self.spawn()
        client = self.connect(served)
        first = client.ask().json["pid"]
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: client.ask().json["pid"] != first, "another child")


class Editor:
    """As much of an editor as its debugger needs: one breakpoint, at which the program goes on at once.

    It speaks the Debug Adapter Protocol with debugpy's adapter, and after a reload with the next process, which the
    adapter asks it to attach to, as VS Code does.
    """

    def __init__(self, reader: Any, writer: Any, path: pathlib.Path, line: int) -> None:
        self.reader, self.writer, self.path, self.line = reader, writer, path, line
        self.sent = 0
        self.output, self.stops = "", 0
        self.later: list[Editor] = []
        self.initialized = threading.Event()
        threading.Thread(target=self.read, daemon=True).start()

    def all(self) -> list["Editor"]:
        return [self, *(each for editor in self.later for each in editor.all())]

    def send(self, command: str, **arguments: Any) -> None:
        self.sent += 1
        message = {"seq": self.sent, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(message).encode()
        self.writer.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self.writer.flush()

    def begin(self, request: str, config: dict[str, Any]) -> None:
        self.send("initialize", clientID="test", adapterID="debugpy", pathFormat="path", linesStartAt1=True)
        self.send(request, **config)
        self.initialized.wait(DEADLINE)
        self.send("setBreakpoints", source={"path": str(self.path)}, breakpoints=[{"line": self.line}])
        self.send("configurationDone")

    def read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in iter(self.reader.readline, b""):
                if line.lower().startswith(b"content-length:"):
                    self.reader.readline()
                    self.take(json.loads(self.reader.read(int(line.split(b":")[1]))))

    def take(self, message: dict[str, Any]) -> None:
        event, body = message.get("event"), message.get("body", {})
        if event == "initialized":
            self.initialized.set()
        elif event == "output":
            self.output += body["output"]
        elif event == "stopped":
            self.stops += 1
            self.send("continue", threadId=body["threadId"])
        elif event == "debugpyAttach":
            sock = socket.create_connection((body["connect"]["host"], body["connect"]["port"]))
            with sock:
                self.later.append(Editor(sock.makefile("rb"), sock.makefile("wb"), self.path, self.line))
            threading.Thread(target=self.later[-1].begin, args=("attach", body), daemon=True).start()


@posix_only
class ReloadUnderRunners(Reload):
    """Other people's programs around devserve: each starts, serves the new code after a save, and ends at Ctrl-C."""

    APP = """
        import time
        VERSION = "v1"
        def app(environ, start_response):
            time.sleep(0.01)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [VERSION.encode()]
    """
    ASGI = """
        VERSION = "v1"
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                for event in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{event}.complete"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": VERSION.encode()})
    """
    GEVENT = "from gevent import monkey\nmonkey.patch_all()\n"
    EVENTLET = "import warnings\nwarnings.simplefilter('ignore')\nimport eventlet\neventlet.monkey_patch()\n"
    RUN = "\nif __name__ == '__main__':\n    import devserve\n    devserve.run(app, port=0, debug=True)\n"

    def try_two_reloads(
        self, *before: str, first: str = "", app: str = APP, last: str = "", end: int = signal.SIGINT
    ) -> Served:
        """Run devserve.py, or with `last` the application's own script, behind the words `before`."""
        text = first + textwrap.dedent(app) + last
        path = self.write("app.py", text)
        script = [*before, "app.py"] if last else [*before, str(SCRIPT), "app", "--debug", "--port", "0"]
        served = Served(cwd=self.folder, script=script, port=False, env={"PYTHONPATH": str(SCRIPT.parent)})
        self.addCleanup(served.stop)
        self.assertEqual(served.get(), "v1")
        for version in ("v2", "v3"):
            path.write_text(text.replace('"v1"', f'"{version}"'), encoding="utf-8")
            eventually(lambda: served.get() == version, f"the answer of {version}")
        served.process.send_signal(end)
        self.assertEqual(served.process.wait(DEADLINE), 0)
        served.reader.join(DEADLINE)
        self.assertEqual(served.log.count("reloaded in"), 2)
        return served

    def test_profilers_tracers_and_debuggers_of_the_standard_library(self) -> None:
        self.try_two_reloads("-m", "trace", "--count", "--coverdir", "cover")
        self.assertTrue((self.folder / "cover" / "app.cover").exists(), "what was counted is written at the end")
        served = self.try_two_reloads("-m", "pdb", "-c", "continue")
        self.assertNotIn("Error", served.log, "pdb empties the module of a program that has ended, and threads fail")

    @unittest.skipUnless(HAS_GIL, "without the lock, threads break the tree of cProfile's, which then loops for ever")
    def test_a_profiler_of_the_command_and_of_the_applications_own_script(self) -> None:
        for last in ("", self.RUN):
            with self.subTest(last):
                self.try_two_reloads("-m", "cProfile", "-o", "out.prof", last=last)
                self.assertTrue((self.folder / "out.prof").exists(), "the profile is written at the end")
                (self.folder / "out.prof").unlink()
                self.try_two_reloads("-m", "cProfile", "-o", "out.prof", app=self.ASGI, last=last, end=signal.SIGTERM)
                self.assertTrue((self.folder / "out.prof").exists(), "an event loop lets the signal's exception out")
                (self.folder / "out.prof").unlink()

    @needs("coverage")
    def test_coverage_writes_its_data_however_it_is_ended(self) -> None:
        for end in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(end):
                self.try_two_reloads("-m", "coverage", "run", end=end)
                report = [sys.executable, "-m", "coverage", "report", "--include=app.py"]
                told = subprocess.run(report, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True).stdout
                self.assertRegex(told, r"app\.py +\d+ +0 +100%")
                (self.folder / ".coverage").unlink()

    def test_a_signal_ends_it_under_another_program_though_the_import_takes_no_notice(self) -> None:
        text = """
            import time
            print("importing", flush=True)
            while True:
                try:
                    time.sleep(600)
                except BaseException:
                    print("no notice", flush=True)
        """
        self.write("app.py", text)
        served = Served("app", cwd=self.folder, script=["-m", "cProfile", "-o", "out.prof", str(SCRIPT)])
        self.addCleanup(served.stop)
        served.wait_for("importing")
        served.process.send_signal(signal.SIGTERM)
        self.assertEqual(served.process.wait(DEADLINE), 0)

    @needs("debugpy")
    def test_an_editors_breakpoints_bind_again_after_each_reload(self) -> None:
        """As launched by VS Code: the script, the module, or a line of code."""
        for program in (
            {"program": str(SCRIPT)},
            {"module": "devserve"},
            {"code": "import devserve\ndevserve.main()"},
        ):
            with self.subTest(program):
                path = self.write("app.py", self.APP)
                config = {
                    **program, "type": "debugpy", "console": "internalConsole", "python": [sys.executable],
                    "cwd": str(self.folder), "env": {"PYTHONPATH": str(SCRIPT.parent)},
                    "args": ["app", "--debug", "--port", "0"],
                }  # fmt: skip
                command = [sys.executable, "-m", "debugpy.adapter"]
                adapter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                editor = Editor(adapter.stdout, adapter.stdin, path, 5)
                try:
                    threading.Thread(target=editor.begin, args=("launch", config), daemon=True).start()
                    self.try_breakpoints(editor, path, lambda: "".join(each.output for each in editor.all()))
                    editor.send("disconnect", terminateDebuggee=True)
                finally:
                    adapter.kill()
                    adapter.communicate()

    @needs("debugpy")
    def test_an_editor_that_attaches_finds_its_breakpoints_again_too(self) -> None:
        path, log = self.write("app.py", self.APP), self.folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        before = ["-m", "debugpy", "--listen", str(port), "--wait-for-client"]
        command = [sys.executable, *before, str(SCRIPT), "app", "--debug", "--port", "0"]
        with open(log, "wb") as file:  # a pipe would be held by debugpy's adapter too, which outlives the process
            process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def attached() -> Any:
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", port), DEADLINE)

        sock = eventually(attached, "debugpy listens")
        sock.settimeout(None)
        self.addCleanup(sock.shutdown, socket.SHUT_RDWR)
        editor = Editor(sock.makefile("rb"), sock.makefile("wb"), path, 5)
        threading.Thread(target=editor.begin, args=("attach", {"subProcess": True}), daemon=True).start()
        self.try_breakpoints(editor, path, log.read_text)

    @needs("debugpy")
    def test_an_application_that_listens_for_an_editor_by_itself(self) -> None:
        self.try_two_reloads(first="import debugpy\ndebugpy.listen(('127.0.0.1', 0))\n")

    def try_breakpoints(self, editor: Editor, path: pathlib.Path, log: Callable[[], str]) -> None:
        """See that the breakpoint is met by a request, and by others after each of two reloads."""
        url = eventually(lambda: re.search(r"http://[^\s/]+", log()), "the address").group()
        for reloads, version in enumerate(("v1", "v2", "v3")):
            if reloads:
                path.write_text(path.read_text().replace(f"v{reloads}", version), encoding="utf-8")
                eventually(lambda: log().count("reloaded in") == reloads, "the reload")
            stops = sum(each.stops for each in editor.all())
            self.assertEqual(fetch(url).text, version, log())
            self.assertEqual(sum(each.stops for each in editor.all()), stops + 1, log())

    @needs("gevent")
    def test_gevent_patches_in_the_module_before_it_and_in_code(self) -> None:
        self.try_two_reloads(first=self.GEVENT)
        self.try_two_reloads(first=self.GEVENT.replace("()", "(select=False)"))
        self.try_two_reloads("-m", "gevent.monkey")
        self.try_two_reloads(first=self.GEVENT, last=self.RUN)
        for call in ("patch_thread()", "patch_all(thread=False)"):
            self.try_two_reloads(first=self.GEVENT.replace("patch_all()", call), last=self.RUN)
            self.try_two_reloads(first=self.GEVENT.replace("patch_all()", call))
        self.try_two_reloads(first=self.GEVENT, app=self.ASGI)
        self.try_two_reloads(first=self.GEVENT, app=self.ASGI, last=self.RUN)

    @needs("gevent")
    def test_a_child_that_the_application_forks_does_its_work_among_the_greenlets_of_its_parent(self) -> None:
        self.try_forks(self.GEVENT)

    @needs("eventlet")
    def test_a_child_that_the_application_forks_does_its_work_among_eventlets_greenlets(self) -> None:
        self.try_forks(self.EVENTLET)

    def try_forks(self, first: str) -> None:
        """See that a forked child ends when it has done its work, or has come back from the application."""
        text = """
            import os, time
            def app(environ, start_response):
                pid = os.fork()
                if not pid and environ["PATH_INFO"] == "/works":
                    time.sleep(1)
                    os._exit(7)
                start_response("200 OK", [])
                return [str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else "child").encode()]
        """
        self.write("app.py", first + textwrap.dedent(text))
        served = Served("app", cwd=self.folder)
        self.addCleanup(served.stop)
        self.assertEqual((served.get("/works"), served.get("/comes_back")), ("7", "0"))
        self.assertNotIn('Traceback (most recent call last):\n  File "src/gevent', served.log)

    @needs("gevent")
    def test_gevent_that_replaces_the_start_of_processes_alone(self) -> None:
        """Then the watcher's thread remains one, and may not call what gevent has put there."""
        self.try_two_reloads(first="from gevent import monkey\nmonkey.patch_os()\n")

    @needs("eventlet")
    def test_eventlet_patches_in_the_module_and_in_code(self) -> None:
        self.try_two_reloads(first=self.EVENTLET)
        self.try_two_reloads(first=self.EVENTLET.replace("monkey_patch()", "monkey_patch(select=False)"))
        self.try_two_reloads(first=self.EVENTLET, last=self.RUN)
        threads_alone = self.EVENTLET.replace("monkey_patch()", "monkey_patch(all=False, thread=True)")
        self.try_two_reloads(first=threads_alone, last=self.RUN)
        self.try_two_reloads(first=self.EVENTLET, app=self.ASGI)

    @needs("eventlet")
    def test_an_import_of_eventlet_that_takes_long_is_spoken_of_meanwhile(self) -> None:
        """By a thread that is no greenlet, on a terminal that greenlets use as well."""
        self.try_two_reloads(first=self.EVENTLET + "import time\ntime.sleep(1.5)\n")


class ReloadOnWindows(Reload):
    """The parent as Windows has it, simulated elsewhere: children inherit the listener and one end of a pair."""

    def simulated(self, *arguments: str) -> Served:
        text = SCRIPT.read_text(encoding="utf-8")
        before, banner, after = text.partition("# 13. Restart\n")
        self.assertGreater(after.count("sys.platform"), 10)
        self.write("devserve.py", before + banner + after.replace("sys.platform", '"win32"'))
        return self.serve(*arguments, script=[str(self.folder / "devserve.py")])

    def test_the_port_stays_and_no_request_is_lost_while_clients_ask(self) -> None:
        served = self.simulated("app", "--reload", "-q")
        inheritable = """{"inheritable": [fd for fd in range(3, 64) if IS_INHERITABLE(fd)]}


def IS_INHERITABLE(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # not open, or closed by now, as the clients' are all the time
        return False
"""
        port, lost, done = served.port, [], threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    fetch(port)
                except OSError as error:
                    lost.append(error)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        pids = set()
        try:
            for number in range(2, 6):
                self.save(f"v{number}", inheritable)
                new = eventually(
                    lambda: [it for it in [json.loads(served.get())] if it["version"] == f"v{number}"],
                    "the new version",
                )
                pids.add(new[0]["pid"])
                self.assertEqual(new[0]["inheritable"], [], "the application's children inherit nothing")
        finally:
            done.set()
            for client in clients:
                client.join()
        self.assertEqual(lost, [])
        self.assertEqual(len(pids), 4)
        os.kill(json.loads(served.get())["pid"], signal.SIGINT)  # as a console tells every process of it
        self.assertEqual(served.process.wait(DEADLINE), 0)

    def test_notes_reach_the_next_child_and_the_parent_ends_with_the_last(self) -> None:
        served = self.simulated("app", "--debug")
        served.wait_for(r"PIN is \S+")
        self.save("v2")
        served.wait_for(r"reloaded in")
        self.assertEqual(len(re.findall("PIN", served.log)), 1)
        self.save("v3", "END()\n\n\ndef END():\n    os._exit(7)")
        eventually(lambda: served.log.count("reloaded in") == 2, "the second reload")
        with self.assertRaises(OSError):
            served.get()
        self.assertEqual(served.process.wait(DEADLINE), 7)


@posix_only
class ReloadOfBadInput(Reload):
    """What lies in the folder cannot bring the server down, nor hold up a request."""

    def test_an_option_that_an_environment_file_gets_wrong_is_shown_until_it_is_mended(self) -> None:
        self.write("mine.env", "DEVSERVE_EDITOR=vscode\n")
        served = self.serve("app", "--reload", "-q", "--env-file", "mine.env")
        client = self.connect(served)
        self.assertEqual(client.ask().json["version"], "v1")
        for text, told in {
            "DEVSERVE_DEBUGGER=maybe\n": "DEVSERVE_DEBUGGER=maybe: not a yes or no",
            "DEVSERVE_CERT=missing.pem\n": "missing.pem: there is no such file",
            "": "no file 'mine.env'",
        }.items():
            self.write("mine.env", text)
            if not text:
                (self.folder / "mine.env").unlink()
            served.wait_for(f"error: .*{told}")
            eventually(lambda: told in client.ask().text, "an answer that says so")
            self.write("mine.env", "DEVSERVE_EDITOR=vscode\n")
            self.reaches(client, "v1")

    def test_a_warning_about_the_options_is_told_once_and_a_new_one_too(self) -> None:
        self.write(".env", "A line that is none\n")
        served = self.serve("app", "--reload", "-q")
        client = self.connect(served)
        for version in ("v2", "v3"):
            self.save(version)
            self.reaches(client, version)
        self.write(".env", "A line that is none\nnor this\n")
        served.wait_for(r"line 2 is left out")
        self.reaches(client, "v3")
        for told in ("line 1 is left out", "line 2 is left out"):
            self.assertEqual(served.log.count(told), 1, served.log)

    def test_strange_things_among_the_watched_files(self) -> None:
        if sys.platform == "win32":
            self.skipTest("not on Windows")
        tree = self.folder / "watched"
        (tree / "sub").mkdir(parents=True)
        os.symlink("nowhere", tree / "broken")
        os.symlink("circle", tree / "circle")
        os.symlink("..", tree / "sub" / "up")
        os.mkfifo(tree / "pipe")
        locked = self.write("watched/locked", "secret")
        locked.chmod(0)
        os.symlink("self.py", self.folder / "self.py")
        (self.folder / os.fsdecode(b"not utf-8 \xff.py")).write_text("")
        served = self.serve(
            "app",
            "--reload",
            "-q",
            "--extra-files",
            os.pathsep.join(["watched", "no/such/folder", "*.py", "\\[", "pipe"]),
        )
        client = self.connect(served)
        self.assertEqual(client.ask().json["version"], "v1")
        self.save("v2")
        self.reaches(client, "v2")
        shutil.rmtree(tree)
        served.wait_for(r"(?s)reloaded.*watched.* changed, reloading\n.*reloaded")
        self.write("watched/again", "")
        self.save("v3")
        self.reaches(client, "v3")
        self.assertNotIn("Traceback", served.log)

    def test_file_that_cannot_be_read_after_a_save(self) -> None:
        self.write("helper.py", "VALUE = 1\n")
        self.save("v1", '{"value": helper.VALUE}\n\n\nimport helper')
        served = self.serve("app", "--debug", "-q")
        client = self.connect(served)
        client.ask()
        self.settle()
        os.unlink(self.folder / "helper.py")
        os.symlink("nowhere", self.folder / "helper.py")
        served.wait_for("Error")
        os.unlink(self.folder / "helper.py")
        self.write("helper.py", "VALUE = 1\n")
        with Client(served.port) as fresh:
            self.reaches(fresh, "v1")
        (self.folder / "helper.py").write_bytes(b"VALUE = '\xff'\n")  # no UTF-8
        served.wait_for("SyntaxError")
        (self.folder / "helper.py").write_bytes(b"VALUE = 2\n")
        served.wait_for(r"(?s)SyntaxError.*reloaded")
        self.assertEqual(fetch(served.port).json["value"], 2)

    def test_working_directory_that_vanishes(self) -> None:
        served = self.serve()
        client = self.connect(served)
        client.ask()
        self.settle()
        shutil.rmtree(self.folder)
        served.wait_for("warning: .*gone")
        self.assertEqual(client.ask().json["version"], "v1")
        self.folder.mkdir()
        self.save("v2")
        with Client(served.port) as fresh:
            self.reaches(fresh, "v2")


if __name__ == "__main__":
    unittest.main()
