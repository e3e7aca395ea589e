"""Code from outside, as hostile as we could think of, in every way of the sandbox that this machine has.

A test that is skipped says which way is missing; `test_the_ways_of_this_machine` prints what holds.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from loreloop.learn.rewards import sandbox_process
from loreloop.learn.rewards.sandbox import Call, CodeSandbox, Limits, Outcome, Strength
from loreloop.learn.rewards.turns import Turns
from loreloop.learn.rewards.walls import work_folders
from loreloop.protocol.errors import BadRequest

STRONG = ("namespaces", "bubblewrap", "landlock")
QUICK = Limits(seconds=5, cpu_seconds=5)


class Rig:
    """One sandbox on a loop of its own, so that tests stay plain functions."""

    def __init__(self, way: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.box = CodeSandbox(way, workers=1)
        self.strength: Strength = self.loop.run_until_complete(self.box.strength())

    def run(self, code: str, *arguments: Any, limits: Limits = QUICK) -> Outcome:
        call = Call("f", arguments) if "def f(" in code else None
        return self.loop.run_until_complete(self.box.run(code, call=call, limits=limits))

    def fine(self) -> None:
        """Another call goes as if nothing had been, and no process of an earlier one is left."""
        assert self.run("def f(x): return x + 1", 1).result == 2
        workers = {worker.process.pid for worker in self.box.idle}
        for process in psutil.process_iter(["cmdline", "ppid"]):
            words = process.info["cmdline"] or []
            if "loreloop.learn.rewards.sandbox_process" in words and words[-1] == self.strength.way:
                parents = {process.pid, *(parent.pid for parent in process.parents())}
                assert not parents & {os.getpid()} or parents & workers or self.strength.way == "bubblewrap"
        for worker in self.box.idle:
            if self.strength.way != "bubblewrap":
                assert psutil.Process(worker.process.pid).children(recursive=True) == []

    def close(self) -> None:
        self.loop.run_until_complete(self.box.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(scope="module", params=STRONG)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    if rig.strength.way is None:
        rig.close()
        pytest.skip(f"this machine has no {request.param}: {rig.strength.refused}")
    yield rig
    rig.close()


def test_the_ways_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig("auto")
    with capsys.disabled():
        print(f"\nsandbox: {rig.strength}")
    assert rig.strength.way in STRONG, "code from outside would be refused here"
    assert not {"files", "network", "processes", "signals"} & {*rig.strength.lacks}
    rig.close()


def test_a_call_gives_its_result_and_what_it_printed(rig: Rig) -> None:
    outcome = rig.run("def f(a, b):\n    print('so', a)\n    return {'sum': a + b}", 2, 3)
    assert (outcome.result, outcome.stdout, outcome.error) == ({"sum": 5}, "so 2\n", None)
    assert rig.run("def f(): return ['half \\ud800', {'\\ud800': 1}]").result == ["half ?", {"?": 1}]
    assert rig.run("print('half \\ud800')").stdout == "half \\ud800\n"
    assert rig.run("print(6 * 7)").stdout == "42\n"
    assert rig.run("def f(): return float('nan')").result != rig.run("def f(): return 0").result


def test_packages_and_programs_that_code_may_use(rig: Rig) -> None:
    assert rig.run("import numpy\ndef f(): return numpy.float64(numpy.arange(5).sum())").result == 10
    assert (
        rig.run("import hashlib, sqlite3, zlib, ssl\ndef f(): return hashlib.sha256(b'').hexdigest()[:4]").result
        == "e3b0"
    )
    if rig.strength.way == "namespaces":
        own = "subprocess.check_output([sys.executable, '-c', 'print(5)'], text=True)"
        assert rig.run(f"import subprocess, sys\ndef f(): return {own}").result == "5\n"
    assert rig.run("import tempfile\ndef f(): tempfile.TemporaryFile().write(b'x'); return 1").result == 1


def test_an_error_is_told_with_its_line(rig: Rig) -> None:
    outcome = rig.run("def f(x):\n    return 1 / x", 0)
    assert outcome.exception == "ZeroDivisionError"
    assert outcome.error == "ZeroDivisionError: division by zero\nline 2, in f"
    assert "SyntaxError" in str(rig.run("def f(: pass").error)
    assert "defines no function 'f'" in str(rig.loop.run_until_complete(rig.box.run("x = 1", call=Call("f"))).error)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys\ndef f(): sys.exit(0)", "ended itself"),
        ("import os\ndef f(): os._exit(0)", "without a result"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "signal"),
        ("def f(): return {1, 2}", "JSON has no form"),
        ("def f(): raise ValueError('half \\ud800')", "ValueError: half ?"),
        ("def f(): raise type('E' * 9999, (Exception,), {})", "EEE"),
        ("def f():\n    raise KeyboardInterrupt", "without a result"),
        ("import sys\ndef f():\n    sys.setrecursionlimit(10**8)\n    f()", ""),
        ("import os\ndef f():\n    os.closerange(0, 100)\n    return 1", ""),
        ("import os\ndef f():\n    os.write(3, b'{\"result\": 1}')\n    return 1", "without a result"),
        ("def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x", ""),
    ],
)
def test_a_call_without_a_result_says_why(rig: Rig, code: str, said: str) -> None:
    outcome = rig.run(code)
    assert outcome.error is not None
    assert said in outcome.error
    assert outcome.result is None
    rig.fine()


@pytest.mark.timed
def test_an_endless_loop_ends(rig: Rig) -> None:
    outcome = rig.run("def f():\n    while True: pass", limits=Limits(seconds=0.5))
    assert (outcome.limit, outcome.error) == ("time", "the limit of time was passed")
    assert outcome.seconds < 3
    outcome = rig.run("import time\ndef f(): time.sleep(100)", limits=Limits(seconds=0.5))
    assert outcome.limit == "time"
    rig.fine()


def test_computing_is_bounded_apart_from_time(rig: Rig) -> None:
    ignoring = "import signal\ndef f():\n    signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass"
    assert rig.run(ignoring, limits=Limits(seconds=60, cpu_seconds=1)).limit == "cpu"


def test_a_fork_bomb_ends(rig: Rig) -> None:
    outcome = rig.run("import os\ndef f():\n    while True:\n        os.fork()", limits=Limits(seconds=2))
    assert outcome.error is not None
    outcome = rig.run(
        "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass",
        limits=Limits(seconds=1),
    )
    assert outcome.limit == "time"
    rig.fine()


def test_threads_are_bounded_too(rig: Rig) -> None:
    thread = "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    outcome = rig.run(f"import threading, time\ndef f():\n    for _ in range(10000): {thread}")
    assert outcome.error is not None
    rig.fine()


def test_ten_gigabytes_are_not_given(rig: Rig) -> None:
    assert rig.run("def f(): return len(bytearray(10 << 30))").limit == "memory"
    slowly = "def f():\n    kept = []\n    while True: kept.append(bytearray(1 << 20))"
    assert rig.run(slowly).limit == "memory"
    rig.fine()


def test_processes_share_one_bound_of_memory(rig: Rig) -> None:
    if rig.strength.way != "namespaces":
        pytest.skip("no second process can be started here")
    each = (
        "import os, time\ndef f():\n    for _ in range(3): os.fork()\n    kept = b'x' * (60 << 20)\n    time.sleep(9)"
    )
    assert rig.run(each, limits=Limits(memory_bytes=150 << 20)).limit == "memory"
    rig.fine()


def test_children_of_threads_and_of_ended_first_threads_count_too(rig: Rig) -> None:
    if rig.strength.way != "namespaces":
        pytest.skip("no second process can be started here")
    eating = "kept = b'x' * (60 << 20)\n    time.sleep(9)"
    by_thread = f"""
