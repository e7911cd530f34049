"""Simulated visitors of the demo Space, all at once: what they wait, and what goes wrong.

    python benchmarks/space_load.py [--users 20] [--seconds 120] [--url http://127.0.0.1:7860]

Without --url it starts the Space of this repository on two cores of this machine. Every user
listens, moves the slider, encodes, compares, rates and reads the leaderboard, one after the other
without a pause. The exit status is 1 if any action failed other than by the queue being full, which
a visitor is told politely.
"""

import argparse
import collections
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

CLIPS = ["Voice", "Orchestra", "Percussion"]
SPACE = Path(__file__).resolve().parents[1] / "spaces_demo"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # gradio_client leaves what it downloads
        process, url = (None, arguments.url) if arguments.url else start(folder)
        try:
            taken, errors, queued = run(url, arguments.users, arguments.seconds)
        finally:
            if process:
                process.terminate()
                process.wait(60)
    for name, times in sorted(taken.items()):
        middle, slow = np.percentile(times, [50, 95])
        print(f"{name:<18} {len(times):5d} done   median {middle:6.2f} s   95 % {slow:6.2f} s")
    print(f"asked to come back {queued}, failed {len(errors)}")
    for error, count in collections.Counter(errors).most_common(10):
        print(f"  {count} x {error}")
    return 1 if errors else 0


def start(folder: str) -> tuple[subprocess.Popen, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "CODECPLUS_RATINGS": os.path.join(folder, "ratings"),
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
    }
    cores = sorted(os.sched_getaffinity(0))[:2]
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=SPACE,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return process, url
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    raise SystemExit("the Space did not start")


def run(url: str, users: int, seconds: float) -> tuple[dict[str, list[float]], list[str], int]:
    taken: dict[str, list[float]] = collections.defaultdict(list)
    errors: list[str] = []
    queued = [0]
    lock, deadline = threading.Lock(), time.monotonic() + seconds

    def visit(number: int) -> None:
        from gradio_client import Client

        rng = random.Random(number)
        try:
            client = Client(
                url, verbose=False, httpx_kwargs={"timeout": 120}
            )  # who waits in a queue is patient
        except Exception as error:  # whatever it is belongs in the report
            errors.append(f"connect: {error}")
            return
        while time.monotonic() < deadline:
            name, call = action(client, rng)
            begun = time.monotonic()
            try:
                call()
                with lock:
                    taken[name].append(time.monotonic() - begun)
            except Exception as error:
                with lock:
                    if "queue is full" in str(error).lower():
                        queued[0] += 1
                    else:
                        errors.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, errors, queued[0]


def action(client, rng: random.Random):
    clip, kbps = rng.choice(CLIPS), round(rng.uniform(0.87, 7.5), 2)
    name = rng.choice(["dac-44khz-small", "dac-16khz-live"])

    def listen() -> None:
        page = client.predict("mushra", "", api_name="/listening_start")
        for stimulus in page["stimuli"]:
            urllib.request.urlopen(f"{client.src}{stimulus['url']}").read()
        time.sleep(page["full_seconds"] + len(page["stimuli"]) * page["least_seconds"])
        scores = {stimulus["id"]: rng.randint(0, 100) for stimulus in page["stimuli"]}
        client.predict(page["session"], page["index"], scores, api_name="/listening_submit")

    actions = {
        "size": lambda: client.predict(clip, None, name, kbps, api_name="/size"),
        "encode": lambda: client.predict(clip, None, name, kbps, api_name="/encode"),
        "compare": lambda: client.predict(
            clip, None, name, kbps, "opus", rng.choice([6, 12, 24]), api_name="/compare"
        ),
        "stream": lambda: client.predict(clip, None, "dac-16khz-live", 6.0, api_name="/stream"),
        "listening test": listen,
        "leaderboard": lambda: client.predict(api_name="/leaderboard"),
    }
    chosen = rng.choices(list(actions), weights=[4, 4, 2, 1, 2, 1])[0]
    return chosen, actions[chosen]


if __name__ == "__main__":
    sys.exit(main())
