//! What this node knows of a subnet and tells nobody: its alias, invites it issued, workloads, port maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::chunks::Chunks;
use super::followed::Followed;
use super::health::Health;
use super::host::{HostPolicy, Proto};
use super::id::{Name, PeerId, SubnetId};
use super::import::Import;
use super::join::{Invite, Issued};
use super::policy::Allowed;
use super::ports::{PortRange, packed};
use super::workload::{Companions, Kept, Workload};

/// A port map added here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Name of the map, unique in the subnet on this node.
    pub name: Name,
    /// The transport protocol; a map carries one.
    pub proto: Proto,
    /// The address that the machine listens on.
    pub listen: IpAddr,
    /// The ports that the machine listens on.
    #[serde(with = "packed")]
    pub ports: PortRange,
    /// The target: an address, or a name in the subnet.
    pub target: String,
    /// The port of the target that the first one leads to; those after it lead to those after this.
    pub target_port: u16,
    /// Prefixes of the clients that are let in; an empty list lets everyone in.
    pub allow: Vec<IpNet>,
}

/// Names of what was added and nobody was told "ok" of: the kernel may refuse it, and then it is undone. Where the
/// daemon dies in between, its next start undoes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// Names of such workloads.
    pub workloads: BTreeSet<Name>,
    /// Names of such port maps.
    pub maps: BTreeSet<Name>,
}

impl Local {
    /// The side of a subnet that came here just now.
    pub(super) fn new(genesis: Vec<u8>, alias: Name, interface: String, host: HostPolicy) -> Local {
        Local {
            genesis,
            alias,
            interface,
            up: true,
            hints: vec![],
            reached: BTreeMap::new(),
            invites: vec![],
            reserved: BTreeMap::new(),
            workloads: vec![],
            maps: vec![],
            unconfirmed: Unconfirmed::default(),
            kept: vec![],
            denied: BTreeMap::new(),
            seen: Chunks::default(),
            host,
            declared: false,
            companions: BTreeMap::new(),
            followed: BTreeMap::new(),
            health: BTreeMap::new(),
            imports: BTreeMap::new(),
        }
    }

    /// Drops what was never confirmed: for a start, when nobody waits for it any more.
    pub fn undo_unconfirmed(&mut self) {
        let Unconfirmed { workloads, maps } = std::mem::take(&mut self.unconfirmed);
        self.workloads.retain(|w| !workloads.contains(&w.name));
        self.followed.retain(|name, _| !workloads.contains(name));
        self.health.retain(|name, _| !workloads.contains(name));
        self.maps.retain(|m| !maps.contains(&m.name));
        for with in self.companions.values_mut() {
            with.maps.retain(|name| !maps.contains(name));
        }
    }
}

/// This node's own side of one membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The canonical bytes of the genesis, from which the subnet is read again at the next start.
    pub genesis: Vec<u8>,
    /// Name of the subnet on this machine; the founder may have given it another.
    pub alias: Name,
    /// Name of the TUN that carries its packets.
    pub interface: String,
    /// Whether the subnet is used here; `down` takes it out of use.
    pub up: bool,
    /// Addresses a person gave with `--peer`.
    pub hints: Vec<String>,
    /// Addresses at which members have answered, the newest first.
    pub reached: BTreeMap<PeerId, Vec<String>>,
    /// Invites that this node issued, each with the peers that used it.
    pub invites: Vec<Issued>,
    /// Leases kept for peers that are no members yet (`lease import`).
    pub reserved: BTreeMap<PeerId, Vec<IpNet>>,
    /// Workloads attached to the subnet on this machine.
    pub workloads: Vec<Workload>,
    /// Port maps of this machine into the subnet.
    pub maps: Vec<Map>,
    /// Workloads and maps among these that the kernel has not taken yet.
    pub unconfirmed: Unconfirmed,
    /// Addresses of workloads that are gone, for when they come back; the oldest first.
    pub kept: Vec<Kept>,
    /// Joiners that were denied, each until when (seconds since 1970).
    pub denied: BTreeMap<PeerId, u64>,
    /// Names answered before anybody registered them, with whose they were: two that claim one later change nothing here.
    #[serde(with = "by_name")]
    pub seen: Chunks<Arc<str>, PeerId>,
    /// What of this machine itself the subnet reaches.
    pub host: HostPolicy,
    /// A declaration of the configuration brought it here, and no person: so it goes with its declaration.
    pub declared: bool,
    /// What goes with a workload, by the workload's name.
    pub companions: BTreeMap<Name, Companions>,
    /// What is known of those workloads that keep their place while they are not here.
    pub followed: BTreeMap<Name, Followed>,
    /// Health of those workloads that are asked whether they are well.
    pub health: BTreeMap<Name, Health>,
    /// What files said of workloads to come, by the path of each file.
    pub imports: BTreeMap<String, Import>,
}

