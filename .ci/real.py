"""The real world: applications and clients that other people wrote, each served from its own folder.

    python3 .ci/real.py                 all of them
    python3 .ci/real.py RealTools       one class

They need the packages of the dev group and a few programs; what each one is here for stands in its docstring.  What is
missing is skipped with the reason; with DEVSERVE_REQUIRE_ALL=1, as in `.ci/run`, a missing one is a failure.
"""

import gzip
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
import zipfile
from typing import Any, Callable, Optional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from test_devserve import DEADLINE, REQUIRE_ALL, Folder, Served, Test, eventually, needs

CLIENT_PATIENCE = 120.0  # seconds that a client program may take; the longest takes ten on a quiet machine


def program(name: str) -> str:
    """Return where a program lies, beside the interpreter or on PATH; its bare name when it is nowhere."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name) or name


def needs_program(name: str) -> Callable[[Test], Test]:
    """Skip the decorated test when there is no such program, or let it fail when nothing may be missing."""
    return unittest.skipUnless(os.path.isabs(program(name)) or REQUIRE_ALL, f"needs the program {name}")


class RealApplication(Folder):
    """An application in `self.folder`, served from there, and what its clients have in common."""

    def serve(self, *arguments: str, **options: Any) -> Served:
        """Start devserve in the folder; it is stopped at the test's end and must have printed no traceback."""
        served = Served(*arguments, cwd=self.folder, **options)
        self.addCleanup(self._stop, served)
        return served

    def _stop(self, served: Served) -> None:
        served.stop()
        self.assertNotIn("Traceback", served.log)

    def client(self, name: str, *arguments: str, where: str = ".", **environ: str) -> str:
        """Run a client program in the folder to its end and return what it printed; fail with that if it failed."""
        done = subprocess.run(
            [program(name), *arguments],
            cwd=self.folder / where,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CLIENT_PATIENCE,
        )
        output = done.stdout.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 0, f"{name} {' '.join(arguments)} printed:\n{output}")
        return output

    def python(self, *arguments: str, where: str = ".", **environ: str) -> str:
        """Run Python as a client."""
        return self.client(sys.executable, *arguments, where=where, **environ)


