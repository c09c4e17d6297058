"""The servers that are compared, each as its manual would have it set up for speed, one worker each.

All have: one worker or thread, no access log, kept connections on both sides, nothing but the cache
switched on. nginx keeps its cache files open and reads them instead of using `sendfile`: of the
five set-ups tried this took the least CPU time at both sizes, well below the usual `sendfile on` without `open_file_cache`.
"""

import os

from .machine import REPOSITORY, Unusable, free_port

NGINX = """
daemon off;
{user}
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile off;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  open_file_cache max=1000 inactive=600s;
  open_file_cache_valid 600s;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  proxy_cache_path {dir}/cache levels=1:2 keys_zone=hits:32m max_size=1g inactive=24h use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 1000000000; keepalive_timeout 600s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {cache}
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend public
  bind 127.0.0.1:{port} backlog 4096
  default_backend origin
backend origin
  {use}
  {store}
  server origin 127.0.0.1:{origin}
cache hits
  total-max-size 64
  max-object-size 1000000
  max-age 3600
"""

VARNISH = """
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{origin}"; }}
sub vcl_recv {{ {receive} }}
"""


class Contestant:
    """A running server: its name, its process and its port."""

    def __init__(self, name, process, port):
        self.name, self.process, self.port = name, process, port


def portway(bench, origin, name="portway", routes=None, l1=None):
    """The gateway, with one upstream for every path or with a routes file."""
    binary = REPOSITORY / "target" / "release" / "portway"
    if not binary.exists():
        raise Unusable(f"{binary} does not exist; build it with: cargo build --release --bins --examples")
    port, admin = free_port(), free_port()
    environment = {"HOST": "127.0.0.1", "PORT": str(port), "ADMIN_PORT": str(admin), "WORKERS": "1", "RUST_LOG": "warn"}
    if l1:
        environment["CACHE_L1_MAX_BYTES"] = l1
    if routes:
        environment["ROUTES_FILE"] = str(routes)
    else:
        environment["UPSTREAM_URL"] = f"http://127.0.0.1:{origin}"
    process = bench.start(name, [binary], environment=environment, ready=port)
    contestant = Contestant(name, process, port)
    contestant.admin = admin
    return contestant


def bare(bench, files):
    """The actix-web handler of `examples/bare.rs`."""
    binary = REPOSITORY / "target" / "release" / "examples" / "bare"
    if not binary.exists():
        raise Unusable(f"{binary} does not exist; build it with: cargo build --release --bins --examples")
    port = free_port()
    return Contestant("bare", bench.start("bare", [binary, port, files], ready=port), port)


def nginx(bench, origin, caching):
    directory, port = bench.subdir("nginx"), free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(
        dir=directory, port=port, origin=origin, cache="proxy_cache hits;" if caching else "",
        user="user root;" if os.getuid() == 0 else "",
    ))
    process = bench.start("nginx", ["nginx", "-p", directory, "-c", config], ready=port)
    return Contestant("nginx", process, port)


def haproxy(bench, origin, caching):
    port = free_port()
    config = bench.subdir("haproxy") / "haproxy.cfg"
    config.write_text(HAPROXY.format(
        port=port, origin=origin, use="http-request cache-use hits" if caching else "",
        store="http-response cache-store hits" if caching else "",
    ))
    process = bench.start("haproxy", ["haproxy", "-db", "-f", config], ready=port)
    return Contestant("haproxy", process, port)


def varnish(bench, origin, caching):
    directory, port = bench.subdir("varnish"), free_port()
    vcl = directory / "bench.vcl"
    vcl.write_text(VARNISH.format(origin=origin, receive="" if caching else "return (pass);"))
    command = ["varnishd", "-F", "-n", directory / "work", "-a", f"127.0.0.1:{port}", "-f", vcl, "-s", "malloc,256m",
               "-p", "thread_pools=1", "-p", "thread_pool_min=100", "-T", "none", "-j", "none"]
    # It compiles its configuration first, so the start takes a second or two.
    return Contestant("varnish", bench.start("varnish", command, ready=port, wait=60), port)
