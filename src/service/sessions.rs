//! Letters of datagram sessions: what a session asks goes out over the stream, and what members ask is given to it. Addresses
//! come in from libp2p.
//!
//! Limits: so many of our questions are under way at once; a member's keep their place in the inbox until they are answered.
//! Addresses are taken up to [`MAX_ENDPOINTS`] of a message, and only such as datagrams may be sent to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Mesh;
use super::join::Surroundings;
use crate::config::{DataCipher, PostQuantum};
use crate::crypto::aead::{Cipher, Library};
use crate::host::{self, Uplinks, Ways};
use crate::link::Key;
use crate::link::direct::{
    Answerer, Ask, Candidate, Config, Kind, Origin, Paths, PathsAnswerer, SessionMessage, Untold,
};
use crate::link::sealing::{self, Sealing};
use crate::model::id::{PeerId, SubnetId};
use crate::p2p::{self, Address, Command, Heard, Protocol};
use crate::wire::control::{self, ControlAnswer, ControlRequest, MAX_ENDPOINTS};
use crate::wire::paths::{MAX_CANDIDATES, NatFacts, Udp};

/// How long one question over the stream may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Questions under way at once, far more than sessions of one round of timers ask; what is beyond waits, and fails at once
/// when too many wait.
const UNDER_WAY: usize = 1024;
/// `A:P` of a QUIC address: the port is the datagrams' too.
pub(crate) fn endpoint(address: &Address) -> Option<SocketAddr> {
    let address = address.udp()?;
    Some(match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        // With its scope, where it has one.
        IpAddr::V6(_) => address,
    })
}

/// How this machine seals where its peers can do the same.
pub(crate) fn sealing(cipher: DataCipher) -> Sealing {
    let aes = |library| Sealing {
        cipher: Cipher::Aes256Gcm,
        library,
    };
    match cipher {
        DataCipher::Auto => sealing::fastest(),
        DataCipher::Aes256Gcm => aes(sealing::fastest_aes()),
        DataCipher::Aes256GcmByAwsLc => aes(Library::AwsLc),
        DataCipher::Aes256GcmByRing => aes(Library::Ring),
        DataCipher::ChaCha20Poly1305 => sealing::CHACHA,
    }
}

/// The identity that this node has in every session.
pub(crate) fn config(
    me: PeerId,
    secret: Zeroizing<[u8; 32]>,
    cipher: DataCipher,
    post_quantum: PostQuantum,
) -> Config {
    Config {
        me,
        secret,
        aes: sealing(cipher).aes(),
        post_quantum,
    }
}

/// Asks what the sessions want asked, and passes on what they have found out. Without a stream there is no answer: a question
/// does not dial, nor does it keep a connection that nobody uses.
pub(crate) async fn run(
    mesh: Arc<Mesh>,
    asks: mpsc::Receiver<Ask>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let tell = |command| {
        let peers = mesh.peers.clone();
        async move {
            // The task is gone only when the daemon stops.
            let _ = peers.send(command).await;
        }
    };
    let put = |ask| {
        let may_ask = |peer| mesh.table.is_member(peer) && mesh.is_in_use(peer);
        asked(&ask)
            .is_some_and(may_ask)
            .then(|| put(Arc::clone(&mesh), ask))
    };
    carry(asks, stop, tell, put).await;
    Ok(())
}

/// Tells what was found out one after the other, in the order in which it was: of two that contradict each other the later one
/// holds. Questions run beside that, [`UNDER_WAY`] of them.
async fn carry<T: Future<Output = ()>, F: Future<Output = ()> + Send + 'static>(
    mut asks: mpsc::Receiver<Ask>,
    stop: CancellationToken,
    tell: impl Fn(Command) -> T,
    put: impl Fn(Ask) -> Option<F>,
) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = under_way.join_next() => {}
            ask = asks.recv(), if under_way.len() < UNDER_WAY => {
                let Some(ask) = ask else { break };
                match news(&ask) {
                    Some(news) => tokio::select! {
                        () = stop.cancelled() => break,
                        () = tell(news) => {}
                    },
                    None => if let Some(asking) = put(ask) {
                        under_way.spawn(asking);
                    },
                }
            }
        }
    }
    under_way.shutdown().await;
}

