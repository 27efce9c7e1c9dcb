//! A look into a namespace that somebody else rules.
//!
//! A workload may be root in its namespace and fill it with whatever it likes. So nothing is listed there but what hangs
//! on our own link: the link is asked for by its index (which our end of the pair knows) and by its name, addresses,
//! neighbours and routes by dumps that the kernel filters by that index. Rules the kernel cannot filter: they are read
//! one by one and only ours are kept. Each list ends at [`MOST`] entries.

use std::collections::BTreeSet;

use super::netlink::{
    LinkInfo, Netlink, errno, link_info, local_address, neighbour_of, plain, route_info,
};
use crate::model::host::{NamespaceState, PROTOCOL, Route, Rule, alias_name};
use anyhow::{Context, bail};
use futures::{Stream, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};

/// Entries of one list that are read; what has more is not configured by us, and is left alone.
const MOST: usize = 16_384;
/// Number of the routing table `main`.
pub(super) const MAIN: u32 = 254;
/// How many names are tried for a new link.
const NAMES: u32 = 1000;

/// A link of ours that should be there.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// The name that the link should have.
    pub name: String,
    /// Its index, where the other end of the pair tells.
    pub index: Option<u32>,
    /// The hardware address it is made with: our mark until it has an alias.
    pub mac: [u8; 6],
    /// Number of the routing table of its own.
    pub table: u32,
}

/// The messages of a dump, one by one. Where what the dump is about does not exist there is nothing.
pub(super) async fn each<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    mut take: impl FnMut(T),
) -> anyhow::Result<()> {
    let mut stream = std::pin::pin!(stream);
    for _ in 0..MOST {
        match stream.try_next().await {
            Ok(Some(message)) => take(message),
            Ok(None) => return Ok(()),
            Err(error)
                if matches!(
                    errno(&error),
                    Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(plain(error).context(format!("list {what}"))),
        }
    }
    bail!("there are more than {MOST} {what}")
}

impl Netlink {
    /// One link, by index or by name.
    pub(super) async fn link(
        &self,
        index: Option<u32>,
        name: &str,
    ) -> anyhow::Result<Option<LinkInfo>> {
        let get = self.handle.link().get();
        let get = match index {
            Some(index) => get.match_index(index),
            None => get.match_name(name.to_owned()),
        };
        let mut stream = std::pin::pin!(get.execute());
        match stream.try_next().await {
            Ok(message) => Ok(message.as_ref().map(link_info)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(plain(error).context("look at a link")),
        }
    }

    /// The first of `byway0`, `byway1`… that neither the namespace nor `taken` has.
    pub(super) async fn free_name(&self, taken: &[String]) -> anyhow::Result<String> {
        for name in (0..NAMES)
            .map(|n| format!("byway{n}"))
            .filter(|name| !taken.contains(name))
        {
            if self.link(None, &name).await?.is_none() {
                return Ok(name);
            }
        }
        bail!("every name from byway0 to byway{} is taken", NAMES - 1)
    }

    /// Our share of the namespace: the expected links with all that hangs on them, and those of `rules` that stand.
    /// Sysctls are not read.
    pub(super) async fn inner_state(
        &self,
        instance: &str,
        expected: &[Expected],
        rules: &BTreeSet<Rule>,
    ) -> anyhow::Result<NamespaceState> {
        let mut state = NamespaceState::default();
        for wanted in expected {
            let ours = |info: &LinkInfo| match alias_name(instance, &info.link.alias) {
                Some(name) => name == wanted.name,
                None => info.link.mac == Some(wanted.mac) && info.name == wanted.name,
            };
            let named = self.link(None, &wanted.name).await?;
            let indexed = match wanted.index {
                Some(index) => self.link(Some(index), "").await?,
                None => None,
            };
            if let Some(info) = named.iter().find(|info| !ours(info)) {
                state.foreign.insert(info.name.clone());
            }
            let Some(mut info) = indexed.into_iter().chain(named).find(ours) else {
                continue;
            };
            self.addresses_of(info.index, |address| {
                info.link.addresses.insert(address);
            })
            .await?;
            self.neighbours_of(info.index, |(address, mac)| {
                info.link.neighbours.insert(address, mac);
            })
            .await?;
            for table in [MAIN, wanted.table] {
                self.routes_of(info.index, table, |route| {
                    state.routes.insert(Route {
                        link: wanted.name.clone(),
                        ..route
                    });
                })
                .await?;
            }
            state.links.insert(wanted.name.clone(), info.link);
        }
        (state.rules, state.ahead) = self.rules(|rule| rules.contains(rule)).await?;
        Ok(state)
    }

    async fn addresses_of(
        &self,
        index: u32,
        mut take: impl FnMut(std::net::IpAddr),
    ) -> anyhow::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.address_messages(index, family, |message| {
                if message.header.scope == AddressScope::Universe {
                    local_address(&message).into_iter().for_each(&mut take);
                }
            })
            .await?;
        }
        Ok(())
    }

    /// The addresses of one link, as the kernel writes them.
    pub(super) async fn address_messages(
        &self,
        index: u32,
        family: AddressFamily,
        mut take: impl FnMut(netlink_packet_route::address::AddressMessage),
    ) -> anyhow::Result<()> {
        let mut get = self.strict.address().get();
        get.message_mut().header.family = family;
        get.message_mut().header.index = index;
        // Kernels that do not filter send everything.
        each("addresses", get.execute(), |message| {
            if message.header.index == index {
                take(message);
            }
        })
        .await
    }

    async fn neighbours_of(
        &self,
        index: u32,
        mut take: impl FnMut((std::net::IpAddr, [u8; 6])),
    ) -> anyhow::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut get = self.strict.neighbours().get().set_address_family(family);
            get.message_mut()
                .attributes
                .push(NeighbourAttribute::IfIndex(index));
            each("neighbours", get.execute(), |message| {
                if message.header.ifindex == index
                    && message.header.state == NeighbourState::Permanent
                {
                    neighbour_of(&message)
                        .into_iter()
                        .for_each(|(_, address, mac)| take((address, mac)));
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Whether there are routes in table `main` to all of these by a link, whoever made them.
    pub(super) async fn has_routes(&self, index: u32, wanted: &[IpNet]) -> anyhow::Result<bool> {
        let mut missing: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(MAIN));
            filter.attributes.push(RouteAttribute::Oif(index));
            let all = self.strict.route().get(filter).execute();
            each("routes", all, |message| {
                if let Some(info) = route_info(&message)
                    && info.link == Some(index)
                    && info.route.table == MAIN
                {
                    missing.remove(&info.route.destination);
                }
            })
            .await?;
        }
        Ok(missing.is_empty())
    }

    /// Routes of ours along one link in one table.
    async fn routes_of(
        &self,
        index: u32,
        table: u32,
        mut take: impl FnMut(Route),
    ) -> anyhow::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::Other(PROTOCOL);
            filter.attributes.push(RouteAttribute::Table(table));
            filter.attributes.push(RouteAttribute::Oif(index));
            each(
                "routes",
                self.strict.route().get(filter).execute(),
                |message| {
                    if let Some(info) = route_info(&message)
                        && info.ours
                        && info.link == Some(index)
                        && info.route.table == table
                    {
                        take(info.route);
                    }
                },
            )
            .await
            .with_context(|| format!("table {table}"))?;
        }
        Ok(())
    }
}
