"""The protections of a confined process by name, and what each set of them guarantees.

The inner side of the sandbox imports this too, so it imports next to nothing.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

LIMITS = "limits"
USER_NAMESPACE = "user namespace"
PID_NAMESPACE = "pid namespace"
NETWORK_NAMESPACE = "network namespace"
IPC_NAMESPACE = "ipc namespace"
UTS_NAMESPACE = "uts namespace"
EMPTY_ROOT = "empty root"
LANDLOCK = "landlock"
ORDINARY_USER = "ordinary user"
OWN_KEYRINGS = "own keyrings"
NO_CAPABILITIES = "no capabilities"
NO_NEW_PRIVILEGES = "no new privileges"
SINGLE_PROCESS = "single process"
SECCOMP = "seccomp"
NO_HOST_SOCKETS = "no host sockets"
PROTECTIONS = (
    LIMITS,
    USER_NAMESPACE,
    PID_NAMESPACE,
    NETWORK_NAMESPACE,
    IPC_NAMESPACE,
    UTS_NAMESPACE,
    EMPTY_ROOT,
    LANDLOCK,
    ORDINARY_USER,
    OWN_KEYRINGS,
    NO_CAPABILITIES,
    NO_NEW_PRIVILEGES,
    SINGLE_PROCESS,
    SECCOMP,
    NO_HOST_SOCKETS,
)

# Each guarantee holds where one of its protections is in force.
GUARANTEES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "resources": frozenset({LIMITS}),
        "files": frozenset({EMPTY_ROOT, LANDLOCK}),
        # Modes, times and locks of files, which Landlock leaves alone.
        "file attributes": frozenset({EMPTY_ROOT, SECCOMP}),
        "network": frozenset({NETWORK_NAMESPACE, SECCOMP}),
        # Sockets to a virtual machine's host, which network namespaces leave alone.
        "host sockets": frozenset({NO_HOST_SOCKETS, SECCOMP}),
        "signals": frozenset({PID_NAMESPACE, SECCOMP}),
        "processes": frozenset({SINGLE_PROCESS, SECCOMP}),
        "shared memory": frozenset({IPC_NAMESPACE, SECCOMP}),
        "keyrings": frozenset({OWN_KEYRINGS, SECCOMP}),
        "privileges": frozenset({NO_NEW_PRIVILEGES}),
    }
)


def unguarded(protections: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the guarantees that a set of protections does not give.

    Example:
        >>> unguarded({LIMITS, NO_NEW_PRIVILEGES, LANDLOCK, SECCOMP})
        ()
        >>> unguarded({LIMITS, NO_NEW_PRIVILEGES, SECCOMP})
        ('files',)
    """
    held = frozenset(protections)
    return tuple(name for name, enough in GUARANTEES.items() if not enough & held)
