"""Attaches a file to a manifest, and finds what is attached, with ORAS for Python.

    attach.py attach  HOST REPOSITORY TAG FILE MEDIA_TYPE
    attach.py find    HOST REPOSITORY TAG MEDIA_TYPE FOLDER

`attach` prints the digest of what it attached; `find` pulls into FOLDER what is attached with that type, and prints one
digest a line.
"""

import os
import sys

import oras.client
import oras.oci


def subject(client, name):
    """The manifest that a tag names, as its own bytes have it: the client itself would write them anew."""
    container = client.get_container(name)
    answer = client.do_request(f"{client.prefix}://{container.manifest_url()}", headers={"Accept": "*/*"})
    answer.raise_for_status()
    headers = answer.headers
    return oras.oci.Subject(headers["Content-Type"], headers["Docker-Content-Digest"], len(answer.content))


def attach(client, host, repository, tag, file, media_type):
    attached_to = subject(client, f"{host}/{repository}:{tag}")
    os.chdir(os.path.dirname(file))
    with open("config.json", "w", encoding="utf-8") as config:
        config.write("{}")
    name = os.path.basename(file)
    answer = client.push(
        target=f"{host}/{repository}:attached-{name.replace('.', '-')}",
        files=[f"{name}:{media_type}"],
        # This client writes no artifactType: then the config's type is what it is.
        manifest_config=f"config.json:{media_type}",
        manifest_annotations={"org.opencontainers.image.title": name},
        subject=attached_to,
        quiet=True,
    )
    answer.raise_for_status()
    assert answer.headers["OCI-Subject"] == attached_to.digest, answer.headers
    print(answer.headers["Docker-Content-Digest"])


def find(client, host, repository, tag, media_type, folder):
    digest = subject(client, f"{host}/{repository}:{tag}").digest
    wanted = media_type.replace("+", "%2B")
    answer = client.do_request(f"{client.prefix}://{host}/v2/{repository}/referrers/{digest}?artifactType={wanted}")
    answer.raise_for_status()
    assert answer.headers["OCI-Filters-Applied"] == "artifactType", answer.headers
    for found in answer.json()["manifests"]:
        assert found["artifactType"] == media_type, found
        client.pull(target=f"{host}/{repository}@{found['digest']}", outdir=folder)
        print(found["digest"])


if __name__ == "__main__":
    command, host, *rest = sys.argv[1:]
    registry = oras.client.OrasClient(hostname=host, insecure=True)
    {"attach": attach, "find": find}[command](registry, host, *rest)
