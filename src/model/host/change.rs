//! The single changes that lead from one state of the kernel to another.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{Namespace, Route, Rule, SysctlKey, TunConfig, WorkloadConfig};

/// Attributes of a link to set; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkSet {
    /// The alias, by which a link of ours is known.
    pub alias: Option<String>,
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The length of the transmit queue, in packets.
    pub txqueuelen: Option<u32>,
    /// The largest super-packet the kernel hands over (generic segmentation offload), in bytes.
    pub gso_max_size: Option<u32>,
    /// The hardware address of the link.
    pub mac: Option<[u8; 6]>,
    /// Whether the link is to be set up; `false` leaves it as it is.
    pub up: bool,
}

/// One step towards the desired state. Links are named by the name they should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Change nothing: a link of somebody else has the name we need.
    Conflict {
        /// The namespace that has the foreign link.
        ns: Namespace,
        /// The name that we need.
        link: String,
    },
    /// Open the TUN device and start its packet loops.
    OpenTun(TunConfig),
    /// Close the TUN device: its link, addresses and routes go with it.
    CloseTun {
        /// The name that the link should have had.
        link: String,
        /// The name that the link has now.
        name: String,
    },
    /// Make a veth pair, the far end directly in the workload's namespace.
    CreateVeth(Box<WorkloadConfig>),
    /// Make a TAP that stays without a program that has it open.
    CreateTap(Box<WorkloadConfig>),
    /// Set a TAP down that a guest has open, so that no packet passes. Its routes and neighbours go by that.
    RestLink {
        /// The name that the link should have had.
        link: String,
        /// The name that the link has now.
        name: String,
    },
    /// Delete a link; the far end of a veth pair goes with it.
    DeleteLink {
        /// The name that the link should have had.
        link: String,
        /// The name that the link has now.
        name: String,
    },
    /// Give a link its name back.
    Rename {
        /// The namespace the link is in.
        ns: Namespace,
        /// The name that the link has now.
        from: String,
        /// The name that the link should have.
        to: String,
    },
    /// Set attributes of a link.
    SetLink {
        /// The namespace the link is in.
        ns: Namespace,
        /// Name of the link.
        link: String,
        /// The attributes that change.
        set: LinkSet,
    },
    /// Have a TAP belong to the user it was made for: whoever has it open may give it to another.
    SetOwner {
        /// Name of the link.
        link: String,
        /// The user's number.
        owner: u32,
    },
    /// Add an address as /32 or /128 without a prefix route.
    AddAddress {
        /// The namespace the link is in.
        ns: Namespace,
        /// Name of the link.
        link: String,
        /// The address, of any family.
        address: IpAddr,
    },
    /// Remove an address from a link.
    DelAddress {
        /// The namespace the link is in.
        ns: Namespace,
        /// Name of the link.
        link: String,
        /// The address, of any family.
        address: IpAddr,
    },
    /// Enter a permanent neighbour.
    SetNeighbour {
        /// The namespace the link is in.
        ns: Namespace,
        /// Name of the link.
        link: String,
        /// The IP address of the neighbour.
        address: IpAddr,
        /// The neighbour's hardware address.
        mac: [u8; 6],
    },
    /// Remove a permanent neighbour entry.
    DelNeighbour {
        /// The namespace the link is in.
        ns: Namespace,
        /// Name of the link.
        link: String,
        /// The IP address of the neighbour.
        address: IpAddr,
    },
    /// Add a route, or replace one of ours with the same table and destination.
    SetRoute {
        /// The namespace the route is in.
        ns: Namespace,
        /// The route as it should be.
        route: Route,
        /// Whether one of ours is replaced; otherwise one that exists is somebody else's and stays.
        replace: bool,
    },
    /// Remove a route of ours.
    DelRoute {
        /// The namespace the route is in.
        ns: Namespace,
        /// The route as it was found.
        route: Route,
    },
    /// Add a rule of policy routing.
    AddRule {
        /// The namespace the rule is in.
        ns: Namespace,
        /// The rule as it should be.
        rule: Rule,
    },
    /// Remove a rule of policy routing.
    DelRule {
        /// The namespace the rule is in.
        ns: Namespace,
        /// The rule as it was found.
        rule: Rule,
    },
    /// Write a sysctl, keeping its former value where it outlives our links.
    SetSysctl {
        /// The namespace whose `/proc/sys` is written.
        ns: Namespace,
        /// Path of the sysctl below `/proc/sys`.
        key: SysctlKey,
        /// The value as text, without a newline.
        value: String,
        /// Whether it outlives our links, so that the former value is kept.
        keep: bool,
    },
    /// Put back the former value of a sysctl, if ours still stands.
    RestoreSysctl {
        /// Path of the sysctl below `/proc/sys`.
        key: SysctlKey,
    },
    /// Leave a sysctl as it is for good: somebody else wants what we wanted.
    ForgetSysctl {
        /// Path of the sysctl below `/proc/sys`.
        key: SysctlKey,
    },
    /// Write a resolver file in place.
    WriteResolver {
        /// Path of the file, as the daemon sees it.
        path: PathBuf,
        /// The whole text of the file.
        text: String,
    },
    /// Put back the former content of a resolver file, if ours still stands; remove it if there was none.
    RestoreResolver {
        /// Path of the file, as the daemon sees it.
        path: PathBuf,
    },
}

