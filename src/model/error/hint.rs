//! What may be tried after an error: a value, for the core has nobody's words for it.

use ipnet::{IpNet, Ipv4Net};

use crate::model::id::{Name, SubnetId};

/// What may be tried next, with what it takes. Whoever talks to people puts it into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The ID has to be typed in part or whole, as it is shown.
    TypeMore,
    /// Another invite has to be made by who may.
    NewInvite,
    /// The invites issued here.
    ListInvites,
    /// The subnets of this machine.
    ListSubnets,
    /// What there is in a subnet.
    ShowSubnet(Name),
    /// Another subnet here has what this one would need.
    ShowRival(Name),
    /// A subnet here has that name.
    ShowNamesake(Name),
    /// A route of this machine has what a subnet would need.
    ShowRoute(IpNet),
    /// A pool of IPv4 has to be named.
    FoundWithPool4,
    /// The pool has no more blocks.
    FoundLarger,
    /// Another pool of IPv4 is free.
    FoundWithFree4 {
        /// What it is to be called.
        name: Name,
        /// The pool.
        free: Ipv4Net,
    },
    /// Another pool of IPv6 is free.
    FoundWithAny6(Name),
    /// The membership has ended and can be asked for.
    Join(SubnetId),
    /// The subnet needs another name on this machine.
    JoinAs(String),
    /// The member needs another name.
    JoinNamed(SubnetId),
    /// What the founder chose has to be allowed.
    JoinAllowing {
        /// `INVITE`, or the subnet's ID.
        target: String,
        /// What is allowed.
        flags: String,
    },
    /// Nobody may have such a subnet.
    AskInviter,
    /// The subnet's prefix is in the way.
    AskForPrefix,
    /// The subnet's prefix is in the way, whatever is allowed.
    AskForPrefixAnyway,
    /// The address is in the owner's part of the pool.
    AskForAddress,
    /// The clock of this machine is wrong.
    SetClock,
    /// The clock of this machine is wrong, or was when it joined.
    SetClockAndJoin,
    /// The members of a subnet.
    ListMembers(Name),
    /// Who asks to be let in.
    ListRequests(Name),
    /// The owner has to make this node an admin.
    MakeAdmin(Name),
    /// Who removed a peer lets it in again.
    ApproveThere {
        /// The subnet.
        subnet: Name,
        /// The beginning of the joiner's ID.
        joiner: String,
        /// Name of who removed it.
        by: String,
    },
    /// The owner ends a subnet whole.
    Destroy(Name),
    /// A member goes by itself.
    Leave(Name),
    /// Who holds which prefix.
    ListLeases(Name),
    /// This node needs another lease.
    AddLease,
    /// The workloads of this machine.
    ListWorkloads,
    /// Several subnets have a workload of that name.
    ListWorkloadsThenName,
    /// The workload needs another name.
    AttachNamed {
        /// What it is.
        kind: String,
        /// What the person called it.
        target: String,
        /// The subnet.
        subnet: Name,
    },
    /// Another workload has it.
    Detach {
        /// The other one.
        workload: Name,
        /// Its subnet.
        subnet: Name,
    },
    /// The names of a subnet.
    ListNames(Name),
    /// An admin frees a name that several claim.
    ReleaseName {
        /// The subnet.
        subnet: Name,
        /// The name.
        name: String,
    },
    /// The port maps of this machine.
    ListMaps,
    /// The peers that are known.
    ListPeers,
}
