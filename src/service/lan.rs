//! LAN peers: carries out what [`lan`](crate::lan) decides, with the sockets of
//! [`mdns`](crate::mdns). What is heard goes to the peers' task as hearsay of a link.
//!
//! Limits: those of the two; links are looked at once a second at most.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Mesh;
use super::join::Surroundings;
use crate::host::{LanLink, LinkChanges, lan_links};
use crate::lan::{Counts, Found, Lan, LinkIs, MAX_PLACES, Pace, Place, Wanted};
use crate::mdns::{Incoming, Mdns, On};
use crate::model::id::PeerId;
use crate::p2p::{Address, Carrier, Command, Heard};

/// How long changes of links settle before they are looked at: several come together.
const SETTLE: Duration = Duration::from_millis(300);
/// The least time between two looks at the links.
const LOOK: Duration = Duration::from_secs(1);
/// How long a socket that could not be opened waits for the next try.
const RETRY: Duration = Duration::from_secs(60);

/// What people are told of the search on the local networks.
#[derive(Debug, Clone, Default)]
pub(crate) struct LanStatus {
    /// The links that are spoken on, by name.
    pub links: Vec<String>,
    /// Peers that were heard of there.
    pub peers: usize,
    /// What was said, heard and dropped since the start.
    pub counts: Counts,
    /// Messages that were dropped before anybody looked at them, since the start, by the reason.
    pub unread: Unread,
    /// The addresses of this machine on these links, each with its network.
    pub networks: Vec<IpNet>,
    /// What keeps it from a link, in words; none where nothing does.
    pub failed: Option<String>,
}

/// What [`Dropped`](crate::mdns::Dropped) counts, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unread {
    hops: u64,
    too_many: u64,
    malformed: u64,
    full: u64,
}

impl LanStatus {
    /// The messages that were dropped, by the reason.
    pub(crate) fn drops(&self) -> [(&'static str, u64); 7] {
        let unread = self.unread;
        let counts = &self.counts;
        [
            (
                "not-of-the-link",
                unread.hops.saturating_add(counts.off_link),
            ),
            ("malformed", unread.malformed),
            ("queue-full", unread.full),
            ("too-many", unread.too_many),
            ("forged", counts.forged),
            ("crowded", counts.crowded),
            ("unusable", counts.unusable),
        ]
    }
}

/// What others tell the search, and what it tells.
#[derive(Debug, Default)]
pub(crate) struct LanShared {
    /// Somebody was lost, or is wanted.
    hurry: Notify,
    /// The joins under way are others than before, or the addresses listened on are.
    changed: Notify,
    /// The addresses listened on: all but the link-local ones of IPv6, and those.
    listening: Mutex<(Vec<Address>, Vec<Address>)>,
    status: Mutex<LanStatus>,
}

impl LanShared {
    /// Looks again at once, since somebody is wanted.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// The joins under way are others than before.
    pub(crate) fn joins_changed(&self) {
        self.changed.notify_one();
    }

    /// Takes the addresses listened on but the link-local ones.
    pub(crate) fn listening(&self, addresses: &[Address]) {
        self.listening.lock().0 = addresses.to_vec();
        self.changed.notify_one();
    }

    /// Takes the link-local addresses listened on.
    pub(crate) fn on_link(&self, addresses: Vec<Address>) {
        self.listening.lock().1 = addresses;
        self.changed.notify_one();
    }

    /// The link-local addresses listened on, each with the name of its link in front; of one that stands on several, each.
    fn zoned(&self, links: &[LanLink]) -> Vec<Address> {
        let listening = self.listening.lock();
        let on = |address: &Address| {
            let ip = address.ip();
            let has = move |link: &&LanLink| link.networks.iter().any(|n| Some(n.addr()) == ip);
            let zoned = |link: &LanLink| format!("/ip6zone/{}{address}", link.name).parse().ok();
            links.iter().filter(has).filter_map(zoned).collect()
        };
        listening.1.iter().flat_map::<Vec<Address>, _>(on).collect()
    }

    /// How the search goes.
    pub(crate) fn status(&self) -> LanStatus {
        self.status.lock().clone()
    }

