//! What others learn of the node without changing it, each as one call: answered also while something is being saved.
//!
//! Every call fails with `E-STOPPING` when the node is gone. Further errors are those of the [`Core`] method of the same
//! name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Core, NewMap, Node, Pursued};
use crate::api::types::{
    DnsInfo, Error, HostInfo, ImportInfo, InviteInfo, JoinRequestInfo, LeaseInfo, MapInfo,
    MemberInfo, SubnetInfo, SubnetState, WorkloadInfo,
};
use crate::model::error::Code;
use crate::model::find::{ambiguous, peer_prefixes};
use crate::model::host::{NetnsRef, Proto};
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::local::FormerSubnet;
use crate::model::members::{Subnet, holds_address};
use crate::model::policy::Terms;
use crate::model::ports::PortRange;
use crate::model::resolve::Resolved;
use crate::model::workload::{Target, Workload};

/// A membership as it is: what is held of the subnet, and what follows from that now.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The shared records and this node's own side. A copy shares what is large with the node's.
    pub subnet: Subnet,
    /// The members and names that follow from it.
    pub resolved: Arc<Resolved>,
}

/// The peer that a target means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPeer {
    /// The peer's key.
    pub peer: PeerId,
    /// A subnet that knows it: one that is up, where there is one.
    pub subnet: SubnetId,
    /// The peer's address there, or that of its workload.
    pub address: Option<IpAddr>,
}

/// A name of a member, and what its subnet was founded as: its name on other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// Name of the member in the subnet.
    pub member: Name,
    /// Name that the founder gave the subnet.
    pub subnet: Name,
}

/// What somebody is about to take on this machine.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The name in the subnet that is wanted.
    pub name: String,
    /// The address that is wanted.
    pub ip: Option<IpAddr>,
    /// The namespace that is to be attached.
    pub netns: Option<NetnsRef>,
    /// The container and its interface that are to be attached.
    pub interface: Option<(Target, String)>,
}

/// Where peers may be dialled, by what is held of them: multiaddrs as they were said.
#[derive(Debug, Clone, Default)]
pub struct Whereabouts {
    /// Where each member says in its announcement that it can be dialled.
    pub said: BTreeMap<PeerId, Vec<String>>,
    /// Where each has answered before, the newest first.
    pub reached: BTreeMap<PeerId, Vec<String>>,
}

/// Questions about subnets.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// Answers `subnet ls`.
    pub async fn subnets(&self) -> Result<Vec<SubnetInfo>, Error> {
        self.read(|core| core.subnets()).await
    }

    /// Answers `subnet show`.
    pub async fn subnet_show(&self, subnet: String) -> Result<SubnetInfo, Error> {
        self.read(move |core| core.subnet_show(&subnet)).await?
    }

    /// The subnet that a text means.
    pub async fn find(&self, subnet: String) -> Result<SubnetId, Error> {
        self.read(move |core| Ok(core.state.find(&subnet)?.records.id))
            .await?
    }

    /// What this node has joined, and what its founder wants, where it is a member and the subnet is up.
    pub async fn joined(&self, id: SubnetId) -> Result<Option<(SubnetInfo, Terms)>, Error> {
        let look = move |core: &mut Core| {
            let terms = Terms::of(&core.state.subnets.get(&id)?.records.genesis, id);
            let info = core.subnet_show(&id.to_string()).ok()?;
            (info.state == SubnetState::Ready).then_some((info, terms))
        };
        self.read(look).await
    }

    /// The name of a subnet here, and whether it is up.
    pub async fn is_up(&self, id: SubnetId) -> Result<Option<(Name, bool)>, Error> {
        self.read(move |core| {
            core.state
                .subnets
                .get(&id)
                .map(|s| (s.name().clone(), s.local.up))
        })
        .await
    }

    /// All memberships, up or not.
    pub async fn memberships(&self) -> Result<BTreeMap<SubnetId, Membership>, Error> {
        let look = |core: &mut Core| {
            let now = core.now();
            let one = |subnet: &Subnet| Membership {
                subnet: subnet.clone(),
                resolved: subnet.resolve(now),
            };
            core.state
                .subnets
                .iter()
                .map(|(id, subnet)| (*id, one(subnet)))
                .collect()
        };
        self.read(look).await
    }

    /// Whether a text means a former subnet that its owner ended.
    pub async fn was_destroyed(&self, subnet: String) -> Result<bool, Error> {
        self.read(move |core| {
            core.state
                .find_past(&subnet)
                .is_some_and(FormerSubnet::is_destroyed)
        })
        .await
    }

    /// Answers `subnet host SUBNET`.
    pub async fn host_policy(&self, subnet: String) -> Result<HostInfo, Error> {
        self.read(move |core| core.host_policy(&subnet)).await?
    }
}

