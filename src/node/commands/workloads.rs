//! Workloads of this machine: attached, detached, gone by themselves.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::own::Own;
use super::{Addition, done};
use crate::api::types::{Attached, Error, ErrorKind, Response};
use crate::model::build::MTU;
use crate::model::error::{Code, Hint};
use crate::model::find::{Id, Miss, Named, find};
use crate::model::followed::{Followed, Present, Why};
use crate::model::host::{NetnsRef, ResolvConf, inner_mac};
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::mac;
use crate::model::members::{Subnet, printable};
use crate::model::workload::{Target, Workload};
use crate::node::Core;

/// A workload as it was found on this machine, before it has addresses.
#[derive(Debug, Clone)]
pub struct NewWorkload {
    /// The name that was asked for, or the default.
    pub name: Name,
    /// Whether nobody named it: then the next numbered name that is free will do.
    pub name_is_default: bool,
    /// The namespace or container to attach.
    pub target: Target,
    /// Its namespace; none while its engine has not made one.
    pub netns: Option<NetnsRef>,
    /// Name of the interface inside the namespace.
    pub inner_link: String,
    /// The file that names its resolver.
    pub resolv_conf: ResolvConf,
    /// The hardware address that was asked for; none where it follows from the name.
    pub mac: Option<[u8; 6]>,
    /// What its engine asks for beside.
    pub beside: Beside,
    /// How it is found again after it went away; none where it is detached when its namespace ends.
    pub followed: Option<Followed>,
}

/// What an engine may ask for a container, and a person at the command line does not.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Addresses that it is to have, one of each family at most.
    pub ips: Vec<IpAddr>,
    /// What the engine calls the network.
    pub network: Option<String>,
    /// Further names, which go with the workload.
    pub aliases: Vec<String>,
    /// The user who asks, where that one may change nothing but its own.
    pub own: Option<Own>,
}

impl NewWorkload {
    /// Whether `here` is what is asked for: the same namespace, container or interface of one, and nothing else is asked of
    /// it. An engine may ask before it has a namespace, and again without naming it.
    fn is(&self, here: &Workload, ip: Option<IpAddr>) -> bool {
        let same_mac = self.mac.is_none_or(|mac| here.mac == Some(mac));
        self.means(here, None, ip)
            && same_mac
            && self.netns.as_ref().is_none_or(|netns| here.is_in(netns))
    }

    /// Whether `here` waits for the namespace that is told now, or went away and is back. Its hardware address may be told
    /// with it.
    fn places(&self, here: &Workload, known: Option<&Followed>, ip: Option<IpAddr>) -> bool {
        let fits = self
            .mac
            .is_none_or(|mac| here.mac.is_none_or(|known| known == mac));
        self.means(here, known, ip) && fits && here.netns.is_none()
    }

    /// Whether it would have the link that a workload of another subnet has.
    fn is_on_link_of(&self, there: &Workload) -> bool {
        let netns = self
            .netns
            .as_ref()
            .is_some_and(|n| there.is_in(n) && there.inner_link == self.inner_link);
        let tap = self.target.tap_link();
        netns
            || there.is_same_attachment(&self.target, &self.inner_link)
            || (tap.is_some() && tap == there.target.tap_link())
    }

    /// The same, wherever it lives. What is `known` of one that is away says which container takes its place.
    fn means(&self, here: &Workload, known: Option<&Followed>, ip: Option<IpAddr>) -> bool {
        let successor = |called: &str, before: &str| match (&self.followed, known) {
            (Some(new), Some(old)) => {
                let is_made_alike = !new.labels.is_empty() && new.labels == old.labels;
                new.engine == old.engine && (called == before || is_made_alike)
            }
            _ => false,
        };
        let thing = match (&self.target, &here.target) {
            (
                Target::Docker { id, name },
                Target::Docker {
                    id: old,
                    name: before,
                },
            )
            | (
                Target::Podman { id, name },
                Target::Podman {
                    id: old,
                    name: before,
                },
            ) => id == old || successor(name, before),
            (Target::Tap { .. }, Target::Tap { .. }) => self.target == here.target,
            (Target::Netns(spec), Target::Netns(before)) => known.is_none() || spec == before,
            _ => here.is_same_attachment(&self.target, &self.inner_link),
        };
        thing
            && (self.name_is_default || self.name == here.name)
            && ip.is_none_or(|ip| here.addresses.contains(&ip))
    }
}

