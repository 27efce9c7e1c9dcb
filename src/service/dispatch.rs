//! Gives each event of the peers to the protocol it belongs to, and dials whom packets and people want.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::records::tell;
use super::{Mesh, clock, inbox, join, lan, relay, sessions};
use crate::link::{Key, Via};
use crate::model::id::PeerId;
use crate::model::source::{Payer, Source};
use crate::p2p::{Address, Class, Command, Event, Heard, Protocol, Typed};

/// The most addresses that an announcement holds.
const MAX_ENDPOINTS: usize = 32;
/// Time between two looks at where members are, and at subnets that have nobody connected.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long default routes are quiet before they are followed: one that is replaced goes and comes.
const REROUTED: Duration = Duration::from_millis(200);

/// Follows the events of the peers' task.
pub(crate) async fn run(
    mesh: Arc<Mesh>,
    mut events: mpsc::Receiver<Event>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut config = mesh.follow_config();
    let mut view = mesh.node.published();
    sessions::deny(&mesh).await;
    let uplinks = sessions::uplinks(&mesh);
    sessions::tell_uplinks(&mesh, uplinks.as_ref()).await;
    let (mut mapped, mut outside) = (mesh.portmap.follow(), mesh.outside.subscribe());
    let (mut listening, mut settled) = (Vec::new(), None);
    // The View by whose records others are known.
    let mut taken = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Ok(()) = config.changed() => {
                sessions::deny(&mesh).await;
                // Who relays for nobody any more ends what it forwards now.
                relay::look(&mesh);
            }
            // The router opened a port, or closed one.
            Ok(()) = mapped.changed() => publish_addresses(&mesh, &listening).await,
            Ok(()) = outside.changed() => publish_addresses(&mesh, &listening).await,
            // Who becomes a member, or is one no more, has other terms from now on.
            Ok(()) = view.changed() => relay::follow(&mesh),
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                if let Event::Listening { addresses } = &event {
                    listening.clone_from(addresses);
                    mesh.portmap.listening(addresses);
                    // Which of them the kernel prefers is told first, so that they are taken in that order.
                    sessions::tell_uplinks(&mesh, uplinks.as_ref()).await;
                }
                on_event(&mesh, event).await?;
            }
            () = sessions::rerouted(uplinks.as_ref()) => {
                settled = Some(tokio::time::Instant::now() + REROUTED);
            }
            () = async { tokio::time::sleep_until(settled.unwrap_or_else(tokio::time::Instant::now)).await },
                if settled.is_some() =>
            {
                settled = None;
                publish_addresses(&mesh, &listening).await;
                sessions::tell_uplinks(&mesh, uplinks.as_ref()).await;
            }
            _ = look.tick() => {
                if mesh.links.outbound_port().is_some() {
                    // Nothing is listened on, so that no event tells of new addresses.
                    sessions::listening(&mesh, &listening).await;
                }
                relay::look(&mesh);
                relay::offers::keep_record(&mesh).await?;
                // Every record that is taken in makes another View. To read a thousand of them again for nothing costs
                // as much memory as to hold them.
                let generation = mesh.node.view().load().generation;
                if taken != Some(generation) {
                    relay::offers::follow_records(&mesh).await?;
                    tell_whereabouts(&mesh).await?;
                    taken = Some(generation);
                }
                dial_hints(&mesh).await?;
            }
        }
    }
}

