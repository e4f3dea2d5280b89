"""The demo's own S3 client and server.

The client is not Larder's: what it finds in the bucket, anybody's client would. It signs requests as Amazon's
"Signature Version 4" says and knows three of them: create a bucket, list it, get an object.
"""

import hashlib
import hmac
import json
import re
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as xml
from pathlib import Path

from machine import Failed, Process, clean_environment, free_ports, wait_until

REGION = "us-east-1"
BUCKET = "larder"
ACCESS_KEY = "demo"
SECRET_KEY = "demo-secret-key"


class Client:
    """Asks the server at `endpoint` (http://host:port), with path-style addresses."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.host = endpoint.removeprefix("http://")

    def create_bucket(self):
        self._request("PUT", f"/{BUCKET}")

    def list(self):
        """Returns [(key, size)] of the whole bucket, in the bucket's order."""
        found, token = [], None
        while True:
            query = {"list-type": "2"} | ({"continuation-token": token} if token else {})
            page = xml.fromstring(self._request("GET", f"/{BUCKET}", query))
            # The answer's elements are in a namespace that servers spell differently.
            names = {child.tag.rsplit("}")[-1]: child.text for child in page}
            for element in page.iter():
                if element.tag.endswith("Contents"):
                    entry = {child.tag.rsplit("}")[-1]: child.text for child in element}
                    found.append((entry["Key"], int(entry["Size"])))
            if names.get("IsTruncated") != "true":
                return found
            token = names["NextContinuationToken"]

    def get(self, key):
        return self._request("GET", f"/{BUCKET}/{key}")

    def _request(self, method, path, query=None):
        path = urllib.parse.quote(path)
        query = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote)
        headers = self._signed(method, path, query)
        request = urllib.request.Request(f"{self.endpoint}{path}?{query}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"S3 {method} {path}: {error.code} {error.read().decode(errors='replace')}") from error

    def _signed(self, method, path, query):
        """The headers of one request without a body: date, host, hash of nothing, and the signature over them."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        headers = {"host": self.host, "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(), "x-amz-date": stamp}
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + SECRET_KEY).encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
        credential = f"Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {**headers, "authorization": f"AWS4-HMAC-SHA256 {credential}"}


class Server(Process):
    """SeaweedFS with an empty bucket; all it listens on is loopback, all it writes is in `folder`."""

    def __init__(self, program, folder):
        folder.mkdir()
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": [{
            "name": "demo",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }]}))
        parts = ["master", "volume", "filer", "s3"]
        self.metrics_port, *ports = free_ports(1 + 2 * len(parts))
        options = []
        for part, port, grpc in zip(parts, ports[::2], ports[1::2]):
            options += [f"-{part}.port={port}", f"-{part}.port.grpc={grpc}"]
        self.endpoint = f"http://127.0.0.1:{ports[-2]}"
        # It puts these here whatever it is told, and leaves them when it ends.
        self.sockets = [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in zip(parts, ports[1::2])]
        super().__init__("seaweedfs", folder, [
            program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", *options,
            "-s3", f"-s3.config={folder / 's3.json'}", f"-s3.localSocket={folder / 's3.sock'}",
            f"-filer.localSocket={folder / 'filer.sock'}", f"-metricsPort={self.metrics_port}",
            # No Iceberg, Lance and what else would listen on a fixed port; no report to its makers.
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            # Small volumes, many of them: it keeps a few for each bucket.
            "-volume.max=1000", "-master.volumeSizeLimitMB=1024",
        ], clean_environment())
        self.client = Client(self.endpoint)
        # It answers "not ready" until its parts have found each other, a second or two after the start.
        wait_until("the S3 server takes a bucket", self._bucket_created, seconds=60, process=self)

    def _bucket_created(self):
        try:
            self.client.create_bucket()
            return True
        except (OSError, RuntimeError):
            return False

    def stop(self, how=None, seconds=None):
        # It takes a quarter of a minute to say goodbye to its own parts; nobody needs its data any more.
        super().stop(signal.SIGKILL)
        for path in self.sockets:
            path.unlink(missing_ok=True)

    def requests(self):
        """What the server itself has counted for the bucket: {type of request: count}.

        It counts a request after it has sent the answer, so the last ones may be missing for a moment: what it says has to
        be the same twice.
        """
        counts = self._counted()
        deadline = time.monotonic() + 30
        while True:
            time.sleep(0.5)
            earlier, counts = counts, self._counted()
            if counts == earlier:
                return counts
            if time.monotonic() > deadline:
                raise Failed(f"the S3 server's requests have not come to rest in 30 seconds: {counts}")

    def _counted(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        counts = {}
        for labels, count in re.findall(r"^SeaweedFS_s3_request_total\{(.*?)\} (\S+)$", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="(.*?)"', labels))
            if labels.get("bucket") == BUCKET:
                counts[labels["type"]] = counts.get(labels["type"], 0) + int(float(count))
        return counts
