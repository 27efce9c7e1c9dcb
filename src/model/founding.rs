//! How a subnet is founded, and what of this machine keeps one from coming here, founded or joined.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::{Code, Error, Hint, Kind, Result};
use super::id::Name;
use super::ipam::{default_block4, overlaps, pick_pool4};
use super::local::Local;
use super::members::{Subnet, printable};
use super::policy::{Around, is_subnet_domain, pool_fault};
use super::record::{Admission, Body, Genesis, Grant, Prefix6, Role, Term};
use super::state::State;
use super::subnet::Records;

/// How a subnet comes to this machine: what helps where it cannot depends on that.
#[derive(Debug, Clone, Copy)]
pub(super) enum Coming<'a> {
    /// Its founder chooses its name and prefixes.
    Founded,
    /// A joiner chooses only what it is called here. `target` is what was typed to join: `INVITE`, or the ID.
    Joined { target: &'a str },
}

/// What `create` was asked for, checked for form only.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Name of the subnet, which the genesis keeps for good.
    pub name: Name,
    /// The IPv4 pool: `None` founds without IPv4, `Some(None)` picks a free one.
    pub cidr4: Option<Option<Ipv4Net>>,
    /// The IPv6 pool: `None` founds without IPv6, `Some(None)` derives it from the ID.
    pub cidr6: Option<Option<Ipv6Net>>,
    /// Prefix length of a member's IPv4 block; the default where none is given.
    pub block4: Option<u8>,
    /// The rule for joiners that bring no invite.
    pub admission: Admission,
    /// Domain of the names; `<name>.internal` where none is given.
    pub domain: Option<String>,
    /// Seconds a grant lasts; the default where none is given.
    pub grant_life: Option<u64>,
    /// Name of the founder as a member.
    pub member: Name,
    /// What this machine uses and the pools must leave alone.
    pub around: Around,
    /// 16 random bytes, so that two subnets founded alike have different IDs.
    pub salt: [u8; 16],
    /// What of this machine itself the subnet reaches; none: nothing was said of it, it is closed.
    pub host: Option<super::host::HostPolicy>,
}

/// Seconds a grant lasts where nobody said otherwise.
const GRANT_LIFE: u64 = 90 * 86_400;

impl Founding {
    fn domain(&self) -> String {
        self.domain
            .clone()
            .unwrap_or_else(|| format!("{}.internal", self.name))
    }
}

fn usage(code: Code, message: String) -> Error {
    Error::new(Kind::Usage, code, message)
}

fn prefix6(asked: Option<Option<Ipv6Net>>) -> Prefix6 {
    match asked {
        None => Prefix6::None,
        Some(None) => Prefix6::Derived,
        Some(Some(given)) => Prefix6::Given(given),
    }
}

impl State {
    /// Refuses a prefix that overlaps a route of this machine or another subnet here, or holds an address it cannot do
    /// without. Routes to this daemon's own links are not in `around`.
    ///
    /// # Errors
    /// `E-CIDR-OVERLAP`.
    pub(super) fn check_overlap(
        &self,
        name: &Name,
        prefixes: &[IpNet],
        around: &Around,
        coming: Coming<'_>,
    ) -> Result<()> {
        for prefix in prefixes {
            let other = self
                .subnets
                .values()
                .find(|s| s.records.prefixes().iter().any(|p| overlaps(*p, *prefix)));
            let route = around.routed.iter().find(|(p, _)| overlaps(*p, *prefix));
            let need = around
                .needs
                .iter()
                .find(|need| prefix.contains(&need.address));
            let why = match (other, route, need) {
                (Some(subnet), ..) => format!("subnet {} uses it here", subnet.name()),
                (None, Some((_, link)), _) => format!("this machine already routes it to {link}"),
                (None, None, Some(need)) => format!("it holds {}", need.what),
                (None, None, None) => continue,
            };
            let hint = match (coming, other, route) {
                (Coming::Founded, ..) => self.other_prefix(name, *prefix, around),
                // Its prefixes are those its founder chose.
                (Coming::Joined { .. }, Some(subnet), _) => {
                    Some(Hint::ShowRival(subnet.name().clone()))
                }
                (Coming::Joined { .. }, None, Some((routed, _))) => Some(Hint::ShowRoute(*routed)),
                (Coming::Joined { .. }, None, None) => Some(Hint::AskForPrefix),
            };
            let message = format!("cannot use {prefix} for subnet {name}: {why}");
            return Err(Error::new(Kind::Conflict, Code::CidrOverlap, message).hint(hint));
        }
        Ok(())
    }

    /// How `name` is founded with another prefix than `refused`.
    fn other_prefix(&self, name: &Name, refused: IpNet, around: &Around) -> Option<Hint> {
        if refused.addr().is_ipv6() {
            return Some(Hint::FoundWithAny6(name.clone()));
        }
        let taken: Vec<IpNet> = around
            .taken()
            .chain(self.subnets.values().flat_map(|s| s.records.prefixes()))
            .collect();
        pick_pool4(&taken, 0).ok().map(|free| Hint::FoundWithFree4 {
            name: name.clone(),
            free,
        })
    }