/// Questions about members and other peers.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// Answers `member ls`.
    pub async fn members(&self, subnet: String) -> Result<Vec<MemberInfo>, Error> {
        self.read(move |core| core.members(&subnet)).await?
    }

    /// Answers `member requests`.
    pub async fn requests(&self, subnet: String) -> Result<Vec<JoinRequestInfo>, Error> {
        self.read(move |core| core.requests(&subnet)).await?
    }

    /// Answers `invite ls`.
    pub async fn invites(&self, subnet: Option<String>) -> Result<Vec<InviteInfo>, Error> {
        self.read(move |core| core.invites(subnet.as_deref()))
            .await?
    }

    /// Answers `lease ls`.
    pub async fn leases(&self, subnet: String) -> Result<Vec<LeaseInfo>, Error> {
        self.read(move |core| core.leases(&subnet)).await?
    }

    /// What each member of any subnet but this node is called, `MEMBER.SUBNET`, and the subnets it shares with this node.
    pub async fn known_as(&self) -> Result<BTreeMap<PeerId, (Vec<String>, Vec<SubnetId>)>, Error> {
        let look = |core: &mut Core| {
            let now = core.now();
            let mut all: BTreeMap<PeerId, (Vec<String>, Vec<SubnetId>)> = BTreeMap::new();
            for subnet in core.state.subnets.values() {
                for (&peer, member) in &subnet.resolve(now).members {
                    let (names, subnets) = all.entry(peer).or_default();
                    names.push(format!("{}.{}", member.name, subnet.name()));
                    subnets.push(subnet.records.id);
                }
            }
            all.remove(&core.state.me.peer);
            all
        };
        self.read(look).await
    }

    /// What members are called; `None` for each that is none.
    pub async fn called(
        &self,
        members: Vec<(SubnetId, PeerId)>,
    ) -> Result<Vec<Option<Called>>, Error> {
        let look = move |core: &mut Core| {
            let now = core.now();
            let called = |(id, peer): (SubnetId, PeerId)| {
                let subnet = core.state.subnets.get(&id)?;
                let member = subnet.resolve(now).members.get(&peer)?.name.clone();
                Some(Called {
                    member,
                    subnet: subnet.records.genesis.name.clone(),
                })
            };
            members.into_iter().map(called).collect()
        };
        self.read(look).await
    }

    /// Who is behind a peer ID, the name of a member or a workload, or an overlay address; `None` where no subnet knows it.
    ///
    /// # Errors
    /// `E-AMBIGUOUS`; `E-CLOCK` where only this machine's clock keeps a member from being one.
    pub async fn target(&self, text: String) -> Result<Option<TargetPeer>, Error> {
        self.read(move |core| core.target(&text)).await?
    }

    /// The multiaddrs at which this node can be dialled.
    pub async fn endpoints(&self) -> Result<Vec<String>, Error> {
        self.read(|core| core.endpoints.clone()).await
    }

    /// The addresses at which members may be dialled.
    pub async fn whereabouts(&self) -> Result<Whereabouts, Error> {
        let look = |core: &mut Core| Whereabouts {
            said: core.state.endpoints(),
            reached: core.state.reached(),
        };
        self.read(look).await
    }
}

