"""What the benchmark asks of the machine: processes that are sure to end, CPU time, memory, wrk.

Every process is started here and remembered, and is ended by its own id: a benchmark that leaves a
server running spoils the next one, and one that kills by name may kill somebody else's.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVER_CORE = "0"
LOAD_CORE = "1"
TICKS = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).resolve().parents[2]


class Unusable(Exception):
    """The measurement cannot be trusted or cannot be made; the message says why."""


def need(*tools):
    """Says what to install when a tool is missing."""
    packages = {"varnishd": "varnish", "taskset": "util-linux"}
    missing = [packages.get(tool, tool) for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Unusable(f"not installed: {', '.join(missing)}; on Debian or Ubuntu: apt-get install {' '.join(missing)}")


def say(text=""):
    print(text, flush=True)


class Bench:
    """One run: its directory and its processes, both gone when it ends."""

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="portway-bench-"))
        self.processes = []
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))

    def subdir(self, name):
        path = self.dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, name, command, core=SERVER_CORE, environment=None, ready=None, wait=20.0):
        """Starts a server pinned to a core and waits until the port `ready` answers."""
        log = self.dir / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["taskset", "-c", core, *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(environment or {})}, cwd=self.dir, start_new_session=True,
            )
        process.log = log
        self.processes.append(process)
        until = time.monotonic() + wait
        while ready is not None and not answers(ready):
            if process.poll() is not None or time.monotonic() > until:
                raise Unusable(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        return process

    def stop(self, process):
        """Ends a process and its children, politely first."""
        family = tree(process.pid) if process.poll() is None else []
        if family:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in family[1:]:
            # Only a child that outlived its parent is still in the session the parent opened.
            try:
                if os.getsid(pid) == process.pid:
                    os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if process in self.processes:
            self.processes.remove(process)

    def close(self):
        for process in reversed(list(self.processes)):
            self.stop(process)
        shutil.rmtree(self.dir, ignore_errors=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def tree(pid):
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpu_seconds(pid):
    """User and system time of a process and its descendants so far."""
    total = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_mib(pid, field="VmRSS"):
    """Resident memory (`VmRSS`) or its peak (`VmHWM`) of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise Unusable(f"process {pid} has no {field}: it has ended")


def reset_peak(pid):
    """Starts the peak of resident memory anew (`VmHWM` becomes `VmRSS`)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def get(port, path, headers=None, timeout=30):
    """One GET; the status, the fields (names in lower case) and the body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()


REPORT_LUA = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"micros":%d,"bytes":%d,"p50":%d,"p99":%d,"socket_errors":%d,"bad_status":%d,"timeouts":%d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write, e.status, e.timeout))
end
"""


def wrk(bench, port, path="/", seconds=3, connections=32, script=""):
    """Runs wrk from the load core; a script adds `request` and the like to the report. One that prints `ENOUGH` ends it."""
    lua = bench.dir / "wrk.lua"
    lua.write_text(script + REPORT_LUA)
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
               "-s", str(lua), f"http://127.0.0.1:{port}{path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    bench.processes.append(process)
    output, result = [], None
    for line in process.stdout:
        output.append(line)
        if line.startswith("ENOUGH"):
            # Its main thread sleeps for the whole duration whatever the script says: only a signal wakes it.
            process.send_signal(signal.SIGINT)
        elif line.startswith("RESULT "):
            result = json.loads(line[len("RESULT "):])
    process.wait()
    bench.processes.remove(process)
    if result is None:
        raise Unusable(f"wrk gave no result:\n{''.join(output)}")
    return result


def measured(bench, process, port, path, seconds, script=""):
    """One round: requests a second and the server's CPU time a request."""
    before = cpu_seconds(process.pid)
    result = wrk(bench, port, path, seconds, script=script)
    spent = cpu_seconds(process.pid) - before
    if process.poll() is not None:
        raise Unusable(f"the server ended in a round:\n{process.log.read_text(errors='replace')[-2000:]}")
    failed = result["socket_errors"] + result["bad_status"] + result["timeouts"]
    if result["requests"] == 0 or failed:
        raise Unusable(f"a round with failures cannot be compared: {result}")
    wall = result["micros"] / 1e6
    return {
        "rps": result["requests"] / wall, "cpu_us": spent * 1e6 / result["requests"], "busy": spent / wall,
        "requests": result["requests"], "p50_us": result["p50"], "p99_us": result["p99"], "load": os.getloadavg()[0],
    }
