//! The immutable result of [`State`](super::state::State) that everyone reads: routes, filter, zones, and what the
//! kernel must match.
//!
//! Published whole through one atomic pointer; never edited in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use super::build::Built;
use super::host::HostConfig;
use super::id::{Name, PeerId, SubnetId};
use super::record::Digest;
use super::routes::{Owner, RouteTable};
use super::zone::Zone;
use crate::packet::DropReason;

/// Where a packet from the TUN goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// A lease of this node: the kernel knows every attached address, so nothing lives there now.
    Local,
    /// The link to this member takes it.
    Peer(PeerId),
}

/// One subnet as the packet loops, DNS and the kernel see it.
#[derive(Debug, Clone)]
pub struct SubnetView {
    /// The ID of the subnet.
    pub id: SubnetId,
    /// Name of the subnet on this machine.
    pub name: Name,
    /// The TUN on this machine, `bw-NAME`.
    pub interface: String,
    /// The IPv4 pool, where the subnet has one.
    pub cidr4: Option<Ipv4Net>,
    /// The IPv6 pool, where the subnet has one.
    pub cidr6: Option<Ipv6Net>,
    /// This node's own addresses in the subnet; port 53 is answered there.
    pub addresses: Vec<IpAddr>,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// The table that says who holds a prefix.
    pub routes: Arc<RouteTable>,
    /// Addresses of this node and of what is attached to it: of its own leases nothing else is there.
    pub here: BTreeSet<IpAddr>,
    /// Members with a valid grant, this node not among them.
    pub members: Arc<BTreeSet<PeerId>>,
    /// Addresses of their machines, as opposed to their workloads'.
    pub hosts: Arc<BTreeSet<IpAddr>>,
    /// Their X25519 keys for sessions, certified by the grants.
    pub data_keys: Arc<BTreeMap<PeerId, [u8; 32]>>,
    /// The names of the subnet, as DNS answers them.
    pub zone: Arc<Zone>,
}

impl SubnetView {
    /// Decides an outbound packet (TUN to peer): our source may send it, longest prefix wins.
    ///
    /// # Errors
    /// [`DropReason::SourceNotLeased`] where the source is not ours, [`DropReason::NoRoute`] where nobody holds the
    /// destination.
    pub fn route(&self, source: IpAddr, destination: IpAddr) -> Result<Hop, DropReason> {
        match self.routes.lookup(source) {
            Some(Owner::Local) => {}
            _ => return Err(DropReason::SourceNotLeased),
        }
        match self.routes.lookup(destination) {
            Some(Owner::Local) => Ok(Hop::Local),
            Some(Owner::Member(peer)) => Ok(Hop::Peer(peer)),
            None => Err(DropReason::NoRoute),
        }
    }

    /// Decides an inbound packet (peer to TUN): the source must be leased to the sender, the destination here. With
    /// [`DropReason::NoRoute`] the sender may be told so: the packet is its own.
    ///
    /// # Errors
    /// [`DropReason::SourceNotLeased`], [`DropReason::NotMember`] or [`DropReason::NoRoute`].
    pub fn admit(
        &self,
        from: PeerId,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(), DropReason> {
        if !self.members.contains(&from) {
            return Err(DropReason::NotMember);
        }
        if self.routes.lookup(source) != Some(Owner::Member(from)) {
            return Err(DropReason::SourceNotLeased);
        }
        if self.here.contains(&destination) {
            Ok(())
        } else {
            Err(DropReason::NoRoute)
        }
    }
}

/// What everyone reads: one immutable picture of all subnets, numbered.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Grows with every published view, by one or more.
    pub generation: u64,
    /// Subnets that are up, by ID: equal prefixes in two of them never mix.
    pub subnets: BTreeMap<SubnetId, Arc<SubnetView>>,
    /// Per subnet, up or not, who may speak control with this node: who holds a grant that is not revoked, whatever its
    /// addresses and whatever the time.
    pub rolls: BTreeMap<SubnetId, Arc<BTreeSet<PeerId>>>,
    /// Per subnet, the digest of the grant by which each member is in, this node among them:
    /// [`neighbours`](super::neighbours) are chosen by it.
    pub grants: BTreeMap<SubnetId, Arc<BTreeMap<PeerId, Digest>>>,
    /// The next moment (seconds since 1970) at which it changes by itself.
    pub changes_at: Option<u64>,
    /// What the kernel must match while this view holds.
    pub host: Arc<HostConfig>,
    /// What each subnet's part was made of: the next view shares what did not change.
    pub built: BTreeMap<SubnetId, Built>,
}

impl View {
    /// Peers in some roll: who may speak more than the join protocol.
    pub fn members(&self) -> BTreeSet<PeerId> {
        self.rolls
            .values()
            .flat_map(|roll| roll.iter())
            .copied()
            .collect()
    }

    /// Whether a peer is in a subnet's roll.
    pub fn in_roll(&self, subnet: SubnetId, peer: PeerId) -> bool {
        self.rolls
            .get(&subnet)
            .is_some_and(|roll| roll.contains(&peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_with_a_lease_are_admitted_to_what_is_here() {
        let (friend, stranger) = (PeerId([1; 32]), PeerId([2; 32]));
        let held = [
            ("10.0.1.0/24", Owner::Local),
            ("10.0.2.0/24", Owner::Member(friend)),
        ];
        let routes: RouteTable = held
            .iter()
            .map(|(prefix, owner)| (prefix.parse().unwrap(), *owner))
            .collect();
        let name: Name = "lab".parse().unwrap();
        let view = SubnetView {
            id: SubnetId([0; 16]),
            interface: "bw-lab".into(),
            cidr4: None,
            cidr6: None,
            addresses: vec![],
            mtu: 1420,
            routes: routes.into(),
            here: BTreeSet::from(["10.0.1.7".parse().unwrap()]),
            members: BTreeSet::from([friend]).into(),
            hosts: Default::default(),
            data_keys: Default::default(),
            zone: Arc::new(Zone::empty(&name)),
            name,
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(view.admit(friend, ip("10.0.2.7"), ip("10.0.1.7")), Ok(()));
        assert_eq!(
            view.admit(friend, ip("10.0.1.8"), ip("10.0.1.7")),
            Err(DropReason::SourceNotLeased)
        );
        for nowhere in ["10.0.3.7", "10.0.1.9"] {
            assert_eq!(
                view.admit(friend, ip("10.0.2.7"), ip(nowhere)),
                Err(DropReason::NoRoute)
            );
        }
        assert_eq!(
            view.admit(stranger, ip("10.0.2.7"), ip("10.0.1.7")),
            Err(DropReason::NotMember)
        );
        assert_eq!(
            view.route(ip("10.0.1.7"), ip("10.0.2.7")),
            Ok(Hop::Peer(friend))
        );
        assert_eq!(
            view.route(ip("10.0.2.7"), ip("10.0.2.8")),
            Err(DropReason::SourceNotLeased)
        );
    }
}
