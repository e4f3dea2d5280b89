"""A Debian root that holds nothing but Debian: made once by debootstrap, unpacked anew for each use."""

import sys

from machine import Failed, run

# As in a container, nothing is started by an installation, and nobody is asked.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


class CleanRoot:
    """A root at `path` while the `with` block lasts; `cache` keeps what all of them are unpacked from.

    Mounts: to be used in a mount namespace of the caller's own.
    """

    def __init__(self, cache, path):
        self.cache, self.path = cache, path

    def __enter__(self):
        self.path.mkdir(mode=0o755)
        # debootstrap and the package's own steps need the folders above to be open to other users.
        self.path.parent.chmod(0o755)
        run(["tar", "--extract", "--numeric-owner", "--directory", self.path, "--file", self._tar()], 300)
        self._use_this_machine_s_mirrors()
        run(["mount", "--types", "proc", "proc", self.path / "proc"])
        try:
            self.run(["apt-get", "update"], 300)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # The folder is removed after this; what is mounted in it must be gone by then.
        run(["umount", self.path / "proc"])

    def run(self, command, seconds=60):
        """Runs a command in the root, as root, with an environment of its own, to its end; returns what it printed."""
        return run(["chroot", self.path, *command], seconds, environment=ENVIRONMENT)

    def _tar(self):
        codename = run(["sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME"])
        tar = self.cache / f"debian-{codename}-{run(['dpkg', '--print-architecture'])}.tar"
        if tar.exists():
            return tar
        print(f"making a clean Debian {codename} root with debootstrap, once", file=sys.stderr, flush=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name("debootstrap")
        # systemd, because it is what checks the unit; certificates, for mirrors that are asked by HTTPS.
        run(["debootstrap", "--variant=minbase", "--include=systemd,ca-certificates", codename, fresh,
             mirrors(codename)[0].uri], 900)
        # Under another name first: a run that is ended half-way leaves no half root.
        unfinished = tar.with_suffix(".unfinished")
        run(["tar", "--create", "--numeric-owner", "--one-file-system", "--directory", fresh, "--exclude=./proc/*",
             "--exclude=./sys/*", "--exclude=./var/cache/apt/archives/*.deb", "--file", unfinished, "."], 300)
        unfinished.rename(tar)
        return tar

    def _use_this_machine_s_mirrors(self):
        apt = self.path / "etc/apt"
        (apt / "sources.list").write_text("".join(
            f"deb {mirror.uri} {mirror.suite} {mirror.component}\n" for mirror in mirrors()))
        # How to get there: proxies, timeouts, retries.
        (apt / "apt.conf.d/90machine").write_text(run(["apt-config", "dump", "Acquire"]) + "\n")


class Mirror:
    def __init__(self, line):
        self.suite, self.component, self.uri = line.split()


def mirrors(codename=None):
    """Where this machine gets Debian's packages from; of that, `codename` alone when it is given."""
    printed = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)",
                   "Created-By: Packages", "Origin: Debian"])
    found = [Mirror(line) for line in printed.splitlines()]
    found = [mirror for mirror in found if codename in (None, mirror.suite)]
    if not found:
        raise Failed("apt knows no Debian mirror; run `apt-get update` and see `apt-get indextargets`")
    return found