impl Change {
    /// Whether it only takes something of ours away. What does not is made behind a ruleset that stands, or not at all.
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Change::CloseTun { .. }
                | Change::RestLink { .. }
                | Change::DeleteLink { .. }
                | Change::DelAddress { .. }
                | Change::DelNeighbour { .. }
                | Change::DelRoute { .. }
                | Change::DelRule { .. }
                | Change::RestoreSysctl { .. }
                | Change::ForgetSysctl { .. }
                | Change::RestoreResolver { .. }
        )
    }

    /// The namespace the change is made in.
    pub fn namespace(&self) -> &Namespace {
        match self {
            Change::Conflict { ns, .. }
            | Change::Rename { ns, .. }
            | Change::SetLink { ns, .. }
            | Change::AddAddress { ns, .. }
            | Change::DelAddress { ns, .. }
            | Change::SetNeighbour { ns, .. }
            | Change::DelNeighbour { ns, .. }
            | Change::SetRoute { ns, .. }
            | Change::DelRoute { ns, .. }
            | Change::AddRule { ns, .. }
            | Change::DelRule { ns, .. }
            | Change::SetSysctl { ns, .. } => ns,
            Change::OpenTun(_)
            | Change::CloseTun { .. }
            | Change::CreateVeth(_)
            | Change::CreateTap(_)
            | Change::RestLink { .. }
            | Change::SetOwner { .. }
            | Change::DeleteLink { .. }
            | Change::RestoreSysctl { .. }
            | Change::ForgetSysctl { .. }
            | Change::WriteResolver { .. }
            | Change::RestoreResolver { .. } => &Namespace::Host,
        }
    }
}

/// ` in /run/netns/x`, or nothing for the host.
struct In<'a>(&'a Namespace);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Namespace::Host => Ok(()),
            Namespace::Netns(netns) => write!(f, " in {}", netns.path.display()),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Conflict { ns, link } => write!(f, "make link {link}{}", In(ns)),
            Change::OpenTun(tun) => write!(f, "open TUN {}", tun.name),
            Change::CloseTun { name, .. } => write!(f, "close TUN {name}"),
            Change::CreateVeth(w) => {
                write!(f, "make veth {} for {}", w.host_link, w.name)?;
                match &w.netns {
                    Some(netns) => write!(f, " in {}", netns.path.display()),
                    None => f.write_str(", which its engine moves"),
                }
            }
            Change::CreateTap(w) => write!(f, "make TAP {} for {}", w.host_link, w.name),
            Change::RestLink { name, .. } => write!(f, "set down link {name}"),
            Change::DeleteLink { name, .. } => write!(f, "delete link {name}"),
            Change::Rename { ns, from, to } => {
                write!(f, "rename link {from} to {to}{}", In(ns))
            }
            Change::SetLink { ns, link, .. } => write!(f, "set up link {link}{}", In(ns)),
            Change::SetOwner { link, owner } => write!(f, "give {link} back to user {owner}"),
            Change::AddAddress { ns, link, address } => {
                write!(f, "add address {address} to {link}{}", In(ns))
            }
            Change::DelAddress { ns, link, address } => {
                write!(f, "remove address {address} from {link}{}", In(ns))
            }
            Change::SetNeighbour {
                ns, link, address, ..
            } => {
                write!(f, "enter neighbour {address} on {link}{}", In(ns))
            }
            Change::DelNeighbour { ns, link, address } => {
                write!(f, "remove neighbour {address} from {link}{}", In(ns))
            }
            Change::SetRoute { ns, route, .. } => write!(f, "add route {route}{}", In(ns)),
            Change::DelRoute { ns, route } => write!(f, "remove route {route}{}", In(ns)),
            Change::AddRule { ns, rule } => write!(f, "add rule {rule}{}", In(ns)),
            Change::DelRule { ns, rule } => write!(f, "remove rule {rule}{}", In(ns)),
            Change::SetSysctl { ns, key, value, .. } => {
                write!(f, "set sysctl {key} to {value}{}", In(ns))
            }
            Change::RestoreSysctl { key } => write!(f, "restore sysctl {key}"),
            Change::ForgetSysctl { key } => write!(
                f,
                "leave sysctl {key} to who turned on forwarding of every link"
            ),
            Change::WriteResolver { path, .. } => write!(f, "write resolver {}", path.display()),
            Change::RestoreResolver { path } => write!(f, "restore resolver {}", path.display()),
        }
    }
}
