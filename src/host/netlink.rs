//! Links, addresses, routes, rules and neighbours over rtnetlink, in the namespace of the thread that opened it.

mod changes;
mod messages;
mod router;
mod wake;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use anyhow::Context;
use futures::{Stream, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_sys::{AsyncSocket, TokioSocket};
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::exits::exits;
use super::inner::MAIN;
pub use messages::LinkInfo;
pub(super) use messages::RouteInfo;
pub(super) use messages::{link_info, local_address, neighbour_of, route_info};
pub use router::{Router, routers};
pub(super) use wake::Wake;
pub(super) use ways::Way;

use super::uplinks::Ways;
use crate::model::host::{NamespaceState, Route, Rule, TABLE, alias_name};

/// What was found in one namespace.
#[derive(Default)]
pub(super) struct Look {
    pub state: NamespaceState,
    pub table_shared: bool,
    pub uplinks: BTreeMap<String, BTreeSet<IpAddr>>,
    pub connected: Vec<(IpNet, String)>,
    pub link_local: BTreeSet<(Ipv6Addr, u32)>,
    /// Indexes of our links.
    pub indexes: BTreeSet<u32>,
    /// Indexes of the other ends of our pairs, by the name of ours.
    pub ends: BTreeMap<String, u32>,
    /// Numbers of the namespaces that those ends are in.
    pub numbers: BTreeMap<String, i32>,
}

impl Look {
    /// Adds a link of ours by the name it should have.
    fn add_own(&mut self, name: String, info: LinkInfo) {
        self.indexes.insert(info.index);
        self.ends.insert(name.clone(), info.other_end);
        self.numbers
            .extend(info.other_netns.map(|number| (name.clone(), number)));
        self.state.links.insert(name, info.link);
    }

    /// Adds a link of somebody else, with those of all `addresses` and `link_local` ones that are on it.
    fn add_foreign(
        &mut self,
        info: LinkInfo,
        addresses: &[(u32, IpAddr, u8)],
        link_local: &[(u32, Ipv6Addr)],
    ) {
        if !info.loopback {
            let networks = addresses.iter().filter(|(link, ..)| *link == info.index);
            let networks =
                networks.filter_map(|(_, address, length)| IpNet::new(*address, *length).ok());
            let several =
                networks.filter(|network| network.prefix_len() < network.max_prefix_len());
            self.connected
                .extend(several.map(|network| (network.trunc(), info.name.clone())));
            let here = link_local.iter().filter(|(link, _)| *link == info.index);
            self.link_local
                .extend(here.map(|(link, address)| (*address, *link)));
            if !info.link.addresses.is_empty() {
                self.uplinks.insert(info.name.clone(), info.link.addresses);
            }
        }
        self.state.foreign.insert(info.name);
    }
}

/// One netlink connection for requests.
#[derive(Debug)]
pub struct Netlink {
    pub(super) handle: Handle,
    /// Asks the kernel to filter dumps, so that one table of a router is not a dump of all.
    pub(super) strict: Handle,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The error of a request, as the kernel's words.
pub(super) fn plain(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().into(),
        other => anyhow::anyhow!("{other}"),
    }
}

/// Errno of a kernel's refusal.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

/// A socket that was made elsewhere, in the hands of the runtime.
#[expect(
    unsafe_code,
    reason = "the crate takes a socket over only as a number, by an unsafe call"
)]
fn asynchronous(socket: OwnedFd) -> TokioSocket {
    // SAFETY: the number is that of an open socket which this call owns, and gives away.
    unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) }
}

