//! What this node knows of a subnet and tells nobody: its alias, invites it issued, workloads, port maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::chunks::Chunks;
use super::error::{Code, Error, Kind, Result};
use super::followed::Followed;
use super::host::{HostPolicy, NetnsRef, Proto, ResolvConf, is_link_name};
use super::id::{Name, PeerId, SubnetId};
use super::join::{Invite, Issued};
use super::members::printable;
use super::policy::Allowed;
use super::ports::{PortRange, packed};

/// How a workload was found, for people and for finding it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A network namespace, by its name or path.
    Netns(String),
    /// A container of the Docker engine: its name and full ID.
    Docker {
        /// The container's name as the engine shows it.
        name: String,
        /// The container's full ID, 64 hex digits.
        id: String,
    },
    /// A container as an engine tells of it, which may have several workloads: one for each of its interfaces.
    Engine {
        /// The engine that told of it: `cni`, `netavark` and others.
        engine: Name,
        /// The engine's ID of the container.
        container: String,
    },
}

/// Longest ID of a container that is taken, in bytes.
const MAX_CONTAINER: usize = 255;

impl Target {
    /// A container of an engine, and the name of its interface looked at.
    ///
    /// # Errors
    /// `E-CONTAINER` where that is no ID of a container, `E-INTERFACE` where a link cannot be called that.
    pub fn of_engine(engine: Name, container: String, interface: &str) -> Result<Target> {
        let wrong = |code, message: String| Err(Error::new(Kind::Usage, code, message));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=MAX_CONTAINER).contains(&container.len()) || !container.bytes().all(plain) {
            let what = "1 to 255 letters, digits, '-', '_' and '.'";
            return wrong(
                Code::Container,
                format!("{} is no ID of a container: {what}", printable(&container)),
            );
        }
        // Every namespace has its loopback, and the kernel keeps the last two for its switches of all links.
        let kept = matches!(interface, "." | ".." | "lo" | "all" | "default");
        if !is_link_name(interface) || kept {
            let what = "1 to 15 letters, digits, '-', '_' and '.', and not lo, all or default";
            return wrong(
                Code::Interface,
                format!(
                    "{} is no name of an interface: {what}",
                    printable(interface)
                ),
            );
        }
        Ok(Target::Engine { engine, container })
    }

    /// Whether its engine moves the workload's link into the container's namespace by itself, and names it.
    pub fn moves_links(&self) -> bool {
        matches!(self, Target::Engine { engine, .. } if engine.as_str() == DOCKER)
    }

    /// `netns`, `docker`, or what the engine calls itself.
    pub fn kind(&self) -> &str {
        match self {
            Target::Netns(_) => "netns",
            Target::Docker { .. } => "docker",
            Target::Engine { engine, .. } => engine.as_str(),
        }
    }

    /// The engine's ID of the container, where it is one.
    pub fn container(&self) -> Option<&str> {
        match self {
            Target::Netns(_) => None,
            Target::Docker { id, .. } => Some(id),
            Target::Engine { container, .. } => Some(container),
        }
    }

    /// The text that people know it by: the namespace as it was given, the container's name, or its
    /// engine's ID of it.
    pub fn text(&self) -> &str {
        match self {
            Target::Netns(spec) => spec,
            Target::Docker { name, .. } => name,
            Target::Engine { container, .. } => container,
        }
    }
}

/// The engine that moves links into its containers by itself: Docker, by its network driver.
pub const DOCKER: &str = "docker";

/// Name of a workload's end of its pair while that waits for the engine.
pub fn stage_link(host_link: &str) -> String {
    format!("bwi{}", host_link.strip_prefix("bwv").unwrap_or(host_link))
}

/// A workload attached here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name of the workload, unique in the subnet on this node.
    pub name: Name,
    /// The namespace or container that was attached.
    pub target: Target,
    /// Its namespace; none while the engine has not made one. Such a workload has its lease and its names, and nothing in
    /// the kernel: what is sent to it is answered as unreachable.
    #[serde(with = "placed")]
    pub netns: Option<NetnsRef>,
    /// Name of the host end of its veth pair.
    pub host_link: String,
    /// Name of the interface in its namespace. With the container ([`Target::container`]) it says
    /// which attachment this is.
    pub inner_link: String,
    /// Its addresses, inside this node's leases.
    pub addresses: Vec<IpAddr>,
    /// The file that names its resolver.
    pub resolv_conf: ResolvConf,
    /// The hardware address that was asked for; none where it follows from the name.
    pub mac: Option<[u8; 6]>,
    /// When it was attached (seconds since 1970).
    pub since: u64,
}

impl Workload {
    /// Whether both are the same interface of the same container of one engine.
    pub fn is_same_attachment(&self, target: &Target, interface: &str) -> bool {
        matches!(target, Target::Engine { .. })
            && self.target == *target
            && self.inner_link == interface
    }