import os, threading, time
def eat():
    for _ in range(3):
        if not os.fork(): break
    {eating}
def f():
    threading.Thread(target=eat).start()
    time.sleep(9)"""
    leaving = f"""
import ctypes, os, threading, time
def eat():
    time.sleep(0.3)
    {eating}
def f():
    os.fork(), os.fork()
    threading.Thread(target=eat).start()
    ctypes.CDLL(None).pthread_exit(None)"""
    for code in (by_thread, leaving):
        assert rig.run(code, limits=Limits(seconds=5, memory_bytes=150 << 20)).limit == "memory"
    rig.fine()


def test_output_is_bounded(rig: Rig) -> None:
    outcome = rig.run("def f():\n    while True: print('x' * 1000)", limits=Limits(output_bytes=10_000))
    assert outcome.limit == "output"
    assert len(outcome.stdout) == 10_000
    outcome = rig.run("def f(): return 'x' * 50_000", limits=Limits(output_bytes=10_000))
    assert (outcome.limit, outcome.result) == ("output", None)


def test_files_are_bounded(rig: Rig) -> None:
    one = "def f():\n    with open('big', 'wb') as file:\n        for _ in range(100): file.write(bytes(1 << 20))"
    assert "File too large" in str(rig.run(one).error)
    many = "    for n in range(20):\n        open(str(n), 'wb').write(bytes(9 << 20))\n    time.sleep(1)"
    outcome = rig.run(f"import time\ndef f():\n{many}")
    assert outcome.limit == "disk" or "No space left" in str(outcome.error)


def test_a_call_leaves_nothing_to_the_next(rig: Rig) -> None:
    rig.run("import math\ndef f():\n    math.pi = 3\n    open('left', 'w').write('x')")
    assert rig.run("import math, os\ndef f(): return [round(math.pi, 2), os.listdir('.')]").result == [3.14, []]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "loreloop.db"
    path.write_text("tml-secret")
    path.chmod(0o644)
    return path


def test_no_file_of_the_user_or_the_server_is_read(rig: Rig, secret: Path) -> None:
    reads = """