async fn all<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> anyhow::Result<Vec<T>> {
    stream
        .try_collect()
        .await
        .map_err(plain)
        .with_context(|| format!("list {what}"))
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace; needs a runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> anyhow::Result<Netlink> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open a netlink socket")?;
        let first = tokio::spawn(connection);
        let (connection, strict, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .context("open a netlink socket")?;
        Ok(Netlink {
            handle,
            strict,
            tasks: [first, tokio::spawn(connection)],
        })
    }

    /// Speaks over two route sockets of whatever namespace they were made in; needs a runtime.
    ///
    /// # Errors
    /// When there are not two.
    pub(super) fn over(sockets: Vec<OwnedFd>) -> anyhow::Result<Netlink> {
        let sockets = <[OwnedFd; 2]>::try_from(sockets);
        let [first, second] = sockets.map_err(|_| anyhow::anyhow!("not two sockets"))?;
        let (connection, handle, _) = rtnetlink::from_socket(asynchronous(first));
        let mut filtered = asynchronous(second);
        // Kernels that do not filter send everything.
        let _ = filtered.socket_mut().set_netlink_get_strict_chk(true);
        let (strict_connection, strict, _) = rtnetlink::from_socket(filtered);
        Ok(Netlink {
            handle,
            strict,
            tasks: [tokio::spawn(connection), tokio::spawn(strict_connection)],
        })
    }

    /// The connection itself, for what is asked nowhere else.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Indexes of the links that a default route leads over, in whatever table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) async fn default_links(&self) -> anyhow::Result<Vec<u32>> {
        let routes = self.routes(None).await?;
        let defaults = routes
            .iter()
            .filter(|r| r.route.destination.prefix_len() == 0);
        Ok(defaults.flat_map(|r| r.links.clone()).collect())
    }

    /// The links that default routes lead over, as [`default_links`](Self::default_links); the addresses of this machine on
    /// them, in the order in which the kernel prefers the routes: those of the main table first, by their metric; and by which
    /// link their datagrams have to leave where the kernel would choose another.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) async fn uplinks(&self) -> anyhow::Result<Ways> {
        let mut defaults = self.routes(None).await?;
        defaults.retain(|r| r.route.destination.prefix_len() == 0 && r.link.is_some());
        defaults.sort_by_key(|r| (r.route.table != MAIN, r.metric));
        let addresses = self.addresses().await?;
        let mut ways = Ways::default();
        for default in &defaults {
            let is_v4 = default.route.destination.addr().is_ipv4();
            let on_links = addresses
                .iter()
                .filter(|(link, ip, _)| default.links.contains(link) && ip.is_ipv4() == is_v4);
            // A route may say which of the addresses of its link is taken.
            let source = default.route.source;
            let all = source.into_iter().chain(on_links.map(|(_, ip, _)| *ip));
            ways.preferred.extend(all);
            ways.links.extend(&default.links);
        }
        let mut seen = BTreeSet::new();
        ways.preferred.retain(|ip| seen.insert(*ip));
        ways.links.sort_unstable();
        ways.links.dedup();
        ways.exits = exits(self, &defaults, &addresses).await?;
        Ok(ways)
    }

    /// All links by index, without addresses and neighbours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn links(&self) -> anyhow::Result<BTreeMap<u32, LinkInfo>> {
        let messages = all("links", self.handle.link().get().execute()).await?;
        Ok(messages
            .iter()
            .map(|m| (m.header.index, link_info(m)))
            .collect())
    }

    /// Index of a link.
    async fn index(&self, name: &str) -> anyhow::Result<u32> {
        let mut stream = Box::pin(
            self.handle
                .link()
                .get()
                .match_name(name.to_owned())
                .execute(),
        );
        let message = stream.try_next().await.map_err(plain)?;
        message
            .map(|m| m.header.index)
            .with_context(|| format!("no link {name}"))
    }

    /// Addresses with global scope: index of the link, address, prefix length.
    async fn addresses(&self) -> anyhow::Result<Vec<(u32, IpAddr, u8)>> {
        Ok(self.scoped_addresses().await?.0)
    }

    /// Addresses with global scope, and the IPv6 ones of their link that can be listened on.
    async fn scoped_addresses(
        &self,
    ) -> anyhow::Result<(Vec<(u32, IpAddr, u8)>, Vec<(u32, Ipv6Addr)>)> {
        let messages = all("addresses", self.handle.address().get().execute()).await?;
        let of_scope = |scope| {
            messages
                .iter()
                .filter(move |m: &&AddressMessage| m.header.scope == scope)
        };
        let global = of_scope(AddressScope::Universe);
        let global = global
            .filter_map(|m| Some((m.header.index, local_address(m)?, m.header.prefix_len)))
            .collect();
        // One that is being looked for on the link is nobody's yet.
        let unsure = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        let local = of_scope(AddressScope::Link).filter(|m| !m.header.flags.intersects(unsure));
        let local = local.filter_map(|m| match local_address(m)? {
            IpAddr::V6(address) => Some((m.header.index, address)),
            IpAddr::V4(_) => None,
        });
        Ok((global, local.collect()))
    }

    /// Unicast and blackhole-like routes, of one table or of all.
    async fn routes(&self, table: Option<u32>) -> anyhow::Result<Vec<RouteInfo>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            if let Some(table) = table {
                filter.attributes.push(RouteAttribute::Table(table));
            }
            let handle = if table.is_some() {
                &self.strict
            } else {
                &self.handle
            };
            match handle
                .route()
                .get(filter)
                .execute()
                .try_collect::<Vec<_>>()
                .await
            {
                Ok(messages) => routes.extend(messages.iter().filter_map(route_info)),
                // No such table: no such routes.
                Err(error) if errno(&error) == Some(libc::ENOENT) => {}
                // No IPv6 at all.
                Err(error)
                    if family == AddressFamily::Inet6
                        && errno(&error) == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(plain(error).context("list routes")),
            }
        }
        // Kernels that do not filter send everything.
        routes.retain(|r| table.is_none_or(|table| r.route.table == table));
        Ok(routes)
    }

    /// Permanent neighbours: index of the link, address, hardware address.
    async fn neighbours(&self) -> anyhow::Result<Vec<(u32, IpAddr, [u8; 6])>> {
        let messages = all("neighbours", self.handle.neighbours().get().execute()).await?;
        Ok(messages
            .iter()
            .filter(|m| m.header.state == NeighbourState::Permanent)
            .filter_map(neighbour_of)
            .collect())
    }

    /// Our share of this machine's own namespace. `ours` tells the name a link of ours should have. Sysctls are not read.
    pub(super) async fn host_state(
        &self,
        ours: &(dyn Fn(&LinkInfo) -> Option<String> + Sync),
    ) -> anyhow::Result<Look> {
        let mut links = self.links().await?;
        let (addresses, link_local) = self.scoped_addresses().await?;
        for (index, address, _) in &addresses {
            if let Some(info) = links.get_mut(index) {
                info.link.addresses.insert(*address);
            }
        }
        for (index, address, mac) in self.neighbours().await? {
            if let Some(info) = links.get_mut(&index) {
                info.link.neighbours.insert(address, mac);
            }
        }
        let mut look = Look::default();
        // A route names its link by the name the link should have.
        let mut names = BTreeMap::new();
        for (index, info) in links {
            if let Some(key) = ours(&info) {
                names.insert(index, key.clone());
                look.add_own(key, info);
            } else {
                look.add_foreign(info, &addresses, &link_local);
            }
        }
        for info in self.routes(Some(TABLE)).await? {
            match info.link.and_then(|index| names.get(&index)) {
                Some(name) if info.ours => {
                    look.state.routes.insert(Route {
                        link: name.clone(),
                        ..info.route
                    });
                }
                Some(_) => {}
                None => look.table_shared |= info.ours && info.route.table == TABLE,
            }
        }
        (look.state.rules, look.state.ahead) = self
            .rules(|rule| rule.table == TABLE && rule.source.is_none())
            .await?;
        look.connected.sort();
        look.connected.dedup();
        Ok(look)
    }

    /// Every prefix in use on this machine, with the device it leads to, except what is ours: routes of every table and
    /// addresses, without default routes, multicast and link-local ones.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn used_prefixes(&self, instance: &str) -> anyhow::Result<Vec<(IpNet, String)>> {
        let links = self.links().await?;
        let mut used = BTreeSet::new();
        for (index, address, length) in self.addresses().await? {
            if let Ok(prefix) = IpNet::new(address, length) {
                used.insert((prefix.trunc(), Some(index)));
            }
        }
        for info in self.routes(None).await? {
            if !matches!(
                info.kind,
                RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast
            ) {
                used.insert((info.route.destination, info.link));
            }
        }
        let ours = |index: &u32| {
            links
                .get(index)
                .is_some_and(|l| alias_name(instance, &l.link.alias).is_some())
        };
        let name = |index: u32| {
            links
                .get(&index)
                .map_or_else(|| "none".to_owned(), |l| l.name.clone())
        };
        Ok(used
            .into_iter()
            .filter(|(prefix, link)| counts(prefix) && !link.as_ref().is_some_and(ours))
            .map(|(prefix, link)| (prefix, link.map_or_else(|| "none".to_owned(), name)))
            .collect())
    }

    /// Every gateway of the machine's routes but of this instance's.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn gateways(&self, instance: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
        let links = self.links().await?;
        let ours = |index: &u32| {
            links
                .get(index)
                .is_some_and(|l| alias_name(instance, &l.link.alias).is_some())
        };
        let routes = self
            .routes(None)
            .await?
            .into_iter()
            .filter(|info| !info.link.as_ref().is_some_and(ours));
        Ok(routes
            .flat_map(|info| info.route.gateway.into_iter().chain(info.hops))
            .collect())
    }

    /// Routes and rules that bear our mark in our table, whoever made them, and whether any route is left whose link is
    /// not in `gone`. For `cleanup`.
    pub(super) async fn leftovers(&self) -> anyhow::Result<(Vec<Route>, BTreeSet<Rule>)> {
        let links = self.links().await?;
        let named = |info: RouteInfo| {
            let link = info
                .link
                .and_then(|index| links.get(&index))
                .map(|l| l.name.clone())
                .unwrap_or_default();
            Route { link, ..info.route }
        };
        let routes = self
            .routes(Some(TABLE))
            .await?
            .into_iter()
            .filter(|r| r.ours)
            .map(named)
            .collect();
        Ok((
            routes,
            self.rules(|rule| rule.table == TABLE && rule.source.is_none())
                .await?
                .0,
        ))
    }
}

/// Every prefix in use on this machine but those of this instance, with the device it leads to: for picking free pools
/// and refusing overlaps. Default routes, multicast and link-local prefixes are left out.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn used_prefixes(instance: &str) -> anyhow::Result<Vec<(IpNet, String)>> {
    Netlink::open()?.used_prefixes(instance).await
}

/// Every gateway that a route of this machine leads to, those of this instance left out.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn gateways(instance: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
    Netlink::open()?.gateways(instance).await
}

/// Names of every link that is not this instance's.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn foreign_links(instance: &str) -> anyhow::Result<BTreeSet<String>> {
    let links = Netlink::open()?.links().await?.into_values();
    Ok(links
        .filter(|l| alias_name(instance, &l.link.alias).is_none())
        .map(|l| l.name)
        .collect())
}

fn counts(prefix: &IpNet) -> bool {
    let link_local = match prefix.addr() {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    prefix.prefix_len() != 0 && !prefix.addr().is_multicast() && !link_local
}
