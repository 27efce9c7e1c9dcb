//! What `status` tells of this node's memberships: the facts, before anybody looks at the kernel, the peers and the links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Core, Node, Silent};
use crate::api::types::{Carriers, Error, MapInfo, Path, PeerStatus, Problem, SubnetStatus};
use crate::model::build::MTU;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::local::PendingJoin;
use crate::model::members::Subnet;
use crate::model::resolve::{Member, Resolved};
use crate::model::state::Damage;

/// How long something which is over is still told, in seconds.
const TOLD_FOR: u64 = 86_400;

/// The memberships that were asked for, and what of the others a person has to know.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The subnet that was asked for; none where all were.
    pub only: Option<SubnetId>,
    /// The memberships, by the subnets' IDs.
    pub subnets: Vec<SubnetOverview>,
    /// Their port maps, without counters.
    pub maps: Vec<MapInfo>,
    /// Names that several members claim and nobody has registered: the subnet, the name, and who claims it.
    pub contested: Vec<(Name, String, Vec<String>)>,
    /// What was left out of the saved state.
    pub damage: Vec<Damage>,
    /// Joiners that wait to be let in, by the subnet's name, of every subnet.
    pub asking: Vec<(Name, Vec<Name>)>,
    /// Identities that run on two machines.
    pub twice: Vec<Twice>,
    /// Subnets whose owner ended them while they were used here; none where one subnet was asked for.
    pub ended: Vec<(Name, SubnetId)>,
    /// Joins of this node's own that were refused.
    pub refused: Vec<PendingJoin>,
    /// Engines that do not answer while workloads depend on them.
    pub silent: Vec<Silent>,
    /// What engines and containers asked for and did not get.
    pub told: Vec<Problem>,
}

/// A membership as `status` shows it.
#[derive(Debug, Clone)]
pub struct SubnetOverview {
    /// The membership as it is shown, without its peers.
    pub status: SubnetStatus,
    /// The other members, by name, each as one that nothing was heard of.
    pub peers: Vec<(PeerId, PeerStatus)>,
    /// What the subnet was founded as: its name on other machines.
    pub named: Name,
    /// Whether its owner ended it.
    pub ended: bool,
    /// This node as a member of it; none while it is no member.
    pub mine: Option<Arc<Member>>,
    /// Whether its owner signed one number twice, and that was seen lately.
    pub forked: bool,
    /// How many invites it has cost, lately, that others knew what this node has signed and did not
    /// know.
    pub restored: Option<usize>,
}

/// An identity that runs on two machines, as far as this node has heard both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twice {
    /// The peer whose identity it is.
    pub peer: PeerId,
    /// The member's name, or the beginning of its ID; none where it is this node's own identity.
    pub name: Option<String>,
    /// The multiaddrs at which each of the two can be dialled.
    pub places: Vec<Vec<String>>,
}

impl Node {
    /// What `status` tells of one subnet, or of all.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-AMBIGUOUS`; `E-STOPPING` when the node is gone.
    pub async fn overview(&self, only: Option<String>) -> Result<Overview, Error> {
        self.read(move |core| core.overview(only.as_deref()))
            .await?
    }
}