import os
def f(paths):
    found = []
    for path in paths:
        try:
            os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)
            found.append(path)
        except OSError:
            pass
    return found"""
    home, server = Path.home(), f"/proc/{os.getpid()}"
    private = [str(secret), str(secret.parent), str(home), "/etc/passwd", "/etc/shadow", "/root", "/home", "/var/log"]
    private += [f"{server}/environ", f"{server}/mem", f"{server}/root{secret}", f"{server}/cwd", f"{server}/maps"]
    private += [str(Path(__file__)), "/proc/1/environ", "/sys/kernel", "/dev/mem", "/dev/vda", "/dev/sda"]
    assert rig.run(reads, private).result == []
    assert Path("/etc/passwd").exists()  # the list is not empty of things that could be read


def test_of_devices_only_the_harmless_ones_are_opened(rig: Rig) -> None:
    opens = """
import os
def f(paths):
    found = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            found.append(path)
        except OSError:
            pass
    return found"""
    shared = Path("/dev/shm", f"loreloop-test-{os.getpid()}")
    shared.write_text("what a server shares with its own processes")
    names = ("null", "zero", "full", "random", "urandom")
    try:
        devices = {str(path) for path in [*Path("/dev").iterdir(), shared] if not path.is_symlink()}
        found = {path for path in rig.run(opens, sorted(devices)).result if not Path(path).is_dir()}
    finally:
        shared.unlink()
    assert found == devices & {f"/dev/{name}" for name in names}
    assert len(devices) > len(names)


@pytest.mark.parametrize("way_out", ["../" * 20, "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../.."])
def test_no_way_up_leads_out(rig: Rig, secret: Path, way_out: str) -> None:
    assert rig.run("def f(path): return open(path).read()", way_out + str(secret)).result is None


def test_hostile_folders_are_bounded_and_removed(rig: Rig) -> None:
    deep = "    for _ in range(3000):\n        os.mkdir('d'); os.chdir('d')"
    many = "    for n in range(50000): open(str(n), 'w').close()"
    shut = "    os.mkdir('shut', 0o300)\n    for n in range(20): open(f'shut/{n}', 'wb').write(bytes(9 << 20))"
    for making in (deep, many, shut):
        rig.run(f"import os, time\ndef f():\n{making}\n    time.sleep(0.2)", limits=Limits(seconds=4))
    rig.fine()
    for worker in rig.box.idle:
        assert [*Path(tempfile.gettempdir()).glob(f"loreloop-code-{worker.process.pid}-*")] == []


def test_folders_of_killed_processes_are_swept() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left, kept = work_folders.new(ended.pid), work_folders.new(os.getpid())
    (left / "d").mkdir()
    work_folders.sweep()
    assert not left.exists()
    assert kept.exists()
    kept.rmdir()


def test_a_process_that_was_ended_while_it_waited_is_replaced(rig: Rig) -> None:
    rig.run("x = 1")
    for worker in rig.box.idle:
        worker.process.kill()
        rig.loop.run_until_complete(worker.process.wait())
    assert rig.run("def f(): return 1").result == 1


def test_nothing_is_written_outside_of_its_folder(rig: Rig, secret: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    writes = """
import os
def f(folders):
    written = []
    for folder in folders:
        try:
            open(os.path.join(folder, 'written'), 'w').write('x')
            written.append(folder)
        except OSError:
            pass
    return written"""
    library = str(Path(os.__file__).parent)
    folders = [str(tmp_path), "/", "/usr", "/etc", "/dev", "/root", str(Path.home()), library, "/var/tmp", "/dev/shm"]
    rig.run(writes, folders)
    assert not [folder for folder in folders if Path(folder, "written").exists()]
    for changing in ("remove(p)", "chmod(p, 0o777)", "rename(p, 'x')", "link(p, 'x')", "truncate(p, 0)", "utime(p)"):
        assert rig.run(f"import os\ndef f(p): os.{changing}", str(secret)).error is not None
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("tml-secret", 0o644)
    link = f"import os\ndef f():\n    os.symlink({str(tmp_path)!r}, 'away')\n    open('away/written', 'w').write('x')"
    assert rig.run(link).error is not None
    assert not (tmp_path / "written").exists()


def test_no_network(rig: Rig, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp, closing(socket.socket(type=socket.SOCK_DGRAM)) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.3)
        tcp.settimeout(0.3)
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(str(tmp_path / "s"))
        abstract.bind(f"\0loreloop-test-{os.getpid()}")
        with closing(unix), closing(abstract):
            unix.listen()
            abstract.listen()
            tells = """