    /// Where this machine is reached on a link: its addresses there that are listened on.
    fn places(&self, link: &LanLink) -> Vec<Place> {
        let listening = self.listening.lock();
        let mut places: BTreeMap<(IpAddr, u16), (bool, bool)> = BTreeMap::new();
        let direct = listening.0.iter().filter(|a| a.relay().is_none());
        for address in direct.chain(&listening.1) {
            let (Some(ip), Some(port)) = (address.ip(), address.port()) else {
                continue;
            };
            if !link.networks.iter().any(|net| net.addr() == ip) {
                continue;
            }
            let place = places.entry((ip, port)).or_default();
            match address.carrier() {
                Some(Carrier::Quic) => place.0 = true,
                Some(Carrier::Tcp) => place.1 = true,
                _ => {}
            }
        }
        let places = places.into_iter().map(|((ip, port), (quic, tcp))| Place {
            address: (ip, port).into(),
            quic,
            tcp,
        });
        places
            .filter(|place| place.quic || place.tcp)
            .take(MAX_PLACES)
            .collect()
    }
}

/// Where this machine is reached on its links alone: its link-local addresses of IPv6 that are listened on, with their links.
pub(crate) async fn on_links(mesh: &Mesh) -> Vec<Address> {
    match lan_links().await {
        Ok(links) => mesh.lan.zoned(&links),
        Err(error) => {
            tracing::debug!(%error, "list this machine's links");
            Vec::new()
        }
    }
}

/// A member is connected no more: where nobody else of a subnet is, everybody is looked for.
pub(crate) fn lost(mesh: &Mesh, peer: PeerId) {
    let view = mesh.node.view().load();
    let of = |roll: &Arc<std::collections::BTreeSet<PeerId>>| {
        roll.contains(&peer) && !roll.iter().any(|other| mesh.table.is_member(*other))
    };
    if view.rolls.values().any(of) {
        mesh.lan.hurry();
    }
}

/// Looks for LAN peers until `stop`, where the configuration lets it.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let is_kernel = matches!(mesh.surroundings, Surroundings::Kernel { .. });
    if !is_kernel || !mesh.config().lan_discovery {
        stop.cancelled().await;
        return Ok(());
    }
    let changes = LinkChanges::follow()
        .inspect_err(
            |error| tracing::warn!(%error, "links that come later are looked for each minute only"),
        )
        .ok();
    let mut search = Search {
        lan: Lan::new(mesh.peers.peer(), pace(&mesh)),
        looked: None,
        has_subnets: false,
        mdns: Mdns::new(),
        links: Vec::new(),
        mesh,
    };
    search.run(changes, stop).await;
    Ok(())
}

struct Search {
    mesh: Arc<Mesh>,
    lan: Lan,
    mdns: Mdns,
    links: Vec<LanLink>,
    /// When the links were looked at last.
    looked: Option<Instant>,
    /// Whether there is a subnet to ask for or to tell of: without, no socket is open.
    has_subnets: bool,
}

/// How often is asked, by the configuration as it is now.
fn pace(mesh: &Mesh) -> Pace {
    Pace {
        max: mesh.config().discovery.announce,
        ..Pace::default()
    }
}