/// Whom something is asked of, or who it is about; none where it is about this machine.
fn asked(ask: &Ask) -> Option<PeerId> {
    match ask {
        Ask::Session { key, .. } => Some(key.peer),
        Ask::Paths { peer, .. }
        | Ask::Punched { peer, .. }
        | Ask::DirectLost { peer }
        | Ask::DataLost { peer }
        | Ask::UdpBlocked { peer, .. }
        | Ask::Leg { peer } => Some(*peer),
        Ask::Roamed => None,
    }
}

/// What was found out, for libp2p; none of a question. It is told of a peer that has gone, too: what was said of it before must
/// not hold when it comes back.
fn news(ask: &Ask) -> Option<Command> {
    match *ask {
        Ask::Punched { peer, address } => {
            tracing::debug!(%peer, %address, "datagrams pass straight");
            Some(Command::Punched { peer, address })
        }
        Ask::DirectLost { peer } => Some(Command::DirectLost { peer }),
        Ask::DataLost { peer } => Some(Command::DataLost { peer }),
        Ask::Roamed => Some(Command::Roamed),
        Ask::UdpBlocked { peer, blocked } => {
            tracing::debug!(%peer, blocked, "datagrams to a peer");
            Some(Command::UdpBlocked { peer, blocked })
        }
        Ask::Session { .. } | Ask::Paths { .. } | Ask::Leg { .. } => None,
    }
}

async fn put(mesh: Arc<Mesh>, ask: Ask) {
    match ask {
        Ask::Session {
            key,
            message,
            answer,
        } => put_session(&mesh, key, message, answer).await,
        Ask::Paths {
            peer,
            paths,
            answer,
        } => put_paths(&mesh, peer, paths, answer).await,
        Ask::Leg { peer } => super::relay::call(&mesh, peer).await,
        Ask::Punched { .. }
        | Ask::DirectLost { .. }
        | Ask::DataLost { .. }
        | Ask::UdpBlocked { .. }
        | Ask::Roamed => {}
    }
}

/// Tells a member where this node may be reached; what the member says of itself.
async fn put_paths(mesh: &Arc<Mesh>, peer: PeerId, paths: Paths, answer: PathsAnswerer) {
    let body = control::encode(&ControlRequest::Paths(paths));
    let said = mesh
        .peers
        .ask(peer, Protocol::Control, body, QUESTION_TIMEOUT)
        .await;
    match said.map(|body| control::decode(&body)) {
        Ok(Ok(ControlAnswer::Paths(said))) => {
            let said = vetted_paths(said);
            let told = addresses(&said);
            answer.give(Some(said)).await;
            prove(mesh, peer, told).await;
        }
        other => {
            tracing::debug!(%peer, answer = ?other, "paths: no answer");
            answer.give(None).await;
        }
    }
}

/// A member says where it may be reached; where this node may be.
pub(crate) async fn told(mesh: &Arc<Mesh>, peer: PeerId, said: Paths) -> ControlAnswer {
    let Some(direct) = &mesh.direct else {
        return ControlAnswer::Paths(without_a_port());
    };
    let said = vetted_paths(said);
    let told = addresses(&said);
    let answer = direct.paths(peer, said).await;
    prove(mesh, peer, told).await;
    match answer {
        Ok(paths) => ControlAnswer::Paths(paths),
        Err(why) => {
            // Who has no session may be no member for now, and is told so: that is no fault of its.
            if why == Untold::TooOften {
                let why = "addresses told too often";
                mesh.table.refuse(peer, Protocol::Control, why);
            }
            ControlAnswer::NoSession
        }
    }
}