    pub(super) fn check_alias(&self, alias: &Name, coming: Coming<'_>) -> Result<()> {
        let Some(same) = self.subnets.values().find(|s| s.local.alias == *alias) else {
            return Ok(());
        };
        let message = format!("a subnet named {alias} exists here: {}", same.records.id);
        let hint = match coming {
            Coming::Founded => Hint::ShowNamesake(alias.clone()),
            Coming::Joined { target } => Hint::JoinAs(target.to_owned()),
        };
        Err(Error::new(Kind::Conflict, Code::SubnetExists, message).hint(hint))
    }

    /// The subnet that this node founded with these values, if it has done so: what was left open then fits what was
    /// chosen.
    pub fn founded(&self, founding: &Founding) -> Option<&Subnet> {
        let subnet = self
            .subnets
            .values()
            .find(|s| s.local.alias == founding.name)?;
        let genesis = &subnet.records.genesis;
        let block4 = default_block4(genesis.cidr4.map_or(16, |c| c.prefix_len()));
        let same = (genesis.owner, &genesis.name) == (self.me.peer, &founding.name)
            && match founding.cidr4 {
                None => genesis.cidr4.is_none(),
                Some(None) => genesis.cidr4.is_some(),
                Some(given) => genesis.cidr4 == given,
            }
            && genesis.cidr6 == prefix6(founding.cidr6)
            && genesis.block4 == founding.block4.unwrap_or(block4)
            && genesis.admission == founding.admission
            && genesis.domain == founding.domain()
            && genesis.grant_life == founding.grant_life.unwrap_or(GRANT_LIFE)
            && founding
                .host
                .as_ref()
                .is_none_or(|host| *host == subnet.local.host)
            && !subnet.records.destroyed();
        same.then_some(subnet)
    }

    /// The founding statement of a subnet with these values; what was left open is chosen.
    fn genesis_of(&self, founding: &Founding, now: u64) -> Result<Genesis> {
        let cidr4 = self.pool4_of(founding)?;
        let pool_len = cidr4.map_or(16, |c| c.prefix_len());
        let block4 = founding.block4.unwrap_or_else(|| default_block4(pool_len));
        if block4 < pool_len || block4 > 32 {
            return Err(usage(
                Code::Cidr,
                format!("a block of length {block4} does not fit into a pool of length {pool_len}"),
            ));
        }
        let domain = founding.domain();
        if !is_subnet_domain(&domain) {
            let message = format!(
                "{} is no domain for a subnet: it has two labels at least",
                printable(&domain)
            );
            return Err(usage(Code::Name, message));
        }
        let genesis = Genesis {
            version: 1,
            owner: self.me.peer,
            name: founding.name.clone(),
            cidr4,
            cidr6: prefix6(founding.cidr6),
            block4,
            admission: founding.admission,
            domain,
            grant_life: founding.grant_life.unwrap_or(GRANT_LIFE),
            created: now,
            salt: founding.salt,
        };
        Genesis::parse(&genesis.encode())
            .map_err(|_| usage(Code::Cidr, "these values make no subnet".to_owned()))
    }

    /// The version 4 pool, picked where none is given. Pools of either version that cannot be had are refused.
    fn pool4_of(&self, founding: &Founding) -> Result<Option<Ipv4Net>> {
        let taken: Vec<IpNet> = founding
            .around
            .taken()
            .chain(self.subnets.values().flat_map(|s| s.records.prefixes()))
            .collect();
        let cidr4 = match founding.cidr4 {
            None => None,
            Some(Some(given)) => Some(given),
            Some(None) => Some(pick_pool4(
                &taken,
                founding.salt.first().copied().unwrap_or(0),
            )?),
        };
        for given in cidr4
            .map(IpNet::V4)
            .into_iter()
            .chain(founding.cidr6.flatten().map(IpNet::V6))
        {
            if let Some(why) = pool_fault(given) {
                return Err(usage(Code::Cidr, format!("{given} {why}")));
            }
        }
        if cidr4.is_none() && founding.cidr6.is_none() {
            return Err(usage(
                Code::Cidr,
                "a subnet needs a version 4 or a version 6 pool".to_owned(),
            ));
        }
        Ok(cidr4)
    }

    /// Founds a subnet: this node owns it and is its first member.
    ///
    /// # Errors
    /// `E-SUBNET-EXISTS`, `E-CIDR`, `E-CIDR-OVERLAP`, `E-POOL-NONE`.
    pub fn found(&self, founding: Founding, now: u64) -> Result<Subnet> {
        self.check_alias(&founding.name, Coming::Founded)?;
        let genesis = self.genesis_of(&founding, now)?;
        let id = genesis.id();
        let records = Records::new(genesis);
        self.check_overlap(
            &founding.name,
            &records.prefixes(),
            &founding.around,
            Coming::Founded,
        )?;
        let block = records.pools().free_block(&[], None, |_| true)?;
        let interface = self.interface_name(&founding.name, id, &founding.around.links);
        let host = founding.host.unwrap_or_default();
        let local = Local::new(records.genesis.encode(), founding.name, interface, host);
        let mut subnet = Subnet::new(records, local);
        let grant = Grant {
            subject: self.me.peer,
            data_key: self.me.data_key,
            name: founding.member,
            role: Role::Owner,
            generation: 1,
            addresses: block.addresses,
            leases: block.leases,
            seal_key: self.me.seal_key,
            version: 1,
            seat: 0,
            term: Term::Full,
            not_before: now,
            not_after: now.saturating_add(subnet.records.genesis.grant_life),
            labels: BTreeMap::new(),
        };
        subnet.issue(&self.me, Body::Grant(grant))?;
        Ok(subnet)
    }
}
