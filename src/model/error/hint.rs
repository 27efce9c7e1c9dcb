//! What may be tried after an error: a value, for the core has nobody's words for it.

use ipnet::{IpNet, Ipv4Net};

use crate::model::id::{Name, SubnetId};

/// What may be tried next, with what it takes. Whoever talks to people puts it into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The ID has to be typed in part or whole, as it is shown.
    TypeMore,
    /// Another invite has to be made, by a member that may make one.
    NewInvite,
    /// The invites issued here have to be looked through.
    ListInvites,
    /// The subnets of this machine have to be looked through.
    ListSubnets,
    /// A subnet has to be created, or joined, first.
    Found,
    /// The subnet's own page shows what it has.
    ShowSubnet(Name),
    /// Another subnet here has what this one would need; its page shows what.
    ShowRival(Name),
    /// A subnet here has that name already.
    ShowNamesake(Name),
    /// A route of this machine has what a subnet would need.
    ShowRoute(IpNet),
    /// A pool of IPv4 has to be named.
    FoundWithPool4,
    /// The pool has no more blocks: a larger pool or smaller blocks are needed.
    FoundLarger,
    /// Another pool of IPv4 is free.
    FoundWithFree4 {
        /// The name the subnet is to have.
        name: Name,
        /// A pool that overlaps nothing this machine knows.
        free: Ipv4Net,
    },
    /// Another pool of IPv6 is free.
    FoundWithAny6(Name),
    /// The membership has ended and can be asked for.
    Join(SubnetId),
    /// The subnet needs another name on this machine.
    JoinAs(String),
    /// The member needs another name in this subnet.
    JoinNamed(SubnetId),
    /// What the founder chose has to be allowed.
    JoinAllowing {
        /// The word that was typed to join: `INVITE`, or the subnet's ID.
        target: String,
        /// The flags that allow it, as they are typed.
        flags: String,
    },
    /// No option allows such a subnet; only who sent the invite can help.
    AskInviter,
    /// The subnet's prefix is in the way here.
    AskForPrefix,
    /// The subnet's prefix is in the way, whatever is allowed.
    AskForPrefixAnyway,
    /// The address is in the owner's part of the pool.
    AskForAddress,
    /// The clock of this machine is wrong.
    SetClock,
    /// The clock of this machine is wrong, or was when it joined.
    SetClockAndJoin,
    /// The members of this subnet have to be looked through.
    ListMembers(Name),
    /// The requests of this subnet show who asks to be let in.
    ListRequests(Name),
    /// The owner has to make this node an admin.
    MakeAdmin(Name),
    /// The member that removed a peer has to let it in again.
    ApproveThere {
        /// The subnet the peer was removed from.
        subnet: Name,
        /// The beginning of the joiner's ID.
        joiner: String,
        /// Name of the member that removed it.
        by: String,
    },
    /// The owner cannot be removed; it can end the subnet for everyone.
    Destroy(Name),
    /// A member does not remove itself: it leaves.
    Leave(Name),
    /// The leases of this subnet show who holds which prefix.
    ListLeases(Name),
    /// This node needs another lease to have a free address.
    AddLease,
    /// The workloads of this machine have to be looked through.
    ListWorkloads,
    /// Several subnets have a workload of that name.
    ListWorkloadsThenName,
    /// A user has as many workloads as it may: one has to end, or the number has to grow.
    EndWorkload,
    /// The workload needs another name than the one it would get.
    AttachNamed {
        /// The word before the target: how the workload is told, as `attach` takes it.
        kind: String,
        /// The target as the person typed it.
        target: String,
        /// The subnet it is attached to.
        subnet: Name,
    },
    /// Another workload has what this one needs, and can be detached.
    Detach {
        /// The workload that is in the way.
        workload: Name,
        /// The subnet of that workload.
        subnet: Name,
    },
    /// The names of this subnet have to be looked through.
    ListNames(Name),
    /// An admin frees a name that several claim.
    ReleaseName {
        /// The subnet whose zone has the name.
        subnet: Name,
        /// The name that several members claim.
        name: String,
    },
    /// The port maps of this machine have to be looked through.
    ListMaps,
    /// A map of more ports has the one that is meant, and goes whole.
    RemoveMap {
        /// The subnet of the map.
        subnet: Name,
        /// The map.
        map: Name,
    },
    /// The peers that are known have to be looked through.
    ListPeers,
}
