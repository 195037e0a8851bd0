"""Measures devserve beside every server that a person would use instead, and writes the tables of BENCHMARK.md.

    python3 .ci/bench.py                  everything, into .ci/BENCHMARK.md: a quarter of an hour on two cores
    python3 .ci/bench.py --quick          fewer peers and rounds: under three minutes, to see whether something broke
    python3 .ci/bench.py --only hello,save    the rows whose names begin so (asgi: all of ASGI); --list names them
    python3 .ci/bench.py --devserve PATH  another devserve.py than the repository's
    python3 .ci/bench.py --before PATH    an earlier devserve.py as well, side by side

The first run makes a virtual environment with the peers in the cache folder; later runs reuse it.  Everything runs on
the loopback interface, and everything that is compared runs in one go, in turns (A B B A …); the tables show medians.
devserve runs as a user would run it, with its request log on; the log of every server goes into a file.  Load comes
from wrk where it is installed, else from a small client below.  A peer that cannot be installed or started is shown as
n/a with the reason.  Linux alone tells the CPU time and the memory of a group of processes; elsewhere they are n/a.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import platform
import random
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Iterator

# =====================================================================================================================
# 1. What is compared
#
# The servers and the packages that they need.  A new peer is one line in SERVERS.
# =====================================================================================================================

PACKAGES = tuple(
    "flask werkzeug django bottle waitress hupper gunicorn cheroot uvicorn watchfiles a2wsgi"
    " uvloop httptools h11 websockets hypercorn granian daphne fastapi fastapi-cli sqlalchemy".split()
)
DEADLINE = 30.0  # seconds until a server must answer its first request; 1,800 modules take a slow machine a while
SOCKET_TIMEOUT = 10.0  # seconds that one answer may take
RELOAD_DEADLINE = 15.0  # seconds until a save must show: the slowest peer takes three
PATIENCE = 15.0  # seconds of turns that a server gets within a row
POLL = 0.003  # seconds between two looks at whether a server answers yet; it limits how finely starts are told apart


class Server(NamedTuple):
    """One way to serve an application; commands are split like a shell does, then {names} are filled in."""

    name: str
    plain: str = ""  # the command without a reloader, "" when there is none
    reload: str = ""  # the command with it
    needs: tuple[str, ...] = ()
    quick: bool = False  # also part of --quick


DEVSERVE = "{python} {devserve} {module}:app --port {port}"
DEVSERVE_MODULE = "{python} -m devserve {module}:app --port {port}"  # compiled once, while a script is at each start
GUNICORN = "{python} -m gunicorn --bind 127.0.0.1:{port} {module}:app"
FLASK = "{python} -m flask --app {module}_in_flask --debug run --port {port}"
UVICORN = "{python} -m uvicorn --interface wsgi --port {port} {module}:app"
WAITRESS = "waitress --listen=127.0.0.1:{port} {module}:app"
DJANGO = "{python} -m django runserver --settings django_settings 127.0.0.1:{port}"
BEFORE = Server(  # an earlier version beside today's, where --before names one
    "devserve, before",
    "{python} {before} {module}:app --port {port}",
    "{python} {before} {module}:app --port {port} --reload",
)
SERVERS = (
    Server("devserve", DEVSERVE, DEVSERVE + " --reload", quick=True),
    BEFORE,
    Server("raw socket", "{python} raw.py {port}", quick=True),
    Server("flask --debug", FLASK, FLASK, ("flask",), quick=True),
    Server(
        "run_simple",
        "{python} peer.py werkzeug {port} {module}",
        "{python} peer.py werkzeug {port} {module} reload",
        ("werkzeug",),
        quick=True,
    ),
    Server("Django runserver", DJANGO + " --noreload", DJANGO, ("django",)),
    Server(
        "bottle",
        "{python} peer.py bottle {port} {module}",
        "{python} peer.py bottle {port} {module} reload",
        ("bottle",),
    ),
    Server("waitress", "{python} -m " + WAITRESS, "", ("waitress",), quick=True),
    Server("waitress, hupper", "", "{scripts}/hupper -m " + WAITRESS, ("waitress", "hupper")),
    Server("gunicorn sync", GUNICORN, GUNICORN + " --reload", ("gunicorn",)),
    Server(
        "gunicorn gthread", GUNICORN + " --threads 8", GUNICORN + " --threads 8 --reload", ("gunicorn",), quick=True
    ),
    Server("cheroot", "{python} -m cheroot --bind 127.0.0.1:{port} {module}:app", "", ("cheroot",)),
    Server("uvicorn", UVICORN, UVICORN + " --reload", ("uvicorn", "a2wsgi", "watchfiles"), quick=True),
    Server("wsgiref", "{python} peer.py wsgiref {port} {module}", ""),
)
UVICORN_ASGI = "{python} -m uvicorn --port {port} {module}:app"
UVICORN_STANDARD = UVICORN_ASGI + " --loop uvloop --http httptools"
UVICORN_H11 = UVICORN_ASGI + " --loop asyncio --http h11"
HYPERCORN = "{python} -m hypercorn --bind 127.0.0.1:{port} {module}:app"
GRANIAN = "{python} -m granian --interface asgi --port {port} {module}:app"
FASTAPI = "{python} -m fastapi dev --port {port} {module}_in_fastapi.py"
ASGI_SERVERS = (
    Server("devserve", DEVSERVE, DEVSERVE + " --reload", quick=True),
    BEFORE,
    Server(
        "uvicorn[standard]",
        UVICORN_STANDARD,
        UVICORN_STANDARD + " --reload",
        ("uvicorn", "uvloop", "httptools", "websockets", "watchfiles"),
        quick=True,
    ),
    Server(
        "uvicorn h11",
        UVICORN_H11,
        UVICORN_H11 + " --reload",
        ("uvicorn", "h11", "websockets", "watchfiles"),
    ),
    Server("fastapi dev", FASTAPI + " --no-reload", FASTAPI, ("fastapi", "fastapi-cli", "uvloop", "httptools")),
    Server("hypercorn", HYPERCORN, HYPERCORN + " --reload", ("hypercorn",)),
    Server("granian", GRANIAN, GRANIAN + " --reload", ("granian", "watchfiles")),
    Server("daphne", "{python} -m daphne --port {port} {module}:app", "", ("daphne",)),
)


class Interface(NamedTuple):
    """What applications are written to: who serves them, and who is to be beaten."""

    name: str
    servers: tuple[Server, ...]
    rival: str = ""  # "" is the best of all


WSGI = Interface("WSGI", SERVERS)
ASGI = Interface("ASGI", ASGI_SERVERS, "uvicorn[standard]")
WERKZEUG = ("flask --debug", "run_simple")  # the bars that name Werkzeug mean the faster of the two
YARDSTICK = "raw socket"

# =====================================================================================================================
# 2. What is served
#
# The applications, and the scripts around servers that have no command of their own.
# =====================================================================================================================

SMALL_FILES = 100
MODULES = 1500  # of the large project; and of the libraries that the mixed one imports
PROJECT_FILES = 300  # of the mixed project
FILE_SIZE = 50 * 1024 * 1024
UPLOAD_SIZE = 1024 * 1024

HELLO = """\
import os, sys
from wsgiref.util import FileWrapper

VERSION = 0
HERE = os.path.dirname(os.path.abspath(__file__))
BIG = b"x" * 100_000


def fall(depth):
    return 1 // 0 if depth <= 0 else rise(depth - 1)


def rise(depth):
    return fall(depth - 1)


def app(environ, start_response):
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "text/plain")]
    body = b"Hello, world!"
    if path == "/version":
        body = b"version %d." % VERSION
    elif path == "/modules":
        body = " ".join(sys.modules).encode()
    elif path == "/big":
        body = BIG
    elif path == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    elif path == "/file":
        name = os.path.join(HERE, "large.bin")
        start_response("200 OK", [*headers, ("Content-Length", str(os.path.getsize(name)))])
        return environ.get("wsgi.file_wrapper", FileWrapper)(open(name, "rb"), 65536)
    elif path.startswith("/small/"):
        with open(os.path.join(HERE, "small", path[7:]), "rb") as file:
            body = file.read()
    elif path.startswith("/crash/"):
        fall(int(path[7:]))
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]
"""
ASGI_HELLO = """\
VERSION = 0


