//! The codes of errors and problems: stable words for programs, one for each thing that is to be told apart.
//!
//! A code is part of the contract with whoever reads `--json`, `status` or the log: once released it is neither renamed nor
//! given another meaning. Messages and hints may change.

use std::fmt;
use std::str::FromStr;

/// Text that is no code of this version: nonsense, or a code that only a later version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no code that this version knows")]
pub struct UnknownCode;

macro_rules! codes {
    ($($name:ident = $text:literal,)*) => {
        /// What an error or a problem is, for programs. As text it is `E-` and upper-case words with dashes between them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`; the message beside it says the rest.")] $name,)*
        }

        impl Code {
            /// Every code, in the order of their texts.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The code as text: `E-NO-SUBNET`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    Address = "E-ADDRESS",
    AddressOutside = "E-ADDRESS-OUTSIDE",
    AddressTaken = "E-ADDRESS-TAKEN",
    AdminsMany = "E-ADMINS-MANY",
    Ambiguous = "E-AMBIGUOUS",
    Api = "E-API",
    Ask = "E-ASK",
    Attached = "E-ATTACHED",
    BadAnswer = "E-BAD-ANSWER",
    BlockFull = "E-BLOCK-FULL",
    Busy = "E-BUSY",
    Certificate = "E-CERTIFICATE",
    Cidr = "E-CIDR",
    CidrOverlap = "E-CIDR-OVERLAP",
    Cleanup = "E-CLEANUP",
    Clock = "E-CLOCK",
    Cname = "E-CNAME",
    Command = "E-COMMAND",
    Compose = "E-COMPOSE",
    Config = "E-CONFIG",
    ConfigIdle = "E-CONFIG-IDLE",
    ConfigKey = "E-CONFIG-KEY",
    ConfigRead = "E-CONFIG-READ",
    ConfigSyntax = "E-CONFIG-SYNTAX",
    ConfigValue = "E-CONFIG-VALUE",
    Connect = "E-CONNECT",
    Connections = "E-CONNECTIONS",
    Container = "E-CONTAINER",
    Crowded = "E-CROWDED",
    Daemon = "E-DAEMON",
    Degraded = "E-DEGRADED",
    Denied = "E-DENIED",
    DiskFull = "E-DISK-FULL",
    DnsBind = "E-DNS-BIND",
    DnsFailed = "E-DNS-FAILED",
    DnsRefused = "E-DNS-REFUSED",
    DnsSize = "E-DNS-SIZE",
    Docker = "E-DOCKER",
    Duration = "E-DURATION",
    Ended = "E-ENDED",
    Failed = "E-FAILED",
    Family = "E-FAMILY",
    File = "E-FILE",
    ForwardBlocked = "E-FORWARD-BLOCKED",
    GrantExpires = "E-GRANT-EXPIRES",
    Health = "E-HEALTH",
    Helper = "E-HELPER",
    Host = "E-HOST",
    HostClosed = "E-HOST-CLOSED",
    HostNames = "E-HOST-NAMES",
    Id = "E-ID",
    IdentityTwice = "E-IDENTITY-TWICE",
    Import = "E-IMPORT",
    InputBlocked = "E-INPUT-BLOCKED",
    Interface = "E-INTERFACE",
    Internal = "E-INTERNAL",
    InviteExpired = "E-INVITE-EXPIRED",
    InviteMalformed = "E-INVITE-MALFORMED",
    InviteRate = "E-INVITE-RATE",
    InviteRevoked = "E-INVITE-REVOKED",
    InviteStale = "E-INVITE-STALE",
    InviteUnknown = "E-INVITE-UNKNOWN",
    InviteUsed = "E-INVITE-USED",
    Join = "E-JOIN",
    JoinOver = "E-JOIN-OVER",
    JoinPolicy = "E-JOIN-POLICY",
    JoinRequests = "E-JOIN-REQUESTS",
    Kernel = "E-KERNEL",
    KernelSlow = "E-KERNEL-SLOW",
    KeyDamaged = "E-KEY-DAMAGED",
    KeyMissing = "E-KEY-MISSING",
    KeyOpen = "E-KEY-OPEN",
    Label = "E-LABEL",
    Lan = "E-LAN",
    LeaseLine = "E-LEASE-LINE",
    LeaseMany = "E-LEASE-MANY",
    LeaseOutside = "E-LEASE-OUTSIDE",
    LeaseOwn = "E-LEASE-OWN",
    LeaseTaken = "E-LEASE-TAKEN",
    Leave = "E-LEAVE",
    Listen = "E-LISTEN",
    ListenGone = "E-LISTEN-GONE",
    ListenInUse = "E-LISTEN-IN-USE",
    Log = "E-LOG",
    Mac = "E-MAC",
    Map = "E-MAP",
    MeetingPoint = "E-MEETING-POINT",
    Metrics = "E-METRICS",
    Multiaddr = "E-MULTIADDR",
    Name = "E-NAME",
    NameContested = "E-NAME-CONTESTED",
    NameTaken = "E-NAME-TAKEN",
    NatSymmetric = "E-NAT-SYMMETRIC",
    Netlink = "E-NETLINK",
    Netns = "E-NETNS",
    NfTables = "E-NF-TABLES",
    Nft = "E-NFT",
    NoAddress = "E-NO-ADDRESS",
    NoContainer = "E-NO-CONTAINER",
    NoFamily = "E-NO-FAMILY",
    NoInvite = "E-NO-INVITE",
    NoKey = "E-NO-KEY",
    NoLease = "E-NO-LEASE",
    NoLink = "E-NO-LINK",
    NoMap = "E-NO-MAP",
    NoMember = "E-NO-MEMBER",
    NoName = "E-NO-NAME",
    NoNetAdmin = "E-NO-NET-ADMIN",
    NoNetns = "E-NO-NETNS",
    NoNft = "E-NO-NFT",
    NoPath = "E-NO-PATH",
    NoPeer = "E-NO-PEER",
    NoRequest = "E-NO-REQUEST",
    NoSubnet = "E-NO-SUBNET",
    NoTarget = "E-NO-TARGET",
    NoTun = "E-NO-TUN",
    NoUdp = "E-NO-UDP",
    NoUpstream = "E-NO-UPSTREAM",
    NoWorkload = "E-NO-WORKLOAD",
    Nobody = "E-NOBODY",
    NotAdmin = "E-NOT-ADMIN",
    NotConfirmed = "E-NOT-CONFIRMED",
    NotDirect = "E-NOT-DIRECT",
    NotInPart = "E-NOT-IN-PART",
    NotLeased = "E-NOT-LEASED",
    NotMember = "E-NOT-MEMBER",
    NotOwner = "E-NOT-OWNER",
    NotReached = "E-NOT-REACHED",
    NotRemoved = "E-NOT-REMOVED",
    NotYet = "E-NOT-YET",
    Number = "E-NUMBER",
    Nxdomain = "E-NXDOMAIN",
    Output = "E-OUTPUT",
    OwnerForked = "E-OWNER-FORKED",
    OwnerStays = "E-OWNER-STAYS",
    PeerRequests = "E-PEER-REQUESTS",
    Pending = "E-PENDING",
    Permission = "E-PERMISSION",
    Podman = "E-PODMAN",
    PoolFull = "E-POOL-FULL",
    PoolNone = "E-POOL-NONE",
    Port = "E-PORT",
    PortInUse = "E-PORT-IN-USE",
    PortMapping = "E-PORT-MAPPING",
    PortRange = "E-PORT-RANGE",
    PortShadowed = "E-PORT-SHADOWED",
    PortTaken = "E-PORT-TAKEN",
    PostQuantum = "E-POST-QUANTUM",
    Proto = "E-PROTO",
    Proxy = "E-PROXY",
    Query = "E-QUERY",
    Quota = "E-QUOTA",
    Random = "E-RANDOM",
    Rate = "E-RATE",
    Record = "E-RECORD",
    RelayOnly = "E-RELAY-ONLY",
    Relayed = "E-RELAYED",
    Removed = "E-REMOVED",
    Request = "E-REQUEST",
    RequestsFull = "E-REQUESTS-FULL",
    Role = "E-ROLE",
    RuleOrder = "E-RULE-ORDER",
    Running = "E-RUNNING",
    Runtime = "E-RUNTIME",
    Oneself = "E-SELF",
    Socket = "E-SOCKET",
    SocketInUse = "E-SOCKET-IN-USE",
    Srv = "E-SRV",
    Start = "E-START",
    StateDamaged = "E-STATE-DAMAGED",
    StateFull = "E-STATE-FULL",
    StateInUse = "E-STATE-IN-USE",
    StateIo = "E-STATE-IO",
    StateOld = "E-STATE-OLD",
    StateVersion = "E-STATE-VERSION",
    StateWrite = "E-STATE-WRITE",
    Stopping = "E-STOPPING",
    SubnetDown = "E-SUBNET-DOWN",
    SubnetEnded = "E-SUBNET-ENDED",
    SubnetExists = "E-SUBNET-EXISTS",
    TargetRefused = "E-TARGET-REFUSED",
    Task = "E-TASK",
    Timeout = "E-TIMEOUT",
    TooManyNames = "E-TOO-MANY-NAMES",
    Ttl = "E-TTL",
    Txt = "E-TXT",
    Type = "E-TYPE",
    UdpBlocked = "E-UDP-BLOCKED",
    UdpUnanswered = "E-UDP-UNANSWERED",
    Usage = "E-USAGE",
    Verb = "E-VERB",
    Version = "E-VERSION",
}

impl Code {
    /// What the codes of refused invites begin with, those of later versions among them.
    pub const OF_INVITES: &str = "E-INVITE-";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> String {
        code.as_str().to_owned()
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        let at = Code::ALL
            .binary_search_by(|code| code.as_str().cmp(text))
            .map_err(|_| UnknownCode)?;
        Code::ALL.get(at).copied().ok_or(UnknownCode)
    }
}

/// Codes cross the control socket and the wire as text, for the other side may be of another version.
impl PartialEq<Code> for String {
    fn eq(&self, code: &Code) -> bool {
        self == code.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_well_formed_and_belongs_to_one_code() {
        let texts: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(
            texts.windows(2).all(|pair| pair[0] < pair[1]),
            "each once, and in order: parsing searches by halves"
        );
        for code in Code::ALL {
            let text = code.as_str();
            let words = text.strip_prefix("E-").unwrap().split('-');
            assert!(
                words
                    .clone()
                    .all(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_uppercase())),
                "{text}"
            );
            // The variant is its text in another spelling, so that neither is renamed alone.
            let spelled: String = words
                .map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase())
                .collect();
            let spelled = if spelled == "Self" {
                "Oneself".to_owned()
            } else {
                spelled
            };
            assert_eq!((format!("{code:?}"), text.parse()), (spelled, Ok(*code)));
            assert_eq!(code.to_string(), text);
        }
        for other in ["", "E-", "E-NONE-SUCH", "e-no-subnet", "E-NO-SUBNET "] {
            assert_eq!(other.parse::<Code>(), Err(UnknownCode), "{other:?}");
        }
    }

    /// Codes that the contract of the command line names, with whether this version has them.
    const IN_THE_CONTRACT: [(&str, bool); 9] = [
        ("E-CIDR-OVERLAP", true),
        ("E-CONFIG-IDLE", true),
        ("E-DOCKER", true),
        ("E-JOIN-POLICY", true),
        ("E-NAME-CONTESTED", true),
        ("E-NO-LISTENER", false),
        ("E-NOT-OURS", false),
        ("E-POOL-FULL", true),
        ("E-UNREACHABLE", false),
    ];

    #[test]
    fn codes_that_the_contract_names_are_spelled_as_there() {
        for (text, here) in IN_THE_CONTRACT {
            assert_eq!(text.parse::<Code>().is_ok(), here, "{text}");
        }
        // "Used, expired, revoked or forged invite: exit 7, `E-INVITE-…`".
        let invites: Vec<&str> = Code::ALL
            .iter()
            .map(|code| code.as_str())
            .filter(|text| text.starts_with(Code::OF_INVITES))
            .collect();
        assert_eq!(
            invites,
            [
                "E-INVITE-EXPIRED",
                "E-INVITE-MALFORMED",
                "E-INVITE-RATE",
                "E-INVITE-REVOKED",
                "E-INVITE-STALE",
                "E-INVITE-UNKNOWN",
                "E-INVITE-USED",
            ]
        );
    }
}
