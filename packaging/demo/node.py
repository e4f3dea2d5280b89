"""A Larder node as the demo runs it: its configuration, its process, and the commands that talk to it."""

import json
import shutil
import urllib.error
import urllib.request

import s3
from machine import Process, clean_environment, free_ports, run, wait_until

URL = f"s3://{s3.BUCKET}/demo"

CONFIGURATION = """\
data_dir = "{data}"
[node]
name = "{name}"
[http]
listen = "{address}"
[peers]
listen = "{address}"
[archive]
url = "{url}"
endpoint = "{endpoint}"
region = "{region}"
path_style = true
"""


class Node(Process):
    """`larder serve` on ports of its own, with a data folder of its own, archiving to the demo's bucket."""

    def __init__(self, name, folder, program, endpoint):
        self.program = program
        self.data = folder / f"{name}-data"
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        config = folder / f"{name}.toml"
        config.write_text(CONFIGURATION.format(
            data=self.data, name=name, address=self.address, url=URL, endpoint=endpoint, region=s3.REGION))
        super().__init__(name, folder, [program, "serve", "--config", config], clean_environment(
            AWS_ACCESS_KEY_ID=s3.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=s3.SECRET_KEY,
            # Whatever this user has configured for the real S3 stays out of it.
            AWS_CONFIG_FILE="/dev/null", AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true"))
        wait_until(f"{name} says it is ready", self._ready, seconds=30, process=self)

    def _ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def larder(self, *words, seconds=60):
        """Runs a `larder` command against this node and returns what it printed."""
        return run([self.program, *words, "--data-dir", self.data], seconds, environment=clean_environment())

    def larder_json(self, *words):
        return json.loads(self.larder(*words, "--json"))

    def manifest(self, repository, reference):
        request = urllib.request.Request(f"http://{self.address}/v2/{repository}/manifests/{reference}", headers={
            "Accept": "application/vnd.docker.distribution.manifest.v2+json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def lose_disk(self):
        shutil.rmtree(self.data)
