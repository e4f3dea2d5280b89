"""What the demo starts on this machine, and how it ends it: processes, their logs, free ports, waiting."""

import os
import random
import signal
import socket
import subprocess
import time


class Failed(Exception):
    """A step did not do what it should; the message says what was seen."""


class Process:
    """A program that runs until it is stopped, with its output in a log file."""

    running = []

    def __init__(self, name, folder, command, environment=None):
        self.name = name
        self.log = folder / f"{name}.log"
        with open(self.log, "ab") as log:
            # A session of its own, so that Ctrl-C reaches the demo alone, which then ends all it started, in order.
            self.child = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True)
        Process.running.append(self)

    def tail(self, lines=30):
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in text[-lines:])

    def stop(self, how=signal.SIGTERM, seconds=20):
        """Ends the process and waits for its end; one that does not end when asked is killed."""
        self.child.send_signal(how)
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        Process.running.remove(self)

    def kill(self):
        self.stop(signal.SIGKILL)

    @classmethod
    def stop_all(cls):
        for process in reversed(list(cls.running)):
            process.stop()


def wait_until(what, check, seconds, process=None):
    """Calls `check` until it returns something true, and returns that; fails when `process` ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if process and process.child.poll() is not None:
            raise Failed(f"{process.name} ended with status {process.child.returncode}")
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds} s for this: {what}")
        time.sleep(0.05)
    return result


def free_ports(count):
    """Ports that are free for TCP and UDP on loopback, all different.

    They lie below the range from which the kernel takes ports for outgoing connections, so that none of them is
    taken between this look and its use.
    """
    found = []
    for port in random.sample(range(20000, 32000), 1000):
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise Failed(f"found only {len(found)} free ports of {count}")


def run(command, seconds=60, input=None, environment=None):
    """Runs a command to its end and returns what it printed; fails with its words when it does."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, input=input, capture_output=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}: no end after {seconds} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Failed(f"{' '.join(command)}: exit {done.returncode}: {words}")
    return done.stdout.decode(errors="replace").strip()


def clean_environment(**more):
    """This process's environment without what would change what the demo's programs do."""
    foreign = ("AWS_", "LARDER_", "DOCKER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more