async fn on_event(mesh: &Arc<Mesh>, event: Event) -> anyhow::Result<()> {
    match event {
        Event::Connected {
            peer,
            connection,
            class,
            transport,
            remote,
            outbound,
            relay,
        } => {
            tracing::debug!(%peer, connection, ?class, transport, remote, "connected");
            mesh.table.arrived(peer, connection, class);
            mesh.relays.connected(connection, relay.is_some());
            if class == Class::Member {
                member_came(mesh, peer, outbound.then_some(remote), relay).await?;
            }
            mesh.joins.hurry();
        }
        Event::Closed {
            peer,
            connection,
            remaining,
        } => closed(mesh, peer, connection, remaining).await,
        Event::StreamOut {
            peer,
            connection,
            subnet,
            transport,
            remote,
            below,
            stream,
        } => {
            let via = Via {
                transport,
                remote,
                below,
            };
            mesh.datapath
                .carry_out(Key { subnet, peer }, connection, via, stream);
        }
        Event::StreamIn {
            peer,
            connection,
            subnet,
            stream,
        } => {
            mesh.datapath
                .carry_in(Key { subnet, peer }, connection, stream);
        }
        Event::Asked {
            peer,
            class,
            protocol,
            remote_ip,
            relay,
            body,
            responder,
            ..
        } => {
            let payer = payer_of(peer, class, remote_ip, relay);
            match protocol {
                Protocol::Join => join::arrived(mesh, payer, peer, body, responder),
                Protocol::Control => inbox::arrived(mesh, peer, body, responder),
                Protocol::Service => inbox::service_arrived(mesh, peer, body, responder),
                Protocol::Relay => relay::arrived(mesh, payer, peer, &body, responder),
            }
        }
        Event::Discovered { peer, addresses } => discovered(mesh, peer, &addresses).await,
        Event::Listening { addresses } => {
            mesh.lan.listening(&addresses);
            publish_addresses(mesh, &addresses).await;
        }
        Event::OnLink { addresses } => mesh.lan.on_link(addresses),
        Event::Observed { peer, address } => sessions::observed(mesh, &address, peer).await,
        Event::Reserved { relay } => mesh.spawn(relay::reserved(Arc::clone(mesh), relay)),
        Event::Unreserved { relay, .. } => mesh.relays.unreserved(relay),
        Event::Left { relay } => mesh.spawn(relay::left(Arc::clone(mesh), relay)),
        Event::Rtt {
            peer,
            connection,
            rtt,
        } => mesh.relays.measured(peer, connection, rtt),
    }
    Ok(())
}

/// A member has come: it is told what is new here, and asked what is there. `reached` is where this node dialled it, `relay` who
/// forwards the connection.
async fn member_came(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    reached: Option<String>,
    relay: Option<PeerId>,
) -> anyhow::Result<()> {
    mesh.traffic.begins(peer, std::time::Instant::now());
    if let Some(remote) = reached.filter(|remote| Heard::parse(remote).is_some()) {
        mesh.node.note_reached(peer, remote).await?;
    }
    // Should the comparison at its coming fail, its next turn is soon.
    mesh.spread.lock().lively(std::time::Instant::now());
    mesh.spawn(tell::with_peer(Arc::clone(mesh), peer));
    mesh.spawn(clock::compare(Arc::clone(mesh), peer));
    mesh.spawn(relay::offers::tell(Arc::clone(mesh), peer));
    mesh.spawn(sessions::connected(Arc::clone(mesh), peer));
    if let Some(relay) = relay {
        mesh.spawn(relay::connected(Arc::clone(mesh), peer, relay));
    }
    Ok(())
}

/// A connection is closed; `remaining` of that peer are left.
async fn closed(mesh: &Arc<Mesh>, peer: PeerId, connection: u64, remaining: usize) {
    mesh.links.drop_connection(peer, connection);
    mesh.table.left(peer, connection, remaining);
    mesh.relays.closed(connection);
    if remaining == 0 {
        gone(mesh, peer).await;
    }
}

/// A peer was heard of on a local network.
async fn discovered(mesh: &Arc<Mesh>, peer: PeerId, addresses: &[Heard]) {
    mesh.table.seen(peer, addresses);
    if mesh.node.view().load().members().contains(&peer) {
        sessions::found(mesh, peer, addresses).await;
    }
    mesh.joins.hurry();
}

/// The last connection of a peer is closed.
async fn gone(mesh: &Arc<Mesh>, peer: PeerId) {
    if let Some(direct) = &mesh.direct {
        // Over an idle connection nothing is to be kept for a member that may not be wanted again for long.
        if mesh.is_in_use(peer) {
            direct.closed(peer).await;
        } else {
            direct.let_go(peer).await;
        }
    }
    lan::lost(mesh, peer);
    mesh.joins.lost(peer);
}