async def app(scope, receive, send):
    assert scope["type"] != "lifespan"
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        return
    body = b"version %d." % VERSION if scope["path"] == "/version" else b"Hello, world!"
    if scope["path"] == "/upload":
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message.get("more_body")
        body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for _ in range(1600 if scope["path"] == "/stream" else 0):
        await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    await send({"type": "http.response.body", "body": body})
"""
FLASK_HELLO = """\
import flask

VERSION = 0
app = flask.Flask(__name__)


@app.route("/")
def hello():
    return "Hello, world!"


@app.route("/version")
def version():
    return "version %d." % VERSION
"""
STARLETTE_HELLO = """\
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

VERSION = 0


async def hello(request):
    return PlainTextResponse("Hello, world!")


async def version(request):
    return PlainTextResponse("version %d." % VERSION)


app = Starlette(routes=[Route("/", hello), Route("/version", version)])
"""
FASTAPI_HELLO = """\
import fastapi

VERSION = 0
app = fastapi.FastAPI()


@app.get("/")
async def hello():
    return {"message": "Hello, world!"}


@app.get("/version")
async def version():
    return "version %d." % VERSION
"""
FASTAPI_PROJECT = {  # a small one as people have it: its modules, the first of which holds the application
    "fastapi_project": """\
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import func, select

import database, models, routes

VERSION = 0


@asynccontextmanager
async def lifespan(app):
    models.Base.metadata.create_all(database.engine)
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(routes.router)


@app.get("/version")
def version(session: database.SessionDependency) -> str:
    return "version %d. %d notes" % (VERSION, session.scalar(select(func.count(models.Note.id))))
""",
    "database": """\
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

engine = create_engine(f"sqlite:///{Path(__file__).with_name('notes.sqlite')}")


def get_session():
    with Session(engine) as session:
        yield session


SessionDependency = Annotated[Session, Depends(get_session)]
""",
    "models": """\
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    notes: Mapped[list["Note"]] = relationship(back_populates="author")


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="notes")
""",
    "schemas": """\
from pydantic import BaseModel, ConfigDict


class NewNote(BaseModel):
    text: str
    author: str


class AuthorOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    name: str


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    text: str
    author: AuthorOut
""",
    "routes": """\
from fastapi import APIRouter, HTTPException
from sqlalchemy import select

from database import SessionDependency
from models import Author, Note
from schemas import NewNote, NoteOut

router = APIRouter()


@router.get("/", response_model=list[NoteOut])
def notes(session: SessionDependency):
    return session.scalars(select(Note).order_by(Note.id)).all()


@router.get("/notes/{note_id}", response_model=NoteOut)
def note(note_id: int, session: SessionDependency):
    found = session.get(Note, note_id)
    if found is None:
        raise HTTPException(404)
    return found


@router.post("/notes", response_model=NoteOut, status_code=201)
def add(given: NewNote, session: SessionDependency):
    author = session.scalar(select(Author).where(Author.name == given.author)) or Author(name=given.author)
    session.add(made := Note(text=given.text, author=author))
    session.commit()
    return made
""",
}
IN_FLASK = """\
import flask
import {module}

app = flask.Flask(__name__)
app.wsgi_app = {module}.app
"""
IN_FASTAPI = """\
import fastapi
import {module}


class App(fastapi.FastAPI):
    async def __call__(self, scope, receive, send):
        await {module}.app(scope, receive, send)


app = App()
"""
MODULE = '''\
"""Module {number} of a generated project."""

import os

NAMES = {{"first": {number}, "second": "two", "third": [1, 2, 3]}}


class Thing{number}:
    """Something of its own."""

    def __init__(self, name):
        self.name = name
        self.path = os.path.join("things", name)

    def describe(self, loudly=False):
        text = "thing {number} called %s" % self.name
        return text.upper() if loudly else text


def make(name="thing"):
    return Thing{number}(name)
'''
RAW = """\
import socket, sys, threading

ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 13\\r\\n\\r\\nHello, world!"


def carry(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while sock.recv(65536):
            sock.sendall(ANSWER)
    except OSError:
        pass


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
while True:
    threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()
"""
PEER = """\
import importlib, os, sys

kind, port, module, reload = sys.argv[1], int(sys.argv[2]), sys.argv[3], "reload" in sys.argv
app = importlib.import_module(module).app
if kind == "werkzeug":
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, app, threaded=True, use_reloader=reload)
elif kind == "bottle":
    import bottle

    bottle.run(app=app, host="127.0.0.1", port=port, reloader=reload)
else:
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", port, app).serve_forever()
"""
DJANGO_SETTINGS = """\
import os

DEBUG = True
SECRET_KEY = "bench"
ROOT_URLCONF = "django_urls"
INSTALLED_APPS = []
WSGI_APPLICATION = os.environ["BENCH_MODULE"] + ".app"
"""
UPLOAD_LUA = 'wrk.method = "POST"\nwrk.body = string.rep("x", {size})\n'


def write_project(folder: Path) -> None:
    """Write the applications and the scripts that serve them into a new folder."""
    (folder / "small").mkdir(parents=True)
    for number in range(SMALL_FILES):
        (folder / "small" / f"{number}.css").write_text(
            f"/* {number} */ " + ".a { color: red }\n" * (20 + number), "utf-8"
        )
    texts = {
        "hello": HELLO,
        "asgi_hello": ASGI_HELLO,
        "flask_hello": FLASK_HELLO,
        "starlette_hello": STARLETTE_HELLO,
        "fastapi_hello": FASTAPI_HELLO,
        **FASTAPI_PROJECT,
        "raw": RAW,
        "peer": PEER,
        "django_settings": DJANGO_SETTINGS,
    }
    texts.update(
        large=project_of("large_parts", MODULES), mixed=project_of("mixed_parts", PROJECT_FILES, "bench_library")
    )
    texts.update({f"{m}_in_flask": IN_FLASK.format(module=m) for m in ("hello", "flask_hello", "large", "mixed")})
    asgi_modules = ("asgi_hello", "starlette_hello", "fastapi_hello", "fastapi_project")
    texts.update({f"{module}_in_fastapi": IN_FASTAPI.format(module=module) for module in asgi_modules})
    texts["django_urls"] = "urlpatterns = []\n"
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, "utf-8")


def project_of(package: str, count: int, library: str = "") -> str:
    """Return the text of an application that imports so many modules of a package, and those of a library.

    Its version is the highest that it or one of its modules has.
    """
    lines = ["import importlib\n\nVERSIONS = []\n"]
    for name, size in ((package, count), (library, MODULES)):
        if name:
            lines += [f"for n in range({size}):\n    module = importlib.import_module(f'{name}.m{{n}}')\n"]
            lines += ["    VERSIONS.append(getattr(module, 'VERSION', 0))\n"]
    return "".join([*lines, HELLO, "\n\nVERSION = max(VERSION, *VERSIONS)\n"])


def write_package(folder: Path, count: int) -> None:
    """Write a package of so many modules, a day old: in a project that one works on, few files are fresh."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    yesterday = time.time() - 86400
    for number in range(count):
        path = folder / f"m{number}.py"
        path.write_text(MODULE.format(number=number), "utf-8")
        os.utime(path, (yesterday, yesterday))


# =====================================================================================================================
# 3. The environment
#
# A virtual environment with the peers, kept in the cache folder.
# =====================================================================================================================


