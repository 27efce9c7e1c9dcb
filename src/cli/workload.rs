//! `attach`, `detach`, `workload`.

mod health;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::print::{self, Style, Table};
use super::value::{self, Checked, wrong};
use crate::api::types::{Attached, PassedInfo, Request, TapDevice, WorkloadInfo, WorkloadKind};
use crate::model::error::Code;
use crate::model::id::Name;

/// Where a workload is to be in a subnet.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The subnet; may be left out where this machine has one
    #[arg(long, value_parser = value::subnet)]
    pub(super) subnet: Option<String>,
    /// Name of the workload [default: that of the namespace, container, TAP or program]
    #[arg(long, value_parser = value::name)]
    pub(super) name: Option<Name>,
    /// Address to give it
    #[arg(long, value_parser = value::address, value_name = "ADDRESS")]
    pub(super) ip: Option<IpAddr>,
    /// Hardware address to give it
    #[arg(long, value_parser = value::mac)]
    pub(super) mac: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AttachVerb {
    /// A network namespace
    Netns {
        /// Name under /run/netns, or a path
        #[arg(value_name = "NAME|PATH")]
        target: String,
        #[command(flatten)]
        place: Place,
    },
    /// A running container, followed when it is stopped, started or made anew
    Docker {
        /// Name or ID
        #[arg(value_parser = value::object)]
        container: String,
        #[command(flatten)]
        place: Place,
    },
    /// A running container of Podman, followed in the same way; its service has to run (podman.socket)
    Podman {
        /// Name or ID
        #[arg(value_parser = value::object)]
        container: String,
        #[command(flatten)]
        place: Place,
    },
    /// A TAP device for a virtual machine, which gets its address by DHCP; it is called bwv-NAME
    Tap {
        /// Name of the TAP: 1 to 11 letters, digits, '-', '_' and '.'
        #[arg(value_parser = value::object, value_name = "NAME")]
        tap: String,
        /// Who may open the device beside root, by name or number [default: who asks]
        #[arg(long, value_parser = value::user)]
        user: Option<u32>,
        #[command(flatten)]
        place: Place,
    },
}

/// The engine that is the person's own, and not the daemon's: what the variable names.
fn named(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|host| !host.is_empty())
}

/// Podman's service of the person who asks: each who is not root may have one.
fn own_podman() -> Option<String> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR")?;
    let socket = std::path::Path::new(&dir).join("podman/podman.sock");
    socket
        .exists()
        .then(|| socket.to_str().map(str::to_owned))?
}

impl AttachVerb {
    /// `only` tells this machine's only subnet, where none is named.
    pub(super) fn request(self, only: impl FnOnce() -> Checked<String>) -> Checked<Request> {
        let engine = match &self {
            AttachVerb::Netns { .. } | AttachVerb::Tap { .. } => None,
            AttachVerb::Docker { .. } => named("DOCKER_HOST"),
            AttachVerb::Podman { .. } => named("CONTAINER_HOST").or_else(own_podman),
        };
        let (
            workload,
            Place {
                subnet,
                name,
                ip,
                mac,
            },
        ) = match self {
            AttachVerb::Netns { target, place } => {
                (WorkloadKind::Netns(namespace(&target)?), place)
            }
            AttachVerb::Docker { container, place } => (WorkloadKind::Docker(container), place),
            AttachVerb::Podman { container, place } => (WorkloadKind::Podman(container), place),
            AttachVerb::Tap { tap, user, place } => {
                let device = TapDevice {
                    name: tap,
                    owner: user,
                };
                (WorkloadKind::Tap(device), place)
            }
        };
        let subnet = subnet.map_or_else(only, Ok)?;
        Ok(Request::Attach {
            workload,
            subnet,
            name,
            ip,
            mac,
            engine,
        })
    }
}