import socket
def f(tcp, udp, unix, abstract):
    told = []
    for name, tell in {
        'tcp': lambda: socket.create_connection(('127.0.0.1', tcp), 1),
        'udp': lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', udp)),
        'unix': lambda: socket.socket(socket.AF_UNIX).connect(unix),
        'abstract': lambda: socket.socket(socket.AF_UNIX).connect(abstract),
        'far': lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53)),
    }.items():
        try:
            tell()
            told.append(name)
        except OSError:
            pass
    return told"""
            names = (tcp.getsockname()[1], udp.getsockname()[1], str(tmp_path / "s"), abstract.getsockname().decode())
            assert rig.run(tells, *names).result == []
            with pytest.raises(TimeoutError):
                udp.recv(1)
            with pytest.raises(TimeoutError):
                tcp.accept()


def test_sockets_are_reached_without_walls() -> None:
    """The test above could not fail if its sockets were out of order."""
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp:
        thread = threading.Thread(target=socket.create_connection, args=(tcp.getsockname(),))
        thread.start()
        tcp.accept()[0].close()
        thread.join()


@pytest.mark.parametrize("whom", ["os.getppid()", "-1", "0", "1", pytest.param(str(os.getpid()), id="us")])
def test_signals_reach_nobody_else(rig: Rig, whom: str) -> None:
    for number in ("SIGKILL", "SIGTERM", "SIGSTOP"):
        rig.run(f"import os, signal\ndef f():\n    os.kill({whom}, signal.{number})\n    return 1")
    rig.fine()


REACHING = {
    "ptrace": "ptrace(16, pid, 0, 0)",
    "process_vm_readv": "process_vm_readv(pid, 0, 0, 0, 0, 0)",
    "unshare": "unshare(0x10000000)",
    "mount": "mount(b'none', b'/', None, 32, None)",
    "chroot": "chroot(b'.')",
    "setuid": "setuid(0) or libc.setgid(0)",
    "keyctl": "syscall(250, 0, -3, 1)",
    "bpf": "syscall(321, 0, 0, 0)",
    "memfd_create": "memfd_create(b'x', 0)",
    "shared memory": "shmget(0, 1 << 20, 0o1600)",
    "messages": "msgget(0, 0o1600)",
    "semaphores": "semget(0, 1, 0o1600)",
}


@pytest.mark.parametrize("name", REACHING)
def test_the_kernel_refuses(rig: Rig, name: str) -> None:
    code = f"import ctypes\nlibc = ctypes.CDLL(None)\ndef f(pid): return libc.{REACHING[name]}"
    outcome = rig.run(code, os.getpid())
    if name == "setuid" and rig.strength.way != "namespaces" and os.getuid() == 0:
        return  # root stays root by name there; the test of files shows that it has none of its rights
    assert outcome.result == -1


def test_limits_of_other_processes_are_not_changed(rig: Rig) -> None:
    code = "import resource\ndef f(pid): resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, 5))"
    assert rig.run(code, os.getpid()).error is not None


@pytest.mark.timed
def test_daemons_die_with_their_call(rig: Rig) -> None:
    daemon = """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for handle in range(100):
                try: os.close(handle)
                except OSError: pass
            while True: time.sleep(1)
        os._exit(0)
    return 1"""
    outcome = rig.run(daemon)
    assert outcome.seconds < 4
    assert outcome.result == (1 if rig.strength.way == "namespaces" else None) or rig.strength.way == "bubblewrap"
    rig.fine()


def test_no_secret_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORELOOP_SECRET", "tml-in-the-environment")
    code = """