/// What a node says that opens no UDP port: the other end waits for no datagram, and can tell its user why there is none.
fn without_a_port() -> Paths {
    Paths {
        facts: NatFacts {
            udp: Udp::Off,
            ..NatFacts::default()
        },
        ..Paths::default()
    }
}

fn addresses(said: &Paths) -> Vec<SocketAddr> {
    said.candidates.iter().map(|c| c.address).collect()
}

/// What a member said, with those of its addresses that datagrams may be sent to on its word.
fn vetted_paths(mut said: Paths) -> Paths {
    said.candidates.truncate(MAX_CANDIDATES);
    let mut told = addresses(&said);
    p2p::keep_sendable(&mut told);
    said.candidates.retain(|c| told.contains(&c.address));
    said
}

async fn put_session(
    mesh: &Arc<Mesh>,
    key: Key,
    SessionMessage { message, endpoints }: SessionMessage,
    answer: Answerer,
) {
    let body = control::encode(&ControlRequest::Session {
        subnet: key.subnet,
        message,
        endpoints,
    });
    let said = mesh
        .peers
        .ask(key.peer, Protocol::Control, body, QUESTION_TIMEOUT)
        .await;
    let message = match said.map(|body| control::decode(&body)) {
        Ok(Ok(ControlAnswer::Session { message, endpoints })) => Some(vetted(message, endpoints)),
        other => {
            tracing::debug!(subnet = %key.subnet, peer = %key.peer, answer = ?other, "session: no answer");
            None
        }
    };
    let told = message.as_ref().map(|message| message.endpoints.clone());
    answer.give(message).await;
    prove(mesh, key.peer, told.unwrap_or_default()).await;
}

/// Those of the addresses that are at a host where a stream reaches the peer, or has reached it: that the peer is there is no
/// hearsay.
fn beside(status: &p2p::PeerStatus, told: &[SocketAddr]) -> Vec<SocketAddr> {
    let remote = status
        .connections
        .iter()
        .filter_map(|c| c.remote.parse::<Address>().ok()?.ip());
    let hosts: Vec<IpAddr> = remote
        .chain(status.reached.iter().filter_map(Address::ip))
        .collect();
    let known = |address: &&SocketAddr| {
        hosts
            .iter()
            .any(|host| host.to_canonical() == address.ip().to_canonical())
    };
    told.iter().filter(known).copied().collect()
}

/// Tells the sessions which of the addresses in a message are at such a host.
async fn prove(mesh: &Mesh, peer: PeerId, told: Vec<SocketAddr>) {
    if told.is_empty() {
        return;
    }
    if let (Some(direct), Ok(status)) = (&mesh.direct, mesh.peers.status_of(peer).await) {
        direct
            .candidates(peer, beside(&status, &told), Origin::Host)
            .await;
    }
}

/// What a member said, with those of its addresses that datagrams may be sent to on its word.
fn vetted(message: Vec<u8>, mut endpoints: Vec<SocketAddr>) -> SessionMessage {
    endpoints.truncate(MAX_ENDPOINTS);
    p2p::keep_sendable(&mut endpoints);
    SessionMessage { message, endpoints }
}

/// Answers a member's question.
pub(crate) async fn answer(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    said: SessionMessage,
) -> ControlAnswer {
    let Some(direct) = &mesh.direct else {
        return ControlAnswer::NoSession;
    };
    let message = vetted(said.message, said.endpoints);
    let told = message.endpoints.clone();
    // Both at once: neither needs the other.
    let proven = prove(mesh, peer, told);
    let (answer, ()) = tokio::join!(direct.request(Key { subnet, peer }, message), proven);
    match answer {
        Some(SessionMessage { message, endpoints }) => {
            ControlAnswer::Session { message, endpoints }
        }
        None => ControlAnswer::NoSession,
    }
}

