//! What the daemon asks of the helper, what the helper answers, and how both cross a socket.
//!
//! One connection carries one request and its reply, each a single packet of a `SOCK_SEQPACKET` socket: a byte with the
//! [`VERSION`], then the value in postcard. Descriptors travel beside it (`SCM_RIGHTS`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::commands::{Command, Former, Ran};
use crate::codec;
use crate::model::host::NetnsRef;

/// Version of the requests and replies. Daemon and helper come from one package, so only equal versions talk.
pub const VERSION: u8 = 1;
/// Longest packet that is sent or read, in bytes. A resolver file of 64 KiB fits.
pub const MAX_BYTES: usize = 96 * 1024;
/// Most descriptors that the kernel passes in one packet (include/net/scm.h).
const SCM_MAX_FD: usize = 253;
/// Most descriptors that one packet carries.
pub const MAX_FDS: usize = 2;

/// One thing that needs more than `CAP_NET_ADMIN`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Which network namespace is at a path. Answered by [`Reply::Namespace`].
    Name {
        /// A path that a person or an engine named.
        path: PathBuf,
        /// The user that the namespace must belong to; none where whoever named it may name any.
        owner: Option<u32>,
    },
    /// The file of a namespace that is known, to move a link there. Answered by [`Reply::Done`] and one descriptor.
    Open {
        /// The namespace.
        netns: NetnsRef,
    },
    /// Sockets inside a namespace. Answered by [`Reply::Entered`] and one descriptor, or two of [`SocketKind::Route`].
    Socket {
        /// The namespace.
        netns: NetnsRef,
        /// What sort of socket is made.
        kind: SocketKind,
    },
    /// Reads and then writes sysctls of a namespace. Answered by [`Reply::Sysctls`].
    Sysctls {
        /// The namespace.
        netns: NetnsRef,
        /// Keys below `/proc/sys` to be read.
        read: BTreeSet<String>,
        /// Keys below `/proc/sys` with the values they are to have.
        write: Vec<(String, String)>,
    },
    /// A route socket that hears the namespaces around the caller's own, whose file goes with the request. Answered by
    /// [`Reply::Done`] and one descriptor.
    Watch,
    /// A socket at which the guest behind a TAP of ours asks for a router, and hears of it. The file of the caller's own
    /// namespace goes with the request. Answered by [`Reply::Done`] and one descriptor.
    Solicitations {
        /// Name of the TAP.
        link: String,
    },
    /// The namespaces that processes are in. Answered by [`Reply::Namespaces`].
    OfProcesses,
    /// Turns questions for names out of a namespace to the gateways of one of its links; without any, no more.
    Turn {
        /// The namespace.
        netns: NetnsRef,
        /// The link in it.
        link: String,
        /// Addresses of the workload there.
        own: Vec<IpAddr>,
        /// Addresses that are asked.
        gateways: Vec<IpAddr>,
    },
    /// Which zones firewalld has. Answered by [`Reply::Zones`].
    Zones,
    /// Puts links of ours into a zone of firewalld, or takes them out.
    Zone {
        /// Name of the zone.
        zone: String,
        /// The links.
        links: Vec<String>,
        /// Whether they are put there.
        put: bool,
    },
    /// Reads a resolver file of a workload. Answered by [`Reply::File`], with one descriptor where it is there.
    Read {
        /// The file.
        path: PathBuf,
    },
    /// Writes a resolver file of a workload in place.
    Write {
        /// The file.
        path: PathBuf,
        /// All that is to stand in it.
        content: Vec<u8>,
        /// Whether the file and its directory are made where they are missing.
        make: bool,
    },
    /// Removes a resolver file that was made.
    Remove {
        /// The file.
        path: PathBuf,
        /// What goes.
        what: Removed,
    },
    /// Looks at the containers of an engine. Answered by [`Reply::Engine`] and one descriptor, at which HTTP is spoken.
    Engine {
        /// Socket of the engine.
        socket: PathBuf,
    },
    /// Whether a resolver file is the one that an engine made for a container. Answered by [`Reply::Is`].
    IsEngines {
        /// The file.
        path: PathBuf,
        /// IDs of the container, and of the one whose network it shares.
        ids: Vec<String>,
        /// First process of the container.
        pid: u32,
    },
    /// Whether a command may be run in a container, to ask whether it is well. Answered by [`Reply::Done`].
    MayRun {
        /// The command.
        command: Command,
    },
    /// Runs a command in a container, to ask whether it is well. Answered by [`Reply::Ran`].
    Run {
        /// The command.
        command: Command,
        /// The longest that it is waited for, in milliseconds.
        limit: u32,
        /// What is known of the one before.
        former: Former,
    },
    /// Whether anybody uses the kernel's tables of before nftables. The file of the caller's own namespace goes with this and
    /// the next two. Answered by [`Reply::Is`].
    AreTablesUsed {
        /// Whether those of IPv6 are meant.
        ipv6: bool,
    },
    /// The rules of a chain in those tables. Answered by [`Reply::Rules`].
    TableRules {
        /// Whether those of IPv6 are meant.
        ipv6: bool,
        /// Name of the chain.
        chain: String,
    },
    /// Has Docker's chain for others hold the rules of a daemon for links of ours, and no others of that daemon.
    LetThrough {
        /// Whether those of IPv6 are meant.
        ipv6: bool,
        /// The mark of the daemon's rules.
        instance: String,
        /// The links, `+` at the end of one for any ending.
        links: BTreeSet<String>,
    },
}

