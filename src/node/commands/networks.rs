//! Workloads whose engine makes a network of its own over a subnet, and moves their links by itself: Docker's network driver.
//!
//! Such a workload is *staged* once the engine has its endpoint: it has its addresses and its host end, and the other end
//! waits beside that. It is *adopted* once the engine has moved it: then it is like any other workload.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::workloads::host_link;
use super::{Addition, done};
use crate::api::types::{Error, ErrorKind, Response};
use crate::model::error::Code;
use crate::model::host::{NetnsRef, ResolvConf, inner_mac};
use crate::model::id::{Name, SubnetId};
use crate::model::members::{Subnet, printable};
use crate::model::workload::{DOCKER, Target, Workload, stage_link};
use crate::node::Core;

/// Characters of an endpoint's ID that name its workload until the container's name is known.
const NAMED_BY: usize = 12;

/// What is in the place of a link that is in no container.
const GONE: &str = "-";

/// A subnet as an engine's network is made over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlying {
    /// The subnet.
    pub subnet: SubnetId,
    /// Its name on this machine.
    pub name: Name,
    /// Its pool of IPv4 addresses.
    pub cidr4: Option<Ipv4Net>,
    /// Its pool of IPv6 addresses.
    pub cidr6: Option<Ipv6Net>,
    /// This machine's addresses in it: the gateways of its workloads.
    pub gateways: Vec<IpAddr>,
    /// What a workload reaches through them.
    pub prefixes: Vec<IpNet>,
}

/// An endpoint that an engine makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEndpoint {
    /// The engine's ID of it.
    pub id: String,
    /// Its addresses, and no others.
    pub addresses: Vec<IpAddr>,
    /// The hardware address that was asked for.
    pub mac: Option<[u8; 6]>,
}

/// What the container of an endpoint is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNames {
    /// The name of its workload.
    pub name: Name,
    /// Further names, in lower case.
    pub aliases: BTreeSet<String>,
    /// What the engine calls the network.
    pub network: Option<String>,
}

/// What the workload of an endpoint is called now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: Name,
    /// The name that it would have if nobody else had that: its container's, or what a file gave it.
    pub meant: Name,
    /// Further names that it could not get, each with why not.
    pub refused: Vec<(String, Error)>,
}

/// An endpoint as it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The subnet that it is in.
    pub subnet: SubnetId,
    /// Its workload.
    pub workload: Workload,
    /// The hardware address of its link.
    pub mac: [u8; 6],
}

impl Staged {
    /// The engine's ID of it.
    pub fn id(&self) -> &str {
        self.workload.target.container().unwrap_or_default()
    }
}

/// Whether a workload is that endpoint of Docker's.
fn is_endpoint(workload: &Workload, id: &str) -> bool {
    workload.target.moves_links() && workload.target.container() == Some(id)
}

impl Core {
    /// The subnet that a network is made over: the one that is named, or this machine's only one.
    ///
    /// # Errors
    /// `E-NO-SUBNET`; `E-AMBIGUOUS` where none is named and there are several; `E-NOT-MEMBER`.
    pub fn underlying(&self, text: Option<&str>) -> Result<Underlying, Error> {
        let subnet = match text {
            Some(text) => self.state.find(text)?,
            None => {
                let mut all = self.state.subnets.values();
                match (all.next(), all.next()) {
                    (Some(only), None) => only,
                    (None, _) => {
                        let message = "this machine is in no subnet";
                        return Err(Error::new(ErrorKind::NotFound, Code::NoSubnet, message));
                    }
                    _ => {
                        let message = "this machine is in several subnets: --ipam-opt subnet=NAME";
                        return Err(Error::new(ErrorKind::Usage, Code::Ambiguous, message));
                    }
                }
            }
        };
        let resolved = subnet.resolve(self.now());
        let pools = subnet.records.pools();
        Ok(Underlying {
            subnet: subnet.records.id,
            name: subnet.name().clone(),
            cidr4: pools.v4,
            cidr6: pools.v6,
            gateways: subnet.myself(&self.state.me, &resolved)?.addresses.clone(),
            prefixes: subnet.records.prefixes(),
        })
    }

