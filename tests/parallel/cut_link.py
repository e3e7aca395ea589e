"""Two hosts of a Ray cluster with a router between them, and a link that is cut: `unshare -rn python -m
tests.parallel.cut_link FOLDER`, which prints what happened as JSON. Each host is a network namespace of its own.

With `client`, it is the part that runs on the first host: a server, and a client that trains.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.parallel.ray_nodes import STORE_BYTES

HEAD, OTHER, PORT = "10.77.1.2", "10.77.2.2", 6399
NOTICE_SECONDS, N_TRIES = 120, 30
RAY = ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}", "--block", "--disable-usage-stats"]


def main(folder: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    try:
        print(json.dumps(_scene(folder, started)), flush=True)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _scene(folder: Path, started: list[subprocess.Popen[bytes]]) -> dict[str, object]:
    sh("ip link set lo up")
    for index, name in enumerate(("one", "two"), 1):
        holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        started.append(holder)
        time.sleep(0.5)  # until it has left this namespace
        sh(f"ip link add name to_{name} type veth peer name here netns {holder.pid}")
        sh(f"ip addr add 10.77.{index}.1/24 dev to_{name}", f"ip link set to_{name} up")
        inside = f"nsenter -t {holder.pid} -n ip"
        sh(f"{inside} link set lo up", f"{inside} addr add 10.77.{index}.2/24 dev here", f"{inside} link set here up")
        sh(f"{inside} route add default via 10.77.{index}.1")
    one, two = (["nsenter", "-t", str(holder.pid), "-n"] for holder in started)
    _forwards(True)
    ray = [str(Path(sys.executable).with_name("ray")), "start"]

    def run(where: list[str], *command: str, **how: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*where, *command], **({"stdout": sys.stderr} | how))
        started.append(process)
        return process

    run(one, *ray, "--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false", *RAY)
    _wait_for_hosts(one, 1)
    run(two, *ray, f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}", *RAY)
    _wait_for_hosts(one, 2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    client = run(one, sys.executable, "-m", "tests.parallel.cut_link", "client", str(folder), **pipes)
    assert client.stdin
    before = _losses(client)
    _forwards(False)  # packets are dropped here, and nobody is told
    seconds = _until_lost(folder / "loreloop.log")
    run(one, *ray, f"--address={HEAD}:{PORT}", f"--node-ip-address={HEAD}", *RAY)  # room for the group that is lost
    client.stdin.write(b"go\n")
    client.stdin.flush()
    after = _losses(client)
    client.wait()
    return {"seconds": seconds, "losses": before + after}


def _losses(client: subprocess.Popen[bytes]) -> list[float]:
    """What the client says next; libraries print lines of their own."""
    assert client.stdout
    line = next(line for line in client.stdout if line.startswith(b"["))
    return json.loads(line)


def _wait_for_hosts(where: list[str], n: int) -> None:
    """Until the cluster has so many."""
    asking = f"from tests.parallel.cut_link import n_hosts; print(n_hosts() >= {n})"
    for _ in range(N_TRIES):
        try:
            found = subprocess.run([*where, sys.executable, "-c", asking], capture_output=True, timeout=20)
        except subprocess.TimeoutExpired:
            continue
        if found.stdout.strip().endswith(b"True"):
            return
        time.sleep(1)
    raise AssertionError(f"the cluster does not have {n} hosts")


def n_hosts() -> int:
    from loreloop.host.ray_cluster import hosts, join

    join(f"{HEAD}:{PORT}", "here")
    return len(hosts())


def _forwards(on: bool) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(on)))


def _until_lost(log: Path) -> float:
    began = time.monotonic()
    while "was lost: no answer over the network" not in log.read_text():
        assert time.monotonic() - began < NOTICE_SECONDS, log.read_text()
        time.sleep(0.1)
    return time.monotonic() - began


def client(folder: Path) -> None:
    """Trains, waits for a word, and trains on."""
    from tests.parallel.test_mesh_server import server, service, trained

    settings = folder.parent / "server.toml"
    settings.write_text('[engine]\ninterface = "here"\n')
    options = ("--mesh", "tp=2", "--ray", f"{HEAD}:{PORT}", "--config", str(settings))
    with server(folder, *options) as running:
        model = service(running).create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
        print(json.dumps(trained(model, 3)), flush=True)
        sys.stdin.readline()
        print(json.dumps(trained(model, 3)), flush=True)


def sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
