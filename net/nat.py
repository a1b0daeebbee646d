"""NAT for a network: a table of nftables of its own, through which the host forwards what its guests send out."""

from __future__ import annotations

import re
import shutil
import subprocess
from ipaddress import IPv4Network

from net.errors import NetError
from shm.naming import flat_name

PLACES = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
"""where nft is, also for whom it is not on the PATH"""
INTERFACE = re.compile(r"[A-Za-z0-9_.@+-]{1,15}")

RULES = """\
add table ip {table}
delete table ip {table}
table ip {table} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{tap}" oifname "{way_out}" ip saddr {subnet} accept
        iifname "{tap}" drop
        iifname "{way_out}" oifname "{tap}" ct state established,related accept
        oifname "{tap}" drop
{guard}    }}
    chain nat {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{way_out}" ip saddr {subnet} masquerade
    }}
}}
"""
GUARD = """\
        iifname "{way_out}" ct state established,related accept
        iifname "{way_out}" drop
"""


def table_name(network: str) -> str:
    """Return the name of the table of `network` ("cluster/network")."""
    return f"hostd.{flat_name(network)}"


def add_table(network: str, tap: str, way_out: str, subnet: IPv4Network, *, guard: bool) -> None:
    """Make the network's table in the calling thread's namespace, all of it or nothing. Raises NetError.

    With `guard` nothing that comes in by `way_out` is forwarded but answers: for a host that forwarded nothing before.
    """
    names = {"tap": tap, "way_out": way_out}
    for name in names.values():
        if not INTERFACE.fullmatch(name):
            raise NetError(f"network {network}: interface {name!r} has no name that nftables can be told; rename it")
    rules = RULES.format(
        table=table_name(network), subnet=subnet, guard=GUARD.format(**names) if guard else "", **names
    )
    _nft(network, ["-f", "-"], rules)


def remove_table(network: str, table: str) -> None:
    """Remove a table, if it is there. Raises NetError."""
    _nft(network, ["-f", "-"], f"add table ip {table}\ndelete table ip {table}\n")


def check_nft(network: str) -> str:
    """Return the path of the program. Raises NetError."""
    found = shutil.which("nft") or shutil.which("nft", path=PLACES)
    if found is None:
        raise NetError(f"network {network}: NAT needs the program nft; install the package nftables")
    return found


def _nft(network: str, arguments: list[str], text: str) -> None:
    done = subprocess.run([check_nft(network), *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), f"status {done.returncode}")
    if "Operation not permitted" in done.stderr:
        said = "CAP_NET_ADMIN is needed; run it as root"
    elif "Operation not supported" in done.stderr or "Protocol not supported" in done.stderr:
        said = "this kernel has no nftables (CONFIG_NF_TABLES, CONFIG_NFT_MASQ); leave nat out"
    raise NetError(f"network {network}: NAT can't be set up: {said}")
