"""devserve: the development server for Python web applications, in one file.

    python devserve.py hello:app --debug        serve, reload on a save, explain exceptions
    python devserve.py --help                   every option
    python devserve.py devserve:demo --debug    an application to try it with

    import devserve                             or from your own code:
    devserve.run(app, debug=True)

It serves any WSGI or ASGI application over HTTP/1.1, reloads it in the same process without losing a connection, and
turns an exception into a page that finds the bug, with a console that only its owner can use.  Copy this file into a
project; it needs Python 3.9 and nothing else.

FOR LOCAL DEVELOPMENT ONLY.  The console runs code by design, and nothing here was made to face the Internet.


The house.  Machines that do not know each other, and one room where they meet.

     1  Configuration        Config and OPTIONS, each option once; environment files; DevserveError
     2  Foreign code         text is escaped, calls are bounded, a frame is own or a library's
     3  Terminal             Terminal: the only writer to standard error
     4  App loading          load_app: "pkg.mod:app" becomes a callable; frameworks
     5  Traceback            an exception becomes plain data: Report, ExceptionView, FrameView, _safe_repr
     6  Traceback pages      the data becomes HTML, text, Markdown or JSON
     7  Console              Console, and the CrashStore that keeps the last crashes with their frames
     8  Guard                Guard: who may use the console; decisions only
     9  Debugger             DebuggedApplication: the WSGI middleware
    10  HTTP server          DevServer, the connection, request and response, sockets
    11  ASGI and WebSockets  AsgiBridge: the same server for ASGI applications
    12  File watcher         Watcher: which files changed
    13  Restart              Launch, Handover, restart_process: the same pid runs the program anew
    14  Runner               run, make_server, _Runner, DebuggedASGI: where all of these meet
    15  Command line         options become a Config; main; the demo
    16  Paper                templates, STYLE and SCRIPT: pure text

A room names only rooms with a smaller number, and the paper.  5 to 9 are the debugger, 10 and 11 the server, 12 and 13
the reloader; each can be lifted out, with 1 to 3, and used alone.  Each room begins with a banner: what it does, what
it may know, how to change it where that is not plain, what always holds in it (its invariants), which of its names
others use (its doors), and where to start reading.

Words.  "The person" is whoever has started devserve and reads its terminal; "the client" is what sends a request.  A
"crash" is an exception that the application has let out of a request, together with what is kept of it; a "report" is
what has been read of a crash, as plain data.  A file or a frame is "own", or the application's, if it belongs to the
project and to no library.  A "reload" is what a save causes; it replaces the "process", and the one that was replaced,
which had the same pid, is "the process before".

Seven stories.  Each names functions in the order in which they run; a search finds every one.

A start:    main reads the command, and serve_command calls Launch.capture, which notes how the program was started and
            fetches what the process before has left: nothing, the first time.  configure makes the Config.  A _Runner
            opens the socket before the application is imported, so that a used port is reported at once and browsers
            wait, and makes the DevServer, the Guard and the Watcher.  _Runner.serve puts the signal handlers in place
            (_Signals.take) and starts the Watcher; _Runner.load calls load_app.  _Runner.install puts a
            DebuggedApplication around the application, and from _Runner._begin_serving on DevServer.serve_forever
            accepts connections.  A call of devserve.run in code makes the same _Runner, by way of _start.
A request:  DevServer.serve_forever gives each connection to a thread of its own, in which _Connection.serve reads a
            request (_parse_head, _Body) and _Response.run calls the application: DebuggedApplication.__call__, which
            makes an _Exchange, and through _Exchange.call the user's.  _Response.write sends each piece before it
            asks for the next; _Response.log writes the line.  The thread goes back to _Connection._await_request.
A crash:    _Exchange.guarded catches what the application raises.  _Exchange.keep prints the traceback
            (Terminal.crash), then has the crash stored and read (CrashStore.add, read_report).  While nothing has been
            sent, _Exchange.start_error_page lets the page be the response (write_page, write_markdown and others).
            Once something has been sent, _Exchange.end_stream keeps the crash without printing it, and the exception
            goes on to _Response.fail, which prints it and cuts the connection, so that the client cannot take half an
            answer for a whole one.
A save:     Watcher.run finds the file changed.  Watcher._settle holds new requests (DevServer.hold) until the writing
            ends; Watcher._deliver compiles what changed, and calls _Runner.reload.  DevServer.close_gate waits for the
            requests that run and returns the connections that wait; AsgiBridge.stop shuts an ASGI application down, or
            _Runner._await_jobs waits for what a WSGI application has given to a pool of threads.  restart_process runs
            the exit handlers; _exec leaves listener, connections and notes with another process (_start_store) and
            calls os.execve.  The new process starts as above: its Launch.capture fetches what was left, and
            DevServer.adopt serves the connections on.  Meanwhile new clients wait in the kernel's queue at the
            listener, which the old process, the store and the new process hold open in turn.  A signal that comes
            before os.execve ends the process (_Runner._give_way); one that comes afterwards waits until the new
            process has its handlers (Launch.release_signals), or ends it under another program (_hold_signals).
A bad save: when a changed file does not compile, _Runner.show_broken prints the error, and a BrokenApp answers with it
            until the next save.  _Runner.load does the same when the import fails after a reload.
ASGI:       AsgiBridge.__call__ stands where the user's WSGI application would.  In the connection's thread
            _HttpRequest.first_message posts _HttpRequest.begin to the event loop in the main thread, where
            _HttpRequest.run awaits the application, and waits in next_message for what the application passes to
            _HttpRequest.send.  An exception comes back the same way (_HttpRequest.finish) and is raised in the
            connection's thread, where the story of a crash goes on.
A console:  the page posts code to /__devserve__/eval.  DebuggedApplication.__call__ makes a _DebuggerEndpoint, whose
            reply asks Guard.refuses_running before anything else, and calls its method eval.  CrashStore.console finds
            the frame's Console, or makes it; Console.run has its thread (_ConsoleThread) run Console._evaluate, and
            returns what it printed.
"""

from __future__ import annotations  # devserve needs Python 3.9 or later; this line is what a 3.6 shows

import _socket
import atexit
import binascii
import builtins
import codecs
import contextlib
import errno
import functools
import gc
import io
import itertools
import keyword
import marshal
import operator
import os
import re
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    TracebackType,
    WrapperDescriptorType,
)
from wsgiref.handlers import format_date_time
from wsgiref.util import FileWrapper, is_hop_by_hop

# A copied file has no installer that checks the version: 3.7 and 3.8 reach this line, and 2.7 prints it in its error.
if sys.version_info < (3, 9):  # noqa: UP036
    raise SystemExit(f"devserve: error: Python 3.9 or later is needed; this is {sys.version.split()[0]}")

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DebuggedASGI",
    "DebuggedApplication",
    "DevServer",
    "DevserveError",
    "load_app",
    "make_server",
    "run",
]

# Patterns that not every request needs are plain texts, which `re` compiles at their first use and keeps: to compile
# all of them would be 8 of the 42 ms in which a start, and each reload, imports this file.
TYPE_CHECKING = False  # type checkers take it for True; importing `typing` and using it would be 12 of these 42 ms

if TYPE_CHECKING:
    from typing import Any, Callable, NamedTuple, NoReturn, Optional, TextIO, TypeVar, Union

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication

    Environ = dict[str, Any]  # the words of PEP 3333, which every room may use
else:

    class _NamedTupleMeta(type):
        def __new__(cls, name, bases, namespace):
            fields = namespace["__annotations__"]
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            return type(name, (namedtuple(name, fields, defaults=defaults),), {"__slots__": (), **namespace})

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})  # as much of `typing.NamedTuple` as is used here


# =====================================================================================================================
# 1. Configuration
#
# Each option is written once, as a row of `Config`.  From these rows come the parser and its help, the DEVSERVE_*
# variables, the variables of Flask that are read after them, and the keywords of `run` and `make_server`.  `configure`
# makes a `Config` of the values that were given, of the environment, and of environment files.  The room knows nothing
# but the standard library.
#
# How to change: to add an option, write its row in `Config`, read the field where it has its effect, and name it in
# the README and in the docstring of `run` (tests compare both with the rows).  An option without effect on
# `make_server` is marked `run_only`; any other belongs into that docstring too.
#
# Invariants: a value that was given wins over a DEVSERVE_* variable, that over Flask's variable, and that over the
# default.  An empty variable counts as not set.  A file sets only variables that the environment does not have.
#
# Doors: DevserveError, OPTIONS, Config, is_negative, configure, config_of_keywords, values_of_keywords,
# check_keywords, split_host, add_address, own_command, env_files, env_values, paths_upwards, GLOB_SET, ranges_in.
#
# Read first: _Option.read, Config, configure, _values_of_environment, _env_entries.
# =====================================================================================================================

GLOB_SET = r"\[!?\]?[^]]*\]"  # characters in brackets, of which a glob matches one, or with "!" any other
_YES = frozenset({"1", "true", "t", "yes", "y", "on"})
_NO = frozenset({"0", "false", "f", "no", "n", "off"})


class DevserveError(Exception):
    """A mistake that the person can mend; its text is one line that names the wrong value and the remedy.

    The command line and `run` print it and exit with status 2; `make_server`, `load_app` and the middleware raise it.
    """


class _Option(NamedTuple):
    """A row of the table: all that is known of one option."""

    field: str  # its name in `Config`, and as a keyword
    default: Any  # by its type a text is read: a bool as yes or no, an int as a port, a tuple as a list
    flags: tuple[str, ...]  # on the command line; each with two hyphens also makes a DEVSERVE_* variable
    topic: str  # the heading in --help
    help: str
    metavar: Optional[str] = None
    separator: str = os.pathsep  # between the parts of a list that is given as one text
    flask: str = ""  # the variables that Flask reads for the same option, the strongest first
    others: str = ""  # what other servers call it, for the remedy when somebody uses that name
    run_only: bool = False  # has no effect on `make_server`, whose server neither reloads nor reads files

    def variables(self) -> Iterator[tuple[str, str]]:
        """Yield the variables that may set it, each with its flag, the strongest first."""
        for flag in self.flags:
            if flag.startswith("--"):
                yield f"DEVSERVE_{flag[2:].upper().replace('-', '_')}", flag
        for variable in self.flask.split():
            yield variable, ""

    def read(self, text: str, shown: str = "") -> Any:
        """Return the value of a text.  Raises DevserveError, which quotes `shown` or else the flag and the text."""
        shown = shown or f"{self.flags[-1]} {text}"
        if not isinstance(self.default, str):
            text = text.strip()  # in Windows, `set FLASK_DEBUG=1 && flask run` leaves a blank behind the 1
        if isinstance(self.default, bool):
            if text.lower() not in _YES | _NO:
                raise DevserveError(f"{shown}: not a yes or no; use 1 or 0")
            return text.lower() in _YES
        if isinstance(self.default, int):
            if not _is_port(text):
                port = split_host(text).get("port", "")
                remedy = f"write {port}" if _is_port(port) else "choose one from 1 to 65535, or 0 for a free one"
                raise DevserveError(f"{shown}: not a port; {remedy}")
            return int(text)
        if isinstance(self.default, tuple):
            return tuple(part.strip() for part in text.split(self.separator) if part.strip())
        return text

    def value(self, value: Any) -> Any:
        """Return the value of a keyword, which may be a text too.  Raises TypeError and DevserveError."""
        if isinstance(value, str):
            return self.read(value, f"{self.field}={value!r}")
        try:
            if isinstance(self.default, tuple):
                return tuple(map(os.fspath, value))
            return os.fspath(value) if isinstance(self.default, str) else type(self.default)(operator.index(value))
        except TypeError:
            raise TypeError(f"{self.field}={value!r:.80}: not a {type(self.default).__name__}") from None


OPTIONS: dict[str, _Option] = {}  # by field; complete when `Config` is


def _option(default: Any, flags: str, *row: Any, field: str = "", **rest: Any) -> Any:
    """Add a row to OPTIONS; return the default.  The field's name is `field`, or else that of the first long flag."""
    words = tuple(flags.split())
    field = field or next(flag for flag in words if flag.startswith("--"))[2:].replace("-", "_")
    OPTIONS[field] = _Option(field, default, words, *row, **rest)
    return default


class Config(NamedTuple):
    """The value of every option of one run.  It cannot be changed, so any thread may read it.

        config = devserve.Config(app="hello:app", port=8000, reload=True)

    A field's default is the first value of its row.  `reload` and `debugger` follow `debug` in what `configure`
    makes; in a `Config` that is made directly, as above, each field stands for itself and nothing is checked.
    """

    app: str = _option(
        "", "-A --app", "What to serve", "the same as APP", "APP", flask="FLASK_APP", others="--wsgi-app --application"
    )
    host: str = _option(  # loopback, since the debugger runs code by design
        "127.0.0.1", "-H --host", "Where to serve it", "address, name, or unix:PATH (default: 127.0.0.1)", "HOST",
        flask="FLASK_RUN_HOST", others="-b --bind hostname --listen --addr",
    )  # fmt: skip
    port: int = _option(  # Flask's, so that bookmarks keep working
        5000, "-p --port", "Where to serve it", "0 picks a free one (default: 5000)", "PORT",
        flask="FLASK_RUN_PORT", others="--http-port",
    )  # fmt: skip
    debug: bool = _option(
        False, "-d --debug --no-debug", "Debugging",
        "show exceptions as pages with a console, and reload when a file is saved",
        flask="FLASK_RUN_DEBUG FLASK_DEBUG",
    )  # fmt: skip
    reload: bool = _option(
        False, "--reload --no-reload", "Reloading", "reload when a file is saved (as --debug)",
        flask="FLASK_RUN_RELOAD", others="use_reloader reloader --auto-reload --noreload", run_only=True,
    )  # fmt: skip
    debugger: bool = _option(
        False, "--debugger --no-debugger", "Debugging", "the pages and the console alone (as --debug)",
        flask="FLASK_RUN_DEBUGGER", others="use_debugger use_evalex evalex",
    )  # fmt: skip
    env_file: str = _option(
        "", "-e --env-file", "What to serve",
        "set environment variables from FILE, and from .env and .flaskenv, unless they are set", "FILE",
        flask="FLASK_ENV_FILE", run_only=True,
    )  # fmt: skip
    threads: bool = _option(
        True, "--with-threads --without-threads", "What to serve",
        "serve requests at the same time (the default), or one after the other",
        field="threads", flask="FLASK_RUN_WITH_THREADS", others="threaded --nothreading",
    )  # fmt: skip
    open: bool = _option(
        False, "--open", "Where to serve it", "open the browser when the server is ready",
        others="open_browser --open-browser", run_only=True,
    )  # fmt: skip
    quiet: bool = _option(False, "-q --quiet", "Where to serve it", "no request log", others="--no-access-log")
    live: bool = _option(
        False, "--live --no-live", "Reloading", "browsers show the new page by themselves after a save",
        others="livereload --livereload", run_only=True,
    )  # fmt: skip
    extra_files: tuple[str, ...] = _option(
        (), "--extra-files", "Reloading",
        f"also watch these files, folders and globs; may be repeated, or separated by {os.pathsep!r}", "PATH",
        flask="FLASK_RUN_EXTRA_FILES", run_only=True,
        others="--reload-extra-file --reload-dir --reload-include --watch",
    )  # fmt: skip
    exclude_patterns: tuple[str, ...] = _option(
        (), "--exclude-patterns", "Reloading", "never watch these", "GLOB",
        flask="FLASK_RUN_EXCLUDE_PATTERNS", others="--reload-exclude", run_only=True,
    )  # fmt: skip
    pin: str = _option(
        "", "--pin", "Debugging",
        "the console's PIN instead of a random one, or off; other users of this machine can read command lines, "
        "so better set DEVSERVE_PIN", "PIN",
    )  # fmt: skip
    trusted_hosts: tuple[str, ...] = _option(
        (), "--trusted-host", "Debugging",
        "a host name, besides localhost, whose pages may use the console; may be repeated", "HOST",
        field="trusted_hosts", separator=",",
    )  # fmt: skip
    editor: str = _option(
        "", "--editor", "Debugging",
        "what opens a file from the terminal's and the page's links, such as vscode, pycharm or a URL with {path} "
        "and {line}", "EDITOR",
    )  # fmt: skip
    path_map: tuple[str, ...] = _option(
        (), "--path-map", "Debugging",
        "where the editor has the folder that is HERE for the server; may be repeated", "HERE=THERE",
    )  # fmt: skip
    cert: str = _option(
        "", "--cert", "HTTPS",
        "serve HTTPS with this certificate (PEM); adhoc makes one for this machine, and keeps it", "FILE",
        flask="FLASK_RUN_CERT", others="ssl_context --certfile --ssl-certfile --ssl-context",
    )  # fmt: skip
    key: str = _option(
        "", "--key", "HTTPS", "the certificate's key, when it is in another file", "FILE",
        flask="FLASK_RUN_KEY", others="--keyfile --ssl-keyfile",
    )  # fmt: skip


def is_negative(flag: str) -> bool:
    """Return whether a flag turns its option off."""
    return flag.startswith(("--no-", "--without-"))


def configure(given: Mapping[str, Any], warn: Callable[[str], None]) -> Config:
    """Return the configuration: the values in `given`, then those of the environment and its files, then defaults.

    The files are read first, since they may set DEVSERVE_* variables.  `warn` is called with a line about each mistake
    that does not prevent serving; any other raises DevserveError.
    """
    env_file = given.get("env_file") or _values_of_environment(["env_file"]).get("env_file", "")
    for warning in _read_env_files(env_file):
        warn(warning)
    values = {**_values_of_environment(name for name in OPTIONS if name not in given), **given}
    if "live" not in given and not values.get("reload", values.get("debug")):
        values["live"] = False  # DEVSERVE_LIVE may be set for all projects, and is no mistake in this command
    config = _config_of_values(values)
    for pattern in (*config.extra_files, *config.exclude_patterns):
        for low, high in itertools.chain(*map(ranges_in, re.findall(GLOB_SET, pattern))):
            if low > high:
                warn(f"the pattern {pattern}: {low}-{high} is no range, and matches nothing")
    return config


def ranges_in(glob_set: str) -> list[tuple[str, str]]:
    """Return the ranges of a set in a glob by their ends: of `[!a-z_]` ("a", "z") and ("_", "_")."""
    inside = re.sub("^!", "", glob_set[1:-1])
    return [(low or single, high or single) for low, high, single in re.findall("(?s)(.)-(.)|(.)", inside)]


def config_of_keywords(**options: Any) -> Config:
    """Return the configuration of keywords alone; the environment is not read.  Raises DevserveError."""
    return _config_of_values(values_of_keywords(options))


def values_of_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of keywords; None counts as not given.  Raises TypeError and DevserveError."""
    values = {name: OPTIONS[name].value(value) for name, value in options.items() if value is not None}
    return _with_address(values)


def check_keywords(options: Iterable[str], *, run: bool) -> None:
    """Raise TypeError for an unknown keyword and, unless it is for `run`, for one that only `run` has a use for."""
    known = [name for name, option in OPTIONS.items() if name != "app" and (run or not option.run_only)]
    for name in options:
        if name not in known:
            instead = [option.field for option in OPTIONS.values() if name in option.others.split()]
            if name in OPTIONS:
                raise TypeError(f"{name} has no effect on make_server; it is an option of run")
            hint = f"it is called {instead[0]} here" if instead else f"there are {', '.join(known)}"
            raise TypeError(f"devserve has no option {name!r}; {hint}")


def _config_of_values(values: Mapping[str, Any]) -> Config:
    """Return the configuration of these values and defaults.  Raises DevserveError for values that exclude another."""
    debug = bool(values.get("debug"))
    config = Config(**{"reload": debug, "debugger": debug, **values})
    if config.key and not config.cert:
        raise DevserveError(f"the key {config.key} needs its certificate too: add --cert FILE")
    if config.key and config.cert.lower() == "adhoc":
        raise DevserveError(f"the key {config.key} has no effect beside --cert adhoc, which makes its own; name one")
    if config.live and not config.reload:
        raise DevserveError("--live shows what a reload has changed; add --debug or --reload")
    for pair in config.path_map:
        if not re.fullmatch(r"[^=]+=[^=]+", pair):
            raise DevserveError(f"the path map {pair!r} has not the form HERE=THERE, as in /app=/home/me/project")
    for host in (config.host, *config.trusted_hosts):
        if "/" in host and not host.startswith("unix:"):
            name = host.rpartition("//")[2].partition("/")[0]
            https = ", and add --cert adhoc" if host == config.host and host.startswith("https:") else ""
            raise DevserveError(f"the host {host!r} is a URL; name {name} alone{https}")
    for host in config.trusted_hosts:
        if re.match(r"[.*]", host):  # as Werkzeug and Django take it for all names below; it would match none here
            raise DevserveError(f"the trusted host {host!r} is a pattern; name each host, as in dev{host.lstrip('*')}")
    return config


def _values_of_environment(names: Iterable[str]) -> dict[str, Any]:
    """Return the values that variables give to these options.  Raises DevserveError."""
    values: dict[str, Any] = {}
    for option in map(OPTIONS.__getitem__, names):
        for name, flag in option.variables():
            text = os.environ.get(name, "")
            if text and option.field not in values:
                value = option.read(text, f"{name}={text}")
                if not is_negative(flag):
                    values[option.field] = value
                elif value:  # DEVSERVE_NO_DEBUG=0 leaves debug as it is, and does not turn it on
                    values[option.field] = False
    return _with_address(values)


def _is_port(text: str) -> bool:
    """Return whether a text is the number of a port."""
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536


def split_host(text: str) -> dict[str, str]:
    """Return the host and the port that stand in one text, as 0.0.0.0:8000, [::1]:8000, :80 or 8000; else nothing."""
    if re.fullmatch("[0-9]{2,5}", text):  # no host, as 0 is
        return {"port": text}
    match = re.fullmatch(r"(?!unix:)(?:http://)?(?:\[([^\]]+)\]|([^:\[\]/]*)):([0-9]+)/?", text)
    if match is None:
        return {}
    host = match[1] or match[2]
    return {"host": host, "port": match[3]} if host else {"port": match[3]}


def add_address(values: Mapping[str, Any], address: Mapping[str, str], shown: str) -> dict[str, Any]:
    """Return the values with what `split_host` has found in `shown`.  Raises DevserveError for a contradiction."""
    added = {name: OPTIONS[name].read(text, shown) for name, text in address.items()}
    for name, value in added.items():
        if values.get(name, value) != value:
            raise DevserveError(f"{shown} names another {name} than {values[name]}; name one")
    return {**values, **added}


def _with_address(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, a host such as 0.0.0.0:8000 divided into host and port.  Raises DevserveError."""
    host = values.get("host", "")
    address = split_host(host)
    if not address:
        return values
    return add_address({**values, "host": address.get("host", Config().host)}, address, f"the host {host}")


def own_command() -> list[str]:
    """Return the words that start this program, as the person may have typed them."""
    python = os.path.basename(sys.executable) or "python"
    name = sys.argv[0] if sys.argv else ""
    if getattr(sys.modules.get("__main__"), "__spec__", None) and os.path.basename(name) == "devserve.py":
        return [python, "-m", "devserve"]
    return [python, name] if name.endswith(".py") else [os.path.basename(name) or "devserve"]


# -- environment files


def env_files(env_file: str = "") -> list[str]:
    """Return the absolute paths of the files that `_read_env_files` reads when they are there, the strongest first."""
    found = [os.path.abspath(env_file)] if env_file else []
    skip = os.environ.get("FLASK_SKIP_DOTENV", "").lower()
    if not skip or skip in _NO:
        for name in (".env", ".flaskenv"):
            found += paths_upwards(name)
    return found


def paths_upwards(name: str) -> Iterator[str]:
    """Yield the paths where python-dotenv looks for a file, from the current folder upwards to the first where it is.

    A folder above in which everybody may write, as in /tmp, is passed over, since anybody may have put the file there.
    On Windows no folder is passed over, as the mode does not tell who may write.
    """
    here = above = os.getcwd()
    folder = ""
    while folder != above:
        folder, above = above, os.path.dirname(above)
        path = os.path.join(folder, name)
        is_public = sys.platform != "win32" and os.stat(folder).st_mode & stat.S_IWOTH
        if folder == here or not is_public:
            yield path
            if _is_env_file(path):
                return


def _read_env_files(env_file: str = "") -> list[str]:
    """Set in `os.environ` what `env_file`, .env and .flaskenv say, without overriding what is set already.

    Returns a warning for each line and each file that cannot be read.  Raises DevserveError for a missing `env_file`.
    """
    if env_file and not _is_env_file(env_file):
        raise DevserveError(f"no file {env_file!r} for --env-file; check the path")
    return [warning for path in filter(_is_env_file, env_files(env_file)) for warning in _read_env_file(path)]


def _is_env_file(path: str) -> bool:
    """Return whether it is a file, or as of 1Password a pipe; .env may well be a virtual environment."""
    return os.path.isfile(path) or (os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode))


def _read_env_file(path: str) -> list[str]:
    """Set the variables of one file, once all of it is read; return a warning for each bad line."""
    values, warnings = env_values(path)
    for key, value in values.items():
        try:
            os.environ.setdefault(key, value)
        except UnicodeEncodeError:
            warnings.append(f"{path}, {key} is left out: this locale cannot hold it; set PYTHONUTF8=1")
    return warnings


def env_values(path: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables of one file, of several entries for a name the last, and a warning for each bad line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path} is left out: {getattr(error, 'strerror', None) or 'it is not UTF-8; save it so'}"]
    warnings = []
    values: dict[str, Optional[str]] = {}
    for position, key, value in _env_entries(text):
        if not key or "=" in key or "\0" in f"{key}{value}":  # the operating system's environment cannot hold these
            lineno = text.count("\n", 0, position) + 1
            warnings.append(f"{path}, line {lineno} is left out: it is not KEY=value")
        else:
            values[key] = value and _expand_variables(value, {**values, **os.environ})
    return {key: value for key, value in values.items() if value is not None}, warnings


_BLANK = r"[^\S\n]"  # white space within a line
# An entry by the grammar of python-dotenv 1.2: a bare value ends at " #", and a quoted one may span lines.
_ENV_ENTRY = rf"""(?sx)\s*(?P<entry>(?:export{_BLANK}+(?=\S))?
    (?:(?:'(?P<quoted>[^']+)'|(?P<key>[^=\#\s'][^=\#\s]*)){_BLANK}*
        (?:={_BLANK}*(?:
            '(?P<single>(?:\\.|[^'\\])*)'|"(?P<double>(?:\\.|[^"\\])*)"|(?P<bare>(?!['"])(?:(?!(?<=\s)\#)[^\n])*)
        )?)?
    )?
    (?:(?:{_BLANK}*\#[^\n]*)?{_BLANK}*(?:\n|\Z)|(?P<invalid>[^\n]+)))"""
_ENV_ESCAPES = {"single": r"\\([\\'])", "double": r"\\([\\'\"abfnrtv])", "bare": r"\s+\Z()"}  # what is replaced there
_ESCAPED = dict(zip("abfnrtv", "\a\b\f\n\r\t\v"))


def _env_entries(text: str) -> Iterator[tuple[int, str, Optional[str]]]:
    """Yield (position, key, value) of each entry: the key "" if it is invalid, the value None if there is no "="."""
    for match in re.finditer(_ENV_ENTRY, text):
        key = match["quoted"] or match["key"] or ""
        value: Optional[str] = None
        for kind, escape in _ENV_ESCAPES.items():
            if match[kind] is not None:
                value = re.sub(escape, lambda found: _ESCAPED.get(found[1], found[1]), match[kind])
        if key or match["invalid"]:
            yield match.start("entry"), "" if match["invalid"] else key, value


def _expand_variables(value: str, environ: Mapping[str, Optional[str]]) -> str:
    """Return `value` with each `${NAME}` and `${NAME:-default}` replaced."""
    pattern = r"\$\{([^}:]*)(?::-([^}]*))?\}"
    return re.sub(pattern, lambda match: environ.get(match[1], match[2]) or "", value)


# =====================================================================================================================
# 2. Foreign code
#
# "Foreign" is what belongs to the application: its text may hold control characters that deceive the reader, and its
# code may raise anything, hang, or never end.  This room makes both harmless for all other rooms.  It escapes text,
# calls code with a deadline, tells the application's own frames from those of libraries, and reads attributes without
# running code.  It knows nothing but the standard library.
#
# `call_each_bounded` makes calls with a deadline: it starts the thread of a `ForeignCalls` and waits for it.  When the
# time is up, it raises KeyboardInterrupt in that thread (`interrupt_thread`) and waits no longer.  Python cannot kill
# a thread, so one that hangs in C code stays, and counts against `_STUCK_LIMIT`.
#
# Invariants: whoever may meet an exception of any kind calls `call_safely`; the few other places that catch every kind
# raise it again, hand it on or report it, and say so.  `call_bounded` returns no result that took longer than was
# allowed (unless the system has no thread left), and no more than `_STUCK_LIMIT` of its threads live at once.  No
# function in the section "attributes" runs code of the application's.
#
# Doors: NAME_LIMIT, CODE_TYPES, PLAIN_TYPES, MISSING, Outcome, escape_controls, escape_unprintable, shown_text,
# type_name, TooLate, call_safely, call_bounded, call_each_bounded, ForeignCalls, interrupt_thread, enlarge_stacks,
# is_library, is_app_file, is_app_code, outer_frames, thread_position, app_position, is_below, short_path,
# application_traceback, linked_exceptions, group_members, has_plain_text, traceback_text, raw_slot, own_dict,
# static_attributes, static_attribute, locals_of, SOCKET_KEY, is_taken_over, broken_request, nobody_listens,
# shorten_broken_requests, PRESERVE_CONTEXT, ON_EXCEPTION, SENT_AGAIN, REQUEST_HEAD, HANDED_OVER, hand_over,
# BREAKPOINTS, is_debugged, is_main_thread, has_green_threads, native_threading, native_sleep, tell_pydevd.
#
# Read first: call_safely, call_each_bounded, is_app_file, static_attribute.
# =====================================================================================================================

NAME_LIMIT = 200  # characters of any name: a type's, a function's, a variable's
_MESSAGES_SECONDS = 0.3  # for `__str__` of an exception and its causes, which may hang as any code may
_FORMAT_SECONDS = 2.0  # to format a traceback once those have not hung: a thousand frames on a slow machine
_STUCK_LIMIT = 16  # threads for foreign code at once; more than this hang only when something is badly wrong
_STACK_SIZE = 8 * 1024**2  # of a thread, as glibc has it by default
_FOREIGN_THREAD = "devserve foreign code"  # the name of a thread for it
_CALL_THREADS = 3  # of one `call_each_bounded`: each goes on after the call in which the one before it hung
_PROMPT = r"<(stdin|i?python-input-.*)>|.*[\\/]ipykernel_\d+[\\/]\d+\.py"  # the "file" of code in a REPL, a notebook
# Modules in which a thread stands at a prompt, or waits for the client that shows it one
BREAKPOINTS = r"(bdb|\w*pdb|pudb|debugpy|celery\.contrib\.rdb)(\.|$)"
_DEBUGGERS = rf"{BREAKPOINTS}|(code|IPython|ptpython|bpython|curtsies)(\.|$)"
# Functions of theirs that run what is typed; any other may have called the application, as `pdb.runcall` does.
_PROMPT_LOOPS = {"interaction", "interact", "runcode", "run_code", "event_loop", "run_and_show_expression"}
_STDLIB = os.path.dirname(os.__file__)
_IMPORTLIB = os.path.join(_STDLIB, "importlib", "__init__.py")  # where import_module is
CODE_TYPES = (  # a value of these shows nothing but its name
    ModuleType, FunctionType, BuiltinFunctionType, MethodType, MethodDescriptorType, WrapperDescriptorType,
    staticmethod, classmethod, type,
)  # fmt: skip
PLAIN_TYPES = (str, bytes, int, float, complex, bool, type(None))  # whose repr runs nobody's code
MISSING: Any = object()  # stands for a value that is not there, where None may be one

if TYPE_CHECKING:
    Outcome = TypeVar("Outcome")
    _Called = tuple[Optional[Outcome], Optional[BaseException]]  # what a call returned, or what it raised


# -- text


def escape_controls(text: str) -> str:
    """Return `text` with each character that could drive a terminal escaped; UTF-8 that came as Latin-1 is mended."""
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("latin-1").decode("utf-8", "backslashreplace")
    return escape_unprintable(text)


def escape_unprintable(text: str, but: str = "") -> str:
    """Return `text` with each character that is not printable escaped, except those in `but`.

    Besides control characters those are lone surrogates, which cannot be encoded, and marks that reverse the direction
    of what follows, which deceive the eye.
    """
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii") for c in text)


def shown_text(text: str, limit: int) -> str:
    """Return `text` cut to `limit` characters, and what cannot be shown escaped; tabs and line ends are kept."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text) - limit:,} more characters)"
    return escape_unprintable(text, "\n\t")


def type_name(kind: type) -> str:
    """Return the name of a type, qualified by its module unless builtin, past any metaclass that says otherwise."""
    module, name = (type.__dict__[word].__get__(kind) for word in ("__module__", "__qualname__"))
    prefix = "" if module in ("builtins", "__main__") or not isinstance(module, str) else module + "."
    return shown_text(f"{prefix}{name}", NAME_LIMIT)


# -- calls


class TooLate(Exception):
    """A call did not end in its time, and was left behind; the message says how long it took."""


def call_safely(job: Callable[[], Outcome]) -> _Called[Outcome]:
    """Call foreign code; return (its result, None), or (None, what it raised), whatever exception that is."""
    try:
        return job(), None
    except BaseException as error:  # noqa: BLE001 - foreign code may raise SystemExit and worse
        return None, error


def call_bounded(job: Callable[[], Outcome], seconds: float, context: Optional[Context] = None) -> _Called[Outcome]:
    """Call foreign code as `call_safely` does; after `seconds` interrupt it and return (None, a TooLate)."""
    return call_each_bounded({"": job}, seconds, context)[""]


def call_each_bounded(
    jobs: Mapping[str, Callable[[], Outcome]], seconds: float, context: Optional[Context] = None
) -> dict[str, _Called[Outcome]]:
    """Call several pieces of foreign code one after another; return what `call_bounded` returns for each.

    They run in a copy of `context` (the caller's unless given), all in one thread, and have `seconds` together.  When
    half of the time has gone, the call that has not returned is abandoned, and another thread makes the other calls in
    half of the time that is left, up to `_CALL_THREADS` threads.
    """
    outcomes: dict[str, _Called[Outcome]] = {}
    until = time.monotonic() + seconds
    for _ in range(_CALL_THREADS):
        todo = {name: job for name, job in jobs.items() if name not in outcomes}
        if not todo:
            break
        if sum(thread.name == _FOREIGN_THREAD for thread in threading.enumerate()) >= _STUCK_LIMIT:
            return {name: outcomes.get(name, (None, TooLate(f"{_STUCK_LIMIT} others still hang"))) for name in jobs}
        calls = ForeignCalls(todo, None if context is None else context.copy())
        left = max(0.001, until - time.monotonic())
        share = left if len(todo) == 1 else left / 2
        calls.begin(share)
        calls.abandoned = True
        outcomes.update(calls.outcomes)
        if calls.thread.is_alive():
            hanging = next((name for name in todo if name not in outcomes), "")
            outcomes.setdefault(hanging, (None, TooLate(f"it takes longer than {share:.2g} s")))
            interrupt_thread(calls.thread.ident)
    return {name: outcomes.get(name, (None, TooLate("too many others take too long"))) for name in jobs}


class ForeignCalls:
    """Calls of foreign code in a thread of their own, so that what hangs there can be interrupted and left behind.

    They run in a copy of their maker's context, since a framework's proxies (Flask's `request`) stand for what the
    context holds.  The maker calls `begin`, which waits, and then reads `outcomes`, to which only the thread itself
    adds.  It is no subclass of Thread: gevent puts another class in its place, and a thread of a class that was made
    before has no end under Python before 3.13.
    """

    def __init__(self, jobs: Mapping[str, Callable[[], Any]], context: Optional[Context] = None) -> None:
        self.thread = threading.Thread(target=self.run, name=_FOREIGN_THREAD, daemon=True)
        self.jobs = jobs
        self.context = copy_context() if context is None else context  # an empty one is false
        self.outcomes: dict[str, _Called[Any]] = {}
        self.abandoned = False  # nobody waits any more: begin no further call

    def begin(self, seconds: float) -> None:
        """Start, and wait so many seconds for the end.  Where the system has no thread left, call in this one."""
        try:
            self.thread.start()
        except RuntimeError:  # or the interpreter is at its end
            self.run()
        else:
            self.thread.join(seconds)

    def run(self) -> None:
        """Make the calls; whatever one of them raises is its outcome."""
        try:
            for name, job in self.jobs.items():
                if not self.abandoned:
                    self.outcomes[name] = outcome = self.context.run(call_safely, job)
                    if self.abandoned:  # an interruption's traceback would keep what the call has made
                        _clear_frames(outcome[1])
        except KeyboardInterrupt:  # from `interrupt_thread`, a moment after the call that it was meant for had ended
            pass


def _clear_frames(error: Optional[BaseException]) -> None:
    """Let go of the values in the frames of an exception, which else stay until cycles are collected."""
    import traceback

    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def interrupt_thread(ident: Optional[int]) -> bool:
    """Raise KeyboardInterrupt in a thread as soon as it runs Python code; return whether there is a way to do so."""
    try:
        import ctypes

        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    except (ImportError, AttributeError):  # PyPy, or a Python built without ctypes
        return False
    return bool(raise_in(ctypes.c_ulong(ident or 0), ctypes.py_object(KeyboardInterrupt)) == 1)


def enlarge_stacks() -> None:
    """Give threads that start from now on the stack of `_STACK_SIZE` that they have nearly everywhere.

    musl (Alpine Linux) gives them 128 kB, where a view that calls deeply ends the process.
    """
    try:
        small = sys.platform == "linux" and not os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError, AttributeError):  # musl knows the name but no value; other systems lack the name
        small = True
    chosen = threading.stack_size(_STACK_SIZE if small else 0)
    if chosen:  # by the application, or here before
        threading.stack_size(chosen)


# -- whose a frame is


@functools.lru_cache(maxsize=1024)  # what a project loads lies in fewer folders
def is_library(path: str, cwd: str) -> bool:
    """Return whether `path` belongs to the standard library, to an installed package or to a virtual environment.

    `cwd` is the working directory.  Whoever works inside of such a folder works on his own code: that is no library.
    """
    for root in (_STDLIB, sys.prefix, sys.base_prefix):
        if is_below(path, root) and not is_below(cwd, root):
            return True
    inside = path[len(cwd) :] if is_below(path, cwd) else path
    return not {"site-packages", "dist-packages"}.isdisjoint(re.split(r"[\\/]", inside))


def is_app_file(filename: str) -> bool:
    """Return whether `filename`, as a code object has it, is a file of the project.

    Such a file exists below the working directory or another folder of the project on sys.path, and belongs to no
    library, not even to one that was copied into the project.  Generated code, or code whose source is missing, is
    not the application's; only what was typed at a prompt is, without a file.
    """
    if filename[:1] == "<" or not os.path.isfile(filename):
        return re.fullmatch(_PROMPT, filename) is not None
    cwd = call_safely(os.getcwd)[0] or os.sep  # there is none when it was removed
    path = os.path.join(cwd, filename)
    folders = [cwd, *(folder for folder in sys.path if type(folder) is str and os.path.isabs(folder))]
    homes = [folder for folder in folders if is_below(path, folder) and not is_library(folder, cwd)]
    return bool(homes) and not is_library(path, cwd) and not _is_vendored(path, min(homes, key=len))


def is_app_code(code: CodeType) -> bool:
    """Return whether a frame of `code` is the application's own."""
    return not _is_machinery(code.co_filename, code.co_name) and is_app_file(code.co_filename)


def outer_frames(frame: Optional[FrameType]) -> Iterator[FrameType]:
    """Yield a frame, its caller, that one's caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def thread_position(ident: Optional[int]) -> str:
    """Return the place in the application's code where a thread is; "" if it is in none or stopped in a debugger."""
    return app_position(outer_frames(sys._current_frames().get(ident or 0)))


def app_position(frames: Iterable[FrameType]) -> str:
    """Return the place of the first frame that is the application's, "" when a debugger's comes before."""
    for frame in frames:
        if is_app_code(frame.f_code):
            return f"{frame.f_code.co_filename}, line {frame.f_lineno}"
        if _is_debuggers(frame):
            break
    return ""


def is_below(path: str, folder: str) -> bool:
    """Return whether `path` is `folder` or lies in it, by whole components of the path."""
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(os.path.join(folder, ""))


def short_path(filename: str) -> str:
    """Return the path as people name it: below site-packages, the library or the working directory."""
    _, *inside = re.split(r"[\\/](?:site|dist)-packages[\\/]", filename, maxsplit=1)  # Windows has paths with either
    if inside:
        return inside[0]
    for root in (_STDLIB, call_safely(os.getcwd)[0]):
        if root and is_below(filename, root):
            return os.path.relpath(filename, root)
    return filename


def _is_vendored(path: str, home: str) -> bool:
    """Return whether an installer has put `path` into the project, as `pip install --target` does."""
    folder, name = os.path.split(path)
    while name and is_below(folder, home):
        if name.partition(".")[0] in _installed_names(folder):
            return True
        folder, name = os.path.split(folder)
    return False


@functools.lru_cache(maxsize=256)  # what is installed later is seen by the next process
def _installed_names(folder: str) -> frozenset[str]:
    """Return the packages and modules in `folder` for which a `.dist-info` stands beside them."""
    names = set()
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if entry.endswith(".dist-info"):
                names.add(entry.partition("-")[0].lower())
                with contextlib.suppress(OSError), open(os.path.join(folder, entry, "RECORD"), "rb") as record:
                    names.update(re.findall(r"(?m)^(\w+)(?=[/.])", record.read().decode("utf-8", "replace")))
    return frozenset(names)


def _is_machinery(filename: str, function: str) -> bool:
    """Return whether a frame stands between the interpreter and the application: devserve's own, or of an import.

    The demonstration in this file is an application.
    """
    if filename == _is_machinery.__code__.co_filename:
        return not function.startswith("demo")
    return filename.startswith("<frozen importlib") or filename == _IMPORTLIB


def application_traceback(error: BaseException) -> Optional[TracebackType]:
    """Return the traceback of `error` from the first frame that is not machinery.

    When all frames are machinery, the answer is None for a SyntaxError, and for what devserve itself says about the
    application, since their messages suffice; for any other error, a fault of devserve's, it is the whole traceback.
    The frame of the file watcher's `compile` or `open` is cut off.
    """
    whole: Optional[TracebackType] = raw_slot(error, "__traceback__")
    tb = whole
    while tb is not None and _is_machinery_at(tb):
        tb = tb.tb_next
    last = tb
    while last is not None and last.tb_next is not None:
        code = last.tb_next.tb_frame.f_code
        if code.co_name in ("compile", "noted_open") and _is_machinery(code.co_filename, code.co_name):
            last.tb_next = None
        last = last.tb_next
    speaks_for_itself = isinstance(error, SyntaxError) or type(error).__module__ == __name__
    return tb if tb is not None or speaks_for_itself else whole


def _is_machinery_at(tb: TracebackType) -> bool:
    """Return whether a frame is machinery, or one of the standard library that calls it, as PyPy's of `partial`."""
    codes = [each.tb_frame.f_code for each in (tb, tb.tb_next) if each is not None]
    itself, *called = [_is_machinery(code.co_filename, code.co_name) for code in codes]
    return itself or (any(called) and is_below(codes[0].co_filename, _STDLIB))


def linked_exceptions(error: BaseException) -> list[tuple[BaseException, str]]:
    """Return `error` and what led to it, the newest first, each with its relation to the next.  Loops are cut."""
    found: list[tuple[BaseException, str]] = []
    seen: set[int] = set()
    each: Optional[BaseException] = error
    while each is not None:
        seen.add(id(each))
        cause = raw_slot(each, "__cause__")
        hides_context = cause is not None or raw_slot(each, "__suppress_context__")
        before = cause if hides_context else raw_slot(each, "__context__")
        before = None if id(before) in seen else before
        found.append((each, "" if before is None else "context" if cause is None else "cause"))
        each = before
    return found


def group_members(error: BaseException) -> tuple[BaseException, ...]:
    """Return the members of an exception group, the interpreter's or the backport's; none of any other exception."""
    if not any(base.__name__ == "BaseExceptionGroup" for base in type(error).__mro__):
        return ()
    members, _ = call_safely(lambda: tuple(getattr(error, "exceptions", ())))
    return tuple(each for each in members or () if isinstance(each, BaseException))


def _exceptions_in(error: BaseException) -> list[BaseException]:
    """Return `error`, what led to it, and the members of groups among these with what led to them."""
    found: dict[int, BaseException] = {}
    todo = [error]
    while todo:
        for each, _ in linked_exceptions(todo.pop()):
            if id(each) not in found:
                found[id(each)] = each
                todo += group_members(each)
    return list(found.values())


def has_plain_text(error: BaseException) -> bool:
    """Return whether the text of an exception is made without running anybody's code, and so cannot hang."""
    is_builtin, _ = call_safely(lambda: type(error).__str__ in (BaseException.__str__, KeyError.__str__))
    return is_builtin is True and all(type(each) in PLAIN_TYPES for each in raw_slot(error, "args"))


def traceback_text(error: BaseException, *, folded: bool = False) -> str:
    """Return the interpreter's own text of `error` and of what led to it.

    With `folded`, runs of library frames become a line that counts them.  Each exception's `__str__`, which may hang,
    is tried first: when one hangs, only its type and frames are written, so that nothing waits for it a second time.
    """
    text, worse = call_safely(lambda: _whole_traceback_text(error, folded))
    if text is not None:
        return text
    # A file of the application's hides a module that it is written with, or the code has no lines.
    message = f"{error} " if has_plain_text(error) else ""
    return f"{type_name(type(error))}: {message}(its traceback cannot be had: {worse})\n"


def _whole_traceback_text(error: BaseException, folded: bool) -> str:
    import traceback

    foreign = [each for each in _exceptions_in(error) if not has_plain_text(each)]
    texts = {str(number): partial(str, each) for number, each in enumerate(foreign)}
    late = [why for _, why in call_each_bounded(texts, _MESSAGES_SECONDS).values() if isinstance(why, TooLate)]
    text, why = (None, late[0]) if late else call_bounded(partial(_format_traceback, error, folded), _FORMAT_SECONDS)
    if text is not None:
        return text
    reason = "takes too long" if isinstance(why, TooLate) else f"cannot be had: {type(why).__name__}"
    frames = traceback.format_tb(application_traceback(error))
    return "".join([*frames, f"{type_name(type(error))}: (its text {reason})\n"])


def _format_traceback(error: BaseException, folded: bool) -> str:
    """Return what the interpreter prints; with `folded` its stacks are replaced by ones that fold library frames.

    `TracebackException` formats itself by its stack, from Python 3.9 to 3.15, groups and chains included.
    """
    import traceback

    class Folded(traceback.StackSummary):
        def format(self, **options: Any) -> list[str]:
            return list(_fold_lines(self, lambda run: traceback.StackSummary.from_list(run).format(**options)))

    root = traceback.TracebackException(type(error), error, application_traceback(error))
    todo: list[Any] = [root] if folded else []
    while todo:
        each = todo.pop()
        if isinstance(each, traceback.TracebackException) and type(each.stack) is not Folded:
            each.stack = Folded(each.stack or ())
            todo += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]
    return "".join(root.format())


def _fold_lines(stack: Sequence[Any], write: Callable[[list[Any]], Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a stack: the application's frames and the innermost, with the others between them counted."""
    app_files = {filename for filename in {frame.filename for frame in stack} if is_app_file(filename)}
    own = [frame.filename in app_files and not _is_machinery(frame.filename, frame.name) for frame in stack]
    shown = [*own[:-1], True] if any(own) else [True] * len(own)
    for is_shown, run in itertools.groupby(zip(shown, stack), key=operator.itemgetter(0)):
        frames = [frame for _, frame in run]
        if is_shown:
            yield from write(frames)
        else:
            packages = ", ".join(dict.fromkeys(_package_of(frame.filename) for frame in frames))
            yield f"  … {len(frames)} frame{'s' if len(frames) > 1 else ''} of {packages}\n"


def _package_of(filename: str) -> str:
    """Return the name of the installed package or the library's module to which a file belongs."""
    path = short_path(filename)
    return re.split(r"[\\/]|\.py$", os.path.basename(path) if os.path.isabs(path) else path)[0]


# -- attributes and variables, found without running code


def raw_slot(error: BaseException, name: str) -> Any:
    """Return a slot of BaseException, as `__cause__`, even where the exception's class hides it by a property."""
    return BaseException.__dict__[name].__get__(error)


def own_dict(value: object) -> dict[str, Any]:
    """Return the attributes that an object itself holds; none if it has only slots, or an unusual `__dict__`."""
    for each in type.__dict__["__mro__"].__get__(type(value)):
        found = type.__dict__["__dict__"].__get__(each).get("__dict__")
        if found is not None:
            is_plain = type(found) in (GetSetDescriptorType, MemberDescriptorType)  # else it runs the class's own code
            held: Any = call_safely(partial(found.__get__, value))[0] if is_plain else None
            return dict(dict.items(held)) if issubclass(type(held), dict) else {}
    return {}


def static_attributes(value: object) -> dict[str, Any]:
    """Return what a value, its class and its bases hold, as it is stored; no descriptor and no __dir__ is run."""
    return {**_class_attributes(value), **own_dict(value)}


def static_attribute(value: object, name: str) -> Any:
    """Return an attribute if it can be read without running code; MISSING for others, such as a property."""
    held = _class_attributes(value).get(name, MISSING)
    if type(held) is MemberDescriptorType:  # a slot
        found, error = call_safely(lambda: held.__get__(value))
        return MISSING if error else found
    methods = _class_attributes(type(held))
    if "__set__" in methods:  # a property comes before what the object holds
        return MISSING
    is_readable = issubclass(type(held), CODE_TYPES) or "__get__" not in methods
    return own_dict(value).get(name, held if is_readable else MISSING)


def _class_attributes(value: Any) -> dict[str, Any]:
    """Return what a value's class and its bases hold, or a class itself and its bases, whatever a metaclass says."""
    kind = value if issubclass(type(value), type) else type(value)
    held: dict[str, Any] = {}
    for each in reversed(type.__dict__["__mro__"].__get__(kind)):
        held.update(type.__dict__["__dict__"].__get__(each))
    return held


def locals_of(frame: FrameType) -> dict[Any, Any]:
    """Return a frame's variables; none where they lie in a mapping of the application's own, as exec and eval take,
    since to read it would run its code."""
    values: Any = frame.f_locals
    if issubclass(type(values), dict):
        return dict(dict.items(values))
    return dict(values) if type(values) is type(sys._getframe().f_locals) else {}  # since Python 3.13 a proxy


# -- a connection that the application took over

SOCKET_KEY = "werkzeug.socket"  # in the environ of a request that asks to upgrade; WebSocket libraries look for it


def is_taken_over(environ: Mapping[str, Any]) -> bool:
    """Return whether the application has taken over the connection of a request, as it does for a WebSocket."""
    return getattr(environ.get(SOCKET_KEY), "is_taken_over", False) is True


def broken_request(error: BaseException) -> Optional[BaseException]:
    """Return the server's own exception about a request that broke off: `error` itself or a cause of it, else None.

    Django's `request.body` wraps it in two UnreadablePostErrors, and Werkzeug raises a ClientDisconnected while it
    handles it.
    """
    for each, relation in linked_exceptions(error):
        if getattr(type(each), "nobody_listens", False):
            return each
        if relation != "cause" and type(each).__name__ != "ClientDisconnected":
            break  # an exception that is raised while it is handled is a failure of its own
    return None


def nobody_listens(error: BaseException, environ: Mapping[str, Any]) -> bool:
    """Return whether an exception means only that the client has gone, so that nobody would read an answer.

    WebSocket libraries end a handler by a ConnectionError, and so does a socket whose other end has gone.  A
    ConnectionRefusedError is about another connection, which the application could not make.
    """
    if broken_request(error) is not None:
        return True
    ends = isinstance(error, ConnectionError) or type(error).__name__ == "ConnectionClosed"
    return ends and not isinstance(error, ConnectionRefusedError) and is_taken_over(environ)


@functools.cache
def shorten_broken_requests() -> None:
    """Have `logging` write one line in place of the traceback of a request that broke off, from now on."""
    import logging

    own = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        error = made.exc_info[1] if made.exc_info else None
        if error is not None and broken_request(error) is not None:
            made.exc_info = None
            made.exc_text = f"{type(error).__name__}: {error}"
        return made

    logging.setLogRecordFactory(record)


# -- exceptions that a framework has caught

# Keys under which an environ, or a scope, has functions of the debugger's.  Flask calls the first with each context
# that a console is to have; `hand_over` calls the second with the exception.
PRESERVE_CONTEXT = "werkzeug.debug.preserve_context"
ON_EXCEPTION = "devserve.on_exception"
SENT_AGAIN = "devserve.sent_again"  # in the environ of a request that a crash's page sends again
REQUEST_HEAD = "devserve.head"  # in an environ for ASGI: the request's head as it came
HANDED_OVER = "devserve puts its page in the place of this text."


def hand_over(environ: Mapping[str, Any], error: BaseException) -> str:
    """Give the debugger an exception for which a framework is about to answer with a page of its own.

    Returns the text HANDED_OVER.  The framework answers with it, under whatever status and headers, and the debugger
    puts its own page in the place of that answer.  Without a debugger it returns "", and the framework should answer
    with its own page.  The text is short because middleware that compresses leaves short bodies as they are.
    """
    take = environ.get(ON_EXCEPTION)
    if take is None:
        return ""
    take(error)
    return HANDED_OVER


# -- threads


def is_debugged(ident: int, debuggers: str = _DEBUGGERS) -> bool:
    """Return whether a thread waits at the prompt of a debugger such as pdb, or is stopped by an editor's debugger.

    Then the debugger's frames are inside of the application's or ours, though what was typed there may have called the
    application again.  A thread that has no other frames is the debugger's own, such as the one in which IPython
    writes its history, and is not meant.
    """
    is_waiting = is_inner = False
    for frame in outer_frames(sys._current_frames().get(ident)):
        is_own = is_app_code(frame.f_code)
        if (is_own and is_waiting) or frame.f_globals is globals():
            return is_waiting
        is_inner = is_inner or is_own
        if not is_inner or frame.f_code.co_name in _PROMPT_LOOPS:
            is_waiting = is_waiting or _is_debuggers(frame, debuggers)
    return False


def _is_debuggers(frame: FrameType, debuggers: str = _DEBUGGERS) -> bool:
    """Return whether a debugger waits in this frame; other frames of pydevd are in every thread that it traces."""
    module = str(frame.f_globals.get("__name__"))
    return bool(re.match(debuggers, module)) or frame.f_code.co_name == "do_wait_suspend"


def is_main_thread() -> bool:
    """Return whether this is the process's first thread, even where eventlet has changed its ident."""
    return native_threading.get_native_id() == threading.main_thread().native_id


def has_green_threads() -> bool:
    """Return whether gevent or eventlet has put greenlets in the place of threads, in all modules of this process."""
    return type(threading.get_ident) is not type(native_threading.get_ident)


def _fresh_module(name: str) -> Any:
    """Return a new copy of a module of the standard library, without what gevent or eventlet have patched in it."""
    spec = sys.modules[name].__spec__
    assert spec is not None and spec.loader is not None
    if spec.origin == "built-in":
        kept = sys.modules.pop(name)  # in which Python 3.9 would put back what was patched
        try:
            module = spec.loader.create_module(spec) or ModuleType(name)
            spec.loader.exec_module(module)
        finally:
            sys.modules[name] = kept
        return module
    module, kept = ModuleType(name), sys.modules["_thread"]
    sys.modules["_thread"] = _fresh_module("_thread")
    try:
        exec(spec.loader.get_code(name), vars(module))  # type: ignore[attr-defined]
    finally:
        sys.modules["_thread"] = kept
    return module


# Threads and locks for what runs while the application is imported.  That import may patch `threading` so that its
# threads are greenlets, which ours must not be.  Of the application they run only what can run nowhere else: exit
# handlers while the main thread is busy, and Django's receivers of `file_changed`.
if TYPE_CHECKING:
    import threading as native_threading
else:
    native_threading = _fresh_module("threading")
    # Without a WeakSet none of its callbacks is the last Python code of a thread.  There pydevd would register a dummy
    # thread, take the next one with the same ident for it, and leave that one stopped at its breakpoint for ever.
    native_threading._dangling = type("_NoThreads", (set,), {"add": lambda self, thread: None})()
native_sleep: Callable[[float], None] = _fresh_module("time").sleep


def tell_pydevd() -> None:
    """Have an editor's debugger take this file for a library's, also where it lies beside the application.

    Else it stops at our own exceptions where all that are raised are asked for, and steps into our code.
    """
    find = getattr(sys.modules.get("pydevd"), "get_global_debugger", None)
    debugger = find() if find else None
    files = getattr(debugger, "_files_filtering", None)  # PyCharm's debugger has none
    if debugger is not None and files is not None:
        files.set_library_roots([*files._get_library_roots(), os.path.abspath(__file__)])
        debugger.set_use_libraries_filter(files.use_libraries_filter())  # it forgets what it has found before


call_safely(tell_pydevd)  # what it calls is private


# =====================================================================================================================
# 3. Terminal
#
# The only writer to standard error: start-up lines, the request log, warnings and crashes.  Colors and links are used
# only where a terminal shows them.  May know the configuration and how foreign code is called.
#
# How to change: an editor is a row of EDITORS, and a terminal that understands links a row of `_HYPERLINK_SIGNS`.
#
# Invariants: lines are written whole and in the order of the calls of `say`, by one thread at a time.  In the main
# thread `say` waits until the line is written, a second at most; a request's thread waits at most a twentieth of a
# second for its line in the log.  When a wait was in vain (Ctrl-S at the terminal, a pipe that nobody reads), nobody
# waits again before something has been written.
#
# Doors: CRASH_LINK, UNLOGGED, EDITORS, Terminal, find_editor.
#
# Read first: Terminal.say, Terminal.flush, Terminal._write_all, Terminal.crash.
# =====================================================================================================================

# SGR codes by the first digit of a status: quiet ones for what went well, so that what failed is seen at once.
_STATUS_COLORS = {"1": "2", "2": "", "3": "36", "4": "33", "5": "1;31"}

CRASH_LINK = "devserve.crash"  # in the environ: the address of the page of a crash that goes on to the server
UNLOGGED = "devserve.unlogged"  # an application sets this key in the environ of a request that is not worth a line
_LOG_INTERVAL = 0.01  # seconds that a line may wait for its neighbors: less than the eye, or a test, can see
_LONE_LINE_SECONDS = 0.05  # for which a request may wait until its own line is written; no person sees it
_FLUSH_SECONDS = 1.0  # for which a caller waits while standard error takes nothing
_UNWRITTEN_LIMIT = 10_000  # lines kept meanwhile; more would be read by nobody, and cost memory without end
_HYPERLINK_SIGNS = {  # variables by which terminals that understand OSC 8 are known; None: any value
    "TERM_PROGRAM": "iTerm.app vscode WezTerm Hyper ghostty Tabby rio mintty",
    "TERM": "xterm-kitty xterm-ghostty alacritty foot wezterm",
    **dict.fromkeys(("WT_SESSION", "KONSOLE_VERSION", "VTE_VERSION", "KITTY_WINDOW_ID", "DOMTERM")),
}

EDITORS = {  # links by which an editor opens a file; the first is what a page offers
    "VS Code": "vscode://file{path}:{line}:{column}",
    "PyCharm": "pycharm://open?file={path}&line={line}",
    "Sublime": "subl://open?url=file://{path}&line={line}",
    "Vim": "mvim://open?url=file://{path}&line={line}",
    "Emacs": "emacs://open?url=file://{path}&line={line}",
    "Cursor": "cursor://file{path}:{line}:{column}",
    "Zed": "zed://file{path}:{line}:{column}",
}


class Terminal:
    """What the person at the keyboard reads.  Any thread may call anything here, a signal handler too.

    A thread writes what was said, and ends when for `_LOG_INTERVAL` nothing more has come.  A line of the request log
    that follows another sooner is written a moment later, together with its neighbors: a write to a terminal or a file
    costs as much as the rest of a small request.  That thread and its locks are native (2), since threads that are no
    greenlets call `say` too.  `editor` and `path_map` are those of `_editor_link`.
    """

    def __init__(
        self, stream: Optional[TextIO] = None, *, quiet: bool = False, editor: str = "", path_map: Sequence[str] = ()
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self.editor, self.path_map = editor, path_map
        self.is_colored = _wants_color(self.stream)
        self._begin()

    def _begin(self) -> None:
        """Begin with no line and no thread; also in a child that was forked, since those it has are its parent's."""
        # Lines to write, and events; an event is set when all lines before it are written.
        self._unwritten: deque[Union[str, native_threading.Event]] = deque()
        self._dropped = 0  # lines beyond `_UNWRITTEN_LIMIT`
        self._lock = native_threading.RLock()  # guards `_writer`; a signal handler may say something while it is held
        self._writer: Optional[native_threading.Thread] = None
        self._unhurried = native_threading.Lock()  # released by whoever waits until his line is written
        self._is_stuck = False  # somebody has waited in vain: nobody waits again before a write has ended
        self._pid = os.getpid()
        self.writing = native_threading.RLock()  # held while a line is written, and by who forks: see `_Signals.take`

    def say(self, text: str) -> None:
        """Write a line of information.  If standard error is closed or full, serving goes on without the line."""
        self._add(text)
        self._hurry()
        if is_main_thread():
            self.flush()

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until all lines so far are written, `seconds` at most; in the writing thread itself, do not wait."""
        self._check_process()
        writer = self._writer
        if writer is None or writer.ident != native_threading.get_ident():
            is_written = native_threading.Event()
            self._unwritten.append(is_written)
            self._hurry()
            self._is_stuck = not is_written.wait(0.0 if self._is_stuck else seconds)

    def end(self) -> None:
        """Wait until all is written and the thread has ended: pdb, when a program is over, empties its module."""
        self.flush()
        writer = self._writer
        if writer is not None:
            writer.join(_FLUSH_SECONDS)

    def _add(self, text: str) -> None:
        """Put a line into the queue, unless too many wait there already."""
        self._check_process()
        if len(self._unwritten) > _UNWRITTEN_LIMIT:
            self._dropped += 1
        else:
            self._unwritten.append(text)

    def _hurry(self) -> None:
        """Have the lines written now, by a new thread if there is none."""
        with contextlib.suppress(RuntimeError):  # it is released already
            self._unhurried.release()
        with self._lock:
            if self._writer is not None:
                return
            self._writer = native_threading.Thread(target=self._write_all, name="devserve terminal", daemon=True)
            atexit.register(self.flush)  # the interpreter does not wait for the thread
        try:
            self._writer.start()
        except RuntimeError:  # the system has no thread left, or the interpreter is at its end
            self._write_all()

    def _write_all(self) -> None:
        """Write the lines of the queue every `_LOG_INTERVAL`, or when somebody waits; return when none has come."""
        while True:
            self._unhurried.acquire(timeout=_LOG_INTERVAL)
            gathered = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
            if self._dropped:  # they came after the lines above
                gathered.append(f"({self._dropped:,} lines were not written while standard error took nothing)")
                self._dropped = 0
            if gathered:  # not "while": under load each line would be a write of its own
                self._write("".join(f"{text}\n" for text in gathered if isinstance(text, str)))
                self._is_stuck = False
                for is_written in gathered:
                    if not isinstance(is_written, str):
                        is_written.set()
            with self._lock:
                writer, self._writer = self._writer, None  # before the last look: a later line starts another thread
                if not gathered and not self._unwritten:
                    atexit.unregister(self.flush)
                    return
                self._writer = writer

    def _write(self, text: str) -> None:
        with self.writing:
            if sys.platform != "win32":
                with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
                    # Another program that shares the stream, such as Node, may have it not wait; a part would be lost.
                    os.set_blocking(self.stream.fileno(), True)
            try:
                self.stream.write(text)
                self.stream.flush()
            except UnicodeEncodeError:
                self.stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
            except (OSError, ValueError, AttributeError):  # a broken pipe, a closed file, pythonw's None
                pass

    def warn(self, text: str) -> None:
        """Write a warning: one line about something that looks wrong, or that devserve has not done."""
        self.say(self.color(f"devserve: warning: {text}", "33"))

    def error(self, text: str) -> None:
        """Write an error: the one line of a DevserveError, or another that the person can mend."""
        self.say(self.color(f"devserve: error: {text}", "1;31"))

    def crash(self, error: BaseException, context: str = "", link: str = "") -> str:
        """Write the traceback of `error` without devserve's own frames, and return it.

        `context` is a line above it that says what was being done, such as the request.  With a `link` to a page that
        shows the rest, library frames are counted only.
        """
        text = traceback_text(error, folded=bool(link))
        lines = [self.color(escape_controls(context), "1;31")] if context else []
        lines += [self._link_to_editor(escape_unprintable(line, "\t")) for line in text.rstrip("\n").split("\n")]
        if link:
            lines.append(f"  {self.hyperlink(link, link)}")
        self.say("\n".join(lines))
        return text

    def _link_to_editor(self, line: str) -> str:
        """Return a line of a traceback; the file and line that it names become a link if an editor is configured."""
        place = re.match(r'([ |]*  File ")(.+)(", line (\d+).*)', line) if self.editor else None
        if place is None:
            return line
        before, path, after, lineno = place.groups()
        url = _editor_link(self.editor, path, int(lineno), path_map=self.path_map) if os.path.isabs(path) else ""
        return before + self.hyperlink(url, path) + after

    def hyperlink(self, url: str, text: str) -> str:
        """Return `text` as a link to `url` (OSC 8) where the terminal says of itself that it understands that."""
        signs = ((os.environ.get(variable, ""), names) for variable, names in _HYPERLINK_SIGNS.items())
        is_known = any(value and (names is None or value in names.split()) for value, names in signs)
        return f"\x1b]8;;{url}\x1b\\{text}\x1b]8;;\x1b\\" if url and self.is_colored and is_known else text

    def access(self, method: str, target: str, status: str, size: int, seconds: float) -> None:
        """Write the line of one request; `size` is the body's bytes on the wire, `status` the three digits."""
        if self.quiet:
            return
        # The token in the debugger's link opens the console, and logs are pasted into issues.
        target = re.sub(r"((?:/|%2[Ff])unlock/?[?;&%]).*", r"\1token=…", target)  # chat programs change its "?"
        target = re.sub(r"\btoken=[0-9a-f]{32}\b", "token=…", target)  # in an address that was typed by hand
        clock = time.strftime("%H:%M:%S")
        line = f"{clock} {method} {escape_controls(target)} {status} {size} {seconds * 1_000:.1f}ms"
        self._add(self.color(line, _STATUS_COLORS.get(status[:1], "")))
        if self._writer is None:  # not under load, when it takes this line along: whoever gets this answer looks next
            self.flush(_LONE_LINE_SECONDS)

    def _check_process(self) -> None:
        """In a child that the application or its server has forked, begin anew."""
        if self._pid != os.getpid():
            atexit.unregister(self.flush)
            self._begin()

    def color(self, text: str, code: str) -> str:
        """Return `text` in the color of an SGR `code` where the terminal shows colors."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_colored and code else text


def _wants_color(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that shows colors and whose owner did not ask for none (no-color.org)."""
    try:
        is_wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return is_wanted and _obeys_escapes(stream)
    except (AttributeError, ValueError, OSError):
        return False


def _obeys_escapes(stream: TextIO) -> bool:
    """Return whether a terminal obeys escape sequences; switch them on in the classic console of Windows."""
    if sys.platform != "win32":
        return True
    import ctypes
    import msvcrt

    console, mode = msvcrt.get_osfhandle(stream.fileno()), ctypes.c_ulong()
    if not ctypes.windll.kernel32.GetConsoleMode(console, ctypes.byref(mode)):
        return False
    processing = 0x4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING, which consoles before Windows 10 refuse
    return bool(ctypes.windll.kernel32.SetConsoleMode(console, mode.value | processing))


def find_editor(name: str) -> str:
    """Return the key of `EDITORS` that a person means, whatever its spelling; "Own link" for a link, "" for none."""
    if "{path}" in name:
        return "Own link"
    plain = re.sub(r"\W", "", name).lower()
    return next((known for known in EDITORS if plain and plain in known.lower().replace(" ", "")), "")


def _editor_link(editor: str, path: str, line: int, column: int = 1, path_map: Sequence[str] = ()) -> str:
    """Return the link by which an editor opens `path`; "" when there is no such editor.

    `editor` is one of `EDITORS`, or a link with {path}, {line} and {column} in it.  `path_map` holds pairs such as
    `/app=/home/me/project`: where the server has a folder, and where the editor has it.
    """
    from urllib.parse import quote

    link = EDITORS.get(find_editor(editor), editor if "{path}" in editor else "")
    for pair in path_map:
        there, _, here = (side.strip().rstrip("/\\") for side in pair.partition("="))
        if there and here and is_below(path, there):
            path = here + path[len(there) :]
            break
    path = quote(path.replace("\\", "/").encode("utf-8", "surrogateescape"), safe="/:")
    path = path if path.startswith("/") else "/" + path
    return link.replace("{path}", path).replace("{line}", str(line)).replace("{column}", str(column))


# =====================================================================================================================
# 4. App loading
#
# `pkg.mod:app` becomes a callable.  `load_app` splits APP into a module (or a file) and a name, and imports the
# module.  It takes the application that the name stands for or, without a name, the one that `_discovered_app` finds
# in the module; both go through `checked`.  Last, `prepared` does what the row of its framework in _FRAMEWORKS says,
# so that its exceptions reach the debugger.  May know the configuration and foreign code.
#
# Invariants: a mistake of the person at the keyboard is a DevserveError of one line that names the remedy.  What the
# application's own code raises comes out as it is, with no frame of importlib in its traceback.  Finding an
# application runs none of its code but the import and a factory.  A framework's own handling of an exception (signals,
# hooks, middleware, clean-up) goes on as ever; only the page in its answer is replaced.  Everything runs in the main
# thread before anything is served, except what a framework calls while it answers, and `_notify_django`, which the
# watcher's thread calls.
#
# Doors: load_app, prepared, BrokenApp, app_spec, default_file, import_late_libraries, import_remedy, servers_left_out,
# checked, is_asgi, framework_files.
#
# Read first: load_app, _import_target, _discovered_app, checked, _Framework, prepared.
#
# How to change: a framework is a row of the table _FRAMEWORKS at the end, under the full name of its application's
# class, or of its package if it has no such class; `_Framework` says what each field is for.  A server that an import
# may start is a row of _SERVERS, and a kind of file that people name instead of a Python file a row of _NOT_PYTHON.
#
# A framework that answers an exception by itself hides it from the debugger.  The function `open` of its row mends
# that.  Where the framework has a switch, `open` turns it on, and the exception comes out of the call.  Where it has
# none, `open` wraps the framework's handler: that then calls `hand_over` (2) and answers with the text that it gets,
# or it raises the exception after its answer, which room 11 waits for.
# =====================================================================================================================

_LATE_LIBRARIES = frozenset(  # what we import when it is needed, and what that imports
    "ast codeop datetime difflib fnmatch glob hashlib hmac html json linecache queue textwrap token tokenize "
    "traceback urllib".split()
)
_DEFAULT_MODULES = ("app", "wsgi", "main")  # where an application is looked for when none is named
_DEFAULT_NAMES = ("app", "application")  # and its name in it: Flask's habit, then PEP 3333's and mod_wsgi's
_FACTORIES = ("create_app", "make_app")  # Flask's and Pyramid's habit
_WRAPPED_NAMES = ("wsgi_app", "asgi_app", "app", "application")  # attributes in which middleware keeps the application
_NO_APP_FILES = (
    r"(devserve|gunicorn\.conf|setup|conftest|manage|noxfile|fabfile|tasks|test_.*|.*_test|tests|__.*)\.py$"
)
_TEXT_SECONDS = 0.3  # for `__str__` of the exception with which an import failed
_VIRTUAL_ENVIRONMENTS = (".venv", "venv", "env", ".env")  # their usual names beside a project
_LOCK_FILES = {"uv.lock": "uv", "poetry.lock": "poetry", "pdm.lock": "pdm", "Pipfile.lock": "pipenv"}  # and the tool
_DECORATED = (FunctionType, functools._lru_cache_wrapper)  # types whose `__wrapped__` is the function inside
_COMMANDS = frozenset(["click.core.Command", "typer.main.Typer"])  # often called `app` too, and take any arguments
_CO_ASYNC = 0x80 | 0x200  # inspect.CO_COROUTINE and CO_ASYNC_GENERATOR, without the cost of importing inspect
_CO_VARARGS = 0x04
_WALK_LIMIT = 2_000  # objects in which we look for applications inside of one; a project has some dozens

# The names of files that are run as Python: with one of Python's suffixes, or with none.
_PYTHON_NAME = r"(?i)(?!(?:Docker|Make|Pip|Proc)file$)[^.]+|.*\.(?:py|pyw|wsgi|cgi|fcgi)"
_NOT_PYTHON = {  # by suffix, what to do instead; for any other suffix, the message names what else could be served
    ".ini": "write a file app.py with `from paste.deploy import loadapp; app = loadapp({config!r})`, or use pserve",
    ".py.txt": "rename it to {stem}",  # as Windows shows it, this one is called app.py
    ".ipynb": "save its code as a module: jupyter nbconvert --to python {name}",
    ".pyc": "name the source that it was made of",
    ".zip": "unpack it, and name the file that has the application",
    ".pyz": "unpack it, and name the file that has the application",
}

# By these lines we guess that a file, which nobody named, makes an application, or is a Django project's manage.py or
# a configuration of PasteDeploy.
_APP_NAMES = f"(?:{'|'.join(_DEFAULT_NAMES + _FACTORIES)})"
_ASSIGNED = rf"(?m:^{_APP_NAMES}\b[^=\n]*=(?!=))"
_OFFER = (
    rf"(?m)^(?:async )?(?:def|class) +{_APP_NAMES}\b"
    rf"|{_ASSIGNED}"
    rf"|^from .* import .*\b{_APP_NAMES}\b"
    r"|\bstart_response\b|\bexecute_from_command_line\b|^\[(?:app|composite|pipeline)\b"
)

if TYPE_CHECKING:
    _Arguments = tuple[list[Any], dict[str, Any]]  # of a factory: positional, by keyword


def load_app(spec: str = "", *, debug: bool = False, debugger: bool = False) -> WSGIApplication:
    """Import the application that `spec` names, and return the callable to serve, which may be WSGI or ASGI.

        app = devserve.load_app("shop.web:create_app('testing')")

    spec (str, "")          `module`, `package.module` or `path/to/file.py`, each with an optional `:name`,
                            `:dotted.name` or `:factory("literal", key=1)`; "" takes $DEVSERVE_APP, else $FLASK_APP,
                            else app.py, wsgi.py or main.py in the current folder, or a Django project's wsgi.py
    debug (bool, False)     turn on the framework's debug mode
    debugger (bool, False)  let its exceptions come out of the call, for a DebuggedApplication around it

    The current folder, and the folder from which a file is imported, are put first on sys.path.  Raises DevserveError
    for what the person can mend, such as a module that does not exist or holds no application.  Whatever the
    application's own code raises, SystemExit too, comes out as it is.  Call it in one thread at a time, as it changes
    sys.path and the environment.
    """
    for variable in filter(None, [framework.variable for framework in _FRAMEWORKS.values() if debug]):
        os.environ.setdefault(variable, "1")  # before the import, since extensions ask while they are set up
    _put_first_on_path(os.getcwd())
    target, name = _split_spec(app_spec(spec))
    target = target or default_file(os.curdir)
    argv = sys.argv
    try:
        module = _import_target(target)
        found = _named_app(module, target, name) if name else _discovered_app(module, target)
    finally:
        sys.argv = argv  # until now it may have been that of Django's runserver, see `_run_manage_py`
    return prepared(found, debug=debug, debugger=debugger)


def prepared(app: Any, *, debug: bool, debugger: bool) -> WSGIApplication:
    """Return the callable of `app`, with all that its frameworks need for `debug` and `debugger`.

    The static files of a Django project whose settings say DEBUG are served, as its runserver does, whatever `debug`.
    """
    for framework, inner in _frameworks_in(app):
        if debug:
            framework.debug(inner)
        if debugger:
            framework.open(inner)
        app = framework.wrap(app)
    return app  # type: ignore[no-any-return]


class BrokenApp:
    """Stands in for an application whose import failed: each call raises that exception again.  For any thread."""

    deferred = True  # the failure was printed when it happened; the debugger need not print it again

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.traceback = error.__traceback__

    def __call__(self, *_: object) -> NoReturn:
        raise self.error.with_traceback(self.traceback)  # reset, or it would grow by the frames of every call


# -- what is to be imported
#
# What a folder has to serve is judged by the text of its files alone: nothing is imported to see what is in it.


def app_spec(spec: str) -> str:
    """Return `spec`; if it is empty, $DEVSERVE_APP or else $FLASK_APP."""
    return (spec or os.environ.get("DEVSERVE_APP") or os.environ.get("FLASK_APP") or "").strip().rstrip(":")


def _split_spec(spec: str) -> tuple[str, str]:
    """Return `spec` as (module or file, name).  A colon of a drive letter, or in a file's name, divides nothing."""
    colons = [i for i, letter in enumerate(spec) if letter == ":" and spec[i + 1 : i + 2] not in ("\\", "/")]
    ends = [*colons, len(spec)]
    end = next((end for end in ends if os.path.isfile(spec[:end])), ends[0])
    return spec[:end].strip(), spec[end + 1 :].strip(" :")


def default_file(folder: str) -> str:
    """Return the path of the file in `folder` that most likely has the application, when nobody names one.

    The candidates are, in order: app.py, wsgi.py and main.py; the wsgi.py or asgi.py of a Django project, beside whose
    package manage.py stands (first an asgi.py with Channels' router, without which its WebSockets would not be there);
    the packages app and wsgi, or a file of these names in them, but only if the text looks like an application.  The
    first whose text does so wins, or else the first of all.  Raises DevserveError when there is none, with what the
    folder has instead.
    """
    usual = [f"{stem}.py" for stem in _DEFAULT_MODULES]
    script = os.path.join(folder, "manage.py")
    is_django = _is_djangos(script)
    if is_django:
        text = _text_of(script)
        packages = sorted(_names_in(folder), key=lambda name: f"{name}." not in text)  # whose settings it names, first
        files = [os.path.join(package, file) for file in ("wsgi.py", "asgi.py") for package in packages]
        usual += sorted(files, key=lambda path: "ProtocolTypeRouter" not in _text_of(os.path.join(folder, path)))
    stems = ("__init__", *_DEFAULT_MODULES)
    packed = [os.path.join(package, f"{stem}.py") for package in ("app", "wsgi") for stem in stems]
    paths = [os.path.normpath(os.path.join(folder, name)) for name in (*usual, *packed)]
    found = [*filter(_offers_app, paths), *filter(os.path.isfile, paths[: len(usual)])]
    if found:
        return found[0]
    remedy = "say what to serve: MODULE:NAME or FILE:NAME"
    if is_django:
        remedy = "set DJANGO_SETTINGS_MODULE, and serve 'django.core.wsgi:get_wsgi_application()'"
    remedy = _folder_remedy(folder, remedy, any_file=not is_django)
    raise DevserveError(f"no app.py, wsgi.py or main.py in {os.path.abspath(folder)}; {remedy}")


def _folder_remedy(folder: str, otherwise: str, *, any_file: bool = False) -> str:
    """Return a remedy that names what looks like an application in a folder, or up to two folders below it as in a src
    layout.  If nothing does, return `otherwise`, or with `any_file` name each of its modules."""
    import glob

    def found(*patterns: str) -> list[str]:
        root = glob.escape(folder)
        return [path for pattern in patterns for path in sorted(glob.glob(os.path.join(root, pattern)))]

    files = [path for path in found("*.py") if not re.match(_NO_APP_FILES, os.path.basename(path))]
    usual = [f"{stem}.py" for stem in ("manage", "__init__", *_DEFAULT_MODULES)]
    levels = [[*files, *found("__init__.py", "*/__init__.py")]]
    levels += [sorted(found(*(f"{below}/{name}" for name in usual))) for below in ("*", "*/*")]
    levels.append(found("*.ini"))
    likely = next(filter(None, ([*filter(_offers_app, paths)] for paths in levels)), files * any_file)
    if likely and likely[0].endswith(".ini"):
        return _not_python(likely[0])
    paths = [re.sub(r"[/\\]__init__\.py$|\.py$", "", os.path.abspath(path)) for path in likely]
    names = [path.removeprefix(os.path.join(os.getcwd(), "")) for path in paths]
    if len(names) == 1:
        return f"did you mean {names[0]!r}?"
    return f"say what to serve, one of: {', '.join(names)}" if 1 < len(names) < 6 else otherwise


def _not_python(path: str) -> str:
    """Return the remedy for a file that is not Python, such as a PasteDeploy configuration; "" for a Python file."""
    folder, name = os.path.split(path)
    if re.fullmatch(_PYTHON_NAME, name):
        return ""
    stem, suffix = os.path.splitext(name)
    remedy = next((remedy for ending, remedy in _NOT_PYTHON.items() if name.lower().endswith(ending)), "")
    if not remedy or (suffix == ".ini" and not _offers_app(path)):
        remedy = _folder_remedy(folder, "name the module or the file that has the application")
    return f"{name} is no Python; {remedy.format(name=name, stem=stem, config='config:' + os.path.abspath(path))}"


def _offers_app(path: str) -> bool:
    """Return whether the text of a file looks as if it made an application."""
    return bool(re.search(_OFFER, _text_of(path)))


def _is_djangos(path: str) -> bool:
    """Return whether a manage.py is there, and is not one of a Flask project, which makes the application itself."""
    text = _text_of(path)
    return os.path.isfile(path) and (not re.search(_OFFER, text) or bool(re.search("(?i)django", text)))


def _text_of(path: str) -> str:
    """Return the first megabyte of a file as text, what is not UTF-8 replaced; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except (OSError, ValueError):
        return ""


def _names_in(folder: str) -> list[str]:
    """Return the sorted names of the entries of a folder; none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # a null byte in the name
        return []


# -- the import
#
# A file is imported under the name that an import statement would give it.  So the application's own imports of it,
# relative ones and pickles find the same module and not a second copy.  Only a file that no import statement can reach
# is executed by a loader of ours.


def _import_target(target: str) -> ModuleType:
    """Import the module or the file that `target` names."""
    if not _is_path(target):
        _run_manage_py(os.getcwd(), os.path.join(os.getcwd(), target.replace(".", os.sep)))
        return _import_module(target)
    path = _existing_file(target)
    root, name = _importable_name(path)
    _put_first_on_path(root)
    _run_manage_py(root, path)
    if path.endswith(".py") and "." not in os.path.basename(path)[:-3]:
        module = _import_module(name)
        if os.path.realpath(getattr(module, "__file__", None) or "") == os.path.realpath(path):
            return module  # else the name belongs to another module, as `_code` does to the standard library's
    return _import_from_location(name, path)


def _is_path(target: str) -> bool:
    """Return whether `target` is a path: by its form, or because the current folder has a file or folder of that name.

    If there is an installed package of that name as well, it is preferred to a folder that is no package, as an import
    does.
    """
    is_module = _is_module_at(target)
    if target.isidentifier() and os.path.isdir(target) and not is_module:
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(target)
        return spec is None or spec.origin is None
    written_so = "/" in target or "\\" in target or target.startswith(".") or target.endswith((".py", *_NOT_PYTHON))
    return written_so or is_module or os.path.exists(target)


def _is_module_at(path: str) -> bool:
    """Return whether a path without its suffix is a module's or a package's."""
    return os.path.isfile(f"{path}.py") or os.path.isfile(os.path.join(path, "__init__.py"))


def _module_below(path: str) -> str:
    """Return the path of a module whose path is this one from here, from up to two folders below (src) or from the
    folder above; else ""."""
    import glob

    folders = [folder for below in ("*", "*/*") for folder in sorted(glob.glob(below))]
    paths = [os.path.normpath(os.path.join(folder, path)) for folder in ("", *folders, os.pardir)]
    return next(filter(_is_module_at, paths), "")


def _existing_file(target: str) -> str:
    """Return the absolute path of the file that `target` means: the file itself, with .py added, a package's, or what
    `default_file` finds in a folder.  Raises DevserveError if there is none, or it is no Python file."""
    path = os.path.abspath(target)
    folder = os.path.dirname(path)
    found = next(filter(os.path.isfile, (os.path.join(path, "__init__.py"), path, f"{path}.py")), "")
    if os.path.basename(found) == "manage.py" and _is_djangos(found) and not re.search(_ASSIGNED, _text_of(found)):
        return default_file(folder)  # it is not a whole site in one file
    if found and _not_python(found):
        raise DevserveError(_not_python(found))
    if found or os.path.isdir(path):
        return found or default_file(path)
    parent, name = os.path.split(target)
    if os.path.isfile(f"{parent}.py"):
        remedy = f"did you mean '{parent}:{name}'?"
    else:
        remedy = _absent_remedy(target, name, {each: os.path.join(parent, each) for each in _names_in(folder)})
    raise DevserveError(f"no file {target!r}; {remedy}")


def _importable_name(path: str) -> tuple[str, str]:
    """Return the folder that must be on `sys.path` for the file to be imported, and its dotted name from there.

    Of a file with another suffix the suffix is part of the name, as mod_wsgi's hello.wsgi imports hello.py beside it.
    """
    folder, base = os.path.split(path)
    stem = re.sub(r"\.py$", "", base).replace(".", "_")
    parts = [] if stem == "__init__" else [stem]
    while os.path.isfile(os.path.join(folder, "__init__.py")) and "." not in os.path.basename(folder):
        folder, package = os.path.split(folder)
        parts.insert(0, package)
    for _ in range(_relative_level(path) if parts == [stem] else 0):  # in packages without __init__.py (PEP 420)
        above, package = os.path.split(folder)
        if package.isidentifier() and is_below(above, os.getcwd()) and not _is_installed(package):
            folder, parts = above, [package, *parts]
    return folder, ".".join(parts or [stem])


def _relative_level(path: str) -> int:
    """Return how many folders the relative imports of a Python file go up: it must be inside of so many packages.

    Only those count that are always made, not those in a `try` or for type checkers.
    """
    import ast

    if not re.search(r"(?m)^from\s*\.", _text_of(path)):
        return 0
    try:
        statements = ast.parse(_text_of(path)).body
    except (SyntaxError, ValueError):
        return 0
    return max((each.level for each in statements if isinstance(each, ast.ImportFrom)), default=0)


def _put_first_on_path(folder: str) -> None:
    """Make `folder` the first entry of sys.path, and the only one for that folder."""
    same = ("", folder) if folder == os.getcwd() else (folder,)  # "" stands for the current folder
    sys.path[:] = [folder, *(entry for entry in sys.path if entry not in same)]


def import_late_libraries() -> None:
    """Import those for which a file of the application's would be taken, as a token.py would.

    Call it after the application's import, which would not find its own file otherwise.
    """
    kept = sys.path[:]
    folders = {os.path.abspath(entry) for entry in kept if not is_library(entry, os.getcwd())}
    names = {_stem(name) for folder in folders for name in _names_in(folder)}
    for name in _LATE_LIBRARIES.intersection(names).difference(sys.modules):
        sys.path[:] = [entry for entry in kept if os.path.abspath(entry) not in folders]
        try:
            __import__(name)
        finally:
            sys.path[:] = kept


def _run_manage_py(root: str, path: str) -> None:
    """Run a Django project's manage.py, but without its command, as if that was runserver.

    It may set anything before; above all DJANGO_SETTINGS_MODULE, for which wsgi.py often names production's.  It
    stands in `root` or in a folder between that and the module at `path`.  Its own exceptions come out.  `sys.argv`
    stays runserver's, which settings ask when they are imported.
    """
    import importlib
    import runpy

    folder = os.path.dirname(path)
    while "DJANGO_" not in _text_of(os.path.join(folder, "manage.py")):
        if folder in (root, os.path.dirname(folder)):
            return
        folder = os.path.dirname(folder)
    _put_first_on_path(folder)  # as it is for a script there
    try:
        utility: Any = importlib.import_module("django.core.management").ManagementUtility
    except ImportError:  # the import of the application says so
        return
    script = os.path.join(folder, "manage.py")
    execute = utility.execute
    utility.execute, sys.argv = lambda self: None, [script, "runserver"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    finally:
        utility.execute = execute


def _import_module(name: str) -> ModuleType:
    """Import `name`.  Raises DevserveError if it does not exist, and the application's own exception if it fails.

    `__import__` and not `importlib.import_module`, because it leaves importlib's frames out of tracebacks.
    """
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (name + ".").startswith(missing + ".") or _raised_inside(error):
            raise
        parent, _, last = missing.rpartition(".")
        rest = name[len(missing) :]
        if parent in sys.modules:
            remedy = _name_remedy(sys.modules[parent], parent, (last + rest).removeprefix("py."), is_module=True)
        else:
            stems = [os.path.splitext(file) for file in _names_in(os.getcwd())]
            near = {stem: stem + rest for stem, suffix in stems if suffix in ("", "" if rest else ".py")}
            remedy = f"; {_absent_remedy(name, last, near)}"
        raise DevserveError(f"no module {name!r}{remedy}") from None
    return sys.modules[name]


def _import_from_location(name: str, path: str) -> ModuleType:
    """Import a file that no import statement reaches: dots in its name, another suffix, a name that is taken."""
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    while name in sys.modules:
        name += "_"
    if "." in name:
        _import_module(name.rpartition(".")[0])  # so that its relative imports work
    loader = SourceFileLoader(name, path)
    spec = spec_from_loader(name, loader)
    assert spec is not None  # for the loader can tell that it is no package
    module = sys.modules[name] = module_from_spec(spec)
    try:
        # What exec_module does, without importlib's frames in tracebacks.
        exec(loader.source_to_code(loader.get_data(path), path), vars(module))
    except BaseException:  # raised again: a module that failed, in whatever way, must not stay in sys.modules
        del sys.modules[name]  # as the import system does
        raise
    return module


def _raised_inside(error: BaseException) -> bool:
    """Return whether `error`, which the caller has just caught, was raised inside of what the caller called."""
    return application_traceback(error) is not error.__traceback__


def _absent_remedy(target: str, name: str, near: Mapping[str, str]) -> str:
    """Return the remedy for a module or a file that does not exist: the same path in another folder, the target in
    `near` whose name is most similar to `name`, or what the current folder has."""
    stem = target.removesuffix(".py")
    below = _module_below(stem if re.search(r"[/\\]", stem) else stem.replace(".", os.sep))
    meant = below or _nearest(name, near)
    otherwise = "check its spelling, or start devserve in the folder that holds it"
    return f"did you mean {meant!r}?" if meant else _folder_remedy(os.curdir, otherwise)


def _nearest(name: str, apps: Mapping[str, str]) -> str:
    """Return the value of the key that is most similar to `name`, upper and lower case being equal; "" if none is."""
    import difflib

    by_lower = {each.lower(): app for each, app in apps.items()}
    return next((by_lower[near] for near in difflib.get_close_matches(name.lower(), by_lower, 1)), "")


def _files_of(error: BaseException) -> list[str]:
    """Return the files of a traceback, outermost first; without `traceback`, which a file of that name may hide."""
    tb, files = error.__traceback__, []
    while tb is not None:
        files.append(tb.tb_frame.f_code.co_filename)
        tb = tb.tb_next
    return files


def _is_installed(name: str, folder: str = "") -> bool:
    """Return whether an import would find a module, and no mere folder, elsewhere than in a folder."""
    from importlib.machinery import PathFinder

    found = PathFinder.find_spec(name, [entry for entry in sys.path if entry not in ("", folder)])
    return found is not None and found.loader is not None


def _stem(path: str) -> str:
    return os.path.basename(path).partition(".")[0]


def import_remedy(error: BaseException) -> str:
    """Return what to do about a failed import, "" if its exception says enough.

    An installed library is not found when a file of the application's has its name, or when the project's virtual
    environment (beside it, above it, or where a tool such as poetry keeps it) is not the one that runs.
    """
    if isinstance(error, SystemExit) and type(error.code) is not str:  # with a text it would say the reason itself
        return "the program ends itself while it is imported: let it do so under if __name__ == '__main__': only"
    if type(error).__name__ == "AppRegistryNotReady":
        return "Django is not set up yet when this is imported: serve the project's wsgi.py, or import it later"
    text = call_bounded(partial(str, error), _TEXT_SECONDS)[0] or ""
    if "null bytes" in text:
        return "a file is saved as UTF-16, as PowerShell's > does it: save it as UTF-8"
    in_vain = re.match(r"(?:partially initialized )?module '(\w+)'(?: from .*)? has no attribute", text)
    if not isinstance(error, ImportError) and not (type(error) is AttributeError and in_vain):
        return ""
    files = _files_of(error)
    if "no known parent package" in text:
        return "the file is in no package: write the import without the dot, or put an __init__.py beside it"
    name = in_vain[1] if in_vain else (getattr(error, "name", "") or "").partition(".")[0]
    found = getattr(error, "path", "") or own_dict(sys.modules.get(name)).get("__file__")
    here = os.path.abspath(f"{name}.py")
    paths = {path: name for path in (found, here) if path}
    if "partially initialized" in text:  # a file that a library imports may import that library
        importers = zip(files[1:], map(os.path.dirname, files))
        paths.update((path, _stem(path)) for path, importer in importers if is_library(importer, os.getcwd()))
    for path, name_there in paths.items():
        folder, file = os.path.split(path)
        is_there = folder == os.getcwd() and name_there == _stem(path) and os.path.isfile(path)
        if is_there and _is_installed(name_there, folder):
            return f"your {file} has the name of the library {name_there}, and only one of them is found: rename it"
    if isinstance(error, ModuleNotFoundError):
        below = os.path.dirname(_module_below(name)) if name and name not in sys.modules else ""
        if below == os.pardir:
            return f"{name} is in the folder above: start devserve there"
        command = f"export PYTHONPATH={below}"
        if sys.platform == "win32":
            command = f"set PYTHONPATH={below}, or in PowerShell $env:PYTHONPATH='{below}'"
        return f"{name} is in the folder {below}: type {command}" if below else _remedy_outside_environment()
    return ""


def _remedy_outside_environment() -> str:
    """Return how to start devserve in the project's virtual environment; "" where it is used, or there is none."""
    outside = sys.prefix == sys.base_prefix
    names = [os.path.join(name, "pyvenv.cfg") for name in _VIRTUAL_ENVIRONMENTS] + [*_LOCK_FILES] * outside
    active = os.environ.get("VIRTUAL_ENV", "")  # wherever it is; devserve itself may be installed in another
    names += [os.path.join(active, "pyvenv.cfg")] * bool(active)
    paths = [path for name in names for path in (paths_upwards(name) if outside else [os.path.abspath(name)])]
    for path in sorted(filter(os.path.isfile, paths), key=lambda path: -path.count(os.sep)):
        folder, name = os.path.split(path)
        if name in _LOCK_FILES:
            tool = _LOCK_FILES[name]
            return f"this is {sys.executable}, but the project is {tool}'s: start devserve by {tool} run python"
        if os.path.realpath(sys.prefix) != os.path.realpath(folder):
            scripts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
            python = os.path.relpath(os.path.join(folder, *scripts))
            return f"this is {sys.executable}, but the project has a virtual environment: start devserve by {python}"
    return ""


# -- servers that an import starts
#
# Many first examples end with a line that starts a server and does not return, outside of a main guard.  Such a call
# is left out for as long as the import lasts.  It can only be replaced once the server's module has been executed,
# which as a rule the application's import causes.  So we add a finder, which sees each module before its execution.

# The functions that start a server, or a reloader, by the module that defines them.
_SERVERS = {
    "socketserver": ("BaseServer.serve_forever",),  # wsgiref's server among them
    "devserve": ("DevServer.serve_forever",),
    "werkzeug.serving": ("run_simple",),
    # Reloaders, which would start us again and again
    "werkzeug._reloader": ("run_with_reloader",),
    "django.utils.autoreload": ("run_with_reloader",),
    "watchfiles.run": ("run_process",),
    # The servers of other packages
    "bottle": ("run",),
    "flask.app": ("Flask.run",),
    "flask_socketio": ("SocketIO.run",),
    "quart.app": ("Quart.run",),
    "sanic.mixins.startup": ("StartupMixin.run",),
    "waitress": ("serve",),
    "waitress.server": ("BaseWSGIServer.run", "MultiSocketServer.run"),
    "web.wsgi": ("runwsgi",),
    "granian.server.common": ("AbstractServer.serve",),
    "daphne.server": ("Server.run",),
    "fastwsgi": ("run",),
    "uvicorn.main": ("run",),
    "uvicorn.server": ("Server.run", "Server.serve"),
    "uvicorn.supervisors.basereload": ("BaseReload.run",),  # which NiceGUI calls by itself
    "hypercorn.run": ("run",),
    "hypercorn.asyncio": ("serve",),
    "aiohttp.web": ("run_app",),
    "tornado.platform.asyncio": ("BaseAsyncIOLoop.start",),
    "gunicorn.app.base": ("BaseApplication.run",),
    "twisted.internet.base": ("ReactorBase.run",),
    "gradio.blocks": ("Blocks.launch",),
    "nicegui.ui_run": ("run",),
    "gevent.baseserver": ("BaseServer.serve_forever",),
    "eventlet.wsgi": ("server",),
    "cheroot.server": ("HTTPServer.start",),
    # CherryPy's `quickstart` mounts the application and then does all this; its reloader would replace the process.
    "cherrypy._cpserver": ("Server.start",),
    "cherrypy.process.plugins": ("SignalHandler.subscribe", "Autoreloader.start"),
    "cherrypy.process.wspbus": ("Bus.block",),
}


@contextlib.contextmanager
def servers_left_out(warn: Callable[[str], None], *, reloads: bool = False) -> Iterator[None]:
    """Inside of this context, leave out calls that start a server in the main thread, which has entered it.

    `warn` is told so once.  In another thread or a forked child a server is started, since it may well be wanted, but
    for Flask's.  With `reloads` the variables are set by which the reloaders of Werkzeug and Django mark the process
    that serves: many an application starts its scheduler in that one alone.
    """
    marks = {"FLASK_RUN_FROM_CLI", *(("WERKZEUG_RUN_MAIN", "RUN_MAIN") if reloads else ())} - os.environ.keys()
    os.environ.update(dict.fromkeys(marks, "true"))
    finder = _ServerFinder(warn)
    sys.meta_path.insert(0, finder)
    try:
        for name in _SERVERS.keys() & sys.modules.keys():
            finder.leave_out(name, sys.modules[name])
        yield
    finally:
        finder.is_importing = False
        sys.meta_path[:] = [each for each in sys.meta_path if each is not finder]
        for mark in marks:
            os.environ.pop(mark, None)  # what the application starts later may run on its own


class _ServerFinder:
    """A finder of `sys.meta_path` that replaces the functions which start a server, once their module is executed."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.is_importing = True
        self.pid = os.getpid()
        self._sought: set[str] = set()  # modules that the other finders are being asked for

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the other finders' spec of a module in `_SERVERS`, whose loader calls `leave_out` at the end."""
        if name not in _SERVERS or name in self._sought:  # one of the others may be ours in a wrapper (demandimport)
            return None
        self._sought.add(name)
        try:
            specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
            spec: Any = next(filter(None, specs), None)
        finally:
            self._sought.discard(name)
        execute = getattr(spec and spec.loader, "exec_module", None)
        if execute is not None:

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.leave_out(name, module)

            spec.loader.exec_module = exec_module
        return spec

    def leave_out(self, name: str, module: Any) -> None:
        """Replace the functions of a module that start a server; another version of it may lack some."""
        for dotted in _SERVERS[name]:
            holder, _, function = dotted.rpartition(".")
            owner = getattr(module, holder, None) if holder else module
            start = getattr(owner, function, None)
            if start is not None:
                setattr(owner, function, self._stand_in(name, start))

    def _stand_in(self, name: str, start: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that stays in place of `start`; as a function it also works as a method."""

        @functools.wraps(start)
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if not (self.is_importing and is_main_thread() and os.getpid() == self.pid):
                return start(*args, **kwargs)
            what = f"the server that the import starts ({name.partition('.')[0]}) is left out"
            self.warn(f"{what}; start it under if __name__ == '__main__':")
            self.warn = lambda text: None  # once
            shape = _shape_of(start)  # None for what was compiled
            return _no_server() if shape and shape.is_async else None

        return stand_in


async def _no_server() -> None:
    """Do nothing, in place of a coroutine that would run a server."""


# -- the application in a module
#
# Nothing is called to see whether it is an application: its class tells, or the parameters it takes (`_Shape`).


def _named_app(module: ModuleType, target: str, name: str) -> Any:
    """Return what `name` names in the module: the object, or what the factory makes."""
    parts, arguments = _parse_name(name)
    thing: Any = module
    for index, part in enumerate(parts):
        try:
            thing = getattr(thing, part)
        except AttributeError as error:
            if _raised_inside(error) and hasattr(type(thing), part):  # by a property, and not by `__getattr__`
                raise
            holder = ":".join(filter(None, (target, ".".join(parts[:index]))))
            raise DevserveError(f"no {part!r} in {holder!r}{_name_remedy(thing, holder, part)}") from None
    if type(thing) is MethodType and _framework_of(thing.__self__) and parts[-1].startswith("run"):
        raise DevserveError(f"'{target}:{name}' starts a server of its own; leave .{parts[-1]} out")
    return _app_or_made(thing, target, ".".join(parts), arguments)


def _parse_name(name: str) -> tuple[list[str], Optional[_Arguments]]:
    """Return the dotted parts of `name` and, if it is a call, its arguments; spaces between them are ignored."""
    path, parenthesis, _ = name.strip().partition("(")
    path = path.strip()
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise DevserveError(f'{name!r} names no application; write NAME, DOTTED.NAME or FACTORY("text", key=1)')
    if not parenthesis:
        return parts, None
    import ast

    try:
        call = ast.parse(name.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != path:
            raise ValueError("not a plain call")
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(keywords) < len(call.keywords):
            raise ValueError("** or the same keyword twice")
        return parts, ([ast.literal_eval(argument) for argument in call.args], keywords)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise DevserveError(f'cannot read {name!r}; arguments must be literals: {path}("text", key=1)') from None


def _name_remedy(thing: Any, holder: str, name: str = "", *, is_module: bool = False) -> str:
    """Return the remedy if `thing`, which APP calls `holder`, has no such name or, without one, no application: the
    most similar name or submodule, what is probably an application, or what the framework in use needs.

    A submodule whose name is only similar is named if a module was asked for, or if nothing looks like an application.
    """
    folder = next(iter(getattr(thing, "__path__", ())), "")
    joined = os.path.join if re.search(r"[/\\]", holder) else "{}.{}".format
    stems = [file.removesuffix(".py") for file in _names_in(folder) if not file.startswith("_")]
    modules = {stem: joined(holder, stem) for stem in stems if "." not in stem}
    likely, imported = _candidates(thing)
    apps = {each: f"{holder}{'.' if ':' in holder else ':'}{each}" for each in (*dir(thing), *likely)}
    first, dot, rest = name.partition(".")
    meant = {each: app for each, app in apps.items() if each == first or each not in imported}
    meant |= {stem: app for stem, app in modules.items() if stem == first or is_module or not likely}
    near = _nearest(first, meant)
    if not near and _may_be_app(thing):
        return f"; that is an application itself, so leave .{name} out"
    if not near and len(likely) > 1:
        return f"; {holder!r} has {', '.join(likely)}"
    near = near + dot + rest if near else "".join(apps[each] for each in likely) or _nearest(name, apps)
    stems = [] if near or is_library(folder, os.getcwd()) else [*_DEFAULT_MODULES, *modules]
    offering = (stem for stem in stems if stem in modules and _offers_app(os.path.join(folder, f"{stem}.py")))
    near = near or modules.get(next(offering, ""), holder if _framework_default() is not None else "")
    if near:
        return f"; did you mean {near!r}{' alone' * (near == holder)}?"
    return _module_remedy(thing, holder) if isinstance(thing, ModuleType) else "; check the spelling"


def _candidates(holder: Any) -> tuple[list[str], list[str]]:
    """Return the names, as APP has them, of what looks like an application in a module, its own before imported ones;
    and the names of all functions, classes and modules that it imports."""
    held, imported = own_dict(holder), []
    found: tuple[list[str], list[str]] = ([], [])
    for name, thing in held.items():
        kind, shape = type(thing), _shape_of(thing)
        module = getattr(thing, "__module__", None) if kind in (FunctionType, type) else held.get("__name__")
        is_foreign = issubclass(kind, ModuleType) or module != held.get("__name__")
        imported += [name] * is_foreign
        names = shape.names if shape else ()
        if names[:1] == ("global_config",):  # PasteDeploy's factory, as Pyramid's projects have it
            found[is_foreign].append(f"{name}({{}})")
        elif (shape and (shape.is_wsgi or name in _DEFAULT_NAMES + _FACTORIES)) or _is_framework_app(thing):
            found[is_foreign].append(name)
        elif shape and not shape.is_async and kind is FunctionType and re.search("(?i)app(lication)?$", name):
            is_own = not is_library(thing.__code__.co_filename, os.getcwd())  # FastHTML's `fast_app` is not
            found[is_foreign].extend([name] * (is_own and _is_factory(thing, name)))
    return found[0] or found[1], imported


def _discovered_app(module: ModuleType, target: str) -> Any:
    """Return the application in a module, looked for in this order: `app`, `application`, the only object of a
    framework, what a factory makes, an object that is ASGI by its form.  Else raises DevserveError."""
    for name in _DEFAULT_NAMES:
        thing = getattr(module, name, None)
        stack = getattr(sys.modules.get("bottle"), "app", None)  # `from bottle import *` defines it; it is none itself
        if thing is not None and thing is not stack and not isinstance(thing, ModuleType):
            apps = [each for each in vars(module).values() if _is_framework_app(each)]
            is_another_thing = not _is_framework_app(thing) and (
                _framework_of(thing) or not callable(thing)
            )  # Celery's, Bolt's
            if not (is_another_thing and apps):
                return _app_or_made(thing, target, name)
    found = {id(thing): name for name, thing in vars(module).items() if _is_framework_app(thing)}  # each object once
    default = _framework_default()
    for outer in (default, *(vars(module)[name] for name in found.values())):
        for _, inner in _frameworks_in(outer):
            if inner is not outer:
                found.pop(id(inner), None)  # it is served by the application in which it is mounted
    if len(found) > 1:
        names = list(found.values())
        raise DevserveError(f"{target!r} holds the applications {', '.join(names)}; choose one: '{target}:{names[0]}'")
    for name in (*found.values(), *_FACTORIES):
        if hasattr(module, name):
            return _app_or_made(getattr(module, name), target, name)
    if default is not None:
        return default
    for name, thing in vars(module).items():
        kind = type(thing)  # isinstance would ask a lazy object, as Django's settings are, for its class
        if not issubclass(kind, (type, FunctionType, ModuleType)) and is_asgi(thing):
            return checked(thing, f"'{target}:{name}'")
    raise DevserveError(f"no application in {target!r}{_name_remedy(module, target)}")


def _is_framework_app(thing: Any) -> bool:
    framework = _framework_of(thing)
    return framework is not None and not framework.elsewhere


def _framework_default() -> Any:
    """Return the application that a framework's package itself keeps (Bottle, CherryPy); None if it is unused."""
    packages = ((row, sys.modules.get(name.partition(".")[0])) for name, row in _FRAMEWORKS.items())
    apps = (row.default(package) for row, package in packages if package)
    return next((app for app in apps if app is not None), None)


_IMPORTED = r"^\s*(?:from |import (?:[\w.]+(?: as \w+)?, ?)*)"  # what stands before the name of a module


def _module_remedy(module: ModuleType, target: str) -> str:
    """Return the remedy for a module without an application, with an example for the framework that it uses."""
    named = getattr(module, "WSGI_APPLICATION", None) or getattr(module, "ASGI_APPLICATION", None)
    if type(named) is str:
        return f", which has the settings of Django; did you mean {':'.join(named.rsplit('.', 1))!r}?"
    path = getattr(module, "__file__", None) or ""
    text = _text_of(path)
    rows = [  # a row in lower case and served elsewhere stands for that module alone
        (name if name.islower() and row.elsewhere else name.partition(".")[0], row)
        for name, row in _FRAMEWORKS.items()
        if row.example or row.elsewhere
    ]
    found = (row for package, row in rows if re.search(rf"{_IMPORTED}{package}\b", text, re.MULTILINE))
    used = next(found, _Framework())
    if used.elsewhere:
        return f"; {used.elsewhere.replace('FILE', os.path.basename(path))}"
    started = re.search(r"""\buvicorn\.run\(\s*["']([\w.]+:[\w.]+)["']""", text)
    if started:
        return f"; did you mean {started[1]!r}, which it starts?"
    is_inside = re.search(rf"^\s+{_APP_NAMES} *=(?!=)", text, re.MULTILINE)
    by_hand = re.search(r"^\s*(?:if|match)\b.*\b__name__\b(?s:.*)", text, re.MULTILINE)
    if by_hand and (is_inside or used.example):
        makes = set(re.findall(r"\w+(?=\()", used.example))
        for name in re.findall(r"\w+(?=\(\))", by_hand.group()):
            code = getattr(vars(module).get(name), "__code__", None)
            if code and not makes.isdisjoint(code.co_names) and "run" not in code.co_names:
                return f"; did you mean '{target}:{name}', which makes it?"
        return f", which makes it under if __name__ == '__main__' only; make it above: {used.example or 'app = ...'}"
    if is_inside:
        return f", which makes it inside of a function or a class; make it outside: {used.example or 'app = ...'}"
    classes = [thing for thing in vars(module).values() if issubclass(type(thing), type)]
    own = [thing for thing in classes if thing.__module__ == module.__name__]
    made = [f"app = {thing.__name__}(...)" for thing in own if not _FRAMEWORKS.keys().isdisjoint(_class_names(thing))]
    example = "".join(made[:1]) or used.example
    nearby = "" if _offers_app(path) else _folder_remedy(os.curdir, "")
    remedy = f"make one: {example}" if example else f"name the object: '{target}:NAME'"
    return f"; {remedy}{nearby and '; or '}{nearby}"


def _app_or_made(thing: Any, target: str, name: str, arguments: Optional[_Arguments] = None) -> Any:
    """Return `thing`, or the application that it makes, if there are arguments or it is a factory."""
    label = f"'{target}:{name}'"
    shape = _shape_of(_undecorated(thing))
    is_known = bool(_framework_of(thing) or is_asgi(thing) or (shape and (shape.is_async or shape.is_wsgi)))
    if is_known or not callable(thing) or (arguments is None and not _is_factory(thing, name)):
        checked(thing, label)
        if arguments is not None:
            raise DevserveError(f"{label} is an application, and no factory; leave the arguments out")
        return thing
    positional, keywords = arguments or ([], {})
    try:
        app = thing(*positional, **keywords)
    except TypeError as error:
        if _raised_inside(error):
            raise
        remedy = f"""write '{target}:{name}("text", key=1)'"""
        raise DevserveError(f"wrong arguments for {label}: {error}; {remedy}") from None
    return checked(app, f"what '{target}:{name}()' returned")


def _is_factory(thing: Any, name: str) -> bool:
    """Return whether a callable makes applications: by its name, or since it needs no arguments (under decorators)."""
    if name.rpartition(".")[2] in _FACTORIES or getattr(thing, "__name__", "") in _FACTORIES:
        return True
    thing = _undecorated(thing)
    shape = _shape_of(thing)
    if shape is None or shape.variable or shape.required:
        return False
    return not shape.names or type(thing) in (FunctionType, MethodType)


# -- what an application is


def checked(thing: Any, label: str) -> Any:
    """Return `thing`, or raise the DevserveError that says why it is no application, WSGI or ASGI."""
    objection = _objection(thing)
    if objection:
        raise DevserveError(f"{label} {objection}")
    return thing


def _objection(thing: Any) -> str:
    """Return why a thing is no application, with the remedy; "" for an application."""
    if not _COMMANDS.isdisjoint(_class_names(type(thing))):
        return "is a command line, not an application; name the application"
    framework = _framework_of(thing)
    if framework:
        return framework.elsewhere and f"is neither a WSGI nor an ASGI application; {framework.elsewhere}"
    if isinstance(thing, ModuleType) and not callable(thing):
        return f"is a module, not an application; name the object in it: '{thing.__name__}:app'"
    if isinstance(thing, type) and not (hasattr(thing, "__iter__") or is_asgi(thing)):  # as PEP 3333 allows the one
        return f"is a class, not an application; name an instance, or call it: {thing.__name__}()"
    if not callable(thing):
        held = static_attributes(thing)
        app = next((name for name in _WRAPPED_NAMES if callable(held.get(name))), "")
        remedy = f"add .{app}, which is" if app else "name an application"
        remedy = "is a `return` missing?" if thing is None else remedy
        return f"is not callable, its type is {type(thing).__name__}; {remedy}"
    if is_asgi(thing):
        return _objection_inside(thing)
    shape, inner = _shape_of(thing), _shape_of(_undecorated(thing))
    if inner is not None and inner.is_async:
        return (
            "is a coroutine function; an ASGI application takes (scope, receive, send), a factory is a plain function"
        )
    if shape is not None and shape.names[:2] == ("event", "context"):
        return "takes the events of AWS Lambda, and is neither a WSGI nor an ASGI application"
    if shape is not None and not shape.takes(2):
        required = shape.names[: shape.required]
        arguments = ", ".join("{}" if name == "global_config" else f"{name}=..." for name in required)
        if shape.names == ("scope",):
            return "is an ASGI 2 application; asgiref.compatibility.guarantee_single_callable makes it one of ASGI 3"
        known = "name its parameters (scope, receive, send) if it is an ASGI application; " if shape.takes(3) else ""
        remedy = f"if it is a factory, give its arguments: ({arguments})" if required else "is a call `()` missing?"
        return f"does not take (environ, start_response); {known}{remedy}"
    return _objection_inside(thing)


def _objection_inside(app: Any) -> str:
    """Return what is wrong with WSGI middleware around an ASGI application, or the reverse; "" if nothing is.

    An adapter is no mistake.  It is known by the other interface's name in its own (a2wsgi's and Starlette's), or by
    holding an application of each kind (Connexion's).
    """
    held = own_dict(app)
    mounts = held.get("mounts")  # of Werkzeug's dispatcher
    inside = [held[name] for name in _WRAPPED_NAMES if name in held]
    inside += mounts.values() if type(mounts) is dict else ()
    if is_asgi(app):
        is_wrong, own, other = any(map(_framework_of, inside)) and not any(map(is_asgi, held.values())), "ASGI", "WSGI"
    else:
        is_wrong, own, other = any(map(is_asgi, inside)), "WSGI", "ASGI"
    is_adapter = other.lower() in f"{type(app).__module__}.{type(app).__name__}".lower()
    objection = f"is {own} middleware, but the application in it is {other}; wrap it by {other} middleware"
    return objection if is_wrong and not is_adapter else ""


def is_asgi(app: Any) -> bool:
    """Return whether `app` is an ASGI 3 application: by its framework, or by its form.

    These forms are ASGI: a coroutine function of three parameters, an object with such a `__call__`, anything whose
    three parameters are named scope, receive and send, and a class whose instances are awaited (Starlette's
    endpoints).
    """
    framework = _framework_of(app)
    if framework:
        return framework.is_asgi
    if issubclass(type(app), type):
        return hasattr(app, "__await__")
    shape = _shape_of(_undecorated(app))
    return shape is not None and shape.takes(3) and (shape.is_async or shape.names[:3] == ("scope", "receive", "send"))


class _Shape(NamedTuple):
    """How something may be called, as far as positional arguments go."""

    names: tuple[str, ...]
    required: int
    variable: bool  # it takes *args
    is_async: bool

    @property
    def is_wsgi(self) -> bool:
        names = " ".join(self.names[: self.required])  # all of a factory's may have defaults
        return re.fullmatch(r"\w+ start_response|env(iron)? (start|sr|respond)", names) is not None

    def takes(self, count: int) -> bool:
        return self.required <= count and (self.variable or count <= len(self.names))


def _shape_of(thing: Any) -> Optional[_Shape]:
    """Return the shape of a function, a method or an object with `__call__`; None if it is not written in Python."""
    kind = type(thing)
    if kind is partial and not thing.keywords:
        shape = _shape_of(thing.func)
        given = len(thing.args)
        return shape and shape._replace(names=shape.names[given:], required=max(shape.required - given, 0))
    if kind in (FunctionType, MethodType):
        called, bound = thing, kind is MethodType
    else:
        called = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
        bound = not isinstance(called, staticmethod)
    function = getattr(called, "__func__", called)
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    names = code.co_varnames[int(bound) : code.co_argcount]
    required = max(len(names) - len(function.__defaults__ or ()), 0)
    return _Shape(names, required, bool(code.co_flags & _CO_VARARGS), bool(code.co_flags & _CO_ASYNC))


def _undecorated(thing: Any) -> Any:
    """Return the function inside of decorators, by `__wrapped__`; the shape of a decorator says nothing."""
    while type(thing) in _DECORATED and hasattr(thing, "__wrapped__"):
        shape = _shape_of(thing)
        if shape is not None and not shape.variable:
            break
        thing = thing.__wrapped__
    return thing


# -- applications inside of applications
#
# A framework's application is often wrapped in middleware, mounted in another, or called by a plain function.  So we
# look at everything that a callable holds, through attributes, closures and containers, without running a property.


def _framework_of(thing: Any) -> Optional[_Framework]:
    """Return the row in _FRAMEWORKS of the class of `thing`, or else of a base; None if there is none."""
    return next((_FRAMEWORKS[name] for name in _class_names(type(thing)) if name in _FRAMEWORKS), None)


def _class_names(kind: type) -> list[str]:
    """Return the names, with their modules, of a class and of its bases."""
    return [f"{base.__module__}.{base.__name__}" for base in kind.__mro__]


def _frameworks_in(app: Any) -> list[tuple[_Framework, Any]]:
    """Return the frameworks' applications among `app` and all that it may pass requests on to, each with its row."""
    found: dict[int, Any] = {}
    ahead = [app]
    while ahead and len(found) < _WALK_LIMIT:
        thing = ahead.pop()
        if id(thing) not in found:
            found[id(thing)] = thing
            ahead += filter(_may_be_app, _held_by(thing))
    rows = ((_framework_of(thing), thing) for thing in found.values())
    return [(framework, thing) for framework, thing in rows if framework]


def _held_by(app: Any) -> list[Any]:
    """Return what `app` may pass requests on to: its attributes, what a function refers to, what is mounted in it."""
    kind = type(app)
    if kind is MethodType:  # as in ProxyFix(app.wsgi_app)
        return [app.__self__]
    if kind is partial:
        return [app.func, *app.args]
    if kind is FunctionType:
        held = [app.__globals__.get(name) for name in app.__code__.co_names]
        for cell in app.__closure__ or ():
            with contextlib.suppress(ValueError):  # nothing is in it yet
                held.append(cell.cell_contents)
        return held
    framework = _framework_of(app)
    return [*_unpacked(own_dict(app), 3), *(framework.mounted(app) if framework else ())]


def _unpacked(value: Any, depth: int) -> Iterator[Any]:
    """Yield the members of dicts, lists and tuples, some levels deep: PasteDeploy and web.py list their mounts so."""
    if depth and type(value) in (dict, list, tuple):
        items = list(value.values()) if type(value) is dict else value
        for item in items[:_WALK_LIMIT]:
            yield from _unpacked(item, depth - 1)
    else:
        yield value


def _may_be_app(thing: Any) -> bool:
    """Return whether a thing looks like an application or like middleware, by the parameters it takes."""
    kind = type(thing)
    if kind is MethodType or _framework_of(thing):
        return True
    shape = None if issubclass(kind, (type, ModuleType)) else _shape_of(thing)
    return shape is not None and (shape.takes(2) or is_asgi(thing))


# -- frameworks


if TYPE_CHECKING:  # folders, the function that is told of changed files there, and which files count (None: all)
    _FrameworkFiles = tuple[list[str], Callable[[list[str]], bool], Optional[Callable[[str], Any]]]


class _Framework(NamedTuple):
    """All that is known of a framework.  A default means that the framework has, or needs, nothing of the kind."""

    open: Callable[[Any], object] = lambda app: None  # lets its exceptions reach the debugger, as the banner says
    debug: Callable[[Any], object] = lambda app: None  # turns its debug mode on, where `variable` has not
    variable: str = ""  # of the environment; turns its debug mode on while it is imported
    wrap: Callable[[Any], Any] = lambda app: app  # returns what is to be called in place of the object that was found
    default: Callable[[Any], Any] = lambda package: None  # returns the application that the package itself keeps
    mounted: Callable[[Any], Iterable[Any]] = lambda app: ()  # returns applications inside that no attribute holds
    files: Callable[[Any], Optional[_FrameworkFiles]] = lambda app: None  # see `framework_files`
    is_asgi: bool = False
    example: str = ""  # how to make an application that an import finds
    elsewhere: str = ""  # what serves it, if neither WSGI nor ASGI can


def _open_flask(app: Any) -> None:
    """Let exceptions through, as Flask does in debug mode; signals and teardown functions run as ever.

    If the application sets PROPAGATE_EXCEPTIONS itself, that holds.
    """
    if app.config.get("PROPAGATE_EXCEPTIONS") is None:
        app.config["PROPAGATE_EXCEPTIONS"] = True


def _open_quart(app: Any) -> None:
    """Let exceptions through, as Quart's debug mode does by itself up to 0.20; later ones answer with their own page.

    If the application sets PROPAGATE_EXCEPTIONS itself, that holds: a true value means Quart's page.
    """
    module: Any = _import_module("quart.asgi")
    own: Any = getattr(module, "_handle_exception", None)

    async def handle_exception(app: Any, error: Exception) -> Any:
        if app.config["PROPAGATE_EXCEPTIONS"] is None:
            raise error
        return await own(app, error)

    if app.config.get("PROPAGATE_EXCEPTIONS") is None:
        app.debug = True
        if own is not None:  # it is Quart's own business, and may go
            module._handle_exception = handle_exception


def _flask_files(app: Any) -> _FrameworkFiles:
    """Return the folders of templates, which Jinja reads anew by itself in debug mode, and the instance folder.

    In that one a file for `from_pyfile(..., silent=True)` may appear after the start.
    """
    loaders = [each.jinja_loader for each in (app, *app.blueprints.values())]
    for loader in loaders:  # a ChoiceLoader or PrefixLoader has others
        held = own_dict(loader)
        loaders += [*(held.get("loaders") or ()), *(held.get("mapping") or {}).values()]
    paths = [os.path.abspath(path) for loader in loaders for path in getattr(loader, "searchpath", ())]
    folders = [path.replace(os.sep, "/") for path in paths if not is_library(path, "")]
    config = re.escape(app.instance_path.replace(os.sep, "/")) + r"/[^/]+\.(py|cfg)"
    templates = "|".join(re.escape(folder) + r"/.*\.(html?|xml|txt|j2|jinja2?)" for folder in folders) or "(?!)"

    def reads_anew(paths: list[str]) -> bool:
        environment = vars(app).get("jinja_env")  # made when the first template is rendered, and not by us
        are_templates = all(re.fullmatch(templates, path.replace(os.sep, "/")) for path in paths)
        return are_templates and (environment is None or environment.auto_reload)

    return [app.instance_path, *folders], reads_anew, re.compile(f"{config}|{templates}").fullmatch


def _open_litestar(app: Any) -> None:
    """Have Litestar answer with our page what nothing in the application handles, and let it out of a WebSocket.

    An exception that has a status is meant as an answer, and is left to Litestar.
    """

    def handler(request: Any, error: BaseException) -> Any:
        text = "" if hasattr(error, "status_code") else hand_over(request.scope, error)
        if text:
            return sys.modules["litestar"].Response(text, status_code=500, media_type="text/plain")
        return _import_module("litestar.exceptions.responses").create_exception_response(request, error)

    async def after_exception(error: BaseException, scope: Any) -> None:
        if scope["type"] == "websocket" and not hasattr(error, "status_code"):
            raise error

    app.exception_handlers.setdefault(500, handler)
    app.after_exception.append(after_exception)


def _open_blacksheep(app: Any) -> None:
    """Let exceptions through at the place where BlackSheep logs and answers them, outside of all its middleware."""

    async def log_unhandled_exc(request: Any, error: BaseException) -> None:
        raise error

    app.log_unhandled_exc = log_unhandled_exc


def _open_sanic(app: Any) -> None:
    """Have Sanic's handler of last resort answer with our page; an exception with a status it answers as ever."""
    own = app.error_handler.default
    if own.__func__ is not _import_module("sanic.handlers").ErrorHandler.default:
        return  # the application's own answers

    def default(request: Any, error: BaseException) -> Any:
        text = "" if hasattr(error, "status_code") else hand_over(request.scope, error)
        return sys.modules["sanic"].text(text, 500) if text else own(request, error)

    app.error_handler.default = default


def _open_bottle(app: Any) -> None:
    """Answer inside of Bottle what a route raises, so that its hooks see a response; let all else through.

    Bottle's own switch for that is `catchall`; with it alone, what the hooks add to the response would be lost.
    """
    bottle = sys.modules["bottle"]
    app.catchall = False

    def plugin(callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return callback(*args, **kwargs)
            except (bottle.HTTPResponse, bottle.RouteReset):
                raise
            except Exception as error:  # as Bottle itself does; without a debugger it is raised again
                text = hand_over(bottle.request.environ, error)
                if not text:
                    raise
                return bottle.HTTPResponse(text, 500)

        return call

    app.plugins.insert(0, plugin)  # around all others: a database's sees the exception, and rolls back
    app.reset()


def _open_falcon(app: Any) -> None:
    """Have Falcon's own handler of last resort answer with our page; if the application has set one, that stays."""
    own: Any = getattr(app, "_python_error_handler", None)

    def handler(request: Any, response: Any, error: Any, params: Any) -> Any:
        text = hand_over(request.scope if is_asgi(app) else request.env, error)
        if not text:
            return own(request, response, error, params)
        response.status, response.content_type, response.text = "500 Internal Server Error", "text/plain", text
        return None

    async def handler_of_asgi(request: Any, response: Any, error: Any, params: Any) -> None:
        if response is None:  # a WebSocket, which Falcon would close without a word
            raise error
        answer = handler(request, response, error, params)
        if answer is not None:
            await answer

    if own is not None and getattr(app, "_error_handlers", {}).get(Exception) == own:  # nothing public tells
        app.add_error_handler(Exception, handler_of_asgi if is_asgi(app) else handler)


def _open_cherrypy(app: Any) -> None:
    """Have CherryPy answer with our page where it would make an error response; its hooks run all the same.

    What is raised while a body is sent goes through.  CherryPy does not log the exception, as we print it.
    """
    for mounted in app.apps.values() if hasattr(app, "apps") else [app]:
        config = mounted.config.setdefault("/", {})
        for tool in ("log_tracebacks", "log_headers"):
            config.setdefault(f"tools.{tool}.on", False)
        mounted.wsgiapp.config.setdefault("ExceptionTrapper", {})["throws"] = (BaseException,)
    # The weakest place: what the application says in any other stays.
    sys.modules["cherrypy"].config.setdefault("request.error_response", _answer_for_cherrypy)


def _answer_for_cherrypy() -> None:
    """Make CherryPy's own 500 the response to this thread's request, with our text if a debugger listens."""
    cherrypy = sys.modules["cherrypy"]
    error = sys.exc_info()[1]
    text = hand_over(cherrypy.serving.request.wsgi_environ, error) if error else ""
    cherrypy.HTTPError(500).set_response()
    if text:
        cherrypy.serving.response.body = text.encode()
        cherrypy.serving.response.headers.pop("Content-Length", None)


def _cherrypy_files(app: Any) -> _FrameworkFiles:
    """Return the configuration files that CherryPy's own reloader watches: each that was named to it."""
    files = sys.modules["cherrypy"].engine.autoreload.files
    return list(filter(os.path.isfile, files)), lambda paths: False, None


def _open_webpy(app: Any) -> None:
    """Call web.py's processors around its handler as it does, but catch nothing in between."""

    def handle_with_processors() -> Any:
        handle = app.handle
        for processor in reversed(app.processors):
            handle = partial(processor, handle)
        return handle()

    app.handle_with_processors = handle_with_processors


def _open_django(app: Any) -> None:
    """Have Django's function that makes its error page hand the exception to the debugger instead.

    So signals are sent once, and every middleware gets a response, as under runserver.  With DEBUG = False Django
    answers with the page for the public, and logs nothing to a terminal, so the debugger is told by a signal.  If the
    project's settings have DEBUG_PROPAGATE_EXCEPTIONS, True or False, we change nothing.
    """
    settings = sys.modules["django.conf"].settings
    if settings.is_overridden("DEBUG_PROPAGATE_EXCEPTIONS"):
        return
    _keep_tracebacks_once()
    if not settings.DEBUG:
        _import_module("django.core.signals").got_request_exception.connect(_tell_of_django)
        return
    debug: Any = _import_module("django.views.debug")
    own = debug.technical_500_response

    def technical_500_response(request: Any, kind: Any, error: Any, traceback: Any, status_code: int = 500) -> Any:
        text = hand_over(_environ_of_django(request), error)
        if not text:
            return own(request, kind, error, traceback, status_code)
        request.devserve_has_told = True
        tried = [place for missing in (*getattr(error, "chain", ()), error) for place in getattr(missing, "tried", ())]
        if tried and not hasattr(error, "__notes__"):
            places = dict.fromkeys(f"Django tried {origin} ({status})" for origin, status in tried)
            error.__notes__ = ["\n".join(places)]  # PEP 678
        return sys.modules["django.http"].HttpResponse(text, status=status_code)

    debug.technical_500_response = technical_500_response


def _tell_of_django(request: Any = None, **_: Any) -> None:
    """Be a receiver of Django's signal that an exception, the present one, has reached its handler."""
    error = sys.exc_info()[1]
    if error is not None and hand_over(_environ_of_django(request), error):
        request.devserve_has_told = True


def _environ_of_django(request: Any) -> Any:
    return getattr(request, "environ", None) or getattr(request, "scope", {})


def _keep_tracebacks_once() -> None:
    """Have Django's log handlers for the terminal leave out the tracebacks that the debugger has written there."""
    logging = sys.modules["logging"]

    def is_news(record: Any) -> bool:
        return not getattr(getattr(record, "request", None), "devserve_has_told", False)

    for name in ("django.request", "django", ""):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stderr, sys.stdout):
                handler.addFilter(is_news)


def _wrap_django(app: Any) -> Any:
    """Return `app` wrapped so that the project's static files are served in debug mode, as runserver does."""
    settings, registry = sys.modules["django.conf"].settings, sys.modules["django.apps"].apps
    # Each may be listed by its AppConfig or by one derived from it; the name in that is the same.
    configs = [config.name for config in registry.app_configs.values()]
    installed = configs if registry.apps_ready else settings.INSTALLED_APPS  # a bare WSGIHandler() sets nothing up
    is_asked = "django.contrib.staticfiles" in installed and "whitenoise.runserver_nostatic" not in installed
    if not is_asked or not settings.DEBUG:
        return app
    handlers = _import_module("django.contrib.staticfiles.handlers")
    handler = handlers.ASGIStaticFilesHandler if is_asgi(app) else handlers.StaticFilesHandler
    return app if isinstance(app, handler) else handler(app)


def _django_files(app: Any) -> _FrameworkFiles:
    """Ask all parts of Django, by the signal of its own reloader, which files they read: templates, translations, what
    a library adds.  Return these without installed packages', and the function that tells Django of a change."""
    from fnmatch import fnmatch

    _import_module("django.utils.translation").get_language()  # only after a first use its reloader is connected
    autoreload = _import_module("django.utils.autoreload")
    reloader = autoreload.BaseReloader()
    autoreload.autoreload_started.send_robust(sender=reloader)
    cwd = os.getcwd()
    asked = [(os.path.join(cwd, folder), glob) for folder, globs in reloader.directory_globs.items() for glob in globs]
    asked = [(folder, os.path.basename(glob)) for folder, glob in asked if not is_library(folder, cwd)]
    files = filter(os.path.isfile, (os.path.join(cwd, path) for path in reloader.extra_files))

    def is_asked(path: str) -> bool:
        return any(is_below(path, folder) and fnmatch(os.path.basename(path), glob) for folder, glob in asked)

    return [*files, *(folder for folder, _ in asked)], partial(_notify_django, autoreload.file_changed), is_asked


def _notify_django(file_changed: Any, paths: list[str]) -> bool:
    """Send Django's signal for each file that some part of it has asked for; return whether a part took each."""
    from pathlib import Path

    answers = [file_changed.send_robust(sender=None, file_path=Path(path)) for path in paths]
    return all(any(answer is True for _, answer in each) for each in answers)


# An application that was made before `run` was called has not seen FLASK_DEBUG.
_FLASK = _Framework(
    _open_flask,
    lambda app: setattr(app, "debug", True),
    "FLASK_DEBUG",
    files=_flask_files,
    example="app = flask.Flask(__name__)",
)
_DJANGO = _Framework(
    _open_django,
    wrap=_wrap_django,
    files=_django_files,
    example="app = django.core.wsgi.get_wsgi_application()",
)
# It raises after it has answered.
_STARLETTE = _Framework(is_asgi=True, example="app = starlette.applications.Starlette(routes=[...])")
# By the full name of the class of their applications; those that have no such class by the name of their package.
_FRAMEWORKS: dict[str, _Framework] = {
    "flask.app.Flask": _FLASK,
    "django.core.handlers.wsgi.WSGIHandler": _DJANGO,
    "bottle.Bottle": _Framework(
        _open_bottle,
        debug=lambda app: sys.modules["bottle"].debug(True),
        default=lambda bottle: bottle.default_app() if bottle.default_app().routes else None,
        mounted=lambda app: [
            held for route in app.routes for held in (route.app, route.config.get("mountpoint.target"))
        ],
        example="app = bottle.Bottle()",
    ),
    "falcon.app.App": _Framework(_open_falcon, example="app = falcon.App(), or falcon.asgi.App()"),
    "pyramid.router.Router": _Framework(variable="PYRAMID_RELOAD_TEMPLATES", example="app = config.make_wsgi_app()"),
    "tg.wsgiapp.TGApp": _Framework(example="app = config.make_wsgi_app()"),
    "cherrypy._cptree.Application": _Framework(
        _open_cherrypy, files=_cherrypy_files, example="app = cherrypy.Application(Root())"
    ),
    "cherrypy._cptree.Tree": _Framework(
        _open_cherrypy, files=_cherrypy_files, default=lambda cherrypy: cherrypy.tree if cherrypy.tree.apps else None
    ),
    "web.application.application": _Framework(
        _open_webpy,
        wrap=lambda app: app.wsgifunc() if hasattr(app, "wsgifunc") else app,  # what is called is a function
        example="app = web.application(urls, globals())",
    ),
    "starlette.applications.Starlette": _STARLETTE,
    "fastapi.applications.FastAPI": _STARLETTE._replace(example="app = fastapi.FastAPI()"),
    "quart.app.Quart": _FLASK._replace(
        open=_open_quart, variable="QUART_DEBUG", is_asgi=True, example="app = quart.Quart(__name__)"
    ),
    "django.core.handlers.asgi.ASGIHandler": _DJANGO._replace(is_asgi=True),
    "channels.routing.URLRouter": _Framework(
        mounted=lambda app: [getattr(route, "callback", None) for route in app.routes], is_asgi=True
    ),
    "falcon.asgi.app.App": _Framework(_open_falcon, is_asgi=True),
    "litestar.app.Litestar": _Framework(_open_litestar, is_asgi=True, example="app = litestar.Litestar([...])"),
    "sanic.app.Sanic": _Framework(_open_sanic, is_asgi=True, example="app = sanic.Sanic('name')"),
    "blacksheep.server.application.Application": _Framework(_open_blacksheep, is_asgi=True),
    "dash.dash.Dash": _Framework(
        wrap=lambda app: getattr(app, "server", app),  # it is no application, but has Flask's
        example="app = dash.Dash()",
    ),
    "slack_bolt.app.app.App": _Framework(elsewhere="Bolt serves it: app.start(), or an adapter in slack_bolt.adapter"),
    "klein._app.Klein": _Framework(elsewhere="Klein serves it: app.run('localhost', 8080)"),
    "aiohttp.web_app.Application": _Framework(elsewhere="aiohttp serves it: aiohttp.web.run_app(app)"),
    "tornado.web.Application": _Framework(elsewhere="Tornado serves it: app.listen(8000)"),
    "robyn.Robyn": _Framework(elsewhere="Robyn serves it: python FILE"),
    "lona.app.App": _Framework(elsewhere="Lona serves it: python FILE"),
    "spyne.application.Application": _Framework(
        elsewhere="wrap it: app = spyne.server.wsgi.WsgiApplication(application)"
    ),
    "marimo._ast.app.App": _Framework(elsewhere="marimo serves it: marimo run FILE"),
    "solara": _Framework(elsewhere="Solara serves it: solara run FILE"),
    "chainlit": _Framework(elsewhere="Chainlit serves it: chainlit run FILE"),
    "shiny.express": _Framework(elsewhere="Shiny serves it: shiny run FILE"),
    "bokeh": _Framework(elsewhere="Bokeh serves it: bokeh serve FILE"),
    "streamlit": _Framework(elsewhere="Streamlit serves it: streamlit run FILE"),
    "gradio.blocks.Blocks": _Framework(elsewhere="Gradio serves it: python FILE"),
    "nicegui.app.app.App": _Framework(elsewhere="NiceGUI serves it: python FILE"),
    "panel": _Framework(elsewhere="Panel serves it: panel serve FILE"),
    "twisted": _Framework(elsewhere="Twisted serves it: python FILE"),
    "http.server": _Framework(elsewhere="http.server serves it: python FILE"),
    "xmlrpc.server": _Framework(elsewhere="xmlrpc.server serves it: python FILE"),
}


def framework_files(app: Any) -> _FrameworkFiles:
    """Return the folders that a framework in `app` reads from, a function that tells it which files there have
    changed, and a predicate for the paths that count; None: all.

    The watcher's thread calls the first function; it returns whether that is enough, so that no reload is needed.
    """
    found = (framework.files(inner) for framework, inner in _frameworks_in(app))
    return next(filter(None, found), ([], lambda paths: False, None))


# =====================================================================================================================
# 5. Traceback
#
# An exception becomes plain data, a `Report`: what was raised, why, where, with which source and which values.  It
# holds no markup; a room that makes a page of it only escapes it.  May know foreign code (2) alone.
#
# Three things stand for a frame.  A `FramePosition` is the live frame with the line and the instruction that it had
# when the exception passed; it is kept for consoles, and nothing is read.  `view_position` makes a `FrameView` of it,
# with source and marks but no values, which is cheap.  `with_values` adds the values, which runs foreign code; for the
# frames of libraries that happens when somebody opens them on the page.
#
# Values come from the frame's own variables and from the names, attributes and subscripts on the failing line
# (`expressions_in`).  `_Scope.find` evaluates such an expression: first without running code, then, in a bounded call,
# with the property or the proxy that it needs.  It never makes a call that stands on that line, and does not evaluate
# again what has just failed.  `_describe` turns every value into a text and masks the secrets in it.
#
# One budget bounds a report, whatever has failed: `_REPORT_SIZE` characters and `_REPORT_SECONDS` of foreign code.
# What is nearest to the failure is read first; once the budget is spent, the rest is only counted.
#
# How to change: what makes a name secret is in `_SECRET_WORD`, and names that look so but are not in `_ABOUT_SECRETS`
# and `_PLAIN_KEYS`.  A way to write a secret inside of a text is a row of `_SECRET_TEXTS`: a piece that such a text
# must contain, which is searched first as it is fast, and a pattern, whose last group is masked.  If there is
# a group before that one, it is the name, which must be secret by the rules above.  A template engine is a row of
# `_TEMPLATE_ENGINES`, and a new kind of "Did you mean" a branch of `_names_meant`.
#
# Invariants: every text in a report is bounded, printable and encodable, and the secrets in it are masked.  An
# object's own code runs only in a bounded call.  If one object misbehaves, only its own text is lost.
#
# Doors: LINES_AROUND, Variable, FrameView, ExceptionView, Report, FramePosition, read_report, view_position,
# with_values, members_at, behind_proxy, code_tokens, expressions_in, read_request, mask_secrets.
#
# Read first: Report, _ReportBuilder, with_values, expressions_in, _describe.
# =====================================================================================================================

_REPORT_SIZE = 60_000  # characters; a page of them weighs less than 100 kB
_REPORT_SECONDS = 0.7  # of foreign code: with the text on the terminal a hostile crash takes about a second
_VALUES_SECONDS = 0.5  # for the values of one frame
_QUICK_SECONDS = 0.1  # for a message, a hint, the values of a frame further out
_FRAME_SIZE = 1_000  # characters that a frame, or an exception apart from its frames, is taken to need
LINES_AROUND = 5  # source lines on each side of a line of the application's; a person sees so many at a glance
_LIBRARY_LINES_AROUND = 2  # and of a library's: folded on the page, and most of its weight
_LINE_LIMIT = 400  # characters of a source line; only generated code is longer
_TEXT_LIMIT = 10_000  # characters of a message or a note; enough for a compiler's, harmless to a browser
_MASK_LIMIT = 5 * _TEXT_LIMIT  # characters searched for secrets: one may begin before the cut and be known only after
_PAST_LIMIT = 250  # characters past a limit that are masked, too: a password in a URL is known by the @ after it
_VALUE_LIMIT = 800  # characters of a value: ten lines of the page; what is inside a longer one can be unfolded
_LIST_LIMIT = 60  # variables of a frame, fields of a form, members of a value; only generated code has more
_DEPTH_LIMIT = 6  # containers within containers
_GROUP_DEPTH = 10  # groups within groups, as in Python's tracebacks
_ROUNDS_FOLDED = 4  # rounds from which a recursion is folded; fewer are read as fast as the line that counts them
_NEAR_LIMIT = 5_000  # names that are compared with a wrong one; so many take 20 ms of `_QUICK_SECONDS`
_NEAR_FRAMES = 8  # frames, from the innermost, in which we look for the mapping that lacks a key
_NEARNESS = 0.7  # similarity from which a name is suggested; with difflib's own 0.6, `local` would be for `total`
# What SQLite, PostgreSQL and MySQL say of a table or a column that a migration would have made
_NO_TABLE = (
    r"no such (table|column): |(relation|column) .{1,200} does not exist"
    r"|Table '.{1,200}' doesn't exist|Unknown column '"
)
_MIGRATIONS = {  # by the module of what migrates: the command that applies migrations
    "django.db": "python manage.py migrate",
    "flask_migrate": "flask db upgrade",
    "alembic": "alembic upgrade head",
}
_MASK = "••••••••"


class _SourceLine(NamedTuple):
    """One line of source, without its line end; a long one is cut, with an ellipsis."""

    number: int
    text: str


class _Mark(NamedTuple):
    """The failing expression on one line: the characters `start` up to, not including, `end` of that line's text."""

    number: int
    start: int
    end: int


class Variable(NamedTuple):
    """One value of a frame: of a name, or of an expression on the failing line such as `self.total`."""

    name: str
    type: str  # the type's name, qualified by its module unless builtin
    value: str  # its repr, or in brackets why there is none
    argument: bool = False  # the function was called with it
    used: bool = False  # it stands on the failing line
    opens: bool = False  # it has members, which `members_at` lists


class FrameView(NamedTuple):
    """One place of a traceback: a Python frame, a template's line, or where a SyntaxError points."""

    id: str  # by which the console and the endpoints find the frame; "" for a place that has no frame
    kind: str  # "python", "template" or "syntax"
    filename: str  # as the code object has it: usually absolute; in angle brackets when there is no file
    lineno: int  # 0 when unknown
    name: str  # the function's qualified name; for a template, the name that its engine uses
    module: str = ""  # "" when unknown
    app: bool = False  # the application's own code, neither the standard library nor an installed package
    source: tuple[_SourceLine, ...] = ()  # a window around lineno; empty when there is none to show
    missing: str = ""  # why `source` is empty: a whole sentence; "" otherwise
    marks: tuple[_Mark, ...] = ()  # the failing expression; none before Python 3.11, and if it is the whole line
    variables: tuple[Variable, ...] = ()  # of the failing line, then arguments, then other locals, by `with_values`
    unlisted: int = 0  # variables beyond `_LIST_LIMIT`
    is_read: bool = False  # its values were read, even if it has none
    skipped: int = 0  # frames after this one that are not listed: rounds of a recursion, or the middle of too many
    path: str = ""  # of the file as people name it: below the working directory, the packages or the library


class ExceptionView(NamedTuple):
    """One exception of a chain, with the members of a group."""

    type: str  # qualified by its module unless builtin
    message: str  # "" when it has none; several lines when it has them
    hint: str  # a "Did you mean", or the signature of a function that was called wrongly, in a whole sentence; or ""
    notes: tuple[str, ...]
    relation: str  # to the one before it in the chain: "cause" (raised from it), "context" (while handling it), ""
    frames: tuple[FrameView, ...]  # the outermost call first; a SyntaxError's or template's own place comes last
    members: tuple[tuple[ExceptionView, ...], ...] = ()  # of a group: each member is a chain like `Report.problems`
    unlisted: int = 0  # members that are not shown
    skipped: int = 0  # exceptions of the chain between the one before it and this one that are not shown


class _Request(NamedTuple):
    """The request that failed, secrets masked."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    form: tuple[tuple[str, str], ...]  # what the body held, as far as the application had read it
    environ: tuple[tuple[str, str], ...]  # the rest of the WSGI environ, values as repr


class Report(NamedTuple):
    """A whole crash.  `problems` is the chain of exceptions, the first cause first, the one that came out last."""

    problems: tuple[ExceptionView, ...]
    request: Optional[_Request]
    versions: tuple[tuple[str, str], ...]  # Python, the system, devserve, the frameworks at work
    time: str  # when it was read, local time, ISO 8601 to the second
    link: str = ""  # the address of its page
    text: str = ""  # the traceback as the interpreter prints it, library frames counted


class FramePosition(NamedTuple):
    """A frame, and where it was when the exception passed; the frame itself may have moved on since."""

    frame: FrameType
    lineno: int
    lasti: int
    context: Optional[Context] = None  # in which its values are read, so that Flask's `request` is that of the crash
    template: str = ""  # the text of the template that is rendered, if it has no file


if TYPE_CHECKING:
    _Keep = Callable[[FramePosition], str]  # keeps a position and returns the id under which it can be asked for
    _Source = tuple[list[str], str]  # the lines of a file, and why there are none
    _Job = tuple[Any, Callable[[], Any]]  # a value, or MISSING, and the call that reads it
    _Member = tuple[Any, str, Any]  # its key, the name by which it may be a secret, and the member


def read_report(
    error: BaseException,
    request: Optional[_Request] = None,
    keep: _Keep = lambda position: "",
    context: Optional[Context] = None,
    text: str = "",
) -> Report:
    """Return all that is known about `error`.

    `request` is what `read_request` returned.  `keep` is called for each frame that the report lists, and returns the
    frame's id.  `context` (the present one unless given) is the one in which a framework's proxies stand for the
    request that failed.  `text` is the traceback, if it was printed already.
    """
    problems = _ReportBuilder(keep, context).chain(error)
    text = text or traceback_text(error, folded=True)
    cut = len(text) - 2 * _TEXT_LIMIT
    if cut > 0:  # of a long text, its beginning (the first cause) and its end are worth most
        head, tail = _mask_messages(text[:_MASK_LIMIT]), _mask_messages(text[-_MASK_LIMIT:])
        text = f"{head[:_TEXT_LIMIT]}\n… ({cut:,} more characters)\n{tail[-_TEXT_LIMIT:]}"
    else:
        text = _mask_messages(text)
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Report(problems, request, _versions(), now, text=escape_unprintable(text, "\n\t"))


class _ReportBuilder:
    """Makes one report, and keeps what is left of its budget: `size` characters, and time `until`.  For one thread.

    `chain` reads an exception with its causes, `exception` one of them, `frames` its frames, and `view` one frame.
    Each lessens the budget, so the order of these calls decides what is left out of a large report.
    """

    def __init__(self, keep: _Keep, context: Optional[Context] = None) -> None:
        self.keep, self.context = keep, context
        self.size = _REPORT_SIZE
        self.until = time.monotonic() + _REPORT_SECONDS
        self.has_values = False  # the innermost of the application's frames has been read

    def seconds(self, most: float = _QUICK_SECONDS) -> float:
        """Return how many seconds the next foreign code may take: `most`, or less when little time is left."""
        return max(0.005, min(most, self.until - time.monotonic()))

    def spend(self, text: str) -> str:
        """Return `text` as it can be shown, secrets masked, and take it from the budget."""
        text = shown_text(mask_secrets(text), max(NAME_LIMIT, min(_TEXT_LIMIT, self.size)))
        self.size -= len(text)
        return text

    def chain(self, error: BaseException, depth: int = 0) -> tuple[ExceptionView, ...]:
        """Return `error` and its causes and contexts, the oldest first; of a long chain the newest and the root."""
        newest, *linked = linked_exceptions(error)
        views = [self.exception(*newest, depth)]
        for number, (each, relation) in enumerate(linked, 1):
            if self.size > _REPORT_SIZE // 2 or number == len(linked):
                views[-1] = views[-1]._replace(skipped=number - len(views))
                views.append(self.exception(each, relation, depth))
        return tuple(reversed(views))

    def exception(self, error: BaseException, relation: str, depth: int) -> ExceptionView:
        """Return one exception with its frames and, when it is a group, its members."""
        self.size -= _FRAME_SIZE
        positions = _positions_of(error, self.context)
        message = self.spend(_message_of(error, self.seconds()))
        hint = call_bounded(partial(_hint_for, error, positions), self.seconds())[0] or ""
        notes = tuple(map(self.spend, self.notes(error)))
        named_places, _ = call_safely(lambda: list(_named_places(error, self.seconds())))
        frames = (*self.frames(error, positions), *(named_places or ()))
        members, listed = group_members(error), []
        for member in members if depth < _GROUP_DEPTH else ():
            if self.size > 0:
                listed.append(self.chain(member, depth + 1))
        unlisted = len(members) - len(listed)
        return ExceptionView(type_name(type(error)), message, hint, notes, relation, frames, tuple(listed), unlisted)

    def notes(self, error: BaseException) -> Iterator[str]:
        """Yield the notes that were added (PEP 678), one that is no text as its repr; then what Django says beside."""
        notes = own_dict(error).get("__notes__", ())
        notes = notes[:_LIST_LIMIT] if type(notes) in (list, tuple) else [notes]
        told = [note if type(note) is str else _safe_repr(note, _TEXT_LIMIT, self.seconds()) for note in notes]
        yield from told
        tried: Any = own_dict(error).get("tried") if type(error).__name__ == "TemplateDoesNotExist" else ()
        lines, _ = call_safely(lambda: [f"{origin.name} ({status})" for origin, status in tried[:_LIST_LIMIT]])
        if lines and not any(note.startswith("Django tried") for note in told):
            yield "\n".join(["Django looked in:", *lines])

    def frames(self, error: BaseException, positions: list[FramePosition]) -> list[FrameView]:
        """Return the views of `positions`, recursion folded; the values of the application's frames are read.

        The innermost of them comes first, and has as much time as any frame that is asked for later.
        """
        folded = _fold_recursion(positions, half=max(2, self.size // _FRAME_SIZE // 2))
        views = [self.view(position)._replace(skipped=skipped) for position, skipped in folded]
        own = [number for number, view in enumerate(views) if view.app] or list(range(len(views)))[-1:]
        for number in reversed(own):
            if self.has_values and self.size <= 0:
                break
            seconds = self.seconds(_QUICK_SECONDS if self.has_values else _VALUES_SECONDS)
            views[number] = with_values(views[number], folded[number][0], seconds)
            self.has_values = True
            self.size -= sum(len(v.name) + len(v.type) + len(v.value) for v in views[number].variables)
        return views

    def view(self, position: FramePosition) -> FrameView:
        """Return the view of one position; if the frame cannot be read, one with file, line and name alone."""
        id, code = self.keep(position), position.frame.f_code
        view, _ = call_safely(lambda: view_position(position, id=id))
        if view is None:
            source: _Source = ([], "The frame cannot be read.")
            view = _view_at("python", code.co_filename, position.lineno, code.co_name, source)._replace(app=False)
        self.size -= sum(len(line.text) for line in view.source) + len(view.filename) + len(view.name)
        return view


# -- what was raised
#
# An exception is an object of the application's like any other: its class may hide `args`, `__cause__` and `__dict__`
# behind properties, and its `__str__` may raise, hang, or return no text.  So we read the interpreter's own slots,
# past the class (`raw_slot`, `own_dict`); only for the message its code is run, in a bounded call.


def _first_text(error: BaseException) -> str:
    """Return the first argument of an exception if it is a text, else ""."""
    args = raw_slot(error, "args")
    return args[0] if args and type(args[0]) is str else ""


def _message_of(error: BaseException, seconds: float) -> str:
    """Return the message of an exception; that of a SyntaxError without file and line, which are shown as a frame."""
    if isinstance(error, SyntaxError) and type(error.msg) is str and type(error).__str__ is SyntaxError.__str__:
        return error.msg
    return str(error) if has_plain_text(error) else _text_or_why(*call_bounded(partial(str, error), seconds))


# -- where it was raised
#
# A traceback is a chain of (frame, line, instruction); the frame's own line has moved on since.


def _positions_of(error: BaseException, context: Optional[Context]) -> list[FramePosition]:
    """Return the positions of the traceback, outermost first, without machinery and frames that ask to be hidden.

    They ask by a local that pytest, Werkzeug and others read.
    """
    positions, tb, template = [], application_traceback(error), ""
    while tb is not None:
        if tb.tb_frame.f_code.co_name == "render_template_string":  # Flask's and Quart's: Jinja2 keeps no such text
            text = locals_of(tb.tb_frame).get("source")
            template = text if type(text) is str else ""
        positions.append(FramePosition(tb.tb_frame, tb.tb_lineno or 0, tb.tb_lasti, context, template))
        tb = tb.tb_next
    hides = [locals_of(position.frame).get("__traceback_hide__") for position in positions]
    return [each for each, hidden in zip(positions, hides) if hidden is False or hidden is None] or positions[-1:]


def _fold_recursion(positions: list[FramePosition], half: int) -> list[tuple[FramePosition, int]]:
    """Return the positions to list, each with the number of those that are left out after it.

    Of a line through which a recursion has passed again and again, the first and the last position are kept.  If there
    are still more than twice `half`, so many are kept at each end.
    """
    rounds: dict[tuple[CodeType, int], list[int]] = defaultdict(list)
    for number, position in enumerate(positions):
        rounds[position.frame.f_code, position.lineno].append(number)
    left_out = {n for numbers in rounds.values() if len(numbers) >= _ROUNDS_FOLDED for n in numbers[1:-1]}
    kept = [number for number in range(len(positions)) if number not in left_out]
    if len(kept) > 2 * half:
        kept = kept[:half] + kept[-half:]
    following = [*kept[1:], len(positions)]
    return [(positions[number], after - number - 1) for number, after in zip(kept, following)]


def view_position(position: FramePosition, *, id: str = "", around: int = 0) -> FrameView:
    """Return the view of one frame without its values, with `around` lines of source on each side; 0: the default."""
    frame, code, template = position.frame, position.frame.f_code, _template_line(position)
    line = template or _TemplateLine(code.co_filename, position.lineno, _qualified_name(frame), {})
    source = _read_source(line.filename, frame.f_globals)
    if template and position.template and line.filename[:1] == "<":
        source = position.template.split("\n"), ""
    if not template and not _is_source_of(code, source[0]):
        source = [], "The file has changed since it was loaded."
    marks = [_Mark(line.lineno, *line.mark)] if template else _marks_of(position, source[0])
    view = _view_at("template" if template else "python", line.filename, line.lineno, line.name, source, marks, around)
    module = frame.f_globals.get("__name__")
    app = view.app and (template is not None or is_app_code(code))  # devserve.py itself may lie in the project
    return view._replace(id=id, app=app, module=shown_text(module, NAME_LIMIT) if isinstance(module, str) else "")


def _view_at(
    kind: str, filename: str, lineno: int, name: str, source: _Source, marks: Sequence[_Mark] = (), around: int = 0
) -> FrameView:
    """Return the view of a line of a source: the lines around it and the marks, in characters of what is shown.

    A template counts as the application's by its path alone.
    """
    lines, missing = source
    app = not is_library(filename, "") if kind == "template" else is_app_file(filename)
    around = around or (LINES_AROUND if app else _LIBRARY_LINES_AROUND)
    spans = {mark.number: (mark.start, mark.end) for mark in marks}
    window, shown_marks = [], []
    first = max(1, lineno - around)
    for number, line in enumerate(lines[first - 1 : lineno + around] if len(lines) >= lineno >= 1 else [], first):
        text, start, end = _shown_line(line, *spans.get(number, (0, 0)))
        window.append(_SourceLine(number, text))
        shown_marks += [_Mark(number, start, end)] if end > start else []
    while window and window[-1].number > lineno and not window[-1].text.strip():
        window.pop()
    if lines and not window:
        missing = f"The file has {len(lines)} lines: it has changed since it was loaded."
    path, filename = (shown_text(text, _TEXT_LIMIT) for text in (short_path(filename), filename))
    view = FrameView("", kind, filename, lineno, shown_text(name, NAME_LIMIT), app=app, path=path)
    return view._replace(source=tuple(window), marks=tuple(shown_marks), missing="" if window else missing)


def _is_source_of(code: CodeType, lines: list[str]) -> bool:
    """Return whether these lines are the source of `code`, by its first line: they may have been saved since."""
    first = lines[code.co_firstlineno - 1 : code.co_firstlineno]
    is_function = code.co_name.isidentifier() and code.co_filename.endswith(".py") and code.co_name != "__annotate__"
    # The name stands in a line of its own for `type Name = …`, and for a type parameter.
    expected = rf"\s*(@|class\b|def\b|async\b)|.*\b(lambda|{re.escape(code.co_name)})\b"
    return not (first and is_function) or re.match(expected, first[0]) is not None


def _qualified_name(frame: FrameType) -> str:
    """Return the function's qualified name; before 3.11 it is put together from the first argument."""
    code = frame.f_code
    if sys.version_info >= (3, 11):
        return code.co_qualname
    values = locals_of(frame)
    if code.co_varnames[:1] == ("self",) and code.co_argcount and "self" in values:
        return f"{type_name(type(values['self'])).rpartition('.')[2]}.{code.co_name}"
    return code.co_name


def _read_source(filename: str, module_globals: Optional[Mapping[str, Any]] = None) -> _Source:
    """Return the lines of a source, or none and a sentence why.

    `linecache` has read most sources already, for the traceback's text.  It decodes as PEP 263 says, and also has what
    a shell has registered and what a loader has in a zip file.  What it cannot decode is shown with escapes.
    """
    import linecache

    if os.path.exists(filename) and not os.path.isfile(filename):
        return [], "This is no file."  # but a device or a pipe, which may have no end
    linecache.checkcache(filename)
    lines, _ = call_safely(lambda: linecache.getlines(filename, dict(module_globals or {})))
    if lines:
        return [line.rstrip("\r\n") for line in lines], ""
    if filename.startswith("<frozen "):
        return [], "This code is built into the interpreter."
    if filename[:1] == "<":
        return [], "This code came from exec, eval or a template, not from a file."
    try:
        with open(filename, encoding="utf-8", errors="backslashreplace") as file:
            return file.read().split("\n"), ""
    except PermissionError:
        return [], "The file may not be read."
    except (OSError, ValueError):
        return [], "The file is not there."


def _shown_line(line: str, start: int, end: int) -> tuple[str, int, int]:
    """Return a source line and the columns of its mark as they are shown; a long line is cut around its mark."""
    begin = max(0, min(start, end - _LINE_LIMIT // 2)) if end > _LINE_LIMIT else 0
    if begin:  # not inside of a string, whose end would look like the beginning of another
        spans = code_tokens([line])[0]
        begin = next((stop for first, stop, _ in spans if first < begin < stop <= start), begin)
    stop = begin + _LINE_LIMIT
    pieces = line[begin : min(start, stop)], line[start : min(end, stop)], line[end:stop]
    before, marked, after = (escape_unprintable(piece, "\t") for piece in pieces)
    before = "…" + before if begin else before
    after += "…" if len(line) > stop else ""
    return before + marked + after, len(before), len(before + marked)


def _marks_of(position: FramePosition, lines: list[str]) -> list[_Mark]:
    """Return the marks of the expression that was being evaluated, in characters of the raw lines.

    There are none before Python 3.11, whose code objects have no columns; nor for an expression that is the whole
    line, nor for a compound statement, whose position includes its body in some versions (`with` and `for` before
    3.13).
    """
    if sys.version_info < (3, 11) or position.lasti < 0:
        return []
    spot = next(itertools.islice(position.frame.f_code.co_positions(), position.lasti // 2, None), None)
    first, last, start, end = (number or 0 for number in spot or (0, 0, 0, 0))
    if first != position.lineno or last > len(lines) or not end:
        return []
    start, end = _characters(lines[first - 1], start), _characters(lines[last - 1], end)
    if re.match(r"\s*(async\s+)?(with|for|while|if|match|class|def)\b", lines[first - 1][start:]):
        return []
    marks = []
    for number, line in enumerate(lines[first - 1 : last], first):
        left = start if number == first else len(line) - len(line.lstrip())
        right = min(end, len(line.rstrip())) if number == last else len(line.rstrip())
        marks.append(_Mark(number, left, right))
    is_whole_line = first == last and lines[first - 1].strip() == lines[first - 1][start:end]
    return [] if is_whole_line else [mark for mark in marks if mark.end > mark.start]


def _characters(line: str, offset: int) -> int:
    """Turn an offset in UTF-8 bytes, as code objects hold it, into one in characters."""
    return len(line.encode("utf-8", "replace")[:offset].decode("utf-8", "replace"))


# -- places that an exception names itself
#
# The compiler raises a SyntaxError, and a template's engine a template's: the file at fault has no frame.  Its line
# becomes a view without an id, and comes last, where a reader looks first.


def _named_places(error: BaseException, seconds: float) -> Iterator[FrameView]:
    """Yield the place that an exception names itself: a SyntaxError's, or one in a template."""
    if isinstance(error, SyntaxError) and isinstance(error.filename, str) and isinstance(error.lineno, int):
        yield _syntax_place(error, error.filename, max(error.lineno, 1))  # an unknown encoding is on line 0
    attributes = own_dict(error)
    django = attributes.get("template_debug")
    if isinstance(django, dict) and isinstance(django.get("line"), int):
        yield _django_place(django, error, seconds)
    elif type(error).__module__ == "mako.exceptions" and isinstance(attributes.get("lineno"), int):
        filename, text = str(attributes.get("filename") or "<string>"), attributes.get("source")
        lines, missing = _read_source(filename)
        lines = lines or (text.split("\n") if isinstance(text, str) else [])  # a template that was made from a text
        yield _view_at("template", filename, attributes["lineno"], "template", (lines, "" if lines else missing))


def _syntax_place(error: SyntaxError, filename: str, lineno: int) -> FrameView:
    """Return the view of the line of a SyntaxError, with its caret; for a missing file, of the text in the error."""
    text = error.text.rstrip("\n") if isinstance(error.text, str) else ""
    lines, missing = _read_source(filename)
    if not lines and text and lineno < 100_000:  # it may be any number, and so many lines are made
        lines = [""] * (lineno - 1) + [text]
    line = lines[lineno - 1] if len(lines) >= lineno else ""
    # Before Python 3.12 the text of an error in an f-string is not the line; nor is it after the file was changed.
    marks = [] if text and text.strip() != line.strip() else [_caret(error, lineno, line)]
    return _view_at("syntax", filename, lineno, "", (lines, missing), marks)


def _caret(error: SyntaxError, lineno: int, line: str) -> _Mark:
    """Return the mark for the part of the line that a SyntaxError points at."""
    start = error.offset - 1 if isinstance(error.offset, int) else -1
    start = min(start, len(line) - 1)  # an unexpected end of the line: point at its last character
    last, stop = getattr(error, "end_lineno", None), getattr(error, "end_offset", None)  # from Python 3.10 on
    end = start + 1
    if isinstance(last, int) and last > lineno:
        end = len(line)
    elif isinstance(stop, int) and last == lineno:
        end = min(max(stop - 1, end), len(line))
    return _Mark(lineno, start, end) if start >= 0 else _Mark(lineno, 0, 0)


def _django_place(debug: dict[str, Any], error: BaseException, seconds: float) -> FrameView:
    """Return the view of a Django template's line, from the escaped text that its engine noted, with its context."""
    from html import unescape

    filename, lineno = str(debug.get("name") or ""), debug["line"]
    lines, missing = _read_source(filename)
    if not lines:  # the first line that was noted is line `top`
        noted = [unescape(str(text)).rstrip("\n") for _, text in debug.get("source_lines", ())]
        lines = [""] * (debug.get("top", 1) - 1) + noted
    during = unescape(str(debug.get("during", ""))).split("\n")[0].rstrip()
    start = lines[lineno - 1].find(during) if len(lines) >= lineno and during else -1
    marks = [_Mark(lineno, start, start + len(during))] if start >= 0 else []
    view = _view_at("template", filename, lineno, "template", (lines, missing), marks)
    given: dict[Any, Any] = {}
    for position in _positions_of(error, None):
        context = locals_of(position.frame).get("context")
        if type(context).__module__ == "django.template.context":
            for layer in own_dict(context).get("dicts", ()):
                given.update(layer)
    return _read_scope(view, _Scope(given, {}, is_template=True), seconds)


# -- templates whose engine compiles them to Python
#
# The frames are of generated code, but a person wrote the template.  `_TEMPLATE_ENGINES` tells an engine's frames by a
# global that only its generated code has; the function in that row gets the line of the generated code and its
# globals, and returns the template's line and the values that the template was given.  These functions use internals
# of the engines, and a new release may break them: then the compiled line is shown.


class _TemplateLine(NamedTuple):
    """The line of a template that a frame of generated code belongs to, and the values that it was given."""

    filename: str
    lineno: int
    name: str
    values: dict[Any, Any]
    mark: tuple[int, int] = (0, 0)  # columns


_TEMPLATE_NAMES = frozenset(  # names that Jinja2, Flask, Mako, Bottle, Django and Chameleon give to every template
    "range dict lipsum cycler joiner namespace config g request session url_for get_flashed_messages"
    " context pageargs caller capture self next parent UNDEFINED include rebase get setdefault defined"
    " True False None csrf_token target_language repeat".split()
)


def _template_line(position: FramePosition) -> Optional[_TemplateLine]:
    """Return the line of a template when the frame is of code that an engine generated from one."""
    frame, code = position.frame, position.frame.f_code
    for sign, find in _TEMPLATE_ENGINES.items():
        if sign in frame.f_globals:
            line = _TemplateLine(code.co_filename, position.lineno, code.co_name.strip("<>"), locals_of(frame))
            found, _ = call_safely(partial(find, line, frame.f_globals))
            return found  # None under another version of the engine: then the compiled line is shown
    return None


def _jinja_macro_line(line: _TemplateLine, names: dict[str, Any]) -> _TemplateLine:
    """Return the line in a macro that Python has called: Jinja2 does not rewrite that frame, but knows its line."""
    from importlib import import_module

    lineno = names["__jinja_template__"].get_corresponding_lineno(line.lineno)
    return line._replace(lineno=lineno, values=import_module("jinja2.debug").get_template_locals(line.values))


def _mako_line(line: _TemplateLine, names: dict[str, Any]) -> _TemplateLine:
    """Return the line that Mako, beside the compiled module, notes for each line of the generated code."""
    mako = sys.modules["mako.template"]
    info = mako._get_module_info(line.filename)
    numbers = mako.ModuleInfo.get_module_source_metadata(info.code, full_line_map=True)["full_line_map"]
    if not numbers[line.lineno - 1]:
        raise LookupError("Mako has added the line, as for the call of a <%def>")
    filename = str(info.template_filename or "")
    if not filename:  # a template that was made from a text, whose "uri" is its compiled module's
        import linecache

        filename = f"<{names['_template_uri']}>"
        linecache.cache[filename] = len(info.source), None, info.source.splitlines(keepends=True), filename
    return line._replace(filename=filename, lineno=numbers[line.lineno - 1])


def _chameleon_line(line: _TemplateLine, names: dict[str, Any]) -> _TemplateLine:
    """Return the place that Chameleon's generated code has noted before it evaluated the expression."""
    text, lineno, column = names["__tokens"][line.values["__token"]]
    given = {name: value for name, value in dict.items(line.values["econtext"]) if name[:2] != "__"}
    return line._replace(filename=names["__filename"], lineno=lineno, values=given, mark=(column, column + len(text)))


_TEMPLATE_ENGINES: dict[str, Callable[[_TemplateLine, dict[str, Any]], _TemplateLine]] = {  # by a global of their code
    "__jinja_exception__": lambda line, names: line,  # Jinja2 itself puts the template's file and line into frames
    "__jinja_template__": _jinja_macro_line,
    "_template_uri": _mako_line,
    "__tokens": _chameleon_line,
    "_printlist": lambda line, names: line,  # Bottle's code has the template's lines in other columns
}


# -- the values of a frame
#
# Each value is a job for `call_each_bounded`, which abandons those that hang; plain data is read without a thread, so
# that it is there even when everything else hangs.  A value that could not be read in time says so, and the page asks
# for it once more.


class _Scope(NamedTuple):
    """The names that the code of a frame, or a template, can use, and their values."""

    values: dict[Any, Any]  # the locals, or what the template was given
    known: Mapping[str, Any]  # the globals
    own: frozenset[str] = frozenset()  # names that never mean a global: one without a value is not assigned
    elsewhere: frozenset[str] = frozenset()  # names that mean something else on the failing line
    arguments: tuple[str, ...] = ()
    is_template: bool = False
    is_module: bool = False

    @classmethod
    def of(cls, position: FramePosition, view: FrameView) -> _Scope:
        """Return the scope of a frame that is shown as `view`, or of the template that it was generated from."""
        template, code = _template_line(position), position.frame.f_code
        if template is not None:
            return cls(template.values, {}, is_template=True)
        starred = bool(code.co_flags & 4) + bool(code.co_flags & 8)  # it takes *args, **kwargs (CO_VARARGS of inspect)
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]
        is_module, bound = code.co_name == "<module>", _bound_on(view)
        own = frozenset((*code.co_varnames, *code.co_cellvars, *code.co_freevars) if code.co_flags & 1 else ())
        elsewhere = bound if is_module or code.co_name[:1] != "<" else bound - own
        return cls(locals_of(position.frame), position.frame.f_globals, own, elsewhere, arguments, is_module=is_module)

    def named(self, name: str) -> Any:
        """Return the value of a name, or MISSING."""
        return self.values.get(name, MISSING if name in self.own else self.known.get(name, MISSING))

    def find(self, text: str, *, runs_code: bool = False) -> Any:
        """Return the value of an expression of `expressions_in`, or MISSING.

        With `runs_code` the code of properties, proxies and the like is run, and what it raises is raised; without it
        they count as MISSING.
        """
        first, steps = _steps_of(text)
        if first in self.elsewhere:
            return MISSING
        if text in self.values:
            return self.values[text]
        import ast

        value = self.named(first)
        for sign, word in steps:
            if value is MISSING:
                break
            owner, value = value, MISSING
            if sign == ".":
                value = getattr(owner, word, MISSING) if runs_code else static_attribute(owner, word)
            if sign == "[" or (self.is_template and value is MISSING):  # Jinja2's {{ user.name }} asks for both
                is_name = word.isidentifier() and word not in ("True", "False", "None")
                key = word if sign == "." else self.named(word) if is_name else ast.literal_eval(word)
                is_dict = static_attributes(owner).get("__getitem__") is vars(dict)["__getitem__"]
                is_plain = type(key) in PLAIN_TYPES and (is_dict or type(owner) in (list, tuple, str, bytes))
                if runs_code or is_plain:
                    with contextlib.suppress(LookupError, TypeError):  # owner[key] would add a key to a defaultdict
                        value = dict.get(owner, key, MISSING) if is_dict else owner[key]
        return value

    def shows(self, name: object) -> bool:
        """Return whether a local is worth a line; in a module's frame, what it imports and defines is not."""
        if not isinstance(name, str) or name.startswith((".", "__")):
            return False  # a comprehension's iterator, the cell of super()
        if self.is_template:
            return name not in _TEMPLATE_NAMES and name[:1] != "_"
        return not issubclass(type(self.values[name]), CODE_TYPES if self.is_module else ModuleType)


def with_values(view: FrameView, position: FramePosition, seconds: float = _VALUES_SECONDS) -> FrameView:
    """Return the view with the values of its frame: of the failing line first, then arguments, then other locals."""
    return _read_scope(view, _Scope.of(position, view), seconds, position.context)


def _read_scope(view: FrameView, scope: _Scope, seconds: float, context: Optional[Context] = None) -> FrameView:
    """Return the view with the values of a scope; expressions without a value are left out.

    On the failing line, `self.total` comes before the `self` that only leads to it.
    """
    jobs: dict[str, _Job] = {}
    lines = dict(view.source)
    marked = "".join(lines[number][start:end] for number, start, end in view.marks)
    failed = marked or lines.get(view.lineno, "").strip()  # and so it has no value
    for text in itertools.chain(*_expressions_used(view)):
        value = scope.find(text)
        if _steps_of(text)[0] in scope.elsewhere:
            continue
        if value is MISSING and text != failed:
            jobs[text] = MISSING, partial(_read_expression, text, scope)
        elif value is not MISSING and not issubclass(type(value), CODE_TYPES):
            jobs[text] = value, partial(_read_value, text, value, _last_name(text))
    used = set(jobs)
    for name in [*(name for name in scope.arguments if name in scope.values), *scope.values]:
        if name not in jobs and scope.shows(name):
            jobs[name] = scope.values[name], partial(_read_value, name, scope.values[name], name)
    listed, variables = dict(itertools.islice(jobs.items(), _LIST_LIMIT)), []
    for name, (variable, why) in _run_jobs(listed, seconds, context).items():
        if isinstance(why, TooLate):
            variable = Variable(shown_text(name, NAME_LIMIT), "", f"(not read: {why})")
        if variable is not None:
            variables.append(variable._replace(argument=name in scope.arguments, used=name in used))
    shown = [variable.name for variable in variables if variable.used]
    leading = [name for name in shown if any(other.startswith((f"{name}.", f"{name}[")) for other in shown)]
    variables.sort(key=lambda v: (not v.used, v.name in leading if v.used else not v.argument))
    return view._replace(variables=tuple(variables), unlisted=len(jobs) - len(listed), is_read=True)


def _run_jobs(jobs: Mapping[str, _Job], seconds: float, context: Optional[Context] = None) -> dict[str, Any]:
    """Run the jobs and return what each returns or raises; those that look at plain data need no thread."""
    plain = {name: call_safely(job) for name, (value, job) in jobs.items() if type(value) in PLAIN_TYPES}
    foreign = {name: job for name, (_, job) in jobs.items() if name not in plain}
    outcomes = {**plain, **call_each_bounded(foreign, seconds, context)}
    return {name: outcomes[name] for name in jobs}


def _read_value(text: str, value: object, name: str) -> Variable:
    """Return the variable for the value of `text`, masked if `name` is a secret's.  This runs the repr of `value`."""
    shown = _describe(value, name=name)
    opens = shown != _MASK and next(_members_of(value), None) is not None
    return Variable(shown_text(text, NAME_LIMIT), type_name(type(value)), shown, opens=opens)


def _read_expression(text: str, scope: _Scope) -> Optional[Variable]:
    """Return the variable for an expression on the failing line.  Raises what the application's code raises."""
    value = scope.find(text, runs_code=True)
    is_shown = value is not MISSING and not issubclass(type(value), CODE_TYPES)
    return _read_value(text, value, _last_name(text)) if is_shown else None


def _expressions_used(view: FrameView) -> tuple[list[str], list[str]]:
    """Return the expressions inside of the one that failed, and the others on its lines."""
    spans = {view.lineno: (0, 0), **{number: (start, end) for number, start, end in view.marks}}
    failing: list[str] = []
    others: list[str] = []
    for number, text in view.source:
        for begin, _, each in expressions_in(text, view.kind == "template") if number in spans else ():
            (failing if begin in range(*spans[number]) else others).append(each)
    return failing, others


def _bound_on(view: FrameView) -> frozenset[str]:
    """Return the names that comprehensions and lambdas bind on the failing lines; a `for` at their start is none.

    They mean something else for the frame around, if anything; from Python 3.12 on it is that frame in which a
    comprehension fails (PEP 709), and its values are gone.
    """
    failing = {view.lineno, *(number for number, _, _ in view.marks)}
    text = " ".join(text.strip() for number, text in view.source if number in failing)
    for begin, end, kind in code_tokens([text])[0]:
        if kind in "cs":
            text = text[:begin] + "_" * (end - begin) + text[end:]
    bound = re.findall(r"(?<!^)\bfor\s+([][\w\s,()*]+?)\s+in\b|\blambda\b([^:]*):", re.sub(r"^async\s+", "", text))
    without_defaults = re.sub(r"=[^,]*", "", ",".join(itertools.chain(*bound)))
    return frozenset(re.findall(r"[^\W\d]\w*", without_defaults))


def behind_proxy(value: Any) -> Any:
    """Return the object behind a proxy of Werkzeug's or a lazy object of Django's that has been made, or `value`."""
    held = static_attributes(value)
    if "_get_current_object" in held:
        return value._get_current_object()
    made = own_dict(value).get("_wrapped", MISSING) if "_setupfunc" in held else MISSING
    return value if made is MISSING or type(made) is object else made


def _members_of(value: Any) -> Iterator[_Member]:
    """Yield the members of a value: the items of a mapping, the elements of a sequence, or else the attributes.

    The name of an element is the element before it if they are a pair, ("password", "…"), or if that is an option of a
    command: "--password", "…"; and that of a `value` is the `name` beside it.  The lines of a key are all named by its
    first line, "-----BEGIN PRIVATE KEY-----".
    Attributes are those in the `__dict__` or in slots; private ones come last.
    """
    base: Any = next((base for base, *_ in _CONTAINERS.values() if issubclass(type(value), base)), object)
    if issubclass(base, dict):
        first = itertools.islice(base.items(value), 20)  # {"name": "password", "value": "…"} has few items
        named = next((_key_name(each) for key, each in first if _key_name(key) in ("name", "key")), "")
        for key, each in base.items(value):
            name = _key_name(key)
            yield key, named or name if name == "value" else name, each
    elif base is not object:
        is_pair, before = base in (list, tuple) and base.__len__(value) == 2, ""
        for number, each in enumerate(base.__iter__(value)):
            yield number, before if is_pair or before[:1] == "-" else "", each
            if not before.startswith("-----BEGIN") or _key_name(each)[:1] == "-":
                before = _key_name(each)
    elif type(value) not in PLAIN_TYPES and not issubclass(type(value), CODE_TYPES):
        held = static_attributes(value).items()
        slots = {name: static_attribute(value, name) for name, kept in held if type(kept) is MemberDescriptorType}
        found = {str(name): each for name, each in {**own_dict(value), **slots}.items() if each is not MISSING}
        for name in sorted(found, key=lambda name: name[:1] == "_"):
            if name[:2] != "__":
                yield name, name, found[name]


def members_at(position: FramePosition, path: Sequence[Any]) -> tuple[Variable, ...]:
    """Return the members of a value of a frame: attributes, items of a mapping, elements of a sequence.

    `path` begins with the variable's name as `with_values` gave it; each further entry is the number of a member in
    what this function returned for the path so far.  Raises LookupError if the path leads to nothing, or to a secret.
    """
    view, first = view_position(position), str(path[0])
    scope = _Scope.of(position, view)
    if first not in scope.values and first not in itertools.chain(*_expressions_used(view)):
        raise LookupError("the page does not show it")  # by another expression, any object of the process is reached

    def read() -> list[Variable]:
        name, value = _last_name(first), scope.find(first, runs_code=True)
        for number in path[1:]:
            _, name, value = _open_value(name, value)[int(number)]
        return [
            _read_value(key if type(key) is str else _describe(key, NAME_LIMIT), each, secret_name)
            for key, secret_name, each in _open_value(name, value)
        ]

    members, why = call_bounded(read, _VALUES_SECONDS, position.context)
    if members is None:
        raise LookupError(str(why) if isinstance(why, TooLate) else "there is no such value any more")
    return tuple(members)


def _open_value(name: str, value: Any) -> list[_Member]:
    """Return the members of a value that is no secret; for a framework's proxy, of the object behind it."""
    value = behind_proxy(value)
    if value is MISSING or (_is_secret(name) and not _is_harmless(value, name)):
        raise LookupError(name)
    return list(itertools.islice(_members_of(value), _LIST_LIMIT))


# -- source, looked at as text
#
# A window of source begins and ends anywhere, and a template's line is not Python: `tokenize` and `ast` refuse both.
# So one regular expression finds strings, comments, numbers and words, for the colors of the page and for the
# expressions whose values are shown.  Where it errs, a color is wrong or a value is missing, but no text is lost.

_TOKEN = (  # of Python, as much as its colors and its expressions need
    r"""(?sx) (\#[^\n]*)
    | ([rRbBuUfFtT]{0,2} (?: \"{3} (?:[^\\]|\\.)*? (?:\"{3}|\Z) | '{3} (?:[^\\]|\\.)*? (?:'{3}|\Z)
        | " (?:[^"\\\n]|\\.)* "? | ' (?:[^'\\\n]|\\.)* '? ) )
    | (\d[\w.]*)
    | ([^\W\d]\w*)"""
)
_STEP = r"""\.([^\W\d]\w*)|\[("[^"\\\n\]]*"|'[^'\\\n\]]*'|-?\d+|[^\W\d]\w*)\]"""  # an attribute, a simple subscript
_EXPRESSION = rf"(?<![\w.!])([^\W\d]\w*)(?:{_STEP})*"
_KEYWORD = r"[^\W\d]\w*=(?![=}!:])"  # of a call, `name=`; what an f-string's field shows, `{name=}`, is none

if TYPE_CHECKING:
    _Span = tuple[int, int, str]  # the columns from and to, and what stands there


def code_tokens(lines: Sequence[str]) -> list[list[_Span]]:
    """Return for each line of a piece of source its tokens, each with its kind.

    The kinds are c for a comment, s for a string, n for a number, and w for a word.  Text that is not Python gets
    whatever tokens it resembles.
    """
    tokens: list[list[_Span]] = [[] for _ in lines]
    row = line_start = 0
    for match in re.finditer(_TOKEN, "\n".join(lines)):
        while match.start() > line_start + len(lines[row]):
            line_start += len(lines[row]) + 1
            row += 1
        begin = match.start() - line_start
        for below, part in enumerate(match.group().split("\n")):
            tokens[row + below].append((begin, begin + len(part), "csnw"[(match.lastindex or 1) - 1]))
            begin = 0
    return tokens


def expressions_in(line: str, is_template: bool = False) -> Iterator[_Span]:
    """Yield the names, attributes and simple subscripts of a line: of `a.b["c"]` first a, then a.b, then the whole.

    The columns of each are those of its last part, such as `.b`.  Strings and comments hold no expressions, except
    between the braces of an f-string.
    """
    quoted = [] if is_template else [span for span in code_tokens([line])[0] if span[2] in "cs"]
    for match in re.finditer(_EXPRESSION, line):
        around = next((span for span in quoted if span[1] > match.start() >= span[0]), None)
        begin, end = match.span(1)
        if keyword.iskeyword(match[1]) or (around and not _is_in_braces(line, around[0], begin)):
            continue
        if re.match(_KEYWORD, match.group() + line[match.end() :][:2]):
            continue
        yield begin, end, match[1]
        for step in re.finditer(_STEP, line[end : match.end()]):
            if step.group(2) and step.group(2).isidentifier():
                yield end + step.start(2), end + step.end(2), step.group(2)
            yield end + step.start(), end + step.end(), line[begin : end + step.end()]


def _is_in_braces(line: str, start: int, at: int) -> bool:
    """Return whether column `at` of the string that begins at `start` is in a field of an f-string, but no format."""
    brace = line.rfind("{", start, at)
    is_field = bool(re.match(r"[rR]?[fFtT]", line[start:])) and brace > line.rfind("}", start, at)
    return is_field and not re.match(r"[^\[(]*:", line[brace:at])


def _steps_of(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the name with which an expression begins, and the attributes and subscripts after it."""
    first = re.match(r"\w*", text).group()  # type: ignore[union-attr]
    return first, [(m.group()[0], m.group(1) or m.group(2)) for m in re.finditer(_STEP, text[len(first) :])]


def _last_name(text: str) -> str:
    """Return the last name of an expression, by which its value may be a secret: `password` of `row["password"]`."""
    if not re.fullmatch(_EXPRESSION, text):  # a key, or an attribute's name
        return text
    first, steps = _steps_of(text)
    return [first, *(name.strip("'\"") for sign, name in steps if sign == "." or name[0] in "'\"")][-1]


# -- what was probably meant
#
# Below the message comes one sentence, with the name, attribute, module or key that is most similar to the wrong one,
# or, when a call had the wrong arguments, with the signature of the called function.


def _hint_for(error: BaseException, positions: list[FramePosition]) -> str:
    """Return a sentence that names the nearest name or key, or how to call what was called.

    The interpreter has such sentences too (bpo-38530), but programs can get them from 3.12 on only, they run the
    `__dir__` of the application's objects, and there are none about keys.
    """
    from difflib import get_close_matches

    text, name = _first_text(error)[:_TEXT_LIMIT], getattr(error, "name", None)
    if isinstance(error, RuntimeError) and ("'trio." in text or text == "must be called from async context"):
        return "Trio's functions need Trio's event loop, and this is asyncio's: call asyncio's or anyio's instead."
    if isinstance(error, TypeError) and positions:
        return _signature_meant(text, positions[-1])
    if type(error).__name__ in ("OperationalError", "ProgrammingError") and re.search(_NO_TABLE, text):
        tools = (command for module, command in _MIGRATIONS.items() if module in sys.modules)
        return next((f"Has its migration been applied?  Try: {command}" for command in tools), "")
    quoted = [text] if isinstance(error, KeyError) else re.findall(r"(?:name|attribute) '(\w+)'", text)
    wanted = quoted[0] if quoted else name if isinstance(name, str) else ""
    known = itertools.islice(_names_meant(error, positions), _NEAR_LIMIT)
    names = [each for each in known if type(each) is str and each != wanted]
    near = [] if len(wanted) > NAME_LIMIT else get_close_matches(wanted, names, 1, _NEARNESS)
    if isinstance(error, NameError) and positions:
        if wanted in static_attributes(locals_of(positions[-1].frame).get("self")):
            near = [f"self.{wanted}"]
        elif not near and wanted in _known_modules():
            return f"Did you forget to import '{wanted}'?"
    return f"Did you mean: '{shown_text(near[0], NAME_LIMIT)}'?" if near else ""


def _names_meant(error: BaseException, positions: list[FramePosition]) -> Iterator[Any]:
    """Yield the names that existed where the wrong one was looked up."""
    if isinstance(error, KeyError):  # `__getitem__` of a mapping may be in between, with pandas in several frames
        for value in itertools.chain.from_iterable(map(_values_named, reversed(positions[-_NEAR_FRAMES:]))):
            if {"keys", "__getitem__"} <= static_attributes(value).keys():
                yield from list(value.keys())
    elif isinstance(error, ModuleNotFoundError):
        yield from _known_modules()
    elif isinstance(error, ImportError):
        yield from vars(sys.modules[error.name or ""])
    elif isinstance(error, AttributeError):
        for owner in [error.obj] if hasattr(error, "obj") else _values_named(positions[-1], whole_lines=True):  # 3.9
            yield from static_attributes(owner)
    elif isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        frame = positions[-1].frame
        yield from (*locals_of(frame), *frame.f_globals, *frame.f_builtins)


def _known_modules() -> set[str]:
    return {*getattr(sys, "stdlib_module_names", ()), *sys.modules}  # the first from Python 3.10 on


def _values_named(position: FramePosition, whole_lines: bool = False) -> Iterator[Any]:
    """Yield the values of the expressions inside of the one that failed; of the whole line if that is unknown."""
    view = view_position(position)
    scope, (failing, others) = _Scope.of(position, view), _expressions_used(view)
    found = map(scope.find, [*failing, *others] if whole_lines or not view.marks else failing)
    yield from (value for value in found if value is not MISSING)


def _signature_meant(text: str, position: FramePosition) -> str:
    """Return how to call the function whose wrong arguments a TypeError is about.  Runs the defaults' reprs."""
    import inspect

    called = re.match(r"([\w.<>]+)\(\) (?:takes|missing|got)", text)
    for value in _values_named(position, whole_lines=True) if called else ():  # PyPy marks the method alone
        function = _called_function(value)
        if called and function and called.group(1) in (function.__qualname__, function.__name__):
            meant = inspect.signature(function)
            hidden = type("", (), {"__repr__": lambda self: _MASK})()
            parameters = [
                each.replace(default=hidden) if _is_secret(each.name) and each.default is not each.empty else each
                for each in meant.parameters.values()
            ]
            signature = partial("{0.__qualname__}{1}".format, function, meant.replace(parameters=parameters))
            return f"It takes {shown_text(mask_secrets(_text_or_why(*call_safely(signature))), _VALUE_LIMIT)}."
    return ""


def _called_function(value: Any) -> Optional[FunctionType]:
    """Return the Python function that a call of `value` would run: a method's, a class's __init__ or __new__."""
    if issubclass(type(value), type):
        held = static_attributes(value)
        value = held["__init__"] if type(held.get("__init__")) is FunctionType else held.get("__new__")
    if type(value) in (staticmethod, classmethod, MethodType):
        value = value.__func__
    return value if type(value) is FunctionType else None


# -- values, as texts that are bounded, printable and masked
#
# `_describe` writes a value in about `limit` characters.  It walks the builtin containers itself, each member in what
# is left of the limit, so that it stops early in a big one, sees the name beside each value, and one bad member costs
# no other.  Likewise it writes the attributes of an object of the application's whose class has no repr.  The repr of
# anything else is the object's own: it is run, cut, and searched for secrets.


def _safe_repr(value: object, limit: int = _VALUE_LIMIT, seconds: float = _VALUES_SECONDS, name: str = "") -> str:
    """Return the repr of `value` in about `limit` characters, masked if `name` is a secret's.

    Never raises, and takes `seconds` at most; if there is no repr by then, return why in brackets.
    """
    return _text_or_why(*_run_jobs({"": (value, partial(_describe, value, limit, name))}, seconds)[""])


def _text_or_why(text: Any, error: Optional[BaseException]) -> str:
    """Return the text that a call has returned, or in brackets why there is none."""
    if error is None:
        return str.__str__(text)
    if isinstance(error, TooLate):
        return f"(not read: {error})"
    message = mask_secrets(_first_text(error))[:NAME_LIMIT]
    return shown_text(f"(reading it raised {type_name(type(error))}{message and ': '}{message})", _TEXT_LIMIT)


def _describe(value: Any, limit: int = _VALUE_LIMIT, name: str = "", depth: int = 0) -> str:
    """Return the repr of `value`, whose name is `name`, masked and bounded.  Runs the repr of foreign objects."""
    kind: Any = type(value)
    if _is_secret(name) and not _is_harmless(value, name):
        return _MASK
    if kind in (str, bytes, bytearray):
        head = value[: limit + _PAST_LIMIT]
        if kind is str:
            text = repr(mask_secrets(head)[:limit])
        else:  # as a text, because by its repr no pattern would know where a line or a quoted password ends
            text = "b" + ascii(mask_secrets(head.decode("latin-1")))
            text = re.sub(r"(?<!\\)((?:\\\\)*)\\u2022", rf"\1{_MASK[0]}", text)  # the mask is no byte of theirs
            text = text if kind is bytes else f"bytearray({text})"
        if len(value) > limit:
            text = f"{text[: len(repr(value[:limit]))]}… ({len(value):,} in all)"
        return text
    if kind is int and value.bit_length() > 4_000:  # the interpreter refuses digits beyond 4,300 (CVE-2020-10735)
        return f"(an int of {value.bit_length():,} bits)"
    if kind.__repr__ is object.__repr__ and depth <= 1 and not _is_secret(name) and _is_app_class(kind):
        members = list(_members_of(value))
        if members:  # objects inside of it are not opened, and containers to half the depth
            text = _describe_members(members, "=", len(members), limit, depth + _DEPTH_LIMIT // 2)
            return f"<{type_name(kind)} object: {text}>"
    if kind.__repr__ not in _CONTAINERS:
        own, why = call_safely(lambda: str.__str__(repr(value)))
        if own is not None:
            most = limit + _PAST_LIMIT  # beyond it nothing is shown, but counted
            own = re.sub(_IN_REPR, _hide_value, mask_secrets(own[:most])) + "•" * (len(own) - most)
        return shown_text(_text_or_why(own, why), limit)
    if depth > _DEPTH_LIMIT:
        return "…"
    base, opening, closing = _CONTAINERS[kind.__repr__]
    count, sign = base.__len__(value), ": " if issubclass(base, dict) else ""
    comma = "," if base is tuple and count == 1 else ""
    text = _describe_members(_members_of(value), sign, count, limit, depth)
    return f"{opening}{text}{comma}{closing}"


def _describe_members(members: Iterable[_Member], sign: str, count: int, limit: int, depth: int) -> str:
    """Return the text of members, each after its key and `sign` unless that is ""; past the limit they are counted."""
    texts: list[str] = []
    for key, name, value in members:
        if limit <= 0:
            texts.append(f"… ({count:,} items)")
            break
        before = shown_text(key, NAME_LIMIT) if sign == "=" else ""
        if sign == ": ":
            before = _describe(key, NAME_LIMIT, "", depth + 1)  # not cut by what is left of the limit
        texts.append(before + sign + _describe(value, limit, name, depth + 1))
        limit -= len(texts[-1]) + 2
    return ", ".join(texts)


def _is_app_class(kind: type) -> bool:
    """Return whether a class was written in a module of the application's."""
    name = type.__dict__["__module__"].__get__(kind)
    file = own_dict(sys.modules.get(name)).get("__file__") if type(name) is str else None
    return type(file) is str and is_app_file(file)


def _key_name(key: object) -> str:
    """Return the key of a mapping as the name of its value."""
    return key[:NAME_LIMIT] if type(key) is str else key[:NAME_LIMIT].decode("latin-1") if type(key) is bytes else ""


_CONTAINERS: dict[Any, tuple[Any, str, str]] = {  # by their repr, which subclasses without one of their own share
    OrderedDict.__repr__: (OrderedDict, "OrderedDict({", "})"),  # before dict, of which it is one
    defaultdict.__repr__: (defaultdict, "defaultdict({", "})"),
    dict.__repr__: (dict, "{", "}"),
    list.__repr__: (list, "[", "]"),
    tuple.__repr__: (tuple, "(", ")"),
    set.__repr__: (set, "{", "}"),
    frozenset.__repr__: (frozenset, "frozenset({", "})"),
    deque.__repr__: (deque, "deque([", "])"),
}


# -- secrets
#
# A secret is found in two ways.  By a value's name, the variable's or the key's: `_is_secret` looks at the words of
# the name, and `_describe` masks the value unless it is harmless (None, a flag, a number, code).  Or inside of a text:
# `mask_secrets` searches messages, URLs and reprs for the patterns of `_SECRET_TEXTS`.

_SECRET_WORD = (  # a word of a secret's name, some with what is often joined to them: dbpassword, sessionid
    r"\w*(passw(or)?d|pass(phrase|code|key)|secret|token|credential|apikey|(secret|priv|private|access)key"
    r"|sessi?onid|sessid)s?|authoriz\w*|cookies?|signatures?|pass|pwd|pswd|pw|auth|session|private|csrf|xsrf|jwt|otp"
    r"|totp|pin|sid|bearer|creds|cv[cv]"
    r"|passwort|kennwort|(motde)?passe|contrase[ñn]a|senha|wachtwoord|has[łl]o|heslo|пароль|密码|パスワード|비밀번호"
)
_ABOUT_SECRETS = frozenset(  # last words of a name whose value is only about a secret: password_length
    "count counts rate ratio type types name names length len size limit max min num url uri path file dir field"
    " fields form expiry expires expiration ttl timeout age at date version validators hasher hashers policy index"
    " enabled disabled required valid invalid scheme backend class domain samesite httponly prefix model engine"
    " provider method mode manager storage serializer start started changed created updated status".split()
)
_PLAIN_KEYS = frozenset(  # words before `key` in the name of a key that is no secret: primary_key
    "primary foreign sort sorting cache partition group grouping public dict lookup unique row index column natural"
    " order ordering translation field object map item json kw param parameter data config setting next prev previous"
    " first last current old new left right parent child root node event message msg hot short shortcut arrow any each"
    " other same wrong missing bad good this that default query context state model pk fk composite candidate search"
    " filter join hash range tuple list str string image product user the a no by per entity relation related type"
    " name id routing redis memcached cursor page tab menu modifier home end escape press s bucket blob file upload"
    " tag attr attribute prop property option optional allowed extra unknown known sorted sub result response header"
    " enum discriminator pool metadata env environment original feature flag label source target lang pub".split()
)


def _is_secret(name: str) -> bool:
    """Return whether a name is that of a secret."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", name)]
    if not words or words[-1] in _ABOUT_SECRETS:
        return False
    if words[-1] in ("key", "keys") and len(words) > 1 and words[-2] not in _PLAIN_KEYS:
        return True
    return any(re.fullmatch(_SECRET_WORD, word) for word in words) or re.match("devserve_[0-9]", name) is not None


def _is_harmless(value: object, name: str) -> bool:
    """Return whether a value tells no secret: None, a flag, a number, code, an object whose repr is its address.

    A `session` that is no text is a mapping or a connection, in which each secret has a name of its own.
    """
    kind = type(value)
    if kind in (type(None), bool, int, float, complex) or (kind in (str, bytes) and not value):
        return True
    if name.lower() in ("session", "db_session") and kind not in (str, bytes, list, tuple):
        return True
    return issubclass(kind, CODE_TYPES) or kind.__repr__ is object.__repr__


_QUOTED = r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?"""
_LISTED = r"""[\[(]\s*(?:b?(?:'[^'\s]*'|"[^"\s]*")[,\s]*)+[\])]?"""  # with a space it is a message about a password
_CALL = r"(?:(?:[A-Za-z_][\w.]{0,60}\(){0,2}[bBfFrRuU$]{0,2})"  # before a text: b'…', SecretBox('…'); $'…' of a shell
_INNER = r"(?:[\w.]{1,60}\([\w.\-\[\]%]{1,60}=){0,4}"  # before a text in another repr: Config(shop=Shop(password='…'))
_TOKEN_STARTS = (  # of GitHub, GitLab, Stripe, OpenAI, Slack, Google, PyPI and others; sk-plain-words is a CSS class
    r"gh[a-z]_|github_pat_|glpat-|[rs]k_(?:live|test)_|sk-(?!(?:[a-z]{1,12}-)+[a-z]{1,12}(?![\w-]))|xox[a-z]-|AIza|whsec_"
    r"|GOCSPX-|ya29\.|npm_(?=[a-zA-Z0-9]{36})|shpat_(?=[0-9a-f]{32})|dop_v1_|dckr_pat_|pypi-Ag|hf_(?=[a-zA-Z0-9]{32})|SG\.[\w-]{20,24}\."
    r"|bot[0-9]{6,12}:|services/T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/"  # in the paths of requests to Telegram and Slack
)
_SECRET_TEXTS = (  # what the text must contain, and a pattern: see "How to change" in the banner
    (
        "-----BEGIN",
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(.*?)(?=-----END|\Z)",
    ),  # RFC 7468; it has lines
    # In the query of a URL, a call or a repr; what stands in angle brackets is a repr
    (
        "=",
        (
            rf"""(?:^|\\[nrt]|[?&#;:\s'"`(,])((?:[\w.\-\[\]]|%[0-9A-Fa-f]{{2}}){{1,60}})["`\]]?=({_INNER}{_CALL}\\?(?:'[^']*'?|"[^"]*"?)|{_LISTED}"""
            r"""|(?!<\w[^<>]*>)(?:(?:Bearer|Basic|Digest|Token) )?(?:(?!\\[nrt])[^&;#\s'"])+)"""
        ),
    ),
    (
        "= ",
        rf"""\b([\w.\-]{{1,60}})["`\]]? ?= (N?(?:{_QUOTED})|(?=[^\s;,]*[0-9])[^\s;,'"?%:$@({{]+)""",
    ),  # INI, TOML, SQL
    (":", rf"""(['"])([\w.\- ]{{1,60}})\1\s*:\s*({_QUOTED}|{_LISTED}|[^\s,}}\](\[{{][^\s,}}\]]*)"""),  # JSON
    # HAR, the environment of a container, Cookie(name='sessionid', value='…'); and a field of a form in HTML
    ("value", rf"""\b(?:name|key)['"]?[:=]\s*['"]([\w.\-]{{1,60}})['"],\s*['"]?value['"]?[:=]\s*({_QUOTED})"""),
    ("name=", r"""\bname=["']([\w.\-\[\]]{1,60})["'][^<>]{0,100}? (?:value|content)=("[^"]*"|'[^']*')"""),
    (  # multipart/form-data; in a repr a line ends by letters
        "name=",
        (
            r"""\bname="?([\w.\-\[\]]{1,60})"?(?:(?:\r\n|\\r\\n)[\w-]{1,40}:[^\r\n\\]{1,200}){0,3}(?:\r\n|\\r\\n){2}"""
            r"""((?:(?!\\r\\n)[^\r\n])+)"""
        ),
    ),
    (
        "(",
        rf"""[\[,] ?\(b?['"]([\w.\-\[\]]{{1,60}})['"], ?(b?(?:{_QUOTED}))(?=\)[,\]])""",
    ),  # pairs, as of a MultiDict
    (
        "'input'",
        rf"""'loc': [(\[][^)\]]{{0,200}}'([\w.\-]{{1,60}})',?[)\]], 'msg': .{{0,300}}?'input': ({_QUOTED})""",
    ),  # FastAPI
    (": ", rf"""\b([\w.\-]{{1,60}}): (?=.[^\s'"]*[0-9])({_QUOTED})"""),  # JavaScript, GraphQL
    ("input_value=", rf"(?m)^([\w.]{{1,60}})\n  .*\[type=\w+, input_value=({_QUOTED})"),  # pydantic's field
    (
        "\\",
        r"""\\(["'])([\w.\-]{1,60})\\\1\s*:\s*(\\["'][^\\"']*|[^\s,}\]\\"']+)""",
    ),  # JSON or a repr as a text in one
    (  # YAML, a header; in a repr a line ends by a backslash and a letter
        ": ",
        (
            rf"""(?m)(?:^|\\[nr])[ \t-]*([\w.\-]{{1,60}}): +({_QUOTED}|(?=\S*[0-9])(?:(?!\\[nr])[^\s'"])+)"""
            r"""(?=\s*$|\\[nr]|['"])"""
        ),
    ),
    ("</", r"<([\w.\-:]{1,60})(?: [^<>]{1,200})?>([^<]{1,200})</\1>"),  # XML
    # A password may hold an @ or a slash, but what begins as a port and a path is none: http://localhost:5173/@vite
    ("://", r"""://(?:[^\s:/?#@\['"]*@)?[^\s:/?#@\['"]*:(?![0-9]*/)([^\s@'"]{1,200}(?:@[^\s@/'"]{1,200})*)(?=@)"""),
    ("%40", r"(?i)%3A%2F%2F[^\s%&]*%3A((?:(?!%40)[^\s&])+)"),  # such a URL as a parameter, and one with a query
    ("%3d", r"""(?i)(?:[?&#]|%3F|%26|%23)([\w.\-]{1,60})%3D([^\s%&'"]+)"""),
    ("netloc=", r"""netloc=b?['"][^\s:'"]*:([^\s'"]+)(?=@)"""),  # as urllib takes a URL apart
    ("://", r"://([\w\-]{20,})(?=@)"),  # a token in the place of the name, as hosts of git take it
    ("", rf"\b(?:{_TOKEN_STARTS})([\w\-]{{16,}})"),
    # A hashed password, by bcrypt, Argon2, crypt, passlib, Django or Werkzeug: passwords can be tried against it.
    (
        "$",
        r"(?:\$(?:2[abxy]|[156]|argon2\w+|pbkdf2[\w-]*)|\b(?:argon2|bcrypt\w*|pbkdf2[\w:]*|scrypt[\w:]*))\$([\w$=,+./-]{20,})",
    ),
    ("-", r"""(?:^|[^\w-])--?([a-zA-Z][\w-]{1,40})(?:=|(?: |'?, ')(?!--\w))([^\s'"]+)"""),  # of a command line
    ("curl", r"""\bcurl\b[^\n]{0,200}?['"\s](?:-u|--user)(?: |=|', ')['"]?[^\s:'"]+:([^\s'"]+)"""),
    (
        " '",
        r"(?i)\b(?:identified (?:with \S{1,60} )?by|(?:with|(?:role|user) [^';]{1,100}) password) '([^']*)",
    ),  # SQL that makes a user
    ("earer ", r"(?i)\bbearer +(?!authenti|authori|credential|challenge|realm)([\w.~+/=-]{8,})"),  # RFC 6750
    ("asic ", r"\b[Bb]asic +(?=\S*[A-Z0-9+/=]\S*[A-Z0-9+/=])([A-Za-z0-9+/]{6,}={0,2})"),  # RFC 7617; no words are so
    ("eyJ", r"\beyJ([\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"),  # RFC 7519: how JSON begins in base64
    ("uthorization", r"""(?i)authorization['"]?\s*[:=]\s*['"]?(?:\w+ +)?([^\s,;'"]+)"""),  # the scheme is no secret
    (
        "ookie:",
        r"""(?i)(?<!-)\bcookie: ?((?:[^\s;,'"=:]{1,100}=[^\s;,'"\\]*(?:; ?)?)+)""",
    ),  # names of cookies tell nothing
    ("-H", r"""-H ?['"]?([\w\-]{1,60}): ?([^\s'"]+)"""),  # of curl
)
_IN_REPR = (  # masked only in the repr of a foreign object: User(password='…'), ('cookie', '…')
    rf"""([\[(]b?['"])?([\w\-\[\]]{{1,60}}(?=['"=])|[\w\-]{{1,60}})(?(1)['"],\s*(?=b?['"])|['"]?\s*[=:]\s*)"""
    rf"""({_INNER}{_CALL}(?:{_QUOTED})|{_LISTED}"""
    r"""|(?:(?:Bearer|Basic|Digest|Token) )?[^\s,;&)}\]'"(\[{<][^\s,;&)}\]'"]*)"""
)


def mask_secrets(text: str) -> str:
    """Return a text with the secrets in it masked, and all past `_MASK_LIMIT`, which nobody is shown anyway."""
    if len(text) > _MASK_LIMIT:
        return mask_secrets(text[:_MASK_LIMIT]) + "•" * (len(text) - _MASK_LIMIT)
    lower = text.lower()
    for sign, pattern in _SECRET_TEXTS:
        text = re.sub(pattern, _hide_value, text) if sign.lower() in lower else text
    return text


def _hide_value(match: re.Match[str]) -> str:
    """Return the match with its value masked, if its name is a secret's and the value no number or flag."""
    *_, name, value = (None, *match.groups())
    start = match.start(match.re.groups) - match.start()
    if name is not None:
        is_web_key = name in ("key", "sig") and match.group()[:1] in ("?", "&")  # as web APIs call theirs
        value = value if value[:1] in ("[", "(") else value.rstrip(",)]}")
        name = re.sub("%[0-9A-Fa-f]{2}", " ", name)
        is_plain = re.fullmatch(r"(?i)-?[\d.]{1,12}|none|true|false|null", value) and "pass" not in name.lower()
        if is_plain or not (_is_secret(name) or is_web_key):
            if not re.search("['\"]", value):
                return match.group()
            inner = start + (value[:1] in ("'", '"'))  # in it may be another: url='/?token=…'
            return match.group()[:inner] + match.re.sub(_hide_value, match.group()[inner:])
    return match.group()[:start] + _MASK + match.group()[start + len(value) :]


# A line `File "...", line N` of a traceback, with the lines of source below it, up to a line that is indented less
_PLACE = r'(?m)^([ |]*  File ".*\n(?:(?: +\|)? {4}.*\n)*)'


def _mask_messages(text: str) -> str:
    """Mask the secrets in a traceback's messages and notes; its lines of source stay as they are."""
    return "".join(part if number % 2 else mask_secrets(part) for number, part in enumerate(re.split(_PLACE, text)))


# -- the request and the surroundings
#
# A WSGI environ may hold anything under any key, and a body may be cut off or not be of the type that it claims.
# Headers and form fields are texts, which `_form_field` masks by name; everything else is described like any value.


def read_request(environ: Mapping[str, Any], body: bytes = b"") -> _Request:
    """Return the request of a WSGI environ; `body` is what was read of it."""
    headers, rest = [], {}
    for name, value in list(environ.items()):
        key = name if isinstance(name, str) else _safe_repr(name, NAME_LIMIT, _QUICK_SECONDS)
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            headers.append((key.replace("HTTP_", "", 1).replace("_", "-").title(), value))
        else:
            rest[key] = value, partial(_describe, value, name=key)
    outcomes = _run_jobs(rest, _QUICK_SECONDS)
    return _Request(
        shown_text(str(environ.get("REQUEST_METHOD", "")), NAME_LIMIT),
        _request_url(environ),
        tuple(_form_field(name, value) for name, value in headers if value),
        tuple(_form_fields(str(environ.get("CONTENT_TYPE", "")), body)),
        tuple((shown_text(key, NAME_LIMIT), _text_or_why(*outcomes[key])) for key in sorted(outcomes)),
    )


def _form_field(name: str, value: object) -> tuple[str, str]:
    """Return one header or form field as it can be shown."""
    text = _MASK if _is_secret(name) and value else mask_secrets(str(value))
    return shown_text(name, NAME_LIMIT), shown_text(text, _VALUE_LIMIT)


def _request_url(environ: Mapping[str, Any]) -> str:
    """Return the URL that was asked for, readable rather than quoted (PEP 3333, URL Reconstruction)."""
    host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME')}:{environ.get('SERVER_PORT')}"
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    query = environ.get("QUERY_STRING")
    url = f"{environ.get('wsgi.url_scheme')}://{host}{path}{'?' if query else ''}{query or ''}"
    return shown_text(mask_secrets(url), _VALUE_LIMIT)


def _form_fields(content_type: str, body: bytes) -> Iterator[tuple[str, str]]:
    """Yield the fields of a form, or the members of a JSON object, as far as `body` holds them."""
    text = body.decode("utf-8", "replace")
    if content_type.startswith("application/x-www-form-urlencoded"):
        from urllib.parse import parse_qsl

        yield from (_form_field(name, value) for name, value in parse_qsl(text, True)[:_LIST_LIMIT])
    elif content_type.startswith("multipart/form-data"):
        yield from _multipart_fields(content_type, text)
    elif "json" in content_type and text:
        import json

        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        members = _members_of(value) if isinstance(value, dict) else [("JSON", "JSON", value)]
        for key, name, each in itertools.islice(members, _LIST_LIMIT):
            yield shown_text(key, NAME_LIMIT), _describe(each, name=name)


def _multipart_fields(content_type: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the fields of a form with files (RFC 7578), of which only the names are shown."""
    boundary = re.search(r'boundary="?([^";\s]+)', content_type)
    parts = text.split(f"--{boundary.group(1)}", _LIST_LIMIT + 1)[1 : _LIST_LIMIT + 1] if boundary else []
    for head, blank, value in (part.partition("\r\n\r\n") for part in parts):
        name = re.search(r'[; ]name="([^"\r\n]*)"', head)
        filename = re.search(r'[; ]filename="([^"\r\n]*)"', head)
        if blank and name:
            yield _form_field(name[1], f"(the file {filename[1]})" if filename else value.removesuffix("\r\n"))


def _versions() -> tuple[tuple[str, str], ...]:
    """Return names and versions of Python, the system, devserve, and the frameworks that are loaded."""
    python = f"{sys.version.split()[0]} ({sys.implementation.name})"
    found = [("Python", python), ("System", sys.platform), ("devserve", __version__)]
    names = "Flask Werkzeug Django Starlette FastAPI Quart bottle pyramid falcon CherryPy Jinja2 Mako SQLAlchemy"
    metadata = sys.modules.get("importlib.metadata")  # 20 ms to import: asked only where a framework did so already
    for name in names.split():
        module = sys.modules.get(name.lower())
        version = None if module is None else vars(module).get("__version__")
        if module is not None and not isinstance(version, str) and metadata is not None:
            version, _ = call_safely(partial(metadata.version, name))
        if isinstance(version, str):  # else it is vendored, or a folder of that name
            found.append((name, shown_text(version, NAME_LIMIT)))
    return tuple(found)


# =====================================================================================================================
# 6. Traceback pages
#
# A report becomes what somebody reads: a page, a fragment of one, plain text, Markdown, JSON.  This room decides only
# what goes where; every tag, rule and script is in the paper (16).  May know foreign code (2), the editors (3) and the
# data of a report (5).
#
# A page begins with the exception that was raised last: its heading, then values and source of the application's
# frames; below come its causes, each with its frames.  What is rarely read is folded: library frames, the environ, the
# copies as text.  A long message stands whole in the heading and in the Markdown, and is cut in the tracebacks below.
#
# How to change: the looks of a page are in the paper alone.  To show more, read it in room 5 into a field of `Report`
# or of its parts, fill it into a template here, and add it to `write_markdown`; JSON has every field by itself.
#
# Invariants: all markup comes out of one function, `_fill_template`, which escapes every value that is not a `_Markup`
# already.  Nothing here looks at an exception or a frame, and no code of the application's runs.
#
# Doors: PageState, write_page, console_page, crash_list_page, notice_page, write_source, write_variables,
# write_members, write_text, write_markdown, write_json, write_fragment.
#
# Read first: write_page, _fill_template, _write_stack, write_source, write_markdown.
# =====================================================================================================================

_FLAT_VALUE = (240, 5)  # characters and lines of a value that is not folded; about three lines of the page
_FLAT_MESSAGE = (1_200, 12)  # and of a message that does not scroll in its place; about a third of a screen
_SHORT_TEXT = 200  # characters of a text in one line of a heading or a tooltip, and of a value that is folded
_OPEN_FRAMES = 12  # application frames that start open: more would hide the rest of the page
_OPEN_MEMBERS = 3  # members of an exception group that start open, for the same reason
_INDENTS = 5  # depths of indentation that the rest of a wrapped line keeps: STYLE has that many
_FRAGMENT_VALUES = 12  # values in a fragment, which is a part of somebody's page

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\0": "\\x00"})
_WORDINGS = {"cause": "Caused by", "context": "Raised while handling"}

if TYPE_CHECKING:
    _Painted = tuple[int, int, str, str]  # the columns from and to, the class in STYLE, and the text over it


class PageState(NamedTuple):
    """What a page must know of the server that writes it, and of what its reader may do with the consoles."""

    state: str  # of the consoles: "open", "locked" (ask for the PIN) or "closed"
    secret: str = ""  # the guard's, which our script sends with each POST; "" when the page must not have it
    reason: str = ""  # why the consoles are closed, a sentence
    remedy: str = ""  # what to do about that, a sentence
    prefix: str = ""  # where the endpoints are, relative to the page
    reload_id: str = ""  # of the process that has the frames; no other process has them
    nonce: str = ""  # by which the Content-Security-Policy admits our style and script


# -- markup, and what is escaped
#
# A text is escaped exactly once, since its type tells whether it has been: a `_Markup` is never escaped again, and any
# other text always is.  Markup that is joined by `+` or `join` instead of `_joined` is a plain text again; so a
# mistake shows entities on the page, and opens no hole.


class _Markup(str):
    """Text that is HTML already.  Only `_escape`, `_fill_template` and `_joined` make it."""


def _escape(text: Union[str, int]) -> _Markup:
    """Return `text` as HTML that shows exactly it, in an element or a quoted attribute; markup comes back as it is."""
    if isinstance(text, _Markup):
        return text
    text = str(text).encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates have no UTF-8
    return _Markup(text.translate(_ENTITIES))


def _fill_template(template: str, **values: Union[str, int]) -> _Markup:
    """Return `template`, one of the paper's, with each {word} replaced by its escaped value."""
    return _Markup(template.format_map({word: _escape(value) for word, value in values.items()}))


def _joined(pieces: Iterable[_Markup]) -> _Markup:
    """Return the pieces, all markup, as one."""
    return _Markup("".join(pieces))


# -- the pages


def write_page(
    report: Report, state: PageState, stored: str = "", editor: str = "", path_map: Sequence[str] = ()
) -> str:
    """Return the whole page of one crash.

    `stored` is given for the page under the crash's own address: its id, and the seconds that its request took.
    `editor` and `path_map`, as `Terminal` has them, make the page's links at first; a browser may have chosen others.
    """
    newest, request = report.problems[-1], report.request
    method = request.method if request else "GET"
    content = _fill_template(
        CRASH,
        request=_fill_template(REQUEST_LINE, method=method, url=request.url) if request else "",
        again="Reload" if method in ("GET", "HEAD") and not stored else "Send again",
        editors=_write_editors(editor),
        own_link=editor if "{path}" in editor else "",
        path_map=",".join(path_map),
        type=_write_type(newest.type),
        message=_write_message(newest.message),
        remarks=_joined([_write_remarks(newest), _write_overview(report.problems)]),
        exceptions=_write_problems(report.problems, "e"),
        around=_write_around(report),
        versions=" · ".join([*(f"{name} {version}" for name, version in report.versions), report.time]),
        prefix=state.prefix,
        address=_fill_template(ADDRESS, prefix=state.prefix, id=report.link.rpartition("/")[2]) if report.link else "",
    )
    return _write_sheet(f"{newest.type}: {_one_line(newest.message)}", content, state, method, stored)


def console_page(state: PageState) -> str:
    """Return the page with a console for the application alone."""
    return _write_sheet("Console", _fill_template(CONSOLE), state, "GET")


def _write_sheet(title: str, content: _Markup, state: PageState, method: str, stored: str = "") -> _Markup:
    """Return a document with our script, and with what that must know, the secret too, in attributes of the body."""
    known = {"method": method, "stored": stored, **state._asdict()}
    body = _fill_template(SCRIPTED, content=content, script=_Markup(SCRIPT), **known)
    return _write_document(title, body, state.nonce, _fill_template(KNOWN, **known))


def crash_list_page(rows: Sequence[tuple[str, str, str, str]], *, nonce: str, prefix: str) -> str:
    """Return the page that lists crashes: time, request, message and id of each."""
    lines = _joined(
        _fill_template(CRASH_ROW, time=clock, request=what, message=_one_line(title), id=id, prefix=prefix)
        for clock, what, title, id in rows
    )
    return notice_page("Last crashes", lines or NO_CRASH, nonce=nonce, template=CRASH_LIST if rows else ABSENT)


def notice_page(title: str, text: str, *, nonce: str, template: str = "") -> str:
    """Return a page with a title and one text, without a script; `template` is the paper's for the {text}, or HINT."""
    content = _fill_template(template or HINT, text=text) if text else _Markup()
    return _write_document(title, _fill_template(NOTICE, title=title, content=content), nonce)


def _write_document(title: str, body: _Markup, nonce: str, known: Union[_Markup, str] = "") -> _Markup:
    return _fill_template(DOCUMENT, title=title, body=body, nonce=nonce, known=known, style=_Markup(STYLE))


def _write_editors(chosen: str) -> _Markup:
    """Return the choice of editors, that of the server's configuration chosen already."""
    known = find_editor(chosen)
    return _joined(
        _fill_template(EDITOR, name=name, link=link, selected=" selected" if name == known else "")
        for name, link in [*EDITORS.items(), ("Own link", "")]
    )


# -- exceptions


def _write_type(name: str) -> _Markup:
    """Return a type's name, its module quieter."""
    module, dot, own = name.rpartition(".")
    return _fill_template(TYPE, module=module + dot, name=own)


def _write_message(text: str) -> _Markup:
    """Return a message whole; a long one scrolls in its place, so that the frames below are not pushed away."""
    template = MESSAGE if _fits(text, *_FLAT_MESSAGE) else TALL_MESSAGE
    return _fill_template(template, text=text) if text else _Markup()


def _write_remarks(problem: ExceptionView) -> _Markup:
    """Return what comes below an exception's message: the hint and the notes."""
    hint = _fill_template(HINT, text=problem.hint) if problem.hint else _Markup()
    return _joined([hint, *(_fill_template(NOTE, text=_write_message(note)) for note in problem.notes)])


def _write_overview(problems: Sequence[ExceptionView]) -> _Markup:
    """Return links to the causes and the members of groups, so that the first cause is seen without scrolling."""
    links = []
    for anchor, wording, each in itertools.islice(_tree_of(problems, "e"), 1, None):
        kind, message = _write_type(each.type), _one_line(each.message)
        links.append(_fill_template(LINK, wording=wording, anchor=anchor, type=kind, message=message))
    return _fill_template(LINKS, links=_joined(links)) if links else _Markup()


def _tree_of(problems: Sequence[ExceptionView], anchor: str) -> Iterator[tuple[str, str, ExceptionView]]:
    """Yield all exceptions of a chain as `_newest_first` does, each followed by its members, numbered."""
    for where, wording, problem in _newest_first(problems, anchor):
        yield where, wording, problem
        for number, chain in enumerate(problem.members, 1):
            for below, how, each in _tree_of(chain, f"{where}.{number}"):
                yield below, how if how[:1].isalpha() else f"{number}.{how}", each  # a cause, or a member: "2.1."


def _newest_first(problems: Sequence[ExceptionView], anchor: str) -> Iterator[tuple[str, str, ExceptionView]]:
    """Yield anchor, wording and problem; the wording says how the problem led to the one just yielded."""
    wording = ""
    for number, problem in enumerate(reversed(problems)):
        yield f"{anchor}-{number}" if number else anchor, wording, problem
        wording = _WORDINGS.get(problem.relation, "")
        if problem.skipped:
            wording += f" (through {_counted(problem.skipped, 'exception')} not shown)"


def _write_problems(problems: Sequence[ExceptionView], anchor: str) -> _Markup:
    """Return a chain, the newest first and without a heading here: it has the page's, or is the member of a group."""
    sections = []
    for where, wording, each in _newest_first(problems, anchor):
        heading = _Markup()
        if wording:
            kind, message, remarks = _write_type(each.type), _write_message(each.message), _write_remarks(each)
            heading = _fill_template(HEADING, wording=wording, type=kind, message=message, remarks=remarks)
        members, stack = _write_group(each, where), _write_stack(each.frames)
        sections.append(_fill_template(EXCEPTION, anchor=where, heading=heading, members=members, stack=stack))
    return _joined(sections)


def _write_group(problem: ExceptionView, anchor: str) -> _Markup:
    """Return the members of an exception group as a tree, before the group's own frames, as they are what failed."""
    if not problem.members and not problem.unlisted:
        return _Markup()
    members = []
    for number, chain in enumerate(problem.members, 1):
        newest = chain[-1]
        message = _write_message(newest.message)  # whole, where one line is not enough
        whole = [] if _fits(newest.message, _SHORT_TEXT) else [_fill_template(NOTE, text=message)]
        member = _fill_template(
            MEMBER,
            open=" open" if number <= _OPEN_MEMBERS else "",
            number=number,
            type=_write_type(newest.type),
            message=_one_line(newest.message),
            remarks=_joined([*whole, _write_remarks(newest)]),
            exceptions=_write_problems(chain, f"{anchor}.{number}"),
        )
        members.append(member)
    title = _counted(len(members) + problem.unlisted, "exception")
    if problem.unlisted:
        members.append(_fill_template(ABSENT, text=f"and {_counted(problem.unlisted, 'more exception')}"))
    itself = _fill_template(ITSELF) if problem.frames else ""
    return _fill_template(MEMBERS, title=title, members=_joined(members), itself=itself)


# -- frames


def _write_stack(frames: Sequence[FrameView]) -> _Markup:
    """Return the frames, newest first: the application's own open, each run of library frames in a line that unfolds.

    That line names their packages.  The frame that raised is never folded away, and when none is the application's it
    is opened.
    """
    own = [frame for frame in reversed(frames) if frame.app] or list(frames[-1:])
    pieces: list[_Markup] = []
    for is_shown, group in itertools.groupby(reversed(frames), lambda frame: frame.app or frame is frames[-1]):
        run, hot = list(group), (frames[-1], own[0])
        written = [_write_frame(frame, opened=frame in own[:_OPEN_FRAMES], hot=frame in hot) for frame in run]
        if not is_shown and len(run) > 1:
            packages = dict.fromkeys(".".join(frame.module.split(".")[:2]) or frame.filename for frame in run)
            count, modules = _counted(sum(1 + frame.skipped for frame in run), "frame"), _one_line(", ".join(packages))
            written = [_fill_template(FOLD, count=count, modules=modules, frames=_joined(written))]
        pieces += written
    return _fill_template(STACK, frames=_joined(pieces)) if frames else _Markup()


def _write_frame(frame: FrameView, *, opened: bool, hot: bool = False) -> _Markup:
    """Return one frame: a line that unfolds into its source and, beside that, its values.

    If its values have not been read and it has an id, the page asks for them when the frame comes into view.
    """
    folder, file = os.path.split(frame.path)
    body = write_source(frame)
    is_unread = not frame.is_read or any(variable.value.startswith("(not read:") for variable in frame.variables)
    later = " later" if is_unread and frame.id else ""
    if frame.variables or later:
        variables = write_variables(frame) if frame.variables else ""
        body = _fill_template(HALVES, source=body, variables=variables, later=later)
    view = _fill_template(
        FRAME,
        kind=("ours" if frame.app else "foreign") + (" hot" if hot else ""),
        open=" open" if opened else "",
        id=frame.id,
        path=frame.filename,
        folder=os.path.join(folder, "") if folder else "",
        file=file,
        lineno=frame.lineno,
        function=frame.name,
        column=frame.marks[0].start + 1 if frame.marks else 1,
        edit=_fill_template(EDIT, file=file) if os.path.isabs(frame.filename) else "",
        body=body,
        more=_fill_template(MORE) if frame.id and frame.source else "",
    )
    if frame.skipped:  # after this one, and so above it on the page
        view = _joined([_fill_template(REPEAT, text=f"{_counted(frame.skipped, 'frame')} not shown"), view])
    return view


def write_source(view: FrameView) -> _Markup:
    """Return the window of source: failing line and expression marked.

    On the failing lines each expression that has a value shows it as a tooltip: that of `a.b` over the `.b`.
    """
    if not view.source:
        return _fill_template(ABSENT, text=view.missing)
    is_template = view.kind == "template"
    margin = min((_indent_of(text) for _, text in view.source if text.strip()), default=0)
    texts = [text[margin:] for _, text in view.source]
    colors = [[] for _ in texts] if is_template else _highlight(texts)
    marks = {mark.number: (mark.start - margin, mark.end - margin) for mark in view.marks}
    titles = {each.name: f"{each.name} = {_one_line(each.value)}" for each in view.variables}
    lines = []
    for (number, _), text, spans in zip(view.source, texts, colors):
        is_failing = number == view.lineno or number in marks
        found = expressions_in(text, is_template) if is_failing else ()
        spans += [(begin, end, "", titles[name]) for begin, end, name in found if name in titles]
        indent, painted = min(_indent_of(text) // 4, _INDENTS), _paint(text, spans, *marks.get(number, (0, 0)))
        lines.append(_fill_template(LINE, at=" at" if is_failing else "", indent=indent, number=number, text=painted))
    return _fill_template(SOURCE, lines=_joined(lines))


def _indent_of(text: str) -> int:
    return len(text) - len(text.lstrip())


def _paint(text: str, spans: Iterable[_Painted], start: int, end: int) -> _Markup:
    """Return `text` with spans of it colored or with a tooltip, and the characters from `start` to `end` marked.

    Where spans overlap, the later one wins.
    """
    cells: list[_Painted] = [(0, 0, "", "")] * len(text)
    for span in spans:
        cells[span[0] : span[1]] = [span] * (span[1] - span[0])
    pieces = []
    for is_marked, places in itertools.groupby(range(len(text)), lambda at: start <= at < end):
        inner = []
        for (_, _, kind, title), run in itertools.groupby(places, cells.__getitem__):
            part = "".join(text[at] for at in run)
            colored = _fill_template(COLORED, kind=kind, text=part) if kind else _escape(part)
            inner.append(_fill_template(TITLED, title=title, text=part) if title else colored)
        pieces.append(_fill_template(MARK, text=_joined(inner)) if is_marked else _joined(inner))
    return _joined(pieces)


def _highlight(lines: Sequence[str]) -> list[list[_Painted]]:
    """Return for each line of Python the spans to color, in quiet colors, so that the mark stands out."""
    first, before = _docstring_end(lines), ""
    spans: list[list[_Painted]] = [[(0, len(line), "s", "")] if row < first else [] for row, line in enumerate(lines)]
    for row, tokens in enumerate(code_tokens(lines[first:]), first):
        for begin, end, kind in tokens:
            text = lines[row][begin:end]
            if kind == "w":
                kind = "k" if keyword.iskeyword(text) else "d" if before in ("def", "class") else ""
            spans[row] += [(begin, end, kind, "")] if kind else []
            before = text
    return spans


def _docstring_end(lines: Sequence[str]) -> int:
    """Return how many of the lines belong to a docstring that began before them: a guess from its closing quotes."""
    for row, line in enumerate(lines):
        found = re.search(r"""'{3}|"{3}""", line)
        if found:
            opens = not line[: found.start()].strip(" \trRbBfFuU")
            alone = line.strip() == found.group() and row > 0 and lines[row - 1].rstrip()[-1:] not in ":=(,["
            closes = line.rstrip().endswith(found.group()) and line.count(found.group()) == 1 and (alone or not opens)
            return row + 1 if closes else 0
    return 0


# -- values, and what stands around the exception


def write_variables(view: FrameView) -> _Markup:
    """Return the frame's arguments and its other locals; those on the failing line stand out."""
    groups: dict[str, list[_Markup]] = {"On this line": [], "Arguments": [], "Locals": []}
    for variable in view.variables:
        title = "On this line" if variable.used else "Arguments" if variable.argument else "Locals"
        groups[title].append(_write_variable(variable, [variable.name]))
    parts = [_fill_template(VALUES, title=title, rows=_joined(rows)) for title, rows in groups.items() if rows]
    if view.unlisted or not parts:
        text = f"and {view.unlisted:,} more" if view.unlisted else "No variables here"
        parts.append(_fill_template(ABSENT, text=text))
    return _joined(parts)


def write_members(variables: Sequence[Variable], path: Sequence[Union[str, int]]) -> _Markup:
    """Return the members of the value at a path, as they stand under it when it is unfolded."""
    if not variables:
        return _fill_template(ABSENT, text="Nothing inside")
    rows = _joined(_write_variable(variable, [*path, number]) for number, variable in enumerate(variables))
    return _fill_template(INSIDE, rows=rows)


def _write_variable(variable: Variable, path: Sequence[Union[str, int]]) -> _Markup:
    """Return one value, with a button that unfolds its members if it has any."""
    import json

    return _fill_template(
        VALUE,
        used=_Markup(' class="used"' if variable.used else ""),
        unfold=_fill_template(UNFOLD, name=variable.name, path=json.dumps(path)) if variable.opens else "",
        name=variable.name,
        type=variable.type,
        text=_fold_text(variable.value),
    )


def _write_around(report: Report) -> _Markup:
    """Return the request, and the report as text and as Markdown, to be copied."""
    pieces, request = [], report.request
    if request:
        for title, rows in (("Body", request.form), ("Headers", request.headers), ("Environ", request.environ)):
            lines = _joined(_fill_template(ROW, name=name, text=_fold_text(text)) for name, text in rows)
            is_open = " open" if title == "Body" else ""
            table = _fill_template(TABLE, title=title, count=len(rows), rows=lines, open=is_open)
            pieces += [table] if rows else []
    text = write_text(report._replace(text=_cut_message(report)))
    pieces.append(_fill_template(COPY, title="As text", id="as-text", text=text))
    pieces.append(_fill_template(COPY, title="As Markdown", id="as-markdown", text=write_markdown(report)))
    return _joined(pieces)


def _fold_text(text: str) -> _Markup:
    """Return the text; a long one is folded, and its beginning shown."""
    if _fits(text, *_FLAT_VALUE):
        return _escape(text)
    start = "\n".join(text[:_SHORT_TEXT].split("\n")[: _FLAT_VALUE[1]])
    return _fill_template(LONG, start=start, text=text)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHORT_TEXT else text[: _SHORT_TEXT - 1] + "…"


def _fits(text: str, size: int, lines: int = 1) -> bool:
    return len(text) <= size and text.count("\n") < lines


def _cut_message(report: Report) -> str:
    """Return the traceback with a long message cut, for places that show the whole message above it."""
    message = report.problems[-1].message
    start = message[:_SHORT_TEXT] + "… (the whole message stands above)"
    return report.text.replace(message, start) if len(message) > len(start) else report.text


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


# -- without markup
#
# The same report for a terminal, an issue, an assistant and a program.  Each contains the address of the page, where
# its reader can go on with frames and console.


def write_text(report: Report) -> str:
    """Return the report as the interpreter prints a traceback, then request, versions and the page's address."""
    text, hint = report.text.rstrip(), report.problems[-1].hint
    templates = [each for problem in report.problems for each in problem.frames if each.kind == "template"]
    places = dict.fromkeys(f'  Template "{each.path or each.filename}", line {each.lineno}' for each in templates)
    lines = [text, *(place for place in places if place[12:] not in text)]  # Jinja2's are in the traceback
    lines += [f"({hint})", ""] if hint.rstrip("?") not in text else [""]  # the interpreter may say it, too
    lines += [f"{report.request.method} {report.request.url}"] if report.request else []
    lines.append(", ".join([*(f"{name} {version}" for name, version in report.versions), report.time]))
    lines += [report.link] if report.link else []
    return "\n".join(lines) + "\n"


def write_markdown(report: Report) -> str:
    """Return the report for an assistant or an issue, paths relative to the working directory.

    What failed comes first; then each frame of the application's with its source and its values, the innermost first;
    then the traceback, the request, the versions and the page's address.
    """
    newest, request = report.problems[-1], report.request
    parts = [f"# {_code(f'{newest.type}: {_one_line(newest.message)}')}"]
    whole = "" if _fits(newest.message, _SHORT_TEXT) else newest.message
    parts += [_fence(text) for text in [whole, newest.hint, *newest.notes] if text]
    for _, wording, problem in _tree_of(report.problems, ""):
        cause = f"{wording} {_code(f'{problem.type}: {_one_line(problem.message)}')}:" if wording else ""
        for frame in [frame for frame in reversed(problem.frames) if frame.app] or problem.frames[-1:]:
            name = f" in {_code(frame.name)}" if frame.name else ""
            parts += [f"## {_code(f'{frame.path}:{frame.lineno}')}{name}", cause]
            lines = (f"{'>' if number == frame.lineno else ' '}{number:5} {text}" for number, text in frame.source)
            parts += [_fence("\n".join(lines) or frame.missing, "python" if frame.kind == "python" else "")]
            values = "\n".join(f"{variable.name} = {variable.value}" for variable in frame.variables)
            parts, cause = [*parts, f"Values:\n\n{_fence(values)}" if values else ""], ""
    text = re.sub(r'(?<=File ")[^"\n]+', lambda match: short_path(match.group()), _cut_message(report).rstrip())
    parts += ["## Traceback", _fence(text)]
    if request:
        rows = [f"{request.method} {request.url}", *(f"{name}: {text}" for name, text in request.headers)]
        form = ["", *(f"{name} = {text}" for name, text in request.form)] if request.form else []
        parts += ["## Request", _fence("\n".join([*rows, *form]))]
    parts += ["## Versions", _fence("\n".join(f"{name} {version}" for name, version in report.versions))]
    parts += [f"## Page with frames and console\n\n<{report.link}>"] if report.link else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _fence(text: str, language: str = "") -> str:
    """Return `text` as a code block of Markdown, whose fence is longer than any in it."""
    ticks = "`" * max(3, 1 + _longest_ticks(text))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _code(text: str) -> str:
    """Return text as code of Markdown, in one line: the name of a file may hold a line end."""
    text = escape_unprintable(text)
    ticks = "`" * (1 + _longest_ticks(text))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def write_json(report: Report) -> str:
    """Return the report as JSON, in ASCII, with all fields of `Report` by their names."""
    import json

    return json.dumps(_as_plain(report), indent=1)


def _as_plain(value: Any) -> Any:
    """Return named tuples as dicts and tuples as lists."""
    if hasattr(value, "_asdict"):
        return {name: _as_plain(part) for name, part in value._asdict().items()}
    return [_as_plain(part) for part in value] if isinstance(value, tuple) else value


def write_fragment(report: Report, turbo_frame: str = "") -> str:
    """Return the report as a fragment for a page of the application's: with its own style, without script or ids.

    It has the exception, the failing frame with its values, and the address of the whole page.  Turbo takes only what
    is in an element with the id of the `turbo_frame` for which it has asked.
    """
    (_, _, problem), *others = _tree_of(report.problems, "")
    place, parts = "", [problem.hint]
    parts += [f"{wording} {each.type}: {_one_line(each.message)}" for _, wording, each in others]
    while problem.members:  # what failed in it
        problem = problem.members[0][-1]
    for frame in [frame for frame in reversed(problem.frames) if frame.app][:1] or problem.frames[-1:]:
        place = f"{frame.path}:{frame.lineno}" + (f" in {frame.name}" if frame.name else "")
        lines = [f"{variable.name} = {variable.value}" for variable in frame.variables]
        lines[_FRAGMENT_VALUES:] = ["…"] if len(lines) > _FRAGMENT_VALUES else []
        parts += [*(text.strip() for number, text in frame.source if number == frame.lineno), "\n".join(lines)]
    text = "\n\n".join(part for part in parts if part)
    newest = report.problems[-1]
    shown = {"type": newest.type, "message": newest.message, "place": place, "text": text, "link": report.link}
    fragment = _fill_template(FRAGMENT, **shown)
    return _fill_template(TURBO_FRAME, id=turbo_frame, fragment=fragment) if turbo_frame else fragment


# =====================================================================================================================
# 7. Console
#
# A Python prompt in the namespace of a frame, and the store that keeps the last crashes with their frames.  Room 8
# decides who may use them.  May know foreign code (2) and how tracebacks are read (5).
#
# A crash keeps its frames from `Crash.keep` to `Crash.let_go`, which is called when the same request is made again (by
# a person, if there is a page of the crash), and when CRASH_LIMIT later crashes have replaced it; a reload ends them
# too.  Its report, which is plain data, stays when only the frames are let go.
#
# Each console has a thread of its own.  If an evaluation takes long, it goes on there while the page asks again and
# again for what it has printed (`Console.output`), and may interrupt it.  Its output goes to an `_Output`: a `_Stream`
# replaces sys.stdout and the like, sees by the context whether an evaluation is writing, and passes on what everybody
# else writes.  What the code awaits runs on the application's loop, if there is one, and so does a statement that
# starts a task.
#
# `_complete` looks at the end of the typed code alone, which is an import, a key in brackets, or a dotted path: each
# is a row of _COMPLETED, with the function that finds what can be proposed.
#
# Invariants: a console evaluates one piece of code at a time, all in one context (contextvars) that lasts as long as
# the console.  Completion runs no code of the application's, apart from proxies and cached properties.  A crash that
# was let go holds no frame, and so no lock, no open transaction and no memory of the application's.
#
# Doors: CRASH_LIMIT, Busy, EnteredContexts, Console, Crash, CrashStore.
#
# Read first: Console.run, Console._evaluate, Console.complete, CrashStore.
# =====================================================================================================================

_OUTPUT_LIMIT = 100_000  # characters of one evaluation's output; a browser draws that much at once
_COMPLETIONS_LIMIT = 200  # more than anybody reads
_COMPLETION_SECONDS = 0.5  # for all foreign code that one completion may run; a person waits no longer for a Tab
_COMPLETED_TAIL = 500  # characters before the caret that are looked at
CRASH_LIMIT = 10  # crashes that are kept: enough to compare, few enough for memory
_INTERRUPT_SECONDS = 2.0  # after an interrupt; what runs longer is in C code, and is abandoned
_WAKE_SECONDS = 0.05  # between moments in which an interrupt can reach what is awaited on a loop of the console's
_TURN_SECONDS = 5.0  # for which an evaluation waits for another one in the same console
_CONTEXT_SECONDS = 2.0  # for entering a framework's contexts, or leaving them
_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE: of code that awaits
# Statements with this text run on the loop, since these calls need one.  No other does, as it might block the loop.
_CALLS_LOOP = (
    r"(^|asyncio )(create_task|ensure_future|gather|shield|get_running_loop|get_event_loop|current_task"
    r"|all_tasks|Future)\b"
)
_CONSOLE_FILE = "<console>"  # what its code calls its file, as at every prompt
_ESCAPES = r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_]?)"  # ECMA-48, and OSC


class _Evaluation(NamedTuple):
    """What an evaluation has printed; `more` if the statement is incomplete and nothing was run."""

    output: str
    more: bool = False
    running: bool = False  # it has not ended yet


class Busy(Exception):
    """Another evaluation is still running in this console."""


class EnteredContexts:
    """A context (contextvars) in which the contexts of the framework are entered that were active at the failure.

    In it Flask's `request` stands for the request that failed.  The values of frames are read in it, and each console
    begins with a copy.  One thread makes it, any thread may close it.
    """

    def __init__(self, managers: Iterable[contextlib.AbstractContextManager[Any]] = ()) -> None:
        managers = list(managers)
        runners = (getattr(manager, "run_coroutine", None) for manager in managers)
        self.run_coroutine: Callable[[Any], Any] = next(filter(None, runners), _run_coroutine)
        self.context = copy_context()
        self.stack = contextlib.ExitStack()
        for manager in managers:
            self._call(partial(self.stack.enter_context, manager))

    def _call(self, job: Callable[[], object]) -> None:
        """Call the framework's code in this context, not in a copy, as its changes must stay; bound the wait."""
        ForeignCalls({"": job}, self.context).begin(_CONTEXT_SECONDS)

    def close(self) -> None:
        """Leave the framework's contexts, which may end a transaction."""
        self._call(self.stack.close)


def _run_coroutine(coroutine: Any) -> Any:
    """Run what the console awaits on a new loop, where the application has none; return its result.

    The loop wakes now and then, since an interrupt reaches Python code only.
    """
    import asyncio

    async def waking() -> Any:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_later(_WAKE_SECONDS, wake)

        wake()
        return await coroutine

    return asyncio.run(waking())


class Console:
    """One prompt.  What it assigns stays; rebinding a variable does not reach the frame, changing its object does.

    `run` gives each evaluation to the console's thread and waits for it; other requests call `output`, `interrupt` and
    `complete` meanwhile.  `run` holds `turn` while it waits for the last evaluation and gives the next, so that there
    is never more than one.  Any thread may call any method.
    """

    def __init__(self, namespace: dict[str, Any], entered: Optional[EnteredContexts] = None) -> None:
        self.namespace = namespace  # one dictionary: functions and comprehensions see what is defined at the prompt
        entered = entered or EnteredContexts()
        self.context = entered.context.copy()
        self.run_coroutine = entered.run_coroutine  # runs code with `await` to its end, on the right loop
        self.turn = threading.Lock()
        self.worker: Optional[_ConsoleThread] = None
        self.last: Optional[_Evaluator] = None

    def close(self) -> None:
        """Let go of the frame, and of what runs, since nobody could interrupt it any more.

        Functions defined at the prompt refer to the namespace in a cycle.
        """
        self.namespace.clear()
        self.interrupt()
        if self.worker:
            self.worker.close()

    def run(self, code: str, seconds: Optional[float] = None) -> _Evaluation:
        """Evaluate code as a prompt does; return its output, after `seconds` even when it still runs (None: no limit).

        Raises Busy when the evaluation before it does not end within `_TURN_SECONDS`.
        """
        with self.turn:
            if self.worker and not self.worker.thread.is_alive():  # a late interrupt has ended it
                self.worker = self.last = None
            if self.last and not self.last.ended.wait(_TURN_SECONDS):
                raise Busy
            _replace_streams()
            if self.worker is None:
                self.worker = _ConsoleThread()
                self.worker.thread.start()
            printed = _Output(self.namespace)
            self.context.run(_PRINTING.set, printed)
            # Here, where no interrupt comes: one that hits `catch_warnings` may leave its lock taken for ever.
            compiled = self.context.run(call_safely, partial(_compile_statements, _plain_code(code)))
            self.last = last = _Evaluator(partial(self._evaluate, *compiled), self.context, printed)
            self.worker.give(last)
        return last.wait(seconds)

    def output(self, seconds: float) -> _Evaluation:
        """Wait for the last evaluation to end, `seconds` at most; return all that it has printed by then."""
        return self.last.wait(seconds) if self.last else _Evaluation("")

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in the running evaluation; return False if none runs, or Python cannot do that."""
        last = self.last
        if self.worker is None or last is None:
            return False
        with last.interrupting:
            if last.is_done:
                return False
            done = interrupt_thread(self.worker.thread.ident)
        last.interrupted.set()
        return done

    def _evaluate(self, statements: Optional[list[CodeType]], error: Optional[BaseException]) -> bool:
        """Run what was compiled, or failed to, in this thread, and print what a prompt prints.

        Returns True if it is incomplete and was not run.
        """
        is_incomplete: Optional[bool] = False
        if error is None:
            is_incomplete, error = call_safely(lambda: self._run_statements(statements))
        if error is not None:
            _, worse = call_safely(lambda: print(_console_traceback(error), end=""))
            if worse is not None:
                print(type_name(type(error)), "(and its traceback cannot be shown)")
        return is_incomplete is True

    def _run_statements(self, statements: Optional[list[CodeType]]) -> bool:
        """Run statements one by one; return whether there are none, as the last one is incomplete."""
        for code in statements or ():
            if self.run_coroutine is not _run_coroutine and _needs_loop(code):
                value = self.run_coroutine(_evaluate_on_loop(code, self.namespace))
            else:
                value = eval(code, self.namespace)
            if code.co_flags & _CO_COROUTINE:
                value = self.run_coroutine(value)
            sys.displayhook(value)  # which is `_show`
        return statements is None

    def complete(self, code: str) -> tuple[int, list[str]]:
        """Return the index in `code` where the word that is being typed at its end begins, and its completions."""
        found, _ = call_bounded(partial(_complete, code, self.namespace), _COMPLETION_SECONDS, self.context)
        return found or (len(code), [])


def _needs_loop(code: CodeType) -> bool:
    """Return whether a statement, or a comprehension in it (a function before Python 3.12), needs the loop."""
    inner = (
        each for each in code.co_consts if isinstance(each, CodeType) and each.co_name.endswith(("comp>", "expr>"))
    )
    return re.search(_CALLS_LOOP, " ".join(code.co_names)) is not None or any(map(_needs_loop, inner))


async def _evaluate_on_loop(code: CodeType, namespace: dict[str, Any]) -> Any:
    """Evaluate a statement inside of a coroutine, so that it finds the loop running; return its value."""
    return eval(code, namespace)


def _plain_code(code: str) -> str:
    """Return pasted code without the prompts and the output of a session, and without a common indentation."""
    lines = code.split("\n")
    if re.match(r"\s*>>>( |$)", code, re.MULTILINE):
        prompts = [re.match(r"\s*(?:>>>|\.\.\.)(?: |$)(.*)", line) for line in lines]
        lines = [prompt.group(1) for prompt in prompts if prompt] + [""] * (lines[-1] == "")
    margin = re.match(r"\s*", "\n".join(lines)).group().rpartition("\n")[2]  # type: ignore[union-attr]
    return "\n".join(line.removeprefix(margin) for line in lines)


def _compile_statements(code: str) -> Optional[list[CodeType]]:
    """Return the statements; None if the last one is incomplete.

    An expression has its value, which is shown in the console's thread: a repr may ask a database.  Other statements
    show the values of the expressions inside of them themselves, by `sys.displayhook`.

    A block goes on until an empty line, as at a prompt, unless several statements come at once, as by pasting.
    """
    import ast
    import warnings
    from codeop import compile_command

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            if compile_command(code, _CONSOLE_FILE, "single") is None:
                return None
        except SyntaxError:  # a mistake, found again below, or more than one statement
            pass
    # Without the __future__ of this file, but with `await` outside of functions:
    bare_compile = partial(compile, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    body = ast.parse(code, _CONSOLE_FILE).body
    return [
        bare_compile(ast.Expression(each.value), _CONSOLE_FILE, "eval")
        if isinstance(each, ast.Expr)
        else bare_compile(ast.Interactive([each]), _CONSOLE_FILE, "single")
        for each in body
    ]


def _console_traceback(error: BaseException) -> str:
    """Return the traceback of what was typed, without the frames of the console itself."""
    import traceback

    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename != _CONSOLE_FILE:
        tb = tb.tb_next
    shown = traceback.TracebackException(type(error), error, tb)
    shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]
    return "".join(shown.format())


# -- completion

_CLOSED = (  # code up to a string or comment that has not ended; a string in one line ends with the line
    r"""(?sx) (?: [^'"\#]+ | \#[^\n]*\n | '''(?:[^\\]|\\.)*?''' | \"{3}(?:[^\\]|\\.)*?\"{3}
        | '(?!'')(?:[^'\\\n]|\\.)*['\n] | "(?!"")(?:[^"\\\n]|\\.)*["\n] )*"""
)


def _complete(code: str, namespace: dict[str, Any]) -> tuple[int, list[str]]:
    """Return what `Console.complete` does, by the first row of _COMPLETED whose pattern fits.

    Nothing is proposed in a string or a comment, nor for an attribute of an expression that would have to be
    evaluated.
    """
    literal = re.match(_CLOSED, code).end()  # type: ignore[union-attr]
    for pattern, candidates in _COMPLETED:
        found = re.compile(pattern).search(code, max(0, len(code) - _COMPLETED_TAIL))
        if found and literal in (len(code), found.start("typed")):  # the latter where a key's quote has been typed
            typed = found["typed"]
            hides_private = re.fullmatch(r"(?:\w+\.)*", typed)  # until an underscore is typed; a key shows all
            texts = map(str, candidates(namespace, found["base"], typed))
            names = {name for name in texts if name.startswith(typed)}
            shown = (name for name in names if not (hides_private and name[len(typed) :].startswith("_")))
            return found.start("typed"), sorted(shown)[:_COMPLETIONS_LIMIT]
    return len(code), []


def _keys_below(namespace: dict[str, Any], path: str, typed: str) -> list[str]:
    """Return the keys of the object at a dotted path, in the quotes that were typed where the key allows it."""
    texts = [repr(key) for key in _keys_of(_value_of(namespace, path.split(".")))]
    quote = typed[:1]
    if quote not in ("'", '"'):
        return texts
    return [quote + t[1:-1] + quote if t[:1] in "'\"" and quote not in t[1:-1] else t for t in texts]


def _names_below(namespace: dict[str, Any], base: str, typed: str) -> list[str]:
    """Return the attributes of the object at a dotted path, with the path before each; for no path, all names."""
    if not base:
        return [*namespace, *vars(builtins), *keyword.kwlist]
    value = _value_of(namespace, base.split(".")[:-1])
    if value is MISSING:
        return []
    columns = _keys_of(value) if "_ipython_key_completions_" in static_attributes(value) else ()
    names = [*static_attributes(value), *(key for key in columns if isinstance(key, str) and key.isidentifier())]
    return [f"{base}{name}" for name in names]


def _value_of(namespace: dict[str, Any], path: list[str]) -> Any:
    """Return the object at a dotted path, running no code but that of proxies and cached properties."""
    value = behind_proxy(namespace.get(path[0], vars(builtins).get(path[0], MISSING)))
    for name in path[1:]:
        if value is MISSING:
            break
        kinds = type(static_attributes(value).get(name)).__mro__
        is_cached = "cached_property" in [kind.__name__ for kind in kinds]  # as a rule its value is there already
        value = behind_proxy(getattr(value, name) if is_cached else static_attribute(value, name))
    return value


def _keys_of(value: Any) -> list[Any]:
    """Return the keys of a mapping or a table."""
    if issubclass(type(value), dict):
        return [key for key in list(dict.keys(value))[:10_000] if type(key) in (str, bytes, int, float, bool)]
    if "_ipython_key_completions_" in static_attributes(value):  # pandas and others offer it to every prompt
        return list(itertools.islice(value._ipython_key_completions_(), 10_000))
    has_keys = "keys" in static_attributes(value) and not issubclass(type(value), type)
    return list(itertools.islice(value.keys(), 10_000)) if has_keys else []


def _modules_below(base: str) -> list[str]:
    """Return the dotted names of the modules in a package, given with a dot after it, or of all; none is imported."""
    import pkgutil

    folders = list(getattr(sys.modules.get(base[:-1]), "__path__", ())) if base else None
    names = [base + module.name for module in pkgutil.iter_modules(folders)]
    return names if base else [*sys.builtin_module_names, *names]


def _names_in_module(name: str) -> list[str]:
    """Return the names in a module, and its submodules; of one that is not imported yet, the latter alone."""
    module = sys.modules.get(name)
    submodules = [each.rpartition(".")[2] for each in _modules_below(name + ".")]
    return [*static_attributes(module), *submodules] if module is not None else submodules


_DOTTED = r"(?:[^\W\d]\w*\.)*"  # what stands before the last name of a dotted path
# What may stand at the end of code: the pattern of what is being typed, which says what that belongs to, and the
# function from the namespace and these two to all texts that may be meant.
_COMPLETED: list[tuple[str, Callable[[dict[str, Any], str, str], Iterable[str]]]] = [
    (
        r"(?m)(?:^|;)\s*from\s+(?P<base>[\w.]+)\s+import\s+\(?(?:[^;()\n]*,\s*)?(?P<typed>\w*)\Z",
        lambda namespace, base, typed: _names_in_module(base),
    ),
    (
        r"(?m)(?:^|;)\s*(?:import\s+(?:[^;\n]*,\s*)?|from\s+)(?P<typed>(?P<base>(?:\w+\.)*)\w*)\Z",
        lambda namespace, base, typed: _modules_below(base),
    ),
    (
        rf"""(?<![\w.])(?P<base>{_DOTTED}[^\W\d]\w*)\[(?P<typed>['"][^'"\\\n]*|\w*)\Z""",
        _keys_below,
    ),
    (rf"(?<![\w.])(?P<typed>(?P<base>{_DOTTED})(?:[^\W\d]\w*)?)\Z", _names_below),
]


# -- what an evaluation prints


class _ConsoleThread:
    """The thread of a console, so that an interrupt hits an evaluation and not the server.

    It makes all evaluations of the console, since much is kept by thread that must survive from line to line: the
    sessions of SQLAlchemy's scoped_session, Django's connections with their transactions, what sqlite3 has opened.
    """

    def __init__(self) -> None:
        import queue

        self.thread = threading.Thread(target=self.run, name="devserve console", daemon=True)  # as in `ForeignCalls`
        self.given: Any = queue.SimpleQueue()
        self.ahead: Optional[_Evaluator] = None
        self.is_closed = False

    def give(self, evaluator: _Evaluator) -> None:
        """Have it make an evaluation; the one before must have ended."""
        self.ahead = evaluator
        self.given.put(None)

    def close(self) -> None:
        """Have it end after what it does now."""
        self.is_closed = True
        self.given.put(None)

    def run(self) -> None:
        """Make each evaluation that is given; a child that one of them forks ends with that.

        An interrupt may come a moment late, that is, anywhere here.
        """
        pid = os.getpid()
        try:
            self._make_all(pid)
        finally:
            if self.ahead and os.getpid() == pid:
                self.ahead.ended.set()

    def _make_all(self, pid: int) -> None:
        while not self.is_closed and os.getpid() == pid:
            with contextlib.suppress(KeyboardInterrupt):
                if self.ahead is None or self.ahead.ended.is_set():
                    self.given.get()
                else:
                    self.ahead.run()


class _Evaluator:
    """One evaluation, which a console's thread makes, and for which several others may wait."""

    def __init__(self, job: Callable[[], bool], context: Context, printed: _Output) -> None:
        self.job = job
        self.context = context
        self.printed = printed
        self.more = False
        self.has_begun = self.is_done = False
        self.interrupting = threading.Lock()  # held while it is looked whether to interrupt it, and done
        self.interrupted = threading.Event()
        self.ended = threading.Event()

    def run(self) -> None:
        """Evaluate, in the context."""
        while True:
            try:
                if not self.has_begun:
                    self.has_begun = True
                    self.more = self.context.run(call_safely, self.job)[0] is True
                self.is_done = True
                while self.interrupting.locked():  # what it raises, it raises here: no lock is left half taken
                    time.sleep(0.001)
                break
            except KeyboardInterrupt:
                pass
        self.ended.set()

    def wait(self, seconds: Optional[float] = None) -> _Evaluation:
        """Return its outcome, or after `seconds` what it has printed; do not wait longer for an interrupt to work."""
        end = None if seconds is None else time.monotonic() + seconds
        while not (self.interrupted.is_set() or (end is not None and time.monotonic() >= end)):
            if self.ended.wait(0.05):  # seconds until an interrupt is noticed; the end is noticed at once
                break
        if self.interrupted.is_set():
            self.ended.wait(_INTERRUPT_SECONDS)
        has_ended = self.ended.is_set()
        text = re.sub(_ESCAPES, "", self.printed.getvalue())
        text = "\n".join(
            line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")
        )  # as a terminal overwrites
        if has_ended:
            return _Evaluation(text, self.more)
        if self.interrupted.is_set():
            text += "(it runs on: it has caught the interrupt, or waits in code that cannot be interrupted)\n"
        return _Evaluation(text, running=not self.interrupted.is_set())


class _Output(io.StringIO):
    """Collects what an evaluation prints; as its standard input, it is empty.

    It is no terminal and has no descriptor, since `input()` would then read from devserve's own terminal.
    """

    encoding = "utf-8"  # as libraries want to know of a standard stream

    def __init__(self, namespace: dict[str, Any]) -> None:
        super().__init__()
        self.namespace = namespace  # of the evaluation

    def write(self, text: str) -> int:
        """Keep what is printed, up to a limit."""
        room = _OUTPUT_LIMIT - self.tell()
        if room > 0:
            super().write(text if len(text) <= room else text[:room] + "\n… (the rest of the output is not kept)\n")
        return len(text)

    def close(self) -> None:
        """Stay open: `exit()` closes the input."""


_PRINTING: ContextVar[Any] = ContextVar("devserve console", default=None)  # the output of an evaluation


class _Stream:
    """Stands for one of the standard streams: an evaluation gets its own `_Output`, everybody else the real stream.

    An evaluation is recognised by its context, which is also that of the code it awaits on an application's loop.  Any
    thread may use it.
    """

    def __init__(self, real: Any) -> None:
        self.real = open(os.devnull, "r+") if real is None else real  # noqa: SIM115 - None under pythonw

    def __getattr__(self, name: str) -> Any:
        return getattr(_PRINTING.get() or self.real, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")


def _show(real: Callable[[object], object], value: object) -> None:
    """Be `sys.displayhook`, which was `real`: an evaluation's values are printed, and the last one becomes its `_`."""
    printed = _PRINTING.get()
    if printed is None:
        real(value)
    elif value is not None:
        printed.namespace["_"] = value
        print(repr(value))


def _replace_streams() -> None:
    """Replace the standard streams by `_Stream`s, for good: other code keeps references to them."""
    for name in ("stdin", "stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Stream):
            setattr(sys, name, _Stream(getattr(sys, name)))
    if getattr(sys.displayhook, "func", None) is not _show:
        sys.displayhook = partial(_show, sys.displayhook)


# -- the last crashes


class Crash:
    """One crash: its report, which is data, and its frames with their consoles until they are let go.

    The thread in which it happened fills it in; then any thread may open consoles and let go of the frames.
    """

    def __init__(
        self,
        what: str = "",
        request: Any = None,
        contexts: Iterable[contextlib.AbstractContextManager[Any]] = (),
        id: str = "",
    ) -> None:
        self.id = id or os.urandom(8).hex()  # cannot be guessed, since whoever has it may read the page
        self.what = what  # what was being done, such as GET /path
        self.request = request  # as it was recorded, to be sent again; its `key` is the same for the same page
        self.time = time.time()
        self.seconds = 0.0  # from the request's begin
        self.report: Optional[Report] = None
        self.text: Optional[str] = None  # the traceback as it was printed on the terminal
        self.entered = EnteredContexts(contexts)
        self.positions: dict[str, FramePosition] = {}  # by the id of the frame
        self.consoles: dict[str, Console] = {}  # by the same
        self.opening = threading.Lock()  # held while a console is made or all are closed
        self.is_let_go = False
        self.is_shown = False  # somebody has a page of it

    def keep(self, position: FramePosition) -> str:
        """Keep a position; return the id under which it is found."""
        id = f"{self.id}-{len(self.positions)}"
        self.positions[id] = position
        return id

    def let_go(self) -> None:
        """Let go of the frames and consoles, and so of all that they refer to; the report stays."""
        with self.opening:
            had_frames, self.is_let_go = bool(self.positions), True
            for console in self.consoles.values():
                console.close()
            self.consoles, self.positions = {}, {}
            self.entered.close()
        if had_frames:
            gc.collect()  # an exception and its frames are often a cycle, as a connection of sqlite3 always is

    def title(self) -> str:
        """Return type and message in one line; "" for a crash that could not be read."""
        problem = self.report.problems[-1] if self.report else None
        return " ".join(f"{problem.type}: {problem.message}".split()) if problem else ""


class CrashStore:
    """The last crashes.  Any thread may call any method.

    Past CRASH_LIMIT, a new crash replaces the oldest one whose frames are let go already, or else the oldest of all.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.crashes: dict[str, Crash] = {}  # the oldest first

    def add(self, crash: Crash) -> Crash:
        """Keep a new crash, and return it."""
        dropped = None
        with self.lock:
            self.crashes[crash.id] = crash
            if len(self.crashes) > CRASH_LIMIT:
                dropped = min(self.crashes.values(), key=lambda each: not each.is_let_go)  # the oldest of those first
                del self.crashes[dropped.id]
        if dropped:
            dropped.let_go()
        return crash

    def all(self) -> list[Crash]:
        """Return the crashes, the newest first."""
        with self.lock:
            return list(self.crashes.values())[::-1]

    def find(self, id: str) -> Crash:
        """Return the crash of an id.  Raises KeyError when it is not there any more, or never was."""
        with self.lock:
            return self.crashes[id]

    def position(self, frame_id: str) -> FramePosition:
        """Return the frame that has an id.  Raises KeyError as `find` does, and when the frame was let go."""
        return self.find(frame_id.partition("-")[0]).positions[frame_id]

    def console(self, frame_id: str) -> Console:
        """Return the console of a frame, the same one each time.  Raises KeyError as `position` does."""
        crash = self.find(frame_id.partition("-")[0])
        with crash.opening:
            if frame_id not in crash.consoles:
                frame = crash.positions[frame_id].frame
                crash.consoles[frame_id] = Console({**frame.f_globals, **locals_of(frame)}, crash.entered)
            return crash.consoles[frame_id]

    def let_go(self, key: object, *, shown: bool) -> None:
        """Let go of the frames of earlier crashes of the same request, as they may hold what it needs now.

        Those of which there is a page are `shown`.  A request that no person has made leaves them alone: a script that
        asks every few seconds would close the console.
        """
        with self.lock:
            crashes = [*self.crashes.values()]
            same = [each for each in crashes if each.positions and each.request and each.request.key == key]
        for crash in (each for each in same if shown or not each.is_shown):
            crash.let_go()


# =====================================================================================================================
# 8. Guard
#
# Decides who may use the console, that is, run any code as the person at the keyboard.  It makes decisions only; room
# 9 writes the answers.  May know the configuration (1).
#
# The rules for a request that acts (POST), and the way in that each closes:
#
# | rule                                                  | closes                                                    |
# |-------------------------------------------------------|-----------------------------------------------------------|
# | Host is loopback, the bound one, or --trusted-host    | DNS rebinding; X-Forwarded-Host and the like are not read |
# | POST only                                             | images, links, forms by GET, prefetching                  |
# | Origin equals Host, or is named by --trusted-host;    | forms and scripts of other sites and other ports          |
# |   without one, Sec-Fetch-Site says same-origin; and   |                                                           |
# |   it never says anything else                         |                                                           |
# | Content-Type is application/json                      | forms, text/plain: what a browser sends without preflight |
# | X-Devserve-Secret is the process's secret             | whoever has not read one of our pages, CORS preflights    |
# | the cookie, for what runs code                        | whoever has read a page, but neither PIN nor link         |
# | X-Devserve-Key, beside a browser's cookie             | servers on other ports, whom browsers send our cookie     |
# | the pages of an unlocked browser have another secret, | script in the application's own page, to which somebody   |
# |   and only that one runs code there                   |   tells the secret of his own page, sent by forged headers|
# | no PIN is taken after ten wrong ones, until a restart | guessing, also in parallel and across reloads             |
# | with the PIN off, only clients of this machine are    | everybody on the network of `--host 0.0.0.0`, or behind a |
# |   let in, which speak HTTP/1.1 without a header of    |   proxy or a tunnel on this machine                       |
# |   any proxy                                           |                                                           |
#
# The rules for what is read (GET), whatever its form:
#
# | rule                                                  | closes                                                    |
# |-------------------------------------------------------|-----------------------------------------------------------|
# | a Host that is a name is loopback, bound, or trusted; | a rebound name that reads source and values; an address   |
# |   any address will do                                 |   cannot be rebound                                       |
# | Origin, if there is one, is Host's, of this machine,  | script of another site, if the application's CORS headers |
# |   or trusted                                          |   let it read answers                                     |
# | the secret is only in a document: Sec-Fetch-Dest is   | script in the application's own page: fetch, XHR, iframe, |
# |   "document" or absent, and Host is trusted           |   object, service worker                                  |
# | a request with Service-Worker-Navigation-Preload gets | a service worker that is given the document itself, also  |
# |   no secret; once a service worker was asked for, the |   one that fetches it by a registered route, which no     |
# |   secret is replaced, and only a request with         |   header of the request shows                             |
# |   Cache-Control: no-cache gets it (Shift held down)   |                                                           |
# | Cross-Origin-Opener-Policy is same-origin, and with   | script in the application's own page by window.open, even |
# |   it Cross-Origin-Embedder-Policy is require-corp     |   if that page has the former, as Django's has            |
# | Document-Isolation-Policy, which Chromium knows       | the same, if the application's page has both              |
# | our script sends nothing while a service worker       | one that reads our requests with the secret in them       |
# |   controls the page                                   |                                                           |
# | what our script keeps in sessionStorage is encrypted  | script of the application that reads the console's        |
# |   by the secret                                       |   history, or plants commands in it                       |
# | a crash's page under its address: all of the above,   | whoever was not shown the link                            |
# |   and the address (64 random bits) cannot be guessed  |                                                           |
# | the list and the last crash: the browser is unlocked, | others on the network or behind a tunnel, who are not     |
# |   or the client is on this machine, behind no proxy   |   told of other people's crashes                          |
# | all stacks: the browser is unlocked                   | everybody else                                            |
# | a link on the terminal has a trusted Host, or our own | a stranger's Host: a click on the link of a crash would   |
# |                                                       |   open the stranger's page, which asks for the PIN        |
#
# How to change: a rule is a line of a table above, a condition in the method that decides for all requests of its kind
# (`refuses_acting`, or `refuses_running` for what runs code; `refuses_reading`, or `refuses_script` for what contains
# the secret), and a test that sends what would be let in but for this one thing.  Which method decides about an
# endpoint is written in its row of _ENDPOINTS (9).
#
# The secrets survive a reload unless another PIN was configured, and only the last of them is ever in a page or in the
# log:
# - The PIN (30 bits) is typed.
# - The token (128 bits) is in the link on the terminal.  It opens the console even after ten wrong PINs, since nobody
#   can guess it.  Cookie and key are made from it, and neither can be made from the other or from the PIN.
# - The cookie is HttpOnly, SameSite=Strict, limited to our own paths, and named by the port, since browsers send the
#   cookies of one port to every other.
# - The cookie for pages goes to all paths, as a crash's page may have any, and only decides which secret those get.
# - The key is in localStorage, which is separate for each port, but which script in the application's page can read.
#   So neither cookie nor key is worth anything alone.  A program that is no browser sends its cookies to nobody else,
#   and gets one that needs no key.
# - The secret is in our pages, under the rules above.
#
# Known gaps, which no rule here can close:
# - On plain HTTP to an address that is not loopback, browsers send no Sec-Fetch-Dest and ignore the opener policy; and
#   where the application is cross-origin isolated, the policy helps in no browser but Chromium, and not in that if
#   the application sends a Document-Isolation-Policy besides.  There, script in the application's own page can do
#   what the debugger's page can.
# - Browsers send the cookie for pages to other ports and applications of the host too, and with the PIN off there is
#   none.  Such a server, or with the PIN off any program that reads a page of ours, can tell that script the secret.
# - The address of a crash that was looked at is in the history of its tab, which script in the application's page can
#   read there.  Over plain HTTP to an address that is not loopback, it can then read the crash.
# - A browser whose developer tools disable the cache looks as if Shift were held down.  There a service worker with
#   routes can do the same, and so can one that was registered while an earlier server had the port, until the browser
#   asks for its script anew.
#
# Invariants: what any rule refuses is refused, and nothing has happened before the last rule was asked.
#
# Doors: Refusal, Guard, without_our_cookies, remove_our_cookies, check_pin.
#
# Read first: Guard.refuses_acting, Guard.refuses_running, Guard.knows, Guard.refuses_reading, Guard.try_pin.
# =====================================================================================================================

_PIN_DIGITS = 9  # read off the terminal and typed once; ten guesses find it once in a hundred million times
_SHORTEST_HIDDEN_PIN = 4  # characters; a shorter one is guessed soon, and may stand anywhere in a page
_OWN_FIELDS = {"id", "kind", "relation"}  # of a report: what we have put there
_PIN_FAILURES = 10  # wrong PINs, after which no PIN is taken any more
_PIN_OFF = "off"
_HERE = "here"  # in place of the address of a client on this machine
_WORKERS_LIMIT = 1_000  # clients of which it is remembered that they have a service worker: more than an office has
_OUR_PAGE = "Use the console on devserve's page."  # the remedy for a request that our script did not send
_COOKIE_PREFIX = "devserve_"  # the port follows, with an s over HTTPS, or the scheme
_PAGE_VALUES = 16  # in the cookie for pages, one for each server of the host that was started: half a kilobyte
_PROXY_HEADER = (  # one by which a proxy or tunnel names itself or its client, and which no browser sends
    "HTTP_(VIA|FORWARDED.*|X_(FORWARDED|ORIGINAL|CLUSTER|CLIENT|REMOTE|REAL|PROX|NGINX|ENVOY|AZURE|SCHEME|SCRIPT|SSL).*"
    "|((TRUE|FASTLY|FLY)_)?CLIENT_IP|CF_.*|CDN_LOOP|TAILSCALE_.*|FRONT_END_HTTPS)"
)


class Refusal(NamedTuple):
    """Why a request is refused: in one word for programs, in a sentence, and what to do about it."""

    error: str
    reason: str
    remedy: str


class Guard:
    """Holds the secrets of the banner, and decides who may use the console.

    A method whose name begins with `refuses` returns a Refusal, or None if the request may go on.  Any thread may call
    any method; wrong PINs are counted under a lock.

    `pin` is the PIN, "" for a random one, or "off" for none; one without a letter or digit raises DevserveError.
    `trusted_hosts` are those that the person named, `bound_hosts` those that the server is bound to.  After a reload,
    `notes` are what `remember` returned in the process before; they are ignored if another PIN was configured then.
    """

    def __init__(
        self,
        pin: str = "",
        port: int = 0,
        trusted_hosts: Iterable[str] = (),
        bound_hosts: Iterable[str] = (),
        notes: Optional[Mapping[str, str]] = None,
    ) -> None:
        check_pin(pin)
        pin = _PIN_OFF if pin.strip().lower() == _PIN_OFF else pin
        digits = str(int.from_bytes(os.urandom(8), "big") % 10**_PIN_DIGITS).zfill(_PIN_DIGITS)
        self.pin = pin or "-".join(digits[n : n + 3] for n in range(0, _PIN_DIGITS, 3))
        self.configured = pin  # the PIN that the person chose, "" when it was made here
        self.secret = os.urandom(16).hex()
        self.token = os.urandom(16).hex()
        self.port = port
        self.failures = 0  # wrong PINs since the last right one
        self.workers: set[str] = set()  # clients whose browser has asked for a service worker, of whatever Host
        self.is_announced = False  # the terminal shows already how the console is opened, and that is still right
        self.lock = threading.Lock()
        self.trust(trusted_hosts, bound_hosts)
        if notes and notes.get("configured") == pin and {"pin", "secret", "token"} <= notes.keys():
            self.pin, self.secret, self.token = notes["pin"], notes["secret"], notes["token"]
            self.failures = int(notes.get("failures", _PIN_FAILURES))
            self.workers = set(notes.get("workers", "").split())
            self.is_announced = pin != _PIN_OFF  # if no PIN is asked for, the terminal says so at each reload

    def remember(self) -> dict[str, str]:
        """Return what must survive a reload: open pages stay unlocked, and guesses stay counted.

        Call it when the gate is closed: while requests are answered, wrong PINs may still come.
        """
        secrets = {"pin": self.pin, "configured": self.configured, "secret": self.secret, "token": self.token}
        return {**secrets, "failures": str(self.failures), "workers": " ".join(self.workers)}

    def trust(self, trusted_hosts: Iterable[str], bound_hosts: Iterable[str] = ()) -> None:
        """Trust Hosts that the person named, and those that the server is bound to.

        Origins, which have a port, are trusted only when they were named: another server may be bound to the address.
        """
        named = [re.sub(r"[^.:]*[^\x00-\x7f][^.:]*", _ascii_label, host.lower()) for host in trusted_hosts]
        self.trusted_hosts = frozenset(_host_name(host) or host for host in [*named, *bound_hosts])
        self.trusted_origins = frozenset(named)

    def without_pin(self, value: Any) -> Any:
        """Return a text, or what holds texts, without the PIN that the person chose: it may stand in the source.

        Our own words stay as they are, though the PIN may be "class" or "1000": so it is called before any are added.
        """
        if self.pin == _PIN_OFF or len(self.configured) < _SHORTEST_HIDDEN_PIN:
            return value
        if isinstance(value, str):
            for word in {self.configured, repr(self.configured)[1:-1]}:
                value = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "•" * len(word), value)
        elif hasattr(value, "_asdict"):
            parts = {name: part for name, part in value._asdict().items() if name not in _OWN_FIELDS}
            value = value._replace(**{name: self.without_pin(part) for name, part in parts.items()})
        elif isinstance(value, (tuple, list)):
            value = type(value)(map(self.without_pin, value))
        return value

    def banner_line(self, url: str) -> str:
        """Return the line for the terminal that says how the console is opened."""
        if self.pin == _PIN_OFF:
            return "the debugger asks for no PIN, and opens its console to clients at 127.0.0.1 or ::1 only"
        link = f", or open {self.unlock_url(url)}" if url.startswith("http") else ""  # no browser opens a socket file
        return f"the debugger's PIN is {self.pin}{link}"

    def unlock_url(self, base: str) -> str:
        """Return the link that opens the console in the browser that follows it."""
        return f"{base.rstrip('/')}/__devserve__/unlock?token={self.token}"

    # -- decisions about reading

    def refuses_reading(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no where a page of another site would read source and values.

        The name of such a site could have been rebound to us, unless Host is an address; every browser sends a Host.
        """
        host = str(environ.get("HTTP_HOST", ""))
        refusal = self.refuses_host(environ) if host and not _is_address(_host_name(host) or "") else None
        return refusal or self._refuses_foreign_script(environ)

    def _refuses_foreign_script(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to script of another site, which the CORS headers of the application may let read the answer.

        A document is allowed, even one that a form of another site asks for: no script of that site can read it.
        """
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        is_shown = environ.get("HTTP_SEC_FETCH_DEST") == "document"
        if origin is None or is_shown or site == "same-origin":
            return None
        authority = str(origin).lower().partition("://")[2]
        name = _host_name(authority)
        trusted = name is not None and (_is_loopback(name) or name in self.trusted_hosts)
        if trusted or authority == str(environ.get("HTTP_HOST")).lower():
            return None
        remedy = f"Start devserve with --trusted-host {name}." if name else "Open the address in a tab of its own."
        return Refusal("origin", "The request comes from the page of another site.", remedy)

    def refuses_script(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no unless a browser shows the answer as a document of its own, which no service worker could read."""
        kind = environ.get("HTTP_SEC_FETCH_DEST")
        if kind not in (None, "document"):
            return Refusal("script", "This is shown in a browser's own tab only.", "Open the address there.")
        is_asked_past_it = "no-cache" in str(environ.get("HTTP_CACHE_CONTROL", "")).lower()
        is_asked_by_it = "HTTP_SERVICE_WORKER_NAVIGATION_PRELOAD" in environ
        if is_asked_by_it or (kind and self._has_worker(environ) and not is_asked_past_it):
            reason = "A service worker of this site could read this page; reload it with Shift held down."
            return Refusal("script", reason, "")
        return None

    def note_worker(self, environ: Mapping[str, Any]) -> None:
        """Give a client another secret when its browser first registers a service worker, whose page may have read it.

        The application's script asks for one; from elsewhere anybody may ask, and must not close the owner's console.
        """
        client = _client_of(environ)
        if environ.get("HTTP_SERVICE_WORKER") == "script" and (client == _HERE or len(self.workers) <= _WORKERS_LIMIT):
            with self.lock:
                self.workers.add(client)

    def _has_worker(self, environ: Mapping[str, Any]) -> bool:
        """Return whether this client has a service worker; past the limit, any elsewhere may have."""
        client = _client_of(environ)
        return client in self.workers or (client != _HERE and len(self.workers) > _WORKERS_LIMIT)

    def refuses_console(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a Host that is not trusted, since no console can open there, and to whoever may not read."""
        return self.refuses_host(environ) or self.refuses_reading(environ)

    def refuses_crash(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to whoever may not read, and to a request whose answer is not shown as a document."""
        return self.refuses_reading(environ) or self.refuses_script(environ)

    def refuses_list(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a client elsewhere, unless it has been unlocked: it would read of other people's crashes."""
        refusal = self.refuses_crash(environ)
        if refusal or _is_local(environ) or self.has_cookie(environ):
            return refusal
        return Refusal("cookie", "Crashes are listed on this machine only.", "Unlock this browser with the PIN first.")

    def refuses_stacks(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a browser that has not been unlocked."""
        refusal = self.refuses_host(environ) or self.refuses_script(environ)
        if refusal or self.has_cookie(environ):
            return refusal
        return Refusal("cookie", "This browser has not been unlocked.", "Follow the link that the terminal shows.")

    # -- decisions about acting

    def refuses_host(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a Host that is not trusted: another site's name may have been rebound to this address."""
        name = _host_name(str(environ.get("HTTP_HOST", "")))
        remedy = "Open the page as http://localhost and its port"
        if name is None:
            return Refusal("host", "The request names no valid host.", f"{remedy}.")
        if _is_loopback(name) or name in self.trusted_hosts:
            return None
        remedy += f", or start devserve with --trusted-host {name}."
        return Refusal("host", f"The debugger trusts the host {name} only when it is told to.", remedy)

    def refuses_acting(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to any request to act that our own page would not have sent."""
        kind = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        refusal = self.refuses_host(environ)
        if refusal is None and environ.get("REQUEST_METHOD") != "POST":  # so a CORS preflight gets no permission
            refusal = Refusal("method", "The debugger takes POST only.", _OUR_PAGE)
        refusal = refusal or self._refuses_origin(environ)
        if refusal is None and kind != "application/json":  # any other is one that a form can send
            refusal = Refusal("type", "The debugger takes application/json only.", _OUR_PAGE)
        if refusal is None and not any(self.sends_secret(environ, is_unlocked) for is_unlocked in (False, True)):
            refusal = Refusal("secret", "The page is from another run of devserve.", "Load the page again.")
        return refusal

    def refuses_running(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to any request to run code that our own page, in an unlocked browser, would not have sent."""
        refusal = self.refuses_acting(environ)
        if refusal is None and not self.knows(environ):
            locked = Refusal("cookie", "This browser has not been unlocked.", "Enter the PIN from the terminal.")
            refusal = self.refuses_pin(environ) or locked
        return refusal or self.refuses_older_page(environ)

    def refuses_older_page(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a page that was loaded before its browser was unlocked: anybody may have been told its secret."""
        if self.sends_secret(environ):
            return None
        reason = "The browser was unlocked, or got a service worker, after this page was loaded."
        return Refusal("older", reason, "Load the page again.")

    def _refuses_origin(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to what another site's page sends.

        Browsers send Origin with every POST; one that is set to hide it must say same-origin in Sec-Fetch-Site
        instead.  Schemes are not compared: a proxy may speak TLS for us, and two servers cannot share one port.  A
        proxy that changes Host makes our own page look like another site's; --trusted-host is the remedy.
        """
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        host = str(environ.get("HTTP_HOST", "")).lower()
        scheme, _, authority = str(origin).lower().partition("://")
        name = _host_name(authority) if scheme in ("http", "https") else None
        if site == "same-origin" and origin is None:
            return None
        if site not in (None, "same-origin") or name is None:
            return Refusal("origin", "The request comes from the page of another site.", _OUR_PAGE)
        # A loopback name counts only together with its port, as other programs have other ports there.
        is_named = authority in self.trusted_origins or (name in self.trusted_origins and not _is_loopback(name))
        if authority == host or is_named:
            return None
        reason = f"The page is at {authority}, but its request names the host {host}."
        remedy = (
            "If a proxy between them changes Host, have it pass Host on (nginx: proxy_set_header Host $http_host), or "
            f"start devserve with --trusted-host {authority}. If not, another site sent this."
        )
        return Refusal("origin", reason, remedy)

    def knows(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the client has been unlocked: a program by its cookie, a browser by cookie and key."""
        has_key = _is_equal(environ.get("HTTP_X_DEVSERVE_KEY", ""), self.key())
        is_off = self.pin == _PIN_OFF and _is_local(environ)
        is_browser = has_key and all(self._sends_cookie(environ, kind) for kind in ("browser", "page"))
        return is_browser or is_off or self._sends_cookie(environ, "program")

    def has_cookie(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the client has been unlocked, by the cookie alone: a request for a document has no key."""
        return self.knows(environ) or self._sends_cookie(environ, "browser")

    def is_shut(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the PIN is off and the client elsewhere; script in the owner's page could use his secret."""
        return self.pin == _PIN_OFF and not _is_local(environ)

    def refuses_pin(self, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no if no PIN can unlock this client: too many were wrong, or the PIN is off and the client elsewhere."""
        if self.is_shut(environ):
            why = "The PIN is off, for clients at 127.0.0.1 or ::1 only."
            return Refusal("shut", why, "Start devserve with a PIN.")
        if self.failures < _PIN_FAILURES:
            return None
        remedy = "Open the link that the terminal shows beside the PIN, or start devserve again."
        return Refusal("shut", f"The PIN was wrong {_PIN_FAILURES} times and is taken no more.", remedy)

    def try_pin(self, guess: str, environ: Mapping[str, Any]) -> Optional[Refusal]:
        """Say no to a wrong PIN, and count it before another thread may try one."""
        with self.lock:
            refusal = self.refuses_pin(environ)
            if refusal or self.pin == _PIN_OFF:
                return refusal
            if _is_equal(_plain_pin(guess), _plain_pin(self.pin)):
                self.failures = 0
                return None
            self.failures += 1
            reason = f"The PIN is wrong; attempts left: {_PIN_FAILURES - self.failures}."
            return self.refuses_pin(environ) or Refusal("pin", reason, "It is on the terminal.")

    def refuses_token(self, token: str) -> Optional[Refusal]:
        """Say no unless the token is that of the terminal's link."""
        if _is_equal(token, self.token):
            return None
        reason = "This link is from another start of devserve."
        return Refusal("token", reason, "Take the one that the terminal shows.")

    # -- cookie and key

    def secret_for(self, environ: Mapping[str, Any], is_unlocked: Optional[bool] = None) -> str:
        """Return the secret of the pages that a client gets: what another one reads in his is of no use there.

        An unlocked browser is told by its cookie for pages, unless `is_unlocked` says whether it is one.
        """
        if is_unlocked is None:
            is_unlocked = self._sends_cookie(environ, "page")
        # Over loopback and HTTPS a browser says Sec-Fetch-Site, which no script can hide.  So the application itself,
        # which script in its page may make read ours (by a preview of links, for example), is another client.
        marks = {
            "browser": "HTTP_SEC_FETCH_SITE" in environ,
            "worker": self._has_worker(environ),
            "unlocked": is_unlocked and _is_browser(environ),  # a program has no page that others could know
        }
        of = " ".join([_client_of(environ), *(mark for mark, holds in marks.items() if holds)])
        return self.secret if of == _HERE else self._derived(f"{self.secret} of {of}")[:32]

    def sends_secret(self, environ: Mapping[str, Any], is_unlocked: Optional[bool] = None) -> bool:
        """Return whether the request comes from a page with the secret that `secret_for` returns."""
        return _is_equal(environ.get("HTTP_X_DEVSERVE_SECRET", ""), self.secret_for(environ, is_unlocked))

    def cookies(self, environ: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the headers that unlock a client until it is closed.

        The first cookie has no Path, so a browser takes the folder of the address that sets it.  That is our folder as
        the client sees it, even if a proxy has removed the beginning of the path.  A browser gets the one for pages
        besides, for all paths of its host, also where a link on another site leads; so it has the values of other
        servers there too.
        """
        kind = "browser" if _is_browser(environ) else "program"
        secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
        name, value = self.cookie_name(kind, environ), self.cookie_value(kind, environ)
        made = [("Set-Cookie", f"{name}={value}; HttpOnly; SameSite=Strict{secure}")]
        if kind == "browser":
            name, value = self.cookie_name("page", environ), self.cookie_value("page", environ)
            others = [
                each for each in self._sent(name, environ) if re.fullmatch("[0-9a-f]{32}", each) and each != value
            ]
            values = ".".join([value, *others[: _PAGE_VALUES - 1]])
            made.append(("Set-Cookie", f"{name}={values}; HttpOnly; SameSite=Lax; Path=/{secure}"))
        return made

    def cookie_name(self, kind: str, environ: Mapping[str, Any]) -> str:
        """Return a cookie's name, by the port and the scheme; that for pages by the scheme alone.

        Over HTTP none that was set over HTTPS can be replaced, and a proxy may speak TLS for the same port.
        """
        scheme = str(environ.get("wsgi.url_scheme", "http"))
        port = self.port or environ.get("SERVER_PORT", 0)
        return _COOKIE_PREFIX + (scheme if kind == "page" else f"{port}s" if scheme == "https" else str(port))

    def cookie_value(self, kind: str, environ: Mapping[str, Any]) -> str:
        """Return the value of a "browser", "page" or "program" cookie, which is of no use to another client."""
        return self._derived(f"{kind} cookie of {_client_of(environ)}")[:32]

    def key(self) -> str:
        """Return the secret that a browser keeps beside the cookie."""
        return self._derived("key")

    def _derived(self, purpose: str) -> str:
        """Return a secret made from the token by a hash; neither the PIN nor a page helps to find it."""
        from hashlib import sha256

        return sha256(f"{purpose} {self.token}".encode()).hexdigest()

    def _sends_cookie(self, environ: Mapping[str, Any], kind: str) -> bool:
        expected = self.cookie_value(kind, environ)
        return any(_is_equal(value, expected) for value in self._sent(self.cookie_name(kind, environ), environ))

    def _sent(self, name: str, environ: Mapping[str, Any]) -> list[str]:
        """Return the values in all cookies of a name."""
        pairs = (pair.strip().partition("=") for pair in str(environ.get("HTTP_COOKIE", "")).split(";"))
        return [value for key, _, values in pairs if key == name for value in values.split(".")]


def without_our_cookies(header: str) -> str:
    """Return a Cookie header without the cookies that open consoles, this one's and those of other ports."""
    pairs = [pair for pair in header.split(";") if not re.match(rf"\s*{_COOKIE_PREFIX}([0-9]+s?|https?)\s*=", pair)]
    return ";".join(pairs).lstrip()


def remove_our_cookies(environ: Environ) -> None:
    """Take the cookies that open consoles out of an environ."""
    if environ.get("HTTP_COOKIE"):
        environ["HTTP_COOKIE"] = without_our_cookies(str(environ["HTTP_COOKIE"]))
        if not environ["HTTP_COOKIE"]:
            del environ["HTTP_COOKIE"]
    if isinstance(environ.get("headers_raw"), tuple):  # eventlet's
        environ["headers_raw"] = tuple(
            (key, without_our_cookies(text) if key.lower() == "cookie" else text)
            for key, text in environ["headers_raw"]
        )


def _is_local(environ: Mapping[str, Any]) -> bool:
    """Return whether the client is on this machine, and is no proxy that speaks for one elsewhere.

    A client of a socket file has an empty REMOTE_ADDR; if a server gives none at all, we cannot know.  nginx adds no
    header unless it is told to; before 1.29.7 it speaks HTTP/1.0 then, which no browser does.  A proxy that does
    neither cannot be told from a client of this machine.
    """
    address = str(environ.get("REMOTE_ADDR", "unknown"))
    is_near = (not address or _is_loopback(address)) and environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
    return is_near and not any(re.fullmatch(_PROXY_HEADER, str(name)) for name in environ)


def _client_of(environ: Mapping[str, Any]) -> str:
    """Return a client's address; this machine is one client, by whatever address."""
    address = str(environ.get("REMOTE_ADDR", ""))
    return _HERE if not address or _is_loopback(address) else address


def _is_browser(environ: Mapping[str, Any]) -> bool:
    """Return whether the client shares its cookies between ports: all browsers call themselves Mozilla."""
    named = str(environ.get("HTTP_USER_AGENT", "")).startswith("Mozilla/")
    return named or any(name.startswith("HTTP_SEC_FETCH_") for name in environ)


def _ascii_label(label: re.Match[str]) -> str:
    """Return a label of a name in another alphabet as browsers send it (RFC 5891)."""
    return "xn--" + label[0].encode("punycode").decode()


def _host_name(host: str) -> Optional[str]:
    """Return the name in a Host header, without port, brackets, zone and final dot; None when it is no valid one."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)(?:%[\w.~%\-]+)?\]|([A-Za-z0-9_.\-]+))(?::[0-9]{0,5})?", host)
    return (found.group(1) or found.group(2)).rstrip(".").lower() if found else None


_BYTE = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"


def _is_address(name: str) -> bool:
    """Return whether a name of `_host_name` is an address, for which no name server is asked."""
    return ":" in name or bool(re.fullmatch(rf"{_BYTE}(?:\.{_BYTE}){{3}}", name))


def _is_loopback(name: str) -> bool:
    """Return whether a name is this machine's by RFC 6761, or an address of loopback."""
    named = name == "localhost" or name.endswith(".localhost") or name == "::1"
    return named or bool(re.fullmatch(rf"(?:::ffff:)?127(?:\.{_BYTE}){{3}}", name))


def check_pin(pin: str) -> None:
    """Raise DevserveError for a PIN without a letter or digit, of which nothing is left to compare."""
    if pin and not _plain_pin(pin):
        raise DevserveError(f"the PIN {pin!r} has no digit or letter; give another, such as --pin 123-456")


def _plain_pin(pin: str) -> str:
    """Return a PIN without the hyphens and spaces that people type between its digits."""
    return pin.replace("-", "").replace(" ", "")


def _is_equal(given: object, expected: str) -> bool:
    """Return whether a client has sent what is expected, in a time that does not tell how much of it was right."""
    from hmac import compare_digest

    return compare_digest(str(given).encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


# =====================================================================================================================
# 9. Debugger
#
# `DebuggedApplication` is WSGI middleware, under any server: a response passes through untouched, an exception becomes
# a page.  The application may fail where PEP 3333 lets it run: in the call, between two chunks, and in `close`.  Once
# the headers are out no page can be shown, so the exception goes on to the server, which cuts the connection; a stream
# of text gets a last line before that.  Every crash is stored, whoever the client was, and has an address under
# _PREFIX, where the endpoints of the pages are too.  May know foreign code (2), the terminal (3), how
# frameworks are opened (4) and the rooms 5 to 8.
#
# A request under _PREFIX is for us: a `_DebuggerEndpoint` finds its row in _ENDPOINTS, asks the guard's method that
# the row names, and answers.  Any other request is the application's.  For it we make an `_Exchange`, which is an
# application to the server, and a server to the application: so it has a `start`, a `write`, an iterator and a
# `close`.  Each step that may run the application's code goes through `_Exchange.guarded`, which alone decides what an
# exception becomes.  A list or tuple of chunks is checked at once and then given to the server as it is.
#
# Many frameworks catch exceptions themselves and answer with a 500 of their own.  Room 4 has them call
# `hand_over` (2) instead and answer with the text that it returns; `_Exchange.raise_handed` raises the exception when
# that text arrives, and from there on it is a crash like any other.
#
# With --live another middleware, `LivePages`, is around the debugger.  It adds a script to each page of the
# application, which asks for `reload_id` again and again, and loads the page anew when that has changed, or when a
# file has (a style sheet or an image alone).  The pages of crashes do so by their own script, with or without --live.
#
# How to change: an endpoint is a method of `_DebuggerEndpoint` and a row of _ENDPOINTS, which names the rule of the
# guard that is asked first.  Another form of a report is a function in room 6 and a row of `_WRITERS`.
#
# Invariants: the guard is asked before an endpoint does anything.  The application, and so whatever a page shows of
# it, never gets to see the cookies that open a console.  The terminal tells of a crash before the page is made.  A
# failure of the page itself is answered with plain text.
#
# Doors: REQUEST_LIMIT, DebuggedApplication, record_body, LIVE_FILES, LivePages.
#
# Read first: DebuggedApplication, _Exchange.guarded, _Exchange.start_error_page, _ENDPOINTS, _DebuggerEndpoint.reply.
# =====================================================================================================================

_PREFIX = "/__devserve__"
_CRASH = "crash/"  # below _PREFIX, where each crash has its page; the id follows
_RECORDED_BODY = 65_536  # bytes of a request's body that are kept for the page: any form, the beginning of an upload
_RECORDED_VARIABLES = frozenset(  # of an environ, besides headers: what the client decides
    "REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING CONTENT_TYPE CONTENT_LENGTH REQUEST_URI RAW_URI "
    "SERVER_PROTOCOL wsgi.url_scheme".split()
)
REQUEST_LIMIT = 1_000_000  # bytes of what the page may send: code that was pasted
_SOURCE_LINES_LIMIT = 2_000  # lines of source for one click
_EVALUATION_WAIT = 10.0  # seconds that a page may have an endpoint wait for an evaluation's end; it asks again
_REPLAY_SECONDS = 10.0  # for which the response to a replayed request is read, as it may have no end
_STATUSES = {  # of refusals, by their `error`
    "body": "400 Bad Request",
    "unknown": "404 Not Found",
    "method": "405 Method Not Allowed",
    "busy": "409 Conflict",
    "gone": "410 Gone",
    "type": "415 Unsupported Media Type",
}
# When our page replaces a response, these headers of the response are dropped, as they are about its content.
_ABOUT_CONTENT = frozenset("content-encoding content-language content-disposition etag last-modified age".split())


class DebuggedApplication:
    """Wraps a WSGI application, under any server, so that its exceptions become pages with a console.

        app = devserve.DebuggedApplication(app, pin="123-456", trusted_hosts=["dev.example.com"])

    app (WSGI application)           what is served
    pin (str, None as "")            asked for before the console opens: "" for a random one, "off" for none
    trusted_hosts (list of str, [])  host names, besides this machine's, whose pages may use the console
    base_url (str, "")               where the server is reached, for links in crashes outside of a request
    guard (Guard, None)              in place of `pin` and `trusted_hosts`, for a caller who prints the PIN himself
    terminal (Terminal, None)        where crashes and the PIN are printed; None: standard error

    Raises DevserveError for a PIN without a letter or digit.  The console needs the frames of the process in which the
    application failed, so the server must run a single process.  Any thread may call any method.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        pin: Optional[str] = "",
        trusted_hosts: Iterable[str] = (),
        guard: Optional[Guard] = None,
        terminal: Optional[Terminal] = None,
        base_url: str = "",
    ) -> None:
        enlarge_stacks()
        self.app = app if guard else prepared(app, debug=False, debugger=True)  # else its caller has done so
        self.terminal = terminal or Terminal()
        self.guard = guard or Guard(str(pin or ""), 0, trusted_hosts)
        self.base_url = base_url
        self.reload_id = os.urandom(8).hex()  # an open page that finds another one here has seen a reload
        self.edits = 0  # of files that need no reload, as templates: an open page that finds another count loads anew
        self.crashes = CrashStore()
        self.app_console: Optional[Console] = None
        if guard is None:
            self.terminal.say(f"devserve: {self.guard.banner_line(base_url)}")

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request for an endpoint of the debugger; give any other to the application, by an `_Exchange`."""
        self.guard.note_worker(environ)
        if self.owns(environ.get("PATH_INFO", "")):
            return _DebuggerEndpoint(self, environ).answer(start_response)
        return _Exchange(self, environ, start_response).begin()

    def owns(self, path: str) -> bool:
        """Return whether a path is the debugger's and not the application's."""
        return path.startswith(_PREFIX) and path[len(_PREFIX) :][:1] in ("", "/")

    def report(self, error: BaseException, environ: Optional[Environ] = None, what: str = "") -> str:
        """Store a crash that other code has caught, such as a background task's; return the address of its page.

        `what` says what was being done, and `environ` during which request, if there was one.  Nothing is printed.
        """
        request = _RecordedRequest.of(environ) if environ else None
        crash = Crash(what or (request.line() if request else "outside of a request"), request)
        self.read(error, crash, environ or {})
        return self.link(crash, environ or {}, self.guard.refuses_host)

    def read(self, error: BaseException, crash: Crash, environ: Environ) -> None:
        """Read the report of a crash, and store the crash."""
        request, _ = call_safely(lambda: read_request(environ, crash.request.body) if crash.request else None)
        self.crashes.add(crash)
        report = read_report(error, request, crash.keep, crash.entered.context, crash.text or "")
        link = self.link(crash, environ, self.guard.refuses_reading)
        crash.report = self.guard.without_pin(report)._replace(link=link)

    def _scheme(self, environ: Mapping[str, Any]) -> str:
        """Return the scheme of the host that the client used: ours for our own port, though a proxy has come there."""
        is_own = self.base_url.endswith(":" + environ["HTTP_HOST"].rpartition(":")[2])
        return self.base_url.partition(":")[0] if is_own else str(environ.get("wsgi.url_scheme", "http"))

    def link(
        self, crash: Crash, environ: Mapping[str, Any], refuses: Callable[[Mapping[str, Any]], Optional[Refusal]]
    ) -> str:
        """Return the address of a crash's page, with the host that the client used unless `refuses` says no to it.

        `refuses` is a method of the guard.  In the answer to the client, any host at which it may read is good.  On
        the terminal only a trusted host is: another one may lead whoever clicks the link to a stranger's page, which
        asks for the PIN.
        """
        from urllib.parse import quote

        base = self.base_url
        if environ.get("HTTP_HOST") and not refuses(environ):
            base = f"{self._scheme(environ)}://{environ['HTTP_HOST']}"
        elif not base.startswith("http"):
            base = f"http://localhost:{self.guard.port or environ.get('SERVER_PORT', 80)}"
        mount = quote(str(environ.get("SCRIPT_NAME", "")).rstrip("/"), encoding="latin-1")  # PEP 3333: bytes as text
        return f"{base}{mount}{_PREFIX}/{_CRASH}{crash.id}"

    def install(self, app: WSGIApplication, reload_id: str) -> None:
        """Replace the application, as after a save that broke this one; crashes and their frames are kept."""
        self.app, self.reload_id, self.app_console = app, reload_id, None

    def remember(self) -> list[Any]:
        """Return what is kept over a reload: the failed requests, so that they can be sent again, and their reports.

        It is data that `marshal` can write; frames, and so consoles, end with the process.
        """
        remembered = []
        for crash in self.crashes.all():
            if crash.request is not None and crash.request.is_whole and crash.report is not None:
                problem, text = crash.report.problems[-1], crash.report.text
                remembered.append(
                    (crash.id, crash.time, crash.seconds, problem.type, problem.message, text, *crash.request)
                )
        return remembered

    def recall(self, remembered: Iterable[Any]) -> None:
        """Store again the crashes that the process before has passed on by `remember`."""
        for id, moment, seconds, kind, message, text, *recorded in reversed(list(remembered)):
            request = _RecordedRequest(*recorded)
            environ = request.environ({})
            crash = Crash(request.line(), request, id=id)
            crash.time, crash.seconds, crash.is_let_go = moment, seconds, True
            problem = ExceptionView(kind, message, "", ("The code was reloaded after this.",), "", ())
            when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment))
            shown = read_request(environ, request.body)
            link = self.link(crash, environ, self.guard.refuses_host)
            crash.report = self.guard.without_pin(Report((problem,), shown, (), when, "", text))._replace(link=link)
            self.crashes.add(crash)

    def console(self, id: str) -> Console:
        """Return the console of a frame, or of the application alone.  Raises KeyError when the frame is gone."""
        if id != "app":
            return self.crashes.console(id)
        if self.app_console is None:
            app: Any = self.app
            contexts, _ = call_safely(lambda: [app.app_context()])  # Flask's, and of what is made like it
            names = {"__name__": "__console__", "app": getattr(app, "served", app)}
            self.app_console = Console(names, EnteredContexts(contexts or ()))
        return self.app_console

    def replay(self, request: _RecordedRequest, environ: Environ) -> dict[str, Any]:
        """Send a recorded request to the application again; return status, seconds and the new crash's id, if any."""
        again = request.environ(environ)
        heads: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            heads.append(status)
            return len

        def read_through() -> None:
            app_iter = self(again, start_response)
            try:
                any(time.monotonic() > begin + _REPLAY_SECONDS for _ in app_iter)
            finally:
                getattr(app_iter, "close", lambda: None)()

        begin = time.monotonic()
        _, error = call_safely(read_through)
        seconds = time.monotonic() - begin
        id = again.get(CRASH_LINK, "").rpartition("/")[2]
        if error is not None:
            self.terminal.crash(error, request.line())
        if id:
            seconds = self.crashes.find(id).seconds  # without the making of its page
        return {"status": heads[-1] if heads else "no response", "seconds": seconds, "crash": id}

    # -- what a page needs to know

    def shown(self, crash: Crash, kind: str, environ: Mapping[str, Any], nonce: str, stored: str = "") -> str:
        """Return a crash as a text of type `kind`, for the client of this request; its report has been read."""
        assert crash.report is not None
        if kind != "text/html":
            return _WRITERS[kind](crash.report)
        state, crash.is_shown = self.page_state(environ, nonce), True
        return write_page(crash.report, state, stored, self.terminal.editor, self.terminal.path_map)

    def page_state(self, environ: Mapping[str, Any], nonce: str) -> PageState:
        """Return the state of a page for the client of this request."""
        state, refusal = self.console_state(environ), self.guard.refuses_script(environ)
        if refusal:
            state = PageState("closed", "", f"The console is closed: {refusal.reason}", refusal.remedy)
        return state._replace(prefix=_prefix_from(environ), reload_id=self.reload_id, nonce=nonce)

    def console_state(self, environ: Mapping[str, Any]) -> PageState:
        """Return the state of a page with what this client may do with consoles, and why not more."""
        refusal = self.guard.refuses_host(environ)
        if environ.get("wsgi.multiprocess"):
            reason = "The server runs several processes, and only one of them has the frames."
            refusal = refusal or Refusal("processes", reason, "Start it with one process.")
        # With it, the values of library frames can be asked for.
        secret = "" if refusal or self.guard.is_shut(environ) else self.guard.secret_for(environ)
        if secret and self.guard.knows(environ):
            return PageState("open", secret)
        refusal = refusal or self.guard.refuses_pin(environ)
        return PageState("closed", secret, refusal.reason, refusal.remedy) if refusal else PageState("locked", secret)


def _prefix_from(environ: Mapping[str, Any]) -> str:
    """Return where the endpoints are, relative to the page, since a proxy may have taken the path's beginning."""
    from urllib.parse import quote

    mount, path = str(environ.get("SCRIPT_NAME", "")), str(environ.get("PATH_INFO", ""))
    if not path:  # the page lies beside its mount point, not below it
        return quote(mount.rpartition("/")[2], encoding="latin-1") + _PREFIX if mount else _PREFIX[1:]
    target = str(environ.get("REQUEST_URI", "")).partition("?")[0]  # where a slash may be written %2F
    depth = (target.count("/") - mount.rstrip("/").count("/") if target[:1] == "/" else path.count("/")) - 1
    return "../" * depth + _PREFIX[1:]


# -- a request and its response


class _Exchange:
    """One request and its response: the iterable that the server gets in place of the application's own.

    Its life: `begin` calls the application, `__next__` asks it for each chunk, `close` ends it.  The first exception
    in any of them becomes the error page, whose text is then the only chunk; if something has been sent already, the
    exception goes on to the server.  From then on (`has_failed`) every exception goes on.  Only the thread that serves
    the request uses it.
    """

    def __init__(self, debugger: DebuggedApplication, environ: Environ, start_response: StartResponse) -> None:
        self.debugger = debugger
        self.environ = environ
        self.start_response = start_response
        # As it came: the application gets no cookie of ours, and may add, replace and remove what tells who asks.
        self.client = dict(environ)
        remove_our_cookies(environ)
        self.body = record_body(environ)
        self.contexts: list[Any] = []
        self.head: tuple[str, list[tuple[str, str]]] = ("", [])  # the application's own
        self.handed: list[BaseException] = []  # exceptions that a framework has caught and passed to `hand_over`
        self.began = time.monotonic()
        self.sent = self.has_failed = False
        self.app_iter: Any = ()
        self.chunks: Iterator[Any] = iter(())
        if debugger.crashes.crashes:
            debugger.crashes.let_go(_page_key(environ), shown=_is_for_document(environ))

    @property
    def asked(self) -> dict[str, Any]:
        """The request as it came, whatever the application has made of it, with what else is in the environ by now."""
        added = {
            name: value
            for name, value in self.environ.items()
            if not (isinstance(name, str) and name.startswith("HTTP_"))
        }
        return {**added, **self.client}

    def begin(self) -> Iterable[bytes]:
        """Call the application; return its iterable if that cannot fail any more, else this exchange."""
        response = self.guarded(self.call)
        return self if response is None else response

    def call(self) -> Iterable[bytes]:
        """Call the application; return what the server is to iterate over."""
        self.environ[PRESERVE_CONTEXT] = self.contexts.append
        self.environ[ON_EXCEPTION] = self.handed.append
        self.app_iter = self.debugger.app(self.environ, self.start)
        wrapper = self.environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(self.app_iter, wrapper):  # the server has a faster way to send it
            return self.app_iter  # type: ignore[return-value]
        if isinstance(self.app_iter, (str, bytes)) or not hasattr(self.app_iter, "__iter__"):
            forgotten = "; is a `return` missing?" if self.app_iter is None else ""
            kind = type(self.app_iter).__name__
            expected = "not a list of bytes or another iterable of bytes"
            raise _NotWSGI(f"the application returned {kind}, {expected}{forgotten}")
        self.chunks = iter(self.app_iter)
        if getattr(type(self.app_iter), "__iter__", None) not in (list.__iter__, tuple.__iter__):
            return self
        while self.next_chunk() is not None:
            pass
        self.contexts.clear()
        return self.app_iter  # type: ignore[no-any-return]

    def start(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        """Be the application's start_response; the `write` that it returns sends the headers."""
        write = self.start_response(status, headers, *exc_info)
        self.head = (status, headers)
        return partial(self.write, write)

    def write(self, write: Callable[[bytes], object], data: bytes) -> object:
        """Be the `write` that start_response returns: it sends the headers even when `data` is empty."""
        self.sent = True
        return write(data)

    def raise_handed(self, chunk: Optional[bytes]) -> None:
        """Raise the exception that a framework has handed over, once `chunk` is the answer to it; None is the end.

        A HEAD has no body, so there the end counts.  If the application has replaced the answer by another, that is
        sent, and the crash is only printed and stored.
        """
        if not self.handed or (chunk is not None and HANDED_OVER.encode() not in chunk):
            return
        if chunk is not None or self.environ.get("REQUEST_METHOD") == "HEAD":
            raise self.handed[-1]
        self.keep(self.handed[-1], is_printed=True)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the application's next chunk; once it has failed or ended, the next of `chunks`.

        These are the page, or the line with which a stream ends, or nothing.
        """
        chunk = self.guarded(self.next_chunk)
        self.sent = self.sent or bool(chunk)
        return next(self.chunks) if chunk is None else chunk

    def next_chunk(self) -> Optional[bytes]:
        """Return the application's next chunk, or None at the end.

        A mistake that a server would notice is raised here, so that it gets a page.
        """
        chunk: Any = next(self.chunks, MISSING)
        if not self.head[0] and not is_taken_over(self.environ):
            raise _NotWSGI("the application returned a response without having called start_response")
        if chunk is MISSING:
            chunk, self.chunks = None, iter(())
        elif not isinstance(chunk, bytes):
            raise _NotWSGI(f"the application sends {type(chunk).__name__}, not bytes: text must be encoded")
        self.raise_handed(chunk)
        return chunk  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the application's iterable, as a server must, and drop contexts that refer to the environ."""
        self.contexts.clear()
        if self.handed and not nobody_listens(self.handed[-1], self.environ):
            self.keep(self.handed[-1], is_printed=True)  # as after a HEAD, for which no server asks for the body
        close = getattr(self.app_iter, "close", None)
        if close is not None:
            self.sent, self.head = True, ("", [])  # from here on nothing can be sent any more
            self.guarded(close)

    def guarded(self, step: Callable[[], Outcome]) -> Optional[Outcome]:
        """Call `step`, which runs the application's code, and return its result.

        If it fails before anything is sent, make the page the response, and return None.  If it fails later, store the
        crash, and raise the exception again.
        """
        try:
            return step()
        except BaseException as error:  # the debugger's broad catch: a view may raise anything
            ctrl_c = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
            if ctrl_c or self.has_failed or nobody_listens(error, self.environ):
                raise
            if not self.sent:
                self.start_error_page(error)
            elif not self.end_stream(error):
                raise
            return None

    def start_error_page(self, error: BaseException) -> None:
        """Print the crash, then begin a new response about it.

        Raises the exception again when the server has sent the headers after all (PEP 3333, start_response).
        """
        status, kept = self.head if any(error is each for each in self.handed) else ("500 Internal Server Error", [])
        crash, trouble = self.keep(error, is_printed=not getattr(self.debugger.app, "deferred", False))
        headers, page = self.error_response(error, crash, trouble)
        ours = {name.lower() for name, _ in headers}
        headers += [(name, value) for name, value in kept if name.lower() not in ours | _ABOUT_CONTENT]
        self.start_response(status, headers, sys.exc_info())
        self.head = (status, headers)
        self.chunks = iter(() if self.environ.get("REQUEST_METHOD") == "HEAD" else (page,))

    def end_stream(self, error: BaseException) -> bool:
        """Store a crash that comes too late for a page; return whether a last line for the client is the next chunk.

        Our own server prints the crash, with the link that it finds in the environ, when the exception reaches it.
        """
        self.has_failed = True
        crash, _ = self.keep(error, is_printed=False)
        if not str(self.environ.get("SERVER_SOFTWARE", "")).startswith("devserve"):
            self.debugger.terminal.say(f"devserve: {escape_controls(crash.what)} failed: {self.environ[CRASH_LINK]}")
        if self.debugger.guard.refuses_reading(self.asked) or crash.report is None:
            return False
        line = _last_line(error, crash.report.link, {name.lower(): value for name, value in self.head[1]})
        if line:
            self.chunks = _chunk_then_raise(line, error)
        return bool(line)

    def keep(self, error: BaseException, *, is_printed: bool) -> tuple[Crash, Optional[BaseException]]:
        """Print an exception of this request, read it and store it; return the crash, and any error in reading it.

        The environ gets the link for the terminal, and is replaced by one with the request as it came.
        """
        self.handed.clear()
        environ = self.asked
        remove_our_cookies(environ)
        for key in (PRESERVE_CONTEXT, ON_EXCEPTION):
            environ.pop(key, None)
        if self.body:
            environ["wsgi.input"] = self.body
            call_safely(self.body.finish)
        request = _RecordedRequest.of(environ)
        crash = Crash(request.line(), request, self.contexts)
        crash.seconds = time.monotonic() - self.began
        link = self.debugger.link(crash, environ, self.debugger.guard.refuses_host)
        self.environ[CRASH_LINK] = environ[CRASH_LINK] = link
        self.environ = environ
        if is_printed:
            crash.text, _ = call_safely(lambda: self.debugger.terminal.crash(error, crash.what, link=link))
        return crash, call_safely(lambda: self.debugger.read(error, crash, environ))[1]

    def error_response(
        self, error: BaseException, crash: Crash, trouble: Optional[BaseException]
    ) -> tuple[list[tuple[str, str]], bytes]:
        """Return headers and body, in the type that the client prefers; plain text when no page can be made."""
        nonce, text, is_fragment = os.urandom(16).hex(), None, _wants_fragment(self.asked)
        kind = _preferred_type(self.asked.get("HTTP_ACCEPT", ""), "text/html" if is_fragment else "text/plain")
        if trouble is None:
            text, trouble = call_safely(lambda: self.text_about(crash, kind, nonce, is_fragment))
        if text is None:
            kind = "text/plain"
            plain, _ = call_safely(lambda: traceback_text(error))
            why = f"devserve could not write the page of this crash ({type_name(type(trouble or error))})."
            text = f"{why} The crash:\n\n{self.debugger.guard.without_pin(plain or type_name(type(error)))}\n"
        return _headers_and_body(text, kind, nonce, is_fragment=is_fragment)

    def text_about(self, crash: Crash, kind: str, nonce: str, is_fragment: bool) -> str:
        """Return the text of the response about a crash; its report has been read."""
        refusal = self.debugger.guard.refuses_reading(self.asked)
        if refusal:
            reason = f"The application failed, and the terminal shows how. {refusal.reason}"
            if kind == "application/json":  # programs expect a report there, with at least a frame
                frame = FrameView("", "python", "", 0, "", "", False, (), refusal.remedy, ())
                problem = ExceptionView("Refusal", reason, refusal.remedy, (), "", (frame,), (), 0)
                return write_json(Report((problem,), None, (), time.strftime("%Y-%m-%dT%H:%M:%S%z")))
            return _write_refusal(refusal._replace(reason=reason), kind, nonce)
        if is_fragment and kind == "text/html" and crash.report:
            return write_fragment(crash.report, self.asked.get("HTTP_TURBO_FRAME", ""))
        return self.debugger.shown(crash, kind, self.asked, nonce)


class _NotWSGI(TypeError):
    """The application breaks PEP 3333 in a way that is noticed only after its code has returned."""


def _last_line(error: BaseException, link: str, headers: Mapping[str, str]) -> bytes:
    """Return the last line of a stream of text that has failed; b"" if a line would do harm, or does not fit."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("text/") or not {"content-length", "content-encoding"}.isdisjoint(headers):
        return b""
    line = f"devserve: {type_name(type(error))} ended this response; see {link}"
    if kind == "text/html":
        from html import escape

        line = f"<p>{escape(line)}</p>"
    return f"\n{': ' if kind == 'text/event-stream' else ''}{line}\n".encode("utf-8", "backslashreplace")


def _chunk_then_raise(chunk: bytes, error: BaseException) -> Iterator[bytes]:
    """Yield a last chunk, then raise: the server must see the exception, so that it cuts the connection."""
    yield chunk
    raise error


# -- the request, recorded


def _page_key(environ: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that two requests for the same page have in common."""
    return tuple(environ.get(name, "") for name in ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING"))


class _RecordedRequest(NamedTuple):
    """A request as the application got it, to be shown and to be sent again."""

    variables: dict[str, str]  # the headers and what else the client decided, by their CGI names
    body: bytes
    is_whole: bool  # nothing of the body is missing
    head: bytes = b""  # as it came; none if it was no ASGI application, such as the one in place of a broken import

    @classmethod
    def of(cls, environ: Environ) -> _RecordedRequest:
        """Return the record of a request, whose body the application may have read in part or not at all."""
        body = environ.get("wsgi.input")
        decided = {
            name: value
            for name, value in environ.items()
            if isinstance(value, str) and (str(name).startswith("HTTP_") or name in _RECORDED_VARIABLES)
        }
        head = environ.get(REQUEST_HEAD, b"")
        if isinstance(body, _RecordedBody):
            return cls(decided, bytes(body.kept), body.is_whole, head)
        return cls(decided, b"", True, head)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key that it has in common with other requests for the same page."""
        return _page_key(self.variables)

    def line(self) -> str:
        """Return method and path."""
        method, mount, path, _ = self.key
        return f"{method} {mount}{path}"

    def environ(self, like: Environ) -> Environ:
        """Return an environ for sending the request again, with the variables of the server in the environ `like`."""
        theirs = ("wsgi.", "SERVER_", "REMOTE_", "devserve.")  # the last for the connection, which AsgiBridge needs
        servers = {name: value for name, value in like.items() if name.startswith(theirs)}
        wsgi_input = {"wsgi.input": io.BytesIO(self.body), "wsgi.input_terminated": True}
        ours = {REQUEST_HEAD: self.head or _head_from(self.variables), SENT_AGAIN: True}
        return {**servers, "SCRIPT_NAME": "", "PATH_INFO": "", **self.variables, **wsgi_input, **ours}


def _head_from(variables: Mapping[str, str]) -> bytes:
    """Return the head of a request with the headers of an environ."""
    names = {name: name.removeprefix("HTTP_").replace("_", "-") for name in variables if name.startswith("HTTP_")}
    names |= {name: name.replace("_", "-") for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if variables.get(name)}
    return "\r\n".join(["", *(f"{names[name]}: {variables[name]}" for name in names)]).encode("latin-1")


class _RecordedBody:
    """The request's body, as `wsgi.input`; `kept` has the beginning and the end of what the application has read.

    The middle of a long body is not kept: in a form it is a large file, with the fields before or after it.  Whichever
    way the application reads, each byte passes `record` once.
    """

    def __init__(self, stream: Any, length: Optional[int]) -> None:
        self.stream = stream
        self.length = length  # None when only the end of the stream tells
        self.kept = bytearray()
        self.size = 0
        self.has_ended = False  # the application has read up to the end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def is_whole(self) -> bool:
        """Whether `kept` is the whole body."""
        return self.size == len(self.kept) and (self.has_ended if self.length is None else self.length == self.size)

    def finish(self) -> None:
        """Read the rest of a small body that the application has not read to its end."""
        if self.length is not None and self.size < self.length <= _RECORDED_BODY:
            self.record(self.stream.read(self.length - self.size))

    def record(self, data: bytes, *, ends: bool = False) -> bytes:
        """Keep what the application has just read, and return it; ASGI's bridge reads by itself and calls this."""
        self.has_ended = self.has_ended or ends
        self.size += len(data)
        self.kept += data
        if len(self.kept) > _RECORDED_BODY:
            del self.kept[_RECORDED_BODY // 2 : -_RECORDED_BODY // 2]
        return data

    def read(self, *size: Optional[int]) -> bytes:
        data = self.stream.read(*size)
        return self.record(data, ends=size in ((), (-1,), (None,)) or (not data and size != (0,)))

    def read1(self, *size: int) -> bytes:
        data = getattr(self.stream, "read1", self.stream.read)(*size)
        return self.record(data, ends=not data and size != (0,))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self, *size: int) -> bytes:
        data = self.stream.readline(*size)
        return self.record(data, ends=not data and size != (0,))

    def readlines(self, *hint: int) -> list[bytes]:
        return [self.record(line, ends=not hint) for line in self.stream.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line


def record_body(environ: Environ) -> Optional[_RecordedBody]:
    """Replace `wsgi.input` by a `_RecordedBody` if it is none, and return that; None if the request has no body."""
    stream = environ.get("wsgi.input")  # an environ made by hand may have none
    if isinstance(stream, _RecordedBody):
        return stream
    length = str(environ.get("CONTENT_LENGTH") or "")
    if length in ("", "0") and not environ.get("wsgi.input_terminated"):
        return None
    known = int(length) if length.isdecimal() and len(length) < 19 else None
    environ["wsgi.input"] = body = _RecordedBody(stream, known)
    return body


# -- the response about a crash


def _preferred_type(accept: str, default: str = "text/plain") -> str:
    """Return which of our content types an Accept header prefers (RFC 9110, 12.5.1); `default` if it names none."""
    wanted: dict[str, float] = {}
    for part in accept.lower().split(",")[:50]:  # browsers send eight or so
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            wanted.setdefault(kind, float(quality))
        except ValueError:
            wanted.setdefault(kind, 0.0)
    named = [kind for kind in wanted if kind in _WRITERS and wanted[kind] > 0]
    best = max(named, key=lambda kind: wanted[kind], default=default)
    others = max(wanted.get("*/*", 0.0), wanted.get("text/*", 0.0))
    return default if others > wanted.get(best, 0.0) and default not in wanted else best


_WRITERS: dict[str, Callable[[Report], str]] = {
    "text/html": write_text,  # only its name is used: the page needs more than the report, see `write_page`
    "text/plain": write_text,
    "text/markdown": write_markdown,
    "application/json": write_json,
}
# Request headers of libraries that put the answer into their page: htmx, Turbo, unpoly, jQuery and others.
_FRAGMENT_HEADERS = ("HTTP_HX_REQUEST", "HTTP_TURBO_FRAME", "HTTP_X_UP_VERSION", "HTTP_X_REQUESTED_WITH")


def _is_for_document(environ: Mapping[str, Any]) -> bool:
    """Return whether a browser will show the answer as a document of its own."""
    says_so = "HTTP_SEC_FETCH_DEST" in environ or "text/html" in str(environ.get("HTTP_ACCEPT", ""))
    return says_so and not _wants_fragment(environ)


def _wants_fragment(environ: Mapping[str, Any]) -> bool:
    """Return whether the answer will be put into another document.

    A browser tells so of a script's fetch, a frame or an image.  A service worker that fetches a document is an
    exception: what it passes on is shown by itself.
    """
    kind, mode = environ.get("HTTP_SEC_FETCH_DEST"), environ.get("HTTP_SEC_FETCH_MODE")
    return (
        any(environ.get(name) for name in _FRAGMENT_HEADERS)
        or "text/vnd.turbo-stream.html" in str(environ.get("HTTP_ACCEPT", ""))
        or (kind not in (None, "", "document") and (kind, mode) != ("empty", "navigate"))
    )


def _headers_and_body(
    text: str, kind: str, nonce: str = "", *, is_fragment: bool = False
) -> tuple[list[tuple[str, str]], bytes]:
    """Return what the debugger sends, under headers for no caching, framing, sniffing, or loading from elsewhere.

    Forms to, and referrers for, the same origin are allowed: a browser that sends a failed POST again treats it as a
    form of our page, and without a referrer it would send `Origin: null`, which frameworks refuse.  A fragment may be
    framed by its own site, and has a style of its own; it has nothing to click but a link.
    """
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    if is_fragment:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'self'"
    body = text.encode("utf-8", "backslashreplace")
    headers = [
        *([] if is_fragment else [("Document-Isolation-Policy", "isolate-and-require-corp")]),
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "SAMEORIGIN" if is_fragment else "DENY"),
        ("Referrer-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Content-Length", str(len(body))),
    ]
    return headers, body


# -- the endpoints


class _Reply(NamedTuple):
    """What an endpoint answers."""

    body: str
    kind: str = "application/json"
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """Ends an endpoint with a Refusal, whose parts are the arguments."""


class _DebuggerEndpoint:
    """One request for an endpoint, answered by the thread that serves it.

    The endpoint's method returns the reply, or raises _Refused, which `answer` turns into one.
    """

    def __init__(self, debugger: DebuggedApplication, environ: Environ) -> None:
        self.debugger = debugger
        self.guard = debugger.guard
        self.environ = environ
        name, slash, self.id = environ.get("PATH_INFO", "")[len(_PREFIX) + 1 :].partition("/")
        self.name = name + slash
        self.nonce = os.urandom(16).hex()
        accept = str(environ.get("HTTP_ACCEPT", ""))
        self.kind = _preferred_type(accept, "text/markdown")  # of a crash: Markdown is the most complete
        self.refusal_kind = "text/html" if _preferred_type(accept) == "text/html" else "application/json"
        self.payload: dict[str, Any] = {}

    def answer(self, start_response: StartResponse) -> list[bytes]:
        """Answer the request, as an application of WSGI does."""
        try:
            reply = self.reply()
        except _Refused as error:
            refusal, kind = Refusal(*error.args), self.refusal_kind
            status = _STATUSES.get(refusal.error, "403 Forbidden")
            reply = _Reply(_write_refusal(refusal, kind, self.nonce), kind, status)
        if reply.status == "200 OK" and self.name in _UNLOGGED:
            self.environ[UNLOGGED] = True
        headers, body = _headers_and_body(reply.body, reply.kind, self.nonce)
        start_response(reply.status, [*headers, *reply.headers])
        return [] if self.environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def reply(self) -> _Reply:
        """Find the endpoint, ask the guard, and call the endpoint's method."""
        if self.name not in _ENDPOINTS:
            raise _Refused("unknown", "There is nothing at this address.", "Load the page again.")
        method, refuses, endpoint = _ENDPOINTS[self.name]
        if method == "GET" and self.environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            raise _Refused("method", "This address takes GET only.", "Follow the link or load the page.")
        self.refuse(refuses(self.guard, self.environ))
        self.payload = self.read_payload() if method == "POST" else {"crash": self.id}
        return endpoint(self)

    def refuse(self, refusal: Optional[Refusal]) -> None:
        """Raise _Refused for a refusal; go on for None."""
        if refusal:
            raise _Refused(*refusal)

    def read_payload(self) -> dict[str, Any]:
        """Return the JSON object that came with the request."""
        import json

        length = str(self.environ.get("CONTENT_LENGTH") or "")
        data = b""
        if length.isdecimal() and int(length) <= REQUEST_LIMIT:
            data = self.environ["wsgi.input"].read(int(length))
        try:
            payload = json.loads(data)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            remedy = f"Send at most {REQUEST_LIMIT:,} bytes."
            raise _Refused("body", "The request holds no JSON object of a sensible size.", remedy)
        return payload

    def text_field(self, name: str) -> str:
        """Return a text of the payload; refuse a payload without it."""
        value = self.payload.get(name)
        if not isinstance(value, str):
            raise _Refused("body", f"The request has no text named {name}.", "Use the console on the page.")
        return value

    @property
    def wait(self) -> float:
        """The seconds for which the page asks this endpoint to wait, at most `_EVALUATION_WAIT`."""
        value = self.payload.get("wait")
        return min(max(value, 0.0), _EVALUATION_WAIT) if isinstance(value, (int, float)) else 0.0

    # -- pages

    def alive(self) -> _Reply:
        """Tell which process answers, and whether this browser may use the console."""
        console = self.debugger.console_state(self.environ)
        if console.state == "open" and self.environ.get("HTTP_X_DEVSERVE_SECRET"):
            refusal = self.guard.refuses_older_page(self.environ)
            console = PageState("older", reason=refusal.reason, remedy=refusal.remedy) if refusal else console
        why = f"{console.reason} {console.remedy}".strip()
        edits = self.debugger.edits
        return _as_json({"reload_id": self.debugger.reload_id, "edits": edits, "console": console.state, "why": why})

    def unlock(self) -> _Reply:
        """Unlock the browser that follows the terminal's link, and take the token out of its address bar."""
        from urllib.parse import parse_qs

        token = parse_qs(self.environ.get("QUERY_STRING", "")).get("token", [""])[0]
        self.refuse(self.guard.refuses_token(token))
        there = ("Location", f"console#{self.guard.key()}")  # our script keeps what follows the #, and hides it
        return _Reply("", "text/plain", "303 See Other", (there, *self.guard.cookies(self.environ)))

    def console(self) -> _Reply:
        """Return the page with a console for the application alone."""
        return _Reply(console_page(self.debugger.page_state(self.environ, self.nonce)), "text/html")

    def crash(self) -> _Reply:
        """Return the crash whose address was asked for."""
        return self.shown(self.lookup(self.debugger.crashes.find, "crash"))

    def last(self) -> _Reply:
        """Return the newest crash; redirect a browser to the crash's own address."""
        newest = next(iter(self.debugger.crashes.all()), None)
        if newest is None:
            raise _Refused("unknown", NO_CRASH, "Make it fail.")
        if self.kind == "text/html":
            return _Reply("", "text/plain", "303 See Other", (("Location", _CRASH + newest.id),))
        return self.shown(newest)

    def shown(self, crash: Crash) -> _Reply:
        """Return a stored crash in the type that is asked for."""
        if crash.report is None:  # it could not be read, or is being read
            raise _Refused("gone", "There is no page of this crash.", "The terminal shows it.")
        stored = f"{crash.id} {crash.seconds:.3f}"
        return _Reply(self.debugger.shown(crash, self.kind, self.environ, self.nonce, stored), self.kind)

    def list(self) -> _Reply:
        """Return the last crashes with time, request and message."""
        crashes = self.debugger.crashes.all()
        clocks = [time.strftime("%H:%M:%S", time.localtime(crash.time)) for crash in crashes]
        rows = [
            (clock, self.guard.without_pin(escape_controls(each.what)), each.title(), each.id)
            for clock, each in zip(clocks, crashes)
        ]
        if self.kind == "text/html":
            prefix = _prefix_from(self.environ)
            return _Reply(crash_list_page(rows, nonce=self.nonce, prefix=prefix), self.kind)
        if self.kind == "application/json":
            return _as_json([dict(zip(("time", "request", "message", "id"), row)) for row in rows])
        text = "".join(f"{clock} {what} {title} {_CRASH}{id}\n" for clock, what, title, id in rows)
        return _Reply(text or f"{NO_CRASH}\n", "text/plain")

    def threads(self) -> _Reply:
        """Return where each thread of the process stands, those first that stand in the application's code."""
        import traceback

        names = {
            thread.ident: thread.name for module in (native_threading, threading) for thread in module.enumerate()
        }
        stacks = [
            f"{names.get(ident, 'a thread not made by Python')}\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sorted(sys._current_frames().items(), key=lambda pair: not thread_position(pair[0]))
        ]
        text = self.guard.without_pin(escape_unprintable("\n".join(stacks), "\n\t"))
        if self.kind == "text/html":
            return _Reply(notice_page("Threads", text, nonce=self.nonce, template=STACKS), self.kind)
        return _Reply(text, "text/plain")

    # -- actions

    def pin(self) -> _Reply:
        """Unlock the browser that sends the PIN."""
        self.refuse(self.guard.try_pin(self.text_field("pin"), self.environ))
        secret = self.guard.secret_for(self.environ, is_unlocked=True)
        reply = {"console": "open", "key": self.guard.key(), "secret": secret}
        return _as_json(reply)._replace(headers=tuple(self.guard.cookies(self.environ)))

    def variables(self) -> _Reply:
        """Return the variables of a frame with their values."""
        position = self.lookup(self.debugger.crashes.position)
        view = view_position(position, id=self.text_field("frame"))
        return _as_json({"html": str(write_variables(self.guard.without_pin(with_values(view, position))))})

    def members(self) -> _Reply:
        """Return what is inside a value of a frame."""
        position, path = self.lookup(self.debugger.crashes.position), self.payload.get("path")
        if not (isinstance(path, list) and path and all(isinstance(step, (str, int)) for step in path)):
            raise _Refused("body", "The request has no path of a value.", "Use the buttons on the page.")
        try:
            members = self.guard.without_pin(members_at(position, path))
            return _as_json({"html": str(write_members(members, path))})
        except LookupError as error:
            raise _Refused("gone", f"It cannot be opened: {error}.", "Use the console.") from None

    def source(self) -> _Reply:
        """Return more of the source around a frame's line."""
        lines = self.payload.get("lines")
        around = min(max(lines if isinstance(lines, int) else LINES_AROUND, 1), _SOURCE_LINES_LIMIT) // 2
        position = self.lookup(self.debugger.crashes.position)
        view = view_position(position, id=self.text_field("frame"), around=around)
        more = view_position(position, around=around + 1)
        html = str(write_source(self.guard.without_pin(view)))
        return _as_json({"html": html, "all": len(view.source) == len(more.source)})

    def eval(self) -> _Reply:
        """Evaluate code in the console of a frame; with `wait`, answer after so many seconds even when it goes on."""
        console, seconds = self.lookup(self.debugger.console), self.wait if "wait" in self.payload else None
        try:
            return _as_json(console.run(self.text_field("code"), seconds)._asdict())
        except Busy:
            reason = "Another evaluation is still running in this frame."
            tried = console.last is not None and console.last.interrupted.is_set()
            remedy = "It was interrupted in vain: wait for its end." if tried else "Interrupt it, or wait for its end."
            raise _Refused("busy", reason, remedy) from None

    def output(self) -> _Reply:
        """Return what an evaluation that goes on has printed by now."""
        return _as_json(self.lookup(self.debugger.console).output(self.wait)._asdict())

    def complete(self) -> _Reply:
        """Return the completions of the word that ends at the caret."""
        start, matches = self.lookup(self.debugger.console).complete(self.text_field("code"))
        return _as_json({"start": start, "matches": matches})

    def interrupt(self) -> _Reply:
        """Interrupt the evaluation that runs in a frame."""
        return _as_json({"interrupted": self.lookup(self.debugger.console).interrupt()})

    def again(self) -> _Reply:
        """Send the recorded request of a crash again."""
        request = self.lookup(self.debugger.crashes.find, "crash").request
        upgrade = request.variables.get("HTTP_UPGRADE", "") if request else ""
        if request is None or not request.is_whole or upgrade.lower() == "websocket":
            reason = (
                "The request is not known whole: there was none, or it opened a WebSocket, or its body was not read "
                f"to the end, or is longer than {_RECORDED_BODY:,} bytes."
            )
            raise _Refused("gone", reason, "Have its client send it again.")
        return _as_json(self.debugger.replay(request, self.environ))

    def lookup(self, find: Callable[[str], Outcome], kind: str = "frame") -> Outcome:
        """Return what `find` returns for the id of a frame, or a crash, in the payload; refuse one that is unknown."""
        try:
            return find(self.text_field(kind))
        except KeyError:
            ends = f"devserve was reloaded, the same request came again, or {CRASH_LIMIT} other crashes came after it"
            raise _Refused("gone", f"This {kind} is gone: {ends}.", "Make the request again.") from None


# By name: the HTTP method, the guard's method that is asked first, and the endpoint.  Only our script sends POST, with
# a JSON object as payload.
_ENDPOINTS: dict[
    str,
    tuple[str, Callable[[Guard, Mapping[str, Any]], Optional[Refusal]], Callable[[_DebuggerEndpoint], _Reply]],
] = {
    "": ("GET", Guard.refuses_list, _DebuggerEndpoint.list),
    "last": ("GET", Guard.refuses_list, _DebuggerEndpoint.last),
    _CRASH: ("GET", Guard.refuses_crash, _DebuggerEndpoint.crash),  # the id follows
    "threads": ("GET", Guard.refuses_stacks, _DebuggerEndpoint.threads),
    "console": ("GET", Guard.refuses_console, _DebuggerEndpoint.console),
    "unlock": ("GET", Guard.refuses_host, _DebuggerEndpoint.unlock),  # with the token
    "alive": ("GET", lambda guard, environ: None, _DebuggerEndpoint.alive),
    "pin": ("POST", Guard.refuses_acting, _DebuggerEndpoint.pin),
    "variables": ("POST", Guard.refuses_acting, _DebuggerEndpoint.variables),
    "members": ("POST", Guard.refuses_acting, _DebuggerEndpoint.members),
    "source": ("POST", Guard.refuses_acting, _DebuggerEndpoint.source),
    "eval": ("POST", Guard.refuses_running, _DebuggerEndpoint.eval),
    "output": ("POST", Guard.refuses_running, _DebuggerEndpoint.output),
    "complete": ("POST", Guard.refuses_running, _DebuggerEndpoint.complete),
    "interrupt": ("POST", Guard.refuses_running, _DebuggerEndpoint.interrupt),
    "again": ("POST", Guard.refuses_running, _DebuggerEndpoint.again),
}
# Requests that an open page sends by itself, or while a person reads it, are left out of the log.
_UNLOGGED = {"alive", *(name for name, (method, *_) in _ENDPOINTS.items() if method == "POST")} - {"pin", "again"}


def _write_refusal(no: Refusal, kind: str, nonce: str) -> str:
    """Return a refusal as a page, as JSON, or as text."""
    import json

    if kind == "text/html":
        return notice_page(no.reason, no.remedy, nonce=nonce)
    if kind == "application/json":
        return json.dumps(no._asdict())
    return f"{no.reason}\n{no.remedy}\n"


def _as_json(value: Any) -> _Reply:
    """Return a reply for a program, such as the page's script."""
    import json

    return _Reply(json.dumps(value))


# -- pages that follow a save

_LIVE = _PREFIX + "/live"
_LIVE_MARK = "-live"  # at the end of an ETag's text: the page with our script is another representation
LIVE_FILES = partial(  # for files of a project that its pages are made of and that are no modules
    re.fullmatch,
    r".*\.(?:css|html?|xhtml|xml|jinja2?|j2|mako|pt|s?tpl|thtml|tmpl|js|mjs|md|png|jpe?g|gif|svg|webp|avif|ico|woff2?|ttf)",
)


class LivePages:
    """WSGI middleware that has each open page of the application follow a save.

    The script is added to complete, unencoded pages that a browser navigates to, and asks by short requests, so that
    no thread waits for a page.  Content-Length counts the script, and the ETag is another, or a browser would take a
    page without the script for the one with it.  Any thread may call any method: the watcher's calls `changed`, those
    of the requests everything else.
    """

    def __init__(
        self,
        app: WSGIApplication,
        reload_id: str,
        warn: Callable[[str], None],
        refuses: Callable[[Mapping[str, Any]], object] = lambda environ: None,
    ) -> None:
        self.app = app
        self.reload_id = reload_id
        self.warn = warn
        self.refuses = refuses  # a method of the guard: who may not read
        self.changes: dict[str, int] = {}  # the number of each file's last change, by its name
        self.count = 0  # of all changes; raised when the change is in the dictionary
        self.has_warned = False

    def changed(self, paths: Iterable[str]) -> bool:
        """Tell open pages of changed files; return True, by which the watcher knows that no reload is needed."""
        for path in paths:
            self.changes[os.path.basename(path)] = self.count
            self.count += 1
        return True

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer our script, add it to pages, and leave everything else alone."""
        path = environ.get("PATH_INFO", "")
        if path in (_LIVE, _LIVE + ".js"):
            return self._answer(environ, start_response)
        if path.startswith(_PREFIX + "/") or environ.get("REQUEST_METHOD") != "GET" or not _is_for_document(environ):
            return self.app(environ, start_response)
        return self._follow(environ, start_response)

    def _answer(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """Answer a request for the script, or the script's question what has changed since a count."""
        import json
        from urllib.parse import parse_qs

        environ[UNLOGGED] = True
        if self.refuses(environ):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        kind, text = "text/javascript", LIVE_SCRIPT
        if environ["PATH_INFO"] == _LIVE:
            count, since = self.count, parse_qs(environ.get("QUERY_STRING", "")).get("since", [""])[0]
            first = int(since) if since.isdecimal() and len(since) < 10 else count
            names = [name for name, number in self.changes.copy().items() if first <= number < count]
            reply = {"reload_id": self.reload_id, "count": count, "changes": names}
            kind, text = "application/json", json.dumps(reply)
        headers, body = _headers_and_body(text, kind)
        start_response("200 OK", headers)
        return [body]

    def _follow(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application; add the script to its page."""
        tags = environ.get("HTTP_IF_NONE_MATCH", "")
        if _LIVE_MARK + '"' in tags:
            environ["HTTP_IF_NONE_MATCH"] = tags.replace(_LIVE_MARK + '"', '"')
        src, seen = f"{_prefix_from(environ)}/live.js", self.count
        tag = f'\n<script src="{src}" data-reload-id="{self.reload_id}" data-seen="{seen}"></script>\n'.encode()
        added: list[bytes] = []

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            added.clear()
            known = {name.lower(): value for name, value in headers}
            if status.startswith("304") and environ.get("HTTP_IF_NONE_MATCH") != tags:
                headers = [_marked(name, value) for name, value in headers]
            elif not exc_info and _is_whole_page(status, known) and self._may_run(environ, headers):
                added.append(tag)
                headers = [_marked(name, value, len(tag)) for name, value in headers]
            return start_response(status, headers, *exc_info)

        return _WithLastChunk(self.app(environ, start), added)

    def _may_run(self, environ: Mapping[str, Any], headers: Iterable[tuple[str, str]]) -> bool:
        """Return whether the page's policy lets the script run and ask; if not, say so once."""
        policies = [value for name, value in headers if name.lower() == "content-security-policy"]
        if all(_allows_live(policy) for policy in ",".join(policies).split(",")):
            return True
        if not self.has_warned:
            self.has_warned = True
            page = escape_controls(environ.get("PATH_INFO", ""))
            self.warn(
                f"{page} does not follow a save (--live): its Content-Security-Policy lets no script of devserve's "
                "run; while developing, have script-src and connect-src allow 'self'"
            )
        return False


class _WithLastChunk:
    """A response with a last chunk added.

    Whether there is one is known only when the application has called start_response, which it may do as late as with
    its first chunk; so `added` is read at the end.
    """

    def __init__(self, app_iter: Iterable[bytes], added: Sequence[bytes]) -> None:
        self.app_iter = app_iter
        self.added = added

    def __iter__(self) -> Iterator[bytes]:
        yield from self.app_iter
        yield from self.added

    def close(self) -> None:
        getattr(self.app_iter, "close", lambda: None)()


def _is_whole_page(status: str, headers: Mapping[str, str]) -> bool:
    """Return whether a response is a complete, unencoded HTML page to which something can be added."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    others = {"content-encoding", "content-range", "content-disposition", "digest", "content-digest", "content-md5"}
    return kind == "text/html" and status[:3] not in ("204", "205", "206", "304") and others.isdisjoint(headers)


def _marked(name: str, value: str, more: int = 0) -> tuple[str, str]:
    """Return a header of a page as it is with the script: Content-Length plus `more` bytes, and an ETag of its own."""
    if name.lower() == "content-length" and value.isdecimal():
        return name, str(int(value) + more)
    if name.lower() == "etag" and value.endswith('"'):
        return name, value[:-1] + _LIVE_MARK + '"'
    return name, value


def _allows_live(policy: str) -> bool:
    """Return whether a Content-Security-Policy lets a script of the page's own origin run and fetch."""
    rules: dict[str, list[str]] = {}
    for directive in policy.lower().split(";"):
        name, *sources = directive.split() or [""]
        rules.setdefault(name, sources)
    if "sandbox" in rules and "allow-scripts" not in rules["sandbox"]:
        return False
    script = rules.get("script-src-elem", rules.get("script-src", rules.get("default-src", ["*"])))
    connect = rules.get("connect-src", rules.get("default-src", ["*"]))
    is_own_allowed = all(not {"'self'", "*"}.isdisjoint(sources) for sources in (script, connect))
    return is_own_allowed and "'strict-dynamic'" not in script


# =====================================================================================================================
# 10. HTTP server
#
# Carries HTTP/1.1 requests to any WSGI application, by RFC 9110, RFC 9112 and PEP 3333, with a thread for each
# connection.  It may know foreign code (2) and the terminal (3), and nothing of loaders, debuggers and reloaders.  The
# order follows a connection's life: limits, the server, the connection, the request's head, its body, the response,
# the connection that an application takes over, and the sockets on which all of this stands.
#
# The server is made so that a process can be replaced between any two requests.  A connection at rest waits in
# `_Connection._await_input` until its socket has something, and reads only then.  Before it reads it sets its phase to
# _BUSY and looks at the gate (`DevServer.gate`).  Whoever wants to replace the process closes the gate first and looks
# at the phases afterwards.  So of the two at least one sees the other: either the connection finds the gate shut and
# goes back to rest with nothing read, or `close_gate` finds it busy and waits for its answer.
#
# A reload uses the gate in three steps.  `DevServer.hold` shuts it as soon as the watcher sees a difference, since the
# next request should get the new code; `open_gate` opens it again when the difference was none.  `close_gate` shuts it
# for the reload, waits for the requests that run, cuts those that take longer than their grace, and returns the
# sockets at rest.  A response that has no foreseeable end (`note_endless`) gets no grace.  `adopt` takes the sockets
# up in the next process as if they had just been accepted.  A TLS connection cannot be taken up by another process, as
# its keys are in OpenSSL's memory, so under the reloader each ends after one answer.
#
# No socket here ever blocks.  Every call of one goes through `_Connection.attempt`, which tries it first, and then
# waits for what the failed call says that it needs: over TLS a send may have to read first, and the reverse.  Each
# call holds the connection's lock, as an application may read its body or WebSocket in threads of its own: two calls
# of one TLS connection at once crash the process with Pythons older than July 2025 (CPython's gh-134698).
#
# A request goes this way: `_Connection._await_request` waits for its first bytes, and `_answer` reads and answers it.
# `_read_request` takes the head off the buffer (`_parse_head`, of which the last results are remembered) and offers
# the body (`_open_body`) as wsgi.input.  `_Response.run` calls the application and sends its pieces by `write`;
# before the first one `_begin` writes the head, after the last one `_finish` ends the body, and `fail` answers for an
# application that raised.  What is not HTTP raises `_BadRequest`, wherever it is noticed, and is answered by `refuse`;
# a client that is no longer there raises `_ClientGone`, which is nobody's failure.
#
# A request that cannot be framed in one way only is refused (`_BadRequest`), since a proxy might frame it in another
# and take its body for a second request.  How the end of a response's body is known is decided once, when its first
# piece comes (`_Response._choose_framing`).  A request that asks to upgrade, as for a WebSocket, finds its socket in
# the environ (`_UpgradedSocket`, under SOCKET_KEY).
#
# Invariants: of a connection that waits for a request no byte has been read, so another process can have it whole; a
# request of which a byte has been read is answered by this one.  Each request gets one answer and one line of the log;
# what has no foreseeable end gets a line when it begins, too.  Every wait for a client has an end, so that no thread
# is held for ever, but for a connection that is the application's.
#
# Doors: CONNECTION, DevServer, PLAIN_TEXT, REMEMBERED_SIZE, add_field, check_response_head, listen, socket_path,
# adhoc_certificate, urls, tls_from_files.
#
# Read first: DevServer, DevServer.close_gate, _Connection.serve, _parse_head, _Body, _Response.write.
# =====================================================================================================================

# Sizes, in bytes.  A client that exceeds one is answered with the status in brackets, and the connection is closed.
_MAX_REQUEST_LINE = 64 * 1024  # as Werkzeug and waitress; DataTables, SAML and GraphQL send 20 kB by GET (414)
_MAX_HEADERS = 64 * 1024  # cookies of a whole localhost pile up to 30 kB (431)
_MAX_FIELDS = 200  # header lines; browsers send about 20 (431)
_MAX_CHUNK_LINE = 1024  # a chunk's size and its extensions, which nobody uses (400)
_SPOOL_LIMIT = 64 * 1024**2  # of a chunked body stored before the application is called; it reads the rest as it comes
_SPOOL_RATE = 4 * 1024**2  # a second: a slower client makes its body while it sends it, and must not be waited for
_DRAIN_LIMIT = 1024**2  # of an unread body read and dropped to keep the connection; past it, closing is cheaper
_LOGGED_LINE = 120  # of a head that was refused: enough to recognise who sent it
_READ_SIZE = 64 * 1024  # a loopback socket hands over about this much at once
_JOIN_LIMIT = 64 * 1024  # head and body up to here are joined into one send; past it the copy costs more than a send
_IDLE_THREADS = 32  # threads that wait for a connection; as many as a browser or a load test opens at once
REMEMBERED_SIZE = 4 * 1024  # of a request's head that is remembered; with the number below, half a megabyte in all
_REMEMBERED_HEADS = 128  # of requests, and as many of responses; clients and applications repeat theirs to the byte

_SECURE_SCHEMES = ("https", "wss")  # by which a proxy says that its client's side is encrypted
_PROXIES = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "")  # whom we believe that, as gunicorn and uvicorn do

# Waits, in seconds.
_FIRST_BYTE_TIMEOUT = 120.0  # browsers open connections ahead of need and keep them for minutes
_HEAD_TIMEOUT = 30.0  # for the whole head: enough for a person who types it into telnet; and for a TLS handshake
_SILENCE_TIMEOUT = 600.0  # in a body, either way: a client may stand at a breakpoint, and a laptop may sleep
_IDLE_TIMEOUT = 75.0  # between two requests; longer than browsers and proxies keep theirs, so that they close first
_SPOOL_PAUSE = 0.25  # in a chunked body, after which the client is not sending it in one go
_SECURED_MOMENT = 1.0  # to the first request, which a reload waits for: it comes in milliseconds
_LINGER_TIMEOUT = 5.0  # reading away what a client still sends, so that the answer is not lost in a reset
_LINGER_MOMENT = 0.2  # the same when a reload waits: an answer crosses this machine in less
_BODY_AT_FAULT = {"400", "411", "415", "422"}  # client errors that may well come of an empty body
_HANG_SECONDS = (10.0, 60.0, float("inf"))  # after which the terminal says where a request hangs: twice, then no more
_HANG_INTERVAL = 1.0  # seconds between two looks for such requests
_SETTLE_INTERVAL = 0.01  # between two looks at the requests that the end of the process waits for
_PAUSED_INTERVAL = 0.5  # between two looks at a request that is stopped in a debugger
_UNWOKEN_INTERVAL = 0.01  # between two looks at a socket among greenlets that nothing wakes
_OUT_OF_DESCRIPTORS_PAUSE = 0.05  # before accepting again when the process has no descriptor left

_SERVER_NAME = f"devserve/{__version__}"
CONNECTION = "devserve.connection"  # in the environ, for a bridge: the connection itself

_AT_REST, _SECURED, _BUSY, _ENDLESS, _ANSWERED = range(5)  # the phases of a connection


class DevServer:
    """A threaded WSGI server on one or several listening sockets; `make_server` makes one.

        with devserve.make_server(app) as server:
            server.serve_forever()

    `serve_forever` takes connections until `shutdown`, as in socketserver.  `app` may be replaced at any time; each
    request takes the one that is there when it has been read.  At the end of a `with` it closes the listeners and
    every connection.

    Threads: one is in `serve_forever`.  Each connection belongs to one other, which alone reads, writes and closes
    its socket, and then accepts the next one, if one waits.  Any thread may call what has no underscore, and may look
    at another's connection (`phase`, `started`) or `cut` it.  `gate`, `hold`, `open_gate`, `close_gate` and `adopt`
    are for whoever replaces the process.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        app: WSGIApplication,
        terminal: Terminal,
        *,
        threads: bool = True,
        tls: Optional[Callable[[socket.socket], socket.socket]] = None,
        keeps_alive: bool = True,
        hands_over: bool = True,
    ) -> None:
        enlarge_stacks()
        self.listeners = tuple(listeners)
        for listener in self.listeners:
            listener.setblocking(False)  # a client may be gone before it is accepted
            if isinstance(listener.getsockname(), tuple):
                # What is accepted inherits this.  With Nagle's algorithm the last segment of a response would wait for
                # the client's delayed ACK.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_address = listeners[0].getsockname()
        self.app = app
        self.terminal = terminal
        self.tls = tls
        self.hands_over = hands_over  # whether another process can have the connections that wait
        self.keeps_alive = keeps_alive  # whether a connection may have several requests
        # True if the application is an ASGI bridge.  It then gets the connection itself, and bodies as they come,
        # whatever their framing, since it waits for body and client at the same time.
        self.streams = False
        self.at_close: Callable[[], object] = lambda: None  # ends what lives as long as the server
        self.is_paused: Callable[[int], bool] = lambda thread_id: False  # whether a debugger has stopped a thread
        # The same for a thread that serves no request: it may be meant to stand at a prompt for ever, as of `code`.
        self.is_stopped: Callable[[int], bool] = lambda thread_id: False
        self.connections: set[_Connection] = set()
        self.base_environ = _base_environ(self.server_address, len(listeners), threads=threads, https=tls is not None)
        self.turn: Any = contextlib.nullcontext() if threads else threading.Lock()  # held by the one request that runs
        self.turn_ended = 0.0  # when the last one ended, on `time.perf_counter`
        self.gate = threading.Event()  # open: requests may begin
        self.gate.set()
        self._changed = threading.Event()  # set when, with the gate closed, a connection has come to rest or ended
        self._accepting = threading.Lock()  # held while a connection is between the kernel's queue and `connections`
        self._idle_threads: list[_IdleThread] = []
        self._is_closed = False
        self._forked_in = 0  # in a child that the application forked, the thread that did
        self._shutting_down = False
        self._stopped = threading.Event()  # no thread is in `serve_forever`
        self._stopped.set()
        self._warned: set[str] = set()
        self.hangs_looked_for = 0.0  # on `time.perf_counter`

    @property
    def server_port(self) -> int:
        """The TCP port; 0 for a socket file."""
        return self.server_address[1] if isinstance(self.server_address, tuple) else 0

    def __enter__(self) -> DevServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server_close()

    # -- taking connections

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Take connections until `shutdown` or `server_close`, noticed within `poll_interval` seconds."""
        self._stopped.clear()
        try:
            while not (self._shutting_down or self._is_closed):
                if self.gate.wait(poll_interval) and _wait_until_ready(self.listeners, poll_interval):
                    self._give_to_thread(self._accept())
                if time.perf_counter() > self.hangs_looked_for + _HANG_INTERVAL:
                    self._report_hangs()
        except (OSError, ValueError):  # a listener has been closed right before we wait for it
            if not self._is_closed:
                raise
        finally:
            self._shutting_down = False
            self._stopped.set()

    def shutdown(self) -> None:
        """Have `serve_forever` return, and wait until it has.  Call it from another thread."""
        self._shutting_down = True
        self._stopped.wait()

    def server_close(self) -> None:
        """Close the listeners and every connection, and let the idle threads go."""
        self._is_closed = True
        self.at_close()
        with self._accepting:  # so that every connection that was taken is cut below
            for listener in self.listeners:
                listener.close()
        for connection in list(self.connections):
            connection.cut()
        while self._idle_threads:
            self._idle_threads.pop().give(None)

    def after_fork(self) -> None:
        """In a child that the application forked, close our sockets, whose copies would keep port and clients.

        If the child comes back from the application, it ends with the thread that forked.  Its other threads must not
        keep it: greenlets live on in it, and the terminal's may wait for a lock that a thread of the parent has held.
        """
        self._is_closed, self._forked_in = True, threading.get_ident()
        for sock in [*self.listeners, *(connection.sock for connection in self.connections)]:
            sock.close()

    def _accept(self) -> Optional[_Connection]:
        """Take a connection from the kernel's queues; return None if there is none, or it is not to be taken now."""
        for listener in self.listeners:
            try:
                with self._accepting:
                    if self._stopped.is_set() or not self.gate.is_set():  # perhaps since the caller looked
                        return None
                    # Registered before the lock is free: whoever closes the gate then sees every connection taken.
                    connection = _Connection(*listener.accept(), self)
                    self.connections.add(connection)
                    return connection
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._shed_load()
        return None

    def _shed_load(self) -> None:
        """Close the connection that has waited longest for a request, as no descriptor is left for a new one."""
        waiting = [c for c in list(self.connections) if c.phase == _AT_REST]
        if waiting:
            min(waiting, key=lambda c: c.started).cut()
        time.sleep(_OUT_OF_DESCRIPTORS_PAUSE)

    def _report_hangs(self) -> None:
        """Say on the terminal where each request hangs that has run for long, if that is in the application's code."""
        self.hangs_looked_for = now = time.perf_counter()
        for connection in list(self.connections):
            seconds = now - connection.started
            if connection.phase == _BUSY and seconds > _HANG_SECONDS[connection.hangs_reported]:
                position = connection.position()
                if position:
                    connection.hangs_reported += 1
                    name = connection.describe()
                    self.terminal.warn(f"{name} has not been answered after {seconds:.0f} s; it is at {position}")

    def warn_once(self, text: str) -> None:
        """Write a warning about a mistake that the application makes in many responses, the first time only."""
        if text not in self._warned:
            self._warned.add(text)
            self.terminal.warn(text)

    def _give_to_thread(self, connection: Optional[_Connection]) -> None:
        """Have an idle thread serve a connection, or else a new one.

        With idle threads, a client that makes a connection for each request is served 3 times as fast.
        """
        if connection is None:
            return
        with contextlib.suppress(IndexError):
            self._idle_threads.pop().give(connection)
            return
        thread = threading.Thread(target=self._run_thread, args=(connection,), name="devserve connection", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # the system has no thread left; those that run serve on
            self.terminal.warn(f"closed a connection: {error}")
            connection.abort()
            self._forget(connection)

    def _run_thread(self, connection: Optional[_Connection]) -> None:
        """Serve one connection after another; end with the server, or when enough other threads are idle."""
        idle = _IdleThread()
        while connection is not None:
            _, error = call_safely(connection.serve)
            if error is not None:
                self.terminal.crash(error, "devserve itself failed; the connection is closed")
            connection.close()
            self._forget(connection)
            # To take one costs less than to be woken for it; but in a forked child nobody gives the lock back.
            connection = None if self._is_closed else self._accept()
            if connection is not None:
                continue
            if len(self._idle_threads) >= _IDLE_THREADS:
                break
            self._idle_threads.append(idle)
            if self._is_closed:  # `server_close` sets it and then takes the threads, so one of us sees the other
                break
            idle.given.acquire()
            connection = idle.connection
        if self._forked_in and self._forked_in == threading.get_ident():  # 0 first: pdb may have emptied the module
            self.terminal.flush()
            os._exit(0)

    def _forget(self, connection: _Connection) -> None:
        """Note that a connection has ended, which `close_gate` may wait for."""
        self.connections.discard(connection)
        self.look_again()

    # -- handing over: what a reload needs

    def hold(self) -> None:
        """Let no further request begin, until `open_gate`."""
        with self._accepting:
            self.gate.clear()

    def open_gate(self) -> None:
        """Let requests begin again, since nothing has changed, or the reload has failed."""
        self.gate.set()

    def close_gate(self, grace: float) -> list[socket.socket]:
        """Let no further request begin, wait for those that have, and return the sockets of the connections that wait.

        A request may take `grace` seconds from its own start, or from its turn.  One that has no foreseeable end is
        cut at once, and one that is stopped in a debugger is waited for.  Whatever takes longer is cut, and the log
        says so.
        """
        self.hold()
        closed = time.perf_counter()
        for connection in list(self.connections):
            leave = connection.leave  # read once: its own thread takes it away
            if leave is not None:
                leave()
        paused: dict[_Connection, float] = {}  # when it was last seen in a debugger
        is_told = False
        while True:
            self._changed.clear()
            # One look at each: a connection that is seen at rest stays so, since the gate is closed; one that was just
            # woken by its client sees the gate, and is at rest at the next look.
            phases = {c: c.phase for c in list(self.connections) if not c.is_cut}
            ends = {c: c.deadline(phase, closed, grace) for c, phase in phases.items() if phase != _AT_REST}
            now = time.perf_counter()
            late = {c for c, end in ends.items() if end <= now}
            stopped = self._in_debugger(late) if late else late  # it looks at every thread, and each end wakes us
            for connection in stopped - paused.keys():
                self.terminal.warn(f"{connection.describe()} is stopped in a debugger; the reload waits for it")
            paused.update(dict.fromkeys(stopped, now))
            ends.update(dict.fromkeys(stopped, now + _PAUSED_INTERVAL))
            for connection in late - stopped:
                if connection in paused and now < paused[connection] + grace:  # it has its time again; look often
                    ends[connection] = now + _PAUSED_INTERVAL
                    continue
                if phases[connection] == _BUSY:
                    self.terminal.warn(f"cut {connection.describe()}: still running after its grace")
                connection.cut()
                del ends[connection]
            if not ends:
                if not any(map(self.is_stopped, sys._current_frames())):
                    return [c.sock for c, phase in phases.items() if phase == _AT_REST]
                if not paused and not is_told:  # as a task in the background, or a WebSocket that was closed above
                    self.terminal.warn("a thread is stopped in a debugger; the reload waits for it")
                    is_told = True
            self._changed.wait(min(ends.values(), default=now + _PAUSED_INTERVAL) - now)

    def settle(self, grace: float) -> None:
        """Wait for the requests in hand, since one that is answered may not have its line of the log yet.

        A request may take `grace` seconds from its own start, so one that has run for long is not waited for.
        """
        since = now = time.perf_counter()
        while any(c.phase == _BUSY and now - grace < c.started < since for c in list(self.connections)):
            native_sleep(_SETTLE_INTERVAL)
            now = time.perf_counter()

    def _in_debugger(self, connections: set[_Connection]) -> set[_Connection]:
        """Return those that a debugger holds up: those whose own thread it has stopped, or all if it has stopped a
        thread that may work for any (an event loop's, a pool's; without threads, that of whoever's turn it is)."""
        threads = set(filter(self.is_paused, sys._current_frames()))
        taken = {each.thread_id for each in list(self.connections)} if self.base_environ["wsgi.multithread"] else set()
        return connections if threads - taken else {each for each in connections if each.thread_id in threads}

    def look_again(self) -> None:
        """Have `close_gate`, if a thread is in it, look at the connections again."""
        if not self.gate.is_set():
            self._changed.set()

    def adopt(self, sockets: Iterable[socket.socket]) -> None:
        """Serve connections that were accepted by another process and wait for their next request."""
        for sock in sockets:
            try:
                connection = _Connection(sock, sock.getpeername(), self)
            except OSError:
                sock.close()  # the client left in the meantime
                continue
            connection.timeout = _IDLE_TIMEOUT
            self.connections.add(connection)
            self._give_to_thread(connection)


class _IdleThread:
    """A thread that waits for a connection.  Whoever takes it from `DevServer._idle_threads` calls `give`, once."""

    def __init__(self) -> None:
        self.connection: Optional[_Connection] = None
        self.given = threading.Lock()  # released when there is another connection
        self.given.acquire()

    def give(self, connection: Optional[_Connection]) -> None:
        """Have it serve a connection; None has it end."""
        self.connection = connection
        self.given.release()


# -- a connection


class _ClientGone(ConnectionError):
    """The client left, or was silent for too long, in the middle of a request; as a rule nobody awaits an answer."""

    nobody_listens = True  # by this attribute the debugger knows it, which may not know this room

    def __init__(self, reason: str, *, unsent: int = 0, has_ended: bool = False) -> None:
        super().__init__(reason)
        self.unsent = unsent  # bytes that it did not take of what it was sent
        self.has_ended = has_ended  # it sends no more, and may still listen: RFC 9293 section 3.6, `nc -N`


class _BadRequest(Exception):
    """What the client sent is not valid HTTP; the connection ends after the answer."""

    nobody_listens = True  # not a failure of the application, which may get it while it reads the body

    def __init__(self, reason: str, status: str = "400 Bad Request") -> None:
        super().__init__(reason)
        self.status = status


_NO_LINE = ("-", "-")  # in place of method and target, for the log


class _Connection:
    """One client's connection: requests are read and answered on it one after the other, in order.

    It belongs to the thread that is in `serve`.  Other threads call `cut`, `describe`, `position`, `leave` and
    `deadline` alone.  An ASGI bridge also calls `receive_into` and `read_ahead`, in the connection's own thread, and
    `note_endless` in its loop's while that waits.  Only these two threads write its phase; all may read it:

    _AT_REST  it waits for a request, of which nothing has been read
    _SECURED  the first request is on its way: the TLS handshake is done, or no other process can have the connection
    _BUSY     a request has begun, at `started` on time.perf_counter
    _ENDLESS  its response, the wait for it, or what the application does with the connection has no foreseeable end
    _ANSWERED the answer is complete; at most what the client still sends is read away
    """

    def __init__(self, sock: socket.socket, address: Any, server: DevServer) -> None:
        self.sock = sock
        self.server = server
        self.phase = _AT_REST if server.hands_over else _SECURED
        self.started = time.perf_counter()  # the request in hand, or the last one
        self.answered = 0.0  # when the last answer was complete
        self.thread_id = 0
        self.timeout = _FIRST_BYTE_TIMEOUT
        self.is_secured = server.tls is None  # the TLS handshake is done, or none is needed
        self.buffer = bytearray()  # bytes read from the socket that no request has taken yet
        self.request_line = _NO_LINE  # method and target of the request in hand, for the log
        self.body: Optional[_Body] = None  # of the request in hand, for a bridge
        self.leave: Optional[Callable[[], object]] = None  # asks an open WebSocket to end the connection by itself
        self.calling = threading.Lock()  # held for each call of the socket, never while waiting
        self.waits = True  # whether a read waits for the client, or raises BlockingIOError
        self.position: Callable[[], str] = str  # where the application stands with the request in hand
        self.hangs_reported = 0  # how often the terminal has said that the request in hand hangs
        self.keep_alive = True
        self.input_left = False  # the client may have sent, or still be sending, something that nobody will read
        self.is_cut = False
        sock.setblocking(False)
        self.environ = dict(server.base_environ)
        self.environ["REMOTE_ADDR"] = self.environ["REMOTE_PORT"] = ""  # a client of a socket file has neither
        if isinstance(address, tuple):
            self.environ["REMOTE_ADDR"], self.environ["REMOTE_PORT"] = address[0], str(address[1])

    def serve(self) -> None:
        """Answer requests until either side wants no more."""
        self.thread_id = threading.get_ident()
        try:
            if self.is_secured or self._do_handshake():
                while self.keep_alive and self._await_request():
                    self._answer()
        except OSError:
            pass  # the client has gone, in the middle of a head or between two requests, which nobody logs

    def _await_request(self) -> bool:
        """Wait until a request begins, and return whether one does."""
        while True:
            while self.buffer.startswith(b"\r\n"):  # empty lines, which old clients send after a body, are skipped
                del self.buffer[:2]
            if self.buffer:
                return True
            if not self._await_input():
                return False
            self.buffer += self.attempt(self.sock.recv, _READ_SIZE, seconds=_HEAD_TIMEOUT)
            if not self.buffer:
                return False

    def _await_input(self) -> bool:
        """Wait until the client sends something, and return whether it does; reading that is left to the caller."""
        gate = self.server.gate
        while True:
            if self.phase != _SECURED:
                self.phase = _AT_REST
                self.server.look_again()
                if not gate.is_set():  # all connections would take its lock in turn
                    gate.wait()  # as a rule the process is replaced while we wait
            came = self.readable(self.timeout)
            self.started = time.perf_counter()
            if self.phase == _SECURED:
                return came
            self.phase = _BUSY  # before the gate is looked at; the banner says why
            if gate.is_set():
                return came

    def _do_handshake(self) -> bool:
        """Do the TLS handshake in this connection's own thread, so that a silent client holds up nobody else.

        We look at the first byte before OpenSSL takes it, so that a client that speaks plain HTTP gets an answer in
        plain HTTP.
        """
        assert self.server.tls is not None
        if not self._await_input():
            return False
        if self.sock.recv(1, socket.MSG_PEEK) not in (_TLS_HANDSHAKE, b""):
            self.refuse(_BadRequest("this port speaks HTTPS: write https:// in the address"))
            return False
        self.sock = self.server.tls(self.sock)
        self.attempt(self.sock.do_handshake, seconds=_HEAD_TIMEOUT)  # type: ignore[attr-defined]
        self.is_secured = True
        self.started = time.perf_counter()
        self.phase = _SECURED
        return True

    def _answer(self) -> None:
        """Read one request and answer it."""
        self.started = time.perf_counter()
        self.phase = _BUSY
        try:
            head, environ, body = self._read_request()
        except _BadRequest as error:
            self.refuse(error)
            return
        with contextlib.nullcontext() if self.server.streams else self.server.turn:  # a bridge takes turns by itself
            self._run(head, environ, body)
            self.answered = self.server.turn_ended = time.perf_counter()
        self.timeout = _IDLE_TIMEOUT
        if body is not None:
            self.phase = _ANSWERED
            self.keep_alive = body.drain(_DRAIN_LIMIT if self.keep_alive else 0) and self.keep_alive
            self.input_left = not self.keep_alive  # the rest of it, or the empty line that old clients send after one

    def _run(self, head: _Head, environ: Environ, body: Optional[_Body]) -> None:
        """Call the application and send its answer; whatever goes wrong, write the line of the log."""
        self.position, self.hangs_reported = partial(thread_position, self.thread_id), 0
        response = _Response(self, head, environ, body)
        if head.is_long_poll:
            self.note_endless()
        if head.upgrades:
            environ[SOCKET_KEY] = _UpgradedSocket(response)
        _, error = call_safely(partial(response.run, self.server.app))
        if error is not None:
            self.keep_alive = self.keep_alive and response.framing == _ENDED  # what failed came after the answer
            response.fail(error)
        self.waits = True
        response.log()

    def refuse(self, error: _BadRequest) -> None:
        """Answer a request that is not valid or not accepted, and end the connection."""
        self.keep_alive = False
        if self.request_line is _NO_LINE:
            self.request_line = _first_line(self.buffer)
        response = _Response(self, _Head(self.request_line), {}, None)
        response.fail(error)
        response.log(f" ({error})")

    # -- reading a request

    def _read_request(self) -> tuple[_Head, Environ, Optional[_Body]]:
        """Take one request's head off the connection; return it, its environ, and its body if it has one."""
        self.request_line = _NO_LINE
        end = self._read_head()
        raw = bytes(self.buffer[:end])
        head = _remembered_head(raw) if end <= REMEMBERED_SIZE else _parse_head(raw)
        del self.buffer[: end + 4]
        self.request_line = head.request_line
        self.keep_alive = head.keep_alive and self.server.keeps_alive
        environ = {**self.environ, **head.environ}
        if head.environ.get("HTTP_X_FORWARDED_PROTO") in _SECURE_SCHEMES and environ["REMOTE_ADDR"] in _PROXIES:
            environ["wsgi.url_scheme"] = "https"
        if self.server.streams:
            environ[REQUEST_HEAD], environ[CONNECTION], self.body = raw, self, None
        if head.length == 0:
            environ["wsgi.input"] = io.BytesIO()
            return head, environ, None
        return head, environ, self._open_body(environ, head.length, head.expects)

    def _read_head(self) -> int:
        """Read until a head is whole, and return its length, without the empty line that ends it.

        What can no longer become a request is refused at once.  Empty lines before it are skipped (RFC 9112 section
        2.2).
        """
        deadline = self.started + _HEAD_TIMEOUT
        while True:
            while self.buffer.startswith(b"\r\n"):
                del self.buffer[:2]
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0 or end > _MAX_HEADERS:
                _check_beginning(self.buffer if end < 0 else self.buffer[:end])
            if end >= 0:
                return end
            try:
                left = deadline - time.perf_counter()
                more = self.attempt(self.sock.recv, _READ_SIZE, seconds=left)
            except socket.timeout:
                raise _BadRequest("the head did not come in time", "408 Request Timeout") from None
            if not more:
                raise _BadRequest("the connection ended in the middle of a head") if self.buffer else _ClientGone("")
            self.buffer += more

    def _open_body(self, environ: Environ, length: int, expected: bool) -> _Body:
        """Put the body into the environ as `wsgi.input`; return it.

        `wsgi.input_terminated` is set only for a body without CONTENT_LENGTH: by the length Werkzeug tells a body
        that broke off from a short one, and answers 400 by itself.
        """
        self.body = body = _ChunkedBody(self, expected) if length == _CHUNKED else _Body(self, length, expected)
        environ["wsgi.errors"] = _Errors(environ["wsgi.errors"], body)
        environ["wsgi.input"] = io.BufferedReader(body)
        if not isinstance(body, _ChunkedBody):
            return body
        if not self.server.streams:
            del environ["HTTP_TRANSFER_ENCODING"]
        if not self.server.streams and body.store():
            environ["wsgi.input"] = body.stored
            environ["CONTENT_LENGTH"] = str(body.stored_left)
        else:
            environ["wsgi.input_terminated"] = True
        return body

    # -- receiving and sending

    def attempt(self, call: Callable[..., Any], *args: Any, seconds: Optional[float], writing: bool = False) -> Any:
        """Make a call of the socket, again each time that the socket is ready for it; return its result.

        Each wait is of `seconds`, after which socket.timeout is raised; with 0, BlockingIOError is raised without a
        wait.
        """
        while True:
            try:
                with self.calling:
                    return call(*args)
            except OSError as error:
                kind = type(error).__name__  # by its name, since plain HTTP does not import `ssl`
                if kind.startswith("SSL") and "Want" not in kind:  # so OpenSSL names a client that has gone
                    raise ConnectionResetError(errno.ECONNRESET, str(error)) from None
                if kind not in ("BlockingIOError", "SSLWantReadError", "SSLWantWriteError"):
                    raise
            if seconds == 0:
                raise BlockingIOError(errno.EAGAIN, "not ready")
            sockets: list[socket.socket] = [self.sock]
            writes = writing if kind == "BlockingIOError" else kind == "SSLWantWriteError"
            if not (_wait_until_ready([], seconds, sockets) if writes else _wait_until_ready(sockets, seconds)):
                raise socket.timeout("timed out")

    def pending(self) -> int:
        """Return how many decrypted bytes wait to be received, which no poll sees."""
        with self.calling:
            return int(getattr(self.sock, "pending", int)())

    def readable(self, seconds: float) -> bool:
        """Return whether something can be received within `seconds`."""
        return bool(self.pending()) or _wait_until_ready([self.sock], seconds)

    def watch(self, other: socket.socket, *, reads: bool, is_due: bool) -> None:
        """Wait until `other` can be read or, with `reads`, the client has sent something or has gone.

        A client whose data `is_due` is given up as in `receive_into`.  Without `reads` the socket is left out, as the
        connection's end would wake us again and again.
        """
        sockets = [other, self.sock] if reads else [other]
        if not _wait_until_ready(sockets, _SILENCE_TIMEOUT if reads and is_due else None):
            raise _ClientGone("timed out")

    def receive_into(self, buffer: Any) -> int:
        """Read as much as there is into `buffer`, at least one byte; raise `_ClientGone` when none comes."""
        if not self.buffer:
            return int(self._receive(self.sock.recv_into, buffer))
        count = min(len(buffer), len(self.buffer))
        buffer[:count] = self.buffer[:count]
        del self.buffer[:count]
        return count

    def read_ahead(self) -> None:
        """Read what comes into the buffer, at least one byte; raise `_ClientGone` when none comes."""
        self.buffer += self._receive(self.sock.recv, _READ_SIZE)

    def _receive(self, call: Callable[..., Any], argument: Any) -> Any:
        """Return what a receiving method of the socket returns; raise `_ClientGone` when no byte comes.

        BlockingIOError means that there is nothing yet, for a bridge or a spool that does not wait.
        """
        try:
            result = self.attempt(call, argument, seconds=_SILENCE_TIMEOUT if self.waits else 0)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _ClientGone(str(error)) from None
        if not result:
            raise _ClientGone("the client closed the connection", has_ended=True)
        return result

    def send(self, data: Union[bytes, memoryview]) -> None:
        """Send all of `data`; raise `_ClientGone` when the client does not take it."""
        limit = len(data) if self.server.tls is None else _READ_SIZE  # OpenSSL tells only of whole pieces
        data = memoryview(data)
        while data:
            try:
                count = self.attempt(self.sock.send, data[:limit], seconds=_SILENCE_TIMEOUT, writing=True)
            except OSError as error:
                self.keep_alive = False
                raise _ClientGone(str(error), unsent=len(data)) from None
            data = data[count:]

    def send_file(self, file: Any, offset: int, count: int) -> int:
        """Have the kernel send some of `count` bytes of `file`; return how many it did, -1 when it cannot do that.

        `socket.sendfile` would poll before each of hundreds of pieces, or without a timeout wait for ever for a client
        that reads nothing.
        """
        if sys.platform == "win32":
            return -1
        arguments = (self.sock.fileno(), file.fileno(), offset, count)
        try:
            return int(self.attempt(os.sendfile, *arguments, seconds=_SILENCE_TIMEOUT, writing=True))
        except (ConnectionError, socket.timeout) as error:
            self.keep_alive = False
            raise _ClientGone(str(error)) from None
        except OSError:
            return -1  # such a file system, or such a socket

    # -- the end

    def close(self) -> None:
        """End the connection so that everything that was sent arrives.

        A socket that is closed with unread input sends a reset, which may destroy the answer.  So first end our side,
        and read and drop what the client still sends until it ends its own (RFC 9112 section 9.6).
        """
        self.answered = time.perf_counter()
        self.phase = _ANSWERED
        self.server.look_again()
        has_ended = False
        try:
            if self.is_secured and self.server.tls is not None:
                self.close_tls()
            if self.input_left or self.buffer or self.readable(0):
                self.sock.shutdown(socket.SHUT_WR)
                end = time.perf_counter() + _LINGER_TIMEOUT
                while not has_ended and time.perf_counter() < end:
                    left = end - time.perf_counter()
                    has_ended = not self.attempt(self.sock.recv, _READ_SIZE, seconds=left)
        except (OSError, ValueError):
            pass  # it has gone
        if not has_ended:
            self.cut()  # for copies of the socket, in a child of the application or in a thread that waits for it
        with self.calling:
            self.sock.close()

    def close_tls(self) -> None:
        """Send close_notify (RFC 9112 section 9.8), without waiting for the client's."""
        try:
            with self.calling:
                self.sock.unwrap()  # type: ignore[attr-defined]
        except (OSError, ValueError):
            pass  # as a rule the client's has not come yet; or ours has been sent before

    def abort(self) -> None:
        """End the connection by a reset, so that the client sees a failure; no other thread may be using it."""
        linger = struct.pack("=HH" if sys.platform == "win32" else "=ii", 1, 0)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            pass  # it has gone
        self.sock.close()

    # -- for other threads

    def note_endless(self, kind: str = "") -> None:
        """Note that the request has no foreseeable end, so that no reload waits for it; `kind` is its response's type.

        A POST answered by events or rows is no subscription: as a rule a language model writes, and soon comes to its
        end, and a client cannot ask again for an answer that was cut.
        """
        if self.request_line[0] != "POST" or not kind or kind.startswith("multipart"):
            self.phase = _ENDLESS
            self.server.look_again()

    def cut(self) -> None:
        """End the connection at once."""
        self.is_cut = True
        # The method of ssl's sockets takes the TLS from under the thread that uses it.
        # Eventlet has a class of its own, and in that no such method.
        kind = socket.socket if isinstance(self.sock, socket.socket) else type(self.sock)
        shutdown = partial(kind.shutdown, self.sock) if hasattr(kind, "shutdown") else self.sock.shutdown
        try:
            shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def deadline(self, phase: int, closed: float, grace: float) -> float:
        """Return until when a reload waits for this connection, if it is in `phase`; the gate closed at `closed`."""
        if phase == _ANSWERED or self.leave is not None:
            return max(self.answered, closed) + _LINGER_MOMENT
        if phase == _ENDLESS:
            return closed
        if phase == _SECURED:
            return self.started + _SECURED_MOMENT
        # From the closing at the latest: a client that pipelines without end begins one request after the other.
        if self.started > closed or self.environ["wsgi.multithread"]:
            return min(self.started, closed) + grace
        return max(self.started, self.server.turn_ended) + grace  # it has had to wait for its turn

    def describe(self) -> str:
        return escape_controls(" ".join(self.request_line))


# -- a request's head

_TEXT = bytes(set(range(0x20, 0x100)) - {0x7F}) + b"\t"  # what may stand in a line; the rest are control characters
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_HOST = re.compile(
    r"(?:\[(?:[0-9A-Fa-f:.]+(?:%[0-9A-Za-z\-._~%]+)?|v[0-9A-Fa-f]+\.[0-9A-Za-z\-._~!$&'()*+,;=:]+)\]"
    r"|[0-9A-Za-z\-._~!$&'()*+;=%]*)(?::[0-9]*)?"
)  # RFC 3986, 3.2.2; RFC 6874
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)((?:[/?][^#]*)?)", re.IGNORECASE)  # a target as sent to a proxy
_ONCE = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"})  # twice, they would mean two messages
_VERSION = re.compile(r"HTTP/1\.[0-9]")  # a later minor version is served as 1.1 (RFC 9112 section 2.3)
_LONG_POLL = ("EIO=", "transport=polling", "sid=")  # Socket.IO's: it waits up to 25 s for something to tell
_TLS_HANDSHAKE = b"\x16"  # the type of a client's first TLS record (RFC 8446 section 5.1)
_CHUNKED = -1  # as a body's length


class _Head(NamedTuple):
    """The parsed head of a request; the defaults stand for one that is not valid."""

    request_line: tuple[str, str]  # method, and target as it was sent
    http11: bool = True
    keep_alive: bool = False
    length: int = 0  # of the body in bytes, or _CHUNKED
    expects: bool = False  # the client waits for `100 Continue`
    upgrades: bool = False  # the client asks for another protocol on this connection, as for a WebSocket
    is_long_poll: bool = False  # the answer comes when there is something to tell, which may be never
    environ: Mapping[str, str] = {}  # its part of the environ


def _parse_head(raw: bytes) -> _Head:
    """Parse a head, given without the empty line at its end.  Raises `_BadRequest`."""
    _check_controls(raw, raw.count(b"\r\n"))
    lines = raw.decode("latin-1").split("\r\n")
    if len(lines) > _MAX_FIELDS + 1:
        raise _BadRequest("too many header lines", "431 Request Header Fields Too Large")
    method, target, http11 = _parse_request_line(lines.pop(0))
    fields = _parse_fields(lines)
    path, query = _path_and_query(method, target, fields)
    if http11 and "HTTP_HOST" not in fields:
        raise _BadRequest("an HTTP/1.1 request needs a Host header")  # RFC 9112 section 3.2
    if not _HOST.fullmatch(fields.get("HTTP_HOST", "")):
        raise _BadRequest(f"{fields['HTTP_HOST']!r} is no Host")
    length = _body_length(fields, http11)
    options = _options(fields.get("HTTP_CONNECTION", ""))
    return _Head(
        request_line=(method, target),
        http11=http11,
        keep_alive="close" not in options and (http11 or "keep-alive" in options),  # RFC 9112 section 9.3
        length=length,
        expects=http11 and length != 0 and _expects(fields.get("HTTP_EXPECT", "")),
        upgrades=http11 and "HTTP_UPGRADE" in fields and "upgrade" in options,
        is_long_poll=method == "GET" and all(part in target for part in _LONG_POLL),
        environ={
            **fields,
            "REQUEST_METHOD": method,
            "REQUEST_URI": target,
            "RAW_URI": target,
            "SERVER_PROTOCOL": "HTTP/1.1" if http11 else "HTTP/1.0",
            "PATH_INFO": path,
            "QUERY_STRING": query,
        },
    )


# A head's meaning depends on nothing else than its bytes: remembering it saves 40 % of a small request.  The environ
# of a remembered head is copied for each request, never handed out.
_remembered_head = functools.lru_cache(_REMEMBERED_HEADS)(_parse_head)


def _check_controls(data: Union[bytes, bytearray], line_ends: int) -> None:
    """Refuse control characters, and any CR or LF that is not one of the `line_ends` pairs (RFC 9112 section 2.2)."""
    if data.translate(None, _TEXT) != b"\r\n" * line_ends:
        raise _BadRequest("a control character in the head")


def _parse_request_line(line: str) -> tuple[str, str, bool]:
    """Return method, target and whether it is HTTP/1.1 or later; 1.0 is the only other version."""
    parts = line.split(" ")
    if len(parts) != 3 or "\t" in line or not all(parts) or not _FIELD_NAME.fullmatch(parts[0]):
        raise _BadRequest("the request line is not 'METHOD target HTTP/1.1'")
    method, target, version = parts
    if method == "CONNECT":
        raise _BadRequest("CONNECT is for proxies")
    if not _VERSION.fullmatch(version):
        is_other = re.fullmatch(r"HTTP/[0-9]\.[0-9]", version)
        status = "505 HTTP Version Not Supported" if is_other else "400 Bad Request"
        raise _BadRequest(f"{version!r} is not HTTP/1.1 or HTTP/1.0", status)
    return method, target, version != "HTTP/1.0"


def _parse_fields(lines: list[str]) -> dict[str, str]:
    """Return the headers by their environ keys."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise _BadRequest(f"{line[:_LOGGED_LINE]!r} is no header line")
        if add_field(fields, name, value.strip(" \t")) in _ONCE:
            raise _BadRequest(f"{name} came twice")
    return fields


def add_field(environ: dict[str, Any], name: str, value: str) -> str:
    """Add a header to an environ; return its key when it has come before: then both are joined (RFC 9110 section 5.3).

    Two kinds do not reach the application: a name with an underscore could pass itself off as another
    (`Content_Length`), and `Proxy` would become the variable HTTP_PROXY, which HTTP clients obey (CVE-2016-5385).
    """
    key = name.upper().replace("-", "_")
    if "_" in name or key == "PROXY":
        return ""
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    if key not in environ:
        environ[key] = value
        return ""
    environ[key] += f"{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
    return key


def _path_and_query(method: str, target: str, fields: dict[str, str]) -> tuple[str, str]:
    """Return PATH_INFO, unquoted and as Latin-1 text (PEP 3333), and QUERY_STRING.

    The host of a target in absolute form overrules the Host header; `*` is for OPTIONS alone (RFC 9112 section 3.2).
    """
    if target[0] != "/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute:
            if "HTTP_HOST" in fields:
                fields["HTTP_HOST"] = absolute[1]
            target = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
        elif target == "*" and method == "OPTIONS":
            target = ""
        else:
            raise _BadRequest(f"the target {target!r} is no path")
    if "#" in target:
        raise _BadRequest("a fragment in the target")
    path, _, query = target.partition("?")
    if "%" in path:
        from urllib.parse import unquote_to_bytes

        path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    return path, query


def _body_length(fields: dict[str, str], http11: bool) -> int:
    """Return the length of the body, `_CHUNKED` when the stream marks its end.  One framing, or `_BadRequest`."""
    coding = fields.get("HTTP_TRANSFER_ENCODING")
    length = fields.get("CONTENT_LENGTH")
    if coding is not None:
        if length is not None:
            raise _BadRequest("both Content-Length and Transfer-Encoding")  # RFC 9112 section 6.1: request smuggling
        if coding.lower() != "chunked" or not http11:
            *others, last = _options(coding)
            is_framed = http11 and last == "chunked" and last not in others
            status = "501 Not Implemented" if is_framed else "400 Bad Request"  # section 6.1, and 6.3
            raise _BadRequest(f"the transfer coding {coding!r} is not understood", status)
        return _CHUNKED
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()) or len(length) > 18:  # 10**18 bytes: nobody has them
        raise _BadRequest(f"{length!r} is no Content-Length")
    return int(length)


def _options(value: str) -> list[str]:
    """Return the options of a Connection header (RFC 9110 section 7.6.1), or of another list of tokens."""
    return [option.strip() for option in value.lower().split(",")]


def _expects(expectation: str) -> bool:
    """Return whether the client waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1)."""
    unknown = set(_options(expectation)) - {"100-continue", ""}
    if unknown:
        raise _BadRequest(f"the expectation {unknown.pop()!r} is not understood", "417 Expectation Failed")
    return bool(expectation)


def _check_beginning(data: bytearray) -> None:
    """Refuse the beginning of a head that cannot become a valid one, instead of waiting for the rest."""
    if data.startswith(_TLS_HANDSHAKE):
        raise _BadRequest("a TLS handshake on a port that speaks plain HTTP: write http:// in the address")
    _check_controls(data[:-1] if data.endswith(b"\r") else data, data.count(b"\r\n"))
    line_end = data.find(b"\r\n", 0, _MAX_REQUEST_LINE + 2)
    if line_end >= 0:
        _parse_request_line(data[:line_end].decode("latin-1"))
        if len(data) - line_end > _MAX_HEADERS:
            raise _BadRequest("the header lines are too long", "431 Request Header Fields Too Large")
    elif len(data) > _MAX_REQUEST_LINE:
        raise _BadRequest("the request line is too long", "414 URI Too Long")


def _first_line(data: bytearray) -> tuple[str, str]:
    """Return method and target, as far as they can be told, of a head that was refused, for the log."""
    if data.startswith(_TLS_HANDSHAKE):
        return _NO_LINE
    method, _, rest = data[:_LOGGED_LINE].partition(b"\r\n")[0].decode("latin-1").partition(" ")
    return escape_controls(method) or "-", rest or "-"


# -- a request's body
#
# wsgi.input is a `_Body` below a buffered reader, which gives it the other methods of a file, or, if the body was
# chunked and came in one go, the file in memory in which it was stored.


class _Body(io.RawIOBase):
    """The body of a request, read from its connection; at its end a read returns b"" and does not wait.

    `unread` counts the bytes that are still to come, -1 if that is not known.  A client that waits for `100 Continue`
    gets it when the application first reads.  It belongs to the thread of its connection; an application that reads it
    in another thread must have one read at a time.
    """

    is_ignored = False  # the application could have read it as it came, and has not
    failure: Optional[Exception] = None  # with which it broke off

    def __init__(self, connection: _Connection, length: int, expected: bool) -> None:
        super().__init__()
        self.connection = connection
        self.unread = length
        self.expected = expected  # the client waits for `100 Continue`

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._read_into(buffer)
        except (_ClientGone, _BadRequest) as error:
            self.failure = error
            shorten_broken_requests()
            raise

    def _read_into(self, buffer: Any) -> int:
        count = self._receive_into(buffer, self.unread)
        self.unread -= count
        return count

    def readall(self) -> bytes:
        """Read the rest; the method that we inherit does so in pieces of 8 kB, each a call of the socket."""
        return b"".join(iter(partial(self.read, _READ_SIZE), b""))

    def _receive_into(self, buffer: Any, limit: int) -> int:
        """Read up to `limit` bytes from the connection."""
        size = min(len(buffer), limit)
        if size == 0:
            return 0
        self.invite()
        # The views are released at once, since the caller may resize the buffer next, as PyPy's own `read` does.
        with memoryview(buffer) as whole, whole[:size] as piece:
            return self.connection.receive_into(piece)

    def invite(self) -> None:
        """Ask a client that waits for `100 Continue` to send the body."""
        if self.expected:
            self.expected = False
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def closes_connection(self) -> bool:
        """Return, as the response begins, whether the connection must end after it because of the unread body.

        It must if the rest is of unknown size or too much to be read and dropped, and if the client was never asked to
        send it: `100 Continue` cannot follow a final response (RFC 9110 section 15.2), and the client may send the
        body all the same.
        """
        uninvited, self.expected = self.expected, False
        return not 0 <= self.unread <= _DRAIN_LIMIT or (uninvited and self.unread != 0)

    def drain(self, limit: int) -> bool:
        """Read and drop what the application has not read, up to `limit` bytes; return whether that was all."""
        piece = bytearray(_READ_SIZE)
        try:
            while self.unread and limit > 0:
                limit -= self.readinto(piece)
        except _BadRequest:
            return False
        return not self.unread


_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,15}")  # a size of 60 bits: nobody has more


class _ChunkedBody(_Body):
    """A chunked body (RFC 9112 section 7.1): stored as long as it comes in one go, then read as it comes.

    Most clients send such a body in one go, and many applications need a CONTENT_LENGTH, which only a stored body can
    have.  A client that makes its body while it sends it, or sends more than _SPOOL_LIMIT, must not be waited for: its
    application reads what is stored, and then the rest from the connection.  When a read raises BlockingIOError, it
    can be tried again.
    """

    def __init__(self, connection: _Connection, expected: bool) -> None:
        super().__init__(connection, -1, expected)
        self.left = 0  # bytes of the present chunk
        self.awaits = "size"  # what comes after these bytes: the "size" or the "end" of a chunk, or the "trailer"
        self.stored = io.BytesIO()
        self.stored_left = 0  # bytes of it that have not been read
        self.is_empty = True  # no chunk with data has come

    def store(self) -> bool:
        """Store the body while it comes in one go; return whether that was all of it.  Raises `_BadRequest`.

        A client may pause now and then for as long as `_SPOOL_RATE` allows for what it has sent: one that sends faster
        has its body ready, and only the machine is busy.
        """
        until = time.perf_counter() + _SPOOL_PAUSE
        self.connection.waits = False
        try:
            while self.unread and self.stored.tell() < _SPOOL_LIMIT:
                try:
                    self.stored.write(self.read(_READ_SIZE) or b"")
                except BlockingIOError:
                    if not self.connection.readable(until + self.stored.tell() / _SPOOL_RATE - time.perf_counter()):
                        break
        except _ClientGone as error:
            raise _BadRequest(f"the chunked body broke off: {error}") from error
        finally:
            self.connection.waits = True
        self.stored_left = self.stored.tell()
        self.stored.seek(0)
        self.is_ignored = self.unread != 0
        return not self.unread

    def drain(self, limit: int) -> bool:
        self.stored.close()  # so that a stored crash keeps no upload
        self.stored_left = 0
        is_ignored = self.is_ignored
        is_whole = super().drain(limit)
        if is_ignored and not self.is_empty:
            self.connection.server.warn_once(
                "nothing was read of a body that came bit by bit, without Content-Length: Django and Bottle never do"
            )
        return is_whole

    def _read_into(self, buffer: Any) -> int:
        self.is_ignored = False
        if self.stored_left:
            count = self.stored.readinto(buffer)
            self.stored_left -= count
            return count
        self.invite()
        if not self.left and self.unread:
            self._begin_chunk()
        count = self._receive_into(buffer, self.left)
        self.left -= count
        return count

    def _begin_chunk(self) -> None:
        """Go on to the next chunk's data, or past the last chunk and the trailer to the end of the body."""
        if self.awaits == "end":
            self._line(0)
            self.awaits = "size"
        if self.awaits == "size":
            digits, semicolon, _ = self._line(_MAX_CHUNK_LINE).partition(b";")
            digits = digits.rstrip(b" \t") if semicolon else digits
            if not _HEXADECIMAL.fullmatch(digits):
                raise _BadRequest(f"{digits[:20]!r} is no chunk size")
            self.left = int(digits, 16)
            self.awaits = "end" if self.left else "trailer"
            self.is_empty = self.is_empty and not self.left
        if self.awaits == "trailer":
            self._skip_trailer()
            self.unread = 0

    def _skip_trailer(self) -> None:
        """Read and drop the fields after the last chunk; they must not change a request that has been framed."""
        for _ in range(_MAX_FIELDS):
            line = self._line(_MAX_REQUEST_LINE)
            if not line:
                return
            name, colon, _ = line.decode("latin-1").partition(":")
            if not colon or not _FIELD_NAME.fullmatch(name):
                raise _BadRequest("a bad trailer")
        raise _BadRequest("too many trailers", "431 Request Header Fields Too Large")

    def _line(self, limit: int) -> bytes:
        """Return the next line without its CRLF; one longer than `limit` is refused."""
        buffer = self.connection.buffer
        while True:
            end = buffer.find(b"\r\n", 0, limit + 2)
            if end >= 0:
                break
            if len(buffer) > limit + 1 or b"\n" in buffer:
                raise _BadRequest("a line of the chunked body is too long or does not end in CRLF")
            self.connection.read_ahead()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        _check_controls(line, 0)
        return line


class _Errors:
    """`wsgi.errors` of a request with a body: a traceback that a framework writes there when the body has broken off
    is one line."""

    def __init__(self, stream: Any, body: _Body) -> None:
        self._stream = stream
        self._body = body

    def write(self, text: str) -> Any:
        before, traceback_follows, rest = text.partition("Traceback (most recent call last)")
        error = sys.exc_info()[1] if traceback_follows and self._body.failure is not None else None
        if error is not None and broken_request(error) is not None:
            text = before + rest.rstrip().rpartition("\n")[2] + "\n"
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# -- a response
#
# A mistake of the application raises where it is made, so that the traceback shows the line.  After the head has been
# sent, the client can only be told by a broken connection: after an orderly end it would take a part for the whole.

# How the end of a response's body is known (RFC 9112 section 6.3); before the first piece nobody knows yet.
_UNDECIDED = 0
_BY_LENGTH = 1  # a longer body is cut off, and a shorter one is a failure
_BY_CHUNKS = 2
_BY_CLOSE = 3  # by the end of the connection, for HTTP/1.0
_NO_BODY = 4  # as in the answer to HEAD, a 204 and a 304; what the application sends is left out
_TAKEN_OVER = 5  # the connection is the application's; what it sends as a response is left out
_ENDED = 6  # what the application writes now would garble the next response


class _Response:
    """One response: its head as the application gave it, and how much of it has been sent.

    The head leaves with the first piece of the body (PEP 3333), in one send when the piece is small.  It belongs to
    the connection's thread, but an application may `write` from others, one by one.
    """

    status = ""
    sent = 0  # bytes of the body on the wire
    framing = _UNDECIDED
    left = 0  # bytes that are still to come, when the framing is by length

    def __init__(self, connection: _Connection, request: _Head, environ: Environ, body: Optional[_Body]) -> None:
        self.connection = connection
        self.request = request  # what we decide by, since the application may change the environ
        self.environ = environ
        self.body = body
        self.head = _NO_HEAD

    @property
    def discards(self) -> bool:
        """Whether nothing more of the body is sent."""
        return self.framing in (_NO_BODY, _TAKEN_OVER)

    def run(self, app: WSGIApplication) -> None:
        """Call the application and send its answer; its iterable is closed exactly once, whatever happens."""
        if self.request.request_line[1] == "*":  # it asks about the server: RFC 9110 section 9.3.7
            app = _answer_options
        app_iter = app(self.environ, self.start_response)
        try:
            if type(app_iter) is FileWrapper and self._can_send_file(app_iter.filelike):
                self._send_file(app_iter)
            else:
                whole = hasattr(app_iter, "__len__") and len(app_iter) == 1  # type: ignore[arg-type]
                self._send_pieces(app_iter, whole=whole)
            self._finish()
        finally:
            close = getattr(app_iter, "close", None)
            if close is not None:
                close()

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: Optional[OptExcInfo] = None,
    ) -> Callable[[bytes], None]:
        """PEP 3333's start_response.  What is no HTTP head is refused here, where the traceback shows who sent it."""
        if self.framing == _TAKEN_OVER:  # WebSocket libraries return an empty response to please their framework
            return self.write
        if exc_info:
            try:
                if self.framing and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through the traceback
            self.connection.phase = _BUSY  # what is sent instead has an end
        elif self.status:
            raise AssertionError("start_response was called twice; only with exc_info may it be called again")
        if self.body is not None and self.body.failure is not None and status.startswith("5"):
            status = "400 Bad Request"  # a framework takes what ended its read for a failure of the application
        self.head = check_response_head(status, headers)
        self.status = status
        if self.head.endless_type:
            self.connection.note_endless(self.head.endless_type)  # already now: the first piece may be long in coming
        for name in self.head.dropped:
            self.connection.server.warn_once(
                f"left out the header {name}: it belongs to the connection, which is the server's (PEP 3333)"
            )
        return self.write

    def write(self, data: bytes, *, whole: bool = False) -> None:
        """Send a piece of the body, and the head before the first one; the bytes are on the wire on return.

        A piece that is `whole` is all of the body, and tells its length.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"the application must yield bytes, not {type(data).__name__}: {data!r:.80}")
        if self.framing == _ENDED:
            raise RuntimeError("write() was called when the response had ended; it would garble the next one")
        head = b"" if self.framing else self._begin(len(data) if whole else -1)
        data = self._admitted(data)
        wire = b"%x\r\n%b\r\n" % (len(data), data) if data and self.framing == _BY_CHUNKS else data
        self.sent += len(data)
        try:
            if head and len(wire) > _JOIN_LIMIT:
                self.connection.send(head)
                head = b""
            self.connection.send(head + wire)
        except _ClientGone as error:
            self.sent -= min(error.unsent, len(data))
            raise

    def _send_pieces(self, pieces: Iterable[bytes], *, whole: bool = False) -> None:
        """Send each piece before the next is asked for; `whole` says that there is one alone.

        An empty piece sends nothing, not even the head (PEP 3333); what is no bytes goes on to the check in `write`.
        """
        for piece in pieces:
            if piece or not isinstance(piece, bytes):
                self.write(piece, whole=whole)
                if self.discards:
                    break

    def _admitted(self, data: bytes) -> bytes:
        """Return the part of a piece that may be sent; bytes past the declared length would be read as a response."""
        if self.discards:
            return b""
        if self.framing == _BY_LENGTH:
            if len(data) > self.left:
                data = data[: self.left]
                self.framing = _NO_BODY
                self.connection.server.terminal.warn(
                    f"{self.connection.describe()}: the body is longer than its Content-Length of {self.head.length}; "
                    "the rest is left out"
                )
            self.left -= len(data)
        return data

    def _begin(self, size: int) -> bytes:
        """Choose the framing and return the head; `size` is that of the whole body, -1 when nobody knows it."""
        connection = self.connection
        if not self.status:
            raise AssertionError("the application sent a body before it called start_response")
        line = self._choose_framing(size)
        if self.body is not None and self.status[0] not in "25" and self.status[:3] not in _BODY_AT_FAULT:
            self.body.is_ignored = False  # rightly: a redirect or a 401 needs no body
        if self.head.closes or self.framing == _BY_CLOSE or (self.body is not None and self.body.closes_connection()):
            connection.keep_alive = False
        connection.hangs_reported = len(_HANG_SECONDS) - 1  # it is being answered, however long that takes
        if not connection.keep_alive:
            line += b"Connection: close\r\n"
        elif not self.request.http11:
            line += b"Connection: keep-alive\r\n"
        if self.head.endless_type and not self.discards:
            self.log(" (begins)")
        return b"%b%b%b\r\n" % (self.head.block, _date_line(int(time.time())) if self.head.needs_date else b"", line)

    def _choose_framing(self, size: int) -> bytes:
        """Decide how the body's end is known; return the header line that says so, unless the application gave one."""
        length = self.head.length
        self.framing = _NO_BODY
        if self.status[:3] in ("204", "304"):  # RFC 9110 section 6.4.1; 1xx cannot come from an application
            return b""
        line = b"Content-Length: %d\r\n" % size if length < 0 <= size else b""
        if self.request.request_line[0] == "HEAD":
            return line
        if length >= 0 or size >= 0:
            self.framing, self.left = _BY_LENGTH, size if length < 0 else length
            return line
        self.framing = _BY_CHUNKS if self.request.http11 else _BY_CLOSE
        return b"Transfer-Encoding: chunked\r\n" if self.request.http11 else b""

    def _finish(self) -> None:
        """End the body.  The response counts as ended before its last bytes leave: nothing can slip in behind them."""
        if not self.framing:
            if not self.status:
                raise AssertionError("the application returned without calling start_response")
            self.write(b"", whole=self.request.request_line[0] != "HEAD")
        if self.framing == _BY_LENGTH and self.left:  # the client must not take it for whole
            raise RuntimeError(f"the body is {self.left} bytes shorter than declared")
        framing = self.framing
        if framing != _TAKEN_OVER:
            self.framing = _ENDED
        if framing == _BY_CHUNKS:
            self.connection.send(b"0\r\n\r\n")

    def hand_over(self) -> None:
        """Leave the connection to the application, once; nothing of this response is sent any more."""
        if self.framing == _TAKEN_OVER:
            return
        self.framing = _TAKEN_OVER
        connection = self.connection
        connection.keep_alive, connection.input_left = False, True
        connection.note_endless()

    def log(self, note: str = "") -> None:
        """Write a line of the request log."""
        if UNLOGGED not in self.environ:
            connection = self.connection
            seconds = time.perf_counter() - connection.started
            method, target = connection.request_line
            connection.server.terminal.access(method, target + note, self.status[:3] or "-", self.sent, seconds)

    # -- files

    def _can_send_file(self, file: Any) -> bool:
        """Return whether the kernel can copy the file: a plain one (a GzipFile has a descriptor too) without TLS.

        Not one whose class has a `read` of its own: what it returns need not be what the file holds.
        """
        file = file.file if type(file).__name__ == "_TemporaryFileWrapper" else file
        plain = type(file) in (io.FileIO, io.BufferedReader, io.BufferedRandom)
        return plain and self.connection.server.tls is None and not self.framing

    def _send_file(self, wrapper: FileWrapper) -> None:
        """Send a file from its position on, by the kernel if it can; it declares its own length when nobody did."""
        file: Any = wrapper.filelike
        start = file.tell() if file.seekable() else -1
        size = os.fstat(file.fileno()).st_size - start
        if start < 0 or size <= 0:  # a pipe, or a file of /proc, whose size is not known before it is read
            return self._send_pieces(wrapper)
        self.connection.send(self._begin(size))
        while self.left:
            count = self.connection.send_file(file, start + self.sent, self.left)
            if count < 0:
                file.seek(start + self.sent)
                return self._send_pieces(iter(lambda: file.read(min(_READ_SIZE, self.left)), b""))
            if count == 0:  # the file has become shorter
                break
            self.left -= count
            self.sent += count
        return None

    # -- failures

    def fail(self, error: BaseException) -> None:
        """Answer for an application that raised, and print the crash; a client that has gone is no failure."""
        error = broken_request(error) or error
        if isinstance(error, _BadRequest):
            self.connection.input_left = True
            self._replace(error.status, f"{error.status[4:]}: {error}\n")
        elif isinstance(error, _ClientGone):
            if self.body is not None and self.body.unread and not self.framing:  # it may still listen
                self._replace("400 Bad Request", "Bad Request: the body did not come as declared\n")
        else:
            if not nobody_listens(error, self.environ):
                link = str(self.environ.get(CRASH_LINK, ""))
                title = f"{' '.join(self.connection.request_line)} failed:"
                self.connection.server.terminal.crash(error, title, link=link)
            self._replace("500 Internal Server Error", "Internal Server Error\n")

    def _replace(self, status: str, text: str) -> None:
        """Send this response instead of the application's; if its head has been sent, cut the connection."""
        if self.framing == _BY_CLOSE:  # for HTTP/1.0, the end of the connection would be the body's
            self.connection.abort()
        elif not self.framing:
            self.head = check_response_head(status, PLAIN_TEXT)
            self.status = status
            with contextlib.suppress(_ClientGone):
                self.write(text.encode("utf-8", "replace"), whole=True)
        elif self.framing not in (_ENDED, _TAKEN_OVER):
            self.connection.cut()


def _answer_options(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer `OPTIONS *`, as an application."""
    start_response("200 OK", [("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")])
    return [b""]


class _ResponseHead(NamedTuple):
    """The status and headers of an application, checked."""

    block: bytes = b""  # the status line and the headers as they go on the wire
    needs_date: bool = True  # the application gave none
    length: int = -1  # the declared Content-Length, -1 without
    endless_type: str = ""  # its Content-Type, if the body has no foreseeable end by that
    closes: bool = False  # the application asks for the connection's end
    dropped: tuple[str, ...] = ()  # headers that are not the application's to send


_NO_HEAD = _ResponseHead()
PLAIN_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
_STATUS = re.compile(r"[2-9][0-9][0-9] [\t\x20-\x7e\x80-\xff]*")  # RFC 9112 section 4; 1xx is not an application's
# Events, a camera's frames, GraphQL's subscriptions, what Kubernetes watches, and rows of JSON under the many names
# they have.  Types that are as often finite are not here (multipart/mixed, gRPC, audio, video, text): a page or a
# voice that is being made, which pauses like a stream that waits, must come to its end, while what is endless under
# such a type holds a reload for some seconds and loses nothing.
_ENDLESS_TYPE = (
    r"(?:text|application)/(?:x-dom-)?event-stream|application/vnd\.docker\.(?:raw|multiplexed)-stream"
    r"|multipart/x-mixed-replace|multipart/mixed;.*subscriptionspec|[^;]*;\s*stream=watch"
    r"|[^;]*(?:\b(?:[ln]d|(?:new)?line-delimited)-?json|json[-+]?(?:l|lines|stream|seq)|stream\+json)\s*(?:;|$)"
)


def check_response_head(status: str, headers: Iterable[tuple[str, str]]) -> _ResponseHead:
    """Check a status and headers, and return them as they go on the wire.

    Raises ValueError or TypeError for what is no HTTP: a control character would let a value become a header.
    """
    pairs = tuple(headers)
    with contextlib.suppress(TypeError):  # a header that is a list cannot be looked up
        if sum(len(value) for _, value in pairs) <= REMEMBERED_SIZE:
            return _remembered_response_head(status, pairs)
    return _checked_head(status, pairs)


def _checked_head(status: str, headers: tuple[tuple[str, str], ...]) -> _ResponseHead:
    """See `check_response_head`.  Headers that belong to the connection are left out (PEP 3333, "hop-by-hop")."""
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ValueError(f"{status!r} is no status; PEP 3333 wants a code from 200 on, a space and a reason: '200 OK'")
    length, closes = -1, False
    values, lines, dropped = {"content-type": "", "content-disposition": ""}, [], []
    for name, value in headers:
        if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        if not isinstance(value, str):
            raise TypeError(f"the value of the header {name} must be str, not {value!r}")
        key, value = name.lower(), value.strip(" \t")
        if key == "content-length":
            if not (value.isascii() and value.isdigit()) or length not in (-1, int(value)):
                raise ValueError(f"{value!r} is no Content-Length")
            is_first, length = length < 0, int(value)
            if not is_first or status[:3] == "204":  # a 204 has none (RFC 9110 section 8.6)
                continue
        elif key == "upgrade" and status[:3] == "426":  # the one final response that must have it (section 15.5.22)
            lines.append("Connection: Upgrade\r\n")
        elif is_hop_by_hop(key):
            if key == "connection" and "close" in _options(value):
                closes = True
            else:
                dropped.append(name.title())  # applications do not agree on its case, and one warning is enough
            continue
        values[key] = value.lower()
        lines.append(f"{name}: {value}\r\n")
    if "server" not in values:
        lines.append(f"Server: {_SERVER_NAME}\r\n")
    block = _encoded_head(f"HTTP/1.1 {status}\r\n{''.join(lines)}", len(lines) + 1)
    # A file is saved when it is whole.
    is_finite = length >= 0 or values["content-disposition"].startswith("attachment")
    endless_type = values["content-type"] if not is_finite and re.match(_ENDLESS_TYPE, values["content-type"]) else ""
    return _ResponseHead(block, "date" not in values, length, endless_type, closes, tuple(dropped))


# Most answers of an application begin alike, and the checks cost more than the rest of a small answer.
_remembered_response_head = functools.lru_cache(_REMEMBERED_HEADS)(_checked_head)


def _encoded_head(text: str, line_ends: int) -> bytes:
    """Return a head of so many lines as bytes.  Raises ValueError."""
    try:
        block = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"a header holds {text[error.start]!r}, which is not Latin-1 (PEP 3333)") from None
    if block.translate(None, _TEXT) != b"\r\n" * line_ends:
        raise ValueError(f"a control character in a header's value: {block!r}")
    return block


@functools.lru_cache(maxsize=2)  # within a second all are the same
def _date_line(now: int) -> bytes:
    return f"Date: {format_date_time(now)}\r\n".encode("ascii")


# -- a connection that has become the application's


class _UpgradedSocket:
    """The connection of a request that asks to upgrade, for the application that speaks another protocol on it.

    It is used like the socket that Werkzeug gives, plain or TLS: blocking, without our timeouts.  Once the application
    receives or sends on it, the connection is taken over: we write nothing more, and it ends when the application
    returns.  If the application only answers the request, the connection is not taken over.

    Any thread may call anything, also after the application has returned; what one thread sends arrives in one piece.
    A reload ends the connection by `_Connection.cut`: `recv` then returns nothing, and sending raises BrokenPipeError.
    """

    def __init__(self, response: _Response) -> None:
        self._response = response
        self._connection = response.connection
        self._timeout: Optional[float] = None
        self._sending = threading.Lock()  # held for a whole message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.sock, name)

    @property
    def is_taken_over(self) -> bool:
        return self._response.framing == _TAKEN_OVER

    @property
    def has_input(self) -> bool:
        """Whether something can be received that no poll sees: decrypted, or sent together with the request's head."""
        return bool(self._connection.buffer or self._connection.pending())

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return up to `size` bytes, and nothing when the client has ended the connection."""
        self._response.hand_over()
        data = bytes(self._connection.buffer[:size])  # sent together with the request's head
        if not data:
            connection = self._connection
            return bytes(connection.attempt(connection.sock.recv, size, flags, seconds=self._timeout))
        if not flags & socket.MSG_PEEK:
            del self._connection.buffer[:size]
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(size or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of `data`: libraries that write to a blocking socket do not look at what is returned."""
        self.sendall(data, flags)
        return memoryview(data).nbytes

    def sendall(self, data: Any, flags: int = 0) -> None:
        with self._sending:
            view = memoryview(data).cast("B")
            while view:
                view = view[self.send_some(view, self._timeout) :]

    def send_some(self, data: Any, seconds: Optional[float]) -> int:
        """Wait up to `seconds` until the socket takes something; return how many bytes of `data` it has taken."""
        response = self._response
        response.hand_over()
        if not response.sent:
            first = bytes(data[:12])
            response.status = first[9:].decode("latin-1") if first.startswith(b"HTTP/1.") else "-"
            response.log(" (begins)")
        connection = self._connection
        count = int(connection.attempt(connection.sock.send, data, seconds=seconds, writing=True))
        response.sent += count
        return count

    def settimeout(self, seconds: Optional[float]) -> None:
        self._timeout = seconds

    def gettimeout(self) -> Optional[float]:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    makefile: Any = socket.socket.makefile

    def shutdown(self, how: int) -> None:
        """Shut down the connection, after TLS's own close_notify."""
        if self._connection.server.tls is not None:
            self._connection.close_tls()
        self._connection.sock.shutdown(how)

    def close(self) -> None:
        """End the connection for both sides; its descriptor is closed when the application has returned."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)


# -- sockets


def _wait_until_ready(
    reading: Sequence[socket.socket], seconds: Optional[float], writing: Sequence[socket.socket] = ()
) -> bool:
    """Return whether within `seconds` one of the sockets can be read (or has ended) or written.

    We use `poll`, since `select` takes no descriptor above 1023; but `select` on Windows, which has no poll, and among
    greenlets, which patch it, unless they were told not to.
    """
    seconds = None if seconds is None else max(0, seconds)
    is_green = has_green_threads()
    if sys.platform == "win32" or not hasattr(select, "poll") or (is_green and type(select.select) is FunctionType):
        return any(select.select(reading, writing, [], seconds)[:2])
    poller = select.poll()
    for sock in reading:
        poller.register(sock, select.POLLIN)
    for sock in writing:
        poller.register(sock, select.POLLOUT)
    if not is_green:
        return bool(poller.poll(None if seconds is None else seconds * 1000))
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    pause = threading.Event()  # its wait lets others run even if `time.sleep` has not been patched
    while not poller.poll(0):
        if time.monotonic() >= end:
            return False
        pause.wait(_UNWOKEN_INTERVAL)
    return True


def _base_environ(address: Any, listeners: int, *, threads: bool, https: bool) -> Environ:
    """Return what the environ of every request has in common; `address` is the first listener's."""
    name, port = (address[0], address[1]) if isinstance(address, tuple) else ("localhost", 80)
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": name if listeners == 1 else "localhost",
        "SERVER_PORT": str(port),
        "SERVER_SOFTWARE": _SERVER_NAME,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if https else "http",
        "wsgi.errors": sys.stderr or io.StringIO(),  # it may have been closed at the start
        "wsgi.multithread": threads,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }


# -- listening
#
# If an address cannot be bound, a DevserveError says in one line what is wrong, who has the port, and which command
# works.

_BACKLOG = 1024  # connections that the kernel keeps while a reload replaces the process; Linux caps it by somaxconn
_DOCUMENTATION_ADDRESS = "192.0.2.1"  # RFC 5737: nobody has it, so the way there is the way to the world
_PORT_SEARCH = 100  # ports above a used one that are tried for a free one
_AIRPLAY_HINT = " (on macOS port 5000 belongs to AirPlay Receiver: System Settings, General, AirDrop & Handoff)"


def listen(host: str, port: int, *, again: Callable[[int], str]) -> list[socket.socket]:
    """Return the sockets that listen on an address, a name, or `unix:PATH`.

    Raises `DevserveError`; `again` returns the command that starts on another port, for the message that tells of a
    used one.
    """
    path = socket_path(host)
    if path:
        return [_listen_on_path(path)]
    if host.strip() in ("", "unix:", "unix://"):
        raise DevserveError(f"--host {host!r} names no address: give one, such as 127.0.0.1, or a path after unix:")
    if not 0 <= port <= 65535:
        raise DevserveError(f"{port} is no port: choose one from 1 to 65535, or 0 for a free one")
    try:
        return _listen_on_host(host, port)
    except OSError as error:
        raise _bind_error(error, host, port, again) from error


def _listen_on_host(host: str, port: int) -> list[socket.socket]:
    """Listen on the address of a host; for localhost on both loopbacks, since Node and Chrome ask ::1 first."""
    if not f".{host.rstrip('.').lower()}".endswith(".localhost"):
        return [_listen_on_address(*_resolve(host, port))]
    for _ in range(_PORT_SEARCH):
        first = _listen_on_address(socket.AF_INET, ("127.0.0.1", port))
        try:
            return [first, _listen_on_address(socket.AF_INET6, ("::1", first.getsockname()[1]))]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return [first]  # this machine has no ::1
            first.close()
            if port:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _listen_on_address(family: int, address: Any) -> socket.socket:
    """Return a socket that listens; by SO_REUSEADDR also while old connections of its port are in TIME_WAIT."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there, SO_REUSEADDR would let two programs share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # :: is every address, IPv4 ones too
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Return family and address of a host; IPv4 goes first, as clients on macOS and Windows try it for localhost."""
    try:
        name = host.strip("[]")
        plain = name.encode() if name.isascii() else name  # a str has the codec for foreign letters imported: 2 ms
        found = socket.getaddrinfo(plain, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise DevserveError(f"the host {host!r} does not resolve ({error}); try --host 127.0.0.1") from error
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def socket_path(host: str) -> str:
    """Return the path in `unix:PATH` or `unix://PATH`; "" for any other host."""
    scheme, _, path = host.partition(":")
    return path.removeprefix("//") if scheme == "unix" else ""


def _listen_on_path(path: str) -> socket.socket:
    """Listen on a socket file; one that nobody listens on is replaced, one in use is not."""
    if sys.platform == "win32":
        raise DevserveError(f"unix:{path}: Windows has no socket files for Python; use --host 127.0.0.1")
    try:
        if os.path.exists(path):
            _remove_stale_socket(path, socket.AF_UNIX)
        return _listen_on_address(socket.AF_UNIX, path)
    except OSError as error:
        raise DevserveError(f"cannot use the socket file {path!r}: {error.strerror or error}") from error


def _remove_stale_socket(path: str, family: int) -> None:
    """Remove a socket file that a killed process has left; raise `DevserveError` for anything else that is there."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise DevserveError(f"{path!r} exists and is no socket; choose another path after unix:")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise DevserveError(f"the socket file {path!r} is in use by a running server; choose another path")


def _bind_error(error: OSError, host: str, port: int, again: Callable[[int], str]) -> DevserveError:
    """Return the DevserveError for a failed bind; Windows refuses access to a port that is in use."""
    host = host.strip("[]")
    problem = f"cannot bind {f'[{host}]' if ':' in host else host}:{port}"
    holder = _port_holder(port)
    if error.errno == errno.EADDRINUSE or (error.errno == errno.EACCES and holder):
        if _is_own_parent():
            return DevserveError(
                f"{problem}: already in use by the same command; a module that starts a reloader of its own "
                "while it is imported must do so under if __name__ == '__main__':"
            )
        free = _next_free_port(host, port)
        hint = _AIRPLAY_HINT if sys.platform == "darwin" and port == 5000 else ""
        remedy = f"try: {again(free)}" if free else "choose another --port"
        return DevserveError(f"{problem}: already in use{holder}{hint}; {remedy}")
    if error.errno == errno.EACCES:
        return DevserveError(f"{problem}: this port needs privileges; try: {again(port + 8000 & 0xFFFF)}")
    if error.errno == errno.EADDRNOTAVAIL:
        return DevserveError(f"{problem}: {host} is not an address of this machine; try --host 0.0.0.0")
    return DevserveError(f"{problem}: {error.strerror or error}")


def _is_own_parent() -> bool:
    """Return whether the parent runs the same command: other reloaders, Bottle's too, start it again (Linux)."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            command = [os.fsdecode(argument) for argument in file.read().split(b"\0")[:-1]]
        is_python = os.path.samefile(f"/proc/{os.getppid()}/exe", "/proc/self/exe")  # and not sudo, or timeout
    except OSError:
        return False
    return is_python and command[-len(sys.argv) :] == sys.argv


def _next_free_port(host: str, port: int) -> int:
    """Return the first port after `port` that can be bound, or 0."""
    for candidate in range(port + 1, min(port + _PORT_SEARCH, 65536)):
        with contextlib.suppress(OSError):
            for sock in _listen_on_host(host, candidate):
                sock.close()
            return candidate
    return 0


def _port_holder(port: int) -> str:
    """Return " by python (pid 4711)" for the program that listens on a TCP port, "" when that cannot be learnt."""
    find = {"linux": _holder_by_proc, "win32": _holder_by_netstat}.get(sys.platform, _holder_by_lsof)
    try:
        return " by {1} (pid {0})".format(*find(port))
    except (OSError, ValueError, IndexError):  # nobody, another user's process, or a tool that is missing or unlike
        return ""


def _holder_by_proc(port: int) -> list[str]:
    """Linux: the listening socket's inode from /proc/net/tcp and tcp6, then the process that has it open."""
    inodes = set()
    for table in filter(os.path.exists, ("/proc/net/tcp", "/proc/net/tcp6")):
        with open(table, encoding="ascii") as lines:
            # columns: 1 local address:port in hexadecimal, 3 state (0A: listening), 9 inode
            rows = [line.split() for line in lines][1:]
        inodes |= {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:  # others' are not for us to see
            if not inodes.isdisjoint([os.readlink(entry.path) for entry in entries]):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as name:
                    return [pid, name.read().strip()]
    return []


def _holder_by_lsof(port: int) -> list[str]:
    """macOS and the BSDs: `lsof -F` prints p<pid> and c<command>, a line each."""
    return re.findall(r"(?m)^[pc](.*)", _tool_output("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"))[:2]


def _holder_by_netstat(port: int) -> list[str]:
    """Windows: the row of `netstat -ano` for the port ends with the pid; tasklist knows its name."""
    rows = _tool_output("netstat", "-ano", "-p", "TCP")
    pid = re.findall(rf"(?m)^ *TCP +\S+:{port} +\S+:0 +\S+ +(\d+)", rows)[0]  # the state is in the user's language
    return [pid, _tool_output("tasklist", "/FI", f"PID eq {pid}", "/FO", "CSV", "/NH").split('"')[1]]


def _tool_output(*command: str) -> str:
    """Return what a system tool prints; "" when it fails or takes longer than a person would wait."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode("utf-8", "replace")


def urls(listeners: Sequence[socket.socket], scheme: str) -> list[str]:
    """Return the addresses under which clients reach `listeners`: for 0.0.0.0 and :: also that on the network."""
    address = listeners[0].getsockname()
    if not isinstance(address, tuple):
        return [f"unix:{os.fsdecode(address)}"]
    hosts = ["localhost"] if len(listeners) > 1 else [address[0]]
    if address[0] in ("0.0.0.0", "::"):
        hosts = ["127.0.0.1", *(["::1"] if address[0] == "::" else []), *filter(None, [_network_address()])]
    if len(address) == 4 and address[3]:  # a link-local address means nothing without its zone (RFC 6874)
        hosts[0] += f"%25{socket.if_indextoname(address[3])}"
    return [f"{scheme}://{f'[{host}]' if ':' in host else host}:{address[1]}" for host in hosts]


def _network_address() -> str:
    """Return this machine's address on its network, "" without one: connecting UDP chooses it, and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((_DOCUMENTATION_ADDRESS, 9))
        except OSError:
            return ""
        address = str(sock.getsockname()[0])
        return "" if address.startswith("127.") else address


def tls_from_files(cert: str, key: str) -> Callable[[socket.socket], socket.socket]:
    """Return a function that wraps a server's connection in TLS, with a certificate and its key (PEM files).

    The function does no handshake.  Raises `DevserveError` for files that are missing or do not fit each other, and
    under a Python that was built without ssl.
    """
    try:
        import ssl
    except ImportError as error:
        raise DevserveError(
            f"--cert {cert}: this Python has no ssl ({error}); serve plain HTTP, or use another"
        ) from error

    @functools.lru_cache(maxsize=1)
    def context_of(kind: type[ssl.SSLContext]) -> ssl.SSLContext:
        context = kind(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(cert, key or None)
        return context

    for option, path in (("--cert", cert), ("--key", key)):
        if path and not os.path.isfile(path):
            raise DevserveError(f"{option} {path}: there is no such file")
    try:
        context_of(ssl.SSLContext)
    except (ssl.SSLError, OSError) as error:
        hint = ""
        with contextlib.suppress(OSError), open(key or cert, "rb") as file:
            if b"ENCRYPTED" in file.read():
                hint = f"; take its passphrase away: openssl pkey -in {key or cert} -out plain.pem"
        raise DevserveError(
            f"--cert {cert}{f' --key {key}' if key else ''}: not a PEM certificate with its key ({error}){hint}"
        ) from error

    def wrap(connection: socket.socket) -> socket.socket:
        context = context_of(ssl.SSLContext)  # that of gevent or eventlet, once the application has had it patch
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    return wrap


# -- a certificate of this machine's own
#
# `--cert adhoc` makes it once and keeps it.  A browser warns of it once, unless the person imports the file.

_CERTIFICATE_DAYS = 397  # browsers believe in no certificate that is valid for longer
_CERTIFICATE_REST = 7 * 86400  # seconds before its end at which it is made anew: a project may run for some days
_OPENSSL_SECONDS = 30.0  # seconds for the program, which needs a tenth of one


def adhoc_certificate(host: str, say: Callable[[str], None]) -> str:
    """Return the path of a certificate, with its key, for this machine and `host`; it is made when there is none yet.

    It is kept in the cache folder, for the user alone, so that a browser asks once whether to trust it, and not at
    every start.  Its first line, which is none of PEM's, tells until when it is valid and for which names.  Raises
    DevserveError.
    """
    path = os.path.join(_cache_folder(), "adhoc.pem")
    names, (kept, until) = _certificate_names(host), _kept_certificate(path)
    if until > time.time() + _CERTIFICATE_REST:
        if names <= kept:
            return path
        names |= kept  # so that two projects on different addresses do not replace it by turns
    head = f"devserve {int(time.time()) + _CERTIFICATE_DAYS * 86400} {' '.join(sorted(names))}\n"
    try:
        text = head + _certificate_by_cryptography(sorted(names))
    except ImportError:
        text = head + _certificate_by_openssl(sorted(names))
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError as error:
        raise DevserveError(f"--cert adhoc cannot keep a certificate in {path} ({error.strerror})") from error
    say(f"devserve: made a certificate for {', '.join(sorted(names))}, kept in {path}; browsers ask once about it")
    return path


def _cache_folder() -> str:
    """Return where devserve may keep something from one start to the next, as each system has it."""
    default = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}.get(sys.platform, "~/.cache")
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    return os.path.join(named if os.path.isabs(named) else os.path.expanduser(default), "devserve")


def _certificate_names(host: str) -> set[str]:
    """Return the names and addresses under which browsers may ask a server on `host`."""
    own = socket.gethostname()
    names = {"localhost", "127.0.0.1", "::1", own, f"{own.partition('.')[0]}.local", host.partition("%")[0]}
    if host in ("0.0.0.0", "::"):
        names.add(_network_address())
    return {name.lower() for name in names if re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9.:-]*", name)} - {"0.0.0.0", "::"}


def _kept_certificate(path: str) -> tuple[set[str], float]:
    """Return the names of the certificate in a file, and until when it is valid; none if others can read the file."""
    try:
        status = os.stat(path)
        is_private = sys.platform == "win32" or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)
        with open(path, encoding="ascii") as file:
            title, until, *names = file.readline().split()
        return (set(names), float(until)) if is_private and title == "devserve" else (set(), 0.0)
    except (OSError, ValueError):
        return set(), 0.0


def _certificate_by_cryptography(names: Sequence[str]) -> str:
    """Return the same as `_certificate_by_openssl`.  Raises ImportError where the package is not installed."""
    from datetime import datetime, timedelta, timezone
    from importlib import import_module
    from ipaddress import ip_address

    x509 = import_module("cryptography.x509")
    primitives = "cryptography.hazmat.primitives"
    hashes, serialization, ec = (
        import_module(f"{primitives}.{name}") for name in ("hashes", "serialization", "asymmetric.ec")
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "devserve on this machine")])
    now = datetime.now(timezone.utc)
    alternatives = [x509.IPAddress(ip_address(name)) if _is_ip(name) else x509.DNSName(name) for name in names]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # for a clock that is late
        .not_valid_after(now + timedelta(days=_CERTIFICATE_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem)
    return str(written, "ascii")


def _certificate_by_openssl(names: Sequence[str]) -> str:
    """Return a certificate for these names, after its key, as PEM.

    The program openssl makes it, which Linux and macOS have, and which Git installs on Windows.  Its settings go into
    a file, since LibreSSL, which macOS has, lacks some of the options.
    """
    import shutil
    import subprocess
    import tempfile

    git = shutil.which("git") or ""
    program = shutil.which("openssl") or os.path.join(os.path.dirname(os.path.dirname(git)), "usr/bin/openssl.exe")
    alternatives = ",".join(f"{'IP' if _is_ip(name) else 'DNS'}:{name}" for name in names)
    with tempfile.TemporaryDirectory(prefix="devserve") as folder:
        settings, key, cert = (os.path.join(folder, name) for name in ("settings", "key", "cert"))
        with open(settings, "w", encoding="ascii") as file:
            file.write(_OPENSSL_SETTINGS.format(alternatives=alternatives))
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
        made = ["-days", str(_CERTIFICATE_DAYS), "-config", settings, "-keyout", key, "-out", cert]
        try:
            command = [program, "req", "-x509", *kind, *made]
            subprocess.run(command, check=True, capture_output=True, timeout=_OPENSSL_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            remedy = "it needs the package cryptography (pip install cryptography) or the program openssl"
            raise DevserveError(f"--cert adhoc makes no certificate: {remedy}; or give --cert FILE") from error
        with open(key, encoding="ascii") as first, open(cert, encoding="ascii") as second:
            return first.read() + second.read()


_OPENSSL_SETTINGS = """\
[req]
distinguished_name = subject
x509_extensions = extensions
prompt = no
[subject]
CN = devserve on this machine
[extensions]
subjectAltName = {alternatives}
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""


def _is_ip(name: str) -> bool:
    """Return whether a name is an address."""
    return ":" in name or name.replace(".", "").isdigit()


# =====================================================================================================================
# 11. ASGI and WebSockets
#
# This room serves an ASGI 3 application on the server of room 10.  `AsgiBridge` is a WSGI callable, so the server and
# the debugger treat it like any other: they call it in the thread of a connection, and an exception that ends the
# request is raised there.  The application itself runs on one event loop, in the main thread, or in a thread of its
# own under `make_server` and where a loop runs already.  asyncio is imported when a bridge is started, because a WSGI
# application must not pay for that.  The room may know foreign code (2), the terminal (3) and the server (10).
#
# A request is one `_HttpRequest`, which is used from two sides.  The connection's thread reads the body from the
# socket into `inbox`, takes what the application has sent out of `outbox`, and lets the server write it.  A task on
# the loop runs the application, whose `receive` takes from `inbox` and whose `send` puts into `outbox`.  Each side
# only adds to a queue and wakes the other: `notify` wakes the application's task, `wake` the thread.  So a request
# that is answered in one piece wakes the loop once and the thread once, and neither takes a lock of ours.  The bytes
# in a queue are counted, as `handed` less `taken` in one direction and `sent` less `written` in the other; above a
# limit, the side that fills the queue waits.
#
# While the thread waits for the application it watches its socket, and so notices when the client disconnects.  A
# client that has ended its side of the connection may have gone, or may still wait for its response.  So it is taken
# for gone only when the application calls `receive`; an application that only sends can finish.  With a debugger, a
# framework's own 500 is held for a moment (`held`), because most frameworks send it and raise the exception
# afterwards; then the debugger's page takes its place.
#
# A `_WebSocket` begins as such a request.  Once the application has accepted it, its thread only waits for its end.
# One thread, the `_WebSocketReader`, reads the messages of all WebSockets into their `inbox`.  Whoever sends a frame
# writes to the socket directly, without waiting; what the client does not take at once waits in `unsent` for the
# reader.
#
# Invariants:
# - Only the thread of a connection reads its socket, waits for it and closes it, except that the reader reads an open
#   WebSocket and waits for it.
# - The loop waits neither for a client nor for a thread.  A lock that the loop takes is held by others only for calls
#   that do not block.  So an application that blocks the loop delays neither a reload nor a page, and a client that
#   takes nothing delays only the `send` of its own WebSocket.
# - A call that the loop is to make goes through `AsgiBridge.post`, and one for the reader through its `jobs`.  What a
#   connection's thread is to do goes through the `outbox` of its request.
#
# How to change: a message that an application may send is a branch in a `send`, and one that it may get is made in a
# `receive`.  An extension of ASGI is offered in the scope, by `_http_scope` or `_WebSocket.__init__`.
#
# Doors: AsgiBridge, RequestContext, is_disconnect, loop_runs_here.
#
# Read first: _Jobs, _HttpRequest.respond, _HttpRequest.next_message, _HttpRequest.send, _WebSocket, _WebSocketReader.
# =====================================================================================================================

if TYPE_CHECKING:
    import asyncio
    import queue
    from collections.abc import MutableMapping

    _Message = MutableMapping[str, Any]

# Bytes that wait between a thread and the loop, in either direction.  Whoever fills a queue stops at the high-water
# mark and goes on at the low one, as with asyncio's transports, so that a stream wakes the loop once for four pieces.
_LOW_WATER = 64 * 1024
_HIGH_WATER = 4 * _LOW_WATER
_FIRST_LOOK = 0.02  # seconds before the thread watches the client too; most responses come sooner and need no watch
_OPEN_SECONDS = 0.1  # that the head of a stream waits for its first piece, or for an exception, which gets a page
_HOLD_SECONDS = 0.5  # that a framework's 500 is held: its exception follows at once, unlike that of background work
_INTERRUPT_LOOK = 0.05  # seconds between moments in which an interrupt can reach a console that waits for the loop
_BEAT_SECONDS = 0.5  # seconds between two looks at the loop; a signal that just missed the main thread waits so long
_BLOCKED_SECONDS = 1.0  # that the loop may take for one step before the terminal warns
_SHUTDOWN_SECONDS = 5.0  # that the application's lifespan shutdown may take
_CANCEL_SECONDS = 0.5  # that a cancelled task may take to end
_BACKGROUND_SECONDS = 2.0  # that a background task may take at the process's end, as its client has its answer
_STOP_SECONDS = _BACKGROUND_SECONDS + 2 * _CANCEL_SECONDS + _SHUTDOWN_SECONDS  # that all of this takes at most
_LEAVE_SECONDS = 0.1  # that a request which a reload has cut has to end by itself, before it is cancelled


class _ClientDisconnected(ConnectionError):
    """Raised by `send` once the client has gone (ASGI 2.4); it is nobody's mistake and is not reported."""

    nobody_listens = True

    def __init__(self) -> None:
        super().__init__("the client has gone")


class _BrokenProtocol(RuntimeError):
    """The application breaks the ASGI protocol.  As a rule it is raised where the application calls `send`."""


class AsgiBridge:
    """An ASGI application as a WSGI application.

    `start` makes the loop and runs the application's lifespan startup; `run_until` runs the loop in the same thread;
    `stop` waits for requests, cancels the tasks that are left and runs the lifespan shutdown; `resume` starts the
    application again after a restart that failed.  Any thread may call `startup_position`, `post`, `stop`, `resume`,
    `after_fork`, `report_later` and the bridge itself; everything else is for the loop's thread alone.
    """

    def __init__(self, app: Any, terminal: Terminal) -> None:
        self.served = app  # the console looks for this name, and shows the application in the place of the bridge
        self.terminal = terminal
        self.report: Callable[[BaseException, Optional[Environ], str], str] = lambda *_: ""  # stores, returns a link
        # Raises the exception by which a signal ends the program; it may have hit any task, and is `error` then.
        self.check: Callable[[Optional[BaseException]], object] = lambda error: None
        self.loop: asyncio.AbstractEventLoop
        self.thread = 0  # in which the loop runs
        self.state: dict[str, Any] = {}  # the lifespan's state; each request gets a copy of it
        self.lifespan = _Lifespan(self)
        self.is_stopping = self.is_stopped = False  # whether the application is being shut down, or has been
        self.requests: dict[_HttpRequest, asyncio.Task[None]] = {}
        self._jobs = _Jobs()  # costs half as much as `call_soon_threadsafe`
        self.new_queue: Any  # `queue.SimpleQueue`; a WSGI application need not import `queue`
        self.nothing_there: Any  # `queue.Empty`
        self.request_id: ContextVar[object]  # of the request that runs in a context, also in a copy in another thread

    # -- the loop

    def start(self) -> None:
        """Make the loop in this thread and start the application.  Raises what the application's startup raises."""
        from queue import Empty, SimpleQueue

        self.request_id = ContextVar("devserve request", default=None)
        self.new_queue, self.nothing_there = SimpleQueue, Empty
        self.loop = _loop_of_thread()
        try:
            self.loop.add_reader(self._jobs.wakeup.here, self._jobs.run)
        except NotImplementedError:  # Windows' loop for pipes
            self._jobs.wake = partial(self.loop.call_soon_threadsafe, self._jobs.run)
        self.thread = threading.get_ident()
        self.loop.run_until_complete(self.lifespan.start())

    def startup_position(self) -> str:
        """Return where the lifespan startup is in the application's own code; any thread may ask."""
        task = self.lifespan.task
        is_waiting = task is not None and not getattr(task.get_coro(), "cr_running", False)
        return _task_position(task) if task and is_waiting else thread_position(self.thread)

    def run_until(self, ended: threading.Event) -> None:
        """Run the loop in this thread until `ended` is set; call `check` every now and then."""
        over, beaten = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._watch_loop, args=(over, beaten), name="devserve loop watch", daemon=True)
        watch.start()
        try:
            while not ended.is_set():
                beat = self.loop.call_later(_BEAT_SECONDS, self.loop.stop)
                try:
                    self.loop.run_forever()
                except (
                    SystemExit,
                    KeyboardInterrupt,
                ) as error:  # let through from any task; only that task is to fail
                    self.check(error)
                    self.terminal.crash(error)
                finally:
                    beat.cancel()  # else it would later end the loop while that runs for `stop`
                    beaten.set()
                self.check(None)
        finally:
            over.set()

    def start_in_thread(self) -> Callable[[], None]:
        """Start the loop in a thread of its own; return the function that stops both.  Raises what `start` raises."""
        from concurrent.futures import Future

        started: Future[None] = Future()
        ended = threading.Event()

        def run() -> None:
            with self._jobs.wakeup:
                try:
                    self.start()
                except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
                    started.set_exception(error)
                else:
                    started.set_result(None)
                    self.run_until(ended)
                finally:
                    self.loop.close()
                    if "reader" in vars(self):
                        self.reader.jobs.post(self.reader.stop)

        def stop() -> None:
            self.stop(0.0)
            ended.set()
            self.post(self.loop.stop)
            thread.join()

        thread = threading.Thread(target=run, name="devserve loop", daemon=True)
        thread.start()
        started.result()
        return stop

    def _watch_loop(self, ended: threading.Event, beaten: threading.Event) -> None:
        """Warn where the loop is when `run_until` does not set `beaten` in time (in a thread of its own)."""
        while not ended.is_set():
            beaten.clear()
            if beaten.wait(_BEAT_SECONDS + _BLOCKED_SECONDS) or ended.is_set():
                continue
            position = thread_position(self.thread)
            if position:
                self.terminal.warn(
                    f"the event loop has been blocked for {_BLOCKED_SECONDS:.0f} s; it is at {position}"
                )
            beaten.wait()

    def post(self, job: Callable[[], object]) -> None:
        """Have the loop call `job`."""
        try:
            self._jobs.post(job)
        except RuntimeError:
            pass  # the loop is closed: the process is about to end

    def after_fork(self) -> None:
        """In a child that the application forked, have it end when it comes back to the loop.

        The child's loop waits for the same file descriptors, and would take its parent's wakeups: no request would be
        answered any more.
        """
        if threading.get_ident() == self.thread:
            self.loop.call_soon(os._exit, 0)
            # From 3.14 on the loop forgets the task that forked, and logs that with locks of the parent's threads.
            self.loop.set_exception_handler(lambda loop, context: os._exit(0))

    @functools.cached_property
    def reader(self) -> _WebSocketReader:
        """The reader of the WebSockets.  The loop makes it for the first one, so that two threads cannot make two."""
        return _WebSocketReader()

    # -- the end

    def stop(self, grace: float) -> None:
        """Wait for each request, at most `grace` seconds from its start; cancel the rest; shut the application down.

        With a grace of 0, at the process's end, a background task, whose client has its answer, still gets a moment.
        It is called in another thread than the loop's, or in that when the loop has ended.  It returns in a bounded
        time, whatever the application does.
        """
        import asyncio
        from concurrent.futures import Future, wait

        try:
            if self.thread == threading.get_ident():
                self.loop.run_until_complete(self._stop(grace))
                return
            end = time.monotonic() + grace + _STOP_SECONDS
            stopping: Optional[Future[None]] = None
            while stopping is None or not stopping.done():
                if not self._is_awake(grace):
                    late = f"the application's shutdown took over {_SHUTDOWN_SECONDS:.0f} s"
                    left = "the event loop is blocked: the application is left without a shutdown"
                    self.terminal.warn(late if self.lifespan.is_ending() else left)
                    return
                if time.monotonic() > end:
                    raise TimeoutError
                stopping = stopping or asyncio.run_coroutine_threadsafe(self._stop(grace), self.loop)
                wait([stopping], _BLOCKED_SECONDS)
            stopping.result()
        except BaseException as error:  # noqa: BLE001 - the process ends or restarts, also if the loop is blocked
            if not self.is_stopped:  # else another thread's `stop`, for the process's end, has cancelled this one
                self.terminal.warn(f"the application did not shut down: {type(error).__name__}")
            if self.thread == threading.get_ident():  # a second Ctrl-C: AnyIO's threads live as long as a task
                call_safely(lambda: self.loop.run_until_complete(_cancel({*self.requests.values()})))

    def _is_awake(self, grace: float) -> bool:
        """Return whether the loop takes a step, in the time that its requests, or the shutdown, have left."""
        is_awake = threading.Event()
        self.post(is_awake.set)
        now = time.perf_counter()
        left = [request.started + grace - now for request in list(self.requests) if not request.is_endless]
        patience = _SHUTDOWN_SECONDS if self.lifespan.is_ending() else max(left, default=grace)
        return is_awake.wait(max(_BLOCKED_SECONDS, patience))

    def resume(self) -> None:
        """Start the application again, as it was stopped for a restart that has failed."""
        import asyncio

        self.is_stopping = self.is_stopped = False
        asyncio.run_coroutine_threadsafe(self.lifespan.start(), self.loop)

    async def _stop(self, grace: float) -> None:
        """Do what `stop` says, on the loop: close WebSockets, give requests their grace, then cancel what is left."""
        import asyncio

        self.is_stopping = True
        tasks, now = dict(self.requests), time.perf_counter()
        for request in tasks:
            request.leave(_GOING_AWAY)
        for request, task in tasks.items():
            is_background = request.phase == _COMPLETE and not grace
            last = request.started + grace
            if request.is_endless or is_background:
                last = now + (_BACKGROUND_SECONDS if is_background else _LEAVE_SECONDS)
            await asyncio.wait([task], timeout=max(0.0, last - time.perf_counter()))
            # The server has warned of a request that it has cut.
            is_told = request.is_endless or (request.connection.is_cut and request.phase != _COMPLETE)
            if (grace or is_background) and not task.done() and not is_told:
                self.terminal.warn(f"cancelled {request.name}: still running after its grace")
            if not task.done() and not request.is_endless and request.phase != _COMPLETE:
                request.give_up()  # else its cancellation would be a crash, with a page for its client
        await _cancel({*self.requests.values()})
        await self.lifespan.stop()
        self.is_stopped = True
        # The application's other tasks are cancelled last, as `asyncio.run` does.
        kept = {asyncio.current_task(), self.lifespan.starting, *self.requests.values()}
        await _cancel(asyncio.all_tasks() - kept)

    # -- requests

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if SOCKET_KEY not in environ or environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            return _HttpRequest(self, environ).respond(start_response)
        refusal, *headers = _refused_handshake(environ)
        if refusal:
            start_response(refusal, [*headers, ("Content-Length", "0")])
            return [b""]
        return _WebSocket(self, environ).respond(start_response)

    def app_context(self) -> RequestContext:
        """Return the context that a console on the application needs; the name is Flask's, by which it is found."""
        return RequestContext(self.loop)

    def report_later(self, error: BaseException, environ: Optional[Environ], what: str) -> None:
        """Print and store a failure that no response can show; in a thread, as an exception's text may be slow.

        At the end nobody would wait for that thread.
        """

        def report() -> None:
            link, _ = call_safely(lambda: self.report(error, environ, what))
            self.terminal.crash(error, what, link or "")

        if self.is_stopping:
            report()
        else:
            threading.Thread(target=report, name="devserve report", daemon=True).start()


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait a moment for their end; one that catches the cancellation and goes on is left behind."""
    import asyncio

    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


def _loop_of_thread() -> asyncio.AbstractEventLoop:
    """Return the loop that the application has set in this thread during its import, or make one by its policy."""
    import asyncio
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about policies, which Python 3.14 deprecates
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = asyncio.new_event_loop()
        if loop.is_closed():
            loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop


def loop_runs_here() -> bool:
    """Return whether a loop runs this code, as in a notebook's cell: no other can run in its thread."""
    return "asyncio" in sys.modules and sys.modules["asyncio"]._get_running_loop() is not None


class _Wakeup:
    """Wakes a thread that waits for a socket.  It is a pair of sockets, since Windows can wait for nothing else.

    The thread that waits makes it, waits for `here` together with its own socket, and closes it.  Any thread may call
    `wake`.
    """

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.there.setblocking(False)

    def __enter__(self) -> _Wakeup:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.here.close()
        self.there.close()

    def wake(self) -> None:
        """Wake the thread; from any thread."""
        try:
            self.there.send(b"\0")
        except OSError:
            pass  # it has been woken often enough, or waits no more

    def clear(self) -> None:
        """Read what `wake` has sent, so that the next wait does not end at once."""
        try:
            self.here.recv(4096)
        except OSError:
            pass  # nothing has been sent, or it is closed


class _Jobs:
    """Calls that other threads want a thread to make.  It is woken once for all that are posted until it looks.

    Any thread may `post`; the thread itself waits for `wakeup`, and calls `run`.
    """

    def __init__(self) -> None:
        self.wakeup = _Wakeup()
        self.wake: Callable[[], object] = self.wakeup.wake
        self.waiting: deque[Callable[[], object]] = deque()
        self.is_woken = False  # whether the thread has been woken and will look

    def post(self, job: Callable[[], object]) -> None:
        """Have the thread call `job`."""
        self.waiting.append(job)
        if not self.is_woken:
            self.is_woken = True
            self.wake()

    def run(self) -> None:
        """Make all calls that wait, in the thread that was woken.  Calls that these post come after other events."""
        self.wakeup.clear()
        self.is_woken = False  # reset before the look: a call that is posted meanwhile wakes the thread again
        for _ in range(len(self.waiting)):
            self.waiting.popleft()()


class RequestContext:
    """What a console needs of a request: its context variables, and the loop on which to run what is awaited.

    `keep` is called on the loop, everything else by the threads of consoles.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.context: Mapping[Any, Any] = {}

    def keep(self) -> None:
        """Keep the context that the caller is in."""
        self.context = copy_context()

    def __enter__(self) -> None:
        for variable, value in self.context.items():
            variable.set(value)

    def __exit__(self, *exc_info: object) -> None:
        pass

    def run_coroutine(self, coroutine: Any) -> Any:
        """Run a coroutine that a console awaits on the loop, in the console's context; an interrupt cancels it."""
        import asyncio
        from concurrent.futures import wait

        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            while not future.done():
                wait([future], _INTERRUPT_LOOK)
            return future.result()
        finally:
            future.cancel()


# -- where in its code a request is, for the terminal's line about one that hangs


def _task_position(task: asyncio.Task[None]) -> str:
    """Return where a task waits in the application's own code; any thread may ask."""
    frames, awaited = [], task.get_coro()
    while awaited is not None:
        for kind in ("cr", "ag", "gi"):  # a coroutine, an asynchronous generator, or an iterator of `__await__`
            if getattr(awaited, f"{kind}_frame", None):
                frames.append(getattr(awaited, f"{kind}_frame"))
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            break
    return app_position(reversed(frames))


# By the type of a call that a pool's thread makes: the attribute that leads to the context in which it is made.
_TO_CONTEXT = {
    "concurrent.futures.thread._WorkItem": "fn",
    "functools.partial": "func",
    "builtin_function_or_method": "__self__",  # a bound `Context.run`, and the same on PyPy
    "method": "__self__",
}


def _pool_position(variable: ContextVar[object], wanted: object) -> str:
    """Return where in the application's own code a thread is that makes a call for the request with a wanted id.

    Frameworks run functions that are no coroutines in a thread of a pool (by anyio, asgiref, or an executor), in a
    copy of the request's context.  Python tells no other thread's context, but a frame of that thread has it as a
    variable.
    """
    for ident, frame in sys._current_frames().items():
        position = thread_position(ident)
        for outer in outer_frames(frame if position else None):
            for value in [] if is_app_code(outer.f_code) else list(outer.f_locals.values()):
                for _ in _TO_CONTEXT:
                    value = getattr(value, _TO_CONTEXT.get(type_name(type(value)), ""), value)
                if isinstance(value, Context) and value.get(variable) is wanted:
                    return position
    return ""


# -- a request

_NOT_STARTED, _STARTED, _COMPLETE = range(3)  # phases of a response, by what the application has sent of it
_EXPECTED = ("'http.response.start'", "'http.response.body'", "nothing, as the answer is complete")  # by phase


class _HttpRequest:
    """One HTTP request, with the thread of its connection on one side and the application on the loop on the other.

    The thread calls `respond` and the methods up to `disconnect`, the loop the others.  An attribute is written by the
    side under whose comment it stands; those of both sides are written in one step, so that they need no lock.
    """

    def __init__(self, bridge: AsgiBridge, environ: Environ) -> None:
        self.bridge = bridge
        self.connection = environ.pop(CONNECTION)
        self.started = self.connection.started  # noted here, as the connection may go on to another request
        self.environ = environ
        self.body, content = self.connection.body, b""
        if environ.pop(SENT_AGAIN, False):  # by a request of the page's, whose connection this is
            self.body, content = None, environ["wsgi.input"].read()
        self.scope = _http_scope(environ, bridge.state)
        # The thread's
        self.has_more = self.body is not None  # whether some of the body has not been given to the loop
        self.record: Optional[Callable[..., object]] = getattr(environ["wsgi.input"], "record", None)  # the debugger's
        self.handed = 0  # bytes of the body that have been given to the loop
        self.written = 0  # bytes of the response that the connection has taken
        self.wake: Callable[[], object] = bool  # wakes the thread while it watches its socket; else it does nothing
        # Both sides'
        self.inbox: deque[tuple[Any, int]] = deque()  # messages for the application, and their sizes
        if not self.has_more:
            self.inbox.append(({"type": "http.request", "body": content, "more_body": False}, 0))
        self.outbox: queue.SimpleQueue[Any] = bridge.new_queue()  # (bytes, more), or an exception
        self.has_ended = False  # the client sends no more: it has gone, or waits for the response; set by the thread
        self.is_gone = False  # the client has gone, or is taken for gone as the application has called `receive`
        self.is_wanted = not self.has_more or not self.body.expected  # else no 100 Continue is sent before `receive`
        self.is_full = False  # `send` waits for the thread, or has waited since the thread last wrote
        # The loop's
        self.sends_on = False  # to a client that has gone
        self.is_told = False  # a `receive` says that the client has gone, or waits to say it
        self.id = object()
        self.has_debugger = ON_EXCEPTION in environ  # its page takes the place of a framework's own 500
        self.context = RequestContext(bridge.loop)
        if self.has_debugger:
            environ[PRESERVE_CONTEXT](self.context)
        self.phase = _NOT_STARTED
        self.head: _ResponseStart  # of the response
        self.is_bodiless = False  # the response has no body, whatever the application sends
        self.sent = 0  # bytes of the response's body that the application has sent
        self.taken = 0  # bytes of the request's body that the application has received
        self.held: Optional[list[tuple[Any, bool]]] = None  # pieces of a response that an exception may follow
        self.waiters: list[asyncio.Future[None]] = []  # of each `receive` and `send` that waits for `notify`

    @property
    def name(self) -> str:
        """The name of the request on the terminal."""
        return f"{self.environ['REQUEST_METHOD']} {escape_controls(self.environ['REQUEST_URI'])}"

    # -- in the thread

    def respond(self, start_response: StartResponse) -> Iterable[bytes]:
        """Have the application called, and return its response as soon as there is something to send."""
        return self.answer(self.first_message(), start_response)

    def first_message(self) -> Any:
        """Have the application called, with what has come of the body; return the first piece that it sends."""
        self.connection.waits = False
        if self.has_more and self.is_wanted and self.connection.buffer:
            self.take_in()
        self.bridge.post(self.begin)
        return self.next_message()

    def answer(self, first: tuple[Any, bool], start_response: StartResponse) -> Iterable[bytes]:
        """Return the response as an iterable of WSGI; `first` is its first piece, and whether more follow."""
        piece, more = first
        with contextlib.suppress(ConnectionError):  # of which the next look tells
            while self.has_more and self.may_read() and self.take_in():
                pass  # if the end of an unread body has come, the connection can be kept, and the head says so
        write = start_response(self.head.status, [*self.head.headers])
        if more:
            return self.pieces(piece, write)
        return [piece]

    def pieces(self, piece: bytes, write: Callable[[bytes], object]) -> Iterator[bytes]:
        """Yield the pieces of a response.  It is closed early when the client has gone, or wants none (HEAD)."""
        more = True
        try:
            if not piece:
                write(b"")  # sends the head alone, as the first piece may take a while
            while not (self.is_bodiless and self.is_endless):
                yield piece
                self.note_written(len(piece))
                if not more:
                    break
                piece, more = self.next_message()
        finally:
            try:
                # If the client wants no body, the application sends on all the same, until the client asks for more.
                # An event stream ends, as that request would wait for the stream's next piece.
                while more and self.is_bodiless and not (self.is_endless or self.has_ended or self.connection.buffer):
                    self.note_written(len(piece))  # though it is left out, or `send` would wait for it
                    piece, more = self.next_message()
                    if self.may_read():
                        self.take_in()
            finally:
                if more:
                    self.disconnect()

    def next_message(self) -> Any:
        """Return the next piece of the response, and whether more follow.  Raises the application's exception.

        Meanwhile the body is read as the application takes it, and the client is watched.
        """
        try:
            message = self.watch_client() if self.has_more else self.outbox.get(timeout=_FIRST_LOOK)
        except self.bridge.nothing_there:
            message = self.watch_client()
        if isinstance(message, BaseException):
            raise message
        return message

    def watch_client(self) -> Any:
        """Return the next item of `outbox`; meanwhile take what comes from the client.  Raises ConnectionError."""
        try:
            with _Wakeup() as wakeup:
                self.wake = wakeup.wake
                while self.outbox.empty():
                    if self.is_gone:
                        self.connection.read_ahead()  # raises the error that stands for the connection's end
                    reads = self.may_read()
                    if not (reads and self.take_in()):
                        self.connection.watch(wakeup.here, reads=reads, is_due=self.has_more)
                        wakeup.clear()
            return self.outbox.get()
        except BaseException:  # the client has gone, or what it sends is not HTTP
            self.disconnect()
            raise
        finally:
            self.wake = bool

    def may_read(self) -> bool:
        """Return whether to read: the body as fast as the application takes it, then to see the client's end."""
        if self.has_more:
            return self.is_wanted and self.handed - self.taken < _HIGH_WATER
        return not self.has_ended and len(self.connection.buffer) < _LOW_WATER

    def take_in(self) -> bool:
        """Take what the client has sent; return whether there was something.  Raises ConnectionError at its end."""
        try:
            if not self.has_more:
                self.connection.read_ahead()  # the next request, if there is one; the client's end may come after it
                return True
            piece = self.body.read(min(self.body.unread, _HIGH_WATER) if self.body.unread > 0 else _LOW_WATER)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            if self.has_more or not getattr(error, "has_ended", False):
                raise
            self.has_ended = True
            self.bridge.post(self.notify)
        else:
            self.has_more = bool(self.body.unread)
            if self.record:
                self.record(piece, ends=not self.has_more)
            self.hand_in({"type": "http.request", "body": piece, "more_body": self.has_more}, len(piece))
        return True

    def hand_in(self, message: Any, size: int) -> None:
        """Have the application receive a message that counts for so many bytes."""
        self.handed += size
        self.inbox.append((message, size))
        self.bridge.post(self.notify)

    def note_written(self, size: int) -> None:
        """Note that the connection has taken a piece of the response; have `send` go on if it waits for that."""
        self.written += size
        if self.is_full and self.sent - self.written <= _LOW_WATER:
            self.is_full = False
            self.bridge.post(self.notify)

    def disconnect(self) -> None:
        """Note that the client has gone, and have the application told at its next `receive` or `send`."""
        if not self.is_gone:
            self.is_gone = True
            self.bridge.post(self.notify)

    # -- on the loop

    def begin(self) -> None:
        """Start a task that calls the application for this request."""
        self.bridge.requests[self] = task = self.bridge.loop.create_task(self.run())
        self.connection.position = lambda: _task_position(task) or _pool_position(self.bridge.request_id, self.id)

    async def run(self) -> None:
        """Call the application, and report how it has ended."""
        error: Optional[BaseException] = None
        self.bridge.request_id.set(self.id)
        try:
            await self.bridge.served(self.scope, self.receive, self.send)
        except BaseException as failure:  # noqa: BLE001 - whatever it raises is raised in the connection's thread
            self.bridge.check(failure)
            error = failure
            self.context.keep()
        finally:
            del self.bridge.requests[self]
        self.finish(error)
        error = None  # else it keeps itself, by its traceback, and with it a generator whose clean-up is due

    def finish(self, error: Optional[BaseException]) -> None:
        """Tell the thread how the application has ended, or the terminal when the thread no longer waits for that."""
        if self.held is not None and error is None:
            self.release()
        is_answered = self.phase == _COMPLETE and self.held is None
        if self.is_gone or is_answered:
            when = "after its answer" if is_answered else "when its client had gone"
            if error is None or is_disconnect(error):
                return
            if self.is_told and self.has_more and not is_answered:  # it took what had come for the whole body
                self.bridge.terminal.warn(f"{self.name} failed on a body that broke off: {type_name(type(error))}")
            else:
                self.bridge.report_later(error, self.environ, f"{self.name} failed {when}")
        elif error is not None:
            self.put(error)
        else:
            what = "before it had answered" if self.phase == _NOT_STARTED else "in the middle of its answer"
            self.put(_BrokenProtocol(f"the application returned {what}: no send of {_EXPECTED[self.phase]}"))

    async def next_incoming(self) -> Any:
        """Wait for the next message of `inbox`; return None when the client has gone or the response is sent."""
        while not self.inbox:
            if self.has_ended and self.phase != _COMPLETE:
                self.is_gone = True  # an application that asks for more is not about to respond
                self.wake()
            self.is_told = self.is_gone
            if self.is_gone or self.phase == _COMPLETE:
                return None
            if not self.is_wanted:
                self.is_wanted = True
                self.wake()
            self.is_told = True
            try:
                await self.change()
            finally:
                self.is_told = self.is_gone
        message, size = self.inbox.popleft()
        left = self.handed - self.taken
        self.taken += size
        if left - size < _LOW_WATER <= left:
            self.wake()  # the thread may have stopped reading
        return message

    async def receive(self) -> _Message:
        """Serve as the application's `receive`."""
        return await self.next_incoming() or {"type": "http.disconnect"}

    async def send(self, message: _Message) -> None:
        """Serve as the application's `send`.

        A message that breaks the protocol raises an error here, so that the traceback shows who has sent it.
        """
        if self.is_gone:
            await self.drop()
            return
        kind = message["type"]
        if self.phase == _NOT_STARTED and kind == "http.response.start":
            self.start(message)
        elif self.phase == _STARTED and kind == "http.response.body":
            self.add(_checked_bytes(message), bool(message.get("more_body", False)))
        else:
            raise _BrokenProtocol(f"the application sent {kind!r}; expected is {_EXPECTED[self.phase]}")
        if self.phase != _COMPLETE and self.sent - self.written > _HIGH_WATER:
            await self.drain()  # not after the last piece, as nothing follows it

    def start(self, message: _Message) -> None:
        """Begin the response; of one with an end nothing is sent before the first piece of its body is known."""
        self.head = _response_start(message["status"], _header_pairs(message))
        self.is_bodiless = self.scope.get("method") == "HEAD" or message["status"] in (204, 304)
        if self.has_debugger:
            self.context.keep()
            self.held = [] if message["status"] >= 500 else None
        if self.head.endless_type:
            self.connection.note_endless(self.head.endless_type)
            self.bridge.loop.call_later(_OPEN_SECONDS, self.open_stream)
        self.phase = _STARTED

    def add(self, body: bytes, more: bool) -> None:
        """Send a piece of the response's body.  Raises an error if it does not fit the declared length."""
        size, length = self.sent + len(body), -1 if self.is_bodiless else self.head.length
        if 0 <= length < size or (size < length and not more):
            raise _BrokenProtocol(f"the application sent {size} bytes and declared a Content-Length of {length}")
        self.sent = size
        if not more:
            self.phase = _COMPLETE
            self.notify()
        if self.held is None:
            self.put((body, more))
            return
        if not self.held:
            self.bridge.loop.call_later(_HOLD_SECONDS, self.release)
        self.held.append((body, more))

    def open_stream(self) -> None:
        """Send the head of a response without end that has no piece yet: by it an EventSource is open."""
        if self.phase == _STARTED and not self.sent and self.held is None:
            self.put((b"", True))

    def release(self) -> None:
        """Send the response that was held, since no exception has followed."""
        held, self.held = self.held, None
        for item in held or ():
            self.put(item)

    async def drain(self) -> None:
        """Wait until the connection has taken most of what was sent."""
        # Set before each look at the counts, as the thread resets it when it has written; several tasks may wait here.
        self.is_full = True
        while self.sent - self.written > _LOW_WATER and self.held is None:
            if self.is_gone:
                await self.drop()
                return
            await self.change()
            self.is_full = True

    async def drop(self) -> None:
        """Drop what is sent to a client that has gone; raise `_ClientDisconnected` unless `receive` tells of that.

        As Starlette waits there beside a stream, and runs background tasks after it if nothing was raised.
        """
        import asyncio

        if not self.is_told:
            raise _ClientDisconnected
        self.sends_on = True
        await asyncio.sleep(0)  # what sends without end may never wait for anything else

    def put(self, item: Any) -> None:
        """Put an item into `outbox`, and wake the thread if it watches its socket."""
        self.outbox.put(item)
        self.wake()

    def notify(self) -> None:
        """Have the `receive` and `send` that wait look again."""
        for waiter in self.waiters:
            if not waiter.done():  # else it was cancelled, or has been notified before
                waiter.set_result(None)

    async def change(self) -> None:
        """Wait until `notify` is called."""
        waiter = self.bridge.loop.create_future()
        self.waiters = [waiter, *(other for other in self.waiters if not other.done())]
        await waiter

    def leave(self, code: int) -> None:
        """End a response that has no foreseeable end, as the application is to be shut down."""
        if self.is_endless:
            self.give_up()

    def give_up(self) -> None:
        """End the connection; whatever the application does now, nothing of this request is sent."""
        self.connection.cut()  # as a reload has done before; else its thread, once woken, finds the client there
        self.disconnect()
        self.wake()

    @property
    def is_endless(self) -> bool:
        """Whether the response has no foreseeable end, so that a reload does not wait for it but cuts it."""
        return self.sends_on or (self.phase == _STARTED and bool(self.head.endless_type))


# -- a WebSocket (RFC 6455)

_MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes of a message, inflated; a longer one is refused (1009)
_MESSAGE_COST = 64  # bytes that a message in the queue counts for besides its own, as many may be empty
_PING_SECONDS = 20.0  # from one ping to the next, in which the client must have sent or taken something
_ANSWER_SECONDS = 1.0  # that the application has to answer what came before a frame that breaks the protocol
_SMALL_FRAMES = 2048  # bytes read in one turn: thousands of empty pings would keep the reader from other clients
_CLOSE_SECONDS = 10.0  # that the client has for its part of the closing handshake
_DEFLATED_FROM = 128  # bytes; deflating a smaller message costs more than it saves
_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")
_KEY_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_CONTINUATION, _TEXT_FRAME, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10  # opcodes, section 5.2
_NORMAL, _GOING_AWAY, _PROTOCOL_ERROR, _NO_CODE, _ABNORMAL = 1000, 1001, 1002, 1005, 1006  # section 7.4.1
_BAD_DATA, _TOO_BIG, _INTERNAL_ERROR, _SERVICE_RESTART = 1007, 1009, 1011, 1012
_OPEN = 3  # a phase besides those of a response: the application has accepted the WebSocket


class _WebSocketError(Exception):
    """The client breaks the protocol.  The arguments are code and reason with which the connection is closed."""


class _WebSocket(_HttpRequest):
    """A request that becomes a WebSocket if the application accepts it; if not, it has a response like any other.

    Once it is accepted, the reader calls `advance`, which reads messages into `inbox` and writes what waits in
    `unsent`.  A frame is sent by `write`, in any thread: at once if nothing waits in `unsent`, otherwise after that.
    The head that accepts the WebSocket is put into `unsent` first, so that no frame can overtake it.

    To end it, any thread calls `close`; no frame is sent after the first close frame.  Then the reader waits for the
    client's close frame, unless that has come already, the client has broken the protocol, or the application has
    failed.  `end` tells the application of the end, with the code of the first call.
    """

    def __init__(self, bridge: AsgiBridge, environ: Environ) -> None:
        super().__init__(bridge, environ)
        offered = [name.strip() for name in environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",")]
        self.scope.update(
            asgi={"version": "3.0", "spec_version": "2.4"},
            type="websocket",
            scheme="wss" if self.scope["scheme"] == "https" else "ws",
            subprotocols=[name for name in offered if name],
            extensions={"websocket.http.response": {}},
        )
        del self.scope["method"]
        self.deflate_answer, self.window = _negotiate_deflate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))
        # The reader's
        self.socket = environ[SOCKET_KEY]
        self.frames = _MessageReader(may_deflate=self.window > 0)
        self.deadline = time.monotonic() + _PING_SECONDS  # when to ping next, or when to end the connection
        self.refusal: Optional[_WebSocketError] = None  # set when the client has broken the protocol
        # Both sides'
        self.inbox = deque([({"type": "websocket.connect"}, 0)])  # the last one may be a `_WebSocketError`
        self.sending = threading.Lock()  # held while something is sent or put into `unsent`, and never while waiting
        self.unsent = bytearray()  # what the client has not taken yet
        self.is_silent = False  # the client has neither sent nor taken anything since the last ping
        self.is_closing = False  # our close frame has been sent, or is the last in `unsent`
        self.reads_no_more = False  # the client has closed, or has broken the protocol, or the application has failed
        self.failure: Optional[BaseException] = None  # the exception that has ended the application, or is our mistake
        self.code, self.reason = 0, ""  # why the connection has ended, for the application
        # The loop's
        self.reader: _WebSocketReader  # set when the WebSocket is open

    # -- in the thread

    def respond(self, start_response: StartResponse) -> Iterable[bytes]:
        first = self.first_message()
        if first is not None:
            return self.answer(first, start_response)
        self.connection.leave = partial(self.leave, _SERVICE_RESTART)
        self.socket.settimeout(0.0)
        self.reader.carry(self)
        self.connection.leave = None
        with self.sending:
            self.is_closing = True  # so that nobody uses the socket any more: the server is about to close it
        self.end(_ABNORMAL)
        if self.failure is not None:
            del self.environ[SOCKET_KEY]  # so that the ConnectionError of a database is not taken for this client's
            raise self.failure
        return []

    # -- in the reader

    def advance(self) -> Optional[tuple[bool, bool]]:
        """Read and write what is possible without waiting; return whether to wait for reading, and for writing.

        Returns None when both sides have closed.  Raises OSError.
        """
        if self.deadline <= time.monotonic():
            self.keep_time()
        if self.unsent:
            with self.sending:
                self.is_silent = not self.send_unsent() and self.is_silent
        if self.may_receive() and self.receive_frames() and self.socket.has_input:
            self.wake()  # a selector does not see what TLS has decrypted already
        if self.is_closing and self.reads_no_more and not self.unsent:
            return None
        return self.may_receive(), bool(self.unsent)

    def may_receive(self) -> bool:
        """Return whether to read: when the application has taken most of what came, or only a close frame counts."""
        return not self.reads_no_more and (self.is_closing or self.handed - self.taken < _LOW_WATER)

    def receive_frames(self) -> bool:
        """Take what the client has sent; return whether there was something."""
        try:
            data = self.socket.recv(min(max(self.frames.left, _SMALL_FRAMES), _LOW_WATER))
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionAbortedError("the client closed the connection")
        self.is_silent = False
        try:
            for opcode, payload in self.frames.feed(data):
                self.take(opcode, payload)
                if self.reads_no_more:
                    break
        except _WebSocketError as error:
            code, reason = error.args
            self.bridge.terminal.warn(f"{self.name}: the client broke the WebSocket protocol: {reason} ({code})")
            self.refusal, self.reads_no_more, self.deadline = error, True, time.monotonic() + _ANSWER_SECONDS
            self.hand_in(error, 0)  # the application answers what came before it
        return True

    def take(self, opcode: int, payload: Any) -> None:
        """Take a message or a control frame.  After our close frame, only the client's close frame counts."""
        if opcode == _CLOSE:
            self.reads_no_more = True
            code, reason = _parse_close(payload)
            self.end(code, reason)
            self.write(_CLOSE, _close_payload(code))
        elif opcode == _PING and len(self.unsent) < _LOW_WATER:  # above that its sender reads nothing, no pong either
            self.write(_PONG, payload)
        elif opcode in (_TEXT_FRAME, _BINARY) and not self.is_closing:
            message = {"type": "websocket.receive", "text" if opcode == _TEXT_FRAME else "bytes": payload}
            self.hand_in(message, len(payload) + _MESSAGE_COST)

    def keep_time(self) -> None:
        """Do what is due at the deadline.  Raises TimeoutError."""
        if self.is_closing:
            raise TimeoutError("the client does not close")
        self.deadline = time.monotonic() + _PING_SECONDS
        if self.refusal is not None:
            self.close(*self.refusal.args)
        elif self.is_silent and (self.unsent or (self.may_receive() and not self.receive_frames())):
            # We have looked for input once more, as it may be this machine that slept, and not the client.
            self.close(_INTERNAL_ERROR, "no pong has come")
        else:
            self.is_silent = True
            self.write(_PING, os.urandom(4))

    # -- in any thread

    def write(self, opcode: int, payload: bytes) -> None:
        """Send a frame without waiting, a long message deflated; after a close frame, send nothing.

        What the client does not take at once is left to the reader, and so is every frame while something is left.
        """
        if self.window and opcode in (_TEXT_FRAME, _BINARY) and len(payload) >= _DEFLATED_FROM:
            frame = _frame(opcode, _deflated(payload, self.window), 0xC0)
        else:
            frame = _frame(opcode, payload)
        with self.sending:
            if self.is_closing:
                return
            if opcode == _CLOSE:
                self.is_closing, self.deadline = True, time.monotonic() + _CLOSE_SECONDS
            self.sent += len(frame)
            is_first = not self.unsent
            self.unsent += frame
            if is_first:
                self.send_unsent()
            if (is_first and self.unsent) or self.is_closing:  # else nothing is left, or the reader knows of it
                self.wake()

    def send_unsent(self) -> int:
        """Send as much of `unsent` as the client takes, and return the number of bytes; the caller holds `sending`."""
        sent = 0
        try:
            while self.unsent:
                count = self.socket.send_some(self.unsent[:_HIGH_WATER], 0.0)
                del self.unsent[:count]
                sent += count
        except BlockingIOError:
            pass
        except OSError:  # the client has gone
            self.unsent.clear()
            self.is_closing = self.reads_no_more = True
        self.note_written(sent)
        return sent

    def close(self, code: int, reason: str = "") -> None:
        """Tell the application of the end, and send a close frame unless one has been."""
        self.end(code, reason)
        self.write(_CLOSE, _close_payload(code, reason))

    def end(self, code: int, reason: str = "") -> None:
        """Tell the application, at its next call, that the connection has ended; the first one counts."""
        if not self.is_gone:
            if not self.code:
                self.code, self.reason = code, reason
            self.disconnect()

    @property
    def is_endless(self) -> bool:
        return self.phase == _OPEN or super().is_endless

    def leave(self, code: int) -> None:
        """Close an open connection with this code, as the application or the process is to end."""
        if self.phase == _OPEN:
            self.close(code)

    # -- on the loop

    def finish(self, error: Optional[BaseException]) -> None:
        if self.phase != _OPEN or self.is_gone:
            super().finish(error)
        else:
            if error is not None:
                self.failure, self.reads_no_more = error, True
            self.write(_CLOSE, _close_payload(_NORMAL if error is None else _INTERNAL_ERROR))

    async def receive(self) -> _Message:
        message = await self.next_incoming()
        if isinstance(message, _WebSocketError):
            self.close(*message.args)
            message = None
        return message or {"type": "websocket.disconnect", "code": self.code or _ABNORMAL, "reason": self.reason}

    async def send(self, message: _Message) -> None:
        kind = message["type"]
        if self.phase in (_NOT_STARTED, _STARTED) and kind.startswith("websocket.http.response."):
            await super().send({**message, "type": kind.partition(".")[2]})
        elif self.is_gone:
            raise _ClientDisconnected
        elif self.phase == _NOT_STARTED and kind == "websocket.accept":
            head = _handshake(self.environ["HTTP_SEC_WEBSOCKET_KEY"], message, self.deflate_answer)
            self.phase = _OPEN
            self.reader = self.bridge.reader
            self.unsent += head  # the reader sends it; every frame until then waits behind it
            self.sent += len(head)
            self.put(None)
        elif self.phase == _NOT_STARTED and kind == "websocket.close":
            await super().send({"type": "http.response.start", "status": 403})
            await super().send({"type": "http.response.body"})
        elif self.phase == _OPEN and kind == "websocket.close":
            self.code, self.reason = _checked_code(message), message.get("reason") or ""
            self.write(_CLOSE, _close_payload(self.code, self.reason))
            self.phase = _COMPLETE
            self.notify()
        elif self.phase == _OPEN and kind == "websocket.send":
            self.write(*_checked_message(message))
            if self.sent - self.written > _HIGH_WATER:
                await self.drain()
        else:
            expected = {_NOT_STARTED: "'websocket.accept' or 'websocket.close'", _OPEN: "'websocket.send' or '…close'"}
            what = expected.get(self.phase, "nothing, as the WebSocket is closed")
            raise _BrokenProtocol(f"the application sent {kind!r}; expected is {what}")


class _WebSocketReader:
    """The thread that reads all open WebSockets, and writes what waits for their clients.

    With a thread for each, every message would take the interpreter's lock from the loop several times, which costs
    three times the processor's time when thirty clients talk at once.  Any thread may call `carry` and post `jobs`;
    everything else is for the reader's own thread.
    """

    def __init__(self) -> None:
        import selectors

        self.jobs = _Jobs()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.jobs.wakeup.here, selectors.EVENT_READ, self.jobs.run)
        self.events: dict[_WebSocket, int] = {}  # the open WebSockets, and what the selector waits for of each
        self.is_stopped = False
        threading.Thread(target=self.run, name="devserve WebSockets", daemon=True).start()

    def carry(self, websocket: _WebSocket) -> None:
        """Read and write a WebSocket until it has ended."""
        websocket.wake = partial(self.jobs.post, partial(self.advance, websocket))
        self.jobs.post(partial(self.begin, websocket))
        websocket.outbox.get()

    def run(self) -> None:
        """Wait for what comes first, a client, a job or a deadline, and deal with it."""
        with self.jobs.wakeup, self.selector:
            while not self.is_stopped:
                first = min((websocket.deadline for websocket in self.events), default=None)
                for key, _ in self.selector.select(None if first is None else first - time.monotonic()):
                    key.data()
                now = time.monotonic()
                for websocket in [each for each in self.events if each.deadline <= now]:
                    self.advance(websocket)
        self.jobs.wake = self.jobs.run  # from now on, a thread that posts a job makes the call itself
        self.jobs.run()

    def begin(self, websocket: _WebSocket) -> None:
        """Begin to read a WebSocket."""
        self.events[websocket] = 0
        if self.is_stopped:
            self.end(websocket)
        self.advance(websocket)

    def advance(self, websocket: _WebSocket) -> None:
        """Have a WebSocket read and write what is possible, and wait for what it says."""
        if websocket not in self.events:
            return  # it was woken after its end
        waits = None
        try:
            waits = websocket.advance()
        except OSError:
            pass  # the client has left without a close frame
        except BaseException as error:  # noqa: BLE001 - raised again in the connection's thread
            websocket.failure = error
        if waits is None:
            self.end(websocket)
        else:
            self.wait_for(websocket, *waits)

    def wait_for(self, websocket: _WebSocket, reads: bool, writes: bool) -> None:
        """Wait until a socket can be read or written; for neither, until the WebSocket is woken."""
        import selectors

        events = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes
        if events == self.events[websocket]:
            return
        sock = websocket.connection.sock
        if self.events[websocket]:
            self.selector.unregister(sock)
        if events:
            self.selector.register(sock, events, partial(self.advance, websocket))
        self.events[websocket] = events

    def end(self, websocket: _WebSocket) -> None:
        """Read a WebSocket no more, and let its connection's thread go on."""
        self.wait_for(websocket, reads=False, writes=False)
        del self.events[websocket]
        websocket.outbox.put(None)

    def stop(self) -> None:
        """End all open WebSockets and the thread, as the server has ended."""
        self.is_stopped = True
        for websocket in [*self.events]:
            self.end(websocket)


def _checked_message(message: _Message) -> tuple[int, bytes]:
    """Return opcode and payload of a `websocket.send`."""
    text, data = message.get("text"), message.get("bytes")
    if isinstance(text, str) and data is None:
        return _TEXT_FRAME, text.encode()
    if isinstance(data, (bytes, bytearray, memoryview)) and text is None:
        return _BINARY, bytes(data)
    raise TypeError(f"'websocket.send' needs either text, a str, or bytes, not {text!r:.40} and {data!r:.40}")


def _checked_code(message: _Message) -> int:
    """Return the code of a `websocket.close`."""
    code = message.get("code", _NORMAL)
    if not isinstance(code, int) or not _is_close_code(code):
        raise ValueError(f"{code!r} is no code with which a WebSocket may be closed: 1000, or 3000 to 4999")
    return int(code)


def _is_close_code(code: int) -> bool:
    """Return whether a close frame may have this code (RFC 6455 section 7.4, and what IANA has added)."""
    return (1000 <= code <= 1014 and code not in (1004, _NO_CODE, _ABNORMAL)) or 3000 <= code <= 4999


def _close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a close frame; a control frame has 125 bytes at most (section 5.5)."""
    text = reason.encode()[:123].decode("utf-8", "ignore")
    return b"" if code == _NO_CODE else code.to_bytes(2, "big") + text.encode()


def _parse_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame."""
    if not payload:
        return _NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not _is_close_code(code):
        raise _WebSocketError(_PROTOCOL_ERROR, f"a close frame with the code {code}")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise _WebSocketError(_BAD_DATA, "a close frame whose reason is not UTF-8") from None


def _refused_handshake(environ: Environ) -> Sequence[Any]:
    """Return the status by which a handshake is refused, "" for none, and headers (RFC 6455 section 4.2.1)."""
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":  # section 4.4, and RFC 9110 section 15.5.22
        return "426 Upgrade Required", ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")
    try:
        key = binascii.a2b_base64(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""))
    except ValueError:
        key = b""
    has_body = environ[CONNECTION].body is not None
    return ["400 Bad Request" if len(key) != 16 or environ["REQUEST_METHOD"] != "GET" or has_body else ""]


def _handshake(key: str, message: _Message, deflate_answer: str) -> bytes:
    """Return the head that accepts a WebSocket, with the application's subprotocol and headers."""
    from hashlib import sha1

    digest = sha1(key.strip().encode("latin-1") + _KEY_SUFFIX).digest()
    accepted = binascii.b2a_base64(digest, newline=False)
    headers = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", accepted)]
    if message.get("subprotocol"):
        headers.append((b"sec-websocket-protocol", message["subprotocol"].encode("latin-1")))
    if deflate_answer:
        headers.append((b"sec-websocket-extensions", deflate_answer.encode("latin-1")))
    own = _header_pairs(message)
    _response_start(200, own)  # which checks them
    lines = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, *own))
    return b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % lines


# -- frames and messages


def _frame(opcode: int, payload: bytes, first: int = 0x80) -> bytes:
    """Return a whole frame; a server's are not masked (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first | opcode, 126, size) + payload
    return struct.pack("!BBQ", first | opcode, 127, size) + payload


def _unmask(data: bytes, mask: bytes, start: int) -> bytes:
    """Return payload without its mask; `start` is its position in its frame.

    It is computed as one large number, since a loop over bytes is slow.
    """
    mask = mask[start % 4 :] + mask[: start % 4]
    size = len(data)
    whole = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ whole).to_bytes(size, "little")


class _MessageReader:
    """Divides a stream of bytes into messages and control frames.

    A mistake raises `_WebSocketError` at the first byte that shows it.  Only the reader's thread uses it.
    """

    def __init__(self, *, may_deflate: bool) -> None:
        self.may_deflate = may_deflate
        self.data = bytearray()  # bytes that have come and are not parsed yet
        self.first, self.mask = 0, b""  # of the frame whose head came last: its first byte and its mask
        self.position = 0  # bytes of its payload that have been taken
        self.left = -1  # bytes of its payload that are still to come; -1 when a head comes next
        self.message: Optional[_IncomingMessage] = None  # control frames may come between its fragments

    def feed(self, data: bytes) -> Iterator[tuple[int, Any]]:
        """Yield opcode and payload of each message and control frame that is whole with `data`; a text is a str.

        The payload of a message is taken as it comes, before its frame is complete, since a text that is not UTF-8
        must be refused early.
        """
        self.data += data
        while self.left >= 0 or self.take_head():
            opcode = self.first & 15
            if len(self.data) < (self.left if opcode & 8 else min(1, self.left)):
                break
            piece = _unmask(bytes(self.data[: self.left]), self.mask, self.position)
            del self.data[: self.left]
            self.position += len(piece)
            self.left = self.left - len(piece) or -1
            if opcode & 8:
                yield opcode, piece
                continue
            message = self.message = self.message or _IncomingMessage(opcode, is_deflated=bool(self.first & 0x40))
            ends = self.left < 0 and self.first >= 0x80
            message.add(piece, ends=ends)
            if ends:
                self.message = None
                yield message.opcode, message.whole()

    def take_head(self) -> bool:
        """Take the head of the next frame, and return whether it has come."""
        if len(self.data) < 2:
            return False
        first, second = self.data[:2]
        self.check_head(first, second)
        length, end = second & 127, {126: 4, 127: 10}.get(second & 127, 2)
        if len(self.data) < end:
            return False
        if end > 2:
            length = int.from_bytes(self.data[2:end], "big")
            if length < (126 if end == 4 else 65536) or length >> 63:
                raise _WebSocketError(_PROTOCOL_ERROR, "a length that is not written in the shortest way")
        if length + (self.message.size if self.message and not first & 8 else 0) > _MESSAGE_LIMIT:
            raise _WebSocketError(_TOO_BIG, f"a message of over {_MESSAGE_LIMIT:,} bytes")
        if len(self.data) < end + 4:
            return False
        self.first, self.mask, self.left, self.position = first, bytes(self.data[end : end + 4]), length, 0
        del self.data[: end + 4]
        return True

    def check_head(self, first: int, second: int) -> None:
        """Refuse a frame by its first two bytes (RFC 6455 section 5.2, RFC 7692 section 6)."""
        opcode = first & 15
        if first & 0x30 or (first & 0x40 and not (self.may_deflate and opcode in (_TEXT_FRAME, _BINARY))):
            raise _WebSocketError(_PROTOCOL_ERROR, "reserved bits")
        if opcode not in (_CONTINUATION, _TEXT_FRAME, _BINARY, _CLOSE, _PING, _PONG):
            raise _WebSocketError(_PROTOCOL_ERROR, f"the opcode {opcode}")
        if not second & 0x80:
            raise _WebSocketError(_PROTOCOL_ERROR, "a frame without a mask")
        if opcode & 8 and (second & 127 > 125 or not first & 0x80):
            raise _WebSocketError(_PROTOCOL_ERROR, "a control frame that is too long or fragmented")
        if not opcode & 8 and (opcode == _CONTINUATION) != (self.message is not None):
            raise _WebSocketError(_PROTOCOL_ERROR, "fragments of two messages")


class _IncomingMessage:
    """A message that is not complete yet.  It inflates and decodes each piece, and refuses more than the limit."""

    def __init__(self, opcode: int, *, is_deflated: bool) -> None:
        self.opcode = opcode
        self.size = 0  # bytes that it has so far, inflated
        self.parts: list[Any] = []
        self.decoder = _UTF8_DECODER() if opcode == _TEXT_FRAME else None
        self.inflater = None
        if is_deflated:
            import zlib

            self.inflater = zlib.decompressobj(-15)

    def add(self, piece: bytes, *, ends: bool) -> None:
        """Add a piece of payload, the last one if it `ends` the message."""
        piece = self.inflate(piece, ends=ends) if self.inflater else piece
        self.size += len(piece)
        if self.size > _MESSAGE_LIMIT:
            raise _WebSocketError(_TOO_BIG, f"a message of over {_MESSAGE_LIMIT:,} bytes")
        try:
            self.parts.append(self.decoder.decode(piece, ends) if self.decoder else piece)
        except UnicodeDecodeError:
            raise _WebSocketError(_BAD_DATA, "a text that is not UTF-8") from None

    def inflate(self, piece: bytes, *, ends: bool) -> bytes:
        """Return inflated payload, no more than the limit and one byte (RFC 7692 section 7.2.2)."""
        import zlib

        assert self.inflater is not None
        room = _MESSAGE_LIMIT + 1 - self.size
        try:
            data = self.inflater.decompress(piece, room)
            if ends and len(data) < room:
                data += self.inflater.decompress(self.inflater.unconsumed_tail + b"\0\0\xff\xff", room - len(data))
        except zlib.error:
            raise _WebSocketError(_BAD_DATA, "a message that cannot be inflated") from None
        return data

    def whole(self) -> Union[str, bytes]:
        """Return the message."""
        return ("" if self.decoder else b"").join(self.parts)


# -- permessage-deflate (RFC 7692)
#
# Each message is deflated by itself, in both directions, so that nothing is kept from one message to the next.  Our
# answer to an offer asks for that ("no context takeover"), as it may whatever the offer says (section 7.1.1).

_OFFERED = {  # the parameters of an offer and their values (section 7.1); zlib has no window of 8 bits to deflate by
    "server_no_context_takeover": "",
    "client_no_context_takeover": "",
    "server_max_window_bits": "9|1[0-5]",
    "client_max_window_bits": "|8|9|1[0-5]",
}


def _negotiate_deflate(header: str) -> tuple[str, int]:
    """Return our answer to the first offer of permessage-deflate that can be met, and the bits of our window.

    Without such an offer, they are "" and 0.
    """
    answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    for offer in header.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        pairs = [text.partition("=") for text in parameters]
        given = {key.strip(): value.strip(' \t"') for key, _, value in pairs}
        is_known = all(key in _OFFERED and re.fullmatch(_OFFERED[key], value) for key, value in given.items())
        if name == "permessage-deflate" and is_known and len(given) == len(pairs):
            bits = given.get("server_max_window_bits")
            return (f"{answer}; server_max_window_bits={bits}", int(bits)) if bits else (answer, 15)
    return "", 0


def _deflated(payload: bytes, window: int) -> bytes:
    """Return a message's payload deflated (section 7.2.1)."""
    import zlib

    deflater = zlib.compressobj(wbits=-window)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


# -- from ASGI's terms to WSGI's, and back


class _ResponseStart(NamedTuple):
    """A `http.response.start` that has been checked, in WSGI's terms."""

    status: str
    headers: list[tuple[str, str]]
    length: int  # the declared Content-Length, -1 without
    endless_type: str  # its Content-Type, if the body has no foreseeable end by that


def _header_pairs(message: _Message) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that an application sends, as a tuple that `_response_start` can keep in its cache."""
    return tuple(
        (name, value) if type(name) is type(value) is bytes else (_frozen(name), _frozen(value))
        for name, value in message.get("headers") or ()
    )


def _frozen(text: Any) -> Any:
    """Return bytes for a bytearray, which other servers accept in a header; `_response_start` refuses other types."""
    return bytes(text) if isinstance(text, (bytearray, memoryview)) else text


def _response_start(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> _ResponseStart:
    """Return what `_checked_start` does; remember it unless the headers are long."""
    with contextlib.suppress(TypeError):
        if sum(len(value) for _, value in headers) <= REMEMBERED_SIZE:
            return _remembered_start(status, headers)
    return _checked_start(status, headers)


def _checked_start(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> _ResponseStart:
    """Return the beginning of a response in WSGI's terms.  Raises TypeError or ValueError if it is not valid HTTP.

    A Transfer-Encoding is left out, as the server chooses its own (ASGI, HTTP & WebSocket 2.4, "Response Start").
    """
    from http.client import responses

    pairs = []
    for name, value in headers:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(f"names and values of headers must be bytes, not {name!r}: {value!r}")
        if name.lower() != b"transfer-encoding":
            pairs.append((name.decode("latin-1"), value.decode("latin-1")))
    line = f"{int(status)} {responses.get(status, '')}"
    head = check_response_head(line, tuple(pairs))
    return _ResponseStart(line, pairs, head.length, head.endless_type)


_remembered_start = functools.lru_cache(maxsize=256)(_checked_start)  # as in the server: most responses begin alike


def _checked_bytes(message: _Message) -> bytes:
    """Return the body of a message.  Raises TypeError if it is not bytes."""
    body = message.get("body", b"")
    if not isinstance(body, (bytes, bytearray, memoryview)):
        what = f"not {type(body).__name__}: text must be encoded"
        raise TypeError(f"the body of {message['type']!r} must be bytes, {what}")
    return bytes(body)


def _http_scope(environ: Environ, state: dict[str, Any]) -> dict[str, Any]:
    """Return the connection scope of a request (ASGI, HTTP & WebSocket 2.3)."""
    port, raw_path, head = environ["REMOTE_PORT"], environ["REQUEST_URI"].partition("?")[0], environ[REQUEST_HEAD]
    if raw_path[:1] != "/":  # a target in absolute form
        raw_path = "/" + raw_path.partition("://")[2].partition("/")[2]
    scope_headers = _remembered_scope_headers if len(head) <= REMEMBERED_SIZE else _scope_headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # by 2.4 Starlette notices nobody's end before it sends
        "http_version": environ["SERVER_PROTOCOL"][5:],
        "method": environ["REQUEST_METHOD"].upper(),
        "scheme": environ["wsgi.url_scheme"],
        "path": (environ["SCRIPT_NAME"] + environ["PATH_INFO"]).encode("latin-1").decode("utf-8", "replace"),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": environ["QUERY_STRING"].encode("latin-1"),
        "root_path": environ["SCRIPT_NAME"],
        "headers": [*scope_headers(head, environ.get("HTTP_COOKIE", ""), environ.get("HTTP_HOST", ""))],
        "client": (environ["REMOTE_ADDR"], int(port)) if port else None,
        "server": (environ["SERVER_NAME"], int(environ["SERVER_PORT"]) if port else None),
        "state": state.copy(),
        # Trailers and early hints are not offered, as hardly any application sends them; nor are files by their path,
        # as middleware that compresses drops the message (brotli-asgi, and so Gradio's).
        "extensions": {},
    }
    if ON_EXCEPTION in environ:
        scope[ON_EXCEPTION] = environ[ON_EXCEPTION]
    return scope


def _scope_headers(head: bytes, cookies: str, host: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header lines of a request as they came, with names in lower case.

    Two headers are taken from the environ: from the cookies the debugger has removed its own, and the host of a target
    in absolute form takes the place of the Host header (RFC 9112 section 3.2.2).
    """
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    pairs = [(name.lower(), value.strip(b" \t")) for name, _, value in lines]
    sent = [value for name, value in pairs if name == b"cookie"]
    if b"; ".join(sent).decode("latin-1") != cookies:
        pairs = [pair for pair in pairs if pair[0] != b"cookie"]
        if cookies:
            pairs.append((b"cookie", cookies.encode("latin-1")))
    return tuple((name, host.encode("latin-1") if host and name == b"host" else value) for name, value in pairs)


_remembered_scope_headers = functools.lru_cache(maxsize=256)(_scope_headers)  # clients repeat their heads to the byte

# Names of frameworks' exceptions for a client that has gone.  A ServerDisconnectedError is none of them: then another
# server has gone, and the application has failed.
_DISCONNECTS = "_?(Client|WebSocket)Disconnect|MessageAborted"


def is_disconnect(error: Optional[BaseException], depth: int = 20) -> bool:
    """Return whether an exception says only that the client has gone, also if a framework has wrapped it.

    A task that was cancelled has not failed either.  But an exception that the cancellation has caused in it, as a
    rule a TimeoutError, is a failure.
    """
    if error is None or not depth:
        return False
    if re.match(_DISCONNECTS, type(error).__name__) or (depth == 20 and type(error).__name__ == "CancelledError"):
        return True
    group = getattr(error, "exceptions", None)
    if isinstance(group, tuple) and group:
        return all(is_disconnect(part, depth - 1) for part in group)
    return is_disconnect(error.__cause__, depth - 1)


# -- the application's life

# What requests have and the lifespan has not: an application that misses one of these takes it for a request.
_REQUEST_KEYS = ("path", "raw_path", "query_string", "method", "headers", "scheme", "client", "server", "body")


class _Lifespan:
    """The `lifespan` scope: the application's startup before the first request, its shutdown after the last.

    The application is called once for both, in a task of its own.  If it raises an exception before it has called
    `receive`, or takes the lifespan for a request, it has no lifespan (so says the specification).  If it raises one
    later, its startup has failed; after the startup, the exception is reported.  Everything here runs on the loop.
    """

    def __init__(self, bridge: AsgiBridge) -> None:
        self.bridge = bridge
        self.task: Optional[asyncio.Task[None]] = None
        self.starting: Optional[asyncio.Task[None]] = None  # runs `start`
        self.error: Optional[BaseException] = None

    async def start(self) -> None:
        """Start the application, which need not have a lifespan.  Raises what its startup raises."""
        import asyncio

        self.is_started, self.is_stopping, self.is_stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.asked = 0  # how often the application has called `receive`
        self.starting, self.task = asyncio.current_task(), asyncio.ensure_future(self.run())
        await self.is_started.wait()
        if self.error is not None:
            self.is_stopped.set()
            await _cancel({self.task})
            raise self.error

    async def run(self) -> None:
        """Call the application; when it ends, in whatever way, let `start` and `stop` go on."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.bridge.state}
        try:
            await self.bridge.served(scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - raised again by `start`, or reported
            self.bridge.check(error)
            if self.is_started.is_set():
                if not self.is_stopped.is_set():
                    self.bridge.report_later(error, None, "the application's lifespan failed")
            elif self.asked and not (
                isinstance(error, KeyError) and error.args[:1] and error.args[0] in _REQUEST_KEYS
            ):
                self.error = error
        if not self.is_stopping.is_set():  # else `start` may go on waiting, until the process ends or is replaced
            self.is_started.set()
        self.is_stopped.set()

    async def receive(self) -> _Message:
        """Serve as the application's `receive`: return the startup first, and the shutdown when it is time."""
        self.asked += 1
        if self.asked == 1:
            return {"type": "lifespan.startup"}
        if self.error is not None:
            self.is_started.set()  # Quart has sent that its startup failed, and waits for the shutdown: none is raised
        await self.is_stopping.wait()
        if self.asked > 2:
            await self.bridge.loop.create_future()  # nothing comes after the shutdown
        return {"type": "lifespan.shutdown"}

    async def send(self, message: _Message) -> None:
        """Serve as the application's `send`."""
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self.is_started.set()
        elif kind == "lifespan.startup.failed":
            self.error = _StartupFailed(message.get("message") or "the application's startup failed")
            # As a rule the exception itself follows.
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            if kind.endswith("failed"):
                what = "shutdown failed" if self.bridge.is_stopping else "lifespan ended, and it is served on without"
                self.bridge.terminal.warn(f"the application's {what}: {message.get('message', '')}")
            self.is_stopped.set()
        else:
            self.asked = 0  # it takes the lifespan for a request, so that this counts as having none
            raise _BrokenProtocol(f"the application sent {kind!r} in its lifespan")

    def is_ending(self) -> bool:
        """Return whether the application is in its shutdown; any thread may ask."""
        return self.task is not None and self.is_stopping.is_set() and not self.is_stopped.is_set()

    async def stop(self) -> None:
        """Shut the application down, in a bounded time."""
        import asyncio

        if self.task is None or self.task.done():
            return
        self.is_stopping.set()
        if not self.is_started.is_set():  # a save or Ctrl-C comes during the startup, which may wait for a database
            await _cancel({self.task})
            return
        try:
            await asyncio.wait_for(self.is_stopped.wait(), _SHUTDOWN_SECONDS)
        except asyncio.TimeoutError:
            self.bridge.terminal.warn(f"the application's shutdown took over {_SHUTDOWN_SECONDS:.0f} s")
        self.is_stopped.set()
        self.task.cancel()


class _StartupFailed(Exception):
    """The application says that its startup failed, without an exception."""


# =====================================================================================================================
# 12. File watcher
#
# A thread looks at files again and again, and tells its caller which of them a save has changed.  It polls, because
# polling sees every kind of save on every file system, also on a network's and on one that a container has from its
# host.  The room may know foreign code (2).  It is given paths and callbacks; it does not know what is served.
#
# Files come to be watched in three ways.  `_ImportRecorder` notes each Python file when the process reads it, and of
# what the import opens, `_READ_AT_IMPORT`; `_Files.adopt` takes over these notes.  `_Files.add_places` adds files,
# folders and globs that were asked for.  `Watcher.watch_data` adds the folders that a framework reads, each with a
# function that may deal with a change so that no reload is needed.  A module that was looked for in vain has no file
# yet; it is awaited in the folders where it would have been found.
#
# `Watcher.run` makes a round every `_INTERVAL`.  In a round it adds what was loaded since the last one, lists some
# folders, and calls `os.stat` for some files.  `_Rounds` chooses these, so that all rounds together cost a small share
# of a core:
#
#   the ten files edited last            in every round
#   the project's other files            in every round if there are few; else as many as `_SHARE` of a core pays for,
#                                        the next ones in each round
#   folders that are watched             like the project's files; one whose time has changed is listed again
#   paths where no file is               in each tenth round (`_SLOW`), and when a folder's time has changed
#   files of installed packages          the next ones in each tenth round, so that each has its turn once in `_PERIOD`
#
# A file that differs from its known state is not yet a save: editors write in several steps, and formatters write once
# more.  So these steps follow:
#
# 1. `Watcher._settle` has the server hold new requests, so that they get the new code and not the old.  It looks again
#    and again until nothing has changed for `_SETTLE`, which begins at the time of the last write if that can be
#    trusted (`_age`), or for `_SETTLE_DOUBTFUL` when a file is gone or empty, as it may be about to be written.  After
#    `_SETTLE_LIMIT` it waits no longer.
# 2. `Watcher._accept` makes the states that it has found the known ones.  It drops what is no edit: a file with the
#    same bytes as before (`_Contents`), and one that the application itself writes over and over (`_Overwritten`).
# 3. `Watcher._not_handled` lets a framework's function deal with its own files.
# 4. `Watcher._deliver` compiles the changed Python files.  It calls `changed`, or `broken` when one does not compile.
#
# Invariants:
# - The known state of a file is the one in which this process loaded it (`_ImportRecorder`), or in which the process
#   before left it (`remember`).  So an edit is seen at whatever moment it is made, also during an import.
# - A change is reported only when nothing has been written for a moment, the bytes differ from those before, and each
#   changed Python file compiles.
# - The next process compiles each file that may have been edited since this one began.  Python compares bytecode with
#   its source by whole seconds and size alone (PEP 3147 and 552), so that after two edits within a second it may load
#   the bytecode of the first.
# - `_Files`, `_Contents`, `_Overwritten`, `_Rounds` and all names of `Watcher` that begin with an underscore belong to
#   the watcher's thread.  The public methods of `Watcher` are for any thread, except where one says otherwise;
#   `reload_now` is for a signal handler too.  Callbacks are called in the watcher's thread, but for one call of
#   `settling` by `import_ended`.
#
# How to change: files that editors or tools leave behind go into `_LITTER`, and folders without project files into
# `_NOT_WALKED`.  How soon an edit is seen, and at what cost, the constants below decide, each with its reason.
#
# Doors: Watcher.
#
# Read first: Watcher.run, _ImportRecorder, _Files.adopt, _Rounds.next, Watcher._settle, Watcher._accept.
# =====================================================================================================================

_INTERVAL = 0.05  # seconds between two rounds: with _SETTLE a save is noticed after 28 ms on average
_SHARE = 0.004  # of a core, for looking at the project's files; waking up 20 times a second costs another 0.2 to 0.4 %
_SHARE_WHEN_BUSY = 0.1  # the same for _BUSY_SECONDS after a reload, since whoever has just saved will save again
_BUSY_SECONDS = 60.0
_HOT = 10  # the files edited last are looked at in each round, since the next edit is most likely to one of them
_PERIOD = 4.0  # seconds in which each file of an installed package is looked at once; the project's should take less
_SLOW = 10  # in every tenth round it is their turn, as the caches are cold: a few files cost as much as many
_SURE = 100  # measured rounds, about 5 s: in the cheapest of them no other thread held the interpreter
_CHORES = 0.005  # seconds of a round for listing folders, and for reading files; other threads wait meanwhile
_SETTLE = 0.015  # seconds without a further change that end a save: editors write in a few milliseconds
# The same if a file is gone or empty, as editors rename or truncate first and a busy machine may stop them in between,
# and for installers.
_SETTLE_DOUBTFUL = 0.5
_SETTLE_LIMIT = 1.0  # a file that is written without end must not hold a reload for ever
_COMPILE_SECONDS = 0.1  # that the compile check takes at most; the import finds what it has not reached
_CONTENT_LIMIT = 1 << 20  # bytes; a larger file is never read, and compared by its state alone
_FILES_LIMIT = 100_000  # watched files; at about 300 bytes each this bounds the memory at 30 MB
_YOUNG = 2.0  # seconds after its last edit in which a source may be edited again within the same second
_REPEATED = 20  # changes of one file in a row, each during an import or within _HEELS after it, that no person makes
_READ_AT_IMPORT = (".py", ".cfg", ".ini")  # files that are part of the application if its import opens them
_OPENED_LIMIT = 1_000  # files that an import opened last: one of these it could not do without, if it has failed
_HEELS = 2.0  # seconds after an import; also seconds without a change after which a file is no longer left out
_RESTLESS = 5  # a file that does not come to rest within _SETTLE_LIMIT counts as so many changes
_REMEMBERED = 200  # data files, and files saved last, of which the next process is told: a path and five numbers each

_NOT_WALKED = frozenset(
    "__pycache__ node_modules bower_components site-packages dist-packages .git .hg .svn .bzr .jj .tox .nox .eggs"
    " .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .ipynb_checkpoints .idea .vscode .vs .direnv"
    " .cache".split()
)
_NOT_WALKED_ENDINGS = (".dist-info", ".egg-info")
_LITTER = (  # of Emacs, Vim (which tries a folder with 4913), JetBrains, macOS, Python, flycheck and GTK
    r"\.#|#.*#$|.*~$|.*\.sw[a-z]$|.*___jb_\w+___$|4913$|\.DS_Store$|.*\.py[co]$|flycheck_|\.goutputstream"
)
_compile = compile  # the interpreter's own, also while `_ImportRecorder` has replaced it
_open = open  # the same

if TYPE_CHECKING:
    _State = Optional[tuple[int, int, int, int]]  # mtime, size, inode, ctime (in ns); None when there is no such file
    _Digest = Optional[tuple[int, int]]  # size and CRC of a file's bytes; None when they are not known
    _Content = tuple[_State, _Digest]  # a file's bytes, and the state in which it had them
    # See `Watcher.remember`: what was asked for; and by path: whether it was, state, content, changes in a row.
    _Memory = tuple[tuple[tuple[str, ...], ...], dict[str, tuple[bool, _State, Optional[_Content], int]]]
    _Matches = Callable[[str], Any]  # whether a path found in a folder is to be watched


def _state(path: str) -> _State:
    """Return what distinguishes the states of a file (of a link's target), or None if there is none, or a pipe.

    Compare states with `!=`, never with `>`: a restored or checked out file may well be older than before.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a module's __file__ may be any text, one with a NUL included
        return None
    if stat.S_ISFIFO(status.st_mode):  # each reading changes it: a password manager's .env
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def _age(states: Iterable[_State]) -> float:
    """Return how many seconds ago the last of these files was written, or 0.0 if that cannot be told.

    A time that lies before the last rounds is another machine's, or the file was there before and has been moved.
    """
    written = max((state[0 if sys.platform == "win32" else 3] for state in states if state), default=0)
    age = time.time() - written / 1e9
    return age if 0.0 < age < 2 * _INTERVAL else 0.0


def _content(path: str) -> Optional[bytes]:
    """Return the bytes of a regular file of at most `_CONTENT_LIMIT`, or None."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _CONTENT_LIMIT:
            return None
        with _open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def _digest(path: str) -> _Digest:
    """Return size and CRC of a file's bytes, or None.

    A CRC is cheap and needs no import, and there is one chance in 4e9 that an edit is taken for none.
    """
    data = _content(path)
    return None if data is None else (len(data), binascii.crc32(data))


def _syntax_error(path: str) -> Optional[SyntaxError]:
    """Return why a Python file does not compile, or None, also when the compiler itself gives up."""
    import warnings

    data = _content(path) or b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the import repeats it
            _compile(data, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.filename:
            return error
        line = data.partition(b"\0")[0].count(b"\n") + 1  # of a NUL byte, for which Python names no place
        return SyntaxError(str(error), (path, line, None, None))
    except (RecursionError, MemoryError, OverflowError):
        pass
    return None


# -- what the process loads


class _ImportRecorder:
    """Notes each Python file right before this process reads it, and each module that was looked for in vain.

    It is called in four places, in whatever thread imports something.  It replaces `SourceFileLoader.path_stats`,
    which importlib calls before it reads a source or its bytecode.  It is the last finder in `sys.meta_path`, which is
    asked only when no other has found a module.  And it replaces `compile` and, while the application is imported,
    `open`, which are called for files that are executed without an import: the first by Flask's `from_pyfile`, the
    other in `exec(open("conf.py").read())` and by pathlib.
    An audit hook would see all that, but can never be removed: with one, `copy.deepcopy` takes 1.8 times as long.

    The watcher's thread empties `loaded` and `missed`; appending to a deque needs no lock.
    """

    def __init__(self, cwd: str) -> None:
        # Path and state; None, or if importlib reads it, "" or the name of the module that a request imports.
        self.loaded: deque[tuple[str, _State, Optional[str]]] = deque()
        self.missed: deque[tuple[str, Optional[list[str]]]] = deque()  # a module's last name, and its package's path
        # Files that the import has read last, or tried to: a save of one may mend it.
        self.opened: deque[str] = deque(maxlen=_OPENED_LIMIT)
        self._cwd = cwd
        self._endings: tuple[str, ...] = ("",)  # of the files that are noted when they are compiled
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was there, and what replaces it

    def begin(self) -> None:
        """Put the replacements and the finder in place."""
        import __future__

        from _ast import PyCF_ONLY_AST
        from importlib.machinery import SourceFileLoader

        # For `compile`, where an import would be one of the application's, which may have hooks of its own.
        self._only_ast = PyCF_ONLY_AST
        self._future_flags = sum({getattr(__future__, each).compiler_flag for each in __future__.all_feature_names})
        path_stats = SourceFileLoader.path_stats

        def noted_path_stats(loader: SourceFileLoader, path: str) -> Mapping[str, Any]:
            state = _state(path)
            callers = [frame.f_code.co_name for frame in itertools.islice(outer_frames(sys._getframe(1)), 3)]
            is_late = callers[2:] == ["_load_unlocked"] and "" not in self._endings  # by an `import` of a request's
            self.loaded.append((os.path.join(self._cwd, path), state, loader.name if is_late else ""))
            stats = path_stats(loader, path)
            for_import = callers[0] == "get_code"  # `py_compile` calls us too, to write bytecode
            edited = max(stats["mtime"], state[3] / 1e9 if state else 0.0)  # as `cp -p` keeps an old mtime
            if for_import and edited > time.time() - _YOUNG and not is_library(path, self._cwd):
                raise OSError("too young to be told from its bytecode")  # so importlib neither reads nor writes any
            return stats

        def noted_open(open: Callable[..., Any], file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if "" in self._endings and not set("wax") & set(mode):  # modules such as tokenize keep what `open` was
                with contextlib.suppress(TypeError, ValueError, OSError):  # it may be anything
                    path = os.path.abspath(os.fsdecode(file))
                    self.opened.append(path)
                    if path.endswith(_READ_AT_IMPORT) and (os.path.isfile(path) or not os.path.lexists(path)):
                        self.loaded.append((path, _state(path), None))  # what is missing is waited for
            return open(file, mode, *rest, **more)

        self._replace(SourceFileLoader, "path_stats", noted_path_stats)
        # Bound methods, as a plain function would become a method where a class holds it, and a builtin does not.
        self._replace(builtins, "compile", self.compile)
        for owner in (builtins, io):  # pathlib takes io's
            self._replace(owner, "open", MethodType(noted_open, owner.open))
        sys.meta_path.append(self)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name), new))
        setattr(owner, name, new)

    def import_ended(self) -> None:
        """Put `open` back, and of what is compiled note only Python and configuration files from now on.

        A request may be the first to execute one; what else it compiles is a template, after which its engine looks.
        """
        self._endings = (".py", ".cfg")
        self._put_back("open")

    def end(self) -> None:
        """Put everything back."""
        self._put_back("path_stats", "compile", "open")
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _put_back(self, *names: str) -> None:
        for owner, name, old, new in self._replaced:
            if name in names and getattr(owner, name) is new:  # else others have replaced ours since, and call it
                setattr(owner, name, old)

    def find_spec(self, name: str, path: Optional[Iterable[str]] = None, target: Any = None) -> None:
        """Find nothing, and note the module, which no finder before has found (the protocol of `sys.meta_path`)."""
        self.missed.append((name.rpartition(".")[2], None if path is None else list(path)))

    def compile(
        self,
        source: Any,
        filename: Any,
        mode: str,
        flags: int = 0,
        dont_inherit: bool = False,
        *rest: int,
        **more: int,
    ) -> Any:
        """Do what the builtin `compile` does, and note the filename if its code is to be executed.

        `compile` takes over the caller's `from __future__ import`; for that its caller's flags are passed on.
        """
        if not flags & self._only_ast:
            self._note_executed(filename)
        inherited = 0 if dont_inherit else sys._getframe(1).f_code.co_flags & self._future_flags
        return _compile(source, filename, mode, flags | inherited, True, *rest, **more)

    def _note_executed(self, filename: Any) -> None:
        with contextlib.suppress(TypeError, ValueError, OSError):  # it may be anything
            path = os.path.abspath(os.fsdecode(filename))  # where the application is now, as it may call os.chdir
            if path.endswith(self._endings) and os.path.isfile(path):
                self.loaded.append((path, _state(path), None))


def _files_named_by(path: str, cwd: str) -> list[str]:
    """Return the Python and configuration files that a module names, if they lie beside it, in a folder beside it or
    in Flask's instance folder, and those that the environment names, as for `from_envvar`.

    The module may have executed them, without an import, before the recorder began.
    """
    if path == os.path.abspath(__file__) or is_library(os.path.dirname(path), cwd):
        return []
    names = re.findall(r"""["']([\w./-]+\.(?:py|cfg))["']""", (_content(path) or b"").decode(errors="replace"))
    home = os.path.dirname(path)
    folders = [home, os.path.join(home, "..", "instance")]
    with contextlib.suppress(OSError):  # the folder has gone, or cannot be listed
        entries = os.scandir(home) if names else ()
        folders += [entry.path for entry in entries if _is_folder(entry) and _is_walked(entry)]
    paths = [os.path.join(folder, name) for name in names for folder in folders]
    paths += [os.path.join(cwd, value) for value in os.environ.values() if value.endswith((".py", ".cfg"))]
    return [os.path.normpath(each) for each in paths if os.path.isfile(each)]


# -- what is watched


class _Wants(NamedTuple):
    """Which files of a folder and its subfolders are watched."""

    matches: _Matches
    depth: int = sys.maxsize  # how many slashes a path may have that matches


class _Files:
    """Every path that is watched, with its known state: the one that this process has loaded or accepted.

    `own` are the project's files and folders, `installed` the files of the standard library and of installed packages.
    When the known state is None, no file is expected, so that the next look reports one that is there.
    """

    def __init__(self, warn: Callable[[str], None], since: float, exclude_patterns: Iterable[str]) -> None:
        self.warn = warn
        self.since = since
        self.cwd = os.getcwd()
        self.recorder = _ImportRecorder(self.cwd)
        self.states: dict[str, _State] = {}
        self.own: list[str] = []
        self.installed: list[str] = []
        self.data: dict[str, None] = {}  # those of `own` that were asked for by name or folder, in that order
        self.trees: dict[str, list[_Wants]] = {}  # by folder: which of its files are watched
        self.awaited: dict[str, set[str]] = {}  # by folder: modules that were looked for there in vain
        self.full = False  # whether `_FILES_LIMIT` has been reached
        self._extra: list[_Matches] = []  # what `add_places` was asked for: each change of it reloads
        patterns = map(os.path.expanduser, exclude_patterns)
        globs = [self._absolute_glob(each) if re.match(r"\.{1,2}[/\\]", each) else each for each in patterns]
        # Each with whether it may mean a folder above the project: one that is just `data` does not.
        self._excludes = [
            (re.compile(f"(?:^|(?<=/)){_glob(each, '.*')}(?:/|$)"), re.match(r"[*/\\]|\w:", each)) for each in globs
        ]
        # Under a profiler the application's own script is no module, but its code runs now.
        running = {os.path.abspath(frame.f_code.co_filename) for frame in outer_frames(sys._getframe())}
        self._running = set(filter(os.path.isfile, running))
        self._modules: set[str] = set()  # names of those that have been adopted
        self._scanned = since  # when `sys.modules` was last looked through, by the wall clock
        self._late: dict[str, str] = {}  # modules that a request has imported, or tried to, by their files
        self._half_imported: set[str] = set()  # the files of those that could not be imported
        self._linked: set[tuple[str, _Wants]] = set()  # folders that were reached by a link
        self._queue: deque[tuple[str, _Wants, bool]] = deque()  # folders to list; True: what is new there has changed

    def add(self, path: str, state: _State) -> None:
        """Watch one path, which need not exist; `state` becomes its known state, if it is not watched already."""
        if path in self.states or self.excluded(path) or self.full:
            return
        self.own.append(path)
        self.states[path] = state
        self.full = len(self.own) >= _FILES_LIMIT
        if self.full:
            self.warn(f"{_FILES_LIMIT:,} files are watched, further ones are not; name fewer, or exclude some")

    def add_data(self, paths: Iterable[str], *, new: bool = False) -> None:
        """Watch files that were asked for by name or folder; the next process is told of them.

        With `new` they have appeared in a watched folder, so that they are reported as changed.
        """
        for path in paths:
            self.add(path, None if new else self._first_state(path, self.since))
            self.data[path] = None

    def _first_state(self, path: str, since: float) -> _State:
        """Return the known state for a path that this process may have read at any time since `since`.

        If the file was written since then, we cannot know which version was read.  The state is None then, which makes
        the file a changed one.  A time in the future tells nothing.
        """
        state = _state(path)
        written = state[0 if sys.platform == "win32" else 3] / 1e9 if state else 0.0  # nobody can set the ctime back
        return None if since <= written <= time.time() and not os.path.isdir(path) else state

    def excluded(self, path: str) -> bool:
        """Return whether an exclude pattern matches the path, its name, or a folder that it lies in."""
        start = len(self.cwd) if is_below(path, self.cwd) else 0
        path = path.replace(os.sep, "/")
        return any(exclude.search(path, 0 if is_anywhere else start) for exclude, is_anywhere in self._excludes)

    def adopt(self) -> None:
        """Watch the files that were loaded since the last call, and await the modules that were looked for in vain."""
        while self.recorder.missed:
            self._await(*self.recorder.missed.popleft())
        while self.recorder.loaded:
            path, state, name = self.recorder.loaded.popleft()
            path = os.path.normpath(path)
            self._add_loaded(path, state)
            # When importlib reads it, or the application has just made it, what was read is the known state.
            is_known = name is not None and path not in self._half_imported
            if path in self.states and (is_known or self.states[path] is None):
                self.states[path] = state
            if name:
                self._late[path] = name
        self._look_at_late_imports()
        if len(sys.modules) != len(self._modules):
            self._adopt_modules()

    def _look_at_late_imports(self) -> None:
        """Note which modules requests could not import: half of one may be left, so that its mend is a change."""
        for path, name in list(self._late.items()):
            module = sys.modules.get(name)
            if module is None:
                self._half_imported.add(path)
            elif not getattr(own_dict(module).get("__spec__"), "_initializing", False):
                self._half_imported.discard(path)
            else:
                continue  # it is being imported
            del self._late[path]

    def _adopt_modules(self) -> None:
        """Watch modules that the recorder has not seen: loaded before it began, from a zip file, or written in C."""
        now = time.time() - _INTERVAL  # kernels stamp files with their last tick, up to 10 ms before the clock
        modules = sys.modules.copy()  # one step for the interpreter, so that imports in other threads do no harm
        paths = self._running | {_module_file(modules[name], self.cwd) for name in modules.keys() - self._modules}
        for path in paths:
            for each in [path, *_files_named_by(path, self.cwd)] if path and path not in self.states else ():
                self._add_loaded(each, self._first_state(each, max(self.since, self._scanned)))
        self._modules = set(modules)
        self._scanned = now

    def _add_loaded(self, path: str, state: _State) -> None:
        """Watch a file that was loaded, among the project's or the installed ones."""
        if not is_library(os.path.dirname(path), self.cwd):
            self.add(path, state)
        elif path not in self.states and not self.excluded(path):
            self.installed.append(path)
            self.states[path] = state

    def _await(self, name: str, places: Optional[list[str]]) -> None:
        """Watch the project's folders in which a module would have been found, so that it is seen when it appears."""
        for folder in self._project_folders(sys.path if places is None else places):
            if name not in self.awaited.setdefault(folder, set()):
                self.add(folder, _state(folder))
                self.awaited[folder].add(name)
                self._look_for(folder, name)

    def _project_folders(self, places: Iterable[Any]) -> Iterator[str]:
        for place in places:
            if isinstance(place, str):
                folder = os.path.normpath(os.path.join(self.cwd, place))
                if not is_library(folder, self.cwd) and os.path.isdir(folder):
                    yield folder

    def _look_for(self, folder: str, name: str) -> None:
        """Have an awaited module reported if it is in `folder` now.

        A package is reported when there is any module in it, which may come later than its folder.
        """
        path = os.path.join(folder, name)
        if os.path.isfile(path + ".py"):
            self.add(path + ".py", None)
        if os.path.isdir(path):
            self.add(os.path.join(path, "__init__.py"), None)
            self.add_tree(path, _Wants(_is_module))

    def add_places(self, places: Iterable[str]) -> None:
        """Watch files, folders and globs, relative to the working directory at the start."""
        for place in map(os.path.expanduser, places):
            path = os.path.normpath(os.path.join(self.cwd, place))
            matches: _Matches = partial(is_below, folder=path.replace(os.sep, "/"))
            if os.path.isdir(path):
                self.add_tree(path, _Wants(_is_wanted))
                self.data[path] = None
            elif re.search(r"[*?[]", place) and not os.path.exists(path):
                root = os.path.normpath(os.path.join(self.cwd, os.path.dirname(re.split(r"[*?[]", place)[0])))
                depth = sys.maxsize if "**" in place else path.count(os.sep)
                matches = re.compile(_glob(self._absolute_glob(place), "[^/]*")).fullmatch
                self.add_tree(root, _Wants(matches, depth))
            else:
                self.add_data([path])
            self._extra.append(matches)

    def _absolute_glob(self, pattern: str) -> str:
        """Return a glob with the working directory before it, whose own name may have brackets."""
        import glob

        return os.path.normpath(os.path.join(glob.escape(self.cwd), pattern))

    def is_extra(self, path: str) -> bool:
        """Return whether the person has asked for this file, so that no framework's function may deal with it."""
        return any(matches(path.replace(os.sep, "/")) for matches in self._extra)

    def add_whatever_mends(self, error: BaseException) -> None:
        """Watch all modules of the project, and all paths where a module would appear that an import has not found."""
        read = [path for path in set(self.recorder.opened.copy()) if not is_library(os.path.dirname(path), self.cwd)]
        places = [*_places_of_missing(error, self.cwd)]
        for path in (*places, *read):
            self.add(path, self._first_state(path, self.since))
        on_path = [os.path.abspath(folder) for folder in sys.path if isinstance(folder, str)] if places else []
        for folder in on_path:
            if is_library(folder, self.cwd):  # where an editable install adds a .pth file
                is_pth = re.compile(r".*\.pth").fullmatch
                self.add_tree(folder, _Wants(is_pth, folder.count(os.sep) + 1))
        for folder in self._project_folders([self.cwd, *sys.path]):
            self.add_tree(folder, _Wants(_is_module))

    def add_tree(self, folder: str, wants: _Wants, new: bool = False) -> None:
        """Watch the files that are wanted in a folder and its subfolders.  Later rounds list them."""
        trees = self.trees.setdefault(folder, [])
        if wants not in trees and not self.excluded(folder):
            trees.append(wants)
            self._queue.append((folder, wants, new))

    def list_again(self, folder: str) -> None:
        """Look for new files in a folder whose state has changed, which it does when an entry comes or goes."""
        self.states[folder] = _state(folder)
        for name in self.awaited.get(folder, ()):
            self._look_for(folder, name)
        self._queue.extendleft((folder, wants, True) for wants in self.trees.get(folder, ()))
        self.list_folders(_CHORES)

    def list_folders(self, seconds: float) -> bool:
        """List queued folders, for about so many seconds; return whether all have been listed."""
        end = time.monotonic() + seconds
        while self._queue and not self.full:
            if time.monotonic() > end:
                return False
            self._list(*self._queue.popleft())
        return True

    def _list(self, folder: str, wants: _Wants, new: bool) -> None:
        self.add(folder, _state(folder))
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._add_entry(entry, wants, new)
        except (FileNotFoundError, NotADirectoryError):  # a zip file with the application in it
            return
        except OSError as error:
            self.warn(f"cannot look into {folder}: {error.strerror}")

    def _add_entry(self, entry: os.DirEntry[str], wants: _Wants, new: bool) -> None:
        if _is_folder(entry):
            is_too_deep = entry.path.count(os.sep) >= wants.depth
            if not is_too_deep and _is_walked(entry) and not self._is_known_link(entry, wants):
                self.add_tree(entry.path, wants, new)
        elif wants.matches(entry.path.replace(os.sep, "/")) and entry.path not in self.states:
            self.add_data([entry.path], new=new)

    def _is_known_link(self, entry: os.DirEntry[str], wants: _Wants) -> bool:
        """Return whether this is a link to a folder that another link has led to, so that loops come to an end."""
        if not entry.is_symlink():
            return False
        key = os.path.realpath(entry.path), wants
        known = key in self._linked
        self._linked.add(key)
        return known


def _is_module(path: str) -> bool:
    """Return whether `path` could be imported as a module."""
    name = os.path.basename(path)
    return name.endswith(".py") and name[:-3].isidentifier()


def _is_wanted(path: str) -> bool:
    """Return whether `path` is a file to keep, and not one that an editor or a tool leaves behind for a while."""
    return not re.match(_LITTER, os.path.basename(path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_walked(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder may hold project files: no cache, no repository, no virtual environment of any name."""
    if entry.name in _NOT_WALKED or entry.name.endswith(_NOT_WALKED_ENDINGS):
        return False
    return not os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))


def _module_file(module: Any, cwd: str) -> str:
    """Return the absolute path of the file that a module was loaded from, or "".

    For a module in a zip file it is the zip file; for a namespace package, the `__init__.py` that would make it a
    regular one when it appears.
    """
    try:
        names = object.__getattribute__(module, "__dict__")  # plain getattr would load a lazy module
    except AttributeError:
        return ""
    path = names.get("__file__")
    loader = names.get("__loader__")
    if type(loader).__name__ == "zipimporter":
        path = loader.archive
    elif type(names.get("__path__")).__name__.endswith("NamespacePath"):  # it was private until 3.15
        path = next((os.path.join(folder, "__init__.py") for folder in names["__path__"]._path), None)
    return os.path.normpath(os.path.join(cwd, path)) if isinstance(path, str) else ""


def _glob(pattern: str, star: str) -> str:
    """Return a regular expression for the paths, with `/`, that a glob matches; `star` is the expression for `*`.

    `**/` matches any folders.  A range that ends before it begins, as [9-0], matches nothing.
    """
    words = {"**/": "(?:.*/)?", "**": ".*", "*": star, "?": "." if star == ".*" else "[^/]"}
    tokens = re.split(rf"(\*\*/|\*\*|\*|\?|{GLOB_SET})", pattern.replace(os.sep, "/").rstrip("/"))
    return "(?s:" + "".join(words.get(token) or _glob_token(token) for token in tokens) + ")"


def _glob_token(token: str) -> str:
    """Return the expression for plain characters, or for a set in brackets."""
    if token in ("[]", "[!]") or not re.fullmatch(GLOB_SET, token):
        return re.escape(token)
    sign = token[1:2] if token[1:2] == "!" else ""
    ranges = [f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges_in(token) if low <= high]
    return f"[{'^' * len(sign)}{''.join(ranges)}]" if ranges else "." if sign else "(?!)"


class _Contents:
    """The bytes of the files, as size and CRC: a save that writes the same bytes again is no edit.

    They are read after the import, a few files in each round, as they must be known before a save.
    """

    def __init__(self, states: dict[str, _State]) -> None:
        self.seen: dict[str, _Content] = {}  # by path: the digest, and the state that the file had then
        self._states = states
        self._unread: list[str] = []

    def read_later(self, paths: Iterable[str]) -> None:
        """Queue files whose bytes are not known in their known state, for `read_some`."""
        self._unread += [path for path in paths if path not in self.seen or self.seen[path][0] != self._states[path]]

    def read_some(self) -> None:
        """Read queued files, for about `_CHORES` seconds."""
        end = time.monotonic() + _CHORES
        while self._unread and time.monotonic() < end:
            self.learn(self._unread.pop())

    def learn(self, path: str) -> None:
        """Note the bytes of a file, if it is still in its known state."""
        digest = _digest(path)
        if self._states[path] == _state(path):
            self.seen[path] = self._states[path], digest

    def is_same(self, path: str, state: _State) -> bool:
        """Return whether a file in a new state has the same bytes as in its known state.

        If only the ctime differs, the file may have been copied together with its times (`cp -p`), or it may have got
        another mode or link, as from a package manager.  If its bytes are not known, they count as the same then.
        """
        before = self._states[path]
        seen, digest = self.seen.get(path, (None, None))
        if digest is None or seen != before:
            return state is not None and before is not None and state[:3] == before[:3]
        return digest == _digest(path)


class _Overwritten:
    """Files that the application itself writes over and over, such as a log in a watched folder.

    Each would reload the application without end.  So changes are counted that come during an import or soon after,
    when hardly any person makes them.  After `_REPEATED` in a row the file is left out, until it rests.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.rows: dict[str, int] = {}  # by path: the number of such changes in a row
        self._warn = warn
        self._left_out: dict[str, float] = {}  # by path: when a file that is left out has last changed

    @staticmethod
    def folder_of(path: str) -> str:
        """Return the row of a file's folder, where new files count: an application may give each another name."""
        return os.path.join(os.path.dirname(path), "")

    def is_left_out(self, path: str) -> bool:
        """Return whether a file that has changed is left out; one that has rested for `_HEELS` no longer is."""
        last_change = self._left_out.pop(path, None)
        if last_change is None or time.monotonic() > last_change + _HEELS:
            return False
        self._left_out[path] = time.monotonic()
        return True

    def is_one_too_many(self, path: str, weight: int) -> bool:
        """Count a change; return whether the file is left out now.  A `weight` of 0 says a person may have made it.

        If a person has saved one file, changes of others just before may have been a person's too.  So their rows
        begin anew as well, except those that have reached `_REPEATED`.
        """
        before = self.rows.get(path, 0)
        if not weight:
            self.rows = {path: row for path, row in self.rows.items() if row >= _REPEATED}
        self.rows[path] = row = before + weight if weight else 0
        if row < _REPEATED:
            return False
        if before < _REPEATED:
            self._warn(
                f"{path} is written again and again: it reloads nothing until it has rested for {_HEELS:.0f} s and is"
                " written once more;"
                " --exclude-patterns leaves it out"
            )
        self._left_out[path] = time.monotonic()
        return True


class _Rounds:
    """Chooses what each round looks at, so that it costs a small share of a core, however many files there are.

    The banner says how often each kind of file has its turn.  Of the project's files, half of those that the share
    pays for are Python files, so that thousands of assets do not delay them.
    """

    def __init__(self, files: _Files) -> None:
        self.cost = 5e-6  # seconds a file, a first guess; measured from then on
        self._cheapest = float("inf")  # the lowest cost that was measured, and how often one was
        self._measured = 0
        self.busy_until = 0.0
        self._files = files
        self._hot: list[str] = []  # the files edited last
        self._python: list[str] = []  # the project's Python files
        self._others: list[str] = []  # its other files, and its folders
        self.missing: list[str] = []  # its paths where no file is
        self._turns = {"python": 0, "others": 0, "installed": 0}  # how far each list has been gone through
        self._round = 0  # the number of this round
        self._warned = False

    def next(self) -> list[str]:
        """Return the paths that the next round looks at: all of the project's, if the share pays for them."""
        share = _SHARE_WHEN_BUSY if time.monotonic() < self.busy_until else _SHARE
        slow: list[str] = []
        self._round += 1
        if self._round % _SLOW == 0:
            installed = self._files.installed
            share_of_period = _SLOW * _INTERVAL / _PERIOD
            slow = self.missing + self._some("installed", installed, int(len(installed) * share_of_period) + 1)
        count = max(int(share * _INTERVAL / self.cost) - len(slow), 2 * _HOT)
        own = self._python + self._others
        if len(own) > count:
            count -= _HOT
            part = min(len(self._python), max(count // 2, count - len(self._others)))
            own = self._hot + self._some("python", self._python, part)
            own += self._some("others", self._others, count - part)
        return own + slow

    def _some(self, name: str, paths: list[str], count: int) -> list[str]:
        """Return the next `count` of these paths, and after the last ones the first again."""
        if count >= len(paths):
            return paths
        start = self._turns[name] % len(paths)
        self._turns[name] = start + count
        return paths[start : start + count] + paths[: max(0, start + count - len(paths))]

    def edited(self, paths: Iterable[str]) -> None:
        """Choose again which files were edited last, from those before and these, and where there is no file."""
        states = self._files.states
        self._hot = sorted({*self._hot, *paths}, key=lambda path: states[path] or (0, 0, 0, 0))[-_HOT:]
        self._python, self._others, self.missing = [], [], []
        for path in self._files.own:
            kind = self._python if path.endswith(".py") else self._others
            (kind if states[path] else self.missing).append(path)

    def took(self, count: int, seconds: float) -> None:
        """Note what looking at one file costs, at most twice what it did before.

        Other threads may have taken any part of the time, so that a low measurement is more likely to be true.
        """
        each = seconds / max(count, 1)
        self.cost = max(1e-7, min(each, 2 * self.cost))
        self._cheapest = min(self._cheapest, each)
        self._measured += 1
        self._warn_if_late()

    def _warn_if_late(self) -> None:
        """Warn once when there are so many files that an edit may be seen late."""
        count = len(self._files.own)
        late = count * self._cheapest / _SHARE
        if late > _PERIOD and self._measured > _SURE and not self._warned:
            self._warned = True
            self._files.warn(f"{count:,} files and more are watched: a change may be seen {late:.0f} s late or later")


# -- the thread


class Watcher(native_threading.Thread):
    """The thread that watches.  It finds the modules that are loaded by itself; other files are named to it.

    Call `record_imports` and `start` before the application is imported, and `import_ended` after that, also when it
    has failed; then call `failed` first.  `run` makes rounds from `start` on.

    `changed` is called with the paths that changed, or with the reason given to `reload_now`; as a rule it replaces
    the process, and returns only when the old code goes on.  `broken` is called with the SyntaxError of a file that
    was saved, instead of `changed`, until all changed files compile.  `settling` is called with True when a change was
    seen, and with False when it has been dealt with; `warn` with a line for the person.

    `extra_files` are files, folders and globs, `exclude_patterns` globs.  `also` are paths of files that the process
    has read since `since`, a moment of the wall clock.  `memory` is what `remember` returned in the process before.
    """

    def __init__(
        self,
        changed: Callable[[list[str]], None],
        broken: Callable[[SyntaxError], None],
        *,
        warn: Callable[[str], None],
        extra_files: Iterable[str] = (),
        exclude_patterns: Iterable[str] = (),
        also: Iterable[str] = (),
        settling: Callable[[bool], None] = lambda begins: None,
        since: Optional[float] = None,
        memory: Optional[_Memory] = None,
    ) -> None:
        super().__init__(name="devserve watcher", daemon=True)
        self.changed = changed
        self.broken = broken
        self.settling = settling
        self._asked = tuple(extra_files), tuple(exclude_patterns), tuple(map(os.path.abspath, also))
        self.files = _Files(warn, time.time() if since is None else since, self._asked[1])
        self._errands: deque[Callable[[], None]] = deque()  # calls that other threads want made in this one
        self._contents = _Contents(self.files.states)
        self._overwritten = _Overwritten(warn)
        self._rounds = _Rounds(self.files)
        self._is_reloaded = memory is not None
        self._recent: dict[str, None] = {}  # files that have caused a reload, the last one last
        self._recall(memory)
        self._errands.append(partial(self.files.add_places, self._asked[0]))
        self._errands.append(partial(self.files.add_data, self._asked[2]))
        self._handlers: list[tuple[str, _Matches, Callable[[list[str]], bool]]] = []  # see `watch_data`
        self._known = 0  # how many of `files.own` earlier rounds have seen
        self._pending: set[str] = set()  # paths that have changed, kept while one of them does not compile
        self._demand = ""  # the reason given to `reload_now`
        self._woken = native_threading.Event()  # set to begin the next round at once
        self._importing = True
        self._rested = 0.0  # by the monotonic clock: when the import, or the last reload that came to nothing, ended
        self._stopped = False

    # for any thread

    def record_imports(self) -> None:
        """Record what is loaded from now on.  Call it before the application is imported."""
        self.files.recorder.begin()

    def import_ended(self) -> None:
        """Hold requests until all that was imported has been looked at; from then on, changes count as a person's.

        Call it before requests are answered, as a file that is just being saved may have been imported half written.
        """
        self.files.recorder.import_ended()
        self.settling(True)
        self._rested = time.monotonic()
        self._errands.append(self._look_at_imported)
        self._woken.set()

    def failed(self, error: BaseException) -> None:
        """Watch whatever could mend an import that ended in `error`; the files that it has loaded already are."""
        self._errands.append(partial(self.files.add_whatever_mends, error))

    def watch_data(
        self, folders: Iterable[str], handle: Callable[[list[str]], bool], wants: Optional[_Matches] = None
    ) -> None:
        """Watch all files in these folders, or those that `wants` accepts, and call `handle` with the edited ones.

        One that is named in place of a folder needs a reload.
        `handle` is called in the watcher's thread, must not raise, and returns False when a reload is needed all the
        same.  It is not called for a module that the application has loaded from such a folder: that is reloaded.
        """
        for folder in map(os.path.abspath, folders):
            if os.path.isfile(folder):
                self._errands.append(partial(self.files.add_places, [folder]))
                continue
            self._handlers.append((os.path.join(folder, ""), wants or _is_wanted, handle))
            self._errands.append(partial(self.files.add_tree, folder, _Wants(wants or _is_wanted)))

    def reload_now(self, reason: str) -> None:
        """Have `changed([reason])` called in the next round, whether or not anything has changed."""
        self._demand = reason

    def stop(self) -> None:
        """End the thread after the round that it is in."""
        self._stopped = True
        self._woken.set()
        self.files.recorder.end()

    # for this thread alone

    def remember(self) -> _Memory:
        """Return the `memory` for the next process's watcher.  Call it inside of `changed`.

        By the known states of data files the next watcher sees what was edited or removed before its first look.  By
        the files of the last saves it knows which may come back after they were removed.  By contents and rows it
        knows files that the application itself writes whenever it is imported.
        """
        files = self.files
        folders = [path for path in self._overwritten.rows if path.endswith(os.sep)]
        remembered = dict.fromkeys([*list(files.data)[:_REMEMBERED], *list(self._recent)[-_REMEMBERED:], *folders])
        states = {path: files.states[path] if path in files.states else _state(path) for path in remembered}
        return self._asked, {
            path: (path in files.data, state, self._contents.seen.get(path), self._overwritten.rows.get(path, 0))
            for path, state in states.items()
        }

    def _recall(self, memory: Optional[_Memory]) -> None:
        """Take over what the watcher before remembered; its data files only if the same ones are asked for."""
        asked, remembered = memory or (self._asked, {})
        for path, (is_data, state, content, row) in remembered.items():
            if not is_data:
                self._recent[path] = None
                if state is None:  # the import may pass over a missing file (`from_pyfile`), and not have it awaited
                    self.files.add(path, None)
            elif asked == self._asked:
                self.files.add(path, state)
                self.files.data[path] = None
            self._overwritten.rows[path] = row
            if content:
                self._contents.seen[path] = content

    def run(self) -> None:
        """Make rounds until `stop`, or until `changed` replaces the process."""
        while not self._stopped:
            began = time.monotonic()
            self._woken.clear()
            while self._errands:
                self._errands.popleft()()
            files = self.files
            files.adopt()
            files.list_folders(_CHORES)
            new = files.own[self._known :]
            if new:
                self._known += len(new)
                self._contents.read_later(new)
                self._rounds.edited(new)
            suspects = self._look([path for path in new if files.states[path] is None])
            if suspects:
                self._settle(suspects)
            if self._demand:
                self._deliver([self._demand])
            if not self._importing:
                self._contents.read_some()
            self._woken.wait(max(_INTERVAL / 2, began + _INTERVAL - time.monotonic()))

    def _look_at_imported(self) -> None:
        """Settle files that have changed since they were imported, or were written right before, and let requests in.

        One that was written right before may have been imported half written, and go on changing.
        """
        files, now = self.files, time.time()
        files.adopt()
        imported = [path for path in files.own if path not in files.data]
        suspects = self._different(imported)
        for path in imported:
            state = files.states[path]
            if path.endswith(".py") and state and now < state[0] / 1e9 + (_SETTLE if state[1] else _SETTLE_DOUBTFUL):
                suspects.add(path)
        if suspects:
            self._settle(suspects)
        self.settling(False)
        self._importing = False
        if self._is_reloaded:  # not during the import, which would be the slower for it
            self._rounds.busy_until = time.monotonic() + _BUSY_SECONDS

    def _look(self, new: list[str]) -> set[str]:
        """Look at the files of a round, and at these new ones, and return those that differ."""
        paths = new + self._rounds.next()
        began = time.perf_counter()
        different = self._different(paths)
        if not self._importing:  # which would be measured with it
            self._rounds.took(len(paths), time.perf_counter() - began)
        return different

    def _different(self, paths: Iterable[str]) -> set[str]:
        """Return the paths that differ from their known states, without those left out.

        A folder that differs is listed again, and its new files are returned in its place.
        """
        files, states = self.files, self.files.states
        known = len(files.own)
        found = {path for path in paths if _state(path) != states[path]}
        may_have_come: list[str] = []
        for folder in [path for path in found if path in files.trees or path in files.awaited]:
            may_have_come = self._rounds.missing  # their turn is later, but an entry of the folder may be one of them
            if os.path.isdir(folder) or not os.path.exists(folder):  # else a package has become a module
                found.discard(folder)
                files.list_again(folder)
        found.update(path for path in files.own[known:] + may_have_come if _state(path) != states[path])
        for path in list(found):
            rows = [path, self._overwritten.folder_of(path)] if path in files.data else [path]
            if any(map(self._overwritten.is_left_out, rows)):
                states[path] = _state(path)
                found.discard(path)
        return found

    def _settle(self, suspects: set[str]) -> None:
        """Look again and again until nothing changes any more; then have the new states accepted.

        New requests are held meanwhile if a file of the project is among the suspects; for installed packages the wait
        is the longer one, as an installer writes many files.
        """
        first_seen = time.monotonic()
        own = not suspects.isdisjoint(self.files.own)
        if own:
            self.settling(True)
        try:
            self._rest_and_accept(suspects, own, first_seen)
        finally:
            if own:
                self.settling(False)

    def _rest_and_accept(self, suspects: set[str], own: bool, first_seen: float) -> None:
        """Do what `_settle` says; `own` is whether a file of the project is among the suspects."""
        quiet_since = first_seen
        last: dict[str, _State] = {}
        written: dict[str, _State] = {}  # the last state of each in which it was neither gone nor empty
        weight = 1
        while time.monotonic() < first_seen + _SETTLE_LIMIT:
            # When more than one file has changed, any other may have too, as when branches are switched.
            suspects |= self._different(self.files.own if len(suspects) > 1 else self._rounds.next())
            states = {path: _state(path) for path in suspects}
            written.update({path: state for path, state in states.items() if state and state[1]})
            if states != last:
                quiet_since = time.monotonic() - (0.0 if last else _age(states.values()))
                last = states
            doubtful = not own or any(state is None or not state[1] for state in states.values())
            if time.monotonic() - quiet_since >= (_SETTLE_DOUBTFUL if doubtful else _SETTLE):
                break
            native_sleep(_SETTLE)
        else:  # some file never rests; another that was always gone or empty may still be written: look later
            weight, last = _RESTLESS, written
        self.files.adopt()  # a file that the application has written and then loaded is known by what was loaded
        news = {path: state for path, state in last.items() if state != self.files.states[path]}
        self._accept(news, hasty=first_seen < self._rested + _HEELS, weight=weight)

    def _accept(self, news: dict[str, _State], hasty: bool, weight: int) -> None:
        """Make these states the known ones, and report the files whose bytes are others than before.

        `hasty` says that the change was seen within `_HEELS` of an import or a reload; `weight` is what it counts for
        in `_Overwritten`.
        """
        changed = []
        too_many: dict[str, bool] = {}  # by folder: of all files that are new there at once, one counts
        for path, state in news.items():
            is_same, is_new = self._contents.is_same(path, state), self.files.states.get(path) is None
            self.files.states[path] = state
            self._contents.learn(path)
            # A person may well save often, but not while the application is imported, nor data right after a reload.
            counts = self._importing or (hasty and path in self.files.data)
            is_written = not is_same and self._overwritten.is_one_too_many(path, weight if counts else 0)
            folder = self._overwritten.folder_of(path)
            if counts and is_new and path in self.files.data and folder not in too_many:
                too_many[folder] = self._overwritten.is_one_too_many(folder, weight)
            if self._pending or not (is_same or is_written or too_many.get(folder)):
                changed.append(path)
        self._rounds.edited(news)
        changed = self._not_handled(changed)
        if changed:
            self._deliver(changed)

    def _not_handled(self, changed: list[str]) -> list[str]:
        """Call the functions given to `watch_data` with their files; return the paths that still need a reload."""
        needy = [path for path in changed if path not in self.files.data or self.files.is_extra(path)]
        others = [path for path in changed if path not in needy]
        for folder, wants, handle in self._handlers:
            theirs = [path for path in others if path.startswith(folder) and wants(path.replace(os.sep, "/"))]
            others = [path for path in others if path not in theirs]  # so the first that is asked decides
            if theirs and not handle(theirs):
                needy += theirs
        return needy + others

    def _deliver(self, paths: list[str]) -> None:
        """Report these paths and those pending; if one does not compile, report that, unless a person insists."""
        self._pending.update(paths)
        error = _own_absence() or (None if self._demand else self._first_error())
        if error is not None:
            if not self._different(self._pending):  # else it is being saved again: the next look tells
                self.broken(error)
            return
        pending, self._demand = sorted(self._pending), ""
        self._pending.clear()
        for path in self.files.states.keys() & pending:  # a reason is no path
            self._recent.pop(path, None)
            self._recent[path] = None
        self._forget_bytecode(pending)
        self.changed(pending)
        self._rested = time.monotonic()  # the old code goes on

    def _first_error(self) -> Optional[SyntaxError]:
        end = time.monotonic() + _COMPILE_SECONDS
        for path in sorted(path for path in self._pending if path.endswith(".py")):
            error = _syntax_error(path)
            if error is not None or time.monotonic() > end:
                return error
        return None

    def _forget_bytecode(self, changed: list[str]) -> None:
        """Remove the bytecode of files that were just edited, or were edited about when this process began.

        The banner says why.  For files that are loaded later the recorder prevents bytecode; but it has not seen those
        that the program loaded before it called `run`.
        """
        from importlib.util import cache_from_source

        young = (self.files.since - _YOUNG) * 1e9
        states = self.files.states
        edited = [path for path in self.files.own if max((states[path] or (0,))[::3]) > young]  # its mtime or ctime
        for path in {*changed, *edited}:
            if path.endswith(".py"):
                with contextlib.suppress(OSError, ValueError, NotImplementedError):
                    os.unlink(cache_from_source(path))


def _own_absence() -> Optional[SyntaxError]:
    """Return an error if devserve.py itself has gone from its folder, as on another branch: no process could start."""
    own = os.path.abspath(__file__)
    is_gone = not os.path.exists(own) and os.path.isdir(os.path.dirname(own))  # in a zip file it never is there
    return SyntaxError("it is gone, and nothing can reload without it", (own, 1, None, None)) if is_gone else None


def _places_of_missing(error: Optional[BaseException], cwd: str) -> Iterator[str]:
    """Yield the paths where a module would appear that an import has not found, in installed packages too.

    The exceptions that led to this one are read as well, since an application may handle the first and raise another.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts = error.name.split(".") if isinstance(error, ImportError) and error.name else []
        for folder in [place for place in sys.path if isinstance(place, str)]:
            for depth in range(1, len(parts) + 1):
                path = os.path.normpath(os.path.join(cwd, folder, *parts[:depth]))
                yield from (path, path + ".py", os.path.join(path, "__init__.py"))
        error = error.__cause__ or error.__context__


# =====================================================================================================================
# 13. Restart
#
# A reload replaces the running process by a new one with the same pid.  `Launch` describes how the process was
# started, and `Handover` what it leaves to the next: open sockets and notes.  `restart_process` restores what the
# first start found and calls `os.execve`.  On Windows that does not replace a process, and an editor's debugger would
# lose it; there a `Supervisor` makes this process a parent that starts one child after the other.  The room may know
# the configuration, foreign code and the terminal.  It does not know what is served, nor to whom.
#
# A reload by exec takes these steps:
#
# 1. `_run_exit_handlers` runs what would run at the interpreter's end.
# 2. `_start_store` starts a store: another process, of a few lines of Python (`_STORE`), which listens on a Unix
#    socket.  `_send` sends it one message with the sockets and the notes, and does not wait for the store, as the
#    message lies in the kernel's buffer.
# 3. `_restore` puts back what the application has changed of the process (`_KEPT`).
# 4. `os.execve` replaces the process.  The variable `_HANDOVER_ENV` holds the store's address.
# 5. In the new process `Launch.capture` finds the address and fetches the message, and the store ends.
#
# If the exec fails, the store is killed and `_KEPT` is as before.  The store costs 20 ms of another core.  It would be
# cheaper to leave a descriptor open across the exec; but when `run` is called in code, the application runs before us,
# and each child that it starts then would inherit the descriptor, and with it the port, the clients and the PIN.  A
# fork in the place of the store would run the application's own fork handlers and hold its locks.
#
# Under a `Supervisor` the parent does what the store does.  A child sends it the same message and ends with
# `_RELOAD_STATUS`, and the parent gives the message to the next child.  This is handed over, by exec, by a parent, and
# by a parent on Windows:
#
#   listening sockets        in the message       the parent keeps them      the parent keeps them
#                                                 and sends copies           and children inherit them
#   waiting connections      in the message       in the message             are answered by the old child, then closed
#   notes of `Handover`      in the message       in the message             in the message, on a pair of sockets
#   command, environment     in the message       in the message             in the message
#   folder, umask, terminal  exec keeps them,     as the parent has them     as the parent has them
#     and others (`_KEPT`)   once restored
#
# In all cases a listening socket is open at any moment, so the port never closes: clients that connect during a
# reload wait in the kernel's queue.
#
# Invariants:
# - No descriptor of ours is inheritable at any moment, and whatever listens at an address gives the message only to
#   the pid that it is for.  (Windows cannot send sockets; there children inherit them.)
# - The command of the first start is repeated word for word, whatever program it names (coverage, a profiler, the
#   application's own script).  Only where devserve.py itself is the program, a `-c` line imports it instead, because
#   Python compiles a script at each start, but a module once.
# - `restart_process` and `end_process` may be called from any thread, but only by one; the caller sees to that.
#
# How to change: if an application can change something that an exec carries into the next process, add a row to
# `_KEPT`.  It is saved at the first start and restored before each exec.
#
# Doors: Handover, Launch, MainThread, MAIN_THREAD_PATIENCE, restart_process, end_process, Supervisor.
#
# Read first: Launch.capture, restart_process, _exec, _start_store, _receive, Supervisor.run.
# =====================================================================================================================

# "PID:ADDRESS", where the message is and who may fetch it: the process with this pid after an exec, or a child of the
# parent with this pid.
_HANDOVER_ENV = "DEVSERVE_HANDOVER"
# File names of code that was typed at a prompt: Python's own, ptpython's and pdb's; `code`'s, PyCharm's, bpython's.
_PROMPTS = ("<stdin>", "<python-input-", "<console>", "<input>", "<bpython-input-")
_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # as a shell's `<(curl ...)`: none can be read a second time
_RELOAD_STATUS = 75  # the exit status by which a child asks `Supervisor` for the next; EX_TEMPFAIL, "try again"
_EXIT_SECONDS = 2.0  # that exit handlers may take: one that joins a child that never ends must not hold a reload
_WORKER_SECONDS = 1.0  # that processes of `multiprocessing` may take to end when they have been told to
_GREEN_STEP = 0.01  # seconds between two looks whether a job is done, for which greenlets wait
MAIN_THREAD_PATIENCE = 0.2  # seconds that an end or exec waits for the main thread to come out of foreign code
_FETCH_SECONDS = 10.0  # that the store may take to start and answer; it takes 0.02 on an idle machine
_STORE_INTERVAL = 0.05  # seconds in which the store notices that we have died; so long it may keep the port then
_PARENT_INTERVAL = 0.1  # seconds after which the parent looks again whether its child lives
_ORPHAN_SECONDS = 5.0  # that a child has to end after SIGTERM, when its parent has died
_LISTED_DESCRIPTORS = 1024  # looked at one by one where nothing lists the open ones; the usual limit of a process
_PASSED_LIMIT = 250  # descriptors in one message; Linux takes 253
_AF_UNIX: int = getattr(socket, "AF_UNIX", 1)  # Pythons for Windows lack the name, and nothing uses it there
_ADDRESS_LIMIT = 103  # bytes in the path of a socket on macOS and the BSDs

# The `-c` line that starts devserve.py as a program again.  The words after it are the first entry of sys.path, and
# then those of sys.argv.
_IMPORT_AND_RUN = (
    "import sys; del sys.argv[0]; sys.path[0] = sys.argv.pop(0); import devserve; "
    "sys.modules['__main__'] = devserve; sys.exit(devserve.main())"
)


class Handover(NamedTuple):
    """What one process leaves to the next: the descriptors of open sockets, and notes that `marshal` can write.

    The sockets have the roles "listener" and "waiting", which are connections without a request in progress.
    """

    sockets: dict[str, list[int]]
    notes: dict[str, Any]


class _Parent(NamedTuple):
    """What a child under a `Supervisor` knows of its parent."""

    line: _socket.socket  # a connection to the parent; it is closed when the parent ends
    address: str  # where the parent accepts the handover; "" if it is sent on the line (Windows)


class Launch(NamedTuple):
    """How this program was started, so that it can be started the same way again.

    `capture` makes it at the start of a process, in the main thread.  It never changes, so any thread may use it.
    `command`, `is_plain`, `environ` and `kept` are those of the first start: each process passes them to the next.
    """

    command: list[str]
    is_plain: bool  # whether devserve.py itself is the program, so that no code of the application runs before it
    environ: dict[str, str]
    kept: dict[str, Any]  # by names of `_KEPT`, and the folder
    started: float  # by the wall clock; every file of the application was loaded after this
    can_repeat: bool  # whether the command starts it as it is; not at a prompt, for standard input, in a pool's worker
    parent: Optional[_Parent]  # if this is a child under a `Supervisor`
    handover: Optional[Handover]  # what the process before has left; None at the first start

    @classmethod
    def capture(cls, *, early: bool = False) -> Launch:
        """Note how this process was started, and fetch what the process before has left.

        Call it once, in the main thread; with `early` when no code of the application has run yet.  Signals that the
        restart held back stay blocked until `release_signals`.
        """
        _open_standard_streams()
        parent, message, fds = _fetch()
        command, is_plain = (message["command"], message["is_plain"]) if message else _start_command()
        launch = cls(
            command=command,
            is_plain=is_plain,
            environ=message.get("environ") or _first_environ(early),
            kept=message.get("kept") or {**_save(), "folder": _first_folder(early)},
            started=message.get("left") or time.time() - time.process_time(),
            can_repeat=not _is_at_prompt() and not _is_worker(),
            parent=parent,
            handover=Handover(_by_role(message["roles"], fds), message["notes"]) if message else None,
        )
        if message:
            _restore_ignored(launch.kept.get("ignored"))
            for pid in message["children"]:
                _start_thread(_reap_child, pid)
        if parent is not None:
            _start_thread(_end_with_parent, parent.line)
        return launch

    def message(self, handover: Handover) -> tuple[dict[str, Any], list[int]]:
        """Return the message that the next process's `capture` reads, and the descriptors that go with it."""
        roles = {role: len(fds) for role, fds in handover.sockets.items()}
        fds = [fd for group in handover.sockets.values() for fd in group]
        first = {"command": self.command, "is_plain": self.is_plain, "environ": self.environ, "kept": self.kept}
        now = {"left": time.time(), "children": _children(), "roles": roles, "notes": handover.notes}
        return {**first, **now}, fds

    @property
    def must_supervise(self) -> bool:
        """Return whether this process should only supervise a child that does the work.

        That is so on Windows, when DEVSERVE_RELOADER=spawn is set, under pydevd, which follows each child process but
        not a second exec, and under proot, which ends at an exec in another thread than the first.
        """
        wished = sys.platform == "win32" or self.environ.get("DEVSERVE_RELOADER") == "spawn"
        return (wished or _under_pydevd() or _under_proot()) and self.parent is None

    @property
    def passes_sockets(self) -> bool:
        """Return whether connections can be handed to the next process too: not under a parent on Windows."""
        return self.parent is None or bool(self.parent.address)

    @property
    def folder(self) -> str:
        """The working directory at the start."""
        return str(self.kept["folder"])

    def terminal_is_gone(self) -> bool:
        """Return whether the terminal of the first start has been closed, or the shell that had it has ended."""
        terminals = self.kept.get("terminal", {"fds": []})["fds"]
        return bool(terminals) and not any(map(_is_our_terminal, terminals))

    def restore_terminal(self) -> None:
        """Give the terminal back as it was at the start, for when somebody was at pdb's prompt, which has no echo."""
        _restore(self.kept, "terminal")

    def release_signals(self) -> None:
        """Let in the signals that came during the restart.  Call it when the signal handlers are in place."""
        _restore(self.kept, "blocked")


def _open_standard_streams() -> None:
    """Open the standard streams that are closed: else a socket would get their number, and libraries in C write there.

    Some launchers close them, and an exec closes what the application has opened in their place.
    """
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a container without devices
            for _ in itertools.filterfalse(_is_open, range(3)):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def _start_thread(target: Callable[..., object], *args: object) -> None:
    name = f"devserve {target.__name__.strip('_')}"
    native_threading.Thread(target=target, args=args, name=name, daemon=True).start()


# -- the first start: command, folder, environment


def _start_command() -> tuple[list[str], bool]:
    """Return the command that starts this program again, and whether devserve.py itself is the program.

    If it is, the command imports devserve instead of running it as a script.  It then consists of the interpreter's
    flags, the line to run, the first entry of `sys.path`, which was the script's folder, and `sys.argv`.
    """
    # `sys.executable` is empty when a launcher, such as circus, named the interpreter by a word that is not in PATH.
    # Under scalene it is a shell script, which would start the interpreter as a child.
    original = _original_command()
    program = sys.executable or os.path.realpath("/proc/self/exe")
    with contextlib.suppress(OSError):
        if os.path.isabs(original[0]) and not os.path.samefile(program, "/proc/self/exe"):
            program = original[0]
    words = [program, *original[1:]]
    if not _is_program():
        return words, False
    flags = words[1 : len(words) - len(sys.argv)]
    if re.fullmatch(r"-[^-WX]*m", "".join(flags[-1:])):  # `-m`, or what ends by it, as `-um`
        flags[-1] = flags[-1][:-1] + "c"
    else:
        flags.append("-c")
    return [words[0], *flags, _IMPORT_AND_RUN, sys.path[0], *sys.argv], True


def _is_program() -> bool:
    """Return whether the interpreter itself runs devserve.py, as a script or by `-m`, and would find it by import.

    If so, the only frames besides ours are those of `runpy`, which implements `-m`; under `coverage run devserve.py`
    there are coverage's.  With `-I` and `-P` an import would not find the file, as its folder is not in `sys.path`.
    """
    owners = [frame.f_globals for frame in outer_frames(sys._getframe())]
    is_alone = all(owner is globals() or owner.get("__name__") == "runpy" for owner in owners)
    with contextlib.suppress(OSError):
        if is_alone and __name__ == "__main__":
            return os.path.samefile(os.path.join(sys.path[0], "devserve.py"), __file__)
    return False


def _under_pydevd() -> bool:
    """Return whether an editor debugs this program with pydevd, on which debugpy and PyCharm's debugger are built."""
    names = (str(frame.f_globals.get("__name__")) for frame in outer_frames(sys._getframe()))
    return "pydevd" in sys.modules and any(re.match(r"_?pydevd|debugpy\b", name) for name in names)


def _under_proot() -> bool:
    """Return whether proot traces this process, by which Termux and others run a Linux without root."""
    with contextlib.suppress(OSError, AttributeError):
        with open("/proc/self/status", "rb") as status:
            tracer = re.search(rb"^TracerPid:\s*([1-9]\d*)$", status.read(), re.MULTILINE)
        with open(f"/proc/{int(tracer.group(1))}/comm", "rb") as name:  # type: ignore[union-attr]
            return bool(name.read().startswith(b"proot"))
    return False


def _original_command() -> list[str]:
    """Return the words that the interpreter was started with: Python knows them since 3.10, Linux always.

    Where neither does, they are made up from the flags, `__main__` and `sys.argv`.  Under pydevd they always are: it
    adds itself to the command of each child, so that our command must name the program without pydevd.
    """
    words: list[str] = list(getattr(sys, "orig_argv", ()))
    if not words:
        with contextlib.suppress(OSError), open("/proc/self/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    if words and not _under_pydevd():
        return words
    import subprocess

    main = sys.modules["__main__"]
    name: str = getattr(getattr(main, "__spec__", None), "name", "").removesuffix(".__main__")
    script = os.path.abspath(getattr(main, "__file__", None) or sys.argv[0])
    program = ["-m", name] if name else [script]
    if name == "__main__":  # a folder or a zip file with a __main__.py in it, as a command's .exe is on Windows
        program = [os.path.dirname(script)]
    elif name and not words and os.path.abspath(sys.argv[0]) != script:  # cProfile has put its program's words there
        program = [os.path.abspath(sys.argv[0])]
    if sys.argv[:1] == ["-c"]:
        program = words[-len(sys.argv) - 1 :][:2]  # "-c" and its text; `sys.argv` has the words that follow
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, *program, *sys.argv[1:]]


def _is_at_prompt() -> bool:
    """Return whether code is typed at a prompt, in a notebook, in IDLE or Thonny, or comes from standard input."""
    if any(frame.f_code.co_filename.startswith(_PROMPTS + _PIPES) for frame in outer_frames(sys._getframe())):
        return True
    has_prompt = not sys.modules.keys().isdisjoint({"idlelib.run", "thonny"})
    return hasattr(sys, "ps1") or hasattr(builtins, "get_ipython") or has_prompt


def _is_worker() -> bool:
    """Return whether `multiprocessing` has started this process, whose command would not start it again."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


def _first_folder(early: bool) -> str:
    """Return the working directory at the start, even if the application has called `os.chdir` before us.

    That can be told if its script was named relative to that folder and is not found under that name any more.
    """
    main_file = str(getattr(sys.modules["__main__"], "__file__", None) or "")
    named = os.sep + sys.argv[0] if sys.argv and sys.argv[0] else ""
    if not early and named and main_file.endswith(named) and not os.path.exists(sys.argv[0]):
        return main_file[: -len(named)]
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.environ.get("PWD", os.sep)


def _first_environ(early: bool) -> dict[str, str]:
    """Return the environment at the start.

    If `run` was called in code, the application has run before us, and may have put into `os.environ` the values of a
    `.env`, which may be edited later.
    """
    environ = {} if early else _environ_of_exec()
    if not environ:
        environ = dict(os.environ)
        # What the application has set from a `.env`, it sets again; what a shell or an editor has set from it stays.
        sets_again = not early and not sys.modules.keys().isdisjoint({"dotenv", "environ"})
        for path in filter(os.path.isfile, env_files()) if sets_again else ():
            for name, _ in env_values(path)[0].items() & environ.items():
                if not name.startswith("PYTHON"):  # the interpreter reads it before
                    del environ[name]
    environ.pop(_HANDOVER_ENV, None)
    return environ


def _environ_of_exec() -> dict[str, str]:
    """Return the environment that the last exec has set; {} where the system does not tell (Linux does)."""
    with contextlib.suppress(OSError):
        with open("/proc/self/environ", "rb") as file:
            words = [word.partition(b"=") for word in file.read().split(b"\0")[:-1]]
        if all(equals for _, equals, _ in words):  # else a program that sets its title has written over it
            return {os.fsdecode(key): os.fsdecode(value) for key, _, value in words}
    return {}


# -- what an exec would carry into the next process


class _Kept(NamedTuple):
    """A property of the process or its terminal that an exec preserves, also when the application has changed it."""

    save: Callable[[], Any]  # returns its present value
    restore: Callable[[Any], object] = lambda value: None  # the default leaves it to the next process


def _save() -> dict[str, Any]:
    """Return the present values of all rows of `_KEPT`, without those that a sandbox forbids or this Python lacks."""
    values: dict[str, Any] = {}
    for name, kept in _KEPT.items():
        with contextlib.suppress(AttributeError, OSError):
            values[name] = kept.save()
    return values


def _restore(values: dict[str, Any], *names: str) -> None:
    """Restore values that `_save` returned, all or those named; one that cannot be restored any more is left out."""
    for name in names or _KEPT:
        with contextlib.suppress(OSError):  # the folder, the descriptor or the terminal has gone
            if name in values:
                _KEPT[name].restore(values[name])


def _is_open(fd: int) -> bool:
    """Return whether a descriptor is in use."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _is_our_terminal(fd: int) -> bool:
    """Return whether a descriptor is the terminal that controls this process.

    When the leader of the session, as a rule a shell, has ended, no descriptor is, even if the terminal is still open.
    """
    try:
        return sys.platform != "win32" and os.tcgetpgrp(fd) >= 0
    except OSError:
        return False


def _save_ignored() -> list[int]:
    """Return the numbers of the signals that are ignored now."""
    return [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]


def _restore_ignored(ignored: Optional[list[int]]) -> None:
    """Stop ignoring all signals but these.  Only the main thread can, so the next process does it at its start."""
    if ignored is not None and is_main_thread():
        for number in set(_save_ignored()) - set(ignored):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if sys.platform != "win32":

    def _setsid_in_children(setsid: Callable[[], None], pid: int) -> None:
        if os.getpid() != pid:
            setsid()

    # A process that leads a session cannot begin another (EPERM), nor give the first one up.  So after a reload,
    # when the application has called it in the process before, with this pid, `os.setsid` does nothing there.
    with contextlib.suppress(AttributeError, OSError):  # a Python may lack the call, a sandbox forbid it
        if _HANDOVER_ENV in os.environ and os.getsid(0) == os.getpid():
            os.setsid = partial(_setsid_in_children, os.setsid, os.getpid())

    _TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

    def _save_umask() -> int:
        umask = os.umask(0o077)
        os.umask(umask)
        return umask

    def _save_terminal() -> dict[str, Any]:
        """Return which standard streams are our terminal, whether each blocks, and the terminal's attributes."""
        attributes = None
        with contextlib.suppress(ImportError):  # as any module of C, a Python may have been built without it
            import termios

            with contextlib.suppress(OSError, termios.error):
                attributes = termios.tcgetattr(0) if os.isatty(0) else None
        blocking = {fd: os.get_blocking(fd) for fd in (0, 1, 2) if _is_open(fd)}
        return {"fds": list(filter(_is_our_terminal, blocking)), "blocking": blocking, "attributes": attributes}

    def _restore_terminal(value: dict[str, Any]) -> None:
        """Restore the terminal, unless another job has it now: to change it would then stop this process (SIGTTOU)."""
        for fd in filter(_is_open, value["blocking"]):
            os.set_blocking(fd, value["blocking"][fd])
        if value["attributes"]:
            import termios

            with contextlib.suppress(OSError, termios.error):  # the terminal has been closed, or is not ours any more
                if os.tcgetpgrp(0) == os.getpgrp():
                    termios.tcsetattr(0, termios.TCSANOW, value["attributes"])

    def _save_inheritable() -> list[int]:
        """Return the descriptors, besides the standard streams, that an exec would not close."""
        fds: Iterable[int] = range(_LISTED_DESCRIPTORS)
        for folder in ("/dev/fd", "/proc/self/fd"):
            with contextlib.suppress(OSError):  # a sandbox without /proc, into which Linux's /dev/fd leads as well
                fds = list(map(int, os.listdir(folder)))
        found = []
        for fd in fds:
            with contextlib.suppress(OSError):  # not open, such as by now the listing's own
                if fd > 2 and os.get_inheritable(fd):
                    found.append(fd)
        return found

    def _restore_inheritable(fds: list[int]) -> None:
        for fd in {*_save_inheritable(), *filter(_is_open, fds)}:
            os.set_inheritable(fd, fd in fds)

    _KEPT = {
        # The command may name its script relative to the folder.
        "folder": _Kept(os.getcwd, os.chdir),
        "umask": _Kept(_save_umask, os.umask),
        # A signal that a module blocks would never reach the next process.
        "blocked": _Kept(
            lambda: list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            partial(signal.pthread_sigmask, signal.SIG_SETMASK),
        ),
        # An exec resets a signal that has a handler to its default, but one that is ignored stays ignored.
        "ignored": _Kept(_save_ignored),
        # An alarm or a profiler's tick would kill the next process, which has no handler for it yet.
        "timers": _Kept(
            lambda: [signal.getitimer(timer) for timer in _TIMERS],
            lambda values: [signal.setitimer(timer, *value) for timer, value in zip(_TIMERS, values)],
        ),
        # A debugger's prompt and `getpass` turn the echo off, and some programs let standard input not block.
        "terminal": _Kept(_save_terminal, _restore_terminal),
        # What the application has made inheritable would stay open, once more for each reload.
        "inheritable": _Kept(_save_inheritable, _restore_inheritable),
    }
else:
    _KEPT: dict[str, _Kept] = {}  # there is no exec, and a child has these properties from its parent


# -- the end of a process


class MainThread:
    """Lets other threads have calls made in the main thread, while that waits in `wait` or looks at `woken`."""

    def __init__(self, *, is_waiting: bool = False) -> None:
        self.is_waiting = is_waiting
        self.woken = threading.Event()
        self.wake: Callable[[], object] = lambda: None  # out of the event loop that the main thread may run
        self._calls: deque[Callable[[], object]] = deque()

    def post(self, call: Callable[[], object]) -> bool:
        """Ask for a call, if the main thread is there to make it; return whether it is."""
        if self.is_waiting:
            self._calls.append(call)
            self.woken.set()
            self.wake()
        return self.is_waiting

    def wait(self, seconds: Optional[float] = None) -> None:
        """Wait until woken, and make the calls."""
        self.woken.wait(seconds)
        self.woken.clear()
        while self._calls:
            self._calls.popleft()()


def restart_process(
    launch: Launch,
    handover: Handover,
    ready: Callable[[], object] = lambda: None,
    main_thread: Optional[MainThread] = None,
) -> NoReturn:
    """Run this program anew in this process; all its threads end without notice.  It may be called in any thread.

    Exit handlers run first, in the main thread if that waits, and the streams are flushed; `ready` is called last.
    Under a parent, the handover goes there and the process ends.  Raises OSError when the program cannot be started;
    then the process is as it was before, except that its exit handlers have run.
    """
    if not os.access(launch.command[0] or os.devnull, os.X_OK):
        raise FileNotFoundError(errno.ENOENT, "the interpreter is gone", launch.command[0])
    _run_exit_handlers(main_thread)
    message, fds = launch.message(handover)
    if launch.parent is not None:
        ready()
        line = _connect(launch.parent.address) if launch.parent.address else launch.parent.line
        _send(line, message, fds)  # kept until the end: `-X dev` would warn of a temporary that is not closed
        os._exit(_RELOAD_STATUS)
    _exec(launch, message, fds, ready)


def end_process(status: int, main_thread: Optional[MainThread] = None) -> NoReturn:
    """End this process now, whatever its threads do; exit handlers run first, and the streams are flushed.

    The handlers run in the main thread if that waits, or calls this.
    """
    if main_thread is None and is_main_thread() and not has_green_threads():
        main_thread = MainThread(is_waiting=True)
        with contextlib.suppress(RuntimeError):  # the system has no thread left
            _start_thread(end_process, status, main_thread)
            while True:
                main_thread.wait()
    _run_exit_handlers(main_thread)
    os._exit(status)


def _run_exit_handlers(main_thread: Optional[MainThread] = None) -> None:
    """Run what would run at the interpreter's end, then flush the streams, each for `_EXIT_SECONDS` at most.

    The handlers run in the main thread if that waits: what they close may be its own, such as a connection of sqlite3.
    If they take longer, they may be waiting for processes of `multiprocessing`, which are ended then.
    """
    joins_pools = getattr(sys.modules.get("concurrent.futures.thread"), "_python_exit", MISSING)  # it may never return

    def exit_handlers() -> None:
        for handler in reversed(getattr(threading, "_threading_atexits", ())):  # the interpreter's first step
            held = [cell.cell_contents for cell in getattr(handler, "__closure__", None) or ()]  # since Python 3.13
            if joins_pools not in (getattr(handler, "func", handler), *held):
                call_safely(handler)
        atexit._run_exitfuncs()

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # None, a closed pipe, closed
                stream.flush()

    if not _ends_in_time(exit_handlers, main_thread) and "multiprocessing.process" in sys.modules:
        workers = sys.modules["multiprocessing.process"].active_children()
        for worker in workers:
            worker.terminate()
        end = time.monotonic() + _WORKER_SECONDS
        for worker in workers:
            call_safely(partial(worker.join, max(0.0, end - time.monotonic())))
            if worker.daemon:  # else it may outlive us; one that catches the signal would work on with old code
                call_safely(worker.kill)
    _ends_in_time(flush)  # it may never end: a thread that writes to a full pipe holds the stream's lock


def _ends_in_time(job: Callable[[], None], main_thread: Optional[MainThread] = None) -> bool:
    """Call a job in the main thread if that waits, or else in a thread of its own, or here if there can be none.

    Return whether it ends in `_EXIT_SECONDS`.
    """
    begun, done = native_threading.Event(), native_threading.Event()
    turn = native_threading.Lock()

    def call() -> None:
        if turn.acquire(blocking=False):  # else another thread has been first
            begun.set()
            call_safely(job)  # Python 3.9 raises the last exit handler's error here, which it has printed already
            done.set()

    if main_thread and main_thread.post(call) and begun.wait(MAIN_THREAD_PATIENCE):
        return done.wait(_EXIT_SECONDS)
    try:
        _start_thread(call)
    except RuntimeError:  # the system has no thread left
        call()
    end = time.monotonic() + _EXIT_SECONDS
    while has_green_threads() and is_main_thread() and not done.is_set() and time.monotonic() < end:
        time.sleep(_GREEN_STEP)  # the greenlets' own sleep: the job may wait for greenlets, which run in this thread
    return done.wait(max(0.0, end - time.monotonic()))


def _exec(launch: Launch, message: dict[str, Any], fds: list[int], ready: Callable[[], object]) -> NoReturn:
    """Leave the handover in a store and replace the process, or raise OSError."""
    if sys.platform == "win32":
        raise OSError(errno.EINVAL, "this system does not replace a process by another")
    now = _save()
    pid, address = _start_store(launch)
    try:
        message["children"].append(pid)
        with contextlib.closing(_connect(address)) as store:
            _send(store, message, fds)
        _restore(launch.kept)
        ready()
        _hold_signals(launch)
        environ = {**launch.environ, _HANDOVER_ENV: f"{os.getpid()}:{address}"}
        import posix

        words = launch.command[0], launch.command, environ
        if isinstance(os.execve, FunctionType) and "pydevd" not in sys.modules:  # in pydevd's the handover is lost
            call_safely(partial(os.execve, *words))  # coverage has replaced it by one that saves its data before
        posix.execve(*words)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        _reap_child(pid)
        _restore(now)
        raise


def _hold_signals(launch: Launch) -> None:
    """Block signals in the next process, which inherits this, until it has its handlers in place.

    If the program is another than devserve.py, its code runs before us and may start children, which would have the
    signals blocked for ever.  So none is blocked then, and a signal in this moment ends the process.
    """
    if sys.platform != "win32" and launch.is_plain:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


def _let_signals_in() -> None:
    """Unblock the signals that the process before has held, where it has left nothing that would tell of them."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


# -- the store: a process that keeps the handover during an exec

# It listens on its standard input.  On the first connection of its parent it receives the messages, and on the second,
# which comes after the exec from the same pid, it sends them.  When the parent has died, it ends.  It imports no more
# than it needs, and starts while the next process starts too.
_STORE = """
import os, struct, sys, _socket as s
listener, parent = s.socket(fileno=0), int(sys.argv[1])
listener.settimeout(float(sys.argv[2]))
os.closerange(3, 1024)
def is_parent(peer):
    if sys.platform == "darwin":
        return peer.getsockopt(0, 2) == parent
    if sys.platform != "linux":
        return True
    return struct.unpack("3i", peer.getsockopt(s.SOL_SOCKET, 17, 12))[0] == parent
def accept():
    while os.getppid() == parent:
        try:
            peer = s.socket(fileno=listener._accept()[0])
        except OSError:
            continue
        peer.settimeout(None)
        if is_parent(peer):
            return peer
        peer.close()
    os._exit(0)
peer = accept()
messages = list(iter(lambda: peer.recvmsg(65536, s.CMSG_SPACE(1024))[:2], (b"", [])))
peer = accept()
for data, passed in messages:
    peer.sendmsg([data], passed)
os._exit(0)
"""


def _start_store(launch: Launch) -> tuple[int, str]:
    """Start the store's process; return its pid and address.  Ctrl-C does not reach it, as it has its own group."""
    listener, address = _listen_for_handover()
    with contextlib.closing(listener):
        command = [launch.command[0], "-I", "-S", "-c", _STORE, str(os.getpid()), str(_STORE_INTERVAL)]
        if sys.platform == "win32" or not hasattr(os, "posix_spawn"):  # PyPy
            import subprocess

            process = subprocess.Popen(command, env=launch.environ, stdin=listener.fileno(), start_new_session=True)
            return process.pid, address
        import posix  # gevent replaces functions of `os` by some that only the greenlets' thread may call

        actions = [(os.POSIX_SPAWN_DUP2, listener.fileno(), 0)]
        pid = posix.posix_spawn(command[0], command, launch.environ, file_actions=actions, setpgroup=0, setsigmask=())
        return pid, address


def _listen_for_handover() -> tuple[_socket.socket, str]:
    """Return a Unix socket that listens on an address that nobody can guess, and the address ("@" for a NUL).

    On Linux the address is an abstract one, which has no file to remove; elsewhere it is a path.
    """
    name = f"devserve-{os.urandom(16).hex()}"
    folder = os.environ.get("TMPDIR", "")  # macOS makes a private one
    if not os.path.isdir(folder) or len(os.fsencode(folder)) > _ADDRESS_LIMIT - len(name) - 1:
        folder = "/tmp"
    address = f"@{name}" if sys.platform == "linux" else os.path.join(folder, name)
    listener = _socket.socket(_AF_UNIX)
    listener.bind(address.replace("@", "\0", 1) if sys.platform == "linux" else address)
    listener.listen()
    return listener, address


def _remove_address(address: str) -> None:
    """Remove the file of an address, if it is a path."""
    if address.startswith(os.sep):
        with contextlib.suppress(OSError):
            os.unlink(address)


def _connect(address: str) -> _socket.socket:
    sock = _socket.socket(_AF_UNIX)
    sock.settimeout(_FETCH_SECONDS)
    sock.connect("\0" + address[1:] if address.startswith("@") else address)
    return sock


# -- messages between processes


def _send(sock: _socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Send a message, and the descriptors along with its first bytes where the system can pass them.

    The length of the message and the number of descriptors come first.
    """
    data = marshal.dumps(message)
    data = struct.pack(">II", len(data), len(fds)) + data
    if sys.platform != "win32":
        for start in range(0, len(fds), _PASSED_LIMIT):
            part = fds[start : start + _PASSED_LIMIT]
            passed = struct.pack(f"{len(part)}i", *part)
            data = data[sock.sendmsg([data[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]) :]
    sock.sendall(data)


def _receive(sock: _socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a message and its descriptors, which are not inheritable; both are empty if the connection ends first."""
    data = b""
    fds: list[int] = []
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:4], "big"):
        if sys.platform == "win32":
            more = sock.recv(65536)
        else:
            space, flags = socket.CMSG_SPACE(4 * _PASSED_LIMIT), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            more, ancillary, _, _ = sock.recvmsg(65536, space, flags)
            for _, _, passed in ancillary:  # descriptors alone are ever sent
                fds.extend(struct.unpack(f"{len(passed) // 4}i", passed))
        if not more:
            return {}, []
        data += more
    for fd in fds:
        os.set_inheritable(fd, False)
    message: dict[str, Any] = marshal.loads(data[8:])
    return message, fds


def _by_role(roles: dict[str, int], fds: list[int]) -> dict[str, list[int]]:
    """Return received descriptors by their roles; empty lists where the system could not pass them."""
    left = iter(fds)
    return {role: list(itertools.islice(left, count)) for role, count in roles.items()}


def _fetch() -> tuple[Optional[_Parent], dict[str, Any], list[int]]:
    """Return the parent, if there is one, and the message and descriptors that the process before has left.

    A child of the application may have the variable in its environment too.  It gets nothing: the pid in the variable
    is neither its own nor its parent's, or whatever listens at the address sees that the child's pid is another.
    """
    told = os.environ.pop(_HANDOVER_ENV, "")
    if not told:  # a script may have cleaned its environment before it calls `run`
        told = _environ_of_exec().get(_HANDOVER_ENV, "")
        told = told if told.startswith(f"{os.getpid()}:") else ""  # a second `run` finds nothing there
    pid, _, address = told.partition(":")
    if not address or (sys.platform != "win32" and pid not in (str(os.getpid()), str(os.getppid()))):
        return None, {}, []
    try:
        line = _socket.socket(fileno=int(address)) if address.isdigit() else _connect(address)
        message, fds = _receive(line)
    except OSError:
        _let_signals_in()
        return None, {}, []
    _remove_address(address if pid == str(os.getpid()) else "")
    if not message:
        line.close()
        return None, {}, []
    line.settimeout(None)
    if address.isdigit():
        for fd in (line.fileno(), *message["inherited"]):
            end = socket.socket(fileno=fd)
            end.set_inheritable(False)
            end.detach()
        return _Parent(line, ""), message, message["inherited"]
    if pid == str(os.getpid()):
        line.close()
        return None, message, fds
    return _Parent(line, address), message, fds


# -- children of earlier processes


def _children() -> list[int]:
    """Return the pids of this process's children, where the system tells (Linux)."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            path = f"/proc/self/task/{thread}/children"
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # the thread may end meanwhile
                found.extend(map(int, file.read().split()))
    return found


def _reap_child(pid: int) -> None:
    """Wait for a child that an earlier process has started, so that it leaves no zombie.

    The application does not know these children; it waits for its own.
    """
    with contextlib.suppress(ChildProcessError):  # the application has waited for any child, or it was the parent's
        os.waitpid(pid, 0)


# -- where an exec does not do: a parent that starts children


class Supervisor:
    """A parent that runs this program as a child, and again as long as it ends with `_RELOAD_STATUS`.

    It owns the listener, and gives it to each child, with what the child before has left.  SIGTERM and SIGHUP are
    passed on to the child, and so is SIGINT unless the terminal has sent it to the child as well.  The thread that
    calls `run`, as a rule the main one, does everything; `_relay` is called there as a signal handler.

    A child connects twice: at its start, when `_give` sends it the message, and before it ends for a reload, when
    `_take` receives the message for the next.  Windows cannot send sockets.  There one pair of connected sockets,
    which the child inherits, takes the place of both connections, and no client's connection is handed over: each has
    one request, and a reload waits for the request of a new connection.
    """

    def __init__(self, launch: Launch, handover: Handover) -> None:
        self.launch = launch
        self.child: Any = None
        self.stopped_by = 0  # the signal that has asked for the end
        self.listeners = [socket.socket(fileno=fd) for fd in handover.sockets["listener"]]
        self.waiting: list[int] = []  # descriptors of connections, for the next child
        self.message, _ = launch.message(handover)  # for the next child too

    def run(self) -> int:
        """Run one child after the other, until one ends without asking for the next; return its status."""
        if is_main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), self._relay)
        while True:
            status = self._run_child()
            if self.stopped_by and status in (_RELOAD_STATUS, -self.stopped_by):
                return 0  # the signal came during a reload, or before the child had handlers
            if status != _RELOAD_STATUS:
                return 128 - status if status < 0 else status  # a negative status is the signal that killed it

    def close(self) -> None:
        """Close the listeners."""
        for listener in self.listeners:
            listener.close()

    def _relay(self, number: int, frame: object) -> None:
        """Pass a signal on to the child, if it has not got it from the terminal (as a signal handler)."""
        if number != getattr(signal, "SIGHUP", None):
            self.stopped_by = number
        if self.child is not None and not (number == signal.SIGINT and _reaches_children()):
            self._signal_child(number)

    def _signal_child(self, number: int) -> None:
        if sys.platform != "win32":  # there the console tells every process, and `send_signal` refuses most numbers
            self.child.send_signal(number)

    def _run_child(self) -> int:
        """Run one child to its end, giving and taking messages; return its status."""
        if sys.platform == "win32":
            line, theirs = socket.socketpair()
            with line, theirs:
                for listener in self.listeners:
                    listener.set_inheritable(True)
                theirs.set_inheritable(True)
                self._start(str(theirs.fileno()))
                self._give(line)
                if self._wait(line, lambda: line.recv(1, socket.MSG_PEEK)):
                    self._take(line)
                return int(self.child.wait())
        listener, address = _listen_for_handover()
        with contextlib.closing(listener), contextlib.ExitStack() as lines:  # a child ends when its line is closed
            self._start(address)
            for step in (self._give, self._take):
                accepted = self._wait(listener, lambda: self._accepted(listener))
                if accepted is not None:
                    step(lines.enter_context(contextlib.closing(accepted)))
            status = int(self.child.wait())
        _remove_address(address)
        return status

    def _start(self, address: str) -> None:
        import subprocess

        environ = {**self.launch.environ, _HANDOVER_ENV: f"{os.getpid()}:{address}"}
        close = sys.platform != "win32"
        _hold_signals(self.launch)
        self.child = subprocess.Popen(self.launch.command, env=environ, cwd=self.launch.folder, close_fds=close)
        self.launch.release_signals()
        if self.stopped_by:  # it came while the child was being started
            self._signal_child(self.stopped_by)

    def _wait(self, sock: _socket.socket, look: Callable[[], Outcome]) -> Optional[Outcome]:
        """Call `look` until it finds something at a socket, and return that, or None when the child ends first."""
        ended = False
        while not ended:
            ended = self.child.poll() is not None  # asked first: what the child has sent is found by one more look
            sock.settimeout(0.0 if ended else _PARENT_INTERVAL)
            with contextlib.suppress(OSError):  # nothing yet
                return look()
        return None

    def _accepted(self, listener: _socket.socket) -> _socket.socket:
        """Return the child's connection; one of the application's children, which may know the address, is refused."""
        sock = _socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]
        if _peer_pid(sock) not in (self.child.pid, 0):
            sock.close()
            raise PermissionError(errno.EPERM, "not the child")
        sock.settimeout(_FETCH_SECONDS)
        return sock

    def _give(self, line: _socket.socket) -> None:
        """Send the child the message, the listeners and the waiting connections, of which no copy is kept here."""
        fds = [*(listener.fileno() for listener in self.listeners), *self.waiting]
        self.message["roles"] = {"listener": len(self.listeners), "waiting": len(self.waiting)}
        if sys.platform == "win32":
            self.message["inherited"] = fds
        with contextlib.suppress(OSError):  # it died at once
            _send(line, self.message, fds)
        for fd in self.waiting:
            os.close(fd)
        self.waiting = []

    def _take(self, line: _socket.socket) -> None:
        """Receive the message and the connections that the child leaves for the next, if it does."""
        message: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            message, fds = _receive(line)
        if message:
            sockets = _by_role(message["roles"], fds)
            self.message, self.waiting = message, sockets.get("waiting", [])
            for fd in sockets["listener"]:  # second descriptors of the sockets that we keep
                os.close(fd)


def _peer_pid(sock: _socket.socket) -> int:
    """Return the pid of the process at the other end of a connection; 0 where the system does not tell."""
    if sys.platform == "linux":
        pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, 17, 12))[0]  # SO_PEERCRED; PyPy has no name
        return pid
    return sock.getsockopt(0, 2) if sys.platform == "darwin" else 0  # SOL_LOCAL, LOCAL_PEERPID


def _reaches_children() -> bool:
    """Return whether SIGINT seems to come from the terminal, which sends it to every process of the job."""
    if sys.platform == "win32":
        return True
    with contextlib.suppress(OSError):  # the terminal is not ours
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    return False


def _end_with_parent(line: _socket.socket) -> None:
    """End this process when its parent has died, so that no orphan keeps the port (in a thread of its own)."""
    with contextlib.suppress(OSError):
        while line.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    native_sleep(_ORPHAN_SECONDS)
    os._exit(1)


# =====================================================================================================================
# 14. Runner
#
# This room brings the machines together.  It puts the loaded application into the debugger and the debugger into the
# server; when the watcher finds a change, it closes the server's gate and starts the process again.  It is the only
# room that may know all the others.
#
# `_start` reads the configuration and makes a `_Runner`, whose `serve` is the life of one process.  Its steps are told
# on the title page, in the stories of a start and of a save.  These are the threads:
#
# - The main thread, or whichever calls `run`, makes the `_Runner` and loads the application.  Then it runs the event
#   loop of an ASGI application, or only waits, until a signal ends the process; last, it runs the exit handlers.  It
#   never accepts connections itself, because Python runs signal handlers there.
# - "devserve watcher" looks at files.  It calls `reload` and `show_broken` itself, so that a reload needs no other
#   thread; an import that never ends, or an event loop that hangs, cannot prevent it.
# - "devserve acceptor" runs `DevServer.serve_forever`.  Each connection is then served in a thread of its own.
# - "devserve import", on the command line alone, watches how long the import takes (`_watch_import`).
# - "devserve browser" opens one, with `--open`.
# - "devserve end" is started by a signal that ends the process (`_end`).
# - "devserve errands" is a greenlet, where gevent or eventlet have replaced threads.  It calls what the watcher and
#   "devserve end" ask for (`_run_in_server_thread`), because only the greenlets' own thread may touch the server.
#
# Three threads may end the loading: the main thread, "devserve import", and the watcher after a further save.  Three
# may end the process or replace it: the main thread, the watcher and "devserve end".  So each asks `_Runner._enter`
# whether it may, and only the first is told yes.
#
# Invariants: a process goes through its phases in one direction, from loading to its end (back only when a restart
# fails), and the thread that is first to begin a phase does so alone.  The socket listens before the application is
# imported, and no connection is accepted before the import has ended or has been given up.  What is said at the start,
# such as the banner and warnings about options, is said once and not again after a reload.
#
# How to change: what the next process must know goes into `_Runner._notes`, as values that `marshal` can write, and is
# read from `self.notes` with a default, since the first process finds none.
#
# Doors: run, make_server, serve_command, DebuggedASGI.
#
# Read first: run, _Runner.serve, _Runner.load, _Runner.reload.
# =====================================================================================================================

_BY_HAND = "SIGHUP"  # stands where the changed path would, in a reload that a person has asked for
_PORT_IN_CODE = "port={}".format  # how code names another port; the error for a port in use proposes it
_LOADING, _SERVING, _LEAVING = range(3)  # the phases of a process, in their order
_UNWIND_SECONDS = 10.0  # that a program around ours has to end in its own way: AsgiBridge's end, then coverage's data
_GRACE = 5.0  # seconds from its own start that a request may take while a reload waits for it
_JOBS_INTERVAL = 0.02  # seconds between two looks at the jobs that a reload waits for
_LAST_LINE_GRACE = 0.5  # seconds from its own start in which a request still gets its line when a signal ends us
_LAST_JOBS_GRACE = 2.0  # seconds that jobs of a ThreadPoolExecutor may take then, for which the interpreter waits too
_WAKE_INTERVAL = 0.5  # seconds after which a signal is handled that came just before the main thread fell asleep
_GREEN_INTERVAL = 0.05  # seconds after which the greenlets' thread looks again whether another thread wants a call
_FORK_PATIENCE = (
    1.0  # seconds that a fork waits for a line that is being written; a terminal may take nothing (Ctrl-S)
)
_GREEN_PATIENCE = 0.5  # seconds that their thread may take to make such a call before we look what holds it up
_BANNER_PATIENCE = 1.0  # seconds of importing before the banner; most mistakes in a command show earlier, without it
_IMPORT_WARNING = 3.0  # seconds of importing before the terminal says where the import is
_IMPORT_PATIENCE = 10.0  # seconds of importing, after a reload, before clients are told; few libraries take as long
# More objects than most imports make, and a number that no application sets, so that we can tell ours from its own.
_NO_COLLECTION = 2_000_003


def run(
    app: WSGIApplication, host: Optional[str] = None, port: Optional[int] = None, debug: Optional[bool] = None,
    **options: Any,
) -> None:  # fmt: skip
    """Serve `app` until Ctrl-C, like `app.run()` of the frameworks; with `debug` it reloads and explains exceptions.

        if __name__ == "__main__":
            devserve.run(app, debug=True)

    The keywords are the command line's options.  An option that is not given here is taken from its DEVSERVE_*
    variable, which may also stand in `.env` or `.flaskenv`; these are read as the command line reads them.

    host (str, "127.0.0.1")         an address, a name, or unix:PATH
    port (int, 5000)                0 takes a free one
    debug (bool, False)             reload on a save, and show exceptions as pages with a console
    reload, debugger (bool, debug)  either alone
    live (bool, False)              browsers show the new page by themselves after a reload
    open (bool, False)              open the browser when the server is ready
    threads (bool, True)            False serves one request after the other
    quiet (bool, False)             True writes no log of requests
    cert, key (path, "")            files in PEM, for HTTPS; cert="adhoc" makes a certificate
    env_file (path, "")             variables for the application, besides `.env` and `.flaskenv`
    extra_files (list of str, [])   files, folders and globs that are watched too
    exclude_patterns (list, [])     globs of what is never watched
    pin (str, "")                   the console's PIN: "" for a random one, "off" for none
    trusted_hosts (list, [])        host names, besides this machine's, whose pages may use the console
    editor (str, "")                what opens a file from a link
    path_map (list, [])             "HERE=THERE", where the editor has the folder that is HERE for the server

    The code that calls this runs again at each reload, so an exception in it ends the process.  Raises TypeError for
    an unknown keyword or a value of the wrong type.  A mistake that the person can mend, such as a port in use or an
    `app` that is no application, ends the process with one line and exit status 2.
    """
    terminal = Terminal()
    # A module that the loader imports has no `if __name__ == "__main__"` around its call:
    if any(frame.f_code is _Runner.load.__code__ for frame in outer_frames(sys._getframe())):
        terminal.warn("devserve is serving already; the call of devserve.run is left out")
        return
    check_keywords(options, run=True)
    keywords = {"host": host, "port": port, "debug": debug, **options}

    def load(config: Config) -> WSGIApplication:
        label, _ = call_safely(lambda: escape_unprintable(repr(app)[:80]))
        return prepared(checked(app, label or type_name(type(app))), debug=config.debug, debugger=config.debugger)

    def read(warn: Callable[[str], None]) -> Config:
        return configure(values_of_keywords(keywords), warn)

    status = _start(read, load, Launch.capture(), terminal, in_code=True)
    if status:
        raise SystemExit(status)


def serve_command(read: Callable[[Callable[[str], None]], Config]) -> int:
    """Serve with the options that `read` returns for a command line; return the exit status.

    Where devserve.py itself is the program, the process ends here.
    """
    terminal = Terminal()
    launch = Launch.capture(early=True)

    def load(config: Config) -> WSGIApplication:
        if "FLASK_DEBUG" in os.environ:  # an option may say otherwise, and Flask takes every other word for a yes
            os.environ["FLASK_DEBUG"] = str(int(config.debug))
        with servers_left_out(terminal.warn, reloads=config.reload):
            return load_app(config.app, debug=config.debug, debugger=config.debugger)

    status = _start(read, load, launch, terminal, in_code=False)
    if launch.is_plain:  # else the program around us ends in its own way, and waits for the application's threads
        end_process(status)
    terminal.end()
    return status


def _start(
    read: Callable[[Callable[[str], None]], Config],
    load: Callable[[Config], WSGIApplication],
    launch: Launch,
    terminal: Terminal,
    *,
    in_code: bool,
) -> int:
    """Configure, and serve until the process ends; return its exit status: 2 after a mistake that can be mended.

    `read` returns the options and `load` the application; `in_code` says that `run` was called, not a command.
    If on the command line options are wrong after a reload, as an environment file was edited, that is shown until the
    next save, like an error in new code; until then the options of the process before hold.
    """
    notes = launch.handover.notes if launch.handover else {}
    warnings: list[str] = []
    pin = None
    try:
        try:
            config = read(warnings.append)
            check_pin(config.pin)
            tls = _tls_of(config, terminal)
        except DevserveError as error:
            if in_code or "config" not in notes:
                raise
            config, load = Config(**notes["config"]), BrokenApp(error)  # raises the error when it is called
            tls = _tls_of(config, terminal)
        pin = os.environ.pop("DEVSERVE_PIN", None)  # so that no child process of the application inherits it
        terminal.quiet, terminal.editor, terminal.path_map = config.quiet, config.editor, config.path_map
        if config.reload and not launch.can_repeat:
            terminal.warn(
                "there is no reloader at a prompt, in a notebook, in a process of multiprocessing or for a program "
                "from standard input: none of them could be started again as it was"
            )
            config = config._replace(reload=False)
        if config.reload and launch.must_supervise:
            with contextlib.closing(Supervisor(launch, _listen_for(config, {}, in_code=in_code))) as supervisor:
                return supervisor.run()
        for warning in warnings:  # a parent has returned above, as its child prints the same; and each is printed once
            if warning not in notes.get("warnings", ()):
                terminal.warn(warning)
        runner = _Runner(config, terminal, launch, tls, warnings, in_code=in_code)
        status, ending = call_safely(partial(runner.serve, partial(load, config)))
        runner.close()  # outside of any `except`: what fails in it is not told as if Ctrl-C had made it fail
        if ending is not None:
            raise ending
        return status or 0
    except DevserveError as error:
        terminal.error(str(error))
        return 2
    except KeyboardInterrupt:
        return 0
    finally:
        if pin is not None:  # another call of `run` reads it again
            os.environ["DEVSERVE_PIN"] = pin


def make_server(app: WSGIApplication, host: str = "127.0.0.1", port: int = 0, **options: Any) -> DevServer:
    """Return a server for `app` that already listens.  It is meant for tests, and reads no variables and no files:

        with devserve.make_server(app) as server:
            threading.Thread(target=server.serve_forever).start()
            ...  # requests to server.server_port
            server.shutdown()

    host (str)                   an address, a name, or unix:PATH
    port (int)                   0 takes a free one, see `server_port`
    debug (bool, False)          tell the framework so, and turn the debugger on
    debugger (bool, debug)       show exceptions as pages with a console
    threads (bool, True)         False serves one request after the other
    quiet (bool, False)          True writes no log of requests
    cert, key, pin, trusted_hosts, editor, path_map: as for `run`

    Raises TypeError for any other keyword, and DevserveError for what the person can mend, such as an address that
    cannot be bound.
    """
    check_keywords(options, run=False)
    config = config_of_keywords(host=host, port=port, **options)
    app = prepared(app, debug=config.debug, debugger=config.debugger)
    terminal = Terminal(quiet=config.quiet, editor=config.editor, path_map=config.path_map)
    check_pin(config.pin)
    tls = _tls_of(config, terminal)
    listeners = listen(config.host, config.port, again=_PORT_IN_CODE)
    server = DevServer(listeners, app, terminal, threads=config.threads, tls=tls)
    bridge = AsgiBridge(app, terminal) if is_asgi(app) else None
    if bridge:
        app = server.app = bridge
        server.streams = True
        try:
            server.at_close = bridge.start_in_thread()
        except BaseException:  # raised again: whatever a startup raises, the port must not stay in use
            server.server_close()
            raise
    if config.debugger:
        guard = _guard_of(config, server)
        base_url = urls(listeners, "https" if tls else "http")[0]
        server.app = debugged = DebuggedApplication(app, guard=guard, terminal=terminal, base_url=base_url)
        if bridge:
            bridge.report = debugged.report
        terminal.say(f"devserve: {guard.banner_line(base_url)}")
    return server


def _tls_of(config: Config, terminal: Terminal) -> Optional[Callable[[socket.socket], socket.socket]]:
    """Return the TLS handshake that a configuration asks for, None when it asks for none.  Raises `DevserveError`."""
    cert = config.cert
    if cert.lower() == "adhoc" and not os.path.isfile(cert):
        cert = adhoc_certificate(config.host, terminal.say)
    return tls_from_files(cert, config.key) if cert else None


def _guard_of(config: Config, server: DevServer, notes: Optional[Mapping[str, str]] = None) -> Guard:
    """Return the guard, which lets pages under the host's name and address use the console, if there is one."""
    address = server.server_address
    bound = {config.host, str(address[0])} if isinstance(address, tuple) else set()
    return Guard(config.pin, server.server_port, config.trusted_hosts, bound - {"0.0.0.0", "::", ""}, notes)


def _listen_for(config: Config, notes: Mapping[str, Any], *, in_code: bool) -> Handover:
    """Open the listening sockets; return them, and a note of the socket file, as a process before would leave them."""
    again = _PORT_IN_CODE if in_code else partial(_command_for_port, config.port)
    listeners = listen(config.host, config.port, again=again)
    path = socket_path(config.host)
    socket_file = os.path.abspath(path) if listeners[0].getsockname() == path else ""
    sockets = {"listener": [sock.detach() for sock in listeners], "waiting": []}
    return Handover(sockets, {**notes, "socket_file": socket_file})


def _pool_jobs() -> dict[Any, str]:
    """Return the jobs that run in threads of a ThreadPoolExecutor, but no greenlets: each with its place."""
    pool = sys.modules.get("concurrent.futures.thread")
    code, jobs = pool._WorkItem.run.__code__ if pool else None, {}
    for frame in sys._current_frames().values():
        stack = [*outer_frames(frame)]
        items = (each.f_locals["self"] for each in stack if each.f_code is code)
        jobs.update({item: app_position(stack) or "a place in a library" for item in items if item is not None})
    return jobs


class _Runner:
    """The life of one process: it takes over what the last one left, loads, serves, and leaves to the next.

    It has these phases.  _LOADING: the application is imported, and clients wait in the kernel's queue.  _SERVING:
    begun by `_begin_serving`.  _LEAVING: the process is replaced by `reload`, or is ended by `_end` after a signal or
    by `close` when `serve` returns or raises.  When a restart fails, the phase before it comes back, and the old code
    serves on.

    The banner of this room says which thread calls what.  `lock` guards the phase and whether the banner was shown,
    `adopting` the waiting connections.
    """

    def __init__(
        self, config: Config, terminal: Terminal, launch: Launch,
        tls: Optional[Callable[[socket.socket], socket.socket]], warnings: list[str], *, in_code: bool,
    ) -> None:  # fmt: skip
        self.config = config
        self.terminal = terminal
        self.launch = launch
        self.in_code = in_code
        self.handover = launch.handover or Handover({"listener": []}, {})
        if not self.handover.sockets["listener"]:  # the first start, or the system could not pass them
            self.handover = _listen_for(config, self.handover.notes, in_code=in_code)
        self.notes = self.handover.notes
        self.notes["warnings"] = {*(self.notes.get("warnings") or ()), *warnings}  # which the next processes leave out
        if self.notes.setdefault("address", (config.host, config.port)) != (config.host, config.port):
            terminal.warn(
                f"a reload keeps the address; stop devserve and start it for {config.host}, port {config.port}"
            )
        self.reloaded = "since" in self.notes  # a parent gives its first child notes too, without this one
        self.tls = tls
        self.thread = native_threading.get_ident()  # greenlets run in this thread, if there are any
        self.errands: Optional[deque[Callable[[], object]]] = None  # calls for `_run_errands`; None without greenlets
        self._make_server()
        self.urls = urls(self.server.listeners, "https" if config.cert else "http")
        self.guard = _guard_of(config, self.server, self.notes)
        self.watcher = self._watcher() if config.reload else None
        self.signals = _Signals(
            self._end, self._hang_up, at_once=launch.is_plain, in_code=in_code, reloads=config.reload
        )
        self.collector = _CollectorAtRest()
        self.bridge: Optional[AsgiBridge] = None  # if the application is one of ASGI
        self.end_bridge: Callable[[], object] = bool  # ends the application's lifespan
        self.debugged: Optional[DebuggedApplication] = None  # if there is a debugger
        self.live: Optional[LivePages] = None  # if --live was given
        self.phase = _LOADING
        self.lock = native_threading.Lock()  # held to change the phase
        # Held while waiting connections are given to the server or to the next process, so that none goes to both.
        self.adopting = native_threading.Lock()
        self.loaded = native_threading.Event()  # set when the application has been loaded, or has failed to load
        self.banner_shown = self.reloaded
        self.first_jobs: Container[Any] = ()  # of pools, begun before the first request
        self.status = 1  # becomes 0 when `serve_forever` returns without an exception

    # -- what the machines are made from

    def _make_server(self) -> None:
        """Make the server from the listeners.

        It is made again when the import has put greenlets in the place of threads: locks, sockets and threads of the
        first server are the real ones, on which a greenlet would block all others.
        """
        config = self.config
        self.server = DevServer(
            [socket.socket(fileno=fd) for fd in self.handover.sockets["listener"]],
            BrokenApp(DevserveError("it is being imported")),  # a placeholder: no request precedes `install`
            self.terminal,
            threads=config.threads,
            tls=self.tls,
            keeps_alive=self.launch.passes_sockets
            and not (self.tls and config.reload),  # a TLS connection cannot be handed over
            hands_over=self.launch.passes_sockets,
        )
        self.server.is_paused = is_debugged
        self.server.is_stopped = partial(is_debugged, debuggers=BREAKPOINTS)
        self.ended = threading.Event()  # set when no connection is accepted any more
        self.main_thread = MainThread()
        self.is_settling = False  # `_end` waits for the log's last lines

    def _warn_once(self, text: str) -> None:
        """Warn of what the watcher finds, such as a folder that cannot be read, but not after each reload."""
        if text not in self.notes["warnings"]:
            self.notes["warnings"].add(text)
            self.terminal.warn(text)

    def _watcher(self) -> Watcher:
        return Watcher(
            lambda paths: self._run_in_server_thread(lambda: self.reload(paths)),
            lambda error: self._run_in_server_thread(lambda: self.show_broken(error)),
            warn=self._warn_once,
            extra_files=self.config.extra_files,
            exclude_patterns=self.config.exclude_patterns,
            also=env_files(self.config.env_file),
            settling=lambda begins: self._run_in_server_thread(self.server.hold if begins else self.server.open_gate),
            since=self.launch.started,
            memory=self.notes.get("watched"),
        )

    # -- the life

    def serve(self, load: Callable[[], WSGIApplication]) -> int:
        """Load and serve until told to stop; return the exit status.  Clients wait while the application loads."""
        self.signals.take(self._after_fork, self.terminal)
        self.launch.release_signals()
        if self.watcher:
            self.watcher.record_imports()
            self.watcher.start()
        if not self.in_code:
            native_threading.Thread(target=self._watch_import, name="devserve import", daemon=True).start()
        app = self.load(load)
        if app is None:
            return 1
        if self.notes.get("by_hand") and self.launch.terminal_is_gone():
            return 0  # the SIGHUP came from a shell that was about to end: it tells its jobs first
        if has_green_threads():
            for listener in self.server.listeners:
                listener.detach()
            self._make_server()
            self.errands = deque()
            threading.Thread(target=self._run_errands, name="devserve errands", daemon=True).start()
        self._show_banner()
        if self.watcher:
            self.watcher.import_ended()
            self._watch_framework_files(self.watcher, app)
        self.install(app)
        if self.reloaded and not isinstance(app, BrokenApp):
            self.terminal.say(f"reloaded in {time.time() - self.notes['since']:.2f} s")
        if self.reloaded and not self.watcher and not self.notes.get("by_hand"):
            self.terminal.say("  the reloader is off now, and notices no more changes")
        if self.reloaded and self.config.debugger and not self.guard.is_announced:
            self.terminal.say(f"  {self.guard.banner_line(self.urls[0])}")
        self.main_thread.is_waiting = not has_green_threads()  # in a moment: a signal may come at once
        self._begin_serving()
        if self.watcher and self.config.live:
            self.watcher.watch_data([os.getcwd()], self._notify_pages, LIVE_FILES)
        if self.config.open and not self.reloaded:
            threading.Thread(target=self._open_browser, name="devserve browser", daemon=True).start()
        while not self.ended.is_set():
            if self.bridge and self.bridge.thread == threading.get_ident():
                self.main_thread.wake = partial(self.bridge.post, self.bridge.loop.stop)
                self.bridge.run_until(self.main_thread.woken)
            self.main_thread.wait(_WAKE_INTERVAL)
            self.signals.check()
        return self.status

    def load(self, load: Callable[[], WSGIApplication]) -> Optional[WSGIApplication]:
        """Return the application, or after a failed reload one that shows the error, until the next save.

        At the first start, or without a watcher, an error is printed and None returned, which ends the process.
        Raises an exception after a signal, and DevserveError at the first start, which `_start` prints.  A child that
        the module has forked ends as the first process would, whatever it raises.
        """
        try:
            try:
                with self.collector:
                    app: WSGIApplication = load()
                call_safely(tell_pydevd)  # it may have been the application's code that calls `debugpy.listen`
                if is_asgi(app):
                    app = self.bridge = AsgiBridge(app, self.terminal)
                    if loop_runs_here():
                        self.end_bridge = self.bridge.start_in_thread()
                    else:
                        self.end_bridge = partial(self.bridge.stop, 0.0)  # also if the start is interrupted
                        self.bridge.check = self.signals.check
                        self.bridge.start()
                return app
            finally:
                call_safely(import_late_libraries)
                self.loaded.set()
        except BaseException as error:  # a module that calls sys.exit() is broken like any other
            is_child = os.getpid() != self.signals.pid
            is_exit = is_child and not isinstance(error, Exception)
            if self.signals.stopped or is_exit or (isinstance(error, DevserveError) and not self.reloaded):
                raise
            self._show_failure(error)
            if not self.reloaded or self.watcher is None or is_child:
                return None
            self.watcher.failed(error)
            return BrokenApp(error)

    def _show_failure(self, error: BaseException) -> None:
        """Print why the import has failed, with what would help if that is known."""
        if isinstance(error, DevserveError):
            self.terminal.error(str(error))
        else:
            self.terminal.crash(error)
            remedy = import_remedy(error)
            if remedy:
                self.terminal.warn(remedy)

    def install(self, app: WSGIApplication) -> None:
        """Have the server call `app` from the next request on, through the debugger and the live pages if there are.

        Each call makes a new reload id, by which an open page learns that it shows an older application.
        """
        reload_id = os.urandom(8).hex()
        if self.config.debugger:
            if self.debugged is None:
                guard, terminal = self.guard, self.terminal
                self.debugged = DebuggedApplication(app, guard=guard, terminal=terminal, base_url=self.urls[0])
                self.debugged.recall(self.notes.get("crashes", ()))
            self.debugged.install(app, reload_id)
            app = self.debugged
            if self.bridge:
                self.bridge.report = self.debugged.report
        elif isinstance(app, BrokenApp):
            app = _import_error_app(app.error, self.guard.refuses_reading)
        if self.config.live:
            app = self.live = LivePages(app, reload_id, self.terminal.warn, self.guard.refuses_reading)
        self.server.app = app
        self.server.streams = self.bridge is not None

    def _notify_pages(self, paths: list[str]) -> bool:
        """Have open pages show a change that needs no reload; return whether that is enough."""
        if self.debugged:
            self.debugged.edits += 1
        return self.live.changed(paths) if self.live else True

    def _watch_framework_files(self, watcher: Watcher, app: WSGIApplication) -> None:
        """Watch the files that the framework reads besides modules; what it notices itself reloads nothing."""
        files, error = call_safely(lambda: framework_files(app))
        if files is None:
            self.terminal.warn(f"what the framework reads is not watched: {type_name(type(error))}")
        else:
            folders, heed, wants = files
            watcher.watch_data(folders, lambda paths: heed(paths) and self._notify_pages(paths), wants)

    def _begin_serving(self) -> None:
        """Accept connections from now on; do nothing when called again, or when a reload or the end came first.

        Whoever calls it does not wait for a reload that begins just now, as that waits for a step of the event loop.
        """
        threading.Thread(target=self._serve, name="devserve acceptor", daemon=True).start()

    def _serve(self) -> None:
        """Accept connections until the end, first those that the process before handed over (the thread "devserve
        acceptor")."""
        from weakref import WeakSet

        with self.adopting:
            if not self._enter(_SERVING):
                return
            self.first_jobs = WeakSet(_pool_jobs())
            self.server.adopt(socket.socket(fileno=fd) for fd in self.handover.sockets["waiting"])
        try:
            self.server.serve_forever()
            if os.getpid() != self.signals.pid:  # a forked child, whose main greenlet would end with this one
                self.ended.wait()
            self.status = 0
        finally:
            self.ended.set()
            self.main_thread.woken.set()

    def _enter(self, phase: int) -> bool:
        """Begin a phase unless it, or a later one, has begun already; return whether it did.

        Whoever gets False leaves the process to the thread that was first.
        """
        with self.lock:
            may = phase > self.phase
            self.phase = max(phase, self.phase)
            return may

    def _watch_import(self) -> None:
        """While import or startup take long, show the banner, then say where they are (the thread "devserve import").

        The terminal says it once, and not again after each reload.  After a reload that takes very long, requests are
        answered so too, until the import ends after all.  At the first start clients go on waiting, as a large library
        may well take that long, and so they do where greenlets have replaced threads: none runs beside the import.
        """
        if not self.loaded.wait(_BANNER_PATIENCE):
            self._show_banner()
        is_late = not self.loaded.wait(_IMPORT_WARNING - _BANNER_PATIENCE)
        if is_late and not self.notes.get("import_warned") and not is_debugged(self.signals.main_ident):
            self.notes["import_warned"] = True
            doing = "starting the application" if self.bridge else "importing"
            self.terminal.warn(f"still {doing} after {_IMPORT_WARNING:.0f} s, at {self._loading_place()}")
        is_stuck = not self.loaded.wait(_IMPORT_PATIENCE - _IMPORT_WARNING)
        if is_stuck and self.reloaded and not has_green_threads():
            what = "application's startup" if self.bridge else "import"
            text = f"the {what} has not ended after {_IMPORT_PATIENCE:.0f} s; it is at {self._loading_place()}"
            self.install(BrokenApp(DevserveError(text)))
            self._begin_serving()

    def _loading_place(self) -> str:
        """Return where the import is, or the lifespan startup, for which the event loop is ours."""
        if self.bridge is None:
            return _thread_place(self.signals.main_ident)
        return self.bridge.startup_position() or "a place in a library"

    # -- reloading

    def _run_in_server_thread(self, call: Callable[[], None], seconds: Optional[float] = None) -> None:
        """Call something that touches the server, and wait until it returns, for at most `seconds`.

        Where greenlets have replaced threads, their own thread calls it, as only that may touch the server; it may be
        the caller's, as when `import_ended` holds requests.  A greenlet that blocks may hold that up without end,
        hence `seconds`.
        """
        if self.errands is None or native_threading.get_ident() == self.thread:
            call()
        else:
            done = native_threading.Event()
            self.errands.extend((call, done.set))
            if not done.wait(_GREEN_PATIENCE) and is_debugged(self.thread):
                self.terminal.warn("a greenlet is stopped in a debugger; the reload waits for it")
            done.wait(seconds)

    def _run_errands(self) -> None:
        """Call what native threads ask for, as a greenlet beside the one that waits or runs an event loop."""
        while not self.ended.wait(_GREEN_INTERVAL):
            while self.errands:
                self.errands.popleft()()

    def reload(self, paths: list[str]) -> None:
        """Close the gate and let a new process take over; returns only when that cannot be done.

        The order matters.  No request may run while the ASGI application is shut down, and both must have ended before
        the exit handlers run.  `adopting` is held throughout, so that `_serve` gives no connection to a server whose
        connections have been collected.
        """
        if not os.path.isdir(self.launch.folder):
            self.terminal.warn(f"the folder {self.launch.folder} is gone; the old code serves on")
            return
        try:
            _tls_of(self.config, self.terminal)
        except DevserveError as error:
            if error.__cause__:  # the files are there, and may be being renewed; `.env` may have other names for them
                self.terminal.error(f"{error}; the old code serves on until the next save")
                return
        self._show_banner()  # a save in the first moments of an import may come before it
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        what = _BY_HAND if paths == [_BY_HAND] else f"{escape_controls(short_path(paths[0]))}{more} changed"
        self.terminal.say(f"{what}, reloading")
        since, deadline = time.time(), time.monotonic() + _GRACE
        with self.adopting:
            phase = self.phase
            waiting = [sock.fileno() for sock in self.server.close_gate(_GRACE)]
            if phase == _LOADING:
                waiting += self.handover.sockets["waiting"]
            notes = {**self._notes(since), "by_hand": paths == [_BY_HAND]}
            try:
                if self.bridge:
                    self.bridge.stop(_GRACE)
                elif phase == _SERVING:
                    self._await_jobs(deadline)
                if self._enter(_LEAVING):
                    sockets = {"listener": self.handover.sockets["listener"], "waiting": waiting}
                    restart_process(self.launch, Handover(sockets, notes), self._give_way, self.main_thread)
            except OSError as error:
                with self.lock:
                    self.phase = phase
                self.signals.resume()
                if self.bridge:
                    self.bridge.resume()
                self.terminal.error(f"cannot start Python again ({error}); the old code serves on")
            finally:  # the restart failed, or another thread ends the process: requests must not hang, whatever it was
                self.server.open_gate()

    def _await_jobs(self, deadline: float) -> None:
        """Wait for what requests have given to a ThreadPoolExecutor, such as a mail to send, as the interpreter does.

        Those that begin meanwhile count too, as they may have stood in a queue, or follow others.  Jobs from before
        the first request are not waited for, as they may have no end; nor is any after `deadline`.  Nor are an ASGI
        application's: its requests wait for jobs themselves, and one that waits for a stream's next event may have no
        end.
        """
        while True:
            places = [place for job, place in _pool_jobs().items() if job not in self.first_jobs]
            if not places or time.monotonic() > deadline:
                break
            native_sleep(_JOBS_INTERVAL)
        for place in places:
            self.terminal.warn(f"cut a job of a ThreadPoolExecutor: still running after its grace, at {place}")

    def _notes(self, since: float) -> dict[str, Any]:
        """Return what the next process is to know; the reload began at `since`, by the wall clock."""
        notes = {name: self.notes.get(name) for name in ("address", "socket_file", "import_warned", "warnings")}
        notes.update(since=since, config=self.config._asdict())
        if self.config.debugger:  # the gate is closed, so no guess at the PIN comes after this count of them
            notes.update(self.guard.remember())
            notes["crashes"] = self.debugged.remember() if self.debugged else self.notes.get("crashes", [])
        if self.watcher:
            notes["watched"] = self.watcher.remember()
        return notes

    def _give_way(self) -> None:
        """Have a signal end the process at once from now on, and end it now if one came before.

        It is called right before the exec, when our handlers would not be reached and the next process has none yet.
        """
        self.signals.pause()
        if self.signals.stopped:
            self._tidy_up()
            os._exit(0)

    def show_broken(self, error: SyntaxError) -> None:
        """Answer requests with the mistake in a file that was just saved; the process lives until a save mends it."""
        self.terminal.crash(error)
        self.install(BrokenApp(error))

    # -- the person at the keyboard

    def _show_banner(self) -> None:
        """Say what is served and where, once: when the application is loaded, or earlier if that takes long."""
        with self.lock:
            banner_shown, self.banner_shown = self.banner_shown, True
        if banner_shown:
            return
        served = "the application"
        if not self.in_code:
            with contextlib.suppress(DevserveError):
                served = app_spec(self.config.app) or default_file(os.curdir)
        say = self.terminal.say
        say(f"devserve {__version__} serves {served} on {self.urls[0]} (Ctrl-C stops it)")
        for url in self.urls[1:]:
            say(f"  and on {url}")
        if len(self.urls) > 1:
            say("  which everybody on these networks can reach")
        say("  for local development only: never use it in production")
        if self.config.debugger:
            say(f"  {self.guard.banner_line(self.urls[0])}")

    def _open_browser(self) -> None:
        """Show the application (in the thread "devserve browser", since some commands return when it is closed)."""
        import webbrowser

        if not self.urls[0].startswith("http") or not webbrowser.open(self.urls[0]):
            self.terminal.warn(f"--open finds no browser that shows {self.urls[0]}")

    def _end(self) -> None:
        """End the process at once (in the thread "devserve end"): one signal is enough, whatever the application does.

        An ASGI application is shut down, and jobs of a pool may end, unless another signal comes.  Requests are not
        waited for, except those that have just begun: a client may have its answer already.
        """
        if self.is_settling:
            return  # a second signal; the thread of the first one ends the process in a moment
        self.is_settling = True
        if self.bridge:
            self.bridge.is_stopping = True
        self.server.settle(_LAST_LINE_GRACE)
        self.is_settling = False
        self._tidy_up()
        phase = self.phase
        if not self._enter(_LEAVING):
            os._exit(0)  # a restart is under way and runs the exit handlers, or the main thread ends the process
        if self.bridge:
            bridge = self.bridge
            self._run_in_server_thread(lambda: bridge.stop(0.0), _GRACE)
        elif phase == _SERVING:
            self._await_jobs(time.monotonic() + _LAST_JOBS_GRACE)
        end_process(0, self.main_thread)  # it flushes the log, and waits for a full pipe only for a while

    def close(self) -> None:
        """Stop serving and watching when `serve` has returned or raised: the program that called `run` may go on.

        If the process restarts meanwhile, or a signal ends it, nothing goes on: it ends here.
        """
        if os.getpid() != self.signals.pid:
            return  # a forked child has come back from the application: nothing here is its own
        if not self._enter(_LEAVING):
            self._tidy_up()
            os._exit(0)
        if self.watcher:
            self.watcher.stop()
        self.server.shutdown()
        self.end_bridge()  # which says goodbye to WebSockets, by connections that the next step cuts
        self.server.server_close()
        self._tidy_up()
        self.terminal.flush()
        self.signals.give_back()

    def _after_fork(self) -> None:
        """In a child that the application has forked, give up handlers and sockets, which are its parent's."""
        self.collector.wake()
        self.signals.give_back()
        self.server.after_fork()
        if self.phase == _LOADING:  # the server has not adopted these yet
            for fd in self.handover.sockets["waiting"]:
                with contextlib.suppress(OSError):
                    os.close(fd)
        if self.bridge:
            self.bridge.after_fork()

    def _tidy_up(self) -> None:
        """Remove our socket file, and restore the terminal.  It may be called more than once, by any thread."""
        self.launch.restore_terminal()
        if self.notes["socket_file"]:
            with contextlib.suppress(OSError):  # somebody else has removed it, or put something in its place
                os.unlink(self.notes["socket_file"])

    def _hang_up(self) -> None:
        """After SIGHUP, ask the watcher to reload; but end if the closing of the terminal has sent it, as nobody is
        there then."""
        if self.launch.terminal_is_gone():
            self.signals.stop()
        elif self.watcher:
            self.watcher.reload_now(_BY_HAND)


class _Signals:
    """What SIGTERM, SIGINT and SIGHUP do: the first two end the process, the third reloads.

    Where devserve.py is the program (`at_once`), a signal ends the process whatever runs.  Under somebody else's
    program, such as coverage, a profiler or the application's own script, it raises SystemExit or KeyboardInterrupt
    in the main thread, so that this program ends as it always does and writes what it has to; if that takes too long,
    the process ends all the same.  Only after Ctrl-C in code may the program go on for as long as it likes.

    `end` is called in a thread of its own, `hang_up` in the signal handler.  The handlers run in the main thread,
    between two steps of whatever it does.  `take`, `give_back` and `check` are for the thread that calls `run`,
    `stop`, `pause` and `resume` for any.  When `run` is called in another thread than the main one, signals are left
    alone.
    """

    def __init__(
        self, end: Callable[[], None], hang_up: Callable[[], None], *, at_once: bool, in_code: bool, reloads: bool
    ) -> None:
        self.end = end
        self.hang_up = hang_up
        self.at_once = at_once
        self.in_code = in_code
        self.stopped = False  # whether a signal has asked for the end
        # Raised once more by `check`, as an exception that a handler raises in a destructor or a greenlet is lost.
        self.raised: Optional[BaseException] = None
        self.pid = os.getpid()
        self.main_ident = native_threading.get_ident() if is_main_thread() else 0
        self.before: dict[int, Any] = {}  # handlers that ours replaced
        self.paused: dict[int, Any] = {}  # handlers that `_resume` is to put back
        self.errands: deque[Callable[[], None]] = deque()  # calls for the main thread, see `_run_in_main_thread`
        self.wanted = {signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop}
        if hasattr(signal, "SIGBREAK"):  # Ctrl-Break, on Windows
            self.wanted[signal.SIGBREAK] = self._on_stop
        if sys.platform != "win32" and reloads:
            self.wanted[signal.SIGHUP] = self._on_hang_up

    def take(self, after_fork: Callable[[], None], terminal: Terminal) -> None:
        """Put our handlers in place; `after_fork` is called in each child that the application forks."""
        if not self.main_ident:
            return
        for number, handler in self.wanted.items():
            is_programs = self.in_code and signal.getsignal(number) not in (signal.default_int_handler, signal.SIG_DFL)
            if number != signal.SIGINT or not is_programs:
                self.before[number] = signal.signal(number, handler)
        if sys.platform != "win32":
            # After a fork the interpreter forgets signals for which Python has a handler: a worker that its pool ends
            # at once would live on, and the pool wait for it.  So they wait until the child has handlers of its own.
            masks = threading.local()

            def before() -> None:
                # Else a child would wait for ever for the lock of standard error, when it flushes that.
                masks.writing = terminal.writing
                masks.held = masks.writing.acquire(timeout=_FORK_PATIENCE)
                masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.before)

            def after() -> None:
                if masks.held:
                    masks.writing.release()
                signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

            def in_child() -> None:
                if sys.implementation.name == "pypy":  # it gives signals to no thread of a child but a main one's
                    __import__("__pypy__").thread.signals_enabled.__enter__()
                try:
                    after_fork()
                finally:
                    after()

            os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)

    def give_back(self) -> None:
        """Put the handlers back that were there before, except where the application has set others since."""
        for number, handler in self.before.items():
            if self._holds(number):
                signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python

    def pause(self) -> None:
        """Let the kernel end the process by SIGTERM and SIGINT, because no handler of Python's runs during an exec.

        The interpreter first handles signals that came before, so that `stopped` is true afterwards if one did.
        """
        self._run_in_main_thread(self._pause)

    def resume(self) -> None:
        """Put the handlers in place again, as the process goes on."""
        self._run_in_main_thread(self._resume)

    def stop(self, delay: float = 0.0) -> None:
        """Call `end` after `delay` seconds, in a thread, as the main thread may be in the middle of a line of output.

        If devserve is `__main__` under pdb and the program has ended meanwhile, pdb has emptied that module and runs
        the program anew; then the process is not to end.
        """

        def end(names: dict[str, Any]) -> None:
            native_sleep(delay)
            if names.get("_Signals") is type(self):
                self.end()

        self.stopped = True
        try:
            native_threading.Thread(target=end, args=(globals(),), name="devserve end", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            if not delay:
                self.end()

    def check(self, error: Optional[BaseException] = None) -> None:
        """Raise the exception by which a signal ends the program; the main thread calls this while it waits.

        `error` has come out of the application, which may have a handler of its own that raises it.  Any other than
        these two, such as the cancellation of a request while the program ends, is not for the main thread.
        """
        if error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            return
        if self.raised:
            raise self.raised
        is_ours = all(map(self._holds, (signal.SIGINT, signal.SIGTERM) if self.main_ident else ()))
        if error is not None and not is_ours:
            raise error

    def _pause(self) -> None:
        if sys.platform != "win32" and self._holds(signal.SIGHUP):
            # In a handler: if another signal came at the same time, Python calls its handler after this one,
            # when it would be gone.  One more signal, for a call that does nothing, has Python look for others now.
            self.errands.append(lambda: None)
            signal.raise_signal(signal.SIGHUP)
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.paused[number] = signal.signal(number, signal.SIG_DFL)

    def _resume(self) -> None:
        while self.paused:
            number, handler = self.paused.popitem()
            signal.signal(number, handler or signal.SIG_DFL)

    def _run_in_main_thread(self, errand: Callable[[], None]) -> None:
        """Call `errand` in the main thread, since only that may set signal handlers; a SIGHUP interrupts it.

        If it does not respond soon, it is in foreign C code.  We go on then, as a signal would wait for it as well.
        """
        if native_threading.get_ident() == self.main_ident:
            errand()
        elif sys.platform != "win32" and self._holds(signal.SIGHUP):
            done = native_threading.Event()
            self.errands.append(done.set)
            self.errands.append(errand)
            signal.pthread_kill(self.main_ident, signal.SIGHUP)
            done.wait(MAIN_THREAD_PATIENCE)

    def _on_stop(self, number: int, frame: Any) -> None:
        """Handle SIGTERM and SIGINT, as the class says."""
        if not self._is_ours(number):
            return
        if self.at_once or number != signal.SIGINT or not self.in_code:
            self.stop(0.0 if self.at_once else _UNWIND_SECONDS)
        self.stopped = True
        if not self.at_once:
            self.raised = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
            if not has_green_threads():  # else it would end only the greenlet that happens to run; `check` raises it
                raise self.raised

    def _on_hang_up(self, number: int, frame: Any) -> None:
        """Make the calls that other threads have asked for; a SIGHUP without any comes from a person, or a shell."""
        if self._is_ours(number):
            if not self.errands:
                self.hang_up()
            while self.errands:
                self.errands.pop()()  # the last one first: the event of `_run_in_main_thread` follows its errand

    def _holds(self, number: int) -> bool:
        """Return whether the handler of a signal is ours: the application may have set another."""
        return getattr(signal.getsignal(number), "__self__", None) is self

    def _is_ours(self, number: int) -> bool:
        """Return whether this process serves.  If it is a child that the application has forked, in which a handler of
        the application calls ours, the signal is sent once more, to the handler that was there before both."""
        if os.getpid() == self.pid:
            return True
        signal.signal(number, self.before.get(number) or signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return False


class _CollectorAtRest:
    """The garbage collector rests while the application is imported, as hardly anything that is imported is garbage.

    What is, is collected at the end, and what is left is frozen: no later collection looks at it.  If the application
    itself has called `gc.disable()` or set thresholds, that holds.  PyPy has nothing of this.
    """

    get_threshold: Any = None  # the interpreter's own, once ours stands in for it

    def __enter__(self) -> None:
        if hasattr(gc, "freeze"):
            self.get_threshold, self.before = gc.get_threshold, gc.get_threshold()
            gc.get_threshold = self._threshold
            gc.set_threshold(_NO_COLLECTION)

    def _threshold(self) -> tuple[int, int, int]:
        """Stand in for `gc.get_threshold`, as an application may set what it computes from the result."""
        now = self.get_threshold()
        return self.before if now[0] == _NO_COLLECTION else now

    def wake(self) -> None:
        """Set the threshold that was there before, in a child that is forked meanwhile too."""
        if self.get_threshold:
            gc.get_threshold = self.get_threshold
            if gc.get_threshold()[0] == _NO_COLLECTION:
                gc.set_threshold(self.before[0])

    def __exit__(self, *_: object) -> None:
        self.wake()
        if hasattr(gc, "freeze"):
            gc.collect()  # a database connection in a cycle would stay open for ever, and hold its locks
            gc.freeze()


def _thread_place(ident: int) -> str:
    """Return where a thread is: its innermost line in the application's own code, or else in whatever runs.

    An import that does not end is often one that serves; if an event loop is running, the remedy is added.
    """
    innermost = sys._current_frames().get(ident)
    library = f"{innermost.f_code.co_filename}, line {innermost.f_lineno}" if innermost else "an unknown place"
    place = thread_position(ident) or library
    running = [frame for frame in outer_frames(innermost) if frame.f_code.co_name.startswith("run")]
    if any(str(frame.f_globals.get("__name__")).startswith("asyncio.") for frame in running):  # and is not imported
        place += ", in an event loop; one that serves belongs under if __name__ == '__main__':"
    return place


def _import_error_app(
    error: BaseException, refuses_reading: Callable[[Environ], Optional[Refusal]]
) -> WSGIApplication:
    """Return an application that says in one line why there is none, for when there is no debugger.

    The traceback is on the terminal only, and so is the message if `refuses_reading`.  A browser gets the line as
    HTML, so that with --live the page is shown anew after the save that mends it.
    """
    import traceback
    from html import escape

    line = "".join(traceback.format_exception_only(type(error), error)).strip().rpartition("\n")[2]
    if isinstance(error, SyntaxError) and error.filename:
        line += f" ({os.path.basename(error.filename)}, line {error.lineno})"
    line = mask_secrets(line)

    def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        shown = type(error).__name__ if refuses_reading(environ) else line
        text = f"The application cannot be loaded: {shown}\nThe terminal shows where.\n"
        headers, body = [*PLAIN_TEXT, ("Cache-Control", "no-store")], text
        if "text/html" in environ.get("HTTP_ACCEPT", ""):
            headers[0] = ("Content-Type", "text/html; charset=utf-8")
            body = f"<!doctype html>\n<title>The application cannot be loaded</title>\n<pre>{escape(text)}</pre>\n"
        start_response("500 Internal Server Error", headers)
        return [body.encode("utf-8", "backslashreplace")]

    return answer


def _command_for_port(taken: int, port: int) -> str:
    """Return the command line of this process with another port than the taken one, as the error for that proposes."""
    import shlex

    given = sys.argv[1:]  # with the port in a word of its own, or at the end of another, as of 0.0.0.0:8000
    words = [re.sub(rf"(^|[:=]|^-p){taken}(?=/?$)", rf"\g<1>{port}", word) for word in given]
    return shlex.join([*own_command(), *words, *(["--port", str(port)] if words == given else [])])


# -- the debugger under somebody else's ASGI server

_CAUGHT = "devserve.caught"  # in an environ: the exception of an ASGI application, and what its console needs


class DebuggedASGI:
    """Wraps an ASGI application, under any server, so that its exceptions become pages with a console.

        app = devserve.DebuggedASGI(app, pin="123-456")  # and then: uvicorn main:app

    The keywords, and the errors they raise, are those of `DebuggedApplication`.  Under devserve with its own debugger
    it only passes requests on.  The server must run one process, as the frames of an exception are in one only.

    Inside, a `DebuggedApplication` answers in a thread: at the debugger's own addresses, and for each request that has
    failed, for which its application, a `_Failing`, raises the exception again.  A response with status 500 or above
    is held until the application ends, as most frameworks raise their exception after it.  Once a response has begun,
    and in a WebSocket, the terminal shows the crash's address, and the server gets the exception.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self.app: Any = prepared(app, debug=False, debugger=True)
        self.debugger = DebuggedApplication(_Failing(app), **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or ON_EXCEPTION in scope:
            await self.app(scope, receive, send)
            return
        environ = _environ_of(scope)
        self.debugger.guard.note_worker(environ)
        if scope["type"] == "http" and self.debugger.owns(environ["PATH_INFO"]):
            body, more = environ["wsgi.input"], True
            while more:
                message = await receive()
                body.write(message.get("body", b"")[: REQUEST_LIMIT - body.tell()])
                more = message.get("more_body")
            body.seek(0)
            await self._answer(environ, send)
            return
        recorded = record_body(environ)

        async def recording_receive() -> Any:
            message = await receive()
            if recorded:
                recorded.record(message.get("body", b""), ends=not message.get("more_body"))
            return message

        await self._pass_on(scope, recording_receive, send, environ)

    async def _pass_on(self, scope: Any, receive: Any, send: Any, environ: Environ) -> None:
        """Have the application answer; if it fails before its response begins, have the debugger answer."""
        import asyncio

        is_late = scope["type"] == "websocket"  # whether it is too late to send a page
        held: list[Any] = []  # messages of a response that an exception may follow
        caught: list[BaseException] = []  # exceptions that the framework has handled and handed over to us

        async def holding_send(message: Any) -> None:
            nonlocal is_late
            held.append(message)
            if held[0].get("status", 0) < 500 or message.get("more_body"):
                is_late = True
                while held:
                    await send(held.pop(0))

        cookies = without_our_cookies(environ.get("HTTP_COOKIE", "")).encode("latin-1")
        headers = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        headers += [(b"cookie", cookies)] if cookies else []
        try:
            await self.app({**scope, "headers": headers, ON_EXCEPTION: caught.append}, receive, holding_send)
            if caught and held:  # a framework has kept an exception to itself
                raise caught[-1]
            for message in held:
                await send(message)
        except Exception as error:  # the debugger's broad catch: an application may raise anything
            if is_disconnect(error):
                raise
            if is_late:
                what = f"{environ['REQUEST_METHOD']} {escape_unprintable(scope['path'])} failed"
                link = await asyncio.to_thread(self.debugger.report, error, environ)
                self.debugger.terminal.say(f"devserve: {what}: {link}")
                raise
            environ[_CAUGHT] = error, RequestContext(asyncio.get_running_loop())
            await self._answer(environ, send)

    async def _answer(self, environ: Environ, send: Any) -> None:
        import asyncio

        head: list[Any] = []

        def start_response(*args: Any) -> Callable[[bytes], object]:
            head[:] = args
            return len

        def body_of() -> bytes:
            pieces: Any = self.debugger(environ, start_response)
            with contextlib.closing(pieces) if hasattr(pieces, "close") else contextlib.nullcontext():
                return b"".join(pieces)

        body = await asyncio.to_thread(body_of)
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in head[1]]
        await send({"type": "http.response.start", "status": int(head[0][:3]), "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Failing:
    """A WSGI application, for the debugger, that raises what an ASGI application has raised for the same request."""

    def __init__(self, served: Any) -> None:
        self.served = served  # the ASGI application; the console looks for this name

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if _CAUGHT not in environ:  # a page asks to send its request again, which only devserve's own server can do
            start_response("501 Not Implemented", [*PLAIN_TEXT])
            return [b"Only under devserve itself can a request be sent to an ASGI application again.\n"]
        error, context = environ.pop(_CAUGHT)
        environ[PRESERVE_CONTEXT](context)
        raise error


def _environ_of(scope: Any) -> Environ:
    """Return the environ of WSGI for an ASGI request, with an empty body."""
    root, (host, port) = scope.get("root_path", ""), scope.get("server") or ("localhost", 80)
    environ: Environ = {
        "REQUEST_METHOD": scope.get("method", "WEBSOCKET"),
        "SCRIPT_NAME": root.encode().decode("latin-1"),
        "PATH_INFO": scope["path"].removeprefix(root).encode().decode("latin-1"),  # some servers leave the root out
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        "wsgi.url_scheme": scope.get("scheme", "http").replace("ws", "http"),
        "wsgi.input": io.BytesIO(),
        "wsgi.input_terminated": True,
    }
    for name, value in scope["headers"]:
        add_field(environ, name.decode("latin-1"), value.decode("latin-1"))
    return environ


# =====================================================================================================================
# 15. Command line
#
# The words of a command become values of the options in OPTIONS; a mistake in them becomes one line and exit status 2.
# Words that other servers would understand are understood where that is safe, or answered with what to write instead.
# This is the only room that knows argparse.  It may know the configuration, the terminal and the runner.  At its end
# is the demo, an application to try devserve with.
#
# How to change: a flag of another server goes into `others` of the row in OPTIONS that means the same, or into
# _NOT_HERE, with what to do instead.  Another mistake in the words of a command is a row of _MISTAKES.
#
# Invariants: --help, --version and a mistake in the command change nothing of the process, since `serve_command` takes
# over later.  A word that names something in the current folder is an application, whatever else it might mean.
#
# Doors: main, demo.
#
# Read first: main, _read_command, _command_parser.
# =====================================================================================================================

if TYPE_CHECKING:
    import argparse

_FLAGS = {flag: option for option in OPTIONS.values() for flag in option.flags}
_HELP_WIDTH = 98  # columns of --help without a terminal, as if there were one of 100
_HELP_INDENT = 28  # columns: nearly all flags fit in before their help
_RUN_COMMANDS = ("run", "runserver", "dev", "serve", "start", "pserve")  # of others; to serve is the only one here
_OTHER_PROGRAMS = frozenset(
    "bottle cherryd daphne django-admin fastapi flask granian gunicorn hypercorn litestar py python python3 "
    "python3.9 python3.10 python3.11 python3.12 python3.13 python3.14 python3.15 quart sanic uvicorn uwsgi "
    "waitress-serve".split()
)
# A host that is known as such without a port.
_BARE_HOST = r"unix:.+|(?i:localhost)|[0-9]+(\.[0-9]+){3}|\[?::1?\]?"
_NOT_HERE = {  # flags of other servers that have no option here, and what to do instead
    "--workers -w --processes --threads --worker-class -k --worker-connections": (
        "one process serves requests at the same time, in threads: leave it out"
    ),
    "--factory --interface --wsgi --asgi --loop --http --ws --lifespan --eager-loading --lazy-loading --preload": (
        "devserve finds that out by itself: leave it out"
    ),
    "--log-level --log-config --access-log --access-logfile --error-logfile --verbose -v --verbosity": (
        "each request is logged to the terminal, and the application's own logging is its own: leave it out"
    ),
    "--timeout -t --graceful-timeout --timeout-keep-alive --keep-alive --max-requests --backlog": (
        "no request is given up for being slow: leave it out"
    ),
    "--app-dir --chdir --pythonpath": "start devserve in that folder",
    "--config -c": "write DEVSERVE_PORT=8000 and the like in a file .env",
    "--settings": "set DJANGO_SETTINGS_MODULE, in a file .env for example",
    "--root-path --script-name": "tell the application, by its own option or by middleware",
    "--proxy-headers --forwarded-allow-ips": (
        "X-Forwarded-Proto of a proxy on this machine is heeded, the rest is the application's own: leave it out"
    ),
    "--uds --unix-socket --fd": "write --host unix:PATH",
    "--ipv6 -6": "write --host ::1",
    "--insecure --nostatic --static": "the application serves its files, Django's where DEBUG is True: leave it out",
    "--validate --profile": "wrap the application in a line of its own: app = wsgiref.validate.validator(app)",
    "-m --module --daemon -D --call --server -s": "leave it out",
    "--ssl --https": "write --cert adhoc",
    "--env": "write NAME=value in a file .env",
    "--no-color --no-use-colors": "set NO_COLOR=1",
}
_LONG_FLAGS = "|".join(flag[2:] for flag in (*_FLAGS, "--help", "--version") if flag.startswith("--"))
_SWITCHES = "|".join(flag[2:] for flag, option in _FLAGS.items() if flag.startswith("--") and not option.metavar)
# Mistakes in place of an application: a pattern, and the answer.  The patterns are searched in this order in the words
# of the command, one to a line; {0} in the answer is the match, {1} and {word} are its groups.  If the current folder
# has something with the name in the group `word`, it is no mistake.
_MISTAKES = (
    (
        r"(?:.*[/\\])?devserve(?:\.py)?",
        "{0} is the server; name the application that it shall serve, or try: {server} devserve:demo --debug",
    ),
    (r"(?:.*[/\\])?manage\.py(?:\n.+)+", "devserve only serves; for the rest type: python {0}"),
    (r"(?P<word>db|init-db|routes|shell)(?:\n.+)*", "devserve only serves; for {word} type: {manager} {0}"),
    (
        r"(?P<word>collectstatic|createsuperuser|makemigrations|migrate|startapp|startproject)(?:\n.+)*",
        "devserve only serves; for {word} type: python manage.py {0}",
    ),
    (rf"(?P<word>{'|'.join(_OTHER_PROGRAMS)})", "{word} is another program; leave it out: {rest}"),
    (r"[a-z]+://.*", "{0} is a URL; name the application, and the address by --host and --port"),
    ("[\u2010-\u2015\u2212]+-?(.)", "{0} has the dash of a word processor; type -{1}"),
    ("[\u2010-\u2015\u2212]+-?(.+)", "{0} has the dash of a word processor; type --{1}"),
    (rf"(?P<word>{_SWITCHES})=.*", "{word} is no application here; write --{word} without a value, or leave it out"),
    (rf"(?P<word>(?!app$)(?:{_LONG_FLAGS}))(?:=.*)?", "{word} is no application here; did you mean --{0}?"),
    (r"[A-Z][A-Z_]*=.*", "{0} sets a variable; write it in a file .env, or before the command"),
    (
        r"(?P<word>(?i:true|false|yes|no|on|off))",
        "{word} is no application; an option like --debug takes no value: leave {word} out",
    ),
    (
        r"\A([^:\n]+):?\n(?P<word>[^\W\d]\w*)\Z",
        "more than one application: {1} and {word}; did you mean {1}:{word}?",
    ),
    (r"\A(\w[\w.]*)[ ,;]:?(\w[\w.]*)\Z", "{0} names no application; did you mean {1}:{2}?"),
)
_DESCRIPTION = """\
The development server for Python web applications: it reloads on a save, and
turns an exception into a page that finds the bug. For local development only,
never for production. Try it with the demo that is inside:

  %(prog)s devserve:demo --debug"""
_EPILOG = """\
APP is a module or a file, and after a colon what to take from it; without the
colon it is app, application, the one framework object, or create_app():
  hello                        the module hello.py
  package.module:site.wsgi     a name, which may have dots
  path/to/file.py:app          a file, wherever it is
  'hello:make_app("test")'     what a call returns; its arguments are literals
Without APP: $DEVSERVE_APP, $FLASK_APP, app.py, wsgi.py, main.py, or the wsgi.py
or asgi.py of a Django project.

Each long option may be set in the environment or in .env: DEVSERVE_PORT=8000,
DEVSERVE_DEBUG=1, DEVSERVE_PIN=..."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit status: 0 after Ctrl-C, 1 when the application fails to start, 2 for a
    mistake in the command."""
    try:
        given, notes = _read_command(sys.argv[1:] if argv is None else argv)
    except DevserveError as error:
        Terminal().error(str(error))
        return 2

    def configured(warn: Callable[[str], None]) -> Config:
        for note in notes:
            warn(note)
        _mask_pin(given.get("pin", ""))
        return configure(given, warn)

    return serve_command(configured)


def _read_command(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that a command gives, and a note on each word that was understood as something else.

    Raises DevserveError for a mistake, and SystemExit when --help or --version has been answered.
    """
    given, words = _parse_flags(argv)
    notes: list[str] = []

    def take_address(address: Mapping[str, str], shown: str, app: str = "") -> None:
        given.update(add_address(given, address, shown))
        meant = filter(None, [app, *(f"--{name} {text}" for name, text in address.items())])
        notes.append(f"{shown} is taken as {' '.join(meant)}")

    address = split_host(given.get("host", ""))
    if address:
        take_address(address, f"--host {given.pop('host')}")
    apps = [given["app"]] if "app" in given else []
    for word in words:
        app, address = _app_and_address(word)
        if address:
            take_address(address, word, app)
        if app and (app not in _RUN_COMMANDS or (_is_there(app) and "app" not in given)):
            apps.append(app)
    if apps:
        _check_apps(apps, argv)
        given["app"] = apps[0]
    return given, notes


def _app_and_address(word: str) -> tuple[str, dict[str, str]]:
    """Return the application in a word, or "", and the address in it, as in 8000, localhost or hello:8000."""
    app, _, port = word.rpartition(":")
    if _is_there(word):
        return word, {}
    if word.isdigit() or re.fullmatch(_BARE_HOST, word):
        return "", {"port" if word.isdigit() else "host": word.strip("[]")}
    if split_host(word) and not _is_there(app):
        return "", split_host(word)
    return (app, {"port": port}) if port.isdigit() else (word, {})


def _parse_flags(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the flags that a command has, and its other words.  Raises as `_read_command` does."""
    import argparse

    for word in argv:  # argparse would take -debug for -d -e bug
        if word.startswith("-") and f"-{word.partition('=')[0]}" in _FLAGS:
            raise DevserveError(f"no option {word}; did you mean -{word}?")
    for word, next_word in zip(argv, argv[1:]):
        if word == "-h" and re.fullmatch(_BARE_HOST, next_word):  # as Flask has it
            raise DevserveError(f"-h shows the help; for the host write -H {next_word}")
    try:
        parsed, unknown = _command_parser().parse_known_intermixed_args(argv)
    except argparse.ArgumentError as error:  # which names the flags of the row, as in -d/--debug/--no-debug
        flags = (error.argument_name or "").split("/")
        flag = next((flag for flag in flags if flag.startswith("--")), flags[-1])
        metavar = flag in _FLAGS and _FLAGS[flag].metavar  # --help and --version are argparse's own
        if metavar:
            raise DevserveError(f"{flag} lacks its value; write {flag} {metavar}") from None
        word = next((word for word in argv if "=" in word and word.partition("=")[0] in flags), flag)
        raise DevserveError(f"{word}: {flag} takes no value; write one of {', '.join(flags)}") from None
    if unknown:
        flag, _, value = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")
        after = list(argv[list(argv).index(flag) + 1 :]) if flag in argv else []
        raise DevserveError(f"no option {flag}; {_flag_remedy(flag, value or ''.join(after[:1]))}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
    return given, list(given.pop("words", ()))


def _flag_remedy(flag: str, value: str) -> str:
    """Return the remedy for an unknown flag: what to write instead of it and its value."""
    import shlex
    from difflib import get_close_matches

    for option in OPTIONS.values():
        if {flag, flag.strip("-").replace("-", "_")} & {*option.others.split()}:
            alike = [each for each in option.flags if is_negative(each) == flag.startswith("--no")] or option.flags
            return f"here it is {alike[-1]}" + (f" {shlex.quote(value)}" if option.metavar and value else "")
    for flags, remedy in _NOT_HERE.items():
        if flag in flags.split():
            return remedy
    cutoff = 0.75  # two letters swapped; no other word
    near = get_close_matches(flag.lower(), [*_FLAGS, "--help", "--version"], 1, cutoff)
    return f"did you mean {near[0]}?" if near else "see --help"


def _check_apps(apps: Sequence[str], argv: Sequence[str]) -> None:
    """Raise DevserveError unless a command names a single application, which is none of _MISTAKES."""
    for option, first, second in zip(argv, argv[1:], argv[2:]):
        is_listed = option in ("--extra-files", "--exclude-patterns") and second in apps and os.path.exists(first)
        is_python = len(apps) == 1 and os.path.splitext(second)[1] in ("", ".py", ".pyw", ".wsgi")
        if is_listed and os.path.isfile(second) and not is_python:  # the shell's work
            raise DevserveError(f"{option} takes one value, and {second} is another; put a pattern in quotes")
    if len(apps) == 1 and _is_there(apps[0].partition(":")[0]) and "devserve" not in apps[0]:
        return  # without the patterns, which take milliseconds to compile
    import shlex

    rest = [word for word in argv if word not in (*_OTHER_PROGRAMS, *_RUN_COMMANDS)]
    commands = {"server": shlex.join(own_command()), "rest": shlex.join([*own_command(), *rest])}
    flask = "flask" + f" --app {apps[0]}" * _is_there(apps[0].partition(":")[0])
    commands["manager"] = "python manage.py" if _is_there("manage.py") else flask
    for pattern, answer in _MISTAKES:
        for match in re.finditer(f"^(?:{pattern})$", "\n".join(apps), re.MULTILINE):
            if not _is_there(match.groupdict().get("word", "")):
                found = match[0].replace("\n", " ")
                raise DevserveError(answer.format(found, *match.groups(), **match.groupdict(), **commands))
    if len(apps) > 1:
        raise DevserveError(f"more than one application: {' and '.join(apps)}; name one")


def _is_there(word: str) -> bool:
    """Return whether the current folder has a file, a folder or a module of that name."""
    return bool(word) and (os.path.exists(word) or os.path.exists(f"{word.replace('.', os.sep)}.py"))


def _mask_pin(pin: str) -> None:
    """Overwrite the PIN in the command line that other users can read, for instance by `ps`.

    Linux shows them the process's own memory, from which the interpreter has copied its arguments long ago.  On other
    systems, and until this is called, the PIN can be read; so --help recommends DEVSERVE_PIN.
    """
    if not pin or sys.platform != "linux":
        return
    word = os.fsencode(pin)
    with contextlib.suppress(OSError, ValueError):  # a system that forbids it, or has no /proc
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # arg_start, arg_end of proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            text = memory.read(end - start)
            for match in re.finditer(rb"\0--pin[\0=](%b)(?=\0)" % re.escape(word), text):
                memory.seek(start + match.start(1))
                memory.write(b"*" * len(word))


def _command_parser() -> argparse.ArgumentParser:
    """Return the parser for the rows of OPTIONS.  Its result has only values that were given, no defaults."""
    import argparse

    class Flag(argparse.Action):
        def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
            super().__init__(option_strings, dest, nargs=0, **rest)

        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
            setattr(namespace, self.dest, not is_negative(str(option_string)))

    width = _HELP_WIDTH
    with contextlib.suppress(OSError, ValueError):  # not a terminal
        width = os.get_terminal_size(1).columns - 2  # argparse would import shutil and its compressors for this: 5 ms
    parser = argparse.ArgumentParser(
        prog=" ".join(own_command()),
        usage="%(prog)s [APP] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=_HELP_INDENT, width=width),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    topics = {
        topic: parser.add_argument_group(topic) for topic in dict.fromkeys(row.topic for row in OPTIONS.values())
    }
    next(iter(topics.values())).add_argument("words", metavar="APP", nargs="*", help="the application: see below")
    for field, row in OPTIONS.items():  # argparse lets the DevserveError of a value through
        how: dict[str, Any] = {"action": Flag}
        if not isinstance(row.default, bool):
            action = "extend" if isinstance(row.default, tuple) else "store"
            how = {"action": action, "metavar": row.metavar, "type": row.read}
        topics[row.topic].add_argument(*row.flags, dest=field, help=row.help, **how)
    others = parser.add_argument_group("Help")
    others.add_argument("--version", action="version", version=f"devserve {__version__}", help="print the version")
    others.add_argument("-h", "--help", action="help", help="print this")
    return parser


# -- the demo


def demo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A small application that shows what the tool does: `python devserve.py devserve:demo --debug`."""
    path = environ["PATH_INFO"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
        return _demo_stream()
    if path == "/fail":
        price = _demo_price(environ["QUERY_STRING"])
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [price.encode()]
    known = path in ("", "/")
    start_response("200 OK" if known else "404 Not Found", [("Content-Type", "text/html; charset=utf-8")])
    return [DEMO_PAGE.encode()]


def _demo_stream() -> Iterator[bytes]:
    """Yield a line a second; each is on the wire before the next is made."""
    for number in range(1, 11):
        yield f"line {number} of 10, made at {time.strftime('%H:%M:%S')}\n".encode()
        time.sleep(1)


def _demo_price(query: str) -> str:
    """Look up a price; a fruit that has none raises KeyError."""
    prices = {"apples": 120, "pears": 180, "plums": 90}
    wanted = query.partition("=")[2] or "peers"
    return f"{wanted} cost {prices[wanted]} a kilo"


# =====================================================================================================================
# 16. Paper
#
# Everything that a browser is sent, as plain text: the templates, STYLE, SCRIPT, LIVE_SCRIPT, the demo's page.  Nobody
# needs to read Python to redesign the page.  A backslash at the end of a line joins it with the next.
#
# How to change: in a template, room 6 replaces each word in braces by a value, which it escapes; the values are the
# keywords of the call of `_fill_template` that names the template.  STYLE and the scripts are sent as they are, so
# their braces are plain.  A class in a template is one in STYLE, and the script finds elements by `id`, class and
# `data-` attributes, so that a name is changed in all three.
#
# Invariants: there is no Python here.  The page's Content-Security-Policy allows one style and one script, by nonce,
# so that style="" and onclick="" have no effect.  A fragment has its style in style="", as it has no document of its
# own, and no script.  Without the script the page still shows everything but the values of library frames; what needs
# the script has the class `js`.
# =====================================================================================================================

# Any page, and what the body knows of one with a script; then the body of such a page, and of one without.
DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'%3E%3Ccircle \
cx='4.5' cy='4.5' r='3.5' fill='%23d3392c'/%3E%3C/svg%3E">
<style nonce="{nonce}">{style}</style>
</head>
<body{known}>
{body}
</body>
</html>
"""
KNOWN = """ data-prefix="{prefix}" data-secret="{secret}" data-reload-id="{reload_id}" data-method="{method}" \
data-stored="{stored}" data-console="{state}\""""
SCRIPTED = """{content}
<template id="prompt"><div class="console">
<div class="printed" role="log" aria-label="Console output" tabindex="0" hidden></div>
<form><span class="sign" aria-hidden="true">&gt;&gt;&gt;</span>
<textarea rows="1" aria-label="Python in this frame" spellcheck="false" autocapitalize="off" autocomplete="off">\
</textarea>
<button type="button" class="stop" hidden>Interrupt</button></form>
<p class="choices" role="status"></p>
</div></template>
<template id="locked"><div class="console">
<button type="button" class="sign">&gt;&gt;&gt; <span>The console is locked. Unlock it…</span></button>
<form hidden><label>PIN <input size="12" autocomplete="off" autocapitalize="off" spellcheck="false"></label>
<button>Unlock</button> <span class="why" role="status">The terminal shows it, and a link that unlocks in one \
click.</span></form>
</div></template>
<template id="closed"><div class="console"><p class="why">{reason} {remedy}</p></div></template>
<script nonce="{nonce}">{script}</script>"""
NOTICE = """<main>
<h1>{title}</h1>
{content}
</main>"""

# The content of the page of a crash, and of the page with the console for the application alone.
CRASH = """<header>
<div class="bar">
<p class="request">{request}</p>
<div class="tools js">
<span id="state" role="status"></span>
<button type="button" data-copy="as-text">Copy text</button>
<button type="button" data-copy="as-markdown">Copy Markdown</button>
<button type="button" id="again">{again}</button>
<details class="menu">
<summary>Editor<span id="editor-name"></span></summary>
<div>
<label>Open files in <select id="editor">{editors}</select></label>
<label id="own">Its link, with {{path}}, {{line}} and {{column}}
<input id="own-link" value="{own_link}" placeholder="editor://open?file={{path}}&amp;line={{line}}"></label>
<label>Server's folder = yours, if they differ <input id="folders" value="{path_map}" \
placeholder="/app=/home/me/project"></label>
</div>
</details>
</div>
</div>
<h1>{type} {message}</h1>
{remarks}
<p id="answers" class="note" role="status" hidden></p>
</header>
<main>
<div id="news" role="alert" hidden><span></span> <button type="button">{again}</button></div>
{exceptions}
<section class="around" aria-label="Request, environment and copies">
{around}
</section>
</main>
<footer>
<p>{versions}</p>
<p class="js"><kbd>j</kbd> <kbd>k</kbd> to the next and previous frame, <kbd>Enter</kbd> opens, <kbd>c</kbd> \
console, <kbd>Esc</kbd> leaves it, <kbd>e</kbd> editor. \
<a href="{prefix}/console">Console of the application alone</a>{address}</p>
</footer>"""

ADDRESS = """ · <a href="{prefix}/crash/{id}">Address of this crash</a> · <a href="{prefix}/">The last crashes</a>"""

REQUEST_LINE = """<b>{method}</b> {url}"""

CONSOLE = """<header>
<div class="bar"><p class="request">devserve</p><span id="state" class="js" role="status"></span></div>
<h1>Console <span class="message">of the application alone</span></h1>
</header>
<main>
<div id="news" role="alert" hidden><span></span> <button type="button">Start anew</button></div>
<div class="stack"><details class="frame ours" open data-frame="app"><summary><span class="place">app</span> \
<span class="function">the application</span></summary><div class="body"></div></details></div>
<noscript>The console needs scripts.</noscript>
</main>"""

NO_CRASH = "Nothing has failed since the last reload."
CRASH_LIST = """<table class="crashes"><thead><tr><th>Time</th><th>Request</th><th>Exception</th></tr></thead>
<tbody>{text}</tbody></table>"""
CRASH_ROW = """<tr><td>{time}</td><td>{request}</td><td><a href="{prefix}/crash/{id}">{message}</a></td></tr>"""
STACKS = """<pre class="stacks">{text}</pre>"""

# What is shown of a crash inside of another page, by a script of the application's or in a frame.
FRAGMENT = """<div style="all:initial;display:block;margin:8px 0;padding:12px 14px;border-left:4px solid #b3261e;\
background:#fff;color:#1d1e20;font:14px/1.5 system-ui,sans-serif;text-align:left">
<div style="max-height:200px;overflow:auto;overflow-wrap:anywhere;white-space:pre-wrap" tabindex="0">\
<b style="color:#b3261e">{type}</b> {message}</div>
<div style="margin-top:6px;color:#5c5f66;overflow-wrap:anywhere">{place}</div>
<pre style="margin:6px 0 8px;max-height:320px;overflow:auto;font:12.5px/1.5 ui-monospace,Consolas,monospace;\
white-space:pre-wrap;overflow-wrap:anywhere" tabindex="0">{text}</pre>
<a style="color:#0a58a8" href="{link}" target="_blank" rel="noopener">Frames, values and console</a>
</div>
"""

TURBO_FRAME = """<turbo-frame id="{id}">{fragment}</turbo-frame>"""

EDITOR = """<option value="{link}"{selected}>{name}</option>"""

# The exception's type, its module in a quieter color; its message, which scrolls in its place if it is long.
TYPE = """<span class="type"><span>{module}</span>{name}</span>"""
MESSAGE = """<span class="message">{text}</span>"""
TALL_MESSAGE = """<span class="message tall" tabindex="0">{text}</span>"""

# Remarks under the heading.
HINT = """<p class="hint">{text}</p>"""
NOTE = """<p class="note">{text}</p>"""
LINKS = """<ul class="links">{links}</ul>"""
LINK = """<li>{wording} <a href="#{anchor}">{type} {message}</a></li>"""

# One exception.  The newest has the page's heading, each cause a heading of its own, a group's member a line that
# opens.
EXCEPTION = """<section class="exception" id="{anchor}">
{heading}{members}{stack}
</section>"""
HEADING = """<h2><span class="wording">{wording}</span>{type} {message}</h2>{remarks}"""
STACK = """<div class="stack">{frames}</div>"""
MEMBERS = """<div class="members"><p class="count">{title} in the group</p>{members}</div>
{itself}"""
ITSELF = """<p class="count">The group itself was raised here</p>"""
MEMBER = """<details class="member"{open}><summary><span class="number">{number}.</span> {type} \
<span class="message">{message}</span></summary>
{remarks}{exceptions}</details>"""

# A frame, frames folded, a recursion folded.
FRAME = """<details class="frame {kind}"{open} data-frame="{id}" data-line="{lineno}" data-column="{column}">
<summary><span class="place" title="{path}"><span class="folder">{folder}</span>{file}<span class="line">\
:{lineno}</span></span> <span class="function">{function}</span></summary>
<div class="acts js">{more}{edit}</div>
<div class="body">{body}</div>
</details>"""
HALVES = """<div class="halves"><div class="code">{source}</div><div class="values{later}">{variables}</div></div>"""
EDIT = """<a class="edit">Edit<span class="unseen"> {file}</span></a>"""
FOLD = """<details class="fold"><summary>{count} <span>{modules}</span></summary>{frames}</details>"""
REPEAT = """<p class="repeat">{text}</p>"""
SOURCE = """<pre class="source"><code>{lines}</code></pre>"""
LINE = """<span class="l i{indent}{at}" data-n="{number}">{text}</span>"""
COLORED = """<i class="{kind}">{text}</i>"""
TITLED = """<span class="has-value" title="{title}">{text}</span>"""
MARK = """<mark>{text}</mark>"""
ABSENT = """<p class="nothing">{text}</p>"""
MORE = """<button type="button" class="widen">More source</button>"""

# The values of a frame.
VALUES = """<p class="kind">{title}</p><dl>{rows}</dl>"""
VALUE = """<div{used}><dt title="{type}">{name}</dt><dd>{unfold}{text}</dd></div>"""
UNFOLD = """<button type="button" class="unfold js" aria-expanded="false" data-path="{path}">\
<span class="unseen">What is inside {name}</span></button>"""
INSIDE = """<dl class="inside">{rows}</dl>"""

# A long text: its beginning, and the whole text when it is opened.
LONG = """<details class="long"><summary><span class="start">{start}…<span class="more">show all</span></span>\
<span class="more less">show less</span></summary>\
{text}</details>"""

# Around the exception: request, environ, copies.
TABLE = """<details class="table"{open}><summary>{title} <span class="count">{count}</span></summary>\
<dl>{rows}</dl></details>"""
ROW = """<div><dt>{name}</dt><dd>{text}</dd></div>"""
COPY = """<details class="table"><summary>{title}</summary><textarea id="{id}" readonly rows="16" \
aria-label="{title}" spellcheck="false">{text}</textarea></details>"""

STYLE = """
:root { color-scheme: light dark; --desk: #f5f5f3; --paper: #fff; --ink: #1d1e20; --soft: #5c5f66; --rule: #e1e1dc;
  --red: #b3261e; --blush: #fdf0ee; --mark: #f8cdc7; --link: #0a58a8; --keyword: #7b2d9b; --string: #17613a;
  --number: #8a4a08; --comment: #686c73; --name: #0a58a8; --warm: #fff8e6; --warm-rule: #e6c96a;
  --mono: ui-monospace, SFMono-Regular, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --sans: -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
@media (prefers-color-scheme: dark) {
  :root { --desk: #141518; --paper: #1b1d21; --ink: #e3e3e0; --soft: #9da0a8; --rule: #30333a;
    --red: #ff8a7d; --blush: #33211f; --mark: #74322b; --link: #86b9f5; --keyword: #d3a2f0; --string: #8fd0a0;
    --number: #e8b070; --comment: #8b8f98; --name: #86b9f5; --warm: #2b2718; --warm-rule: #6b5a20 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1360px; padding: 14px 28px 28px; background: var(--desk); color: var(--ink);
  font: 14px/1.5 var(--sans) }
p, h1, h2, dl, dd, pre, code { margin: 0; padding: 0; font: inherit }
a { color: var(--link); text-decoration-color: color-mix(in srgb, currentColor 40%, transparent);
  text-underline-offset: 3px }
:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; border-radius: 3px }
html:not(.js) .js, [hidden], #state:empty, .choices:empty, .long[open] > summary > .start,
.long:not([open]) > summary > .less { display: none !important }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
button, select, input, .menu > summary { font: inherit; font-size: 13px; color: var(--ink); background: var(--paper);
  border: 1px solid var(--rule); border-radius: 5px; padding: 2px 9px; min-height: 26px }
button, summary { cursor: pointer }
::placeholder { color: var(--soft); opacity: 1 }
summary { list-style: none; border-radius: 6px }
summary::-webkit-details-marker { display: none }
button:hover, .menu > summary:hover { border-color: var(--soft) }

/* Heading */
.bar { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; justify-content: space-between }
.request { font: 13px/1.5 var(--mono); color: var(--soft); overflow-wrap: anywhere }
.request b { color: var(--ink) }
.tools { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; position: relative }
#state { color: var(--soft); font-size: 13px; margin-right: 6px }
.stack, .stacks, .crashes, .menu > div { background: var(--paper); border: 1px solid var(--rule); border-radius: 7px }
.menu > div { position: absolute; z-index: 2; right: 0; top: 32px; width: min(340px, 90vw); padding: 12px;
  display: grid; gap: 10px; box-shadow: 0 8px 30px #0003 }
.menu label { display: grid; gap: 3px; font-size: 13px; color: var(--soft) }
h1 { margin: 20px 0 14px; font: 19px/1.45 var(--mono); overflow-wrap: anywhere }
.type { color: var(--red); font-weight: 600 }
.type span { font-weight: 400 }
.message { white-space: pre-wrap }
.tall { display: block; max-height: 34vh; overflow: auto; padding: 4px 10px; margin-top: 4px;
  border: 1px solid var(--rule); border-radius: 5px; background: var(--paper); font-size: 14px }
html:not(.js) .later:empty::before { content: "Reading the values needs scripts"; color: var(--soft) }
.more { margin-left: 8px; color: var(--link); font: 13px var(--sans); white-space: nowrap }
.less { margin-left: 0 }
.hint, .note { margin: -6px 0 14px; max-width: 110ch; white-space: pre-wrap; overflow-wrap: anywhere }
.hint::before { content: "→ "; color: var(--red) }
.note { padding-left: 12px; border-left: 3px solid var(--rule); font: 13px/1.55 var(--mono) }
.links { margin: -6px 0 14px; padding: 0; list-style: none; font-size: 13px; color: var(--soft) }
.links a { font-family: var(--mono); overflow-wrap: anywhere }
#news { position: sticky; top: 8px; z-index: 3; display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center;
  margin-bottom: 12px; padding: 8px 14px; background: var(--warm); border: 1px solid var(--warm-rule);
  border-radius: 7px }

/* Frames */
.exception { margin-bottom: 20px }
h2 { margin: 22px 0 8px; font: 15px/1.5 var(--mono); overflow-wrap: anywhere }
.wording { display: block; font: 12px/1.5 var(--sans); color: var(--soft) }
.stack > * + *, .fold > * + * { border-top: 1px solid var(--rule) }
.frame { position: relative }
.frame > summary, .fold > summary { padding: 5px 160px 5px 30px; position: relative; display: flex; flex-wrap: wrap;
  gap: 0 14px; align-items: baseline }
.frame > summary, .place { font: 13px/1.55 var(--mono); overflow-wrap: anywhere }
details:not(.menu, .long) > summary::before { content: ""; position: absolute; left: 13px; top: 12px; width: 5px;
  height: 5px; border: solid var(--soft); border-width: 0 1.5px 1.5px 0; transform: rotate(-45deg) }
details[open]:not(.menu, .long) > summary::before { transform: rotate(45deg); top: 10px }
summary:hover::before { border-color: var(--ink) }
.function { color: var(--name) }
.ours > summary .place { font-weight: 600 }
.place .folder, .place .line, .foreign > summary > span { color: var(--soft); font-weight: 400 }
.fold > summary, .repeat, .count { color: var(--soft); font-size: 13px }
.fold > summary span { font: 12.5px/1.6 var(--mono) }
.fold > .frame { background: color-mix(in srgb, var(--desk) 55%, var(--paper)) }
.repeat { padding: 5px 30px }
.acts { position: absolute; right: 12px; top: 3px; font-size: 13px; display: flex; gap: 14px }
.acts button, .unfold, button.sign { border: 0; background: none; padding: 0 }
.acts button { color: var(--link) }
.acts > * { min-width: 24px; min-height: 24px; line-height: 24px }
.acts button:hover { text-decoration: underline }
.nothing { padding: 6px 0; color: var(--soft); font-size: 13px }
.body { padding: 0 0 2px }
.halves { display: grid; grid-template-columns: minmax(0, 1.55fr) minmax(0, 1fr) }
.code { padding: 1px 0 6px }
.l { display: block; position: relative; tab-size: 4; padding: 0 12px 0 calc(var(--gutter) + var(--hang));
  text-indent: calc(0ch - var(--hang)); min-height: 1.6em; white-space: pre-wrap; overflow-wrap: anywhere;
  --gutter: 64px; --hang: 4ch }
.l::before { content: attr(data-n); position: absolute; left: 0; width: calc(var(--gutter) - 16px); text-indent: 0;
  text-align: right; color: var(--comment); font-size: 12px }
.i1 { --hang: 8ch } .i2 { --hang: 12ch } .i3 { --hang: 16ch } .i4 { --hang: 20ch } .i5 { --hang: 24ch }
.l.at { background: var(--warm); box-shadow: inset 3px 0 var(--warm-rule);
  outline: 1px solid transparent; outline-offset: -1px } /* which forced colors show, and no shadow */
.l.at::before { color: var(--ink) }
mark { background: none; color: inherit; padding: 1px 0; box-shadow: inset 0 -2px var(--warm-rule) }
.hot .l.at { background: var(--blush); box-shadow: inset 3px 0 var(--red) }
.hot .l.at::before { color: var(--red) }
.hot mark { background: var(--mark); border-radius: 2px; box-shadow: inset 0 -2px var(--red) }
i { font-style: normal }
.k { color: var(--keyword) } .s { color: var(--string) } .n { color: var(--number) } .d { color: var(--name) }
.c { color: var(--comment); font-style: italic }
.values { padding: 0 14px 10px; border-left: 1px solid var(--rule); font-size: 13px; min-width: 0 }
.kind, .crashes th { font: 12px/1.6 var(--sans); color: var(--soft) }
dl + .kind { margin-top: 8px }
.values dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr) }
.values dl > div { display: contents }
.values dt { padding-right: 26px; min-width: 84px }
.values dt, .values dd { padding-top: 2px; padding-bottom: 2px; position: relative }
.code > .nothing { padding-left: 30px }
dt, dd, .source, .console, .crashes { font: 13px/1.6 var(--mono) }
dt { color: var(--soft); overflow-wrap: anywhere }
dd { white-space: pre-wrap; overflow-wrap: anywhere }
.values .used dt, .values .used > dd { color: var(--ink); font-weight: 600 }
.values .inside { display: block; margin-left: 14px; font-weight: 400 }
.values .inside > div { display: flex; flex-wrap: wrap }  /* where it is narrow, a value is below its name */
.inside dt { flex: 0 0 40% }
.inside dd { flex: 1 1 18ch }
.unfold { position: absolute; left: -25px; top: 0; width: 24px; min-height: 24px; color: var(--soft) }
.unfold::before { content: "▸" }
.unfold[aria-expanded="true"]::before { content: "▾" }
.has-value { text-decoration: underline dotted color-mix(in srgb, currentColor 45%, transparent);
  text-underline-offset: 3px }

/* Groups */
.members { margin: 10px 0 0 6px; padding-left: 20px; border-left: 2px solid var(--rule) }
.members > .count { margin-bottom: 6px }
.member { margin-bottom: 8px }
.member > summary { position: relative; padding: 3px 0 3px 30px; font: 14px/1.5 var(--mono); overflow-wrap: anywhere }
.number { color: var(--soft); font-size: 12px; margin-right: 4px }

/* Console */
.console { border-top: 1px solid var(--rule); padding: 5px 14px 5px 30px }
.console form { display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start }
.console textarea { flex: 1; min-width: 0; padding: 0 4px; border: 0; resize: none; background: none; color: inherit;
  font: inherit; overflow: hidden; outline: none }
.console:focus-within { box-shadow: inset 3px 0 var(--link) }
.choices, .printed .typed, .sign { color: var(--soft); font: inherit; white-space: pre-wrap }
.sign span, .why { font: 13px/1.6 var(--sans) }
.why { color: var(--soft); align-self: center }
.printed { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 420px; overflow-y: auto }
.printed .failed { color: var(--red) }

/* Around it */
.crashes { border-spacing: 0 }
.crashes th, .crashes td { padding: 3px 14px; text-align: left; vertical-align: top }
.crashes td + td { min-width: 110px; overflow-wrap: anywhere }
.stacks { padding: 10px 14px; font: 13px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere }
.table { background: var(--paper); border: 1px solid var(--rule); margin-top: -1px }
.table:first-child { border-radius: 7px 7px 0 0 } .table:last-child { border-radius: 0 0 7px 7px }
.table > summary { position: relative; padding: 5px 30px; font-size: 13px }
.table > dl { padding: 0 30px 10px }
.table dl > div { display: grid; gap: 14px; grid-template-columns: minmax(0, 210px) minmax(0, 1fr) }
.table textarea { width: calc(100% - 60px); margin: 0 30px 12px; padding: 8px; font: 12.5px/1.5 var(--mono);
  color: inherit; background: var(--desk); border: 1px solid var(--rule); border-radius: 5px }
footer { display: flex; flex-wrap: wrap; gap: 2px 24px; justify-content: space-between; margin-top: 14px;
  font-size: 12.5px; color: var(--soft) }
kbd { font: 12px var(--mono); border: 1px solid var(--rule); border-radius: 3px; padding: 0 4px;
  background: var(--paper) }

@media (max-width: 760px) {
  body { padding: 10px 10px 24px }
  .tools button, .menu > summary { padding: 2px 6px; font-size: 12px }
  h1 { font-size: 17px; margin: 14px 0 12px }
  .halves { grid-template-columns: minmax(0, 1fr) }
  .values { border-left: 0; border-top: 1px solid var(--rule); padding: 6px 12px 8px 30px }
  .l { --gutter: 46px }
  .l::before { width: 34px }
  .i3, .i4, .i5 { --hang: 14ch }
  .frame > summary, .fold > summary { padding-right: 30px }
  .acts { position: static; padding: 0 12px 4px 30px }
  .table dl > div { grid-template-columns: minmax(0, 1fr); gap: 0; margin-bottom: 4px }
  .crashes th, .crashes td { padding: 3px 8px }
  .members { margin-left: 0; padding-left: 10px } }
"""

SCRIPT = r"""
(() => {
"use strict";
const page = document.body.dataset;
// When a script or a frame has put this page into another document, it does nothing.
if (page.prefix === undefined || window !== window.top) return;
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const on = (element, event, action) => element?.addEventListener(event, action);
const stamp = id => find("#" + id).content.firstElementChild.cloneNode(true);
const make = (tag, className, textContent) => Object.assign(document.createElement(tag), {className, textContent});
document.documentElement.classList.add("js");

// What is kept in the browser; in the page alone, if storage is forbidden or the application has filled it.
const unkept = {};
function store(name, value) {
  try { localStorage.setItem("devserve." + name, value); } catch { unkept[name] = value; }
}
function stored(name) {
  try { return unkept[name] ?? localStorage.getItem("devserve." + name); } catch { return null; }
}

// The key, which opens the console together with the cookie.  The terminal's link leads to an address with the key
// after its #; otherwise it comes with the answer to the PIN.
const keyName = "key " + new URL(page.prefix, location).pathname;  // this debugger's: a site may have several
let offered = "";  // by the address; kept once the server takes it, as any site may link to us with a false one
const key = () => offered || stored(keyName) || "";
if (/^#[0-9a-f]{64}$/.test(location.hash)) {
  offered = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
}

// A service worker of the application's reads all requests of the pages that it controls.
const workerRefusal = {error: "script", reason: "The console is closed: A service worker of this site could read " +
  "this page; reload it with Shift held down.", remedy: ""};
// A browser that takes no cookies is as locked after the right PIN as before.
const cookieRefusal = {error: "cookie", reason: "This browser takes no cookies, by which the console knows it.",
  remedy: "Allow cookies for this address."};
const isControlled = () => Boolean(navigator.serviceWorker?.controller);

// A request to an endpoint: returns the reply, which is a refusal if it has an `error`.
async function ask(what, message) {
  if (isControlled()) return workerRefusal;
  const headers = {"Content-Type": "application/json", "X-Devserve-Secret": page.secret, "X-Devserve-Key": key()};
  const options = {method: "POST", body: JSON.stringify(message), headers};
  try {
    const answer = await fetch(page.prefix + "/" + what, options), reply = await answer.json();
    if (answer.ok || reply.reason) return reply;
  } catch { /* it is no JSON, or there is none */ }
  return {error: "silence", reason: "The server does not answer.", remedy: ""};
}
const explain = refusal => `${refusal.reason} ${refusal.remedy}`;

// Copying.
for (const button of all("[data-copy]")) on(button, "click", async () => {
  const area = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {  // a plain http address that is not loopback has no clipboard
    area.closest("details").open = true;
    area.select();
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => button.textContent = label, 1500);
});

// The editor: chosen once, kept by the browser.
const editor = find("#editor"), ownLink = find("#own-link"), folders = find("#folders");
function aimLinks() {
  const link = editor.value || ownLink.value;
  const pairs = folders.value.split(",").map(pair => pair.split("=").map(side => side.trim().replace(/[/\\]+$/, "")));
  find("#own").hidden = editor.value !== "";
  find("#editor-name").textContent = ": " + editor.selectedOptions[0].text;
  for (const edit of all("a.edit")) {
    const frame = edit.closest(".frame"), path = find(".place", frame).title;
    const {line, column} = frame.dataset;
    const within = folder => path.startsWith(folder) && /^([/\\]|$)/.test(path.slice(folder.length));
    const pair = pairs.find(([there, here]) => here && within(there));
    const local = pair ? pair[1] + path.slice(pair[0].length) : path;
    const safe = local.replace(/\\/g, "/").replace(/^(?!\/)/, "/").split("/").map(encodeURIComponent).join("/");
    edit.href = link.replace("{path}", safe.replace(/%3A/g, ":")).replace("{line}", line).replace("{column}", column);
  }
}
if (editor) {
  for (const [name, field] of Object.entries({editor, link: ownLink, folders})) {
    const kept = stored(name);
    if (kept !== null) field.value = kept;
    on(field, "change", () => { store(name, field.value); aimLinks(); });
  }
  if (editor.selectedIndex < 0) editor.selectedIndex = 0;
  aimLinks();
  on(document, "click", event => { if (!event.target.closest(".menu")) find(".menu").open = false; });
  on(find(".menu"), "keydown", event => {
    if (event.key !== "Escape") return;
    event.currentTarget.open = false;
    find(".menu > summary").focus();
  });
}

// Values are asked for when they come into view, since reading them may take long and run code of the application's;
// more source is asked for at a click.  A frame that is folded is never in view.
const viewer = new IntersectionObserver(seen => {
  for (const {isIntersecting, target} of seen) if (isIntersecting) readValues(target);
});
const frameOf = element => element.closest(".frame").dataset.frame;
async function readValues(values) {
  viewer.unobserve(values);
  const reply = await ask("variables", {frame: frameOf(values)});
  if (reply.error) values.textContent = explain(reply);
  else values.innerHTML = reply.html;
}
for (const values of all(".values.later")) {
  if (page.secret) viewer.observe(values);
  else if (!values.textContent) values.textContent = "Not read, since this page may not ask.";
}
for (const button of all(".widen")) {
  const frame = button.closest(".frame");
  let lines = 8;
  button.hidden = !page.secret;
  on(button, "click", async () => {
    lines *= 5;
    const reply = await ask("source", {frame: frame.dataset.frame, lines});
    if (reply.error) return button.replaceWith(explain(reply));
    find(".source", frame).outerHTML = reply.html;
    button.hidden = reply.all;
  });
}

// What is inside a value is asked for at a click, one level at a time.
on(document, "click", async event => {
  const button = event.target.closest(".unfold");
  if (!button) return;
  const cell = button.closest("dd"), inside = find(":scope > .inside, :scope > .nothing", cell);
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  if (inside) return inside.hidden = !open;
  const reply = await ask("members", {frame: frameOf(button), path: JSON.parse(button.dataset.path)});
  if (reply.error) cell.append(make("p", "nothing", explain(reply)));
  else cell.insertAdjacentHTML("beforeend", reply.html);
});

// The console.
// What was typed is kept in sessionStorage, encrypted by the secret, as other pages of this site can reach it too.
// GCM shows whether it was changed.  Without TLS, an address that is not loopback has no `crypto.subtle`.
async function cipher(work, iv, data) {
  const secret = await crypto.subtle.importKey("raw", new TextEncoder().encode(page.secret), "AES-GCM", false, [work]);
  return crypto.subtle[work]({name: "AES-GCM", iv: new Uint8Array(iv)}, secret, new Uint8Array(data));
}
// The commands, and for each frame of each page the text in its prompt that has not been sent.
let past = [], drafts = {}, keeping = Promise.resolve();
async function recollect() {
  const kept = JSON.parse(sessionStorage.getItem("devserve.typed"));
  if (kept) [past, drafts] = JSON.parse(new TextDecoder().decode(await cipher("decrypt", ...kept)));
}
async function encrypt() {
  const iv = [...crypto.getRandomValues(new Uint8Array(12))];
  const data = await cipher("encrypt", iv, new TextEncoder().encode(JSON.stringify([past, drafts])));
  sessionStorage.setItem("devserve.typed", JSON.stringify([iv, [...new Uint8Array(data)]]));
}
function keepTyped() {
  if (page.secret && crypto.subtle) keeping = keeping.then(encrypt).catch(() => {});  // in turn; or it is too much
}
function remember(code) {
  if (past[past.length - 1] !== code) past.push(code);
  past.splice(0, past.length - 200);
  keepTyped();
}

function makePrompt(element) {
  const frame = element.dataset.frame, spot = location.pathname + " " + find("summary", element).textContent;
  const box = stamp("prompt");
  const form = find("form", box), input = find("textarea", box), sign = find(".sign", box);
  const printed = find(".printed", box), stop = find(".stop", box), matches = find(".choices", box);
  let place = past.length, draft = "", busy = false;

  function print(text, kind, line = printed.appendChild(make("div", kind, ""))) {
    line.textContent = text.replace(/\n$/, "");
    while (printed.childElementCount > 400) printed.firstChild.remove();  // more makes each keystroke slow
    printed.hidden = false;
    printed.scrollTop = printed.scrollHeight;
    scroll();
    return line;
  }
  function scroll() {  // no browser scrolls to what comes below the caret
    if (document.activeElement === input) box.scrollIntoView({block: "nearest"});
  }
  function write(text, from = 0, to = input.value.length) {
    input.setRangeText(text, from, to, "end");
    input.rows = input.value.split("\n").length;
    sign.textContent = Array.from({length: input.rows}, (_, row) => row ? "..." : ">>>").join("\n");
    drafts[spot] = input.value || undefined;
    keepTyped();
  }
  function work(state) {
    busy = input.readOnly = state;  // what is disabled would lose the focus
    stop.hidden = !state;
  }
  async function run() {
    const code = input.value.replace(/\n[ \t]+$/, "\n");  // a line with nothing but indentation ends a block, too
    if (busy || !code.trim()) return;
    work(true);
    let reply = await ask("eval", {frame, code, wait: 0.3});
    if (reply.more) {
      const last = code.split("\n").pop();
      const deeper = last.trimEnd().endsWith(":") ? "    " : "";
      write("\n" + last.match(/^[ \t]*/)[0] + deeper, input.value.length);
    } else if (!reply.error) {
      print(code.trimEnd().replace(/^/gm, "... ").replace("...", ">>>"), "typed");
      remember(code.trimEnd());
      const line = print(reply.output, "");
      while (reply.running) {
        reply = await ask("output", {frame, wait: 0.3});
        if (!reply.error) print(reply.output, "", line);
      }
      place = past.length;
      if (!reply.error) write("");  // else a save may have ended it, and what was typed is still wanted
    }
    if (reply.error) print(explain(reply), "failed");
    if (reply.error === "cookie") setConsole("locked");
    work(false);
  }
  async function interrupt() {
    const reply = await ask("interrupt", {frame});
    if (reply.error) print(explain(reply), "failed");
    else if (!reply.interrupted && busy) setTimeout(interrupt, 100);  // it came before the evaluation had begun
  }
  async function complete() {
    const caret = input.selectionStart;
    const reply = await ask("complete", {frame, code: input.value.slice(0, caret)});
    if (!reply.matches?.length || input.selectionStart !== caret) return;
    let common = reply.matches[0];
    for (const match of reply.matches) while (!match.startsWith(common)) common = common.slice(0, -1);
    if (common.length >= caret - reply.start) write(common, reply.start, caret);
    const shown = reply.matches.map(match => /^[\w.]+$/.test(match) ? match.split(".").pop() : match);
    matches.textContent = shown.length > 1 ? shown.join("  ") : "";
    scroll();
  }
  function recall(step) {
    if (place === past.length) draft = input.value;
    place = Math.max(0, Math.min(past.length, place + step));
    write(place === past.length ? draft : past[place]);
  }

  on(form, "submit", event => event.preventDefault());
  on(stop, "click", interrupt);
  // In a prompt that has just got the focus Tab moves on, so that people without a mouse can get past typed text.
  let completes = false;
  for (const event of ["input", "pointerdown"]) on(input, event, () => { completes = true; });
  on(input, "blur", () => { completes = false; });
  on(input, "input", () => { matches.textContent = ""; write("", input.selectionStart, input.selectionStart); });
  on(input, "keydown", event => {
    const before = input.value.slice(0, input.selectionStart), after = input.value.slice(input.selectionEnd);
    const control = event.ctrlKey && !event.shiftKey && !event.altKey;
    const picked = input.selectionStart !== input.selectionEnd;
    // The code is that of the letter under Caps Lock and in a Cyrillic layout too.
    const key = control ? "^" + String.fromCharCode(event.keyCode) : event.key;
    const actions = {
      "Enter": !event.shiftKey && !event.isComposing && run,  // an input method's Enter takes its proposal
      "Tab": completes && !event.shiftKey && /[\p{L}\p{N}_.\[\])"']$|\b(import|from) $/u.test(before) && complete,
      "ArrowUp": !before.includes("\n") && !event.shiftKey && (() => recall(-1)),
      "ArrowDown": !after.includes("\n") && !event.shiftKey && (() => recall(1)),
      "Escape": () => find("summary", box.closest(".frame")).focus(),
      "^L": () => { printed.textContent = ""; printed.hidden = true; },
      "^C": !picked && (busy ? interrupt : () => { print(">>> " + input.value + "^C", "typed"); write(""); }),
    };
    if (!Object.hasOwn(actions, key) || !actions[key]) return;
    event.preventDefault();
    if (!busy || /^(\^[CL]|Escape)$/.test(key)) actions[key]();
  });
  if (drafts[spot]) write(drafts[spot]);
  return box;
}

function makeLock() {
  const box = stamp("locked");
  const button = find("button", box), form = find("form", box), input = find("input", box), why = find(".why", box);
  const show = typing => { button.hidden = typing; form.hidden = !typing; (typing ? input : button).focus(); };
  on(button, "click", () => show(true));
  on(form, "keydown", event => { if (event.key === "Escape") show(false); });
  on(form, "submit", async event => {
    event.preventDefault();
    const frame = box.closest(".frame"), reply = await ask("pin", {pin: input.value});
    if (!reply.error) {
      store(keyName, reply.key);
      page.secret = reply.secret;
      if ((await alive().catch(() => reply)).console !== "open") Object.assign(reply, cookieRefusal);
    }
    if (reply.error) {
      why.textContent = explain(reply);
      return input.select();
    }
    past = [], drafts = {};  // whoever knew the secret before may have planted them
    await recollect().catch(() => {});
    setConsole(reply.console);
    find("textarea", frame).focus();
  });
  return box;
}

// Give each frame a console that is open, locked or closed; if closed, say why once.
function setConsole(state, why) {
  const isFirst = !find(".console");
  if (state === page.console && !isFirst) return;
  page.console = state;
  for (const old of all(".console")) old.remove();
  for (const frame of all(".frame")) {
    if (state === "closed" ? find(".console") : !frame.dataset.frame) continue;
    const box = state === "open" ? makePrompt(frame) : state === "locked" ? makeLock() : stamp("closed");
    if (state === "closed" && why) find(".why", box).textContent = why;
    find(".body", frame).append(box);
  }
  if (isFirst && find('[data-frame="app"]')) keys.c();  // the page is nothing but a console
}

// Keys: none while something is typed.
const heads = () => all(".frame > summary, .fold > summary, .member > summary")
  .filter(head => head.getClientRects().length);
function step(by) {
  const list = heads(), now = list.indexOf(document.activeElement);
  list[now < 0 ? 0 : now + by]?.focus();
}
function frameAtHand() {
  const frame = document.activeElement.closest(".frame") || find(".frame[open]") || find(".frame");
  if (frame) frame.open = true;
  return frame;
}
const keys = {
  j: () => step(1),
  k: () => step(-1),
  c: () => find(".console textarea, .console button:not([hidden])", frameAtHand())?.focus(),
  e: () => find(".edit", frameAtHand())?.click(),
};
on(document, "keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const arrows = heads().includes(document.activeElement) ? {ArrowDown: keys.j, ArrowUp: keys.k} : {};
  const action = keys[event.key] || arrows[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// After a save another process answers, and this page is out of date: reload it, or say so.
const [storedId, firstSeconds] = page.stored.split(" ");
const milliseconds = seconds => `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
async function sendAgain() {
  if (!/^(GET|HEAD)$/.test(page.method) && !confirm(`Send ${find(".request").textContent} again?`)) return;
  const answers = find("#answers");
  answers.hidden = false;
  answers.textContent = "Sending…";
  const reply = await ask("again", {crash: storedId});
  answers.textContent = reply.error ? explain(reply) : `The first answer: 500 after ${milliseconds(firstSeconds)}. ` +
    `The second: ${reply.status} after ${milliseconds(reply.seconds)}. `;
  const link = Object.assign(make("a", "", "Its page"), {href: page.prefix + "/crash/" + reply.crash});
  if (reply.crash) answers.append(link);
}
// To repeat a POST, the browser reloads the page that was its answer, after asking.  The page under a crash's own
// address was not; there the server repeats the request that it has recorded.
const again = () => storedId ? sendAgain() : location.reload();
const state = find("#state"), news = find("#news");
on(find("#again"), "click", again);
on(find("button", news), "click", again);
let failures = 0, edits, timer;
// The address that has crashed: this page's, or that of the page which gave way to this one (see catchUp).
const cameFrom = "devserve.from";
function address() {
  if (!storedId) return location.href;
  try {
    const [id, path] = sessionStorage.getItem(cameFrom).split(" ");
    return id === storedId && path[0] === "/" ? location.origin + path : "";
  } catch { return ""; }
}
function canGoOn() {  // nothing is lost or sent twice
  return !all(".console textarea").some(input => input.value) && address() && /^(GET|HEAD)$/.test(page.method);
}
const goOn = () => storedId ? location.replace(address()) : location.reload();
const frameHere = () => find("[data-frame]")?.dataset.frame;
// Returns whether to go on watching.  If the saved code does not run, the process is the same, and so are its frames.
async function follow(reloadId) {
  // A hidden page waits until it is shown: its request would end the frames of another page of the same request.
  if (canGoOn()) return document.hidden || goOn();
  const isKept = frameHere() && !(await ask("source", {frame: frameHere()})).error;
  find("span", news).textContent = isKept ? "The saved code does not run yet. The frames on this page are kept."
    : "New code is running. The frames on this page are gone.";
  news.hidden = false;
  state.textContent = "";
  if (!isKept) for (const field of all(".console form > *")) field.disabled = true;
  page.reloadId = reloadId;
  return isKept;
}
// Another tab has unlocked the browser, whose pages have another secret now.  This one gives way, once, to the page
// under its crash's address, with the same frames: the request might not fail again, or was a POST.
async function catchUp(why) {
  const name = "devserve.older", here = page.reloadId + location.pathname, frame = frameHere();
  let isFirst = false;
  try {
    isFirst = sessionStorage.getItem(name) !== here;
    sessionStorage.setItem(name, here);
  } catch { isFirst = false; }
  if (!isFirst) return setConsole("closed", why);  // something on the way removes our cookie
  if (storedId || frame === "app") return location.reload();
  if (!frame) return setConsole("closed", why);
  const reply = await ask("source", {frame});
  if (reply.error) return setConsole("closed", explain(reply));  // the frames are gone, but not what is shown here
  const id = frame.split("-")[0];
  try { sessionStorage.setItem(cameFrom, `${id} ${location.pathname}${location.search}`); } catch {}
  location.assign(page.prefix + "/crash/" + id);
}
async function alive() {
  const headers = isControlled() ? {} : {"X-Devserve-Secret": page.secret, "X-Devserve-Key": key()};
  return (await fetch(page.prefix + "/alive", {cache: "no-store", headers})).json();
}
async function watch() {
  clearTimeout(timer);
  const before = page.console;  // a PIN may be taken while the answer is under way
  try {
    const now = await alive();
    if (offered && !isControlled()) {
      if (now.console === "open") store(keyName, offered);
      offered = "";
      if (now.console !== "open") return watch();
    }
    if (now.reload_id !== page.reloadId && !await follow(now.reload_id)) return;
    const isUsed = find(".printed:not([hidden])");  // its frames are still there, and what they have printed
    if (now.edits !== (edits ??= now.edits) && canGoOn() && !isUsed) return goOn();
    if (isControlled()) setConsole("closed", explain(workerRefusal));
    else if (now.console === "older") { if (page.console !== "open") await catchUp(now.why); }
    else if (page.secret && page.console === before) setConsole(now.console, now.why);
    failures = 0;
  } catch {
    failures += 1;
    setConsole(page.console);
  }
  state.textContent = failures > 10 ? "The server does not answer" : failures ? "Reloading…" : "";
  timer = setTimeout(watch, document.hidden ? 2000 : failures > 10 ? 1000 : 300);
}
// In a hidden tab a browser may delay timers by a minute: look at once when the tab is shown again.
on(document, "visibilitychange", () => { if (!document.hidden && news.hidden) watch(); });
recollect().catch(() => {}).then(() => {  // what was kept is another run's, or somebody has changed it
  // Whether the key opens the console is known only when `watch` has asked.
  if (!isControlled() && (page.console !== "locked" || !key())) setConsole(page.console);
  watch();
});
})();
"""


# What `LivePages` adds to a page of the application's: it replaces a changed style sheet or image in the page, and for
# any other change loads the page anew.
LIVE_SCRIPT = r"""
(() => {
"use strict";
const {src, dataset} = document.currentScript;
const address = src.replace(/\.js$/, "?since=");
const nameOf = url => decodeURIComponent(new URL(url, document.baseURI).pathname.split("/").pop());
const fresh = url => { const made = new URL(url, document.baseURI); made.searchParams.set("live", Date.now());
  return made.href; };
let seen = Number(dataset.seen);
function swap(name) {
  const sheets = [...document.querySelectorAll("link[rel~=stylesheet][href]")].filter(e => nameOf(e.href) === name);
  const images = [...document.querySelectorAll("img[src]")].filter(e => nameOf(e.src) === name);
  for (const sheet of sheets) {
    const next = sheet.cloneNode();
    next.href = fresh(sheet.href);
    next.onload = next.onerror = () => sheet.remove();  // until then the old one holds: nothing flickers
    sheet.after(next);
  }
  for (const image of images) { image.removeAttribute("srcset"); image.src = fresh(image.src); }
  return sheets.length + images.length > 0;
}
let timer, asking = false;
async function follow() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch(address + seen, {cache: "no-store"});
    if (answer.status === 404 || answer.status === 403) return;  // --live is off by now
    const now = await answer.json();
    if (now.reload_id !== dataset.reloadId) return location.reload();
    seen = now.count;
    if (!now.changes.every(swap)) return location.reload();
  } catch { /* the server is reloading, or gone */ }
  asking = false;
  timer = setTimeout(follow, document.hidden ? 2000 : 300);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) follow(); });
follow();
})();
"""

DEMO_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>devserve demo</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.6 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
  code { font-family: ui-monospace, monospace; }
  li { margin: .4rem 0; }
</style>
<h1>It works</h1>
<p>This page is the demo of devserve: an ordinary WSGI application, in the same file.</p>
<ul>
  <li><a href="/stream">A streaming page</a>: a line a second, each on the wire before the next is made.</li>
  <li><a href="/fail?fruit=peers">A page that fails</a>: with <code>--debug</code> you see where, and why.</li>
  <li><a href="/__devserve__/console">The console</a>: with <code>--debug</code>, for whoever reads the terminal.</li>
</ul>
<p>Now your own: <code>python devserve.py hello:app --debug</code></p>
</html>
"""


if __name__ == "__main__":
    sys.modules["devserve"] = sys.modules["__main__"]  # `import devserve` in the application finds this very module
    sys.exit(main())