class Environment:
    """The interpreter that runs every server, and what it has installed."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        base = Path(sys.executable).resolve()
        self.folder = cache / "devserve-bench" / f"{platform.python_version()}-{abs(hash_of(str(base))):08x}"
        self.python = str(self.folder / "bin" / "python")
        if not os.path.exists(self.python):
            tell(f"making {self.folder}")
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True, timeout=120)
        self.versions = self._versions()
        self.failed: dict[str, str] = {}
        self._install([name for name in PACKAGES if name not in self.versions])
        self._write_library()

    def _install(self, names: list[str]) -> None:
        """Install what is missing, all at once; when that fails one by one, so that each failure has its name."""
        if names and not self._pip(*names):
            for name in names:
                if not self._pip(name):
                    self.failed[name] = f"pip cannot install {name}"
        if names:
            self.versions = self._versions()

    def _pip(self, *names: str) -> bool:
        tell(f"pip install {' '.join(names)}")
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *names]
        return subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 0

    def _versions(self) -> dict[str, str]:
        code = (
            "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'].lower(), d.version)"
        )
        output = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        return dict(line.split() for line in output.splitlines())

    def _write_library(self) -> None:
        """Put the generated library where installed packages lie: reloaders treat it otherwise than the project."""
        packages = next(self.folder.glob("lib/python*/site-packages"))
        if not (packages / "bench_library" / f"m{MODULES - 1}.py").exists():
            write_package(packages / "bench_library", MODULES)

    def missing(self, server: Server) -> str:
        """Return why a server cannot run; "" when it can."""
        return "; ".join(self.failed.get(name, f"no {name}") for name in server.needs if name not in self.versions)


def hash_of(text: str) -> int:
    """Return a number that is the same in every run, which `hash` is not."""
    import zlib

    return zlib.crc32(text.encode())


def tell(text: str) -> None:
    """Tell the person who waits what goes on; the tables alone go to standard output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


# =====================================================================================================================
# 4. Processes
#
# A server is a process group of its own: it is started, asked until it answers, and ended whole.
# =====================================================================================================================


class Failed(Exception):
    """A server did not do what a measurement needs; the text goes into the table's notes."""


