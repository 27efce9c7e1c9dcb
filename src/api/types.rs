//! What crosses the control socket: one request type, one answer type a verb, one error type.
//!
//! The command line is one client among others; nothing is possible from one and not from the other. Field names are a
//! contract: they are only ever added to within a schema number.

mod error;
mod hint;
mod import;
mod lan;
mod reach;
mod relay;
mod request;
mod response;
mod workload;

use std::path::PathBuf;

pub use error::{Error, ErrorKind, ErrorReply};
pub use import::{ImportInfo, ImportMap, ImportWorkload, Imported, ImportedWorkload};
pub use lan::LanInfo;
pub(crate) use reach::relay_in;
pub use reach::{
    Diagnosis, DoctorInfo, ExternalInfo, ExternalSource, KnownAddress, MeetingPoint, NatInfo,
    NetcheckInfo, OwnAddress, Path, PathChange, ProbeInfo, ProxyInfo, ResolvedPeer, RouterInfo,
    RouterPort, Tried,
};
pub use relay::{KnownRelay, RelayInfo, RelaySession, RelayUse};
pub use request::{
    Cidr, ContainerInterface, Integration, PathKind, Request, TapDevice, WorkloadKind,
};
pub use response::{
    Asked, Carried, Carriers, ConfigInfo, ConfigSubnet, ConfigValue, Created, Done, HostInfo,
    HostNamesInfo, IdInfo, InviteCreated, InviteInfo, JoinRequestInfo, Joined, LeaseInfo,
    MemberInfo, PeerInfo, PeerStatus, PingInfo, Problem, Response, SessionInfo, Status, SubnetInfo,
    SubnetState, SubnetStatus, Waiting,
};
pub use workload::{
    Attached, DnsInfo, HealthCheck, HealthInfo, HealthProbe, LinkInfo, MapInfo, PassedInfo,
    TrafficInfo, WorkloadInfo,
};

pub use crate::model::mac;
pub use crate::model::ports::PortRange;
pub use crate::model::record::{Admission, Role};

/// The HTTP content type of metrics.
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The socket that the daemon listens on unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/byway/byway.sock";

/// Name of a user's own socket in `$XDG_RUNTIME_DIR`, which leads to the daemon's.
pub const USER_SOCKET: &str = "byway.sock";

/// Path of the socket where no flag names it: `BYWAY_SOCKET` where that is not empty, else the default.
pub fn default_socket() -> PathBuf {
    std::env::var_os("BYWAY_SOCKET")
        .filter(|v| !v.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}