/// Workloads, names and port maps of this machine.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// Answers `import ls`.
    pub async fn imports(&self) -> Result<Vec<ImportInfo>, Error> {
        self.read(|core| core.imports()).await
    }

    /// Answers `workload ls`.
    pub async fn workloads(&self) -> Result<Vec<WorkloadInfo>, Error> {
        self.read(|core| core.workloads(None)).await
    }

    /// The port maps that go with workloads of a user: the names of subnet and map.
    pub async fn maps_of_user(&self, user: u32) -> Result<Vec<(Name, Name)>, Error> {
        self.read(move |core| core.maps_of_user(user)).await
    }

    /// Whether a map may be made by who asks for it, before anything is looked at for it.
    pub async fn may_map(&self, subnet: String, new: NewMap) -> Result<(), Error> {
        self.read(move |core| core.may_map(&subnet, &new)).await?
    }

    /// Answers `workload show`.
    pub async fn workload(
        &self,
        name: String,
        subnet: Option<String>,
    ) -> Result<WorkloadInfo, Error> {
        self.read(move |core| core.workload(&name, subnet.as_deref()))
            .await?
    }

    /// The workloads of every subnet that are attached in one namespace, or will be: those of the same container.
    pub async fn workloads_in(
        &self,
        netns: NetnsRef,
        container: Option<String>,
    ) -> Result<Vec<Workload>, Error> {
        let look = move |core: &mut Core| {
            let all = core.state.subnets.values().flat_map(|s| &s.local.workloads);
            let same =
                |w: &Workload| container.is_some() && w.target.container() == container.as_deref();
            all.filter(|w| w.is_in(&netns) || same(w))
                .cloned()
                .collect()
        };
        self.read(look).await
    }

    /// The workloads that keep their place while they are away.
    pub async fn followed(&self) -> Result<Vec<Pursued>, Error> {
        self.read(|core| core.followed()).await
    }

    /// The workloads that have what is wanted in a subnet: its name or its address there, or its namespace or interface in
    /// any.
    pub async fn in_the_way(
        &self,
        subnet: String,
        wanted: Claim,
    ) -> Result<Vec<(SubnetId, Name, NetnsRef)>, Error> {
        let look = move |core: &mut Core| {
            let asked = core.state.find(&subnet).ok().map(|s| s.records.id);
            let holds = |id: SubnetId, w: &Workload| {
                let at = |n: &NetnsRef| {
                    w.netns
                        .as_ref()
                        .is_some_and(|own| own.path == n.path || own.is_same(n))
                };
                let netns = wanted.netns.as_ref().is_some_and(at);
                let address = wanted.ip.is_some_and(|ip| w.addresses.contains(&ip));
                let same = wanted
                    .interface
                    .as_ref()
                    .is_some_and(|(of, link)| w.is_same_attachment(of, link));
                netns || same || (Some(id) == asked && (address || w.name.as_str() == wanted.name))
            };
            let all = core
                .state
                .subnets
                .values()
                .flat_map(|s| s.local.workloads.iter().map(|w| (s.records.id, w)));
            let them = all.filter(|(id, w)| holds(*id, w));
            them.filter_map(|(id, w)| Some((id, w.name.clone(), w.netns.clone()?)))
                .collect()
        };
        self.read(look).await
    }

    /// Answers `dns ls`.
    pub async fn names(&self, subnet: String) -> Result<Vec<DnsInfo>, Error> {
        self.read(move |core| core.names(&subnet)).await?
    }

    /// Answers `map ls`, without counters.
    pub async fn maps(&self, subnet: Option<String>) -> Result<Vec<MapInfo>, Error> {
        self.read(move |core| core.maps(subnet.as_deref())).await?
    }

    /// Those of `addresses` in whose family no map of any subnet has one of the ports.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, where there is none for the map.
    pub async fn unmapped(
        &self,
        subnet: String,
        (proto, ports): (Proto, PortRange),
        addresses: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, Error> {
        let look = move |core: &mut Core| {
            core.state.find(&subnet)?;
            let maps = || core.state.subnets.values().flat_map(|s| &s.local.maps);
            let mapped = |at: &IpAddr| {
                maps().any(|m| {
                    (m.proto, m.listen.is_ipv4()) == (proto, at.is_ipv4())
                        && m.ports.shared_with(ports).is_some()
                })
            };
            Ok(addresses.into_iter().filter(|at| !mapped(at)).collect())
        };
        self.read(look).await?
    }
}

impl Core {
    fn target(&self, text: &str) -> Result<Option<TargetPeer>, Error> {
        let now = self.now();
        let mut found: Vec<TargetPeer> = Vec::new();
        for subnet in self.state.subnets.values() {
            found.extend(self.target_in(subnet, &subnet.resolve(now), text)?);
        }
        // Where several subnets know the peer, one that is on the wire says how it is reached.
        found.sort_by_key(|t| {
            self.state
                .subnets
                .get(&t.subnet)
                .is_some_and(|subnet| !subnet.local.up)
        });
        let mut found = found.into_iter();
        let Some(first) = found.next() else {
            return Ok(None);
        };
        // One peer that several subnets know is one peer; two of one name are not.
        match found.find(|other| other.peer != first.peer) {
            Some(other) => Err(ambiguous(text, &peer_prefixes([first.peer, other.peer])).into()),
            None => Ok(Some(first)),
        }
    }

    /// The peer that a target means in one subnet.
    fn target_in(
        &self,
        subnet: &Subnet,
        resolved: &Resolved,
        text: &str,
    ) -> Result<Option<TargetPeer>, crate::model::error::Error> {
        let target = |peer, address| {
            Some(TargetPeer {
                peer,
                subnet: subnet.records.id,
                address,
            })
        };
        let holder = |address| {
            resolved
                .members
                .iter()
                .find(|(_, m)| holds_address(m, address))
                .map(|(peer, _)| *peer)
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(holder(address).and_then(|peer| target(peer, Some(address))));
        }
        let families = [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0u16; 8])];
        let named = families
            .into_iter()
            .find_map(|like| subnet.target_address(&self.state.me, resolved, text, like));
        let by_name = named.and_then(|(address, _)| Some((holder(address)?, address)));
        match (subnet.find_member(resolved, text, self.now()), by_name) {
            // A name of the subnet that also fits another member's ID.
            (Ok(peer), Some((owner, _))) if peer != owner => {
                Err(ambiguous(text, &peer_prefixes([peer, owner])))
            }
            (Err(error), _) if error.code == Code::Ambiguous => Err(error),
            (Err(error), None) if error.code == Code::Clock => Err(error),
            (_, Some((owner, address))) => Ok(target(owner, Some(address))),
            (Ok(peer), None) => Ok(target(
                peer,
                resolved
                    .members
                    .get(&peer)
                    .and_then(|m| m.addresses.first().copied()),
            )),
            (Err(_), None) => Ok(None),
        }
    }
}