class Running:
    """A server that runs: its name, its port, its process group and its folder."""

    def __init__(self, name: str, command: list[str], port: int, folder: Path, env: dict[str, str]) -> None:
        self.name = name
        self.port = port
        self.folder = folder
        self.version = 0  # of the application, raised by each save
        self.began = time.perf_counter()
        self.log = folder.with_name(f"log-{port}.txt")  # beside the folder: granian reloads for any file in it
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, path: str = "/version") -> float:
        """Wait for the first answer; return the seconds since the start."""
        while time.perf_counter() - self.began < DEADLINE:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if ask(self.port, path).status == 200:
                    return time.perf_counter() - self.began
            time.sleep(POLL)
        raise Failed(f"it does not answer: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1][:100] if lines else "it said nothing"

    def stop(self) -> None:
        """End the whole group: politely, then at once."""
        for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # a child may outlive its parent: SIGKILL has gone to every member by now

    def pids(self) -> list[int]:
        """Return the processes of the group (Linux)."""
        return [pid for pid, fields in all_stats() if int(fields[2]) == self.process.pid]

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU time that each living thread of the group has used, to the nanosecond."""
        found = {}
        for pid in self.pids():
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    found[str(path)] = int(path.read_text("ascii").split()[0]) / 1e9
        return found

    def cpu_since(self, before: dict[str, float]) -> float:
        """Return the seconds used since `cpu` told `before`; threads that have ended meanwhile did not do much."""
        return sum(seconds - before.get(thread, 0.0) for thread, seconds in self.cpu().items())

    def memory(self, kind: str = "Pss:") -> float:
        """Return the memory of the group in MB.

        `Pss:` counts pages that processes share once, `Rss:` counts them in each, as ps and top do.
        """
        return sum(kilobytes(pid, kind) for pid in self.pids()) / 1024


def all_stats() -> Iterator[tuple[int, list[str]]]:
    """Yield pid and the fields of /proc/pid/stat after the name: 0 is the state, 2 the process group."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield int(name), Path(f"/proc/{name}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def kilobytes(pid: int, kind: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
            if line.startswith(kind):
                return int(line.split()[1])
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# =====================================================================================================================
# 5. Clients
#
# One request, one page, and load: by wrk, or by threads where there is no wrk.
# =====================================================================================================================


class Answer(NamedTuple):
    status: int
    body: bytes
    persistent: bool


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(path: str, *extra: str, body: bytes = b"") -> bytes:
    """Return the bytes of a request; `extra` are header lines."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/html,*/*", *extra]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def exchange(sock: socket.socket, data: bytes) -> Answer:
    """Send a request and read its answer; raises ConnectionError when it breaks off."""
    sock.sendall(data)
    got = bytearray()
    while True:
        piece = sock.recv(262144)
        got += piece
        answer = whole_answer(got, ended=not piece)
        if answer is not None:
            return answer
        if not piece:
            raise ConnectionAbortedError("the answer broke off" if got else "the connection was closed unanswered")


def whole_answer(data: bytearray, *, ended: bool = False) -> Optional[Answer]:
    """Return the answer in `data` if it is whole: by its length, its last chunk, or the connection's end."""
    head, separator, body = bytes(data).partition(b"\r\n\r\n") if len(data) < 65536 else split_large(data)
    if not separator:
        return None
    lower = head.lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", lower)
    chunked = b"\r\ntransfer-encoding: chunked" in lower
    if length:
        ended = len(body) >= int(length[1])
    elif chunked:
        ended = body.endswith(b"0\r\n\r\n")
    if not ended:
        return None
    persistent = lower.startswith(b"http/1.1") and b"\r\nconnection: close" not in lower and bool(length or chunked)
    return Answer(int(head[9:12]), body, persistent)


def split_large(data: bytearray) -> tuple[bytes, bytes, bytes]:
    """Partition without copying megabytes for each piece that comes: only the length of the body is right."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return b"", b"", b""
    return bytes(data[:end]), b"\r\n\r\n", bytes(data[-16:]).rjust(len(data) - end - 4, b"\0")


def ask(port: int, path: str, *extra: str, body: bytes = b"") -> Answer:
    """Send one request on a new connection."""
    with connect(port) as sock:
        return exchange(sock, request(path, *extra, body=body))


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def load_page(port: int, paths: list[str], connections: int = 6) -> float:
    """Load files as a browser does, over six new connections, each taking the next file; return the seconds."""
    began = time.perf_counter()
    waiting = list(reversed(paths))
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(connections):
            take_next(selector, stack, None, port, waiting)
        while selector.get_map():
            events = selector.select(SOCKET_TIMEOUT)
            if not events:
                raise Failed("a file did not come in time")
            for key, _ in events:
                sock: Any = key.fileobj
                piece = sock.recv(65536)
                key.data.extend(piece)
                answer = whole_answer(key.data, ended=not piece)
                if answer is not None:
                    selector.unregister(sock)
                    if not answer.persistent:
                        sock.close()  # gunicorn's sync worker waits for that before it takes the next
                    take_next(selector, stack, sock if answer.persistent else None, port, waiting)
                elif not piece:
                    raise Failed("a file broke off")
    return time.perf_counter() - began


def take_next(
    selector: selectors.BaseSelector,
    stack: contextlib.ExitStack,
    sock: Optional[socket.socket],
    port: int,
    waiting: list[str],
) -> None:
    """Ask for the next file on `sock`, or on a new connection where the server closes each."""
    if waiting:
        sock = sock or stack.enter_context(connect(port))
        sock.sendall(request(waiting.pop()))
        selector.register(sock, selectors.EVENT_READ, bytearray())


class Sample(NamedTuple):
    """One round of load."""

    rate: float  # requests a second
    p99: float  # milliseconds


class Load(NamedTuple):
    """A kind of load: what is asked, over how many connections."""

    name: str
    title: str
    path: str = "/"
    connections: int = 1
    close: bool = False  # a connection a request
    upload: bool = False
    websocket: bool = False  # messages that are echoed, not requests
    share: float = 1.0  # of the rival's rate, that is to be reached


def put_load(port: int, load: Load, seconds: int, folder: Path) -> Sample:
    """Load a server for some seconds.  Raises `Failed` when it answers with errors only."""
    if load.websocket:
        sample = load_by_websocket(port, load, seconds)
    elif shutil.which("wrk"):
        sample = load_by_wrk(port, load, seconds, folder)
    else:
        sample = load_by_threads(port, load, seconds)
    if sample.rate <= 0:
        raise Failed("no good answer")
    return sample


def load_by_wrk(port: int, load: Load, seconds: int, folder: Path) -> Sample:
    command = ["wrk", "--threads=1", f"--connections={load.connections}", f"--duration={seconds}s", "--latency"]
    command += ["--timeout=10s", *(["--header=Connection: close"] if load.close else [])]
    if load.upload:
        script = folder / "upload.lua"
        script.write_text(UPLOAD_LUA.format(size=UPLOAD_SIZE), "utf-8")
        command.append(f"--script={script}")
    command.append(f"http://127.0.0.1:{port}{load.path}")
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    p99 = re.search(r"99% +([\d.]+)(us|ms|s|m)", output)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if not rate or not p99 or bad:
        raise Failed(f"wrk saw {bad[1]} errors" if bad else "wrk got no answer")
    return Sample(float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[p99[2]])


def load_by_threads(port: int, load: Load, seconds: int) -> Sample:
    """Do what wrk does, a thread a connection; Python is slower than wrk, so fast servers look more alike."""
    times: list[float] = []
    data = request(load.path, *(["Connection: close"] if load.close else []), body=b"x" * UPLOAD_SIZE * load.upload)
    end = time.perf_counter() + seconds

    def client() -> None:
        sock: Optional[socket.socket] = None
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                sock = sock or connect(port)
                answer = exchange(sock, data)
            except OSError:
                sock = None
                continue
            times.append(time.perf_counter() - began)
            if load.close or not answer.persistent:
                sock.close()
                sock = None

    threads = [threading.Thread(target=client, daemon=True) for _ in range(load.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + SOCKET_TIMEOUT)
    times.sort()
    return Sample(len(times) / seconds, times[int(len(times) * 0.99)] * 1000) if times else Sample(0, 0)


def load_by_websocket(port: int, load: Load, seconds: int) -> Sample:
    """Let small messages be echoed, on each connection one after the other."""
    head = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    frame = b"\x81\x85" + bytes(4) + b"hello"  # a mask of zeros leaves the payload as it is
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(load.connections):
            sock = stack.enter_context(connect(port))
            sock.sendall(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
            if b" 101 " not in sock.recv(65536):
                raise Failed("no WebSocket")
            selector.register(sock, selectors.EVENT_READ, sock)
        for key in [*selector.get_map().values()]:
            key.data.sendall(frame)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for key, _ in selector.select(SOCKET_TIMEOUT):
                if key.data.recv(65536) != b"\x81\x05hello":
                    raise Failed("a message came back as another")
                key.data.sendall(frame)
                count += 1
    return Sample(count / seconds, math.nan)


# =====================================================================================================================
# 6. The bench
#
# What the rows share: starting servers, taking turns, and what has been measured so far.
# =====================================================================================================================


class Line(NamedTuple):
    """A line of the main table."""

    measurement: str
    devserve: str
    comparison: str
    target: str
    is_reached: Optional[bool]  # None: there is no target


class Bench:
    """One run: its settings, what it measured, and every process that it started."""

    def __init__(self, devserve: Path, before: Optional[Path], quick: bool) -> None:
        self.devserve = devserve
        self.before = before
        self.quick = quick
        self.environment = Environment()
        self.python = self.environment.python
        self.folder = Path(tempfile.mkdtemp(prefix="devserve-bench-"))
        self.stack = contextlib.ExitStack()
        self.stack.callback(shutil.rmtree, self.folder, True)
        self.interface = WSGI  # of the row that is being measured
        self.results: dict[Interface, dict[str, dict[str, float]]] = {
            WSGI: {},
            ASGI: {},
        }  # measurement, server, median
        self.notes: dict[str, str] = {}  # server, and why something of it is n/a
        self.project = self.new_project("all")
        with open(self.project / "large.bin", "wb") as file:
            file.truncate(FILE_SIZE)
        self.module_folder = self.folder / "module"  # where `python -m devserve` finds a copy, with room for its .pyc
        self.module_folder.mkdir()
        shutil.copy(devserve, self.module_folder / "devserve.py")
        self.options = self._options()

    def _options(self) -> str:
        command = [self.python, "-m", "devserve", "--help"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=self.folder, env=self.variables()
        )
        if done.returncode:
            raise SystemExit(f"bench: {self.devserve} --help fails: {done.stderr.strip()[-300:]}")
        return done.stdout

    def new_project(self, name: str, module: str = "") -> Path:
        """Write a new project folder; the packages of the large projects are written for those alone."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        write_project(folder)
        counts = {"large": MODULES, "mixed": PROJECT_FILES}
        if module in counts:
            write_package(folder / f"{module}_parts", counts[module])
        return folder

    def start(self, name: str, template: str, folder: Path, module: str = "hello") -> Running:
        """Start a server; it ends with the innermost `with bench.servers()`, or with the bench."""
        if "devserve" in template:
            for option in re.findall(r"--[a-z-]+", template):
                if option not in self.options:
                    raise Failed(f"devserve has no {option} yet")
        port = free_port()
        names = {"python": self.python, "scripts": os.path.dirname(self.python), "devserve": str(self.devserve)}
        names["before"] = str(self.before)
        command = [word.format(port=port, module=module, **names) for word in shlex.split(template)]
        running = Running(name, command, port, folder, self.variables(module))
        self.stack.callback(running.stop)
        return running

    def variables(self, module: str = "hello") -> dict[str, str]:
        """Return a plain environment: nothing of this shell changes what a server does."""
        dropped = ("PYTHON", "FLASK", "DEVSERVE", "DJANGO", "WERKZEUG", "BOTTLE", "UVICORN", "GUNICORN", "WEB_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**env, "BENCH_MODULE": module, "PYTHONPATH": os.pathsep.join([".", str(self.module_folder)])}

    @contextlib.contextmanager
    def servers(self) -> Iterator[None]:
        """End what was started inside, whatever happens."""
        outer, self.stack = self.stack, contextlib.ExitStack()
        try:
            with self.stack:
                yield
        finally:
            self.stack = outer

    def peers(self, *, reload: bool, leave_out: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Return name and command of the servers that take part."""
        found = []
        for server in self.interface.servers:
            command = server.reload if reload else server.plain
            is_meant = server.quick or not self.quick if server is not BEFORE else self.before is not None
            if command and server.name not in leave_out and is_meant:
                missing = self.environment.missing(server)
                if missing:
                    self.note(server.name, missing)
                else:
                    found.append((server.name, command))
        return found

    def start_all(self, *, reload: bool, module: str = "hello", leave_out: tuple[str, ...] = ()) -> list[Running]:
        """Start every server, each in a folder of its own when it reloads; wait until all answer."""
        started = []
        for name, command in self.peers(reload=reload, leave_out=leave_out):
            with self.forgiving(name):
                folder = self.new_project(module, module) if reload else self.project
                started.append(self.start(name, command, folder, module))
        answering = []
        for running in started:
            with self.forgiving(running.name):
                running.wait("/" if running.name == YARDSTICK else "/version")
                answering.append(running)
        return answering

    @contextlib.contextmanager
    def forgiving(self, name: str) -> Iterator[None]:
        """A peer that fails costs its own cell of the table, not the run."""
        try:
            yield
        except (Failed, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self.note(name, str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}")

    def note(self, name: str, text: str) -> None:
        if text and text not in self.notes.get(name, ""):
            tell(f"{name}: {text}")
            self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text

    def in_turns(self, servers: list[Running], measure: Callable[[Running], Any], rounds: int) -> dict[str, list[Any]]:
        """Measure A B C, C A B, B C A, …: what disturbs the machine for a while disturbs all alike.

        The order differs from round to round, since a fast server leaves warm caches to the next.  A server that has
        used up its patience has no further turns, so that one that crawls does not hold up the run.
        """
        found: dict[str, list[Any]] = {}
        spent = dict.fromkeys([running.name for running in servers], 0.0)
        for number in range(rounds):
            for running in random.Random(number).sample(servers, len(servers)):
                if spent[running.name] < PATIENCE:
                    began = time.perf_counter()
                    with self.forgiving(running.name):
                        found.setdefault(running.name, []).append(measure(running))
                    spent[running.name] += time.perf_counter() - began
        return found

    def medians(self, column: str, found: dict[str, list[float]]) -> dict[str, float]:
        """Take the medians, for the table of all servers too."""
        medians = {name: statistics.median(values) for name, values in found.items() if values}
        self.results[self.interface][column] = medians
        return medians

    def rivals(self, medians: dict[str, float], *, least: bool = False) -> list[tuple[str, float]]:
        """Return the server that is to be beaten, and the best one where that is another."""
        rival, best = self.interface.rival, best_peer(medians, least=least)
        return [best] if rival in ("", best[0]) else [(rival, medians.get(rival, math.nan)), best]

    def rounds(self, full: int, quick: int = 1) -> int:
        return quick if self.quick else full


def best_peer(medians: dict[str, float], *, least: bool = False) -> tuple[str, float]:
    """Return the best server that is neither devserve, of today or before, nor a yardstick."""
    peers = {name: value for name, value in medians.items() if name not in ("devserve", BEFORE.name, YARDSTICK)}
    if not peers:
        return "no peer", math.nan
    name = (min if least else max)(peers, key=lambda key: peers[key])
    return name, peers[name]


def number(value: float) -> str:
    """Return a number with as many digits as it deserves."""
    if math.isnan(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# =====================================================================================================================
# 7. The rows
#
# Each takes the bench and returns lines of the main table.
# =====================================================================================================================

HELLO_LOADS = (
    Load("hello-1", "hello, keep-alive, 1 connection"),
    Load("hello-32", "hello, keep-alive, 32 connections", connections=32),
)
LOADS: dict[Interface, dict[str, tuple[Load, ...]]] = {
    WSGI: {
        "hello": (
            Load("close", "hello, a connection a request", connections=8, close=True),
            Load("big", "a 100 kB response", "/big", 4),
            Load("upload", "a 1 MB upload", "/upload", 2, upload=True),
        )
    },
    ASGI: {
        "asgi_hello": (
            Load("hello-1", "ASGI hello, 1 connection"),
            Load("hello-32", "ASGI hello, 32 connections", connections=32),
            Load("upload", "ASGI, a 1 MB upload", "/upload", 2, upload=True),
            Load("stream", "ASGI, a streamed response of 100 MB", "/stream", share=0.5),
            Load("websocket-1", "WebSocket echo, 1 connection", websocket=True, share=0.5),
            Load("websocket-32", "WebSocket echo, 32 connections", connections=32, websocket=True, share=0.5),
        ),
        "fastapi_hello": (
            Load("fastapi-1", "FastAPI hello, 1 connection"),
            Load("fastapi-32", "FastAPI hello, 32 connections", connections=32),
        ),
    },
}


def hello(bench: Bench) -> list[Line]:
    """Small requests over persistent connections, beside the raw socket."""
    lines = []
    with bench.servers():
        servers = bench.start_all(reload=False)
        for load in HELLO_LOADS:
            samples = bench.in_turns(servers, lambda s: put_load(s.port, load, 1, bench.folder), bench.rounds(4))  # noqa: B023
            rates = bench.medians(f"{load.name}, req/s", {n: [s.rate for s in v] for n, v in samples.items()})
            tails = bench.medians(f"{load.name}, p99 ms", {n: [s.p99 for s in v] for n, v in samples.items()})
            lines += [rate_line(load.title, rates), tail_line(load.title, tails)]
    return lines


def rate_line(title: str, rates: dict[str, float]) -> Line:
    """Hold requests a second against the best peer, Werkzeug and the raw socket."""
    mine, (name, peer) = rates.get("devserve", math.nan), best_peer(rates)
    werkzeug = max((rates[name] for name in WERKZEUG if name in rates), default=math.nan)
    raw = rates.get(YARDSTICK, math.nan)
    others = (
        f"{mine / peer:.1f} x {name} ({number(peer)}), {mine / werkzeug:.1f} x Werkzeug ({number(werkzeug)}), "
        f"{mine / raw:.2f} x raw ({number(raw)})"
    )
    is_reached = mine >= 3 * peer and mine >= 10 * werkzeug
    return Line(f"{title}, requests/s", number(mine), others, "3 x best peer, 10 x Werkzeug", is_reached)


def tail_line(title: str, tails: dict[str, float]) -> Line:
    mine, (name, peer) = tails.get("devserve", math.nan), best_peer(tails, least=True)
    return Line(f"{title}, p99", f"{number(mine)} ms", f"{name} {number(peer)} ms", "best peer", mine <= peer)


def loads(bench: Bench) -> list[Line]:
    """Whole applications under load: connections, bodies in both directions, WebSocket messages."""
    lines = []
    for module, module_loads in LOADS[bench.interface].items():
        with bench.servers():
            servers = bench.start_all(reload=False, module=module, leave_out=(YARDSTICK,))
            for load in module_loads:
                found = bench.in_turns(
                    servers,
                    lambda s: put_load(s.port, load, 1, bench.folder).rate,  # noqa: B023
                    bench.rounds(3),
                )
                unit = "messages/s" if load.websocket else "requests/s"
                rates = bench.medians(f"{load.name}, {unit.replace('requests', 'req')}", found)
                lines.append(as_good(bench, f"{load.title}, {unit}", rates, share=load.share))
    return lines


def download(bench: Bench) -> list[Line]:
    """A large file by wsgi.file_wrapper, or by whatever the server has instead."""
    with bench.servers():
        servers = bench.start_all(reload=False, leave_out=(YARDSTICK,))
        found = bench.in_turns(
            servers, lambda s: FILE_SIZE / 1e6 / timed(lambda: drain(s.port, "/file")), bench.rounds(31, 3)
        )
        return [as_good(bench, "a 50 MB file by wsgi.file_wrapper", bench.medians("file, MB/s", found), " MB/s")]


def drain(port: int, path: str) -> None:
    """Read a large answer without keeping it."""
    room = memoryview(bytearray(1024 * 1024))
    with connect(port) as sock:
        sock.sendall(request(path, "Connection: close"))
        left = FILE_SIZE
        while left > 0:
            count = sock.recv_into(room)
            if not count:
                raise Failed(f"{path} broke off")
            left -= count


def as_good(
    bench: Bench, title: str, medians: dict[str, float], unit: str = "", *, least: bool = False, share: float = 1.0
) -> Line:
    """Hold a value, of which the most or the least is the best, against a share of the rival's."""
    mine, rivals = medians.get("devserve", math.nan), bench.rivals(medians, least=least)
    others = ", ".join(f"{mine / value:.2f} x {name} ({number(value)}{unit})" for name, value in rivals)
    wanted, target = rivals[0][1] * share, share_of(bench.interface.rival or "best peer", share)
    return Line(title, f"{number(mine)}{unit}", others, target, mine <= wanted if least else mine >= wanted)


def share_of(name: str, share: float) -> str:
    """Return a target as the table tells it."""
    return name if share == 1 else f"{share} x {name}"


def static(bench: Bench) -> list[Line]:
    """A page of small files that the application reads and sends, as a browser loads it."""
    paths = [f"/small/{n}.css" for n in range(SMALL_FILES)]
    with bench.servers():
        servers = bench.start_all(reload=False, leave_out=(YARDSTICK,))
        found = bench.in_turns(servers, lambda s: load_page(s.port, paths) * 1000, bench.rounds(9, 3))
        return [
            as_good(
                bench,
                f"a page of {SMALL_FILES} small files, 6 connections",
                bench.medians("page, ms", found),
                " ms",
                least=True,
            )
        ]


def debugger(bench: Bench) -> list[Line]:
    """What healthy requests pay for the debugger."""
    load, found = Load("", ""), {}
    with bench.servers():
        servers = []
        for name, option in (("off", ""), ("on", " --debugger")):
            servers.append(bench.start(name, DEVSERVE + option, bench.project, "flask_hello"))
            servers[-1].wait()
        found = bench.in_turns(servers, lambda s: put_load(s.port, load, 1, bench.folder).rate, bench.rounds(7, 3))
    on, off = statistics.median(found["on"]), statistics.median(found["off"])
    return [
        Line(
            "Flask hello, debugger on",
            f"{number(on)}/s",
            f"{on / off:.2f} x off ({number(off)}/s)",
            "≥ 0.9",
            on >= 0.9 * off,
        )
    ]


IDLE_CONNECTIONS = 1000


def idle(bench: Bench) -> list[Line]:
    """A thousand connections that wait: what a new request pays, and what each costs in memory."""
    with bench.servers():
        running = bench.start("devserve", DEVSERVE, bench.project)
        running.wait()
        with contextlib.ExitStack() as held:
            before, memory = new_request_time(running.port), running.memory()
            for _ in range(IDLE_CONNECTIONS):
                sock = held.enter_context(connect(running.port))
                exchange(sock, request("/"))
            after, each = new_request_time(running.port), (running.memory() - memory) * 1024 / IDLE_CONNECTIONS
    title = f"a new request beside {IDLE_CONNECTIONS:,} idle connections"
    return [
        Line(title, f"{after:.2f} ms", f"{before:.2f} ms with none", "the same (≤ 1.2 x)", after <= 1.2 * before),
        Line("memory of an idle connection", f"{each:.1f} kB", "", "", None),
    ]


def new_request_time(port: int) -> float:
    """Return the median milliseconds of a request on a new connection."""
    return statistics.median(timed(lambda: ask(port, "/")) for _ in range(200)) * 1000


AS_MODULE = "devserve, python -m"


def start(bench: Bench) -> list[Line]:
    """From the command to the first answer."""
    commands = [*bench.peers(reload=False, leave_out=(YARDSTICK,)), (AS_MODULE, DEVSERVE_MODULE)]
    found: dict[str, list[float]] = {}
    for _ in range(bench.rounds(5, 2)):
        found.setdefault("bare import", []).append(bare_import(bench, bench.project, "hello"))
        for name, command in commands:
            with bench.servers(), bench.forgiving(name):
                found.setdefault(name, []).append(bench.start(name, command, bench.project).wait())
    medians = bench.medians("start, ms", {name: [t * 1000 for t in times] for name, times in found.items()})
    bare, as_module = medians.pop("bare import"), medians.pop(AS_MODULE, math.nan)
    name, peer = best_peer(medians, least=True)
    lines = []
    for title, mine in (("python devserve.py", medians.get("devserve", math.nan)), ("python -m devserve", as_module)):
        others = f"{number(mine - bare)} ms above a bare import ({number(bare)} ms); {name} {number(peer)} ms"
        lines.append(
            Line(
                f"start to first response, {title}", f"{number(mine)} ms", others, "import + 40 ms", mine <= bare + 40
            )
        )
    return lines


def bare_import(bench: Bench, folder: Path, module: str) -> float:
    """Return the seconds of a bare interpreter that imports the application."""
    return run_time(bench, ["-c", f"import {module}"], folder)


def run_time(bench: Bench, words: list[str], folder: Path) -> float:
    """Return the seconds of a run of the interpreter, from start to end."""
    command, env = [bench.python, *words], bench.variables()
    return timed(
        lambda: subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE)
    )


def help_text(bench: Bench) -> list[Line]:
    """What a look at the options takes."""
    script, module = [str(bench.devserve), "--help"], ["-m", "devserve", "--help"]
    commands = {"bare": ["-c", "pass"], "python devserve.py": script, "python -m devserve": module}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(bench.rounds(15, 5)):
        for name, words in commands.items():
            found[name].append(run_time(bench, words, bench.folder) * 1000)
    medians = {name: statistics.median(times) for name, times in found.items()}
    bare, lines = medians.pop("bare"), []
    for name, mine in medians.items():
        others = f"{number(mine - bare)} ms above a bare interpreter ({number(bare)} ms)"
        lines.append(Line(f"{name} --help", f"{number(mine)} ms", others, "interpreter + 30 ms", mine <= bare + 30))
    return lines


BARE = "bare import"
SAVES = {  # module, title, files that are edited in turn, rounds, rounds of --quick
    WSGI: (
        ("hello", "hello", "hello.py", 4, 2),
        ("flask_hello", "Flask", "flask_hello.py", 4, 0),
        ("large", f"{MODULES:,} modules", "large.py", 4, 2),
        ("large", f"{MODULES:,} modules, another file each time", "large_parts/m{n}.py", 3, 0),
    ),
    ASGI: (
        ("starlette_hello", "Starlette", "starlette_hello.py", 4, 2),
        ("fastapi_project", "FastAPI with SQLAlchemy", "fastapi_project.py", 4, 1),
    ),
}


def save(bench: Bench) -> list[Line]:
    """From a save to the first answer of the new code, a request every few milliseconds."""
    lines = []
    for module, title, file, full, quick in SAVES[bench.interface]:
        if bench.rounds(full, quick):
            with bench.servers():
                found = save_in_turns(bench, module, file, bench.rounds(full, quick))
            lines.append(save_line(bench, title, bench.medians(f"save, {title}, ms", found)))
    return lines


def save_in_turns(bench: Bench, module: str, file: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each save of each server, and of a bare import after each of the first's."""
    servers = bench.start_all(reload=True, module=module)
    bare: list[float] = []

    def measure(running: Running) -> float:
        if running is servers[0]:
            bare.append(bare_import(bench, running.folder, module) * 1000)
        return save_to_answer(running, file) * 1000

    return {**bench.in_turns(servers, measure, rounds), BARE: bare}


def save_line(bench: Bench, title: str, medians: dict[str, float]) -> Line:
    bare, mine = medians.pop(BARE, math.nan), medians.get("devserve", math.nan)
    rivals = bench.rivals(medians, least=True)
    others = [f"{number(mine - bare)} ms above a bare import ({number(bare)} ms)"]
    others += [", ".join(f"{name} {number(value)} ms" for name, value in rivals)]
    target = f"import + 90 ms, {bench.interface.rival or 'best peer'}"
    is_reached = mine <= bare + 90 and mine < rivals[0][1]
    return Line(f"save to new response, {title}", f"{number(mine)} ms", "; ".join(others), target, is_reached)


def save_to_answer(running: Running, file: str) -> float:
    """Save a new version and return the seconds until a request is answered by it."""
    time.sleep(0.3)  # a server that has just restarted may not watch yet; whether it does is not measured here
    wanted = save_version(running, file)
    began = time.perf_counter()
    while time.perf_counter() - began < RELOAD_DEADLINE:
        with contextlib.suppress(OSError):
            if wanted in ask(running.port, "/version", "Connection: close").body:
                return time.perf_counter() - began
        time.sleep(POLL)
    raise Failed(f"a save was not seen within {RELOAD_DEADLINE:.0f} s")


def save_version(running: Running, file: str) -> bytes:
    """Write the next version into a file, for which {n} is another number each time; return what is to be answered.

    Each version is one byte longer: a .pyc file is found stale by whole seconds and size, and saves come fast here.
    """
    running.version += 1
    path = running.folder / file.format(n=running.version * 37 % MODULES)
    text, line = path.read_text("utf-8"), f"VERSION = {running.version}"
    changed, count = re.subn(r"^VERSION = \d+", line, text, count=1, flags=re.MULTILINE)
    path.write_text(changed + "#" if count else f"{text}\n{line}\n", "utf-8")
    return b"version %d." % running.version


CLIENTS = 4
FAILURES = ("refused", "reset or cut", "answered with an error")
AT_REST = "closed at rest"  # a kept connection between two requests: no request is lost
RELOADED = {WSGI: ("hello", "hello"), ASGI: ("starlette_hello", "Starlette")}  # module, title


def reloads(bench: Bench) -> list[Line]:
    """Clients that ask without pause while the application is saved again and again."""
    found: dict[str, dict[str, int]] = {}
    (module, title), saves = RELOADED[bench.interface], bench.rounds(10, 3)
    for name, command in bench.peers(reload=True):
        with bench.servers(), bench.forgiving(name):
            running = bench.start(name, command, bench.new_project("reloads"), module)
            running.wait()
            found[name] = fail_counts(bench, running, f"{module}.py", saves)
    title = f"{saves} reloads, {title}"
    failed = bench.medians(f"failed in {title}", {n: [float(sum(c[f] for f in FAILURES))] for n, c in found.items()})
    bench.medians(f"{AT_REST} in {title}", {name: [float(counts[AT_REST])] for name, counts in found.items()})
    outcome = ", ".join(f"{count:,} {kind}" for kind, count in found.get("devserve", {}).items()) or "n/a"
    others = ", ".join(f"{name} {value:,.0f} failed" for name, value in bench.rivals(failed, least=True))
    is_reached = failed.get("devserve") == 0
    return [Line(f"requests of {CLIENTS} clients across {title}", outcome, others, "0 failed", is_reached)]


def fail_counts(bench: Bench, running: Running, file: str, saves: int) -> dict[str, int]:
    """Save so often under load; count what became of the requests."""
    counts = dict.fromkeys(("answered", *FAILURES, AT_REST), 0)
    lock, stop = threading.Lock(), threading.Event()
    clients = [threading.Thread(target=keep_asking, args=(running.port, counts, lock, stop)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        with bench.forgiving(running.name):
            for _ in range(saves):
                save_to_answer(running, file)
    finally:
        stop.set()
        for client in clients:
            client.join(SOCKET_TIMEOUT + 1)
    return counts


def keep_asking(port: int, counts: dict[str, int], lock: threading.Lock, stop: threading.Event) -> None:
    """One client: requests over a persistent connection, as fast as they are answered but for a millisecond.

    Before each it looks whether the server has closed the connection, as urllib3, curl and browsers do.
    """
    sock: Optional[socket.socket] = None
    while not stop.is_set():
        kinds = []
        if sock is not None and select.select([sock], [], [], 0)[0]:
            kinds.append(AT_REST)
            sock.close()
            sock = None
        try:
            sock = sock or connect(port)
            answer = exchange(sock, request("/version"))
            kinds.append("answered" if answer.status == 200 else "answered with an error")
            keep = answer.persistent
        except ConnectionRefusedError:
            kinds.append("refused")
            keep = False
        except OSError:
            kinds.append("reset or cut")
            keep = False
        if sock is not None and not keep:
            sock.close()
            sock = None
        with lock:
            for kind in kinds:
                counts[kind] += 1
        time.sleep(0.001)


RESTS = {  # module, title, most percents of a core, target
    WSGI: (
        ("hello", "hello", 0.5, "0.5 %, least of all that poll"),
        ("mixed", f"{MODULES:,} modules, {PROJECT_FILES} files", 1.0, "1.0 %, least of all that poll"),
    ),
    ASGI: (("fastapi_project", "FastAPI with SQLAlchemy", math.inf, ASGI.rival),),
}


def rest(bench: Bench) -> list[Line]:
    """What a server costs that is doing nothing but watching files: CPU time and memory."""
    if not os.path.exists("/proc/self/stat"):
        return [Line("idle CPU and memory", "n/a", "Linux alone tells them", "", None)]
    lines = []
    watch = bench.rounds(16, 3)
    for module, title, most, target in RESTS[bench.interface]:
        with bench.servers():
            servers = bench.start_all(reload=True, module=module)
            time.sleep(3)  # what a start leaves to be done
            before = {running.name: running.cpu() for running in servers}
            time.sleep(watch)
            used = {r.name: [100 * r.cpu_since(before[r.name]) / watch] for r in servers}
            cpu = bench.medians(f"idle CPU, {title}, %", used)
            bench.medians(f"memory, {title}, MB", {r.name: [r.memory()] for r in servers})
        mine, told = cpu.get("devserve", math.nan), cpu.get("uvicorn")
        rivals = bench.rivals({name: value for name, value in cpu.items() if name != "uvicorn"}, least=True)
        others = ", ".join(f"{name} {value:.2f} %" for name, value in rivals)
        others += f" (uvicorn, which does not poll: {told:.2f} %)" if told is not None else ""
        is_reached = mine <= most and mine <= rivals[0][1]
        lines.append(Line(f"idle CPU, {title}", f"{mine:.2f} % of a core", others, target, is_reached))
    return [*lines, *memory(bench)]


MEMORIES = {  # module, title, peer, share of its memory
    WSGI: ("flask_hello", "Flask", "flask --debug", 0.5),
    ASGI: ("fastapi_project", "FastAPI with SQLAlchemy", ASGI.rival, 1.0),
}


def memory(bench: Bench) -> list[Line]:
    """The memory of both commands with everything on, beside a peer for the same application, after some requests."""
    module, title, peer_name, share = MEMORIES[bench.interface]
    commands = {"devserve": DEVSERVE + " --debug", AS_MODULE: DEVSERVE_MODULE + " --debug"}
    commands.update((name, command) for name, command in bench.peers(reload=True) if name == peer_name)
    sizes: dict[str, tuple[float, float]] = {}
    with bench.servers():
        for name, command in commands.items():
            running = bench.start(name, command, bench.project, module)
            running.wait()
            for _ in range(20):
                ask(running.port, "/")
            sizes[name] = running.memory("Rss:"), running.memory("Pss:")
    peer, lines = sizes.pop(peer_name), []
    for name, mine in sizes.items():
        others = f"{mine[0] / peer[0]:.2f} x {peer_name} ({number(peer[0])} MB); proportional set size "
        others += f"{number(mine[1])} MB, {mine[1] / peer[1]:.2f} x ({number(peer[1])} MB)"
        target, is_reached = share_of(peer_name, share), mine[0] <= share * peer[0]
        lines.append(
            Line(f"memory with --debug, {title}, {name}", f"{number(mine[0])} MB", others, target, is_reached)
        )
    return lines


def no_asyncio(bench: Bench) -> list[Line]:
    """A WSGI application pays nothing for ASGI: asyncio is not imported, with everything on and after a reload."""
    with bench.servers():
        running = bench.start("devserve", DEVSERVE + " --debug", bench.new_project("no-asyncio"))
        running.wait()
        save_to_answer(running, "hello.py")
        modules = ask(running.port, "/modules").body.decode().split()
    is_reached = "wsgiref.util" in modules and "asyncio" not in modules
    outcome = "not imported" if is_reached else "imported"
    return [Line("asyncio, in a process that serves WSGI", outcome, "", "not imported", is_reached)]


def growth(bench: Bench) -> list[Line]:
    """How cost grows with work: the exponent of a power law through the least times of five; 1 is linear."""
    rows: list[tuple[str, Callable[[Running, int], float], tuple[int, ...], str]] = [
        ("requests on one connection", many_requests, (500, 1000, 2000, 4000), ""),
        ("connections", many_connections, (100, 200, 400, 800), ""),
        ("bytes of an upload", upload_of, (2**21, 2**22, 2**23, 2**24, 2**25), ""),
        ("frames of a traceback", crash_of, (100, 200, 400, 800), " --debugger"),
    ]
    lines = []
    for title, measure, sizes, option in rows:
        with bench.servers(), bench.forgiving("devserve"):
            running = bench.start("devserve", DEVSERVE + option, bench.project)
            running.wait()
            times = [[measure(running, n) for n in sizes] for _ in range(5)]
            lines.append(growth_line(title, sizes, [min(column) for column in zip(*times)], "ms", 1000))
    if os.path.exists("/proc/self/stat"):
        with bench.servers(), bench.forgiving("devserve"):
            lines.append(watched_files(bench))
    return lines


def growth_line(title: str, sizes: tuple[int, ...], costs: list[float], unit: str, factor: float) -> Line:
    power = exponent(sizes, costs)
    ends = [
        f"{size:,}: {number(cost * factor)} {unit}" for size, cost in ((sizes[0], costs[0]), (sizes[-1], costs[-1]))
    ]
    return Line(
        f"growth with {title}", f"n^{power:.2f}", "; ".join(ends), "≤ n^1.15: linear, and noise", power <= 1.15
    )


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    xs, ys = [math.log(n) for n in sizes], [math.log(max(c, 1e-6)) for c in costs]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def many_requests(running: Running, count: int) -> float:
    data = request("/")
    with connect(running.port) as sock:
        return timed(lambda: [exchange(sock, data) for _ in range(count)])


def many_connections(running: Running, count: int) -> float:
    """Return the seconds to open so many connections, ask on each, and ask again on each while all are open."""
    data = request("/")
    with contextlib.ExitStack() as held:
        return timed(
            lambda: [exchange(s, data) for s in [held.enter_context(connect(running.port)) for _ in range(count)] * 2]
        )


def upload_of(running: Running, size: int) -> float:
    body = b"x" * size
    return timed(lambda: ask(running.port, "/upload", body=body))


def crash_of(running: Running, depth: int) -> float:
    return timed(lambda: ask(running.port, f"/crash/{depth}"))


def watched_files(bench: Bench) -> Line:
    """The CPU time of watching projects of several sizes, all at the same time."""
    sizes, servers, watch = (375, 750, 1500), [], bench.rounds(10, 4)
    for size in sizes:
        folder = bench.new_project(f"watched-{size}")
        write_package(folder / "parts", size)
        (folder / "hello.py").write_text(project_of("parts", size), "utf-8")
        servers.append(bench.start("devserve", DEVSERVE + " --reload", folder))
    for running in servers:
        running.wait()
    time.sleep(3)
    before = [running.cpu() for running in servers]
    time.sleep(watch)
    used = [running.cpu_since(start) / watch for running, start in zip(servers, before)]
    return growth_line("watched files", sizes, used, "% of a core", 100)


ROWS: dict[str, tuple[Interface, Callable[[Bench], list[Line]]]] = {
    "hello": (WSGI, hello),
    "loads": (WSGI, loads),
    "file": (WSGI, download),
    "page": (WSGI, static),
    "debugger": (WSGI, debugger),
    "idle": (WSGI, idle),
    "start": (WSGI, start),
    "help": (WSGI, help_text),
    "save": (WSGI, save),
    "reloads": (WSGI, reloads),
    "rest": (WSGI, rest),
    "asyncio": (WSGI, no_asyncio),
    "growth": (WSGI, growth),
    "asgi-loads": (ASGI, loads),
    "asgi-save": (ASGI, save),
    "asgi-reloads": (ASGI, reloads),
    "asgi-rest": (ASGI, rest),
}

# =====================================================================================================================
# 8. The tables and the command line
# =====================================================================================================================


def heading(bench: Bench) -> str:
    """Say when, where and with what it was measured."""
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    python = (
        f"{platform.python_implementation()} {platform.python_version()}{'' if optimised else ' (built without PGO)'}"
    )
    load = "wrk" if shutil.which("wrk") else "the bench's own client"
    machine = f"{os.cpu_count()} cores, {cpu_name()}, {platform.system()} {platform.release()}"
    versions = ", ".join(f"{n} {bench.environment.versions[n]}" for n in PACKAGES if n in bench.environment.versions)
    date = datetime.date.today().isoformat()
    return (
        f"Measured on {date}: {machine}; {python}; load by {load}; medians of one interleaved run. Peers: {versions}."
    )


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def main_table(lines: list[Line]) -> str:
    rows = ["| measurement | devserve | compared with | target |", "|---|---|---|---|"]
    for x in lines:
        target = f"**missed:** {x.target}" if x.is_reached is False else x.target
        rows.append(f"| {x.measurement} | {x.devserve} | {x.comparison} | {target} |")
    return "\n".join(rows)


def table_of_all(bench: Bench, interface: Interface) -> str:
    """Return everything that was measured of every server: a row a measurement; what a server cannot do is n/a."""
    results = {measurement: medians for measurement, medians in bench.results[interface].items() if medians}
    names = [s.name for s in interface.servers if any(s.name in medians for medians in results.values())]
    rows = [f"| {interface.name} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for measurement, medians in results.items():
        cells = [number(medians.get(name, math.nan)) for name in names]
        rows.append(f"| {measurement} | " + " | ".join(cells) + " |")
    return "\n".join(rows) if results else ""


def tables(bench: Bench, lines: list[Line]) -> list[str]:
    """Return the tables and what else is to be told, without what is empty."""
    of_all = [table_of_all(bench, interface) for interface in (WSGI, ASGI)]
    notes = "\n".join(f"- {name}: {text}" for name, text in bench.notes.items())
    parts = [heading(bench), main_table(lines), "## Every server", *of_all, notes and f"n/a because of:\n\n{notes}"]
    return [part for part in parts if part]


REPORT = Path(__file__).resolve().with_name("BENCHMARK.md")
EXPLANATION = "## Missed targets"  # from here on the report is written by hand, and kept
INTRODUCTION = f"""\
# Benchmark

`python3 .ci/{Path(__file__).name}` makes an environment with the servers that people use instead, runs all of them in
turn, and writes these tables. Requests go over the loopback interface, with devserve's request log on."""


def write_report(bench: Bench, lines: list[Line]) -> None:
    """Replace the tables of the report; what was written by hand below them is kept."""
    old = REPORT.read_text("utf-8") if REPORT.exists() else ""
    explanation = old[old.find(EXPLANATION) :] if EXPLANATION in old else f"{EXPLANATION}\n"
    REPORT.write_text("\n\n".join([INTRODUCTION, *tables(bench, lines), explanation]), "utf-8")


def raise_descriptor_limit() -> None:
    """A thousand connections need a thousand descriptors here, and as many in the server, which inherits the limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer peers and rounds: under three minutes")
    parser.add_argument("--only", default="", metavar="ROWS", help="rows by the beginning of their names, with commas")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument(
        "--devserve", type=Path, default=Path(__file__).resolve().parent.parent / "devserve.py", metavar="PATH"
    )
    parser.add_argument("--before", type=Path, metavar="PATH", help="an earlier devserve.py to measure beside today's")
    given = parser.parse_args()
    if given.list:
        print("\n".join(ROWS))
        return 0
    if sys.platform == "win32":
        raise SystemExit("bench: process groups and signals are needed; run it on Linux or macOS")
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the servers are ended too
    bench = Bench(given.devserve.resolve(), given.before and given.before.resolve(), given.quick)
    chosen = [name for name in ROWS if not given.only or name.startswith(tuple(given.only.split(",")))]
    lines: list[Line] = []
    with bench.stack:
        for name in chosen:
            began = time.perf_counter()
            bench.interface, row = ROWS[name]
            with bench.forgiving("devserve"):
                lines += row(bench)
            tell(f"{name}: {time.perf_counter() - began:.0f} s")
    print(*tables(bench, lines), sep="\n\n")
    if not given.only and not given.quick:
        write_report(bench, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
