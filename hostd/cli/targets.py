"""Find what the user names: CLUSTER, CLUSTER/GUEST, or just a GUEST of any cluster that runs."""

from __future__ import annotations

from hostd.control.client import Client
from hostd.supervisor.background import attach
from hostd.supervisor.directory import cluster_names
from hostd.supervisor.errors import NoSuchClusterError, SupervisorError


def cluster_name(target: str) -> str:
    """Return the cluster that `target` names: by its name or its file."""
    if target.endswith(".toml"):
        from hostd.cluster.file import load

        return load(target).name
    return target


def only_cluster() -> str:
    """Return the one cluster that runs. Raises SupervisorError when there is none, or more."""
    names = cluster_names()
    if not names:
        raise NoSuchClusterError("no cluster runs; bring one up with `hostd up FILE`")
    if len(names) > 1:
        raise SupervisorError(f"several clusters run ({', '.join(names)}); name one")
    return names[0]


def find(target: str) -> tuple[Client, list[str]]:
    """Return a connection to the supervisor of what `target` names, and its guest (none: the whole cluster is meant).

    Raises SupervisorError or ControlError.
    """
    cluster, slash, guest = target.partition("/")
    if slash:
        return attach(cluster), [guest]
    names = cluster_names()
    if cluster_name(target) in names:
        return attach(cluster_name(target)), []
    found: list[tuple[str, Client]] = []
    for name in names:
        try:
            client = attach(name)
        except NoSuchClusterError:
            continue
        if any(other["name"] == target for other in client.call("ps")["guests"]):
            found.append((name, client))
        else:
            client.close()
    if len(found) == 1:
        return found[0][1], [target]
    for _, client in found:
        client.close()
    if found:
        choices = ", ".join(f"{name}/{target}" for name, _ in found)
        raise SupervisorError(f"several clusters have a guest {target!r}; name one of {choices}")
    raise NoSuchClusterError(f"no cluster and no guest named {target!r} runs; `hostd ps` lists those that do")


def find_guest(target: str) -> tuple[Client, str]:
    """Return a connection and the one guest that `target` names. Raises as `find` does."""
    client, guests = find(target)
    if not guests:
        guests = [guest["name"] for guest in client.call("ps")["guests"]]
        if len(guests) != 1:
            client.close()
            raise SupervisorError(
                f"{target} is a cluster of {len(guests)} guests; name one, such as {target}/{guests[0]}"
            )
    return client, guests[0]