fn entropy(bytes: &mut [u8]) {
    // Without entropy names repeat, and are as blind as before.
    let _ = getrandom::fill(bytes);
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Search {
    async fn run(&mut self, changes: Option<LinkChanges>, stop: CancellationToken) {
        let mesh = Arc::clone(&self.mesh);
        let mut published = mesh.node.published();
        let mut look = Some(Instant::now());
        let mut retry = tokio::time::interval(RETRY);
        self.follow_subnets().await;
        loop {
            let due = self.lan.poll_timeout().map(Instant::from_std);
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = published.changed() => self.follow_subnets().await,
                () = mesh.lan.changed.notified() => {
                    self.follow_subnets().await;
                    self.tell_links();
                }
                () = mesh.lan.hurry.notified() => self.lan.hurry(now(), &mut entropy),
                () = changed(changes.as_ref()), if look.is_none() => {
                    let settled = Instant::now() + SETTLE;
                    look = self.looked.map(|at| settled.max(at + LOOK)).or(Some(settled));
                }
                () = at(look), if look.is_some() => {
                    look = None;
                    self.look().await;
                }
                _ = retry.tick() => {
                    // A join may have ended without a change of the View.
                    self.follow_subnets().await;
                    look = look.or(Some(Instant::now()));
                }
                incoming = self.mdns.receive() => self.take(incoming).await,
                () = at(due), if due.is_some() => {
                    while let Some((link, message)) = self.lan.poll(now(), &mut entropy) {
                        self.mdns.send(link, &message);
                    }
                }
            }
            self.tell();
        }
    }

    /// Takes the subnets that this node is in, and those that it wants to be in: these come first. Takes over, too, how often
    /// the configuration lets it ask by now.
    async fn follow_subnets(&mut self) {
        self.lan.set_pace(now(), pace(&self.mesh));
        let mut wanted: Vec<Wanted> = Vec::new();
        let joins = self.mesh.node.joins().await.unwrap_or_default();
        for join in joins.into_iter().filter(|join| join.refused.is_none()) {
            wanted.push(Wanted {
                subnet: join.subnet,
                others: 1,
                announces: false,
            });
        }
        let me = self.mesh.peers.peer();
        let view = self.mesh.node.view().load_full();
        for (subnet, roll) in &view.rolls {
            let is_known = |known: &Wanted| known.subnet == *subnet;
            if wanted.iter().any(is_known) {
                continue;
            }
            let others = roll.iter().filter(|peer| **peer != me).count();
            let announces = true;
            wanted.push(Wanted {
                subnet: *subnet,
                others,
                announces,
            });
        }
        self.lan.set_subnets(now(), &wanted, &mut entropy);
        if self.has_subnets == wanted.is_empty() {
            self.has_subnets = !wanted.is_empty();
            self.look().await;
        }
    }

    /// Looks at the links of this machine, and opens what is to be open.
    async fn look(&mut self) {
        self.looked = Some(Instant::now());
        match lan_links().await {
            Ok(links) => self.links = links,
            Err(error) => return tracing::debug!(%error, "list this machine's links"),
        }
        let links = self.links.iter().filter(|_| self.has_subnets);
        let on: Vec<On> = links.map(on).collect();
        let failed = self.mdns.set_links(&on);
        let failed: Vec<String> = failed
            .iter()
            .map(|(link, family, error)| format!("{family} on {link}: {error}"))
            .collect();
        let failed = (!failed.is_empty()).then(|| failed.join("; "));
        {
            let mut status = self.mesh.lan.status.lock();
            if let Some(why) = failed.as_ref().filter(|_| status.failed != failed) {
                tracing::warn!(why, "peers on a local network are not looked for");
            }
            status.failed = failed;
            status.links = self.mdns.links();
            let networks = self.links.iter().flat_map(|link| &link.networks);
            status.networks = networks.copied().collect();
        }
        self.tell_links();
    }

    /// Tells the machine what the links are now.
    fn tell_links(&mut self) {
        let links = self.links.iter().map(|link| LinkIs {
            index: link.index,
            networks: link.networks.clone(),
            places: self.mesh.lan.places(link),
        });
        self.lan.set_links(now(), links.collect(), &mut entropy);
    }

    async fn take(&mut self, incoming: Incoming) {
        let Incoming {
            link,
            source,
            message,
        } = incoming;
        let found = self
            .lan
            .receive(now(), link, source, &message, &mut entropy);
        for found in found {
            let (peer, heard) = (found.peer, dialled(&found));
            tracing::debug!(%peer, ?heard, "heard of on a local network");
            // The task is gone only when the daemon stops.
            let _ = self.mesh.peers.send(Command::OnLan { peer, heard }).await;
        }
    }

    fn tell(&self) {
        let mut status = self.mesh.lan.status.lock();
        status.counts = self.lan.counts();
        status.peers = self.lan.peers(now());
        let dropped = self.mdns.dropped();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        status.unread = Unread {
            hops: count(&dropped.hops),
            too_many: count(&dropped.too_many),
            malformed: count(&dropped.malformed),
            full: count(&dropped.full),
        };
    }
}

