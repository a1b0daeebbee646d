"""hostd net"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from hostd.cli.command import print_columns, print_json
from hostd.cli.mac import mac_address

EXAMPLES = (
    "hostd net ls",
    "hostd net show pair/lan --watch",
    "qemu-system-x86_64 -accel kvm disk.img $(hostd net attach pair/lan --name desktop --memory 2GiB)",
    "hostd net attach pair/lan --for dpdk --name generator --json",
    "hostd net attach pair/lan --name desktop --remove",
)


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="list networks that have a switch")
    show = actions.add_parser("show", help="show a network's ports, what they count, and the addresses it has learnt")
    attach = actions.add_parser("attach", help="add a vhost-user port and print what QEMU or DPDK needs to join by it")
    for action in (show, attach):
        action.add_argument("network", metavar="CLUSTER/NETWORK", help="as `hostd net ls` shows them")
    show.add_argument("-w", "--watch", action="store_true", help="go on until Ctrl-C, with rates")
    attach.add_argument("--name", metavar="NAME", help="of the port (default: qemu-0, dpdk-0, ...)")
    attach.add_argument("--for", dest="program", choices=("qemu", "dpdk"), default="qemu", help="(default: qemu)")
    attach.add_argument("--memory", default="1GiB", metavar="SIZE", help="of QEMU's guest (default: 1GiB)")
    attach.add_argument("--queues", type=int, choices=range(1, 9), default=1, help="pairs of queues (default: 1)")
    attach.add_argument("--mac", type=mac_address, help="of the interface (default: by rule, from the names)")
    attach.add_argument("--fixed", action="store_true", help="let it send from that address only")
    attach.add_argument("--isolated", action="store_true", help="let it exchange frames with uplinks only")
    attach.add_argument("--remove", action="store_true", help="take the port NAME away again")
    for action in actions.choices.values():
        # Where --json stands before the action, it counts as well.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    code: int = globals()[f"_{options.action}"](options)
    return code


def _ls(options: argparse.Namespace) -> int:
    from hostd.cli.net_show import look
    from net import naming
    from net.errors import NetError

    found = []
    for name in naming.networks():
        known: dict[str, Any] = {"network": name, "mtu": None, "pid": None, "ports": None, "addresses": None}
        try:
            seen = look(name)
        except NetError as error:
            known["error"] = str(error)
        else:
            known |= {"mtu": seen["mtu"], "pid": seen["pid"]}
            known |= {"ports": len(seen["ports"]), "addresses": len(seen["addresses"])}
        found.append(known)
    if options.json:
        print_json(found)
    elif found:
        keys = ("network", "mtu", "ports", "addresses", "pid")
        rows = [[*(network[key] for key in keys), network.get("error", "")] for network in found]
        print_columns((*(key.upper() for key in keys), ""), rows, right=range(1, 5))
    else:
        print("no network has a switch; bring up a cluster with [network.NAME] in its file")
    return 0


def _show(options: argparse.Namespace) -> int:
    from hostd.cli.net_show import look, show, watch

    if options.watch:
        watch(options.network, as_json=options.json)
    elif options.json:
        print_json(look(options.network))
    else:
        show(look(options.network))
    return 0


def _attach(options: argparse.Namespace) -> int:
    from hostd.cli.net_join import Interface, for_dpdk, for_qemu
    from hostd.cluster.addressing import mac_of
    from hostd.cluster.sizes import parse_size
    from net import naming, requests
    from net.client import Client
    from net.errors import NetError

    if options.remove:
        return _remove(options)
    try:
        memory = parse_size(options.memory)
    except ValueError as error:
        raise NetError(f"--memory: {error}") from None
    cluster, network = naming.split(options.network)
    with Client.connect(cluster, network) as client:
        names = {port["name"] for port in client.call(requests.show())["ports"]}
        name = options.name or next(n for i in range(len(names) + 1) if (n := f"{options.program}-{i}") not in names)
        if name in names:
            raise NetError(f"network {options.network} has a port {name!r} already; give another --name")
        mac = options.mac or mac_of(cluster, network, name)
        asked = requests.add_vhost(name, attached=True, mac=mac if options.fixed else None, isolated=options.isolated)
        path = client.call(asked)["path"]
        interface = Interface(name, path, mac, client.hello["mtu"], options.queues)
    arguments = for_qemu(interface, memory) if options.program == "qemu" else for_dpdk(interface)
    if options.json:
        known = {"network": options.network, "port": name, "path": path, "mac": mac.hex(":")}
        print_json(known | {"program": options.program, "arguments": arguments})
        return 0
    print(shlex.join(arguments))
    undo = f"hostd net attach {options.network} --name {name} --remove"
    print(f"port {name} is there until `{undo}`, or until the cluster ends", file=sys.stderr)
    return 0


def _remove(options: argparse.Namespace) -> int:
    from net import naming, requests
    from net.client import Client
    from net.errors import NetError

    if options.name is None:
        raise NetError("--remove: which port? Give its --name; `hostd net show` lists them")
    with Client.connect(*naming.split(options.network)) as client:
        ports = {port["name"]: port for port in client.call(requests.show())["ports"]}
        port = ports.get(options.name)
        if port is None or not port["attached"]:
            what = "has no port" if port is None else "needs its port"
            attached = ", ".join(name for name, other in ports.items() if other["attached"]) or "none"
            raise NetError(f"network {options.network} {what} {options.name!r}; those attached to it: {attached}")
        client.call(requests.remove(options.name))
    if options.json:
        print_json({"network": options.network, "removed": options.name})
    else:
        print(f"removed {options.name}")
    return 0
