"""A page for one person on one machine: served on loopback alone, behind a token in its address, without a file."""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from data.files import say

# By another name a browser was led here by somebody's DNS: no page of theirs is to read what this one shows. Any port,
# as an ssh tunnel has one of its own.
OWN_NAMES = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
MOST = 100  # values in an address
IDLE = 30  # seconds until a connection that says nothing is closed
POLICY = (
    "default-src 'none'; img-src data:; connect-src 'self'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """Values that cannot be; the text is one line. Answered with 400."""


class Server(ThreadingHTTPServer):
    """Threads that listen, and one that computes: of those who wait for it only the newest is served."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would let two listen

    def __init__(self, port: int, page: Callable[[str], str], answer: Callable[[dict[str, str]], dict]):
        """page(nonce): the HTML at /. answer(values of the address): what /picture answers, as JSON.

        A port that cannot be had is replaced by a free one, with a line that says so.
        """
        self.page, self.answer, self.token = page, answer, secrets.token_urlsafe(24)
        self.pool, self.lock, self.waiting = ThreadPoolExecutor(1), threading.Lock(), Future[dict]()
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            if not port:
                raise
            say(f"port {port}: {error.strerror}; a free one is used", sys.stderr)
            super().__init__(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server_address[1]

    @property
    def path(self) -> str:
        """What follows host and port in the address."""
        return f"/?token={self.token}"

    def newest(self, values: dict[str, str]) -> dict:
        """The answer to these values. CancelledError where newer ones came before it was begun."""
        with self.lock:
            self.waiting.cancel()
            self.waiting = mine = self.pool.submit(self.answer, values)
        return mine.result()

    def serve(self) -> None:
        """Until Ctrl-C: the port is closed, and what is being computed is waited for. A second one ends at once."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        finally:
            self.server_close()
            self.pool.shutdown(cancel_futures=True)

    def handle_error(self, request, client_address) -> None:
        """Of a connection: one line, and none of a browser that has gone."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            say(f"error: {one_line(error)}", sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Two addresses, GET alone, and nothing without the token."""

    server: Server
    timeout = IDLE

    def parse_request(self) -> bool:
        """Host and token are asked of every request, whatever it wants."""
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not OWN_NAMES.fullmatch(hosts[0]):
            self.send_error(403, "this page is at localhost alone")
            return False
        try:
            parts = urlsplit(self.path)
            pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=MOST)
        except ValueError:
            parts, pairs = urlsplit(""), []
        self.at, self.values = parts.path, dict(pairs)
        token = self.values.pop("token", "")
        if not hmac.compare_digest(token.encode(errors="replace"), self.server.token.encode()):
            self.send_error(403, "this address lacks the token; use the whole address that the command printed")
            return False
        if len(self.values) + 1 < len(pairs):
            self.send_error(400, "a value stands twice in the address")
            return False
        return True

    def do_GET(self) -> None:
        """The page, or the answer to its values."""
        if self.at == "/":
            nonce = secrets.token_urlsafe(16)
            self.reply(200, "text/html", self.server.page(nonce), nonce)
        elif self.at == "/picture":
            self.picture()
        else:
            self.send_error(404, "there is no such page")

    def picture(self) -> None:
        """Answer /picture, in JSON or with one line."""
        try:
            found = self.server.newest(self.values)
        except CancelledError:
            self.send_error(409, "a newer position was asked for")
        except Refused as error:
            self.send_error(400, one_line(error))
        except Exception as error:  # nobody is told of a traceback
            say(f"error: {one_line(error)}", sys.stderr)
            self.send_error(500, one_line(error))
        else:
            self.reply(200, "application/json", json.dumps(found))

    def reply(self, code: int, kind: str, text: str, nonce: str = "") -> None:
        """An answer that no other page may read, frame or keep."""
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY.format(nonce or "none"))
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of text."""
        self.close_connection = True
        self.reply(code, "text/plain", f"{message or self.responses[code][0]}\n")

    def log_message(self, *_) -> None:
        """Nothing: the address holds the token."""


def one_line(error: object) -> str:
    """Its text, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
