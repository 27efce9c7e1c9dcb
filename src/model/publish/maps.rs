//! The port maps of this machine, which nobody else is told, and where they lead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Added;
use crate::model::error::{Code, Error, Hint, Kind, Result};
use crate::model::followed::Away;
use crate::model::host::Proto;
use crate::model::id::{IdError, Name, PeerId};
use crate::model::local::Map;
use crate::model::members::{Identity, Subnet, holds_address, printable};
use crate::model::ports::PortRange;
use crate::model::resolve::{Member, Resolved};
use crate::model::workload::Workload;
use crate::model::zone::RecordData;

/// The most ports that one map may have: each is an element of the ruleset, and a socket for clients on loopback.
pub const MAX_PORTS: u16 = 1024;

impl Map {
    /// The ports of the target, as many as the machine listens on.
    pub fn target_ports(&self) -> Option<PortRange> {
        self.ports.moved_to(self.target_port)
    }

    /// Where it listens, as `ADDRESS:PORT` or `ADDRESS:PORT-PORT`.
    pub fn listens_at(&self) -> String {
        endpoint(self.listen, self.ports)
    }

    /// Where it leads, as `TARGET:PORT` or `TARGET:PORT-PORT`, with brackets around an IPv6 address.
    pub fn leads_to(&self) -> String {
        let host = match self.target.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.target.clone(),
        };
        match self.target_ports() {
            Some(ports) => format!("{host}:{ports}"),
            None => format!("{host}:{}", self.target_port),
        }
    }

    /// What a map is called that nobody named.
    ///
    /// # Errors
    /// `E-NAME`; no protocol and ports make such a name.
    pub fn default_name(proto: Proto, listen: Option<IpAddr>, ports: PortRange) -> Result<Name> {
        let family = if listen.is_none_or(|l| l.is_ipv4()) {
            ""
        } else {
            "6"
        };
        let name = format!("{proto}{family}-{ports}").parse();
        name.map_err(|e: IdError| Error::new(Kind::Usage, Code::Name, e.to_string()))
    }

    /// Whether both listen on every address, one of each family, and are else the same: then they share their name.
    pub(super) fn is_other_half(&self, other: &Map) -> bool {
        let wild = self.listen.is_unspecified() && other.listen.is_unspecified();
        let same = (self.proto, self.ports, &self.target, self.target_port)
            == (other.proto, other.ports, &other.target, other.target_port);
        wild && same && self.listen.is_ipv4() != other.listen.is_ipv4()
    }

    /// The lowest port on which both would listen.
    fn clashes_with(&self, other: &Map) -> Option<u16> {
        let wild = self.listen == other.listen
            || self.listen.is_unspecified()
            || other.listen.is_unspecified();
        let same = self.proto == other.proto && self.listen.is_ipv4() == other.listen.is_ipv4();
        self.ports.shared_with(other.ports).filter(|_| wild && same)
    }
}

impl Subnet {
    /// The workload here that a map leads to and that is away now, and why.
    pub fn absent_target(
        &self,
        me: &Identity,
        resolved: &Resolved,
        target: &str,
    ) -> Option<(&Workload, Away)> {
        let meant = self.workload_of_target(me, resolved, target)?;
        Some((meant, self.away(&meant.name)?))
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
            let is_here = holder_of(resolved, address)? == me.peer;
            let at = |w: &&Workload| w.addresses.contains(&address);
            let mut there = self.local.workloads.iter().filter(at);
            let is_shut = is_here && there.any(|w| self.told_addresses(w).is_empty());
            return (!is_shut).then_some((address, is_here));
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
        let added = added_address(resolved.members.get(&holder)?, name, like)?;
        Some((added, holder_of(resolved, added)? == me.peer))
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
        self.is_port_free(&map, others)?;
        // One that listens on every address is one of each family, under one name.
        if self
            .local
            .maps
            .iter()
            .any(|m| m.name == map.name && !m.is_other_half(&map))
        {
            return Err(Error::new(
                Kind::Conflict,
                Code::NameTaken,
                format!("a map named {} exists in subnet {}", map.name, self.name()),
            )
            .hint(Hint::ListMaps));
        }
        let target = self.target_address(me, &resolved, &map.target, map.listen);
        let drains = || self.draining_target(me, &resolved, &map.target, map.listen);
        if target.is_none() && drains().is_none() {
            return Err(self.no_target(me, &resolved, &map));
        }
        self.local.unconfirmed.maps.insert(map.name.clone());
        self.local.maps.push(map);
        Ok(())
    }

    /// Refuses a map whose ports one of the others has.
    pub(super) fn is_port_free(&self, map: &Map, others: &[Map]) -> Result<()> {
        let clash = |o: &Map| Some((map.clashes_with(o)?, o.name.clone()));
        match others.iter().find_map(clash) {
            Some((port, other)) => Err(Error::new(
                Kind::Conflict,
                Code::PortTaken,
                format!(
                    "{} {} is mapped already, by {other}",
                    map.proto,
                    std::net::SocketAddr::new(map.listen, port),
                ),
            )
            .hint(Hint::ListMaps)),
            None => Ok(()),
        }
    }

    /// The refusal that says why a map leads nowhere.
    fn no_target(&self, me: &Identity, resolved: &Resolved, map: &Map) -> Error {
        let (family, other) = match map.listen {
            IpAddr::V4(_) => ("IPv4", IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            IpAddr::V6(_) => ("IPv6", IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        };
        let (name, target) = (self.name(), printable(&map.target));
        let message = match self.target_address(me, resolved, &map.target, other) {
            Some(_) => format!("{target} has no {family} address in subnet {name}"),
            None => format!("subnet {name} has no workload or member {target}"),
        };
        Error::new(Kind::NotFound, Code::NoTarget, message)
            .hint(Hint::ShowSubnet(self.name().clone()))
    }

    /// Removes the port maps that are meant.
    pub fn map_remove(&mut self, is: impl Fn(&Map) -> bool) {
        let (gone, stay) = std::mem::take(&mut self.local.maps)
            .into_iter()
            .partition::<Vec<Map>, _>(|map| is(map));
        self.local.maps = stay;
        for map in gone {
            self.confirm(&map.name, Added::Map);
            // Who gives another map that name has it apart from the workload.
            for with in self.local.companions.values_mut() {
                with.maps.remove(&map.name);
            }
        }
    }
}

/// The member that an address belongs to.
fn holder_of(resolved: &Resolved, address: IpAddr) -> Option<PeerId> {
    let mut members = resolved.members.iter();
    members
        .find(|(_, m)| holds_address(m, address))
        .map(|(peer, _)| *peer)
}

/// The address that a member gave a name by itself, in the family of `like`.
fn added_address(member: &Member, name: &str, like: IpAddr) -> Option<IpAddr> {
    member.names.iter().find_map(|entry| match entry.data {
        RecordData::Address(a) if entry.name == name && a.is_ipv4() == like.is_ipv4() => Some(a),
        _ => None,
    })
}

/// `A:P` or `A:P-P`, with brackets around version 6.
pub fn endpoint(address: IpAddr, ports: PortRange) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{ports}"),
        IpAddr::V6(address) => format!("[{address}]:{ports}"),
    }
}