/// A member is connected: sessions with it begin, wherever libp2p knows it to be.
pub(crate) async fn connected(mesh: Arc<Mesh>, peer: PeerId) {
    let Some(direct) = &mesh.direct else { return };
    direct.connected(peer).await;
    let Ok(status) = mesh.peers.status_of(peer).await else {
        return;
    };
    let told = p2p::sendable(&status.addresses);
    direct.candidates(peer, told.clone(), Origin::Told).await;
    let reached = status.reached.iter().filter_map(endpoint);
    direct
        .candidates(
            peer,
            reached.chain(beside(&status, &told)).collect(),
            Origin::Host,
        )
        .await;
    let remote: Vec<Address> = status
        .connections
        .iter()
        .filter_map(|c| c.remote.parse().ok())
        .collect();
    let remote = remote.iter().filter_map(endpoint).collect();
    direct.candidates(peer, remote, Origin::Connection).await;
}

/// Addresses of a member that were found otherwise.
pub(crate) async fn found(mesh: &Arc<Mesh>, peer: PeerId, addresses: &[Heard]) {
    let addresses: Vec<SocketAddr> = addresses
        .iter()
        .filter_map(|heard| endpoint(heard.address()))
        .collect();
    if let Some(direct) = mesh.direct.as_ref().filter(|_| !addresses.is_empty()) {
        direct.candidates(peer, addresses, Origin::Told).await;
    }
}

/// Those of the addresses listened on that lead out of this machine.
pub(crate) async fn outward(addresses: &[Address]) -> Vec<Address> {
    match host::outward().await {
        Ok(known) => host::keep_outward(addresses, Address::ip, &known),
        Err(error) => {
            tracing::debug!(%error, "list this machine's addresses");
            addresses.to_vec()
        }
    }
}

/// What follows this machine's default routes; none where its network is not the kernel's, or no datagrams are sent.
pub(crate) fn uplinks(mesh: &Mesh) -> Option<Uplinks> {
    let is_kernel = matches!(mesh.surroundings, Surroundings::Kernel { .. });
    if !is_kernel || mesh.direct.is_none() {
        return None;
    }
    let follow = Uplinks::follow();
    follow
        .inspect_err(|error| tracing::warn!(%error, "changes of default routes are not followed"))
        .ok()
}

/// Waits until default routes have changed; for ever where they are not followed.
pub(crate) async fn rerouted(uplinks: Option<&Uplinks>) {
    match uplinks {
        Some(uplinks) => uplinks.changed().await,
        None => std::future::pending().await,
    }
}

/// Tells the datagram carrier which links the default routes lead over, the order of our addresses, and by which link
/// datagrams from some of them leave.
pub(crate) async fn tell_uplinks(mesh: &Mesh, uplinks: Option<&Uplinks>) {
    let (Some(direct), Some(uplinks)) = (&mesh.direct, uplinks) else {
        return;
    };
    match uplinks.now().await {
        Ok(Ways {
            links,
            preferred,
            exits,
        }) => direct.uplinks(links, preferred, exits).await,
        Err(error) => tracing::debug!(%error, "list default routes"),
    }
}

/// Has the datagram carrier neither tell nor try the networks that the configuration denies.
pub(crate) async fn deny(mesh: &Arc<Mesh>) {
    if let Some(direct) = &mesh.direct {
        direct.deny(mesh.config().deny_cidrs.clone()).await;
    }
}

/// Takes the addresses that this node listens on, and tells the datagram carrier: with them, members are told where its port
/// takes datagrams, which one that listens nowhere has as well.
pub(crate) async fn listening(mesh: &Arc<Mesh>, addresses: &[Address]) {
    let Some(direct) = &mesh.direct else { return };
    let unlistened = unlistened(mesh).await;
    let config = mesh.config();
    let advertised = config.advertise.iter().filter_map(|text| text.parse().ok());
    let of = |kind| {
        move |address: Address| endpoint(&address).map(|address| Candidate { address, kind })
    };
    let mapped = mesh.mapped().into_iter();
    let named = advertised
        .filter_map(of(Kind::Advertised))
        .chain(mapped.filter_map(of(Kind::Mapped)))
        .chain(addresses.iter().cloned().filter_map(of(Kind::Host)))
        .chain(unlistened);
    direct.own(named.collect()).await;
}

