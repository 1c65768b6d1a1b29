"""Every finding that ``verify`` can have: its level, what it means, and what helps."""

from __future__ import annotations

from appliance.model import Finding, Value

ERROR, WARNING = "error", "warning"


class Code(Value, frozen=True, kw_only=True):
    """A kind of finding. ``fix`` is what ``--fix`` does, empty when it does nothing."""

    code: str
    level: str
    meaning: str
    operator: str
    fix: str = ""

    def found(self, subject: str, message: str) -> Finding:
        """Return a finding of this kind."""
        return Finding(
            code=self.code, level=self.level, subject=subject, message=message, fix=self.fix
        )


def _error(code: str, meaning: str, operator: str, fix: str = "") -> Code:
    return Code(code=code, level=ERROR, meaning=meaning, operator=operator, fix=fix)


def _warning(code: str, meaning: str, operator: str, fix: str = "") -> Code:
    return Code(code=code, level=WARNING, meaning=meaning, operator=operator, fix=fix)


_BY_ITSELF = "Wait a minute: the node and the controller compare what they hold. Then see the log."
_TRACE = "`anynode trace INSTANCE` shows how far it came; the node's log says why."
_RUN_FIX = "`anynode verify --fix`."

NO_PROGRESS = _error(
    "I1.NO_PROGRESS", "An instance has been under way for too long without a sign of life.", _TRACE
)
NO_REASON = _error(
    "I1.NO_REASON", "An instance has ended and nothing says why.", "Report it as a bug."
)
DOMAIN_ORPHAN = _error(
    "I2.DOMAIN_ORPHAN",
    "The hypervisor has an instance of ours that neither the store nor the node's journal knows.",
    _RUN_FIX,
    "powers it off and makes the hypervisor forget it; its files are another finding",
)
DOMAIN_STALE = _error(
    "I2.DOMAIN_STALE",
    "The node holds an instance that does not belong on it any more.",
    "Start the node: it removes the copy itself. " + _BY_ITSELF,
)
DOMAIN_MISSING = _error(
    "I2.DOMAIN_MISSING",
    "An instance is recorded as running, and the hypervisor does not have it.",
    _BY_ITSELF,
)
DOMAIN_OFF = _error(
    "I2.DOMAIN_OFF", "An instance is recorded as running, and it is off.", _BY_ITSELF
)
DOMAIN_ON = _error("I2.DOMAIN_ON", "An instance is recorded as stopped, and it runs.", _BY_ITSELF)
EPOCH_DIFFERS = _error(
    "I2.EPOCH_DIFFERS",
    "Store, journal and hypervisor do not mean the same placement of an instance.",
    _BY_ITSELF,
)
TWO_PLACEMENTS = _error(
    "I2.TWO_PLACEMENTS", "An instance belongs in two places at once.", "Report it as a bug."
)
RUNS_TWICE = _error(
    "I2.RUNS_TWICE",
    "An instance runs on two nodes at once.",
    "Wait until both nodes are up and have compared what they hold. Then report it as a bug.",
)
NODE_UNKNOWN = _error(
    "I2.NODE_UNKNOWN",
    "An instance belongs on a node that is not in the cluster.",
    "Terminate the instance, and report it as a bug.",
)
NOT_PLACED = _error(
    "I2.NOT_PLACED",
    "An instance is on record and belongs nowhere.",
    "Report it as a bug.",
)
JOURNAL_MISSING = _error(
    "I2.JOURNAL_MISSING", "The node's journal does not know an instance of the node.", _BY_ITSELF
)
JOURNAL_DIFFERS = _error(
    "I2.JOURNAL_DIFFERS",
    "The node's journal and the store do not agree on how an instance is.",
    _BY_ITSELF,
)
ADDRESS_STRAY = _error(
    "I3.ADDRESS_STRAY",
    "An address is taken by a port that does not exist.",
    _RUN_FIX,
    "gives the address back",
)
ADDRESS_TWICE = _error(
    "I3.ADDRESS_TWICE",
    "A MAC or an address is in use twice in the cluster.",
    "Wait until both nodes are up and have compared what they hold. Then report it as a bug.",
)
PORT_STRAY = _error(
    "I3.PORT_STRAY", "A port belongs to an instance that has ended.", "Report it as a bug."
)
ADDRESS_MISSING = _error(
    "I3.ADDRESS_MISSING", "A running instance has a port without an address.", _TRACE
)
TAP_MISSING = _error(
    "I3.TAP_MISSING",
    "A running instance has a port without a tap: it has no network.",
    "Stop and start the instance.",
)
LEASE_DIFFERS = _error(
    "I3.LEASE_DIFFERS",
    "The node's journal gives a port another MAC or other addresses than the store.",
    "Stop and start the instance.",
)
DATAPATH_MISSING = _error(
    "I3.DATAPATH_MISSING",
    "The node's journal does not know a port of a running instance: it gets no metadata.",
    "Stop and start the instance.",
)
DATAPATH_STRAY = _error(
    "I3.DATAPATH_STRAY",
    "The node's journal has a port whose instance is not here: its metadata would be served.",
    "Restart the node, then see its log.",
    "forgets the port, when the node does not run",
)
RULES_MISSING = _error(
    "I3.RULES_MISSING",
    "A port of a running instance has no firewall rules: nothing passes.",
    "Wait half a minute: the node looks at its rules. Then see the log.",
)
RULES_STRAY = _error(
    "I3.RULES_STRAY",
    "The firewall has a port whose instance is not here.",
    _RUN_FIX,
    "puts the policy of the port's network in force anew, when the node does not run",
)
RULES_BEHIND = _error(
    "I3.RULES_BEHIND",
    "The firewall enforces an older policy of a network than the store has.",
    "Start the node, or see its log.",
)
REACH_DIFFERS = _error(
    "I3.REACH_DIFFERS",
    "The node sends frames for a port on another node somewhere else than the store says.",
    "Wait half a minute: the node looks at its networks. Then see its log.",
)
CLAIMS_DIFFER = _error(
    "I4.CLAIMS_DIFFER",
    "What is claimed of a node is not the sum of its placements.",
    _RUN_FIX,
    "counts the claims anew",
)
OVERCOMMITTED = _error(
    "I4.OVERCOMMITTED",
    "More is claimed of a node than it offers.",
    "Its capacity or a ratio has shrunk: stop instances, or set the ratio back.",
)
QUOTA_DIFFERS = _error(
    "I4.QUOTA_DIFFERS",
    "What a project uses of a quota is not what it has.",
    _RUN_FIX,
    "counts the use anew",
)
FILES_ORPHAN = _error(
    "I5.FILES_ORPHAN",
    "There are files of an instance that is not here.",
    _RUN_FIX + " Or look at them first: they may be somebody's data.",
    "moves them to the attic of the state folder",
)
PARTIAL_FILE = _warning("I5.PARTIAL_FILE", "A file was cut off by a crash.", _RUN_FIX, "deletes it")
IMAGE_UNUSED = _warning(
    "I5.IMAGE_UNUSED",
    "The image store has a file that no image is made of.",
    "Delete it when no instance was made from it: instances' disks may be based on it.",
)
TAP_ORPHAN = _error(
    "I5.TAP_ORPHAN", "There is a tap of a port that is not here.", _RUN_FIX, "removes it"
)
NETWORK_ORPHAN = _error(
    "I5.NETWORK_ORPHAN",
    "The node has a bridge, a DHCP server or rules of a network that does not exist.",
    _RUN_FIX,
    "releases the network",
)
PROCESS_ORPHAN = _error(
    "I5.PROCESS_ORPHAN",
    "A process works on the files of a network or an instance that is not here.",
    "Look at it (`ps`), then end it.",
)
MOUNT_ORPHAN = _error(
    "I5.MOUNT_ORPHAN",
    "Something is mounted below the folder of an instance.",
    "`umount` it; an injection was cut off.",
)
MESSAGE_STUCK = _error(
    "I6.MESSAGE_STUCK",
    "A message has waited for too long for its handler.",
    "See the node's log; `anynode messages` shows the message.",
)
DEAD_LETTER = _warning(
    "I6.DEAD_LETTER",
    "A message was given up after its last attempt.",
    "`anynode messages` shows it and can send it again or drop it.",
)
REFUSED = _warning(
    "I6.REFUSED",
    "A node sent what it may not say, or what cannot be read. It changed nothing; but a node that "
    "means well sends nothing of the kind.",
    "Look at that node, and drain or remove it. `anynode messages` shows what was sent, and "
    "`anynode messages drop --from NODE` clears it away.",
)
DEAD_WAITS = _warning(
    "I6.DEAD_WAITS",
    "The broker has given up messages, and no controller has taken them to keep them.",
    "Look whether a node has the role controller, and see its log.",
)
NOT_TAKEN = _error(
    "I6.NOT_TAKEN",
    "The broker has messages for a role, and no process takes them.",
    "`anynode role add` gives the role to a node; `anynode messages` shows the queues.",
)
REPORT_UNCONFIRMED = _error(
    "I6.REPORT_UNCONFIRMED",
    "A node has reported something and the controller has not confirmed it.",
    "See the log of the controller.",
)
FILE_OPEN = _error(
    "I9.FILE_OPEN",
    "Others may read a file that holds secrets.",
    _RUN_FIX + " Then renew the secrets.",
    "takes the rights of others away",
)
SECRET_SEEN = _error(
    "I9.SECRET_SEEN",
    "A secret access key or user data stands where people or programs may read it.",
    "Renew the secret, and report it as a bug.",
)
UNREAD = _error(
    "N1.UNREAD",
    "Something could not be looked at, so that nothing is known of it.",
    "The message says why.",
)
HIDDEN = _warning(
    "N1.HIDDEN",
    "A fake keeps what it has in the memory of the node's process: only its records were checked.",
    "A sandbox with `--state` keeps it in a folder, where it is looked at, too.",
)
NOT_RUNNING = _warning(
    "N1.NOT_RUNNING", "The node's process does not run; its instances may.", "`anynode run`."
)
SILENT = _error("N1.SILENT", "The node runs and has not been heard of.", "See its log; restart it.")
NODE_DOWN = _warning(
    "N1.NODE_DOWN",
    "A node of the cluster is down: what is on it was not looked at, and findings about it are "
    "left out.",
    "Bring it back. Its instances are placed anew only by `anynode evacuate`.",
)
MEMBERS_DIFFER = _error(
    "N1.MEMBERS_DIFFER",
    "A node goes by another list of members than the store has.",
    "Wait some seconds: it asks for the list. Then see its log.",
)
CERTIFICATE_ENDS = _warning(
    "N1.CERTIFICATE_ENDS",
    "A certificate of the cluster ends soon. Nodes renew theirs when half of its time is over.",
    "See the node's log; one that was away for long joins anew.",
)
ROLES_MEET = _warning(
    "N1.ROLES_MEET",
    "The node has instances of others and the login of the store: who breaks out of one has both.",
    "Give the store's roles to nodes without instances: `anynode role add ROLE --node OTHER`, "
    "then `anynode role remove ROLE --node THIS`.",
)
UNGUARDED = _warning(
    "N2.UNGUARDED",
    "The firewall does not drop what unknown taps send.",
    "Start the node.",
)
NO_FIREWALL = _warning(
    "N2.NO_FIREWALL",
    "The node has no firewall: security groups are not enforced.",
    "Set firewall.driver.",
)
FIREWALL_WARNS = _warning(
    "N2.FIREWALL_WARNS",
    "The firewall plugin finds something wrong.",
    "The message says what.",
)
NETWORK_WARNS = _warning(
    "N2.NETWORK_WARNS",
    "A network plugin says that something is wrong.",
    "Wait half a minute: the node repairs its networks. Then see the log.",
)
NO_KVM = _warning(
    "N3.NO_KVM",
    "The machine has no /dev/kvm: instances are emulated, slow, and not well isolated.",
    "Switch virtualization on in the firmware, or load kvm_intel or kvm_amd.",
)
CLOCK_BACK = _warning(
    "N3.CLOCK_BACK",
    "The clock is behind the newest record of the store.",
    "Set the clock, and let NTP keep it.",
)
CLOCKS_APART = _warning(
    "N3.CLOCKS_APART",
    "The clocks of two nodes are apart: what is signed, and what they log, has the wrong time.",
    "Let NTP keep the clocks of all nodes.",
)
DISK_FULL = _warning(
    "N3.DISK_FULL", "The disk of a folder of the node is nearly full.", "Make room."
)
DISK_READ_ONLY = _error(
    "N3.DISK_READ_ONLY",
    "The disk of a folder of the node may not be written: it was mounted so, or it is broken.",
    "See the kernel's log (`dmesg`); mount it writable when it is well. The node then goes on.",
)
SERVICE_DOWN = _error(
    "N5.SERVICE_DOWN",
    "A PostgreSQL or RabbitMQ of the cluster's own, on this node, does not run.",
    "Start the node: it starts them. What they said last is in `services` in the state folder.",
)
BROKER_AWAY = _error(
    "N5.BROKER_AWAY",
    "The cluster's broker does not answer: what roles say to each other waits.",
    "Look whether it runs, and whether this node reaches it. Nothing is lost meanwhile.",
)
BROKER_ALARM = _error(
    "N5.BROKER_ALARM",
    "The cluster's broker takes no messages, since its memory or disk is used up.",
    "Make room on its machine; it goes on by itself.",
)
MOVE_UNFINISHED = _warning(
    "N5.MOVE_UNFINISHED",
    "Messages are on their way from one broker to another: both must run, and nodes hear both.",
    "Run `anynode messages move` again: it goes on where it was. `--back` takes it back.",
)
OBSERVED = _warning(
    "N4.OBSERVED",
    "An observer plugin has something to say; it brings codes of its own.",
    "Its README says what.",
)

CODES: dict[str, Code] = {
    value.code: value for value in list(globals().values()) if isinstance(value, Code)
}
"""Every kind of finding by its code."""