impl Request {
    /// Seconds that carrying it out may take.
    pub(super) fn takes(&self) -> u32 {
        match self {
            // The engine's own part comes on top of the command's.
            Request::Run { limit, .. } => limit.div_ceil(1000).saturating_add(7),
            _ => 4,
        }
    }

    /// Whether it may be made again where the helper ended before it replied. A command that was begun goes on without it.
    pub(super) fn may_repeat(&self) -> bool {
        !matches!(self, Request::Run { .. })
    }
}

/// What [`Request::Remove`] takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Removed {
    /// The file.
    File,
    /// The directory that the file was in, where it is empty.
    Directory,
}

/// Sorts of sockets that are made in a namespace; none of them is bound or connected, and none blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// Two sockets of rtnetlink.
    Route,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It was done.
    Done,
    /// The namespace that was found.
    Namespace(NetnsRef),
    /// The namespaces of processes, each by its oldest one.
    Namespaces(Vec<NetnsRef>),
    /// A namespace was entered.
    Entered {
        /// A number no other namespace has had since boot, where the kernel tells.
        cookie: Option<u64>,
    },
    /// Sysctls were read and written.
    Sysctls {
        /// Values of those that exist.
        values: BTreeMap<String, String>,
        /// Keys that were not written, each with the reason.
        failed: Vec<(String, String)>,
    },
    /// Names of zones.
    Zones(Vec<String>),
    /// What was found of a file.
    File {
        /// Whether the directory it is in exists.
        directory: bool,
    },
    /// The answer to a question.
    Is(bool),
    /// What came of a command.
    Ran(Ran),
    /// An engine listens.
    Engine {
        /// Number of the user who listens there: who answers at the descriptor is the helper.
        user: u32,
    },
    /// It was not done.
    Failed(Error),
    /// Rules of a chain, as `iptables -S` prints them; none where there is no such chain.
    Rules(Option<String>),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// The path leads to nothing, or to another namespace than the one that was meant.
    #[error("the network namespace {0} is gone")]
    Gone(PathBuf),
    /// No network namespace is at the path that was named. Whether anything else is there is not told: whoever asks may
    /// not be allowed to look there.
    #[error("there is no network namespace {0}")]
    Missing(PathBuf),
    /// The namespace at the path belongs to another user than the one who named it.
    #[error("the network namespace {0} belongs to another user")]
    Foreign(PathBuf),
    /// The kernel refused.
    #[error("{what} {path}: {}", io::Error::from_raw_os_error(*errno))]
    System {
        /// What was being done, in words.
        what: String,
        /// Path of the namespace or the file.
        path: PathBuf,
        /// Number of the error that the kernel gave.
        errno: i32,
    },
    /// The request is not one that is carried out.
    #[error("{0}")]
    Refused(String),
    /// A command may not be run in a container.
    #[error("{0}")]
    NotAllowed(String),
    /// A container engine does not answer, or its container is not as it has to be.
    #[error("{0}")]
    Engine(String),
    /// Nobody carried it out.
    #[error("the privileged helper at {socket} does not answer: {why}")]
    Unreachable {
        /// Socket of the helper.
        socket: PathBuf,
        /// The reason, in words.
        why: String,
    },
}

impl Error {
    /// A maker of errors of the kernel while something was done at a path.
    pub(super) fn system(
        what: &'static str,
        path: &std::path::Path,
    ) -> impl Fn(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |error| Error::System {
            what: what.to_owned(),
            path: path.clone(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// Sends one packet.
///
/// # Errors
/// When it is longer than [`MAX_BYTES`], or the other end does not take it.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    value: &T,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let mut bytes = vec![VERSION];
    bytes.extend(codec::encode(value));
    if bytes.len() > MAX_BYTES || descriptors.len() > MAX_FDS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, rights, flags, None)?;
    Ok(())
}

/// Reads one packet with the descriptors that came beside it.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no value of this version, and for what is too long;
/// [`io::ErrorKind::UnexpectedEof`] where the other end is gone.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_BYTES];
    // Room for as many as the kernel lets pass: those that are cut off would stay open, and nobody would know them.
    let mut rights = nix::cmsg_space!([std::os::fd::RawFd; SCM_MAX_FD]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut rights),
        flags,
    )?;
    let cut = message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let length = message.bytes;
    let descriptors = taken(message.cmsgs()?);
    match bytes.get(..length) {
        _ if cut || descriptors.len() > MAX_FDS => Err(io::ErrorKind::InvalidData.into()),
        Some([]) | None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some([VERSION, value @ ..]) => match codec::decode(value) {
            Ok(value) => Ok((value, descriptors)),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        },
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Takes over the descriptors that came with a packet, so that they are closed whatever the packet was.
#[expect(
    unsafe_code,
    reason = "descriptors arrive as numbers, which only an unsafe call takes over"
)]
fn taken(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel made these descriptors for this process a moment ago, and nobody else knows them.
            descriptors.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    descriptors
}