/// Where members may send datagrams to a port that takes no connections: this machine's addresses that lead out of it, with
/// that port. They are told over sessions, to members alone, and are no addresses to connect to.
async fn unlistened(mesh: &Mesh) -> Vec<Candidate> {
    let Some(port) = mesh.links.outbound_port() else {
        return Vec::new();
    };
    let bound = port.local();
    let number = |ip: &IpAddr| {
        let bound = bound.iter().find(|at| at.is_ipv4() == ip.is_ipv4());
        bound.map(SocketAddr::port)
    };
    match host::outward().await {
        Ok(known) => {
            let is_named = |ip: &IpAddr| match ip {
                // Without its link it means nothing to others.
                IpAddr::V6(v6) => !v6.is_unicast_link_local(),
                IpAddr::V4(_) => true,
            };
            let own = known.keys().copied().filter(|ip| !ip.is_loopback());
            let own: Vec<IpAddr> = own.filter(is_named).collect();
            let own = host::keep_outward(&own, |ip| Some(*ip), &known);
            own.into_iter()
                .filter_map(|ip| Some(SocketAddr::new(ip, number(&ip)?)))
                .map(|address| Candidate {
                    address,
                    kind: Kind::Host,
                })
                .collect()
        }
        Err(error) => {
            tracing::debug!(%error, "list this machine's addresses");
            Vec::new()
        }
    }
}

/// Takes an address at which somebody sees this node.
pub(crate) async fn observed(mesh: &Arc<Mesh>, address: &Address, by: PeerId) {
    if let (Some(direct), Some(address)) = (&mesh.direct, endpoint(address)) {
        direct.observed(address, by).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quic_addresses_take_datagrams() {
        let at = |text: &str| endpoint(&text.parse().unwrap());
        assert_eq!(
            at("/ip4/192.0.2.1/udp/4100/quic-v1"),
            Some("192.0.2.1:4100".parse().unwrap())
        );
        assert_eq!(
            at("/ip6/2001:db8::1/udp/4100/quic-v1"),
            Some("[2001:db8::1]:4100".parse().unwrap())
        );
        assert_eq!(at("/ip4/192.0.2.1/tcp/4100"), None);
        assert_eq!(at("/dns4/a.example/udp/4100/quic-v1"), None);
    }

    #[tokio::test]
    async fn what_is_found_out_is_told_in_its_order_although_questions_take_long() {
        let (sender, asks) = mpsc::channel(64);
        let (peer, stop) = (PeerId([1; 32]), CancellationToken::new());
        let told = std::sync::Mutex::new(Vec::new());
        let tell = |command| {
            // As long as the peers' task is busy; less and less.
            let before = told.lock().unwrap().len();
            let busy = Duration::from_millis(20u64.saturating_sub(before as u64));
            let told = &told;
            async move {
                tokio::time::sleep(busy).await;
                told.lock().unwrap().push(command);
            }
        };
        let put = |_| Some(std::future::pending::<()>());
        let asking = async {
            for n in 0..20 {
                sender.send(Ask::Leg { peer }).await.unwrap();
                let blocked = n % 2 == 0;
                let ask = Ask::UdpBlocked { peer, blocked };
                sender.send(ask).await.unwrap();
            }
            while told.lock().unwrap().len() < 20 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
        };
        let all = async { tokio::join!(carry(asks, stop.clone(), tell, put), asking) };
        let done = tokio::time::timeout(Duration::from_secs(10), all).await;
        assert!(done.is_ok());
        for (n, command) in told.lock().unwrap().iter().enumerate() {
            let Command::UdpBlocked { blocked, .. } = command else {
                panic!("{command:?}");
            };
            assert_eq!(*blocked, n % 2 == 0, "{n}");
        }
    }
}