fn on(link: &LanLink) -> On {
    let has = |is: fn(&IpAddr) -> bool| link.networks.iter().any(|net| is(&net.addr()));
    On {
        link: link.index,
        name: link.name.clone(),
        v4: has(IpAddr::is_ipv4),
        v6: has(|ip| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())),
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn changed(changes: Option<&LinkChanges>) {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}

/// Where a peer is dialled: by both carriers at its first address of each family, so that the address book has room for all.
/// Of IPv6 a link-local one is taken before others: it works on every link.
fn dialled(found: &Found) -> Vec<Heard> {
    let places = &found.places;
    let first = |is: &dyn Fn(&Place) -> bool| places.iter().find(|place| is(place));
    let v4 = first(&|place| place.address.is_ipv4());
    let local =
        |place: &Place| matches!(place.address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
    let v6 = first(&local).or_else(|| first(&|place| place.address.is_ipv6()));
    let each = v4.into_iter().chain(v6).flat_map(|place| {
        let quic = place.quic.then_some(Carrier::Quic);
        let tcp = place.tcp.then_some(Carrier::Tcp);
        let carriers = tcp.into_iter().chain(quic);
        let heard = carriers.filter_map(move |carrier| Heard::on_link(place.address, carrier));
        heard.map(|heard| if found.is_here { heard.here() } else { heard })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn link(networks: &[&str]) -> LanLink {
        LanLink {
            index: 1,
            name: "lo".into(),
            networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn on_a_link_its_own_addresses_are_told_with_the_carriers_that_listen_there() {
        let here = LanShared::default();
        here.listening(&[
            address("/ip4/192.0.2.7/tcp/4100"),
            address("/ip4/192.0.2.7/udp/4100/quic-v1"),
            address("/ip4/192.0.2.7/tcp/5000"),
            address("/ip4/198.51.100.7/tcp/4100"),
        ]);
        here.on_link(vec![address("/ip6/fe80::7/udp/4100/quic-v1")]);
        let places = here.places(&link(&["192.0.2.7/24", "fe80::7/64"]));
        let of = |text: &str, quic, tcp| Place {
            address: text.parse().unwrap(),
            quic,
            tcp,
        };
        assert_eq!(
            places,
            [
                of("192.0.2.7:4100", true, true),
                of("192.0.2.7:5000", false, true),
                of("[fe80::7]:4100", true, false)
            ]
        );
        assert_eq!(here.places(&link(&["203.0.113.1/24"])), []);
    }

    #[test]
    fn a_link_local_address_is_told_with_each_link_that_it_stands_on() {
        let here = LanShared::default();
        here.listening(&[address("/ip4/192.0.2.7/tcp/4100")]);
        here.on_link(vec![
            address("/ip6/fe80::7/udp/4100/quic-v1"),
            address("/ip6/fe80::8/tcp/4100"),
        ]);
        let named = |name: &str| LanLink {
            name: name.to_owned(),
            ..link(&["192.0.2.7/24", "fe80::7/64"])
        };
        let told = here.zoned(&[named("eth0"), named("eth1")]);
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "/ip6zone/eth0/ip6/fe80::7/udp/4100/quic-v1",
                "/ip6zone/eth1/ip6/fe80::7/udp/4100/quic-v1"
            ]
        );
    }

    #[test]
    fn a_peer_is_dialled_at_one_address_of_each_family_a_link_local_one_by_its_link() {
        let place = |text: &str| Place {
            address: text.parse().unwrap(),
            quic: true,
            tcp: true,
        };
        // The loopback link has the index 1 in every namespace.
        let places = [
            place("192.0.2.7:4100"),
            place("192.0.2.8:4100"),
            place("[fd00::7]:4100"),
            place("[fe80::7%1]:4100"),
        ];
        let found = Found {
            peer: PeerId([1; 32]),
            places: places.to_vec(),
            is_here: false,
        };
        let dialled: Vec<String> = dialled(&found)
            .iter()
            .map(|heard| heard.address().to_string())
            .collect();
        assert_eq!(
            dialled,
            [
                "/ip4/192.0.2.7/tcp/4100",
                "/ip4/192.0.2.7/udp/4100/quic-v1",
                "/ip6zone/lo/ip6/fe80::7/tcp/4100",
                "/ip6zone/lo/ip6/fe80::7/udp/4100/quic-v1",
            ]
        );
    }
}