class RealTools(RealApplication):
    """Programs that speak more of HTTP than a browser does."""

    @needs("wsgidav")
    @needs_program("litmus")
    def test_wsgidav_passes_the_whole_litmus_suite(self) -> None:
        """WebDAV: bodies that the application leaves unread, 100-continue, methods that nobody else uses."""
        self.write(
            "dav.py",
            """
            from wsgidav.wsgidav_app import WsgiDAVApp

            app = WsgiDAVApp({
                "provider_mapping": {"/": "files"},
                "simple_dc": {"user_mapping": {"*": True}},
                "property_manager": True,
                "lock_storage": True,
                "verbose": 1,
            })
            """,
        )
        (self.folder / "files").mkdir()
        output = self.client("litmus", "-k", self.serve("dav:app").url + "/")
        counts = re.findall(r"summary for `(\w+)': of (\d+) tests run: (\d+) passed", output)
        self.assertEqual([name for name, _, _ in counts], ["basic", "copymove", "props", "locks", "http"], output)
        self.assertTrue(all(run == passed for _, run, passed in counts), output)
        self.assertNotIn("WARNING", output)

    @needs("dulwich")
    @needs_program("git")
    def test_git_pushes_megabytes_to_dulwich_and_clones_them(self) -> None:
        """A push of more than git's http.postBuffer (1 MB) arrives as a chunked body, a fetch as a gzipped one."""
        self.write(
            "gitserver.py",
            """
            from dulwich.repo import Repo
            from dulwich.server import DictBackend
            from dulwich.web import make_wsgi_chain

            repository = Repo.init_bare("served.git", mkdir=True)
            settings = repository.get_config()
            settings.set("http", "receivepack", True)
            settings.write_to_path()
            application = make_wsgi_chain(DictBackend({"/served.git": repository}))
            """,
        )
        url = self.serve("gitserver").url + "/served.git"
        noise = os.urandom(3 * 1024**2)  # nothing that compresses
        (self.folder / "mine").mkdir()
        (self.folder / "mine" / "noise").write_bytes(noise)
        self.git("init", "-q", "-b", "main", "mine")
        self.git("-C", "mine", "add", ".")
        self.git("-C", "mine", "commit", "-q", "-m", "Noise")
        self.git("-C", "mine", "push", "-q", url, "main")
        self.git("clone", "-q", "-b", "main", url, "theirs")
        self.assertEqual((self.folder / "theirs" / "noise").read_bytes(), noise)
        self.write("theirs/more", "A second commit\n")
        self.git("-C", "theirs", "add", ".")
        self.git("-C", "theirs", "commit", "-q", "-m", "More")
        self.git("-C", "theirs", "push", "-q", url, "main")
        self.git("-C", "mine", "pull", "-q", url, "main")
        self.assertEqual((self.folder / "mine" / "more").read_text(encoding="utf-8"), "A second commit\n")

    def git(self, *arguments: str) -> str:
        person = ("-c", "user.name=A person", "-c", "user.email=person@example.org")
        alone = {"HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
        return self.client("git", *person, *arguments, **alone)

    @needs("mercurial")
    @unittest.skipIf(sys.implementation.name == "pypy", "a system's mercurial, which PyPy sees, is made for CPython")
    def test_hg_clones_from_hgweb_and_pushes_to_it(self) -> None:
        """hgweb streams its answers through `write()` and generators, and takes arguments in many headers."""
        self.write("hgrc", "[web]\nallow-push = *\npush_ssl = false\n[ui]\nusername = A person\n")
        self.write(
            "hgserver.py",
            """
            from mercurial.hgweb import hgweb

            application = hgweb(b"served", name=b"served")
            """,
        )
        self.hg("init", "served")
        noise = os.urandom(2 * 1024**2)
        (self.folder / "served" / "noise").write_bytes(noise)
        self.hg("-R", "served", "commit", "-A", "-m", "Noise")
        served = self.serve("hgserver", env={"HGRCPATH": "hgrc"})
        self.hg("clone", served.url, "mine")
        self.assertEqual((self.folder / "mine" / "noise").read_bytes(), noise)
        (self.folder / "mine" / "more").write_bytes(noise[::-1])
        self.hg("-R", "mine", "commit", "-A", "-m", "More")
        self.hg("-R", "mine", "push", served.url)
        self.assertIn("More", self.hg("-R", "served", "log"))
        self.assertIn("Noise", served.get("/log"))

    def hg(self, *arguments: str) -> str:
        return self.client("hg", *arguments, HGRCPATH=str(self.folder / "hgrc"))

    @needs("pypiserver")
    @needs("twine")
    def test_twine_uploads_to_pypiserver_and_pip_installs_from_it(self) -> None:
        """A multipart upload, a redirect, and a package index as pip reads it."""
        (self.folder / "packages").mkdir()
        self.write(
            "index.py",
            """
            import pypiserver

            app = pypiserver.app(roots=["packages"], authenticate=[], password_file=".")
            """,
        )
        served = self.serve("index")
        wheel = self.wheel("tiny")
        upload = ("-m", "twine", "upload", "--non-interactive", "--disable-progress-bar", "-u", "a", "-p", "b")
        self.python(*upload, "--repository-url", served.url + "/", str(wheel), HOME=str(self.folder))
        self.assertTrue((self.folder / "packages" / wheel.name).exists())
        install = ("-m", "pip", "install", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")
        nowhere_else = {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
        index = ("--index-url", served.url + "/simple/", "--target", "installed")
        self.python(*install, *index, "tiny", **nowhere_else)
        self.assertEqual((self.folder / "installed" / "tiny.py").read_text(encoding="utf-8"), "SIZE = 1\n")

    def wheel(self, name: str) -> pathlib.Path:
        """Make the smallest wheel there is, a module that holds one line."""
        path = self.folder / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{name}.py", "SIZE = 1\n")
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return path

    @needs("radicale")
    @needs("caldav")
    def test_radicale_keeps_a_calendar_for_caldav(self) -> None:
        """CalDAV: PROPFIND, REPORT, MKCALENDAR and PUT, with XML bodies, from the caldav library."""
        self.write(
            "radicale.conf",
            """
            [auth]
            type = none
            [storage]
            filesystem_folder = collections
            [logging]
            level = warning
            """,
        )
        self.write("calendars.py", "from radicale import application\n")
        served = self.serve("calendars", env={"RADICALE_CONFIG": "radicale.conf"})
        self.write("client.py", CALDAV_CLIENT)
        self.assertEqual(self.python("client.py", served.url).split(), ["Meeting", "Moved", "0"])

    @needs("brotlicffi")
    @needs("decorator")
    @needs("flask")
    @needs("six")
    @needs("requests")
    @needs("pytest")
    @needs("pytest_mock")
    def test_httpbin_passes_the_tests_of_requests_over_http_and_https(self) -> None:
        """The requests library's own tests that use httpbin: cookies, redirects, digest, chunked uploads, timeouts."""
        self.python("-m", "pip", "install", "-q", "--no-deps", "--target", ".", HTTPBIN)
        source = self.source_of_requests()
        certificates = source / "tests" / "certs" / "valid"
        certificate = ("--cert", str(certificates / "server" / "server.pem"))
        key = ("--key", str(certificates / "server" / "server.key"))
        plain = self.serve("httpbin:app")
        secure = self.serve("httpbin:app", *certificate, *key)
        self.write("served_httpbin.py", HTTPBIN_PLUGIN)
        options = ("-q", "-p", "no:cacheprovider", "-p", "no:httpbin", "-p", "served_httpbin", "-W", "ignore")
        places = {
            "HTTPBIN": plain.url,
            "HTTPBIN_SECURE": secure.url.replace("127.0.0.1", "localhost"),
            "HTTPBIN_CA": str(certificates / "ca" / "ca.crt"),
            "PYTHONPATH": str(self.folder),
        }
        output = self.python("-m", "pytest", *options, "tests/test_requests.py", where=str(source), **places)
        passed = re.search(r"(\d+) passed", output)
        self.assertGreater(int(passed[1]) if passed else 0, 180, output)

    def source_of_requests(self) -> pathlib.Path:
        """Return the unpacked source distribution of the requests that is installed; its wheel has no tests."""
        from importlib.metadata import version

        wanted = f"requests=={version('requests')}"
        download = ("-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "requests")
        self.python(*download, "-d", "sdist", wanted)
        (archive,) = (self.folder / "sdist").glob("*.tar.gz")
        shutil.unpack_archive(str(archive), str(self.folder / "sdist"))
        return self.folder / "sdist" / archive.name[: -len(".tar.gz")]


CALDAV_CLIENT = '''\
import sys
from datetime import datetime

import caldav

MEETING = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:a test
BEGIN:VEVENT
UID:one
DTSTAMP:20300101T000000Z
DTSTART:20300101T100000Z
DTEND:20300101T110000Z
SUMMARY:Meeting
END:VEVENT
END:VCALENDAR
"""

calendar = caldav.DAVClient(sys.argv[1] + "/", username="person", password="any").principal().make_calendar("Work")
calendar.save_event(MEETING)
(event,) = calendar.search(start=datetime(2029, 12, 31), end=datetime(2030, 1, 2), event=True)
print(event.vobject_instance.vevent.summary.value)
event.vobject_instance.vevent.summary.value = "Moved"
event.save()
print(calendar.events()[0].vobject_instance.vevent.summary.value)
event.delete()
print(len(calendar.events()))
'''

HTTPBIN = "httpbin==0.10.4"  # fetched by its test, since what it says it needs cannot be had beside Playwright

HTTPBIN_PLUGIN = '''\
"""Gives the tests of requests an httpbin that runs already, and leaves out those that need none, or a far host."""
import os

import pytest


class Place:
    def __init__(self, url):
        self.url = url


@pytest.fixture
def httpbin():
    return Place(os.environ["HTTPBIN"])


@pytest.fixture
def httpbin_secure():
    return Place(os.environ["HTTPBIN_SECURE"])


@pytest.fixture
def httpbin_ca_bundle(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.environ["HTTPBIN_CA"])


def pytest_collection_modifyitems(items):
    items[:] = [i for i in items if any("httpbin" in f for f in i.fixturenames) and "_connect" not in i.name]
'''


class Visitor:
    """A person at a browser, as far as forms go: keeps cookies, follows redirects, sends hidden fields back."""

    def __init__(self, url: str) -> None:
        import requests

        self.url = url
        self.session = requests.Session()

    def get(self, path: str, **options: Any) -> Any:
        return self.session.get(self.url + path, timeout=DEADLINE, **options)

    def send(self, path: str, files: Any = None, **fields: str) -> Any:
        """Open the page at `path`, fill in its form, send it, and return the page that comes of it."""
        hidden = {}
        for tag in re.findall(r"<input[^>]*type=.?hidden[^>]*>", self.get(path).text):
            found = dict(re.findall(r'(name|value)="([^"]*)"', tag))
            hidden[found["name"]] = found.get("value", "")
        data = {**hidden, **fields}
        return self.session.post(self.url + path, data=data, files=files, timeout=DEADLINE)


class RealFrameworks(RealApplication):
    """A small but whole application of each framework, used as its visitors would."""

    @needs("flask")
    @needs("requests")
    def test_flask_application_with_accounts_forms_and_flashes(self) -> None:
        for name, text in FLASK_JOURNAL.items():
            self.write(name, text)
        served = self.serve("journal")
        ada, bob = Visitor(served.url), Visitor(served.url)
        self.assertIn("You are Ada Müller now", ada.send("/register", name="Ada Müller", password="one").text)
        self.assertIn("That name is taken", bob.send("/register", name="Ada Müller", password="two").text)
        self.assertIn("Wrong name or password", bob.send("/login", name="Ada Müller", password="two").text)
        self.assertIn("You are Bob now", bob.send("/register", name="Bob", password="two").text)
        self.assertIn("<b>Pläne</b>", ada.send("/write", title="Pläne", text="Line one\nLine two").text)
        self.assertIn("<b>Pläne</b>", bob.get("/").text)
        self.assertEqual(bob.send("/entry/1", title="Mine", text="").status_code, 403)
        self.assertIn("<b>Plans</b>", ada.send("/entry/1", title="Plans", text="x" * 200_000).text)
        self.assertEqual(len(bob.get("/entry/1/text").text), 200_000)
        self.assertNotIn("Plans", ada.send("/entry/1/delete").text)
        self.assertIn("You are nobody now", ada.send("/logout").text)
        self.assertEqual(ada.get("/write").url, served.url + "/login")
        self.assertEqual(bob.get("/entry/7").status_code, 404)
        style = bob.get("/static/style.css")
        self.assertEqual(
            (style.headers["Content-Type"], style.text.strip()), ("text/css; charset=utf-8", "b { color: teal }")
        )
        self.assertEqual(
            bob.get("/static/style.css", headers={"If-None-Match": style.headers["ETag"]}).status_code, 304
        )

    @needs("django")
    @needs("requests")
    def test_fresh_django_project_with_its_admin(self) -> None:
        """`django-admin startproject`, migrate, a superuser; then log in to the admin and add a user there."""
        self.python("-m", "django", "startproject", "shop", ".")
        self.python("manage.py", "migrate", "--verbosity", "0")
        account = {"DJANGO_SUPERUSER_PASSWORD": "only here", "PYTHONIOENCODING": "utf-8"}
        self.python("manage.py", "createsuperuser", "--noinput", "--username", "ada", "--email", "a@b.org", **account)
        served = self.serve("shop.wsgi")
        ada = Visitor(served.url)
        self.assertIn("The install worked successfully", ada.get("/").text)
        self.assertIn("csrfmiddlewaretoken", ada.get("/admin/").text)
        self.assertIn("CSRF", ada.session.post(served.url + "/admin/login/", data={"username": "ada"}).text)
        self.assertIn("Please enter the correct", ada.send("/admin/login/", username="ada", password="no").text)
        self.assertIn(
            "Site administration", ada.send("/admin/login/?next=/admin/", username="ada", password="only here").text
        )
        secret = "correct horse battery"
        added = ada.send("/admin/auth/user/add/", username="grace", password1=secret, password2=secret)
        self.assertIn("was added successfully", added.text)
        self.assertIn("grace", ada.get("/admin/auth/user/?q=grace").text)
        self.assertIn("2 users", ada.get("/admin/auth/user/").text)
        self.assertIn("Logged out", ada.session.post(served.url + "/admin/logout/", data=self.token(ada)).text)

    def token(self, visitor: Visitor) -> dict[str, str]:
        return {"csrfmiddlewaretoken": visitor.session.cookies["csrftoken"]}

    @needs("bottle")
    @needs("requests")
    def test_bottle_application_with_upload_download_and_cookies(self) -> None:
        self.write("shelf.py", BOTTLE_SHELF)
        served = self.serve("shelf.py")
        ada = Visitor(served.url)
        picture = bytes(range(256)) * 1024
        stored = ada.send("/", files={"file": ("grün.bin", picture)}, note="Größe")
        self.assertEqual(stored.json(), {"name": "stored", "size": len(picture), "note": "Größe"})
        self.assertEqual(ada.get("/stored").content, picture)
        part = ada.get("/stored", headers={"Range": "bytes=256-511"})
        self.assertEqual((part.status_code, part.content), (206, picture[:256]))
        self.assertEqual(ada.get("/count").text + ada.get("/count").text, "12")
        self.assertEqual(ada.get("/count", cookies={"count": "forged"}).status_code, 200)
        self.assertEqual(ada.get("/hello/W%C3%B6rld%2Fx?a=%26&a=2").json(), ["Wörld/x", ["&", "2"]])
        self.assertEqual(ada.session.put(served.url + "/echo", data=iter([b"in ", b"pieces"])).text, "in pieces")
        self.assertEqual(ada.session.head(served.url + "/stored").headers["Content-Length"], str(len(picture)))
        self.assertEqual(ada.session.delete(served.url + "/echo").status_code, 405)
        self.assertEqual(ada.get("/slowly").text, "one two three")

    @needs("pyramid")
    @needs("requests")
    def test_pyramid_application_made_by_a_factory(self) -> None:
        self.write("guestbook/__init__.py", PYRAMID_GUESTBOOK)
        self.write("guestbook/static/style.css", "b { color: teal }\n")
        served = self.serve('guestbook:main("Visitors of 2030")')
        ada = Visitor(served.url)
        self.assertIn("<h1>Visitors of 2030</h1>", ada.get("/").text)
        self.assertEqual(ada.session.post(served.url + "/sign", data={"name": "Eve"}).status_code, 400)
        page = ada.send("/sign", name="Ada <3")
        self.assertEqual(page.history[0].status_code, 303)
        self.assertIn("<li>Ada &lt;3</li>", page.text)
        self.assertIn("Thank you, Ada &lt;3", page.text)
        self.assertNotIn("Thank you", ada.get("/").text)
        self.assertEqual(ada.get("/visitors.json").json(), ["Ada <3"])
        self.assertEqual(ada.get("/static/style.css").text, "b { color: teal }\n")
        self.assertEqual(ada.get("/static/../__init__.py").status_code, 404)
        self.assertEqual(ada.get("/nowhere").status_code, 404)


FLASK_JOURNAL = {
    "journal/__init__.py": '''\
        """A journal that several people keep: accounts, sessions, forms, flashed messages, SQLite."""
        import sqlite3

        from flask import Flask, abort, flash, g, redirect, render_template, request, session, url_for
        from werkzeug.security import check_password_hash, generate_password_hash

        TABLES = """
            create table if not exists person (name text primary key, password text);
            create table if not exists entry (id integer primary key, author text, title text, text text);
        """


        def create_app():
            app = Flask(__name__)
            app.secret_key = "for a test"

            @app.before_request
            def open_database():
                g.db = sqlite3.connect("journal.sqlite")
                g.db.row_factory = sqlite3.Row
                g.db.executescript(TABLES)

            @app.teardown_request
            def close_database(error):
                g.db.close()

            def execute(statement, *values):
                with g.db:
                    return g.db.execute(statement, values)

            def enter(name):
                session.clear()
                session["name"] = name
                flash(f"You are {name} now")
                return redirect(url_for("index"))

            def page(**values):
                return render_template("page.html", **values)

            @app.get("/")
            def index():
                return page(entries=execute("select * from entry"))

            @app.route("/register", methods=["GET", "POST"])
            def register():
                if request.method == "GET":
                    return page(fields=["name", "password"])
                name, password = request.form["name"], generate_password_hash(request.form["password"])
                try:
                    execute("insert into person values (?, ?)", name, password)
                except sqlite3.IntegrityError:
                    flash("That name is taken")
                    return page(fields=["name", "password"])
                return enter(name)

            @app.route("/login", methods=["GET", "POST"])
            def login():
                if request.method == "POST":
                    name = request.form["name"]
                    found = execute("select * from person where name = ?", name).fetchone()
                    if found and check_password_hash(found["password"], request.form["password"]):
                        return enter(name)
                    flash("Wrong name or password")
                return page(fields=["name", "password"])

            @app.route("/logout", methods=["GET", "POST"])
            def logout():
                return enter("nobody") if request.method == "POST" else page(fields=[])

            @app.route("/write", methods=["GET", "POST"])
            def write():
                if session.get("name", "nobody") == "nobody":
                    return redirect(url_for("login"))
                if request.method == "GET":
                    return page(fields=["title", "text"])
                values = session["name"], request.form["title"], request.form["text"]
                execute("insert into entry (author, title, text) values (?, ?, ?)", *values)
                return redirect(url_for("index"))

            def own_entry(number):
                found = execute("select * from entry where id = ?", number).fetchone()
                if found is None:
                    abort(404)
                if request.method == "POST" and found["author"] != session.get("name"):
                    abort(403)
                return found

            @app.route("/entry/<int:number>", methods=["GET", "POST"])
            def entry(number):
                found = own_entry(number)
                if request.method == "GET":
                    return page(entries=[found], fields=["title", "text"])
                values = request.form["title"], request.form["text"], number
                execute("update entry set title = ?, text = ? where id = ?", *values)
                return redirect(url_for("index"))

            @app.get("/entry/<int:number>/text")
            def text(number):
                return own_entry(number)["text"]

            @app.route("/entry/<int:number>/delete", methods=["GET", "POST"])
            def delete(number):
                own_entry(number)
                if request.method == "POST":
                    execute("delete from entry where id = ?", number)
                return redirect(url_for("index"))

            return app
        ''',
    "journal/templates/page.html": """\
        <!doctype html>
        <title>Journal</title>
        <link rel="stylesheet" href="{{ url_for('static', filename='style.css') }}">
        {% for message in get_flashed_messages() %}<p>{{ message }}</p>{% endfor %}
        {% for entry in entries %}<p><b>{{ entry.title }}</b> by {{ entry.author }}</p>{% endfor %}
        <form method="post">{% for name in fields %}<input name="{{ name }}">{% endfor %}<button>Send</button></form>
        """,
    "journal/static/style.css": "b { color: teal }\n",
}

BOTTLE_SHELF = '''\
    """A shelf for one file: upload, download in parts, a signed cookie, an answer in pieces."""
    import json

    from bottle import Bottle, HTTPResponse, request, response, static_file

    app = Bottle()


    @app.get("/")
    def form():
        return "<form method=post enctype=multipart/form-data><input name=note><input type=file name=file></form>"


    @app.post("/")
    def upload():
        upload = request.files.file
        upload.save("stored", overwrite=True)
        with open("stored", "rb") as stored:
            return {"name": stored.name, "size": len(stored.read()), "note": request.forms.note}


    @app.get("/stored")
    def download():
        return static_file("stored", root=".", mimetype="application/octet-stream")


    @app.get("/count")
    def count():
        number = (request.get_cookie("count", secret="for a test") or 0) + 1
        response.set_cookie("count", number, secret="for a test")
        return str(number)


    @app.get("/hello/<name:path>")
    def hello(name):
        return json.dumps([name, request.query.getall("a")])


    @app.put("/echo")
    def echo():
        return request.body.read()


    @app.get("/slowly")
    def slowly():
        yield "one "
        yield "two "
        yield "three"
'''

PYRAMID_GUESTBOOK = '''\
    """A guest book: routes, a session, protection against forged forms, JSON, static files."""
    from html import escape

    from pyramid.config import Configurator
    from pyramid.csrf import get_csrf_token
    from pyramid.httpexceptions import HTTPSeeOther
    from pyramid.response import Response
    from pyramid.session import SignedCookieSessionFactory

    VISITORS = []


    def book(request):
        names = "".join(f"<li>{escape(name)}</li>" for name in VISITORS)
        thanks = "".join(f"<p>{escape(text)}</p>" for text in request.session.pop_flash())
        return Response(f"<h1>{request.registry.settings['title']}</h1><ul>{names}</ul>{thanks}")


    def form(request):
        token = get_csrf_token(request)
        hidden = f'<input type="hidden" name="csrf_token" value="{token}">'
        return Response(f'<form method="post">{hidden}<input name="name"></form>')


    def sign(request):
        VISITORS.append(request.POST["name"])
        request.session.flash(f"Thank you, {request.POST['name']}")
        return HTTPSeeOther(request.route_url("book"))


    def main(title):
        config = Configurator(settings={"title": title})
        config.set_session_factory(SignedCookieSessionFactory("for a test"))
        config.set_default_csrf_options(require_csrf=True)
        config.add_route("book", "/")
        config.add_route("sign", "/sign")
        config.add_route("visitors", "/visitors.json")
        config.add_view(book, route_name="book")
        config.add_view(form, route_name="sign", request_method="GET")
        config.add_view(sign, route_name="sign", request_method="POST")
        config.add_view(lambda request: VISITORS, route_name="visitors", renderer="json")
        config.add_static_view("static", "guestbook:static")
        return config.make_wsgi_app()
'''


class RealAsgi(RealApplication):
    """ASGI frameworks, and what people use with them, each with a client of its own."""

    def ask(self, served: Served, path: str, data: Optional[bytes] = None, **headers: str) -> tuple[int, Any, bytes]:
        """Return status, headers and body of a request; a GET unless there is `data`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(served.url + path, data, named, method=named.pop("Method", None))
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def echoes(self, served: Served, path: str = "/ws") -> None:
        """Send a message over a WebSocket and see it come back."""
        import websocket

        peer = websocket.create_connection(served.url.replace("http", "ws") + path, timeout=DEADLINE)
        peer.send("hé")
        self.assertEqual(peer.recv(), "hé")
        peer.close()

    def crashes(self, name: str, path: str, culprit: str) -> None:
        """Check that the page of an exception shows it, and that the terminal tells it once."""
        served = Served(name, "--debug", "--pin", "off", cwd=self.folder)
        self.addCleanup(served.stop)
        status, _, body = self.ask(served, path, Accept="text/plain", Host=f"localhost:{served.port}")
        self.assertEqual(status, 500)
        self.assertIn(culprit, body.decode())
        self.assertIn(f"http://localhost:{served.port}/__devserve__/crash/", body.decode())
        served.wait_for(re.escape(culprit))
        self.assertEqual(served.log.count(culprit), 1, served.log)

    @needs("starlette")
    def test_starlette_with_files_streams_and_middleware(self) -> None:
        self.write("app.py", STARLETTE_APP)
        content = os.urandom(1_000_000)
        (self.folder / "static").mkdir()
        (self.folder / "static" / "file.bin").write_bytes(content)
        served = self.serve("app")
        self.assertTrue(self.ask(served, "/static/file.bin")[2] == content)
        status, headers, body = self.ask(served, "/static/file.bin", Range="bytes=10-19")
        self.assertEqual((status, body), (206, content[10:20]))
        self.assertEqual(self.ask(served, "/static/file.bin", If_None_Match=headers["etag"])[0], 304)
        status, headers, body = self.ask(served, "/text", Accept_Encoding="gzip")
        self.assertEqual((headers["content-encoding"], gzip.decompress(body)), ("gzip", b"x" * 5000))
        _, headers, _ = self.ask(
            served, "/text", Method="OPTIONS", Origin="http://a", Access_Control_Request_Method="GET"
        )
        self.assertEqual((headers["access-control-allow-origin"], headers["x-middleware"]), ("*", None))
        self.assertEqual(self.ask(served, "/text")[1]["x-middleware"], "1")
        self.crashes("app", "/crash", "LookupError: boom")

    @needs("sse_starlette")
    @needs("websocket")
    def test_event_streams_end_with_their_clients_and_websockets_echo(self) -> None:
        self.write("app.py", STARLETTE_APP)
        served = self.serve("app")
        with urllib.request.urlopen(served.url + "/events", timeout=DEADLINE) as answer:
            self.assertEqual(answer.readline(), b"data: 0\r\n")
        served.wait_for("the stream has ended")
        self.echoes(served)

    @needs("fastapi")
    @needs("python_multipart")
    def test_fastapi_validates_takes_a_gigabyte_in_flat_memory_and_works_in_the_background(self) -> None:
        self.write("app.py", FASTAPI_APP)
        served = self.serve("app")
        self.assertEqual(self.ask(served, "/items/7")[2], b"7")
        self.assertEqual(self.ask(served, "/items/x")[0], 422)
        self.assertEqual(self.ask(served, "/refuse")[::2], (418, b'{"detail":"no"}'))
        self.assertEqual(self.ask(served, "/docs")[0], 200)
        self.assertEqual(self.ask(served, "/background")[2], b'"done"')
        served.wait_for("worked")
        boundary, size = b"x" * 30, 2**30
        head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' % boundary
        tail = b"\r\n--%b--\r\n" % boundary
        with socket.create_connection(("127.0.0.1", served.port), CLIENT_PATIENCE) as sock:
            length = len(head) + size + len(tail)
            kind = f"multipart/form-data; boundary={boundary.decode()}"
            lines = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
            sock.sendall(f"{lines}Connection: close\r\n\r\n".encode() + head)
            for _ in range(1024):
                sock.sendall(bytes(2**20))
            sock.sendall(tail)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        length, peak = json.loads(answer.rpartition(b"\r\n")[2])
        self.assertEqual(length, size)
        self.assertLess(peak, 200_000, "kB of memory at the most")
        self.crashes("app", "/crash", "ZeroDivisionError: division by zero")

    @needs("socketio")
    @needs("websocket")
    def test_socketio_by_websocket_and_after_polling(self) -> None:
        self.write("app.py", SOCKETIO_APP)
        served = self.serve("app")
        for transports in (["websocket"], ["polling", "websocket"]):
            client = socketio_client(served.url, transports)
            self.assertEqual(client.call("hello", "you", timeout=DEADLINE), "hi you")
            client.disconnect()

    @needs("quart")
    @needs("websocket")
    def test_quart_with_a_websocket(self) -> None:
        self.write("app.py", QUART_APP)
        served = self.serve("app", "--debug")
        self.assertEqual(self.ask(served, "/", b"abc")[2], b"3")
        self.echoes(served)
        self.crashes("app", "/crash", "LookupError: boom")

    @needs("django")
    def test_django_asgi_with_sync_and_async_views(self) -> None:
        self.write("app.py", DJANGO_ASGI_APP)
        served = self.serve("app")
        self.assertEqual([self.ask(served, path)[2] for path in ("/", "/stream")], [b"django", b"0\n1\n2\n"])
        for path in ("/crash", "/sync"):
            self.crashes("app", path, "LookupError: boom")

    @needs("channels")
    @needs("websocket")
    def test_django_channels(self) -> None:
        self.write("app.py", DJANGO_ASGI_APP + CHANNELS_APP)
        self.echoes(self.serve("app:routed"), "/ws")
        self.crashes("app:routed", "/crash", "LookupError: boom")

    @needs("litestar")
    @needs("websocket")
    def test_litestar(self) -> None:
        self.write("app.py", LITESTAR_APP)
        served = self.serve("app")
        self.assertEqual(self.ask(served, "/")[2], b"litestar")
        self.echoes(served)
        self.crashes("app", "/crash", "LookupError: boom")

    @needs("strawberry")
    @needs("websocket")
    def test_strawberry_subscription(self) -> None:
        import websocket

        self.write("app.py", STRAWBERRY_APP)
        served = self.serve("app")
        url = served.url.replace("http", "ws") + "/"
        peer = websocket.create_connection(url, subprotocols=["graphql-transport-ws"], timeout=DEADLINE)
        peer.send('{"type": "connection_init"}')
        self.assertEqual(json.loads(peer.recv())["type"], "connection_ack")
        peer.send('{"id": "1", "type": "subscribe", "payload": {"query": "subscription { count }"}}')
        counts = [json.loads(peer.recv())["payload"]["data"]["count"] for _ in range(3)]
        self.assertEqual(counts, [0, 1, 2])
        peer.close()

    def test_autobahn(self) -> None:
        """The test suite of the WebSocket protocol, which runs on Python 2.7 alone."""
        homes = pathlib.Path.home().glob(".pyenv/versions/2.7*/bin/python")
        python = next(map(str, homes), None) or shutil.which("python2.7")
        if not python:
            self.skipTest("needs Python 2.7")
        holder = tempfile.TemporaryDirectory(prefix="autobahn")  # without the folder's é, which Python 2 cannot read
        self.addCleanup(holder.cleanup)
        folder = pathlib.Path(holder.name)
        packages = folder / "packages"
        install = [python, "-m", "pip", "install", "--quiet", "--target", str(packages), "autobahntestsuite"]
        subprocess.run(install, check=True, timeout=2 * CLIENT_PATIENCE)
        self.write("app.py", ECHO_APP)
        served = self.serve("app", "-q")
        groups = [
            "1.*",
            "2.*",
            "3.*",
            "4.*",
            "5.*",
            "6.*",
            "7.*",
            "10.*",
            "12.1.1",
            "12.1.8",
            "13.1.1",
            "13.4.1",
            "13.7.1",
        ]
        plan = {
            "outdir": str(folder / "reports"),
            "servers": [{"agent": "devserve", "url": served.url.replace("http", "ws")}],
            "cases": groups,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        start = f"import site; site.addsitedir({str(packages)!r}); from autobahntestsuite.wstest import run; run()"
        command = [python, "-c", start, "-m", "fuzzingclient", "-s", str(folder / "plan.json")]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=5 * CLIENT_PATIENCE)
        results = json.loads((folder / "reports" / "index.json").read_text())["devserve"]
        good = ("OK", "INFORMATIONAL")
        bad = {
            case: told for case, told in results.items() if not {told["behavior"], told["behaviorClose"]} <= set(good)
        }
        self.assertEqual(bad, {})
        self.assertGreater(len(results), 247)


def socketio_client(url: str, transports: list[str]) -> Any:
    """Return a connected client."""
    import socketio

    client = socketio.Client()
    client.connect(url, transports=transports)
    return client


STARLETTE_APP = """
    import asyncio
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles

    class Marking(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            response = await call_next(request)
            response.headers["x-middleware"] = "1"
            return response

    async def text(request):
        return PlainTextResponse("x" * 5000)

    async def events(request):
        from sse_starlette.sse import EventSourceResponse
        async def numbers():
            try:
                for number in range(10_000):
                    yield {"data": str(number)}
                    await asyncio.sleep(0.02)
            finally:
                print("the stream has ended", flush=True)
        return EventSourceResponse(numbers())

    async def crash(request):
        raise LookupError("boom")

    async def echo(peer):
        await peer.accept()
        async for message in peer.iter_text():
            await peer.send_text(message)

    routes = [Route("/text", text), Route("/events", events), Route("/crash", crash), WebSocketRoute("/ws", echo)]
    middleware = [Middleware(CORSMiddleware, allow_origins=["*"]), Middleware(GZipMiddleware), Middleware(Marking)]
    app = Starlette(routes=[*routes, Mount("/static", StaticFiles(directory="static", check_dir=False))],
                    middleware=middleware)
"""
FASTAPI_APP = """
    import resource
    from fastapi import BackgroundTasks, FastAPI, HTTPException, UploadFile

    app = FastAPI()

    async def divide(number):
        return 1 / number

    @app.get("/items/{number}")
    async def item(number: int): return number

    @app.get("/refuse")
    async def refuse(): raise HTTPException(418, "no")

    @app.get("/crash")
    async def crash(): return await divide(0)

    @app.get("/background")
    async def background(tasks: BackgroundTasks):
        tasks.add_task(print, "worked", flush=True)
        return "done"

    @app.post("/upload")
    async def upload(file: UploadFile):
        size = 0
        while data := await file.read(2**20):
            size += len(data)
        return size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
SOCKETIO_APP = """
    import socketio

    server = socketio.AsyncServer(async_mode="asgi")
    app = socketio.ASGIApp(server)

    @server.event
    async def hello(sid, name):
        return "hi " + name
"""
QUART_APP = """
    from quart import Quart, request, websocket

    app = Quart(__name__)

    @app.route("/", methods=["POST"])
    async def size(): return str(len(await request.get_data()))

    @app.route("/crash")
    async def crash(): raise LookupError("boom")

    @app.websocket("/ws")
    async def echo():
        while True:
            await websocket.send(await websocket.receive())
"""
DJANGO_ASGI_APP = """
    from django.conf import settings
    settings.configure(DEBUG=True, SECRET_KEY="x", ROOT_URLCONF="app", ALLOWED_HOSTS=["*"])
    import django
    django.setup()
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def root(request): return HttpResponse("django")
    async def crash(request): raise LookupError("boom")
    def sync(request): raise LookupError("boom")

    async def stream(request):
        async def lines():
            for number in range(3):
                yield f"{number}\\n"
        return StreamingHttpResponse(lines())

    urlpatterns = [path("", root), path("crash", crash), path("sync", sync), path("stream", stream)]
    app = get_asgi_application()
"""
CHANNELS_APP = """
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.urls import re_path

    class Echo(AsyncWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data=text_data)

    http, websocket = URLRouter([re_path("", app)]), URLRouter([path("ws", Echo.as_asgi())])
    routed = ProtocolTypeRouter({"http": http, "websocket": websocket})
"""
LITESTAR_APP = """
    from litestar import Litestar, WebSocket, get, websocket

    @get("/")
    async def root() -> str: return "litestar"

    @get("/crash")
    async def crash() -> str: raise LookupError("boom")

    @websocket("/ws")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text(await socket.receive_text())

    app = Litestar([root, crash, echo])
"""
STRAWBERRY_APP = """
    from typing import AsyncGenerator
    import strawberry
    from strawberry.asgi import GraphQL

    @strawberry.type
    class Query:
        hello: str = "hi"

    @strawberry.type
    class Subscription:
        @strawberry.subscription
        async def count(self, target: int = 3) -> AsyncGenerator[int, None]:
            for number in range(target):
                yield number

    app = GraphQL(strawberry.Schema(Query, subscription=Subscription))
"""
ECHO_APP = """
    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
"""


class RealBrowser(RealApplication):
    """A browser: several connections at once, kept alive, and a stream that it reads while it is being made."""

    @needs_program("chromium")
    def test_chromium_reads_a_stream_while_it_is_made(self) -> None:
        self.write("page.py", BROWSER_PAGE)
        served = self.serve("page")
        self.open_in_chromium(served.url)
        eventually((self.folder / "result").exists, "a word from the browser", 3 * DEADLINE)
        self.assertEqual((self.folder / "result").read_text(), "first, second, 24 pictures")

    @needs("nicegui")
    @needs_program("chromium")
    def test_nicegui_hears_of_a_click_and_its_page_comes_again_after_a_save(self) -> None:
        """Its page is drawn by its own script, and speaks Socket.IO over a WebSocket, which a reload closes."""
        self.opens(NICEGUI_APP, "one clicked")
        self.write("app.py", NICEGUI_APP.replace("one", "two"))
        eventually(
            lambda: self.result == "two clicked", lambda: f"a click on the new page: {self.result}", 3 * DEADLINE
        )

    @needs("gradio")
    @needs_program("chromium")
    def test_gradio_answers_its_page_by_its_queue(self) -> None:
        """Its page is some forty files, compressed on the way, and gets the answer in a stream of events."""
        self.opens(GRADIO_APP, "hi you")

    def opens(self, source: str, expected: str) -> None:
        """Serve an application and open its page; see what that has brought about."""
        self.write("app.py", source)
        served = self.serve("app", "--reload", env={"GRADIO_ANALYTICS_ENABLED": "False"})
        self.open_in_chromium(served.url)
        eventually(lambda: self.result == expected, lambda: f"{expected}, not {self.result}", 3 * DEADLINE)

    @property
    def result(self) -> str:
        path = self.folder / "result"
        return path.read_text() if path.exists() else "nothing"

    def open_in_chromium(self, url: str) -> None:
        """Open a page in a browser without a window, which is closed at the test's end."""
        switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        profile = tempfile.mkdtemp(prefix="devserve test profile ")
        self.addCleanup(shutil.rmtree, profile, ignore_errors=True)  # its processes may still write their last there
        command = [program("chromium"), *switches, *quiet, f"--user-data-dir={profile}", url]
        browser = subprocess.Popen(
            [*command, "--remote-debugging-port=0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(browser.wait, DEADLINE)
        self.addCleanup(browser.terminate)


BROWSER_PAGE = '''\
    """A page whose stream goes on only when the browser says that it has read the first piece of it."""
    import os
    import threading

    PAGE = b"""<!doctype html><title>Page</title><script type="module">
    const sizes = await Promise.all([...Array(24).keys()].map(
        async number => (await (await fetch(`/picture/${number}`)).arrayBuffer()).byteLength));
    const reader = (await fetch("/stream")).body.getReader();
    const read = async () => new TextDecoder().decode((await reader.read()).value);
    const first = await read();
    await fetch("/seen", {method: "POST", body: first});
    const whole = sizes.filter((size, number) => size === number * 10000);
    await fetch("/result", {method: "POST", body: `${first}, ${await read()}, ${whole.length} pictures`});
    </script>"""
    seen = threading.Event()


    def stream():
        yield b"first"
        yield b"second" if seen.wait(20) else b"not seen"


    def app(environ, start_response):
        path = environ["PATH_INFO"]
        start_response("200 OK", [("Content-Type", "text/html" if path == "/" else "text/plain")])
        if path == "/stream":
            return stream()
        if path == "/seen" and environ["wsgi.input"].read() == b"first":
            seen.set()
        if path == "/result":
            with open("unfinished", "wb") as result:
                result.write(environ["wsgi.input"].read())
            os.rename("unfinished", "result")
        if path.startswith("/picture/"):
            return [b"x" * 10000] * int(path[9:])
        return [PAGE]
'''

NICEGUI_APP = """\
    import pathlib

    import fastapi
    from nicegui import ui

    app = fastapi.FastAPI()


    @ui.page("/")
    async def page():
        ui.button("press", on_click=lambda: pathlib.Path("result").write_text("one clicked"))
        await ui.context.client.connected()
        ui.run_javascript("document.querySelector('button').click()")


    ui.run_with(app)
"""

GRADIO_APP = """\
    import pathlib

    import fastapi
    import gradio


    def greet(name):
        pathlib.Path("result").write_text("hi " + name)
        return "hi " + name


    with gradio.Blocks(analytics_enabled=False) as page:
        name, answer = gradio.Textbox("you"), gradio.Textbox()
        page.load(greet, name, answer)
    app = gradio.mount_gradio_app(fastapi.FastAPI(), page, path="/")
"""


if __name__ == "__main__":
    unittest.main()
