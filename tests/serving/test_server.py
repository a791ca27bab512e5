"""The command in processes of its own, with signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import psutil
import pytest

from helpers.prepared_data import TITLES


@pytest.fixture(scope="module")
def server(model_folder):
    """Two processes behind one port: the address and the parent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "trl_sdpo.cli", "serve", "--model", str(model_folder), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*words, "--workers", "2", "--device", "cpu"], env=environment, stderr=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{port}"
    wait_until(lambda: ask(address, "/health")["status"] == "ok", process)
    yield address, process
    process.kill()
    process.wait(30)


def workers_of(process):
    children = psutil.Process(process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "resource_tracker" not in " ".join(child.cmdline())]


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()[-3000:]
        try:
            if condition():
                return
        except (OSError, psutil.NoSuchProcess):
            pass
        time.sleep(0.2)
    raise AssertionError("It took too long.")


def ask(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_killed_worker_is_replaced_and_a_stop_answers_what_is_on_its_way(server):
    address, process = server
    body = {"history": TITLES[:2], "top_k": 3}
    expected = ask(address, "/recommend", body)

    workers = workers_of(process)
    assert len(workers) == 2
    workers[0].kill()
    answers, failures = [], 0
    while len(answers) < 20:  # who is cut off asks again
        try:
            answers.append(ask(address, "/recommend", body))
        except OSError:
            failures += 1
            assert failures < 100
    assert [[item["title"] for item in one["recommendations"]] for one in answers] == [
        [item["title"] for item in expected["recommendations"]]
    ] * 20
    wait_until(lambda: len(workers_of(process)) == 2, process)

    last = []
    asking = threading.Thread(
        target=lambda: last.append(ask(address, "/recommend", {"history": TITLES[:5], "top_k": 30}))
    )
    asking.start()
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    asking.join(30)
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert len(last[0]["recommendations"]) == len(TITLES) - 5