import ctypes, gc, os
def f():
    seen = dict(os.environ)
    for pid in ('self', '1', str(os.getppid())):
        try: seen[pid] = open(f'/proc/{pid}/environ').read()
        except OSError: pass
    seen['strings'] = str([one for one in gc.get_objects() if ''.join(['tml', '-in-the']) in str(one)[:100000]][:1])
    return str(seen)"""
    for way in STRONG:
        rig = Rig(way)
        if rig.strength.way is not None:
            outcome = rig.run(code, limits=Limits(seconds=30, cpu_seconds=30, memory_bytes=1 << 30))
            assert "tml-in-the" not in str(outcome.result)
            assert outcome.error is None
        rig.close()


def test_a_copy_of_the_code_does_not_answer_for_it(rig: Rig) -> None:
    outcome = rig.run("import os, time\ndef f():\n    if os.fork(): time.sleep(0.3)\n    return os.getpid()")
    assert outcome.error is None if rig.strength.way == "namespaces" else outcome.exception


def test_calls_at_once_wait_for_their_turn(rig: Rig) -> None:
    async def all_of_them() -> list[Outcome]:
        calls = (rig.box.run("def f(x): return x * x", call=Call("f", (n,))) for n in range(12))
        return list(await asyncio.gather(*calls))

    assert [outcome.result for outcome in rig.loop.run_until_complete(all_of_them())] == [n * n for n in range(12)]


@pytest.mark.parametrize("way", STRONG)
def test_nothing_outlives_who_started_it(way: str) -> None:
    """Killed in the middle of a call, as `kill -9` does it to a server."""
    program = f"""
import asyncio
from loreloop.learn.rewards.sandbox import Call, CodeSandbox, Limits
async def main():
    box = CodeSandbox({way!r}, workers=1)
    print((await box.strength()).way, flush=True)
    await box.run("def f():\\n    while True: pass", call=Call("f"), limits=Limits(seconds=60, cpu_seconds=60))
asyncio.run(main())"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = process.stdout.readline().strip()
        below = list[psutil.Process]()
        while found == way and len(below) < 3 and process.poll() is None:  # the fork server, the watcher and the code
            below = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
        process.kill()
    if found != way:
        pytest.skip(f"this machine has no {way}")
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []


def test_a_cancelled_call_does_not_answer_for_the_next(rig: Rig) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(rig.box.run("import time\ndef f(): time.sleep(30)", call=Call("f")))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    rig.loop.run_until_complete(cancelled())
    rig.fine()


def test_without_walls_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    off = Rig("off")
    with pytest.raises(BadRequest, match="switched off"):
        off.run("x = 1")
    off.close()
    monkeypatch.setattr("loreloop.learn.rewards.sandbox.STRONG", ("bubblewrap",))
    monkeypatch.setenv("PATH", "/nowhere")
    none = Rig("auto")
    assert none.strength.way is None
    with pytest.raises(BadRequest, match='has not set code_sandbox = "limits"'):
        none.run("x = 1")
    none.close()