impl Core {
    fn overview(&self, only: Option<&str>) -> Result<Overview, Error> {
        let only = only
            .map(|text| self.state.find_joined_or_waiting(text))
            .transpose()?;
        let maps = match only {
            Some(id) if !self.state.subnets.contains_key(&id) => vec![],
            only => self.maps(only.map(|id| id.to_string()).as_deref())?,
        };
        let asked = |id: SubnetId| only.is_none_or(|only| only == id);
        let now = self.now();
        let (mut subnets, mut contested) = (Vec::new(), Vec::new());
        for subnet in self.state.subnets.values().filter(|s| asked(s.records.id)) {
            let resolved = subnet.resolve(now);
            contested.extend(subnet.contested_names(&self.state.me, &resolved));
            subnets.push(self.subnet_overview(subnet, &resolved, now));
        }
        let asking = |subnet: &Subnet| {
            let resolved = subnet.resolve(now);
            let names: Vec<Name> = subnet
                .open_requests(&resolved)
                .map(|(_, r)| r.ask.name.clone())
                .collect();
            (!names.is_empty()).then(|| (subnet.name().clone(), names))
        };
        let ended = self
            .state
            .past
            .iter()
            .filter(|p| p.untold && only.is_none());
        let refused = self
            .state
            .joins
            .values()
            .filter(|join| asked(join.subnet) && join.refused.is_some());
        Ok(Overview {
            only,
            subnets,
            maps,
            contested,
            damage: self.damage.clone(),
            asking: self.state.subnets.values().filter_map(asking).collect(),
            twice: self.twice(now),
            ended: ended.map(|p| (p.name.clone(), p.id)).collect(),
            refused: refused.cloned().collect(),
            silent: self.silent_now(),
            told: self.told_now(only),
        })
    }

    fn subnet_overview(&self, subnet: &Subnet, resolved: &Resolved, now: u64) -> SubnetOverview {
        let id = subnet.records.id;
        let mine = resolved.members.get(&self.state.me.peer);
        let lately = |at: u64| now.abs_diff(at) < TOLD_FOR;
        let others = resolved
            .members
            .iter()
            .filter(|(peer, _)| **peer != self.state.me.peer);
        let mut peers: Vec<(PeerId, PeerStatus)> = others
            .map(|(peer, member)| (*peer, unheard(*peer, member)))
            .collect();
        peers.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let status = SubnetStatus {
            id,
            name: subnet.name().clone(),
            state: self.subnet_state(subnet, resolved),
            member: mine.map_or_else(|| self.node_name.clone(), |m| m.name.clone()),
            addresses: mine.map(|m| m.addresses.clone()).unwrap_or_default(),
            interface: self.interface(subnet, resolved),
            mtu: MTU,
            members: resolved.members.len(),
            peers: vec![],
            workloads: self.workloads(Some(subnet)),
            drops: BTreeMap::new(),
            waiting: None,
        };
        SubnetOverview {
            status,
            peers,
            named: subnet.records.genesis.name.clone(),
            ended: resolved.destroyed,
            mine: mine.cloned(),
            forked: self.forks.get(&id).is_some_and(|at| lately(*at)),
            restored: self
                .restored
                .get(&id)
                .filter(|(at, _)| lately(*at))
                .map(|(_, invites)| *invites),
        }
    }

    fn twice(&self, now: u64) -> Vec<Twice> {
        let me = self.state.me.peer;
        // In several subnets it is one finding.
        let mut told = BTreeSet::new();
        let mut all = Vec::new();
        for ((id, peer), lives) in self.lives.twice(now) {
            let Some(subnet) = self.state.subnets.get(&id).filter(|_| told.insert(peer)) else {
                continue;
            };
            let resolved = subnet.resolve(now);
            let name = || {
                resolved
                    .members
                    .get(&peer)
                    .map_or_else(|| peer.short(), |m| m.name.to_string())
            };
            let places = lives.into_iter().map(<[String]>::to_vec).collect();
            all.push(Twice {
                peer,
                name: (peer != me).then(name),
                places,
            });
        }
        all
    }
}

/// A member of which nothing is known but what the records say.
fn unheard(peer: PeerId, member: &Member) -> PeerStatus {
    let nowhere = Path {
        kind: "offline".into(),
        ..Path::default()
    };
    PeerStatus {
        peer_id: peer,
        name: member.name.clone(),
        addresses: member.addresses.clone(),
        path: nowhere,
        rtt_ms: None,
        loss: None,
        mtu: MTU,
        tx_bytes: 0,
        rx_bytes: 0,
        carriers: Carriers::default(),
        session: None,
        tried: vec![],
        changes: vec![],
        workloads: member
            .workloads
            .iter()
            .map(|(name, _)| name.clone())
            .collect(),
    }
}