    /// Whether its link waits in this machine's namespace for the engine, which moves it into the container's by itself.
    pub fn is_staged(&self) -> bool {
        self.netns.is_none()
            && self.target.moves_links()
            && self.inner_link == stage_link(&self.host_link)
    }

    /// Whether it lives in that namespace.
    pub fn is_in(&self, netns: &NetnsRef) -> bool {
        self.netns.as_ref().is_some_and(|own| own.is_same(netns))
    }
}

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

/// What came with a workload and goes with it, whichever way that ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companions {
    /// What the workload's engine calls the network that it attached the workload by.
    pub network: Option<String>,
    /// Names of port maps that lead to the workload.
    pub maps: BTreeSet<Name>,
    /// Further names of the workload, each with the addresses that this node says of it.
    pub aliases: BTreeMap<String, Vec<IpAddr>>,
}

/// Addresses that belong to the name of a workload that is not attached now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Name of the workload that is gone.
    pub name: Name,
    /// The addresses it had, and gets again.
    pub addresses: Vec<IpAddr>,
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
        }
    }

    /// Drops what was never confirmed: for a start, when nobody waits for it any more.
    pub fn undo_unconfirmed(&mut self) {
        let Unconfirmed { workloads, maps } = std::mem::take(&mut self.unconfirmed);
        self.workloads.retain(|w| !workloads.contains(&w.name));
        self.followed.retain(|name, _| !workloads.contains(name));
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

/// A workload's namespace on disk: where there is none its path is empty, which is no namespace's. So what was written when
/// each had one is read as it is.
mod placed {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::NetnsRef;

    pub(super) fn serialize<S: Serializer>(
        netns: &Option<NetnsRef>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let none = NetnsRef {
            path: "".into(),
            device: 0,
            inode: 0,
            cookie: None,
        };
        netns.as_ref().unwrap_or(&none).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<NetnsRef>, D::Error> {
        let netns = NetnsRef::deserialize(from)?;
        Ok(Some(netns).filter(|netns| !netns.path.as_os_str().is_empty()))
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

    /// A workload as version 1 wrote it, before one could be without a namespace.
    #[derive(Serialize)]
    struct Former {
        name: Name,
        target: Target,
        netns: NetnsRef,
        host_link: String,
        inner_link: String,
        addresses: Vec<IpAddr>,
        resolv_conf: ResolvConf,
        mac: Option<[u8; 6]>,
        since: u64,
    }

    #[test]
    fn a_workload_is_read_as_it_was_written_with_a_namespace_or_without() {
        let netns = NetnsRef {
            path: "/run/netns/db".into(),
            device: 4,
            inode: 5,
            cookie: Some(6),
        };
        let target = Target::Docker {
            name: "db".into(),
            id: "0123456789abcdef".repeat(4),
        };
        let former = Former {
            name: Name::from_host("db"),
            target: target.clone(),
            netns: netns.clone(),
            host_link: "bwv0".into(),
            inner_link: "byway0".into(),
            addresses: vec!["10.77.1.2".parse().unwrap()],
            resolv_conf: ResolvConf::None,
            mac: None,
            since: 7,
        };
        let bytes = crate::model::record::encode(&former);
        let read: Workload = codec::decode_front(&bytes).unwrap();
        assert_eq!(
            (&read.netns, read.target.container(), read.since),
            (&Some(netns), target.container(), 7)
        );
        assert_eq!(
            crate::model::record::encode(&read),
            bytes,
            "and written as it was"
        );
        let engine = Target::of_engine(Name::from_host("cni"), "0f".repeat(32), "eth0").unwrap();
        let apart = Workload {
            target: engine,
            netns: None,
            inner_link: "eth0".into(),
            ..read
        };
        assert_eq!(
            codec::decode_front::<Workload>(&crate::model::record::encode(&apart)).unwrap(),
            apart
        );
    }

    #[test]
    fn what_an_engine_calls_a_container_and_an_interface_is_looked_at() {
        let of = |container: &str, interface| {
            Target::of_engine(Name::from_host("cni"), container.to_owned(), interface)
                .map(drop)
                .map_err(|e| e.code)
        };
        assert_eq!(
            [of("web_1.a-b", "eth0"), of(&"f".repeat(255), "bw-lab.100")],
            [Ok(()), Ok(())]
        );
        for container in ["", "a/b", "a b", "a\n", &"f".repeat(256)] {
            assert_eq!(of(container, "eth0"), Err(Code::Container), "{container:?}");
        }
        let kept = [".", "..", "lo", "all", "default"];
        let wrong = ["", "eth 0", "eth/0", "eth*", "eth%d", "sixteen-bytes-00"];
        for interface in kept.into_iter().chain(wrong) {
            assert_eq!(of("web", interface), Err(Code::Interface), "{interface:?}");
        }
    }
}