/// A name as `ip netns` knows it, or a path made absolute: the daemon works in another directory.
fn namespace(text: &str) -> Checked<String> {
    let bad = |why: &str| {
        wrong(
            Code::Netns,
            format!(
                "{:?} names no network namespace: {why}",
                text.escape_debug().to_string()
            ),
        )
    };
    if text.is_empty() || text.len() > 4096 || text.chars().any(char::is_control) {
        return Err(bad("it is empty, too long or has control characters"));
    }
    if !text.contains('/') {
        return if matches!(text, "." | "..") {
            Err(bad("it is a directory"))
        } else {
            Ok(text.to_owned())
        };
    }
    std::path::absolute(text)
        .map(|p| p.display().to_string())
        .map_err(|e| bad(&e.to_string()))
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Name of the workload
    #[arg(value_parser = value::object)]
    pub(super) workload: String,
    /// Where several subnets have one of that name
    #[arg(long, value_parser = value::subnet)]
    pub(super) subnet: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum WorkloadVerb {
    /// Every workload attached here
    Ls,
    /// Ask a workload whether it is well: unhealthy, its names are withdrawn and its maps let nobody new in
    Health(health::HealthArgs),
    /// One of them
    Show {
        /// Name of the workload
        #[arg(value_parser = value::object)]
        workload: String,
        /// Where several subnets have one of that name
        #[arg(long, value_parser = value::subnet)]
        subnet: Option<String>,
    },
}

impl WorkloadVerb {
    pub(super) fn request(self) -> Checked<Request> {
        Ok(match self {
            WorkloadVerb::Ls => Request::WorkloadLs,
            WorkloadVerb::Health(args) => args.request()?,
            WorkloadVerb::Show { workload, subnet } => Request::WorkloadShow { workload, subnet },
        })
    }
}

/// A path as it is shown; nothing where there is none.
fn path(at: Option<&PathBuf>) -> String {
    at.map_or_else(String::new, |at| at.display().to_string())
}

pub(super) fn attached(a: &Attached) -> String {
    let how = if a.resolver {
        ""
    } else {
        "  (set it in the workload: its resolv.conf is not its own)"
    };
    let dns = if a.dns.is_empty() {
        String::new()
    } else {
        format!("{}{how}", print::addresses(&a.dns))
    };
    let already = if a.already {
        "  (attached already)"
    } else {
        ""
    };
    let interface = if a.down {
        format!(
            "{}, which comes with: byway up {}   (subnet {} is down)",
            a.interface, a.subnet, a.subnet
        )
    } else {
        format!("{}  mtu {}", a.interface, a.mtu)
    };
    format!("workload {}  in {}{already}\n", a.workload, a.subnet)
        + &print::fields(&[
            ("addresses", print::addresses(&a.addresses)),
            ("interface", interface),
            ("mac", a.mac.clone().unwrap_or_default()),
            ("socket", path(a.socket.as_ref())),
            ("resolver", dns),
        ])
}

pub(super) fn list(workloads: &[WorkloadInfo]) -> String {
    let mut table = Table::new(&[
        "WORKLOAD",
        "SUBNET",
        "ADDRESSES",
        "KIND",
        "TARGET",
        "INTERFACE",
        "STATE",
    ]);
    for w in workloads {
        table.row([
            w.workload.to_string(),
            w.subnet.to_string(),
            print::addresses(&w.addresses),
            w.kind.clone(),
            short(&w.target).to_owned(),
            w.interface.clone(),
            w.state.clone(),
        ]);
    }
    table.render()
}

/// An ID of 64 digits as engines show it in tables: the first 12.
fn short(target: &str) -> &str {
    let is_id = target.len() == 64 && target.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id {
        target.get(..12).unwrap_or(target)
    } else {
        target
    }
}

/// What one direction of a link carried.
fn passed(p: &PassedInfo) -> String {
    let bytes = print::bytes(p.bytes);
    let (packets, drops, refused) = (p.packets, p.drops, p.refused);
    format!("{bytes} in {packets} packets, {drops} dropped, {refused} refused")
}

pub(super) fn show(w: &WorkloadInfo, style: Style) -> String {
    format!(
        "workload {}  in {}  {}\n",
        w.workload,
        w.subnet,
        print::clean(&w.state)
    ) + &print::fields(&[
        ("name", w.fqdn.clone()),
        ("addresses", print::addresses(&w.addresses)),
        ("interface", format!("{}  mtu {}", w.interface, w.mtu)),
        (
            "mac",
            w.link.as_ref().map_or_else(String::new, |l| l.mac.clone()),
        ),
        ("socket", path(w.socket.as_ref())),
        ("resolver", print::addresses(&w.dns)),
        (w.kind.as_str(), w.target.clone()),
        ("engine", w.engine.clone().unwrap_or_default()),
        (
            "sent",
            w.traffic.map(|t| passed(&t.sent)).unwrap_or_default(),
        ),
        (
            "received",
            w.traffic.map(|t| passed(&t.received)).unwrap_or_default(),
        ),
        (
            "health",
            w.health
                .as_ref()
                .map(|h| health::text(h, style))
                .unwrap_or_default(),
        ),
    ])
}