/// Tells where this node is reached: what it listens on, and what the configuration says besides.
async fn publish_addresses(mesh: &Arc<Mesh>, addresses: &[Address]) {
    mesh.relays.listening(addresses);
    let addresses = &sessions::outward(addresses).await;
    sessions::listening(mesh, addresses).await;
    // Behind a NAT only those through relays lead here: however many others there are, none of these is left out.
    let (circuits, direct): (Vec<_>, Vec<_>) = addresses.iter().partition(|a| a.relay().is_some());
    let mut endpoints: Vec<String> = mesh.config().advertise.clone();
    for found in mesh.mapped().into_iter().chain(mesh.outside()) {
        let found = found.to_string();
        if !endpoints.contains(&found) && !direct.iter().any(|own| own.to_string() == found) {
            endpoints.push(found);
        }
    }
    endpoints.extend(direct.into_iter().map(ToString::to_string));
    endpoints.truncate(MAX_ENDPOINTS.saturating_sub(circuits.len()));
    endpoints.extend(circuits.into_iter().map(ToString::to_string));
    if let Err(error) = mesh.node.set_endpoints(endpoints).await {
        tracing::warn!(%error, "publish this node's addresses");
    }
}

/// The payer that a request is counted against: a member, wherever it is; else the relay that the connection runs through,
/// or where it came from.
fn payer_of(peer: PeerId, class: Class, remote: Option<IpAddr>, relay: Option<PeerId>) -> Payer {
    match (class, relay, remote) {
        (Class::Member, _, _) => Payer::Member(peer),
        (_, Some(relay), _) => Payer::Source(Source::Relay(relay)),
        (_, None, Some(address)) => Payer::Source(Source::of(address)),
        (_, None, None) => Payer::Inside,
    }
}

/// Peers that have packets and no stream are dialled.
pub(crate) async fn follow_wanted(
    mesh: Arc<Mesh>,
    mut wanted: mpsc::Receiver<Key>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            key = wanted.recv() => {
                let Some(key) = key else { return Ok(()) };
                mesh.peers.send(Command::Wanted { peer: key.peer }).await?;
            }
        }
    }
}

/// Tells where members are by their announcements: places for handshakes are kept for these addresses, also when this
/// daemon has just been started and has seen nobody yet.
async fn tell_whereabouts(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let members = mesh.node.view().load().members();
    let announcements = mesh.node.member_endpoints().await?;
    let addresses = |peer: &PeerId| {
        let texts = announcements.get(peer).into_iter().flatten();
        texts
            .filter_map(|text| text.parse::<Address>().ok()?.ip())
            .collect::<Vec<_>>()
    };
    let told = members
        .iter()
        .map(|peer| (*peer, addresses(peer)))
        .collect();
    mesh.peers.send(Command::Whereabouts(told)).await?;
    Ok(())
}

/// Addresses given by hand are tried while a subnet has nobody connected: they may name no peer, so the address book
/// cannot hold them.
async fn dial_hints(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let connected = mesh.table.members();
    let view = mesh.node.view().load_full();
    for (id, hints) in mesh.node.hints().await? {
        let alone = view
            .rolls
            .get(&id)
            .is_some_and(|roll| !roll.is_empty() && !roll.iter().any(|m| connected.contains(m)));
        let addresses: Vec<Typed> = hints
            .iter()
            .chain(&mesh.config().bootstrap)
            .filter_map(|h| h.parse().ok())
            .collect();
        if alone && !addresses.is_empty() {
            let peers = mesh.peers.clone();
            mesh.spawn(async move {
                // Whoever answers is heard of as an event, also after this has ended.
                let _ = tokio::time::timeout(LOOK_EVERY, peers.connect(addresses, None)).await;
            });
        }
    }
    Ok(())
}