def test_limits_alone_are_used_where_the_operator_says_so_and_told_as_weak() -> None:
    rig = Rig("limits")
    assert rig.strength.way == "limits"
    assert "files" in rig.strength.lacks
    assert rig.run("def f():\n    while True: pass", limits=Limits(seconds=0.3)).limit == "time"
    assert rig.run("def f(): return len(bytearray(10 << 30))").limit == "memory"
    rig.fine()
    rig.close()


@pytest.mark.parametrize("way", [*STRONG, "limits"])
def test_no_file_sends_a_signal_to_somebody_else(way: str) -> None:
    rig = Rig(way)
    if rig.strength.way is None:
        rig.close()
        pytest.skip(f"this machine has no {way}")
    sends = """
import fcntl, os, signal
def f(pid):
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[0], fcntl.F_SETOWN, pid)
        fcntl.fcntl(ends[0], fcntl.F_SETSIG, signal.SIGKILL)
    except OSError:
        return 'refused'
    fcntl.fcntl(ends[0], fcntl.F_SETFL, fcntl.fcntl(ends[0], fcntl.F_GETFL) | os.O_ASYNC)
    os.write(ends[1], b'x')"""
    with subprocess.Popen(["sleep", "60"]) as other:
        assert rig.run(sends, other.pid).result == "refused" or way not in ("landlock", "limits")
        time.sleep(0.1)
        assert other.poll() is None
        other.kill()
    rig.close()


def test_landlock_that_lets_files_be_emptied_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loreloop.learn.rewards.walls.landlock.version", lambda: 2)
    with pytest.raises(OSError, match="older than its third version"):
        sandbox_process.stand("landlock")


def test_what_code_says_of_its_error_is_bounded(rig: Rig) -> None:
    forged = "import json, os\ndef f():\n    os.write(3, json.dumps({'error': 'x' * 40_000}).encode())\n    os._exit(0)"
    assert rig.run(forged).error == "x" * 8000
    assert rig.run(forged.replace("'x' * 40_000", "[['x']]")).error == "the code ended its process without a result"


def test_an_asker_with_many_calls_does_not_stand_before_the_others(rig: Rig) -> None:
    order: list[str] = []

    async def one(asker: str) -> None:
        await rig.box.run("import time\ntime.sleep(0.05)", limits=QUICK, asker=asker)
        order.append(asker)

    async def all_of_them() -> None:
        many = [asyncio.ensure_future(one("many")) for _ in range(8)]
        await asyncio.sleep(0.02)
        await asyncio.gather(one("few"), one("some"), *many)

    rig.loop.run_until_complete(all_of_them())
    assert {*order[1:4]} >= {"few", "some"}


def test_a_turn_that_is_given_to_a_cancelled_call_is_passed_on() -> None:
    async def scene() -> None:
        turns, held = Turns(1), list[str]()

        async def hold(name: str) -> None:
            async with turns.turn(name):
                held.append(name)
                await asyncio.sleep(0)

        async with turns.turn("first"):
            given, waiting, last = (asyncio.ensure_future(hold(name)) for name in ("given", "waiting", "last"))
            await asyncio.sleep(0)
            waiting.cancel()
        given.cancel()  # after its place was given, before it could take it
        await asyncio.gather(given, waiting, last, return_exceptions=True)
        assert (held, turns.free) == (["last"], 1)

    asyncio.run(scene())


def test_closing_ends_a_call_and_leaves_no_process() -> None:
    before = {*psutil.Process().children()}
    rig = Rig("auto")

    async def scene() -> Outcome:
        call = asyncio.ensure_future(rig.box.run("import time\ntime.sleep(30)", limits=Limits(seconds=60)))
        await asyncio.sleep(0.3)
        await rig.box.close()
        return await call

    assert "has ended in the middle" in str(rig.loop.run_until_complete(scene()).error)
    assert rig.box.idle == []
    assert {*psutil.Process().children()} <= before
    assert rig.run("def f(): return 1").result == 1
    rig.close()


def test_code_that_is_too_long_is_refused(rig: Rig) -> None:
    with pytest.raises(BadRequest, match="at most"):
        rig.run("#" * (2 << 20))
