"""A small image in an OCI layout, made without a container engine."""

import gzip
import hashlib
import io
import json
import os
import tarfile

ONE_MIB = 1024 * 1024


def write_image(folder):
    """Writes an image with one layer of random bytes, big enough to be a file of its own in a store."""
    (folder / "blobs/sha256").mkdir(parents=True)

    def blob(media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("payload")
        member.size = ONE_MIB
        tar.addfile(member, io.BytesIO(os.urandom(ONE_MIB)))
    # Compressed, or else skopeo compresses it on the way, and what arrives is another blob.
    layer = blob("layer.v1.tar+gzip", gzip.compress(packed.getvalue(), mtime=0))
    unpacked = f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}"
    config = blob("config.v1+json", json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [unpacked]},
    }).encode())
    manifest = blob("manifest.v1+json", json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    }).encode())
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))


def blobs(folder):
    """The names of all blobs in a layout; a name is the hash of the content, which skopeo has checked."""
    return {path.name for path in (folder / "blobs/sha256").iterdir()}