    /// An address of one family for a workload to come: the one that is wanted, or a free one outside `avoid`.
    ///
    /// # Errors
    /// `E-ADDRESS-TAKEN`, `E-NOT-LEASED`, `E-BLOCK-FULL`.
    pub fn free_address(
        &self,
        subnet: SubnetId,
        ipv6: bool,
        wanted: Option<IpAddr>,
        avoid: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Error> {
        let subnet = self.state.find(&subnet.to_string())?;
        Ok(subnet.free_address(&self.state.me, ipv6, wanted, avoid, self.now())?)
    }

    /// The address of one family that is kept for the workload of a container to come, where a file named one and nobody has
    /// it.
    pub fn planned_address(&self, subnet: SubnetId, container: &str, ipv6: bool) -> Option<IpAddr> {
        let subnet = self.state.subnets.get(&subnet)?;
        let name = subnet.planned_name(&Name::from_container(container))?;
        let mut planned = subnet.plan_of(name)?.addresses.iter().copied();
        let address = planned.find(|a| a.is_ipv6() == ipv6)?;
        let me = &self.state.me;
        let free = subnet.free_address(me, ipv6, Some(address), &BTreeSet::new(), self.now());
        free.ok()
    }

    /// Makes the workload of an endpoint, whose link waits for the engine.
    ///
    /// # Errors
    /// `E-ATTACHED` where there is one of that ID; else see [`Subnet::attach`].
    pub fn stage(
        &mut self,
        subnet: SubnetId,
        new: NewEndpoint,
    ) -> Result<(Staged, Addition), Error> {
        let mut subnet = self.state.edit(&subnet.to_string())?;
        let id = subnet.records.id;
        if subnet
            .local
            .workloads
            .iter()
            .any(|w| is_endpoint(w, &new.id))
        {
            let message = format!("there is an endpoint {} already", printable(&new.id));
            return Err(Error::new(ErrorKind::Conflict, Code::Attached, message));
        }
        let called: String = new.id.chars().take(NAMED_BY).collect();
        let resolved = subnet.resolve(self.now());
        let name = subnet.free_name(&self.state.me, &resolved, &Name::from_container(&called));
        // By the ID and not by the name, which changes.
        let host_link = host_link(id, self.state.me.peer, &new.id);
        let inner_link = stage_link(&host_link);
        let engine = Name::from_host(DOCKER);
        let workload = Workload {
            target: Target::of_engine(engine, new.id, &inner_link)?,
            name,
            netns: None,
            inner_link,
            host_link,
            addresses: new.addresses,
            resolv_conf: ResolvConf::None,
            mac: new.mac,
            since: 0,
        };
        let workload = subnet.attach(&self.state.me.clone(), workload, None, self.now())?;
        self.save(subnet)?;
        Ok((
            self.staged(id, &workload),
            Addition::of_workload(id, workload),
        ))
    }

    fn staged(&self, subnet: SubnetId, workload: &Workload) -> Staged {
        let own = || inner_mac(&self.here.instance, &workload.host_link);
        Staged {
            subnet,
            workload: workload.clone(),
            mac: workload.mac.unwrap_or_else(own),
        }
    }

    /// The endpoint with that ID.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`.
    pub fn staged_endpoint(&self, id: &str) -> Result<Staged, Error> {
        let all = self.state.subnets.values();
        let mut them = all.flat_map(|s| s.local.workloads.iter().map(|w| (s.records.id, w)));
        them.find(|(_, w)| is_endpoint(w, id))
            .map(|(subnet, workload)| self.staged(subnet, workload))
            .ok_or_else(|| {
                let message = format!("there is no endpoint {} here", printable(id));
                Error::new(ErrorKind::NotFound, Code::NoWorkload, message)
            })
    }

    /// Every endpoint of Docker's networks.
    pub fn staged_endpoints(&self) -> Vec<Staged> {
        let all = self.state.subnets.values();
        all.flat_map(|s| s.local.workloads.iter().map(|w| (s.records.id, w)))
            .filter(|(_, w)| w.target.moves_links())
            .map(|(subnet, workload)| self.staged(subnet, workload))
            .collect()
    }

    /// Changes the workload of an endpoint, where there is one; whether there is.
    fn change_endpoint(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut Subnet, Workload) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let Ok(staged) = self.staged_endpoint(id) else {
            return Ok(false);
        };
        let mut subnet = self.state.edit(&staged.subnet.to_string())?;
        change(&mut subnet, staged.workload)?;
        self.save(subnet).map(|_| true)
    }