/// Addresses that one join tries at most, over all the times it is asked for.
const MAX_HINTS: usize = 32;

impl Local {
    /// Adds addresses where members may be, the newest first; whether one of them is new.
    pub fn add_hints(&mut self, hints: &[String]) -> bool {
        let new: Vec<String> = hints
            .iter()
            .filter(|hint| !self.hints.contains(hint))
            .cloned()
            .collect();
        let changed = !new.is_empty();
        self.hints.splice(..0, new);
        self.hints.truncate(MAX_HINTS);
        changed
    }
}

/// A join that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingJoin {
    /// The subnet that the join asks to enter.
    pub subnet: SubnetId,
    /// The invite that the joiner brings, where it has one.
    pub invite: Option<Invite>,
    /// Addresses of members that a person gave, as multiaddrs.
    pub hints: Vec<String>,
    /// The member name that the join asks for.
    pub name: Name,
    /// Whether another name will do, since no person chose this one.
    pub name_is_default: bool,
    /// Name wanted for the subnet on this machine.
    pub alias: Option<Name>,
    /// The address that the join asks for; none where any will do.
    pub ip: Option<IpAddr>,
    /// What of this machine itself the subnet will reach.
    pub host: HostPolicy,
    /// What the person who joins allows beyond private prefixes and domains.
    pub allow: Allowed,
    /// When the join was first asked for, in seconds since 1970.
    pub since: u64,
    /// What the subnet was founded as, once somebody has told.
    pub founded_as: Option<Name>,
    /// The refusal, where nobody waited to be told of it: it is shown until the join is asked for
    /// again, or left.
    pub refused: Option<NotLetIn>,
    /// See [`Local::declared`].
    pub declared: bool,
}

/// The refusal of a join that went on in the background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotLetIn {
    /// The refusal's code: `E-…`.
    pub code: String,
    /// What was refused and why, as one sentence.
    pub message: String,
    /// What to type next; empty where nothing is known to help.
    pub hint: String,
}

impl PendingJoin {
    /// What the subnet is called here while it waits: as it was typed, else as it was founded.
    pub fn shown(&self) -> Name {
        self.alias
            .clone()
            .or_else(|| self.founded_as.clone())
            .unwrap_or_else(|| Name::from_host("pending"))
    }

    /// Asks for the same subnet again: what the former question had and this one does not name stays. An invite is given up
    /// for another one, or where it has expired; a question by the bare ID says nothing against it.
    #[must_use]
    pub fn continues(mut self, former: &PendingJoin, now: u64) -> PendingJoin {
        self.invite = self
            .invite
            .or_else(|| former.invite.clone().filter(|invite| now < invite.expires));
        self.hints.extend(
            former
                .hints
                .iter()
                .filter(|hint| !self.hints.contains(hint))
                .cloned()
                .collect::<Vec<_>>(),
        );
        self.hints.truncate(MAX_HINTS);
        if self.name_is_default {
            (self.name, self.name_is_default) = (former.name.clone(), former.name_is_default);
        }
        self.alias = self.alias.or_else(|| former.alias.clone());
        self.ip = self.ip.or(former.ip);
        self.allow
            .prefixes
            .extend_from_slice(&former.allow.prefixes);
        self.allow.prefixes.sort();
        self.allow.prefixes.dedup();
        self.allow.domains.extend_from_slice(&former.allow.domains);
        self.allow.domains.sort();
        self.allow.domains.dedup();
        // What a person has asked for is a person's.
        self.declared &= former.declared;
        self.since = former.since;
        self.founded_as = self.founded_as.or_else(|| former.founded_as.clone());
        self
    }
}

