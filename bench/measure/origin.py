"""The origins behind the contestants.

nginx plays the origin because it costs the least of the servers at hand: where the origin shares a
core with the load generator, each microsecond of it is one less for the load. Its request counter
(`stub_status`) is the proof that a hit was a hit: it must stand still while hits are measured.
"""

import os
import re
import socket
import threading

from .machine import LOAD_CORE, Unusable, free_port, get

BIG = 1 << 30
# The header fields of `examples/bare.rs`; nginx adds its own Last-Modified and ETag to a file.
MODIFIED = 1767225600  # Thu, 01 Jan 2026 00:00:00 GMT
FRESH = "max-age=3600"


def body(size):
    """A JSON-like body of exactly `size` bytes."""
    text = '{"items":[' + ",".join(f'{{"id":{n},"name":"item {n}"}}' for n in range(size // 20)) + "]}"
    return text[:size].encode()


def distinct(length):
    """nginx's `return` text that names the request path and is padded to `length` bytes for the paths used here
    (`/m/` and eight digits)."""
    return "${uri}" + "x" * (length - len("/m/00000000"))


CONFIG = """
daemon off;
{user}
worker_processes 1;
pid {dir}/origin.pid;
error_log {dir}/origin-error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  default_type application/json;
  types {{ application/json json; application/octet-stream bin; }}
  open_file_cache max=100 inactive=600s;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {dir}/files;
    location / {{ add_header Cache-Control "{fresh}"; }}
    location /pass/ {{ add_header Cache-Control no-store; return 200 "{kib}"; }}
    location /m/ {{ add_header Cache-Control "{fresh}"; return 200 "{distinct_kib}"; }}
    location /s/ {{ add_header Cache-Control "{fresh}"; return 200 "$uri"; }}
    location /big/ {{ add_header Cache-Control no-store; default_type application/octet-stream; try_files /big.bin =404; }}
    location /bigfresh/ {{ add_header Cache-Control "{fresh}"; default_type application/octet-stream; try_files /big.bin =404; }}
  }}
  server {{ listen 127.0.0.1:{status}; location / {{ stub_status; }} }}
}}
"""


class Origin:
    """nginx with fixed bodies: `/1k.json`, `/16k.json`, `/pass/…`, `/m/…` (1 KiB each), `/s/…` (small), `/big/…`."""

    def __init__(self, bench):
        directory = bench.subdir("origin")
        files = bench.subdir("origin/files")
        for name, size in (("1k.json", 1024), ("16k.json", 16 * 1024)):
            (files / name).write_bytes(body(size))
            os.utime(files / name, (MODIFIED, MODIFIED))
        with (files / "big.bin").open("wb") as big:
            big.truncate(BIG)
        self.files = files
        self.port, self.status = free_port(), free_port()
        config = directory / "nginx.conf"
        config.write_text(CONFIG.format(
            dir=directory, port=self.port, status=self.status, fresh=FRESH, distinct_kib=distinct(1024),
            # JSON's quotes and braces would have to be escaped in the file: plain text will do here.
            kib="y" * 1024, user="user root;" if os.getuid() == 0 else "",
        ))
        self.process = bench.start("origin", ["nginx", "-p", directory, "-c", config], core=LOAD_CORE, ready=self.port)

    def requests(self):
        """How many requests reached the origin so far (this question not counted)."""
        _, _, text = get(self.status, "/")
        return int(re.search(rb"requests\s*\n\s*\d+ \d+ (\d+)", text).group(1)) - self._own()

    asked = 0

    def _own(self):
        self.asked += 1
        return self.asked


class ChunkedOrigin:
    """Sends 1 GiB as chunks of 64 KiB, length not told beforehand; `/fresh…` may be stored, the rest not."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    @staticmethod
    def _serve(peer):
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        with peer:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    more = peer.recv(4096)
                    if not more:
                        return
                    head += more
                control = FRESH if b" /fresh" in head.split(b"\r\n")[0] else "no-store"
                peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nCache-Control: {control}\r\n"
                             "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
                for _ in range(BIG // 65536 // 16):
                    peer.sendall(chunk * 16)
                peer.sendall(b"0\r\n\r\n")
            except OSError:
                return  # The client went away: half of the stream tests do so on purpose.


def expect_still(origin, before, allowed, who):
    """A hit that asks the origin is none."""
    asked = origin.requests() - before
    if asked > allowed:
        raise Unusable(f"{who} asked the origin {asked} times while hits were measured")