    /// The engine has moved the link of an endpoint into that namespace, and called it so. Whether that was news.
    ///
    /// # Errors
    /// `E-ATTACHED` where another workload of the subnet is in that namespace.
    pub fn adopt(&mut self, id: &str, netns: NetnsRef, link: &str) -> Result<bool, Error> {
        let waits = self
            .staged_endpoint(id)
            .is_ok_and(|e| e.workload.is_staged());
        let link = link.to_owned();
        let place = |subnet: &mut Subnet, workload: Workload| {
            subnet.place(&workload.name, netns, None)?;
            subnet.alter(&workload.name, |w| w.inner_link = link);
            Ok(())
        };
        Ok(waits && self.change_endpoint(id, place)?)
    }

    /// The link of an endpoint leaves its container: it has its addresses and nothing in the kernel. Whether there is such
    /// an endpoint.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn unstage(&mut self, id: &str) -> Result<bool, Error> {
        self.change_endpoint(id, |subnet, workload| {
            let link = GONE.to_owned();
            subnet.alter(&workload.name, |w| (w.netns, w.inner_link) = (None, link));
            Ok(())
        })
    }

    /// An endpoint without anything in the kernel gets a link for the engine again.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn restage(&mut self, id: &str) -> Result<Staged, Error> {
        self.change_endpoint(id, |subnet, workload| {
            subnet.alter(&workload.name, |w| {
                if w.netns.is_none() {
                    w.inner_link = stage_link(&w.host_link);
                }
            });
            Ok(())
        })?;
        self.staged_endpoint(id)
    }

    /// The endpoint is gone. It is no error where there is none.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn remove_endpoint(&mut self, id: &str) -> Result<Response, Error> {
        let (me, now) = (self.state.me.clone(), self.now());
        let removed = self.change_endpoint(id, |subnet, workload| {
            subnet.detach(&me, workload.name.as_str(), now)?;
            Ok(())
        })?;
        Ok(done(format!("endpoint {} removed", printable(id)), removed))
    }

    /// Names the workload of an endpoint as its container is called: so, or the next numbered name that is free. Of the
    /// further names it gets those that can be said; the others are given back, each with why not.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`; as [`Core::commit`].
    pub fn name_endpoint(&mut self, id: &str, wanted: &ContainerNames) -> Result<Named, Error> {
        let staged = self.staged_endpoint(id)?;
        let (me, now) = (self.state.me.clone(), self.now());
        let mut subnet = self.state.edit(&staged.subnet.to_string())?;
        let before = staged.workload.name.clone();
        let resolved = subnet.resolve(now);
        let planned = subnet.name_for(&before, &wanted.name);
        let name = subnet.free_name_instead(&me, &resolved, planned, &before);
        let with = subnet.local.companions.get(&before).cloned();
        let with = with.unwrap_or_default();
        let said = with.aliases.keys();
        let mut named = Named {
            name: name.clone(),
            meant: planned.clone(),
            refused: vec![],
        };
        let known = said.eq(wanted
            .aliases
            .iter()
            .filter(|alias| **alias != *name.as_str()))
            && with.network == wanted.network;
        if before == name && known {
            return Ok(named);
        }
        if before != name {
            subnet.rename_workload(&me, &before, &name, now)?;
        }
        subnet.take_back_names(&me, &name, now)?;
        let mut workload = staged.workload;
        workload.name = name.clone();
        let network = &wanted.network;
        let mut said = Vec::new();
        for alias in &wanted.aliases {
            let mut copy = subnet.clone();
            match copy.accompany(
                &me,
                &workload,
                network.clone(),
                std::slice::from_ref(alias),
                now,
            ) {
                Ok(()) => said.push(alias.clone()),
                Err(why) => named.refused.push((alias.clone(), Error::from(why))),
            }
        }
        subnet.accompany(&me, &workload, network.clone(), &said, now)?;
        // Its maps stay with it.
        if let Some(now) = subnet.local.companions.get_mut(&name) {
            now.maps = with.maps;
        }
        self.save(subnet)?;
        Ok(named)
    }
}