/// A subnet that is no more here; saying `leave` or `destroy` again is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerSubnet {
    /// The ID of the subnet that is gone.
    pub id: SubnetId,
    /// The name that the subnet had on this machine.
    pub name: Name,
    /// What ended it, to tell members that were away: the heads of a destroyed one, this node's goodbye after `leave`.
    pub proof: Vec<super::record::Signed>,
    /// The canonical bytes of the genesis, kept with the proof.
    pub genesis: Vec<u8>,
    /// Whether its owner ended it while it was used here: `status` says so until it is left.
    pub untold: bool,
}

impl FormerSubnet {
    /// Whether the owner ended it for everyone: its proof is heads then, and this node's goodbye else.
    pub fn is_destroyed(&self) -> bool {
        use super::record::Body;
        self.proof
            .iter()
            .any(|r| matches!(r.verify(), Ok(Body::Head(head)) if head.destroyed))
    }
}

mod by_name {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::ser::SerializeMap as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{Chunks, PeerId};

    pub(super) fn serialize<S: Serializer>(
        names: &Chunks<Arc<str>, PeerId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        // How many there are stands before them.
        let mut map = to.serialize_map(Some(names.len()))?;
        for (name, by) in names.iter() {
            map.serialize_entry(name.as_ref(), by)?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Chunks<Arc<str>, PeerId>, D::Error> {
        let names = BTreeMap::<String, PeerId>::deserialize(from)?;
        Ok(names
            .into_iter()
            .map(|(name, by)| (name.into(), by))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_join_asked_for_again_keeps_its_invite_until_that_expires() {
        let invite = |secret| Invite {
            subnet: SubnetId([1; 16]),
            issuer: PeerId([2; 32]),
            secret: [secret; 16],
            expires: 100,
            addresses: vec![],
        };
        let by_id = PendingJoin {
            subnet: SubnetId([1; 16]),
            invite: None,
            hints: vec!["/ip4/192.0.2.1/tcp/4100".into()],
            name: Name::from_host("b"),
            name_is_default: true,
            alias: None,
            ip: None,
            host: HostPolicy::default(),
            allow: Allowed::default(),
            since: 50,
            founded_as: None,
            refused: None,
            declared: false,
        };
        assert_eq!(by_id.shown().as_str(), "pending");
        let former = PendingJoin {
            invite: Some(invite(3)),
            hints: vec![],
            name: Name::from_host("printer"),
            name_is_default: false,
            since: 10,
            founded_as: Some(Name::from_host("lab")),
            ..by_id.clone()
        };
        let again = by_id.clone().continues(&former, 99);
        assert_eq!(
            (again.invite.clone(), again.hints.clone(), again.since),
            (former.invite.clone(), by_id.hints.clone(), 10)
        );
        assert_eq!(
            (again.name.as_str(), again.shown().as_str()),
            ("printer", "lab")
        );
        assert_eq!(
            by_id.clone().continues(&former, 100).invite,
            None,
            "what has expired lets nobody in"
        );
        let other = PendingJoin {
            invite: Some(invite(4)),
            alias: Some(Name::from_host("x")),
            ..by_id
        };
        assert_eq!(
            other.clone().continues(&former, 50).invite,
            other.invite,
            "another invite takes its place"
        );
        assert_eq!(other.clone().continues(&former, 50).shown().as_str(), "x");
        let declared = PendingJoin {
            declared: true,
            ..other.clone()
        };
        assert!(!declared.clone().continues(&other, 50).declared);
        assert!(!other.continues(&declared, 50).declared);
        assert!(declared.clone().continues(&declared, 50).declared);
    }

    #[test]
    fn names_that_were_answered_are_read_as_they_were_written() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Kept(#[serde(with = "by_name")] Chunks<Arc<str>, PeerId>);
        for count in [0, 1, 200] {
            let name = |n: u8| (Arc::from(format!("n{n}")), PeerId([n; 32]));
            let kept = Kept((0..count).map(name).collect());
            let written = crate::model::record::encode(&kept);
            assert_eq!(codec::decode_front::<Kept>(&written).unwrap(), kept);
        }
    }
}
