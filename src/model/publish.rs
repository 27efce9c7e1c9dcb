//! What a member says of itself: endpoints, workloads, names; and its own port maps, which it tells nobody.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::claims::claimed;
use super::error::{Code, Error, Hint, Kind, Result};
use super::heard::may_name;
use super::host::NetnsRef;
use super::id::{Name, PeerId};
use super::ipam::free_addresses;
use super::local::{Kept, Map, Target, Workload};
use super::members::{Identity, Subnet, printable, would_be_refused};
use super::record::{
    Body, Doc, MAX_ENTRIES, MAX_RECORD, NameEntry, RecordError, Verified, WorkloadEntry, data_fits,
    is_record_name,
};
use super::resolve::{Member, Resolved};
use super::zone::{MAX_NAME, MAX_SET, MAX_TTL, RecordData};

/// Names of workloads that are gone whose addresses are kept, in each subnet.
const MAX_KEPT: usize = 1024;

/// What a person adds to this machine and the kernel has to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// By `attach`.
    Workload,
    /// By `map add`.
    Map,
}

impl Subnet {
    /// This node as a member.
    ///
    /// # Errors
    /// `E-NOT-MEMBER` while the grant has run out or was revoked.
    pub fn myself<'a>(&self, me: &Identity, resolved: &'a Resolved) -> Result<&'a Member> {
        resolved
            .members
            .get(&me.peer)
            .map(AsRef::as_ref)
            .ok_or_else(|| {
                Error::new(
                    Kind::Refused,
                    Code::NotMember,
                    format!("this node is no member of subnet {} now", self.name()),
                )
                .hint(Hint::Join(self.records.id))
            })
    }

    /// Publishes this node's document with `change` applied; the same document again is not published. `now` is seconds
    /// since 1970.
    pub(super) fn publish(
        &mut self,
        me: &Identity,
        now: u64,
        change: impl FnOnce(&mut Doc),
    ) -> Result<()> {
        let old = self.records.docs.get(&me.peer).cloned();
        let old = old.as_ref().map(|statement| &statement.body);
        let mut doc = old.cloned().unwrap_or_default();
        change(&mut doc);
        doc.life = me.life;
        // Who was let in again has left no more.
        if doc
            .left
            .is_some_and(|left| self.records.grants_of(me.peer).any(|g| g.generation > left))
        {
            doc.left = None;
        }
        if old == Some(&doc) {
            return Ok(());
        }
        if doc.workloads.len().saturating_add(doc.names.len()) > MAX_ENTRIES {
            return Err(Error::new(
                Kind::Conflict,
                Code::TooManyNames,
                format!("one member publishes at most {MAX_ENTRIES} workloads and names"),
            ));
        }
        doc.version = doc.version.saturating_add(1);
        doc.issued = now;
        let before = old.map(claimed).unwrap_or_default();
        let fresh: Vec<(String, PeerId)> = claimed(&doc)
            .difference(&before)
            .map(|name| ((*name).to_owned(), me.peer))
            .collect();
        let record =
            Verified::sign(self.records.id, Body::Doc(doc), &me.key).map_err(
                |error| match error {
                    RecordError::Size(_) => Error::new(
                        Kind::Conflict,
                        Code::TooManyNames,
                        format!(
                            "what one member publishes in a subnet has at most {} KiB",
                            MAX_RECORD / 1024
                        ),
                    ),
                    _ => would_be_refused(),
                },
            )?;
        self.take_own(record)?;
        self.note_answers(&fresh);
        Ok(())
    }

    /// Says where this node can be dialled.
    ///
    /// # Errors
    /// `E-RECORD` for a document the others would refuse; this node makes none.
    pub fn set_endpoints(&mut self, me: &Identity, endpoints: &[String], now: u64) -> Result<()> {
        let list: Vec<String> = endpoints.iter().take(32).cloned().collect();
        self.publish(me, now, |d| d.endpoints = list)
    }

    /// Gives this node's leases back: the member that leaves says so itself.
    ///
    /// # Errors
    /// `E-RECORD` for a document the others would refuse; this node makes none.
    pub fn say_goodbye(&mut self, me: &Identity, now: u64) -> Result<()> {
        let generation = self
            .records
            .grants_of(me.peer)
            .map(|g| g.generation)
            .max()
            .unwrap_or(0);
        self.publish(me, now, |d| {
            d.left = Some(generation);
            d.workloads.clear();
            d.names.clear();
            d.endpoints.clear();
        })
    }

    fn name_is_taken(&self, me: &Identity, resolved: &Resolved, name: &str) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        let below =
            |m: &Member| m.name.as_str() == last && (last == name || m.grant.subject != me.peer);
        let held = resolved.flat.get(name).is_some_and(|by| *by != me.peer)
            || resolved.contested.contains_key(name);
        resolved.members.values().any(|m| below(m))
            || held
            || self.local.workloads.iter().any(|w| w.name.as_str() == name)
    }

    /// The name, or the next numbered one that no member, workload or record of this subnet has.
    pub fn free_name(&self, me: &Identity, resolved: &Resolved, wanted: &Name) -> Name {
        wanted.free(|name| self.name_is_taken(me, resolved, name.as_str()))
    }

    /// Whether no workload here `but` that one has the namespace of this one, or is of the same container.
    fn is_apart(&self, workload: &Workload, but: Option<&Name>) -> Result<()> {
        let in_it = |w: &&Workload| workload.netns.as_ref().is_some_and(|netns| w.is_in(netns));
        // All interfaces of a container are in one namespace.
        let same = |w: &&Workload| {
            matches!(w.target, Target::Engine { .. }) && w.target == workload.target
        };
        let mut all = self.local.workloads.iter().filter(|w| Some(&w.name) != but);
        let (what, other) = match (all.clone().find(in_it), all.find(same)) {
            (Some(other), _) => (
                format!("has the network namespace of {}, which", other.name),
                other,
            ),
            (None, Some(other)) => (
                format!(
                    "has the interface {} as {}, which",
                    other.inner_link, other.name
                ),
                other,
            ),
            (None, None) => return Ok(()),
        };
        let message = format!(
            "{} {what} is attached to subnet {} already",
            workload.target.text(),
            self.name()
        );
        Err(
            Error::new(Kind::Conflict, Code::Attached, message).hint(Hint::Detach {
                workload: other.name.clone(),
                subnet: self.name().clone(),
            }),
        )
    }

    /// Gives a workload without a namespace the one that its engine has made. Its name and addresses stay: the others hear
    /// nothing of it. Where the kernel refuses it, [`unplace`](Self::unplace) takes the namespace away again.
    ///
    /// # Errors
    /// `E-ATTACHED`, `E-NO-WORKLOAD`.
    pub fn place(
        &mut self,
        name: &Name,
        netns: NetnsRef,
        mac: Option<[u8; 6]>,
    ) -> Result<Workload> {
        let waits = |w: &&mut Workload| w.name == *name && w.netns.is_none();
        let gone = || {
            Error::new(
                Kind::NotFound,
                Code::NoWorkload,
                format!("no workload {name} waits here"),
            )
        };
        let workload = self
            .local
            .workloads
            .iter_mut()
            .find(waits)
            .ok_or_else(gone)?;
        let placed = Workload {
            netns: Some(netns),
            mac: mac.or(workload.mac),
            ..workload.clone()
        };
        self.is_apart(&placed, Some(name))?;
        self.local
            .workloads
            .iter_mut()
            .filter(|w| w.name == *name)
            .for_each(|w| *w = placed.clone());
        Ok(placed)
    }

    /// Takes the namespace of a workload away that [`place`](Self::place) gave it; `before` is what it was. Whether it still
    /// had that namespace.
    pub fn unplace(&mut self, before: &Workload, netns: &NetnsRef) -> bool {
        let is = |w: &&mut Workload| {
            (&w.name, &w.target, w.since) == (&before.name, &before.target, before.since)
                && w.netns.as_ref() == Some(netns)
        };
        match self.local.workloads.iter_mut().find(is) {
            Some(workload) => {
                *workload = before.clone();
                true
            }
            None => false,
        }
    }

    /// Attaches a workload: a free name and free addresses out of this node's leases. `workload` comes without
    /// addresses.
    ///
    /// # Errors
    /// `E-NAME-TAKEN`, `E-ATTACHED`, `E-ADDRESS-TAKEN`, `E-NOT-LEASED`, `E-BLOCK-FULL`.
    pub fn attach(
        &mut self,
        me: &Identity,
        mut workload: Workload,
        ip: Option<IpAddr>,
        now: u64,
    ) -> Result<Workload> {
        let resolved = self.resolve(now);
        let mine = self.myself(me, &resolved)?;
        self.is_apart(&workload, None)?;
        if self.name_is_taken(me, &resolved, workload.name.as_str()) {
            let message = format!(
                "the name {} is taken in subnet {}",
                workload.name,
                self.name()
            );
            let error = Error::new(Kind::Conflict, Code::NameTaken, message);
            let (kind, target) = (
                workload.target.kind().to_owned(),
                workload.target.text().to_owned(),
            );
            return Err(match workload.target {
                // The engine chooses the name.
                Target::Engine { .. } => error,
                _ => error.hint(Hint::AttachNamed {
                    kind,
                    target,
                    subnet: self.name().clone(),
                }),
            });
        }
        let mut used: BTreeSet<IpAddr> = self
            .local
            .workloads
            .iter()
            .flat_map(|w| w.addresses.iter().copied())
            .collect();
        // What others hold elsewhere is none of those that are looked for.
        let near = |a: &IpAddr| mine.leases.iter().any(|l| l.contains(a));
        used.extend(
            resolved
                .members
                .values()
                .flat_map(|m| m.addresses.iter().copied())
                .filter(near),
        );
        workload.addresses = self.addresses_for(&workload.name, &mine.leases, &used, ip)?;
        workload.since = now;
        self.local
            .unconfirmed
            .workloads
            .insert(workload.name.clone());
        self.local.workloads.push(workload.clone());
        self.publish_workloads(me, now)?;
        Ok(workload)
    }

    /// The addresses that the name had before, else free ones that belong to no other name: until no other are left, then
    /// the name that is gone for longest gives its up.
    fn addresses_for(
        &mut self,
        name: &Name,
        leases: &[IpNet],
        used: &BTreeSet<IpAddr>,
        ip: Option<IpAddr>,
    ) -> Result<Vec<IpAddr>> {
        let pools = self.records.pools();
        let mut wanted: Vec<IpAddr> = ip.into_iter().collect();
        let ours = |a: &IpAddr| {
            pools.usable(*a) && !used.contains(a) && leases.iter().any(|l| l.contains(a))
        };
        for address in self
            .local
            .kept
            .iter()
            .filter(|k| k.name == *name)
            .flat_map(|k| &k.addresses)
        {
            if ours(address) && !wanted.iter().any(|w| w.is_ipv4() == address.is_ipv4()) {
                wanted.push(*address);
            }
        }
        // What could be had if nothing was kept: of a family that is used up no address is missed.
        let families = free_addresses(&pools, leases, used, &wanted)?.len();
        self.local
            .kept
            .retain(|k| k.name != *name && !k.addresses.iter().any(|a| wanted.contains(a)));
        loop {
            let kept = self
                .local
                .kept
                .iter()
                .flat_map(|k| k.addresses.iter().copied());
            let avoid = used.iter().copied().chain(kept).collect();
            match free_addresses(&pools, leases, &avoid, &wanted) {
                Ok(found) if found.len() >= families => return Ok(found),
                other if self.local.kept.is_empty() => return other,
                _ => drop(self.local.kept.remove(0)),
            }
        }
    }

    /// What the kernel has taken stands from now on, also after the daemon was killed.
    pub fn confirm(&mut self, name: &Name, what: Added) {
        match what {
            Added::Workload => self.local.unconfirmed.workloads.remove(name),
            Added::Map => self.local.unconfirmed.maps.remove(name),
        };
    }

    fn publish_workloads(&mut self, me: &Identity, now: u64) -> Result<()> {
        let entries = self.workload_entries();
        self.publish(me, now, |d| d.workloads = entries)
    }

    /// The workloads attached here, as this node's document says them.
    pub(super) fn workload_entries(&self) -> Vec<WorkloadEntry> {
        let entry = |w: &Workload| WorkloadEntry {
            name: w.name.clone(),
            addresses: w.addresses.clone(),
        };
        self.local.workloads.iter().map(entry).collect()
    }

    /// Detaches a workload; its name is free again, its addresses are kept for when that comes back.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`.
    pub fn detach(&mut self, me: &Identity, name: &str, now: u64) -> Result<Workload> {
        let place = self
            .local
            .workloads
            .iter()
            .position(|w| w.name.as_str().eq_ignore_ascii_case(name));
        let Some(place) = place else {
            return Err(Error::new(
                Kind::NotFound,
                Code::NoWorkload,
                format!("no workload {} here", printable(name)),
            )
            .hint(Hint::ListWorkloads));
        };
        let gone = self.local.workloads.remove(place);
        self.confirm(&gone.name, Added::Workload);
        self.local.kept.retain(|k| k.name != gone.name);
        self.local.kept.push(Kept {
            name: gone.name.clone(),
            addresses: gone.addresses.clone(),
        });
        let surplus = self.local.kept.len().saturating_sub(MAX_KEPT);
        self.local.kept.drain(..surplus);
        self.publish_workloads(me, now)?;
        Ok(gone)
    }

    /// Whether the DNS can say these answers of a name, together with those this node says already.
    fn can_be_said(&self, me: &Identity, name: &str, data: &[RecordData], ttl: u32) -> Result<()> {
        let wrong = |code, message| Err(Error::new(Kind::Usage, code, message));
        let misleading =
            |d: &&RecordData| matches!(d, RecordData::Address(address) if !may_name(*address));
        if let Some(RecordData::Address(address)) = data.iter().find(misleading) {
            let message = format!(
                "{address} is no address for a name: it leads whoever asks to itself or its own link"
            );
            return wrong(Code::Address, message);
        }
        if ttl > MAX_TTL {
            return wrong(
                Code::Ttl,
                format!("a time to live has at most {MAX_TTL} seconds, this has {ttl}"),
            );
        }
        let zone = &self.records.genesis.domain;
        if !is_record_name(name) {
            return wrong(
                Code::Name,
                format!("{} cannot be a name of zone {zone}", printable(name)),
            );
        }
        let whole = name.len().saturating_add(1).saturating_add(zone.len());
        if whole > MAX_NAME {
            let message = format!(
                "{name}.{zone} has {whole} characters: a name has at most {MAX_NAME} in all"
            );
            return wrong(Code::Name, message);
        }
        for answer in data {
            let said = self.records.doc(me.peer).into_iter().flat_map(|d| &d.names);
            let said = said
                .filter(|n| n.name == name)
                .map(|n| &n.data)
                .filter(|d| !data.contains(d));
            let same = said.chain(data).filter(|d| d.kind() == answer.kind());
            let size = same
                .map(RecordData::size)
                .fold(0usize, usize::saturating_add);
            if size > MAX_SET {
                let message = format!(
                    "the {} records of {name} would have {size} bytes: one answer holds at most {MAX_SET}",
                    answer.kind()
                );
                return wrong(Code::DnsSize, message);
            }
            if !data_fits(answer) {
                let message = format!(
                    "the {} record of {name} leads to what cannot be a name",
                    answer.kind()
                );
                return wrong(Code::Name, message);
            }
        }
        Ok(())
    }

    /// Adds answers for a name.
    ///
    /// # Errors
    /// `E-ADDRESS`, `E-TTL`, `E-NAME`, `E-DNS-SIZE`, `E-NAME-TAKEN`, `E-CNAME`.
    pub fn dns_add(
        &mut self,
        me: &Identity,
        name: &str,
        data: &[RecordData],
        ttl: u32,
        now: u64,
    ) -> Result<()> {
        let resolved = self.resolve(now);
        self.myself(me, &resolved)?;
        let name = self.relative(name);
        self.can_be_said(me, &name, data, ttl)?;
        if self.name_is_taken(me, &resolved, &name) {
            return Err(Error::new(
                Kind::Conflict,
                Code::NameTaken,
                format!("the name {name} is taken in subnet {}", self.name()),
            )
            .hint(Hint::ListNames(self.name().clone())));
        }
        let has = |d: &dyn Fn(&RecordData) -> bool| {
            resolved.answers(&name).any(|n| d(&n.data)) || data.iter().any(d)
        };
        // RFC 1034, 3.6.2: a CNAME stands alone.
        if has(&|d| matches!(d, RecordData::Cname(_)))
            && has(&|d| !matches!(d, RecordData::Cname(_)))
        {
            return Err(Error::new(
                Kind::Conflict,
                Code::Cname,
                format!("{name} cannot have a CNAME beside other records"),
            ));
        }
        self.publish(me, now, |d| {
            for answer in data {
                d.names.retain(|n| !(n.name == name && n.data == *answer));
                d.names.push(NameEntry {
                    name: name.clone(),
                    data: answer.clone(),
                    ttl,
                });
            }
        })
    }

    /// Takes answers of this node's own away; gives how many.
    ///
    /// # Errors
    /// `E-NO-NAME`, also where another member said the name.
    pub fn dns_rm(
        &mut self,
        me: &Identity,
        name: &str,
        kind: Option<&str>,
        now: u64,
    ) -> Result<usize> {
        let name = self.relative(name);
        let matches = |n: &NameEntry| {
            n.name == name && kind.is_none_or(|k| n.data.kind().eq_ignore_ascii_case(k))
        };
        let count = self
            .records
            .doc(me.peer)
            .map_or(0, |d| d.names.iter().filter(|n| matches(n)).count());
        if count == 0 {
            return Err(Error::new(
                Kind::NotFound,
                Code::NoName,
                format!(
                    "this node added no name {} to subnet {}",
                    printable(&name),
                    self.name()
                ),
            )
            .hint(Hint::ListNames(self.name().clone())));
        }
        self.publish(me, now, |d| d.names.retain(|n| !matches(n)))?;
        Ok(count)
    }

    /// A name without the zone behind it, lower case.
    pub fn relative(&self, name: &str) -> String {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let zone = &self.records.genesis.domain;
        lower
            .strip_suffix(zone.as_str())
            .and_then(|n| n.strip_suffix('.'))
            .map(str::to_owned)
            .unwrap_or(lower)
    }

    /// Address of a map's target in the family of `like`, and whether it is attached here.
    pub fn target_address(
        &self,
        me: &Identity,
        resolved: &Resolved,
        target: &str,
        like: IpAddr,
    ) -> Option<(IpAddr, bool)> {
        let family = |a: &&IpAddr| a.is_ipv4() == like.is_ipv4();
        if let Ok(address) = target.parse::<IpAddr>() {
            let (peer, _) = resolved
                .members
                .iter()
                .find(|(_, m)| super::members::holds_address(m, address))?;
            return Some((address, *peer == me.peer));
        }
        let name = self.relative(target);
        let short = name
            .strip_suffix(&format!(".{}", self.name()))
            .unwrap_or(&name)
            .to_owned();
        let find = |peer: &PeerId, name: &str| {
            let member = resolved.members.get(peer)?;
            let addresses = member
                .workloads
                .iter()
                .find(|(w, _)| w.as_str() == name)
                .map(|(_, a)| a);
            addresses?
                .iter()
                .find(family)
                .map(|a| (*a, *peer == me.peer))
        };
        if let Some(peer) = resolved.member_named(&short) {
            let own = resolved.members.get(&peer)?.addresses.iter().find(family);
            return own.map(|a| (*a, peer == me.peer));
        }
        // What stands below a member's name is that member's.
        let below = short
            .rsplit_once('.')
            .and_then(|(name, last)| Some((resolved.member_named(last)?, name)));
        let (holder, name) = match below {
            Some((peer, name)) => (peer, name),
            None => (*resolved.flat.get(short.as_str())?, short.as_str()),
        };
        if let Some(found) = find(&holder, name) {
            return Some(found);
        }
        let added = resolved
            .members
            .get(&holder)?
            .names
            .iter()
            .find_map(|entry| match entry.data {
                RecordData::Address(a) if entry.name == name && a.is_ipv4() == like.is_ipv4() => {
                    Some(a)
                }
                _ => None,
            })?;
        let (peer, _) = resolved
            .members
            .iter()
            .find(|(_, m)| super::members::holds_address(m, added))?;
        Some((added, *peer == me.peer))
    }

    /// Whether a map's target is a name that several members claim and nobody registered.
    pub fn is_contested(&self, resolved: &Resolved, target: &str) -> bool {
        let name = self.relative(target);
        let short = name
            .strip_suffix(&format!(".{}", self.name()))
            .unwrap_or(&name);
        resolved.contested.contains_key(short)
    }

    /// Adds a port map. `others` are the maps of every subnet here.
    ///
    /// # Errors
    /// `E-NO-TARGET`, `E-PORT-TAKEN`, `E-NAME-TAKEN`.
    pub fn map_add(&mut self, me: &Identity, map: Map, others: &[Map], now: u64) -> Result<()> {
        let resolved = self.resolve(now);
        self.myself(me, &resolved)?;
        let wild = |a: &Map, b: &Map| {
            a.listen == b.listen || a.listen.is_unspecified() || b.listen.is_unspecified()
        };
        let clash = |o: &&Map| {
            o.proto == map.proto
                && o.port == map.port
                && o.listen.is_ipv4() == map.listen.is_ipv4()
                && wild(o, &map)
        };
        if let Some(other) = others.iter().find(clash) {
            return Err(Error::new(
                Kind::Conflict,
                Code::PortTaken,
                format!(
                    "{} {} is mapped already, by {}",
                    map.proto,
                    endpoint(map.listen, map.port),
                    other.name
                ),
            )
            .hint(Hint::ListMaps));
        }
        // One that listens on every address is one of each family, under one name.
        let other_half = |m: &Map| {
            let wild = m.listen.is_unspecified() && map.listen.is_unspecified();
            let same = (m.proto, m.port, &m.target, m.target_port)
                == (map.proto, map.port, &map.target, map.target_port);
            wild && same && m.listen.is_ipv4() != map.listen.is_ipv4()
        };
        if self
            .local
            .maps
            .iter()
            .any(|m| m.name == map.name && !other_half(m))
        {
            return Err(Error::new(
                Kind::Conflict,
                Code::NameTaken,
                format!("a map named {} exists in subnet {}", map.name, self.name()),
            )
            .hint(Hint::ListMaps));
        }
        if self
            .target_address(me, &resolved, &map.target, map.listen)
            .is_none()
        {
            let (family, other) = match map.listen {
                IpAddr::V4(_) => ("IPv4", IpAddr::from(Ipv6Addr::UNSPECIFIED)),
                IpAddr::V6(_) => ("IPv6", IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            };
            let (name, target) = (self.name(), printable(&map.target));
            let message = match self.target_address(me, &resolved, &map.target, other) {
                Some(_) => format!("{target} has no {family} address in subnet {name}"),
                None => format!("subnet {name} has no workload or member {target}"),
            };
            return Err(Error::new(Kind::NotFound, Code::NoTarget, message)
                .hint(Hint::ShowSubnet(self.name().clone())));
        }
        self.local.unconfirmed.maps.insert(map.name.clone());
        self.local.maps.push(map);
        Ok(())
    }

    /// Removes the port maps that are meant.
    pub fn map_remove(&mut self, is: impl Fn(&Map) -> bool) {
        let (gone, stay) = std::mem::take(&mut self.local.maps)
            .into_iter()
            .partition::<Vec<Map>, _>(|map| is(map));
        self.local.maps = stay;
        for map in gone {
            self.confirm(&map.name, Added::Map);
        }
    }
}

/// `A:P`, with brackets around version 6.
pub fn endpoint(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