/// Why a text means no workload, or not one.
fn not_found(miss: &Miss, text: &str) -> Error {
    match miss {
        Miss::None => {
            let message = format!("no workload {} here", printable(text));
            Error::new(ErrorKind::NotFound, Code::NoWorkload, message).hint(Hint::ListWorkloads)
        }
        Miss::Many(_) => {
            let message = format!("more than one workload here is called {}", printable(text));
            Error::new(ErrorKind::Usage, Code::Ambiguous, message).hint(Hint::ListWorkloadsThenName)
        }
    }
}

/// Name of the machine's end of a workload's link, by what is the workload's own in its subnet.
pub(super) fn host_link(subnet: SubnetId, me: PeerId, workload: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(subnet.0);
    hash.update(me.0);
    hash.update(workload);
    let tail = HEXLOWER.encode(hash.finalize().get(..5).unwrap_or_default());
    format!("bwv{tail}")
}

impl Core {
    /// `attach`: gives the answer, and what is to be confirmed once the kernel has followed. The same once more changes
    /// nothing.
    ///
    /// # Errors
    /// `E-ATTACHED` when another subnet has that link; else see [`Subnet::attach`].
    pub fn attach(
        &mut self,
        text: &str,
        mut new: NewWorkload,
        ip: Option<IpAddr>,
    ) -> Result<(Attached, Addition), Error> {
        let mut subnet = self.state.edit(text)?;
        let id = subnet.records.id;
        if let Some(here) = subnet.local.workloads.iter().find(|here| new.is(here, ip)) {
            let attached = Attached {
                already: true,
                ..self.attached(&subnet, here)?
            };
            return Ok((attached, Addition::already(id, here.name.clone())));
        }
        if let Some(own) = new.beside.own {
            self.check_own(own, &subnet, &new)?;
        }
        let ends = match new.beside.own {
            // What a user asks for ends nothing of others.
            Some(_) => vec![],
            None => subnet.give_way(&new.name, ip, &new.target),
        };
        for name in ends {
            subnet.detach(&self.state.me.clone(), name.as_str(), self.now())?;
        }
        let others = self.state.subnets.values().filter(|s| s.records.id != id);
        if others
            .flat_map(|s| &s.local.workloads)
            .any(|there| new.is_on_link_of(there))
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                Code::Attached,
                format!(
                    "{} has a link {} of another subnet",
                    new.name, new.inner_link
                ),
            ));
        }
        let waits = subnet
            .local
            .workloads
            .iter()
            .find(|here| new.places(here, subnet.followed(&here.name), ip))
            .cloned();
        if let (Some(before), Some(netns)) = (waits, new.netns.clone()) {
            let placed = self.placed(&mut subnet, &before, &new, netns.clone())?;
            let attached = self.attached(&subnet, &placed)?;
            self.save(subnet)?;
            return Ok((attached, Addition::of_placed(id, before, netns)));
        }
        if new.name_is_default {
            let planned = subnet.planned_name(&new.name).cloned();
            new.name = planned.unwrap_or(new.name);
            new.name = subnet.free_name(&self.state.me, &subnet.resolve(self.now()), &new.name);
        }
        let tap = new.target.tap_link();
        let mac = new.mac.or_else(|| subnet.plan_of(&new.name)?.mac);
        let workload = Workload {
            host_link: tap.unwrap_or_else(|| host_link(id, self.state.me.peer, new.name.as_str())),
            name: new.name,
            target: new.target,
            netns: new.netns,
            inner_link: new.inner_link,
            addresses: vec![],
            resolv_conf: new.resolv_conf,
            mac,
            since: 0,
        };
        let (me, now) = (self.state.me.clone(), self.now());
        let Beside {
            ips,
            network,
            aliases,
            own: _,
        } = new.beside;
        let workload = subnet.attach(&me, workload, ip.into_iter().chain(ips), now)?;
        subnet.accompany(&me, &workload, network, &aliases, now)?;
        for (alias, error) in subnet.say_planned(&me, &workload, now) {
            tracing::warn!(workload = %workload.name, alias, %error, "a further name is not said");
        }
        if let Some(followed) = new.followed {
            let name = workload.name.clone();
            subnet.local.followed.insert(name, followed);
        }
        let attached = self.attached(&subnet, &workload)?;
        self.save(subnet)?;
        Ok((attached, Addition::of_workload(id, workload)))
    }

    /// The workload `before` in the namespace that it was found in now.
    fn placed(
        &self,
        subnet: &mut Subnet,
        before: &Workload,
        new: &NewWorkload,
        netns: NetnsRef,
    ) -> Result<Workload, Error> {
        let Some(followed) = &new.followed else {
            return Ok(subnet.place(&before.name, netns, new.mac)?);
        };
        let present = Present {
            target: new.target.clone(),
            netns,
            resolv_conf: new.resolv_conf.clone(),
            labels: followed.labels.clone(),
            paused: followed.paused,
        };
        subnet.came_back(&self.state.me, &before.name, present, self.now())?;
        let placed = subnet
            .local
            .workloads
            .iter()
            .find(|w| w.name == before.name);
        Ok(placed.unwrap_or(before).clone())
    }

    /// What `attach` tells of a workload that it has attached.
    fn attached(&self, subnet: &Subnet, workload: &Workload) -> Result<Attached, Error> {
        let resolved = subnet.resolve(self.now());
        let is_tap = workload.target.tap_link().is_some();
        let own = || inner_mac(&self.view().host.instance, &workload.host_link);
        let mac = workload.mac.unwrap_or_else(own);
        Ok(Attached {
            workload: workload.name.clone(),
            subnet: subnet.name().clone(),
            addresses: workload.addresses.clone(),
            interface: workload.inner_link.clone(),
            mtu: MTU,
            dns: subnet.myself(&self.state.me, &resolved)?.addresses.clone(),
            search: subnet.records.genesis.domain.clone(),
            // The virtual machine at a TAP hears of it by DHCP.
            resolver: workload.resolv_conf != ResolvConf::None || is_tap,
            socket: None,
            mac: is_tap.then(|| mac::text(mac)),
            already: false,
            down: !subnet.local.up,
        })
    }

    /// `detach`; without a subnet the workload is looked for in all of them. An engine names the interface as well, where
    /// its container has several.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`; `E-ATTACHED` for one that its engine has put there.
    pub fn detach(
        &mut self,
        workload: &str,
        subnet: Option<&str>,
        interface: Option<&str>,
    ) -> Result<Response, Error> {
        let (id, name) = self.find_workload(workload, subnet, interface)?;
        let mut subnet = self.state.edit(&id.to_string())?;
        let is_engines = |w: &&Workload| w.name == name && w.target.moves_links();
        let mut here = subnet.local.workloads.iter();
        if here.any(|w| is_engines(&w) && w.netns.is_some()) {
            let message = format!(
                "{name} is in subnet {} by a network of its engine's, which would not learn of it",
                subnet.name()
            );
            return Err(Error::new(ErrorKind::Conflict, Code::Attached, message)
                .hint("docker network disconnect NETWORK CONTAINER"));
        }
        let gone = subnet.detach(&self.state.me.clone(), name.as_str(), self.now())?;
        self.save(subnet)?;
        // Whoever detaches it may not know that nothing else of it ends.
        let runs_on = gone.target.program().map_or_else(String::new, |program| {
            format!("; its program runs on without that link: {program}")
        });
        Ok(done(format!("detached {}{runs_on}", gone.name), true))
    }

    /// Detaches what an engine attached: that interface of that container and nothing else. Where there is none, nothing is
    /// changed.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn detach_container(&mut self, of: &Target, interface: &str) -> Result<Response, Error> {
        let found = self.state.subnets.values().find_map(|subnet| {
            let mut all = subnet.local.workloads.iter();
            let workload = all.find(|w| w.is_same_attachment(of, interface))?;
            Some((subnet.clone(), workload.name.clone()))
        });
        let Some((mut subnet, name)) = found else {
            let message = format!("{interface} of {} is not attached", of.text());
            return Ok(done(message, false));
        };
        subnet.detach(&self.state.me.clone(), name.as_str(), self.now())?;
        self.save(subnet)?;
        Ok(done(format!("detached {name}"), true))
    }

    /// The workload that is meant: by the engine's ID, its name, a prefix of that ID, and after all of them by what the
    /// person attached. Without a subnet it is looked for in all of them.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`, `E-NO-SUBNET`.
    pub(in crate::node) fn find_workload(
        &self,
        text: &str,
        subnet: Option<&str>,
        interface: Option<&str>,
    ) -> Result<(SubnetId, Name), Error> {
        let only = subnet
            .map(|subnet| self.state.find(subnet).map(|s| s.records.id))
            .transpose()?;
        let chosen = self
            .state
            .subnets
            .values()
            .filter(|s| only.is_none_or(|id| id == s.records.id));
        let (mut named, mut attached) = (Vec::new(), Vec::new());
        let is_name = chosen
            .clone()
            .flat_map(|s| &s.local.workloads)
            .any(|w| w.name.as_str() == text);
        for subnet in chosen {
            let meant = |w: &&Workload| interface.is_none_or(|name| w.inner_link == name);
            for workload in subnet.local.workloads.iter().filter(meant) {
                let what = (subnet.records.id, workload.name.clone());
                // An engine's ID may be any text: alone it does not stand before a name.
                let is_id = !matches!(
                    workload.target,
                    Target::Engine { .. } | Target::OfUser { .. }
                ) || interface.is_some()
                    || !is_name;
                let id = workload
                    .target
                    .container()
                    .filter(|_| is_id)
                    .map(|id| Id::plain(id.to_owned()));
                named.push(Named {
                    what: what.clone(),
                    id,
                    names: vec![workload.name.to_string()],
                });
                let names = vec![workload.target.text().to_owned()];
                attached.push(Named {
                    what,
                    id: None,
                    names,
                });
            }
        }
        let found = match find(&named, text) {
            Err(Miss::None) => find(&attached, text),
            other => other,
        };
        found.map_err(|miss| not_found(&miss, text))
    }

    /// Somebody else's link has the name of a subnet's interface: the interface gets another.
    pub fn link_taken(&mut self, link: &str) {
        let Some((id, name)) = self.state.next_interface(link) else {
            return;
        };
        let Some(mut copy) = self.state.subnets.get(&id).cloned() else {
            return;
        };
        tracing::warn!(subnet = %copy.name(), link, name, "another program has the link, the interface is renamed");
        copy.local.interface = name;
        if let Err(error) = self.save(copy) {
            tracing::warn!(%error, link, "could not save the new name of an interface");
        }
    }

    /// A workload whose namespace died: one that is followed keeps its place, of another the name is free again. One that was
    /// attached under that name since then, in another namespace, is not concerned.
    pub fn workload_died(&mut self, subnet: SubnetId, name: &Name, netns: &NetnsRef) {
        let Some(mut copy) = self.state.subnets.get(&subnet).cloned() else {
            return;
        };
        if !copy
            .local
            .workloads
            .iter()
            .any(|w| w.name == *name && w.netns.as_ref() == Some(netns))
        {
            return;
        }
        // Its engine says when its address is free.
        let is_engines = |w: &&Workload| w.name == *name && w.target.moves_links();
        if copy.local.workloads.iter().any(|w| is_engines(&w)) {
            copy.alter(name, |w| w.netns = None);
            if let Err(error) = self.save(copy) {
                tracing::warn!(%error, workload = %name, "could not save that its namespace is gone");
            }
            return;
        }
        if copy.followed(name).is_some() {
            let (me, now) = (self.state.me.clone(), self.now());
            let mut all = copy.local.workloads.iter();
            let found = all.find(|w| w.name == *name);
            let why = found.map_or(Why::Stopped, |w| w.target.once_ended());
            let gone = copy.went_away(&me, name, (why, None), now);
            if let Err(error) = gone.map_err(Error::from).and_then(|_| self.save(copy)) {
                tracing::warn!(%error, workload = %name, "could not save that it is gone");
            }
            return;
        }
        if copy
            .detach(&self.state.me.clone(), name.as_str(), self.now())
            .is_ok()
        {
            tracing::info!("{}: the namespace of {name} is gone", copy.name());
            if let Err(error) = self.save(copy) {
                tracing::warn!(%error, workload = %name, "could not save that it is gone");
            }
        }
    }
}
